"""Scorers, refit rules and the demand for a certificate."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.bounds import bernstein_bound, betting_bound
from skvaecert.exceptions import (
    KnownSamplesWarning,
    NotCertifiedError,
    NotCertifiedWarning,
)
from skvaecert.model_selection import (
    LOWEST_SCORE,
    best_certified,
    certificate_scorers,
    certified_scorer,
    elbo_scorer,
    lower_bound_scorer,
    margin_scorer,
    reconstruction_scorer,
    relative_margin_scorer,
    require_certified,
    sampled_information_scorer,
    smallest_certifying_weight,
)

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


@pytest.mark.slow
def test_scores_are_those_they_are_named_after(fitted, blobs):
    X, vae = blobs[1::2], fitted.estimator_
    certificate = fitted.certify(X)
    proba = fitted.teacher_.predict_proba(X)
    log_q = vae.witness_log_proba(X)
    output = vae.inverse_transform(vae.transform(X))
    explained = r2_score(X, output, multioutput="variance_weighted")
    expected = {
        "certified": 1.0,
        "margin": fitted.score(X),
        "relative_margin": certificate.relative_margin,
        "lower_bound": betting_bound(proba, log_q),
        "elbo": vae.score(X),
        "reconstruction": explained - 1,
        "sampled_information": fitted.certify(X, kind="sampled").margin,
    }
    for name, scorer in SCORERS.items():
        score = scorer(fitted, X)
        assert type(score) is float
        assert score == pytest.approx(expected[name], rel=1e-9), name
    together = certificate_scorers(fitted, X)
    assert together == pytest.approx(expected, rel=1e-9)
    assert all(type(score) is float for score in together.values())


def test_scorers_are_functions_with_names():
    for name, scorer in SCORERS.items():
        assert scorer.__name__ == f"{name}_scorer"
        assert pickle.loads(pickle.dumps(scorer)) is scorer
    assert len({scorer.__doc__ for scorer in SCORERS.values()}) == len(SCORERS)


def test_scores_have_options(fitted, blobs):
    X = blobs[1::2]
    bounds = [
        partial(lower_bound_scorer, confidence=0.999),
        partial(lower_bound_scorer, bound=bernstein_bound),
    ]
    for scorer in bounds:
        assert scorer(fitted, X) < lower_bound_scorer(fitted, X)
    more = sampled_information_scorer(fitted, X, n_draws=50)
    assert more == fitted.certify(X, kind="sampled", n_draws=50).margin


def test_drawn_codes_of_the_fit_have_a_training_score(fitted, blobs):
    seen = blobs[::2]
    with pytest.raises(ValueError, match="in fit"):
        fitted.certify(seen, kind="sampled")
    held_out = sampled_information_scorer(fitted, blobs[1::2])
    assert sampled_information_scorer(fitted, seen) == pytest.approx(held_out, abs=0.3)


@pytest.mark.slow
def test_samples_go_through_earlier_steps(quick, blobs):
    pipeline = make_pipeline(StandardScaler(), CollapseCertifier(quick))
    grid = {"collapsecertifier__safety_margin": [0.0]}
    search = GridSearchCV(pipeline, grid, cv=FOLDS).fit(blobs)
    best = search.best_estimator_
    expected = certificate_scorers(best[-1], best[0].transform(blobs))
    for estimator in (best, search, FrozenEstimator(best), make_pipeline(best)):
        assert certificate_scorers(estimator, blobs) == expected
        assert margin_scorer(estimator, blobs) == expected["margin"]
    assert expected["margin"] != certificate_scorers(best[-1], blobs)["margin"]


def test_a_vae_without_certifier_has_most_scores(fitted, blobs):
    vae = fitted.estimator_
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
    # The witness knows half of these rows.
    with pytest.warns(KnownSamplesWarning, match="30 of 60"):
        assert certificate_scorers(certifier, blobs[::2])["certified"] == 1

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


@pytest.mark.slow
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


def test_a_single_sample_has_finite_scores(fitted, blobs):
    scores = certificate_scorers(fitted, blobs[:1])
    assert np.isfinite(list(scores.values())).all()
    assert scores["margin"] <= 0
    assert scores["reconstruction"] == scores["relative_margin"] == LOWEST_SCORE


def test_reconstruction_of_the_mean_is_minus_one(blobs):
    encoder = BrokenDecoder().fit(blobs)
    encoder.output = blobs.mean(axis=0)
    certifier = CollapseCertifier(FrozenEstimator(encoder), teacher=GMMTeacher(4))
    score = reconstruction_scorer(certifier.fit(blobs), blobs)
    assert score == pytest.approx(-1)


@pytest.mark.slow
def test_scores_in_cross_validation(quick, blobs):
    certifier = CollapseCertifier(quick.set_params(max_epochs=5))
    scoring = SCORERS | {"loose": partial(lower_bound_scorer, confidence=0.5)}
    results = cross_validate(certifier, blobs, scoring=scoring, cv=FOLDS)
    both = cross_validate(certifier, blobs, scoring=certificate_scorers, cv=FOLDS)
    for name in SCORERS:
        scores = results[f"test_{name}"]
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(scores, both[f"test_{name}"], rtol=1e-9)
    assert (results["test_loose"] > results["test_lower_bound"]).all()


GRID_OF_WEIGHTS = {"estimator__alignment_weight": [0.0, 1.0, 100.0]}


@pytest.mark.slow
def test_rules_choose_less_than_the_margin(quick, blobs):
    settings = {"scoring": certificate_scorers, "cv": FOLDS, "return_train_score": True}
    search = GridSearchCV(
        CollapseCertifier(quick), GRID_OF_WEIGHTS, refit=best_certified, **settings
    )
    results = search.fit(blobs).cv_results_
    assert results["mean_test_certified"].tolist()[1:] == [1, 1]
    assert np.isfinite(results["mean_train_sampled_information"]).all()
    assert search.best_params_["estimator__alignment_weight"] == 1
    assert smallest_certifying_weight(results) == 1
    assert results["mean_test_margin"].argmax() == 2
    margin = results["split0_test_margin"][1] + 1e-6
    assert best_certified(results, min_margin=margin) == 2
    assert certified_scorer(search, blobs) == 1


@pytest.mark.slow
def test_the_margin_alone_picks_the_largest_weight(quick, blobs):
    certifier = CollapseCertifier(quick.set_params(kl_weight=4.0, max_epochs=10))
    settings = {"cv": FOLDS, "min_resources": 60, "factor": 2}
    search = HalvingGridSearchCV(
        certifier, GRID_OF_WEIGHTS, scoring=margin_scorer, **settings
    )
    search.fit(blobs)
    assert search.best_params_["estimator__alignment_weight"] == 100


@pytest.mark.slow
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


def test_required_certificates(fitted, blobs):
    X, vae = blobs[1::2], fitted.estimator_
    assert require_certified(fitted, X) == fitted.certify(X)
    assert require_certified(vae, X).margin == fitted.score(X)
    proba = fitted.teacher_.predict_proba(X)
    for estimator in (fitted, vae):
        certificate = require_certified(estimator, X, teacher_proba=proba)
        assert certificate.margin == fitted.score(X)
    assert require_certified(fitted, X, kind="sampled").kind == "sampled"
    with pytest.raises(TypeError, match="got PCA"):
        require_certified(PCA(2).fit(X), X)


def test_a_missing_certificate_stops_a_script(fitted, blobs):
    X, careful = blobs[1::2], copy.deepcopy(fitted).set_params(safety_margin=3.0)
    with pytest.raises(NotCertifiedError, match=r"^Not certified\. \w+: on") as caught:
        require_certified(careful, X)
    certificate = caught.value.certificate
    assert certificate == careful.certify(X)
    assert str(certificate) in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.certificate == certificate
