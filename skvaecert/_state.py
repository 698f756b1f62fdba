"""What the fitted state of an estimator must be like: one table of names and rules.

The contract of an estimator that can be saved has two methods: `__get_fitted__` returns
its fitted state, a dict of plain values, arrays, records and estimators, and
`__set_fitted__` takes such a dict, checks it against the table, and sets it on an
estimator with the same parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skvaecert.simplex import Floats, simplex_vertices

__all__ = [
    "ABSENT",
    "COUNT",
    "NOT_NEGATIVE",
    "NUMBER",
    "POSITIVE",
    "Array",
    "Size",
    "check_simplex",
    "check_state",
    "held",
    "put",
]

# Stands for a value that a state may lack.
ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()
COUNT = Interval(Integral, 0, None, closed="left")
NUMBER = Interval(Real, None, None, closed="neither")
POSITIVE = Interval(Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_MOST_COMPONENTS, _MOST_SCALE = 1024, 1e150


@dataclass(frozen=True)
class Size:
    """A count above 0 that has a name, by which shapes refer to it."""

    name: str

    def __str__(self) -> str:
        return f"a count above 0, {self.name}"

    def admits(self, value: Any, sizes: dict[str, int]) -> bool:
        is_count = type(value) is int and value > 0
        return is_count and sizes.setdefault(self.name, value) == value


@dataclass(frozen=True)
class Array:
    """An array of finite values whose shape is given by named sizes; "*" is any."""

    shape: str
    dtype: Any = np.float64
    low: float = -math.inf
    sums_to_1: bool = False

    def __str__(self) -> str:
        shape = self.shape.replace(" ", ", ")
        return f"a finite array of {np.dtype(self.dtype)} and shape ({shape})"

    def admits(self, value: Any, sizes: dict[str, int]) -> bool:
        names = self.shape.split()
        if not isinstance(value, np.ndarray) or value.dtype != self.dtype:
            return False
        return (
            value.ndim == len(names)
            and all(map(self._has_size, names, value.shape, [sizes] * len(names)))
            and self._has_values(value)
        )

    @staticmethod
    def _has_size(name: str, size: int, sizes: dict[str, int]) -> bool:
        return name == "*" or Size(name).admits(size, sizes)

    def _has_values(self, value: Any) -> bool:
        if value.dtype.kind != "f":
            return True
        right = np.isfinite(value).all() and value.min(initial=np.inf) >= self.low
        if self.sums_to_1:
            right &= (value > 0).all() and math.isclose(value.sum(), 1, abs_tol=1e-6)
        return bool(right)


def check_state(
    owner: str,
    state: Mapping[str, Any],
    table: Mapping[str, Any],
    sizes: dict[str, int],
) -> None:
    """Check that a state has the names in a table, and values as their rules ask.

    A rule is an array, a size, an interval, options, methods, the exact type, None,
    ABSENT, or a tuple of such. Equal names of sizes are equal sizes; those found are
    added to `sizes`.
    """
    if unknown := state.keys() - table.keys():
        raise ValueError(f"a {owner} has no {', '.join(sorted(unknown))[:80]}.")
    for name, rules in table.items():
        value = state.get(name, ABSENT)
        rules = rules if isinstance(rules, tuple) else (rules,)
        if not any(_admits(rule, value, sizes) for rule in rules):
            raise ValueError(
                f"{name} of a {owner} must be {' or '.join(map(_said, rules))}, got "
                f"{_described(value)} with {sizes}."
            )


def _admits(rule: Any, value: Any, sizes: dict[str, int]) -> bool:
    if isinstance(rule, Array | Size):
        return rule.admits(value, sizes)
    if isinstance(rule, Interval):
        return type(value) in (int, float) and rule.is_satisfied_by(value)
    if isinstance(rule, StrOptions | HasMethods):
        return rule.is_satisfied_by(value)
    return type(value) is rule if isinstance(rule, type) else value is rule


def _said(rule: Any) -> str:
    return rule.__name__ if isinstance(rule, type) else str(rule)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return repr(value)[:80]


def check_simplex(vertices: Floats, scale: float) -> None:
    """Check that a witness is the fixed one: any other could be turned to the samples.

    `simplex_vertices` takes memory for (n_components, n_components) a few times.
    """
    n_components, latent_dim = vertices.shape
    if n_components > min(latent_dim + 1, _MOST_COMPONENTS):
        raise ValueError(
            f"vertices_ must be at most {_MOST_COMPONENTS}, and one more than there "
            f"are dimensions, got shape {vertices.shape}."
        )
    fixed = simplex_vertices(n_components, latent_dim)
    if not np.allclose(vertices, fixed, rtol=0, atol=1e-6):  # some are of float32
        raise ValueError("vertices_ must be those of simplex_vertices.")
    if scale >= _MOST_SCALE:
        raise ValueError(f"witness_scale_ must be below {_MOST_SCALE}, got {scale}.")


def held(estimator: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return those attributes in a table that an estimator has."""
    return {
        name: getattr(estimator, name) for name in table if hasattr(estimator, name)
    }


def put(estimator: Any, state: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    """Set those attributes in a table that a state has."""
    for name in table.keys() & state.keys():
        setattr(estimator, name, state[name])
