"""Lower confidence bounds on the margin of the population (theory section 13).

The certificate is about the samples that are scored and needs no statistics. The bounds
here are about new samples. Assume that samples are drawn independently from one
population. With the teacher's posterior T and the witness q of a sample, the margin of
the population is

    M = E[sum_k T_k log q_k] + H(E T) = min_r E[sum_k T_k log(q_k / r_k)],

where the minimum over the probability simplex is reached at r = E T. A witness that
does not depend on its sample has M <= 0. E T is not known, and the mean teacher of the
samples is not independent of them. But a bound that is valid for every fixed r is also
valid at r = E T, and its minimum over all r is at most the bound at E T. So the search
for the minimum costs no confidence.

A single sample can move the mean of log q without limit. So all bounds are on the
margin of the floored witness, (1 - floor) q + floor / K. If q is constant, so is the
floored witness. So a bound above 0 shows that q is not constant.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import entr, softmax
from scipy.stats import bootstrap

from skvaecert.metrics import margin_contributions
from skvaecert.simplex import (
    Floats,
    check_count,
    check_number,
    check_real,
    check_teacher_proba,
    check_weight,
)

__all__ = [
    "MeanBounds",
    "bernstein_bound",
    "bernstein_mean_bound",
    "betting_bound",
    "betting_mean_bound",
    "bootstrap_bound",
]

# With a bet of 1, a single value at the lower limit would reduce the capital to 0.
_LARGEST_BET = 0.75
# The smallest bet is chosen for these standard deviations, in units of the range: at
# most half the range for values, and a quarter for contributions to a margin.
_WIDEST_MEAN, _WIDEST_MARGIN = 0.5, 0.25
# Number of nodes in each half of a range, and the first of them: they are 1 % apart.
_NODES, _FIRST_NODE = 2000, 1e-9
# The search for the worst mean teacher stops at this gap, which is subtracted.
_ROUNDS = 100
_GAP = 1e-6
# Error of the root, in nats or relative to the mean. It is subtracted, too.
_ERROR = 1e-7


def betting_bound(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    *,
    confidence: float = 0.95,
    floor: float = 1e-3,
) -> float:
    """Lower bound on the population's margin by betting, valid for every n.

    The bound is the largest c such that every margin up to c is refuted. A margin c is
    refuted if min_r W(c, r) >= 1 / (1 - confidence), with::

        W(c, r) = mean_b prod_i (1 - b + b (g_i(r) + s) / (c + s)),
        g_i(r) = sum_k T_ik log(q_ik / r_k),    s = 1 + log(K / floor)

    If r is the mean teacher of the population, W is the final capital, in units of the
    stake, of a gambler who bets shares b = 1, 1/2, 1/4, ... against "the margin is c".
    Among the bounds of this module that are valid for every n, it is the narrowest.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        Confidence level, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution in the floored witness, in (0, 1).

    Returns
    -------
    float
        Nats, from log(floor / K) up to the margin of the samples.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid.

    See Also
    --------
    bernstein_bound : In closed form, but further from the margin.

    Notes
    -----
    *Guarantee.* Assume that the samples are drawn independently from one population,
    and that neither teacher nor witness was fitted on them. With probability
    `confidence` or more over this draw, the bound is at most the margin of the
    population (with the floored witness). This holds for every number of samples and
    every population. The bound does not depend on the order of the samples.

    *Why.* At c = M and r = E T each factor has mean 1, and none is negative. So W has
    mean 1, and by Markov's inequality it reaches 1 / (1 - confidence) with probability
    at most 1 - confidence. W decreases in c, and its minimum over r is at most its
    value at E T.

    *How the minimum is computed.* The 1 in s makes log W convex in r, because
    log(a - b sum_k T_k log r_k) is convex if its argument is at least b. The iteration
    is r <- sum_i w_i T_i, with w_i proportional to the slope of sample i. The remaining
    Frank-Wolfe gap is subtracted. The proof does not hold if the mean teacher of the
    samples replaces the minimum. The minimum costs little (theory section 13).

    In the reference, bets depend on the samples so far. In our experiments such bets
    came up to 20 % closer to the margin. But the bound would then depend on the order
    of the samples.

    References
    ----------
    Theory section 13; Waudby-Smith and Ramdas, "Estimating means of bounded random
    variables by betting", JRSSB 2024, arXiv:2010.09686.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.bounds import betting_bound
    >>> from skvaecert.metrics import collapse_margin
    >>> teacher_proba = np.tile([[0.9, 0.1], [0.1, 0.9]], (500, 1))
    >>> round(collapse_margin(teacher_proba, np.log(teacher_proba)), 3)
    0.368
    >>> round(betting_bound(teacher_proba, np.log(teacher_proba)), 3)
    0.333
    """
    check_number("confidence", confidence, above=0, below=1)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    lowest = _lowest(proba, floor)
    # The 1 in s = 1 + B keeps the capital above 0, even with a bet of 1 (theory
    # section 13). The part of g(r) that depends on r is added in the search.
    bets = _bets(len(proba), confidence, 1.0, _WIDEST_MARGIN)
    gains = (proba * log_q).sum(axis=1) - lowest + 1

    def log_capital(bound: float) -> float:
        return _least_log_capital(proba, gains, bets, bound - lowest + 1)

    # At the margin of the samples the capital is at most 1, by Jensen's inequality.
    highest = float(margin_contributions(proba, log_q).mean())
    return _largest_refuted(log_capital, lowest + _ERROR, highest, confidence)


def bernstein_bound(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    *,
    confidence: float = 0.95,
    floor: float = 1e-3,
) -> float:
    """Lower bound on the population's margin in closed form, valid for every n.

    Let G be the margin of the samples, V the variance (divisor n - 1) of their
    contributions g_i, B = log(K / floor), R = 2 B and L = log(2 / (1 - confidence)).
    The bound is::

        G - sqrt(2 V L / n) - (7 R / 3 + (2 + B) / 2) L / (n - 1) + log(1 - floor)

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        Confidence level, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution in the floored witness and in the floored
        mean teacher, in (0, 1).

    Returns
    -------
    float
        Nats, from log(floor / K) up to the margin of the samples.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid.

    See Also
    --------
    betting_bound : Closer to the margin, under the same conditions.

    Notes
    -----
    *Guarantee.* The same as that of :func:`betting_bound`. Assume that the samples are
    drawn independently from one population. With probability `confidence` or more over
    this draw, the bound is at most the margin of the population (with the floored
    witness), for every number of samples and every population.

    *Why.* Let r = (1 - floor) E T + floor / K. Then M >= E g(r) + log(1 - floor), and
    g(r) has a range of R, so the inequality of Maurer and Pontil holds for it. The
    mean and the deviation of g_i(r) are not known, because E T is not. With
    v = log(mean T / r) and s^2 = sum_k mean T_k v_k^2, the mean is
    G + KL(mean T || r), which is G + s^2 / (2 + B) or more, and the deviation is at
    most sqrt(V) + sqrt(n / (n - 1)) s. The worst s gives the second term in brackets.

    References
    ----------
    Theory section 13; Maurer and Pontil, "Empirical Bernstein bounds and sample
    variance penalization", COLT 2009, arXiv:0907.3740, theorem 4.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.bounds import bernstein_bound
    >>> teacher_proba = np.tile([[0.9, 0.1], [0.1, 0.9]], (5000, 1))
    >>> round(bernstein_bound(teacher_proba, np.log(teacher_proba)), 3)
    0.352
    """
    check_number("confidence", confidence, above=0, below=1)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    lowest = _lowest(proba, floor)
    contributions = margin_contributions(proba, log_q)
    # B is -lowest, and g(r) has the range 2 B.
    scale = 7 / 3 * (-2 * lowest) + (2 - lowest) / 2
    width = _bernstein_width(contributions, scale, confidence)
    return max(lowest, float(contributions.mean() - width + np.log1p(-floor)))


def bootstrap_bound(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    *,
    confidence: float = 0.95,
    floor: float = 1e-3,
    n_resamples: int = 2000,
    random_state: int | np.random.Generator | None = None,
) -> float:
    """Approximate lower bound on the population's margin, which is not a certificate.

    The bound is the (1 - confidence) quantile of the margins of resamples, which are
    drawn with replacement from the samples. Each margin uses the mean teacher of its
    resample.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        Nominal confidence level, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution in the floored witness, in (0, 1).
    n_resamples : int, default=2000
        Number of resamples, at least 1.
    random_state : int, numpy.random.Generator or None, default=None
        Determines random number generation for the resamples. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid, or there is only one
        sample.

    See Also
    --------
    betting_bound : Guaranteed for every number of samples.

    Notes
    -----
    *Guarantee.* The confidence level holds only in the limit of many samples, over the
    draw of samples and resamples. Resamples cannot show what the samples do not. If the
    witness is confidently wrong on one sample in a hundred, data without such a sample
    give a bound that is too high. This happens much more often than 1 - `confidence`
    (theory section 13).

    The bound uses percentiles, not BCa. Each resample has its own mean teacher, so the
    margins of resamples are biased down, which makes the bound safer. In our
    experiments BCa had less coverage if errors are rare, and it had no value on
    collapsed encoders. It takes n^2 steps.

    References
    ----------
    Theory section 13; :func:`scipy.stats.bootstrap`.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.bounds import bootstrap_bound
    >>> teacher_proba = np.tile([[0.9, 0.1], [0.1, 0.9]], (500, 1))
    >>> bound = bootstrap_bound(teacher_proba, np.log(teacher_proba), random_state=0)
    >>> round(bound, 3)
    0.367
    """
    check_number("confidence", confidence, above=0, below=1)
    check_count("n_resamples", n_resamples)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    if len(proba) == 1:
        raise ValueError(
            "teacher_proba must have at least two samples, got 1. A bootstrap of a "
            "single sample does not vary."
        )
    sums = np.column_stack([(proba * log_q).sum(axis=1), proba])

    def margins(draws: NDArray[np.intp], axis: int) -> Floats:
        # A margin depends on how often each sample was drawn, so one matrix product
        # computes those of all resamples.
        means = _counts(draws, len(proba)) @ sums / draws.shape[-1]
        margin = means[:, 0] + entr(means[:, 1:]).sum(axis=1)
        return np.asarray(margin.reshape(draws.shape[:-1]))

    result = bootstrap(
        (np.arange(len(proba)),),
        margins,
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, 2**20 // len(proba)),
        confidence_level=confidence,
        alternative="greater",
        method="percentile",
        random_state=np.random.default_rng(random_state),
    )
    return float(result.confidence_interval.low)


def betting_mean_bound(
    values: ArrayLike, lower: float, upper: float = np.inf, confidence: float = 0.95
) -> float:
    """Lower bound on a mean by betting, for values with a known lower limit.

    The bound is the largest c such that every mean up to c is refuted. A mean c is
    refuted if W(c) >= 1 / (1 - confidence), with bets b = 3/4, 3/8, ... and::

        W(c) = mean_b prod_i (1 - b + b (x_i - lower) / (c - lower))

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        x, drawn independently.
    lower : float
        Smallest possible value.
    upper : float, default=inf
        Largest possible value. The values are checked against it, but it does not
        change the bound.
    confidence : float, default=0.95
        Confidence level, in (0, 1).

    Returns
    -------
    float
        The bound, from `lower` up to the mean of the values.

    Raises
    ------
    ValueError
        If a value is outside the limits, or `confidence` is not valid.

    Notes
    -----
    *Guarantee.* Assume that the values are independent and have the same mean. With
    probability `confidence` or more over their draw, the bound is at most this mean,
    for every number of values.

    *Why.* If c is the mean, the capital W(c) has mean 1, and Markov's inequality
    applies.

    References
    ----------
    Waudby-Smith and Ramdas, JRSSB 2024, arXiv:2010.09686.

    Examples
    --------
    >>> from skvaecert.bounds import betting_mean_bound
    >>> round(betting_mean_bound([0.6, 0.7, 0.8] * 100, lower=0, upper=1), 3)
    0.685
    """
    check_number("confidence", confidence, above=0, below=1)
    x = _check_values(values, lower, upper)
    return lower + _least_mean(x - lower, np.ones(len(x)), confidence)


class MeanBounds:
    """Lower and upper bounds on a weighted mean, for values that come in batches.

    Let c_i = w_i / max_i w_i, and let b = 3/4, 3/8, ... be the bets. The capital is::

        W(c) = mean_b prod_i (1 - b + b (x_i - lower) / (c - lower))^(c_i)

    The lower bound is the largest c such that W is at least 1 / (1 - confidence) up to
    c. The upper bound is `upper` minus the lower bound for upper - x.

    Parameters
    ----------
    lower : float
        Smallest possible value.
    upper : float
        Largest possible value, above `lower`.

    Raises
    ------
    ValueError
        If a limit is not finite or `upper` is not above `lower`.

    See Also
    --------
    betting_mean_bound : From all values at once, without weights.

    Notes
    -----
    *Guarantee.* Assume that the values are independent, where each may have another
    mean, and that limits and weights do not depend on the values. With probability
    `confidence` or more, the lower bound is at most the weighted mean of these means,
    for every number of values. With the same probability, the upper bound is at least
    this mean.

    *Why.* Let a_i be the factor of value i at the weighted mean c. Because c_i is at
    most 1, E a_i^(c_i) <= (E a_i)^(c_i). The product of these is at most the weighted
    mean of E a_i, which is 1, to the power sum_i c_i. So W has a mean of at most 1, and
    Markov's inequality applies. The bets depend on sum_i c_i only. A few large weights
    make this sum small, and the bounds wide.

    *Memory.* Values are stored as weights of 4,001 nodes. Seen from each end, the nodes
    run from a billionth of the range to half of it and are 1 % apart. The weight of a
    value is divided between the two nodes next to it so that the mean does not change.
    Logarithms are concave, so this can only lower the capital: the bounds stay valid,
    and become hardly wider.

    References
    ----------
    Theory section 16; Waudby-Smith and Ramdas, JRSSB 2024, arXiv:2010.09686.

    Examples
    --------
    >>> from skvaecert.bounds import MeanBounds
    >>> bounds = MeanBounds(0, 1)
    >>> for batch in ([0.6, 0.7], [0.8, 0.7]) * 100:
    ...     bounds = bounds.update(batch)
    >>> round(bounds.mean, 3), round(bounds.low(0.95), 3), round(bounds.high(0.95), 3)
    (0.7, 0.688, 0.71)
    """

    def __init__(self, lower: float, upper: float) -> None:
        self.lower = check_number("lower", lower)
        self.upper = check_number("upper", upper, above=self.lower)
        self._weights = np.zeros(len(_SHARES))
        self._largest = 0.0

    def update(self, values: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Add a batch of values.

        Parameters
        ----------
        values : array-like of shape (n_samples,)
            x, from `lower` to `upper`.
        sample_weight : array-like of shape (n_samples,), default=None
            w, individual weights for each value, on the same scale in all batches; 1
            when None. Values with weight 0 are left out.

        Returns
        -------
        self : MeanBounds
            The bounds with these values added.

        Raises
        ------
        ValueError
            If a value is outside the limits, or a weight is not valid.
        """
        x = _check_values(values, self.lower, self.upper)
        weight = check_weight(sample_weight, len(x))
        share = (x - self.lower) / (self.upper - self.lower)
        # Each weight goes to the two nodes around its value, see Notes.
        left = np.searchsorted(_SHARES, share, side="right") - 1
        # A value at the upper limit is on the last node, which has no right neighbor.
        left = left.clip(max=len(_SHARES) - 2)
        to_right = (share - _SHARES[left]) / (_SHARES[left + 1] - _SHARES[left])
        for node, part in ((left, 1 - to_right), (left + 1, to_right)):
            self._weights += np.bincount(node, weight * part, len(_SHARES))
        self._largest = max(self._largest, float(weight.max()))
        return self

    def merge(self, other: MeanBounds, *, independent: bool = True) -> Self:
        """Add the values of another object.

        Parameters
        ----------
        other : MeanBounds
            Bounds of other values with the same limits. They are not changed.
        independent : bool, default=True
            Whether the values of both are independent of each other. If not, the
            largest weights are summed (Hoelder's inequality), and the bounds are about
            as wide as those of either object.

        Returns
        -------
        self : MeanBounds
            The bounds with these values added.

        Raises
        ------
        ValueError
            If the limits differ.
        """
        if (self.lower, self.upper) != (other.lower, other.upper):
            raise ValueError(
                f"other must have the limits {self.lower} and {self.upper}, got "
                f"{other.lower} and {other.upper}."
            )
        self._weights += other._weights
        largest = self._largest, other._largest
        # If they depend on each other, the exponents are w / (W_1 + W_2) by Hölder's
        # inequality (theory section 16).
        self._largest = max(largest) if independent else sum(largest)
        return self

    @property
    def mean(self) -> float:
        """Weighted mean of the values; NaN if there are none."""
        total = self._weights.sum()
        share = self._weights @ _SHARES / total if total else np.nan
        return float(self.lower + (self.upper - self.lower) * share)

    def low(self, confidence: float) -> float:
        """Lower bound on the weighted mean of the means.

        Parameters
        ----------
        confidence : float
            Probability with which this bound holds, in (0, 1).

        Returns
        -------
        float
            The bound, from `lower` up to the mean of the values; `lower` if there are
            no values.
        """
        return self.lower + self._gain(_SHARES, confidence)

    def high(self, confidence: float) -> float:
        """Upper bound on the weighted mean of the means.

        Parameters
        ----------
        confidence : float
            Probability with which this bound holds, in (0, 1).

        Returns
        -------
        float
            The bound, from the mean of the values up to `upper`; `upper` if there are
            no values.
        """
        return self.upper - self._gain(1 - _SHARES, confidence)

    def _gain(self, shares: Floats, confidence: float) -> float:
        """Return the lower bound on a mean of shares, times the range."""
        check_number("confidence", confidence, above=0, below=1)
        used = self._weights > 0
        if not used.any():
            return 0.0
        # The exponents c_i = w_i / max w of theory section 16.
        counts = self._weights[used] / self._largest
        return (self.upper - self.lower) * _least_mean(shares[used], counts, confidence)


