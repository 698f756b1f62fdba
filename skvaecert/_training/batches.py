"""Training samples as the network receives them: standardized, in memory or on disk."""

from __future__ import annotations

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
    "Samples",
    "Standardization",
    "Streamed",
    "TrainingSet",
    "resolve_batch_size",
]


# Sums of squares of larger values overflow in the network's float32.
_LARGEST_STANDARD = 1e15

# For batch_size="auto": steps per epoch on few samples, and bounds of the batch size.
_STEPS_PER_EPOCH, _BATCH_SIZE_BOUNDS = 16, (8, 128)

# dtypes that float32 represents exactly: these samples are standardized in float32.
_EXACT_IN_FLOAT32 = np.float32, np.uint8


class Standardization(NamedTuple):
    """Maps x to (x - location) / scale.

    All features share one scale, so that the ratios of distances stay the same.
    """

    location: Floats
    scale: float

    @classmethod
    def to_unit_variance(cls, chunks: Iterable[NDArray[np.floating]]) -> Self:
        """Use the mean of each feature and the root of the mean variance."""
        n, mean, squares = 0, np.zeros(1), 0.0
        for chunk in chunks:
            # Merge the means and the sums of squares of two sets of samples. One pass
            # over all samples as x and x^2 would lose digits to cancellation.
            own = chunk.mean(axis=0, dtype=np.float64)
            shift, total = own - mean, n + len(chunk)
            squares += np.square(chunk - own).sum(dtype=np.float64)
            squares += np.square(shift).sum() * n * len(chunk) / total
            mean, n = mean + shift * len(chunk) / total, total
        # Equal samples have a standard deviation of 0.
        return cls(mean, float(np.sqrt(squares / (n * mean.size))) or 1.0)

    def apply(self, samples: NDArray[np.number]) -> Tensor:
        # float32 is twice as fast, and enough if the samples have no higher precision.
        dtype = np.float32 if samples.dtype in _EXACT_IN_FLOAT32 else np.float64
        standard = samples - self.location.astype(dtype)
        standard *= dtype(1 / self.scale)
        # Look for the largest value only if the sum of squares is too large.
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


class Samples(Protocol):
    """Samples of the training set, indexed by batch."""

    index_device: torch.device

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor: ...


class Resident:
    """Samples in the device's memory: standardized, or bytes to be standardized."""

    def __init__(
        self, values: Tensor, standardization: Standardization | None = None
    ) -> None:
        self.values = values
        self.index_device = values.device
        self.location, self.scale = None, 1.0
        if standardization is not None:
            location = torch.as_tensor(standardization.location, dtype=torch.float32)
            self.location = location.to(values.device)
            self.scale = standardization.scale

    @classmethod
    def filled(
        cls,
        shape: tuple[int, int],
        chunks: Iterable[NDArray[np.floating]],
        standardization: Standardization,
        device: torch.device,
    ) -> Self:
        """Standardize chunk by chunk, to avoid another copy of all samples."""
        values = torch.empty(shape, dtype=torch.float32, device=device)
        start = 0
        for chunk in chunks:
            values[start : start + len(chunk)] = standardization.apply(chunk)
            start += len(chunk)
        return cls(values)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor) -> Tensor:
        samples = self.values.index_select(0, index.to(self.index_device))
        if self.location is None:
            return samples
        # The same operations as `Standardization.apply`, so that all bits agree.
        return (samples - self.location) * (1 / self.scale)


class Streamed:
    """Samples that are read when a batch needs them."""

    def __init__(
        self, source: Any, standardization: Standardization, device: torch.device
    ) -> None:
        self.source = source
        self.index_device = torch.device("cpu")
        self.standardization = standardization
        self.device = device

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: Tensor) -> Tensor:
        """Read samples in their order on disk; return them in the order of `index`."""
        ordered, place = index.cpu().sort()
        samples = self.standardization.apply(self.source[ordered.numpy()])
        return samples[place.argsort()].to(self.device)


class TrainingSet(Dataset[Tensor]):
    """Samples and their targets: the teacher's posteriors, or codes for the prefit."""

    def __init__(
        self,
        samples: Samples,
        targets: Tensor,
        held_out: TrainingSet | None = None,
    ) -> None:
        self.samples = samples
        self.targets = targets
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        own = self.targets.index_select(0, index.to(self.targets.device))
        return self.samples.take(index), own


class Batches:
    """Batches of a training set, in random order, whose sizes differ by at most one."""

    def __init__(self, dataset: TrainingSet, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        # The sizes that tensor_split makes below, which puts the larger parts first.
        size, n_larger = divmod(len(dataset), len(self))
        self.sizes = [size + (i < n_larger) for i in range(len(self))]

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Drawn on the CPU, so that batches do not depend on the device.
        order = torch.randperm(len(self.dataset))
        batches = order.to(self.dataset.samples.index_device).tensor_split(len(self))
        return map(self.dataset.take, batches)


def resolve_batch_size(batch_size: int | str, n_samples: int) -> int:
    """Turn the parameter `batch_size`, an int or "auto", into a number of samples."""
    if isinstance(batch_size, Integral):
        return int(batch_size)
    least, most = _BATCH_SIZE_BOUNDS
    return min(most, max(least, n_samples // _STEPS_PER_EPOCH))
