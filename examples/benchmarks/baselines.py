"""
Mitigations from the literature, without and with alignment
===========================================================

Trains every objective of `skvaecert.baselines` with its defaults on the digits, once
without alignment and once with its default weight, and diagnoses test samples. Prints
the state of the code, what drawn codes carry (the bracket, from the lowest to the
highest end over the seeds) and the verdict on the mean. Also prints means over the
seeds: the margin, active units (dimensions whose mean has a variance of at least 0.01),
and KL and reconstruction loss of the last epoch of training, in nats.

    python examples/benchmarks/baselines.py [--seeds 3] [--kl-weight 1]
"""

import argparse
import math
from collections import Counter

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, baselines

OBJECTIVES = {
    "the ELBO itself": None,
    "BetaVAE": baselines.BetaVAE(),
    "LinearAnnealing": baselines.LinearAnnealing(),
    "CyclicalAnnealing": baselines.CyclicalAnnealing(),
    "Capacity": baselines.Capacity(),
    "FreeBits": baselines.FreeBits(),
    "FreeBits, 8 nats per batch": baselines.FreeBits(8.0, per="batch"),
    "DeltaVAE": baselines.DeltaVAE(),
    "AggressiveEncoder": baselines.AggressiveEncoder(),
    "InfoVAE": baselines.InfoVAE(),
    "BatchNormVAE": baselines.BatchNormVAE(),
    "MuForcing": baselines.MuForcing(),
    "SigmaVAE": baselines.SigmaVAE(),
}


def run(objective, alignment_weight, kl_weight, teacher, samples, seed):
    """Train, and return the diagnosis of test samples and the figures to print."""
    train, test = samples
    vae = CertifiedVAE(
        FrozenEstimator(teacher),
        objective=objective,
        alignment_weight=alignment_weight,
        kl_weight=kl_weight,
        device="cpu",
        random_state=seed,
    )
    certifier = CollapseCertifier(vae, random_state=seed).fit(train)
    diagnosis = certifier.diagnose(test)
    last = certifier.estimator_.history_[-1]
    numbers = (
        diagnosis.mean.margin,
        diagnosis.active_units,
        last["kl"],
        last["reconstruction"],
    )
    return diagnosis, numbers


def counted(answers):
    """Return the answer of all seeds, or how many seeds gave each answer."""
    counts = Counter(answers)
    return ", ".join(
        answer if len(counts) == 1 else f"{n} {answer}" for answer, n in counts.items()
    )


def bracket(low, high):
    """Write two bounds, rounded outward."""
    digits = 3 if high < 0.1 else 2
    low, high = (f(10**digits * x) for f, x in ((math.floor, low), (math.ceil, high)))
    return f"{low / 10**digits:.{digits}f} to {high / 10**digits:.{digits}f}"


def line(results):
    diagnoses, numbers = zip(*results, strict=True)
    low = min(diagnosis.information.low for diagnosis in diagnoses)
    high = max(diagnosis.information.high for diagnosis in diagnoses)
    margin, active, kl, loss = np.mean(numbers, axis=0)
    return " | ".join(
        [
            counted(diagnosis.state for diagnosis in diagnoses),
            bracket(low, high),
            counted(diagnosis.mean.verdict for diagnosis in diagnoses),
            f"{margin:.2f}",
            f"{active:.3g}",
            f"{kl:.1f}",
            f"{loss:.1f}",
        ]
    )


def main(n_seeds, kl_weight):
    digits = load_digits().data / 16
    splits = [train_test_split(digits, random_state=seed) for seed in range(n_seeds)]
    teachers = [
        GMMTeacher(n_components=10, random_state=seed).fit(train)
        for seed, (train, _) in enumerate(splits)
    ]
    print(
        "| objective | w | state | drawn codes | mean | margin | active | KL | rec. |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, objective in OBJECTIVES.items():
        for weight in (0, 10):
            results = [
                run(objective, weight, kl_weight, teachers[s], splits[s], s)
                for s in range(n_seeds)
            ]
            print(f"| {name} | {weight} | {line(results)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    arguments = parser.parse_args()
    main(arguments.seeds, arguments.kl_weight)
