"""Scores of fitted certifiers and VAEs, for searches without labels."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._certifier.encoded import EncodedSamples, fitted_encoder
from skvaecert._certifier.kinds import MeanKind, make_kind
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.bounds import betting_bound
from skvaecert.exceptions import NotCertifiedError

__all__ = [
    "LOWEST_SCORE",
    "certificate_scorers",
    "certified_scorer",
    "elbo_scorer",
    "lower_bound_scorer",
    "margin_scorer",
    "reconstruction_scorer",
    "relative_margin_scorer",
    "require_certified",
    "sampled_information_scorer",
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
        self.samples = EncodedSamples(inner.estimator_, inner.teacher_, self.rows)

    @cached_property
    def certificate(self) -> Certificate:
        """That of :meth:`CollapseCertifier.certify`, on training samples too."""
        kind = MeanKind(self.certifier.witness_)
        kind.add(self.samples)
        return kind.conclude(self.certifier.safety_margin)

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
        log_q = self.certifier.witness_.log_proba(self.samples.means)
        return _finite(bound(self.samples.posterior, log_q, **options))

    @property
    def vae(self) -> Any:
        """The encoder, where it is the estimator of this package."""
        owner = fitted_encoder(self.certifier.estimator_)
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
        output = self.samples.reconstruction
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
        kind = make_kind(
            "sampled",
            self.certifier.witness_,
            self.certifier._calibration,
            n_draws=n_draws,
            random_state=self.certifier.random_state,
        )
        kind.add(self.samples)
        return kind.conclude(self.certifier.safety_margin).margin

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
    raise TypeError(
        "estimator must be a CollapseCertifier or a CertifiedVAE, a Pipeline that ends "
        f"in one, or a search over one, got {type(estimator).__name__}. Wrap an "
        "encoder of another kind: CollapseCertifier(encoder)."
    )


def _finite(score: float) -> float:
    return max(float(score), LOWEST_SCORE) if math.isfinite(score) else LOWEST_SCORE


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
