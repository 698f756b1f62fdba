import copy
import pickle
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import Callback

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert import _together as together
from skvaecert import _vae as vae_module
from skvaecert._training.joint import train_together
from skvaecert.bounds import bernstein_bound, betting_bound
from skvaecert.callbacks import HistoryMonitor
from skvaecert.exceptions import (
    NonFiniteLossError,
    NotCertifiedError,
    NotCertifiedWarning,
)
from skvaecert.model_selection import (
    LOWEST_SCORE,
    BatchedGridSearchCV,
    CertificationGate,
    best_certified,
    certificate_scorers,
    certified_scorer,
    elbo_scorer,
    fit_together,
    lower_bound_scorer,
    margin_scorer,
    reconstruction_scorer,
    relative_margin_scorer,
    require_certified,
    sampled_information_scorer,
    smallest_certifying_weight,
)

GRID = {
    "alignment_weight": [0.0, 5.0],
    "kl_weight": [1.0, 4.0],
    "random_state": [0, 1],
}


def inside(grid, prefix="estimator__"):
    return {prefix + name: values for name, values in grid.items()}


@pytest.fixture
def vae(small_vae):
    return small_vae.set_params(max_epochs=4)


@pytest.fixture
def stacks(monkeypatch):
    """Sizes of the stacks that were trained."""
    sizes = []

    def counted(fits):
        sizes.append(len(fits))
        return train_together(fits)

    monkeypatch.setattr(together, "train_together", counted)
    return sizes


def assert_same_results(search, other, times=("fit_time", "score_time")):
    ours, theirs = search.cv_results_, other.cv_results_
    assert ours.keys() == theirs.keys()
    for key in theirs:
        if not key.endswith(times):
            assert_same_column(key, ours[key], theirs[key])
    assert search.best_params_ == other.best_params_
    assert search.best_index_ == other.best_index_
    assert search.n_splits_ == other.n_splits_
    assert search.multimetric_ == other.multimetric_


def assert_same_column(key, ours, theirs):
    assert type(ours) is type(theirs)
    if key.startswith(("split", "mean", "std")):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=key)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=key)


def both(estimator, grid, X, fit_params=None, **settings):
    kwargs = {"cv": 3} | settings
    return [
        kind(clone(estimator), grid, **kwargs).fit(X, **fit_params or {})
        for kind in (BatchedGridSearchCV, GridSearchCV)
    ]


def test_results_are_those_of_a_grid_search(vae, blobs, stacks):
    search, other = both(vae, GRID, blobs, return_train_score=True)
    assert stacks == [24]
    assert_same_results(search, other)
    assert search.best_score_ == pytest.approx(other.best_score_, rel=1e-5)
    np.testing.assert_allclose(search.transform(blobs), other.transform(blobs))
    assert search.score(blobs) == other.score(blobs)
    assert (search.cv_results_["mean_fit_time"] > 0).all()


def test_bernoulli_likelihood(vae, blobs, stacks):
    X = 1 / (1 + np.exp(-blobs))
    assert_same_results(*both(vae.set_params(likelihood="bernoulli"), GRID, X))
    assert stacks == [24]


def test_certifier(vae, blobs, stacks):
    search, other = both(CollapseCertifier(vae), inside(GRID), blobs)
    assert stacks == [24]
    assert_same_results(search, other)
    assert len(set(search.cv_results_["mean_test_score"])) == 8


def test_pipeline(vae, blobs, stacks):
    steps = StandardScaler(), PCA(4, random_state=0), CollapseCertifier(vae)
    grid = inside(GRID, "collapsecertifier__estimator__")
    assert_same_results(*both(make_pipeline(*steps), grid, blobs))
    assert stacks == [24]


def test_default_estimator_and_certifiers_seed(blobs, stacks):
    grid = {
        "random_state": [0, 1],
        "estimator__hidden_sizes": [(8,), (8, 8)],
        "estimator__max_epochs": [2],
        "estimator__device": ["cpu"],
        "estimator__teacher__n_components": [4],
    }
    assert_same_results(*both(CollapseCertifier(), grid, blobs))
    # Two architectures.
    assert stacks == [6, 6]


def test_several_scores_and_a_list_of_grids(vae, blobs, stacks):
    grids = [{"alignment_weight": [1.0, 5.0]}, {"learning_rate": [1e-2, 1e-3]}]
    scoring = {"margin": last_margin, "bound": lambda vae, X, y=None: vae.score(X)}
    search, other = both(vae, grids, blobs, scoring=scoring, refit="margin")
    assert_same_results(search, other)
    assert stacks == [9, 3]


def last_margin(vae, X, y=None):
    return vae.history_[-1]["margin"]


def test_folds_of_unequal_size_are_two_stacks(vae, blobs, stacks):
    assert_same_results(*both(vae, GRID, blobs[:119], cv=3))
    assert sorted(stacks) == [8, 16]


