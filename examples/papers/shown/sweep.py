"""Show `sweep`: KL weights below and above the threshold of collapse."""

import numpy as np
from cells import Experiment
from claims import Claim, certified, tally
from experiments.sweep import MODELS, cells, compute
from figures import columns, intervals
from records import each, has, medians, records_of, where
from settings import FULLY_CONNECTED
from tables import CODE, MARGIN, interval, median, spread

STYLES = dict(zip(MODELS, ("C1o--", "C0^-"), strict=True))
NEGLIGIBLE = 0.05
BY = "data", "kl_weight"


def claims(records):
    """Claim collapse above the threshold, none with alignment, and its price."""
    plain, aligned = (where(records, model=model) for model in MODELS)
    above = [record for record in plain if record["share"] > 1]
    below = [record for record in plain if record["share"] <= 0.6]
    near = [record for record in plain if 0.6 <= record["share"] <= 0.9]
    collapsed, informative = has(state="collapsed"), has(state="informative")
    both = has(verdict="certified", state="informative")
    stressed, protected = (
        "at 1.5 β*, all aligned models are certified",
        "at every kl_weight, all aligned models are certified and informative",
    )
    return [
        tally(above, BY, "above β*, all plain models have collapsed", collapsed),
        tally(below, BY, "up to 0.6 β*, all plain models are informative", informative),
        tally(near, BY, forecast(near), lambda record: 0.5 <= ratio(record) <= 2),
        tally(where(aligned, share=1.5), BY, stressed, certified, must=True),
        tally(aligned, BY, protected, both),
        *(price(data, members) for data, members in each(records, "data").items()),
    ]


def ratio(record):
    """Return the information of drawn codes divided by that of a linear VAE."""
    return record["estimate"] / record["linear"]


def forecast(records):
    """Return the claim on how far the linear forecast is from trained models."""
    return (
        "at 0.6 and 0.9 β*, plain models keep between half and twice what linear VAEs "
        f"would; the ratio is {interval([*map(ratio, records)])}"
    )


def price(data, records):
    """Claim that alignment costs reconstruction at equal KL, and how much."""
    found = [*prices(records)]
    inside = [record for record in found if record["price"] is not None]
    costs = "; ".join(
        f"{spread('price', 1)(group)}, {spread('percent', 1)(group)} % at {share} β*"
        for share, group in sorted(each(inside, "share").items())
    )
    return Claim(
        f"{data}: at equal KL, alignment always costs reconstruction and so ELBO; in "
        "nats, and as a share of the plain models' span, it costs "
        f"{costs or 'an amount that no plain model tells'}; no plain model reaches the "
        f"KL of {len(found) - len(inside)} of {len(found)} aligned ones, which are "
        "left out",
        bool(inside) and all(record["price"] > 0 for record in inside),
    )


def prices(records):
    """Yield the price of each aligned model, or None if its KL is out of range.

    Straight lines join the plain models of the same seed. If each of them is at its
    optimum, the true curve is concave, and the price is at least this.
    """
    for members in each(records, "seed").values():
        kl, reconstruction = curve(members, "plain")
        for record in where(members, model="aligned"):
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
    members = where(records, model=model)
    return np.transpose(sorted((r["kl"], r["reconstruction"]) for r in members))


def draw(results, figure):
    """Draw information by KL weight, and reconstruction by KL."""
    labels = "drawn codes carry (nats)", "reconstruction (share)"
    for members, (upper, lower) in columns(figure, results, labels, sharey="row"):
        draw_information(upper, records_of(members))
        draw_reconstruction(lower, records_of(members))


def draw_information(ax, records):
    """Draw medians over seeds, each with a bar that spans the brackets of all seeds."""
    for model, style in STYLES.items():
        by_share = each(where(records, model=model), "share")
        intervals(ax, by_share, ("low", "estimate", "high"), style, model)
    linear = [*medians(by_share, "linear").values()]
    ax.plot([*by_share], linear, ":", color="0.2", label="linear VAE, computed")
    ax.axhline(NEGLIGIBLE, color="0.5", lw=0.5, label=f"{NEGLIGIBLE} nats")
    ax.set(xscale="log", yscale="log", xlabel="kl_weight / β*")
    ax.set_xticks([0.02, 0.1, 0.3, 1], ["0.02", "0.1", "0.3", "1"])
    ax.set_ylim(bottom=1e-3)


def draw_reconstruction(ax, records):
    """Draw lines for each seed, as shares of the plain models' span."""
    for members in each(records, "seed").values():
        plain = curve(members, "plain")[1]
        for model, style in STYLES.items():
            kl, reconstruction = curve(members, model)
            share = (reconstruction - plain.min()) / np.ptp(plain)
            ax.plot(kl, share, style, mfc="none", lw=0.5, ms=4)
    ax.set_xlabel("KL (nats)")


SWEEP = Experiment(
    name="sweep",
    title="Where collapse is natural",
    cells=cells,
    compute=compute,
    by=(*BY, "model"),
    columns={"as a number": median("beta", 1)}
    | MARGIN
    | {"a linear VAE would keep (nats)": median("linear")}
    | CODE,
    claims=claims,
    draw=draw,
    caption=(
        "Above: the information of drawn codes about test images, in nats. A mark is "
        "the median of the seeds; a bar holds the brackets of all seeds. Below: the "
        "reconstruction term E log p(x|z) against the KL. It is a share of the plain "
        "models' span, a line for each seed. *To see*: where plain models "
        "collapse, 1 being the threshold β*, and whether aligned models do. In the "
        "lower row, the distance between the lines is the price of alignment at equal "
        "KL."
    ),
    data=FULLY_CONNECTED,
)
