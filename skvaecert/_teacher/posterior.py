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
    teacher: Any,
    X: ArrayLike,
    teacher_proba: ArrayLike | None = None,
    *,
    n_samples: int | None = None,
    n_components: int | None = None,
) -> Floats:
    """Return the posteriors that were given, or else those of the teacher.

    `teacher` is None after a fit with `teacher_proba`. A number of samples or of
    components, where given, is what the posteriors must have.
    """
    if teacher_proba is not None:
        proba = check_teacher_proba(teacher_proba, n_samples)
    elif teacher is None:
        raise ValueError(
            "teacher_proba must be given for these samples: the fit used "
            "teacher_proba, so there is no teacher to ask. Pass their posteriors."
        )
    else:
        proba = teacher_posterior(teacher, X)
    if n_components is not None and proba.shape[1] != n_components:
        raise ValueError(
            f"teacher_proba must have the {n_components} components of the fit, got "
            f"{proba.shape[1]}."
        )
    return proba
