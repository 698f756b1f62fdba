"""Records of the papers' experiments: kept, resumed, repeated to the bit, judged."""

import ast
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info

import skvaecert

pytestmark = pytest.mark.slow

PAPERS = Path(__file__).resolve().parents[1] / "examples" / "papers"
BESIDE = [path.stem for path in PAPERS.glob("*.py") if path.stem != "__main__"]
NAMES = sorted(path.stem for path in (PAPERS / "experiments").glob("*.py"))


def arguments(name, out, *options):
    chosen = "--data", "digits", "--preset", "seconds", "--out", str(out)
    return [str(PAPERS), name, *chosen, *map(str, options)]


def run(entry, *options):
    """Run the command within this process and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments(*options))
        with pytest.raises(SystemExit) as stop:
            entry.main()
    return stop.value.code


def outputs(folder, name="*"):
    """What a run has written that must not differ, by name."""
    return {
        path.name: path.read_bytes()
        for path in (folder / "seconds").glob(f"{name}.*")
        if not path.name.endswith(".run.json")
    }


def kept(folder, name="*"):
    """The bytes of the finished cells, by file."""
    paths = (folder / "seconds" / "records").glob(f"{name}-digits.jsonl")
    return {path.name: path.read_bytes() for path in paths}


def n_kept(folder, name):
    return sum(contents.count(b"\n") for contents in kept(folder, name).values())


@pytest.fixture(scope="module")
def clean(entry, tmp_path_factory):
    """A whole run of all experiments."""
    folder = tmp_path_factory.mktemp("clean")
    assert run(entry, "all", folder) == 0
    return folder


def test_all_experiments_are_in_the_command_and_can_be_shown(entry):
    assert sorted(entry.EXPERIMENTS) == NAMES
    assert NAMES == sorted(path.stem for path in (PAPERS / "shown").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_writes_table_records_claims_picture_and_what_it_ran_on(
    entry, papers, clean, seconds, name
):
    folder, experiment = clean / "seconds", entry.EXPERIMENTS[name]
    assert n_kept(clean, name) == len(experiment.cells(seconds))
    lines = papers("cells").Store(folder / "records" / f"{name}-digits.jsonl").lines()
    n_records = sum(len(line["result"]["records"]) for line in lines)
    with (folder / f"{name}.csv").open() as file:
        assert sum(1 for _ in file) == 1 + n_records
    claims = json.loads((folder / f"{name}.json").read_text())["claims"]
    text = (folder / f"{name}.md").read_text()
    assert text.startswith(f"## {experiment.title}\n")
    assert claims
    assert all(claim["sentence"] in text for claim in claims)
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((folder / f"{name}.run.json").read_text())
    assert {"command", "date", "seconds", "machine"} < {*about}
    assert {"torch", "sklearn", "numpy", "skvaecert"} < {*about["versions"]}


def test_a_run_of_two_processes_that_was_killed_goes_on_and_it_does_not_show(
    entry, papers, clean, tmp_path
):
    process = subprocess.Popen(
        [sys.executable, *arguments("variants", tmp_path, "--n-jobs", 2)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 120
    while n_kept(tmp_path, "variants") < 3:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ((name, killed),) = kept(tmp_path).items()
    store = papers("cells").Store(tmp_path / "seconds" / "records" / name)
    assert 3 <= len(store.results()) < 12
    assert run(entry, "variants", tmp_path) == 0
    assert kept(tmp_path)[name].startswith(killed)
    assert len(store.results()) == len(store.lines()) == 12
    assert outputs(tmp_path) == outputs(clean, "variants")


def test_a_finished_run_computes_nothing_again(entry, papers, clean, monkeypatch):
    before, written = outputs(clean), kept(clean)
    monkeypatch.setattr(papers("cells"), "finish", None)
    assert run(entry, "all", clean) == 0
    assert kept(clean) == written
    assert outputs(clean) == before


def test_a_cell_gives_the_same_alone_and_without_memory(entry, papers, clean, seconds):
    cells = papers("cells")
    experiment = entry.EXPERIMENTS["variants"]
    cell = cells.Cell(experiment, seconds, experiment.cells(seconds)[-1])
    store = cells.Store(clean / "seconds" / "records" / "variants-digits.jsonl")
    _, result, _ = cells.finish(cell, {})
    assert result == store.results()[cells.key(cell.name)]


def test_data_that_do_not_ship_need_a_folder(entry, tmp_path, capsys):
    assert run(entry, "variants", tmp_path, "--data", "mnist") == 2
    assert "--data-dir is needed for mnist" in capsys.readouterr().err


def an_experiment(papers, compute, claims=None):
    """An experiment without training."""
    return papers("cells").Experiment(
        name="example",
        title="Example",
        cells=lambda setting: [{"seed": seed} for seed in range(3)],
        compute=compute,
        by=("data",),
        columns={"seeds": lambda records: str(len(records))},
        claims=claims or (lambda records: []),
        draw=lambda results, figure: None,
    )


def record(lab, seed):
    return {"records": [{"data": lab.setting.data, "seed": seed}]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (RuntimeError("no luck today"), "no luck today"),
        (float("nan"), "not JSON compliant"),
        (float("inf"), "not JSON compliant"),
        (np.float32(1), "not JSON serializable"),
    ],
)
def test_a_cell_that_fails_does_not_take_the_others_along(
    papers, seconds, tmp_path, value, message
):
    def compute(lab, seed):
        if seed == 1 and isinstance(value, Exception):
            raise value
        result = record(lab, seed)
        return result | {"curves": [value] if seed == 1 else []}

    example = an_experiment(papers, compute)
    results, (failure,) = papers("cells").run(example, [seconds], tmp_path)
    assert [r["records"][0]["seed"] for r in results] == [0, 2]
    assert message in failure
    assert "'seed': 1" in failure


def test_a_cell_has_one_thread_of_each_library(papers, seconds, tmp_path):
    def compute(lab, seed):
        libraries = [library["num_threads"] for library in threadpool_info()]
        return record(lab, seed) | {"curves": [torch.get_num_threads(), *libraries]}

    torch.set_num_threads(2)
    (result, *_), _ = papers("cells").run(
        an_experiment(papers, compute), [seconds], tmp_path
    )
    assert {*result["curves"]} == {1}


def test_ctrl_c_within_a_training_keeps_no_part_of_it(
    entry, papers, tmp_path, monkeypatch
):
    class CtrlC(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                signal.raise_signal(signal.SIGINT)

    def compute(lab, seed):
        samples = lab.samples(seed)
        callbacks = [CtrlC()] if seed == 1 and not goes_on else []
        vae = lab.vae(samples, "1", seed, callbacks=callbacks).fit(samples.train)
        record = {"data": "digits", "seed": seed, "epochs": vae.n_iter_}
        return {"records": [record]}

    goes_on = False
    example = an_experiment(papers, compute)
    monkeypatch.setattr(entry, "EXPERIMENTS", {"example": example})
    assert "Run the same command again" in run(entry, "example", tmp_path)
    ((name, interrupted),) = kept(tmp_path).items()
    assert interrupted.count(b"\n") == 1
    goes_on = True
    assert run(entry, "example", tmp_path) == 0
    assert kept(tmp_path)[name].startswith(interrupted)
    lines = (tmp_path / "seconds" / "example.csv").read_text().splitlines()
    assert lines == ["data,seed,epochs", *(f"digits,{seed},2" for seed in range(3))]


@pytest.mark.parametrize(("must", "code"), [(True, 1), (False, 0)])
def test_check_fails_for_what_must_show(
    entry, papers, tmp_path, monkeypatch, must, code
):
    claim = papers("claims").Claim("the moon is green", False, must)
    example = an_experiment(papers, record, lambda records: [claim])
    monkeypatch.setattr(entry, "EXPERIMENTS", {"example": example})
    assert run(entry, "example", tmp_path, "--check") == code


@pytest.fixture
def store(papers, tmp_path):
    return papers("cells").Store(tmp_path / "records" / "some.jsonl")


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: b"",
        lambda line: b"[1, 2]",
        lambda line: b'["name", "result"]',
        lambda line: b'{"name": 1, "result": null}',
        lambda line: b"[" * 100_000,
        lambda line: b"\0" * 512,
        lambda line: line.replace(b'"digits"', b'"\xffigits"'),
        lambda line: line.replace(b'"certified"', b'"cert\xffied"'),
        lambda line: line.replace(b'"seed": 1', b'"seed": 7'),
        lambda line: line.replace(b'"n_train": 100', b'"n_train": 101'),
    ],
)
def test_a_line_that_is_damaged_or_of_something_else_is_not_taken(
    papers, seconds, store, damage
):
    cells = papers("cells")
    example = an_experiment(papers, record)
    names = [cells.Cell(example, seconds, {"seed": seed}).name for seed in range(3)]
    first, second, third = map(cells.key, names)
    result = {"records": [{"verdict": "certified"}]}
    for name in names:
        store.save(name, result)
    assert [*store.results()] == [first, second, third]
    lines = store.path.read_bytes().split(b"\n")
    broken = damage(lines[1])
    assert broken != lines[1]
    store.path.write_bytes(b"\n".join([lines[0], broken, *lines[2:]]))
    found = store.results()
    assert second not in found
    assert (found[first], found[third]) == (result, result)


def test_what_a_kill_within_a_write_leaves_harms_no_other_line(store):
    store.save({"seed": 0}, {"records": [1]})
    begun = store.path.read_bytes()
    store.save({"seed": 1}, {"records": [2]})
    whole = store.path.read_bytes()
    for end in range(len(begun), len(whole) + 1):
        store.path.write_bytes(whole[:end])
        # A line is there from its last brace on, before the break of the line.
        assert len(store.results()) == 1 + (end >= len(whole) - 1)
        store.save({"seed": 2}, {"records": [3]})
        found = [*store.results().values()]
        assert (found[0], found[-1]) == ({"records": [1]}, {"records": [3]})


def test_the_last_line_of_a_cell_is_taken(store):
    for value in range(3):
        store.save({"seed": 0}, {"records": [value]})
    assert [*store.results().values()] == [{"records": [2]}]


def test_lines_that_are_written_at_once_do_not_mix(store):
    # Longer than the buffer of a file.
    result = {"records": ["x" * 50_000]}
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(lambda seed: store.save({"seed": seed}, result), range(80))]
    assert len(store.results()) == 80


def test_cells_of_other_settings_and_versions_are_others(papers, seconds):
    cells, example = papers("cells"), an_experiment(papers, record)
    name = cells.Cell(example, seconds, {"seed": 0}).name
    assert cells.key(name) == cells.key(json.loads(json.dumps(name)))
    newer = copy.deepcopy(name)
    newer["versions"]["torch"] = "3.0"
    others = [
        newer,
        name | {"code": "0"},
        cells.Cell(example, seconds, {"seed": 1}).name,
        cells.Cell(example, seconds._replace(n_train=101), {"seed": 0}).name,
        cells.Cell(example, seconds._replace(fixed=True), {"seed": 0}).name,
    ]
    assert len({*map(cells.key, [name, *others])}) == 6


CODE = '''"""Discs."""
import math

NAME = "disc"


def area(radius, scale=1):
    """Return an area."""
    # Of a disc.
    if radius > 0:
        return scale * math.pi * radius**2


class Disc:
    """A disc."""

    sides = 0
'''


@pytest.fixture
def digest(papers, tmp_path):
    """Return the digest of a file of code."""
    folders = map(str, itertools.count())

    def of(text, name="a"):
        path = tmp_path / next(folders) / f"{name}.py"
        path.parent.mkdir()
        path.write_text(text)
        return papers("cells").digest_of([path])

    return of


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Discs.", "Circles, and more.", True),
        ("an area.", "an area.\n\n    More of it.", True),
        ("A disc.", "A disc: round.", True),
        ("    # Of a disc.\n", "", True),
        ("\n\n\n", "\n\n", True),
        ("scale * math.pi", "(scale * math.pi)", True),
        ("import math", "import cmath as math", False),
        ('"disc"', '"disk"', False),
        ("scale=1", "scale=2", False),
        ("radius, scale", "radius, *, scale", False),
        ("radius > 0", "radius >= 0", False),
        ("def area", "@print\ndef area", False),
        ("class Disc:", "class Disc(dict):", False),
        ("sides = 0", "sides = 0.0", False),
    ],
)
def test_the_digest_of_code_sees_what_does_something(digest, old, new, same):
    assert CODE.replace(old, new) != CODE
    assert (digest(CODE.replace(old, new)) == digest(CODE)) is same


def test_the_digest_of_code_sees_names_and_places(papers, digest, tmp_path):
    assert digest(CODE, "b") != digest(CODE, "a")
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(f"{path.stem} = 1")
    digest_of = papers("cells").digest_of
    assert digest_of(paths) != digest_of(paths[::-1])
    assert digest_of(paths) != digest_of(paths[:1])


@pytest.mark.parametrize("name", NAMES)
def test_the_digest_is_of_all_that_computes(entry, papers, monkeypatch, name):
    monkeypatch.setattr(papers("cells"), "digest_of", lambda paths: {*paths})
    package = {*Path(skvaecert.__file__).parent.rglob("*.py")}
    own = PAPERS / "experiments" / f"{name}.py"
    found = entry.EXPERIMENTS[name].code
    assert found == package | {PAPERS / "readers.py", PAPERS / "lab.py", own}


def imported(path):
    """Return which modules besides the entry point a file imports."""
    nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [node.name for node in nodes if isinstance(node, ast.alias)]
    ours = {*BESIDE, "experiments", "shown"}
    return {name.partition(".")[0] for name in names} & ours


def test_what_computes_imports_nothing_that_has_no_part_in_the_digest():
    for name in NAMES:
        assert imported(PAPERS / "experiments" / f"{name}.py") <= {"lab"}, name
        assert "experiments" in imported(PAPERS / "shown" / f"{name}.py")
    # Of settings a name alone; their values are in the name of a cell.
    assert imported(PAPERS / "lab.py") == {"readers", "settings"}
    assert imported(PAPERS / "readers.py") == set()
