import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, rel_entr, softmax

from skvaecert.metrics import (
    MarginSums,
    SpreadSums,
    alignment_loss,
    collapse_margin,
    component_contributions,
    component_information,
    component_visibility,
    dispersion_bound,
    escape_force,
    escape_force_rms,
    latent_dispersion,
    margin_contributions,
    margin_energy_path,
    teacher_information,
    view_gap,
)
from skvaecert.simplex import (
    analytic_code,
    analytic_energy,
    simplex_vertices,
    witness_log_proba,
)

N, K, D, SCALE = 40, 5, 6, 1.3
VERTICES = simplex_vertices(K, D)


@pytest.fixture
def proba():
    return softmax(3 * np.random.default_rng(0).normal(size=(N, K)), axis=1)


@pytest.fixture
def mean():
    return np.random.default_rng(1).normal(size=(N, D))


@pytest.fixture
def weight():
    return np.random.default_rng(2).integers(1, 4, size=N)


def test_against_arithmetic_of_scipy(proba, mean):
    witness = softmax(SCALE * mean @ VERTICES.T, axis=1)
    information = rel_entr(proba, proba.mean(axis=0)).sum(axis=1).mean()
    loss = rel_entr(proba, witness).sum(axis=1).mean()
    log_q = np.log(witness)
    assert teacher_information(proba) == pytest.approx(information, rel=1e-12)
    assert alignment_loss(proba, log_q) == pytest.approx(loss, rel=1e-12)
    assert collapse_margin(proba, log_q) == pytest.approx(information - loss, rel=1e-11)


def test_contributions_average_to_the_margin(proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    contributions = margin_contributions(proba, log_q, weight)
    margin = collapse_margin(proba, log_q, weight)
    assert np.average(contributions, weights=weight) == pytest.approx(margin)


@pytest.mark.parametrize(
    "metric",
    [alignment_loss, collapse_margin, lambda t, q, w=None: teacher_information(t, w)],
)
def test_weights_count_as_repetitions(metric, proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    repeated = metric(proba.repeat(weight, axis=0), log_q.repeat(weight, axis=0))
    assert metric(proba, log_q, weight) == pytest.approx(repeated, rel=1e-12)


def test_order_of_samples_and_names_of_components_do_not_matter(proba, mean):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    margin = collapse_margin(proba, log_q)
    rng = np.random.default_rng(0)
    order, components = rng.permutation(N), rng.permutation(K)
    assert collapse_margin(proba[order], log_q[order]) == pytest.approx(margin)
    shuffled = collapse_margin(proba[:, components], log_q[:, components])
    assert shuffled == pytest.approx(margin)


def test_float32_input_is_normalized_first(proba, mean):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    margin = collapse_margin(proba.astype(np.float32), log_q.astype(np.float32))
    assert margin == pytest.approx(collapse_margin(proba, log_q), abs=1e-6)


constants = arrays(np.float64, K, elements=st.floats(-30, 30))


@pytest.mark.slow
@given(constants, st.integers(0, 2**32 - 1), st.floats(0.01, 50))
def test_a_constant_student_pays_the_information_and_its_distance(logits, seed, sharp):
    proba = softmax(sharp * np.random.default_rng(seed).normal(size=(N, K)), axis=1)
    proba = 0.999 * proba + 0.001 / K
    log_q = np.tile(log_softmax(logits), (N, 1))
    distance = rel_entr(proba.mean(axis=0), np.exp(log_q[0])).sum()
    expected = teacher_information(proba) + distance
    assert alignment_loss(proba, log_q) == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert collapse_margin(proba, log_q) <= 1e-12


def test_the_best_constant_student_is_the_mean_teacher(proba):
    log_q = np.tile(np.log(proba.mean(axis=0)), (N, 1))
    assert collapse_margin(proba, log_q) == pytest.approx(0, abs=1e-15)


def test_a_mean_teacher_of_other_samples_would_fake_a_margin(proba):
    """So the mean of T is always that of the scored samples."""
    some, others = proba[:20], proba[20:]
    log_q = np.log(some.mean(axis=0))
    faked = (some * (log_q - np.log(others.mean(axis=0)))).sum(axis=1).mean()
    assert faked > 0.01
    assert collapse_margin(some, np.tile(log_q, (20, 1))) <= 1e-15


def test_margin_energy_path_is_concave_and_ends_at_the_information(proba):
    code = analytic_code(proba, VERTICES, SCALE)
    path = np.linspace(0, 1, 21)
    log_qs = [witness_log_proba(x * code, VERTICES, SCALE) for x in path]
    margins = np.array([collapse_margin(proba, log_q) for log_q in log_qs])
    assert margins[0] < 0
    assert margins[-1] == pytest.approx(teacher_information(proba))
    assert (np.diff(margins) > 0).all()
    assert (np.diff(margins, 2) < 0).all()


def test_escape_force_is_minus_the_gradient(proba, mean):
    def loss(code):
        return alignment_loss(proba[:1], witness_log_proba([code], VERTICES, SCALE))

    gradient = approx_fprime(mean[0], loss, 1e-7)
    force = escape_force(proba[:1], mean[:1], VERTICES, SCALE)
    np.testing.assert_allclose(force[0], -gradient, atol=1e-6)


def test_escape_force_at_the_best_constant_code(proba, weight):
    best = analytic_code([np.average(proba, axis=0, weights=weight)], VERTICES, SCALE)
    forces = escape_force(proba, best.repeat(N, axis=0), VERTICES, SCALE)
    np.testing.assert_allclose(
        np.average(forces, axis=0, weights=weight), 0, atol=1e-14
    )
    rms = np.sqrt(np.average((forces**2).sum(axis=1), weights=weight))
    assert escape_force_rms(proba, SCALE, weight) == pytest.approx(rms)


def test_force_vanishes_only_for_a_constant_teacher(proba):
    assert escape_force_rms(proba[:1].repeat(4, axis=0), SCALE) == 0
    assert escape_force_rms(np.ones((4, 1)), SCALE) == 0
    assert escape_force_rms(proba, SCALE) > 0


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 5), st.floats(-2, 3))
def test_dispersion_bound_is_never_above_the_dispersion(seed, sharp, aligned):
    rng = np.random.default_rng(seed)
    proba = softmax(sharp * rng.normal(size=(N, K)), axis=1)
    mean = rng.normal(size=D) + rng.normal(size=(N, D)) * 0.3
    mean += aligned * analytic_code(proba, VERTICES, SCALE)
    margin = collapse_margin(proba, witness_log_proba(mean, VERTICES, SCALE))
    bound = dispersion_bound(margin, escape_force_rms(proba, SCALE))
    # The protected subspace is what the bound is about; the rest only adds.
    assert bound <= latent_dispersion(mean[:, : K - 1]) + 1e-12


def test_dispersion_bound_is_not_trivial(proba):
    code = 0.05 * analytic_code(proba, VERTICES, SCALE)
    best = analytic_code([proba.mean(axis=0)], VERTICES, SCALE)
    mean = best + code - code.mean(axis=0)
    margin = collapse_margin(proba, witness_log_proba(mean, VERTICES, SCALE))
    bound = dispersion_bound(margin, escape_force_rms(proba, SCALE))
    assert bound > 0.5 * latent_dispersion(mean)


def test_dispersion_of_equal_samples_is_exactly_zero():
    assert latent_dispersion(np.full((1000, 3), 0.1)) == 0


def test_one_sample_has_no_information(proba):
    assert teacher_information(proba[:1]) == 0


@pytest.mark.parametrize(
    ("log_q", "message"),
    [
        (
            np.log(np.full((2, 3), 1 / 3)),
            r"shape \(2, 2\) of teacher_proba, got \(2, 3\)",
        ),
        (np.full((2, 2), 0.5), "sums to 3.29"),
        (np.full((2, 2), np.nan), "sums to nan"),
        (np.full((2, 2), -np.inf), "sums to 0"),
    ],
)
def test_log_probabilities_are_checked(log_q, message):
    with pytest.raises(ValueError, match=message):
        collapse_margin([[0.5, 0.5], [0.9, 0.1]], log_q)


def test_an_excluded_component_costs_everything():
    log_q = np.array([[0.0, -np.inf], [np.log(0.5)] * 2])
    assert alignment_loss([[0.5, 0.5], [0.9, 0.1]], log_q) == np.inf
    assert collapse_margin([[0.5, 0.5], [0.9, 0.1]], log_q) == -np.inf


def test_samples_in_batches_add_up(proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    sums, of_logits = MarginSums(), MarginSums()
    for part in (slice(0, 1), slice(1, 17), slice(17, N)):
        sums.update(proba[part], log_q[part], weight[part])
        of_logits.update_logits(proba[part], log_q[part] + 3.0, weight[part])
    assert (sums.n_samples, sums.total_weight) == (N, weight.sum())
    for total in (sums, of_logits):
        expected = collapse_margin(proba, log_q, weight)
        assert total.margin == pytest.approx(expected, rel=1e-12)
        expected = teacher_information(proba, weight)
        assert total.teacher_information == pytest.approx(expected, rel=1e-12)
        expected = alignment_loss(proba, log_q, weight)
        assert total.alignment_loss == pytest.approx(expected, rel=1e-12)
    # The twin: the mean teacher is that of all samples, not of each batch.
    parts = [collapse_margin(proba[i : i + 1], log_q[i : i + 1]) for i in range(N)]
    assert sums.margin > np.average(parts, weights=weight) + 0.1


def test_a_batch_that_is_not_valid_adds_nothing(proba, mean):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    sums = MarginSums().update(proba, log_q)
    before = vars(sums).copy()
    bad = np.repeat(proba, 2000, axis=0)
    bad[-1] = 0.5
    with pytest.raises(ValueError, match="sum to 1"):
        sums.update(bad, np.repeat(log_q, 2000, axis=0))
    with pytest.raises(ValueError, match="5 columns, as in the batches before, got 4"):
        sums.update(np.full((2, 4), 0.25), np.log(np.full((2, 4), 0.25)))
    assert vars(sums) == before


def test_spread_of_batches_is_that_of_all_samples(mean, weight):
    far = mean + 1e8
    spread = SpreadSums()
    for part in (slice(0, 1), slice(1, 30), slice(30, N)):
        spread.update(far[part], weight[part])
    centered = far - np.average(far, axis=0, weights=weight)
    expected = np.average(centered**2, axis=0, weights=weight)
    np.testing.assert_allclose(spread.variance, expected, rtol=1e-7)
    # What remains with the shortcut: mean square minus squared mean.
    shortcut = np.average(far**2, axis=0) - np.average(far, axis=0) ** 2
    assert np.abs(shortcut / expected - 1).max() > 0.1


def test_memory_is_that_of_a_chunk(tmp_path):
    shape = 40_000, 50
    proba = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.float32, shape)
    proba[:] = 0.02
    log_q = np.lib.format.open_memmap(tmp_path / "q.npy", "w+", np.float32, shape)
    log_q[:] = np.log(0.02)
    tracemalloc.start()
    try:
        assert collapse_margin(proba, log_q) == pytest.approx(0, abs=1e-7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A few arrays of 2^16 values; the arrays have 30 times as many.
    assert peak < 4e6


def test_components_against_arithmetic_of_scipy(proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    p = weight / weight.sum()
    average = np.average(proba, axis=0, weights=weight)
    over_samples = p[:, None] * proba / average  # p(i|k)
    students = p[:, None] * np.exp(log_q) / (p @ np.exp(log_q))
    information = average * rel_entr(over_samples, p[:, None]).sum(axis=0)
    lost = average * rel_entr(over_samples, students).sum(axis=0)
    np.testing.assert_allclose(component_information(proba, weight), information)
    np.testing.assert_allclose(
        component_visibility(proba, log_q, weight), information - lost, rtol=1e-10
    )


def test_components_sum_to_margin_and_information(proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    margin = collapse_margin(proba, log_q, weight)
    information = teacher_information(proba, weight)
    averages = (np.average(p, axis=0, weights=weight) for p in (proba, np.exp(log_q)))
    by_averages = rel_entr(*averages).sum()
    contributions = component_contributions(proba, log_q, weight)
    visible = component_visibility(proba, log_q, weight)
    assert contributions.sum() == pytest.approx(margin, rel=1e-12)
    assert component_information(proba, weight).sum() == pytest.approx(information)
    assert visible.sum() == pytest.approx(margin + by_averages, rel=1e-12)
    assert by_averages > 0.01


@pytest.mark.parametrize(
    "metric",
    [
        component_contributions,
        component_visibility,
        lambda t, q, w=None: component_information(t, w),
    ],
)
def test_weights_of_components_count_as_repetitions(metric, proba, mean, weight):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    repeated = metric(proba.repeat(weight, axis=0), log_q.repeat(weight, axis=0))
    np.testing.assert_allclose(metric(proba, log_q, weight), repeated, rtol=1e-11)


@given(constants, st.integers(0, 2**32 - 1))
def test_a_constant_student_sees_no_component(logits, seed):
    proba = softmax(np.random.default_rng(seed).normal(size=(N, K)), axis=1)
    log_q = np.tile(log_softmax(logits), (N, 1))
    np.testing.assert_allclose(component_visibility(proba, log_q), 0, atol=1e-13)


def test_a_constant_student_can_contribute_to_one_component(proba):
    """Why a contribution above 0 is not yet visibility."""
    log_q = np.tile(np.log([0.6, 0.1, 0.1, 0.1, 0.1]), (N, 1))
    contributions = component_contributions(proba, log_q)
    assert contributions[0] > 0.1
    assert contributions.sum() < 0


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20))
def test_no_component_is_seen_better_than_it_can_be(seed, sharp):
    rng = np.random.default_rng(seed)
    proba = 0.99 * softmax(sharp * rng.normal(size=(N, K)), axis=1) + 0.01 / K
    log_q = log_softmax(sharp * rng.normal(size=(N, K)) + np.log(proba), axis=1)
    available = component_information(proba)
    assert (available >= 0).all()
    assert (component_visibility(proba, log_q) <= available + 1e-12).all()
    np.testing.assert_allclose(component_visibility(proba, np.log(proba)), available)


@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_equal_samples_have_no_information_in_any_component(n, n_components, seed):
    """Exactly 0, where rounding alone would give about 1e-17."""
    rng = np.random.default_rng(seed)
    row = 0.99 * rng.dirichlet(np.ones(n_components)) + 0.01 / n_components
    information = component_information(np.tile(row, (n, 1)), rng.uniform(size=n))
    np.testing.assert_array_equal(information, 0)
    assert (component_information(np.full((6, 3), 1 / 3)) == 0).all()


def test_merged_components_are_invisible_to_the_witness():
    """Four clusters: the code separates two of them and merges two."""
    clusters = np.repeat(np.arange(4), 10)
    proba = 0.96 * np.eye(4)[clusters] + 0.01
    heard = proba.copy()
    heard[:, 2:] = heard[:, 2:].mean(axis=1, keepdims=True)
    share = component_visibility(proba, np.log(heard)) / component_information(proba)
    np.testing.assert_allclose(share[:2], 1)
    assert (share[2:] < 0.55).all()


def test_a_component_the_witness_says_the_same_of_is_invisible(proba):
    heard = 0.8 * proba / proba[:, 1:].sum(axis=1, keepdims=True)
    heard[:, 0] = 0.2
    visible = component_visibility(proba, np.log(heard))
    assert visible[0] == pytest.approx(0, abs=1e-15)
    assert (visible[1:] > 0.1 * component_information(proba)[1:]).all()


def test_a_component_excluded_everywhere_is_invisible():
    log_q = np.array([[0.0, -np.inf], [0.0, -np.inf]])
    visible = component_visibility([[0.5, 0.5], [0.9, 0.1]], log_q)
    np.testing.assert_array_equal(visible, [0, 0])


def test_view_gap_by_hand():
    """Two samples, two components: KL(t || o) = t ln(t / o) + (1 - t) ln(...)."""
    own, target = [[0.5, 0.5], [0.8, 0.2]], [[0.9, 0.1], [0.8, 0.2]]
    expected = (0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)) / 2
    gap = view_gap(own_view_proba=own, target_view_proba=target)
    assert gap == pytest.approx(expected, rel=1e-14)
    weighted = view_gap(
        own_view_proba=own, target_view_proba=target, sample_weight=[3, 1]
    )
    assert weighted == pytest.approx(1.5 * expected)


def test_view_gap_is_not_symmetric_and_vanishes_for_equal_views(proba):
    other = softmax(np.random.default_rng(7).normal(size=(N, K)), axis=1)
    there = view_gap(own_view_proba=proba, target_view_proba=other)
    back = view_gap(own_view_proba=other, target_view_proba=proba)
    assert there == pytest.approx(rel_entr(other, proba).sum(axis=1).mean())
    assert abs(there - back) > 0.1
    same = view_gap(own_view_proba=proba, target_view_proba=proba)
    assert same == pytest.approx(0, abs=1e-15)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0.1, 10))
def test_the_code_of_the_own_view_reaches_information_less_gap(seed, mixed, scale):
    rng = np.random.default_rng(seed)
    own, noise = softmax(3 * rng.normal(size=(2, N, K)), axis=2)
    target = (1 - mixed) * own + mixed * noise
    weight = rng.integers(1, 4, size=N)
    code = analytic_code(own, VERTICES, scale)
    log_q = witness_log_proba(code, VERTICES, scale)
    gap = view_gap(own_view_proba=own, target_view_proba=target, sample_weight=weight)
    margin = collapse_margin(target, log_q, weight)
    expected = teacher_information(target, weight) - gap
    assert margin == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_an_unrelated_view_is_of_no_use(proba):
    shuffled = np.random.default_rng(0).permutation(proba)
    gap = view_gap(own_view_proba=proba, target_view_proba=shuffled)
    assert gap > teacher_information(shuffled)


