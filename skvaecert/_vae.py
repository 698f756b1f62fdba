"""CertifiedVAE: a variational autoencoder whose code is aligned with a teacher."""

import warnings
from collections.abc import Callable, Sequence
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

from skvaecert._base import (
    NestedDefaultMixin,
    fingerprint,
    fingerprints,
    restored_on_error,
    seed_unset,
    shared_call,
    validate_rows,
)
from skvaecert._teacher import GMMTeacher, counts_of, teacher_posterior
from skvaecert._training import (
    Snapshot,
    decode,
    encode,
    evidence_bound,
    make_net,
    resolve_device,
    resume_net,
    seeded,
    train,
)
from skvaecert.exceptions import InterruptedFitWarning, NonFiniteLossError
from skvaecert.networks import ModuleOrFactory, make_vae
from skvaecert.objectives import Objective
from skvaecert.simplex import (
    Floats,
    check_teacher_proba,
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)

__all__ = ["CertifiedVAE", "resolve_witness_scale"]

# What a warm start cannot change: it continues with these very things.
_FIXED = (
    "latent_dim",
    "hidden_sizes",
    "encoder",
    "decoder",
    "likelihood",
    "objective",
    "witness_scale",
    "device",
)
# MinMaxScaler leaves [0, 1] by rounding.
_RANGE_SLACK = 1e-6
# Sums of squares of larger ones overflow in the network's float32.
_LARGEST_STANDARD = 1e15
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


class _Standardisation(NamedTuple):
    """x -> (x - location) / scale: one scale for all features keeps their geometry."""

    location: Floats
    scale: float

    @classmethod
    def of(cls, rows: NDArray[np.floating], likelihood: str) -> Self:
        if likelihood == "bernoulli":
            return cls(np.zeros(rows.shape[1]), 1.0)
        scale = np.sqrt(rows.var(axis=0, dtype=np.float64).mean())
        # Equal rows have no scale of their own.
        return cls(rows.mean(axis=0, dtype=np.float64), float(scale) or 1.0)

    def apply(self, rows: NDArray[np.floating]) -> torch.Tensor:
        standard = (rows - self.location) / self.scale
        largest = np.abs(standard).max()
        if largest > _LARGEST_STANDARD:
            raise ValueError(
                "X must be within 1e15 standard deviations of the training rows, got "
                f"{largest:.3g}. Check its units."
            )
        return torch.from_numpy(standard.astype(np.float32))

    def undo(self, standard: NDArray[np.floating]) -> Floats:
        return standard.astype(np.float64) * self.scale + self.location