def test_folds_are_drawn_once(vae, blobs, stacks):
    cv = KFold(3, shuffle=True, random_state=np.random.RandomState(0))
    search = BatchedGridSearchCV(vae, GRID, cv=copy.deepcopy(cv)).fit(blobs)
    other = GridSearchCV(vae, GRID, cv=cv).fit(blobs)
    assert stacks == [24]
    assert_same_results(search, other)


def test_without_a_seed_the_draws_are_those_of_a_grid_search(vae, blobs, stacks):
    vae.set_params(random_state=None)
    searches = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        np.random.seed(0)  # noqa: NPY002
        searches.append(kind(vae, {"kl_weight": [1.0, 4.0]}, cv=3).fit(blobs))
    assert stacks == [6]
    assert_same_results(*searches)


def test_posteriors_given_are_split_like_the_rows(vae, blobs, stacks):
    proba = GMMTeacher(n_components=4, random_state=0).fit(blobs).predict_proba(blobs)
    params = {"teacher_proba": proba}
    assert_same_results(*both(vae, GRID, blobs, params))
    assert stacks == [24]


def test_metadata_routing(vae, blobs, stacks):
    proba = GMMTeacher(n_components=4, random_state=0).fit(blobs).predict_proba(blobs)
    with sklearn.config_context(enable_metadata_routing=True):
        vae.set_fit_request(teacher_proba=True)
        assert_same_results(*both(vae, GRID, blobs, {"teacher_proba": proba}))
    assert stacks == [24]


def test_rows_in_a_frame_keep_their_names(vae, blobs, stacks):
    X = pd.DataFrame(blobs, columns=list("abcdef"))
    search, other = both(CollapseCertifier(vae), inside(GRID), X)
    assert_same_results(search, other)
    assert stacks == [24]
    assert search.feature_names_in_.tolist() == list("abcdef")


@pytest.mark.parametrize("grid", [GRID, {"teacher__n_components": [3, 4]}], ids=str)
def test_every_teacher_is_fitted_once(grid, vae, blobs, monkeypatch):
    fits = []
    fit = GMMTeacher.fit

    def counted(self, X, y=None):
        fits.append(self.n_components)
        return fit(self, X, y)

    monkeypatch.setattr(GMMTeacher, "fit", counted)
    vae.teacher.set_params(random_state=0)
    n_teachers = len(grid.get("teacher__n_components", [4]))
    BatchedGridSearchCV(vae, grid, cv=3, refit=False).fit(blobs)
    assert len(fits) == 3 * n_teachers
    vae.fit(blobs)
    assert len(fits) == 3 * n_teachers + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"verbose": 1},
        {"encoder": torch.nn.Linear(6, 8)},
        {"encoder": torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh())},
        {"hidden_sizes": (512, 512), "batch_size": 2048, "max_epochs": 1},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_others_are_fitted_one_after_another(settings, vae, blobs, stacks):
    vae.set_params(**settings)
    search, other = both(vae, {"kl_weight": [1.0, 4.0]}, blobs)
    assert stacks == []
    assert_same_results(search, other)
    scores = (s.cv_results_["mean_test_score"] for s in (search, other))
    np.testing.assert_array_equal(*scores)


def test_what_trains_no_net_is_fitted_once(blobs, monkeypatch, vae):
    fits = []
    fit = PCA.fit

    def counted(self, X, y=None):
        fits.append(len(X))
        return fit(self, X, y)

    monkeypatch.setattr(PCA, "fit", counted)
    BatchedGridSearchCV(PCA(), {"n_components": [1, 2]}, cv=3).fit(blobs)
    assert fits == [80] * 6 + [120]
    frozen = CollapseCertifier(FrozenEstimator(vae.fit(blobs)))
    grid = {"safety_margin": [0.0, 1.0]}
    BatchedGridSearchCV(frozen, grid, cv=3).fit(blobs)


def break_down(monkeypatch):
    """Let the loss be infinite where kl_weight is 4."""
    record_losses = vae_module.train.__globals__["VAENet"].record_losses

    def broken(net, sizes, values):
        if net.criterion_.kl_weight == 4:
            raise NonFiniteLossError("broken")
        record_losses(net, sizes, values)

    monkeypatch.setattr("skvaecert._training.VAENet.record_losses", broken)


def test_failed_fits_have_the_error_score(vae, blobs, stacks, monkeypatch):
    break_down(monkeypatch)
    search = BatchedGridSearchCV(vae, GRID, cv=3, refit=False, error_score=-1.0)
    with pytest.warns(FitFailedWarning, match="12 fits failed out of a total of 24"):
        search.fit(blobs)
    assert stacks == [24]
    failed = np.array([p["kl_weight"] == 4 for p in search.cv_results_["params"]])
    assert (search.cv_results_["mean_test_score"][failed] == -1).all()
    assert (search.cv_results_["mean_test_score"][~failed] != -1).all()


