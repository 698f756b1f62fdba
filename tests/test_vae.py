import pickle
import threading
from contextlib import nullcontext

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
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.simplex import prior_matched_scale, simplex_vertices, witness_log_proba


def relative_margin(vae, X):
    proba = vae.teacher_.predict_proba(X)
    margin = collapse_margin(proba, vae.witness_log_proba(X))
    return margin / teacher_information(proba)


@pytest.mark.slow
def test_what_is_learned(blobs, shared_vae):
    np.testing.assert_array_equal(shared_vae.vertices_, simplex_vertices(4, 4))
    proba = shared_vae.teacher_.transform(blobs)
    assert shared_vae.witness_scale_ == pytest.approx(prior_matched_scale(proba))
    assert shared_vae.n_iter_ == len(shared_vae.history_) == 30
    assert type(shared_vae.net_.module_).__name__ == "VAE"
    names = shared_vae.get_feature_names_out()
    assert list(names) == [f"certifiedvae{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("n_samples", "batch_size"), [(2, 8), (16 * 17 - 1, 16), (1600, 100), (4000, 128)]
)
def test_batches_fit_the_number_of_samples(n_samples, batch_size, blobs):
    X = np.resize(blobs, (n_samples, blobs.shape[1]))
    proba = np.full((n_samples, 2), 0.5)
    vae = CertifiedVAE(witness_scale=1.0, max_epochs=1, device="cpu")
    assert vae.fit(X, teacher_proba=proba).net_.batch_size == batch_size
    few = max(2, n_samples // 2)
    vae.partial_fit(X[:few], teacher_proba=proba[:few])
    assert vae.net_.batch_size == max(8, few // 16)


class Raises(Callback):
    """Records how many threads torch and BLAS have, and ends the fit."""

    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, **kwargs):
        Raises.seen = thread_numbers()
        if self.error is not None:
            raise self.error


def thread_numbers():
    blas = [k["num_threads"] for k in threadpool_info() if k["user_api"] == "blas"]
    return [torch.get_num_threads(), *blas]


@pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt()])
def test_small_networks_have_one_thread_and_leave_no_trace(blobs, error):
    proba = GMMTeacher(2, random_state=0).fit(blobs).predict_proba(blobs)
    vae = CertifiedVAE(max_epochs=2, device="cpu", callbacks=[Raises(error)])
    torch_before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        torch.set_num_threads(2)
        try:
            with pytest.raises(type(error)) if error else nullcontext():
                vae.fit(blobs, teacher_proba=proba)
            assert set(thread_numbers()) == {2}
        finally:
            torch.set_num_threads(torch_before)
    assert set(Raises.seen) == {1}


def test_history_is_a_table(shared_vae):
    table = pd.DataFrame(shared_vae.history_)
    assert list(table["epoch"]) == list(range(1, 31))
    assert table.notna().all(axis=None)
    total = table["margin"] + table["alignment_loss"]
    np.testing.assert_allclose(total, table["teacher_information"])
    assert (table["alignment_weight"] == 10).all()


def test_history_is_in_the_units_of_the_data(blobs, vae):
    """Densities: 1000 times larger values cost log 1000 nats per feature."""
    losses = [clone(vae).fit(X).history_[-1]["loss"] for X in (blobs, 1000 * blobs)]
    assert losses[1] - losses[0] == pytest.approx(6 * np.log(1000), rel=1e-3)


@pytest.mark.slow
def test_score_is_the_evidence_bound_of_the_last_epoch(blobs, vae):
    vae.set_params(alignment_weight=0, max_epochs=40).fit(blobs)
    assert vae.score(blobs) == pytest.approx(-vae.history_[-1]["loss"], abs=0.5)
    assert vae.score(blobs) == vae.score(blobs)


def test_batch_normalization_and_dropout(blobs, vae):
    def encoder(n_features, latent_dim):
        layers = [nn.Linear(n_features, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 2 * latent_dim))

    vae.set_params(encoder=encoder, batch_size=17).fit(blobs[:35])
    np.testing.assert_array_equal(vae.transform(blobs)[:1], vae.transform(blobs[:1]))


