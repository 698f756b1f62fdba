"""Rules that choose a candidate of a search."""

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvaecert._estimator import warn_user
from skvaecert.exceptions import NotCertifiedError, NotCertifiedWarning
from skvaecert.simplex import Floats

__all__ = ["best_certified", "smallest_certifying_weight"]


def best_certified(
    cv_results: Mapping[str, Any],
    *,
    by: str = "elbo",
    min_margin: float = 0.0,
    if_none: str = "warn",
) -> int:
    """Choose the best candidate among those that are certified in every fold.

    Use as ``GridSearchCV(..., scoring=certificate_scorers, refit=best_certified)``, and
    set options with ``functools.partial(best_certified, min_margin=0.5)``.

    Parameters
    ----------
    cv_results : dict of ndarray
        With the scores "certified" and "margin", and that named by `by`.
    by : str, default="elbo"
        The score whose mean over folds decides.
    min_margin : float, default=0.0
        Nats that the margin must reach in every fold, in addition to being certified.
    if_none : {"warn", "raise"}, default="warn"
        If no candidate is certified, "warn" takes the one whose lowest margin is
        highest, with a warning. An error loses all results of the search, because
        scikit-learn keeps them only after the choice.

    Returns
    -------
    int
        Index of the candidate.

    Raises
    ------
    ValueError
        If a score is missing or an option is not valid.
    NotCertifiedError
        If no candidate is certified and `if_none` is "raise".

    Warns
    -----
    NotCertifiedWarning
        If no candidate is certified.

    See Also
    --------
    smallest_certifying_weight : The same without an ELBO.

    Examples
    --------
    >>> from skvaecert.model_selection import best_certified
    >>> results = {
    ...     "mean_test_elbo": [3.0, 2.0, 1.0],
    ...     "split0_test_certified": [1, 1, 1], "split1_test_certified": [0, 1, 1],
    ...     "split0_test_margin": [0.1, 0.7, 0.9], "split1_test_margin": [0, 0.7, 0.9]}
    >>> best_certified(results)
    1
    """
    scores = _means_of(cv_results, by)
    certified = _are_certified(cv_results, min_margin)
    if not certified.any():
        return _nearest(cv_results, min_margin, if_none)
    return int(np.where(certified, scores, -np.inf).argmax())


def smallest_certifying_weight(
    cv_results: Mapping[str, Any],
    *,
    parameter: str | None = None,
    min_margin: float = 0.0,
    if_none: str = "warn",
) -> int:
    """Choose the smallest alignment weight that is certified in every fold.

    Among candidates with the same weight, the highest mean ELBO decides, or the highest
    margin if there is no ELBO. Weights are compared as given, also where `kl_weight`
    varies: they compete with the reconstruction, whose weight is 1. Candidates whose
    weight is not a number, such as "auto", are left out.

    Parameters
    ----------
    cv_results : dict of ndarray
        With the scores "certified" and "margin".
    parameter : str, default=None
        Name of the weight; None for the only one that ends in "alignment_weight".
    min_margin : float, default=0.0
        As in :func:`best_certified`.
    if_none : {"warn", "raise"}, default="warn"
        As in :func:`best_certified`.

    Returns
    -------
    int
        Index of the candidate.

    Raises
    ------
    ValueError
        If scores or the parameter are missing, or an option is not valid.
    NotCertifiedError
        If no candidate is certified and `if_none` is "raise".

    Warns
    -----
    NotCertifiedWarning
        If no candidate is certified.

    Examples
    --------
    >>> from skvaecert.model_selection import smallest_certifying_weight
    >>> results = {
    ...     "param_estimator__alignment_weight": [10.0, 1.0, 0.1],
    ...     "mean_test_margin": [0.9, 0.7, -0.2],
    ...     "split0_test_certified": [1, 1, 0], "split0_test_margin": [0.9, 0.7, -0.2]}
    >>> smallest_certifying_weight(results)
    1
    """
    weights = _weights(cv_results, parameter)
    tie = "elbo" if "mean_test_elbo" in cv_results else "margin"
    scores = _means_of(cv_results, tie)
    certified = _are_certified(cv_results, min_margin) & np.isfinite(weights)
    if not certified.any():
        return _nearest(cv_results, min_margin, if_none)
    return int(np.lexsort((-scores, np.where(certified, weights, np.inf)))[0])


def _means_of(cv_results: Mapping[str, Any], name: str) -> Floats:
    return _lowest_if_nan(_column(cv_results, f"mean_test_{name}"))


def _column(cv_results: Mapping[str, Any], key: str) -> Any:
    if key not in cv_results:
        raise ValueError(
            f"cv_results must have a column {key!r}, got {_names(cv_results)}. Search "
            "with scoring=certificate_scorers, or a dict with such a scorer."
        )
    return cv_results[key]


def _names(cv_results: Mapping[str, Any]) -> str:
    return ", ".join(k for k in cv_results if k.startswith(("mean_test", "param_")))


def _lowest_if_nan(values: Any) -> Floats:
    """Rank candidates whose fit failed last."""
    scores = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def _fold_scores(cv_results: Mapping[str, Any], name: str) -> Floats:
    """Return scores of shape (n_splits, n_candidates)."""
    pattern = re.compile(rf"split\d+_test_{name}")
    folds = [v for k, v in cv_results.items() if pattern.fullmatch(k)]
    return _lowest_if_nan(folds or [_column(cv_results, f"split0_test_{name}")])


def _are_certified(
    cv_results: Mapping[str, Any], min_margin: float
) -> NDArray[np.bool_]:
    in_fold = _fold_scores(cv_results, "certified") == 1
    enough = _fold_scores(cv_results, "margin") >= min_margin
    return np.asarray((in_fold & enough).all(axis=0))


def _weights(cv_results: Mapping[str, Any], parameter: str | None) -> Floats:
    """Return the alignment weight of each candidate, NaN where it is not a number."""
    key = f"param_{parameter}"
    if parameter is None:
        keys = [k for k in cv_results if re.search("(^param_|__)alignment_weight$", k)]
        if len(keys) != 1:
            raise ValueError(
                "cv_results must have one parameter whose name ends in "
                f"'alignment_weight', got {keys or _names(cv_results)}. Give its name "
                "as parameter."
            )
        (key,) = keys
    values = np.ma.asarray(_column(cv_results, key)).tolist()
    return np.array([v if isinstance(v, Real) else math.nan for v in values])


def _nearest(cv_results: Mapping[str, Any], min_margin: float, if_none: str) -> int:
    """Warn, or raise, and return the candidate that is nearest to being certified."""
    if if_none not in ("warn", "raise"):
        raise ValueError(f"if_none must be 'warn' or 'raise', got {if_none!r}.")
    lowest = _fold_scores(cv_results, "margin").min(axis=0)
    index = int(lowest.argmax())
    message = (
        f"No candidate is certified in every fold with a margin of {min_margin} nats "
        f"or more. The highest margin that one reaches in all folds is "
        f"{lowest[index]:.3g}, at index {index}. Try larger alignment weights or more "
        "epochs. The teacher's information_ is the largest possible margin."
    )
    if if_none == "raise":
        raise NotCertifiedError(message)
    warn_user(NotCertifiedWarning(message))
    return index
