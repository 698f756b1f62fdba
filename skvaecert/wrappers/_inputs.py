"""Samples as an encoder takes them: checked, and in batches of one size."""

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
    """Return samples that can be indexed: a checked array, or a list as it is."""
    X = as_samples(X, in_order=in_order)
    if is_sequence(X):
        if not len(X):
            raise ValueError("X must have samples, got 0 sample(s).")
        return list(X)
    if isinstance(X, str | bytes | dict | set) and not hasattr(X, "shape"):
        raise ValueError(
            "X must be an array, a list with an item for each sample, a Dataset or a "
            f"DataLoader, got {type(X).__name__}."
        )
    if isinstance(X, DatasetSamples):
        # The others are checked as they are read.
        _checked(estimator, X[:1], reset)
        return X
    return _checked(estimator, X, reset)


def _checked(estimator: BaseEstimator, X: Any, reset: bool) -> Any:
    # Without a fit there are no names to compare with, and no reason to warn.
    if reset or hasattr(estimator, "n_features_in_"):
        return validate_data(estimator, X, reset=reset, allow_nd=True)
    return check_array(X, estimator=estimator, input_name="X", allow_nd=True)


@dataclass(frozen=True)
class Network:
    """An encoder or a decoder: how it is called, and how its results are read."""

    name: str
    function: Any
    batch_size: int
    read: Callable[[Any], Outputs]
    input_shape: Any = None

    @property
    def module(self) -> nn.Module | None:
        """The module that it is, or is a method of."""
        return _module_of(self.function)

    def seeded(self) -> AbstractContextManager[None]:
        """Seed torch, and put its generators back."""
        return seeded(0, device_of(self.module))

    def outputs(self, X: Any) -> Outputs:
        """Return what it makes of samples, in batches of one size."""
        size, found = self.batch_size, []
        # No inference mode: what a module keeps from its first pass, a table or lazy
        # parameters, could not be trained later.
        with torch.no_grad(), evaluating(self.module):
            for batch in self._batches(X):
                result = self.read(self._call(_padded(batch, size)))
                found.append(result.arrays(self.name, size, len(batch)))
        return joined(self.name, found)

    def escape_report(self, X: Any, teacher_proba: Any, witness: Any) -> EscapeReport:
        """Report whether the gradient of a torch encoder moves its means apart."""
        module = self.module
        if module is None:
            raise ValueError(
                "encoder must be a torch module, or a method of one, for an escape "
                "report, since the gradient of other functions is not known. Got "
                f"{self.function!r}: pass the torch module or its method, such as "
                "vae.encode."
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
            error.add_note(_note(self.name, batch, module))
            raise


def _simplex(witness: Any, proba: Floats, latent_dim: int) -> tuple[Floats, float]:
    """Return vertices and scale, without a witness of the fixed simplex."""
    if witness is not None:
        return simplex_of(witness)
    # Uniform posteriors say nothing at any scale.
    scale = prior_matched_scale(proba) or 1.0
    return simplex_vertices(proba.shape[1], latent_dim), scale


def _reshaped(batch: Any, input_shape: Any) -> Any:
    shape = tuple(map(int, input_shape))
    if isinstance(batch, list):
        raise ValueError("input_shape must be None for a list of samples.")
    n_values = math.prod(batch.shape[1:])
    if math.prod(shape) != n_values:
        raise ValueError(
            "input_shape must have as many values as X has features, got "
            f"{shape}, {math.prod(shape)} values, and {n_values} features."
        )
    return batch.reshape(len(batch), *shape)


def _padded(batch: Any, size: int) -> Any:
    """Fill a batch up with its last sample."""
    missing = size - len(batch)
    if isinstance(batch, list):
        return batch + batch[-1:] * missing
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def _note(name: str, batch: Any, module: nn.Module | None) -> str:
    if isinstance(batch, list):
        return (
            f"{name} was given a list of {type(batch[0]).__name__}, as X is one. Give "
            "an array for an array, or for a tensor if it is a torch module."
        )
    kind = f"an array of {batch.dtype}" if module is None else "a tensor"
    note = (
        f"{name} was given {kind} of shape {batch.shape}. Torch modules and their "
        "methods are given tensors, other callables arrays: in the place of a function "
        "around a module, give the module or a method of it. input_shape in "
        "TrainedEncoder sets the shape of a sample."
    )
    if module is not None and batch.dtype.kind in "iu":
        note += (
            " Integers stay integers, since they may be tokens: give "
            "X.astype(numpy.float32) to a module that computes with them."
        )
    return note


def _tensor(batch: Any, module: nn.Module) -> Tensor:
    """Return the batch on the device of the module, floats in its precision."""
    device = device_of(module)
    if batch.dtype.kind in "iu":
        return torch.from_numpy(batch.astype(np.int64)).to(device)
    state = chain(module.parameters(), module.buffers())
    dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
    exact = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(batch.astype(exact)).to(device, dtype)


def _module_of(function: Any) -> nn.Module | None:
    """Return the module that a callable is, or is a method of."""
    if isinstance(function, partial):
        return _module_of(function.func)
    owner = getattr(function, "__self__", function)
    if isinstance(owner, nn.Module):
        return owner
    # torch.compile and decorators keep what they wrap.
    inner = getattr(function, "__wrapped__", None)
    return None if inner is None else _module_of(inner)
