"""The history of a training, in the form that users see."""

from collections.abc import Callable, Sequence
from typing import Any

from skvaecert._estimator import FitTasks

__all__ = ["Epochs", "history_table"]


_RENAMED = {"train_loss": "loss"}

_COLUMNS = (
    "epoch",
    "train_loss",
    "reconstruction",
    "kl",
    "alignment_loss",
    "margin",
    "teacher_information",
    "kl_weight",
    "alignment_weight",
    "seconds",
    "validation_loss",
    "validation_margin",
    "validation_margin_low",
    "validation_information",
)

# These contain log-densities, which skorch records for standardized samples.
_LOSSES = "loss", "reconstruction", "validation_loss"


def history_table(
    history: Sequence[dict[str, Any]], log_unit: float
) -> list[dict[str, float]]:
    """Return the completed epochs of a skorch history, with losses in units of X."""
    # "seconds" is recorded last, so an interrupted epoch does not have it.
    return [_row(epoch, log_unit) for epoch in history if "seconds" in epoch]


def _row(epoch: dict[str, Any], log_unit: float) -> dict[str, float]:
    row = {_RENAMED.get(k, k): epoch[k] for k in _COLUMNS if k in epoch}
    return row | {name: row[name] + log_unit for name in _LOSSES if name in row}


class Epochs:
    """Notifies scikit-learn's callbacks of epochs."""

    def __init__(
        self, tasks: FitTasks, history: Callable[[], list[dict[str, float]]]
    ) -> None:
        self.tasks = tasks
        self.history = history

    def begin(self) -> None:
        """Notify the callbacks that an epoch begins."""
        self.tasks.begin("epoch")

    def end(self) -> bool:
        """Notify the callbacks that an epoch ended; return whether to stop training."""
        return self.tasks.end(lambda: {"history_": self.history()})
