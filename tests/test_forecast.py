import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, rel_entr, softmax

from skvaecert.forecast import forecast_margin, guaranteed_margin, ratio_for_margin
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.simplex import (
    analytic_code,
    analytic_energy,
    simplex_vertices,
    witness_log_proba,
)

N, K, D, SCALE = 12, 5, 6, 1.3
VERTICES = simplex_vertices(K, D)
RATIOS = (0.01, 0.3, 2.0, 50.0)


def random_proba(seed, n_samples=N, n_components=K, sharpness=3.0):
    logits = np.random.default_rng(seed).normal(size=(n_samples, n_components))
    return softmax(sharpness * logits, axis=1)


@pytest.fixture
def proba():
    return random_proba(0)


def row_objective(code, proba, ratio):
    """The loss of theory section 9, and its gradient, from scipy alone."""
    log_q = log_softmax(SCALE * VERTICES @ code)
    loss = proba @ (np.log(proba) - log_q)
    force = SCALE * VERTICES.T @ (proba - np.exp(log_q))
    return ratio * loss + code @ code / 2, code - ratio * force


def brute_force(proba, ratio):
    codes = [
        minimize(row_objective, np.zeros(D), (row, ratio), jac=True, tol=1e-12).x
        for row in proba
    ]
    return np.array(codes)


def energy_of(codes):
    return (codes**2).sum(axis=1).mean() / 2


def margin_of(proba, codes, vertices=VERTICES, scale=SCALE):
    return collapse_margin(proba, witness_log_proba(codes, vertices, scale))


def objective(proba, ratio, codes):
    loss = teacher_information(proba) - margin_of(proba, codes)
    return ratio * loss + energy_of(codes)


def forecast_objective(proba, ratio):
    margin, energy = forecast_margin(proba, SCALE, ratio)
    return ratio * (teacher_information(proba) - margin) + energy


@pytest.mark.parametrize("ratio", RATIOS)
def test_forecast_is_what_a_minimiser_finds(proba, ratio):
    codes = brute_force(proba, ratio)
    forecast = forecast_margin(proba, SCALE, ratio)
    assert forecast.margin == pytest.approx(margin_of(proba, codes), abs=1e-7)
    assert forecast.energy == pytest.approx(energy_of(codes), rel=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_no_code_has_a_smaller_objective(proba, ratio):
    best = forecast_objective(proba, ratio)
    codes = brute_force(proba, ratio)
    assert objective(proba, ratio, codes) == pytest.approx(best, rel=1e-10)
    rng = np.random.default_rng(0)
    for size in (1e-2, 0.1, 1.0):
        moved = codes + size * rng.normal(size=codes.shape)
        # Strictly convex: at least by half the square of the way.
        least = best + energy_of(moved - codes)
        assert objective(proba, ratio, moved) >= least - 1e-6
    for share in np.linspace(0, 1, 11):
        path = share * analytic_code(proba, VERTICES, SCALE)
        assert objective(proba, ratio, path) >= best


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["1e-12", "1e-3", "7", "1e5", "1e12"])
@pytest.mark.parametrize(
    "row",
    [
        ("1", "2e-300", "1e-299"),
        ("0.5", "0.5", "1e-290"),
        ("0.6", "0.399999999", "1e-9"),
        ("0.4", "0.35", "0.25"),
    ],
)
def test_against_sixty_digits(row, ratio):
    given = np.array([row], dtype=float)
    forecast = forecast_margin(given, SCALE, float(ratio))
    with mpmath.workdps(60):
        proba = [mpmath.mpf(x) for x in given[0]]
        proba = [p / sum(proba) for p in proba]
        stiffness = mpmath.mpf(2) / (3 * mpmath.mpf(SCALE) ** 2)
        logits = exact_logits(proba, mpmath.mpf(float(ratio)) / stiffness)
        log_sum = mpmath.log(sum(map(mpmath.exp, logits)))
        pairs = list(zip(proba, logits, strict=True))
        loss = sum(p * (mpmath.log(p) - u + log_sum) for p, u in pairs)
        energy = stiffness / 2 * sum(u**2 for u in logits)
        # Of one row the information is 0 and the margin minus the loss.
        assert forecast.margin == pytest.approx(-float(loss), abs=1e-14)
        assert forecast.energy == pytest.approx(float(energy), rel=1e-11)


def exact_logits(proba, rho):
    """Bisect log sum exp(u): softmax(u)_k = y_k / rho, y_k + log y_k = rho T_k + L."""
    low = mpmath.log(rho) + sum(map(mpmath.log, proba)) / len(proba) - 1
    high = mpmath.log(rho / len(proba)) + 1
    for _ in range(200):
        shift = (low + high) / 2
        parts = [wright(rho * p + shift) for p in proba]
        low, high = (low, shift) if sum(parts) > rho else (shift, high)
    return [rho * p - part for p, part in zip(proba, parts, strict=True)]


def wright(x):
    return mpmath.lambertw(mpmath.exp(x)).real


