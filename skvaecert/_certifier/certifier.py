"""CollapseCertifier: fit, score and certify any encoder that has `transform`."""

import copy
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
    clone,
)
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, check_random_state, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import CertificateSums, check_confidence
from skvaecert._certifier.calibration import Models, calibrate, result_or_raise
from skvaecert._certifier.kinds import Kind, MeanKind, RoundTripKind, SampledKind
from skvaecert._certifier.partial import PartialCertificate
from skvaecert._estimator import (
    CallbackSupportMixin,
    FitTasks,
    NestedDefaultMixin,
    SavedMixin,
    check_unchanged,
    remember_params,
    restored_on_error,
    seed_unset,
    with_callbacks,
)
from skvaecert._samples import (
    Piece,
    count_samples,
    cut_pieces,
    digest_samples,
    fingerprint_samples,
    take_samples,
)
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._teacher.posterior import posterior_of
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.simplex import (
    Floats,
    resolve_witness_scale,
    simplex_vertices,
)
from skvaecert.witnesses import fit_linear, fit_procrustes, simplex_witness

__all__ = ["CollapseCertifier"]


# Of rows of fit, most that strength and tempering are chosen on.
_CALIBRATION_ROWS = 2000

_FITS = {"procrustes": fit_procrustes, "linear": fit_linear}


def _has_inverse(certifier: "CollapseCertifier") -> bool:
    return hasattr(_template(certifier), "inverse_transform")


def _template(certifier: "CollapseCertifier") -> Any:
    return CertifiedVAE() if certifier.estimator is None else certifier.estimator


class CollapseCertifier(
    CallbackSupportMixin,
    NestedDefaultMixin,
    SavedMixin,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Certify that an encoder mean is not constant over the rows given.

    The margin of the alignment loss below the teacher information::

        G = I_T - A = sum_i p_i sum_k T_ik log(q_ik / mean T_k)

    with the teacher's posterior T and the witness q = softmax(beta S mu(x)). If mu is
    constant, G <= 0, whatever the constant. The mean teacher is always that of the
    rows that are scored.

    Parameters
    ----------
    estimator : estimator or None, default=None
        The encoder: any object with `transform`; None for ``CertifiedVAE()``. It is
        cloned and fitted by :meth:`fit`; wrapped in
        :class:`sklearn.frozen.FrozenEstimator`, or without `get_params`, it is taken
        as it is.
    teacher : estimator or None, default=None
        Used when the estimator brings no `teacher_` of its own; None for
        ``GMMTeacher()``.
    witness : {"raw", "procrustes", "linear"}, default="raw"
        What reads the code. "raw" is the fixed simplex, for encoders that were trained
        with it. The others are for encoders trained without: they are fitted after
        training, on half of the rows of :meth:`fit`, and certify other rows:
        "procrustes" turns, shifts and scales the code, "linear" is any softmax of a
        linear map. They prove as much, that the mean is not constant, but they are not
        the papers' certificate, and they see variation that is tiny beside the
        posterior's noise: ``certify(X, kind="sampled")`` does not.
    safety_margin : float, default=0.0
        tau, nats, at least 0: :meth:`certify` asks for a margin above it.
    warm_start : bool, default=False
        Whether :meth:`fit` continues with the fitted estimator, its parameters set to
        those of `estimator`: the way to rescue a collapsed encoder. The estimator
        itself must have a parameter `warm_start`.
    random_state : int, RandomState instance or None, default=None
        Seeds estimator and teacher where their own `random_state` is None.

    Attributes
    ----------
    estimator_ : estimator
        The fitted encoder.
    teacher_ : estimator or None
        The teacher; None after a fit with `teacher_proba`.
    vertices_ : ndarray of shape (n_components, latent_dim)
        S, for the witness "raw".
    witness_scale_ : float
        beta, for the witness "raw".
    witness_ : LinearWitness
        What reads the code.
    mean_proba_ : ndarray of shape (n_components,)
        The mean teacher on the rows of :meth:`fit`.
    certificate_ : Certificate
        On the training rows, for a fitted witness on those that it was not fitted on.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    CertifiedVAE : The encoder made for it.
    Certificate : The result.
    skvaecert.certify : The same on arrays.

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

    # What a warm start cannot change.
    _fixed: ClassVar = ("teacher",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods("transform"), None],
        "teacher": [
            HasMethods(["get_params", "fit", "predict_proba"]),
            HasMethods(["get_params", "fit", "transform"]),
            None,
        ],
        "witness": [StrOptions({"raw", "procrustes", "linear"})],
        "safety_margin": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        teacher: Any = None,
        witness: str = "raw",
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
        """Fit encoder and teacher and certify the encoder on the same rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Handed to the estimator; :class:`CertifiedVAE` ignores it.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of a teacher's.

        Returns
        -------
        self : CollapseCertifier
            The fitted certifier.

        Raises
        ------
        ValueError
            If data or parameters are not valid; an earlier fit stays usable.
        NonFiniteLossError
            If training broke down. An earlier fit stays usable; after a first one
            the epochs that the estimator has kept are certified.
        """
        breakdown = None
        tasks = FitTasks(self, X, y, n_parts=1)
        with restored_on_error(self):
            go_on = self.warm_start and hasattr(self, "estimator_")
            first = not hasattr(self, "estimator_")
            estimator = self._seeded(self._checked_template())
            if go_on:
                estimator = self._continued(estimator)
            tasks.begin("fit-estimator")
            try:
                with tasks.handed_on(estimator):
                    _fit_encoder(estimator, X, y, teacher_proba)
            except NonFiniteLossError as error:
                # What it has kept of a first fit, there is nothing else to go back to.
                if not (first and hasattr(estimator, "net_")):
                    raise
                breakdown = error
            self.estimator_ = estimator
            validate_data(self, X, reset=not go_on, skip_check_array=True)
            proba = self._fit_teacher(X, teacher_proba, keep=go_on)
            means = self._encode(X)
            self.mean_proba_ = proba.mean(axis=0)
            others = self._fit_witness(X, means, proba, keep=go_on)
            self.certificate_ = self._conclude(X, means, proba, others)
            self._certified_on = _digests(X, teacher_proba)
            # Of this fit alone: parts of a certificate are merged within one.
            self._origin = uuid4().hex
        if breakdown is not None:
            raise breakdown
        tasks.end()
        tasks.end_fit()
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means, as the estimator computes them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            Latent means.
        """
        return self._means(X)

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
            Rows.
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
            Rows; a single one has margin 0 or less.
        y : Ignored
            Present by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.

        Returns
        -------
        float
            Nats, finite, at most the teacher information on `X`; greater is better.
        """
        check_is_fitted(self)
        sums = CertificateSums(self.witness_)
        for rows, proba, weight in cut_pieces(X, teacher_proba, sample_weight):
            means = self._means(rows)
            sums.update(self._posterior(rows, proba, len(means)), means, weight)
        return sums.margin

    def score_samples(
        self, X: ArrayLike, *, teacher_proba: ArrayLike | None = None
    ) -> Floats:
        """Return what each row adds to the margin: g_i = sum_k T_ik log(q_ik/mean T_k).

        Here mean T is that of the rows of :meth:`fit`, so that the number of a row does
        not depend on the others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.

        Returns
        -------
        ndarray of shape (n_samples,)
            Nats. Rows far below 0 are those that the code places wrongly. Their mean is
            the score on the rows of :meth:`fit`, and on others KL(mean T of these ||
            mean T of fit) above it: use
            :func:`skvaecert.metrics.margin_contributions` for parts that add up there.
        """
        means = self._means(X)
        proba = self._posterior(X, teacher_proba, len(means))
        log_q = self.witness_.log_proba(means)
        return np.asarray((proba * (log_q - np.log(self.mean_proba_))).sum(axis=1))

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

        - ``kind="mean"``: the latent mean is not constant. Some rows are encoded twice,
          in another batch and order; what their means differ by is added to the
          tolerance.
        - ``kind="sampled"``: codes drawn from q(z|x) carry information. The margin is a
          lower bound on I(x; z), beside the upper bound `information_bound`. The
          witness is tempered, q ~ mean T exp(s (A z + b)), with s and mean T from rows
          of :meth:`fit`.
        - ``kind="round_trip"``: reconstructions of the means still show the teacher's
          components, so that encoder and decoder both pass input on. Temperature and
          floor of the teacher are those that do best on rows of :meth:`fit`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows. For fitted witnesses and for the last two kinds, other rows than those
            that were used to fit.
        y : Ignored
            Present by convention.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            What to certify.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's; not for "round_trip".
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.
        n_draws : int, default=8
            Codes drawn of each row for "sampled", at least 2.
        confidence : float, default=0.95
            Of the Monte-Carlo interval of "sampled".

        Returns
        -------
        Certificate
            Verdict and numbers for these rows.

        Raises
        ------
        ValueError
            If data or parameters are not valid, the estimator lacks what the kind
            needs, or the witness was fitted on rows of `X`.

        Warns
        -----
        UnstableEncoderWarning
            If the means of the same rows differ between two batches by more than
            rounding would explain.

        References
        ----------
        Theory sections 2, 6, 7 and 8.
        """
        pieces = cut_pieces(X, teacher_proba, sample_weight)
        collected = self._collected(pieces, None, kind, n_draws, confidence)
        return collected.certificate()

    def certify_batches(
        self,
        batches: Iterable[ArrayLike],
        *,
        kind: str = "mean",
        n_draws: int = 8,
        confidence: float = 0.95,
    ) -> Certificate:
        """Certify the encoder on rows that come in batches, and are read once.

        The same as :meth:`certify` on all rows together, to within the tolerance, in
        memory that does not grow with their number. An array on disk can as well be
        handed to :meth:`certify`, which reads it some rows at a time.

        Parameters
        ----------
        batches : iterable of array-like of shape (n_samples, n_features)
            Rows, best some thousands at a time: of each batch, some are encoded twice.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            As in :meth:`certify`.
        n_draws : int, default=8
            As in :meth:`certify`.
        confidence : float, default=0.95
            As in :meth:`certify`.

        Returns
        -------
        Certificate
            Verdict and numbers for all rows together.

        Raises
        ------
        ValueError
            If a batch is not valid or there is none.

        Warns
        -----
        UnstableEncoderWarning
            As :meth:`certify`.
        """
        pieces = ((rows, None, None) for rows in batches)
        collected = self._collected(pieces, None, kind, n_draws, confidence)
        return collected.certificate()

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
        """Collect what a certificate needs to know of some of the rows.

        For rows that lie on several machines: send the fitted certifier there, call
        this for each part of the rows, merge what it returns, in any order, and ask
        that for the certificate, which is of all rows together.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Some of the rows.
        part : int
            A number of at least 0 that no other part has: rows that come twice, from a
            task that was repeated for example, are then found when parts are merged.
        kind : {"mean", "sampled", "round_trip"}, default="mean"
            As in :meth:`certify`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            As in :meth:`certify`, of these rows.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, which count across parts; 1 when None.
        n_draws : int, default=8
            As in :meth:`certify`.
        confidence : float, default=0.95
            As in :meth:`certify`.

        Returns
        -------
        PartialCertificate
            Some kilobytes, without rows, encoder or teacher.

        Raises
        ------
        ValueError
            If data or parameters are not valid.
        """
        if not isinstance(part, Integral) or part < 0:
            raise ValueError(f"part must be an int of at least 0, got {part!r}.")
        pieces = cut_pieces(X, teacher_proba, sample_weight)
        return self._collected(pieces, int(part), kind, n_draws, confidence)

    def __sklearn_tags__(self) -> Tags:
        """Take over the estimator's tags on dtypes and input."""
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

    def _seeded(self, template: Any) -> Any:
        """Return an unfitted copy of an estimator, seeded where it is not."""
        if not hasattr(template, "get_params"):
            return template
        estimator = clone(template)
        if self.random_state is not None and not isinstance(estimator, FrozenEstimator):
            random_state = check_random_state(self.random_state)
            seed_unset(estimator, int(random_state.randint(2**31 - 1)))
        return estimator

    def _continued(self, template: Any) -> Any:
        """Return a copy of the fitted estimator with the parameters of `template`."""
        own = template.get_params(deep=False) if hasattr(template, "get_params") else {}
        if "warm_start" not in own:
            raise ValueError(
                "warm_start=True needs an estimator with a parameter warm_start, got "
                f"{type(template).__name__}."
            )
        # A copy, so that a fit that fails leaves the fitted one as it is.
        estimator = copy.deepcopy(self.estimator_)
        return estimator.set_params(**own | {"warm_start": True})

    def _checked_template(self) -> Any:
        template = _template(self)
        # A frozen estimator or a search holds what counts.
        inner = getattr(template, "estimator", template)
        last = inner[-1] if isinstance(inner, Pipeline) else None
        if hasattr(last, "witness_log_proba"):
            raise ValueError(
                f"estimator must not be a Pipeline that ends in a "
                f"{type(last).__name__}, whose teacher would see other rows. Put the "
                "certifier last: make_pipeline(..., CollapseCertifier("
                f"{type(last).__name__}()))."
            )
        return template

    @property
    def _owner(self) -> Any:
        """The fitted encoder itself, where the estimator is a search over it."""
        return getattr(self.estimator_, "best_estimator_", self.estimator_)

    def _fit_teacher(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, *, keep: bool
    ) -> Floats:
        theirs = getattr(self._owner, "teacher_", None)
        has_witness = hasattr(self._owner, "vertices_")
        if theirs is not None:
            self.teacher_ = theirs
        elif keep:
            self._check_same_teacher(teacher_proba)
        elif teacher_proba is not None or (has_witness and self.teacher is None):
            self.teacher_ = None
        else:
            self.teacher_ = self._seeded(self._teacher_template)
            self.teacher_.fit(X, None)
            remember_params(self)
        return self._posterior(X, teacher_proba, None)

    @property
    def _teacher_template(self) -> Any:
        return GMMTeacher() if self.teacher is None else self.teacher

    def _check_same_teacher(self, teacher_proba: ArrayLike | None) -> None:
        if (teacher_proba is None) == (self.teacher_ is None):
            raise ValueError(
                "teacher_proba must be "
                + ("given again" if teacher_proba is None else "left out")
                + ": warm_start continues a fit "
                + ("without" if teacher_proba is None else "with")
                + " a teacher."
            )
        if self.teacher_ is not None:
            check_unchanged(self)

    def _fit_witness(
        self, X: ArrayLike, means: NDArray[np.floating], proba: Floats, *, keep: bool
    ) -> NDArray[np.intp]:
        """Give the code a witness; return the rows that can be certified with it."""
        fitted, others = self._witness_rows(len(means))
        if self.witness == "raw":
            self._take_raw_witness(means, proba, keep=keep)
        else:
            self.witness_ = _FITS[self.witness](means[fitted], proba[fitted])
        few = fitted[:_CALIBRATION_ROWS]
        self._calibration = calibrate(
            self._models,
            self.witness_,
            take_samples(X, few),
            proba[few],
            fingerprint_samples(take_samples(X, fitted)),
            refit=_FITS.get(self.witness),
            has_teacher=self.teacher_ is not None,
        )
        return others

    def _witness_rows(
        self, n_samples: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which rows a witness is fitted or tempered on, and which it reads."""
        order = np.random.default_rng(0).permutation(n_samples)
        if self.witness == "raw":
            return order[:_CALIBRATION_ROWS], np.arange(n_samples)
        fitted, others = np.array_split(order, 2)
        return fitted, np.sort(others if len(others) else fitted)

    def _conclude(
        self,
        X: ArrayLike,
        means: NDArray[np.floating],
        proba: Floats,
        others: NDArray[np.intp],
    ) -> Certificate:
        read = MeanKind(self.witness_)
        read.repeated.compare(means, X, self._encode)
        read.sums.update(proba[others], means[others])
        return read.conclude(self.safety_margin)

    def _certify_again(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> Certificate:
        """Make the certificate of the training rows once more."""
        means = self._means(X)
        proba = self._posterior(X, teacher_proba, len(means))
        _, others = self._witness_rows(len(means))
        return self._conclude(X, means, proba, others)

    def _take_raw_witness(
        self, means: NDArray[np.floating], proba: Floats, *, keep: bool
    ) -> None:
        """Take the encoder's witness; give one to an encoder that has none."""
        if hasattr(self._owner, "vertices_"):
            self.vertices_ = self._owner.vertices_
            self.witness_scale_ = self._owner.witness_scale_
        elif not keep:
            self.vertices_ = simplex_vertices(proba.shape[1], means.shape[1])
            self.witness_scale_ = resolve_witness_scale("prior", proba)
        self.witness_ = simplex_witness(self.vertices_, self.witness_scale_)

    def _posterior(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int | None
    ) -> Floats:
        return posterior_of(self.teacher_, X, teacher_proba, n_samples=n_samples)

    def _means(self, X: ArrayLike) -> NDArray[np.floating]:
        check_is_fitted(self)
        # The estimator looks at X first: its errors say more.
        means = self._encode(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return means

    def _encode(self, X: ArrayLike) -> NDArray[np.floating]:
        means = np.asarray(self.estimator_.transform(X))
        if means.ndim != 2 or not np.isfinite(means).all():
            raise ValueError(
                "estimator must have a transform that returns a dense array of shape "
                "(n_samples, latent_dim) with finite values, got "
                + ("NaN or infinity." if means.ndim == 2 else f"shape {means.shape}.")
            )
        return means

    def _collected(
        self,
        pieces: Iterable[Piece],
        part: int | None,
        kind: str,
        n_draws: int,
        confidence: float,
    ) -> PartialCertificate:
        check_is_fitted(self)
        collected, models = self._kind(kind, n_draws, confidence, part), self._models
        must_be_others = kind != "mean" or self.witness_.name != "raw"
        n_samples = n_known = 0
        for X, proba, weight in pieces:
            collected.add(models, X, proba, weight)
            n_samples += count_samples(X)
            if must_be_others:
                known = np.isin(fingerprint_samples(X), self._calibration.rows)
                n_known += int(known.sum())
        return PartialCertificate(
            parts=frozenset(() if part is None else (part,)),
            n_samples=n_samples,
            n_known=n_known,
            origin=self._origin,
            safety_margin=self.safety_margin,
            collected=collected,
        )

    def _kind(
        self, kind: str, n_draws: int, confidence: float, part: int | None = None
    ) -> Kind:
        if kind == "mean":
            return MeanKind(self.witness_)
        if kind == "round_trip":
            tempering = result_or_raise(self._calibration.tempering)
            return RoundTripKind(tempering, self.witness_.weights.shape)
        if kind == "sampled":
            _check_draws(n_draws, confidence)
            witness = result_or_raise(self._calibration.witness)
            generator = np.random.default_rng(self._seed())
            return SampledKind(witness, n_draws, confidence, generator, part)
        raise ValueError(
            f"kind must be 'mean', 'sampled' or 'round_trip', got {kind!r}."
        )

    def _seed(self) -> int:
        """Return a seed for drawn codes: the same at each call, if one was given."""
        given = 0 if self.random_state is None else self.random_state
        return int(check_random_state(given).randint(2**31 - 1))

    @property
    def _models(self) -> Models:
        return Models(self.estimator_, self._means, self._posterior)


def _digests(X: ArrayLike, teacher_proba: ArrayLike | None) -> dict[str, str | None]:
    """Return what tells later which rows a certificate was made on."""
    given = None if teacher_proba is None else digest_samples(teacher_proba)
    return {"rows": digest_samples(X), "teacher_proba": given}


def _check_draws(n_draws: int, confidence: float) -> None:
    if not isinstance(n_draws, Integral) or n_draws < 2:
        raise ValueError(f"n_draws must be an int of at least 2, got {n_draws!r}.")
    check_confidence(confidence)


def _fit_encoder(
    estimator: Any, X: ArrayLike, y: Any, teacher_proba: ArrayLike | None
) -> None:
    """Fit an encoder, unless it is one without parameters, which is taken as it is."""
    if not (hasattr(estimator, "fit") and hasattr(estimator, "get_params")):
        return
    if teacher_proba is not None and isinstance(estimator, BaseSearchCV):
        raise ValueError(
            "teacher_proba must be left out for a search inside the certifier, which "
            "would not hand it on. Put the certifier inside the search."
        )
    if teacher_proba is not None and has_fit_parameter(estimator, "teacher_proba"):
        estimator.fit(X, y, teacher_proba=teacher_proba)
    else:
        estimator.fit(X, y)
