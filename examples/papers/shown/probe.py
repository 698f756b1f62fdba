"""How linear classifiers of the labels are shown."""

import numpy as np
from cells import Experiment
from experiments.probe import KL_WEIGHTS, N_PER_CLASS, cells, compute
from figures import legend_below, panels
from settings import FULLY_CONNECTED
from tables import MARGIN, Claim, groups, records_of, spread, where

LABELS = {"few": f"{N_PER_CLASS} labels a class", "all": "all labels"}
MARKS = {"few": "C1o", "all": "C0s"}
OTHERS = ("plain", "PCA", "teacher posterior")


def claims(records):
    """At each kl_weight, the aligned code is above each other one, in all seeds."""
    return [
        above(records, kl_weight, other, amount)
        for kl_weight in KL_WEIGHTS
        for other in OTHERS
        for amount in LABELS
    ]


def above(records, kl_weight, other, amount):
    """Claim that alignment is better in all seeds; count those where it is."""
    told, holds = [], []
    for (data,), some in groups(records, ("data",)).items():
        gains = gain(some, kl_weight, other, amount)
        holds.append(all(gains > 0))
        told.append(
            f"{data} {sum(gains > 0)} of {len(gains)} ({np.median(gains):+.3f})"
        )
    return Claim(
        f"kl_weight {kl_weight}, {LABELS[amount]}: aligned is above {other} in all "
        f"seeds; it is in (median difference): {', '.join(told)}",
        all(holds),
        must=False,
    )


def gain(records, kl_weight, other, amount):
    """Return by how much alignment is better, for each seed."""
    beside = kl_weight if other == "plain" else ""
    pairs = zip(
        where(records, codes="aligned", kl_weight=kl_weight),
        where(records, codes=other, kl_weight=beside),
        strict=True,
    )
    return np.array([one[amount] - two[amount] for one, two in pairs])


def of_vaes(column):
    """Make a column that is empty for codes of something else."""
    return lambda records: column(records) if "verdict" in records[0] else ""


def draw(results, figure):
    """Draw accuracies above chance, a line for each kind of code and a mark a seed."""
    records = [r for r in records_of(results) if r["codes"] != "majority class"]
    by_data = groups(records, ("data",))
    axes = panels(figure, [data for (data,) in by_data], n_columns=2)
    for (data,), some in by_data.items():
        draw_marks(axes[data], groups(some, ("codes", "kl_weight")))
        axes[data].set_xlabel("accuracy")
    first = next(iter(axes.values()))
    first.invert_yaxis()
    legend_below(figure, first)


def draw_marks(ax, kinds):
    """Draw a line of marks for each kind of code."""
    for y, records in enumerate(kinds.values()):
        for amount, mark in MARKS.items():
            accuracies, at = [record[amount] for record in records], [y] * len(records)
            ax.plot(accuracies, at, mark, mfc="none", label=LABELS[amount])
    names = [", ".join(filter(None, kind)) for kind in kinds]
    ax.set_yticks(range(len(kinds)), names)
    ax.grid(axis="y", lw=0.5)


PROBE = Experiment(
    name="probe",
    title="A linear probe of the labels",
    cells=cells,
    compute=compute,
    by=("data", "codes", "kl_weight"),
    columns={
        "dimension": spread("dimension", 0),
        LABELS["few"]: spread("few", 3),
        LABELS["all"]: spread("all", 3),
    }
    | {name: of_vaes(column) for name, column in MARGIN.items()},
    claims=claims,
    draw=draw,
    caption=(
        "Share of test labels that a linear classifier of the codes gets right, a mark "
        "a seed. *To see*: where alignment moves the marks to the right of the plain "
        "model at the same kl_weight, and how far both are from PCA."
    ),
    data=FULLY_CONNECTED,
)
