"""Train with alignment or without it, then the other way (arXiv:2605.05813)."""

from lab import COLLAPSE, certified, constant_copy, margin_curve, measure

KL_WEIGHTS = ("1", COLLAPSE)
PHASES = (
    "aligned",
    "alignment removed",
    "never aligned",
    "rescued",
    "forced constant",
)


def cells(setting):
    """Return a cell for each seed and KL weight."""
    return [
        {"kl_weight": kl, "seed": seed}
        for seed in range(setting.n_seeds)
        for kl in KL_WEIGHTS
    ]


def compute(lab, kl_weight, seed):
    """Train with and without alignment, swap it in warm starts, measure each fit."""
    samples = lab.samples(seed)
    vaes = [lab.vae(samples, kl_weight, seed, aligned=on) for on in (True, False)]
    aligned, never = (certified(vae, samples) for vae in vaes)
    records = [measured("aligned", aligned, samples)]
    records.append(measured("never aligned", never, samples))
    records.append(measured("forced constant", constant_copy(never), samples))
    n_epochs, weight = vaes[0].max_epochs, vaes[0].alignment_weight
    # Without alignment, the code is lost slowly: twice the epochs.
    removal = aligned, "alignment removed", 0.0, 2 * n_epochs
    rescue = never, "rescued", weight, n_epochs
    for certifier, phase, alignment_weight, max_epochs in (removal, rescue):
        certifier.set_params(
            warm_start=True,
            estimator__alignment_weight=alignment_weight,
            estimator__max_epochs=max_epochs,
        )
        certifier.fit(samples.train)
        records.append(measured(phase, certifier, samples))
    records.sort(key=lambda record: PHASES.index(record["phase"]))
    options = {"data": lab.setting.data, "kl_weight": kl_weight, "seed": seed}
    curves = [margin_curve(certifier) for certifier in (aligned, never)]
    return {"records": [options | record for record in records], "curves": curves}


def measured(phase, certifier, samples):
    """Return the record of a phase."""
    return {"phase": phase} | measure(certifier, samples.test)
