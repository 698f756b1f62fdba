"""Searches that train small networks together: the same results as one by one."""

import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import Callback

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert._training import joint
from skvaecert.callbacks import HistoryMonitor
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.model_selection import (
    BatchedGridSearchCV,
    certificate_scorers,
    fit_together,
)

GRID = {"alignment_weight": [0.0, 5.0], "random_state": [0, 1]}


def inside(grid):
    return {f"estimator__{name}": values for name, values in grid.items()}


@pytest.fixture
def vae(small_vae):
    return small_vae.set_params(max_epochs=3, teacher__covariance_type="spherical")


@pytest.fixture
def stacks(monkeypatch):
    """Sizes of the stacks that were trained."""
    sizes, train_together = [], joint.train_together

    def counted(fits):
        sizes.append(len(fits))
        return train_together(fits)

    monkeypatch.setattr(joint, "train_together", counted)
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
    kwargs = {"cv": 2} | settings
    return [
        kind(clone(estimator), grid, **kwargs).fit(X, **fit_params or {})
        for kind in (BatchedGridSearchCV, GridSearchCV)
    ]


@pytest.mark.slow
def test_results_are_those_of_a_grid_search(vae, blobs, stacks):
    search, other = both(vae, GRID, blobs, return_train_score=True)
    assert stacks == [8]
    assert_same_results(search, other)
    assert search.best_score_ == pytest.approx(other.best_score_, rel=1e-5)
    np.testing.assert_allclose(search.transform(blobs), other.transform(blobs))
    assert search.score(blobs) == other.score(blobs)
    assert (search.cv_results_["mean_fit_time"] > 0).all()


@pytest.mark.slow
def test_bernoulli_likelihood(vae, blobs, stacks):
    X = 1 / (1 + np.exp(-blobs))
    grid = {"kl_weight": [1.0, 4.0]}
    assert_same_results(*both(vae.set_params(likelihood="bernoulli"), grid, X))
    assert stacks == [4]


@pytest.mark.slow
def test_certifiers_of_rows_in_a_frame_with_names(vae, blobs, stacks):
    X = pd.DataFrame(blobs, columns=list("abcdef"))
    settings = {"scoring": certificate_scorers, "refit": "margin"}
    search, other = both(CollapseCertifier(vae), inside(GRID), X, **settings)
    assert stacks == [8]
    assert_same_results(search, other)
    assert len(set(search.cv_results_["mean_test_margin"])) == 4
    assert search.feature_names_in_.tolist() == list("abcdef")


@pytest.mark.slow
def test_pipeline(vae, blobs, stacks):
    steps = StandardScaler(), PCA(4, random_state=0), CollapseCertifier(vae)
    grid = {"collapsecertifier__estimator__alignment_weight": [0.0, 5.0]}
    assert_same_results(*both(make_pipeline(*steps), grid, blobs))
    assert stacks == [4]


@pytest.mark.slow
def test_default_estimator_and_certifiers_seed(blobs, stacks):
    grid = {
        "random_state": [0, 1],
        "estimator__hidden_sizes": [(8,), (8, 8)],
        "estimator__max_epochs": [2],
        "estimator__device": ["cpu"],
        "estimator__teacher__n_components": [4],
        "estimator__teacher__covariance_type": ["spherical"],
    }
    assert_same_results(*both(CollapseCertifier(), grid, blobs))
    # Two architectures.
    assert stacks == [4, 4]


@pytest.mark.slow
def test_several_scores_and_a_list_of_grids(vae, blobs, stacks):
    grids = [{"alignment_weight": [1.0, 5.0]}, {"learning_rate": [1e-2, 1e-3]}]
    scoring = {"margin": last_margin, "bound": lambda vae, X, y=None: vae.score(X)}
    search, other = both(vae, grids, blobs, scoring=scoring, refit="margin")
    assert_same_results(search, other)
    assert stacks == [6, 2]


def last_margin(vae, X, y=None):
    return vae.history_[-1]["margin"]


@pytest.mark.slow
def test_folds_of_unequal_size_are_two_stacks(vae, blobs, stacks):
    assert_same_results(*both(vae, {"kl_weight": [1.0, 4.0]}, blobs[:119], cv=3))
    assert sorted(stacks) == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["splitter", "generator"])
def test_folds_are_drawn_once(vae, blobs, stacks, form):
    searches = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        cv = KFold(2, shuffle=True, random_state=np.random.RandomState(0))
        cv = cv.split(blobs) if form == "generator" else cv
        searches.append(kind(clone(vae), {"kl_weight": [1.0, 4.0]}, cv=cv).fit(blobs))
    assert stacks == [4]
    assert_same_results(*searches)


