"""The sums over samples that a certificate of each kind needs.

Samples come in batches, and the sums of parts can be merged. No sample is kept.
:mod:`skvaecert._certificate.verdict` turns the sums into a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.rounding import (
    noise_margin,
    noise_needed,
    summation_error,
)
from skvaecert._certificate.verdict import (
    checked_margin,
    conclude,
)
from skvaecert._rounding import RoundingSums
from skvaecert.bounds import MeanBounds
from skvaecert.information import InformationBracket, InformationSums
from skvaecert.metrics import (
    MarginSums,
    SpreadSums,
    cross_entropies,
    drop_zero_weights,
    gen_rows,
    unit_weight,
)
from skvaecert.simplex import (
    Floats,
    check_count,
    check_number,
    check_real,
    check_teacher_proba,
)
from skvaecert.witnesses import LinearWitness

__all__ = [
    "MeanSums",
    "RoundTripSums",
    "SampledSums",
    "Sums",
    "check_draws",
    "check_shapes",
]

# Chance of a wrong verdict on drawn codes: that of five standard errors, one-sided.
_CHANCE = float(norm.sf(5.0))

# Share of the uniform distribution in a witness that reads drawn codes. It bounds the
# loss by log(K / floor), and costs at most -log(1 - floor), about `floor` nats.
_FLOOR = 1e-3


class Sums:
    """Base class of all kinds: the witness, and the sums of its margin."""

    kind: ClassVar[str]

    def __init__(self, witness: LinearWitness) -> None:
        self.witness = witness
        self.alignment = MarginSums()

    @property
    def n_samples(self) -> int:
        return self.alignment.n_samples

    @property
    def margin(self) -> float:
        """G of the samples so far, nats; raises if there are none."""
        return checked_margin(self.alignment)

    def merge(self, other: Any) -> Self:
        """Add the samples of other sums of this kind."""
        if not self.witness.equals(other.witness):
            raise ValueError(
                "parts must have the same witness, got two different ones. Compute all "
                "parts with the same fitted certifier."
            )
        self.alignment.merge(other.alignment)
        return self

    def _conclude(self, **findings: Any) -> Certificate:
        return conclude(
            self.alignment,
            kind=self.kind,
            witness=self.witness.name,
            n_samples=self.n_samples,
            latent_dim=self.witness.weights.shape[1],
            **findings,
        )


class MeanSums(Sums):
    """Sums for ``kind="mean"``: the latent mean is not constant (theory section 2)."""

    kind = "mean"

    def __init__(self, witness: LinearWitness) -> None:
        super().__init__(witness)
        self._forces = SpreadSums()
        self._means = RoundingSums()
        self.codes = CodeSums()

    def update(
        self,
        teacher_proba: ArrayLike,
        latent_mean: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples."""
        chunks = _chunks(self.witness, teacher_proba, sample_weight, latent_mean)
        for proba, weight, (mean,) in chunks:
            # First, because it checks the posteriors before anything is added.
            self.alignment.update_logits(proba, self.witness.logits(mean), weight)
            self._forces.update(_force_terms(proba, self.witness), weight)
            self._means.add(mean, weight)
        return self

    def merge(self, other: MeanSums) -> Self:
        """Add the samples of other sums."""
        super().merge(other)
        self._forces.merge(other._forces)
        self._means.merge(other._means)
        self.codes.merge(other.codes)
        return self

    @property
    def summation_error(self) -> float:
        """Bound on the error of the computed margin, given teacher and latent means."""
        return summation_error(self.alignment, self.witness, self._means.mean_norm)

    def certificate(
        self, *, safety_margin: float = 0.0, latent_noise: float = 0.0
    ) -> Certificate:
        """Return the certificate of all samples so far."""
        check_number("latent_noise", latent_noise, least=0)
        margin, arithmetic = self.margin, self.summation_error
        # The larger of the assumed and the measured rounding (theory section 2).
        noise = max(self._means.rounding_noise, latent_noise)
        force, spread = self._forces.dispersion, self._means.spread
        tolerance = arithmetic + noise_margin(noise, force, self.witness)
        return self._conclude(
            error=arithmetic,
            tolerance=tolerance,
            safety_margin=safety_margin,
            are_constant=self._means.are_constant,
            # A constant mean spreads by at most its noise (theory section 15).
            varies=spread.least_dispersion > noise,
            dispersion=spread.dispersion,
            # What rounding may have added shows no spread (theory sections 5 and 8).
            dispersion_bound=noise_needed(margin - tolerance, force, self.witness),
            latent_noise=noise,
            **self.codes.findings(self.n_samples, spread),
        )


