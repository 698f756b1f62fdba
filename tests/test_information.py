import json
import pickle

import mpmath
import numpy as np
import pytest
from scipy.special import entr, expit, logsumexp
from scipy.stats import binom, norm

from skvaecert.diagnostics import kl_per_dimension, mutual_information
from skvaecert.information import (
    InformationBracket,
    InformationSums,
    _Mixture,
    code_information,
    output_information,
    population_information,
)

DELTA = 0.05


def exact_information(mean, std, weight=None):
    """I(i; z) of one-dimensional codes, by the trapezoid rule around each sample."""
    nodes, step = np.linspace(-9, 9, 4001, retstep=True)
    proba = np.ones(len(mean)) if weight is None else np.asarray(weight, dtype=float)
    proba = proba / proba.sum()
    total = 0.0
    for center, width, p in zip(mean, std, proba, strict=True):
        log_densities = norm.logpdf(center + width * nodes[:, np.newaxis], mean, std)
        own = norm.logpdf(nodes) - np.log(width)
        gains = own - logsumexp(log_densities, b=proba, axis=1)
        total += p * step * norm.pdf(nodes) @ gains
    return total


def test_the_exact_information_is_that_of_two_known_cases():
    assert exact_information([-50, 50], [1, 2]) == pytest.approx(np.log(2))
    # Equal means: ln of the ratio of densities under each, by mpmath.
    ratio = [lambda z: mpmath.npdf(z, 0, 1), lambda z: mpmath.npdf(z, 0, 0.5)]

    def gain(z):
        mixture = (ratio[0](z) + ratio[1](z)) / 2
        return sum(q(z) * mpmath.log(q(z) / mixture) for q in ratio) / 2

    expected = float(mpmath.quad(gain, [-9, -2, 0, 2, 9]))
    assert exact_information([0, 0], [1, 0.5]) == pytest.approx(expected, abs=1e-9)


def embedded(coordinates, seed=0):
    """The same codes in 16 dimensions, rotated, with unit noise."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0][: coordinates.shape[1]]
    return coordinates @ turn, np.ones((len(coordinates), 16))


def grid(first, second):
    """All pairs, in 16 dimensions: their information is that of both parts together."""
    pairs = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    parts = [exact_information(part, np.ones(len(part))) for part in (first, second)]
    return *embedded(pairs), None, sum(parts)


def line(mean, std, weight=None):
    mean, std = np.asarray(mean, dtype=float), np.broadcast_to(std, len(mean))
    truth = exact_information(mean, std, weight)
    return mean[:, np.newaxis], std[:, np.newaxis], weight, truth


def half_dead():
    rng = np.random.default_rng(3)
    mean, std = np.r_[2 * rng.normal(size=10), np.zeros(10)], np.repeat([0.2, 1], 10)
    return line(mean, std)


def scaled(unit):
    mean, std, _, truth = line(np.random.default_rng(4).normal(size=7), 0.6)
    return unit * mean, unit * std, None, truth


def duplicated():
    mean, std, _, truth = line(np.random.default_rng(5).normal(size=6), 0.4)
    return np.tile(mean, (9, 1)), np.tile(std, (9, 1)), None, truth


def weighted():
    rng = np.random.default_rng(6)
    return line(rng.normal(size=10), rng.uniform(0.2, 1, 10), np.logspace(-4, 0, 10))


def normal(size, scale):
    return scale * np.random.default_rng(size).normal(size=size)


CASES = {
    "1-d, near-collapsed": lambda: line(normal(12, 0.05), 1.0),
    "1-d, strong": lambda: line(normal(30, 20), 1.0),
    "two samples": lambda: line([-0.7, 0.8], [1.0, 0.8]),
    "16-d, near-collapsed": lambda: grid(normal(4, 0.05), normal(6, 0.05)),
    "16-d, strong": lambda: grid(normal(5, 6), normal(7, 4)),
    "half-dead": half_dead,
    "duplicated": duplicated,
    "weighted": weighted,
    "tiny noise": lambda: scaled(1e-5),
    "tiniest noise": lambda: scaled(1e-120),
    "huge noise": lambda: scaled(1e90),
    "5,000 samples": lambda: grid(normal(50, 1), normal(100, 1)),
}


def most_misses(repeats, error):
    return binom.ppf(1 - 1e-6, repeats, error)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_end_misses_at_most_as_often_as_it_says(case):
    mean, std, weight, truth = CASES[case]()
    repeats = 20 if len(mean) > 1000 else 1000
    rng = np.random.default_rng(0)
    brackets = [
        code_information(
            mean,
            std,
            sample_weight=weight,
            confidence=1 - DELTA,
            n_draws=n_draws,
            random_state=rng,
        )
        for n_draws in [20, 150] * (repeats // 2)
    ]
    # The truth is known to 1e-6.
    low, high = np.array([[b.low - 1e-6, b.high + 1e-6] for b in brackets]).T
    most = most_misses(repeats, DELTA / 2)
    assert np.sum(low > truth) <= most
    assert np.sum(high < truth) <= most
    assert all(0 <= b.low <= b.estimate <= b.high <= b.limit for b in brackets)


@pytest.mark.slow
def test_bounds_that_miss_would_be_seen():
    """The mean of the draws, used as a bound, misses far more often."""
    mean, std, _, truth = CASES["two samples"]()
    estimates = [
        code_information(mean, std, n_draws=150, random_state=seed).estimate
        for seed in range(250)
    ]
    assert np.sum(np.array(estimates) > truth) > most_misses(250, DELTA)
    assert np.sum(np.array(estimates) < truth) > most_misses(250, DELTA)


def digits_like(n_samples=450):
    """Codes as in models of digits: clusters, and inactive dimensions."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 16)) * (np.arange(16) < 8)
    mean = centers[rng.integers(10, size=n_samples)]
    mean[:, :8] += 0.3 * rng.normal(size=(n_samples, 8))
    return mean, np.where(np.arange(16) < 8, 0.6, 1.0) * np.ones_like(mean)


