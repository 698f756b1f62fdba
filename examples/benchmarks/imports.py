"""
What an import costs
====================

Times ``import skvaecert`` and ``import torch, sklearn``, each in a fresh interpreter,
in alternating order, after a warm-up of each. The CPU time of the process includes the
start of the interpreter.

Prints medians, the ratio of the medians and the range of the ratios within pairs.

    python examples/benchmarks/imports.py [--repeats 11]
"""

import argparse
import os
import statistics
import subprocess
import sys

STATEMENTS = ("import torch, sklearn", "import skvaecert")


def cpu_seconds(statement):
    before = os.times()
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def pair(turn):
    """Return seconds of both statements; every other turn swaps their order."""
    order = STATEMENTS[:: 1 if turn % 2 else -1]
    seconds = {statement: cpu_seconds(statement) for statement in order}
    return [seconds[statement] for statement in STATEMENTS]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    pair(0)
    pairs = [pair(turn) for turn in range(repeats)]
    plain, package = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [second / first for first, second in pairs]
    print(
        "| import torch, sklearn | import skvaecert | ratio | pairs |"
        "\n|---|---|---|---|"
    )
    print(
        f"| {plain:.2f} s | {package:.2f} s | {package / plain:.2f} "
        f"| {min(ratios):.2f} to {max(ratios):.2f} |"
    )


if __name__ == "__main__":
    main()
