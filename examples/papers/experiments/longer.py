"""What `prevention` does not show, with more epochs or a greater weight."""

from typing import NamedTuple

from lab import certified, margin_curve, measure

KL_WEIGHT = "1"
MOST_SEEDS = 3


class Case(NamedTuple):
    """A model that is trained on: at first aligned or not, then otherwise."""

    aligned: bool
    # Of the epochs before, and of the alignment weight that others have.
    n_times: int
    weight: float


CASES = {
    "alignment removed, 5 times the epochs": Case(True, 5, 0.0),
    "rescued, 4 times the epochs": Case(False, 4, 1.0),
    "rescued, 10 times the weight": Case(False, 1, 10.0),
}
REMOVED, *RESCUED = CASES
# On other data all.
ASKED = {
    "mnist": [REMOVED],
    "cifar10-conv": [REMOVED],
    "tiny-imagenet": RESCUED,
}


def cells(setting):
    """One cell a seed and case."""
    return [
        {"case": case, "seed": seed}
        for seed in range(min(MOST_SEEDS, setting.n_seeds))
        for case in ASKED.get(setting.data, CASES)
    ]


def compute(lab, case, seed):
    """Train, train on otherwise, and measure."""
    samples, chosen = lab.samples(seed), CASES[case]
    weight = lab.vae(samples, KL_WEIGHT, seed).alignment_weight
    vae = lab.vae(samples, KL_WEIGHT, seed, aligned=chosen.aligned)
    certifier = certified(vae, samples)
    certifier.set_params(
        warm_start=True,
        estimator__alignment_weight=chosen.weight * weight,
        estimator__max_epochs=chosen.n_times * vae.max_epochs,
    )
    certifier.fit(samples.train)
    told = {"data": lab.setting.data, "case": case, "seed": seed}
    record = told | measure(certifier, samples.test)
    return {"records": [record], "curves": [margin_curve(certifier)]}
