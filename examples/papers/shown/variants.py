"""How vanilla, RST, RST-prefit and RST-alpha-prefit are shown."""

from cells import Experiment
from experiments.variants import VARIANTS_OF, cells, compute
from tables import CODE, MARGIN, ROUND_TRIP, expect, groups, median

MARKS = dict(zip(VARIANTS_OF, ("C0x", "C1o", "C2^", "C3s"), strict=True))


def claims(records):
    """Vanilla fails in all seeds, and what is aligned is certified in all."""
    by = "data", "kl_weight"
    vanilla = "vanilla: none is certified", False, False
    told = {
        (name,): (f"{name}: all are certified", True, True) for name in VARIANTS_OF
    } | {("vanilla",): vanilla}
    return [
        expect(some, by, *told[name])
        for name, some in groups(records, ("variant",)).items()
    ]


def draw(results, figure):
    """Draw relative margins, a mark a seed."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    axes = figure.subplots(1, len(by_data), sharey=True, squeeze=False)[0]
    for ax, ((data,), some) in zip(axes, by_data.items(), strict=True):
        draw_marks(ax, groups(some, ("kl_weight", "variant")))
        ax.set_title(data, fontsize="medium")
        ax.set_xlabel("kl_weight")
    axes[0].set_ylabel("margin / teacher information")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique, loc="outside lower center", ncols=4, frameon=False
    )


def draw_marks(ax, some):
    """Draw a column of marks for each group of records."""
    weights = [*dict.fromkeys(kl for kl, _ in some)]
    for (kl, variant), records in some.items():
        margins = [record["margin"] / record["information"] for record in records]
        # Beside each other, in the order of the variants.
        x = weights.index(kl) + 0.15 * list(MARKS).index(variant)
        ax.plot([x] * len(margins), margins, MARKS[variant], mfc="none", label=variant)
    middle = [x + 0.225 for x in range(len(weights))]
    ax.set_xticks(middle, weights)
    ax.margins(x=0.3)
    ax.axhline(0, color="0.2", lw=1)


VARIANTS = Experiment(
    name="variants",
    title="Vanilla, RST, RST-prefit, RST-alpha-prefit",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "variant"),
    columns={"threshold of collapse": median("threshold")} | MARGIN | CODE | ROUND_TRIP,
    claims=claims,
    draw=draw,
)
