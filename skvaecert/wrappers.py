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
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from skvaecert._estimator import VersionedMixin, warn_user
from skvaecert._precision import full_float32

__all__ = ["TrainedEncoder"]

_EXPECTED = {
    "encoder": "means, (means, log variances), an object with embedding and "
    "log_covariance, or a Normal distribution",
    "decoder": "samples, or an object with reconstruction",
}

Values = NDArray[np.floating]


def _has_decoder(wrapper: "TrainedEncoder") -> bool:
    return wrapper.decoder is not None


class TrainedEncoder(
    VersionedMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Wrap an encoder trained elsewhere, and its decoder, as a transformer.

    `encoder` is called on batches of samples and returns latent means. Modules are put
    into evaluation mode, without gradients. All batches have the same size, the last
    one padded, so that the mean of a sample does not depend on the other samples.

    Parameters
    ----------
    encoder : callable
        Takes a batch of samples and returns their latent means of shape (n_batch,
        latent_dim); or (means, log variances) of a Gaussian posterior as tuple or
        list, or what `spread` says in place of the second; or an object or mapping with
        `embedding` and maybe `log_covariance`, as in pythae; or a
        :class:`torch.distributions.Normal`. Its input depends on what it is:

        - a :class:`torch.nn.Module`, or a method of one such as ``vae.encode``, gets
          tensors on the module's device and in its precision, mostly float32;
        - any other callable gets NumPy arrays of the dtype of the samples.
    decoder : callable or None, default=None
        Takes a batch of codes in the same way and returns samples in the units of X, of
        any shape, or an object or mapping with `reconstruction`. None for no decoder.
    input_shape : tuple of int or None, default=None
        Shape of one sample, for encoders that do not take flat samples: for example
        (1, 28, 28).
    batch_size : int, default=256
        Number of samples in each batch, at least 1.
    spread : {"log_variance", "std", "variance"}, default="log_variance"
        What the second output of the encoder holds, where it returns a tuple or list.
        Standard deviations that are read as log variances make posteriors much wider
        than they are.

    Attributes
    ----------
    latent_dim_ : int
        Number of latent dimensions. Like those below, it is set by :meth:`fit` only.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    skvaecert.CollapseCertifier : Certifies it, wrapped in a FrozenEstimator.

    Notes
    -----
    Pass the method that returns means. A method that draws codes, like `embed` of
    pythae's VAE, advances torch's generator and certifies nothing: its noise counts as
    error of the means.

    Torch computes in full float32 meanwhile, not in TF32, also where
    ``torch.set_float32_matmul_precision`` or a default of GPUs allows it.

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
        "spread": [StrOptions({"log_variance", "std", "variance"})],
    }

    def __init__(
        self,
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any] | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        batch_size: int = 256,
        spread: str = "log_variance",
    ) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.spread = spread

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check that the encoder takes such samples; nothing is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples; one batch of them is encoded.
        y : Ignored
            Present by convention.

        Returns
        -------
        self : TrainedEncoder
            The wrapper.
        """
        samples = validate_data(self, X)
        self.latent_dim_ = self._posterior(samples[: self.batch_size])[0].shape[1]
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            In float32 if the encoder returns that or less precision, else in float64.

        Raises
        ------
        ValueError
            If the encoder returns anything else, or values that are not finite.
        """
        return self._posterior(self._validated(X))[0]

    def encode(self, X: ArrayLike) -> tuple[Values, Values]:
        """Return the parameters of the posterior q(z|x) = N(mean, diag(std^2)).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        latent_mean : ndarray of shape (n_samples, latent_dim)
            As from :meth:`transform`.
        latent_std : ndarray of shape (n_samples, latent_dim)
            Standard deviations: exp(log variance / 2), or as `spread` says.

        Raises
        ------
        ValueError
            If the encoder returns no second output, if it is not above 0 where
            `spread` is "std" or "variance", or as :meth:`transform`.

        Warns
        -----
        UserWarning
            If all log variances of a tuple or list are above 0, as standard deviations
            and variances are.
        """
        means, values, is_named = self._posterior(self._validated(X))
        if values is None:
            raise ValueError(
                "encoder must return (means, log variances) for encode, got means "
                "only. Use transform, which needs only means."
            )
        if is_named:
            return means, np.exp(values / 2)
        return means, _deviations(values, self.spread)

    @available_if(_has_decoder)
    def inverse_transform(self, Z: ArrayLike) -> Any:
        """Decode codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Flat samples, in the units that the decoder returns.

        Raises
        ------
        ValueError
            If the decoder returns anything else, or values that are not finite.
        """
        self._validate_params()
        codes = check_array(Z, input_name="Z")
        samples, *_ = _evaluate("decoder", self.decoder, codes, self.batch_size)
        return samples.reshape(len(samples), -1)

    def _validated(self, X: ArrayLike) -> NDArray[np.number]:
        self._validate_params()
        # Without a fit there are no names to compare with, and no reason to warn.
        if hasattr(self, "n_features_in_"):
            return validate_data(self, X, reset=False)
        return check_array(X, estimator=self, input_name="X")

    def _posterior(self, X: NDArray[np.number]) -> tuple[Values, Values | None, bool]:
        """Return means, the second output if any, and whether its name tells what."""
        if self.input_shape is not None:
            X = _reshape(X, self.input_shape)
        result = _evaluate("encoder", self.encoder, X, self.batch_size)
        means, *_ = result
        if means.ndim != 2:
            raise ValueError(
                "encoder must return means of shape (n_samples, latent_dim), got "
                f"{('n_samples', *means.shape[1:])}. Flatten them."
            )
        return result

    def __sklearn_is_fitted__(self) -> bool:
        """Return True: it was trained elsewhere.

        Returns
        -------
        bool
            True.
        """
        return True

    def __sklearn_tags__(self) -> Tags:
        """Declare that nothing is fitted, and that the model decides on the dtype."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_


def _reshape(X: NDArray[np.number], input_shape: Any) -> NDArray[np.number]:
    shape = tuple(map(int, input_shape))
    if math.prod(shape) != X.shape[1]:
        raise ValueError(
            "input_shape must have as many values as X has features, got "
            f"{shape}, {math.prod(shape)} values, and {X.shape[1]} features."
        )
    return X.reshape(len(X), *shape)


def _deviations(values: Values, spread: str) -> Values:
    """Return standard deviations, from what `spread` says that the values are."""
    smallest, largest = values.min(), values.max()
    if spread == "log_variance":
        if smallest > 0:
            warn_user(
                "The second output of encoder is read as log variances, and all its "
                f"values are above 0, from {smallest:.3g} to {largest:.3g}: posteriors "
                f"would be {np.exp(smallest / 2):.3g} wide or more. If they are "
                'standard deviations or variances, set spread="std" or '
                'spread="variance" in TrainedEncoder.'
            )
        return np.exp(values / 2)
    if not smallest > 0:
        raise ValueError(
            f"encoder must return values above 0 as second output for spread={spread!r}"
            f", got a smallest one of {smallest:.3g}. If they are logarithms of "
            'variances, set spread="log_variance".'
        )
    return values if spread == "std" else np.sqrt(values)


def _evaluate(
    name: str, function: Any, X: NDArray[np.number], size: int
) -> tuple[Values, Values | None, bool]:
    """Return means, the second output, and whether its name says what it is."""
    module = _module_of(function)
    means, log_variances, is_named = [], [], False
    # No inference mode: what a module keeps from its first pass, a table or lazy
    # parameters, could not be trained later.
    with torch.no_grad(), full_float32(), _evaluation_mode(module):
        for index in gen_batches(len(X), size):
            batch = X[index]
            result = _call(name, function, _padded(batch, size), module)
            mean, log_variance = _arrays(name, result, size)
            is_named = not isinstance(result, tuple | list)
            # Copies: a callable may return the same memory every time.
            means.append(mean[: len(batch)].copy())
            if log_variance is not None:
                log_variances.append(log_variance[: len(batch)].copy())
    mean = _joined(name, "values", means)
    if not log_variances:
        return mean, None, is_named
    what = "log variances" if is_named else "second outputs"
    return mean, _joined(name, what, log_variances), is_named


def _module_of(function: Any) -> nn.Module | None:
    """Return the module that a callable is, or is a method of."""
    if isinstance(function, partial):
        return _module_of(function.func)
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    # Each part by itself: some may have been frozen in evaluation mode.
    parts = [] if module is None else list(module.modules())
    modes = [part.training for part in parts]
    try:
        if module is not None:
            module.eval()
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def _padded(batch: NDArray[np.number], size: int) -> NDArray[np.number]:
    missing = size - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def _call(
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
    """Return the batch on the device of the module, in its precision."""
    state = list(chain(module.parameters(), module.buffers()))
    dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
    exact = np.float64 if dtype == torch.float64 else np.float32
    device = state[0].device if state else torch.device("cpu")
    return torch.from_numpy(batch.astype(exact)).to(device, dtype)


def _arrays(name: str, result: Any, n_samples: int) -> tuple[Values, Values | None]:
    """Return means, and log variances if there are any, of the result for a batch."""
    found, log_variance = _parameters(result)
    if found is None:
        raise ValueError(
            f"{name} must return {_EXPECTED[name]}, got {_described(result)}."
        )
    mean = _floats(name, found)
    if mean.ndim == 0 or len(mean) != n_samples:
        raise ValueError(
            f"{name} must return one row per sample of its batch, {n_samples}, got "
            f"{_described(result)}."
        )
    if log_variance is None:
        return mean, None
    spread = _floats(name, log_variance)
    if spread.shape != mean.shape:
        raise ValueError(
            f"{name} must return log variances of the shape of the means, got "
            f"{_described(result)}."
        )
    return mean, spread


def _parameters(result: Any) -> tuple[Any, Any]:
    """Return means and log variances, None for what is missing."""
    if hasattr(result, "__array__"):
        return result, None
    normal = result.base_dist if isinstance(result, Independent) else result
    if isinstance(normal, Normal):
        return normal.mean, 2 * normal.stddev.log()
    if isinstance(result, tuple | list):
        # Of three or more, nothing says which are the means.
        return (*result, None)[:2] if len(result) in (1, 2) else (None, None)
    mean = _entry(result, "embedding", "reconstruction")
    return mean, _entry(result, "log_covariance")


def _entry(result: Any, *names: str) -> Any:
    mapping = isinstance(result, Mapping)
    entries = (result.get(n) if mapping else getattr(result, n, None) for n in names)
    return next((entry for entry in entries if entry is not None), None)


def _floats(name: str, values: Any) -> Values:
    """Return values as floats, in float32 if they have that precision or less."""
    if isinstance(values, np.ma.MaskedArray) or "float8" in str(
        getattr(values, "dtype", "")
    ):
        raise ValueError(
            f"{name} must return real values of 16 bits or more, none of them masked, "
            f"got {_described(values)}."
        )
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy does not know all of torch's small types.
        if values.is_floating_point() and values.dtype != torch.float64:
            values = values.float()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must return real values, got {_described(values)}.")
    small = array.dtype in (np.float16, np.float32)
    return array.astype(np.float32 if small else np.float64, copy=False)


def _joined(name: str, what: str, batches: list[Values]) -> Values:
    values = np.concatenate(batches)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must return finite {what}, got NaN or infinity for "
            f"{np.count_nonzero(~finite)} of {len(values)} samples."
        )
    return values


def _described(result: Any) -> str:
    """Return the type of a result, with its shape or its parts."""
    kind = type(result).__name__
    if hasattr(result, "shape"):
        dtype = f" of {result.dtype}" if hasattr(result, "dtype") else ""
        return f"{kind}{dtype}, shape {tuple(result.shape)}"
    if isinstance(result, tuple | list):
        return f"{kind} of " + (", ".join(map(_described, result[:5])) or "nothing")
    if isinstance(result, Mapping):
        return f"{kind} with {', '.join(map(str, result)) or 'nothing'}"
    return kind
