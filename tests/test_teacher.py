import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV

from skvaecert import GMMTeacher
from skvaecert._teacher import teacher_posterior
from skvaecert.exceptions import UninformativeTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import analytic_energy


def test_finds_the_groups(blobs):
    groups = GMMTeacher(n_components=4, random_state=0).fit(blobs).predict(blobs)
    centres = np.random.default_rng(0).normal(size=(4, 6)) * 4
    truth = ((blobs[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert adjusted_rand_score(truth, groups) == 1


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_posterior_is_that_of_the_mixture_with_a_floor(blobs, covariance_type):
    teacher = GMMTeacher(
        n_components=4, covariance_type=covariance_type, floor=0.02, random_state=0
    ).fit(blobs)
    plain = teacher.mixture_.predict_proba(teacher.pca_.transform(blobs))
    np.testing.assert_allclose(
        teacher.predict_proba(blobs), 0.98 * plain + 0.02 / 4, atol=1e-12
    )


def test_temperature_softens(blobs):
    teacher = GMMTeacher(n_components=4, temperature=5, floor=1e-6, random_state=0)
    teacher.fit(blobs)
    plain = teacher.mixture_.predict_proba(teacher.pca_.transform(blobs))
    powers = plain ** (1 / 5)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(teacher.predict_proba(blobs), expected, atol=2e-6)


def test_high_temperatures_do_not_underflow():
    """Posteriors of 1e-3000 are 0 in float64, but not to the power of 1/1000."""
    X = np.array([[0.0], [0.1], [100.0], [100.1]])
    teacher = GMMTeacher(
        n_components=2, reg_covar=1e-6, temperature=1e8, floor=1e-9, random_state=0
    )
    with pytest.warns(UninformativeTeacherWarning):
        teacher.fit(X)
    assert (teacher.mixture_.predict_proba(teacher.pca_.transform(X)) == 0).any()
    assert teacher.predict_proba(X).min() > 0.3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_full_support_in_any_dtype(digits, dtype):
    X = digits[0].astype(dtype)
    teacher = GMMTeacher(n_components=20, floor=1e-6, random_state=0).fit(X)
    proba = teacher.predict_proba(X)
    assert proba.dtype == dtype
    assert proba.min() > 0
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)


def test_what_is_learned(digits):
    teacher = GMMTeacher(n_components=5, temperature=2, random_state=0).fit(digits[0])
    proba = teacher.transform(digits[0])
    assert teacher.n_components_ == 5
    assert teacher.temperature_ == 2
    assert teacher.score(digits[0]) == teacher_information(proba)
    assert teacher.information_ == pytest.approx(teacher_information(proba), rel=1e-12)
    assert teacher.energy_ == pytest.approx(analytic_energy(proba, 1.0))
    np.testing.assert_allclose(teacher.mean_proba_, proba.mean(axis=0))
    assert teacher.n_iter_ >= 1
    assert list(teacher.get_feature_names_out()) == [f"gmmteacher{i}" for i in range(5)]


def test_score_takes_weights(blobs):
    teacher = GMMTeacher(n_components=4, random_state=0).fit(blobs)
    times = np.random.default_rng(0).integers(1, 4, size=len(blobs))
    weighted = teacher.score(blobs, sample_weight=times)
    assert weighted == pytest.approx(teacher.score(blobs.repeat(times, axis=0)))


def test_units_do_not_matter(blobs):
    """Neither the size of the data nor where they lie changes the teacher."""
    posteriors = [
        GMMTeacher(n_components=4, random_state=0).fit(X).transform(X)
        for X in (blobs, 1e-6 * blobs, 1e6 * blobs + 1e7)
    ]
    np.testing.assert_allclose(posteriors[1], posteriors[0], atol=1e-6)
    np.testing.assert_allclose(posteriors[2], posteriors[0], atol=1e-6)


def test_same_seed_same_teacher(digits):
    fits = [
        GMMTeacher(random_state=3).fit(digits[0]).transform(digits[1]) for _ in "ab"
    ]
    np.testing.assert_array_equal(*fits)


def test_fewer_features_than_components_asked_for(blobs):
    assert (
        GMMTeacher(n_components=4, pca_components=50).fit(blobs).pca_.n_components_ == 6
    )


@pytest.mark.parametrize("library", [pd, pl])
def test_frames(blobs, library):
    X = library.DataFrame({name: blobs[:, i] for i, name in enumerate("abcdef")})
    teacher = GMMTeacher(n_components=4, random_state=0)
    teacher.set_output(transform=library.__name__)
    posterior = teacher.fit_transform(X)
    assert isinstance(posterior, library.DataFrame)
    assert list(posterior.columns) == [f"gmmteacher{i}" for i in range(4)]
    np.testing.assert_array_equal(posterior, teacher.predict_proba(X))


def test_information_can_be_searched(blobs):
    search = GridSearchCV(GMMTeacher(random_state=0), {"n_components": [1, 4]}, cv=3)
    with pytest.warns(UninformativeTeacherWarning):
        search.fit(blobs)
    assert search.best_params_ == {"n_components": 4}


def test_torch_tensors_are_taken_as_arrays(blobs):
    teacher = GMMTeacher(n_components=4, random_state=0).fit(torch.tensor(blobs))
    expected = GMMTeacher(n_components=4, random_state=0).fit(blobs).transform(blobs)
    np.testing.assert_array_equal(teacher.transform(torch.tensor(blobs)), expected)


def test_bad_data(bad_data):
    X, message = bad_data
    with pytest.raises((ValueError, TypeError), match=message):
        GMMTeacher().fit(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((20, 3), 7.0), "X must have rows that differ"),
        (np.arange(6.0).reshape(3, 2), r"at most the number .*n_samples=3, got 10"),
    ],
)
def test_data_without_a_teacher(X, message):
    with pytest.raises(ValueError, match=message):
        GMMTeacher().fit(X)