def test_the_bracket_is_narrow():
    mean, std = digits_like()
    bracket = code_information(mean, std, random_state=0)
    assert 2.5 < bracket.low < bracket.high < 3.5
    assert bracket.high - bracket.low < 0.05
    # Two estimates of the same information, from other draws.
    other = mutual_information(mean, std, n_draws=40, random_state=1)
    assert bracket.estimate == pytest.approx(other, abs=0.02)
    assert (bracket.low_by, bracket.high_by) == ("draws", "draws")
    assert bracket.confidence == 0.999999


def test_collapse_is_certified():
    """A spread of a hundredth of the noise: at most d / 2 * 0.01^2 nats."""
    mean = 0.01 * np.random.default_rng(0).normal(size=(450, 16))
    bracket = code_information(mean, np.ones((450, 16)), n_draws=100, random_state=0)
    assert 0 <= bracket.low <= bracket.high < 0.001
    assert bracket.high_by == "moment-matched Gaussian"


@pytest.mark.parametrize("distance", [30.3, 1e20 / 3])
def test_two_samples_far_apart(distance):
    bracket = code_information([[0.1], [distance]], [[0.3], [0.3]], random_state=0)
    assert bracket.low > np.log(2) - 0.001 - bracket.rounding
    assert bracket.estimate == bracket.high == bracket.limit == np.log(2)
    assert bracket.high_by == "limit"


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e9 / 3, -1e120])
@pytest.mark.parametrize("noise", [1e-140, 0.1, 1e9])
def test_equal_samples_carry_nothing(value, noise):
    mean, std = np.full((300, 2), value), np.full((300, 2), noise)
    bracket = code_information(mean, std, n_draws=500, random_state=0)
    assert (bracket.low, bracket.low_by) == (0, "zero")
    assert bracket.high < 1e-7
    assert population_information(mean, std, random_state=0) == 0


def test_one_sample_cannot_be_distinguished_from_others():
    bracket = code_information([[1.3, 0.2]], [[0.5, 2.0]], n_draws=5)
    assert bracket == InformationBracket(
        low=0.0,
        high=0.0,
        estimate=0.0,
        confidence=0.999999,
        limit=0.0,
        rounding=0.0,
        n_samples=1,
        low_by="zero",
        high_by="limit",
    )


@pytest.mark.parametrize("n_draws", [1, 2, 449, 1000])
def test_any_number_of_draws_is_enough(n_draws):
    mean, std = digits_like()
    bracket = code_information(mean, std, n_draws=n_draws, random_state=0)
    assert 0 <= bracket.low <= bracket.estimate <= bracket.high <= bracket.limit


def test_the_gaussian_bound_is_never_above_the_prior():
    rng = np.random.default_rng(0)
    for spread in (0.01, 0.1):
        mean, std = spread * rng.normal(size=(60, 3)), rng.uniform(0.9, 1, (60, 3))
        bracket = code_information(mean, std, n_draws=1, random_state=0)
        assert bracket.high_by == "moment-matched Gaussian"
        assert bracket.high < kl_per_dimension(mean, std).sum() + 1e-7
        # KL to the Gaussian, written out.
        variance = mean.var(axis=0) + (std**2).mean(axis=0)
        ratio = (std**2 + (mean - mean.mean(axis=0)) ** 2) / variance
        kl = (ratio - 1 - np.log(std**2 / variance)).sum(axis=1).mean() / 2
        assert bracket.high == pytest.approx(kl, abs=1e-7)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e5, 1e8, 1e12])
