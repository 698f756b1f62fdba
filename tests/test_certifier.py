import copy
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from scipy import sparse
from scipy.special import softmax
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from torch import nn
from torch.utils.data import TensorDataset

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, certify
from skvaecert.baselines import BatchNormVAE, DeltaVAE, MuForcing, SigmaVAE
from skvaecert.datasets import DatasetSamples
from skvaecert.exceptions import NonFiniteLossError, UnstableEncoderWarning
from skvaecert.simplex import analytic_code, prior_matched_scale, simplex_vertices


class Constant(TransformerMixin, BaseEstimator):
    """Encodes every sample alike."""

    def __init__(self, value=0.3, dtype="float64"):
        self.value = value
        self.dtype = dtype

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.full((len(X), 4), self.value, dtype=self.dtype)


class Crowded:
    """Encodes samples by the first feature, but only in large batches."""

    def transform(self, X):
        return np.tile(np.asarray(X)[:, :1], 4) * (len(X) > 300)


def quick_vae(**params):
    settings = {
        "latent_dim": 4,
        "hidden_sizes": (32,),
        "batch_size": 32,
        "max_epochs": 30,
        "learning_rate": 1e-2,
        "device": "cpu",
        "random_state": 0,
    }
    return CertifiedVAE(GMMTeacher(n_components=4), **settings | params)


@pytest.fixture(scope="module")
def blobs(shared_blobs):
    """They are shared by all tests: do not change them."""
    return shared_blobs


@pytest.fixture(scope="module")
def fitted(blobs):
    """A certifier fitted to the blobs. It is shared: do not fit or change it."""
    return CollapseCertifier(quick_vae()).fit(blobs)


@pytest.fixture
def certifier(fitted):
    """A copy of it, to be changed."""
    return copy.deepcopy(fitted)


@pytest.fixture
def teacher():
    return GMMTeacher(n_components=4, random_state=0)


def margin_by_hand(certifier, X):
    """The margin from public attributes of the estimators, by separate arithmetic."""
    proba = np.asarray(certifier.teacher_.transform(X))
    logits = certifier.witness_scale_ * certifier.transform(X) @ certifier.vertices_.T
    witness = softmax(logits, axis=1)
    information = (proba * np.log(proba / proba.mean(axis=0))).sum(axis=1).mean()
    return information - (proba * np.log(proba / witness)).sum(axis=1).mean()


