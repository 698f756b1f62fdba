"""Candidates of a search for a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import axes_for, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TeacherSearchDisplay"]


class TeacherSearchDisplay:
    """Information against energy, with one dot per candidate of a search.

    A good teacher is high up, and not too far to the right. The darker a dot, the
    better its restarts agree. Hollow dots are not admissible: their energy is above the
    budget, or their restarts disagree. A ring marks the chosen candidate.

    Parameters
    ----------
    energy : array-like of shape (n_candidates,)
        Energy of the analytic code at witness scale 1 in nats.
    information : array-like of shape (n_candidates,)
        Teacher information on held-out samples in nats.
    agreement : array-like of shape (n_candidates,)
        Adjusted mutual information between restarts, at most 1.
    usable : array-like of bool of shape (n_candidates,)
        Whether a candidate is admissible.
    chosen : int
        Index of the chosen candidate.
    label : str, default="chosen"
        Label of the chosen candidate in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the dots.
    figure_ : matplotlib Figure
        Figure containing the dots.
    points_ : matplotlib PathCollection
        The admissible candidates.

    See Also
    --------
    GMMTeacher : Its attribute `search_results_` has the values.

    Examples
    --------
    >>> from skvaecert.plotting import TeacherSearchDisplay
    >>> display = TeacherSearchDisplay(
    ...     energy=[10, 20], information=[1.2, 1.9], agreement=[0.9, 0.8],
    ...     usable=[True, True], chosen=1)
    >>> display.plot().ax_.get_ylabel()
    'teacher information on held-out samples (nats)'
    """

    def __init__(
        self,
        *,
        energy: ArrayLike,
        information: ArrayLike,
        agreement: ArrayLike,
        usable: ArrayLike,
        chosen: int,
        label: str = "chosen",
    ) -> None:
        self.energy = np.asarray(energy)
        self.information = np.asarray(information)
        self.agreement = np.asarray(agreement)
        self.usable = np.asarray(usable, dtype=bool)
        self.chosen = chosen
        self.label = label

    @classmethod
    def from_estimator(cls, teacher: Any, **kwargs: Any) -> Self:
        """Draw the search of a fitted teacher.

        Parameters
        ----------
        teacher : GMMTeacher
            Fitted with a list for a parameter. Or a fitted CertifiedVAE or
            CollapseCertifier with such a teacher.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        TeacherSearchDisplay
            Object that stores the computed values.
        """
        check_is_fitted(teacher)
        teacher = getattr(teacher, "teacher_", teacher)
        results = getattr(teacher, "search_results_", None)
        if results is None:
            raise ValueError(
                "teacher must have search_results_, as GMMTeacher has with a list for "
                f"n_components, got {teacher!r} without them."
            )
        chosen = int(results["rank"].argmin())
        names = ("n_components", "pca_components", "covariance_type")
        values = (results[name][chosen] for name in names)
        display = cls(
            **{name: results[name] for name in ("energy", "information", "agreement")},
            usable=results["usable"],
            chosen=chosen,
            # A long line would make the axes narrower.
            label="chosen: {} components,\n{} principal components, {}".format(*values),
        )
        return display.plot(**kwargs)

    def plot(self, ax: Axes | None = None, **scatter_kwargs: Any) -> Self:
        """Draw the dots.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **scatter_kwargs : dict
            Keyword arguments to be passed to matplotlib's `scatter` for the filled
            dots.

        Returns
        -------
        TeacherSearchDisplay
            Object that stores the computed values.
        """
        n_usable, n_candidates = int(self.usable.sum()), len(self.usable)
        title = f"{n_usable} of {n_candidates} candidate teachers are admissible"
        ax = axes_for(ax, title)
        x, y, usable = self.energy, self.information, self.usable
        look = self._colors() | {"edgecolors": "0.2", "linewidths": 0.5}
        if not usable.all():
            ax.scatter(
                x[~usable],
                y[~usable],
                facecolors="none",
                edgecolors="0.6",
                label="not admissible",
            )
        self.points_ = ax.scatter(x[usable], y[usable], **look | scatter_kwargs)
        ring: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": "C3",
            "linewidths": 2,
        }
        best = x[self.chosen], y[self.chosen]
        ax.scatter(*best, s=160, label=self.label, **ring)
        legend_above(ax)
        label = "agreement of restarts (1: the same clusters)"
        ax.figure.colorbar(self.points_, ax=ax, label=label)
        ax.set(
            xlabel="energy of the analytic code at witness scale 1 (nats)",
            ylabel="teacher information on held-out samples (nats)",
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _colors(self) -> dict[str, Any]:
        """Return values and scale of the colors of admissible candidates."""
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        agreement = self.agreement[self.usable]
        # Agreement is often high throughout: a scale from 0 would hide differences.
        lowest = np.floor(10 * agreement.min(initial=1)) / 10
        # Without the brightest colors, which are weak on white.
        dark = ListedColormap(colormaps["viridis_r"](np.linspace(0.2, 1, 256)))
        return {"c": agreement, "vmin": min(lowest, 0.9), "vmax": 1, "cmap": dark}
