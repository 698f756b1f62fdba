import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from skvaecert.simplex import (
    analytic_code,
    analytic_energy,
    budget_temperature,
    centered_log_ratio,
    check_sample_weight,
    check_teacher_proba,
    log_odds_energy,
    prior_matched_scale,
    simplex_vertices,
    temper,
    witness_log_proba,
)


def posteriors(n_samples=50, n_components=5, sharpness=3.0, seed=0):
    logits = np.random.default_rng(seed).normal(size=(n_samples, n_components))
    return softmax(sharpness * logits, axis=1)


@pytest.mark.parametrize(("n_components", "latent_dim"), [(2, 1), (3, 7), (200, 199)])
def test_vertices_are_a_regular_simplex(n_components, latent_dim):
    vertices = simplex_vertices(n_components, latent_dim)
    gram = np.full((n_components, n_components), -1 / (n_components - 1))
    np.fill_diagonal(gram, 1)
    np.testing.assert_allclose(vertices @ vertices.T, gram, atol=1e-14)
    np.testing.assert_allclose(vertices.sum(axis=0), 0, atol=1e-13)
    assert np.linalg.matrix_rank(vertices) == n_components - 1
    assert not vertices[:, n_components - 1 :].any()


def test_vertices_project_onto_the_protected_subspace():
    K, d = 6, 9
    vertices = simplex_vertices(K, d)
    projection = np.diag([1.0] * (K - 1) + [0.0] * (d - K + 1))
    np.testing.assert_allclose(
        vertices.T @ vertices, K / (K - 1) * projection, atol=1e-14
    )


@pytest.mark.parametrize(
    ("n_components", "latent_dim", "message"),
    [
        (1, 4, "n_components must be an int of at least 2, got 1"),
        (6, 4, r"latent_dim must be at least n_components - 1 = 5.*got 4"),
    ],
)
def test_vertices_refuse(n_components, latent_dim, message):
    with pytest.raises(ValueError, match=message):
        simplex_vertices(n_components, latent_dim)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_analytic_code_reproduces_the_teacher(scale):
    proba = posteriors()
    vertices = simplex_vertices(5, 8)
    code = analytic_code(proba, vertices, scale)
    np.testing.assert_allclose(
        np.exp(witness_log_proba(code, vertices, scale)), proba, rtol=1e-12
    )


@pytest.mark.parametrize("sample_weight", [None, np.arange(1, 51)])
def test_analytic_energy_is_that_of_the_code(sample_weight):
    proba, scale = posteriors(), 1.7
    code = analytic_code(proba, simplex_vertices(5, 4), scale)
    energy = np.average((code**2).sum(axis=1) / 2, weights=sample_weight)
    assert analytic_energy(proba, scale, sample_weight) == pytest.approx(energy)


def test_prior_matched_code_is_as_wide_as_the_prior():
    proba = posteriors()
    scale = prior_matched_scale(proba)
    code = analytic_code(proba, simplex_vertices(5, 4), scale)
    assert (code**2).sum(axis=1).mean() == pytest.approx(4)
    assert analytic_energy(proba, scale) == pytest.approx(2)


def test_prior_matched_scale_of_uniform_posteriors_is_zero():
    assert prior_matched_scale(np.full((3, 4), 0.25)) == 0


def test_log_odds_are_centered():
    odds = centered_log_ratio(posteriors())
    np.testing.assert_allclose(odds.sum(axis=1), 0, atol=1e-12)
    assert log_odds_energy(posteriors()) == pytest.approx((odds**2).sum(axis=1).mean())


@given(st.floats(-700, 700), st.floats(1e-3, 1e3))
def test_witness_is_finite_and_normalized(size, scale):
    vertices = simplex_vertices(4, 3)
    log_q = witness_log_proba(np.full((2, 3), size), vertices, scale)
    assert np.isfinite(log_q).all()
    np.testing.assert_allclose(np.exp(log_q).sum(axis=1), 1)


def test_free_dimensions_do_not_reach_the_witness():
    vertices = simplex_vertices(3, 5)
    code = np.random.default_rng(0).normal(size=(4, 5))
    moved = code + np.array([0, 0, 7, -8, 9])
    np.testing.assert_array_equal(
        witness_log_proba(code, vertices, 2.0), witness_log_proba(moved, vertices, 2.0)
    )


