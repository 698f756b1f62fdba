"""Rules that choose a candidate of a search."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skvaecert._estimator import warn_user
from skvaecert.exceptions import NotCertifiedWarning
from skvaecert.model_selection._scorers import (
    SCORES,
    CertificateScorer,
    certificate_scorers,
)
from skvaecert.simplex import Floats

__all__ = ["BestCertified", "SmallestCertifyingWeight"]

Indices = NDArray[np.intp]

# All candidates that are compared have the same "certified" score.
_DECIDING_SCORES = [name for name in SCORES if name not in ("all", "certified")]


@dataclass(frozen=True)
class _Rule:
    """Base class of the rules.

    It is not callable, so that it cannot be passed as `refit` without `scoring`.
    """

    _: KW_ONLY
    min_margin: float = 0.0
    scoring: CertificateScorer = certificate_scorers

    def __post_init__(self) -> None:
        if not isinstance(self.min_margin, Real) or not math.isfinite(self.min_margin):
            raise ValueError(
                f"min_margin must be a finite number of nats, got {self.min_margin!r}."
            )
        # A rule needs several scores of each fold, and scorers of one score lack them.
        if getattr(self.scoring, "score", None) != "all":
            raise ValueError(
                "scoring must be certificate_scorers, or the result of its "
                f"set_score_request, got {self.scoring!r}."
            )

    @property
    def search_params(self) -> dict[str, Any]:
        """Parameters `scoring` and `refit` for a search, which belong together."""
        return {"scoring": self.scoring, "refit": self.choose}

    def choose(self, cv_results: Mapping[str, Any]) -> int:
        """Return the index of the chosen candidate.

        Parameters
        ----------
        cv_results : dict of ndarray
            `cv_results_` of a search with ``scoring=certificate_scorers``, or with a
            dict that contains the scores "certified" and "margin".

        Returns
        -------
        int
            Index of the candidate.

        Raises
        ------
        ValueError
            If `cv_results` has no scores "certified" and "margin".

        Warns
        -----
        NotCertifiedWarning
            If no candidate is certified.
        UserWarning
            If `cv_results` lacks the score or parameter that decides.
        """
        lowest = _fold_scores(cv_results, "margin").min(axis=0)
        # A mean over folds would hide a fold that is not certified.
        in_folds = (_fold_scores(cv_results, "certified") == 1).all(axis=0)
        certified = in_folds & (lowest >= self.min_margin)
        if not certified.any():
            return self._choose_nearest(lowest)
        return self._choose_among(cv_results, np.flatnonzero(certified))

    def _choose_among(self, cv_results: Mapping[str, Any], certified: Indices) -> int:
        raise NotImplementedError

    def _choose_nearest(self, lowest: Floats) -> int:
        """Warn, and return the candidate with the highest of its lowest margins."""
        index = int(lowest.argmax())
        warn_user(
            NotCertifiedWarning(
                f"No candidate is certified in every fold with a margin of "
                f"{self.min_margin} nats or more. The highest margin that a candidate "
                f"reaches in all folds is {lowest[index]:.3g}, at index {index}. If "
                "margins on training samples are much greater, use more samples or a "
                "teacher with fewer components. Otherwise try larger alignment weights "
                "or more epochs. The teacher's information_ is the largest possible "
                "margin."
            )
        )
        return index


@dataclass(frozen=True)
class BestCertified(_Rule):
    """Choose the best candidate among those that are certified in every fold.

    Use it as ``GridSearchCV(estimator, grid, **BestCertified().search_params)``. This
    sets `scoring` and `refit` together, because scikit-learn calls a function passed as
    `refit` only after all fits, and keeps no results if it fails. For the same reason,
    the constructor checks its parameters, and a rule only warns if the deciding score
    is missing after the search. Searches by successive halving accept a single score
    and no rule. The method `score` of a search with a rule fails, since scikit-learn
    does not know which score to use. Call a scorer instead, such as
    ``margin_scorer(search, X)``.

    Parameters
    ----------
    by : {"elbo", "lower_bound", "margin", "reconstruction", "relative_margin", \
            "sampled_information"} or None, default=None
        Score whose mean over folds decides. If None, "elbo" decides, or
        "reconstruction" if there is no ELBO, or else "margin".
    min_margin : float, default=0.0
        Margin in nats that must be reached in every fold, in addition to being
        certified.
    scoring : CertificateScorer, default=certificate_scorers
        The scorer. For metadata routing, pass the result of
        ``certificate_scorers.set_score_request``.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    See Also
    --------
    SmallestCertifyingWeight : Chooses by the alignment weight.

    Examples
    --------
    >>> from skvaecert.model_selection import BestCertified
    >>> results = {
    ...     "mean_test_elbo": [3.0, 2.0, 1.0],
    ...     "split0_test_certified": [1, 1, 1], "split1_test_certified": [0, 1, 1],
    ...     "split0_test_margin": [0.1, 0.7, 0.9], "split1_test_margin": [0, 0.7, 0.9]}
    >>> BestCertified().choose(results)
    1
    >>> BestCertified(min_margin=0.8).choose(results)
    2
    """

    by: (
        Literal[
            "elbo",
            "lower_bound",
            "margin",
            "reconstruction",
            "relative_margin",
            "sampled_information",
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in (None, *_DECIDING_SCORES):
            raise ValueError(
                f"by must be None or one of {_DECIDING_SCORES}, got {self.by!r}."
            )

    def _choose_among(self, cv_results: Mapping[str, Any], certified: Indices) -> int:
        return int(certified[_deciding_scores(cv_results, self.by)[certified].argmax()])


@dataclass(frozen=True)
class SmallestCertifyingWeight(_Rule):
    """Choose the smallest alignment weight that is certified in every fold.

    Use it like :class:`BestCertified`. Among candidates with the same weight, the
    highest mean ELBO decides, or the reconstruction if there is no ELBO, or else the
    margin. Weights are compared as they are, also if `kl_weight` varies: they compete
    with the reconstruction, whose weight is 1. A weight that is not a number, such as
    "auto", ranks after all others.

    Parameters
    ----------
    parameter : str or None, default=None
        Name of the weight in the grid. If None, the only parameter whose name ends in
        "alignment_weight" is used.
    min_margin : float, default=0.0
        As in :class:`BestCertified`.
    scoring : CertificateScorer, default=certificate_scorers
        As in :class:`BestCertified`.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    See Also
    --------
    BestCertified : Chooses by another score.

    Examples
    --------
    >>> from skvaecert.model_selection import SmallestCertifyingWeight
    >>> results = {
    ...     "param_estimator__alignment_weight": [10.0, 1.0, 0.1],
    ...     "mean_test_margin": [0.9, 0.7, -0.2],
    ...     "split0_test_certified": [1, 1, 0], "split0_test_margin": [0.9, 0.7, -0.2]}
    >>> SmallestCertifyingWeight().choose(results)
    1
    """

    parameter: str | None = None

    def _choose_among(self, cv_results: Mapping[str, Any], certified: Indices) -> int:
        weights = _weights(cv_results, self.parameter)[certified]
        scores = _deciding_scores(cv_results)[certified]
        # lexsort takes the main key last: weights ascending, then scores descending.
        return int(certified[np.lexsort((-scores, weights))[0]])


def _deciding_scores(cv_results: Mapping[str, Any], by: str | None = None) -> Floats:
    """Return the mean scores that decide among certified candidates."""
    # Not empty: a candidate without a margin is not certified.
    present = [
        name
        for name in (by, "elbo", "reconstruction", "margin")
        if not np.isnan(_floats(cv_results.get(f"mean_test_{name}", math.nan))).all()
    ]
    if by not in (None, present[0]):
        _warn_missing(cv_results, f"score {by!r}", f"{present[0]!r}")
    return _lowest_if_nan(cv_results[f"mean_test_{present[0]}"])


def _weights(cv_results: Mapping[str, Any], parameter: str | None) -> Floats:
    """Return the weights: infinity if not a number, and 0 if there is no parameter."""
    pattern = r"(.*__)?alignment_weight" if parameter is None else re.escape(parameter)
    keys = [key for key in cv_results if re.fullmatch(f"param_{pattern}", key)]
    if len(keys) != 1:
        suffix = "'alignment_weight'"
        name = f"single parameter {parameter or f'that ends in {suffix}'}"
        _warn_missing(cv_results, name, "the best score, like BestCertified")
        return np.zeros(len(cv_results["mean_test_margin"]))
    # Grids without this parameter have masked entries, which become None.
    values = np.ma.asarray(cv_results[keys[0]]).tolist()
    return _floats([v if isinstance(v, Real) else math.inf for v in values])


def _warn_missing(cv_results: Mapping[str, Any], missing: str, instead: str) -> None:
    names = ", ".join(k for k in cv_results if k.startswith(("mean_test", "param_")))
    warn_user(
        f"The search has no {missing}. It has {names}. The candidate is chosen by "
        f"{instead}. To choose again, call the method choose of another rule on "
        "cv_results_."
    )


def _fold_scores(cv_results: Mapping[str, Any], name: str) -> Floats:
    """Return the scores of all folds, of shape (n_splits, n_candidates)."""
    pattern = re.compile(rf"split\d+_test_{name}")
    folds = [v for k, v in cv_results.items() if pattern.fullmatch(k)]
    if not folds:
        raise ValueError(
            f"cv_results must have the score {name!r} of each fold, got "
            f"{', '.join(k for k in cv_results if k.startswith('mean_test'))}. Search "
            "with **BestCertified().search_params. If you did, scoring failed in every "
            'fold, with a warning. error_score="raise" stops at the first error.'
        )
    return _lowest_if_nan(folds)


def _lowest_if_nan(values: Any) -> Floats:
    """Replace NaN, the score of a failed fit, by minus infinity, to rank it last."""
    scores = _floats(values)
    return np.where(np.isnan(scores), -np.inf, scores)


def _floats(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)
