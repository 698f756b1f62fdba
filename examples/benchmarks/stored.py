"""
What a certificate of stored rows costs
=======================================

Writes rows of 784 float32 to a file of NumPy's and to one of zarr, and certifies a
CertifiedVAE on them: read whole, mapped, from zarr, and from dask, which reads zarr.
Each goes through a process of its own. Prints seconds, and the most memory taken
beyond what was there before: private memory, since the pages of a mapped file are the
kernel's to drop.

    OMP_NUM_THREADS=1 python examples/benchmarks/stored.py [--rows 100000 200000]
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
from teacher_rows import Watch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

N_FEATURES, CHUNK = 784, 5000


def rows_of(chunk):
    """Rows of five groups."""
    generator = np.random.default_rng(chunk)
    centers = np.random.default_rng(0).normal(size=(5, N_FEATURES))
    rows = generator.standard_normal((CHUNK, N_FEATURES), dtype=np.float32)
    return rows + centers[generator.integers(5, size=CHUNK)].astype(np.float32)


def write(folder, n_rows):
    shape = n_rows, N_FEATURES
    flat = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, shape)
    stored = zarr.create_array(
        folder / "rows.zarr", shape=shape, chunks=(CHUNK, N_FEATURES), dtype="float32"
    )
    for start in range(0, n_rows, CHUNK):
        rows = rows_of(1 + start // CHUNK)
        flat[start : start + CHUNK] = stored[start : start + CHUNK] = rows
    flat.flush()


OPEN = {
    "whole": lambda folder: np.load(folder / "rows.npy"),
    "mapped": lambda folder: np.load(folder / "rows.npy", mmap_mode="r"),
    "zarr": lambda folder: zarr.open_array(folder / "rows.zarr", mode="r"),
    "dask": lambda folder: dask.array.from_zarr(folder / "rows.zarr"),
}


def measure(form, folder, results):
    torch.set_num_threads(1)
    vae = CertifiedVAE(
        GMMTeacher(5), latent_dim=8, max_epochs=3, device="cpu", random_state=0
    )
    certifier = CollapseCertifier(vae).fit(rows_of(0))
    with dask.config.set(scheduler="synchronous"):
        certifier.certify(dask.array.from_array(rows_of(0)[:100]))  # imports are over
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[2])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 200_000])
    for n_rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n_rows)
            for form in OPEN:
                seconds, mib, margin = in_a_process(form, Path(folder))
                print(
                    f"{n_rows:>9,} rows, {form:6}: {seconds:5.1f} s, {mib:6.0f} MiB, "
                    f"margin {margin:.12f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