class CodeSums:
    """Sums for the information of drawn codes and for the posterior's noise.

    There are findings only if the encoder returns standard deviations of all samples.
    If the bracket is `known`, it is not computed again.
    """

    def __init__(self) -> None:
        self.known: InformationBracket | None = None
        self._information = InformationSums()
        self._weight = 0.0
        self._variances: Floats | float = 0.0

    def update(
        self,
        latent_mean: ArrayLike,
        latent_std: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        """Add samples."""
        self._information.update(latent_mean, latent_std, sample_weight)
        weight = unit_weight(len(np.asarray(latent_std)), sample_weight)
        weight, deviation = drop_zero_weights(
            weight, np.asarray(latent_std, dtype=np.float64)
        )
        self._weight += float(weight.sum())
        self._variances = self._variances + weight @ deviation**2

    def merge(self, other: CodeSums) -> None:
        """Add the samples of other sums."""
        self._information.merge(other._information)
        self._weight += other._weight
        self._variances = self._variances + other._variances

    def findings(self, n_samples: int, spread: SpreadSums) -> dict[str, Any]:
        """Return fields of the certificate of these samples."""
        # Standard deviations of some samples only say nothing about all of them.
        if self._information.n_samples != n_samples:
            return {}
        ratio = spread.variance / (self._variances / self._weight)
        return {
            "dispersion_in_noise": float(np.sqrt(ratio.sum())),
            "information": self.known or self._information.bracket(),
        }


class DrawnSums(Sums):
    """Base class of the kinds that draw codes from q(z|x) (theory section 6).

    The loss of a code lies in [0, log(K / floor)], so bounds on its mean hold for any
    distribution and any number of draws. Codes are drawn twice. Draws of each sample
    give the margin. Draws that all samples share are a control: equal posteriors then
    give equal codes, and chance cannot produce a margin. Only a margin in both is
    certified.
    """

    def __init__(
        self,
        witness: LinearWitness,
        floor: float,
        n_draws: int,
        generator: np.random.Generator,
        part: int | None,
        confidence: float,
    ) -> None:
        super().__init__(witness)
        check_draws(n_draws, confidence)
        self.n_draws = n_draws
        self.confidence = confidence
        n_components, latent_dim = witness.weights.shape
        self._losses = MeanBounds(0.0, math.log(n_components / floor))
        self._means, self._deviations = RoundingSums(), RoundingSums()
        # The noise gets exactly mean 0 and variance 1 in each dimension. Otherwise a
        # few shared draws would often miss weak information.
        noise = generator.standard_normal((n_draws, latent_dim))
        noise -= noise.mean(axis=0)
        self.shared_noise = noise / noise.std(axis=0)
        self._shared_loss = 0.0
        self._generator = generator
        if part is not None:
            # Parts share the noise above. Their other draws must be independent.
            seed = int(generator.integers(2**63))
            self._generator = np.random.default_rng([part, seed])

    def merge(self, other: Any) -> Self:
        """Add the samples of other sums."""
        if self.confidence != other.confidence:
            raise ValueError(
                "parts must have the same confidence, got "
                f"{self.confidence} and {other.confidence}."
            )
        if not np.array_equal(self.shared_noise, other.shared_noise):
            raise ValueError(
                "parts must have the same n_draws and the same seed, got different "
                "draws. Pass an int as random_state of the certifier."
            )
        super().merge(other)
        self._losses.merge(other._losses)
        self._means.merge(other._means)
        self._deviations.merge(other._deviations)
        self._shared_loss += other._shared_loss
        return self

    @property
    def n_samples(self) -> int:
        # `alignment` counts each draw as a sample.
        return self._means.spread.n_samples

    def _draws(self, mean: Floats, deviation: Floats) -> Iterator[tuple[Floats, ...]]:
        """Yield codes: from draws of each sample, and from draws that all share."""
        # The draws of a sample follow those of the sample before it, so that they do
        # not depend on the batches.
        shape = len(mean), self.n_draws, mean.shape[1]
        noises = self._generator.standard_normal(shape).swapaxes(0, 1)
        for own, shared in zip(noises, self.shared_noise, strict=True):
            yield mean + deviation * own, mean + deviation * shared

    def _add_readings(
        self, proba: NDArray[Any], weight: Floats, own: Floats, shared: Floats
    ) -> None:
        """Add log q for one draw of each sample, and for one draw that all share."""
        self.alignment.update(proba, own, weight)
        # Rounding may move a loss slightly outside of its limits.
        losses = cross_entropies(proba, own).clip(0.0, self._losses.upper)
        self._losses.update(losses, weight)
        self._shared_loss += float(weight @ cross_entropies(proba, shared))

    def _add_distribution(
        self, weight: Floats, mean: Floats, deviation: Floats
    ) -> None:
        self._means.add(mean, weight)
        self._deviations.add(deviation, weight)

    @property
    def _shared_margin(self) -> float:
        mean_loss = self._shared_loss / self.alignment.total_weight
        return self.alignment.mean_entropy - mean_loss

    @property
    def _are_equal(self) -> bool:
        """Whether all posteriors are the same to within rounding."""
        return self._means.are_constant and self._deviations.are_constant

    @property
    def _interval(self) -> dict[str, Any]:
        """What the draws leave open, for any distribution of the bounded losses.

        The margin is entropy minus loss, so the upper bound of the loss gives the lower
        end.
        """
        entropy, level = self.alignment.mean_entropy, (1 + self.confidence) / 2
        return {
            "doubt": self.margin - (entropy - self._losses.high(1 - _CHANCE)),
            "confidence": self.confidence,
            "margin_low": entropy - self._losses.high(level),
            "margin_high": entropy - self._losses.low(level),
        }


class SampledSums(DrawnSums):
    """Sums for ``kind="sampled"``: drawn codes carry information (theory section 6).

    The witness is mixed with a floor, (1 - floor) q + floor / K, which bounds its loss.
    """

    kind = "sampled"

    def __init__(
        self,
        witness: LinearWitness,
        n_draws: int,
        generator: np.random.Generator,
        part: int | None = None,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(witness, _FLOOR, n_draws, generator, part, confidence)
        self.codes = CodeSums()
        self._narrowest = math.inf
        # Squared errors of mean, log deviation and deviation, in rounding units.
        self._errors = np.zeros((3, witness.weights.shape[1]))

    def update(
        self,
        teacher_proba: ArrayLike,
        latent_mean: ArrayLike,
        latent_std: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples."""
        mean, deviation = _check_distribution(latent_mean, latent_std)
        chunks = _chunks(self.witness, teacher_proba, sample_weight, mean, deviation)
        for proba, weight, codes in chunks:
            self._add_drawn(proba, weight, *codes)
        self.codes.update(mean, deviation, sample_weight)
        return self

    def merge(self, other: SampledSums) -> Self:
        """Add the samples of other sums."""
        super().merge(other)
        self.codes.merge(other.codes)
        self._errors = self._errors + other._errors
        self._narrowest = min(self._narrowest, other._narrowest)
        return self

    def certificate(
        self, *, safety_margin: float = 0.0, latent_noise: float = 0.0
    ) -> Certificate:
        """Return the certificate of all samples so far."""
        check_number("latent_noise", latent_noise, least=0)
        # Raises if there are no samples, before sums are divided by their weight.
        checked_margin(self.alignment)
        # On average over draws, the norm of mu + s e is at most |mu| + |s|.
        mean_norm = self._means.mean_norm + self._deviations.mean_norm
        arithmetic = summation_error(self.alignment, self.witness, mean_norm)
        faked = self._shared_tolerance(latent_noise)
        spread = self._means.spread
        return self._conclude(
            error=arithmetic,
            tolerance=arithmetic + self._noise(latent_noise),
            safety_margin=safety_margin,
            # Not `<=`, so that NaN counts as luck.
            is_luck=not self._shared_margin > arithmetic + faked,
            are_constant=self._are_equal,
            dispersion=spread.dispersion,
            latent_noise=max(self._means.rounding_noise, latent_noise),
            **self._interval,
            **self.codes.findings(self.n_samples, spread),
        )

    def _add_drawn(
        self, proba: NDArray[Any], weight: Floats, mean: Floats, deviation: Floats
    ) -> None:
        for own, shared in self._draws(mean, deviation):
            readings = self._log_proba(own), self._log_proba(shared)
            self._add_readings(proba, weight / self.n_draws, *readings)
        self._add_distribution(weight, mean, deviation)
        self._errors += _squared_errors(mean, deviation, weight)
        self._narrowest = min(self._narrowest, float(deviation.min()))

    def _log_proba(self, codes: Floats) -> Floats:
        """Return log((1 - floor) q + floor / K)."""
        log_q = self.witness.log_proba(codes)
        lowest = math.log(_FLOOR / log_q.shape[1])
        return np.asarray(np.logaddexp(log_q + math.log1p(-_FLOOR), lowest))

    def _noise(self, latent_noise: float) -> float:
        """Bound the KL divergence between posteriors that should be equal.

        Rounding and other batches move their means and deviations. To leading order,
        the KL between normals is (error of the mean / deviation)^2 / 2 plus the
        squared error of the log deviation.
        """
        units = np.array([self._means.unit, self._deviations.unit]) ** 2
        errors = self._errors[:2] / self.alignment.total_weight
        # A unit of 0 stands for no rounding error, and 0 times infinity would be nan.
        errors = np.where(units > 0, units * errors, 0.0)
        rounding = float(errors[0].sum() / 2 + errors[1].sum())
        with np.errstate(over="ignore"):
            moved = np.square(latent_noise / np.float64(self._narrowest)) / 2
        # If log deviations move by h, the KL is (exp(2 h) - 1) / 2 - h <= h^2 exp(2 h).
        # The limits prevent an OverflowError, at values that certify nothing anyway.
        growth = math.exp(min(2 * latent_noise, 100.0))
        return rounding + float(moved) + min(latent_noise, 1e50) ** 2 * growth

    def _shared_tolerance(self, latent_noise: float) -> float:
        """Bound the margin that noise can fake if samples share their draws.

        A step in the code changes a loss by at most its length times the largest
        distance of two rows of A, for any floor.
        """
        # A drawn code mu + s e moves by the error of mu, plus e s times that of log s.
        squares = (self.shared_noise**2).mean(axis=0) / self.alignment.total_weight
        widths = self._errors[2] * squares
        noise = math.sqrt(float(self._deviations.unit**2 @ widths))
        moved = latent_noise * (1 + math.sqrt(float(widths.sum())))
        noise += max(self._means.rounding_noise, moved)
        # The largest distance is at most sqrt(2) times the gain (theory section 6).
        return math.sqrt(2) * self.witness.gain * noise


# Takes codes; returns what the teacher reads off their reconstructions, and these.
Reader = Callable[[Floats], tuple[Floats, ArrayLike]]


class RoundTripSums(DrawnSums):
    """Sums for ``kind="round_trip"``: reconstructions show the teacher's clusters.

    The witness is the teacher itself, softened with a floor (theory section 7).
    """

    kind = "round_trip"

    def __init__(
        self,
        n_components: int,
        latent_dim: int,
        floor: float,
        n_draws: int,
        generator: np.random.Generator,
        part: int | None = None,
        confidence: float = 0.95,
    ) -> None:
        # The teacher reads reconstructions, not codes. This witness gives shape and
        # name only, and no logit of it is computed.
        weights = np.zeros((n_components, latent_dim))
        witness = LinearWitness(weights, np.zeros(n_components), "teacher")
        super().__init__(witness, floor, n_draws, generator, part, confidence)
        self._outputs = RoundingSums()
        self._is_drawn: bool | None = None

    def update(
        self,
        teacher_proba: ArrayLike,
        read: Reader,
        latent_mean: ArrayLike,
        latent_std: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples; without standard deviations, the means are read."""
        self._check_drawn(latent_std is not None)
        codes: tuple[ArrayLike, ...] = (latent_mean,)
        if latent_std is not None:
            codes = _check_distribution(latent_mean, latent_std)
        chunks = _chunks(self.witness, teacher_proba, sample_weight, *codes)
        for proba, weight, arrays in chunks:
            if len(arrays) == 1:
                # Nothing is drawn, so the means are read once and stand for both draws.
                reading = self._read(read, weight, arrays[0])
                self._add_readings(proba, weight, reading, reading)
                self._means.add(arrays[0], weight)
            else:
                self._add_drawn(proba, weight, read, *arrays)
        return self

    def merge(self, other: RoundTripSums) -> Self:
        """Add the samples of other sums."""
        if other._is_drawn is not None:
            self._check_drawn(other._is_drawn)
        super().merge(other)
        self._outputs.merge(other._outputs)
        return self

    def certificate(
        self, *, safety_margin: float = 0.0, shift: float = 0.0
    ) -> Certificate:
        """Return the certificate of all samples so far.

        `shift` bounds, in nats, how much rounding changes what the teacher reads.
        """
        checked_margin(self.alignment)
        # No logits are computed from codes, so there is no term for their norm.
        arithmetic = summation_error(self.alignment, self.witness, 0.0)
        tolerance = arithmetic + shift
        # Without standard deviations, only the outputs can show a constant.
        are_equal = bool(self._is_drawn) and self._are_equal
        return self._conclude(
            error=arithmetic,
            tolerance=tolerance,
            safety_margin=safety_margin,
            is_luck=not self._shared_margin > tolerance,
            are_constant=are_equal or self._outputs.are_constant,
            dispersion=self._means.spread.dispersion,
            **self._interval if self._is_drawn else {},
        )

    def _add_drawn(
        self,
        proba: NDArray[Any],
        weight: Floats,
        read: Reader,
        mean: Floats,
        deviation: Floats,
    ) -> None:
        for own, shared in self._draws(mean, deviation):
            readings = (self._read(read, weight, codes) for codes in (own, shared))
            self._add_readings(proba, weight / self.n_draws, *readings)
        self._add_distribution(weight, mean, deviation)

    def _read(self, read: Reader, weight: Floats, codes: Floats) -> Floats:
        """Return log q, and add the reconstructions to their sums."""
        proba, output = read(codes)
        self._outputs.add(np.asarray(output, dtype=np.float64), weight)
        return np.asarray(np.log(check_teacher_proba(proba, len(codes))))

    def _check_drawn(self, drawn: bool) -> None:
        if self._is_drawn not in (None, drawn):
            raise ValueError(
                "estimator must have an encode that returns standard deviations for "
                "all batches or for none, got them for some batches only."
            )
        self._is_drawn = drawn


def _chunks(
    witness: LinearWitness,
    teacher_proba: ArrayLike,
    sample_weight: ArrayLike | None,
    *codes: ArrayLike,
) -> Iterator[tuple[NDArray[Any], Floats, list[Floats]]]:
    """Yield posteriors, weights and codes of some samples, all of weight above 0."""
    means, *_ = arrays = [check_real("latent_mean", code) for code in codes]
    posteriors = check_real("teacher_proba", teacher_proba)
    shape = witness.weights.shape
    # Without a teacher there is one component, of probability 1.
    check_shapes(means, posteriors, shape, 1 if witness.name == "none" else 2)
    weights = unit_weight(len(means), sample_weight)
    for rows in gen_rows(len(means), max(shape)):
        # Contiguous, because products with weights of stride 0 are slower.
        weight, proba = np.ascontiguousarray(weights[rows]), posteriors[rows]
        checked = [_within_limits(array[rows]) for array in arrays]
        if not weight.all():
            # Samples of weight 0 are left out, and must be valid nevertheless.
            check_teacher_proba(proba)
            weight, proba, *checked = drop_zero_weights(weight, proba, *checked)
        if len(weight):
            yield proba, weight, checked


def _force_terms(proba: ArrayLike, witness: LinearWitness) -> Floats:
    """Return A^T T_i, the part of a force that differs between samples.

    Its root mean square distance from the mean is f_rms, for any code (theory
    section 4).
    """
    return np.asarray(check_teacher_proba(proba) @ witness.weights)


def _squared_errors(mean: Floats, deviation: Floats, weight: Floats) -> Floats:
    """Sum the squared errors of mean / deviation, log deviation and deviation."""
    # Networks return the logarithm of a deviation, and its rounding error counts. That
    # of values below 1 is taken as if they were 1, as for the means.
    logs = np.maximum(np.log(deviation) ** 2, 1)
    with np.errstate(over="ignore"):
        means = (np.maximum(np.abs(mean), 1) / deviation) ** 2
    return np.stack([weight @ means, weight @ logs, weight @ (logs * deviation**2)])


def _check_distribution(
    latent_mean: ArrayLike, latent_std: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check that there is a standard deviation above 0 for each mean."""
    mean = check_real("latent_mean", latent_mean)
    deviation = check_real("latent_std", latent_std)
    if deviation.shape != mean.shape or not (deviation > 0).all():
        raise ValueError(
            "latent_std must have the shape of latent_mean and values above 0, got "
            f"shape {deviation.shape} with a smallest value of {deviation.min()}."
        )
    return mean, deviation


def check_draws(n_draws: int, confidence: float) -> None:
    check_count("n_draws", n_draws, least=2)
    check_number("confidence", confidence, above=0, below=1)


def check_shapes(
    means: NDArray[Any],
    posteriors: NDArray[Any],
    shape: tuple[int, ...],
    n_least: int = 2,
) -> None:
    """Check latent means and posteriors against the shape of the witness's weights."""
    if means.ndim != 2 or means.size == 0:
        raise ValueError(
            "latent_mean must be an array of shape (n_samples, latent_dim), got shape "
            f"{means.shape}."
        )
    if posteriors.ndim != 2 or len(posteriors) != len(means):
        check_teacher_proba(posteriors, len(means))  # raises, with the shape it needs
    if posteriors.shape[1] < n_least:
        raise ValueError(
            "teacher_proba must have at least 2 columns, got 1. A single component "
            "cannot tell samples apart."
        )
    wanted = posteriors.shape[1], means.shape[1]
    if shape != wanted:
        raise ValueError(
            f"vertices must have shape (n_components, latent_dim) = {wanted}, got "
            f"{shape}."
        )


def _within_limits(values: NDArray[Any]) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    # The squares of larger values overflow.
    largest = np.abs(values).max()
    if not largest < 1e150:
        raise ValueError(
            "latent_mean must be finite and below 1e150, got a largest magnitude of "
            f"{largest}."
        )
    return values
