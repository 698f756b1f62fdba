import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from skvaecert._teacher.em import expect, fit_fast, fit_mixture, log_joint, maximize

COVARIANCE_TYPES = ["full", "tied", "diag", "spherical"]
N_COMPONENTS, N_STEPS, REG_COVAR = 10, 15, 0.05


@pytest.fixture(scope="module")
def samples(digits):
    return PCA(12, random_state=0).fit_transform(digits[0])


@pytest.fixture(scope="module")
def guess(samples):
    labels = KMeans(N_COMPONENTS, n_init=1, random_state=0).fit(samples).labels_
    return np.eye(N_COMPONENTS)[:, labels]


def ours(samples, guess, covariance_type):
    return fit_mixture(
        samples,
        guess.astype(samples.dtype),
        covariance_type=covariance_type,
        reg_covar=REG_COVAR,
        tol=-np.inf,
        max_iter=N_STEPS + 1,
    )


def scikit_learns(samples, guess, covariance_type):
    """Make as many steps from the same first guess."""
    first = maximize(samples, guess, covariance_type, REG_COVAR)
    mixture = GaussianMixture(
        N_COMPONENTS,
        covariance_type=covariance_type,
        reg_covar=REG_COVAR,
        weights_init=first.weights,
        means_init=first.means,
        precisions_init=first.precisions,
        tol=0,
        max_iter=N_STEPS,
    )
    with pytest.warns(match="converge"):
        return mixture.fit(samples)


def posterior(mixture, samples):
    return expect(samples, mixture)[1].T


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_steps_are_those_of_scikit_learn(samples, guess, covariance_type):
    mixture = ours(samples, guess, covariance_type)
    reference = scikit_learns(samples, guess, covariance_type)
    assert mixture.log_likelihood == pytest.approx(reference.score(samples), rel=1e-5)
    np.testing.assert_allclose(mixture.weights, reference.weights_, atol=1e-5)
    np.testing.assert_allclose(
        posterior(mixture, samples), reference.predict_proba(samples), atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_float32_is_enough(samples, guess, covariance_type):
    mixture = ours(samples.astype(np.float32), guess, covariance_type)
    reference = scikit_learns(samples, guess, covariance_type)
    assert mixture.log_likelihood == pytest.approx(reference.score(samples), rel=1e-5)
    difference = posterior(mixture, samples) - reference.predict_proba(samples)
    assert np.abs(difference).max() < 1e-2
    assert np.abs(difference).mean() < 1e-5


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_log_joint_is_the_density_of_scipy(samples, guess, covariance_type):
    mixture = maximize(samples, guess, covariance_type, REG_COVAR)
    identity = np.eye(samples.shape[1])
    for k in range(N_COMPONENTS):
        precision = {
            "full": lambda k: mixture.precisions[k],
            "tied": lambda k: mixture.precisions,
            "diag": lambda k: np.diag(mixture.precisions[k]),
            "spherical": lambda k: mixture.precisions[k] * identity,
        }[covariance_type](k)
        density = multivariate_normal(mixture.means[k], np.linalg.inv(precision))
        expected = np.log(mixture.weights[k]) + density.logpdf(samples)
        np.testing.assert_allclose(log_joint(samples, mixture)[k], expected, atol=1e-8)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_no_step_loses_likelihood(samples, guess, covariance_type):
    likelihoods = []
    responsibilities = guess
    for _ in range(10):
        mixture = maximize(samples, responsibilities, covariance_type, 0.0)
        likelihood, responsibilities = expect(samples, mixture)
        likelihoods.append(likelihood)
    assert (np.diff(likelihoods) > -1e-9).all()
    assert likelihoods[-1] > likelihoods[0] + 0.01


def test_it_ends_when_little_is_gained(samples, guess):
    settings = {"covariance_type": "diag", "reg_covar": REG_COVAR}
    short = fit_mixture(samples, guess, tol=1e-2, **settings)
    long = fit_mixture(samples, guess, tol=1e-6, max_iter=500, **settings)
    assert 1 < len(short.log_likelihoods) < len(long.log_likelihoods) < 500
    assert short.converged
    assert long.converged
    assert short.log_likelihood < long.log_likelihood
    cut = fit_mixture(samples, guess, max_iter=3, **settings)
    assert len(cut.log_likelihoods) == 3
    assert not cut.converged
    exact = len(short.log_likelihoods)
    assert fit_mixture(samples, guess, tol=1e-2, max_iter=exact, **settings).converged


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_rescaled_is_the_mixture_of_rescaled_samples(samples, guess, covariance_type):
    mixture = ours(samples, guess, covariance_type).rescaled(100.0)
    likelihood, responsibilities = expect(100 * samples, mixture)
    assert mixture.log_likelihood == pytest.approx(likelihood)
    np.testing.assert_allclose(
        responsibilities, expect(samples, mixture.rescaled(0.01))[1], atol=1e-8
    )


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_empty_component_is_no_accident(samples, guess, covariance_type):
    empty = np.vstack([guess, np.zeros(len(samples))])
    mixture = ours(samples, empty, covariance_type)
    assert all(np.isfinite(array).all() for array in mixture[:3])
    assert mixture.weights.sum() == pytest.approx(1)
    assert mixture.weights.min() > 0


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_component_without_variance_is_an_error(covariance_type):
    X = np.repeat([[0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    guess = np.repeat(np.eye(2), 5, axis=1)
    with pytest.raises(np.linalg.LinAlgError):
        fit_mixture(X, guess, covariance_type=covariance_type, reg_covar=0.0)


@pytest.fixture
def dtypes(monkeypatch):
    """Record the precision in which mixtures are fitted."""
    seen = []

    def spied(X, *args, **kwargs):
        seen.append(X.dtype)
        return fit_mixture(X, *args, **kwargs)

    monkeypatch.setattr("skvaecert._teacher.em.fit_mixture", spied)
    return seen


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_plain_samples_are_fitted_in_float32(samples, guess, covariance_type, dtypes):
    settings = {"covariance_type": covariance_type, "reg_covar": REG_COVAR}
    fast = fit_fast(samples, guess, **settings)
    assert dtypes == [np.float32]
    exact = fit_mixture(samples, guess, **settings)
    assert fast.log_likelihood == pytest.approx(exact.log_likelihood, rel=1e-4)


@pytest.mark.parametrize(
    ("covariance_type", "reg_covar"),
    [("diag", 1e-9), ("tied", 1e-9), ("diag", 1e-6), ("spherical", 1e-7)],
)
def test_narrow_clusters_are_fitted_in_float64(covariance_type, reg_covar, dtypes):
    """They lie 10,000 deviations apart: float32 fails, or has too few digits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=2000)
    X = rng.normal(size=(5, 8))[labels] + 1e-4 * rng.normal(size=(2000, 8))
    settings = {"covariance_type": covariance_type, "reg_covar": reg_covar}
    mixture = fit_fast(X, np.eye(5)[:, labels], **settings)
    assert dtypes == [np.float32, np.float64]
    assert mixture.log_likelihood == pytest.approx(expect(X, mixture)[0], rel=1e-9)


def test_the_size_of_chunks_does_not_matter(samples, guess, monkeypatch):
    mixture = ours(samples, guess, "full")
    whole = log_joint(samples, mixture)
    monkeypatch.setattr("skvaecert._teacher.em._CHUNK_SAMPLES", 100)
    np.testing.assert_allclose(log_joint(samples, mixture), whole, rtol=1e-12)
