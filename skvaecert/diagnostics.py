"""Diagnostics of collapse from the literature, on latent means and standard deviations.

Each of them detects some kinds of collapse and misses others. docs/diagnostics.md shows
which, on encoders with a known answer. None of them is a certificate. All are computed
in float64. Information and KL are in nats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvaecert.simplex import (
    Floats,
    check_codes,
    check_count,
    check_number,
    check_sample_weight,
    check_seed,
)

__all__ = [
    "active_units",
    "kl_per_dimension",
    "mutual_information",
    "polarized_regime",
]

# Pairs of samples whose densities are in memory at once: a few arrays of 2 MiB, about
# the size of a processor's cache.
_MOST_PAIRS = 2**18
# More than the rounding error of a mean of many values.
_ROUNDING = 1e-9


def kl_per_dimension(
    latent_mean: ArrayLike,
    latent_std: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Floats:
    """KL to the prior: KL_j = sum_i p_i (mu_ij^2 + s_ij^2 - ln s_ij^2 - 1) / 2.

    This is the cost of each dimension of q(z|x_i) = N(mu_i, diag s_i^2). It can also be
    large under collapse: a constant posterior that is not the prior costs as much as an
    informative code.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means: means of the encoder's posteriors q(z|x_i).
    latent_std : array-like of shape (n_samples, latent_dim)
        s, the posterior standard deviations, above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (latent_dim,)
        Nats, at least 0 to within rounding.

    Raises
    ------
    ValueError
        If the arrays are not valid or differ in shape.

    See Also
    --------
    skvaecert.objectives.kl_per_dimension : The same in torch, for each sample.

    Examples
    --------
    A constant posterior far from the prior is as expensive as an informative code.

    >>> import numpy as np
    >>> from skvaecert.diagnostics import kl_per_dimension
    >>> kl_per_dimension(np.full((5, 2), 2.0), np.ones((5, 2)))
    array([2., 2.])
    """
    mean, std, weight = _check_posteriors(latent_mean, latent_std, sample_weight)
    return np.asarray(weight @ ((mean**2 + std**2 - 1) / 2 - np.log(std)))


def active_units(
    latent_mean: ArrayLike,
    threshold: float = 0.01,
    sample_weight: ArrayLike | None = None,
) -> int:
    """Count the dimensions whose mean varies: #{j : Var_i(mu_ij) >= threshold}.

    The threshold is in squared latent units and does not depend on the noise. So a code
    with small means and even smaller noise is counted as inactive.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means: means of the encoder's posteriors q(z|x_i).
    threshold : float, default=0.01
        Least variance of an active dimension, above 0. The default is that of the
        reference.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    int
        From 0 to latent_dim.

    Raises
    ------
    ValueError
        If an array or the threshold is not valid.

    References
    ----------
    Burda et al., arXiv:1509.00519.

    Examples
    --------
    >>> from skvaecert.diagnostics import active_units
    >>> active_units([[1.0, 0.01], [-1.0, -0.01]])
    1
    """
    check_number("threshold", threshold, above=0)
    mean = check_codes("latent_mean", latent_mean)
    weight = check_sample_weight(sample_weight, len(mean))
    return int((_variance(mean, weight) >= threshold).sum())


def polarized_regime(
    latent_mean: ArrayLike,
    latent_std: ArrayLike,
    tolerance: float = 0.1,
    sample_weight: ArrayLike | None = None,
) -> NDArray[np.str_]:
    """Classify dimensions as active, passive or mixed by their noise.

    Let E and Var be mean and variance over samples. A dimension with nearly constant
    noise, Var(s_ij^2) < tolerance, is

    - "active" if its noise is small: E(s_ij^2) <= tolerance;
    - "passive" if it is the prior: abs(E(s_ij^2) - 1) <= tolerance and
      E(mu_ij^2) <= tolerance.

    All other dimensions are "mixed". Small noise is not information: a constant mean
    with small noise has active dimensions only.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means: means of the encoder's posteriors q(z|x_i).
    latent_std : array-like of shape (n_samples, latent_dim)
        s, the posterior standard deviations, above 0.
    tolerance : float, default=0.1
        Above 0 and below 0.5, so that no dimension is both active and passive. The
        default and the conditions on s are those of the code published with the second
        reference.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    ndarray of shape (latent_dim,)
        "active", "passive" or "mixed".

    Raises
    ------
    ValueError
        If an array or the tolerance is not valid.

    Notes
    -----
    The references define the regime by "close to" and "much smaller than". Their code
    uses s alone. The condition on mu is part of their definition, and its tolerance is
    our choice. It makes a shifted prior, mu = 2 and s = 1 for all samples, "mixed".

    References
    ----------
    Rolinek et al., arXiv:1812.06775; Bonheme & Grzes, arXiv:2109.12679.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.diagnostics import polarized_regime
    >>> mean = np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    >>> std = np.array([[0.1, 1.0, 0.1], [0.1, 1.0, 1.0]])
    >>> print(polarized_regime(mean, std))
    ['active' 'passive' 'mixed']
    """
    check_number("tolerance", tolerance, above=0, below=0.5)
    mean, std, weight = _check_posteriors(latent_mean, latent_std, sample_weight)
    noise = weight @ std**2
    steady = _variance(std**2, weight) < tolerance
    # Noise that is equal to the tolerance must count, although its mean is rounded.
    most = tolerance * (1 + _ROUNDING)
    near_prior = (np.abs(noise - 1) <= most) & (weight @ mean**2 <= most)
    kinds = [steady & (noise <= most), steady & near_prior]
    return np.select(kinds, ["active", "passive"], "mixed")


def mutual_information(
    latent_mean: ArrayLike,
    latent_std: ArrayLike,
    *,
    batch_size: int | None = None,
    n_draws: int = 1,
    random_state: int | np.random.RandomState | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Estimate I(i; z) = sum_i p_i E ln(q(z|x_i) / sum_j p_j q(z|x_j)), z ~ q(z|x_i).

    This is the information of a drawn code about the sample that it belongs to, I_q in
    the first reference. It is computed in log space. Memory does not grow with
    n_samples.

    Parameters
    ----------
    latent_mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means: means of the encoder's posteriors q(z|x_i).
    latent_std : array-like of shape (n_samples, latent_dim)
        s, the posterior standard deviations, above 0.
    batch_size : int or None, default=None
        B. The samples are divided at random into batches of B, the last of which may be
        smaller, and the estimates are averaged. If None, all samples form one batch,
        which takes time proportional to n_samples^2: ten seconds for 10,000 samples in
        16 dimensions.
    n_draws : int, default=1
        Number of codes drawn from each q(z|x_i).
    random_state : int, RandomState instance or None, default=None
        Determines random number generation for codes and batches. Pass an int for
        reproducible output across multiple function calls.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None.

    Returns
    -------
    float
        Nats, at most ln B (ln n_samples if `batch_size` is None) to within rounding.

    Raises
    ------
    ValueError
        If an array or a parameter is not valid.

    Notes
    -----
    *Bias.* With all samples at once, the expectation over draws is exactly I(i; z) of
    these samples. It is at most ln n: an encoder that tells all samples apart has
    I(i; z) = ln n for any information about the population. Batches of B lower
    the limit to ln B, and the expectation by the information that a code has about its
    batch. The expectation is at least 0, but a single estimate can be negative if there
    is little information.

    *Noise.* Both densities are evaluated at the same codes. He et al. use the closed
    form of the entropy of q(z|x_i). It has the same expectation over draws, but its
    noise does not cancel that of the other density. For a constant encoder, their
    estimate is about 0 +- sqrt(d / 2n), and this one is 0. Theirs can also exceed the
    limit. It is available as :func:`skvaecert.baselines.mutual_information`.

    References
    ----------
    He et al., arXiv:1901.05534; Hoffman & Johnson 2016.

    Examples
    --------
    Two samples with codes far apart, and two with the same code:

    >>> from skvaecert.diagnostics import mutual_information
    >>> std = [[1.0], [1.0]]
    >>> round(mutual_information([[-90.0], [90.0]], std, random_state=0), 4)
    0.6931
    >>> round(mutual_information([[5.0], [5.0]], std, random_state=0), 4)
    0.0
    """
    mean, std, weight = _check_posteriors(latent_mean, latent_std, sample_weight)
    check_count("n_draws", n_draws)
    check_count("batch_size", len(mean) if batch_size is None else batch_size)
    generator = _generator(random_state)
    # Samples with weight 0 have no codes and are not part of the mixture.
    order = generator.permutation(np.flatnonzero(weight))
    size = batch_size or len(order)
    total = 0.0
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        for _ in range(n_draws):
            noise = generator.standard_normal((len(batch), mean.shape[1]))
            gains = _information_gains(mean[batch], std[batch], weight[batch], noise)
            total += float(weight[batch] @ gains)
    return total / n_draws


