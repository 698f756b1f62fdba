"""Rules for the fitted state of an estimator: a table with a rule for each name.

An estimator that can be saved has two methods. `__get_fitted__` returns its fitted
state, a dict of plain values, arrays, records and estimators. `__set_fitted__` takes
such a dict, checks it against the table, and sets it on an estimator with the same
parameters. Files may be untrusted, so the rules are strict.
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

# Rule for a value that may be missing in a state.
ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()
COUNT = Interval(Integral, 0, None, closed="left")
NUMBER = Interval(Real, None, None, closed="neither")
POSITIVE = Interval(Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
# Limits of memory and of floating-point range, for states from files.
_MOST_COMPONENTS, _MOST_SCALE = 1024, 1e150


@dataclass(frozen=True)
class Size:
    """A count above 0, with a name that shapes use."""

    name: str

    def __str__(self) -> str:
        return f"a count above 0, {self.name}"

    def admits(self, value: Any, sizes: dict[str, int]) -> bool:
        # The exact type, because a bool is an int, too.
        is_count = type(value) is int and value > 0
        # The first value of a name is the one that others must equal.
        return is_count and sizes.setdefault(self.name, value) == value


@dataclass(frozen=True)
class Array:
    """An array of finite values. Its shape consists of named sizes; "*" is any size."""

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
        valid = np.isfinite(value).all() and value.min(initial=np.inf) >= self.low
        if self.sums_to_1:
            valid &= (value > 0).all() and math.isclose(value.sum(), 1, abs_tol=1e-6)
        return bool(valid)


def check_state(
    owner: str,
    state: Mapping[str, Any],
    table: Mapping[str, Any],
    sizes: dict[str, int],
) -> None:
    """Check that a state has exactly the names in a table, with values that fit.

    A rule is an array, a size, an interval, options, methods, an exact type, None,
    ABSENT, or a tuple of alternatives. Sizes with the same name must be equal. Sizes
    that are found are added to `sizes`.
    """
    if unknown := state.keys() - table.keys():
        # Cut, because the names come from a file and may be long.
        raise ValueError(f"a {owner} has no {', '.join(sorted(unknown))[:80]}.")
    for name, rules in table.items():
        value = state.get(name, ABSENT)
        rules = rules if isinstance(rules, tuple) else (rules,)
        if not any(_admits(rule, value, sizes) for rule in rules):
            allowed = " or ".join(map(_rule_text, rules))
            raise ValueError(
                f"{name} of a {owner} must be {allowed}, got {_described(value)} with "
                f"{sizes}."
            )


def _admits(rule: Any, value: Any, sizes: dict[str, int]) -> bool:
    if isinstance(rule, Array | Size):
        return rule.admits(value, sizes)
    if isinstance(rule, Interval):
        return type(value) in (int, float) and rule.is_satisfied_by(value)
    if isinstance(rule, StrOptions | HasMethods):
        return rule.is_satisfied_by(value)
    return type(value) is rule if isinstance(rule, type) else value is rule


def _rule_text(rule: Any) -> str:
    return rule.__name__ if isinstance(rule, type) else str(rule)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return repr(value)[:80]


def check_simplex(vertices: Floats, scale: float) -> None:
    """Check that vertices are those of the fixed simplex.

    Other vertices could be fitted to the samples, and would certify chance.
    """
    n_components, latent_dim = vertices.shape
    # simplex_vertices needs several arrays of shape (n_components, n_components).
    if n_components > min(latent_dim + 1, _MOST_COMPONENTS):
        raise ValueError(
            f"vertices_ must have at most {_MOST_COMPONENTS} rows, and at most one row "
            f"more than columns, got shape {vertices.shape}."
        )
    fixed = simplex_vertices(n_components, latent_dim)
    # The tolerance is for vertices in float32.
    if not np.allclose(vertices, fixed, rtol=0, atol=1e-6):
        raise ValueError("vertices_ must be those of simplex_vertices.")
    if scale >= _MOST_SCALE:
        raise ValueError(f"witness_scale_ must be below {_MOST_SCALE}, got {scale}.")


def held(estimator: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an estimator that are in a table."""
    return {
        name: getattr(estimator, name) for name in table if hasattr(estimator, name)
    }


def put(estimator: Any, state: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    """Set the values of a state that are in a table as attributes of an estimator."""
    for name in table.keys() & state.keys():
        setattr(estimator, name, state[name])
