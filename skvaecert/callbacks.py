"""Callbacks for users: one of skorch, one of scikit-learn."""

import math
from numbers import Integral, Real
from typing import Any

from skorch.callbacks import Callback

from skvaecert._training.net import VAENet

try:
    from sklearn.callback import ScoringMonitor
except ImportError:  # before scikit-learn 1.9
    ScoringMonitor = None

__all__ = ["HistoryMonitor", "StopWhenCertified"]


class StopWhenCertified(Callback):
    """Stop training once the relative margin has held for some epochs.

    For ``CertifiedVAE(callbacks=[...])``. It looks at the margin that is recorded
    after each epoch; the certificate itself is computed when the fit has ended.

    Parameters
    ----------
    relative_margin : float, default=0.6
        Share of the teacher information, in (0, 1).
    n_epochs : int, default=5
        Epochs in a row that must reach it, at least 1.
    monitor : {"margin", "validation_margin"}, default="margin"
        Margin of training rows, or of rows held out by `validation_fraction`.
    patience : int or None, default=None
        If given, at least 1: stop only if the ELBO of rows held out, which needs a
        `validation_fraction`, has not risen for so many epochs either.

    See Also
    --------
    skorch.callbacks.EarlyStopping : For ``"validation_loss"`` alone, and with
        ``load_best=True`` for the weights of the best epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.callbacks import StopWhenCertified
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), callbacks=[StopWhenCertified(0.5)],
    ...     device="cpu", random_state=0)
    >>> vae.fit(load_iris().data).n_iter_ < 100
    True
    """

    def __init__(
        self,
        relative_margin: float = 0.6,
        n_epochs: int = 5,
        monitor: str = "margin",
        patience: int | None = None,
    ) -> None:
        self.relative_margin = relative_margin
        self.n_epochs = n_epochs
        self.monitor = monitor
        self.patience = patience

    def on_train_begin(self, net: VAENet, **kwargs: Any) -> None:
        """Check the parameters and start counting.

        Parameters
        ----------
        net : VAENet
            The net in training.
        **kwargs : Any
            Not used.
        """
        self._check()
        self.n_held_ = self.n_waited_ = 0
        self.best_ = math.inf

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Count, and stop if it is time.

        Parameters
        ----------
        net : VAENet
            The net in training.
        **kwargs : Any
            Not used.
        """
        row = net.history[-1]
        if self.monitor not in row or (self.patience and "validation_loss" not in row):
            raise ValueError(
                "validation_fraction of the CertifiedVAE must be given for "
                f"StopWhenCertified(monitor={self.monitor!r}, "
                f"patience={self.patience}), got None."
            )
        self._count(row)
        if self.n_held_ >= self.n_epochs and self.n_waited_ >= (self.patience or 0):
            raise KeyboardInterrupt  # how skorch stops early

    def _count(self, row: dict[str, float]) -> None:
        held_out = self.monitor == "validation_margin"
        name = "validation_information" if held_out else "teacher_information"
        reached = row[self.monitor] >= self.relative_margin * row[name] > 0
        self.n_held_ = self.n_held_ + 1 if reached else 0
        loss = row.get("validation_loss", math.inf)
        self.n_waited_ = 0 if loss < self.best_ else self.n_waited_ + 1
        self.best_ = min(loss, self.best_)

    def _check(self) -> None:
        share, monitors = self.relative_margin, ("margin", "validation_margin")
        if not (isinstance(share, Real) and 0 < share < 1):
            raise ValueError(f"relative_margin must be in (0, 1), got {share!r}.")
        if self.monitor not in monitors:
            raise ValueError(
                f"monitor must be one of {monitors}, got {self.monitor!r}."
            )
        for name in ("n_epochs", "patience"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) and value >= 1):
                if value is None and name == "patience":
                    continue
                raise ValueError(f"{name} must be an integer above 0, got {value!r}.")


def _last_epoch(estimator: Any, X: Any, y: Any, **metadata: Any) -> dict[str, float]:
    return estimator.history_[-1]


if ScoringMonitor is None:

    class HistoryMonitor:
        """Stands for a callback that needs scikit-learn 1.9."""

        def __init__(self) -> None:
            raise ImportError(
                "HistoryMonitor needs scikit-learn 1.9 or later, whose callbacks it "
                "extends. `history_` of a fitted CertifiedVAE holds the same numbers."
            )

else:

    class HistoryMonitor(ScoringMonitor):  # type: ignore[no-redef]
        """Log every epoch of every :class:`CertifiedVAE` inside a larger fit.

        For ``set_callbacks`` of scikit-learn 1.9: on a search over pipelines it
        gathers what `history_` of each VAE holds, margins among it. scikit-learn's
        own ScoringMonitor logs no score in fits without `y`.

        See Also
        --------
        sklearn.callback.ScoringMonitor : Documents `get_logs`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvaecert import CertifiedVAE, GMMTeacher
        >>> from skvaecert.callbacks import HistoryMonitor
        >>> monitor = HistoryMonitor()
        >>> vae = CertifiedVAE(GMMTeacher(n_components=3), max_epochs=3, device="cpu")
        >>> vae = vae.set_callbacks(monitor).fit(load_iris().data)
        >>> [row["epoch"] for row in monitor.get_logs().data]
        [1, 2, 3]
        """

        # Reaches the estimators inside a search or a pipeline.
        max_propagation_depth = None

        def __init__(self) -> None:
            super().__init__(scoring=_last_epoch)

        def on_fit_task_end(
            self,
            estimator: Any,
            context: Any,
            *,
            X: Any = None,
            fitted_estimator: Any = None,
        ) -> None:
            """Log an epoch.

            Parameters
            ----------
            estimator : estimator
                In whose fit a task has ended.
            context : sklearn.callback.CallbackContext
                Of the task.
            X : array-like
                Training rows.
            fitted_estimator : estimator or None
                The VAE as it is; None where there is nothing to log.
            """
            if not hasattr(fitted_estimator, "history_"):
                return
            # Set up for the outermost estimator only; and any y will do, but not none.
            self.setup(estimator, context)
            super().on_fit_task_end(
                estimator, context, X=X, y=(), fitted_estimator=fitted_estimator
            )
            self.teardown(estimator, context)
