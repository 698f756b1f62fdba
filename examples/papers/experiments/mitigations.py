"""Mitigations from the literature, each tuned to the same rate, then compared."""

import math
from typing import NamedTuple

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

# Every objective is tuned to this mean KL to the prior, in nats per sample.
RATE = 4.0
# The search ends if the KL differs from the rate by at most this share of it.
NEAR = 0.05
MAX_FITS = 5


class Tuning(NamedTuple):
    """Which parameter, the knob, is tuned, where its search starts, and what is fixed.

    For a KL weight, `start` is a multiple of the weight at which a linear VAE has the
    rate. Any other knob keeps up the KL at the fixed `kl_weight`. `alignment` is the
    weight of the alignment loss as a multiple of the KL weight.
    """

    knob: str
    start: float
    objective: Objective | None = None
    kl_weight: str = COLLAPSE
    alignment: float = 0.0

    @property
    def slope(self):
        """An estimate of d log KL / d log knob."""
        return {"kl_weight": -1.5, "alignment": 0.5}.get(self.knob, 1.0)


def tunings(network):
    """Return the tuning of each objective; the ELBO with a KL weight is BetaVAE."""
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
        # It bounds the KL from below at half the rate. The bound fails where a model
        # would collapse: the means shrink below what normalization adds to variances.
        "BatchNormVAE": Tuning("kl_weight", 0.6, BatchNormVAE(math.sqrt(each))),
        "Capacity": Tuning(
            "objective__capacity", RATE, Capacity(n_epochs=n_epochs / 4), "1"
        ),
        "FreeBits": Tuning("objective__nats", 1.2 * each, FreeBits()),
        "DeltaVAE": Tuning("objective__delta", each, DeltaVAE()),
        "MuForcing": Tuning("objective__threshold", 2.1 * RATE, MuForcing()),
    }


def cells(setting):
    """Return a cell for each seed and objective."""
    return [
        {"objective": name, "seed": seed}
        for seed in range(setting.n_seeds)
        for name in tunings(setting.network)
    ]


def compute(lab, objective, seed):
    """Tune one objective to the rate, and measure the nearest fit."""
    samples = lab.samples(seed)
    tuning = tunings(lab.setting.network)[objective]
    tried = tune(lab, samples, tuning, seed)
    value, kl, certifier = nearest(tried)[0]
    search = {
        "data": lab.setting.data,
        "objective": objective,
        "seed": seed,
        "knob": tuning.knob.removeprefix("objective__"),
        "value": value,
        "n_fits": len(tried),
        "valid_kl": kl,
    }
    record = measure(certifier, samples.test) | read(certifier.estimator_, samples)
    return {"records": [search | record], "tried": [fit[:2] for fit in tried]}


def tune(lab, samples, tuning, seed):
    """Return for each fit the knob, the KL on validation samples, and the certifier."""
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
    alignment = value if tuning.knob == "alignment" else tuning.alignment
    vae.set_params(alignment_weight=alignment * vae.kl_weight)
    if tuning.knob.startswith("objective__"):
        vae.set_params(**{tuning.knob: value})
    return vae


def nearest(tried):
    """Return the fits, sorted by the distance of their KL from the rate."""
    return sorted(tried, key=lambda fit: abs(math.log(fit[1] / RATE)))


def better(tried, slope):
    """Return the next value to try: between two fits, or beyond the nearest one."""
    values, kls = np.log([fit[:2] for fit in nearest(tried)]).T
    aim = np.log(RATE)
    if kls.min() < aim < kls.max():
        _, order = np.unique(kls, return_index=True)
        return float(np.exp(PchipInterpolator(kls[order], values[order])(aim)))
    if len(tried) > 1:
        secant = (kls[1] - kls[0]) / (values[1] - values[0])
        # A secant far from the estimate comes from noise, or from a bound on the KL.
        slope *= np.clip(secant / slope, 1 / 3, 3)
    # A step is at most a factor of four.
    step = np.clip((aim - kls[0]) / slope, *np.log([1 / 4, 4]))
    return float(np.exp(values[0] + step))


def weight_of_rate(lab, samples):
    """Return the KL weight at which a linear VAE has the rate (theory section 18)."""
    weights = np.geomspace(0.01, 1, 200) * lab.threshold(samples)
    forecast = lab.cached(linear_information)(
        samples.train, weights, lab.setting.network["latent_dim"]
    )
    return float(np.interp(RATE, forecast.information[::-1], weights[::-1]))


def read(vae, samples):
    """Return what a fitted witness, and a probe of the labels, read off the means."""
    frozen = CollapseCertifier(FrozenEstimator(vae), witness="linear")
    linear = frozen.fit(samples.train).certify(samples.test)
    record = {"linear_verdict": linear.verdict}
    if samples.labels is not None:
        codes, test_codes = (vae.transform(x) for x in (samples.train, samples.test))
        record |= {"probe": probe(codes, samples, test_codes)}
    return record
