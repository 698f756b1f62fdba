"""How escape trajectories are shown."""

import numpy as np
from cells import Experiment
from experiments.escape import cells, compute
from figures import band, legend_below
from tables import groups, spread, tally


def claims(records):
    """The margin rises from nothing, and the gradient is never 0 on the way."""
    least = min(record["escape_gradient_least"] for record in records)
    return [
        tally(
            records,
            ("data",),
            "the margin rises from at most 0.05 of the information to above 0.2",
            lambda record: record["start"] <= 0.05 and record["end"] > 0.2,
            must=True,
        ),
        tally(
            records,
            ("data",),
            f"the escape gradient is never 0, its norm at least {least:.2g} nats",
            lambda record: record["escape_gradient_least"] > 0,
            must=True,
        ),
    ]


def draw(results, figure):
    """Draw margin and gradient by step, and margin by energy."""
    told = [result | result["records"][0] for result in results]
    by_data = groups(told, ("data",))
    figure.set_figheight(5.6)
    axes = figure.subplots(3, len(by_data), squeeze=False, sharey="row")
    for column, ((data,), some) in zip(axes.T, by_data.items(), strict=True):
        column[0].set_title(data)
        draw_steps(column, some)
        draw_path(column[2], some)
    labels = "margin / information", "escape gradient (nats)", "margin / information"
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    legend_below(figure, axes[2, 0])


def shares(results, key="margin"):
    """Return margins as shares of the information at the start, a line a seed."""
    curves = [result["curves"] for result in results]
    return np.array([np.array(c[key]) / c["information"][0] for c in curves])


def draw_steps(axes, results):
    """Draw margin and gradient by step."""
    gradients = [result["curves"]["escape_gradient"] for result in results]
    steps = range(len(gradients[0]))
    band(axes[0], steps, shares(results), "C0-")
    axes[0].axhline(0, color="0.3", lw=0.8, zorder=0)
    band(axes[1], steps, gradients, "C0-")
    axes[1].set_yscale("log", subs=(2, 5))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("{x:g}")
    for ax in axes[:2]:
        ax.set_xlabel("step")


def draw_path(ax, results):
    """Draw margin by energy, a dot a step, and the analytic paths."""
    pairs = zip(results, shares(results), shares(results, "path_margin"), strict=True)
    for result, trained, analytic in pairs:
        curves = result["curves"]
        ax.plot(curves["path_energy"], analytic, "C1--", label="closed-form code")
        ax.plot(curves["energy"], trained, "C0.", ms=2, label="trained, a dot a step")
    ax.set_xlabel("energy (nats a sample)")


ESCAPE = Experiment(
    name="escape",
    title="Escape trajectories",
    cells=cells,
    compute=compute,
    by=("data",),
    columns={
        "margin / information at the start": spread("start"),
        "at the end": spread("end"),
        "steps until it stays above 0": spread("steps_to_positive", 0),
        "escape gradient at the start (nats)": spread("escape_gradient_start"),
        "least on the way": spread("escape_gradient_least"),
        "energy at the end (nats)": spread("energy", 1),
        "closed-form code of this margin": spread("path_energy", 1),
        "ELBO at the end": spread("elbo", 0),
    },
    claims=claims,
    draw=draw,
    caption=(
        "From the step on where alignment is turned on: the margin on training images "
        "as a share of the teacher information, the norm of the escape gradient, and "
        "the margin by the energy of the code, beside that of the scaled closed-form "
        "code. Median of the seeds, shaded from least to greatest; below, all seeds. "
        "*To see*: the margin leaves 0 within a few steps, and the gradient is nowhere "
        "0."
    ),
)