@pytest.mark.parametrize(
    "seed",
    [
        0,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_prevention_collapse_rescue(digits, seed):
    train, test = digits
    vae = CertifiedVAE(likelihood="bernoulli", max_epochs=20, random_state=seed)
    aligned = CollapseCertifier(vae).fit(train)
    assert aligned.certify(test).verdict == "certified"
    assert aligned.certify(test).relative_margin > 0.8

    certifier = CollapseCertifier(
        clone(vae).set_params(alignment_weight=0, kl_weight=8)
    )
    collapsed = certifier.fit(train).certify(test)
    assert collapsed.verdict != "certified"
    assert collapsed.margin < 0
    assert collapsed.dispersion < 0.05
    teacher, vertices = certifier.teacher_, certifier.vertices_

    certifier.set_params(warm_start=True, estimator__alignment_weight=10).fit(train)
    rescued = certifier.certify(test)
    assert rescued.verdict == "certified"
    assert rescued.relative_margin > 0.5
    assert rescued.dispersion > rescued.dispersion_bound > 0.3
    np.testing.assert_array_equal(
        certifier.teacher_.transform(test), teacher.transform(test)
    )
    np.testing.assert_array_equal(certifier.vertices_, vertices)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_score_is_the_margin_by_hand(blobs, dtype):
    X = blobs.astype(dtype)
    certifier = CollapseCertifier(quick_vae(max_epochs=3)).fit(X[:80])
    for samples in (X[:80], X[80:]):
        score = certifier.score(samples)
        assert type(score) is float
        assert score == pytest.approx(margin_by_hand(certifier, samples), abs=1e-6)
        assert score == certifier.certify(samples).margin


def test_certificate_of_the_training_samples(blobs, fitted):
    assert fitted.certificate_ == fitted.certify(blobs)
    assert fitted.certificate_.n_samples == 120
    assert fitted.certificate_.witness == "raw"


def test_score_takes_weights(blobs, fitted):
    times = np.random.default_rng(0).integers(1, 4, size=120)
    repeated = blobs.repeat(times, axis=0)
    assert fitted.score(blobs, sample_weight=times) == pytest.approx(
        fitted.score(repeated)
    )
    weighted = fitted.certify(blobs, sample_weight=times)
    assert weighted.margin == pytest.approx(fitted.certify(repeated).margin)


def test_transform_is_the_estimators(blobs, fitted):
    np.testing.assert_array_equal(
        fitted.transform(blobs), fitted.estimator_.transform(blobs)
    )
    codes = fitted.transform(blobs)
    np.testing.assert_array_equal(
        fitted.inverse_transform(codes),
        fitted.estimator_.inverse_transform(codes),
    )


@pytest.mark.slow
def test_default_estimator(digits):
    certifier = CollapseCertifier(random_state=0)
    certifier.set_params(estimator__max_epochs=1).fit(digits[0])
    assert isinstance(certifier.estimator_, CertifiedVAE)
    assert np.isfinite(certifier.score(digits[1]))


@pytest.mark.slow
def test_random_state_seeds_estimator_and_teacher(blobs):
    vae = quick_vae(random_state=None, max_epochs=2)
    scores = [
        CollapseCertifier(vae, random_state=3).fit(blobs).score(blobs) for _ in "ab"
    ]
    assert scores[0] == scores[1]
    pca = [
        CollapseCertifier(PCA(4), teacher=GMMTeacher(n_components=4), random_state=3)
        for _ in "ab"
    ]
    assert pca[0].fit(blobs).score(blobs) == pca[1].fit(blobs).score(blobs)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4, 1e-30])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_constant_encoders_are_called_constant(blobs, teacher, value, dtype):
    certifier = CollapseCertifier(Constant(value, dtype), teacher=teacher).fit(blobs)
    assert certifier.certify(blobs).verdict == "constant"
    assert certifier.score(blobs) <= certifier.certificate_.tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_vae_that_says_the_mean_teacher_is_not_certified(blobs, dtype, ordered):
    """The best constant student, inside a real network: margin 0 but for rounding."""
    vae = quick_vae(hidden_sizes=(300, 300), max_epochs=1).fit(blobs)
    X = np.concatenate([blobs] * 10).astype(dtype)
    X = X[vae.teacher_.predict(X).argsort()] if ordered else X
    proba = vae.teacher_.transform(X).astype(np.float64)
    code = analytic_code([proba.mean(axis=0)], vae.vertices_, vae.witness_scale_)[0]
    first, *_, last = [m for m in vae.net_.module_.encoder if hasattr(m, "weight")]
    with torch.no_grad():
        first.weight.zero_()
        now = vae.net_.module_.encode(torch.zeros(1, 6))[0][0]
        last.bias[:4] += torch.as_tensor(code, dtype=torch.float32) - now
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(X)
    assert abs(certifier.score(X)) < 1e-6
    assert certifier.certify(X).verdict == "constant"
    for samples in (X[:7], X[:1000]):
        assert certifier.certify(samples).verdict != "certified"


def test_foreign_encoders_get_a_witness(blobs, teacher):
    """A code that copies the teacher's analytic one is certified, PCA's is scored."""
    certifier = CollapseCertifier(PCA(4), teacher=teacher).fit(blobs)
    assert certifier.vertices_.shape == (4, 4)
    assert certifier.witness_scale_ > 0
    assert np.isfinite(certifier.score(blobs))
    assert certifier.score(blobs) == pytest.approx(margin_by_hand(certifier, blobs))
    assert certifier.inverse_transform(certifier.transform(blobs)).shape == blobs.shape


def test_supervised_encoders_get_the_labels(blobs, teacher):
    labels = np.arange(120) % 5
    certifier = CollapseCertifier(LinearDiscriminantAnalysis(), teacher=teacher)
    assert certifier.fit(blobs, labels).transform(blobs).shape == (120, 4)


def test_encoders_without_inverse_have_none(blobs, teacher):
    certifier = CollapseCertifier(Constant(), teacher=teacher).fit(blobs)
    assert not hasattr(certifier, "inverse_transform")


def test_frozen_estimators_are_not_refitted(blobs, fitted):
    vae = fitted.estimator_
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(blobs[:60])
    np.testing.assert_array_equal(certifier.transform(blobs), vae.transform(blobs))
    np.testing.assert_array_equal(
        certifier.teacher_.transform(blobs), vae.teacher_.transform(blobs)
    )
    assert certifier.witness_scale_ == vae.witness_scale_


