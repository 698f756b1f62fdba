"""Margin against another score, for the candidates of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import axes_for, legend_above
from skvaecert.simplex import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ParetoDisplay"]


# Lower means include a fold without a value (`LOWEST_SCORE`, -3.4e38).
_LOWEST_VALUE = -1e30

_SCORE_LABELS = {
    "reconstruction": "reconstruction (minus the unexplained share of variance)",
    "elbo": "ELBO (nats per sample)",
    "sampled_information": "information of drawn codes, lower bound (nats)",
}


class ParetoDisplay:
    """Margin against another score, with one dot per candidate of a search.

    Greater is better in both. Filled dots are certified in every fold, hollow dots are
    not. A line connects the candidates that no other candidate beats in both scores. A
    ring marks the chosen candidate.

    Parameters
    ----------
    score : array-like of shape (n_candidates,)
        Means of the score over folds; greater is better. Candidates without a finite
        value are left out.
    margin : array-like of shape (n_candidates,)
        Means of the margin over folds in nats.
    certified : array-like of bool of shape (n_candidates,)
        Whether a candidate is certified in every fold.
    chosen : int, default=None
        Index of the chosen candidate. If None, no ring is drawn.
    score_name : str, default="score"
        Label of the horizontal axis.

    Attributes
    ----------
    front : ndarray of int of shape (n_front,)
        Indices of the candidates on the line, from left to right.
    ax_ : matplotlib Axes
        Axes with the dots.
    figure_ : matplotlib Figure
        Figure containing the dots.
    certified_points_, other_points_ : matplotlib Line2D
        The dots, filled and hollow.
    line_ : matplotlib Line2D
        The Pareto front.
    ring_ : matplotlib Line2D or None
        The ring around the chosen candidate.

    See Also
    --------
    skvaecert.model_selection.BestCertified : Chooses a candidate of such a search.

    Examples
    --------
    >>> from skvaecert.plotting import ParetoDisplay
    >>> display = ParetoDisplay(
    ...     score=[-0.1, -0.2, -0.4, -0.5], margin=[-0.2, 0.7, 0.9, 0.8],
    ...     certified=[False, True, True, True], chosen=1)
    >>> display.front
    array([2, 1, 0])
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        score: ArrayLike,
        margin: ArrayLike,
        certified: ArrayLike,
        chosen: int | None = None,
        score_name: str = "score",
    ) -> None:
        self.score = np.asarray(score, dtype=np.float64)
        self.margin = np.asarray(margin, dtype=np.float64)
        self.certified = np.asarray(certified, dtype=bool)
        self.chosen = chosen
        self.score_name = score_name
        self.front = _pareto_front(self.score, self.margin)

    @classmethod
    def from_search(
        cls, search: Any, *, against: str = "reconstruction", **kwargs: Any
    ) -> Self:
        """Draw the candidates of a fitted search.

        Parameters
        ----------
        search : GridSearchCV or another search
            Fitted with ``scoring=certificate_scorers``, or with a dict that has the
            scores "margin", "certified" and the score named by `against`.
        against : str, default="reconstruction"
            Name of the score on the horizontal axis.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        ParetoDisplay
            Object that stores the computed values.
        """
        check_is_fitted(search)
        names = against, "margin", "certified"
        score, margin, certified = (_mean_score(search, name) for name in names)
        display = cls(
            score=score,
            margin=margin,
            # A mean of 1 over the folds: certified in each of them.
            certified=certified == 1,
            chosen=getattr(search, "best_index_", None),
            score_name=_SCORE_LABELS.get(against, against),
        )
        return display.plot(**kwargs)

    def plot(self, ax: Axes | None = None, **line_kwargs: Any) -> Self:
        """Draw dots, front and ring.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **line_kwargs : dict
            Keyword arguments to be passed to matplotlib's `plot` for the line.

        Returns
        -------
        ParetoDisplay
            Object that stores the computed values.
        """
        n_certified, n_candidates = int(self.certified.sum()), len(self.certified)
        title = f"{n_certified} of {n_candidates} candidates certified in every fold"
        ax = axes_for(ax, title)
        x, y, filled = self.score, self.margin, self.certified
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant mean")
        look: dict[str, Any] = {"color": "0.5", "linestyle": "--", "zorder": 1}
        look |= {"label": "not beaten in both scores"} | line_kwargs
        (self.line_,) = ax.plot(x[self.front], y[self.front], **look)
        dot: dict[str, Any] = {"color": "C0", "marker": "o", "linestyle": "none"}
        (self.certified_points_,) = ax.plot(
            x[filled], y[filled], **dot, label="certified in every fold"
        )
        (self.other_points_,) = ax.plot(
            x[~filled], y[~filled], **dot, fillstyle="none", label="not certified"
        )
        self.ring_ = None
        if self.chosen is not None:
            ring: dict[str, Any] = dot | {"color": "0.1", "fillstyle": "none"}
            best = [x[self.chosen]], [y[self.chosen]]
            (self.ring_,) = ax.plot(*best, **ring, markersize=14, label="chosen")
        legend_above(ax, ncols=2, fontsize="small")
        ax.set(xlabel=self.score_name, ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _mean_score(search: Any, name: str) -> Floats:
    """Return means over folds; NaN if a fit failed or a score had no value."""
    key = f"mean_test_{name}"
    if key not in search.cv_results_:
        raise ValueError(
            f"search must have the score {name!r}, got cv_results_ without {key!r}. "
            "Fit it with scoring=certificate_scorers."
        )
    scores = np.asarray(search.cv_results_[key], dtype=np.float64)
    return np.where(scores > _LOWEST_VALUE, scores, np.nan)


def _pareto_front(score: Floats, margin: Floats) -> NDArray[np.intp]:
    """Return the candidates that no other beats in both, by ascending score."""
    known = np.flatnonzero(np.isfinite(score) & np.isfinite(margin))
    # From the right, keep each candidate that is above all candidates to its right.
    # Of equal scores the highest margin comes first, and the others are beaten.
    order = known[np.lexsort((-margin[known], -score[known]))]
    before = np.maximum.accumulate(np.r_[-np.inf, margin[order]])[:-1]
    return order[margin[order] > before][::-1]
