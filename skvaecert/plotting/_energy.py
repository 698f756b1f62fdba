"""Margin against energy."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skvaecert.metrics import collapse_margin, margin_energy_path, teacher_information
from skvaecert.plotting._style import axes_for, read_means
from skvaecert.simplex import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MarginEnergyDisplay"]


class MarginEnergyDisplay:
    """Margin against energy: the scaled analytic code, and where a model stands.

    The curve is that of the codes lambda z*, which use only the dimensions that the
    witness sees. The dot is the model. The ring at the same height counts only the
    energy in the dimensions of the witness; the difference goes into the free
    dimensions. A ring left of the curve is cheaper than the scaled analytic code. This
    is possible, because that code is not the cheapest for its margin.

    Parameters
    ----------
    path_energy : array-like of shape (n_points,)
        Energy along the path, nats per sample.
    path_margin : array-like of shape (n_points,)
        Margin along the path, nats.
    energy : float
        Of the model's means, sum_i p_i ||mu_i||^2 / 2, nats per sample.
    protected_energy : float
        The part of it in the dimensions that the witness sees.
    margin : float
        Of the model, nats.
    teacher_information : float
        I_T on the same samples, nats.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.
    point_ : matplotlib Line2D
        The model, with all of its energy.
    ring_ : matplotlib Line2D
        The model, with the energy that the witness sees.

    See Also
    --------
    skvaecert.metrics.margin_energy_path : Computes the curve.

    References
    ----------
    Theory section 3; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.plotting import MarginEnergyDisplay
    >>> display = MarginEnergyDisplay(
    ...     path_energy=[0, 0.15, 0.6], path_margin=[0, 0.3, 0.37], energy=0.4,
    ...     protected_energy=0.3, margin=0.3, teacher_information=0.37)
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        path_energy: ArrayLike,
        path_margin: ArrayLike,
        energy: float,
        protected_energy: float,
        margin: float,
        teacher_information: float,
    ) -> None:
        self.path_energy = np.asarray(path_energy)
        self.path_margin = np.asarray(path_margin)
        self.energy = energy
        self.protected_energy = protected_energy
        self.margin = margin
        self.teacher_information = teacher_information

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw where a fitted estimator stands on some samples.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted; the witness is the fixed simplex.
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        MarginEnergyDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator is not fitted or lacks that witness, or if samples or
            posteriors are not valid.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "witness_scale_"):
            raise ValueError(
                "estimator must be a CertifiedVAE or a CollapseCertifier whose witness "
                f"is the fixed simplex, got {type(estimator).__name__}."
            )
        mean, proba, witness = read_means(estimator, X, teacher_proba)
        path = margin_energy_path(proba, estimator.witness_scale_)
        display = cls(
            path_energy=path.energy,
            path_margin=path.margin,
            energy=_energy(mean),
            # S^T S is K / (K - 1) times the projection (theory section 1).
            protected_energy=(1 - 1 / proba.shape[1])
            * _energy(mean @ estimator.vertices_.T),
            margin=collapse_margin(proba, witness.log_proba(mean)),
            teacher_information=teacher_information(proba),
        )
        return display.plot(**kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curve and the model.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Passed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginEnergyDisplay
            This display.
        """
        ax = axes_for(ax)
        most: dict[str, Any] = {
            "linestyle": "--",
            "label": "teacher information: the most there is",
        }
        ax.axhline(self.teacher_information, color="0.4", **most)
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant code")
        (self.line_,) = ax.plot(
            self.path_energy,
            self.path_margin,
            **{"label": "analytic code, scaled from 0 to 1"} | line_kwargs,
        )
        self._plot_model(ax)
        ax.legend(frameon=False, fontsize="small")
        ax.set(xlabel="energy (nats per sample)", ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_model(self, ax: "Axes") -> None:
        both = [self.protected_energy, self.energy]
        ax.plot(both, [self.margin] * 2, color="C3", linewidth=1)
        look: dict[str, Any] = {"color": "C3", "marker": "o", "linestyle": "none"}
        (self.ring_,) = ax.plot(
            both[:1],
            [self.margin],
            **look | {"fillstyle": "none", "markersize": 9},
            label="this model, in the dimensions of the witness",
        )
        (self.point_,) = ax.plot(
            both[1:], [self.margin], **look, label="this model, in all dimensions"
        )


def _energy(codes: Floats) -> float:
    return float((codes**2).sum(axis=1).mean() / 2)
