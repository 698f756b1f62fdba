"""The papers' experiments: kept, resumed, repeated to the bit, and judged."""

import copy
import importlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PAPERS = Path(__file__).parents[1] / "examples" / "papers"
NAMES = [path.stem for path in PAPERS.glob("*.py") if path.stem != "__main__"]
EXPERIMENTS = [
    "prevention",
    "targets",
    "variants",
    "stress",
    "escape",
    "mitigations",
    "forecast",
]


@pytest.fixture(scope="module")
def papers():
    """The modules beside the entry point, by name."""
    sys.path.insert(0, str(PAPERS))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(PAPERS))
        for name in NAMES:
            del sys.modules[name]


def command(*options, data=("digits",), preset="seconds"):
    base = [sys.executable, str(PAPERS), "--data", *data, "--preset", preset]
    return [*base[:2], options[0], *base[2:], *map(str, options[1:])]


def run(*options, **choices):
    return subprocess.run(
        command(*options, **choices), capture_output=True, text=True, check=False
    )


def outputs(folder):
    """What a run has written that must not differ, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("csv", "json", "md", "png")
        for path in folder.rglob(f"*.{kind}")
        if "teachers" not in path.parts and not path.name.endswith(".run.json")
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A whole run of the forecast."""
    folder = tmp_path_factory.mktemp("clean")
    done = run("forecast", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_writes_table_records_claims_picture_and_what_it_ran_on(clean):
    folder = clean / "seconds"
    assert "## Forecast against outcome" in (folder / "forecast.md").read_text()
    assert len((folder / "forecast.csv").read_text().splitlines()) == 1 + 14
    assert (folder / "forecast.png").read_bytes().startswith(b"\x89PNG")
    told = (folder / "forecast.run.json").read_text()
    for key in ("command", "date", "seconds", "machine", "torch", "sklearn"):
        assert f'"{key}"' in told


def test_two_processes_give_the_same_bytes(clean, tmp_path):
    done = run("forecast", "--out", tmp_path, "--n-jobs", 2)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == outputs(clean)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_run_that_is_stopped_goes_on_and_loses_nothing(clean, tmp_path, name):
    process = subprocess.Popen(
        command("forecast", "--out", tmp_path),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    cells = tmp_path / "seconds" / "forecast"
    limit = time.monotonic() + 60
    while len(list(cells.glob("*.json"))) < 3:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, getattr(signal, name))
    told = process.communicate()[1]
    if name == "SIGINT":
        assert "go on with the same command" in told
    finished = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 3 <= len(finished) < 14
    assert run("forecast", "--out", tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert outputs(tmp_path) == outputs(clean)


def test_a_finished_run_computes_nothing_again(clean):
    before = outputs(clean)
    started = {path: path.stat().st_mtime_ns for path in clean.rglob("*-*.json")}
    assert run("forecast", "--out", clean).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in started} == started
    assert outputs(clean) == before


@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - {"forecast"}))
def test_every_experiment_runs(papers, experiment, tmp_path):
    cells, settings, tables = (papers[k] for k in ("cells", "settings", "tables"))
    main = entry()
    chosen = main.EXPERIMENTS[experiment]
    # Of mitigations and stress a few: they differ in what is told of one fit.
    some = chosen._replace(cells=lambda setting: chosen.cells(setting)[:4])
    store = cells.Store(tmp_path / "cells")
    setting = settings.make_setting("seconds", "digits")
    results, failures = cells.run(some, [setting], store, memory=str(tmp_path / "t"))
    assert not failures
    claims, text = tables.write(tmp_path, some, results)
    assert len(results) == min(4, len(chosen.cells(setting)))
    assert claims
    assert all(claim.sentence in text for claim in claims)
    assert (tmp_path / f"{experiment}.png").exists()


