import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

from skvaecert import CertifiedVAE, GMMTeacher, baselines
from skvaecert.baselines import (
    AggressiveEncoder,
    BatchNormVAE,
    BetaVAE,
    Capacity,
    CyclicalAnnealing,
    DeltaVAE,
    FreeBits,
    InfoVAE,
    LinearAnnealing,
    MuForcing,
    SigmaVAE,
    maximum_mean_discrepancy,
    mutual_information,
)
from skvaecert.metrics import collapse_margin
from skvaecert.networks import Pass, bounded
from skvaecert.objectives import AlignedELBO, Objective, gaussian_kl, gaussian_loss
from skvaecert.simplex import simplex_vertices, witness_log_proba

N, D, FEATURES = 8, 2, 3

OBJECTIVES = [
    BetaVAE(3.0),
    LinearAnnealing(10, 0.1),
    CyclicalAnnealing(10, 0.5),
    Capacity(1.0, 1, 10.0),
    FreeBits(0.5),
    FreeBits(2.0, per="batch"),
    DeltaVAE(0.1),
    AggressiveEncoder(2, 4),
    InfoVAE(0.5, 10.0, (0.5, 2.0)),
    BatchNormVAE(0.5),
    MuForcing(1.5, 1.0),
    SigmaVAE(),
]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=str)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def result(generator):
    return drawn(generator)


def drawn(generator):
    mean, log_variance, noise = torch.randn(
        3, N, D, generator=generator, dtype=torch.float64
    )
    output = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    code = mean + (log_variance / 2).exp() * noise
    return Pass(mean, log_variance, code, output, torch.tensor(0.3).double())


def kl_by_hand(result):
    """KL of every sample and dimension, from the moments of the log-ratio."""
    mean, deviation = result.mean.numpy(), np.exp(result.log_variance.numpy() / 2)
    entropy = norm(mean, deviation).entropy()
    cross = np.log(2 * np.pi) / 2 + (deviation**2 + mean**2) / 2
    return cross - entropy


# Each is compared with separate arithmetic.


def test_beta(result):
    expected = 3 * kl_by_hand(result).sum(axis=1).mean()
    np.testing.assert_allclose(BetaVAE(3.0).penalty(result, 0), expected)


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.2), (2, 0.4), (8, 1), (99, 1)])
def test_linear_annealing(result, epoch, weight):
    expected = weight * kl_by_hand(result).sum(axis=1).mean()
    actual = LinearAnnealing(8, 0.2).penalty(result, epoch)
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize(
    ("epoch", "weight"),
    [(0, 0), (2, 0.4), (4.5, 0.9), (5, 1), (9.9, 1), (10, 0), (32, 0.4)],
)
def test_cyclical_annealing(result, epoch, weight):
    expected = weight * kl_by_hand(result).sum(axis=1).mean()
    actual = CyclicalAnnealing(10, 0.5).penalty(result, epoch)
    np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize(("epoch", "target"), [(0, 0), (5, 10), (10, 20), (50, 20)])
def test_capacity(result, epoch, target):
    kl = kl_by_hand(result).sum(axis=1).mean()
    assert 0 < kl < 10  # on both sides of the targets
    actual = Capacity(20.0, 10, 7.0).penalty(result, epoch)
    np.testing.assert_allclose(actual, 7 * abs(kl - target))


def test_free_bits(result):
    first, second = kl_by_hand(result).mean(axis=0)
    between = (first + second) / 2
    actual = FreeBits(between).penalty(result, 0)
    np.testing.assert_allclose(actual, max(first, second) + between)
    np.testing.assert_allclose(FreeBits(0.0).penalty(result, 0), first + second)
    for nats in (0.9, 1.1):
        actual = FreeBits(nats * (first + second), per="batch").penalty(result, 0)
        np.testing.assert_allclose(actual, max(nats, 1) * (first + second))


