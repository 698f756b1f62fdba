"""What the estimators share: nested defaults, and fits that fail without a trace."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from numbers import Real
from types import CodeType
from typing import Any, ClassVar, Self

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_array, gen_batches
from sklearn.utils.validation import validate_data

from skvaecert._training import CHUNK
from skvaecert.datasets import DatasetRows
from skvaecert.exceptions import InvalidFileError

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for what scikit-learn has since 1.9."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = [
    "FIT_WRAPPERS",
    "CallbackSupportMixin",
    "FitTasks",
    "NestedDefaultMixin",
    "SavedMixin",
    "fingerprint",
    "fingerprints",
    "numpy_only",
    "open_rows",
    "raw_chunks",
    "read_rows",
    "restored_on_error",
    "seed_unset",
    "shared_call",
    "sharing_results",
    "validate_rows",
    "with_callbacks",
]

# Calls between a user's `fit` and that of the estimator: parameters are validated, and
# since scikit-learn 1.9 callbacks looked after. For warnings that point at the user.
FIT_WRAPPERS = 1 + hasattr(CallbackSupportMixin, "_init_callback_context")
# Numbers in a chunk of rows: few enough to stay in the cache while they are checked.
_CHUNK_NUMBERS = 2**17
# Ends of names of parameters that a fit has used up, or that change no result.
_NO_MATTER = ("random_state", "n_jobs", "verbose")


class NestedDefaultMixin:
    """Lets `set_params` reach into a nested estimator whose parameter is None.

    A default estimator in the signature of the constructor would be shared by all
    instances; None is not, but has no parameters of its own. It is replaced by a
    fresh default as soon as one of them is set.
    """

    _nested_defaults: ClassVar[dict[str, Callable[[], BaseEstimator]]]

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator or, by `name__parameter`, of nested ones."""
        for name, default in self._nested_defaults.items():
            reaches_in = any(key.startswith(f"{name}__") for key in params)
            if reaches_in and params.get(name, getattr(self, name)) is None:
                params = {
                    name: default(),
                    **{k: v for k, v in params.items() if k != name},
                }
        return super().set_params(**params)  # type: ignore[misc]


class SavedMixin:
    """Methods `save` and `load`; :mod:`skvaecert.persistence` has their limits."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the fitted estimator to a file that is safe to load."""
        # From a floor above: estimators do not need it to work.
        from skvaecert.persistence import save

        save(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, modules: dict[str, Any] | None = None
    ) -> Self:
        """Load an estimator of this class; nothing in the file is run."""
        from skvaecert.persistence import load

        estimator = load(path, modules=modules)
        if not isinstance(estimator, cls):
            raise InvalidFileError(
                f"{os.fspath(path)} must hold a {cls.__name__}, got a "
                f"{type(estimator).__name__}. Use {type(estimator).__name__}.load."
            )
        return estimator


class FitTasks:
    """Tells scikit-learn's callbacks of a fit and its parts; nobody before 1.9."""

    def __init__(self, estimator: Any, X: Any, y: Any, n_parts: int) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.context: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self.context = estimator._init_callback_context(max_subtasks=n_parts)
            self.context.call_on_fit_task_begin(estimator=estimator, **self.data)

    @property
    def watched(self) -> bool:
        """Whether there is a callback to tell."""
        return bool(getattr(self.context, "_callbacks", ()))

    def begin(self, name: str) -> None:
        """Begin a part."""
        if self.context is not None:
            self.part = self.context.subcontext(task_name=name)
            self.part.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def end(self, attributes: Callable[[], dict[str, Any]] | None = None) -> bool:
        """End a part."""
        if self.context is None:
            return False
        return self.part.call_on_fit_task_end(
            estimator=self.estimator, **self.data, reconstruction_attributes=attributes
        )

    def end_fit(self) -> None:
        """End the fit."""
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)

    def handed_on(self, inner: Any) -> AbstractContextManager[None]:
        """Let an estimator inside take part."""
        if self.context is None or not hasattr(inner, "set_callbacks"):
            return nullcontext()
        return self.part.propagate_callback_context(inner)


def numpy_only() -> AbstractContextManager[None]:
    """Switch scikit-learn's array API dispatch off: mixtures start from k-means."""
    return config_context(array_api_dispatch=False)


def validate_rows(
    estimator: BaseEstimator, X: ArrayLike, **kwargs: Any
) -> NDArray[np.floating]:
    """Check `X` as scikit-learn does and return it as a NumPy array of floats."""
    with numpy_only():
        rows = validate_data(estimator, X, dtype=[np.float64, np.float32], **kwargs)
    return _within_limits(rows)


def open_rows(
    estimator: BaseEstimator, X: ArrayLike | DatasetRows, **kwargs: Any
) -> NDArray[np.number] | DatasetRows:
    """Check what `X` is, but leave the numbers of an array to :func:`read_rows`.

    So an array on disk, or of integers, is never copied as a whole, nor are the rows
    of a torch Dataset.
    """
    if not isinstance(X, np.ndarray | DatasetRows) or not _is_numeric_table(X):
        return validate_rows(estimator, X, **kwargs)
    validate_rows(estimator, X[:2], **kwargs)
    return X


