"""Mitigations from the literature under four certificates (arXiv:2605.05813)."""

from cells import Experiment
from lab import SCALES, certified, measure, numbers
from sklearn.frozen import FrozenEstimator
from tables import CODE, MARGIN, expect, groups, median, n_certified, where

from skvaecert import CollapseCertifier, baselines

ALIGNED = "ELBO and alignment"
MARKS = {
    "certified": "C0o",
    "does not face the witness": "C1^",
    "undecided": "C2s",
    "collapsed": "C3x",
}
# Of drawn codes: nats that count as none.
COLLAPSED = 0.1


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
    """Train without alignment and certify in every way."""
    rows = lab.rows(seed)
    chosen = objectives(lab.setting.network["max_epochs"])[objective]
    aligned = objective == ALIGNED
    certifier = certified(
        lab.vae(rows, scale, seed, aligned=aligned, objective=chosen), rows
    )
    record = measure(certifier, rows.test, ("round_trip",))
    # Codes are read by a witness that was fitted to them, so that none is called
    # collapsed for not facing the simplex.
    frozen = FrozenEstimator(certifier.estimator_)
    fitted = CollapseCertifier(
        frozen, teacher=FrozenEstimator(certifier.teacher_), witness="linear"
    ).fit(rows.train)
    record |= numbers("fitted", fitted.certify(rows.test))
    record |= numbers("sampled", fitted.certify(rows.test, kind="sampled"))
    told = {"data": lab.setting.data, "scale": scale}
    told |= {"objective": objective, "seed": seed}
    return {"records": [told | record | {"state": state(record)}]}


def state(record):
    """Say what the certificates together show."""
    if record["verdict"] == "certified":
        return "certified"
    if record["sampled_verdict"] == "certified":
        return "does not face the witness"
    # No code drawn from q(z|x) carries more on its row than this (theory section 6).
    return "collapsed" if record["sampled_bound"] < COLLAPSED else "undecided"


def states(records):
    """Return how many records are in which state."""
    found = [record["state"] for record in records]
    return ", ".join(f"{found.count(name)} {name}" for name in sorted(set(found)))


def claims(records):
    """None of them is certified by the raw witness, and alignment is."""
    others = [record for record in records if record["objective"] != ALIGNED]
    aligned = where(records, objective=ALIGNED)
    by = "data", "scale"
    return [
        expect(aligned, by, "with alignment, all are certified", True, must=True),
        expect(
            others, (*by, "objective"), "without alignment, none is certified", False
        ),
    ]


def draw(results, figure):
    """Draw raw margin against information in drawn codes."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    axes = figure.subplots(1, len(by_data), sharex=True, sharey=True, squeeze=False)[0]
    for ax, ((data,), some) in zip(axes, by_data.items(), strict=True):
        for (name,), few in groups(some, ("state",)).items():
            points = [
                (r["sampled_margin"] / r["information"], r["margin"] / r["information"])
                for r in few
            ]
            ax.plot(*zip(*points, strict=True), MARKS[name], mfc="none", label=name)
        ax.axhline(0, color="0.2", lw=1)
        ax.set(
            title=data,
            xlabel="information in drawn codes, at least\n/ teacher information",
        )
        ax.legend(frameon=False, fontsize="x-small")
    axes[0].set_ylabel("raw margin / teacher information")


MITIGATIONS = Experiment(
    name="mitigations",
    title="Mitigations from the literature",
    cells=cells,
    compute=compute,
    by=("data", "scale", "objective"),
    columns=MARGIN
    | {
        "fitted witness: certified": n_certified("fitted_verdict"),
        "drawn codes: certified": n_certified("sampled_verdict"),
        "at least": median("sampled_margin"),
        "at most (nats)": median("sampled_bound"),
        "round trip: certified": n_certified("round_trip_verdict"),
        "state": states,
    }
    | CODE,
    claims=claims,
    draw=draw,
)
