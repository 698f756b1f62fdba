"""How much drawn codes carry, from both sides (theory section 16).

Encoders give q_i = N(mu_i, diag sigma_i^2) for each sample. What a code z ~ q_i says
about its sample i is I(i; z) = E v(z), the mean over drawn codes of

    v(z) = KL(p(.|z) || p),    p(j|z) = p_j q_j(z) / sum_k p_k q_k(z),

which lies in [0, max_i log 1/p_i]. The draws are our own. So bounds on the mean of
bounded values hold from both sides, for any samples and at any confidence. There is no
teacher and no witness, and nothing is fitted. All information is in nats.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Self

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
# Distances, in units of the smallest noise, above which squares are not expanded.
_STEEP = 1e3
# Deviations that a draw hardly ever exceeds.
_FAR = 6
# Logarithms that stand for 0: of any density, and of one beside the largest.
_NEVER, _NEGLIGIBLE = -1e290, -700.0
# Most samples whose codes are told from each other at once, in a stream.
_LOT = 8192
# Of several lots, each has fewer draws: together they are as many.
_SHARE_OF_DRAWS = 4
# Squares of the inverses of smaller deviations overflow.
_SMALLEST = 1e-150
# Logarithms of exponentials in float32 are off by this, at magnitude max(1, abs(log)).
_EXPONENTIAL = 4 * float(np.finfo(np.float32).eps)
# Codes drawn from each sample of a lot.
_DRAWS_IN_LOT = 4
# From 100 to 10,000 samples, weak codes did best with lots of n^0.5, strong ones with
# up to n^0.65.
_LOT_EXPONENT = 0.55
# Groups of outputs, each of which is left out once.
_MOST_GROUPS = 16
# How far rounding may push probabilities out of [0, 1].
_RANGE_SLACK = 1e-6


@dataclass(frozen=True)
class InformationBracket:
    """Both ends of I(i; z), the information of drawn codes about their samples.

    Attributes
    ----------
    low : float
        Lower bound in nats, at least 0, after the subtraction of `rounding`.
    high : float
        Upper bound in nats, from `low` to `limit`.
    estimate : float
        Mean over the draws, limited to the bracket.
    confidence : float
        Probability, over the draws, with which both ends hold.
    limit : float
        Entropy of the weights, -sum_i p_i log p_i; log n_samples for equal weights.
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
    low_by: str
    high_by: str

    def __str__(self) -> str:
        many = f"these {self.n_samples:,} samples"
        return carried_by_codes(self, "this sample" if self.n_samples == 1 else many)

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

    With codes z_1, ..., z_M drawn from the mixture, B a lower confidence bound on a
    mean (betting) and top = max_i log 1/p_i, the largest possible v::

        v(z) = KL(p(.|z) || p),    p(j|z) = p_j q_j(z) / sum_k p_k q_k(z)
        low  = B(v(z_m)) - rounding
        high = min(top - B(top - v(z_m)),  sum_i p_i KL(q_i || r),  limit)

    where r is the diagonal Gaussian with the moments of the mixture.

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        mu, means of the posteriors q(z|x_i).
    std : array-like of shape (n_samples, latent_dim)
        s, their standard deviations, above 0: exp(log_variance / 2).
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to p; uniform when None. A sample of weight 0 does not
        count.
    confidence : float, default=0.999999
        Probability with which both ends hold, in (0, 1).
    n_draws : int, default=40000
        M, the number of drawn codes in all. The width falls with its square root. Time
        grows with n_draws * n_samples * latent_dim, memory does not.
    random_state : int, numpy.random.Generator or None, default=None
        Seed of the draws; different ones each time when None.

    Returns
    -------
    InformationBracket
        Ends, estimate and limit in nats.

    Raises
    ------
    ValueError
        If an array or a parameter is not valid.

    See Also
    --------
    population_information : What codes say about samples of the population.
    skvaecert.diagnostics.mutual_information : An estimate without bounds.

    Notes
    -----
    *Guarantee.* With probability `confidence` or more over the draws,
    low <= I(i; z) <= high for these samples. They may be any samples: seen in training,
    dependent, duplicated. Of N encoders, some bracket fails with probability
    N (1 - confidence) at most, also where draws have the same seed. An encoder that was
    trained to please these very draws is not covered. I(i; z) is at most the entropy of
    p. So it says nothing about how many more samples could be told apart. Draws are
    stratified: draw m takes its sample from the m-th part of p in M. Their values are
    independent with different means, and their mean is I(i; z). That is enough for
    betting, since a product of positive factors with a mean of 1 is at most 1.

    *Weights.* A small p_i makes top, and with it the bracket, wide: the draws leave at
    least about top log(1 / (1 - confidence)) / M to each end. `limit` is the entropy.

    *The Gaussian.* Of all diagonal Gaussians r, the one with the moments of the mixture
    gives the smallest bound, sum_j (log s_j - sum_i p_i log s_ij). So `high` is never
    above the mean KL to the prior.

    *Rounding of the encoder.* A constant mean with rounding errors of float32 carries
    several nats under s = 1e-7. Let mu_ij be off by errors of root mean square u_j and
    log s_ij by h_j or less. By the chain rule, the codes carry at least I(i; z) less ::

        rounding = sum_j [log(1 + u_j^2 / min_i s_ij^2) / 2 + h_j^2]

    about the values without these errors, and `low` is a bound on this. The errors are
    an assumption, that of the certificate: 32 machine epsilons of float32, at magnitude
    max(1, abs(mu_ij)) for means and at max(1, abs(log s_ij^2)) for logarithms of
    variances. A column whose values all fit in 16 bits, whole values for example,
    counts as computed in 16 bits, with 8 epsilons, and so do the standard deviations of
    its dimension. One that is the same for all samples has no error. `estimate` and
    `high` are about codes as they are.

    *Arithmetic.* In float64. Squares of distances are expanded where they are less than
    1000 times the noise, which leaves an error of 1e-9 nats in each dimension. It is
    added to the bracket. Other distances are differences, exact for any ratio, which
    take up to 20 times as long.

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
    sums._lot_size = len(mean)
    return sums.update(mean, std, proba).bracket()


