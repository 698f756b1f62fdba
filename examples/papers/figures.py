"""How pictures look, and how they are written."""

import hashlib

import numpy as np
from cells import key

# At the width of a page's column, no text is smaller than 8 pt.
WIDTH = 8.8
# Margins below, as shares of the information, are drawn here.
LEAST = -1
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    # Told apart in grey by marks and lines, the first two by their lightness, too.
    "axes.prop_cycle": "cycler('color', ['004488', 'CC7A00', 'BB5566', '888888'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
}


def picture(path, experiment, results):
    """Draw into a file, without a display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(WIDTH, 3.4))
        experiment.draw(results, figure)
        # No date and no version in the file: the same numbers give the same bytes.
        metadata = {"Software": None, "Records": digest(results)}
        figure.savefig(path, dpi=130, metadata=metadata)


def digest(results):
    """Return a digest of all that a picture shows."""
    return hashlib.sha256(key(results).encode()).hexdigest()[:16]


def band(ax, x, curves, look, label=None):
    """Draw the median of curves, shaded from the least to the greatest."""
    (line,) = ax.plot(x, np.median(curves, axis=0), look, markevery=[], label=label)
    low, high = np.min(curves, axis=0), np.max(curves, axis=0)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.25, lw=0)


def legend_below(figure, *axes):
    """Put the legend of some panels below all, with each label once."""
    found = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=min(4, len(found))
    )


def panels(figure, names, n_columns=3):
    """Return panels by name, in rows, with the same vertical axis."""
    n_rows = -(-len(names) // n_columns)
    figure.set_figheight(0.6 + 2.2 * n_rows)
    shape = n_rows, min(len(names), n_columns)
    axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.remove()
    for ax, name in zip(axes[: len(names)], names, strict=True):
        ax.set_title(name)
    return dict(zip(names, axes[: len(names)], strict=True))