def test_divergences_against_exact_arithmetic(ratio):
    """Three clusters, `ratio` deviations from the origin and from each other."""
    rng = np.random.default_rng(0)
    mean = ratio * rng.integers(-1, 2, size=(9, 3)) + 0.7 * rng.normal(size=(9, 3))
    std, proba = rng.uniform(0.5, 2, size=(9, 3)), rng.dirichlet(np.ones(9))
    chosen = np.tile(np.arange(9), 3)
    values = _Mixture(mean, std, proba).divergences(chosen, np.random.default_rng(1))
    noise = np.random.default_rng(1).standard_normal((27, 3))
    with mpmath.workdps(40):
        expected = [
            float(exact_divergence(mean, std, proba, i, step))
            for i, step in zip(chosen, std[chosen] * noise, strict=True)
        ]
    np.testing.assert_allclose(values, expected, atol=1e-8)


def exact_divergence(mean, std, proba, origin, step):
    code = [
        mpmath.mpf(m) + mpmath.mpf(s) for m, s in zip(mean[origin], step, strict=True)
    ]
    densities = [
        p * mpmath.fprod(map(mpmath.npdf, code, map(mpmath.mpf, m), s))
        for p, m, s in zip(proba, mean, std, strict=True)
    ]
    shares = [density / mpmath.fsum(densities) for density in densities]
    return mpmath.fsum(
        q * mpmath.log(q / mpmath.mpf(p))
        for q, p in zip(shares, proba, strict=True)
        if q
    )


def test_the_order_of_lots_of_samples_does_not_matter():
    """Far more samples than are in memory at once, the nearest last."""
    mean = np.linspace(3000, 0, 3001)[:, np.newaxis]
    std, proba = np.ones_like(mean), np.full(3001, 1 / 3001)
    chosen = np.array([0, 1500, 3000])
    orders = [np.arange(3001), np.arange(3001)[::-1]]
    values = [
        _Mixture(mean[order], std, proba).divergences(
            order[chosen], np.random.default_rng(0)
        )
        for order in orders
    ]
    np.testing.assert_allclose(values[0], values[1])


def jittered(rng, n_samples, latent_dim, dtype):
    """A constant, as a network of `dtype` may compute it."""
    constant = rng.normal(size=latent_dim) * 10 ** rng.uniform(-3, 2)
    size = np.maximum(1, np.abs(constant)) * float(np.finfo(dtype).eps)
    noise = rng.integers(-4, 5, size=(n_samples, latent_dim))
    return (constant + size * noise).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("noise", [1e-9, 1e-7, 1e-5, 1e-3])
def test_rounding_of_a_constant_mean_is_no_information(dtype, noise):
    rng = np.random.default_rng(0)
    for latent_dim in (1, 2, 16):
        mean = jittered(rng, 200, latent_dim, dtype).astype(np.float64)
        std = np.full(mean.shape, noise)
        bracket = code_information(mean, std, n_draws=400, random_state=0)
        assert bracket.low == 0
        assert population_information(mean, std, random_state=0) == 0
    if noise == 1e-7:
        # The draws are enough: without rounding, the codes do carry nats.
        assert bracket.estimate > 4


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("noise", [1e-9, 1.0, 30.0])
def test_rounding_of_a_constant_std_is_no_information(dtype, noise):
    rng = np.random.default_rng(0)
    shape = 200, 16
    jitter = float(np.finfo(dtype).eps) * rng.integers(-2, 3, size=shape)
    log_std = np.log(noise) + jitter * max(1, abs(np.log(noise)))
    std = np.exp(log_std)
    bracket = code_information(
        jittered(rng, *shape, dtype), std, n_draws=400, random_state=0
    )
    assert bracket.low == 0


def test_rounding_bounds_what_rounding_adds():
    """Clusters that rounding splits: at most the entropy of the clusters remains."""
    rng = np.random.default_rng(0)
    error = 32 * float(np.finfo(np.float32).eps)
    for noise in (1e-7, 1e-6, 1e-5):
        cluster = np.repeat([0.2, 0.6], 100)[:, np.newaxis]
        mean = cluster + error * rng.uniform(-1, 1, size=cluster.shape)
        bracket = code_information(mean, np.full_like(mean, noise), random_state=0)
        assert bracket.low <= np.log(2)
    assert bracket.low > 0.6


def test_rounding_costs_ordinary_codes_nothing():
    mean, std = digits_like()
    assert code_information(mean, std, n_draws=10).rounding < 1e-8


