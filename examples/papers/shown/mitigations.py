"""Mitigations from the literature: margin, and what drawn codes carry (2605.05813)."""

from cells import Experiment
from lab import SCALES, certified, measure, round_trip
from sklearn.frozen import FrozenEstimator
from tables import (
    CODE,
    MARGIN,
    ROUND_TRIP,
    counts,
    expect,
    groups,
    n_certified,
    where,
)

from skvaecert import CollapseCertifier, baselines

ALIGNED = "ELBO and alignment"
MARKS = {"informative": "C0o", "ignored": "C1^", "undecided": "C2s", "collapsed": "C3x"}


def objectives(n_epochs):
    """Return the objectives by name; schedules as long a part of the training."""
    quarter = n_epochs / 4
    return {
        ALIGNED: None,
        "ELBO": None,
        "BetaVAE": baselines.BetaVAE(),
        "LinearAnnealing": baselines.LinearAnnealing(n_epochs=n_epochs / 10),
        "CyclicalAnnealing": baselines.CyclicalAnnealing(period=quarter),
        "Capacity": baselines.Capacity(n_epochs=quarter),
        "FreeBits": baselines.FreeBits(),
        "DeltaVAE": baselines.DeltaVAE(),
        "AggressiveEncoder": baselines.AggressiveEncoder(),
        "InfoVAE": baselines.InfoVAE(),
        "BatchNormVAE": baselines.BatchNormVAE(),
        "MuForcing": baselines.MuForcing(),
        "SigmaVAE": baselines.SigmaVAE(),
    }


def cells(setting):
    """One cell a seed, scale and objective."""
    return [
        {"scale": scale, "objective": name, "seed": seed}
        for seed in range(setting.few_seeds)
        for scale in SCALES
        for name in objectives(1)
    ]


def compute(lab, scale, objective, seed):
    """Train without alignment, and see what the code still carries."""
    samples = lab.samples(seed)
    chosen = objectives(lab.setting.network["max_epochs"])[objective]
    aligned = objective == ALIGNED
    certifier = certified(
        lab.vae(samples, scale, seed, aligned=aligned, objective=chosen), samples
    )
    record = measure(certifier, samples.test) | round_trip(certifier, samples.test)
    frozen = FrozenEstimator(certifier.estimator_)
    fitted = CollapseCertifier(frozen, witness="linear").fit(samples.train)
    record |= {"fitted_verdict": fitted.certify(samples.test).verdict}
    told = {"data": lab.setting.data, "scale": scale}
    told |= {"objective": objective, "seed": seed}
    return {"records": [told | record]}


def claims(records):
    """None of them is certified by the raw witness, and alignment is."""
    others = [record for record in records if record["objective"] != ALIGNED]
    aligned = where(records, objective=ALIGNED)
    by = "data", "scale"
    none = f"without alignment, none is certified ({counts('state')(others)})"
    return [
        expect(aligned, by, "with alignment, all are certified", True, must=True),
        expect(others, (*by, "objective"), none, False),
    ]


def draw(results, figure):
    """Draw the margin against the information in drawn codes."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    axes = figure.subplots(1, len(by_data), sharex=True, sharey=True, squeeze=False)[0]
    for ax, ((data,), some) in zip(axes, by_data.items(), strict=True):
        for (name,), few in groups(some, ("state",)).items():
            points = [(r["estimate"], r["margin"] / r["information"]) for r in few]
            ax.plot(*zip(*points, strict=True), MARKS[name], mfc="none", label=name)
        ax.axhline(0, color="0.2", lw=1)
        ax.set(title=data, xlabel="drawn codes carry (nats)")
        ax.legend(frameon=False, fontsize="x-small")
    axes[0].set_ylabel("margin / teacher information")


MITIGATIONS = Experiment(
    name="mitigations",
    title="Mitigations from the literature",
    cells=cells,
    compute=compute,
    by=("data", "scale", "objective"),
    columns=MARGIN
    | {"by a fitted witness: certified": n_certified("fitted_verdict")}
    | CODE
    | ROUND_TRIP,
    claims=claims,
    draw=draw,
)