def test_failed_fits_raise_if_asked(vae, blobs, monkeypatch):
    break_down(monkeypatch)
    with pytest.raises(NonFiniteLossError, match="broken"):
        BatchedGridSearchCV(vae, GRID, cv=3, error_score="raise").fit(blobs)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_invalid_candidates_have_the_error_score(vae, blobs, stacks):
    search = BatchedGridSearchCV(vae, {"kl_weight": [1.0, -1.0, 2.0]}, cv=3)
    with pytest.warns(FitFailedWarning, match="3 fits failed"):
        search.fit(blobs)
    assert stacks == [6]
    np.testing.assert_array_equal(
        np.isnan(search.cv_results_["mean_test_score"]), [False, True, False]
    )


def test_ctrl_c_ends_the_search(vae, blobs, monkeypatch):
    def interrupted(fits):
        raise KeyboardInterrupt

    monkeypatch.setattr(together, "train_together", interrupted)
    search = BatchedGridSearchCV(vae, GRID, cv=3)
    with pytest.raises(KeyboardInterrupt):
        search.fit(blobs)
    assert not hasattr(search, "cv_results_")
    # Nothing of the search stands in for later trainings.
    assert vae.fit(blobs).n_iter_ == 4


def test_search_is_an_estimator_like_others(vae, blobs):
    search = BatchedGridSearchCV(vae, GRID, cv=3, error_score="raise")
    params = search.get_params(deep=False)
    assert "n_jobs" not in params
    assert set(params) == set(BatchedGridSearchCV.__init__.__kwdefaults__) | {
        "estimator",
        "param_grid",
    }
    copied = clone(search).set_params(estimator__max_epochs=2)
    assert copied.estimator.max_epochs == 2
    copied.fit(blobs)
    again = pickle.loads(pickle.dumps(copied))
    np.testing.assert_array_equal(again.transform(blobs), copied.transform(blobs))
    assert copied.n_features_in_ == 6
    assert set(vars(search)) == set(vars(clone(search)))


def seeds(vae, n=3):
    return [clone(vae).set_params(random_state=s) for s in range(n)]


def test_fitting_together_is_fitting_each(vae, blobs, stacks):
    joined, alone = seeds(vae), seeds(vae)
    assert fit_together(joined, blobs) is None
    assert stacks == [3]
    for a, b in zip(joined, alone, strict=True):
        b.fit(blobs)
        assert set(vars(a)) == set(vars(b))
        np.testing.assert_allclose(
            a.transform(blobs), b.transform(blobs), rtol=1e-4, atol=1e-5
        )
        assert a.n_iter_ == b.n_iter_
        for x, y in zip(a.history_, b.history_, strict=True):
            x, y = ({**row, "seconds": 0} for row in (x, y))
            assert x == pytest.approx(y, rel=1e-5, abs=1e-6)


def test_fitted_together_can_go_on(vae, blobs):
    joined, alone = seeds(vae, 2), seeds(vae, 2)
    fit_together(joined, blobs)
    for a, b in zip(joined, alone, strict=True):
        a.set_params(warm_start=True).fit(blobs)
        b.set_params(warm_start=True).fit(blobs).fit(blobs)
        margins = [e.history_[-1]["margin"] for e in (a, b)]
        assert margins[0] == pytest.approx(margins[1], rel=1e-5)


def test_warm_starts_and_generators_are_fitted_in_turn(vae, blobs):
    def made():
        generator = np.random.RandomState(0)
        warm = clone(vae).set_params(warm_start=True).fit(blobs)
        return [warm, *(clone(vae) for _ in range(2))], generator

    (joined, one), (alone, other) = made(), made()
    for estimators, generator in ((joined, one), (alone, other)):
        for estimator in estimators[1:]:
            estimator.random_state = generator
    fit_together(joined, blobs)
    for a, b in zip(joined, alone, strict=True):
        b.fit(blobs)
        np.testing.assert_allclose(
            a.transform(blobs), b.transform(blobs), rtol=1e-4, atol=1e-5
        )
    assert len(joined[0].history_) == 8


def test_the_first_error_comes_after_all_are_fitted(vae, blobs, monkeypatch):
    break_down(monkeypatch)
    estimators = seeds(vae)
    estimators[1].kl_weight = 4.0
    with pytest.raises(NonFiniteLossError, match="broken"):
        fit_together(estimators, blobs)
    assert [hasattr(e, "net_") for e in estimators] == [True, False, True]


class Locked(Callback):
    """Cannot be copied."""

    def __init__(self):
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_fitted_in_turn(vae, blobs, stacks):
    estimators = seeds(vae, 2)
    for estimator in estimators:
        estimator.callbacks = [Locked()]
    fit_together(estimators, blobs)
    assert stacks == []
    assert [estimator.n_iter_ for estimator in estimators] == [4, 4]


