"""How vanilla, RST, RST-prefit and RST-alpha-prefit are shown."""

from cells import Experiment
from experiments.variants import VARIANTS_OF, cells, compute
from figures import LEAST, legend_below, panels
from tables import (
    CODE,
    MARGIN,
    expect,
    groups,
    has_state,
    kl_weight,
    n_certified,
    records_of,
    tally,
    where,
)

VANILLA = "vanilla"
MARKS = dict(zip(VARIANTS_OF, ("C2v", "C3s", "C1^", "C0o"), strict=True))


def claims(records):
    """Vanilla fails in all seeds, collapsed or not; what is aligned is certified."""
    by = "data", "kl_weight"
    vanilla = where(records, variant=VANILLA)
    aligned = groups([r for r in records if r["variant"] != VANILLA], ("variant",))
    return [
        expect(vanilla, by, "no vanilla model is certified", False),
        *(
            expect(some, by, f"all {name} models are certified", True, must=True)
            for (name,), some in aligned.items()
        ),
        tally(
            vanilla,
            ("kl_weight",),
            "the codes of all vanilla models have collapsed",
            has_state("collapsed"),
        ),
    ]


def draw(results, figure):
    """Draw margins as shares of the information, a mark a seed."""
    by_data = groups(records_of(results), ("data",))
    axes = panels(figure, [data for (data,) in by_data])
    for (data,), some in by_data.items():
        draw_marks(axes[data], some)
        axes[data].set(xlabel="kl_weight", ylim=(LEAST - 0.1, 1.1))
    first = next(iter(axes.values()))
    for name, mark in MARKS.items():
        first.plot([], [], mark, label=name)
    legend_below(figure, first)


def draw_marks(ax, records):
    """Draw a column of marks for each KL weight and variant."""
    weights = [*dict.fromkeys(record["kl_weight"] for record in records)]
    for record in records:
        # Beside each other, in the order of the variants.
        place = 0.2 * [*MARKS].index(record["variant"]) - 0.3
        x = weights.index(record["kl_weight"]) + place
        share = max(record["margin"] / record["information"], LEAST)
        fill = "full" if record["state"] == "informative" else "none"
        ax.plot(x, share, MARKS[record["variant"]], fillstyle=fill)
    for x in range(1, len(weights)):
        ax.axvline(x - 0.5, color="0.85", lw=0.8, zorder=0)
    ax.axhline(0, color="0.3", lw=0.8, zorder=0)
    ax.set_xticks(range(len(weights)), weights)


VARIANTS = Experiment(
    name="variants",
    title="Vanilla, RST, RST-prefit, RST-alpha-prefit",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "variant"),
    columns={"kl_weight": kl_weight}
    | MARGIN
    | CODE
    | {"round trip: certified": n_certified("round_trip_verdict")},
    claims=claims,
    draw=draw,
    caption=(
        "Margins on test images as shares of the teacher information, a mark a seed; "
        "those below -1 are drawn there. Filled marks: drawn codes are informative. "
        "*To see*: the aligned variants lie above 0, vanilla does not. Where vanilla's "
        "marks are filled, nothing has collapsed: the codes do not face the simplex."
    ),
)
