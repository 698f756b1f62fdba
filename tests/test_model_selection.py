"""Scorers, rules for searches, and the certificate of what they score."""

import copy
import pickle

import numpy as np
import pytest
import sklearn
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
from skvaecert._samples import fingerprint_samples
from skvaecert.bounds import bernstein_bound, betting_bound
from skvaecert.exceptions import KnownSamplesWarning, NotCertifiedWarning
from skvaecert.model_selection import (
    LOWEST_SCORE,
    BestCertified,
    CertificateScorer,
    SmallestCertifyingWeight,
    certificate_of,
    certificate_scorers,
    certified_scorer,
    elbo_scorer,
    lower_bound_scorer,
    margin_scorer,
    reconstruction_scorer,
    relative_margin_scorer,
    sampled_information_scorer,
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


def test_scorers_are_objects_that_copy_and_pickle(fitted, blobs):
    for name, scorer in SCORERS.items():
        assert repr(scorer) == f"CertificateScorer('{name}')"
    scorer = CertificateScorer("lower_bound", confidence=0.9)
    assert repr(scorer) == "CertificateScorer('lower_bound', confidence=0.9)"
    for again in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert repr(again) == repr(scorer)
        assert again(fitted, blobs[1::2]) == scorer(fitted, blobs[1::2])


def test_scores_have_options(fitted, blobs):
    X = blobs[1::2]
    bounds = [
        CertificateScorer("lower_bound", confidence=0.999),
        CertificateScorer("lower_bound", bound=bernstein_bound),
    ]
    for scorer in bounds:
        assert scorer(fitted, X) < lower_bound_scorer(fitted, X)
    more = CertificateScorer("sampled_information", n_draws=50)(fitted, X)
    assert more == fitted.certify(X, kind="sampled", n_draws=50).margin


def test_what_is_no_score_or_option_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'margin', .*got 'marginal'"):
        CertificateScorer("marginal")
    with pytest.raises(TypeError, match=r"score 'margin': .*'confidence'"):
        CertificateScorer("margin", confidence=0.9)


def test_drawn_codes_of_the_fit_have_a_training_score(fitted, blobs):
    seen = blobs[::2]
    with pytest.raises(ValueError, match="samples of fit"):
        fitted.certify(seen, kind="sampled")
    held_out = sampled_information_scorer(fitted, blobs[1::2])
    assert sampled_information_scorer(fitted, seen) == pytest.approx(held_out, abs=0.3)


@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.KnownSamplesWarning")
def test_margins_on_samples_of_a_fitted_witness_are_training_scores(blobs):
    certifier = CollapseCertifier(PCA(3), teacher=GMMTeacher(4), witness="linear")
    certifier.fit(blobs)
    half = certifier.certificate_.n_samples
    known = blobs[np.isin(fingerprint_samples(blobs), certifier._calibration.rows)]
    assert len(known) == len(blobs) - half
    for X in (blobs, known):
        assert margin_scorer(certifier, X) == pytest.approx(certifier.score(X))
        scores = certificate_scorers(certifier, X)
        assert scores["margin"] == margin_scorer(certifier, X)
        assert 0 < scores["relative_margin"] <= 1
    # No verdict is based on these samples.
    assert scores["certified"] == 0


class SearchOfAnotherLibrary:
    """All that they have in common."""

    def __init__(self, best):
        self.best_estimator_ = best


@pytest.mark.slow
def test_samples_go_through_earlier_steps(quick, blobs):
    pipeline = make_pipeline(StandardScaler(), CollapseCertifier(quick))
    grid = {"collapsecertifier__safety_margin": [0.0]}
    search = GridSearchCV(pipeline, grid, cv=FOLDS).fit(blobs)
    best = search.best_estimator_
    expected = certificate_scorers(best[-1], best[0].transform(blobs))
    other = SearchOfAnotherLibrary(best)
    nested = FrozenEstimator(best), make_pipeline(best), make_pipeline(other)
    for estimator in (best, search, other, *nested):
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
    assert scores.keys() == SCORERS.keys() - {"elbo"}
    # The same names for all candidates, also if the encoder has no such value.
    assert scores["sampled_information"] == LOWEST_SCORE
    assert scores["certified"] == 1
    # The witness was fitted on half of these samples.
    with pytest.warns(KnownSamplesWarning, match="30 of 60"):
        assert certificate_scorers(certifier, blobs[::2])["certified"] == 1

    encoder = FrozenEstimator(Projection().fit(blobs))
    blind = CollapseCertifier(encoder, teacher=GMMTeacher(4)).fit(blobs)
    with pytest.raises(TypeError, match=r"inverse_transform.*got Projection without"):
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
    """A teacher with the same posterior for each sample."""

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
    scoring = SCORERS | {"loose": CertificateScorer("lower_bound", confidence=0.5)}
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
    search = GridSearchCV(
        CollapseCertifier(quick),
        GRID_OF_WEIGHTS,
        cv=FOLDS,
        return_train_score=True,
        **BestCertified().search_params,
    )
    results = search.fit(blobs).cv_results_
    assert results["mean_test_certified"].tolist()[1:] == [1, 1]
    assert np.isfinite(results["mean_train_sampled_information"]).all()
    assert search.best_params_["estimator__alignment_weight"] == 1
    assert SmallestCertifyingWeight().choose(results) == 1
    assert results["mean_test_margin"].argmax() == 2
    margin = results["split0_test_margin"][1] + 1e-6
    assert BestCertified(min_margin=margin).choose(results) == 2
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
    """Two folds; a single value is used for both folds."""
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
    assert BestCertified().choose(results) == 1
    assert BestCertified(min_margin=0.35).choose(results) == 2
    assert BestCertified(by="margin").choose(results) == 2


def test_a_search_without_certified_candidates_keeps_its_results():
    margins = [[-1.0, 0.3, 0.1, np.nan], [-1.0, -0.5, 0.0, np.nan]]
    weights = {"param_alignment_weight": [1, 2, 3, 4], "mean_test_elbo": [1, 2, 3, 4]}
    results = results_of(0, margins, **weights)
    for rule in (BestCertified(), SmallestCertifyingWeight()):
        with pytest.warns(NotCertifiedWarning, match=r"highest.* is 0, at index 2"):
            assert rule.choose(results) == 2


def test_the_smallest_weight_that_certifies():
    certified, margin = [1, 1, 1, 0], [0.9, 0.5, 0.5, 0.1]
    weights = np.ma.array([10.0, 1, 1.0, 0.1], dtype=object)
    columns = {"param_vae__alignment_weight": weights, "mean_test_elbo": [9, 1, 2, 3]}
    columns["param_vae__kl_weight"] = [1, 1, 8, 1]
    results = results_of(certified, margin, **columns)
    assert SmallestCertifyingWeight().choose(results) == 2
    # Without an ELBO, the margin decides between equal weights: the first here.
    del results["mean_test_elbo"]
    assert SmallestCertifyingWeight().choose(results) == 1
    assert SmallestCertifyingWeight(min_margin=0.6).choose(results) == 0


def test_weights_that_are_no_numbers_come_last():
    weights = np.ma.array(["auto", 0.0, 5.0, 1], mask=[0, 1, 0, 0], dtype=object)
    results = results_of(1, 0.5, param_alignment_weight=weights)
    assert SmallestCertifyingWeight().choose(results) == 3
    results = results_of([1, 0, 0, 0], 0.5, param_alignment_weight=weights)
    assert SmallestCertifyingWeight().choose(results) == 0


NAMES = "a__alignment_weight", "b__alignment_weight"
TWO_WEIGHTS = dict(zip(NAMES, ([1, 2, 3, 4], [4, 3, 2, 1]), strict=True))


@pytest.mark.parametrize(
    ("rule", "columns", "chosen", "missing"),
    [
        (BestCertified("elbo"), {"elbo": [np.nan] * 4}, 2, r"'elbo'.*'reconstruction'"),
        (BestCertified("sampled_information"), {"elbo": [1, 2, 3, 4]}, 3, "'elbo'"),
        (SmallestCertifyingWeight(), {}, 2, "ends in 'alignment_weight'"),
        (SmallestCertifyingWeight("c"), TWO_WEIGHTS, 2, r"parameter c\."),
        (SmallestCertifyingWeight(), TWO_WEIGHTS, 2, NAMES[1]),
    ],
)
def test_what_the_results_lack_is_a_warning(rule, columns, chosen, missing):
    """An error would throw away a search, after all its fits."""
    results = results_of(1, 0.5, mean_test_reconstruction=[-3, -2, -1, -2])
    for name, values in columns.items():
        results[f"param_{name}" if "_" in name else f"mean_test_{name}"] = values
    with pytest.warns(UserWarning, match=missing):
        assert rule.choose(results) == chosen


def test_a_parameter_that_is_named_is_taken():
    results = results_of(1, 0.5, **{f"param_{k}": v for k, v in TWO_WEIGHTS.items()})
    assert SmallestCertifyingWeight(NAMES[1]).choose(results) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestCertified("elb"), "by must be .*'elbo', .*got 'elb'"),
        (lambda: BestCertified(min_margin=np.nan), "min_margin must be .*got nan"),
        (lambda: SmallestCertifyingWeight(min_margin="1"), "min_margin must be"),
        (
            lambda: BestCertified(scoring=margin_scorer),
            r"scorers, .*'margin'",
        ),
    ],
)
def test_options_are_checked_before_a_search(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class NeverFitted(Projection):
    def fit(self, X, y=None):
        raise AssertionError("it was fitted")


@pytest.mark.parametrize("search", [GridSearchCV, HalvingGridSearchCV])
def test_a_rule_without_its_scoring_is_refused_before_the_first_fit(blobs, search):
    certifier = CollapseCertifier(NeverFitted())
    grid = {"safety_margin": [0.0, 1.0]}
    with pytest.raises(ValueError, match=r"'refit' parameter .*BestCertified"):
        search(certifier, grid, refit=BestCertified()).fit(blobs)
    with pytest.raises(TypeError, match=r"multiple values .*'scoring'"):
        search(certifier, grid, scoring=None, **BestCertified().search_params)


def test_results_without_certificates_are_named():
    with pytest.raises(ValueError, match=r"'margin'.*got mean_test_score"):
        BestCertified().choose({"mean_test_score": [1], "split0_test_score": [1]})


def test_the_warning_points_at_the_search(quick, blobs):
    vae = quick.set_params(max_epochs=1, alignment_weight=0, kl_weight=1e3)
    grid = {"estimator__random_state": [0, 1]}
    settings = {"cv": FOLDS, **BestCertified().search_params}
    search = GridSearchCV(CollapseCertifier(vae), grid, **settings)
    with pytest.warns(NotCertifiedWarning) as warned:
        search.fit(blobs)
    assert warned[0].filename == __file__
    assert "mean_test_margin" in search.cv_results_


def test_metadata_reach_the_certificate(fitted, blobs):
    X, rng = blobs[1::2], np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(4), len(X))
    given = {"teacher_proba": proba, "sample_weight": rng.uniform(1, 2, len(X))}
    whole = fitted.certify(X, **given)
    scores = certificate_scorers(fitted, X, **given)
    drawn = fitted.certify(X, kind="sampled", **given)
    assert scores.keys() == SCORERS.keys() - {"lower_bound"}
    assert scores["certified"] == whole.certified == 0
    assert scores["margin"] == pytest.approx(whole.margin)
    assert scores["relative_margin"] == pytest.approx(whole.relative_margin)
    assert scores["sampled_information"] == drawn.margin
    assert certified_scorer(fitted, X) == 1
    bound = lower_bound_scorer(fitted, X, teacher_proba=proba)
    log_q = fitted.estimator_.witness_log_proba(X)
    assert bound == betting_bound(proba, log_q)
    with pytest.raises(ValueError, match="sample_weight must be None"):
        lower_bound_scorer(fitted, X, **given)


