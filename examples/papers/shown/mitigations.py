"""How mitigations at one rate are shown."""

import numpy as np
from cells import Experiment
from experiments.mitigations import RATE, cells, compute
from tables import (
    CODE,
    MARGIN,
    Claim,
    count,
    expect,
    groups,
    n_certified,
    number,
    records_of,
    spread,
    where,
)

ALIGNED = "alignment", "ELBO and alignment"
# A fit is compared if the KL of validation samples is this near, as a share of it.
TOLERANCE = 0.1
# What is compared: its key, whether more or less of it is better, and digits.
COMPARED = {
    "information": ("estimate", 1, 2),
    "ELBO": ("elbo", 1, 1),
    "unexplained variance": ("unexplained", -1, 3),
    "linear probe": ("probe", 1, 3),
}


def at_rate(record):
    """Tell whether a fit has the rate."""
    return abs(record["valid_kl"] / RATE - 1) <= TOLERANCE


def claims(records):
    """Alignment is certified; what all others have at its rate, by data set."""
    by = "data", "objective"
    aligned = [r for r in records if r["objective"] in ALIGNED]
    found = [expect(aligned, by, "with alignment, all are certified", True, must=True)]
    for (data,), some in groups(records, ("data",)).items():
        found += [brought(data, some), not_certified(data, some)]
        if fair := [record for record in some if at_rate(record)]:
            found.append(differ(data, fair))
        found += [does_as_well(data, fair, name) for name in ALIGNED]
    return found


def brought(data, records):
    """All have the rate; name those that have not."""
    failed = [
        f"{r['objective']} in seed {r['seed']} ends at {number(r['valid_kl'])} nats"
        for r in records
        if not at_rate(r)
    ]
    left_out = f" (left out below: {', '.join(failed)})" if failed else ""
    sentence = f"all can be tuned to {RATE:.0f} nats, to within 10 %"
    return Claim(f"{data}: {sentence}{left_out}", not failed, False)


def not_certified(data, records):
    """The raw witness certifies none without alignment, though codes are alive."""
    others = [r for r in records if r["objective"] not in ALIGNED]
    fitted, n = count(others, key="linear_verdict"), count(others)
    least = np.floor(100 * min(r["low"] for r in others)) / 100
    sentence = (
        f"{data}: without alignment none is certified: {n} of {len(others)}. This says "
        "only that their codes do not face the simplex: a linear witness fitted to "
        f"them certifies {fitted}, and drawn codes carry {number(least)} nats or more"
    )
    return Claim(sentence, n == 0, False)


def differ(data, records):
    """At one rate, the brackets of the best and the worst objective lie apart."""
    medians = medians_of(records, "estimate")
    least, most = min(medians, key=medians.get), max(medians, key=medians.get)
    worst, best = (where(records, objective=name) for name in (least, most))
    apart = max(r["high"] for r in worst) < min(r["low"] for r in best)
    sentence = (
        f"{data}: one rate is not one information: drawn codes carry from "
        f"{number(medians[least])} nats ({least}) to {number(medians[most])} ({most})"
    )
    return Claim(sentence, apart, False)


def does_as_well(data, records, name):
    """An aligned objective does as well as the ELBO at its rate, in every seed."""
    told, n_worse = [], 0
    for what, (key, sign, digits) in COMPARED.items():
        pairs = paired(records, name, key)
        if not pairs:
            continue
        n_worse += sum(sign * pair["difference"] < 0 for pair in pairs)
        medians = medians_of(records, key)
        rank = 1 + sum(sign * (m - medians[name]) > 0 for m in medians.values())
        difference = spread("difference", digits)(pairs)
        told.append(f"{what} {difference}, rank {rank} of {len(medians)}")
    differences = "; ".join(told) or "no seed has both"
    sentence = f"{data}: {name} does as well as the ELBO in every seed: {differences}"
    return Claim(sentence, bool(told) and not n_worse, False)


def paired(records, name, key):
    """Return how much more an objective has than the ELBO, in each seed with both."""
    own, plain = (
        {r["seed"]: r[key] for r in where(records, objective=which) if key in r}
        for which in (name, "ELBO")
    )
    return [{"difference": own[seed] - plain[seed]} for seed in own if seed in plain]


def medians_of(records, key):
    """Return the median over the seeds of each objective."""
    by_name = groups(records, ("objective",)).items()
    return {name: np.median([r[key] for r in some]) for (name,), some in by_name}


def tuned(records):
    """Tell what was tuned, and its values."""
    values = [record["value"] for record in records]
    middle, least, greatest = (f"{f(values):.3g}" for f in (np.median, min, max))
    return f"{records[0]['knob']} {middle} ({least} to {greatest})"


def probed(records):
    """Tell how many labels a linear classifier gets right, where there are labels."""
    return spread("probe", 3)(records) if "probe" in records[0] else "no labels"


def draw(results, figure):
    """Draw a row of panels for each data set, and a line in it for each objective."""
    by_data = groups(records_of(results), ("data",))
    figure.set_figheight(0.4 + 2.8 * len(by_data))
    axes = figure.subplots(len(by_data), len(COMPARED), squeeze=False, sharey="row")
    for row, ((data,), some) in zip(axes, by_data.items(), strict=True):
        for ax, (what, (key, *_)) in zip(row, COMPARED.items(), strict=True):
            draw_panel(ax, some, key)
            ax.set_xlabel(what)
        row[0].set_title(data)


def draw_panel(ax, records, key):
    """Draw a mark a seed: aligned filled, a cross if the rate is missed."""
    medians = medians_of(records, "estimate")
    names = sorted(medians, key=medians.get)
    ax.set_yticks(range(len(names)), names)
    ax.grid(axis="y", color="0.85", lw=0.8)
    if key not in records[0]:
        ax.text(0.5, 0.5, "no labels", transform=ax.transAxes, ha="center")
        return
    for record in records:
        name = record["objective"]
        fill = "full" if name in ALIGNED else "none"
        mark = "o" if at_rate(record) else "x"
        ax.plot(record[key], names.index(name), f"C0{mark}", fillstyle=fill)


MITIGATIONS = Experiment(
    name="mitigations",
    title=f"Mitigations, each tuned to {RATE:.0f} nats",
    cells=cells,
    compute=compute,
    by=("data", "objective"),
    columns={
        "tuned": tuned,
        "fits": lambda records: str(sum(record["n_fits"] for record in records)),
        "KL, validation": spread("valid_kl"),
        "drawn codes carry (nats)": CODE["drawn codes carry (nats)"],
        "ELBO": CODE["ELBO"],
        "unexplained variance": CODE["unexplained variance"],
        "linear probe": probed,
        "decoder use": CODE["decoder use"],
        "active": CODE["active"],
    }
    | MARGIN
    | {"by a fitted witness: certified": n_certified("linear_verdict")},
    claims=claims,
    draw=draw,
    caption=(
        f"Every objective at one rate, a KL of {RATE:.0f} nats on validation images. "
        "A mark a seed, filled for the aligned objectives, a cross where the rate was "
        "missed. Tuned is `kl_weight` (BetaVAE is the ELBO), or what holds the KL up "
        "at `kl_weight` 1.5 β* (1 for `Capacity`): a parameter of the objective, or "
        "the alignment weight, as a multiple of `kl_weight`. *To see*: what objectives "
        "make of one rate, and where alignment stands among them."
    ),
    data=("mnist", "cifar10"),
)
