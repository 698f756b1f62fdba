"""Callbacks for users: one for skorch, one for scikit-learn."""

import math
from numbers import Integral, Real
from typing import Any

from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from skorch import NeuralNet
from skorch.callbacks import Callback

try:
    from sklearn.callback import ScoringMonitor
except ImportError:  # before scikit-learn 1.9
    ScoringMonitor = None

__all__ = ["HistoryMonitor", "StopWhenCertified"]

_COUNT = Interval(Integral, 1, None, closed="left")
_CONSTRAINTS = {
    "relative_margin": [Interval(Real, 0, 1, closed="neither")],
    "n_epochs": [_COUNT],
    "monitor": [StrOptions({"margin", "validation_margin"})],
    "patience": [_COUNT, None],
}


class StopWhenCertified(Callback):
    """Stop the training when the relative margin has been reached for some epochs.

    Use it as ``CertifiedVAE(callbacks=[StopWhenCertified()])``. It reads the margin
    that is recorded after each epoch. The certificate is computed after the fit.

    Parameters
    ----------
    relative_margin : float, default=0.6
        Margin to reach, as a fraction of the teacher information, in (0, 1).
    n_epochs : int, default=5
        Number of consecutive epochs that must reach it, at least 1.
    monitor : {"margin", "validation_margin"}, default="margin"
        The margin of training samples, or of samples held out by
        `validation_fraction`.
    patience : int or None, default=None
        If given, stop only if the ELBO of held-out samples has not increased for this
        number of epochs, at least 1. This requires a `validation_fraction`.

    See Also
    --------
    skorch.callbacks.EarlyStopping : Stops on ``"validation_loss"`` alone; with
        ``load_best=True`` it restores the weights of the best epoch.

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

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Check the parameters and reset the counts.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net in training.
        **kwargs : Any
            The other arguments of skorch.
        """
        name = type(self).__name__
        validate_parameter_constraints(_CONSTRAINTS, self.get_params(), name)
        self.n_held_ = self.n_waited_ = 0
        self.best_ = math.inf

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Update the counts, and stop the training if they are reached.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net in training.
        **kwargs : Any
            The other arguments of skorch.

        Raises
        ------
        KeyboardInterrupt
            To stop; this is how callbacks of skorch do it.
        """
        row = net.history[-1]
        if self.monitor not in row or (self.patience and "validation_loss" not in row):
            raise ValueError(
                "validation_fraction of the CertifiedVAE must be given for "
                f"StopWhenCertified(monitor={self.monitor!r}, "
                f"patience={self.patience}), got None. Set it, for example to 0.1."
            )
        self._count(row)
        if self.n_held_ >= self.n_epochs and self.n_waited_ >= (self.patience or 0):
            raise KeyboardInterrupt

    def _count(self, row: dict[str, float]) -> None:
        held_out = self.monitor == "validation_margin"
        name = "validation_information" if held_out else "teacher_information"
        reached = row[self.monitor] >= self.relative_margin * row[name] > 0
        self.n_held_ = self.n_held_ + 1 if reached else 0
        loss = row.get("validation_loss", math.inf)
        self.n_waited_ = 0 if loss < self.best_ else self.n_waited_ + 1
        self.best_ = min(loss, self.best_)


def _last_epoch(estimator: Any, X: Any, y: Any, **metadata: Any) -> dict[str, float]:
    return estimator.history_[-1]


if ScoringMonitor is None:

    class HistoryMonitor:
        """Placeholder: this callback needs scikit-learn 1.9."""

        def __init__(self) -> None:
            raise ImportError(
                "HistoryMonitor needs scikit-learn 1.9 or later, because it extends a "
                "callback of it. `history_` of a fitted CertifiedVAE has the same "
                "values."
            )

else:

    class HistoryMonitor(ScoringMonitor):  # type: ignore[no-redef]
        """Log each epoch of each :class:`CertifiedVAE` in a search or pipeline.

        Use it with ``set_callbacks`` of scikit-learn 1.9. The log has the entries of
        `history_` of each VAE, such as the margin. The ScoringMonitor of scikit-learn
        logs no scores in fits without `y`.

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

        # Reach the estimators in a search or a pipeline.
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
                The estimator in whose fit a task has ended.
            context : sklearn.callback.CallbackContext
                The context of the task.
            X : array-like
                Training samples.
            fitted_estimator : estimator or None
                The VAE after this epoch; None if there is nothing to log.
            """
            if not hasattr(fitted_estimator, "history_"):
                return
            # scikit-learn sets up the outermost estimator only, and logs nothing if y
            # is None.
            self.setup(estimator, context)
            super().on_fit_task_end(
                estimator, context, X=X, y=(), fitted_estimator=fitted_estimator
            )
            self.teardown(estimator, context)
