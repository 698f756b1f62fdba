"""Samples with the outputs of fitted models: means, posteriors, reconstructions."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import _num_samples

from skvaecert._posterior import posterior_of
from skvaecert._samples import take_samples
from skvaecert.simplex import Floats, check_real

_ENCODE = (
    "estimator must have a method encode(X), which returns means and standard "
    'deviations of q(z|x), for kind="sampled"'
)

__all__ = [
    "EncodedSamples",
    "decode",
    "encode",
    "fitted_encoder",
    "last_step",
    "read",
]


# Neither == nor repr, which would compare or print all samples.
@dataclass(eq=False, repr=False)
class EncodedSamples:
    """Samples with the outputs of each model, computed once and only when needed."""

    estimator: Any
    teacher: Any
    X: ArrayLike
    teacher_proba: ArrayLike | None = None
    weight: ArrayLike | None = None

    @cached_property
    def means(self) -> NDArray[np.floating]:
        return encode(self.estimator, self.X)

    @cached_property
    def distribution(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of q(z|x)."""
        encoder, X = last_step(self.estimator, self.X)
        if not hasattr(encoder, "encode"):
            raise ValueError(
                f"{_ENCODE}; {type(encoder).__name__} has none. Use CertifiedVAE, or "
                "wrap the encoder in skvaecert.wrappers.TrainedEncoder."
            )
        posterior = encoder.encode(X)
        if not (isinstance(posterior, tuple | list) and len(posterior) == 2):
            raise ValueError(
                f"{_ENCODE}; encode of {type(encoder).__name__} returned "
                f"{type(posterior).__name__}. Wrap an encoder with other outputs in "
                "skvaecert.wrappers.TrainedEncoder."
            )
        mean, deviation = posterior
        return (
            np.asarray(check_real("latent_mean", mean)),
            np.asarray(check_real("latent_std", deviation)),
        )

    @property
    def has_distribution(self) -> bool:
        """Whether the encoder returns usable standard deviations."""
        try:
            mean, deviation = self.distribution
        except Exception:
            # `encode` of another library may do something else, and fail in any way.
            return False
        if deviation.shape != mean.shape or not np.isfinite(mean).all():
            return False
        # Squares of standard deviations and of their inverses must not overflow.
        low, high = float(deviation.min()), float(deviation.max())
        return 1e-150 <= low and high < 1e150

    @cached_property
    def posterior(self) -> Floats:
        """T: `teacher_proba` if given, else the posteriors of the teacher."""
        given = self.teacher_proba
        n_samples = None if given is None else _num_samples(self.X)
        return posterior_of(self.teacher, self.X, given, n_samples=n_samples)

    @cached_property
    def codes(self) -> tuple[NDArray[np.floating], ...]:
        """Means and standard deviations of the codes to decode, or means alone."""
        return self.distribution if self.has_distribution else (self.means,)

    def drawn(self, noise: ArrayLike) -> NDArray[np.floating]:
        """Return codes drawn with this noise, or means if there are no deviations."""
        mean, *deviation = self.codes
        return mean + deviation[0] * np.asarray(noise) if deviation else mean

    def decoded(self, codes: ArrayLike) -> NDArray[np.floating]:
        """Decode codes, after a conversion to the dtype of the encoder."""
        dtype = self.codes[0].dtype
        # Means may be integers; drawn codes are not.
        is_real = np.issubdtype(dtype, np.floating)
        return decode(self.estimator, np.asarray(codes, dtype if is_real else None))

    @cached_property
    def weighted(self) -> NDArray[np.intp]:
        """The indices of the samples with a weight above 0."""
        if self.weight is None:
            return np.arange(_num_samples(self.X))
        return np.flatnonzero(np.asarray(self.weight))

    def subset(self, index: NDArray[np.intp]) -> "EncodedSamples":
        """Return some of the samples, without outputs: they will be encoded again."""
        return EncodedSamples(self.estimator, self.teacher, take_samples(self.X, index))


def fitted_encoder(estimator: Any) -> Any:
    """Return the fitted encoder inside a search or a frozen estimator."""
    encoder = getattr(estimator, "best_estimator_", estimator)
    return encoder.estimator if isinstance(encoder, FrozenEstimator) else encoder


def last_step(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Return the encoder at the end of a pipeline, and its input."""
    encoder = fitted_encoder(estimator)
    if isinstance(encoder, Pipeline):
        # A Pipeline has no encode, so its last step is called directly.
        X = encoder[:-1].transform(X) if len(encoder) > 1 else X
        encoder = fitted_encoder(encoder[-1])
    return encoder, X


def encode(estimator: Any, X: ArrayLike) -> NDArray[np.floating]:
    """Return latent means, checked for shape and finite values."""
    means = np.asarray(check_real("transform", estimator.transform(X)))
    n_samples, has_shape = _num_samples(X), means.ndim == 2
    has_shape &= len(means) == n_samples
    if not has_shape or not np.isfinite(means).all():
        found = "NaN or infinity" if has_shape else f"shape {means.shape}"
        raise ValueError(
            "estimator must have a transform that returns a dense array of shape "
            f"(n_samples, latent_dim) with finite values, got {found} for {n_samples} "
            "samples."
        )
    return means


def decode(estimator: Any, means: ArrayLike) -> NDArray[np.floating]:
    """Return reconstructions of codes, checked for values that can be squared."""
    if not hasattr(estimator, "inverse_transform"):
        name = type(fitted_encoder(estimator)).__name__
        raise ValueError(
            "estimator must have an inverse_transform, its decoder, for "
            f'kind="round_trip"; {name} has none. Pass a decoder: '
            "TrainedEncoder(encoder, decoder)."
        )
    decoded = estimator.inverse_transform(means)
    decoded = np.asarray(check_real("inverse_transform", decoded))
    # The squares of larger values overflow.
    largest = float(np.abs(decoded).max(initial=0))
    if not largest < 1e150:
        raise ValueError(
            "estimator must have an inverse_transform that returns finite values below "
            f"1e150, got a largest magnitude of {largest}."
        )
    return decoded


def read(teacher: Any, reconstruction: NDArray[np.floating]) -> Floats:
    """Return the teacher's posteriors of reconstructions."""
    with warnings.catch_warnings():
        # Reconstructions have no feature names, even if the samples had.
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        return posterior_of(teacher, reconstruction)