def bernstein_mean_bound(
    values: ArrayLike, lower: float, upper: float, confidence: float = 0.95
) -> float:
    """Lower bound on a mean in closed form, for values between two known limits.

    Let m be the mean and V the variance (divisor n - 1) of the values, and
    L = log(2 / (1 - confidence)). The bound is::

        m - sqrt(2 V L / n) - 7 (upper - lower) L / (3 (n - 1))

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        Values, drawn independently.
    lower : float
        Smallest possible value.
    upper : float
        Largest possible value.
    confidence : float, default=0.95
        Confidence level, in (0, 1).

    Returns
    -------
    float
        The bound, from `lower` up to the mean of the values.

    Raises
    ------
    ValueError
        If a value is outside the limits, or `confidence` is not valid.

    Notes
    -----
    *Guarantee.* Assume that the values are drawn independently from one distribution.
    With probability `confidence` or more over this draw, the bound is at most the mean
    of the distribution, for every number of values.

    References
    ----------
    Maurer and Pontil, COLT 2009, arXiv:0907.3740, theorem 4.

    Examples
    --------
    >>> from skvaecert.bounds import bernstein_mean_bound
    >>> round(bernstein_mean_bound([0.6, 0.7, 0.8] * 100, lower=0, upper=1), 3)
    0.658
    """
    check_number("confidence", confidence, above=0, below=1)
    check_number("upper", upper)
    x = _check_values(values, lower, upper)
    width = _bernstein_width(x, 7 / 3 * (upper - lower), confidence)
    return max(float(lower), float(x.mean() - width))


