"""Witnesses, which read clusters off a code: a softmax of a linear map.

If a witness was not fitted on the samples that it reads, it is constant if the code is
constant. So a margin above 0 proves that the code is not constant. The fixed simplex
needs no fit. The other witnesses are fitted after training, for encoders that were
trained without a witness. Theory sections 6 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, softmax

from skvaecert.metrics import SpreadSums, drop_zero_weights
from skvaecert.simplex import (
    Floats,
    analytic_code,
    check_number,
    check_real,
    check_sample_weight,
    check_scale,
    check_teacher_proba,
    prior_matched_scale,
    simplex_vertices,
)

__all__ = [
    "LinearWitness",
    "fit_linear",
    "fit_procrustes",
    "fit_strength",
    "simplex_of",
    "simplex_witness",
]

# Largest strength that is tried. The witness is then nearly a step function.
_MOST_STRENGTH = 2.0**20
_MOST_ITERATIONS = 1000
# Codes that spread by less count as equal, because the weights would overflow.
_LEAST_SPREAD = 1e-100


@dataclass(frozen=True)
class LinearWitness:
    """Witness q(z) = softmax(A z + b).

    Attributes
    ----------
    weights : ndarray of shape (n_components, latent_dim)
        A.
    bias : ndarray of shape (n_components,)
        b.
    name : str
        Name of the witness in a certificate: "raw", "procrustes", "linear", "teacher"
        or "none".

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.witnesses import LinearWitness
    >>> witness = LinearWitness(np.array([[1.0], [-1.0]]), np.zeros(2), "raw")
    >>> witness.logits([[0.5]])
    array([[ 0.5, -0.5]])
    """

    weights: Floats
    bias: Floats
    name: str

    def __post_init__(self) -> None:
        """Check the values."""
        weights, bias = (
            check_real("weights", self.weights),
            check_real("bias", self.bias),
        )
        if weights.ndim != 2 or not np.isfinite(weights).all():
            raise ValueError(
                "weights must be a finite array of shape (n_components, latent_dim), "
                f"got shape {weights.shape}."
            )
        if bias.shape != weights.shape[:1] or not np.isfinite(bias).all():
            raise ValueError(
                f"bias must be a finite array of shape ({len(weights)},), with a value "
                f"for each row of weights, got shape {bias.shape}."
            )

    def logits(self, codes: ArrayLike) -> Floats:
        """Return A z + b.

        Parameters
        ----------
        codes : array-like of shape (n_samples, latent_dim)
            Latent means, or drawn codes.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Log-probabilities up to a constant per sample, in float64.
        """
        values, dim = check_real("codes", codes), self.weights.shape[1]
        if values.ndim != 2 or values.shape[1] != dim or not np.isfinite(values).all():
            raise ValueError(
                f"codes must be a finite array of shape (n_samples, {dim}), got shape "
                f"{values.shape}."
            )
        return np.asarray(
            np.asarray(values, dtype=np.float64) @ self.weights.T + self.bias
        )

    def log_proba(self, codes: ArrayLike) -> Floats:
        """Return log softmax(A z + b).

        Parameters
        ----------
        codes : array-like of shape (n_samples, latent_dim)
            Latent means, or drawn codes.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Natural logarithms, in float64.
        """
        return np.asarray(log_softmax(self.logits(codes), axis=1))

    def equals(self, other: LinearWitness) -> bool:
        """Return whether another witness has the same name and the same values.

        Parameters
        ----------
        other : LinearWitness
            Another witness.

        Returns
        -------
        bool
            Whether both are equal.
        """
        return (
            self.name == other.name
            and np.array_equal(self.weights, other.weights)
            and np.array_equal(self.bias, other.bias)
        )

    @cached_property
    def gain(self) -> float:  # numpydoc ignore=RT01
        """Largest change of the centered logits for a step of 1 in the code."""
        # Centered, because the softmax ignores what is added to all logits.
        return float(np.linalg.norm(self.weights - self.weights.mean(axis=0), 2))

    @cached_property
    def reads_all(self) -> bool:  # numpydoc ignore=RT01
        """Whether each posterior can be read off some code: rank (A, 1) = K."""
        columns = np.column_stack([self.weights, np.ones(len(self.weights))])
        return bool(np.linalg.matrix_rank(columns) == len(columns))

    def tempered(self, mean_proba: Floats, strength: float) -> LinearWitness:
        """Return the witness q ~ mean T exp(s (A z + b)).

        Parameters
        ----------
        mean_proba : ndarray of shape (n_components,)
            Mean teacher, from other samples than those that are read.
        strength : float
            s, at least 0. At 0 the witness is the mean teacher for any code.

        Returns
        -------
        LinearWitness
            The tempered witness, with the same name.
        """
        check_number("strength", strength, least=0)
        given = check_real("mean_proba", mean_proba)
        if given.shape != self.bias.shape:
            raise ValueError(
                f"mean_proba must have shape {self.bias.shape}, got {given.shape}."
            )
        (proba,) = check_teacher_proba([given], name="mean_proba")
        bias = np.log(proba) + strength * self.bias
        return LinearWitness(strength * self.weights, bias, self.name)


def simplex_witness(vertices: ArrayLike, scale: float) -> LinearWitness:
    """Return the fixed witness of the papers: softmax(beta S z).

    Parameters
    ----------
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 1e-150 and below 1e150.

    Returns
    -------
    LinearWitness
        Its name is "raw".

    Raises
    ------
    ValueError
        If the scale is not valid, or the vertices do not form a regular simplex.

    References
    ----------
    Theory section 1; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.simplex import simplex_vertices
    >>> from skvaecert.witnesses import simplex_witness
    >>> round(simplex_witness(simplex_vertices(2, 1), 2.0).gain, 6)
    2.828427
    """
    simplex = np.asarray(check_real("vertices", vertices), dtype=np.float64)
    scale = check_scale(scale)
    # The vertices have norm 1. Large values could overflow in the product below.
    is_table = simplex.ndim == 2 and np.abs(simplex).max(initial=0) < 2
    n = len(simplex) if is_table else 0
    # The products s_k . s_j of theory section 1.
    regular = (np.eye(n) * n - 1) / max(1, n - 1)
    # The tolerance is for vertices in float32.
    if n == 0 or not np.allclose(simplex @ simplex.T, regular, atol=1e-6):
        raise ValueError(
            "vertices must form a regular simplex of radius 1. Use simplex_vertices to "
            "compute them."
        )
    return LinearWitness(scale * simplex, np.zeros(n), "raw")


def simplex_of(loss: Any) -> tuple[Floats, float]:
    """Return the vertices and the scale of an alignment loss.

    Parameters
    ----------
    loss : AlignmentLoss
        The loss that a model was trained with, or any object with `vertices` and
        `scale`. Tensors may be on any device.

    Returns
    -------
    vertices : ndarray of shape (n_components, latent_dim)
        S, in float64.
    scale : float
        beta.

    Examples
    --------
    >>> from skvaecert.objectives import AlignmentLoss
    >>> from skvaecert.simplex import simplex_vertices
    >>> from skvaecert.witnesses import simplex_of, simplex_witness
    >>> loss_fn = AlignmentLoss(simplex_vertices(3, 2), 2.0)
    >>> simplex_witness(*simplex_of(loss_fn)).weights.shape
    (3, 2)
    """
    if not (hasattr(loss, "vertices") and hasattr(loss, "scale")):
        raise ValueError(
            "witness must be an AlignmentLoss, or an object with vertices and scale, "
            f"got {loss!r}."
        )
    vertices = loss.vertices
    if hasattr(vertices, "numpy"):
        # A torch tensor, on any device; torch is not imported here.
        vertices = vertices.numpy(force=True)
    return np.asarray(vertices, dtype=np.float64), float(loss.scale)


def fit_procrustes(
    latent_mean: ArrayLike,
    teacher_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> LinearWitness:
    """Rotate, shift and scale latent means towards the analytic code, in closed form.

    Let M be the centered means and Z the centered analytic codes. The rotation is R =
    argmin ||M R - Z|| over orthogonal matrices, from the singular value decomposition
    of M^T Z. The scale is the sum of the singular values over ||M||^2. The witness is
    softmax(beta S z) at the code z that is moved in this way.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        Latent means of calibration samples.
    teacher_proba : array-like of shape (n_samples, n_components)
        T of the same samples, every value above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    LinearWitness
        The witness, with the name "procrustes". Certify other samples with it.

    Raises
    ------
    ValueError
        If the arrays are not valid.

    References
    ----------
    Theory section 8 (ours).

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import collapse_margin
    >>> from skvaecert.witnesses import fit_procrustes
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> witness = fit_procrustes([[3.0], [7.0]], teacher_proba)
    >>> np.exp(witness.logits([[3.0], [7.0]])).round(3)
    array([[3.   , 0.333],
           [0.333, 3.   ]])
    """
    mean, proba, weight = _checked_fit(
        "latent_mean", latent_mean, teacher_proba, sample_weight
    )
    n_components = proba.shape[1]
    # The simplex needs K - 1 dimensions, so codes with fewer are padded with zeros.
    dim = max(mean.shape[1], n_components - 1)
    vertices = simplex_vertices(n_components, dim)
    # Uniform posteriors have scale 0 and no margin, so that any other scale will do.
    scale = prior_matched_scale(proba, weight) or 1.0
    target = analytic_code(proba, vertices, scale)
    mean = np.pad(mean, [(0, 0), (0, dim - mean.shape[1])])
    center, goal = weight @ mean, weight @ target
    # Weighted least squares: both sides are multiplied by sqrt(p_i).
    root = np.sqrt(weight)[:, np.newaxis]
    moved, wanted = root * (mean - center), root * (target - goal)
    rotation, total = orthogonal_procrustes(moved, wanted)
    size = (moved**2).sum()
    # The scale of theory section 8: `total` is the sum of the singular values.
    turn = rotation * (total / size if size > _LEAST_SPREAD**2 else 0.0)
    weights = scale * vertices @ turn.T
    bias = scale * vertices @ goal - weights @ center
    # The weights of padded dimensions are not needed.
    n_dims = np.shape(latent_mean)[1]
    return LinearWitness(weights[:, :n_dims], bias, "procrustes")


def fit_linear(
    latent_mean: ArrayLike,
    teacher_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> LinearWitness:
    """Fit softmax(A z + b) to the teacher: multinomial regression with soft targets.

    The fit minimizes sum_i p_i KL(T_i || softmax(A z_i + b)) + ||A||^2 / (2 n), where z
    are the means scaled to unit variance. The problem is convex.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        Latent means of calibration samples.
    teacher_proba : array-like of shape (n_samples, n_components)
        T of the same samples, every value above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    LinearWitness
        The witness, with the name "linear". Certify other samples with it.

    Raises
    ------
    ValueError
        If the arrays are not valid.

    References
    ----------
    Theory section 8 (ours).

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.witnesses import fit_linear
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> witness = fit_linear([[3.0], [7.0]], teacher_proba)
    >>> bool(np.diff(witness.logits([[7.0]])) > 0)
    True
    """
    mean, proba, weight = _checked_fit(
        "latent_mean", latent_mean, teacher_proba, sample_weight
    )
    center, spread = weight @ mean, np.sqrt(SpreadSums().update(mean, weight).variance)
    width = np.where(spread > _LEAST_SPREAD, spread, 1.0)
    codes = (mean - center) / width
    n_components, dim = proba.shape[1], mean.shape[1]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights = parameters[n_components:].reshape(n_components, dim)
        log_q = log_softmax(codes @ weights.T + parameters[:n_components], axis=1)
        error = weight[:, np.newaxis] * (np.exp(log_q) - proba)
        gradient = np.r_[
            error.sum(axis=0), (error.T @ codes + weights / len(mean)).ravel()
        ]
        penalty = (weights**2).sum() / (2 * len(mean))
        return penalty - float(weight @ (proba * log_q).sum(axis=1)), gradient

    # The best constant witness: the optimum if the codes do not vary.
    start = np.r_[np.log(weight @ proba), np.zeros(n_components * dim)]
    options = {"maxiter": _MOST_ITERATIONS}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    # From standardized codes back to codes.
    weights = found[n_components:].reshape(n_components, dim) / width
    return LinearWitness(weights, found[:n_components] - weights @ center, "linear")


def fit_strength(
    logits: ArrayLike, teacher_proba: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Fit the strength of a witness: s >= 0 in q ~ mean T exp(s logits).

    The fit maximizes the margin on calibration samples, which is concave in s. Noise in
    the codes makes s smaller than 1. At s = 0 the margin is 0, so s is not allowed to
    be negative.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_components)
        Logits of the witness for the calibration samples.
    teacher_proba : array-like of shape (n_samples, n_components)
        T of the same samples, every value above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        s, at least 0.

    References
    ----------
    Theory section 6 (ours).

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.witnesses import fit_strength
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> round(fit_strength(3 * np.log(teacher_proba), teacher_proba), 6)
    0.333333
    >>> fit_strength(-np.log(teacher_proba), teacher_proba)
    0.0
    """
    scores, proba, weight = _checked_fit("logits", logits, teacher_proba, sample_weight)
    if scores.shape != proba.shape:
        raise ValueError(
            f"logits must have the shape {proba.shape} of teacher_proba, got "
            f"{scores.shape}."
        )
    log_mean = np.log(weight @ proba)

    def slope(strength: float) -> float:
        witness = softmax(log_mean + strength * scores, axis=1)
        return float(weight @ ((witness - proba) * scores).sum(axis=1))

    high = 1.0
    # The negative margin is convex in s: its minimum is where the slope becomes 0.
    while slope(high) < 0 and high < _MOST_STRENGTH:
        high *= 2
    if slope(0.0) >= 0 or slope(high) < 0:
        return 0.0 if slope(0.0) >= 0 else high
    return float(brentq(slope, 0.0, high, xtol=1e-12))


def _checked_fit(
    name: str,
    values: ArrayLike,
    teacher_proba: ArrayLike,
    sample_weight: ArrayLike | None,
) -> tuple[Floats, Floats, Floats]:
    array = np.asarray(check_real(name, values), dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a 2-d array of finite values, one row for each sample, "
            f"got shape {array.shape}."
        )
    proba = check_teacher_proba(teacher_proba, len(array))
    weight = check_sample_weight(sample_weight, len(array))
    weight, array, proba = drop_zero_weights(weight, array, proba)
    return array, proba, weight
