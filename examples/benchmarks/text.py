"""
A text VAE that collapses by itself, in several seeds
=====================================================

Runs `examples/plot_text_vae.py` with each seed, which also determines the split and the
teacher. Rescues the collapsed VAE with a smaller and a larger weight, too. Prints a
table in Markdown: in how many seeds a VAE has which state and which verdict on the
mean, and the mean over the seeds of each figure, with minimum and maximum in brackets.
The cost of a code is the bound on the perplexity from ten draws, in percent above the
bound of the VAE that is left alone, with the same seed.

    python examples/benchmarks/text.py [--seeds 5]
"""

import argparse
import contextlib
import math
import os
import runpy
import tempfile
from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

EXAMPLE = Path(__file__).resolve().parents[1] / "plot_text_vae.py"


def run(seed):
    """Return a dict from the name of each VAE to its diagnosis and figures."""
    os.environ["SEED"] = str(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        example = runpy.run_path(str(EXAMPLE))
    plt.close("all")
    results = example["results"]
    for weight in (3, 30):
        vae = deepcopy(example["vae"])
        loss = partial(example["aligned"], weight=weight)
        example["train"](vae, loss, n_epochs=4)
        results[f"rescued, weight {weight}"] = example["measure"](vae)
    return results


def in_range(values, digits=2):
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{np.mean(values):.{digits}f} ({low} to {high})"


def main(n_seeds):
    runs = [run(seed) for seed in range(n_seeds)]
    figures = list(runs[0]["rescued"][1])
    print(f"\n| VAE | state | {' | '.join(figures)} | cost, % |")
    print("|---" * (len(figures) + 3) + "|")
    least = np.array([results["left alone"][1]["10 draws"] for results in runs])
    for name in runs[0]:
        found, values = zip(*[results[name] for results in runs], strict=True)
        counts = Counter(f"{one.state}, mean {one.mean.verdict}" for one in found)
        states = "; ".join(f"{n} {state}" for state, n in counts.items())
        ranges = [in_range([one[figure] for one in values]) for figure in figures]
        cost = 100 * ([one["10 draws"] for one in values] / least - 1)
        print(f"| {name} | {states} | {' | '.join(ranges)} | {in_range(cost, 1)} |")
    highest = max(results["left alone"][0].information.high for results in runs)
    highest = math.ceil(100 * highest) / 100
    most = [results["rescued"][0].mean.teacher_information for results in runs]
    print(f"\nLeft alone, drawn codes carry at most {highest} nats.")
    print(f"The topics have {in_range(most)} nats.")


if __name__ == "__main__":
    mpl.use("Agg")
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    main(parser.parse_args().seeds)
