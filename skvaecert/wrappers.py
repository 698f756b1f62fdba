"""Models trained elsewhere, as transformers that a CollapseCertifier takes."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags, check_array, gen_batches
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data
from torch import Tensor, nn
from torch.distributions import Independent, Normal

__all__ = ["TrainedEncoder"]

_WANTED = {
    "encoder": "means, (means, log variances), an object with embedding and "
    "log_covariance, or a Normal distribution",
    "decoder": "rows, or an object with reconstruction",
}

_Values = NDArray[np.floating]


def _has_decoder(wrapper: "TrainedEncoder") -> bool:
    return wrapper.decoder is not None


class TrainedEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Wrap an encoder trained elsewhere, and its decoder, as a transformer.

    Latent means are what `encoder` returns for batches of rows, evaluated as one
    should: modules in evaluation mode, without gradients, in batches of one size, the
    last one filled up, so that a row's mean does not depend on its company.

    Parameters
    ----------
    encoder : callable
        Takes a batch of rows and returns their latent means of shape (n_batch,
        latent_dim); or (means, log variances) of a Gaussian posterior as tuple or
        list; or an object or mapping with `embedding` and maybe `log_covariance`, as
        pythae has it; or a :class:`torch.distributions.Normal`. What it is given
        depends on what it is:

        - a :class:`torch.nn.Module`, or a method of one such as ``vae.encode``, gets
          tensors on the module's device and in its precision, float32 mostly;
        - any other callable gets NumPy arrays of the dtype of the rows.
    decoder : callable or None, default=None
        Takes a batch of codes in the same way and returns rows in the units of X, of
        any shape, or an object or mapping with `reconstruction`. None for none.
    input_shape : tuple of int or None, default=None
        Shape of one item, for encoders that do not take flat rows: (1, 28, 28), say.
    batch_size : int, default=256
        Rows in every batch, at least 1.

    Attributes
    ----------
    latent_dim_ : int
        Number of latent dimensions. After :meth:`fit` only, like those below.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    skvaecert.CollapseCertifier : Certifies it, wrapped in a FrozenEstimator.

    Notes
    -----
    Give the method that returns means. One that draws codes, like `embed` of pythae's
    VAE, moves torch's generator and certifies nothing: its noise is counted.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skvaecert import CollapseCertifier, GMMTeacher
    >>> from skvaecert.wrappers import TrainedEncoder
    >>> X = load_iris().data
    >>> vae = torch.nn.ModuleDict(  # stands for yours
    ...     {"encoder": torch.nn.Linear(4, 2), "decoder": torch.nn.Linear(2, 4)})
    >>> model = TrainedEncoder(vae["encoder"], vae["decoder"])
    >>> model.transform(X).shape
    (150, 2)
    >>> certifier = CollapseCertifier(
    ...     FrozenEstimator(model), teacher=GMMTeacher(n_components=3, random_state=0))
    >>> certifier.fit(X[::2]).certify(X[1::2]).n_samples
    75
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "encoder": [callable],
        "decoder": [callable, None],
        "input_shape": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any] | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        batch_size: int = 256,
    ) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.input_shape = input_shape
        self.batch_size = batch_size

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check that the encoder takes such rows; nothing is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; one batch of them is encoded.
        y : Ignored
            Present by convention.

        Returns
        -------
        self : TrainedEncoder
            The wrapper.
        """
        rows = validate_data(self, X)
        self.latent_dim_ = self._posterior(rows[: self.batch_size])[0].shape[1]
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            In float32 if the encoder returns that or less, else in float64.

        Raises
        ------
        ValueError
            If the encoder returns something else, or values that are not finite.
        """
        return self._posterior(self._checked_rows(X))[0]

    def encode(self, X: ArrayLike) -> tuple[_Values, _Values]:
        """Return the parameters of the posterior q(z|x) = N(mean, diag(std^2)).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        latent_mean : ndarray of shape (n_samples, latent_dim)
            The same as from :meth:`transform`.
        latent_std : ndarray of shape (n_samples, latent_dim)
            Standard deviations, exp(log variance / 2).

        Raises
        ------
        ValueError
            If the encoder returns no log variances, or as :meth:`transform`.
        """
        means, log_variances = self._posterior(self._checked_rows(X))
        if log_variances is None:
            raise ValueError(
                "encoder must return (means, log variances) for encode, got means "
                "only. Without them there is transform."
            )
        return means, np.exp(log_variances / 2)

    @available_if(_has_decoder)
    def inverse_transform(self, Z: ArrayLike) -> Any:
        """Return the decoder's rows of some codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Flat rows, in whatever units the decoder returns.

        Raises
        ------
        ValueError
            If the decoder returns something else, or values that are not finite.
        """
        self._validate_params()
        codes = check_array(Z, input_name="Z")
        rows, _ = _evaluated("decoder", self.decoder, codes, self.batch_size)
        return rows.reshape(len(rows), -1)

    def _checked_rows(self, X: ArrayLike) -> NDArray[np.number]:
        self._validate_params()
        # Without a fit there are no names to compare with, and no reason to warn.
        if hasattr(self, "n_features_in_"):
            return validate_data(self, X, reset=False)
        return check_array(X, estimator=self, input_name="X")

    def _posterior(self, rows: NDArray[np.number]) -> tuple[_Values, _Values | None]:
        """Return means, and log variances if the encoder has any."""
        items = rows if self.input_shape is None else _shaped(rows, self.input_shape)
        means, log_variances = _evaluated(
            "encoder", self.encoder, items, self.batch_size
        )
        if means.ndim != 2:
            raise ValueError(
                "encoder must return means of shape (n_samples, latent_dim), got "
                f"{('n_samples', *means.shape[1:])}. Flatten them."
            )
        return means, log_variances

    def __sklearn_is_fitted__(self) -> bool:
        """Tell that it was trained elsewhere.

        Returns
        -------
        bool
            True.
        """
        return True

    def __sklearn_tags__(self) -> Tags:
        """Say that there is nothing to fit, and that the model decides on the dtype."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_


