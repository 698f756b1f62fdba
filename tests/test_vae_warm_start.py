"""Fits that continue, that are interrupted, and that fail."""

import copy
import inspect
import pickle
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch import nn

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.exceptions import NonFiniteLossError


def state(vae, X):
    return vae.transform(X), vae.n_iter_, len(vae.history_), vae.score(X)


def assert_same_state(vae, X, before):
    now = state(vae, X)
    np.testing.assert_array_equal(now[0], before[0])
    assert now[1:] == before[1:]


def test_partial_fit_is_one_epoch(blobs, vae):
    for n in (1, 2, 3):
        vae.partial_fit(blobs[:60] if n < 3 else blobs)
        assert vae.n_iter_ == 1
        assert len(vae.history_) == n
    teacher = vae.teacher_
    assert vae.partial_fit(blobs).teacher_ is teacher


def test_every_epoch_of_a_stream_has_other_batches(blobs, vae):
    firsts = []

    class First(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            if len(net.history[-1]["batches"]) == 1:
                firsts.append(batch[0].clone())

    vae.set_params(callbacks=[First()])
    for _ in range(3):
        vae.partial_fit(blobs)
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])


def test_warm_start_goes_on(blobs, trained):
    vae = trained.set_params(warm_start=True, max_epochs=5)
    teacher, vertices, last = vae.teacher_, vae.vertices_, vae.history_[-1]["loss"]
    vae.set_params(alignment_weight=3, kl_weight=2).fit(blobs)
    assert vae.teacher_ is teacher
    assert vae.vertices_ is vertices
    assert vae.n_iter_ == 5
    assert [row["epoch"] for row in vae.history_] == list(range(1, 36))
    assert vae.history_[-1]["alignment_weight"] == 3
    # From the weights that were there, not from new ones.
    assert vae.history_[30]["reconstruction"] < 0.5 * (last + vae.history_[0]["loss"])


@pytest.mark.slow
def test_without_warm_start_all_is_forgotten(blobs, trained):
    expected = clone(trained).fit(blobs).transform(blobs)
    trained.fit(blobs[:50]).fit(blobs)
    np.testing.assert_array_equal(trained.transform(blobs), expected)
    assert len(trained.history_) == 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher__n_components", 3),
        ("encoder", lambda n_features, latent_dim: nn.Linear(6, 8)),
        ("validation_fraction", 0.1),
    ],
)
def test_warm_start_refuses_another_structure(blobs, trained, name, value):
    trained.set_params(warm_start=True, max_epochs=1)
    before, old = state(trained, blobs), trained.get_params()[name]
    trained.set_params(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must stay as it was"):
        trained.fit(blobs)
    assert_same_state(trained, blobs, before)
    assert trained.set_params(**{name: old}).fit(blobs).n_iter_ == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"alignment_weight": 0.0},
        {"alignment_weight": "auto", "target_margin": 0.1},
        {"kl_weight": 3.0},
        {"learning_rate": 1e-4},
        {"batch_size": 7},
        {"prefit": "analytic"},
        {"callbacks": [EarlyStopping("train_loss", sink=len)]},
        {"memory": "cache"},
        {"verbose": 1},
        {"random_state": 5},
        {"hidden_sizes": [32]},
        {"teacher__random_state": 7},
    ],
)
def test_warm_start_takes_what_its_table_says(blobs, trained, changes, tmp_path):
    if "memory" in changes:
        changes = {"memory": str(tmp_path)}
    trained.set_params(warm_start=True, max_epochs=1, **changes).fit(blobs)
    assert len(trained.history_) == 31


def test_the_table_of_warm_starts_is_complete():
    table = CertifiedVAE.__doc__.partition("may change")[2].partition("callbacks :")[0]
    for name in inspect.signature(CertifiedVAE).parameters:
        assert name == "warm_start" or name in table, name


def test_warm_start_after_unpickling_knows_a_frozen_teacher(blobs, vae):
    teacher = FrozenEstimator(GMMTeacher(4, random_state=0).fit(blobs))
    vae.set_params(teacher=teacher, warm_start=True, max_epochs=2)
    again = pickle.loads(pickle.dumps(vae.fit(blobs)))
    assert len(again.fit(blobs).history_) == 4


def test_a_schedule_can_join_at_a_warm_start(blobs, trained):
    schedule = LRScheduler(policy="StepLR", step_size=1)
    trained.set_params(callbacks=[schedule], warm_start=True, max_epochs=4)
    trained.fit(blobs)
    assert trained.net_.optimizer_.param_groups[0]["lr"] < 1e-4


def test_warm_start_keeps_its_teacher(blobs, trained):
    proba = np.full((120, 4), 0.25)
    with pytest.raises(ValueError, match="teacher_proba must be left out"):
        trained.set_params(warm_start=True).fit(blobs, teacher_proba=proba)


class Interrupt(Callback):
    """Sends Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted(vae, n_epochs):
    with pytest.raises(KeyboardInterrupt, match=f"that of {n_epochs}") as error:
        yield
    # A subclass would give scripts another exit status.
    assert error.type is KeyboardInterrupt
    assert error.value.estimator is vae


def test_interrupt_keeps_the_epochs_done(blobs, vae):
    with interrupted(vae, "3 completed epochs out of 5"):
        vae.set_params(callbacks=[Interrupt(4)]).fit(blobs)
    assert vae.n_iter_ == len(vae.history_) == 3
    assert vae.transform(blobs).shape == (120, 4)
    vae.set_params(callbacks=None, warm_start=True).fit(blobs)
    assert len(vae.history_) == 8


def test_interrupt_before_the_first_epoch_leaves_no_fit(blobs, vae):
    with pytest.raises(KeyboardInterrupt):
        vae.set_params(callbacks=[Interrupt(1)]).fit(blobs)
    assert not hasattr(vae, "net_")
    assert not hasattr(vae, "n_features_in_")


@pytest.mark.parametrize("warm_start", [True, False])
def test_early_interrupt_leaves_the_earlier_fit(blobs, trained, warm_start):
    before = state(trained, blobs)
    epoch = 31 if warm_start else 1
    trained.set_params(callbacks=[Interrupt(epoch)], warm_start=warm_start)
    with pytest.raises(KeyboardInterrupt):
        trained.fit(blobs)
    assert_same_state(trained, blobs, before)


class InterruptedInEvaluation(nn.Module):
    """Sends Ctrl-C in its third forward pass in evaluation mode: the monitor's."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.linear = nn.Linear(n_features, 2 * latent_dim)
        self.left = 3 + 1  # one to look at its shape

    def forward(self, x):
        self.left -= not self.training
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return self.linear(x)


