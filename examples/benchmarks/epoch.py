"""
What an epoch costs, compared with loops written by hand
========================================================

Times training epochs of the same VAE, in turn, in one process and on one thread:

- by hand: tensors in memory, ``X[idx]``, torch's default Adam, and only the loss;
- with tricks: the same, with samples shuffled once per epoch, slices, the fused Adam;
- skorch, Lightning, pythae: the trainer of each with its own data loader, the same net
  and the same loss. A library that is not installed is left out;
- the package; the same without its margin monitor; with a user's callback that clips
  gradients and reads the loss of every batch; and with networks that a user passes,
  which have the same layers and whose gradients autograd computes.

Prints medians of CPU time per epoch, their ratios to the loop by hand, and the share of
the epoch that the monitor takes. Then fits a small table with default settings, with
and without the teacher's fit, and compares with a loop by hand of as many epochs. Last,
trains for many epochs and compares the last epochs with early ones.

    python examples/benchmarks/epoch.py [--repeats 9] [--epochs 300]
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader, TensorDataset

from skvaecert import CertifiedVAE
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.loop import train
from skvaecert._training.monitors import MarginMonitor
from skvaecert._training.net import make_net
from skvaecert.networks import make_vae, mlp
from skvaecert.simplex import simplex_vertices

# name: samples, features, hidden sizes, latent dimensions, components, batch size
SETTINGS = {
    "64-64-64-16, n = 10,000, batch 64": (10_000, 64, (64, 64), 16, 10, 64),
    "784-512-256-32, n = 6,400, batch 128": (6_400, 784, (512, 256), 32, 20, 128),
    "64-128-128-16, n = 1,347, batch 84": (1_347, 64, (128, 128), 16, 10, 84),
}
SCALE, KL_WEIGHT, ALIGNMENT_WEIGHT = 2.0, 1.0, 10.0
# Epochs per turn: enough that the fixed cost of a fit matters little.
TURN = 3


class Loss(torch.nn.Module):
    """The loss of the package, with the teacher's posteriors as `y`."""

    def __init__(self, vertices, scale=SCALE):
        super().__init__()
        self.register_buffer("vertices", scale * torch.as_tensor(vertices).float())

    def forward(self, result, x, proba):
        mean, log_variance, _, output, log_noise = result
        squares = (x - output).square().sum(1) * torch.exp(-log_noise)
        loss = (squares + x.shape[1] * (log_noise + np.log(2 * np.pi))) / 2
        kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        log_q = torch.log_softmax(mean @ self.vertices.T, 1)
        pull = (torch.xlogy(proba, proba) - proba * log_q).sum(1)
        return (loss + KL_WEIGHT * kl + ALIGNMENT_WEIGHT * pull).mean()


def by_hand(data, vae, batch_size, tricks=False, scale=SCALE):
    """Return a function that trains for some epochs, as do all `by_...` below."""
    samples, proba, vertices = data
    optimizer = torch.optim.Adam(vae.parameters(), fused=tricks or None)
    criterion = Loss(vertices, scale)

    def batches():
        order = torch.randperm(len(samples))
        if tricks:
            shuffled = samples[order], proba[order]
            return zip(*(tensor.split(batch_size) for tensor in shuffled), strict=True)
        return ((samples[index], proba[index]) for index in order.split(batch_size))

    def run(n_epochs=TURN):
        for _ in range(n_epochs):
            for x, t in batches():
                loss = criterion(vae(x), x, t)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return run


class SkorchNet(NeuralNet):
    def get_loss(self, y_pred, y_true, X, training=False):
        return self.criterion_(y_pred, X, y_true)


def by_skorch(data, vae, batch_size):
    samples, proba, vertices = data
    net = SkorchNet(
        vae,
        Loss,
        criterion__vertices=vertices,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        max_epochs=TURN,
        verbose=0,
    ).initialize()
    return lambda: net.partial_fit(samples, proba)


