"""GMMTeacher: soft cluster memberships, found without labels, as fixed targets."""

import copy
from collections.abc import Iterator, Sequence
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils import Tags, check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.random import sample_without_replacement
from sklearn.utils.validation import check_is_fitted

from skvaecert._estimator import SavedMixin, restored_on_error, warn_user
from skvaecert._samples import DatasetSamples, numpy_only, open_samples, read_samples
from skvaecert._teacher.em import Mixture
from skvaecert._teacher.search import (
    Candidate,
    Configuration,
    Criterion,
    NoCandidateError,
    can_search,
    check_budget,
    finished,
    search_teacher,
)
from skvaecert.exceptions import UninformativeTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import Floats, analytic_energy, temper

__all__ = ["GMMTeacher", "counts_of"]


# Below this many nats the margin that could be reached is not worth a training.
_LITTLE_INFORMATION = 0.01

# Rows that PCA looks at; more change the variance explained by less than 1e-4.
_PCA_ROWS = 10_000

# Posteriors in a batch: few enough to stay in the cache.
_BATCH_NUMBERS = 2**18

# Precisions, which are inverse to it, must not overflow.
_LEAST_VARIANCE = 1e-200

_COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")

# n_components="auto": its limits, and the rows a component has below the upper one.
_AUTO_COMPONENTS, _AUTO_ROWS = (2, 10), 5