def test_anything_with_transform_will_do(blobs, teacher):
    class Plain:
        def transform(self, X):
            return np.asarray(X)[:, :4]

    certifier = CollapseCertifier(Plain(), teacher=teacher).fit(blobs)
    assert certifier.transform(blobs).shape == (120, 4)
    assert np.isfinite(certifier.score(blobs))


def test_in_a_pipeline_inside_the_certifier(blobs, teacher):
    pipeline = make_pipeline(MinMaxScaler(), PCA(4))
    certifier = CollapseCertifier(pipeline, teacher=teacher).fit(blobs)
    assert np.isfinite(certifier.score(blobs))


@pytest.mark.slow
def test_pipeline_search_cross_validation(blobs):
    certifier = CollapseCertifier(quick_vae(max_epochs=10))
    pipeline = make_pipeline(MinMaxScaler(), certifier)
    assert len(cross_val_score(pipeline, blobs, cv=3)) == 3
    grid = {"collapsecertifier__estimator__alignment_weight": [0, 1, 10]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(blobs)
    assert search.cv_results_["mean_test_score"].argmin() == 0


@pytest.mark.slow
def test_search_over_a_default_certifier(digits):
    X = digits[0][:200]
    pipeline = make_pipeline(MinMaxScaler(), CollapseCertifier(random_state=0))
    grid = {
        "collapsecertifier__estimator__alignment_weight": [0, 10],
        "collapsecertifier__estimator__max_epochs": [2],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(X)
    assert search.best_params_["collapsecertifier__estimator__alignment_weight"] == 10


def test_clone_and_pickle(blobs, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert again.certify(blobs) == fitted.certify(blobs)
    assert not hasattr(clone(fitted), "estimator_")


@pytest.mark.parametrize("library", [pd, pl])
def test_frames(blobs, library):
    certifier = CollapseCertifier(quick_vae(max_epochs=2))
    X = library.DataFrame({name: blobs[:, i] for i, name in enumerate("abcdef")})
    certifier.set_output(transform=library.__name__)
    codes = certifier.fit(X).transform(X)
    assert isinstance(codes, library.DataFrame)
    assert list(codes.columns) == [f"collapsecertifier{i}" for i in range(4)]
    score = certifier.score(X)
    assert list(certifier.feature_names_in_) == list("abcdef")
    with sklearn.config_context(transform_output=library.__name__):
        assert certifier.score(X) == score


@pytest.mark.slow
def test_teacher_proba_by_routing_is_cut_with_the_folds(blobs, teacher):
    proba = teacher.fit_transform(blobs)
    with sklearn.config_context(enable_metadata_routing=True):
        certifier = CollapseCertifier(quick_vae(max_epochs=3))
        certifier.set_fit_request(teacher_proba=True)
        certifier.set_score_request(teacher_proba=True, sample_weight=True)
        grid = {"estimator__alignment_weight": [0, 10]}
        search = GridSearchCV(certifier, grid, cv=3, error_score="raise")
        search.fit(blobs, teacher_proba=proba, sample_weight=np.ones(120))
    best = search.best_estimator_
    assert best.teacher_ is None
    assert best.score(blobs, teacher_proba=proba) == best.certificate_.margin
    assert best.certify(blobs, teacher_proba=proba) == best.certificate_
    with pytest.raises(
        ValueError, match="teacher_proba must be given for these samples"
    ):
        best.score(blobs)


def test_teacher_proba_with_a_foreign_encoder(blobs, teacher):
    proba = teacher.fit_transform(blobs)
    certifier = CollapseCertifier(PCA(4)).fit(blobs, teacher_proba=proba)
    assert certifier.teacher_ is None
    assert np.isfinite(certifier.score(blobs, teacher_proba=proba))


@pytest.mark.slow
def test_mean_teacher_is_that_of_the_scored_samples(blobs):
    """A collapsed VAE stays below 0 on any samples, also on those of one cluster."""
    vae = quick_vae(alignment_weight=0, kl_weight=1000)
    certifier = CollapseCertifier(vae).fit(blobs)
    clusters = certifier.teacher_.predict(blobs)
    for cluster in range(4):
        assert certifier.score(blobs[clusters == cluster]) < 1e-3
        assert certifier.certify(blobs[clusters == cluster]).verdict != "certified"


def test_one_sample_is_never_certified(blobs, fitted):
    assert fitted.score(blobs[:1]) <= 0
    assert fitted.certify(blobs[:1]).verdict != "certified"


def test_safety_margin(blobs, certifier):
    margin = certifier.score(blobs)
    certifier.set_params(safety_margin=0.9 * margin)
    assert certifier.certify(blobs).verdict == "certified"
    certifier.set_params(safety_margin=1.1 * margin)
    assert certifier.certify(blobs).verdict == "varies"
    assert certifier.score(blobs) == margin


def test_drawn_codes_are_not_certified(blobs, fitted):
    """Codes drawn at random differ from call to call; so may a good mean's."""
    noisy = make_pipeline(
        FrozenEstimator(fitted.estimator_),
        FunctionTransformer(lambda Z: Z + np.random.default_rng().normal(size=Z.shape)),
    )
    foreign = CollapseCertifier(noisy, teacher=FrozenEstimator(fitted.teacher_))
    with pytest.warns(UnstableEncoderWarning, match="evaluation mode"):
        foreign.fit(blobs)
    assert foreign.certificate_.verdict != "certified"


def test_codes_that_depend_on_their_batch_are_not_certified(blobs, teacher):
    with pytest.warns(UnstableEncoderWarning):
        certifier = CollapseCertifier(Crowded(), teacher=teacher).fit(
            np.tile(blobs, (3, 1))
        )
    assert certifier.certificate_.verdict != "certified"


@pytest.mark.parametrize("n", [50, 120, 1200])
def test_batch_normalization_left_in_training_mode(blobs, teacher, n):
    """Samples of a batch affect each other; encoding them again detects it."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).train()

    def encode(X):
        with torch.no_grad():
            return net(torch.as_tensor(X, dtype=torch.float32)).numpy()

    X = np.concatenate([blobs[blobs[:, 0].argsort()]] * 10)[:n]
    with pytest.warns(UnstableEncoderWarning):
        CollapseCertifier(FunctionTransformer(encode), teacher=teacher).fit(X)


class Position(TransformerMixin, BaseEstimator):
    """Encodes only the position of a sample, counted from the nearer end."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        place = np.minimum(np.arange(len(X)), np.arange(len(X))[::-1])
        return np.where(place < 64, -1.0, 1.0)[:, None] * [[1.0, 0.0, 0.0, 0.0]]


class Blocks(Position):
    """Gives every sample of a block of 32 the average of the block."""

    def transform(self, X):
        blocks = np.arange(len(X)) // 32
        return np.stack([X[blocks == b, :4].mean(axis=0) for b in blocks])


@pytest.mark.parametrize("encoder", [Position(), Blocks()])
def test_codes_of_the_position_are_not_certified(blobs, encoder):
    order = blobs[:, 0].argsort()
    X = np.concatenate([blobs[order], blobs[order][::-1]])
    teacher = GMMTeacher(2, covariance_type="full", random_state=0)
    certifier = CollapseCertifier(encoder, teacher=teacher)
    with pytest.warns(UnstableEncoderWarning):
        assert certifier.fit(X).certificate_.verdict != "certified"


def test_a_code_of_the_position_of_two_samples_is_not_certified(blobs, teacher):
    X = blobs[[blobs[:, 0].argmin(), blobs[:, 0].argmax()]]
    proba = teacher.fit(blobs).transform(X)

    class TwoPlaces(Position):
        def transform(self, X):
            scale = prior_matched_scale(proba)
            code = analytic_code(proba, simplex_vertices(4, 4), scale)
            return np.resize(code, (len(X), 4))

    certifier = CollapseCertifier(TwoPlaces())
    with pytest.warns(UnstableEncoderWarning):
        certifier.fit(X, teacher_proba=proba)
    assert certifier.certificate_.verdict != "certified"


def test_the_repetition_costs_a_healthy_encoder_nothing(blobs, fitted):
    certificate = fitted.certificate_
    alone = certify(
        fitted.teacher_.transform(blobs),
        fitted.transform(blobs),
        fitted.vertices_,
        fitted.witness_scale_,
    )
    assert certificate.tolerance == alone.tolerance
    assert certificate.margin == pytest.approx(alone.margin, rel=1e-14)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda X: X[:, 0], r"latent_dim\) with finite values, got shape \(120,\)"),
        (lambda X: sparse.csr_array(X), r"transform must .* got csr_array"),
        (lambda X: X * np.nan, "got NaN or infinity"),
    ],
)
def test_codes_that_are_no_codes(blobs, teacher, transform, message):
    certifier = CollapseCertifier(FunctionTransformer(transform), teacher=teacher)
    with pytest.raises(ValueError, match=message):
        certifier.fit(blobs)