def test_weights_count_as_repetitions():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(40, 2)), rng.uniform(0.3, 1, size=(40, 2))
    weight = rng.integers(1, 5, size=40)
    actual = code_information(mean, std, sample_weight=weight, random_state=0)
    repeated = [values.repeat(weight, axis=0) for values in (mean, std)]
    # Copies of a sample cannot be distinguished, but the limit does not use this.
    expected = code_information(*repeated, random_state=0)
    assert actual.estimate == pytest.approx(expected.estimate, abs=0.02)
    assert actual.limit == pytest.approx(entr(weight / weight.sum()).sum())


def test_a_sample_of_weight_0_counts_for_nothing():
    mean, std = digits_like(50)
    expected = code_information(mean, std, n_draws=300, random_state=0)
    for far in (0.1, 1e17):
        extended = np.vstack([np.full(16, far), mean]), np.vstack([np.ones(16), std])
        weight = np.r_[0, np.full(50, 3.0)]
        actual = code_information(
            *extended, sample_weight=weight, n_draws=300, random_state=0
        )
        assert actual == expected


def test_rare_samples_widen_the_bracket():
    mean, std = digits_like(50)
    rare = np.r_[np.ones(49), 1e-12]
    widths = [
        bracket.high - bracket.low
        for weight in (None, rare)
        for bracket in [
            code_information(mean, std, sample_weight=weight, random_state=0)
        ]
    ]
    assert widths[0] < widths[1] < 0.3


def test_the_order_of_samples_does_not_matter_in_law():
    mean, std = digits_like(100)
    order = np.random.default_rng(0).permutation(100)
    one, other = (
        code_information(mean[part], std[part], random_state=seed)
        for seed, part in enumerate([np.arange(100), order])
    )
    assert one.estimate == pytest.approx(other.estimate, abs=0.02)
    assert one.limit == other.limit


def test_equal_seeds_give_equal_results():
    mean, std = digits_like(60)
    for function in (code_information, population_information):
        first = function(mean, std, random_state=3)
        assert first == function(mean, std, random_state=3)
        assert first == function(mean, std, random_state=np.random.default_rng(3))
        assert first != function(mean, std, random_state=4)
        assert first == function(mean.tolist(), std.tolist(), random_state=3)


def mixed_population(n_samples, rng):
    """Half of the samples dead: z is N(0, 1) or N(0, 1.09)."""
    alive = rng.random(n_samples) < 0.5
    mean = np.where(alive, rng.normal(size=n_samples), 0)
    return mean[:, np.newaxis], np.where(alive, 0.3, 1.0)[:, np.newaxis]


def mixed_information():
    z, step = np.linspace(-12, 12, 20001, retstep=True)
    density = (norm.pdf(z) + norm.pdf(z, scale=np.sqrt(1.09))) / 2
    noise = (norm(0, 1).entropy() + norm(0, 0.3).entropy()) / 2
    return step * entr(density).sum() - noise


def linear_gaussian(slope, latent_dim):
    def draw(n_samples, rng):
        mean = slope * rng.normal(size=(n_samples, latent_dim))
        return mean, np.ones_like(mean)

    return draw, latent_dim / 2 * np.log1p(slope**2)


POPULATIONS = {
    "1-d, near-collapsed": linear_gaussian(0.1, 1),
    "1-d": linear_gaussian(1.0, 1),
    "1-d, strong": linear_gaussian(30.0, 1),
    "16-d, near-collapsed": linear_gaussian(0.02, 16),
    "16-d, strong": linear_gaussian(2.0, 16),
    "half-dead": (mixed_population, mixed_information()),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "lot_size"),
    [
        *((population, None) for population in POPULATIONS),
        ("1-d, near-collapsed", 2),
        ("16-d, strong", 2),
    ],
)
def test_the_population_bound_misses_at_most_as_often_as_it_says(population, lot_size):
    draw, truth = POPULATIONS[population]
    rng, repeats = np.random.default_rng(0), 500
    bounds = [
        population_information(*draw(60, rng), lot_size=lot_size, random_state=rng)
        for _ in range(repeats)
    ]
    assert np.sum(np.array(bounds) > truth) <= most_misses(repeats, DELTA)
    assert min(bounds) >= 0


def test_the_population_bound_is_not_trivial():
    rng = np.random.default_rng(0)
    for name, share in [("1-d", 0.8), ("1-d, strong", 0.7), ("half-dead", 0.8)]:
        draw, truth = POPULATIONS[name]
        assert population_information(*draw(2000, rng), random_state=0) > share * truth


@pytest.mark.slow
def test_the_default_lot_is_near_the_best():
    rng = np.random.default_rng(0)
    for n_samples in (100, 1000):
        for name in ("1-d", "16-d, strong"):
            samples = POPULATIONS[name][0](n_samples, rng)

            def mean_bound(size, samples=samples):
                bounds = [
                    population_information(*samples, lot_size=size, random_state=seed)
                    for seed in range(8)
                ]
                return np.mean(bounds)

            best = max(map(mean_bound, np.geomspace(4, n_samples / 4, 8).astype(int)))
            assert mean_bound(None) > 0.88 * best


