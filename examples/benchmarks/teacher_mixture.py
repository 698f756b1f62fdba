"""
A step of EM, compared with its arithmetic and with scikit-learn
================================================================

Times EM steps of full-covariance mixtures on principal components of natural-image
patches, in turn, in one process and on one thread: the package's steps in float32, and
scikit-learn's in float64 and float32. The ideal is the time of n K d^2 multiply-adds at
the rate of a large float32 matrix product on this machine. Prints medians of CPU time
as ratios to the ideal.

    python examples/benchmarks/teacher_mixture.py [--samples 50000] [--repeats 5]
"""

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from skvaecert._teacher.em import fit_mixture, maximize
from skvaecert.datasets import load_patches

SETTINGS = [(10, 64), (20, 32), (50, 32), (50, 64)]  # K, d
REG_COVAR, STEPS = 1e-2, 5


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def matrix_rate():
    """Return multiply-adds per second of a large float32 matrix product."""
    square = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    return 2048**3 / min(cpu_seconds(lambda: square @ square) for _ in range(5))


def variants(samples, n_components):
    """Return functions that do STEPS steps from the same start."""
    kmeans = KMeans(n_components, n_init=1, random_state=0).fit(samples)
    guess = np.eye(n_components, dtype=np.float32)[:, kmeans.labels_]
    first = maximize(samples, guess, "full", REG_COVAR)

    def by_package():
        fit_mixture(
            samples.astype(np.float32),
            guess,
            covariance_type="full",
            reg_covar=REG_COVAR,
            tol=-np.inf,
            max_iter=STEPS,
        )

    def by_scikit_learn(dtype):
        GaussianMixture(
            n_components,
            reg_covar=REG_COVAR,
            tol=0,
            max_iter=STEPS - 1,  # scikit-learn adds one more E-step
            weights_init=first.weights.astype(dtype),
            means_init=first.means.astype(dtype),
            precisions_init=first.precisions.astype(dtype),
        ).fit(samples.astype(dtype))

    return {
        "package": by_package,
        "scikit-learn float64": lambda: by_scikit_learn(np.float64),
        "scikit-learn float32": lambda: by_scikit_learn(np.float32),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    patches = load_patches(options.samples, size=16, random_state=0).data
    rate = matrix_rate()
    print(f"Matrix rate: {rate / 1e9:.0f} G multiply-adds per second, float32")
    scores = PCA(max(d for _, d in SETTINGS), random_state=0).fit_transform(patches)
    scores = scores.astype(np.float64)
    print("| K, d | ideal | package | scikit-learn float64 | scikit-learn float32 |")
    print("|---|---|---|---|---|")
    for n_components, n_features in SETTINGS:
        functions = variants(scores[:, :n_features], n_components)
        times = {name: [] for name in functions}
        for _ in range(options.repeats):
            for name, function in functions.items():
                times[name].append(cpu_seconds(function) / STEPS)
        ideal = options.samples * n_components * n_features**2 / rate
        ratios = [statistics.median(row) / ideal for row in times.values()]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {n_components}, {n_features} | {ideal * 1e3:.0f} ms | {cells} |")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
