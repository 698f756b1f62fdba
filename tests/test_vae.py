import copy
import inspect
import pickle
import re
import signal
import threading
import warnings
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LRScheduler
from torch import nn
from torch.utils.data import TensorDataset

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert import _vae as vae_module
from skvaecert._training.batches import Streamed
from skvaecert.baselines import FreeBits
from skvaecert.datasets import DatasetSamples, load_patches
from skvaecert.exceptions import (
    InterruptedFitWarning,
    NonFiniteLossError,
    UnreachedMarginWarning,
)
from skvaecert.forecast import forecast_margin, ratio_for_margin
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.networks import mlp
from skvaecert.simplex import (
    analytic_code,
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)


class Interrupt(Callback):
    """Sends Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            signal.raise_signal(signal.SIGINT)


class Factory:
    def __init__(self, width):
        self.width = width

    def build(self, n_features, latent_dim):
        return mlp(n_features, (self.width,), 2 * latent_dim)


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


def state(vae, X):
    return vae.transform(X), vae.n_iter_, len(vae.history_), vae.score(X)


def assert_same_state(vae, X, before):
    now = state(vae, X)
    np.testing.assert_array_equal(now[0], before[0])
    assert now[1:] == before[1:]


def test_what_is_learned(blobs, small_vae):
    vae = small_vae.fit(blobs)
    assert vae.vertices_.shape == (4, 4)
    np.testing.assert_array_equal(vae.vertices_, simplex_vertices(4, 4))
    proba = vae.teacher_.transform(blobs)
    assert vae.witness_scale_ == pytest.approx(prior_matched_scale(proba))
    assert vae.n_iter_ == len(vae.history_) == 30
    assert type(vae.net_.module_).__name__ == "VAE"
    names = vae.get_feature_names_out()
    assert list(names) == [f"certifiedvae{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("n_samples", "batch_size"), [(2, 8), (160, 10), (1600, 100), (10_000, 128)]
)
def test_batches_fit_the_number_of_rows(n_samples, batch_size, blobs):
    X = np.resize(blobs, (n_samples, blobs.shape[1]))
    proba = np.full((n_samples, 2), 0.5)
    vae = CertifiedVAE(witness_scale=1.0, max_epochs=1, device="cpu")
    assert vae.fit(X, teacher_proba=proba).net_.batch_size == batch_size


def test_history_is_a_table(blobs, small_vae):
    table = pd.DataFrame(small_vae.fit(blobs).history_)
    assert list(table["epoch"]) == list(range(1, 31))
    assert table.notna().all(axis=None)
    total = table["margin"] + table["alignment_loss"]
    np.testing.assert_allclose(total, table["teacher_information"])
    assert (table["alignment_weight"] == 10).all()


def test_history_is_in_the_units_of_the_data(blobs, small_vae):
    """Densities: 1000 times larger numbers cost log 1000 nats a feature."""
    losses = [
        clone(small_vae).fit(X).history_[-1]["loss"] for X in (blobs, 1000 * blobs)
    ]
    assert losses[1] - losses[0] == pytest.approx(6 * np.log(1000), rel=1e-3)


def test_score_is_the_evidence_bound_of_the_last_epoch(blobs, small_vae):
    vae = small_vae.set_params(alignment_weight=0, max_epochs=60).fit(blobs)
    assert vae.score(blobs) == pytest.approx(-vae.history_[-1]["loss"], abs=0.5)
    assert vae.score(blobs) == vae.score(blobs)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (1e-30, "float32"),
        (1, "float32"),
        (1e15, "float32"),
        (1e-100, "float64"),
        (1e6, "float64"),
        (1e100, "float64"),
    ],
)
def test_data_of_any_scale(blobs, small_vae, scale, dtype):
    X = (scale * (blobs + 3)).astype(dtype)
    vae = small_vae.fit(X)
    X = X.astype(np.float64)
    error = ((vae.inverse_transform(vae.transform(X)) - X) ** 2).mean()
    assert error < 0.2 * X.var(axis=0).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_that_overflow_are_refused(blobs, small_vae, dtype):
    X = blobs.astype(dtype)
    with pytest.raises(
        ValueError, match=rf"X must have magnitudes below .*{dtype.__name__}"
    ):
        small_vae.fit(X / 10 * np.sqrt(np.finfo(dtype).max))
    small_vae.fit(X)
    with pytest.raises(ValueError, match=r"within 1e15 standard deviations .* units"):
        small_vae.transform(1e16 * blobs)


def test_batch_normalisation_and_dropout(blobs, small_vae):
    def encoder(n_features, latent_dim):
        layers = [nn.Linear(n_features, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 2 * latent_dim))

    vae = small_vae.set_params(encoder=encoder, batch_size=17)
    vae.fit(blobs[:35])
    np.testing.assert_array_equal(vae.transform(blobs)[:1], vae.transform(blobs[:1]))


def test_bernoulli_reconstructs_probabilities(digits):
    X = digits[0][:300]
    vae = CertifiedVAE(likelihood="bernoulli", max_epochs=30, random_state=0).fit(X)
    images = vae.inverse_transform(vae.transform(X))
    assert images.min() >= 0
    assert images.max() <= 1
    assert ((images - X) ** 2).mean() < X.var(axis=0).mean()


def test_witness(blobs, small_vae):
    vae = small_vae.fit(blobs)
    expected = witness_log_proba(
        vae.transform(blobs), vae.vertices_, vae.witness_scale_
    )
    np.testing.assert_array_equal(vae.witness_log_proba(blobs), expected)
    vae.set_output(transform="pandas")
    np.testing.assert_array_equal(vae.witness_log_proba(blobs), expected)


def test_sample(blobs, small_vae):
    vae = small_vae.fit(blobs)
    rows = vae.sample(500, random_state=0)
    assert rows.shape == (500, 6)
    np.testing.assert_array_equal(rows, vae.sample(500, random_state=0))
    assert not np.array_equal(vae.sample(3), vae.sample(3))
    assert (
        np.linalg.norm(rows.mean(axis=0) - blobs.mean(axis=0)) < blobs.std(axis=0).max()
    )


def test_a_row_is_encoded_alike_in_any_company(blobs, small_vae):
    vae = small_vae.fit(blobs)
    apart = np.concatenate([vae.transform(row[None]) for row in blobs])
    np.testing.assert_array_equal(vae.transform(blobs), apart)


def test_own_modules(blobs, small_vae):
    encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8))
    before = [p.clone() for p in encoder.parameters()]
    vae = small_vae.set_params(
        encoder=encoder, decoder=lambda n_features, latent_dim: nn.Linear(4, 6)
    ).fit(blobs)
    assert vae.history_[-1]["margin"] > 0.5
    assert isinstance(vae.net_.module_.decoder, nn.Linear)
    # The user's module is copied, not trained.
    assert all(map(torch.equal, before, encoder.parameters()))


def test_frozen_teacher_is_kept(blobs, small_vae):
    teacher = GMMTeacher(n_components=3, random_state=5).fit(blobs)
    vae = small_vae.set_params(teacher=FrozenEstimator(teacher)).fit(blobs[:50])
    assert len(vae.vertices_) == 3
    np.testing.assert_array_equal(
        vae.teacher_.predict_proba(blobs), teacher.predict_proba(blobs)
    )


def test_default_teacher(blobs):
    vae = CertifiedVAE(max_epochs=1, random_state=0).fit(blobs)
    assert isinstance(vae.teacher_, GMMTeacher)
    assert vae.teacher is None


def test_teacher_proba_replaces_the_teacher(blobs, small_vae):
    proba = np.full((120, 3), 0.1)
    proba[np.arange(120), blobs[:, 0].argsort() % 3] += 0.7
    vae = small_vae.fit(blobs, teacher_proba=proba)
    assert vae.teacher_ is None
    assert len(vae.vertices_) == 3
    vae.set_params(warm_start=True)
    with pytest.raises(ValueError, match="teacher_proba must be given again"):
        vae.fit(blobs)
    with pytest.raises(ValueError, match=r"keep the 3 components .* got 4"):
        vae.fit(blobs, teacher_proba=np.full((120, 4), 0.25))
    assert vae.fit(blobs, teacher_proba=proba).n_iter_ == 30


def test_memory_fits_each_teacher_once(blobs, small_vae, tmp_path):
    fits = []

    class Counting(GMMTeacher):
        # joblib reads the parameters it hashes from here.
        __init__ = GMMTeacher.__init__

        def fit(self, X, y=None):
            fits.append(len(X))
            return super().fit(X)

    class Dictionary:
        """A cache in memory, since joblib cannot pickle a local class."""

        def __init__(self):
            self.known = {}

        def cache(self, function):
            def cached(teacher, X):
                key = joblib.hash((teacher.get_params(), X))
                if key not in self.known:
                    self.known[key] = function(teacher, X)
                return self.known[key]

            return cached

    vae = small_vae.set_params(teacher=Counting(n_components=4), memory=Dictionary())
    for weight in (0, 1, 10):
        vae.set_params(alignment_weight=weight, max_epochs=1).fit(blobs)
    assert fits == [120]
    vae.fit(blobs[:100])
    assert fits == [120, 100]


def test_memory_on_disk(blobs, small_vae, tmp_path):
    expected = clone(small_vae).fit(blobs).transform(blobs)
    small_vae.set_params(memory=str(tmp_path))
    for _ in range(2):
        np.testing.assert_array_equal(small_vae.fit(blobs).transform(blobs), expected)
    assert list(tmp_path.rglob("output.pkl"))


def test_same_seed_same_model(blobs, small_vae):
    means = [clone(small_vae).fit(blobs).transform(blobs) for _ in range(2)]
    np.testing.assert_array_equal(*means)
    other = clone(small_vae).set_params(random_state=1).fit(blobs)
    assert not np.array_equal(other.transform(blobs), means[0])


def test_without_a_seed_fits_differ(blobs, small_vae):
    vae = small_vae.set_params(random_state=None, max_epochs=2)
    means = [clone(vae).fit(blobs).transform(blobs) for _ in range(2)]
    assert not np.array_equal(*means)


def test_users_generators_are_left_alone(blobs, small_vae):
    small_vae.fit(blobs)
    before = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    small_vae.fit(blobs)
    small_vae.score(blobs)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_pickle(blobs, small_vae):
    vae = small_vae.fit(blobs)
    again = pickle.loads(pickle.dumps(vae))
    assert_same_state(again, blobs, state(vae, blobs))
    # And goes on as the original would.
    for model in (vae, again):
        model.set_params(warm_start=True).fit(blobs)
    np.testing.assert_array_equal(vae.transform(blobs), again.transform(blobs))


def test_pickle_holds_no_training_rows(small_vae):
    X = np.random.default_rng(0).normal(size=(5000, 6))
    small_vae.set_params(max_epochs=1, teacher__covariance_type="full")
    sizes = [len(pickle.dumps(small_vae.fit(X[:n]))) for n in (500, 5000)]
    # 60 more batches in skorch's history, but not 4,500 more rows of 48 bytes.
    assert sizes[1] - sizes[0] < 4500 * 48 / 4


def test_fewer_rows_than_a_batch(small_vae):
    X = np.random.default_rng(0).normal(size=(5, 6))
    vae = small_vae.set_params(batch_size=1000, teacher__n_components=3)
    assert vae.fit(X).transform(X).shape == (5, 4)


def test_labels_do_not_leak(blobs, small_vae):
    labels = np.arange(120) % 3
    parts = MinMaxScaler(), small_vae, LogisticRegression()
    pipelines = [
        clone(make_pipeline(*parts)).fit(blobs, y) for y in (labels, labels[::-1])
    ]
    first, second = (pipeline[:-1].transform(blobs) for pipeline in pipelines)
    np.testing.assert_array_equal(first, second)
    assert pipelines[0].predict(blobs).shape == (120,)


@pytest.mark.parametrize("library", [pd, pl])
def test_frames(blobs, small_vae, library):
    X = library.DataFrame({name: blobs[:, i] for i, name in enumerate("abcdef")})
    small_vae.set_output(transform=library.__name__)
    codes = small_vae.fit(X).transform(X)
    assert isinstance(codes, library.DataFrame)
    assert list(codes.columns) == [f"certifiedvae{i}" for i in range(4)]
    assert list(small_vae.feature_names_in_) == list("abcdef")


def test_cross_validation_and_search(blobs, small_vae):
    assert len(cross_val_score(small_vae, blobs, cv=3)) == 3
    search = GridSearchCV(small_vae, {"latent_dim": [3, 4]}, cv=2).fit(blobs)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_partial_fit_is_one_epoch(blobs, small_vae):
    for n in (1, 2, 3):
        small_vae.partial_fit(blobs[:60] if n < 3 else blobs)
        assert small_vae.n_iter_ == 1
        assert len(small_vae.history_) == n
    teacher = small_vae.teacher_
    assert small_vae.partial_fit(blobs).teacher_ is teacher


def test_warm_start_goes_on(blobs, small_vae):
    vae = small_vae.set_params(max_epochs=20, warm_start=True).fit(blobs)
    teacher, vertices, first = vae.teacher_, vae.vertices_, vae.history_[-1]["loss"]
    vae.set_params(max_epochs=5, alignment_weight=3, kl_weight=2).fit(blobs)
    assert vae.teacher_ is teacher
    assert vae.vertices_ is vertices
    assert vae.n_iter_ == 5
    assert [row["epoch"] for row in vae.history_] == list(range(1, 26))
    assert vae.history_[-1]["alignment_weight"] == 3
    # From the weights that were there, not from new ones.
    assert vae.history_[20]["reconstruction"] < 0.5 * (first + vae.history_[0]["loss"])


def test_without_warm_start_all_is_forgotten(blobs, small_vae):
    expected = clone(small_vae).fit(blobs).transform(blobs)
    small_vae.fit(blobs[:50]).fit(blobs)
    np.testing.assert_array_equal(small_vae.transform(blobs), expected)
    assert len(small_vae.history_) == 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher__n_components", 3),
        ("teacher", FrozenEstimator(GMMTeacher())),
        ("latent_dim", 7),
        ("hidden_sizes", (32, 32)),
        ("encoder", nn.Linear(6, 8)),
        ("encoder", lambda n_features, latent_dim: nn.Linear(6, 8)),
        ("decoder", lambda n_features, latent_dim: nn.Linear(4, 6)),
        ("image_shape", (1, 2, 3)),
        ("likelihood", "bernoulli"),
        ("witness_scale", 2.0),
        ("device", "auto"),
    ],
)
def test_warm_start_refuses_another_structure(blobs, small_vae, name, value):
    X = MinMaxScaler(clip=True).fit_transform(blobs)
    vae = small_vae.set_params(warm_start=True, max_epochs=2).fit(X)
    before, old = state(vae, X), vae.get_params()[name]
    vae.set_params(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must stay as it was"):
        vae.fit(X)
    vae.set_params(**{name: old})
    assert_same_state(vae, X, before)
    assert vae.fit(X).n_iter_ == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"alignment_weight": 0.0},
        {"kl_weight": 3.0},
        {"learning_rate": 1e-4},
        {"batch_size": 7},
        {"max_epochs": 3},
        {"callbacks": [EarlyStopping("train_loss", sink=len)]},
        {"memory": "cache"},
        {"verbose": 1},
        {"random_state": 5},
    ],
)
def test_warm_start_takes_what_its_table_says(blobs, small_vae, changes, tmp_path):
    if "memory" in changes:
        changes = {"memory": str(tmp_path)}
    vae = small_vae.set_params(warm_start=True, max_epochs=2).fit(blobs)
    vae.set_params(**changes).fit(blobs)
    assert len(vae.history_) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_sizes": [32]},
        {"latent_dim": np.int64(4)},
        {"witness_scale": 2},
        {"random_state": np.random.RandomState(0)},
        {"teacher__random_state": 7},
        {"encoder": Factory(8).build},
    ],
)
def test_warm_start_takes_what_is_equal(blobs, small_vae, changes):
    vae = small_vae.set_params(warm_start=True, max_epochs=1, witness_scale=2.0)
    vae.set_params(encoder=Factory(8).build)
    vae.fit(blobs).set_params(**changes).fit(blobs)
    assert len(vae.history_) == 2


SHALLOW, DEEP = [
    lambda n_features, latent_dim: nn.Linear(n_features, 2 * latent_dim),
    lambda n_features, latent_dim: nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 8)),
]


def closure(width):
    return lambda n_features, latent_dim: mlp(n_features, (width,), 2 * latent_dim)


def with_default(width):
    return lambda n_features, latent_dim, w=width: mlp(n_features, (w,), 2 * latent_dim)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Linear(6, 8), nn.Linear(6, 8)),
        (SHALLOW, DEEP),
        (closure(8), closure(9)),
        (with_default(8), with_default(9)),
        (Factory(8).build, Factory(9).build),
        (partial(SHALLOW), partial(DEEP)),
    ],
)
def test_warm_start_tells_encoders_apart(blobs, small_vae, first, second):
    """By their weights and code; their names and reprs are the same."""
    vae = small_vae.set_params(warm_start=True, max_epochs=1, encoder=first)
    vae.fit(blobs).fit(blobs).set_params(encoder=second)
    with pytest.raises(ValueError, match="encoder must stay"):
        vae.fit(blobs)


def test_what_cannot_be_hashed_can_be_trained(blobs, small_vae):
    class Locked:
        lock = None

        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, n_features, latent_dim):
            return nn.Linear(n_features, 2 * latent_dim)

    small_vae.set_params(encoder=Locked(), max_epochs=1, warm_start=True)
    assert len(small_vae.fit(blobs).fit(blobs).history_) == 2


def test_interrupt_after_training_leaves_the_earlier_fit(blobs, small_vae, monkeypatch):
    before = state(small_vae.set_params(warm_start=True).fit(blobs), blobs)
    calls = iter([KeyboardInterrupt])

    def interrupted(row, units, original=vae_module._history_row):
        for error in calls:
            raise error
        return original(row, units)

    monkeypatch.setattr(vae_module, "_history_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_vae.fit(blobs)
    assert_same_state(small_vae, blobs, before)


def test_a_schedule_can_join_at_a_warm_start(blobs, small_vae):
    vae = small_vae.set_params(warm_start=True, max_epochs=4).fit(blobs)
    vae.set_params(callbacks=[LRScheduler(policy="StepLR", step_size=1)]).fit(blobs)
    assert vae.net_.optimizer_.param_groups[0]["lr"] < 1e-4


def test_warm_start_keeps_its_teacher(blobs, small_vae):
    proba = np.full((120, 4), 0.25)
    vae = small_vae.set_params(warm_start=True, max_epochs=1).fit(blobs)
    with pytest.raises(ValueError, match="teacher_proba must be left out"):
        vae.fit(blobs, teacher_proba=proba)


def test_callbacks_that_cannot_be_copied(blobs, small_vae):
    class Locked(Callback):
        def __init__(self):
            self.lock = threading.Lock()

    small_vae.set_params(callbacks=[Locked()], max_epochs=1).fit(blobs)


def test_the_table_of_warm_starts_is_complete():
    table = CertifiedVAE.__doc__.partition("may change")[2].partition("callbacks :")[0]
    for name in inspect.signature(CertifiedVAE).parameters:
        assert name == "warm_start" or name in table, name


def test_warm_start_after_unpickling_knows_a_frozen_teacher(blobs, small_vae):
    teacher = FrozenEstimator(GMMTeacher(n_components=4, random_state=0).fit(blobs))
    vae = small_vae.set_params(teacher=teacher, warm_start=True, max_epochs=2)
    again = pickle.loads(pickle.dumps(vae.fit(blobs)))
    assert len(again.fit(blobs).history_) == 4


def test_interrupt_keeps_the_epochs_done(blobs, small_vae):
    vae = small_vae.set_params(callbacks=[Interrupt(6)])
    with pytest.warns(InterruptedFitWarning, match="5 completed epochs out of 30"):
        vae.fit(blobs)
    assert vae.n_iter_ == len(vae.history_) == 5
    assert vae.transform(blobs).shape == (120, 4)
    vae.set_params(callbacks=None, warm_start=True).fit(blobs)
    assert len(vae.history_) == 35


def test_interrupt_before_the_first_epoch_leaves_no_fit(blobs, small_vae):
    with pytest.raises(KeyboardInterrupt):
        small_vae.set_params(callbacks=[Interrupt(1)]).fit(blobs)
    assert not hasattr(small_vae, "net_")
    assert not hasattr(small_vae, "n_features_in_")


@pytest.mark.parametrize("warm_start", [True, False])
def test_early_interrupt_leaves_the_earlier_fit(blobs, small_vae, warm_start):
    before = state(small_vae.fit(blobs), blobs)
    small_vae.set_params(
        callbacks=[Interrupt(31 if warm_start else 1)], warm_start=warm_start
    )
    with pytest.raises(KeyboardInterrupt):
        small_vae.fit(blobs)
    assert_same_state(small_vae, blobs, before)


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


def test_interrupt_of_the_monitor(blobs, small_vae):
    vae = small_vae.set_params(encoder=InterruptedInEvaluation)
    with pytest.warns(InterruptedFitWarning, match="2 completed epochs out of 30"):
        vae.fit(blobs)
    assert len(vae.history_) == 2


class Raise(Callback):
    """Raises KeyboardInterrupt itself, as a signal handler of one's own does."""

    def __init__(self, where):
        self.where = where

    def on_epoch_begin(self, net, **kwargs):
        self.stop(net, "on_epoch_begin")

    def on_batch_end(self, net, **kwargs):
        self.stop(net, "on_batch_end")

    def stop(self, net, where):
        if where == self.where and len(net.history) == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["on_epoch_begin", "on_batch_end"])
