"""
A grid of sixteen
=================

Searches over sixteen alignment and KL weights with a ``GridSearchCV``, on 2,000 samples
of 64 features, with three folds. These are 48 fits of :class:`skvaecert.CertifiedVAE`,
whose ``memory`` keeps the teacher of each fold. Compares with 48 loops by hand, one
after another, with the same net, batches and epochs. They fit no teacher, but use
random posteriors, and compute no score.

Prints medians of wall time, with workers that have already started, and of CPU time
where there is one process.

    python examples/benchmarks/grid.py [--repeats 3] [--epochs 20]
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import torch
from epoch import by_hand
from sklearn.model_selection import GridSearchCV, KFold
from threadpoolctl import threadpool_limits

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.networks import make_vae

GRID = {"alignment_weight": [1, 3, 10, 30], "kl_weight": [0.5, 1, 2, 4]}
FOLDS, N_FITS = 3, 48
NET = {"hidden_sizes": (64,), "latent_dim": 16, "batch_size": 64, "device": "cpu"}


def samples():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 64))
    return centers[rng.integers(10, size=2000)] + rng.normal(size=(2000, 64))


def search(X, epochs, n_jobs):
    teacher = GMMTeacher(n_components=10, random_state=0)
    with tempfile.TemporaryDirectory() as memory:
        vae = CertifiedVAE(
            teacher, max_epochs=epochs, memory=memory, random_state=0, **NET
        )
        folds = KFold(FOLDS)
        GridSearchCV(vae, GRID, cv=folds, n_jobs=n_jobs, refit=False).fit(X)


def loops(X, epochs):
    inputs = torch.tensor(X[: len(X) * (FOLDS - 1) // FOLDS]).float()
    proba = torch.softmax(torch.randn(len(inputs), 10), dim=1)
    data = inputs, proba, torch.randn(10, NET["latent_dim"])
    for _ in range(N_FITS):
        vae = make_vae(X.shape[1], NET["latent_dim"], NET["hidden_sizes"])
        by_hand(data, vae, NET["batch_size"])(epochs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    X = samples()
    runs = {
        "48 loops by hand": lambda epochs: loops(X, epochs),
        "GridSearchCV, n_jobs=1": lambda epochs: search(X, epochs, 1),
        "GridSearchCV, n_jobs=2": lambda epochs: search(X, epochs, 2),
    }
    times = {name: [] for name in runs}
    with threadpool_limits(1):
        for epochs in [1] + [given.epochs] * given.repeats:
            for name, run in runs.items():
                start = time.perf_counter(), time.process_time()
                run(epochs)
                end = time.perf_counter(), time.process_time()
                times[name].append(np.subtract(end, start))
    print("|  | seconds | CPU seconds |\n| --- | --- | --- |")
    for name, measured in times.items():
        clock, cpu = map(statistics.median, np.transpose(measured[1:]))
        shown = "" if name.endswith("2") else f"{cpu:.1f}"
        print(f"| {name} | {clock:.1f} | {shown} |")


if __name__ == "__main__":
    main()
