"""Margin and loss over epochs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MarginHistoryDisplay"]


class MarginHistoryDisplay:
    """Margin after each epoch, between 0 and the teacher information.

    Above the zero line the encoder mean cannot be constant; the line at the teacher
    information is the most that can be reached. A dotted vertical line marks every
    change of the weights, where a warm start began.

    Parameters
    ----------
    epoch : array-like of shape (n_epochs,)
        Numbers of the epochs.
    margin : array-like of shape (n_epochs,)
        Margin after each epoch, nats.
    teacher_information : array-like of shape (n_epochs,)
        Teacher information on the rows of the margin, nats.
    changes : array-like of shape (n_changes,), default=()
        Epochs after which weights were changed.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.

    See Also
    --------
    CertifiedVAE : Its `history_` holds the numbers.

    Examples
    --------
    >>> from skvaecert.plotting import MarginHistoryDisplay
    >>> display = MarginHistoryDisplay(
    ...     epoch=[1, 2, 3], margin=[-0.1, 0.5, 0.9], teacher_information=[1, 1, 1])
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        epoch: ArrayLike,
        margin: ArrayLike,
        teacher_information: ArrayLike,
        changes: ArrayLike = (),
    ) -> None:
        self.epoch = np.asarray(epoch)
        self.margin = np.asarray(margin)
        self.teacher_information = np.asarray(teacher_information)
        self.changes = np.asarray(changes)

    @classmethod
    def from_history(
        cls, history: Sequence[Mapping[str, float]], **kwargs: Any
    ) -> Self:
        """Draw a history, as :class:`CertifiedVAE` keeps it in `history_`.

        Parameters
        ----------
        history : sequence of dict
            One an epoch, with "epoch", "margin", "teacher_information", "kl_weight"
            and "alignment_weight".
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginHistoryDisplay
            Drawn.
        """
        weights = [(row["kl_weight"], row["alignment_weight"]) for row in history]
        pairs = zip(history, weights, weights[1:], strict=False)
        display = cls(
            epoch=[row["epoch"] for row in history],
            margin=[row["margin"] for row in history],
            teacher_information=[row["teacher_information"] for row in history],
            changes=[row["epoch"] for row, old, new in pairs if old != new],
        )
        return display.plot(**kwargs)

    @classmethod
    def from_estimator(cls, estimator: Any, **kwargs: Any) -> Self:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted; of a certifier, the encoder's history is drawn.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginHistoryDisplay
            Drawn.
        """
        check_is_fitted(estimator)
        encoder = getattr(estimator, "estimator_", estimator)
        if not hasattr(encoder, "history_"):
            raise ValueError(
                "estimator must have a history_ of its training, as CertifiedVAE has, "
                f"got {type(encoder).__name__}."
            )
        return cls.from_history(encoder.history_, **kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginHistoryDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        for change in self.changes:
            ax.axvline(change + 0.5, color="0.6", linestyle=":", linewidth=1)
        ax.axhline(0, color="0.2", linewidth=1)
        ax.plot(
            self.epoch,
            self.teacher_information,
            color="0.4",
            linestyle="--",
            label="teacher information: the most there is",
        )
        (self.line_,) = ax.plot(
            self.epoch, self.margin, **{"label": "margin"} | line_kwargs
        )
        ax.set(xlabel="epoch", ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self
