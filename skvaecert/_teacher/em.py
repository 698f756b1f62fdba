"""Gaussian mixtures by expectation-maximization (EM), fast enough for a search.

The model and the steps are those of :class:`sklearn.mixture.GaussianMixture`. Three
things make them faster: float32 where it is exact enough, no copies of the samples, and
covariances of full mixtures that skip samples with negligible responsibility.
Responsibilities have shape (n_components, n_samples), so that the values of a component
are contiguous.
"""

import math
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skvaecert.simplex import Floats

__all__ = ["Mixture", "expect", "fit_fast", "fit_mixture", "log_joint", "maximize"]


# Samples with a smaller responsibility change a covariance by less than rounding does.
_NEGLIGIBLE = 1e-6

# Few enough samples for the whitened samples of a component to fit into the cache.
_CHUNK_SAMPLES = 8192

# Maximum error of a log-likelihood in float32, relative or in nats.
_FLOAT32_ERROR = 1e-5

# The error of float32 is measured on every eighth sample.
_CHECKED = 8

Array = NDArray[np.floating]


class Mixture(NamedTuple):
    """A fitted mixture; the precisions are W^T W with the whitening W."""

    weights: Floats
    means: Floats
    whitening: Floats
    covariance_type: str
    log_likelihoods: tuple[float, ...] = ()
    converged: bool = False

    @property
    def log_likelihood(self) -> float:
        """Mean log-likelihood of the training samples after the last step."""
        return self.log_likelihoods[-1]

    @property
    def precisions(self) -> Floats:
        """Inverse covariances, in the shapes of scikit-learn's `precisions_init`."""
        if self.covariance_type in ("diag", "spherical"):
            return np.square(self.whitening)
        return np.swapaxes(self.whitening, -1, -2) @ self.whitening

    def rescaled(self, factor: float) -> "Mixture":
        """Return the mixture of the samples multiplied by a factor."""
        log_volume = self.means.shape[1] * np.log(factor)
        return self._replace(
            means=self.means * factor,
            whitening=self.whitening / factor,
            log_likelihoods=tuple(
                float(step - log_volume) for step in self.log_likelihoods
            ),
        )


def fit_fast(X: Floats, responsibilities: Array, **settings: Any) -> Mixture:
    """Fit a mixture in float32, and again in float64 if that is not exact enough.

    Clusters that are much narrower than the distances between them need more digits
    than float32 has. The log-likelihoods of one mixture in float32 and float64 then
    differ.
    """
    single = X.astype(np.float32)
    # Whatever fails in float32 is tried again in float64.
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
        mixture = fit_mixture(single, responsibilities.astype(np.float32), **settings)
        likelihoods = [expect(x[::_CHECKED], mixture)[0] for x in (single, X)]
        error = _FLOAT32_ERROR
        if math.isclose(*likelihoods, rel_tol=error, abs_tol=error):
            return mixture
    return fit_mixture(X, responsibilities.astype(np.float64), **settings)


def fit_mixture(
    X: Array,
    responsibilities: Array,
    *,
    covariance_type: str,
    reg_covar: float,
    tol: float = 1e-3,
    max_iter: int = 200,
) -> Mixture:
    """Fit a mixture by EM from initial responsibilities."""
    steps: list[float] = []
    gain = np.inf
    while len(steps) < max_iter and gain >= tol:
        mixture = maximize(X, responsibilities, covariance_type, reg_covar)
        log_likelihood, responsibilities = expect(X, mixture)
        gain = log_likelihood - steps[-1] if steps else np.inf
        steps.append(log_likelihood)
    return mixture._replace(log_likelihoods=tuple(steps), converged=gain < tol)


def log_joint(X: Array, mixture: Mixture) -> Array:
    """Return log p(k) + log p(x|k), shape (n_components, n_samples)."""
    covariance_type, whitening = mixture.covariance_type, mixture.whitening
    # All parameters are cast to the dtype of X: mixed products would copy X to float64.
    distances = _DISTANCES[covariance_type](X, mixture.means, whitening)
    n_features = X.shape[1]
    # log_det is that of the whitening, which is half of that of the precision.
    if covariance_type in ("full", "tied"):
        log_det = np.log(np.diagonal(whitening, axis1=-2, axis2=-1)).sum(axis=-1)
    elif covariance_type == "diag":
        log_det = np.log(whitening).sum(axis=1)
    else:
        log_det = n_features * np.log(whitening)
    constant = np.log(mixture.weights) + log_det - n_features / 2 * np.log(2 * np.pi)
    distances *= -0.5
    distances += constant[:, None].astype(X.dtype)
    return distances


