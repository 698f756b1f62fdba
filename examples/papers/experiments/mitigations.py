"""Mitigations from the literature, each tuned to one rate, then compared."""

import math
from collections.abc import Callable
from typing import NamedTuple

import joblib
import numpy as np
from lab import COLLAPSE, certified, measure, probe
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier, baselines
from skvaecert.diagnostics import kl_per_dimension
from skvaecert.forecast import linear_information

# Mean KL to the prior that every objective is tuned to, in nats a sample.
RATE = 4.0
# A fit this near to it, as a share of it, is good enough.
NEAR = 0.05
MAX_FITS = 5


class Tuning(NamedTuple):
    """What is tuned of an objective, where the search starts, and what is fixed.

    `slope` is a guess of d log KL / d log knob.
    """

    knob: str
    start: Callable  # of the Lab, the samples
    slope: float
    objective: Callable = lambda n_epochs: None
    kl_weight: str = COLLAPSE
    alignment: float = 0.0


def by_weight(objective=lambda n_epochs: None, times=1.25, alignment=0.0):
    """Tune the KL weight, from a multiple of the one that the forecast wants."""
    return Tuning(
        "kl_weight",
        lambda lab, samples: times * weight_of_rate(lab, samples),
        -1.5,
        objective,
        alignment=alignment,
    )


def by_floor(name, objective, start, slope=1.0, kl_weight=COLLAPSE):
    """Tune a parameter that holds the KL up, where a model would collapse."""
    return Tuning(f"objective__{name}", start, slope, objective, kl_weight)


def each(nats):
    """Return so many nats, shared out evenly over the dimensions."""
    return lambda lab, samples: nats / lab.setting.network["latent_dim"]


TUNINGS = {
    # The ELBO has no part at this KL weight: what alignment holds is all.
    "alignment": Tuning("alignment", lambda lab, samples: 5.0, 0.5),
    "ELBO and alignment": by_weight(times=1.4, alignment=1.0),
    # BetaVAE is the same.
    "ELBO": by_weight(),
    "LinearAnnealing": by_weight(lambda n: baselines.LinearAnnealing(n / 10)),
    "CyclicalAnnealing": by_weight(lambda n: baselines.CyclicalAnnealing(n / 4)),
    "AggressiveEncoder": by_weight(
        lambda n: baselines.AggressiveEncoder(window=5, max_inner_steps=10)
    ),
    "SigmaVAE": by_weight(lambda n: baselines.SigmaVAE()),
    "InfoVAE": by_weight(lambda n: baselines.InfoVAE(alpha=0.0)),
    "Capacity": by_floor(
        "capacity",
        lambda n: baselines.Capacity(n_epochs=n / 4),
        lambda lab, samples: RATE,
        kl_weight="1",
    ),
    "FreeBits": by_floor("nats", lambda n: baselines.FreeBits(), each(RATE)),
    "DeltaVAE": by_floor("delta", lambda n: baselines.DeltaVAE(), each(RATE)),
    "BatchNormVAE": by_floor(
        "gamma",
        lambda n: baselines.BatchNormVAE(),
        # KL is latent_dim * gamma^2 / 2, or more.
        lambda lab, samples: math.sqrt(each(2 * RATE)(lab, samples)),
        slope=2.0,
    ),
    "MuForcing": by_floor(
        "threshold",
        lambda n: baselines.MuForcing(),
        # KL is threshold / 2, or more.
        lambda lab, samples: 2 * RATE,
    ),
}


def cells(setting):
    """One cell a seed and objective."""
    return [
        {"objective": name, "seed": seed}
        for seed in range(setting.n_seeds)
        for name in TUNINGS
    ]


def compute(lab, objective, seed):
    """Tune one objective to the rate, and measure the fit that comes nearest."""
    samples = lab.samples(seed)
    tried = tune(lab, samples, objective, seed)
    knob, kl, certifier = nearest(tried)[0]
    vae = certifier.estimator_
    linear = CollapseCertifier(FrozenEstimator(vae), witness="linear")
    record = {
        "data": lab.setting.data,
        "objective": objective,
        "seed": seed,
        "knob": TUNINGS[objective].knob,
        "value": knob,
        "n_fits": len(tried),
        "valid_kl": kl,
        "all_tried": " ".join(f"{knob:.4g}:{kl:.3g}" for knob, kl, _ in tried),
    }
    record |= measure(certifier, samples.test)
    linear_verdict = linear.fit(samples.train).certify(samples.test).verdict
    record |= {"linear_verdict": linear_verdict}
    if samples.labels is not None:
        codes, test_codes = (vae.transform(x) for x in (samples.train, samples.test))
        record |= {"probe": probe(codes, samples, test_codes)}
    return {"records": [record]}


def tune(lab, samples, objective, seed):
    """Return knob, KL of the validation samples and certifier of each fit."""
    tuning = TUNINGS[objective]
    tried, knob = [], tuning.start(lab, samples)
    for _ in range(MAX_FITS):
        certifier = certified(build(lab, samples, seed, tuning, knob), samples)
        kl = float(kl_per_dimension(*certifier.estimator_.encode(samples.valid)).sum())
        tried.append((knob, kl, certifier))
        if abs(kl / RATE - 1) <= NEAR:
            break
        knob = better(tried, tuning.slope)
    return tried


def build(lab, samples, seed, tuning, value):
    """Return an unfitted VAE with this value of the knob."""
    objective = tuning.objective(lab.setting.network["max_epochs"])
    kl_weight = str(value) if tuning.knob == "kl_weight" else tuning.kl_weight
    vae = lab.vae(samples, kl_weight, seed, aligned=False, objective=objective)
    times = value if tuning.knob == "alignment" else tuning.alignment
    vae.set_params(alignment_weight=times * vae.kl_weight)
    if tuning.knob.startswith("objective__"):
        vae.set_params(**{tuning.knob: value})
    return vae


def nearest(tried):
    """Return the fits, those nearest to the rate first."""
    return sorted(tried, key=lambda fit: abs(math.log(fit[1] / RATE)))


def better(tried, slope):
    """Return where the secant of log KL by log knob has the rate; guess at first."""
    (x, y), *others = ([math.log(v) for v in fit[:2]] for fit in nearest(tried))
    if others:
        secant = (others[0][1] - y) / (others[0][0] - x) / slope
        slope *= min(max(secant, 1 / 3), 3)
    step = (math.log(RATE) - y) / slope
    return math.exp(x + min(max(step, -math.log(4)), math.log(4)))


def weight_of_rate(lab, samples):
    """Return the KL weight at which a linear VAE would have the rate."""
    memory = joblib.Memory(lab.memory, verbose=0)
    weights = np.geomspace(0.01, 1, 200) * lab.threshold(samples)
    latent_dim = lab.setting.network["latent_dim"]
    forecast = memory.cache(linear_information)(samples.train, weights, latent_dim)
    return float(np.interp(RATE, forecast.information[::-1], weights[::-1]))
