"""
One process and several
=======================

The margin on the digits after 30 epochs on all processes that torchrun has started,
beside that of the first of them alone, for each seed: the same teacher, rows and first
weights, but other codes drawn. With it the time of both, which says something only
where every process has a core, or a GPU, of its own.

Prints a line a seed, and the largest difference.

    torchrun --standalone --nproc_per_node 2 examples/benchmarks/processes.py
        [--seeds 10] [--device cpu]
"""

import argparse

from accelerate import PartialState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher


def fitted(rows, seed, device, accelerate):
    """A certifier, and the seconds of the epochs."""
    vae = CertifiedVAE(
        GMMTeacher(n_components=10),
        max_epochs=30,
        device=device,
        accelerate=accelerate,
        random_state=seed,
    )
    certifier = CollapseCertifier(vae).fit(rows)
    return certifier, sum(row["seconds"] for row in certifier.estimator_.history_)


def compare(train, test, seed, device):
    together, seconds = fitted(train, seed, device, True)
    if not PartialState().is_main_process:
        return None
    alone, seconds_alone = fitted(train, seed, device, False)
    margins = [c.score(rows) for rows in (train, test) for c in (alone, together)]
    numbers = " | ".join(f"{margin:.4f}" for margin in margins)
    print(f"| {seed} | {numbers} | {seconds_alone:.1f} s | {seconds:.1f} s |")
    return abs(margins[1] - margins[0]), abs(margins[3] - margins[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    train, test = train_test_split(load_digits().data / 16, random_state=0)
    state = PartialState(cpu=args.device == "cpu")
    if state.is_main_process:
        print(f"{state.num_processes} processes")
        print(
            "| seed | alone | together | alone, test | together, test | time | time |"
        )
        print("|---|---|---|---|---|---|---|")
    differences = [
        compare(train, test, seed, args.device) for seed in range(args.seeds)
    ]
    if state.is_main_process:
        most = [max(column) for column in zip(*differences, strict=True)]
        print(f"largest differences: {most[0]:.4f} and, on test rows, {most[1]:.4f}")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