def test_memorized_samples_fake_information():
    """Why held-out samples: codes of memorized noise look informative."""
    mean = np.random.default_rng(0).normal(size=(500, 4))
    assert population_information(mean, np.full((500, 4), 0.01), random_state=0) > 2


def test_the_rest_of_a_lot_is_left_out():
    mean, std = digits_like(50)
    whole = population_information(mean, std, lot_size=50, random_state=0)
    assert 0 <= whole <= np.log(50)
    assert population_information(mean, std, lot_size=49, random_state=0) >= 0
    assert population_information(mean[:2], std[:2], random_state=0) >= 0


FUNCTIONS = [code_information, population_information]
MEAN, STD = digits_like(20)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, -STD, r"std must be above 0 .*log-variances, pass numpy.exp\(std / 2\)"),
        (MEAN, 0 * STD, r"std must be above 0 .*got a smallest value of 0\.0"),
        (MEAN, np.nan * STD, "std must be finite and below 1e.150, got .* nan"),
        (np.inf * STD, STD, "mean must be finite and below 1e.150, got .* inf"),
        (MEAN[:, 0], STD[:, 0], r"mean must have shape .* got shape \(20,\).*newaxis"),
        (MEAN[:0], STD[:0], r"mean must have shape .* not empty, got shape \(0, 16\)"),
        (
            MEAN,
            STD[:, :3],
            r"std must have the shape \(20, 16\) of mean, got \(20, 3\)",
        ),
        (MEAN + 1j, STD, "mean must hold real .* got complex128"),
        (MEAN, "wide", "std must hold real numbers, .* got <U4"),
        (np.ma.masked_less(MEAN, 0), STD, "mean must hold real .* a masked array"),
    ],
)
def test_arrays_are_checked(function, mean, std, message):
    with pytest.raises(ValueError, match=message):
        function(mean, std)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("confidence", [0, 1, 95, np.nan, "high", None])
def test_confidence_is_checked(function, confidence):
    with pytest.raises(ValueError, match="confidence must be a finite number above"):
        function(MEAN, STD, confidence=confidence)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("seed", [-1, 0.5, "seed"])
def test_seeds_are_checked(function, seed):
    with pytest.raises(ValueError, match="random_state must be an int of at least 0"):
        function(MEAN, STD, random_state=seed)


@pytest.mark.parametrize("n_draws", [0, -3, 2.5, None, "many"])
def test_draws_are_checked(n_draws):
    with pytest.raises(ValueError, match="n_draws must be an int of at least 1, got"):
        code_information(MEAN, STD, n_draws=n_draws)


def test_lot_sizes_are_checked():
    for size in (1, 0, 2.5, "ten"):
        with pytest.raises(ValueError, match="lot_size must be an int of at least 2"):
            population_information(MEAN, STD, lot_size=size)
    with pytest.raises(ValueError, match="lot_size must be at most n_samples = 20, go"):
        population_information(MEAN, STD, lot_size=21)
    with pytest.raises(ValueError, match="mean must have at least two samples, got 1"):
        population_information(MEAN[:1], STD[:1])


def test_weights_are_checked():
    for weight, message in [
        (-np.ones(20), "sample_weight must be finite and not negative"),
        (np.ones(19), "sample_weight"),
        (np.zeros(20), "sample_weight must be finite and not all 0"),
        (np.ma.ones(20), "sample_weight must hold real numbers, .* masked array"),
    ]:
        with pytest.raises(ValueError, match=message):
            code_information(MEAN, STD, sample_weight=weight)


def test_a_bracket_cannot_be_changed():
    bracket = code_information(MEAN, STD, n_draws=5)
    with pytest.raises(AttributeError):
        bracket.low = 3.0


class SmallLots(InformationSums):
    _lot_size = 6


def copies():
    """Equal lots: a code has no information about its lot."""
    mean, std, _, truth = line(normal(6, 1.5), 0.7)
    return np.tile(mean, (5, 1)), np.tile(std, (5, 1)), None, truth


def weighted_copies():
    """Lots of different weights, with samples of different weights."""
    weight = np.array([1, 1, 3, 1e-4, 2, 1])
    mean, std, _, truth = line(normal(6, 1.5), 0.7, weight)
    weights = np.outer([1, 0.1, 2, 1e-3], weight).ravel()
    return np.tile(mean, (4, 1)), np.tile(std, (4, 1)), weights, truth