def _information_gains(
    mean: Floats, std: Floats, weight: Floats, noise: Floats
) -> Floats:
    """Return ln q(z_i|x_i) - ln sum_j p_j q(z_i|x_j) at z_i = mu_i + s_i noise_i."""
    n_samples = len(mean)
    code = mean + std * noise
    proba = weight / weight.sum()
    gains = np.empty(n_samples)
    step = max(1, _MOST_PAIRS // n_samples)
    for start in range(0, n_samples, step):
        chunk = np.arange(start, min(start + step, n_samples))
        log_density = _log_densities(code[chunk], mean, std)
        # The own density is read from the same array, not computed again: with equal
        # posteriors the gain is then exactly 0.
        own = log_density[np.arange(len(chunk)), chunk]
        gains[chunk] = own - _log_mean_exp(log_density, proba)
    return gains


def _log_densities(code: Floats, mean: Floats, std: Floats) -> Floats:
    """Return ln q(z_i|x_j) for all pairs, without the factor (2 pi)^(-d/2)."""
    square = np.zeros((len(code), len(mean)))
    # A product of expanded squares would be faster, but loses digits if s is small.
    for z, mu, s in zip(code.T, mean.T, std.T, strict=True):
        distance = z[:, np.newaxis] - mu
        distance /= s
        distance *= distance
        square += distance
    square /= -2
    square -= np.log(std).sum(axis=1)
    return square


def _log_mean_exp(values: Floats, proba: Floats) -> Floats:
    """Return ln sum_j p_j exp(values_ij); `values` is overwritten to save memory."""
    largest = values.max(axis=1, keepdims=True)
    values -= largest
    np.exp(values, out=values)
    return np.asarray(np.log(values @ proba) + largest[:, 0])


def _variance(values: Floats, weight: Floats) -> Floats:
    # The shift by one of the samples makes the variance of equal values exactly 0.
    shifted = values - values[np.argmax(weight > 0)]
    return np.asarray(weight @ (shifted - weight @ shifted) ** 2)


def _generator(
    random_state: int | np.random.RandomState | None,
) -> np.random.RandomState:
    if isinstance(random_state, np.random.RandomState):
        return random_state
    check_seed(random_state)
    return np.random.RandomState(random_state)


def _check_posteriors(
    latent_mean: ArrayLike, latent_std: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    mean = check_codes("latent_mean", latent_mean)
    std = check_codes("latent_std", latent_std)
    if std.shape != mean.shape:
        raise ValueError(
            f"latent_std must have the shape {mean.shape} of latent_mean, got "
            f"{std.shape}."
        )
    if not std.min() > 0:
        raise ValueError(
            f"latent_std must be above 0, got a smallest value of {std.min()}. Pass "
            "standard deviations, exp(log_variance / 2), not logarithms."
        )
    return mean, std, check_sample_weight(sample_weight, len(mean))
