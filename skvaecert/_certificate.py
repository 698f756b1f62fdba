"""The certificate: verdict and numbers, and how far rounding could have made them."""

import dataclasses
import html
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from skvaecert.metrics import (
    MarginSums,
    SpreadSums,
    cross_entropies,
    dispersion_bound,
    gen_rows,
    unit_weight,
)
from skvaecert.simplex import Floats, check_teacher_proba, check_weight
from skvaecert.witnesses import LinearWitness, simplex_witness

__all__ = [
    "Certificate",
    "CertificateSums",
    "RoundTripSums",
    "SampledSums",
    "certify",
    "certify_batches",
    "check_confidence",
    "rounded",
]

# Units of machine epsilon, at magnitude max(1, |mu|), that an encoder may be off in
# each coordinate. Networks of a few hundred units were seen off by 4 in float32; in
# 16 bits, sums are kept in 32 and only results are rounded.
_NOISE_UNITS = 32
_NOISE_UNITS_16_BITS = 8
# Means that spread by less than this many units, at their own magnitude, are called
# constant. Fewer than above, because "constant" is a claim too.
_CONSTANT_UNITS = 4

_COLOURS = {"certified": "seagreen", "inconclusive": "goldenrod", "constant": "crimson"}
_IN_NATS = [
    "information_bound",
    "margin",
    "margin_high",
    "margin_low",
    "teacher_information",
    "alignment_loss",
    "tolerance",
    "safety_margin",
]
_UNITS = dict.fromkeys(_IN_NATS, " nats")


