"""Margin against energy, trained and forecast."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skvaecert._teacher.posterior import posterior_of
from skvaecert.forecast import ForecastCurve
from skvaecert.metrics import collapse_margin, margin_energy_path, teacher_information
from skvaecert.simplex import Floats, witness_log_proba

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ForecastDisplay", "MarginEnergyDisplay"]


class MarginEnergyDisplay:
    """Margin against energy: the scaled analytic code, and where a model stands.

    The curve is that of the codes lambda z*, which use the dimensions that the witness
    sees and no others. The dot is the model; the ring at the same height counts only
    what it spends on those dimensions, and what lies between the two goes into the
    free ones. Left of the curve a ring is cheaper than the scaled analytic code, which
    is possible: that is not the cheapest code for its margin.

    Parameters
    ----------
    path_energy : array-like of shape (n_points,)
        Energy along the path, nats a sample.
    path_margin : array-like of shape (n_points,)
        Margin along the path, nats.
    energy : float
        Of the model's means, sum_i p_i ||mu_i||^2 / 2, nats a sample.
    protected_energy : float
        The part of it in the dimensions that the witness sees.
    margin : float
        Of the model, nats.
    teacher_information : float
        I_T on the same rows, nats.

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
        The model, with the part that the witness sees.

    See Also
    --------
    skvaecert.metrics.margin_energy_path : Gives the numbers of the curve.

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
        """Draw where a fitted estimator stands on some rows.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginEnergyDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator is not fitted or has no witness, or if rows or posteriors
            are not valid.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "witness_scale_"):
            raise ValueError(
                "estimator must be a CertifiedVAE or a CollapseCertifier, which have a "
                f"witness, got {type(estimator).__name__}."
            )
        mean = np.asarray(estimator.transform(X), dtype=np.float64)
        proba = posterior_of(estimator.teacher_, X, teacher_proba, n_samples=len(mean))
        scale = estimator.witness_scale_
        log_q = witness_log_proba(mean, estimator.vertices_, scale)
        path = margin_energy_path(proba, scale)
        display = cls(
            path_energy=path.energy,
            path_margin=path.margin,
            energy=_energy(mean),
            # S^T S is K / (K - 1) times the projection (theory section 1).
            protected_energy=(1 - 1 / proba.shape[1])
            * _energy(mean @ estimator.vertices_.T),
            margin=collapse_margin(proba, log_q),
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
            Handed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginEnergyDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
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
        ax.set(xlabel="energy (nats a sample)", ylabel="margin (nats)")
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


class ForecastDisplay:
    """Forecast margin and energy against alignment_weight / kl_weight.

    The margin, on the left, rises from that of a constant code to the teacher
    information; the energy, on the right and in another colour, is what the latent
    means pay for it. A dot on each marks the weights of the estimator, or those that
    ``alignment_weight="auto"`` needs for its target.

    Parameters
    ----------
    forecast : ForecastCurve
        From :meth:`skvaecert.CertifiedVAE.forecast`, with at least one finite ratio
        above 0; other ratios have no place on the logarithmic axis and are left out.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the margin.
    energy_ax_ : matplotlib Axes
        Axes with the energy, over the same ratios.
    figure_ : matplotlib Figure
        Figure containing both.
    margin_line_, energy_line_ : matplotlib Line2D
        The curves.
    point_ : matplotlib Line2D or None
        The dot on the margin; None where the weights have no place on the axis.

    See Also
    --------
    CertifiedVAE : Its `forecast` holds the numbers.

    Examples
    --------
    >>> from skvaecert.forecast import ForecastCurve
    >>> from skvaecert.plotting import ForecastDisplay
    >>> forecast = ForecastCurve(
    ...     ratio=[0.1, 1, 10], margin=[0.1, 0.6, 0.9], energy=[0.1, 0.8, 2.0],
    ...     teacher_information=1.0, operating_ratio=1, operating_margin=0.6,
    ...     operating_energy=0.8, target_margin=None)
    >>> ForecastDisplay(forecast).plot().ax_.get_ylabel()
    'forecast margin (nats)'
    """

    def __init__(self, forecast: ForecastCurve) -> None:
        self.forecast = forecast

    @classmethod
    def from_forecast(cls, forecast: ForecastCurve, **kwargs: Any) -> Self:
        """Draw a forecast.

        Parameters
        ----------
        forecast : ForecastCurve
            From :meth:`skvaecert.CertifiedVAE.forecast`.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ForecastDisplay
            Drawn.
        """
        return cls(forecast).plot(**kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        ratio: ArrayLike | None = None,
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Forecast and draw; an unfitted estimator stays unfitted.

        Parameters
        ----------
        estimator : CertifiedVAE
            Fitted or not.
        X : array-like of shape (n_samples, n_features)
            Rows.
        ratio : array-like of shape (n_ratios,), default=None
            As in :meth:`skvaecert.CertifiedVAE.forecast`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ForecastDisplay
            Drawn.
        """
        forecast = estimator.forecast(X, ratio=ratio, teacher_proba=teacher_proba)
        return cls.from_forecast(forecast, **kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the margin.

        Returns
        -------
        ForecastDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        self.ax_, self.energy_ax_, self.figure_ = ax, ax.twinx(), ax.figure
        ax.axhline(0, color="0.2", linewidth=1)
        information = self.forecast.teacher_information
        ax.axhline(
            information, color="0.4", linestyle="--", label="teacher information"
        )
        self._draw_curves(**line_kwargs)
        self._draw_point()
        ax.set(
            xscale="log",
            xlabel="alignment_weight / kl_weight",
            ylabel="forecast margin (nats)",
        )
        self.energy_ax_.set_ylabel("energy (nats)", color="C1")
        self.energy_ax_.tick_params(axis="y", colors="C1")
        # Both zeros at the same height.
        (low, high), most = ax.get_ylim(), self.energy_ax_.get_ylim()[1]
        self.energy_ax_.set_ylim(most * low / high, most)
        handles = [*ax.get_legend_handles_labels()[0], self.energy_line_]
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
        )
        return self

    def _draw_curves(self, **line_kwargs: Any) -> None:
        ratio, margin, energy = map(
            np.asarray,
            (self.forecast.ratio, self.forecast.margin, self.forecast.energy),
        )
        shown = (ratio > 0) & np.isfinite(ratio)
        (self.margin_line_,) = self.ax_.plot(
            ratio[shown],
            margin[shown],
            **{"label": "margin", "color": "C0"} | line_kwargs,
        )
        (self.energy_line_,) = self.energy_ax_.plot(
            ratio[shown], energy[shown], color="C1", label="energy"
        )

    def _draw_point(self) -> None:
        """Mark the weights, if they have a place on a logarithmic axis."""
        self.point_ = None
        forecast = self.forecast
        if not 0 < forecast.operating_ratio < np.inf:
            return
        label = f"these weights: ratio {forecast.operating_ratio:.3g}"
        if forecast.target_margin is not None:
            label = f"for a margin of {forecast.target_margin:.0%}: ratio "
            label += f"{forecast.operating_ratio:.3g}"
        self.ax_.axvline(forecast.operating_ratio, color="0.6", linestyle=":")
        dot: dict[str, Any] = {"marker": "o", "linestyle": "none"}
        (self.point_,) = self.ax_.plot(
            forecast.operating_ratio,
            forecast.operating_margin,
            **dot,
            color="C0",
            label=label,
        )
        self.energy_ax_.plot(
            forecast.operating_ratio, forecast.operating_energy, **dot, color="C1"
        )


def _energy(codes: Floats) -> float:
    return float((codes**2).sum(axis=1).mean() / 2)
