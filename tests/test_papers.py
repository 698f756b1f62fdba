"""The papers' experiments: kept, resumed, repeated to the bit, and judged."""

import copy
import functools
import gzip
import importlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skorch.callbacks import Callback

pytestmark = pytest.mark.slow

PAPERS = Path(__file__).parents[1] / "examples" / "papers"
NAMES = [path.stem for path in PAPERS.glob("*.py") if path.stem != "__main__"]
# The forecast runs as a whole, as the command.
EXPERIMENTS = [
    "prevention",
    "targets",
    "variants",
    "stress",
    "escape",
    "mitigations",
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


def outputs(folder):
    """What a run has written that must not differ, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("csv", "json", "md", "png")
        for path in folder.rglob(f"*.{kind}")
        if "teachers" not in path.parts and not path.name.endswith(".run.json")
    }


@pytest.fixture(scope="module")
def clean(papers, tmp_path_factory):
    """A whole run of the forecast."""
    folder = tmp_path_factory.mktemp("clean")
    assert run(entry(), "forecast", folder) == 0
    return folder


def test_a_run_writes_table_records_claims_picture_and_what_it_ran_on(clean):
    folder = clean / "seconds"
    assert "## Forecast against outcome" in (folder / "forecast.md").read_text()
    assert len((folder / "forecast.csv").read_text().splitlines()) == 1 + 14
    assert (folder / "forecast.png").read_bytes().startswith(b"\x89PNG")
    told = (folder / "forecast.run.json").read_text()
    for key in ("command", "date", "seconds", "machine", "torch", "sklearn"):
        assert f'"{key}"' in told


def kept(folder, name="forecast"):
    """The finished cells and when they were written."""
    cells = (folder / "seconds" / name).glob("*.json")
    return {path: path.stat().st_mtime_ns for path in cells}


def test_a_killed_run_goes_on_and_two_processes_do_not_show(clean, tmp_path):
    process = subprocess.Popen(
        [sys.executable, *arguments("forecast", tmp_path)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 60
    while len(kept(tmp_path)) < 3:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = kept(tmp_path)
    assert 3 <= len(killed) < 14
    command = [sys.executable, *arguments("forecast", tmp_path, "--n-jobs", 2)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert killed.items() <= kept(tmp_path).items()
    assert outputs(tmp_path) == outputs(clean)


def test_a_finished_run_computes_nothing_again(clean):
    before, written = outputs(clean), kept(clean)
    assert len(written) == 14
    assert run(entry(), "forecast", clean) == 0
    assert kept(clean) == written
    assert outputs(clean) == before


def test_data_that_do_not_ship_need_a_folder(papers, tmp_path, capsys):
    assert run(entry(), "forecast", tmp_path, "--data", "mnist") == 2
    assert "--data-dir is needed for mnist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def results(papers, tmp_path_factory):
    """Up to four cells of each experiment, which share their teachers."""
    memory = str(tmp_path_factory.mktemp("teachers"))
    setting = papers["settings"].make_setting("seconds", "digits")

    @functools.cache
    def of(name):
        chosen = entry().EXPERIMENTS[name]
        # Of mitigations and stress a few: they differ in what is told of one fit.
        some = chosen._replace(cells=lambda setting: chosen.cells(setting)[:4])
        store = papers["cells"].Store(tmp_path_factory.mktemp(name))
        found, failures = papers["cells"].run(some, [setting], store, memory=memory)
        assert not failures
        assert len(found) == min(4, len(chosen.cells(setting)))
        return some, found

    return of


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(papers, results, name, tmp_path):
    experiment, found = results(name)
    claims, text = papers["tables"].write(tmp_path, experiment, found)
    assert claims
    assert all(claim.sentence in text for claim in claims)
    assert (tmp_path / f"{name}.png").exists()


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


def test_ctrl_c_within_a_training_keeps_no_part_of_it(papers, tmp_path, monkeypatch):
    class CtrlC(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                signal.raise_signal(signal.SIGINT)

    def compute(lab, seed):
        samples = lab.samples(seed)
        callbacks = [CtrlC()] if seed == 1 and not goes_on else []
        vae = lab.vae(samples, "mean", seed, callbacks=callbacks).fit(samples.train)
        record = {"data": "digits", "seed": seed, "epochs": vae.n_iter_}
        return {"records": [record]}

    goes_on = False
    example = an_experiment(papers, compute)
    main = entry()
    monkeypatch.setattr(main, "EXPERIMENTS", {"example": example})
    assert "go on with the same command" in run(main, "example", tmp_path)
    interrupted = kept(tmp_path, "example")
    assert len(interrupted) == 1
    goes_on = True
    assert run(main, "example", tmp_path) == 0
    assert interrupted.items() < kept(tmp_path, "example").items()
    lines = (tmp_path / "seconds" / "example.csv").read_text().splitlines()
    assert lines == ["data,seed,epochs", *(f"digits,{seed},2" for seed in range(3))]


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
    (tmp_path / "inner").mkdir()

    def digest(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return papers["cells"].digest_of(tmp_path)

    first = digest(a="x = 1", b="")
    assert digest(a="x = 1", b="") == first
    assert len({first, digest(a="x = 2"), digest(a="", b="x = 1"), digest(c="")}) == 4
    before = digest()
    assert digest(**{"inner/a": "x = 1"}) != before


def test_a_rescue_has_the_epochs_of_the_first_training(results):
    records = results("prevention")[1][0]["records"]
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
    assert run(main, "example", tmp_path, "--check") == code


def of(verdict, **values):
    """A record as `measure` makes it, of one verdict."""
    base = {"data": "digits", "scale": "mean", "epochs": 3, "margin": 0.1}
    return base | {"verdict": verdict} | values


def test_claims_on_prevention_see_each_break_of_the_pattern(papers):
    claims = papers["prevention"].claims
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
        assert "digits, mean" in failed.sentence
    assert musts == [True, False, False, True, True]


def test_claims_on_variants_want_vanilla_to_fail_and_the_others_to_pass(papers):
    def judged(vanilla, other):
        records = [
            of(vanilla, variant="vanilla", kl_weight=2.0),
            of(other, variant="RST-alpha-prefit", kl_weight=2.0),
        ]
        return [(c.holds, c.must) for c in papers["variants"].claims(records)]

    assert judged("inconclusive", "certified") == [(True, False), (True, True)]
    assert judged("certified", "inconclusive") == [(False, False), (False, True)]


def test_columns_count_verdicts_and_hold_the_bracket_of_every_seed(papers):
    tables = papers["tables"]
    records = [of(v) for v in ("constant", "varies", "varies")]
    assert tables.counts("verdict")(records) == "2 varies, 1 constant"
    # Rounded outwards.
    records = [{"low": 1.1, "high": 1.2001}, {"low": 0.9999, "high": 1.05}]
    assert tables.bracket(records) == "0.99 to 1.21"
    assert tables.bracket([{"low": 0.0, "high": 0.0}]) == "0.00 to 0.00"


def test_a_forced_constant_is_constant_and_its_model_is_not(papers):
    lab = papers["lab"].Lab(papers["settings"].make_setting("five-minutes", "digits"))
    samples = lab.samples(0)
    certifier = papers["lab"].certified(lab.vae(samples, "mean", 0), samples)
    forced = papers["prevention"].forced_constant(certifier)
    measure = papers["lab"].measure
    aligned, constant = (measure(some, samples.test) for some in (certifier, forced))
    assert (aligned["verdict"], aligned["state"]) == ("certified", "informative")
    assert 1 < aligned["low"] <= aligned["estimate"] <= aligned["high"]
    assert (constant["verdict"], constant["state"]) == ("constant", "collapsed")
    assert 0 <= constant["low"] <= constant["high"] < 0.01
    assert np.ptp(forced.transform(samples.test), axis=0).max() == 0


def test_mean_scale_is_the_elbo_with_an_averaged_reconstruction(papers):
    lab = papers["lab"].Lab(papers["settings"].make_setting("seconds", "patches16"))
    samples = lab.samples(0)
    summed, averaged = (lab.vae(samples, scale, 0) for scale in ("sum", "mean"))
    n_features = samples.train.shape[1]
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
    readers = papers["settings"].READERS
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


def test_the_largest_preset_takes_images_from_files(papers, tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    settings = papers["settings"]
    setting = settings.make_setting("large", "mnist")
    network = setting.network | {"max_epochs": 1, "hidden_sizes": (8,), "latent_dim": 4}
    # Of noise there are no clusters to agree on.
    teacher = {"n_components": 3, "min_agreement": 0.0}
    setting = setting._replace(teacher=teacher, network=network)
    lab = papers["lab"].Lab(setting, data_dir=str(tmp_path))
    samples = lab.samples(0)
    assert samples.image_shape == (1, 28, 28)
    found = papers["lab"].measure(
        papers["lab"].certified(lab.vae(samples, "sum", 0), samples), samples.test
    )
    assert found["n_components"] == 3
