"""A linear classifier of the labels, on codes of several kinds."""

import numpy as np
from lab import certified, probe
from sklearn.decomposition import PCA

N_PER_CLASS = 10
KL_WEIGHTS = ("1", "0.3 β*")
MODELS = ("plain", "aligned")


def cells(setting):
    """One cell a seed and kind of code; none where there are no labels."""
    if setting.data.startswith("patches"):
        return []
    kinds = [(model, kl) for kl in KL_WEIGHTS for model in MODELS]
    kinds += [(codes, "") for codes in WITHOUT_VAE]
    return [
        {"codes": codes, "kl_weight": kl, "seed": seed}
        for seed in range(setting.n_seeds)
        for codes, kl in kinds
    ]


def compute(lab, codes, kl_weight, seed):
    """Learn labels from codes: from 10 of a class, and from all."""
    samples = lab.samples(seed)
    if codes in MODELS:
        vae = lab.vae(samples, kl_weight, seed, aligned=codes == "aligned")
        certifier = certified(vae, samples)
        encode, record = certifier.estimator_.transform, margin(certifier, samples.test)
    else:
        encode, record = WITHOUT_VAE[codes](lab, samples, seed), {}
    train, test = encode(samples.train), encode(samples.test)
    told = {
        "data": lab.setting.data,
        "codes": codes,
        "kl_weight": kl_weight,
        "seed": seed,
        "dimension": train.shape[1],
        "few": probe(train, samples, test, N_PER_CLASS),
        "all": probe(train, samples, test),
    }
    return {"records": [told | record]}


def margin(certifier, test):
    """Return verdict and margin of a VAE's mean."""
    certificate = certifier.certify(test)
    return {
        "verdict": certificate.verdict,
        "margin": certificate.margin,
        "information": certificate.teacher_information,
    }


def components(lab, samples, seed):
    """Return the projection on as many principal components as codes have values."""
    pca = PCA(lab.setting.network["latent_dim"], random_state=seed)
    return pca.fit(samples.train).transform


def posterior(lab, samples, seed):
    """Return the posterior of the teacher that the VAEs are aligned to."""
    return lab.teacher(seed).fit(samples.train).predict_proba


def nothing(lab, samples, seed):
    """Return a constant code, on which the probe predicts the majority class."""
    return lambda X: np.zeros((len(X), 1))


WITHOUT_VAE = {
    "PCA": components,
    "teacher posterior": posterior,
    "majority class": nothing,
}
