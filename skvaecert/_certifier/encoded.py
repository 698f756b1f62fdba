"""Samples as the fitted models see them: means, posteriors, reconstructions."""

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


@dataclass(eq=False, repr=False)
class EncodedSamples:
    """Samples, and what each model makes of them, asked once and when it is needed."""

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
                f"{_ENCODE}; that of {type(encoder).__name__} returned "
                f"{type(posterior).__name__}. skvaecert.wrappers.TrainedEncoder makes "
                "an estimator of an encoder that returns something else."
            )
        mean, deviation = posterior
        return (
            np.asarray(check_real("latent_mean", mean)),
            np.asarray(check_real("latent_std", deviation)),
        )

    @property
    def has_distribution(self) -> bool:
        """Whether the encoder gives standard deviations that can be used.

        Its `encode` may be anything, and may fail in any way.
        """
        try:
            mean, deviation = self.distribution
        except Exception:
            return False
        if deviation.shape != mean.shape or not np.isfinite(mean).all():
            return False
        # Their squares, and those of their inverses, must not overflow.
        low, high = float(deviation.min()), float(deviation.max())
        return 1e-150 <= low and high < 1e150

    @cached_property
    def posterior(self) -> Floats:
        """T: the posteriors that were given, else those of the teacher."""
        given = self.teacher_proba
        n_samples = None if given is None else _num_samples(self.X)
        return posterior_of(self.teacher, self.X, given, n_samples=n_samples)

    @cached_property
    def codes(self) -> tuple[NDArray[np.floating], ...]:
        """What the decoder gets: means and deviations to draw from, or means alone."""
        return self.distribution if self.has_distribution else (self.means,)

    def drawn(self, noise: ArrayLike) -> NDArray[np.floating]:
        """Return codes drawn with this noise; the means if there are no deviations."""
        mean, *deviation = self.codes
        return mean + deviation[0] * np.asarray(noise) if deviation else mean

    def decoded(self, codes: ArrayLike) -> NDArray[np.floating]:
        """Return reconstructions of codes, given in the precision of the encoder."""
        dtype = self.codes[0].dtype
        is_real = np.issubdtype(dtype, np.floating)
        return decode(self.estimator, np.asarray(codes, dtype if is_real else None))

    @cached_property
    def counting(self) -> NDArray[np.intp]:
        """The places of the samples of weight above 0."""
        if self.weight is None:
            return np.arange(_num_samples(self.X))
        return np.flatnonzero(np.asarray(self.weight))

    def again(self, index: NDArray[np.intp]) -> "EncodedSamples":
        """Return some of the samples, to be encoded anew in another batch."""
        return EncodedSamples(self.estimator, self.teacher, take_samples(self.X, index))


def fitted_encoder(estimator: Any) -> Any:
    """Return the fitted encoder itself, out of a search or a frozen estimator."""
    encoder = getattr(estimator, "best_estimator_", estimator)
    return encoder.estimator if isinstance(encoder, FrozenEstimator) else encoder


def last_step(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Return what encodes at the end of a pipeline, and the samples it is given."""
    encoder = fitted_encoder(estimator)
    if isinstance(encoder, Pipeline):
        X = encoder[:-1].transform(X) if len(encoder) > 1 else X
        encoder = fitted_encoder(encoder[-1])
    return encoder, X


def encode(estimator: Any, X: ArrayLike) -> NDArray[np.floating]:
    """Return latent means."""
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
    """Return reconstructions."""
    if not hasattr(estimator, "inverse_transform"):
        name = type(fitted_encoder(estimator)).__name__
        raise ValueError(
            "estimator must have an inverse_transform, its decoder, for "
            f'kind="round_trip"; {name} has none. Give it a decoder: '
            "TrainedEncoder(encoder, decoder)."
        )
    decoded = estimator.inverse_transform(means)
    return np.asarray(check_real("inverse_transform", decoded))


def read(teacher: Any, reconstruction: NDArray[np.floating]) -> Floats:
    """Return the teacher's posteriors of reconstructions."""
    with warnings.catch_warnings():
        # They are arrays, even if the samples came in a table with names.
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        return posterior_of(teacher, reconstruction)