@pytest.mark.slow
def test_bernoulli_reconstructs_probabilities(digits):
    X = digits[0][:300]
    teacher = GMMTeacher(5, covariance_type="spherical")
    vae = CertifiedVAE(teacher, likelihood="bernoulli", max_epochs=10, random_state=0)
    images = vae.fit(X).inverse_transform(vae.transform(X))
    assert images.min() >= 0
    assert images.max() <= 1
    assert ((images - X) ** 2).mean() < X.var(axis=0).mean()


def test_witness(blobs, trained):
    expected = witness_log_proba(
        trained.transform(blobs), trained.vertices_, trained.witness_scale_
    )
    np.testing.assert_array_equal(trained.witness_log_proba(blobs), expected)
    trained.set_output(transform="pandas")
    np.testing.assert_array_equal(trained.witness_log_proba(blobs), expected)


def test_sample(blobs, shared_vae):
    drawn = shared_vae.sample(500, random_state=0)
    assert drawn.shape == (500, 6)
    np.testing.assert_array_equal(drawn, shared_vae.sample(500, random_state=0))
    assert not np.array_equal(shared_vae.sample(3), shared_vae.sample(3))
    away = np.linalg.norm(drawn.mean(axis=0) - blobs.mean(axis=0))
    assert away < blobs.std(axis=0).max()


def test_a_sample_is_encoded_alike_in_any_batch(blobs, shared_vae):
    apart = np.concatenate([shared_vae.transform(x[None]) for x in blobs])
    np.testing.assert_array_equal(shared_vae.transform(blobs), apart)


def test_own_modules(blobs, vae):
    encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8))
    before = [p.clone() for p in encoder.parameters()]
    vae.set_params(
        encoder=encoder, decoder=lambda n_features, latent_dim: nn.Linear(4, 6)
    ).fit(blobs)
    assert vae.history_[-1]["margin"] > 0.5
    assert isinstance(vae.net_.module_.decoder, nn.Linear)
    # The user's module is copied, not trained.
    assert all(map(torch.equal, before, encoder.parameters()))


def test_what_cannot_be_copied_or_pickled_can_be_trained(blobs, vae):
    class Locked(Callback):
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, n_features, latent_dim):
            return nn.Linear(n_features, 2 * latent_dim)

    vae.set_params(encoder=Locked(), callbacks=[Locked()], max_epochs=1)
    vae.set_params(warm_start=True)
    assert len(vae.fit(blobs).fit(blobs).history_) == 2


def test_frozen_teacher_is_kept(blobs, vae):
    teacher = GMMTeacher(3, covariance_type="tied", random_state=5).fit(blobs)
    vae.set_params(teacher=FrozenEstimator(teacher)).fit(blobs[:50])
    assert len(vae.vertices_) == 3
    np.testing.assert_array_equal(
        vae.teacher_.predict_proba(blobs), teacher.predict_proba(blobs)
    )


def test_default_teacher(blobs):
    vae = CertifiedVAE(max_epochs=1, random_state=0).fit(blobs)
    assert isinstance(vae.teacher_, GMMTeacher)
    assert vae.teacher is None


def test_teacher_proba_replaces_the_teacher(blobs, vae):
    proba = np.full((120, 3), 0.1)
    proba[np.arange(120), blobs[:, 0].argsort() % 3] += 0.7
    vae.fit(blobs, teacher_proba=proba)
    assert vae.teacher_ is None
    assert len(vae.vertices_) == 3
    vae.set_params(warm_start=True)
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        vae.fit(blobs)
    with pytest.raises(ValueError, match=r"the 3 components of the fit, got 4"):
        vae.fit(blobs, teacher_proba=np.full((120, 4), 0.25))
    assert vae.fit(blobs, teacher_proba=proba).n_iter_ == 5


def test_memory_fits_each_teacher_once(blobs, vae):
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

    vae.set_params(teacher=Counting(n_components=4), memory=Dictionary())
    for weight in (0, 1, 10):
        vae.set_params(alignment_weight=weight, max_epochs=1).fit(blobs)
    assert fits == [120]
    vae.fit(blobs[:100])
    assert fits == [120, 100]


def test_memory_on_disk(blobs, vae, tmp_path):
    expected = clone(vae).fit(blobs).transform(blobs)
    vae.set_params(memory=str(tmp_path))
    for _ in range(2):
        np.testing.assert_array_equal(vae.fit(blobs).transform(blobs), expected)
    assert list(tmp_path.rglob("output.pkl"))


