"""Displays with a mark a row: what rows add, where their codes lie, what comes back."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert._teacher import teacher_posterior
from skvaecert.metrics import (
    component_contributions,
    component_information,
    margin_contributions,
)
from skvaecert.simplex import Floats, check_sample_weight, check_teacher_proba
from skvaecert.witnesses import LinearWitness, simplex_witness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ContributionDisplay",
    "LatentMapDisplay",
    "ReconstructionDisplay",
    "image_shape_of",
    "posterior_of",
]

# Those of Okabe and Ito, without yellow, which is hard to see on white.
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
)
_ABOVE, _BELOW = _COLOURS[0], _COLOURS[1]
_MARKERS = "os^Dv*PX<>ph"
_MOST_BINS = 50
_LONGEST_LEGEND = 12
_LONGEST_NAME = 16
# Singular values below this share of the largest are rounding.
_RANK = 1e-9
# Of an image's height: the gap between originals and reconstructions.
_GAP = 0.15


class ContributionDisplay:
    """What each row adds to the margin, or each component of the teacher.

    The contributions g_i of rows average to the margin G, the contributions G_k of
    components add up to it. Rows below 0 are those of which the witness says the wrong
    component: it would do better to say the mean teacher.

    Parameters
    ----------
    contributions : array-like of shape (n_samples,)
        g_i, nats.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to sum 1; uniform when None.
    component_contributions : array-like of shape (n_components,), default=None
        G_k, nats.
    component_information : array-like of shape (n_components,), default=None
        I_k, nats: the most that each G_k could be if the witness were the teacher.

    Attributes
    ----------
    margin : float
        Weighted mean of the contributions, nats.
    share_below : float
        Weighted share of rows below 0, from 0 to 1.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing it.
    bars_ : matplotlib BarContainer
        The bars; for ``kind="sorted"`` there is `line_`, a Line2D, in their place.

    See Also
    --------
    skvaecert.metrics.margin_contributions : Gives the numbers of rows.
    skvaecert.metrics.component_contributions : Gives those of components.

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
    'contribution of a row to the margin (nats)'
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
        self.component_contributions = _array_or_none(component_contributions)
        self.component_information = _array_or_none(component_information)
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
        """Draw the contributions of some rows.

        Parameters
        ----------
        estimator : CollapseCertifier or CertifiedVAE
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ContributionDisplay
            Drawn.
        """
        read = _read(estimator, X, teacher_proba)
        proba, log_q = read.proba, read.witness.log_proba(read.mean)
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
        self, ax: "Axes | None" = None, *, kind: str = "histogram", **kwargs: Any
    ) -> Self:
        """Draw the contributions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        kind : {"histogram", "sorted", "components"}, default="histogram"
            How many rows add how much; all rows, the least first; or a bar for each
            component of the teacher, beside its information.
        **kwargs : dict
            Handed to matplotlib's `bar`, whose colours stay, or for "sorted" to `plot`.

        Returns
        -------
        ContributionDisplay
            This display.

        Raises
        ------
        ValueError
            If `kind` is none of these, or there are no numbers for components.
        """
        draw = {
            "histogram": self._draw_histogram,
            "sorted": self._draw_sorted,
            "components": self._draw_components,
        }.get(kind)
        if draw is None:
            raise ValueError(
                f"kind must be 'histogram', 'sorted' or 'components', got {kind!r}."
            )
        if kind == "components" and self.component_contributions is None:
            raise ValueError(
                "component_contributions must be given for kind='components', got "
                "None. Use from_estimator, or metrics.component_contributions."
            )
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        draw(**kwargs)
        return self

    def _draw_histogram(self, **kwargs: Any) -> None:
        edges = _edges_with_zero(self.contributions)
        share, _ = np.histogram(self.contributions, edges, weights=self.sample_weight)
        below = edges[:-1] < -1e-9 * (edges[1] - edges[0])
        self.bars_ = self.ax_.bar(
            edges[:-1], 100 * share, np.diff(edges), align="edge", **kwargs
        )
        for bar, is_below in zip(self.bars_, below, strict=True):
            bar.set(**_fill(below=bool(is_below)))
        self.ax_.axvline(self.margin, color="0.1", linestyle="--", label=self._mean)
        self.ax_.set(
            xlabel="contribution of a row to the margin (nats)",
            ylabel="share of rows (%)",
        )
        self._legend(
            (f"{1 - self.share_below:.1%} of rows at 0 or above", False),
            (f"{self.share_below:.1%} of rows below 0", True),
        )

    def _draw_sorted(self, **kwargs: Any) -> None:
        order = np.argsort(self.contributions, kind="stable")
        rank, values = (
            100 * np.cumsum(self.sample_weight[order]),
            self.contributions[order],
        )
        below = values < 0
        (self.line_,) = self.ax_.plot(rank, values, **{"color": _ABOVE} | kwargs)
        self.ax_.fill_between(rank[below], values[below], 0, **_fill(below=True))
        self.ax_.axhline(0, color="0.2", linewidth=1)
        self.ax_.axhline(self.margin, color="0.1", linestyle="--", label=self._mean)
        self.ax_.set(
            xlabel="rows, the least first (%)",
            ylabel="contribution to the margin (nats)",
        )
        self._legend((f"{self.share_below:.1%} of rows below 0", True))

    def _draw_components(self, **kwargs: Any) -> None:
        values = np.asarray(self.component_contributions)
        places = np.arange(len(values))
        if self.component_information is not None:
            look: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.3"}
            self.ax_.bar(
                places,
                self.component_information,
                label="information: what the teacher itself would contribute",
                **look,
            )
        self.bars_ = self.ax_.bar(places, values, 0.5, **kwargs)
        for bar, value in zip(self.bars_, values, strict=True):
            bar.set(**_fill(below=bool(value < 0)))
        self.ax_.axhline(0, color="0.2", linewidth=1)
        self.ax_.set(xlabel="teacher component", ylabel="nats")
        self._legend((f"contributions, in sum {self.margin:.3g} nats", False))
        _whole_numbers(self.ax_)

    def _legend(self, *fills: tuple[str, bool]) -> None:
        """Explain lines and fills above the axes."""
        from matplotlib.patches import Patch

        lines, _ = self.ax_.get_legend_handles_labels()
        patches = [Patch(label=text, **_fill(below=below)) for text, below in fills]
        _legend_above(self.ax_, handles=[*lines, *patches])

    @property
    def _mean(self) -> str:
        return f"mean = margin, {self.margin:.3g} nats"


