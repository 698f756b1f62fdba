"""Scores of fitted certifiers and VAEs, for searches without labels."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from inspect import getdoc
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.certifier import CollapseCertifier, drawn_margin
from skvaecert._certifier.partial import PartialCertificate
from skvaecert._posterior import posterior_of
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.bounds import betting_bound
from skvaecert.exceptions import NotCertifiedError
from skvaecert.simplex import Floats

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


# The score where there is no value: NaN would spoil means, infinity their spread.
LOWEST_SCORE = float(np.finfo(np.float32).min)


class _Scored:
    """An estimator and samples; each method is a score, and says what it is."""

    def __init__(self, estimator: Any, X: ArrayLike) -> None:
        inner, self.samples = _certifying_part(estimator, X)
        self.has_certifier = isinstance(inner, CollapseCertifier)
        if not self.has_certifier:
            inner = CollapseCertifier(FrozenEstimator(inner)).fit(self.samples)
        check_is_fitted(inner)
        self.certifier: CollapseCertifier = inner

    @cached_property
    def _means(self) -> NDArray[np.floating]:
        return np.asarray(self.certifier.transform(self.samples))

    @cached_property
    def _part(self) -> PartialCertificate:
        return self.certifier.partial_certificate(self.samples, part=0)

    @cached_property
    def _certificate(self) -> Certificate:
        return _concluded(self._part)

    @property
    def _encoder(self) -> Any:
        encoder = self.certifier.estimator_
        encoder = getattr(encoder, "best_estimator_", encoder)
        return encoder.estimator if isinstance(encoder, FrozenEstimator) else encoder

    def certified(self) -> float:
        """Score 1.0 if the latent mean is certified on the samples, else 0.0.

        Samples that a witness was fitted on are left out.
        """
        try:
            certificate = self._part.certificate()
        except ValueError:  # samples that the witness was fitted on
            return 0.0
        return float(certificate.verdict == "certified")

    def margin(self) -> float:
        """Score by the margin G = I_T - A in nats, as CollapseCertifier.score does.

        The margin is at most the teacher information. Below 0 its order means little: a
        constant code reaches 0, and a healthy code that was not aligned may have less.

        The margin rises with the alignment weight, so a search that maximises nothing
        else takes the largest weight of its grid. Use :func:`best_certified` or
        :func:`smallest_certifying_weight` to choose (theory section 2;
        arXiv:2605.05813, arXiv:2605.18224).
        """
        return self._certificate.margin

    def relative_margin(self) -> float:
        """Score by G / I_T, the share of the teacher information that is reached.

        It is at most 1, and has no value where the teacher does not tell the samples
        apart. It forgives a weak teacher: all of 0.1 nats scores higher than half of 2
        nats. Use it where the teacher stays the same.
        """
        return _finite(self._certificate.relative_margin)

    def lower_bound(
        self, bound: Callable[..., float] = betting_bound, **options: Any
    ) -> float:
        """Score by a lower confidence bound on the margin of the population, in nats.

        The samples must be drawn independently from the population, and must not have
        been used in a fit. Options are `bound`, a function of :mod:`skvaecert.bounds`
        (:func:`~skvaecert.bounds.betting_bound` by default), and the keywords of that
        function: `confidence`, 0.95 by default, and `floor`.

        *Guarantee.* For one fitted model, over the draw of the samples of one test
        fold, the score of that fold is at most the margin of the population with
        probability `confidence` or more. The mean over folds is no bound, and neither
        is the score of the best of several candidates: bound the chosen model on
        samples that took no part in the search (theory section 13).
        """
        teacher, n_samples = self.certifier.teacher_, len(self._means)
        proba = posterior_of(teacher, self.samples, n_samples=n_samples)
        log_q = self.certifier.witness_.log_proba(self._means)
        return _finite(bound(proba, log_q, **options))

    def elbo(self) -> float:
        """Score by the mean evidence lower bound, as CertifiedVAE.score does.

        The encoder must be a :class:`CertifiedVAE`. The score, in nats per sample, is a
        density of the samples that reach the VAE: compare only candidates whose earlier
        steps are the same.
        """
        if not isinstance(self._encoder, CertifiedVAE):
            raise TypeError(
                "estimator must have a CertifiedVAE as its encoder for the ELBO, got "
                f"{type(self._encoder).__name__}, whose likelihood is unknown. Use "
                "reconstruction_scorer or sampled_information_scorer."
            )
        return _finite(self._encoder.score(self.samples))

    def reconstruction(self) -> float:
        """Score by minus the share of variance that reconstructions leave unexplained.

        With x' the reconstruction of the latent mean of x, this is::

            - sum_ij (x_ij - x'_ij)^2 / sum_ij (x_ij - mean x_j)^2

        It is at most 0 and has no unit, so that data sets and scales compare; a decoder
        that returns the mean sample scores about -1. The encoder must have
        `inverse_transform`. The samples are those that reach the encoder, after the
        steps before it.
        """
        if not hasattr(self.certifier, "inverse_transform"):
            raise TypeError(
                "estimator must have an inverse_transform, its decoder, to be scored "
                f"by reconstruction; {type(self._encoder).__name__} has none."
            )
        output = np.asarray(self.certifier.inverse_transform(self._means))
        samples: Floats = np.asarray(self.samples, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = np.square(samples - output).sum()
            return _finite(-error / np.square(samples - samples.mean(axis=0)).sum())

    def sampled_information(self, n_draws: int = 8) -> float:
        """Score by the information in drawn codes, a lower bound on I(x; z), in nats.

        This is the margin of ``certify(X, kind="sampled")``. On samples of the fit,
        which `certify` leaves out, it is a training score and too high. The option
        `n_draws` is the number of codes drawn per sample, 8 by default.

        The estimator must have a :class:`CollapseCertifier`, whose fit tempers the
        witness for drawn codes. If its encoder has no `encode`, a ValueError says so
        (theory section 6).
        """
        if not self.has_certifier:
            name = type(self._encoder).__name__
            raise TypeError(
                "estimator must be a CollapseCertifier to be scored by drawn codes, "
                f"because its fit tempers the witness; got {name}. Use "
                f"CollapseCertifier({name}(...))."
            )
        return drawn_margin(self.certifier, self.samples, n_draws)

    def every_score(self) -> dict[str, float]:
        scores = {
            "certified": self.certified(),
            "margin": self.margin(),
            "relative_margin": self.relative_margin(),
            "lower_bound": self.lower_bound(),
        }
        if hasattr(self.certifier, "inverse_transform"):
            scores["reconstruction"] = self.reconstruction()
        if isinstance(self._encoder, CertifiedVAE):
            scores["elbo"] = self.elbo()
        if self.has_certifier:
            # Encoders without standard deviations fail here, each in its own way.
            with suppress(Exception):
                scores["sampled_information"] = self.sampled_information()
        return scores


# The end of every scorer's docstring.
_CALL = """

Parameters
----------
estimator : fitted estimator
    A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends in one,
    or a search over one.
X : array-like of shape (n_samples, n_features)
    Samples. They pass through the steps before the certifier.
y : Ignored
    Present by convention.
**options : dict
    The options named above, if any; set them with ``functools.partial``.

Returns
-------
float
    Finite, and greater is better. `LOWEST_SCORE` if there is no value.

Raises
------
TypeError
    If the estimator is of another kind, or has no such score.

See Also
--------
certificate_scorers : All scores at once; an example.
"""


def _scorer(score: Callable[..., float]) -> Callable[..., float]:
    """Make a scorer in scikit-learn's form from a method of `_Scored`."""

    def scorer(estimator: Any, X: ArrayLike, y: Any = None, **options: Any) -> float:
        return float(score(_Scored(estimator, X), **options))

    # Pickled by name, as other functions are.
    scorer.__name__ = scorer.__qualname__ = f"{score.__name__}_scorer"
    scorer.__doc__ = f"{getdoc(score)}{_CALL}"
    return scorer


certified_scorer = _scorer(_Scored.certified)
margin_scorer = _scorer(_Scored.margin)
relative_margin_scorer = _scorer(_Scored.relative_margin)
lower_bound_scorer = _scorer(_Scored.lower_bound)
elbo_scorer = _scorer(_Scored.elbo)
reconstruction_scorer = _scorer(_Scored.reconstruction)
sampled_information_scorer = _scorer(_Scored.sampled_information)


def certificate_scorers(
    estimator: Any, X: ArrayLike, y: Any = None
) -> dict[str, float]:
    """Return all scores that the estimator has, for searches over several.

    Use as ``GridSearchCV(..., scoring=certificate_scorers, refit=best_certified)``, or
    with a name as `refit`.

    Parameters
    ----------
    estimator : fitted estimator
        A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends in
        one, or a search over one.
    X : array-like of shape (n_samples, n_features)
        Samples.
    y : Ignored
        Present by convention.

    Returns
    -------
    dict of float
        "certified", "margin", "relative_margin", "lower_bound"; "reconstruction" with a
        decoder, "elbo" with a :class:`CertifiedVAE`, "sampled_information" with a
        :class:`CollapseCertifier` around an encoder that has `encode`. Each is the
        scorer of that name, with its defaults.

    Raises
    ------
    TypeError
        If the estimator is of another kind.

    Notes
    -----
    Samples, latent means and posteriors are in memory together.

    scikit-learn needs the same names from all candidates, and cannot continue after an
    error in a function that returns several scores. So search over encoders of one
    kind. A score without a value is `LOWEST_SCORE`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold, cross_val_score
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import certificate_scorers, margin_scorer
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> scores = certificate_scorers(CollapseCertifier(vae).fit(X), X)
    >>> scores["certified"], scores["margin"] > scores["lower_bound"] > 0
    (1.0, True)
    >>> folds = KFold(3, shuffle=True, random_state=0)
    >>> bool((cross_val_score(vae, X, scoring=margin_scorer, cv=folds) > 0.5).all())
    True
    """
    return _Scored(estimator, X).every_score()


def _concluded(part: PartialCertificate) -> Certificate:
    """Make a certificate, also of samples of the fit: for scores, not for verdicts."""
    return part.collected.conclude(part.safety_margin)


def _certifying_part(estimator: Any, X: ArrayLike) -> tuple[Any, Any]:
    """Return the certifier or VAE within an estimator, and the samples it is given."""
    if isinstance(estimator, CollapseCertifier | CertifiedVAE):
        return estimator, X
    if isinstance(estimator, Pipeline):
        # The steps look at X first: their errors say more.
        X = estimator[:-1].transform(X) if len(estimator) > 1 else X
        return _certifying_part(estimator[-1], X)
    if isinstance(estimator, FrozenEstimator):
        return _certifying_part(estimator.estimator, X)
    if isinstance(estimator, BaseSearchCV):
        return _certifying_part(_best(estimator), X)
    raise TypeError(
        "estimator must be a CollapseCertifier or a CertifiedVAE, a Pipeline that ends "
        f"in one, or a search over one, got {type(estimator).__name__}. Wrap an "
        "encoder of another kind: CollapseCertifier(encoder)."
    )


def _best(search: Any) -> Any:
    if not hasattr(search, "best_estimator_"):
        raise NotFittedError(
            f"This {type(search).__name__} has no best_estimator_. Call fit, and leave "
            "refit switched on."
        )
    return search.best_estimator_


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
        Samples, preferably held out.
    **options : dict
        Passed to :meth:`CollapseCertifier.certify`: `kind`, `teacher_proba`, ...

    Returns
    -------
    Certificate
        Its verdict is "certified".

    Raises
    ------
    NotCertifiedError
        If the verdict is another. Its attribute `certificate` has the values.
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
    inner, samples = _certifying_part(estimator, X)
    if not isinstance(inner, CollapseCertifier):
        inner = CollapseCertifier(FrozenEstimator(inner))
        inner.fit(samples, teacher_proba=options.get("teacher_proba"))
    certificate = inner.certify(samples, **options)
    if certificate.verdict != "certified":
        raise NotCertifiedError(f"Not certified. {certificate}", certificate)
    return certificate
