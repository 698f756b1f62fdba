"""
What an epoch costs, beside a loop written by hand
==================================================

Times training epochs of the same VAE, in turn, in one process and on one thread:

- by hand: tensors in memory, ``X[idx]``, Adam as torch has it by default, and nothing
  but the loss;
- without the monitor: the package's net, its margin monitor switched off;
- with the monitor: as :class:`skvaecert.CertifiedVAE` trains.

Prints medians of CPU time an epoch, the ratio of each to the loop by hand, and the
share of the epoch that the monitor takes.

    python examples/benchmarks/epoch.py [--repeats 9]
"""

import argparse
import statistics
import time

import numpy as np
import torch

from skvaecert._batches import Resident, TrainingSet
from skvaecert._training import MarginMonitor, make_net
from skvaecert.networks import make_vae
from skvaecert.objectives import alignment, gaussian_kl, gaussian_loss
from skvaecert.simplex import simplex_vertices

# name: rows, features, hidden sizes, latent dimensions, components, batch size
SETTINGS = {
    "64-128-128-16, n = 1,347, batch 128": (1347, 64, (128, 128), 16, 10, 128),
    "64-64-16, n = 10,000, batch 64": (10_000, 64, (64,), 16, 10, 64),
    "784-512-256-32, n = 10,000, batch 128": (10_000, 784, (512, 256), 32, 20, 128),
    "784-512-256-32, n = 1,000, batch 128": (1000, 784, (512, 256), 32, 20, 128),
}
SCALE, KL_WEIGHT, ALIGNMENT_WEIGHT = 2.0, 1.0, 10.0


class TimedMonitor(MarginMonitor):
    """Notes the CPU time that it takes."""

    def on_epoch_end(self, net, **kwargs):
        start = time.process_time()
        super().on_epoch_end(net, **kwargs)
        self.seconds_ = time.process_time() - start


def by_hand(rows, proba, vertices, vae, batch_size):
    """Return a function that trains one epoch."""
    optimizer = torch.optim.Adam(vae.parameters())
    vertices = torch.as_tensor(vertices, dtype=torch.float32)

    def epoch():
        order = torch.randperm(len(rows))
        for index in order.split(batch_size):
            x, t = rows[index], proba[index]
            result = vae(x)
            loss = gaussian_loss(x, result.output, result.log_noise)
            loss = loss + KL_WEIGHT * gaussian_kl(result.mean, result.log_variance)
            loss = loss + ALIGNMENT_WEIGHT * alignment(t, result.mean, vertices, SCALE)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()

    return epoch


def by_package(rows, proba, vertices, vae, batch_size, **settings):
    """Return a function that trains one epoch with the package's net."""
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
        **settings,
    )
    dataset = TrainingSet(Resident(rows), proba)
    net.notify("on_train_begin", X=dataset, y=None)
    return lambda: net.fit_loop(dataset)


def variants(
    monitor, n, n_features, hidden_sizes, latent_dim, n_components, batch_size
):
    torch.manual_seed(0)
    rows = torch.randn(n, n_features)
    proba = torch.softmax(2 * torch.randn(n, n_components), dim=1)
    vertices = simplex_vertices(n_components, latent_dim)
    data = rows, proba, vertices

    def fresh():
        return make_vae(n_features, latent_dim, hidden_sizes)

    return {
        "by hand": by_hand(*data, fresh(), batch_size),
        "without monitor": by_package(
            *data, fresh(), batch_size, callbacks__monitor=None
        ),
        "with monitor": by_package(
            *data, fresh(), batch_size, callbacks__monitor=monitor
        ),
    }


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(
        "| net | " + " | ".join(["by hand", "without monitor", "with monitor"]), end=""
    )
    print(" | monitor's share of the epoch |\n|---|---|---|---|---|")
    for name, sizes in SETTINGS.items():
        monitor, shares = TimedMonitor(), []
        epochs = variants(monitor, *sizes)
        for epoch in epochs.values():
            epoch()
        times = {key: [] for key in epochs}
        for _ in range(repeats):
            for key, epoch in epochs.items():
                times[key].append(cpu_seconds(epoch))
            shares.append(monitor.seconds_ / times["with monitor"][-1])
        base = np.array(times["by hand"])
        cells = [f"{statistics.median(base) * 1e3:.0f} ms"]
        for key in ("without monitor", "with monitor"):
            cells.append(f"{statistics.median(np.array(times[key]) / base):.2f}")
        cells.append(f"{statistics.median(shares):.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