@pytest.mark.parametrize(
    ("own", "target", "message"),
    [
        ([[0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]], "target_view_proba must have one row"),
        ([[0.5, 0.5]], [[0.2, 0.2, 0.6]], "the same number of components, got 2 and 3"),
        ([[1.0, 0.0]], [[0.5, 0.5]], r"own_view_proba must have .* 0.99 \* own_view"),
        ([[0.5, 0.5]], [[0.5, 0.4]], "target_view_proba must have rows that sum to 1"),
    ],
)
def test_views_are_checked(own, target, message):
    with pytest.raises(ValueError, match=message):
        view_gap(own_view_proba=own, target_view_proba=target)


def test_views_are_named():
    with pytest.raises(TypeError, match="positional"):
        view_gap([[0.5, 0.5]], [[0.5, 0.5]])


@pytest.mark.parametrize("anchored", [False, True])
def test_the_path_is_that_of_its_codes(proba, weight, anchored):
    path = margin_energy_path(
        proba, SCALE, n_points=7, anchored=anchored, sample_weight=weight
    )
    share = weight / weight.sum()
    start = np.zeros(D)
    if anchored:
        start = analytic_code([share @ proba], VERTICES, SCALE)[0]
    end = analytic_code(proba, VERTICES, SCALE)
    np.testing.assert_allclose(path.strength, np.arange(7) / 6)
    for strength, margin, energy in zip(*path, strict=True):
        code = (1 - strength) * start + strength * end
        log_q = log_softmax(SCALE * code @ VERTICES.T, axis=1)
        expected = collapse_margin(proba, log_q, weight)
        assert margin == pytest.approx(expected, rel=1e-9, abs=1e-13)
        assert energy == pytest.approx(share @ (code**2).sum(axis=1) / 2, rel=1e-12)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4), st.booleans())
def test_the_path_is_concave_and_rises_to_the_information(seed, spread, anchored):
    rng = np.random.default_rng(seed)
    proba = softmax(spread * rng.normal(size=(N, K)), axis=1)
    path = margin_energy_path(proba, SCALE, anchored=anchored)
    assert path.margin[-1] == pytest.approx(teacher_information(proba), rel=1e-11)
    assert path.energy[-1] == pytest.approx(analytic_energy(proba, SCALE), rel=1e-11)
    rises = np.diff(path.margin)
    assert rises.min() > 0
    assert np.diff(rises).max() < 1e-13


