import dataclasses
import itertools
import signal
import threading
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_info

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert._teacher import search as module
from skvaecert._teacher.candidate import default_budget
from skvaecert.datasets import load_patches
from skvaecert.exceptions import UnstableTeacherWarning
from skvaecert.simplex import prior_matched_scale

GRID = {
    "n_components": [4, 8, 12],
    "pca_components": [6, 12],
    "covariance_type": ["full", "tied"],
}
# Four candidates, where it does not matter how many there are.
SMALL = {"n_components": [4, 8], "pca_components": 6}


def searching(**params):
    return GMMTeacher(**GRID | {"random_state": 0} | params)


@pytest.fixture(scope="module")
def found(digits):
    return searching().fit(digits[0])


@pytest.mark.slow
def test_the_table_contains_every_candidate(found):
    table = pd.DataFrame(found.search_results_)
    points = list(table[list(GRID)].itertuples(index=False, name=None))
    assert points == list(itertools.product(*GRID.values()))
    assert sorted(table["rank"]) == list(range(1, 13))
    numbers = table.drop(columns=["covariance_type", "error"]).astype(float)
    assert np.isfinite(numbers).all(axis=None)
    assert (table["seconds"] > 0).all()
    assert (table["error"] == "").all()


@pytest.mark.slow
def test_the_chosen_one_has_most_information(found):
    table = pd.DataFrame(found.search_results_)
    usable = table[
        (table["energy"] <= default_budget(table["n_components"]))
        & (table["agreement"] >= 0.5)
    ]
    assert (usable.index == table.index[table["usable"]]).all()
    chosen = usable.loc[usable["information"].idxmax()]
    assert chosen["rank"] == 1
    assert found.n_components_ == chosen["n_components"]
    assert found.mixture_.means_.shape[1] == chosen["pca_components"]
    assert found.mixture_.covariance_type == chosen["covariance_type"]
    by_rank = table.sort_values("rank")
    assert by_rank[by_rank["usable"]]["information"].is_monotonic_decreasing


def test_information_counts_and_density_does_not(found):
    """The candidate with the highest density is another: only information counts."""
    table = pd.DataFrame(found.search_results_)
    assert table.loc[table["log_likelihood"].idxmax(), "rank"] > 1


@pytest.fixture
def seen(monkeypatch):
    """Record the samples that mixtures are fitted and measured on."""
    samples = {"fit_fast": [], "log_joint": []}

    def spy(name):
        function = getattr(module, name)

        def spied(X, *args, **kwargs):
            samples[name].append(set(map(tuple, X)))
            return function(X, *args, **kwargs)

        monkeypatch.setattr(module, name, spied)

    for name in samples:
        spy(name)
    return samples


@pytest.mark.slow
def test_candidates_are_measured_on_samples_they_were_not_fitted_on(digits, seen):
    searching(**SMALL).fit(digits[0])
    *fitted, last = seen["fit_fast"]
    measured = seen["log_joint"]
    assert len(fitted) == 2 * 2 * 3
    assert not set.union(*fitted) & set.union(*measured)
    assert last == fitted[0] | measured[0]


@pytest.mark.slow
def test_the_values_of_a_candidate_do_not_depend_on_the_others(digits, found):
    alone = searching(n_components=[4, 8], pca_components=[12, 6]).fit(digits[0])
    both = [
        pd.DataFrame(teacher.search_results_).set_index(list(GRID))
        for teacher in (alone, found)
    ]
    names = ["information", "energy", "log_likelihood", "agreement"]
    same = both[1].loc[both[0].index, names]
    np.testing.assert_allclose(both[0][names], same, rtol=1e-4)


@pytest.fixture
def k_means(monkeypatch):
    """Record the samples that k-means is fitted on."""
    fits = []
    fit = KMeans.fit
    monkeypatch.setattr(
        KMeans, "fit", lambda self, X, *args: fits.append(X) or fit(self, X, *args)
    )
    return fits


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_restarts_share_their_k_means(digits, k_means, n_jobs):
    searching(**SMALL, n_jobs=n_jobs).fit(digits[0])
    assert len(k_means) == 2 * 3  # K, restarts


@pytest.mark.slow
def test_threads_find_the_same_teacher(digits, found):
    teacher = searching(n_jobs=2).fit(digits[0])
    np.testing.assert_allclose(
        teacher.transform(digits[1]), found.transform(digits[1]), atol=1e-6
    )
    for name in ("information", "agreement"):
        np.testing.assert_allclose(
            teacher.search_results_[name], found.search_results_[name], rtol=1e-4
        )


@pytest.mark.slow
def test_a_seed_finds_the_same_teacher(digits, found):
    teacher = searching().fit(digits[0])
    np.testing.assert_array_equal(
        teacher.transform(digits[1]), found.transform(digits[1])
    )


@pytest.mark.slow
def test_the_chosen_mixture_is_fitted_on_all_samples(digits, found):
    """It is a stationary point for scikit-learn: one more fit changes nothing."""
    samples = found.pca_.transform(digits[0])
    weights, means = found.mixture_.weights_, found.mixture_.means_
    precisions = found.mixture_.precisions_
    more = found.mixture_.set_params(
        weights_init=weights, means_init=means, precisions_init=precisions
    )
    before = more.score(samples)
    assert more.converged_
    assert more.fit(samples).score(samples) == pytest.approx(before, abs=2e-3)


@pytest.fixture
def two_rounds(monkeypatch):
    """Compare all candidates on 600 samples, and the best three on 1347."""
    monkeypatch.setattr(module, "_FIRST_SAMPLES", 600)


@pytest.mark.slow
@pytest.mark.usefixtures("two_rounds")
def test_the_best_are_compared_again_on_all_samples(digits):
    table = pd.DataFrame(searching().fit(digits[0]).search_results_)
    again = table["n_samples"] == 1010
    assert (table["n_samples"][~again] == 450).all()
    assert sorted(table["rank"][again]) == [1, 2, 3]
    by_rank = table[table["usable"]].sort_values("rank")
    assert by_rank["information"][:3].is_monotonic_decreasing
    assert by_rank["information"][3:].is_monotonic_decreasing


@pytest.mark.usefixtures("two_rounds")
def test_no_round_measures_on_samples_that_another_was_fitted_on(digits, seen):
    searching(**SMALL).fit(digits[0])
    *fitted, last = seen["fit_fast"]
    fitted, measured = set.union(*fitted), set.union(*seen["log_joint"])
    assert len(fitted) == 1010
    assert len(measured) == 337
    assert not fitted & measured
    assert last == fitted | measured


@pytest.mark.usefixtures("two_rounds")
def test_what_cannot_be_refitted_stays_as_it_was_found(digits, monkeypatch):
    def fail(*args):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(module.Fitter, "resume", fail)
    message = "on 450 samples is kept. Raise reg_|keeps their fit on fewer samples"
    with pytest.warns(FitFailedWarning, match=message) as record:
        teacher = searching(**SMALL).fit(digits[0])
    assert [warning.filename for warning in record] == 2 * [__file__]
    results = teacher.search_results_
    assert (results["n_samples"] == 450).all()
    assert results["information"].argmax() == results["rank"].argmin()
    assert np.isfinite(teacher.transform(digits[1])).all()


@pytest.mark.slow
@pytest.mark.usefixtures("two_rounds")
def test_ctrl_c_in_the_second_round_keeps_the_first(digits, monkeypatch):
    interrupted_at(monkeypatch, place=3 * 12 + 2)
    teacher = searching()
    with pytest.raises(KeyboardInterrupt, match="after 12 of 12 candidates"):
        teacher.fit(digits[0])
    n_samples = teacher.search_results_["n_samples"]
    assert sorted(set(n_samples)) == [450, 1010]
    assert (n_samples == 1010).sum() == 1
    assert (teacher.search_results_["error"] == "").all()


