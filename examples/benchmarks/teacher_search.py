"""
A search for a teacher, compared with the same grid in scikit-learn
===================================================================

Fits K {10, 20, 50} x components {16, 32} x covariance {full, diag, tied} x 3 restarts
on gray natural-image patches, first with one ``GMMTeacher`` and then with a
``Pipeline(PCA, GaussianMixture)`` for each restart of each configuration. The same
criterion chooses in both: the most information on held-out patches, among
configurations whose restarts agree. Prints seconds of CPU time, the chosen
configuration, and its held-out log-likelihood.

    python examples/benchmarks/teacher_search.py [--samples 50000] [--size 28]
"""

import argparse
import time
import warnings
from itertools import product

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from skvaecert import GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.metrics import teacher_information

N_COMPONENTS, PCA_COMPONENTS = [10, 20, 50], [16, 32]
COVARIANCE_TYPES = ["full", "diag", "tied"]
RESTARTS, FLOOR, MIN_AGREEMENT = 3, 0.01, 0.5
# scikit-learn's default, so that both fit the same model. The teacher's own default
# regularizes more, which gives less density and larger margins on few samples.
REG_COVAR = 1e-6


def by_package(X):
    return GMMTeacher(
        n_components=N_COMPONENTS,
        pca_components=PCA_COMPONENTS,
        covariance_type=COVARIANCE_TYPES,
        n_init=RESTARTS,
        floor=FLOOR,
        min_agreement=MIN_AGREEMENT,
        reg_covar=REG_COVAR,
        verbose=1,
        random_state=0,
    ).fit(X)


def plain(X, n_components, pca_components, covariance_type, seed):
    mixture = GaussianMixture(
        n_components, covariance_type=covariance_type, random_state=seed
    )
    return make_pipeline(PCA(pca_components, random_state=seed), mixture).fit(X)


def judged(fits, held_out):
    """Return held-out information and log-likelihood of the best restarts."""
    labels = [fit.predict(held_out) for fit in fits]
    information = [informed(fit.predict_proba(held_out)) for fit in fits]
    best = int(np.argmax(information))
    others = labels[:best] + labels[best + 1 :]
    agreement = np.mean([adjusted_mutual_info_score(labels[best], o) for o in others])
    return (
        information[best] if agreement >= MIN_AGREEMENT else 0.0,
        max(fit.score(held_out) for fit in fits),
    )


def informed(proba):
    return teacher_information((1 - FLOOR) * proba + FLOOR / proba.shape[1])


def by_hand(X, held_out):
    """Return the results of all configurations, and the CPU time of their fits."""
    results, seconds = {}, 0.0
    for point in product(N_COMPONENTS, PCA_COMPONENTS, COVARIANCE_TYPES):
        start = time.process_time()
        fits = [plain(X, *point, seed) for seed in range(RESTARTS)]
        took = time.process_time() - start
        seconds += took
        results[point] = judged(fits, held_out)
        print(point, f"{took:.0f} s, information {results[point][0]:.3f}", flush=True)
    return results, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=28)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    X, held_out = (
        load_patches(n, size=options.size, color=False, subset=subset, random_state=0)
        for n, subset in ((options.samples, "train"), (10_000, "test"))
    )
    X, held_out = X.data, held_out.data
    start = time.process_time()
    teacher = by_package(X)
    fast = time.process_time() - start
    chosen = (
        teacher.n_components_,
        teacher.mixture_.means_.shape[1],
        teacher.mixture_.covariance_type,
    )
    likelihood = teacher.mixture_.score(teacher.pca_.transform(held_out))
    print(f"GMMTeacher: {fast:.1f} s, chose {chosen}", flush=True)
    results, slow = by_hand(X, held_out)
    best = max(results, key=lambda point: results[point][0])
    ratio = slow / fast
    print(f"Pipelines: {slow:.1f} s, {ratio:.0f} times as long, would choose {best}")
    print(
        f"Held-out log-likelihood of {chosen}: {likelihood:.3f}, by a pipeline "
        f"{results[chosen][1]:.3f}; information {teacher.score(held_out):.3f}, by a "
        f"pipeline {results[chosen][0]:.3f}"
    )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
