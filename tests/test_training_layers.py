import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from skvaecert._training.inference import encode
from skvaecert._training.layers import (
    Layers,
    array,
    gradients,
    is_fully_connected,
    linear_layers,
)
from skvaecert.networks import VAE, mlp

N, D, OUT = 30, 7, 4


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def by_autograd(network, x, by_output):
    x = x.clone().requires_grad_()
    output = network(x)
    wanted = [*network.parameters(), x]
    *by_weights, by_x = torch.autograd.grad(output, wanted, by_output)
    return output.detach(), by_weights, by_x


def by_numpy(network, x, by_output):
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    layers = Layers(network, len(x))
    output = layers.forward(x.numpy()).copy()
    first = layers.backward(by_output.numpy(), gradients(network))
    by_x = layers.by_input(first)
    by_weights = [parameter.grad for parameter in network.parameters()]
    return torch.tensor(output), by_weights, torch.tensor(by_x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("hidden_sizes", [(), (9,), (9, 8, 6)])
def test_output_and_gradient_are_those_of_torch(hidden_sizes, size):
    network = mlp(D, hidden_sizes, OUT).double()
    x = size * torch.randn(N, D, dtype=torch.float64)
    by_output = torch.randn(N, OUT, dtype=torch.float64)
    expected = by_autograd(network, x, by_output)
    found = by_numpy(network, x, by_output)
    close = {"rtol": 1e-12, "atol": 1e-12 * size}
    torch.testing.assert_close(found, expected, **close)
    # The twin: with one other weight they differ.
    with torch.no_grad():
        network[-1].bias[0] += 1e-9 * size
    other = by_numpy(network, x, by_output)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other, expected, **close)


def test_large_activations_have_a_slope_of_1():
    """In single precision, 1 - y + y would be off by the rounding of y."""
    network = nn.Sequential(nn.Linear(1, 1), nn.SiLU(), nn.Linear(1, 1))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    x = torch.tensor([[4321.123], [-4321.123]])
    *_, by_x = by_numpy(network, x, torch.ones(2, 1))
    assert by_x.flatten().tolist() == [1.0, 0.0]


def test_weights_are_read_where_they_are():
    network = mlp(D, (9,), OUT)
    layers, x = Layers(network, N), torch.randn(N, D)
    before = layers.forward(x.numpy()).copy()
    with torch.no_grad():
        network[0].weight *= 2
    after = layers.forward(x.numpy())
    assert not np.allclose(after, before)
    np.testing.assert_allclose(after, array(network(x)), rtol=1e-4, atol=1e-5)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(D, 3), nn.ReLU(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(D, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(D, 3), nn.SiLU(), nn.Linear(3, 2, bias=False)),
        nn.Sequential(nn.Linear(D, 3), nn.SiLU()),
        nn.Sequential(Scaled(D, 3)),
        nn.Sequential(parametrizations.weight_norm(nn.Linear(D, 3))),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(D, 3))),
        nn.Sequential(),
        nn.Linear(D, 3),
    ],
)
def test_other_networks_are_left_to_torch(network):
    assert not is_fully_connected(network)


HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "before": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "before backward": nn.Module.register_full_backward_pre_hook,
}


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_are_left_to_torch(register, layer):
    network = mlp(D, (9,), OUT)
    assert is_fully_connected(network)
    handle = register(network if layer is None else network[layer], lambda *_: None)
    assert not is_fully_connected(network)
    handle.remove()
    assert is_fully_connected(network)


def test_another_forward_is_left_to_torch():
    network = mlp(D, (9,), OUT)
    network[1].forward = lambda x: x
    assert not is_fully_connected(network)


class Net:
    """The part of a net that a pass needs."""

    device = "cpu"

    def __init__(self, vae):
        self.module_ = vae


def test_a_layer_that_is_used_twice_counts_twice():
    layer = nn.Linear(6, 6)
    twice = nn.Sequential(layer, nn.SiLU(), layer)
    assert linear_layers(twice) == [layer, layer]
    x = torch.randn(N, 6)
    with torch.no_grad():
        expected = twice(x)[:, :3].numpy()
        once = layer(x)[:, :3].numpy()
    found = encode(Net(VAE(twice, mlp(3, (), 6))), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, once, atol=0.1)