@pytest.mark.slow
def test_without_a_seed_the_draws_are_those_of_a_grid_search(vae, blobs, stacks):
    vae.set_params(random_state=None)
    searches = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        np.random.seed(0)  # noqa: NPY002
        searches.append(kind(vae, {"kl_weight": [1.0, 4.0]}, cv=2).fit(blobs))
    assert stacks == [4]
    assert_same_results(*searches)


@pytest.mark.parametrize("routing", [False, True])
def test_posteriors_given_are_split_like_the_rows(vae, blobs, stacks, routing):
    teacher = GMMTeacher(4, covariance_type="spherical", random_state=0)
    params = {"teacher_proba": teacher.fit(blobs).predict_proba(blobs)}
    with sklearn.config_context(enable_metadata_routing=routing):
        if routing:
            vae.set_fit_request(teacher_proba=True)
        assert_same_results(*both(vae, {"kl_weight": [1.0, 4.0]}, blobs, params))
    assert stacks == [4]


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
    BatchedGridSearchCV(vae, grid, cv=2, refit=False).fit(blobs)
    assert len(fits) == 2 * n_teachers
    vae.fit(blobs)
    assert len(fits) == 2 * n_teachers + 1


@pytest.mark.slow
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


# The loss is infinite in float32.
BREAKS_DOWN = 1e39


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_fits_that_fail_have_the_error_score(vae, blobs, stacks):
    grid = {"kl_weight": [1.0, BREAKS_DOWN, 2.0, -1.0]}
    search = BatchedGridSearchCV(vae, grid, cv=2, refit=False)
    with pytest.warns(FitFailedWarning, match="4 fits failed out of a total of 8"):
        search.fit(blobs)
    assert stacks == [6]
    np.testing.assert_array_equal(
        np.isnan(search.cv_results_["mean_test_score"]), [False, True, False, True]
    )


def test_failed_fits_raise_if_asked(vae, blobs):
    grid = {"kl_weight": [1.0, BREAKS_DOWN]}
    with pytest.raises(NonFiniteLossError):
        BatchedGridSearchCV(vae, grid, cv=2, error_score="raise").fit(blobs)


def test_ctrl_c_ends_the_search(vae, blobs, monkeypatch):
    def interrupted(fits):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint, "train_together", interrupted)
    search = BatchedGridSearchCV(vae, GRID, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(blobs)
    assert not hasattr(search, "cv_results_")
    # Nothing of the search stands in for later trainings.
    assert vae.fit(blobs).n_iter_ == 3


@pytest.mark.slow
def test_search_is_an_estimator_like_others(vae, blobs):
    search = BatchedGridSearchCV(vae, GRID, cv=2, error_score="raise")
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


@pytest.mark.slow
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
    assert len(joined[0].history_) == 6


def test_the_first_error_comes_after_all_are_fitted(vae, blobs):
    estimators = seeds(vae)
    estimators[1].kl_weight = BREAKS_DOWN
    with pytest.raises(NonFiniteLossError):
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
    assert [estimator.n_iter_ for estimator in estimators] == [3, 3]


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
        super().__init__(n_components=4, covariance_type="spherical")

    def fit(self, X, y=None):
        self.draw_ = np.random.rand()  # noqa: NPY002
        return super().fit(X, y)


needs_callbacks = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="scikit-learn before 1.9 has no callbacks",
)


@pytest.mark.slow
@needs_callbacks
def test_fits_that_callbacks_watch_are_fitted_in_turn(vae, blobs, stacks):
    logs = []
    for kind in (BatchedGridSearchCV, GridSearchCV):
        monitor = HistoryMonitor()
        search = kind(clone(vae), {"kl_weight": [1.0, 4.0]}, cv=2)
        search.set_callbacks(monitor).fit(blobs)
        logs.append([row["margin"] for row in monitor.get_logs().data])
    assert stacks == []
    assert len(logs[0]) == (2 * 2 + 1) * 3
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
    assert [one.n_iter_ for one in vaes] == [1, 3]
    assert watch.told == ("setup", "teardown")


class TorchTeacher(GMMTeacher):
    """Draws from torch's generator, and has no seed to show for it."""

    def fit(self, X, y=None):
        self.random_state = int(torch.randint(1000, ()))
        return super().fit(X)


@pytest.mark.slow
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