def _least_mean(gains: Floats, counts: Floats, confidence: float) -> float:
    """Return the lower bound on the mean of non-negative gains with counts c_i."""
    n_samples = counts.sum()
    mean = float(counts @ gains / n_samples)
    if mean == 0:
        return 0.0
    bets = _bets(n_samples, confidence, _LARGEST_BET, _WIDEST_MEAN)

    def log_capital(share: float) -> float:
        capitals = _log_capitals(bets, gains / (share * mean), counts)
        return float(np.logaddexp.reduce(capitals))

    return mean * _largest_refuted(log_capital, _ERROR, 1.0, confidence)


def _shares() -> Floats:
    """Return the nodes from 0 to 1, which are dense near both ends."""
    half = np.geomspace(_FIRST_NODE, 0.5, _NODES)
    return np.concatenate([[0], half, 1 - half[-2::-1], [1]])


_SHARES = _shares()


def _floored(
    teacher_proba: ArrayLike, witness_log_proba: ArrayLike, floor: float
) -> tuple[Floats, Floats]:
    """Check both arrays, and return T and the logarithm of the floored witness."""
    check_number("floor", floor, above=0, below=1)
    proba = check_teacher_proba(teacher_proba)
    margin_contributions(proba, witness_log_proba)  # checks the logarithms
    witness = softmax(np.asarray(witness_log_proba, dtype=np.float64), axis=1)
    return proba, np.log((1 - floor) * witness + floor / proba.shape[1])


