"""Samples of a fit: split, standardized, and moved to the device of the network."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from skvaecert._samples import (
    DatasetSamples,
    Index,
    lazy_part,
    raw_chunks,
    read_samples,
)
from skvaecert._training.batches import (
    Resident,
    Samples,
    Standardization,
    Streamed,
    TrainingSet,
)
from skvaecert.simplex import Floats

__all__ = ["Data", "Preprocessor", "fit_standardization", "split"]


# MinMaxScaler leaves the interval [0, 1] by rounding.
_RANGE_SLACK = 1e-6


def split(n_samples: int, held_out: float | None, seed: int) -> tuple[Index, Index]:
    """Return the indices of training samples and of held-out samples.

    Both are None if no samples are held out.
    """
    if held_out is None:
        return None, None
    n_held_out = round(held_out * n_samples)
    if n_held_out < 1 or n_samples - n_held_out < 2:
        raise ValueError(
            "validation_fraction must leave at least two samples to train on and one "
            f"to validate on, got {held_out} of {n_samples} samples. Change it, or fit "
            "on more samples."
        )
    order = np.random.default_rng(seed).permutation(n_samples)
    # Sorted, so that samples on disk are read in their order.
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


class Data(NamedTuple):
    """Training samples and held-out samples, with their teacher's posteriors."""

    samples: Any
    proba: Floats
    held_out_samples: Any
    held_out_proba: Floats | None

    @classmethod
    def cut(cls, samples: Any, proba: Floats, training: Index, held_out: Index) -> Self:
        """Divide samples and posteriors by the indices of :func:`split`."""
        if held_out is None:
            return cls(samples, proba, None, None)
        held = lazy_part(samples, held_out), lazy_part(proba, held_out)
        return cls(lazy_part(samples, training), lazy_part(proba, training), *held)

    @property
    def guarded(self) -> tuple[Any, Floats]:
        """The samples and posteriors on which a guard holds the margin."""
        if self.held_out_proba is None:
            return self.samples, self.proba
        return self.held_out_samples, self.held_out_proba


def fit_standardization(
    estimator: BaseEstimator, likelihood: str, samples: Any
) -> Standardization:
    """Return the standardization that the likelihood needs."""
    chunks = read_samples(estimator, samples)
    if likelihood == "gaussian":
        return Standardization.to_unit_variance(chunks)
    extremes = np.array([(chunk.min(), chunk.max()) for chunk in chunks])
    # Bytes are intensities from 0 to 255, unless all of them are 0 or 1.
    unit = 255.0 if samples.dtype == np.uint8 and extremes.max() > 1 else 1.0
    _check_range(extremes / unit)
    return Standardization(np.zeros(samples.shape[1]), unit)


class Preprocessor(NamedTuple):
    """Converts samples to inputs of a network; errors name the `estimator`."""

    estimator: BaseEstimator
    likelihood: str
    standardization: Standardization

    def standardize(self, samples: Any) -> Iterator[torch.Tensor]:
        """Yield standardized chunks, without a full check of valid ones."""
        for chunk in raw_chunks(samples):
            try:
                yield self.standardization.apply(chunk)
            except ValueError:
                # A full check raises errors that are easier to understand.
                deque(read_samples(self.estimator, chunk), maxlen=0)
                raise

    def check(self, samples: Any) -> Iterator[NDArray[np.floating]]:
        """Yield chunks unchanged, after a check that the likelihood allows them."""
        for chunk in read_samples(self.estimator, samples):
            if self.likelihood == "bernoulli":
                _check_range(chunk / self.standardization.scale)
            yield chunk

    def training_sets(self, data: Data, device: torch.device) -> TrainingSet:
        """Return the training samples, with the held-out samples attached, if any."""
        held_out = None
        if data.held_out_proba is not None:
            held_out = self.training_set(
                data.held_out_samples, data.held_out_proba, device
            )
        return self.training_set(data.samples, data.proba, device, held_out)

    def training_set(
        self,
        samples: Any,
        targets: Floats,
        device: torch.device,
        held_out: TrainingSet | None = None,
    ) -> TrainingSet:
        """Return samples with their targets, on the device."""
        tensor = torch.from_numpy(targets.astype(np.float32)).to(device)
        return TrainingSet(self._on_device(samples, device), tensor, held_out)

    def _on_device(self, samples: Any, device: torch.device) -> Samples:
        """Copy samples to the device, bytes as bytes. Samples on disk stay on disk."""
        chunks = self.check(samples)
        stays = isinstance(samples, np.memmap | DatasetSamples)
        # Samples on disk and bytes are standardized batch by batch, to save memory.
        if not stays and samples.dtype != np.uint8:
            return Resident.filled(samples.shape, chunks, self.standardization, device)
        # Check all samples now, so that invalid ones raise before the first epoch.
        deque(chunks, maxlen=0)
        if stays:
            return Streamed(samples, self.standardization, device)
        return Resident(torch.tensor(samples, device=device), self.standardization)

    @property
    def log_unit(self) -> float:
        """Nats that standardization adds to the log-density of a sample."""
        if self.likelihood == "bernoulli":
            return 0.0
        n_features = len(self.standardization.location)
        return float(n_features * np.log(self.standardization.scale))


def _check_range(values: NDArray[np.floating]) -> None:
    low, high = -_RANGE_SLACK, 1 + _RANGE_SLACK
    if not low <= values.min() <= values.max() <= high:
        raise ValueError(
            "X must lie in [0, 1] for likelihood='bernoulli', got values from "
            f"{values.min():.6g} to {values.max():.6g}. Scale X, for example with "
            "MinMaxScaler(clip=True), or use likelihood='gaussian'."
        )
