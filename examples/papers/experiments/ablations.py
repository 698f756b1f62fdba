"""One factor at a time: what moves the margin, and what does not."""

from lab import COLLAPSE, certified, measure
from sklearn.base import clone

from skvaecert.simplex import prior_matched_scale

# The training that each factor is varied from, as the others are named.
BASE = ("1", "none", "-")
# What is asked at the KL weight of collapse, too.
STRESSED = "alignment_weight"
MOST_SEEDS = 3


def factors(setting):
    """Return the values of each factor, that of the base first.

    The witness scale is a multiple of the prior-matched one, and the alignment weight
    one of the KL weight.
    """
    width, latent_dim = (
        setting.network["hidden_sizes"][0],
        setting.network["latent_dim"],
    )
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
    """One cell a seed, factor and value; the base, which all share, is trained once."""
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
    chosen = {name: values[0] for name, values in factors(lab.setting).items()}
    if factor in chosen:
        chosen[factor] = value
    vae = varied(lab, samples, kl_weight, seed, **chosen)
    certifier = certified(vae, samples)
    forecast = certifier.estimator_.forecast(
        samples.train, ratio=chosen["alignment_weight"]
    )
    record = measure(certifier, samples.test)
    record |= {
        "relative": record["margin"] / record["information"],
        "forecast": forecast.operating_margin / forecast.teacher_information,
        "train_relative": certifier.certificate_.relative_margin,
        "witness_beta": certifier.witness_scale_,
    }
    told = {"data": lab.setting.data, "kl_weight": kl_weight, "factor": factor}
    told |= {"value": value, "seed": seed}
    return {"records": [told | chosen | record]}


def varied(lab, samples, kl_weight, seed, **chosen):
    """Return an unfitted VAE of these values of the factors."""
    sizes = [chosen["width"]] * len(lab.setting.network["hidden_sizes"])
    vae = lab.vae(
        samples,
        kl_weight,
        seed,
        hidden_sizes=sizes,
        latent_dim=chosen["latent_dim"],
    )
    vae.set_params(
        teacher__n_components=chosen["n_components"],
        alignment_weight=chosen["alignment_weight"] * vae.kl_weight,
    )
    if chosen["witness_scale"] != 1:
        proba = clone(vae.teacher).fit(samples.train).predict_proba(samples.train)
        scale = chosen["witness_scale"] * prior_matched_scale(proba)
        vae.set_params(witness_scale=float(scale))
    return vae
