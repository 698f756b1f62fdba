"""Cells, the smallest parts of an experiment that are kept, and how they are run."""

import ast
import functools
import hashlib
import inspect
import json
import os
import platform
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
from settings import OFFICIAL, Setting
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import skvaecert

MODULES = (skvaecert, torch, sklearn, numpy, scipy, skorch)
VERSIONS = {"python": platform.python_version()} | {
    module.__name__: str(module.__version__) for module in MODULES
}
HERE = Path(__file__).parent


@functools.cache
def statements(path):
    """Return what a file of code does: without comments and docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and is_text(body[0]):
            body[0] = ast.Pass()
    return ast.dump(tree)


def is_text(node):
    """Tell whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def digest_of(paths):
    """Return a digest of what some files of code do."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{statements(path)}\0".encode())
    return digest.hexdigest()[:16]


class Experiment(NamedTuple):
    """A claim of the papers: what to compute for it, and how to show it.

    `cells` lists the options of its cells in a setting; `compute` takes a Lab and
    those, and returns a dict with "records", each a flat dict, and maybe "curves".
    Records that agree in `by` share a line of the table, whose `columns` are functions
    of them; `claims` judges all records, `draw` fills a figure, and `caption` says what
    to see there. `data` are the data sets that the page has it for.
    """

    name: str
    title: str
    cells: Callable[[Setting], list[dict[str, Any]]]
    compute: Callable[..., dict[str, Any]]
    by: tuple[str, ...]
    columns: dict[str, Callable[[list], str]]
    claims: Callable[[list], list]
    draw: Callable[[list, Any], None]
    caption: str = ""
    data: tuple[str, ...] = OFFICIAL

    @property
    def code(self):
        """A digest of what computes, not of what shows."""
        package = sorted(Path(skvaecert.__file__).parent.rglob("*.py"))
        own = Path(inspect.getsourcefile(self.compute))
        return digest_of([*package, HERE / "readers.py", HERE / "lab.py", own])


class Cell(NamedTuple):
    """One piece of work."""

    experiment: Experiment
    setting: Setting
    options: dict[str, Any]

    @property
    def name(self):
        """All that the numbers depend on, as JSON would give it back."""
        name = {
            "setting": self.setting._asdict(),
            "options": self.options,
            "versions": VERSIONS,
            "code": self.experiment.code,
        }
        return json.loads(json.dumps(name))


class Store:
    """A file of finished cells of an experiment on a data set, one in each line."""

    def __init__(self, path):
        self.path = Path(path)

    def lines(self):
        """Return what can be read of the file; half a line counts as not there."""
        if not self.path.exists():
            return []
        texts = self.path.read_bytes().split(b"\n")
        return [line for line in map(parsed, texts) if line]

    def results(self):
        """Return the results by the names of their cells, the last one of each."""
        return {key(line["name"]): line["result"] for line in self.lines()}

    def save(self, name, result):
        """Append a line; whatever a kill has left of another does not touch it."""
        text = json.dumps({"name": name, "result": result})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(begin + text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def store_of(folder, experiment, data):
    """Return the store of an experiment on a data set."""
    return Store(folder / f"{experiment.name}-{data}.jsonl")


def parsed(text):
    """Return a line of a store, or None if it is damaged."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and {"name", "result"} <= {*line}
    return line if whole and isinstance(line["result"], dict) else None


def key(name):
    """Return the name of a cell as text."""
    return json.dumps(name, sort_keys=True)


def finish(cell, places):
    """Return the result of a cell and None, or None and what went wrong."""
    try:
        # Sums depend on the number of threads in their last bits.
        torch.set_num_threads(1)
        with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = cell.experiment.compute(
                Lab(cell.setting, **places), **cell.options
            )
        told = sorted({warning.category.__name__ for warning in caught})
        # What is no JSON, such as NaN, is a failure of this cell.
        text = json.dumps(result | {"warnings": told}, allow_nan=False)
        return cell, json.loads(text), None
    except Exception:  # the other cells go on
        failure = f"{cell.setting.data}, {cell.options}:\n{traceback.format_exc()}"
        return cell, None, failure


def run(experiment, settings, folder, n_jobs=1, **places):
    """Compute what is not kept yet; return all results in order, and failures."""
    stores = {s.data: store_of(folder, experiment, s.data) for s in settings}
    cells = [
        [Cell(experiment, setting, options) for options in experiment.cells(setting)]
        for setting in settings
    ]
    kept = {data: store.results() for data, store in stores.items()}
    # Data sets by turns, so that the time left is told fairly.
    turns = sorted((i, k) for k, some in enumerate(cells) for i in range(len(some)))
    todo = (cells[k][i] for i, k in turns)
    missing = [cell for cell in todo if key(cell.name) not in kept[cell.setting.data]]
    tasks = (joblib.delayed(finish)(cell, places) for cell in missing)
    bar = tqdm(
        joblib.Parallel(n_jobs, return_as="generator_unordered")(tasks),
        desc=experiment.name,
        total=len(turns),
        initial=len(turns) - len(missing),
        smoothing=0,
    )
    failures = []
    for cell, result, failure in bar:
        if failure:
            failures.append(failure)
        else:
            stores[cell.setting.data].save(cell.name, result)
            kept[cell.setting.data][key(cell.name)] = result
    found = [kept[c.setting.data].get(key(c.name)) for some in cells for c in some]
    return [result for result in found if result], failures
