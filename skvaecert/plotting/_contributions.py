"""Contributions of samples or clusters to the margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.metrics import (
    component_contributions,
    component_information,
    margin_contributions,
)
from skvaecert.plotting._style import (
    area_style,
    array_or_none,
    axes_for,
    legend_above,
    read_means,
    whole_numbers,
)
from skvaecert.simplex import Floats, check_sample_weight

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ContributionDisplay"]

_MOST_BINS = 50


class ContributionDisplay:
    """Contribution of each sample, or of each cluster of the teacher, to the margin.

    The margin G is the mean of the contributions g_i of the samples, and the sum of the
    contributions G_k of the clusters. For samples below 0, the witness predicts the
    teacher's posterior worse than the mean teacher does.

    Parameters
    ----------
    contributions : array-like of shape (n_samples,)
        Contributions g_i of the samples in nats.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, which are normalized to sum 1. If None, the
        samples are equally weighted.
    component_contributions : array-like of shape (n_components,), default=None
        Contributions G_k of the clusters in nats.
    component_information : array-like of shape (n_components,), default=None
        Information I_k of the clusters in nats: the value that G_k has if the witness
        is the teacher.

    Attributes
    ----------
    margin : float
        Weighted mean of the contributions in nats.
    share_below : float
        Weighted share of samples with a contribution below 0, from 0 to 1.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.
    bars_ : matplotlib BarContainer
        The bars.

    See Also
    --------
    skvaecert.metrics.margin_contributions : Computes the contributions of samples.
    skvaecert.metrics.component_contributions : Computes those of clusters.

    References
    ----------
    Theory section 2.

    Examples
    --------
    >>> from skvaecert.plotting import ContributionDisplay
    >>> display = ContributionDisplay([0.9, 0.6, -0.3]).plot()
    >>> round(display.margin, 2), round(display.share_below, 2)
    (0.4, 0.33)
    >>> display.ax_.get_xlabel()
    'contribution of a sample to the margin (nats)'
    """

    def __init__(
        self,
        contributions: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        component_contributions: ArrayLike | None = None,
        component_information: ArrayLike | None = None,
    ) -> None:
        self.contributions = np.asarray(contributions, dtype=np.float64)
        weight = check_sample_weight(sample_weight, len(self.contributions))
        self.sample_weight = weight
        self.component_contributions = array_or_none(component_contributions)
        self.component_information = array_or_none(component_information)
        self.margin = float(weight @ self.contributions)
        self.share_below = float(weight[self.contributions < 0].sum())

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the contributions of samples.

        Parameters
        ----------
        estimator : CollapseCertifier or CertifiedVAE
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. If None, the samples are equally
            weighted.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        ContributionDisplay
            Object that stores the computed values.
        """
        mean, proba, witness = read_means(estimator, X, teacher_proba)
        log_q = witness.log_proba(mean)
        display = cls(
            margin_contributions(proba, log_q, sample_weight),
            sample_weight=sample_weight,
            component_contributions=component_contributions(
                proba, log_q, sample_weight
            ),
            component_information=component_information(proba, sample_weight),
        )
        return display.plot(**kwargs)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        kind: Literal["histogram", "components"] = "histogram",
        **kwargs: Any,
    ) -> Self:
        """Draw the contributions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        kind : {"histogram", "components"}, default="histogram"
            A histogram over the samples, or a bar for each cluster of the teacher, next
            to its information.
        **kwargs : dict
            Keyword arguments to be passed to matplotlib's `bar`. The colors are fixed.

        Returns
        -------
        ContributionDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If `kind` is not one of these options, or there are no values of clusters.
        """
        if kind not in ("histogram", "components"):
            raise ValueError(f"kind must be 'histogram' or 'components', got {kind!r}.")
        if kind == "components" and self.component_contributions is None:
            raise ValueError(
                "component_contributions must be given for kind='components', got "
                "None. Use from_estimator, or metrics.component_contributions."
            )
        title = (
            f"What each cluster adds to the margin of {self.margin:.3g} nats"
            if kind == "components"
            else f"Margin {self.margin:.3g} nats: "
            f"{self.share_below:.1%} of samples lower it"
        )
        self.ax_ = axes_for(ax, title)
        self.figure_ = self.ax_.figure
        draw = self._draw_components if kind == "components" else self._draw_histogram
        draw(**kwargs)
        return self

    def _draw_histogram(self, **kwargs: Any) -> None:
        edges = _edges_with_zero(self.contributions)
        share, _ = np.histogram(self.contributions, edges, weights=self.sample_weight)
        # Rounding may put the edge at 0 slightly below 0.
        below = edges[:-1] < -1e-9 * (edges[1] - edges[0])
        self.bars_ = self.ax_.bar(
            edges[:-1], 100 * share, np.diff(edges), align="edge", **kwargs
        )
        for bar, is_below in zip(self.bars_, below, strict=True):
            bar.set(**area_style(below=bool(is_below)))
        self.ax_.axvline(self.margin, color="0.1", linestyle="--", label=self._mean)
        self.ax_.set(
            xlabel="contribution of a sample to the margin (nats)",
            ylabel="share of samples (%)",
        )
        self._legend(
            (f"{1 - self.share_below:.1%} of samples at 0 or above", False),
            (f"{self.share_below:.1%} of samples below 0", True),
        )

    def _draw_components(self, **kwargs: Any) -> None:
        values = np.asarray(self.component_contributions)
        places = np.arange(len(values))
        if self.component_information is not None:
            # Drawn first, so that the narrower bars are in front.
            look: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.3"}
            self.ax_.bar(
                places,
                self.component_information,
                label="contribution if the witness were the teacher",
                **look,
            )
        self.bars_ = self.ax_.bar(places, values, 0.5, **kwargs)
        for bar, value in zip(self.bars_, values, strict=True):
            bar.set(**area_style(below=bool(value < 0)))
        self.ax_.axhline(0, color="0.2", linewidth=1)
        self.ax_.set(
            xlabel="teacher's cluster", ylabel="contribution to the margin (nats)"
        )
        self._legend((f"contribution, {self.margin:.3g} nats in sum", False))
        whole_numbers(self.ax_)

    def _legend(self, *fills: tuple[str, bool]) -> None:
        """Draw a legend of lines and fills above the axes."""
        from matplotlib.patches import Patch

        lines, _ = self.ax_.get_legend_handles_labels()
        patches = [
            Patch(label=text, **area_style(below=below)) for text, below in fills
        ]
        legend_above(self.ax_, handles=[*lines, *patches])

    @property
    def _mean(self) -> str:
        return f"mean: the margin, {self.margin:.3g} nats"


def _edges_with_zero(values: Floats) -> Floats:
    """Return edges of bins, with 0 among them: no bin has samples of both signs."""
    n_bins = min(len(np.histogram_bin_edges(values, "auto")), _MOST_BINS)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    # If all values are 0, as for uniform posteriors, any width will do.
    width = (high - low) / n_bins or 1.0
    first, last = np.floor(low / width), np.ceil(high / width)
    return np.asarray(width * np.arange(first, max(last, first + 1) + 1))
