"""The information of drawn codes, bounded from both sides (theory section 16).

An encoder returns a posterior q_i = N(mu_i, diag sigma_i^2) for each sample. The
information of a code z ~ q_i about its sample i is I(i; z) = E v(z), the mean over
drawn codes of

    v(z) = KL(p(.|z) || p),    p(j|z) = p_j q_j(z) / sum_k p_k q_k(z),

which lies in [0, max_i log 1/p_i]. We draw the codes ourselves. So bounds on the mean
of bounded values hold from both sides, for any samples and at any confidence. No
teacher and no witness is needed, and nothing is fitted. All information is in nats.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, xlogy

from skvaecert._rounding import RoundingSums
from skvaecert.bounds import MeanBounds, betting_mean_bound
from skvaecert.simplex import (
    Floats,
    check_codes,
    check_count,
    check_number,
    check_real,
    check_sample_weight,
    check_weight,
)

__all__ = [
    "InformationBracket",
    "InformationSums",
    "OutputInformation",
    "code_information",
    "output_information",
    "population_information",
]

# Draws and samples whose pairs are in memory at once: an array of 2 MiB, about the size
# of a processor's cache.
_DRAWS, _SAMPLES = 256, 1024
# Ratio of distance to the smallest noise above which expanded squares would cancel.
_STEEP = 1e3
# A draw hardly ever lies further from its mean, in standard deviations.
_FAR = 6
# Logarithms that stand for a density of 0, and for a negligible one relative to the
# largest.
_NEVER, _NEGLIGIBLE = -1e290, -700.0
# Largest number of samples whose codes are compared with each other in a stream.
_LOT = 8192
# With several lots each needs fewer draws, because the draws of all count together.
_SHARE_OF_DRAWS = 4
# The squared inverse of a smaller standard deviation overflows.
_SMALLEST = 1e-150
# Error of the logarithm of an exponential in float32, at magnitude max(1, abs(log)).
_EXPONENTIAL = 4 * float(np.finfo(np.float32).eps)
# Codes drawn from each sample of a lot.
_DRAWS_IN_LOT = 4
# From 100 to 10,000 samples, lots of n^0.5 were best for weak codes, and of up to
# n^0.65 for strong ones.
_LOT_EXPONENT = 0.55
# Number of groups of outputs for the jackknife.
_MOST_GROUPS = 16
# How far rounding may push probabilities out of [0, 1].
_RANGE_SLACK = 1e-6


@dataclass(frozen=True)
class InformationBracket:
    """Lower and upper bound on I(i; z), the information of drawn codes.

    Attributes
    ----------
    low : float
        Lower bound in nats, at least 0. `rounding` is already subtracted.
    high : float
        Upper bound in nats, from `low` to `limit`.
    estimate : float
        Mean over the draws in nats, clipped to the bracket.
    confidence : float
        Probability, over the draws, with which both bounds hold.
    limit : float
        Entropy of the weights in nats, -sum_i p_i log p_i. It is log n_samples for
        equal weights.
    rounding : float
        Information that rounding in the encoder may have added, in nats.
    n_samples : int
        Number of samples with a weight above 0.
    low_by : {"draws", "draws in lots", "zero"}
        The bound that gave `low`.
    high_by : {"draws", "draws in lots", "moment-matched Gaussian", "limit"}
        The bound that gave `high`.
    """

    low: float
    high: float
    estimate: float
    confidence: float
    limit: float
    rounding: float
    n_samples: int
    low_by: Literal["draws", "draws in lots", "zero"]
    high_by: Literal["draws", "draws in lots", "moment-matched Gaussian", "limit"]

    def __str__(self) -> str:
        many = f"these {self.n_samples:,} samples"
        return information_sentence(
            self, "this sample" if self.n_samples == 1 else many
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name, as plain Python values.

        Returns
        -------
        dict
            Of float, int and str.
        """
        return asdict(self)