def test_a_vae_inside_a_pipeline_is_refused(teacher):
    pipeline = make_pipeline(MinMaxScaler(), quick_vae())
    with pytest.raises(ValueError, match=r"Put the certifier last: make_pipeline\("):
        CollapseCertifier(pipeline, teacher=teacher).fit(np.zeros((3, 3)))


def test_a_vae_inside_a_frozen_pipeline_or_a_search_is_refused(blobs):
    pipeline = make_pipeline(MinMaxScaler(), quick_vae(max_epochs=1))
    search = GridSearchCV(pipeline, {"certifiedvae__kl_weight": [1]})
    for estimator in (FrozenEstimator(pipeline.fit(blobs)), search):
        with pytest.raises(ValueError, match="Put the certifier last"):
            CollapseCertifier(estimator).fit(blobs)
    inside = CollapseCertifier(GridSearchCV(quick_vae(), {"kl_weight": [1]}))
    with pytest.raises(ValueError, match="Put the certifier inside the search"):
        inside.fit(blobs, teacher_proba=np.full((120, 4), 0.25))


def test_uniform_posteriors_are_refused_by_name(blobs):
    with pytest.raises(ValueError, match="all its posteriors are uniform"):
        CollapseCertifier(PCA(4)).fit(blobs, teacher_proba=np.full((120, 4), 0.25))


