"""Callbacks for users: one for skorch, one for scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from skorch import NeuralNet
from skorch.callbacks import Callback

from skvaecert.bounds import betting_bound

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
    "confidence": [Interval(Real, 0, 1, closed="neither"), None],
}


class StopWhenCertified(Callback):
    """Stop the training when the relative margin has reached a target for some epochs.

    Use it as ``CertifiedVAE(callbacks=[StopWhenCertified()])``. It reads the margin
    that is recorded after each epoch. The certificate is computed after the fit.

    With `confidence`, it reads a lower bound on the margin of the population instead.
    For epoch t, this bound is recorded as "validation_margin_low". It is computed from
    the teacher's posteriors T and the witness's probabilities q of the validation
    samples::

        betting_bound(T, log q, confidence=1 - (1 - confidence) / (t (t + 1)))

    Parameters
    ----------
    relative_margin : float, default=0.6
        Target margin as a fraction of the teacher information, in (0, 1).
    n_epochs : int, default=5
        Number of consecutive epochs that must reach the target, at least 1.
    monitor : {"margin", "validation_margin"}, default="margin"
        The margin of training samples, or that of the samples that
        `validation_fraction` holds out.
    patience : int or None, default=None
        If given, also wait until the ELBO of held-out samples has not increased for
        this number of epochs, at least 1. This requires a `validation_fraction`.
    confidence : float or None, default=None
        Confidence level in (0, 1). If given, the bound replaces the margin that
        `monitor` names, and must reach a fraction of "validation_information". This
        requires a `validation_fraction`.

    See Also
    --------
    skvaecert.bounds.betting_bound : Computes the bound; documents the margin of the
        population.
    skorch.callbacks.EarlyStopping : Stops on ``"validation_loss"`` alone. With
        ``load_best=True``, it restores the weights of the best epoch.

    Notes
    -----
    *Guarantee of* `confidence`. Assume that the validation samples are drawn
    independently from one population, and that neither the teacher nor the weights
    depend on them. Then, with probability `confidence` or more, the bound of every
    epoch is at most the margin that the population has with the weights of that epoch
    (for the floored witness, see :func:`~skvaecert.bounds.betting_bound`). This holds
    jointly for all epochs of all warm fits and calls of `partial_fit`. So where the
    training stops, this margin is at least `relative_margin` times the
    "validation_information".

    *What is refused.* The validation samples must control nothing else. With
    `confidence`, a fit raises a ValueError in these cases: for
    ``alignment_weight="auto"``; for `patience`; for other callbacks whose `monitor` is
    a validation value or a function; and in a warm fit, if earlier epochs were trained
    without this callback or with other validation samples.

    *What is not detected.* Other callbacks may read validation values. A teacher that
    was fitted before may depend on the samples. You may change parameters between fits
    because of results on these samples. Each fit from scratch starts a new count, so
    the guarantee does not cover the best of several fits.

    References
    ----------
    Theory section 19.

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
    >>> stop = StopWhenCertified(0.1, confidence=0.95)
    >>> vae = vae.set_params(validation_fraction=0.5, callbacks=[stop])
    >>> vae.fit(load_iris().data).history_[-1]["validation_margin_low"] > 0
    True
    """

    def __init__(
        self,
        relative_margin: float = 0.6,
        n_epochs: int = 5,
        monitor: Literal["margin", "validation_margin"] = "margin",
        patience: int | None = None,
        confidence: float | None = None,
    ) -> None:
        self.relative_margin = relative_margin
        self.n_epochs = n_epochs
        self.monitor = monitor
        self.patience = patience
        self.confidence = confidence

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Check the parameters and reset the counts.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net that is trained.
        **kwargs : Any
            Further arguments of skorch.

        Raises
        ------
        ValueError
            If a parameter is not valid, if there are no validation samples to read, or
            if `confidence` is given and the samples control more than this callback.
        """
        name = type(self).__name__
        validate_parameter_constraints(_CONSTRAINTS, self.get_params(), name)
        if _reads_validation(self) and _validation(net).watched_ is None:
            raise ValueError(
                "validation_fraction of the CertifiedVAE must be given for "
                f"{name}(monitor={self.monitor!r}, patience={self.patience}, "
                f"confidence={self.confidence}), got None. Set validation_fraction, "
                "for example to 0.1."
            )
        if self.confidence is not None:
            for refusal in self._refusals(net):
                raise ValueError(refusal)
            self.samples_ = _validation(net).watched_.checksum()
        self.n_reached_ = self.n_waited_ = 0
        self.best_ = math.inf

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Update the counts, and stop the training if they are reached.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net that is trained.
        **kwargs : Any
            Further arguments of skorch.

        Raises
        ------
        KeyboardInterrupt
            To stop the training, as callbacks of skorch do.
        """
        if self.confidence is not None:
            self._record_bound(net, self.confidence)
        self._count(net.history[-1])
        if self.n_reached_ >= self.n_epochs and self.n_waited_ >= (self.patience or 0):
            raise KeyboardInterrupt

    def _record_bound(self, net: NeuralNet, confidence: float) -> None:
        """Record the bound, at a confidence that is spent over looks (section 19)."""
        # A warm fit that fails restores the history, but its looks still count. A
        # saved net has its history only.
        look = max(getattr(net, "n_looks_", 0) + 1, len(net.history))
        net.n_looks_ = look
        monitor = _validation(net)
        # In float32 a posterior can be 0, which the bound does not accept.
        proba = np.maximum(monitor.watched_.teacher_proba, np.finfo(np.float32).tiny)
        error = (1 - confidence) / (look * (look + 1))
        bound = betting_bound(proba, monitor.log_q_, confidence=1 - error)
        net.history.record("validation_margin_low", bound)
        net.history.record("validation_samples", self.samples_)

    def _refusals(self, net: NeuralNet) -> Iterator[str]:
        """Yield the reasons why the guarantee does not hold, each with a way out."""
        described = f"StopWhenCertified(confidence={self.confidence})"
        alone = "the validation samples must control nothing else"
        if self.patience is not None:
            yield (
                f"patience must be None for {described}, got {self.patience}: {alone}. "
                "Leave out patience or confidence."
            )
        if net.criterion_.guard is not None:
            yield (
                f"alignment_weight must be a number for {described}, got 'auto', which "
                "adapts the weight to the margin of the validation samples: "
                f"{alone}. Pass a number, or leave out confidence."
            )
        for _, other in net.callbacks_:
            if other is not self and _reads_validation(other):
                yield (
                    f"callbacks must not have {type(other).__name__} on validation "
                    f"values together with {described}: {alone}. Let it monitor "
                    "'train_loss' or 'margin', or leave out confidence."
                )
        earlier = {row.get("validation_samples") for row in net.history}
        if earlier - {_validation(net).watched_.checksum()}:
            yield (
                f"callbacks must contain {described} from the first epoch on, with the "
                "same validation samples; got a fit that continues epochs without it "
                "or with others. Fit from scratch, or leave out confidence."
            )

    def _count(self, row: dict[str, float]) -> None:
        monitor = self.monitor if self.confidence is None else "validation_margin_low"
        held_out = monitor.startswith("validation")
        name = "validation_information" if held_out else "teacher_information"
        # Without teacher information there is no margin to reach.
        reached = row[monitor] >= self.relative_margin * row[name] > 0
        self.n_reached_ = self.n_reached_ + 1 if reached else 0
        loss = row.get("validation_loss", math.inf)
        self.n_waited_ = 0 if loss < self.best_ else self.n_waited_ + 1
        self.best_ = min(loss, self.best_)


def _validation(net: NeuralNet) -> Any:
    """Return the net's monitor of validation samples."""
    return dict(net.callbacks_)["validation"]


