"""Estimators as JSON values and arrays, and back.

JSON has one list of objects, each of which refers to earlier ones by number; the last
one is what was saved. An object has a type from a closed list, its parameters, and its
fitted state if it has one. What JSON has no notation for is an object with one key.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod
from numbers import Integral, Real
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skvaecert import baselines
from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.calibration import Calibration, Tempering
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._state import (
    ABSENT,
    COUNT,
    NUMBER,
    Array,
    Size,
    check_state,
    held,
    put,
)
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._training.state import OwnModuleError
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.objectives import Objective
from skvaecert.persistence._file import Arrays, Budget, can_hold
from skvaecert.witnesses import LinearWitness

__all__ = ["ROOTS", "Modules", "Packer", "Unpacker"]

Modules = Mapping[str, nn.Module | Callable[[int, int], nn.Module]]
Node = Any

ROOTS = (CertifiedVAE, CollapseCertifier, GMMTeacher)
_OBJECTIVES = (
    Objective,
    *(
        kind
        for kind in vars(baselines).values()
        if isinstance(kind, type) and kind.__name__ in baselines.__all__
    ),
)
# Which types may stand inside which, whether frozen or not.
_INSIDE: dict[type, tuple[type, ...]] = {
    CollapseCertifier: (
        *(CertifiedVAE, GMMTeacher),
        *(Calibration, Certificate, LinearWitness),
    ),
    CertifiedVAE: (GMMTeacher, *_OBJECTIVES),
    GMMTeacher: (PCA, GaussianMixture),
    FrozenEstimator: (CertifiedVAE, GMMTeacher),
    Calibration: (LinearWitness, Tempering),
}
_TYPES = {
    kind.__name__: kind
    for kind in (*ROOTS, FrozenEstimator, *(k for ks in _INSIDE.values() for k in ks))
}
# What GMMTeacher sets; the rest of their parameters is as scikit-learn has it.
_PARAMS = {
    PCA: ("n_components",),
    GaussianMixture: (
        "n_components",
        "covariance_type",
        "reg_covar",
        "n_init",
        "max_iter",
    ),
}
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
_COVARIANCES = {"full": "K c c", "tied": "c c", "diag": "K c", "spherical": "K"}
_OWN_MODULES = ("encoder", "decoder")
_NOT_SAVED = ("callbacks", "memory")
# A row of a table is a dict, and may be so twice: in the history of a net and of a VAE.
_ROW_COST, _CELL_COST = 600, 80
_TEXT_COST = 100
# Items of parameters are hashed one by one, to tell later whether they changed.
_MOST_ITEMS = 1000


def _table(kind: type, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is saved of a fit of scikit-learn's estimators."""
    if kind is PCA:
        return _PCA
    if kind is not GaussianMixture:
        return None
    covariances = Array(_COVARIANCES[params["covariance_type"]])
    return {
        "n_features_in_": Size("c"),
        "weights_": Array("K", sums_to_1=True),
        "means_": Array("K c"),
        "covariances_": covariances,
        "precisions_cholesky_": covariances,
        "precisions_": covariances,
        "lower_bound_": NUMBER,
        "lower_bounds_": (list, ABSENT),
        "n_iter_": COUNT,
        "converged_": bool,
    }


def _check_inside(owner: type | None, value: Any, where: str) -> None:
    """Check that something may stand where it does: the same for save and load."""
    inner = value.estimator if type(value) is FrozenEstimator else value
    allowed = ROOTS if owner is None else _INSIDE.get(owner, ())
    if type(inner) not in allowed or (owner is None and inner is not value):
        names = ", ".join(kind.__name__ for kind in allowed) or "a plain value"
        raise ValueError(
            f"{where} must be one of {names} to be saved, got a "
            f"{type(inner).__name__}. For anything else use pickle, for yourself "
            "only, or export_onnx."
        )


def _check_params(kind: type, params: Mapping[str, Any]) -> None:
    """Check that parameters are those that are saved: plain values, or a few."""
    known = _PARAMS.get(kind, params.keys())
    for name, value in params.items():
        is_row = isinstance(value, list | tuple | np.ndarray)
        items = list(value[: _MOST_ITEMS + 1]) if is_row else [value]
        nested = any(isinstance(i, list | tuple | dict | np.ndarray) for i in items)
        unsaved = name not in known or (name in _NOT_SAVED and value is not None)
        if unsaved or nested or len(items) > _MOST_ITEMS:
            raise ValueError(
                f"{name} of a {kind.__name__} must be a plain value or a list of at "
                f"most {_MOST_ITEMS} to be saved."
            )


