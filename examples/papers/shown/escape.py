"""Show `escape`: trajectories from a collapsed start."""

import numpy as np
from cells import Experiment
from claims import tally
from experiments.escape import cells, compute
from figures import band, columns, zero
from tables import spread

BY = ("data",)


def claims(records):
    """Claim that the margin rises, and that the escape gradient is never 0."""
    least = min(record["escape_gradient_least"] for record in records)
    rises = "the margin rises from at most 0.05 of the information to above 0.2"
    pulls = f"the norm of the escape gradient is never 0 (at least {least:.2g} nats)"
    return [
        tally(
            records,
            BY,
            rises,
            lambda r: r["start"] <= 0.05 and r["end"] > 0.2,
            must=True,
        ),
        tally(records, BY, pulls, lambda r: r["escape_gradient_least"] > 0, must=True),
    ]


def draw(results, figure):
    """Draw margin and gradient by step, and margin by energy."""
    labels = "margin / information", "escape gradient (nats)", "margin / information"
    for group, (upper, middle, lower) in columns(figure, results, labels, sharey="row"):
        band(upper, shares(group), "C0-")
        zero(upper)
        upper.set_xlabel("step")
        band(middle, [result["curves"]["escape_gradient"] for result in group], "C0-")
        middle.set_yscale("log", subs=(2, 5))
        middle.yaxis.set_major_formatter("{x:g}")
        middle.yaxis.set_minor_formatter("{x:g}")
        middle.set_xlabel("step")
        draw_path(lower, group)


def shares(results, key="margin"):
    """Return the curve of each seed as a share of its information at the start."""
    curves = [result["curves"] for result in results]
    return [np.array(c[key]) / c["information"][0] for c in curves]


def draw_path(ax, results):
    """Draw margin by energy, a dot for each step, and the analytic paths."""
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
    by=BY,
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
        "The first steps with alignment, from a collapsed VAE. Top: the margin on "
        "training images as a share of the teacher information. Middle: the norm of "
        "the escape gradient. A line is the median of the seeds; the shade goes from "
        "the least to the greatest. Bottom: the margin against the energy of the code, "
        "for all seeds, beside the closed-form code scaled down. *To see*: how "
        "soon the margin leaves 0, and whether the gradient is ever 0."
    ),
)
