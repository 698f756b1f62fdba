"""CollapseCertifier: fit, score and certify any encoder that has `transform`."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any, ClassVar, Self

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
from sklearn.utils import (
    Tags,
    _safe_indexing,
    check_consistent_length,
    check_random_state,
    gen_batches,
    get_tags,
    indexable,
)
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from skvaecert._base import (
    CallbackSupportMixin,
    FitTasks,
    NestedDefaultMixin,
    fingerprints,
    restored_on_error,
    seed_unset,
    with_callbacks,
)
from skvaecert._certificate import Certificate, CertificateSums
from skvaecert._teacher import GMMTeacher, teacher_posterior
from skvaecert._vae import CertifiedVAE, resolve_witness_scale
from skvaecert.exceptions import NonFiniteLossError, UnstableEncoderWarning
from skvaecert.simplex import (
    Floats,
    check_teacher_proba,
    check_weight,
    simplex_vertices,
)

__all__ = ["CollapseCertifier"]

# Rows, their posteriors or None, their weights or None.
_Piece = tuple[ArrayLike, ArrayLike | None, ArrayLike | None]

# Rows that are encoded a second time, to see how far their means are to be trusted.
_REPEATED_ROWS = 255
# Rows that are encoded, and asked about, at a time.
_MOST_ROWS = 2**16
# Means that differ by more between two batches come from no deterministic encoder.
_UNSTABLE = 1e-3


def _has_inverse(certifier: "CollapseCertifier") -> bool:
    return hasattr(_template(certifier), "inverse_transform")


def _template(certifier: "CollapseCertifier") -> Any:
    return CertifiedVAE() if certifier.estimator is None else certifier.estimator


class CollapseCertifier(
    CallbackSupportMixin,
    NestedDefaultMixin,
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
    witness : {"raw"}, default="raw"
        What reads the code: the fixed simplex.
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
        S.
    witness_scale_ : float
        beta.
    certificate_ : Certificate
        On the training rows.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods("transform"), None],
        "teacher": [
            HasMethods(["get_params", "fit", "predict_proba"]),
            HasMethods(["get_params", "fit", "transform"]),
            None,
        ],
        "witness": [StrOptions({"raw"})],
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
            self._fit_witness(means, proba, keep=go_on)
            sums = CertificateSums(self.vertices_, self.witness_scale_)
            repeated = _Repeated()
            repeated.compare(means, X, self._encode)
            self.certificate_ = self._certificate(sums.update(proba, means), repeated)
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
        sums = CertificateSums(self.vertices_, self.witness_scale_)
        for rows, proba, weight in _pieces(X, teacher_proba, sample_weight):
            means = self._means(rows)
            sums.update(self._posterior(rows, proba, len(means)), means, weight)
        return sums.margin

    def certify(
        self,
        X: ArrayLike,
        y: Any = None,
        *,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Certificate:
        """Certify the encoder on `X`.

        Some rows are encoded twice, in another batch and order; what their means
        differ by is added to the tolerance.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.

        Returns
        -------
        Certificate
            Verdict and numbers for these rows.

        Warns
        -----
        UnstableEncoderWarning
            If the means of the same rows differ between two batches by more than
            rounding would explain.
        """
        check_is_fitted(self)
        return self._certify(_pieces(X, teacher_proba, sample_weight))

    def certify_batches(self, batches: Iterable[ArrayLike]) -> Certificate:
        """Certify the encoder on rows that come in batches, and are read once.

        The same as :meth:`certify` on all rows together, to within the tolerance, in
        memory that does not grow with their number. An array on disk can as well be
        handed to :meth:`certify`, which reads it some rows at a time.

        Parameters
        ----------
        batches : iterable of array-like of shape (n_samples, n_features)
            Rows, best some thousands at a time: of each batch, some are encoded twice.

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
        check_is_fitted(self)
        return self._certify((rows, None, None) for rows in batches)

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
        return self.vertices_.shape[1]

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
            self._teacher_prints = fingerprints("teacher", self._teacher_template)
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
        prints = fingerprints("teacher", self._teacher_template)
        if self.teacher_ is not None and self._teacher_prints != prints:
            raise ValueError(
                "teacher must stay as it was in the fit that warm_start continues, got "
                f"{self.teacher!r}. Set it back, or set warm_start=False."
            )

    def _fit_witness(
        self, means: NDArray[np.floating], proba: Floats, *, keep: bool
    ) -> None:
        """Take the encoder's witness; give one to an encoder that has none."""
        if hasattr(self._owner, "vertices_"):
            self.vertices_ = self._owner.vertices_
            self.witness_scale_ = self._owner.witness_scale_
        elif not keep:
            self.vertices_ = simplex_vertices(proba.shape[1], means.shape[1])
            self.witness_scale_ = resolve_witness_scale("prior", proba)

    def _posterior(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int | None
    ) -> Floats:
        if teacher_proba is not None:
            return check_teacher_proba(teacher_proba, n_samples)
        if self.teacher_ is None:
            raise ValueError(
                "teacher_proba must be given for the rows to score: this certifier "
                "was fitted with teacher_proba and has no teacher to ask."
            )
        return teacher_posterior(self.teacher_, X)

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

    def _certify(self, pieces: Iterable[_Piece]) -> Certificate:
        sums = CertificateSums(self.vertices_, self.witness_scale_)
        repeated = _Repeated()
        for rows, proba, weight in pieces:
            means = self._means(rows)
            sums.update(self._posterior(rows, proba, len(means)), means, weight)
            repeated.compare(means, rows, self._encode)
        return self._certificate(sums, repeated)

    def _certificate(self, sums: CertificateSums, repeated: "_Repeated") -> Certificate:
        repeated.warn_if_unstable()
        return sums.certificate(
            safety_margin=self.safety_margin, latent_noise=repeated.moved
        )


class _Repeated:
    """What latent means differ by when some rows are encoded again, in other company.

    Attributes
    ----------
    moved : float
        The most a mean moved.
    """

    def __init__(self) -> None:
        self.moved = 0.0
        self._largest = 1.0

    def compare(
        self,
        means: NDArray[np.floating],
        X: ArrayLike,
        encode: Callable[[ArrayLike], NDArray[np.floating]],
    ) -> None:
        if len(means) == 1:
            return
        # An odd lot in random order, without the first row: no block, no symmetry and
        # not all places are kept.
        order = 1 + np.random.default_rng(0).permutation(len(means) - 1)
        index = order[: max(1, min(2 * len(means) // 3, _REPEATED_ROWS))]
        again = encode(_rows(X, index))
        moved = float(np.linalg.norm(again - means[index], axis=1).max())
        self.moved = max(self.moved, moved)
        self._largest = max(self._largest, float(np.abs(means).max()))

    def warn_if_unstable(self) -> None:
        if self.moved > _UNSTABLE * self._largest:
            warnings.warn(
                UnstableEncoderWarning(
                    f"The encoder moved the mean of a row by {self.moved:.2g} when the "
                    "row came in another batch. Put modules into evaluation mode "
                    "(dropout, batch normalisation) and return means, not drawn codes. "
                    "The difference is counted as noise, so nothing will be certified "
                    "by it."
                ),
                stacklevel=5,
            )


def _pieces(
    X: ArrayLike, teacher_proba: ArrayLike | None, sample_weight: ArrayLike | None
) -> Iterator[_Piece]:
    """Cut rows, and what belongs to them, where there are too many for one piece."""
    n_samples = _n_samples(X)
    if n_samples <= _MOST_ROWS:
        yield X, teacher_proba, sample_weight
        return
    weight = check_weight(sample_weight, n_samples)
    if teacher_proba is not None:
        check_consistent_length(X, teacher_proba)
    for piece in gen_batches(n_samples, _MOST_ROWS):
        proba = None if teacher_proba is None else _rows(teacher_proba, piece)
        yield _rows(X, piece), proba, weight[piece]


def _n_samples(X: Any) -> int:
    """Count rows, or what is too little to be cut: the estimator has the last word."""
    shape = getattr(X, "shape", None)
    return len(X) if (shape if shape is not None else hasattr(X, "__len__")) else 0


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


def _rows(X: ArrayLike, index: NDArray[np.intp] | slice) -> Any:
    (indexable_X,) = indexable(X)
    return _safe_indexing(indexable_X, index)
