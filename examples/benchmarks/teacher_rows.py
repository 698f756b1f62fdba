"""
What rows cost a teacher that reads them from disk
==================================================

Writes rows to a file, gray patches of 28 x 28 in float32 or colored ones of 32 x 32 in
uint8, maps it, and fits a ``GMMTeacher`` to more and more of them, each in a process of
its own; the mixture sees 20,000 of them. Prints seconds of CPU time, those
of one pass over the data (read, check, project: a matrix product with 16 columns), and
the most memory taken beyond what the imports took: private memory, since the pages of
the file are the kernel's to drop.

    python examples/benchmarks/teacher_rows.py [--rows 1000000] [--color] [--search]
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
    """Keeps the most private memory seen."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.most = private_bytes()

    def run(self):
        while True:
            self.most = max(self.most, private_bytes())
            time.sleep(0.005)


def write(path, n_rows, color):
    size, dtype = (32, np.uint8) if color else (28, np.float32)
    shape = n_rows, size * size * (3 if color else 1)
    file = np.lib.format.open_memmap(path, "w+", dtype, shape)
    for start in range(0, n_rows, CHUNK):
        count = min(CHUNK, n_rows - start)
        patches = load_patches(count, size=size, color=color, random_state=start).data
        file[start : start + count] = 255 * patches if color else patches
    file.flush()


def one_pass(rows):
    directions = np.random.default_rng(0).normal(size=(rows.shape[1], 16))
    for start in range(0, len(rows), 10_000):
        chunk = rows[start : start + 10_000]
        assert np.isfinite(chunk).all()
        chunk.astype(np.float64) @ directions


def measure(path, n_rows, search, results):
    warnings.simplefilter("ignore")
    rows = np.load(path, mmap_mode="r")[:n_rows]
    one_pass(rows)  # brings the file into the page cache
    with threadpool_limits(1):
        start = time.process_time()
        one_pass(rows)
        bare = time.process_time() - start
        watch = Watch()
        watch.start()
        start = time.process_time()
        n_components = [10, 20, 50] if search else 10
        GMMTeacher(n_components, subsample=20_000, random_state=0).fit(rows)
        results.put((time.process_time() - start, bare, watch.most - watch.before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--color", action="store_true")
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| rows | fit | one pass | memory |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write(path, options.rows, options.color)
        for n_rows in [options.rows // 2**k for k in (4, 3, 2, 1, 0)]:
            results = context.Queue()
            arguments = (path, n_rows, options.search, results)
            process = context.Process(target=measure, args=arguments)
            process.start()
            seconds, bare, memory = results.get()
            process.join()
            print(
                f"| {n_rows:,} | {seconds:.1f} s | {bare:.1f} s | {memory / 2**20:.0f} "
                "MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
