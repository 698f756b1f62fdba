"""The user's X: all code that opens, checks, cuts, selects and hashes samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b, sha256
from typing import Any

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.utils import (
    _safe_indexing,
    check_array,
    check_consistent_length,
    gen_batches,
    indexable,
)
from sklearn.utils.validation import _num_samples, validate_data

from skvaecert.simplex import check_real, check_weight

__all__ = [
    "CHUNK",
    "DatasetSamples",
    "Index",
    "check_features",
    "count_samples",
    "cut_pieces",
    "digest_samples",
    "digests",
    "fingerprint_samples",
    "is_sequence",
    "lazy_part",
    "numpy_only",
    "open_samples",
    "raw_chunks",
    "read_samples",
    "take_samples",
]

# Number of samples evaluated together. The last chunk is padded to this size: matrix
# products of another shape round differently, and a mean must not depend on the batch.
CHUNK = 256

# Number of values in a chunk of samples: few enough to stay in the cache for checks.
_CHUNK_VALUES = 2**17

# Maximum number of samples encoded at a time, and of values read from storage.
_MOST_SAMPLES, _MOST_VALUES = 2**16, 2**23

# Number of samples read at a time for a hash.
_HASHED_TOGETHER = 2**12

Index = NDArray[np.intp] | None


class DatasetSamples:
    """Samples of a torch Dataset, read on demand.

    Use it for data that do not fit into memory. :class:`skvaecert.CertifiedVAE`,
    :class:`skvaecert.GMMTeacher` and :class:`skvaecert.CollapseCertifier` take it as
    `X`, and never keep all samples in memory. Other estimators also take it, but read
    all samples at once, through :func:`numpy.asarray`.

    Parameters
    ----------
    dataset : object with `__len__` and `__getitem__`, or ndarray
        The dataset. An item is a sample of any shape, or a tuple whose first entry is a
        sample. Several items are read at once if the dataset has `__getitems__`, as in
        torch.
    index : array-like of int or None, default=None
        Indices of the items to use, in this order. None uses all items.

    Raises
    ------
    ValueError
        If there is no item.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from skvaecert.datasets import DatasetSamples
    >>> images = torch.rand(100, 1, 8, 8)
    >>> DatasetSamples(TensorDataset(images, torch.zeros(100))).shape
    (100, 64)
    """

    ndim = 2

    def __init__(self, dataset: Any, index: ArrayLike | None = None) -> None:
        self.dataset = _checked_dataset(dataset)
        self.index = _checked_index(index, len(dataset))
        if not len(self.index):
            raise ValueError(
                "dataset must have at least one item, got a length of 0 sample(s)."
            )
        first = check_real("dataset", self[:1])
        self.dtype = first.dtype
        self.shape = len(self.index), first.shape[1]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> NDArray[np.number]:
        wanted = self.index[key]
        if isinstance(self.dataset, np.ndarray):
            return np.asarray(self.dataset[wanted])
        items = self._items(np.atleast_1d(wanted).tolist())
        samples = np.stack([_flat(item) for item in items])
        return samples if wanted.ndim else samples[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError(
                "copy must not be False, because samples are read into a new array."
            )
        return self[:].astype(dtype or self.dtype, copy=False)

    def _items(self, wanted: list[int]) -> Any:
        if hasattr(self.dataset, "__getitems__"):
            # The method that torch's DataLoader calls to read several items together.
            return self.dataset.__getitems__(wanted)
        return (self.dataset[i] for i in wanted)


def _checked_dataset(dataset: Any) -> Any:
    is_flat = isinstance(dataset, np.ndarray) and dataset.ndim != 2
    has_items = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if is_flat or not has_items:
        raise ValueError(
            "dataset must have __len__ and __getitem__, or be an array of shape "
            f"(n_samples, n_features), got {type(dataset).__name__}"
            + (f" of shape {dataset.shape}." if is_flat else ".")
        )
    return dataset


def _checked_index(index: ArrayLike | None, n_items: int) -> NDArray[np.integer]:
    places = np.arange(n_items) if index is None else check_real("index", index)
    # An empty list becomes an array of floats.
    are_ints = places.ndim == 1 and (places.dtype.kind in "iu" or not len(places))
    if not (are_ints and ((-n_items <= places) & (places < n_items)).all()):
        raise ValueError(
            f"index must have shape (n_samples,) and be indices of the {n_items} items "
            f"of dataset, got {places.dtype} of shape {places.shape}."
        )
    return places


def _flat(item: Any) -> NDArray[np.number]:
    sample = item[0] if isinstance(item, tuple | list) else item
    return np.asarray(sample).reshape(-1)


# Open and check.


def numpy_only() -> AbstractContextManager[None]:
    """Disable scikit-learn's array API dispatch, which k-means does not support."""
    return config_context(array_api_dispatch=False)