def test_a_mixture_that_did_not_converge(digits):
    with pytest.warns(ConvergenceWarning, match="not converge in max_iter=2") as record:
        teacher = searching(**SMALL, max_iter=2).fit(digits[0])
    assert record[0].filename == __file__
    assert not teacher.mixture_.converged_


@pytest.mark.slow
def test_one_value_in_a_list_is_no_search(digits):
    plain = GMMTeacher(5, covariance_type="full", random_state=0).fit(digits[0])
    listed = GMMTeacher(
        n_components=np.array([5]), covariance_type=("full",), random_state=0
    ).fit(digits[0])
    assert plain.search_results_ is listed.search_results_ is None
    np.testing.assert_array_equal(
        plain.transform(digits[1]), listed.transform(digits[1])
    )


@pytest.mark.slow
def test_more_restarts(digits, k_means):
    searching(**SMALL, n_init=5).fit(digits[0])
    assert len(k_means) == 5 * 2


@pytest.mark.slow
def test_the_restart_with_most_information_that_fits_is_kept(digits, monkeypatch):
    measured = []
    measure = module._Evaluator._measured

    def spied(self, *args):
        measured.append(measure(self, *args))
        return measured[-1]

    monkeypatch.setattr(module._Evaluator, "_measured", spied)
    grid = {"n_components": [7, 8], "pca_components": 12, "covariance_type": "full"}
    teacher = searching(**grid, n_init=8, temperature=1.0, min_agreement=0)
    results = teacher.fit(digits[0]).search_results_
    restarts = [c for c in measured if c.configuration.n_components == 8]
    *_, second, first = sorted(restarts, key=lambda c: c.information)
    assert second.information < first.information == results["information"][1]
    dearest = first.energy * (1 - 1e-9)
    results = teacher.set_params(energy_budget=dearest).fit(digits[0]).search_results_
    fits = [c.information for c in restarts if c.energy <= dearest]
    assert results["information"][1] == max(fits) < first.information


@pytest.mark.slow
def test_variance_is_added_as_a_share(digits, monkeypatch):
    fit_fast = module.fit_fast

    def spied(X, *args, reg_covar, **kwargs):
        assert reg_covar == pytest.approx(0.01 * X.var(axis=0).mean())
        return fit_fast(X, *args, reg_covar=reg_covar, **kwargs)

    monkeypatch.setattr(module, "fit_fast", spied)
    teacher = searching(**SMALL, reg_covar=0.01, error_score="raise").fit(digits[0])
    scores = teacher.pca_.transform(digits[0])
    share = 0.01 * scores.var(axis=0).mean()
    assert teacher.mixture_.reg_covar == pytest.approx(share)


