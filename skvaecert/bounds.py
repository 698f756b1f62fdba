"""Lower confidence bounds on the margin of the population (theory section 13).

The certificate is about the rows that were scored and needs no statistics. The bounds
here are about rows not seen. Rows are drawn independently from one population, T is
the teacher posterior and q the witness of a row, and the margin of the population is

    M = E[sum_k T_k log q_k] + H(E T) = min_r E[sum_k T_k log(q_k / r_k)],

the minimum over the probability simplex, reached at r = E T. A witness that does not
depend on its row has M <= 0. E T is not known, and that of the rows is not independent
of them; yet M is E T's own expectation, so a bound that is valid for every fixed r is
valid at its smallest over all r, and no confidence is spent on the search.

A single row can move a mean of log q without limit, so all bounds are on the margin of
the floored witness, (1 - floor) q + floor / K: a witness like any other. It is constant
where q is, so a bound above 0 still tells that q is not constant.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import entr, softmax
from scipy.stats import bootstrap

from skvaecert.metrics import margin_contributions
from skvaecert.simplex import Floats, check_teacher_proba

__all__ = [
    "bernstein_bound",
    "bernstein_mean_bound",
    "betting_bound",
    "betting_mean_bound",
    "bootstrap_bound",
]

# A bet of all would lose everything to one row at the lower limit.
_LARGEST_BET = 0.75
# Standard deviations that the smallest bet suits, in units of the range. Half of it is
# the most there is; rows of a margin spread by a quarter of it at worst.
_WIDEST_MEAN, _WIDEST_MARGIN = 0.5, 0.25
# What is left of the search for the worst mean teacher is subtracted.
_ROUNDS = 100
_GAP = 1e-6
# So is the error of the root, in nats or in shares of the mean.
_ERROR = 1e-7


def betting_bound(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    *,
    confidence: float = 0.95,
    floor: float = 1e-3,
) -> float:
    """Lower bound on the population's margin by betting: valid for every n, narrowest.

    The largest c that is refuted together with all below it, where c is refuted if a
    gambler who bets against "M = c" multiplies the stake by 1 / (1 - confidence),
    whatever the mean teacher r is said to be::

        W(c, r) = mean_b prod_i (1 - b + b (g_i(r) + s) / (c + s)),
        g_i(r) = sum_k T_ik log(q_ik / r_k),    s = 1 + log(K / floor),

    over bets b = 1, 1/2, 1/4, ...; refuted if min_r W(c, r) >= 1 / (1 - confidence).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        The least probability of a true statement, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution that is mixed into the witness, in (0, 1).

    Returns
    -------
    float
        Nats, from log(floor / K) up to the margin of the rows.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid.

    See Also
    --------
    bernstein_bound : In closed form, wider.

    Notes
    -----
    *Guarantee.* For rows drawn independently from one population, over that draw, the
    bound is at most the margin of the population (floored witness) with probability
    `confidence` or more. It holds for every number of rows and every population, and
    does not depend on the order of the rows. Teacher and witness must not have been
    fitted on them.

    *Why.* At c = M and r = E T each factor has mean 1 and none is negative, so W has
    mean 1 and by Markov's inequality reaches 1 / (1 - confidence) with probability
    1 - confidence at most. W falls in c, and its minimum over r is not above its
    value at E T.

    *Why the minimum can be had.* The 1 in s makes log W convex in r, since
    log(a - b sum_k T_k log r_k) is where its argument is at least b. It is found by
    r <- sum_i w_i T_i with w_i in proportion to the slope of row i, and the
    Frank-Wolfe gap that is left is subtracted. Here lies the difference to a plug-in
    of the rows' own mean teacher, and it costs next to nothing (theory section 13).

    Bets that follow the rows seen so far, as in the reference, were seen to come up to
    20 % closer to the margin; but the bound would depend on the order of the rows.

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
    _check_share("confidence", confidence)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    lowest = _lowest(proba, floor)
    bets = _bets(len(proba), confidence, 1.0, _WIDEST_MARGIN)
    gains = (proba * log_q).sum(axis=1) - lowest + 1

    def log_capital(bound: float) -> float:
        return _least_log_capital(proba, gains, bets, bound - lowest + 1)

    # At the rows' own margin the capital is at most 1, by Jensen's inequality.
    highest = float(margin_contributions(proba, log_q).mean())
    return _largest_refuted(log_capital, lowest + _ERROR, highest, confidence)


def bernstein_bound(
    teacher_proba: ArrayLike,
    witness_log_proba: ArrayLike,
    *,
    confidence: float = 0.95,
    floor: float = 1e-3,
) -> float:
    """Lower bound on the population's margin in closed form: valid for every n.

    With margin G and variance V (divisor n - 1) of the rows' contributions g_i, with
    B = log(K / floor), R = 2 B and L = log(2 / (1 - confidence))::

        G - sqrt(2 V L / n) - (7 R / 3 + (2 + B) / 2) L / (n - 1) + log(1 - floor)

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        The least probability of a true statement, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution that is mixed into the witness, and into the
        mean teacher, in (0, 1).

    Returns
    -------
    float
        Nats, from log(floor / K) up to the margin of the rows.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid.

    See Also
    --------
    betting_bound : Under the same conditions, narrower.

    Notes
    -----
    *Guarantee.* That of :func:`betting_bound`: for rows drawn independently from one
    population, over that draw, the bound is at most the margin of the population
    (floored witness) with probability `confidence` or more, for every number of rows
    and every population.

    *Why.* Let r = (1 - floor) E T + floor / K. Then M >= E g(r) + log(1 - floor), and
    g(r) has a range of R, so the inequality of Maurer and Pontil holds for it. Only
    the mean and the deviation of g_i(r) are unknown, as E T is. With
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
    _check_share("confidence", confidence)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    lowest = _lowest(proba, floor)
    contributions = margin_contributions(proba, log_q)
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
    """Approximate lower bound on the population's margin: no certificate.

    The (1 - confidence) quantile of the margin of rows drawn with replacement from
    those given, each time with the mean teacher of the rows drawn.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    witness_log_proba : array-like of shape (n_samples, n_components)
        log q, natural logarithms of the witness's probabilities.
    confidence : float, default=0.95
        The probability of a true statement that is aimed at, in (0, 1).
    floor : float, default=1e-3
        Share of the uniform distribution that is mixed into the witness, in (0, 1).
    n_resamples : int, default=2000
        Draws, at least 1.
    random_state : int, numpy.random.Generator or None, default=None
        Seed of the draws; fresh ones each time when None.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If the arrays, `confidence` or `floor` are not valid, or there is only one row.

    See Also
    --------
    betting_bound : Guaranteed for every number of rows.

    Notes
    -----
    *Guarantee.* Only in the limit of many rows, over their draw and that of the
    resamples. What the rows do not show, the resamples cannot: where one row in a
    hundred is confidently wrong, and in any sample that has none of them, the bound is
    too high much more often than 1 - `confidence` says (theory section 13).

    Percentiles, not BCa: with the mean teacher refitted, resamples are biased down,
    and the bound errs on the safe side more often. BCa was seen to cover less where
    errors are rare, to have no value on collapsed encoders, and takes n^2 steps.

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
    _check_share("confidence", confidence)
    proba, log_q = _floored(teacher_proba, witness_log_proba, floor)
    if len(proba) == 1:
        raise ValueError(
            "teacher_proba must have at least two rows to draw from, got 1."
        )
    sums = np.column_stack([(proba * log_q).sum(axis=1), proba])

    def margins(rows: NDArray[np.intp], axis: int) -> Floats:
        # How often a row was drawn is all that counts: one matrix product for all.
        means = _counts(rows, len(proba)) @ sums / rows.shape[-1]
        margin = means[:, 0] + entr(means[:, 1:]).sum(axis=1)
        return np.asarray(margin.reshape(rows.shape[:-1]))

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
    """Lower bound on a mean by betting, for values that cannot fall below a limit.

    The largest c that is refuted together with all below it, by a capital of
    1 / (1 - confidence) or more from bets b = 3/4, 3/8, ... against "the mean is c"::

        W(c) = mean_b prod_i (1 - b + b (x_i - lower) / (c - lower))

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        x, independent draws.
    lower : float
        What no value can be below.
    upper : float, default=inf
        What no value can be above. Values are held against it; a lower bound by
        betting needs no more of it.
    confidence : float, default=0.95
        The least probability of a true statement, in (0, 1).

    Returns
    -------
    float
        At least `lower`, at most the mean of the values.

    Raises
    ------
    ValueError
        If a value is out of its limits or `confidence` is not valid.

    Notes
    -----
    *Guarantee.* For independent values of one mean, over their draw, the bound is at
    most that mean with probability `confidence` or more, for every number of values.

    References
    ----------
    Waudby-Smith and Ramdas, JRSSB 2024, arXiv:2010.09686: at mean c the capital has
    mean 1, and Markov's inequality is all that is needed.

    Examples
    --------
    >>> from skvaecert.bounds import betting_mean_bound
    >>> round(betting_mean_bound([0.6, 0.7, 0.8] * 100, lower=0, upper=1), 3)
    0.685
    """
    _check_share("confidence", confidence)
    x = _check_values(values, lower, upper)
    bets = _bets(len(x), confidence, _LARGEST_BET, _WIDEST_MEAN)
    gain = float(x.mean()) - lower
    if gain == 0:
        return float(lower)

    def log_capital(share: float) -> float:
        capitals = _log_capitals(bets, (x - lower) / (share * gain))
        return float(np.logaddexp.reduce(capitals))

    return lower + gain * _largest_refuted(log_capital, _ERROR, 1.0, confidence)


def bernstein_mean_bound(
    values: ArrayLike, lower: float, upper: float, confidence: float = 0.95
) -> float:
    """Lower bound on a mean in closed form, for values between two limits.

    With mean m and variance V (divisor n - 1) of the values and
    L = log(2 / (1 - confidence))::

        m - sqrt(2 V L / n) - 7 (upper - lower) L / (3 (n - 1))

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        Independent draws.
    lower : float
        What no value can be below.
    upper : float
        What no value can be above.
    confidence : float, default=0.95
        The least probability of a true statement, in (0, 1).

    Returns
    -------
    float
        At least `lower`, at most the mean of the values.

    Raises
    ------
    ValueError
        If a value is out of its limits or `confidence` is not valid.

    Notes
    -----
    *Guarantee.* For independent values of one distribution, over their draw, the bound
    is at most its mean with probability `confidence` or more, for every number of
    values.

    References
    ----------
    Maurer and Pontil, COLT 2009, arXiv:0907.3740, theorem 4.

    Examples
    --------
    >>> from skvaecert.bounds import bernstein_mean_bound
    >>> round(bernstein_mean_bound([0.6, 0.7, 0.8] * 100, lower=0, upper=1), 3)
    0.658
    """
    _check_share("confidence", confidence)
    x = _check_values(values, lower, upper)
    width = _bernstein_width(x, 7 / 3 * (upper - lower), confidence)
    return max(float(lower), float(x.mean() - width))


def _floored(
    teacher_proba: ArrayLike, witness_log_proba: ArrayLike, floor: float
) -> tuple[Floats, Floats]:
    """Check both; return T and the logarithm of the floored witness."""
    _check_share("floor", floor)
    proba = check_teacher_proba(teacher_proba)
    margin_contributions(proba, witness_log_proba)
    witness = softmax(np.asarray(witness_log_proba, dtype=np.float64), axis=1)
    return proba, np.log((1 - floor) * witness + floor / proba.shape[1])


def _lowest(proba: Floats, floor: float) -> float:
    """Return log(floor / K), below which there is no margin."""
    return float(np.log(floor / proba.shape[1]))


def _bets(n_samples: int, confidence: float, largest: float, widest: float) -> Floats:
    """Return shares to bet, halved down to what suits the widest spread; (n_bets, 1).

    For a standard deviation of sd ranges, sqrt(2 log(1 / error) / n) / sd is best.
    """
    smallest = np.sqrt(2 * _log_odds_against(confidence) / n_samples) / widest
    halvings = max(0, int(np.ceil(np.log2(largest / smallest))))
    return np.asarray(largest * 0.5 ** np.arange(halvings + 1)[:, np.newaxis])


def _log_capitals(bets: Floats, growth: Floats) -> Floats:
    """Return the logarithm of what each bet holds in the end, shape (n_bets,)."""
    capitals = np.log1p(bets * (growth - 1)).sum(axis=1)
    return np.asarray(capitals - np.log(len(bets)))


def _least_log_capital(
    proba: Floats, gains: Floats, bets: Floats, limit: float
) -> float:
    """Return the minimum over r of log W, less what the search left open."""
    mean_proba = proba.mean(axis=0)
    for _ in range(_ROUNDS):
        growth = (gains - proba @ np.log(mean_proba)) / limit
        capitals = _log_capitals(bets, growth)
        # Minus the gradient is pull / r, and log W is convex: no r is lower by more
        # than the steepest corner of the simplex promises.
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
    """Return the root of log W(c) = log(1 / error), less the root's own error."""
    target = _log_odds_against(confidence)
    root = smallest
    if log_capital(smallest) > target:
        root = brentq(lambda c: log_capital(c) - target, smallest, largest, xtol=_ERROR)
    return float(root) - _ERROR


def _log_odds_against(confidence: float) -> float:
    """Return log(1 / error)."""
    return float(-np.log1p(-confidence))


def _bernstein_width(values: Floats, scale: float, confidence: float) -> float:
    """Return sqrt(2 V L / n) + scale L / (n - 1), L = log(2 / error)."""
    n_samples = len(values)
    if n_samples == 1:
        return np.inf
    log_term = np.log(2) + _log_odds_against(confidence)
    deviation = np.sqrt(2 * values.var(ddof=1) * log_term / n_samples)
    return float(deviation + scale * log_term / (n_samples - 1))


def _counts(rows: NDArray[np.intp], n_samples: int) -> NDArray[np.intp]:
    """Return how often each row was drawn, shape (n_draws, n_samples)."""
    draws = rows.reshape(-1, rows.shape[-1])
    offsets = n_samples * np.arange(len(draws))[:, np.newaxis]
    counts = np.bincount((draws + offsets).ravel(), minlength=len(draws) * n_samples)
    return counts.reshape(-1, n_samples)


def _check_values(values: ArrayLike, lower: float, upper: float) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(
            f"values must have shape (n_samples,), not empty, got shape {x.shape}."
        )
    if not (lower <= x.min() and x.max() <= upper):
        raise ValueError(
            f"values must be between lower = {lower} and upper = {upper}, got values "
            f"from {x.min()} to {x.max()}. Limits are those of the population, not of "
            "the values at hand."
        )
    return x


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value}.")