def test_one_estimator_twice_is_an_error(vae, blobs):
    with pytest.raises(ValueError, match="estimators must be different objects"):
        fit_together([vae, vae], blobs)


def test_teachers_are_not_shared_by_fitted_estimators(vae, blobs):
    vae.teacher.set_params(random_state=0)
    first, second = estimators = seeds(vae, 2)
    fit_together(estimators, blobs)
    assert first.teacher_ is not second.teacher_


def test_unseeded_teachers_differ(vae, blobs):
    vae.set_params(random_state=None, teacher=Random())
    first, second = estimators = clone(vae), clone(vae)
    fit_together(estimators, blobs)
    assert first.teacher_.draw_ != second.teacher_.draw_


class Random(GMMTeacher):
    """Draws from NumPy's generator."""

    def __init__(self):
        super().__init__(n_components=4)

    def fit(self, X, y=None):
        self.draw_ = np.random.rand()  # noqa: NPY002
        return super().fit(X, y)


needs_callbacks = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="scikit-learn before 1.9 has no callbacks",
)


@needs_callbacks
def test_fits_that_callbacks_watch_are_fitted_in_turn(vae, blobs, stacks):
    logs = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        monitor = HistoryMonitor()
        search = kind(clone(vae), {"kl_weight": [1.0, 4.0]}, cv=3)
        search.set_callbacks(monitor).fit(blobs)
        logs.append([row["margin"] for row in monitor.get_logs().data])
    assert stacks == []
    assert len(logs[0]) == (2 * 3 + 1) * 4
    np.testing.assert_allclose(*logs)


class FirstEpoch:
    """Ends a fit after one epoch and counts what it is told."""

    told = ()

    def setup(self, estimator, context):
        self.told = (*self.told, "setup")

    def teardown(self, estimator, context):
        self.told = (*self.told, "teardown")

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        return fitted_estimator is not None


@needs_callbacks
def test_callbacks_may_end_fits_that_are_fitted_together(vae, blobs, stacks):
    vaes = seeds(vae, 2)
    watch = FirstEpoch()
    vaes[0].set_callbacks(watch)
    fit_together([*vaes, *seeds(vae, 2)], blobs)
    assert stacks == [2]
    assert [one.n_iter_ for one in vaes] == [1, 4]
    assert watch.told == ("setup", "teardown")


def test_folds_given_by_a_generator(vae, blobs, stacks):
    results = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        search = kind(clone(vae), {"kl_weight": [1.0, 4.0]}, cv=KFold(3).split(blobs))
        results.append(search.fit(blobs))
    assert stacks == [6]
    assert_same_results(*results)


class TorchTeacher(GMMTeacher):
    """Draws from torch's generator, and has no seed to show for it."""

    def fit(self, X, y=None):
        self.random_state = int(torch.randint(1000, ()))
        return super().fit(X)


def test_teachers_that_draw_from_torch_are_not_shared(vae, blobs):
    scores, draws = [], []
    grid = {"kl_weight": [1.0, 1.5]}
    teacher = TorchTeacher(4, covariance_type="full", temperature=2.0)
    for kind in (BatchedGridSearchCV, GridSearchCV):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            search = kind(clone(vae).set_params(teacher=teacher), grid, cv=2).fit(blobs)
            scores.append(search.cv_results_["mean_test_score"])
            draws.append(torch.rand(()).item())
    np.testing.assert_allclose(*scores, rtol=1e-5)
    assert draws[0] == draws[1]


SCORERS = {
    "certified": certified_scorer,
    "margin": margin_scorer,
    "relative_margin": relative_margin_scorer,
    "lower_bound": lower_bound_scorer,
    "elbo": elbo_scorer,
    "reconstruction": reconstruction_scorer,
    "sampled_information": sampled_information_scorer,
}
FOLDS = KFold(2, shuffle=True, random_state=0)


@pytest.fixture
def quick(small_vae):
    """Certified on the blobs after a tenth of a second."""
    return small_vae.set_params(
        teacher=GMMTeacher(4, covariance_type="spherical", random_state=0)
    )


@pytest.fixture
def certifier(quick, blobs):
    return CollapseCertifier(quick).fit(blobs[::2])


