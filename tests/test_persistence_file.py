"""Files that were damaged, edited, or made up: nothing but InvalidFileError."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import persistence_attacks as attacks
import pytest
from safetensors.numpy import save as save_arrays

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.exceptions import InvalidFileError
from skvaecert.persistence import load, save


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 5)) * 4
    return centers[rng.integers(3, size=90)] + rng.normal(size=(90, 5))


@pytest.fixture(scope="module")
def saved(samples, tmp_path_factory):
    """The path of a file, with samples for its model next to it."""
    path = tmp_path_factory.mktemp("saved") / "certifier.safetensors"
    vae = CertifiedVAE(
        GMMTeacher(n_components=3, covariance_type="full", pca_components=3),
        latent_dim=2,
        hidden_sizes=(4,),
        max_epochs=5,
        device="cpu",
        random_state=0,
    )
    save(CollapseCertifier(vae).fit(samples), path)
    np.save(path.with_suffix(".npy"), samples)
    return path


@pytest.fixture
def path(saved, tmp_path):
    (tmp_path / "file").write_bytes(saved.read_bytes())
    return tmp_path / "file"


def assert_refused(path, reason="must be a file that skvaecert saved"):
    with pytest.raises(InvalidFileError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "Nothing in it was run" in str(caught.value)


# Thousands of files, in a process with little memory that may do nothing but read.


@pytest.fixture(scope="module")
def outcomes(saved):
    script = Path(attacks.__file__)
    command = [sys.executable, "-W", "ignore", script, saved]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_mutated_files_are_refused_or_give_finite_values(outcomes):
    counts = outcomes["mutated"]
    assert counts.keys() - {"declined"} == {"refused", "finite"}
    assert sum(counts.values()) >= 5000
    assert counts["finite"] > 100


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_memory_is_bounded_for_any_file(outcomes):
    for name, (used, allowed, said) in outcomes["memory"].items():
        assert used <= allowed, name
        too_much = any(word in name for word in ("more", "many", "no ", "huge", "deep"))
        assert (said != "loaded") >= too_much, name
    assert sum(said == "loaded" for *_, said in outcomes["memory"].values()) >= 5


# What JSON may say.


def state_of(kind):
    return lambda content: attacks.fitted(content, kind)["fitted"]


def params_of(kind):
    return lambda content: attacks.fitted(content, kind)["params"]


def net(content):
    return state_of("CertifiedVAE")(content)["net"]["dict"]


VAE, VAE_PARAMS = state_of("CertifiedVAE"), params_of("CertifiedVAE")
CERTIFIER, CERTIFIER_PARAMS = (
    state_of("CollapseCertifier"),
    params_of("CollapseCertifier"),
)
TEACHER, TEACHER_PARAMS = state_of("GMMTeacher"), params_of("GMMTeacher")
HUGE = 10**9
LAST = {"object": -1}


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        (lambda content: content, "format", "other"),
        (lambda content: content, "schema", 3),
        (lambda content: content, "schema", 5),
        (lambda content: content, "objects", []),
        (lambda content: content, "objects", None),
        (lambda content: content["objects"][-1], "type", "os.system"),
        (lambda content: content["objects"][-1], "type", ["GMMTeacher"]),
        (lambda content: content["objects"][-1], "type", "VAENet"),
        (lambda content: content["objects"][-1], "fitted", None),
        (lambda content: content["objects"][-1], "more", 1),
        (CERTIFIER_PARAMS, "evil", 1),
        (CERTIFIER_PARAMS, "witness", "linear"),
        (CERTIFIER_PARAMS, "witness", {"__reduce__": "os.system"}),
        (CERTIFIER, "evil", 1),
        (CERTIFIER, "transform", "shadow"),
        (CERTIFIER, "mean_proba_", None),
        (CERTIFIER, "witness_scale_", -1.0),
        (CERTIFIER, "witness_scale_", 1e200),
        (CERTIFIER, "teacher_", {"object": 99}),
        (CERTIFIER, "teacher_", LAST),
        (CERTIFIER, "teacher_", "a teacher"),
        (CERTIFIER, "estimator_", None),
        (CERTIFIER, "estimator_", {"object": 0}),
        (CERTIFIER, "n_features_in_", 4),
        (CERTIFIER, "certified_on", {"dict": {}}),
        (VAE_PARAMS, "hidden_sizes", [HUGE]),
        (VAE_PARAMS, "hidden_sizes", [HUGE, HUGE]),
        (VAE_PARAMS, "hidden_sizes", [1, 1]),
        (VAE_PARAMS, "latent_dim", HUGE),
        (VAE_PARAMS, "latent_dim", 2.5),
        (VAE_PARAMS, "memory", "cache-of-pickles"),
        (VAE_PARAMS, "callbacks", []),
        (VAE_PARAMS, "encoder", "import os"),
        (VAE_PARAMS, "encoder", "conv"),
        (VAE_PARAMS, "teacher", LAST),
        (VAE_PARAMS, "objective", {"object": 0}),
        (VAE, "n_features_in_", HUGE),
        (VAE, "n_features_in_", True),
        (VAE, "witness_scale_", {"float": "nan"}),
        (VAE, "scale", 0.0),
        (VAE, "scale", {"float": "inf"}),
        (VAE, "net", None),
        (net, "weights", {"dict": {}}),
        (net, "history", {"rows": [HUGE, {"dict": {}}]}),
        (net, "history", {"rows": [-HUGE, {"dict": {}}]}),
        (net, "history", [1]),
        (net, "kl_weight", "1"),
        (net, "alignment_weight", -1.0),
        (net, "guard", {"dict": {"gap": 0.0}}),
        (TEACHER, "temperature_", 0.0),
        (TEACHER, "n_components_", 2),
        (TEACHER, "pca_", None),
        (TEACHER_PARAMS, "floor", -1.0),
        (params_of("GaussianMixture"), "covariance_type", "tied"),
        (params_of("GaussianMixture"), "n_components", 2),
        (params_of("PCA"), "whiten", True),
        (state_of("PCA"), "n_components_", 2),
    ],
)
def test_other_json_is_refused(path, where, key, value):
    def change(content, arrays):
        where(content)[key] = value

    attacks.forge(path, change)
    assert_refused(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("{", '{"a": 1, "a": 2, ', 1), "repeats a key"),
        (lambda text: text.replace('"schema": 4', '"schema": NaN'), "not finite"),
        (lambda text: text.replace('"schema": 4', '"schema": 1e999'), "not finite"),
        (lambda text: "[" * 10**5 + "]" * 10**5, "RecursionError"),
        (lambda text: text[:-1], "JSONDecodeError"),
        (lambda text: "null", "TypeError"),
        (lambda text: "", "JSONDecodeError"),
    ],
)
def test_text_that_is_no_plain_json_is_refused(path, change, reason):
    attacks.forge(path, lambda content, arrays: change(json.dumps(content)))
    assert_refused(path, reason)


@pytest.mark.parametrize("last", ["FrozenEstimator", "CertifiedVAE"])
def test_estimators_within_estimators_without_end_are_refused(path, last):
    """A frozen VAE as the teacher of a VAE, and so on, would double their names."""

    def change(content, arrays):
        objects = content["objects"]
        number = objects.index(attacks.fitted(content, "CertifiedVAE"))
        params = {"estimator": {"object": number}}
        objects.append({"type": "FrozenEstimator", "params": params, "fitted": None})
        name = "teacher" if last == "CertifiedVAE" else "estimator"
        params = {name: {"object": len(objects) - 1}}
        objects.append({"type": last, "params": params, "fitted": None})

    attacks.forge(path, change)
    assert_refused(path, f"values in a {last} must be")


def with_loss(content, arrays, vertices, scale):
    """Say that the witness was the loss of a model's training."""
    arrays["loss"] = vertices
    params = {"vertices": {"array": "loss"}, "scale": scale}
    root = content["objects"].pop()
    root["params"]["witness"] = {"object": len(content["objects"])}
    loss = {"type": "AlignmentLoss", "params": params, "fitted": None}
    content["objects"] += [loss, root]


