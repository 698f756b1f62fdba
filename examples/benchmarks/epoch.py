"""
What an epoch costs, beside loops written by hand
=================================================

Times training epochs of the same VAE, in turn, in one process and on one thread:

- by hand: tensors in memory, ``X[idx]``, Adam as torch has it by default, and nothing
  but the loss;
- with tricks: the same, with rows shuffled once an epoch, slices, and the fused Adam;
- skorch: its net with its data loader and default callbacks, the same loss;
- the package, with and without its margin monitor;
- the package by autograd, as it trains networks of one's own.

Prints medians of CPU time an epoch, the ratio of each to the loop by hand, and the
share of the epoch that the monitor takes. Then it trains for long, and compares the
last epochs with early ones.

    python examples/benchmarks/epoch.py [--repeats 9] [--epochs 300]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNet

from skvaecert import CertifiedVAE
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.monitors import MarginMonitor
from skvaecert._training.net import make_net
from skvaecert._training.step import GradientByHand
from skvaecert.networks import make_vae
from skvaecert.objectives import alignment, gaussian_kl, gaussian_loss
from skvaecert.simplex import simplex_vertices

# name: rows, features, hidden sizes, latent dimensions, components, batch size
SETTINGS = {
    "64-64-16, n = 10,000, batch 64": (10_000, 64, (64,), 16, 10, 64),
    "784-512-256-32, n = 10,000, batch 128": (10_000, 784, (512, 256), 32, 20, 128),
    "64-128-128-16, n = 1,347, batch 84": (1347, 64, (128, 128), 16, 10, 84),
}
SCALE, KL_WEIGHT, ALIGNMENT_WEIGHT = 2.0, 1.0, 10.0


class TimedMonitor(MarginMonitor):
    """Notes the CPU time that it takes."""

    def on_epoch_end(self, net, **kwargs):
        start = time.process_time()
        super().on_epoch_end(net, **kwargs)
        self.seconds_ = time.process_time() - start


class Loss(torch.nn.Module):
    """The loss of the package, as skorch wants it; teacher posteriors are `y`."""

    def __init__(self, vertices):
        super().__init__()
        self.register_buffer("vertices", torch.as_tensor(vertices).float())

    def forward(self, result, x, proba):
        loss = gaussian_loss(x, result.output, result.log_noise)
        loss = loss + KL_WEIGHT * gaussian_kl(result.mean, result.log_variance)
        pull = alignment(proba, result.mean, self.vertices, SCALE)
        return (loss + ALIGNMENT_WEIGHT * pull).mean()


class SkorchNet(NeuralNet):
    def get_loss(self, y_pred, y_true, X, training=False):
        return self.criterion_(y_pred, X, y_true)


def by_hand(data, vae, batch_size, tricks=False):
    """Return a function that trains one epoch."""
    rows, proba, vertices = data
    optimizer = torch.optim.Adam(vae.parameters(), fused=tricks or None)
    criterion = Loss(vertices)

    def batches():
        order = torch.randperm(len(rows))
        if tricks:
            shuffled = rows[order], proba[order]
            return zip(*(tensor.split(batch_size) for tensor in shuffled), strict=True)
        return ((rows[index], proba[index]) for index in order.split(batch_size))

    def epoch():
        for x, t in batches():
            loss = criterion(vae(x), x, t)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def by_skorch(data, vae, batch_size):
    rows, proba, vertices = data
    net = SkorchNet(
        vae,
        Loss,
        criterion__vertices=vertices,
        optimizer=torch.optim.Adam,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        max_epochs=1,
        verbose=0,
    ).initialize()
    return lambda: net.partial_fit(rows, proba)


def by_package(data, vae, batch_size, monitor):
    """Return a function that trains one epoch with the package's net."""
    rows, proba, vertices = data
    net = make_net(
        vae,
        device=torch.device("cpu"),
        vertices=vertices,
        criterion__likelihood="gaussian",
        criterion__scale=SCALE,
        criterion__kl_weight=KL_WEIGHT,
        criterion__alignment_weight=ALIGNMENT_WEIGHT,
        lr=1e-3,
        batch_size=batch_size,
        max_epochs=1,
        callbacks__monitor=monitor,
    )
    dataset = TrainingSet(Resident(rows), proba)
    net.notify("on_train_begin", X=dataset, y=None)
    return lambda: net.fit_loop(dataset)


def without_hand(epoch):
    """Return the epoch, with gradients by autograd."""

    def run():
        of, GradientByHand.of = GradientByHand.of, lambda *args: None
        try:
            epoch()
        finally:
            GradientByHand.of = of

    return run


def variants(monitor, n, n_features, hidden, latent_dim, n_components, batch_size):
    torch.manual_seed(0)
    rows = torch.randn(n, n_features)
    proba = torch.softmax(2 * torch.randn(n, n_components), dim=1)
    data = rows, proba, simplex_vertices(n_components, latent_dim)

    def fresh():
        return make_vae(n_features, latent_dim, hidden)

    autograd = by_package(data, fresh(), batch_size, MarginMonitor())
    return {
        "by hand": by_hand(data, fresh(), batch_size),
        "with tricks": by_hand(data, fresh(), batch_size, tricks=True),
        "skorch": by_skorch(data, fresh(), batch_size),
        "package": by_package(data, fresh(), batch_size, monitor),
        "without monitor": by_package(data, fresh(), batch_size, None),
        "by autograd": without_hand(autograd),
    }


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(repeats):
    header = None
    for name, sizes in SETTINGS.items():
        monitor, shares = TimedMonitor(), []
        epochs = variants(monitor, *sizes)
        if header is None:
            header = ["net", *epochs, "monitor's share"]
            print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        for epoch in epochs.values():
            epoch()
        times = {key: [] for key in epochs}
        for _ in range(repeats):
            for key, epoch in epochs.items():
                times[key].append(cpu_seconds(epoch))
            shares.append(monitor.seconds_ / times["package"][-1])
        base = np.array(times["by hand"])
        cells = [f"{statistics.median(base) * 1e3:.0f} ms"]
        for key in list(epochs)[1:]:
            cells.append(f"{statistics.median(np.array(times[key]) / base):.2f}")
        cells.append(f"{statistics.median(shares):.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def relu_net(n_inputs, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(n_inputs, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, n_outputs),
    )


def relu_encoder(n_features, latent_dim):
    return relu_net(n_features, 2 * latent_dim)


def relu_decoder(n_features, latent_dim):
    return relu_net(latent_dim, n_features)


def drift(n_epochs):
    """Print what late epochs take beside early ones, on digits.

    The fastest tenth of a window: whatever else runs on a machine only adds to it.
    """
    X = load_digits().data / 16
    relu = {"encoder": relu_encoder, "decoder": relu_decoder}
    cases = {
        "kl_weight 1": {"kl_weight": 1},
        "kl_weight 8": {"kl_weight": 8},
        "kl_weight 8, ReLU": {"kl_weight": 8, **relu},
    }
    for name, params in cases.items():
        vae = CertifiedVAE(
            max_epochs=n_epochs, device="cpu", random_state=0, **params
        ).fit(X)
        seconds = [row["seconds"] for row in vae.history_]
        early, late = (np.quantile(w, 0.1) for w in (seconds[5:55], seconds[-50:]))
        print(
            f"digits, {name}: epochs 6 to 55 {early * 1e3:.1f} ms, the last 50 of "
            f"{n_epochs} {late * 1e3:.1f} ms, ratio {late / early:.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare(arguments.repeats)
    print()
    drift(arguments.epochs)


if __name__ == "__main__":
    main()