def open_samples(
    estimator: BaseEstimator, X: ArrayLike | DatasetSamples, **kwargs: Any
) -> NDArray[np.number] | DatasetSamples:
    """Check the type and shape of `X`; :func:`read_samples` checks values of arrays.

    So arrays on disk or of integers, and the samples of a torch Dataset, are never
    copied as a whole.
    """
    if (
        isinstance(X, np.ndarray | DatasetSamples)
        and X.ndim == 2
        and X.dtype.kind in "fiu"
    ):
        # Two samples show type and shape, and are enough for `ensure_min_samples`.
        _validate(estimator, X[:2], **kwargs)
        return X
    return _validate(estimator, X, **kwargs)


def read_samples(
    estimator: BaseEstimator, samples: NDArray[np.number] | DatasetSamples
) -> Iterator[NDArray[np.floating]]:
    """Check the values of an array and yield them in chunks."""
    for chunk in raw_chunks(samples):
        with numpy_only():
            checked = check_array(
                chunk,
                dtype=[np.float64, np.float32],
                estimator=estimator,
                input_name="X",
            )
        yield _within_limits(checked)


def raw_chunks(
    samples: NDArray[np.number] | DatasetSamples,
) -> Iterator[NDArray[np.number]]:
    """Yield the unchanged values of an array in chunks."""
    # A multiple of CHUNK, the number of samples that networks evaluate together.
    size = CHUNK * max(1, _CHUNK_VALUES // samples.shape[1] // CHUNK)
    for batch in gen_batches(len(samples), size):
        yield samples[batch]


def _validate(
    estimator: BaseEstimator, X: ArrayLike, **kwargs: Any
) -> NDArray[np.floating]:
    with numpy_only():
        samples = validate_data(estimator, X, dtype=[np.float64, np.float32], **kwargs)
    return _within_limits(samples)


def _within_limits(samples: NDArray[np.floating]) -> NDArray[np.floating]:
    # Above this limit, sums of squares overflow.
    limit = 1e-3 * np.sqrt(np.finfo(samples.dtype).max)
    largest = max(-samples.min(), samples.max())
    if largest > limit:
        raise ValueError(
            f"X must have magnitudes below {limit:.0e} in {samples.dtype}, got "
            f"{largest:.3g}. Rescale X."
        )
    return samples


def is_sequence(X: Any) -> bool:
    """Return whether X is a list of samples or a column without numbers, not a table.

    Nested lists of floats are a table, as in scikit-learn. Only the first sample
    decides, so that parts of a list are treated as the whole list.
    """
    if isinstance(X, list | tuple):
        sample = X[0] if len(X) else ()
        values = sample if isinstance(sample, list | tuple) else ()
        return not any(isinstance(value, float) for value in values)
    has_one_axis = hasattr(X, "__array__") and getattr(X, "ndim", 0) == 1
    return has_one_axis and np.asarray(X[:1]).dtype.kind in "OSTU"


def check_features(estimator: BaseEstimator, X: Any, *, reset: bool = False) -> None:
    """Check number and names of features, unless samples are in a list."""
    if not is_sequence(X):
        # Without the values, which may be of any kind that the estimator takes.
        validate_data(estimator, X, reset=reset, skip_check_array=True)


# Select.


def take_samples(X: Any, index: NDArray[np.intp] | slice) -> Any:
    """Return the selected samples of any X that scikit-learn can index."""
    if not _is_stored(X):
        (indexable_X,) = indexable(X)
        return _safe_indexing(indexable_X, index)
    if isinstance(index, slice):
        return np.asarray(X[index])
    # In the order of the file: it is faster, and h5py requires it.
    order = np.argsort(index)
    return np.asarray(X[index[order]])[np.argsort(order)]


def lazy_part(samples: Any, index: Index) -> Any:
    """Return the selected samples; samples on disk are read on demand."""
    if index is None:
        return samples
    if isinstance(samples, np.memmap):
        return DatasetSamples(samples, index)
    if isinstance(samples, DatasetSamples):
        return DatasetSamples(samples.dataset, samples.index[index])
    return _safe_indexing(samples, index)


def _is_stored(X: Any) -> bool:
    """Return whether X is a chunked array of zarr, dask or h5py, read in parts."""
    return hasattr(X, "chunks") and hasattr(X, "__array__")


# Cut into pieces.


def cut_pieces(
    X: ArrayLike, teacher_proba: ArrayLike | None, sample_weight: ArrayLike | None
) -> Iterator[tuple[Any, ArrayLike | None, ArrayLike | None]]:
    """Yield pieces of the samples, with their posteriors and weights.

    There is one piece, unless samples are stored or too many to be encoded at once.
    """
    n_samples, size = count_samples(X), _piece_size(X)
    if n_samples <= size and not _is_stored(X):
        yield X, teacher_proba, sample_weight
        return
    # Of all samples, because a weight is negligible relative to the largest.
    weight = check_weight(sample_weight, n_samples)
    if teacher_proba is not None:
        check_consistent_length(X, teacher_proba)
    for batch in gen_batches(n_samples, size):
        proba = None if teacher_proba is None else take_samples(teacher_proba, batch)
        yield take_samples(X, batch), proba, weight[batch]


def count_samples(X: Any) -> int:
    """Return the number of samples; 0 if X is invalid, since the estimator raises."""
    try:
        return _num_samples(X)
    except TypeError:
        return 0


def _piece_size(X: Any) -> int:
    """Return the number of samples in a piece: whole chunks if samples are stored."""
    if not _is_stored(X):
        return _MOST_SAMPLES
    # dask lists the sizes of all chunks; zarr and h5py give one size.
    chunk = X.chunks[0] if X.chunks else 1
    n_stored = max(chunk) if isinstance(chunk, tuple) else chunk
    most = min(_MOST_SAMPLES, _MOST_VALUES // max(1, math.prod(X.shape[1:])))
    return int(max(n_stored, most // n_stored * n_stored))


# Hash.


def fingerprint_samples(X: ArrayLike) -> NDArray[np.uint64]:
    """Return a hash of 64 bits for each sample."""
    digests = (blake2b(sample, digest_size=8).digest() for sample in _sample_bytes(X))
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _sample_bytes(X: Any) -> Iterator[bytes]:
    """Yield each sample as bytes: its values in float64, or else its `repr`."""
    for start in range(0, count_samples(X), _HASHED_TOGETHER):
        piece = take_samples(X, slice(start, start + _HASHED_TOGETHER))
        if is_sequence(X):
            yield from map(_item_bytes, piece)
            continue
        try:
            # Adding 0 turns -0 into 0, which compares equal.
            samples = np.asarray(_dense(piece), dtype=np.float64) + 0.0
        except (TypeError, ValueError):
            samples = np.asarray(piece, dtype=object)
            yield from (repr(sample).encode() for sample in samples.tolist())
        else:
            yield from (sample.tobytes() for sample in samples)


def _dense(piece: Any) -> Any:
    return piece.toarray() if hasattr(piece, "toarray") else piece


def _item_bytes(sample: Any) -> bytes:
    """Return a sample of a list as bytes, independent of the other samples."""
    if isinstance(sample, str | bytes):
        return repr(sample).encode()
    try:
        return (np.asarray(sample, dtype=np.float64) + 0.0).tobytes()
    except (TypeError, ValueError, RuntimeError):
        return str(joblib.hash(sample)).encode()


def digests(X: ArrayLike, teacher_proba: ArrayLike | None) -> dict[str, str | None]:
    """Return hashes that identify the samples and posteriors of a certificate."""
    given = None if teacher_proba is None else digest_samples(teacher_proba)
    return {"rows": digest_samples(X), "teacher_proba": given}


def digest_samples(X: ArrayLike) -> str | None:
    """Return the SHA-256 of samples in any container; None if JSON cannot encode them.

    For a numeric table it covers the line
    ``skvaecert rows 1 DTYPE N_SAMPLES N_FEATURES``, with its newline, and the values
    row by row. These are little-endian, in float32 if that is the dtype of `X`, else in
    float64. For other samples, such as texts, it covers the line
    ``skvaecert rows 1 json N_SAMPLES`` and one line of JSON for each sample.
    """
    for parts in (_canonical_bytes, _json_lines):
        # A new one for each attempt, because the first may fail after some samples.
        digest = sha256()
        try:
            for part in parts(X):
                digest.update(part)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            continue
        return digest.hexdigest()
    return None


def _canonical_bytes(X: Any) -> Iterator[Any]:
    table = X if hasattr(X, "shape") else np.asarray(X)
    n_samples = table.shape[0]
    for piece in gen_batches(n_samples, _HASHED_TOGETHER):
        samples = np.asarray(_dense(take_samples(table, piece)))
        dtype = np.dtype("<f4" if samples.dtype == np.float32 else "<f8")
        if piece.start == 0:
            shape = f"{n_samples} {samples.shape[1]}"
            yield f"skvaecert rows 1 {dtype.name} {shape}\n".encode()
        yield np.ascontiguousarray(samples, dtype=dtype).data


def _json_lines(X: Any) -> Iterator[bytes]:
    n_samples = _num_samples(X)
    yield f"skvaecert rows 1 json {n_samples}\n".encode()
    for batch in gen_batches(n_samples, _HASHED_TOGETHER):
        piece = take_samples(X, batch)
        # Iteration over a data frame of pandas yields columns, not samples.
        for sample in piece.to_numpy() if hasattr(piece, "to_numpy") else piece:
            yield json.dumps(sample, default=_as_list).encode() + b"\n"


def _as_list(value: Any) -> Any:
    return value.tolist()
