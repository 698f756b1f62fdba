"""Samples of a fit: split, standardised, brought to where the network reads them."""

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
    Standardisation,
    Streamed,
    TrainingSet,
)
from skvaecert.simplex import Floats

__all__ = ["Data", "Preprocessor", "fit_standardisation", "split"]


# MinMaxScaler leaves [0, 1] by rounding.
_RANGE_SLACK = 1e-6


def split(n_samples: int, held_out: float | None, seed: int) -> tuple[Index, Index]:
    """Return which samples to train on and which to hold out; None for all and none."""
    if held_out is None:
        return None, None
    n_held = round(held_out * n_samples)
    if n_held < 1 or n_samples - n_held < 2:
        raise ValueError(
            "validation_fraction must leave at least two samples to train on and one "
            f"to validate on, got {held_out} of {n_samples} samples. Change it, or fit "
            "on more samples."
        )
    order = np.random.default_rng(seed).permutation(n_samples)
    return np.sort(order[n_held:]), np.sort(order[:n_held])


class Data(NamedTuple):
    """Samples to train on and to validate on, each with its posteriors."""

    samples: Any
    proba: Floats
    held_samples: Any
    held_proba: Floats | None

    @classmethod
    def cut(cls, samples: Any, proba: Floats, training: Index, held_out: Index) -> Self:
        """Cut samples as :func:`split` says."""
        if held_out is None:
            return cls(samples, proba, None, None)
        held = lazy_part(samples, held_out), lazy_part(proba, held_out)
        return cls(lazy_part(samples, training), lazy_part(proba, training), *held)

    @property
    def steering(self) -> tuple[Any, Floats]:
        """The samples on which a guard holds the margin."""
        if self.held_proba is None:
            return self.samples, self.proba
        return self.held_samples, self.held_proba


def fit_standardisation(
    estimator: BaseEstimator, likelihood: str, samples: Any
) -> Standardisation:
    """Return the standardisation that a likelihood asks for."""
    chunks = read_samples(estimator, samples)
    if likelihood == "gaussian":
        return Standardisation.to_unit_variance(chunks)
    extremes = np.array([(chunk.min(), chunk.max()) for chunk in chunks])
    # Bytes are taken for intensities, unless they are zeros and ones.
    unit = 255.0 if samples.dtype == np.uint8 and extremes.max() > 1 else 1.0
    _check_range(extremes / unit)
    return Standardisation(np.zeros(samples.shape[1]), unit)


class Preprocessor(NamedTuple):
    """Turns samples into inputs of a network; `estimator` is named in errors."""

    estimator: BaseEstimator
    likelihood: str
    standardisation: Standardisation

    def standardise(self, samples: Any) -> Iterator[torch.Tensor]:
        """Yield standardised chunks; look closer only where something is wrong."""
        for chunk in raw_chunks(samples):
            try:
                yield self.standardisation.apply(chunk)
            except ValueError:
                # The errors of a full check say more.
                deque(read_samples(self.estimator, chunk), maxlen=0)
                raise

    def check(self, samples: Any) -> Iterator[NDArray[np.floating]]:
        """Yield chunks as they are, once it is known that they have a likelihood."""
        for chunk in read_samples(self.estimator, samples):
            if self.likelihood == "bernoulli":
                _check_range(chunk / self.standardisation.scale)
            yield chunk

    def training_sets(self, data: Data, device: torch.device) -> TrainingSet:
        """Return the samples to train on; those held out, if any, belong to it."""
        held_out = None
        if data.held_proba is not None:
            held_out = self.training_set(data.held_samples, data.held_proba, device)
        return self.training_set(data.samples, data.proba, device, held_out)

    def training_set(
        self,
        samples: Any,
        targets: Floats,
        device: torch.device,
        held_out: TrainingSet | None = None,
    ) -> TrainingSet:
        """Pair samples with what the network is to learn of them."""
        tensor = torch.from_numpy(targets.astype(np.float32)).to(device)
        return TrainingSet(self._on_device(samples, device), tensor, held_out)

    def _on_device(self, samples: Any, device: torch.device) -> Samples:
        """Copy samples to the device, bytes as bytes; those on the disk stay there."""
        chunks = self.check(samples)
        stays = isinstance(samples, np.memmap | DatasetSamples)
        if not stays and samples.dtype != np.uint8:
            return Resident.filled(samples.shape, chunks, self.standardisation, device)
        deque(chunks, maxlen=0)  # look at all of them before the first epoch
        if stays:
            return Streamed(samples, self.standardisation, device)
        return Resident(torch.tensor(samples, device=device), self.standardisation)

    @property
    def log_unit(self) -> float:
        """Nats that standardisation adds to the log-density of a sample."""
        if self.likelihood == "bernoulli":
            return 0.0
        n_features = len(self.standardisation.location)
        return float(n_features * np.log(self.standardisation.scale))


def _check_range(values: NDArray[np.floating]) -> None:
    low, high = -_RANGE_SLACK, 1 + _RANGE_SLACK
    if not low <= values.min() <= values.max() <= high:
        raise ValueError(
            "X must lie in [0, 1] for likelihood='bernoulli', got values from "
            f"{values.min():.6g} to {values.max():.6g}. Scale X, for example with "
            "MinMaxScaler(clip=True), or use likelihood='gaussian'."
        )
