"""Convert estimators to JSON values and arrays, and back.

The JSON contains one list of objects. Each object refers to earlier ones by number, and
the last one is the saved estimator. An object has a type, its parameters, and its
fitted state if there is one. A value that JSON cannot express is an object with one
key, which names its kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skvaecert._certifier.state import AbsentEncoder, is_foreign
from skvaecert._state import check_state, held, put
from skvaecert._training.state import OwnModuleError
from skvaecert.objectives import AlignmentLoss
from skvaecert.persistence._file import Arrays, Budget
from skvaecert.persistence._registry import (
    ADVICE,
    NOT_SAVED,
    ROOTS,
    SOME_PARAMS,
    TYPES,
    check_inside,
    check_params,
    sklearn_table,
)
from skvaecert.witnesses import simplex_of

__all__ = ["Brought", "Modules", "Packer", "Unpacker"]

Modules = Mapping[str, nn.Module | Callable[[int, int], nn.Module]]
# Modules, and under "estimator" the user's own model.
Brought = Mapping[str, Any]
Node = Any

# Estimated bytes per row and cell of a table: rows are dicts, which the histories of a
# net and of a VAE may both contain.
_ROW_COST, _CELL_COST = 450, 45
_TEXT_COST = 100


def _is_table(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) > 0
    return is_list and all(isinstance(row, dict) for row in value)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Convert a list of dicts to columns: the indices of rows, and their values."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        has = [i for i, row in enumerate(rows) if name in row]
        columns[name] = [np.array(has), np.array([rows[i][name] for i in has])]
    return [len(rows), columns]


def _generator(state: list[Any]) -> np.random.RandomState:
    key, position, has_gauss, gauss = state
    # The state of a Mersenne Twister has 624 words. NumPy does not check the position.
    if key.shape != (624,) or not 0 <= position <= 624:
        raise ValueError("a random generator in it has an invalid state.")
    generator = np.random.RandomState()
    generator.set_state(("MT19937", key, position, has_gauss, gauss))
    return generator


@dataclasses.dataclass(frozen=True)
class _Module:
    """Placeholder for the user's own encoder, decoder or estimator."""

    name: str


# For each kind: its type, the conversion to plain values, and the conversion back.
_CODECS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    # Only for NaN and infinity, which JSON does not have.
    "float": (float, str, float),
    "tuple": (tuple, list, tuple),
    "dict": (dict, dict, dict),
    # A certifier keeps the error of a failed calibration, to raise it later.
    "error": (Exception, str, ValueError),
    "module": (_Module, lambda module: module.name, _Module),
    "generator": (np.random.RandomState, lambda r: [*r.get_state()][1:], _generator),
}


