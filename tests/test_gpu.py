"""Tests that also run on a GPU; without one, use `pytest ... --device cpu`."""

import copy
import gc
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.persistence import save
from skvaecert.wrappers import TrainedEncoder

pytestmark = pytest.mark.gpu

K, LATENT_DIM, IMAGE = 4, 4, (1, 8, 8)
# Largest difference of means between float32 sums in different orders, in standard
# deviations: a GPU adds up gradients of convolutions in any order.
SAME = 0.01
# Rounding that certificates assume of means, in units of epsilon at max(1, |mu|).
MOST_UNITS = 32


@pytest.fixture
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return name


@pytest.fixture(scope="module")
def X():
    """Four clusters of samples in [0, 1], of 64 features or 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(0.2, 0.8, size=(K, 64))
    X = centers[rng.integers(K, size=1024)] + 0.05 * rng.normal(size=(1024, 64))
    return X.clip(0, 1).astype(np.float32)


def vae_on(device, **params):
    teacher = GMMTeacher(K, covariance_type="spherical", random_state=0)
    settings = {
        "latent_dim": LATENT_DIM,
        "hidden_sizes": (64,),
        "batch_size": 128,
        "max_epochs": 4,
        "learning_rate": 3e-3,
        "random_state": 0,
    }
    return CertifiedVAE(teacher, device=device, **settings | params)


CONV = {"encoder": "conv", "decoder": "conv", "image_shape": IMAGE}
NETS = {
    "narrow": {},
    "wide": {"hidden_sizes": (1024, 1024)},
    "convolutions": CONV,
}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


def apart(means, others):
    """Return the largest difference of means, in standard deviations."""
    largest = float((abs(means - others) / others.std(axis=0)).max())
    print(f"means differ by at most {largest:.2g} standard deviations")
    return largest


# A fit


def devices_of(vae):
    return {tensor.device.type for tensor in vae.net_.module_.state_dict().values()}


def test_a_fit_ends_on_its_device(device, X, net):
    vae = vae_on(device, **net).fit(X)
    assert devices_of(vae) == {device}
    history = np.array([list(row.values()) for row in vae.history_])
    assert len(history) == 4
    assert np.isfinite(history).all()
    losses = [row["loss"] for row in vae.history_]
    assert losses == sorted(losses, reverse=True)


def test_a_part_on_another_device_is_seen(device, X):
    """The twin of the test above."""
    vae = vae_on(device, max_epochs=1).fit(X)
    vae.net_.module_.decoder.to("meta")
    assert devices_of(vae) == {device, "meta"}


def test_equal_seeds_equal_means(device, X, net):
    first, second = (vae_on(device, **net).fit(X).transform(X) for _ in range(2))
    assert apart(first, second) < SAME


def test_other_seeds_other_means(device, X, net):
    """The twin of the test above."""
    first, second = (
        vae_on(device, **net, random_state=seed).fit(X).transform(X) for seed in (0, 1)
    )
    assert apart(first, second) > 10 * SAME


def test_the_users_generator_is_left_alone(device, X):
    generator = torch.random if device == "cpu" else torch.cuda
    generator.manual_seed(5)
    before = generator.get_rng_state()
    vae_on(device, max_epochs=1).fit(X).score(X)
    assert torch.equal(generator.get_rng_state(), before)
    torch.randn(1, device=device)
    assert not torch.equal(generator.get_rng_state(), before)


# How exact means are


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request):
    """The precision of matrix products that a user has set."""
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


def units_off(means, vae, X):
    """Return how far means are from those in float64 on the CPU, in units."""
    encoder = copy.deepcopy(vae.net_.module_.encoder).cpu().double()
    with torch.no_grad():
        exact = encoder(torch.from_numpy(X).double())[:, :LATENT_DIM].numpy()
    unit = np.finfo(np.float32).eps * np.maximum(1, abs(exact))
    largest = float((abs(means - exact) / unit).max())
    print(f"means are off by at most {largest:.1f} units")
    return largest


def test_means_are_as_exact_as_certificates_assume(device, X, net, precision):
    vae = vae_on(device, likelihood="bernoulli", **net).fit(X)
    assert units_off(vae.transform(X), vae, X) < MOST_UNITS
    model = TrainedEncoder(vae.net_.module_.encode)
    assert units_off(model.transform(X), vae, X) < MOST_UNITS


def in_tf32(encoder, X, device):
    """Encode with TF32, which has 10 bits; on the CPU with weights of 10 bits."""
    encoder = copy.deepcopy(encoder)
    if device == "cpu":
        with torch.no_grad():
            for weight in encoder.parameters():
                mantissa, exponent = torch.frexp(weight)
                rounded = (mantissa * 2**11).round() / 2**11
                weight.copy_(torch.ldexp(rounded, exponent))
    torch.set_float32_matmul_precision("high")
    try:
        with torch.no_grad():
            output = encoder(torch.from_numpy(X).to(device))
    finally:
        torch.set_float32_matmul_precision("highest")
    return output[:, :LATENT_DIM].cpu().numpy()


@pytest.mark.parametrize("net", [NETS["wide"], CONV], ids=["wide", "convolutions"])
def test_tf32_is_not_as_exact(device, X, net):
    """The twin of the test above."""
    vae = vae_on(device, likelihood="bernoulli", **net).fit(X)
    means = in_tf32(vae.net_.module_.encoder, X, device)
    assert units_off(means, vae, X) > MOST_UNITS


def test_a_mean_is_the_same_in_any_batch(device, X, net):
    vae = vae_on(device, max_epochs=1, **net).fit(X)
    means = vae.transform(X)
    np.testing.assert_array_equal(vae.transform(X[700:701]), means[700:701])
    np.testing.assert_array_equal(vae.transform(X[::-1])[::-1], means)


class Centered(nn.Module):
    """An encoder whose means depend on the other samples of the batch."""

    def forward(self, x):
        return x - x.mean(dim=0)


def test_a_mean_that_depends_on_the_batch_is_detected(device, X):
    """The twin of the test above."""
    means = TrainedEncoder(Centered().to(device)).transform(X)
    assert (
        TrainedEncoder(Centered().to(device)).transform(X[::-1])[::-1] != means
    ).any()


# Certificates


def test_a_constant_encoder_is_not_certified(device, X, net, precision):
    certifier = CollapseCertifier(vae_on(device, max_epochs=10, **net)).fit(X)
    assert certifier.certify(X).verdict == "certified"  # the twin
    *_, head = certifier.estimator_.net_.module_.encoder.modules()
    with torch.no_grad():
        head.weight[:LATENT_DIM] = 0
    assert certifier.certify(X).verdict == "constant"


class Canceling(nn.Module):
    """Computes W x and W x / 3, and adds the one to minus `share` times the other."""

    def __init__(self, n_features, share):
        super().__init__()
        self.twice = nn.Linear(n_features, 2 * n_features, bias=False)
        self.together = nn.Linear(2 * n_features, LATENT_DIM, bias=False)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(n_features, n_features, generator=generator) / 4
        mixed = torch.randn(LATENT_DIM, n_features, generator=generator) / 4
        with torch.no_grad():
            self.twice.weight.copy_(torch.cat([weight, weight / 3]))
            self.together.weight.copy_(torch.cat([mixed, -share * mixed], dim=1))

    def forward(self, x):
        return self.together(self.twice(x))


@pytest.mark.parametrize(
    ("share", "says"),
    [(3.0, {"constant", "inconclusive"}), (2.99, {"certified"})],  # the second: a twin
)
def test_an_encoder_that_is_constant_but_for_rounding(
    device, X, precision, share, says
):
    model = FrozenEstimator(TrainedEncoder(Canceling(64, share).to(device)))
    teacher = GMMTeacher(K, covariance_type="spherical", random_state=0)
    certifier = CollapseCertifier(model, teacher=teacher, witness="linear")
    assert certifier.fit(X[:512]).certify(X[512:]).verdict in says


# Files, ends of fits, rescue

_LOAD = """
import sys
import numpy as np
from skvaecert.persistence import load

