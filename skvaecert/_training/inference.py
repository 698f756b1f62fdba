"""Forward passes of a trained net, in batches of one shape.

A sample's result must not depend on the other samples of a call. BLAS and torch may
round differently in batches of other sizes and at other places of a batch. So all
batches have one size, and samples are kept away from the ends of a matrix product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from torch import Tensor, nn

from skvaecert._precision import full_float32
from skvaecert._samples import CHUNK
from skvaecert._training.layers import Layers, is_fully_connected, linear_layers
from skvaecert._training.threads import threads_for
from skvaecert.networks import VAE
from skvaecert.objectives import gaussian_kl

__all__ = ["decode", "encode", "evidence_bound", "posterior"]


# Padding columns on both sides of the samples in a matrix product: OpenBLAS sums up to
# eight columns at the ends in another order on processors with AVX2.
_PADDING = 8

_INNER = slice(_PADDING, _PADDING + CHUNK)


def encode(net: NeuralNet, samples: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return the latent means, in evaluation mode."""
    return _in_chunks(net, ["encoder"], lambda vae, x: vae.encode(x)[0], samples)


def posterior(
    net: NeuralNet, samples: Tensor | Iterable[Tensor]
) -> NDArray[np.float32]:
    """Return the means and standard deviations of q(z|x), concatenated by columns."""

    def both(vae: VAE, x: Tensor) -> Tensor:
        mean, log_variance = vae.encode(x)
        return torch.cat([mean, torch.exp(log_variance / 2)], dim=1)

    return _in_chunks(net, ["encoder"], both, samples)


def decode(net: NeuralNet, codes: Tensor) -> NDArray[np.float32]:
    """Return the decoder's output for codes: means, or logits for "bernoulli"."""
    return _in_chunks(net, ["decoder"], lambda vae, z: vae.decoder(z), codes)


def evidence_bound(net: NeuralNet, samples: Tensor) -> NDArray[np.float32]:
    """Return the ELBO of each sample, log p(x|z) - KL, with one drawn code."""

    def bound(vae: VAE, x: Tensor) -> Tensor:
        result = vae(x)
        kl = gaussian_kl(result.mean, result.log_variance)
        return -net.criterion_.reconstruction(result, x) - kl

    return _in_chunks(net, ["encoder", "decoder"], bound, samples)


def _in_chunks(
    net: NeuralNet,
    names: Sequence[str],
    function: Callable[[VAE, Tensor], Tensor],
    samples: Tensor | Iterable[Tensor],
) -> NDArray[np.float32]:
    """Apply a function of a VAE that uses the networks named `names`."""
    vae = _with_numpy_networks(net.module_.eval(), names)
    all_products = all(isinstance(getattr(vae, name), _NumpyNetwork) for name in names)
    # Several threads sum long products in another order, so allow one.
    threads = threads_for(0 if all_products else None)
    with torch.inference_mode(), full_float32(), threads:
        results = [
            function(vae, _padded(chunk).to(net.device))[: len(chunk)].cpu()
            for part in ([samples] if isinstance(samples, Tensor) else samples)
            for chunk in part.split(CHUNK)
        ]
    # Detach: a view of a parameter requires a gradient even in inference mode.
    return torch.cat(results).detach().numpy()


def _with_numpy_networks(vae: VAE, names: Sequence[str]) -> VAE:
    """Return a VAE with the same weights whose networks use NumPy where possible."""
    faster = copy.copy(vae)
    # The shallow copy shares its hooks with `vae`, and must not share the networks.
    faster._modules = vae._modules.copy()
    for name in names:
        setattr(faster, name, _NumpyNetwork.of(getattr(vae, name)))
    return faster


class _NumpyNetwork(nn.Module):
    """A fully connected network computed by NumPy, for chunks of one size.

    BLAS sums the first and the last columns of a product in another order than the
    columns between. So samples are columns between padding columns, and the mean of a
    sample does not depend on its place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        size = CHUNK + 2 * _PADDING
        self._layers = Layers(network, size, order="F")
        self._input = np.zeros(
            (size, linear_layers(network)[0].in_features), np.float32
        )

    @classmethod
    def of(cls, network: nn.Module) -> nn.Module:
        parameters = list(network.parameters())
        is_plain = all(p.is_cpu and p.dtype == torch.float32 for p in parameters)
        return cls(network) if is_plain and is_fully_connected(network) else network

    def forward(self, x: Tensor) -> Tensor:
        self._input[_INNER] = x.numpy()
        with np.errstate(all="ignore"):
            output = self._layers.forward(self._input)
        # A copy, because the next chunk overwrites the output.
        return torch.from_numpy(output[_INNER].copy())


def _padded(chunk: Tensor) -> Tensor:
    """Repeat the last sample until the chunk has its full size."""
    missing = CHUNK - len(chunk)
    return torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk
