"""The teacher's posteriors: given as `teacher_proba`, or predicted by a teacher."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skvaecert.simplex import Floats, check_teacher_proba

__all__ = ["posterior_of", "teacher_posterior"]


def teacher_posterior(teacher: Any, X: ArrayLike) -> Floats:
    """Return the posterior of any teacher, by `predict_proba` or else `transform`."""
    predict = getattr(teacher, "predict_proba", None) or teacher.transform
    proba = np.asarray(predict(X))
    try:
        return check_teacher_proba(proba)
    except ValueError as error:
        raise ValueError(
            "teacher must return valid posteriors, got invalid posteriors from "
            f"{type(teacher).__name__}: {error} Use skvaecert.GMMTeacher, whose "
            "posteriors are valid."
        ) from error


def posterior_of(
    teacher: Any,
    X: ArrayLike,
    teacher_proba: ArrayLike | None = None,
    *,
    n_samples: int | None = None,
    n_components: int | None = None,
) -> Floats:
    """Return `teacher_proba` if it is given, else the posterior of the teacher.

    `teacher` is None after a fit with `teacher_proba`. Unless None, `n_samples` and
    `n_components` are the required shape.
    """
    if teacher_proba is not None:
        proba = check_teacher_proba(teacher_proba, n_samples)
    elif teacher is None:
        raise ValueError(
            "teacher_proba must be given for these samples, because the fit used "
            "teacher_proba and has no teacher. Pass their posteriors."
        )
    else:
        proba = teacher_posterior(teacher, X)
    if n_components is not None and proba.shape[1] != n_components:
        raise ValueError(
            f"teacher_proba must have the {n_components} components of the fit, got "
            f"{proba.shape[1]}."
        )
    return proba