def test_same_seed_same_model(blobs, vae):
    means = [clone(vae).fit(blobs).transform(blobs) for _ in range(2)]
    np.testing.assert_array_equal(*means)
    other = clone(vae).set_params(random_state=1).fit(blobs)
    assert not np.array_equal(other.transform(blobs), means[0])


def test_without_a_seed_fits_differ(blobs, vae):
    vae.set_params(random_state=None, max_epochs=2)
    means = [clone(vae).fit(blobs).transform(blobs) for _ in range(2)]
    assert not np.array_equal(*means)


def test_users_generators_are_left_alone(blobs, vae):
    vae.fit(blobs)
    before = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    vae.fit(blobs)
    vae.score(blobs)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_pickle(blobs, trained):
    again = pickle.loads(pickle.dumps(trained))
    assert (again.n_iter_, again.history_) == (trained.n_iter_, trained.history_)
    assert again.score(blobs) == trained.score(blobs)
    # It continues as the original would.
    for model in (trained, again):
        model.set_params(warm_start=True, max_epochs=2).fit(blobs)
    np.testing.assert_array_equal(trained.transform(blobs), again.transform(blobs))


@pytest.mark.slow
def test_pickle_contains_no_training_samples(vae):
    X = np.random.default_rng(0).normal(size=(5000, 6))
    vae.set_params(max_epochs=1, teacher__covariance_type="full")
    sizes = [len(pickle.dumps(vae.fit(X[:n]))) for n in (500, 5000)]
    # 60 more batches in skorch's history, but not 4,500 more samples of 48 bytes.
    assert sizes[1] - sizes[0] < 4500 * 48 / 4


def test_fewer_samples_than_a_batch(vae):
    X = np.random.default_rng(0).normal(size=(5, 6))
    vae.set_params(batch_size=1000, teacher__n_components=3)
    assert vae.fit(X).transform(X).shape == (5, 4)


def test_labels_do_not_leak(blobs, vae):
    labels = np.arange(120) % 3
    parts = MinMaxScaler(), vae.set_params(max_epochs=2), LogisticRegression()
    pipelines = [
        clone(make_pipeline(*parts)).fit(blobs, y) for y in (labels, labels[::-1])
    ]
    first, second = (pipeline[:-1].transform(blobs) for pipeline in pipelines)
    np.testing.assert_array_equal(first, second)
    assert pipelines[0].predict(blobs).shape == (120,)


@pytest.mark.parametrize("library", [pd, pl])
def test_frames(blobs, vae, library):
    X = library.DataFrame({name: blobs[:, i] for i, name in enumerate("abcdef")})
    vae.set_output(transform=library.__name__)
    codes = vae.fit(X).transform(X)
    assert isinstance(codes, library.DataFrame)
    assert list(codes.columns) == [f"certifiedvae{i}" for i in range(4)]
    assert list(vae.feature_names_in_) == list("abcdef")


@pytest.mark.slow
def test_cross_validation_and_search(blobs, vae):
    assert len(cross_val_score(vae, blobs, cv=3)) == 3
    search = GridSearchCV(vae, {"latent_dim": [3, 4]}, cv=2).fit(blobs)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_teacher_proba_is_cut_with_the_folds(blobs, vae):
    proba = GMMTeacher(4, random_state=0).fit_transform(blobs)
    with sklearn.config_context(enable_metadata_routing=True):
        vae.set_params(max_epochs=2).set_fit_request(teacher_proba=True)
        search = GridSearchCV(vae, {"kl_weight": [1, 2]}, cv=3, error_score="raise")
        search.fit(blobs, teacher_proba=proba)
    assert search.best_estimator_.teacher_ is None


def test_parameters_set_after_the_fit_do_not_change_it(blobs, vae):
    X = MinMaxScaler().fit_transform(blobs)
    vae.set_params(likelihood="bernoulli").fit(X)
    before = vae.inverse_transform(vae.transform(X))
    vae.set_params(likelihood="gaussian", latent_dim=9)
    np.testing.assert_array_equal(vae.inverse_transform(vae.transform(X)), before)


