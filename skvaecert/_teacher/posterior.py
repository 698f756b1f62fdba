"""Posteriors of a teacher, asked for in one place."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.simplex import Floats, check_teacher_proba

__all__ = ["posterior_of", "teacher_posterior"]


def teacher_posterior(teacher: Any, X: ArrayLike) -> Floats:
    """Ask any teacher for its posterior: by `predict_proba`, else by `transform`."""
    ask = getattr(teacher, "predict_proba", None) or teacher.transform
    proba = np.asarray(ask(X))
    try:
        return check_teacher_proba(proba)
    except ValueError as error:
        raise ValueError(
            f"teacher, a {type(teacher).__name__}, gave no posterior that can be used: "
            f"{error}"
        ) from error


def posterior_of(
    estimator: Any, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int
) -> Floats:
    """Return the posteriors that were given, or ask the teacher of an estimator."""
    if teacher_proba is not None:
        return check_teacher_proba(teacher_proba, n_samples)
    if estimator.teacher_ is None:
        raise ValueError(
            "teacher_proba must be given for the rows to draw: this estimator was "
            "fitted with teacher_proba and has no teacher to ask."
        )
    return teacher_posterior(estimator.teacher_, X)