def test_a_teacher_whose_fit_returns_nothing(blobs):
    class Silent(GMMTeacher):
        def __init__(self, n_components=4):
            super().__init__(n_components, random_state=0)

        def fit(self, X, y=None):
            super().fit(X)

    assert CollapseCertifier(PCA(4), teacher=Silent()).fit(blobs).teacher_ is not None
    vae = quick_vae(max_epochs=1).set_params(teacher=Silent())
    assert vae.fit(blobs).teacher_ is not None


@pytest.mark.slow
def test_a_search_inside_the_certifier(blobs):
    vae = quick_vae(max_epochs=15)
    search = GridSearchCV(vae, {"alignment_weight": [1, 10]}, cv=2)
    certifier = CollapseCertifier(search).fit(blobs)
    best = certifier.estimator_.best_estimator_
    assert certifier.vertices_ is best.vertices_
    assert certifier.teacher_ is best.teacher_
    assert certifier.certificate_.verdict == "certified"


@pytest.mark.slow
def test_teacher_for_a_vae_that_was_fitted_without(blobs, teacher):
    vae = quick_vae().fit(blobs, teacher_proba=teacher.fit_transform(blobs))
    certifier = CollapseCertifier(FrozenEstimator(vae), teacher=teacher).fit(blobs)
    assert certifier.score(blobs) > 0.5
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        CollapseCertifier(FrozenEstimator(vae)).fit(blobs)


def test_breakdown_of_a_first_fit_is_certified_as_far_as_it_came(blobs):
    class Overflow(torch.nn.Linear):
        left = 10

        def forward(self, x):
            self.left -= self.training
            broken = self.training and self.left < 0
            return super().forward(x) * (torch.inf if broken else 1)

    certifier = CollapseCertifier(quick_vae(encoder=Overflow(6, 8)))
    with pytest.raises(NonFiniteLossError):
        certifier.fit(blobs)
    assert len(certifier.estimator_.history_) == 2
    assert certifier.certificate_ == certifier.certify(blobs)


def test_warm_start_keeps_the_certifiers_own_teacher(blobs, teacher):
    class Warm(PCA):
        def __init__(self, n_components=4, warm_start=False):
            super().__init__(n_components)
            self.warm_start = warm_start

    certifier = CollapseCertifier(Warm(), teacher=teacher, warm_start=True).fit(blobs)
    kept = certifier.teacher_
    assert certifier.fit(blobs).teacher_ is kept
    with pytest.raises(ValueError, match="teacher__n_components must stay"):
        certifier.set_params(teacher__n_components=3).fit(blobs)
    with pytest.raises(ValueError, match="teacher_proba must be left out"):
        certifier.fit(blobs, teacher_proba=np.full((120, 4), 0.25))


