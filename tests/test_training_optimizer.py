import copy
import pickle

import pytest
import torch
from torch import nn

from skvaecert._training.optimizer import FlatAdam


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def x():
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


def train(network, optimizer, x, n_steps=50):
    for _ in range(n_steps):
        optimizer.zero_grad()
        (network(x) - x[:, :3]).square().mean().backward()
        optimizer.step()


def weights(network):
    return torch.cat(
        [parameter.detach().flatten() for parameter in network.parameters()]
    )


def flat(network, **settings):
    return FlatAdam(network.parameters(), lr=1e-2, fused=True, **settings)


def test_steps_are_those_of_adam(network, x):
    other = copy.deepcopy(network)
    train(network, flat(network), x)
    train(other, torch.optim.Adam(other.parameters(), lr=1e-2, fused=True), x)
    torch.testing.assert_close(weights(network), weights(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_goes_on_once_it_is_bound(network, x, copied):
    optimizer = flat(network)
    train(network, optimizer, x)
    twin, its_optimizer = copied((network, optimizer))
    its_optimizer.bind(list(twin.parameters()))
    before = weights(twin)
    torch.testing.assert_close(before, weights(network))
    train(twin, its_optimizer, x)
    train(network, optimizer, x)
    assert not torch.equal(weights(twin), before)
    torch.testing.assert_close(weights(twin), weights(network))


def test_loaded_weights_are_trained_on(network, x):
    optimizer = flat(network)
    train(network, optimizer, x)
    kept = copy.deepcopy(network.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    train(network, optimizer, x)
    once = weights(network)
    network.load_state_dict(kept)
    optimizer.load_state_dict(state)
    train(network, optimizer, x)
    assert torch.equal(weights(network), once)


def test_frozen_parameters_stay(network, x):
    optimizer = flat(network)
    train(network, optimizer, x)
    network[0].requires_grad_(False)
    frozen, free = network[0].weight.clone(), network[2].weight.clone()
    train(network, optimizer, x)
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(network[2].weight, free)
    network[0].requires_grad_(True)
    train(network, optimizer, x)
    assert not torch.equal(network[0].weight, frozen)


def subnormal(optimizer):
    (state,) = optimizer.state.values()
    moments = torch.cat([state["exp_avg"], state["exp_avg_sq"]]).abs()
    tiny = torch.finfo(torch.float32).tiny
    return ((moments > 0) & (moments < tiny)).sum().item()


@pytest.mark.slow
def test_moments_of_dead_units_do_not_become_subnormal(network, x, monkeypatch):
    found = []
    for clean in (True, False):
        dying = copy.deepcopy(network)
        optimizer = flat(dying)
        if not clean:
            monkeypatch.setattr(optimizer, "_clean", lambda: None)
        train(dying, optimizer, x)
        with torch.no_grad():
            dying[0].bias[:4] = -100.0  # these units never fire again
        train(dying, optimizer, x, n_steps=900)
        found.append((subnormal(optimizer), weights(dying)))
    (with_cleaning, cleaned), (without, plain) = found
    assert with_cleaning == 0
    assert without > 0
    torch.testing.assert_close(cleaned, plain, rtol=1e-6, atol=1e-7)


def replaced_values(network):
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def replaced_gradients(network):
    for parameter in network.parameters():
        parameter.grad = parameter.grad.clone()


@pytest.mark.parametrize("replace", [replaced_values, replaced_gradients])
def test_what_was_replaced_is_taken_over(network, x, replace):
    other = copy.deepcopy(network)
    optimizer = flat(network)
    plain = torch.optim.Adam(other.parameters(), lr=1e-2, fused=True)
    for net, own in ((network, optimizer), (other, plain)):
        for _ in range(30):
            own.zero_grad()
            (net(x) - x[:, :3]).square().mean().backward()
            replace(net)
            own.step()
    torch.testing.assert_close(weights(network), weights(other), rtol=1e-5, atol=1e-6)


def test_gradients_set_to_none_come_back(network, x):
    optimizer = flat(network)
    train(network, optimizer, x)
    before = weights(network)
    network.zero_grad()
    assert network[0].weight.grad is None
    train(network, optimizer, x)
    assert not torch.equal(weights(network), before)


@pytest.mark.slow
def test_small_gradients_make_full_steps():
    # Their squares are far below 1, but not below what a step depends on.
    parameter = nn.Parameter(torch.zeros(2))
    other = nn.Parameter(torch.zeros(2))
    for own, optimizer in (
        (parameter, FlatAdam([parameter], lr=1e-2, fused=True)),
        (other, torch.optim.Adam([other], lr=1e-2, fused=True)),
    ):
        for _ in range(600):
            optimizer.zero_grad()
            (own * torch.tensor([1e-7, 1e-5])).sum().backward()
            optimizer.step()
    torch.testing.assert_close(parameter, other)
    assert (parameter < -1).all()
