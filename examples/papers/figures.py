"""How pictures look, and how they are written."""

import hashlib

import numpy as np
from cells import key
from records import each

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
    # Told apart in gray by marks and lines, the first two by their lightness, too.
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
        legend_below(figure)
        # No date and no version in the file: the same numbers give the same bytes.
        metadata = {"Software": None, "Records": digest(results)}
        figure.savefig(path, dpi=130, metadata=metadata)


def digest(results):
    """Return a digest of all that a picture shows."""
    return hashlib.sha256(key(results).encode()).hexdigest()[:16]


def legend_below(figure):
    """Put one legend below all panels, with each label once."""
    found = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        place, n_columns = "outside lower center", min(4, len(found))
        figure.legend(found.values(), found, loc=place, ncols=n_columns)


def by_data(results):
    """Return results by data set; each has the values of its first record, too."""
    return each([result | result["records"][0] for result in results], "data")


def columns(figure, results, labels, **options):
    """Yield the results of each data set, and their column of panels with labels."""
    found = by_data(results)
    figure.set_figheight(0.6 + 1.9 * len(labels))
    axes = figure.subplots(len(labels), len(found), squeeze=False, **options)
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    for column, (data, some) in zip(axes.T, found.items(), strict=True):
        column[0].set_title(data)
        yield some, column


def rows(figure, results, labels, height):
    """Yield the results of each data set, and their row of panels with labels."""
    found = by_data(results)
    figure.set_figheight(0.4 + height * len(found))
    axes = figure.subplots(len(found), len(labels), squeeze=False, sharey="row")
    for row, (data, some) in zip(axes, found.items(), strict=True):
        row[0].set_title(data)
        for ax, label in zip(row, labels, strict=True):
            ax.set_xlabel(label)
        yield some, row


def panels(figure, names, label="", n_columns=3):
    """Return panels by name, in rows, with the same vertical axis."""
    n_rows = -(-len(names) // n_columns)
    figure.set_figheight(0.6 + 2.2 * n_rows)
    shape = n_rows, min(len(names), n_columns)
    axes = figure.subplots(*shape, sharey=True, squeeze=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    found = dict(zip(names, axes.flat, strict=False))
    for name, ax in found.items():
        ax.set_title(name)
    return found


def lines(ax, names):
    """Draw a horizontal line for each name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", color="0.85", lw=0.8)


def zero(ax):
    """Draw where a margin is 0."""
    ax.axhline(0, color="0.3", lw=0.8, zorder=0)


def share(record):
    """Return the margin as a share of the information, but never below LEAST."""
    return max(record["margin"] / record["information"], LEAST)


def mark(ax, x, y, look, filled):
    """Draw a mark, filled or not."""
    ax.plot(x, y, look, fillstyle="full" if filled else "none")


def band(ax, curves, look, label=None, first=0):
    """Draw the median of curves, shaded from least to greatest."""
    curves = np.maximum(curves, LEAST)
    x = np.arange(first, first + curves.shape[1])
    (line,) = ax.plot(x, np.median(curves, axis=0), look, markevery=[], label=label)
    low, high = curves.min(axis=0), curves.max(axis=0)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.25, lw=0)


def intervals(ax, groups, keys, look, label):
    """Draw medians of groups with bars; the keys of least, median and greatest."""
    low, middle, high = (
        np.array([f([record[key] for record in some]) for some in groups.values()])
        for f, key in zip((min, np.median, max), keys, strict=True)
    )
    off = middle - low, high - middle
    ax.errorbar([*groups], middle, off, fmt=look, mfc="none", capsize=2, label=label)
