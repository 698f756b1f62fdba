import json
import pickle
import resource
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import dask.array
import numpy as np
import pandas as pd
import polars
import pytest
import torch
import zarr
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import EpochScoring
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, baselines
from skvaecert._archive import MEMBERS, Archive, read_archive, write_archive
from skvaecert._samples import digest_samples
from skvaecert.exceptions import InvalidFileError, NotSavedWarning
from skvaecert.persistence import export_onnx, load, save, verify

# Made by `python tests/test_persistence.py`, once for each schema.
OLD_FILE = Path(__file__).parent / "data" / "schema_1.skvaecert"


def tiny(**params):
    teacher = GMMTeacher(n_components=3, covariance_type="full", pca_components=3)
    defaults = {
        "teacher": teacher,
        "latent_dim": 2,
        "hidden_sizes": (4,),
        "max_epochs": 2,
        "device": "cpu",
        "random_state": 0,
    }
    return CertifiedVAE(**defaults | params)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 5)) * 4
    return centres[rng.integers(3, size=90)] + rng.normal(size=(90, 5))


@pytest.fixture(scope="module")
def certifier(rows):
    return CollapseCertifier(tiny(max_epochs=30, learning_rate=1e-2)).fit(rows[:60])


@pytest.fixture
def path(tmp_path, certifier):
    save(certifier, tmp_path / "certifier.skvaecert")
    return tmp_path / "certifier.skvaecert"


def saved_and_loaded(estimator, tmp_path, **kwargs):
    save(estimator, tmp_path / "file")
    return load(tmp_path / "file", **kwargs)


def edited(path, change, member="config.json"):
    """Change a JSON document of a file as an attacker would."""
    archive = read_archive(path)
    documents = dict(zip(MEMBERS, archive[:2], strict=False))
    change(documents[member])
    write_archive(path, Archive(*documents.values(), archive.arrays))


def with_array(path, name, value):
    archive = read_archive(path)
    (key,) = [key for key in archive.arrays if key.endswith(name)]
    write_archive(path, archive._replace(arrays=archive.arrays | {key: value}))


