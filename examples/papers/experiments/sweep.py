"""KL weights below and above the threshold of collapse (theory section 18)."""

from lab import certified, measure

from skvaecert.forecast import linear_information

# KL weights, as multiples of the threshold β*.
SHARES = (0.02, 0.1, 0.3, 0.6, 0.9, 1.1, 1.5)
MODELS = ("plain", "aligned")


def cells(setting):
    """Return a cell for each seed, KL weight and model."""
    return [
        {"share": share, "model": model, "seed": seed}
        for seed in range(setting.n_seeds)
        for share in SHARES
        for model in MODELS
    ]


def compute(lab, share, model, seed):
    """Train and measure one model, and compute the information of a linear VAE."""
    samples = lab.samples(seed)
    kl_weight = f"{share} β*"
    vae = lab.vae(samples, kl_weight, seed, aligned=model == "aligned")
    record = measure(certified(vae, samples), samples.test)
    computed = {
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
    return {"records": [computed | record]}


def linear(lab, samples, latent_dim):
    """Return the information of a linear VAE at each KL weight, in nats."""
    weights = [share * lab.threshold(samples) for share in SHARES]
    forecast = lab.cached(linear_information)(samples.train, weights, latent_dim)
    return forecast.information.tolist()
