"""Callbacks of every fit: margin, held-out samples, progress."""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from skvaecert._samples import CHUNK
from skvaecert._training.batches import TrainingSet
from skvaecert._training.device import seeded
from skvaecert._training.inference import encode, evidence_bound
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.objectives import ReleasedCallback
from skvaecert.simplex import Floats, witness_log_proba

__all__ = [
    "Completion",
    "MarginMonitor",
    "Observer",
    "Progress",
    "ValidationMonitor",
    "Watched",
    "record_with_best",
]


# The encoder's forward pass is about a sixth of a training step, so a quarter of the
# samples keeps the monitor below a tenth of the epoch.
_MONITORED_SHARE = 4

_MOST_MONITORED = 8192


def record_with_best(
    net: NeuralNet, name: str, value: float, *, lower_is_better: bool = True
) -> None:
    """Record a value, and for skorch's Checkpoint whether it is the best so far."""
    earlier = [row[name] for row in net.history[:-1]]
    if lower_is_better:
        is_best = value < min(earlier, default=math.inf)
    else:
        is_best = value > max(earlier, default=-math.inf)
    net.history.record(name, value)
    net.history.record(f"{name}_best", bool(is_best))


class MarginMonitor(ReleasedCallback):
    """Records "margin", "alignment_loss" and "teacher_information" after each epoch.

    They are computed on at most a quarter of the training samples and at most 8,192,
    in multiples of 256 (at least 256, or all samples if there are fewer), in evaluation
    mode. The mean teacher is that of these samples, as theory section 2 requires.
    """

    def on_train_begin(self, net: NeuralNet, X: TrainingSet, **kwargs: Any) -> None:
        most = min(len(X) // _MONITORED_SHARE, _MOST_MONITORED)
        # Whole chunks: a part of a chunk is padded and takes as long as a whole one.
        self.watched_ = Watched.of(X, CHUNK * max(1, most // CHUNK))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        margin = self.watched_.margin(net)
        information = self.watched_.information
        record_with_best(net, "margin", margin, lower_is_better=False)
        net.history.record("alignment_loss", information - margin)
        net.history.record("teacher_information", information)

    def release(self) -> None:
        self.__dict__.pop("watched_", None)


class ValidationMonitor(ReleasedCallback):
    """Records "validation_loss" (-ELBO) and the margin of held-out samples.

    At most 8,192 of them are used. If there is a guard, they control it. While a net
    trains, `watched_` has their posteriors and `log_q_` the witness's
    log-probabilities.
    """

    def on_train_begin(self, net: NeuralNet, X: TrainingSet, **kwargs: Any) -> None:
        self.watched_ = None
        if X.held_out is not None:
            self.watched_ = Watched.of(X.held_out, _MOST_MONITORED)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.watched_ is None:
            return
        # A sum in float32 over thousands of samples would lose digits.
        loss = -float(self.watched_.evidence_bound(net).mean(dtype=np.float64))
        self.log_q_ = self.watched_.witness_log_proba(net)
        margin = collapse_margin(self.watched_.teacher_proba, self.log_q_)
        information = self.watched_.information
        record_with_best(net, "validation_loss", loss)
        net.history.record("validation_margin", margin)
        net.history.record("validation_information", information)
        if net.criterion_.guard is not None:
            # The guard sees training batches: add the difference to held-out samples.
            alignment_loss = net.history[-1]["alignment_loss"]
            net.criterion_.guard.gap = information - margin - alignment_loss

    def release(self) -> None:
        for name in ("watched_", "log_q_"):
            self.__dict__.pop(name, None)


class Watched(NamedTuple):
    """Samples on which values are computed after every epoch."""

    samples: Tensor
    teacher_proba: NDArray[np.floating]
    information: float

    @classmethod
    def of(cls, dataset: TrainingSet, most: int) -> Self:
        """Choose samples, always the same ones of a dataset."""
        # A separate generator: warm fits on the same data use the same samples.
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        samples, targets = dataset.take(order[:most])
        proba = targets.cpu().numpy()
        return cls(samples, proba, teacher_information(proba))

    def margin(self, net: NeuralNet) -> float:
        """Compute the margin of a net with its current weights."""
        return collapse_margin(self.teacher_proba, self.witness_log_proba(net))

    def witness_log_proba(self, net: NeuralNet) -> Floats:
        """Compute the witness's log-probabilities with the net's current weights."""
        criterion = net.criterion_
        vertices = criterion.vertices.cpu().numpy()
        return witness_log_proba(encode(net, self.samples), vertices, criterion.scale)

    def evidence_bound(self, net: NeuralNet) -> NDArray[np.float32]:
        """Compute the ELBO of every sample, with the same noise in each call."""
        with seeded(0, torch.device(net.device)):
            return evidence_bound(net, self.samples)

    def checksum(self) -> int:
        """Return a checksum of the samples."""
        return zlib.crc32(self.samples.cpu().numpy().tobytes())


class Completion(Callback):
    """Marks an epoch as complete after the monitors, before the user's callbacks."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        net.complete_epoch()


class Progress(ReleasedCallback):
    """Shows a progress bar over epochs with loss and margin."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        # Restarted for each fit: a warm fit counts its own epochs only.
        self.bar_ = tqdm(total=net.max_epochs, unit="epoch")

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        row = net.history[-1]
        most = row["teacher_information"]
        self.bar_.set_postfix_str(
            f"loss {row['train_loss']:.4g}, margin {row['margin']:.2f} of {most:.2f}",
            refresh=False,
        )
        self.bar_.update()

    def release(self) -> None:
        if hasattr(self, "bar_"):
            self.bar_.close()
            del self.bar_


class Observer(Protocol):
    """Is notified of every epoch, and may stop the training after it."""

    def begin(self) -> None:
        """Handle the start of an epoch."""

    def end(self) -> bool:
        """Handle the end of a complete epoch, and return whether to stop."""
