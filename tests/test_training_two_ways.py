"""Whole fits by NumPy and by autograd, and what callbacks may do amid them."""

import copy
import pickle
import signal
from contextlib import contextmanager, suppress
from threading import Thread

import numpy as np
import pytest
import torch
from skorch.callbacks import (
    Callback,
    Checkpoint,
    Freezer,
    GradientNormClipping,
    LoadInitState,
    LRScheduler,
)
from torch.nn.modules.module import register_module_forward_hook

from skvaecert import CertifiedVAE
from skvaecert._training import net as net_module
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.device import seeded
from skvaecert._training.inference import encode
from skvaecert._training.loop import train
from skvaecert._training.net import VAENet, make_net
from skvaecert._training.optimizer import OneVector
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.networks import make_vae
from skvaecert.objectives import LagrangeWeight
from skvaecert.simplex import simplex_vertices

CPU = torch.device("cpu")
# The last batches of 64 are smaller ones.
N, D, LATENT, K = 300, 6, 3, 4

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def dataset():
    samples = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    return TrainingSet(Resident(samples), torch.softmax(2 * samples[:, :K], dim=1))


@contextmanager
def way(name):
    with pytest.MonkeyPatch.context() as patch:
        if name == "autograd":
            patch.setattr(net_module, "has_known_gradient", lambda *_: False)
        yield


def make(callbacks=(), max_epochs=4, likelihood="gaussian", **settings):
    with seeded(0, CPU):
        return make_net(
            make_vae(D, LATENT, (16,)),
            device=CPU,
            callbacks=list(callbacks),
            vertices=simplex_vertices(K, LATENT),
            criterion__likelihood=likelihood,
            criterion__scale=1.5,
            criterion__kl_weight=1.0,
            lr=1e-2,
            batch_size=64,
            max_epochs=max_epochs,
            **{"criterion__alignment_weight": 5.0} | settings,
        )


def fitted(dataset, *args, **kwargs):
    net = make(*args, **kwargs)
    with seeded(0, CPU):
        train(net, dataset)
    return net


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


def assert_same_fit(net, other, atol=1e-5):
    torch.testing.assert_close(weights(net), weights(other), rtol=0, atol=atol)
    for name in ("train_loss", "reconstruction", "kl", "margin"):
        values = [[row[name] for row in n.history] for n in (net, other)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


class Annealed(Callback):
    def on_epoch_begin(self, net, **kwargs):
        net.criterion_.kl_weight = min(1.0, len(net.history) / 10)


def guard():
    return LagrangeWeight(0.7, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        dict,
        lambda: {"callbacks": [Annealed()]},
        lambda: {"criterion__alignment_weight": guard()},
        lambda: {"criterion__alignment_weight": 0.0},
    ],
    ids=["fixed", "annealed", "guarded", "not aligned"],
)
def test_whole_fits_agree(dataset, settings):
    """Trajectories in single precision part: by this much in 100 steps."""
    net = fitted(dataset, max_epochs=20, **settings())
    assert net.step_ == "numpy"
    with way("autograd"):
        other = fitted(dataset, max_epochs=20, **settings())
    assert other.step_ == "autograd"
    assert_same_fit(net, other, atol=1e-4)
    assert not torch.allclose(weights(net), weights(make()), atol=0.1)


class On(Callback):
    """Does something to a net at every event of a kind in the third epoch."""

    def __init__(self, event, action):
        self.event, self.action = event, action

    def _hear(self, event, net):
        if event == self.event and len(net.history) == 3:
            self.action(net)

    def on_epoch_begin(self, net, **kwargs):
        self._hear("epoch begins", net)

    def on_epoch_end(self, net, **kwargs):
        self._hear("epoch ends", net)


class OnBatch(On):
    def on_batch_begin(self, net, **kwargs):
        self._hear("batch begins", net)

    def on_grad_computed(self, net, **kwargs):
        self._hear("gradient", net)

    def on_batch_end(self, net, **kwargs):
        self._hear("batch ends", net)


def values(net):
    for parameter in net.module_.parameters():
        parameter.data = 0.9 * parameter.data


def gradients(net):
    for parameter in net.module_.parameters():
        parameter.grad = None if parameter.grad is None else 0.1 * parameter.grad


def no_gradient(net):
    net.module_.encoder.zero_grad()


def no_gradients(net):
    net.optimizer_.zero_grad()


def clipped(net):
    torch.nn.utils.clip_grad_norm_(net.optimizer_.param_groups[0]["params"], 0.1)


