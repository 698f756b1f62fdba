"""Forecasts before training (theory sections 9 and 18).

The forecast of the margin ignores the reconstruction loss and assumes that the encoder
can produce any code. The rest of the loss is strictly convex in each code and depends
on a single number, the ratio r = alignment_weight / kl_weight.

The forecast of collapse without alignment is that of a linear VAE, whose optimum has a
closed form in the eigenvalues of the covariance of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh
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
    "LinearForecast",
    "collapse_threshold",
    "forecast_margin",
    "guaranteed_margin",
    "linear_information",
    "ratio_for_margin",
]

# Number of values in a chunk of posteriors: few enough to stay in the cache.
_CHUNK_VALUES = 2**16
# For a smaller rho, the first order in rho is exact in float64.
_FIRST_ORDER = 1e-17
# Newton's method squares its error, so after a step this small only rounding is left.
_LAST_STEP = 1e-8
# At most 7 steps were needed, for rho from 1e-12 to 1e12 and values down to 1e-300.
_MAX_STEPS = 50
_ROOT_TOLERANCE = 1e-12
# Less information than this, in nats, may be due to rounding.
_NO_INFORMATION = 1e-9
# These range from no margin to nearly the analytic code, for scales near 1.
_RATIOS = np.geomspace(1e-2, 1e4, 37)
# Number of values in a chunk of data: enough for fast matrix products.
_DATA_VALUES = 2**22
# Squares of larger values overflow.
_LARGEST = 1e150
# How far rounding may push intensities out of [0, 1].
_RANGE_SLACK = 1e-6


class Forecast(NamedTuple):
    """Margin and energy of the best unconstrained code.

    Attributes
    ----------
    margin : float or ndarray
        G, nats, at most the teacher information.
    energy : float or ndarray
        Mean of ``|z|**2 / 2``, nats per sample, at least 0: the part of the KL term
        that is due to the latent means.
    """

    margin: float | Floats
    energy: float | Floats


@dataclass(frozen=True, eq=False)
class ForecastCurve:
    """Forecast over a range of ratios, and at the weights of a VAE.

    `collapse_threshold` and `linear_information` are those of a linear VAE without
    alignment. Nonlinear networks may keep more or less information.

    Attributes
    ----------
    ratio : ndarray of shape (n_ratios,)
        alignment_weight / kl_weight.
    margin : ndarray of shape (n_ratios,)
        Forecast margin, nats.
    energy : ndarray of shape (n_ratios,)
        Forecast energy, nats per sample.
    teacher_information : float
        I_T, nats: the limit of the margin for large ratios.
    operating_ratio : float
        The ratio of the VAE's weights. It is infinite for ``kl_weight=0``, and NaN if
        both weights are 0. With ``alignment_weight="auto"`` it is the ratio at which
        the forecast reaches `target_margin`.
    operating_margin : float
        Forecast margin at `operating_ratio`, nats.
    operating_energy : float
        Forecast energy at `operating_ratio`, nats per sample.
    target_margin : float or None
        Relative margin at `operating_ratio`; None for a fixed weight.
    kl_weight : float
        Weight of the KL term of the VAE.
    collapse_threshold : float
        Least `kl_weight` at which collapse is an optimum without alignment, for these
        samples and this likelihood, from :func:`collapse_threshold`.
    linear_information : float or None
        Information, in nats per sample, that survives `kl_weight` without alignment,
        from :func:`linear_information`. It is infinite for ``kl_weight=0``, and None
        for the Bernoulli likelihood, which has no closed form.

    See Also
    --------
    CertifiedVAE.forecast : Compute the forecast of a VAE.
    """

    ratio: Floats
    margin: Floats
    energy: Floats
    teacher_information: float
    operating_ratio: float
    operating_margin: float
    operating_energy: float
    target_margin: float | None
    kl_weight: float
    collapse_threshold: float
    linear_information: float | None


@dataclass(frozen=True, eq=False)
class LinearForecast:
    """Information at the optimum of a linear VAE, for one or several kl_weights.

    Directions are the principal components of the data, largest variance first. The
    leading dimensions of all arrays are those of `kl_weight`.

    Attributes
    ----------
    information : float or ndarray
        I, nats per sample: the sum of `per_direction`.
    per_direction : ndarray of shape (..., n_directions)
        Information in each direction, nats per sample; 0 if the direction has
        collapsed. There are min(latent_dim, n_features) directions.
    noise_variance : float or ndarray
        v, the learned variance of the Gaussian likelihood, in squared units of the
        data.
    n_surviving : int or ndarray of int
        Number of directions that have not collapsed.
    thresholds : ndarray of shape (n_directions,)
        Least kl_weight at which each direction collapses. The first is equal to
        :func:`collapse_threshold`.
    """

    information: float | Floats
    per_direction: Floats
    noise_variance: float | Floats
    n_surviving: int | NDArray[np.intp]
    thresholds: Floats


class _Problem(NamedTuple):
    """Minimize r A + energy, with energy = stiffness / 2 |u|^2 of the logits u."""

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
    r"""Margin and energy of the code that minimizes r A + sum_i p_i ||z_i||^2 / 2.

    The logits u = beta S z of each sample solve u = rho (T - softmax(u)), where
    rho = r beta^2 K / (K - 1). They are computed to within rounding, for any r. The
    margin increases with r, from -KL(mean T || uniform) at 0 to the teacher
    information.

    This is a forecast of the margin after training and not a bound. Reconstruction may
    keep codes apart that alignment alone would not keep apart, and it may also compete
    with alignment for the code.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1, at least
        two components.
    scale : float
        beta, above 0.
    ratio : float or array-like
        r = alignment_weight / kl_weight, at least 0. Infinity gives the analytic code.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    Forecast
        ``(margin, energy)``: floats if `ratio` is a number, otherwise arrays of its
        shape.

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

    This is the r of :func:`forecast_margin` with G(r) = m I_T. So r * kl_weight is a
    first choice of the alignment weight. The root is searched between two bounds,
    m I_T / f^2 <= r <= energy of the analytic code / ((1 - m) I_T), where f^2 is the
    mean square of the escape force at the code 0.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1, at least
        two components.
    scale : float
        beta, above 0.
    relative_margin : float
        m, the margin as a share of the teacher information, in (0, 1).
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

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
            "relative_margin must be above 0 and below 1, got "
            f"{relative_margin}. It is a share of the teacher information, all of "
            "which no finite ratio reaches."
        )
    problem = _problem(teacher_proba, scale, sample_weight)
    information = teacher_information(problem.proba, problem.weight)
    if information < _NO_INFORMATION:
        raise ValueError(
            "teacher_proba must differ between samples, got a teacher information of "
            f"{information:.3g} nats. No margin can be reached. Use another teacher."
        )
    loss = (1 - relative_margin) * information
    # The bounds on r of theory section 9 (ratio for a margin).
    low = relative_margin * information / _force_square(problem)
    high = _analytic_energy(problem) / loss

    def excess(ratio: float) -> float:
        return _minimum(problem, ratio)[0] - loss

    # The bounds are widened, so that rounding does not put the root outside of them.
    return _root(excess, low / 2, 2 * high)


