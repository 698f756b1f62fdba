"""Outputs of an encoder or a decoder, converted to means and standard deviations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skvaecert._estimator import warn_user

__all__ = ["Outputs", "check_names", "joined", "read_posterior", "read_samples"]

Values = NDArray[np.floating]

_MEASURES = ("log_variance", "std", "variance")
# Names of outputs in returned objects, for example in pythae and diffusers.
_NAMES = {
    "mean": ("mean", "mu", "loc", "embedding"),
    "log_variance": ("log_variance", "logvar", "log_var", "log_covariance"),
    "std": ("std", "scale"),
    "variance": ("variance",),
}
# Names of a decoder's output, in the order in which they are tried.
_SAMPLES = ("reconstruction", "sample", "loc", "mean")
# Maximum number of outputs that an error lists.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Outputs:
    """Means and, if there are any, measures of the Gaussian spread around them.

    `measure` is the kind of `spread`: "log_variance", "std" or "variance". `keys` are
    the positions or names of both outputs. `returned` describes the whole result, and
    `distribution` is the name of its class if it is a distribution.
    """

    mean: Any
    spread: Any = None
    measure: str = ""
    keys: tuple[Any, Any] = (0, 1)
    returned: str = ""
    distribution: str = ""

    def arrays(self, name: str, size: int, n_samples: int) -> "Outputs":
        """Return mean and spread as arrays of shape (n_samples, n_values).

        They are copies, since a model may reuse memory, and contain the first
        `n_samples` of a batch: the rest is padding.
        """
        mean, spread = _floats(name, self.mean), self.spread
        if mean.ndim < 2 or len(mean) != size:
            raise ValueError(
                f"{name} must return an array with one entry for each sample of its "
                f"batch, shape ({size}, ...), got {self.returned}. If there is one "
                "value for each sample, return a column."
            )
        if spread is not None:
            spread = _floats(name, spread)
            # The scale of a distribution may have fewer values than its mean.
            if self.distribution:
                spread = np.broadcast_to(spread, mean.shape)
            if spread.shape != mean.shape:
                raise ValueError(
                    f"{name} must return a {self.measure} of the shape of the mean, "
                    f"{mean.shape}, got shape {spread.shape} in {self.returned}."
                    + _naming_hint()
                )
            spread = spread[:n_samples].reshape(n_samples, -1).copy()
        mean = mean[:n_samples].reshape(n_samples, -1).copy()
        return replace(self, mean=mean, spread=spread)

    @property
    def is_gaussian(self) -> bool:
        """Whether :meth:`std` returns standard deviations, or raises an error."""
        return self.spread is not None or bool(self.distribution)

    def std(self) -> Values:
        """Return standard deviations."""
        if self.spread is None:
            raise ValueError(self._no_gaussian())
        smallest, largest = self.spread.min(), self.spread.max()
        if self.measure == "log_variance":
            with np.errstate(over="ignore"):
                std = np.asarray(np.exp(self.spread / 2))
            if not (std.min() > 0 and np.isfinite(std.max())):
                raise ValueError(
                    "encoder must return log-variances whose exponentials neither "
                    f"vanish nor overflow in {std.dtype}, got values from "
                    f"{smallest:.3g} to {largest:.3g}."
                )
            if smallest > 0:
                self._warn()
            return std
        if not smallest > 0:
            raise ValueError(
                f"encoder must return values above 0 as {self.measure}, got a smallest "
                f"value of {smallest:.3g}. If they are log-variances, set "
                f"{self._named('log_variance')} in TrainedEncoder."
            )
        return self.spread if self.measure == "std" else np.sqrt(self.spread)

    def _no_gaussian(self) -> str:
        if self.distribution:
            way_out = (
                f"A {self.distribution} is not read as a Gaussian with independent "
                "dimensions."
            )
        else:
            way_out = (
                "If it returns them, name them in TrainedEncoder, for example "
                f'outputs={{"mean": {self.keys[0]!r}, "log_variance": ...}}, or "std" '
                'or "variance".'
            )
        return (
            "encoder must return (mean, log_variance), or another Gaussian posterior, "
            f'for encode and kind="sampled", got {self.returned}. {way_out} transform '
            'and kind="mean" need the mean only.'
        )

    def _warn(self) -> None:
        # The text contains no values, so that Python shows the warning once.
        warn_user(
            f"Output {self.keys[1]!r} of encoder is read as log-variances, but all its "
            "values are above 0. If it contains standard deviations, set "
            f"{self._named('std')} in TrainedEncoder. If it contains variances, use "
            '"variance" instead of "std".'
        )

    def _named(self, measure: str) -> str:
        mean, spread = self.keys
        return f'outputs={{"mean": {mean!r}, "{measure}": {spread!r}}}'


def joined(name: str, batches: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of all batches, which must have one kind of spread."""
    kinds = {batch.measure for batch in batches}
    if len(kinds) > 1:
        raise ValueError(
            f"{name} must return the same outputs for each batch, got spreads as "
            f"{' and '.join(kind or 'none' for kind in sorted(kinds, reverse=True))}."
        )
    first, spread = batches[0], None
    mean = _concatenated(name, "values", [batch.mean for batch in batches])
    if first.spread is not None:
        what = f"values as {first.measure}"
        spread = _concatenated(name, what, [batch.spread for batch in batches])
    return replace(first, mean=mean, spread=spread)


