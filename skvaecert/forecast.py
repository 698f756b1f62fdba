"""The margin before training (theory section 9).

Reconstruction is left aside, and an encoder may put every code where it likes. What
remains of the loss is strictly convex in each code, with one number that decides: the
ratio r = alignment_weight / kl_weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import log_softmax, wrightomega

from skvaecert.metrics import teacher_information
from skvaecert.simplex import (
    Floats,
    centered_log_ratio,
    check_sample_weight,
    check_teacher_proba,
    log_odds_energy,
)

__all__ = [
    "Forecast",
    "ForecastCurve",
    "forecast_margin",
    "guaranteed_margin",
    "ratio_for_margin",
]

# Values in a chunk of samples: few enough to stay in the cache.
_CHUNK_VALUES = 2**16
# Below it the first order in rho is exact in float64.
_FIRST_ORDER = 1e-17
# Errors of Newton steps square, so that what is left after such a step is rounding.
_LAST_STEP = 1e-8
# At most 7 steps were seen, for rho from 1e-12 to 1e12 and entries down to 1e-300.
_MAX_STEPS = 50
_ROOT_TOLERANCE = 1e-12
# Nats, from rounding alone.
_NO_INFORMATION = 1e-9
# From no margin to the analytic code, for scales near 1.
_RATIOS = np.geomspace(1e-2, 1e4, 37)


class Forecast(NamedTuple):
    """Margin and energy of the best unconstrained code.

    Attributes
    ----------
    margin : float or ndarray
        G, nats, at most the teacher information.
    energy : float or ndarray
        Mean of ``|z|**2 / 2``, nats a sample, at least 0: the part of the KL term
        that the latent means pay for.
    """

    margin: float | Floats
    energy: float | Floats


@dataclass(frozen=True, eq=False)
class ForecastCurve:
    """Forecast over a range of ratios, and where a VAE's own weights lie on it.

    Attributes
    ----------
    ratio : ndarray of shape (n_ratios,)
        alignment_weight / kl_weight.
    margin : ndarray of shape (n_ratios,)
        Forecast margin, nats.
    energy : ndarray of shape (n_ratios,)
        Forecast energy, nats a sample.
    teacher_information : float
        I_T, which the margin tends to, nats.
    operating_ratio : float
        The ratio of the VAE's weights; infinite for ``kl_weight=0``, not a number if
        both weights are 0. With ``alignment_weight="auto"`` the ratio at which the
        forecast reaches `target_margin`.
    operating_margin : float
        Forecast margin there, nats.
    operating_energy : float
        Forecast energy there, nats a sample.
    target_margin : float or None
        The relative margin that `operating_ratio` is for; None for a fixed weight.

    See Also
    --------
    CertifiedVAE : Its `forecast` returns one.
    """

    ratio: Floats
    margin: Floats
    energy: Floats
    teacher_information: float
    operating_ratio: float
    operating_margin: float
    operating_energy: float
    target_margin: float | None


class _Problem(NamedTuple):
    """Minimise r A + energy, with energy = stiffness / 2 |u|^2 of the logits u."""

    proba: Floats
    weight: Floats
    stiffness: float


def forecast_margin(
    teacher_proba: ArrayLike,
    scale: float,
    ratio: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> Forecast:
    r"""Margin and energy of the code that minimises r A + sum_i p_i ||z_i||^2 / 2.

    The logits u = beta S z of each sample solve u = rho (T - softmax(u)), where
    rho = r beta^2 K / (K - 1); they are found to rounding, for any r. The margin
    increases with r, from -KL(mean T || uniform) at 0 to the teacher information.

    This is a forecast of a trained margin and no bound: reconstruction may hold codes
    apart that alignment alone would not, and it may take their place.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0; each row sums to 1; at least two components.
    scale : float
        beta, above 0.
    ratio : float or array-like
        r = alignment_weight / kl_weight, at least 0. Infinity is the analytic code.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to p; uniform when None.

    Returns
    -------
    Forecast
        ``(margin, energy)``: floats for a number, arrays of the shape of `ratio` for
        an array.

    Raises
    ------
    ValueError
        If the posteriors, the weights, `scale` or `ratio` are not valid.

    References
    ----------
    Theory section 9.

    Examples
    --------
    >>> from skvaecert.forecast import forecast_margin
    >>> teacher_proba = [[0.9, 0.1], [0.1, 0.9]]
    >>> forecast = forecast_margin(teacher_proba, 1.0, 10.0)
    >>> round(forecast.margin, 3), round(forecast.energy, 3)
    (0.359, 0.395)
    >>> forecast_margin(teacher_proba, 1.0, [0.1, 1, 100]).margin.round(3)
    array([0.056, 0.247, 0.368])
    """
    problem = _problem(teacher_proba, scale, sample_weight)
    ratios = _check_ratio(ratio)
    losses, energies = _minima(problem, ratios.ravel())
    margins = teacher_information(problem.proba, problem.weight) - losses
    if ratios.ndim == 0:
        return Forecast(float(margins[0]), float(energies[0]))
    return Forecast(margins.reshape(ratios.shape), energies.reshape(ratios.shape))


def ratio_for_margin(
    teacher_proba: ArrayLike,
    scale: float,
    relative_margin: float,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Ratio at which the forecast margin is a given share of the information.

    The r of :func:`forecast_margin` with G(r) = m I_T: an alignment weight of
    r * kl_weight to begin with. It is found between two bounds,
    m I_T / f^2 <= r <= energy of the analytic code / ((1 - m) I_T), where f^2 is the
    mean square of the escape force at the code 0.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0; each row sums to 1; at least two components.
    scale : float
        beta, above 0.
    relative_margin : float
        m, the margin as a share of the teacher information, in (0, 1).
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to p; uniform when None.

    Returns
    -------
    float
        alignment_weight / kl_weight, above 0.

    Raises
    ------
    ValueError
        If `relative_margin` is not in (0, 1), or the posteriors are the same for all
        samples, so that there is no margin.

    References
    ----------
    Theory section 9.

    Examples
    --------
    >>> from skvaecert.forecast import ratio_for_margin
    >>> round(ratio_for_margin([[0.9, 0.1], [0.1, 0.9]], 1.0, 0.6), 3)
    0.762
    """
    if not 0 < relative_margin < 1:
        raise ValueError(
            "relative_margin must be above 0 and below 1, which no finite ratio "
            f"reaches, got {relative_margin}. It is a share of the teacher information."
        )
    problem = _problem(teacher_proba, scale, sample_weight)
    information = teacher_information(problem.proba, problem.weight)
    if information < _NO_INFORMATION:
        raise ValueError(
            "teacher_proba must differ between samples, got a teacher information of "
            f"{information:.3g} nats. There is no margin to reach; use another teacher."
        )
    loss = (1 - relative_margin) * information
    low = relative_margin * information / _force_square(problem)
    high = _analytic_energy(problem) / loss

    def excess(ratio: float) -> float:
        return _minimum(problem, ratio)[0] - loss

    # Half and double, so that rounding does not matter at the ends.
    return _root(excess, low / 2, 2 * high)


