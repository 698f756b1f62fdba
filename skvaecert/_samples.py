"""Samples as users give them: opened, checked, cut, taken and hashed, once for all."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b, sha256
from typing import Any

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
from sklearn.utils.validation import validate_data

from skvaecert.simplex import check_weight

__all__ = [
    "CHUNK",
    "DatasetSamples",
    "digest_samples",
    "fingerprint_samples",
    "is_stored",
    "numpy_only",
    "open_samples",
    "raw_chunks",
    "read_samples",
    "take_samples",
    "validate_samples",
]

# Numbers in a chunk of rows: few enough to stay in the cache while they are checked.
_CHUNK_NUMBERS = 2**17


class DatasetSamples:
    """The rows of a torch Dataset, read when they are asked for.

    :class:`skvaecert.CertifiedVAE`, :class:`skvaecert.GMMTeacher` and
    :class:`skvaecert.CollapseCertifier` take it as `X` and never hold all rows. Other
    estimators take it too, but read all rows at once, through :func:`numpy.asarray`.

    Parameters
    ----------
    dataset : object with `__len__` and `__getitem__`
        An item is a row, of any shape, or a tuple that begins with one. With
        `__getitems__`, several are asked for at once, as torch does. Or an array.
    index : array-like of int or None, default=None
        Which items, in which order; None for all.

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
        self.dataset = dataset
        self.index = np.arange(len(dataset)) if index is None else np.asarray(index)
        if not len(self.index):
            raise ValueError(
                "dataset must have at least one item, got a length of 0 sample(s)."
            )
        first = self[:1]
        self.dtype = first.dtype
        self.shape = len(self.index), first.shape[1]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> NDArray[np.number]:
        wanted = self.index[key]
        if isinstance(self.dataset, np.ndarray):
            return np.asarray(self.dataset[wanted])
        one = wanted.ndim == 0
        items = [_row(item) for item in self._items(np.atleast_1d(wanted).tolist())]
        return items[0] if one else np.stack(items)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("copy must not be False: rows are read into a new array.")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _items(self, wanted: list[int]) -> Any:
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(wanted)
        return (self.dataset[i] for i in wanted)


def _row(item: Any) -> NDArray[np.number]:
    row = item[0] if isinstance(item, tuple | list) else item
    return np.asarray(row).reshape(-1)


def numpy_only() -> AbstractContextManager[None]:
    """Switch scikit-learn's array API dispatch off: mixtures start from k-means."""
    return config_context(array_api_dispatch=False)


def validate_samples(
    estimator: BaseEstimator, X: ArrayLike, **kwargs: Any
) -> NDArray[np.floating]:
    """Check `X` as scikit-learn does and return it as a NumPy array of floats."""
    with numpy_only():
        rows = validate_data(estimator, X, dtype=[np.float64, np.float32], **kwargs)
    return _within_limits(rows)


def open_samples(
    estimator: BaseEstimator, X: ArrayLike | DatasetSamples, **kwargs: Any
) -> NDArray[np.number] | DatasetSamples:
    """Check what `X` is, but leave the numbers of an array to :func:`read_samples`.

    So an array on disk, or of integers, is never copied as a whole, nor are the rows
    of a torch Dataset.
    """
    if not isinstance(X, np.ndarray | DatasetSamples) or not _is_numeric_table(X):
        return validate_samples(estimator, X, **kwargs)
    validate_samples(estimator, X[:2], **kwargs)
    return X


def _is_numeric_table(X: NDArray[np.number] | DatasetSamples) -> bool:
    return X.ndim == 2 and X.dtype.kind in "fiu"


def read_samples(
    estimator: BaseEstimator, rows: NDArray[np.number] | DatasetSamples
) -> Iterator[NDArray[np.floating]]:
    """Check the numbers of an array and yield them, some rows at a time."""
    for chunk in raw_chunks(rows):
        with numpy_only():
            checked = check_array(
                chunk,
                dtype=[np.float64, np.float32],
                estimator=estimator,
                input_name="X",
            )
        yield _within_limits(checked)


