"""Callbacks of every fit: margin, held-out samples, progress, early stops."""

import math
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
from skvaecert.objectives import HeldCallback
from skvaecert.simplex import witness_log_proba

__all__ = [
    "Completion",
    "MarginMonitor",
    "Observed",
    "Observer",
    "Progress",
    "Stop",
    "ValidationMonitor",
    "Watched",
]


# The encoder's forward pass is about a sixth of a training step, so a quarter of the
# rows keeps the monitor below 5 % of the epoch.
_MONITORED_SHARE = 4

_MOST_MONITORED = 8192


class MarginMonitor(HeldCallback):
    """Records "margin", "alignment_loss" and "teacher_information" after each epoch.

    They are those of at most a quarter of the training rows and at most 8,192, in lots
    of 256 (at least 256, or all of them), in evaluation mode, with the mean teacher of
    these rows: a margin in the sense of theory section 2. "margin_best" tells whether
    it is the greatest so far.
    """

    def on_train_begin(
        self, net: NeuralNet, X: TrainingSet | None = None, **kwargs: Any
    ) -> None:
        """Choose the rows."""
        if X is None:
            raise ValueError("MarginMonitor needs the training rows, got None.")
        most = min(len(X) // _MONITORED_SHARE, _MOST_MONITORED)
        self.watched_ = Watched.of(X, CHUNK * max(1, most // CHUNK))
        margins = [row["margin"] for row in net.history] if net else []
        self.best_ = max(margins, default=-math.inf)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the margin."""
        self.record(net, net.processes.first(self.watched_.margin(net)))

    def record(self, net: NeuralNet, margin: float) -> None:
        """Record the margin at the end of an epoch."""
        information = self.watched_.information
        net.history.record("margin", margin)
        # What skorch's Checkpoint asks for.
        net.history.record("margin_best", bool(margin > self.best_))
        self.best_ = max(margin, self.best_)
        net.history.record("alignment_loss", information - margin)
        net.history.record("teacher_information", information)

    def release(self) -> None:
        """Forget the rows, so that they are not pickled with the net."""
        self.__dict__.pop("watched_", None)


class ValidationMonitor(HeldCallback):
    """Records what rows held out say: "validation_loss" (-ELBO) and their margin.

    At most 8,192 of them are looked at. Steers the guard, if there is one, by them.
    """

    def on_train_begin(
        self, net: NeuralNet, X: TrainingSet | None = None, **kwargs: Any
    ) -> None:
        """Read the rows, if there are any."""
        held_out = getattr(X, "held_out", None)
        self.watched_ = held_out and Watched.of(held_out, _MOST_MONITORED)
        losses = [row.get("validation_loss", math.inf) for row in net.history or []]
        self.best_ = min(losses, default=math.inf)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record ELBO and margin, and tell the guard."""
        if self.watched_ is None:
            return
        loss = -float(self.watched_.evidence_bound(net).mean(dtype=np.float64))
        margin, information = self.watched_.margin(net), self.watched_.information
        loss, margin = net.processes.first((loss, margin))
        net.history.record("validation_loss", loss)
        net.history.record("validation_loss_best", bool(loss < self.best_))
        net.history.record("validation_margin", margin)
        net.history.record("validation_information", information)
        self.best_ = min(loss, self.best_)
        if net.criterion_.guard is not None:
            alignment_loss = net.history[-1]["alignment_loss"]
            net.criterion_.guard.gap = information - margin - alignment_loss

    def release(self) -> None:
        """Forget the rows, so that they are not pickled with the net."""
        self.__dict__.pop("watched_", None)


class Watched(NamedTuple):
    """Rows to look at after every epoch."""

    rows: Tensor
    teacher_proba: NDArray[np.floating]
    information: float

    @classmethod
    def of(cls, dataset: TrainingSet, most: int) -> Self:
        """Choose rows, the same ones of the same dataset every time."""
        # A generator of its own: warm fits on the same data watch the same rows.
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        rows, targets = dataset.take(order[:most])
        proba = targets.cpu().numpy()
        return cls(rows, proba, teacher_information(proba))

    def margin(self, net: NeuralNet) -> float:
        """Compute the margin of a net as it is."""
        objective = net.criterion_
        vertices = objective.vertices.cpu().numpy()
        log_q = witness_log_proba(encode(net, self.rows), vertices, objective.scale)
        return collapse_margin(self.teacher_proba, log_q)

    def evidence_bound(self, net: NeuralNet) -> NDArray[np.float32]:
        """Compute the ELBO of every row, with codes that are the same every time."""
        with seeded(0, torch.device(net.device)):
            return evidence_bound(net, self.rows)


class Completion(Callback):
    """Marks an epoch as complete: after the monitor, before the user's callbacks."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Complete the epoch."""
        net.complete_epoch()


class Progress(HeldCallback):
    """A progress bar over epochs that shows loss and margin."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Open the bar."""
        shown = net.processes.rank == 0
        self.bar_ = tqdm(total=net.max_epochs, unit="epoch", disable=not shown)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Move the bar."""
        row = net.history[-1]
        most = row["teacher_information"]
        self.bar_.set_postfix_str(
            f"loss {row['train_loss']:.4g}, margin {row['margin']:.2f} of {most:.2f}",
            refresh=False,
        )
        self.bar_.update()

    def release(self) -> None:
        """Close the bar."""
        if hasattr(self, "bar_"):
            self.bar_.close()
            del self.bar_


class Observed(Callback):
    """Tells whom :func:`train` was given of every epoch, once it is complete."""

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Tell of the beginning."""
        if net.observer is not None:
            net.observer.begin()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Tell of the end."""
        net.stop_wanted = net.observer is not None and net.observer.end()


class Stop(Callback):
    """Stops if that is wanted, after the user's callbacks have had the epoch too."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Stop, or not."""
        if net.agree_to_stop(net.stop_wanted):
            raise KeyboardInterrupt  # how skorch stops early


class Observer(Protocol):
    """Who wants to know of epochs."""

    watched: bool

    def begin(self) -> None:
        """Note that an epoch begins."""

    def end(self) -> bool:
        """Note that one ended."""
