"""
Many small fits as one
======================

Fits sixteen :class:`skvaecert.CertifiedVAE` (seeds x alignment weights x KL weights),
in turn, in one process and on one thread:

- one: a single fit;
- together: all sixteen by :func:`skvaecert.model_selection.fit_together`;
- each: all sixteen, one after another, each with its own teacher fit.

Then the same for stacks of nets without what surrounds the training, of several sizes:
where joining stops paying.

Prints medians of CPU time and of the ratios to one fit.

    python examples/benchmarks/together.py [--repeats 5] [--rows 2000] [--epochs 20]
"""

import argparse
import statistics
import time
from itertools import product

import numpy as np
import torch

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.device import seeded
from skvaecert._training.joint import Fit, group_size, train_together
from skvaecert._training.net import make_net
from skvaecert.model_selection import fit_together
from skvaecert.networks import make_vae
from skvaecert.simplex import simplex_vertices

# features, hidden sizes, latent dimensions, components, batch size, batches
ARCHITECTURES = {
    "16-32-4, batch 32": (16, (32,), 4, 4, 32, 40),
    "64-64-16, batch 64": (64, (64,), 16, 10, 64, 20),
    "64-64-16, batch 512": (64, (64,), 16, 10, 512, 10),
    "64-128-128-16, batch 128": (64, (128, 128), 16, 10, 128, 20),
    "200-256-16, batch 128": (200, (256,), 16, 10, 128, 10),
    "64-256-256-16, batch 128": (64, (256, 256), 16, 10, 128, 10),
    "784-512-256-32, batch 128": (784, (512, 256), 32, 20, 128, 4),
}
STACKS = (2, 4, 8, 16, 32)
CPU = torch.device("cpu")


def estimators(epochs, **settings):
    teacher = GMMTeacher(n_components=10, random_state=0)
    common = {"max_epochs": epochs, "device": "cpu"} | settings
    weights = product(range(4), (2.0, 10.0), (1.0, 4.0))
    return [
        CertifiedVAE(teacher, random_state=s, alignment_weight=a, kl_weight=k, **common)
        for s, a, k in weights
    ]


def fit_each(vaes, X):
    for vae in vaes:
        vae.fit(X)


def cpu_seconds(function, *args):
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def fits(name, n_rows, epochs, repeats, n_features, **settings):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, n_features))
    X = centres[rng.integers(10, size=n_rows)] + rng.normal(size=(n_rows, n_features))
    one, together, each = [], [], []
    fit_each(estimators(1, **settings)[:1], X)
    for _ in range(repeats):
        one.append(cpu_seconds(fit_each, estimators(epochs, **settings)[:1], X))
        together.append(cpu_seconds(fit_together, estimators(epochs, **settings), X))
        each.append(cpu_seconds(fit_each, estimators(epochs, **settings), X))
    base = np.array(one)
    ratios = [statistics.median(np.array(times) / base) for times in (together, each)]
    seconds = f"{statistics.median(one):.2f} s"
    print(f"| {name} | {seconds} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def ready(seed, n_features, hidden_sizes, latent_dim, n_components, batch_size, n):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n * batch_size, n_features, generator=generator)
    logits = torch.randn(n * batch_size, n_components, generator=generator)
    with seeded(seed, CPU):
        net = make_net(
            make_vae(n_features, latent_dim, hidden_sizes),
            device=CPU,
            vertices=simplex_vertices(n_components, latent_dim),
            criterion__likelihood="gaussian",
            criterion__scale=2.0,
            criterion__kl_weight=1.0,
            criterion__alignment_weight=10.0,
            lr=1e-3,
            batch_size=batch_size,
            max_epochs=2,
        )
        return Fit(net, rows, torch.softmax(logits, dim=1), torch.get_rng_state())


def train_alone(fit):
    with seeded(0, CPU):
        dataset = TrainingSet(Resident(fit.rows), fit.teacher_proba)
        fit.net.partial_fit(dataset)


def stacks(name, repeats, *sizes):
    times = {n: [] for n in (1, *STACKS)}
    for _ in range(repeats):
        for n in times:
            together = [ready(seed, *sizes) for seed in range(n)]
            if n == 1:
                times[n].append(cpu_seconds(train_alone, together[0]))
            else:
                times[n].append(cpu_seconds(train_together, together))
    base = np.array(times[1])
    gains = [n / statistics.median(np.array(times[n]) / base) for n in STACKS]
    cells = " | ".join(f"{gain:.2f}" for gain in gains)
    print(f"| {name} | {cells} | {group_size(ready(0, *sizes).net)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| sixteen fits | one | together | each |\n|---|---|---|---|")
    shared = given.rows, given.epochs, given.repeats
    small = {"hidden_sizes": (64,), "latent_dim": 16, "batch_size": 64}
    large = {"hidden_sizes": (512, 256), "latent_dim": 32, "batch_size": 128}
    fits("64-64-16", *shared, 64, **small)
    fits("784-512-256-32", given.rows, 2, min(3, given.repeats), 784, **large)
    header = " | ".join(f"{n} nets" for n in STACKS)
    print(f"\n| times as fast as one by one | {header} | chosen |")
    print("|---" * (len(STACKS) + 2) + "|")
    for name, sizes in ARCHITECTURES.items():
        stacks(name, given.repeats, *sizes)


if __name__ == "__main__":
    main()
