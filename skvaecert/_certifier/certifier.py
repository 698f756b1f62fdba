"""CollapseCertifier: fit, score and certify any encoder that has `transform`.

`fit` goes through encoder, teacher, witness, calibration and certificate, in this
order. All steps share an `EncodedSamples`, which computes means and posteriors once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from numbers import Real
from typing import Any, ClassVar, Literal, Self
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

__all__ = ["CollapseCertifier", "certificate_for_scores"]


def _template(certifier: CollapseCertifier) -> Any:
    return CertifiedVAE() if certifier.estimator is None else certifier.estimator


def _has_inverse(certifier: CollapseCertifier) -> bool:
    return hasattr(_template(certifier), "inverse_transform")


def _trains_in_chunks(certifier: CollapseCertifier) -> bool:
    template = _template(certifier)
    # FrozenEstimator delegates partial_fit to the estimator inside, which trains it.
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
    """Certify that the latent mean of an encoder is not constant.

    The encoder is a :class:`CertifiedVAE` or any other object with `transform`.
    :meth:`fit` fits the encoder, and a teacher if the encoder has none, and certifies
    the encoder on the training samples. :meth:`certify` certifies it on other samples.
    Use :meth:`diagnose` to find out whether the encoder has collapsed; it also examines
    drawn codes and the decoder. Use `warm_start` to rescue a collapsed encoder.

    The teacher assigns samples to soft clusters, with posterior T. The witness
    q = softmax(beta S mu(x)) predicts these clusters from the latent mean mu(x). The
    margin is the teacher information I_T minus the alignment loss A::

        G = I_T - A = sum_i p_i sum_k T_ik log(q_ik / mean T_k)

    If mu is constant, then G <= 0 for any value of the constant. So a margin above the
    tolerance shows that mu is not constant on these samples, under one assumption on
    the rounding of encoders. The mean teacher, mean T, is always that of the samples
    that are scored.

    Parameters
    ----------
    estimator : estimator or None, default=None
        The encoder: any object with `transform`. :meth:`fit` fits a clone of it. An
        encoder that is wrapped in :class:`sklearn.frozen.FrozenEstimator`, or that has
        no `get_params`, is used as it is. None uses ``CertifiedVAE()``.
    teacher : estimator or None, default=None
        The teacher of an estimator that has no `teacher_` of its own. None uses
        ``GMMTeacher()``. A :class:`CertifiedVAE` has its own parameter `teacher`.
    witness : {"raw", "procrustes", "linear"} or AlignmentLoss, default="raw"
        The softmax that reads the teacher's clusters off the latent mean. "raw" is the
        fixed simplex, for encoders that were trained with it. A `CertifiedVAE` has its
        own simplex. For a model that was trained in another loop, pass its
        :class:`skvaecert.objectives.AlignmentLoss`. The other two are for encoders that
        were trained without a witness. They are fitted after training, on half of the
        samples of :meth:`fit`, and certify other samples. "procrustes" rotates, shifts
        and scales the code. "linear" is any softmax of a linear map. They prove the
        same, that the mean is not constant, but they are not the certificate of the
        papers. They also detect variation that is tiny compared with the noise of the
        posterior; ``certify(X, kind="sampled")`` does not.
    safety_margin : float, default=0.0
        tau, in nats, at least 0. :meth:`certify` requires a margin that
        exceeds the tolerance by more than this.
    warm_start : bool, default=False
        When set to True, :meth:`fit` continues from the fitted encoder, with its
        parameters set to those of `estimator`. This is how to rescue a collapsed
        encoder. The estimator must have a parameter `warm_start`, which is treated as
        True. Otherwise :meth:`fit` erases the previous fit.
    random_state : int, RandomState instance or None, default=None
        Determines random number generation for the estimator and the teacher if their
        own `random_state` is None. Also for the codes that :meth:`certify` and
        :meth:`diagnose` draw; with None these are drawn with a fixed seed. Pass an int
        for reproducible output across multiple function calls.

    Attributes
    ----------
    estimator_ : estimator
        The fitted encoder.
    teacher_ : estimator or None
        The fitted teacher; None after a fit with `teacher_proba`.
    vertices_ : ndarray of shape (n_components, latent_dim)
        S. Defined only for the fixed simplex.
    witness_scale_ : float
        beta. Defined only for the fixed simplex.
    witness_ : LinearWitness
        The witness.
    mean_proba_ : ndarray of shape (n_components,)
        The mean teacher on the samples of :meth:`fit`.
    certificate_ : Certificate
        The certificate on the training samples. For a fitted witness, these are the
        training samples that it was not fitted on.
    n_features_in_ : int
        Number of features seen during :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only when `X` has feature
        names that are all strings.

    See Also
    --------
    CertifiedVAE : A VAE that is trained with a teacher and a fixed simplex.
    skvaecert.wrappers.TrainedEncoder : Wrapper for a model that was trained elsewhere.
    Certificate : The result of :meth:`certify`.
    skvaecert.certify : The certificate, computed from arrays.
    skvaecert.diagnose : The diagnosis, computed from arrays.

    Notes
    -----
    `X` may also be a torch tensor, a map-style Dataset or a DataLoader. The first part
    of each item or batch is used, and samples are flattened. A DataLoader that may
    shuffle raises an error where posteriors, weights or returned values belong to
    samples. `X` may be a list of strings, or of sequences of different lengths, if the
    encoder and the teacher accept it.

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

    # Parameters that a warm start must not change.
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
        witness: Literal["raw", "procrustes", "linear"] | AlignmentLoss = "raw",
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
        """Fit the encoder and the teacher, and certify the encoder on the same samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples.
        y : array-like of shape (n_samples,), default=None
            Passed to the estimator. :class:`CertifiedVAE` does not use it.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            The teacher's posteriors, used instead of fitting a teacher.

        Returns
        -------
        self : CollapseCertifier
            The fitted certifier.

        Raises
        ------
        ValueError
            If data or parameters are not valid. An earlier fit stays usable.
        NonFiniteLossError
            If the loss or the weights become infinite or NaN. An earlier fit stays
            usable. After a first fit, the estimator is certified with the epochs that
            it keeps.
        KeyboardInterrupt
            On Ctrl-C. If a :class:`CertifiedVAE` keeps completed epochs, it is
            certified with these, and the attribute `estimator` of the error is the
            certifier. Otherwise the certifier is unchanged.
        """
        return self._fit(X, y, teacher_proba, partial=False)

    @available_if(_trains_in_chunks)
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Continue training the encoder on a chunk, and certify it on that chunk.

        Available if the estimator has `partial_fit`. The first call also fits the
        teacher, if the estimator has none of its own, and the simplex of "raw". Later
        calls keep both. Each call changes the encoder, so it fits again what depends on
        codes, and uses this chunk only: the witness "procrustes" or "linear", and what
        :meth:`certify` needs for drawn codes. `certificate_` and `mean_proba_` are
        those of this chunk, and :meth:`certify` leaves out samples of this chunk only.
        Use :meth:`certify_batches` afterwards for the samples of all chunks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            A chunk of training samples.
        y : array-like of shape (n_samples,), default=None
            Passed to the estimator.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            The teacher's posteriors, used instead of fitting a teacher. Pass them in
            all calls or in none.

        Returns
        -------
        self : CollapseCertifier
            The fitted certifier.

        Raises
        ------
        ValueError, NonFiniteLossError, KeyboardInterrupt
            As in :meth:`fit`.
        """
        return self._fit(X, y, teacher_proba, partial=True)

    def _fit(
        self, X: ArrayLike, y: Any, teacher_proba: ArrayLike | None, *, partial: bool
    ) -> Self:
        X = _flat_in_order(X, y, teacher_proba)
        # An error that left completed epochs is raised after they are certified.
        postponed: BaseException | None = None
        tasks = FitTasks(self, X, y, n_parts=1)
        # A fit that fails leaves an earlier fit as it was.
        with restored_on_error(self):
            first = not hasattr(self, "estimator_")
            warm = (partial or self.warm_start) and not first
            estimator = self._estimator_to_fit(warm, partial)
            tasks.begin("fit-estimator")
            try:
                with tasks.propagated_to(estimator):
                    _fit_encoder(estimator, X, y, teacher_proba, partial)
            except (NonFiniteLossError, KeyboardInterrupt) as error:
                if not _keeps_epochs(estimator, error, first):
                    raise
                postponed = error
            self.estimator_ = estimator
            # After the encoder, whose errors about X are more specific.
            check_features(self, X, reset=not warm)
            self.teacher_ = self._fitted_teacher(X, teacher_proba, warm)
            samples = EncodedSamples(estimator, self.teacher_, X, teacher_proba)
            self.mean_proba_ = samples.posterior.mean(axis=0)
            self._fit_witness(samples, warm)
            self._calibration = calibrate(samples, self.witness_)
            self.certificate_ = self._certify_training(samples)
            # Hashes, so that a loaded certifier can recognize the samples of this fit.
            self._certified_on = digests(X, teacher_proba)
            self._certified_on["weights"] = digest_weights(estimator)
            # Unique to this fit: only parts of the same fit can be merged.
            self._origin = uuid4().hex
        if isinstance(postponed, KeyboardInterrupt):
            # The `estimator` of this error is the certifier, not the encoder inside.
            raise interrupted(self, str(postponed))
        if postponed is not None:
            raise postponed
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
        # First, because the errors of the estimator are more specific.
        means = encode(self.estimator_, X)
        check_features(self, X)
        return means

    @available_if(_has_inverse)
    def inverse_transform(self, Z: ArrayLike) -> Any:
        """Decode codes with the estimator.

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
        """Return the margin G = I_T - A on X, without tolerance or safety margin.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples. The margin of a single sample is at most 0.
        y : Ignored
            Not used, present for API consistency by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. None means that all samples have the
            same weight.

        Returns
        -------
        float
            Margin in nats, finite and at most the teacher information on `X`. Greater
            is better.
        """
        check_is_fitted(self)
        sums = MeanSums(self.witness_)
        for samples in self._pieces(X, teacher_proba, sample_weight):
            # First, because the encoder's errors are more specific than the teacher's.
            means = samples.means
            sums.update(samples.posterior, means, samples.weight)
        return sums.margin

    def score_samples(
        self, X: ArrayLike, *, teacher_proba: ArrayLike | None = None
    ) -> Floats:
        """Return the contribution of each sample to the margin.

        The contribution is g_i = sum_k T_ik log(q_ik / mean T_k). It uses the mean
        teacher on the samples of :meth:`fit`, so that the value of a sample does not
        depend on the other samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.

        Returns
        -------
        ndarray of shape (n_samples,)
            Contributions in nats. A sample with a value far below 0 has a code in the
            wrong place. On the samples of :meth:`fit` the mean of the values is the
            score. On other samples it exceeds the score by KL(their mean T || mean T of
            fit); :func:`skvaecert.metrics.margin_contributions` returns contributions
            whose mean is the score.
        """
        check_is_fitted(self)
        # The contributions are returned in the order of X.
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
        kind: Literal["mean", "sampled", "round_trip"] = "mean",
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> Certificate:
        """Certify the encoder on the samples X.

        `kind` determines what the certificate shows:

        - "mean": the latent mean is not constant. Some samples are encoded twice, in
          another batch and order, and a few once more after all samples are read. The
          difference between their means is added to the tolerance.
        - "sampled": codes drawn from q(z|x) distinguish the components of the teacher.
          The mean of the margin over draws is a lower bound on I(x; z), and
          `information` brackets it. The witness is tempered and has a floor of 0.001:
          q ~ mean T exp(s (A z + b)), with s and mean T from samples of :meth:`fit`.
        - "round_trip": reconstructions of drawn codes still show the components of the
          teacher, so both encoder and decoder pass input on. If the encoder returns no
          standard deviations, its means are decoded. The temperature and the floor of
          the teacher are those with the largest margin on samples of :meth:`fit`. The
          decoder must depend on the codes alone: with skip connections or memory, input
          reaches the reconstructions without the code. An error is raised if outputs
          for the same codes change. A decoder that sees x itself is not detected.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples. Fitted witnesses, "sampled" and "round_trip" need held-out samples:
            samples that they used in :meth:`fit` are left out.
        y : Ignored
            Not used, present for API consistency by convention.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            The kind of certificate.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher; not for "round_trip".
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. None means that all samples have the
            same weight. Samples of weight 0, or of 2^-52 of the largest weight, are
            ignored.
        n_draws : int, default=8
            Number of codes drawn for each sample, at least 2. Not used for "mean".
        confidence : float, default=0.95
            Confidence level of the interval over draws. It holds for any losses and any
            number of draws. Not used for "mean".

        Returns
        -------
        Certificate
            Verdict and values for these samples.

        Raises
        ------
        ValueError
            If data or parameters are not valid, or if the estimator lacks what the kind
            needs. Also if the decoder does not depend on the codes alone, if the
            witness was fitted on all samples of `X`, or if the weights of a torch
            encoder change while it is certified.

        Warns
        -----
        KnownSamplesWarning
            If samples are left out, because the witness was fitted on them.
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
        likelihood: Literal["gaussian", "bernoulli"] | None = None,
        noise_variance: float | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        kl_weight: float | None = None,
        negligible: float = 0.05,
        confidence: float = 0.999999,
        n_draws: int = 40_000,
    ) -> Diagnosis:
        """Find out whether the estimator has collapsed.

        This is :func:`skvaecert.diagnose` for the fitted estimator. It examines drawn
        codes if the estimator has `encode`, and the decoder if it has
        `inverse_transform`. The likelihood, the noise variance and the `kl_weight` of a
        :class:`CertifiedVAE` are known; the parameters are used for other estimators.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples. A fitted witness needs samples that it did not use in :meth:`fit`.
        y : Ignored
            Not used, present for API consistency by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. None means that all samples have the
            same weight. Samples of weight 0 are ignored.
        likelihood : {"gaussian", "bernoulli"} or None, default=None
            Likelihood of the decoder. If it is None and not known from the estimator,
            outputs are treated as Gaussian with learned variance, and there is no
            threshold.
        noise_variance : float or None, default=None
            As in :func:`skvaecert.diagnose`.
        reduction : {"sum", "mean"}, default="sum"
            As in :func:`skvaecert.diagnose`.
        kl_weight : float or None, default=None
            As in :func:`skvaecert.diagnose`.
        negligible : float, default=0.05
            As in :func:`skvaecert.diagnose`.
        confidence : float, default=0.999999
            As in :func:`skvaecert.diagnose`.
        n_draws : int, default=40000
            As in :func:`skvaecert.diagnose`.

        Returns
        -------
        Diagnosis
            State, values and advice. Its attribute `mean` is the certificate of `X`.

        Raises
        ------
        ValueError
            If data or parameters are not valid.

        Warns
        -----
        UnstableEncoderWarning
            As in :meth:`certify`.
        UserWarning
            If the decoder is not measured, as in :func:`skvaecert.diagnose`.

        References
        ----------
        Theory sections 15 to 18.
        """
        check_is_fitted(self)
        X = _flat_in_order(X, teacher_proba, sample_weight)
        # A list, so that certificate and codes share the outputs of each piece.
        pieces = list(self._pieces(X, teacher_proba, sample_weight))
        # The kind "mean" uses neither the number of draws nor the confidence.
        part = self._collect(pieces, "mean", 8, 0.95)

        # A function, because the certificate contains the bracket of the diagnosis.
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
        kind: Literal["mean", "sampled", "round_trip"] = "mean",
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> Certificate:
        """Certify the encoder on samples that come in batches.

        Each batch is read once. The result is that of :meth:`certify` on all samples
        together, to within the tolerance. Memory does not grow with the number of
        samples. For an array on disk use :meth:`certify`, which reads it in pieces.

        Parameters
        ----------
        batches : DataLoader, Dataset, or iterable of arrays of shape (n_samples, ...)
            Samples, preferably some thousands per batch, because some samples of each
            batch are encoded twice. Small batches of a DataLoader are joined.
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
            As in :meth:`certify`, or if there is no batch.

        Warns
        -----
        KnownSamplesWarning
            As in :meth:`certify`.
        UnstableEncoderWarning
            As in :meth:`certify`.
        """
        pieces = chain.from_iterable(map(self._pieces, flat_batches(batches)))
        return self._collect(pieces, kind, n_draws, confidence).certificate()

    def partial_certificate(
        self,
        X: ArrayLike,
        part: int,
        *,
        kind: Literal["mean", "sampled", "round_trip"] = "mean",
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> PartialCertificate:
        """Collect the sums of a certificate for some of the samples.

        Use it for samples on several machines. Send the fitted certifier to each
        machine, and call this method for each part of the samples. Then merge the
        results in any order, and call `certificate` on the merged result.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Some of the samples.
        part : int
            Index of the part, at least 0 and different for each part. An error is
            raised if a part is merged twice, for example from a repeated task.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            As in :meth:`certify`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            As in :meth:`certify`, for these samples.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, on the same scale in all parts. None
            means that all samples have weight 1.
        n_draws : int, default=8
            As in :meth:`certify`.
        confidence : float, default=0.95
            As in :meth:`certify`.

        Returns
        -------
        PartialCertificate
            Sums, and the codes of at most 8,192 samples. It contains no samples,
            encoder or teacher.

        Raises
        ------
        ValueError
            If data or parameters are not valid, or the weights of a torch encoder
            change while it is certified.
        """
        part = check_count("part", part, least=0)
        pieces = self._pieces(X, teacher_proba, sample_weight)
        return self._collect(pieces, kind, n_draws, confidence, part)

    def __sklearn_tags__(self) -> Tags:
        """Copy the tags of the estimator for dtypes and input."""
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
        # First, because scikit-learn's errors do not explain how to wrap a model.
        check_encoder(self.estimator)
        check_teacher(self.teacher)
        super()._validate_params()

    def _estimator_to_fit(self, warm: bool, partial: bool) -> Any:
        template = _template(self)
        _check_template(template)
        self._check_not_ignored(template, partial)
        estimator = _seeded_copy(template, self.random_state)
        return _continued(self.estimator_, estimator, partial) if warm else estimator

    def _check_not_ignored(self, template: Any, partial: bool) -> None:
        """Raise an error, before training, if a fit would ignore a parameter."""
        # The encoder is the estimator itself, or the one inside a search.
        encoder = getattr(template, "estimator", template)
        if isinstance(encoder, CertifiedVAE) and not _is_frozen(template):
            self._check_teacher_unset(encoder)
        continues = partial or self.warm_start
        if _own_params(template).get("warm_start") and not continues:
            raise ValueError(
                "warm_start of the CollapseCertifier must be True for an estimator "
                "with warm_start=True, got False: every fit would train a new clone of "
                "the estimator from the beginning. Set warm_start=True, or "
                "estimator__warm_start=False."
            )

    def _check_teacher_unset(self, encoder: Any) -> None:
        if self.teacher is not None:
            name = type(encoder).__name__
            raise ValueError(
                f"teacher of the CollapseCertifier must be None for a {name}, which "
                f"has its own parameter teacher, got {self.teacher!r}. Pass it to the "
                f"{name}, or leave it out."
            )

    def _fitted_teacher(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, warm: bool
    ) -> Any:
        """Return the teacher of the encoder or of an earlier fit, or fit a new one."""
        encoder = fitted_encoder(self.estimator_)
        theirs = getattr(encoder, "teacher_", None)
        if theirs is not None:
            self._check_teacher_unset(getattr(encoder, "estimator", encoder))
            return theirs
        template = GMMTeacher() if self.teacher is None else self.teacher
        if warm:
            _check_teacher_proba(self.teacher_, teacher_proba)
            # Only a teacher that was fitted here has remembered parameters.
            if self.teacher_ is not None:
                check_unchanged(self)
            return self.teacher_
        # A simplex without a teacher: the encoder was fitted with teacher_proba.
        was_given = hasattr(encoder, "vertices_") and self.teacher is None
        if teacher_proba is not None or was_given:
            return None
        teacher = _seeded_copy(template, self.random_state)
        # Without y, because a teacher finds clusters without labels.
        teacher.fit(X, None)
        remember_params(self)
        return teacher

    def _fit_witness(self, samples: EncodedSamples, warm: bool) -> None:
        """Set the witness: the one that the encoder was trained with, or a new one."""
        means, proba = samples.means, samples.posterior
        if self.witness in WITNESS_FITS:
            for name in ("vertices_", "witness_scale_"):
                # An earlier fit may have set them.
                self.__dict__.pop(name, None)
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
        # A warm start keeps the simplex, whose scale belongs to the first fit.
        elif not (warm and hasattr(self, "vertices_")):
            self.vertices_ = simplex_vertices(proba.shape[1], means.shape[1])
            self.witness_scale_ = resolve_witness_scale("prior", proba)
        self.witness_ = simplex_witness(self.vertices_, self.witness_scale_)

    def _certify_training(self, samples: EncodedSamples) -> Certificate:
        """Certify on the samples of `fit` on which the witness was not fitted."""
        kind = MeanKind(MeanSums(self.witness_))
        means, proba = samples.means, samples.posterior
        _, others = split_for_witness(self.witness_.name, len(means))
        kind.sums.update(proba[others], means[others])
        if samples.has_distribution:
            kind.sums.codes.update(*(part[others] for part in samples.distribution))
        kind.encode_again(samples)
        kind.finish()
        return kind.conclude(self.safety_margin)

    def _pieces(
        self,
        X: ArrayLike,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Iterator[EncodedSamples]:
        """Yield X in pieces that fit into memory, and check its features."""
        X = _flat_in_order(X, teacher_proba, sample_weight)
        for piece in cut_pieces(X, teacher_proba, sample_weight):
            yield EncodedSamples(self.estimator_, self.teacher_, *piece)
        # Last, because the errors of the estimator are more specific.
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
        # The fixed witness was fitted on no samples, so it may read the mean of any.
        needs_held_out = kind != "mean" or self.witness_.name in WITNESS_FITS
        n_known, weights = 0, ""
        for samples in pieces:
            # Not before the loop: the generator of samples may train the encoder first.
            weights = weights or digest_weights(self.estimator_)
            if needs_held_out and not known_too:
                samples, n_left_out = self._calibration.leave_out_known(samples)
                n_known += n_left_out
            collected.add(samples)
        collected.finish()
        if digest_weights(self.estimator_) != weights:
            raise ValueError(
                "batches must not change the encoder, but its weights changed while it "
                "was certified. Two different constant means would look like a code. "
                "Certify before training, or after."
            )
        return PartialCertificate(
            parts=frozenset(() if part is None else (part,)),
            n_known=n_known,
            # Parts do not merge if the encoder was trained between them.
            origin=f"{self._origin} {weights}".rstrip(),
            safety_margin=self.safety_margin,
            collected=collected,
        )

    @property
    def _has_own_teacher(self) -> bool:
        theirs = getattr(fitted_encoder(self.estimator_), "teacher_", None)
        return theirs is None and self.teacher_ is not None

    def __get_fitted__(self) -> dict[str, Any]:
        """Return the fitted state, as described in `skvaecert._state`."""
        if self._has_own_teacher:
            check_unchanged(self)
        return held(self, FITTED) | {
            "calibration": self._calibration,
            "certified_on": self._certified_on,
            "origin": self._origin,
        }

    def __set_fitted__(self, state: dict[str, Any]) -> None:
        """Check a fitted state, which may come from an untrusted file, and set it."""
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
        """Compute the training certificate again; None if the samples are others."""
        X = flat_samples(X, in_order=True)
        given = digests(X, teacher_proba)
        # A subset, because the weights of the encoder are in `_certified_on` as well.
        if given["rows"] is None or not given.items() <= self._certified_on.items():
            return None
        again = copy.copy(self)
        # The parameter may have changed after the fit.
        again.safety_margin = self.certificate_.safety_margin
        samples = EncodedSamples(self.estimator_, self.teacher_, X, teacher_proba)
        return again._certify_training(samples)


def certificate_for_scores(
    certifier: CollapseCertifier,
    X: ArrayLike,
    kind: Literal["mean", "sampled"],
    n_draws: int = 8,
    teacher_proba: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Certificate:
    """Certify samples, also those of `fit`: for scores, not for verdicts."""
    pieces = certifier._pieces(X, teacher_proba, sample_weight)
    # Scores are margins, which do not depend on the confidence.
    part = certifier._collect(pieces, kind, n_draws, 0.95, known_too=True)
    return part.collected.conclude(0.0)


def _flat_in_order(X: Any, *per_sample: ArrayLike | None) -> Any:
    """Return flat samples, in a known order if there are values for each sample."""
    in_order = any(values is not None for values in per_sample)
    return flat_samples(X, in_order=in_order)


def _check_template(template: Any) -> None:
    # A frozen estimator or a search wraps the estimator to check.
    inner = getattr(template, "estimator", template)
    last = inner[-1] if isinstance(inner, Pipeline) else None
    if hasattr(last, "witness_log_proba"):
        raise ValueError(
            f"estimator must not be a Pipeline that ends in a {type(last).__name__}: "
            "the teacher would see other samples than the encoder. Put the certifier "
            "last: "
            f"make_pipeline(..., CollapseCertifier({type(last).__name__}()))."
        )


def _is_frozen(estimator: Any) -> bool:
    return isinstance(estimator, FrozenEstimator)


def _seeded_copy(template: Any, random_state: Any) -> Any:
    """Return an unfitted copy of an estimator, seeded where its seed is None."""
    if not hasattr(template, "get_params"):
        return template
    estimator = clone(template)
    # A frozen estimator is fitted already, so its seed has no effect.
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
            f"{type(template).__name__}. Set warm_start=False to start again."
        )
    params = own if partial else own | {"warm_start": True}
    estimator = copy.copy(fitted).set_params(**params)
    # The state is copied, so that a failing fit does not change the fitted estimator.
    # Parameters are not: callbacks, for example, may not support a copy.
    state = {k: v for k, v in vars(estimator).items() if k not in own}
    vars(estimator).update(copy.deepcopy(state))
    return estimator


def _keeps_epochs(estimator: Any, error: BaseException, first: bool) -> bool:
    """Return whether an estimator whose fit raised an error keeps epochs."""
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "estimator", None) is estimator
    # Only after a first fit is there no earlier fit to restore.
    return first and hasattr(estimator, "net_")


def _check_teacher_proba(teacher: Any, teacher_proba: ArrayLike | None) -> None:
    """Raise an error unless both fits of a warm start have posteriors, or neither."""
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
    """Return whether a search hides that the estimator inside takes posteriors."""
    inner = None if _is_frozen(search) else getattr(search, "estimator", None)
    return inner is not None and (_takes_posteriors(inner) or _hides_posteriors(inner))


def _fit_encoder(
    estimator: Any,
    X: ArrayLike,
    y: Any,
    teacher_proba: ArrayLike | None,
    partial: bool,
) -> None:
    """Fit an encoder; an encoder without parameters is used as it is."""
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
            "does not pass it to its estimator. Put the certifier inside the search."
        )
    else:
        fit(X, y)
