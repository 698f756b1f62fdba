import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from skvaecert import baselines
from skvaecert._training.step import Gradient, has_known_gradient
from skvaecert.networks import VAE, GaussianPosterior, make_vae
from skvaecert.objectives import AlignedELBO, LagrangeWeight, Objective
from skvaecert.simplex import simplex_vertices

N, D, LATENT, K = 30, 7, 5, 4
LIKELIHOODS = ["gaussian", "bernoulli"]


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def problem(likelihood="gaussian", hidden_sizes=(9, 8), n=N, objective=None):
    vae = make_vae(D, LATENT, hidden_sizes).double()
    nn.init.constant_(vae.raw_log_noise, -0.7)
    vertices = torch.as_tensor(simplex_vertices(K, LATENT))
    criterion = AlignedELBO(likelihood, vertices, 1.7, 3.0, 5.0, objective)
    x = torch.rand(n, D, dtype=torch.float64)
    return vae, criterion, x, torch.softmax(3 * x[:, :K], dim=1)


def by_autograd(vae, criterion, x, teacher_proba):
    torch.manual_seed(1)
    result = vae(x)
    terms = criterion.terms(result, x, teacher_proba)
    loss = criterion.total(terms)
    parameters = list(vae.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    losses = [value.detach() for value in (loss, *terms)]
    return [value.detach() for value in result], losses, list(gradients)


def by_numpy(vae, criterion, x, teacher_proba):
    for parameter in vae.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    torch.manual_seed(1)
    gradient = Gradient(vae, criterion, len(x))
    losses = [
        torch.tensor(v, dtype=x.dtype)
        for v in gradient(x.numpy(), teacher_proba.numpy())
    ]
    result = [value.to(x.dtype) for value in gradient.result()]
    return result, losses, [parameter.grad for parameter in vae.parameters()]


def assert_same(given, rtol=1e-12, atol=1e-13):
    expected, found = by_autograd(*given), by_numpy(*given)
    *result, log_noise = found[0]
    torch.testing.assert_close(result, expected[0][:-1], rtol=rtol, atol=atol)
    torch.testing.assert_close(found[1:], expected[1:], rtol=rtol, atol=atol)
    if given[1].likelihood == "gaussian":
        torch.testing.assert_close(log_noise, expected[0][-1])
        assert all((gradient != 0).any() for gradient in found[2])


@pytest.mark.parametrize(("hidden_sizes", "n"), [((), N), ((9,), 1), ((9, 8, 6), N)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradient_is_that_of_autograd(likelihood, hidden_sizes, n):
    assert_same(problem(likelihood, hidden_sizes, n))


def without_kl(vae, criterion, x, proba):
    criterion.kl_weight = 0


def without_alignment(vae, criterion, x, proba):
    criterion.alignment_weight = 0.0


def guarded(vae, criterion, x, proba):
    criterion.set_alignment(LagrangeWeight(0.5, 1.0))
    criterion.guard.weight.fill_(7.0)


def zeros(vae, criterion, x, proba):
    proba[:5], proba[:5, 1], proba[5:9, :2] = 0, 1, 0
    proba /= proba.sum(dim=1, keepdim=True)


def another_scale(vae, criterion, x, proba):
    criterion.scale = 40.0


@pytest.mark.parametrize(
    "change", [without_kl, without_alignment, guarded, zeros, another_scale]
)
def test_gradient_is_that_of_autograd_also(change):
    given = problem()
    before = by_numpy(*given)[1][0].item()
    change(*given)
    assert_same(given)
    assert by_numpy(*given)[1][0].item() != before


@pytest.mark.parametrize("name", ["kl_weight", "alignment_weight", "scale"])
def test_a_slightly_wrong_term_would_be_seen(name):
    vae, criterion, *data = problem()
    expected = by_autograd(vae, criterion, *data)
    other = copy.copy(criterion)
    setattr(other, name, getattr(criterion, name) * (1 + 1e-8))
    for part in (1, 2):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(
                by_numpy(vae, other, *data)[part],
                expected[part],
                rtol=1e-12,
                atol=1e-13,
            )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("first", [True, False])
def test_extreme_values_overflow_nowhere(likelihood, where, first):
    given = problem(likelihood)
    network = getattr(given[0], where)
    bias = network[0 if first else -1].bias
    with torch.no_grad():
        bias.copy_(torch.linspace(-100, 100, len(bias)))
    # Losses of 1e4 and more: their rounding is larger.
    assert_same(given, rtol=1e-10, atol=1e-10)
    assert all(gradient.isfinite().all() for gradient in by_numpy(*given)[2])


def test_a_gradient_of_one_size_is_used_again():
    """Values from one call do not enter the next."""
    vae, criterion, x, proba = problem()
    by_numpy(vae, criterion, x, proba)
    gradient = Gradient(vae, criterion, N)
    gradient(-x.numpy(), proba.flip(0).numpy())
    torch.manual_seed(1)
    losses = gradient(x.numpy(), proba.numpy())
    kept = [parameter.grad.clone() for parameter in vae.parameters()]
    _, expected, gradients = by_numpy(vae, criterion, x, proba)
    assert list(losses) == [value.item() for value in expected]
    assert all(map(torch.equal, kept, gradients))


def test_results_are_copies():
    vae, criterion, x, proba = problem()
    by_numpy(vae, criterion, x, proba)
    gradient = Gradient(vae, criterion, N)
    gradient(x.numpy(), proba.numpy())
    result = gradient.result()
    before = [value.clone() for value in result]
    gradient(-x.numpy(), proba.numpy())
    assert all(map(torch.equal, result, before))
    assert not torch.equal(gradient.result().code, result.code)


class Other(Objective):
    pass


OBJECTIVES = [
    Other(),
    *(getattr(baselines, n)() for n in baselines.__all__ if n[0].isupper()),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_other_objectives_are_left_to_autograd(objective):
    vae, criterion, *_ = problem(objective=objective)
    assert not has_known_gradient(vae, criterion)
    criterion.objective = Objective()
    assert has_known_gradient(vae, criterion)


class OwnVAE(VAE):
    pass


class OwnPosterior(GaussianPosterior):
    pass


def frozen(vae):
    vae.decoder[0].bias.requires_grad_(False)


def frozen_noise(vae):
    vae.raw_log_noise.requires_grad_(False)


def shared(vae):
    vae.decoder[2].weight = vae.encoder[0].weight


def used_twice(vae):
    vae.encoder[2] = vae.encoder[0]


def own_posterior(vae):
    vae.posterior = OwnPosterior()


def other_posterior(vae):
    vae.posterior.forward = lambda mean, raw: (mean, raw)


def other_forward(vae):
    vae.forward = lambda x: x


def own_network(vae):
    vae.encoder = nn.Sequential(nn.Linear(D, 9), nn.Tanh(), nn.Linear(9, 2 * LATENT))


def parametrized(vae):
    parametrizations.orthogonal(vae.encoder[0])


def pruned(vae):
    prune.l1_unstructured(vae.encoder[0], "weight", 3)


def hook_of_gradient(vae):
    vae.encoder[0].weight.register_hook(lambda gradient: None)


def hook_of_sum(vae):
    vae.raw_log_noise.register_post_accumulate_grad_hook(lambda parameter: None)


def hook_of_vae(vae):
    vae.register_forward_hook(lambda *_: None)


def backward_hook_of_posterior(vae):
    vae.posterior.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change",
    [
        frozen,
        frozen_noise,
        shared,
        used_twice,
        own_posterior,
        other_posterior,
        other_forward,
        own_network,
        parametrized,
        pruned,
        hook_of_gradient,
        hook_of_sum,
        hook_of_vae,
        backward_hook_of_posterior,
    ],
)
def test_what_was_altered_is_left_to_autograd(change):
    vae, criterion, *_ = problem(hidden_sizes=(D,))
    assert has_known_gradient(vae, criterion)
    change(vae)
    assert not has_known_gradient(vae, criterion)


def test_other_modules_are_left_to_autograd():
    vae, criterion, *_ = problem()
    parts = vae.encoder, vae.decoder
    assert has_known_gradient(VAE(*parts), criterion)
    assert not has_known_gradient(OwnVAE(*parts), criterion)
    assert not has_known_gradient(nn.Sequential(vae), criterion)
    conv = make_vae(64, LATENT, (), "conv", image_shape=(1, 8, 8))
    assert not has_known_gradient(conv, criterion)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_single_precision_throughout(likelihood):
    """And as near to double precision as autograd is, up to a factor."""
    vae, criterion, x, proba = problem(likelihood, (64, 64))
    twin = copy.deepcopy(vae).float()
    single = AlignedELBO(likelihood, criterion.vertices.float(), 1.7, 3.0, 5.0)
    draws = torch.randn(N, LATENT, dtype=torch.float64)

    def with_draws(function, *given):
        # Generators draw other values in the other precision.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda mean: draws.to(mean.dtype))
            patch.setattr(torch.Tensor, "normal_", lambda noise: noise.copy_(draws))
            return function(*given)

    exact = with_draws(by_autograd, vae, criterion, x, proba)[2]
    given = twin, single, x.float(), proba.float()
    errors = []
    for function in (by_autograd, by_numpy):
        result, _, gradients = with_draws(function, *given)
        assert {g.dtype for g in (*result, *gradients)} == {torch.float32}
        pairs = zip(gradients, exact, strict=True)
        errors.append(
            max(((a - b).abs().max() / (b.abs().max() + 1e-9)).item() for a, b in pairs)
        )
    assert errors[1] < max(4 * errors[0], 2e-6)
