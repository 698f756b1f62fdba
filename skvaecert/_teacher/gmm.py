"""GMMTeacher: soft clusters, found without labels, that a VAE is aligned with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

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


# Below this many nats, hardly any margin can be reached.
_LITTLE_INFORMATION = 0.01

# Maximum number of samples for PCA. More change the variances by less than 1e-4.
_PCA_SAMPLES = 10_000

# Posteriors are computed in batches of this many values, which fit into the cache.
_BATCH_VALUES = 2**18

# Precisions are inverse variances and must not overflow.
_LEAST_VARIANCE = 1e-200

# The simplest comes first: "auto" uses it where a search is not possible.
_COVARIANCE_TYPES = ("spherical", "diag", "tied", "full")

# n_components="auto": the limits, and the number of samples per component in between.
_AUTO_COMPONENTS, _AUTO_SAMPLES = (2, 10), 5


class GMMTeacher(
    HTMLMixin,
    VersionedMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Soft clusters of a Gaussian mixture, found without labels.

    This is the default teacher of :class:`CertifiedVAE` and
    :class:`CollapseCertifier`. It projects samples onto principal components, fits a
    Gaussian mixture to them, and softens the posterior of the mixture. With this
    posterior P(k|x), temperature t and floor e, the teacher's posterior is::

        T(k|x) = (1 - e) P(k|x)^(1/t) / sum_j P(j|x)^(1/t) + e / K

    Every value is above 0, and the teacher does not change after :meth:`fit`. The
    teacher information I_T is the mean divergence of T(.|x) from the mean teacher, the
    mean of T(.|x) over the samples. It is the largest margin that an encoder can reach.

    Use it if you have no better source of soft labels. Any estimator whose
    `predict_proba` or `transform` returns probabilities above 0 can take its place.

    :meth:`fit` searches over covariance types unless `covariance_type` names one. A
    list for `n_components`, `pca_components` or `covariance_type` adds its values to
    the search. The search holds out a quarter of the samples, fits each candidate to
    the others, and chooses::

        argmax I_T    subject to    (K - 1) / (2 K) E_T <= energy_budget
                      and           AMI of restarts >= min_agreement

    E_T is the log-odds energy. AMI is the adjusted mutual information between the
    clusters that restarts of the mixture find. All three are computed on the held-out
    samples. The search compares all candidates on 10,000 samples. If there are more
    samples, it refits the three best usable candidates on all training samples, and
    compares them again on all held-out samples. The chosen mixture is finally fitted
    on all samples.

    Parameters
    ----------
    n_components : int, list of int or "auto", default="auto"
        K, the number of mixture components. It must be at most the number of samples; a
        search needs more samples (see Notes). A teacher with one component has no
        information. "auto" uses a fifth of the number of samples that mixtures are
        fitted on, but at least 2 and at most 10.
    pca_components : int or list of int, default=16
        Maximum number of principal components. With fewer samples or features, fewer
        are kept.
    covariance_type : {"full", "tied", "diag", "spherical", "auto"} or list of str, \
            default="auto"
        Type of the covariances, as in :class:`sklearn.mixture.GaussianMixture`. "auto"
        searches over all four types. If there are too few samples, or too few distinct
        samples, for a search, "auto" uses "spherical".
    temperature : float or "auto", default="auto"
        t, above 0. A temperature above 1 softens the posterior. "auto" uses the
        smallest temperature of at least 1 at which the energy on the training samples
        fits `energy_budget`.
    floor : float, default=0.01
        e, at least 1e-30 and below 1. It bounds the log-odds, and therefore the energy
        of the analytic code.
    energy_budget : float or None, default=None
        Maximum energy of the analytic code at witness scale 1, in nats of KL per
        sample. None means 8 (K - 1), at which the prior-matched scale is 4. In our
        experiments sharper teachers did not gain, and lost with many components. A
        search leaves out candidates above the budget. Without a search, the budget is
        checked only if it is a number.
    min_agreement : float, default=0.5
        Minimum adjusted mutual information of two restarts, averaged over pairs, in
        [0, 1]. Clusters on which restarts disagree may be due to chance. If no
        candidate reaches the minimum, the search chooses the candidate with the largest
        agreement, and warns.
    reg_covar : float, default=1e-3
        Non-negative regularization added to the diagonal of the covariances, as a share
        of the mean variance of the principal components.
    n_init : int, default=1
        Number of initializations of each mixture. The one with the largest likelihood
        is kept. A search performs at least three, and keeps the one with the largest
        information.
    max_iter : int, default=200
        Maximum number of EM iterations of each initialization.
    subsample : int or None, default=100_000
        Maximum number of samples that mixtures are fitted on; they are drawn at random.
        None uses all samples. PCA is fitted on at most 10,000 samples.
    error_score : "raise" or float, default=nan
        Value to assign to the information of a candidate if its fit fails. If "raise",
        the error is raised. If a number, a FitFailedWarning is raised.
    n_jobs : int or None, default=None
        Number of threads of a search. None means 1 unless in a
        ``joblib.parallel_backend`` context. -1 means using all processors.
    verbose : int, default=0
        Controls the verbosity of a search: 1 shows a progress bar over the candidates,
        2 also prints a line for each candidate.
    random_state : int, RandomState instance or None, default=None
        Determines random number generation for PCA, the search and the mixture. Pass an
        int for reproducible output across multiple function calls.

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
        Teacher information on the training samples, in nats.
    energy_ : float
        Energy of the analytic code at witness scale 1, (K - 1) / (2 K) E_T, on the
        training samples, in nats. At scale s the energy is `energy_` / s^2. The
        prior-matched scale is sqrt(2 `energy_` / (K - 1)).
    mean_proba_ : ndarray of shape (n_components,)
        Mean of the teacher's posteriors over the training samples.
    n_iter_ : int
        Number of EM iterations of the initialization that was kept.
    search_results_ : dict of ndarray or None
        A table with one entry per candidate, which ``pandas.DataFrame`` takes; None
        without a search. The columns "n_components", "pca_components" and
        "covariance_type" define the candidate. "information", "energy", "temperature",
        "log_likelihood" (of the principal components, in nats per sample) and
        "agreement" are computed on the held-out samples. "n_samples" is the number of
        samples that the mixture was fitted on, "seconds" the duration of the fit, and
        "error" the message of an error, or empty. "usable" is True if the candidate is
        within the budget and has enough agreement. "rank" is 1 for the chosen
        candidate.
    n_features_in_ : int
        Number of features seen during :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only when `X` has feature
        names that are all strings.

    See Also
    --------
    CertifiedVAE : A VAE whose code is aligned with a teacher.
    skvaecert.plotting.TeacherSearchDisplay : Plot of the search.
    skvaecert.metrics.teacher_information : The score, computed from arrays.

    Notes
    -----
    NumPy arrays on disk or of integers are read in chunks and never copied as a whole.
    One pass over the data projects all samples, and keeps `pca_components` values of
    each sample in memory. The memory that a search needs grows with neither the number
    of samples nor the number of features.

    The search fits mixtures with an EM of its own. It takes the same steps as
    scikit-learn's, in float32 where that is exact enough. All covariance types start
    from the same k-means. A candidate needs at least five training samples per
    component, so "auto" searches over covariance types from 7 samples per component up.

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
        # A far smaller floor would be 0 in the float32 of `predict_proba`.
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
        n_components: int | Sequence[int] | Literal["auto"] = "auto",
        *,
        pca_components: int | Sequence[int] = 16,
        covariance_type: Literal["full", "tied", "diag", "spherical", "auto"]
        | Sequence[str] = "auto",
        temperature: float | Literal["auto"] = "auto",
        floor: float = 0.01,
        energy_budget: float | None = None,
        min_agreement: float = 0.5,
        reg_covar: float = 1e-3,
        n_init: int = 1,
        max_iter: int = 200,
        subsample: int | None = 100_000,
        error_score: float | Literal["raise"] = np.nan,
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
        """Fit PCA and the mixture, or search for the best mixture.

        There is no `sample_weight`, because scikit-learn's mixtures have none.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples, at least `n_components`.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : GMMTeacher
            The fitted teacher.

        Raises
        ------
        ValueError
            If `X` is not valid, is constant, or has fewer samples than `n_components`;
            or if all candidates of a search fail, or none fits `energy_budget`.
        KeyboardInterrupt
            On Ctrl-C. If a search has completed a candidate, the teacher is fitted
            with the best completed candidate, and the attribute `estimator` of the
            error is the teacher. Otherwise the estimator is unchanged.

        Warns
        -----
        UninformativeTeacherWarning
            If the teacher information on `X` is below 0.01 nats.
        UnstableTeacherWarning
            If no candidate of a search reaches `min_agreement`.
        FitFailedWarning
            If some candidates of a search fail.
        ConvergenceWarning
            If the mixture does not converge.
        """
        # A fit that fails leaves an earlier fit as it was.
        with restored_on_error(self), numpy_only():
            samples = open_samples(self, X, ensure_min_samples=2)
            configurations = self._configurations(*samples.shape)
            random_state = check_random_state(self.random_state)
            self._fit_pca(samples, configurations, random_state)
            projected = self._project(samples)
            drawn = projected[_draw(len(projected), self.subsample, random_state)]
            cut_short = self._fit_mixture(drawn, configurations, random_state)
            # The search may have chosen fewer principal components.
            self._measure(projected[:, : self.pca_.n_components_])
        if self.information_ < _LITTLE_INFORMATION:
            warn_user(self._little_information())
        # Outside of the block, which would undo the fit.
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
            The teacher's posteriors. All values are above 0, and those of a sample sum
            to 1. The dtype is float32 if that of `X` is float32, else float64.
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
            The teacher's posteriors.
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
            Indices of components, starting at 0.
        """
        return self.predict_proba(X).argmax(axis=1)

    def score(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the teacher information I_T = sum_i p_i KL(T_i || mean T) on X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample, normalized to p. None means that all
            samples have the same weight.

        Returns
        -------
        float
            Teacher information in nats, in [0, log K].
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        return teacher_information(self._posterior(samples), sample_weight)

    def __sklearn_tags__(self) -> Tags:
        """Declare that `transform` preserves the dtype."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def _configurations(self, n_samples: int, n_features: int) -> list[Configuration]:
        """Return the grid of the search; a single configuration needs no search."""
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
        # Without duplicates: several pca_components may be cut to the same number.
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
        """Fit one PCA, with as many components as the largest configuration needs."""
        drawn: Any = samples[_draw(len(samples), _PCA_SAMPLES, random_state)]
        drawn = np.concatenate([c.astype(float) for c in read_samples(self, drawn)])
        if (drawn == drawn[0]).all():
            raise ValueError(
                f"X must have samples that differ, got {len(drawn)} equal samples. A "
                "teacher cannot distinguish them."
            )
        n_components = max(c.pca_components for c in configurations)
        self.pca_ = PCA(n_components, random_state=random_state).fit(drawn)
        largest = self.pca_.explained_variance_[0]
        if largest < _LEAST_VARIANCE:
            raise ValueError(
                f"X must vary by more than {np.sqrt(_LEAST_VARIANCE):.0e}, because "
                f"smaller values underflow, got a variance of {largest:.3g} on the "
                "first principal component. Rescale X."
            )

    def _fit_mixture(
        self,
        samples: Floats,
        configurations: list[Configuration],
        random_state: np.random.RandomState,
    ) -> str:
        """Choose and fit the mixture; return a message if Ctrl-C interrupted it."""
        self.search_results_: dict[str, NDArray[Any]] | None = None
        best, cut_short = self._search(samples, configurations, random_state)
        configuration = configurations[0] if best is None else best.configuration
        self.n_components_, n_kept, covariance_type = configuration
        # The leading components of a larger PCA are those of a smaller one.
        self.pca_, samples = _truncated(self.pca_, n_kept), samples[:, :n_kept]
        self.mixture_ = GaussianMixture(
            self.n_components_,
            covariance_type=covariance_type,
            # Relative to the variance, so that the units of X do not matter.
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
        """Return the best candidate, or None if there is only one configuration."""
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
            # The user asked for no search: only the covariance type was searched.
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
        # A search has checked its candidates already.
        if self.energy_budget is not None and self.search_results_ is None:
            # The budget is for a witness scale of 1 (theory section 3).
            energy = analytic_energy(self._tempered(log_joint), 1.0)
            criterion.check_budget(
                Candidate(configuration, energy=energy, temperature=self.temperature_)
            )

    def _measure(self, projected: Floats) -> None:
        """Compute the attributes on the training samples, batch by batch."""
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
        # Chain rule: the information within batches plus that between their means.
        within = np.average(information, weights=sizes)
        self.information_ = float(within + teacher_information(means, sizes))
        self.energy_ = float(np.average(energy, weights=sizes))
        self.mean_proba_ = np.average(means, axis=0, weights=sizes)

    def _project(self, samples: NDArray[np.number] | DatasetSamples) -> Floats:
        # PCA returns data frames if scikit-learn is configured so.
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
        # The mixture's own predict_proba underflows before the temperature is applied.
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
        """Return the fitted state, as described in `skvaecert._state`."""
        return held(self, FITTED)

    def __set_fitted__(self, state: dict[str, Any]) -> None:
        """Check a fitted state, which may come from an untrusted file, and set it."""
        self._validate_params()
        check_gmm(state)
        put(self, state, FITTED)
        # The posterior must be valid one standard deviation off the mean.
        deviations = np.sqrt(self.pca_.explained_variance_)[np.newaxis]
        check_teacher_proba(self._posterior(self.pca_.inverse_transform(deviations)))


def _values(name: str, given: Any, is_valid: Any) -> list[Any]:
    """Return the values of a parameter, which is a value or a list of values."""
    if isinstance(given, str) or np.isscalar(given):
        return [given]
    # As objects, because NumPy would turn True into 1 among other counts.
    values = np.asarray(given, dtype=object)
    if values.ndim != 1 or not len(values) or not all(map(is_valid, values)):
        raise ValueError(
            f"{name} must be a value or a non-empty list of values: integers of at "
            f"least 1 for counts, or covariance types out of {_COVARIANCE_TYPES}. Got "
            f"{given!r}."
        )
    return values.tolist()


def counts_of(name: str, given: Any) -> list[int]:
    """Return the values of a parameter, which is a count or a list of counts."""
    return [int(count) for count in _values(name, given, _is_count)]


def _is_count(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


def _draw(
    n_samples: int, most: int | None, random_state: np.random.RandomState
) -> NDArray[np.integer] | slice:
    """Return the sorted indices of at most `most` samples, drawn at random."""
    if most is None or n_samples <= most:
        return slice(None)
    return np.sort(
        sample_without_replacement(n_samples, most, random_state=random_state)
    )


def _set_fitted(fitted: GaussianMixture, mixture: Mixture) -> None:
    """Set the attributes that scikit-learn's own `fit` sets."""
    factors = mixture.whitening
    fitted.weights_, fitted.means_ = mixture.weights, mixture.means
    if mixture.covariance_type in ("full", "tied"):
        roots = np.linalg.inv(factors)
        fitted.covariances_ = roots @ np.swapaxes(roots, -1, -2)
        # scikit-learn stores the transpose of the whitening matrix.
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
    """Return a PCA of fewer components, without another fit."""
    if n_components == pca.n_components_:
        return pca
    shorter = copy.copy(pca)
    # The total variance includes components that the PCA did not keep.
    total = pca.explained_variance_.sum() / pca.explained_variance_ratio_.sum()
    for name in ("components_", "explained_variance_", "explained_variance_ratio_"):
        setattr(shorter, name, getattr(pca, name)[:n_components])
    shorter.singular_values_ = pca.singular_values_[:n_components]
    shorter.n_components = shorter.n_components_ = n_components
    # As in scikit-learn: the mean variance of the components that are left out.
    n_left = min(pca.n_features_in_, pca.n_samples_) - n_components
    shorter.noise_variance_ = (total - shorter.explained_variance_.sum()) / n_left
    return shorter