def _lowest(proba: Floats, floor: float) -> float:
    """Return log(floor / K), the smallest possible margin of a floored witness."""
    return float(np.log(floor / proba.shape[1]))


def _bets(n_samples: float, confidence: float, largest: float, widest: float) -> Floats:
    """Return the bets, shape (n_bets, 1); each is half of the previous one.

    If sd is the standard deviation in units of the range, the best bet is
    sqrt(2 log(1 / error) / n) / sd. The smallest bet is that for the widest sd.
    """
    smallest = np.sqrt(2 * _log_inverse_error(confidence) / n_samples) / widest
    halvings = max(0, int(np.ceil(np.log2(largest / smallest))))
    return np.asarray(largest * 0.5 ** np.arange(halvings + 1)[:, np.newaxis])


def _log_capitals(bets: Floats, growth: Floats, counts: Floats) -> Floats:
    """Return the logarithm of the final capital of each bet, shape (n_bets,)."""
    capitals = np.log1p(bets * (growth - 1)) @ counts
    # W is the mean over all bets.
    return np.asarray(capitals - np.log(len(bets)))


def _least_log_capital(
    proba: Floats, gains: Floats, bets: Floats, limit: float
) -> float:
    """Return the minimum over r of log W, minus the remaining gap of the search."""
    mean_proba, once = proba.mean(axis=0), np.ones(len(proba))
    for _ in range(_ROUNDS):
        growth = (gains - proba @ np.log(mean_proba)) / limit
        capitals = _log_capitals(bets, growth, once)
        # The gradient of the convex log W is -pull / r. So no r is lower by more than
        # the Frank-Wolfe gap, which is that of the steepest corner of the simplex.
        shares = np.exp(capitals - np.logaddexp.reduce(capitals))
        slopes = shares @ (bets / (1 + bets * (growth - 1))) / limit
        pull = slopes @ proba
        gap = float((pull / mean_proba).max() - pull.sum())
        if gap <= _GAP:
            break
        mean_proba = pull / pull.sum()
    return float(np.logaddexp.reduce(capitals)) - gap