def sound_loss(arrays):
    """Vertices of the file, as they are in a loss."""
    return arrays["estimator.vertices_"].astype(np.float32).astype(np.float64)


def as_witness(content, arrays, vertices, scale):
    """Make all parts of a certifier agree with a loss."""
    state = CERTIFIER(content)
    state["witness_scale_"] = scale
    arrays["estimator.vertices_"] = vertices
    arrays["estimator.witness_.weights"] = scale * vertices
    with_loss(content, arrays, vertices.copy(), scale)


def test_a_loss_as_witness_that_goes_with_the_rest_is_taken(path):
    attacks.forge(path, lambda c, a: as_witness(c, a, sound_loss(a), 2.0))
    assert load(path).witness.scale == 2.0


@pytest.mark.parametrize(
    ("change", "scale", "reason"),
    [
        (lambda v: v, 1.5, "witness must have the vertices_"),
        (lambda v: v[::-1], 2.0, "must be those of simplex_vertices"),
        (lambda v: 1.1 * v, 2.0, "must be those of simplex_vertices"),
        (lambda v: np.full_like(v, np.nan), 2.0, "vertices of a AlignmentLoss"),
        (lambda v: v.astype(np.float32), 2.0, "vertices of a AlignmentLoss"),
        (lambda v: np.zeros((50_000, 1)), 2.0, "at most 1024"),
        (lambda v: np.zeros((0, HUGE)), 2.0, "vertices of a AlignmentLoss"),
        (lambda v: v, -2.0, "scale of a AlignmentLoss"),
        (lambda v: v, 1e200, "must be below"),
        (lambda v: v, {"float": "nan"}, "scale of a AlignmentLoss"),
        (lambda v: v, "2", "scale of a AlignmentLoss"),
    ],
)
def test_a_loss_as_witness_is_checked(path, change, scale, reason):
    attacks.forge(path, lambda c, a: as_witness(c, a, sound_loss(a), 2.0))

    def edit(content, arrays):
        (loss,) = [n for n in content["objects"] if n["type"] == "AlignmentLoss"]
        loss["params"]["scale"] = scale
        arrays["loss"] = change(arrays["loss"])

    attacks.forge(path, edit)
    assert_refused(path, reason)


