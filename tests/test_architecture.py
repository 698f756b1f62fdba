"""Imports only go down, no circle, short functions, and what each room may import."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skvaecert

PACKAGE = Path(skvaecert.__file__).parent

# A room is a module or a package. It may import rooms above its own line only.
# docs/contributing.md has the same floors.
FLOORS = [
    {"exceptions", "simplex", "networks", "_precision"},
    {"metrics", "diagnostics", "_estimator", "_posterior", "_samples", "_state"},
    {"_rounding", "bounds", "witnesses", "forecast", "datasets"},
    {"_loaders", "information", "objectives"},
    {"_certificate", "baselines"},
    {"_training", "_teacher", "escape"},
    {"_vae", "diagnosis"},
    {"_certifier"},
    {"wrappers"},
    {"persistence", "model_selection", "callbacks", "plotting"},
    {"report"},
]
MATH = {
    "simplex",
    "metrics",
    "witnesses",
    "bounds",
    "diagnostics",
    "forecast",
    "information",
    "_rounding",
    "_certificate",
    "_teacher/em",
}
# Which packages are imported by which rooms only.
ONLY_IN = {
    "skorch": {"_training", "baselines", "callbacks", "objectives"},
    "torch": {
        "_loaders",
        "_precision",
        "_training",
        "_vae",
        "baselines",
        "escape",
        "model_selection",
        "networks",
        "objectives",
        "persistence",
        "wrappers",
    },
    "safetensors": {"persistence"},
    "onnx": {"persistence"},
    "onnxscript": {"persistence"},
    "matplotlib": {"plotting", "report"},
    "threadpoolctl": {"_training", "_teacher"},
    "tqdm": {"_training", "_teacher"},
}

FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}
PUBLIC = sorted(room for room in FLOOR if not room.startswith("_"))


def room_of(file):
    return file.partition("/")[0]


def imports(tree):
    """Modules that a file imports, with the names it takes from each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module, tuple(alias.name for alias in node.names)


def own_imports(tree):
    for module, names in imports(tree):
        package, _, inner = module.partition(".")
        if package == "skvaecert":
            yield inner.replace(".", "/"), names


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} == set(FLOOR)


def test_the_page_has_the_same_floors():
    page = (Path(__file__).parents[1] / "docs/contributing.md").read_text()
    listed = []
    for floor, room in re.findall(r"^\| (\d*) ?\| `(\w+)` \|", page, re.M):
        if floor:
            listed.append(set())
        listed[-1].add(room)
    assert listed == FLOORS


@pytest.mark.parametrize("file", sorted(FILES))
def test_imports_go_down(file):
    room = room_of(file)
    for module, names in own_imports(FILES[file]):
        other = room_of(module)
        assert other == room or FLOOR[other] < FLOOR[room], f"{file} imports {module}"
        hidden = [name for name in names if name.startswith("_")]
        assert not hidden, f"{file} takes private {hidden} from {module}"


