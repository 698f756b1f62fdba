"""Samples and their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import (
    BELOW,
    axes_for,
    legend_above,
    tick_label,
    whole_numbers,
)
from skvaecert.simplex import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ReconstructionDisplay"]

# Gap between originals and reconstructions, as a share of an image's height.
_GAP = 0.15

# With more features, the axis has numbers instead of names.
_MOST_NAMES = 50


class ReconstructionDisplay:
    """Samples, and below them the decoder's output for their latent means.

    Parameters
    ----------
    original : array-like of shape (n_samples, n_features)
        Samples.
    reconstruction : array-like of shape (n_samples, n_features)
        Decoder's means for the latent means of these samples.
    image_shape : (channels, height, width) or None, default=None
        Shape of samples that are images with 1 or 3 channels.
    feature_names : sequence of str or None, default=None
        Names of the features, for samples that are not images.

    Attributes
    ----------
    error : ndarray of shape (n_samples,)
        Root mean square error of each reconstruction, in the units of the samples.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.
    image_ : matplotlib AxesImage
        The picture, for ``kind="auto"``.
    lines_ : list of matplotlib Line2D
        The originals, then the reconstructions, for ``kind="curves"``.

    Examples
    --------
    >>> from skvaecert.plotting import ReconstructionDisplay
    >>> X, decoded = [[0.0, 1.0, 1.0, 0.0]], [[0.1, 0.9, 0.9, 0.1]]
    >>> display = ReconstructionDisplay(X, decoded, image_shape=(1, 2, 2)).plot()
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
        n_samples: int = 10,
        image_shape: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the first samples and their reconstructions.

        Parameters
        ----------
        estimator : estimator
            Fitted, with `transform` and `inverse_transform`.
        X : array-like of shape (n_samples, n_features)
            Samples.
        n_samples : int, default=10
            Number of samples to draw.
        image_shape : (channels, height, width) or None, default=None
            Shape of samples that are images. If None, it is that of the encoder.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        ReconstructionDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If the estimator has no decoder.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "inverse_transform"):
            raise ValueError(
                "estimator must have an inverse_transform, its decoder, got "
                f"{type(estimator).__name__} without one."
            )
        samples = X[:n_samples]  # type: ignore[index]
        names = getattr(samples, "columns", None)
        decoded = estimator.inverse_transform(np.asarray(estimator.transform(samples)))
        display = cls(
            np.asarray(samples).reshape(len(decoded), -1),
            decoded,
            image_shape=image_shape or _image_shape_of(estimator),
            feature_names=None if names is None else [str(name) for name in names],
        )
        return display.plot(**kwargs)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        kind: Literal["auto", "curves"] = "auto",
        **kwargs: Any,
    ) -> Self:
        """Draw samples and reconstructions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        kind : {"auto", "curves"}, default="auto"
            "auto" draws images if there is an `image_shape`, and else a heat map with a
            row per sample and a column per feature. Its colors range from the smallest
            to the largest value of the feature among the originals. "curves" suits
            series.
        **kwargs : dict
            Keyword arguments to be passed to matplotlib's `imshow`, or to `plot` for
            "curves".

        Returns
        -------
        ReconstructionDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If `kind` is not one of these options.
        """
        if kind not in ("auto", "curves"):
            raise ValueError(f"kind must be 'auto' or 'curves', got {kind!r}.")
        shape = None if kind == "curves" else self.image_shape
        title = (
            "Samples and reconstructions: root mean square error "
            f"{self.error.min():.2g} to {self.error.max():.2g}"
        )
        size = (6.4, 4.8) if shape is None else self._size(shape)
        self.ax_ = axes_for(ax, title, size)
        self.figure_ = self.ax_.figure
        if kind == "curves":
            self._draw_curves(**kwargs)
        elif shape is None:
            self._draw_heat(**kwargs)
        else:
            self._draw_images(shape, **kwargs)
        return self

    def _size(self, image_shape: tuple[int, int, int]) -> tuple[float, float]:
        """Return width and height of a figure for two rows of images, in inches."""
        _, height, width = image_shape
        share = (2 + _GAP) * height / (len(self.original) * width * (1 + _GAP / 2))
        # 0.6 inches are for the title.
        return 8.0, float(np.clip(6.8 * share + 0.6, 1.3, 12.0))

    def _draw_images(self, image_shape: tuple[int, int, int], **kwargs: Any) -> None:
        channels, height, _ = image_shape
        # One scale for both rows shows errors in brightness.
        low, high = self.original.min(), self.original.max()
        gap = max(1, round(_GAP * height))
        above, below = (
            _side_by_side((samples - low) / ((high - low) or 1.0), image_shape)
            for samples in (self.original, self.reconstruction)
        )
        between = np.full((gap, *above.shape[1:]), _gap_value(channels))
        canvas = np.clip(np.concatenate([above, between, below]), 0, 1)
        look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
        picture = canvas[..., 0] if channels == 1 else canvas
        self.image_ = self.ax_.imshow(picture, **look | kwargs)
        ticks = [height / 2 - 0.5, height * 1.5 + gap - 0.5]
        self.ax_.set(xticks=[])
        self.ax_.set_yticks(ticks, ["original", "reconstruction"])
        self._hide_frame()

    def _draw_heat(self, **kwargs: Any) -> None:
        # A scale for each feature, since features may have different units.
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
        self._hide_frame()
        self.ax_.figure.colorbar(
            self.image_,
            ax=self.ax_,
            label="value: 0 is the smallest original, 1 the largest",
        )

    def _draw_curves(self, **kwargs: Any) -> None:
        spread = np.ptp(self.original) or 1.0
        n_samples, n_features = self.original.shape
        # Offsets of 1.1 times the range keep the curves apart.
        offsets = -1.1 * spread * np.arange(n_samples)
        places = np.arange(n_features)
        looks: list[dict[str, Any]] = [
            {"color": "0.15", "linewidth": 1.5},
            {"color": BELOW, "linewidth": 1.5, "linestyle": "--"},
        ]
        names = "original", "reconstruction"
        self.lines_ = []
        parts = self.original, self.reconstruction
        for samples, name, look in zip(parts, names, looks, strict=True):
            shown = samples + offsets[:, None]
            lines = self.ax_.plot(places, shown.T, **look | kwargs)
            lines[0].set_label(name)
            self.lines_ += lines
        self.ax_.set_yticks(
            offsets + self.original.mean(), [str(i) for i in range(n_samples)]
        )
        self.ax_.set_ylabel("sample")
        self._label_features()
        legend_above(self.ax_)

    def _label_features(self) -> None:
        n_features = self.original.shape[1]
        if self.feature_names is None or n_features > _MOST_NAMES:
            self.ax_.set_xlabel("feature")
            whole_numbers(self.ax_)
        else:
            names = [tick_label(str(name)) for name in self.feature_names]
            self.ax_.set_xticks(
                range(n_features),
                names,
                rotation=45,
                ha="right",
                rotation_mode="anchor",
            )

    def _hide_frame(self) -> None:
        self.ax_.tick_params(axis="y", length=0)
        self.ax_.spines[:].set_visible(False)


def _image_shape_of(estimator: Any) -> tuple[int, int, int] | None:
    """Return the image shape of the encoder inside an estimator."""
    # From outside to inside: a certifier, then a search, then a FrozenEstimator.
    for holder in ("estimator_", "best_estimator_", "estimator"):
        estimator = getattr(estimator, holder, estimator)
    shape = getattr(estimator, "image_shape", None)
    shape = shape or getattr(estimator, "input_shape", None)
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        return None
    return tuple(shape)


def _side_by_side(samples: Floats, image_shape: tuple[int, int, int]) -> Floats:
    """Return images of (channels, height, width) side by side, channels last."""
    images = samples.reshape(-1, *image_shape).transpose(0, 2, 3, 1)
    gap = max(1, round(_GAP * image_shape[2] / 2))
    width = ((0, 0), (0, 0), (0, gap), (0, 0))
    padded = np.pad(images, width, constant_values=_gap_value(image_shape[0]))
    # Without the gap after the last image.
    return np.asarray(np.concatenate(list(padded), axis=1)[:, :-gap])


def _gap_value(channels: int) -> float:
    # nan shows the background, whatever the colormap. Colors are drawn without a
    # colormap: 1 is white, and nan would make matplotlib warn.
    return np.nan if channels == 1 else 1.0


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