@pytest.mark.parametrize("witness", ["raw", "procrustes", "linear"])
def test_a_certifier_gives_the_same_numbers_after_load(rows, tmp_path, witness):
    guarded = tiny(alignment_weight="auto", validation_fraction=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = CollapseCertifier(guarded, witness=witness).fit(rows[:60])
        loaded = saved_and_loaded(fitted, tmp_path)
        assert str(loaded.certificate_) == str(fitted.certificate_)
        assert loaded.estimator_.history_ == fitted.estimator_.history_
        assert loaded.teacher_ is loaded.estimator_.teacher_
        for kind in ("mean", "sampled", "round_trip"):
            numbers = [e.certify(rows[60:], kind=kind) for e in (fitted, loaded)]
            assert numbers[0].to_json() == numbers[1].to_json()
        assert loaded.score(rows) == fitted.score(rows)
        for estimator in (fitted, loaded):
            estimator.set_params(warm_start=True, estimator__learning_rate=1e-2)
            estimator.fit(rows[:60])
    np.testing.assert_array_equal(loaded.transform(rows), fitted.transform(rows))
    assert len(loaded.estimator_.history_) == 4


def test_a_teacher_gives_the_same_numbers_after_load(rows, tmp_path):
    search = GMMTeacher(n_components=[2, 3], random_state=np.random.RandomState(3))
    fitted = search.fit(rows)
    loaded = saved_and_loaded(fitted, tmp_path)
    np.testing.assert_array_equal(loaded.transform(rows), fitted.transform(rows))
    assert loaded.score(rows) == fitted.score(rows)
    assert loaded.search_results_.keys() == fitted.search_results_.keys()
    for name, column in fitted.search_results_.items():
        np.testing.assert_array_equal(loaded.search_results_[name], column)
    # The user's generator goes on from where it was.
    assert loaded.random_state.randint(2**31) == fitted.random_state.randint(2**31)
    assert np.isnan(loaded.error_score)


@pytest.mark.parametrize(
    "objective",
    [
        getattr(baselines, name)()
        for name in baselines.__all__
        if isinstance(getattr(baselines, name), type)
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_all_objectives_go_on_where_they_were(rows, tmp_path, objective):
    if hasattr(objective, "max_inner_steps"):
        objective.set_params(window=2, max_inner_steps=4)
    fitted = tiny(objective=objective, warm_start=True).fit(rows)
    loaded = saved_and_loaded(fitted, tmp_path)
    assert loaded.score(rows) == fitted.score(rows)
    assert repr(loaded.objective) == repr(objective)
    means = [vae.fit(rows).transform(rows) for vae in (fitted, loaded)]
    np.testing.assert_array_equal(*means)


def test_precision_and_names_of_features_are_kept(rows, tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rows, columns=list("abcde"))
    loaded = saved_and_loaded(tiny().fit(frame), tmp_path)
    assert list(loaded.feature_names_in_) == list("abcde")
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame.rename(columns={"a": "z"}))
    narrow = frame.astype(np.float32)
    assert loaded.transform(narrow).dtype == np.float32
    assert loaded.transform(frame).dtype == np.float64


def test_fits_without_a_teacher_and_frozen_ones(rows, tmp_path):
    proba = np.full((len(rows), 3), 0.1)
    proba[np.arange(len(rows)), np.arange(len(rows)) % 3] = 0.8
    fitted = CollapseCertifier(tiny()).fit(rows, teacher_proba=proba)
    save(fitted, tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert loaded.teacher_ is None
    assert verify(tmp_path / "file", rows, teacher_proba=proba).confirmed
    assert not verify(tmp_path / "file", rows, teacher_proba=proba[::-1]).same_rows

    frozen = FrozenEstimator(tiny(teacher=FrozenEstimator(GMMTeacher(3).fit(rows))))
    frozen.estimator.fit(rows)
    fitted = CollapseCertifier(frozen).fit(rows)
    loaded = saved_and_loaded(fitted, tmp_path)
    assert loaded.estimator is loaded.estimator_
    assert loaded.score(rows) == fitted.score(rows)


class MyTeacher(GMMTeacher):
    pass


class Encoder(nn.Module):
    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.layer = nn.Linear(n_features, 2 * latent_dim)

    def forward(self, x):
        return self.layer(x)


class WideEncoder(Encoder):
    def __init__(self, n_features, latent_dim):
        super().__init__(n_features, latent_dim)
        self.more = nn.Linear(1, 1)


def test_modules_of_ones_own_are_brought_along(rows, tmp_path):
    fitted = tiny(encoder=Encoder, warm_start=True).fit(rows)
    with pytest.raises(ValueError, match="modules must have the encoder") as caught:
        saved_and_loaded(fitted, tmp_path)
    assert not isinstance(caught.value, InvalidFileError)
    with pytest.raises(ValueError, match="modules must be those of the file"):
        load(tmp_path / "file", modules={"encoder": WideEncoder})
    with pytest.raises(ValueError, match="modules must have keys among"):
        load(tmp_path / "file", modules={"encoders": Encoder})
    given = Encoder(5, 2), Encoder
    for module in given:
        loaded = load(tmp_path / "file", modules={"encoder": module})
        np.testing.assert_array_equal(loaded.transform(rows), fitted.transform(rows))
    np.testing.assert_array_equal(
        *[v.fit(rows).transform(rows) for v in (fitted, loaded)]
    )


def test_convolutions(tmp_path):
    images = np.random.default_rng(0).random((40, 25))
    vae = tiny(encoder="conv", decoder="conv", image_shape=(1, 5, 5)).fit(images)
    loaded = saved_and_loaded(vae, tmp_path)
    np.testing.assert_array_equal(loaded.transform(images), vae.transform(images))


def test_foreign_estimators_and_other_things_are_refused(rows, tmp_path):
    foreign = [
        (KMeans(2).fit(rows), "a KMeans"),
        (
            CollapseCertifier(
                FrozenEstimator(KMeans(2).fit(rows)), teacher=GMMTeacher(3)
            ).fit(rows),
            "a KMeans",
        ),
        (tiny(teacher=MyTeacher(3)).fit(rows), "a MyTeacher"),
    ]
    for estimator, name in foreign:
        with pytest.raises(ValueError, match=f"got {name}. What can be saved"):
            save(estimator, tmp_path / "file")
    with pytest.raises(NotFittedError):
        save(tiny(), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_parameters_changed_after_the_fit_are_not_saved_as_if_they_were_its(
    rows, tmp_path
):
    vae = tiny().fit(rows).set_params(latent_dim=3)
    with pytest.raises(ValueError, match="latent_dim must stay"):
        save(vae, tmp_path / "file")


def test_callbacks_and_memory_are_left_out_aloud(rows, tmp_path):
    callback = EpochScoring(lambda net, X, y: 0.0, name="zero", use_caching=False)
    vae = tiny(memory=str(tmp_path / "cache"), callbacks=[callback]).fit(rows)
    with pytest.warns(NotSavedWarning, match="callbacks and memory"):
        save(vae, tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert loaded.memory is None
    assert loaded.callbacks is None


def test_a_failing_save_leaves_the_old_file(rows, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="KMeans"):
        save(KMeans(2).fit(rows), path)
    assert path.read_bytes() == before


def test_methods_save_and_load(certifier, rows, tmp_path):
    certifier.save(tmp_path / "file")
    assert CollapseCertifier.load(tmp_path / "file").score(rows) == certifier.score(
        rows
    )
    with pytest.raises(InvalidFileError, match="must hold a GMMTeacher"):
        GMMTeacher.load(tmp_path / "file")


def test_clones_of_what_was_loaded_fit_alike(certifier, rows, path):
    scores = [clone(e).fit(rows).score(rows) for e in (certifier, load(path))]
    assert scores[0] == scores[1]


def test_verification_tells_rows_and_numbers_apart(path, rows):
    right = verify(path, rows[:60])
    assert right.confirmed
    assert str(right).startswith("Confirmed: these are the rows of the certificate")
    other = verify(path, rows[30:])
    assert not other.same_rows
    assert "OTHER rows" in str(other)


def test_an_edited_certificate_is_found_out(path, rows):
    def raise_margin(record):
        record["certificate"]["margin"] += 0.05
        record["certificate"]["teacher_information"] += 0.05

    edited(path, raise_margin, "certificate.json")
    verification = verify(path, rows[:60])
    assert verification.same_rows
    assert not verification.agrees
    assert "NOT as it says" in str(verification)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("margin", 9.0),
        ("margin", {"kind": "not_finite", "value": "nan"}),
        ("tolerance", {"kind": "not_finite", "value": "inf"}),
        ("verdict", "splendid"),
        ("safety_margin", 5.0),
        ("n_samples", -1),
        ("latent_dim", 7),
        ("kind", "sampled"),
        ("extra", 1),
    ],
)
def test_certificates_that_contradict_themselves_are_refused(path, field, value):
    def change(record):
        record["certificate"][field] = value

    edited(path, change, "certificate.json")
    with pytest.raises(InvalidFileError, match="Nothing in it was run"):
        load(path)


def test_verification_needs_a_certifier(rows, tmp_path):
    save(GMMTeacher(3).fit(rows), tmp_path / "file")
    with pytest.raises(InvalidFileError, match="must hold a CollapseCertifier"):
        verify(tmp_path / "file", rows)


def test_hash_of_rows_is_that_of_the_stated_form(rows):
    import hashlib

    line = f"skvaecert rows 1 float64 {len(rows)} 5\n".encode()
    assert digest_samples(rows) == hashlib.sha256(line + rows.tobytes()).hexdigest()
    assert digest_samples(np.asfortranarray(rows)) == digest_samples(rows.tolist())
    assert digest_samples(rows.astype(np.float32)) != digest_samples(rows)
    assert digest_samples(rows[::-1]) != digest_samples(rows)
    assert digest_samples([["a"], ["b"]]) is None


def test_hash_of_rows_does_not_depend_on_what_holds_them(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5000, 2))  # more than are read at once
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", float, rows.shape)
    mapped[:] = rows
    held = [
        pd.DataFrame(rows, columns=["a", "b"]),
        polars.DataFrame(rows),
        mapped,
        zarr.array(rows, chunks=(700, 2)),
        dask.array.from_array(rows, chunks=(999, 1)),
    ]
    assert {digest_samples(table) for table in held} == {digest_samples(rows)}


def _set(*keys, value):
    def change(config):
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


VAE = "estimator", "state", "estimator_"
HUGE = 10**9


@pytest.mark.parametrize(
    "change",
    [
        _set("format", value="other"),
        _set("schema", value=2),
        _set("schema", value=True),
        _set("more", value=1),
        _set("estimator", value=None),
        _set("estimator", "type", value="os.system"),
        _set("estimator", "type", value=["GMMTeacher"]),
        _set("estimator", "kind", value="__reduce__"),
        _set("estimator", "params", "evil", value=1),
        _set("estimator", "params", "witness", value="linear"),
        _set("estimator", "state", "evil", value=1),
        _set("estimator", "state", "transform", value="shadow"),
        _set("estimator", "state", "mean_proba_", value=None),
        _set("estimator", "state", "witness_scale_", value=-1.0),
        _set("estimator", "state", "teacher_", value={"kind": "same", "number": -1}),
        _set("estimator", "state", "teacher_", value={"kind": "same", "number": 99}),
        _set("estimator", "state", "teacher_", value="a teacher"),
        _set(*VAE, value=None),
        _set(*VAE, "state", value=None),
        _set(*VAE, "params", "hidden_sizes", value=[HUGE]),
        _set(*VAE, "params", "hidden_sizes", value=[HUGE, HUGE]),
        _set(*VAE, "params", "latent_dim", value=HUGE),
        _set(*VAE, "params", "latent_dim", value=2.5),
        _set(*VAE, "params", "memory", value="cache-of-pickles"),
        _set(*VAE, "params", "callbacks", value=[]),
        _set(*VAE, "params", "encoder", value="import os"),
        _set(*VAE, "params", "objective", value={"kind": "objective", "type": "A"}),
        _set(*VAE, "state", "n_features_in_", value=HUGE),
        _set(
            *VAE,
            "state",
            "witness_scale_",
            value={"kind": "not_finite", "value": "nan"},
        ),
        _set(*VAE, "state", "net_", value=None),
        _set(*VAE, "state", "net_", "weights", value={}),
        _set(*VAE, "state", "net_", "history", "n_rows", value=HUGE),
        _set(*VAE, "state", "net_", "settings", "lr", value=-1),
        _set(*VAE, "state", "net_", "settings", "module", value=1),
        _set(*VAE, "state", "net_", "settings", "batch_size", value=2.5),
        _set(*VAE, "state", "net_", "optimizer", "flat", value=False),
        _set(*VAE, "state", "net_", "kl_weight", value="1"),
        _set(*VAE, "state", "_standardisation", "fields", "scale", value=0.0),
        _set(
            *VAE,
            *("state", "teacher_", "state", "search_results_"),
            value={
                "kind": "strings",
                "values": ["x" * 10**5] * 10**2,
                "objects": False,
            },
        ),
    ],
)
def test_other_configurations_are_refused(path, change):
    edited(path, change)
    with pytest.raises(InvalidFileError, match="must be a file as skvaecert saves it"):
        load(path)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.0.weight",
        "optimizer.0.exp_avg",
        "pca_.components_",
        "mixture_.means_",
        "_standardisation.location",
        "witness_.weights",
        "estimator_.vertices_",
        "mixture_.precisions_cholesky_",
    ],
)
def test_arrays_of_other_shapes_and_nan_are_refused(path, name):
    sound = read_archive(path).arrays
    (array,) = [value for key, value in sound.items() if key.endswith(name)]
    broken = array.copy()
    broken.flat[0] = np.nan
    for value in (broken, array[..., :1], array.astype(np.int64)):
        with_array(path, name, value)
        with pytest.raises(InvalidFileError):
            load(path)
    with_array(path, name, array)
    load(path)


