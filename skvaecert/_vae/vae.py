"""CertifiedVAE: a variational autoencoder whose code is aligned with a teacher."""

import copy
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
    clone,
)
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory

from skvaecert._estimator import (
    FIT_WRAPPERS,
    CallbackSupportMixin,
    FitTasks,
    NestedDefaultMixin,
    SavedMixin,
    restored_on_error,
    seed_unset,
    with_callbacks,
)
from skvaecert._fingerprint import fingerprint, fingerprints
from skvaecert._samples import (
    CHUNK,
    DatasetSamples,
    Index,
    lazy_part,
    open_samples,
    raw_chunks,
    read_samples,
)
from skvaecert._teacher.gmm import GMMTeacher, counts_of
from skvaecert._teacher.posterior import posterior_of
from skvaecert._training.batches import (
    Resident,
    Rows,
    Standardisation,
    Streamed,
    TrainingSet,
    resolve_batch_size,
)
from skvaecert._training.device import resolve_device, seeded
from skvaecert._training.inference import decode, encode, evidence_bound, posterior
from skvaecert._training.joint import shared_call
from skvaecert._training.loop import prefit, train
from skvaecert._training.net import (
    Snapshot,
    VAENet,
    check_callbacks,
    make_net,
    resume_net,
)
from skvaecert._training.processes import Processes, join_processes
from skvaecert._vae.escape import EscapeReport, as_it_was, report_escape
from skvaecert.exceptions import (
    InterruptedFitWarning,
    NonFiniteLossError,
    UnreachedMarginWarning,
)
from skvaecert.forecast import (
    Forecast,
    ForecastCurve,
    forecast_margin,
    ratio_for_margin,
)
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.networks import VAE, ModuleOrFactory, check_image_shape, make_vae
from skvaecert.objectives import LagrangeWeight, Objective
from skvaecert.simplex import (
    Floats,
    analytic_code,
    analytic_energy,
    resolve_witness_scale,
    simplex_vertices,
    witness_log_proba,
)

__all__ = ["CertifiedVAE"]


# What a warm start cannot change: it continues with these very things.
_FIXED = (
    "latent_dim",
    "hidden_sizes",
    "encoder",
    "decoder",
    "image_shape",
    "likelihood",
    "objective",
    "witness_scale",
    "validation_fraction",
    "device",
)

_SEEDS = 2**31 - 1

# What may differ between processes that train together, of parameters that are no
# objects; how many rows are looked at to tell whether they have the same ones.
_OWN_TO_PROCESSES = "device", "memory", "random_state", "verbose"

_COMPARED = 64

# MinMaxScaler leaves [0, 1] by rounding.
_RANGE_SLACK = 1e-6

_HISTORY = {
    "epoch": "epoch",
    "train_loss": "loss",
    "reconstruction": "reconstruction",
    "kl": "kl",
    "alignment_loss": "alignment_loss",
    "margin": "margin",
    "teacher_information": "teacher_information",
    "kl_weight": "kl_weight",
    "alignment_weight": "alignment_weight",
    "seconds": "seconds",
}

# What a fit with rows held out records besides.
_VALIDATION = ("validation_loss", "validation_margin", "validation_information")

# Of rows that differ by rounding only, nats.
_NO_INFORMATION = 1e-9

# From no margin to the analytic code, for scales near 1.
_RATIOS = np.geomspace(1e-2, 1e4, 37)

# How far below its target a guarded margin may end without a warning.
_GUARD_SLACK = 0.05


class _Data(NamedTuple):
    """Rows to train on and to validate on, each with its posteriors."""

    rows: Any
    proba: Floats
    held_rows: Any
    held_proba: Floats | None

    @classmethod
    def cut(cls, rows: Any, proba: Floats, training: Index, held_out: Index) -> Self:
        if held_out is None:
            return cls(rows, proba, None, None)
        held = lazy_part(rows, held_out), lazy_part(proba, held_out)
        return cls(lazy_part(rows, training), lazy_part(proba, training), *held)

    @property
    def steering(self) -> tuple[Any, Floats]:
        # The rows on which a guard holds the margin.
        if self.held_proba is None:
            return self.rows, self.proba
        return self.held_rows, self.held_proba


