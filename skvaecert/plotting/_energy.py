"""Margin against energy."""

from __future__ import annotations

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
    """Margin against energy: the scaled analytic code, and the model.

    The energy is half the mean squared norm of the latent means. The curve shows the
    codes lambda z*, the analytic code z* scaled by lambda. They use only the dimensions
    that the witness reads. The dot is the model with its whole energy. The ring at the
    same height counts only the energy in the dimensions of the witness. The difference
    is in the free dimensions. A model whose ring is left of the curve needs less energy
    than the scaled analytic code. This is possible, because that code is not the
    cheapest for its margin.

    Parameters
    ----------
    path_energy : array-like of shape (n_points,)
        Energy along the curve in nats per sample.
    path_margin : array-like of shape (n_points,)
        Margin along the curve in nats.
    energy : float
        Energy of the model's latent means, sum_i p_i ||mu_i||^2 / 2, in nats per
        sample.
    protected_energy : float
        Part of this energy in the dimensions that the witness reads.
    margin : float
        Margin of the model in nats.
    teacher_information : float
        Teacher information I_T on the same samples in nats.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.
    point_ : matplotlib Line2D
        The dot: the model with its whole energy.
    ring_ : matplotlib Line2D
        The ring: the model with the energy in the dimensions of the witness.

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
        """Draw a fitted estimator on samples.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted. The witness must be the fixed simplex.
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        MarginEnergyDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If the estimator is not fitted or has another witness, or if samples or
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
            # S^T S is K / (K - 1) times the projection on the witness's dimensions
            # (theory section 1).
            protected_energy=(1 - 1 / proba.shape[1])
            * _energy(mean @ estimator.vertices_.T),
            margin=collapse_margin(proba, witness.log_proba(mean)),
            teacher_information=teacher_information(proba),
        )
        return display.plot(**kwargs)

    def plot(self, ax: Axes | None = None, **line_kwargs: Any) -> Self:
        """Draw the curve and the model.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **line_kwargs : dict
            Keyword arguments to be passed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginEnergyDisplay
            Object that stores the computed values.
        """
        title = (
            f"This model reaches {self.margin:.3g} of {self.teacher_information:.3g} "
            f"nats of margin with {self.energy:.3g} nats of energy"
        )
        ax = axes_for(ax, title)
        most: dict[str, Any] = {
            "linestyle": "--",
            "label": "teacher information: the largest possible margin",
        }
        ax.axhline(self.teacher_information, color="0.4", **most)
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant mean")
        (self.line_,) = ax.plot(
            self.path_energy,
            self.path_margin,
            **{"label": "analytic code, scaled from 0 to 1"} | line_kwargs,
        )
        self._plot_model(ax)
        ax.legend(frameon=False, fontsize="small")
        ax.set(
            xlabel="energy of the latent means (nats per sample)",
            ylabel="margin (nats)",
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_model(self, ax: Axes) -> None:
        both = [self.protected_energy, self.energy]
        ax.plot(both, [self.margin] * 2, color="C3", linewidth=1)
        look: dict[str, Any] = {"color": "C3", "marker": "o", "linestyle": "none"}
        (self.ring_,) = ax.plot(
            both[:1],
            [self.margin],
            **look | {"fillstyle": "none", "markersize": 9},
            label="this model: energy in the witness's dimensions",
        )
        (self.point_,) = ax.plot(
            both[1:],
            [self.margin],
            **look,
            label="this model: energy in all dimensions",
        )


def _energy(codes: Floats) -> float:
    return float((codes**2).sum(axis=1).mean() / 2)
