"""CollapseCertifier: fit, score and certify any encoder that has `transform`.

A fit goes through the rooms in one direction: encoder, teacher, witness, calibration,
certificate. What one step finds out about the samples is passed on in one object, an
`EncodedSamples`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from numbers import Real
from typing import Any, ClassVar, Self
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
    clone,
)
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import MeanSums, check_shapes
from skvaecert._certifier.calibration import (
    WITNESS_FITS,
    calibrate,
    split_for_witness,
)
from skvaecert._certifier.diagnosed import codes_of, model_of
from skvaecert._certifier.encoded import EncodedSamples, encode, fitted_encoder
from skvaecert._certifier.kinds import MeanKind, make_kind, seed_of
from skvaecert._certifier.partial import PartialCertificate
from skvaecert._certifier.refusals import check_encoder, check_teacher
from skvaecert._certifier.state import FITTED, check_certifier
from skvaecert._certifier.weights import digest_weights
from skvaecert._estimator import (
    CallbackSupportMixin,
    FitTasks,
    HTMLMixin,
    NestedDefaultMixin,
    VersionedMixin,
    check_unchanged,
    interrupted,
    remember_params,
    restored_on_error,
    seed_unset,
    with_callbacks,
)
from skvaecert._loaders import flat_batches, flat_samples
from skvaecert._samples import check_features, cut_pieces, digests
from skvaecert._state import held, put
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.diagnosis import Diagnosis, Loss, diagnosis_of
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.information import InformationBracket
from skvaecert.objectives import AlignmentLoss
from skvaecert.simplex import (
    Floats,
    check_count,
    resolve_witness_scale,
    simplex_vertices,
)
from skvaecert.witnesses import simplex_of, simplex_witness

__all__ = ["CollapseCertifier", "drawn_margin"]


def _template(certifier: CollapseCertifier) -> Any:
    return CertifiedVAE() if certifier.estimator is None else certifier.estimator


def _has_inverse(certifier: CollapseCertifier) -> bool:
    return hasattr(_template(certifier), "inverse_transform")


def _trains_in_chunks(certifier: CollapseCertifier) -> bool:
    template = _template(certifier)
    # A frozen estimator would hand the call on to the one inside, and train it.
    trains = hasattr(template, "get_params") and not _is_frozen(template)
    return trains and hasattr(template, "partial_fit")


class CollapseCertifier(
    VersionedMixin,
    CallbackSupportMixin,
    HTMLMixin,
    NestedDefaultMixin,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Certify that an encoder mean is not constant over the given samples.

    The margin of the alignment loss below the teacher information is::

        G = I_T - A = sum_i p_i sum_k T_ik log(q_ik / mean T_k)

    with the posterior T of the teacher and the witness q = softmax(beta S mu(x)). If
    mu is constant, G <= 0, whatever the constant. The mean teacher is always that of
    the samples that are scored.

    Parameters
    ----------
    estimator : estimator or None, default=None
        The encoder: any object with `transform`; None for ``CertifiedVAE()``. It is
        cloned and fitted by :meth:`fit`; wrapped in
        :class:`sklearn.frozen.FrozenEstimator`, or without `get_params`, it is taken
        as it is.
    teacher : estimator or None, default=None
        For estimators that have no `teacher_` of their own; None for
        ``GMMTeacher()``. That of a :class:`CertifiedVAE` is its own parameter.
    witness : {"raw", "procrustes", "linear"} or AlignmentLoss, default="raw"
        What reads the code. "raw" is the fixed simplex, for encoders that were trained
        with it: a `CertifiedVAE` has its own, and a model that was trained in another
        loop has a :class:`skvaecert.objectives.AlignmentLoss`, to be given here. The
        others are for encoders trained without: they are fitted after training, on
        half of the samples of :meth:`fit`, and certify other samples.
        "procrustes" rotates, shifts and scales the code; "linear" is any softmax of a
        linear map. They prove as much, that the mean is not constant, but they are not
        the certificate of the papers, and they detect variation that is tiny compared
        with the noise of the posterior; ``certify(X, kind="sampled")`` does not.
    safety_margin : float, default=0.0
        tau, nats, at least 0: :meth:`certify` requires a margin above it.
    warm_start : bool, default=False
        Whether :meth:`fit` continues with the fitted estimator, with its parameters
        set to those of `estimator`: the way to rescue a collapsed encoder. The
        estimator itself must have a parameter `warm_start`, which counts as True.
    random_state : int, RandomState instance or None, default=None
        Seeds estimator and teacher where their own `random_state` is None.

    Attributes
    ----------
    estimator_ : estimator
        The fitted encoder.
    teacher_ : estimator or None
        The teacher; None after a fit with `teacher_proba`.
    vertices_ : ndarray of shape (n_components, latent_dim)
        S, for the fixed simplex.
    witness_scale_ : float
        beta, for the fixed simplex.
    witness_ : LinearWitness
        What reads the code.
    mean_proba_ : ndarray of shape (n_components,)
        The mean teacher on the samples of :meth:`fit`.
    certificate_ : Certificate
        On the training samples; for a fitted witness, on those it was not fitted on.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    CertifiedVAE : The encoder made for it.
    Certificate : The result.
    skvaecert.certify : The same on arrays.

    Notes
    -----
    `X` may be a torch tensor, a map-style Dataset or a DataLoader, too. Read is the
    first part of each item or batch, and samples are flattened. A DataLoader that may
    shuffle is refused where posteriors, weights or returned values belong to samples.
    For an encoder and a teacher that take them, `X` may be a list, of strings or of
    sequences of different lengths.

    References
    ----------
    Theory section 2; arXiv:2605.05813, arXiv:2605.18224.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X)
    >>> certifier.certify(X).verdict
    'certified'
    >>> certifier.score(X) == certifier.certify(X).margin
    True
    """

    _nested_defaults: ClassVar = {"estimator": CertifiedVAE, "teacher": GMMTeacher}

    # What a warm start must find unchanged.
    _fixed: ClassVar = ("teacher",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods("transform"), None],
        "teacher": [
            HasMethods(["get_params", "fit", "predict_proba"]),
            HasMethods(["get_params", "fit", "transform"]),
            None,
        ],
        "witness": [
            StrOptions({"raw", "procrustes", "linear"}),
            AlignmentLoss,
        ],
        "safety_margin": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        teacher: Any = None,
        witness: str | AlignmentLoss = "raw",
        safety_margin: float = 0.0,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.teacher = teacher
        self.witness = witness
        self.safety_margin = safety_margin
        self.warm_start = warm_start
        self.random_state = random_state

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Fit encoder and teacher and certify the encoder on the same samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples.
        y : array-like of shape (n_samples,), default=None
            Passed to the estimator; :class:`CertifiedVAE` ignores it.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of a teacher.

        Returns
        -------
        self : CollapseCertifier
            The fitted certifier.

        Raises
        ------
        ValueError
            If data or parameters are not valid; an earlier fit stays usable.
        NonFiniteLossError
            If training broke down. An earlier fit stays usable; in a first fit the
            epochs that the estimator has kept are certified.
        KeyboardInterrupt
            On Ctrl-C. The epochs that a :class:`CertifiedVAE` has kept are certified
            before, and the error has this certifier as attribute `estimator`. If there
            are none, or at Ctrl-C anywhere else, nothing has changed.
        """
        return self._fit(X, y, teacher_proba, partial=False)

    @available_if(_trains_in_chunks)
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Go on with the encoder's `partial_fit` on a chunk, and certify on that chunk.

        For estimators that have `partial_fit`. The first call fits the teacher, if the
        estimator has none of its own, and a simplex for "raw"; both stay. What is
        fitted to codes is fitted anew, to this chunk alone, because the encoder has
        changed: a witness "procrustes" or "linear", and what :meth:`certify` needs for
        drawn codes. So `certificate_` and `mean_proba_` are about this chunk, and
        :meth:`certify` leaves out samples of this chunk only. For samples of all chunks
        use :meth:`certify_batches` afterwards.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            A chunk of training samples.
        y : array-like of shape (n_samples,), default=None
            Passed to the estimator.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of a teacher, in all calls or in none.

        Returns
        -------
        self : CollapseCertifier
            The fitted certifier.

        Raises
        ------
        ValueError, NonFiniteLossError, KeyboardInterrupt
            As :meth:`fit`.
        """
        return self._fit(X, y, teacher_proba, partial=True)

    def _fit(
        self, X: ArrayLike, y: Any, teacher_proba: ArrayLike | None, *, partial: bool
    ) -> Self:
        X = _given(X, y, teacher_proba)
        ended: BaseException | None = None
        tasks = FitTasks(self, X, y, n_parts=1)
        with restored_on_error(self):
            first = not hasattr(self, "estimator_")
            warm = (partial or self.warm_start) and not first
            estimator = self._estimator_to_fit(warm, partial)
            tasks.begin("fit-estimator")
            try:
                with tasks.handed_on(estimator):
                    _fit_encoder(estimator, X, y, teacher_proba, partial)
            except (NonFiniteLossError, KeyboardInterrupt) as error:
                if not _keeps_epochs(estimator, error, first):
                    raise
                ended = error
            self.estimator_ = estimator
            check_features(self, X, reset=not warm)
            self.teacher_ = self._fitted_teacher(X, teacher_proba, warm)
            samples = EncodedSamples(estimator, self.teacher_, X, teacher_proba)
            self.mean_proba_ = samples.posterior.mean(axis=0)
            self._fit_witness(samples, warm)
            self._calibration = calibrate(samples, self.witness_)
            self.certificate_ = self._certify_training(samples)
            self._certified_on = digests(X, teacher_proba)
            self._certified_on["weights"] = digest_weights(estimator)
            # Of this fit alone: parts of a certificate are merged within one.
            self._origin = uuid4().hex
        if isinstance(ended, KeyboardInterrupt):
            raise interrupted(self, str(ended))
        if ended is not None:
            raise ended
        tasks.end()
        tasks.end_fit()
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means, as the estimator computes them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            Latent means.
        """
        check_is_fitted(self)
        X = flat_samples(X, in_order=True)
        means = encode(self.estimator_, X)
        check_features(self, X)
        return means

    @available_if(_has_inverse)
    def inverse_transform(self, Z: ArrayLike) -> Any:
        """Return the estimator's reconstruction of codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Reconstructed samples.
        """
        check_is_fitted(self)
        return self.estimator_.inverse_transform(Z)

    def score(
        self,
        X: ArrayLike,
        y: Any = None,
        *,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the margin G = I_T - A on `X`, without tolerance or safety margin.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples; a single one has a margin of at most 0.
        y : Ignored
            Present by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.

        Returns
        -------
        float
            Nats, finite, at most the teacher information on `X`; greater is better.
        """
        check_is_fitted(self)
        sums = MeanSums(self.witness_)
        for samples in self._pieces(X, teacher_proba, sample_weight):
            means = samples.means
            sums.update(samples.posterior, means, samples.weight)
        return sums.margin

    def score_samples(
        self, X: ArrayLike, *, teacher_proba: ArrayLike | None = None
    ) -> Floats:
        """Return the contribution of each sample to the margin.

        g_i = sum_k T_ik log(q_ik / mean T_k), with the mean teacher on the samples of
        :meth:`fit`, so that the value of a sample does not depend on the others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.

        Returns
        -------
        ndarray of shape (n_samples,)
            Nats. The code places samples far below 0 wrongly. The mean is the score on
            the samples of :meth:`fit`; on others it exceeds the score by KL(their mean
            T || mean T of fit), and :func:`skvaecert.metrics.margin_contributions`
            gives contributions that average to the score.
        """
        check_is_fitted(self)
        X = flat_samples(X, in_order=True)
        log_mean, parts = np.log(self.mean_proba_), []
        for samples in self._pieces(X, teacher_proba):
            log_ratio = self.witness_.log_proba(samples.means) - log_mean
            parts.append((samples.posterior * log_ratio).sum(axis=1))
        return np.concatenate(parts)

    def certify(
        self,
        X: ArrayLike,
        y: Any = None,
        *,
        kind: str = "mean",
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> Certificate:
        """Certify the encoder on `X`.

        - ``kind="mean"``: the latent mean is not constant. Some samples are encoded
          twice, in another batch and order, and a few again when all have been read;
          the difference of their means is added to the tolerance.
        - ``kind="sampled"``: codes drawn from q(z|x) tell the components of the teacher
          apart. The mean of the margin over draws is a lower bound on I(x; z), and
          `information` brackets it. The witness is tempered and has a floor of 0.001,
          q ~ mean T exp(s (A z + b)), with s and mean T from samples of :meth:`fit`.
        - ``kind="round_trip"``: reconstructions of drawn codes, or of the means of
          encoders that give no standard deviations, still show the components of the
          teacher, so that encoder and decoder both pass input on. Temperature and
          floor of the teacher are those that do best on samples of :meth:`fit`. The
          decoder must see the codes alone: with skip connections or memory, input
          reaches the reconstructions without the code. What changes outputs for the
          same codes is found and refused; a decoder that sees x itself is not.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples. Fitted witnesses and the last two kinds need samples that were not
            used in :meth:`fit`: those that were used are left out.
        y : Ignored
            Present by convention.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            What to certify.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's; not for "round_trip".
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None. A sample of weight 0, or of 2^-52 of the
            largest, counts for nothing.
        n_draws : int, default=8
            Codes drawn for each sample if `kind` is not "mean", at least 2.
        confidence : float, default=0.95
            Confidence level of the interval over draws if `kind` is not "mean". It
            holds for any losses and any number of draws.

        Returns
        -------
        Certificate
            Verdict and values for these samples.

        Raises
        ------
        ValueError
            If data or parameters are not valid, the estimator lacks what the kind
            needs, its decoder does not depend on the codes alone, the witness was
            fitted on all samples of `X`, or the weights of a torch encoder change while
            it is certified.

        Warns
        -----
        KnownSamplesWarning
            If samples were left out, because the witness was fitted on them.
        UnstableEncoderWarning
            If the means of the same samples differ between two batches by more than
            rounding explains.

        References
        ----------
        Theory sections 2, 6, 7 and 8.
        """
        pieces = self._pieces(X, teacher_proba, sample_weight)
        return self._collect(pieces, kind, n_draws, confidence).certificate()

    def diagnose(
        self,
        X: ArrayLike,
        y: Any = None,
        *,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        likelihood: str | None = None,
        noise_variance: float | None = None,
        reduction: str = "sum",
        kl_weight: float | None = None,
        negligible: float = 0.05,
        confidence: float = 0.999999,
        n_draws: int = 40_000,
    ) -> Diagnosis:
        """Tell whether the estimator has collapsed: codes, mean, decoder and advice.

        What drawn codes carry needs an `encode` of the estimator, what the decoder
        passes on an `inverse_transform`. Likelihood, noise variance and `kl_weight` of
        a :class:`CertifiedVAE` are known; what is given counts for other estimators.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples; a fitted witness needs samples that were not used in :meth:`fit`.
        y : Ignored
            Present by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None. A sample of weight 0 counts for nothing.
        likelihood : {"gaussian", "bernoulli"} or None, default=None
            Likelihood of the decoder. When None, and the estimator does not tell,
            outputs count as Gaussian with learned variance, and there is no threshold.
        noise_variance : float or None, default=None
            As in :func:`diagnose`.
        reduction : {"sum", "mean"}, default="sum"
            As in :func:`diagnose`.
        kl_weight : float or None, default=None
            As in :func:`diagnose`.
        negligible : float, default=0.05
            As in :func:`diagnose`.
        confidence : float, default=0.999999
            As in :func:`diagnose`.
        n_draws : int, default=40000
            As in :func:`diagnose`.

        Returns
        -------
        Diagnosis
            State, values and advice; its `mean` is the certificate of `X`.

        Raises
        ------
        ValueError
            If data or parameters are not valid.

        Warns
        -----
        UnstableEncoderWarning
            As :meth:`certify`.
        UserWarning
            If the decoder was not measured, as in :func:`diagnose`.

        References
        ----------
        Theory sections 15 to 18.
        """
        check_is_fitted(self)
        X = _given(X, teacher_proba, sample_weight)
        pieces = list(self._pieces(X, teacher_proba, sample_weight))
        part = self._collect(pieces, "mean", 8, 0.95)

        def certificate(information: InformationBracket | None) -> Certificate:
            part.collected.sums.codes.known = information
            return part.certificate()

        given = Loss(likelihood, noise_variance, reduction, kl_weight)
        loss, decode, samples = model_of(self.estimator_, X, given)
        is_gaussian = all(piece.has_distribution for piece in pieces)
        codes, _ = codes_of(pieces, is_gaussian, sample_weight)
        return diagnosis_of(
            codes,
            certificate,
            loss,
            decode=decode,
            X=samples,
            negligible=negligible,
            confidence=confidence,
            n_draws=n_draws,
            random_state=seed_of(self.random_state),
        )

    def certify_batches(
        self,
        batches: Iterable[ArrayLike],
        *,
        kind: str = "mean",
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> Certificate:
        """Certify the encoder on samples that come in batches; each is read once.

        The result is that of :meth:`certify` on all samples together, to within the
        tolerance. Memory does not grow with their number. An array on disk can be given
        to :meth:`certify`, which reads it in pieces.

        Parameters
        ----------
        batches : DataLoader, Dataset, or iterable of arrays of shape (n_samples, ...)
            Samples, best some thousands at a time: some of each batch are encoded
            twice. Small batches of a DataLoader are joined.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            As in :meth:`certify`.
        n_draws : int, default=8
            As in :meth:`certify`.
        confidence : float, default=0.95
            As in :meth:`certify`.

        Returns
        -------
        Certificate
            Verdict and values for all samples together.

        Raises
        ------
        ValueError
            As :meth:`certify`, or if there is no batch.

        Warns
        -----
        KnownSamplesWarning
            As :meth:`certify`.
        UnstableEncoderWarning
            As :meth:`certify`.
        """
        pieces = chain.from_iterable(map(self._pieces, flat_batches(batches)))
        return self._collect(pieces, kind, n_draws, confidence).certificate()

    def partial_certificate(
        self,
        X: ArrayLike,
        part: int,
        *,
        kind: str = "mean",
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> PartialCertificate:
        """Collect what a certificate needs to know of some of the samples.

        For samples that are spread over several machines: send the fitted certifier
        there, call this method for each part of the samples, merge the results in any
        order, and ask the merged result for the certificate of all samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Some of the samples.
        part : int
            A number of at least 0 that no other part has. Merging a part twice, from a
            task that was repeated for example, is an error.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            As in :meth:`certify`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            As in :meth:`certify`, for these samples.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, which count across parts; 1 when None.
        n_draws : int, default=8
            As in :meth:`certify`.
        confidence : float, default=0.95
            As in :meth:`certify`.

        Returns
        -------
        PartialCertificate
            Without samples, encoder or teacher. It holds sums, and the codes of at most
            8,192 samples.

        Raises
        ------
        ValueError
            If data or parameters are not valid, or the weights of a torch encoder
            change in between.
        """
        part = check_count("part", part, least=0)
        pieces = self._pieces(X, teacher_proba, sample_weight)
        return self._collect(pieces, kind, n_draws, confidence, part)

    def __sklearn_tags__(self) -> Tags:
        """Take over the tags of the estimator on dtypes and input."""
        tags = super().__sklearn_tags__()
        template = _template(self)
        if hasattr(template, "__sklearn_tags__"):
            inner = get_tags(template)
            tags.input_tags = inner.input_tags
            tags.transformer_tags = inner.transformer_tags or tags.transformer_tags
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.witness_.weights.shape[1]

    def _validate_params(self) -> None:
        check_encoder(self.estimator)
        check_teacher(self.teacher)
        super()._validate_params()

    def _estimator_to_fit(self, warm: bool, partial: bool) -> Any:
        template = _template(self)
        _check_template(template)
        self._check_heeded(template, partial)
        estimator = _seeded_copy(template, self.random_state)
        return _continued(self.estimator_, estimator, partial) if warm else estimator

    def _check_heeded(self, template: Any, partial: bool) -> None:
        """Fail if a fit would ignore a parameter, before it trains."""
        # Inside a search, or by itself.
        encoder = getattr(template, "estimator", template)
        if isinstance(encoder, CertifiedVAE) and not _is_frozen(template):
            self._check_teacher_unset(encoder)
        goes_on = partial or self.warm_start
        if _own_params(template).get("warm_start") and not goes_on:
            raise ValueError(
                "warm_start of the CollapseCertifier must be True for an estimator "
                "with warm_start=True, got False: every fit would train a new clone of "
                "the estimator from the beginning. Set it, or set "
                "estimator__warm_start=False."
            )

    def _check_teacher_unset(self, encoder: Any) -> None:
        if self.teacher is not None:
            name = type(encoder).__name__
            raise ValueError(
                f"teacher of the CollapseCertifier must be None for a {name}, which "
                f"has a teacher of its own, got {self.teacher!r}. Give it to the "
                f"{name}, or leave it out."
            )

    def _fitted_teacher(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, warm: bool
    ) -> Any:
        """Return the teacher of the encoder, of an earlier fit, or a new one."""
        encoder = fitted_encoder(self.estimator_)
        theirs = getattr(encoder, "teacher_", None)
        if theirs is not None:
            self._check_teacher_unset(getattr(encoder, "estimator", encoder))
            return theirs
        template = GMMTeacher() if self.teacher is None else self.teacher
        if warm:
            _check_teacher_proba(self.teacher_, teacher_proba)
            if self.teacher_ is not None:
                check_unchanged(self)
            return self.teacher_
        was_given = hasattr(encoder, "vertices_") and self.teacher is None
        if teacher_proba is not None or was_given:
            return None
        teacher = _seeded_copy(template, self.random_state)
        teacher.fit(X, None)
        remember_params(self)
        return teacher

    def _fit_witness(self, samples: EncodedSamples, warm: bool) -> None:
        """Take the witness that was trained against, or make one."""
        means, proba = samples.means, samples.posterior
        if self.witness in WITNESS_FITS:
            for name in ("vertices_", "witness_scale_"):
                self.__dict__.pop(name, None)  # of an earlier fit
            fitted, _ = split_for_witness(self.witness, len(means))
            fit = WITNESS_FITS[self.witness]
            self.witness_ = fit(means[fitted], proba[fitted])
            return
        encoder = fitted_encoder(self.estimator_)
        if isinstance(self.witness, AlignmentLoss):
            self.vertices_, self.witness_scale_ = simplex_of(self.witness)
            check_shapes(means, proba, self.vertices_.shape)
        elif hasattr(encoder, "vertices_"):
            self.vertices_ = encoder.vertices_
            self.witness_scale_ = encoder.witness_scale_
        elif not (warm and hasattr(self, "vertices_")):
            self.vertices_ = simplex_vertices(proba.shape[1], means.shape[1])
            self.witness_scale_ = resolve_witness_scale("prior", proba)
        self.witness_ = simplex_witness(self.vertices_, self.witness_scale_)

    def _certify_training(self, samples: EncodedSamples) -> Certificate:
        """Certify on the samples of `fit`, those that the witness was not fitted on."""
        kind = MeanKind(MeanSums(self.witness_))
        means, proba = samples.means, samples.posterior
        _, others = split_for_witness(self.witness_.name, len(means))
        kind.sums.update(proba[others], means[others])
        if samples.has_distribution:
            kind.sums.codes.update(*(part[others] for part in samples.distribution))
        kind.look_again(samples)
        kind.finish()
        return kind.conclude(self.safety_margin)

    def _pieces(
        self,
        X: ArrayLike,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Iterator[EncodedSamples]:
        """Yield X in pieces that fit into memory, and check its features."""
        X = _given(X, teacher_proba, sample_weight)
        for piece in cut_pieces(X, teacher_proba, sample_weight):
            yield EncodedSamples(self.estimator_, self.teacher_, *piece)
        # Last, because the errors of the estimator say more.
        check_features(self, X)

    def _collect(
        self,
        pieces: Iterable[EncodedSamples],
        kind: str,
        n_draws: int,
        confidence: float,
        part: int | None = None,
        known_too: bool = False,
    ) -> PartialCertificate:
        check_is_fitted(self)
        collected = make_kind(
            kind,
            self.witness_,
            self._calibration,
            n_draws=n_draws,
            confidence=confidence,
            random_state=self.random_state,
            part=part,
        )
        must_be_others = kind != "mean" or self.witness_.name in WITNESS_FITS
        n_known, weights = 0, ""
        for samples in pieces:
            # Now, because what yields the samples may have trained the encoder.
            weights = weights or digest_weights(self.estimator_)
            if must_be_others and not known_too:
                samples, n_left_out = self._calibration.leave_out_known(samples)
                n_known += n_left_out
            collected.add(samples)
        collected.finish()
        if digest_weights(self.estimator_) != weights:
            raise ValueError(
                "batches must leave the encoder as it is, got one whose weights are "
                "others after them than before: two constants make no code. Certify "
                "before training, or after."
            )
        return PartialCertificate(
            parts=frozenset(() if part is None else (part,)),
            n_known=n_known,
            origin=f"{self._origin} {weights}".rstrip(),
            safety_margin=self.safety_margin,
            collected=collected,
        )

    @property
    def _has_own_teacher(self) -> bool:
        theirs = getattr(fitted_encoder(self.estimator_), "teacher_", None)
        return theirs is None and self.teacher_ is not None

    def __get_fitted__(self) -> dict[str, Any]:
        """Return the fitted state: the contract in `skvaecert._state`."""
        if self._has_own_teacher:
            check_unchanged(self)
        return held(self, FITTED) | {
            "calibration": self._calibration,
            "certified_on": self._certified_on,
            "origin": self._origin,
        }

    def __set_fitted__(self, state: dict[str, Any]) -> None:
        """Take a fitted state, which may be a stranger's, and check it."""
        self._validate_params()
        check_certifier(state, self.witness)
        put(self, state, FITTED)
        self._calibration = state["calibration"]
        self._certified_on, self._origin = state["certified_on"], state["origin"]
        if self._has_own_teacher:
            remember_params(self)

    def __recertify__(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> Certificate | None:
        """Make the training certificate again; None on samples other than those."""
        X = flat_samples(X, in_order=True)
        given = digests(X, teacher_proba)
        if given["rows"] is None or not given.items() <= self._certified_on.items():
            return None
        again = copy.copy(self)
        again.safety_margin = self.certificate_.safety_margin
        samples = EncodedSamples(self.estimator_, self.teacher_, X, teacher_proba)
        return again._certify_training(samples)


def drawn_margin(
    certifier: CollapseCertifier,
    X: ArrayLike,
    n_draws: int,
    teacher_proba: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Return the margin of drawn codes, of samples of the fit too: no certificate."""
    pieces = certifier._pieces(X, teacher_proba, sample_weight)
    part = certifier._collect(pieces, "sampled", n_draws, 0.95, known_too=True)
    return part.collected.conclude(0.0).margin


def _given(X: Any, *per_sample: ArrayLike | None) -> Any:
    """Return flat samples, in a known order if other values belong to them."""
    in_order = any(values is not None for values in per_sample)
    return flat_samples(X, in_order=in_order)


def _check_template(template: Any) -> None:
    # A frozen estimator or a search holds what counts.
    inner = getattr(template, "estimator", template)
    last = inner[-1] if isinstance(inner, Pipeline) else None
    if hasattr(last, "witness_log_proba"):
        raise ValueError(
            f"estimator must not be a Pipeline that ends in a {type(last).__name__}, "
            "whose teacher would see other samples. Put the certifier last: "
            f"make_pipeline(..., CollapseCertifier({type(last).__name__}()))."
        )


def _is_frozen(estimator: Any) -> bool:
    return isinstance(estimator, FrozenEstimator)


def _seeded_copy(template: Any, random_state: Any) -> Any:
    """Return an unfitted copy of an estimator, seeded if it is not."""
    if not hasattr(template, "get_params"):
        return template
    estimator = clone(template)
    if random_state is not None and not _is_frozen(estimator):
        seed_unset(estimator, int(check_random_state(random_state).randint(2**31 - 1)))
    return estimator


def _own_params(estimator: Any) -> dict[str, Any]:
    has_params = hasattr(estimator, "get_params")
    return estimator.get_params(deep=False) if has_params else {}


def _continued(fitted: Any, template: Any, partial: bool) -> Any:
    """Return a copy of the fitted estimator with the parameters of `template`."""
    own = _own_params(template)
    if not partial and "warm_start" not in own:
        raise ValueError(
            "warm_start=True needs an estimator with a parameter warm_start, got "
            f"{type(template).__name__}."
        )
    params = own if partial else own | {"warm_start": True}
    estimator = copy.copy(fitted).set_params(**params)
    # Its state is a copy, so that a fit that fails leaves the fitted one as it is; its
    # parameters are those of the template, such as callbacks that cannot be copied.
    state = {k: v for k, v in vars(estimator).items() if k not in own}
    vars(estimator).update(copy.deepcopy(state))
    return estimator


def _keeps_epochs(estimator: Any, error: BaseException, first: bool) -> bool:
    """Tell whether an estimator whose fit raised an error has epochs to certify."""
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "estimator", None) is estimator
    # Only a first fit has nothing else to go back to.
    return first and hasattr(estimator, "net_")


def _check_teacher_proba(teacher: Any, teacher_proba: ArrayLike | None) -> None:
    """Fail if a warm fit has posteriors where the first had a teacher, or none."""
    if (teacher_proba is None) == (teacher is None):
        raise ValueError(
            "teacher_proba must be "
            + ("given again" if teacher_proba is None else "left out")
            + ": this continues a fit "
            + ("without" if teacher_proba is None else "with")
            + " a teacher."
        )


def _takes_posteriors(estimator: Any) -> bool:
    return hasattr(estimator, "fit") and has_fit_parameter(estimator, "teacher_proba")


def _hides_posteriors(search: Any) -> bool:
    """Tell whether a search, whose fit takes no posteriors, is over what takes them."""
    inner = None if _is_frozen(search) else getattr(search, "estimator", None)
    return inner is not None and (_takes_posteriors(inner) or _hides_posteriors(inner))


def _fit_encoder(
    estimator: Any,
    X: ArrayLike,
    y: Any,
    teacher_proba: ArrayLike | None,
    partial: bool,
) -> None:
    """Fit an encoder; one without parameters is taken as it is."""
    if not (hasattr(estimator, "fit") and hasattr(estimator, "get_params")):
        return
    fit = estimator.partial_fit if partial else estimator.fit
    if teacher_proba is None:
        fit(X, y)
    elif _takes_posteriors(estimator):
        fit(X, y, teacher_proba=teacher_proba)
    elif _hides_posteriors(estimator):
        raise ValueError(
            "teacher_proba must be left out for a search inside the certifier, which "
            "would not pass it on. Put the certifier inside the search."
        )
    else:
        fit(X, y)