@dataclass(frozen=True)
class Certificate:
    """Verdict on constant collapse of an encoder mean, with the numbers behind it.

    `str` gives a sentence, notebooks show a table, :meth:`to_json` a record.

    Attributes
    ----------
    verdict : {"certified", "inconclusive", "constant"}
        "certified": the margin is above safety margin and tolerance, so the mean is
        not constant on these rows. "constant": the means are equal to within
        rounding, on rows that the teacher tells apart. "inconclusive": neither was
        shown; this is no proof of collapse.
    margin : float
        G = I_T - A, nats, at most `teacher_information`.
    teacher_information : float
        I_T on these rows, nats.
    alignment_loss : float
        A on these rows, nats.
    relative_margin : float
        G / I_T, at most 1; nan if the teacher information is 0.
    tolerance : float
        What rounding could have added to the margin, nats.
    safety_margin : float
        What the user asked for on top, nats.
    dispersion_bound : float
        The means' root mean square distance from their average is at least this; 0 for
        kinds that do not say.
    dispersion : float
        That distance as measured, in latent units; the prior's is sqrt(latent_dim).
    witness : str
        The witness that read the code. "raw" is the fixed simplex of the papers;
        "procrustes" and "linear" were fitted on other rows, which proves as much but is
        not their certificate; "teacher" reads reconstructions.
    n_samples : int
        The number of rows.
    n_components : int
        K.
    latent_dim : int
        d.
    kind : {"mean", "sampled", "round_trip"}
        What is certified: that the mean is not constant; that codes drawn from q(z|x)
        carry information on x; that encoder and decoder together pass it on.
    confidence : float or None
        Of the interval from `margin_low` to `margin_high`, over the draws of codes;
        None where nothing is drawn.
    margin_low, margin_high : float
        The Monte-Carlo interval of a sampled margin, nats; else the margin itself.
    information_bound : float or None
        No code of this encoder carries more on these rows: the smaller of the mean
        KL(q(z|x) || N(0, I)) and log n, nats; None unless `kind` is "sampled".

    See Also
    --------
    certify : Makes a certificate from arrays.
    CollapseCertifier : Makes certificates for estimators.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> vertices = simplex_vertices(2, 1)
    >>> code = analytic_code(teacher_proba, vertices, 1.0)
    >>> print(certify(teacher_proba, code, vertices, 1.0))
    Certified: on these 2 rows the encoder mean is not constant; margin 0.37 of at
    most 0.37 nats (100 %). The means' distance from their average is 1.10 (root mean
    square), certified to be at least 0.46.
    """

    verdict: str
    margin: float
    teacher_information: float
    alignment_loss: float
    relative_margin: float
    tolerance: float
    safety_margin: float
    dispersion_bound: float
    dispersion: float
    witness: str
    n_samples: int
    n_components: int
    latent_dim: int
    kind: str = "mean"
    confidence: float | None = None
    margin_low: float = math.nan
    margin_high: float = math.nan
    information_bound: float | None = None

    def __str__(self) -> str:
        sentence = {
            "certified": self._certified_sentence,
            "constant": self._constant_sentence,
            "inconclusive": self._inconclusive_sentence,
        }[self.verdict]()
        rows = f"on these {self.n_samples} rows"
        if self.kind != "round_trip" and self.witness != "raw":
            # Not the papers' certificate, whose witness is fitted on nothing.
            rows += f", by a {self.witness} witness fitted on others,"
        return f"{self.verdict.capitalize()}: {rows} {sentence}"

    def _certified_sentence(self) -> str:
        share = f"{self.relative_margin:.0%}".replace("%", " %")
        margin = (
            f"margin {_short(self.margin)} of at most "
            f"{_short(self.teacher_information)} nats ({share})."
        )
        if self.kind == "round_trip":
            return f"encoder and decoder together pass input on; {margin}"
        if self.kind == "sampled":
            return (
                f"a drawn code carries at least {_short(self.margin_low)} nats on its "
                f"input and at most {_short(self.information_bound)} (lower bound: "
                f"{self._interval()})."
            )
        return (
            f"the encoder mean is not constant; {margin} "
            + "The means' distance from their average is "
            f"{_short(self.dispersion)} (root mean square), certified to be at least "
            f"{_short(self.dispersion_bound)}."
        )

    def _constant_sentence(self) -> str:
        what = {
            "mean": "the latent means are equal to within rounding: the encoder mean "
            "has collapsed.",
            "sampled": "the posterior q(z|x) is the same to within rounding: it has "
            "collapsed.",
            "round_trip": "the reconstructions are equal to within rounding.",
        }[self.kind]
        return (
            f"{what} The means' distance from their average is {self.dispersion:.1e} "
            f"(root mean square); the margin is {_short(self.margin)} nats."
        )

    def _inconclusive_sentence(self) -> str:
        needed = self.safety_margin + self.tolerance
        what = {
            "mean": "so the encoder mean is not certified",
            "sampled": f"by five standard errors ({self._interval()}), so no "
            "information in drawn codes is certified",
            "round_trip": "so it is not certified that input comes through",
        }[self.kind]
        return (
            f"the margin is {_short(self.margin)} nats, not above the "
            f"{_short(needed)} needed, {what}. {self._likely_reason()}"
        )

    def _interval(self) -> str:
        if self.confidence is None:
            return ""
        low, high = _short(self.margin_low), _short(self.margin_high)
        share = f"{100 * self.confidence:g} %"
        return f"{share} interval over draws: {low} to {high}"

    def _likely_reason(self) -> str:
        distance = _short(self.dispersion)
        if self.teacher_information <= self.safety_margin + self.tolerance:
            return (
                "The teacher tells these rows apart by only "
                f"{_short(self.teacher_information)} nats: no code could do better."
            )
        # A tenth of the prior's width in every dimension.
        if self.dispersion < 0.1 * math.sqrt(self.latent_dim):
            return (
                f"The latent means hardly vary: {distance} (root mean square "
                f"distance) where the prior has {math.sqrt(self.latent_dim):.2g}."
            )
        reader = {
            "mean": "but not in the way the teacher's components ask",
            "sampled": "but drawn codes do not show it",
            "round_trip": "but the decoder does not show it to the teacher",
        }[self.kind]
        return (
            f"That does not prove collapse: the latent means vary by {distance} (root "
            f"mean square distance), {reader}."
        )

    def to_dict(self) -> dict[str, str | float | int | None]:
        """Return the fields by name.

        Returns
        -------
        dict
            Plain Python values, in the order of the attributes.
        """
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as a JSON object, with null for what is not finite.

        Returns
        -------
        str
            One line of standard JSON.
        """
        return json.dumps({k: _finite(v) for k, v in self.to_dict().items()})

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name.replace('_', ' ')}</th>"
            f"<td>{html.escape(_short(value))}{_UNITS.get(name, '')}</td></tr>"
            for name, value in self.to_dict().items()
        )
        return (
            f"<div style='border-left:4px solid {_COLOURS[self.verdict]};"
            f"padding-left:1em'><p>{html.escape(str(self))}</p>"
            f"<table>{rows}</table></div>"
        )


# Rows by which most coordinates show that they were not computed in 16 bits.
_HEAD = 64


def certify(
    teacher_proba: ArrayLike,
    latent_mean: ArrayLike,
    vertices: ArrayLike,
    scale: float,
    *,
    sample_weight: ArrayLike | None = None,
    safety_margin: float = 0.0,
    latent_noise: float = 0.0,
) -> Certificate:
    """Certify that latent means are not constant: G > safety margin + tolerance.

    The margin G = I_T - A compares the alignment loss of the fixed simplex witness
    with what the best constant student pays on the same rows. The tolerance is the
    sum of what rounding could have added to G,

    - in the arithmetic of the margin itself (`summation_error`), and
    - in the latent means, as the encoder computed them (`noise_margin`).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    latent_mean : array-like of shape (n_samples, latent_dim)
        The encoder means, taken to be computed in float32, or in 16 bits in those
        coordinates that fit in that (see `rounding_noise`).
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to sum 1; uniform when None.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin has to be above it.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, in latent units, if it is known
        to be more than rounding in their dtype, for example from computing them
        twice.

    Returns
    -------
    Certificate
        The verdict and the numbers behind it.

    Raises
    ------
    ValueError
        If an array or number is not valid.

    Notes
    -----
    The statement is about the means as they are given: an encoder that turns
    rounding errors of its input into large outputs is not constant as computed.

    References
    ----------
    Theory sections 2 and 5; arXiv:2605.05813, arXiv:2605.18224.

    Examples
    --------
    No constant code is certified, not even the best one.

    >>> import numpy as np
    >>> from skvaecert import certify
    >>> from skvaecert.simplex import simplex_vertices
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> certify(teacher_proba, np.zeros((2, 1)), simplex_vertices(2, 1), 1.0).verdict
    'constant'
    """
    simplex = np.asarray(vertices, dtype=np.float64)
    means, posteriors = np.asanyarray(latent_mean), np.asanyarray(teacher_proba)
    _check_shapes(means, posteriors, simplex.shape)
    sums = CertificateSums(simplex_witness(simplex, scale))
    sums.update(posteriors, means, sample_weight)
    return sums.certificate(safety_margin=safety_margin, latent_noise=latent_noise)


def certify_batches(
    batches: Iterable[tuple[ArrayLike, ...]],
    vertices: ArrayLike,
    scale: float,
    *,
    safety_margin: float = 0.0,
    latent_noise: float = 0.0,
) -> Certificate:
    """Certify latent means that come in batches, reading each once.

    The same as :func:`certify` on all rows together, to within the tolerance, in memory
    that does not grow with their number.

    Parameters
    ----------
    batches : iterable of (teacher_proba, latent_mean) or with sample_weight
        Arrays as :func:`certify` takes them, for some of the rows. Weights, or 1 for
        each row where a batch has none, count across batches.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin has to be above it.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, as in :func:`certify`.

    Returns
    -------
    Certificate
        The verdict on all rows together.

    Raises
    ------
    ValueError
        If an array or number is not valid, or there are no rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify_batches
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> vertices = simplex_vertices(2, 1)
    >>> rows = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    >>> batches = ((proba, analytic_code(proba, vertices, 1.0)) for proba in rows)
    >>> certify_batches(batches, vertices, 1.0).verdict
    'certified'
    """
    sums = CertificateSums(simplex_witness(vertices, scale))
    for batch in batches:
        sums.update(*batch)
    return sums.certificate(safety_margin=safety_margin, latent_noise=latent_noise)


class CertificateSums:
    """What a certificate of the mean needs to know of rows that come in batches."""

    def __init__(self, witness: LinearWitness) -> None:
        self.witness = witness
        self.alignment = MarginSums()
        self._forces = SpreadSums()
        self._means = _MeanSums()

    def update(
        self,
        teacher_proba: ArrayLike,
        latent_mean: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add rows."""
        means, posteriors = np.asanyarray(latent_mean), np.asanyarray(teacher_proba)
        shape = self.witness.weights.shape
        _check_shapes(means, posteriors, shape)
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
        least = _dispersion_bound(margin - tolerance, self._force, self.witness)
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
        self._means, self._deviations = _MeanSums(), _MeanSums()
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
        _check_shapes(means, posteriors, shape)
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
        self._outputs = _MeanSums()

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


