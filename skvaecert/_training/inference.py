"""Passes through a trained net, in batches of one shape."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from torch import Tensor

from skvaecert._precision import full_float32
from skvaecert._samples import CHUNK
from skvaecert._training.step import Layers
from skvaecert.objectives import gaussian_kl

__all__ = ["decode", "encode", "evidence_bound", "posterior"]


# Larger chunks for small fully connected networks: there calls cost the most.
_SMALL_NET_CHUNK, _FEW_PARAMETERS = 1024, 2**16


def encode(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return the latent means, in evaluation mode and in batches of one shape."""
    return _in_chunks(net, lambda x: net.module_.encode(x)[0], rows)


def posterior(net: NeuralNet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return means and standard deviations of q(z|x) side by side."""

    def both(x: Tensor) -> Tensor:
        mean, log_variance = net.module_.encode(x)
        return torch.cat([mean, torch.exp(log_variance / 2)], dim=1)

    return _in_chunks(net, both, rows)


def decode(net: NeuralNet, codes: Tensor) -> NDArray[np.float32]:
    """Return the decoder's output for codes: means, or logits for "bernoulli"."""
    return _in_chunks(net, net.module_.decoder, codes)


def evidence_bound(net: NeuralNet, rows: Tensor) -> NDArray[np.float32]:
    """Return the ELBO of each sample, log p(x|z) - KL, with one drawn code."""

    def bound(x: Tensor) -> Tensor:
        result = net.module_(x)
        kl = gaussian_kl(result.mean, result.log_variance)
        return -net.criterion_.reconstruction(result, x) - kl

    return _in_chunks(net, bound, rows)


def _in_chunks(
    net: NeuralNet,
    function: Callable[[Tensor], Tensor],
    rows: Tensor | Iterable[Tensor],
) -> NDArray[np.float32]:
    net.module_.eval()
    size = _chunk_size(net)
    with torch.inference_mode(), full_float32:
        results = [
            function(_filled(chunk, size).to(net.device))[: len(chunk)].cpu()
            for part in ([rows] if isinstance(rows, Tensor) else rows)
            for chunk in part.split(size)
        ]
    # Detached: a view of a parameter keeps its gradient even so.
    return torch.cat(results).detach().numpy()


def _chunk_size(net: NeuralNet) -> int:
    """Return how many samples go through a net at once, the same at every call."""
    plain = all(map(Layers.of, (net.module_.encoder, net.module_.decoder)))
    n_parameters = sum(p.numel() for p in net.module_.parameters())
    return _SMALL_NET_CHUNK if plain and n_parameters <= _FEW_PARAMETERS else CHUNK


def _filled(chunk: Tensor, size: int) -> Tensor:
    missing = size - len(chunk)
    return torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk
