"""GMMTeacher: soft cluster memberships, found without labels, as fixed targets."""

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skvaecert._base import numpy_only, restored_on_error, validate_rows
from skvaecert.exceptions import UninformativeTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import Floats, check_teacher_proba, log_odds_energy

__all__ = ["GMMTeacher", "teacher_posterior"]

# Below this many nats the margin that could be reached is not worth a training.
_LITTLE_INFORMATION = 0.01
# Squares of smaller numbers are lost in float32.
_SMALL = 1e-15


class GMMTeacher(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Teacher posterior from a Gaussian mixture on principal components.

    With the mixture's posterior P(k|x), temperature t and floor e::

        T(k|x) = (1 - e) P(k|x)^(1/t) / sum_j P(j|x)^(1/t) + e / K

    Every entry is above 0. The teacher is fitted without labels and then fixed; how
    much it tells rows apart, the teacher information, is what the best constant
    student pays and the most that a margin can reach.

    Parameters
    ----------
    n_components : int, default=10
        K, the number of mixture components, at most the number of rows. With 1 the
        teacher has no information.
    pca_components : int, default=16
        Principal components kept, at most; fewer if there are fewer rows or
        features.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        As in :class:`sklearn.mixture.GaussianMixture`.
    temperature : float, default=1.0
        t, above 0. Mixtures in many dimensions are nearly certain of every row;
        temperatures above 1 soften them.
    floor : float, default=0.01
        e, at least 1e-30 and below 1. Bounds the log-odds, and with them the
        energy of the codes that the teacher asks for.
    reg_covar : float, default=1e-3
        Added to the variances of the mixture, as a share of the mean variance of the
        principal components; at least 0.
    n_init : int, default=1
        Starts of the mixture; the one with the highest likelihood is kept.
    max_iter : int, default=200
        Most steps of each start.
    random_state : int, RandomState instance or None, default=None
        Seeds PCA and mixture; an int gives the same teacher at every fit.

    Attributes
    ----------
    pca_ : sklearn.decomposition.PCA
        The fitted projection.
    mixture_ : sklearn.mixture.GaussianMixture
        The fitted mixture, on principal components.
    n_components_ : int
        K.
    temperature_ : float
        t.
    information_ : float
        Teacher information on the training rows, nats.
    energy_ : float
        Log-odds energy E_T on the training rows.
    mean_proba_ : ndarray of shape (n_components,)
        Average posterior of the training rows.
    n_iter_ : int
        Steps of the mixture's best start.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    CertifiedVAE : Trains a VAE whose code is aligned with a teacher.
    skvaecert.metrics.teacher_information : The score, on arrays.

    References
    ----------
    Theory sections 2 and 3; arXiv:2605.05813, arXiv:2605.18224 (which search for the
    teacher among many; this is one configuration).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import GMMTeacher
    >>> X = load_iris().data
    >>> teacher = GMMTeacher(n_components=3, random_state=0).fit(X)
    >>> teacher.transform(X).shape
    (150, 3)
    >>> round(teacher.score(X), 1)
    1.0
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "pca_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "floor": [Interval(Real, 1e-30, 1, closed="left")],
        "reg_covar": [Interval(Real, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 10,
        *,
        pca_components: int = 16,
        covariance_type: str = "full",
        temperature: float = 1.0,
        floor: float = 0.01,
        reg_covar: float = 1e-3,
        n_init: int = 1,
        max_iter: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.pca_components = pca_components
        self.covariance_type = covariance_type
        self.temperature = temperature
        self.floor = floor
        self.reg_covar = reg_covar
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit PCA and mixture.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, at least `n_components` of them.
        y : Ignored
            Present by convention: a teacher knows no labels.

        Returns
        -------
        self : GMMTeacher
            The fitted teacher.

        Raises
        ------
        ValueError
            If `X` is not valid, is constant, or has fewer rows than `n_components`.

        Warns
        -----
        UninformativeTeacherWarning
            If the teacher information on `X` is below 0.01 nats.
        """
        with restored_on_error(self):
            rows = validate_rows(self, X, ensure_min_samples=2)
            self._check_rows(rows)
            if np.abs(rows).max() < _SMALL:
                rows = rows.astype(np.float64)
            with numpy_only():
                self._fit_mixture(rows)
            self._measure(rows)
        if self.information_ < _LITTLE_INFORMATION:
            warnings.warn(self._little_information(), stacklevel=3)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the teacher posterior T(k|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Rows of the open simplex: every entry above 0, sums 1. float32 for
            float32 `X`, float64 otherwise.
        """
        check_is_fitted(self)
        rows = validate_rows(self, X, reset=False)
        return self._posterior(rows).astype(rows.dtype, copy=False)

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the teacher posterior T(k|x), as :meth:`predict_proba` does.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Rows of the open simplex.
        """
        return self.predict_proba(X)

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return the most probable component of every row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Components, from 0.
        """
        return self.predict_proba(X).argmax(axis=1)

    def score(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the teacher information I_T = sum_i p_i KL(T_i || mean T) on `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.

        Returns
        -------
        float
            Nats, in [0, log K].
        """
        check_is_fitted(self)
        rows = validate_rows(self, X, reset=False)
        return teacher_information(self._posterior(rows), sample_weight)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that the dtype is kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _check_rows(self, X: NDArray[np.floating]) -> None:
        if len(X) < self.n_components:
            raise ValueError(
                f"n_components must be at most the number of rows, n_samples={len(X)}, "
                f"got {self.n_components}. Use fewer components or more rows."
            )
        if (X == X[0]).all():
            raise ValueError(
                "X must have rows that differ: all rows are equal, and a teacher "
                "cannot tell them apart."
            )

    def _fit_mixture(self, X: NDArray[np.floating]) -> None:
        random_state = check_random_state(self.random_state)
        n_components = min(self.pca_components, *X.shape)
        self.pca_ = PCA(n_components, random_state=random_state).fit(X)
        scores = self._scores(X)
        self.mixture_ = GaussianMixture(
            self.n_components,
            covariance_type=self.covariance_type,
            reg_covar=self.reg_covar * scores.var(axis=0).mean(),
            n_init=self.n_init,
            max_iter=self.max_iter,
            random_state=random_state,
        ).fit(scores)

    def _measure(self, X: NDArray[np.floating]) -> None:
        self.n_components_ = self.n_components
        self.n_iter_ = self.mixture_.n_iter_
        self.temperature_ = float(self.temperature)
        proba = self._posterior(X)
        self.information_ = teacher_information(proba)
        self.energy_ = log_odds_energy(proba)
        self.mean_proba_ = proba.mean(axis=0)

    def _scores(self, X: NDArray[np.floating]) -> Floats:
        # The projection may come as a data frame, by scikit-learn's configuration.
        return np.asarray(self.pca_.transform(X), dtype=np.float64)

    def _posterior(self, X: NDArray[np.floating]) -> Floats:
        # predict_proba would underflow to 0 what a high temperature brings back.
        log_joint = self.mixture_._estimate_weighted_log_prob(self._scores(X))
        proba = softmax(log_joint / self.temperature_, axis=1)
        return (1 - self.floor) * proba + self.floor / self.n_components_

    def _little_information(self) -> UninformativeTeacherWarning:
        return UninformativeTeacherWarning(
            f"The teacher information is only {self.information_:.2g} nats, so no "
            "encoder can reach a margin worth speaking of. Lower temperature "
            f"({self.temperature:g}) or floor ({self.floor:g}), change n_components "
            f"({self.n_components}), or check that X has structure to be found."
        )


def teacher_posterior(teacher: Any, X: ArrayLike) -> Floats:
    """Ask any teacher for its posterior: by `predict_proba`, else by `transform`.

    Parameters
    ----------
    teacher : object
        A fitted estimator.
    X : array-like of shape (n_samples, n_features)
        Rows, as the user gave them.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        T in float64.

    Raises
    ------
    ValueError
        If what the teacher returns are no rows of the open simplex.
    """
    ask = getattr(teacher, "predict_proba", None) or teacher.transform
    proba = np.asarray(ask(X))
    try:
        return check_teacher_proba(proba)
    except ValueError as error:
        raise ValueError(
            f"teacher, a {type(teacher).__name__}, gave no posterior that can be used: "
            f"{error}"
        ) from error
