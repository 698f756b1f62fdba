"""Hashes of the weights of an encoder, for encoders that contain torch modules."""

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["digest_weights", "is_module"]


def digest_weights(estimator: Any) -> str:
    """Return a hash of the weights in an estimator's torch modules; "" if it has none.

    The hash does not depend on the process, the device or the training mode. It covers
    modules that are attributes of the estimator or of an estimator inside it, and
    modules of which a method or a partial is such an attribute.
    """
    # Sorted, because the order of attributes is not part of the weights.
    found = sorted(_digest(module) for module in _modules(estimator, set()))
    return blake2b("".join(found).encode(), digest_size=16).hexdigest() if found else ""


def is_module(value: Any) -> bool:
    """Return whether a value is a torch module, without importing torch."""
    return hasattr(value, "state_dict") and hasattr(value, "named_buffers")


def _modules(value: Any, seen: set[int]) -> Iterator[Any]:
    # A class of modules has their methods, but no weights.
    if isinstance(value, type) or id(value) in seen:
        return
    seen.add(id(value))
    if is_module(value):
        yield value
    else:
        for inner in _inside(value):
            yield from _modules(inner, seen)


def _inside(value: Any) -> Any:
    """Return the parts of a value that may contain modules."""
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    for name in ("__self__", "__wrapped__"):
        if getattr(value, name, None) is not None:
            return [getattr(value, name)]
    # Estimators with transform, and skorch nets, which have none.
    holds = hasattr(value, "transform") or hasattr(value, "module_")
    return getattr(value, "__dict__", {}).values() if holds else ()


def _digest(module: Any) -> str:
    digest = blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        array = _array(tensor)
        dtype = getattr(tensor, "dtype", None)
        digest.update(f"{name} {dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _array(tensor: Any) -> NDArray[Any]:
    """Return the values of a tensor, or no values if they are not available."""
    try:
        return np.asarray(tensor.numpy(force=True))
    except TypeError:
        # NumPy has no bfloat16 and no floats of 8 bits.
        return np.asarray(tensor.float().numpy(force=True))
    except (AttributeError, RuntimeError, NotImplementedError, ValueError):
        # A lazy parameter without values, or a tensor on another machine.
        return np.zeros(0)
