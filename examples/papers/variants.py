"""Vanilla against RST, RST-prefit and RST-alpha-prefit (arXiv:2605.18224)."""

from cells import Experiment
from lab import FORETOLD, SCALES, certified, measure, round_trip
from tables import CODE, MARGIN, ROUND_TRIP, expect, groups, median

from skvaecert.forecast import collapse_threshold

# Nats a sample that the code of the regression may cost (theory section 11).
PREFIT_ENERGY = 2.0
VARIANTS_OF = {
    "vanilla": {"aligned": False},
    "RST": {},
    "RST-prefit": {"prefit": "analytic"},
    "RST-alpha-prefit": {"prefit": {"energy": PREFIT_ENERGY}},
}
MARKS = dict(zip(VARIANTS_OF, ("C0x", "C1o", "C2^", "C3s"), strict=True))


def cells(setting):
    """One cell a seed, scale and variant."""
    return [
        {"scale": scale, "variant": variant, "seed": seed}
        for seed in range(setting.n_seeds)
        for scale in SCALES
        for variant in VARIANTS_OF
    ]


def compute(lab, scale, variant, seed, kl_weight=1.0):
    """Train one variant, and certify its mean and its round trip."""
    samples = lab.samples(seed)
    vae = lab.vae(samples, scale, seed, kl_weight=kl_weight, **VARIANTS_OF[variant])
    told = {"data": lab.setting.data, "scale": scale, "kl_weight": kl_weight}
    told |= {"variant": variant, "seed": seed}
    told |= {"threshold": collapse_threshold(samples.train, reduction=scale)}
    certifier = certified(vae, samples)
    record = measure(certifier, samples.test) | round_trip(certifier, samples.test)
    return {"records": [told | record]}


def claims(records):
    """Vanilla fails in all seeds, and what is aligned is certified in all."""
    by = "data", "scale", "kl_weight"
    vanilla = f"vanilla: none is certified, {FORETOLD}", False, False
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
    by_data = groups(records, ("data", "scale"))
    axes = figure.subplots(1, len(by_data), sharey=True, squeeze=False)[0]
    for ax, ((data, scale), some) in zip(axes, by_data.items(), strict=True):
        draw_marks(ax, groups(some, ("kl_weight", "variant")))
        ax.set_title(f"{data}\n{scale}", fontsize="medium")
        ax.set_xlabel("kl_weight")
    axes[0].set_ylabel("margin / teacher information")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique, loc="outside lower center", ncols=4, frameon=False
    )


def draw_marks(ax, some):
    """Draw a column of marks for each group of records."""
    weights = sorted({kl_weight for kl_weight, _ in some})
    for (kl_weight, variant), records in some.items():
        margins = [record["margin"] / record["information"] for record in records]
        # Beside each other, in the order of the variants.
        x = weights.index(kl_weight) + 0.15 * list(MARKS).index(variant)
        ax.plot([x] * len(margins), margins, MARKS[variant], mfc="none", label=variant)
    middle = [x + 0.225 for x in range(len(weights))]
    ax.set_xticks(middle, [f"{kl_weight:g}" for kl_weight in weights])
    ax.margins(x=0.3)
    ax.axhline(0, color="0.2", lw=1)


VARIANTS = Experiment(
    name="variants",
    title="Vanilla, RST, RST-prefit, RST-alpha-prefit",
    cells=cells,
    compute=compute,
    by=("data", "scale", "variant"),
    columns={"threshold of collapse": median("threshold")} | MARGIN | CODE | ROUND_TRIP,
    claims=claims,
    draw=draw,
)
