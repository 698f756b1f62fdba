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

from skvaecert._estimator import (
    HTMLMixin,
    VersionedMixin,
    interrupted,
    restored_on_error,
    warn_user,
)
from skvaecert._samples import DatasetSamples, numpy_only, open_samples, read_samples
from skvaecert._state import held, put
from skvaecert._teacher.candidate import Candidate, Configuration, Criterion
from skvaecert._teacher.em import Mixture
from skvaecert._teacher.search import (
    Fitter,
    NoCandidateError,
    can_search,
    refit_on_all,
    search_teacher,
)
from skvaecert._teacher.state import FITTED, check_gmm
from skvaecert.exceptions import UninformativeTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import (
    Floats,
    analytic_energy,
    check_teacher_proba,
    temper,
)

__all__ = ["GMMTeacher", "counts_of"]


# Nats below which no margin is worth a training.
_LITTLE_INFORMATION = 0.01

# PCA is fitted on so many samples; more change the variances by less than 1e-4.
_PCA_SAMPLES = 10_000

# Posteriors are computed in batches of so many values, which stay in the cache.
_BATCH_VALUES = 2**18

# Precisions, the inverse of variances, must not overflow.
_LEAST_VARIANCE = 1e-200

# The simplest first: "auto" falls back on it where a search is not possible.
_COVARIANCE_TYPES = ("spherical", "diag", "tied", "full")

# n_components="auto": its limits, and the samples that each component gets in between.
_AUTO_COMPONENTS, _AUTO_SAMPLES = (2, 10), 5


