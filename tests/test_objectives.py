import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from skvaecert.metrics import alignment_loss, escape_force
from skvaecert.networks import Pass
from skvaecert.objectives import (
    AlignedELBO,
    LagrangeWeight,
    Objective,
    alignment,
    bernoulli_loss,
    gaussian_kl,
    gaussian_loss,
)
from skvaecert.simplex import analytic_code, simplex_vertices, witness_log_proba

N, K, D, SCALE = 30, 4, 5, 1.7
VERTICES = simplex_vertices(K, D)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def proba():
    return softmax(3 * np.random.default_rng(0).normal(size=(N, K)), axis=1)


@pytest.fixture
def mean():
    return np.random.default_rng(1).normal(size=(N, D))


def test_kl_agrees_with_torch(generator):
    mean = torch.randn(N, D, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(N, D, generator=generator, dtype=torch.float64)
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(
        gaussian_kl(mean, log_variance), kl_divergence(posterior, prior)
    )


def test_gaussian_loss_agrees_with_torch(generator):
    x, output = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    log_noise = torch.tensor(-1.3, dtype=torch.float64)
    expected = -Independent(Normal(output, (log_noise / 2).exp()), 1).log_prob(x)
    torch.testing.assert_close(gaussian_loss(x, output, log_noise), expected)


def test_bernoulli_loss_agrees_with_torch(generator):
    x = torch.randint(2, (N, D), generator=generator).double()
    output = torch.randn(N, D, generator=generator, dtype=torch.float64)
    expected = -Independent(Bernoulli(logits=output), 1).log_prob(x)
    torch.testing.assert_close(bernoulli_loss(x, output), expected)


def torch_alignment(proba, mean):
    arrays = (torch.as_tensor(array) for array in (proba, mean, VERTICES))
    return alignment(*arrays, SCALE)


def test_alignment_is_the_metric(proba, mean):
    """One formula in two floors: tied here, so that they cannot drift apart."""
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    losses = [alignment_loss(proba[[i]], log_q[[i]]) for i in range(N)]
    np.testing.assert_allclose(torch_alignment(proba, mean), losses, rtol=1e-10)


def test_alignment_of_the_analytic_code_is_zero(proba):
    code = analytic_code(proba, VERTICES, SCALE)
    np.testing.assert_allclose(torch_alignment(proba, code), 0, atol=1e-14)


def test_gradient_of_alignment_is_minus_the_escape_force(proba, mean):
    code = torch.as_tensor(mean).requires_grad_()
    torch_alignment(proba, code).sum().backward()
    force = escape_force(proba, mean, VERTICES, SCALE)
    np.testing.assert_allclose(code.grad, -force, atol=1e-14)


def result(mean, generator):
    n_features = 3
    output = torch.randn(N, n_features, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(N, D, generator=generator, dtype=torch.float64)
    mean = torch.as_tensor(mean)
    return Pass(mean, log_variance, mean, output, torch.tensor(0.3))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_total_weighs_the_terms(likelihood, proba, mean, generator):
    objective = AlignedELBO(likelihood, torch.as_tensor(VERTICES), SCALE, 3.0, 5.0)
    given = result(mean, generator)
    x = torch.rand(N, 3, generator=generator, dtype=torch.float64)
    terms = objective.terms(given, x, torch.as_tensor(proba))
    per_sample = (
        objective.reconstruction(given, x)
        + 3 * gaussian_kl(given.mean, given.log_variance)
        + 5 * torch_alignment(proba, mean)
    )
    torch.testing.assert_close(objective.total(terms), per_sample.mean())


def test_without_weight_alignment_is_not_computed(proba, mean, generator):
    objective = AlignedELBO("gaussian", torch.full((K, D), torch.nan), SCALE, 1.0, 0.0)
    terms = objective.terms(
        result(mean, generator), torch.zeros(N, 3), torch.tensor(proba)
    )
    assert terms.alignment == 0
    assert objective.total(terms).isfinite()


def test_guard_follows_its_rule():
    guard = LagrangeWeight(0.6, 2.0)
    log_w, mean = 0.0, None
    for loss, gap in [(1.5, 0.0), (0.3, 0.0), (0.1, 0.0), (0.2, 0.7), (5.0, 0.0)]:
        guard.gap = gap
        guard.update(torch.tensor(loss))
        mean = loss if mean is None else 0.9 * mean + 0.1 * loss
        e = (mean + gap - 0.4 * 2.0) / 2.0
        log_w += 0.05 * np.clip(8 * e if e > 0 else e, -1, 1)
        assert guard.weight.item() == pytest.approx(np.exp(log_w), rel=1e-5)


@pytest.mark.parametrize(("loss", "limit"), [(0.0, 0.1), (9.0, 1e6)])
def test_guard_stays_within_limits(loss, limit):
    guard = LagrangeWeight(0.5, 1.0)
    weights = []
    for _ in range(400):
        guard.update(torch.tensor(loss))
        weights.append(guard.weight.item())
    assert weights[-1] == pytest.approx(limit)
    assert len(set(weights)) > 50


def test_guard_gives_its_weight_to_the_loss(proba, mean, generator):
    guard = LagrangeWeight(0.5, 1.0)
    objective = AlignedELBO("gaussian", torch.as_tensor(VERTICES), SCALE, 1.0, guard)
    given, x = result(mean, generator), torch.zeros(N, 3)
    terms = objective.terms(given, x, torch.as_tensor(proba))
    before = objective.total(terms)
    guard.update(torch.tensor(5.0))
    rise = (guard.weight - 1) * terms.alignment
    torch.testing.assert_close(objective.total(terms) - before, rise)
    objective.set_alignment(2.0)
    assert objective.guard is None
    assert objective.alignment_weight == 2.0


def test_the_kl_that_is_reported_is_not_the_penalty(proba, mean, generator):
    class Thrice(Objective):
        def penalty(self, result, epoch):
            return 3 * super().penalty(result, epoch)

    vertices, given = torch.as_tensor(VERTICES), result(mean, generator)
    objective = AlignedELBO("gaussian", vertices, SCALE, 1.0, 1.0, Thrice())
    terms = objective.terms(given, torch.zeros(N, 3), torch.as_tensor(proba))
    kl = gaussian_kl(given.mean, given.log_variance).mean()
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.penalty, 3 * kl)