class _Place(NamedTuple):
    """Where a value stands: its path, in what type, and whether as part of a fit."""

    path: str = "estimator"
    owner: type | None = None
    fitted: bool = True

    def inner(self, name: object) -> "_Place":
        return self._replace(path=f"{self.path}.{name}")


class Packer:
    """Turns an estimator into JSON values and arrays."""

    def __init__(self, estimator: BaseEstimator) -> None:
        self.objects: list[Node] = []
        self.arrays: Arrays = {}
        self.modules: dict[str, Any] = {}
        self.left_out: set[str] = set()
        self._numbers: dict[tuple[int, bool], int] = {}
        self._pack(estimator, _Place())

    @singledispatchmethod
    def _pack(self, value: Any, at: _Place) -> Node:
        _check_inside(at.owner, value, at.path)
        # A frozen one is the same as a parameter and as what was fitted.
        fitted = at.fitted or isinstance(value, FrozenEstimator)
        key = id(value), fitted
        if key not in self._numbers:
            node = self._node(value, at._replace(owner=type(value), fitted=fitted))
            self._numbers[key] = len(self.objects)
            self.objects.append(node)
        return {"object": self._numbers[key]}

    @_pack.register(NoneType)
    @_pack.register(bool)
    @_pack.register(str)
    def _same(self, value: Any, at: _Place) -> Node:
        return value

    @_pack.register
    def _int(self, value: Integral, at: _Place) -> Node:
        return int(value)

    @_pack.register
    def _float(self, value: Real, at: _Place) -> Node:
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}

    @_pack.register
    def _scalar(self, value: np.generic, at: _Place) -> Node:
        return self._pack(value.item(), at)

    @_pack.register
    def _list(self, value: list, at: _Place) -> Node:
        if value and all(isinstance(row, dict) for row in value):
            return {"rows": self._pack(_columns(value), at)}
        return [self._pack(item, at.inner(i)) for i, item in enumerate(value)]

    @_pack.register
    def _tuple(self, value: tuple, at: _Place) -> Node:
        return {"tuple": self._pack(list(value), at)}

    @_pack.register
    def _dict(self, value: dict, at: _Place) -> Node:
        items = {k: self._pack(item, at.inner(k)) for k, item in value.items()}
        return {"dict": items}

    @_pack.register
    def _error(self, value: Exception, at: _Place) -> Node:
        return {"error": str(value)}

    @_pack.register
    def _random_state(self, value: np.random.RandomState, at: _Place) -> Node:
        return {"random_state": self._pack([*value.get_state()][1:], at)}

    @_pack.register
    def _array(self, value: np.ndarray, at: _Place) -> Node:
        if value.dtype.kind in "UO":
            return self._texts(value, at)
        if not can_hold(value):
            raise ValueError(
                f"{at.path} must be an array of truth values, integers or floats to be "
                f"saved, got dtype {value.dtype}."
            )
        # Matrix products of transposed arrays round differently.
        across = value.flags.f_contiguous and not value.flags.c_contiguous
        self.arrays[at.path] = value.T if across else value
        return {"transposed" if across else "array": at.path}

    def _texts(self, value: NDArray[Any], at: _Place) -> Node:
        if value.ndim != 1 or not all(isinstance(text, str) for text in value.tolist()):
            raise ValueError(f"{at.path} must be an array of str to be saved.")
        texts = np.ascontiguousarray(value.astype(str))
        self.arrays[at.path] = texts.view(np.uint32).reshape(len(texts), -1)
        return {"objects" if value.dtype == object else "texts": at.path}

    def _node(self, value: Any, at: _Place) -> Node:
        if at.fitted and isinstance(value, BaseEstimator):
            check_is_fitted(value)
        params = _params(value)
        # The parameters of a fitted estimator are not part of its fit.
        inner = at._replace(fitted=at.fitted and not isinstance(value, ROOTS))
        node = {
            "type": type(value).__name__,
            "params": {k: self._param(k, v, inner) for k, v in params.items()},
            "fitted": None,
        }
        if at.fitted and (state := _fitted(value, params)):
            node["fitted"] = {k: self._pack(v, at.inner(k)) for k, v in state.items()}
        return node

    def _param(self, name: str, value: Any, at: _Place) -> Node:
        if name in _NOT_SAVED:
            self.left_out |= {name} if value is not None else set()
            return None
        if name in _OWN_MODULES and callable(value):
            self.modules[name] = value
            return {"module": name}
        return self._pack(value, at.inner(name))


