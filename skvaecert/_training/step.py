"""One training step in two ways: NumPy if the gradient is known, else autograd.

Both draw the same codes from torch's generator, so that they differ by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skvaecert._training.layers import (
    Layers,
    array,
    gradients,
    is_altered,
    is_fully_connected,
    linear_layers,
)
from skvaecert._training.optimizer import OneVector
from skvaecert.networks import LOG_VARIANCE_BOUND, VAE, GaussianPosterior, Pass
from skvaecert.objectives import AlignedELBO, Objective, Terms

__all__ = ["AutogradStep", "Gradient", "NumpyStep", "has_known_gradient"]


_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def has_known_gradient(vae: nn.Module, criterion: AlignedELBO) -> bool:
    """Return whether :class:`Gradient` does the same as autograd, with hooks."""
    if type(vae) is not VAE or type(vae.posterior) is not GaussianPosterior:
        return False
    if not all(map(is_fully_connected, (vae.encoder, vae.decoder))):
        return False
    # A shared weight, listed twice here, would need the sum of two gradients.
    parameters = [p for _, p in vae.named_parameters(remove_duplicate=False)]
    return (
        type(criterion.objective) is Objective
        and len(set(map(id, parameters))) == len(parameters)
        and all(map(_is_free, parameters))
        and not any(map(is_altered, (vae, vae.posterior)))
    )


def _is_free(parameter: Tensor) -> bool:
    """Return whether a parameter is trained and has no hook on its gradient."""
    hooked = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    return parameter.requires_grad and not hooked


class AutogradStep:
    """Loss and gradient by torch, for any module, objective and device.

    A call sets `grad` of all parameters, and returns the loss and its terms.
    """

    name = "autograd"

    def __init__(
        self, vae: VAE, criterion: AlignedELBO, backend: str | None, autocast: bool
    ) -> None:
        self._vae, self._criterion = vae, criterion
        # The user's networks may have no parameters, but every VAE has this one.
        kind = vae.raw_log_noise.device.type
        self._autocast = torch.autocast(kind, torch.bfloat16, enabled=autocast)
        self._forward: Callable[..., tuple[Pass, Terms]] = self._pass
        if backend is not None:
            self._forward = torch.compile(self._pass, backend=backend)

    def _pass(self, x: Tensor, teacher_proba: Tensor) -> tuple[Pass, Terms]:
        result = self._vae(x)
        return result, self._criterion.terms(result, x, teacher_proba)

    def __call__(self, x: Tensor, teacher_proba: Tensor) -> tuple[Tensor, ...]:
        self._vae.zero_grad()
        with self._autocast:
            self._result, terms = self._forward(x, teacher_proba)
        loss = self._criterion.total(terms)
        loss.backward()
        noise = self._vae.raw_log_noise
        # The Bernoulli likelihood does not use the noise. Adam must count its steps all
        # the same, so that the optimizer's state does not depend on the kind of step.
        if noise.grad is None and noise.requires_grad:
            noise.grad = torch.zeros_like(noise)
        return tuple(value.detach() for value in (loss, *terms))

    def result(self) -> Pass:
        """Return the result of the VAE for the batch."""
        return self._result


class NumpyStep:
    """Loss and gradient by NumPy, if :func:`has_known_gradient`.

    While this step exists, the parameters are views of `vector`.
    """

    name = "numpy"

    def __init__(
        self, vae: VAE, criterion: AlignedELBO, optimizer: torch.optim.Adam
    ) -> None:
        self.vector = OneVector(optimizer)
        # The batches of an epoch have at most two sizes: two entries in the cache. An
        # entry reads and writes memory at these addresses.
        self._gradient_of = cache(lambda n, *addresses: Gradient(vae, criterion, n))

    def __call__(self, x: Tensor, teacher_proba: Tensor) -> tuple[float, ...]:
        self._gradient = self._gradient_of(len(x), *self.vector.addresses())
        # Values that are not finite are detected at the end of the epoch.
        with np.errstate(all="ignore"):
            return self._gradient(x.numpy(), teacher_proba.numpy())

    def result(self) -> Pass:
        """Return the result of the VAE for the batch."""
        return self._gradient.result()


class Gradient:
    """Loss and gradient of a fully connected VAE, for batches of `n_samples`.

    Theory section 11. The gradient of the alignment loss is minus the escape force of
    section 4. Weights are read from the module, and gradients written to it, in place.
    """

    def __init__(self, vae: VAE, criterion: AlignedELBO, n_samples: int) -> None:
        self._criterion = criterion
        self._encoder = Layers(vae.encoder, n_samples)
        self._decoder = Layers(vae.decoder, n_samples)
        self._into = gradients(vae.encoder), gradients(vae.decoder)
        raw = vae.raw_log_noise
        self._raw_log_noise, self._by_raw_log_noise = array(raw), array(raw.grad)
        self._vertices = array(criterion.vertices).astype(self._raw_log_noise.dtype)
        n_features = linear_layers(vae.decoder)[-1].out_features
        self._by_output = np.empty((n_samples, n_features), self._vertices.dtype)

    def __call__(
        self, x: NDArray[Any], teacher_proba: NDArray[Any]
    ) -> tuple[float, ...]:
        kl_weight = float(self._criterion.kl_weight)
        alignment_weight = float(self._criterion.alignment_weight)
        bernoulli = self._criterion.likelihood == "bernoulli"
        self._codes = _Codes(self._encoder.forward(x))
        self._output = self._decoder.forward(self._codes.code)
        reconstruction = self._bernoulli(x) if bernoulli else self._gaussian(x)
        kl = self._codes.kl()
        alignment, by_mean = self._align(teacher_proba, alignment_weight)
        self._backward(by_mean, kl_weight / len(x))
        loss = reconstruction + kl_weight * kl + alignment_weight * alignment
        # As in `Terms`: without an objective, the penalty is the KL term.
        return loss, reconstruction, kl, kl, alignment

    def _backward(self, by_mean: NDArray[Any] | float, kl_weight: float) -> None:
        into_encoder, into_decoder = self._into
        first = self._decoder.backward(self._by_output, into_decoder)
        by_code = self._decoder.by_input(first)
        by_encoded = self._codes.backward(by_code, by_mean, kl_weight)
        self._encoder.backward(by_encoded, into_encoder)

    def _gaussian(self, x: NDArray[Any]) -> float:
        """Return the mean of -log p(x|z); fill its gradients by output and noise."""
        n, n_features = x.shape
        tanh = math.tanh(float(self._raw_log_noise) / LOG_VARIANCE_BOUND)
        self._log_noise = LOG_VARIANCE_BOUND * tanh
        precision = math.exp(-self._log_noise)
        error = np.subtract(self._output, x, out=self._by_output)
        weighted = float(np.vdot(error, error)) * precision / n
        error *= precision / n
        # The last factor is d log v / d raw, for log v = 10 tanh(raw / 10).
        self._by_raw_log_noise[...] = (n_features - weighted) * (1 - tanh**2) / 2
        normalizer = n_features * (self._log_noise + math.log(2 * math.pi))
        return (weighted + normalizer) / 2

    def _bernoulli(self, x: NDArray[Any]) -> float:
        """Return the mean of log(1 + exp(y)) - x y, for logits y, without overflow."""
        y, work = self._output, self._by_output
        np.exp(np.negative(np.abs(y, out=work), out=work), out=work)
        work += 1
        losses = np.log(work, out=work)
        losses += np.maximum(y, 0)
        losses -= x * y
        loss = float(losses.sum()) / len(x)
        # sigmoid(y) = (1 + tanh(y / 2)) / 2
        np.tanh(np.multiply(y, 0.5, out=work), out=work)
        work *= 0.5
        work += 0.5
        work -= x
        work *= 1 / len(x)
        self._log_noise, self._by_raw_log_noise[...] = 0.0, 0
        return loss

    def _align(
        self, teacher_proba: NDArray[Any], weight: float
    ) -> tuple[float, NDArray[Any] | float]:
        """Return A, and the gradient of its weighted mean by the latent means."""
        if weight == 0:
            return 0.0, 0.0
        n, mean = len(teacher_proba), self._codes.mean
        # Components are rows, since reductions along the samples are slow.
        proba = teacher_proba.T
        vertices = self._criterion.scale * self._vertices
        # Log-softmax, shifted by the maximum so that exp does not overflow.
        log_q = vertices @ mean.T
        log_q -= log_q.max(axis=0)
        q = np.exp(log_q)
        total = q.sum(axis=0)
        log_q -= np.log(total)
        q /= total
        # In float32 a posterior can be 0, where 0 log 0 = 0.
        log_ratio = np.log(np.maximum(proba, _SMALLEST_NORMAL))
        log_ratio -= log_q
        log_ratio *= proba
        q -= proba
        q *= weight / n
        return float(log_ratio.sum()) / n, q.T @ vertices

    def result(self) -> Pass:
        """Return a copy of the result of the VAE for the batch."""
        codes = self._codes
        made = codes.mean, codes.log_variance, codes.code, self._output
        mean, log_variance, code, output = map(torch.tensor, made)
        return Pass(mean, log_variance, code, output, torch.tensor(self._log_noise))


class _Codes:
    """Codes drawn from q(z|x), and the values that their gradient needs."""

    def __init__(self, output: NDArray[Any]) -> None:
        latent_dim = output.shape[1] // 2
        self.mean, raw = output[:, :latent_dim], output[:, latent_dim:]
        # Draw from torch's generator, so that both kinds of step draw the same codes.
        noise = np.empty(raw.shape, raw.dtype)
        torch.from_numpy(noise).normal_()
        self._tanh = np.tanh(raw / LOG_VARIANCE_BOUND)
        self.log_variance = LOG_VARIANCE_BOUND * self._tanh
        deviation = np.exp(LOG_VARIANCE_BOUND / 2 * self._tanh)
        self._variance = np.square(deviation)
        self._shift = deviation * noise
        self.code = self.mean + self._shift

    def kl(self) -> float:
        """Return the mean of KL(q(z|x) || N(0, I))."""
        squares = np.square(self.mean) + self._variance - self.log_variance
        return float(squares.sum() - squares.size) / (2 * len(squares))

    def backward(
        self,
        by_code: NDArray[Any],
        by_mean: NDArray[Any] | float,
        kl_weight: float,
    ) -> NDArray[Any]:
        """Return the gradient by the encoder's output (theory section 11)."""
        by_raw = by_code * self._shift + kl_weight * (self._variance - 1)
        # Derivatives of the bound on log-variances, and of sigma by log sigma^2.
        by_raw *= 1 - np.square(self._tanh)
        by_raw *= 0.5
        return np.hstack([kl_weight * self.mean + by_code + by_mean, by_raw])