def test_without_alignment_the_code_is_the_prior_mean(proba):
    margin, energy = forecast_margin(proba, SCALE, 0)
    uniform = np.full(K, 1 / K)
    divergence = rel_entr(proba.mean(axis=0), uniform).sum()
    assert energy == 0
    assert margin == pytest.approx(-divergence, rel=1e-12)
    assert divergence > 0.01
    near = forecast_margin(proba, SCALE, 1e-12)
    assert near.margin == pytest.approx(margin, abs=1e-11)


def test_small_codes_follow_the_force(proba):
    # z = r f at first order, f the escape force at the code 0.
    force = SCALE * (proba - 1 / K) @ VERTICES
    for ratio in (1e-150, 1e-20, 1e-12, 1e-6):
        energy = forecast_margin(proba, SCALE, ratio).energy
        assert energy / ratio**2 == pytest.approx(energy_of(force), rel=1e-4)


def test_without_kl_it_is_the_analytic_code(proba):
    margin, energy = forecast_margin(proba, SCALE, np.inf)
    assert margin == pytest.approx(teacher_information(proba), abs=1e-14)
    assert energy == pytest.approx(analytic_energy(proba, SCALE), rel=1e-12)
    far = forecast_margin(proba, SCALE, 1e12)
    assert far.margin == pytest.approx(margin, abs=1e-9)
    assert far.energy == pytest.approx(energy, rel=1e-6)
    assert forecast_margin(proba, 1e3, 1e308).energy < 1  # rho overflows


@pytest.mark.slow
@given(
    st.integers(0, 1000),
    st.sampled_from([2, 3, 20]),
    st.sampled_from([0.0, 1.0, 10.0, 60.0]),
)
def test_margin_and_energy_rise_with_the_ratio(seed, n_components, sharpness):
    proba = np.maximum(random_proba(seed, 5, n_components, sharpness), 1e-299)
    ratios = np.concatenate([[0], np.geomspace(1e-12, 1e12, 49), [np.inf]])
    margin, energy = forecast_margin(proba, SCALE, ratios)
    assert np.diff(margin).min() > -1e-12
    assert (np.diff(energy) >= -1e-12 * energy[1:] - 1e-25).all()
    # Sums of 20 terms, two of them to compare, are off by some units in the last place.
    assert margin.max() <= teacher_information(proba) + 1e-14
    if sharpness:
        assert margin[-1] - margin[0] > 1e-3
    else:
        np.testing.assert_allclose(energy, 0, atol=1e-20)


def test_weights_count_as_repetitions(proba):
    weight = np.random.default_rng(1).integers(0, 4, size=N)
    repeated = proba.repeat(weight, axis=0)
    for function, argument in [
        (forecast_margin, RATIOS),
        (ratio_for_margin, 0.7),
        (partial_guarantee, 0.5),
    ]:
        weighted = function(proba, SCALE, argument, sample_weight=weight)
        np.testing.assert_allclose(
            weighted, function(repeated, SCALE, argument), rtol=1e-9
        )
        plain = function(proba, SCALE, argument)
        assert np.abs(np.subtract(weighted, plain)).max() > 1e-3


def partial_guarantee(proba, scale, gain, **kwargs):
    return guaranteed_margin(proba, scale, 10.0, 2.0, gain, **kwargs)


def test_arrays_of_ratios_are_numbers_in_any_order(proba):
    ratios = np.array([[50.0, 0.0, 2.0], [np.inf, 0.3, 1e-9]])
    margin, energy = forecast_margin(proba, SCALE, ratios)
    for place, ratio in np.ndenumerate(ratios):
        single = forecast_margin(proba, SCALE, ratio)
        assert isinstance(single.margin, float)
        assert isinstance(single.energy, float)
        assert margin[place] == pytest.approx(single.margin, abs=1e-14)
        assert energy[place] == pytest.approx(single.energy, rel=1e-12)
    assert forecast_margin(proba, SCALE, []).margin.shape == (0,)


def test_many_rows_are_the_sum_of_their_parts():
    proba = random_proba(2, 3000, 70)
    parts = [forecast_objective(part, 3.0) for part in np.split(proba, 3)]
    assert forecast_objective(proba, 3.0) == pytest.approx(np.mean(parts), rel=1e-12)


@pytest.mark.slow
@given(st.integers(0, 1000), st.floats(1e-3, 0.999), st.sampled_from([0.1, 3.0, 30.0]))
def test_ratio_for_margin_reaches_it(seed, relative_margin, sharpness):
    proba = np.maximum(random_proba(seed, 6, 4, sharpness), 1e-250)
    information = teacher_information(proba)
    ratio = ratio_for_margin(proba, SCALE, relative_margin)
    reached = forecast_margin(proba, SCALE, ratio).margin / information
    assert reached == pytest.approx(relative_margin, abs=1e-7)


@pytest.mark.parametrize("relative_margin", [0.0, 1.0, 1.5, -0.1, np.nan])
def test_margins_out_of_reach(proba, relative_margin):
    with pytest.raises(ValueError, match=f"relative_margin.*got {relative_margin}"):
        ratio_for_margin(proba, SCALE, relative_margin)


def test_no_margin_to_reach():
    with pytest.raises(ValueError, match=r"must differ between samples, got .* nats"):
        ratio_for_margin([[0.7, 0.3]] * 4, SCALE, 0.5)


