"""The witness's geometry: a fixed simplex in latent space (theory sections 1 and 3).

All functions take NumPy arrays and compute in float64. K is the number of teacher
components and d the number of latent dimensions, d >= K - 1.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import helmert
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

__all__ = [
    "analytic_code",
    "analytic_energy",
    "budget_temperature",
    "centered_log_ratio",
    "check_sample_weight",
    "check_teacher_proba",
    "log_odds_energy",
    "prior_matched_scale",
    "simplex_vertices",
    "temper",
    "witness_log_proba",
]

Floats = NDArray[np.float64]

# In float32, posteriors over hundreds of components sum to 1 within about 1e-5.
_SUM_TOLERANCE = 1e-4
# Smaller values lose digits as subnormal numbers, or are 0 after normalization.
_SMALLEST_PROBA = 1e-300
# Squares of larger values overflow.
_LARGEST_CODE = 1e150
# Share of the energy budget that is left unused, for rounding.
_RESERVE = 1e-9
# The computed energy of uniform posteriors, which is exactly 0, is below this.
_ENERGY_ROUNDING = 1e-25
# Factor between the temperatures that are tried: 19 %.
_STEP = 2**0.25
# Scales and temperatures lie between this and its inverse, so that their squares
# neither underflow nor overflow.
_SMALLEST = 1e-150
_REAL = "{} must hold real numbers, integers or floats of 16 bits or more, got"


def check_real(name: str, values: ArrayLike) -> NDArray[Any]:
    """Check that values are integers or floats of 16 bits or more, without a copy.

    A conversion to float64 would drop a mask or an imaginary part, and floats of 8 bits
    would count as more precise than they are.

    Parameters
    ----------
    name : str
        Name of the array in error messages.
    values : array-like
        Values of any shape.

    Returns
    -------
    ndarray
        The values, unchanged.

    Raises
    ------
    ValueError
        If the values are masked, complex, floats of 8 bits or not numeric.

    Examples
    --------
    >>> from skvaecert.simplex import check_real
    >>> check_real("latent_mean", [[1.0], [2.0]])
    array([[1.],
           [2.]])
    """
    try:
        # Unlike asarray, asanyarray keeps masks, which are refused below.
        array = np.asanyarray(values)
        if array.dtype == object:
            array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        given = type(values).__name__
        if hasattr(values, "dtype"):
            given += f" of {values.dtype}"
        raise ValueError(f"{_REAL.format(name)} {given} ({error}).") from error
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            f"{_REAL.format(name)} a masked array. Leave out the masked samples, or "
            "fill their values."
        )
    is_small = array.dtype.kind not in "biu" and array.dtype.itemsize < 2
    if is_small or array.dtype.kind in "cmMSUTV":
        raise ValueError(f"{_REAL.format(name)} {array.dtype}.")
    return array


def check_number(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> float:
    """Check that a number is finite and within its limits.

    Parameters
    ----------
    name : str
        Name of the parameter in error messages.
    value : float
        The number.
    above, least, below : float
        The limits. Only `least` itself is allowed.

    Returns
    -------
    float
        The number.

    Raises
    ------
    ValueError
        If the value is not a real number or not within the limits.

    Examples
    --------
    >>> from skvaecert.simplex import check_number
    >>> check_number("scale", 2, above=0)
    2.0
    """
    try:
        # float() would accept strings and booleans.
        is_other = isinstance(value, str | bytes | bool | np.bool_ | np.complexfloating)
        number = math.nan if is_other else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and above < number < below and number >= least):
        limits = {"above": above, "at least": least, "below": below}
        allowed = [f"{k} {v:g}" for k, v in limits.items() if math.isfinite(v)]
        raise ValueError(
            f"{name} must be a finite number {' and '.join(allowed)}, got {value}."
        )
    return number


def check_scale(scale: float) -> float:
    """Check the scale beta of a witness, whose square must not under- or overflow.

    Parameters
    ----------
    scale : float
        beta, above 1e-150 and below 1e150.

    Returns
    -------
    float
        beta.

    Raises
    ------
    ValueError
        If it is not a number within these limits.
    """
    return check_number("scale", scale, above=_SMALLEST, below=1 / _SMALLEST)


def check_codes(name: str, codes: ArrayLike) -> Floats:
    """Check latent means or standard deviations.

    Parameters
    ----------
    name : str
        Name of the array in error messages.
    codes : array-like of shape (n_samples, latent_dim)
        Finite values of magnitude below 1e150, so that their squares do not overflow.

    Returns
    -------
    ndarray of shape (n_samples, latent_dim)
        The values in float64.

    Raises
    ------
    ValueError
        If the array is not 2-d, is empty, or has a value that is not allowed.
    """
    values = np.asarray(check_real(name, codes), dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"{name} must have shape (n_samples, latent_dim), not empty, got shape "
            f"{values.shape}. Pass a single dimension as {name}[:, numpy.newaxis]."
        )
    largest = np.abs(values).max()
    if not largest < _LARGEST_CODE:
        raise ValueError(
            f"{name} must be finite and below {_LARGEST_CODE:.0e}, got a largest "
            f"magnitude of {largest}. Leave out these samples, or pass finite codes."
        )
    return values


def check_count(name: str, value: int, *, least: int = 1) -> int:
    """Check that a value is an int in a range.

    Parameters
    ----------
    name : str
        Name of the parameter in error messages.
    value : int
        The number.
    least : int, default=1
        The smallest allowed value.

    Returns
    -------
    int
        The number.

    Raises
    ------
    ValueError
        If the value is not an int, or not in [least, 2^31).
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_int and least <= value < 2**31):
        most = " and below 2^31" if is_int and value > least else ""
        raise ValueError(
            f"{name} must be an int of at least {least}{most}, got {value!r}."
        )
    return int(value)