@pytest.mark.parametrize("delta", [1e-3, 0.1, 4.0])
def test_delta_variances_lie_between_the_roots(delta):
    def equation(v):
        return np.log(v) - v + 2 * delta + 1

    roots = brentq(equation, 1e-6, 1), brentq(equation, 1, 30)
    raw = torch.tensor([[-torch.inf], [0.0], [torch.inf]], dtype=torch.float64)
    mean, log_variance = DeltaVAE(delta).posterior(1)(torch.ones(3, 1).double(), raw)
    variance = log_variance.exp()[:, 0]
    middle = sum(roots) / 2
    np.testing.assert_allclose(variance, [roots[0], middle, roots[1]], rtol=1e-6)
    least = np.sqrt(equation(middle))
    np.testing.assert_allclose(mean[1, 0], 1 + least, rtol=1e-4)
    # At the roots the root of the radicand is that of the safety margin alone.
    np.testing.assert_allclose(mean[[0, 2], 0], 1, atol=0.01)


@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.1, 1.0, 4.0])
def test_delta_holds_in_single_precision(delta):
    raw = torch.linspace(-100, 100, 200_001)[:, None]
    mean = torch.where(torch.arange(len(raw)) % 2 == 0, -3.0, 0.0)[:, None]
    posterior = DeltaVAE(delta).posterior(1)
    kl = gaussian_kl(*posterior(mean, raw))
    assert kl.dtype == torch.float32
    assert kl.min() >= delta
    # The bound is tight: delta is the cost of a constant mean.
    assert kl.max() <= delta + 1e-5 * (1 + 2 * delta)


def test_delta_has_a_gradient_at_its_bounds():
    raw = torch.tensor([[-200.0, -5.0, 0.0, 5.0, 200.0]], requires_grad=True)
    mean = torch.ones(1, 5, requires_grad=True)
    gaussian_kl(*DeltaVAE(0.1).posterior(5)(mean, raw)).sum().backward()
    assert raw.grad.isfinite().all()
    assert (mean.grad > 0).all()


def test_delta_without_the_square_root_would_fail():
    raw = torch.linspace(-5, 5, 101)[:, None]
    mean, log_variance = DeltaVAE(0.1).posterior(1)(torch.zeros(101, 1), raw)
    assert gaussian_kl(mean.square(), log_variance).min() < 0.9 * 0.1


def kernel(a, b, scales):
    widths = [2 * len(a) * s for s in scales]
    return sum(c / (c + ((a - b) ** 2).sum()) for c in widths)


def test_info(result):
    scales = (0.5, 2.0)
    torch.manual_seed(3)
    actual = InfoVAE(0.5, 10.0, scales).penalty(result, 0)
    torch.manual_seed(3)
    w, z = torch.randn_like(result.code).numpy(), result.code.numpy()
    others = [(i, j) for i in range(N) for j in range(N) if i != j]
    discrepancy = (
        np.mean([kernel(z[i], z[j], scales) for i, j in others])
        + np.mean([kernel(w[i], w[j], scales) for i, j in others])
        - 2 * np.mean([kernel(a, b, scales) for a in z for b in w])
    )
    kl = kl_by_hand(result).sum(axis=1).mean()
    np.testing.assert_allclose(actual, 0.5 * kl + 9.5 * discrepancy)


@pytest.mark.slow
def test_discrepancy_is_unbiased(generator):
    draws = torch.randn(300, 2, 5, D, generator=generator, dtype=torch.float64)
    values = torch.stack([maximum_mean_discrepancy(z, w) for z, w in draws])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * error
    moved = torch.stack([maximum_mean_discrepancy(z + 1, w) for z, w in draws])
    assert moved.mean() > 20 * error


def test_discrepancy_of_one_sample_is_finite():
    code = torch.zeros(1, 2, requires_grad=True)
    maximum_mean_discrepancy(code, torch.ones(1, 2)).backward()
    assert code.grad.isfinite().all()


def test_batch_norm(result):
    posterior = BatchNormVAE(0.75).posterior(D).double()
    with torch.no_grad():
        posterior.norm.bias.copy_(torch.tensor([0.25, -0.5]))
    mean, log_variance = posterior(result.mean, result.log_variance)
    raw = result.mean.numpy()
    centered = (raw - raw.mean(axis=0)) / np.sqrt(raw.var(axis=0) + 1e-5)
    np.testing.assert_allclose(mean.detach(), 0.75 * centered + [0.25, -0.5])
    np.testing.assert_allclose(log_variance, bounded(result.log_variance))
    trained = [n for n, p in posterior.named_parameters() if p.requires_grad]
    assert trained == ["norm.bias"]


