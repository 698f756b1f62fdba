"""Data of any scale and kind, held-out samples, streams."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.preprocessing import MinMaxScaler
from skorch.callbacks import Callback, Checkpoint
from torch.utils.data import TensorDataset

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert._training.batches import Standardization, Streamed
from skvaecert._vae.data import Data, Preprocessor, fit_standardization, split
from skvaecert.datasets import DatasetSamples
from skvaecert.metrics import collapse_margin, teacher_information


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-30, "float32"), (1e15, "float32"), (1e-100, "float64"), (1e100, "float64")],
)
def test_data_of_any_scale(blobs, vae, scale, dtype):
    X = (scale * (blobs + 3)).astype(dtype)
    vae.set_params(max_epochs=15).fit(X)
    X = X.astype(np.float64)
    error = ((vae.inverse_transform(vae.transform(X)) - X) ** 2).mean()
    assert error < 0.2 * X.var(axis=0).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_that_overflow_are_refused(blobs, vae, dtype):
    X = blobs.astype(dtype)
    with pytest.raises(
        ValueError, match=rf"X must have magnitudes below .*{dtype.__name__}"
    ):
        vae.fit(X / 10 * np.sqrt(np.finfo(dtype).max))
    vae.set_params(max_epochs=1).fit(X)
    with pytest.raises(ValueError, match=r"within 1e15 standard deviations .* units"):
        vae.transform(1e16 * blobs)


def test_samples_beyond_one_can_be_encoded_but_have_no_likelihood(blobs, vae):
    X = MinMaxScaler().fit_transform(blobs)
    vae.set_params(likelihood="bernoulli").fit(X)
    assert np.isfinite(vae.transform(1.1 * X)).all()
    with pytest.raises(ValueError, match=r"X must lie in \[0, 1\]"):
        vae.score(1.1 * X)


def test_nan_in_late_samples_is_found(blobs, trained):
    spoilt = blobs.copy()
    spoilt[7, 3] = np.nan
    for method in (trained.transform, trained.score, trained.partial_fit):
        with pytest.raises(ValueError, match="NaN"):
            method(spoilt)
        with pytest.raises(ValueError, match="NaN"):
            method(DatasetSamples(TensorDataset(torch.from_numpy(spoilt))))


@pytest.fixture
def bytes_(blobs):
    low, high = blobs.min(axis=0), blobs.max(axis=0)
    return np.round(255 * (blobs - low) / (high - low)).astype(np.uint8)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_bytes_are_fitted_like_the_floats_they_stand_for(bytes_, vae, likelihood):
    vae.set_params(likelihood=likelihood)
    kept = []

    class Dataset(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            kept.append(X.samples.values.dtype)

    twin = clone(vae)
    vae.set_params(callbacks=[Dataset()]).fit(bytes_)
    assert kept == [torch.uint8]
    unit = 255.0 if likelihood == "bernoulli" else 1.0
    twin.fit(bytes_ / unit)
    np.testing.assert_allclose(
        vae.transform(bytes_), twin.transform(bytes_ / unit), atol=1e-4
    )
    assert vae.score(bytes_) == pytest.approx(twin.score(bytes_ / unit), rel=1e-4)
    Z = vae.transform(bytes_)
    np.testing.assert_allclose(
        vae.inverse_transform(Z), unit * twin.inverse_transform(Z), rtol=1e-3, atol=1e-2
    )


def test_bytes_that_are_zeros_and_ones_are_probabilities(blobs, vae):
    X = (blobs > 0).astype(np.uint8)
    vae.set_params(likelihood="bernoulli", max_epochs=2)
    twin = clone(vae).fit(X.astype(float))
    np.testing.assert_allclose(vae.fit(X).transform(X), twin.transform(X), atol=1e-5)
    with pytest.raises(ValueError, match=r"X must lie in \[0, 1\].* to 255"):
        vae.partial_fit(255 * X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("fraction", [None, 0.25])
def test_samples_on_disk_and_of_a_dataset_are_streamed(
    blobs, vae, tmp_path, dtype, fraction
):
    X = blobs.astype(dtype)
    np.save(tmp_path / "samples.npy", X)
    mapped = np.load(tmp_path / "samples.npy", mmap_mode="r")
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(X), torch.zeros(len(X))))
    vae.set_params(max_epochs=2, validation_fraction=fraction)
    expected = clone(vae).fit(X)
    for samples in (mapped, dataset):
        kinds = []

        class Kind(Callback):
            def on_train_begin(self, net, X=None, kinds=kinds, **kwargs):
                kinds.append(type(X.samples))

        streamed = clone(vae).set_params(callbacks=[Kind()]).fit(samples)
        assert kinds == [Streamed]
        np.testing.assert_array_equal(
            streamed.transform(samples), expected.transform(X)
        )
        assert streamed.score(samples) == expected.score(X)
        assert streamed.history_[-1]["margin"] == expected.history_[-1]["margin"]


def test_bad_samples_in_a_stream_are_found_before_the_first_epoch(blobs, vae):
    X = np.tile(blobs, (3, 1))
    X[-1, -1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        vae.fit(DatasetSamples(TensorDataset(torch.from_numpy(X))))
    vae.set_params(likelihood="bernoulli")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        vae.fit(DatasetSamples(TensorDataset(torch.from_numpy(blobs))))
    assert not hasattr(vae, "net_")


def test_a_certifier_takes_a_stream(blobs, vae):
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(blobs)))
    certifier = CollapseCertifier(vae).fit(dataset)
    assert certifier.certificate_.verdict == "certified"
    assert certifier.score(dataset) == certifier.score(blobs)
    assert certifier.certify(dataset) == certifier.certify(blobs)


def test_held_out_samples_are_not_fitted_on(blobs, vae):
    seen = []

    class Teacher(GMMTeacher):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X)

    class Inputs(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            seen.append(X.samples.values)

    vae.set_params(teacher=Teacher(4), validation_fraction=0.25, max_epochs=10)
    vae.set_params(callbacks=[Inputs()]).fit(blobs)
    fitted, inputs = seen
    assert len(fitted) == 90
    held_out = np.array([x for x in blobs if not (fitted == x).all(axis=1).any()])
    assert len(held_out) == 30
    proba = vae.teacher_.predict_proba(held_out)
    log_q = vae.witness_log_proba(held_out)
    last = vae.history_[-1]
    assert last["validation_margin"] == pytest.approx(
        collapse_margin(proba, log_q), abs=1e-5
    )
    assert last["validation_information"] == pytest.approx(
        teacher_information(proba), abs=1e-5
    )
    # The standardization is that of the training samples, and so is the margin.
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-6)
    assert inputs.var(axis=0, correction=0).mean() == pytest.approx(1, abs=1e-5)
    assert last["teacher_information"] == pytest.approx(
        teacher_information(vae.teacher_.predict_proba(fitted)), abs=1e-5
    )
    # The codes are other draws than those of score.
    assert last["validation_loss"] == pytest.approx(-vae.score(held_out), rel=0.1)


def test_without_held_out_samples_there_is_no_validation(shared_vae):
    assert "validation_loss" not in shared_vae.history_[-1]


def test_warm_fits_hold_out_the_same_samples(blobs, vae):
    held_out = []

    class HeldOut(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            held_out.append(X.held_out.samples.values)

    vae.set_params(validation_fraction=0.25, max_epochs=1, callbacks=[HeldOut()])
    vae.fit(blobs).set_params(warm_start=True, random_state=5).fit(blobs)
    assert torch.equal(*held_out)
    vae.set_params(warm_start=False).fit(blobs)
    assert not torch.equal(*held_out[1:])


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_parts_need_samples(blobs, vae, fraction):
    with pytest.raises(
        ValueError, match=f"validation_fraction .* got {fraction} of 120"
    ):
        vae.set_params(validation_fraction=fraction).fit(blobs)


def test_the_best_epoch_by_held_out_samples(vae, tmp_path):
    noise = np.random.default_rng(0).normal(size=(60, 6))
    best = Checkpoint(monitor="validation_loss_best", dirname=tmp_path, load_best=True)
    vae.set_params(validation_fraction=0.25, max_epochs=25, callbacks=[best])
    vae.fit(noise)
    losses = [row["validation_loss"] for row in vae.net_.history]
    flags = [row["validation_loss_best"] for row in vae.net_.history]
    assert flags == [v < min([np.inf, *losses[:i]]) for i, v in enumerate(losses)]
    n_epochs = 1 + np.argmin(losses)
    assert n_epochs < 25
    again = clone(vae).set_params(callbacks=None, max_epochs=n_epochs)
    np.testing.assert_allclose(
        vae.transform(noise), again.fit(noise).transform(noise), atol=1e-5
    )


def test_a_split_has_every_sample_once():
    training, held_out = split(100, 0.25, seed=3)
    assert (len(training), len(held_out)) == (75, 25)
    together = np.sort(np.concatenate([training, held_out]))
    np.testing.assert_array_equal(together, np.arange(100))
    np.testing.assert_array_equal(split(100, 0.25, seed=3)[1], held_out)
    assert split(100, None, seed=3) == (None, None)


def test_the_guard_looks_at_held_out_samples():
    X, proba = np.arange(8.0).reshape(4, 2), np.full((4, 2), 0.5)
    whole = Data.cut(X, proba, None, None)
    assert whole.guarded[0] is X
    cut = Data.cut(X, proba, np.array([0, 2]), np.array([1, 3]))
    np.testing.assert_array_equal(cut.samples, X[::2])
    np.testing.assert_array_equal(cut.guarded[0], X[1::2])
    assert len(cut.guarded[1]) == 2


def test_all_features_are_divided_by_the_same_scale(blobs, vae):
    location, scale = fit_standardization(vae, "gaussian", blobs)
    np.testing.assert_allclose(location, blobs.mean(axis=0))
    assert scale == pytest.approx(np.sqrt(blobs.var(axis=0).mean()))
    preprocessor = Preprocessor(vae, "gaussian", Standardization(location, scale))
    (chunk,) = preprocessor.standardize(blobs)
    np.testing.assert_allclose(chunk, (blobs - location) / scale, rtol=1e-5, atol=1e-6)
    assert preprocessor.log_unit == pytest.approx(6 * np.log(scale))