# A rounding error at magnitude 1, as assumed of encoders.
_ROUNDING = _NOISE_UNITS * float(np.finfo(np.float32).eps)
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


def _dispersion_bound(margin: float, force: float, witness: LinearWitness) -> float:
    """Solve the bound of :func:`noise_margin` for the noise that it takes.

    The simplex reaches the mean teacher with some code, which gives the better bound of
    theory section 5.
    """
    if witness.name == "raw":
        return dispersion_bound(margin, force)
    if margin <= 0:
        return 0.0
    return 2 * margin / (force + math.hypot(force, witness.gain * math.sqrt(margin)))


class _MeanSums:
    """Size, spread and precision of latent means."""

    def __init__(self) -> None:
        self.spread = SpreadSums()
        self._precision = _Precision()
        self._norms = 0.0
        self._squares: Floats | float = 0.0
        self._at_least_one: Floats | float = 0.0

    def add(self, mean: Floats, weight: Floats) -> None:
        squares = mean**2
        self._norms += float(weight @ np.sqrt(squares.sum(axis=1)))
        self._squares = self._squares + weight @ squares
        self._at_least_one = self._at_least_one + weight @ np.maximum(squares, 1)
        self.spread.update(mean, weight)
        self._precision.add(mean, self.spread.first)

    def merge(self, other: "_MeanSums") -> None:
        if not len(other.spread.first):
            return
        self.spread.merge(other.spread)
        equal = self.spread.first == other.spread.first
        self._precision.merge(other._precision, equal)
        self._norms += other._norms
        self._squares = self._squares + other._squares
        self._at_least_one = self._at_least_one + other._at_least_one

    @property
    def mean_norm(self) -> float:
        return self._norms / self.spread.total_weight

    @property
    def unit(self) -> Floats:
        """The error of each column, as a share of its magnitude."""
        return self._precision.unit

    @property
    def rounding_noise(self) -> float:
        """Root mean square error that rounding may have left.

        32 machine epsilons of float32 at magnitude max(1, |mu_ij|) in each coordinate:
        means that are small because large terms cancelled carry the error of those
        terms. Float32 is assumed of float64 values too, for they may come from a
        float32 network through later arithmetic. A coordinate whose values all fit in
        16 bits, whatever their dtype, counts as computed in 16 bits, with 8 epsilons;
        one that is the same in all rows shows no error.
        """
        squares = self._precision.unit**2 * self._at_least_one
        return float(np.sqrt(squares.sum() / self.spread.total_weight))

    @property
    def are_constant(self) -> bool:
        """Whether each coordinate spreads by no more than its own rounding."""
        epsilon = np.finfo(np.float32 if self._precision.single else np.float64).eps
        magnitude = np.sqrt(self._squares / self.spread.total_weight)
        limit = _CONSTANT_UNITS * epsilon * magnitude
        return bool((np.sqrt(self.spread.variance) <= limit).all())


