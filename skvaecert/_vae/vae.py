"""CertifiedVAE: a variational autoencoder that is aligned with a teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

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
from sklearn.utils.validation import check_is_fitted

from skvaecert._estimator import (
    CallbackSupportMixin,
    FitTasks,
    HTMLMixin,
    NestedDefaultMixin,
    VersionedMixin,
    check_unchanged,
    interrupted,
    remember_params,
    restored_on_error,
    warn_user,
    with_callbacks,
)
from skvaecert._posterior import posterior_of
from skvaecert._samples import CHUNK, Index, lazy_part, open_samples
from skvaecert._state import held, put
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._training.batches import Standardization, resolve_batch_size
from skvaecert._training.device import resolve_backend, resolve_device, seeded
from skvaecert._training.inference import decode, encode, evidence_bound, posterior
from skvaecert._training.loop import prefit, train
from skvaecert._training.net import (
    Snapshot,
    VAENet,
    check_callbacks,
    make_net,
    resume_net,
)
from skvaecert._training.state import (
    device_for,
    fill_net,
    filled_module,
    net_state,
    saved_alignment,
)
from skvaecert._vae.data import Data, Preprocessor, fit_standardization, split
from skvaecert._vae.guard import make_guard, warn_if_unreached
from skvaecert._vae.history import Epochs, history_table
from skvaecert._vae.prefit import Prefit
from skvaecert._vae.state import FITTED, check_vae
from skvaecert._vae.teacher import fit_teacher
from skvaecert.escape import EscapeReport, differentiating, report_escape
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.forecast import ForecastCurve, forecast_curve
from skvaecert.networks import (
    VAE,
    ModuleOrFactory,
    bounded,
    check_image_shape,
    make_vae,
)
from skvaecert.objectives import LagrangeWeight, Objective
from skvaecert.simplex import (
    Floats,
    analytic_code,
    check_sample_weight,
    resolve_witness_scale,
    simplex_vertices,
    witness_log_proba,
)

__all__ = ["CertifiedVAE"]


# Exclusive upper bound of seeds, as in scikit-learn.
_SEEDS = 2**31 - 1
_TARGET_MARGIN = 0.6


class CertifiedVAE(
    VersionedMixin,
    CallbackSupportMixin,
    HTMLMixin,
    NestedDefaultMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Variational autoencoder (VAE) whose latent mean is aligned with a teacher.

    Use it to keep a VAE from collapsing, or to rescue a collapsed VAE. The teacher's
    posterior T(k|x) assigns samples to soft clusters. The alignment loss A(x) measures
    how far the clusters that are read off the latent mean mu(x) are from T. Minimizing
    it keeps the means of different clusters apart.
    :meth:`fit` minimizes, as a mean over samples and in nats::

        -log p(x|z) + kl_weight * KL(q(z|x) || N(0, I)) + alignment_weight * A(x)
        A(x) = KL(T(k|x) || softmax(beta S mu(x)))

    S is a fixed simplex and beta the witness scale. The softmax is the witness: it has
    no trained parameters and depends on the latent mean only. With
    ``alignment_weight=0`` this is a plain VAE, and with another `kl_weight` a beta-VAE.

    The VAE is a transformer: :meth:`transform` returns latent means. Use
    :class:`CollapseCertifier` to find out whether a fitted VAE has collapsed.

    Parameters
    ----------
    teacher : estimator or None, default=None
        Estimator whose `predict_proba`, or else `transform`, returns T. :meth:`fit`
        fits a clone of it, unless it is wrapped in
        :class:`sklearn.frozen.FrozenEstimator`. None uses ``GMMTeacher()``. If the
        `random_state` of the teacher is None, the teacher is seeded from the
        `random_state` of the VAE.
    latent_dim : int, default=16
        d, the number of latent dimensions, at least K - 1 for a teacher with K
        components.
    hidden_sizes : sequence of int, default=(128, 128)
        The ith element is the number of units in the ith hidden layer of the encoder.
        The decoder has the same layers in reverse order. With "conv" these are the
        fully connected layers between the convolutions and the code.
    encoder, decoder : torch.nn.Module, callable, "conv" or None, default=None
        The networks. None uses fully connected layers. "conv" uses
        :func:`skvaecert.networks.conv_encoder` and
        :func:`skvaecert.networks.conv_decoder` on images of `image_shape`. A module is
        copied with its weights. A class or function is called with (n_features,
        latent_dim) and returns a module. The encoder maps (n, n_features) to
        (n, 2 * latent_dim), means and then raw log-variances. The decoder maps
        (n, latent_dim) to (n, n_features). With the Gaussian likelihood both work on
        standardized samples: the mean of each feature is subtracted, and all features
        are divided by the same scale.
    image_shape : sequence of int or None, default=None
        Shape of an image, (channels, height, width), with height and width above 4. It
        is used by "conv" and by plots of reconstructions. Samples are images that are
        flattened in this order. Flatten images of shape (height, width, channels) by
        ``images.transpose(0, 3, 1, 2).reshape(len(images), -1)``.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        Likelihood of the decoder. "gaussian" learns one variance for all features and
        takes data of any scale. "bernoulli" takes data in [0, 1], or bytes from 0 to
        255.
    objective : Objective or None, default=None
        Mitigation of collapse from `skvaecert.baselines`, which replaces the KL term or
        another part of the ELBO. None uses the ELBO itself.
    alignment_weight : float or "auto", default=10.0
        Weight of the alignment loss, at least 0. With "auto" the weight is a multiplier
        that training adapts to hold the margin at `target_margin`, or above it where
        that costs nothing: the guard, :class:`skvaecert.objectives.LagrangeWeight`.
    target_margin : float, default=0.6
        Margin that the guard holds, as a share of the teacher information, in (0, 1).
        Used only if `alignment_weight` is "auto".
    kl_weight : float, default=1.0
        Weight of the KL term, at least 0.
    prefit : None, "analytic" or dict, default=None
        Whether a first fit begins with a regression of the latent mean on alpha z*,
        where z* is the analytic code. ``"analytic"`` sets alpha = 1 (RST-prefit).
        ``{"alpha": 0.5}`` sets another alpha above 0. ``{"energy": 4.0}`` sets the
        largest alpha up to 1 at which the energy of the code, the mean of
        ``|alpha z*|**2 / 2``, is at most 4 nats. A dict may also contain "epochs", the
        number of passes over the samples, 10 by default. The `max_epochs` of the
        training come after them.
    witness_scale : "prior" or float, default="prior"
        beta, above 0. "prior" uses the prior-matched scale, at which the analytic code
        has a mean square of 1, averaged over its K - 1 dimensions, as the prior has.
    memory : str, joblib.Memory or None, default=None
        Used to cache fitted teachers, so that a search over other parameters fits the
        teacher of each fold once. If a string is given, it is the path to the caching
        directory. The teacher needs a fixed `random_state`.
    max_epochs : int, default=100
        Number of passes over the samples in one :meth:`fit`.
    batch_size : int or "auto", default="auto"
        Maximum number of samples in a batch. The batches of an epoch differ in size by
        at most one sample. "auto" uses a sixteenth of the samples, but at least 8 and
        at most 128.
    learning_rate : float, default=1e-3
        Step size of Adam, above 0.
    validation_fraction : float or None, default=None
        Proportion of the samples to set aside as validation set, in (0, 1). Neither
        the teacher nor the network is fitted on them. The loss and the margin of these
        samples are recorded after each epoch, and the guard holds their margin. Warm
        starts on the same number of samples set aside the same samples.
    torch_compile : bool or str, default=False
        Whether to run the forward pass through :func:`torch.compile`, or the name of
        the backend to use. It pays off for long trainings of large networks only.
    autocast : bool, default=False
        Whether to train in bfloat16 where torch considers that safe. It is slow on most
        CPUs. After training, means are computed in float32, so that certificates keep
        their meaning.
    device : str, default="auto"
        A torch device, or "auto" for the first available device of cuda, mps and cpu.
    warm_start : bool, default=False
        When set to True, :meth:`fit` continues from the current weights, with the same
        teacher and witness. Otherwise it erases the previous fit. Between warm starts

        ====================================================  =====================
        may change                                            must stay
        ====================================================  =====================
        alignment_weight, target_margin, kl_weight, prefit,   teacher, latent_dim,
        learning_rate, batch_size, max_epochs,                hidden_sizes, encoder,
        callbacks, torch_compile, autocast,                   decoder, image_shape,
        memory, verbose,                                      likelihood, objective,
        random_state                                          witness_scale, device,
                                                              validation_fraction
        ====================================================  =====================

        A change of a parameter on the right raises an error.
    callbacks : sequence or None, default=None
        Callbacks of skorch, or (name, callback) pairs. They can monitor "train_loss",
        "margin", "kl" and "reconstruction". With a `validation_fraction` they can also
        monitor "validation_loss" and "validation_margin": for example,
        ``EarlyStopping("validation_loss", load_best=True)`` keeps the weights of the
        best epoch. :meth:`fit` calls the objects that are passed, not copies. A clone
        of the VAE, as in a search or a :class:`CollapseCertifier`, has clones of them,
        or what their `__sklearn_clone__` returns.
    verbose : int, default=0
        Controls the verbosity: above 0, a progress bar shows loss and margin.
    random_state : int, RandomState instance or None, default=None
        Determines random number generation for the teacher, the initial weights, the
        batches and the drawn codes. Pass an int for reproducible output across multiple
        function calls, on the same CPU and number of threads. Small networks train on
        one thread. The global generators of torch and NumPy are not changed.

    Attributes
    ----------
    teacher_ : estimator or None
        The fitted teacher; None after a fit with `teacher_proba`.
    vertices_ : ndarray of shape (n_components, latent_dim)
        S, the vertices of the simplex.
    witness_scale_ : float
        beta.
    net_ : skorch.NeuralNet
        The trained net. Its `module_` is a :class:`skvaecert.networks.VAE`. After a fit
        its `step_` is "numpy" or "autograd", by what computed the gradients. NumPy
        computes those of fully connected networks on the CPU.
    noise_variance_ : float or None
        Learned variance of the Gaussian likelihood, in squared units of the samples;
        None for "bernoulli".
    history_ : list of dict
        One dict per epoch, over all warm starts; ``pandas.DataFrame`` takes it. "epoch"
        is the number of the epoch. "loss", "reconstruction" and "kl" are means over its
        batches. "margin", "alignment_loss" and "teacher_information" are computed at
        its end on a fixed part of the samples (at most a quarter, in multiples of 256,
        at least 256, at most 8,192). "kl_weight" and "alignment_weight" are the
        weights, and "seconds" is the duration. With a `validation_fraction` there are
        also "validation_loss" (minus the mean ELBO), "validation_margin" and
        "validation_information", and with ``StopWhenCertified(confidence=...)``
        "validation_margin_low".
    prefit_alpha_ : float
        alpha of the regression that the first fit began with. Defined only with
        `prefit`.
    n_iter_ : int
        Number of epochs completed by the last fit.
    n_features_in_ : int
        Number of features seen during :meth:`fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :meth:`fit`. Defined only when `X` has feature
        names that are all strings.

    See Also
    --------
    CollapseCertifier : Certificate and diagnosis of this and other encoders.
    GMMTeacher : The default teacher.
    skvaecert.wrappers.TrainedEncoder : Wrapper for a VAE that was trained elsewhere.

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

    # Parameters that a warm start must not change.
    _fixed: ClassVar = (
        "teacher",
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
        "prefit": [StrOptions({"analytic"}), dict, None],
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
        encoder: ModuleOrFactory | Literal["conv"] | None = None,
        decoder: ModuleOrFactory | Literal["conv"] | None = None,
        image_shape: Sequence[int] | None = None,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        objective: Objective | None = None,
        alignment_weight: float | Literal["auto"] = 10.0,
        target_margin: float = _TARGET_MARGIN,
        kl_weight: float = 1.0,
        prefit: Literal["analytic"] | dict[str, Any] | None = None,
        witness_scale: Literal["prior"] | float = "prior",
        memory: Any = None,
        max_epochs: int = 100,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 1e-3,
        validation_fraction: float | None = None,
        torch_compile: bool | str = False,
        autocast: bool = False,
        device: str = "auto",
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
        self.prefit = prefit
        self.witness_scale = witness_scale
        self.memory = memory
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.torch_compile = torch_compile
        self.autocast = autocast
        self.device = device
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
            Training samples, at least two. Memory maps and
            :class:`skvaecert.datasets.DatasetSamples` are read batch by batch.
        y : Ignored
            Not used, present for API consistency by convention. In a pipeline this is
            the class label, which must not leak into the code.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            The teacher's posteriors, used instead of fitting `teacher`.

        Returns
        -------
        self : CertifiedVAE
            The fitted estimator.

        Raises
        ------
        ValueError
            If data or parameters are not valid. An earlier fit stays usable.
        NonFiniteLossError
            If the loss or the weights become infinite or NaN. The weights of an earlier
            fit are kept, or else those of the last completed epoch.
        KeyboardInterrupt
            On Ctrl-C. The estimator is fitted with the completed epochs, and a fit with
            `warm_start` continues from there. The attribute `estimator` of the error is
            the estimator. Before the first epoch is complete, the estimator is
            unchanged.

        Warns
        -----
        UnreachedMarginWarning
            If ``alignment_weight="auto"`` ends with a relative margin more than 0.05
            below `target_margin`.
        """
        warm = self.warm_start and hasattr(self, "net_")
        tasks = FitTasks(self, X, y, self.max_epochs)
        data = self._fit(X, teacher_proba, tasks, warm=warm, n_epochs=self.max_epochs)
        if self._guarded:
            self._warn_of_margin(data)
        return self

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Train for one more epoch. The first call also fits the teacher.

        With an int `random_state` every call draws different batches and codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples, at least two. They may differ from those of earlier calls.
        y : Ignored
            Not used, present for API consistency by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            The teacher's posteriors, used instead of fitting `teacher`.

        Returns
        -------
        self : CertifiedVAE
            The fitted estimator.
        """
        tasks = FitTasks(self, X, y, n_parts=1)
        warm = hasattr(self, "net_")
        self._fit(X, teacher_proba, tasks, warm=warm, n_epochs=1)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the latent means mu(x).

        The mean of a sample does not depend on the other samples: to the bit with fully
        connected networks, to rounding with your own modules.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, latent_dim)
            Latent means, computed in float32 and returned in the dtype of `X`.
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        return self._means(samples).astype(_float_type(samples), copy=False)

    def encode(self, X: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return means and standard deviations of the encoder's posterior q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        latent_mean, latent_std : ndarray of shape (n_samples, latent_dim)
            mu(x), as :meth:`transform` returns it, and sigma(x). All values of sigma(x)
            are above 0.
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        both = posterior(self.net_, self._preprocessor.standardize(samples))
        mean, deviation = np.split(both.astype(_float_type(samples), copy=False), 2, 1)
        return mean, deviation

    def inverse_transform(self, Z: ArrayLike) -> NDArray[np.floating]:
        """Decode codes: return the mean E[x|z] of the decoder's likelihood.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Codes.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Reconstructed samples, in the units of `X`.
        """
        check_is_fitted(self)
        codes = check_array(Z, dtype=[np.float64, np.float32], input_name="Z")
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z must have latent_dim={self._n_features_out} columns, got "
                f"{codes.shape[1]}."
            )
        output = decode(self.net_, torch.from_numpy(codes.astype(np.float32)))
        # The decoder of the Bernoulli likelihood returns logits.
        if self.net_.criterion_.likelihood == "bernoulli":
            output = expit(output)
        return self._standardization.undo(output).astype(codes.dtype)

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
            Number of samples to generate, at least 1.
        random_state : int, RandomState instance or None, default=None
            Determines random number generation for the codes. Pass an int for
            reproducible output across multiple function calls.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Generated samples, in the units of `X`.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
        shape = (n_samples, self._n_features_out)
        codes = check_random_state(random_state).standard_normal(shape)
        return self.inverse_transform(codes)

    def score(
        self, X: ArrayLike, y: Any = None, *, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the mean evidence lower bound, E[log p(x|z)] - KL(q(z|x) || N(0, I)).

        It is computed from one drawn code per sample, with a fixed seed. `kl_weight` is
        not used.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. None means that all samples have the
            same weight.

        Returns
        -------
        float
            Evidence lower bound in nats per sample; greater is better. For the Gaussian
            likelihood it refers to a density in the units of `X`.
        """
        check_is_fitted(self)
        samples = open_samples(self, X, reset=False)
        inputs = self._preprocessor
        with seeded(0, torch.device(self.net_.device)):
            bounds = [
                evidence_bound(self.net_, inputs.standardization.apply(chunk))
                for chunk in inputs.check(samples)
            ]
        weight = check_sample_weight(sample_weight, len(samples))
        # The network sees standardized samples; log_unit converts the density.
        return float(weight @ np.concatenate(bounds) - inputs.log_unit)

    def witness_log_proba(self, X: ArrayLike) -> Floats:
        """Return log softmax(beta S mu(x)), the log-probabilities of the witness.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Natural logarithms of probabilities, in float64.
        """
        # set_output can make `transform` return a data frame.
        means = np.asarray(self.transform(X))
        return witness_log_proba(means, self.vertices_, self.witness_scale_)

    def forecast(
        self,
        X: ArrayLike,
        *,
        ratio: ArrayLike | None = None,
        teacher_proba: ArrayLike | None = None,
    ) -> ForecastCurve:
        """Forecast margin, energy and collapse, without training the network.

        Margin and energy follow from the teacher alone. The curve also contains the
        `kl_weight` from which collapse is an optimum without alignment. For the
        Gaussian likelihood it contains how many nats a linear VAE keeps at the current
        `kl_weight`.

        An unfitted estimator does not change. A teacher is fitted as :meth:`fit` would
        fit it, on the same training samples, and is then discarded. With an int
        `random_state` this is the teacher of :meth:`fit`, and with `memory` it is
        fitted once for both. A fitted estimator uses `teacher_` and `witness_scale_`.
        The weights are the current parameters.

        The forecast ignores reconstruction, so it is not a bound on the margin that
        training reaches.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        ratio : float or array-like of shape (n_ratios,), default=None
            alignment_weight / kl_weight, at least 0. None uses 37 ratios from 0.01 to
            10,000.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.

        Returns
        -------
        ForecastCurve
            Margin and energy at each ratio and at the weights of this estimator, and
            the `kl_weight` at which collapse becomes an optimum without alignment.

        Raises
        ------
        ValueError
            If data or parameters are not valid, the samples do not vary, or `objective`
            is not None. The forecast covers the KL term only.

        See Also
        --------
        skvaecert.forecast.forecast_margin : The forecast, computed from arrays.
        skvaecert.forecast.collapse_threshold : The threshold without alignment.
        skvaecert.plotting.ForecastDisplay : Plot of the forecast.

        References
        ----------
        Theory sections 9 and 18.

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
        >>> curve.kl_weight, round(curve.collapse_threshold, 1)
        (1.0, 3.7)
        """
        self._validate_params()
        if self.objective is not None:
            raise ValueError(
                "objective must be None for a forecast, which covers the KL term only, "
                f"got {self.objective!r}."
            )
        if hasattr(self, "net_"):
            samples, proba = self._open(X, teacher_proba)
            scale = self.witness_scale_
        else:
            samples, proba, scale = self._targets_of_fit(X, teacher_proba)
        # The threshold does not change if samples are standardized.
        return forecast_curve(
            samples,
            proba,
            scale,
            self.alignment_weight,
            self.kl_weight,
            likelihood=self.likelihood,
            latent_dim=self.latent_dim,
            target_margin=self.target_margin if self._guarded else None,
            ratio=ratio,
        )

    def escape_report(
        self, X: ArrayLike, *, teacher_proba: ArrayLike | None = None
    ) -> EscapeReport:
        """Report whether the alignment loss can move the means apart, and if not, why.

        Call it if training with alignment does not rescue a collapsed model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use instead of those of the teacher.

        Returns
        -------
        EscapeReport
            Verdict, forces, norm of the gradient and dead units. `str` gives a
            sentence.

        Raises
        ------
        ValueError
            If samples or posteriors are not valid.

        Notes
        -----
        The report takes four passes through the encoder, in chunks of samples. The net
        does not change.

        References
        ----------
        Theory section 4; arXiv:2605.18224.
        """
        check_is_fitted(self)
        samples, proba = self._open(X, teacher_proba)
        module, device = self.net_.module_, torch.device(self.net_.device)
        # A user's encoder may draw random numbers, even in evaluation mode.
        with seeded(0, device), differentiating(module):
            chunks = self._preprocessor.standardize(samples)
            return report_escape(
                module,
                lambda x: module.encode(x.to(device))[0],
                (x for chunk in chunks for x in chunk.split(CHUNK)),
                self._means(samples).astype(np.float64),
                proba,
                self.vertices_,
                self.witness_scale_,
            )

    def __sklearn_tags__(self) -> Tags:
        """Declare that `transform` preserves the dtype."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def noise_variance_(self) -> float | None:  # numpydoc ignore=RT01
        """Learned variance of the Gaussian likelihood; None for "bernoulli"."""
        if self.net_.criterion_.likelihood == "bernoulli":
            return None
        standard = torch.exp(bounded(self.net_.module_.raw_log_noise.detach()))
        return float(standard) * self._standardization.scale**2

    @property
    def _n_features_out(self) -> int:
        return self.vertices_.shape[1]

    @property
    def _guarded(self) -> bool:
        return self.alignment_weight == "auto"

    @property
    def _preprocessor(self) -> Preprocessor:
        likelihood = self.net_.criterion_.likelihood
        return Preprocessor(self, likelihood, self._standardization)

    def _means(self, samples: Any) -> NDArray[np.float32]:
        return encode(self.net_, self._preprocessor.standardize(samples))

    def _open(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> tuple[Any, Floats]:
        """Return samples and posteriors for a fitted estimator."""
        samples = open_samples(self, X, reset=False)
        proba = posterior_of(
            self.teacher_,
            X,
            teacher_proba,
            n_samples=len(samples),
            n_components=len(self.vertices_),
        )
        return samples, proba

    def _targets_of_fit(
        self, X: ArrayLike, teacher_proba: ArrayLike | None
    ) -> tuple[Any, Floats, float]:
        """Return the samples, posteriors and witness scale that a fit would use."""
        # A copy, so that neither the estimator nor the user's generator changes.
        vae = copy.copy(self)
        vae.random_state = copy.deepcopy(self.random_state)
        data, _ = vae._prepare(X, teacher_proba, warm=False)
        # Raises an error if the simplex does not fit into the latent space.
        simplex_vertices(data.proba.shape[1], self.latent_dim)
        scale = resolve_witness_scale(self.witness_scale, data.proba)
        return data.samples, data.proba, scale

    def _fit(
        self,
        X: ArrayLike,
        teacher_proba: ArrayLike | None,
        tasks: FitTasks,
        *,
        warm: bool,
        n_epochs: int,
    ) -> Data:
        first = not hasattr(self, "net_")

        def keeps_progress(error: BaseException) -> bool:
            # A first fit keeps its finite epochs: there is no earlier fit to restore.
            return first and isinstance(error, NonFiniteLossError) and self.n_iter_ > 0

        with restored_on_error(self, unless=keeps_progress):
            data, seed = self._prepare(X, teacher_proba, warm=warm)
            # A fit changes the net in place, which restored_on_error does not undo.
            before = Snapshot(self.net_) if warm else None
            # A warm start draws other batches and codes than the epochs before it.
            seed += 0 if before is None else before.n_epochs
            device = resolve_device(self.device)
            with seeded(seed % _SEEDS, device):
                if warm:
                    self._resume(data, n_epochs)
                else:
                    self._build(data, device, n_epochs)
                self._train(data, tasks, before)
        tasks.end_fit()
        # Outside of restored_on_error, so that the completed epochs are kept.
        if self.net_.interrupted_:
            raise interrupted(
                self,
                f"Training was interrupted: the model is that of {self.n_iter_} "
                f"completed epochs out of {n_epochs}. To continue, set warm_start=True "
                "and fit again.",
            )
        return data

    def _prepare(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, *, warm: bool
    ) -> tuple[Data, int]:
        """Check the arguments, fit the teacher if needed; return data and a seed."""
        samples = open_samples(self, X, reset=not warm, ensure_min_samples=2)
        teacher_seed, seed, split_seed = _seeds(self.random_state)
        if warm:
            self._check_warm(teacher_proba)
        else:
            # Warm starts hold out the same samples.
            self._split_seed = split_seed
        self._check_early()
        n_samples, fraction = len(samples), self.validation_fraction
        training, held_out = split(n_samples, fraction, self._split_seed)
        if not warm:
            self._fit_scaling_and_teacher(
                X, samples, teacher_proba, training, teacher_seed
            )
        proba = posterior_of(
            self.teacher_,
            X,
            teacher_proba,
            n_samples=n_samples,
            n_components=len(self.vertices_) if warm else None,
        )
        return Data.cut(samples, proba, training, held_out), seed

    def _check_early(self) -> None:
        """Raise errors early, before the teacher is fitted, which may take long."""
        Prefit.of(self.prefit)
        check_callbacks(self.callbacks, self.validation_fraction)
        resolve_backend(self.torch_compile)
        self._warn_of_ignored()
        for name, given in (("encoder", self.encoder), ("decoder", self.decoder)):
            if isinstance(given, str):
                check_image_shape(name, given, self.image_shape, self.n_features_in_)

    def _warn_of_ignored(self) -> None:
        if self.target_margin != _TARGET_MARGIN and not self._guarded:
            warn_user(
                "target_margin is ignored, because alignment_weight is a number. Set "
                "alignment_weight='auto' to use it."
            )

    def _check_warm(self, teacher_proba: ArrayLike | None) -> None:
        check_unchanged(self)
        if teacher_proba is not None and self.teacher_ is not None:
            raise ValueError(
                "teacher_proba must be left out: warm_start continues a fit with the "
                "teacher in teacher_. Leave it out, or set warm_start=False."
            )

    def _fit_scaling_and_teacher(
        self,
        X: ArrayLike,
        samples: Any,
        teacher_proba: ArrayLike | None,
        training: Index,
        seed: int,
    ) -> None:
        """Fit what the network depends on: the standardization and the teacher."""
        self._standardization = fit_standardization(
            self, self.likelihood, lazy_part(samples, training)
        )
        self.teacher_ = None
        if teacher_proba is None:
            self.teacher_ = fit_teacher(
                self.teacher,
                lazy_part(X, training),
                seed=None if self.random_state is None else seed,
                latent_dim=self.latent_dim,
                memory=self.memory,
            )

    def _build(self, data: Data, device: torch.device, n_epochs: int) -> None:
        """Create what a warm start keeps: witness and network, prefitted if set."""
        self.vertices_ = simplex_vertices(data.proba.shape[1], self.latent_dim)
        self.witness_scale_ = resolve_witness_scale(self.witness_scale, data.proba)
        remember_params(self)
        self.net_ = self._make_net(
            self._make_module(),
            device,
            kl_weight=self.kl_weight,
            alignment_weight=self._alignment(data, device),
            **self._settings(n_epochs, len(data.proba)),
        )
        self._prefit(data, device)

    def _make_module(self, without: Sequence[str] = ()) -> VAE:
        """Create the module; `without` names networks to replace by linear layers."""
        objective = _cloned(self.objective)
        objective.check(self.likelihood)
        return make_vae(
            self.n_features_in_,
            self.latent_dim,
            _check_hidden_sizes(self.hidden_sizes),
            None if "encoder" in without else self.encoder,
            None if "decoder" in without else self.decoder,
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
            criterion__objective=_cloned(self.objective),
            criterion__scale=self.witness_scale_,
            criterion__kl_weight=kl_weight,
            criterion__alignment_weight=alignment_weight,
            **settings,
        )

    def _resume(self, data: Data, n_epochs: int) -> None:
        device, earlier = torch.device(self.net_.device), self.net_.criterion_.guard
        resume_net(
            self.net_,
            kl_weight=self.kl_weight,
            alignment_weight=self._alignment(data, device, earlier),
            **self._settings(n_epochs, len(data.proba)),
        )

    def _settings(self, n_epochs: int, n_samples: int) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "batch_size": resolve_batch_size(self.batch_size, n_samples),
            "max_epochs": n_epochs,
            "callbacks": self.callbacks,
            "verbose": self.verbose,
            "forward_backend": resolve_backend(self.torch_compile),
            "autocast": self.autocast,
        }

    def _alignment(
        self, data: Data, device: torch.device, earlier: LagrangeWeight | None = None
    ) -> float | LagrangeWeight:
        if not self._guarded:
            return float(self.alignment_weight)
        return make_guard(self.target_margin, data.guarded[1], device, earlier)

    def _prefit(self, data: Data, device: torch.device) -> None:
        """Regress the latent mean on the scaled analytic code (theory section 11)."""
        # An earlier fit may have set it.
        self.__dict__.pop("prefit_alpha_", None)
        wanted = Prefit.of(self.prefit)
        if wanted is None:
            return
        self.prefit_alpha_ = wanted.resolve_alpha(data.proba, self.witness_scale_)
        codes = analytic_code(data.proba, self.vertices_, self.witness_scale_)
        targets = self.prefit_alpha_ * codes
        dataset = self._preprocessor.training_set(data.samples, targets, device)
        prefit(self.net_, dataset, wanted.epochs)

    def _train(self, data: Data, tasks: FitTasks, before: Snapshot | None) -> None:
        """Train; on an error, restore the net that a warm start began with."""
        dataset = self._preprocessor.training_sets(data, torch.device(self.net_.device))
        try:
            train(self.net_, dataset, Epochs(tasks, self._history))
            self._take_history(before)
        except BaseException:
            if before is not None:
                before.restore(self.net_)
            # `_fit` reads n_iter_ to decide whether there are epochs to keep.
            self._take_history(before)
            raise

    def _history(self) -> list[dict[str, float]]:
        return history_table(self.net_.history, self._preprocessor.log_unit)

    def _take_history(self, before: Snapshot | None) -> None:
        self.history_ = self._history()
        n_earlier = 0 if before is None else before.n_epochs
        self.n_iter_ = len(self.history_) - n_earlier

    def _warn_of_margin(self, data: Data) -> None:
        samples, proba = data.guarded
        means = self._means(samples)
        log_q = witness_log_proba(means, self.vertices_, self.witness_scale_)
        weight = float(self.net_.criterion_.alignment_weight)
        warn_if_unreached(proba, log_q, self.target_margin, weight, self.n_iter_)

    def __get_fitted__(self) -> dict[str, Any]:
        """Return the fitted state, as described in `skvaecert._state`."""
        # The file will also contain the parameters, which must be those of the fit.
        check_unchanged(self)
        state = held(self, FITTED) | self._standardization._asdict()
        return state | {"split_seed": self._split_seed, "net": net_state(self.net_)}

    def __set_fitted__(self, state: dict[str, Any]) -> None:
        """Check a fitted state, which may come from an untrusted file, and set it."""
        self._validate_params()
        # If both networks are the user's own, hidden_sizes is not used.
        own = [k for k in ("encoder", "decoder") if callable(getattr(self, k))]
        check_vae(state, self.latent_dim, len(self.hidden_sizes) if len(own) < 2 else 0)
        put(self, state, FITTED)
        self._standardization = Standardization(state["location"], state["scale"])
        self._split_seed, net = state["split_seed"], state["net"]
        device = device_for(self.device)
        # Settings that are missing here are set by each fit.
        self.net_ = self._make_net(
            filled_module(self._make_module, net, own, self.n_features_in_),
            device,
            kl_weight=net["kl_weight"],
            alignment_weight=saved_alignment(net, device),
            lr=self.learning_rate,
            max_epochs=self.max_epochs,
        )
        fill_net(self.net_, net)
        self.history_ = self._history()
        remember_params(self)


def _seeds(random_state: int | np.random.RandomState | None) -> tuple[int, ...]:
    """Return seeds for teacher, training and split.

    All are drawn at once, so that no seed depends on which of the others are used.
    """
    return tuple(map(int, check_random_state(random_state).randint(_SEEDS, size=3)))


def _float_type(samples: Any) -> type[np.floating]:
    return np.float32 if samples.dtype == np.float32 else np.float64


def _cloned(objective: Objective | None) -> Objective:
    return Objective() if objective is None else clone(objective)


def _check_hidden_sizes(hidden_sizes: Sequence[int]) -> tuple[int, ...]:
    if not all(isinstance(size, Integral) and size > 0 for size in hidden_sizes):
        raise ValueError(
            "hidden_sizes must be a sequence of integers above 0, got "
            f"{tuple(hidden_sizes)!r}."
        )
    return tuple(int(size) for size in hidden_sizes)
