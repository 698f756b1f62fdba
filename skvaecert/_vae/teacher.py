"""The teacher of a VAE: seeded, and fitted once if `memory` caches it."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_memory

from skvaecert._estimator import seed_unset
from skvaecert._teacher.gmm import GMMTeacher, counts_of

__all__ = ["fit_teacher"]


def fit_teacher(
    teacher: BaseEstimator | None,
    X: ArrayLike,
    *,
    seed: int | None,
    latent_dim: int,
    memory: Any,
) -> BaseEstimator:
    """Fit a clone of the parameter `teacher`, or load a fitted one from `memory`."""
    teacher = GMMTeacher() if teacher is None else clone(teacher)
    if seed is not None:
        seed_unset(teacher, seed)
    _check_simplex_fits(teacher, latent_dim)
    return check_memory(memory).cache(_fitted)(teacher, X)


def _check_simplex_fits(teacher: BaseEstimator, latent_dim: int) -> None:
    """Raise an error before a search that may choose too many components."""
    if not isinstance(teacher, GMMTeacher) or np.ndim(teacher.n_components) != 1:
        return
    most = max(counts_of("n_components", teacher.n_components))
    if most > latent_dim + 1:
        raise ValueError(
            f"latent_dim must be at least {most - 1}, so that the simplex fits for all "
            f"n_components of the teacher's search, {teacher.n_components!r}, got "
            f"{latent_dim}. Raise latent_dim or search fewer components."
        )


def _fitted(teacher: Any, X: ArrayLike) -> Any:
    """Fit a teacher and return it. joblib caches this function."""
    # y is required by FrozenEstimator.fit. Some estimators return nothing from fit.
    teacher.fit(X, None)
    return teacher
