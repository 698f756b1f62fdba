"""Searches that train small networks together."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from joblib import parallel_config
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, check_cv
from sklearn.utils import check_random_state, indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._training.joint import JointTraining, sharing_results
from skvaecert._vae.vae import CertifiedVAE

__all__ = ["BatchedGridSearchCV", "fit_together"]


def fit_together(
    estimators: Iterable[Any], X: ArrayLike, y: Any = None, **fit_params: Any
) -> None:
    """Fit several estimators on the same rows, their nets as one where that pays.

    Each is then as after its own ``fit(X, y, **fit_params)``, to rounding: the way to
    try several seeds or weights. Which fits are joined is told in
    :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimators : iterable of estimators
        :class:`CertifiedVAE` or what holds one: :class:`CollapseCertifier`, Pipeline.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,), default=None
        Handed on.
    **fit_params : dict
        Handed on to every `fit`.

    Raises
    ------
    Exception
        The first error of a fit, when the other estimators are fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.model_selection import fit_together
    >>> X = load_iris().data
    >>> vaes = [
    ...     CertifiedVAE(
    ...         GMMTeacher(n_components=3, random_state=0), latent_dim=2, max_epochs=50,
    ...         device="cpu", random_state=seed)
    ...     for seed in range(5)]
    >>> fit_together(vaes, X)
    >>> all(vae.history_[-1]["margin"] > 0.5 for vae in vaes)
    True
    """
    estimators = list(estimators)
    if len({id(estimator) for estimator in estimators}) < len(estimators):
        raise ValueError(
            "estimators must be different objects, got one of them more than once. "
            "Use sklearn.base.clone."
        )
    joint = JointTraining()
    errors = []
    with sharing_results():
        # A callback that holds a lock or a file cannot be copied.
        with _same_draws_after(), suppress(TypeError):
            for trial in filter(_holds_vae, copy.deepcopy(estimators)):
                joint.prepare(_fitting(trial, X, y, fit_params))
        joint.train()
        with joint.handing_out():
            for estimator in estimators:
                try:
                    estimator.fit(X, y, **fit_params)
                except Exception as error:
                    errors.append(error)
    if errors:
        raise errors[0]


class BatchedGridSearchCV(GridSearchCV):
    """Grid search that trains small nets together.

    A :class:`sklearn.model_selection.GridSearchCV` with the same results to rounding,
    `mean_fit_time` and its like aside. Candidates and folds are joined that have

    - networks of fully connected layers, of the same widths,
    - the same likelihood, `learning_rate`, `batch_size`, `max_epochs`, and the same
      number of rows and teacher components,

    and that differ in the seed, `alignment_weight`, `kl_weight`, `witness_scale`, the
    teacher's other parameters or the rows. What needs more is fitted one after
    another, as in a GridSearchCV: networks or an objective of one's own, callbacks of
    skorch or scikit-learn, ``verbose=1``, warm starts, other devices than the CPU, and
    networks so large that joining them would gain nothing. Fits with the same teacher
    on the same rows share it, if it has a seed.

    All that happens in a fit before its training is done twice; a Pipeline's earlier
    steps, for example. Rows of all folds are in memory at once, in float32. The search
    runs in one process, and Ctrl-C ends it.

    Parameters
    ----------
    estimator : estimator
        :class:`CertifiedVAE` or what holds one: :class:`CollapseCertifier`, Pipeline.
    param_grid : dict or list of dict
        Names of parameters and the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        As in :class:`sklearn.model_selection.GridSearchCV`, as are all that follow;
        None for the estimator's `score`.
    cv : int, splitter or iterable, default=None
        Folds; None for five.
    refit : bool, str or callable, default=True
        Whether, and by which score, to fit the best candidate on all rows.
    verbose : int, default=0
        Above 0 for messages.
    error_score : "raise" or float, default=nan
        The score of a fit that fails.
    return_train_score : bool, default=False
        Whether to score training rows too.

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As in GridSearchCV. `mean_fit_time` counts for every fit its share of the
        joint training.
    best_estimator_ : estimator
        Fitted on all rows, if `refit`.
    best_score_, best_params_, best_index_ : float, dict, int
        Of the best candidate.
    scorer_ : callable or dict
        What scored.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds.
    multimetric_ : bool
        Whether there are several scores.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    fit_together : The same for a list of estimators, without a search.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import BatchedGridSearchCV
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> grid = {"estimator__alignment_weight": [0.0, 10.0]}
    >>> folds = KFold(3, shuffle=True, random_state=0)
    >>> search = BatchedGridSearchCV(CollapseCertifier(vae), grid, cv=folds).fit(X)
    >>> search.best_params_
    {'estimator__alignment_weight': 10.0}
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        param_grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
        *,
        scoring: Any = None,
        cv: Any = None,
        refit: bool | str | Callable[..., int] = True,
        verbose: int = 0,
        error_score: str | float = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            cv=cv,
            refit=refit,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def fit(self, X: ArrayLike, y: Any = None, **params: Any) -> Self:
        """Fit and score every candidate on every fold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Handed on.
        **params : dict
            For the estimator's `fit`, the scorer and the splitter.

        Returns
        -------
        self : BatchedGridSearchCV
            The fitted search.
        """
        self._given = X, y, params
        given_cv = self.get_params(deep=False)["cv"]
        if isinstance(given_cv, Iterator):
            self.set_params(cv=list(given_cv))  # it is gone through twice
        try:
            # In one process: another would not know of what was trained here. Some
            # backends, dask's for one, take all workers whatever n_jobs is.
            with parallel_config("threading", n_jobs=1):
                return super().fit(X, y, **params)
        finally:
            self.set_params(cv=given_cv)
            del self._given

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], callback_ctx: Any = None
    ) -> None:
        def evaluate(candidates: Iterable[Any], **options: Any) -> Any:
            candidates = list(candidates)
            if hasattr(self, "_skl_callbacks"):
                # They are told of every epoch, and may stop a fit.
                return evaluate_candidates(candidates, **options)
            data = self._checked_data()
            splits = list(self._splits(*data))
            joint = JointTraining()
            with sharing_results():
                with _same_draws_after():
                    shares = [
                        joint.prepare(self._trial(values, train, *data))
                        for values, (train, _) in product(candidates, splits)
                    ]
                joint.train()
                with joint.handing_out():
                    folds = check_cv(splits)
                    results = evaluate_candidates(candidates, cv=folds, **options)
            seconds = np.reshape([share() for share in shares], (-1, len(splits)))
            results["mean_fit_time"] += seconds.mean(axis=1)
            return results

        # scikit-learn has callbacks since 1.9.
        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        super()._run_search(evaluate, **context)

    def _checked_data(self) -> tuple[Any, Any, dict[str, Any]]:
        X, y, params = self._given
        X, y = indexable(X, y)
        return X, y, _check_method_params(X, params=params)

    def _splits(self, X: Any, y: Any, params: dict[str, Any]) -> Any:
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        routed = self._get_routed_params_for_fit(params)
        return cv.split(X, y, **routed.splitter.split)

    def _trial(
        self,
        values: dict[str, Any],
        train: NDArray[np.intp],
        X: Any,
        y: Any,
        params: dict[str, Any],
    ) -> Callable[[], Any]:
        """Return the fit that the search will do, on an estimator of its own."""

        def fit() -> None:
            estimator = clone(self.estimator).set_params(**clone(values, safe=False))
            if _holds_vae(estimator):
                routed = self._get_routed_params_for_fit(params).estimator.fit
                own = _check_method_params(X, params=routed, indices=train)
                rows, labels = _safe_split(estimator, X, y, train)
                estimator.fit(rows, labels, **own)

        return fit


def _fitting(
    estimator: Any, X: ArrayLike, y: Any, params: dict[str, Any]
) -> Callable[[], Any]:
    return lambda: estimator.fit(X, y, **params)


def _holds_vae(estimator: Any) -> bool:
    """Tell whether fitting trains a net, and no callback of scikit-learn watches it.

    What does not need not be tried out.
    """
    inner = estimator.get_params().values() if hasattr(estimator, "get_params") else []
    parts = [estimator, *inner]
    if any(hasattr(part, "_skl_callbacks") for part in parts):
        return False
    return any(
        isinstance(part, CertifiedVAE)
        or (isinstance(part, CollapseCertifier) and part.estimator is None)
        for part in parts
    )


@contextmanager
def _same_draws_after() -> Iterator[None]:
    """Let what is drawn from generators in the block be drawn again after it."""
    generator = check_random_state(None)
    state, python_state = generator.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        generator.set_state(state)
        random.setstate(python_state)