def _is_numeric_table(X: NDArray[np.number] | DatasetRows) -> bool:
    return X.ndim == 2 and X.dtype.kind in "fiu"


def read_rows(
    estimator: BaseEstimator, rows: NDArray[np.number] | DatasetRows
) -> Iterator[NDArray[np.floating]]:
    """Check the numbers of an array and yield them, some rows at a time."""
    for chunk in raw_chunks(rows):
        with numpy_only():
            checked = check_array(
                chunk,
                dtype=[np.float64, np.float32],
                estimator=estimator,
                input_name="X",
            )
        yield _within_limits(checked)


def raw_chunks(
    rows: NDArray[np.number] | DatasetRows,
) -> Iterator[NDArray[np.number]]:
    """Yield the numbers of an array as they are, some rows at a time."""
    # A multiple of what networks take at once.
    size = CHUNK * max(1, _CHUNK_NUMBERS // rows.shape[1] // CHUNK)
    for batch in gen_batches(len(rows), size):
        yield rows[batch]


def _within_limits(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    # Beyond this, sums of squares overflow.
    limit = 1e-3 * np.sqrt(np.finfo(rows.dtype).max)
    largest = max(-rows.min(), rows.max())
    if largest > limit:
        raise ValueError(
            f"X must have magnitudes below {limit:.0e} in {rows.dtype}, got "
            f"{largest:.3g}. Rescale X."
        )
    return rows


@contextmanager
def restored_on_error(
    estimator: BaseEstimator,
    unless: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[None]:
    """Give an estimator back the attributes it had if the block fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException as error:
        if not unless(error):
            vars(estimator).clear()
            vars(estimator).update(before)
        raise


def seed_unset(estimator: BaseEstimator, seed: int) -> None:
    """Set an estimator's `random_state` where it is None."""
    params = estimator.get_params()
    nested = [name for name in params if name.endswith("__random_state")]
    names = ["random_state"] if "random_state" in params else nested
    unset = [name for name in names if params[name] is None]
    if unset:
        estimator.set_params(**dict.fromkeys(unset, seed))


_results: ContextVar[dict[str, Any] | None] = ContextVar("results", default=None)


@contextmanager
def sharing_results() -> Iterator[None]:
    """Let :func:`shared_call` remember results, inside the block."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def shared_call(
    generators: Callable[[], Any], function: Callable[..., Any], *args: Any
) -> Any:
    """Call a function or, inside :func:`sharing_results`, copy what it returned."""
    results = _results.get()
    key = _content(args) if results is not None else None
    if results is None or key is None:
        return function(*args)
    if key in results:
        return copy.deepcopy(results[key])
    before = joblib.hash(generators())
    result = function(*args)
    if joblib.hash(generators()) == before:
        results[key] = copy.deepcopy(result)
    return result


def _content(args: Any) -> str | None:
    try:
        return joblib.hash(args)
    except Exception:  # locks, files, local classes: whatever cannot be pickled
        return None


def fingerprints(name: str, estimator: BaseEstimator) -> dict[str, str]:
    """Return hashes by parameter that tell whether a refit would differ."""
    if isinstance(estimator, FrozenEstimator):
        return {name: fingerprint(_public(estimator.estimator))}
    params = estimator.get_params().items()
    nested = {f"{name}__{k}": v for k, v in params if not k.endswith(_NO_MATTER)}
    return {k: fingerprint(v) for k, v in nested.items()} | {
        name: fingerprint(type(estimator))
    }


def fingerprint(value: Any) -> str:
    """Hash a parameter by its content, and what cannot be hashed by its `repr`."""
    if isinstance(value, Real):
        value = float(value)
    elif isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.ndim == 1
    ):
        value = [fingerprint(item) for item in value]
    elif isinstance(value, BaseEstimator):
        value = _public(value)
    elif isinstance(value, partial):
        value = [fingerprint(item) for item in (value.func, value.args, value.keywords)]
    elif hasattr(value, "__qualname__"):
        value = value.__module__, value.__qualname__, _code(value)
    elif hasattr(value, "state_dict"):
        weights = {k: _numbers(v) for k, v in value.state_dict().items()}
        value = repr(value), weights
    try:
        return joblib.hash(value)
    except Exception:  # locks, files, local classes: whatever cannot be pickled
        return repr(value)


def _public(estimator: BaseEstimator) -> tuple[str, dict[str, str]]:
    """Return class and attributes, but for seeds."""
    public = {
        name: fingerprint(value)
        for name, value in vars(estimator).items()
        if not name.startswith("_") and name != "random_state"
    }
    return type(estimator).__qualname__, public


def _numbers(weights: Any) -> Any:
    """Turn a tensor of any precision and device into an array."""
    return weights.double().cpu().numpy() if hasattr(weights, "double") else weights


def _code(function: Any) -> list[Any]:
    """Tell apart functions of one name: lambdas, closures, methods of two objects."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    cells = getattr(function, "__closure__", None) or ()
    bound = [cell.cell_contents for cell in cells]
    bound += [function.__defaults__, function.__kwdefaults__]
    if hasattr(function, "__self__"):
        bound.append(vars(function.__self__))
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return [code.co_code, code.co_names, repr(constants), *map(fingerprint, bound)]