def lots_apart():
    """Every code shows its lot: the upper end has only the slack of the draws."""
    mean, std, _, truth = line(normal(6, 1.5), 0.7)
    shift = 300 * np.repeat(np.arange(5), 6)[:, np.newaxis]
    return np.tile(mean, (5, 1)) + shift, np.tile(std, (5, 1)), None, truth + np.log(5)


STREAMS = {
    "copies": copies,
    "weighted copies": weighted_copies,
    "lots apart": lots_apart,
    "half-dead": half_dead,
}


def in_batches(mean, std, weight, sums):
    for start in range(0, len(mean), 7):
        part = slice(start, start + 7)
        sums.update(mean[part], std[part], None if weight is None else weight[part])
    return sums


def on_workers(mean, std, seeds, n_draws):
    """Each of the workers has samples of all parts."""
    parts = []
    for number, seed in enumerate(seeds):
        sums = SmallLots(confidence=1 - DELTA, n_draws=n_draws, random_state=seed)
        part = slice(number, None, len(seeds))
        parts.append(in_batches(mean[part], std[part], None, sums))
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", STREAMS)
def test_brackets_of_streams_hold(case):
    mean, std, weight, truth = STREAMS[case]()
    repeats, brackets = 2000, []
    for seed in range(repeats):
        n_draws = [20, 400][seed % 2]
        sums = SmallLots(confidence=1 - DELTA, n_draws=n_draws, random_state=seed)
        brackets.append(in_batches(mean, std, weight, sums).bracket())
    low, high = np.array([[b.low - 1e-6, b.high + 1e-6] for b in brackets]).T
    assert np.sum(low > truth) <= most_misses(repeats, DELTA / 2)
    assert np.sum(high < truth) <= most_misses(repeats, DELTA / 2)
    assert all(0 <= b.low <= b.estimate <= b.high <= b.limit for b in brackets)


@pytest.mark.slow
@pytest.mark.parametrize("shared_seed", [True, False])
def test_brackets_of_workers_hold(shared_seed):
    """Two workers with the same samples, and with one seed the same noise too."""
    mean, std, _, truth = copies()
    mean, std = mean.repeat(2, axis=0), std.repeat(2, axis=0)
    repeats, brackets = 1000, []
    for seed in range(repeats):
        seeds = (seed, seed + (0 if shared_seed else repeats))
        brackets.append(on_workers(mean, std, seeds, n_draws=40).bracket())
    low, high = np.array([[b.low - 1e-6, b.high + 1e-6] for b in brackets]).T
    assert np.sum(low > truth) <= most_misses(repeats, DELTA / 2)
    assert np.sum(high < truth) <= most_misses(repeats, DELTA / 2)


@pytest.mark.slow
def test_streams_that_miss_would_be_seen():
    """The mean of the draws is above the truth of copies, below that of lots apart."""
    repeats = 300
    for case, above in [("copies", True), ("lots apart", False)]:
        mean, std, weight, truth = STREAMS[case]()
        means = []
        for seed in range(repeats):
            sums = SmallLots(n_draws=80, random_state=seed)
            estimate = in_batches(mean, std, weight, sums).bracket().estimate
            means.append(estimate if above else estimate + np.log(5))
        missed = np.array(means) > truth if above else np.array(means) < truth
        assert missed.sum() > most_misses(repeats, DELTA)


@pytest.mark.slow
def test_brackets_of_streams_are_not_trivial():
    for case, slack_low, slack_high in [
        ("copies", 0.1, np.log(5) + 0.1),
        ("lots apart", np.log(5) + 0.1, 0.1),
    ]:
        mean, std, weight, truth = STREAMS[case]()
        sums = in_batches(mean, std, weight, SmallLots(n_draws=10_000))
        bracket = sums.bracket()
        assert truth - slack_low < bracket.low < bracket.high < truth + slack_high
        assert bracket.low_by == "draws in lots"


@pytest.mark.slow
def test_a_collapsed_stream_is_bounded_by_all_its_samples():
    rng = np.random.default_rng(0)
    mean, std = 0.01 * rng.normal(size=(300, 4)), np.ones((300, 4))
    bracket = in_batches(mean, std, None, SmallLots()).bracket()
    assert bracket.high_by == "moment-matched Gaussian"
    assert bracket.high == pytest.approx(code_information(mean, std).high, abs=1e-12)
    assert bracket.high < 0.0003


def test_one_lot_of_all_samples_is_as_all_at_once():
    """In batches, from workers, and from a pickle."""
    mean, std = digits_like(60)
    weight = np.random.default_rng(0).uniform(size=60)
    expected = code_information(
        mean, std, sample_weight=weight, n_draws=500, random_state=0
    )
    sums = InformationSums(n_draws=500)
    for part in np.array_split(np.arange(60), 7):
        part = InformationSums(random_state=5).update(
            mean[part], std[part], weight[part]
        )
        sums.merge(pickle.loads(pickle.dumps(part)))
    assert sums.n_samples == 60
    actual = sums.bracket().to_dict()
    assert actual == {
        name: value if isinstance(value, str) else pytest.approx(value, rel=1e-9)
        for name, value in expected.to_dict().items()
    }


