"""How prevention, collapse and rescue are shown."""

import numpy as np
from cells import Experiment
from experiments.prevention import KL_WEIGHTS, cells, compute
from figures import LEAST, band, legend_below
from lab import COLLAPSE
from tables import (
    CODE,
    MARGIN,
    expect,
    groups,
    has_state,
    kl_weight,
    records_of,
    tally,
    where,
)

# What each should show: whether all are certified or none, and whether anything else
# is a failure, or only not as the paper has it.
PATTERN = {
    "aligned": ("trained with alignment, all are certified", True, True),
    "alignment removed": ("trained on without it, none is certified", False, False),
    "never aligned": ("trained without alignment, none is certified", False, False),
    "rescued": ("rescued by alignment, all are certified", True, True),
    "forced constant": ("with a constant mean, none is certified", False, True),
}
ALIGNED, UNALIGNED = ("aligned", "rescued"), ("alignment removed", "never aligned")
# Colour, mark and line of two models, and their phases.
LOOKS = {
    "aligned, then not": ("C0o-", ("aligned", "alignment removed")),
    "not aligned, then rescued": ("C1^--", ("never aligned", "rescued")),
}


def claims(records):
    """Certified, not certified, certified; a constant never; and the drawn codes."""
    by = "data", "kl_weight"
    verdicts = [
        expect(where(records, phase=phase), by, *told)
        for phase, told in PATTERN.items()
    ]
    aligned = [r for r in records if r["phase"] in ALIGNED]
    unaligned = [r for r in records if r["phase"] in UNALIGNED]
    by = *by, "phase"
    return [
        *verdicts,
        tally(
            aligned,
            by,
            "with alignment, drawn codes are informative",
            has_state("informative"),
        ),
        tally(
            where(unaligned, kl_weight=COLLAPSE),
            by,
            f"at {COLLAPSE} without alignment, drawn codes collapse",
            has_state("collapsed"),
        ),
    ]


def draw(results, figure):
    """Draw the margins while two models are trained, and go on the other way."""
    told = [result | result["records"][0] for result in results]
    by_data = groups(told, ("data",))
    figure.set_figheight(4.4)
    axes = figure.subplots(2, len(by_data), sharey=True, sharex="col", squeeze=False)
    for column, ((data,), some) in zip(axes.T, by_data.items(), strict=True):
        for ax, weight in zip(column, KL_WEIGHTS, strict=True):
            draw_curves(ax, where(some, kl_weight=weight))
        column[0].set_title(data)
        column[-1].set_xlabel("epoch")
    for ax, weight in zip(axes[:, 0], KL_WEIGHTS, strict=True):
        ax.set_ylabel(f"kl_weight {weight}\nmargin / information")
    legend_below(figure, axes[0, 0])


def draw_curves(ax, results):
    """Draw two models of all seeds; at the dotted line the alignment is swapped."""
    records = records_of(results)
    for i, (label, (look, phases)) in enumerate(LOOKS.items()):
        curves = np.array([result["curves"][i] for result in results])
        epochs = np.arange(1, curves.shape[1] + 1)
        band(ax, epochs, np.maximum(curves, LEAST), look, label)
        for epoch, phase in zip((swap(results), epochs[-1]), phases, strict=True):
            draw_mark(ax, epoch, where(records, phase=phase), look)
    ax.axvline(swap(results), color="0.3", lw=0.8, linestyle=":", zorder=0)
    ax.axhline(0, color="0.3", lw=0.8, zorder=0)
    ax.set_ylim(LEAST - 0.1, 1.1)


def swap(results):
    """Return the epoch after which alignment is turned off, or on."""
    return len(results[0]["curves"][1]) // 2


def draw_mark(ax, epoch, records, look):
    """Draw the margin on test images, filled if all drawn codes are informative."""
    share = np.median([record["margin"] / record["information"] for record in records])
    fill = "full" if all(map(has_state("informative"), records)) else "none"
    ax.plot(epoch, max(share, LEAST), look[:3], fillstyle=fill)


PREVENTION = Experiment(
    name="prevention",
    title="Prevention, collapse, rescue",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "phase"),
    columns={"kl_weight": kl_weight} | MARGIN | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "Margins as shares of the teacher information, those below -1 drawn there. "
        "Lines: training images, median of the seeds, shaded from least to greatest. "
        "At the dotted line alignment is turned off for one model and on for the "
        "other. Marks: test images; filled if drawn codes are informative in all "
        "seeds. *To see*: margins rise where alignment is turned on and fall where it "
        "is turned off; at 1.5 β* they fall to 0, and the codes collapse."
    ),
)
