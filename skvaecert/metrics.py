"""Information, alignment loss, margin, escape force (theory sections 2 to 5, and 12).

These functions take NumPy arrays of posteriors and need no estimator. They compute in
float64 and return nats. Sums run over components, means over samples. Each array is
read once, in chunks, so it may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from skvaecert.simplex import (
    Floats,
    centered_log_ratio,
    check_code,
    check_count,
    check_flag,
    check_number,
    check_real,
    check_row_sums,
    check_sample_weight,
    check_scale,
    check_teacher_proba,
    check_weight,
    witness_log_proba,
)

__all__ = [
    "MarginEnergyPath",
    "MarginSums",
    "SpreadSums",
    "alignment_loss",
    "collapse_margin",
    "component_contributions",
    "component_information",
    "component_visibility",
    "cross_entropies",
    "dispersion_bound",
    "escape_force",
    "escape_force_rms",
    "latent_dispersion",
    "margin_contributions",
    "margin_energy_path",
    "teacher_information",
    "view_gap",
]

# The error of log-softmax in float32 is below this, for logits up to 1e4.
_NORMALIZATION_TOLERANCE = 1e-3
# Samples whose share of the weight is below this do not change a float64 sum.
_NEGLIGIBLE = float(np.finfo(np.float64).eps)
# Number of values in a chunk: few enough to stay in a processor's cache.
_CHUNK_VALUES = 2**16


class MarginSums:
    """Margin, teacher information and alignment loss of samples that come in batches.

    Let C = -sum_i p_i sum_k T_ik log q_ik, H = -sum_i p_i sum_k T_ik log T_ik, and let
    H_mean = -sum_k mean T_k log mean T_k be the entropy of the mean teacher. Then::

        G = H_mean - C,    I_T = H_mean - H,    A = C - H

    All are sums over samples, so one pass is enough, and parts can be merged.

    Attributes
    ----------
    n_samples : int
        Number of samples so far, without those of weight 0.
    total_weight : float
        Sum of the weights of these samples.

    References
    ----------
    Theory section 2; arXiv:2605.05813.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import MarginSums
    >>> sums = MarginSums()
    >>> for row in np.array([[0.9, 0.1], [0.1, 0.9]]):
    ...     sums = sums.update([row], np.log([row]))
    >>> round(sums.margin, 4), round(sums.teacher_information, 4)
    (0.3681, 0.3681)
    """

    def __init__(self) -> None:
        self.n_samples = 0
        self.total_weight = 0.0
        self._proba: Floats | float = 0.0
        self._cross_entropy = 0.0
        self._entropy = 0.0

    def update(
        self,
        teacher_proba: ArrayLike,
        witness_log_proba: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples.

        Parameters
        ----------
        teacher_proba : array-like of shape (n_samples, n_components)
            T, the teacher's posteriors: every value above 0, each row sums to 1.
        witness_log_proba : array-like of shape (n_samples, n_components)
            log q, natural logarithms of the witness's probabilities.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, finite and not negative; 1 when None.

        Returns
        -------
        self : MarginSums
            The sums with these samples added. They are unchanged if an error is raised.

        Raises
        ------
        ValueError
            If the arrays are not valid or differ in shape.
        """
        return self._grow(teacher_proba, witness_log_proba, sample_weight, _log_sums)

    def update_logits(
        self,
        teacher_proba: ArrayLike,
        witness_logits: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples whose witness is known up to a constant per sample.

        Parameters
        ----------
        teacher_proba : array-like of shape (n_samples, n_components)
            T, the teacher's posteriors: every value above 0, each row sums to 1.
        witness_logits : array-like of shape (n_samples, n_components)
            Finite values; the witness is their softmax.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, finite and not negative; 1 when None.

        Returns
        -------
        self : MarginSums
            The sums with these samples added. They are unchanged if an error is raised.

        Raises
        ------
        ValueError
            If the arrays are not valid or differ in shape.
        """
        logits = _as_log_proba("witness_logits", witness_logits, teacher_proba)
        return self._grow(teacher_proba, logits, sample_weight, _log_sum_exp)

    def merge(self, other: MarginSums) -> Self:
        """Add the samples of other sums.

        Parameters
        ----------
        other : MarginSums
            Sums of other samples. They are not changed.

        Returns
        -------
        self : MarginSums
            The sums with these samples added.

        Raises
        ------
        ValueError
            If the number of components differs.
        """
        if other.n_samples == 0:
            return self
        self._check_components(np.shape(other._proba))
        self.n_samples += other.n_samples
        self.total_weight += other.total_weight
        self._proba = self._proba + other._proba
        self._cross_entropy += other._cross_entropy
        self._entropy += other._entropy
        return self

    @property
    def mean_proba(self) -> Floats:  # numpydoc ignore=RT01
        """Mean teacher, ndarray of shape (n_components,)."""
        return np.asarray(self._proba / self.total_weight)

    @property
    def margin(self) -> float:  # numpydoc ignore=RT01
        """G, nats; minus infinity if the witness gives a component probability 0."""
        return self.mean_entropy - self._cross_entropy / self.total_weight

    @property
    def teacher_information(self) -> float:  # numpydoc ignore=RT01
        """I_T, nats."""
        # The exact value is at least 0, but rounding can make it slightly negative.
        return max(0.0, self.mean_entropy - self._entropy / self.total_weight)

    @property
    def alignment_loss(self) -> float:  # numpydoc ignore=RT01
        """A, nats."""
        excess = self._cross_entropy - self._entropy
        return max(0.0, excess / self.total_weight)

    @property
    def cross_entropy(self) -> float:  # numpydoc ignore=RT01
        """C, nats."""
        return self._cross_entropy / self.total_weight

    @property
    def mean_entropy(self) -> float:  # numpydoc ignore=RT01
        """H_mean, nats."""
        mean = self.mean_proba
        return -float(mean @ np.log(mean))

    def _checked_posteriors(self, teacher_proba: ArrayLike) -> NDArray[Any]:
        proba = _as_posteriors(teacher_proba)
        self._check_components(proba.shape[1:])
        return proba

    def _check_components(self, shape: tuple[int, ...]) -> None:
        if self.n_samples and shape != np.shape(self._proba):
            raise ValueError(
                f"teacher_proba must have {np.size(self._proba)} columns, as in the "
                f"batches before, got {shape[0]}."
            )

    def _grow(
        self,
        teacher_proba: ArrayLike,
        witness: ArrayLike,
        sample_weight: ArrayLike | None,
        log_sums: Callable[[Floats], Floats],
        *,
        with_entropy: bool = True,
    ) -> Self:
        posteriors = self._checked_posteriors(teacher_proba)
        witnesses = _as_log_proba("witness_log_proba", witness, posteriors)
        weights = unit_weight(len(posteriors), sample_weight)
        # The sums of a copy grow, so that an invalid batch leaves these unchanged.
        grown = copy(self)
        for proba, log_q, weight in _in_chunks(posteriors, witnesses, weights):
            sums = check_row_sums(proba)
            losses = _cross_entropies(proba, sums, log_q, log_sums)
            # After the checks: samples of weight 0 must be valid, too.
            weight, proba, sums, losses = drop_zero_weights(weight, proba, sums, losses)
            if not len(weight):
                continue
            grown._add_teacher(proba, weight, sums)
            grown._cross_entropy += float(weight @ losses)
            if with_entropy:
                grown._add_entropy(proba, weight, sums)
        vars(self).update(vars(grown))
        return self

    def _add_teacher(self, proba: Floats, weight: Floats, sums: Floats) -> None:
        # Not in place, because the copy that `_grow` makes shares this array.
        self._proba = self._proba + (weight / sums) @ proba
        self.total_weight += float(weight.sum())
        self.n_samples += len(proba)

    def _add_entropy(self, proba: Floats, weight: Floats, sums: Floats) -> None:
        # The entropy of T = proba / sums, without an array for T.
        products = _row_products(proba, np.log(proba)) / sums
        self._entropy += float(weight @ (np.log(sums) - products))


class SpreadSums:
    """Mean and variance of each column of samples that come in batches.

    Let two sets of samples have weights v and w, means a and b, and sums of squares
    about these means. Together they have the mean a + (b - a) w / (v + w), and a sum of
    squares that exceeds the sum of both by (b - a)^2 v w / (v + w). Distances are taken
    from the first sample, so that equal samples have a variance of exactly 0.

    Attributes
    ----------
    first : ndarray of shape (n_columns,)
        The first sample whose weight is not negligible compared with the samples before
        it and in its batch.
    n_samples : int
        Number of samples with a weight above 0.
    total_weight : float
        Sum of the weights.

    Examples
    --------
    >>> from skvaecert.metrics import SpreadSums
    >>> spread = SpreadSums().update([[1.0, 5.0]]).update([[3.0, 5.0]])
    >>> spread.variance
    array([1., 0.])
    """

    def __init__(self) -> None:
        self.first: Floats = np.zeros(0)
        self.n_samples = 0
        self.total_weight = 0.0
        self._mean: Floats | float = 0.0
        self._squares: Floats | float = 0.0

    def update(self, rows: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Add samples.

        Parameters
        ----------
        rows : array-like of shape (n_samples, n_columns)
            Finite values.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, finite and not negative; 1 when None.

        Returns
        -------
        self : SpreadSums
            The sums with these samples added.
        """
        values = check_real("rows", rows)
        if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
            raise ValueError(
                "rows must be an array of shape (n_samples, n_columns), finite and not "
                f"empty, got shape {values.shape}."
            )
        self._check_columns(values.shape[1])
        weights = unit_weight(len(values), sample_weight)
        for chunk, weight in _in_chunks(values, weights):
            weight, chunk = drop_zero_weights(weight, chunk)
            self._add(chunk, weight)
        return self

    def merge(self, other: SpreadSums) -> Self:
        """Add the samples of other sums.

        Parameters
        ----------
        other : SpreadSums
            Sums of other samples with as many columns. They are not changed.

        Returns
        -------
        self : SpreadSums
            The sums with these samples added.
        """
        if other.total_weight > 0:
            self._check_columns(len(other.first))
            # As in `_add`: distances are taken from a sample whose weight counts.
            if self.total_weight <= _NEGLIGIBLE * other.total_weight:
                self._shift_by(other.first)
            mean = other._mean + (other.first - self.first)
            self.n_samples += other.n_samples
            self._join(mean, other._squares, other.total_weight)
        return self

    @property
    def variance(self) -> Floats:  # numpydoc ignore=RT01
        """Mean square distance from the mean, ndarray of shape (n_columns,)."""
        return np.asarray(self._squares / self.total_weight)

    @property
    def dispersion(self) -> float:  # numpydoc ignore=RT01
        """Root mean square distance of the samples from their mean."""
        return float(np.sqrt(self.variance.sum()))

    @property
    def least_dispersion(self) -> float:  # numpydoc ignore=RT01
        """Lower bound on the exact dispersion: the computed one less summation error.

        Sums of n terms are off by a factor within 1 +- (n + 8) u, u = 2^-53, of the
        root mean square distance from `first`. Merging parts changes the distances by
        less than a millionth of the dispersion, because the weight of `first` is not
        negligible.
        """
        reach = np.hypot(self.dispersion, np.linalg.norm(self._mean))
        summing = 2 * float(np.finfo(np.float64).eps) * (self.n_samples + 8) * reach
        return max(0.0, (1 - 1e-6) * self.dispersion - float(summing))

    def _check_columns(self, n_columns: int) -> None:
        if len(self.first) not in (0, n_columns):
            raise ValueError(
                f"rows must have {len(self.first)} columns, as in the batches before, "
                f"got {n_columns}."
            )

    def _add(self, rows: Floats, weight: Floats) -> None:
        if not len(weight):
            return
        self.n_samples += len(weight)
        # If all so far is negligible next to this batch, take distances from one of its
        # samples, because seen from far away all samples would look the same.
        least = _NEGLIGIBLE * float(weight.max())
        if self.total_weight <= least:
            self._shift_by(rows[(weight > least).argmax()])
        added = float(weight.sum())
        shifted = rows - self.first
        mean = weight @ shifted / added
        self._join(mean, weight @ (shifted - mean) ** 2, added)

    def _shift_by(self, first: Floats) -> None:
        """Take distances from another sample."""
        if len(self.first):
            self._mean = self._mean + (self.first - first)
        self.first = first.copy()

    def _join(
        self, mean: Floats | float, squares: Floats | float, added: float
    ) -> None:
        """Add samples, given their mean, sum of squares about it, and weight."""
        step, total = mean - self._mean, self.total_weight + added
        # The parallel algorithm of Chan, Golub and LeVeque: sums of squares about the
        # means of both parts, plus that of the distance between the means.
        self._squares = self._squares + squares
        self._squares += step**2 * self.total_weight * added / total
        # The step starts from the heavier mean, so that a light set far away does not
        # round it.
        if added > self.total_weight:
            self._mean = mean - step * (self.total_weight / total)
        else:
            self._mean = self._mean + step * (added / total)
        self.total_weight = total


def teacher_information(
    teacher_proba: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Teacher information: I_T = sum_i p_i KL(T_i || mean T).

    This is the mutual information between the sample and the component of the teacher.
    It is the alignment loss of the best constant student, and the largest possible
    margin.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, in [0, log K]. It is 0 to within rounding for a single sample, or if all
        posteriors are equal.

    Raises
    ------
    ValueError
        If the posteriors or the weights are not valid.

    References
    ----------
    Theory section 2; arXiv:2605.05813.

    Examples
    --------
    >>> from skvaecert.metrics import teacher_information
    >>> round(teacher_information([[0.9, 0.1], [0.1, 0.9]]), 4)
    0.3681
    """
    posteriors = _as_posteriors(teacher_proba)
    weight = _normalized_weight(sample_weight, posteriors)
    weights = unit_weight(len(posteriors), weight)
    total = MarginSums()
    for proba, weight in _in_chunks(posteriors, weights):
        sums = check_row_sums(proba)
        total._add_teacher(proba, weight, sums)
        total._add_entropy(proba, weight, sums)
    return total.teacher_information


def alignment_loss(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Alignment loss: A = sum_i p_i KL(T_i || q_i).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, at least 0; infinite if the witness gives a component probability 0.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    References
    ----------
    Theory section 2; arXiv:2605.05813.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import alignment_loss
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> round(alignment_loss(teacher_proba, np.log(teacher_proba)), 4)
    0.0
    >>> round(alignment_loss(teacher_proba, np.log([[0.5, 0.5], [0.5, 0.5]])), 4)
    0.3681
    """
    weight = _normalized_weight(sample_weight, _as_posteriors(teacher_proba))
    sums = MarginSums().update(teacher_proba, witness_log_proba, weight)
    return sums.alignment_loss


def collapse_margin(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Margin over the best constant student: G = I_T - A.

    In exact arithmetic, a witness that does not depend on the input has G <= 0.
    :func:`skvaecert.certify` returns a verdict that also covers rounding.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, at most I_T; minus infinity if the witness gives a component
        probability 0.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    References
    ----------
    Theory section 2; arXiv:2605.05813.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import collapse_margin
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> round(collapse_margin(teacher_proba, np.log(teacher_proba)), 4)
    0.3681
    >>> collapse_margin(teacher_proba, np.log([[0.5, 0.5], [0.5, 0.5]]))
    0.0
    """
    weight = _normalized_weight(sample_weight, _as_posteriors(teacher_proba))
    # The entropy of the teacher takes most of the time, and the margin does not need
    # it.
    sums = MarginSums()._grow(
        teacher_proba, witness_log_proba, weight, _log_sums, with_entropy=False
    )
    return sums.margin


def margin_contributions(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Floats:
    """Contribution of each sample to the margin: g_i = sum_k T_ik log(q_ik / mean T_k).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (n_samples,)
        Nats. Their mean with weights p is the margin.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    References
    ----------
    Theory section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import margin_contributions
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> margin_contributions(teacher_proba, np.log([[0.8, 0.2], [0.5, 0.5]])).round(3)
    array([0.331, 0.   ])
    """
    proba = check_teacher_proba(teacher_proba)
    weight = check_sample_weight(sample_weight, len(proba))
    log_q = _check_log_proba(witness_log_proba, proba)
    log_ratio = log_q - np.log(weight @ proba)
    return np.asarray((proba * log_ratio).sum(axis=1))


def cross_entropies(teacher_proba: ArrayLike, witness_logits: ArrayLike) -> Floats:
    """Cross entropy of each sample: -sum_k T_ik log q_ik, q the softmax of logits.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_logits : array-like of shape (n_samples, n_components)
        Finite values: log q up to a constant per sample.

    Returns
    -------
    ndarray of shape (n_samples,)
        Nats.

    Raises
    ------
    ValueError
        If the posteriors are not valid or the shapes differ.

    Examples
    --------
    >>> from skvaecert.metrics import cross_entropies
    >>> cross_entropies([[0.9, 0.1]], [[0.0, 0.0]]).round(4)
    array([0.6931])
    """
    proba = np.asarray(_as_posteriors(teacher_proba), dtype=np.float64)
    sums = check_row_sums(proba)
    logits = _as_log_proba("witness_logits", witness_logits, proba)
    logits = np.asarray(logits, dtype=np.float64)
    return _cross_entropies(proba, sums, logits, _log_sum_exp)


def escape_force(
    teacher_proba: ArrayLike, latent_mean: ArrayLike, vertices: ArrayLike, scale: float
) -> Floats:
    """Escape force: f_i = -dA_i/dz = beta S^T (T_i - q(z_i)).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    latent_mean : array-like of shape (n_samples, latent_dim)
        The codes z at which the force is taken.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 1e-150 and below 1e150.

    Returns
    -------
    ndarray of shape (n_samples, latent_dim)
        Descent direction of each sample's alignment loss, nats per latent unit.

    References
    ----------
    Theory section 4; arXiv:2605.18224.

    Examples
    --------
    On a constant code the force differs between samples.

    >>> from skvaecert.metrics import escape_force
    >>> from skvaecert.simplex import simplex_vertices
    >>> teacher_proba = [[0.9, 0.1], [0.1, 0.9]]
    >>> escape_force(teacher_proba, [[0.0], [0.0]], simplex_vertices(2, 1), 1.0)
    array([[ 0.8],
           [-0.8]])
    """
    mean, simplex = check_code(latent_mean, vertices)
    witness = np.exp(witness_log_proba(mean, simplex, scale))
    proba = check_teacher_proba(teacher_proba, len(witness))
    if proba.shape != witness.shape:
        raise ValueError(
            f"vertices must have {proba.shape[1]} rows, one for each column of "
            f"teacher_proba, got {len(simplex)}."
        )
    return np.asarray(scale * (proba - witness) @ simplex)


def escape_force_rms(
    teacher_proba: ArrayLike, scale: float, sample_weight: ArrayLike | None = None
) -> float:
    """Root mean square force at the best constant code.

    f_rms = beta sqrt(K / (K - 1) sum_i p_i ||T_i - mean T||^2). It is above 0 if and
    only if the teacher is not constant.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    scale : float
        beta, above 1e-150 and below 1e150.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats per latent unit, at least 0.

    References
    ----------
    Theory section 4; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.metrics import escape_force_rms
    >>> round(escape_force_rms([[0.9, 0.1], [0.1, 0.9]], 1.0), 4)
    0.8
    """
    proba, scale = check_teacher_proba(teacher_proba), check_scale(scale)
    n_components = proba.shape[1]
    if n_components == 1:
        return 0.0
    spread = latent_dispersion(proba, sample_weight)
    return float(scale * np.sqrt(n_components / (n_components - 1)) * spread)


def latent_dispersion(
    latent_mean: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Root mean square distance from the average: sqrt(sum_i p_i ||mu_i - mean mu||^2).

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Distance in latent units. Codes drawn from the prior have about
        sqrt(latent_dim).

    References
    ----------
    Theory section 5.

    Examples
    --------
    >>> from skvaecert.metrics import latent_dispersion
    >>> latent_dispersion([[1.0, 0.0], [-1.0, 0.0]])
    1.0
    """
    mean = check_real("latent_mean", latent_mean)
    if mean.ndim != 2 or mean.size == 0 or not np.isfinite(mean).all():
        raise ValueError(
            "latent_mean must be an array of shape (n_samples, latent_dim), finite and "
            f"not empty, got shape {mean.shape}."
        )
    weight = _normalized_weight(sample_weight, mean)
    return SpreadSums().update(mean, weight).dispersion


def dispersion_bound(margin: float, force_rms: float) -> float:
    """Certified dispersion: the means disperse by at least G / f_rms if G > 0.

    Parameters
    ----------
    margin : float
        G or a lower bound on it, in nats.
    force_rms : float
        f_rms, from :func:`escape_force_rms`.

    Returns
    -------
    float
        Lower bound, in latent units, on the root mean square distance of the latent
        means from their average; 0 if the margin is not positive.

    References
    ----------
    Theory section 5.

    Examples
    --------
    >>> from skvaecert.metrics import dispersion_bound
    >>> dispersion_bound(0.4, 0.8)
    0.5
    >>> dispersion_bound(-1.0, 0.8)
    0.0
    """
    margin = check_number("margin", margin)
    force_rms = check_number("force_rms", force_rms, least=0)
    return margin / force_rms if margin > 0 and force_rms > 0 else 0.0


def component_contributions(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Floats:
    """Contribution of each component to the margin.

    G_k = sum_i p_i T_ik log(q_ik / mean T_k).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (n_components,)
        Nats. Their sum is the margin. A single positive value proves nothing: a
        constant witness that favors component k has G_k > 0, at the cost of the others.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    See Also
    --------
    component_visibility : The part that a constant witness does not have.

    References
    ----------
    Theory section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import component_contributions
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> constant = np.log([[0.6, 0.4], [0.6, 0.4]])
    >>> component_contributions(teacher_proba, constant).round(3)
    array([ 0.091, -0.112])
    """
    proba = check_teacher_proba(teacher_proba)
    weight = check_sample_weight(sample_weight, len(proba))
    log_q = _check_log_proba(witness_log_proba, proba)
    # A weight of 0 times a log q of minus infinity would be NaN.
    weight, proba, log_q = drop_zero_weights(weight, proba, log_q)
    return np.asarray(weight @ (proba * (log_q - np.log(weight @ proba))))


def component_information(
    teacher_proba: ArrayLike, sample_weight: ArrayLike | None = None
) -> Floats:
    """Information in each component: I_k = sum_i p_i T_ik log(T_ik / mean T_k).

    It is equal to mean T_k KL(p(i|k) || p_i), where p(i|k) = p_i T_ik / mean T_k is the
    distribution of component k over the samples. So it is never below 0.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (n_components,)
        Nats, at least 0, and exactly 0 if all posteriors are equal. Their sum is the
        teacher information I_T.

    Raises
    ------
    ValueError
        If the posteriors or the weights are not valid.

    References
    ----------
    Theory section 2.

    Examples
    --------
    >>> from skvaecert.metrics import component_information
    >>> component_information([[0.9, 0.1], [0.1, 0.9]]).round(3)
    array([0.184, 0.184])
    """
    given = np.asarray(_as_posteriors(teacher_proba), dtype=np.float64)
    check_row_sums(given)
    # A matrix product may round equal rows differently. This sum does not.
    proba = given / given.sum(axis=1, keepdims=True)
    weight = check_sample_weight(sample_weight, len(proba))
    weight, proba = drop_zero_weights(weight, proba)
    # The mean of equal values is exactly that value, but rounded weights may change it.
    are_equal = (proba == proba[0]).all(axis=0)
    mean = np.where(are_equal, proba[0], weight @ proba)
    return np.asarray(np.maximum(0.0, weight @ (proba * np.log(proba / mean))))


def component_visibility(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Floats:
    """How well the witness tells the samples of each component from the others.

    V_k = sum_i p_i T_ik log(q_ik / mean q_k), where mean q is the mean of the witness.
    Both p(i|k) = p_i T_ik / mean T_k and r(i|k) = p_i q_ik / mean q_k are distributions
    over samples, and V_k = I_k - mean T_k KL(p(i|k) || r(i|k)). So V_k is at most I_k.
    If V_k is not above 0, component k is invisible: the witness places its samples no
    better than a constant does.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (n_components,)
        Nats, at most I_k of :func:`component_information`. For a constant witness all
        are 0 to within rounding. Their sum is G + KL(mean T || mean q), the margin plus
        what the witness loses by its averages alone.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    References
    ----------
    Theory section 2 (ours).

    Examples
    --------
    A witness that only confuses the last two components:

    >>> import numpy as np
    >>> from skvaecert.metrics import component_information, component_visibility
    >>> teacher_proba = 0.94 * np.eye(3) + 0.02
    >>> witness = teacher_proba @ [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    >>> component_visibility(teacher_proba, np.log(witness)).round(2)
    array([0.3 , 0.11, 0.11])
    >>> component_information(teacher_proba).round(2)
    array([0.3, 0.3, 0.3])
    """
    proba = check_teacher_proba(teacher_proba)
    weight = check_sample_weight(sample_weight, len(proba))
    log_q = _check_log_proba(witness_log_proba, proba)
    # A weight of 0 times a logarithm of minus infinity would be NaN.
    weight, proba, log_q = drop_zero_weights(weight, proba, log_q)
    log_mean = np.asarray(logsumexp(log_q, axis=0, b=weight[:, np.newaxis]))
    # If the witness gives a component probability 0 for all samples, both logarithms
    # are minus infinity: a constant, whose difference would be nan.
    differs = log_q != log_mean
    log_ratio = np.subtract(log_q, log_mean, where=differs, out=np.zeros_like(log_q))
    return np.asarray(weight @ (proba * log_ratio))


def view_gap(
    *,
    own_view_proba: ArrayLike,
    target_view_proba: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    """View gap: sum_i p_i KL(T(v_i) || T(x_i)), the cost of aligning with another view.

    The encoder sees x_i, and its targets are the teacher's posteriors of another view
    v_i, such as an augmentation or another modality. The analytic code of x_i has the
    margin I_T - gap against these targets, where I_T is that of the targets. So this
    margin is reachable, but need not be the maximum: an encoder trained on the targets
    may learn how the other view changes a sample, and reach more, even if the gap
    exceeds I_T.

    Parameters
    ----------
    own_view_proba : array-like of shape (n_samples, n_components)
        T(x_i): posteriors of the view that the encoder sees, every value above 0.
    target_view_proba : array-like of shape (n_samples, n_components)
        T(v_i): posteriors of the view that it is aligned with, every value above 0, for
        the same samples in the same order.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, at least 0. It is 0 to within rounding if the views have the same
        posteriors. It is not symmetric in the views.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    References
    ----------
    Theory section 12.

    Examples
    --------
    >>> from skvaecert.metrics import teacher_information, view_gap
    >>> original, blurred = [[0.9, 0.1], [0.1, 0.9]], [[0.7, 0.3], [0.3, 0.7]]
    >>> gap = view_gap(own_view_proba=original, target_view_proba=blurred)
    >>> round(gap, 4), round(teacher_information(blurred), 4)
    (0.1537, 0.0823)
    """
    own = check_teacher_proba(own_view_proba, name="own_view_proba")
    target = check_teacher_proba(target_view_proba, len(own), name="target_view_proba")
    if own.shape != target.shape:
        raise ValueError(
            "own_view_proba and target_view_proba must have the same number of "
            f"components, got {own.shape[1]} and {target.shape[1]}."
        )
    return alignment_loss(target, np.log(own), sample_weight)


def gen_rows(n_samples: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of samples that are small enough for a processor's cache.

    Parameters
    ----------
    n_samples, n_columns : int
        Shape of the array.

    Yields
    ------
    slice
        Consecutive slices that cover all samples.

    Examples
    --------
    >>> from skvaecert.metrics import gen_rows
    >>> list(gen_rows(5, 2**15))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, _CHUNK_VALUES // n_columns)
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


class MarginEnergyPath(NamedTuple):
    """Result of :func:`margin_energy_path`.

    Attributes
    ----------
    strength : ndarray of shape (n_points,)
        lambda, from 0 to 1 in equal steps.
    margin : ndarray of shape (n_points,)
        G of the codes, nats.
    energy : ndarray of shape (n_points,)
        sum_i p_i ||z_i||^2 / 2, nats per sample: the part of the KL term that is due to
        the latent means.
    """

    strength: Floats
    margin: Floats
    energy: Floats


def margin_energy_path(
    teacher_proba: ArrayLike,
    scale: float,
    *,
    n_points: int = 51,
    anchored: bool = False,
    sample_weight: ArrayLike | None = None,
) -> MarginEnergyPath:
    """Margin and energy of the codes z_i = lambda z*_i, for lambda from 0 to 1.

    z* is the analytic code. The witness of lambda z* is T^lambda / Z, and the energy is
    lambda^2 times that of z*. The margin is concave in lambda and increases from
    -KL(mean T || uniform) to I_T. With `anchored`, the path is z_i = a + lambda (z*_i -
    a), where a is the analytic code of the mean teacher. It starts at the best constant
    student, where the margin is 0 and the energy is that of a.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    scale : float
        beta, above 1e-150 and below 1e150. The margin does not depend on it.
    n_points : int, default=51
        Number of points on the path, at least 2.
    anchored : bool, default=False
        Whether the path starts at the best constant student instead of the origin.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    MarginEnergyPath
        `strength`, `margin` and `energy`, each of shape (n_points,).

    Raises
    ------
    ValueError
        If an argument is not valid.

    See Also
    --------
    skvaecert.simplex.analytic_code : The end of the path.

    References
    ----------
    Theory section 3; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.metrics import margin_energy_path
    >>> path = margin_energy_path([[0.9, 0.1], [0.1, 0.9]], 1.0, n_points=3)
    >>> path.margin.round(3), path.energy.round(3)
    (array([0.   , 0.296, 0.368]), array([0.   , 0.151, 0.603]))
    """
    check_count("n_points", n_points, least=2)
    check_flag("anchored", anchored)
    scale = check_scale(scale)
    proba = check_teacher_proba(teacher_proba)
    weight = check_sample_weight(sample_weight, len(proba))
    odds, strength = centered_log_ratio(proba), np.linspace(0, 1, n_points)
    start = (
        centered_log_ratio([weight @ proba])[0] if anchored else np.zeros(odds.shape[1])
    )
    # Log-odds stand for codes: those of the analytic code are c, and its witness is
    # softmax(c).
    codes = (start + step * (odds - start) for step in strength)
    points = [(_margin_of(proba, c, weight), weight @ (c**2).sum(1)) for c in codes]
    margin, squares = np.transpose(points)
    n_components = odds.shape[1]
    energy = (n_components - 1) / (2 * n_components * scale**2) * squares
    return MarginEnergyPath(strength, margin, energy)


def drop_zero_weights(weight: Floats, *arrays: Any) -> tuple[Any, ...]:
    """Leave out samples with weight 0.

    Parameters
    ----------
    weight : ndarray of shape (n_samples,)
        Weights, not negative.
    *arrays : ndarray
        Arrays with n_samples rows.

    Returns
    -------
    tuple of ndarray
        The weights and the arrays, without a copy if all weights are above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.metrics import drop_zero_weights
    >>> drop_zero_weights(np.array([0.0, 2.0]), np.array([[1e17], [1.0]]))
    (array([2.]), array([[1.]]))
    """
    has_weight = weight > 0
    if has_weight.all():
        return weight, *arrays
    return tuple(array[has_weight] for array in (weight, *arrays))


def unit_weight(n_samples: int, sample_weight: ArrayLike | None) -> Floats:
    """Check weights, or return a zero-stride array of ones if there are none.

    Parameters
    ----------
    n_samples : int
        Number of samples.
    sample_weight : array-like of shape (n_samples,) or None
        Weights.

    Returns
    -------
    ndarray of shape (n_samples,)
        Read-only if `sample_weight` is None.

    Examples
    --------
    >>> from skvaecert.metrics import unit_weight
    >>> unit_weight(10**12, None).strides
    (0,)
    """
    if sample_weight is None:
        # An array of ones would need memory for weights that are not given.
        return np.broadcast_to(np.float64(1.0), n_samples)
    return check_weight(sample_weight, n_samples)


def _in_chunks(
    values: NDArray[Any], *arrays: NDArray[Any]
) -> Iterator[tuple[Floats, ...]]:
    """Yield chunks of arrays in float64."""
    for rows in gen_rows(*values.shape):
        chunks = (a[rows] for a in (values, *arrays))
        # Contiguous, because products with weights of stride 0 are slower.
        yield tuple(np.ascontiguousarray(c, dtype=np.float64) for c in chunks)


def _as_posteriors(teacher_proba: ArrayLike) -> NDArray[Any]:
    """Check the shape only, without a copy of the array."""
    proba = check_real("teacher_proba", teacher_proba)
    if proba.ndim != 2 or proba.size == 0:
        check_teacher_proba(proba)  # raises the error for this shape
    return proba


def _as_log_proba(
    name: str, values: ArrayLike, teacher_proba: ArrayLike
) -> NDArray[Any]:
    log_q, shape = check_real(name, values), _as_posteriors(teacher_proba).shape
    if log_q.shape != shape:
        raise ValueError(
            f"{name} must have the shape {shape} of teacher_proba, got {log_q.shape}."
        )
    return log_q


def _check_log_proba(log_proba: ArrayLike, teacher_proba: Floats) -> Floats:
    values = _as_log_proba("witness_log_proba", log_proba, teacher_proba)
    log_q = np.asarray(values, dtype=np.float64)
    return np.asarray(log_q - _log_sums(log_q)[:, None])


def _normalized_weight(
    sample_weight: ArrayLike | None, samples: NDArray[Any]
) -> Floats | None:
    if sample_weight is None:
        return None
    return check_sample_weight(sample_weight, len(samples))


def _margin_of(proba: Floats, logits: Floats, weight: Floats) -> float:
    return MarginSums().update_logits(proba, logits, weight).margin


def _cross_entropies(
    proba: Floats, sums: Floats, log_q: Floats, log_sums: Callable[[Floats], Floats]
) -> Floats:
    """Return -sum_k T_ik log q_ik; `sums` normalize T, `log_sums` normalizes q."""
    return np.asarray(log_sums(log_q) - _row_products(proba, log_q) / sums)


def _row_products(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("ik,ik->i", a, b))


def _log_sums(log_q: Floats) -> Floats:
    """Return log sum_k q_ik, which is subtracted: an excess e would fake a margin e."""
    # No maximum is subtracted first. The sums of valid rows are about 1, and terms that
    # underflow are negligible.
    with np.errstate(over="ignore", divide="ignore"):
        total = np.log(np.exp(log_q) @ np.ones(log_q.shape[1]))
    worst = total[np.abs(total).argmax()]
    if not abs(worst) <= _NORMALIZATION_TOLERANCE:
        raise ValueError(
            "witness_log_proba must hold natural logarithms of probabilities that sum "
            f"to 1 in each row, got a row that sums to {np.exp(worst):.6g}. Pass "
            "log_softmax of the logits."
        )
    return np.asarray(total)


def _log_sum_exp(logits: Floats) -> Floats:
    largest = logits.max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError("witness_logits must be finite, got NaN or infinity.")
    sums = np.exp(logits - largest[:, None]) @ np.ones(logits.shape[1])
    return np.asarray(largest + np.log(sums))
