"""How a KL weight that grows through the threshold of collapse is shown."""

import numpy as np
from cells import Experiment
from experiments.sweep import MODELS, cells, compute
from figures import WIDTH, legend_below
from settings import FULLY_CONNECTED
from tables import (
    CODE,
    MARGIN,
    Claim,
    expect,
    groups,
    has_state,
    is_certified,
    median,
    number,
    records_of,
    spread,
    tally,
    where,
)

STYLES = dict(zip(MODELS, ("C1o--", "C0^-"), strict=True))
NEGLIGIBLE = 0.05
BY = "data", "kl_weight"


def claims(records):
    """Collapse where it is computed to be, none with alignment, and at what price."""
    plain, aligned = (where(records, model=model) for model in MODELS)
    above = [record for record in plain if record["share"] > 1]
    below = [record for record in plain if record["share"] <= 0.6]
    near = [record for record in plain if 0.6 <= record["share"] <= 0.9]
    collapsed, informative = has_state("collapsed"), has_state("informative")
    return [
        tally(above, BY, "above β*, all plain models have collapsed", collapsed),
        tally(below, BY, "up to 0.6 β*, all plain models are informative", informative),
        tally(near, BY, forecast(near), lambda record: 0.5 <= kept(record) <= 2),
        expect(
            where(aligned, share=1.5),
            BY,
            "at 1.5 β*, all aligned models are certified",
            True,
            must=True,
        ),
        tally(
            aligned,
            BY,
            "at every kl_weight, all aligned models are certified and informative",
            lambda record: is_certified(record) and informative(record),
        ),
        *(price(*key, some) for key, some in groups(records, ("data",)).items()),
    ]


def kept(record):
    """Return what drawn codes carry, in units of what a linear VAE would keep."""
    return record["estimate"] / record["linear"]


def forecast(records):
    """Return how far the linear forecast is from what trained models keep."""
    ratios = [kept(record) for record in records]
    middle, least, greatest = (number(f(ratios)) for f in (np.median, min, max))
    return (
        "at 0.6 and 0.9 β*, plain models keep between half of what linear ones would "
        f"and twice as much ({middle} times as much, {least} to {greatest})"
    )


def price(data, records):
    """Claim that alignment costs something at equal KL, and tell how much."""
    found = [*prices(records)]
    inside = [record for record in found if record["price"] is not None]
    told = "; ".join(
        f"{share} β*: {spread('price', 1)(some)}, {spread('percent', 1)(some)} %"
        for (share,), some in sorted(groups(inside, ("share",)).items())
    )
    outside = len(found) - len(inside)
    return Claim(
        f"{data}: at equal KL, alignment always costs reconstruction and so ELBO, in "
        f"nats and as a share of the plain models' span: {told}; without {outside} of "
        f"{len(found)} aligned models whose KL no plain model reaches",
        bool(inside) and all(record["price"] > 0 for record in inside),
        must=False,
    )


def prices(records):
    """Yield what each aligned model costs at its KL, None where no plain one compares.

    The plain models of the same seed are joined by straight lines. The true curve is
    concave if each is at its optimum; the price is then at least this.
    """
    for some in groups(records, ("seed",)).values():
        kl, reconstruction = curve(some, "plain")
        for record in where(some, model="aligned"):
            plain = np.interp(record["kl"], kl, reconstruction)
            cost = plain - record["reconstruction"]
            inside = kl[0] <= record["kl"] <= kl[-1]
            yield {
                "share": record["share"],
                "price": cost if inside else None,
                "percent": 100 * cost / np.ptp(reconstruction),
            }


def curve(records, model):
    """Return KL and reconstruction of the models of a seed, in order of the KL."""
    some = where(records, model=model)
    return np.transpose(sorted((r["kl"], r["reconstruction"]) for r in some))


def draw(results, figure):
    """Draw information by KL weight, and reconstruction by KL."""
    by_data = groups(records_of(results), ("data",))
    figure.set_size_inches(WIDTH, 5.2)
    axes = figure.subplots(2, len(by_data), squeeze=False, sharey="row")
    for column, ((data,), some) in zip(axes.T, by_data.items(), strict=True):
        draw_information(column[0], some)
        draw_reconstruction(column[1], some)
        column[0].set_title(data)
    axes[0, 0].set_ylabel("drawn codes carry (nats)")
    axes[1, 0].set_ylabel("reconstruction (share)")
    legend_below(figure, axes[0, 0])


def draw_information(ax, records):
    """Draw medians, each with the bracket of all seeds."""
    by_share = groups(records, ("share",))
    shares = [share for (share,) in by_share]
    for model, style in STYLES.items():
        some = [where(same, model=model) for same in by_share.values()]
        low, middle, high = (
            np.array([f([r[key] for r in same]) for same in some])
            for f, key in ((min, "low"), (np.median, "estimate"), (max, "high"))
        )
        error = middle - low, high - middle
        ax.errorbar(shares, middle, error, fmt=style, mfc="none", label=model)
    linear = [np.median([r["linear"] for r in same]) for same in by_share.values()]
    ax.plot(shares, linear, ":", color="0.2", label="linear VAE, computed")
    ax.axhline(NEGLIGIBLE, color="0.5", lw=0.5, label="0.05 nats")
    ax.set(xscale="log", yscale="log", xlabel="kl_weight / β*")
    ax.set_ylim(bottom=1e-3)


def draw_reconstruction(ax, records):
    """Draw lines for each seed, as a share of the plain models' span."""
    for some in groups(records, ("seed",)).values():
        plain = curve(some, "plain")[1]
        for model, style in STYLES.items():
            kl, reconstruction = curve(some, model)
            share = (reconstruction - plain.min()) / np.ptp(plain)
            ax.plot(kl, share, style, mfc="none", lw=0.5, ms=4)
    ax.set_xlabel("KL (nats)")


SWEEP = Experiment(
    name="sweep",
    title="Where collapse is natural",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "model"),
    columns={"as a number": median("beta", 1)}
    | MARGIN
    | {"a linear VAE would keep (nats)": median("linear")}
    | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "Above: nats that drawn codes carry about their test image, medians of the "
        "seeds with the bracket of all. Below: reconstruction E log p(x|z) as a share "
        "of the plain models' span, against the KL, a line a seed. *To see*: where "
        "plain models collapse, 1 being the threshold, and whether aligned ones do; "
        "below, the height between the lines, the price of alignment at equal KL."
    ),
    data=FULLY_CONNECTED,
)
