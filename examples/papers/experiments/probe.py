"""A linear classifier of the labels, from several kinds of codes."""

import numpy as np
from lab import certified, probe
from sklearn.decomposition import PCA

N_PER_CLASS = 10
KL_WEIGHTS = ("1", "0.3 β*")
MODELS = ("plain", "aligned")


def cells(setting):
    """Return a cell for each seed and kind of code, if the data have labels."""
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
    """Learn labels from codes, from 10 labels of each class and from all."""
    samples = lab.samples(seed)
    if codes in MODELS:
        vae = lab.vae(samples, kl_weight, seed, aligned=codes == "aligned")
        certifier = certified(vae, samples)
        encode, record = certifier.estimator_.transform, margin(certifier, samples.test)
    else:
        encode, record = WITHOUT_VAE[codes](lab, samples, seed), {}
    train, test = encode(samples.train), encode(samples.test)
    accuracies = {
        "data": lab.setting.data,
        "codes": codes,
        "kl_weight": kl_weight,
        "seed": seed,
        "dimension": train.shape[1],
        "few": probe(train, samples, test, N_PER_CLASS),
        "all": probe(train, samples, test),
    }
    return {"records": [accuracies | record]}


def margin(certifier, test):
    """Return verdict, margin and information of the certificate."""
    certificate = certifier.certify(test)
    return {
        "verdict": certificate.verdict,
        "margin": certificate.margin,
        "information": certificate.teacher_information,
    }


def components(lab, samples, seed):
    """Return the projection onto as many principal components as latent dimensions."""
    pca = PCA(lab.setting.network["latent_dim"], random_state=seed)
    return pca.fit(samples.train).transform


def posterior(lab, samples, seed):
    """Return a function that returns the teacher's posteriors."""
    return lab.teacher(seed).fit(samples.train).predict_proba


def nothing(lab, samples, seed):
    """Return a constant code; from it the probe predicts the majority class."""
    return lambda X: np.zeros((len(X), 1))


WITHOUT_VAE = {
    "PCA": components,
    "teacher posterior": posterior,
    "majority class": nothing,
}