@pytest.mark.slow
def test_units_do_not_matter(digits, found):
    results = searching().fit(1000 * digits[0]).search_results_
    for name in ("information", "energy", "agreement"):
        np.testing.assert_allclose(
            results[name], found.search_results_[name], rtol=1e-3, err_msg=name
        )
    density = results["pca_components"] * np.log(1000)
    np.testing.assert_allclose(
        results["log_likelihood"],
        found.search_results_["log_likelihood"] - density,
        rtol=1e-3,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("two_rounds")
def test_a_budget_that_is_missed_in_the_second_round(digits, monkeypatch):
    """Samples that are not in the first round may cost more."""
    again = module._Evaluator.evaluate_on_all
    monkeypatch.setattr(
        module._Evaluator,
        "evaluate_on_all",
        lambda *args: dataclasses.replace(again(*args), energy=1e9),
    )
    teacher = searching(**SMALL)
    with pytest.raises(ValueError, match=r"energy_budget .* with 1e\+09 nats"):
        teacher.set_params(covariance_type="full").fit(digits[0])
    # Candidates that were not in the second round still fit.
    results = teacher.set_params(**GRID).fit(digits[0]).search_results_
    assert (results["energy"] == 1e9).sum() == 3
    assert results["n_samples"][results["rank"].argmin()] == 450


@pytest.mark.slow
@pytest.mark.usefixtures("two_rounds")
def test_error_score_in_the_second_round(digits, monkeypatch):
    resume = module.Fitter.resume

    def fail_once(self, samples, mixture):
        if len(samples) == 1010:
            raise np.linalg.LinAlgError("collapsed")
        return resume(self, samples, mixture)

    monkeypatch.setattr(module.Fitter, "resume", fail_once)
    with pytest.warns(FitFailedWarning, match="keeps their fit on fewer.*collapsed"):
        results = searching(covariance_type=["tied"]).fit(digits[0]).search_results_
    assert (results["error"] == "LinAlgError: collapsed").sum() == 3
    assert (results["n_samples"] == 450).all()
    assert results["information"][results["rank"].argmin()] > 1
    with pytest.raises(np.linalg.LinAlgError, match="collapsed"):
        searching(covariance_type=["tied"], error_score="raise").fit(digits[0])


def test_components_beyond_the_features_are_one_candidate(blobs):
    teacher = GMMTeacher(
        [2, 4],
        pca_components=[3, 6, 50, 99],
        covariance_type="full",
        random_state=0,
    ).fit(blobs)
    assert list(teacher.search_results_["pca_components"]) == [3, 6, 3, 6]


@pytest.mark.slow
def test_a_hundred_samples(digits):
    teacher = searching(n_components=[3, 5], covariance_type="diag")
    assert teacher.fit(digits[0][:100]).information_ > 0.5


@pytest.mark.slow
def test_searches_can_be_searched(digits):
    grid = {"n_components": [[2, 3], [4, 8]]}
    search = GridSearchCV(searching(**SMALL), grid, cv=2).fit(digits[0])
    assert search.best_params_ == {"n_components": [4, 8]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((60, 10), 7), ((100, 5), 4), ((150, 10), 8)],
)
def test_noise_on_small_tables(shape, expected):
    """Noise is detected; only a few samples in few dimensions do form clusters."""
    detected = 0
    for seed in range(8):
        noise = np.random.default_rng(seed).normal(size=shape)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            GMMTeacher(
                [3, 5, 8], covariance_type=["full", "diag", "tied"], random_state=seed
            ).fit(noise)
        detected += any(w.category is UnstableTeacherWarning for w in caught)
    assert detected >= expected


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(1000, 12))


def test_noise_is_detected_by_restarts_that_disagree(noise):
    with pytest.warns(UnstableTeacherWarning, match=r"min_agreement=0.5.*smaller") as w:
        teacher = searching(**SMALL).fit(noise)
    assert w[0].filename == __file__
    assert not teacher.search_results_["usable"].any()
    most = teacher.search_results_["agreement"].argmax()
    assert teacher.search_results_["rank"][most] == 1


def test_any_agreement_is_enough_for_a_min_agreement_of_zero(noise):
    teacher = searching(**SMALL, min_agreement=0).fit(noise)
    assert teacher.search_results_["usable"].all()


def test_temperatures_fit_the_budget(digits):
    """Every candidate gets the smallest temperature that fits the budget."""
    results = searching(**SMALL, floor=1e-9).fit(digits[0]).search_results_
    budget = default_budget(results["n_components"])
    assert (results["energy"] <= budget).all()
    softened = results["temperature"] > 1
    assert softened.any()
    np.testing.assert_allclose(results["energy"][softened], budget[softened], rtol=1e-6)


@pytest.mark.slow
def test_the_default_budget_is_a_prior_matched_scale_of_4(digits):
    teacher = GMMTeacher(8, covariance_type="full", floor=1e-9, random_state=0)
    teacher.fit(digits[0])
    assert teacher.temperature_ > 1
    scale = prior_matched_scale(teacher.transform(digits[0]))
    assert scale == pytest.approx(4, rel=1e-6)
    sharp = teacher.set_params(temperature=1).fit(digits[0])
    assert prior_matched_scale(sharp.transform(digits[0])) > 5


