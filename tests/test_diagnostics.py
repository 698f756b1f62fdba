import math
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from skvaecert import baselines, certify, diagnose, objectives
from skvaecert.datasets import toy_encoders
from skvaecert.diagnostics import (
    active_units,
    kl_per_dimension,
    mutual_information,
    polarized_regime,
)
from skvaecert.simplex import (
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)

N, D = 30, 3


@pytest.fixture
def mean():
    return np.random.default_rng(0).normal(size=(N, D))


@pytest.fixture
def std():
    return np.exp(np.random.default_rng(1).normal(size=(N, D)) - 1)


@pytest.fixture
def weight():
    return np.random.default_rng(2).integers(1, 4, size=N)


def test_kl_is_that_of_the_training_loss(mean, std):
    per_sample = objectives.kl_per_dimension(
        torch.tensor(mean), 2 * torch.log(torch.tensor(std))
    )
    np.testing.assert_allclose(
        kl_per_dimension(mean, std), per_sample.mean(dim=0).numpy()
    )


def test_kl_against_an_integral():
    with mpmath.workdps(30):
        density = [lambda z: mpmath.npdf(z, 0.7, 0.3), mpmath.npdf]
        expected = mpmath.quad(
            lambda z: density[0](z) * mpmath.log(density[0](z) / density[1](z)),
            [-2.3, 0.7, 3.7],
        )
    assert kl_per_dimension([[0.7]], [[0.3]])[0] == pytest.approx(float(expected))


def test_weights_count_as_repetitions(mean, std, weight):
    def check(diagnostic, *arrays):
        repeated = diagnostic(*(values.repeat(weight, axis=0) for values in arrays))
        actual = diagnostic(*arrays, sample_weight=weight)
        np.testing.assert_allclose(actual, repeated)

    check(kl_per_dimension, mean, std)
    threshold = np.average((mean - mean.mean(axis=0)) ** 2, axis=0, weights=weight)[0]
    for factor in (0.9, 1.1):
        check(partial(active_units, threshold=factor * threshold), mean)


@given(st.floats(-1e-7, 1e-7), st.floats(-1e-7, 1e-7))
def test_kl_near_the_prior_is_not_below_zero(mean, excess):
    assert kl_per_dimension([[mean]], [[1 + excess]])[0] > -1e-15


def test_active_units_at_their_threshold():
    mean = np.array([[1.0, 0.1, 0.0999, 5.0], [-1.0, -0.1, -0.0999, 5.0]])
    assert active_units(mean, 0.01 * (1 - 1e-12)) == 2
    assert active_units(mean, 0.009) == 3
    assert active_units(mean, 1.001) == 0
    # 0.1 has no exact square, and a large constant must not vary by rounding.
    assert active_units(np.full((1000, 2), 1e9 / 3), 1e-300) == 0


def test_active_units_depend_on_the_units(mean):
    """Why the count says nothing about noise: the same code in other units."""
    assert active_units(mean) == D
    assert active_units(0.05 * mean) == 0


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0, 0], [1, 1], "passive"),
        ([0.4, -0.4], [1, 1], "mixed"),
        ([0.3, -0.3], [0.96, 1.04], "passive"),
        ([2, 2], [1, 1], "mixed"),
        ([1, -1], [0.1, 0.2], "active"),
        ([1, -1], [0.4, 0.4], "mixed"),
        ([1, 0], [0.1, 1], "mixed"),
        ([0, 0], [0.5, 1.3], "mixed"),
        ([0, 0], [0.1, 0.1], "active"),
        ([0, 0], [3, 3], "mixed"),
        # Narrow on average, wide for one of a hundred samples.
        (np.zeros(100), [2.9, *[0.01] * 99], "mixed"),
    ],
)
def test_polarized_regime(mean, std, expected):
    kinds = polarized_regime(np.c_[mean].astype(float), np.c_[std].astype(float))
    assert kinds.tolist() == [expected]


def test_the_tolerance_of_the_regime_is_a_parameter():
    mean, std = np.array([[0.5], [-0.5]]), np.full((2, 1), 0.5)
    assert polarized_regime(mean, std).tolist() == ["mixed"]
    assert polarized_regime(mean, std, 0.3).tolist() == ["active"]
    # Only half of the samples are narrow.
    mean, std = np.zeros((2, 1)), np.array([[0.1], [1.0]])
    assert polarized_regime(mean, std, sample_weight=[1, 0]).tolist() == ["active"]
    assert polarized_regime(mean, std, sample_weight=[0, 1]).tolist() == ["passive"]