def test_interrupt_of_the_monitor(blobs, vae):
    vae.set_params(encoder=InterruptedInEvaluation)
    with interrupted(vae, 2):
        vae.fit(blobs)
    assert len(vae.history_) == 2


class Raise(Callback):
    """Raises KeyboardInterrupt itself, as a user's signal handler does."""

    def __init__(self, where):
        self.where = where

    def on_epoch_begin(self, net, **kwargs):
        self.stop(net, "on_epoch_begin")

    def on_batch_end(self, net, **kwargs):
        self.stop(net, "on_batch_end")

    def on_train_end(self, net, **kwargs):
        self.stop(net, "on_train_end")

    def stop(self, net, where):
        if where == self.where and len(net.history) in (4, 32):
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["on_epoch_begin", "on_batch_end"])
def test_interrupt_by_code(blobs, vae, where):
    vae.set_params(callbacks=[Raise(where)])
    with interrupted(vae, 3):
        vae.fit(blobs)
    assert len(vae.history_) == 3


class InterruptAtTheEnd(Callback):
    """Sends Ctrl-C when an epoch is complete."""

    def on_epoch_end(self, net, **kwargs):
        signal.raise_signal(signal.SIGINT)


def test_interrupt_of_partial_fit_keeps_a_complete_epoch(blobs, vae):
    vae.set_params(callbacks=[InterruptAtTheEnd()])
    with interrupted(vae, "1 completed epochs out of 1"):
        vae.partial_fit(blobs)
    assert len(vae.history_) == 1


def test_interrupt_of_partial_fit_leaves_the_earlier_fit(blobs, trained):
    before = state(trained, blobs)
    with pytest.raises(KeyboardInterrupt):
        trained.set_params(callbacks=[Interrupt(31)]).partial_fit(blobs)
    assert_same_state(trained, blobs, before)


def test_interrupt_after_training_keeps_the_epochs(blobs, trained):
    trained.set_params(warm_start=True, max_epochs=2)
    other = copy.deepcopy(trained).fit(blobs)
    trained.set_params(callbacks=[Raise("on_train_end")])
    with interrupted(trained, "2 completed epochs out of 2"):
        trained.fit(blobs)
    assert_same_state(trained, blobs, state(other, blobs))


def test_early_stopping_by_callback(blobs, vae):
    stop = EarlyStopping("train_loss", patience=2, lower_is_better=False, sink=len)
    vae.set_params(callbacks=[("stop", stop)]).fit(blobs)
    assert 1 < vae.n_iter_ < 5


class Overflow(nn.Module):
    """An encoder that breaks down at its n-th training batch."""

    def __init__(self, n_features, latent_dim, batches=10):
        super().__init__()
        self.linear = nn.Linear(n_features, 2 * latent_dim)
        self.left = batches

    def forward(self, x):
        self.left -= self.training
        broken = self.training and self.left < 0
        return self.linear(x) * (torch.inf if broken else 1)


def test_breakdown_keeps_the_finite_epochs(blobs, vae):
    vae.set_params(encoder=Overflow)
    with pytest.raises(
        NonFiniteLossError, match=r"loss became .* epoch 3.*StandardScaler"
    ):
        vae.fit(blobs)
    assert vae.n_iter_ == len(vae.history_) == 2
    assert np.isfinite(vae.score(blobs))


def test_breakdown_in_the_first_epoch_leaves_no_fit(blobs, vae):
    vae.set_params(encoder=lambda n, d: Overflow(n, d, batches=1))
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert not hasattr(vae, "net_")


def test_breakdown_leaves_the_earlier_fit(blobs, vae):
    vae.set_params(encoder=lambda n, d: Overflow(n, d, batches=25))
    before = state(vae.fit(blobs), blobs)
    vae.set_params(warm_start=True)
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert_same_state(vae, blobs, before)
    vae.set_params(warm_start=False, encoder=Overflow)
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert_same_state(vae, blobs, before)


def test_a_breakdown_gives_the_guard_back(blobs, vae):
    vae.set_params(alignment_weight="auto", warm_start=True).fit(blobs)
    twin = copy.deepcopy(vae)
    with pytest.raises(NonFiniteLossError):
        vae.set_params(learning_rate=1e30).fit(blobs)
    vae.set_params(learning_rate=1e-2).fit(blobs)
    np.testing.assert_array_equal(
        vae.transform(blobs), twin.fit(blobs).transform(blobs)
    )


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((20, 3), np.nan), "NaN"),
        (np.arange(6.0).reshape(3, 2), "n_components"),
        ([["a"]], "could not convert"),
        (np.zeros((20, 2)), "samples that differ"),
    ],
)
def test_failed_fit_leaves_the_earlier_fit(blobs, trained, X, message):
    before = state(trained, blobs)
    with pytest.raises(ValueError, match=message):
        trained.fit(X)
    assert_same_state(trained, blobs, before)
