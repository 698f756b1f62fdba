"""Objects that are no estimator or no teacher: the error names the way out."""

import functools

import numpy as np
import pytest
import skorch
import torch
from sklearn.cluster import DBSCAN, KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.wrappers import TrainedEncoder


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def encode(self, x):
        return self.layer(x), self.layer(x)

    def decode(self, z):
        return z


class Coder(nn.Module):
    """As of pythae: with modules for encoder and decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = self.decoder = nn.Identity()


def net():
    with torch.random.fork_rng():
        return skorch.NeuralNet(VAE, criterion=nn.MSELoss).initialize()


@pytest.fixture
def blobs(shared_blobs):
    return shared_blobs


MODELS = {
    "module": (VAE(), "torch module VAE", "model.encode, model.decode"),
    "pythae": (Coder(), "torch module Coder", "model.encoder, model.decoder"),
    "layer": (nn.Linear(6, 4), "torch module Linear", "model"),
    "method": (VAE().encode, "callable VAE.encode", "model.encode, model.decode"),
    "function": (lambda x: x, "callable <lambda>", "encode"),
    "partial": (functools.partial(np.dot), "callable partial", "encode"),
    "skorch": (net(), "of skorch", "net.module_.encode, net.module_.decode"),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_models_have_to_be_wrapped(blobs, model, frozen):
    given, kind, arguments = MODELS[model]
    estimator = FrozenEstimator(given) if frozen else given
    with pytest.raises(ValueError, match="must have a method transform") as caught:
        CollapseCertifier(estimator).fit(blobs)
    message = str(caught.value)
    assert kind in message
    assert f"FrozenEstimator(TrainedEncoder({arguments})))" in message
    assert len(message) < 260


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"estimator": CertifiedVAE}, "estimator must be an instance.*CertifiedVAE"),
        ({"estimator": VAE}, "estimator must be an instance.*VAE"),
        ({"teacher": GMMTeacher}, "teacher must be an instance.*GMMTeacher"),
        ({"teacher": DBSCAN()}, "predict_proba.*got DBSCAN.*GMMTeacher"),
        ({"teacher": GaussianMixture(4)}, "GaussianMixture.*above 0.*GMMTeacher"),
        ({"teacher": KMeans(4)}, "KMeans.*sum to 1.*GMMTeacher"),
    ],
)
def test_classes_and_other_teachers(blobs, parameters, message):
    arguments = {"estimator": TrainedEncoder(lambda X: X)} | parameters
    with pytest.raises(ValueError, match=message):
        CollapseCertifier(**arguments).fit(blobs + 1000 * np.sign(blobs))


def certifier(encoder, blobs):
    return CollapseCertifier(encoder, teacher=GMMTeacher(4, random_state=0)).fit(blobs)


class Silent:
    """Has a transform, and an encode that returns nothing."""

    def transform(self, X):
        return X[:, :4]

    def encode(self, X):
        return None


def test_encoders_that_give_no_posterior(blobs):
    with pytest.raises(ValueError, match=r"Silent returned NoneType.*TrainedEncoder"):
        certifier(Silent(), blobs).certify(blobs, kind="sampled")
    means = certifier(TrainedEncoder(lambda X: X[:, :4]), blobs)
    with pytest.raises(ValueError, match=r"\(mean, log_variance\).*TrainedEncoder"):
        means.certify(blobs, kind="sampled")
    with pytest.raises(ValueError, match=r"round_trip.*TrainedEncoder\(encoder, dec"):
        means.certify(blobs, kind="round_trip")


@pytest.mark.slow
def test_a_wrapped_model_need_not_be_frozen(blobs):
    wrapped = TrainedEncoder(VAE().encode)
    free = certifier(wrapped, blobs).certify(blobs)
    frozen = certifier(FrozenEstimator(wrapped), blobs).certify(blobs)
    assert free.margin == frozen.margin
    assert free.verdict == frozen.verdict
