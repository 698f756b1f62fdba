"""
What makes a good teacher, and how good are those that a search finds
=====================================================================

Does three things on digits and on color patches of 8 x 8:

- criterion: fits 64 teachers and trains a VAE with each. Compares the margin on test
  samples with what a search can compute before: information and log-likelihood on
  held-out samples, and the agreement of restarts. Prints rank correlations over
  teachers, and the margin that is lost by choosing the teacher with the most of each;
- sharpness: trains with the same K = 10 and 17 teachers at smaller and smaller floors,
  from soft to one-hot, and prints the margin on test samples;
- found: with five seeds, searches for a teacher, trains with default settings, and
  certifies on test samples.

    python examples/benchmarks/teacher_quality.py [--only found]
"""

import argparse
import warnings

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.simplex import prior_matched_scale

GRID = {
    "n_components": [3, 5, 10, 17],
    "pca_components": [4, 8, 16, 32],
    "covariance_type": ["full", "diag", "tied", "spherical"],
    "n_init": 3,
}
FLOORS = [0.1, 1e-2, 1e-3, 1e-5, 1e-8, 1e-14, 1e-28]


def digits(seed):
    return train_test_split(load_digits().data / 16, random_state=seed)


def patches(seed):
    return [
        load_patches(n, size=8, subset=subset, random_state=seed).data
        for n, subset in ((6000, "train"), (2000, "test"))
    ]


def certified(teacher, samples, seed):
    """Train with default settings and certify on test samples."""
    train, test = samples
    vae = CertifiedVAE(teacher, random_state=seed)
    certifier = CollapseCertifier(vae).fit(train)
    return certifier, certifier.certify(test)


def criterion(load):
    samples = load(0)
    search = GMMTeacher(**GRID, random_state=0).fit(samples[0])
    results = search.search_results_
    margins = []
    for index in range(len(results["rank"])):
        point = {name: results[name][index].item() for name in list(GRID)[:3]}
        teacher = GMMTeacher(**point, n_init=3)
        margins.append(certified(teacher, samples, seed=0)[1].margin)
    knowns = {name: results[name] for name in ("information", "log_likelihood")}
    knowns["agreement"] = results["agreement"]
    knowns["information x agreement"] = results["information"] * results["agreement"]
    print("| chosen by most | rank correlation with the margin | margin given up |")
    print("|---|---|---|")
    for name, known in knowns.items():
        correlation = spearmanr(known, margins).statistic
        lost = max(margins) - margins[known.argmax()]
        print(f"| {name} | {correlation:.2f} | {lost:.2f} of {max(margins):.2f} |")


def sharpness(load):
    samples = load(0)
    print("| floor | " + " | ".join(f"{floor:g}" for floor in FLOORS) + " |")
    print("|---|" + "---|" * len(FLOORS))
    for n_components in (10, 17):
        cells = []
        for floor in FLOORS:
            teacher = GMMTeacher(n_components, temperature=1.0, floor=floor)
            certifier, certificate = certified(teacher, samples, seed=0)
            scale = prior_matched_scale(certifier.teacher_.transform(samples[0]))
            cells.append(f"{certificate.margin:.2f} ({scale:.1f})")
        print(f"| K = {n_components}: margin (scale) | " + " | ".join(cells) + " |")


def found(load):
    print("| seed | found | information | margin | verdict |\n|---|---|---|---|---|")
    for seed in range(5):
        certifier, certificate = certified(GMMTeacher(**GRID), load(seed), seed)
        teacher = certifier.teacher_
        name = f"K = {teacher.n_components_}, {teacher.pca_.n_components_} principal "
        name += f"components, {teacher.mixture_.covariance_type}"
        information = f"{certificate.teacher_information:.2f}"
        margin = f"{certificate.margin:.2f}"
        print(
            f"| {seed} | {name} | {information} | {margin} | {certificate.verdict} |",
            flush=True,
        )


def main():
    parts = {"criterion": criterion, "sharpness": sharpness, "found": found}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", choices=parts)
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in [only] if only else parts:
        for load in (digits, patches):
            print(f"\n{name}, {load.__name__}\n", flush=True)
            parts[name](load)


if __name__ == "__main__":
    main()