class CertifiedVAE(
    CallbackSupportMixin,
    NestedDefaultMixin,
    SavedMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Variational autoencoder with a teacher-aligned code.

    Minimises, as a mean over rows and in nats::

        -log p(x|z) + kl_weight * KL(q(z|x) || N(0, I)) + alignment_weight * A(x)
        A(x) = KL(T(k|x) || softmax(beta S mu(x)))

    where mu is the encoder mean, S a fixed simplex, beta the witness scale and T the
    teacher's posterior. The witness has no trained part and sees the mean only. With
    ``alignment_weight=0`` this is a plain VAE (with ``kl_weight``, a beta-VAE).

    :class:`CollapseCertifier` tells whether the mean has collapsed.

    Parameters
    ----------
    teacher : estimator or None, default=None
        Fitted on the rows of :meth:`fit`; its `predict_proba`, or else `transform`,
        gives T. None for ``GMMTeacher()``. Wrapped in
        :class:`sklearn.frozen.FrozenEstimator` it stays as it is. If its
        `random_state` is None and this one's is not, it is seeded from this one's.
    latent_dim : int, default=16
        d, at least K - 1 for a teacher of K components.
    hidden_sizes : sequence of int, default=(128, 128)
        Hidden layers of the encoder; the decoder has them in reverse. With "conv"
        they are the fully connected layers between the convolutions and the code.
    encoder, decoder : torch.nn.Module, callable, "conv" or None, default=None
        None for fully connected layers; "conv" for
        :func:`skvaecert.networks.conv_encoder` and
        :func:`skvaecert.networks.conv_decoder` on images of `image_shape`; or modules
        of one's own. The encoder maps (n, n_features) to (n, 2 * latent_dim), means
        and then raw log-variances; the decoder maps (n, latent_dim) to
        (n, n_features). A module is copied with its weights; a class or function is
        called with (n_features, latent_dim). With the Gaussian likelihood they see
        rows less their mean, divided by one number.
    image_shape : sequence of int or None, default=None
        (channels, height, width), sides above 4, for "conv" alone: rows are images,
        flat in this order. Images that are (height, width, channels) get there by
        ``images.transpose(0, 3, 1, 2).reshape(len(images), -1)``.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        "gaussian": one variance, learned, for all features; data of any scale.
        "bernoulli": data in [0, 1], or bytes from 0 to 255.
    objective : Objective or None, default=None
        A mitigation of collapse from `skvaecert.baselines`, which takes the place of
        the KL term or of another part of the ELBO; None for the ELBO itself.
    alignment_weight : float or "auto", default=10.0
        Weight of the alignment loss, at least 0. "auto" takes it for a multiplier
        that holds the margin at `target_margin`, or above it where that is free: the
        guard, :class:`skvaecert.objectives.LagrangeWeight`.
    target_margin : float, default=0.6
        Share of the teacher information to hold, in (0, 1); for "auto" only.
    kl_weight : float, default=1.0
        Weight of the KL term, at least 0.
    prefit_alpha, prefit_energy : float or None, default=None
        With one of them a first fit begins with a regression of the mean on the code
        alpha z*, where z* is the analytic code: RST-prefit for ``prefit_alpha=1``.
        Either alpha is given, above 0; or it is the greatest up to 1 for which the
        code costs at most `prefit_energy` nats, mean of ``|alpha z*|**2 / 2``.
    prefit_epochs : int, default=10
        Passes over the rows for that; `max_epochs` come after them.
    witness_scale : "prior" or float, default="prior"
        beta, above 0; "prior" for the scale at which the analytic code is as wide as
        the prior.
    memory : str, joblib.Memory or None, default=None
        Where fitted teachers are cached, so that a search over other parameters fits
        each fold's teacher once. Works for teachers with a fixed `random_state`.
    max_epochs : int, default=100
        Passes over the rows in one :meth:`fit`.
    batch_size : int or "auto", default="auto"
        Most rows a step. Batches of an epoch are of the same size but for one row.
        "auto" for a sixteenth of the rows, but from 8 to 128: small tables need steps.
    learning_rate : float, default=1e-3
        Step size of Adam, above 0.
    validation_fraction : float or None, default=None
        Share of the rows, in (0, 1), that neither teacher nor network is fitted on.
        Their loss and margin are recorded after each epoch, and the guard holds the
        margin on them. In warm fits on as many rows the same ones are held out.
    torch_compile : bool or str, default=False
        Whether to run the forward pass through :func:`torch.compile`, or the name of
        the backend to use. Worth it for long trainings of large networks only.
    autocast : bool, default=False
        Whether to train in bfloat16 where torch thinks that safe; slow on most CPUs.
        Means are computed in float32 after it, so a certificate means what it always
        does.
    device : str, default="auto"
        "auto" for the first of cuda, mps and cpu that is there; or a torch device.
    accelerate : bool, default=False
        Whether to train on all processes that torchrun has started, each with a share
        of every batch and, on GPUs, a device of its own. All of them call :meth:`fit`
        with the same rows and end with the same model. With one process nothing
        changes.
    warm_start : bool, default=False
        Whether :meth:`fit` continues from the present weights, with the same teacher
        and witness. Between warm fits

        ====================================================  =====================
        may change                                            must stay
        ====================================================  =====================
        alignment_weight, target_margin, kl_weight,           teacher, latent_dim,
        learning_rate, batch_size, max_epochs, callbacks,     hidden_sizes, encoder,
        prefit_alpha, prefit_energy, prefit_epochs,           decoder, image_shape,
        torch_compile, autocast, accelerate, memory,          likelihood, objective,
        verbose, random_state                                 witness_scale, device,
                                                              validation_fraction
        ====================================================  =====================

        and a change on the right is an error.
    callbacks : sequence or None, default=None
        Callbacks of skorch, or (name, callback) pairs; copied at each fit, unless
        they cannot be. They can monitor "train_loss", "margin", "kl",
        "reconstruction" and, with a `validation_fraction`, "validation_loss" and
        "validation_margin", for example ``EarlyStopping("validation_loss",
        load_best=True)`` for the weights of the best epoch.
    verbose : int, default=0
        Above 0 for a progress bar that shows loss and margin.
    random_state : int, RandomState instance or None, default=None
        Seeds teacher, initial weights, batches and drawn codes. An int gives the same
        model at every fit on the same CPU and number of threads. The generators of
        torch and NumPy are left as they were.

    Attributes
    ----------
    teacher_ : estimator or None
        The fitted teacher; None after a fit with `teacher_proba`.
    vertices_ : ndarray of shape (n_components, latent_dim)
        S.
    witness_scale_ : float
        beta.
    net_ : skorch.NeuralNet
        The trained net; its `module_` is a :class:`skvaecert.networks.VAE`.
    history_ : list of dict
        One dict an epoch, over all warm fits: "epoch"; means over its batches of
        "loss", "reconstruction" and "kl"; "margin", "alignment_loss" and
        "teacher_information" at its end on a fixed part of the rows (at most a
        quarter in lots of 256, at least 256, at most 8,192); "kl_weight",
        "alignment_weight"; "seconds". With rows held out also "validation_loss"
        (minus the mean ELBO), "validation_margin" and "validation_information".
        ``pandas.DataFrame`` takes it.
    prefit_alpha_ : float
        alpha of the regression that the first fit began with, if it did.
    n_iter_ : int
        Epochs completed by the last fit.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen in :meth:`fit`, if they are all strings.

    See Also
    --------
    CollapseCertifier : Certifies this and other encoders.
    GMMTeacher : The default teacher.

    References
    ----------
    Theory section 11 (RST); arXiv:2605.18224, arXiv:2605.05813.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> vae.fit_transform(X).shape
    (150, 2)
    >>> vae.history_[-1]["margin"] > 0.5
    True
    """

    _nested_defaults: ClassVar = {"teacher": GMMTeacher}

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "teacher": [
            HasMethods(["get_params", "fit", "predict_proba"]),
            HasMethods(["get_params", "fit", "transform"]),
            None,
        ],
        "latent_dim": [Interval(Integral, 1, None, closed="left")],
        "hidden_sizes": ["array-like"],
        "encoder": [StrOptions({"conv"}), torch.nn.Module, callable, None],
        "decoder": [StrOptions({"conv"}), torch.nn.Module, callable, None],
        "image_shape": ["array-like", None],
        "likelihood": [StrOptions({"gaussian", "bernoulli"})],
        "objective": [Objective, None],
        "alignment_weight": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
        ],
        "target_margin": [Interval(Real, 0, 1, closed="neither")],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "prefit_alpha": [Interval(Real, 0, None, closed="neither"), None],
        "prefit_energy": [Interval(Real, 0, None, closed="neither"), None],
        "prefit_epochs": [Interval(Integral, 1, None, closed="left")],
        "witness_scale": [
            StrOptions({"prior"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "memory": [str, HasMethods(["cache"]), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "torch_compile": ["boolean", str],
        "autocast": ["boolean"],
        "device": [str],
        "accelerate": ["boolean"],
        "warm_start": ["boolean"],
        "callbacks": [list, tuple, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        teacher: BaseEstimator | None = None,
        *,
        latent_dim: int = 16,
        hidden_sizes: Sequence[int] = (128, 128),
        encoder: ModuleOrFactory | str | None = None,
        decoder: ModuleOrFactory | str | None = None,
        image_shape: Sequence[int] | None = None,
        likelihood: str = "gaussian",
        objective: Objective | None = None,
        alignment_weight: float | str = 10.0,
        target_margin: float = 0.6,
        kl_weight: float = 1.0,
        prefit_alpha: float | None = None,
        prefit_energy: float | None = None,
        prefit_epochs: int = 10,
        witness_scale: str | float = "prior",
        memory: Any = None,
        max_epochs: int = 100,
        batch_size: int | str = "auto",
        learning_rate: float = 1e-3,
        validation_fraction: float | None = None,
        torch_compile: bool | str = False,
        autocast: bool = False,
        device: str = "auto",
        accelerate: bool = False,
        warm_start: bool = False,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.teacher = teacher
        self.latent_dim = latent_dim
        self.hidden_sizes = hidden_sizes
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = image_shape
        self.likelihood = likelihood
        self.objective = objective
        self.alignment_weight = alignment_weight
        self.target_margin = target_margin
        self.kl_weight = kl_weight
        self.prefit_alpha = prefit_alpha
        self.prefit_energy = prefit_energy
        self.prefit_epochs = prefit_epochs
        self.witness_scale = witness_scale
        self.memory = memory
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.torch_compile = torch_compile
        self.autocast = autocast
        self.device = device
        self.accelerate = accelerate
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Fit the teacher, then train for `max_epochs`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, at least two. Memory maps and
            :class:`skvaecert.datasets.DatasetSamples` are read batch by batch.
        y : Ignored
            In a pipeline this is the class label, which must not leak into the code.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.

        Returns
        -------
        self : CertifiedVAE
            The fitted estimator.

        Raises
        ------
        ValueError
            If data or parameters are not valid; an earlier fit stays usable.
        NonFiniteLossError
            If the loss or the weights became infinite or not a number. The weights of
            the last completed epoch are kept, or those of an earlier fit if there is
            one.

        Warns
        -----
        InterruptedFitWarning
            If Ctrl-C ended training after at least one epoch. The model is that of
            the epochs completed.
        UnreachedMarginWarning
            If ``alignment_weight="auto"`` left the relative margin more than 0.05
            below `target_margin`.
        """
        warm = self.warm_start and hasattr(self, "net_")
        tasks = FitTasks(self, X, y, self.max_epochs)
        data = self._fit(X, teacher_proba, tasks, warm=warm, n_epochs=self.max_epochs)
        self._warn_of_interruption(self.max_epochs)
        self._warn_of_margin(data)
        return self

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Train for one more epoch; the first call fits the teacher.

        An int `random_state` draws other batches and codes at every call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, at least two; may differ from those of earlier calls.
        y : Ignored
            Present by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.

        Returns
        -------
        self : CertifiedVAE
            The fitted estimator.
        """
        tasks = FitTasks(self, X, y, n_parts=1)
        warm = hasattr(self, "net_")
        self._fit(X, teacher_proba, tasks, warm=warm, n_epochs=1)
        self._warn_of_interruption(1)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the latent means mu(x), which do not depend on the other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            Computed in float32, returned in the dtype of `X`.
        """
        check_is_fitted(self)
        rows = open_samples(self, X, reset=False)
        dtype = np.float32 if rows.dtype == np.float32 else np.float64
        return self._means(rows).astype(dtype, copy=False)

    def encode(self, X: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return mean and standard deviation of the posterior q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        latent_mean, latent_std : ndarray of shape (n_samples, latent_dim)
            mu(x), as :meth:`transform` returns it, and sigma(x), above 0.
        """
        check_is_fitted(self)
        rows = open_samples(self, X, reset=False)
        dtype = np.float32 if rows.dtype == np.float32 else np.float64
        both = posterior(self.net_, self._standard(rows))
        mean, deviation = np.split(both.astype(dtype, copy=False), 2, axis=1)
        return mean, deviation

    def inverse_transform(self, Z: ArrayLike) -> NDArray[np.floating]:
        """Return the decoder mean E[x|z] of codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Rows, in the units of `X`.
        """
        check_is_fitted(self)
        codes = check_array(Z, dtype=[np.float64, np.float32], input_name="Z")
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z must have latent_dim={self._n_features_out} columns, got "
                f"{codes.shape[1]}."
            )
        output = decode(self.net_, torch.from_numpy(codes.astype(np.float32)))
        if self.net_.criterion_.likelihood == "bernoulli":
            output = expit(output)
        return self._standardisation.undo(output).astype(codes.dtype)

    def sample(
        self,
        n_samples: int = 1,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[np.floating]:
        """Draw codes from the prior N(0, I) and return their decoder means.

        Parameters
        ----------
        n_samples : int, default=1
            Rows to draw, at least 1.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None for a different one at each call.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Rows, in the units of `X`.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
        shape = (n_samples, self._n_features_out)
        codes = check_random_state(random_state).standard_normal(shape)
        return self.inverse_transform(codes)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean evidence lower bound, E[log p(x|z)] - KL(q(z|x) || N(0, I)).

        One code is drawn for each row, with a fixed seed; `kl_weight` plays no part.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present by convention.

        Returns
        -------
        float
            Nats a sample, greater is better; for the Gaussian likelihood of density,
            in the units of `X`.
        """
        check_is_fitted(self)
        rows = open_samples(self, X, reset=False)
        with seeded(0, torch.device(self.net_.device)):
            bounds = [
                evidence_bound(self.net_, self._standardisation.apply(chunk))
                for chunk in self._in_range(rows)
            ]
        return float(np.concatenate(bounds).mean(dtype=np.float64) - self._units)

    def witness_log_proba(self, X: ArrayLike) -> Floats:
        """Return log softmax(beta S mu(x)), what the witness reads off the code.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Natural logarithms, in float64.
        """
        means = np.asarray(self.transform(X))
        return witness_log_proba(means, self.vertices_, self.witness_scale_)

    def forecast(
        self,
        X: ArrayLike,
        *,
        ratio: ArrayLike | None = None,
        teacher_proba: ArrayLike | None = None,
    ) -> ForecastCurve:
        """Forecast margin and energy from the teacher alone; nothing is trained.

        An unfitted estimator stays as it is: the teacher is fitted as :meth:`fit` would
        do it, on the rows that it would train on, used and dropped. With an int
        `random_state` it is the teacher that :meth:`fit` will have, and with `memory`
        it is fitted once for both. A fitted estimator takes `teacher_` and
        `witness_scale_`; weights are those that are set now.

        Reconstruction is left aside: this is no bound on the margin of a training.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        ratio : float or array-like of shape (n_ratios,), default=None
            alignment_weight / kl_weight, at least 0; 37 from 0.01 to 10,000 when None.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.

        Returns
        -------
        ForecastCurve
            Margin and energy at each ratio and at the weights of this estimator.

        Raises
        ------
        ValueError
            If data or parameters are not valid, or `objective` is given, since the
            forecast is of the KL term.

        See Also
        --------
        skvaecert.forecast.forecast_margin : What is computed.
        skvaecert.plotting.ForecastDisplay : Draws it.

        References
        ----------
        Theory section 9.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvaecert import CertifiedVAE, GMMTeacher
        >>> vae = CertifiedVAE(GMMTeacher(n_components=3), random_state=0)
        >>> curve = vae.forecast(load_iris().data)
        >>> curve.operating_ratio
        10.0
        >>> curve.operating_margin / curve.teacher_information > 0.9
        True
        """
        self._validate_params()
        if self.objective is not None:
            raise ValueError(
                "objective must be None for a forecast, which is of the KL term, got "
                f"{self.objective!r}."
            )
        fitted = hasattr(self, "net_")
        given = self._known_targets if fitted else self._coming_targets
        proba, scale = given(X, teacher_proba)
        return self._curve(proba, scale, _RATIOS if ratio is None else ratio)

    def escape_report(
        self, X: ArrayLike, *, teacher_proba: ArrayLike | None = None
    ) -> EscapeReport:
        """Tell whether the alignment loss can move the means apart, and if not, why.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.

        Returns
        -------
        EscapeReport
            Verdict, forces, norm of the gradient and dead units; prints as a sentence.

        Raises
        ------
        ValueError
            If rows or posteriors are not valid.

        Notes
        -----
        It takes four passes through the encoder, some rows at a time, and leaves the
        net as it was.

        References
        ----------
        Theory section 4; arXiv:2605.18224.
        """
        check_is_fitted(self)
        rows = open_samples(self, X, reset=False)
        proba = self._posterior(X, teacher_proba, len(rows))
        device = torch.device(self.net_.device)
        # An encoder of one's own may draw, also in evaluation mode.
        with seeded(0, device), as_it_was(self.net_.module_):
            means = self._means(rows).astype(np.float64)
            return report_escape(
                self.net_.module_,
                self._chunks(rows, device),
                means,
                proba,
                self.vertices_,
                self.witness_scale_,
            )

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that the dtype is kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.vertices_.shape[1]

    def _fit(
        self,
        X: ArrayLike,
        teacher_proba: ArrayLike | None,
        tasks: FitTasks,
        *,
        warm: bool,
        n_epochs: int,
    ) -> _Data:
        with restored_on_error(self, unless=self._keeps_progress()):
            rows = open_samples(self, X, reset=not warm, ensure_min_samples=2)
            processes = join_processes(self.accelerate, self.device)
            teacher_seed, seed, split_seed = processes.first(self._seeds())
            before = Snapshot(self.net_) if warm else None
            if warm:
                self._check_unchanged()
            else:
                self._split_seed = split_seed
            self._check_early()
            if processes.n_processes > 1:
                self._check_shareable(processes, before)
                self._check_alike(processes, before, rows, teacher_proba)
            training, held_out = self._split(len(rows))
            if not warm:
                self._begin(X, rows, teacher_proba, training, teacher_seed)
                for name in ("teacher_", "_standardisation"):
                    setattr(self, name, processes.first(getattr(self, name)))
            proba = self._targets(X, teacher_proba, len(rows))
            data = _Data.cut(rows, proba, training, held_out)
            # A warm fit draws other batches and codes than the epochs before it.
            n_before = before.n_epochs if before is not None else 0
            device = resolve_device(processes.device_name(self.device))
            with seeded((seed + n_before) % _SEEDS, device):
                if warm:
                    self._resume(data, n_epochs)
                else:
                    self._build(data, device, n_epochs)
                self._train(data, tasks, before, processes)
        tasks.end_fit()
        return data

    def _seeds(self) -> tuple[int, ...]:
        # Seeds of their own, so that the teacher is the same whatever is drawn.
        random_state = check_random_state(self.random_state)
        return tuple(map(int, random_state.randint(_SEEDS, size=3)))

    def _known_targets(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> tuple[Floats, float]:
        """Return posteriors and witness scale of a fitted estimator."""
        rows = open_samples(self, X, reset=False)
        proba = self._posterior(X, teacher_proba, len(rows))
        return proba, self.witness_scale_

    def _coming_targets(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> tuple[Floats, float]:
        """Return posteriors and witness scale as a fit will have them."""
        # What is fitted is set on a copy; the user's generator is not drawn from.
        vae = copy.copy(self)
        vae.random_state = copy.deepcopy(self.random_state)
        rows = open_samples(vae, X, reset=True, ensure_min_samples=2)
        teacher_seed, _, vae._split_seed = vae._seeds()
        vae._check_early()
        training, _ = vae._split(len(rows))
        vae._begin(X, rows, teacher_proba, training, teacher_seed)
        proba = lazy_part(vae._targets(X, teacher_proba, len(rows)), training)
        simplex_vertices(proba.shape[1], self.latent_dim)  # does it fit?
        return proba, resolve_witness_scale(self.witness_scale, proba)

    def _curve(self, proba: Floats, scale: float, ratio: ArrayLike) -> ForecastCurve:
        ratios = np.atleast_1d(np.asarray(ratio, dtype=np.float64))
        margins, energies = forecast_margin(proba, scale, ratios)
        operating = self._operating_ratio(proba, scale)
        point = Forecast(np.nan, np.nan)
        if not np.isnan(operating):
            point = forecast_margin(proba, scale, operating)
        return ForecastCurve(
            ratio=ratios,
            margin=np.asarray(margins),
            energy=np.asarray(energies),
            teacher_information=teacher_information(proba),
            operating_ratio=operating,
            operating_margin=float(point.margin),
            operating_energy=float(point.energy),
            target_margin=self.target_margin if self._guarded else None,
        )

    def _operating_ratio(self, proba: Floats, scale: float) -> float:
        if self._guarded:
            return ratio_for_margin(proba, scale, self.target_margin)
        if self.kl_weight > 0:
            return float(self.alignment_weight) / self.kl_weight
        return np.inf if float(self.alignment_weight) > 0 else np.nan

    @property
    def _guarded(self) -> bool:
        return self.alignment_weight == "auto"

    def _begin(
        self,
        X: ArrayLike,
        rows: Any,
        teacher_proba: ArrayLike | None,
        training: Index,
        teacher_seed: int,
    ) -> None:
        """Set up what comes before the network and what a warm start keeps of it."""
        self._standardisation = self._standardise(lazy_part(rows, training))
        self.teacher_ = None
        if teacher_proba is None:
            self.teacher_ = self._fit_teacher(lazy_part(X, training), teacher_seed)

    def _check_early(self) -> None:
        """Find what is wrong before a teacher is fitted, which may take long."""
        if self.prefit_alpha is not None and self.prefit_energy is not None:
            raise ValueError(
                "prefit_energy must be None where prefit_alpha is given, got "
                f"prefit_alpha={self.prefit_alpha}, prefit_energy={self.prefit_energy}."
            )
        check_callbacks(self.callbacks)
        for name, given in (("encoder", self.encoder), ("decoder", self.decoder)):
            if isinstance(given, str):
                check_image_shape(name, given, self.image_shape, self.n_features_in_)

    def _check_shareable(self, processes: Processes, before: Snapshot | None) -> None:
        """Find what several processes cannot train."""
        if not self._own_objective().trains_jointly:
            raise ValueError(
                "objective must train encoder and decoder together where "
                f"accelerate=True shares the batches, got {self.objective!r}, which "
                "trains the encoder alone in between. Use another objective."
            )
        device = processes.device_name(self.device)
        if before is not None and device != self.net_.device:
            raise ValueError(
                "accelerate must stay as it was in the fit that warm_start continues: "
                f"its net is on {self.net_.device}, that of this process would be on "
                f"{device}."
            )

    def _check_alike(
        self,
        processes: Processes,
        before: Snapshot | None,
        rows: Any,
        teacher_proba: ArrayLike | None,
    ) -> None:
        """Fail if processes were not all given the same, as far as looked at."""
        params = self.get_params(deep=False).items()
        alike = {k: v for k, v in params if isinstance(v, bool | Real | str)}
        for name in _OWN_TO_PROCESSES:
            alike.pop(name, None)
        n_epochs = None if before is None else before.n_epochs
        sample = np.linspace(0, len(rows) - 1, _COMPARED).astype(np.intp)
        given = None if teacher_proba is None else np.asarray(teacher_proba)
        same = alike, n_epochs, rows.shape, np.asarray(rows[sample]), given
        if not processes.agree_on(same):
            raise ValueError(
                "X, teacher_proba and parameters must be the same on all "
                f"{processes.n_processes} processes, and so must be what warm_start "
                "continues; got others. Give every process all rows, in the same "
                "order: accelerate=True shares them out."
            )

    def _split(self, n_samples: int) -> tuple[Index, Index]:
        """Return which rows to train on and which to hold out; None for all and none.

        A warm fit holds out the rows that the first one did.
        """
        if self.validation_fraction is None:
            return None, None
        n_held = round(self.validation_fraction * n_samples)
        if n_held < 1 or n_samples - n_held < 2:
            raise ValueError(
                "validation_fraction must leave at least two rows to train on and one "
                f"to validate on, got {self.validation_fraction} of {n_samples} rows."
            )
        order = np.random.default_rng(self._split_seed).permutation(n_samples)
        return np.sort(order[n_held:]), np.sort(order[:n_held])

    def _fit_teacher(self, X: ArrayLike, seed: int) -> BaseEstimator:
        teacher = GMMTeacher() if self.teacher is None else clone(self.teacher)
        if self.random_state is not None:
            seed_unset(teacher, seed)
        _check_room(teacher, self.latent_dim)
        fit = check_memory(self.memory).cache(_fitted)
        return shared_call(_generators, fit, teacher, X)

    def _targets(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int
    ) -> Floats:
        if teacher_proba is not None and self.teacher_ is not None:
            raise ValueError(
                "teacher_proba must be left out: warm_start continues a fit with the "
                "teacher in teacher_, which stays."
            )
        return posterior_of(self.teacher_, X, teacher_proba, n_samples=n_samples)

    def _build(self, data: _Data, device: torch.device, n_epochs: int) -> None:
        """Set up everything that a warm start keeps."""
        self.vertices_ = simplex_vertices(data.proba.shape[1], self.latent_dim)
        self.witness_scale_ = resolve_witness_scale(self.witness_scale, data.proba)
        self._structure = self._fingerprints()
        self.net_ = self._make_net(
            self._make_module(),
            device,
            kl_weight=self.kl_weight,
            alignment_weight=self._alignment(data, device),
            **self._settings(n_epochs, len(data.proba)),
        )
        self._prefit(data)

    def _make_module(self) -> VAE:
        objective = self._own_objective()
        objective.check(self.likelihood)
        return make_vae(
            self.n_features_in_,
            self.latent_dim,
            _check_hidden_sizes(self.hidden_sizes),
            self.encoder,
            self.decoder,
            objective.posterior(self.latent_dim),
            self.image_shape,
        )

    def _make_net(
        self,
        vae: VAE,
        device: torch.device,
        *,
        kl_weight: float,
        alignment_weight: float | LagrangeWeight,
        **settings: Any,
    ) -> VAENet:
        return make_net(
            vae,
            device=device,
            vertices=self.vertices_,
            criterion__likelihood=self.likelihood,
            criterion__objective=self._own_objective(),
            criterion__scale=self.witness_scale_,
            criterion__kl_weight=kl_weight,
            criterion__alignment_weight=alignment_weight,
            **settings,
        )

    def _own_objective(self) -> Objective:
        return Objective() if self.objective is None else clone(self.objective)

    def _resume(self, data: _Data, n_epochs: int) -> None:
        n_components = len(self.vertices_)
        if data.proba.shape[1] != n_components:
            raise ValueError(
                f"teacher_proba must keep the {n_components} components of the fit it "
                f"continues, got {data.proba.shape[1]}."
            )
        earlier = self.net_.criterion_.guard
        alignment = self._alignment(data, torch.device(self.net_.device), earlier)
        resume_net(
            self.net_,
            kl_weight=self.kl_weight,
            alignment_weight=alignment,
            **self._settings(n_epochs, len(data.proba)),
        )

    def _settings(self, n_epochs: int, n_samples: int) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "batch_size": resolve_batch_size(self.batch_size, n_samples),
            "max_epochs": n_epochs,
            "callbacks": self.callbacks,
            "verbose": self.verbose,
            "forward_backend": self._forward_backend,
            "autocast": self.autocast,
        }

    def _alignment(
        self, data: _Data, device: torch.device, earlier: LagrangeWeight | None = None
    ) -> float | LagrangeWeight:
        if not self._guarded:
            return float(self.alignment_weight)
        information = teacher_information(data.steering[1])
        if information >= _NO_INFORMATION:
            guard = LagrangeWeight(self.target_margin, information, device)
            if earlier is not None:
                guard.resume_from(earlier)
            return guard
        if earlier is not None:  # a chunk of a stream may be all alike
            return earlier
        raise ValueError(
            "alignment_weight must be a number for this teacher, got 'auto': its "
            "posterior is the same for all rows, so there is no margin to hold."
        )

    def _prefit(self, data: _Data) -> None:
        """Begin with a regression on the scaled analytic code (theory section 11)."""
        self.__dict__.pop("prefit_alpha_", None)
        if self.prefit_alpha is None and self.prefit_energy is None:
            return
        self.prefit_alpha_ = self._resolve_alpha(data.proba)
        codes = analytic_code(data.proba, self.vertices_, self.witness_scale_)
        dataset = self._training_set(data.rows, self.prefit_alpha_ * codes)
        prefit(self.net_, dataset, self.prefit_epochs)

    def _resolve_alpha(self, proba: Floats) -> float:
        if self.prefit_energy is None:
            return float(self.prefit_alpha or 0.0)
        energy = analytic_energy(proba, self.witness_scale_)
        # A teacher that tells nothing apart has codes that cost nothing.
        return min(1.0, float(np.sqrt(self.prefit_energy / max(energy, 1e-300))))

    def _standardise(self, rows: Any) -> Standardisation:
        chunks = read_samples(self, rows)
        if self.likelihood == "gaussian":
            return Standardisation.to_unit_variance(chunks)
        extremes = np.array([(chunk.min(), chunk.max()) for chunk in chunks])
        # Bytes are taken for intensities, unless they are zeros and ones.
        unit = 255.0 if rows.dtype == np.uint8 and extremes.max() > 1 else 1.0
        _check_range(extremes / unit)
        return Standardisation(np.zeros(rows.shape[1]), unit)

    def _in_range(self, rows: Any) -> Iterator[NDArray[np.floating]]:
        """Yield rows that the likelihood can be computed for, some at a time."""
        bernoulli = self.net_.criterion_.likelihood == "bernoulli"
        for chunk in read_samples(self, rows):
            if bernoulli:
                _check_range(chunk / self._standardisation.scale)
            yield chunk

    def _training_set(
        self, rows: Any, targets: Floats, held_out: TrainingSet | None = None
    ) -> TrainingSet:
        device = torch.device(self.net_.device)
        tensor = torch.from_numpy(targets.astype(np.float32)).to(device)
        return TrainingSet(self._on_device(rows, device), tensor, held_out)

    def _on_device(self, rows: Any, device: torch.device) -> Rows:
        """Bring rows to the device, bytes as they are, but for those on the disk."""
        chunks = self._in_range(rows)
        if isinstance(rows, np.memmap | DatasetSamples):
            deque(chunks, maxlen=0)  # look at all of them before the first epoch
            return Streamed(rows, self._standardisation, device)
        if rows.dtype == np.uint8:
            return Resident(torch.tensor(rows, device=device), self._standardisation)
        return Resident.filled(rows.shape, chunks, self._standardisation, device)

    def _train(
        self,
        data: _Data,
        tasks: FitTasks,
        before: Snapshot | None,
        processes: Processes,
    ) -> None:
        """Train; a fit that goes on from `before` returns to it on an error."""
        held_out = None
        if data.held_proba is not None:
            held_out = self._training_set(data.held_rows, data.held_proba)
        dataset = self._training_set(data.rows, data.proba, held_out)
        n_earlier = 0 if before is None else before.n_epochs
        try:
            train(self.net_, dataset, _Epochs(self, tasks), processes)
            self._take_history(n_earlier)
        except BaseException:
            if before is not None:
                before.restore(self.net_)
            self._take_history(n_earlier)
            raise

    @property
    def _forward_backend(self) -> str | None:
        if isinstance(self.torch_compile, str):
            return self.torch_compile
        return "inductor" if self.torch_compile else None

    @property
    def _units(self) -> float:
        """What densities of standardised rows lack, nats; Bernoulli has none."""
        if self.net_.criterion_.likelihood == "bernoulli":
            return 0.0
        n_features = len(self._standardisation.location)
        return float(n_features * np.log(self._standardisation.scale))

    def _take_history(self, n_earlier: int) -> None:
        self.history_ = self._history()
        self.n_iter_ = len(self.history_) - n_earlier

    def _history(self) -> list[dict[str, float]]:
        complete = [row for row in self.net_.history if "seconds" in row]
        return [_history_row(row, self._units) for row in complete]

    def _means(self, rows: Any) -> NDArray[np.float32]:
        return encode(self.net_, self._standard(rows))

    def _standard(self, rows: Any) -> Iterator[torch.Tensor]:
        """Yield standardised rows; look closer only where something is wrong."""
        for chunk in raw_chunks(rows):
            try:
                yield self._standardisation.apply(chunk)
            except ValueError:
                deque(read_samples(self, chunk), maxlen=0)  # its errors say more
                raise

    def _chunks(self, rows: Any, device: torch.device) -> Iterator[torch.Tensor]:
        for chunk in self._standard(rows):
            for part in chunk.split(CHUNK):
                yield part.to(device)

    def _posterior(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int
    ) -> Floats:
        """Return posteriors that fit the witness as it is."""
        return posterior_of(
            self.teacher_,
            X,
            teacher_proba,
            n_samples=n_samples,
            n_components=len(self.vertices_),
        )

    def _warn_of_interruption(self, n_epochs: int) -> None:
        if self.net_.interrupted_:
            # From here to the caller of fit or partial_fit.
            stacklevel = 3 + FIT_WRAPPERS
            warnings.warn(self._interruption(n_epochs), stacklevel=stacklevel)

    def _warn_of_margin(self, data: _Data) -> None:
        if not self._guarded or self.net_.interrupted_:
            return
        if teacher_information(data.steering[1]) < _NO_INFORMATION:
            return  # nothing to reach on rows that are all alike
        reached = self._relative_margin(*data.steering)
        if reached < self.target_margin - _GUARD_SLACK:
            stacklevel = 3 + FIT_WRAPPERS
            warnings.warn(self._unreached(reached), stacklevel=stacklevel)

    def _relative_margin(self, rows: Any, proba: Floats) -> float:
        means = self._means(rows)
        log_q = witness_log_proba(means, self.vertices_, self.witness_scale_)
        return collapse_margin(proba, log_q) / teacher_information(proba)

    def _unreached(self, reached: float) -> UnreachedMarginWarning:
        weight = float(self.net_.criterion_.alignment_weight)
        return UnreachedMarginWarning(
            f"The guard reached a relative margin of {reached:.3f} in {self.n_iter_} "
            f"epochs, not target_margin={self.target_margin}; its weight stands at "
            f"{weight:.3g}. Fit on with warm_start=True or use more max_epochs; if the "
            "margin has stopped rising, use a lower target_margin or kl_weight."
        )

    def _keeps_progress(self) -> Callable[[BaseException], bool]:
        """Keep the finite epochs of a first fit: there is nothing to go back to."""
        first = not hasattr(self, "net_")
        return lambda error: (
            first and isinstance(error, NonFiniteLossError) and self.n_iter_ > 0
        )

    def _check_unchanged(self) -> None:
        now = self._fingerprints()
        known = self._structure
        names = [n for n in now | known if now.get(n) != known.get(n)]
        if names:
            name = min(names, key=len)  # teacher, if that is another, before its parts
            raise ValueError(
                f"{name} must stay as it was in the fit that warm_start continues, got "
                f"{self.get_params().get(name)!r}. Set it back, or set "
                "warm_start=False to train from the beginning."
            )

    def _fingerprints(self) -> dict[str, str]:
        """Return what a warm start must find unchanged, by name of parameter."""
        teacher = GMMTeacher() if self.teacher is None else self.teacher
        fixed = {name: getattr(self, name) for name in _FIXED}
        fixed["hidden_sizes"] = _check_hidden_sizes(self.hidden_sizes)
        prints = {name: fingerprint(value) for name, value in fixed.items()}
        return prints | fingerprints("teacher", teacher)

    def _interruption(self, n_epochs: int) -> InterruptedFitWarning:
        return InterruptedFitWarning(
            f"Training was interrupted: the model is that of {self.n_iter_} completed "
            f"epochs out of {n_epochs}. To go on from it, set warm_start=True and fit "
            "again."
        )


class _Epochs:
    """Passes epochs on to scikit-learn's callbacks, with the VAE as it is then."""

    def __init__(self, vae: CertifiedVAE, tasks: FitTasks) -> None:
        self.vae = vae
        self.tasks = tasks
        self.watched = tasks.watched

    def begin(self) -> None:
        self.tasks.begin("epoch")

    def end(self) -> bool:
        return self.tasks.end(lambda: {"history_": self.vae._history()})


def _check_room(teacher: BaseEstimator, latent_dim: int) -> None:
    """Fail before a search that may end with too many components, not after it."""
    if not isinstance(teacher, GMMTeacher) or np.ndim(teacher.n_components) != 1:
        return
    most = max(counts_of("n_components", teacher.n_components))
    if most > latent_dim + 1:
        raise ValueError(
            f"latent_dim must be at least {most - 1}, so that the simplex fits for any "
            f"n_components of the teacher's search, {teacher.n_components!r}; got "
            f"{latent_dim}. Raise latent_dim or search fewer components."
        )


def _generators() -> tuple[Any, ...]:
    """Return the states of what an unseeded teacher may draw from."""
    numpy_state = check_random_state(None).get_state()
    return random.getstate(), numpy_state, torch.get_rng_state().numpy()


def _fitted(teacher: Any, X: ArrayLike) -> Any:
    """Fit a teacher; a function of its own, so that joblib can cache it."""
    # A search that was cut short must not end in the cache.
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterruptedFitWarning)
        try:
            # FrozenEstimator.fit asks for y; some return nothing.
            teacher.fit(X, None)
        except InterruptedFitWarning as warning:
            raise KeyboardInterrupt from warning
    return teacher


def _check_range(rows: NDArray[np.floating]) -> None:
    low, high = -_RANGE_SLACK, 1 + _RANGE_SLACK
    if not low <= rows.min() <= rows.max() <= high:
        raise ValueError(
            "X must lie in [0, 1] for likelihood='bernoulli', got values from "
            f"{rows.min():.6g} to {rows.max():.6g}. Scale X, for example with "
            "MinMaxScaler(clip=True), or use likelihood='gaussian'."
        )


def _check_hidden_sizes(hidden_sizes: Sequence[int]) -> tuple[int, ...]:
    if not all(isinstance(size, Integral) and size > 0 for size in hidden_sizes):
        raise ValueError(
            f"hidden_sizes must be integers above 0, got {tuple(hidden_sizes)!r}."
        )
    return tuple(int(size) for size in hidden_sizes)


def _history_row(row: dict[str, Any], units: float) -> dict[str, float]:
    renamed = {new: row[old] for old, new in _HISTORY.items()}
    renamed |= {name: row[name] for name in _VALIDATION if name in row}
    # Losses are of density: back in the units of X.
    for name in ("loss", "reconstruction", "validation_loss"):
        if name in renamed:
            renamed[name] += units
    return renamed