def test_warm_start_leaves_the_earlier_fit_when_it_fails(blobs, certifier):
    before = certifier.certify(blobs), certifier.estimator_.get_params()["latent_dim"]
    certifier.set_params(warm_start=True, estimator__latent_dim=9)
    with pytest.raises(ValueError, match="latent_dim must stay"):
        certifier.fit(blobs)
    assert certifier.certify(blobs) == before[0]
    assert certifier.estimator_.get_params()["latent_dim"] == before[1]
    certifier.set_params(estimator__latent_dim=4, estimator__max_epochs=2)
    assert len(certifier.fit(blobs).estimator_.history_) == 32


def test_breakdown_leaves_the_earlier_fit(blobs, certifier):
    before = certifier.certify(blobs)
    certifier.set_params(warm_start=True, estimator__learning_rate=1e30)
    with pytest.raises(NonFiniteLossError):
        certifier.fit(blobs)
    assert certifier.certify(blobs) == before
    assert len(certifier.estimator_.history_) == 30


def test_warm_start_with_random_state(blobs):
    vae = quick_vae(random_state=None, max_epochs=2)
    certifier = CollapseCertifier(vae, warm_start=True, random_state=0).fit(blobs)
    assert len(certifier.fit(blobs).estimator_.history_) == 4


def test_warm_start_needs_an_estimator_that_has_it(blobs, teacher):
    certifier = CollapseCertifier(PCA(4), teacher=teacher, warm_start=True).fit(blobs)
    with pytest.raises(ValueError, match=r"parameter warm_start, got PCA"):
        certifier.fit(blobs)


def test_warm_start_of_an_encoder_without_parameters(blobs, teacher):
    certifier = CollapseCertifier(Crowded(), teacher=teacher, warm_start=True).fit(
        blobs
    )
    with pytest.raises(ValueError, match=r"parameter warm_start, got Crowded"):
        certifier.fit(blobs)


def test_narrow_codes_are_refused(blobs, teacher):
    with pytest.raises(ValueError, match=r"latent_dim must be at least .* = 3.*got 2"):
        CollapseCertifier(PCA(2), teacher=teacher).fit(blobs)


@pytest.mark.parametrize(
    "params",
    [
        {"witness": "quadratic"},
        {"safety_margin": -1.0},
        {"estimator": 3},
        {"teacher": "gmm"},
        {"warm_start": "yes"},
    ],
)
def test_bad_parameters(blobs, params):
    (name, value), *_ = params.items()
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        CollapseCertifier(**params).fit(blobs)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"sample_weight": [1.0]}, "sample_weight .* each of the 120 samples, got 1"),
        (
            {"sample_weight": -np.ones(120)},
            "sample_weight must be finite and not negative",
        ),
        ({"teacher_proba": np.full((120, 4), 0.3)}, "sum to 1"),
        ({"teacher_proba": np.eye(4)[np.zeros(120, dtype=int)]}, "full support"),
        ({"teacher_proba": np.full((7, 4), 0.25)}, "each of the 120 samples, got 7"),
        ({"teacher_proba": np.full((120, 3), 1 / 3)}, "shape"),
    ],
)
def test_bad_metadata(blobs, fitted, metadata, message):
    for method in (fitted.score, fitted.certify):
        with pytest.raises(ValueError, match=message):
            method(blobs, **metadata)


@pytest.mark.parametrize(
    "method", ["transform", "score", "certify", "inverse_transform"]
)
def test_unfitted(blobs, method):
    with pytest.raises(ValueError, match="not fitted yet"):
        getattr(CollapseCertifier(), method)(blobs)


def test_bad_data(bad_data):
    X, message = bad_data
    certifier = CollapseCertifier(quick_vae())
    with pytest.raises((ValueError, TypeError), match=message):
        certifier.fit(X)
    assert not hasattr(certifier, "estimator_")


def test_wrong_number_of_features(blobs, fitted):
    with pytest.raises(ValueError, match="X has 5 features"):
        fitted.score(blobs[:, :5])


def test_html(blobs, fitted):
    assert "CollapseCertifier" in fitted._repr_html_()
    assert "CertifiedVAE" in fitted._repr_html_()


