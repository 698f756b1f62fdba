"""How ablations are shown: what moves the margin, and what does not."""

import numpy as np
from cells import Experiment
from experiments.ablations import BASE, STRESSED, cells, compute
from lab import COLLAPSE
from tables import Claim, bracket, counts, groups, number, spread, where

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
        about = f"{data}, {kl}, {LABELS[factor]}"
        found.append(stays(about, some))
        if factor == STRESSED:
            found.append(rises(about, some))
        if kl == COLLAPSE:
            found.append(is_forecast(about, some))
    return found


def with_base(records):
    """Return records, those of the base once for each factor that it is varied in."""
    _, name, _ = BASE
    base = where(records, factor=name)
    others = [record for record in records if record["factor"] != name]
    return others + [r | {"factor": f, "value": r[f]} for r in base for f in LABELS]


def medians(records, key="relative"):
    """Return the median over seeds at each value of a factor, in order."""
    some = sorted(groups(records, ("value",)).items())
    return {value: np.median([r[key] for r in few]) for (value,), few in some}


def stays(about, records):
    """Claim that the margin hardly moves over the values of a factor."""
    by_value = medians(records)
    told = ", ".join(f"{number(m)} at {value:g}" for value, m in by_value.items())
    width = max(by_value.values()) - min(by_value.values())
    sentence = f"{about}: the relative margin moves by at most {CLOSE}: {told}"
    return Claim(sentence, bool(width <= CLOSE), must=False)


def rises(about, records):
    """Claim that in every seed the margin is the greater, the greater the value."""
    by_seed = groups(sorted(records, key=lambda r: r["value"]), ("seed",)).values()
    rising = sum(bool((np.diff([r["relative"] for r in s]) > 0).all()) for s in by_seed)
    sentence = f"{about}: the margin rises with it in {rising} of {len(by_seed)} seeds"
    return Claim(sentence, rising == len(by_seed), must=False)


def is_forecast(about, records):
    """Claim that the margin on the training samples is what was forecast."""
    off = max(abs(r["train_relative"] - r["forecast"]) for r in records)
    sentence = (
        f"{about}: forecast and training margin within {CLOSE}; they differ by up to "
        f"{number(off)}"
    )
    return Claim(sentence, off <= CLOSE, must=False)


def draw(results, figure):
    """Draw the relative margin by the values of each factor, and the forecast."""
    records = with_base([r for result in results for r in result["records"]])
    figure.set_size_inches(8.8, 5)
    axes = figure.subplots(2, 3, sharey=True).ravel()
    for ax, (factor, label) in zip(axes, LABELS.items(), strict=False):
        some = where(records, factor=factor)
        for (kl,), few in groups(some, ("kl_weight",)).items():
            draw_factor(ax, few, *LOOKS[kl])
        values = sorted({record["value"] for record in some})
        ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_xticks([], minor=True)
        ax.axhline(0, color="0.3", lw=0.8, zorder=0)
        ax.set_xlabel(label)
    for ax in axes[::3]:
        ax.set_ylabel("margin / information")
    axes[-1].axis("off")
    handles, labels = axes[list(LABELS).index(STRESSED)].get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    axes[-1].legend(found.values(), found, loc="center", frameon=False)


def draw_factor(ax, records, look, label):
    """Draw the median over seeds from the least to the greatest, and the forecast."""
    for some in groups(records, ("data",)).values():
        values, middle = zip(*medians(some).items(), strict=True)
        by_value = [[r["relative"] for r in where(some, value=v)] for v in values]
        ends = [np.min(by_value, axis=1), np.max(by_value, axis=1)]
        off = np.abs(np.array(ends) - middle)
        ax.errorbar(values, middle, off, fmt=look, capsize=2, label=label)
        told = medians(some, "forecast").values()
        ax.plot(values, [*told], "--", color="0.5", zorder=0, label="forecast")


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
    data=("cifar10",),
)
