"""Errors for an `estimator` or a `teacher` that has to be wrapped or replaced first."""

from typing import Any

from sklearn.frozen import FrozenEstimator

from skvaecert._certifier.weights import is_module

__all__ = ["check_encoder", "check_teacher"]


def check_encoder(estimator: Any) -> None:
    """Raise an error for a model that has to be wrapped first."""
    inner = _thawed(estimator)
    _check_instance("estimator", inner)
    described = "" if hasattr(inner, "transform") else _foreign(inner)
    if described:
        raise ValueError(
            f"estimator must have a method transform, got {described}. Wrap it: "
            f"CollapseCertifier(FrozenEstimator(TrainedEncoder({_arguments(inner)}))), "
            "with TrainedEncoder from skvaecert.wrappers."
        )


def check_teacher(teacher: Any) -> None:
    """Raise an error for an estimator that does not return posteriors."""
    inner = _thawed(teacher)
    _check_instance("teacher", inner)
    # Other objects get scikit-learn's error for an invalid parameter.
    is_fitted_by_us = hasattr(inner, "fit") and hasattr(inner, "get_params")
    has_posterior = hasattr(inner, "predict_proba") or hasattr(inner, "transform")
    if is_fitted_by_us and not has_posterior:
        raise ValueError(
            "teacher must have a method predict_proba, or a transform that returns "
            f"posteriors, got {type(inner).__name__}. Use skvaecert.GMMTeacher."
        )


def _thawed(estimator: Any) -> Any:
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def _check_instance(name: str, value: Any) -> None:
    if isinstance(value, type):
        given = value.__name__
        raise ValueError(
            f"{name} must be an instance, got the class {given}: write {given}(...)."
        )


def _foreign(model: Any) -> str:
    """Describe a model of another library; return "" for anything else."""
    kind = type(model).__name__
    if is_module(model):
        return f"the torch module {kind}"
    if hasattr(model, "module_"):
        return f"the net {kind} of skorch"
    # Functions and methods have a __qualname__; drop the name of an enclosing function.
    named = getattr(model, "__qualname__", kind).rpartition("<locals>.")[2]
    return f"the callable {named}" if callable(model) else ""


def _arguments(model: Any) -> str:
    """Return the arguments to pass to TrainedEncoder, as code."""
    owner = getattr(model, "__self__", None)
    if is_module(owner):
        # A method such as vae.encode: suggest the decoder of the same module, too.
        return f"model.{model.__name__}" + _part(", model", owner, "decode", "decoder")
    if not (is_module(model) or hasattr(model, "module_")):
        return "encode"
    name = "net.module_" if hasattr(model, "module_") else "model"
    module = getattr(model, "module_", model)
    encoder = _part(name, module, "encode", "encoder") or name
    return encoder + _part(f", {name}", module, "decode", "decoder")


def _part(name: str, module: Any, *parts: str) -> str:
    """Return the first of these parts that a module has, as code."""
    return next((f"{name}.{part}" for part in parts if hasattr(module, part)), "")