@pytest.mark.parametrize("gain", [0.0, 1e-14, 0.01, 0.3, 3.0, 100.0])
@pytest.mark.parametrize(("weight", "kl_weight"), [(10, 1), (1, 4), (3, 0)])
def test_guarantee_lies_between_its_simple_form_and_the_forecast(
    proba, weight, kl_weight, gain
):
    ratio = weight / kl_weight if kl_weight else np.inf
    margin, energy = forecast_margin(proba, SCALE, ratio)
    guaranteed = guaranteed_margin(proba, SCALE, weight, kl_weight, gain)
    simple = margin - energy / ratio - gain / weight
    assert simple - 1e-12 <= guaranteed <= margin + 1e-12
    if gain == 0:
        assert guaranteed == pytest.approx(margin, abs=1e-12)
    if kl_weight and gain == 0.01:
        assert simple + 1e-3 < guaranteed < margin - 1e-4


def global_optimum(teacher, weight, kl_weight, reconstruction):
    """Best codes of two components on a line, by trying all."""
    grid = np.linspace(-4, 4, 4001)
    log_q = np.log([expit(2 * SCALE * grid), expit(-2 * SCALE * grid)])
    loss = (teacher * np.log(teacher)).sum(axis=1)[:, None] - teacher @ log_q
    total = weight * loss + kl_weight * grid**2 / 2 + reconstruction(grid)
    return grid[total.argmin(axis=1)][:, np.newaxis]


@pytest.mark.parametrize("gain", [0.0, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("wanted", ["constant", "reversed", "at prior", "random"])
def test_no_global_optimum_is_below_the_guarantee(gain, wanted):
    teacher = random_proba(3, 40, 2)
    vertices = simplex_vertices(2, 1)
    weight, kl_weight = 4.0, 1.0
    places = {
        "constant": np.full(40, 0.4),
        "reversed": -analytic_code(teacher, vertices, SCALE)[:, 0],
        "at prior": np.zeros(40),
        "random": np.random.default_rng(0).normal(size=40),
    }[wanted]

    def reconstruction(grid):
        # Between 0 and the gain; whoever ignores the code pays the gain.
        return gain * (1 - np.exp(-((grid - places[:, None]) ** 2) / 0.01))

    # The first vertex of two is at -1 or 1.
    sign = vertices[0, 0]
    codes = global_optimum(teacher, weight, kl_weight, reconstruction) * sign
    margin = margin_of(teacher, codes, vertices)
    forecast = forecast_margin(teacher, SCALE, weight / kl_weight).margin
    guaranteed = guaranteed_margin(teacher, SCALE, weight, kl_weight, gain)
    # The grid is off by 1e-3 at most, at a stationary point.
    assert margin >= guaranteed - 1e-3
    if gain == 0:
        assert margin == pytest.approx(forecast, abs=1e-3)
    elif gain == 5 and wanted in ("constant", "reversed"):
        assert margin < forecast - 0.05  # which the forecast does not promise


def test_guarantee_is_attained(proba):
    # A reconstruction that rewards the codes of a smaller ratio by the gain makes them
    # as good as the forecast's: no greater guarantee would hold.
    weight, kl_weight, gain = 10.0, 2.0, 1.5
    guaranteed = guaranteed_margin(proba, SCALE, weight, kl_weight, gain)
    information = teacher_information(proba)
    smaller = ratio_for_margin(proba, SCALE, guaranteed / information)

    def total(ratio):
        margin, energy = forecast_margin(proba, SCALE, ratio)
        return weight * (information - margin) + kl_weight * energy

    best = total(weight / kl_weight)
    assert total(smaller) - best == pytest.approx(gain, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, r"scale must be finite and above 0, got 0\.0"),
        ({"scale": np.inf}, "scale must be finite and above 0, got inf"),
        ({"ratio": -1.0}, r"ratio must be at least 0 .*got -1\.0"),
        ({"ratio": [1.0, np.nan]}, "ratio must be at least 0 .*got nan"),
        ({"teacher_proba": [[1.0], [1.0]]}, "at least two components, got 1"),
        ({"teacher_proba": [[1.0, 0.0]]}, "every entry finite and above 0"),
        ({"sample_weight": [1.0]}, "sample_weight must have one row for each"),
    ],
)
def test_forecast_refuses(proba, change, message):
    arguments = {"teacher_proba": proba, "scale": SCALE, "ratio": 1.0} | change
    with pytest.raises(ValueError, match=message):
        forecast_margin(**arguments)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0.0, "alignment_weight must be finite and above 0, got 0.0"),
        (0, np.inf, "alignment_weight must be finite and above 0, got inf"),
        (1, -1.0, "kl_weight must be finite and at least 0, got -1.0"),
        (2, -0.1, "reconstruction_gain must be finite and at least 0, got -0.1"),
        (2, np.nan, "reconstruction_gain must be finite and at least 0, got nan"),
    ],
)
def test_guarantee_refuses(proba, place, value, message):
    arguments = [10.0, 1.0, 0.5]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        guaranteed_margin(proba, SCALE, *arguments)