def code_information(
    mean: ArrayLike,
    std: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    confidence: float = 0.999999,
    n_draws: int = 40_000,
    random_state: int | np.random.Generator | None = None,
) -> InformationBracket:
    """Bracket I(i; z) = sum_i p_i KL(q_i || sum_j p_j q_j), with q_i = N(mu_i, s_i^2).

    Let z_1, ..., z_M be codes drawn from the mixture, B a lower confidence bound on a
    mean (betting), and top = max_i log 1/p_i the largest possible v. Then::

        v(z) = KL(p(.|z) || p),    p(j|z) = p_j q_j(z) / sum_k p_k q_k(z)
        low  = B(v(z_m)) - rounding
        high = min(top - B(top - v(z_m)),  sum_i p_i KL(q_i || r),  limit)

    where r is the diagonal Gaussian with the moments of the mixture.

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means: means of the encoder's posteriors q(z|x_i).
    std : array-like of shape (n_samples, latent_dim)
        s, the posterior standard deviations, above 0: exp(log_variance / 2).
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to p; uniform when None. Samples
        with weight 0 are left out.
    confidence : float, default=0.999999
        Probability with which both bounds hold, in (0, 1).
    n_draws : int, default=40000
        M, the total number of drawn codes. The width of the bracket falls with the
        square root of M. Time grows with n_draws * n_samples * latent_dim, but memory
        does not.
    random_state : int, numpy.random.Generator or None, default=None
        Determines random number generation for the draws. Pass an int for reproducible
        output across multiple function calls.

    Returns
    -------
    InformationBracket
        Bounds, estimate and limit in nats.

    Raises
    ------
    ValueError
        If an array or a parameter is not valid.

    See Also
    --------
    population_information : Lower bound for new samples of the population.
    skvaecert.diagnostics.mutual_information : An estimate without bounds.

    Notes
    -----
    *Guarantee.* With probability `confidence` or more over the draws,
    low <= I(i; z) <= high for these samples. They may be training samples, dependent on
    each other, or duplicated. For N encoders, the probability that any bracket fails is
    at most N (1 - confidence), also if all use the same seed. An encoder that was
    trained on these very draws is not covered. I(i; z) is at most the entropy of p,
    so it does not say how many more samples could be told apart. Draws are stratified:
    draw m takes its sample from the m-th of M equal parts of p. The values are
    independent with different means, and the average of these means is I(i; z). This is
    enough for betting: a product of positive factors with an average of 1 is at most 1.

    *Weights.* A small p_i makes top large and the bracket wide: each bound from the
    draws is at least about top log(1 / (1 - confidence)) / M away from the mean of the
    draws. `limit` is the entropy.

    *The Gaussian.* Among all diagonal Gaussians r, the one with the moments of the
    mixture gives the smallest bound, sum_j (log s_j - sum_i p_i log s_ij). So `high` is
    never above the mean KL to the prior.

    *Rounding of the encoder.* With s = 1e-7, a constant mean with rounding errors of
    float32 carries several nats. Let mu_ij have errors with root mean square u_j, and
    log s_ij errors of at most h_j. By the chain rule, the codes carry at least
    I(i; z) - rounding about the values without these errors, where::

        rounding = sum_j [log(1 + u_j^2 / min_i s_ij^2) / 2 + h_j^2]

    `low` is a bound on this difference. The size of the errors is an assumption, the
    same as for the certificate: 32 machine epsilons of float32, at magnitude
    max(1, abs(mu_ij)) for means and max(1, abs(log s_ij^2)) for log-variances. If all
    values of a column fit in 16 bits, for example integers, they count as computed in
    16 bits, with 8 epsilons, and so do the standard deviations of that dimension. A
    column that is the same for all samples has no error. `estimate` and `high` are
    about the codes as they are.

    *Arithmetic.* All computations use float64. Squared distances are expanded if they
    are less than 1000 times the noise, with an error of at most 1e-9 nats in each
    dimension, which is added to the bracket. Other distances are computed as
    differences, which are exact for any ratio and take up to 20 times as long.

    References
    ----------
    Theory section 16; Waudby-Smith and Ramdas, arXiv:2010.09686. Upper bounds by pairs,
    Kolchinsky and Tracey, arXiv:1706.02419, are wider.

    Examples
    --------
    A thousand samples with signal in one dimension, and the same under more noise:

    >>> import numpy as np
    >>> from skvaecert.information import code_information
    >>> rng = np.random.default_rng(0)
    >>> mean = np.c_[rng.normal(size=1000), np.zeros(1000)]
    >>> bracket = code_information(mean, np.full((1000, 2), 0.1), random_state=0)
    >>> round(bracket.low, 2), round(bracket.high, 2), bracket.high_by
    (2.25, 2.28, 'moment-matched Gaussian')
    >>> round(code_information(mean, np.full((1000, 2), 40.0)).high, 4)
    0.0003
    """
    mean, std = _check_posteriors(mean, std)
    proba = check_sample_weight(sample_weight, len(mean))
    sums = InformationSums(
        confidence=confidence, n_draws=n_draws, random_state=random_state
    )
    # One lot: with several, H(P) is added to the upper end (theory section 16).
    sums._lot_size = len(mean)
    return sums.update(mean, std, proba).bracket()