def test_check_teacher_proba_normalizes_in_float64():
    proba = posteriors().astype(np.float32)
    checked = check_teacher_proba(proba)
    assert checked.dtype == np.float64
    np.testing.assert_allclose(checked.sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        ([[0.5, 0.4]], r"sum to 1.*got a row that sums to 0.9"),
        ([[1.0, 0.0]], r"above 0 \(full support.*got a smallest value of 0.0.*floor"),
        ([[1.0, 5e-324]], "smallest value of 5e-324"),
        ([[1.5, -0.5]], "smallest value of -0.5"),
        ([[np.nan, 0.5]], "finite"),
        ([[np.inf, 0.5]], "finite"),
        ([0.5, 0.5], r"shape \(n_samples, n_components\).*got shape \(2,\)"),
        (np.empty((0, 3)), r"got shape \(0, 3\)"),
    ],
)
def test_check_teacher_proba_refuses(proba, message):
    with pytest.raises(ValueError, match=message):
        check_teacher_proba(proba)


def test_check_teacher_proba_refuses_another_number_of_samples():
    with pytest.raises(
        ValueError, match=r"teacher_proba .* each of the 3 samples, got 1"
    ):
        check_teacher_proba([[0.5, 0.5]], 3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 1], r"sample_weight .* each of the 3 samples, got 2"),
        ([1, -1, 1], "smallest weight of -1"),
        ([0, 0, 0], "a sum of 0"),
        ([1, np.nan, 1], "finite"),
        ([[1, 1, 1]], r"shape \(n_samples,\), got shape \(1, 3\)"),
    ],
)
def test_check_sample_weight_refuses(weight, message):
    with pytest.raises(ValueError, match=message):
        check_sample_weight(weight, 3)


def test_temper_is_the_formula():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(4), size=7)
    powers = proba ** (1 / 3)
    expected = 0.9 * powers / powers.sum(axis=1, keepdims=True) + 0.1 / 4
    joint = np.log(proba) - rng.uniform(0, 2000, size=(7, 1))
    np.testing.assert_allclose(temper(joint, 3.0, 0.1), expected)


def test_temperature_fits_the_budget_and_is_the_smallest():
    rng = np.random.default_rng(0)
    joint = 30 * rng.normal(size=(200, 6))

    def energy(temperature):
        return analytic_energy(temper(joint, temperature, 1e-3), 1.0)

    grid = np.geomspace(1, 1e4, 2000)
    energies = np.array([energy(t) for t in grid])
    for budget in (20.0, 5.0, 1e-3):
        temperature = budget_temperature(joint, 1e-3, budget)
        assert budget * (1 - 1e-6) < energy(temperature) <= budget
        assert (energies[grid < 0.999 * temperature] > budget).all()


def test_temperature_stays_1_where_the_energy_fits():
    """The mixture's own posterior is softened only if it must be."""
    joint = np.log([[0.9, 0.1], [0.2, 0.8]])
    budget = analytic_energy(temper(joint, 1.0, 0.01), 1.0)
    assert budget_temperature(joint, 0.01, 1.001 * budget) == 1
    assert budget_temperature(joint, 0.01, 0.999 * budget) > 1


def test_energy_may_rise_with_temperature_before_it_falls():
    """Why the root is looked for by doubling, and not between 1 and the largest."""
    joint = np.array([[0, -5, -10, -15, -20, -25, -30, -35, -40, -45]])
    energies = [analytic_energy(temper(joint, t, 0.01), 1.0) for t in (1, 4, 64)]
    assert energies[1] > energies[0] > energies[2]


@pytest.mark.parametrize("n_components", [6, 10, 11, 22])
def test_a_budget_below_rounding_has_an_end(n_components):
    joint = np.random.default_rng(0).normal(size=(20, n_components))
    temperature = budget_temperature(joint, 0.01, 1e-300)
    assert analytic_energy(temper(joint, temperature, 0.01), 1.0) < 1e-24
