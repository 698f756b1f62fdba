"""Kinds of certificates: what is asked of encoder, decoder and teacher, row by row."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.rounding import rounded
from skvaecert._certificate.sums import CertificateSums, RoundTripSums, SampledSums
from skvaecert._certifier.calibration import Models, Tempering
from skvaecert._estimator import warn_user
from skvaecert._samples import take_samples
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.simplex import Floats
from skvaecert.witnesses import LinearWitness

__all__ = ["EncoderStability", "Kind", "MeanKind", "RoundTripKind", "SampledKind"]


# Rows that are encoded a second time, to see how far their means are to be trusted.
_REPEATED_ROWS = 255

# Means that differ by more between two batches come from no deterministic encoder.
_UNSTABLE = 1e-3

# Rounding was tried with one draw of it; another may do a little more.
_CAUTION = 4.0


class Kind(Protocol):
    """Collects what a certificate needs to know of rows, and makes it."""

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""

    def merge(self, other: Any) -> None:
        """Add the rows that another one has seen."""

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""


class MeanKind:
    """The latent mean is not constant."""

    def __init__(self, witness: LinearWitness) -> None:
        self.sums = CertificateSums(witness)
        self.repeated = EncoderStability()

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        means = models.encode(X)
        posterior = models.posterior(X, proba, len(means))
        self.sums.update(posterior, means, weight)
        self.repeated.compare(means, X, models.encode)

    def merge(self, other: "MeanKind") -> None:
        """Add the rows that another one has seen."""
        self.sums.merge(other.sums)
        self.repeated.merge(other.repeated)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        self.repeated.warn_if_unstable()
        return self.sums.certificate(
            safety_margin=safety_margin, latent_noise=self.repeated.moved
        )


class SampledKind:
    """Codes drawn from q(z|x) carry information on x."""

    def __init__(
        self,
        witness: LinearWitness,
        n_draws: int,
        confidence: float,
        generator: np.random.Generator,
        part: int | None,
    ) -> None:
        self.confidence = confidence
        self.repeated = EncoderStability()
        self.sums = SampledSums(witness, n_draws, generator, part)

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        mean, deviation = models.distribution(X)
        posterior = models.posterior(X, proba, len(mean))
        self.sums.update(posterior, mean, deviation, weight)
        both = _side_by_side(mean, deviation)
        again = models.distribution
        self.repeated.compare(both, X, lambda rows: _side_by_side(*again(rows)))

    def merge(self, other: "SampledKind") -> None:
        """Add the rows that another one has seen."""
        if self.confidence != other.confidence:
            raise ValueError(
                "parts must have the same confidence, got "
                f"{self.confidence} and {other.confidence}."
            )
        self.sums.merge(other.sums)
        self.repeated.merge(other.repeated)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        self.repeated.warn_if_unstable()
        return self.sums.certificate(
            safety_margin=safety_margin,
            confidence=self.confidence,
            latent_noise=self.repeated.moved,
        )


class RoundTripKind:
    """Encoder and decoder together pass on what the teacher sees."""

    def __init__(self, tempering: Tempering, shape: tuple[int, int]) -> None:
        self.tempering = tempering
        self.sums = RoundTripSums(*shape)
        self._shift = 0.0

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        if proba is not None:
            raise ValueError(
                'teacher_proba must be left out for kind="round_trip": the same '
                "teacher must see rows and reconstructions."
            )
        means = models.encode(X)
        target = self.tempering(models.posterior(X, None, len(means)))
        output = models.decode(means)
        witness = self.tempering(models.read(output))
        self.sums.update(target, witness, means, output, weight)
        self._try_rounding(models, X, target, witness)

    def merge(self, other: "RoundTripKind") -> None:
        """Add the rows that another one has seen."""
        self.sums.merge(other.sums)
        self._shift = max(self._shift, other._shift)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        shift = _CAUTION * self._shift
        return self.sums.certificate(safety_margin=safety_margin, shift=shift)

    def _try_rounding(
        self, models: Models, X: ArrayLike, target: Floats, witness: Floats
    ) -> None:
        """Reconstruct some rows in other company, round, and see what it changes."""
        index = _shuffled_subset(len(target))
        rows, generator = take_samples(X, index), np.random.default_rng(0)
        means = models.encode(rows)
        # In the precision of the means, which others than float64 would hide.
        output = models.decode(rounded(means, np.maximum(np.abs(means), 1), generator))
        # Outputs near 0 carry the error of the terms that cancelled.
        largest = np.maximum(np.abs(output).max(axis=1), _largest(rows, len(output)))
        output = rounded(output, largest[:, np.newaxis], generator)
        again = self.tempering(models.read(output))
        change = np.abs(np.log(again) - np.log(witness[index]))
        shift = float((target[index] * change).sum(axis=1).max())
        self._shift = max(self._shift, shift)


class EncoderStability:
    """How far latent means move when some samples are encoded in another batch."""

    def __init__(self) -> None:
        self.moved = 0.0
        self._largest = 1.0

    def compare(
        self,
        means: NDArray[np.floating],
        X: ArrayLike,
        encode: Callable[[ArrayLike], NDArray[np.floating]],
    ) -> None:
        """Encode some rows again."""
        index = _shuffled_subset(len(means))
        again = encode(take_samples(X, index))
        moved = float(np.linalg.norm(again - means[index], axis=1).max())
        self.moved = max(self.moved, moved)
        self._largest = max(self._largest, float(np.abs(means).max()))

    def merge(self, other: "EncoderStability") -> None:
        """Add what another one has seen."""
        self.moved = max(self.moved, other.moved)
        self._largest = max(self._largest, other._largest)

    def warn_if_unstable(self) -> None:
        """Warn if means moved by more than rounding explains."""
        if self.moved > _UNSTABLE * self._largest:
            warn_user(
                UnstableEncoderWarning(
                    f"The encoder moved the mean of a row by {self.moved:.2g} when the "
                    "row came in another batch. Put modules into evaluation mode "
                    "(dropout, batch normalisation) and return means, not drawn codes. "
                    "The difference is counted as noise, so nothing will be certified "
                    "by it."
                )
            )


def _shuffled_subset(n_samples: int) -> NDArray[np.intp]:
    """Return an odd lot in random order: no block, no symmetry, not all places kept."""
    if n_samples == 1:
        return np.zeros(1, dtype=np.intp)
    order = 1 + np.random.default_rng(0).permutation(n_samples - 1)
    return order[: max(1, min(2 * n_samples // 3, _REPEATED_ROWS))]


def _side_by_side(mean: Floats, deviation: Floats) -> Floats:
    """Return means and logarithms of deviations in one array."""
    if not (np.isfinite(mean).all() and (deviation > 0).all()):
        raise ValueError(
            "estimator must have an encode that returns finite means, and standard "
            "deviations above 0, of the same rows at each call."
        )
    return np.hstack([mean, np.log(np.asarray(deviation, dtype=np.float64))])


def _largest(X: Any, n_samples: int) -> Floats:
    """Return the largest magnitude in each row; 0 for what holds no numbers."""
    try:
        rows = np.abs(np.asarray(X, dtype=np.float64)).reshape(n_samples, -1)
    except (TypeError, ValueError):
        return np.zeros(n_samples)
    return np.asarray(rows.max(axis=1))
