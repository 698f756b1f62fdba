"""Loss and gradient of fully connected VAEs, derived by hand.

On small networks autograd spends most of its time on bookkeeping, one node of its
graph after the other. The same chain rule is a few dozen calls, for one network or for
several of one shape at once, whose tensors are stacked along a first axis.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from skvaecert.networks import VAE, GaussianPosterior, Pass, bounded, bounded_slope
from skvaecert.objectives import AlignedELBO, Objective, Terms

__all__ = ["GradientByHand", "Layers"]


# Sums over rows and columns, one for each network.
_EACH = (-2, -1)

_WAYS = "forward", "backward"


class Layers:
    """Linear layers with SiLU between them, and their gradient."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.weights = weights
        self.biases = biases
        stacked = weights[0].ndim == 3
        self._affine = torch.baddbmm if stacked else torch.addmm
        self._product = torch.bmm if stacked else torch.mm

    @classmethod
    def of(cls, network: nn.Module) -> Self | None:
        """Return the layers of a network, or None if it is of another kind."""
        layers = list(network) if type(network) is nn.Sequential else []
        linear, between = layers[::2], layers[1::2]
        as_made = (
            len(linear) == len(between) + 1
            and all(type(layer) is nn.SiLU for layer in between)
            and all(type(layer) is nn.Linear for layer in linear)
            and all(layer.bias is not None for layer in linear)
        )
        if not as_made:
            return None
        weights, biases = zip(*(layer.parameters() for layer in linear), strict=True)
        return cls(weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer, and keep what the gradient needs."""
        self._inputs: list[Tensor] = []
        self._sums: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = functional.silu(self._sums[-1]) if self._sums else x
            summand = bias.unsqueeze(-2) if bias.ndim == 2 else bias
            self._inputs.append(x)
            self._sums.append(self._affine(summand, x, weight.mT))
        return self._sums[-1]

    def backward(self, gradient: Tensor) -> Tensor:
        """Fill `grad` of weights and biases."""
        for i in reversed(range(len(self.weights))):
            self._product(gradient.mT, self._inputs[i], out=self.weights[i].grad)
            torch.sum(gradient, -2, out=self.biases[i].grad)
            if i:
                gradient = self._product(gradient, self.weights[i])
                gradient = torch.ops.aten.silu_backward(gradient, self._sums[i - 1])
        return gradient

    def towards_input(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the input."""
        return self._product(gradient, self.weights[0])


class GradientByHand:
    """Loss and gradient of a VAE whose networks are :class:`Layers`.

    Theory section 11; the gradient of the alignment term is minus the escape force of
    section 4.
    """

    def __init__(self, encoder: Layers, decoder: Layers, raw_log_noise: Tensor) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.raw_log_noise = raw_log_noise

    @classmethod
    def of(cls, vae: nn.Module, criterion: AlignedELBO) -> Self | None:
        """Return the gradient of a VAE, or None where only autograd has it."""
        if type(vae) is not VAE or any(map(_is_altered, vae.modules())):
            return None
        if type(vae.posterior) is not GaussianPosterior:
            return None
        encoder, decoder = Layers.of(vae.encoder), Layers.of(vae.decoder)
        if type(criterion.objective) is not Objective or not (encoder and decoder):
            return None
        n_layers = len(encoder.weights) + len(decoder.weights)
        if len(list(vae.parameters())) != 1 + 2 * n_layers:
            # Layers that share a weight add up their gradients.
            return None
        return cls(encoder, decoder, vae.raw_log_noise)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        teacher_proba: Tensor,
        criterion: AlignedELBO,
        noise: Tensor | None = None,
    ) -> tuple[Pass, Terms]:
        """Fill `grad` of all parameters with the gradient of the loss."""
        n = x.shape[-2]
        codes = _Codes.draw(self.encoder.forward(x), noise)
        output = self.decoder.forward(codes.code)
        log_noise = bounded(self.raw_log_noise)
        if criterion.likelihood == "bernoulli":
            reconstruction, gradient = self._bernoulli(x, output)
        else:
            reconstruction, gradient = self._gaussian(x, output, log_noise)
        align = _alignment if codes.mean.ndim == 2 else _stacked_alignment
        aligned, pull = align(codes.mean, teacher_proba, criterion)
        towards_code = self.decoder.towards_input(self.decoder.backward(gradient))
        self.encoder.backward(
            codes.backward(towards_code, pull, criterion.kl_weight / n)
        )
        kl = codes.kl()
        result = Pass(codes.mean, codes.log_variance, codes.code, output, log_noise)
        return result, Terms(reconstruction, kl, kl, aligned)

    def _gaussian(
        self, x: Tensor, output: Tensor, log_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss and its gradient by the output, per row and feature."""
        n, n_features = x.shape[-2:]
        error = output - x
        precision = torch.exp(-log_noise) / n
        weighted = error.square().sum(_EACH) * precision
        slope = bounded_slope(log_noise) / 2
        torch.mul(n_features - weighted, slope, out=self.raw_log_noise.grad)
        normaliser = n_features * (log_noise + math.log(2 * math.pi))
        return (weighted + normaliser) / 2, error.mul_(precision[..., None, None])

    def _bernoulli(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        n = x.shape[-2]
        losses = functional.softplus(output) - x * output
        torch.mul(self.raw_log_noise, 0, out=self.raw_log_noise.grad)
        return losses.sum(_EACH) / n, (torch.sigmoid(output) - x) / n


class _Codes(NamedTuple):
    """Codes drawn from q(z|x), with what their gradient needs."""

    mean: Tensor
    log_variance: Tensor
    noise: Tensor
    deviation: Tensor
    code: Tensor

    @classmethod
    def draw(cls, output: Tensor, noise: Tensor | None) -> Self:
        mean, raw = output.chunk(2, dim=-1)
        log_variance = bounded(raw)
        deviation = torch.exp(log_variance / 2)
        noise = torch.randn_like(mean) if noise is None else noise
        code = torch.addcmul(mean, deviation, noise)
        return cls(mean, log_variance, noise, deviation, code)

    def kl(self) -> Tensor:
        terms = self.mean.square() + self.deviation.square() - self.log_variance - 1
        return terms.sum(_EACH) / (2 * self.mean.shape[-2])

    def backward(
        self, towards_code: Tensor, towards_mean: Tensor, kl_weight: float | Tensor
    ) -> Tensor:
        by_mean = towards_code + towards_mean + kl_weight * self.mean
        by_log_variance = towards_code * self.noise * self.deviation
        by_log_variance += kl_weight * (self.deviation.square() - 1)
        by_raw = by_log_variance * bounded_slope(self.log_variance) / 2
        return torch.cat([by_mean, by_raw], dim=-1)


def _alignment(
    mean: Tensor, teacher_proba: Tensor, criterion: AlignedELBO
) -> tuple[Tensor, Tensor]:
    """Return the mean of A and the gradient of the weighted term by the mean."""
    n = mean.shape[-2]
    vertices = criterion.scale * criterion.vertices
    log_q = functional.log_softmax(mean @ vertices.mT, dim=-1)
    divergence = functional.kl_div(log_q, teacher_proba, reduction="none")
    pull = (torch.exp(log_q) - teacher_proba) @ vertices
    return divergence.sum(_EACH) / n, pull * (criterion.alignment_weight / n)


def _stacked_alignment(
    mean: Tensor, teacher_proba: Tensor, criterion: AlignedELBO
) -> tuple[Tensor, Tensor]:
    """Return the same with components before rows: a softmax along rows is slow."""
    n = mean.shape[-2]
    vertices = criterion.scale * criterion.vertices
    proba = teacher_proba.mT
    log_q = functional.log_softmax(vertices @ mean.mT, dim=-2)
    # In float32 a posterior may be 0, where 0 log 0 = 0.
    log_ratio = proba.clamp_min(torch.finfo(proba.dtype).tiny).log() - log_q
    pull = (torch.exp(log_q) - proba).mT @ vertices
    divergence = (proba * log_ratio).sum(_EACH)
    return divergence / n, pull * (criterion.alignment_weight / n)


def _is_altered(module: nn.Module) -> bool:
    """Tell whether a module does more, or learns less, than its class says."""
    own = list(module.parameters(recurse=False))
    kinds = "_backward_hooks", "_post_accumulate_grad_hooks"
    if any(getattr(parameter, kind) for parameter in own for kind in kinds):
        return True
    if not all(parameter.requires_grad for parameter in own):
        return True
    passes = [f"_{way}{when}_hooks" for way in _WAYS for when in ("", "_pre")]
    return "forward" in vars(module) or any(getattr(module, kind) for kind in passes)