def test_arrays_that_nothing_refers_to_are_refused(path):
    archive = read_archive(path)
    write_archive(path, archive._replace(arrays=archive.arrays | {"x": np.zeros(1)}))
    with pytest.raises(InvalidFileError, match="nothing refers to"):
        load(path)


def test_a_fitted_witness_is_not_taken_for_the_fixed_one(path):
    archive = read_archive(path)
    with_array(
        path,
        ".witness_.weights",
        1.5 * archive.arrays["CollapseCertifier.witness_.weights"],
    )
    with pytest.raises(InvalidFileError, match="raw witness is not that"):
        load(path)
    write_archive(path, archive)
    with_array(path, "witness_.bias", np.array([0.1, 0.0, 0.0]))
    with pytest.raises(InvalidFileError, match="raw witness is not that"):
        load(path)


def test_a_simplex_that_was_turned_is_not_the_fixed_one(path):
    archive = read_archive(path)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = {
        k: v @ turn if k.endswith(("vertices_", "witness_.weights")) else v
        for k, v in archive.arrays.items()
    }
    write_archive(path, archive._replace(arrays=turned))
    with pytest.raises(InvalidFileError, match="not those of simplex_vertices"):
        load(path)


@pytest.mark.parametrize("shape", [(50_000, 1), (10**9, 0)])
def test_vertices_of_few_dimensions_take_no_memory(path, shape):
    with_array(path, "estimator_.vertices_", np.zeros(shape))
    with pytest.raises(InvalidFileError, match="vertices are too many"):
        load(path)


def test_networks_of_many_small_layers_are_not_made(path):
    edited(path, _set(*VAE, "params", "hidden_sizes", value=[1] * 10**5))
    with pytest.raises(InvalidFileError, match="more layers than weights"):
        load(path)


@pytest.mark.parametrize("n_rows", [30_000, 10**6])
def test_long_histories_take_no_long_time(path, n_rows):
    column = {
        "values": {"kind": "array", "name": "long", "transposed": False},
        "rows": None,
    }
    history = {"n_rows": n_rows, "columns": {"epoch": column}}
    edited(path, _set(*VAE, "state", "net_", "history", value=history))
    archive = read_archive(path)
    arrays = {k: v for k, v in archive.arrays.items() if ".history." not in k}
    arrays |= {"long": np.zeros(n_rows, np.uint8)}
    write_archive(path, archive._replace(arrays=arrays))
    if n_rows > 10**5:
        with pytest.raises(InvalidFileError, match="history is too long"):
            load(path)
    else:
        began = time.process_time()
        assert len(load(path).estimator_.net_.history) == n_rows
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CollapseCertifier.mean_proba_", np.full(3, 5.0)),
        ("teacher_.mean_proba_", np.array([0.5, 0.5, 0.0])),
        ("mixture_.weights_", np.full(3, 1e300)),
        ("_calibration.witness.weights", np.zeros((9, 2))),
        ("_calibration.witness.weights", np.zeros((3, 7))),
    ],
)
def test_what_is_no_distribution_or_of_another_shape_is_refused(path, name, value):
    with_array(path, name, value)
    if len(value) == 9:
        with_array(path, "_calibration.witness.bias", np.zeros(9))
    with pytest.raises(InvalidFileError, match="must be a file as skvaecert saves it"):
        load(path)


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "os", ""])
def test_names_of_devices_import_nothing(path, rows, certifier, device):
    edited(path, _set(*VAE, "params", "device", value=device))
    assert load(path).score(rows) == certifier.score(rows)


def test_models_that_fail_on_rows_of_their_certificate_are_invalid_files(path, rows):
    edited(
        path, _set(*VAE, "state", "_standardisation", "fields", "scale", value=1e-99)
    )
    with pytest.raises(InvalidFileError, match="standard deviations"):
        verify(path, rows[:60])
    with pytest.raises(ValueError, match="standard deviations") as caught:
        verify(path, rows[30:])
    assert not isinstance(caught.value, InvalidFileError)


def test_a_constant_encoder_is_not_confirmed_whatever_its_certificate_says(path, rows):
    archive = read_archive(path)
    constant = {
        k: 0 * v if ".net_.encoder." in k and k.endswith("weight") else v
        for k, v in archive.arrays.items()
    }
    for scale in (1e-3, 1.0, 1e140):
        config = json.loads(json.dumps(archive.config))
        config["estimator"]["state"]["witness_scale_"] = scale
        weights = scale * constant["CollapseCertifier.vertices_"]
        arrays = constant | {"CollapseCertifier.witness_.weights": weights}
        for tolerance in (0.0, 0.9):
            certificate = json.loads(json.dumps(archive.certificate))
            certificate["certificate"]["tolerance"] = tolerance
            write_archive(path, Archive(config, certificate, arrays))
            verification = verify(path, rows[:60])
            assert verification.same_rows
            assert not verification.confirmed
            assert verification.recomputed_verdict != "certified"


def test_huge_sizes_take_no_memory(path):
    edited(path, _set(*VAE, "params", "hidden_sizes", value=[HUGE]))
    with pytest.raises(InvalidFileError, match="weights are not those"):
        load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidFileError):
        load(path)
    # Kilobytes; the encoder alone would have been twenty million of them.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_pickles_in_a_file_are_not_run(path, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    payload = pickle.dumps(Payload())
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in MEMBERS}
    for replaced in MEMBERS:
        with zipfile.ZipFile(path, "w") as new:
            for name, data in members.items():
                new.writestr(name, payload if name == replaced else data)
        with pytest.raises(InvalidFileError):
            load(path)
    path.write_bytes(payload)
    with pytest.raises(InvalidFileError):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_random_changes_of_the_documents_end_in_one_error(path):
    rng = np.random.default_rng(0)
    archive = read_archive(path)
    text = json.dumps(archive.config)
    junk = ["null", "-1", "1e400", '"x"', "[]", "{}", "true", '{"kind": "same"}']
    tokens = [i for i, c in enumerate(text) if c in ":["]
    n_refused = 0
    for _ in range(60):
        place = rng.choice(tokens) + 1
        end = min(i for i in (text.find(c, place) for c in ",}]") if i > 0)
        try:
            config = json.loads(text[:place] + rng.choice(junk) + text[end:])
        except ValueError:
            continue
        write_archive(path, archive._replace(config=_no_inf(config)))
        try:
            load(path)
        except InvalidFileError:
            n_refused += 1
        except ValueError:  # it asks for modules that nobody brings
            continue
    assert n_refused > 20


