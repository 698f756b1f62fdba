"""Show `mitigations`, all at the same rate."""

import numpy as np
from cells import Experiment
from claims import Claim, certified, tally
from experiments.mitigations import RATE, cells, compute
from figures import lines, mark, rows
from records import each, gains, medians, records_of, where
from tables import CODE, MARGIN, counts, if_known, interval, number, spread

ALIGNED = "alignment", "ELBO and alignment"
# Fits are compared if their KL on validation samples is within this share of the rate.
TOLERANCE = 0.1
# The key of each compared value, 1 if more is better or -1 if less is, and decimals.
COMPARED = {
    "information": ("estimate", 1, 2),
    "ELBO": ("elbo", 1, 1),
    "unexplained variance": ("unexplained", -1, 3),
    "linear probe": ("probe", 1, 3),
}
BY = "data", "objective"


def at_rate(record):
    """Tell whether a fit has the rate."""
    return abs(record["valid_kl"] / RATE - 1) <= TOLERANCE


def claims(records):
    """Claim that alignment is certified; compare the objectives on each data set."""
    aligned = [r for r in records if r["objective"] in ALIGNED]
    others = [r for r in records if r["objective"] not in ALIGNED]
    sound = "with alignment, all models are certified"
    tuned = f"all objectives can be tuned to {RATE:.0f} nats, to within 10 %"
    found = [
        tally(aligned, BY, sound, certified, must=True),
        tally(records, BY, tuned, at_rate),
        tally(others, BY, alive(others), certified, False),
    ]
    for data, fair in each(filter(at_rate, records), "data").items():
        found.append(differ(data, fair))
        found += [does_as_well(data, fair, name) for name in ALIGNED]
    return found


def alive(records):
    """Return the claim that models without alignment are informative, not certified."""
    fitted = len(where(records, linear_verdict="certified"))
    least = np.floor(100 * min(r["low"] for r in records)) / 100
    return (
        "without alignment, no model is certified, though a linear witness fitted to "
        f"their codes certifies {fitted} of {len(records)} and drawn codes carry "
        f"{number(least)} nats or more"
    )


def differ(data, records):
    """Claim that the brackets of the best and the worst objective lie apart."""
    carried = medians(each(records, "objective"), "estimate")
    least, most = min(carried, key=carried.get), max(carried, key=carried.get)
    worst, best = (where(records, objective=name) for name in (least, most))
    sentence = (
        f"{data}: one rate is not one information: drawn codes carry from "
        f"{number(carried[least])} nats ({least}) to {number(carried[most])} ({most})"
    )
    return Claim(sentence, max(r["high"] for r in worst) < min(r["low"] for r in best))


def does_as_well(data, records, name):
    """Claim that an aligned objective does as well as the ELBO in every seed."""
    comparisons, n_worse = [], 0
    own, plain = (where(records, objective=which) for which in (name, "ELBO"))
    for what, (key, sign, digits) in COMPARED.items():
        if differences := [pair["gain"] for pair in gains(own, plain, key)]:
            n_worse += sum(sign * difference < 0 for difference in differences)
            middle = medians(each(records, "objective"), key)
            rank = 1 + sum(sign * (m - middle[name]) > 0 for m in middle.values())
            place = f"rank {rank} of {len(middle)}"
            comparisons.append(f"{what} {interval(differences, digits)}, {place}")
    sentence = (
        f"{data}: {name} does as well as the ELBO in every seed; it differs by: "
        f"{'; '.join(comparisons) or 'no seed has both'}"
    )
    return Claim(sentence, bool(comparisons) and not n_worse)


def tuned(records):
    """Return the name of the tuned parameter, and its values."""
    values = [record["value"] for record in records]
    return f"{records[0]['knob']} {interval(values, '{:.3g}'.format)}"


def draw(results, figure):
    """Draw a row of panels for each data set, with a line for each objective."""
    for members, axes in rows(figure, results, COMPARED, height=2.8):
        for ax, (key, *_) in zip(axes, COMPARED.values(), strict=True):
            draw_panel(ax, records_of(members), key)


def draw_panel(ax, records, key):
    """Draw a mark for each seed: filled if aligned, a cross if the rate is missed."""
    carried = medians(each(records, "objective"), "estimate")
    names = sorted(carried, key=carried.get, reverse=True)
    lines(ax, names)
    if key not in records[0]:
        ax.text(0.5, 0.5, "no labels", transform=ax.transAxes, ha="center")
        return
    for record in records:
        name = record["objective"]
        look = "C0o" if at_rate(record) else "C0x"
        mark(ax, record[key], names.index(name), look, name in ALIGNED)


MITIGATIONS = Experiment(
    name="mitigations",
    title=f"Mitigations, each tuned to {RATE:.0f} nats",
    cells=cells,
    compute=compute,
    by=BY,
    columns={
        "tuned": tuned,
        "fits": lambda records: str(sum(record["n_fits"] for record in records)),
        "KL, validation": spread("valid_kl"),
        "linear probe": if_known("probe", spread("probe", 3)),
    }
    | MARGIN
    | CODE
    | {"by a fitted witness": counts("linear_verdict")},
    claims=claims,
    draw=draw,
    caption=(
        f"Every objective is tuned to one rate, a KL of {RATE:.0f} nats on validation "
        "images. A mark is a seed: filled for the objectives with alignment, a cross "
        "where the rate was missed. The column `tuned` names the parameter that was "
        "tuned. It is `kl_weight` (BetaVAE is the ELBO), or what keeps the KL up at "
        "`kl_weight` 1.5 β* (1 for `Capacity`): a parameter of the objective, or the "
        "alignment weight as a multiple of `kl_weight`. *To see*: how the objectives "
        "differ at one rate, and where alignment stands among them."
    ),
    data=("mnist", "cifar10"),
)
