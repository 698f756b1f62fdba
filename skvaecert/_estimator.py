"""Shared parts of the estimators: nested defaults, warm starts, clean failures."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import metadata, version
from numbers import Real
from typing import Any, ClassVar, Self

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

from skvaecert.exceptions import InconsistentVersionWarning

__all__ = [
    "CallbackSupportMixin",
    "FitTasks",
    "HTMLMixin",
    "NestedDefaultMixin",
    "VersionedMixin",
    "check_unchanged",
    "interrupted",
    "remember_params",
    "restored_on_error",
    "seed_unset",
    "warn_user",
    "with_callbacks",
]

VERSION = version("skvaecert")

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Empty replacement for the mixin of scikit-learn 1.9."""

    def with_callbacks(method: Any) -> Any:
        """Return the method unchanged."""
        return method


class NestedDefaultMixin:
    """Lets `set_params` set parameters of a nested estimator that is None.

    A default estimator in the signature of the constructor would be shared by all
    instances, so the default is None. But None has no parameters. It is replaced by a
    new default estimator as soon as one of its parameters is set.
    """

    _nested_defaults: ClassVar[dict[str, Callable[[], BaseEstimator]]]

    def set_params(self, **params: Any) -> Self:
        """Set the parameters of this estimator.

        Parameters
        ----------
        **params : dict
            Estimator parameters. Parameters of nested estimators have the form
            ``<component>__<parameter>``. A nested estimator that is None is replaced by
            its default first.

        Returns
        -------
        self : estimator instance
            Estimator instance.
        """
        for name, default in self._nested_defaults.items():
            reaches_in = any(key.startswith(f"{name}__") for key in params)
            if reaches_in and params.get(name, getattr(self, name)) is None:
                params = {
                    name: default(),
                    **{k: v for k, v in params.items() if k != name},
                }
        return super().set_params(**params)  # type: ignore[misc]


class VersionedMixin:
    """Stores the version in pickles, and warns if another version reads them."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "_skvaecert_version": VERSION}  # type: ignore[dict-item]

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        written = state.pop("_skvaecert_version", "unknown")
        if written != VERSION:
            warn_user(
                InconsistentVersionWarning(
                    f"This {type(self).__name__} was pickled with skvaecert {written} "
                    f"and is unpickled with {VERSION}. It may fail or return other "
                    "values. Fit it again, or use the version that pickled it."
                )
            )
        super().__setstate__(state)  # type: ignore[misc]


class HTMLMixin:
    """Adds a link to the reference, and the verdict, to scikit-learn's HTML display.

    The link uses the documentation URL in the metadata of the package. Without this URL
    there is no link.
    """

    _doc_link_module = "skvaecert"

    @property
    def _doc_link_template(self) -> str:
        urls = metadata("skvaecert").get_all("Project-URL") or []
        site = dict(url.split(", ", 1) for url in urls).get("Documentation")
        page = "reference/{estimator_module}.{estimator_name}.html"
        return f"{site.rstrip('/')}/{page}" if site else ""

    def _repr_html_inner(self) -> str:
        return super()._repr_html_inner() + self._verdict_html  # type: ignore[misc]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        if "text/html" in bundle:
            bundle["text/html"] += self._verdict_html
        return bundle

    @property
    def _verdict_html(self) -> str:
        certificate = getattr(self, "certificate_", None)
        return "" if certificate is None else str(certificate._repr_html_())


class FitTasks:
    """Notifies scikit-learn's callbacks of a fit and its parts; inactive before 1.9."""

    def __init__(self, estimator: Any, X: Any, y: Any, n_parts: int) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.context: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self.context = estimator._init_callback_context(max_subtasks=n_parts)
            self.context.call_on_fit_task_begin(estimator=estimator, **self.data)

    def begin(self, name: str) -> None:
        """Notify the callbacks that a part begins."""
        if self.context is not None:
            self.part = self.context.subcontext(task_name=name)
            self.part.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def end(self, attributes: Callable[[], dict[str, Any]] | None = None) -> bool:
        """Notify the callbacks that a part ended; return whether to stop."""
        if self.context is None:
            return False
        return self.part.call_on_fit_task_end(
            estimator=self.estimator, **self.data, reconstruction_attributes=attributes
        )

    def end_fit(self) -> None:
        """Notify the callbacks that the fit ended."""
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)

    def propagated_to(self, inner: Any) -> AbstractContextManager[None]:
        """Let the callbacks follow the fit of a nested estimator."""
        if self.context is None or not hasattr(inner, "set_callbacks"):
            return nullcontext()
        return self.part.propagate_callback_context(inner)