def test_weights_count_samples_several_times(fitted, blobs):
    X, weight = blobs[1:20:2], np.arange(10)
    repeated = np.repeat(X, weight, axis=0)
    for name in ("margin", "relative_margin", "elbo", "reconstruction"):
        scorer = SCORERS[name]
        score = scorer(fitted, X, sample_weight=weight)
        # The draws of the ELBO differ.
        tolerance = 0.1 if name == "elbo" else 1e-6
        assert score == pytest.approx(scorer(fitted, repeated), rel=tolerance), name
        assert score != pytest.approx(scorer(fitted, X), rel=1e-3), name


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("routing")
def test_a_search_cuts_posteriors_and_weights_for_the_scorers(quick, blobs):
    rng = np.random.default_rng(0)
    proba = GMMTeacher(4, random_state=0).fit_transform(blobs)
    weight = rng.integers(0, 2, len(blobs))
    certifier = CollapseCertifier(quick.set_params(max_epochs=3))
    certifier.set_fit_request(teacher_proba=True)
    scorer = certificate_scorers.set_score_request(
        teacher_proba=True, sample_weight="of_scores"
    )
    dictionary = {
        name: CertificateScorer(name).set_score_request(
            teacher_proba=True, sample_weight="of_scores"
        )
        for name in ("certified", "margin")
    }
    pipeline = make_pipeline(StandardScaler(), certifier)
    margins = []
    for scoring in (scorer, dictionary):
        search = GridSearchCV(
            pipeline,
            {"collapsecertifier__safety_margin": [0.0]},
            cv=FOLDS,
            error_score="raise",
            **BestCertified().search_params | {"scoring": scoring},
        )
        search.fit(blobs, teacher_proba=proba, of_scores=weight)
        margins.append(search.cv_results_["split0_test_margin"][0])
    train, test = next(FOLDS.split(blobs))
    fitted = pipeline.fit(blobs[train], teacher_proba=proba[train])
    given = {"teacher_proba": proba[test], "sample_weight": weight[test]}
    expected = certificate_of(fitted, blobs[test], **given).margin
    assert margins == [pytest.approx(expected)] * 2