def test_a_callback_may_encode_and_ask_for_the_loss(blobs, vae):
    modes = []

    class Nosy(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            x, proba = batch
            loss = net.get_loss(net.module_(x), proba, X=x)
            assert loss.isfinite()
            net.module_.eval()

        def on_grad_computed(self, net, **kwargs):
            modes.append(net.module_.training)

    vae.set_params(callbacks=[Nosy()], max_epochs=2).fit(blobs)
    assert len(modes) == 8
    assert all(modes)
    assert vae.n_iter_ == 2


class Seen(nn.Linear):
    dtypes: set = set()  # noqa: RUF012

    def forward(self, x):
        result = super().forward(x)
        self.dtypes.add(result.dtype)
        return result


@pytest.mark.slow
@pytest.mark.parametrize("params", [{"torch_compile": "eager"}, {"autocast": True}])
def test_compiled_and_bfloat16_trainings(blobs, vae, monkeypatch, params):
    Seen.dtypes.clear()
    compiled = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **kw: compiled.append(kw) or compile_(f, **kw)
    )
    vae.set_params(encoder=Seen(6, 8))
    plain = clone(vae).fit(blobs)
    assert Seen.dtypes == {torch.float32}
    vae.set_params(**params).fit(blobs)
    if "autocast" in params:
        # In training; means are computed in float32 as ever.
        assert Seen.dtypes == {torch.bfloat16, torch.float32}
        assert not np.array_equal(vae.transform(blobs), plain.transform(blobs))
    else:
        assert compiled == [{"backend": "eager"}]
    margins = [relative_margin(model, blobs) for model in (vae, plain)]
    assert margins[0] == pytest.approx(margins[1], abs=0.05)
    assert vae.transform(blobs).dtype == np.float64
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.transform(blobs), vae.transform(blobs))


def test_bad_data(vae, bad_data):
    X, message = bad_data
    with pytest.raises((ValueError, TypeError), match=message):
        vae.fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"latent_dim": 2}, r"latent_dim must be at least n_components - 1 = 3.*got 2"),
        ({"latent_dim": 0}, "'latent_dim' parameter.*Got 0"),
        (
            {"hidden_sizes": (5, 0)},
            r"hidden_sizes must be a sequence of integers above 0, got \(5, 0\)",
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
    ],
)
def test_bad_parameters(blobs, vae, params, message):
    with pytest.raises(ValueError, match=message):
        vae.set_params(**params).fit(blobs)
    assert not hasattr(vae, "net_")


class Untouched(GMMTeacher):
    def fit(self, X, y=None):
        raise AssertionError("the teacher was fitted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prefit": {"alpha": 0.5, "energy": 1.0}}, "prefit must be None"),
        ({"encoder": "conv"}, "image_shape must be"),
        (
            {"decoder": "conv", "image_shape": (1, 8, 8)},
            "image_shape must have as many",
        ),
        ({"callbacks": ["x"]}, r"callbacks must be skorch callbacks.*got 'x'"),
        ({"torch_compile": "nothing"}, "torch_compile must be .* got 'nothing'"),
    ],
)
def test_bad_parameters_are_found_before_the_teacher_is_fitted(
    blobs, trained, params, message
):
    new = clone(trained).set_params(teacher=Untouched(4), **params)
    with pytest.raises(ValueError, match=message):
        new.fit(blobs)
    if "encoder" in params or "decoder" in params:
        message = "coder must stay as it was"
    with pytest.raises(ValueError, match=message):
        trained.set_params(warm_start=True, **params).fit(blobs)


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        (np.full((120, 4), 0.3), "sum to 1"),
        (np.eye(4)[np.zeros(120, dtype=int)], "full support"),
        (np.full((7, 4), 0.25), "each of the 120 samples, got 7"),
        (np.full((120, 4), 0.25), "witness_scale must be a number for this teacher"),
    ],
)
def test_bad_teacher_proba(blobs, vae, proba, message):
    with pytest.raises(ValueError, match=message):
        vae.fit(blobs, teacher_proba=proba)


def test_bad_use_after_fit(blobs, vae, shared_vae):
    for method in ("transform", "score", "witness_log_proba", "inverse_transform"):
        with pytest.raises(ValueError, match="not fitted yet"):
            getattr(vae, method)(blobs)
    with pytest.raises(
        ValueError, match="X has 5 features, but CertifiedVAE is expecting"
    ):
        shared_vae.transform(blobs[:, :5])
    with pytest.raises(ValueError, match="Z must have latent_dim=4 columns, got 6"):
        shared_vae.inverse_transform(blobs)
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        shared_vae.sample(0)
