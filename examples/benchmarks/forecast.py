"""
How far the forecast is from the trained margin
===============================================

Trains on digits and on color patches of photographs with several ratios of
alignment_weight to kl_weight, for few epochs and for more. Compares the margin on the
training samples with the forecast, both as shares of the teacher information: medians
and extremes over seeds, and in how many fits the trained margin was above the forecast.
Then times the forecast of the margin on 50,000 samples with 100 components, and the
forecast of collapse on 50,000 samples of 3,072 features.

    python examples/benchmarks/forecast.py [--data digits patches] [--no-timing]

With --sweep, trains without alignment instead, at multiples of the collapse threshold
beta*. Compares the information of drawn codes on held-out samples with that of a linear
VAE. For the Bernoulli likelihood, only the threshold is known. Each model is trained
twice: from scratch, and from below, which continues from the model of the next smaller
kl_weight.

    python examples/benchmarks/forecast.py --sweep [--data digits patches]
"""

import argparse
import time
import tracemalloc
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
from skvaecert.forecast import (
    collapse_threshold,
    forecast_margin,
    linear_information,
    ratio_for_margin,
)
from skvaecert.information import code_information
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.simplex import prior_matched_scale

RATIOS = (0.2, 1, 10)
KL_WEIGHTS = (1, 4, 16)
# Number of seeds, and numbers of epochs for each seed: short and longer training.
PLANS = {"digits": (5, (10, 60)), "patches": (3, (5, 40))}
MULTIPLES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5)
SWEEPS = {"digits": (3, (200,)), "patches": (3, (100,))}


def digits(seed):
    return train_test_split(load_digits().data / 16, random_state=seed)


def patches(seed):
    seeds = seed, 100 + seed
    return [
        load_patches(n_samples, size=8, random_state=s).data
        for n_samples, s in zip((4000, 2000), seeds, strict=True)
    ]


def compare(load, n_seeds, all_epochs, kl_weights, ratios):
    print("| kl_weight | ratio | epochs | forecast | trained | difference | above |")
    print("|---|---|---|---|---|---|---|")
    data = []
    for seed in range(n_seeds):
        X, _ = load(seed)
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


def sweep(load, n_seeds, epochs, multiples):
    for likelihood in ("gaussian", "bernoulli"):
        print(f"\n{likelihood}, {epochs} epochs\n")
        print("| of beta* | kl_weight | forecast | from scratch | from below |")
        print("|---|---|---|---|---|")
        climbs = [
            climb(*load(seed), seed, likelihood, epochs, multiples)
            for seed in range(n_seeds)
        ]
        for multiple, *steps in zip(multiples, *climbs, strict=True):
            weights, kept, scratch, below = zip(*steps, strict=True)
            forecast = f"{np.median(kept):.2f}"
            if likelihood == "bernoulli":
                forecast = "above 0" if multiple < 1 else "0"
            print(
                f"| {multiple} | {np.median(weights):.3g} | {forecast} | "
                f"{cell(scratch)} | {cell(below)} |",
                flush=True,
            )


def climb(X, held_out, seed, likelihood, epochs, multiples):
    """Yield kl_weight, linear forecast and brackets from scratch and from below."""
    threshold = collapse_threshold(X, likelihood=likelihood)
    # Without alignment the teacher does not matter: any posteriors will do.
    proba = np.full((len(X), 2), 0.5)
    below = None
    for multiple in multiples:
        kl_weight = multiple * threshold
        scratch = CertifiedVAE(
            alignment_weight=0,
            kl_weight=kl_weight,
            likelihood=likelihood,
            witness_scale=1.0,
            max_epochs=epochs,
            warm_start=True,
            device="cpu",
            random_state=seed,
        ).fit(X, teacher_proba=proba)
        if below is None:
            below = scratch
        else:
            below.set_params(kl_weight=kl_weight).fit(X, teacher_proba=proba)
        brackets = [
            code_information(*vae.encode(held_out), random_state=0)
            for vae in (scratch, below)
        ]
        kept = linear_information(X, kl_weight, scratch.latent_dim).information
        yield kl_weight, kept, *brackets


def cell(brackets):
    """Write the median estimate, and the range that contains all brackets."""
    middle = np.median([bracket.estimate for bracket in brackets])
    low = min(bracket.low for bracket in brackets)
    high = max(bracket.high for bracket in brackets)
    return f"{middle:.2f} ({low:.3f} to {high:.3f})"


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


def timing_of_collapse(n_samples=50_000, n_features=3072):
    X = np.random.default_rng(0).random((n_samples, n_features), dtype=np.float32)
    tracemalloc.start()
    cost = seconds(linear_information, X, 4.0, 16)
    memory = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"\nlinear_information: {cost:.1f} s, {memory:.0f} MiB besides the samples")


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
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--multiples", type=float, nargs="+", default=MULTIPLES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data:
        load = {"digits": digits, "patches": patches}[name]
        n_seeds, all_epochs = (SWEEPS if arguments.sweep else PLANS)[name]
        n_seeds, all_epochs = arguments.seeds or n_seeds, arguments.epochs or all_epochs
        print(f"\n{name}, {n_seeds} seeds\n")
        if arguments.sweep:
            for epochs in all_epochs:
                sweep(load, n_seeds, epochs, arguments.multiples)
        else:
            weights = arguments.kl_weights, arguments.ratios
            compare(load, n_seeds, all_epochs, *weights)
    if not (arguments.no_timing or arguments.sweep):
        timing()
        timing_of_collapse()


if __name__ == "__main__":
    main()
