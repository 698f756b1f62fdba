import copy
import pickle

import pytest
import torch
from torch import nn

from skvaecert._training.optimizer import (
    OneVector,
    can_step_as_one,
    drop_tiny_moments,
)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def x():
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


def adam(network, **settings):
    return torch.optim.Adam(network.parameters(), lr=1e-2, fused=True, **settings)


def tied(optimizer):
    vector = OneVector(optimizer)
    vector.tie()
    return vector


def train(network, stepped, x, n_steps=30, change=lambda network: None):
    """Train by an optimizer, or by the vector that it steps as one."""
    for _ in range(n_steps):
        network.zero_grad()
        (network(x) - x[:, :3]).square().mean().backward()
        change(network)
        if isinstance(stepped, OneVector):
            stepped.tie()
        stepped.step()


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def assert_close(network, other):
    torch.testing.assert_close(weights(network), weights(other), rtol=1e-5, atol=1e-6)


def nothing(network):
    pass


def values(network):
    for parameter in network.parameters():
        parameter.data = 0.99 * parameter.data


def gradients(network):
    for parameter in network.parameters():
        parameter.grad = 0.3 * parameter.grad


@pytest.mark.parametrize("change", [nothing, values, gradients])
def test_steps_are_those_of_adam(network, x, change):
    """Also if values or gradients are replaced, not written into."""
    other = copy.deepcopy(network)
    start = weights(network)
    vector = tied(adam(network))
    train(network, vector, x, change=change)
    train(other, adam(other), x, change=change)
    assert_close(network, other)
    assert not torch.allclose(weights(network), start, atol=0.1)


def test_a_vector_goes_on_from_an_optimizer_and_it_from_the_vector(network, x):
    other = copy.deepcopy(network)
    optimizer, plain = adam(network), adam(other)
    train(network, optimizer, x)
    vector = tied(optimizer)
    train(network, vector, x)
    vector.release()
    train(network, optimizer, x)
    train(other, plain, x, n_steps=90)
    assert_close(network, other)


def storages(network, optimizer):
    moments = [v for state in optimizer.state.values() for v in state.values()]
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [t.untyped_storage() for t in (*network.parameters(), *gradients, *moments)]


def test_what_is_released_has_its_own_memory(network, x):
    optimizer = adam(network)
    vector = tied(optimizer)
    train(network, vector, x)
    before, gradient = weights(network), network[0].weight.grad.clone()
    shared = storages(network, optimizer)
    assert len({storage.data_ptr() for storage in shared}) == 5
    assert len(shared) == 20
    vector.release()
    own = storages(network, optimizer)
    assert len({storage.data_ptr() for storage in own}) == len(own)
    sizes = [p.numel() * 4 for p in network.parameters()]
    assert sorted({storage.nbytes() for storage in own}) == sorted({4, *sizes})
    assert torch.equal(weights(network), before)
    assert torch.equal(network[0].weight.grad, gradient)
    plain = copy.deepcopy(network)
    assert len(pickle.dumps(network)) == len(pickle.dumps(plain))


def test_the_optimizer_looks_as_ever_between_steps(network, x):
    other = copy.deepcopy(network)
    optimizer, plain = adam(network), adam(other)
    train(network, tied(optimizer), x)
    train(other, plain, x)
    found, expected = optimizer.state_dict(), plain.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], rtol=1e-4, atol=1e-6)


def test_states_that_are_loaded_or_cleared_are_taken_over(network, x):
    other = copy.deepcopy(network)
    optimizer, plain = adam(network), adam(other)
    vector = tied(optimizer)
    for net, own, stepped in ((network, optimizer, vector), (other, plain, plain)):
        train(net, stepped, x, n_steps=5)
        kept = copy.deepcopy(own.state_dict())
        train(net, stepped, x)
        own.load_state_dict(kept)
        train(net, stepped, x)
        own.state.clear()
        train(net, stepped, x, n_steps=3)
    assert_close(network, other)


def test_a_state_that_is_copied_amid_a_fit_can_be_loaded(network, x):
    """Parameters do not share their count of steps, which each step would raise."""
    optimizer = adam(network)
    train(network, tied(optimizer), x)
    twin, state = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict())
    its_optimizer = adam(twin)
    its_optimizer.load_state_dict(state)
    train(twin, its_optimizer, x)
    assert {float(state["step"]) for state in its_optimizer.state.values()} == {60}


def test_a_step_that_fails_leaves_the_optimizer_as_it_was(network, x):
    optimizer = adam(network)
    vector = tied(optimizer)
    before, parts = optimizer.state, optimizer.param_groups[0]["params"]

    def fail(*args):
        raise KeyboardInterrupt

    handle = optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        train(network, vector, x)
    handle.remove()
    assert optimizer.state is before
    assert optimizer.param_groups[0]["params"] is parts


def test_what_cannot_step_as_one(network, x):
    optimizer = adam(network)
    assert can_step_as_one(optimizer, network)
    groups = [{"params": part.parameters()} for part in (network[0], network[2])]
    assert not can_step_as_one(torch.optim.Adam(groups), network)
    assert not can_step_as_one(optimizer, network[0])
    assert not can_step_as_one(adam(network.double()), network)
    network.float()
    network[0].requires_grad_(False)
    train(network, optimizer, x)
    # Its corrections of small counts would be those of the other layer.
    assert not can_step_as_one(optimizer, network.requires_grad_())
    network[2].weight = nn.Parameter(torch.zeros(3, 8))
    assert not can_step_as_one(adam(network[0]), network)


def subnormal(optimizer):
    moments = [
        s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")
    ]
    flat = torch.cat([moment.flatten().abs() for moment in moments])
    tiny = torch.finfo(torch.float32).tiny
    return ((flat > 0) & (flat < tiny)).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OneVector, lambda optimizer: optimizer])
def test_moments_of_dead_units_do_not_become_subnormal(network, x, kind):
    found = []
    for clean in (True, False):
        dying = copy.deepcopy(network)
        optimizer = adam(dying)
        stepped = kind(optimizer)
        train(dying, stepped, x)
        with torch.no_grad():
            dying[0].bias[:4] = -100.0  # these units never fire again
        for _ in range(4):
            train(dying, stepped, x, n_steps=256)
            if clean:
                drop_tiny_moments(stepped.state.values())
        found.append((subnormal(optimizer), weights(dying)))
    (with_cleaning, cleaned), (without, plain) = found
    assert with_cleaning == 0
    assert without > 0
    torch.testing.assert_close(cleaned, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_small_gradients_make_full_steps():
    """Their squares are far below 1, but not below what a step depends on."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter], lr=1e-2, fused=True)
    for _ in range(600):
        optimizer.zero_grad()
        (parameter * torch.tensor([1e-7, 1e-5])).sum().backward()
        optimizer.step()
        drop_tiny_moments(optimizer.state.values())
    assert (parameter < -1).all()