@pytest.mark.parametrize("value", [None, 1, "ab", {"module": "encoder"}])
@pytest.mark.parametrize("key", ["estimator_", "weights", "teacher_"])
def test_encoders_that_are_not_in_the_file_are_brought_as_such_only(path, key, value):
    def change(content, arrays):
        CERTIFIER(content)["estimator_"] = {"module": "estimator"}
        content["objects"] = [content["objects"][-1]]
        CERTIFIER(content)["teacher_"] = None
        where = CERTIFIER(content)
        where = where["certified_on"]["dict"] if key == "weights" else where
        where[key] = value

    attacks.forge(path, change)
    with pytest.raises(
        ValueError, match=r"must be a file|modules must contain the enc"
    ):
        load(path)


# What arrays may be.


@pytest.mark.parametrize(
    "name",
    [
        "encoder.0.weight",
        "exp_avg",
        "exp_avg_sq",
        "pca_.components_",
        "mixture_.means_",
        "estimator_.location",
        ".witness_.weights",
        "calibration.witness.weights",
        "estimator_.vertices_",
        "mixture_.precisions_cholesky_",
        "estimator.mean_proba_",
    ],
)
def test_arrays_of_other_shapes_dtypes_and_nan_are_refused(path, name):
    sound = path.read_bytes()
    _, arrays = attacks.parts_of(path)
    (key,) = [k for k in arrays if f".{k}".endswith(name)]
    array = arrays[key]
    broken = array.copy()
    broken.flat[0] = np.nan
    others = [broken, array[..., :1], array.astype(np.int64), np.zeros((0, HUGE))]
    for other in others:
        path.write_bytes(sound)
        attacks.forge(path, lambda _, arrays, o=other: arrays.update({key: o}))
        assert_refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("estimator.mean_proba_", np.full(3, 5.0)),
        ("teacher_.mean_proba_", np.array([0.5, 0.5, 0.0])),
        ("mixture_.weights_", np.full(3, 1e300)),
        ("mixture_.precisions_cholesky_", -np.ones((3, 3, 3))),
        ("mixture_.means_", np.full((3, 3), 1e300)),
        ("calibration.witness.weights", np.zeros((3, 7))),
        ("encoder.0.weight", np.full((4, 5), 3e38, np.float32)),
    ],
)
def test_values_that_no_model_has_are_refused(path, name, value):
    _, arrays = attacks.parts_of(path)
    keys = [k for k in arrays if k.endswith(name)]
    attacks.forge(path, lambda _, arrays: arrays.update(dict.fromkeys(keys, value)))
    assert keys
    assert_refused(path)


