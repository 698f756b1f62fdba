"""Choosing a model: scores without labels, rules for searches, a gate, joint fits."""

import copy
import math
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import product
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from joblib import parallel_config
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
    clone,
    is_classifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, check_cv, train_test_split
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import _safe_split, available_if
from sklearn.utils.validation import (
    _check_method_params,
    check_is_fitted,
    validate_data,
)

from skvaecert._base import (
    NestedDefaultMixin,
    restored_on_error,
    seed_unset,
    sharing_results,
)
from skvaecert._certificate import Certificate
from skvaecert._certifier import CollapseCertifier
from skvaecert._together import JointTraining
from skvaecert._vae import CertifiedVAE
from skvaecert.bounds import betting_bound
from skvaecert.exceptions import NotCertifiedError, NotCertifiedWarning
from skvaecert.simplex import Floats

__all__ = [
    "LOWEST_SCORE",
    "BatchedGridSearchCV",
    "CertificationGate",
    "best_certified",
    "certificate_scorers",
    "certified_scorer",
    "elbo_scorer",
    "fit_together",
    "lower_bound_scorer",
    "margin_scorer",
    "reconstruction_scorer",
    "relative_margin_scorer",
    "require_certified",
    "sampled_information_scorer",
    "smallest_certifying_weight",
]

# What a score is that has no value: NaN would turn means to NaN, infinity their spread.
LOWEST_SCORE = float(np.finfo(np.float32).min)


def margin_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Score by the margin G = I_T - A, as :meth:`CollapseCertifier.score` does.

    Parameters
    ----------
    estimator : fitted estimator
        A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends in
        one, or a search over one.
    X : array-like of shape (n_samples, n_features)
        Rows. They go through the steps before the certifier.
    y : Ignored
        Present by convention.

    Returns
    -------
    float
        Nats, at most the teacher information. Below 0 its order means little: a
        constant code reaches 0, a healthy one that was not aligned may have less.

    Raises
    ------
    TypeError
        If the estimator is of another kind.

    Notes
    -----
    The margin rises with the alignment weight. A search that maximises nothing else
    takes the largest weight that it was given: use :func:`best_certified` or
    :func:`smallest_certifying_weight`.

    References
    ----------
    Theory section 2; arXiv:2605.05813, arXiv:2605.18224.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold, cross_val_score
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.model_selection import margin_scorer
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> folds = KFold(3, shuffle=True, random_state=0)
    >>> X = load_iris().data
    >>> bool((cross_val_score(vae, X, scoring=margin_scorer, cv=folds) > 0.5).all())
    True
    """
    scored = _Scored(estimator, X)
    return scored.certifier.score(scored.rows)


def relative_margin_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Score by the margin's share of the teacher information, G / I_T.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present by convention.

    Returns
    -------
    float
        At most 1. `LOWEST_SCORE` where the teacher tells no rows apart: a share of
        nothing is no success.

    Notes
    -----
    It forgives a weak teacher: all of 0.1 nats scores higher than half of 2. Use it
    where the teacher stays the same.
    """
    return _Scored(estimator, X).relative_margin


def lower_bound_scorer(
    estimator: Any,
    X: ArrayLike,
    y: Any = None,
    *,
    bound: Callable[..., float] = betting_bound,
    **options: Any,
) -> float:
    """Score by a lower confidence bound on the population's margin.

    Give options by ``functools.partial(lower_bound_scorer, confidence=0.99)``.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`.
    X : array-like of shape (n_samples, n_features)
        Rows that were drawn independently from the population and not used in any
        `fit`.
    y : Ignored
        Present by convention.
    bound : callable, default=betting_bound
        One of :mod:`skvaecert.bounds`.
    **options : dict
        Handed to `bound`: `confidence`, 0.95 by default, and `floor`, 1e-3.

    Returns
    -------
    float
        Nats.

    Notes
    -----
    *Guarantee.* That of :func:`skvaecert.bounds.betting_bound`: for one fitted model,
    over the draw of the rows of one test fold, the score of that fold is at most the
    margin of the population with probability `confidence` or more. The mean over folds
    is no bound, and nor is the score of the best of several candidates: bound the
    chosen model on rows that took no part in the search.

    References
    ----------
    Theory section 13.
    """
    return _Scored(estimator, X).lower_bound(bound, **options)