class CertifiedVAE(
    NestedDefaultMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
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
        Hidden layers of the encoder; the decoder has them in reverse.
    encoder, decoder : torch.nn.Module, callable or None, default=None
        Modules of one's own in place of fully connected layers. The encoder maps
        (n, n_features) to (n, 2 * latent_dim), means and then raw log-variances; the
        decoder maps (n, latent_dim) to (n, n_features). A module is copied with its
        weights; a class or function is called with (n_features, latent_dim). With
        the Gaussian likelihood they see rows less their mean, divided by one number.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        "gaussian": one variance, learned, for all features; data of any scale.
        "bernoulli": data in [0, 1].
    objective : Objective or None, default=None
        A mitigation of collapse from `skvaecert.baselines`, which takes the place of
        the KL term or of another part of the ELBO; None for the ELBO itself.
    alignment_weight : float, default=10.0
        Weight of the alignment loss, at least 0.
    kl_weight : float, default=1.0
        Weight of the KL term, at least 0.
    witness_scale : "prior" or float, default="prior"
        beta, above 0; "prior" for the scale at which the analytic code is as wide as
        the prior.
    memory : str, joblib.Memory or None, default=None
        Where fitted teachers are cached, so that a search over other parameters fits
        each fold's teacher once. Works for teachers with a fixed `random_state`.
    max_epochs : int, default=100
        Passes over the rows in one :meth:`fit`.
    batch_size : int, default=128
        Most rows a step. Batches of an epoch are of the same size but for one row.
    learning_rate : float, default=1e-3
        Step size of Adam, above 0.
    device : str, default="auto"
        "auto" for the first of cuda, mps and cpu that is there; or a torch device.
    warm_start : bool, default=False
        Whether :meth:`fit` continues from the present weights, with the same teacher
        and witness. Between warm fits

        ====================================================  =====================
        may change                                            must stay
        ====================================================  =====================
        alignment_weight, kl_weight, learning_rate,           teacher, latent_dim,
        batch_size, max_epochs, callbacks, memory, verbose,   hidden_sizes, encoder,
        random_state                                          decoder, likelihood,
                                                              objective,
                                                              witness_scale, device
        ====================================================  =====================

        and a change on the right is an error.
    callbacks : sequence or None, default=None
        Callbacks of skorch, or (name, callback) pairs; copied at each fit, unless
        they cannot be. There is no validation loss to monitor, but "train_loss",
        "margin", "kl" and "reconstruction", for example
        ``EarlyStopping("margin", lower_is_better=False)``.
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
        quarter in lots of 256, at least 256); "kl_weight", "alignment_weight";
        "seconds". ``pandas.DataFrame`` takes it.
    n_iter_ : int
        Epochs completed by the last fit.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
        "encoder": [torch.nn.Module, callable, None],
        "decoder": [torch.nn.Module, callable, None],
        "likelihood": [StrOptions({"gaussian", "bernoulli"})],
        "objective": [Objective, None],
        "alignment_weight": [Interval(Real, 0, None, closed="left")],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "witness_scale": [
            StrOptions({"prior"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "memory": [str, HasMethods(["cache"]), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
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
        encoder: ModuleOrFactory | None = None,
        decoder: ModuleOrFactory | None = None,
        likelihood: str = "gaussian",
        objective: Objective | None = None,
        alignment_weight: float = 10.0,
        kl_weight: float = 1.0,
        witness_scale: str | float = "prior",
        memory: Any = None,
        max_epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
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
        self.likelihood = likelihood
        self.objective = objective
        self.alignment_weight = alignment_weight
        self.kl_weight = kl_weight
        self.witness_scale = witness_scale
        self.memory = memory
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.device = device
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Fit the teacher, then train for `max_epochs`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, at least two.
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
        """
        warm = self.warm_start and hasattr(self, "net_")
        return self._fit(X, teacher_proba, warm=warm, n_epochs=self.max_epochs)

    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self, X: ArrayLike, y: Any = None, *, teacher_proba: ArrayLike | None = None
    ) -> Self:
        """Train for one more epoch; the first call fits the teacher.

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
        return self._fit(X, teacher_proba, warm=hasattr(self, "net_"), n_epochs=1)

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
        rows = validate_rows(self, X, reset=False)
        means = encode(self.net_, self._standardisation.apply(rows))
        return means.astype(rows.dtype, copy=False)

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
            return expit(output).astype(codes.dtype)
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
        rows = validate_rows(self, X, reset=False)
        _check_range(rows, self.net_.criterion_.likelihood)
        with seeded(0, torch.device(self.net_.device)):
            bounds = evidence_bound(self.net_, self._standardisation.apply(rows))
        units = rows.shape[1] * np.log(self._standardisation.scale)
        return float(bounds.mean(dtype=np.float64) - units)

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
        *,
        warm: bool,
        n_epochs: int,
    ) -> Self:
        with restored_on_error(self, unless=self._keeps_progress()):
            rows = validate_rows(self, X, reset=not warm, ensure_min_samples=2)
            _check_range(rows, self.likelihood)
            # Two seeds, so that the teacher is the same whatever the VAE draws.
            random_state = check_random_state(self.random_state)
            teacher_seed, seed = map(int, random_state.randint(2**31 - 1, size=2))
            if warm:
                self._check_unchanged()
            else:
                given = teacher_proba is not None
                self.teacher_ = None if given else self._fit_teacher(X, teacher_seed)
            proba = self._targets(X, teacher_proba, len(rows))
            device = resolve_device(self.device)
            with seeded(seed, device):
                if warm:
                    self._resume(proba, n_epochs)
                else:
                    self._build(rows, proba, device, n_epochs)
                self._train(rows, proba, warm=warm)
        if self.net_.interrupted_:
            warnings.warn(self._interruption(n_epochs), stacklevel=4)
        return self

    def _fit_teacher(self, X: ArrayLike, seed: int) -> BaseEstimator:
        teacher = GMMTeacher() if self.teacher is None else clone(self.teacher)
        if self.random_state is not None:
            seed_unset(teacher, seed)
        _check_room(teacher, self.latent_dim)
        return shared_call(check_memory(self.memory).cache(_fitted), teacher, X)

    def _targets(
        self, X: ArrayLike, teacher_proba: ArrayLike | None, n_samples: int
    ) -> Floats:
        if teacher_proba is not None and self.teacher_ is not None:
            raise ValueError(
                "teacher_proba must be left out: warm_start continues a fit with the "
                "teacher in teacher_, which stays."
            )
        if teacher_proba is not None:
            return check_teacher_proba(teacher_proba, n_samples)
        if self.teacher_ is None:
            raise ValueError(
                "teacher_proba must be given again: this estimator was fitted with "
                "teacher_proba and so has no teacher to continue with."
            )
        return teacher_posterior(self.teacher_, X)

    def _build(
        self,
        rows: NDArray[np.floating],
        proba: Floats,
        device: torch.device,
        n_epochs: int,
    ) -> None:
        """Set up everything that a warm start keeps."""
        self.vertices_ = simplex_vertices(proba.shape[1], self.latent_dim)
        self.witness_scale_ = resolve_witness_scale(self.witness_scale, proba)
        self._standardisation = _Standardisation.of(rows, self.likelihood)
        self._structure = self._fingerprints()
        hidden_sizes = _check_hidden_sizes(self.hidden_sizes)
        objective = Objective() if self.objective is None else clone(self.objective)
        vae = make_vae(
            rows.shape[1],
            self.latent_dim,
            hidden_sizes,
            self.encoder,
            self.decoder,
            objective.posterior(self.latent_dim),
        )
        self.net_ = make_net(
            vae,
            device=device,
            vertices=self.vertices_,
            criterion__likelihood=self.likelihood,
            criterion__objective=objective,
            criterion__scale=self.witness_scale_,
            criterion__kl_weight=self.kl_weight,
            criterion__alignment_weight=self.alignment_weight,
            **self._settings(n_epochs),
        )

    def _resume(self, proba: Floats, n_epochs: int) -> None:
        n_components = len(self.vertices_)
        if proba.shape[1] != n_components:
            raise ValueError(
                f"teacher_proba must keep the {n_components} components of the fit it "
                f"continues, got {proba.shape[1]}."
            )
        resume_net(
            self.net_,
            kl_weight=self.kl_weight,
            alignment_weight=self.alignment_weight,
            **self._settings(n_epochs),
        )

    def _settings(self, n_epochs: int) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "batch_size": self.batch_size,
            "max_epochs": n_epochs,
            "callbacks": self.callbacks,
            "verbose": self.verbose,
        }

    def _train(self, rows: NDArray[np.floating], proba: Floats, *, warm: bool) -> None:
        before = Snapshot(self.net_)
        targets = torch.from_numpy(proba.astype(np.float32))
        try:
            train(self.net_, self._standardisation.apply(rows), targets)
            self._take_history(before.n_epochs)
        except BaseException:
            if warm:
                before.restore(self.net_)
            self._take_history(before.n_epochs)
            raise

    def _take_history(self, n_earlier: int) -> None:
        # The loss is one of density: back in the units of X.
        units = len(self._standardisation.location) * np.log(
            self._standardisation.scale
        )
        complete = [row for row in self.net_.history if "seconds" in row]
        self.history_ = [_history_row(row, units) for row in complete]
        self.n_iter_ = len(complete) - n_earlier

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


def resolve_witness_scale(witness_scale: str | float, proba: Floats) -> float:
    """Turn the parameter `witness_scale` into a number.

    Parameters
    ----------
    witness_scale : "prior" or float
        As in :class:`CertifiedVAE`.
    proba : ndarray of shape (n_samples, n_components)
        Posteriors of the training rows.

    Returns
    -------
    float
        The scale beta, above 0.

    Raises
    ------
    ValueError
        If the prior-matched scale is 0, because every posterior is uniform.
    """
    if witness_scale != "prior":
        return float(witness_scale)
    scale = prior_matched_scale(proba)
    if scale == 0:
        raise ValueError(
            "witness_scale must be a number for this teacher: every posterior is "
            "uniform, so that 'prior' gives 0. Such a teacher has no information "
            "and certifies nothing; use another."
        )
    return scale


def _check_range(rows: NDArray[np.floating], likelihood: str) -> None:
    low, high = -_RANGE_SLACK, 1 + _RANGE_SLACK
    if likelihood == "bernoulli" and not low <= rows.min() <= rows.max() <= high:
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
    for name in ("loss", "reconstruction"):
        renamed[name] += units
    return renamed