def _params(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    names = _PARAMS.get(type(value)) or value.get_params(deep=False)
    return {name: getattr(value, name) for name in names}


def _fitted(value: Any, params: Mapping[str, Any]) -> dict[str, Any] | None:
    table = _table(type(value), params)
    if table is not None:
        return held(value, table)
    # Not of the instance: a frozen one would pass the question on.
    return value.__get_fitted__() if hasattr(type(value), "__get_fitted__") else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Lay a list of dicts out by column, each with the rows that have it."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        has = [i for i, row in enumerate(rows) if name in row]
        values = np.array([rows[i][name] for i in has])
        columns[name] = [values, None if len(has) == len(rows) else np.array(has)]
    return [len(rows), columns]


class Unpacker:
    """Makes estimators of JSON values and arrays, all of which may be wrong."""

    def __init__(self, arrays: Arrays, modules: Modules, budget: Budget) -> None:
        self._arrays = arrays
        self._modules = modules
        self._budget = budget
        self._made: list[Any] = []
        self._used: set[int] = set()
        self._owner: type | None = None
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "array": self._array,
            "dict": lambda items: {k: self._value(v) for k, v in items.items()},
            "error": ValueError,
            "float": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[
                text
            ],
            "module": self._module,
            "object": self._object,
            "objects": self._objects,
            "random_state": self._random_state,
            "rows": self._rows,
            "texts": self._texts,
            "transposed": lambda name: self._array(name).T,
            "tuple": lambda items: tuple(map(self._value, items)),
        }

    def unpack(self, objects: list[Node]) -> Any:
        """Make all objects, each after those that it refers to; return the last."""
        for node in objects:
            self._made.append(self._make(**node))
        root = self._made[-1]
        _check_inside(None, root, "the estimator")
        check_is_fitted(root)
        if self._arrays or len(self._used) < len(self._made) - 1:
            raise ValueError("it has arrays or objects that nothing refers to.")
        return root

    def _make(self, type: str, params: Any, fitted: Any) -> Any:
        kind = self._owner = _TYPES[type]
        params = {k: self._value(v) for k, v in params.items()}
        if issubclass(kind, BaseEstimator):
            _check_params(kind, params)
        made = kind(**params)
        if kind is FrozenEstimator:
            check_is_fitted(made)
        if fitted is not None:
            self._set(made, params, {k: self._value(v) for k, v in fitted.items()})
        return made

    @staticmethod
    def _set(made: Any, params: Mapping[str, Any], state: dict[str, Any]) -> None:
        table = _table(type(made), params)
        if table is None:
            made.__set_fitted__(state)
            return
        sizes = (
            {"K": params["n_components"]} if isinstance(made, GaussianMixture) else {}
        )
        check_state(type(made).__name__, state, table, sizes)
        put(made, state, table)

    def _value(self, node: Node) -> Any:
        if isinstance(node, list):
            node[:] = map(self._value, node)  # no second list
            return node
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        return self._kinds[kind](content)

    def _object(self, number: int) -> Any:
        if type(number) is not int or not 0 <= number < len(self._made):
            raise ValueError("an object in it refers to none before it.")
        value = self._made[number]
        _check_inside(self._owner, value, "an object in it")
        self._used.add(number)
        return value

    def _array(self, name: str) -> NDArray[Any]:
        return self._arrays.pop(name)

    def _texts(self, name: str) -> NDArray[Any]:
        codes = self._array(name)
        if codes.dtype != np.uint32 or codes.max(initial=0) > 0x10FFFF:
            raise ValueError("its texts are no texts.")
        return codes.view(f"U{codes.shape[1]}")[:, 0]

    def _objects(self, name: str) -> NDArray[Any]:
        texts = self._texts(name)
        self._budget.spend(_TEXT_COST * len(texts), "texts")
        return texts.astype(object)

    def _random_state(self, node: Node) -> np.random.RandomState:
        key, position, has_gauss, gauss = self._value(node)
        if key.shape != (624,) or not 0 <= position <= 624:
            raise ValueError("the state of a generator in it is none.")
        state = np.random.RandomState()
        state.set_state(("MT19937", key, position, has_gauss, gauss))
        return state

    def _module(self, name: str) -> Any:
        if name not in self._modules:
            raise OwnModuleError(
                f"modules must have the {name}, a class, function or module of its "
                "author's own, whose code is not in the file. Get it from the author "
                f'and load with modules={{"{name}": ...}}.'
            )
        return self._modules[name]

    def _rows(self, node: Node) -> list[dict[str, Any]]:
        n_rows, columns = self._value(node)
        arrays = [a for column in columns.values() for a in column if a is not None]
        n_cells = sum(array.size for array in arrays)
        self._budget.spend(_ROW_COST * n_rows + _CELL_COST * n_cells, "tables")
        rows: list[dict[str, Any]] = [{} for _ in range(n_rows)]
        for name, (values, has) in columns.items():
            places = range(n_rows) if has is None else has.tolist()
            for i, value in zip(places, values.tolist(), strict=True):
                rows[i][name] = value
        return rows