class _Precision:
    """How many bits the values of each column were computed with, at most."""

    def __init__(self) -> None:
        # Whether all values so far are equal, or fit in a type, column by column.
        self._fits: dict[str, NDArray[np.bool_]] = {}

    def add(self, values: Floats, first: Floats) -> None:
        self._begin(len(first))
        self._note("equal", values, lambda part, of: part == first[of])
        self._note("bfloat16", values, lambda part, of: _fits_bfloat16(part))
        self._note("float16", values, lambda part, of: _fits(part, np.float16))
        self._note("float32", values, lambda part, of: _fits(part, np.float32))

    def merge(self, other: "_Precision", equal: NDArray[np.bool_]) -> None:
        """Add what was seen of other values, whose first is `equal` to the own or not.

        What is equal in both parts may be one number here and another there.
        """
        self._begin(len(equal))
        for kind, fits in other._fits.items():
            self._fits[kind] = self._fits[kind] & fits
        self._fits["equal"] = self._fits["equal"] & equal

    def _begin(self, n_columns: int) -> None:
        if not self._fits:
            kinds = "equal", "bfloat16", "float16", "float32"
            self._fits = {kind: np.ones(n_columns, dtype=bool) for kind in kinds}

    @property
    def unit(self) -> Floats:
        """The error of each column, as a share of its magnitude."""
        shares = [
            0.0,
            _NOISE_UNITS_16_BITS * 2.0**-7,
            _NOISE_UNITS_16_BITS * float(np.finfo(np.float16).eps),
        ]
        kinds = [self._fits[kind] for kind in ("equal", "bfloat16", "float16")]
        return np.select(kinds, shares, _ROUNDING)

    @property
    def single(self) -> bool:
        return bool(self._fits["float32"].all())

    def _note(
        self,
        kind: str,
        values: Floats,
        test: Callable[[Floats, NDArray[np.intp]], NDArray[np.bool_]],
    ) -> None:
        fits = self._fits[kind]
        # The first rows settle it in nearly all cases.
        for part in (values[:_HEAD], values):
            columns = np.flatnonzero(fits)
            if len(columns):
                fits[columns] = test(part[:, columns], columns).all(axis=0)