vae = load(sys.argv[1])
assert vae.net_.device == "cpu", vae.net_.device
np.save(sys.argv[3], vae.transform(np.load(sys.argv[2])))
"""


def test_a_file_from_a_gpu_is_read_without_one(device, X, tmp_path):
    pytest.importorskip("safetensors")
    vae = vae_on(device, likelihood="bernoulli").fit(X)
    save(vae, tmp_path / "vae.safetensors")
    np.save(tmp_path / "X.npy", X)
    files = [tmp_path / name for name in ("vae.safetensors", "X.npy", "means.npy")]
    without = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", _LOAD, *files], env=without, check=True)
    loaded = np.load(files[-1])
    assert units_off(loaded, vae, X) < MOST_UNITS
    # The twin: a model that has learned a little more.
    vae.set_params(warm_start=True, max_epochs=1).fit(X)
    assert units_off(loaded, vae, X) > MOST_UNITS


class InTheMiddle(Callback):
    """Does something in the middle of an epoch."""

    def __init__(self, epoch, action):
        self.epoch = epoch
        self.action = action

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 2:
            self.action(net)


def press_ctrl_c(net):
    signal.raise_signal(signal.SIGINT)


def spoil(net):
    with torch.no_grad():
        next(net.module_.parameters()).fill_(torch.nan)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (press_ctrl_c, KeyboardInterrupt),
        (spoil, NonFiniteLossError),
    ],
    ids=["Ctrl-C", "NaN"],
)
def test_the_last_complete_epoch_is_kept(device, X, action, error):
    two, three = (vae_on(device, max_epochs=n).fit(X).transform(X) for n in (2, 3))
    vae = vae_on(device, callbacks=[InTheMiddle(3, action)])
    with pytest.raises(error):
        vae.fit(X)
    assert vae.n_iter_ == len(vae.history_) == 2
    assert devices_of(vae) == {device}
    assert apart(vae.transform(X), two) < SAME
    assert apart(vae.transform(X), three) > 5 * SAME  # the twin


@pytest.mark.parametrize("alignment_weight", [0.0, 10.0])
def test_a_collapsed_encoder_is_rescued(device, X, alignment_weight):
    """The twin, with a weight of 0, stays collapsed."""
    vae = vae_on(device, alignment_weight=0.0, kl_weight=100.0, max_epochs=20)
    certifier = CollapseCertifier(vae, warm_start=True, safety_margin=0.1).fit(X)
    assert certifier.certificate_.verdict != "certified"
    vae.set_params(warm_start=True, alignment_weight=alignment_weight)
    vae.set_params(kl_weight=1.0 if alignment_weight else 100.0)
    verdict = certifier.fit(X).certify(X).verdict
    assert (verdict == "certified") == (alignment_weight > 0)
    assert devices_of(certifier.estimator_) == {device}


# Waiting and memory


class _Readings(TorchDispatchMode):
    """Refuses to read values of tensors, for which Python would wait on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero
        if func.overloadpacket in waiting:
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def waiting_is_an_error(device):
    if device == "cpu":
        with _Readings():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WithoutWaiting(Callback):
    """Forbids waiting from the first batch of an epoch to the last."""

    def __init__(self, device, n_batches, stack):
        self.device, self.n_batches, self.stack = device, n_batches, stack

    def __deepcopy__(self, memo):
        return self

    def on_batch_begin(self, net, **kwargs):
        # The first epoch loads libraries.
        if len(net.history) > 1 and len(net.history[-1]["batches"]) == 1:
            self.stack.enter_context(waiting_is_an_error(self.device))

    def on_batch_end(self, net, **kwargs):
        if len(net.history[-1]["batches"]) == self.n_batches:
            self.stack.close()