def forecast_curve(
    X: ArrayLike,
    teacher_proba: Floats,
    scale: float,
    alignment_weight: float | str,
    kl_weight: float,
    *,
    likelihood: Literal["gaussian", "bernoulli"],
    latent_dim: int,
    target_margin: float | None = None,
    ratio: ArrayLike | None = None,
) -> ForecastCurve:
    """Forecast over a range of ratios and at the weights of a VAE.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The training samples, as in :func:`collapse_threshold`.
    teacher_proba : ndarray of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1, at least
        two components.
    scale : float
        beta, above 0.
    alignment_weight : float or str
        Weight of the alignment loss. It is not used if there is a `target_margin`.
    kl_weight : float
        Weight of the KL term.
    likelihood : {"gaussian", "bernoulli"}
        The likelihood of the decoder. The variance of the Gaussian is learned.
    latent_dim : int
        Number of latent dimensions.
    target_margin : float or None, default=None
        Share of the teacher information at which a guard keeps the margin; None for a
        fixed weight.
    ratio : float or array-like of shape (n_ratios,), default=None
        alignment_weight / kl_weight, at least 0. If None, 37 values from 0.01 to
        10,000.

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
        # If both weights are 0, all codes are equally good, and there is no forecast.
        operating = np.inf if float(alignment_weight) > 0 else np.nan
    point = Forecast(np.nan, np.nan)
    if not np.isnan(operating):
        point = forecast_margin(teacher_proba, scale, operating)
    threshold, information = _without_alignment(X, kl_weight, likelihood, latent_dim)
    return ForecastCurve(
        ratio=ratios,
        margin=np.asarray(margins),
        energy=np.asarray(energies),
        teacher_information=teacher_information(teacher_proba),
        operating_ratio=operating,
        operating_margin=float(point.margin),
        operating_energy=float(point.energy),
        target_margin=target_margin,
        kl_weight=kl_weight,
        collapse_threshold=threshold,
        linear_information=information,
    )


def _without_alignment(
    X: ArrayLike,
    kl_weight: float,
    likelihood: Literal["gaussian", "bernoulli"],
    latent_dim: int,
) -> tuple[float, float | None]:
    """Return the collapse threshold and, if it has a closed form, the information."""
    if likelihood == "bernoulli":
        return collapse_threshold(X, likelihood=likelihood), None
    # The weight 0 has no forecast, but the thresholds are the same for any weight.
    forecast = linear_information(X, kl_weight or 1.0, latent_dim)
    information = float(forecast.information) if kl_weight else np.inf
    return float(forecast.thresholds[0]), information


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

    Let w = alignment_weight, r = w / kl_weight and D = reconstruction_gain, and let
    A(r) and E(r) be the alignment loss and the energy of :func:`forecast_margin`. Every
    global optimum has::

        A* + E* / r <= A(r) + E(r) / r + D / w

    The function returns I_T - A* for the greatest A* that this allows. The result is at
    least I_T - A(r) - (E(r) + D / kl_weight) / r, which follows from E* >= 0 alone. For
    D = 0 it is equal to the forecast.

    The result does not apply if training does not reach a global optimum, which is the
    usual case. It applies to the training samples only.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T of the training samples: every value above 0, at least two components.
    scale : float
        beta, above 0.
    alignment_weight : float
        w, above 0.
    kl_weight : float
        Weight of the KL term, at least 0.
    reconstruction_gain : float
        D, at least 0, nats per sample. For any encoder and decoder of the model, the
        mean reconstruction loss is at most D below that of the best decoder that
        ignores the code. The encoder is assumed to be able to produce the forecast
        codes, with standard deviation 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, at most the forecast margin. If it is negative, it guarantees nothing.

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


def collapse_threshold(
    X: ArrayLike,
    *,
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
    noise_variance: float | None = None,
    latent_dim: int | None = None,
    reduction: Literal["sum", "mean"] = "sum",
) -> float:
    r"""Least kl_weight at which collapse is an optimum of a VAE without alignment.

    Let beta be the kl_weight, lambda_j the eigenvalues of the covariance Sigma of `X`,
    largest first, D the number of features, p their means and V = diag p_f (1 - p_f).
    The threshold beta* is::

        Gaussian, learned variance    beta* = D lambda_1 / sum_j lambda_j
        Gaussian, fixed variance v    beta* = lambda_1 / v
        Bernoulli                     beta* = lambda_max(V^-1/2 Sigma V^-1/2)

    *Gaussian.* Minimized over its code, the loss of a linear VAE is that of
    probabilistic PCA with noise beta v. Direction j reduces the loss if and only if
    lambda_j > beta v. So all directions collapse if and only if beta v >= lambda_1. A
    collapsed VAE learns v = sum_j lambda_j / D. There is no other optimum, because the
    loss, minimized over everything but v, is convex in log v.

    *Bernoulli.* Near the collapsed point, a decoder with logits U z and an encoder E x
    change the loss by tr(U' V U) / 2 + beta tr(E Sigma E') / 2 - tr(U E Sigma). This
    can be negative if and only if beta V - Sigma has a negative eigenvalue.

    Nonlinear networks have the same loss to second order. So below beta*, collapse is
    not an optimum if the network can represent a small linear code. Above beta*,
    collapse is a local optimum, but a nonlinear decoder may have a better one: it can
    tell a rare, distant cluster from the rest.

    The latent dimension does not matter, because one dimension is enough for the first
    direction.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The training samples: finite values, at least two samples that differ. A memory
        map of any numeric type is possible, because `X` is read once, in chunks. For
        "bernoulli", values must be in [0, 1]. Bytes up to 255 are divided by 255, as in
        :class:`skvaecert.CertifiedVAE`. Constant features count in D.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        The likelihood of the decoder.
    noise_variance : float or None, default=None
        v, in squared units of `X`, above 0; None if it is learned. It is used for the
        Gaussian likelihood only. A sum of squared errors without a factor has v = 1/2.
    latent_dim : int or None, default=None
        Number of latent dimensions, at least 1. It does not change the threshold.
    reduction : {"sum", "mean"}, default="sum"
        Whether the loss sums the reconstruction over features or averages it. The
        average multiplies the effective kl_weight by D, so beta* is divided by D. With
        learned variance it is then at most 1.

    Returns
    -------
    float
        beta*, above 0. Below it, collapse is not an optimum. At and above it, collapse
        is a local optimum, and the only optimum of a linear Gaussian VAE.

    Raises
    ------
    ValueError
        If a parameter is not valid, or `X` does not vary.

    See Also
    --------
    linear_information : The information that survives below the threshold.

    References
    ----------
    Theory section 18; arXiv:1911.02469 (Lucas et al. 2019, the linear VAE as
    probabilistic PCA); arXiv:2205.04009 (Wang and Ziyin 2022, a threshold for linear
    decoders); arXiv:2309.07663 (a threshold from which collapse is inevitable);
    arXiv:2510.01621 (a phase transition, decoder variance against lambda_1).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvaecert.forecast import collapse_threshold
    >>> X = load_digits().data / 16
    >>> round(collapse_threshold(X), 2)
    9.53
    >>> round(collapse_threshold(X, likelihood="bernoulli"), 2)
    3.35
    >>> round(collapse_threshold(X, reduction="mean"), 2)
    0.15
    """
    _check_option("likelihood", likelihood, ("gaussian", "bernoulli"))
    _check_option("reduction", reduction, ("sum", "mean"))
    _check_noise_variance(noise_variance, likelihood)
    _check_latent_dim(latent_dim)
    spectrum = _spectrum(X, bernoulli=likelihood == "bernoulli")
    if likelihood == "bernoulli":
        threshold = spectrum[0]
    elif noise_variance is not None:
        threshold = spectrum[0] / noise_variance
    else:
        threshold = _thresholds(spectrum)[0]
    return float(threshold / len(spectrum) if reduction == "mean" else threshold)


def linear_information(
    X: ArrayLike, kl_weight: ArrayLike, latent_dim: int | None = None
) -> LinearForecast:
    r"""Information that survives a kl_weight in a linear VAE, before training.

    This is for the Gaussian likelihood with learned variance v, summed over D features.
    Let beta be the kl_weight, lambda_j the eigenvalues of the covariance of `X`,
    largest first, and d the latent dimension. Then::

        I(beta) = sum_{j <= d} 1/2 log+(lambda_j / (beta v))
        v       = (1/D) [sum_{j <= d} min(lambda_j, beta v) + sum_{j > d} lambda_j]

    Direction k <= d survives if and only if beta < beta_k. If the first k directions
    survive, the second equation is linear in v::

        beta_k = D lambda_k / (k lambda_k + sum_{j > k} lambda_j)
        beta v = sum_{j > k} lambda_j / (D / beta - k)

    This is the global optimum, because the loss, minimized over everything but v, is
    convex in log v. If `X` has rank at most d and beta < D / rank, the loss has no
    minimum: v is 0 and I is infinite. At beta = D / rank many v are optimal, and the
    largest is returned.

    For any distribution of `X`, I is the mean KL term at the optimum. It is the mutual
    information of input and drawn code if `X` is normal, and otherwise an upper bound
    on it.

    For a nonlinear VAE, I is a forecast and not a bound. Below beta_1 such a VAE may
    keep several times as much, or less. Above beta_1, it keeps some information of some
    data sets.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The training samples: finite values, at least two samples that differ. A memory
        map of any numeric type is possible, because `X` is read once, in chunks. All
        eigenvalues of a matrix with min(n_samples, n_features) rows are computed.
    kl_weight : float or array-like
        beta, above 0. If the loss averages the reconstruction over features, pass
        D * kl_weight.
    latent_dim : int or None, default=None
        d, at least 1; the number of features when None.

    Returns
    -------
    LinearForecast
        Information, variance and number of surviving directions for each `kl_weight`.

    Raises
    ------
    ValueError
        If a parameter is not valid, or `X` does not vary.

    See Also
    --------
    collapse_threshold : The `kl_weight` at and above which nothing survives.

    References
    ----------
    Theory section 18; arXiv:1911.02469 (Lucas et al. 2019, the linear VAE as
    probabilistic PCA); arXiv:2605.22691 (directions pruned one after another).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvaecert.forecast import linear_information
    >>> X = load_digits().data / 16
    >>> forecast = linear_information(X, [4, 7, 8.5, 10], latent_dim=16)
    >>> forecast.information.round(2)
    array([2.48, 0.48, 0.1 , 0.  ])
    >>> forecast.n_surviving
    array([7, 3, 2, 0])
    >>> forecast.thresholds[:4].round(1)
    array([9.5, 8.8, 7.9, 6.3])
    """
    weights = _check_kl_weight(kl_weight)
    _check_latent_dim(latent_dim)
    spectrum = _spectrum(X)
    n_features = len(spectrum)
    thresholds = _thresholds(spectrum)[:latent_dim]
    alive = weights[..., np.newaxis] < thresholds
    n_surviving = alive.sum(axis=-1)
    level = _noise_level(spectrum, n_features / weights, n_surviving)
    # Without noise this is the logarithm of infinity, or 0 / 0 in dead directions.
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(spectrum[: len(thresholds)] / level[..., np.newaxis]) / 2
    per_direction = np.where(alive, gain, 0.0)
    information, noise_variance = per_direction.sum(axis=-1), level / weights
    if weights.ndim:
        found = information, per_direction, noise_variance, n_surviving
        return LinearForecast(*found, thresholds)
    return LinearForecast(
        float(information),
        per_direction,
        float(noise_variance),
        int(n_surviving),
        thresholds,
    )


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
    # Ratios in ascending order, so that each solution is a start for the next.
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
            # Python floats overflow to infinity without a warning, NumPy's warn.
            rho = float(ratios[place]) / problem.stiffness
            logits = _best_logits(proba, rho, mean_log_q)
            log_q = log_softmax(logits, axis=1)
            # The mean decreases with the ratio. So the next iteration starts to the
            # right of its root, where Newton's method converges.
            mean_log_q = log_q.mean(axis=1)
            losses[place] += weight @ (proba * (log_proba - log_q)).sum(axis=1)
            energies[place] += weight @ (logits**2).sum(axis=1)
    # The exact loss is at least 0, but rounding can make it slightly negative.
    return np.maximum(losses, 0), problem.stiffness / 2 * energies


def _minimum(problem: _Problem, ratio: float) -> tuple[float, float]:
    losses, energies = _minima(problem, np.array([ratio]))
    return float(losses[0]), float(energies[0])


def _best_logits(proba: Floats, rho: float, mean_log_q: Floats) -> Floats:
    """Solve u = rho (T - softmax(u)) for each sample, starting from `mean_log_q`.

    With Wright's omega function, omega_k = omega(rho T_k + L), the logits are
    log(omega_k) - L. L is the root of -sum_k u_k, which is convex and increasing, so
    Newton's method converges from the right. In this form nothing cancels for any rho.
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
        # Both are equal, because log(omega) = rho T + L - omega. Each is used where it
        # does not cancel.
        logits = np.where(omega < 1, pull - omega, np.log(omega) - shift)
        step = logits.sum(axis=1, keepdims=True) / slope.sum(axis=1, keepdims=True)
        shift = shift + step
        if np.abs(step).max() <= _LAST_STEP:
            break
    # The logits of the last shift, to first order in the last step.
    return np.asarray(logits - slope * step)


