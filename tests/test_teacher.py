import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV

from skvaecert import GMMTeacher, _samples
from skvaecert._teacher import gmm
from skvaecert.exceptions import UninformativeTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import analytic_energy


def test_finds_the_clusters(blobs):
    clusters = GMMTeacher(n_components=4, random_state=0).fit(blobs).predict(blobs)
    centers = np.random.default_rng(0).normal(size=(4, 6)) * 4
    truth = ((blobs[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert adjusted_rand_score(truth, clusters) == 1


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
    teacher = GMMTeacher(
        n_components=4,
        covariance_type="full",
        temperature=5,
        floor=1e-6,
        random_state=0,
    ).fit(blobs)
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


@pytest.mark.slow
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
    """Neither scale nor shift of the data changes the teacher."""
    posteriors = [
        GMMTeacher(n_components=4, random_state=0).fit(X).transform(X)
        for X in (blobs, 1e-6 * blobs, 1e6 * blobs + 1e7)
    ]
    np.testing.assert_allclose(posteriors[1], posteriors[0], atol=1e-6)
    np.testing.assert_allclose(posteriors[2], posteriors[0], atol=1e-6)


@pytest.mark.slow
def test_same_seed_same_teacher(digits):
    fits = [
        GMMTeacher(random_state=3).fit(digits[0]).transform(digits[1]) for _ in "ab"
    ]
    np.testing.assert_array_equal(*fits)


def test_fewer_features_than_principal_components(blobs):
    assert (
        GMMTeacher(n_components=4, pca_components=50).fit(blobs).pca_.n_components_ == 6
    )


@pytest.mark.slow
def test_fewer_principal_components_are_those_of_a_shorter_pca(digits):
    """One PCA serves all dimensions of a search."""
    teacher = GMMTeacher([5, 10], pca_components=[7, 30], random_state=0)
    pca = teacher.fit(digits[0]).pca_
    alone = PCA(pca.n_components_).fit(digits[0])
    for name in (
        "components_",
        "explained_variance_",
        "explained_variance_ratio_",
        "singular_values_",
        "mean_",
    ):
        np.testing.assert_allclose(
            np.abs(getattr(pca, name)), np.abs(getattr(alone, name)), rtol=1e-6
        )
    assert pca.noise_variance_ == pytest.approx(alone.noise_variance_)
    assert pca.n_components == alone.n_components
    np.testing.assert_allclose(pca.get_covariance(), alone.get_covariance(), atol=1e-12)


@pytest.fixture
def on_disk(tmp_path):
    """Write samples to a file and map it."""

    def write(samples):
        path = tmp_path / f"{samples.dtype}.npy"
        np.save(path, samples)
        return np.load(path, mmap_mode="r")

    return write


@pytest.fixture(scope="module")
def searched(digits):
    """A search on the digits, from 0 to 16."""
    return GMMTeacher([4, 8], random_state=0).fit(16 * digits[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_samples_on_disk_give_the_same_teacher(digits, on_disk, searched, dtype):
    samples = (16 * digits[0]).astype(dtype)
    teacher = GMMTeacher([4, 8], random_state=0).fit(on_disk(samples))
    proba = teacher.transform(on_disk(samples))
    assert proba.dtype == (np.float32 if dtype == np.float32 else np.float64)
    np.testing.assert_allclose(proba, searched.transform(samples), atol=1e-6)
    assert teacher.score(on_disk(samples)) == pytest.approx(searched.information_)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_arrays_are_not_copied(digits, on_disk, dtype, monkeypatch):
    """All samples are read, but memory stays below that of the array in float32."""
    monkeypatch.setattr(_samples, "_CHUNK_VALUES", 2**16)
    monkeypatch.setattr(gmm, "_PCA_SAMPLES", 1000)
    samples = np.tile((16 * digits[0]).astype(dtype), (20, 8))
    mapped = on_disk(samples)
    teacher = GMMTeacher(pca_components=8, subsample=1000, random_state=0)
    tracemalloc.start()
    teacher.fit(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * 4 * samples.size
    assert teacher.information_ == pytest.approx(teacher.score(samples))


@pytest.mark.slow
def test_the_size_of_chunks_does_not_matter(digits, searched, monkeypatch):
    expected = searched.transform(16 * digits[1])
    monkeypatch.setattr(_samples, "_CHUNK_VALUES", 100 * 64)
    monkeypatch.setattr(gmm, "_BATCH_VALUES", 300)
    chunked = GMMTeacher([4, 8], random_state=0).fit(16 * digits[0])
    for name in ("information_", "energy_", "mean_proba_"):
        np.testing.assert_allclose(
            getattr(chunked, name), getattr(searched, name), rtol=1e-9
        )
    np.testing.assert_allclose(chunked.transform(16 * digits[1]), expected, atol=1e-9)


@pytest.mark.slow
def test_subsample(digits, monkeypatch):
    """The mixture is fitted on some samples, the values are those of all."""
    teacher = GMMTeacher(4, subsample=400, random_state=0).fit(digits[0])
    full = GMMTeacher(4, subsample=None, random_state=0).fit(digits[0])
    assert teacher.mixture_.lower_bound_ != full.mixture_.lower_bound_
    assert teacher.information_ == pytest.approx(teacher.score(digits[0]))
    assert teacher.information_ == pytest.approx(full.information_, rel=0.2)
    monkeypatch.setattr(gmm, "_PCA_SAMPLES", 300)
    searched = GMMTeacher([4, 8], subsample=400, random_state=0).fit(digits[0])
    again = GMMTeacher([4, 8], subsample=400, random_state=0).fit(digits[0])
    np.testing.assert_array_equal(
        searched.transform(X := digits[1]), again.transform(X)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=repr)
def test_bad_values_anywhere_on_disk(digits, on_disk, bad, monkeypatch):
    monkeypatch.setattr(_samples, "_CHUNK_VALUES", 100 * 64)
    teacher = GMMTeacher(4, random_state=0).fit(digits[0])
    before = teacher.transform(digits[1])
    samples = digits[0].astype(np.float32)
    samples[-1, -1] = bad
    message = "NaN|infinity|magnitudes below"
    with pytest.raises(ValueError, match=message):
        teacher.fit(on_disk(samples))
    with pytest.raises(ValueError, match=message):
        teacher.transform(on_disk(samples))
    np.testing.assert_array_equal(teacher.transform(digits[1]), before)


def test_there_is_no_sample_weight(digits):
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample_weight'"):
        GMMTeacher().fit(digits[0], sample_weight=np.ones(len(digits[0])))


def test_samples_too_close_for_their_squares(blobs):
    with pytest.raises(ValueError, match=r"X must vary by more than 1e-100.*Rescale"):
        GMMTeacher(4).fit(1e-160 * blobs)


def test_a_subsample_smaller_than_the_components(blobs):
    with pytest.raises(ValueError, match=r"n_components must .*subsample=5\), got 10"):
        GMMTeacher(n_components=10, subsample=5).fit(blobs)


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
        (np.full((20, 3), 7.0), "X must have samples that differ"),
        (np.arange(6.0).reshape(3, 2), r"at most the number .*n_samples=3, .* got 10"),
    ],
)
def test_data_without_a_teacher(X, message):
    with pytest.raises(ValueError, match=message):
        GMMTeacher(n_components=10).fit(X)


@pytest.mark.parametrize(
    ("n_samples", "n_components", "searched"),
    [(2, 2, False), (15, 3, False), (66, 10, False), (67, 10, True), (300, 10, True)],
)
def test_the_default_fits_the_number_of_samples(n_samples, n_components, searched):
    X = np.random.default_rng(0).normal(size=(n_samples, 3))
    teacher = GMMTeacher(min_agreement=0, random_state=0).fit(X)
    assert teacher.n_components_ == n_components
    assert (teacher.search_results_ is not None) == searched
    if searched:
        tried = teacher.search_results_["covariance_type"]
        assert set(tried) == {"full", "tied", "diag", "spherical"}
    else:
        assert teacher.mixture_.covariance_type == "spherical"


def test_the_default_counts_samples_of_the_subsample(blobs):
    assert GMMTeacher(subsample=20, random_state=0).fit(blobs).n_components_ == 4


def test_a_covariance_type_that_is_given_is_not_searched_for(blobs):
    teacher = GMMTeacher(covariance_type="diag", random_state=0).fit(blobs)
    assert teacher.search_results_ is None
    assert teacher.mixture_.covariance_type == "diag"


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
        {"temperature": "high"},
        {"energy_budget": 0.0},
        {"min_agreement": 1.5},
        {"subsample": 1},
        {"error_score": "ignore"},
    ],
)
def test_bad_parameters(blobs, params):
    (name, value), *_ = params.items()
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        GMMTeacher(**params).fit(blobs)


def test_a_failed_fit_leaves_the_earlier_one(blobs):
    teacher = GMMTeacher(n_components=4, random_state=0).fit(blobs)
    before = teacher.transform(blobs)
    with pytest.raises(ValueError, match="samples that differ"):
        teacher.fit(np.zeros((10, 2)))
    np.testing.assert_array_equal(teacher.transform(blobs), before)


def test_wrong_number_of_features_and_unfitted(blobs):
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


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_few_distinct_samples_have_a_single_mixture():
    X = np.repeat([[0.0, 0.0], [1.0, 1.0]], 30, axis=0)
    teacher = GMMTeacher(random_state=0).fit(X)
    assert teacher.mixture_.covariance_type == "spherical"
    assert teacher.search_results_ is None
    assert teacher.information_ > 0.6
    with pytest.raises(ValueError, match="All 2 candidates failed"):
        GMMTeacher(10, covariance_type=["full", "diag"], random_state=0).fit(X)