def elbo_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Score by the mean evidence lower bound, as :meth:`CertifiedVAE.score` does.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`; the encoder must be a :class:`CertifiedVAE`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present by convention.

    Returns
    -------
    float
        Nats a sample. It is a density of the rows that reach the VAE: compare only
        candidates whose earlier steps are the same.

    Raises
    ------
    TypeError
        If the encoder has no ELBO.
    """
    return _Scored(estimator, X).elbo


def reconstruction_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    r"""Score by minus the share of variance that reconstructions leave unexplained.

    This is, with x' the reconstruction of the latent mean of x::

        - sum_ij (x_ij - x'_ij)^2 / sum_ij (x_ij - mean x_j)^2

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`; the encoder must have `inverse_transform`.
    X : array-like of shape (n_samples, n_features)
        Rows, at least two that differ.
    y : Ignored
        Present by convention.

    Returns
    -------
    float
        At most 0, and without a unit, so that data sets and scales compare. About -1
        for a decoder that returns the mean of all rows.

    Raises
    ------
    TypeError
        If the encoder has no decoder.

    Notes
    -----
    Rows are those that reach the encoder, after the steps before it.
    """
    return _Scored(estimator, X).reconstruction


def sampled_information_scorer(
    estimator: Any, X: ArrayLike, y: Any = None, *, n_draws: int = 8
) -> float:
    """Score by the information that drawn codes carry, a lower bound on I(x; z).

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`, but with a :class:`CollapseCertifier`, whose
        encoder must have `encode`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present by convention.
    n_draws : int, default=8
        Codes drawn of each row, at least 2.

    Returns
    -------
    float
        Nats, the margin of ``certify(X, kind="sampled")``. On rows of the fit, which
        `certify` refuses, it is a training score like others: too good.

    Raises
    ------
    TypeError
        If there is no certifier.
    ValueError
        If the encoder has no `encode`.

    References
    ----------
    Theory section 6.
    """
    return _Scored(estimator, X).sampled_information(n_draws)


def certified_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Score 1.0 if the latent mean is certified on `X`, else 0.0.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present by convention.

    Returns
    -------
    float
        1.0 or 0.0; the latter also on rows that a witness was fitted on.
    """
    return _Scored(estimator, X).certified


def certificate_scorers(
    estimator: Any, X: ArrayLike, y: Any = None
) -> dict[str, float]:
    """Return all scores that the estimator has, for searches over several.

    Use as ``GridSearchCV(..., scoring=certificate_scorers, refit=best_certified)``, or
    with a name as `refit`.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`margin_scorer`.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present by convention.

    Returns
    -------
    dict of float
        "certified", "margin", "relative_margin", "lower_bound"; "reconstruction" with a
        decoder, "elbo" with a :class:`CertifiedVAE`, "sampled_information" with a
        :class:`CollapseCertifier` around an encoder that has `encode`. The names say
        which scorer it is, with its defaults.

    Notes
    -----
    Latent means are computed once for all but "elbo" and "sampled_information", which
    need the network again. Rows, means and posteriors are in memory together.

    scikit-learn asks all candidates for the same names, and cannot go on after an error
    in a function that returns several scores. So search over encoders of one kind, and
    what has no value is `LOWEST_SCORE`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import certificate_scorers
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> scores = certificate_scorers(CollapseCertifier(vae).fit(X), X)
    >>> scores["certified"], scores["margin"] > scores["lower_bound"] > 0
    (1.0, True)
    """
    return _Scored(estimator, X).every_score()


class _Scored:
    """An estimator on some rows, and what several scores of it share."""

    def __init__(self, estimator: Any, X: ArrayLike) -> None:
        inner, self.rows = _certifying_part(estimator, X)
        self.has_certifier = isinstance(inner, CollapseCertifier)
        if not self.has_certifier:
            inner = CollapseCertifier(FrozenEstimator(inner)).fit(self.rows)
        check_is_fitted(inner)
        self.certifier: CollapseCertifier = inner

    @cached_property
    def means(self) -> NDArray[np.floating]:
        return self.certifier._means(self.rows)

    @cached_property
    def proba(self) -> Floats:
        return self.certifier._posterior(self.rows, None, len(self.means))

    @cached_property
    def certificate(self) -> Certificate:
        """That of :meth:`CollapseCertifier.certify`, from means that are there."""
        every = np.arange(len(self.means))
        return self.certifier._conclude(self.rows, self.means, self.proba, every)

    @property
    def certified(self) -> float:
        if self.certifier.witness_.name == "raw":
            return float(self.certificate.verdict == "certified")
        try:
            certificate = self.certifier.certify(self.rows)
        except ValueError:  # rows that the witness was fitted on
            return 0.0
        return float(certificate.verdict == "certified")

    @property
    def relative_margin(self) -> float:
        return _finite(self.certificate.relative_margin)

    def lower_bound(self, bound: Callable[..., float], **options: Any) -> float:
        log_q = self.certifier.witness_.log_proba(self.means)
        return _finite(bound(self.proba, log_q, **options))

    @property
    def vae(self) -> Any:
        """The encoder, where it is the estimator of this package."""
        owner = self.certifier._owner
        return owner.estimator if isinstance(owner, FrozenEstimator) else owner

    @property
    def elbo(self) -> float:
        if not isinstance(self.vae, CertifiedVAE):
            raise TypeError(
                "estimator must have a CertifiedVAE as its encoder for the ELBO, got "
                f"{type(self.vae).__name__}, whose decoder and posterior are not "
                "known. Use reconstruction_scorer or sampled_information_scorer."
            )
        return _finite(self.vae.score(self.rows))

    @property
    def has_decoder(self) -> bool:
        return hasattr(self.certifier.estimator_, "inverse_transform")

    @property
    def reconstruction(self) -> float:
        if not self.has_decoder:
            raise TypeError(
                "estimator must have an inverse_transform, its decoder, to be scored "
                f"by reconstruction; {type(self.vae).__name__} has none."
            )
        output = self.certifier._models.decode(self.means)
        rows = np.asarray(self.rows, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = np.square(rows - output).sum()
            return _finite(-error / np.square(rows - rows.mean(axis=0)).sum())

    def sampled_information(self, n_draws: int) -> float:
        if not self.has_certifier:
            raise TypeError(
                "estimator must be a CollapseCertifier to be scored by drawn codes, "
                "which are read by a witness tempered in its fit; got "
                f"{type(self.vae).__name__}. Use "
                f"CollapseCertifier({type(self.vae).__name__}(...))."
            )
        # certify would refuse training rows, whose scores a search may want.
        read = self.certifier._kind("sampled", n_draws, confidence=0.95)
        read.add(self.certifier._models, self.rows, None, None)
        return read.conclude(self.certifier.safety_margin).margin

    def every_score(self) -> dict[str, float]:
        scores = {
            "certified": self.certified,
            "margin": self.certificate.margin,
            "relative_margin": self.relative_margin,
            "lower_bound": self.lower_bound(betting_bound),
        }
        if self.has_decoder:
            scores["reconstruction"] = self.reconstruction
        if isinstance(self.vae, CertifiedVAE):
            scores["elbo"] = self.elbo
        tempered = self.certifier._calibration.witness
        if self.has_certifier and not isinstance(tempered, Exception):
            scores["sampled_information"] = self.sampled_information(n_draws=8)
        return scores


def _certifying_part(estimator: Any, X: ArrayLike) -> tuple[Any, Any]:
    """Return the certifier or VAE within an estimator, and the rows that reach it."""
    if isinstance(estimator, CollapseCertifier | CertifiedVAE):
        return estimator, X
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        # The steps look at X first: their errors say more.
        return _certifying_part(estimator[-1], estimator[:-1].transform(X))
    if isinstance(estimator, BaseSearchCV) and not hasattr(
        estimator, "best_estimator_"
    ):
        raise NotFittedError(
            f"This {type(estimator).__name__} has no best_estimator_: call fit, with "
            "refit."
        )
    return _certifying_part(_held(estimator, fitted=True), X)


def _held(estimator: Any, *, fitted: bool) -> Any:
    """Return what an estimator wraps; one that wraps nothing is an error."""
    if isinstance(estimator, Pipeline):
        return estimator[-1]
    if isinstance(estimator, FrozenEstimator):
        return estimator.estimator
    if isinstance(estimator, BaseSearchCV):
        return estimator.best_estimator_ if fitted else estimator.estimator
    if isinstance(estimator, CertificationGate):
        check_is_fitted(estimator)
        return estimator.estimator_
    raise TypeError(
        "estimator must be a CollapseCertifier or a CertifiedVAE, a Pipeline that ends "
        f"in one, or a search over one, got {type(estimator).__name__}. Wrap an "
        "encoder of another kind: CollapseCertifier(encoder)."
    )


def _finite(score: float) -> float:
    return max(float(score), LOWEST_SCORE) if math.isfinite(score) else LOWEST_SCORE


def best_certified(
    cv_results: Mapping[str, Any],
    *,
    by: str = "elbo",
    min_margin: float = 0.0,
    if_none: str = "warn",
) -> int:
    """Choose the best candidate among those that are certified in every fold.

    Use as ``GridSearchCV(..., scoring=certificate_scorers, refit=best_certified)``, and
    give options by ``functools.partial(best_certified, min_margin=0.5)``.

    Parameters
    ----------
    cv_results : dict of ndarray
        With the scores "certified" and "margin", and that named by `by`.
    by : str, default="elbo"
        The score whose mean over folds decides.
    min_margin : float, default=0.0
        Nats that the margin must reach in every fold, beside being certified.
    if_none : {"warn", "raise"}, default="warn"
        What to do if no candidate is certified: take the one whose lowest margin is
        highest, with a warning, or raise. An error loses all results of the search,
        for scikit-learn keeps them only after the choice.

    Returns
    -------
    int
        Index of the candidate.

    Raises
    ------
    ValueError
        If a score is missing or an option is not valid.
    NotCertifiedError
        If no candidate is certified and `if_none` is "raise".

    Warns
    -----
    NotCertifiedWarning
        If no candidate is certified.

    See Also
    --------
    smallest_certifying_weight : Needs no ELBO.

    Examples
    --------
    >>> from skvaecert.model_selection import best_certified
    >>> results = {
    ...     "mean_test_elbo": [3.0, 2.0, 1.0],
    ...     "split0_test_certified": [1, 1, 1], "split1_test_certified": [0, 1, 1],
    ...     "split0_test_margin": [0.1, 0.7, 0.9], "split1_test_margin": [0, 0.7, 0.9]}
    >>> best_certified(results)
    1
    """
    scores = _means_of(cv_results, by)
    held = _are_certified(cv_results, min_margin)
    if not held.any():
        return _nearest(cv_results, min_margin, if_none)
    return int(np.where(held, scores, -np.inf).argmax())


def smallest_certifying_weight(
    cv_results: Mapping[str, Any],
    *,
    parameter: str | None = None,
    min_margin: float = 0.0,
    if_none: str = "warn",
) -> int:
    """Choose the smallest alignment weight that is certified in every fold.

    Of candidates with the same weight, which differ in other parameters, the one with
    the highest mean ELBO is taken, or margin where there is no ELBO. Weights are
    compared as they stand, also where `kl_weight` varies: what they disturb is the
    reconstruction, whose weight is 1. Candidates without a number as their weight,
    "auto" for example, are left out.

    Parameters
    ----------
    cv_results : dict of ndarray
        With the scores "certified" and "margin".
    parameter : str, default=None
        Name of the weight; None for the only one that ends in "alignment_weight".
    min_margin : float, default=0.0
        As in :func:`best_certified`.
    if_none : {"warn", "raise"}, default="warn"
        As in :func:`best_certified`.

    Returns
    -------
    int
        Index of the candidate.

    Raises
    ------
    ValueError
        If scores or the parameter are missing, or an option is not valid.
    NotCertifiedError
        If no candidate is certified and `if_none` is "raise".

    Warns
    -----
    NotCertifiedWarning
        If no candidate is certified.

    Examples
    --------
    >>> from skvaecert.model_selection import smallest_certifying_weight
    >>> results = {
    ...     "param_estimator__alignment_weight": [10.0, 1.0, 0.1],
    ...     "mean_test_margin": [0.9, 0.7, -0.2],
    ...     "split0_test_certified": [1, 1, 0], "split0_test_margin": [0.9, 0.7, -0.2]}
    >>> smallest_certifying_weight(results)
    1
    """
    weights = _weights(cv_results, parameter)
    tie = "elbo" if "mean_test_elbo" in cv_results else "margin"
    scores = _means_of(cv_results, tie)
    held = _are_certified(cv_results, min_margin) & np.isfinite(weights)
    if not held.any():
        return _nearest(cv_results, min_margin, if_none)
    return int(np.lexsort((-scores, np.where(held, weights, np.inf)))[0])


def _means_of(cv_results: Mapping[str, Any], name: str) -> Floats:
    return _lowest_if_nan(_column(cv_results, f"mean_test_{name}"))


def _column(cv_results: Mapping[str, Any], key: str) -> Any:
    if key not in cv_results:
        raise ValueError(
            f"cv_results must have a column {key!r}, got {_names(cv_results)}. Search "
            "with scoring=certificate_scorers, or a dict with such a scorer."
        )
    return cv_results[key]


def _names(cv_results: Mapping[str, Any]) -> str:
    return ", ".join(k for k in cv_results if k.startswith(("mean_test", "param_")))


def _lowest_if_nan(values: Any) -> Floats:
    """Let candidates whose fit failed come last."""
    scores = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def _fold_scores(cv_results: Mapping[str, Any], name: str) -> Floats:
    """Return scores of shape (n_splits, n_candidates)."""
    pattern = re.compile(rf"split\d+_test_{name}")
    folds = [v for k, v in cv_results.items() if pattern.fullmatch(k)]
    return _lowest_if_nan(folds or [_column(cv_results, f"split0_test_{name}")])


def _are_certified(
    cv_results: Mapping[str, Any], min_margin: float
) -> NDArray[np.bool_]:
    certified = _fold_scores(cv_results, "certified") == 1
    enough = _fold_scores(cv_results, "margin") >= min_margin
    return np.asarray((certified & enough).all(axis=0))


def _weights(cv_results: Mapping[str, Any], parameter: str | None) -> Floats:
    """Return the alignment weight of each candidate, NaN where it is not a number."""
    key = f"param_{parameter}"
    if parameter is None:
        keys = [k for k in cv_results if re.search("(^param_|__)alignment_weight$", k)]
        if len(keys) != 1:
            raise ValueError(
                "cv_results must have one parameter whose name ends in "
                f"'alignment_weight', got {keys or _names(cv_results)}. Give its name "
                "as parameter."
            )
        (key,) = keys
    values = np.ma.asarray(_column(cv_results, key)).tolist()
    return np.array([v if isinstance(v, Real) else math.nan for v in values])


def _nearest(cv_results: Mapping[str, Any], min_margin: float, if_none: str) -> int:
    """Warn, or raise, and return the candidate that is nearest to being certified."""
    if if_none not in ("warn", "raise"):
        raise ValueError(f"if_none must be 'warn' or 'raise', got {if_none!r}.")
    lowest = _fold_scores(cv_results, "margin").min(axis=0)
    index = int(lowest.argmax())
    message = (
        f"No candidate is certified in every fold with a margin of {min_margin} nats "
        f"or more. The highest that one kept in all folds is {lowest[index]:.3g}, at "
        f"index {index}. Try larger alignment weights or more epochs; look at the "
        "teacher's information_, the most that a margin can be."
    )
    if if_none == "raise":
        raise NotCertifiedError(message)
    # From here through the rule and three calls of the search to the caller of fit.
    warnings.warn(NotCertifiedWarning(message), stacklevel=6)
    return index


def require_certified(estimator: Any, X: ArrayLike, **options: Any) -> Certificate:
    """Certify a fitted estimator on `X`, or raise: for scripts that must stop.

    Parameters
    ----------
    estimator : fitted estimator
        A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends in
        one, or a search over one.
    X : array-like of shape (n_samples, n_features)
        Rows, best such that were not used in a fit.
    **options : dict
        Handed to :meth:`CollapseCertifier.certify`: `kind`, `teacher_proba`, ...

    Returns
    -------
    Certificate
        Whose verdict is "certified".

    Raises
    ------
    NotCertifiedError
        If the verdict is another. Its attribute `certificate` has the numbers.
    TypeError
        If the estimator is of another kind.

    See Also
    --------
    CertificationGate : The same in `fit`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import require_certified
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> require_certified(CollapseCertifier(vae).fit(X[::2]), X[1::2]).n_samples
    75
    """
    inner, rows = _certifying_part(estimator, X)
    if not isinstance(inner, CollapseCertifier):
        proba = options.get("teacher_proba")
        inner = CollapseCertifier(FrozenEstimator(inner))
        inner.fit(rows, teacher_proba=proba)
    return _passed(inner.certify(rows, **options))


def _passed(certificate: Certificate) -> Certificate:
    if certificate.verdict != "certified":
        raise NotCertifiedError(f"Not certified. {certificate}", certificate)
    return certificate


def _is_frozen(estimator: Any) -> bool:
    return isinstance(estimator, FrozenEstimator)


def _has_inverse(gate: "CertificationGate") -> bool:
    return hasattr(gate._certifying_template, "inverse_transform")


class CertificationGate(
    NestedDefaultMixin, MetaEstimatorMixin, TransformerMixin, BaseEstimator
):
    """Fit and certify, or fail: a step for pipelines that must not go on collapsed.

    Parameters
    ----------
    estimator : estimator or None, default=None
        A :class:`CollapseCertifier`, a Pipeline that ends in one, or a search over
        one; None for ``CollapseCertifier()``. Any other encoder is put into a
        CollapseCertifier. In a :class:`sklearn.frozen.FrozenEstimator` a fitted one is
        only certified.
    kind : {"mean", "sampled", "round_trip"}, default="mean"
        What has to be certified, as in :meth:`CollapseCertifier.certify`. The last two
        need rows held out.
    held_out_fraction : float, default=0.0
        Share of the rows, drawn at random, on which nothing is fitted and that are
        certified instead of the training rows; from 0 to below 1.
    random_state : int, RandomState instance or None, default=None
        Draws the rows held out, and seeds the estimator where its own `random_state`
        is None.

    Attributes
    ----------
    estimator_ : estimator
        Fitted, and certified.
    certificate_ : Certificate
        On the rows of :meth:`fit` or those of them that were held out; its verdict is
        "certified". With a fitted witness and nothing held out, on the rows that the
        witness was not fitted on.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    require_certified : Of an estimator that is fitted already.

    Notes
    -----
    Set `safety_margin` of the certifier to ask for more than a margin above rounding.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.exceptions import NotCertifiedError
    >>> from skvaecert.model_selection import CertificationGate
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> gate = CertificationGate(vae, held_out_fraction=0.2, random_state=0)
    >>> gate.fit(load_iris().data).certificate_.n_samples
    30
    >>> try:
    ...     gate.set_params(estimator__kl_weight=1e3).fit(load_iris().data)
    ... except NotCertifiedError as error:
    ...     print(error.certificate.verdict)
    inconclusive
    """

    _nested_defaults: ClassVar = {"estimator": CollapseCertifier}

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods("transform"), None],
        "kind": [StrOptions({"mean", "sampled", "round_trip"})],
        "held_out_fraction": [Interval(Real, 0, 1, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        kind: str = "mean",
        held_out_fraction: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.kind = kind
        self.held_out_fraction = held_out_fraction
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit the estimator and certify it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Handed to the estimator.

        Returns
        -------
        self : CertificationGate
            Fitted and certified.

        Raises
        ------
        NotCertifiedError
            If it is not certified. The gate is then as it was before: not fitted, or
            as an earlier fit that was certified has left it.
        ValueError
            If data or parameters are not valid.
        """
        with restored_on_error(self):
            random_state = check_random_state(self.random_state)
            rows, labels, others = self._split(X, y, random_state)
            estimator = clone(self._certifying_template)
            if self.random_state is not None and not _is_frozen(estimator):
                seed_unset(estimator, int(random_state.randint(2**31 - 1)))
            self.estimator_ = estimator.fit(rows, labels)
            validate_data(self, X, skip_check_array=True)
            self.certificate_ = _passed(self._certificate(rows, others))
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            As the estimator returns them.
        """
        check_is_fitted(self)
        return self.estimator_.transform(X)

    @available_if(_has_inverse)
    def inverse_transform(self, Z: ArrayLike) -> Any:
        """Return the reconstruction of codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            As the estimator returns it.
        """
        check_is_fitted(self)
        return self.estimator_.inverse_transform(Z)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the margin on `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present by convention.

        Returns
        -------
        float
            Nats, as :meth:`CollapseCertifier.score`.
        """
        return margin_scorer(self, X)

    def certify(self, X: ArrayLike, y: Any = None, **options: Any) -> Certificate:
        """Certify other rows; the verdict may be any.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present by convention.
        **options : dict
            As in :meth:`CollapseCertifier.certify`; `kind` is the gate's by default.

        Returns
        -------
        Certificate
            Verdict and numbers for these rows.
        """
        certifier, rows = _certifying_part(self, X)
        return certifier.certify(rows, **{"kind": self.kind} | options)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names that the estimator gives to latent means.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Handed to the estimator.

        Returns
        -------
        ndarray of str
            One for each latent dimension.
        """
        check_is_fitted(self)
        return self.estimator_.get_feature_names_out(input_features)

    def __sklearn_tags__(self) -> Tags:
        """Take over the estimator's tags on dtypes and input."""
        tags = super().__sklearn_tags__()
        inner = get_tags(self._certifying_template)
        tags.input_tags = inner.input_tags
        tags.transformer_tags = inner.transformer_tags or tags.transformer_tags
        return tags

    @property
    def _certifying_template(self) -> Any:
        """The estimator, in a certifier if it holds none."""
        inner = self.estimator
        while isinstance(inner, Pipeline | FrozenEstimator | BaseSearchCV):
            inner = _held(inner, fitted=False)
        if inner is None:
            return CollapseCertifier()
        if isinstance(inner, CollapseCertifier):
            return self.estimator
        return CollapseCertifier(self.estimator)

    def _split(
        self, X: ArrayLike, y: Any, random_state: np.random.RandomState
    ) -> tuple[Any, Any, Any]:
        """Return rows and labels to fit on, and rows to certify or None."""
        if self.held_out_fraction == 0:
            return X, y, None
        split: dict[str, Any] = {
            "test_size": self.held_out_fraction,
            "random_state": random_state,
        }
        if y is None:
            rows, others = train_test_split(X, **split)
            return rows, None, others
        rows, others, labels, _ = train_test_split(X, y, **split)
        return rows, labels, others

    def _certificate(self, rows: Any, others: Any) -> Certificate:
        certifier, known = _certifying_part(
            self.estimator_, rows if others is None else others
        )
        fitted_here = others is None and not _is_frozen(self.estimator_)
        if fitted_here and self.kind == "mean":
            # That of fit, which knows what a witness was fitted on.
            return certifier.certificate_
        return certifier.certify(known, kind=self.kind)


