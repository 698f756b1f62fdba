"""Hashes of parameters, to tell whether one has changed since the fit."""

from functools import partial
from numbers import Real
from types import CodeType
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

__all__ = ["fingerprint", "fingerprints"]


# Ends of names of parameters that a fit has used up, or that change no result.
_NO_MATTER = ("random_state", "n_jobs", "verbose")


def fingerprints(name: str, estimator: BaseEstimator) -> dict[str, str]:
    """Return hashes by parameter that tell whether a refit would differ."""
    if isinstance(estimator, FrozenEstimator):
        return {name: fingerprint(_public(estimator.estimator))}
    params = estimator.get_params().items()
    nested = {f"{name}__{k}": v for k, v in params if not k.endswith(_NO_MATTER)}
    return {k: fingerprint(v) for k, v in nested.items()} | {
        name: fingerprint(type(estimator))
    }


def fingerprint(value: Any) -> str:
    """Hash a parameter by its content, and what cannot be hashed by its `repr`."""
    if isinstance(value, Real):
        value = float(value)
    elif isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.ndim == 1
    ):
        value = [_item(item) for item in value]
    elif isinstance(value, BaseEstimator):
        value = _public(value)
    elif isinstance(value, partial):
        value = [fingerprint(item) for item in (value.func, value.args, value.keywords)]
    elif hasattr(value, "__qualname__"):
        value = value.__module__, value.__qualname__, _code(value)
    elif hasattr(value, "state_dict"):
        weights = {k: _numbers(v) for k, v in value.state_dict().items()}
        value = repr(value), weights
    try:
        return joblib.hash(value)
    except Exception:  # locks, files, local classes: whatever cannot be pickled
        return repr(value)


def _item(value: Any) -> Any:
    """Return what stands for an item of a list: values themselves, which are many."""
    if isinstance(value, Real):
        return float(value)
    return str(value) if isinstance(value, str) else fingerprint(value)


def _public(estimator: BaseEstimator) -> tuple[str, dict[str, str]]:
    """Return class and attributes, but for seeds."""
    public = {
        name: fingerprint(value)
        for name, value in vars(estimator).items()
        if not name.startswith("_") and name != "random_state"
    }
    return type(estimator).__qualname__, public


def _numbers(weights: Any) -> Any:
    """Turn a tensor of any precision and device into an array."""
    return weights.double().cpu().numpy() if hasattr(weights, "double") else weights


def _code(function: Any) -> list[Any]:
    """Tell apart functions of one name: lambdas, closures, methods of two objects."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    cells = getattr(function, "__closure__", None) or ()
    bound = [cell.cell_contents for cell in cells]
    bound += [function.__defaults__, function.__kwdefaults__]
    if hasattr(function, "__self__"):
        bound.append(vars(function.__self__))
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return [code.co_code, code.co_names, repr(constants), *map(fingerprint, bound)]