def _shaped(rows: NDArray[np.number], input_shape: Any) -> NDArray[np.number]:
    shape = tuple(map(int, input_shape))
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(
            "input_shape must have as many values as X has features, got "
            f"{shape}, {math.prod(shape)} values, and {rows.shape[1]} features."
        )
    return rows.reshape(len(rows), *shape)


def _evaluated(
    name: str, function: Any, rows: NDArray[np.number], size: int
) -> tuple[_Values, _Values | None]:
    """Return means and, if there are any, log variances for all rows."""
    module = _module_of(function)
    means, log_variances = [], []
    # No inference mode: what a module keeps of its first pass, a table or lazy
    # parameters, would not be fit for a later training.
    with torch.no_grad(), _evaluation_mode(module):
        for piece in gen_batches(len(rows), size):
            chunk = rows[piece]
            result = _called(name, function, _filled(chunk, size), module)
            mean, log_variance = _parameters(name, result, size)
            # Copies: a callable may return the same memory every time.
            means.append(mean[: len(chunk)].copy())
            if log_variance is not None:
                log_variances.append(log_variance[: len(chunk)].copy())
    _check_finite(name, "values", means)
    _check_finite(name, "log variances", log_variances)
    joined = np.concatenate(log_variances) if log_variances else None
    return np.concatenate(means), joined


def _module_of(function: Any) -> nn.Module | None:
    """Return the module that a callable is, or is a method of."""
    if isinstance(function, partial):
        return _module_of(function.func)
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    # One by one: some parts may have been frozen in evaluation mode.
    parts = [] if module is None else list(module.modules())
    modes = [part.training for part in parts]
    try:
        if module is not None:
            module.eval()
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def _filled(chunk: NDArray[np.number], size: int) -> NDArray[np.number]:
    missing = size - len(chunk)
    return np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])


