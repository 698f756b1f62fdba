"""How more epochs and a greater weight are shown."""

import numpy as np
from cells import Experiment
from experiments.longer import REMOVED, RESCUED, cells, compute
from figures import LEAST, band, legend_below, panels
from tables import CODE, MARGIN, expect, groups, median, where

LOOKS = dict(zip((REMOVED, *RESCUED), ("C0-", "C1--", "C2:"), strict=True))


def claims(records):
    """Not certified any more, or certified after all."""
    rescued = [record for record in records if record["case"] in RESCUED]
    by = "data", "case"
    return [
        expect(
            where(records, case=REMOVED), by, f"{REMOVED}: none is certified", False
        ),
        expect(rescued, by, "rescued with more: all are certified", True),
    ]


def draw(results, figure):
    """Draw the margins while models are trained, and trained on."""
    by_data = groups([r | r["records"][0] for r in results], ("data",))
    axes = panels(figure, [data for (data,) in by_data])
    for (data,), some in by_data.items():
        for (case,), few in groups(some, ("case",)).items():
            curves = np.array([result["curves"][0] for result in few])
            epochs = np.arange(1, curves.shape[1] + 1)
            band(axes[data], epochs, np.maximum(curves, LEAST), LOOKS[case], case)
        axes[data].axhline(0, color="0.3", lw=0.8, zorder=0)
        axes[data].set_xlabel("epoch")
    first = next(iter(axes.values()))
    first.set_ylabel("margin / information")
    legend_below(figure, *axes.values())


LONGER = Experiment(
    name="longer",
    title="With more epochs, or a greater weight",
    cells=cells,
    compute=compute,
    by=("data", "case"),
    columns={"epochs": median("epochs", 0)} | MARGIN | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "Margins on training images as shares of the teacher information, those below "
        "-1 drawn there: median of the seeds, shaded from least to greatest."
    ),
    data=("mnist", "cifar10-conv", "tiny-imagenet"),
)
