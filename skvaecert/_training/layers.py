"""Fully connected networks in NumPy: their output and its gradient.

On small networks, a NumPy call costs a tenth of a torch call. On large ones, NumPy's
BLAS uses the full vector width of every processor; torch's BLAS does so only on some.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as modules

__all__ = [
    "Layers",
    "array",
    "gradients",
    "is_altered",
    "is_fully_connected",
    "linear_layers",
    "multiply_adds",
]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

# Gradients of the weight and the bias of each layer.
_Gradients = list[tuple[NDArray[Any], NDArray[Any]]]


def is_fully_connected(network: nn.Module) -> bool:
    """Return whether a network has the structure of :func:`skvaecert.networks.mlp`."""
    layers = list(network) if type(network) is nn.Sequential else []
    linear, between = layers[::2], layers[1::2]
    return (
        len(linear) == len(between) + 1
        and all(type(layer) is nn.Linear for layer in linear)
        and all(type(layer) is nn.SiLU for layer in between)
        and all(layer.bias is not None for layer in linear)
        and not any(map(is_altered, [network, *layers]))
    )


def is_altered(module: nn.Module) -> bool:
    """Return whether a module has hooks or its own `forward`, which only torch runs."""
    own = vars(module)
    # torch has no public name for global hooks, which apply to all modules. Without
    # the private name, `bool()` is False.
    of_all = getattr(modules, "_has_any_global_hook", bool)()
    hooked = of_all or any(map(own.get, _HOOKS))
    return "forward" in own or hooked


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """Return the linear layers; a layer that is used twice occurs twice."""
    layers = network._modules.values()  # children() would skip repeated layers
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def multiply_adds(*networks: nn.Module) -> int | None:
    """Return the multiply-adds per sample; None if a network is not of this kind."""
    if not all(map(is_fully_connected, networks)):
        return None
    return sum(
        layer.weight.numel() for network in networks for layer in linear_layers(network)
    )


class Layers:
    """Linear layers with SiLU between them, for batches of `n_samples`.

    The layers share memory with the network's weights. Each call overwrites the arrays
    that the previous call returned. With order "F", samples are contiguous columns.
    """

    def __init__(
        self, network: nn.Module, n_samples: int, order: Literal["C", "F"] = "C"
    ) -> None:
        self._weights = [array(layer.weight) for layer in linear_layers(network)]
        self._biases = [array(layer.bias) for layer in linear_layers(network)]

        def empty(n_values: int) -> NDArray[Any]:
            return np.empty((n_samples, n_values), self._biases[0].dtype, order)

        # A product with ones sums over samples faster than ndarray.sum.
        self._ones = np.ones(n_samples, self._biases[0].dtype)
        self._outputs = [empty(len(weight)) for weight in self._weights]
        # Twice the sigmoid of each SiLU's input x: 1 + tanh(x / 2).
        self._twice_sigmoids = [empty(len(weight)) for weight in self._weights[:-1]]
        self._slopes = [empty(len(weight)) for weight in self._weights[:-1]]
        self._by_inputs = [empty(weight.shape[1]) for weight in self._weights]

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the output of the last layer, and store values for the gradient."""
        self._inputs = [x, *self._outputs[:-1]]
        for i, output in enumerate(self._outputs):
            np.matmul(self._inputs[i], self._weights[i].T, out=output)
            output += self._biases[i]
            if i < len(self._twice_sigmoids):
                _silu(output, self._twice_sigmoids[i])
        return output

    def backward(self, by_output: NDArray[Any], into: _Gradients) -> NDArray[Any]:
        """Fill `into`; return the gradient by the first linear layer's output."""
        for i in reversed(range(len(self._weights))):
            by_weight, by_bias = into[i]
            np.dot(by_output.T, self._inputs[i], out=by_weight)
            np.dot(self._ones, by_output, out=by_bias)
            if i:
                by_output = self._by_input(i, by_output)
                by_output *= self._silu_slope(i - 1)
        return by_output

    def by_input(self, by_first: NDArray[Any]) -> NDArray[Any]:
        """Return the gradient by the input, given the result of :meth:`backward`."""
        return self._by_input(0, by_first)

    def _by_input(self, i: int, by_output: NDArray[Any]) -> NDArray[Any]:
        return np.dot(by_output, self._weights[i], out=self._by_inputs[i])

    def _silu_slope(self, i: int) -> NDArray[Any]:
        """Return s + y (1 - s) for y = x s, where s is the sigmoid."""
        slope, twice_sigmoid = self._slopes[i], self._twice_sigmoids[i]
        # This order makes 1 - s exactly 0 where s is 1, even if y is very large.
        np.subtract(2, twice_sigmoid, out=slope)
        slope *= self._outputs[i]
        slope += twice_sigmoid
        slope *= 0.5
        return slope


def _silu(x: NDArray[Any], twice_sigmoid: NDArray[Any]) -> None:
    """Replace x by x sigmoid(x) = (x / 2)(1 + tanh(x / 2)), in place."""
    x *= 0.5
    np.tanh(x, out=twice_sigmoid)
    twice_sigmoid += 1
    x *= twice_sigmoid


def array(tensor: Tensor | None) -> NDArray[Any]:
    """Return an array that shares the memory of a tensor."""
    assert tensor is not None, "a gradient needs a place"
    return tensor.detach().numpy()


def gradients(network: nn.Module) -> _Gradients:
    """Return the `grad` of the weight and bias of each layer, as arrays."""
    layers = linear_layers(network)
    return [(array(layer.weight.grad), array(layer.bias.grad)) for layer in layers]
