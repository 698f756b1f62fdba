"""Cells, the smallest parts of an experiment that are kept, and how they are run."""

import hashlib
import json
import os
import platform
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy
import scipy
import sklearn
import skorch
import torch
from lab import Lab
from settings import Setting
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import skvaecert

MODULES = (skvaecert, torch, sklearn, numpy, scipy, skorch)
VERSIONS = {"python": platform.python_version()} | {
    module.__name__: str(module.__version__) for module in MODULES
}


def digest_of(*folders):
    """Return a digest of the code in some folders."""
    digest = hashlib.sha256()
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.py")):
            name = str(path.relative_to(folder))
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# Cells of other code are not taken for those of this one.
CODE = digest_of(Path(skvaecert.__file__).parent, Path(__file__).parent)


class Experiment(NamedTuple):
    """A claim of the papers: what to compute for it, and how to show it.

    `cells` lists the options of its cells in a setting; `compute` takes a Lab and
    those, and returns a dict with "records", each a flat dict, and maybe curves.
    Records that agree in `by` share a line of the table, whose `columns` are functions
    of them; `claims` judges all records, `draw` fills a figure.
    """

    name: str
    title: str
    cells: Callable[[Setting], list[dict[str, Any]]]
    compute: Callable[..., dict[str, Any]]
    by: tuple[str, ...]
    columns: dict[str, Callable[[list], str]]
    claims: Callable[[list], list]
    draw: Callable[[list, Any], None]


class Cell(NamedTuple):
    """One piece of work."""

    experiment: Experiment
    setting: Setting
    options: dict[str, Any]

    @property
    def name(self):
        """All that the numbers depend on, as JSON would give it back."""
        name = {
            "experiment": self.experiment.name,
            "setting": self.setting._asdict(),
            "options": self.options,
            "versions": VERSIONS,
            "code": CODE,
        }
        return json.loads(json.dumps(name))


class Store:
    """A folder of finished cells, one file each; a file is whole or not there."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name):
        """Return where a cell lies, or would."""
        text = json.dumps(name, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        words = name["setting"]["data"], *name["options"].values(), digest
        stem = "-".join(str(word).replace(" ", "_") for word in words)
        return self.folder / f"{stem}.json"

    def load(self, name):
        """Return a cell's result, or None; a damaged file counts as not there."""
        try:
            kept = json.loads(self.path(name).read_text())
            return kept["result"] if kept["name"] == name else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save(self, name, result):
        """Keep a result; whoever is killed here leaves no half of it."""
        text = json.dumps({"name": name, "result": result}, indent=1, allow_nan=False)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            file.write(text + "\n")
        os.replace(file.name, self.path(name))


def finish(cell, store, places):
    """Compute a cell and keep it; return None, or what went wrong."""
    try:
        # Sums depend on the number of threads in their last bits.
        torch.set_num_threads(1)
        with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = cell.experiment.compute(
                Lab(cell.setting, **places), **cell.options
            )
        told = sorted({warning.category.__name__ for warning in caught})
        store.save(cell.name, result | {"warnings": told})
    except Exception:  # the other cells go on
        return f"{cell.setting.data}, {cell.options}:\n{traceback.format_exc()}"
    return None


def run(experiment, settings, store, n_jobs=1, **places):
    """Compute what is not kept yet; return all results in order, and failures."""
    cells = [
        [Cell(experiment, setting, options) for options in experiment.cells(setting)]
        for setting in settings
    ]
    # Data sets by turns, so that the time left is told fairly.
    turns = sorted((i, k) for k, some in enumerate(cells) for i in range(len(some)))
    missing = [cells[k][i] for i, k in turns if store.load(cells[k][i].name) is None]
    tasks = (joblib.delayed(finish)(cell, store, places) for cell in missing)
    bar = tqdm(
        joblib.Parallel(n_jobs, return_as="generator_unordered")(tasks),
        desc=experiment.name,
        total=len(turns),
        initial=len(turns) - len(missing),
        smoothing=0,
    )
    failures = [failure for failure in bar if failure]
    results = [store.load(cell.name) for some in cells for cell in some]
    return [result for result in results if result], failures