def fit_together(
    estimators: Iterable[Any], X: ArrayLike, y: Any = None, **fit_params: Any
) -> None:
    """Fit several estimators on the same rows, their nets as one where that pays.

    Each is then as after its own ``fit(X, y, **fit_params)``, to rounding: the way to
    try several seeds or weights. Which fits are joined is told in
    :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimators : iterable of estimators
        :class:`CertifiedVAE` or what holds one: :class:`CollapseCertifier`, Pipeline.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,), default=None
        Handed on.
    **fit_params : dict
        Handed on to every `fit`.

    Raises
    ------
    Exception
        The first error of a fit, when the other estimators are fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.model_selection import fit_together
    >>> X = load_iris().data
    >>> vaes = [
    ...     CertifiedVAE(
    ...         GMMTeacher(n_components=3, random_state=0), latent_dim=2, max_epochs=50,
    ...         device="cpu", random_state=seed)
    ...     for seed in range(5)]
    >>> fit_together(vaes, X)
    >>> all(vae.history_[-1]["margin"] > 0.5 for vae in vaes)
    True
    """
    estimators = list(estimators)
    if len({id(estimator) for estimator in estimators}) < len(estimators):
        raise ValueError(
            "estimators must be different objects, got one of them more than once. "
            "Use sklearn.base.clone."
        )
    joint = JointTraining()
    errors = []
    with sharing_results():
        # A callback that holds a lock or a file cannot be copied.
        with _same_draws_after(), suppress(TypeError):
            for trial in filter(_holds_vae, copy.deepcopy(estimators)):
                joint.prepare(_fitting(trial, X, y, fit_params))
        joint.train()
        with joint.handing_out():
            for estimator in estimators:
                try:
                    estimator.fit(X, y, **fit_params)
                except Exception as error:
                    errors.append(error)
    if errors:
        raise errors[0]


