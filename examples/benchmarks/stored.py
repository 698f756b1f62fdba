"""
What a certificate of stored samples costs
==========================================

Writes samples of 784 float32 values to a NumPy file and to a zarr array, and certifies
a CertifiedVAE on them: read whole, mapped, from zarr, and from dask, which reads zarr.
Each runs in a separate process. Prints seconds, and the peak of additional memory. Only
private memory counts, since the kernel may drop the pages of a mapped file.

    OMP_NUM_THREADS=1 python examples/benchmarks/stored.py [--samples 100000 200000]
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import dask
import dask.array
import numpy as np
import torch
import zarr
from teacher_stored import Watch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

N_FEATURES, CHUNK = 784, 5000


def samples_of(chunk):
    """Return a chunk of samples from five clusters."""
    generator = np.random.default_rng(chunk)
    centers = np.random.default_rng(0).normal(size=(5, N_FEATURES))
    samples = generator.standard_normal((CHUNK, N_FEATURES), dtype=np.float32)
    return samples + centers[generator.integers(5, size=CHUNK)].astype(np.float32)


def write(folder, n_samples):
    shape = n_samples, N_FEATURES
    flat = np.lib.format.open_memmap(folder / "samples.npy", "w+", np.float32, shape)
    stored = zarr.create_array(
        folder / "samples.zarr",
        shape=shape,
        chunks=(CHUNK, N_FEATURES),
        dtype="float32",
    )
    for start in range(0, n_samples, CHUNK):
        samples = samples_of(1 + start // CHUNK)
        flat[start : start + CHUNK] = stored[start : start + CHUNK] = samples
    flat.flush()


OPEN = {
    "whole": lambda folder: np.load(folder / "samples.npy"),
    "mapped": lambda folder: np.load(folder / "samples.npy", mmap_mode="r"),
    "zarr": lambda folder: zarr.open_array(folder / "samples.zarr", mode="r"),
    "dask": lambda folder: dask.array.from_zarr(folder / "samples.zarr"),
}


def measure(form, folder, results):
    torch.set_num_threads(1)
    vae = CertifiedVAE(
        GMMTeacher(5), latent_dim=8, max_epochs=3, device="cpu", random_state=0
    )
    certifier = CollapseCertifier(vae).fit(samples_of(0))
    with dask.config.set(scheduler="synchronous"):
        certifier.certify(
            dask.array.from_array(samples_of(0)[:100])
        )  # so that no import is timed
        watch = Watch()
        watch.start()
        start = time.perf_counter()
        certificate = certifier.certify(OPEN[form](folder))
        seconds = time.perf_counter() - start
    results.put((seconds, (watch.most - watch.before) / 2**20, certificate.margin))


def in_a_process(*args):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(*args, results))
    process.start()
    answer = results.get()
    process.join()
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 200_000])
    for n_samples in parser.parse_args().samples:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n_samples)
            for form in OPEN:
                seconds, mib, margin = in_a_process(form, Path(folder))
                print(
                    f"{n_samples:>9,} samples, {form:6}: {seconds:5.1f} s, "
                    f"{mib:6.0f} MiB, margin {margin:.12f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
