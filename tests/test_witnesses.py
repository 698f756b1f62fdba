import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.simplex import (
    analytic_code,
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)
from skvaecert.witnesses import (
    LinearWitness,
    fit_linear,
    fit_procrustes,
    fit_strength,
    simplex_witness,
)

N, K, D = 200, 4, 6


@pytest.fixture
def proba():
    rng = np.random.default_rng(0)
    return 0.99 * softmax(2 * rng.normal(size=(N, K)), axis=1) + 0.01 / K


def margin(witness, codes, proba):
    return collapse_margin(proba, witness.log_proba(codes))


def turned(proba, dim=D, seed=0):
    """Return codes with all information, rotated, shrunk and shifted."""
    code = analytic_code(proba, simplex_vertices(K, dim), prior_matched_scale(proba))
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return 0.01 * code @ turn + 7.0


def test_the_simplex_is_the_fixed_witness(proba):
    vertices = simplex_vertices(K, D)
    witness = simplex_witness(vertices, 1.7)
    codes = np.random.default_rng(0).normal(size=(N, D))
    log_q = log_softmax(witness.logits(codes), axis=1)
    np.testing.assert_allclose(log_q, witness_log_proba(codes, vertices, 1.7))
    assert witness.gain == pytest.approx(1.7 * np.sqrt(K / (K - 1)))


@pytest.mark.parametrize("fit", [fit_procrustes, fit_linear])
def test_a_turned_code_is_read_on_other_samples(proba, fit):
    codes = turned(proba)
    half = N // 2
    witness = fit(codes[:half], proba[:half])
    information = teacher_information(proba[half:])
    assert margin(witness, codes[half:], proba[half:]) > 0.9 * information
    raw = simplex_witness(simplex_vertices(K, D), prior_matched_scale(proba))
    assert margin(raw, codes[half:], proba[half:]) < 0


def test_procrustes_turns_and_does_not_bend(proba):
    """Unlike a linear map, a rotation cannot separate every code."""
    bent = turned(proba) * np.array([1.0, 1.0, 1.0, 30.0, 30.0, 30.0])
    assert margin(fit_linear(bent, proba), bent, proba) > 0.05 + margin(
        fit_procrustes(bent, proba), bent, proba
    )


def test_procrustes_needs_no_simplex_in_the_code(proba):
    few = turned(proba, dim=3)[:, :2]
    witness = fit_procrustes(few, proba)
    assert witness.weights.shape == (K, 2)
    assert margin(witness, few, proba) > 0.1


def test_linear_fit_is_multinomial_regression(proba):
    codes = np.random.default_rng(1).normal(size=(N, D)) + analytic_code(
        proba, simplex_vertices(K, D), 1.0
    )
    standard = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    model.fit(
        standard.repeat(K, axis=0),
        np.tile(np.arange(K), N),
        sample_weight=proba.ravel(),
    )
    log_q = log_softmax(fit_linear(codes, proba).logits(codes), axis=1)
    np.testing.assert_allclose(np.exp(log_q), model.predict_proba(standard), atol=1e-4)


@pytest.mark.parametrize("fit", [fit_procrustes, fit_linear])
def test_weights_count_as_repetitions(proba, fit):
    codes = turned(proba)
    weight = np.random.default_rng(0).integers(0, 3, size=N)
    repeated = fit(codes.repeat(weight, axis=0), proba.repeat(weight, axis=0))
    weighted = fit(codes, proba, weight)
    expected = softmax(repeated.logits(codes), axis=1)
    # The penalty depends on the number of samples.
    np.testing.assert_allclose(
        softmax(weighted.logits(codes), axis=1), expected, atol=1e-2
    )


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([fit_procrustes, fit_linear]))
def test_no_constant_code_has_a_margin_with_any_fitted_witness(seed, fit):
    rng = np.random.default_rng(seed)
    proba = softmax(3 * rng.normal(size=(40, K)), axis=1)
    proba = 0.999 * proba + 0.001 / K
    witness = fit(rng.normal(size=(20, D)), proba[:20])
    constant = np.tile(rng.normal(size=D), (20, 1))
    assert margin(witness, constant, proba[20:]) <= 1e-12
    # Nor on the samples of the fit, where the fitted code has a margin.
    assert margin(witness, constant, proba[:20]) <= 1e-12


@pytest.mark.parametrize("fit", [fit_procrustes, fit_linear])
def test_constant_codes_give_a_constant_witness(proba, fit):
    constant = np.full((N, D), 0.3)
    witness = fit(constant, proba)
    assert np.isfinite(witness.weights).all()
    assert margin(witness, constant, proba) == pytest.approx(0, abs=2e-2)


def test_strength_maximizes_the_margin(proba):
    codes = turned(proba) + 0.003 * np.random.default_rng(0).normal(size=(N, D))
    witness = fit_linear(turned(proba), proba)
    strength = fit_strength(witness.logits(codes), proba)
    assert 0.01 < strength < 0.95
    best = margin(witness.tempered(proba.mean(axis=0), strength), codes, proba)
    for other in (0.9 * strength, 1.1 * strength, 0.0, 1.0):
        worse = margin(witness.tempered(proba.mean(axis=0), other), codes, proba)
        assert worse < best
    assert best > 0
    assert margin(witness, codes, proba) < best


def test_strength_of_codes_without_information_is_small(proba):
    noise = np.random.default_rng(0).normal(size=(N, D))
    witness = simplex_witness(simplex_vertices(K, D), prior_matched_scale(proba))
    assert fit_strength(witness.logits(noise), proba) < 0.1
    backwards = witness.logits(-analytic_code(proba, simplex_vertices(K, D), 1.0))
    assert fit_strength(backwards, proba) == 0


def test_at_strength_0_the_witness_is_a_constant(proba):
    witness = LinearWitness(np.ones((K, D)), np.arange(K) * 1.0, "raw")
    mean = proba.mean(axis=0)
    codes = np.random.default_rng(0).normal(size=(N, D))
    read = softmax(witness.tempered(mean, 0.0).logits(codes), axis=1)
    np.testing.assert_allclose(read, np.tile(mean, (N, 1)))


@pytest.mark.parametrize(
    ("vertices", "scale", "message"),
    [
        (np.ones((3, 2)), 1.0, "regular simplex of radius 1"),
        (simplex_vertices(3, 2), 0.0, "scale must be a finite number above 1e-150"),
    ],
)
def test_bad_simplex(vertices, scale, message):
    with pytest.raises(ValueError, match=message):
        simplex_witness(vertices, scale)


@pytest.mark.parametrize("fit", [fit_procrustes, fit_linear, fit_strength])
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((N, D), np.nan), "finite values"),
        (np.zeros(N), "2-d array of"),
        (np.zeros((3, K)), "each of the 3 samples, got 200"),
    ],
)
def test_bad_codes(proba, fit, codes, message):
    with pytest.raises(ValueError, match=message):
        fit(codes, proba)
