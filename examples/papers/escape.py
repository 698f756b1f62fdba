"""Escape trajectories from a low-margin start (arXiv:2605.18224)."""

import numpy as np
from cells import Experiment
from sklearn.utils import check_random_state
from tables import Claim, groups, median, number, spread

from skvaecert.metrics import margin_energy_path

N_WATCHED = 500
BATCH_SIZE = 128


def cells(setting):
    """One cell a seed."""
    return [{"seed": seed} for seed in range(setting.n_seeds)]


def compute(lab, seed):
    """Collapse a VAE, turn alignment on, and look at it after every step."""
    samples = lab.samples(seed)
    vae = lab.vae(samples, "mean", seed, aligned=False).fit(samples.train)
    watched = samples.train[:N_WATCHED]
    steps = [look(vae, watched)]
    vae.set_params(
        alignment_weight=lab.alignment_weight(samples, "mean"), batch_size=BATCH_SIZE
    )
    generator = check_random_state(seed)
    for _ in range(lab.setting.n_steps):
        batch = generator.permutation(len(samples.train))[:BATCH_SIZE]
        vae.partial_fit(samples.train[batch])
        steps.append(look(vae, watched))
    path = margin_energy_path(vae.teacher_.predict_proba(watched), vae.witness_scale_)
    curves = {key: [step[key] for step in steps] for key in steps[0]}
    curves |= {"path_energy": [*path.energy], "path_margin": [*path.margin]}
    told = {"data": lab.setting.data, "seed": seed, "elbo": vae.score(samples.test)}
    return {"records": [told | record_of(curves)], "curves": curves}


def look(vae, samples):
    """Return margin, energy and forces at this step."""
    report = vae.escape_report(samples)
    mean = vae.transform(samples).astype(np.float64)
    return {
        "margin": report.margin,
        "information": report.teacher_information,
        "gradient": report.gradient_norm,
        "escape_gradient": report.escape_gradient_norm,
        "force": report.latent_force,
        "energy": float((mean**2).sum(axis=1).mean() / 2),
    }


def record_of(curves):
    """Return the numbers of a path that the table shows."""
    margin, information = np.array(curves["margin"]), curves["information"][0]
    above = margin > 0
    # Steps after which it stays above 0, or one more than there are.
    first = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
    energy = np.interp(margin[-1], curves["path_margin"], curves["path_energy"])
    return {
        "start": margin[0] / information,
        "end": margin[-1] / information,
        "information": information,
        "steps_to_positive": first,
        "escape_gradient_start": curves["escape_gradient"][0],
        "escape_gradient_least": min(curves["escape_gradient"]),
        "energy": curves["energy"][-1],
        "path_energy": float(energy),
    }


def claims(records):
    """The margin rises from at most 0, and the gradient is never 0 on the way."""
    found = []
    for (data,), some in groups(records, ("data",)).items():
        starts, ends = ([r[key] for r in some] for key in ("start", "end"))
        least = min(record["escape_gradient_least"] for record in some)
        told = ", ".join(
            f"{number(a)} to {number(b)}" for a, b in zip(starts, ends, strict=True)
        )
        rises = max(starts) <= 0.05 and min(ends) > 0.2
        found.append(
            Claim(f"{data}: shares of the information rise: {told}", rises, True)
        )
        sentence = f"{data}: least norm of the escape gradient on the way: {least:.2g}"
        found.append(Claim(sentence, least > 0, True))
    return found


def draw(results, figure):
    """Draw margin and gradient by step, and margin by energy."""
    by_data = groups(
        [result | {"data": result["records"][0]["data"]} for result in results],
        ["data"],
    )
    figure.set_size_inches(9, 7)
    axes = figure.subplots(3, len(by_data), squeeze=False, sharey="row")
    for column, ((data,), some) in zip(axes.T, by_data.items(), strict=True):
        column[0].set_title(data)
        for result in some:
            draw_path(column, result["curves"])
    labels = "margin / information", "escape gradient (nats)", "margin / information"
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)


def draw_path(axes, curves):
    """Draw one seed's path."""
    share = np.array(curves["margin"]) / curves["information"][0]
    axes[0].plot(share, "C0", lw=1)
    axes[0].axhline(0, color="0.2", lw=1)
    axes[0].set_xlabel("step")
    axes[1].semilogy(curves["escape_gradient"], "C0", lw=1)
    axes[1].set_xlabel("step")
    analytic = np.array(curves["path_margin"]) / curves["information"][0]
    axes[2].plot(curves["path_energy"], analytic, color="0.5", lw=1, linestyle="--")
    axes[2].plot(curves["energy"], share, "C0", lw=1)
    axes[2].set_xlabel("energy (nats a sample)")


ESCAPE = Experiment(
    name="escape",
    title="Escape trajectories",
    cells=cells,
    compute=compute,
    by=("data",),
    columns={
        "relative margin at the start": spread("start"),
        "at the end": spread("end"),
        "steps until it stays above 0": median("steps_to_positive", 0),
        "escape gradient at the start (nats)": median("escape_gradient_start", 4),
        "least on the way": median("escape_gradient_least", 4),
        "energy at the end (nats)": median("energy"),
        "of the analytic path there": median("path_energy"),
        "ELBO at the end": median("elbo", 1),
    },
    claims=claims,
    draw=draw,
)