def _concatenated(name: str, what: str, batches: list[Values]) -> Values:
    values = np.concatenate(batches)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must return finite {what}, got NaN or infinity for "
            f"{np.count_nonzero(~finite)} of {len(values)} samples."
        )
    return values


def check_names(outputs: Any) -> None:
    """Check the parameter `outputs`."""
    if outputs is None:
        return
    allowed = {"mean", *_MEASURES}
    is_mapping = isinstance(outputs, Mapping)
    names = set(outputs) if is_mapping else set()
    right = names == {"posterior"} or (
        "mean" in names and names <= allowed and len(names) <= 2
    )
    if not right or any(type(key) not in (int, str) for key in outputs.values()):
        raise ValueError(
            "outputs must be None, or a dict with positions or names of outputs: for "
            '"mean" and optionally one of "log_variance", "std" and "variance", or for '
            '"posterior" alone. For example {"mean": 1, "log_variance": 2}. Got '
            f"{outputs!r}."
        )


def read_posterior(result: Any, names: Mapping[str, Any] | None) -> Outputs:
    """Return the outputs of an encoder, by the given names or by known patterns."""
    found = _named_outputs(result, names) if names else _recognized(result)
    return replace(found, returned=_described(result))


def read_samples(result: Any) -> Outputs:
    """Return the output of a decoder, which is the mean of its likelihood."""
    mean = None
    if _is_array(result):
        mean = result
    elif _is_distribution(result):
        mean = _mean_of("decoder", result)
    elif not _has_places(result):
        known = (_entry(result, name) for name in _SAMPLES)
        mean = next((value for value in known if value is not None), None)
    elif len(result) in (1, 2):
        mean = result[0]
    if not _is_array(mean):
        raise ValueError(
            "decoder must return samples, an object with reconstruction, sample or "
            f"loc, or a distribution, got {_described(result)}."
        )
    return Outputs(mean, returned=_described(result))


def _recognized(result: Any) -> Outputs:
    """Find means and spreads by known patterns."""
    # Some libraries return the posterior inside another object.
    inner = _entry(result, "latent_dist")
    result = result if inner is None else inner
    if _is_array(result):
        return Outputs(result)
    if _is_distribution(result):
        return _of_distribution(result)
    if _has_places(result):
        return _by_place(result)
    return _by_name(result)


def _named_outputs(result: Any, names: Mapping[str, Any]) -> Outputs:
    """Find means and spreads by the positions or names that the user gave."""
    values = {role: _at(result, key) for role, key in names.items()}
    if "posterior" in values:
        return _recognized(values["posterior"])
    for value in values.values():
        if not _is_array(value):
            raise ValueError(
                f"outputs must name arrays, got {names} for {_described(value)}. Name "
                'a distribution, or a tuple of mean and spread, "posterior".'
            )
    measure = next((name for name in names if name != "mean"), "")
    keys = names["mean"], names.get(measure)
    return Outputs(values["mean"], values.get(measure), measure, keys)


def _at(result: Any, key: int | str) -> Any:
    """Return an output by its position or its name."""
    value = None
    if isinstance(key, str):
        value = _entry(result, key)
    elif isinstance(result, tuple | list) and -len(result) <= key < len(result):
        value = result[key]
    if value is None:
        raise ValueError(
            f"outputs must name what encoder returns, got {key!r}, but it returns "
            f"{_described(result)}."
        )
    return value


def _by_place(result: Any) -> Outputs:
    if len(result) not in (1, 2) or not all(map(_is_array, result)):
        raise ValueError(
            "encoder must return the mean, or (mean, log_variance), got "
            f"{_described(result)}.{_naming_hint(*_likely_positions(result))} If one "
            'output is a distribution or contains both, name it "posterior".'
        )
    mean, spread = (*result, None)[:2]
    return Outputs(mean, spread, "log_variance" if len(result) == 2 else "")


def _by_name(result: Any) -> Outputs:
    found = {role: _only(result, names) for role, names in _NAMES.items()}
    mean = found["mean"]
    if mean is None:
        raise ValueError(
            "encoder must return the mean, or (mean, log_variance), or an object with "
            f"them by name, or a Normal distribution, got {_described(result)}."
            + _naming_hint()
        )
    measure = next((m for m in _MEASURES if found[m]), "")
    spread = found.get(measure)
    values = _entry(result, spread) if spread else None
    return Outputs(_entry(result, mean), values, measure, (mean, spread))