def test_where_the_path_starts(proba):
    mean = proba.mean(axis=0)
    origin = margin_energy_path(proba, SCALE)
    from_uniform = rel_entr(mean, np.full(K, 1 / K)).sum()
    assert from_uniform > 0.001
    assert origin.margin[0] == pytest.approx(-from_uniform, rel=1e-11)
    assert origin.energy[0] == 0
    np.testing.assert_allclose(
        origin.energy, origin.strength**2 * origin.energy[-1], rtol=1e-12
    )
    anchored = margin_energy_path(proba, SCALE, anchored=True)
    assert anchored.margin[0] == pytest.approx(0, abs=1e-15)
    best = np.linalg.norm(analytic_code([mean], VERTICES, SCALE)) ** 2 / 2
    assert anchored.energy[0] == pytest.approx(best, rel=1e-12)
    # The slope there is that of the margin along the force, above 0.
    assert anchored.margin[1] > 0 > origin.margin[0]


def test_a_scale_changes_what_the_path_costs_and_nothing_else(proba):
    one, two = (margin_energy_path(proba, scale) for scale in (1.0, 2.0))
    np.testing.assert_array_equal(one.margin, two.margin)
    np.testing.assert_allclose(one.energy, 4 * two.energy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_points": 1}, "n_points must be an int of at least 2, got 1"),
        ({"scale": 0.0}, "scale must be a finite number above 1e-150 .*, got 0.0"),
        ({"scale": np.nan}, "scale must be a finite number above 1e-150 .*, got nan"),
        ({"teacher_proba": [[1.0, 0.0]]}, "teacher_proba must have"),
        ({"sample_weight": [1.0]}, "sample_weight must"),
    ],
)
def test_what_a_path_refuses(arguments, message):
    proba = [[0.9, 0.1], [0.1, 0.9]]
    with pytest.raises(ValueError, match=message):
        margin_energy_path(**{"teacher_proba": proba, "scale": 1.0} | arguments)


def test_the_path_is_not_the_cheapest_way(proba):
    path = margin_energy_path(proba, SCALE, n_points=3)
    code = analytic_code(proba, VERTICES, SCALE) / 2
    moved = code + 0.3 * escape_force(proba, code, VERTICES, SCALE)
    moved *= np.linalg.norm(code) / np.linalg.norm(moved)
    assert (moved**2).sum() / N / 2 == pytest.approx(path.energy[1])
    log_q = witness_log_proba(moved, VERTICES, SCALE)
    assert collapse_margin(proba, log_q) > path.margin[1] + 0.001


def exact_dispersion_square(samples, weight):
    """The same in exact fractions, of the same float64 values."""
    shares = [Fraction(float(w)) for w in weight]
    total, square = sum(shares), Fraction(0)
    for column in samples.T:
        values = [Fraction(float(x)) for x in column]
        mean = sum(w * x for w, x in zip(shares, values, strict=True)) / total
        square += sum(w * (x - mean) ** 2 for w, x in zip(shares, values, strict=True))
    return square / total


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("first", [0.0, 1.0, 1e6, 1e17])
def test_the_least_dispersion_is_below_the_exact_one(size, first):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 60))
        samples = rng.normal(size=2) + size * rng.normal(size=(n, 2))
        weight = rng.exponential(size=n) ** rng.integers(1, 4)
        far = rng.integers(n)
        samples[far] += first
        weight[far] *= rng.choice([1.0, 1e-12, 1e-15])
        merged = SpreadSums()
        for part in np.array_split(rng.permutation(n), rng.integers(1, 5)):
            if len(part):
                merged.merge(SpreadSums().update(samples[part], weight[part]))
        exact = exact_dispersion_square(samples, weight)
        assert Fraction(merged.least_dispersion) ** 2 <= exact
        # The far one may weigh so little that it counts for nothing.
        assert n - 1 <= merged.n_samples <= n
        # The twin: near the exact one where nothing is far away.
        if first <= 1 and size >= 1e-3:
            assert merged.least_dispersion**2 >= 0.99 * float(exact)
