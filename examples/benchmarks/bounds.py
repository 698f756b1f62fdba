"""
How often bounds for new samples hold, and what they cost
=========================================================

Draws samples with replacement from populations of 500, whose margins are known exactly.
Counts how often a lower bound at 95 % is at most the margin of the population, and how
far below it is on average. A t-interval on the samples' contributions to the margin,
which many would use, is compared with the bounds of the package.

Prints one table per population, and the medians of CPU time.

    python examples/benchmarks/bounds.py [--scale 1]
"""

import argparse
import statistics
import time

import numpy as np
from scipy.special import entr, softmax
from scipy.stats import t

from skvaecert.bounds import (
    bernstein_bound,
    betting_bound,
    bootstrap_bound,
)
from skvaecert.metrics import margin_contributions

K, N_SAMPLES, FLOOR = 5, 500, 1e-3
REPEATS = {50: 2000, 200: 2000, 2000: 400, 20_000: 50}


def easy():
    proba = softmax(3 * np.random.default_rng(0).normal(size=(N_SAMPLES, K)), axis=1)
    proba = 0.99 * proba + 0.01 / K
    noise = 0.5 * np.random.default_rng(1).normal(size=proba.shape)
    return proba, softmax(np.log(proba) + noise, axis=1)


def rare():
    proba, witness = easy()
    wrong = slice(0, N_SAMPLES // 100)
    witness[wrong] = 1e-12 + np.eye(K)[proba[wrong].argmin(axis=1)]
    return proba, witness / witness.sum(axis=1, keepdims=True)


def skewed():
    proba = np.tile([0.6, 0.2, 0.1, 0.0999, 1e-4], (N_SAMPLES, 1))
    proba[: N_SAMPLES // 100] = [1e-4, 1e-4, 1e-4, 1e-4, 0.9996]
    witness = proba.copy()
    witness[N_SAMPLES // 100 :] = [0.4, 0.3, 0.1, 0.1, 0.1]
    return proba, witness


def collapsed():
    proba, _ = easy()
    return proba, np.tile(proba.mean(axis=0), (N_SAMPLES, 1))


POPULATIONS = {
    "easy": easy,
    "1 % confidently wrong": rare,
    "1 % have the margin": skewed,
    "collapsed": collapsed,
}


def floored(log_q):
    return np.log((1 - FLOOR) * np.exp(log_q) + FLOOR / K)


def margin(proba, witness):
    cross_entropy = -(proba * floored(np.log(witness))).sum(axis=1).mean()
    return entr(proba.mean(axis=0)).sum() - cross_entropy


def t_interval(proba, log_q):
    g = margin_contributions(proba, floored(log_q))
    return g.mean() - t.ppf(0.95, len(g) - 1) * g.std(ddof=1) / np.sqrt(len(g))


def bootstrap(proba, log_q):
    return bootstrap_bound(proba, log_q, n_resamples=1000, random_state=0)


METHODS = {
    "betting": betting_bound,
    "Bernstein": bernstein_bound,
    "bootstrap": bootstrap,
    "t-interval": t_interval,
}


def measure(method, draws):
    bounds, seconds = [], []
    for proba, log_q in draws:
        start = time.process_time()
        bounds.append(method(proba, log_q))
        seconds.append(time.process_time() - start)
    return np.array(bounds), statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--scale", type=float, default=1, help="factor on the numbers of repeats"
    )
    options = parser.parse_args()
    times = {}
    for name, population in POPULATIONS.items():
        proba, witness = population()
        truth = margin(proba, witness)
        print(f"\n{name}, margin {truth:.3f}:\n")
        print("| samples (repeats) |", *(f"{method} |" for method in METHODS))
        print("|---" * (1 + len(METHODS)) + "|", flush=True)
        for n_samples, repeats in REPEATS.items():
            repeats = max(2, int(options.scale * repeats))
            rng = np.random.default_rng(0)
            samples = rng.integers(N_SAMPLES, size=(repeats, n_samples))
            draws = [(proba[index], np.log(witness[index])) for index in samples]
            cells = []
            for method in METHODS:
                bounds, times[n_samples, method] = measure(METHODS[method], draws)
                covered = np.mean(bounds <= truth)
                cells.append(f"{covered:.3f} ({truth - bounds.mean():.3f}) |")
            print(f"| {n_samples:,} ({repeats}) |", *cells, flush=True)
    print("\n| samples |", *(f"{method} |" for method in METHODS))
    print("|---" * (1 + len(METHODS)) + "|")
    for n_samples in REPEATS:
        cells = [f"{1e3 * times[n_samples, method]:.1f} ms |" for method in METHODS]
        print(f"| {n_samples:,} |", *cells)


if __name__ == "__main__":
    main()