def _only(result: Any, names: Sequence[str]) -> str | None:
    """Return the only one of these names that the result has, or None."""
    present = [name for name in names if _is_array(_entry(result, name))]
    if len(present) > 1:
        raise ValueError(
            f"encoder must return one output of each kind, got {_described(result)}, "
            f"where {' and '.join(present)} could both be meant."
            + _naming_hint(present[0])
        )
    return present[0] if present else None


def _of_distribution(result: Any) -> Outputs:
    """Read a Normal distribution of torch or of another library.

    Of other distributions only the mean is used: their `loc` and `scale` may not be
    mean and standard deviation.
    """
    normal = result
    # By name, since other libraries are not imported here.
    while type(normal).__name__ == "Independent":
        # Other libraries call it `distribution`.
        normal = getattr(normal, "base_dist", None) or normal.distribution
    if not _is_normal(type(normal)):
        kind = type(normal).__name__
        return Outputs(_mean_of("encoder", result), distribution=kind)
    return Outputs(normal.loc, normal.scale, "std", distribution="Normal")


def _is_normal(kind: type) -> bool:
    """Return whether a class is Normal, or a subclass that draws in the same way.

    Subclasses that redefine how to draw, for example clipped ones, are not Normal.
    """
    for base in kind.__mro__:
        if base.__name__ == "Normal":
            return True
        if not vars(base).keys().isdisjoint(("sample", "rsample", "log_prob")):
            return False
    return False


def _mean_of(name: str, distribution: Any) -> Any:
    try:
        mean = distribution.mean
        # In other libraries, mean is a method.
        return mean() if callable(mean) and not _is_array(mean) else mean
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{name} must return a distribution that has a mean, got "
            f"{_described(distribution)}."
        ) from error


def _is_array(value: Any) -> bool:
    # Arrays of JAX and other libraries, without importing these.
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def _is_distribution(value: Any) -> bool:
    return callable(getattr(value, "log_prob", None))


def _has_places(value: Any) -> bool:
    """Return whether a value is a tuple or list whose entries have no names."""
    return isinstance(value, tuple | list) and not hasattr(value, "_fields")


def _entry(result: Any, name: str) -> Any:
    if isinstance(result, Mapping):
        return result.get(name)
    # Attributes of arrays, such as `mean`, are methods and not outputs.
    value = None if _is_array(result) else getattr(result, name, None)
    return None if callable(value) and not _is_array(value) else value


def _likely_positions(result: Any) -> tuple[Any, Any]:
    """Return the positions of two outputs that could be mean and log-variance."""
    shapes = [getattr(value, "shape", None) for value in result]
    pairs = ((i, i + 1) for i in range(len(shapes) - 1) if shapes[i] is not None)
    return next((p for p in pairs if shapes[p[0]] == shapes[p[1]]), (..., ...))


def _naming_hint(mean: Any = ..., spread: Any = ...) -> str:
    mean, spread = ("..." if key is ... else repr(key) for key in (mean, spread))
    return (
        " Name the outputs in TrainedEncoder, for example "
        f'outputs={{"mean": {mean}, "log_variance": {spread}}}.'
    )


def _floats(name: str, values: Any) -> Values:
    """Return values as floats, in float32 if they have that precision or less."""
    # Conversion would ignore a mask, and float8 is too coarse for means.
    if isinstance(values, np.ma.MaskedArray) or "float8" in str(
        getattr(values, "dtype", "")
    ):
        raise ValueError(
            f"{name} must return real values of 16 bits or more, without masks, got "
            f"{_described(values)}."
        )
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy does not have all of torch's small dtypes.
        if values.is_floating_point() and values.dtype != torch.float64:
            values = values.float()
    only_dlpack = hasattr(values, "__dlpack__") and not hasattr(values, "__array__")
    array = np.from_dlpack(values) if only_dlpack else np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must return real values, got {_described(values)}.")
    # Values of 16 bits fit into float32 exactly.
    small = array.dtype in (np.float16, np.float32)
    return array.astype(np.float32 if small else np.float64, copy=False)


def _described(result: Any) -> str:
    """Return the type of a result, with its shape or its parts, for errors."""
    kind = type(result).__name__
    if hasattr(result, "shape") and not callable(result.shape):
        dtype = f" of {result.dtype}" if hasattr(result, "dtype") else ""
        return f"{kind}{dtype}, shape {tuple(result.shape)}"
    if _has_places(result):
        parts = [f"{i}: {_described(v)}" for i, v in enumerate(result[:_MOST_SHOWN])]
        return f"{kind} of {len(result)} ({'; '.join(parts) or 'nothing'})"
    names = getattr(result, "_fields", getattr(result, "__dict__", ()))
    names = result if isinstance(result, Mapping) else names
    if _is_distribution(result) or not names:
        return kind
    return f"{kind} with {', '.join(map(str, names))}"