def check_flag(name: str, value: bool) -> bool:
    """Check that a value is True or False.

    Parameters
    ----------
    name : str
        Name of the parameter in error messages.
    value : bool
        The value.

    Returns
    -------
    bool
        The value.

    Raises
    ------
    ValueError
        If it is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_seed(random_state: int | np.random.RandomState | None) -> None:
    """Check a `random_state`.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        An int must be from 0 to 2^32 - 1.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    is_seed = random_state is None or isinstance(random_state, np.random.RandomState)
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        # NumPy's RandomState takes no larger seeds.
        is_seed = 0 <= random_state < 2**32
    if not is_seed:
        raise ValueError(
            "random_state must be None, an int from 0 to 2^32 - 1 or a "
            f"numpy.random.RandomState, got {random_state!r}."
        )


def check_teacher_proba(
    teacher_proba: ArrayLike,
    n_samples: int | None = None,
    *,
    name: str = "teacher_proba",
) -> Floats:
    """Check the teacher's posteriors and divide each row by its sum, in float64.

    A row with the sum 1 + e instead of 1 would shift the margin by up to e.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every value above 0; each row sums to 1.
    n_samples : int, default=None
        Expected number of samples. Any number is allowed when None.
    name : str, default="teacher_proba"
        Name of the array in error messages.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        The posteriors in float64. Each row sums to 1 to within rounding.

    Raises
    ------
    ValueError
        If the array is not 2-d, is empty or does not have `n_samples` rows, if a value
        is not finite and above 0, or if the sum of a row differs from 1 by more than
        1e-4.

    Examples
    --------
    >>> from skvaecert.simplex import check_teacher_proba
    >>> check_teacher_proba([[0.5, 0.5], [0.9, 0.1]])
    array([[0.5, 0.5],
           [0.9, 0.1]])
    """
    proba = np.asarray(check_real(name, teacher_proba), dtype=np.float64)
    sums = check_row_sums(proba, n_samples, name=name)
    return np.asarray(proba / sums[:, None])


