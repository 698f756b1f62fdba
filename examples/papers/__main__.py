"""
The papers' experiments, one command a table
============================================

Each experiment is a claim of arXiv:2605.05813 or arXiv:2605.18224. Finished parts are
kept: the same command goes on where it was interrupted. It writes the records as CSV,
table and claims as JSON and Markdown, and a picture.

    python examples/papers prevention --data digits --preset five-minutes
    python examples/papers all --preset five-minutes --n-jobs 2

Nothing is run by the next command: it writes what docs/records holds of the preset
"papers" into docs/papers.md, between the marks of each experiment, and draws the
pictures of that page.

    python examples/papers page

The files of mnist, cifar10, cifar100 and tiny-imagenet are read from the folders mnist,
cifar-10-batches-bin, cifar-100-binary and tiny-imagenet-200 in --data-dir.
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
        help="those that ship, or with the preset papers those of the page",
    )
    parser.add_argument("--preset", default="five-minutes", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("papers-results"))
    parser.add_argument("--records", type=Path, help="where finished cells are kept")
    parser.add_argument("--data-dir", help="the folder of the papers' data sets")
    parser.add_argument("--n-jobs", type=int, default=1, help="processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--check", action="store_true", help="fail if what must show does not"
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
    """Run one experiment, print and write what it shows; return what went wrong."""
    start = time.perf_counter()
    folder = arguments.out / arguments.preset
    # Of the papers' data those that the page has it for.
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
    note(folder / f"{experiment.name}.run.json", seconds, results)
    print(text, flush=True)
    return [c.sentence for c in claims if c.must and not c.holds]


def note(path, seconds, results):
    """Write down what may differ from run to run.

    A teacher that is remembered from another cell warns no more.
    """
    warned = Counter(name for result in results for name in result["warnings"])
    told = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": VERSIONS,
        "cells with warnings": warned,
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def main():
    arguments = parsed()
    if arguments.experiment == "page":
        fill(DOCS / "papers.md", EXPERIMENTS.values(), DOCS / "records")
        return
    chosen = [*EXPERIMENTS] if arguments.experiment == "all" else [arguments.experiment]
    try:
        wrong = [p for name in chosen for p in perform(EXPERIMENTS[name], arguments)]
    except KeyboardInterrupt:
        sys.exit(
            f"\nInterrupted. Finished cells are in {arguments.records}; go on with "
            "the same command."
        )
    if wrong:
        print("Must show, but does not:", *wrong, sep="\n- ")
    sys.exit(bool(wrong and arguments.check))


if __name__ == "__main__":
    main()
