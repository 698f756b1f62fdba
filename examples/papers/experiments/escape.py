"""Escape trajectories from a low-margin start (arXiv:2605.18224)."""

import numpy as np
from lab import ALIGNMENT_WEIGHT, COLLAPSE, rounded
from sklearn.utils import check_random_state

from skvaecert.metrics import margin_energy_path

N_WATCHED = 500
BATCH_SIZE = 128


def cells(setting):
    """Return a cell for each seed."""
    return [{"seed": seed} for seed in range(setting.n_seeds)]


def compute(lab, seed):
    """Collapse a VAE, turn alignment on, and measure it after every step."""
    samples = lab.samples(seed)
    vae = lab.vae(samples, COLLAPSE, seed, aligned=False).fit(samples.train)
    watched = samples.train[:N_WATCHED]
    steps = [measured(vae, watched)]
    weight = ALIGNMENT_WEIGHT * vae.kl_weight
    vae.set_params(alignment_weight=weight, batch_size=BATCH_SIZE)
    generator = check_random_state(seed)
    for _ in range(lab.setting.n_steps):
        batch = generator.permutation(len(samples.train))[:BATCH_SIZE]
        vae.partial_fit(samples.train[batch])
        steps.append(measured(vae, watched))
    path = margin_energy_path(vae.teacher_.predict_proba(watched), vae.witness_scale_)
    curves = {key: [step[key] for step in steps] for key in steps[0]}
    curves |= {"path_energy": [*path.energy], "path_margin": [*path.margin]}
    record = {"data": lab.setting.data, "seed": seed, "elbo": vae.score(samples.test)}
    return {
        "records": [record | record_of(curves)],
        "curves": {key: rounded(curve) for key, curve in curves.items()},
    }


def measured(vae, samples):
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
    """Return what the table shows of the curves."""
    margin, information = np.array(curves["margin"]), curves["information"][0]
    above = margin > 0
    # From this step on, the margin stays above 0. Without such a step, it is one more
    # than the last.
    first = 0 if above.all() else len(above) - int(np.argmin(above[::-1]))
    energy = np.interp(margin[-1], curves["path_margin"], curves["path_energy"])
    return {
        "n_steps": len(margin) - 1,
        "start": margin[0] / information,
        "end": margin[-1] / information,
        "information": information,
        "steps_to_positive": first,
        "escape_gradient_start": curves["escape_gradient"][0],
        "escape_gradient_least": min(curves["escape_gradient"]),
        "energy": curves["energy"][-1],
        "path_energy": float(energy),
    }