def summation_error(
    alignment: MarginSums, witness: LinearWitness, mean_norm: float
) -> float:
    r"""Bound the error of the computed margin, given teacher and codes.

    With u = 2^-53, products and sums of n and K terms in any order are off by a
    factor within 1 +- (n + K + 4) u, the normalisations of T and p included, and the
    mean teacher by the same. A logit a_k . z_i + b_k is off by at most
    (d + 2) u (||a_k|| ||z_i|| + |b_k|), which moves log q by at most twice that;
    log-sum-exp over K terms adds (K + 3 + 2 log K) u, and each logarithm its own
    u |log|. Summed with weights, where C = -sum p T log q, H = -sum mean T log mean T,
    and a, b are the largest ||a_k||, |b_k|::

        error <= 2 u [(n + K + 8) (C + H + 1) + (d + 2) (a sum_i p_i ||z_i|| + b)]

    Twice that is returned, which leaves room for the terms of second order.
    """
    n_components, latent_dim = witness.weights.shape
    entropies = alignment.cross_entropy + alignment.mean_entropy + 1
    terms = (alignment.n_samples + n_components + 8) * entropies
    largest = float(np.linalg.norm(witness.weights, axis=1).max()) * mean_norm
    logits = (latent_dim + 2) * (largest + float(np.abs(witness.bias).max()))
    return float(2 * np.finfo(np.float64).eps * (terms + logits))


def noise_margin(noise: float, force: float, gain: float) -> float:
    r"""Bound the margin that noise around a constant code can fake.

    Let the codes be c + delta_i with sum_i p_i ||delta_i||^2 <= u^2. The witness's
    log-likelihood is concave in the code, so with m = ||mean T - q(c)||, the forces
    f_i at c, and Pinsker's inequality in the form KL(mean T || q) >= m^2::

        G <= -KL(mean T || q(c)) + sum_i p_i <f_i(c), delta_i>
          <= -m^2 + u sqrt(f_rms^2 + a^2 m^2)      with a the gain of the witness
          <= f_rms u + (a u / 2)^2.
    """
    # A product overflows to infinity, a power to an error.
    return force * noise + (gain * noise) * (gain * noise) / 4


def rounded(
    values: NDArray[np.floating], magnitude: ArrayLike, generator: np.random.Generator
) -> Floats:
    """Move values by as much as rounding may have, to either side."""
    exact = np.asarray(values, dtype=np.float64)
    precision = _Precision()
    precision.add(exact, exact[0])
    signs = generator.choice([-1.0, 1.0], size=exact.shape)
    error = np.maximum(_ROUNDING * np.asarray(magnitude), precision.unit * abs(exact))
    return np.asarray(exact + error * signs)


def _fits(values: Floats, dtype: type[np.floating]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray(values == values.astype(dtype))


def _fits_bfloat16(values: Floats) -> NDArray[np.bool_]:
    """Tell where the lower half of the bits in float32 is empty."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.asarray(_fits(values, np.float32) & ((bits & 0xFFFF) == 0))


def _verdict(*, certified: bool, constant: bool) -> str:
    if certified:
        return "certified"
    return "constant" if constant else "inconclusive"


def _check_shapes(
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


def _short(value: str | float | int | None) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 0.995 <= abs(value) < 100 else f"{value:.2g}"


def _finite(value: str | float | int | None) -> str | float | int | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None