@pytest.mark.usefixtures("routing")
def test_metadata_that_were_not_requested_raise(blobs):
    certifier = CollapseCertifier(NeverFitted())
    certifier.set_fit_request(teacher_proba=True)
    search = GridSearchCV(certifier, {"safety_margin": [0]}, scoring=margin_scorer)
    proba = np.full((len(blobs), 2), 0.5)
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="'margin'"):
        search.fit(blobs, teacher_proba=proba)
    both = margin_scorer.set_score_request(teacher_proba=True)
    both = both.set_score_request(sample_weight="w")
    assert both.get_metadata_routing().score.requests == {
        "teacher_proba": True,
        "sample_weight": "w",
    }
    # A request of one search is not a request of another.
    asking = margin_scorer.set_score_request(teacher_proba=True)
    assert asking.get_metadata_routing().score.requests["teacher_proba"] is True
    assert margin_scorer.get_metadata_routing().score.requests["teacher_proba"] is None


def test_a_request_that_nothing_routes_is_refused():
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        margin_scorer.set_score_request(teacher_proba=True)


class Constant(Projection):
    def transform(self, X):
        return np.full((len(X), 3), 0.1)


@pytest.mark.parametrize("witness", ["procrustes", "linear"])
def test_no_metadata_certify_a_constant_encoder(blobs, witness):
    """Twin: posteriors with information certify an encoder that varies."""
    X, rng = blobs[1::2], np.random.default_rng(0)
    weights = [None, rng.uniform(size=len(X)), np.arange(len(X)) > 30]
    for encoder, certified in ((Constant(), 0), (PCA(3), 1)):
        certifier = CollapseCertifier(encoder, teacher=GMMTeacher(4), witness=witness)
        certifier.fit(blobs[::2])
        search = make_pipeline(SearchOfAnotherLibrary(certifier))
        for weight in weights:
            given = {
                "teacher_proba": certifier.teacher_.predict_proba(X),
                "sample_weight": weight,
            }
            assert certified_scorer(search, X, **given) == certified
            given["teacher_proba"] = rng.dirichlet(np.ones(4), len(X))
            assert certified_scorer(search, X, **given) == 0