def test_a_budget_that_the_user_sets(digits):
    results = searching(**SMALL, energy_budget=3.0).fit(digits[0]).search_results_
    np.testing.assert_allclose(results["energy"], 3.0, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n_components", [5, [5, 10]], ids=["one", "search"])
def test_a_budget_below_every_candidate(digits, n_components):
    teacher = GMMTeacher(
        n_components,
        covariance_type="full",
        temperature=1.0,
        energy_budget=0.5,
        random_state=0,
    )
    message = (
        r"energy_budget must be .* got 0.5 nats. The nearest candidate is "
        r"n_components=5, pca_components=16, covariance_type='full' with 1\d.* nats .* "
        r"Raise energy_budget or floor \(0.01\), or set temperature='auto'"
    )
    with pytest.raises(ValueError, match=message):
        teacher.fit(digits[0])


@pytest.mark.slow
def test_candidates_over_the_budget_are_left_out(digits):
    teacher = searching(temperature=1.0, energy_budget=13.0, min_agreement=0).fit(
        digits[0]
    )
    table = pd.DataFrame(teacher.search_results_)
    assert (table["usable"] == (table["energy"] <= 13)).all()
    assert 0 < table["usable"].sum() < len(table)
    assert teacher.energy_ < 13.5
    assert table.loc[table["information"].idxmax(), "rank"] > 1


def test_failed_candidates_are_recorded(digits):
    teacher = searching(n_components=[3, 80], pca_components=6, min_agreement=0)
    with pytest.warns(FitFailedWarning, match="2 of 4 candidates failed") as record:
        teacher.fit(digits[0][:99])
    assert record[0].filename == __file__
    results = teacher.search_results_
    failed = results["n_components"] == 80
    assert list(results["error"] != "") == list(failed)
    assert results["error"][-1].startswith("ValueError: n_components=80 needs at least")
    assert np.isnan(results["information"][failed]).all()
    assert teacher.n_components_ == 3


def test_error_score(digits):
    teacher = searching(
        n_components=[3, 80], pca_components=6, min_agreement=0, error_score=-1
    )
    with pytest.warns(FitFailedWarning):
        teacher.fit(digits[0][:99])
    assert (
        list(teacher.search_results_["information"] == -1) == 2 * [False] + [True] * 2
    )
    with pytest.raises(ValueError, match=r"80 needs at least 400 samples .* got 74"):
        teacher.set_params(error_score="raise").fit(digits[0][:99])


def test_all_candidates_fail(digits):
    X = np.repeat(digits[0][:10], 10, axis=0)
    teacher = searching(reg_covar=0.0, covariance_type="full", n_components=[9, 10])
    with pytest.raises(ValueError, match=r"All 4 candidates failed: .*LinAlgError"):
        teacher.fit(X)


def test_components_without_samples_are_a_failure(digits):
    """Seventeen components do not separate three clusters better."""
    X = np.repeat(digits[0][:3], 200, axis=0)
    message = "some components have no samples|distinct clusters"
    with pytest.warns((FitFailedWarning, ConvergenceWarning), match=message):
        teacher = GMMTeacher([2, 3, 17], covariance_type="full", random_state=0).fit(X)
    assert teacher.n_components_ == 3
    assert "components have no samples" in teacher.search_results_["error"][2]


@pytest.mark.slow
def test_narrow_clusters_are_fitted_in_float64():
    """They lie 10,000 deviations apart: float32 has too few digits."""
    rng = np.random.default_rng(0)
    X = (
        1e-4 * rng.normal(size=(2000, 8))
        + rng.normal(size=(5, 8))[rng.integers(5, size=2000)]
    )
    for covariance_type in ("full", "diag", "tied", "spherical"):
        settings = {
            "pca_components": 8,
            "covariance_type": covariance_type,
            "reg_covar": 1e-7,
            "random_state": 0,
        }
        searched = GMMTeacher([4, 5], n_init=8, **settings).fit(X)
        alone = GMMTeacher(5, n_init=8, **settings).fit(X)
        assert searched.n_components_ == 5
        assert searched.mixture_.lower_bound_ == pytest.approx(
            alone.mixture_.lower_bound_, rel=1e-5
        )


@pytest.mark.slow
def test_the_mixture_is_as_scikit_learn_leaves_it(digits, found):
    for covariance_type in ("full", "tied", "diag", "spherical"):
        teacher = GMMTeacher([3, 6], covariance_type=covariance_type, random_state=0)
        mixture = teacher.fit(digits[0]).mixture_
        samples = teacher.pca_.transform(digits[0])
        assert mixture.score(samples) == pytest.approx(mixture.lower_bound_, abs=1e-3)
        start = {
            "weights_init": mixture.weights_,
            "means_init": mixture.means_,
            "precisions_init": mixture.precisions_,
        }
        plain = clone(mixture).set_params(**start, n_init=1).fit(samples)
        names = {name for name in vars(plain) if name.endswith("_")}
        assert len(mixture.lower_bounds_) == mixture.n_iter_
        for name in names - {"n_iter_", "lower_bounds_"}:
            ours, theirs = getattr(mixture, name), getattr(plain, name)
            atol = 0.02 * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=name)