def test_batch_norm_keeps_the_mean_kl_up(generator):
    posterior = BatchNormVAE(0.5).posterior(D).double()
    raw = torch.randn(2, N, D, generator=generator, dtype=torch.float64) * 0.1
    assert gaussian_kl(*posterior(*raw)).mean() >= 0.999 * D * 0.5**2 / 2


def test_mu_forcing(result):
    mean = result.mean.numpy()
    spread = ((mean - mean.mean(axis=0)) ** 2).sum(axis=1).mean()
    kl = kl_by_hand(result).sum(axis=1).mean()
    below = MuForcing(spread + 0.5, 3.0).penalty(result, 0)
    np.testing.assert_allclose(below, kl + 3 * 0.5)
    above = MuForcing(spread - 0.5, 3.0).penalty(result, 0)
    np.testing.assert_allclose(above, kl)


def test_sigma(result, generator):
    x = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    squared_error = ((x - result.output) ** 2).mean().item()
    actual = SigmaVAE().reconstruction(torch.zeros(N), result, x)
    expected = FEATURES / 2 * (np.log(2 * np.pi * squared_error) + 1)
    np.testing.assert_allclose(actual, expected)

    def loss(log_noise):
        return gaussian_loss(x, result.output, torch.tensor(log_noise)).mean().item()

    best = minimize_scalar(loss, bounds=(-9, 9), method="bounded")
    np.testing.assert_allclose(actual, best.fun, rtol=1e-6)
    raw = SigmaVAE().raw_log_noise(result, x)
    np.testing.assert_allclose(bounded(raw), np.log(squared_error))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e10])
def test_sigma_is_finite_at_any_error(size):
    x = torch.zeros(N, FEATURES)
    output = torch.full_like(x, size, requires_grad=True)
    result = Pass(x, x, x, output, torch.tensor(0.0))
    loss = SigmaVAE().reconstruction(x[:, 0], result, x)
    loss.backward()
    assert loss.isfinite()
    assert output.grad.isfinite().all()
    assert SigmaVAE().raw_log_noise(result, x).isfinite()


def test_aggressive_encoder_has_the_loss_of_the_elbo(result, generator):
    x = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    losses = gaussian_loss(x, result.output, result.log_noise)
    objective = AggressiveEncoder()
    assert objective.penalty(result, 3) == Objective().penalty(result, 3)
    assert objective.reconstruction(losses, result, x) == losses.mean()


def test_mutual_information(result):
    mean, deviation = result.mean.numpy(), np.exp(result.log_variance.numpy() / 2)
    code = result.code.numpy()
    inside = -norm(mean, deviation).entropy().sum(axis=1).mean()
    densities = norm(mean, deviation).pdf(code[:, None]).prod(axis=2).mean(axis=1)
    actual = mutual_information(result.mean, result.log_variance, result.code)
    np.testing.assert_allclose(actual, inside - np.log(densities).mean())


# Gradients.


@pytest.mark.slow
@every_objective
def test_gradient_of_the_loss(objective, result, generator):
    """Through posterior, penalty and reconstruction, in double precision."""
    x = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    weights = torch.randn(D, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, D, generator=generator, dtype=torch.float64)
    posterior = objective.posterior(D).double()

    def loss(raw_mean, raw):
        mean, log_variance = posterior(raw_mean, raw)
        code = mean + (log_variance / 2).exp() * noise
        output = code @ weights
        passed = Pass(mean, log_variance, code, output, torch.tensor(0.0).double())
        torch.manual_seed(0)
        losses = gaussian_loss(x, output, passed.log_noise)
        reconstruction = objective.reconstruction(losses, passed, x)
        return reconstruction + objective.penalty(passed, 3.0)

    leaves = (result.mean.requires_grad_(), result.log_variance.requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves)


# Does the objective admit a constant mean?

PROBA = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(3), size=N))
VERTICES = torch.as_tensor(simplex_vertices(3, D))
X = torch.tensor(np.random.default_rng(1).normal(size=(N, FEATURES)))
# Raw mean and log-variance of the best constant, 0 and 0 but for these.
BEST = {"Capacity": (1.0, 0.0), "DeltaVAE": (-1.0, 0.0)}