def test_errors_in_data_are_no_score(fitted, blobs):
    with pytest.raises(ValueError, match="sample_weight"):
        certified_scorer(fitted, blobs, sample_weight=np.full(len(blobs), -1.0))


def test_certificates_of_what_is_scored(fitted, blobs):
    X, vae = blobs[1::2], fitted.estimator_
    assert certificate_of(fitted, X) == fitted.certify(X)
    assert certificate_of(vae, X).margin == fitted.score(X)
    proba = fitted.teacher_.predict_proba(X)
    for estimator in (fitted, vae):
        certificate = certificate_of(estimator, X, teacher_proba=proba)
        assert certificate.margin == fitted.score(X)
    assert certificate_of(fitted, X, kind="sampled").kind == "sampled"
    with pytest.raises(TypeError, match="got PCA"):
        certificate_of(PCA(2).fit(X), X)
    # Not that the samples were in fit, which they were not.
    with pytest.raises(TypeError, match=r"for kind='sampled'.*FrozenEstimator\(vae\)"):
        certificate_of(make_pipeline(vae), X, kind="sampled")


def test_the_certificate_of_a_pipeline_for_every_verdict(fitted, blobs):
    X, scaler = blobs[1::2], StandardScaler(with_mean=False, with_std=False)
    careful = copy.deepcopy(fitted).set_params(safety_margin=3.0)
    for certifier, verdict in ((fitted, "certified"), (careful, "varies")):
        pipeline = make_pipeline(scaler.fit(X), certifier)
        assert certificate_of(pipeline, X) == certifier.certify(X)
        assert certificate_of(pipeline, X).verdict == verdict
