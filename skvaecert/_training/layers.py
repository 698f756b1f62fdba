"""Fully connected networks by NumPy: their output, and its gradient.

On small networks a call of NumPy costs a tenth of one of torch. On large ones its BLAS
uses the full vector width of every processor; that of torch does so on some only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = [
    "Gradients",
    "Layers",
    "array",
    "gradients",
    "is_altered",
    "is_fully_connected",
    "linear_layers",
    "multiply_adds",
    "silu",
]


# What a layer's weight and bias are to receive.
Gradients = Sequence[tuple[NDArray[Any], NDArray[Any]]]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


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
    hooked = _has_any_global_hook() or any(own[hooks] for hooks in _HOOKS)
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
    call writes anew.
    """

    def __init__(self, network: nn.Module, n_samples: int) -> None:
        self._weights = [array(layer.weight) for layer in linear_layers(network)]
        self._biases = [array(layer.bias) for layer in linear_layers(network)]
        self._ones = np.ones(n_samples, self._biases[0].dtype)
        self._outputs = [self._empty(weight, 0) for weight in self._weights]
        # 1 + tanh(x / 2) of what goes into each SiLU, twice its sigmoid.
        self._sigmoids = [np.empty_like(output) for output in self._outputs[:-1]]
        self._slopes = [np.empty_like(output) for output in self._outputs[:-1]]
        self._by_input = [self._empty(weight, 1) for weight in self._weights]

    @property
    def output(self) -> NDArray[Any]:
        """The array in which :meth:`forward` leaves its result."""
        return self._outputs[-1]

    def _empty(self, weight: NDArray[Any], side: int) -> NDArray[Any]:
        return np.empty((len(self._ones), weight.shape[side]), weight.dtype)

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the output of the last layer, and keep what the gradient needs."""
        self._inputs = [x, *self._outputs[:-1]]
        for i, (weight, bias) in enumerate(
            zip(self._weights, self._biases, strict=True)
        ):
            output = np.dot(self._inputs[i], weight.T, out=self._outputs[i])
            output += bias
            if i < len(self._sigmoids):
                silu(output, self._sigmoids[i])
        return output

    def backward(self, by_output: NDArray[Any], into: Gradients) -> NDArray[Any]:
        """Fill the gradients of weights and biases; return that by the first sums."""
        for i in reversed(range(len(self._weights))):
            by_weight, by_bias = into[i]
            np.dot(by_output.T, self._inputs[i], out=by_weight)
            np.dot(self._ones, by_output, out=by_bias)
            if i:
                by_input = self._towards(i, by_output)
                by_input *= _silu_slope(
                    self._inputs[i], self._sigmoids[i - 1], self._slopes[i - 1]
                )
                by_output = by_input
        return by_output

    def towards_input(self, by_first: NDArray[Any]) -> NDArray[Any]:
        """Return the gradient by the input, from what :meth:`backward` returned."""
        return self._towards(0, by_first)

    def _towards(self, i: int, by_output: NDArray[Any]) -> NDArray[Any]:
        return np.dot(by_output, self._weights[i], out=self._by_input[i])


def silu(x: NDArray[Any], sigmoid: NDArray[Any]) -> None:
    """Write x sigmoid(x) = (x / 2)(1 + tanh(x / 2)) over x."""
    x *= 0.5
    np.tanh(x, out=sigmoid)
    sigmoid += 1
    x *= sigmoid


def _silu_slope(
    output: NDArray[Any], sigmoid: NDArray[Any], slope: NDArray[Any]
) -> NDArray[Any]:
    """Return s + y (1 - s) for y = x s, where s is half of `sigmoid`."""
    # In this order 1 - s is exactly 0 where s is 1, however large y may be.
    np.subtract(2, sigmoid, out=slope)
    slope *= output
    slope += sigmoid
    slope *= 0.5
    return slope


def array(tensor: Tensor) -> NDArray[Any]:
    """Return an array that shares the memory of a tensor."""
    return tensor.detach().numpy()


def gradients(network: nn.Module) -> Gradients:
    """Return the `grad` of the weight and bias of each layer, as arrays."""
    return [
        (array(_grad(layer.weight)), array(_grad(layer.bias)))
        for layer in linear_layers(network)
    ]


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