def maximize(
    X: Array, responsibilities: Array, covariance_type: str, reg_covar: float
) -> Mixture:
    """M-step: return the mixture that maximizes the expected log-likelihood."""
    # As in scikit-learn, a component without samples keeps a weight above 0.
    counts = responsibilities.sum(axis=1, dtype=np.float64) + 10 * np.finfo(float).eps
    means = (responsibilities @ X).astype(np.float64) / counts[:, None]
    covariances = _COVARIANCES[covariance_type](X, responsibilities, counts, means)
    if covariance_type in ("full", "tied"):
        covariances += reg_covar * np.eye(X.shape[1])
        whitening = np.linalg.inv(np.linalg.cholesky(covariances))
    else:
        whitening = 1 / np.sqrt(_above_zero(covariances + reg_covar))
    return Mixture(counts / counts.sum(), means, whitening, covariance_type)


def expect(X: Array, mixture: Mixture) -> tuple[float, Array]:
    """E-step: return the mean log-likelihood and the responsibilities."""
    joint = log_joint(X, mixture)
    largest = joint.max(axis=0)
    joint -= largest
    np.exp(joint, out=joint)
    total = joint.sum(axis=0)
    joint /= total
    return float((largest + np.log(total)).mean(dtype=np.float64)), joint


def _full_distances(X: Array, means: Floats, whitening: Floats) -> Array:
    offsets = (whitening @ means[:, :, None]).astype(X.dtype)
    distances = np.empty((len(means), len(X)), X.dtype)
    half = X.shape[1] // 2
    factors = whitening.astype(X.dtype)
    for start in range(0, len(X), _CHUNK_SAMPLES):
        columns = np.ascontiguousarray(X[start : start + _CHUNK_SAMPLES].T)
        white = np.empty_like(columns)
        for k, factor in enumerate(factors):
            # The factor is a lower triangle: a quarter of the products are with zeros.
            np.matmul(factor[:half, :half], columns[:half], out=white[:half])
            np.matmul(factor[half:], columns, out=white[half:])
            white -= offsets[k]
            np.square(white, out=white)
            np.sum(white, axis=0, out=distances[k, start : start + _CHUNK_SAMPLES])
    return distances


def _tied_distances(X: Array, means: Floats, whitening: Floats) -> Array:
    white = X @ whitening.T.astype(X.dtype)
    return _squared_distances(white, means @ whitening.T)


def _diag_distances(X: Array, means: Floats, whitening: Floats) -> Array:
    # The square is expanded, so that distances are matrix products.
    precisions = np.square(whitening)
    distances = precisions.astype(X.dtype) @ np.square(X).T
    distances -= (2 * precisions * means).astype(X.dtype) @ X.T
    distances += (precisions * means**2).sum(axis=1)[:, None].astype(X.dtype)
    return distances


def _spherical_distances(X: Array, means: Floats, whitening: Floats) -> Array:
    precisions = np.square(whitening)[:, None].astype(X.dtype)
    return precisions * _squared_distances(X, means)


def _squared_distances(X: Array, means: Floats) -> Array:
    # |x - m|^2 = |m|^2 - 2 m x + |x|^2, as a matrix product.
    distances = (-2 * means).astype(X.dtype) @ X.T
    distances += np.square(means).sum(axis=1)[:, None].astype(X.dtype)
    distances += np.square(X).sum(axis=1)
    return distances


def _full_covariances(
    X: Array, responsibilities: Array, counts: Floats, means: Floats
) -> Floats:
    n_components, n_features = means.shape
    covariances = np.empty((n_components, n_features, n_features))
    for k, share in enumerate(responsibilities):
        members = np.flatnonzero(share > _NEGLIGIBLE)
        centered = X[members] - means[k].astype(X.dtype)
        centered *= np.sqrt(share[members])[:, None]
        covariances[k] = centered.T @ centered / counts[k]
    return covariances


def _tied_covariances(
    X: Array, responsibilities: Array, counts: Floats, means: Floats
) -> Floats:
    # Covariance within components = total second moment - that of the means.
    between = (counts[:, None] * means).T @ means
    return np.asarray(((X.T @ X).astype(np.float64) - between) / counts.sum())


def _diag_covariances(
    X: Array, responsibilities: Array, counts: Floats, means: Floats
) -> Floats:
    # As in scikit-learn. The difference may be negative, see `_above_zero`.
    squares = (responsibilities @ np.square(X)).astype(np.float64) / counts[:, None]
    return squares - means**2


def _spherical_covariances(
    X: Array, responsibilities: Array, counts: Floats, means: Floats
) -> Floats:
    variances = _diag_covariances(X, responsibilities, counts, means)
    return np.asarray(variances.mean(axis=1))


def _above_zero(variances: Floats) -> Floats:
    if variances.min() <= 0:
        # The error that a Cholesky decomposition raises, which callers expect.
        raise np.linalg.LinAlgError("a variance of a component is not above 0")
    return variances


_DISTANCES = {
    "full": _full_distances,
    "tied": _tied_distances,
    "diag": _diag_distances,
    "spherical": _spherical_distances,
}

_COVARIANCES = {
    "full": _full_covariances,
    "tied": _tied_covariances,
    "diag": _diag_covariances,
    "spherical": _spherical_covariances,
}