def _called(
    name: str, function: Any, batch: NDArray[np.number], module: nn.Module | None
) -> Any:
    kind = f"an array of {batch.dtype}" if module is None else "a tensor"
    try:
        return function(batch if module is None else _tensor(batch, module))
    except Exception as error:
        error.add_note(
            f"{name} was given {kind} of shape {batch.shape}. Torch modules and their "
            "methods are given tensors, other callables arrays."
        )
        raise


def _tensor(batch: NDArray[np.number], module: nn.Module) -> Tensor:
    """Put a batch where the module is, in its precision."""
    state = list(chain(module.parameters(), module.buffers()))
    dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
    exact = np.float64 if dtype == torch.float64 else np.float32
    device = state[0].device if state else torch.device("cpu")
    return torch.from_numpy(batch.astype(exact)).to(device, dtype)


def _parameters(name: str, result: Any, n_rows: int) -> tuple[_Values, _Values | None]:
    """Read means, and log variances if any, out of what was returned for a batch."""
    found, log_variance = _found(result)
    if found is None:
        raise ValueError(f"{name} must return {_WANTED[name]}, got {_told(result)}.")
    mean = _array(name, found)
    if mean.ndim == 0 or len(mean) != n_rows:
        raise ValueError(
            f"{name} must return as many rows as it is given, {n_rows}, got "
            f"{_told(result)}."
        )
    if log_variance is None:
        return mean, None
    spread = _array(name, log_variance)
    if spread.shape != mean.shape:
        raise ValueError(
            f"{name} must return log variances of the shape of the means, got "
            f"{_told(result)}."
        )
    return mean, spread


def _found(result: Any) -> tuple[Any, Any]:
    """Return means and log variances, None for what is not there."""
    if hasattr(result, "__array__"):
        return result, None
    normal = result.base_dist if isinstance(result, Independent) else result
    if isinstance(normal, Normal):
        return normal.mean, 2 * normal.stddev.log()
    if isinstance(result, tuple | list):
        # Of three or more, there is no telling which are the means.
        return (*result, None)[:2] if len(result) in (1, 2) else (None, None)
    mean = _entry(result, "embedding", "reconstruction")
    return mean, _entry(result, "log_covariance")


def _entry(result: Any, *names: str) -> Any:
    mapping = isinstance(result, Mapping)
    entries = (result.get(n) if mapping else getattr(result, n, None) for n in names)
    return next((entry for entry in entries if entry is not None), None)


def _array(name: str, values: Any) -> _Values:
    """Return values as floats, in float32 if they come in that or less."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy does not know all of torch's small types.
        if values.is_floating_point() and values.dtype != torch.float64:
            values = values.float()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must return numbers, got {_told(values)}.")
    small = array.dtype in (np.float16, np.float32)
    return array.astype(np.float32 if small else np.float64, copy=False)


def _check_finite(name: str, what: str, parts: list[_Values]) -> None:
    if not all(np.isfinite(part).all() for part in parts):
        rows = (~np.isfinite(part.reshape(len(part), -1)).all(axis=1) for part in parts)
        n_rows = sum(map(np.count_nonzero, rows))
        raise ValueError(
            f"{name} must return finite {what}, got NaN or infinity in {n_rows} of "
            f"{sum(map(len, parts))} rows."
        )


def _told(result: Any) -> str:
    """Say what something is: its type, and its shape or its parts."""
    kind = type(result).__name__
    if hasattr(result, "shape"):
        dtype = f" of {result.dtype}" if hasattr(result, "dtype") else ""
        return f"{kind}{dtype}, shape {tuple(result.shape)}"
    if isinstance(result, tuple | list):
        return f"{kind} of " + (", ".join(map(_told, result[:5])) or "nothing")
    if isinstance(result, Mapping):
        return f"{kind} with {', '.join(map(str, result)) or 'nothing'}"
    return kind
