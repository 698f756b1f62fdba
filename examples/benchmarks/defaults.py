"""
Defaults, on every table that scikit-learn ships and on patches of photographs
==============================================================================

Fits ``CollapseCertifier()`` on three quarters of the samples of each table and
certifies it on the others, with five seeds: as shipped, standardized, and with units
that differ by 10^6. Test patches come from other strips of the images. Prints a table
in Markdown. Options replace the defaults.

    python examples/benchmarks/defaults.py [--seeds 5] [--only iris wine]
    python examples/benchmarks/defaults.py --batch-size 128 --teacher single
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches

TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "diabetes, scaled=False": partial(datasets.load_diabetes, scaled=False),
    "digits": datasets.load_digits,
    "linnerud": datasets.load_linnerud,
}
PATCHES = {
    "patches 8 x 8, gray": {"size": 8, "color": False},
    "patches 16 x 16, color": {"size": 16, "color": True},
}
PATCH_SAMPLES = 6000, 2000
COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
UNITS = ("standardized", "as shipped", "10^6")
NUMBERS = {
    "alignment_weight": float,
    "batch_size": int,
    "max_epochs": int,
    "learning_rate": float,
    "latent_dim": int,
}


def split(name, seed):
    if name in PATCHES:
        return [
            load_patches(n, subset=subset, random_state=seed, **PATCHES[name]).data
            for n, subset in zip(PATCH_SAMPLES, ("train", "test"), strict=True)
        ]
    return train_test_split(TABLES[name]().data, test_size=0.25, random_state=seed)


def scaler(units, n_features, seed):
    if units == "standardized":
        return StandardScaler()
    if units == "as shipped":
        return FunctionTransformer()
    powers = np.random.default_rng(seed).permutation(np.linspace(0, 6, n_features))
    return FunctionTransformer(lambda X: X * 10**powers)


def teacher(options):
    """Return the teacher to pass: None for the default."""
    given = {name: getattr(options, name) for name in ("n_components", "floor")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.teacher == "default" and not given:
        return None
    types = {"single": "full", "search": COVARIANCE_TYPES}
    if options.teacher in types:
        given["covariance_type"] = types[options.teacher]
    return GMMTeacher(**given)


def certifier(options, seed):
    given = {name: getattr(options, name) for name in NUMBERS}
    given = {name: value for name, value in given.items() if value is not None}
    if options.hidden_sizes:
        given["hidden_sizes"] = tuple(options.hidden_sizes)
    if not given and teacher(options) is None:
        return CollapseCertifier(random_state=seed)
    vae = CertifiedVAE(teacher(options), device="cpu", **given)
    return CollapseCertifier(vae, random_state=seed)


def run(name, units, seed, options):
    """Return the certificate on held-out samples, CPU seconds of fit, and warnings."""
    train, test = split(name, seed)
    pipeline = make_pipeline(
        scaler(units, train.shape[1], seed), certifier(options, seed)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.process_time()
        pipeline.fit(train)
        seconds = time.process_time() - start
        certificate = pipeline[-1].certify(pipeline[:-1].transform(test))
    return certificate, seconds, sorted({w.category.__name__ for w in caught})


def line(name, units, options):
    """Return one row of the table."""
    runs = [run(name, units, seed, options) for seed in range(options.seeds)]
    certificates, seconds, warned = zip(*runs, strict=True)
    margins = [c.margin for c in certificates]
    information = [c.teacher_information for c in certificates]
    relative = np.divide(margins, information)
    n_certified = sum(c.verdict == "certified" for c in certificates)
    warned = ", ".join(sorted(set().union(*warned))) or "none"
    n_samples, n_features = split(name, 0)[0].shape
    return (
        f"| {name} | {units} | {n_samples} x {n_features} | "
        f"{n_certified}/{options.seeds} | {min(margins):.2f}, "
        f"{np.median(margins):.2f} | {np.median(information):.2f} | "
        f"{np.median(relative):.2f} | {np.median(seconds):.1f} | {warned} |"
    )


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[*TABLES, *PATCHES])
    parser.add_argument("--units", nargs="+", default=UNITS, choices=UNITS)
    parser.add_argument(
        "--teacher", choices=("default", "single", "search"), default="default"
    )
    parser.add_argument("--n-components", type=int, nargs="+")
    parser.add_argument("--floor", type=float)
    parser.add_argument("--hidden-sizes", type=int, nargs="*")
    for name, kind in NUMBERS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind)
    return parser.parse_args()


def main():
    options = parsed()
    torch.set_num_threads(1)
    print(
        "| table | units | samples x features | certified | held-out margin: "
        "minimum, median | teacher information | relative margin | CPU seconds "
        "| warnings |"
    )
    print("|" + "---|" * 9)
    for name in options.only:
        for units in options.units if name in TABLES else UNITS[:2]:
            print(line(name, units, options), flush=True)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
