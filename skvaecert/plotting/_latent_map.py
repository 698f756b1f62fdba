"""Latent means in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.plotting._style import COLORS, array_or_none, axes_for, read_means
from skvaecert.simplex import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatentMapDisplay"]


_MARKERS = "os^Dv*PX<>ph"

_LONGEST_LEGEND = 12

# Smaller singular values, relative to the largest one, are rounding.
_RANK_TOLERANCE = 1e-9


class LatentMapDisplay:
    """Latent means in two dimensions, with a color and marker per teacher's cluster.

    Parameters
    ----------
    coordinates : array-like of shape (n_samples, 1) or (n_samples, 2)
        Coordinates of the latent means. With one column, the clusters are drawn above
        one another.
    component : array-like of int of shape (n_samples,)
        The teacher's most probable cluster of each sample.
    directions : array-like of shape (n_components, 1) or (n_components, 2), \
            default=None
        Directions in which the witness reads each cluster, drawn as lines from the
        center of the means. Only the ratios of their lengths have a meaning.
    axis_labels : sequence of str, default=("1st coordinate", "2nd coordinate")
        Labels of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the map.
    figure_ : matplotlib Figure
        Figure containing the map.
    points_ : list of matplotlib PathCollection
        One collection for each cluster that occurs, in ascending order. No two of the
        first 84 clusters have the same color and marker, and no two of the first 12
        have the same marker.
    arrows_ : list of matplotlib Annotation
        The numbers at the tips of the lines, or slightly outside where two would
        overlap.

    References
    ----------
    Theory section 1.

    Examples
    --------
    >>> from skvaecert.plotting import LatentMapDisplay
    >>> display = LatentMapDisplay([[0, 1], [2, 0]], [0, 1]).plot()
    >>> display.points_[1].get_offsets().tolist()
    [[2.0, 0.0]]
    """

    def __init__(
        self,
        coordinates: ArrayLike,
        component: ArrayLike,
        *,
        directions: ArrayLike | None = None,
        axis_labels: Sequence[str] = ("1st coordinate", "2nd coordinate"),
    ) -> None:
        self.coordinates = np.asarray(coordinates, dtype=np.float64)
        self.component = np.asarray(component)
        self.directions = array_or_none(directions)
        self.axis_labels = tuple(axis_labels)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        subspace: Literal["witness", "all"] = "witness",
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the latent means of samples.

        Parameters
        ----------
        estimator : CollapseCertifier or CertifiedVAE
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Samples.
        subspace : {"witness", "all"}, default="witness"
            Space whose two principal directions are drawn: the part of the means that
            the witness reads (for the fixed simplex, the first K - 1 dimensions), or
            all dimensions.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        LatentMapDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If `subspace` is not one of these options.
        """
        if subspace not in ("witness", "all"):
            raise ValueError(f"subspace must be 'witness' or 'all', got {subspace!r}.")
        mean, proba, witness = read_means(estimator, X, teacher_proba)
        # A softmax depends only on differences between the weights of clusters.
        wanted = witness.weights - witness.weights.mean(axis=0)
        basis = _row_space(wanted) if subspace == "witness" else np.eye(wanted.shape[1])
        plane = _principal_directions(mean @ basis.T) @ basis
        space = {"witness": "of what the witness reads", "all": "of the latent means"}
        labels = (f"{nth} principal direction" for nth in ("1st", "2nd"))
        display = cls(
            mean @ plane.T,
            proba.argmax(axis=1),
            directions=wanted @ plane.T,
            axis_labels=[f"{label} {space[subspace]}" for label in labels],
        )
        return display.plot(**kwargs)

    def plot(self, ax: Axes | None = None, **scatter_kwargs: Any) -> Self:
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **scatter_kwargs : dict
            Keyword arguments to be passed to matplotlib's `scatter`.

        Returns
        -------
        LatentMapDisplay
            Object that stores the computed values.
        """
        title = f"Latent means of {len(self.component)} samples, by teacher's cluster"
        if self.directions is not None:
            title += "\nLines point where the witness reads each cluster"
        self.ax_ = axes_for(ax, title)
        self.figure_ = self.ax_.figure
        flat = self.coordinates.shape[1] == 1
        places = self.coordinates
        if flat:
            # With one dimension, the height shows the cluster.
            places = np.column_stack([places, self.component])
        self._draw_points(places, scatter_kwargs)
        self.arrows_: list[Any] = []
        if self.directions is not None and not flat:
            self._draw_directions(self.directions)
        if not flat:
            # Equal scales, so that no direction of the map is stretched.
            self.ax_.set_aspect("equal", adjustable="datalim")
        upwards = "teacher's cluster" if flat else self.axis_labels[1]
        self.ax_.set(xlabel=self.axis_labels[0], ylabel=upwards)
        return self

    def _draw_points(self, places: Floats, scatter_kwargs: dict[str, Any]) -> None:
        known, looks = np.unique(self.component), list(_looks(self._n_components))
        look: dict[str, Any] = {"s": 28, "edgecolors": "0.2", "linewidths": 0.4}
        self.points_ = []
        for k in known:
            color, marker = looks[k]
            own: dict[str, Any] = {"color": color, "marker": marker, "label": str(k)}
            x, y = places[self.component == k].T
            points = self.ax_.scatter(x, y, **look | own | scatter_kwargs)
            self.points_.append(points)
        self.ax_.legend(
            title="teacher's\ncluster",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            ncols=1 + (len(known) - 1) // _LONGEST_LEGEND,
            frameon=False,
        )

    def _draw_directions(self, directions: Floats) -> None:
        middle = self.coordinates.mean(axis=0)
        # All means of a collapsed model can be at one place.
        reach = np.linalg.norm(self.coordinates - middle, axis=1).max() or 1.0
        # A little outside of the means, where there is room for the numbers.
        arrows = 1.1 * reach * directions / np.linalg.norm(directions, axis=1).max()
        look = {"arrowstyle": "-", "color": "0.15", "shrinkA": 0, "shrinkB": 0}
        box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "0.15"}
        places = middle + _spread_out(arrows, 0.12 * reach)
        for k, place in enumerate(places):
            self.ax_.annotate("", middle + arrows[k], middle, arrowprops=look)
            number = self.ax_.annotate(
                str(k), place, ha="center", va="center", bbox=box
            )
            self.arrows_.append(number)
        self.ax_.update_datalim(
            np.concatenate([places - 0.1 * reach, places + 0.1 * reach])
        )
        self.ax_.autoscale_view()

    @property
    def _n_components(self) -> int:
        return int(self.component.max()) + 1


def _looks(n_components: int) -> Iterator[tuple[str, str]]:
    """Return 84 different pairs: 7 colors and 12 markers have no common divisor."""
    return islice(zip(cycle(COLORS), cycle(_MARKERS), strict=False), n_components)


def _spread_out(tips: Floats, room: float) -> Floats:
    """Move tips outwards on their rays until none overlap."""
    places: list[Floats] = []
    for tip in tips:
        length = np.linalg.norm(tip)
        # A direction of length 0 has no ray: take any.
        ray = tip / length if length > 0 else np.array([1.0, 0.0])
        place = tip
        while any(np.linalg.norm(place - other) < room for other in places):
            place = place + room / 2 * ray
        places.append(place)
    return np.array(places)


def _row_space(weights: Floats) -> Floats:
    """Return an orthonormal basis of the space that the witness reads, as rows."""
    _, sizes, basis = np.linalg.svd(weights, full_matrices=False)
    return np.asarray(basis[sizes > _RANK_TOLERANCE * sizes.max(initial=0.0)])


def _principal_directions(codes: Floats) -> Floats:
    """Return the first two principal directions as rows, or the only one."""
    centered = codes - codes.mean(axis=0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    directions = vectors.T[::-1][:2]
    # Fix the signs, so that the same codes give the same map.
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return np.asarray(directions * signs[:, None])
