import copy

import numpy as np
import pytest

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.baselines import FreeBits
from skvaecert.diagnostics import kl_per_dimension
from skvaecert.forecast import (
    collapse_threshold,
    forecast_margin,
    linear_information,
    ratio_for_margin,
)
from skvaecert.metrics import teacher_information

CURVE = (
    "ratio",
    "margin",
    "energy",
    "teacher_information",
    "operating_ratio",
    "operating_margin",
    "operating_energy",
    "kl_weight",
    "collapse_threshold",
    "linear_information",
)


def same_curves(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in CURVE
    )


def test_forecast_before_training_is_that_of_the_fit(blobs, vae):
    before = copy.deepcopy(vars(vae))
    curve = vae.forecast(blobs)
    assert vars(vae).keys() == before.keys()
    with pytest.raises(ValueError, match="not fitted"):
        vae.transform(blobs)
    vae.set_params(max_epochs=1).fit(blobs)
    assert same_curves(curve, vae.forecast(blobs))
    proba = vae.teacher_.predict_proba(blobs)
    forecast = forecast_margin(proba, vae.witness_scale_, curve.ratio)
    np.testing.assert_array_equal(curve.margin, forecast.margin)
    np.testing.assert_array_equal(curve.energy, forecast.energy)
    information = teacher_information(proba)
    assert curve.teacher_information == pytest.approx(information, rel=1e-12)
    assert curve.target_margin is None


def test_forecast_trains_nothing(blobs, vae):
    def built(n_features, latent_dim):
        raise AssertionError("a network was made")

    vae.set_params(encoder=built)
    assert vae.forecast(blobs).operating_margin > 0
    with pytest.raises(AssertionError, match="a network was made"):
        vae.fit(blobs)


@pytest.mark.slow
def test_forecast_is_of_the_samples_to_train_on(blobs, vae):
    fitted_on = []

    class Teacher(GMMTeacher):
        def fit(self, X, y=None):
            fitted_on.append(X)
            return super().fit(X)

    vae.set_params(
        teacher=Teacher(4, covariance_type="full"),
        validation_fraction=0.3,
        max_epochs=1,
    )
    before = vae.forecast(blobs)
    vae.fit(blobs)
    forecast_on, trained_on = fitted_on
    np.testing.assert_array_equal(forecast_on, trained_on)
    assert same_curves(before, vae.forecast(trained_on))
    assert not same_curves(before, vae.forecast(blobs))


def test_forecast_draws_from_no_generator_of_the_user(blobs, vae):
    generator = np.random.RandomState(0)
    vae.set_params(random_state=generator)
    curves = [vae.forecast(blobs) for _ in range(2)]
    assert same_curves(*curves)
    assert generator.randint(2**31) == np.random.RandomState(0).randint(2**31)


@pytest.mark.filterwarnings("ignore:Persisting input arguments")
def test_forecast_and_fit_share_a_cached_teacher(blobs, vae, tmp_path):
    vae.set_params(memory=str(tmp_path), max_epochs=1).forecast(blobs)
    cached = list(tmp_path.rglob("output.pkl"))
    vae.fit(blobs)
    assert list(tmp_path.rglob("output.pkl")) == cached
    assert len(cached) == 1


@pytest.mark.parametrize(
    ("alignment_weight", "kl_weight", "ratio"),
    [(10, 4, 2.5), (0, 4, 0), (10, 0, np.inf), (0, 0, np.nan)],
)
def test_operating_point(blobs, vae, alignment_weight, kl_weight, ratio):
    vae.set_params(alignment_weight=alignment_weight, kl_weight=kl_weight)
    curve = vae.forecast(blobs, ratio=[0.0, 2.5, np.inf])
    assert curve.operating_ratio == pytest.approx(ratio, nan_ok=True)
    place = curve.ratio == ratio
    margin, energy = curve.margin[place], curve.energy[place]
    if np.isnan(ratio):
        margin = energy = [np.nan]
    assert [curve.operating_margin] == pytest.approx(margin, nan_ok=True)
    assert [curve.operating_energy] == pytest.approx(energy, nan_ok=True)


def test_operating_point_of_the_guard_is_its_target(blobs, trained):
    trained.set_params(alignment_weight="auto", target_margin=0.7)
    curve = trained.forecast(blobs, ratio=3.0)
    assert curve.ratio.shape == curve.margin.shape == (1,)
    assert curve.target_margin == 0.7
    relative = curve.operating_margin / curve.teacher_information
    assert relative == pytest.approx(0.7, abs=1e-9)
    proba = trained.teacher_.predict_proba(blobs)
    wanted = ratio_for_margin(proba, trained.witness_scale_, 0.7)
    assert curve.operating_ratio == pytest.approx(wanted)


