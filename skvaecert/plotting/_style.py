"""Axes, colors and texts that the displays share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skvaecert._posterior import posterior_of
from skvaecert.simplex import Floats
from skvaecert.witnesses import LinearWitness, simplex_witness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colors of Okabe and Ito, without yellow, which is hard to see on white.
COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
)

ABOVE, BELOW = COLORS[0], COLORS[1]

_LONGEST_NAME = 16


class Readout(NamedTuple):
    """Latent means of samples, their teacher's posteriors, and the witness."""

    mean: Floats
    proba: Floats
    witness: LinearWitness


def read_means(
    estimator: Any, X: ArrayLike, teacher_proba: ArrayLike | None
) -> Readout:
    check_is_fitted(estimator)
    # A VAE stores only the vertices and the scale of its fixed witness.
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
    proba = posterior_of(estimator.teacher_, X, teacher_proba, n_samples=len(mean))
    return Readout(mean, proba, witness)


def axes_for(
    ax: Axes | None, title: str, size: tuple[float, float] = (6.4, 4.8)
) -> Axes:
    """Return the given axes, or new ones in a figure with a title."""
    # Imported here, because matplotlib is an optional dependency.
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    # The figure has the title: that of the axes would overlap a legend above them.
    figure.suptitle(title, fontsize="large")
    return ax


def legend_above(ax: Axes, **kwargs: Any) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, **kwargs)


def area_style(*, below: bool) -> dict[str, Any]:
    """Return the style of areas below 0 or not. Hatches show it without color."""
    return {
        "facecolor": BELOW if below else ABOVE,
        "hatch": "////" if below else "",
        "edgecolor": "white",
        "linewidth": 0.5,
    }


def tick_label(name: str) -> str:
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
    return plain_text(short)


def plain_text(name: str) -> str:
    # matplotlib reads text between dollar signs as a formula.
    return name.replace("$", r"\$")


def whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def array_or_none(values: ArrayLike | None) -> Floats | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