def _reads_validation(callback: Callback) -> bool:
    if isinstance(callback, StopWhenCertified):
        reads = (callback.patience, callback.confidence) != (None, None)
        return reads or callback.monitor == "validation_margin"
    monitor = getattr(callback, "monitor", None)
    # A function may read anything.
    return callable(monitor) or "validation_" in str(monitor)


def _last_epoch(estimator: Any, X: Any, y: Any, **metadata: Any) -> dict[str, float]:
    return estimator.history_[-1]


if ScoringMonitor is None:

    class HistoryMonitor:
        """Placeholder: HistoryMonitor requires scikit-learn 1.9."""

        def __init__(self) -> None:
            raise ImportError(
                "HistoryMonitor requires scikit-learn 1.9 or later, because it extends "
                "a callback of that version. `history_` of a fitted CertifiedVAE has "
                "the same values."
            )

else:

    class HistoryMonitor(ScoringMonitor):  # type: ignore[no-redef]
        """Log each epoch of each :class:`CertifiedVAE` in a search or pipeline.

        Use it with ``set_callbacks`` of scikit-learn 1.9. The log has the entries of
        `history_` of each VAE, such as the margin. Unlike scikit-learn's
        ScoringMonitor, it also logs fits without `y`.

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

        # Also reach estimators inside a search or a pipeline.
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
                Estimator in whose fit a task has ended.
            context : sklearn.callback.CallbackContext
                Context of the task.
            X : array-like
                Training samples.
            fitted_estimator : estimator or None
                The VAE after this epoch, or None if there is nothing to log.
            """
            if not hasattr(fitted_estimator, "history_"):
                return
            # scikit-learn calls setup for the outermost estimator only, and logs
            # nothing if y is None.
            self.setup(estimator, context)
            super().on_fit_task_end(
                estimator, context, X=X, y=(), fitted_estimator=fitted_estimator
            )
            self.teardown(estimator, context)