def test_arrays_that_nothing_refers_to_are_refused(path):
    attacks.forge(path, lambda _, arrays: arrays.update(x=np.zeros(1)))
    assert_refused(path, "nothing refers to")


def test_arrays_that_are_referred_to_twice_are_refused(path):
    def change(content, _):
        CERTIFIER(content)["mean_proba_"] = VAE(content)["location"]

    attacks.forge(path, change)
    assert_refused(path)


def test_a_fitted_witness_is_not_taken_for_the_fixed_one(path):
    sound = path.read_bytes()
    for part, change in {
        "weights": lambda a: 1.5 * a,
        "bias": lambda a: a + 0.1,
    }.items():
        path.write_bytes(sound)
        key = f"estimator.witness_.{part}"
        attacks.forge(path, lambda _, a, k=key, c=change: a.update({k: c(a[k])}))
        assert_refused(path, "witness_ must match vertices_")


def test_a_simplex_that_was_turned_is_not_the_fixed_one(path):
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])

    def change(_, arrays):
        for name in arrays:
            if name.endswith(("vertices_", "witness_.weights")):
                arrays[name] = arrays[name] @ turn

    attacks.forge(path, change)
    assert_refused(path, "vertices_ must be those of simplex_vertices")


# What bytes may be.


def test_truncated_and_damaged_files_are_refused(path):
    data = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(1000, len(data), 4001), len(data) - 1]:
        path.write_bytes(data[:length])
        assert_refused(path)
    for place in [0, 8, 200, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert_refused(path)
    path.write_bytes(data + b"a script")
    assert_refused(path)


def table(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ARRAY = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
SIGNED = {"skvaecert": "{}", "sha256": "0"}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        table(b"[]"),
        table(b"{}"),
        table({"__metadata__": SIGNED}),
        table({"__metadata__": {**SIGNED, "more": ""}}),
        table({"__metadata__": {"skvaecert": 1, "sha256": "0"}}),
        table({"__metadata__": SIGNED, "a": ARRAY}, b"\1"),
        table({"__metadata__": SIGNED, "a": ARRAY | {"shape": [2**40]}}, b"\1"),
        table({"__metadata__": SIGNED, "a": ARRAY | {"shape": [2**62, 8]}}, b"\1"),
        table({"__metadata__": SIGNED, "a": ARRAY | {"dtype": "OBJ"}}, b"\1"),
        table({"__metadata__": SIGNED, "a": ARRAY, "b": ARRAY}, b"\1"),
        table(b'{"__metadata__":{"skvaecert":"{}","skvaecert":"{}","sha256":""}}'),
        save_arrays({"a": np.zeros(3)}),
        b"PK\x03\x04 a zip archive",
        b"",
    ],
)
def test_headers_that_are_not_of_this_format_are_refused(path, data):
    path.write_bytes(data)
    assert_refused(path)


def test_truth_values_are_0_or_1(path):
    def change(content, arrays):
        arrays["flags"] = np.ones(3, bool)
        TEACHER(content)["search_results_"] = {"dict": {"x": {"array": "flags"}}}

    attacks.forge(path, change)
    load(path)
    attacks.forge(path, lambda _, arrays: arrays["flags"].view(np.uint8).fill(2))
    assert_refused(path, "bytes other than 0 and 1")


def test_pickles_are_not_run(path, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    payload = pickle.dumps(Payload())
    path.write_bytes(payload)
    assert_refused(path)
    path.write_bytes(struct.pack("<Q", len(payload)) + payload)
    assert_refused(path)
    assert not (tmp_path / "ran").exists()
