"""TrainedEncoder: a model that was trained elsewhere, as a transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags, check_array
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if

from skvaecert._certifier.diagnosed import codes_of
from skvaecert._certifier.encoded import EncodedSamples
from skvaecert._estimator import VersionedMixin
from skvaecert._loaders import as_samples
from skvaecert.diagnosis import Diagnosis, diagnose_codes
from skvaecert.escape import EscapeReport
from skvaecert.wrappers._inputs import Network, open_samples
from skvaecert.wrappers._outputs import (
    Outputs,
    check_names,
    read_posterior,
    read_samples,
)

__all__ = ["TrainedEncoder"]

Values = NDArray[np.floating]


def _has_decoder(wrapper: TrainedEncoder) -> bool:
    return wrapper.decoder is not None


class TrainedEncoder(
    VersionedMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Wrap a model that was trained elsewhere as a scikit-learn transformer.

    Use it to diagnose or to certify a model of torch, skorch, pythae, Lightning, JAX or
    another library as it is. Call :meth:`diagnose` to find out whether the model has
    collapsed. For certificates, pass the wrapper in a
    :class:`sklearn.frozen.FrozenEstimator` to a :class:`skvaecert.CollapseCertifier`.

    `encoder` is called with batches of samples. It returns latent means, preferably
    with log-variances or standard deviations of the posterior. Modules are evaluated in
    evaluation mode and without gradients. All batches have the same size, so that the
    mean of a sample does not depend on the other samples. The last batch is filled with
    copies of its last sample.

    Parameters
    ----------
    encoder : callable
        Takes a batch of samples and returns ``mean`` of shape (n_batch, latent_dim), or
        ``(mean, log_variance)``, or one of the alternatives listed under `outputs`.
        Further axes are flattened. The input depends on the type of the encoder:

        - A :class:`torch.nn.Module`, or a method of a module such as ``vae.encode``,
          takes tensors on the device of the module. Floats have the precision of the
          module, mostly float32, and integers are int64.
        - Any other callable takes NumPy arrays with the dtype of the samples.
        - If the samples are a list, both take a list.
    decoder : callable or None, default=None
        Takes a batch of codes of shape (n_batch, latent_dim), with the same rules as
        `encoder`. It returns samples of any shape in the units of X; or an object or
        mapping with `reconstruction`, `sample` or `loc`; or a distribution, whose mean
        is used. None means that there is no decoder.
    input_shape : tuple of int or None, default=None
        Shape of one sample, for example (1, 28, 28). Set it for encoders that do not
        take flat samples, if X is flat, as in a :class:`skvaecert.CollapseCertifier`.
        None leaves the shape of samples as it is.
    batch_size : int, default=256
        Number of samples in each batch, at least 1.
    outputs : dict or None, default=None
        Maps "mean", and optionally one of "log_variance", "std" and "variance", to the
        position or the name of an output. For a network that returns (reconstruction,
        mean, log_variance) it is ``{"mean": 1, "log_variance": 2}``. For standard
        deviations as the second output it is ``{"mean": 0, "std": 1}``. For an object
        or mapping it is, for example, ``{"mean": "z_mean", "variance": "z_var"}``. Use
        ``{"posterior": 1}`` for an output that contains both. None recognizes

        - one array, as means, and a tuple or list of two, as (mean, log_variance);
        - a Normal distribution of torch or another library, also in Independent. From
          other distributions only the mean is used, and :meth:`encode` raises an error;
        - an object or mapping with these, or with these in its `latent_dist`: `mean`,
          `mu`, `loc` or `embedding`, and `log_variance`, `logvar`, `log_var`,
          `log_covariance`, `std`, `scale` or `variance`.

    Attributes
    ----------
    latent_dim_ : int
        Number of latent dimensions. Like the attributes below, it is defined only after
        :meth:`fit`.
    n_features_in_ : int
        Number of features seen during :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only when `X` has feature
        names that are all strings.

    See Also
    --------
    skvaecert.CollapseCertifier : Certificates for the wrapped model.
    skvaecert.diagnose : The diagnosis, computed from arrays.

    Notes
    -----
    Pass the method that returns means. A method that draws codes, such as `embed` of
    pythae's VAE, advances torch's random generator and certifies nothing, because its
    noise counts as an error of the means.

    Torch computes in full float32 here, not in TF32, even if
    ``torch.set_float32_matmul_precision`` or a default of GPUs allows TF32.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skvaecert import CollapseCertifier, GMMTeacher
    >>> from skvaecert.wrappers import TrainedEncoder
    >>> X = load_iris().data
    >>> vae = torch.nn.ModuleDict(  # replace it by your model
    ...     {"encoder": torch.nn.Linear(4, 2), "decoder": torch.nn.Linear(2, 4)})
    >>> model = TrainedEncoder(vae["encoder"], vae["decoder"])
    >>> model.transform(X).shape
    (150, 2)
    >>> print(model.diagnose(torch.tensor(X, dtype=torch.float32)))
    Undecided: without standard deviations, nothing shows what codes carry ...
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
        "outputs": [Mapping, None],
    }

    def __init__(
        self,
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any] | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        batch_size: int = 256,
        outputs: Mapping[str, int | str] | None = None,
    ) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.outputs = outputs

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check that the encoder accepts the samples. Nothing is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`. One batch is encoded.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : TrainedEncoder
            The wrapper.
        """
        samples = open_samples(self, X, reset=True)
        self.latent_dim_ = self._encoder.outputs(samples[: self.batch_size]).mean.shape[
            1
        ]
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Return the latent means.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples. A list may contain anything that the encoder takes in a list, such
            as strings or sequences of different lengths. If the items of a Dataset or
            the batches of a DataLoader are tuples, their first part is used.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            Latent means. The dtype is float32 if the encoder returns float32 or less
            precision, else float64.

        Raises
        ------
        ValueError
            If the encoder returns other outputs or values that are not finite, or if a
            DataLoader may shuffle, because the order of the means would not be known.
        """
        return self._encoder.outputs(self._opened(X)).mean

    def encode(self, X: ArrayLike) -> tuple[Values, Values]:
        """Return means and standard deviations of q(z|x) = N(mean, diag(std^2)).

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`.

        Returns
        -------
        latent_mean : ndarray of shape (n_samples, latent_dim)
            Latent means, as from :meth:`transform`.
        latent_std : ndarray of shape (n_samples, latent_dim)
            Standard deviations: exp(log_variance / 2), or as set by `outputs`.

        Raises
        ------
        ValueError
            If the encoder returns only means, a distribution that is not a Gaussian
            with independent dimensions, or standard deviations or variances that are
            not above 0; or as in :meth:`transform`.

        Warns
        -----
        UserWarning
            If all log-variances are above 0, which suggests that they are standard
            deviations or variances.
        """
        outputs = self._encoder.outputs(self._opened(X))
        return outputs.mean, outputs.std()

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
            Reconstructed samples, flattened, in the units that the decoder returns.

        Raises
        ------
        ValueError
            If the decoder returns other outputs, or values that are not finite.
        """
        self._validate_params()
        codes = check_array(Z, input_name="Z")
        return self._decoder.outputs(codes).mean

    def diagnose(
        self,
        X: ArrayLike,
        teacher_proba: ArrayLike | None = None,
        *,
        witness: Any = None,
        sample_weight: ArrayLike | None = None,
        **options: Any,
    ) -> Diagnosis:
        """Find out whether the model has collapsed.

        This is :func:`skvaecert.diagnose` for the model. It can also be called between
        two epochs of training: modules are evaluated in evaluation mode and without
        gradients, and their mode and torch's random generators are restored.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`. If they are floats, outputs of the decoder
            are compared with them.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors of a teacher, in the order of the samples. A DataLoader that
            shuffles raises an error.
        witness : AlignmentLoss or None, default=None
            The alignment loss that the model was trained with, if there is one.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. None means that all samples have the
            same weight.
        **options : dict
            Other parameters of :func:`skvaecert.diagnose`: `likelihood`,
            `noise_variance`, `reduction`, `kl_weight`, `negligible`, `confidence`,
            `n_draws` and `random_state`.

        Returns
        -------
        Diagnosis
            State, values and advice. The state is "undecided" for an encoder that
            returns means only.

        Raises
        ------
        ValueError
            As in :func:`skvaecert.diagnose` and :meth:`encode`.

        Warns
        -----
        UnstableEncoderWarning
            If the codes of the same samples differ between two batches by more than
            rounding explains. The difference counts as noise.

        Notes
        -----
        All samples are encoded once, and some of them again in other batches. With
        ``n_draws=4000``, 2,000 images of 784 pixels took 0.18 s with fully connected
        networks and 0.46 s with convolutions. This is a quarter and a tenth of an epoch
        of 10,000 such images (one thread of a CPU).
        """
        self._validate_params()
        # Values for each sample belong to samples in a known order.
        in_order = teacher_proba is not None or sample_weight is not None
        with self._encoder.seeded(), self._decoder.seeded():
            samples = as_samples(X, in_order=in_order)
            opened = open_samples(self, samples)
            # The same checks of stability as in a CollapseCertifier.
            encoded = EncodedSamples(self, None, samples, weight=sample_weight)
            is_gaussian = self._encoder.outputs(opened[:1]).is_gaussian
            codes, stability = codes_of([encoded], is_gaussian, sample_weight)
            stability.warn_if_unstable()
            return diagnose_codes(
                codes,
                X=_floats(opened),
                decode=None if self.decoder is None else self.inverse_transform,
                teacher_proba=teacher_proba,
                witness=witness,
                **options,
            )

    def escape_report(
        self, X: ArrayLike, teacher_proba: ArrayLike, *, witness: Any = None
    ) -> EscapeReport:
        """Report whether the alignment loss can move the means apart, and if not, why.

        Call it if training with alignment does not rescue a collapsed model.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`.
        teacher_proba : array-like of shape (n_samples, n_components)
            Posteriors of a teacher for the same samples.
        witness : AlignmentLoss or None, default=None
            The alignment loss to train with. None uses the fixed simplex at the
            prior-matched scale of `teacher_proba`.

        Returns
        -------
        EscapeReport
            Verdict, forces, norm of the gradient and dead units. `str` gives a
            sentence.

        Raises
        ------
        ValueError
            If the encoder is not a torch module or a method of a torch module, computes
            in 16 bits, disables gradients, or has a gradient that is not finite; if the
            posteriors do not fit the samples; or as in :meth:`transform`.

        Notes
        -----
        The report takes three passes through the encoder, in evaluation mode. The
        module does not change. Parameters that are frozen, or that the means do not
        depend on, do not count.

        References
        ----------
        Theory section 4; arXiv:2605.18224.

        Examples
        --------
        >>> import numpy as np
        >>> import torch
        >>> from skvaecert.wrappers import TrainedEncoder
        >>> X = np.random.default_rng(0).normal(size=(100, 3))
        >>> teacher_proba = np.where(X[:, :1] > 0, [0.9, 0.1], [0.1, 0.9])
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU())
        >>> _ = encoder.append(torch.nn.Linear(8, 1))
        >>> _ = torch.nn.init.constant_(encoder[0].bias, -100.0)
        >>> print(TrainedEncoder(encoder).escape_report(X, teacher_proba))
        Stuck: ... All hidden features are dead in 1. ...
        """
        return self._encoder.escape_report(self._opened(X), teacher_proba, witness)

    def _opened(self, X: Any) -> Any:
        self._validate_params()
        return open_samples(self, X, in_order=True)

    # Created at each use, so that set_params takes effect.

    @property
    def _encoder(self) -> Network:
        def read(result: Any) -> Outputs:
            return read_posterior(result, self.outputs)

        return Network("encoder", self.encoder, self.batch_size, read, self.input_shape)

    @property
    def _decoder(self) -> Network:
        return Network("decoder", self.decoder, self.batch_size, read_samples)

    def _validate_params(self) -> None:
        # First, because scikit-learn's error does not mention nets of skorch.
        if not callable(self.encoder):
            raise ValueError(
                "encoder must be callable: a torch module, a method such as "
                f"vae.encode or a function, got {type(self.encoder).__name__}. For a "
                "net of skorch pass net.module_ or a method of it."
            )
        super()._validate_params()
        check_names(self.outputs)
        for name in ("encoder", "decoder"):
            if isinstance(getattr(self, name), type):
                given = getattr(self, name).__name__
                raise ValueError(
                    f"{name} must be a trained model, got the class {given}. Pass an "
                    "instance, or a method of an instance."
                )

    def __sklearn_is_fitted__(self) -> bool:
        """Return True: the model was trained elsewhere.

        Returns
        -------
        bool
            Always True.
        """
        return True

    def __sklearn_tags__(self) -> Tags:
        """Declare that no fit is required, and that the model determines the dtype."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_


def _floats(samples: Any) -> Any:
    """Return float samples, to compare outputs of a decoder with; None for others."""
    dtype = getattr(samples, "dtype", None)
    return None if dtype is None or dtype.kind != "f" else np.asarray(samples)