class GMMTeacher(
    SavedMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    r"""Teacher posterior from a Gaussian mixture on principal components.

    With the mixture's posterior P(k|x), temperature t and floor e::

        T(k|x) = (1 - e) P(k|x)^(1/t) / sum_j P(j|x)^(1/t) + e / K

    Every entry is above 0. The teacher is fitted without labels and then fixed; how
    much it tells rows apart, the teacher information, is what the best constant
    student pays and the most that a margin can reach.

    The covariance type is searched for unless one is given. Lists for `n_components`,
    `pca_components` or `covariance_type` mean a search of their grid. Chosen is, on a
    quarter of the rows that no mixture was fitted on::

        argmax I_T    subject to    (K - 1) / (2 K) E_T <= energy_budget
                      and           AMI of restarts >= min_agreement

    with the log-odds energy E_T and the adjusted mutual information of the groups
    found by restarts. All candidates meet on 10,000 rows; if there are more, the three
    best go on and meet again on all. The chosen mixture is then fitted on all rows.

    Parameters
    ----------
    n_components : int, list of int or "auto", default="auto"
        K, the number of mixture components, at most the number of rows (in a search,
        fewer: see Notes). With 1 the teacher has no information. "auto" for a fifth
        of the rows that mixtures are fitted on, but from 2 to 10.
    pca_components : int or list of int, default=16
        Principal components kept, at most; fewer if there are fewer rows or
        features.
    covariance_type : str, list of str or "auto", default="auto"
        "full", "tied", "diag" or "spherical", as in
        :class:`sklearn.mixture.GaussianMixture`. "auto" for a search of all
        four; "spherical" where rows or distinct rows are too few for it, see Notes.
    temperature : float or "auto", default="auto"
        t, above 0; temperatures above 1 soften. "auto" for the smallest from 1 up
        at which the energy fits `energy_budget` on the rows fitted.
    floor : float, default=0.01
        e, at least 1e-30 and below 1. Bounds the log-odds, and with them the
        energy of the codes that the teacher asks for.
    energy_budget : float or None, default=None
        Most nats of KL a sample that the analytic code may cost at witness scale 1.
        None for 8 (K - 1), at which the prior-matched scale is 4: sharper teachers
        were not seen to gain, and with many components to lose. Candidates above it,
        on the rows held out, are left out; a single mixture is held against it only
        if it is given.
    min_agreement : float, default=0.5
        Least adjusted mutual information of the groups found by two restarts, on
        average over pairs, in [0, 1]: what restarts do not agree on may be chance. If
        no candidate has it, that with the most is taken, with a warning.
    reg_covar : float, default=1e-3
        Added to the variances of the mixture, as a share of the mean variance of the
        principal components; at least 0.
    n_init : int, default=1
        Starts of each mixture; the one with the highest likelihood is kept. A search
        makes at least three, and keeps the one with most information.
    max_iter : int, default=200
        Most steps of each start.
    subsample : int or None, default=100_000
        Most rows, drawn at random, that mixtures are fitted on; None for all. PCA
        looks at 10,000 rows at most.
    error_score : "raise" or float, default=nan
        Information recorded for candidates that fail, with a warning; "raise" to
        raise their error.
    n_jobs : int or None, default=None
        Threads of a search; -1 for all processors.
    verbose : int, default=0
        Above 0 for a progress bar over the candidates of a search, above 1 for a
        line on each.
    random_state : int, RandomState instance or None, default=None
        Seeds PCA, search and mixture; an int gives the same teacher at every fit.

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
        Energy of the analytic code at witness scale 1, (K - 1) / (2 K) E_T, on the
        training rows, nats. At scale s it is `energy_` / s^2; the prior-matched scale
        is sqrt(2 `energy_` / (K - 1)).
    mean_proba_ : ndarray of shape (n_components,)
        Average posterior of the training rows.
    n_iter_ : int
        Steps of the mixture's best start.
    search_results_ : dict of ndarray or None
        None without a search. Else one entry a candidate, in a form that
        ``pandas.DataFrame`` takes: "n_components", "pca_components",
        "covariance_type"; on the rows held out "information", "energy",
        "temperature", "log_likelihood" (of the principal components, nats a row)
        and "agreement"; "n_samples" fitted on; "seconds"; "error", empty if there
        was none; "usable", whether budget and agreement were kept; "rank", 1 for
        the chosen one.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    CertifiedVAE : Trains a VAE whose code is aligned with a teacher.
    skvaecert.plotting.TeacherSearchDisplay : Draws a search.
    skvaecert.metrics.teacher_information : The score, on arrays.

    Notes
    -----
    NumPy arrays, on disk or of integers, are read in chunks and never copied as a
    whole. All rows are projected, a pass over the data, and keep `pca_components`
    numbers each in memory; what a search fits grows with neither rows nor features.

    Mixtures of a search are fitted by an EM of this package, the same as that of
    scikit-learn but in float32 where that is enough, from the same k-means for all
    covariance types. Candidates need at least five rows a component to be fitted on,
    so "auto" searches from 7 rows a component up.

    References
    ----------
    Theory sections 2 and 3; arXiv:2605.05813, arXiv:2605.18224.

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
    >>> search = GMMTeacher(
    ...     n_components=[2, 3], covariance_type=["full", "tied"], random_state=0)
    >>> search.fit(X).n_components_
    3
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            "array-like",
            StrOptions({"auto"}),
        ],
        "pca_components": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "covariance_type": [
            StrOptions({*_COVARIANCE_TYPES, "auto"}),
            "array-like",
        ],
        "temperature": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "floor": [Interval(Real, 1e-30, 1, closed="left")],
        "energy_budget": [Interval(Real, 0, None, closed="neither"), None],
        "min_agreement": [Interval(Real, 0, 1, closed="both")],
        "reg_covar": [Interval(Real, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "subsample": [Interval(Integral, 2, None, closed="left"), None],
        "error_score": [StrOptions({"raise"}), Real],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int | str | Sequence[int] = "auto",
        *,
        pca_components: int | Sequence[int] = 16,
        covariance_type: str | Sequence[str] = "auto",
        temperature: float | str = "auto",
        floor: float = 0.01,
        energy_budget: float | None = None,
        min_agreement: float = 0.5,
        reg_covar: float = 1e-3,
        n_init: int = 1,
        max_iter: int = 200,
        subsample: int | None = 100_000,
        error_score: float | str = np.nan,
        n_jobs: int | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.pca_components = pca_components
        self.covariance_type = covariance_type
        self.temperature = temperature
        self.floor = floor
        self.energy_budget = energy_budget
        self.min_agreement = min_agreement
        self.reg_covar = reg_covar
        self.n_init = n_init
        self.max_iter = max_iter
        self.subsample = subsample
        self.error_score = error_score
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None, **fit_params: Any) -> Self:
        """Fit PCA and mixture, or search for the best ones.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, at least `n_components` of them.
        y : Ignored
            Present by convention: a teacher knows no labels.
        **fit_params : dict
            Refused. There are no weighted mixtures, so a `sample_weight` could not
            be honoured.

        Returns
        -------
        self : GMMTeacher
            The fitted teacher.

        Raises
        ------
        ValueError
            If `X` is not valid, is constant, or has fewer rows than `n_components`;
            if all candidates of a search fail or none fits `energy_budget`.
        TypeError
            If there are `fit_params`.

        Warns
        -----
        UninformativeTeacherWarning
            If the teacher information on `X` is below 0.01 nats.
        UnstableTeacherWarning
            If no candidate of a search reaches `min_agreement`.
        FitFailedWarning
            If candidates of a search failed.
        ConvergenceWarning
            If the mixture did not converge.
        InterruptedFitWarning
            If Ctrl-C ended a search after at least one candidate. The teacher is the
            best of those that were done.
        """
        _refuse(fit_params)
        with restored_on_error(self), numpy_only():
            rows = open_samples(self, X, ensure_min_samples=2)
            configurations = self._configurations(*rows.shape)
            random_state = check_random_state(self.random_state)
            most = max(c.pca_components for c in configurations)
            scores = self._project(rows, most, random_state)
            self._fit_mixture(scores, configurations, random_state)
            self._measure(scores[:, : self.pca_.n_components_])
        if self.information_ < _LITTLE_INFORMATION:
            warn_user(self._little_information())
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
        rows = open_samples(self, X, reset=False)
        dtype = np.float32 if rows.dtype == np.float32 else np.float64
        return self._read_posterior(rows).astype(dtype, copy=False)

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
        rows = open_samples(self, X, reset=False)
        return teacher_information(self._read_posterior(rows), sample_weight)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that the dtype is kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _configurations(self, n_samples: int, n_features: int) -> list[Configuration]:
        most = min(n_samples, self.subsample or n_samples)
        n_components = self._n_components(most)
        pca_components = counts_of("pca_components", self.pca_components)
        covariance_types = self._covariance_types(n_components, most)
        kept = [min(count, n_samples, n_features) for count in pca_components]
        grid = dict.fromkeys(product(n_components, kept, covariance_types))
        if min(n_components) > most:
            raise ValueError(
                "n_components must be at most the number of rows that mixtures are "
                f"fitted on (n_samples={n_samples}, subsample={self.subsample}), got "
                f"{self.n_components}. Use fewer components or more rows."
            )
        return [Configuration(*point) for point in grid]

    def _n_components(self, n_samples: int) -> list[int]:
        if isinstance(self.n_components, str):
            fewest, most = _AUTO_COMPONENTS
            return [min(most, max(fewest, n_samples // _AUTO_ROWS))]
        return counts_of("n_components", self.n_components)

    def _covariance_types(self, n_components: list[int], n_samples: int) -> list[str]:
        if self._is_explicit:
            given = self.covariance_type
            return _values("covariance_type", given, _COVARIANCE_TYPES.__contains__)
        # The simplest first: it is what is fitted where a search is not possible.
        if can_search(min(n_components), n_samples):
            return list(reversed(_COVARIANCE_TYPES))
        return ["spherical"]

    def _project(
        self,
        rows: NDArray[np.number] | DatasetSamples,
        n_components: int,
        random_state: np.random.RandomState,
    ) -> Floats:
        """Fit PCA on some rows and return the principal components of all."""
        seen: Any = rows[_draw(len(rows), _PCA_ROWS, random_state)]
        seen = np.concatenate(
            [chunk.astype(float) for chunk in read_samples(self, seen)]
        )
        if (seen == seen[0]).all():
            raise ValueError(
                f"X must have rows that differ: all {len(seen)} rows looked at are "
                "equal, and a teacher cannot tell them apart."
            )
        self.pca_ = PCA(n_components, random_state=random_state).fit(seen)
        if self.pca_.explained_variance_[0] < _LEAST_VARIANCE:
            raise ValueError(
                f"X must vary by more than {np.sqrt(_LEAST_VARIANCE):.0e}, or its "
                f"squares are lost, got variance {self.pca_.explained_variance_[0]:.3g}"
                " on the first principal component. Rescale X."
            )
        return self._scores(rows)

    def _fit_mixture(
        self,
        scores: Floats,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> None:
        rows = scores[_draw(len(scores), self.subsample, random_state)]
        self.search_results_: dict[str, NDArray[Any]] | None = None
        configuration, *others = configurations
        best = self._search(rows, configurations, random_state) if others else None
        if best is not None:
            configuration = best.configuration
        self.n_components_, n_kept, _ = configuration
        self.pca_, rows = _truncated(self.pca_, n_kept), rows[:, :n_kept]
        self.mixture_ = self._unfitted(rows, configuration, random_state)
        if best is not None:
            mixture = finished(rows, best, self.reg_covar, self.max_iter)
            _set_fitted(self.mixture_, mixture)
            if not self.mixture_.converged_:
                warn_user(_not_converged(self.max_iter))
        else:
            self.mixture_.fit(rows)
        self.n_iter_ = self.mixture_.n_iter_
        self._set_temperature(rows, configuration)

    def _search(
        self,
        rows: Floats,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> Candidate | None:
        """Return the best candidate, None if "auto" has to do without a search."""
        try:
            best, self.search_results_ = search_teacher(
                rows,
                configurations,
                self._criterion(),
                reg_covar=self.reg_covar,
                n_init=self.n_init,
                max_iter=self.max_iter,
                error_score=self.error_score,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
                random_state=random_state,
            )
        except NoCandidateError:
            if len(configurations) > len(_COVARIANCE_TYPES) or self._is_explicit:
                raise
            return None
        return best

    @property
    def _is_explicit(self) -> bool:
        given = self.covariance_type
        return not (isinstance(given, str) and given == "auto")

    def _criterion(self) -> Criterion:
        return Criterion(
            self.temperature, self.floor, self.energy_budget, self.min_agreement
        )

    def _unfitted(
        self,
        rows: Floats,
        configuration: Configuration,
        random_state: np.random.RandomState,
    ) -> GaussianMixture:
        return GaussianMixture(
            configuration.n_components,
            covariance_type=configuration.covariance_type,
            reg_covar=self.reg_covar * rows.var(axis=0).mean(),
            n_init=self.n_init,
            max_iter=self.max_iter,
            random_state=random_state,
        )

    def _set_temperature(self, rows: Floats, configuration: Configuration) -> None:
        criterion = self._criterion()
        log_joint = self.mixture_._estimate_weighted_log_prob(rows)
        self.temperature_ = criterion.resolve_temperature(log_joint)
        if self.energy_budget is not None and self.search_results_ is None:
            proba = temper(log_joint, self.temperature_, self.floor)
            energy = analytic_energy(proba, 1.0)
            check_budget(
                Candidate(configuration, energy=energy, temperature=self.temperature_),
                criterion,
            )

    def _measure(self, scores: Floats) -> None:
        batches = list(self._batches(len(scores)))
        sizes = [len(scores[batch]) for batch in batches]
        parts = [self._numbers(scores[batch]) for batch in batches]
        information, energy, means = map(np.array, zip(*parts, strict=True))
        # The chain rule: information within batches, and that between their means.
        within = np.average(information, weights=sizes)
        self.information_ = float(within + teacher_information(means, sizes))
        self.energy_ = float(np.average(energy, weights=sizes))
        self.mean_proba_ = np.average(means, axis=0, weights=sizes)

    def _numbers(self, scores: Floats) -> tuple[float, float, Floats]:
        proba = self._posterior(scores)
        return (
            teacher_information(proba),
            analytic_energy(proba, 1.0),
            proba.mean(axis=0),
        )

    def _scores(self, rows: NDArray[np.number] | DatasetSamples) -> Floats:
        # The projection may come as a data frame, by scikit-learn's configuration.
        return np.concatenate(
            [
                np.asarray(self.pca_.transform(chunk.astype(float, copy=False)))
                for chunk in read_samples(self, rows)
            ]
        )

    def _read_posterior(self, rows: NDArray[np.number] | DatasetSamples) -> Floats:
        scores = self._scores(rows)
        return np.concatenate(
            [self._posterior(scores[batch]) for batch in self._batches(len(scores))]
        )

    def _posterior(self, scores: Floats) -> Floats:
        # predict_proba would underflow to 0 what a high temperature brings back.
        log_joint = self.mixture_._estimate_weighted_log_prob(scores)
        return temper(log_joint, self.temperature_, self.floor)

    def _batches(self, n_samples: int) -> Iterator[slice]:
        return gen_batches(n_samples, max(1, _BATCH_NUMBERS // self.n_components_))

    def _little_information(self) -> UninformativeTeacherWarning:
        return UninformativeTeacherWarning(
            f"The teacher information is only {self.information_:.2g} nats, so no "
            "encoder can reach a margin worth speaking of. Lower temperature "
            f"({self.temperature_:g}) or floor ({self.floor:g}), change n_components "
            f"({self.n_components_}), or check that X has structure to be found."
        )


def _refuse(fit_params: dict[str, Any]) -> None:
    if fit_params:
        raise TypeError(
            f"GMMTeacher.fit takes X alone, got {', '.join(fit_params)}. Mixtures "
            "here cannot weigh rows: repeat rows in place of weights, or give "
            "sample_weight to score."
        )


def _values(name: str, given: Any, is_valid: Any) -> list[Any]:
    """Return the values of a parameter that may be a list."""
    if isinstance(given, str) or np.isscalar(given):
        return [given]
    values = np.asarray(given, dtype=object)
    if values.ndim != 1 or not len(values) or not all(map(is_valid, values)):
        raise ValueError(
            f"{name} must be a value or a list of them, at least one: counts are ints "
            f"from 1 up, covariance types are in {_COVARIANCE_TYPES}. Got {given!r}."
        )
    return values.tolist()


def counts_of(name: str, given: Any) -> list[int]:
    """Return the values of a parameter that is a count or a list of them."""
    return [int(count) for count in _values(name, given, _is_count)]


def _is_count(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


def _draw(
    n_samples: int, most: int | None, random_state: np.random.RandomState
) -> NDArray[np.integer] | slice:
    """Return which rows to take: at most so many, in order."""
    if most is None or n_samples <= most:
        return slice(None)
    return np.sort(
        sample_without_replacement(n_samples, most, random_state=random_state)
    )


def _not_converged(max_iter: int) -> ConvergenceWarning:
    return ConvergenceWarning(
        f"The mixture that was chosen did not converge in max_iter={max_iter} steps. "
        "Raise max_iter, or check that X has structure to be found."
    )


def _set_fitted(fitted: GaussianMixture, mixture: Mixture) -> None:
    """Give scikit-learn's mixture what its own `fit` would leave in it."""
    factors = mixture.whitening
    fitted.weights_, fitted.means_ = mixture.weights, mixture.means
    if mixture.covariance_type in ("full", "tied"):
        roots = np.linalg.inv(factors)
        fitted.covariances_ = roots @ np.swapaxes(roots, -1, -2)
        fitted.precisions_cholesky_ = np.ascontiguousarray(np.swapaxes(factors, -1, -2))
    else:
        fitted.covariances_ = 1 / np.square(factors)
        fitted.precisions_cholesky_ = factors
    fitted.precisions_ = mixture.precisions
    fitted.lower_bound_ = mixture.log_likelihood
    fitted.lower_bounds_ = list(mixture.log_likelihoods)
    fitted.n_iter_, fitted.converged_ = len(fitted.lower_bounds_), mixture.converged
    fitted.n_features_in_ = mixture.means.shape[1]


def _truncated(pca: PCA, n_components: int) -> PCA:
    """Return the PCA that keeps fewer components: one fit serves all."""
    if n_components == pca.n_components_:
        return pca
    shorter = copy.copy(pca)
    total = pca.explained_variance_.sum() / pca.explained_variance_ratio_.sum()
    for name in ("components_", "explained_variance_", "explained_variance_ratio_"):
        setattr(shorter, name, getattr(pca, name)[:n_components])
    shorter.singular_values_ = pca.singular_values_[:n_components]
    shorter.n_components = shorter.n_components_ = n_components
    n_left = min(pca.n_features_in_, pca.n_samples_) - n_components
    shorter.noise_variance_ = (total - shorter.explained_variance_.sum()) / n_left
    return shorter
