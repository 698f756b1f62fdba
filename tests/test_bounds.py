from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import entr, logsumexp, rel_entr, softmax
from scipy.stats import binom, t

from skvaecert.bounds import (
    MeanBounds,
    bernstein_bound,
    bernstein_mean_bound,
    betting_bound,
    betting_mean_bound,
    bootstrap_bound,
)
from skvaecert.metrics import collapse_margin

K, SIZE, FLOOR = 5, 500, 1e-3
CERTIFIED = [betting_bound, bernstein_bound]
BOUNDS = [*CERTIFIED, partial(bootstrap_bound, random_state=0)]
MEAN_BOUNDS = [betting_mean_bound, bernstein_mean_bound]


class Population:
    """Samples to draw from, with replacement: all its means are known exactly."""

    def __init__(self, proba, witness):
        self.proba = proba / proba.sum(axis=1, keepdims=True)
        self.log_witness = np.log(witness)
        self.floored = np.log((1 - FLOOR) * witness + FLOOR / proba.shape[1])
        self.mean = self.proba.mean(axis=0)
        cross_entropy = -(self.proba * self.floored).sum(axis=1).mean()
        self.margin = entr(self.mean).sum() - cross_entropy

    def draw(self, n_samples, rng):
        drawn = rng.integers(len(self.proba), size=n_samples)
        return self.proba[drawn], self.log_witness[drawn]


def posteriors(seed=0):
    proba = softmax(3 * np.random.default_rng(seed).normal(size=(SIZE, K)), axis=1)
    return 0.99 * proba + 0.01 / K


def easy():
    proba = posteriors()
    noise = 0.5 * np.random.default_rng(1).normal(size=proba.shape)
    return Population(proba, softmax(np.log(proba) + noise, axis=1))