def test_duplicated_samples_and_constant_columns(digits):
    X = np.repeat(digits[0][:50], 4, axis=0)
    X[:, 5] = 3.0
    teacher = searching(**SMALL).fit(X)
    assert teacher.search_results_["usable"].any()
    assert np.isfinite(teacher.transform(X)).all()


@pytest.mark.parametrize(
    "params",
    [
        {"n_components": []},
        {"n_components": [3, 0]},
        {"n_components": [3, 2.5]},
        {"n_components": [3, True]},
        {"n_components": [[3, 4]]},
        {"pca_components": ["many", 3]},
        {"covariance_type": []},
        {"covariance_type": ["full", "round"]},
    ],
    ids=repr,
)
def test_bad_lists(digits, params):
    (name,) = params
    with pytest.raises(ValueError, match=f"{name} must be a value or a non-empty"):
        searching(**params).fit(digits[0])


def interrupted_at(monkeypatch, place):
    """Let Ctrl-C arrive in the fit of one mixture."""
    calls = itertools.count(1)
    fit_fast = module.fit_fast

    def fit(*args, **kwargs):
        if next(calls) == place:
            signal.raise_signal(signal.SIGINT)
        return fit_fast(*args, **kwargs)

    monkeypatch.setattr(module, "fit_fast", fit)


@pytest.mark.slow
def test_ctrl_c_keeps_the_candidates_done(digits, monkeypatch):
    interrupted_at(monkeypatch, place=3 * 5 + 1)  # three restarts a candidate
    teacher = searching()
    with pytest.raises(KeyboardInterrupt, match="after 5 of 12 candidates") as error:
        teacher.fit(digits[0])
    assert error.value.estimator is teacher
    assert list(teacher.search_results_["error"] == "interrupted") == 5 * [
        False
    ] + 7 * [True]
    assert teacher.n_components_ in (4, 8)
    assert teacher.transform(digits[1]).shape == (450, teacher.n_components_)


def test_ctrl_c_before_any_candidate_leaves_the_earlier_fit(digits, monkeypatch):
    teacher = searching(n_components=3).fit(digits[0])
    before = teacher.transform(digits[1])
    interrupted_at(monkeypatch, place=1)
    with pytest.raises(KeyboardInterrupt):
        teacher.set_params(n_components=[4, 8]).fit(digits[0])
    np.testing.assert_array_equal(teacher.transform(digits[1]), before)


@pytest.mark.slow
def test_ctrl_c_in_the_last_fit_keeps_the_search(digits, monkeypatch):
    interrupted_at(monkeypatch, place=3 * 12 + 1)
    teacher = searching()
    with pytest.raises(KeyboardInterrupt, match="on 1010 samples is kept"):
        teacher.fit(digits[0])
    assert (teacher.search_results_["error"] == "").all()
    assert np.isfinite(teacher.transform(digits[1])).all()


def test_ctrl_c_with_nothing_that_fits_the_budget(digits, monkeypatch):
    interrupted_at(monkeypatch, place=3 * 5 + 1)
    with pytest.raises(KeyboardInterrupt):
        searching(temperature=1.0, energy_budget=1e-3).fit(digits[0])