class InformationSums:
    """The bracket of :func:`code_information` for samples that come in batches.

    Samples are kept until they fill a lot of 8,192. Then codes are drawn from the lot,
    and the samples are dropped. With l the lot of sample i and P_l its share of all
    weight, I(i; z) = I(l; z) + sum_l P_l I(i; z | l), and I(l; z) is at most the
    entropy of P. With [low, high] bounds on the sum, from draws within lots::

        low - rounding <= I(i; z) <= min(high + sum_l P_l log 1/P_l,
                                         sum_i p_i KL(q_i || r),  limit)

    Up to 8,192 samples are one lot, and the bracket is that of
    :func:`code_information`.

    Parameters
    ----------
    confidence : float, default=0.999999
        Probability with which both ends of a bracket hold, in (0, 1).
    n_draws : int, default=10000
        Number of codes drawn from a single lot. Each of several has a quarter of it.
    random_state : int, numpy.random.Generator or None, default=0
        Seed of the draws; different ones each time when None.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    See Also
    --------
    code_information : From all samples at once, narrow for any number of them.

    Notes
    -----
    *Guarantee.* As for :func:`code_information`: each bracket holds with probability
    `confidence` or more over the draws.

    *Width.* Strong codes tell lots apart too. This adds up to the entropy of P, about
    log(n_samples / 8192), to the width. Weak ones are bounded by the Gaussian r, which
    is that of all samples.

    *Weights.* Values of lot l are divided by top_l = max_i log 1/p_i within the lot and
    have weight P_l top_l / n_draws. So no limit for all lots need be known beforehand.

    *Workers.* Sums with the same `random_state` draw the same noise. The merged bounds
    stay valid, and are as wide as those of one of them. With a seed for each they are
    narrower. Samples that do not fill a lot are merged as samples.

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
            mu, means of the posteriors q(z|x_i).
        std : array-like of shape (n_samples, latent_dim)
            s, their standard deviations, above 0: exp(log_variance / 2).
        sample_weight : array-like of shape (n_samples,), default=None
            Weights on the same scale in all batches; 1 when None. A sample of weight 0
            does not count.

        Returns
        -------
        self : InformationSums
            With these samples added.

        Raises
        ------
        ValueError
            If an array is not valid or has another latent_dim than those before.
        """
        means, deviations = _check_posteriors(mean, std)
        weight = check_weight(sample_weight, len(means))
        self._check_columns("mean", means.shape[1])
        counts = weight > 0
        if counts.any():
            samples = means[counts], deviations[counts], weight[counts]
            self._moments.add(*samples)
            self._waiting.append(samples)
            self._draw_full_lots()
        return self

    def merge(self, other: InformationSums) -> Self:
        """Add the samples of other sums.

        Parameters
        ----------
        other : InformationSums
            Of other samples of the same latent_dim. It is not changed.

        Returns
        -------
        self : InformationSums
            With these samples added.

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
            Ends, estimate and limit in nats. The estimate leaves out what codes say
            about the lots.

        Raises
        ------
        ValueError
            If there are no samples of a weight above 0.
        """
        if not self.n_samples:
            raise ValueError(
                "InformationSums has no samples of a weight above 0. Call update first."
            )
        # What is drawn for this answer is drawn again when the lot is full.
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
        if n_waiting <= size:
            return
        samples = _joined(self._waiting)
        for _ in range((n_waiting - 1) // size):
            lot, samples = _split(samples, size)
            self._lots.draw(lot, self._draws_in_lot, self._seed)
        self._waiting = [_split(samples, 0)[1]]

    def _check_columns(self, name: str, n_columns: int) -> None:
        if self.n_samples and n_columns != self._moments.n_columns:
            raise ValueError(
                f"{name} must have the latent_dim {self._moments.n_columns} of the "
                f"samples before, got {n_columns}."
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

    The samples are divided at random into lots of B. With B(.) a lower confidence bound
    on a mean (betting) and L the mean, over drawn codes, of the v of
    :func:`code_information` within a lot::

        B(L_1, ..., L_m) - rounding <= I(X; Z),    m = n_samples // B

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        mu, means of the posteriors q(z|x_i) of held-out samples.
    std : array-like of shape (n_samples, latent_dim)
        s, their standard deviations, above 0: exp(log_variance / 2).
    lot_size : int or None, default=None
        B, from 2 to n_samples, chosen before the samples are seen. None for
        n_samples^0.55, rounded down. The rest that does not fill a lot is left out.
    confidence : float, default=0.95
        Probability with which the bound holds, in (0, 1).
    random_state : int, numpy.random.Generator or None, default=None
        Seed of lots and draws; different ones each time when None.

    Returns
    -------
    float
        Nats, from 0 to log B.

    Raises
    ------
    ValueError
        If an array or a parameter is not valid.

    See Also
    --------
    code_information : What codes say about these samples, from both sides.

    Notes
    -----
    *Guarantee.* Let the samples be drawn independently from one population, and let
    nothing be fitted on them, not even the time at which training stopped. With
    probability `confidence` or more over samples and draws, the bound is at most
    I(X; Z), for every number of samples and every population. Training samples are not
    covered: an encoder that has memorised them looks more informative than it is. If
    samples depend on each other, as the frames of a video or the augmented copies of an
    image, lots do too, and the bound is too high more often than stated. So is the
    largest bound of several lot sizes or seeds.

    *Why.* The mean of L is at most I(X; Z), whatever B (InfoNCE with known densities).
    No bound of this kind is far above log n.

    *Lot size.* Small lots limit the bound to log B, and few lots cost confidence: about
    4 lots of all at 95 %. The default came within 10 % of the best size for weak and
    strong, clustered and half-dead codes of 100 to 10,000 samples.

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
    # Each end of the draws fails with half of the probability; the others cannot.
    each = (1 + confidence) / 2
    draws = "draws" if lots.count == 1 else "draws in lots"
    highs = {
        "limit": moments.limit,
        "moment-matched Gaussian": moments.gaussian_bound + error,
        draws: lots.scale * lots.shares.high(each) + lots.entropy + error,
    }
    high_by = min(highs, key=highs.__getitem__)
    high = max(0.0, highs[high_by])
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


def carried_by_codes(bracket: InformationBracket, about: str) -> str:
    """Say what drawn codes carry about some samples; ends are rounded outwards.

    Parameters
    ----------
    bracket : InformationBracket
        What they carry.
    about : str
        The samples, in words.

    Returns
    -------
    str
        A sentence.
    """
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
    """Draws within lots, as shares of the largest v that each lot may have."""

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
        order = order[proba[order] > 0]
        # The number of the lot keeps its draws apart from those of lots before.
        generator = np.random.default_rng([seed, self.count])
        self._seeds.add(seed)
        self.count += 1
        self._weight += total
        self._weight_log += float(xlogy(total, total))
        top = float(-np.log(proba[order].min()))
        if len(order) > 1:
            mixture = _Mixture(mean[order], std[order], proba[order])
            chosen = _stratified(mixture.proba, n_draws, generator)
            values = mixture.divergences(chosen, generator)
            weights = np.full(n_draws, total * top / n_draws)
            self.shares.update((values / top).clip(max=1), weights)
            self._reach += total * top

    def merge(self, other: _Lots) -> None:
        independent = self._seeds.isdisjoint(other._seeds)
        self.shares.merge(other.shares, independent=independent)
        self.count += other.count
        self._weight += other._weight
        self._weight_log += other._weight_log
        self._reach += other._reach
        self._seeds |= other._seeds

    @property
    def scale(self) -> float:
        """What the shares are shares of: sum_l P_l top_l."""
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
        # Standard deviations and what they may have been computed from.
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
        """What rounding adds: sum_j log(1 + u_j^2 / min_i s_ij^2) / 2 + h_j^2."""
        unit_of_std = self._std[0].unit
        for sums in (self.mean, *self._std[1:]):
            unit_of_std = np.maximum(unit_of_std, sums.unit)
        unit_of_std = np.where(self._std[0].unit > 0, unit_of_std, 0)
        logarithms = unit_of_std * np.maximum(self._largest_log, 0.5)
        with np.errstate(over="ignore"):
            ratio = self.mean.square_errors / np.square(self._smallest)
        return float((np.log1p(ratio) / 2 + logarithms**2).sum())


def _origins(std: Floats, logarithms: Floats) -> tuple[Floats, Floats, Floats]:
    """Return deviations, log-variances and variances.

    An encoder may compute the latter in 16 bits and the former from them in 32 (theory
    section 16).
    """
    log_variance, variance = 2 * logarithms, std**2
    return (
        std,
        _snapped(log_variance, np.maximum(np.abs(log_variance), 1)),
        _snapped(variance, variance),
    )


def _snapped(values: Floats, magnitude: Floats) -> Floats:
    """Return values of 16 bits where arithmetic in 32 may have moved them away."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float16).astype(np.float64)
        return np.where(abs(values - near) <= _EXPONENTIAL * magnitude, near, values)


def _entropy(weight: float, weight_log: float) -> float:
    """Return the entropy of weights, from their sum and that of w log w."""
    return max(0.0, float(np.log(weight)) - weight_log / weight)


_Samples = tuple[Floats, Floats, Floats]


class _Mixture:
    """The mixture sum_j p_j q_j, laid out for densities at many codes."""

    def __init__(self, mean: Floats, std: Floats, proba: Floats) -> None:
        self.mean, self.std, self.proba = mean, std, proba
        self._log_proba = np.log(proba)
        self._centred = _centred(mean, proba)
        reach = np.abs(self._centred).max(axis=0) + _FAR * std.max(axis=0)
        steep = reach > _STEEP * std.min(axis=0)
        self._steep, self._flat = np.flatnonzero(steep), np.flatnonzero(~steep)
        centred, precision = self._centred[:, self._flat], std[:, self._flat] ** -2.0
        constant = self._log_proba - np.log(std).sum(axis=1)
        self._range = float(np.ptp(constant))
        constant -= (centred**2 * precision).sum(axis=1) / 2
        # log p_j q_j(z) = (z^2, z, 1) @ weights, for dimensions without cancellation.
        self._weights = np.vstack([-precision.T / 2, (centred * precision).T, constant])

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
        """Return the divergences at mu + step, summed over samples in lots."""
        code = (self._centred[origin] + step)[:, self._flat]
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
            sums[1] += (before - largest) * sums[0]
            sums *= np.exp(before - largest)
            share = np.exp(joint)
            sums[0] += share.sum(axis=1)
            sums[1] += np.einsum("ij,ij->i", share, joint)
            sums[2] += share @ self._log_proba[lot]
        return np.asarray((sums[1] - sums[2]) / sums[0] - np.log(sums[0]))

    def _is_out_of_reach(
        self, origin: NDArray[np.intp], step: Floats, lot: slice
    ) -> bool:
        """Tell whether one steep dimension alone keeps the samples from all codes.

        Beside that of its own sample, their densities are then below exp(_NEGLIGIBLE).
        """
        if not len(self._steep):
            return False
        steep = self._steep
        own = ((step / self.std[origin]) ** 2).sum(axis=1).max() / 2
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
            np.maximum(joint, _NEVER, out=joint)


def _along_steepest(mean: Floats, std: Floats) -> NDArray[np.intp]:
    """Order samples by the mean that varies most beside the noise.

    Then near samples are together, and many are out of reach of the codes of others.
    """
    steepest = (np.ptp(mean, axis=0) / std.max(axis=0)).argmax()
    return np.argsort(mean[:, steepest], kind="stable")


def _centred(mean: Floats, proba: Floats) -> Floats:
    # Shifted by the first sample, so that equal means are exactly 0.
    shifted = mean - mean[0]
    return np.asarray(shifted - proba @ shifted)


def _stratified(
    proba: Floats, n_draws: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Draw samples from p, one from each of its n_draws parts."""
    place = (np.arange(n_draws) + generator.random(n_draws)) / n_draws
    chosen = np.searchsorted(np.cumsum(proba), place, side="right")
    return np.minimum(chosen, len(proba) - 1)


def _arithmetic_error(latent_dim: int) -> float:
    """Return what expanding squares of up to _STEEP^2 may cost, in nats."""
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
            "mean must have at least two samples, got 1. Give more samples."
        )
    if lot_size is None:
        return max(2, int(n_samples**_LOT_EXPONENT))
    check_count("lot_size", lot_size, least=2)
    if lot_size > n_samples:
        raise ValueError(
            f"lot_size must be at most n_samples = {n_samples}, got {lot_size}. Leave "
            "it at None, or give more samples."
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
    """What the outputs of a decoder carry about the code, at most, and how exactly.

    Attributes
    ----------
    bound : float
        U, estimated from the draws, nats, at least 0.
    standard_error : float
        Standard error of `bound` over the draws, nats.
    likelihood : {"gaussian", "bernoulli"}
        What the outputs mean.
    noise_variance : float or None
        v of the Gaussian likelihood, in squared units of the outputs.
    n_draws : int
        Number of codes that were decoded.
    """

    bound: float
    standard_error: float
    likelihood: str
    noise_variance: float | None
    n_draws: int

    @property
    def high(self) -> float:  # numpydoc ignore=RT01
        """`bound` and three standard errors, nats."""
        return self.bound + 3 * self.standard_error


class OutputSums:
    """Moments of outputs for drawn codes, in groups: no output is kept.

    What is missing without one of the groups gives the standard error (jackknife).
    """

    def __init__(self, likelihood: str) -> None:
        if likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(
                f"likelihood must be 'gaussian' or 'bernoulli', got {likelihood!r}."
            )
        self.likelihood = likelihood
        self._origin: Floats | None = None
        # Of each group: number, squared error, first and second moments.
        self._groups: list[Floats] = []

    def add(self, output: Floats, target: Floats | None = None) -> None:
        """Add a group of outputs, for codes of samples `target`."""
        error = 0.0 if target is None else ((output - target) ** 2).mean(axis=1).sum()
        if self.likelihood == "bernoulli":
            first, second = output, entr(output) + entr(1 - output)
        else:
            # Shifted, so that squares of nearly equal outputs do not cancel.
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
        """Return U; v is the mean squared error if no noise variance is given."""
        total, n_groups = self._total, len(self._groups)
        without = [self._bound(total - group, noise_variance) for group in self._groups]
        noise = None
        if self.likelihood == "gaussian":
            noise = _variance_of_noise(noise_variance, self.mean_squared_error)
        return OutputInformation(
            bound=self._bound(total, noise_variance),
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
    likelihood: str = "gaussian",
    noise_variance: float | None = None,
) -> OutputInformation:
    r"""Bound what a decoder's outputs carry about the code, from drawn codes.

    With features independent given the code z, outputs f(z) that are the means of the
    features, and expectations over drawn codes::

        Gaussian     U = 1/2 sum_f log(1 + Var f_f(z) / v)
        Bernoulli    U = sum_f [H(E f_f(z)) - E H(f_f(z))]

    H(p) is the entropy of one feature. I(x'; z) <= U for samples x' drawn from the
    decoder.

    Parameters
    ----------
    output : array-like of shape (n_draws, n_features)
        f(z) for independent draws z of the codes; probabilities for "bernoulli". At
        least two draws.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        What the outputs mean.
    noise_variance : float or None, default=None
        v, the variance of the Gaussian likelihood, above 0, in squared units of the
        outputs.

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
    Each feature carries at most what a Gaussian of its variance would, and independent
    features together at most the sum. U is estimated. Events too rare for the draws are
    not in it, nor in its standard error. Decoders that see more than the code, earlier
    values of the output or a label, are not measured by this.

    References
    ----------
    Theory section 17.

    Examples
    --------
    A decoder that passes the code on, with noise of its size, in one feature of two:

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
            "noise_variance must be given for likelihood='gaussian', and for no other, "
            f"got {noise_variance!r} for {likelihood!r}."
        )
    if noise_variance is not None:
        check_number("noise_variance", noise_variance, above=0)
    values = check_output(likelihood, check_real("output", output), name="output")
    if len(values) < 2:
        raise ValueError("output must have at least two draws, got 1. Draw more codes.")
    for group in np.array_split(values, min(_MOST_GROUPS, len(values))):
        sums.add(group)
    return sums.information(noise_variance)


def check_output(likelihood: str, output: ArrayLike, *, name: str) -> Floats:
    """Check outputs of a decoder and flatten each.

    Parameters
    ----------
    likelihood : {"gaussian", "bernoulli"}
        What the outputs mean.
    output : array-like of shape (n_draws, ...)
        Outputs.
    name : str
        What returned them, for errors.

    Returns
    -------
    ndarray of shape (n_draws, n_features)
        In float64; probabilities for "bernoulli".
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
    # Perfect outputs leave no noise, and a variance of 0 no quotient.
    return float(max(measured, _SMALLEST) if given is None else given)
