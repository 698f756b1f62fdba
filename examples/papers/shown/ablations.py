"""How ablations are shown: what moves the margin, and what does not."""

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
# Shares of the teacher information: what counts as moved, or as forecast.
CLOSE = 0.1


def claims(records):
    """Say how far each factor moves the margin, and whether that was forecast."""
    found, by = [], ("data", "kl_weight", "factor")
    for (data, kl, factor), some in groups(with_base(records), by).items():
        about = f"{data}, kl_weight {kl}, {LABELS[factor]}"
        found.append(stays(about, some))
        if factor == STRESSED:
            found.append(rises(about, some))
        if kl == COLLAPSE:
            found.append(is_forecast(about, some))
    return found


def with_base(records):
    """Return records by value, those of the base once for each factor."""
    _, name, _ = BASE
    base = where(records, factor=name)
    others = [record for record in records if record["factor"] != name]
    others += [r | {"factor": f, "value": r[f]} for r in base for f in LABELS]
    return sorted(others, key=lambda r: ([*LABELS].index(r["factor"]), r["value"]))


def stays(about, records):
    """Claim that the margin hardly moves over the values of a factor."""
    by_value = medians(each(records, "value"), "relative")
    told = ", ".join(f"{number(m)} at {value:g}" for value, m in by_value.items())
    sentence = f"{about}: the relative margin moves by at most {CLOSE} ({told})"
    return Claim(sentence, bool(np.ptp([*by_value.values()]) <= CLOSE))


def rises(about, records):
    """Claim that in every seed the margin is the greater, the greater the value."""
    seeds = [
        {"seed": seed, "steps": np.diff([record["relative"] for record in some])}
        for seed, some in each(records, "seed").items()
    ]
    sentence = f"{about}: the relative margin rises with it in every seed"
    return tally(seeds, ("seed",), sentence, lambda seed: all(seed["steps"] > 0))


def is_forecast(about, records):
    """Claim that the margin on the training samples is what was forecast."""

    def off(record):
        return abs(record["train_relative"] - record["forecast"])

    sentence = (
        f"{about}: the relative margin on training samples is within {CLOSE} of the "
        f"forecast (up to {number(max(map(off, records)))} from it)"
    )
    return tally(records, ("value",), sentence, lambda record: off(record) <= CLOSE)


def draw(results, figure):
    """Draw the relative margin by the values of each factor, and the forecast."""
    by_factor = each(with_base(records_of(results)), "factor")
    for factor, ax in panels(figure, LABELS, "margin / information").items():
        for (_, kl), some in groups(by_factor[factor], ("data", "kl_weight")).items():
            draw_factor(ax, each(some, "value"), *LOOKS[kl])
        values = [*each(by_factor[factor], "value")]
        ax.set(xscale="log", title="", xlabel=LABELS[factor])
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_xticks([], minor=True)
        zero(ax)


def draw_factor(ax, by_value, look, label):
    """Draw medians over seeds from the least to the greatest, and the forecast."""
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
