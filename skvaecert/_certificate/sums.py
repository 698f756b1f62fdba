"""The sums that a certificate is made of, and the verdict on them."""

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.rounding import (
    MeanSums,
    noise_margin,
    noise_needed,
    summation_error,
)
from skvaecert.metrics import (
    MarginSums,
    SpreadSums,
    cross_entropies,
    gen_rows,
    unit_weight,
)
from skvaecert.simplex import Floats, check_teacher_proba, check_weight
from skvaecert.witnesses import LinearWitness

__all__ = ["CertificateSums", "RoundTripSums", "SampledSums", "check_confidence"]


class CertificateSums:
    """What a certificate of the mean needs to know of rows that come in batches."""

    def __init__(self, witness: LinearWitness) -> None:
        self.witness = witness
        self.alignment = MarginSums()
        self._forces = SpreadSums()
        self._means = MeanSums()

    def update(
        self,
        teacher_proba: ArrayLike,
        latent_mean: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add rows."""
        means, posteriors = np.asanyarray(latent_mean), np.asanyarray(teacher_proba)
        shape = self.witness.weights.shape
        check_shapes(means, posteriors, shape)
        weights = unit_weight(len(means), sample_weight, check_weight)
        for rows in gen_rows(len(means), max(shape)):
            weight = np.ascontiguousarray(weights[rows])
            self._add(posteriors[rows], _checked(means[rows]), weight)
        return self

    def merge(self, other: "CertificateSums") -> Self:
        """Add the rows that other sums have seen."""
        _check_same_witness(self.witness, other.witness)
        self.alignment.merge(other.alignment)
        self._forces.merge(other._forces)
        self._means.merge(other._means)
        return self

    @property
    def margin(self) -> float:  # numpydoc ignore=RT01
        """G of the rows so far, nats; an error if there are none."""
        return _checked_margin(self.alignment)

    @property
    def summation_error(self) -> float:  # numpydoc ignore=RT01
        """Bound on the error of the computed margin, given teacher and latent means."""
        return summation_error(self.alignment, self.witness, self._means.mean_norm)

    def certificate(
        self, *, safety_margin: float = 0.0, latent_noise: float = 0.0
    ) -> Certificate:
        """Return the certificate of all rows so far."""
        _check_not_negative("latent_noise", latent_noise)
        margin = self.margin
        noise = max(self._means.rounding_noise, latent_noise)
        arithmetic = self.summation_error
        tolerance = arithmetic + noise_margin(noise, self._force, self.witness.gain)
        least = noise_needed(margin - tolerance, self._force, self.witness)
        return _conclude(
            self.alignment,
            error=arithmetic,
            tolerance=tolerance,
            safety_margin=safety_margin,
            are_constant=self._means.are_constant,
            dispersion=self._means.spread.dispersion,
            dispersion_bound=least,
            witness=self.witness.name,
            n_samples=self.alignment.n_samples,
            latent_dim=self.witness.weights.shape[1],
        )

    def _add(self, proba: ArrayLike, mean: Floats, weight: Floats) -> None:
        # Checks the posteriors first.
        self.alignment.update_logits(proba, self.witness.logits(mean), weight)
        # Forces differ by A^T (T_i - T_j), wherever the code is (theory section 4).
        self._forces.update(check_teacher_proba(proba) @ self.witness.weights, weight)
        self._means.add(mean, weight)

    @property
    def _force(self) -> float:
        """f_rms of theory section 4."""
        return self._forces.dispersion


class SampledSums:
    """What a certificate of drawn codes needs to know of rows that come in batches.

    Theory section 6 (ours).
    """

    def __init__(
        self,
        witness: LinearWitness,
        n_draws: int,
        generator: np.random.Generator,
        part: int | None = None,
    ) -> None:
        self.witness = witness
        self.n_draws = n_draws
        self.alignment = MarginSums()
        self._forces = SpreadSums()
        self._means, self._deviations = MeanSums(), MeanSums()
        self._variance = self._squared_variance = self._kl = 0.0
        self._narrowest = math.inf
        # Squared errors of mean, log deviation and deviation, in rounding units.
        self._errors = np.zeros((3, witness.weights.shape[1]))
        # The same for all rows, so that equal posteriors give equal codes. With the
        # moments of N(0, 1), for few draws would often miss weak information.
        noise = generator.standard_normal((n_draws, witness.weights.shape[1]))
        noise -= noise.mean(axis=0)
        self._shared_noise = noise / noise.std(axis=0)
        self._shared_loss = 0.0
        self.generator = generator
        if part is not None:
            seed = int(generator.integers(2**63))
            self.generator = np.random.default_rng([part, seed])

    def update(
        self,
        teacher_proba: ArrayLike,
        latent_mean: ArrayLike,
        latent_std: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add rows."""
        means, posteriors = np.asanyarray(latent_mean), np.asanyarray(teacher_proba)
        shape = self.witness.weights.shape
        check_shapes(means, posteriors, shape)
        deviations = np.asanyarray(latent_std)
        if deviations.shape != means.shape or not (deviations > 0).all():
            raise ValueError(
                "latent_std must have the shape of latent_mean and entries above 0, "
                f"got shape {deviations.shape} with a smallest entry of "
                f"{deviations.min()}."
            )
        weights = unit_weight(len(means), sample_weight, check_weight)
        for rows in gen_rows(len(means), max(shape)):
            mean, deviation = _checked(means[rows]), _checked(deviations[rows])
            weight = np.ascontiguousarray(weights[rows])
            self._add(posteriors[rows], mean, deviation, weight)
        return self

    def merge(self, other: "SampledSums") -> Self:
        """Add the rows that other sums have seen."""
        _check_same_witness(self.witness, other.witness)
        if not np.array_equal(self._shared_noise, other._shared_noise):
            raise ValueError(
                "parts must have the same n_draws, and draws from the same seed, got "
                "others. Give the certifier an int as random_state."
            )
        self.alignment.merge(other.alignment)
        self._forces.merge(other._forces)
        self._means.merge(other._means)
        self._deviations.merge(other._deviations)
        self._errors = self._errors + other._errors
        self._narrowest = min(self._narrowest, other._narrowest)
        self._variance += other._variance
        self._squared_variance += other._squared_variance
        self._kl += other._kl
        self._shared_loss += other._shared_loss
        return self

    def certificate(
        self,
        *,
        safety_margin: float = 0.0,
        confidence: float = 0.95,
        latent_noise: float = 0.0,
    ) -> Certificate:
        """Return the certificate of all rows so far."""
        check_confidence(confidence)
        _check_not_negative("latent_noise", latent_noise)
        margin, total = _checked_margin(self.alignment), self.alignment.total_weight
        standard_error = math.sqrt(self._variance) / total
        half = float(t.ppf((1 + confidence) / 2, self._freedom)) * standard_error
        n_samples = self.alignment.n_samples // self.n_draws
        arithmetic = summation_error(self.alignment, self.witness, self._norm)
        shared = self.alignment.mean_entropy - self._shared_loss / total
        return _conclude(
            self.alignment,
            error=arithmetic,
            tolerance=arithmetic + self._noise(latent_noise),
            safety_margin=safety_margin,
            doubt=float(t.isf(_CHANCE, self._freedom)) * standard_error,
            is_luck=not shared > arithmetic + self._shared_tolerance(latent_noise),
            are_constant=self._means.are_constant and self._deviations.are_constant,
            dispersion=self._means.spread.dispersion,
            dispersion_bound=0.0,
            witness=self.witness.name,
            n_samples=n_samples,
            latent_dim=self.witness.weights.shape[1],
            kind="sampled",
            confidence=confidence,
            margin_low=margin - half,
            margin_high=margin + half,
            information_bound=min(self._kl / total, math.log(n_samples)),
        )

    def _add(
        self, proba: ArrayLike, mean: Floats, deviation: Floats, weight: Floats
    ) -> None:
        losses = np.empty((self.n_draws, len(mean)))
        share = weight / self.n_draws
        # Row by row, so that the draws do not depend on how rows come in batches.
        shape = len(mean), self.n_draws, mean.shape[1]
        noises = self.generator.standard_normal(shape).swapaxes(0, 1)
        for draw, noise in enumerate(noises):
            logits = self.witness.logits(mean + deviation * noise)
            self.alignment.update_logits(proba, logits, share)
            losses[draw] = cross_entropies(proba, logits)
        spread = losses.var(axis=0, ddof=1) / self.n_draws
        variance = weight**2 * spread
        self._variance += float(variance.sum())
        self._squared_variance += float(variance @ variance)
        for noise in self._shared_noise:
            logits = self.witness.logits(mean + deviation * noise)
            self._shared_loss += float(share @ cross_entropies(proba, logits))
        self._forces.update(check_teacher_proba(proba) @ self.witness.weights, weight)
        squares = mean**2 + deviation**2
        kl = (squares - 2 * np.log(deviation) - 1).sum(axis=1) / 2
        self._kl += float(weight @ kl)
        self._errors += self._squared_errors(mean, deviation, weight)
        self._narrowest = min(self._narrowest, float(deviation.min()))
        self._means.add(mean, weight)
        self._deviations.add(deviation, weight)

    @staticmethod
    def _squared_errors(mean: Floats, deviation: Floats, weight: Floats) -> Floats:
        """Return those of mean / deviation, log deviation and deviation."""
        # Networks give the logarithm of a deviation, and round that.
        logs = np.maximum(np.log(deviation) ** 2, 1)
        with np.errstate(over="ignore"):
            means = (np.maximum(np.abs(mean), 1) / deviation) ** 2
        return np.stack([weight @ means, weight @ logs, weight @ (logs * deviation**2)])

    def _noise(self, latent_noise: float) -> float:
        """Bound the KL of what rounding, or other company, may have moved apart."""
        units = np.array([self._means.unit, self._deviations.unit]) ** 2
        errors = self._errors[:2] / self.alignment.total_weight
        # What shows no error has none, were it infinite in units.
        errors = np.where(units > 0, units * errors, 0.0)
        rounding = float(errors[0].sum() / 2 + errors[1].sum())
        with np.errstate(over="ignore"):
            moved = np.square(latent_noise / np.float64(self._narrowest)) / 2
        growth = math.exp(min(2 * latent_noise, 100.0))
        return rounding + float(moved) + min(latent_noise, 1e50) ** 2 * growth

    def _shared_tolerance(self, latent_noise: float) -> float:
        """Bound the margin that noise can fake where rows share their draws."""
        squares = (self._shared_noise**2).mean(axis=0) / self.alignment.total_weight
        widths = self._errors[2] * squares
        noise = math.sqrt(float(self._deviations.unit**2 @ widths))
        moved = latent_noise * (1 + math.sqrt(float(widths.sum())))
        noise += max(self._means.rounding_noise, moved)
        return noise_margin(noise, self._forces.dispersion, self.witness.gain)

    @property
    def _freedom(self) -> float:
        """Degrees of freedom of the standard error, by Satterthwaite.

        Fewer where few rows weigh much, or vary most.
        """
        if self._squared_variance == 0:
            return 1.0
        rows = self._variance**2 / self._squared_variance
        return (self.n_draws - 1) * max(1.0, rows)

    @property
    def _norm(self) -> float:
        return self._means.mean_norm + self._deviations.mean_norm


class RoundTripSums:
    """What a round-trip certificate needs to know of rows that come in batches.

    Theory section 7 (ours).
    """

    def __init__(self, n_components: int, latent_dim: int) -> None:
        self.n_components = n_components
        self.latent_dim = latent_dim
        self.alignment = MarginSums()
        self._means = SpreadSums()
        self._outputs = MeanSums()

    def update(
        self,
        teacher_proba: ArrayLike,
        round_trip_proba: ArrayLike,
        latent_mean: ArrayLike,
        output: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add rows."""
        log_q = np.log(check_teacher_proba(round_trip_proba))
        weight = check_weight(sample_weight, len(log_q))
        self.alignment.update(teacher_proba, log_q, weight)
        self._means.update(latent_mean, weight)
        self._outputs.add(_checked(np.asanyarray(output)), weight)
        return self

    def merge(self, other: "RoundTripSums") -> Self:
        """Add the rows that other sums have seen."""
        self.alignment.merge(other.alignment)
        self._means.merge(other._means)
        self._outputs.merge(other._outputs)
        return self

    def certificate(
        self, *, safety_margin: float = 0.0, shift: float = 0.0
    ) -> Certificate:
        """Return the certificate of all rows so far."""
        _checked_margin(self.alignment)
        constant = LinearWitness(
            np.zeros((self.n_components, self.latent_dim)), np.zeros(1), "teacher"
        )
        arithmetic = summation_error(self.alignment, constant, 0.0)
        return _conclude(
            self.alignment,
            error=arithmetic,
            tolerance=arithmetic + shift,
            safety_margin=safety_margin,
            are_constant=self._outputs.are_constant,
            dispersion=self._means.dispersion,
            dispersion_bound=0.0,
            witness="teacher",
            n_samples=self.alignment.n_samples,
            latent_dim=self.latent_dim,
            kind="round_trip",
        )


# Of a verdict on drawn codes: that of five standard errors, 3e-7.
_CHANCE = float(norm.sf(5.0))

# Sums of smaller weights are rounded to few digits, powers of larger ones overflow.
_WEIGHTS = 1e-50, 1e50


def check_confidence(confidence: float) -> None:
    """Check the confidence of an interval."""
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence must be a number between 0 and 1, got {confidence!r}."
        )


def _conclude(
    alignment: MarginSums,
    *,
    error: float,
    tolerance: float,
    safety_margin: float,
    are_constant: bool,
    doubt: float = 0.0,
    is_luck: bool = False,
    **fields: Any,
) -> Certificate:
    """Hold the margin against what is needed, and fill in a certificate."""
    _check_not_negative("safety_margin", safety_margin)
    margin, information = _checked_margin(alignment), alignment.teacher_information
    certified = margin - doubt > safety_margin + tolerance and not is_luck
    # What is equal says nothing of rows that the teacher finds equal too.
    tells_apart = information > error
    constant = not certified and tells_apart and are_constant
    return Certificate(
        verdict=_verdict(certified=certified, constant=constant),
        margin=margin,
        teacher_information=information,
        alignment_loss=alignment.alignment_loss,
        relative_margin=margin / information if tells_apart else math.nan,
        tolerance=tolerance,
        safety_margin=float(safety_margin),
        n_components=len(alignment.mean_proba),
        **{"margin_low": margin, "margin_high": margin} | fields,
    )


def _checked_margin(alignment: MarginSums) -> float:
    if not 0 < alignment.total_weight < math.inf:
        raise ValueError(
            "sample_weight must have a finite sum above 0, got "
            f"{alignment.total_weight}."
        )
    if not _WEIGHTS[0] <= alignment.total_weight <= _WEIGHTS[1]:
        raise ValueError(
            "sample_weight must have a sum from 1e-50 to 1e50, got "
            f"{alignment.total_weight}. Divide the weights by their mean."
        )
    return alignment.margin


def _verdict(*, certified: bool, constant: bool) -> str:
    if certified:
        return "certified"
    return "constant" if constant else "inconclusive"


def check_shapes(
    means: NDArray[Any], posteriors: NDArray[Any], shape: tuple[int, ...]
) -> None:
    if means.ndim != 2 or means.size == 0:
        raise ValueError(
            "latent_mean must be an array of shape (n_samples, latent_dim), got shape "
            f"{means.shape}."
        )
    if posteriors.ndim != 2 or len(posteriors) != len(means):
        check_teacher_proba(posteriors, len(means))  # which raises
    if posteriors.shape[1] < 2:
        raise ValueError(
            "teacher_proba must have at least 2 columns, got 1: one component tells "
            "no rows apart."
        )
    wanted = posteriors.shape[1], means.shape[1]
    if shape != wanted:
        raise ValueError(
            f"vertices must have shape (n_components, latent_dim) = {wanted}, got "
            f"{shape}."
        )


def _check_same_witness(witness: LinearWitness, other: LinearWitness) -> None:
    if not witness.equals(other):
        raise ValueError("parts must be read by the same witness, got two.")


def _checked(mean: NDArray[Any]) -> Floats:
    mean = np.asarray(mean, dtype=np.float64)
    # Larger ones overflow when they are squared.
    largest = np.abs(mean).max()
    if not largest < 1e150:
        raise ValueError(
            "latent_mean must be finite and below 1e150, got a largest magnitude of "
            f"{largest}."
        )
    return mean


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, got {value}.")
