"""The certificate: verdict and numbers, and how far rounding could have made them."""

import dataclasses
import html
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.metrics import (
    alignment_loss,
    collapse_margin,
    dispersion_bound,
    escape_force_rms,
    latent_dispersion,
    teacher_information,
)
from skvaecert.simplex import (
    Floats,
    check_sample_weight,
    check_teacher_proba,
    witness_log_proba,
)

__all__ = ["Certificate", "certify"]

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
    "margin",
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
        The means' root mean square distance from their average is at least this.
    dispersion : float
        That distance as measured, in latent units; the prior's is sqrt(latent_dim).
    witness : str
        The witness that read the code: "raw" is the fixed simplex.
    n_samples : int
        The number of rows.
    n_components : int
        K.
    latent_dim : int
        d.

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

    def __str__(self) -> str:
        sentence = {
            "certified": self._certified_sentence,
            "constant": self._constant_sentence,
            "inconclusive": self._inconclusive_sentence,
        }[self.verdict]()
        return f"{self.verdict.capitalize()}: on these {self.n_samples} rows {sentence}"

    def _certified_sentence(self) -> str:
        return (
            f"the encoder mean is not constant; margin {_short(self.margin)} of at "
            f"most {_short(self.teacher_information)} nats "
            f"({self.relative_margin:.0%}). ".replace("%", " %")
            + "The means' distance from their average is "
            f"{_short(self.dispersion)} (root mean square), certified to be at least "
            f"{_short(self.dispersion_bound)}."
        )

    def _constant_sentence(self) -> str:
        return (
            "the latent means are equal to within rounding: the encoder mean has "
            f"collapsed. Their distance from their average is {self.dispersion:.1e} "
            f"(root mean square); the margin is {_short(self.margin)} nats."
        )

    def _inconclusive_sentence(self) -> str:
        needed = self.safety_margin + self.tolerance
        return (
            f"the margin is {_short(self.margin)} nats, not above the "
            f"{_short(needed)} needed, so the encoder mean is not certified. "
            f"{self._likely_reason()}"
        )

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
        return (
            f"That does not prove collapse: the latent means vary by {distance} (root "
            "mean square distance), but not in the way the teacher's components ask."
        )

    def to_dict(self) -> dict[str, str | float | int]:
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

    - in the arithmetic of the margin itself (:func:`summation_error`), and
    - in the latent means, as the encoder computed them (:func:`noise_margin`).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    latent_mean : array-like of shape (n_samples, latent_dim)
        The encoder means, taken to be computed in float32, or in 16 bits in those
        coordinates that fit in that (see :func:`rounding_noise`).
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
    _check_not_negative("safety_margin", safety_margin)
    _check_not_negative("latent_noise", latent_noise)
    mean = _check_latent_mean(latent_mean)
    proba = check_teacher_proba(teacher_proba, len(mean))
    weight = check_sample_weight(sample_weight, len(mean))
    _check_witness(vertices, scale, (proba.shape[1], mean.shape[1]))
    log_q = witness_log_proba(mean, vertices, scale)
    force = escape_force_rms(proba, scale, weight)
    noise = max(rounding_noise(mean, weight), latent_noise)
    arithmetic = summation_error(proba, log_q, mean, scale, weight)
    tolerance = arithmetic + noise_margin(noise, force, proba.shape[1], scale)
    # From the arguments as given, so that it is the score to the last bit.
    margin = collapse_margin(teacher_proba, log_q, sample_weight)
    information = teacher_information(proba, weight)
    dispersion = latent_dispersion(mean, weight)
    certified = margin > safety_margin + tolerance
    # Equal means say nothing of rows that the teacher finds equal too.
    may_be_constant = not certified and information > arithmetic
    return Certificate(
        verdict=_verdict(
            certified=certified,
            constant=may_be_constant and _is_constant(mean, weight),
        ),
        margin=margin,
        teacher_information=information,
        alignment_loss=alignment_loss(proba, log_q, weight),
        relative_margin=margin / information if information > 0 else math.nan,
        tolerance=tolerance,
        safety_margin=float(safety_margin),
        dispersion_bound=dispersion_bound(margin - tolerance, force),
        dispersion=dispersion,
        witness="raw",
        n_samples=len(mean),
        n_components=proba.shape[1],
        latent_dim=mean.shape[1],
    )


def summation_error(
    proba: Floats, log_q: Floats, mean: Floats, scale: float, weight: Floats
) -> float:
    r"""Bound the error of the computed margin, given teacher and latent means.

    With u = 2^-53, products and sums of n and K terms in any order are off by a
    factor within 1 +- (n + K + 4) u, the normalisations of T and p included, and the
    mean teacher by the same. A logit beta s_k . mu_i is off by at most
    (d + 2) u beta ||mu_i||, which moves log q by at most twice that; log-sum-exp
    over K terms adds (K + 3 + 2 log K) u, and each logarithm its own u |log|. Summed
    with weights, where C = -sum p T log q and H = -sum mean T log mean T::

        error <= 2 u [(n + K + 8) (C + H + 1) + (d + 2) beta sum_i p_i ||mu_i||]

    Twice that is returned, which leaves room for the terms of second order.

    Parameters
    ----------
    proba : ndarray of shape (n_samples, n_components)
        T.
    log_q : ndarray of shape (n_samples, n_components)
        Log-probabilities of the witness.
    mean : ndarray of shape (n_samples, latent_dim)
        The latent means.
    scale : float
        beta.
    weight : ndarray of shape (n_samples,)
        p.

    Returns
    -------
    float
        Nats.
    """
    n_samples, n_components = proba.shape
    cross_entropy = -weight @ (proba * log_q).sum(axis=1)
    mean_proba = weight @ proba
    entropy = -mean_proba @ np.log(mean_proba)
    terms = (n_samples + n_components + 8) * (cross_entropy + entropy + 1)
    logits = (mean.shape[1] + 2) * scale * (weight @ np.linalg.norm(mean, axis=1))
    return float(2 * np.finfo(np.float64).eps * (terms + logits))


