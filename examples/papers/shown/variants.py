"""Show `variants`: vanilla, RST, RST-prefit and RST-alpha-prefit."""

from cells import Experiment
from claims import certified, tally
from experiments.variants import VARIANTS_OF, cells, compute
from figures import LEAST, by_data, mark, panels, share, zero
from records import each, has, records_of
from tables import CODE, MARGIN, counts, kl_weight

VANILLA = "vanilla"
MARKS = dict(zip(VARIANTS_OF, ("C2v", "C3s", "C1^", "C0o"), strict=True))
BY = "data", "kl_weight"


def claims(records):
    """Claim that vanilla models collapse and only aligned models are certified."""
    aligned = each(records, "variant")
    vanilla = aligned.pop(VANILLA)
    dead = "the codes of all vanilla models have collapsed"
    return [
        tally(vanilla, BY, "no vanilla model is certified", certified, False),
        *(
            tally(group, BY, f"all {name} models are certified", certified, must=True)
            for name, group in aligned.items()
        ),
        tally(vanilla, ("kl_weight",), dead, has(state="collapsed")),
    ]


def draw(results, figure):
    """Draw margins as shares of the information, a mark for each seed."""
    grouped = by_data(results)
    for data, ax in panels(figure, grouped, "margin / information").items():
        draw_marks(ax, each(records_of(grouped[data]), "kl_weight"))
        ax.set(xlabel="kl_weight", ylim=(LEAST - 0.1, 1.1))
        for name, look in MARKS.items():
            ax.plot([], [], look, label=name)


def draw_marks(ax, by_weight):
    """Draw a column of marks for each KL weight and variant."""
    for x, records in enumerate(by_weight.values()):
        for record in records:
            # Side by side, in the order of the variants.
            place = x + 0.2 * [*MARKS].index(record["variant"]) - 0.3
            informative = record["state"] == "informative"
            mark(ax, place, share(record), MARKS[record["variant"]], informative)
        if x > 0:
            ax.axvline(x - 0.5, color="0.85", lw=0.8, zorder=0)
    zero(ax)
    ax.set_xticks(range(len(by_weight)), by_weight)


VARIANTS = Experiment(
    name="variants",
    title="Vanilla, RST, RST-prefit, RST-alpha-prefit",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "variant"),
    columns={"kl_weight": kl_weight}
    | MARGIN
    | CODE
    | {"round trip": counts("round_trip_verdict")},
    claims=claims,
    draw=draw,
    caption=(
        "The margin on test images as a share of the teacher information, a mark for "
        "each seed. Values below -1 are drawn at -1. A mark is filled if drawn codes "
        "are informative. *To see*: whether the aligned variants lie above 0 and "
        "vanilla below. Where the marks of vanilla are filled, nothing has collapsed: "
        "the codes are only not oriented towards the witness."
    ),
)