class BatchedGridSearchCV(GridSearchCV):
    """Grid search that trains small nets together.

    A :class:`sklearn.model_selection.GridSearchCV` with the same results to rounding,
    `mean_fit_time` and its like aside. Candidates and folds are joined that have

    - networks of fully connected layers, of the same widths,
    - the same likelihood, `learning_rate`, `batch_size`, `max_epochs`, and the same
      number of rows and teacher components,

    and that differ in the seed, `alignment_weight`, `kl_weight`, `witness_scale`, the
    teacher's other parameters or the rows. What needs more is fitted one after
    another, as in a GridSearchCV: networks or an objective of one's own, callbacks of
    skorch or scikit-learn, ``verbose=1``, warm starts, other devices than the CPU, and
    networks so large that joining them would gain nothing. Fits with the same teacher
    on the same rows share it, if it has a seed.

    All that happens in a fit before its training is done twice; a Pipeline's earlier
    steps, for example. Rows of all folds are in memory at once, in float32. The search
    runs in one process, and Ctrl-C ends it.

    Parameters
    ----------
    estimator : estimator
        :class:`CertifiedVAE` or what holds one: :class:`CollapseCertifier`, Pipeline.
    param_grid : dict or list of dict
        Names of parameters and the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        As in :class:`sklearn.model_selection.GridSearchCV`, as are all that follow;
        None for the estimator's `score`.
    cv : int, splitter or iterable, default=None
        Folds; None for five.
    refit : bool, str or callable, default=True
        Whether, and by which score, to fit the best candidate on all rows.
    verbose : int, default=0
        Above 0 for messages.
    error_score : "raise" or float, default=nan
        The score of a fit that fails.
    return_train_score : bool, default=False
        Whether to score training rows too.

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As in GridSearchCV. `mean_fit_time` counts for every fit its share of the
        joint training.
    best_estimator_ : estimator
        Fitted on all rows, if `refit`.
    best_score_, best_params_, best_index_ : float, dict, int
        Of the best candidate.
    scorer_ : callable or dict
        What scored.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds.
    multimetric_ : bool
        Whether there are several scores.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    fit_together : The same for a list of estimators, without a search.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import BatchedGridSearchCV
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> grid = {"estimator__alignment_weight": [0.0, 10.0]}
    >>> folds = KFold(3, shuffle=True, random_state=0)
    >>> search = BatchedGridSearchCV(CollapseCertifier(vae), grid, cv=folds).fit(X)
    >>> search.best_params_
    {'estimator__alignment_weight': 10.0}
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        param_grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
        *,
        scoring: Any = None,
        cv: Any = None,
        refit: bool | str | Callable[..., int] = True,
        verbose: int = 0,
        error_score: str | float = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            cv=cv,
            refit=refit,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def fit(self, X: ArrayLike, y: Any = None, **params: Any) -> Self:
        """Fit and score every candidate on every fold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Handed on.
        **params : dict
            For the estimator's `fit`, the scorer and the splitter.

        Returns
        -------
        self : BatchedGridSearchCV
            The fitted search.
        """
        self._given = X, y, params
        given_cv = self.get_params(deep=False)["cv"]
        if isinstance(given_cv, Iterator):
            self.set_params(cv=list(given_cv))  # it is gone through twice
        try:
            # In one process: another would not know of what was trained here. Some
            # backends, dask's for one, take all workers whatever n_jobs is.
            with parallel_config("threading", n_jobs=1):
                return super().fit(X, y, **params)
        finally:
            self.set_params(cv=given_cv)
            del self._given

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], callback_ctx: Any = None
    ) -> None:
        def evaluate(candidates: Iterable[Any], **options: Any) -> Any:
            candidates = list(candidates)
            if hasattr(self, "_skl_callbacks"):
                # They are told of every epoch, and may stop a fit.
                return evaluate_candidates(candidates, **options)
            data = self._checked_data()
            splits = list(self._splits(*data))
            joint = JointTraining()
            with sharing_results():
                with _same_draws_after():
                    shares = [
                        joint.prepare(self._trial(values, train, *data))
                        for values, (train, _) in product(candidates, splits)
                    ]
                joint.train()
                with joint.handing_out():
                    folds = check_cv(splits)
                    results = evaluate_candidates(candidates, cv=folds, **options)
            seconds = np.reshape([share() for share in shares], (-1, len(splits)))
            results["mean_fit_time"] += seconds.mean(axis=1)
            return results

        # scikit-learn has callbacks since 1.9.
        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        super()._run_search(evaluate, **context)

    def _checked_data(self) -> tuple[Any, Any, dict[str, Any]]:
        X, y, params = self._given
        X, y = indexable(X, y)
        return X, y, _check_method_params(X, params=params)

    def _splits(self, X: Any, y: Any, params: dict[str, Any]) -> Any:
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        routed = self._get_routed_params_for_fit(params)
        return cv.split(X, y, **routed.splitter.split)

    def _trial(
        self,
        values: dict[str, Any],
        train: NDArray[np.intp],
        X: Any,
        y: Any,
        params: dict[str, Any],
    ) -> Callable[[], Any]:
        """Return the fit that the search will do, on an estimator of its own."""

        def fit() -> None:
            estimator = clone(self.estimator).set_params(**clone(values, safe=False))
            if _holds_vae(estimator):
                routed = self._get_routed_params_for_fit(params).estimator.fit
                own = _check_method_params(X, params=routed, indices=train)
                rows, labels = _safe_split(estimator, X, y, train)
                estimator.fit(rows, labels, **own)

        return fit


def _fitting(
    estimator: Any, X: ArrayLike, y: Any, params: dict[str, Any]
) -> Callable[[], Any]:
    return lambda: estimator.fit(X, y, **params)


def _holds_vae(estimator: Any) -> bool:
    """Tell whether fitting trains a net, and no callback of scikit-learn watches it.

    What does not need not be tried out.
    """
    inner = estimator.get_params().values() if hasattr(estimator, "get_params") else []
    parts = [estimator, *inner]
    if any(hasattr(part, "_skl_callbacks") for part in parts):
        return False
    return any(
        isinstance(part, CertifiedVAE)
        or (isinstance(part, CollapseCertifier) and part.estimator is None)
        for part in parts
    )


@contextmanager
def _same_draws_after() -> Iterator[None]:
    """Let what is drawn from generators in the block be drawn again after it."""
    generator = check_random_state(None)
    state, python_state = generator.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        generator.set_state(state)
        random.setstate(python_state)
