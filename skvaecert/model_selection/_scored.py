"""Scores of a fitted certifier or VAE, which may be inside a pipeline or search."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.certifier import CollapseCertifier, certificate_for_scores
from skvaecert._certifier.encoded import fitted_encoder
from skvaecert._certifier.partial import PartialCertificate
from skvaecert._posterior import posterior_of
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.bounds import betting_bound
from skvaecert.simplex import Floats, check_sample_weight

__all__ = ["LOWEST_SCORE", "Scored", "certificate_of"]

# Score without a value: NaN would spoil means over folds, infinity their spread.
LOWEST_SCORE = float(np.finfo(np.float32).min)


class Scored:
    """A fitted estimator and samples. Each public method is a score."""

    def __init__(
        self,
        estimator: Any,
        X: ArrayLike,
        teacher_proba: ArrayLike | None,
        sample_weight: ArrayLike | None,
    ) -> None:
        inner, self._samples = certifying_part(estimator, X)
        self._metadata: dict[str, Any] = {
            "teacher_proba": teacher_proba,
            "sample_weight": sample_weight,
        }
        self._has_certifier = isinstance(inner, CollapseCertifier)
        self._certifier = with_certifier(inner, self._samples, teacher_proba)
        check_is_fitted(self._certifier)

    @cached_property
    def _means(self) -> NDArray[np.floating]:
        return np.asarray(self._certifier.transform(self._samples))

    @cached_property
    def _part(self) -> PartialCertificate:
        return self._certifier.partial_certificate(
            self._samples, part=0, **self._metadata
        )

    @cached_property
    def _certificate(self) -> Certificate:
        """The certificate, also on samples that the witness was fitted on."""
        if not self._part.n_known:
            return self._part.collected.conclude(self._part.safety_margin)
        return certificate_for_scores(
            self._certifier, self._samples, "mean", **self._metadata
        )

    @property
    def _encoder(self) -> Any:
        return fitted_encoder(self._certifier.estimator_)

    def certified(self) -> float:
        if self._part.n_known and not self._part.n_samples:
            return 0.0  # the witness was fitted on all samples
        return float(self._part.certificate().certified)

    def margin(self) -> float:
        return self._certificate.margin

    def relative_margin(self) -> float:
        return _finite(self._certificate.relative_margin)

    def lower_bound(
        self,
        bound: Callable[..., float] = betting_bound,
        confidence: float = 0.95,
        floor: float = 1e-3,
    ) -> float:
        if self._metadata["sample_weight"] is not None:
            raise ValueError(
                "sample_weight must be None for the score 'lower_bound', which counts "
                "each sample once, as drawn from the population."
            )
        proba = posterior_of(
            self._certifier.teacher_,
            self._samples,
            self._metadata["teacher_proba"],
            n_samples=len(self._means),
        )
        log_q = self._certifier.witness_.log_proba(self._means)
        return _finite(bound(proba, log_q, confidence=confidence, floor=floor))

    def elbo(self) -> float:
        if not isinstance(self._encoder, CertifiedVAE):
            raise TypeError(
                "estimator must have a CertifiedVAE as its encoder for the ELBO, got "
                f"{type(self._encoder).__name__}, whose likelihood is unknown. Use "
                "reconstruction_scorer or sampled_information_scorer."
            )
        weight = self._metadata["sample_weight"]
        return _finite(self._encoder.score(self._samples, sample_weight=weight))

    def reconstruction(self) -> float:
        if not hasattr(self._certifier, "inverse_transform"):
            raise TypeError(
                "estimator must have an inverse_transform, its decoder, for the score "
                f"'reconstruction', got {type(self._encoder).__name__} without one."
            )
        output = np.asarray(self._certifier.inverse_transform(self._means))
        samples: Floats = np.asarray(self._samples, dtype=np.float64)
        weight = check_sample_weight(self._metadata["sample_weight"], len(samples))
        # Samples without variance, or too large, give the lowest score, not a warning.
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = weight @ np.square(samples - output)
            variance = weight @ np.square(samples - weight @ samples)
            return _finite(-error.sum() / variance.sum())

    def sampled_information(self, n_draws: int = 8) -> float:
        if not self._has_certifier:
            name = type(self._encoder).__name__
            raise TypeError(
                "estimator must be a CollapseCertifier for the score "
                "'sampled_information', because its fit tempers the witness, got "
                f"{name}. Use CollapseCertifier({name}(...))."
            )
        certificate = certificate_for_scores(
            self._certifier, self._samples, "sampled", n_draws, **self._metadata
        )
        return certificate.margin

    def all(self) -> dict[str, float]:
        names = ["certified", "margin", "relative_margin"]
        if self._metadata["sample_weight"] is None:
            names.append("lower_bound")
        if hasattr(self._certifier, "inverse_transform"):
            names.append("reconstruction")
        if isinstance(self._encoder, CertifiedVAE):
            names.append("elbo")
        scores = {name: float(getattr(self, name)()) for name in names}
        if self._has_certifier:
            scores["sampled_information"] = LOWEST_SCORE
            # Encoders without standard deviations fail here in different ways.
            with suppress(Exception):
                scores["sampled_information"] = self.sampled_information()
        return scores


def certifying_part(estimator: Any, X: ArrayLike) -> tuple[Any, Any]:
    """Return the certifier or VAE inside an estimator, and the samples it receives."""
    if isinstance(estimator, CollapseCertifier | CertifiedVAE):
        return estimator, X
    if isinstance(estimator, Pipeline):
        # Pass X unchecked: the first step raises a better error.
        X = estimator[:-1].transform(X) if len(estimator) > 1 else X
        return certifying_part(estimator[-1], X)
    if isinstance(estimator, FrozenEstimator):
        return certifying_part(estimator.estimator, X)
    if hasattr(estimator, "best_estimator_"):
        return certifying_part(estimator.best_estimator_, X)
    name = type(estimator).__name__
    if hasattr(estimator, "estimator"):
        raise NotFittedError(
            f"This {name} has no best_estimator_. Call fit, and do not set refit to "
            "False."
        )
    raise TypeError(
        "estimator must be a CollapseCertifier or a CertifiedVAE, a Pipeline that ends "
        f"in one, or a search over one, got {name}. Wrap another kind of encoder: "
        "CollapseCertifier(encoder)."
    )


def with_certifier(
    inner: Any, samples: Any, teacher_proba: ArrayLike | None
) -> CollapseCertifier:
    """Wrap a VAE in a certifier with the fixed witness of the VAE."""
    if isinstance(inner, CollapseCertifier):
        return inner
    # For the mean, nothing is learned from these samples: the witness is fixed.
    certifier = CollapseCertifier(FrozenEstimator(inner))
    return certifier.fit(samples, teacher_proba=teacher_proba)


def _finite(score: float) -> float:
    return max(float(score), LOWEST_SCORE) if math.isfinite(score) else LOWEST_SCORE


def certificate_of(estimator: Any, X: ArrayLike, **options: Any) -> Certificate:
    """Certify a fitted certifier or VAE on `X`, also inside a pipeline or search.

    To stop a script or a test if the model is not certified, write
    ``assert certificate_of(estimator, X).certified``.

    Parameters
    ----------
    estimator : fitted estimator
        A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends in
        one, or a search over one, which has a `best_estimator_`.
    X : array-like of shape (n_samples, n_features)
        Samples, preferably held out. The steps before the certifier transform them.
    **options : dict
        Passed to :meth:`CollapseCertifier.certify`: `kind`, `teacher_proba`, ...

    Returns
    -------
    Certificate
        The certificate, with any verdict.

    Raises
    ------
    TypeError
        If the estimator is of another kind, or if it is a VAE and `kind` is not "mean":
        only the fit of a certifier tempers the witness for drawn codes.
    ValueError
        As :meth:`CollapseCertifier.certify`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import certificate_of
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), CollapseCertifier(vae)).fit(X[::2])
    >>> certificate_of(pipeline, X[1::2]).verdict
    'certified'
    """
    inner, samples = certifying_part(estimator, X)
    kind = options.get("kind", "mean")
    if kind != "mean" and isinstance(inner, CertifiedVAE):
        raise TypeError(
            f"estimator must be a CollapseCertifier for kind={kind!r}, because its fit "
            "tempers the witness, got CertifiedVAE. Use CollapseCertifier("
            "FrozenEstimator(vae)).fit(...) on samples other than these."
        )
    certifier = with_certifier(inner, samples, options.get("teacher_proba"))
    return certifier.certify(samples, **options)