@pytest.mark.parametrize(
    "params",
    [
        {"n_components": 0},
        {"n_components": 2.5},
        {"floor": 0.0},
        {"floor": 1e-50},
        {"floor": 1.0},
        {"temperature": 0.0},
        {"covariance_type": "round"},
        {"pca_components": 0},
        {"reg_covar": -1.0},
    ],
)
def test_bad_parameters(blobs, params):
    (name, value), *_ = params.items()
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        GMMTeacher(**params).fit(blobs)


def test_a_failed_fit_leaves_the_earlier_one(blobs):
    teacher = GMMTeacher(n_components=4, random_state=0).fit(blobs)
    before = teacher.transform(blobs)
    with pytest.raises(ValueError, match="rows that differ"):
        teacher.fit(np.zeros((10, 2)))
    np.testing.assert_array_equal(teacher.transform(blobs), before)


def test_wrong_width_and_unfitted(blobs):
    with pytest.raises(ValueError, match="not fitted yet"):
        GMMTeacher().transform(blobs)
    teacher = GMMTeacher(n_components=4).fit(blobs)
    with pytest.raises(
        ValueError, match="X has 5 features, but GMMTeacher is expecting 6"
    ):
        teacher.transform(blobs[:, :5])


@pytest.mark.parametrize(
    "params", [{"n_components": 1}, {"temperature": 1e9}, {"floor": 0.999}]
)
def test_an_uninformative_teacher_warns(blobs, params):
    with pytest.warns(UninformativeTeacherWarning, match=r"only .* nats.*n_components"):
        GMMTeacher(**{"n_components": 4} | params).fit(blobs)


def test_a_teacher_without_full_support_is_named(blobs):
    sharp = GaussianMixture(4, random_state=0).fit(blobs)
    with pytest.raises(ValueError, match=r"teacher, a GaussianMixture, .*full support"):
        teacher_posterior(sharp, 100 * blobs)


def test_posterior_of_any_teacher(blobs):
    labels = np.arange(len(blobs)) % 3
    classifier = LogisticRegression().fit(blobs, labels)
    proba = teacher_posterior(FrozenEstimator(classifier), blobs)
    np.testing.assert_allclose(proba, classifier.predict_proba(blobs))
    teacher = GMMTeacher(n_components=4).set_output(transform="pandas").fit(blobs)
    assert isinstance(teacher_posterior(teacher, blobs), np.ndarray)
