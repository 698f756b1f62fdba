"""What is released: its contents, its metadata, and the scripts that make it."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import skvaecert

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [
    ".ci",
    ".github",
    ".gitignore",
    "docs",
    "examples",
    "skvaecert",
    "tests",
    "LICENSE",
    "README.md",
    "pyproject.toml",
]
# What runs of the tests, the examples and the pages leave in a working tree.
JUNK = [
    ".hypothesis/example",
    ".venv/lib/module.py",
    "build/lib/skvaecert/removed.py",
    "docs/_build/index.html",
    "docs/auto_examples/plot_quickstart.rst",
    "docs/reference/skvaecert.rst",
    "docs/sg_execution_times.rst",
    "examples/picture.png",
    "papers-results/cell.json",
    "quickstart.png",
    "skvaecert/__pycache__/metrics.cpython-311.pyc",
    "tests/__pycache__/test_metrics.cpython-311.pyc",
]
SOURCE_FILES = sorted(ROOT.glob("skvaecert/**/*.py"))
WORKFLOWS = ROOT / ".github" / "workflows"


def tracked():
    """Files of this release: what git knows, or all that was unpacked."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        names = [Path(name) for name in listed.stdout.decode().splitlines()]
    else:
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [
        name
        for name in names
        if name.parts[0] in SOURCES
        and "__pycache__" not in name.parts
        and (ROOT / name).is_file()
    ]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Wheel and sdist of a copy of this tree that also contains generated files."""
    pytest.importorskip("build")
    tree, out = (tmp_path_factory.mktemp(name) for name in ("tree", "dist"))
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("junk")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def wheel(archives):
    """Contents of the wheel, by name."""
    with zipfile.ZipFile(archives[0]) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


@pytest.fixture(scope="module")
def sdist(archives):
    """Names of the files in the sdist, below its folder."""
    with tarfile.open(archives[1]) as packed:
        members = [member.name for member in packed.getmembers() if member.isfile()]
    return {name.partition("/")[2] for name in members}


@pytest.fixture(scope="module")
def metadata(wheel):
    """The wheel's METADATA, read as e-mail headers."""
    return message_from_bytes(wheel[inside(wheel, "METADATA")])


def inside(wheel, name):
    """Path in the wheel of one file of its metadata."""
    (path,) = (path for path in wheel if path.endswith(f".dist-info/{name}"))
    return path


@pytest.mark.slow
def test_wheel_contains_the_package_and_nothing_else(wheel):
    files = {name for name in wheel if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in SOURCE_FILES}
    assert files == modules | {"skvaecert/py.typed"}
    assert wheel[inside(wheel, "licenses/LICENSE")] == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_sdist_contains_the_tree_without_what_work_leaves_behind(sdist):
    assert sdist - {"PKG-INFO"} == {name.as_posix() for name in tracked()}
    assert {"LICENSE", "README.md", "tests/conftest.py", "docs/theory.md"} <= sdist


def test_both_archives_have_the_version_of_the_package(archives):
    wheel, sdist = archives
    version = skvaecert.__version__
    assert wheel.name == f"skvaecert-{version}-py3-none-any.whl"
    assert sdist.name == f"skvaecert-{version}.tar.gz"


def test_version_is_written_once():
    assert PROJECT["version"] == skvaecert.__version__
    pattern = re.compile(rf"""["']{re.escape(PROJECT["version"])}["']""")
    assert not [path for path in SOURCE_FILES if pattern.search(path.read_text())]


def test_metadata_is_valid(wheel):
    packaging = pytest.importorskip("packaging.metadata")
    raw = wheel[inside(wheel, "METADATA")]
    valid = packaging.Metadata.from_email(raw, validate=True)
    assert valid.name == "skvaecert"
    assert valid.license_expression == "BSD-3-Clause"
    assert valid.license_files == ["LICENSE"]
    assert "3.11" in valid.requires_python
    assert "3.10.9" not in valid.requires_python
    assert valid.description_content_type == "text/markdown"


def test_metadata_has_the_bounds_and_extras_of_the_project(metadata):
    requirements = metadata.get_all("Requires-Dist")
    needed = {line for line in requirements if "extra ==" not in line}
    assert needed == set(PROJECT["dependencies"])
    assert all(">=" in line for line in needed)
    extras = set(PROJECT["optional-dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert {"plot", "test"} <= extras


def test_classifiers_are_known_and_sorted_and_say_typed():
    known = pytest.importorskip("trove_classifiers").classifiers
    classifiers = PROJECT["classifiers"]
    assert set(classifiers) <= known
    assert classifiers == sorted(classifiers)
    assert "Typing :: Typed" in classifiers
    # The license is an expression; PEP 639 forbids a classifier in addition.
    assert not [name for name in classifiers if name.startswith("License")]


def test_oldest_versions_are_the_bounds():
    script = ROOT / ".ci" / "lower_bounds.py"
    command = [sys.executable, script, "torch==9.9"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    pins = dict(line.split("==") for line in run.stdout.splitlines())
    tested = (ROOT / ".ci" / "constraints.txt").read_text()
    for line in PROJECT["dependencies"]:
        name, bound = line.split(">=")
        assert pins[name] == ("9.9" if name == "torch" else bound)
        assert f"{name}=={bound}" not in tested, f"{name}: newest and oldest are one"
    # Packages without a bound are pinned where they are tested.
    assert f"mpmath=={pins['mpmath']}\n" in tested


@pytest.mark.parametrize(
    "script", ["gpu", "minimum", "newest", "package", "run", "tests"]
)
def test_scripts_are_commands(script):
    path = ROOT / ".ci" / script
    first, second = path.read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("# ")
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o111, "not executable"
        subprocess.run(["bash", "-n", path], check=True)


def workflow(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((WORKFLOWS / name).read_text())


@pytest.mark.parametrize("name", ["tests.yml", "docs.yml", "release.yml"])
def test_workflows_may_read_only_and_run_what_is_there(name):
    content = workflow(name)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["group"]
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert set(job.get("permissions", {})) <= {"id-token"}
        for step in job["steps"]:
            used = step.get("uses", "owner/action@v1")
            assert re.fullmatch(r"[\w/.-]+@(v|release/v)\d+", used), used
    for script in re.findall(r"\.ci/[\w.]+", (WORKFLOWS / name).read_text()):
        assert (ROOT / script).exists(), script


def test_tests_run_on_every_python_that_the_metadata_name():
    jobs = workflow("tests.yml")["jobs"]
    tried = {case["python"] for case in jobs["tests"]["strategy"]["matrix"]["include"]}
    prefix = "Programming Language :: Python :: 3."
    named = {
        c.split(" :: ")[-1] for c in PROJECT["classifiers"] if c.startswith(prefix)
    }
    assert named <= tried
    assert PROJECT["requires-python"] == f">={min(tried)}"


def test_only_the_last_job_of_a_release_may_publish():
    jobs = workflow("release.yml")["jobs"]
    (publish,) = (job for job in jobs.values() if "permissions" in job)
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert not [step for step in publish["steps"] if "run" in step]


def test_smoke_script_needs_the_package_only():
    tree = ast.parse((ROOT / ".ci" / "smoke.py").read_text())
    names = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    outside = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside <= {"skvaecert", "sklearn", "numpy"}
