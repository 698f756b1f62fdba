"""
What the forecast misses by
===========================

Trains on digits and on colour patches of photographs with several ratios of
alignment_weight to kl_weight, for few epochs and for more, and compares the margin
on the training rows with the forecast, both as shares of the teacher information:
medians and extremes over seeds, and in how many fits the trained margin was above the
forecast. Then it times the forecast on 50,000 rows of 100 components.

    python examples/benchmarks/forecast.py [--data digits patches] [--no-timing]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.exceptions import UnstableTeacherWarning
from skvaecert.forecast import forecast_margin, ratio_for_margin
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.simplex import prior_matched_scale

RATIOS = (0.2, 1, 10)
KL_WEIGHTS = (1, 4, 16)
# Seeds and, for each, numbers of epochs: short and longer trainings.
PLANS = {"digits": (5, (10, 60)), "patches": (3, (5, 40))}


def digits(seed):
    return train_test_split(load_digits().data / 16, random_state=seed)[0]


def patches(seed):
    return load_patches(4000, size=8, random_state=seed).data


def compare(load, n_seeds, all_epochs, kl_weights, ratios):
    print("| kl_weight | ratio | epochs | forecast | trained | difference | above |")
    print("|---|---|---|---|---|---|---|")
    data = []
    for seed in range(n_seeds):
        X = load(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableTeacherWarning)
            data.append((GMMTeacher(random_state=seed).fit(X), X))
    above = []
    for kl_weight in kl_weights:
        for ratio in ratios:
            for epochs in all_epochs:
                pairs = np.array(
                    [
                        pair(teacher, X, seed, epochs, kl_weight, ratio)
                        for seed, (teacher, X) in enumerate(data)
                    ]
                )
                above.extend(pairs[:, 1] > pairs[:, 0])
                line(kl_weight, ratio, epochs, pairs)
    print(f"\nabove the forecast in {sum(above)} of {len(above)} fits", flush=True)


def pair(teacher, X, seed, epochs, kl_weight, ratio):
    """Return forecast and trained margin as shares of the information."""
    vae = CertifiedVAE(
        FrozenEstimator(teacher),
        alignment_weight=ratio * kl_weight,
        kl_weight=kl_weight,
        max_epochs=epochs,
        device="cpu",
        random_state=seed,
    )
    forecast = vae.forecast(X, ratio=ratio).operating_margin
    vae.fit(X)
    proba = teacher.predict_proba(X)
    margin = collapse_margin(proba, vae.witness_log_proba(X))
    return np.array([forecast, margin]) / teacher_information(proba)


def line(kl_weight, ratio, epochs, pairs):
    forecast, trained = np.median(pairs, axis=0)
    difference = pairs[:, 1] - pairs[:, 0]
    print(
        f"| {kl_weight} | {ratio} | {epochs} | {forecast:.2f} | {trained:.2f} | "
        f"{difference.min():+.2f} to {difference.max():+.2f} | "
        f"{(difference > 0).sum()} of {len(pairs)} |",
        flush=True,
    )


def timing(n_samples=50_000, n_components=100):
    logits = np.random.default_rng(0).normal(size=(n_samples, n_components))
    print("\n| teacher | ratio 0.1 | 1 | 10 | 1000 | ratio_for_margin, 0.6 |")
    print("|---|---|---|---|---|---|")
    for name, sharpness in (("soft", 2), ("sharp", 8)):
        proba = 0.999 * softmax(sharpness * logits, axis=1) + 0.001 / n_components
        scale = prior_matched_scale(proba)
        cells = [seconds(forecast_margin, proba, scale, r) for r in (0.1, 1, 10, 1000)]
        cells.append(seconds(ratio_for_margin, proba, scale, 0.6))
        print(f"| {name} | " + " | ".join(f"{t:.1f} s" for t in cells) + " |")


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", nargs="*", default=list(PLANS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--epochs", type=int, nargs="+")
    parser.add_argument("--kl-weights", type=float, nargs="+", default=KL_WEIGHTS)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--no-timing", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data:
        n_seeds, epochs = PLANS[name]
        n_seeds, epochs = arguments.seeds or n_seeds, arguments.epochs or epochs
        weights = arguments.kl_weights, arguments.ratios
        print(f"\n{name}, {n_seeds} seeds\n")
        compare({"digits": digits, "patches": patches}[name], n_seeds, epochs, *weights)
    if not arguments.no_timing:
        timing()


if __name__ == "__main__":
    main()
