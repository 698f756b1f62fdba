"""Margin during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import axes_for, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MarginHistoryDisplay"]


class MarginHistoryDisplay:
    """Margin after each epoch, between 0 and the teacher information.

    Above the zero line, the latent mean cannot be constant. The line at the teacher
    information is the largest possible margin. A dotted vertical line marks each change
    of the weights, where a warm start began.

    Parameters
    ----------
    history : sequence of dict
        One dict per epoch, with "epoch", "margin", "teacher_information", "kl_weight"
        and "alignment_weight", as in the attribute `history_` of :class:`CertifiedVAE`.

    Attributes
    ----------
    epoch, margin, teacher_information : ndarray of shape (n_epochs,)
        The values drawn. The last two are in nats.
    changes : ndarray of shape (n_changes,)
        Epochs after which the weights changed.
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.

    Examples
    --------
    >>> from skvaecert.plotting import MarginHistoryDisplay
    >>> weights = {"kl_weight": 1.0, "alignment_weight": 10.0}
    >>> history = [
    ...     {"epoch": i, "margin": margin, "teacher_information": 1.0, **weights}
    ...     for i, margin in enumerate([-0.1, 0.5, 0.9])]
    >>> MarginHistoryDisplay(history).plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(self, history: Sequence[Mapping[str, float]]) -> None:
        self.epoch, self.margin, self.teacher_information = (
            np.array([record[name] for record in history])
            for name in ("epoch", "margin", "teacher_information")
        )
        names = "kl_weight", "alignment_weight"
        weights = np.array([[record[name] for name in names] for record in history])
        changed = (weights[1:] != weights[:-1]).any(axis=1)
        self.changes = self.epoch[:-1][changed]

    @classmethod
    def from_estimator(cls, estimator: Any, **kwargs: Any) -> Self:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted. For a certifier, the history of its encoder is drawn.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        MarginHistoryDisplay
            Object that stores the computed values.
        """
        check_is_fitted(estimator)
        encoder = getattr(estimator, "estimator_", estimator)
        if not hasattr(encoder, "history_"):
            raise ValueError(
                "estimator must have a history_ of its training, as CertifiedVAE has, "
                f"got {type(encoder).__name__}."
            )
        return cls(encoder.history_).plot(**kwargs)

    def plot(self, ax: Axes | None = None, **line_kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **line_kwargs : dict
            Keyword arguments to be passed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginHistoryDisplay
            Object that stores the computed values.
        """
        is_new = ax is None
        title = (
            f"Margin {self.margin[-1]:.3g} of at most "
            f"{self.teacher_information[-1]:.3g} nats after {self.epoch[-1]} epochs"
        )
        ax = axes_for(ax, title)
        for change in self.changes:
            # Between the last epoch with the old weights and the first with new ones.
            ax.axvline(change + 0.5, color="0.6", linestyle=":", linewidth=1)
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant mean")
        ax.plot(
            self.epoch,
            self.teacher_information,
            color="0.4",
            linestyle="--",
            label="teacher information: the largest possible margin",
        )
        (self.line_,) = ax.plot(
            self.epoch, self.margin, **{"label": "margin"} | line_kwargs
        )
        ax.set(xlabel="epoch", ylabel="margin (nats)")
        # On given axes, several histories may share one legend: leave it to the user.
        if is_new:
            legend_above(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self