def check_row_sums(
    proba: Floats, n_samples: int | None = None, *, name: str = "teacher_proba"
) -> Floats:
    """Check the teacher's posteriors and return the sum of each row.

    Parameters
    ----------
    proba : ndarray of shape (n_samples, n_components)
        As in :func:`check_teacher_proba`, in float64.
    n_samples : int, default=None
        As in :func:`check_teacher_proba`.
    name : str, default="teacher_proba"
        As in :func:`check_teacher_proba`.

    Returns
    -------
    ndarray of shape (n_samples,)
        The sums, within 1e-4 of 1.

    Raises
    ------
    ValueError
        As in :func:`check_teacher_proba`.
    """
    if proba.ndim != 2 or proba.size == 0:
        raise ValueError(
            f"{name} must be an array of shape (n_samples, n_components), not empty, "
            f"got shape {proba.shape}."
        )
    _check_length(name, len(proba), n_samples)
    # A matrix product is faster than a sum over the columns.
    smallest, sums = proba.min(), proba @ np.ones(proba.shape[1])
    if not (smallest > _SMALLEST_PROBA and np.isfinite(sums).all()):
        raise ValueError(
            f"{name} must have finite values above 0 (full support; at least 1e-300), "
            f"got a smallest value of {smallest}. Mix in a floor, for example "
            f"0.99 * {name} + 0.01 / {name}.shape[1]."
        )
    worst = sums[np.abs(sums - 1).argmax()]
    if abs(worst - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"{name} must have rows that sum to 1 (within {_SUM_TOLERANCE:g}), got a "
            f"row that sums to {worst:.6g}."
        )
    return np.asarray(sums)


def check_sample_weight(sample_weight: ArrayLike | None, n_samples: int) -> Floats:
    """Check sample weights and normalize their sum to 1; uniform when None.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,) or None
        Weights, finite and not negative, not all 0.
    n_samples : int
        Number of samples.

    Returns
    -------
    ndarray of shape (n_samples,)
        The weights p_i of theory section 1.

    Raises
    ------
    ValueError
        If the shape is wrong, a weight is negative or not finite, or all are 0.

    Examples
    --------
    >>> from skvaecert.simplex import check_sample_weight
    >>> check_sample_weight([3, 1], 2)
    array([0.75, 0.25])
    """
    weight = check_weight(sample_weight, n_samples)
    total = weight.sum()
    if not 0 < total < np.inf:
        raise ValueError(
            f"sample_weight must be finite and not all 0, got a sum of {total}."
        )
    return np.asarray(weight / total)


def check_weight(sample_weight: ArrayLike | None, n_samples: int) -> Floats:
    """Check the weights of some of the samples; all are 1 when None.

    A weight of at most 2^-52 of the largest does not change a sum and becomes 0.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,) or None
        Weights, finite and not negative. All may be 0.
    n_samples : int
        Number of samples.

    Returns
    -------
    ndarray of shape (n_samples,)
        The weights in float64, not normalized.

    Raises
    ------
    ValueError
        If the shape is wrong, or a weight is negative or not finite.
    """
    if sample_weight is None:
        return np.ones(n_samples)
    weight = np.asarray(check_real("sample_weight", sample_weight), dtype=np.float64)
    if weight.ndim != 1:
        raise ValueError(
            f"sample_weight must have shape (n_samples,), got shape {weight.shape}."
        )
    _check_length("sample_weight", len(weight), n_samples)
    if not (np.isfinite(weight).all() and weight.min(initial=0) >= 0):
        raise ValueError(
            "sample_weight must be finite and not negative, got a smallest weight of "
            f"{weight.min()}."
        )
    # A weight that changes no float64 sum must not decide anything else either.
    return np.where(
        weight > np.finfo(np.float64).eps * weight.max(initial=0), weight, 0.0
    )


def _check_length(name: str, given: int, n_samples: int | None) -> None:
    if n_samples is not None and given != n_samples:
        raise ValueError(
            f"{name} must have one row for each of the {n_samples} samples, got "
            f"{given}."
        )


