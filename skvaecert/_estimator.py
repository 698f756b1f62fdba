"""What the estimators share: nested defaults, fits that fail without a trace."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator

__all__ = [
    "FIT_WRAPPERS",
    "CallbackSupportMixin",
    "FitTasks",
    "NestedDefaultMixin",
    "restored_on_error",
    "seed_unset",
    "with_callbacks",
]


try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for what scikit-learn has since 1.9."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


# Calls between a user's `fit` and that of the estimator: parameters are validated, and
# since scikit-learn 1.9 callbacks looked after. For warnings that point at the user.
FIT_WRAPPERS = 1 + hasattr(CallbackSupportMixin, "_init_callback_context")


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
