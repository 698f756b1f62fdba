import mpmath
import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import norm
from sklearn.datasets import load_digits

from skvaecert import CertifiedVAE
from skvaecert.datasets import DatasetSamples
from skvaecert.diagnostics import kl_per_dimension
from skvaecert.forecast import (
    collapse_threshold,
    forecast_margin,
    guaranteed_margin,
    linear_information,
    ratio_for_margin,
)
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
def test_forecast_is_what_a_minimizer_finds(proba, ratio):
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
        # For one sample, the information is 0 and the margin is minus the loss.
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


def test_arrays_of_ratios_give_each_value_in_any_order(proba):
    ratios = np.array([[50.0, 0.0, 2.0], [np.inf, 0.3, 1e-9]])
    margin, energy = forecast_margin(proba, SCALE, ratios)
    for place, ratio in np.ndenumerate(ratios):
        single = forecast_margin(proba, SCALE, ratio)
        assert isinstance(single.margin, float)
        assert isinstance(single.energy, float)
        assert margin[place] == pytest.approx(single.margin, abs=1e-14)
        assert energy[place] == pytest.approx(single.energy, rel=1e-12)
    assert forecast_margin(proba, SCALE, []).margin.shape == (0,)


def test_many_samples_are_the_sum_of_their_parts():
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
        # Between 0 and the gain; a decoder that ignores the code loses the gain.
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
        ({"teacher_proba": [[1.0, 0.0]]}, "finite values above 0"),
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


# Theory section 18.


@pytest.fixture(scope="module")
def all_digits():
    return load_digits().data / 16


