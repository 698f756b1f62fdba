"""Imports only go down; every module has its tests and says what is public."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import skvaecert

PACKAGE = Path(skvaecert.__file__).parent

# Every module may import those above its own line, and packages as far as listed.
FLOORS = [
    {"exceptions"},
    {"_archive"},
    {"simplex"},
    {"metrics"},
    {"witnesses"},
    {"_certificate", "_mixture", "bounds", "datasets", "diagnostics", "forecast"},
    {"networks", "_optimizer", "_processes"},
    {"objectives"},
    {"_gradient", "_batches", "_escape"},
    {"baselines", "wrappers"},
    {"_training"},
    {"_together"},
    {"_base"},
    {"_teacher_search"},
    {"_teacher"},
    {"_vae"},
    {"_kinds"},
    {"_certifier"},
    {"persistence"},
    {"model_selection"},
    {"_row_displays"},
    {"callbacks", "plotting"},
    {"report"},
]
MATHS = {
    "simplex",
    "metrics",
    "witnesses",
    "bounds",
    "diagnostics",
    "_certificate",
    "_mixture",
    "forecast",
}
ONLY_IN = {
    "skorch": {"_training", "callbacks"},
    "torch": {
        "model_selection",
        "networks",
        "_optimizer",
        "_processes",
        "_gradient",
        "_escape",
        "objectives",
        "baselines",
        "_training",
        "_together",
        "_vae",
        "_batches",
        "persistence",
        "wrappers",
    },
    "sklearn": {
        "datasets",
        "objectives",
        "baselines",
        "_base",
        "_teacher_search",
        "_teacher",
        "_vae",
        "_certifier",
        "_kinds",
        "callbacks",
        "model_selection",
        "persistence",
        "plotting",
        "_row_displays",
        "report",
        "wrappers",
    },
    "accelerate": {"_processes"},
    "safetensors": {"_archive"},
    "onnx": {"persistence"},
    "onnxscript": {"persistence"},
    "matplotlib": {"plotting", "_row_displays", "report"},
    "tqdm": {"_training", "_teacher_search"},
}
# Methods that reach up when they are called: `save` and `load` of the estimators.
REACHES_UP = {("_base", "persistence")}

modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
floor = {name: level for level, names in enumerate(FLOORS) for name in names}


def imports(module):
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield node.module


def test_every_module_has_a_floor():
    assert set(modules) == set(floor)


@pytest.mark.parametrize("module", modules)
def test_imports_go_down(module):
    for name in imports(module):
        package, _, inner = name.partition(".")
        if package == "skvaecert":
            lower = floor[inner] < floor[module]
            assert lower or (module, inner) in REACHES_UP, f"{module} imports {inner}"
        assert module in ONLY_IN.get(package, {module}), f"{module} imports {package}"


@pytest.mark.parametrize("module", sorted(MATHS))
def test_maths_needs_numpy_and_scipy_only(module):
    outside = {name.partition(".")[0] for name in imports(module)} - {"skvaecert"}
    assert outside - set(sys.stdlib_module_names) <= {"numpy", "scipy"}


@pytest.mark.parametrize("module", modules)
def test_every_module_has_its_tests(module):
    assert (Path(__file__).parent / f"test_{module.lstrip('_')}.py").exists()


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in modules)])
def test_public_names_are_real_and_sorted_out(module):
    loaded = importlib.import_module(f"skvaecert{module}")
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    for name in loaded.__all__:
        assert getattr(loaded, name).__doc__


def test_import_is_quiet_and_changes_no_configuration():
    code = """
import logging, sys, torch, sklearn, numpy
before = (sklearn.get_config(), torch.get_num_threads(), torch.random.get_rng_state(),
          list(logging.getLogger().handlers), numpy.geterr())
import skvaecert
after = (sklearn.get_config(), torch.get_num_threads(), torch.random.get_rng_state(),
         list(logging.getLogger().handlers), numpy.geterr())
assert all(map(lambda a, b: str(a) == str(b), before, after))
"""
    quiet_python(code)


OPTIONAL = [
    "accelerate",
    "dask",
    "distributed",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "polars",
    "pyarrow",
    "pythae",
    "rich",
    "safetensors",
    "zarr",
]


def test_import_brings_in_no_optional_package():
    # scikit-learn itself imports pandas and rich where they are installed.
    code = f"""
import sys
import torch, skorch, sklearn.base, sklearn.model_selection
before = set(sys.modules)
import skvaecert
brought = set(sys.modules) - before
assert not brought & set({OPTIONAL!r}), brought
assert "matplotlib" not in sys.modules
"""
    quiet_python(code)


def test_import_does_without_optional_packages():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import skvaecert
"""
    quiet_python(code)


def quiet_python(code):
    """Run code in a new process in which warnings are errors, and see no output."""
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_functions_are_short():
    lengths = {}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                first = body[0].lineno if body else node.end_lineno
                lengths[f"{path.stem}.{node.name}"] = node.end_lineno - first + 1
    assert sorted(lengths.values())[len(lengths) // 2] <= 8
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 50, longest
