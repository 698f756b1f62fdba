"""The papers' experiments: kept, resumed, repeated to the bit, and judged."""

import ast
import copy
import gzip
import importlib
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info
from torch.nn.utils import parameters_to_vector

import skvaecert

pytestmark = pytest.mark.slow

PAPERS = Path(__file__).resolve().parents[1] / "examples" / "papers"
BESIDE = [path.stem for path in PAPERS.glob("*.py") if path.stem != "__main__"]
NAMES = sorted(path.stem for path in (PAPERS / "experiments").glob("*.py"))


@pytest.fixture(scope="module")
def papers():
    """The modules beside the entry point and the experiments, by name."""
    before, n_threads = {*sys.modules}, torch.get_num_threads()
    sys.path.insert(0, str(PAPERS))
    try:
        names = [*BESIDE, *(f"experiments.{name}" for name in NAMES)]
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(PAPERS))
        torch.set_num_threads(n_threads)
        for name in {*sys.modules} - before:
            if name.partition(".")[0] in (*BESIDE, "experiments", "shown"):
                del sys.modules[name]


def entry():
    path = PAPERS / "__main__.py"
    spec = importlib.util.spec_from_file_location("papers_entry", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(name, out, *options):
    chosen = "--data", "digits", "--preset", "seconds", "--out", str(out)
    return [str(PAPERS), name, *chosen, *map(str, options)]


def run(main, *options):
    """Run the command within this process and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments(*options))
        with pytest.raises(SystemExit) as stop:
            main.main()
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
def clean(papers, tmp_path_factory):
    """A whole run of all experiments."""
    folder = tmp_path_factory.mktemp("clean")
    assert run(entry(), "all", folder) == 0
    return folder


@pytest.fixture
def seconds(papers):
    return papers["settings"].make_setting("seconds", "digits")


def test_all_experiments_are_in_the_command_and_can_be_shown(papers):
    assert sorted(entry().EXPERIMENTS) == NAMES
    assert NAMES == sorted(path.stem for path in (PAPERS / "shown").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_writes_table_records_claims_picture_and_what_it_ran_on(
    papers, clean, seconds, name
):
    folder, experiment = clean / "seconds", entry().EXPERIMENTS[name]
    assert n_kept(clean, name) == len(experiment.cells(seconds))
    lines = papers["cells"].Store(folder / "records" / f"{name}-digits.jsonl").lines()
    n_records = sum(len(line["result"]["records"]) for line in lines)
    with (folder / f"{name}.csv").open() as file:
        assert sum(1 for _ in file) == 1 + n_records
    claims = json.loads((folder / f"{name}.json").read_text())["claims"]
    text = (folder / f"{name}.md").read_text()
    assert text.startswith(f"## {experiment.title}\n")
    assert claims
    assert all(claim["sentence"] in text for claim in claims)
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((folder / f"{name}.run.json").read_text())
    assert {"command", "date", "seconds", "machine"} < {*told}
    assert {"torch", "sklearn", "numpy", "skvaecert"} < {*told["versions"]}


def test_a_run_of_two_processes_that_was_killed_goes_on_and_it_does_not_show(
    papers, clean, tmp_path
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
    store = papers["cells"].Store(tmp_path / "seconds" / "records" / name)
    assert 3 <= len(store.results()) < 12
    assert run(entry(), "variants", tmp_path) == 0
    assert kept(tmp_path)[name].startswith(killed)
    assert len(store.results()) == len(store.lines()) == 12
    assert outputs(tmp_path) == outputs(clean, "variants")


def test_a_finished_run_computes_nothing_again(papers, clean, monkeypatch):
    before, written = outputs(clean), kept(clean)
    monkeypatch.setattr(papers["cells"], "finish", None)
    assert run(entry(), "all", clean) == 0
    assert kept(clean) == written
    assert outputs(clean) == before


def test_a_cell_gives_the_same_alone_and_without_memory(papers, clean, seconds):
    cells = papers["cells"]
    experiment = entry().EXPERIMENTS["variants"]
    cell = cells.Cell(experiment, seconds, experiment.cells(seconds)[-1])
    store = cells.Store(clean / "seconds" / "records" / "variants-digits.jsonl")
    _, result, _ = cells.finish(cell, {})
    assert result == store.results()[cells.key(cell.name)]


def test_data_that_do_not_ship_need_a_folder(papers, tmp_path, capsys):
    assert run(entry(), "variants", tmp_path, "--data", "mnist") == 2
    assert "--data-dir is needed for mnist" in capsys.readouterr().err


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
    results, (failure,) = papers["cells"].run(example, [seconds], tmp_path)
    assert [r["records"][0]["seed"] for r in results] == [0, 2]
    assert message in failure
    assert "'seed': 1" in failure


def test_a_cell_has_one_thread_of_each_library(papers, seconds, tmp_path):
    def compute(lab, seed):
        libraries = [library["num_threads"] for library in threadpool_info()]
        return record(lab, seed) | {"curves": [torch.get_num_threads(), *libraries]}

    torch.set_num_threads(2)
    (result, *_), _ = papers["cells"].run(
        an_experiment(papers, compute), [seconds], tmp_path
    )
    assert {*result["curves"]} == {1}


def test_ctrl_c_within_a_training_keeps_no_part_of_it(papers, tmp_path, monkeypatch):
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
    main = entry()
    monkeypatch.setattr(main, "EXPERIMENTS", {"example": example})
    assert "go on with the same command" in run(main, "example", tmp_path)
    ((name, interrupted),) = kept(tmp_path).items()
    assert interrupted.count(b"\n") == 1
    goes_on = True
    assert run(main, "example", tmp_path) == 0
    assert kept(tmp_path)[name].startswith(interrupted)
    lines = (tmp_path / "seconds" / "example.csv").read_text().splitlines()
    assert lines == ["data,seed,epochs", *(f"digits,{seed},2" for seed in range(3))]


@pytest.mark.parametrize(("must", "code"), [(True, 1), (False, 0)])
def test_check_fails_for_what_must_show(papers, tmp_path, monkeypatch, must, code):
    main, claim = entry(), papers["tables"].Claim("the moon is green", False, must)
    example = an_experiment(papers, record, lambda records: [claim])
    monkeypatch.setattr(main, "EXPERIMENTS", {"example": example})
    assert run(main, "example", tmp_path, "--check") == code


@pytest.fixture
def store(papers, tmp_path):
    return papers["cells"].Store(tmp_path / "records" / "some.jsonl")


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
    cells = papers["cells"]
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
    cells, example = papers["cells"], an_experiment(papers, record)
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
        return papers["cells"].digest_of([path])

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Discs.", "Circles, and more."),
        ("an area.", "an area.\n\n    More of it."),
        ("A disc.", "A disc: round."),
        ("    # Of a disc.\n", ""),
        ("\n\n\n", "\n\n"),
        ("scale * math.pi", "(scale * math.pi)"),
    ],
)
def test_the_digest_of_code_does_not_see_what_does_nothing(digest, old, new):
    assert CODE.replace(old, new) != CODE
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import math", "import cmath as math"),
        ('"disc"', '"disk"'),
        ("NAME", "LABEL"),
        ("scale=1", "scale=2"),
        ("radius, scale", "radius, *, scale"),
        ("radius > 0", "radius >= 0"),
        ("math.pi", "math.e"),
        ("radius**2", "radius**3"),
        ("return scale", "yield scale"),
        ("def area", "async def area"),
        ("def area", "@print\ndef area"),
        ("class Disc:", "class Disc(dict):"),
        ("sides = 0", "sides = 1"),
        ("sides = 0", "sides = 0.0"),
    ],
)
def test_the_digest_of_code_sees_every_change(digest, old, new):
    assert CODE.replace(old, new) != CODE
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_the_digest_of_code_sees_names_and_places(papers, digest, tmp_path):
    assert digest(CODE, "b") != digest(CODE, "a")
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(f"{path.stem} = 1")
    digest_of = papers["cells"].digest_of
    assert digest_of(paths) != digest_of(paths[::-1])
    assert digest_of(paths) != digest_of(paths[:1])


@pytest.mark.parametrize("name", NAMES)
def test_the_digest_is_of_all_that_computes(papers, monkeypatch, name):
    monkeypatch.setattr(papers["cells"], "digest_of", lambda paths: {*paths})
    package = {*Path(skvaecert.__file__).parent.rglob("*.py")}
    own = PAPERS / "experiments" / f"{name}.py"
    found = entry().EXPERIMENTS[name].code
    assert found == package | {PAPERS / "readers.py", PAPERS / "lab.py", own}


def imported(path):
    """Return which modules beside the entry point a file imports."""
    nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names} & {
        *BESIDE,
        "experiments",
        "shown",
    }


def test_what_computes_imports_nothing_that_has_no_part_in_the_digest():
    for name in NAMES:
        assert imported(PAPERS / "experiments" / f"{name}.py") <= {"lab"}, name
        assert "experiments" in imported(PAPERS / "shown" / f"{name}.py")
    # Of settings a name alone; their values are in the name of a cell.
    assert imported(PAPERS / "lab.py") == {"readers", "settings"}
    assert imported(PAPERS / "readers.py") == set()


def a_lab(papers, setting, **changes):
    return papers["lab"].Lab(setting._replace(**changes))


def test_a_kl_weight_is_a_number_or_a_multiple_of_the_threshold(papers, seconds):
    lab = a_lab(papers, seconds)
    samples = lab.samples(0)
    eigenvalues = np.linalg.eigvalsh(np.cov(samples.train, rowvar=False))
    threshold = 64 * eigenvalues[-1] / eigenvalues.sum()
    assert lab.threshold(samples) == pytest.approx(threshold, rel=1e-4)
    for told, weight in (("2", 2), ("0.3 β*", 0.3 * threshold)):
        vae = lab.vae(samples, told, 0)
        assert vae.kl_weight == pytest.approx(weight, rel=1e-4)
        assert vae.alignment_weight == 10 * vae.kl_weight
        assert lab.vae(samples, told, 0, aligned=False).alignment_weight == 0


def weights(vae):
    return parameters_to_vector(vae.net_.module_.parameters()).detach().numpy()


def test_fixed_settings_vary_the_teacher_alone(papers, seconds):
    # Of so few samples no teacher is stable.
    teacher = {"n_components": 3, "min_agreement": 0.0}

    def fits(fixed, aligned):
        lab = a_lab(papers, seconds, fixed=fixed, teacher=teacher)
        samples = [lab.samples(seed) for seed in (0, 1)]
        vaes = [
            lab.vae(some, "1", seed, aligned=aligned).fit(some.train)
            for seed, some in enumerate(samples)
        ]
        proba = [vae.teacher_.predict_proba(samples[0].test) for vae in vaes]
        found = [some.train for some in samples], proba, map(weights, vaes)
        return [bool(np.array_equal(*pair)) for pair in found]

    # Samples, teachers and trained weights: the teacher has no part without alignment.
    assert fits(fixed=True, aligned=False) == [True, False, True]
    assert fits(fixed=True, aligned=True) == [True, False, False]
    assert fits(fixed=False, aligned=False) == [False, False, False]


def test_the_settings_that_vary_the_teacher_alone(papers):
    settings = papers["settings"]
    fixed = [
        (preset, data)
        for preset in settings.PRESETS
        for data in (*settings.SHIPPED, *settings.OFFICIAL)
        if settings.make_setting(preset, data).fixed
    ]
    assert fixed == [("papers", "tiny-imagenet")]


def test_removal_and_rescue_go_on_from_the_fits_before_them(papers, seconds):
    lab = a_lab(papers, seconds)
    samples = lab.samples(0)
    found = papers["experiments.prevention"].compute(lab, "1", 0)
    records = {record["phase"]: record for record in found["records"]}
    assert [*records] == [*papers["experiments.prevention"].PHASES]
    assert [record["epochs"] for record in records.values()] == [2, 4, 2, 2, 2]
    phases = ("aligned", "alignment removed"), ("never aligned", "rescued")
    for (before, after), curve in zip(phases, found["curves"], strict=True):
        vae = lab.vae(samples, "1", 0, aligned=before == "aligned").fit(samples.train)
        assert vae.score(samples.test) == records[before]["elbo"]
        n_epochs, weight = (4, 0.0) if before == "aligned" else (2, 10.0)
        vae.set_params(
            warm_start=True, alignment_weight=weight, max_epochs=n_epochs
        ).fit(samples.train)
        assert vae.score(samples.test) == records[after]["elbo"]
        assert len(curve) == 2 + n_epochs
    assert len({record["elbo"] for record in records.values()}) == 5


@pytest.mark.parametrize("network", [{}, {"encoder": "conv", "decoder": "conv"}])
def test_a_forced_constant_is_constant_and_its_model_is_not(papers, network):
    setting = papers["settings"].make_setting("five-minutes", "digits")
    lab = a_lab(papers, setting, network=setting.network | network)
    samples = lab.samples(0)
    certifier = papers["lab"].certified(lab.vae(samples, "1", 0), samples)
    forced = papers["experiments.prevention"].forced_constant(certifier)
    for values in forced.estimator_.encode(samples.test):
        assert np.ptp(values, axis=0).max() == 0
    measure = papers["lab"].measure
    aligned, constant = (measure(some, samples.test) for some in (certifier, forced))
    assert (constant["verdict"], constant["state"]) == ("constant", "collapsed")
    assert 0 <= constant["low"] <= constant["high"] < 0.01
    assert (aligned["verdict"], aligned["state"]) == ("certified", "informative")
    assert 1 < aligned["low"] <= aligned["estimate"] <= aligned["high"] < np.log(400)
    assert aligned == measure(certifier, samples.test)
    mean, std = map(np.float64, certifier.estimator_.encode(samples.test))
    kl = (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(axis=1).mean() / 2
    assert aligned["kl"] == pytest.approx(kl, rel=1e-4)


def test_the_unexplained_share_is_one_for_the_mean_and_zero_for_the_samples(papers):
    samples = np.random.default_rng(0).uniform(size=(50, 3))
    unexplained = papers["lab"].unexplained
    assert unexplained(samples, samples) == 0
    assert unexplained(samples, samples.mean(axis=0)) == pytest.approx(1)


def test_a_probe_learns_from_the_first_of_each_class_alone(papers, seconds):
    samples, probe = a_lab(papers, seconds).samples(0), papers["lab"].probe
    one_hot, tested = np.eye(10)[samples.labels], np.eye(10)[samples.test_labels]
    assert probe(one_hot, samples, tested, 2) == probe(one_hot, samples, tested) == 1
    later = np.ones(len(one_hot), bool)
    for digit in range(10):
        later[np.flatnonzero(samples.labels == digit)[:2]] = False
    wrong = np.where(later[:, None], np.roll(one_hot, 1, axis=1), one_hot)
    assert probe(wrong, samples, tested, 2) == 1
    assert probe(wrong, samples, tested) < 0.1
    constant = np.zeros((100, 1)), samples, np.zeros((60, 1))
    assert probe(*constant) <= np.bincount(samples.test_labels).max() / 60


def of(verdict, **values):
    """A record as `measure` makes it, of one verdict."""
    base = {"data": "digits", "kl_weight": "1", "state": "informative"}
    base |= {"epochs": 3, "margin": 0.1, "beta": 1.0}
    return base | {"verdict": verdict} | values


def test_claims_on_prevention_see_each_break_of_the_pattern(papers):
    claims = entry().EXPERIMENTS["prevention"].claims
    good = {
        "aligned": "certified",
        "alignment removed": "varies",
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
        assert "digits" in failed.sentence
    assert musts == [True, False, False, True, True]


def test_claims_on_prevention_see_a_code_that_did_not_collapse_or_did(papers):
    claims, collapse = entry().EXPERIMENTS["prevention"].claims, "1.5 β*"

    def failed(phase, kl_weight, state):
        told = {"phase": phase, "kl_weight": kl_weight, "state": state}
        verdict = "certified" if phase in ("aligned", "rescued") else "varies"
        return [c.sentence for c in claims([of(verdict, **told)]) if not c.holds]

    assert failed("never aligned", "1", "informative") == []
    assert failed("never aligned", collapse, "collapsed") == []
    (sentence,) = failed("alignment removed", collapse, "informative")
    assert "drawn codes collapse: 0 of 1" in sentence
    (sentence,) = failed("rescued", collapse, "ignored")
    assert "drawn codes are informative: 0 of 1" in sentence


def test_claims_on_variants_want_vanilla_to_fail_and_the_others_to_pass(papers):
    claims = entry().EXPERIMENTS["variants"].claims

    def failed(vanilla, other):
        records = [
            of(vanilla, variant="vanilla", state="collapsed"),
            of(other, variant="RST"),
        ]
        return [claim.must for claim in claims(records) if not claim.holds]

    assert failed("inconclusive", "certified") == []
    assert failed("certified", "certified") == [False]
    assert failed("inconclusive", "inconclusive") == [True]


def test_claims_on_escape_see_a_high_start_a_low_end_and_a_lost_gradient(papers):
    def judged(**values):
        path = {"start": -0.01, "end": 0.8, "escape_gradient_least": 0.1}
        claims = entry().EXPERIMENTS["escape"].claims([of("", **path | values)])
        return [claim.holds for claim in claims if claim.must]

    assert judged() == [True, True]
    assert judged(start=0.1) == judged(end=0.1) == [False, True]
    assert judged(escape_gradient_least=0.0) == [True, False]


def test_columns_count_verdicts_and_hold_the_bracket_of_every_seed(papers):
    tables = papers["tables"]
    records = [of(v) for v in ("constant", "varies", "varies")]
    assert tables.counts("verdict")(records) == "2 varies, 1 constant"
    # Rounded outwards.
    records = [{"low": 1.1, "high": 1.2001}, {"low": 0.9999, "high": 1.05}]
    assert tables.bracket(records) == "0.99 to 1.21"
    assert tables.bracket([{"low": 0.0, "high": 0.0}]) == "0.00 to 0.00"


def test_an_escape_that_stays_above_zero_is_told_from_one_that_falls_back(papers):
    def steps(*margin):
        flat = [1.0] * len(margin)
        curves = {"margin": list(margin), "information": flat, "energy": flat}
        curves |= {
            "escape_gradient": flat,
            "path_energy": [0, 1],
            "path_margin": [0, 1],
        }
        return papers["experiments.escape"].record_of(curves)["steps_to_positive"]

    assert steps(-1, 0.1, 0.2, 0.3) == 1
    assert steps(-1, 0.1, -0.2, 0.3) == 3
    assert steps(0.1, 0.1, 0.2, 0.3) == 0
    assert steps(-1, 0.1, 0.2, -0.3) == 4


def write_mnist(folder, end=""):
    """Write files of MNIST's format, of noise; return images and labels for tests."""
    rng, opened = np.random.default_rng(0), gzip.open if end else open
    for name, n in (("train", 90), ("t10k", 60)):
        images = rng.integers(256, size=(n, 784), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        head = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        with opened(folder / f"{name}-images-idx3-ubyte{end}", "wb") as file:
            file.write(head + images.tobytes())
        head = struct.pack(">4BI", 0, 0, 8, 1, n)
        with opened(folder / f"{name}-labels-idx1-ubyte{end}", "wb") as file:
            file.write(head + labels.tobytes())
    return images, labels


def write_mnist_gz(folder):
    return write_mnist(folder, ".gz")


def write_cifar(folder, names, *n_classes):
    """Write files of CIFAR's binary version; return those of the last one."""
    rng = np.random.default_rng(0)
    for name in names:
        images = rng.integers(256, size=(7, 3072), dtype=np.uint8)
        labels = [rng.integers(n, size=(7, 1), dtype=np.uint8) for n in n_classes]
        (folder / name).write_bytes(np.hstack([*labels, images]).tobytes())
    return images, labels[-1].ravel()


def write_cifar10(folder):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return write_cifar(folder, [*names, "test_batch.bin"], 10)


def write_cifar100(folder):
    return write_cifar(folder, ["train.bin", "test.bin"], 20, 100)


def jpeg(mode, color, side=64, form="JPEG"):
    file = io.BytesIO()
    Image.new(mode, (side, side), color).save(file, form)
    return file.getvalue()


def write_tiny_imagenet(folder):
    """Write one red or grey image for each of 200 classes, and three to test on."""
    wnids = [f"n{i:08d}" for i in range(200, 0, -1)]
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    both = jpeg("RGB", (200, 10, 20)), jpeg("L", 90)
    for i, wnid in enumerate(wnids):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        path = folder / "train" / wnid / "images" / f"{wnid}_0.JPEG"
        path.write_bytes(both[i % 2])
    (folder / "val" / "images").mkdir(parents=True)
    labels, lines = [150, 3, 150], []
    for i, label in enumerate(labels):
        (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(both[i % 2])
        lines.append(f"val_{i}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    pixels = np.repeat([[200, 10, 20], [90, 90, 90]], 64 * 64, axis=1)
    return pixels[[0, 1, 0]], labels


FORMATS = {
    "mnist": (write_mnist, (1, 28, 28), 90),
    "mnist.gz": (write_mnist_gz, (1, 28, 28), 90),
    "cifar10": (write_cifar10, (3, 32, 32), 35),
    "cifar100": (write_cifar100, (3, 32, 32), 7),
    "tiny-imagenet": (write_tiny_imagenet, (3, 64, 64), 200),
}


@pytest.fixture
def read(papers):
    """Read files by the name of their format."""
    readers = papers["lab"].READERS
    return lambda name, *args: readers[name.removesuffix(".gz")][0](*args)


@pytest.mark.parametrize("name", FORMATS)
def test_official_files_are_read(read, tmp_path, name):
    write, image_shape, n_train = FORMATS[name]
    images, labels = write(tmp_path)
    train, test = (read(name, tmp_path, subset) for subset in ("train", "test"))
    assert train.image_shape == test.image_shape == image_shape
    assert len(train.data) == len(train.target) == n_train
    assert train.data.shape == (n_train, np.prod(image_shape))
    assert test.data[:].dtype == np.uint8
    assert test.target.dtype == np.int64
    np.testing.assert_array_equal(test.target, labels)
    # JPEG may lose two of 255.
    lost = 2 if name == "tiny-imagenet" else 0
    np.testing.assert_allclose(test.data[:].astype(int), images, rtol=0, atol=lost)


def test_files_of_cifar10_are_joined_in_order(read, tmp_path):
    write_cifar10(tmp_path)
    train = read("cifar10", tmp_path)
    third = np.fromfile(tmp_path / "data_batch_3.bin", np.uint8).reshape(7, 3073)
    np.testing.assert_array_equal(train.target[14:21], third[:, 0])
    np.testing.assert_array_equal(train.data[14:21], third[:, 1:])


def test_classes_of_tiny_imagenet_are_in_the_order_of_the_list(read, tmp_path):
    write_tiny_imagenet(tmp_path)
    train = read("tiny-imagenet", tmp_path)
    np.testing.assert_array_equal(train.target, np.arange(200))
    np.testing.assert_allclose(train.data[1], 90, atol=2)


def cut(n):
    return lambda contents: contents[:-n]


def at(place, byte):
    return lambda contents: contents[:place] + bytes([byte]) + contents[place + 1 :]


def flip(place):
    return lambda contents: at(place, contents[place] ^ 255)(contents)


def instead(*args):
    return lambda contents: jpeg(*args)


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("mnist", "train-images-idx3-ubyte", cut(1), "must be an IDX file"),
        ("mnist", "train-images-idx3-ubyte", cut(784), "00000059 .*0000005a"),
        ("mnist", "train-images-idx3-ubyte", cut(90 * 784 + 3), "must be an IDX file"),
        ("mnist", "train-images-idx3-ubyte", at(2, 9), "must be .*, got 00000903"),
        ("mnist", "train-images-idx3-ubyte", at(11, 27), "shape .'n', 28, 28"),
        ("mnist", "train-labels-idx1-ubyte", at(3, 3), "must be an IDX file"),
        ("mnist", "train-labels-idx1-ubyte", lambda contents: b"", "is empty"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", cut(9), "damaged"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", at(0, 0), "damaged"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", flip(500), "damaged"),
        ("cifar10", "data_batch_3.bin", cut(1), "a multiple of 3073 bytes, got 21510"),
        ("cifar10", "data_batch_3.bin", at(3073, 10), r"below \[10\], got .* \[10\]"),
        ("cifar100", "train.bin", cut(3073), "a multiple of 3074 bytes"),
        ("cifar100", "train.bin", at(0, 20), r"labels below \[20, 100\], got"),
        ("cifar100", "train.bin", lambda contents: b"", "is empty"),
        ("tiny-imagenet", "wnids.txt", cut(10), "200 different WordNet ids, got 199"),
        ("tiny-imagenet", "wnids.txt", cut(3), "none in n000000/images"),
        ("tiny-imagenet", "val/val_annotations.txt", cut(30), "must list the images"),
        ("tiny-imagenet", "val/val_annotations.txt", cut(50), "must list the images"),
        ("tiny-imagenet", "val/images/val_1.JPEG", cut(99), "must be a whole JPEG"),
        ("tiny-imagenet", "val/images/val_1.JPEG", instead("L", 9, 32), r"\(32, 32\)"),
        ("tiny-imagenet", "val/images/val_1.JPEG", instead("L", 9, 64, "PNG"), "JPEG"),
    ],
)
def test_damaged_files_are_refused(read, tmp_path, name, file, damage, message):
    FORMATS[name][0](tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    subset = "test" if file.startswith("val") else "train"
    with pytest.raises(ValueError, match=message) as caught:
        read(name, tmp_path, subset).data[:]
    # Where the list of classes is cut, images of one are missing.
    named = tmp_path / "train" if "none in" in message else path
    assert str(named) in str(caught.value)


def test_images_and_labels_of_mnist_belong_together(read, tmp_path):
    write_mnist(tmp_path)
    name = "{}-labels-idx1-ubyte".format
    (tmp_path / name("t10k")).rename(tmp_path / name("train"))
    with pytest.raises(ValueError, match="got 90 images and 60 labels"):
        read("mnist", tmp_path)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar10-conv"])
def test_samples_to_train_on_to_tune_on_and_to_test_on_are_others(
    papers, tmp_path, name
):
    folder = papers["lab"].READERS.get(name.removesuffix("-conv"), ("", ""))[1]
    if folder:
        (tmp_path / folder).mkdir()
        FORMATS[name.removesuffix("-conv")][0](tmp_path / folder)
    load = papers["lab"].load_samples
    samples = load(name, 20, 7, 0, str(tmp_path))
    parts = [samples.train, samples.valid, samples.test]
    assert [*map(len, parts)] == [20, 7, 7]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 34
    assert samples.train.dtype == np.float32
    assert 0 <= samples.train.min() < samples.train.max() <= 1
    # The same again; fewer are the first of more; another seed has others.
    load.cache_clear()
    for again in (load(name, 20, 7, 0, str(tmp_path)), samples):
        np.testing.assert_array_equal(again.train, samples.train)
    fewer = load(name, 9, 7, 0, str(tmp_path))
    np.testing.assert_array_equal(fewer.train, samples.train[:9])
    np.testing.assert_array_equal(fewer.labels, samples.labels[:9])
    np.testing.assert_array_equal(fewer.test, samples.test)
    other = load(name, 20, 7, 1, str(tmp_path))
    assert not np.array_equal(other.train, samples.train)


def test_drawn_samples_have_their_own_labels(papers, tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    samples = papers["lab"].load_samples("mnist", 50, 30, 0, str(tmp_path))
    for subset, drawn, labels in (
        ("train", samples.train, samples.labels),
        ("test", samples.test, samples.test_labels),
    ):
        images = papers["lab"].READERS["mnist"][0](tmp_path / "mnist", subset)
        place = {image.tobytes(): i for i, image in enumerate(images.data)}
        pixels = np.rint(255 * drawn).astype(np.uint8)
        places = [place[image.tobytes()] for image in pixels]
        np.testing.assert_array_equal(labels, images.target[places])


def test_the_largest_preset_takes_images_from_files(papers, tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    setting = papers["settings"].make_setting("papers", "mnist")
    network = setting.network | {"max_epochs": 1, "hidden_sizes": (8,), "latent_dim": 4}
    # Of noise there are no clusters to agree on.
    teacher = {"n_components": 3, "min_agreement": 0.0}
    setting = setting._replace(teacher=teacher, network=network)
    lab = papers["lab"].Lab(setting, data_dir=str(tmp_path))
    samples = lab.samples(0)
    assert samples.image_shape == (1, 28, 28)
    certifier = papers["lab"].certified(lab.vae(samples, "1", 0), samples)
    assert papers["lab"].measure(certifier, samples.test)["n_components"] == 3