def data_with(spectrum, n_samples=40, seed=0):
    """Data whose covariance has these eigenvalues."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(n_samples, len(spectrum)))
    white, _ = np.linalg.qr(raw - raw.mean(axis=0))
    turn, _ = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))
    return np.sqrt(n_samples) * white * np.sqrt(spectrum) @ turn


def test_thresholds_of_the_digits(all_digits):
    assert collapse_threshold(all_digits) == pytest.approx(9.53, abs=0.005)
    bernoulli = collapse_threshold(all_digits, likelihood="bernoulli")
    assert bernoulli == pytest.approx(3.35, abs=0.005)
    thresholds = linear_information(all_digits, 1.0).thresholds
    np.testing.assert_allclose(thresholds[:4], [9.53, 8.83, 7.94, 6.34], atol=0.005)


def test_thresholds_against_arithmetic_of_numpy(all_digits):
    covariance = np.cov(all_digits.T, bias=True)
    values = np.linalg.eigvalsh(covariance)[::-1]
    averaged = collapse_threshold(all_digits, reduction="mean")
    assert averaged == pytest.approx(values[0] / values.sum(), rel=1e-12)
    fixed = collapse_threshold(all_digits, noise_variance=0.5)
    assert fixed == pytest.approx(2 * values[0], rel=1e-12)
    mean = all_digits.mean(axis=0)
    some = all_digits.std(axis=0) > 0
    scale = np.sqrt(mean * (1 - mean))[some]
    relative = covariance[some][:, some] / np.outer(scale, scale)
    bernoulli = collapse_threshold(all_digits, likelihood="bernoulli")
    assert bernoulli == pytest.approx(np.linalg.eigvalsh(relative)[-1], rel=1e-12)
    assert collapse_threshold(
        all_digits, likelihood="bernoulli", reduction="mean"
    ) == pytest.approx(bernoulli / 64, rel=1e-12)
    assert collapse_threshold(all_digits, latent_dim=1) == collapse_threshold(
        all_digits, latent_dim=99
    )


def test_thresholds_have_closed_forms_in_simple_cases():
    line = np.outer([0.0, 1.0, 1.0, 4.0], [1.0, 2.0, 3.0])
    assert collapse_threshold(line) == pytest.approx(3, rel=1e-12)
    assert collapse_threshold(line, reduction="mean") == pytest.approx(1, rel=1e-12)
    assert collapse_threshold(data_with([2.0] * 5)) == pytest.approx(1, rel=1e-12)
    # Bits that agree are one bit, and independent ones are noise.
    bits = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])
    assert collapse_threshold(bits, likelihood="bernoulli") == pytest.approx(2)
    assert collapse_threshold(bits[:, 1:3], likelihood="bernoulli") == pytest.approx(1)


def linear_loss(parameters, spectrum, latent_dim, kl_weight):
    """Loss of a linear VAE on data of covariance diag(spectrum), and its gradient."""
    parameters = torch.tensor(parameters, requires_grad=True)
    n_features = len(spectrum)
    n_weights = n_features * latent_dim
    decoder = parameters[:n_weights].reshape(n_features, latent_dim)
    encoder = parameters[n_weights : 2 * n_weights].reshape(latent_dim, n_features)
    log_variance, log_noise = parameters[2 * n_weights : -1], parameters[-1]
    root = torch.tensor(np.diag(np.sqrt(spectrum)))
    missed = ((torch.eye(n_features) - decoder @ encoder) @ root).square().sum()
    missed = missed + (decoder.square() * log_variance.exp()).sum()
    squares = (encoder @ root).square().sum()
    kl = (squares + (log_variance.exp() - 1 - log_variance).sum()) / 2
    loss = (n_features * log_noise + missed * torch.exp(-log_noise)) / 2
    loss = loss + kl_weight * kl
    loss.backward()
    return loss.item(), parameters.grad.numpy(), kl.item()


def best_linear_vae(spectrum, latent_dim, kl_weight):
    """Return loss, KL term and noise variance of the best of some minimizations."""
    rng = np.random.default_rng(0)
    arguments = spectrum, latent_dim, kl_weight
    size = 2 * len(spectrum) * latent_dim + latent_dim + 1
    found = [
        minimize(
            lambda x: linear_loss(x, *arguments)[:2],
            rng.normal(size=size) * 0.5,
            jac=True,
            method="BFGS",
            options={"gtol": 1e-8, "maxiter": 5000},
        )
        for _ in range(3)
    ]
    best = min(found, key=lambda result: result.fun)
    return best.fun, linear_loss(best.x, *arguments)[2], np.exp(best.x[-1])


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
@pytest.mark.parametrize(
    "spectrum",
    [(4.0, 2.0, 1.0, 0.3), (3.0, 3.0, 0.2, 0.1), (9.0, 0.5, 0.5, 0.5)],
)
def test_linear_forecast_is_what_a_minimizer_finds(spectrum, latent_dim):
    X = data_with(spectrum)
    threshold = collapse_threshold(X)
    for share in (0.75, 0.9, 0.98, 1.02, 1.3):
        kl_weight = share * threshold
        forecast = linear_information(X, kl_weight, latent_dim)
        _, kl, noise_variance = best_linear_vae(spectrum, latent_dim, kl_weight)
        assert forecast.information == pytest.approx(kl, abs=1e-5)
        assert forecast.noise_variance == pytest.approx(noise_variance, rel=1e-5)
        assert (forecast.information > 1e-4) == (share < 1)


@given(
    st.integers(0, 1000),
    st.integers(1, 8),
    st.floats(0.05, 20),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_noise_variance_is_a_fixed_point(seed, latent_dim, kl_weight, spread):
    rng = np.random.default_rng(seed)
    spectrum = np.sort(np.exp(spread * rng.normal(size=6)))[::-1]
    forecast = linear_information(data_with(spectrum, 9, seed), kl_weight, latent_dim)
    noise, kept = forecast.noise_variance, spectrum[:latent_dim]
    learned = np.minimum(kept, kl_weight * noise).sum() + spectrum[latent_dim:].sum()
    assert noise == pytest.approx(learned / 6, rel=1e-6, abs=1e-9 * spectrum[0])
    assert forecast.n_surviving == (kept > kl_weight * noise * (1 + 1e-9)).sum()
    assert forecast.per_direction.shape == kept.shape
    assert forecast.information == pytest.approx(forecast.per_direction.sum())
    assert (forecast.per_direction >= 0).all()
    if noise > 1e-6 * spectrum[0]:
        gains = np.log(np.maximum(kept / (kl_weight * noise), 1)) / 2
        np.testing.assert_allclose(forecast.per_direction, gains, atol=1e-5)


def test_directions_collapse_at_their_thresholds(all_digits):
    thresholds = linear_information(all_digits, 1.0, 16).thresholds
    assert (np.diff(thresholds) < 0).all()
    for latent_dim in (3, 16, None):
        for k, threshold in enumerate(thresholds[:3]):
            around = threshold * np.array([1 - 1e-9, 1, 1 + 1e-9])
            forecast = linear_information(all_digits, around, latent_dim)
            np.testing.assert_array_equal(forecast.n_surviving, [k + 1, k, k])
            np.testing.assert_allclose(np.diff(forecast.information), 0, atol=1e-7)


def test_without_noise_the_information_has_no_limit():
    X = data_with([3.0, 2.0, 1.0, 0.0])
    below, at, above = (linear_information(X, 4 / 3 * f) for f in (0.99, 1.0, 1.01))
    assert below.information == np.inf
    assert below.noise_variance == 0
    assert below.n_surviving == 3
    # The least of many optima: the smallest variance is all noise.
    assert at.information == pytest.approx(np.log(6) / 2, rel=1e-6)
    assert above.information == pytest.approx(at.information, abs=0.1)
    assert linear_information(X, 1e-3, latent_dim=2).information < np.inf


def test_arrays_of_weights_give_each_value_in_any_order(all_digits):
    weights = np.array([[20.0, 3.0, 0.5], [9.0, 1.0, 1e-4]])
    forecast = linear_information(all_digits, weights, 16)
    assert forecast.per_direction.shape == (2, 3, 16)
    for place, weight in np.ndenumerate(weights):
        single = linear_information(all_digits, weight, 16)
        assert isinstance(single.information, float)
        assert isinstance(single.noise_variance, float)
        assert isinstance(single.n_surviving, int)
        assert forecast.information[place] == single.information
        assert forecast.noise_variance[place] == single.noise_variance
        np.testing.assert_array_equal(
            forecast.per_direction[place], single.per_direction
        )


@pytest.mark.parametrize("n_samples", [200, 20])
def test_thresholds_do_not_depend_on_scale_shift_or_rotation(n_samples):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_samples, 30)) * np.geomspace(1, 0.1, 30)
    threshold = collapse_threshold(X)
    kept = linear_information(X, 2.0, 5).information
    turn, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    for changed in (
        1e-60 * X,
        1e60 * X,
        X + 1e6,
        X - 3 * rng.normal(size=30),
        X @ turn,
    ):
        assert collapse_threshold(changed) == pytest.approx(threshold, rel=1e-8)
        found = linear_information(changed, 2.0, 5).information
        assert found == pytest.approx(kept, rel=1e-7)
    fixed = collapse_threshold(2 * X, noise_variance=1.0)
    assert fixed == pytest.approx(4 * collapse_threshold(X, noise_variance=1.0))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("n_samples", [500, 30])
def test_data_are_read_in_chunks_from_anywhere(
    monkeypatch, tmp_path, likelihood, n_samples
):
    images = np.random.default_rng(0).integers(0, 256, (n_samples, 50), dtype=np.uint8)
    images[:, 7] = 255
    images[n_samples // 2 :, :9] //= 3
    expected = collapse_threshold(images / 255, likelihood=likelihood)
    monkeypatch.setattr("skvaecert.forecast._DATA_VALUES", 700)
    np.save(tmp_path / "images.npy", images)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    for given_ in (images, stored, DatasetSamples(images), pandas.DataFrame(images)):
        found = collapse_threshold(given_, likelihood=likelihood)
        assert found == pytest.approx(expected, rel=1e-10)
    as_list = (images / 255).tolist()
    assert collapse_threshold(as_list, likelihood=likelihood) == pytest.approx(expected)
    # Zeros and ones are bits in any dtype.
    bits = images // 129
    found = collapse_threshold(bits, likelihood=likelihood)
    assert found == collapse_threshold(bits.astype(float), likelihood=likelihood)


def bernoulli_gain(X, kl_weight, seed):
    """Gain of a linear one-dimensional code over a constant, for any posterior."""
    nodes, weights = hermegauss(80)
    log_weights = np.log(weights / weights.sum())
    mean = X.mean(axis=0)
    constant = np.log(mean / (1 - mean))

    def loss(parameters):
        bias, slope = np.split(parameters, 2)
        logits = bias + np.outer(nodes, slope)
        log_proba = X @ logits.T - np.logaddexp(0, logits).sum(axis=1)
        return -kl_weight * logsumexp(log_proba / kl_weight + log_weights, 1).mean()

    slopes = np.random.default_rng(seed).normal(size=(6, X.shape[1]))
    scales = [0.1, 0.3, 0.6, 1.0, 2.0, 3.0]
    starts = [np.r_[constant, c * s] for c, s in zip(scales, slopes, strict=True)]
    best = min(minimize(loss, start).fun for start in starts)
    return loss(np.r_[constant, 0 * constant]) - best


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_bernoulli_vae_collapses_at_the_threshold(seed):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(60, 1)) * rng.normal(size=5) * 2 + rng.normal(size=5)
    X = (rng.random((60, 5)) < expit(hidden)).astype(float)
    threshold = collapse_threshold(X, likelihood="bernoulli")
    assert bernoulli_gain(X, 0.93 * threshold, seed) > 1e-5
    assert bernoulli_gain(X, 1.03 * threshold, seed) < 1e-8


def test_a_nonlinear_decoder_can_tell_a_rare_cluster_above_the_threshold():
    X = np.zeros((1000, 1))
    X[0] = 10.0
    share, square = 0.001, 100.0
    threshold = collapse_threshold(X, noise_variance=1.0)
    # The decoder says 10 for z > 3.7, else 0; only the rare posterior differs from
    # the prior.
    step, mean, std = 3.7, 4.2, 0.25
    mistaken = (1 - share) * norm.sf(step) + share * norm.cdf(step, mean, std)
    kl = share * (mean**2 + std**2 - 1 - np.log(std**2)) / 2
    code = mistaken * square / 2 + 10 * threshold * kl
    assert code < X.var() / 2


@pytest.mark.slow
def test_a_trained_vae_collapses_near_the_threshold(all_digits):
    proba = random_proba(0, len(all_digits), 2)
    threshold = collapse_threshold(all_digits)
    costs = []
    for share in (0.7, 1.15):
        vae = CertifiedVAE(
            latent_dim=8,
            kl_weight=share * threshold,
            alignment_weight=0,
            hidden_sizes=(64,),
            max_epochs=60,
            random_state=0,
        )
        vae.fit(all_digits, teacher_proba=proba)
        costs.append(kl_per_dimension(*vae.encode(all_digits)).sum())
    assert costs[0] > 0.3
    assert costs[1] < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "poisson"}, "likelihood must be one of .*got 'poisson'"),
        ({"likelihood": 3}, "likelihood must be one of .*got 3"),
        ({"reduction": "none"}, "reduction must be one of .*got 'none'"),
        ({"noise_variance": 0}, "noise_variance must be .*above 0, got 0"),
        ({"noise_variance": np.nan}, "noise_variance must be .*got nan"),
        ({"noise_variance": "1"}, "noise_variance must be .*got '1'"),
        (
            {"noise_variance": 1.0, "likelihood": "bernoulli"},
            "noise_variance must be None unless likelihood='gaussian', got 1.0",
        ),
        ({"latent_dim": 0}, "latent_dim must be an int of at least 1.*got 0"),
        ({"latent_dim": 2.0}, "latent_dim must be an int of at least 1.*got 2.0"),
        ({"X": [1.0, 2.0]}, r"X must have shape .*got shape \(2,\)"),
        ({"X": [[1.0, 2.0]]}, r"at least 2 samples .*got shape \(1, 2\)"),
        ({"X": [[1.0], [np.nan]]}, "X must be finite.*got values from nan"),
        ({"X": [[1.0], [np.inf]]}, "X must be finite.*to inf"),
        ({"X": [[1.0], [1e200]]}, "X must be finite.*below 1e.150.*to 1e.200"),
        ({"X": [[1j], [2j]]}, "X must hold real numbers, got dtype complex128"),
        ({"X": [["a"], ["b"]]}, "X must hold real numbers, got dtype <U1"),
        ({"X": np.ma.masked_array([[1.0], [2.0]])}, "X must not be masked"),
        ({"X": [[0.1, 0.7]] * 9}, "X must vary"),
        ({"X": [[0.1, 0.7]] * 2}, "X must vary"),
        (
            {"X": [[0.0], [1.5]], "likelihood": "bernoulli"},
            r"X must lie in \[0, 1\] for likelihood='bernoulli'.*from 0 to 1.5",
        ),
    ],
)
def test_threshold_refuses(change, message):
    arguments = {"X": [[0.0], [1.0]]} | change
    with pytest.raises(ValueError, match=message):
        collapse_threshold(**arguments)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, [1.0, 0.0], "1", None])
def test_linear_forecast_refuses_weights(weight):
    with pytest.raises(ValueError, match=r"kl_weight must be .*got"):
        linear_information([[0.0], [1.0]], weight)


def test_linear_forecast_refuses_dimensions():
    with pytest.raises(ValueError, match=r"latent_dim must be .*got -1"):
        linear_information([[0.0], [1.0]], 1.0, -1)
