"""
Which margin the guard reaches, and what it costs
=================================================

Trains with ``alignment_weight="auto"`` on digits and on color patches of photographs,
with five seeds, several KL weights and three targets. Prints the relative margin on the
training samples and on test samples: the minimum and the median over seeds. Then
compares the reconstruction loss on training samples with that of fixed weights,
interpolated to the same margin. With ``--validation-fraction``, the guard holds the
margin of held-out samples.

    python examples/benchmarks/guard.py [--seeds 5] [--epochs 60] [--data digits]
"""

import argparse
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.exceptions import UnreachedMarginWarning
from skvaecert.metrics import collapse_margin, teacher_information

KL_WEIGHTS = (1, 2, 4, 8, 32)
TARGETS = (0.3, 0.6, 0.9)
FIXED = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
COMPARED = (2, 8)


def digits(seed):
    return train_test_split(load_digits().data / 16, random_state=seed)


def patches(seed):
    sizes = {"train": 4000, "test": 2000}
    return [
        load_patches(n, size=8, subset=subset, random_state=seed).data
        for subset, n in sizes.items()
    ]


def relative_margin(vae, X):
    proba = vae.teacher_.predict_proba(X)
    margin = collapse_margin(proba, vae.witness_log_proba(X))
    return margin / teacher_information(proba)


def trained(teacher, X, seed, epochs, **params):
    """Return a fitted VAE and whether it warned that it missed its target."""
    vae = CertifiedVAE(
        FrozenEstimator(teacher),
        max_epochs=epochs,
        device="cpu",
        random_state=seed,
        **params,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreachedMarginWarning)
        vae.fit(X)
    return vae, bool(caught)


def reached_margins(data, seeds, epochs, fraction):
    """Print the margins on the samples that the guard uses, and on test samples."""
    guarded = "training samples" if fraction is None else "held-out samples"
    print(f"| kl_weight | target | {guarded} | test samples | weight | warned |")
    print("|---|---|---|---|---|---|")
    for kl_weight in KL_WEIGHTS:
        for target in TARGETS:
            reached, weights, warned = [], [], 0
            for seed, (teacher, train, test) in enumerate(data[:seeds]):
                vae, warning = trained(
                    teacher,
                    train,
                    seed,
                    epochs,
                    kl_weight=kl_weight,
                    alignment_weight="auto",
                    target_margin=target,
                    validation_fraction=fraction,
                )
                steered = relative_margin(vae, train)
                if fraction is not None:
                    last = vae.history_[-1]
                    steered = last["validation_margin"] / last["validation_information"]
                reached.append([steered, relative_margin(vae, test)])
                weights.append(vae.history_[-1]["alignment_weight"])
                warned += warning
            (a, b), (c, d) = np.min(reached, axis=0), np.median(reached, axis=0)
            print(
                f"| {kl_weight} | {target} | {a:.2f}, {c:.2f} | {b:.2f}, {d:.2f} | "
                f"{np.median(weights):.3g} | {warned} |",
                flush=True,
            )


def cost(data, seeds, epochs):
    """Print reconstruction losses at equal margin."""
    print("| kl_weight | target | margin | guard | fixed weight | difference (nats) |")
    print("|---|---|---|---|---|---|")
    for kl_weight in COMPARED:
        found = {target: [] for target in TARGETS}
        for seed, (teacher, train, _) in enumerate(data[:seeds]):
            path = np.array(
                [
                    point(teacher, train, seed, epochs, kl_weight, alignment_weight=w)
                    for w in FIXED
                ]
            )
            path = path[path[:, 0].argsort()]
            for target in TARGETS:
                margin, loss = point(
                    teacher,
                    train,
                    seed,
                    epochs,
                    kl_weight,
                    alignment_weight="auto",
                    target_margin=target,
                )
                if path[0, 0] <= margin <= path[-1, 0]:
                    found[target].append((margin, loss, np.interp(margin, *path.T)))
        for target, points in found.items():
            if not points:
                print(f"| {kl_weight} | {target} | no fixed weight reaches it | | | |")
                continue
            margin, guard, fixed = np.median(points, axis=0)
            difference = np.median([b - a for _, b, a in points])
            print(
                f"| {kl_weight} | {target} | {margin:.2f} | {guard:.2f} | "
                f"{fixed:.2f} | {difference:+.2f} ({len(points)} seeds) |",
                flush=True,
            )


def point(teacher, X, seed, epochs, kl_weight, **params):
    vae, _ = trained(teacher, X, seed, epochs, kl_weight=kl_weight, **params)
    return relative_margin(vae, X), vae.history_[-1]["reconstruction"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--validation-fraction", type=float)
    parser.add_argument("--data", nargs="+", default=["digits", "patches"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data:
        data = []
        for seed in range(arguments.seeds):
            train, test = {"digits": digits, "patches": patches}[name](seed)
            data.append((GMMTeacher(random_state=seed).fit(train), train, test))
        print(f"\n{name}: minimum and median over {arguments.seeds} seeds\n")
        reached_margins(
            data, arguments.seeds, arguments.epochs, arguments.validation_fraction
        )
        if arguments.validation_fraction is not None:
            continue
        print("\nreconstruction loss on training samples at the margin of the guard\n")
        cost(data, arguments.seeds, arguments.epochs)


if __name__ == "__main__":
    main()