class ReadsTheLoss(Callback):
    def on_batch_end(self, net, loss, **kwargs):
        if len(net.history) > 1:
            float(loss)


def tanh_encoder(n_features, latent_dim):
    """An encoder whose gradient is autograd's on every device."""
    layers = nn.Linear(n_features, 32), nn.Tanh(), nn.Linear(32, 2 * latent_dim)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("alignment_weight", [10.0, "auto"])
def test_no_batch_waits_for_the_device(device, X, alignment_weight):
    params = {"encoder": tanh_encoder, "alignment_weight": alignment_weight}
    vae = vae_on(device, max_epochs=30, **params)
    with ExitStack() as stack:
        vae.set_params(callbacks=[WithoutWaiting(device, 8, stack)])
        vae.fit(X)
    weights = [row["alignment_weight"] for row in vae.history_]
    assert (len(set(weights)) > 1) == (alignment_weight == "auto")


def test_a_batch_that_waits_is_seen(device, X):
    """The twin of the test above."""
    with ExitStack() as stack:
        callbacks = [ReadsTheLoss(), WithoutWaiting(device, 8, stack)]
        vae = vae_on(device, encoder=tanh_encoder, callbacks=callbacks)
        with pytest.raises(RuntimeError, match="synchronizing"):
            vae.fit(X)


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.n_bytes = max(self.n_bytes, result.nbytes)
        return result


def peak(device, action):
    """Return bytes on the GPU, or those of the largest tensor on the CPU."""
    if device == "cpu":
        with _Largest() as largest:
            action()
        return largest.n_bytes
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before


def fit_of(n, device, path):
    """Return a function that fits n samples of 64 features, from a file or not."""
    X = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
    if path is not None:
        np.save(path, X)
        X = np.load(path, mmap_mode="r")
    proba = 0.9 * np.eye(K)[np.arange(n) % K] + 0.1 / K
    vae = vae_on(device, max_epochs=1, batch_size=1024)
    return lambda: vae.fit(X, teacher_proba=proba)


@pytest.mark.parametrize("streamed", [True, False])
def test_memory_of_a_streamed_fit(device, tmp_path, streamed):
    """It grows by posteriors only; if samples are resident, the twin, by them too."""
    path = tmp_path / "X.npy" if streamed else None
    few, many = 40_000, 120_000
    fit_of(2000, device, path)()  # libraries take memory once
    least, most = (peak(device, fit_of(n, device, path)) for n in (few, many))
    growth = (most - least) / (many - few)
    print(f"{growth:.1f} bytes more for each sample more")
    of_posteriors, of_samples = 4 * K, 4 * 64
    assert growth < 1.2 * of_posteriors if streamed else growth > 0.9 * of_samples