def _worst_loss(problem: _Problem, ratio: float, gain: float) -> float:
    """Return the greatest A with A + E / r <= A(r) + E(r) / r + gain, for any code."""
    loss, energy = _minimum(problem, ratio)
    most = loss + energy / ratio + gain
    at_zero, _ = _minimum(problem, 0.0)
    if np.isinf(ratio) or most >= at_zero:
        return most  # energy costs nothing, or a code without energy is allowed

    def excess(smaller: float) -> float:
        loss, energy = _minimum(problem, smaller)
        return loss + energy / ratio - most

    # For a given alignment loss, the code of least energy is the forecast code of some
    # ratio. So the greatest loss is that of a ratio below r.
    if excess(ratio) >= 0:
        return loss
    # A(r) >= A(0) - r f^2, so the root is not below this (theory section 9).
    low = (at_zero - most) / _force_square(problem)
    return _minimum(problem, _root(excess, low / 2, ratio))[0]


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Find a root on a logarithmic scale."""
    ends = np.log(low), np.log(high)
    found = brentq(lambda x: decreasing(float(np.exp(x))), *ends, xtol=_ROOT_TOLERANCE)
    return float(np.exp(found))


def _force_square(problem: _Problem) -> float:
    """Return the mean square escape force at 0: A decreases in r at most this fast."""
    away = problem.proba - 1 / problem.proba.shape[1]
    return float(problem.weight @ (away**2).sum(axis=1)) / problem.stiffness


def _analytic_energy(problem: _Problem) -> float:
    odds_energy = log_odds_energy(problem.proba, problem.weight)
    return problem.stiffness / 2 * odds_energy


# The linear VAE.


def _thresholds(spectrum: Floats) -> Floats:
    """Return the kl_weight at which each direction collapses; 0 without variance."""
    rest = np.full_like(spectrum, np.inf)
    np.divide(_tails(spectrum)[1:], spectrum, out=rest, where=spectrum > 0)
    # D / (k + sum_{j > k} lambda_j / lambda_k), the beta_k of theory section 18.
    return np.asarray(len(spectrum) / (np.arange(1, len(spectrum) + 1) + rest))


def _noise_level(
    spectrum: Floats, share: Floats, n_surviving: NDArray[np.intp]
) -> Floats:
    """Return beta v, with share = D / beta and the number of surviving directions."""
    dead = _tails(spectrum)[n_surviving]
    weakest = np.concatenate([[np.inf], spectrum])[n_surviving]
    # The level is below the variance of the weakest survivor. This limit ensures it if
    # rounding makes the difference 0.
    least = np.maximum(dead / weakest, np.finfo(np.float64).tiny)
    return np.asarray(dead / np.maximum(share - n_surviving, least))


def _tails(spectrum: Floats) -> Floats:
    """Return sum_{j > k} lambda_j for k = 0, ..., D."""
    return np.concatenate([spectrum[::-1].cumsum()[::-1], [0.0]])


def _spectrum(X: ArrayLike, *, bernoulli: bool = False) -> Floats:
    """Return the eigenvalues of Sigma or V^-1/2 Sigma V^-1/2, largest first."""
    samples = _check_data(X)
    n_samples, n_features = samples.shape
    white = _white_intensity(samples) if bernoulli else None
    moments = _gram if n_samples < n_features else _covariance
    found = eigvalsh(moments(samples, white))[::-1]
    # Eigenvalues that are 0 but for rounding.
    found[found <= max(samples.shape) * np.finfo(np.float64).eps * found[0]] = 0
    if not found[0] > 0:
        raise ValueError(
            "X must vary, got the same values in all samples. Constant data cannot be "
            "encoded. Pass the training samples."
        )
    return np.pad(found, (0, n_features - len(found)))


def _covariance(samples: Any, white: float | None) -> Floats:
    """Return the covariance, whitened if `white` is given, from chunks of samples."""
    n_samples, n_features = samples.shape
    origin = _values(samples[:1], white)[0]
    mean, scatter, n_seen = np.zeros(n_features), 0.0, 0
    for chunk in _chunks(n_samples, n_features):
        # Differences from the first sample avoid the cancellation of a large offset,
        # and are exactly 0 for constant features.
        values = _values(samples[chunk], white) - origin
        center, n_seen = values.mean(axis=0), n_seen + len(values)
        share = len(values) / n_seen
        step = np.sqrt(len(values) * (1 - share)) * (center - mean)
        # The row `step` adds the product of the difference between both means.
        values = np.vstack([values - center, step])
        scatter = scatter + values.T @ values
        mean += share * (center - mean)
    # Whitened last, because V needs the mean of all samples.
    scale = _whitening(origin + mean, white)
    return np.asarray(scatter / n_samples * scale * scale[:, np.newaxis])


def _gram(samples: Any, white: float | None) -> Floats:
    """Return the products of centered samples, which have the same eigenvalues."""
    samples = np.asarray(samples)
    n_samples, n_features = samples.shape
    gram = np.zeros((n_samples, n_samples))
    for chunk in _chunks(n_features, n_samples):
        values = _values(samples[:, chunk], white)
        origin = values[0].copy()
        values -= origin
        center = values.mean(axis=0)
        values = (values - center) * _whitening(origin + center, white)
        gram += values @ values.T
    return np.asarray(gram / n_samples)


def _whitening(mean: Floats, white: float | None) -> Floats:
    """Return the diagonal of V^-1/2, 0 for features that are all 0 or all 1."""
    scale = np.ones_like(mean)
    if white is not None:
        variance = mean * (1 - mean)
        np.divide(1, np.sqrt(variance), out=scale, where=variance > 0)
        scale[variance <= 0] = 0
    return scale


def _white_intensity(samples: Any) -> float:
    """Return the value that stands for 1: 255 for bytes that are not zeros and ones."""
    chunks = _chunks(*samples.shape)
    first = np.asarray(samples[:1])
    is_bytes = first.dtype == np.uint8
    bright = is_bytes and any(np.asarray(samples[c]).max() > 1 for c in chunks)
    return 255.0 if bright else 1.0


def _values(chunk: Any, white: float | None) -> Floats:
    """Return a new float64 array of checked values, in [0, 1] if `white` is given."""
    given = np.asarray(chunk)
    if given.dtype.kind not in "biuf":
        raise ValueError(
            f"X must hold real numbers, got dtype {given.dtype}. Encode categories as "
            "numbers, and make sparse data dense."
        )
    values = given.astype(np.float64)
    low, high = values.min(), values.max()
    if not -_LARGEST < low <= high < _LARGEST:
        raise ValueError(
            f"X must be finite, with magnitudes below {_LARGEST:g}, got values from "
            f"{low:.6g} to {high:.6g}. Impute or drop missing values, or rescale X."
        )
    if white is None:
        return values
    if not -_RANGE_SLACK <= low / white <= high / white <= 1 + _RANGE_SLACK:
        raise ValueError(
            "X must lie in [0, 1] for likelihood='bernoulli', got values from "
            f"{low / white:.6g} to {high / white:.6g}. Scale X, or use "
            "likelihood='gaussian'."
        )
    return np.clip(values / white, 0, 1)


def _chunks(n_items: int, n_values: int) -> Iterator[slice]:
    size = max(1, _DATA_VALUES // n_values)
    return (slice(start, start + size) for start in range(0, n_items, size))


def _check_data(X: Any) -> Any:
    if isinstance(X, np.ma.MaskedArray):
        raise ValueError(
            "X must not be masked, got a masked array. Impute the missing values, or "
            "drop these samples."
        )
    # Arrays on disk must not be read as a whole here.
    samples = X if hasattr(X, "shape") else np.asarray(X)
    if len(samples.shape) != 2 or samples.shape[0] < 2 or samples.shape[1] < 1:
        raise ValueError(
            "X must have shape (n_samples, n_features), with at least 2 samples and 1 "
            f"feature, got shape {tuple(samples.shape)}. Flatten images."
        )
    return samples


def _check_option(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def _check_noise_variance(noise_variance: Any, likelihood: str) -> None:
    if noise_variance is None:
        return
    if likelihood != "gaussian":
        raise ValueError(
            "noise_variance must be None unless likelihood='gaussian', got "
            f"{noise_variance!r} for likelihood={likelihood!r}."
        )
    if not isinstance(noise_variance, Real) or not 0 < float(noise_variance) < np.inf:
        raise ValueError(
            "noise_variance must be a number, finite and above 0, got "
            f"{noise_variance!r}. Use None if the decoder learns it."
        )


def _check_latent_dim(latent_dim: Any) -> None:
    if latent_dim is None:
        return
    if not isinstance(latent_dim, Integral) or latent_dim < 1:
        raise ValueError(
            f"latent_dim must be an int of at least 1, or None, got {latent_dim!r}."
        )


def _check_kl_weight(kl_weight: ArrayLike) -> Floats:
    weights = np.asarray(kl_weight)
    if weights.dtype.kind not in "iuf":
        raise ValueError(f"kl_weight must be a number or an array, got {kl_weight!r}.")
    wrong = weights[~((weights > 0) & (weights < np.inf))]
    if wrong.size:
        raise ValueError(
            f"kl_weight must be finite and above 0, got {wrong[0]}. Without a KL term, "
            "the information is infinite."
        )
    return weights.astype(np.float64)
