"""Vary one factor of the training at a time, and measure the margin."""

from lab import COLLAPSE, certified, measure
from sklearn.base import clone

from skvaecert.simplex import prior_matched_scale

# KL weight, factor and value of the base, in which every factor has its first value.
BASE = ("1", "none", "-")
# This factor is also varied at the KL weight of collapse.
STRESSED = "alignment_weight"
MOST_SEEDS = 3


def factors(setting):
    """Return the values of each factor; the first one is that of the base.

    The witness scale is a multiple of the prior-matched one. The alignment weight is a
    multiple of the KL weight.
    """
    network = setting.network
    width, latent_dim = network["hidden_sizes"][0], network["latent_dim"]
    # A simplex of K vertices needs K - 1 dimensions.
    k = min(10, latent_dim + 1)
    counts = [n for n in (5, 20, 50) if n <= latent_dim + 1]
    dims = [d for d in (latent_dim // 4, 4 * latent_dim) if d >= k - 1]
    return {
        "n_components": [*dict.fromkeys([k, *counts])],
        "witness_scale": [1.0, 0.5, 2.0, 4.0],
        "alignment_weight": [10.0, 0.1, 1.0, 100.0],
        "width": [width, width // 4, 4 * width],
        "latent_dim": [latent_dim, *dims],
    }


def cells(setting):
    """Return a cell for each seed, factor and value; all factors share the base."""
    others = [
        ("1", factor, value)
        for factor, values in factors(setting).items()
        for value in values[1:]
    ]
    stressed = sorted(factors(setting)[STRESSED])
    others += [(COLLAPSE, STRESSED, value) for value in stressed]
    return [
        {"kl_weight": kl, "factor": factor, "value": value, "seed": seed}
        for seed in range(min(MOST_SEEDS, setting.n_seeds))
        for kl, factor, value in [BASE, *others]
    ]


def compute(lab, kl_weight, factor, value, seed):
    """Forecast the margin, train, and measure."""
    samples = lab.samples(seed)
    values = {name: values[0] for name, values in factors(lab.setting).items()}
    if factor in values:
        values[factor] = value
    vae = varied(lab, samples, kl_weight, seed, **values)
    certifier = certified(vae, samples)
    forecast = certifier.estimator_.forecast(
        samples.train, ratio=values["alignment_weight"]
    )
    record = measure(certifier, samples.test)
    record |= {
        "relative": record["margin"] / record["information"],
        "forecast": forecast.operating_margin / forecast.teacher_information,
        "train_relative": certifier.certificate_.relative_margin,
        "witness_beta": certifier.witness_scale_,
    }
    options = {"data": lab.setting.data, "kl_weight": kl_weight, "factor": factor}
    options |= {"value": value, "seed": seed}
    return {"records": [options | values | record]}


def varied(lab, samples, kl_weight, seed, **values):
    """Return an unfitted VAE with these values of the factors."""
    sizes = [values["width"]] * len(lab.setting.network["hidden_sizes"])
    vae = lab.vae(
        samples,
        kl_weight,
        seed,
        hidden_sizes=sizes,
        latent_dim=values["latent_dim"],
    )
    vae.set_params(
        teacher__n_components=values["n_components"],
        alignment_weight=values["alignment_weight"] * vae.kl_weight,
    )
    if values["witness_scale"] != 1:
        proba = clone(vae.teacher).fit(samples.train).predict_proba(samples.train)
        scale = values["witness_scale"] * prior_matched_scale(proba)
        vae.set_params(witness_scale=float(scale))
    return vae