def forces(objective, raw_mean, decoder=None, alignment_weight=0.0):
    """Minus the gradient of the loss by raw means, means and raw log-variances.

    Averaged over all cyclic shifts of the noise, so that every sample gets the same.
    """
    raw_mean = raw_mean.clone().requires_grad_()
    raw = torch.full_like(raw_mean, BEST.get(type(objective).__name__, (0, 0.0))[1])
    raw.requires_grad_()
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(0)).double()
    criterion = AlignedELBO("gaussian", VERTICES, 1.0, 1.0, alignment_weight, objective)
    criterion.epoch = 3.0
    posterior = objective.posterior(D).double()
    total, penalty = [0.0] * 3, 0.0
    for shift in range(N):
        mean, log_variance = posterior(raw_mean, raw)
        code = mean + (log_variance / 2).exp() * noise.roll(shift, dims=0)
        output = X.mean(dim=0).expand(N, -1) if decoder is None else code @ decoder
        torch.manual_seed(0)
        passed = Pass(mean, log_variance, code, output, torch.tensor(0.0).double())
        terms = criterion.terms(passed, X, PROBA)
        gradients = torch.autograd.grad(criterion.total(terms), (raw_mean, mean, raw))
        total = [t - g / N for t, g in zip(total, gradients, strict=True)]
        penalty += terms.penalty.item() / N
    return penalty, *total


def constant(objective):
    value, _ = BEST.get(type(objective).__name__, (0.0, 0.0))
    return torch.full((N, D), value, dtype=torch.float64)


def between_samples(force):
    return (force - force.mean(dim=0)).abs().max().item()


@every_objective
def test_constant_mean_is_finite_and_feels_no_force(objective):
    """With a decoder that ignores the code, all samples get the same force."""
    penalty, on_raw, on_mean, _ = forces(objective, constant(objective))
    assert np.isfinite(penalty)
    assert between_samples(on_raw) < 1e-14
    assert between_samples(on_mean) < 1e-14


@every_objective
def test_alignment_distinguishes_samples_at_a_constant_mean(objective):
    _, _, on_mean, _ = forces(objective, constant(objective), alignment_weight=1.0)
    assert between_samples(on_mean) > 0.02


@every_objective
def test_a_decoder_that_uses_the_code_distinguishes_samples(objective):
    """The twin: `between_samples` detects a force."""
    decoder = torch.ones(D, FEATURES, dtype=torch.float64)
    _, _, on_mean, _ = forces(objective, constant(objective), decoder)
    assert between_samples(on_mean) > 0.02


@pytest.mark.parametrize(
    "objective", [o for o in OBJECTIVES if not isinstance(o, InfoVAE)], ids=str
)
def test_the_constant_is_a_stationary_point(objective):
    """The part of the mean that all samples share feels no force either."""
    _, on_raw, _, on_log_variance = forces(objective, constant(objective))
    assert on_raw.abs().max() < 1e-14
    assert on_log_variance.abs().max() < 1e-14


@pytest.mark.parametrize(
    ("objective", "least"),
    [
        (Objective(), 0),
        (BetaVAE(3.0), 0),
        (LinearAnnealing(10, 0.1), 0),
        (CyclicalAnnealing(10, 0.5), 0),
        (AggressiveEncoder(), 0),
        (SigmaVAE(), 0),
        (Capacity(1.0, 1, 10.0), 0),
        (FreeBits(0.5), D * 0.5),
        (FreeBits(2.0, per="batch"), 2.0),
        (DeltaVAE(0.1), D * 0.1),
        (BatchNormVAE(0.5), 0),
        (MuForcing(1.5, 1.0), 1.5),
    ],
    ids=str,
)
def test_price_of_a_constant_mean(objective, least):
    """The minimum over all means; for mu-forcing it is the hinge."""
    penalty, *_ = forces(objective, constant(objective))
    np.testing.assert_allclose(penalty, least, atol=1e-5)