def test_a_bracket_on_the_way_changes_nothing():
    mean, std, weight, _ = STREAMS["half-dead"]()
    undisturbed = in_batches(mean, std, weight, SmallLots(n_draws=50))
    sums = SmallLots(n_draws=50)
    for start in range(0, len(mean), 7):
        batch = mean[start : start + 7].copy(), std[start : start + 7].copy()
        sums.update(*batch)
        for array in batch:
            array[:] = 7.0
        assert sums.bracket() == pickle.loads(pickle.dumps(sums)).bracket()
    assert sums.bracket() == undisturbed.bracket()


@pytest.mark.slow
def test_workers_with_separate_seeds_are_narrower():
    mean, std = digits_like(450)
    one, own = (
        on_workers(mean, std, seeds, n_draws=400).bracket()
        for seeds in [(0,) * 10, range(10)]
    )
    assert own.low - one.low > 0.01
    assert one.limit == own.limit == pytest.approx(np.log(450))
    assert one.n_samples == own.n_samples == 450


def test_samples_of_weight_0_are_not_in_a_stream():
    mean, std, _, _ = STREAMS["copies"]()
    expected = SmallLots(n_draws=50).update(mean, std).bracket()
    sums = SmallLots(n_draws=50).update(np.full((9, 1), 1e17), np.ones((9, 1)), [0] * 9)
    for part in (slice(0, 11), slice(11, None)):
        far = np.vstack([mean[part], [[1e30]]]), np.vstack([std[part], [[1e-9]]])
        sums.update(*far, np.r_[np.ones(len(far[0]) - 1), 0])
    actual = sums.bracket()
    assert (actual.low, actual.high) == pytest.approx((expected.low, expected.high))
    assert (actual.limit, actual.n_samples) == (expected.limit, 30)


def test_streams_are_checked():
    with pytest.raises(ValueError, match="no samples with a weight above 0"):
        InformationSums().update(MEAN, STD, np.zeros(20)).bracket()
    sums = InformationSums().update(MEAN, STD)
    with pytest.raises(ValueError, match=r"mean must have the latent_dim 16 .* got 3"):
        sums.update(MEAN[:, :3], STD[:, :3])
    with pytest.raises(ValueError, match=r"other must have the latent_dim 16 .* got 3"):
        sums.merge(InformationSums().update(MEAN[:, :3], STD[:, :3]))
    assert sums.merge(InformationSums()).n_samples == 20


@pytest.mark.parametrize(
    ("low", "high", "n_samples", "expected"),
    [
        (
            2.9789,
            3.0001,
            450,
            "2.97 to 3.01 nats about these 450 samples (of at most 6",
        ),
        (0.0, 0.00027, 50_000, "at most 0.0003 nats about these 50,000 samples."),
        (0.0, 0.03, 3, "at most 0.03 nats about these 3 samples."),
        (0.00004, 0.00027, 3, "at most 0.0003 nats about these 3 samples."),
        (
            2.9999,
            2.9999,
            3,
            "2.99 to 3.00 nats about these 3 samples (of at most 6.11)",
        ),
        (0.0, 0.0, 1, "at most 0.00 nats about this sample."),
    ],
)
def test_a_bracket_says_no_more_than_it_knows(low, high, n_samples, expected):
    bracket = InformationBracket(
        *(low, high, low, 0.95, np.log(450), 0.0, n_samples, "draws", "draws")
    )
    assert str(bracket).startswith(f"Drawn codes carry {expected}")


def test_a_bracket_is_plain_values():
    bracket = InformationSums(n_draws=5).update(MEAN, STD).bracket()
    assert InformationBracket(**json.loads(json.dumps(bracket.to_dict()))) == bracket


@pytest.mark.parametrize("what", ["log_variance", "log_std", "variance"])
@pytest.mark.parametrize("exponential", [np.float32, np.float64])
def test_rounding_of_16_bits_behind_an_exponential_is_no_information(what, exponential):
    """Log-variances of float16 whose exponentials are taken in more bits."""
    rng = np.random.default_rng(0)
    steps = float(np.finfo(np.float16).eps) * rng.integers(-2, 3, size=(300, 16))
    computed = (1.7 * (1 + steps)).astype(np.float16).astype(exponential)
    std = {
        "log_variance": lambda: np.exp(computed / 2),
        "log_std": lambda: np.exp(computed),
        "variance": lambda: np.sqrt(computed),
    }[what]()
    assert std.dtype == exponential
    bracket = code_information(np.zeros_like(std), std, random_state=0)
    assert bracket.low == 0
    assert bracket.estimate > 0.5 * 16 * np.log(std).var()