def entry():
    path = PAPERS / "__main__.py"
    spec = importlib.util.spec_from_file_location("papers_entry", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def an_experiment(papers, compute, claims=None):
    """An experiment without training."""
    return papers["cells"].Experiment(
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


def test_a_cell_that_fails_does_not_take_the_others_along(papers, tmp_path):
    def compute(lab, seed):
        if seed == 1:
            raise RuntimeError("no luck today")
        return record(lab, seed)

    setting = papers["settings"].make_setting("seconds", "digits")
    store = papers["cells"].Store(tmp_path)
    example = an_experiment(papers, compute)
    results, failures = papers["cells"].run(example, [setting], store)
    assert [r["records"][0]["seed"] for r in results] == [0, 2]
    assert len(failures) == 1
    assert "no luck today" in failures[0]
    assert "'seed': 1" in failures[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace('"seed": 0', '"seed": 7'),
        lambda text: text.replace('"n_train": 100', '"n_train": 101'),
    ],
)
def test_a_cell_that_is_damaged_or_of_something_else_is_not_taken(
    papers, tmp_path, damage
):
    setting = papers["settings"].make_setting("seconds", "digits")
    cell = papers["cells"].Cell(an_experiment(papers, record), setting, {"seed": 0})
    store = papers["cells"].Store(tmp_path)
    store.save(cell.name, {"records": []})
    assert store.load(cell.name) == {"records": []}
    path = store.path(cell.name)
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    assert store.load(cell.name) is None


def test_cells_of_other_settings_and_versions_lie_elsewhere(papers, tmp_path):
    cells, settings = papers["cells"], papers["settings"]
    setting = settings.make_setting("seconds", "digits")
    example, store = an_experiment(papers, record), cells.Store(tmp_path)
    name = cells.Cell(example, setting, {"seed": 0}).name
    other = cells.Cell(example, setting._replace(n_train=101), {"seed": 0}).name
    newer = copy.deepcopy(name)
    newer["versions"]["torch"] = "3.0"
    edited = name | {"code": "0"}
    assert len({store.path(some) for some in (name, other, newer, edited)}) == 4


def test_the_digest_of_code_sees_every_change(papers, tmp_path):
    def digest(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return papers["cells"].digest_of(tmp_path)

    first = digest(a="x = 1", b="")
    assert digest(a="x = 1", b="") == first
    assert len({first, digest(a="x = 2"), digest(a="", b="x = 1"), digest(c="")}) == 4


def test_a_rescue_has_the_epochs_of_the_first_training(papers):
    lab = papers["lab"].Lab(papers["settings"].make_setting("seconds", "digits"))
    records = papers["prevention"].compute(lab, "mean", 0)["records"]
    assert {record["phase"]: record["epochs"] for record in records} == {
        "aligned": 2,
        "alignment removed": 4,
        "never aligned": 2,
        "rescued": 2,
        "forced constant": 2,
    }


@pytest.mark.parametrize(("must", "code"), [(True, 1), (False, 0)])
def test_check_fails_for_what_must_show(papers, tmp_path, monkeypatch, must, code):
    main, claim = entry(), papers["tables"].Claim("the moon is green", False, must)
    example = an_experiment(papers, record, lambda records: [claim])
    monkeypatch.setattr(main, "EXPERIMENTS", {"example": example})
    options = ["--data", "digits", "--preset", "seconds", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["papers", "example", *options, "--check"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == code


def of(verdict, **values):
    """A record as `measure` makes it, of one verdict."""
    base = {"data": "digits", "scale": "mean", "epochs": 3, "margin": 0.1}
    return base | {"verdict": verdict} | values


def test_claims_on_prevention_see_each_break_of_the_pattern(papers):
    claims = papers["prevention"].claims
    good = {
        "aligned": "certified",
        "alignment removed": "inconclusive",
        "never aligned": "inconclusive",
        "rescued": "certified",
        "forced constant": "constant",
    }
    records = [of(verdict, phase=phase) for phase, verdict in good.items()]
    assert all(claim.holds for claim in claims(records))
    musts = []
    for i, found in enumerate(records):
        wrong = "inconclusive" if found["verdict"] == "certified" else "certified"
        broken = [*records[:i], found | {"verdict": wrong}, *records[i + 1 :]]
        (failed,) = [claim for claim in claims(broken) if not claim.holds]
        musts.append(failed.must)
        assert "digits, mean" in failed.sentence
    assert musts == [True, False, False, True, True]
    slow = [r | {"epochs": 4} if r["phase"] == "rescued" else r for r in records]
    assert [claim.must for claim in claims(slow) if not claim.holds] == [True]


def test_claims_on_variants_want_vanilla_to_fail_and_the_others_to_pass(papers):
    def judged(vanilla, other):
        records = [
            of(vanilla, variant="vanilla", kl_weight=2.0),
            of(other, variant="RST-alpha-prefit", kl_weight=2.0),
        ]
        return [(c.holds, c.must) for c in papers["variants"].claims(records)]

    assert judged("inconclusive", "certified") == [(True, False), (True, True)]
    assert judged("certified", "inconclusive") == [(False, False), (False, True)]


@pytest.mark.parametrize(
    ("verdict", "sampled", "bound", "state"),
    [
        ("certified", "inconclusive", 0.01, "certified"),
        ("inconclusive", "certified", 3.0, "does not face the witness"),
        ("inconclusive", "inconclusive", 0.01, "collapsed"),
        ("constant", "constant", 0.0, "collapsed"),
        ("inconclusive", "inconclusive", 1.6, "undecided"),
    ],
)
def test_state_of_a_mitigation(papers, verdict, sampled, bound, state):
    found = of(verdict, sampled_verdict=sampled, sampled_bound=bound)
    assert papers["mitigations"].state(found) == state


def test_a_forced_constant_is_constant_and_its_model_is_not(papers):
    lab = papers["lab"].Lab(papers["settings"].make_setting("five-minutes", "digits"))
    rows = lab.rows(0)
    certifier = papers["lab"].certified(lab.vae(rows, "mean", 0), rows)
    forced = papers["prevention"].forced_constant(certifier)
    assert certifier.certify(rows.test).verdict == "certified"
    assert forced.certify(rows.test).verdict == "constant"
    assert np.ptp(forced.transform(rows.test), axis=0).max() == 0


def test_mean_scale_is_the_elbo_with_an_averaged_reconstruction(papers):
    lab = papers["lab"].Lab(papers["settings"].make_setting("seconds", "patches16"))
    rows = lab.rows(0)
    summed, averaged = (lab.vae(rows, scale, 0) for scale in ("sum", "mean"))
    n_features = rows.train.shape[1]
    assert n_features == 768
    assert averaged.kl_weight == n_features * summed.kl_weight
    assert averaged.alignment_weight == n_features * summed.alignment_weight


def test_an_escape_that_stays_above_zero_is_told_from_one_that_falls_back(papers):
    def steps(*margin):
        flat = [1.0] * len(margin)
        curves = {"margin": list(margin), "information": flat, "energy": flat}
        curves |= {
            "escape_gradient": flat,
            "path_energy": [0, 1],
            "path_margin": [0, 1],
        }
        return papers["escape"].record_of(curves)["steps_to_positive"]

    assert steps(-1, 0.1, 0.2, 0.3) == 1
    assert steps(-1, 0.1, -0.2, 0.3) == 3
    assert steps(0.1, 0.1, 0.2, 0.3) == 0
    assert steps(-1, 0.1, 0.2, -0.3) == 4


@pytest.fixture
def mnist_files(tmp_path):
    """A folder with files of MNIST's format, of noise."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 90), ("t10k", 60)):
        pixels = rng.integers(256, size=(n, 28, 28), dtype=np.uint8).tobytes()
        head = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(head + pixels)
        labels = struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(i % 10 for i in range(n))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


def test_the_largest_preset_takes_images_from_files(papers, mnist_files):
    settings = papers["settings"]
    setting = settings.make_setting("large", "mnist")
    network = setting.network | {"max_epochs": 1, "hidden_sizes": (8,), "latent_dim": 4}
    setting = setting._replace(teacher={"n_components": 3}, network=network)
    lab = papers["lab"].Lab(setting, data_dir=str(mnist_files))
    rows = lab.rows(0)
    assert rows.image_shape == (1, 28, 28)
    found = papers["lab"].measure(
        papers["lab"].certified(lab.vae(rows, "sum", 0), rows), rows.test
    )
    assert found["n_components"] == 3