@contextmanager
def restored_on_error(
    estimator: BaseEstimator,
    unless: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[None]:
    """Restore the attributes of an estimator if the block fails."""
    # A shallow copy: what a fit changes in place, it has to restore itself.
    before = dict(vars(estimator))
    try:
        yield
    # Ctrl-C must not leave half of a fit either.
    except BaseException as error:
        if not unless(error):
            vars(estimator).clear()
            vars(estimator).update(before)
        raise


def interrupted(estimator: Any, message: str) -> KeyboardInterrupt:
    """Return the KeyboardInterrupt of a fit whose estimator keeps the work so far.

    It is not a subclass of KeyboardInterrupt: a script that ends with a subclass has
    another exit status, and a shell loop around it would continue after Ctrl-C.
    """
    error = KeyboardInterrupt(message)
    error.estimator = estimator  # type: ignore[attr-defined]
    return error


def seed_unset(estimator: BaseEstimator, seed: int) -> None:
    """Set the `random_state` of an estimator, or of nested ones, where it is None."""
    params = estimator.get_params()
    nested = [name for name in params if name.endswith("__random_state")]
    # An estimator with a random_state is expected to seed its nested estimators.
    names = ["random_state"] if "random_state" in params else nested
    unset = [name for name in names if params[name] is None]
    if unset:
        estimator.set_params(**dict.fromkeys(unset, seed))


def remember_params(estimator: Any) -> None:
    """Store the parameters in `_fixed`, which a warm start must not change."""
    estimator._remembered = _fixed_params(estimator)


def check_unchanged(estimator: Any) -> None:
    """Raise an error if a parameter changed since :func:`remember_params`."""
    now, before = _fixed_params(estimator), estimator._remembered
    changed = [name for name in now | before if now.get(name) != before.get(name)]
    if changed:
        # If the teacher itself is another one, name it, and not one of its parameters.
        name = min(changed, key=len)
        raise ValueError(
            f"{name} must stay as it was in the fit that warm_start continues, got "
            f"{estimator.get_params().get(name)!r}. Set it back, or set "
            "warm_start=False to train from the beginning."
        )


def _fixed_params(estimator: Any) -> dict[str, Any]:
    """Return hashes of the parameters in `_fixed`, including nested parameters."""
    fixed: dict[str, Any] = {}
    for name in estimator._fixed:
        value = getattr(estimator, name)
        # None and the default estimator are the same value.
        if value is None and name in estimator._nested_defaults:
            value = estimator._nested_defaults[name]()
        # A frozen estimator is hashed as a whole, with its fitted state.
        if _is_estimator(value) and not isinstance(value, FrozenEstimator):
            params = value.get_params().items()
            fixed |= {
                f"{name}__{k}": _content_hash(v)
                for k, v in params
                if _affects_result(k)
            }
            value = type(value)
        fixed[name] = _content_hash(value)
    return fixed


def _affects_result(name: str) -> bool:
    # A fit may advance a random_state; n_jobs and verbose do not change the result.
    return not name.endswith(("random_state", "n_jobs", "verbose"))


def _content_hash(value: Any, *, frozen: bool = False) -> Any:
    """Return a hash that is equal for equal values, even after pickling.

    The hash of an estimator covers its class and parameters. Inside a frozen estimator
    it covers all public attributes. A value that cannot be pickled, such as a lambda,
    is returned unchanged.
    """
    if _is_numeric(value):
        value = np.array(value, dtype=np.float64, order="C")
    elif isinstance(value, list | tuple):
        value = [_content_hash(item, frozen=frozen) for item in value]
    elif _is_estimator(value):
        frozen = frozen or isinstance(value, FrozenEstimator)
        params = vars(value) if frozen else value.get_params(deep=False)
        value = (
            type(value),
            {
                k: _content_hash(v, frozen=frozen)
                for k, v in params.items()
                if _affects_result(k) and k[0] != "_"
            },
        )
    elif hasattr(value, "state_dict") and not isinstance(value, type):
        weights = value.state_dict().items()
        value = repr(value), {name: _array(tensor) for name, tensor in weights}
    try:
        return joblib.hash(value)
    except Exception:  # lambdas, local classes, locks, files
        return value


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    items = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, Real) for item in items)


def _array(tensor: Any) -> Any:
    """Return a tensor of any precision and device as an array."""
    return tensor.double().cpu().numpy() if hasattr(tensor, "double") else tensor


# Packages whose frames are skipped to find the user's line that caused a warning.
_SKIPPED_PACKAGES = ("skvaecert", "functools", "sklearn", "skorch", "joblib", "pickle")


def warn_user(warning: Warning | str) -> None:
    """Warn, with the location of the user's line that caused the warning."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _package(frame.f_globals) in _SKIPPED_PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def _package(module: dict[str, Any]) -> str:
    return str(module.get("__name__", "")).partition(".")[0]