def copied(net):
    copy.deepcopy(net)


def pickled(net):
    for part in (net, net.module_, net.optimizer_):
        pickle.dumps(part)


def shared(net):
    net.module_.share_memory()


def loaded(net):
    state = {k: 0.5 * v for k, v in net.module_.state_dict().items()}
    net.module_.load_state_dict(state)
    net.optimizer_.load_state_dict(copy.deepcopy(net.optimizer_.state_dict()))


def forgotten(net):
    net.optimizer_.state.clear()


def slower(net):
    net.optimizer_.param_groups[0]["lr"] = 1e-4


def another_optimizer(net):
    net.set_params(optimizer__weight_decay=0.1)


def weighted(net):
    net.criterion_.kl_weight = torch.tensor(0.3)
    net.criterion_.alignment_weight, net.criterion_.scale = 1.0, 0.7


def frozen(net):
    net.module_.encoder.requires_grad_(False)


def hooked(net):
    net.module_.encoder[0].register_forward_hook(lambda *args: 0.5 * args[-1])


ACTIONS = [
    values,
    gradients,
    no_gradient,
    no_gradients,
    clipped,
    copied,
    pickled,
    shared,
    loaded,
    forgotten,
    slower,
    another_optimizer,
    weighted,
    frozen,
    hooked,
]
NO_CHANGE = {"copied", "pickled", "shared"}
EVENTS = ["epoch begins", "epoch ends", "batch begins", "gradient", "batch ends"]


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_what_callbacks_do_amid_a_fit_is_heeded(dataset, action):
    plain = fitted(dataset)
    changed = []
    for event in EVENTS:
        kind = On if event.startswith("epoch") else OnBatch
        net = fitted(dataset, [kind(event, action)])
        with way("autograd"):
            other = fitted(dataset, [kind(event, action)])
        assert_same_fit(net, other)
        changed.append(not torch.allclose(weights(net), weights(plain), atol=1e-4))
    assert any(changed) == (action.__name__ not in NO_CHANGE)
    assert net.step_ == ("autograd" if action in (frozen, hooked) else "numpy")


class Listener(Callback):
    def __init__(self):
        self.names, self.results, self.losses = [], [], []

    def on_grad_computed(self, net, named_parameters, batch, **kwargs):
        self.names.append([name for name, _ in named_parameters])

    def on_batch_end(self, net, batch, loss, y_pred, **kwargs):
        self.results.append(y_pred)
        self.losses.append(float(loss))


def test_listeners_hear_all_and_keep_it(dataset):
    heard = []
    for name in ("numpy", "autograd"):
        callbacks = [("first", Listener()), ("second", Listener())]
        with way(name):
            net = fitted(dataset, callbacks, max_epochs=1)
        first, second = (dict(net.callbacks_)[name] for name, _ in callbacks)
        names = [name for name, _ in net.module_.named_parameters()]
        assert first.names == second.names == [names] * 5
        batches = net.history[-1]["batches"]
        assert [type(row["train_loss"]) for row in batches] == [float] * 5
        assert first.losses == [row["train_loss"] for row in batches]
        heard.append(first.results)
    for result, other in zip(*heard, strict=True):
        assert all(value.dtype == torch.float32 for value in result)
        for a, b in zip(result, other, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)
    # Copies: nothing that comes later is written into them.
    assert not torch.equal(heard[0][0].code, heard[0][1].code)


def test_who_does_not_listen_costs_no_call(dataset, monkeypatch):
    called = []
    monkeypatch.setattr(Callback, "on_batch_end", lambda *_, **__: called.append(1))
    fitted(dataset, [Annealed()], max_epochs=1)
    assert not called
    fitted(dataset, [Annealed(), GradientNormClipping(1.0)], max_epochs=1)
    assert called


def test_callbacks_may_listen_by_an_attribute(dataset):
    callback, called = Callback(), []
    callback.on_batch_end = lambda *_, **__: called.append(1)
    fitted(dataset, [callback], max_epochs=1)
    assert len(called) == 5


def test_hooks_of_all_modules_are_called(dataset):
    seen = set()
    hook = register_module_forward_hook(lambda module, *_: seen.add(type(module)))
    try:
        net = fitted(dataset, max_epochs=1)
        assert net.step_ == "autograd"
        assert {torch.nn.Linear, torch.nn.SiLU} < seen
        seen.clear()
        encode(net, dataset.samples.values)
        assert {torch.nn.Linear, torch.nn.SiLU} < seen
    finally:
        hook.remove()
    assert fitted(dataset, max_epochs=1).step_ == "numpy"