@pytest.mark.slow
def test_information_against_an_integral():
    """Three posteriors in one dimension, the mixture integrated by quadrature."""
    mean, std, weight = [-1.0, 0.5, 0.7], [0.5, 1.0, 0.2], [0.5, 0.3, 0.2]
    z = np.linspace(-8, 8, 200_001)
    density = norm.pdf(z[:, None], mean, std)
    mixture = density @ weight
    log_ratio = np.log(density + 1e-300) - np.log(mixture)[:, None]
    expected = ((density * log_ratio) @ weight).sum() * (z[1] - z[0])
    draws = [
        mutual_information(
            np.c_[mean], np.c_[std], n_draws=200, sample_weight=weight, random_state=i
        )
        for i in range(50)
    ]
    error = np.std(draws) / math.sqrt(len(draws))
    assert error < 0.01
    assert np.mean(draws) == pytest.approx(expected, abs=4 * error)


def test_information_against_densities_of_scipy(mean, std):
    noise = np.random.RandomState(5)
    order = noise.permutation(N)
    code = np.empty((N, D))
    code[order] = mean[order] + std[order] * noise.standard_normal((N, D))
    posteriors = [
        multivariate_normal(m, np.diag(s**2)) for m, s in zip(mean, std, strict=True)
    ]
    density = np.array([posterior.pdf(code) for posterior in posteriors]).T
    expected = np.log(np.diag(density) / density.mean(axis=1)).mean()
    assert mutual_information(mean, std, random_state=5) == pytest.approx(expected)


def test_information_agrees_with_that_watched_in_training(mean, std):
    """Theirs differs by the noise of one term, of expectation 0."""
    mean, std = np.tile(mean, (10, 1)), np.tile(std, (10, 1))
    ours = mutual_information(mean, std, n_draws=20, random_state=0)
    torch.manual_seed(0)
    m, s = torch.tensor(mean), torch.tensor(std)
    draws = [
        baselines.mutual_information(m, 2 * s.log(), m + s * torch.randn_like(s))
        for _ in range(20)
    ]
    error = np.std(draws) / math.sqrt(len(draws))
    assert ours == pytest.approx(np.mean(draws), abs=5 * error)
    assert error < 0.03


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 50))
def test_a_constant_posterior_has_no_information(value, spread, n_samples):
    mean, std = np.full((n_samples, 2), value), np.full((n_samples, 2), spread)
    assert mutual_information(mean, std, random_state=0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("batch_size", [None, 7, 30, 1])
def test_information_is_capped_at_the_logarithm_of_the_batch(batch_size):
    mean = 1e4 * np.arange(60.0)[:, None]
    std = np.full((60, 1), 1e-3)
    size = batch_size or 60
    n_lots, rest = divmod(60, size)
    expected = (n_lots * size * math.log(size) + rest * math.log(rest or 1)) / 60
    actual = mutual_information(mean, std, batch_size=batch_size, random_state=0)
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.slow
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(1e-3, 10))
def test_no_estimate_is_above_the_cap(seed, log_spread, noise):
    mean = math.exp(log_spread) * np.random.default_rng(seed).normal(size=(N, 2))
    std = np.full((N, 2), noise)
    information = mutual_information(mean, std, random_state=seed)
    assert information <= math.log(N) + 1e-12


def test_a_little_information_can_read_below_zero():
    rng = np.random.default_rng(0)
    mean, std = 0.05 * rng.normal(size=(50, 2)), np.ones((50, 2))
    draws = [mutual_information(mean, std, random_state=i) for i in range(100)]
    assert min(draws) < 0
    assert np.mean(draws) > 0


def test_lots_lower_the_expectation(mean, std):
    """I(i; z) = mean over lots + I(lot; z)."""
    whole, lots = (
        mutual_information(mean, std, batch_size=b, n_draws=400, random_state=0)
        for b in (None, 5)
    )
    assert lots < whole - 0.1


def test_chunks_do_not_matter(mean, std, monkeypatch):
    whole = mutual_information(mean, std, random_state=0)
    monkeypatch.setattr("skvaecert.diagnostics._MOST_PAIRS", 4 * N + 1)
    assert mutual_information(mean, std, random_state=0) == pytest.approx(whole)


def test_samples_without_weight_do_not_matter(mean, std):
    weight = np.r_[np.zeros(10), np.ones(N - 10)]
    apart, moved = mean.copy(), std.copy()
    apart[:10] = 1e6
    moved[:10] = 1e-6
    first, second = (
        mutual_information(m, s, sample_weight=weight, random_state=0)
        for m, s in ((mean, std), (apart, moved))
    )
    assert first == second