def rarely_wrong():
    """For one sample in 100, the witness predicts the least likely cluster."""
    population = easy()
    witness = np.exp(population.log_witness)
    wrong = slice(0, SIZE // 100)
    worst = np.eye(K)[population.proba[wrong].argmin(axis=1)]
    witness[wrong] = 1e-12 + worst
    return Population(population.proba, witness / witness.sum(axis=1, keepdims=True))


def skewed():
    """One sample in a hundred has nearly all the margin, and a separate cluster."""
    proba = np.tile([0.6, 0.2, 0.1, 0.0999, 1e-4], (SIZE, 1))
    proba[: SIZE // 100] = [1e-4, 1e-4, 1e-4, 1e-4, 0.9996]
    witness = proba.copy()
    witness[SIZE // 100 :] = [0.4, 0.3, 0.1, 0.1, 0.1]
    return Population(proba, witness)


def collapsed():
    proba = posteriors()
    return Population(proba, np.tile(proba.mean(axis=0), (SIZE, 1)))


def collapsed_on_a_rare_component():
    proba = skewed().proba
    return Population(proba, np.tile(proba.mean(axis=0), (SIZE, 1)))


def repeated(bound, population, n_samples, repeats, seed=0):
    """Bounds from independent draws."""
    rng = np.random.default_rng(seed)
    return np.array([bound(*population.draw(n_samples, rng)) for _ in range(repeats)])


def most_misses(repeats, error):
    return binom.ppf(0.999, repeats, error)


HARD = [
    pytest.param(rarely_wrong, 50, marks=pytest.mark.slow),
    (skewed, 50),
    pytest.param(collapsed, 20, marks=pytest.mark.slow),
    (collapsed_on_a_rare_component, 20),
]


@pytest.mark.slow
@pytest.mark.parametrize("bound", CERTIFIED)
@pytest.mark.parametrize(("population", "n_samples"), HARD)
def test_bounds_miss_at_most_as_often_as_they_say(bound, population, n_samples):
    population, repeats = population(), 2000
    bounds = repeated(bound, population, n_samples, repeats)
    assert np.sum(bounds > population.margin) <= most_misses(repeats, 0.05)


@pytest.mark.slow
def test_betting_comes_close_to_missing_as_often_as_it_may():
    """The teacher is constant; the witness is right but for samples that cost 21 nats.

    Where none of these is drawn, once in 25 times, Markov's inequality is nearly met.
    """
    floor, rng, repeats = 1e-9, np.random.default_rng(0), 2000
    proba = np.tile([0.999, 0.001], (400, 1))
    log_q = np.log(proba)
    log_q[:25] = [-np.inf, 0]
    floored = (1 - floor) * np.exp(log_q) + floor / 2
    margin = collapse_margin(proba, np.log(floored))
    draws = rng.integers(400, size=(repeats, 50))
    bounds = [betting_bound(proba[i], log_q[i], floor=floor) for i in draws]
    misses = np.sum(np.array(bounds) > margin)
    assert 0.025 * repeats < misses <= most_misses(repeats, 0.05)


def test_the_hard_cases_are_hard():
    """A t-interval on the contributions, the usual answer, misses too often."""
    population, n_samples, repeats = rarely_wrong(), 50, 2000
    shape = repeats, n_samples
    proba, log_q = population.draw(shape, np.random.default_rng(0))
    q = (1 - FLOOR) * np.exp(log_q) + FLOOR / K
    g = (proba * np.log(q / proba.mean(axis=1, keepdims=True))).sum(axis=2)
    deviation = g.std(ddof=1, axis=1) / np.sqrt(n_samples)
    bounds = g.mean(axis=1) - t.ppf(0.95, n_samples - 1) * deviation
    assert np.sum(bounds > population.margin) > 2 * most_misses(repeats, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("bound", CERTIFIED)
def test_a_collapsed_encoder_is_hardly_ever_bounded_above_zero(bound):
    population = collapsed()
    assert population.margin <= 0
    for n_samples in (200, 2000):
        bounds = repeated(bound, population, n_samples, repeats=50, seed=1)
        assert np.sum(bounds > 0) <= most_misses(50, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "shortfall"), list(zip(BOUNDS, [0.05, 0.15, 0.04], strict=True))
)
def test_bounds_are_not_trivial(bound, shortfall):
    population = easy()
    bounds = repeated(bound, population, 2000, repeats=10)
    assert min(bounds) > 0
    assert population.margin - np.mean(bounds) < shortfall


@pytest.mark.slow
def test_bootstrap_covers_where_it_is_easy():
    population, repeats = easy(), 300
    bound = partial(bootstrap_bound, n_resamples=500, random_state=0)
    bounds = repeated(bound, population, 100, repeats)
    assert np.sum(bounds > population.margin) <= most_misses(repeats, 0.05)


@pytest.mark.slow
def test_bootstrap_is_no_certificate():
    """Where errors are rare, it misses significantly more often than stated."""
    population, repeats = rarely_wrong(), 400
    bound = partial(bootstrap_bound, n_resamples=500, random_state=0)
    misses = np.sum(repeated(bound, population, 100, repeats) > population.margin)
    assert misses > binom.ppf(0.9999, repeats, 0.05)


def capital_bound(proba, log_q, mean_proba, n_bets):
    """The bound for a given mean teacher, written out in sums of logarithms."""
    q = (1 - FLOOR) * np.exp(log_q) + FLOOR / K
    g = (proba * np.log(q / mean_proba)).sum(axis=1)
    shift = 1 + np.log(K / FLOOR)
    bets = [0.5**j for j in range(n_bets)]

    def excess(c):
        factor = (g + shift) / (c + shift)
        capitals = [np.log(1 - b + b * factor).sum() for b in bets]
        return logsumexp(capitals) - np.log(n_bets * 20)

    return brentq(excess, -shift + 1e-3, g.mean() + 1, xtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("population", [easy, rarely_wrong, skewed])
def test_betting_takes_the_worst_mean_teacher(population):
    """A general minimizer over the simplex, started anywhere, finds nothing lower."""
    proba, log_q = population().draw(300, np.random.default_rng(3))
    bound = betting_bound(proba, log_q)

    def of_logits(logits):
        return capital_bound(proba, log_q, softmax(logits), 2)

    starts = np.random.default_rng(0).normal(size=(4, K))
    starts[0] = np.log(proba.mean(axis=0))
    found = [minimize(of_logits, start, method="BFGS").fun for start in starts]
    assert min(found) == pytest.approx(bound, abs=1e-5)
    assert bound < of_logits(starts[0])


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 20))
def test_betting_is_below_the_bound_of_every_mean_teacher(seed, sharp):
    rng = np.random.default_rng(seed)
    proba = 0.99 * softmax(sharp * rng.normal(size=(60, K)), axis=1) + 0.01 / K
    log_q = np.log(softmax(sharp * rng.normal(size=K) + np.log(proba), axis=1) + 1e-300)
    bound = betting_bound(proba, log_q)
    weights = [np.full(60, 1 / 60), *rng.dirichlet(np.ones(60), size=5)]
    for weight in weights:
        assert bound <= capital_bound(proba, log_q, weight @ proba, 1) + 1e-6


def test_not_to_know_the_mean_teacher_costs_next_to_nothing():
    for population in (easy, rarely_wrong):
        drawn_from = population()
        proba, log_q = drawn_from.draw(300, np.random.default_rng(3))
        known = capital_bound(proba, log_q, drawn_from.mean, 2)
        bound = betting_bound(proba, log_q)
        assert known - bound < 0.2 * (drawn_from.margin - bound)


@pytest.mark.parametrize("population", [easy, rarely_wrong, skewed])
def test_bernstein_holds_for_every_mean_teacher(population):
    """The closed form is below Maurer and Pontil's bound for the worst floored r."""
    proba, log_q = population().draw(400, np.random.default_rng(0))
    q = (1 - FLOOR) * np.exp(log_q) + FLOOR / K
    limits = np.log(FLOOR / K), np.log(K / FLOOR)

    def of_logits(logits):
        r = (1 - FLOOR) * softmax(logits) + FLOOR / K
        g = (proba * np.log(q / r)).sum(axis=1)
        return bernstein_mean_bound(g, *limits) + np.log(1 - FLOOR)

    starts = 0.3 * np.random.default_rng(1).normal(size=(5, K))
    starts += np.log(proba.mean(axis=0))
    least = min(minimize(of_logits, start, method="BFGS").fun for start in starts)
    assert 0 <= least - bernstein_bound(proba, log_q) < 0.06


def test_bernstein_is_its_formula():
    proba, log_q = easy().draw(400, np.random.default_rng(0))
    q = (1 - FLOOR) * np.exp(log_q) + FLOOR / K
    g = (proba * np.log(q / proba.mean(axis=0))).sum(axis=1)
    log_term, limit = np.log(2 / 0.05), np.log(K / FLOOR)
    width = np.sqrt(2 * np.cov(g) * log_term / 400)
    width += (7 * 2 * limit / 3 + (2 + limit) / 2) * log_term / 399
    expected = g.mean() - width + np.log(1 - FLOOR)
    assert bernstein_bound(proba, log_q) == pytest.approx(expected, rel=1e-10)


def test_maurer_and_pontil_to_the_letter():
    x = np.random.default_rng(0).uniform(2, 5, size=400)
    pairs = np.subtract.outer(x, x)
    variance = (pairs**2).sum() / (2 * 400 * 399)
    width = np.sqrt(2 * variance * np.log(40) / 400) + 7 * 3 * np.log(40) / (3 * 399)
    assert bernstein_mean_bound(x, 2, 5) == pytest.approx(x.mean() - width, rel=1e-12)


MEANS = {
    "rarely 0": lambda size, rng: (rng.random(size) < 0.98).astype(float),
    "rarely 1": lambda size, rng: (rng.random(size) < 0.02).astype(float),
    "coin": lambda size, rng: rng.integers(2, size=size).astype(float),
    "beta": lambda size, rng: rng.beta(0.1, 0.4, size=size),
}
TRUE = {"rarely 0": 0.98, "rarely 1": 0.02, "coin": 0.5, "beta": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("bound", MEAN_BOUNDS)
@pytest.mark.parametrize("values", MEANS)
@pytest.mark.parametrize("n_samples", [10, 60])
def test_mean_bounds_miss_at_most_as_often_as_they_say(bound, values, n_samples):
    rng, repeats = np.random.default_rng(0), 2000
    draws = [MEANS[values](n_samples, rng) for _ in range(repeats)]
    bounds = np.array([bound(x, 0, 1, 0.8) for x in draws])
    assert np.sum(bounds > TRUE[values]) <= most_misses(repeats, 0.2)


@pytest.mark.parametrize("bound", MEAN_BOUNDS)
@pytest.mark.parametrize("values", MEANS)
def test_mean_bounds_are_not_trivial(bound, values):
    x = MEANS[values](5000, np.random.default_rng(0))
    deviation = x.std() / np.sqrt(len(x))
    assert x.mean() - 7 * deviation - 0.005 < bound(x, 0, 1) < x.mean()


@pytest.mark.parametrize("bound", MEAN_BOUNDS)
def test_mean_bounds_follow_shift_and_scale(bound):
    x = np.random.default_rng(0).uniform(size=200)
    moved = bound(1e6 * x - 3e5, -3e5, 7e5)
    assert moved == pytest.approx(1e6 * bound(x, 0, 1) - 3e5, abs=1)


@pytest.mark.parametrize("bound", MEAN_BOUNDS)
def test_mean_bounds_never_leave_the_limits(bound):
    assert bound([0.0, 0.0, 0.0], 0, 1) == 0
    # Of one value, 0.05 is all that Markov's inequality gives.
    assert 0 <= bound([1.0], 0, 1) <= 0.05
    assert 0 < bound(np.ones(100), 0, 1) < 1


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_fall_with_confidence_and_rise_with_samples(bound):
    proba, log_q = easy().draw(400, np.random.default_rng(0))
    by_confidence = [bound(proba, log_q, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert (np.diff(by_confidence) < 0).all()
    twice = bound(np.tile(proba, (4, 1)), np.tile(log_q, (4, 1)), confidence=0.9)
    assert twice > by_confidence[1]


@pytest.mark.parametrize("bound", CERTIFIED)
def test_order_of_samples_and_names_of_components_do_not_matter(bound):
    proba, log_q = easy().draw(300, np.random.default_rng(0))
    expected = pytest.approx(bound(proba, log_q), abs=1e-6)
    order = np.lexsort(proba.T)
    assert bound(proba[order], log_q[order]) == expected
    assert bound(proba[:, ::-1], log_q[:, ::-1]) == expected


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_are_below_the_margin_of_the_samples(bound):
    proba, log_q = easy().draw(300, np.random.default_rng(0))
    assert bound(proba, log_q) < collapse_margin(proba, log_q)


@pytest.mark.parametrize("bound", BOUNDS)
def test_excluded_components_cost_what_the_floor_leaves(bound):
    proba, log_q = easy().draw(300, np.random.default_rng(0))
    log_q[0] = [0.0, *[-np.inf] * (K - 1)]
    assert np.isfinite(bound(proba, log_q))
    assert bound(proba, log_q, floor=0.1) > bound(proba, log_q, floor=1e-9)


def test_the_floored_witness_of_a_constant_one_is_constant():
    """So a bound above 0 shows that the witness without the floor varies, too."""
    proba = collapsed().proba
    for constant in (softmax(np.arange(K)), np.eye(K)[0]):
        floored = (1 - FLOOR) * constant + FLOOR / K
        margin = collapse_margin(proba, np.log(np.tile(floored, (SIZE, 1))))
        distance = rel_entr(proba.mean(axis=0), floored).sum()
        assert margin == pytest.approx(-distance)


@pytest.mark.parametrize("bound", CERTIFIED)
def test_one_sample_says_nothing(bound):
    proba, log_q = easy().draw(1, np.random.default_rng(0))
    assert bound(proba, log_q) == pytest.approx(np.log(FLOOR / K))


def test_bootstrap_needs_two_samples():
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        bootstrap_bound(*easy().draw(1, np.random.default_rng(0)))


def test_bootstrap_repeats_and_leaves_the_global_generator_alone():
    proba, log_q = easy().draw(100, np.random.default_rng(0))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = bootstrap_bound(proba, log_q, random_state=3)
    assert first == bootstrap_bound(proba, log_q, random_state=3)
    assert first != bootstrap_bound(proba, log_q)
    assert (before == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.slow
def test_bootstrap_refits_the_mean_teacher():
    proba, log_q = easy().draw(80, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    floored = np.log((1 - FLOOR) * np.exp(log_q) + FLOOR / K)
    drawn = rng.integers(80, size=(4000, 80))
    margins = [collapse_margin(proba[index], floored[index]) for index in drawn]
    expected = np.quantile(margins, 0.05)
    given = bootstrap_bound(proba, log_q, n_resamples=4000, random_state=0)
    assert given == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ["confidence", "floor"])
@pytest.mark.parametrize("value", [0, 1, 1.5, np.nan])
def test_shares_are_checked(bound, name, value):
    proba, log_q = easy().draw(20, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0 and"):
        bound(proba, log_q, **{name: value})


@pytest.mark.parametrize("bound", BOUNDS)
def test_arrays_are_checked(bound):
    with pytest.raises(ValueError, match="sums to 2"):
        bound([[0.5, 0.5]] * 9, [[0.0, 0.0]] * 9)
    with pytest.raises(ValueError, match="finite values above 0"):
        bound([[0.0, 1.0]] * 9, np.log([[0.5, 0.5]] * 9))


@pytest.mark.parametrize("bound", MEAN_BOUNDS)
def test_values_are_checked(bound):
    with pytest.raises(ValueError, match=r"got values from 0\.1 to 1\.2"):
        bound([0.1, 1.2], 0, 1)
    with pytest.raises(ValueError, match="got values from nan"):
        bound([0.1, np.nan], 0, 1)
    with pytest.raises(ValueError, match=r"not empty, got shape \(0,\)"):
        bound([], 0, 1)
    with pytest.raises(ValueError, match="confidence must be a finite number above 0"):
        bound([0.5, 0.6], 0, 1, 95)


def rare(size, rng):
    """Rarely 5, the upper limit, and nearly always close to 0."""
    return np.where(rng.random(size) < 0.01, 5.0, 1e-6)


def differing(size, rng):
    """Value i is a coin toss with its own probability."""
    return 5.0 * (rng.random(size) < chances(size))


def chances(size):
    return np.linspace(0.02, 0.6, size) ** 2


# Values in [0, 5], their means, and their weights.
BATCHES = {
    "coins": (
        lambda size, rng: 5.0 * rng.integers(2, size=size),
        lambda size: np.full(size, 2.5),
        np.ones,
    ),
    "rare": (rare, lambda size: np.full(size, 0.05 + 0.99e-6), np.ones),
    "weighted": (
        lambda size, rng: 5 * rng.beta(0.05, 0.5, size=size),
        lambda size: np.full(size, 5 / 11),
        lambda size: 1 / np.arange(1, size + 1),
    ),
    "differing": (differing, lambda size: 5 * chances(size), np.ones),
    "differing, weighted": (
        differing,
        lambda size: 5 * chances(size),
        lambda size: 10.0 ** -np.linspace(0, 3, size),
    ),
}


def both_ends(values, weight, confidence=0.95):
    bounds = MeanBounds(0, 5).update(values, weight)
    return bounds.low(confidence), bounds.high(confidence)


@pytest.mark.slow
@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("size", [1, 2, 10, 50, 200])
def test_mean_bounds_of_batches_hold_from_both_sides(case, size):
    draw, means, weights = BATCHES[case]
    rng, repeats, weight = np.random.default_rng(0), 2000, weights(size)
    truth = weight @ means(size) / weight.sum()
    draws = [draw(size, rng) for _ in range(repeats)]
    low, high = np.array([both_ends(x, weight) for x in draws]).T
    assert np.sum(low > truth) <= most_misses(repeats, 0.05)
    assert np.sum(high < truth) <= most_misses(repeats, 0.05)


def test_weights_as_numbers_of_values_would_miss():
    """Why weights are divided by the largest: powers above 1 of a factor are no bets.

    A value of weight 100, taken for 100 equal values, would claim too much evidence.
    """
    rng, repeats = np.random.default_rng(0), 300
    low = [
        betting_mean_bound(np.repeat(5.0 * rng.integers(2, size=3), 100), 0, 5)
        for _ in range(repeats)
    ]
    assert np.sum(np.array(low) > 2.5) > 2 * most_misses(repeats, 0.05)
    heavy = np.full(3, 100.0)
    low = [both_ends(5.0 * rng.integers(2, size=3), heavy)[0] for _ in range(repeats)]
    assert np.sum(np.array(low) > 2.5) <= most_misses(repeats, 0.05)


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1.0])
def test_bounds_from_nodes_are_those_of_the_values(scale):
    """Between nodes the bounds lose hardly anything, for values anywhere in range."""
    rng = np.random.default_rng(0)
    for size in (30, 3000):
        x = scale * rng.beta(2, 3, size=size)
        low, high = both_ends(x, None)
        exact_low, exact_high = (
            betting_mean_bound(x, 0, 5),
            5 - betting_mean_bound(5 - x, 0, 5),
        )
        assert exact_low - 0.001 * scale < low <= exact_low + 2e-7 * scale
        assert exact_high - 1e-6 <= high < exact_high + 0.001 * scale + 1e-6
        mirrored = both_ends(5 - x, None)
        assert mirrored == pytest.approx((5 - high, 5 - low), abs=2e-6)


def test_bounds_merged_in_any_order_are_those_of_one_pass():
    rng = np.random.default_rng(0)
    values, weight = 5 * rng.beta(0.3, 1, size=400), rng.uniform(0, 3, size=400)
    expected = both_ends(values, weight)
    for _ in range(5):
        parts = np.array_split(rng.permutation(400), rng.integers(2, 9))
        batches = [MeanBounds(0, 5).update(values[i], weight[i]) for i in parts]
        merged = MeanBounds(0, 5)
        for batch in batches:
            assert merged.merge(batch) is merged
        assert (merged.low(0.95), merged.high(0.95)) == pytest.approx(expected)
        assert merged.mean == pytest.approx(np.average(values, weights=weight))
    scaled = both_ends(values, 1e-200 * weight)
    assert scaled == pytest.approx(expected)


def test_values_of_weight_0_do_not_count():
    values, weight = np.r_[4.9, np.linspace(1, 2, 50)], np.r_[0, np.ones(50)]
    assert both_ends(values, weight) == both_ends(values[1:], None)


def test_no_values_say_nothing():
    bounds = MeanBounds(-1, 5).update([2.0], [0.0])
    assert (bounds.low(0.9), bounds.high(0.9)) == (-1, 5)
    assert np.isnan(bounds.mean)


def test_mean_bounds_of_batches_check_what_they_are_given():
    with pytest.raises(ValueError, match="upper must be a finite number above 2"):
        MeanBounds(2, 2)
    with pytest.raises(ValueError, match=r"got values from 0\.1 to 1\.2"):
        MeanBounds(0, 1).update([0.1, 1.2])
    with pytest.raises(ValueError, match="sample_weight must be finite and not neg"):
        MeanBounds(0, 1).update([0.1, 0.2], [1, -1])
    with pytest.raises(ValueError, match=r"the limits 0\.0 and 1\.0, got 0\.0 and 2"):
        MeanBounds(0, 1).merge(MeanBounds(0, 2))
    with pytest.raises(ValueError, match="confidence must be a finite number above 0"):
        MeanBounds(0, 1).update([0.1]).low(1)


def test_the_same_values_many_times_show_no_more():
    """Merged as independent, copies of the same values miss far more often."""
    rng, repeats = np.random.default_rng(0), 300
    missed = dict.fromkeys([True, False], 0)
    for _ in range(repeats):
        values = 5.0 * rng.integers(2, size=8)
        for independent in missed:
            merged = MeanBounds(0, 5)
            for _ in range(20):
                batch = MeanBounds(0, 5).update(values)
                merged.merge(batch, independent=independent)
            missed[independent] += merged.low(0.95) > 2.5
            if not independent:
                assert merged.low(0.95) == pytest.approx(both_ends(values, None)[0])
    assert missed[True] > 1.5 * most_misses(repeats, 0.05)
    assert missed[False] <= most_misses(repeats, 0.05)