def test_interrupt_by_code(blobs, small_vae, where):
    with pytest.warns(InterruptedFitWarning, match="3 completed epochs"):
        small_vae.set_params(callbacks=[Raise(where)]).fit(blobs)
    assert len(small_vae.history_) == 3


def test_early_stopping_by_callback(blobs, small_vae):
    stop = EarlyStopping("train_loss", patience=2, lower_is_better=False, sink=len)
    vae = small_vae.set_params(callbacks=[("stop", stop)]).fit(blobs)
    assert 1 < vae.n_iter_ < 30


def test_breakdown_keeps_the_finite_epochs(blobs, small_vae):
    vae = small_vae.set_params(encoder=Overflow)
    with pytest.raises(
        NonFiniteLossError, match=r"loss became .* epoch 3.*StandardScaler"
    ):
        vae.fit(blobs)
    assert vae.n_iter_ == len(vae.history_) == 2
    assert np.isfinite(vae.score(blobs))


def test_breakdown_in_the_first_epoch_leaves_no_fit(blobs, small_vae):
    vae = small_vae.set_params(
        encoder=lambda n, d: Overflow(n, d, batches=1), hidden_sizes=()
    )
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert not hasattr(vae, "net_")


def test_breakdown_leaves_the_earlier_fit(blobs, small_vae):
    vae = small_vae.set_params(encoder=lambda n, d: Overflow(n, d, batches=150))
    before = state(vae.fit(blobs), blobs)
    vae.set_params(warm_start=True)
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert_same_state(vae, blobs, before)
    vae.set_params(warm_start=False, encoder=Overflow)
    with pytest.raises(NonFiniteLossError):
        vae.fit(blobs)
    assert_same_state(vae, blobs, before)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((20, 3), np.nan), "NaN"),
        (np.arange(6.0).reshape(3, 2), "n_components"),
        ([["a"]], "could not convert"),
        (np.zeros((20, 2)), "rows that differ"),
    ],
)
def test_failed_fit_leaves_the_earlier_fit(blobs, small_vae, X, message):
    before = state(small_vae.fit(blobs), blobs)
    with pytest.raises(ValueError, match=message):
        small_vae.fit(X)
    assert_same_state(small_vae, blobs, before)


