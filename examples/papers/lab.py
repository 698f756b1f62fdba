"""Samples, models and measurements of one setting."""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from readers import read_cifar10, read_cifar100, read_mnist, read_tiny_imagenet
from settings import Setting
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, datasets
from skvaecert.forecast import collapse_threshold

# As a multiple of the KL weight.
ALIGNMENT_WEIGHT = 10.0
# Half as much again as β*, the KL weight from which on a linear VAE collapses.
COLLAPSE = "1.5 β*"
# The function that reads the official files of a data set, and their folder.
READERS = {
    "mnist": (read_mnist, "mnist"),
    "cifar10": (read_cifar10, "cifar-10-batches-bin"),
    "cifar100": (read_cifar100, "cifar-100-binary"),
    "tiny-imagenet": (read_tiny_imagenet, "tiny-imagenet-200"),
}


class Samples(NamedTuple):
    """Samples and, for data with labels, their labels; `valid` is for tuning only."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None
    test_labels: np.ndarray | None
    image_shape: tuple[int, ...]


@dataclass(frozen=True)
class Lab:
    """A setting, with the folders and the device of this machine."""

    setting: Setting
    memory: str | None = None
    data_dir: str | None = None
    device: str = "cpu"

    def samples(self, seed):
        """Draw the samples of a seed; a fixed setting has those of seed 0."""
        s = self.setting
        seed = 0 if s.fixed else seed
        return load_samples(s.data, s.n_train, s.n_test, seed, self.data_dir)

    def teacher(self, seed):
        """Return an unfitted teacher."""
        return GMMTeacher(**self.setting.teacher, random_state=seed)

    def cached(self, function):
        """Cache the results of a function in the folder `memory`, if there is one."""
        return joblib.Memory(self.memory, verbose=0).cache(function)

    def kl_weight(self, samples, text):
        """Return the KL weight from text: a number, or a multiple such as "0.5 β*"."""
        factor, _, unit = text.partition(" ")
        return float(factor) * (self.threshold(samples) if unit else 1.0)

    def threshold(self, samples):
        """Return β*, the KL weight from which on a linear VAE collapses entirely."""
        return float(self.cached(collapse_threshold)(samples.train))

    def vae(self, samples, kl_weight, seed, aligned=True, **options):
        """Return an unfitted VAE; `kl_weight` is text that `Lab.kl_weight` reads."""
        weight = self.kl_weight(samples, kl_weight)
        parameters = dict(self.setting.network)
        if parameters.get("encoder") == "conv":
            parameters["image_shape"] = samples.image_shape
        parameters |= {
            "kl_weight": weight,
            "alignment_weight": ALIGNMENT_WEIGHT * weight if aligned else 0.0,
            "random_state": 0 if self.setting.fixed else seed,
        }
        return CertifiedVAE(
            self.teacher(seed),
            memory=self.memory,
            device=self.device,
            **parameters | options,
        )


@functools.lru_cache(maxsize=2)
def load_samples(data, n_train, n_test, seed, data_dir):
    """Return training, validation and test samples, with values in [0, 1]."""
    train = draw(data, "train", n_train + n_test, seed, data_dir)
    test = draw(data, "test", n_test, seed, data_dir)
    labels = None if train[1] is None else train[1][:n_train]
    return Samples(
        train[0][:n_train], train[0][n_train:], test[0], labels, test[1], train[2]
    )


def draw(data, subset, n_samples, seed, data_dir):
    """Return at most `n_samples` samples, their labels or None, and the image shape."""
    if data.startswith("patches"):
        # Training and test patches come from separate strips of the photographs.
        size = int(data[7:])
        bunch = datasets.load_patches(
            n_samples, size=size, subset=subset, random_state=seed
        )
        return bunch.data, None, bunch.image_shape
    if data == "digits":
        bunch, largest = datasets.load_digits(subset=subset, random_state=seed), 1
    else:
        read, folder = READERS[data.removesuffix("-conv")]
        bunch, largest = read(Path(data_dir) / folder, subset), 255
    chosen = check_random_state(seed).permutation(len(bunch.data))[:n_samples]
    scaled = (bunch.data[chosen] / largest).astype(np.float32)
    return scaled, bunch.target[chosen], bunch.image_shape


def certified(vae, samples, **options):
    """Fit a certifier, and the VAE inside it, to the training samples."""
    return CollapseCertifier(vae).fit(samples.train, **options)


def measure(certifier, test):
    """Return measurements of a fitted certifier on test samples."""
    vae, diagnosis = certifier.estimator_, certifier.diagnose(test)
    certificate, bracket = diagnosis.mean, diagnosis.information
    return {
        "n_train": certifier.certificate_.n_samples,
        "n_test": len(test),
        "state": diagnosis.state,
        "verdict": certificate.verdict,
        "margin": certificate.margin,
        "information": certificate.teacher_information,
        "n_components": certificate.n_components,
        "spread": certificate.dispersion,
        "active": diagnosis.active_units,
        "low": bracket.low,
        "high": bracket.high,
        "estimate": bracket.estimate,
        "decoder": diagnosis.decoder.bound,
        "kl": float(diagnosis.kl_per_dimension.sum()),
        "unexplained": unexplained(test, vae.inverse_transform(vae.transform(test))),
        "elbo": vae.score(test),
        "beta": vae.kl_weight,
        "epochs": vae.n_iter_,
    }


def round_trip(certifier, test):
    """Return verdict, margin and information of the certificate of reconstructions."""
    certificate = certifier.certify(test, kind="round_trip")
    return {
        "round_trip_verdict": certificate.verdict,
        "round_trip_margin": certificate.margin,
        "round_trip_information": certificate.teacher_information,
    }


def unexplained(samples, reconstruction):
    """Return the mean squared error as a share of the samples' variance."""
    samples = np.asarray(samples, dtype=np.float64)
    return float(((samples - reconstruction) ** 2).mean() / samples.var(axis=0).mean())


def probe(codes, samples, test_codes, n_per_class=None):
    """Return the accuracy of a linear classifier of codes on the test samples.

    It is fitted to the first `n_per_class` training samples of each class, or to all.
    """
    labels = samples.labels
    if n_per_class is None:
        chosen = np.arange(len(labels))
    else:
        firsts = [np.flatnonzero(labels == k)[:n_per_class] for k in np.unique(labels)]
        chosen = np.concatenate(firsts)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(codes[chosen], labels[chosen])
    return float(model.score(test_codes, samples.test_labels))


def margin_curve(certifier):
    """Return the margin after each epoch, as a share of the teacher information."""
    history = certifier.estimator_.history_
    return rounded(row["margin"] / row["teacher_information"] for row in history)


def rounded(curve):
    """Return values of five significant digits, which keep the stored files small."""
    return [float(f"{value:.5g}") for value in curve]


def constant_copy(certifier, mean_only=False):
    """Return a copy whose encoder's posterior, or only its mean, is constant."""
    certifier = copy.deepcopy(certifier)
    encoder = certifier.estimator_.net_.module_.encoder
    *_, last = (part for part in encoder.modules() if isinstance(part, torch.nn.Linear))
    # The first half of the outputs is the mean, the second gives the deviation.
    n_rows = len(last.weight) // 2 if mean_only else None
    with torch.no_grad():
        last.weight[:n_rows] = 0
    return certifier
