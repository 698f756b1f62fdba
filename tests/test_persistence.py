import copy
import dataclasses
import io
import json
import os
import pickle
import stat
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import persistence_attacks as attacks
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from skorch.callbacks import EpochScoring
from torch import nn

from skvaecert import (
    Certificate,
    CertifiedVAE,
    CollapseCertifier,
    GMMTeacher,
    baselines,
    certify,
)
from skvaecert.exceptions import InvalidFileError, NotSavedWarning
from skvaecert.objectives import AlignmentLoss, Objective
from skvaecert.persistence import TRUSTED_TYPES, export_onnx, load, save, verify
from skvaecert.simplex import simplex_vertices
from skvaecert.wrappers import TrainedEncoder

# Made by `python tests/test_persistence.py`, once for each schema.
OLD_FILE = Path(__file__).parent / "data" / "schema_4.safetensors"


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
def samples():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 5)) * 4
    return centers[rng.integers(3, size=90)] + rng.normal(size=(90, 5))


@pytest.fixture(scope="module")
def certifier(samples):
    return CollapseCertifier(tiny(max_epochs=30, learning_rate=1e-2)).fit(samples[:60])


@pytest.fixture(scope="module")
def saved(certifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "file"
    save(certifier, path)
    return path.read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    (tmp_path / "certifier.safetensors").write_bytes(saved)
    return tmp_path / "certifier.safetensors"


@pytest.fixture(scope="module")
def vae(samples):
    return tiny().fit(samples)


@pytest.fixture(scope="module")
def teacher(samples):
    return GMMTeacher(3, covariance_type="tied", random_state=0).fit(samples)


def objectives():
    found = [getattr(baselines, name) for name in baselines.__all__]
    return [Objective, *(kind for kind in found if isinstance(kind, type))]


def saved_and_loaded(estimator, tmp_path):
    save(estimator, tmp_path / "file")
    return load(tmp_path / "file")


# What is loaded is what was saved.


@pytest.mark.slow
@pytest.mark.parametrize("witness", ["raw", "procrustes", "linear"])
def test_a_certifier_gives_the_same_values_after_load(samples, tmp_path, witness):
    guarded = tiny(alignment_weight="auto", validation_fraction=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = CollapseCertifier(guarded, witness=witness).fit(samples[:60])
        loaded = saved_and_loaded(fitted, tmp_path)
        assert str(loaded.certificate_) == str(fitted.certificate_)
        assert loaded.estimator_.history_ == fitted.estimator_.history_
        assert loaded.teacher_ is loaded.estimator_.teacher_
        for kind in ("mean", "sampled", "round_trip"):
            certificates = [
                e.certify(samples[60:], kind=kind) for e in (fitted, loaded)
            ]
            assert certificates[0].to_json() == certificates[1].to_json()
        assert loaded.score(samples) == fitted.score(samples)
        assert verify(tmp_path / "file", samples[:60]).confirmed
        for estimator in (fitted, loaded):
            estimator.set_params(warm_start=True, estimator__learning_rate=1e-2)
            estimator.fit(samples[:60])
    np.testing.assert_array_equal(loaded.transform(samples), fitted.transform(samples))
    assert len(loaded.estimator_.history_) == 4


def test_a_teacher_gives_the_same_values_after_load(samples, tmp_path):
    search = GMMTeacher(n_components=[2, 3], random_state=np.random.RandomState(3))
    fitted = search.fit(samples)
    loaded = saved_and_loaded(fitted, tmp_path)
    np.testing.assert_array_equal(loaded.transform(samples), fitted.transform(samples))
    assert loaded.score(samples) == fitted.score(samples)
    assert loaded.search_results_.keys() == fitted.search_results_.keys()
    for name, column in fitted.search_results_.items():
        np.testing.assert_array_equal(loaded.search_results_[name], column)
    # The user's generator continues from its state.
    assert loaded.random_state.randint(2**31) == fitted.random_state.randint(2**31)
    assert np.isnan(loaded.error_score)
    assert loaded.n_components == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("objective", objectives()[1:], ids=lambda kind: kind.__name__)
def test_all_objectives_continue_where_they_were(samples, tmp_path, objective):
    objective = objective()
    if hasattr(objective, "max_inner_steps"):
        objective.set_params(window=2, max_inner_steps=4)
    fitted = tiny(objective=objective, warm_start=True).fit(samples)
    loaded = saved_and_loaded(fitted, tmp_path)
    assert loaded.score(samples) == fitted.score(samples)
    assert repr(loaded.objective) == repr(objective)
    means = [vae.fit(samples).transform(samples) for vae in (fitted, loaded)]
    np.testing.assert_array_equal(*means)


@pytest.mark.slow
def test_precision_and_names_of_features_are_kept(samples, tmp_path):
    frame = pd.DataFrame(samples, columns=["a", "bb", "", "ä", "😀"])
    loaded = saved_and_loaded(tiny().fit(frame), tmp_path)
    assert list(loaded.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame.rename(columns={"a": "z"}))
    narrow = frame.astype(np.float32)
    assert loaded.transform(narrow).dtype == np.float32
    assert loaded.transform(frame).dtype == np.float64


@pytest.mark.slow
def test_fits_without_a_teacher_and_frozen_ones(samples, teacher, tmp_path):
    proba = np.full((len(samples), 3), 0.1)
    proba[np.arange(len(samples)), np.arange(len(samples)) % 3] = 0.8
    loaded = saved_and_loaded(
        CollapseCertifier(tiny()).fit(samples, teacher_proba=proba), tmp_path
    )
    assert loaded.teacher_ is None
    assert verify(tmp_path / "file", samples, teacher_proba=proba).confirmed
    assert not verify(
        tmp_path / "file", samples, teacher_proba=proba[::-1]
    ).same_samples

    frozen = FrozenEstimator(tiny(teacher=FrozenEstimator(teacher)).fit(samples))
    fitted = CollapseCertifier(frozen).fit(samples)
    loaded = saved_and_loaded(fitted, tmp_path)
    assert loaded.estimator is loaded.estimator_
    assert loaded.score(samples) == fitted.score(samples)


def test_a_teacher_as_the_encoder_and_another_of_the_certifier(
    samples, teacher, tmp_path
):
    fitted = CollapseCertifier(clone(teacher), teacher=teacher).fit(samples)
    loaded = saved_and_loaded(fitted, tmp_path)
    assert loaded.score(samples) == fitted.score(samples)


@pytest.mark.slow
def test_what_a_prefit_leaves_is_kept(samples, tmp_path):
    loaded = saved_and_loaded(tiny(prefit={"alpha": 0.5}).fit(samples), tmp_path)
    assert loaded.prefit == {"alpha": 0.5}
    assert loaded.prefit_alpha_ == 0.5


@pytest.mark.slow
def test_convolutions(tmp_path):
    images = np.random.default_rng(0).random((40, 25))
    fitted = tiny(encoder="conv", decoder="conv", image_shape=(1, 5, 5)).fit(images)
    loaded = saved_and_loaded(fitted, tmp_path)
    np.testing.assert_array_equal(loaded.transform(images), fitted.transform(images))


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


@pytest.mark.slow
def test_modules_of_the_user_are_passed_to_load(samples, tmp_path):
    fitted = tiny(encoder=Encoder, warm_start=True).fit(samples)
    with pytest.raises(ValueError, match="modules must contain the encoder") as caught:
        saved_and_loaded(fitted, tmp_path)
    assert not isinstance(caught.value, InvalidFileError)
    with pytest.raises(ValueError, match="modules must be those that were saved"):
        load(tmp_path / "file", modules={"encoder": WideEncoder})
    with pytest.raises(ValueError, match="modules must only have the keys"):
        load(tmp_path / "file", modules={"encoders": Encoder})
    for module in (Encoder(5, 2), Encoder):
        loaded = load(tmp_path / "file", modules={"encoder": module})
        np.testing.assert_array_equal(
            loaded.transform(samples), fitted.transform(samples)
        )
    np.testing.assert_array_equal(
        *[v.fit(samples).transform(samples) for v in (fitted, loaded)]
    )


def frozen_encoder(n_features, latent_dim):
    return Encoder(n_features, latent_dim).requires_grad_(False)


def test_frozen_parameters_stay_frozen(samples, tmp_path):
    fitted = tiny(encoder=frozen_encoder).fit(samples)
    save(fitted, tmp_path / "file")
    loaded = load(tmp_path / "file", modules={"encoder": Encoder})
    assert not any(p.requires_grad for p in loaded.net_.module_.encoder.parameters())
    means = [v.partial_fit(samples).transform(samples) for v in (fitted, loaded)]
    np.testing.assert_array_equal(*means)


@pytest.mark.slow
def test_clones_of_what_was_loaded_fit_alike(certifier, samples, path):
    scores = [clone(e).fit(samples).score(samples) for e in (certifier, load(path))]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_loading_leaves_the_users_generators_alone(path):
    legacy = np.random.mtrand._rand
    before = torch.get_rng_state(), legacy.get_state()[1].copy()
    load(path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (legacy.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("device", ["cuda:77", "meta", "hpu", "privateuseone", "os"])
def test_models_of_a_device_that_is_not_there_come_to_the_cpu(
    path, samples, certifier, device
):
    def change(content, arrays):
        attacks.fitted(content, "CertifiedVAE")["params"]["device"] = device

    attacks.forge(path, change)
    loaded = load(path)
    assert loaded.estimator_.net_.device == "cpu"
    assert loaded.score(samples) == certifier.score(samples)


def test_files_of_schema_4_still_load():
    record = json.loads(OLD_FILE.with_suffix(".json").read_text())
    samples = np.array(record["rows"])
    loaded = load(OLD_FILE)
    assert loaded.score(samples) == pytest.approx(record["margin"], abs=1e-5)
    np.testing.assert_allclose(
        loaded.transform(samples[:2]), record["means"], atol=1e-5
    )
    assert verify(OLD_FILE, samples).same_samples


def make_old_file():
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(3, 3)) * 4)[np.arange(30) % 3] + rng.normal(
        size=(30, 3)
    )
    samples = samples.round(3)
    fitted = CollapseCertifier(tiny(hidden_sizes=(2,), max_epochs=20)).fit(samples)
    save(fitted, OLD_FILE)
    record = {
        "rows": samples.tolist(),
        "margin": fitted.score(samples),
        "means": fitted.transform(samples[:2]).tolist(),
    }
    OLD_FILE.with_suffix(".json").write_text(json.dumps(record))


# The certificate of another model, which is not in the file.


def linear_encoder(**options):
    """An encoder that returns posteriors, made with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainedEncoder(nn.Linear(5, 2), **options)


class First:
    """Not an estimator: returns the first coordinates of samples."""

    def transform(self, X):
        return np.asarray(X)[:, :2]


def foreign():
    """Encoders, as they are certified and as they are passed to load."""
    return {
        "fitted by the certifier": (PCA(2), None),
        "frozen": (FrozenEstimator(linear_encoder()), linear_encoder()),
        "cloned": (linear_encoder(), FrozenEstimator(linear_encoder())),
        "function": (TrainedEncoder(np.tanh), TrainedEncoder(np.tanh)),
        "no estimator": (First(), First()),
        "part of a pipeline": (make_pipeline(PCA(3), PCA(2)), None),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", foreign())
def test_the_certificate_of_any_model_is_saved_without_it(
    samples, teacher, tmp_path, name
):
    encoder, brought = foreign()[name]
    latent_dim = 5 if name == "function" else 2
    for witness in ("raw", "procrustes", "linear"):
        certifier = CollapseCertifier(encoder, teacher=teacher, witness=witness)
        fitted, held_out = certifier.fit(samples[:60]), samples[60:]
        estimator = brought or fitted.estimator_
        save(fitted, tmp_path / "file")
        assert verify(tmp_path / "file", samples[:60], estimator=estimator).confirmed
        loaded = load(tmp_path / "file", estimator=estimator)
        assert loaded.estimator_ is estimator
        certificates = [e.certify(held_out).to_json() for e in (loaded, fitted)]
        assert certificates[0] == certificates[1]
        # Without it, what was certified can be read, and saved again.
        for _ in range(2):
            record = load(tmp_path / "file")
            assert record.certificate_.to_json() == fitted.certificate_.to_json()
            posteriors = [e.teacher_.transform(samples) for e in (record, fitted)]
            np.testing.assert_array_equal(*posteriors)
            assert record.witness_.weights.shape == (3, latent_dim)
            save(record, tmp_path / "file")
        for use in (record.transform, lambda X: verify(tmp_path / "file", X)):
            with pytest.raises(ValueError, match="estimator must be given") as caught:
                use(samples[:60])
            assert not isinstance(caught.value, InvalidFileError)
        assert not verify(tmp_path / "file", samples[1:]).same_samples


@pytest.fixture
def frozen(samples, teacher, tmp_path):
    """A certifier of a torch encoder, and the file of it."""
    encoder = FrozenEstimator(linear_encoder())
    fitted = CollapseCertifier(encoder, teacher=teacher, witness="raw").fit(samples)
    save(fitted, tmp_path / "file")
    return fitted, tmp_path / "file"


def test_means_alone_are_enough_for_the_margin(samples, frozen):
    fitted, path = frozen
    record, means = load(path), fitted.transform(samples)
    proba, scale = record.teacher_.transform(samples), record.witness_scale_
    found = certify(proba, means, record.vertices_, scale)
    assert found.margin == pytest.approx(record.certificate_.margin, abs=1e-6)
    wrong = certify(proba, means[::-1], record.vertices_, scale)
    assert abs(wrong.margin - record.certificate_.margin) > 0.1


def test_only_the_weights_that_were_certified_are_taken(frozen):
    _, path = frozen
    other = linear_encoder()
    with torch.no_grad():
        other.encoder.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="weights that were certified") as caught:
        load(path, estimator=other)
    assert not isinstance(caught.value, InvalidFileError)
    half = linear_encoder()
    half.encoder.half()
    with pytest.raises(ValueError, match="weights that were certified"):
        load(path, estimator=half)
    load(path, estimator=linear_encoder(batch_size=7))


def test_an_encoder_that_was_trained_on_since_is_not_saved(frozen):
    fitted, path = frozen
    before = path.read_bytes()
    with torch.no_grad():
        fitted.estimator_.estimator.encoder.bias += 1
    with pytest.raises(ValueError, match="If it was trained since, fit"):
        save(fitted, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [np.tanh, np.zeros_like], ids=lambda f: f.__name__)
def test_encoders_without_weights_are_distinguished_by_what_they_compute(
    samples, teacher, tmp_path, other
):
    fitted = CollapseCertifier(
        TrainedEncoder(np.positive), teacher=teacher, witness="linear"
    )
    save(fitted.fit(samples), tmp_path / "file")
    assert fitted.certificate_.certified
    assert verify(tmp_path / "file", samples, estimator=fitted.estimator_).confirmed
    verification = verify(tmp_path / "file", samples, estimator=TrainedEncoder(other))
    assert verification.agrees is False
    assert {"margin", "dispersion"} <= {*verification.differences}


class Lengths:
    """Encodes texts."""

    def transform(self, X):
        return np.array([[len(text), text.count("a")] for text in X], float)


def test_certificates_on_texts_are_verified(tmp_path):
    texts = ["a" * (i % 4) + "b" * (i % 7) for i in range(60)]
    proba = np.array([[0.9, 0.1] if "a" in text else [0.2, 0.8] for text in texts])
    fitted = CollapseCertifier(Lengths(), witness="linear")
    save(fitted.fit(texts, teacher_proba=proba), tmp_path / "file")
    given = {"teacher_proba": proba, "estimator": Lengths()}
    assert verify(tmp_path / "file", texts, **given).confirmed
    assert not verify(tmp_path / "file", texts[::-1], **given).same_samples


def test_what_the_file_has_is_not_to_be_brought(path, samples):
    for brought in ({"estimator": First()}, {"modules": {"encoder": Encoder}}):
        with pytest.raises(ValueError, match="must not be passed") as caught:
            verify(path, samples[:60], **brought)
        assert not isinstance(caught.value, InvalidFileError)


@pytest.mark.parametrize("model", [PCA, torch.nn.Linear(4, 3), np.positive])
def test_a_model_without_its_wrapper_is_not_blamed_on_the_file(
    samples, teacher, tmp_path, model
):
    certifier = CollapseCertifier(PCA(2), teacher=teacher, witness="linear").fit(
        samples
    )
    save(certifier, tmp_path / "file")
    match = "^estimator must (be an inst|have a method)"
    with pytest.raises(ValueError, match=match) as caught:
        verify(tmp_path / "file", samples, estimator=model)
    assert not isinstance(caught.value, InvalidFileError)


# A loss that the model was trained with, as witness.


@pytest.fixture
def with_loss(samples, teacher):
    loss_fn = AlignmentLoss.from_teacher(teacher, samples, latent_dim=2)
    encoder = FrozenEstimator(linear_encoder())
    certifier = CollapseCertifier(encoder, teacher=teacher, witness=loss_fn)
    return certifier.fit(samples)


def test_the_loss_as_witness_is_saved(samples, with_loss, tmp_path):
    save(with_loss, tmp_path / "file")
    estimator = linear_encoder()
    assert verify(tmp_path / "file", samples, estimator=estimator).confirmed
    loaded = load(tmp_path / "file", estimator=estimator)
    for name, buffer in with_loss.witness.state_dict().items():
        assert torch.equal(getattr(loaded.witness, name), buffer)
    assert loaded.certify(samples).to_json() == with_loss.certify(samples).to_json()
    refitted = clone(loaded).fit(samples)
    assert refitted.certificate_.to_json() == with_loss.certificate_.to_json()


def test_a_loss_that_was_changed_since_is_not_saved(with_loss, tmp_path):
    with_loss.witness.scale *= 2
    with pytest.raises(ValueError, match="witness must have the vertices_"):
        save(with_loss, tmp_path / "file")
    turned = AlignmentLoss(simplex_vertices(3, 2)[:, ::-1].copy(), 1.0)
    with_loss.set_params(witness=turned)
    with pytest.raises(ValueError, match="vertices_ must be those of simplex_vertices"):
        save(with_loss, tmp_path / "file")


def test_copies_of_a_certifier_with_a_loss_are_equal(samples, with_loss):
    for copied in (copy.deepcopy(with_loss), pickle.loads(pickle.dumps(with_loss))):
        assert copied.certify(samples).to_json() == with_loss.certify(samples).to_json()
    cloned = clone(with_loss).witness
    assert cloned is not with_loss.witness
    assert torch.equal(cloned.vertices, with_loss.witness.vertices)
    assert cloned.scale == with_loss.witness.scale


# `save` refuses objects that `load` could not read.


class MyTeacher(GMMTeacher):
    pass


class MyObjective(Objective):
    pass


def refused():
    """What cannot be saved, and what the error says."""
    own = tiny(teacher=MyTeacher(3))
    return {
        "KMeans": (KMeans(2), r"estimator must be of a type .* got a KMeans"),
        "PCA": (PCA(2), r"must contain an estimator, got a PCA"),
        "teacher": (own, r"\.teacher must be .* got a MyTeacher"),
        "other teacher": (
            CollapseCertifier(PCA(2), teacher=make_pipeline(GMMTeacher(3))),
            r"\.teacher must be .* got a Pipeline",
        ),
        "objective": (tiny(objective=MyObjective()), "got a MyObjective"),
        "list": (GMMTeacher(list(range(2, 4)) * 600), "a list of at most 1000"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_load_could_not_read_is_not_saved(samples, tmp_path, name):
    estimator, reason = refused()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(samples)
        with pytest.raises(ValueError, match=f"{reason}.*What can be saved is"):
            save(estimator, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_histories_that_load_would_not_take_are_not_saved(vae, tmp_path):
    long = pickle.loads(pickle.dumps(vae))
    long.net_.history.extend([long.net_.history[0]] * 60_000)
    with pytest.raises(ValueError, match="tables would take too much memory"):
        save(long, tmp_path / "file")


class Unsteady(Encoder):
    n_made = 0

    def __init__(self, n_features, latent_dim):
        super().__init__(n_features, latent_dim)
        Unsteady.n_made += 1
        if Unsteady.n_made > 1:
            self.more = nn.Linear(1, 1)


def test_modules_that_cannot_be_made_again_are_not_saved(samples, tmp_path):
    with pytest.raises(ValueError, match="one that load can read again"):
        save(tiny(encoder=Unsteady).fit(samples), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_unfitted_estimators_are_not_saved(tmp_path):
    for estimator in (tiny(), CollapseCertifier(tiny()), GMMTeacher()):
        with pytest.raises(NotFittedError):
            save(estimator, tmp_path / "file")


def test_parameters_changed_after_the_fit_are_not_saved_as_if_they_were_its(
    vae, tmp_path
):
    changed = pickle.loads(pickle.dumps(vae)).set_params(latent_dim=3)
    with pytest.raises(ValueError, match="latent_dim must stay"):
        save(changed, tmp_path / "file")


def test_callbacks_and_memory_are_left_out_with_a_warning(samples, tmp_path):
    callback = EpochScoring(lambda net, X, y: 0.0, name="zero", use_caching=False)
    fitted = tiny(memory=str(tmp_path / "cache"), callbacks=[callback]).fit(samples)
    with pytest.warns(NotSavedWarning, match="callbacks and memory"):
        save(fitted, tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert loaded.memory is None
    assert loaded.callbacks is None


# Where a file is written.


def test_mode_and_links_of_an_overwritten_file_are_kept(teacher, tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    save(teacher, link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert isinstance(load(real), GMMTeacher)
    real.unlink()  # a link to what is not there yet
    save(teacher, link)
    assert isinstance(load(real), GMMTeacher)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_new_files_have_the_usual_mode(teacher, tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    save(teacher, tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_only_regular_files_are_replaced_or_read(teacher, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        before = place.stat().st_mode
        with pytest.raises(ValueError, match="path must be a regular file"):
            save(teacher, place)
        with pytest.raises(InvalidFileError, match="path must be a regular file"):
            load(place)
        assert place.stat().st_mode == before
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_failing_save_leaves_the_old_file(vae, path, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save(vae, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_are_not_there_are_not_called_invalid(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


# Verification.


def certificate_of(content, kind="Certificate"):
    (node,) = [n for n in content["objects"] if n["type"] == kind]
    return node["params"]


def with_certificate(path, **values):
    attacks.forge(path, lambda content, _: certificate_of(content).update(values))


def moved(certificate, by):
    """The same certificate with another margin, without a contradiction."""
    margin = certificate.margin + by
    share = margin / certificate.teacher_information
    loss = certificate.alignment_loss - by
    margins = dict.fromkeys(["margin", "margin_low", "margin_high"], margin)
    return {**margins, "alignment_loss": loss, "relative_margin": share}


def test_verification_of_the_right_file(path, samples, certifier):
    verification = verify(path, samples[:60])
    assert verification.confirmed
    assert verification.agrees is True
    assert verification.stored == certifier.certificate_ == verification.recomputed
    assert str(verification).startswith("Confirmed: on these samples")


@pytest.mark.parametrize("others", ["half", "order", "features", "nonsense"])
def test_on_other_samples_verify_does_not_judge_the_model(path, samples, others):
    X = {
        "half": samples[:30],
        "order": samples[59::-1],
        "features": samples[:60, :3],
        "nonsense": [["a"]],
    }[others]
    with_certificate(path, dispersion=123.0)  # which other samples cannot disprove
    verification = verify(path, X)
    assert not verification.confirmed
    assert not verification.same_samples
    assert verification.agrees is None
    assert verification.recomputed is None
    assert "do not have the hash in the file" in str(verification)


def test_margins_may_differ_by_the_tolerance_and_by_no_more(path, samples, certifier):
    certificate = certifier.certificate_
    with_certificate(path, **moved(certificate, -0.9 * certificate.tolerance))
    assert verify(path, samples[:60]).confirmed
    with_certificate(path, **moved(certificate, -1.1 * certificate.tolerance))
    verification = verify(path, samples[:60])
    assert verification.agrees is False
    assert "margin" in verification.differences
    assert "Not confirmed" in str(verification)
    assert "margin is stored as" in str(verification)


def test_a_margin_above_the_information_is_not_confirmed(path, samples, certifier):
    by, c = 0.86, certifier.certificate_
    raised = moved(c, by) | {"alignment_loss": c.alignment_loss}
    raised["teacher_information"] = c.teacher_information + by
    raised["relative_margin"] = raised["margin"] / raised["teacher_information"]
    with_certificate(path, **raised)
    verification = verify(path, samples[:60])
    assert not verification.confirmed
    assert "teacher_information" in verification.differences
    # Next to the true information, the file contradicts itself.
    with_certificate(path, **moved(c, by), teacher_information=c.teacher_information)
    with pytest.raises(InvalidFileError, match="alignment_loss of a Certificate"):
        verify(path, samples[:60])


def test_a_tolerance_as_large_as_one_likes_does_not_loosen_other_values(
    path, samples, certifier
):
    """A scale of 1e140 makes the tolerance recomputed from the model enormous."""

    def change(content, arrays):
        state = content["objects"][-1]["fitted"]
        state["witness_scale_"] = 1e140
        vertices = arrays[state["vertices_"]["array"]]
        witness = attacks.fitted(content, "CollapseCertifier")["fitted"]["witness_"]
        weights = content["objects"][witness["object"]]["params"]["weights"]["array"]
        arrays[weights] = 1e140 * vertices
        by = 0.5 * certifier.certificate_.teacher_information
        certificate_of(content).update(moved(certifier.certificate_, -by))

    attacks.forge(path, change)
    verification = verify(path, samples[:60])
    assert verification.recomputed.tolerance > 1e100
    assert {"tolerance", "verdict", "dispersion_bound"} <= {*verification.differences}


@pytest.mark.slow
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Certificate)])
def test_no_value_of_a_certificate_can_be_edited(path, samples, certifier, field):
    value = getattr(certifier.certificate_, field)
    others = [None, "x", -1, 10**9, True, {"float": "nan"}, {"float": "inf"}]
    if isinstance(value, float):
        others += [value * (1 + 1e-5), value + 1.2, 0.0]
    if isinstance(value, int):
        others += [value + 1]
    if field == "verdict":
        others += ["constant", "inconclusive", "varies"]
    for other in others:
        if other == value and type(other) is type(value):
            continue
        with_certificate(path, **{field: other})
        try:
            assert not verify(path, samples[:60]).confirmed, other
        except InvalidFileError:
            pass


def test_what_drawn_codes_carry_cannot_be_edited(path, samples, certifier):
    def change(content, arrays):
        bracket = certificate_of(content, "InformationBracket")
        bracket["low"] = bracket["estimate"] = bracket["high"]

    attacks.forge(path, change)
    assert verify(path, samples[:60]).differences == ("information",)


def test_a_certificate_is_made_again_for_the_safety_margin_that_it_states(
    path, samples
):
    with_certificate(path, safety_margin=0.25)
    verification = verify(path, samples[:60])
    assert verification.confirmed
    assert verification.recomputed.safety_margin == 0.25


def test_a_constant_encoder_is_not_confirmed_for_any_certificate(path, samples):
    def change(content, arrays):
        for name in arrays:
            if ".net.weights.encoder." in name and name.endswith("weight"):
                arrays[name] = 0 * arrays[name]

    attacks.forge(path, change)
    for tolerance in (0.0, 0.5):
        with_certificate(path, tolerance=tolerance)
        verification = verify(path, samples[:60])
        assert verification.same_samples
        assert not verification.confirmed
        assert verification.recomputed.verdict != "certified"


def test_models_that_fail_on_the_samples_of_their_certificate_are_invalid_files(
    path, samples
):
    def change(content, arrays):
        attacks.fitted(content, "CertifiedVAE")["fitted"]["scale"] = 1e-99

    attacks.forge(path, change)
    with pytest.raises(InvalidFileError, match="standard deviations"):
        verify(path, samples[:60])


def test_verification_needs_a_certifier(teacher, samples, tmp_path):
    save(teacher, tmp_path / "file")
    with pytest.raises(InvalidFileError, match="must contain a CollapseCertifier"):
        verify(tmp_path / "file", samples)


def test_pickles_hold_the_network_once(samples):
    vae = tiny().fit(samples)
    copied = pickle.loads(pickle.dumps(vae))
    assert copied.net_.module is copied.net_.module_
    np.testing.assert_array_equal(copied.transform(samples), vae.transform(samples))


class Recorder(pickle.Unpickler):
    """Records the types that a pickle names."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.found = set()

    def find_class(self, module, name):
        self.found.add(f"{module}.{name}")
        return super().find_class(module, name)


def types_in(estimator):
    recorder = Recorder(pickle.dumps(estimator))
    recorder.load()
    return recorder.found


@pytest.mark.slow
def test_trusted_types_are_those_of_fitted_estimators_and_no_others(
    samples, certifier, teacher
):
    """The types that skops does not trust by default; it trusts NumPy's and such."""
    guarded = tiny(alignment_weight="auto", validation_fraction=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = [
            CollapseCertifier(PCA(2), teacher=teacher, witness="linear").fit(samples),
            guarded.fit(samples),
            *(tiny(objective=kind()).fit(samples) for kind in objectives()),
        ]
    found = set().union(*map(types_in, [*fitted, certifier]))
    # tblib pickles errors, once dask is imported.
    known = ("numpy.", "sklearn.", "collections.", "copyreg.", "_codecs.", "tblib.")
    found -= {"builtins.getattr", "builtins.set"}
    found = {name for name in found if not name.startswith(known)}
    assert found | {"builtins.ValueError"} == {*TRUSTED_TYPES}


@pytest.mark.slow
@pytest.mark.parametrize("witness", ["raw", "linear"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_onnx_gives_what_the_model_gives(samples, tmp_path, witness, dtype):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    far = (1000 + 30 * samples).astype(dtype)  # standardization is part of it
    fitted = CollapseCertifier(tiny(max_epochs=20), witness=witness).fit(far)
    export_onnx(fitted, tmp_path / "model.onnx", dtype=dtype)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for n_samples in (1, 7, 90):
        mean, log_q = session.run(None, {"X": far[:n_samples]})
        assert mean.dtype == log_q.dtype == dtype
        np.testing.assert_allclose(mean, fitted.transform(far[:n_samples]), atol=1e-5)
        expected = fitted.witness_.log_proba(fitted.transform(far[:n_samples]))
        np.testing.assert_allclose(log_q, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 8, 13])
def test_onnx_of_convolutions_gives_what_the_model_gives(tmp_path, size):
    runtime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).random((40, 2 * size**2))
    vae = tiny(encoder="conv", image_shape=(2, size, size)).fit(images)
    export_onnx(vae, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for n_samples in (1, 40):
        mean, log_q = session.run(None, {"X": images[:n_samples]})
        np.testing.assert_allclose(mean, vae.transform(images[:n_samples]), atol=1e-5)
        expected = vae.witness_log_proba(images[:n_samples])
        np.testing.assert_allclose(log_q, expected, atol=1e-4)


def test_onnx_of_something_else_is_refused(samples, vae, tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of"):
        export_onnx(vae, tmp_path / "model.onnx", dtype="float16")
    with pytest.raises(ValueError, match="must be a CertifiedVAE"):
        export_onnx(GMMTeacher(3).fit(samples), tmp_path / "model.onnx")


def test_without_safetensors_the_error_says_how_to_get_it(path, vae, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (lambda: load(path), lambda: save(vae, path)):
        with pytest.raises(ImportError, match=r"pip install 'skvaecert\[save\]'"):
            use()


if __name__ == "__main__":
    OLD_FILE.parent.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    make_old_file()