def test_clipping_of_skorch_clips(dataset):
    net = fitted(dataset, [GradientNormClipping(0.01)])
    with way("autograd"):
        assert_same_fit(net, fitted(dataset, [GradientNormClipping(0.01)]))
    assert not torch.allclose(weights(net), weights(fitted(dataset)), atol=1e-3)


@pytest.mark.parametrize("every", ["batch", "epoch"])
def test_schedules_warn_of_nothing(dataset, every):
    schedule = LRScheduler("StepLR", step_size=2, gamma=0.1, step_every=every)
    net = fitted(dataset, [schedule])
    n_steps = {"batch": 20, "epoch": 4}[every]
    rate = net.optimizer_.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 * 0.1 ** (n_steps // 2))
    assert net.step_ == "numpy"


def test_freezing_from_the_first_epoch(dataset):
    net = fitted(dataset, [Freezer("encoder*")])
    assert net.step_ == "autograd"
    assert torch.equal(net.module_.encoder[0].weight, make().module_.encoder[0].weight)


def everything(net):
    states = net.optimizer_.state.values()
    moments = [value for state in states for value in state.values()]
    return [*net.module_.parameters(), *moments]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_both_ways_leave_the_same_things(dataset, likelihood):
    dataset.samples.values.sigmoid_()
    net = fitted(dataset, likelihood=likelihood)
    with way("autograd"):
        other = fitted(dataset, likelihood=likelihood)
    found, expected = everything(net), everything(other)
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert {t.dtype for t in found} == {torch.float32}
    sizes = [t.untyped_storage().nbytes() for t in found]
    assert sizes == [4 * t.numel() for t in found]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for part in ("module_", "optimizer_"):
        sizes = [len(pickle.dumps(getattr(n, part))) for n in (net, other)]
        assert sizes[0] == sizes[1]
    assert vars(net).keys() == vars(other).keys()


TAKEN = []


def taken(net):
    TAKEN.append(pickle.dumps(net))


@pytest.mark.parametrize("event", ["gradient", "batch ends", "epoch ends"])
def test_nets_copied_amid_a_fit_go_on(dataset, event):
    TAKEN.clear()
    kind = On if event == "epoch ends" else OnBatch
    net = fitted(dataset, [("taking", kind(event, taken))])
    assert torch.equal(weights(net), weights(fitted(dataset)))
    twin = pickle.loads(TAKEN[0])
    before = weights(twin)
    del twin.history[2:]  # the epoch that was not complete
    with seeded(0, CPU):
        train(twin, dataset)
    assert twin.step_ == "numpy"
    assert not torch.allclose(weights(twin), before, atol=1e-3)
    sizes = [t.untyped_storage().nbytes() for t in everything(pickle.loads(TAKEN[0]))]
    assert sizes == [4 * t.numel() for t in everything(net)]


def test_copies_by_another_thread_disturb_no_step(dataset):
    """A thread that copies the net during a step gets one that can train further."""
    twins, threads = [], []

    def ask(net):
        def copy_amid_step(*_):
            hook.remove()
            threads.append(Thread(target=lambda: twins.append(copy.deepcopy(net))))
            threads[0].start()
            threads[0].join(0.05)

        hook = net.optimizer_.register_step_pre_hook(copy_amid_step)

    def wait(net):
        # A copy is of a complete step, not of a fit that ends meanwhile.
        threads[0].join()

    net = fitted(dataset, [On("epoch begins", ask), On("epoch ends", wait)])
    assert torch.equal(weights(net), weights(fitted(dataset)))
    parts = twins[0].optimizer_.param_groups[0]["params"]
    assert list(map(id, parts)) == list(map(id, twins[0].module_.parameters()))


@pytest.mark.parametrize(
    ("first", "second"), [("numpy", "autograd"), ("autograd", "numpy")]
)
def test_files_of_one_way_are_read_by_the_other(dataset, tmp_path, first, second):
    saving = Checkpoint(dirname=tmp_path, monitor=None)
    with way(first):
        net = fitted(dataset, [saving], max_epochs=2)
    other = make([LoadInitState(saving)], max_epochs=2)
    for again, name in ((other, second), (net, first)):
        with way(name), seeded(1, CPU):
            train(again, dataset)
        assert again.step_ == name
    assert_same_fit(net, other)
    assert len(other.history) == 4


def test_warm_starts_keep_moments(dataset):
    net = fitted(dataset)
    with way("autograd"):
        other = fitted(dataset)
    for again, name in ((net, "numpy"), (other, "autograd")):
        with way(name), seeded(1, CPU):
            train(again, dataset)
    assert_same_fit(net, other)
    assert float(next(iter(net.optimizer_.state.values()))["step"]) == 40


def interrupt(net):
    signal.raise_signal(signal.SIGINT)


def fail(net):
    raise RuntimeError("not of ours")


@pytest.mark.parametrize("event", ["gradient", "batch ends", "epoch begins"])
@pytest.mark.parametrize("action", [interrupt, fail])
def test_what_ends_a_fit_leaves_an_ordinary_net(dataset, action, event):
    net = make([OnBatch(event, action)], max_epochs=10)
    with seeded(0, CPU):
        if action is fail:
            with pytest.raises(RuntimeError, match="not of ours"):
                train(net, dataset)
            assert not net.optimizer_.state
        else:
            train(net, dataset)
            assert net.interrupted_
    assert len(net.history) == 2
    assert torch.equal(weights(net), weights(fitted(dataset, max_epochs=2)))
    parts = net.optimizer_.param_groups[0]["params"]
    assert list(map(id, parts)) == list(map(id, net.module_.parameters()))
    sizes = [t.untyped_storage().nbytes() for t in everything(net)]
    assert sizes == [4 * t.numel() for t in everything(net)]
    net.callbacks_ = [(n, c) for n, c in net.callbacks_ if n != "OnBatch"]
    train(net, dataset)
    assert len(net.history) == 12


@pytest.mark.parametrize("name", ["tie", "release"])
def test_ctrl_c_while_parameters_change_their_memory(dataset, monkeypatch, name):
    method, called = getattr(OneVector, name), []

    def interrupted(vector):
        called.append(1)
        if name == "release" and len(called) == 1:
            raise KeyboardInterrupt
        method(vector)
        if len(called) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(OneVector, name, interrupted)
    net = make()
    with suppress(KeyboardInterrupt):
        train(net, dataset)
    assert called
    sizes = [t.untyped_storage().nbytes() for t in everything(net)]
    assert sizes == [4 * t.numel() for t in everything(net)]
    train(net, dataset)
    assert net.step_ == "numpy"


def test_ctrl_c_at_the_door_of_the_epochs_is_not_lost(dataset, monkeypatch):
    nets = make(), fitted(dataset)
    monkeypatch.setattr(VAENet, "fit_loop", lambda *_, **__: interrupt(None))
    for net in nets:
        with pytest.raises(KeyboardInterrupt):
            train(net, dataset)


def spoiled(value):
    def spoil(net):
        with torch.no_grad():
            net.module_.decoder[0].weight[0, 0] = value

    return spoil


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_spoiled_weights_end_the_fit_without_warnings(dataset, likelihood, value):
    net = make([OnBatch("batch ends", spoiled(value))], 10, likelihood)
    with seeded(0, CPU), pytest.raises(NonFiniteLossError):
        train(net, dataset)
    assert len(net.history) == 2
    assert weights(net).isfinite().all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spoiled_data_end_the_fit_without_warnings(dataset, value):
    dataset.samples.values[7, 3] = value
    with pytest.raises(NonFiniteLossError, match="in epoch 1"):
        fitted(dataset)


@pytest.mark.parametrize("kind", ["memory-mapped", "bytes"])
def test_samples_of_other_kinds_go_the_same_way(blobs, tmp_path, kind):
    if kind == "bytes":
        X = np.clip(20 * blobs + 128, 0, 255).astype(np.uint8)
    else:
        np.save(tmp_path / "x.npy", blobs.astype(np.float32))
        X = np.load(tmp_path / "x.npy", mmap_mode="r")
    proba = np.full((120, 3), 0.1)
    proba[np.arange(120), blobs[:, 0].argsort() % 3] += 0.7
    settings = {"max_epochs": 5, "device": "cpu", "random_state": 0}
    first = CertifiedVAE(**settings).fit(X, teacher_proba=proba)
    with way("autograd"):
        second = CertifiedVAE(**settings).fit(X, teacher_proba=proba)
    assert (first.net_.step_, second.net_.step_) == ("numpy", "autograd")
    np.testing.assert_allclose(first.transform(X), second.transform(X), atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"autocast": True}, {"forward_backend": "eager"}], ids=str
)
def test_settings_of_torch_are_left_to_autograd(dataset, settings):
    net = make(**settings)
    train(net, dataset)
    assert net.step_ == "autograd"
