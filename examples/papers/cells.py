"""Run the cells of an experiment, the smallest parts that are stored."""

import ast
import functools
import hashlib
import inspect
import itertools
import json
import os
import platform
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
    """Return the syntax tree of a file as text, without comments and docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and is_text(body[0]):
            body[0] = ast.Pass()
    return ast.dump(tree)


def is_text(node):
    """Tell whether a statement is only a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def digest_of(paths):
    """Return a digest of the names and statements of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{statements(path)}\0".encode())
    return digest.hexdigest()[:16]


class Experiment(NamedTuple):
    """A claim of the papers: what to compute for it, and how to show it.

    `cells` returns the options of each cell in a setting. `compute` takes a Lab and the
    options of a cell. It returns a dict with "records", a list of flat dicts, and what
    else is stored for pictures, such as "curves". Records with the same values of the
    keys `by` share a row of the table, and `columns` are functions of these records.
    `claims` judges all records, `draw` fills a figure, and `caption` explains it. The
    page shows the data sets `data`.
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
        """A digest of the code that computes results, not of what shows them."""
        package = sorted(Path(skvaecert.__file__).parent.rglob("*.py"))
        own = Path(inspect.getsourcefile(self.compute))
        return digest_of([*package, HERE / "readers.py", HERE / "lab.py", own])


@dataclass(frozen=True)
class Cell:
    """An experiment in one setting, with the options of one cell."""

    experiment: Experiment
    setting: Setting
    options: dict[str, Any]

    @functools.cached_property
    def name(self):
        """All that the result depends on, as it is read back from JSON."""
        name = {
            "setting": self.setting._asdict(),
            "options": self.options,
            "versions": VERSIONS,
            "code": self.experiment.code,
        }
        return json.loads(json.dumps(name))


class Store:
    """A file of the finished cells of an experiment on a data set, one in each line."""

    def __init__(self, path):
        self.path = Path(path)

    def lines(self):
        """Return all lines that can be read; damaged lines are skipped."""
        if not self.path.exists():
            return []
        texts = self.path.read_bytes().split(b"\n")
        return [line for line in map(parsed, texts) if line]

    def results(self):
        """Return the last result of each cell, by its name as text."""
        return {key(line["name"]): line["result"] for line in self.lines()}

    def save(self, name, result):
        """Append a line, after a line break if a killed run left an incomplete line."""
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
    """Return a cell with its result and None, or with None and the error message."""
    try:
        # The last bits of sums depend on the number of threads.
        torch.set_num_threads(1)
        with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = cell.experiment.compute(
                Lab(cell.setting, **places), **cell.options
            )
        names = sorted({warning.category.__name__ for warning in caught})
        # A result that is not valid JSON, such as NaN, is a failure of this cell.
        text = json.dumps(result | {"warnings": names}, allow_nan=False)
        return cell, json.loads(text), None
    except Exception:  # the other cells still run
        failure = f"{cell.setting.data}, {cell.options}:\n{traceback.format_exc()}"
        return cell, None, failure


def run(experiment, settings, folder, n_jobs=1, **places):
    """Compute cells that are not stored; return all results in order, and failures."""
    stores = {s.data: store_of(folder, experiment, s.data) for s in settings}
    cells = [
        [Cell(experiment, setting, options) for options in experiment.cells(setting)]
        for setting in settings
    ]
    results = {}
    for store in stores.values():
        results |= store.results()
    # Data sets take turns, so that the progress bar estimates the remaining time well.
    turns = [*filter(None, itertools.chain(*itertools.zip_longest(*cells)))]
    missing = [cell for cell in turns if key(cell.name) not in results]
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
            results[key(cell.name)] = result
    names = [key(cell.name) for cell in itertools.chain(*cells)]
    return [results[name] for name in names if name in results], failures