def test_forecast_takes_weights_that_are_set_after_the_fit(blobs, trained):
    trained.set_params(alignment_weight=3, kl_weight=4)
    assert trained.forecast(blobs).operating_ratio == 0.75


def test_forecast_of_collapse(blobs, vae):
    # Scale and shift do not matter; for Bernoulli, bytes are intensities.
    images = np.clip(128 + 12 * blobs, 0, 255).astype(np.uint8)
    weights = {"kl_weight": 2.5, "latent_dim": 3}
    for X in (blobs, 1e3 * blobs + 1e5, images):
        curve = vae.set_params(**weights, likelihood="gaussian").forecast(X)
        assert curve.kl_weight == 2.5
        assert curve.collapse_threshold == pytest.approx(collapse_threshold(X))
        kept = linear_information(X, 2.5, 3).information
        assert curve.linear_information == pytest.approx(kept)
        assert kept > 0.1
    intensity = images / 255
    for X in (images, intensity):
        curve = vae.set_params(likelihood="bernoulli").forecast(X)
        expected = collapse_threshold(intensity, likelihood="bernoulli")
        assert curve.collapse_threshold == pytest.approx(expected)
        assert curve.linear_information is None


def test_without_a_kl_term_the_information_has_no_limit(blobs, vae):
    limited = vae.set_params(kl_weight=1e-3).forecast(blobs)
    curve = vae.set_params(kl_weight=0).forecast(blobs)
    assert limited.linear_information < curve.linear_information == np.inf
    assert curve.collapse_threshold == limited.collapse_threshold


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_linear_vaes_train_to_the_forecast_of_collapse(likelihood):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) * [1, 1, 1, 1, 3, 3]
    X = 40 * hidden + 300 * rng.normal(size=6)
    if likelihood == "bernoulli":
        X = (rng.random((400, 6)) < 1 / (1 + np.exp(-hidden))).astype(np.uint8) * 255
    proba = np.array([[0.4, 0.6], [0.6, 0.4]]).repeat(200, axis=0)
    kept = {}
    for share in (0.8, 1.2):
        vae = CertifiedVAE(
            latent_dim=2,
            hidden_sizes=(),
            likelihood=likelihood,
            alignment_weight=0,
            batch_size=400,
            learning_rate=0.01,
            max_epochs=400,
            device="cpu",
            random_state=0,
        )
        threshold = vae.forecast(X, teacher_proba=proba).collapse_threshold
        vae.set_params(kl_weight=share * threshold).fit(X, teacher_proba=proba)
        kept[share] = kl_per_dimension(*vae.encode(X)).sum()
        if likelihood == "gaussian":
            forecast = vae.forecast(X, teacher_proba=proba).linear_information
            assert kept[share] == pytest.approx(forecast, rel=0.05, abs=1e-3)
    assert kept[0.8] > 0.05
    assert kept[1.2] < 1e-3


def test_forecast_with_posteriors(blobs, vae):
    proba = GMMTeacher(4, random_state=1).fit(blobs).predict_proba(blobs)
    curve = vae.forecast(blobs, teacher_proba=proba)
    information = teacher_information(proba)
    assert curve.teacher_information == pytest.approx(information, rel=1e-12)
    vae.set_params(max_epochs=1).fit(blobs, teacher_proba=proba)
    assert same_curves(curve, vae.forecast(blobs, teacher_proba=proba))
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        vae.forecast(blobs)
    with pytest.raises(ValueError, match="the 4 components of the fit, got 2"):
        vae.forecast(blobs, teacher_proba=np.full((120, 2), 0.5))
    with pytest.raises(ValueError, match="one row for each of the 119 samples"):
        vae.forecast(blobs[1:], teacher_proba=proba)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"latent_dim": 2}, "latent_dim must be at least"),
        ({"kl_weight": -1}, "'kl_weight' parameter"),
        ({"prefit": {"alpha": 1.0, "energy": 1.0}}, "prefit must be None"),
        ({"objective": FreeBits()}, r"objective must be None.*got FreeBits\(\)"),
    ],
)
def test_forecast_refuses_what_fit_would_or_it_cannot_tell(blobs, vae, params, message):
    with pytest.raises(ValueError, match=message):
        vae.set_params(**params).forecast(blobs)


def test_forecast_refuses_constant_data(blobs, vae):
    proba = GMMTeacher(4, random_state=1).fit(blobs).predict_proba(blobs)
    with pytest.raises(ValueError, match="X must vary"):
        vae.forecast(np.ones((120, 6)), teacher_proba=proba)


def test_forecast_refuses_bad_data(bad_data, vae):
    X, message = bad_data
    with pytest.raises((ValueError, TypeError), match=message):
        vae.forecast(X)