def test_info_of_a_wide_constant_posterior_is_zero(generator):
    """Codes of mean 0 and variance 1 are those of the prior, for every sample."""
    code = torch.randn(200, 20, D, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(20, D, dtype=torch.float64)
    torch.manual_seed(0)
    penalties = torch.stack(
        [InfoVAE().penalty(Pass(zeros, zeros, c, zeros, zeros), 0) for c in code]
    )
    assert abs(penalties.mean()) < 4 * penalties.std() / len(penalties) ** 0.5


@pytest.mark.parametrize(("strength", "sign"), [(0.4, -1), (1.0, 1)])
def test_mu_forcing_enlarges_any_difference(strength, sign, generator):
    """The force is (2 strength - 1) mu / n for any means around 0."""
    mean = 1e-3 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    mean -= mean.mean(dim=0)
    _, _, force, _ = forces(MuForcing(1.5, strength), mean)
    np.testing.assert_allclose(force, (2 * strength - 1) * mean / N, rtol=1e-9)
    assert ((force * mean).sum() > 0) == (sign > 0)


def test_batch_norm_amplifies_noise(generator):
    """Means with standard deviation gamma, which do not depend on the samples."""
    n_samples, gamma = 4000, 0.5
    noise = torch.randn(n_samples, D, generator=generator, dtype=torch.float64)
    proba = np.random.default_rng(2).dirichlet(np.full(3, 0.2), size=n_samples)
    log_proba, scale = np.log(proba), 3.0
    for size, share in [(1e-1, 0.999), (1e-2, 0.909), (1e-4, 0.001), (0.0, 0.0)]:
        posterior = BatchNormVAE(gamma).posterior(D).double()
        mean = posterior(size * noise, noise)[0].detach()
        # size^2 / (size^2 + 1e-5) of gamma^2
        np.testing.assert_allclose(mean.var(dim=0), share * gamma**2, atol=2e-3)
        log_q = witness_log_proba(mean.numpy(), VERTICES.numpy(), scale)
        assert collapse_margin(proba, log_q) <= 0
    informative = (log_proba - log_proba.mean(axis=1, keepdims=True)) @ VERTICES.numpy()
    mean = posterior(torch.tensor(informative), noise)[0].detach()
    log_q = witness_log_proba(mean.numpy(), VERTICES.numpy(), scale)
    assert collapse_margin(proba, log_q) > 0.1


def test_batch_norm_evaluates_with_running_averages(generator):
    posterior = BatchNormVAE(0.5).posterior(D).double()
    raw = 0.1 * torch.randn(4000, D, generator=generator, dtype=torch.float64)
    # Before training they are 0 and 1, and the mean is nearly constant.
    before = posterior.eval()(raw, raw)[0].var(dim=0).detach()
    np.testing.assert_allclose(before, 0.5**2 * 0.01, rtol=0.1)
    posterior.train()
    for batch in raw.split(40):
        posterior(batch, batch)
    after = posterior.eval()(raw, raw)[0].var(dim=0).detach()
    np.testing.assert_allclose(after, 0.5**2, rtol=0.1)


def test_delta_lets_no_force_through_below_zero():
    """Not even that of alignment: the mean is cut off at 0 for every sample."""
    objective = DeltaVAE(0.1)
    _, on_raw, on_mean, _ = forces(objective, constant(objective), None, 1.0)
    assert between_samples(on_mean) > 0.02
    assert on_raw.abs().max() == 0
    above = torch.full((N, D), 0.1, dtype=torch.float64)
    assert between_samples(forces(objective, above, None, 1.0)[1]) > 0.02


# In the estimator.


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 6)) * 4
    return centers[rng.integers(4, size=120)] + rng.normal(size=(120, 6))


@pytest.fixture(scope="module")
def teacher(samples):
    return FrozenEstimator(GMMTeacher(n_components=4, random_state=0).fit(samples))


@pytest.fixture
def vae_with(teacher):
    def unfitted(objective, **params):
        settings = {
            "latent_dim": 4,
            "hidden_sizes": (32,),
            "batch_size": 32,
            "max_epochs": 1,
            "learning_rate": 1e-2,
            "alignment_weight": 0,
            "device": "cpu",
            "random_state": 0,
        }
        return CertifiedVAE(teacher, objective=objective, **settings | params)

    return unfitted


@pytest.mark.slow
@every_objective
def test_fit(objective, samples, vae_with):
    before = objective.get_params()
    vae = vae_with(objective).fit(samples)
    assert objective.get_params() == before
    assert np.isfinite([list(row.values()) for row in vae.history_]).all()
    means, score = vae.transform(samples), vae.score(samples)
    assert np.isfinite(score)
    again = vae_with(clone(objective)).fit(samples)
    np.testing.assert_array_equal(again.transform(samples), means)
    assert again.score(samples) == score
    loaded = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(loaded.transform(samples), means)
    np.testing.assert_array_equal(vae.transform(samples[:3]), means[:3])
    vae.partial_fit(samples)
    assert len(vae.history_) == 2
    assert (vae.transform(samples) != means).any()


