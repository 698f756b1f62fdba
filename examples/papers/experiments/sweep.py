"""A KL weight that grows through the threshold of collapse (theory section 18)."""

import joblib
from lab import certified, measure

from skvaecert.forecast import linear_information

# Of β*, the threshold.
SHARES = (0.02, 0.1, 0.3, 0.6, 0.9, 1.1, 1.5)
MODELS = ("plain", "aligned")


def cells(setting):
    """One cell a seed, KL weight and model."""
    return [
        {"share": share, "model": model, "seed": seed}
        for seed in range(setting.n_seeds)
        for share in SHARES
        for model in MODELS
    ]


def compute(lab, share, model, seed):
    """Train one model, and measure it beside what a linear VAE would keep."""
    samples = lab.samples(seed)
    kl_weight = f"{share} β*"
    vae = lab.vae(samples, kl_weight, seed, aligned=model == "aligned")
    record = measure(certified(vae, samples), samples.test)
    told = {
        "data": lab.setting.data,
        "kl_weight": kl_weight,
        "model": model,
        "seed": seed,
        "share": share,
        "threshold": lab.threshold(samples),
        "linear": linear(lab, samples, vae.latent_dim)[SHARES.index(share)],
        # E_q log p(x|z): the ELBO has the KL with weight 1.
        "reconstruction": record["elbo"] + record["kl"],
    }
    return {"records": [told | record]}


def linear(lab, samples, latent_dim):
    """Return nats that a linear VAE keeps at each KL weight, computed once for all."""
    weights = [share * lab.threshold(samples) for share in SHARES]
    memory = joblib.Memory(lab.memory, verbose=0)
    forecast = memory.cache(linear_information)(samples.train, weights, latent_dim)
    return forecast.information.tolist()