class InformationSums:
    """The bracket of :func:`code_information` for samples that come in batches.

    Samples are kept until they fill a lot of 8,192. Then codes are drawn from the lot,
    and the samples are dropped. Let l be the lot of sample i, and P_l its share of the
    total weight. Then I(i; z) = I(l; z) + sum_l P_l I(i; z | l), and I(l; z) is at most
    the entropy of P. If low and high bound the sum, from draws within lots, then::

        low - rounding <= I(i; z) <= min(high + sum_l P_l log 1/P_l,
                                         sum_i p_i KL(q_i || r),  limit)

    Up to 8,192 samples form a single lot, and the bracket is that of
    :func:`code_information`.

    Parameters
    ----------
    confidence : float, default=0.999999
        Probability with which both bounds of a bracket hold, in (0, 1).
    n_draws : int, default=10000
        Number of codes drawn if there is a single lot. If there are several, a quarter
        of it is drawn from each.
    random_state : int, numpy.random.Generator or None, default=0
        Determines random number generation for the draws. Pass an int for reproducible
        output across multiple function calls.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    See Also
    --------
    code_information : From all samples at once; narrow for any number of samples.

    Notes
    -----
    *Guarantee.* As for :func:`code_information`, each bracket holds with probability
    `confidence` or more over the draws.

    *Width.* Strong codes also tell the lots apart. This widens the bracket by up to the
    entropy of P, about log(n_samples / 8192). Weak codes are bounded by the Gaussian r
    of all samples.

    *Weights.* The values of lot l are divided by top_l = max_i log 1/p_i within the lot
    and have weight P_l top_l / n_draws. So a limit for all lots does not have to be
    known beforehand.

    *Workers.* Sums with the same `random_state` draw the same noise. The merged bounds
    are valid, but as wide as those of a single worker. With a different seed for each
    worker they are narrower. Samples that do not fill a lot are merged as samples.

    References
    ----------
    Theory section 16.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert.information import InformationSums
    >>> rng, sums = np.random.default_rng(0), InformationSums()
    >>> for _ in range(10):
    ...     sums = sums.update(rng.normal(size=(45, 2)), np.full((45, 2), 0.1))
    >>> print(sums.bracket())
    Drawn codes carry 4.28 to 4.38 nats about these 450 samples (of at most 6.11).
    """

    _lot_size = _LOT

    def __init__(
        self,
        *,
        confidence: float = 0.999999,
        n_draws: int = 10_000,
        random_state: int | np.random.Generator | None = 0,
    ) -> None:
        self.confidence = check_number("confidence", confidence, above=0, below=1)
        self.n_draws = check_count("n_draws", n_draws)
        self._seed = int(_check_generator(random_state).integers(2**63))
        self._moments = _Moments()
        self._lots = _Lots()
        self._waiting: list[_Samples] = []

    def update(
        self, mean: ArrayLike, std: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Add samples.

        Parameters
        ----------
        mean : array-like of shape (n_samples, latent_dim)
            mu, the latent means: means of the encoder's posteriors q(z|x_i).
        std : array-like of shape (n_samples, latent_dim)
            s, the posterior standard deviations, above 0: exp(log_variance / 2).
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, on the same scale in all batches; 1 when
            None. Samples with weight 0 are left out.

        Returns
        -------
        self : InformationSums
            The sums with these samples added.

        Raises
        ------
        ValueError
            If an array is not valid, or its latent_dim differs from that of earlier
            samples.
        """
        means, deviations = _check_posteriors(mean, std)
        weight = check_weight(sample_weight, len(means))
        self._check_columns("mean", means.shape[1])
        has_weight = weight > 0
        if has_weight.any():
            samples = means[has_weight], deviations[has_weight], weight[has_weight]
            self._moments.add(*samples)
            self._waiting.append(samples)
            self._draw_full_lots()
        return self

    def merge(self, other: InformationSums) -> Self:
        """Add the samples of other sums.

        Parameters
        ----------
        other : InformationSums
            Sums of other samples with the same latent_dim. They are not changed.

        Returns
        -------
        self : InformationSums
            The sums with these samples added.

        Raises
        ------
        ValueError
            If the latent_dim of both differ.
        """
        if other.n_samples:
            self._check_columns("other", other._moments.n_columns)
            self._moments.merge(other._moments)
            self._lots.merge(other._lots)
            self._waiting = self._waiting + other._waiting
            self._draw_full_lots()
        return self

    @property
    def n_samples(self) -> int:
        """Number of samples with a weight above 0."""
        return self._moments.mean.spread.n_samples

    def bracket(self) -> InformationBracket:
        """Return the bracket for the samples so far.

        Returns
        -------
        InformationBracket
            Bounds, estimate and limit in nats. The estimate leaves out the information
            about the lots, I(l; z).

        Raises
        ------
        ValueError
            If there are no samples with a weight above 0.
        """
        if not self.n_samples:
            raise ValueError(
                "InformationSums has no samples with a weight above 0. Call update "
                "first."
            )
        # A copy: the waiting samples are drawn from again when their lot is full.
        lots = copy.deepcopy(self._lots)
        if self._waiting:
            n_draws = self._draws_in_lot if lots.count else self.n_draws
            lots.draw(_joined(self._waiting), n_draws, self._seed)
        return _bracket(self._moments, lots, self.confidence)

    @property
    def _draws_in_lot(self) -> int:
        return max(1, self.n_draws // _SHARE_OF_DRAWS)

    def _draw_full_lots(self) -> None:
        size, n_waiting = self._lot_size, sum(len(w) for _, _, w in self._waiting)
        # A lot that is just full waits, because it may turn out to be the only one,
        # which gets more draws.
        if n_waiting <= size:
            return
        samples = _joined(self._waiting)
        for _ in range((n_waiting - 1) // size):
            lot, samples = _split(samples, size)
            self._lots.draw(lot, self._draws_in_lot, self._seed)
        self._waiting = [samples]

    def _check_columns(self, name: str, n_columns: int) -> None:
        if self.n_samples and n_columns != self._moments.n_columns:
            raise ValueError(
                f"{name} must have the latent_dim {self._moments.n_columns} of the "
                f"earlier samples, got {n_columns}."
            )


def population_information(
    mean: ArrayLike,
    std: ArrayLike,
    *,
    lot_size: int | None = None,
    confidence: float = 0.95,
    random_state: int | np.random.Generator | None = None,
) -> float:
    """Lower bound on I(X; Z), the information of codes about samples of the population.

    The samples are divided at random into lots of B samples. Let L be the mean, over
    codes drawn in a lot, of the v of :func:`code_information` within that lot, and
    bound(.) a lower confidence bound on a mean (betting). Then::

        bound(L_1, ..., L_m) - rounding <= I(X; Z),    m = n_samples // B

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        mu, the latent means of held-out samples: means of the encoder's posteriors
        q(z|x_i).
    std : array-like of shape (n_samples, latent_dim)
        s, the posterior standard deviations, above 0: exp(log_variance / 2).
    lot_size : int or None, default=None
        B, from 2 to n_samples. Choose it without looking at the samples. If None, it is
        n_samples^0.55, rounded down. Samples that do not fill a lot are left out.
    confidence : float, default=0.95
        Probability with which the bound holds, in (0, 1).
    random_state : int, numpy.random.Generator or None, default=None
        Determines random number generation for lots and draws. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    float
        The bound in nats, from 0 to log B.

    Raises
    ------
    ValueError
        If an array or a parameter is not valid.

    See Also
    --------
    code_information : Bounds for the given samples, from both sides.

    Notes
    -----
    *Guarantee.* Assume that the samples are drawn independently from one population,
    and that nothing was fitted on them, not even the epoch at which training stopped.
    With probability `confidence` or more over samples and draws, the bound is at most
    I(X; Z), for every number of samples and every population. Training samples are not
    covered: an encoder that has memorized them looks more informative than it is. If
    samples depend on each other, like the frames of a video or augmented copies of an
    image, so do the lots, and the bound is too high more often than stated. The same
    holds for the largest bound over several lot sizes or seeds.

    *Why.* The mean of L is at most I(X; Z) for any B (InfoNCE with known densities). No
    bound of this kind is far above log n.

    *Lot size.* Small lots limit the bound to log B, and few lots cost confidence: at
    95 % about as much as 4 of the lots. The default came within 10 % of the best size
    for weak and strong, clustered and half-dead codes of 100 to 10,000 samples.

    *Rounding.* As in :func:`code_information`.

    References
    ----------
    Theory section 16; Poole et al., arXiv:1905.06922; McAllester and Stratos,
    arXiv:1811.04251.

    Examples
    --------
    A linear-Gaussian encoder, I(X; Z) = log(1 + 1.5^2) = 1.18 in two dimensions:

    >>> import numpy as np
    >>> from skvaecert.information import population_information
    >>> mean = 1.5 * np.random.default_rng(0).normal(size=(2000, 2))
    >>> round(population_information(mean, np.ones((2000, 2)), random_state=0), 1)
    1.0
    """
    mean, std = _check_posteriors(mean, std)
    size = _check_lot_size(lot_size, len(mean))
    check_number("confidence", confidence, above=0, below=1)
    generator = _check_generator(random_state)
    n_lots = len(mean) // size
    lots = generator.permutation(len(mean))[: n_lots * size].reshape(n_lots, size)
    # InfoNCE with known densities, in random lots (theory section 16).
    uniform, chosen = np.full(size, 1 / size), np.repeat(np.arange(size), _DRAWS_IN_LOT)
    means = np.empty(n_lots)
    for number, lot in enumerate(lots):
        mixture = _Mixture(mean[lot], std[lot], uniform)
        means[number] = mixture.divergences(chosen, generator).mean()
    moments = _Moments()
    moments.add(mean, std, np.ones(len(mean)))
    lost = moments.rounding + _arithmetic_error(mean.shape[1])
    top = float(np.log(size))
    bound = betting_mean_bound(means.clip(max=top), 0, top, confidence)
    return max(0.0, bound - lost)


def _bracket(moments: _Moments, lots: _Lots, confidence: float) -> InformationBracket:
    error = _arithmetic_error(moments.n_columns)
    # Each bound from the draws may fail with half of the probability. The others hold
    # always.
    each = (1 + confidence) / 2
    draws: _Draws = "draws" if lots.count == 1 else "draws in lots"
    highs: dict[_Draws | Literal["moment-matched Gaussian", "limit"], float] = {
        "limit": moments.limit,
        "moment-matched Gaussian": moments.gaussian_bound + error,
        draws: lots.scale * lots.shares.high(each) + lots.entropy + error,
    }
    high_by = min(highs, key=highs.__getitem__)
    high = max(0.0, highs[high_by])
    # Not in the upper end, which is about codes as they are (theory section 16).
    low = lots.scale * lots.shares.low(each) - error - moments.rounding
    low = min(max(0.0, low), high)
    return InformationBracket(
        low=low,
        high=high,
        estimate=float(np.clip(lots.estimate, low, high)),
        confidence=confidence,
        limit=moments.limit,
        rounding=moments.rounding,
        n_samples=moments.mean.spread.n_samples,
        low_by=draws if low > 0 else "zero",
        high_by=high_by,
    )


def information_sentence(bracket: InformationBracket, about: str) -> str:
    """Return a sentence about the information of drawn codes.

    Parameters
    ----------
    bracket : InformationBracket
        The information; its bounds are rounded outwards.
    about : str
        The samples, in words.

    Returns
    -------
    str
        The sentence.
    """
    # An upper bound below 0.01 is shown with as many digits as it needs.
    digits = 2
    while 0 < bracket.high < 10.0**-digits and digits < 9:
        digits += 1
    low = _printed(bracket.low, digits, ROUND_FLOOR)
    high = _printed(bracket.high, digits, ROUND_CEILING)
    if not float(low):
        return f"Drawn codes carry at most {high} nats about {about}."
    limit = _printed(bracket.limit, 2, ROUND_CEILING)
    return f"Drawn codes carry {low} to {high} nats about {about} (of at most {limit})."


def _printed(value: float, digits: int, rounding: str) -> str:
    return str(Decimal(value).quantize(Decimal(10) ** -digits, rounding))


def _joined(parts: list[_Samples]) -> _Samples:
    mean, std, weight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return mean, std, weight


def _split(samples: _Samples, size: int) -> tuple[_Samples, _Samples]:
    mean, std, weight = samples
    rest = mean[size:], std[size:], weight[size:]
    return (mean[:size], std[:size], weight[:size]), rest


class _Lots:
    """Values v of draws within lots, each divided by the largest that its lot allows.

    So the values of all lots lie in [0, 1] and can be bounded together.
    """

    def __init__(self) -> None:
        self.shares = MeanBounds(0, 1)
        self.count = 0
        self._weight = 0.0
        self._weight_log = 0.0
        self._reach = 0.0
        self._seeds: set[int] = set()

    def draw(self, samples: _Samples, n_draws: int, seed: int) -> None:
        mean, std, weight = samples
        total = float(weight.sum())
        proba = weight / total
        order = _along_steepest(mean, std)
        # Shares of the weight may be so small that they underflow.
        order = order[proba[order] > 0]
        # With its number in the seed, each lot has draws of its own.
        generator = np.random.default_rng([seed, self.count])
        self._seeds.add(seed)
        self.count += 1
        self._weight += total
        self._weight_log += float(xlogy(total, total))
        top = float(-np.log(proba[order].min()))
        # A single sample carries nothing, and has a `top` of 0.
        if len(order) > 1:
            mixture = _Mixture(mean[order], std[order], proba[order])
            chosen = _stratified(mixture.proba, n_draws, generator)
            values = mixture.divergences(chosen, generator)
            # P_l t_l / M_l of theory section 16, times the weight of all samples.
            weights = np.full(n_draws, total * top / n_draws)
            self.shares.update((values / top).clip(max=1), weights)
            self._reach += total * top

    def merge(self, other: _Lots) -> None:
        # With equal seeds, lots of the same number share their noise.
        independent = self._seeds.isdisjoint(other._seeds)
        self.shares.merge(other.shares, independent=independent)
        self.count += other.count
        self._weight += other._weight
        self._weight_log += other._weight_log
        self._reach += other._reach
        self._seeds |= other._seeds

    @property
    def scale(self) -> float:
        """The factor that turns shares into nats: sum_l P_l top_l."""
        return self._reach / self._weight

    @property
    def estimate(self) -> float:
        return self.scale * self.shares.mean if self.scale else 0.0

    @property
    def entropy(self) -> float:
        return _entropy(self._weight, self._weight_log) if self.count > 1 else 0.0


class _Moments:
    """Sums over all samples for the bounds that need no draws, and for rounding."""

    def __init__(self) -> None:
        self.mean = RoundingSums()
        # Of standard deviations, log-variances and variances: see `_origins`.
        self._std = [RoundingSums() for _ in range(3)]
        self._squares: Floats | float = 0.0
        self._logarithms: Floats | float = 0.0
        self._smallest: Floats | float = np.inf
        self._largest_log: Floats | float = 0.0
        self._weight_log = 0.0

    def add(self, mean: Floats, std: Floats, weight: Floats) -> None:
        logarithms = np.log(std)
        with np.errstate(over="ignore"):
            squares = std**2
            self.mean.add(mean, weight)
            for sums, values in zip(self._std, _origins(std, logarithms), strict=True):
                sums.add(values, weight)
            self._squares = self._squares + weight @ squares
        self._logarithms = self._logarithms + weight @ logarithms
        self._smallest = np.minimum(self._smallest, std.min(axis=0))
        largest = np.abs(logarithms).max(axis=0)
        self._largest_log = np.maximum(self._largest_log, largest)
        self._weight_log += float(xlogy(weight, weight).sum())

    def merge(self, other: _Moments) -> None:
        self.mean.merge(other.mean)
        for sums, others in zip(self._std, other._std, strict=True):
            sums.merge(others)
        self._squares = self._squares + other._squares
        self._logarithms = self._logarithms + other._logarithms
        self._smallest = np.minimum(self._smallest, other._smallest)
        self._largest_log = np.maximum(self._largest_log, other._largest_log)
        self._weight_log += other._weight_log

    @property
    def n_columns(self) -> int:
        return len(self.mean.spread.first)

    @property
    def limit(self) -> float:
        spread = self.mean.spread
        entropy = _entropy(spread.total_weight, self._weight_log)
        # Rounding can lift the entropy of equal weights above log n.
        return min(entropy, float(np.log(spread.n_samples)))

    @property
    def gaussian_bound(self) -> float:
        """sum_i p_i KL(q_i || r), r the diagonal Gaussian with the same moments."""
        spread = self.mean.spread
        variance = spread.variance + self._squares / spread.total_weight
        mean_log = self._logarithms / spread.total_weight
        return float((np.log(variance) / 2 - mean_log).sum())

    @property
    def rounding(self) -> float:
        """What rounding may add: sum_j log(1 + u_j^2 / min_i s_ij^2) / 2 + h_j^2."""
        # The coarsest type that means, deviations, or their origins fit in.
        unit_of_std = self._std[0].unit
        for sums in (self.mean, *self._std[1:]):
            unit_of_std = np.maximum(unit_of_std, sums.unit)
        # Equal standard deviations have no error.
        unit_of_std = np.where(self._std[0].unit > 0, unit_of_std, 0)
        # h_j: half the error of the log-variance, at magnitude max(1, |log s^2|).
        logarithms = unit_of_std * np.maximum(self._largest_log, 0.5)
        with np.errstate(over="ignore"):
            ratio = self.mean.square_errors / np.square(self._smallest)
        return float((np.log1p(ratio) / 2 + logarithms**2).sum())


def _origins(std: Floats, logarithms: Floats) -> tuple[Floats, Floats, Floats]:
    """Return standard deviations, log-variances and variances.

    An encoder may compute log-variances or variances in 16 bits and standard deviations
    from them in 32 bits, so all three are tested (theory section 16).
    """
    log_variance, variance = 2 * logarithms, std**2
    return (
        std,
        _snapped(log_variance, np.maximum(np.abs(log_variance), 1)),
        _snapped(variance, variance),
    )


def _snapped(values: Floats, magnitude: Floats) -> Floats:
    """Move values to the nearest of 16 bits if arithmetic in 32 explains the gap."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float16).astype(np.float64)
        return np.where(abs(values - near) <= _EXPONENTIAL * magnitude, near, values)


def _entropy(weight: float, weight_log: float) -> float:
    """Return the entropy of weights, from the sum of w and the sum of w log w."""
    return max(0.0, float(np.log(weight)) - weight_log / weight)


_Samples = tuple[Floats, Floats, Floats]
_Draws = Literal["draws", "draws in lots"]


class _Mixture:
    """The mixture sum_j p_j q_j, laid out for densities at many codes."""

    def __init__(self, mean: Floats, std: Floats, proba: Floats) -> None:
        self.mean, self.std, self.proba = mean, std, proba
        self._log_proba = np.log(proba)
        self._centered = _centered(mean, proba)
        reach = np.abs(self._centered).max(axis=0) + _FAR * std.max(axis=0)
        steep = reach > _STEEP * std.min(axis=0)
        self._steep, self._flat = np.flatnonzero(steep), np.flatnonzero(~steep)
        centered, precision = self._centered[:, self._flat], std[:, self._flat] ** -2.0
        constant = self._log_proba - np.log(std).sum(axis=1)
        self._range = float(np.ptp(constant))
        constant -= (centered**2 * precision).sum(axis=1) / 2
        # log p_j q_j(z) = (z^2, z, 1) @ weights, for dimensions without cancellation.
        self._weights = np.vstack(
            [-precision.T / 2, (centered * precision).T, constant]
        )

    def divergences(
        self, chosen: NDArray[np.intp], generator: np.random.Generator
    ) -> Floats:
        """Return KL(p(.|z) || p) at a code drawn from each chosen sample."""
        values = np.empty(len(chosen))
        for start in range(0, len(chosen), _DRAWS):
            part = chosen[start : start + _DRAWS]
            noise = generator.standard_normal((len(part), self.mean.shape[1]))
            values[start : start + _DRAWS] = self._at(part, self.std[part] * noise)
        return values.clip(min=0)

    def _at(self, origin: NDArray[np.intp], step: Floats) -> Floats:
        """Return the divergences at the codes mu + step.

        The sums over all samples run over parts of them. As in a streaming log-sum-exp,
        the sums so far are rescaled when a larger density appears.
        """
        code = (self._centered[origin] + step)[:, self._flat]
        features = np.hstack([code**2, code, np.ones((len(code), 1))])
        # With a_j = log p_j q_j(z) less the largest: sums of e^a, a e^a, e^a log p.
        largest = np.full(len(code), _NEVER)
        sums = np.zeros((3, len(code)))
        for start in range(0, len(self.mean), _SAMPLES):
            lot = slice(start, start + _SAMPLES)
            if self._is_out_of_reach(origin, step, lot):
                continue
            joint = features @ self._weights[:, lot]
            self._add_steep(joint, origin, step, lot)
            before, largest = largest, np.maximum(largest, joint.max(axis=1))
            joint -= largest[:, np.newaxis]
            np.maximum(joint, _NEGLIGIBLE, out=joint)
            # Before the rescaling, because each a_j changes by `before - largest`.
            sums[1] += (before - largest) * sums[0]
            sums *= np.exp(before - largest)
            share = np.exp(joint)
            sums[0] += share.sum(axis=1)
            sums[1] += np.einsum("ij,ij->i", share, joint)
            sums[2] += share @ self._log_proba[lot]
        # v(z): the mean of log q_j(z) over p(j|z), less log m(z).
        return np.asarray((sums[1] - sums[2]) / sums[0] - np.log(sums[0]))

    def _is_out_of_reach(
        self, origin: NDArray[np.intp], step: Floats, lot: slice
    ) -> bool:
        """Return whether the densities of these samples are negligible at all codes.

        It is so if, in one steep dimension, the samples are so far from all codes that
        their densities are below exp(_NEGLIGIBLE) times that of the code's own sample.
        """
        if not len(self._steep):
            return False
        steep = self._steep
        own = ((step / self.std[origin]) ** 2).sum(axis=1).max() / 2
        # Beyond it, gap^2 / 2 > own + 700, also if the constants differ by `_range`.
        reach = np.sqrt(2 * (own + self._range - _NEGLIGIBLE))
        code = self.mean[origin][:, steep] + step[:, steep]
        mean = self.mean[lot][:, steep]
        below = code.min(axis=0) - mean.max(axis=0)
        above = mean.min(axis=0) - code.max(axis=0)
        gap = np.maximum(below, above) / self.std[lot][:, steep].max(axis=0)
        return bool((gap > reach).any())

    def _add_steep(
        self, joint: Floats, origin: NDArray[np.intp], step: Floats, lot: slice
    ) -> None:
        """Add the dimensions in which expanded squares would cancel."""
        for column in self._steep:
            mean = self.mean[:, column]
            distance = mean[origin, np.newaxis] - mean[lot]
            distance += step[:, column, np.newaxis]
            distance /= self.std[lot, column]
            with np.errstate(over="ignore"):
                distance *= distance
            distance /= 2
            joint -= distance
        if len(self._steep):
            # Finite, because the difference of two infinities is NaN.
            np.maximum(joint, _NEVER, out=joint)


def _along_steepest(mean: Floats, std: Floats) -> NDArray[np.intp]:
    """Order samples by the latent mean that varies most relative to the noise.

    Then samples with similar means are in the same part, and many parts are out of
    reach of the codes of others.
    """
    steepest = (np.ptp(mean, axis=0) / std.max(axis=0)).argmax()
    return np.argsort(mean[:, steepest], kind="stable")


def _centered(mean: Floats, proba: Floats) -> Floats:
    # Shifted by the first sample, so that equal means are exactly 0.
    shifted = mean - mean[0]
    return np.asarray(shifted - proba @ shifted)


def _stratified(
    proba: Floats, n_draws: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Draw n_draws samples from p, one from each of n_draws equal parts of p."""
    place = (np.arange(n_draws) + generator.random(n_draws)) / n_draws
    chosen = np.searchsorted(np.cumsum(proba), place, side="right")
    # Rounding may leave the last sum of p below 1.
    return np.minimum(chosen, len(proba) - 1)


def _arithmetic_error(latent_dim: int) -> float:
    """Return the error, in nats, of expanding squares of up to _STEEP^2."""
    return 4 * float(np.finfo(np.float64).eps) * _STEEP**2 * latent_dim


def _check_posteriors(mean: ArrayLike, std: ArrayLike) -> tuple[Floats, Floats]:
    means, deviations = check_codes("mean", mean), check_codes("std", std)
    if deviations.shape != means.shape:
        raise ValueError(
            f"std must have the shape {means.shape} of mean, got {deviations.shape}."
        )
    smallest = deviations.min()
    if smallest < _SMALLEST:
        raise ValueError(
            f"std must be above 0 (at least {_SMALLEST:.0e}), got a smallest value of "
            f"{smallest}. If these are log-variances, pass numpy.exp(std / 2)."
        )
    return means, deviations


def _check_lot_size(lot_size: int | None, n_samples: int) -> int:
    if n_samples < 2:
        raise ValueError(
            "mean must have at least two samples, got 1. Pass more samples."
        )
    if lot_size is None:
        return max(2, int(n_samples**_LOT_EXPONENT))
    check_count("lot_size", lot_size, least=2)
    if lot_size > n_samples:
        raise ValueError(
            f"lot_size must be at most n_samples = {n_samples}, got {lot_size}. Use "
            "None, or pass more samples."
        )
    return int(lot_size)


def _check_generator(
    random_state: int | np.random.Generator | None,
) -> np.random.Generator:
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "random_state must be an int of at least 0, a numpy.random.Generator or "
            f"None, got {random_state!r}."
        ) from error


@dataclass(frozen=True)
class OutputInformation:
    """Estimated upper bound on the information of a decoder's outputs about the code.

    Attributes
    ----------
    bound : float
        U, estimated from the draws, in nats, at least 0.
    standard_error : float
        Standard error of `bound` over the draws, in nats.
    likelihood : {"gaussian", "bernoulli"}
        The likelihood of the decoder, whose means are the outputs.
    noise_variance : float or None
        v, the variance of the Gaussian likelihood, in squared units of the outputs.
        None for "bernoulli".
    n_draws : int
        Number of codes that were decoded.
    """

    bound: float
    standard_error: float
    likelihood: Literal["gaussian", "bernoulli"]
    noise_variance: float | None
    n_draws: int

    @property
    def high(self) -> float:  # numpydoc ignore=RT01
        """`bound` plus three standard errors, in nats."""
        return self.bound + 3 * self.standard_error


class OutputSums:
    """Moments of the outputs for drawn codes, by group; no output is kept.

    The standard error is that of the jackknife, which leaves one group out at a time.
    """

    def __init__(self, likelihood: Literal["gaussian", "bernoulli"]) -> None:
        if likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(
                f"likelihood must be 'gaussian' or 'bernoulli', got {likelihood!r}."
            )
        self.likelihood = likelihood
        self._origin: Floats | None = None
        # For each group: count, squared error, first and second moments.
        self._groups: list[Floats] = []

    def add(self, output: Floats, target: Floats | None = None) -> None:
        """Add a group of outputs; `target` holds the samples of their codes."""
        error = 0.0 if target is None else ((output - target) ** 2).mean(axis=1).sum()
        if self.likelihood == "bernoulli":
            first, second = output, entr(output) + entr(1 - output)
        else:
            # Shifted, because squares of nearly equal large outputs would cancel.
            self._origin = output[0] if self._origin is None else self._origin
            first = output - self._origin
            second = first**2
        sums = [len(output), error], first.sum(axis=0), second.sum(axis=0)
        self._groups.append(np.concatenate(sums))

    @property
    def mean_squared_error(self) -> float:
        count, error, *_ = self._total
        return float(error / count)

    def information(self, noise_variance: float | None = None) -> OutputInformation:
        """Return U, with the mean squared error as v if no noise variance is given."""
        total, n_groups = self._total, len(self._groups)
        without = [self._bound(total - group, noise_variance) for group in self._groups]
        noise = None
        if self.likelihood == "gaussian":
            noise = _variance_of_noise(noise_variance, self.mean_squared_error)
        return OutputInformation(
            bound=self._bound(total, noise_variance),
            # (n - 1) / n times the sum of squares, by the jackknife.
            standard_error=float(np.sqrt((n_groups - 1) * np.var(without))),
            likelihood=self.likelihood,
            noise_variance=noise,
            n_draws=int(total[0]),
        )

    @property
    def _total(self) -> Floats:
        return np.asarray(sum(self._groups))

    def _bound(self, sums: Floats, noise_variance: float | None) -> float:
        count, error = sums[:2]
        mean, second = np.split(sums[2:] / count, 2)
        if self.likelihood == "bernoulli":
            gain = entr(mean) + entr(1 - mean) - second
            return max(0.0, float(gain.sum()))
        variance = np.maximum(second - mean**2, 0) * count / max(count - 1, 1)
        noise = _variance_of_noise(noise_variance, error / count)
        return float(np.log1p(variance / noise).sum() / 2)


def output_information(
    output: ArrayLike,
    *,
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
    noise_variance: float | None = None,
) -> OutputInformation:
    r"""Estimate an upper bound on the information of a decoder's outputs on the code.

    Assume that the features are independent given the code z, and that the outputs f(z)
    are their means. With expectations over drawn codes::

        Gaussian     U = 1/2 sum_f log(1 + Var f_f(z) / v)
        Bernoulli    U = sum_f [H(E f_f(z)) - E H(f_f(z))]

    H(p) is the entropy of one feature. For samples x' drawn from the decoder,
    I(x'; z) <= U.

    Parameters
    ----------
    output : array-like of shape (n_draws, n_features)
        f(z) for at least two independently drawn codes z. For "bernoulli" these are
        probabilities.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        The likelihood of the decoder.
    noise_variance : float or None, default=None
        v, the variance of the Gaussian likelihood, above 0, in squared units of the
        outputs. It must be given for "gaussian", and None for "bernoulli".

    Returns
    -------
    OutputInformation
        U in nats, with its standard error over the draws.

    Raises
    ------
    ValueError
        If an argument is not valid, or `noise_variance` is missing or not needed.

    Notes
    -----
    Each feature carries at most as much as a Gaussian of its variance, and features
    that are independent given the code carry at most the sum. U is an estimate. It does
    not include events that are too rare for the draws, nor does its standard error. U
    does not apply to decoders with inputs besides the code, such as a label or earlier
    values of the output.

    References
    ----------
    Theory section 17.

    Examples
    --------
    A decoder whose first feature is the code itself, with noise of the same variance:

    >>> import numpy as np
    >>> from skvaecert.information import output_information
    >>> codes = np.random.default_rng(0).normal(size=20_000)
    >>> output = np.column_stack([codes, np.zeros(20_000)])
    >>> found = output_information(output, noise_variance=1.0)
    >>> round(found.bound, 2), round(float(np.log(2)) / 2, 2)
    (0.34, 0.35)
    >>> found.standard_error < 0.01
    True
    """
    sums = OutputSums(likelihood)
    if (noise_variance is None) == (likelihood == "gaussian"):
        raise ValueError(
            "noise_variance must be a number for likelihood='gaussian' and None "
            f"otherwise, got {noise_variance!r} for {likelihood!r}."
        )
    if noise_variance is not None:
        check_number("noise_variance", noise_variance, above=0)
    values = check_output(likelihood, check_real("output", output), name="output")
    if len(values) < 2:
        raise ValueError("output must have at least two draws, got 1. Draw more codes.")
    for group in np.array_split(values, min(_MOST_GROUPS, len(values))):
        sums.add(group)
    return sums.information(noise_variance)


def check_output(
    likelihood: Literal["gaussian", "bernoulli"], output: ArrayLike, *, name: str
) -> Floats:
    """Check the outputs of a decoder and flatten each of them.

    Parameters
    ----------
    likelihood : {"gaussian", "bernoulli"}
        The likelihood of the decoder.
    output : array-like of shape (n_draws, ...)
        Outputs.
    name : str
        Name of the function or array in error messages.

    Returns
    -------
    ndarray of shape (n_draws, n_features)
        The outputs in float64.
    """
    values = np.asarray(output, dtype=np.float64)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(
            f"{name} must have shape (n_draws, n_features), got {values.shape}."
        )
    largest = np.abs(values).max()
    if not largest < 1 / _SMALLEST:
        raise ValueError(
            f"{name} must be finite and below {1 / _SMALLEST:.0e}, got a largest "
            f"magnitude of {largest}."
        )
    values = values.reshape(len(values), -1)
    if likelihood == "gaussian":
        return values
    low, high = values.min(), values.max()
    if not -_RANGE_SLACK <= low <= high <= 1 + _RANGE_SLACK:
        raise ValueError(
            f"{name} must hold probabilities in [0, 1] for likelihood='bernoulli', got "
            f"values from {low:.6g} to {high:.6g}. Apply the sigmoid to logits."
        )
    return values.clip(0, 1)


def _variance_of_noise(given: float | None, measured: float) -> float:
    # Perfect outputs have a measured variance of 0, by which nothing can be divided.
    return float(max(measured, _SMALLEST) if given is None else given)