def simplex_vertices(n_components: int, latent_dim: int) -> Floats:
    """Vertices of a regular simplex: ||s_k|| = 1, s_k . s_j = -1 / (K - 1).

    The vertices sum to 0 and span the first K - 1 latent dimensions, the protected
    subspace. The other dimensions are free.

    Parameters
    ----------
    n_components : int
        K, at least 2.
    latent_dim : int
        d, at least K - 1.

    Returns
    -------
    ndarray of shape (n_components, latent_dim)
        S, one vertex per row.

    Raises
    ------
    ValueError
        If `n_components` is below 2 or `latent_dim` below `n_components` - 1.

    References
    ----------
    Theory section 1; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.simplex import simplex_vertices
    >>> vertices = simplex_vertices(3, 2)
    >>> (vertices @ vertices.T).round(3)
    array([[ 1. , -0.5, -0.5],
           [-0.5,  1. , -0.5],
           [-0.5, -0.5,  1. ]])
    """
    check_count("n_components", n_components, least=2)
    check_count("latent_dim", latent_dim)
    if latent_dim < n_components - 1:
        raise ValueError(
            f"latent_dim must be at least n_components - 1 = {n_components - 1}, so "
            f"that the simplex fits, got {latent_dim}. Increase latent_dim, or use a "
            "teacher with fewer components."
        )
    # Columns of the Helmert matrix are a regular simplex of radius sqrt((K - 1) / K).
    radius = np.sqrt((n_components - 1) / n_components)
    vertices = np.zeros((n_components, latent_dim))
    vertices[:, : n_components - 1] = helmert(n_components).T / radius
    return vertices


def witness_log_proba(
    latent_mean: ArrayLike, vertices: ArrayLike, scale: float
) -> Floats:
    """Log-probabilities of the witness: log softmax(beta S mu).

    The witness has no trained parameters and depends on the latent mean only. So it is
    constant if the mean is constant.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`simplex_vertices`.
    scale : float
        beta, above 1e-150 and below 1e150.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Natural logarithms of probabilities, which sum to 1 in each row.

    References
    ----------
    Theory section 1; arXiv:2605.18224.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.simplex import simplex_vertices, witness_log_proba
    >>> vertices = simplex_vertices(2, 1)
    >>> np.exp(witness_log_proba([[0.0], [1.0]], vertices, 1.0)).round(2)
    array([[0.5 , 0.5 ],
           [0.88, 0.12]])
    """
    mean, simplex = check_code(latent_mean, vertices)
    logits = check_scale(scale) * (mean @ simplex.T)
    return np.asarray(log_softmax(logits, axis=1), dtype=np.float64)


def check_code(latent_mean: ArrayLike, vertices: ArrayLike) -> tuple[Floats, Floats]:
    """Check latent means against the vertices that read them.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        The latent means.
    vertices : array-like of shape (n_components, latent_dim)
        S.

    Returns
    -------
    latent_mean, vertices : ndarray
        Both in float64.

    Raises
    ------
    ValueError
        If an array is not 2-d and finite, or the latent dimensions differ.
    """
    mean = _finite_table("latent_mean", latent_mean)
    simplex = _finite_table("vertices", vertices)
    if simplex.shape[1] != mean.shape[1]:
        raise ValueError(
            f"vertices must have the {mean.shape[1]} columns of latent_mean, got "
            f"{simplex.shape[1]}."
        )
    return mean, simplex


def _finite_table(name: str, values: ArrayLike) -> Floats:
    table = np.asarray(check_real(name, values), dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"{name} must be a 2-d array of finite values, not empty, got shape "
            f"{table.shape}" + (" with NaN or infinity." if table.ndim == 2 else ".")
        )
    return table


def centered_log_ratio(teacher_proba: ArrayLike) -> Floats:
    """Centered log-odds: c_i = log T_i - mean_k log T_ik.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors, every value above 0.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Centered log-odds, which sum to 0 in each row.

    References
    ----------
    Theory section 3.

    Examples
    --------
    >>> from skvaecert.simplex import centered_log_ratio
    >>> centered_log_ratio([[0.5, 0.5], [0.8, 0.2]]).round(3)
    array([[ 0.   ,  0.   ],
           [ 0.693, -0.693]])
    """
    log_proba = np.log(check_teacher_proba(teacher_proba))
    return np.asarray(log_proba - log_proba.mean(axis=1, keepdims=True))