class LatentMapDisplay:
    """Latent means in two dimensions, coloured and marked by teacher component.

    Parameters
    ----------
    coordinates : array-like of shape (n_samples, 1) or (n_samples, 2)
        Of the means. With one, the components are drawn above one another.
    component : array-like of int of shape (n_samples,)
        The teacher's most likely component of each row.
    directions : array-like of shape (n_components, 1) or (n_components, 2), \
            default=None
        Where the witness wants each component's codes; drawn as arrows from the middle
        of the means, with lengths that compare with one another only.
    axis_labels : sequence of str, default=("1st coordinate", "2nd coordinate")
        What the axes show.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the map.
    figure_ : matplotlib Figure
        Figure containing the map.
    points_ : list of matplotlib PathCollection
        One for each component that rows have, in ascending order. No two of the first
        84 components share colour and marker, and no two of the first 12 a marker.
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
        self.directions = _array_or_none(directions)
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
        """Draw the latent means of some rows.

        Parameters
        ----------
        estimator : CollapseCertifier or CertifiedVAE
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows.
        subspace : {"witness", "all"}, default="witness"
            What the two principal directions are those of: the part of the means that
            the witness sees, for the fixed simplex the first K - 1 dimensions, or all
            of it.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Handed to :meth:`plot`.

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
        read = _read(estimator, X, teacher_proba)
        wanted = read.witness.weights - read.witness.weights.mean(axis=0)
        basis = _row_space(wanted) if subspace == "witness" else np.eye(wanted.shape[1])
        plane = _principal_directions(read.mean @ basis.T) @ basis
        whole = {"witness": "of what the witness sees", "all": "of the latent means"}
        labels = (f"{nth} principal direction" for nth in ("1st", "2nd"))
        display = cls(
            read.mean @ plane.T,
            read.proba.argmax(axis=1),
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
            Handed to matplotlib's `scatter`.

        Returns
        -------
        LatentMapDisplay
            This display.
        """
        self.ax_ = _axes(ax)
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


class ReconstructionDisplay:
    """Rows above, and below them what the decoder makes of their latent means.

    Parameters
    ----------
    original : array-like of shape (n_samples, n_features)
        Rows.
    reconstruction : array-like of shape (n_samples, n_features)
        Decoder means of their codes.
    image_shape : (channels, height, width) or None, default=None
        For rows that are images, of 1 or 3 channels.
    feature_names : sequence of str or None, default=None
        Of rows that are none.

    Attributes
    ----------
    error : ndarray of shape (n_samples,)
        Root mean square difference of each row from its reconstruction, in the units
        of the rows.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing it.
    image_ : matplotlib AxesImage
        For images and for ``kind="heat"``.
    lines_ : list of matplotlib Line2D
        For ``kind="curves"``: originals, then reconstructions.

    Examples
    --------
    >>> from skvaecert.plotting import ReconstructionDisplay
    >>> rows, decoded = [[0.0, 1.0, 1.0, 0.0]], [[0.1, 0.9, 0.9, 0.1]]
    >>> display = ReconstructionDisplay(rows, decoded, image_shape=(1, 2, 2)).plot()
    >>> display.error.round(3)
    array([0.1])
    """

    def __init__(
        self,
        original: ArrayLike,
        reconstruction: ArrayLike,
        *,
        image_shape: tuple[int, int, int] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.original = np.asarray(original, dtype=np.float64)
        self.reconstruction = np.asarray(reconstruction, dtype=np.float64)
        _check_same_shape(self.original, self.reconstruction)
        _check_image_shape(image_shape, self.original.shape[1])
        self.image_shape = image_shape
        self.feature_names = feature_names
        difference = self.reconstruction - self.original
        self.error = np.sqrt((difference**2).mean(axis=1))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        n_rows: int = 10,
        image_shape: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the first rows and their reconstructions.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `transform` and `inverse_transform`.
        X : array-like of shape (n_samples, n_features)
            Rows.
        n_rows : int, default=10
            How many to draw.
        image_shape : (channels, height, width) or None, default=None
            For rows that are images; that of a CertifiedVAE when None.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ReconstructionDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator has no decoder.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "inverse_transform"):
            raise ValueError(
                "estimator must have an inverse_transform, its decoder, got "
                f"{type(estimator).__name__} without."
            )
        rows = X[:n_rows]  # type: ignore[index]
        names = getattr(rows, "columns", None)
        decoded = estimator.inverse_transform(np.asarray(estimator.transform(rows)))
        display = cls(
            np.asarray(rows).reshape(len(decoded), -1),
            decoded,
            image_shape=image_shape or image_shape_of(estimator),
            feature_names=None if names is None else [str(name) for name in names],
        )
        return display.plot(**kwargs)

    def plot(
        self, ax: "Axes | None" = None, *, kind: str = "auto", **kwargs: Any
    ) -> Self:
        """Draw rows and reconstructions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        kind : {"auto", "images", "heat", "curves"}, default="auto"
            "auto" draws images where there is an `image_shape`, else "heat": a line a
            row, a column a feature, grey from the feature's least to its largest value
            among the originals. "curves" suits rows that are series.
        **kwargs : dict
            Handed to matplotlib's `imshow` or, for "curves", `plot`.

        Returns
        -------
        ReconstructionDisplay
            This display.

        Raises
        ------
        ValueError
            If `kind` is none of these, or there is no `image_shape` for images.
        """
        if kind == "auto":
            kind = "heat" if self.image_shape is None else "images"
        draw = {
            "images": self._draw_images,
            "heat": self._draw_heat,
            "curves": self._draw_curves,
        }.get(kind)
        if draw is None:
            raise ValueError(
                f"kind must be 'auto', 'images', 'heat' or 'curves', got {kind!r}."
            )
        if kind == "images" and self.image_shape is None:
            raise ValueError("image_shape must be given for kind='images', got None.")
        self.ax_ = _axes(ax, self._size if kind == "images" else (6.4, 4.8))
        self.figure_ = self.ax_.figure
        draw(**kwargs)
        return self

    @property
    def _size(self) -> tuple[float, float]:
        """Width and height of a figure for two lines of images, inches."""
        assert self.image_shape is not None
        _, height, width = self.image_shape
        share = (2 + _GAP) * height / (len(self.original) * width * (1 + _GAP / 2))
        return 8.0, float(np.clip(6.8 * share + 0.3, 1.0, 12.0))

    def _draw_images(self, **kwargs: Any) -> None:
        assert self.image_shape is not None
        channels, height, _ = self.image_shape
        low, high = self.original.min(), self.original.max()
        gap = max(1, round(_GAP * height))
        both = (
            _side_by_side((rows - low) / ((high - low) or 1.0), self.image_shape)
            for rows in (self.original, self.reconstruction)
        )
        above, below = both
        between = np.ones((gap, *above.shape[1:]))
        canvas = np.clip(np.concatenate([above, between, below]), 0, 1)
        look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
        picture = canvas[..., 0] if channels == 1 else canvas
        self.image_ = self.ax_.imshow(picture, **look | kwargs)
        ticks = [height / 2 - 0.5, height * 1.5 + gap - 0.5]
        self.ax_.set(xticks=[])
        self.ax_.set_yticks(ticks, ["original", "reconstruction"])
        self._bare()

    def _draw_heat(self, **kwargs: Any) -> None:
        low, high = self.original.min(axis=0), self.original.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        parts = [(r - low) / span for r in (self.original, self.reconstruction)]
        n_samples, n_features = self.original.shape
        gap = np.full((1, n_features), np.nan)
        look: dict[str, Any] = {
            "cmap": "cividis",
            "vmin": 0,
            "vmax": 1,
            "aspect": "auto",
            "interpolation": "nearest",
        }
        stacked = np.concatenate([parts[0], gap, parts[1]])
        self.image_ = self.ax_.imshow(stacked, **look | kwargs)
        middle = (n_samples - 1) / 2
        self.ax_.set_yticks(
            [middle, middle + n_samples + 1], ["original", "reconstruction"]
        )
        self._label_features()
        self._bare()
        self.ax_.figure.colorbar(
            self.image_, ax=self.ax_, label="between least and largest original"
        )

    def _draw_curves(self, **kwargs: Any) -> None:
        spread = np.ptp(self.original) or 1.0
        n_samples, n_features = self.original.shape
        offsets = -1.1 * spread * np.arange(n_samples)
        places = np.arange(n_features)
        looks: list[dict[str, Any]] = [
            {"color": "0.15", "linewidth": 1.5},
            {"color": _BELOW, "linewidth": 1.5, "linestyle": "--"},
        ]
        names = "original", "reconstruction"
        self.lines_ = []
        parts = self.original, self.reconstruction
        for rows, name, look in zip(parts, names, looks, strict=True):
            shown = rows + offsets[:, None]
            lines = self.ax_.plot(places, shown.T, **look | kwargs)
            lines[0].set_label(name)
            self.lines_ += lines
        self.ax_.set_yticks(
            offsets + self.original.mean(), [str(i) for i in range(n_samples)]
        )
        self.ax_.set_ylabel("row")
        self._label_features()
        _legend_above(self.ax_)

    def _label_features(self) -> None:
        n_features = self.original.shape[1]
        if self.feature_names is None or n_features > _MOST_BINS:
            self.ax_.set_xlabel("feature")
            _whole_numbers(self.ax_)
        else:
            names = [_tick(str(name)) for name in self.feature_names]
            self.ax_.set_xticks(
                range(n_features),
                names,
                rotation=45,
                ha="right",
                rotation_mode="anchor",
            )

    def _bare(self) -> None:
        self.ax_.tick_params(axis="y", length=0)
        self.ax_.spines[:].set_visible(False)


class _RowsRead(NamedTuple):
    """What is read off rows."""

    mean: Floats
    proba: Floats
    witness: LinearWitness


def _read(estimator: Any, X: ArrayLike, teacher_proba: ArrayLike | None) -> _RowsRead:
    check_is_fitted(estimator)
    if hasattr(estimator, "witness_"):
        witness = estimator.witness_
    elif hasattr(estimator, "witness_scale_"):
        witness = simplex_witness(estimator.vertices_, estimator.witness_scale_)
    else:
        raise ValueError(
            "estimator must be a CollapseCertifier or a CertifiedVAE, which have a "
            f"witness, got {type(estimator).__name__}."
        )
    mean = np.asarray(estimator.transform(X), dtype=np.float64)
    proba = posterior_of(estimator, X, teacher_proba, len(mean))
    return _RowsRead(mean, proba, witness)


def posterior_of(
    estimator: Any, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int
) -> Floats:
    """Return the posteriors that were given, or ask the teacher of an estimator."""
    if teacher_proba is not None:
        return check_teacher_proba(teacher_proba, n_samples)
    if estimator.teacher_ is None:
        raise ValueError(
            "teacher_proba must be given for the rows to draw: this estimator was "
            "fitted with teacher_proba and has no teacher to ask."
        )
    return teacher_posterior(estimator.teacher_, X)


def image_shape_of(estimator: Any) -> tuple[int, int, int] | None:
    """Return the image shape that the encoder inside an estimator was given."""
    inner = getattr(estimator, "estimator_", estimator)
    inner = getattr(inner, "best_estimator_", inner)
    inner = getattr(inner, "estimator", inner)
    shape = getattr(inner, "image_shape", None) or getattr(inner, "input_shape", None)
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        return None
    return tuple(shape)


def _axes(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.8)) -> "Axes":
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _legend_above(ax: "Axes", **kwargs: Any) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, **kwargs)


def _fill(*, below: bool) -> dict[str, Any]:
    """Return the look of areas; hatches tell it without colour."""
    return {
        "facecolor": _BELOW if below else _ABOVE,
        "hatch": "////" if below else "",
        "edgecolor": "white",
        "linewidth": 0.5,
    }


def _tick(name: str) -> str:
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
    # A dollar sign would begin a formula.
    return short.replace("$", r"\$")


def _whole_numbers(ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _array_or_none(values: ArrayLike | None) -> Floats | None:
    return None if values is None else np.asarray(values, dtype=np.float64)


def _edges_with_zero(values: Floats) -> Floats:
    """Return edges of bins, 0 among them, so that no bin has rows of both sides."""
    n_bins = min(len(np.histogram_bin_edges(values, "auto")), _MOST_BINS)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    width = (high - low) / n_bins or 1.0
    first, last = np.floor(low / width), np.ceil(high / width)
    return np.asarray(width * np.arange(first, max(last, first + 1) + 1))


def _looks(n_components: int) -> Iterator[tuple[str, str]]:
    """Return colours and markers: 7 and 12 have no common divisor."""
    return islice(zip(cycle(_COLOURS), cycle(_MARKERS), strict=False), n_components)


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
    """Return an orthonormal basis of what the witness tells apart, one vector a row."""
    _, sizes, basis = np.linalg.svd(weights, full_matrices=False)
    return np.asarray(basis[sizes > _RANK * sizes.max(initial=0.0)])


def _principal_directions(codes: Floats) -> Floats:
    """Return the first two, or the one that there is, one a row."""
    centred = codes - codes.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors.T[::-1][:2]
    # A sign for each, so that the same codes give the same map.
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return np.asarray(directions * signs[:, None])


def _side_by_side(rows: Floats, image_shape: tuple[int, int, int]) -> Floats:
    """Return images of (channels, height, width) in a line, channels last."""
    images = rows.reshape(-1, *image_shape).transpose(0, 2, 3, 1)
    gap = max(1, round(_GAP * image_shape[2] / 2))
    width = ((0, 0), (0, 0), (0, gap), (0, 0))
    padded = np.pad(images, width, constant_values=1.0)
    return np.asarray(np.concatenate(list(padded), axis=1)[:, :-gap])


def _check_same_shape(original: Floats, reconstruction: Floats) -> None:
    if original.ndim != 2 or original.size == 0:
        raise ValueError(
            "original must be an array of shape (n_samples, n_features), got shape "
            f"{original.shape}."
        )
    if reconstruction.shape != original.shape:
        raise ValueError(
            f"reconstruction must have the shape of original, {original.shape}, got "
            f"{reconstruction.shape}."
        )


def _check_image_shape(image_shape: Any, n_features: int) -> None:
    if image_shape is None:
        return
    shape: NDArray[Any] = np.asarray(image_shape)
    if shape.shape != (3,) or shape[0] not in (1, 3) or shape.prod() != n_features:
        raise ValueError(
            "image_shape must be (channels, height, width) with 1 or 3 channels and "
            f"{n_features} values in all, got {image_shape}."
        )