@every_objective
def test_parameters_nest(objective, vae_with):
    assert clone(objective).get_params() == objective.get_params()
    vae = vae_with(objective)
    for name, value in objective.get_params().items():
        assert vae.get_params()[f"objective__{name}"] == value
        vae.set_params(**{f"objective__{name}": value})


def test_parameters_are_searched(samples, vae_with):
    grid = {"objective__gamma": [0.1, 0.9]}
    search = GridSearchCV(
        vae_with(BatchNormVAE()), grid, cv=2, error_score="raise", refit=False
    )
    first, second = search.fit(samples).cv_results_["mean_test_score"]
    assert first != second


def test_defaults_are_allowed():
    for name in baselines.__all__:
        if isinstance(getattr(baselines, name), type):
            getattr(baselines, name)().check("gaussian")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (BetaVAE(-1), "'beta' parameter of BetaVAE must be .* Got -1 instead"),
        (BetaVAE("a"), "'beta' parameter of BetaVAE must be .* Got 'a' instead"),
        (LinearAnnealing(0), "'n_epochs' parameter of LinearAnnealing"),
        (LinearAnnealing(start=2), "'start' parameter of LinearAnnealing"),
        (CyclicalAnnealing(0), "'period' parameter of CyclicalAnnealing"),
        (CyclicalAnnealing(ratio=0), "'ratio' parameter of CyclicalAnnealing"),
        (Capacity(-1), "'capacity' parameter of Capacity"),
        (Capacity(n_epochs=0), "'n_epochs' parameter of Capacity"),
        (Capacity(gamma=-1), "'gamma' parameter of Capacity"),
        (FreeBits(-1), "'nats' parameter of FreeBits"),
        (FreeBits(per="row"), "'per' parameter of FreeBits .* Got 'row'"),
        (DeltaVAE(0), "'delta' parameter of DeltaVAE"),
        (DeltaVAE(4.1), "'delta' parameter of DeltaVAE"),
        (AggressiveEncoder(0), "'window' parameter of AggressiveEncoder"),
        (AggressiveEncoder(9, 0), "'max_inner_steps' parameter of Aggressive"),
        (InfoVAE(alpha=1.1), "'alpha' parameter of InfoVAE"),
        (InfoVAE(0.5, 0.4), r"alpha \+ strength - 1 .* alpha=0.5 and strength=0.4"),
        (InfoVAE(scales=(1.0, 0.0)), r"scales of InfoVAE .* got \(1.0, 0.0\)"),
        (InfoVAE(scales=()), r"scales of InfoVAE .* got \(\)"),
        (BatchNormVAE(0), "'gamma' parameter of BatchNormVAE"),
        (MuForcing(0), "'threshold' parameter of MuForcing"),
        (MuForcing(strength=-1), "'strength' parameter of MuForcing"),
    ],
    ids=str,
)
def test_bad_parameters(objective, message, samples, vae_with):
    with pytest.raises(ValueError, match=message):
        vae_with(objective).fit(samples)


def test_objectives_that_need_something_say_so(samples, vae_with):
    unit = (samples - samples.min()) / np.ptp(samples)
    with pytest.raises(ValueError, match=r"must be 'gaussian' for SigmaVAE.*'berno"):
        vae_with(SigmaVAE(), likelihood="bernoulli").fit(unit)
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        vae_with(BatchNormVAE(), batch_size=1).fit(samples)


def score_at(vae, samples, change):
    noise = vae.net_.module_.raw_log_noise
    with torch.no_grad():
        noise += change
        score = vae.score(samples)
        noise -= change
    return score


def test_sigma_scores_at_the_best_noise(samples, vae_with):
    vae = vae_with(SigmaVAE(), max_epochs=10).fit(samples)
    best = vae.score(samples)
    assert best > score_at(vae, samples, 0.2)
    assert best > score_at(vae, samples, -0.2)
    # A noise that is learned at the speed of the weights lags behind.
    learned = vae_with(None, max_epochs=10).fit(samples)
    assert score_at(learned, samples, -0.2) > learned.score(samples)
