"""Convolutions: encoder="conv", decoder="conv"."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches


@pytest.fixture(scope="module")
def patches():
    return load_patches(600, size=8, random_state=0)


@pytest.fixture
def conv_vae(patches):
    return CertifiedVAE(
        GMMTeacher(4, covariance_type="spherical"),
        latent_dim=8,
        hidden_sizes=(32,),
        encoder="conv",
        decoder="conv",
        image_shape=patches.image_shape,
        batch_size=32,
        max_epochs=1,
        device="cpu",
        random_state=0,
    )


@pytest.mark.slow
def test_convolutions_are_certified(patches, conv_vae):
    held_out = load_patches(300, size=8, subset="test", random_state=1).data
    scaled = MinMaxScaler().fit_transform(held_out)
    certifier = CollapseCertifier(conv_vae.set_params(max_epochs=5))
    certifier = make_pipeline(MinMaxScaler(), certifier).fit(patches.data)[-1]
    assert certifier.certify(scaled).verdict == "certified"
    decoded = certifier.estimator_.inverse_transform(certifier.transform(scaled))
    assert ((decoded - scaled) ** 2).mean() < scaled.var(axis=0).mean() / 2


@pytest.mark.slow
def test_convolutions_without_weights_are_constant(patches, conv_vae):
    """The twin of the test above: images alone certify nothing."""
    X = patches.data[:200]
    vae = conv_vae.fit(X)
    with torch.no_grad():
        vae.net_.module_.encoder[-1].weight.zero_()
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(X)
    assert certifier.certify(X).verdict == "constant"


@pytest.mark.slow
@pytest.mark.parametrize("image_shape", [(3, 8, 8), (1, 12, 16), (2, 9, 13)])
def test_an_image_is_encoded_alike_in_any_batch(conv_vae, image_shape):
    n_features = np.prod(image_shape)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, n_features)) + rng.integers(4, size=(300, 1))
    vae = conv_vae.set_params(image_shape=image_shape).fit(X)
    means, order = vae.transform(X), rng.permutation(300)
    np.testing.assert_array_equal(vae.transform(X[order]), means[order])
    for size, n in ((1, 20), (7, 70), (256, 300)):
        parts = [vae.transform(X[i : i + size]) for i in range(0, n, size)]
        np.testing.assert_array_equal(np.concatenate(parts), means[:n])


@pytest.mark.slow
def test_convolutions_in_a_search(patches, conv_vae):
    pipeline = make_pipeline(MinMaxScaler(), conv_vae)
    grid = {"certifiedvae__encoder": [None, "conv"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(patches.data[:100])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_[-1]
    is_conv = isinstance(best.net_.module_.encoder[0], nn.Unflatten)
    assert is_conv == (best.encoder == "conv")


@pytest.mark.slow
def test_convolutions_are_pickled_and_go_on(patches, conv_vae):
    X = patches.data[:200]
    vae = conv_vae.set_params(warm_start=True).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    again.set_params(image_shape=list(vae.image_shape))
    for model in (vae, again):
        assert len(model.fit(X).history_) == 2
    np.testing.assert_array_equal(vae.transform(X), again.transform(X))
    with pytest.raises(ValueError, match=r"^image_shape must stay .* got \(3, 4, 16\)"):
        vae.set_params(image_shape=(3, 4, 16)).fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_shape": None}, "image_shape must be .* got None. Set image_shape"),
        (
            {"image_shape": (3, 8, 9)},
            r"192, .* got \(3, 8, 9\), which has 216",
        ),
        ({"image_shape": 8}, "'image_shape' parameter.*Got 8"),
        ({"encoder": "cnn"}, "'encoder' parameter .* {'conv'}.*Got 'cnn'"),
        ({"decoder": "mlp"}, "'decoder' parameter .* {'conv'}.*Got 'mlp'"),
    ],
)
def test_bad_images(patches, conv_vae, params, message):
    with pytest.raises(ValueError, match=message):
        conv_vae.set_params(**params).fit(patches.data)