def raw_chunks(
    rows: NDArray[np.number] | DatasetSamples,
) -> Iterator[NDArray[np.number]]:
    """Yield the numbers of an array as they are, some rows at a time."""
    # A multiple of what networks take at once.
    size = CHUNK * max(1, _CHUNK_NUMBERS // rows.shape[1] // CHUNK)
    for batch in gen_batches(len(rows), size):
        yield rows[batch]


def _within_limits(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    # Beyond this, sums of squares overflow.
    limit = 1e-3 * np.sqrt(np.finfo(rows.dtype).max)
    largest = max(-rows.min(), rows.max())
    if largest > limit:
        raise ValueError(
            f"X must have magnitudes below {limit:.0e} in {rows.dtype}, got "
            f"{largest:.3g}. Rescale X."
        )
    return rows


# Rows, their posteriors or None, their weights or None.
Piece = tuple[ArrayLike, ArrayLike | None, ArrayLike | None]

# Rows that are encoded, and asked about, at a time, and numbers of stored ones.
_MOST_ROWS, _MOST_NUMBERS = 2**16, 2**23


def cut_pieces(
    X: ArrayLike, teacher_proba: ArrayLike | None, sample_weight: ArrayLike | None
) -> Iterator[Piece]:
    """Cut rows, and what belongs to them, where there are too many for one piece."""
    n_samples, size = count_samples(X), _piece_size(X)
    if n_samples <= size and not is_stored(X):
        yield X, teacher_proba, sample_weight
        return
    weight = check_weight(sample_weight, n_samples)
    if teacher_proba is not None:
        check_consistent_length(X, teacher_proba)
    for piece in gen_batches(n_samples, size):
        proba = None if teacher_proba is None else take_samples(teacher_proba, piece)
        yield take_samples(X, piece), proba, weight[piece]


def count_samples(X: Any) -> int:
    """Count rows, or what is too little to be cut: the estimator has the last word."""
    shape = getattr(X, "shape", None)
    if shape is None:
        return len(X) if hasattr(X, "__len__") else 0
    try:
        return int(shape[0]) if shape else 0
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"X must have a number of rows that is known, got {shape[0]}. Of dask "
            "arrays, call compute_chunk_sizes(); of dask data frames, "
            "to_dask_array(lengths=True)."
        ) from error


def _piece_size(X: Any) -> int:
    """Return how many rows to take at a time, of stored ones whole chunks."""
    if not is_stored(X):
        return _MOST_ROWS
    chunk = X.chunks[0] if X.chunks else 1
    n_rows = max(chunk) if isinstance(chunk, tuple) else chunk
    most = min(_MOST_ROWS, _MOST_NUMBERS // max(1, math.prod(X.shape[1:])))
    return int(max(n_rows, most // n_rows * n_rows))


# Rows that are read at a time where nothing else is done with them.
_READ_ROWS = 2**12


def take_samples(X: ArrayLike, index: NDArray[np.intp] | slice) -> Any:
    """Return some rows of anything that scikit-learn can index."""
    if is_stored(X):
        return _read_stored(X, index)
    (indexable_X,) = indexable(X)
    return _safe_indexing(indexable_X, index)


def is_stored(X: Any) -> bool:
    """Tell arrays in chunks, of zarr, dask or h5py, which have to be read."""
    return hasattr(X, "chunks") and hasattr(X, "__array__")


def _read_stored(X: Any, index: NDArray[np.intp] | slice) -> NDArray[Any]:
    if isinstance(index, slice):
        return np.asarray(X[index])
    # Files are read in their order, and h5py takes no other.
    order = np.argsort(index)
    return np.asarray(X[index[order]])[np.argsort(order)]


def fingerprint_samples(X: ArrayLike) -> NDArray[np.uint64]:
    """Return a number for each row, the same for equal rows only, in all likelihood."""
    try:
        rows = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        return np.zeros(0, dtype=np.uint64)
    digests = (blake2b(row.tobytes(), digest_size=8).digest() for row in rows + 0.0)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def digest_samples(X: ArrayLike) -> str | None:
    """Return the SHA-256 of a table of numbers, in a form that does not depend on it.

    Hashed are the line ``skvaecert rows 1 DTYPE N_SAMPLES N_FEATURES``, with its
    newline, and the numbers row after row, little-endian: float32 where `X` is, float64
    otherwise.
    """
    digest = sha256()
    try:
        table = X if hasattr(X, "shape") else np.asarray(X)
        n_samples = table.shape[0]
        for piece in gen_batches(n_samples, _READ_ROWS):
            rows = np.asarray(take_samples(table, piece))
            dtype = "<f4" if rows.dtype == np.float32 else "<f8"
            if piece.start == 0:
                n_features = rows.shape[1]
                name = np.dtype(dtype).name
                line = f"skvaecert rows 1 {name} {n_samples} {n_features}\n"
                digest.update(line.encode())
            digest.update(np.ascontiguousarray(rows, dtype=dtype).data)
    except (TypeError, ValueError, IndexError):
        return None
    return digest.hexdigest()


# Rows evaluated together. The last chunk is filled up to it: matrix products of
# another shape round differently, and a row's mean must not depend on its company.
CHUNK = 256

Index = NDArray[np.intp] | None


def lazy_part(rows: Any, index: Index) -> Any:
    """Take some rows; of what lies on the disk, only when they are read."""
    if index is None:
        return rows
    if isinstance(rows, np.memmap):
        return DatasetSamples(rows, index)
    if isinstance(rows, DatasetSamples):
        return DatasetSamples(rows.dataset, rows.index[index])
    return _safe_indexing(rows, index)
