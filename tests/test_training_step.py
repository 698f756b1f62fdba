import copy

import pytest
import torch
from torch import nn

from skvaecert._training.step import GradientByHand, Layers
from skvaecert.networks import make_vae, mlp
from skvaecert.objectives import AlignedELBO, Objective
from skvaecert.simplex import simplex_vertices

N, D, LATENT, K = 30, 7, 5, 4


class Other(Objective):
    pass


def problem(likelihood="gaussian", hidden_sizes=(9, 8), seed=0, objective=None):
    torch.manual_seed(seed)
    vae = make_vae(D, LATENT, hidden_sizes).double()
    nn.init.constant_(vae.raw_log_noise, -0.7)
    vertices = torch.as_tensor(simplex_vertices(K, LATENT))
    criterion = AlignedELBO(likelihood, vertices, 1.7, 3.0, 5.0, objective)
    x = torch.rand(N, D, dtype=torch.float64)
    return vae, criterion, x, torch.softmax(3 * x[:, :K], dim=1)


def by_autograd(vae, criterion, x, teacher_proba):
    torch.manual_seed(1)
    result = vae(x)
    terms = criterion.terms(result, x, teacher_proba)
    loss = criterion.total(terms)
    gradients = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    return result, terms, gradients


def by_hand(vae, criterion, x, teacher_proba):
    for parameter in vae.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    torch.manual_seed(1)
    result, terms = GradientByHand.of(vae, criterion)(x, teacher_proba, criterion)
    return result, terms, [parameter.grad for parameter in vae.parameters()]


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("hidden_sizes", [(), (9,), (9, 8, 6)])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_gradient_is_that_of_autograd(likelihood, hidden_sizes):
    given = problem(likelihood, hidden_sizes)
    result, terms, gradients = by_autograd(*given)
    result_by_hand, terms_by_hand, gradients_by_hand = by_hand(*given)
    close = {"rtol": 1e-12, "atol": 1e-13}
    for a, b in zip(result, result_by_hand, strict=True):
        torch.testing.assert_close(a.detach(), b, **close)
    for a, b in zip(terms, terms_by_hand, strict=True):
        torch.testing.assert_close(a.detach(), b, **close)
    for a, b in zip(gradients, gradients_by_hand, strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, **close)
        assert likelihood == "bernoulli" or (a != 0).any()


def test_without_weight_the_alignment_pulls_at_nothing():
    vae, criterion, *data = problem()
    criterion.alignment_weight = 0.0
    for a, b in zip(
        by_autograd(vae, criterion, *data)[2],
        by_hand(vae, criterion, *data)[2],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def stacked(networks):
    weights = [[layer.weight for layer in net[::2]] for net in networks]
    biases = [[layer.bias for layer in net[::2]] for net in networks]
    parameters = [
        [torch.stack(group).detach() for group in zip(*lists, strict=True)]
        for lists in (weights, biases)
    ]
    for tensor in [*parameters[0], *parameters[1]]:
        tensor.grad = torch.full_like(tensor, torch.nan)
    return Layers(*parameters)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_several_networks_have_the_gradients_of_each(likelihood, monkeypatch):
    problems = [problem(likelihood, seed=seed) for seed in range(3)]
    vaes = [vae for vae, *_ in problems]
    x, proba = (torch.stack([p[i] for p in problems]) for i in (2, 3))
    noise = torch.randn(3, N, LATENT, dtype=torch.float64)
    raw = torch.stack([vae.raw_log_noise.detach() for vae in vaes])
    raw.grad = torch.empty_like(raw)
    together = GradientByHand(
        stacked([vae.encoder for vae in vaes]), stacked([v.decoder for v in vaes]), raw
    )
    weights = torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    criterion = copy.copy(problems[0][1])
    criterion.alignment_weight = weights[:, None, None]
    monkeypatch.setattr(torch, "randn_like", lambda mean: noise)
    _, terms = together(x, proba, criterion)
    for i, (vae, _, *data) in enumerate(problems):
        monkeypatch.setattr(torch, "randn_like", lambda mean, i=i: noise[i])
        criterion.alignment_weight = weights[i].item()
        _, expected, gradients = by_hand(vae, criterion, *data)
        torch.testing.assert_close(raw.grad[i], gradients[0])
        torch.testing.assert_close(together.encoder.weights[0].grad[i], gradients[1])
        torch.testing.assert_close(together.decoder.biases[-1].grad[i], gradients[-1])
        for a, b in zip(terms, expected, strict=True):
            torch.testing.assert_close(a[i], b)


def test_other_networks_and_objectives_are_left_to_autograd():
    vae, criterion, *_ = problem()
    assert GradientByHand.of(vae, criterion) is not None
    assert GradientByHand.of(*problem(objective=Other())[:2]) is None
    assert GradientByHand.of(nn.Sequential(vae), criterion) is None
    for network in (
        nn.Sequential(nn.Linear(D, 3), nn.ReLU(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(D, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(D, 3, bias=False)),
        nn.Sequential(nn.Linear(D, 3), nn.SiLU()),
        nn.Sequential(),
        nn.Linear(D, 3),
    ):
        assert Layers.of(network) is None, network
    assert Layers.of(mlp(D, (3,), 2)) is not None


def test_layers_that_share_a_weight_are_left_to_autograd():
    vae, criterion, *_ = problem(hidden_sizes=(D,))
    assert GradientByHand.of(vae, criterion) is not None
    vae.decoder[2].weight = vae.encoder[0].weight
    assert GradientByHand.of(vae, criterion) is None


HOOKS = {
    "forward": lambda layer, hook: layer.register_forward_hook(hook),
    "before": lambda layer, hook: layer.register_forward_pre_hook(hook),
    "backward": lambda layer, hook: layer.register_full_backward_hook(hook),
    "before backward": lambda layer, hook: layer.register_full_backward_pre_hook(hook),
    "gradient": lambda layer, hook: layer.weight.register_hook(hook),
    "accumulated": lambda layer, hook: layer.weight.register_post_accumulate_grad_hook(
        hook
    ),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_are_called_by_autograd(register):
    vae, criterion, *_ = problem()
    handle = register(vae.encoder[0], lambda *args: None)
    assert GradientByHand.of(vae, criterion) is None
    handle.remove()
    assert GradientByHand.of(vae, criterion) is not None


def test_altered_and_frozen_layers_are_left_to_autograd():
    vae, criterion, *_ = problem()
    vae.encoder[1].forward = lambda x: x
    assert GradientByHand.of(vae, criterion) is None
    del vae.encoder[1].forward
    assert GradientByHand.of(vae, criterion) is not None
    vae.decoder[0].bias.requires_grad_(False)
    assert GradientByHand.of(vae, criterion) is None


def test_a_layer_that_is_used_twice_is_seen_twice():
    silu = nn.SiLU()
    ends_in_silu = nn.Sequential(nn.Linear(D, 3), silu, nn.Linear(3, 2), silu)
    assert Layers.of(ends_in_silu) is None
    shared = nn.Sequential(*ends_in_silu, nn.Linear(2, 4))
    assert len(Layers.of(shared).weights) == 3