def test_bad_data(small_vae, bad_data):
    X, message = bad_data
    with pytest.raises((ValueError, TypeError), match=message):
        small_vae.fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"latent_dim": 2}, r"latent_dim must be at least n_components - 1 = 3.*got 2"),
        ({"latent_dim": 0}, "'latent_dim' parameter.*Got 0"),
        (
            {"hidden_sizes": (5, 0)},
            r"hidden_sizes must be integers above 0, got \(5, 0\)",
        ),
        ({"hidden_sizes": 5}, "'hidden_sizes' parameter"),
        ({"likelihood": "poisson"}, "'likelihood' parameter.*Got 'poisson'"),
        (
            {"likelihood": "bernoulli"},
            r"X must lie in \[0, 1\].*got values from -.*MinMax",
        ),
        ({"alignment_weight": -1.0}, "'alignment_weight' parameter.*Got -1.0"),
        ({"kl_weight": -1.0}, "'kl_weight' parameter.*Got -1.0"),
        ({"witness_scale": 0.0}, "'witness_scale' parameter.*Got 0.0"),
        ({"max_epochs": 0}, "'max_epochs' parameter.*Got 0"),
        ({"batch_size": 0}, "'batch_size' parameter.*Got 0"),
        ({"learning_rate": 0.0}, "'learning_rate' parameter.*Got 0.0"),
        ({"device": "gpu"}, "device must be 'auto'.*got 'gpu'"),
        ({"teacher": "gmm"}, "'teacher' parameter.*Got 'gmm'"),
        ({"encoder": 3}, "'encoder' parameter.*Got 3"),
        (
            {"encoder": nn.Linear(6, 5)},
            r"encoder must return a tensor of shape \(n, 8\)",
        ),
        ({"callbacks": 3}, "'callbacks' parameter.*Got 3"),
        ({"callbacks": ["x"]}, r"callbacks must be callbacks of skorch.*got 'x'"),
    ],
)
def test_bad_parameters(blobs, small_vae, params, message):
    with pytest.raises(ValueError, match=message):
        small_vae.set_params(**params).fit(blobs)
    assert not hasattr(small_vae, "net_")


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        (np.full((120, 4), 0.3), "sum to 1"),
        (np.eye(4)[np.zeros(120, dtype=int)], "full support"),
        (np.full((7, 4), 0.25), "each of the 120 samples, got 7"),
        (np.full((120, 4), 0.25), "witness_scale must be a number for this teacher"),
    ],
)
def test_bad_teacher_proba(blobs, small_vae, proba, message):
    with pytest.raises(ValueError, match=message):
        small_vae.fit(blobs, teacher_proba=proba)