def by_lightning(data, vae, batch_size):
    import lightning

    samples, proba, vertices = data
    loader = DataLoader(TensorDataset(samples, proba), batch_size, shuffle=True)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.vae, self.criterion = vae, Loss(vertices)

        def training_step(self, batch, batch_idx):
            x, t = batch
            return self.criterion(self.vae(x), x, t)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    quiet = dict.fromkeys(("logger", "enable_checkpointing"), False)
    quiet |= dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=0, **quiet)
    module = Module()

    def run():
        trainer.fit_loop.max_epochs += TURN
        trainer.fit(module, loader)

    return run


def by_pythae(data, vae, batch_size):
    from pythae.data.datasets import BaseDataset
    from pythae.models.base import BaseAE, BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    samples, proba, vertices = data
    criterion = Loss(vertices)

    class Model(BaseAE):
        def __init__(self):
            # pythae requires a decoder of its own class, but never calls it here.
            super().__init__(BaseAEConfig(), decoder=BaseDecoder())
            self.vae = vae

        def forward(self, inputs, **kwargs):
            x = inputs["data"]
            result = self.vae(x)
            loss = criterion(result, x, inputs["labels"])
            return ModelOutput(loss=loss, recon_x=result.output)

    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        no_cuda=True,
    )
    trainer = BaseTrainer(Model(), BaseDataset(samples, proba), training_config=config)
    trainer.prepare_training()

    def run():
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            for epoch in range(TURN):
                trainer.train_step(epoch)

    return run


class TimedMonitor(MarginMonitor):
    """Adds up the CPU time that the monitor takes."""

    seconds = 0.0

    def on_epoch_end(self, net, **kwargs):
        start = time.process_time()
        super().on_epoch_end(net, **kwargs)
        TimedMonitor.seconds += time.process_time() - start


