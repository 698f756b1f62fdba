"""
What transform and certify cost, compared with a bare forward pass
==================================================================

Encodes 50,000 float32 samples, in turn, in one process and on one thread:

- bare: the encoder in inference mode, in chunks of 1,024 samples that are already
  standardized, and in chunks of 256;
- ``transform`` of a :class:`skvaecert.CertifiedVAE`, which checks and standardizes
  samples and uses chunks of one size, so that a mean does not depend on other samples;
- ``score`` and ``certify`` of a :class:`skvaecert.CollapseCertifier`, with the
  teacher's posteriors passed, for several numbers of components. ``certify`` also
  encodes standard deviations, encodes some samples once more, and draws codes to bound
  what they carry.

Prints the median CPU time of the bare pass, and the medians of the ratios to it.

    python examples/benchmarks/transform.py [--repeats 7] [--samples 50000]
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch

from skvaecert import CertifiedVAE, CollapseCertifier

# name: features, hidden sizes, latent dimensions
SETTINGS = {
    "64-64-16": (64, (64,), 16),
    "784-512-256-32": (784, (512, 256), 32),
    "3072-1024-512-128": (3072, (1024, 512), 128),
}
COMPONENTS = (10, 100)


def posteriors(n_samples, n_components, generator):
    logits = generator.normal(size=(n_samples, n_components))
    proba = np.exp(logits)
    return proba / proba.sum(axis=1, keepdims=True)


def fitted(X, proba, hidden_sizes, latent_dim):
    vae = CertifiedVAE(
        hidden_sizes=hidden_sizes,
        latent_dim=latent_dim,
        max_epochs=1,
        device="cpu",
        random_state=0,
    )
    return CollapseCertifier(vae).fit(X[:500], teacher_proba=proba[:500])


def bare(encode, samples, size):
    with torch.inference_mode():
        return torch.cat([encode(chunk)[0] for chunk in samples.split(size)]).numpy()


def variants(n_samples, n_features, hidden_sizes, latent_dim):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n_samples, n_features)).astype(np.float32)
    samples, runs = torch.from_numpy(X), {}
    for n_components in COMPONENTS:
        if n_components > latent_dim + 1:
            continue
        proba = posteriors(n_samples, n_components, generator)
        certifier = fitted(X, proba, hidden_sizes, latent_dim)
        for method in (certifier.score, certifier.certify):
            name = f"{method.__name__}, K = {n_components}"
            runs[name] = partial(method, X, teacher_proba=proba)
    vae = certifier.estimator_
    encode = vae.net_.module_.eval().encode
    return {
        "bare": lambda: bare(encode, samples, 1024),
        "bare, chunks of 256": lambda: bare(encode, samples, 256),
        "transform": lambda: vae.transform(X),
        **runs,
    }


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--samples", type=int, default=50_000)
    given = parser.parse_args()
    repeats = given.repeats
    torch.set_num_threads(1)
    for name, sizes in SETTINGS.items():
        runs = variants(given.samples, *sizes)
        times = {key: [] for key in runs}
        for _ in range(repeats):
            for key, run in runs.items():
                times[key].append(cpu_seconds(run))
        base = np.array(times["bare"])
        print(f"{name}: bare {statistics.median(base) * 1e3:.0f} ms", end="")
        for key in list(runs)[1:]:
            ratio = statistics.median(np.array(times[key]) / base)
            print(f", {key} {ratio:.2f}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
