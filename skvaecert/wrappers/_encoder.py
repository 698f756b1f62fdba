"""TrainedEncoder: an encoder trained elsewhere, as scikit-learn sees it."""

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
    """Wrap an encoder trained elsewhere, and its decoder, as a transformer.

    `encoder` is called on batches of samples and returns latent means, best with log
    variances or standard deviations of the posterior. Modules are put into evaluation
    mode, without gradients. All batches have the same size, the last one padded with
    its last sample, so that the mean of a sample does not depend on the other samples.

    Parameters
    ----------
    encoder : callable
        Takes a batch of samples and returns ``mean`` of shape (n_batch, latent_dim), or
        ``(mean, log_variance)``, or one of the things listed under `outputs`. More axes
        are flattened. Its input depends on what it is:

        - a :class:`torch.nn.Module`, or a method of one such as ``vae.encode``, gets
          tensors on the module's device: floats in the module's precision, mostly
          float32, integers as int64;
        - any other callable gets NumPy arrays of the dtype of the samples;
        - samples in a list reach both as a list.
    decoder : callable or None, default=None
        Takes a batch of codes of shape (n_batch, latent_dim) in the same way and
        returns samples in the units of X, of any shape; or an object or mapping with
        `reconstruction`, `sample` or `loc`; or a distribution, whose mean is used. None
        for no decoder.
    input_shape : tuple of int or None, default=None
        Shape of one sample, for encoders that take no flat samples where X is flat, as
        in a :class:`skvaecert.CollapseCertifier`: for example (1, 28, 28). None for
        samples as they are.
    batch_size : int, default=256
        Number of samples in each batch, at least 1.
    outputs : dict or None, default=None
        Which output is what: the place or the name of the "mean", and maybe of one of
        "log_variance", "std" and "variance". For a network that returns
        (reconstruction, mean, log_variance) it is ``{"mean": 1, "log_variance": 2}``;
        for standard deviations as second output ``{"mean": 0, "std": 1}``; for an
        object or mapping ``{"mean": "z_mean", "variance": "z_var"}``. An output that
        holds both is the "posterior": ``{"posterior": 1}``. None reads, without being
        told,

        - one array: means; two in a tuple or list: (mean, log_variance);
        - a Normal distribution, of torch or of another library, also in Independent.
          Of other distributions only the mean is used, and :meth:`encode` refuses them;
        - an object or mapping with these, or with them in its `latent_dist`: `mean`,
          `mu`, `loc` or `embedding`, and `log_variance`, `logvar`, `log_var`,
          `log_covariance`, `std`, `scale` or `variance`.

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
        """Check that the encoder takes such samples; nothing is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`; one batch of them is encoded.
        y : Ignored
            Present by convention.

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
            Samples. A list holds anything that the encoder takes a list of: strings,
            sequences of different lengths. Of the items of a torch Dataset and of the
            batches of a DataLoader the first part is used, where they are tuples.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            In float32 if the encoder returns that or less precision, else in float64.

        Raises
        ------
        ValueError
            If the encoder returns anything else, or values that are not finite, or a
            DataLoader may shuffle: the order of the means would not be known.
        """
        return self._encoder.outputs(self._opened(X)).mean

    def encode(self, X: ArrayLike) -> tuple[Values, Values]:
        """Return the parameters of the posterior q(z|x) = N(mean, diag(std^2)).

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`.

        Returns
        -------
        latent_mean : ndarray of shape (n_samples, latent_dim)
            As from :meth:`transform`.
        latent_std : ndarray of shape (n_samples, latent_dim)
            Standard deviations: exp(log_variance / 2), or as `outputs` says.

        Raises
        ------
        ValueError
            If the encoder returns means only, or a distribution that is no Gaussian
            with independent dimensions, or standard deviations or variances that are
            not above 0; or as :meth:`transform`.

        Warns
        -----
        UserWarning
            If all log variances are above 0, as standard deviations and variances are.
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
            Flat samples, in the units that the decoder returns.

        Raises
        ------
        ValueError
            If the decoder returns anything else, or values that are not finite.
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
        """Tell whether the model has collapsed: :func:`skvaecert.diagnose` of it.

        Also between two epochs of training: modules are evaluated in evaluation mode,
        without gradients, and put back; torch's random generators stay where they were.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`. Floats are also what outputs of the
            decoder are compared with.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors of a teacher, in the order of the samples: a DataLoader that
            shuffles is refused.
        witness : AlignmentLoss or None, default=None
            The loss that the model is trained with, if it is one.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; uniform when None.
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
            As :func:`skvaecert.diagnose` and :meth:`encode`.

        Warns
        -----
        UnstableEncoderWarning
            If the codes of the same samples differ between two batches by more than
            rounding explains. The difference counts as noise.

        Notes
        -----
        Samples are encoded once, and some of them again in other batches. With
        ``n_draws=4000``, 2,000 images of 784 pixels took 0.18 s with fully connected
        networks and 0.46 s with convolutions: a quarter and a tenth of an epoch of
        10,000 such images (one thread of a CPU).
        """
        self._validate_params()
        in_order = teacher_proba is not None or sample_weight is not None
        with self._encoder.seeded(), self._decoder.seeded():
            samples = as_samples(X, in_order=in_order)
            opened = open_samples(self, samples)
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

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), list, Dataset or DataLoader
            Samples, as in :meth:`transform`.
        teacher_proba : array-like of shape (n_samples, n_components)
            Posteriors of a teacher for the same samples.
        witness : AlignmentLoss or None, default=None
            The loss to train with. None for the fixed simplex at the prior-matched
            scale of `teacher_proba`.

        Returns
        -------
        EscapeReport
            Verdict, forces, norm of the gradient and dead units; prints as a sentence.

        Raises
        ------
        ValueError
            If the encoder is no torch module or method of one, computes in 16 bits,
            switches gradients off or has one that is not finite; if posteriors do not
            fit; or as :meth:`transform`.

        Notes
        -----
        It takes three passes through the encoder, in evaluation mode, and leaves the
        module as it was. Parameters that are frozen, or that the means do not depend
        on, do not count.

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
        Stuck: ... Hidden features are dead in 1: ...
        """
        return self._encoder.escape_report(self._opened(X), teacher_proba, witness)

    def _opened(self, X: Any) -> Any:
        self._validate_params()
        return open_samples(self, X, in_order=True)

    @property
    def _encoder(self) -> Network:
        def read(result: Any) -> Outputs:
            return read_posterior(result, self.outputs)

        return Network("encoder", self.encoder, self.batch_size, read, self.input_shape)

    @property
    def _decoder(self) -> Network:
        return Network("decoder", self.decoder, self.batch_size, read_samples)

    def _validate_params(self) -> None:
        if not callable(self.encoder):
            raise ValueError(
                "encoder must be callable, a torch module, a method such as vae.encode "
                f"or a function, got {type(self.encoder).__name__}. Of a net of skorch "
                "give net.module_ or a method of it."
            )
        super()._validate_params()
        check_names(self.outputs)
        for name in ("encoder", "decoder"):
            if isinstance(getattr(self, name), type):
                given = getattr(self, name).__name__
                raise ValueError(
                    f"{name} must be a callable that was trained, got the class "
                    f"{given}. Give an instance, or a method of one."
                )

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


def _floats(samples: Any) -> Any:
    """Return samples that outputs of a decoder can be compared with; None of others."""
    dtype = getattr(samples, "dtype", None)
    return None if dtype is None or dtype.kind != "f" else np.asarray(samples)