def test_files_import_each_other_in_no_circle():
    left = {file: {to for to, _ in own_imports(tree)} for file, tree in FILES.items()}
    while left:
        free = {file for file, wanted in left.items() if not wanted & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {file: wanted for file, wanted in left.items() if file not in free}


@pytest.mark.parametrize("file", sorted(FILES))
def test_packages_are_imported_where_they_belong(file):
    for module, _ in imports(FILES[file]):
        package = module.partition(".")[0]
        allowed = ONLY_IN.get(package, {room_of(file)})
        assert room_of(file) in allowed, f"{file} imports {package}"


@pytest.mark.parametrize("name", sorted(MATH))
def test_maths_needs_numpy_and_scipy_only(name):
    for file, tree in FILES.items():
        if name in (file, room_of(file)):
            outside = {module.partition(".")[0] for module, _ in imports(tree)}
            outside -= {"skvaecert", *sys.stdlib_module_names}
            assert outside <= {"numpy", "scipy"}, file


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_every_room_has_its_tests(room):
    assert list(Path(__file__).parent.glob(f"test_{room.lstrip('_')}*.py"))


@pytest.mark.parametrize("room", ["", *(f".{room}" for room in PUBLIC)])
def test_public_names_exist_and_are_documented(room):
    loaded = importlib.import_module(f"skvaecert{room}")
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    for name in loaded.__all__:
        assert getattr(loaded, name).__doc__


def public_callables(module):
    """Public functions and classes of a module, and public methods of the classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                is_own = function.__module__.startswith("skvaecert")
                if is_own and not method.startswith("_"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("room", ["", *(f".{room}" for room in PUBLIC)])
def test_signatures_name_their_types(room):
    """`help` shows ArrayLike by its name, and not the type that it stands for."""
    for name, value in public_callables(importlib.import_module(f"skvaecert{room}")):
        try:
            signature = str(inspect.signature(value))
        except ValueError:  # classes of exceptions have none
            continue
        assert "numpy._typing" not in signature, name


@pytest.mark.parametrize("room", ["", *(f".{room}" for room in PUBLIC)])
def test_import_star_brings_in_public_names_only(room):
    names = {}
    exec(f"from skvaecert{room} import *", names)
    public = importlib.import_module(f"skvaecert{room}").__all__
    assert names.keys() - {"__builtins__"} == set(public)


def test_dir_lists_public_names_only():
    assert dir(skvaecert) == sorted([*skvaecert.__all__, *PUBLIC, "__version__"])


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError, match="'skvaecert' has no attribute 'plot'"):
        skvaecert.plot  # noqa: B018


@pytest.mark.slow
def test_modules_are_imported_when_they_are_used():
    """In a separate process: another test may have imported the modules."""
    script = f"""
import sys
import skvaecert
assert "skvaecert.plotting" not in sys.modules
dir(skvaecert)
assert "skvaecert.plotting" not in sys.modules
for name in {PUBLIC!r}:
    assert getattr(skvaecert, name) is sys.modules["skvaecert." + name]
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def functions():
    """Every function, by file, class and name, with the lines of its body."""

    def found(node, where):
        for child in ast.iter_child_nodes(node):
            inner = f"{where}.{child.name}" if hasattr(child, "name") else where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                body = child.body[1:] if ast.get_docstring(child) else child.body
                first = body[0].lineno if body else child.end_lineno
                yield f"{inner}:{child.lineno}", child.end_lineno - first + 1
            yield from found(child, inner)

    for file, tree in FILES.items():
        yield from found(tree, file)


def test_functions_are_short():
    lengths = dict(functions())
    # An entry for each function: methods of one name do not hide each other.
    assert len(lengths) == sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for tree in FILES.values()
        for node in ast.walk(tree)
    )
    assert sorted(lengths.values())[len(lengths) // 2] <= 8
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 40, longest


# Brought in by an import of skvaecert: none of these, and none of them is needed.
OPTIONAL = [
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


@pytest.mark.slow
def test_import_is_quiet_and_brings_in_no_optional_package():
    """Two processes: one with the optional packages, one in which they are missing."""
    # scikit-learn itself imports pandas and rich where they are installed.
    code = f"""
import logging, sys, numpy, sklearn.base, sklearn.model_selection, skorch, torch
def configuration():
    return (sklearn.get_config(), torch.get_num_threads(), torch.random.get_rng_state(),
            list(logging.getLogger().handlers), numpy.geterr())
modules, before = set(sys.modules), configuration()
import skvaecert
assert all(map(lambda a, b: str(a) == str(b), before, configuration()))
brought = set(sys.modules) - modules
assert not brought & set({OPTIONAL!r}), brought
assert "matplotlib" not in sys.modules
"""
    without = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import skvaecert
"""
    for script in (code, without):
        command = [sys.executable, "-W", "error", "-c", script]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
