"""
What a margin and a certificate cost
====================================

Measures, on arrays of posteriors and log-probabilities of 50,000 samples in float64, in
turn, in one process and on one thread:

- by hand: ``scipy.special.softmax`` and ``rel_entr``, for the alignment loss and for
  the teacher information;
- :func:`skvaecert.metrics.collapse_margin`;
- :func:`skvaecert.certify`, from latent means, with spread, precision and tolerance.

Prints medians of CPU time, ratios to the first, and the memory that each allocates
besides its arguments. With ``--samples``, certifies that many samples with 100
components and 99 latent dimensions from files on disk, and prints the peak memory.

    python examples/benchmarks/margin.py [--repeats 5] [--samples 10000000]
"""

import argparse
import resource
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, rel_entr, softmax

from skvaecert import certify, certify_batches
from skvaecert.metrics import collapse_margin
from skvaecert.simplex import simplex_vertices

N_SAMPLES = 50_000
SCALE = 2.0
PIECE = 100_000


def by_hand(proba, logits):
    loss = rel_entr(proba, softmax(logits, axis=1)).sum(axis=1).mean()
    return rel_entr(proba, proba.mean(axis=0)).sum(axis=1).mean() - loss


def variants(n_components):
    rng = np.random.default_rng(0)
    proba = softmax(rng.normal(size=(N_SAMPLES, n_components)), axis=1)
    mean = rng.normal(size=(N_SAMPLES, n_components - 1)).astype(np.float32)
    vertices = simplex_vertices(n_components, n_components - 1)
    log_q = log_softmax(SCALE * mean @ vertices.T, axis=1)
    return {
        "by hand": lambda: by_hand(proba, log_q),
        "collapse_margin": lambda: collapse_margin(proba, log_q),
        "certify": lambda: certify(proba, mean, vertices, SCALE),
    }


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def peak(function):
    tracemalloc.start()
    function()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 2**20


def compare(n_components, repeats):
    runs = variants(n_components)
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(cpu_seconds(run))
    base = np.array(times["by hand"])
    for name, run in runs.items():
        milliseconds = 1e3 * statistics.median(times[name])
        ratio = statistics.median(np.array(times[name]) / base)
        cells = f"{milliseconds:.0f} ms | {ratio:.2f} | {peak(run):.1f} MiB"
        print(f"| {n_components} | {name} | {cells} |", flush=True)


def write(path, n_samples):
    """Write posteriors and latent means, a piece at a time."""
    rng = np.random.default_rng(0)
    with open(path / "proba", "wb") as proba, open(path / "mean", "wb") as mean:
        for start in range(0, n_samples, PIECE):
            shape = min(PIECE, n_samples - start), 100
            logits = rng.normal(size=shape).astype(np.float32)
            proba.write(softmax(logits, axis=1).tobytes())
            mean.write(np.ascontiguousarray(logits[:, :99]).tobytes())


def batches(path):
    with open(path / "proba", "rb") as proba, open(path / "mean", "rb") as mean:
        while len(samples := np.fromfile(proba, np.float32, PIECE * 100)):
            codes = np.fromfile(mean, np.float32, PIECE * 99)
            yield samples.reshape(-1, 100), codes.reshape(-1, 99)


def from_disk(n_samples):
    vertices = simplex_vertices(100, 99)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write(path, n_samples)
        start = time.perf_counter()
        certificate = certify_batches(batches(path), vertices, SCALE)
        seconds = time.perf_counter() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{certificate.n_samples} samples: {seconds:.0f} s, at most {most:.2f} GiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=0)
    given = parser.parse_args()
    if given.samples:
        from_disk(given.samples)
        return
    print("| K | | CPU time | ratio | memory |\n|---|---|---|---|---|")
    for n_components in (10, 100, 1000):
        compare(n_components, given.repeats)


if __name__ == "__main__":
    main()
