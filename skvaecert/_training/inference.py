"""Passes through a trained net, in batches of one shape."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from torch import Tensor, nn

from skvaecert._precision import full_float32
from skvaecert._samples import CHUNK
from skvaecert._training.layers import Layers, is_fully_connected, multiply_adds
from skvaecert._training.threads import threads_for
from skvaecert.networks import VAE
from skvaecert.objectives import gaussian_kl

__all__ = ["decode", "encode", "evidence_bound", "posterior"]


def encode(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return the latent means, in evaluation mode and in batches of one shape."""
    return _in_chunks(net, lambda vae, x: vae.encode(x)[0], rows)


def posterior(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return means and standard deviations of q(z|x) side by side."""

    def both(vae: VAE, x: Tensor) -> Tensor:
        mean, log_variance = vae.encode(x)
        return torch.cat([mean, torch.exp(log_variance / 2)], dim=1)

    return _in_chunks(net, both, rows)


def decode(net: NeuralNet, codes: Tensor) -> NDArray[np.float32]:
    """Return the decoder's output for codes: means, or logits for "bernoulli"."""
    return _in_chunks(net, lambda vae, z: vae.decoder(z), codes)


def evidence_bound(net: NeuralNet, rows: Tensor) -> NDArray[np.float32]:
    """Return the ELBO of each sample, log p(x|z) - KL, with one drawn code."""

    def bound(vae: VAE, x: Tensor) -> Tensor:
        result = vae(x)
        kl = gaussian_kl(result.mean, result.log_variance)
        return -net.criterion_.reconstruction(result, x) - kl

    return _in_chunks(net, bound, rows)


def _in_chunks(
    net: NeuralNet,
    function: Callable[[VAE, Tensor], Tensor],
    rows: Tensor | Iterable[Tensor],
) -> NDArray[np.float32]:
    vae = _with_products_of_training(net.module_.eval())
    work = multiply_adds(net.module_.encoder, net.module_.decoder)
    with torch.inference_mode(), full_float32, threads_for(work and work * CHUNK):
        results = [
            function(vae, _filled(chunk).to(net.device))[: len(chunk)].cpu()
            for part in ([rows] if isinstance(rows, Tensor) else rows)
            for chunk in part.split(CHUNK)
        ]
    # Detached: a view of a parameter keeps its gradient even so.
    return torch.cat(results).detach().numpy()


def _with_products_of_training(vae: VAE) -> VAE:
    """Return a VAE of the same weights that computes as the training step does."""
    networks = vae.encoder, vae.decoder
    if not all(map(_is_on_cpu, networks)):
        return vae
    encoder, decoder = map(_Products.of, networks)
    quick = VAE(encoder, decoder, vae.posterior)
    quick.raw_log_noise = vae.raw_log_noise
    return quick


def _is_on_cpu(network: nn.Module) -> bool:
    return all(parameter.is_cpu for parameter in network.parameters())


class _Products(nn.Module):
    """A fully connected network by NumPy, for chunks of one size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._layers = Layers(network, CHUNK)

    @classmethod
    def of(cls, network: nn.Module) -> nn.Module:
        return cls(network) if is_fully_connected(network) else network

    def forward(self, x: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            return torch.from_numpy(self._layers.forward(x.numpy()).copy())


def _filled(chunk: Tensor) -> Tensor:
    missing = CHUNK - len(chunk)
    return torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk
