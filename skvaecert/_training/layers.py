"""Fully connected networks by NumPy: their output, and its gradient.

On small networks a call of NumPy costs a tenth of one of torch. On large ones its BLAS
uses the full vector width of every processor; that of torch does so on some only.
"""

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

# Of the weight and the bias of each layer.
_Gradients = list[tuple[NDArray[Any], NDArray[Any]]]


def is_fully_connected(network: nn.Module) -> bool:
    """Tell whether a network is just what :func:`skvaecert.networks.mlp` makes."""
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
    """Tell whether a module does more than its class says: only torch calls hooks."""
    own = vars(module)
    # torch has no public name for hooks of all modules.
    of_all = getattr(modules, "_has_any_global_hook", bool)()
    hooked = of_all or any(map(own.get, _HOOKS))
    return "forward" in own or hooked


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """Return the layers that have weights, each as often as it is used."""
    layers = network._modules.values()  # children() has each of them once
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def multiply_adds(*networks: nn.Module) -> int | None:
    """Return the multiply-adds of a sample; None if a network is not known."""
    if not all(map(is_fully_connected, networks)):
        return None
    return sum(
        layer.weight.numel() for network in networks for layer in linear_layers(network)
    )


class Layers:
    """Linear layers with SiLU between them, for batches of `n_samples`.

    Weights are read where the network has them. Results lie in arrays that the next
    call writes anew. With order "F", samples are the columns of what BLAS multiplies.
    """

    def __init__(
        self, network: nn.Module, n_samples: int, order: Literal["C", "F"] = "C"
    ) -> None:
        self._weights = [array(layer.weight) for layer in linear_layers(network)]
        self._biases = [array(layer.bias) for layer in linear_layers(network)]

        def empty(n_values: int) -> NDArray[Any]:
            return np.empty((n_samples, n_values), self._biases[0].dtype, order)

        self._ones = np.ones(n_samples, self._biases[0].dtype)
        self._outputs = [empty(len(weight)) for weight in self._weights]
        # Twice the sigmoid of what goes into each SiLU: 1 + tanh(x / 2).
        self._twice_sigmoids = [empty(len(weight)) for weight in self._weights[:-1]]
        self._slopes = [empty(len(weight)) for weight in self._weights[:-1]]
        self._by_inputs = [empty(weight.shape[1]) for weight in self._weights]

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the output of the last layer, and keep what the gradient needs."""
        self._inputs = [x, *self._outputs[:-1]]
        for i, output in enumerate(self._outputs):
            np.matmul(self._inputs[i], self._weights[i].T, out=output)
            output += self._biases[i]
            if i < len(self._twice_sigmoids):
                _silu(output, self._twice_sigmoids[i])
        return output

    def backward(self, by_output: NDArray[Any], into: _Gradients) -> NDArray[Any]:
        """Fill the gradients of weights and biases; return that by the first sums."""
        for i in reversed(range(len(self._weights))):
            by_weight, by_bias = into[i]
            np.dot(by_output.T, self._inputs[i], out=by_weight)
            np.dot(self._ones, by_output, out=by_bias)
            if i:
                by_output = self._by_input(i, by_output)
                by_output *= self._silu_slope(i - 1)
        return by_output

    def by_input(self, by_first: NDArray[Any]) -> NDArray[Any]:
        """Return the gradient by the input, from what :meth:`backward` returned."""
        return self._by_input(0, by_first)

    def _by_input(self, i: int, by_output: NDArray[Any]) -> NDArray[Any]:
        return np.dot(by_output, self._weights[i], out=self._by_inputs[i])

    def _silu_slope(self, i: int) -> NDArray[Any]:
        """Return s + y (1 - s) for y = x s, where s is the sigmoid."""
        slope, twice_sigmoid = self._slopes[i], self._twice_sigmoids[i]
        # In this order 1 - s is exactly 0 where s is 1, however large y may be.
        np.subtract(2, twice_sigmoid, out=slope)
        slope *= self._outputs[i]
        slope += twice_sigmoid
        slope *= 0.5
        return slope


def _silu(x: NDArray[Any], twice_sigmoid: NDArray[Any]) -> None:
    """Write x sigmoid(x) = (x / 2)(1 + tanh(x / 2)) over x."""
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