def test_a_seed_draws_the_same_codes(mean, std):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (
        mutual_information(mean, std, random_state=s) for s in (0, 0, 1)
    )
    assert first == second != other
    generator = np.random.RandomState(0)
    assert mutual_information(mean, std, random_state=generator) == first
    assert mutual_information(mean, std, random_state=generator) != first
    after = np.random.get_state()[1]  # noqa: NPY002
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: kl_per_dimension(m, s[:5]), r"shape \(30, 3\) of latent_mean, g"),
        (lambda m, s: kl_per_dimension(m, -s), "latent_std must be above 0, got a sma"),
        (lambda m, s: kl_per_dimension(m * np.nan, s), "latent_mean must be finite"),
        (lambda m, s: kl_per_dimension(m[0], s), r"latent_mean must .* shape \(3,\)"),
        (lambda m, s: active_units(m, 0), "threshold must be .* above 0, got 0"),
        (lambda m, s: polarized_regime(m, s, 0.5), "tolerance must be .* got 0.5"),
        (lambda m, s: mutual_information(m, s, batch_size=0), "batch_size .* got 0"),
        (lambda m, s: mutual_information(m, s, n_draws=1.5), "n_draws .* got 1.5"),
    ],
)
def test_bad_arguments(call, message, mean, std):
    with pytest.raises(ValueError, match=message):
        call(mean, std)


@pytest.fixture(scope="module", params=range(3))
def panel(request):
    """Encoders by name, and what the certificate says of each."""
    encoders = toy_encoders(random_state=request.param)
    vertices = simplex_vertices(5, 4)
    teacher = np.exp(witness_log_proba(encoders[0].factors, vertices, 2.0))
    scale = prior_matched_scale(teacher)

    def judge(mean):
        return certify(teacher, mean, vertices, scale)

    return {e.name: e for e in encoders}, judge


def test_kl_says_healthy_of_constants(panel):
    encoders, _ = panel
    kl = {
        n: kl_per_dimension(e.latent_mean, e.latent_std).sum()
        for n, e in encoders.items()
    }
    assert kl["prior"] == 0
    assert kl["shifted prior"] == pytest.approx(8)
    assert kl["narrow constant"] > kl["healthy"] > 4


def test_active_units_say_dead_of_an_informative_one(panel):
    encoders, _ = panel
    active = {n: active_units(e.latent_mean) for n, e in encoders.items()}
    assert active.pop("healthy") == 4
    assert set(active.values()) == {0}


def test_small_noise_passes_for_activity(panel):
    encoders, _ = panel
    kinds = {
        n: set(polarized_regime(e.latent_mean, e.latent_std))
        for n, e in encoders.items()
    }
    assert kinds["prior"] == {"passive"}
    assert kinds["narrow constant"] == kinds["healthy"] == {"active"}
    assert kinds["shifted prior"] == kinds["noise only"] == {"mixed"}


def test_information_distinguishes_all_six_but_ends_at_its_cap(panel):
    encoders, _ = panel
    for encoder in encoders.values():
        lots, whole = (
            mutual_information(
                encoder.latent_mean, encoder.latent_std, batch_size=b, random_state=0
            )
            for b in (100, None)
        )
        assert (whole > 1e-9) == (lots > 1e-9) == encoder.informative
        assert whole <= math.log(1000) + 1e-9
        assert lots <= math.log(100) + 1e-9
        if encoder.name == "small but precise":
            assert whole == pytest.approx(math.log(1000), abs=0.01)
            assert lots == pytest.approx(math.log(100), abs=0.01)


def test_the_certificate_is_right_about_means(panel):
    """It does not report information that is only in the noise."""
    encoders, judge = panel
    for encoder in encoders.values():
        certificate = judge(encoder.latent_mean)
        expected = "certified" if encoder.mean_varies else "constant"
        assert certificate.verdict == expected, encoder.name
    noise_only = encoders["noise only"]
    assert noise_only.informative
    assert not noise_only.mean_varies


def test_the_certificate_misses_a_code_that_faces_away(panel):
    encoders, judge = panel
    certificate = judge(-encoders["healthy"].latent_mean)
    assert certificate.verdict == "varies"
    assert certificate.margin < -1


@pytest.mark.slow
def test_diagnose_is_right_about_all_seven(panel):
    encoders, _ = panel
    healthy = encoders["healthy"]
    turned = healthy._replace(latent_mean=-healthy.latent_mean)
    for encoder in [*encoders.values(), turned]:
        found = diagnose(
            encoder.latent_mean, encoder.latent_std, n_draws=4000, random_state=0
        )
        expected = "informative" if encoder.informative else "collapsed"
        assert found.state == expected, encoder.name


@pytest.mark.slow
@given(st.integers(0, 2**31), st.floats(-1e3, 1e3), st.integers(0, 5))
def test_no_constant_mean_of_the_panel_is_certified(seed, value, which):
    encoder = toy_encoders(50, 2, random_state=seed)[which]
    vertices = simplex_vertices(3, 2)
    teacher = np.exp(witness_log_proba(encoder.factors, vertices, 2.0))
    scale = prior_matched_scale(teacher)
    jitter = np.random.default_rng(seed).choice([-1, 1], encoder.factors.shape)
    mean = np.float32(value) * (1 + np.float32(2**-23) * jitter)
    verdict = certify(teacher, mean, vertices, scale).verdict
    assert verdict not in ("certified", "varies")
