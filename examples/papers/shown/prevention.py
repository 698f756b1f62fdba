"""How prevention, collapse and rescue are shown."""

from cells import Experiment
from experiments.prevention import KL_WEIGHTS, cells, compute
from tables import CODE, MARGIN, expect, median, where

# What each should show: whether all are certified or none, and whether anything else
# is a failure, or only not as the paper has it.
PATTERN = {
    "aligned": ("trained with alignment, all are certified", True, True),
    "alignment removed": ("trained on without it, none is certified", False, False),
    "never aligned": ("trained without alignment, none is certified", False, False),
    "rescued": ("rescued by alignment, all are certified", True, True),
    "forced constant": ("with a constant mean, none is certified", False, True),
}


def claims(records):
    """Certified, not certified, certified; a constant never."""
    by = "data", "kl_weight"
    return [
        expect(where(records, phase=phase), by, sentence, certified, must)
        for phase, (sentence, certified, must) in PATTERN.items()
    ]


def draw(results, figure):
    """Draw the margins while two models are trained, and go on the other way."""
    panels = {kl: {} for kl in KL_WEIGHTS}
    for result in results:
        record = result["records"][0]
        panels[record["kl_weight"]].setdefault(record["data"], []).append(result)
    figure.set_size_inches(9, 6)
    axes = figure.subplots(2, len(panels["1"]), sharey=True, squeeze=False)
    some = [(kl, data, panels[kl][data]) for kl in KL_WEIGHTS for data in panels[kl]]
    for ax, (kl, data, found) in zip(axes.flat, some, strict=True):
        draw_curves(ax, found)
        ax.set_title(f"{data}, {kl}", fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("margin / teacher information")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[0, 0].legend(frameon=False, fontsize="small", loc="lower right")


def draw_curves(ax, results):
    """Draw the curves of all seeds; at the dotted line the alignment is swapped."""
    looks = [
        ("aligned, then not", "C0", "-"),
        ("not aligned, then rescued", "C1", "--"),
    ]
    for i, result in enumerate(results):
        for curve, (label, color, line) in zip(result["curves"], looks, strict=True):
            ax.plot(curve, line, color=color, lw=1, label=None if i else label)
    ax.axvline(len(results[0]["curves"][1]) / 2, color="0.5", linestyle=":")
    ax.axhline(0, color="0.2", lw=1)
    ax.set_ylim(bottom=-1, top=1)


PREVENTION = Experiment(
    name="prevention",
    title="Prevention, collapse, rescue",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "phase"),
    columns={"epochs": median("epochs", 0)} | MARGIN | CODE,
    claims=claims,
    draw=draw,
)
