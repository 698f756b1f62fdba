"""Passes through a trained net, in batches of one shape."""

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


# Columns on both sides of the samples in a product. OpenBLAS sums up to eight of them
# in another order on processors with AVX2, and a mean must not depend on the place.
_BESIDE = 8

_COUNTING = slice(_BESIDE, _BESIDE + CHUNK)


def encode(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return the latent means, in evaluation mode and in batches of one shape."""
    return _in_chunks(net, ["encoder"], lambda vae, x: vae.encode(x)[0], rows)


def posterior(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return means and standard deviations of q(z|x) side by side."""

    def both(vae: VAE, x: Tensor) -> Tensor:
        mean, log_variance = vae.encode(x)
        return torch.cat([mean, torch.exp(log_variance / 2)], dim=1)

    return _in_chunks(net, ["encoder"], both, rows)


def decode(net: NeuralNet, codes: Tensor) -> NDArray[np.float32]:
    """Return the decoder's output for codes: means, or logits for "bernoulli"."""
    return _in_chunks(net, ["decoder"], lambda vae, z: vae.decoder(z), codes)


def evidence_bound(net: NeuralNet, rows: Tensor) -> NDArray[np.float32]:
    """Return the ELBO of each sample, log p(x|z) - KL, with one drawn code."""

    def bound(vae: VAE, x: Tensor) -> Tensor:
        result = vae(x)
        kl = gaussian_kl(result.mean, result.log_variance)
        return -net.criterion_.reconstruction(result, x) - kl

    return _in_chunks(net, ["encoder", "decoder"], bound, rows)


def _in_chunks(
    net: NeuralNet,
    names: Sequence[str],
    function: Callable[[VAE, Tensor], Tensor],
    rows: Tensor | Iterable[Tensor],
) -> NDArray[np.float32]:
    """Apply a function of a VAE that makes use of the networks named."""
    vae = _with_products(net.module_.eval(), names)
    all_products = all(isinstance(getattr(vae, name), _Products) for name in names)
    # Several threads sum long products in another order.
    threads = threads_for(0 if all_products else None)
    with torch.inference_mode(), full_float32(), threads:
        results = [
            function(vae, _filled(chunk).to(net.device))[: len(chunk)].cpu()
            for part in ([rows] if isinstance(rows, Tensor) else rows)
            for chunk in part.split(CHUNK)
        ]
    # Detached: a view of a parameter keeps its gradient even so.
    return torch.cat(results).detach().numpy()


def _with_products(vae: VAE, names: Sequence[str]) -> VAE:
    """Return a VAE of the same weights whose networks compute by NumPy if they can."""
    quick = copy.copy(vae)
    # Hooks are those of both; networks must not be.
    quick._modules = vae._modules.copy()
    for name in names:
        setattr(quick, name, _Products.of(getattr(vae, name)))
    return quick


class _Products(nn.Module):
    """A fully connected network by NumPy, for chunks of one size.

    BLAS sums the first and the last columns of a product in another order than those
    between. So samples are columns, between others that do not count: the mean of a
    sample does not depend on its place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        size = CHUNK + 2 * _BESIDE
        self._layers = Layers(network, size, order="F")
        self._input = np.zeros(
            (size, linear_layers(network)[0].in_features), np.float32
        )

    @classmethod
    def of(cls, network: nn.Module) -> nn.Module:
        parameters = list(network.parameters())
        usual = all(p.is_cpu and p.dtype == torch.float32 for p in parameters)
        return cls(network) if usual and is_fully_connected(network) else network

    def forward(self, x: Tensor) -> Tensor:
        self._input[_COUNTING] = x.numpy()
        with np.errstate(all="ignore"):
            output = self._layers.forward(self._input)
        return torch.from_numpy(output[_COUNTING].copy())


def _filled(chunk: Tensor) -> Tensor:
    missing = CHUNK - len(chunk)
    return torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk
