"""Forecast of margin and energy, and of collapse without alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.forecast import ForecastCurve
from skvaecert.plotting._style import axes_for, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ForecastDisplay"]


class ForecastDisplay:
    """Forecast of margin and energy against alignment_weight / kl_weight.

    The margin, on the left axis, rises from that of a constant mean to the teacher
    information. The energy, on the right axis, is the price that the latent means pay
    for the margin. A dot on each curve marks the weights of the estimator, or the ratio
    of weights that ``alignment_weight="auto"`` needs for its target. The legend's title
    states the forecast of collapse without alignment.

    Parameters
    ----------
    forecast : ForecastCurve
        Result of :meth:`skvaecert.CertifiedVAE.forecast`, with at least one finite
        ratio above 0. Other ratios have no place on the logarithmic axis and are left
        out.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the margin.
    energy_ax_ : matplotlib Axes
        Axes with the energy, which share the ratios.
    figure_ : matplotlib Figure
        Figure containing both axes.
    margin_line_, energy_line_ : matplotlib Line2D
        The curves.
    point_ : matplotlib Line2D or None
        The dot on the margin, or None if the ratio has no place on the axis.

    See Also
    --------
    CertifiedVAE : Its method `forecast` computes the values.

    Examples
    --------
    >>> from skvaecert.forecast import ForecastCurve
    >>> from skvaecert.plotting import ForecastDisplay
    >>> forecast = ForecastCurve(
    ...     ratio=[0.1, 1, 10], margin=[0.1, 0.6, 0.9], energy=[0.1, 0.8, 2.0],
    ...     teacher_information=1.0, operating_ratio=1, operating_margin=0.6,
    ...     operating_energy=0.8, target_margin=None, kl_weight=4.0,
    ...     collapse_threshold=9.5, linear_information=2.5)
    >>> ForecastDisplay(forecast).plot().ax_.get_ylabel()
    'forecast margin (nats)'
    """

    def __init__(self, forecast: ForecastCurve) -> None:
        self.forecast = forecast

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
        """Compute a forecast and draw it. An unfitted estimator stays unfitted.

        Parameters
        ----------
        estimator : CertifiedVAE
            Fitted or not.
        X : array-like of shape (n_samples, n_features)
            Samples.
        ratio : array-like of shape (n_ratios,), default=None
            As in :meth:`skvaecert.CertifiedVAE.forecast`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        ForecastDisplay
            Object that stores the computed values.
        """
        forecast = estimator.forecast(X, ratio=ratio, teacher_proba=teacher_proba)
        return cls(forecast).plot(**kwargs)

    def plot(self, ax: Axes | None = None, **line_kwargs: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **line_kwargs : dict
            Keyword arguments to be passed to matplotlib's `plot` for the margin.

        Returns
        -------
        ForecastDisplay
            Object that stores the computed values.
        """
        self.ax_ = ax = axes_for(ax, self._title)
        self.energy_ax_, self.figure_ = ax.twinx(), ax.figure
        ax.axhline(0, color="0.2", linewidth=1)
        information = self.forecast.teacher_information
        ax.axhline(
            information, color="0.4", linestyle="--", label="teacher information"
        )
        self._draw_curves(**line_kwargs)
        self._draw_point()
        ax.set(
            xscale="log",
            xlabel="ratio alignment_weight / kl_weight",
            ylabel="forecast margin (nats)",
        )
        self.energy_ax_.set_ylabel("energy of the latent means (nats)", color="C1")
        self.energy_ax_.tick_params(axis="y", colors="C1")
        # Put both zeros at the same height.
        (low, high), most = ax.get_ylim(), self.energy_ax_.get_ylim()[1]
        self.energy_ax_.set_ylim(most * low / high, most)
        handles = [*ax.get_legend_handles_labels()[0], self.energy_line_]
        note = _without_alignment(self.forecast)
        legend_above(ax, handles=handles, ncols=2, title=note, alignment="left")
        return self

    @property
    def _title(self) -> str:
        forecast = self.forecast
        if not _has_place(forecast.operating_ratio):
            return "Forecast of margin and energy"
        return (
            f"Forecast: margin {forecast.operating_margin:.3g} of "
            f"{forecast.teacher_information:.3g} nats at ratio "
            f"{forecast.operating_ratio:.3g}"
        )

    def _draw_curves(self, **line_kwargs: Any) -> None:
        ratio, margin, energy = map(
            np.asarray,
            (self.forecast.ratio, self.forecast.margin, self.forecast.energy),
        )
        # The axis is logarithmic: ratio 0 and infinity cannot be drawn.
        shown = _has_place(ratio)
        (self.margin_line_,) = self.ax_.plot(
            ratio[shown],
            margin[shown],
            **{"label": "margin", "color": "C0"} | line_kwargs,
        )
        (self.energy_line_,) = self.energy_ax_.plot(
            ratio[shown], energy[shown], color="C1", linestyle="-.", label="energy"
        )

    def _draw_point(self) -> None:
        """Mark the ratio of the weights, if it has a place on the axis."""
        self.point_ = None
        forecast = self.forecast
        if not _has_place(forecast.operating_ratio):
            return
        target = forecast.target_margin
        whose = "these weights" if target is None else f"for a margin of {target:.0%}"
        label = f"{whose}: ratio {forecast.operating_ratio:.3g}"
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


def _has_place(ratio: Any) -> Any:
    """Return whether ratios have a place on a logarithmic axis."""
    return (np.asarray(ratio) > 0) & np.isfinite(ratio)


def _without_alignment(forecast: ForecastCurve) -> str:
    threshold, kept = forecast.collapse_threshold, forecast.linear_information
    below = forecast.kl_weight < threshold
    # The Bernoulli likelihood, where collapse is a local optimum (theory section 18).
    if kept is None:
        outcome = f"collapse is {'no' if below else 'a local'} optimum"
    else:
        outcome = f"a linear VAE {f'keeps {kept:.3g} nats' if below else 'collapses'}"
    side = "below" if below else "not below"
    return (
        f"Without alignment, {outcome}:\n"
        f"kl_weight {forecast.kl_weight:.3g} is {side} the threshold {threshold:.3g}"
    )
