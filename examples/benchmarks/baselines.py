"""
Mitigations from the literature, without and with alignment
===========================================================

Trains every objective of `skvaecert.baselines` with its defaults on the digits, once
without alignment and once with its default weight, and certifies on test rows. Prints
means over the seeds: verdicts, margin, active units (dimensions whose mean has a
variance of at least 0.01), KL and reconstruction loss on training rows, in nats.

    python examples/benchmarks/baselines.py [--seeds 3] [--kl-weight 1]
"""

import argparse
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


def run(objective, alignment_weight, kl_weight, teacher, rows, seed):
    """Train, certify on test rows, and return verdict and numbers."""
    train, test = rows
    vae = CertifiedVAE(
        FrozenEstimator(teacher),
        objective=objective,
        alignment_weight=alignment_weight,
        kl_weight=kl_weight,
        device="cpu",
        random_state=seed,
    )
    certifier = CollapseCertifier(vae).fit(train)
    certificate = certifier.certify(test)
    active = (certifier.transform(test).var(axis=0) >= 0.01).sum()
    last = certifier.estimator_.history_[-1]
    numbers = certificate.margin, active, last["kl"], last["reconstruction"]
    return certificate.verdict, numbers


def main(n_seeds, kl_weight):
    digits = load_digits().data / 16
    rows = [train_test_split(digits, random_state=seed) for seed in range(n_seeds)]
    teachers = [
        GMMTeacher(n_components=10, random_state=seed).fit(train)
        for seed, (train, _) in enumerate(rows)
    ]
    print("| objective | alignment_weight | verdicts | margin | active | KL | rec. |")
    print("|---|---|---|---|---|---|---|")
    for name, objective in OBJECTIVES.items():
        for weight in (0.0, 10.0):
            results = [
                run(objective, weight, kl_weight, teachers[s], rows[s], s)
                for s in range(n_seeds)
            ]
            verdicts, numbers = zip(*results, strict=True)
            count = ", ".join(f"{n} {v}" for v, n in Counter(verdicts).items())
            margin, active, kl, loss = np.mean(numbers, axis=0)
            print(
                f"| {name} | {weight:g} | {count} | {margin:.2f} | {active:.1f} | "
                f"{kl:.1f} | {loss:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    arguments = parser.parse_args()
    main(arguments.seeds, arguments.kl_weight)
