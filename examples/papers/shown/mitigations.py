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
    spread,
    where,
)

ALIGNED = "alignment", "ELBO and alignment"
# A fit is compared if validation samples have the rate to within this share of it.
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
    """Alignment is certified; and what all carry at one rate, by data set."""
    by = "data", "objective"
    found = [
        expect(
            where(records, objective=name), by, f"{name}: all are certified", True, must
        )
        for name, must in zip(ALIGNED, (True, False), strict=True)
    ]
    for (data,), some in groups(records, ("data",)).items():
        found += [brought(data, some), not_certified(data, some)]
        if fair := [record for record in some if at_rate(record)]:
            found.append(differ(data, fair))
        found += [does_as_well(data, fair, name) for name in ALIGNED]
    return found


def brought(data, records):
    """All have the rate; name those that have not."""
    failed = [
        f"{r['objective']} in seed {r['seed']} ({number(r['valid_kl'])} nats)"
        for r in records
        if not at_rate(r)
    ]
    but = f"; not so, and left out below: {', '.join(failed)}" if failed else ""
    sentence = f"{data}: all can be tuned to {RATE:.0f} nats, to within 10 %{but}"
    return Claim(sentence, not failed, False)


def not_certified(data, records):
    """The raw witness certifies none without alignment, which is no collapse."""
    others = [r for r in records if r["objective"] not in ALIGNED]
    n, of = count(others), len(others)
    fitted, least = count(others, key="linear_verdict"), min(r["low"] for r in others)
    sentence = (
        f"{data}: without alignment, the raw witness certifies {n} of {of}, which says "
        f"only that the other codes do not face the simplex; a linear witness fitted "
        f"to them certifies {fitted}, and drawn codes carry at least "
        f"{number(np.floor(100 * least) / 100)} nats in all"
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
    told, worse = [], 0
    for what, (key, sign, digits) in COMPARED.items():
        gains = paired(records, name, key)
        if not gains:
            continue
        worse += sum(sign * gain["gain"] < 0 for gain in gains)
        medians = medians_of(records, key)
        rank = 1 + sum(sign * (m - medians[name]) > 0 for m in medians.values())
        told.append(
            f"{what} {spread('gain', digits)(gains)}, rank {rank} of {len(medians)}"
        )
    sentence = f"{data}: {name} does as well as the ELBO in every seed"
    differences = "; ".join(told) or "no seed has both"
    return Claim(f"{sentence}: {differences}", bool(told) and not worse, False)


def paired(records, name, key):
    """Return how much more an objective has than the ELBO, in each seed with both."""
    own, plain = (
        {r["seed"]: r[key] for r in where(records, objective=which) if key in r}
        for which in (name, "ELBO")
    )
    return [{"gain": own[seed] - plain[seed]} for seed in own if seed in plain]


def medians_of(records, key):
    """Return the median over the seeds of each objective."""
    by_name = groups(records, ("objective",))
    return {
        name: np.median([r[key] for r in some]) for (name,), some in by_name.items()
    }


def tuned(records):
    """Tell what was tuned, and to which values."""
    return f"{records[0]['knob']} " + spread("value", 3)(records)


def probed(records):
    """Tell how well a linear classifier reads the labels, where there are some."""
    return spread("probe", 3)(records) if "probe" in records[0] else "no labels"


def draw(results, figure):
    """Draw a row of panels for each data set, and a line in it for each objective."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    figure.set_size_inches(8.5, 0.4 + 2.8 * len(by_data))
    axes = figure.subplots(len(by_data), len(COMPARED), squeeze=False, sharey="row")
    for row, ((data,), some) in zip(axes, by_data.items(), strict=True):
        for ax, (what, (key, *_)) in zip(row, COMPARED.items(), strict=True):
            draw_panel(ax, some, key)
            ax.set_xlabel(what)
        row[0].set_title(data, fontsize="medium")


def draw_panel(ax, records, key):
    """Draw each seed; aligned filled, and as a cross where the rate was not reached."""
    names = [*medians_of(records, "estimate")]
    names.sort(key=medians_of(records, "estimate").get)
    ax.set_yticks(range(len(names)), names, fontsize="small")
    ax.grid(axis="y", color="0.85", lw=0.8)
    if key not in records[0]:
        ax.text(0.5, 0.5, "no labels", transform=ax.transAxes, ha="center")
        return
    for record in records:
        name = record["objective"]
        mark = "o" if at_rate(record) else "x"
        look = {"mfc": "C0" if name in ALIGNED else "none", "color": "C0", "ms": 4.5}
        ax.plot(record[key], names.index(name), mark, **look)


MITIGATIONS = Experiment(
    name="mitigations",
    title=f"Mitigations, each tuned to {RATE:.0f} nats",
    cells=cells,
    compute=compute,
    by=("data", "objective"),
    columns={
        "tuned": tuned,
        "fits": lambda records: str(sum(r["n_fits"] for r in records)),
        "KL, validation": spread("valid_kl"),
        "drawn codes carry (nats)": CODE["drawn codes carry (nats)"],
        "ELBO": CODE["ELBO"],
        "unexplained variance": CODE["unexplained variance"],
        "linear probe": probed,
        "decoder use": CODE["decoder use"],
        "KL": CODE["KL"],
        "active": CODE["active"],
        "state": CODE["state"],
    }
    | MARGIN
    | {"by a fitted witness: certified": n_certified("linear_verdict")},
    claims=claims,
    draw=draw,
    data=("mnist", "cifar10"),
)