def test_bad_use_after_fit(blobs, small_vae):
    for method in ("transform", "score", "witness_log_proba", "inverse_transform"):
        with pytest.raises(ValueError, match="not fitted yet"):
            getattr(small_vae, method)(blobs)
    vae = small_vae.fit(blobs)
    with pytest.raises(
        ValueError, match="X has 5 features, but CertifiedVAE is expecting"
    ):
        vae.transform(blobs[:, :5])
    with pytest.raises(ValueError, match="Z must have latent_dim=4 columns, got 6"):
        vae.inverse_transform(blobs)
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        vae.sample(0)


def test_rows_beyond_one_can_be_encoded_but_have_no_likelihood(blobs, small_vae):
    X = MinMaxScaler().fit_transform(blobs)
    vae = small_vae.set_params(likelihood="bernoulli").fit(X)
    assert np.isfinite(vae.transform(1.1 * X)).all()
    with pytest.raises(ValueError, match=r"X must lie in \[0, 1\]"):
        vae.score(1.1 * X)


def test_parameters_set_after_the_fit_do_not_change_it(blobs, small_vae):
    X = MinMaxScaler().fit_transform(blobs)
    vae = small_vae.set_params(likelihood="bernoulli").fit(X)
    before = vae.inverse_transform(vae.transform(X))
    vae.set_params(likelihood="gaussian", latent_dim=9)
    np.testing.assert_array_equal(vae.inverse_transform(vae.transform(X)), before)


def test_teacher_proba_is_cut_with_the_folds(blobs, small_vae):
    proba = GMMTeacher(n_components=4, random_state=0).fit_transform(blobs)
    with sklearn.config_context(enable_metadata_routing=True):
        vae = small_vae.set_params(max_epochs=2).set_fit_request(teacher_proba=True)
        search = GridSearchCV(vae, {"kl_weight": [1, 2]}, cv=3, error_score="raise")
        search.fit(blobs, teacher_proba=proba)
    assert search.best_estimator_.teacher_ is None


@pytest.fixture(scope="module")
def patches():
    return load_patches(600, size=8, random_state=0)


@pytest.fixture
def conv_vae(patches):
    return CertifiedVAE(
        GMMTeacher(n_components=4),
        latent_dim=8,
        hidden_sizes=(32,),
        encoder="conv",
        decoder="conv",
        image_shape=patches.image_shape,
        batch_size=32,
        max_epochs=8,
        device="cpu",
        random_state=0,
    )


def test_convolutions_are_certified(patches, conv_vae):
    held_out = load_patches(600, size=8, subset="test", random_state=1).data
    scaled = MinMaxScaler().fit_transform(held_out)
    pipeline = make_pipeline(MinMaxScaler(), CollapseCertifier(conv_vae))
    certifier = pipeline.fit(patches.data)[-1]
    assert certifier.certify(scaled).verdict == "certified"
    decoded = certifier.estimator_.inverse_transform(certifier.transform(scaled))
    assert ((decoded - scaled) ** 2).mean() < scaled.var(axis=0).mean() / 2