class EveryBatch(Callback):
    """A user's callback that does something with every batch."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        parameters = [parameter for _, parameter in named_parameters]
        torch.nn.utils.clip_grad_norm_(parameters, 1e3)

    def on_batch_end(self, net, loss, **kwargs):
        self.largest_ = max(loss, getattr(self, "largest_", loss))


def by_package(data, vae, batch_size, step="numpy", **settings):
    samples, proba, vertices = data
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
        max_epochs=TURN,
        **settings,
    )
    dataset = TrainingSet(Resident(samples), proba)

    def run():
        train(net, dataset)
        assert net.step_ == step

    return run


class Own(torch.nn.Sequential):
    """A network that a user passes: the package does not know its class."""


def variants(n, n_features, hidden, latent_dim, n_components, batch_size):
    torch.manual_seed(0)
    samples = torch.randn(n, n_features)
    proba = torch.softmax(2 * torch.randn(n, n_components), dim=1)
    data = samples, proba, simplex_vertices(n_components, latent_dim)

    def make(by, *networks, **settings):
        vae = make_vae(n_features, latent_dim, hidden, *networks)
        return by(data, vae, batch_size, **settings)

    runs = {"by hand": make(by_hand), "with tricks": make(by_hand, tricks=True)}
    peers = {"skorch": by_skorch, "Lightning": by_lightning, "pythae": by_pythae}
    for name, by in peers.items():
        with suppress(ImportError):
            runs[name] = make(by)
    encoder = Own(*mlp(n_features, hidden, 2 * latent_dim))
    decoder = Own(*mlp(latent_dim, hidden[::-1], n_features))
    return runs | {
        "package": make(by_package, callbacks__monitor=TimedMonitor()),
        "without monitor": make(by_package, callbacks__monitor=None),
        "callback on batches": make(by_package, callbacks=[EveryBatch()]),
        "by autograd": make(by_package, encoder, decoder, step="autograd"),
    }


def cpu_seconds(function, *args):
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def in_turn(runs, repeats):
    """Return CPU seconds of every run, after a warm-up of each."""
    times = [[cpu_seconds(run) for run in runs.values()] for _ in range(repeats + 1)]
    return dict(zip(runs, np.transpose(times[1:]), strict=True))


def ratios(times, base):
    return [f"{statistics.median(times[k] / times[base]):.2f}" for k in times]


def print_row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def compare(repeats):
    header = None
    for name, sizes in SETTINGS.items():
        runs = variants(*sizes)
        if header is None:
            header = ["net", *runs, "monitor's share"]
            print_row(*header)
            print_row(*["---"] * len(header))
        TimedMonitor.seconds = 0.0
        times = in_turn(runs, repeats)
        share = TimedMonitor.seconds / times["package"].sum() * repeats / (repeats + 1)
        milliseconds = statistics.median(times["by hand"]) / TURN * 1e3
        cells = [f"{milliseconds:.0f} ms", *ratios(times, "by hand")[1:]]
        print_row(name, *cells, f"{share:.1%}")


def small_table(repeats):
    X = load_iris().data
    vae = CertifiedVAE(device="cpu", random_state=0)
    fitted = vae.fit(X)
    proba = fitted.teacher_.predict_proba(X)
    tensors = (
        torch.tensor(a).float() for a in (StandardScaler().fit_transform(X), proba)
    )
    data = *tensors, fitted.vertices_
    sizes, batch_size = (
        (X.shape[1], vae.latent_dim, vae.hidden_sizes),
        fitted.net_.batch_size,
    )

    def hand():
        scale = fitted.witness_scale_
        by_hand(data, make_vae(*sizes), batch_size, scale=scale)(vae.max_epochs)

    runs = {
        "by hand": hand,
        "CertifiedVAE().fit(X)": lambda: vae.fit(X),
        "teacher_proba given": lambda: vae.fit(X, teacher_proba=proba),
    }
    times = in_turn(runs, repeats)
    print_row("iris, 100 epochs", *runs)
    print_row(*["---"] * (1 + len(runs)))
    seconds = f"{statistics.median(times['by hand']):.2f} s"
    print_row(f"batch {batch_size}", seconds, *ratios(times, "by hand")[1:])


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


class Clock(Callback):
    """Records the CPU time at the end of every epoch; all copies share the list."""

    times: ClassVar[list[float]] = []

    def on_epoch_end(self, net, **kwargs):
        Clock.times.append(time.process_time())


def drift(n_epochs):
    """Print the CPU time of early and of late epochs, on digits.

    It takes the fastest tenth of a window, since other programs only add time.
    """
    X = load_digits().data / 16
    relu = {"encoder": relu_encoder, "decoder": relu_decoder}
    cases = {
        "kl_weight 1": {"kl_weight": 1},
        "kl_weight 8": {"kl_weight": 8},
        "kl_weight 8, ReLU": {"kl_weight": 8, **relu},
    }
    for name, params in cases.items():
        Clock.times.clear()
        CertifiedVAE(
            device="cpu",
            max_epochs=n_epochs,
            callbacks=[Clock()],
            random_state=0,
            **params,
        ).fit(X)
        seconds = np.diff(Clock.times)
        early, late = (np.quantile(w, 0.1) for w in (seconds[4:54], seconds[-50:]))
        print(
            f"digits, {name}: epochs 6 to 55 {early * 1e3:.1f} ms, the last 50 of "
            f"{n_epochs} {late * 1e3:.1f} ms, ratio {late / early:.2f}"
        )


def processor():
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        return next(
            line.split(":")[1].strip() for line in lines if "model name" in line
        )
    return platform.processor() or platform.machine()


def print_machine():
    """Print what the ratios depend on, above all the BLAS of NumPy and of torch."""
    blas = [
        f"{library['internal_api']} {library['version']} ({library['architecture']})"
        for library in threadpool_info()
        if library["user_api"] == "blas" and "numpy" in library["filepath"]
    ]
    torchs = torch.backends.cpu.get_cpu_capability()
    print(
        f"{processor()}; NumPy {np.__version__}, BLAS {', '.join(blas) or 'unknown'};"
    )
    print(f"torch {torch.__version__} ({torchs}), skorch {version('skorch')}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=300)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning|pythae")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        print_machine()
        compare(arguments.repeats)
        print()
        small_table(arguments.repeats)
        print()
        drift(arguments.epochs)


if __name__ == "__main__":
    main()
