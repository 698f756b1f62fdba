"""Inputs of an encoder: samples are checked and cut into batches of one size."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, gen_batches
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from skvaecert._loaders import as_samples
from skvaecert._precision import device_of, evaluating
from skvaecert._samples import DatasetSamples, is_sequence
from skvaecert._training.device import seeded
from skvaecert.escape import EscapeReport, differentiating, report_escape
from skvaecert.simplex import (
    Floats,
    check_teacher_proba,
    prior_matched_scale,
    simplex_vertices,
)
from skvaecert.witnesses import simplex_of
from skvaecert.wrappers._outputs import Outputs, joined

__all__ = ["Network", "open_samples"]


def open_samples(
    estimator: BaseEstimator, X: Any, *, reset: bool = False, in_order: bool = False
) -> Any:
    """Return samples that can be indexed: a checked array, or an unchanged list."""
    X = as_samples(X, in_order=in_order)
    if is_sequence(X):
        if not len(X):
            raise ValueError("X must have samples, got 0 sample(s).")
        return list(X)
    if isinstance(X, str | bytes | dict | set) and not hasattr(X, "shape"):
        raise ValueError(
            "X must be an array, a list with one item for each sample, a Dataset or a "
            f"DataLoader, got {type(X).__name__}."
        )
    if isinstance(X, DatasetSamples):
        # The first sample only: the others are checked when they are read.
        _checked(estimator, X[:1], reset)
        return X
    return _checked(estimator, X, reset)


def _checked(estimator: BaseEstimator, X: Any, reset: bool) -> Any:
    # Before fit there are no feature names to compare with.
    if reset or hasattr(estimator, "n_features_in_"):
        return validate_data(estimator, X, reset=reset, allow_nd=True)
    return check_array(X, estimator=estimator, input_name="X", allow_nd=True)


@dataclass(frozen=True)
class Network:
    """An encoder or a decoder, with the settings for calling it."""

    name: str
    function: Any
    batch_size: int
    read: Callable[[Any], Outputs]
    input_shape: Any = None

    @property
    def module(self) -> nn.Module | None:
        """The torch module that is called, or whose method is called, if any."""
        return _module_of(self.function)

    def seeded(self) -> AbstractContextManager[None]:
        """Seed torch, and restore its generators afterwards."""
        return seeded(0, device_of(self.module))

    def outputs(self, X: Any) -> Outputs:
        """Return the outputs for all samples, computed in batches of one size."""
        size, found = self.batch_size, []
        # Not inference_mode: what a module creates in its first pass, such as lazy
        # parameters, could not be trained later.
        with torch.no_grad(), evaluating(self.module):
            for batch in self._batches(X):
                result = self.read(self._call(_padded(batch, size)))
                found.append(result.arrays(self.name, size, len(batch)))
        return joined(self.name, found)

    def escape_report(self, X: Any, teacher_proba: Any, witness: Any) -> EscapeReport:
        """Report whether the gradient of the alignment loss moves the means apart."""
        module = self.module
        if module is None:
            raise ValueError(
                "encoder must be a torch module or a method of a torch module for an "
                f"escape report, got {self.function!r}. The report needs its gradient: "
                "pass the torch module or its method, such as vae.encode."
            )
        with self.seeded():
            mean = self.outputs(X).mean.astype(np.float64)
            proba = check_teacher_proba(teacher_proba, len(mean))
            simplex = _simplex(witness, proba, mean.shape[1])
            with differentiating(module):
                batches = self._batches(X)
                return report_escape(module, self._mean, batches, mean, proba, *simplex)

    def _mean(self, batch: Any) -> Tensor:
        return torch.as_tensor(self.read(self._call(batch)).mean).flatten(1)

    def _batches(self, X: Any) -> Iterator[Any]:
        for index in gen_batches(len(X), self.batch_size):
            batch = X[index]
            if isinstance(X, DatasetSamples):
                batch = check_array(batch, input_name="X")
            shape = self.input_shape
            yield batch if shape is None else _reshaped(batch, shape)

    def _call(self, batch: Any) -> Any:
        module = self.module
        try:
            if module is None or isinstance(batch, list):
                return self.function(batch)
            return self.function(_tensor(batch, module))
        except Exception as error:
            # The error of the model itself, with a note on its input.
            error.add_note(_note(self.name, batch, module))
            raise


def _simplex(witness: Any, proba: Floats, latent_dim: int) -> tuple[Floats, float]:
    """Return vertices and scale of the witness; None uses the fixed simplex."""
    if witness is not None:
        return simplex_of(witness)
    # The prior-matched scale of uniform posteriors is 0; any scale will do.
    scale = prior_matched_scale(proba) or 1.0
    return simplex_vertices(proba.shape[1], latent_dim), scale


def _reshaped(batch: Any, input_shape: Any) -> Any:
    shape = tuple(map(int, input_shape))
    if isinstance(batch, list):
        raise ValueError(
            f"input_shape must be None if X is a list of samples, got {shape}."
        )
    n_values = math.prod(batch.shape[1:])
    if math.prod(shape) != n_values:
        raise ValueError(
            "input_shape must have as many values as X has features, got "
            f"{shape}, {math.prod(shape)} values, and {n_values} features."
        )
    return batch.reshape(len(batch), *shape)


def _padded(batch: Any, size: int) -> Any:
    """Fill a batch with copies of its last sample."""
    missing = size - len(batch)
    if isinstance(batch, list):
        return batch + batch[-1:] * missing
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def _note(name: str, batch: Any, module: nn.Module | None) -> str:
    if isinstance(batch, list):
        return (
            f"{name} was called with a list of {type(batch[0]).__name__}, because X is "
            "a list. Pass an array, so that a torch module gets a tensor, and another "
            "callable an array."
        )
    kind = f"an array of {batch.dtype}" if module is None else "a tensor"
    note = (
        f"{name} was called with {kind} of shape {batch.shape}. Torch modules and "
        "their methods get tensors, other callables get arrays. Instead of a function "
        "that calls a module, pass the module or a method of it."
    )
    # Codes are flat, so a decoder takes them as they are.
    if name == "encoder" and batch.ndim == 2:
        note += (
            " If encoder does not take flat samples, set input_shape in TrainedEncoder "
            "to the shape of one sample, for images (channels, height, width)."
        )
    if module is not None and batch.dtype.kind in "iu":
        note += (
            " Integers stay integers, because they may be tokens. If the module "
            "computes with them, pass X.astype(numpy.float32)."
        )
    return note


def _tensor(batch: Any, module: nn.Module) -> Tensor:
    """Return the batch on the device of the module, with floats in its precision."""
    device = device_of(module)
    # Integers are indices, for example of tokens: torch needs int64 for them.
    if batch.dtype.kind in "iu":
        return torch.from_numpy(batch.astype(np.int64)).to(device)
    state = chain(module.parameters(), module.buffers())
    dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
    # NumPy does not have all dtypes of torch, so torch converts to the final one.
    exact = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(batch.astype(exact)).to(device, dtype)


def _module_of(function: Any) -> nn.Module | None:
    """Return the torch module that a callable is, or whose method it is."""
    if isinstance(function, partial):
        return _module_of(function.func)
    owner = getattr(function, "__self__", function)
    if isinstance(owner, nn.Module):
        return owner
    # torch.compile and decorators store the function that they wrap.
    inner = getattr(function, "__wrapped__", None)
    return None if inner is None else _module_of(inner)
