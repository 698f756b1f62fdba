"""Latent means in the plane."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.plotting._style import COLOURS, array_or_none, axes_for, read_means
from skvaecert.simplex import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatentMapDisplay"]


_MARKERS = "os^Dv*PX<>ph"

_LONGEST_LEGEND = 12

# Singular values below this share of the largest are rounding.
_RANK = 1e-9


class LatentMapDisplay:
    """Latent means in two dimensions, coloured and marked by teacher component.

    Parameters
    ----------
    coordinates : array-like of shape (n_samples, 1) or (n_samples, 2)
        Of the means. With one column, the components are drawn above one another.
    component : array-like of int of shape (n_samples,)
        The teacher's most likely component of each sample.
    directions : array-like of shape (n_components, 1) or (n_components, 2), \
            default=None
        Where the witness wants the codes of each component, drawn as arrows from the
        middle of the means. Only the ratios of their lengths mean something.
    axis_labels : sequence of str, default=("1st coordinate", "2nd coordinate")
        Labels of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the map.
    figure_ : matplotlib Figure
        Figure containing the map.
    points_ : list of matplotlib PathCollection
        One for each component that occurs, in ascending order. No two of the first 84
        components share colour and marker, and no two of the first 12 a marker.
    arrows_ : list of matplotlib Annotation
        The numbers at the arrows' tips, or a little outside where two would overlap.

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
        subspace: str = "witness",
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the latent means of some samples.

        Parameters
        ----------
        estimator : CollapseCertifier or CertifiedVAE
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Samples.
        subspace : {"witness", "all"}, default="witness"
            Whose two principal directions are drawn: those of the part of the means
            that the witness sees (for the fixed simplex, the first K - 1 dimensions),
            or of all dimensions.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        LatentMapDisplay
            Drawn.

        Raises
        ------
        ValueError
            If `subspace` is neither.
        """
        if subspace not in ("witness", "all"):
            raise ValueError(f"subspace must be 'witness' or 'all', got {subspace!r}.")
        mean, proba, witness = read_means(estimator, X, teacher_proba)
        wanted = witness.weights - witness.weights.mean(axis=0)
        basis = _row_space(wanted) if subspace == "witness" else np.eye(wanted.shape[1])
        plane = _principal_directions(mean @ basis.T) @ basis
        whole = {"witness": "of what the witness sees", "all": "of the latent means"}
        labels = (f"{nth} principal direction" for nth in ("1st", "2nd"))
        display = cls(
            mean @ plane.T,
            proba.argmax(axis=1),
            directions=wanted @ plane.T,
            axis_labels=[f"{label}\n{whole[subspace]}" for label in labels],
        )
        return display.plot(**kwargs)

    def plot(self, ax: "Axes | None" = None, **scatter_kwargs: Any) -> Self:
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **scatter_kwargs : dict
            Passed to matplotlib's `scatter`.

        Returns
        -------
        LatentMapDisplay
            This display.
        """
        self.ax_ = axes_for(ax)
        self.figure_ = self.ax_.figure
        flat = self.coordinates.shape[1] == 1
        places = self.coordinates
        if flat:
            places = np.column_stack([places, self.component])
        self._draw_points(places, scatter_kwargs)
        self.arrows_: list[Any] = []
        if self.directions is not None and not flat:
            self._draw_directions(self.directions)
        if not flat:
            self.ax_.set_aspect("equal", adjustable="datalim")
        upwards = "teacher component" if flat else self.axis_labels[1]
        self.ax_.set(xlabel=self.axis_labels[0], ylabel=upwards)
        return self

    def _draw_points(self, places: Floats, scatter_kwargs: dict[str, Any]) -> None:
        known, looks = np.unique(self.component), list(_looks(self._n_components))
        look: dict[str, Any] = {"s": 28, "edgecolors": "0.2", "linewidths": 0.4}
        self.points_ = []
        for k in known:
            colour, marker = looks[k]
            its: dict[str, Any] = {"color": colour, "marker": marker, "label": str(k)}
            x, y = places[self.component == k].T
            points = self.ax_.scatter(x, y, **look | its | scatter_kwargs)
            self.points_.append(points)
        self.ax_.legend(
            title="teacher\ncomponent",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            ncols=1 + (len(known) - 1) // _LONGEST_LEGEND,
            frameon=False,
        )

    def _draw_directions(self, directions: Floats) -> None:
        middle = self.coordinates.mean(axis=0)
        reach = np.linalg.norm(self.coordinates - middle, axis=1).max() or 1.0
        # A little outside, where there is room for the numbers.
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
    """Return colours and markers: 7 and 12 have no common divisor."""
    return islice(zip(cycle(COLOURS), cycle(_MARKERS), strict=False), n_components)


def _spread_out(tips: Floats, room: float) -> Floats:
    """Move tips outwards on their rays until they are apart."""
    places: list[Floats] = []
    for tip in tips:
        length = np.linalg.norm(tip)
        ray = tip / length if length > 0 else np.array([1.0, 0.0])
        place = tip
        while any(np.linalg.norm(place - other) < room for other in places):
            place = place + room / 2 * ray
        places.append(place)
    return np.array(places)


def _row_space(weights: Floats) -> Floats:
    """Return an orthonormal basis of what the witness sees, one vector a row."""
    _, sizes, basis = np.linalg.svd(weights, full_matrices=False)
    return np.asarray(basis[sizes > _RANK * sizes.max(initial=0.0)])


def _principal_directions(codes: Floats) -> Floats:
    """Return the first two principal directions, or the only one, one a row."""
    centred = codes - codes.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors.T[::-1][:2]
    # A sign for each, so that the same codes give the same map.
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return np.asarray(directions * signs[:, None])
