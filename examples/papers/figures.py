"""Draw and write pictures."""

import hashlib

import numpy as np
from cells import key
from records import each

# Inches. At the width of a page's column, no text is smaller than 8 pt.
WIDTH = 8.8
# Margins below this share of the information are drawn at it.
LEAST = -1
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    # Marks and lines tell the colors apart in gray; the first two differ in lightness.
    "axes.prop_cycle": "cycler('color', ['004488', 'CC7A00', 'BB5566', '888888'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
}


def picture(path, experiment, results):
    """Draw the results of an experiment into a file, without a display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(WIDTH, 3.4))
        experiment.draw(results, figure)
        legend_below(figure)
        # Without date and version, the same results give the same bytes.
        metadata = {"Software": None, "Records": digest(results)}
        figure.savefig(path, dpi=130, metadata=metadata)


def digest(results):
    """Return a digest of the results that a picture shows."""
    return hashlib.sha256(key(results).encode()).hexdigest()[:16]


def legend_below(figure):
    """Put one legend below all panels, with each label once."""
    entries = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        place, n_columns = "outside lower center", min(4, len(entries))
        figure.legend(entries.values(), entries, loc=place, ncols=n_columns)


def by_data(results):
    """Return results by data set, each extended by the values of its first record."""
    return each([result | result["records"][0] for result in results], "data")


def columns(figure, results, labels, **options):
    """Yield the results of each data set, and a column of panels with these labels."""
    grouped = by_data(results)
    figure.set_figheight(0.6 + 1.9 * len(labels))
    axes = figure.subplots(len(labels), len(grouped), squeeze=False, **options)
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    for column, (data, members) in zip(axes.T, grouped.items(), strict=True):
        column[0].set_title(data)
        yield members, column


def rows(figure, results, labels, height):
    """Yield the results of each data set, and a row of panels with these labels."""
    grouped = by_data(results)
    figure.set_figheight(0.4 + height * len(grouped))
    axes = figure.subplots(len(grouped), len(labels), squeeze=False, sharey="row")
    for row, (data, members) in zip(axes, grouped.items(), strict=True):
        row[0].set_title(data)
        for ax, label in zip(row, labels, strict=True):
            ax.set_xlabel(label)
        yield members, row


def panels(figure, names, label="", n_columns=3):
    """Return panels by name, in rows, with a shared vertical axis."""
    n_rows = -(-len(names) // n_columns)
    figure.set_figheight(0.6 + 2.2 * n_rows)
    shape = n_rows, min(len(names), n_columns)
    axes = figure.subplots(*shape, sharey=True, squeeze=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    named = dict(zip(names, axes.flat, strict=False))
    for name, ax in named.items():
        ax.set_title(name)
    return named


def lines(ax, names):
    """Draw a horizontal line for each name, with the first one at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", color="0.85", lw=0.8)


def zero(ax):
    """Draw a line at margin 0."""
    ax.axhline(0, color="0.3", lw=0.8, zorder=0)


def share(record):
    """Return the margin as a share of the information, clipped at LEAST."""
    return max(record["margin"] / record["information"], LEAST)


def mark(ax, x, y, look, filled):
    """Draw a mark, filled or not."""
    ax.plot(x, y, look, fillstyle="full" if filled else "none")


def band(ax, curves, look, label=None, first=0):
    """Draw the median of curves, with a shade from minimum to maximum."""
    curves = np.maximum(curves, LEAST)
    x = np.arange(first, first + curves.shape[1])
    (line,) = ax.plot(x, np.median(curves, axis=0), look, markevery=[], label=label)
    low, high = curves.min(axis=0), curves.max(axis=0)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.25, lw=0)


def intervals(ax, grouped, keys, look, label):
    """Draw a bar for each group, from minimum to maximum, with a mark at the median.

    `keys` are those of minimum, median and maximum.
    """
    low, middle, high = (
        np.array([f([r[key] for r in members]) for members in grouped.values()])
        for f, key in zip((min, np.median, max), keys, strict=True)
    )
    off = middle - low, high - middle
    ax.errorbar([*grouped], middle, off, fmt=look, mfc="none", capsize=2, label=label)
