"""Types that a file may contain, and which of them may be inside which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture

import skvaecert.baselines as baselines
from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.calibration import Calibration, Tempering
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._state import (
    ABSENT,
    COUNT,
    NUMBER,
    POSITIVE,
    Array,
    Size,
    check_simplex,
    check_state,
)
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.information import InformationBracket
from skvaecert.objectives import AlignmentLoss, Objective
from skvaecert.witnesses import LinearWitness

__all__ = [
    "ADVICE",
    "NOT_SAVED",
    "ROOTS",
    "SOME_PARAMS",
    "TRUSTED_TYPES",
    "TYPES",
    "check_inside",
    "check_params",
    "sklearn_table",
]

ADVICE = (
    "What can be saved is a GMMTeacher; a CertifiedVAE with objectives of "
    "skvaecert.baselines and your own modules as encoder and decoder; or a "
    "CollapseCertifier of any model. The teacher must be a GMMTeacher. For another "
    "teacher, pass its posteriors to fit as teacher_proba. For other estimators, use "
    "pickle for files that only you load, or export_onnx."
)
# Types that can be saved alone. All others are only inside of these.
ROOTS = (CertifiedVAE, CollapseCertifier, GMMTeacher)
_BASELINES = [getattr(baselines, name) for name in baselines.__all__]
_OBJECTIVES = [Objective, *(kind for kind in _BASELINES if isinstance(kind, type))]
_ALLOWED_INSIDE: dict[type, list[type]] = {
    CollapseCertifier: [
        *(CertifiedVAE, GMMTeacher),
        *(AlignmentLoss, Calibration, Certificate, LinearWitness),
    ],
    CertifiedVAE: [GMMTeacher, *_OBJECTIVES],
    GMMTeacher: [PCA, GaussianMixture],
    FrozenEstimator: [CertifiedVAE, GMMTeacher],
    Calibration: [LinearWitness, Tempering],
    Certificate: [InformationBracket],
}
TYPES = {
    kind.__name__: kind for kinds in _ALLOWED_INSIDE.values() for kind in kinds
} | {kind.__name__: kind for kind in _ALLOWED_INSIDE}
# Other types that skops finds in fitted estimators. It cannot write an AlignmentLoss.
_OTHER_TRUSTED = [
    "builtins.ValueError",
    "functools.partial",
    "skorch.dataset.Dataset",
    "skorch.history.History",
    "skorch.setter.optimizer_setter",
    "skvaecert._training.batches.Standardization",
    "skvaecert._training.monitors.Completion",
    "skvaecert._training.monitors.MarginMonitor",
    "skvaecert._training.monitors.ValidationMonitor",
    "skvaecert._training.net.VAENet",
    "skvaecert.baselines._EncoderFirst",
    "skvaecert.baselines._OptimalNoise",
    "skvaecert.objectives.AlignedELBO",
    "torch.optim.adam.Adam",
    "torch.utils.data.dataloader.DataLoader",
]
_OWN_TRUSTED = [
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in TYPES.values()
    if kind is not AlignmentLoss and kind.__module__.startswith("skvaecert.")
]
TRUSTED_TYPES = sorted(_OTHER_TRUSTED + _OWN_TRUSTED)
NOT_SAVED = ("callbacks", "memory")
# Parameters that GMMTeacher sets. The others keep scikit-learn's defaults.
SOME_PARAMS: dict[type, list[str]] = {
    PCA: ["n_components"],
    GaussianMixture: [
        *("n_components", "covariance_type"),
        *("reg_covar", "n_init", "max_iter"),
    ],
}
# Items of parameters are hashed one by one, to detect later changes.
_MOST_ITEMS = 1000
_PCA = {
    "n_features_in_": Size("p"),
    "mean_": Array("p"),
    "noise_variance_": NUMBER,
    "n_samples_": COUNT,
    "n_components_": Size("c"),
    "components_": Array("c p"),
    "explained_variance_": Array("c"),
    "explained_variance_ratio_": Array("c"),
    "singular_values_": Array("c"),
}
_ALIGNMENT_LOSS = {"vertices": Array("K d"), "scale": POSITIVE}
_COVARIANCES = {"full": "K c c", "tied": "c c", "diag": "K c", "spherical": "K"}


def sklearn_table(estimator: Any) -> dict[str, Any] | None:
    """Return the table of fitted attributes of scikit-learn's estimators, if any."""
    if type(estimator) is PCA:
        return _PCA
    if type(estimator) is not GaussianMixture:
        return None
    covariances = Array(_COVARIANCES[estimator.covariance_type])
    return {
        "n_features_in_": Size("c"),
        "weights_": Array("K", sums_to_1=True),
        "means_": Array("K c"),
        "covariances_": covariances,
        "precisions_cholesky_": covariances,
        "precisions_": covariances,
        "lower_bound_": NUMBER,
        # scikit-learn 1.6 does not have it.
        "lower_bounds_": (list, ABSENT),
        "n_iter_": COUNT,
        "converged_": bool,
    }


def check_inside(owner: type, value: Any) -> None:
    """Check that an object, frozen or not, may be inside another one."""
    is_frozen = type(value) is FrozenEstimator and owner is not FrozenEstimator
    inner = value.estimator if is_frozen else value
    allowed = _ALLOWED_INSIDE.get(owner, [])
    if type(inner) not in allowed:
        raise ValueError(
            f"values in a {owner.__name__} must be one of "
            f"{[kind.__name__ for kind in allowed]}, got a {type(inner).__name__}."
        )


def check_params(kind: type, params: Mapping[str, Any]) -> None:
    """Check that parameters are plain values or lists of a bounded length."""
    if kind is AlignmentLoss:
        check_state("AlignmentLoss", params, _ALIGNMENT_LOSS, {})
        check_simplex(**params)
    if not issubclass(kind, BaseEstimator):
        return
    for name, value in params.items():
        items = [value]
        if isinstance(value, list | tuple | np.ndarray):
            # No more than it takes to see that there are too many.
            items = list(value[: _MOST_ITEMS + 1])
        elif isinstance(value, dict):
            items = list(value.values())
        nested = any(isinstance(i, list | tuple | dict | np.ndarray) for i in items)
        unsaved = name in NOT_SAVED and value is not None
        unknown = name not in SOME_PARAMS.get(kind, params)
        if unsaved or unknown or nested or len(items) > _MOST_ITEMS:
            raise ValueError(
                f"{name} of a {kind.__name__} must be a plain value or a list of at "
                f"most {_MOST_ITEMS}."
            )