def test_convolutions_without_weights_are_constant(patches, conv_vae):
    """The twin of the test above: images alone certify nothing."""
    vae = conv_vae.set_params(max_epochs=1).fit(patches.data)
    with torch.no_grad():
        vae.net_.module_.encoder[-1].weight.zero_()
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(patches.data)
    assert certifier.certify(patches.data).verdict == "constant"


@pytest.mark.parametrize("image_shape", [(3, 8, 8), (1, 12, 16), (2, 9, 13)])
def test_an_image_is_encoded_alike_in_any_company(conv_vae, image_shape):
    n_features = np.prod(image_shape)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, n_features)) + rng.integers(4, size=(300, 1))
    vae = conv_vae.set_params(image_shape=image_shape, max_epochs=1).fit(rows)
    means, order = vae.transform(rows), rng.permutation(300)
    np.testing.assert_array_equal(vae.transform(rows[order]), means[order])
    for n in (1, 7, 256):
        parts = [vae.transform(rows[i : i + n]) for i in range(0, 300, n)]
        np.testing.assert_array_equal(np.concatenate(parts), means)


def test_convolutions_in_a_search(patches, conv_vae):
    pipeline = make_pipeline(MinMaxScaler(), conv_vae.set_params(max_epochs=1))
    grid = {"certifiedvae__encoder": [None, "conv"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(patches.data[:200])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_[-1]
    is_conv = isinstance(best.net_.module_.encoder[0], nn.Unflatten)
    assert is_conv == (best.encoder == "conv")


def test_convolutions_are_pickled_and_go_on(patches, conv_vae):
    X = patches.data[:200]
    vae = conv_vae.set_params(max_epochs=1, warm_start=True).fit(X)
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
        ({"image_shape": None}, "image_shape must be .* got None. Set it"),
        (
            {"image_shape": (3, 8, 9)},
            r"features, 192, .* got \(3, 8, 9\), which holds 216",
        ),
        ({"image_shape": 8}, "'image_shape' parameter.*Got 8"),
        ({"encoder": "cnn"}, "'encoder' parameter .* {'conv'}.*Got 'cnn'"),
        ({"decoder": "mlp"}, "'decoder' parameter .* {'conv'}.*Got 'mlp'"),
    ],
)
def test_bad_images(patches, conv_vae, params, message):
    with pytest.raises(ValueError, match=message):
        conv_vae.set_params(**params).fit(patches.data)


def relative_margin(vae, X):
    """Margin over information, by arithmetic apart from the guard's."""
    proba = vae.teacher_.predict_proba(X)
    margin = collapse_margin(proba, vae.witness_log_proba(X))
    return margin / teacher_information(proba)


@pytest.mark.parametrize("target", [0.3, 0.6])
@pytest.mark.parametrize("kl_weight", [2.0, 16.0])
def test_guard_holds_the_margin(blobs, small_vae, target, kl_weight):
    small_vae.set_params(
        alignment_weight="auto",
        target_margin=target,
        kl_weight=kl_weight,
        max_epochs=150,
        learning_rate=3e-3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreachedMarginWarning)
        vae = small_vae.fit(blobs)
    assert relative_margin(vae, blobs) >= target - 0.05
    weights = [row["alignment_weight"] for row in vae.history_]
    assert len(set(weights)) > 20
    # The twin: without alignment this weight of the KL leaves nothing to hold.
    if kl_weight == 16.0:
        small_vae.set_params(alignment_weight=0.0)
        assert relative_margin(small_vae.fit(blobs), blobs) < target - 0.05


