"""The mean of a sample is the same in any batch, at any position, on any threads."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from threadpoolctl import threadpool_limits
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier
from skvaecert._rounding import RoundingSums
from skvaecert._training.device import seeded
from skvaecert._training.inference import decode, encode, evidence_bound, posterior
from skvaecert._training.net import make_net
from skvaecert.exceptions import NotSavedWarning
from skvaecert.networks import make_vae
from skvaecert.persistence import load, save
from skvaecert.simplex import simplex_vertices, witness_log_proba

CPU = torch.device("cpu")
N, D, LATENT, K = 300, 6, 3, 4


class MinusBatchMean(nn.Linear):
    """Uses the whole batch."""

    def forward(self, x):
        output = super().forward(x)
        return output - output.mean(dim=0)


def net_for(n_features, hidden=(16,), encoder=None):
    with seeded(0, CPU):
        return make_net(
            make_vae(n_features, LATENT, hidden, encoder),
            device=CPU,
            vertices=simplex_vertices(K, LATENT),
            criterion__likelihood="gaussian",
            criterion__scale=1.5,
            criterion__kl_weight=1.0,
            criterion__alignment_weight=5.0,
        )


def samples(n_features, n=N):
    return torch.randn(n, n_features, generator=torch.Generator().manual_seed(0))


def company_changes(net, X):
    """Compare bits of all samples together, in another order, apart and alone."""
    together = posterior(net, X)
    order = np.random.default_rng(0).permutation(len(X))
    others = [posterior(net, X[order])[order.argsort()]]
    others += [
        np.concatenate([posterior(net, batch) for batch in X.split(size)])
        for size in (7, 100)
    ]
    same = [np.array_equal(together, other) for other in others]
    alone = [posterior(net, X[[i]])[0] for i in (0, 5, 255, 299)]
    repeated = posterior(net, X[:1].expand(len(X), -1))
    same += [np.array_equal(together[[0, 5, 255, 299]], alone)]
    return not all(same) or bool((repeated != repeated[0]).any())


@pytest.mark.parametrize("n_features", [3, 17, 100])
@pytest.mark.parametrize("hidden", [(), (3, 17), (33, 100), (64, 64)])
def test_batch_and_position_change_no_bit(n_features, hidden):
    assert not company_changes(net_for(n_features, hidden), samples(n_features))


@pytest.mark.slow
def test_batch_and_position_change_no_bit_of_wide_networks():
    assert not company_changes(net_for(1000, (1000, 500)), samples(1000))


@pytest.mark.parametrize("encoder", [MinusBatchMean(D, 2 * LATENT), None])
def test_an_encoder_that_looks_at_the_batch_is_seen(encoder):
    """The twin."""
    is_seen = company_changes(net_for(D, encoder=encoder), samples(D))
    assert is_seen == (encoder is not None)


@pytest.mark.parametrize("n_features", [449, 784])
def test_threads_change_no_bit(n_features):
    """BLAS splits longer sums differently when it has several threads."""
    net, X = net_for(n_features, (500,)), samples(n_features)
    results = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            results.append(posterior(net, X))
    np.testing.assert_array_equal(*results)


def test_decode_and_bound_have_one_result_a_sample():
    net = net_for(D)
    assert decode(net, torch.zeros(5, LATENT)).shape == (5, D)
    assert evidence_bound(net, samples(D)).shape == (N,)


def test_a_single_feature_is_decoded_for_each_sample():
    """A column is contiguous in both orders: no copy of it would be made by chance."""
    net, codes = net_for(1), torch.randn(N, LATENT)
    with torch.no_grad():
        expected = net.module_.decoder(codes).numpy()
    np.testing.assert_allclose(decode(net, codes), expected, rtol=1e-4, atol=1e-5)


class AtEnd(Callback):
    """Keeps the means of the monitored samples at the end of the last epoch."""

    def on_epoch_end(self, net, **kwargs):
        self.means_ = encode(net, net.monitored)


@pytest.fixture(scope="module", params=["numpy", "autograd"])
def fitted(request):
    rng = np.random.default_rng(0)
    X = rng.normal(2, 3, size=(200, D))
    X[:100, 0] += 20
    own = None if request.param == "numpy" else nn.Linear(D, 2 * LATENT)
    vae = CertifiedVAE(
        latent_dim=LATENT,
        hidden_sizes=(16,),
        encoder=own,
        callbacks=[("means", AtEnd())],
        max_epochs=2,
        device="cpu",
        random_state=0,
    )
    teacher_proba = np.eye(2)[(np.arange(200) >= 100).astype(int)] * 0.9 + 0.05
    vae.fit(X, teacher_proba=teacher_proba)
    assert vae.net_.step_ == request.param
    return vae, X, teacher_proba


def test_the_mean_is_the_same_value_everywhere(fitted, tmp_path):
    vae, X, _ = fitted
    means = vae.transform(X)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    in_fit = dict(vae.net_.callbacks_)["means"].means_
    # The sums of torch depend on where a sample lies in memory.
    slack = 0 if vae.net_.step_ == "numpy" else 1e-6
    np.testing.assert_allclose(means[order.numpy()], in_fit, rtol=0, atol=slack)
    np.testing.assert_array_equal(means, vae.encode(X)[0])
    log_q = witness_log_proba(means, vae.vertices_, vae.witness_scale_)
    np.testing.assert_array_equal(log_q, vae.witness_log_proba(X))
    again = [copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))]
    if vae.encoder is None:
        with pytest.warns(NotSavedWarning, match="callbacks"):
            save(vae, tmp_path / "vae.skvaecert")
        again.append(load(tmp_path / "vae.skvaecert"))
    for other in again:
        np.testing.assert_array_equal(means, other.transform(X))


def test_bytes_have_one_mean_in_fit_and_after():
    X = np.random.default_rng(0).integers(0, 256, size=(100, D), dtype=np.uint8)
    proba = np.eye(2)[X[:, 0] // 128] * 0.9 + 0.05
    vae = CertifiedVAE(
        latent_dim=LATENT,
        callbacks=[("means", AtEnd())],
        likelihood="bernoulli",
        max_epochs=1,
        device="cpu",
        random_state=0,
    )
    in_fit = dict(vae.fit(X, teacher_proba=proba).net_.callbacks_)["means"].means_
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(vae.transform(X)[order.numpy()], in_fit)


def test_certificates_see_no_mean_move(fitted):
    """Their noise is the assumed rounding, and no observed change."""
    vae, X, proba = fitted
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(X, teacher_proba=proba)
    noise = RoundingSums()
    noise.add(vae.transform(X), np.ones(len(X)))
    found = certifier.certify(X, teacher_proba=proba).latent_noise
    assert found == pytest.approx(noise.rounding_noise)


def test_threads_of_the_user_share_nothing(fitted):
    vae, X, _ = fitted
    parts = [X[i::4] for i in range(4)] * 8
    expected = [vae.transform(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(vae.transform, parts))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_changes_of_a_fitted_module_count():
    net, X = net_for(D), samples(D)
    before = encode(net, X)
    seen = []
    for module in (net.module_.encoder, net.module_.encoder[0]):
        hook = module.register_forward_hook(lambda *args: seen.append(args[0]))
        np.testing.assert_allclose(encode(net, X), before, atol=1e-5)
        hook.remove()
    assert {type(module) for module in seen} == {nn.Sequential, nn.Linear}
    hook = net.module_.register_forward_hook(lambda *args: seen.clear())
    evidence_bound(net, X)
    hook.remove()
    assert not seen
    with torch.no_grad():
        net.module_.encoder[-1].bias[:LATENT] += 1
    np.testing.assert_allclose(encode(net, X), before + 1, atol=1e-5)
    net.module_.encoder = nn.Linear(D, 2 * LATENT)
    with torch.no_grad():
        expected = net.module_.encoder(X)[:, :LATENT]
    np.testing.assert_allclose(encode(net, X), expected, atol=1e-6)


def test_what_is_not_finite_is_returned_without_a_warning():
    net, X = net_for(D), samples(D)
    with torch.no_grad():
        net.module_.encoder[0].weight[0] = torch.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(encode(net, X)).any()
        assert np.isfinite(encode(net_for(D), 1e15 * X.sign())).all()


def test_weights_of_another_type_are_an_error():
    net = net_for(D)
    net.module_.double()
    with pytest.raises(RuntimeError, match="dtype"):
        encode(net, samples(D))


def deep(hidden, gain):
    net = net_for(hidden[0], hidden)
    with torch.no_grad():
        for parameter in net.module_.parameters():
            parameter *= gain
    return net


def errors(net, X, dtype=torch.float32):
    """Root mean square error of the means, and what certificates assume of it."""
    encoder = net.module_.encoder
    rounded = copy.deepcopy(encoder).to(dtype).to(torch.float32)
    exact = copy.deepcopy(encoder).double()
    with torch.no_grad():
        truth = exact(X.double())[:, :LATENT].numpy()
        by_torch = rounded(X)[:, :LATENT].numpy()
    sums = RoundingSums()
    sums.add(truth, np.ones(len(truth)))
    found = by_torch if dtype != torch.float32 else encode(net, X)
    noises = [
        np.sqrt(np.square(means - truth).sum(axis=1).mean())
        for means in (found, by_torch)
    ]
    return max(noises), sums.rounding_noise


CASES = [
    ((1024, 1024), 1.0),
    ((128, 128), 10.0),  # large sums before each SiLU
    ((256,) * 6, 3.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "gain"), CASES)
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_encoders_are_as_precise_as_certificates_assume(hidden, gain, size):
    net, X = deep(hidden, gain), size * samples(hidden[0])
    error, assumed = errors(net, X)
    assert error <= assumed
    # The twin: weights in 16 bits are not.
    error, assumed = errors(net, X, torch.float16)
    assert error > assumed