class ConstantModule(nn.Module):
    """Learns one code for all samples."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.code = nn.Parameter(torch.randn(2 * latent_dim))

    def forward(self, x):
        return self.code.expand(len(x), -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"alignment_weight": "auto"},
        {"prefit": "analytic"},
        {"validation_fraction": 0.25},
        {"autocast": True},
        {"torch_compile": "eager"},
        {"objective": BatchNormVAE()},
        {"objective": DeltaVAE()},
        {"objective": SigmaVAE()},
        {"objective": MuForcing()},
        {"decoder": "conv", "image_shape": (1, 5, 5)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UnreachedMarginWarning")
@pytest.mark.parametrize("kind", ["floats", "bytes", "stream"])
def test_no_variant_of_training_certifies_a_constant(params, kind):
    rng = np.random.default_rng(0)
    centers = rng.integers(0, 200, size=(4, 25))
    X = (centers[rng.integers(4, size=100)] + rng.integers(0, 50, size=(100, 25))) * 1.0
    samples = {
        "floats": X,
        "bytes": X.astype(np.uint8),
        "stream": DatasetSamples(TensorDataset(torch.from_numpy(X))),
    }[kind]
    settings = {"max_epochs": 4, "latent_dim": 4, "device": "cpu", "random_state": 0}
    teacher = GMMTeacher(4, covariance_type="spherical")
    vae = CertifiedVAE(teacher, encoder=ConstantModule, **settings | params)
    certifier = CollapseCertifier(vae).fit(samples)
    assert certifier.certificate_.verdict == "constant"
    assert certifier.score(samples) <= certifier.certificate_.tolerance
    # The twin: the same with an encoder that looks at its input.
    if not params:
        vae = CertifiedVAE(teacher, **settings | {"max_epochs": 40})
        assert CollapseCertifier(vae).fit(samples).certificate_.verdict == "certified"


def test_many_samples_are_read_in_pieces(blobs, certifier, monkeypatch, tmp_path):
    weight = np.random.default_rng(0).uniform(size=len(blobs))
    whole = certifier.certify(blobs, sample_weight=weight)
    np.save(tmp_path / "X.npy", blobs)
    on_disk = np.load(tmp_path / "X.npy", mmap_mode="r")
    batches = certifier.certify_batches(iter(np.array_split(blobs, 3)))
    assert batches.margin == pytest.approx(certifier.score(blobs), rel=1e-12)
    seen = []
    encode = type(certifier.estimator_).transform
    monkeypatch.setattr("skvaecert._samples._MOST_SAMPLES", 50)
    monkeypatch.setattr(
        type(certifier.estimator_),
        "transform",
        lambda self, X: seen.append(len(X)) or encode(self, X),
    )
    parts = certifier.certify(on_disk, sample_weight=weight)
    assert max(seen) == 50
    assert parts.margin == pytest.approx(whole.margin, rel=1e-12)
    assert parts.tolerance == pytest.approx(whole.tolerance, rel=1e-6)
    score = certifier.score(on_disk, sample_weight=weight)
    assert score == parts.margin
    proba = certifier.teacher_.transform(blobs)
    again = certifier.certify(blobs, teacher_proba=proba, sample_weight=weight)
    assert again.margin == pytest.approx(whole.margin, rel=1e-12)
    for wrong in ({"sample_weight": weight[:60]}, {"teacher_proba": proba[:60]}):
        with pytest.raises(ValueError, match="60"):
            certifier.certify(blobs, **wrong)


def test_an_encoder_that_is_constant_in_each_piece_is_not_certified(teacher):
    """Its output depends on the samples of a batch, which are sorted here."""
    X = np.sort(np.random.default_rng(0).normal(size=(900, 6)), axis=0)

    def batch_mean(X):
        return np.tile(X.mean(axis=0), (len(X), 1))

    certifier = CollapseCertifier(FunctionTransformer(batch_mean), teacher=teacher)
    with pytest.warns(UnstableEncoderWarning):
        certifier.fit(X)
    with pytest.warns(UnstableEncoderWarning):
        certificate = certifier.certify_batches(np.array_split(X, 9))
    assert certificate.margin > 0
    assert certificate.verdict != "certified"


@pytest.mark.parametrize("witness", ["procrustes", "linear"])
def test_a_refit_without_the_simplex_forgets_it(blobs, teacher, witness):
    certifier = CollapseCertifier(PCA(4), teacher=teacher).fit(blobs)
    assert certifier.vertices_.shape == (4, 4)
    certifier.set_params(witness=witness, teacher__n_components=3).fit(blobs)
    assert not hasattr(certifier, "vertices_")
    assert not hasattr(certifier, "witness_scale_")
