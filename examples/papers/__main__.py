"""
The papers' experiments, one command for each table
===================================================

The experiments test claims of arXiv:2605.05813 and arXiv:2605.18224. Finished parts are
stored, and the same command continues an interrupted run. A run writes the records as
CSV, the table and the claims as JSON and Markdown, and a picture.

    python examples/papers prevention --data digits --preset five-minutes
    python examples/papers all --preset five-minutes --n-jobs 2

The next command runs no experiment. It fills docs/papers.md, between the marks of each
experiment, with the results in docs/records, and draws the pictures of that page.

    python examples/papers page

The folder --data-dir has the official files of mnist, cifar10, cifar100 and
tiny-imagenet in its folders mnist, cifar-10-batches-bin, cifar-100-binary and
tiny-imagenet-200.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path

from cells import VERSIONS, run
from page import fill, write
from settings import OFFICIAL, PRESETS, SHIPPED, make_setting
from shown.ablations import ABLATIONS
from shown.escape import ESCAPE
from shown.gallery import GALLERY
from shown.longer import LONGER
from shown.mitigations import MITIGATIONS
from shown.prevention import PREVENTION
from shown.probe import PROBE
from shown.sweep import SWEEP
from shown.variants import VARIANTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        PREVENTION,
        LONGER,
        VARIANTS,
        ESCAPE,
        SWEEP,
        MITIGATIONS,
        PROBE,
        ABLATIONS,
        GALLERY,
    )
}


def parsed():
    parser = argparse.ArgumentParser(
        prog="python examples/papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all", "page"])
    parser.add_argument(
        "--data",
        nargs="+",
        choices=[*SHIPPED, *OFFICIAL],
        help="data sets (default: digits and patches16; with the preset papers, all "
        "others)",
    )
    parser.add_argument(
        "--preset",
        default="five-minutes",
        choices=PRESETS,
        help="size of the experiments (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("papers-results"),
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--records",
        type=Path,
        help="folder of the finished parts (default: OUT/PRESET/records)",
    )
    parser.add_argument("--data-dir", help="folder of the papers' data sets")
    parser.add_argument(
        "--n-jobs",
        type=int,
        default=1,
        help="number of processes (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", help="PyTorch device (default: %(default)s)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with status 1 if a cell fails or a claim that must hold does not",
    )
    arguments = parser.parse_args()
    if arguments.data is None:
        arguments.data = OFFICIAL if arguments.preset == "papers" else SHIPPED
    if arguments.records is None:
        arguments.records = arguments.out / arguments.preset / "records"
    if arguments.data_dir is None and {*arguments.data} & {*OFFICIAL}:
        parser.error(f"--data-dir is needed for {', '.join(OFFICIAL)}")
    return arguments


def perform(experiment, arguments):
    """Run one experiment, print and write its results; return the failures."""
    start = time.perf_counter()
    folder = arguments.out / arguments.preset
    # An experiment runs on those of the papers' data sets that the page shows.
    chosen = [d for d in arguments.data if d in (*SHIPPED, *experiment.data)]
    settings = [make_setting(arguments.preset, data) for data in chosen]
    results, failures = run(
        experiment,
        settings,
        arguments.records,
        arguments.n_jobs,
        memory=str(arguments.out / "teachers"),
        data_dir=arguments.data_dir,
        device=arguments.device,
    )
    print(*failures, sep="\n", file=sys.stderr)
    if failures:
        return [f"{experiment.name}: {len(failures)} cells failed, see above"]
    if not results:
        print(f"{experiment.name}: nothing to run on {', '.join(arguments.data)}")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    claims, text = write(folder, experiment, settings, results)
    seconds = time.perf_counter() - start
    write_run(folder / f"{experiment.name}.run.json", seconds, results)
    print(text, flush=True)
    return [c.sentence for c in claims if c.must and not c.holds]


def write_run(path, seconds, results):
    """Write what may differ between two runs of the same command."""
    # A teacher from the cache does not warn again, so these counts may differ, too.
    warned = Counter(name for result in results for name in result["warnings"])
    run_info = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": VERSIONS,
        "cells with warnings": warned,
    }
    path.write_text(json.dumps(run_info, indent=1) + "\n")


def main():
    arguments = parsed()
    if arguments.experiment == "page":
        fill(DOCS / "papers.md", EXPERIMENTS.values(), DOCS / "records")
        return
    chosen = [*EXPERIMENTS] if arguments.experiment == "all" else [arguments.experiment]
    try:
        failures = [
            failure
            for name in chosen
            for failure in perform(EXPERIMENTS[name], arguments)
        ]
    except KeyboardInterrupt:
        sys.exit(
            f"\nInterrupted. Finished cells are stored in {arguments.records}. Run the "
            "same command again to continue."
        )
    if failures:
        print("Failed:", *failures, sep="\n- ")
    sys.exit(bool(failures and arguments.check))


if __name__ == "__main__":
    main()