class GMMTeacher(
    HTMLMixin,
    VersionedMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Teacher posterior from a Gaussian mixture on principal components.

    With the mixture's posterior P(k|x), temperature t and floor e, the teacher is::

        T(k|x) = (1 - e) P(k|x)^(1/t) / sum_j P(j|x)^(1/t) + e / K

    Every entry is above 0. The teacher is fitted without labels and is fixed
    afterwards. Its information I_T, the mean divergence of T(.|x) from the mean
    teacher, is the largest margin that an encoder can reach.

    The covariance type is searched for unless one is given. A list for `n_components`,
    `pca_components` or `covariance_type` adds its values to the search. The search
    holds out a quarter of the samples, fits each candidate on the others, and chooses::

        argmax I_T    subject to    (K - 1) / (2 K) E_T <= energy_budget
                      and           AMI of restarts >= min_agreement

    E_T is the log-odds energy, and AMI the adjusted mutual information between the
    groups that restarts of the mixture find, both on the held-out samples. All
    candidates are compared on 10,000 samples. If there are more, the three best usable
    ones are refitted on all training samples and compared again on all held-out
    samples. The chosen mixture is finally fitted on all samples.

    Parameters
    ----------
    n_components : int, list of int or "auto", default="auto"
        K, the number of mixture components, at most the number of samples (fewer in a
        search: see Notes). With 1 the teacher has no information. "auto" is a fifth
        of the number of samples that mixtures are fitted on, but between 2 and 10.
    pca_components : int or list of int, default=16
        Largest number of principal components. With fewer samples or features, fewer
        are kept.
    covariance_type : str, list of str or "auto", default="auto"
        "full", "tied", "diag" or "spherical", as in
        :class:`sklearn.mixture.GaussianMixture`. "auto" searches all four. It is
        "spherical" if there are too few samples, or distinct samples, for a search.
    temperature : float or "auto", default="auto"
        t, above 0. Temperatures above 1 soften. "auto" is the smallest temperature
        from 1 up at which the energy of the training samples fits `energy_budget`.
    floor : float, default=0.01
        e, at least 1e-30 and below 1. It bounds the log-odds, and with them the
        energy of the codes that the teacher asks for.
    energy_budget : float or None, default=None
        Largest energy of the analytic code at witness scale 1, in nats of KL per
        sample. None is 8 (K - 1), at which the prior-matched scale is 4. In our
        experiments sharper teachers did not gain, and lost with many components. A
        search leaves out candidates above the budget. A single mixture is only
        checked against a budget that is given.
    min_agreement : float, default=0.5
        Smallest adjusted mutual information of two restarts, averaged over pairs, in
        [0, 1]. Groups that restarts do not agree on may be due to chance. If no
        candidate reaches it, the one with the largest agreement is chosen, with a
        warning.
    reg_covar : float, default=1e-3
        Added to the variances of the mixture, as a share of the mean variance of the
        principal components. At least 0.
    n_init : int, default=1
        Restarts of each mixture. The one with the largest likelihood is kept. A search
        makes at least three, and keeps the one with the largest information.
    max_iter : int, default=200
        Largest number of EM iterations of each restart.
    subsample : int or None, default=100_000
        Largest number of samples, drawn at random, that mixtures are fitted on. None
        for all. PCA is fitted on at most 10,000 samples.
    error_score : "raise" or float, default=nan
        Information recorded for candidates that fail, with a warning. "raise" raises
        their error.
    n_jobs : int or None, default=None
        Number of threads of a search. -1 for all processors.
    verbose : int, default=0
        1 shows a progress bar over the candidates of a search. 2 also prints a line on
        each candidate.
    random_state : int, RandomState instance or None, default=None
        Seeds PCA, search and mixture. An int gives the same teacher at every fit.

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
        Teacher information on the training samples, nats.
    energy_ : float
        Energy of the analytic code at witness scale 1, (K - 1) / (2 K) E_T, on the
        training samples, nats. At scale s it is `energy_` / s^2. The prior-matched
        scale is sqrt(2 `energy_` / (K - 1)).
    mean_proba_ : ndarray of shape (n_components,)
        Mean posterior of the training samples.
    n_iter_ : int
        EM iterations of the best restart.
    search_results_ : dict of ndarray or None
        None without a search, else a table that ``pandas.DataFrame`` takes, with one
        entry per candidate. Its columns are "n_components", "pca_components",
        "covariance_type"; on the held-out samples "information", "energy",
        "temperature", "log_likelihood" (of the principal components, nats per sample)
        and "agreement"; "n_samples" that the mixture was fitted on; "seconds";
        "error", empty if there was none; "usable", True within budget and with enough
        agreement; and "rank", 1 for the chosen candidate.
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
    NumPy arrays on disk or of integers are read in chunks and never copied as a whole.
    One pass over the data projects all samples, and keeps `pca_components` values of
    each in memory. The memory of a search grows with neither samples nor features.

    The mixtures of a search are fitted by our own EM. It takes the same steps as
    scikit-learn's, in float32 where that is exact enough, and starts from the same
    k-means for all covariance types. Candidates need at least five training samples
    per component, so "auto" searches from 7 samples per component up.

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
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit PCA and mixture, or search for the best ones.

        There are no weighted mixtures, so there is no `sample_weight`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, at least `n_components`.
        y : Ignored
            Present by convention: a teacher knows no labels.

        Returns
        -------
        self : GMMTeacher
            The fitted teacher.

        Raises
        ------
        ValueError
            If `X` is not valid, is constant, or has fewer samples than `n_components`;
            if all candidates of a search fail or none fits `energy_budget`.
        KeyboardInterrupt
            On Ctrl-C. After at least one candidate of a search the teacher is fitted,
            as the best of those that were done, and is the attribute `estimator` of the
            error. Otherwise nothing has changed.

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
        """
        with restored_on_error(self), numpy_only():
            samples = open_samples(self, X, ensure_min_samples=2)
            configurations = self._configurations(*samples.shape)
            random_state = check_random_state(self.random_state)
            self._fit_pca(samples, configurations, random_state)
            projected = self._project(samples)
            drawn = projected[_draw(len(projected), self.subsample, random_state)]
            cut_short = self._fit_mixture(drawn, configurations, random_state)
            self._measure(projected[:, : self.pca_.n_components_])
        if self.information_ < _LITTLE_INFORMATION:
            warn_user(self._little_information())
        if cut_short:
            raise interrupted(self, cut_short)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the teacher posterior T(k|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Posteriors: every entry is above 0, and each row sums to 1. float32 for
            float32 `X`, float64 otherwise.
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        dtype = np.float32 if samples.dtype == np.float32 else np.float64
        return self._posterior(samples).astype(dtype, copy=False)

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the teacher posterior T(k|x), as :meth:`predict_proba` does.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Posteriors.
        """
        return self.predict_proba(X)

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return the most probable component of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Indices of components, from 0.
        """
        return self.predict_proba(X).argmax(axis=1)

    def score(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the teacher information I_T = sum_i p_i KL(T_i || mean T) on `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : Ignored
            Present by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, normalised to p; uniform when None.

        Returns
        -------
        float
            Nats, in [0, log K].
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        return teacher_information(self._posterior(samples), sample_weight)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that the dtype is kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _configurations(self, n_samples: int, n_features: int) -> list[Configuration]:
        """Return the grid of the search, or one configuration for no search."""
        n_fitted = min(n_samples, self.subsample or n_samples)
        n_components = self._n_components(n_fitted)
        if min(n_components) > n_fitted:
            raise ValueError(
                "n_components must be at most the number of samples that mixtures are "
                f"fitted on (n_samples={n_samples}, subsample={self.subsample}), got "
                f"{self.n_components}. Use fewer components or more samples."
            )
        pca_components = counts_of("pca_components", self.pca_components)
        kept = [min(count, n_samples, n_features) for count in pca_components]
        covariance_types = self._covariance_types(n_components, n_fitted)
        grid = dict.fromkeys(product(n_components, kept, covariance_types))
        return [Configuration(*point) for point in grid]

    def _n_components(self, n_samples: int) -> list[int]:
        if isinstance(self.n_components, str):
            fewest, most = _AUTO_COMPONENTS
            return [min(most, max(fewest, n_samples // _AUTO_SAMPLES))]
        return counts_of("n_components", self.n_components)

    def _covariance_types(self, n_components: list[int], n_samples: int) -> list[str]:
        if not self._has_auto_covariance():
            given = self.covariance_type
            return _values("covariance_type", given, _COVARIANCE_TYPES.__contains__)
        if can_search(min(n_components), n_samples):
            return list(_COVARIANCE_TYPES)
        return list(_COVARIANCE_TYPES[:1])

    def _has_auto_covariance(self) -> bool:
        given = self.covariance_type
        return isinstance(given, str) and given == "auto"

    def _fit_pca(
        self,
        samples: NDArray[np.number] | DatasetSamples,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> None:
        """Fit the PCA of the largest configuration, on some samples."""
        drawn: Any = samples[_draw(len(samples), _PCA_SAMPLES, random_state)]
        drawn = np.concatenate([c.astype(float) for c in read_samples(self, drawn)])
        if (drawn == drawn[0]).all():
            raise ValueError(
                f"X must have samples that differ, got {len(drawn)} equal ones. A "
                "teacher cannot tell them apart."
            )
        n_components = max(c.pca_components for c in configurations)
        self.pca_ = PCA(n_components, random_state=random_state).fit(drawn)
        largest = self.pca_.explained_variance_[0]
        if largest < _LEAST_VARIANCE:
            raise ValueError(
                f"X must vary by more than {np.sqrt(_LEAST_VARIANCE):.0e}, or its "
                f"squares are lost, got a variance of {largest:.3g} on the first "
                "principal component. Rescale X."
            )

    def _fit_mixture(
        self,
        samples: Floats,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> str:
        """Choose and fit the mixture; return what Ctrl-C cut short."""
        self.search_results_: dict[str, NDArray[Any]] | None = None
        best, cut_short = self._search(samples, configurations, random_state)
        configuration = configurations[0] if best is None else best.configuration
        self.n_components_, n_kept, covariance_type = configuration
        self.pca_, samples = _truncated(self.pca_, n_kept), samples[:, :n_kept]
        self.mixture_ = GaussianMixture(
            self.n_components_,
            covariance_type=covariance_type,
            reg_covar=self.reg_covar * samples.var(axis=0).mean(),
            n_init=self.n_init,
            max_iter=self.max_iter,
            random_state=random_state,
        )
        if best is None:
            self.mixture_.fit(samples)
        else:
            cut_short = self._refit(samples, best) or cut_short
        self.n_iter_ = self.mixture_.n_iter_
        self._set_temperature(samples, configuration)
        return cut_short

    def _search(
        self,
        samples: Floats,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> tuple[Candidate | None, str]:
        """Return the best candidate, None if there is nothing to choose from."""
        if len(configurations) == 1:
            return None, ""
        try:
            best, self.search_results_, cut_short = search_teacher(
                samples,
                configurations,
                self._criterion(),
                self._fitter(),
                n_init=self.n_init,
                error_score=self.error_score,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
                random_state=random_state,
            )
        except NoCandidateError:
            # Nothing but the covariance type was searched, and that by default.
            is_default = len(configurations) == len(_COVARIANCE_TYPES)
            if self._has_auto_covariance() and is_default:
                return None, ""
            raise
        return best, cut_short

    def _criterion(self) -> Criterion:
        return Criterion(
            self.temperature, self.floor, self.energy_budget, self.min_agreement
        )

    def _fitter(self) -> Fitter:
        return Fitter(self.reg_covar, self.max_iter)

    def _refit(self, samples: Floats, best: Candidate) -> str:
        mixture, cut_short = refit_on_all(samples, best, self._fitter())
        _set_fitted(self.mixture_, mixture)
        if not mixture.converged:
            message = (
                f"The chosen mixture did not converge in max_iter={self.max_iter} "
                "iterations. Raise max_iter, or check that X has structure."
            )
            warn_user(ConvergenceWarning(message))
        return cut_short

    def _set_temperature(self, samples: Floats, configuration: Configuration) -> None:
        criterion = self._criterion()
        log_joint = self.mixture_._estimate_weighted_log_prob(samples)
        self.temperature_ = criterion.choose_temperature(log_joint)
        if self.energy_budget is not None and self.search_results_ is None:
            energy = analytic_energy(self._tempered(log_joint), 1.0)
            criterion.check_budget(
                Candidate(configuration, energy=energy, temperature=self.temperature_)
            )

    def _measure(self, projected: Floats) -> None:
        """Set the values on the training samples, from those of batches."""
        sizes: list[int] = []
        information: list[float] = []
        energy: list[float] = []
        means: list[Floats] = []
        for batch in self._batches(len(projected)):
            proba = self._projected_posterior(projected[batch])
            sizes.append(len(proba))
            information.append(teacher_information(proba))
            energy.append(analytic_energy(proba, 1.0))
            means.append(proba.mean(axis=0))
        # The chain rule: information within batches, and between their means.
        within = np.average(information, weights=sizes)
        self.information_ = float(within + teacher_information(means, sizes))
        self.energy_ = float(np.average(energy, weights=sizes))
        self.mean_proba_ = np.average(means, axis=0, weights=sizes)

    def _project(self, samples: NDArray[np.number] | DatasetSamples) -> Floats:
        # scikit-learn may be configured to return data frames.
        return np.concatenate(
            [
                np.asarray(self.pca_.transform(chunk.astype(float, copy=False)))
                for chunk in read_samples(self, samples)
            ]
        )

    def _posterior(self, samples: NDArray[np.number] | DatasetSamples) -> Floats:
        projected = self._project(samples)
        batches = self._batches(len(projected))
        return np.concatenate(
            [self._projected_posterior(projected[batch]) for batch in batches]
        )

    def _projected_posterior(self, projected: Floats) -> Floats:
        # The mixture's predict_proba would underflow where a high temperature does not.
        return self._tempered(self.mixture_._estimate_weighted_log_prob(projected))

    def _tempered(self, log_joint: Floats) -> Floats:
        return temper(log_joint, self.temperature_, self.floor)

    def _batches(self, n_samples: int) -> Iterator[slice]:
        return gen_batches(n_samples, max(1, _BATCH_VALUES // self.n_components_))

    def _little_information(self) -> UninformativeTeacherWarning:
        return UninformativeTeacherWarning(
            f"The teacher information is only {self.information_:.2g} nats, and no "
            "encoder can reach a larger margin. Lower temperature "
            f"({self.temperature_:g}) or floor ({self.floor:g}), change n_components "
            f"({self.n_components_}), or check that X has structure."
        )

    def __get_fitted__(self) -> dict[str, Any]:
        """Return the fitted state: the contract in `skvaecert._state`."""
        return held(self, FITTED)

    def __set_fitted__(self, state: dict[str, Any]) -> None:
        """Take a fitted state, which may be a stranger's, and check it."""
        self._validate_params()
        check_gmm(state)
        put(self, state, FITTED)
        # A sample one standard deviation off the mean must have a posterior.
        deviations = np.sqrt(self.pca_.explained_variance_)[np.newaxis]
        check_teacher_proba(self._posterior(self.pca_.inverse_transform(deviations)))


def _values(name: str, given: Any, is_valid: Any) -> list[Any]:
    """Return the values of a parameter that may be a list."""
    if isinstance(given, str) or np.isscalar(given):
        return [given]
    values = np.asarray(given, dtype=object)
    if values.ndim != 1 or not len(values) or not all(map(is_valid, values)):
        raise ValueError(
            f"{name} must be a value or a list of at least one: counts are ints from 1 "
            f"up, covariance types are among {_COVARIANCE_TYPES}. Got {given!r}."
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
    """Return the indices of at most so many samples, drawn at random, in order."""
    if most is None or n_samples <= most:
        return slice(None)
    return np.sort(
        sample_without_replacement(n_samples, most, random_state=random_state)
    )


def _set_fitted(fitted: GaussianMixture, mixture: Mixture) -> None:
    """Set the attributes that scikit-learn's own `fit` would set."""
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
    """Return the PCA of fewer components, without another fit."""
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