def forecast_curve(
    teacher_proba: Floats,
    scale: float,
    alignment_weight: float | str,
    kl_weight: float,
    *,
    target_margin: float | None = None,
    ratio: ArrayLike | None = None,
) -> ForecastCurve:
    """Forecast over a range of ratios and at the weights of a VAE.

    Parameters
    ----------
    teacher_proba : ndarray of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1; at least two components.
    scale : float
        beta, above 0.
    alignment_weight : float or str
        Weight of the alignment loss; not used with a `target_margin`.
    kl_weight : float
        Weight of the KL term.
    target_margin : float or None, default=None
        Share of the teacher information that a guard holds; None for fixed weights.
    ratio : float or array-like of shape (n_ratios,), default=None
        alignment_weight / kl_weight, at least 0; 37 from 0.01 to 10,000 when None.

    Returns
    -------
    ForecastCurve
        Margin and energy at each ratio and at the operating point.
    """
    ratios = np.atleast_1d(np.asarray(_RATIOS if ratio is None else ratio, np.float64))
    margins, energies = forecast_margin(teacher_proba, scale, ratios)
    if target_margin is not None:
        operating = ratio_for_margin(teacher_proba, scale, target_margin)
    elif kl_weight > 0:
        operating = float(alignment_weight) / kl_weight
    else:
        operating = np.inf if float(alignment_weight) > 0 else np.nan
    point = Forecast(np.nan, np.nan)
    if not np.isnan(operating):
        point = forecast_margin(teacher_proba, scale, operating)
    return ForecastCurve(
        ratio=ratios,
        margin=np.asarray(margins),
        energy=np.asarray(energies),
        teacher_information=teacher_information(teacher_proba),
        operating_ratio=operating,
        operating_margin=float(point.margin),
        operating_energy=float(point.energy),
        target_margin=target_margin,
    )