def rounding_noise(mean: Floats, weight: Floats) -> float:
    """Return the root mean square error that rounding may have left in latent means.

    32 machine epsilons of float32 at magnitude max(1, |mu_ij|) in each coordinate:
    means that are small because large terms cancelled carry the error of those terms.
    Float32 is assumed of float64 values too, for they may come from a float32 network
    through later arithmetic. A coordinate whose values all fit in 16 bits, whatever
    their dtype, counts as computed in 16 bits, with 8 epsilons; one that is the same
    in all rows shows no error.

    Parameters
    ----------
    mean : ndarray of shape (n_samples, latent_dim)
        The latent means.
    weight : ndarray of shape (n_samples,)
        p.

    Returns
    -------
    float
        Latent units.
    """
    units = np.array([_rounding_unit(column) for column in mean.T])
    errors = units * np.maximum(np.abs(mean), 1.0)
    return float(np.sqrt(weight @ (errors**2).sum(axis=1)))


def noise_margin(noise: float, force: float, n_components: int, scale: float) -> float:
    r"""Bound the margin that noise around a constant code can fake.

    Let the codes be c + delta_i with sum_i p_i ||delta_i||^2 <= u^2. The witness's
    log-likelihood is concave in the code, so with m = ||mean T - q(c)||, the forces
    at c, and Pinsker's inequality in the form KL(mean T || q) >= m^2::

        G <= -KL(mean T || q(c)) + sum_i p_i <f_i(c), delta_i>
          <= -m^2 + u sqrt(f_rms^2 + b^2 m^2)      with b^2 = beta^2 K / (K - 1)
          <= f_rms u + (b u / 2)^2.

    Parameters
    ----------
    noise : float
        u, root mean square error of the codes, latent units.
    force : float
        f_rms, from :func:`skvaecert.metrics.escape_force_rms`.
    n_components : int
        K.
    scale : float
        beta.

    Returns
    -------
    float
        Nats.
    """
    curvature = scale**2 * n_components / (n_components - 1)
    return force * noise + curvature * noise**2 / 4


def _rounding_unit(values: Floats) -> float:
    """Return the error of one coordinate, as a share of its magnitude."""
    head = values[:_HEAD]  # which settles it in nearly all cases
    if (head == head[0]).all() and (values == values[0]).all():
        return 0.0
    if _fits_bfloat16(head) and _fits_bfloat16(values):
        return _NOISE_UNITS_16_BITS * 2.0**-7
    if _fits(head, np.float16) and _fits(values, np.float16):
        return _NOISE_UNITS_16_BITS * float(np.finfo(np.float16).eps)
    return _NOISE_UNITS * float(np.finfo(np.float32).eps)


def _fits(values: Floats, dtype: type[np.floating]) -> bool:
    with np.errstate(over="ignore"):
        return bool((values == values.astype(dtype)).all())


def _fits_bfloat16(values: Floats) -> bool:
    """Tell whether the lower half of the bits in float32 is empty."""
    if not _fits(values, np.float32):
        return False
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return not (bits & 0xFFFF).any()


def _is_constant(mean: Floats, weight: Floats) -> bool:
    """Tell whether each coordinate spreads by no more than its own rounding."""
    epsilon = np.finfo(np.float32 if _fits(mean, np.float32) else np.float64).eps
    # Taken from the first row, so that equal rows give exactly 0.
    shifted = mean - mean[0]
    spread = np.sqrt(weight @ (shifted - weight @ shifted) ** 2)
    magnitude = np.sqrt(weight @ mean**2)
    return bool((spread <= _CONSTANT_UNITS * epsilon * magnitude).all())


def _verdict(*, certified: bool, constant: bool) -> str:
    if certified:
        return "certified"
    return "constant" if constant else "inconclusive"


def _check_latent_mean(latent_mean: ArrayLike) -> Floats:
    mean = np.asarray(latent_mean, dtype=np.float64)
    if mean.ndim != 2 or mean.size == 0:
        raise ValueError(
            "latent_mean must be an array of shape (n_samples, latent_dim), got shape "
            f"{mean.shape}."
        )
    # Larger ones overflow when they are squared.
    largest = np.abs(mean).max()
    if not largest < 1e150:
        raise ValueError(
            "latent_mean must be finite and below 1e150, got a largest magnitude of "
            f"{largest}."
        )
    return mean


def _check_witness(vertices: ArrayLike, scale: float, shape: tuple[int, int]) -> None:
    """Check what the tolerance is derived from: a regular simplex, a positive scale."""
    if not 0 < scale < 1e150:
        raise ValueError(f"scale must be a number above 0, below 1e150, got {scale}.")
    if shape[0] < 2:
        raise ValueError(
            "teacher_proba must have at least 2 columns, got 1: one component tells "
            "no rows apart."
        )
    simplex = np.asarray(vertices, dtype=np.float64)
    if simplex.shape != shape:
        raise ValueError(
            f"vertices must have shape (n_components, latent_dim) = {shape}, got "
            f"{simplex.shape}."
        )
    regular = (np.eye(shape[0]) * shape[0] - 1) / (shape[0] - 1)
    if not np.allclose(simplex @ simplex.T, regular, atol=1e-6):
        raise ValueError(
            "vertices must form a regular simplex of radius 1: take them from "
            "simplex_vertices."
        )


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, got {value}.")


def _short(value: str | float | int) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 0.995 <= abs(value) < 100 else f"{value:.2g}"


def _finite(value: str | float | int) -> str | float | int | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None