def _no_inf(config):
    return json.loads(json.dumps(config).replace("Infinity", "1" + "0" * 400))


def test_truncated_and_flipped_files_end_in_one_error(path, certifier, rows):
    data = path.read_bytes()
    score = certifier.score(rows)
    for length in range(0, len(data), 997):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidFileError):
            load(path)
    for place in range(0, len(data), 1499):
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        try:
            assert load(path).score(rows) == score
        except InvalidFileError:
            pass


def test_loading_leaves_the_users_generators_alone(path):
    legacy = np.random.mtrand._rand
    before = torch.get_rng_state(), legacy.get_state()[1].copy()
    load(path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (legacy.get_state()[1] == before[1]).all()


def test_models_of_a_device_that_is_not_there_come_to_the_cpu(path, rows, certifier):
    edited(path, _set(*VAE, "params", "device", value="cuda:77"))
    loaded = load(path)
    assert loaded.estimator_.net_.device == "cpu"
    assert loaded.score(rows) == certifier.score(rows)


def test_pickles_hold_the_network_once(rows):
    vae = tiny().fit(rows)
    copied = pickle.loads(pickle.dumps(vae))
    assert copied.net_.module is copied.net_.module_
    np.testing.assert_array_equal(copied.transform(rows), vae.transform(rows))


def test_files_of_schema_1_still_load():
    loaded = load(OLD_FILE)
    rows, margin, means = old_case()
    assert loaded.score(rows) == pytest.approx(margin, abs=1e-5)
    np.testing.assert_allclose(loaded.transform(rows[:2]), means, atol=1e-5)
    assert verify(OLD_FILE, rows).same_rows


def old_case():
    record = json.loads(OLD_FILE.with_suffix(".json").read_text())
    return np.array(record["rows"]), record["margin"], record["means"]


def make_old_file():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(3, 3)) * 4)[np.arange(30) % 3] + rng.normal(size=(30, 3))
    rows = rows.round(3)
    fitted = CollapseCertifier(tiny(hidden_sizes=(2,), max_epochs=20)).fit(rows)
    save(fitted, OLD_FILE)
    record = {
        "rows": rows.tolist(),
        "margin": fitted.score(rows),
        "means": fitted.transform(rows[:2]).tolist(),
    }
    OLD_FILE.with_suffix(".json").write_text(json.dumps(record))


@pytest.mark.parametrize("witness", ["raw", "linear"])
def test_onnx_gives_what_the_model_gives(rows, tmp_path, witness):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    far = 1000 + 30 * rows  # standardisation is part of it
    fitted = CollapseCertifier(tiny(max_epochs=20), witness=witness).fit(far)
    export_onnx(fitted, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for n_rows in (1, 7, 90):
        mean, log_q = session.run(None, {"X": far[:n_rows]})
        np.testing.assert_allclose(mean, fitted.transform(far[:n_rows]), atol=1e-5)
        expected = fitted.witness_.log_proba(fitted.transform(far[:n_rows]))
        np.testing.assert_allclose(log_q, expected, atol=1e-4)


@pytest.mark.parametrize("size", [5, 8, 13])
def test_onnx_of_convolutions_gives_what_the_model_gives(tmp_path, size):
    runtime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).random((40, 2 * size**2))
    vae = tiny(encoder="conv", image_shape=(2, size, size)).fit(images)
    export_onnx(vae, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for n_rows in (1, 40):
        mean, log_q = session.run(None, {"X": images[:n_rows]})
        np.testing.assert_allclose(mean, vae.transform(images[:n_rows]), atol=1e-5)
        expected = vae.witness_log_proba(images[:n_rows])
        np.testing.assert_allclose(log_q, expected, atol=1e-4)


def test_onnx_of_something_else_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="must be a CertifiedVAE"):
        export_onnx(GMMTeacher(3).fit(rows), tmp_path / "model.onnx")


def test_loading_imports_nothing_but_what_is_there(path):
    code = f"""
import sys
sys.modules["safetensors"] = None
from skvaecert.persistence import load
load({str(path)!r})
"""
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


if __name__ == "__main__":
    OLD_FILE.parent.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    make_old_file()