def test_an_exponential_of_32_bits_is_not_taken_for_16():
    mean, std = digits_like()
    varied = std * np.exp(0.3 * np.random.default_rng(0).normal(size=std.shape))
    varied = varied.astype(np.float32)
    assert code_information(mean, varied, n_draws=10).rounding < 1e-8


@pytest.mark.slow
def test_samples_out_of_reach_do_not_count():
    """Thousands of samples, far apart relative to the noise, against all pairs."""
    rng = np.random.default_rng(0)
    mean = np.sort(3000 * rng.normal(size=(3000, 2)), axis=0)
    std = rng.uniform(0.5, 30, size=(3000, 2))
    proba, chosen = rng.dirichlet(np.ones(3000)), np.sort(rng.integers(3000, size=300))
    values = _Mixture(mean, std, proba).divergences(chosen, np.random.default_rng(1))
    # The noise comes in two parts, of 256 draws and of the others.
    noise_rng = np.random.default_rng(1)
    noise = np.vstack([noise_rng.standard_normal((m, 2)) for m in (256, 44)])
    codes = mean[chosen] + std[chosen] * noise
    log_joint = np.log(proba) + norm.logpdf(codes[:, np.newaxis], mean, std).sum(axis=2)
    log_share = log_joint - logsumexp(log_joint, axis=1, keepdims=True)
    expected = (np.exp(log_share) * (log_share - np.log(proba))).sum(axis=1)
    np.testing.assert_allclose(values, expected, atol=1e-8)


# What outputs of a decoder carry.


def test_outputs_of_a_linear_decoder_in_one_dimension_have_a_closed_form():
    """One feature of a normal code: U is the information itself."""
    codes = np.random.default_rng(0).normal(size=(50_000, 1))
    for weight, noise_variance in [(1.0, 1.0), (3.0, 0.1), (0.01, 1.0)]:
        found = output_information(1e3 + weight * codes, noise_variance=noise_variance)
        truth = np.log1p(weight**2 / noise_variance) / 2
        assert abs(found.bound - truth) < 4 * found.standard_error < 0.05
        assert (found.n_draws, found.noise_variance) == (50_000, noise_variance)


def test_binary_outputs_of_two_codes_have_a_closed_form():
    output = np.tile([[0.0, 0.5], [1.0, 0.5]], (1000, 1))
    found = output_information(output, likelihood="bernoulli")
    assert found.bound == pytest.approx(np.log(2))
    assert found.high < np.log(2) + 1e-3
    assert found.noise_variance is None
    equal = output_information(np.full((50, 3), 0.3), likelihood="bernoulli")
    assert equal.high == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_outputs_carry_at_most_the_bound_with_its_error(likelihood):
    """Rarely more than three standard errors below U of many draws, or far above."""
    rng = np.random.default_rng(0)
    settings = {"likelihood": likelihood}
    if likelihood == "gaussian":
        settings["noise_variance"] = 1.0

    def outputs(n_draws):
        output = 0.2 * rng.standard_t(8, size=(n_draws, 2)) @ np.ones((2, 5))
        return output if likelihood == "gaussian" else expit(output)

    truth = output_information(outputs(500_000), **settings).bound
    found = [output_information(outputs(1000), **settings) for _ in range(300)]
    errors = [f.bound - truth for f in found]
    stated = np.mean([f.standard_error for f in found])
    assert stated == pytest.approx(np.std(errors), rel=0.2)
    assert np.mean([f.high < truth for f in found]) < 0.02
    assert np.mean([f.high for f in found]) < truth + 4 * np.std(errors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "noise_variance must be a number"),
        ({"likelihood": "bernoulli", "noise_variance": 1.0}, "and None otherwise"),
        ({"noise_variance": 0}, "noise_variance must be a finite number above 0"),
        ({"likelihood": "poisson"}, "likelihood must be"),
        ({"likelihood": "bernoulli", "output": [[2.0], [0.0]]}, "Apply the sigmoid"),
        ({"output": [1.0, 2.0], "noise_variance": 1}, "output must have shape"),
        ({"output": [[np.nan], [0]], "noise_variance": 1}, "output must be finite"),
        ({"output": [[0.0]], "noise_variance": 1}, "output must have at least two"),
    ],
)
def test_outputs_that_are_refused(settings, message):
    arguments = {"output": np.zeros((5, 2))} | settings
    with pytest.raises(ValueError, match=message):
        output_information(arguments.pop("output"), **arguments)
