"""Some cases of `prevention`, with more epochs or a greater alignment weight."""

from typing import NamedTuple

from lab import certified, margin_curve, measure

KL_WEIGHT = "1"
MOST_SEEDS = 3


class Case(NamedTuple):
    """How a model is trained: at first aligned or not, then with another weight."""

    aligned: bool
    # The second training, as multiples of the epochs of the first one and of the
    # usual alignment weight.
    n_times: int
    weight: float


CASES = {
    "alignment removed, 5 times the epochs": Case(True, 5, 0.0),
    "rescued, 4 times the epochs": Case(False, 4, 1.0),
    "rescued, 10 times the weight": Case(False, 1, 10.0),
}
REMOVED, *RESCUED = CASES
# Other data sets have all cases.
CASES_OF = {
    "mnist": [REMOVED],
    "cifar10-conv": [REMOVED],
    "tiny-imagenet": RESCUED,
}


def cells(setting):
    """Return a cell for each seed and case."""
    return [
        {"case": case, "seed": seed}
        for seed in range(min(MOST_SEEDS, setting.n_seeds))
        for case in CASES_OF.get(setting.data, CASES)
    ]


def compute(lab, case, seed):
    """Train, train again with another alignment weight, and measure."""
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
    options = {"data": lab.setting.data, "case": case, "seed": seed}
    record = options | measure(certifier, samples.test)
    return {"records": [record], "curves": [margin_curve(certifier)]}