class Packer:
    """Converts an estimator to JSON values and arrays."""

    def __init__(self, estimator: BaseEstimator) -> None:
        self.objects: list[Node] = []
        self.arrays: Arrays = {}
        self.modules: dict[str, Any] = {}
        self.left_out: set[str] = set()
        self._numbers: dict[tuple[int, bool], int] = {}
        self._object(estimator, "estimator", True)

    def _pack(self, value: Any, path: str, fitted: bool) -> Node:
        """Return the JSON of a value, with its fitted state if `fitted`."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray):
            return self._array(value, path)
        if _is_table(value):
            return {"rows": self._items(_columns(value), path, fitted)}
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if value is None or (isinstance(value, bool | int | float | str) and is_finite):
            return value
        if isinstance(value, list):
            return self._items(value, path, fitted)
        for kind, (known, plain, _) in _CODECS.items():
            if isinstance(value, known):
                return {kind: self._items(plain(value), path, fitted)}
        return self._object(value, path, fitted)

    def _items(self, content: Any, path: str, fitted: bool) -> Any:
        if isinstance(content, dict):
            return {k: self._pack(v, f"{path}.{k}", fitted) for k, v in content.items()}
        if isinstance(content, list):
            pairs = enumerate(content)
            return [self._pack(item, f"{path}.{i}", fitted) for i, item in pairs]
        return content

    def _array(self, value: NDArray[Any], path: str) -> Node:
        if value.dtype.kind in "UO":
            return self._texts(value, path)
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise ValueError(f"{path} must not be of dtype {value.dtype} to be saved.")
        # Keep the memory layout: products of transposed arrays round differently.
        across = value.flags.f_contiguous and not value.flags.c_contiguous
        self.arrays[path] = value.T if across else value
        return {"transposed" if across else "array": path}

    def _texts(self, value: NDArray[Any], path: str) -> Node:
        if value.ndim != 1 or not all(isinstance(text, str) for text in value.tolist()):
            raise ValueError(f"{path} must be an array of str to be saved.")
        # safetensors has no text: store NumPy's code points of 32 bits.
        texts = np.ascontiguousarray(value.astype(str))
        self.arrays[path] = texts.view(np.uint32).reshape(len(texts), -1)
        return {"texts": path}

    def _object(self, value: Any, path: str, fitted: bool) -> Node:
        if TYPES.get(type(value).__name__) is not type(value):
            raise ValueError(
                f"{path} must be of a type that can be saved, got a "
                f"{type(value).__name__}. {ADVICE}"
            )
        # A frozen estimator is the same as a parameter and as a fitted attribute.
        fitted |= isinstance(value, FrozenEstimator)
        # The same object may occur unfitted, as a parameter, and fitted.
        key = id(value), fitted
        if key not in self._numbers:
            node = self._node(value, path, fitted)
            self._numbers[key] = len(self.objects)
            self.objects.append(node)
        return {"object": self._numbers[key]}

    def _node(self, value: Any, path: str, fitted: bool) -> Node:
        if fitted and isinstance(value, BaseEstimator):
            check_is_fitted(value)
        # Parameters are saved unfitted, except inside objects that only a fit makes.
        inner = fitted and not isinstance(value, ROOTS)
        params = {k: self._param(k, v) for k, v in _params(value).items()}
        state = _fitted(value) if fitted else None
        if state and "estimator_" in state and is_foreign(state["estimator_"]):
            self.modules["estimator"] = state["estimator_"]
            params["estimator"] = state["estimator_"] = _Module("estimator")
        return {
            "type": type(value).__name__,
            "params": self._items(params, path, inner),
            "fitted": self._items(state, path, True),
        }

    def _param(self, name: str, value: Any) -> Any:
        if name in NOT_SAVED and value is not None:
            self.left_out.add(name)
            return None
        if name in ("encoder", "decoder") and callable(value):
            self.modules[name] = value
            return _Module(name)
        return value


def _params(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, AlignmentLoss):
        return dict(zip(("vertices", "scale"), simplex_of(value), strict=True))
    names = SOME_PARAMS.get(type(value)) or value.get_params(deep=False)
    return {name: getattr(value, name) for name in names}


def _fitted(value: Any) -> dict[str, Any] | None:
    if (table := sklearn_table(value)) is not None:
        return held(value, table)
    # Ask the class: an instance of FrozenEstimator would delegate to its estimator.
    return value.__get_fitted__() if hasattr(type(value), "__get_fitted__") else None


class Unpacker:
    """Converts JSON values and arrays to estimators. All values may be invalid."""

    def __init__(self, arrays: Arrays, brought: Brought, budget: Budget) -> None:
        self._arrays, self._brought, self._budget = arrays, brought, budget
        self._unneeded = set(brought)
        self._made: list[Any] = []
        self._used: set[int] = set()
        self._kinds: dict[str, Callable[[Any], Any]] = {
            **{kind: again for kind, (_, _, again) in _CODECS.items()},
            "array": self._arrays.pop,
            "module": self._module,
            "object": self._object,
            "rows": self._rows,
            "texts": self._texts,
            "transposed": lambda name: self._arrays.pop(name).T,
        }

    def unpack(self, objects: list[Node]) -> Any:
        """Make all objects in order, and return the last one."""
        for node in objects:
            self._made.append(self._make(**node))
        root = self._made[-1]
        if type(root) not in ROOTS:
            raise ValueError(
                f"it must contain an estimator, got a {type(root).__name__}."
            )
        check_is_fitted(root)
        if self._arrays or len(self._used) < len(self._made) - 1:
            raise ValueError("it has arrays or objects that nothing refers to.")
        if self._unneeded:
            names = " and ".join(sorted(self._unneeded))
            raise OwnModuleError(
                f"{names} must not be passed, because the file needs no module or "
                "model of yours."
            )
        return root

    def _make(self, type: str, params: Any, fitted: Any) -> Any:
        # Set before the items are converted: `_object` checks what may be inside it.
        self._owner = kind = TYPES[type]
        check_params(kind, self._items(params))
        made = kind(**params)
        if kind is FrozenEstimator:
            check_is_fitted(made)
        if fitted is None:
            return made
        state = self._items(fitted)
        if (table := sklearn_table(made)) is None:
            made.__set_fitted__(state)
            return made
        check_state(type, state, table, {"K": params["n_components"]})
        put(made, state, table)
        return made

    def _value(self, node: Node) -> Any:
        if not isinstance(node, dict):
            return self._items(node)
        ((kind, content),) = node.items()
        return self._kinds[kind](self._items(content))

    def _items(self, content: Any) -> Any:
        """Convert the items of a list or a dict in place, to save memory."""
        if isinstance(content, list):
            content[:] = map(self._value, content)
        elif isinstance(content, dict):
            content.update((k, self._value(v)) for k, v in content.items())
        return content

    def _object(self, number: int) -> Any:
        # A bool is an int too, so compare the type.
        if type(number) is not int or not 0 <= number < len(self._made):
            raise ValueError("an object in it does not refer to an earlier object.")
        check_inside(self._owner, self._made[number])
        self._used.add(number)
        return self._made[number]

    def _texts(self, name: str) -> NDArray[Any]:
        codes = self._arrays.pop(name)
        self._budget.spend(_TEXT_COST * len(codes), "texts")
        if codes.dtype != np.uint32 or codes.max(initial=0) > 0x10FFFF:
            raise ValueError("its texts have invalid characters.")
        return codes.view(f"U{codes.shape[1]}")[:, 0].astype(object)

    def _module(self, name: str) -> Any:
        self._unneeded.discard(name)
        if name == "estimator":
            return self._brought.get(name, AbsentEncoder())
        if name not in self._brought:
            raise OwnModuleError(
                f"modules must contain the {name}, which is the author's own class, "
                "function or module. Its code is not in the file. Get it from the "
                f'author and call load with modules={{"{name}": ...}}.'
            )
        return self._brought[name]

    def _rows(self, content: Any) -> list[dict[str, Any]]:
        n_rows, columns = content
        n_cells = sum(array.size for column in columns.values() for array in column)
        self._budget.spend(_ROW_COST * n_rows + _CELL_COST * n_cells, "tables")
        rows: list[dict[str, Any]] = [{} for _ in range(n_rows)]
        for name, (places, values) in columns.items():
            for i, value in zip(places.tolist(), values.tolist(), strict=True):
                rows[i][name] = value
        return rows
