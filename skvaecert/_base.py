"""What the estimators share: nested defaults, and fits that fail without a trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator

__all__ = ["NestedDefaultMixin", "restored_on_error", "seed_unset"]


class NestedDefaultMixin:
    """Lets `set_params` reach into a nested estimator whose parameter is None.

    A default estimator in the signature of the constructor would be shared by all
    instances; None is not, but has no parameters of its own. It is replaced by a
    fresh default as soon as one of them is set.
    """

    _nested_defaults: ClassVar[dict[str, Callable[[], BaseEstimator]]]

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator or, by `name__parameter`, of nested ones.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        self : object
            This estimator.
        """
        for name, default in self._nested_defaults.items():
            reaches_in = any(key.startswith(f"{name}__") for key in params)
            if reaches_in and params.get(name, getattr(self, name)) is None:
                params = {
                    name: default(),
                    **{k: v for k, v in params.items() if k != name},
                }
        return super().set_params(**params)  # type: ignore[misc]


@contextmanager
def restored_on_error(
    estimator: BaseEstimator,
    unless: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[None]:
    """Give an estimator back the attributes it had if the block fails.

    Parameters
    ----------
    estimator : BaseEstimator
        Its attributes may be replaced in the block, not changed in place.
    unless : callable, default=lambda error: False
        Tells of an error whether the new attributes are to be kept all the same.

    Yields
    ------
    None
        Nothing.
    """
    before = dict(vars(estimator))
    try:
        yield
    except BaseException as error:
        if not unless(error):
            vars(estimator).clear()
            vars(estimator).update(before)
        raise


def seed_unset(estimator: BaseEstimator, seed: int) -> None:
    """Set an estimator's `random_state` where it is None.

    Parameters
    ----------
    estimator : BaseEstimator
        Its own `random_state` is set; if it has none, those of nested estimators.
    seed : int
        At least 0.
    """
    params = estimator.get_params()
    nested = [name for name in params if name.endswith("__random_state")]
    names = ["random_state"] if "random_state" in params else nested
    unset = [name for name in names if params[name] is None]
    if unset:
        estimator.set_params(**dict.fromkeys(unset, seed))
