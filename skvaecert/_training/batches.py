"""Samples on their way into the network: standardised, resident or streamed."""

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from skvaecert.simplex import Floats

__all__ = [
    "Batches",
    "Resident",
    "Rows",
    "Standardisation",
    "Streamed",
    "TrainingSet",
    "resolve_batch_size",
]


# Sums of squares of larger ones overflow in the network's float32.
_LARGEST_STANDARD = 1e15

# batch_size="auto": steps per epoch if there are few samples, and limits of a batch.
_STEPS, _BATCH_SIZES = 16, (8, 128)

# Samples that are standardised in float32, which represents them.
_SINGLE = np.float32, np.uint8


class Standardisation(NamedTuple):
    """Maps x to (x - location) / scale: one scale for all features keeps distances."""

    location: Floats
    scale: float

    @classmethod
    def to_unit_variance(cls, chunks: Iterable[NDArray[np.floating]]) -> Self:
        """Take the mean of each feature and the root of the mean variance."""
        n, mean, squares = 0, np.zeros(1), 0.0
        for chunk in chunks:
            # Mean, and sum of squares about it, of two sets of samples together.
            own = chunk.mean(axis=0, dtype=np.float64)
            shift, total = own - mean, n + len(chunk)
            squares += np.square(chunk - own).sum(dtype=np.float64)
            squares += np.square(shift).sum() * n * len(chunk) / total
            mean, n = mean + shift * len(chunk) / total, total
        return cls(mean, float(np.sqrt(squares / (n * mean.size))) or 1.0)

    def apply(self, rows: NDArray[np.number]) -> Tensor:
        # Twice as fast in float32, if the samples have no higher precision.
        dtype = np.float32 if rows.dtype in _SINGLE else np.float64
        standard = rows - self.location.astype(dtype)
        standard *= dtype(1 / self.scale)
        # One sum for all: only if it is too large is each value looked at.
        flat = standard.ravel()
        with np.errstate(over="ignore", invalid="ignore"):
            in_doubt = not flat @ flat <= _LARGEST_STANDARD**2  # also for NaN
        if in_doubt and not (largest := np.abs(flat).max()) <= _LARGEST_STANDARD:
            raise ValueError(
                "X must be within 1e15 standard deviations of the training samples, "
                f"got {largest:.3g}. Check its units."
            )
        return torch.from_numpy(standard.astype(np.float32, copy=False))

    def undo(self, standard: NDArray[np.floating]) -> Floats:
        return standard.astype(np.float64) * self.scale + self.location


class Rows(Protocol):
    """Samples of the training set, as the network takes them."""

    index_device: torch.device

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor: ...


class Resident:
    """Samples on the device: standardised floats, or bytes that are not yet."""

    def __init__(
        self, values: Tensor, standardisation: Standardisation | None = None
    ) -> None:
        self.values = values
        self.index_device = values.device
        self.location, self.scale = None, 1.0
        if standardisation is not None:
            location = torch.as_tensor(standardisation.location, dtype=torch.float32)
            self.location = location.to(values.device)
            self.scale = standardisation.scale

    @classmethod
    def filled(
        cls,
        shape: tuple[int, int],
        chunks: Iterable[NDArray[np.floating]],
        standardisation: Standardisation,
        device: torch.device,
    ) -> Self:
        """Standardise chunk by chunk, without another copy of all samples."""
        values = torch.empty(shape, dtype=torch.float32, device=device)
        start = 0
        for chunk in chunks:
            values[start : start + len(chunk)] = standardisation.apply(chunk)
            start += len(chunk)
        return cls(values)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor) -> Tensor:
        rows = self.values.index_select(0, index.to(self.index_device))
        if self.location is None:
            return rows
        # As `Standardisation.apply` does, to the bit.
        return (rows - self.location) * (1 / self.scale)


class Streamed:
    """Samples that are read when a batch needs them."""

    def __init__(
        self, source: Any, standardisation: Standardisation, device: torch.device
    ) -> None:
        self.source = source
        self.index_device = torch.device("cpu")
        self.standardisation = standardisation
        self.device = device

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: Tensor) -> Tensor:
        """Read samples in the order in which they lie on the disk."""
        ordered, place = index.cpu().sort()
        rows = self.standardisation.apply(self.source[ordered.numpy()])
        return rows[place.argsort()].to(self.device)


class TrainingSet(Dataset[Tensor]):
    """Samples and their targets: posteriors of the teacher, or codes to regress on."""

    def __init__(
        self, rows: Rows, targets: Tensor, held_out: "TrainingSet | None" = None
    ) -> None:
        self.rows = rows
        self.targets = targets
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        own = self.targets.index_select(0, index.to(self.targets.device))
        return self.rows.take(index), own


class Batches:
    """Batches of a training set, in random order."""

    def __init__(self, dataset: TrainingSet, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        size, n_larger = divmod(len(dataset), len(self))
        self.sizes = [size + (i < n_larger) for i in range(len(self))]

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.dataset))
        batches = order.to(self.dataset.rows.index_device).tensor_split(len(self))
        return map(self.dataset.take, batches)


def resolve_batch_size(batch_size: int | str, n_samples: int) -> int:
    if isinstance(batch_size, Integral):
        return int(batch_size)
    least, most = _BATCH_SIZES
    return min(most, max(least, n_samples // _STEPS))
