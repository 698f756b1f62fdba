"""
What it costs to fit a teacher on samples that are read from disk
=================================================================

Writes gray patches of 28 x 28 in float32, or color patches of 32 x 32 in uint8, to a
file and maps it. Fits a ``GMMTeacher`` to more and more of them, each time in a
separate process. The mixture is fitted on 20,000 of them. Prints the CPU time of the
fit, the CPU time of one pass over the data (read, check, project: a matrix product with
16 columns), and the peak of memory in addition to the imports. Only private memory
counts, since the kernel may drop the pages of the file.

    python examples/benchmarks/teacher_stored.py [--samples N] [--color] [--search]
"""

import argparse
import multiprocessing
import re
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from skvaecert import GMMTeacher
from skvaecert.datasets import load_patches

CHUNK = 20_000
PRIVATE = re.compile(r"RssAnon:\s+(\d+) kB")


def private_bytes():
    return 1024 * int(PRIVATE.search(Path("/proc/self/status").read_text())[1])


class Watch(threading.Thread):
    """Records the peak of private memory."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.most = private_bytes()

    def run(self):
        while True:
            self.most = max(self.most, private_bytes())
            time.sleep(0.005)


def write(path, n_samples, color):
    size, dtype = (32, np.uint8) if color else (28, np.float32)
    shape = n_samples, size * size * (3 if color else 1)
    file = np.lib.format.open_memmap(path, "w+", dtype, shape)
    for start in range(0, n_samples, CHUNK):
        count = min(CHUNK, n_samples - start)
        patches = load_patches(count, size=size, color=color, random_state=start).data
        file[start : start + count] = 255 * patches if color else patches
    file.flush()


def one_pass(samples):
    directions = np.random.default_rng(0).normal(size=(samples.shape[1], 16))
    for start in range(0, len(samples), 10_000):
        chunk = samples[start : start + 10_000]
        assert np.isfinite(chunk).all()
        chunk.astype(np.float64) @ directions


def measure(path, n_samples, search, results):
    warnings.simplefilter("ignore")
    samples = np.load(path, mmap_mode="r")[:n_samples]
    one_pass(samples)  # brings the file into the page cache
    with threadpool_limits(1):
        start = time.process_time()
        one_pass(samples)
        bare = time.process_time() - start
        watch = Watch()
        watch.start()
        start = time.process_time()
        n_components = [10, 20, 50] if search else 10
        GMMTeacher(n_components, subsample=20_000, random_state=0).fit(samples)
        results.put((time.process_time() - start, bare, watch.most - watch.before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--color", action="store_true")
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| samples | fit | one pass | memory |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npy"
        write(path, options.samples, options.color)
        for n_samples in [options.samples // 2**k for k in (4, 3, 2, 1, 0)]:
            results = context.Queue()
            arguments = (path, n_samples, options.search, results)
            process = context.Process(target=measure, args=arguments)
            process.start()
            seconds, bare, memory = results.get()
            process.join()
            print(
                f"| {n_samples:,} | {seconds:.1f} s | {bare:.1f} s | "
                f"{memory / 2**20:.0f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
