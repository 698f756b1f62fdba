"""Samples as an encoder takes them: checked, and in batches of one size."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from skvaecert._precision import full_float32
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

__all__ = ["escape_of", "evaluate", "open_samples", "unchanged_generators"]


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


def evaluate(
    name: str,
    function: Any,
    X: Any,
    *,
    size: int,
    read: Callable[[Any], Outputs],
    shape: Any = None,
) -> Outputs:
    """Return what an encoder or a decoder makes of samples, in batches of one size."""
    module, found = _module_of(function), []
    # No inference mode: what a module keeps from its first pass, a table or lazy
    # parameters, could not be trained later.
    with torch.no_grad(), full_float32(), _evaluation_mode(module):
        for index in gen_batches(len(X), size):
            batch = _batch(X, index, shape)
            result = _call(name, function, _padded(batch, size), module)
            found.append(read(result).arrays(name, size).first(len(batch)))
    return joined(name, found)


def escape_of(
    encoder: Any,
    X: Any,
    teacher_proba: Any,
    witness: Any,
    *,
    size: int,
    read: Callable[[Any], Outputs],
    shape: Any = None,
) -> EscapeReport:
    """Report whether the gradient of a torch encoder moves its means apart."""
    module = _module_of(encoder)
    if module is None:
        raise ValueError(
            "encoder must be a torch module, or a method of one, for an escape report, "
            "since the gradient of other functions is not known. Got "
            f"{encoder!r}: pass the torch module or its method, such as vae.encode."
        )

    def encode(batch: Any) -> Tensor:
        mean = read(_call("encoder", encoder, batch, module)).mean
        return torch.as_tensor(mean).flatten(1)

    with seeded(0, _device_of(module)), _evaluation_mode(module):
        found = evaluate("encoder", encoder, X, size=size, read=read, shape=shape)
        latent_mean = found.flat().mean.astype(np.float64)
        proba = check_teacher_proba(teacher_proba, len(latent_mean))
        simplex = _simplex(witness, proba, latent_mean.shape[1])
        batches = (_batch(X, index, shape) for index in gen_batches(len(X), size))
        with differentiating(module):
            return report_escape(module, encode, batches, latent_mean, proba, *simplex)


def _simplex(witness: Any, proba: Floats, latent_dim: int) -> tuple[Floats, float]:
    """Return vertices and scale, without a witness of the fixed simplex."""
    if witness is not None:
        return simplex_of(witness)
    # Uniform posteriors say nothing at any scale.
    scale = prior_matched_scale(proba) or 1.0
    return simplex_vertices(proba.shape[1], latent_dim), scale


def _batch(X: Any, index: slice, shape: Any) -> Any:
    batch = X[index]
    if isinstance(X, DatasetSamples):
        batch = check_array(batch, input_name="X")
    return batch if shape is None else _reshaped(batch, shape)


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


def _call(name: str, function: Any, batch: Any, module: nn.Module | None) -> Any:
    try:
        if module is None or isinstance(batch, list):
            return function(batch)
        return function(_tensor(batch, module))
    except Exception as error:
        error.add_note(_note(name, batch, module))
        raise


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
    device = _device_of(module)
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


@contextmanager
def _evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Evaluate a module as it will be used, without autocast and in its precision."""
    # Each part by itself: some may have been frozen in evaluation mode.
    parts = [] if module is None else list(module.modules())
    modes = [part.training for part in parts]
    try:
        if module is not None:
            module.eval()
        with torch.autocast(_device_of(module).type, enabled=False):
            yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def _device_of(module: nn.Module | None) -> torch.device:
    state = () if module is None else chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in state), torch.device("cpu"))


@contextmanager
def unchanged_generators(*functions: Any) -> Iterator[None]:
    """Put torch's generators back to where they were, on the CPU and on GPUs."""
    devices = {_device_of(_module_of(function)) for function in functions}
    gpus = [device.index or 0 for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(gpus):
        yield
