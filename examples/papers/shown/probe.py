"""How linear classifiers of the labels are shown."""

import numpy as np
from cells import Experiment
from experiments.probe import KL_WEIGHTS, N_PER_CLASS, cells, compute
from settings import FULLY_CONNECTED
from tables import MARGIN, Claim, groups, spread, where

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
    records = [record for result in results for record in result["records"]]
    records = [record for record in records if record["codes"] != "majority class"]
    by_data = groups(records, ("data",))
    axes = figure.subplots(1, len(by_data), sharey=True, squeeze=False)[0]
    for ax, ((data,), some) in zip(axes, by_data.items(), strict=True):
        draw_marks(ax, groups(some, ("codes", "kl_weight")))
        ax.set_title(data, fontsize="medium")
        ax.set_xlabel("accuracy")
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique, loc="outside lower center", ncols=2, frameon=False
    )


def draw_marks(ax, kinds):
    """Draw a line of marks for each kind of code."""
    for y, records in enumerate(kinds.values()):
        for amount, mark in MARKS.items():
            accuracies = [record[amount] for record in records]
            at = [y] * len(records)
            ax.plot(accuracies, at, mark, mfc="none", ms=5, label=LABELS[amount])
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
    data=FULLY_CONNECTED,
)