def _largest_refuted(
    log_capital: Callable[[float], float],
    smallest: float,
    largest: float,
    confidence: float,
) -> float:
    """Return the root of log W(c) = log(1 / error), minus the error of the root."""
    target = _log_inverse_error(confidence)
    root = smallest
    # Otherwise not even the smallest value is refuted.
    if log_capital(smallest) > target:
        root = brentq(lambda c: log_capital(c) - target, smallest, largest, xtol=_ERROR)
    return float(root) - _ERROR


def _log_inverse_error(confidence: float) -> float:
    """Return log(1 / error), with error = 1 - confidence."""
    return float(-np.log1p(-confidence))


def _bernstein_width(values: Floats, scale: float, confidence: float) -> float:
    """Return sqrt(2 V L / n) + scale L / (n - 1), with L = log(2 / error)."""
    n_samples = len(values)
    if n_samples == 1:
        return np.inf
    log_term = np.log(2) + _log_inverse_error(confidence)
    deviation = np.sqrt(2 * values.var(ddof=1) * log_term / n_samples)
    return float(deviation + scale * log_term / (n_samples - 1))


def _counts(draws: NDArray[np.intp], n_samples: int) -> NDArray[np.intp]:
    """Return how often each resample contains each sample, (n_resamples, n_samples)."""
    # Offsets give each resample bins of its own, so a single bincount counts all.
    draws = draws.reshape(-1, draws.shape[-1])
    offsets = n_samples * np.arange(len(draws))[:, np.newaxis]
    counts = np.bincount((draws + offsets).ravel(), minlength=len(draws) * n_samples)
    return counts.reshape(-1, n_samples)


def _check_values(values: ArrayLike, lower: float, upper: float) -> Floats:
    check_number("lower", lower)
    x = np.asarray(check_real("values", values), dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(
            f"values must have shape (n_samples,), not empty, got shape {x.shape}."
        )
    if not (isinstance(upper, Real) and lower <= x.min() and x.max() <= upper):
        raise ValueError(
            f"values must be between lower = {lower} and upper = {upper}, got values "
            f"from {x.min()} to {x.max()}. Pass the limits of the population, not "
            "those of these values."
        )
    return x
