"""The precision of an encoder's values: partly assumed, partly read off the values.

Rounding in the encoder makes a constant code vary. :class:`RoundingSums` bounds by how
much, under the assumption of theory section 2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvaecert.metrics import SpreadSums
from skvaecert.simplex import Floats

__all__ = ["RoundingSums", "rounded"]

# The error of an encoder in each coordinate, in units of machine epsilon at magnitude
# max(1, |mu|). Networks of a few hundred units were seen to be off by 4 in float32. The
# 16-bit types need fewer units: their sums are kept in 32 bits, and only results are
# rounded.
_NOISE_UNITS = 32
_NOISE_UNITS_16_BITS = 8

# Means that spread by at most this many units, at their own magnitude, are called
# constant. It is fewer than above, because "constant" is a claim too.
_CONSTANT_UNITS = 4

# The assumed error of an encoder at magnitude 1.
_ROUNDING = _NOISE_UNITS * float(np.finfo(np.float32).eps)

# After so many samples, most coordinates have shown that they do not fit in 16 bits.
_HEAD = 64


class RoundingSums:
    """Size, spread and precision of each column of values that come in batches."""

    def __init__(self) -> None:
        self.spread = SpreadSums()
        self._precision = _Precision()
        self._norms = 0.0
        self._squares: Floats | float = 0.0
        self._at_least_one: Floats | float = 0.0

    def add(self, values: Floats, weight: Floats) -> None:
        squares = values**2
        self._norms += float(weight @ np.sqrt(squares.sum(axis=1)))
        self._squares = self._squares + weight @ squares
        self._at_least_one = self._at_least_one + weight @ np.maximum(squares, 1)
        # Read first, because `update` may replace the sample that others must equal.
        first = self.spread.first
        self.spread.update(values, weight)
        self._precision.add(values, weight, first if len(first) else self.spread.first)

    def merge(self, other: RoundingSums) -> None:
        if not len(other.spread.first):
            return
        first = self.spread.first if len(self.spread.first) else other.spread.first
        self._precision.merge(other._precision, first == other.spread.first)
        self.spread.merge(other.spread)
        self._norms += other._norms
        self._squares = self._squares + other._squares
        self._at_least_one = self._at_least_one + other._at_least_one

    @property
    def mean_norm(self) -> float:
        return self._norms / self.spread.total_weight

    @property
    def unit(self) -> Floats:
        """The rounding error of each column, relative to its magnitude."""
        return self._precision.unit

    @property
    def square_errors(self) -> Floats:
        """Mean square error of each column that rounding may have left."""
        squares = self.unit**2 * self._at_least_one
        return np.asarray(squares / self.spread.total_weight)

    @property
    def rounding_noise(self) -> float:
        """Root mean square error that rounding may have left.

        In each coordinate, 32 machine epsilons of float32 at magnitude max(1, |mu_ij|):
        a mean that is small because large terms canceled has the error of those terms.
        Float32 is also assumed for float64 values, because they may come from a float32
        network through later arithmetic. If all values of a coordinate fit in 16 bits,
        for any dtype, it counts as computed in 16 bits, with 8 epsilons. Samples of
        negligible weight have no say in this. A coordinate that is the same for all
        samples shows no error.
        """
        return float(np.sqrt(self.square_errors.sum()))

    @property
    def are_constant(self) -> bool:
        """Whether each column spreads by no more than its own rounding."""
        epsilon = np.finfo(np.float32 if self._precision.single else np.float64).eps
        magnitude = np.sqrt(self._squares / self.spread.total_weight)
        limit = _CONSTANT_UNITS * epsilon * magnitude
        return bool((np.sqrt(self.spread.variance) <= limit).all())


class _Precision:
    """The smallest type that the values of each column fit in."""

    def __init__(self) -> None:
        # For each type, and for being equal: the weight of the values that do not fit.
        self._misfits: dict[str, Floats] = {}
        self._total = 0.0

    def add(self, values: Floats, weight: Floats, first: Floats) -> None:
        self._begin(len(first))
        self._total += float(weight.sum())
        self._note("equal", values, weight, lambda part, of: part == first[of])
        self._note("bfloat16", values, weight, lambda part, of: _fits_bfloat16(part))
        self._note("float16", values, weight, lambda part, of: _fits(part, np.float16))
        self._note("float32", values, weight, lambda part, of: _fits(part, np.float32))

    def merge(self, other: _Precision, equal: NDArray[np.bool_]) -> None:
        """Add the values of another object.

        `equal` tells for each column whether the first values of both are equal: if
        not, the values of both together are not equal, though those of each may be.
        """
        self._begin(len(equal))
        self._total += other._total
        for kind, misfits in other._misfits.items():
            self._misfits[kind] = self._misfits[kind] + misfits
        self._misfits["equal"][~equal] = np.inf

    @property
    def unit(self) -> Floats:
        shares = [
            0.0,
            # The machine epsilon of bfloat16, which NumPy does not have.
            _NOISE_UNITS_16_BITS * 2.0**-7,
            _NOISE_UNITS_16_BITS * float(np.finfo(np.float16).eps),
        ]
        kinds = [self._hold(kind) for kind in ("equal", "bfloat16", "float16")]
        # `select` takes the first: bfloat16 before float16, because it is coarser.
        return np.select(kinds, shares, _ROUNDING)

    @property
    def single(self) -> bool:
        return bool(self._hold("float32").all())

    def _begin(self, n_columns: int) -> None:
        if not self._misfits:
            kinds = "equal", "bfloat16", "float16", "float32"
            self._misfits = {kind: np.zeros(n_columns) for kind in kinds}

    def _hold(self, kind: str) -> NDArray[np.bool_]:
        """Return which columns a kind holds for, except for negligible weights."""
        # A weight below eps of the total changes no float64 sum, so it must not decide.
        most = 0.0 if kind == "equal" else float(np.finfo(np.float64).eps) * self._total
        return np.asarray(self._misfits[kind] <= most)

    def _note(
        self,
        kind: str,
        values: Floats,
        weight: Floats,
        test: Callable[[Floats, NDArray[np.intp]], NDArray[np.bool_]],
    ) -> None:
        # A column is no longer tested once it is known not to fit. A few samples at
        # first settle nearly all columns, which saves most of the work.
        for part in (slice(_HEAD), slice(_HEAD, None)):
            columns = np.flatnonzero(self._hold(kind))
            if len(columns) and len(values[part]):
                fits = test(values[part][:, columns], columns)
                self._misfits[kind][columns] += weight[part] @ ~fits


def _fits(values: Floats, dtype: type[np.floating]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray(values == values.astype(dtype))


def _fits_bfloat16(values: Floats) -> NDArray[np.bool_]:
    """Return where values fit in bfloat16: float32 whose lower 16 bits are 0."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.asarray(_fits(values, np.float32) & ((bits & 0xFFFF) == 0))


def rounded(
    values: NDArray[np.floating], magnitude: ArrayLike, generator: np.random.Generator
) -> Floats:
    """Return values that are moved by their possible rounding error, up or down."""
    exact = np.asarray(values, dtype=np.float64)
    precision = _Precision()
    precision.add(exact, np.ones(len(exact)), exact[0])
    signs = generator.choice([-1.0, 1.0], size=exact.shape)
    # Sums are in 32 bits, at the magnitude of their terms; 16 bits round results only.
    error = np.maximum(_ROUNDING * np.asarray(magnitude), precision.unit * abs(exact))
    return np.asarray(exact + error * signs)