def test_scores_are_those_they_are_named_after(certifier, blobs):
    X, vae = blobs[1::2], certifier.estimator_
    certificate = certifier.certify(X)
    proba = certifier.teacher_.predict_proba(X)
    log_q = vae.witness_log_proba(X)
    output = vae.inverse_transform(vae.transform(X))
    explained = r2_score(X, output, multioutput="variance_weighted")
    expected = {
        "certified": 1.0,
        "margin": certifier.score(X),
        "relative_margin": certificate.relative_margin,
        "lower_bound": betting_bound(proba, log_q),
        "elbo": vae.score(X),
        "reconstruction": explained - 1,
        "sampled_information": certifier.certify(X, kind="sampled").margin,
    }
    for name, scorer in SCORERS.items():
        score = scorer(certifier, X)
        assert type(score) is float
        assert score == pytest.approx(expected[name], rel=1e-9), name
    together = certificate_scorers(certifier, X)
    assert together == pytest.approx(expected, rel=1e-9)
    assert all(type(score) is float for score in together.values())


def test_scores_have_options(certifier, blobs):
    X = blobs[1::2]
    bounds = [
        partial(lower_bound_scorer, confidence=0.999),
        partial(lower_bound_scorer, bound=bernstein_bound),
    ]
    for scorer in bounds:
        assert scorer(certifier, X) < lower_bound_scorer(certifier, X)
    more = sampled_information_scorer(certifier, X, n_draws=50)
    assert more == certifier.certify(X, kind="sampled", n_draws=50).margin


def test_rows_go_through_earlier_steps(quick, blobs):
    grid = {"collapsecertifier__safety_margin": [0.0]}
    pipeline = make_pipeline(StandardScaler(), CollapseCertifier(quick))
    search = GridSearchCV(pipeline, grid, cv=FOLDS).fit(blobs)
    fitted = search.best_estimator_
    expected = certificate_scorers(fitted[-1], fitted[0].transform(blobs))
    gate = CertificationGate(FrozenEstimator(search)).fit(blobs)
    for estimator in (fitted, search, FrozenEstimator(fitted), gate):
        assert certificate_scorers(estimator, blobs) == expected
        assert margin_scorer(estimator, blobs) == expected["margin"]
    assert expected["margin"] != certificate_scorers(fitted[-1], blobs)["margin"]


def test_a_vae_without_certifier_has_most_scores(quick, blobs):
    vae = quick.fit(blobs[::2])
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(blobs[::2])
    expected = certificate_scorers(certifier, blobs[1::2])
    del expected["sampled_information"]
    assert certificate_scorers(vae, blobs[1::2]) == expected
    assert vae.score(blobs) == elbo_scorer(vae, blobs)
    with pytest.raises(TypeError, match=r"CollapseCertifier\(CertifiedVAE"):
        sampled_information_scorer(vae, blobs)


def test_what_has_no_score_says_what_is_missing(blobs):
    pca = PCA(3).fit(blobs)
    for scorer in (*SCORERS.values(), certificate_scorers):
        with pytest.raises(TypeError, match=r"got PCA.*CollapseCertifier\(encoder\)"):
            scorer(pca, blobs)
    certifier = CollapseCertifier(pca, teacher=GMMTeacher(4), witness="linear")
    certifier.fit(blobs[::2])
    with pytest.raises(TypeError, match=r"CertifiedVAE.*got PCA"):
        elbo_scorer(certifier, blobs)
    with pytest.raises(ValueError, match="must have a method encode"):
        sampled_information_scorer(certifier, blobs)
    scores = certificate_scorers(certifier, blobs[1::2])
    names = "certified", "margin", "relative_margin", "lower_bound", "reconstruction"
    assert set(scores) == set(names)
    assert scores["certified"] == 1
    # The witness knows these rows.
    assert certificate_scorers(certifier, blobs[::2])["certified"] == 0

    encoder = FrozenEstimator(Projection().fit(blobs))
    blind = CollapseCertifier(encoder, teacher=GMMTeacher(4)).fit(blobs)
    with pytest.raises(TypeError, match=r"inverse_transform.*Projection has none"):
        reconstruction_scorer(blind, blobs)


