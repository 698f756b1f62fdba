"""Show `longer`: more epochs, and a greater alignment weight."""

from cells import Experiment
from claims import certified, tally
from experiments.longer import REMOVED, RESCUED, cells, compute
from figures import band, by_data, panels, zero
from records import each, where
from tables import CODE, MARGIN, median

LOOKS = dict(zip((REMOVED, *RESCUED), ("C0-", "C1--", "C2:"), strict=True))
BY = "data", "case"


def claims(records):
    """Claim the loss and the rescue of certificates by longer or stronger training."""
    removed = where(records, case=REMOVED)
    rescued = [record for record in records if record["case"] in RESCUED]
    lost, regained = (
        "with 5 times the epochs after alignment is removed, no model is certified",
        "after a longer or stronger rescue, all models are certified",
    )
    return [
        tally(removed, BY, lost, certified, False),
        tally(rescued, BY, regained, certified),
    ]


def draw(results, figure):
    """Draw the margin after each epoch."""
    grouped = by_data(results)
    for data, ax in panels(figure, grouped, "margin / information").items():
        for case, members in each(grouped[data], "case").items():
            band(ax, [r["curves"][0] for r in members], LOOKS[case], case, first=1)
        zero(ax)
        ax.set_xlabel("epoch")


LONGER = Experiment(
    name="longer",
    title="With more epochs, or a greater weight",
    cells=cells,
    compute=compute,
    by=BY,
    columns={"epochs": median("epochs", 0)} | MARGIN | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "The margin on training images as a share of the teacher information. Values "
        "below -1 are drawn at -1. A line is the median of the seeds; the shade goes "
        "from the least to the greatest. *To see*: whether the margin falls below 0 "
        "long after alignment is removed, and whether it rises above 0 with a longer "
        "or a stronger rescue."
    ),
    data=("mnist", "cifar10-conv", "tiny-imagenet"),
)
