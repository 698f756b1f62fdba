"""Samples in torch tensors, Datasets and DataLoaders, converted to arrays or lists."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from skvaecert.datasets import WithPosterior

__all__ = ["as_samples", "flat_batches", "flat_samples"]

# Number of samples of a loader that are certified together. Some samples of each batch
# are encoded twice, which would be costly for small batches.
_TOGETHER = 2048


def as_samples(X: Any, *, in_order: bool) -> Any:
    """Return a tensor as an array, and the samples of a Dataset or a DataLoader.

    Anything else is returned unchanged. With `in_order`, a DataLoader that may shuffle
    raises an error.
    """
    if isinstance(X, Tensor):
        return _array(X)
    if isinstance(X, DataLoader):
        if in_order:
            _check_order(X)
        with _generators_restored(X):
            return _joined(_batches(X))
    if isinstance(X, Dataset | WithPosterior):
        return _items(X)
    return X


def flat_samples(X: Any, *, in_order: bool) -> Any:
    """Return the samples of :func:`as_samples`, with arrays flattened to 2D."""
    X = as_samples(X, in_order=in_order)
    is_flat = not isinstance(X, np.ndarray) or X.ndim <= 2
    return X if is_flat else X.reshape(len(X), -1)


def flat_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches with flat samples; small batches of a DataLoader are joined."""
    if isinstance(batches, DataLoader):
        batches = _larger(_batches(batches))
    elif isinstance(batches, Dataset | WithPosterior):
        # The items of an IterableDataset are taken as batches.
        batches = batches if isinstance(batches, IterableDataset) else [batches]
    return (flat_samples(batch, in_order=False) for batch in batches)


def _larger(batches: Iterable[Any]) -> Iterator[Any]:
    parts: list[Any] = []
    for batch in batches:
        parts.append(batch)
        if sum(map(len, parts)) >= _TOGETHER:
            yield _joined(parts)
            parts = []
    if parts:
        yield _joined(parts)


def _check_order(loader: DataLoader[Any]) -> None:
    sampler = loader.sampler
    # There is no batch sampler if batch_size is None.
    is_usual = type(loader.batch_sampler) in (BatchSampler, type(None))
    kind = type(sampler if is_usual else loader.batch_sampler).__name__
    if not loader.in_order:
        kind += " and in_order=False"
    if kind != SequentialSampler.__name__:
        raise ValueError(
            "X must come in a known order, because other values belong to its samples, "
            f"got a DataLoader with a {kind}. Use a DataLoader with shuffle=False and "
            "without a sampler, or pass arrays."
        )


@contextmanager
def _generators_restored(loader: DataLoader[Any]) -> Iterator[None]:
    """Restore the random generators that a pass through a DataLoader advances."""
    # Only torch's own generators can be restored, not those of the dataset.
    owners = loader, loader.sampler, loader.batch_sampler
    own = [g for o in owners if (g := getattr(o, "generator", None)) is not None]
    states = [generator.get_state() for generator in own]
    # The empty list leaves out GPUs, from which a loader draws nothing.
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the samples of each batch, which are its first part if it has several."""
    n_read = 0
    for batch in loader:
        samples = _first(batch, loader)
        n_read += len(samples)
        yield _array(samples) if isinstance(samples, Tensor) else samples
    expected = _n_expected(loader)
    if expected not in (None, n_read):
        raise ValueError(
            "X must be a DataLoader whose batches are samples, or begin with them, got "
            f"{n_read} samples from {expected} items. A list of sequences of different "
            "lengths must be padded to one length in collate_fn."
        )


def _n_expected(loader: DataLoader[Any]) -> int | None:
    """Return the number of samples that a loader reads, or None if it is unknown."""
    is_usual = type(loader.batch_sampler) is BatchSampler
    if not is_usual or isinstance(loader.dataset, IterableDataset):
        return None
    n_samples = len(loader.sampler)  # type: ignore[arg-type]
    size = loader.batch_size or 1
    return n_samples // size * size if loader.drop_last else n_samples


def _first(batch: Any, loader: DataLoader[Any]) -> Any:
    """Return the samples of a batch that may also contain labels and other values."""
    # Batches may be nested, for example ((samples, lengths), labels).
    while isinstance(batch, tuple | list) and _is_nested(batch):
        # `default_collate` never returns a list of samples, which has to be refused.
        if loader.collate_fn is not default_collate:
            _check_parts(batch, loader.batch_size)
        batch = batch[0]
    if isinstance(batch, Mapping) or not hasattr(batch, "__len__"):
        raise ValueError(
            "X must be a DataLoader whose batches are samples, or begin with them, got "
            f"{type(batch).__name__}. Select the input of the encoder: "
            '(batch["x"] for batch in loader) for certify_batches, or '
            'torch.cat([batch["x"] for batch in loader]) for other methods.'
        )
    return batch


def _is_nested(batch: Any) -> bool:
    return len(batch) > 0 and isinstance(batch[0], Tensor | np.ndarray | tuple | list)


def _check_parts(batch: Any, batch_size: int | None) -> None:
    """Raise an error for a list of samples: its first part is a single sample."""
    # Parts of different kinds are samples with labels or other values. In a list of
    # samples all parts have the same kind.
    kinds = {(type(p), getattr(p, "dtype", 0), getattr(p, "ndim", 1)) for p in batch}
    if len(batch) == 1 or len(kinds) > 1 or getattr(batch[0], "ndim", 1) == 0:
        return
    if len({len(part) for part in batch}) > 1 or len(batch) == batch_size:
        raise ValueError(
            "X must be a DataLoader whose batches are samples, or begin with them, got "
            f"a {type(batch).__name__} of {len(batch)} {type(batch[0]).__name__}. A "
            "list of sequences of different lengths must be padded to one length in "
            "collate_fn."
        )


def _items(dataset: Any) -> Any:
    """Return the samples of a Dataset: an array if all have one shape, or a list."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"X must have a length, got {type(dataset).__name__}. Pass a DataLoader of "
            "it."
        )
    # A Dataset need not support iteration.
    samples = [_sample(dataset[i]) for i in range(len(dataset))]
    arrays = [np.asarray(s) for s in samples if isinstance(s, np.ndarray | float | int)]
    one_shape = len({array.shape for array in arrays}) == 1
    return np.stack(arrays) if one_shape and len(arrays) == len(samples) else samples


def _sample(item: Any) -> Any:
    # Only tuples, because a list may be the sample itself.
    while isinstance(item, tuple):
        item = item[0]
    if isinstance(item, Mapping):
        raise ValueError(
            "X must be a Dataset whose items are samples, or tuples that begin with "
            f"them, got items of {type(item).__name__}. Pass a list with the inputs of "
            "the encoder."
        )
    return _array(item) if isinstance(item, Tensor) else item


def _array(tensor: Tensor) -> Any:
    values = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _joined(batches: Iterable[Any]) -> Any:
    """Return all samples: one array, or one list."""
    parts = list(batches)
    if not parts:
        raise ValueError("X must have samples, got a DataLoader without batches.")
    if not all(isinstance(part, np.ndarray) for part in parts):
        return list(chain.from_iterable(parts))
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            "X must have samples of one shape, got a DataLoader with batches of "
            f"{' and '.join(map(str, sorted(shapes)))}. Pad all samples to one length: "
            "if padding depends on the batch, means depend on it, too."
        )
    return np.concatenate(parts)