def guaranteed_margin(
    teacher_proba: ArrayLike,
    scale: float,
    alignment_weight: float,
    kl_weight: float,
    reconstruction_gain: float,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Least margin at a global optimum of the training loss.

    With w = alignment_weight, r = w / kl_weight, A(r) and E(r) the alignment loss and
    energy of :func:`forecast_margin`, and D = reconstruction_gain, every global
    optimum has::

        A* + E* / r <= A(r) + E(r) / r + D / w

    and the greatest A* that this admits is returned as I_T - A*. So the result is at
    least I_T - A(r) - (E(r) + D / kl_weight) / r, what follows with E* >= 0 alone; and
    for D = 0 it is the forecast itself.

    It says nothing about a training that does not reach a global optimum, which is the
    usual case, and nothing about other samples than the training samples.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T of the training samples, every entry above 0; at least two components.
    scale : float
        beta, above 0.
    alignment_weight : float
        w, above 0.
    kl_weight : float
        Weight of the KL term, at least 0.
    reconstruction_gain : float
        D, at least 0: the most by which the mean reconstruction loss of any encoder
        and decoder of the model can be below that of the best decoder that ignores
        the code, nats a sample. The encoder is taken to be able to produce the
        forecast codes, with standard deviation 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to p; uniform when None.

    Returns
    -------
    float
        Nats, at most the forecast margin; may be negative, and then says nothing.

    Raises
    ------
    ValueError
        If the posteriors, a weight, `scale` or `reconstruction_gain` are not valid.

    References
    ----------
    Theory section 9.

    Examples
    --------
    >>> from skvaecert.forecast import guaranteed_margin
    >>> teacher_proba = [[0.9, 0.1], [0.1, 0.9]]
    >>> gains = (0.0, 1.0, 100.0)
    >>> [round(guaranteed_margin(teacher_proba, 1.0, 10, 1, g), 2) for g in gains]
    [0.36, 0.23, -9.68]
    """
    _check_finite("alignment_weight", alignment_weight, above=True)
    _check_finite("kl_weight", kl_weight)
    _check_finite("reconstruction_gain", reconstruction_gain)
    problem = _problem(teacher_proba, scale, sample_weight)
    ratio = float(alignment_weight) / kl_weight if kl_weight > 0 else np.inf
    gain = float(reconstruction_gain) / alignment_weight
    information = teacher_information(problem.proba, problem.weight)
    return information - _worst_loss(problem, ratio, gain)


def _problem(
    teacher_proba: ArrayLike, scale: float, sample_weight: ArrayLike | None
) -> _Problem:
    _check_finite("scale", scale, above=True)
    proba = check_teacher_proba(teacher_proba)
    n_components = proba.shape[1]
    if n_components == 1:
        raise ValueError("teacher_proba must have at least two components, got 1.")
    weight = check_sample_weight(sample_weight, len(proba))
    return _Problem(proba, weight, (n_components - 1) / (n_components * scale**2))


def _check_finite(name: str, value: float, *, above: bool = False) -> None:
    if not 0 <= value < np.inf or (above and value == 0):
        bound = "above 0" if above else "at least 0"
        raise ValueError(f"{name} must be finite and {bound}, got {value}.")


def _check_ratio(ratio: ArrayLike) -> Floats:
    ratios = np.asarray(ratio, dtype=np.float64)
    wrong = ratios[~(ratios >= 0)]
    if wrong.size:
        raise ValueError(
            "ratio must be at least 0 (alignment_weight / kl_weight; infinity is "
            f"allowed), got {wrong[0]}."
        )
    return ratios


def _minima(problem: _Problem, ratios: Floats) -> tuple[Floats, Floats]:
    """Return alignment loss and energy of the best code, for each ratio."""
    losses, energies = np.zeros((2, len(ratios)))
    order = np.argsort(ratios)
    n_samples, n_components = problem.proba.shape
    size = max(1, _CHUNK_VALUES // n_components)
    for start in range(0, n_samples, size):
        chunk = slice(start, start + size)
        proba, weight = problem.proba[chunk], problem.weight[chunk]
        log_proba = np.log(proba)
        mean_log_q = np.full(len(proba), -np.log(n_components))
        for place in order:
            # A Python float, which overflows without a warning.
            rho = float(ratios[place]) / problem.stiffness
            logits = _best_logits(proba, rho, mean_log_q)
            log_q = log_softmax(logits, axis=1)
            # It falls with the ratio: the next Newton iteration begins on the right.
            mean_log_q = log_q.mean(axis=1)
            losses[place] += weight @ (proba * (log_proba - log_q)).sum(axis=1)
            energies[place] += weight @ (logits**2).sum(axis=1)
    # A loss is 0 or more; rounding alone can bring it below.
    return np.maximum(losses, 0), problem.stiffness / 2 * energies


def _minimum(problem: _Problem, ratio: float) -> tuple[float, float]:
    losses, energies = _minima(problem, np.array([ratio]))
    return float(losses[0]), float(energies[0])


def _best_logits(proba: Floats, rho: float, mean_log_q: Floats) -> Floats:
    """Solve u = rho (T - softmax(u)) for each sample, starting from `mean_log_q`.

    With omega_k = omega(rho T_k + L) the logits are log(omega_k) - L, and L is the root
    of -sum_k u_k, which is convex and increases: from the right Newton's method
    descends to it. In this form nothing cancels, however large rho.
    """
    if rho <= _FIRST_ORDER:
        return np.asarray(rho * (proba - 1 / proba.shape[1]))
    if np.isinf(rho):
        return centered_log_ratio(proba)
    pull = rho * proba
    shift = np.log(rho) + mean_log_q[:, np.newaxis]
    for _ in range(_MAX_STEPS):
        omega = wrightomega(pull + shift)
        slope = omega / (1 + omega)
        # Equal on paper, as log(omega) = rho T + L - omega; each where it is exact.
        logits = np.where(omega < 1, pull - omega, np.log(omega) - shift)
        step = logits.sum(axis=1, keepdims=True) / slope.sum(axis=1, keepdims=True)
        shift = shift + step
        if np.abs(step).max() <= _LAST_STEP:
            break
    return np.asarray(logits - slope * step)


def _worst_loss(problem: _Problem, ratio: float, gain: float) -> float:
    """Return the greatest A with A + E / r <= A(r) + E(r) / r + gain, for any code."""
    loss, energy = _minimum(problem, ratio)
    most = loss + energy / ratio + gain
    at_zero, _ = _minimum(problem, 0.0)
    if np.isinf(ratio) or most >= at_zero:
        return most  # energy costs nothing, or none is needed

    def excess(smaller: float) -> float:
        loss, energy = _minimum(problem, smaller)
        return loss + energy / ratio - most

    # No code of this loss has less energy than those of a smaller ratio.
    if excess(ratio) >= 0:
        return loss
    low = (at_zero - most) / _force_square(problem)
    return _minimum(problem, _root(excess, low / 2, ratio))[0]


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Find a root on a logarithmic scale."""
    ends = np.log(low), np.log(high)
    found = brentq(lambda x: decreasing(float(np.exp(x))), *ends, xtol=_ROOT_TOLERANCE)
    return float(np.exp(found))


def _force_square(problem: _Problem) -> float:
    """Mean square of the escape force at 0, by which A falls at most as r grows."""
    away = problem.proba - 1 / problem.proba.shape[1]
    return float(problem.weight @ (away**2).sum(axis=1)) / problem.stiffness


def _analytic_energy(problem: _Problem) -> float:
    odds_energy = log_odds_energy(problem.proba, problem.weight)
    return problem.stiffness / 2 * odds_energy