@pytest.mark.slow
def test_ctrl_c_with_threads(digits, monkeypatch):
    """Ctrl-C reaches the main thread; results are kept, and every thread stops."""
    evaluate = module._Evaluator.evaluate
    monkeypatch.setattr(
        module._Evaluator, "evaluate", lambda *args: time.sleep(0.05) or evaluate(*args)
    )
    monkeypatch.setattr(module, "_report", report := Report(stop_after=3))
    before = set(threading.enumerate())
    teacher = searching(n_jobs=2)
    with pytest.raises(KeyboardInterrupt, match="after 3 of 12 candidates"):
        teacher.fit(digits[0])
    assert report.seen == 3
    done = teacher.search_results_["error"] == ""
    assert done.sum() == 3
    assert np.isfinite(teacher.search_results_["information"][done]).all()
    assert set(threading.enumerate()) <= before


def test_each_thread_takes_one_core(digits, monkeypatch):
    limits = []
    evaluate = module._Evaluator.evaluate
    monkeypatch.setattr(
        module._Evaluator,
        "evaluate",
        lambda *args: limits.append(blas_threads()) or evaluate(*args),
    )
    before = blas_threads()
    searching(**SMALL, n_jobs=2).fit(digits[0])
    assert set(limits) == {1}
    assert blas_threads() == before


def blas_threads():
    return max(pool["num_threads"] for pool in threadpool_info())


class Report:
    def __init__(self, stop_after):
        self.seen, self.stop_after = 0, stop_after

    def __call__(self, *args):
        self.seen += 1
        if self.seen == self.stop_after:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_verbose(digits, capsys):
    searching(**SMALL, verbose=2).fit(digits[0])
    out, err = capsys.readouterr()
    assert "4/4" in err
    assert "n_components=8, pca_components=6, covariance_type='tied': inf" in out + err
    searching(**SMALL).fit(digits[0])
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_inside_a_vae(digits):
    vae = CertifiedVAE(searching(**SMALL), latent_dim=7, max_epochs=2, random_state=0)
    vae.fit(digits[0])
    assert vae.vertices_.shape == (vae.teacher_.n_components_, 7)
    vae.set_params(warm_start=True, teacher__n_jobs=2, teacher__verbose=1)
    assert vae.fit(digits[0]).n_iter_ == 2


def test_an_interrupted_search_does_not_end_in_the_cache(digits, monkeypatch, tmp_path):
    vae = CertifiedVAE(
        searching(**SMALL),
        latent_dim=7,
        max_epochs=1,
        memory=str(tmp_path),
        random_state=0,
    )
    with monkeypatch.context() as patch:
        interrupted_at(patch, place=4)
        with pytest.raises(KeyboardInterrupt):
            vae.fit(digits[0])
    assert not hasattr(vae, "teacher_")
    results = vae.fit(digits[0]).teacher_.search_results_
    assert (results["error"] == "").all()


def patches(n_samples, subset):
    return load_patches(n_samples, size=8, subset=subset, random_state=0).data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "patches"])
def test_a_vae_with_the_teacher_found_is_certified(name, digits):
    """On held-out samples, with default settings of the VAE."""
    train, test = digits
    if name == "patches":
        train, test = patches(2000, "train"), patches(1000, "test")
    teacher = GMMTeacher([5, 10, 17], covariance_type=["full", "tied", "spherical"])
    certifier = CollapseCertifier(CertifiedVAE(teacher, random_state=0)).fit(train)
    certificate = certifier.certify(test)
    assert certificate.verdict == "certified"
    assert certificate.relative_margin > 0.5


def test_a_search_that_may_not_fit_the_code_is_refused_before_it_starts(digits):
    vae = CertifiedVAE(searching(n_components=[4, 20]), latent_dim=7)
    with pytest.raises(ValueError, match=r"latent_dim must be at least 19.*\[4, 20\]"):
        vae.fit(digits[0])
    assert not hasattr(vae, "teacher_")


@pytest.mark.slow
def test_no_warnings_on_plain_data(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searching().fit(digits[0])
