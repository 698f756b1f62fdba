"""Show `prevention`: margins with alignment, without it, and after a swap."""

import numpy as np
from cells import Experiment
from claims import certified, tally
from experiments.prevention import KL_WEIGHTS, cells, compute
from figures import LEAST, band, columns, mark, share, zero
from lab import COLLAPSE
from records import has, records_of, where
from tables import CODE, MARGIN, kl_weight

# For each phase: the claim, whether it is true of all models or of none, and whether it
# must hold. If another one does not hold, that only differs from the paper.
PATTERN = {
    "aligned": ("with alignment, all models are certified", True, True),
    "alignment removed": (
        "after alignment is removed, no model is certified",
        False,
        False,
    ),
    "never aligned": ("without alignment, no model is certified", False, False),
    "rescued": ("rescued by alignment, all models are certified", True, True),
    "forced constant": ("with a constant mean, no model is certified", False, True),
}
ALIGNED, UNALIGNED = ("aligned", "rescued"), ("alignment removed", "never aligned")
# Color, mark and line of the two models, and their phases.
LOOKS = {
    "aligned, then not": ("C0o-", ("aligned", "alignment removed")),
    "not aligned, then rescued": ("C1^--", ("never aligned", "rescued")),
}
BY = "data", "kl_weight", "phase"


def claims(records):
    """Claim which phases are certified, informative or collapsed."""
    found = [
        tally(where(records, phase=phase), BY[:2], sentence, certified, *expected)
        for phase, (sentence, *expected) in PATTERN.items()
    ]
    aligned = [r for r in records if r["phase"] in ALIGNED]
    collapsing = [
        r for r in where(records, kl_weight=COLLAPSE) if r["phase"] in UNALIGNED
    ]
    alive = "with alignment, drawn codes are informative"
    dead = f"at {COLLAPSE} without alignment, drawn codes have collapsed"
    return [
        *found,
        tally(aligned, BY, alive, has(state="informative")),
        tally(collapsing, BY, dead, has(state="collapsed")),
    ]


def draw(results, figure):
    """Draw the margins of two models, with alignment swapped halfway."""
    labels = [f"kl_weight {weight}\nmargin / information" for weight in KL_WEIGHTS]
    for members, axes in columns(figure, results, labels, sharex="col", sharey=True):
        for ax, weight in zip(axes, KL_WEIGHTS, strict=True):
            draw_curves(ax, where(members, kl_weight=weight))
        axes[-1].set_xlabel("epoch")


def draw_curves(ax, results):
    """Draw both models of all seeds, with a dotted line where alignment is swapped."""
    records, swap = records_of(results), len(results[0]["curves"][1]) // 2
    for i, (label, (look, phases)) in enumerate(LOOKS.items()):
        curves = [result["curves"][i] for result in results]
        band(ax, curves, look, label, first=1)
        for epoch, phase in zip((swap, len(curves[0])), phases, strict=True):
            members = where(records, phase=phase)
            informative = all(map(has(state="informative"), members))
            mark(ax, epoch, np.median([*map(share, members)]), look[:3], informative)
    ax.axvline(swap, color="0.3", lw=0.8, linestyle=":", zorder=0)
    zero(ax)
    ax.set_ylim(LEAST - 0.1, 1.1)


PREVENTION = Experiment(
    name="prevention",
    title="Prevention, collapse, rescue",
    cells=cells,
    compute=compute,
    by=BY,
    columns={"kl_weight": kl_weight} | MARGIN | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "The margin as a share of the teacher information. Values below -1 are drawn "
        "at -1. A line is the median over the seeds on training images; the shade goes "
        "from the least to the greatest. At the dotted line, alignment is turned off "
        "for one model and turned on for the other. A mark is the margin on test "
        "images. It is filled if drawn codes are informative in all seeds. *To see*: "
        "whether margins rise where alignment is turned on, and whether codes at 1.5 "
        "β* collapse where it is off."
    ),
)
