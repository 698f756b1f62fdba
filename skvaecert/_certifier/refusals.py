"""Refuse what is no estimator or no teacher, and say how to make one of it."""

from typing import Any

from sklearn.frozen import FrozenEstimator

__all__ = ["check_encoder", "check_teacher"]


def check_encoder(estimator: Any) -> None:
    """Fail for a model that has to be wrapped first."""
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
    """Fail for an estimator that gives no posteriors."""
    inner = _thawed(teacher)
    _check_instance("teacher", inner)
    is_fitted_by_us = hasattr(inner, "fit") and hasattr(inner, "get_params")
    gives = hasattr(inner, "predict_proba") or hasattr(inner, "transform")
    if is_fitted_by_us and not gives:
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
    """Describe a model of another library; "" for what is none."""
    kind = type(model).__name__
    if _is_module(model):
        return f"the torch module {kind}"
    if hasattr(model, "module_"):
        return f"the net {kind} of skorch"
    named = getattr(model, "__qualname__", getattr(model, "__name__", kind))
    return f"the callable {named}" if callable(model) else ""


def _arguments(model: Any) -> str:
    """Return what to write into TrainedEncoder(...)."""
    if hasattr(model, "module_"):
        name, module = "net.module_", model.module_
    elif _is_module(model):
        name, module = "model", model
    else:
        return getattr(model, "__name__", "encode").replace("<lambda>", "encode")
    parts = (
        next((f"{name}.{part}" for part in pair if hasattr(module, part)), "")
        for pair in (("encode", "encoder"), ("decode", "decoder"))
    )
    encoder, decoder = parts
    return ", ".join(filter(None, [encoder or name, decoder]))


def _is_module(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "named_buffers")