def test_guard_lets_go_of_a_margin_that_costs_nothing(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", target_margin=0.1, max_epochs=100)
    weights = [row["alignment_weight"] for row in small_vae.fit(blobs).history_]
    assert weights[-1] < 0.1 * weights[0]


def test_guard_says_what_it_did_not_reach(blobs, small_vae):
    small_vae.set_params(
        alignment_weight="auto", target_margin=0.95, kl_weight=50.0, max_epochs=2
    )
    with pytest.warns(
        UnreachedMarginWarning, match="in 2 epochs, not target_margin"
    ) as w:
        vae = small_vae.fit(blobs)
    assert w[0].filename == __file__
    reached = float(re.search(r"margin of (-?[\d.]+) in", str(w[0].message))[1])
    assert reached == pytest.approx(relative_margin(vae, blobs), abs=1e-3)


def test_guard_goes_on_from_its_weight(blobs, small_vae):
    small_vae.set_params(
        alignment_weight="auto", kl_weight=16.0, warm_start=True, target_margin=0.6
    )
    first = small_vae.fit(blobs).history_[-1]["alignment_weight"]
    rows = small_vae.set_params(max_epochs=1).fit(blobs).history_
    assert 0.8 < rows[-1]["alignment_weight"] / first < 1.25
    assert rows[0]["alignment_weight"] == pytest.approx(1, rel=0.3)


def test_guard_needs_a_teacher_that_tells_rows_apart(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", witness_scale=1.0)
    with pytest.raises(ValueError, match="alignment_weight must be a number"):
        small_vae.fit(blobs, teacher_proba=np.full((len(blobs), 3), 1 / 3))


def test_rows_held_out_are_not_fitted_on(blobs, small_vae):
    seen = []

    class Teacher(GMMTeacher):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X)

    small_vae.set_params(teacher=Teacher(4), validation_fraction=0.25, max_epochs=3)
    vae = small_vae.fit(blobs)
    (fitted,) = seen
    assert len(fitted) == 90
    held_out = np.array([row for row in blobs if not (fitted == row).all(axis=1).any()])
    assert len(held_out) == 30
    proba = vae.teacher_.predict_proba(held_out)
    log_q = vae.witness_log_proba(held_out)
    last = vae.history_[-1]
    assert last["validation_margin"] == pytest.approx(
        collapse_margin(proba, log_q), abs=1e-5
    )
    assert last["validation_information"] == pytest.approx(
        teacher_information(proba), abs=1e-5
    )
    # The standardisation is that of the rows fitted on, and so is the margin recorded.
    assert last["teacher_information"] == pytest.approx(
        teacher_information(vae.teacher_.predict_proba(fitted)), abs=1e-5
    )
    # The codes are other draws than those of score.
    assert last["validation_loss"] == pytest.approx(-vae.score(held_out), rel=0.1)
    assert (
        "validation_loss"
        not in small_vae.set_params(validation_fraction=None).fit(blobs).history_[-1]
    )


def test_warm_fits_hold_out_the_same_rows(blobs, small_vae):
    small_vae.set_params(validation_fraction=0.25, warm_start=True, max_epochs=2)
    first = small_vae.fit(blobs)._split(len(blobs))
    second = small_vae.set_params(random_state=5).fit(blobs)._split(len(blobs))
    np.testing.assert_array_equal(first[1], second[1])


def test_guard_holds_the_margin_of_rows_held_out(blobs, small_vae):
    small_vae.set_params(
        alignment_weight="auto",
        validation_fraction=0.25,
        kl_weight=16.0,
        max_epochs=150,
        learning_rate=3e-3,
    )
    last = small_vae.fit(blobs).history_[-1]
    assert last["validation_margin"] >= 0.55 * last["validation_information"]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_parts_need_rows(blobs, small_vae, fraction):
    with pytest.raises(
        ValueError, match=f"validation_fraction .* got {fraction} of 120"
    ):
        small_vae.set_params(validation_fraction=fraction).fit(blobs)


@pytest.mark.parametrize(
    ("params", "alpha"),
    [
        ({"prefit_alpha": 1.0}, 1.0),
        ({"prefit_alpha": 0.3}, 0.3),
        # With the prior-matched scale the analytic code costs (K - 1) / 2 nats.
        ({"prefit_energy": 1.5 / 4}, 0.5),
        ({"prefit_energy": 100.0}, 1.0),
    ],
)
def test_prefit_begins_at_the_scaled_analytic_code(blobs, small_vae, params, alpha):
    small_vae.set_params(prefit_epochs=200, max_epochs=1, learning_rate=3e-3, **params)
    with pytest.raises(KeyboardInterrupt):
        small_vae.set_params(callbacks=[Stopped()]).fit(blobs)
    vae = Stopped.vae
    codes = analytic_code(
        vae.teacher_.predict_proba(blobs), vae.vertices_, vae.witness_scale_
    )
    assert vae.prefit_alpha_ == pytest.approx(alpha, rel=1e-6)
    error = np.square(vae.transform(blobs) - alpha * codes).sum(axis=1).mean()
    assert error < 0.05 * np.square(alpha * codes).sum(axis=1).mean()


class Stopped(Callback):
    """Stops before the first epoch and keeps what there is."""

    vae = None

    def on_train_begin(self, net, **kwargs):
        frame = inspect.currentframe()
        while not isinstance(frame.f_locals.get("self"), CertifiedVAE):
            frame = frame.f_back
        Stopped.vae = copy.copy(frame.f_locals["self"])
        raise KeyboardInterrupt


def test_prefit_is_for_first_fits(blobs, small_vae):
    small_vae.set_params(max_epochs=2, warm_start=True).fit(blobs)
    assert not hasattr(small_vae, "prefit_alpha_")
    twin = copy.deepcopy(small_vae)
    twin.set_params(prefit_alpha=1.0).fit(blobs)
    np.testing.assert_array_equal(
        twin.transform(blobs), small_vae.fit(blobs).transform(blobs)
    )


def test_prefit_takes_one_of_alpha_and_energy(blobs, small_vae):
    small_vae.set_params(prefit_alpha=0.5, prefit_energy=1.0)
    with pytest.raises(ValueError, match=r"prefit_energy must be None .* got .*=0.5"):
        small_vae.fit(blobs)


@pytest.fixture
def bytes_(blobs):
    low, high = blobs.min(axis=0), blobs.max(axis=0)
    return np.round(255 * (blobs - low) / (high - low)).astype(np.uint8)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_bytes_are_fitted_like_the_floats_they_stand_for(bytes_, small_vae, likelihood):
    small_vae.set_params(likelihood=likelihood, max_epochs=5)
    kept = []

    class Dataset(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            kept.append(X.rows.values.dtype)

    vae = clone(small_vae).set_params(callbacks=[Dataset()]).fit(bytes_)
    assert kept == [torch.uint8]
    unit = 255.0 if likelihood == "bernoulli" else 1.0
    twin = clone(small_vae).fit(bytes_ / unit)
    np.testing.assert_allclose(
        vae.transform(bytes_), twin.transform(bytes_ / unit), atol=1e-4
    )
    assert vae.score(bytes_) == pytest.approx(twin.score(bytes_ / unit), rel=1e-4)
    Z = vae.transform(bytes_)
    np.testing.assert_allclose(
        vae.inverse_transform(Z), unit * twin.inverse_transform(Z), rtol=1e-3, atol=1e-2
    )


def test_bytes_that_are_zeros_and_ones_are_probabilities(blobs, small_vae):
    X = (blobs > 0).astype(np.uint8)
    small_vae.set_params(likelihood="bernoulli", max_epochs=2)
    vae, twin = clone(small_vae).fit(X), clone(small_vae).fit(X.astype(float))
    np.testing.assert_allclose(vae.transform(X), twin.transform(X), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("fraction", [None, 0.25])
def test_rows_on_disk_and_of_a_dataset_are_streamed(
    blobs, small_vae, tmp_path, dtype, fraction
):
    X = blobs.astype(dtype)
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(X), torch.zeros(len(X))))
    small_vae.set_params(max_epochs=5, validation_fraction=fraction)
    expected = clone(small_vae).fit(X)
    for rows in (mapped, dataset):
        kinds = []

        class Kind(Callback):
            def on_train_begin(self, net, X=None, kinds=kinds, **kwargs):
                kinds.append(type(X.rows))

        vae = clone(small_vae).set_params(callbacks=[Kind()]).fit(rows)
        assert kinds == [Streamed]
        np.testing.assert_array_equal(vae.transform(rows), expected.transform(X))
        assert vae.score(rows) == expected.score(X)
        assert vae.history_[-1]["margin"] == expected.history_[-1]["margin"]


def test_bad_rows_in_a_stream_are_found_before_the_first_epoch(blobs, small_vae):
    X = np.tile(blobs, (3, 1))
    X[-1, -1] = np.nan
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(X)))
    with pytest.raises(ValueError, match="NaN"):
        small_vae.fit(dataset)
    small_vae.set_params(likelihood="bernoulli")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        small_vae.fit(DatasetSamples(TensorDataset(torch.from_numpy(blobs))))
    assert not hasattr(small_vae, "net_")


def test_a_certifier_takes_a_stream(blobs, small_vae):
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(blobs)))
    certifier = CollapseCertifier(small_vae).fit(dataset)
    assert certifier.certificate_.verdict == "certified"
    assert certifier.score(dataset) == certifier.score(blobs)
    assert certifier.certify(dataset) == certifier.certify(blobs)


@pytest.mark.parametrize("params", [{"torch_compile": "eager"}, {"autocast": True}])
def test_compiled_and_bfloat16_trainings_certify_alike(blobs, small_vae, params):
    plain = clone(small_vae).fit(blobs)
    vae = clone(small_vae).set_params(**params).fit(blobs)
    a, b = relative_margin(vae, blobs), relative_margin(plain, blobs)
    assert a == pytest.approx(b, abs=0.05)
    assert vae.transform(blobs).dtype == np.float64
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.transform(blobs), vae.transform(blobs))
    if "autocast" in params:
        assert not np.array_equal(vae.transform(blobs), plain.transform(blobs))


@pytest.fixture
def noise():
    """Rows without groups, on which a network overfits at once."""
    return np.random.default_rng(0).normal(size=(120, 6))


@pytest.fixture
def guarded(small_vae):
    return small_vae.set_params(
        teacher=GMMTeacher(4, covariance_type="full"),
        alignment_weight="auto",
        validation_fraction=0.3,
        kl_weight=4.0,
    )


@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UnreachedMarginWarning")
def test_guard_knows_the_gap_to_rows_held_out(noise, guarded):
    vae = guarded.set_params(max_epochs=40).fit(noise)
    last, guard = vae.history_[-1], vae.net_.criterion_.guard
    excess = last["validation_information"] - last["validation_margin"]
    assert guard.gap == pytest.approx(excess - last["alignment_loss"])
    assert guard.information == pytest.approx(last["validation_information"])
    assert guard.gap > 0.05


