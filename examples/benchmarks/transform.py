"""
What transform and certify cost, beside a bare forward pass
===========================================================

Encodes 50,000 float32 rows, in turn, in one process and on one thread:

- bare: the encoder under inference mode, in chunks of 1,024 rows that are standardised
  already, and in chunks of 256;
- ``transform`` of a :class:`skvaecert.CertifiedVAE`, which checks and standardises rows
  and takes chunks of 256, so that a mean does not depend on the other rows;
- ``certify`` of a :class:`skvaecert.CollapseCertifier` with posteriors given, for
  several numbers of components: transform, 255 rows once more, margin and tolerance.

Prints the median CPU time of the first, and the medians of the ratios to it.

    python examples/benchmarks/transform.py [--repeats 7]
"""

import argparse
import statistics
import time

import numpy as np
import torch

from skvaecert import CertifiedVAE, CollapseCertifier

N_SAMPLES = 50_000
# name: features, hidden sizes, latent dimensions
SETTINGS = {
    "64-64-16": (64, (64,), 16),
    "784-512-256-32": (784, (512, 256), 32),
    "3072-1024-512-128": (3072, (1024, 512), 128),
}
COMPONENTS = (10, 100)


def posteriors(n_components, generator):
    logits = generator.normal(size=(N_SAMPLES, n_components))
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


def bare(encode, rows, size):
    with torch.inference_mode():
        return torch.cat([encode(chunk)[0] for chunk in rows.split(size)]).numpy()


def variants(n_features, hidden_sizes, latent_dim):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(N_SAMPLES, n_features)).astype(np.float32)
    rows, runs = torch.from_numpy(X), {}
    for n_components in COMPONENTS:
        if n_components > latent_dim + 1:
            continue
        proba = posteriors(n_components, generator)
        certifier = fitted(X, proba, hidden_sizes, latent_dim)
        runs[f"certify, K = {n_components}"] = lambda c=certifier, p=proba: c.certify(
            X, teacher_proba=p
        )
    vae = certifier.estimator_
    encode = vae.net_.module_.eval().encode
    return {
        "bare": lambda: bare(encode, rows, 1024),
        "bare, chunks of 256": lambda: bare(encode, rows, 256),
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
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for name, sizes in SETTINGS.items():
        runs = variants(*sizes)
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
