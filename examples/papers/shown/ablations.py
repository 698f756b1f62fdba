"""Show `ablations`: which factors move the margin."""

import numpy as np
from cells import Experiment
from claims import Claim, tally
from experiments.ablations import BASE, STRESSED, cells, compute
from figures import intervals, panels, zero
from lab import COLLAPSE
from records import each, groups, medians, records_of, where
from tables import bracket, counts, number, spread

LABELS = {
    "n_components": "components of the teacher",
    "witness_scale": "witness scale / prior-matched",
    "alignment_weight": "alignment_weight / kl_weight",
    "width": "width of the hidden layers",
    "latent_dim": "latent dimensions",
}
LOOKS = {"1": ("C0o-", "trained, kl_weight 1"), COLLAPSE: ("C1^-", f"at {COLLAPSE}")}
# A margin has moved, or misses its forecast, if it differs by more than this share of
# the teacher information.
CLOSE = 0.1


def claims(records):
    """Claim for each factor how it moves the margin, and whether that was forecast."""
    found, by = [], ("data", "kl_weight", "factor")
    for (data, kl, factor), members in groups(with_base(records), by).items():
        about = f"{data}, kl_weight {kl}, {LABELS[factor]}"
        found.append(stays(about, members))
        if factor == STRESSED:
            found.append(rises(about, members))
        if kl == COLLAPSE:
            found.append(is_forecast(about, members))
    return found


def with_base(records):
    """Return records sorted by factor and value, with the base once for each factor."""
    _, name, _ = BASE
    base = where(records, factor=name)
    others = [record for record in records if record["factor"] != name]
    others += [r | {"factor": f, "value": r[f]} for r in base for f in LABELS]
    return sorted(others, key=lambda r: ([*LABELS].index(r["factor"]), r["value"]))


def stays(about, records):
    """Claim that the median margin moves by at most CLOSE with the factor."""
    by_value = medians(each(records, "value"), "relative")
    points = ", ".join(f"{number(m)} at {value:g}" for value, m in by_value.items())
    sentence = f"{about}: the relative margin moves by at most {CLOSE} ({points})"
    return Claim(sentence, bool(np.ptp([*by_value.values()]) <= CLOSE))


def rises(about, records):
    """Claim that the margin rises with the value in every seed."""
    seeds = [
        {"seed": seed, "steps": np.diff([record["relative"] for record in members])}
        for seed, members in each(records, "seed").items()
    ]
    sentence = f"{about}: the relative margin rises with it in every seed"
    return tally(seeds, ("seed",), sentence, lambda seed: all(seed["steps"] > 0))


def is_forecast(about, records):
    """Claim that the margin on training samples is close to its forecast."""

    def error(record):
        return abs(record["train_relative"] - record["forecast"])

    sentence = (
        f"{about}: the relative margin on training samples is within {CLOSE} of the "
        f"forecast (up to {number(max(map(error, records)))} from it)"
    )
    return tally(records, ("value",), sentence, lambda record: error(record) <= CLOSE)


def draw(results, figure):
    """Draw the relative margin by the values of each factor, and the forecast."""
    by_factor = each(with_base(records_of(results)), "factor")
    for factor, ax in panels(figure, LABELS, "margin / information").items():
        by_weight = groups(by_factor[factor], ("data", "kl_weight"))
        for (_, kl), members in by_weight.items():
            draw_factor(ax, each(members, "value"), *LOOKS[kl])
        values = [*each(by_factor[factor], "value")]
        ax.set(xscale="log", title="", xlabel=LABELS[factor])
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_xticks([], minor=True)
        zero(ax)


def draw_factor(ax, by_value, look, label):
    """Draw medians over seeds, with bars, and the forecast."""
    intervals(ax, by_value, ("relative",) * 3, look, label)
    forecast = [*medians(by_value, "forecast").values()]
    ax.plot([*by_value], forecast, "--", color="0.5", zorder=0, label="forecast")


ABLATIONS = Experiment(
    name="ablations",
    title="What moves the margin",
    cells=cells,
    compute=compute,
    by=("data", "kl_weight", "factor", "value"),
    columns={
        "verdicts": counts("verdict"),
        "relative margin": spread("relative"),
        "on training samples": spread("train_relative"),
        "forecast": spread("forecast"),
        "drawn codes carry (nats)": bracket,
        "ELBO": spread("elbo", 0),
        "unexplained variance": spread("unexplained", 3),
    },
    claims=claims,
    draw=draw,
    caption=(
        "The margin on test images as a share of the teacher information: the median "
        "of the seeds, with a bar from the least to the greatest. Each panel varies "
        "one factor. Dashed: the forecast from the teacher and the weights, for "
        "training images. *To see*: which factors move the margin, and whether the "
        "forecast moves with it."
    ),
    data=("cifar10",),
)