class Projection(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return X[:, :3]


def test_unfitted_estimators_are_refused(quick, blobs):
    search = GridSearchCV(CollapseCertifier(quick), {"safety_margin": [0]}, cv=FOLDS)
    pipeline = make_pipeline(StandardScaler(), CollapseCertifier(quick))
    for estimator in (quick, CollapseCertifier(quick), search, pipeline):
        with pytest.raises(NotFittedError):
            margin_scorer(estimator, blobs)
    with pytest.raises(NotFittedError, match="refit"):
        margin_scorer(search.set_params(refit=False).fit(blobs), blobs)


class SureOfNothing(BaseEstimator):
    """A teacher that says the same of each row."""

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def predict_proba(self, X):
        return np.tile([0.7, 0.1, 0.1, 0.1], (len(X), 1))


def test_no_search_prefers_a_teacher_without_information(blobs):
    # The certifier's own witness does not face a PCA, so the margin is below 0.
    certifier = CollapseCertifier(PCA(3), random_state=0)
    grid = {"teacher": [SureOfNothing(), GMMTeacher(4, covariance_type="spherical")]}
    search = GridSearchCV(certifier, grid, scoring=relative_margin_scorer, cv=FOLDS)
    search.fit(blobs)
    worst, best = search.cv_results_["mean_test_score"]
    assert (worst, best < 0, search.best_index_) == (LOWEST_SCORE, True, 1)
    assert np.isfinite(search.cv_results_["std_test_score"]).all()


class BrokenDecoder(Projection):
    def inverse_transform(self, Z):
        return np.full((len(Z), 6), self.output)


@pytest.mark.parametrize("output", [np.nan, np.inf, 1e200])
def test_what_cannot_be_computed_is_the_lowest_score(blobs, output):
    encoder = BrokenDecoder().fit(blobs)
    encoder.output = output
    certifier = CollapseCertifier(FrozenEstimator(encoder), teacher=GMMTeacher(4))
    assert reconstruction_scorer(certifier.fit(blobs), blobs) == LOWEST_SCORE


def test_a_single_row_has_finite_scores(certifier, blobs):
    scores = certificate_scorers(certifier, blobs[:1])
    assert np.isfinite(list(scores.values())).all()
    assert scores["margin"] <= 0
    assert scores["reconstruction"] == scores["relative_margin"] == LOWEST_SCORE


def test_reconstruction_of_the_mean_is_minus_one(blobs):
    encoder = BrokenDecoder().fit(blobs)
    encoder.output = blobs.mean(axis=0)
    certifier = CollapseCertifier(FrozenEstimator(encoder), teacher=GMMTeacher(4))
    score = reconstruction_scorer(certifier.fit(blobs), blobs)
    assert score == pytest.approx(-1)


def test_scores_in_cross_validation_and_in_other_processes(quick, blobs):
    certifier = CollapseCertifier(quick.set_params(max_epochs=5))
    assert pickle.loads(pickle.dumps(SCORERS)) == SCORERS
    results = cross_validate(certifier, blobs, scoring=SCORERS, cv=FOLDS)
    both = cross_validate(certifier, blobs, scoring=certificate_scorers, cv=FOLDS)
    apart = cross_validate(certifier, blobs, scoring=SCORERS, cv=FOLDS, n_jobs=2)
    for name in SCORERS:
        scores = results[f"test_{name}"]
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(scores, both[f"test_{name}"], rtol=1e-9)
        np.testing.assert_allclose(scores, apart[f"test_{name}"], rtol=1e-6)
    bound = partial(lower_bound_scorer, confidence=0.5)
    bounds = cross_val_score(certifier, blobs, scoring=bound, cv=FOLDS)
    assert (bounds > results["test_lower_bound"]).all()


GRID_OF_WEIGHTS = {"estimator__alignment_weight": [0.0, 1.0, 100.0]}


@pytest.mark.parametrize("kind", [GridSearchCV, HalvingGridSearchCV])
def test_the_margin_alone_picks_the_largest_weight(quick, blobs, kind):
    certifier = CollapseCertifier(quick.set_params(kl_weight=4.0))
    settings = {"scoring": margin_scorer, "cv": FOLDS}
    if kind is HalvingGridSearchCV:
        settings |= {"min_resources": 60, "factor": 2}
    search = kind(certifier, GRID_OF_WEIGHTS, **settings).fit(blobs)
    assert search.best_params_["estimator__alignment_weight"] == 100


@pytest.mark.parametrize("kind", [GridSearchCV, BatchedGridSearchCV])
def test_rules_choose_less(quick, blobs, kind):
    certifier = CollapseCertifier(quick)
    settings = {"scoring": certificate_scorers, "cv": FOLDS, "return_train_score": True}
    search = kind(certifier, GRID_OF_WEIGHTS, refit=best_certified, **settings)
    results = search.fit(blobs).cv_results_
    assert results["mean_test_certified"].tolist()[1:] == [1, 1]
    assert np.isfinite(results["mean_train_sampled_information"]).all()
    assert search.best_params_["estimator__alignment_weight"] == 1
    assert smallest_certifying_weight(results) == 1
    assert results["mean_test_margin"].argmax() == 2
    margin = results["split0_test_margin"][1] + 1e-6
    assert best_certified(results, min_margin=margin) == 2
    assert certified_scorer(search, blobs) == 1


def test_a_name_as_refit(quick, blobs):
    search = GridSearchCV(
        CollapseCertifier(quick.set_params(max_epochs=3)),
        {"estimator__random_state": [0, 1]},
        scoring=certificate_scorers,
        refit="elbo",
        cv=FOLDS,
    ).fit(blobs)
    assert search.best_index_ == search.cv_results_["mean_test_elbo"].argmax()


def results_of(certified, margin, **columns):
    """Two folds, the second as given for the first unless it is a pair."""
    pairs = {"certified": np.broadcast_to(certified, (2, 4))}
    pairs["margin"] = np.broadcast_to(margin, (2, 4))
    results = {f"mean_test_{name}": np.mean(v, axis=0) for name, v in pairs.items()}
    for name, values in pairs.items():
        results |= {f"split{i}_test_{name}": row for i, row in enumerate(values)}
    return results | columns


def test_every_fold_must_be_certified():
    elbo = {"mean_test_elbo": [9, 8, 7, np.nan]}
    folds = [[1, 1, 1, np.nan], [0, 1, 1, 1]]
    results = results_of(folds, [2.0, 0.3, 0.4, 0.9], **elbo)
    assert best_certified(results) == 1
    assert best_certified(results, min_margin=0.35) == 2
    assert best_certified(results, by="margin") == 2


def test_a_search_without_certified_candidates_keeps_its_results():
    margins = [[-1.0, 0.3, 0.1, np.nan], [-1.0, -0.5, 0.0, np.nan]]
    weights = {"param_alignment_weight": [1, 2, 3, 4], "mean_test_elbo": [1, 2, 3, 4]}
    results = results_of(0, margins, **weights)
    for rule in (best_certified, smallest_certifying_weight):
        with pytest.warns(NotCertifiedWarning, match=r"highest.* is 0, at index 2"):
            assert rule(results) == 2
        with pytest.raises(NotCertifiedError, match="No candidate is certified"):
            rule(results, if_none="raise")
        with pytest.raises(ValueError, match="if_none must be 'warn' or 'raise'"):
            rule(results, if_none="ignore")


def test_the_smallest_weight_that_certifies():
    certified, margin = [1, 1, 1, 0], [0.9, 0.5, 0.5, 0.1]
    weights = np.ma.array([10.0, 1, 1.0, 0.1], dtype=object)
    columns = {"param_vae__alignment_weight": weights, "mean_test_elbo": [9, 1, 2, 3]}
    columns["param_vae__kl_weight"] = [1, 1, 8, 1]
    assert smallest_certifying_weight(results_of(certified, margin, **columns)) == 2
    # Without an ELBO, the margin decides between equal weights: the first here.
    del columns["mean_test_elbo"]
    results = results_of(certified, margin, **columns)
    assert smallest_certifying_weight(results) == 1
    assert smallest_certifying_weight(results, min_margin=0.6) == 0


def test_weights_that_are_no_numbers_are_left_out():
    weights = np.ma.array(["auto", 0.0, 5.0, 1], mask=[0, 1, 0, 0], dtype=object)
    results = results_of(1, 0.5, param_alignment_weight=weights)
    assert smallest_certifying_weight(results) == 3


def test_columns_that_are_missing_are_named():
    results = results_of(1, 0.5)
    with pytest.raises(ValueError, match=r"'mean_test_elbo'.*certificate_scorers"):
        best_certified(results)
    with pytest.raises(ValueError, match="'split0_test_certified'"):
        best_certified({"mean_test_elbo": [1.0]})
    with pytest.raises(ValueError, match="must have one parameter"):
        smallest_certifying_weight(results)
    names = "a__alignment_weight", "b__alignment_weight"
    weights = dict(zip(names, ([1, 2, 3, 4], [4, 3, 2, 1]), strict=True))
    results |= {f"param_{name}": values for name, values in weights.items()}
    with pytest.raises(ValueError, match=r"b__alignment_weight.*Give its name"):
        smallest_certifying_weight(results)
    assert smallest_certifying_weight(results, parameter=names[1]) == 3


def test_the_warning_points_at_the_search(quick, blobs):
    vae = quick.set_params(max_epochs=1, alignment_weight=0, kl_weight=1e3)
    grid = {"estimator__random_state": [0, 1]}
    settings = {"scoring": certificate_scorers, "refit": best_certified, "cv": FOLDS}
    search = GridSearchCV(CollapseCertifier(vae), grid, **settings)
    with pytest.warns(NotCertifiedWarning) as warned:
        search.fit(blobs)
    assert warned[0].filename == __file__
    assert "mean_test_margin" in search.cv_results_


COLLAPSED = {"estimator__kl_weight": 1e4, "estimator__alignment_weight": 0}


def test_a_gate_lets_the_certified_through(quick, blobs):
    gate = CertificationGate(quick).fit(blobs)
    alone = CollapseCertifier(quick).fit(blobs)
    assert gate.certificate_ == alone.certificate_
    assert gate.score(blobs) == alone.score(blobs)
    assert gate.certify(blobs) == alone.certify(blobs)
    codes = gate.transform(blobs)
    np.testing.assert_array_equal(codes, alone.transform(blobs))
    np.testing.assert_array_equal(
        gate.inverse_transform(codes), alone.inverse_transform(codes)
    )
    assert gate.n_features_in_ == 6
    again = pickle.loads(pickle.dumps(gate))
    np.testing.assert_array_equal(again.transform(blobs), codes)
    assert not hasattr(CertificationGate(Projection()), "inverse_transform")


def test_a_gate_that_raises_is_not_fitted(quick, blobs):
    gate = CertificationGate(clone(quick)).set_params(**COLLAPSED)
    with pytest.raises(NotCertifiedError, match=r"^Not certified\. \w+: on") as caught:
        gate.fit(blobs)
    certificate = caught.value.certificate
    assert certificate.verdict != "certified"
    assert str(certificate) in str(caught.value)
    fitted = [name for name in vars(gate) if name.endswith("_")]
    assert not fitted
    with pytest.raises(NotFittedError):
        gate.transform(blobs)
    with pytest.raises(NotFittedError):
        gate.score(blobs)


def test_a_gate_that_raises_keeps_an_earlier_fit(quick, blobs):
    gate = CertificationGate(clone(quick)).fit(blobs)
    before = gate.certificate_, gate.transform(blobs)
    with pytest.raises(NotCertifiedError):
        gate.set_params(**COLLAPSED).fit(blobs)
    assert gate.certificate_ is before[0]
    np.testing.assert_array_equal(gate.transform(blobs), before[1])


def test_a_gate_may_hold_rows_out(quick, blobs):
    gate = CertificationGate(quick, held_out_fraction=0.25, random_state=0).fit(blobs)
    assert gate.certificate_.n_samples == 30
    gate.set_params(kind="sampled").fit(blobs, np.arange(120))
    assert gate.certificate_.kind == "sampled"
    with pytest.raises(ValueError, match="held out"):
        gate.set_params(held_out_fraction=0).fit(blobs)


def test_a_gate_certifies_a_fitted_witness_on_other_rows(blobs):
    teacher = GMMTeacher(4, covariance_type="spherical", random_state=0)
    certifier = CollapseCertifier(PCA(5), teacher=teacher, witness="linear")
    gate = CertificationGate(certifier).fit(blobs)
    assert gate.certificate_.n_samples == 60
    gate.set_params(held_out_fraction=0.25).fit(blobs)
    assert gate.certificate_.n_samples == 30
    frozen = CertificationGate(FrozenEstimator(certifier.fit(blobs)))
    with pytest.raises(ValueError, match="that were in fit"):
        frozen.fit(blobs)


def test_a_gate_around_pipelines_searches_and_fitted_models(quick, blobs):
    certifier = CollapseCertifier(quick)
    pipeline = make_pipeline(StandardScaler(), certifier)
    search = GridSearchCV(certifier, {"safety_margin": [0.0]}, cv=FOLDS)
    for estimator in (pipeline, search):
        gate = CertificationGate(estimator).fit(blobs)
        assert gate.certificate_.verdict == "certified"
        assert gate.get_params()["estimator"] is estimator
    fitted = clone(certifier).fit(blobs[::2])
    gate = CertificationGate(FrozenEstimator(fitted)).fit(blobs[1::2])
    assert gate.certificate_ == fitted.certify(blobs[1::2])


def test_a_gate_in_a_pipeline_with_names(quick, blobs):
    frame = pd.DataFrame(blobs, columns=list("abcdef"))
    gate = CertificationGate(quick, random_state=0)
    pipeline = make_pipeline(StandardScaler(), gate).set_output(transform="pandas")
    codes = pipeline.fit(frame).transform(frame)
    assert list(codes.columns) == [f"collapsecertifier{i}" for i in range(4)]
    assert pipeline[-1].feature_names_in_.tolist() == list("abcdef")
    with pytest.raises(NotCertifiedError):
        pipeline.set_params(certificationgate__estimator__kl_weight=1e5).fit(frame)


def test_a_gate_seeds_what_is_not_seeded(quick, blobs):
    quick.set_params(random_state=None)
    gates = [CertificationGate(quick, random_state=3).fit(blobs) for _ in range(2)]
    np.testing.assert_array_equal(*(gate.transform(blobs) for gate in gates))


def test_required_certificates(quick, blobs):
    certifier = CollapseCertifier(quick).fit(blobs[::2])
    X = blobs[1::2]
    assert require_certified(certifier, X) == certifier.certify(X)
    assert require_certified(certifier.estimator_, X).margin == certifier.score(X)
    proba = certifier.teacher_.predict_proba(X)
    for estimator in (certifier, certifier.estimator_):
        certificate = require_certified(estimator, X, teacher_proba=proba)
        assert certificate.margin == certifier.score(X)
    assert require_certified(certifier, X, kind="sampled").kind == "sampled"
    certifier.set_params(safety_margin=3.0)
    with pytest.raises(NotCertifiedError) as caught:
        require_certified(certifier, X)
    assert caught.value.certificate == certifier.certify(X)
    with pytest.raises(TypeError, match="got PCA"):
        require_certified(PCA(2).fit(X), X)