def log_odds_energy(
    teacher_proba: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Log-odds energy of a teacher: E_T = sum_i p_i ||c_i||^2.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors, every value above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        At least 0. It is large for posteriors that are nearly one-hot.

    References
    ----------
    Theory section 3.

    Examples
    --------
    >>> from skvaecert.simplex import log_odds_energy
    >>> round(log_odds_energy([[0.5, 0.5], [0.8, 0.2]]), 4)
    0.4805
    """
    odds = centered_log_ratio(teacher_proba)
    return float(check_sample_weight(sample_weight, len(odds)) @ (odds**2).sum(axis=1))


def prior_matched_scale(
    teacher_proba: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Witness scale at which the analytic code spreads like the prior.

    beta = sqrt(E_T / K). Summed over its K - 1 protected dimensions, the analytic code
    then has mean square K - 1, like N(0, I), and costs (K - 1) / 2 nats of KL.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors, every value above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        beta, at least 0; 0 only if every posterior is uniform.

    References
    ----------
    Theory section 3 (prior-matched scale).

    Examples
    --------
    >>> from skvaecert.simplex import prior_matched_scale
    >>> round(prior_matched_scale([[0.5, 0.5], [0.8, 0.2]]), 4)
    0.4901
    """
    proba = check_teacher_proba(teacher_proba)
    return float(np.sqrt(log_odds_energy(proba, sample_weight) / proba.shape[1]))


def analytic_code(
    teacher_proba: ArrayLike, vertices: ArrayLike, scale: float
) -> Floats:
    """Code whose alignment loss is 0: z*_i = (K - 1) / (K beta) S^T c_i.

    The witness reads exactly the teacher off it: softmax(beta S z*_i) = T_i.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors, every value above 0.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`simplex_vertices`.
    scale : float
        beta, above 1e-150 and below 1e150.

    Returns
    -------
    ndarray of shape (n_samples, latent_dim)
        The codes, 0 outside the protected subspace.

    References
    ----------
    Theory section 3; arXiv:2605.18224.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.simplex import (
    ...     analytic_code, simplex_vertices, witness_log_proba)
    >>> vertices = simplex_vertices(2, 1)
    >>> code = analytic_code([[0.8, 0.2]], vertices, 2.0)
    >>> np.exp(witness_log_proba(code, vertices, 2.0)).round(6)
    array([[0.8, 0.2]])
    """
    odds = centered_log_ratio(teacher_proba)
    n_components, simplex = odds.shape[1], _finite_table("vertices", vertices)
    if len(simplex) != n_components:
        raise ValueError(
            f"vertices must have {n_components} rows, one for each column of "
            f"teacher_proba, got {len(simplex)}."
        )
    scale = check_scale(scale)
    factor = (n_components - 1) / (n_components * scale)
    return np.asarray(factor * (odds @ simplex))


def analytic_energy(
    teacher_proba: ArrayLike, scale: float, sample_weight: ArrayLike | None = None
) -> float:
    """Energy of the analytic code: (K - 1) / (2 K beta^2) E_T.

    This is sum_i p_i ||z*_i||^2 / 2, the part of the KL term that is due to the latent
    means.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors, every value above 0.
    scale : float
        beta, above 1e-150 and below 1e150.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats per sample, at least 0.

    References
    ----------
    Theory section 3; arXiv:2605.18224.

    Examples
    --------
    At the prior-matched scale the energy is (K - 1) / 2.

    >>> from skvaecert.simplex import analytic_energy, prior_matched_scale
    >>> proba = [[0.5, 0.5], [0.8, 0.2]]
    >>> round(analytic_energy(proba, prior_matched_scale(proba)), 6)
    0.5
    """
    proba, scale = (
        check_teacher_proba(teacher_proba),
        check_scale(scale),
    )
    n_components = proba.shape[1]
    energy = log_odds_energy(proba, sample_weight)
    return float((n_components - 1) / (2 * n_components * scale**2) * energy)


def temper(log_proba: ArrayLike, temperature: float, floor: float) -> Floats:
    """Soften posteriors: T_k = (1 - e) P_k^(1/t) / sum_j P_j^(1/t) + e / K.

    Parameters
    ----------
    log_proba : array-like of shape (n_samples, n_components)
        log P, each row up to a constant, for example joint log-probabilities.
    temperature : float
        t, above 0. Temperatures above 1 soften the posteriors.
    floor : float
        e, at least 0 and below 1. If it is above 0, so is every value of T.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        T, whose rows sum to 1.

    References
    ----------
    Theory section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.simplex import temper
    >>> temper(np.log([[0.8, 0.2]]), temperature=2.0, floor=0.0).round(3)
    array([[0.667, 0.333]])
    """
    temperature = check_number("temperature", temperature, above=_SMALLEST)
    floor = check_number("floor", floor, least=0, below=1)
    log_joint = np.asarray(check_real("log_proba", log_proba), dtype=np.float64)
    is_table = log_joint.ndim == 2 and log_joint.size > 0
    if not (is_table and np.isfinite(log_joint.max(axis=1)).all()):
        raise ValueError(
            "log_proba must be an array of shape (n_samples, n_components), not empty, "
            "without NaN or infinity, and with a finite value in each row, got shape "
            f"{log_joint.shape}."
        )
    proba = softmax(log_joint / temperature, axis=1)
    return np.asarray((1 - floor) * proba + floor / proba.shape[1])


def budget_temperature(
    log_proba: ArrayLike, floor: float, energy_budget: float
) -> float:
    """Smallest temperature of at least 1 at which the energy fits a budget.

    The energy is that of :func:`analytic_energy` at scale 1. With a floor, it may rise
    with the temperature before it falls. So the temperature is increased in steps of
    19 % until the energy fits, and the root is found within the last step. A minimum
    within a step is missed.

    Parameters
    ----------
    log_proba : array-like of shape (n_samples, n_components)
        log P, each row up to a constant.
    floor : float
        As in :func:`temper`, above 0.
    energy_budget : float
        Nats per sample, at least 0.

    Returns
    -------
    float
        t, at least 1.

    References
    ----------
    Theory section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.simplex import analytic_energy, budget_temperature, temper
    >>> log_proba = np.log([[0.9, 0.1], [0.1, 0.9]])
    >>> temperature = budget_temperature(log_proba, 0.01, energy_budget=0.1)
    >>> round(analytic_energy(temper(log_proba, temperature, 0.01), 1.0), 6)
    0.1
    """
    check_number("floor", floor, above=0, below=1)
    check_number("energy_budget", energy_budget, least=0)
    # The computed energy of uniform posteriors is not 0, because of rounding.
    budget = max((1 - _RESERVE) * energy_budget, _ENERGY_ROUNDING)

    def excess(temperature: float) -> float:
        return analytic_energy(temper(log_proba, temperature, floor), 1.0) - budget

    high = 1.0
    # Upwards in small steps, because the energy is not monotone (theory section 3).
    while excess(high) > 0:
        high *= _STEP
    return 1.0 if high == 1 else float(brentq(excess, high / _STEP, high, xtol=1e-9))


def resolve_witness_scale(
    witness_scale: Literal["prior"] | float,
    proba: Floats,
    *,
    name: str = "witness_scale",
) -> float:
    """Return the value of the witness scale beta.

    Parameters
    ----------
    witness_scale : "prior" or float
        "prior" for :func:`prior_matched_scale`, or beta itself.
    proba : ndarray of shape (n_samples, n_components)
        The teacher's posteriors of the training samples.
    name : str, default="witness_scale"
        Name of the parameter in error messages.

    Returns
    -------
    float
        beta, above 1e-150 and below 1e150.

    Raises
    ------
    ValueError
        If every posterior is uniform, so that the prior-matched scale is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.simplex import resolve_witness_scale
    >>> resolve_witness_scale(2, np.full((3, 2), 0.5))
    2.0
    """
    if not isinstance(witness_scale, str):
        return check_number(name, witness_scale, above=0)
    if witness_scale != "prior":
        raise ValueError(
            f"{name} must be 'prior' or a number above 0, got {witness_scale!r}."
        )
    scale = prior_matched_scale(proba)
    if scale == 0:
        raise ValueError(
            f"{name} must be a number for this teacher: all its posteriors are "
            "uniform, and 'prior' would be 0. A teacher without information certifies "
            "nothing. Use another teacher."
        )
    return scale
