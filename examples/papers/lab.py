"""One setting at work: samples, VAEs, and what is measured of a trained one."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from settings import ALIGNMENT_WEIGHT, Setting, load_samples

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

# "sum": the ELBO as it is defined, with its reconstruction summed over features.
# "mean": that term averaged over them instead, as many programs have it, which is to
# multiply both other weights by n_features. With a learned variance a linear VAE does
# not survive that, whatever the data (theory section 18).
SCALES = ("sum", "mean")
FORETOLD = "which in the scale mean follows, for linear VAEs, from theory section 18"


class Samples(NamedTuple):
    """Training and test samples."""

    train: np.ndarray
    test: np.ndarray
    image_shape: tuple[int, ...]


@dataclass(frozen=True)
class Lab:
    """A setting, and where things lie on this machine."""

    setting: Setting
    memory: str | None = None
    data_dir: str | None = None
    device: str = "cpu"

    def samples(self, seed):
        """Draw samples."""
        sizes = {"train": self.setting.n_train, "test": self.setting.n_test}
        (train, image_shape), (test, _) = (
            load_samples(self.setting.data, subset, n, seed, self.data_dir)
            for subset, n in sizes.items()
        )
        return Samples(train, test, image_shape)

    def teacher(self, seed):
        """Return an unfitted search for a teacher."""
        return GMMTeacher(**self.setting.teacher, random_state=seed)

    def vae(self, samples, scale, seed, aligned=True, kl_weight=1.0, **options):
        """Return an unfitted VAE; weights are relative to a KL weight of 1."""
        unit = self.unit(samples, scale)
        given = dict(self.setting.network)
        if given.get("encoder") == "conv":
            given["image_shape"] = samples.image_shape
        return CertifiedVAE(
            self.teacher(seed),
            kl_weight=unit * kl_weight,
            alignment_weight=self.alignment_weight(samples, scale) if aligned else 0.0,
            memory=self.memory,
            device=self.device,
            random_state=seed,
            **given | options,
        )

    def unit(self, samples, scale):
        """Return what weights are multiplied by."""
        return 1.0 if scale == "sum" else float(samples.train.shape[1])

    def alignment_weight(self, samples, scale):
        """Return the weight of the alignment loss where it is on."""
        return ALIGNMENT_WEIGHT * self.unit(samples, scale)


def certified(vae, samples, **options):
    """Fit a certifier around an unfitted VAE."""
    return CollapseCertifier(vae).fit(samples.train, **options)


def measure(certifier, test, **options):
    """Return numbers of a fitted certifier on test samples."""
    vae, diagnosis = certifier.estimator_, certifier.diagnose(test, **options)
    certificate, bracket = diagnosis.mean, diagnosis.information
    return {
        "state": diagnosis.state,
        "verdict": certificate.verdict,
        "margin": certificate.margin,
        "information": certificate.teacher_information,
        "n_components": certificate.n_components,
        "train_margin": certifier.certificate_.margin,
        "spread": certificate.dispersion,
        "active": diagnosis.active_units,
        "low": bracket.low,
        "high": bracket.high,
        "estimate": bracket.estimate,
        "kl": float(diagnosis.kl_per_dimension.sum()),
        "unexplained": unexplained(test, vae.inverse_transform(vae.transform(test))),
        "elbo": vae.score(test),
    }


def round_trip(certifier, test):
    """Return what encoder and decoder together pass on, by the softened teacher."""
    certificate = certifier.certify(test, kind="round_trip")
    return {
        "round_trip_verdict": certificate.verdict,
        "round_trip_margin": certificate.margin,
        "round_trip_information": certificate.teacher_information,
    }


def unexplained(samples, reconstruction):
    """Return the share of the samples' variance that reconstructions miss."""
    samples = np.asarray(samples, dtype=np.float64)
    return float(((samples - reconstruction) ** 2).mean() / samples.var(axis=0).mean())


def margin_curve(certifier):
    """Return the history's margins as shares of the teacher information."""
    history = certifier.estimator_.history_
    return [row["margin"] / row["teacher_information"] for row in history]