def test_guard_knows_the_gap_in_streams_too(noise, guarded):
    for _ in range(10):
        guarded.partial_fit(noise)
    gaps = []

    class Gap(Callback):
        def on_train_begin(self, net, **kwargs):
            gaps.append(net.criterion_.guard.gap)

    last = guarded.history_[-1]
    guarded.set_params(callbacks=[Gap()]).partial_fit(noise)
    excess = last["validation_information"] - last["validation_margin"]
    assert gaps == [pytest.approx(excess - last["alignment_loss"])]
    assert gaps[0] > 0.05


def test_the_margin_that_is_told_is_that_of_rows_held_out(noise, guarded):
    guarded.set_params(max_epochs=4, kl_weight=20.0)
    with pytest.warns(UnreachedMarginWarning) as warned:
        last = guarded.fit(noise).history_[-1]
    reached = float(re.search(r"margin of (-?[\d.]+) in", str(warned[0].message))[1])
    held_out = last["validation_margin"] / last["validation_information"]
    assert reached == pytest.approx(held_out, abs=1e-3)


@pytest.mark.parametrize(("missed", "warns"), [(0.04, False), (0.06, True)])
def test_a_margin_just_below_its_target_is_well(
    blobs, small_vae, monkeypatch, missed, warns
):
    small_vae.set_params(alignment_weight="auto", max_epochs=1)
    monkeypatch.setattr(CertifiedVAE, "_relative_margin", lambda *args: 0.6 - missed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small_vae.fit(blobs)
    assert [w.category for w in caught] == [UnreachedMarginWarning] * warns


def test_one_epoch_of_a_stream_need_not_reach_the_target(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", target_margin=0.95, kl_weight=50.0)
    small_vae.partial_fit(blobs)
    assert relative_margin(small_vae, blobs) < 0.9


def test_guard_keeps_its_weight_where_a_chunk_is_all_alike(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto").partial_fit(blobs)
    small_vae.partial_fit(np.tile(blobs[:1], (20, 1)))
    assert small_vae.n_iter_ == 1


def test_a_fit_that_fails_gives_the_guard_back(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", warm_start=True).fit(blobs)
    twin = copy.deepcopy(small_vae)
    small_vae.set_params(learning_rate=1e30)
    with pytest.raises(NonFiniteLossError):
        small_vae.fit(blobs)
    small_vae.set_params(learning_rate=1e-2).fit(blobs)
    np.testing.assert_array_equal(
        small_vae.transform(blobs), twin.fit(blobs).transform(blobs)
    )


def test_every_epoch_of_a_stream_has_batches_of_its_own(blobs, small_vae):
    firsts = []

    class First(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            if len(net.history[-1]["batches"]) == 1:
                firsts.append(batch[0].clone())

    small_vae.set_params(callbacks=[First()])
    for _ in range(3):
        small_vae.partial_fit(blobs)
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])


def test_standardisation_is_that_of_the_rows_fitted_on(blobs, small_vae):
    small_vae.set_params(validation_fraction=0.25, max_epochs=1).fit(blobs)
    training, _ = small_vae._split(len(blobs))
    location, scale = small_vae._standardisation
    np.testing.assert_allclose(location, blobs[training].mean(axis=0))
    assert scale == pytest.approx(np.sqrt(blobs[training].var(axis=0).mean()))


def test_the_best_epoch_by_rows_held_out(blobs, small_vae, tmp_path):
    best = Checkpoint(monitor="validation_loss_best", dirname=tmp_path, load_best=True)
    small_vae.set_params(validation_fraction=0.25, max_epochs=60, callbacks=[best])
    vae = small_vae.fit(blobs)
    losses = [row["validation_loss"] for row in vae.net_.history]
    flags = [row["validation_loss_best"] for row in vae.net_.history]
    assert flags == [v < min([np.inf, *losses[:i]]) for i, v in enumerate(losses)]
    again = clone(small_vae).set_params(
        callbacks=None, max_epochs=1 + np.argmin(losses)
    )
    np.testing.assert_allclose(
        vae.transform(blobs), again.fit(blobs).transform(blobs), atol=1e-5
    )


def test_bad_parameters_are_found_before_the_teacher_is_fitted(blobs, small_vae):
    class Untouched(GMMTeacher):
        def fit(self, X, y=None):
            raise AssertionError("the teacher was fitted")

    for params, message in [
        ({"prefit_alpha": 0.5, "prefit_energy": 1.0}, "prefit_energy must be None"),
        ({"encoder": "conv"}, "image_shape must be"),
        ({"decoder": "conv", "image_shape": (1, 8, 8)}, "image_shape must hold"),
        ({"callbacks": ["x"]}, "callbacks must be callbacks of skorch"),
    ]:
        vae = clone(small_vae).set_params(teacher=Untouched(4), **params)
        with pytest.raises(ValueError, match=message):
            vae.fit(blobs)


def test_an_encoder_without_weights_cannot_be_prefitted(blobs, small_vae):
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.cat([x, x[:, :2]], dim=1)

    small_vae.set_params(encoder=Fixed(), prefit_alpha=0.5)
    with pytest.raises(ValueError, match="prefit_alpha and prefit_energy must be None"):
        small_vae.fit(blobs)


def test_a_later_fit_without_prefit_does_not_tell_of_one(blobs, small_vae):
    small_vae.set_params(prefit_alpha=0.5, prefit_epochs=1, max_epochs=1).fit(blobs)
    assert small_vae.prefit_alpha_ == 0.5
    assert not hasattr(
        small_vae.set_params(prefit_alpha=None).fit(blobs), "prefit_alpha_"
    )


def test_nan_in_late_rows_is_found(blobs, small_vae):
    small_vae.set_params(max_epochs=1).fit(blobs)
    spoilt = blobs.copy()
    spoilt[7, 3] = np.nan
    for method in (small_vae.transform, small_vae.score, small_vae.partial_fit):
        with pytest.raises(ValueError, match="NaN"):
            method(spoilt)
        with pytest.raises(ValueError, match="NaN"):
            method(DatasetSamples(TensorDataset(torch.from_numpy(spoilt))))


def test_the_forward_pass_is_compiled_and_in_bfloat16(blobs, small_vae, monkeypatch):
    dtypes, compiled = set(), []

    class Seen(nn.Linear):
        def forward(self, x):
            result = super().forward(x)
            dtypes.add(result.dtype)
            return result

    small_vae.set_params(encoder=Seen(6, 8), max_epochs=1)
    clone(small_vae).set_params(autocast=True).fit(blobs)
    # In training; means are computed in float32 as ever.
    assert dtypes == {torch.bfloat16, torch.float32}
    dtypes.clear()
    clone(small_vae).fit(blobs)
    assert dtypes == {torch.float32}
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **kw: compiled.append(kw) or compile_(f, **kw)
    )
    small_vae.set_params(torch_compile="eager").fit(blobs)
    assert compiled == [{"backend": "eager"}]


@pytest.mark.parametrize(("n", "size"), [(120, 8), (16 * 17 - 1, 16), (4000, 128)])
def test_small_tables_have_small_batches(small_vae, n, size):
    X = np.random.default_rng(0).normal(size=(n, 3)) + np.arange(n)[:, None] % 3
    teacher = GMMTeacher(3, covariance_type="full")
    small_vae.set_params(batch_size="auto", teacher=teacher, max_epochs=1)
    assert small_vae.fit(X).net_.batch_size == size
    assert small_vae.partial_fit(X[: n // 2]).net_.batch_size == max(8, n // 32)


def test_a_callback_may_encode_and_ask_for_the_loss(blobs, small_vae):
    modes = []

    class Nosy(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            x, proba = batch
            loss = net.get_loss(net.module_(x), proba, X=x)
            assert loss.isfinite()
            net.module_.eval()

        def on_grad_computed(self, net, **kwargs):
            modes.append(net.module_.training)

    vae = clone(small_vae).set_params(callbacks=[Nosy()], max_epochs=2).fit(blobs)
    assert len(modes) == 8
    assert all(modes)
    assert vae.n_iter_ == 2


def test_a_warm_fit_on_rows_all_alike_says_nothing_of_the_margin(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", warm_start=True, witness_scale=1.0)
    first = np.where(blobs[:, :1] > blobs[:, 0].mean(), 0.9, 0.1)
    small_vae.fit(blobs, teacher_proba=np.hstack([first, 1 - first]))
    alike = np.full((len(blobs), 2), [0.25, 0.75])
    assert (
        small_vae.set_params(max_epochs=1).fit(blobs, teacher_proba=alike).n_iter_ == 1
    )


def test_bad_parameters_of_a_warm_fit(blobs, small_vae):
    small_vae.set_params(warm_start=True, max_epochs=1).fit(blobs)
    with pytest.raises(ValueError, match="callbacks must be callbacks of skorch"):
        small_vae.set_params(callbacks=["x"]).fit(blobs)


CURVE = (
    "ratio",
    "margin",
    "energy",
    "teacher_information",
    "operating_ratio",
    "operating_margin",
    "operating_energy",
)


def same_curves(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in CURVE
    )


def test_forecast_before_training_is_that_of_the_fit(blobs, small_vae):
    before = copy.deepcopy(vars(small_vae))
    curve = small_vae.forecast(blobs)
    assert vars(small_vae).keys() == before.keys()
    with pytest.raises(ValueError, match="not fitted"):
        small_vae.transform(blobs)
    small_vae.set_params(max_epochs=1).fit(blobs)
    assert same_curves(curve, small_vae.forecast(blobs))
    proba = small_vae.teacher_.predict_proba(blobs)
    forecast = forecast_margin(proba, small_vae.witness_scale_, curve.ratio)
    np.testing.assert_array_equal(curve.margin, forecast.margin)
    np.testing.assert_array_equal(curve.energy, forecast.energy)
    information = teacher_information(proba)
    assert curve.teacher_information == pytest.approx(information, rel=1e-12)
    assert curve.target_margin is None


def test_forecast_trains_nothing(blobs, small_vae, monkeypatch):
    def trained(*args, **kwargs):
        raise AssertionError("a net was made")

    monkeypatch.setattr(vae_module, "make_net", trained)
    assert small_vae.forecast(blobs).operating_margin > 0
    with pytest.raises(AssertionError, match="a net was made"):
        small_vae.fit(blobs)


def test_forecast_is_of_the_rows_to_train_on(blobs, small_vae):
    small_vae.set_params(validation_fraction=0.3, max_epochs=1)
    before = small_vae.forecast(blobs)
    small_vae.fit(blobs)
    training, _ = small_vae._split(len(blobs))
    assert same_curves(before, small_vae.forecast(blobs[training]))
    assert not same_curves(before, small_vae.forecast(blobs))


def test_forecast_draws_from_no_generator_of_the_user(blobs, small_vae):
    generator = np.random.RandomState(0)
    small_vae.set_params(random_state=generator)
    curves = [small_vae.forecast(blobs) for _ in range(2)]
    assert same_curves(*curves)
    assert generator.randint(2**31) == np.random.RandomState(0).randint(2**31)


@pytest.mark.filterwarnings("ignore:Persisting input arguments")
def test_forecast_and_fit_share_a_cached_teacher(blobs, small_vae, tmp_path):
    small_vae.set_params(memory=str(tmp_path), max_epochs=1).forecast(blobs)
    cached = list(tmp_path.rglob("output.pkl"))
    small_vae.fit(blobs)
    assert list(tmp_path.rglob("output.pkl")) == cached
    assert len(cached) == 1


@pytest.mark.parametrize(
    ("alignment_weight", "kl_weight", "ratio"),
    [(10, 4, 2.5), (0, 4, 0), (10, 0, np.inf), (0, 0, np.nan)],
)
def test_operating_point(blobs, small_vae, alignment_weight, kl_weight, ratio):
    small_vae.set_params(alignment_weight=alignment_weight, kl_weight=kl_weight)
    curve = small_vae.forecast(blobs, ratio=[0.0, 2.5, np.inf])
    assert curve.operating_ratio == pytest.approx(ratio, nan_ok=True)
    place = curve.ratio == ratio
    margin, energy = curve.margin[place], curve.energy[place]
    if np.isnan(ratio):
        margin = energy = [np.nan]
    assert [curve.operating_margin] == pytest.approx(margin, nan_ok=True)
    assert [curve.operating_energy] == pytest.approx(energy, nan_ok=True)


def test_operating_point_of_the_guard_is_its_target(blobs, small_vae):
    small_vae.set_params(alignment_weight="auto", target_margin=0.7)
    curve = small_vae.forecast(blobs, ratio=3.0)
    assert curve.ratio.shape == curve.margin.shape == (1,)
    assert curve.target_margin == 0.7
    relative = curve.operating_margin / curve.teacher_information
    assert relative == pytest.approx(0.7, abs=1e-9)
    small_vae.set_params(alignment_weight=1, max_epochs=1).fit(blobs)
    proba = small_vae.teacher_.predict_proba(blobs)
    wanted = ratio_for_margin(proba, small_vae.witness_scale_, 0.7)
    assert curve.operating_ratio == pytest.approx(wanted)


def test_forecast_takes_weights_that_are_set_after_the_fit(blobs, small_vae):
    small_vae.set_params(max_epochs=1).fit(blobs)
    small_vae.set_params(alignment_weight=3, kl_weight=4)
    assert small_vae.forecast(blobs).operating_ratio == 0.75


def test_forecast_with_posteriors(blobs, small_vae):
    proba = GMMTeacher(4, random_state=1).fit(blobs).predict_proba(blobs)
    curve = small_vae.forecast(blobs, teacher_proba=proba)
    information = teacher_information(proba)
    assert curve.teacher_information == pytest.approx(information, rel=1e-12)
    small_vae.set_params(max_epochs=1).fit(blobs, teacher_proba=proba)
    assert same_curves(curve, small_vae.forecast(blobs, teacher_proba=proba))
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        small_vae.forecast(blobs)
    with pytest.raises(ValueError, match="the 4 components of the fit, got 2"):
        small_vae.forecast(blobs, teacher_proba=np.full((120, 2), 0.5))
    with pytest.raises(ValueError, match="one row for each of the 119 samples"):
        small_vae.forecast(blobs[1:], teacher_proba=proba)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"latent_dim": 2}, "latent_dim must be at least"),
        ({"kl_weight": -1}, "'kl_weight' parameter"),
        ({"prefit_alpha": 1.0, "prefit_energy": 1.0}, "prefit_energy must be None"),
        ({"objective": FreeBits()}, r"objective must be None.*got FreeBits\(\)"),
    ],
)
def test_forecast_refuses_what_fit_would_or_it_cannot_tell(
    blobs, small_vae, params, message
):
    with pytest.raises(ValueError, match=message):
        small_vae.set_params(**params).forecast(blobs)


def test_forecast_refuses_bad_data(bad_data, small_vae):
    X, message = bad_data
    with pytest.raises((ValueError, TypeError), match=message):
        small_vae.forecast(X)
