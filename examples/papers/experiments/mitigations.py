"""Mitigations from the literature, each tuned to one rate and then compared."""

import math
from typing import NamedTuple

import joblib
import numpy as np
from lab import COLLAPSE, certified, measure, probe
from scipy.interpolate import PchipInterpolator
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier
from skvaecert.baselines import (
    AggressiveEncoder,
    BatchNormVAE,
    Capacity,
    CyclicalAnnealing,
    DeltaVAE,
    FreeBits,
    InfoVAE,
    LinearAnnealing,
    MuForcing,
    SigmaVAE,
)
from skvaecert.diagnostics import kl_per_dimension
from skvaecert.forecast import linear_information
from skvaecert.objectives import Objective

# Mean KL to the prior that every objective is tuned to, in nats a sample.
RATE = 4.0
# A fit is near enough if its KL differs by this share at most.
NEAR = 0.05
MAX_FITS = 5


class Tuning(NamedTuple):
    """What is tuned, where the search starts, and what is fixed.

    A KL weight starts at so many times what a linear VAE needs for the rate. What is
    tuned otherwise holds the KL up at the fixed `kl_weight`. `alignment` is the weight
    of the alignment loss as a multiple of the KL weight.
    """

    knob: str
    start: float
    objective: Objective | None = None
    kl_weight: str = COLLAPSE
    alignment: float = 0.0

    @property
    def slope(self):
        """A guess of d log KL / d log knob."""
        return {"kl_weight": -1.5, "alignment": 0.5}.get(self.knob, 1.0)


def tunings(network):
    """Return what is tuned of each objective; BetaVAE is the ELBO's."""
    n_epochs, latent_dim = network["max_epochs"], network["latent_dim"]
    each = RATE / latent_dim
    return {
        "alignment": Tuning("alignment", 4.7),
        "ELBO and alignment": Tuning("kl_weight", 1.4, alignment=1.0),
        "ELBO": Tuning("kl_weight", 1.25),
        "LinearAnnealing": Tuning("kl_weight", 1.25, LinearAnnealing(n_epochs / 10)),
        "CyclicalAnnealing": Tuning("kl_weight", 1.45, CyclicalAnnealing(n_epochs / 4)),
        "AggressiveEncoder": Tuning(
            "kl_weight", 1.25, AggressiveEncoder(window=5, max_inner_steps=5)
        ),
        "SigmaVAE": Tuning("kl_weight", 1.25, SigmaVAE()),
        "InfoVAE": Tuning("kl_weight", 1.1, InfoVAE(alpha=0.0)),
        # Its floor is half the rate. Where a model would collapse it is no floor: the
        # encoder shrinks its means below what the normalization adds to variances.
        "BatchNormVAE": Tuning("kl_weight", 0.6, BatchNormVAE(math.sqrt(each))),
        "Capacity": Tuning(
            "objective__capacity", RATE, Capacity(n_epochs=n_epochs / 4), "1"
        ),
        "FreeBits": Tuning("objective__nats", 1.2 * each, FreeBits()),
        "DeltaVAE": Tuning("objective__delta", each, DeltaVAE()),
        "MuForcing": Tuning("objective__threshold", 2.1 * RATE, MuForcing()),
    }


def cells(setting):
    """One cell a seed and objective."""
    return [
        {"objective": name, "seed": seed}
        for seed in range(setting.n_seeds)
        for name in tunings(setting.network)
    ]


def compute(lab, objective, seed):
    """Tune one objective to the rate, and measure the fit that comes nearest."""
    samples = lab.samples(seed)
    tuning = tunings(lab.setting.network)[objective]
    tried = tune(lab, samples, tuning, seed)
    value, kl, certifier = nearest(tried)[0]
    told = {
        "data": lab.setting.data,
        "objective": objective,
        "seed": seed,
        "knob": tuning.knob.removeprefix("objective__"),
        "value": value,
        "n_fits": len(tried),
        "valid_kl": kl,
    }
    record = measure(certifier, samples.test) | read(certifier.estimator_, samples)
    return {"records": [told | record], "tried": [fit[:2] for fit in tried]}


def tune(lab, samples, tuning, seed):
    """Return for each fit the knob, the KL of validation samples, and the certifier."""
    value = tuning.start
    if tuning.knob == "kl_weight":
        value *= weight_of_rate(lab, samples)
    tried = []
    for _ in range(MAX_FITS):
        certifier = certified(build(lab, samples, tuning, value, seed), samples)
        posterior = certifier.estimator_.encode(samples.valid)
        kl = float(kl_per_dimension(*posterior).sum())
        tried.append((value, kl, certifier))
        if abs(kl / RATE - 1) <= NEAR:
            break
        value = better(tried, tuning.slope)
    return tried


def build(lab, samples, tuning, value, seed):
    """Return an unfitted VAE with this value of the knob."""
    kl_weight = str(value) if tuning.knob == "kl_weight" else tuning.kl_weight
    vae = lab.vae(samples, kl_weight, seed, objective=tuning.objective)
    times = value if tuning.knob == "alignment" else tuning.alignment
    vae.set_params(alignment_weight=times * vae.kl_weight)
    if tuning.knob.startswith("objective__"):
        vae.set_params(**{tuning.knob: value})
    return vae


def nearest(tried):
    """Return the fits, that with the KL nearest to the rate first."""
    return sorted(tried, key=lambda fit: abs(math.log(fit[1] / RATE)))


def better(tried, slope):
    """Return where the KL should be the rate: between fits, or beyond the nearest."""
    values, kls = np.log([fit[:2] for fit in nearest(tried)]).T
    aim = np.log(RATE)
    if kls.min() < aim < kls.max():
        _, order = np.unique(kls, return_index=True)
        return float(np.exp(PchipInterpolator(kls[order], values[order])(aim)))
    if len(tried) > 1:
        secant = (kls[1] - kls[0]) / (values[1] - values[0])
        # One that is far from the guess tells of noise, or of a floor.
        slope *= np.clip(secant / slope, 1 / 3, 3)
    # By a factor of four at most.
    step = np.clip((aim - kls[0]) / slope, *np.log([1 / 4, 4]))
    return float(np.exp(values[0] + step))


def weight_of_rate(lab, samples):
    """Return the KL weight at which a linear VAE has the rate (theory section 18)."""
    weights = np.geomspace(0.01, 1, 200) * lab.threshold(samples)
    forecast = joblib.Memory(lab.memory, verbose=0).cache(linear_information)
    kept = forecast(samples.train, weights, lab.setting.network["latent_dim"])
    return float(np.interp(RATE, kept.information[::-1], weights[::-1]))


def read(vae, samples):
    """Return what is read off the means: by fitted witness, and of the labels."""
    frozen = CollapseCertifier(FrozenEstimator(vae), witness="linear")
    found = {"linear_verdict": frozen.fit(samples.train).certify(samples.test).verdict}
    if samples.labels is not None:
        codes, test_codes = (vae.transform(x) for x in (samples.train, samples.test))
        found |= {"probe": probe(codes, samples, test_codes)}
    return found
