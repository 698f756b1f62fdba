"""The weights of an encoder, where they can be had: those of its torch modules."""

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["digest_weights", "is_module"]


def digest_weights(estimator: Any) -> str:
    """Return a hash of the weights in an estimator's torch modules; "" if it has none.

    It does not depend on process, device or training mode. Found are modules that are
    attributes, or whose method or partial is one, of the estimator and those inside it.
    """
    found = sorted(_digest(module) for module in _modules(estimator, set()))
    return blake2b("".join(found).encode(), digest_size=16).hexdigest() if found else ""


def is_module(value: Any) -> bool:
    """Tell a torch module, without an import of torch."""
    return hasattr(value, "state_dict") and hasattr(value, "named_buffers")


def _modules(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, type) or id(value) in seen:
        return
    seen.add(id(value))
    if is_module(value):
        yield value
    else:
        for inner in _inside(value):
            yield from _modules(inner, seen)


def _inside(value: Any) -> Any:
    """Return what may hold modules in a value."""
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    for name in ("__self__", "__wrapped__"):
        if getattr(value, name, None) is not None:
            return [getattr(value, name)]
    # A skorch net has no transform.
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
    """Return the values of a tensor; none of one that has not been made, or is far."""
    try:
        return np.asarray(tensor.numpy(force=True))
    except TypeError:  # of 8 bits, or bfloat16
        return np.asarray(tensor.float().numpy(force=True))
    except (AttributeError, RuntimeError, NotImplementedError, ValueError):
        return np.zeros(0)
