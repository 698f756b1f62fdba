"""Loss terms in torch, one value per sample in nats (theory sections 2 and 11).

Losses are summed over features and latent dimensions, and averaged over samples last.
:class:`AlignmentLoss` and :class:`LagrangeWeight` can be used in any training loop.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from skvaecert._posterior import teacher_posterior
from skvaecert.networks import GaussianPosterior, Pass
from skvaecert.simplex import check_number, resolve_witness_scale, simplex_vertices
from skvaecert.witnesses import simplex_of, simplex_witness

__all__ = [
    "AlignedELBO",
    "AlignmentLoss",
    "LagrangeWeight",
    "Objective",
    "Terms",
    "alignment",
    "bernoulli_loss",
    "gaussian_kl",
    "gaussian_loss",
    "kl_per_dimension",
]


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, diag sigma^2) || N(0, I)) = sum_j (mu_j^2 + s_j - log s_j - 1) / 2.

    Parameters
    ----------
    mean : Tensor of shape (n_samples, latent_dim)
        Latent means mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        Log-variances log s of the encoder's posterior, with s = sigma^2.

    Returns
    -------
    Tensor of shape (n_samples,)
        KL of each sample in nats, at least 0.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import gaussian_kl
    >>> gaussian_kl(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
    tensor([2.])
    """
    return kl_per_dimension(mean, log_variance).sum(dim=1)


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(mu_j^2 + s_j - log s_j - 1) / 2, the contribution of dimension j to the KL.

    Parameters
    ----------
    mean : Tensor of shape (n_samples, latent_dim)
        Latent means mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        Log-variances log s of the encoder's posterior, with s = sigma^2.

    Returns
    -------
    Tensor of shape (n_samples, latent_dim)
        KL of each sample and dimension in nats, at least 0.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import kl_per_dimension
    >>> kl_per_dimension(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
    tensor([[2., 0.]])
    """
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


def gaussian_loss(x: Tensor, output: Tensor, log_noise: Tensor) -> Tensor:
    """-log N(x; output, v I), where all features share the log-variance log v.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Samples.
    output : Tensor of shape (n_samples, n_features)
        Decoder's means.
    log_noise : Tensor of shape ()
        log v.

    Returns
    -------
    Tensor of shape (n_samples,)
        Negative log-density of each sample in nats. It can be negative.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import gaussian_loss
    >>> x = torch.tensor([[1.0, 0.0]])
    >>> gaussian_loss(x, torch.zeros(1, 2), torch.tensor(0.0))
    tensor([2.3379])
    """
    error = (x - output).square().sum(dim=1)
    normalizer = x.shape[1] * (log_noise + math.log(2 * math.pi))
    return (error * torch.exp(-log_noise) + normalizer) / 2


def bernoulli_loss(x: Tensor, output: Tensor) -> Tensor:
    """-sum_j x_j log p_j + (1 - x_j) log(1 - p_j), p = sigmoid(output).

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Samples in [0, 1].
    output : Tensor of shape (n_samples, n_features)
        Decoder's logits.

    Returns
    -------
    Tensor of shape (n_samples,)
        Negative log-likelihood of each sample in nats, at least 0.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import bernoulli_loss
    >>> bernoulli_loss(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([1.3863])
    """
    loss = functional.binary_cross_entropy_with_logits(output, x, reduction="none")
    return loss.sum(dim=1)


def alignment(
    teacher_proba: Tensor,
    latent_mean: Tensor,
    vertices: Tensor,
    scale: float | Tensor,
) -> Tensor:
    """KL(T_i || softmax(beta S mu_i)); minus its gradient is the escape force.

    Parameters
    ----------
    teacher_proba : Tensor of shape (n_samples, n_components)
        Teacher's posteriors T, with all entries above 0.
    latent_mean : Tensor of shape (n_samples, latent_dim)
        Latent means mu.
    vertices : Tensor of shape (n_components, latent_dim)
        Vertices S of the witness's simplex.
    scale : float
        Witness scale beta.

    Returns
    -------
    Tensor of shape (n_samples,)
        Alignment loss of each sample in nats, at least 0.

    References
    ----------
    Theory sections 2 and 4; arXiv:2605.18224.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import alignment
    >>> teacher_proba = torch.tensor([[0.9, 0.1]])
    >>> alignment(teacher_proba, torch.zeros(1, 1), torch.tensor([[1.0], [-1.0]]), 1.0)
    tensor([0.3681])
    """
    log_q = _witness_log_proba(latent_mean, vertices, scale)
    # kl_div takes log q first, and computes T (log T - log q).
    return functional.kl_div(log_q, teacher_proba, reduction="none").sum(dim=1)


def _witness_log_proba(
    latent_mean: Tensor, vertices: Tensor, scale: float | Tensor
) -> Tensor:
    # Theory section 1.
    return functional.log_softmax(scale * latent_mean @ vertices.T, dim=1)


_REDUCTIONS = ("mean", "sum", "none")


class _InFullPrecision(nn.Module):
    """A module whose buffers follow a model to its device but keep their dtype.

    In 16 bits the vertices are no longer a simplex, and a weight cannot grow in small
    steps.
    """

    # In torch, `to`, `half`, `cuda` and the like all call this method.
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self.get_buffer(name)
            # Tensors on the meta device have no values to keep.
            again = (
                moved.to(before.dtype) if before.is_meta else before.to(moved.device)
            )
            setattr(self, name, again)
        return self


class AlignmentLoss(_InFullPrecision):
    """A = mean_i KL(T_i || softmax(beta S mu_i)), a term for any training loop.

    Add this loss, times a weight, to the loss of a VAE. Its gradient pushes latent
    means apart as far as the teacher distinguishes the samples. A fixed softmax, the
    witness, reads the teacher's clusters off the latent mean, and the loss measures how
    well it does so. :class:`skvaecert.CollapseCertifier` and :func:`skvaecert.diagnose`
    accept this object as `witness`, so that they certify with the witness that was used
    in training.

    The module has no parameters, only buffers: `to` moves them and `state_dict` saves
    them. The buffers stay in float32 if the model is converted to 16 bits. The loss is
    computed in float32, or in float64 for means of that type, also under autocast.

    Parameters
    ----------
    vertices : array-like of shape (n_components, latent_dim)
        Vertices S of the witness's simplex, from
        :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        Witness scale beta, above 0.

    Attributes
    ----------
    vertices : Tensor of shape (n_components, latent_dim)
        Vertices S.
    scale : Tensor of shape ()
        Witness scale beta.

    Raises
    ------
    ValueError
        If `vertices` is not a regular simplex or `scale` is not valid.

    See Also
    --------
    LagrangeWeight : A weight for this term that adapts to a target margin.
    skvaecert.datasets.WithPosterior : Pairs each sample with its teacher's posterior.

    References
    ----------
    Theory sections 2 and 4; arXiv:2605.18224.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import GMMTeacher
    >>> from skvaecert.objectives import AlignmentLoss
    >>> X = load_iris().data
    >>> teacher = GMMTeacher(n_components=3, random_state=0).fit(X)
    >>> loss_fn = AlignmentLoss.from_teacher(teacher, X, latent_dim=2)
    >>> teacher_proba = torch.as_tensor(teacher.predict_proba(X))

    In the loop, pass the latent means of a batch and the teacher's posteriors of the
    same samples:

    >>> mean = torch.zeros(150, 2, requires_grad=True)
    >>> loss = 30 * loss_fn(mean, teacher_proba)  # add this to the loss of your VAE
    >>> loss.backward()
    """

    vertices: Tensor
    scale: Tensor

    def __init__(self, vertices: ArrayLike, scale: float) -> None:
        super().__init__()
        self.register_buffer("vertices", torch.as_tensor(vertices).float().clone())
        self.register_buffer("scale", torch.as_tensor(scale).float().clone())
        # Check the buffers, not the arguments: float32 has rounded them.
        simplex_witness(*simplex_of(self))

    @classmethod
    def from_teacher(
        cls,
        teacher: Any,
        X: Any,
        latent_dim: int,
        scale: Literal["prior"] | float = "prior",
    ) -> Self:
        """Make the alignment loss of a fitted teacher.

        Parameters
        ----------
        teacher : estimator
            Fitted, with a `predict_proba` or a `transform` that returns posteriors:
            a :class:`skvaecert.GMMTeacher`, or a pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Training samples, or another input that the teacher accepts.
        latent_dim : int
            Number of latent dimensions, at least n_components - 1.
        scale : "prior" or float, default="prior"
            Witness scale beta, above 0. With "prior", it is the scale at which the
            analytic code of these samples has a mean square of 1, as the prior has,
            averaged over its K - 1 dimensions.

        Returns
        -------
        AlignmentLoss
            The loss, on the CPU. ``.to(device)`` moves it.

        Raises
        ------
        ValueError
            If the teacher returns no posteriors, if its posteriors are the same for all
            samples, or if `latent_dim` is too small for its number of components.
        """
        proba = teacher_posterior(teacher, X)
        vertices = simplex_vertices(proba.shape[1], latent_dim)
        return cls(vertices, resolve_witness_scale(scale, proba, name="scale"))

    def forward(
        self,
        mean: Tensor,
        teacher_proba: Tensor,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Compute the alignment loss of a batch.

        Parameters
        ----------
        mean : Tensor of shape (n_samples, latent_dim)
            Latent means. Do not pass drawn codes.
        teacher_proba : Tensor of shape (n_samples, n_components)
            Teacher's posteriors of the same samples, in any precision and on any
            device.
        reduction : {"mean", "sum", "none"}, default="mean"
            Reduction over the samples.

        Returns
        -------
        Tensor of shape () or (n_samples,)
            Alignment loss in nats, at least 0.

        Raises
        ------
        ValueError
            If the shapes do not match, or `reduction` is not one of these options.
        """
        if reduction not in _REDUCTIONS:
            raise ValueError(
                f"reduction must be one of {_REDUCTIONS}, got {reduction!r}."
            )
        mean = self._checked(mean)
        proba = torch.as_tensor(teacher_proba).to(mean)
        if proba.shape != (len(mean), len(self.vertices)):
            raise ValueError(
                "teacher_proba must have shape (n_samples, n_components) = "
                f"{(len(mean), len(self.vertices))}, got {tuple(proba.shape)}. Pass "
                "the teacher's posteriors of the samples of this batch."
            )
        # Autocast would compute the product in 16 bits.
        with torch.autocast(mean.device.type, enabled=False):
            losses = alignment(proba, mean, self.vertices.to(mean), self.scale)
        if reduction == "none":
            return losses
        return losses.mean() if reduction == "mean" else losses.sum()

    def witness_log_proba(self, mean: Tensor) -> Tensor:
        """Compute log softmax(beta S mu), the witness's log-probabilities.

        Parameters
        ----------
        mean : Tensor of shape (n_samples, latent_dim)
            Latent means.

        Returns
        -------
        Tensor of shape (n_samples, n_components)
            Natural logarithms of probabilities.

        Raises
        ------
        ValueError
            If `mean` does not have this shape.
        """
        mean = self._checked(mean)
        with torch.autocast(mean.device.type, enabled=False):
            return _witness_log_proba(mean, self.vertices.to(mean), self.scale)

    def _checked(self, mean: Tensor) -> Tensor:
        """Check the shape of the means, and return them in float32 or float64."""
        latent_dim = self.vertices.shape[1]
        if mean.ndim != 2 or mean.shape[1] != latent_dim:
            raise ValueError(
                f"mean must have shape (n_samples, latent_dim) = (n_samples, "
                f"{latent_dim}), got {tuple(mean.shape)}. Flatten mean, or make the "
                "AlignmentLoss for the latent_dim of your model."
            )
        return mean.to(torch.promote_types(mean.dtype, torch.float32))


class Objective(BaseEstimator):
    """The ELBO, split into parts that a mitigation of collapse can replace.

    A subclass overrides the methods of the parts that it replaces. The mitigations in
    :mod:`skvaecert.baselines` are such subclasses. This class is a scikit-learn
    estimator only so that its parameters can be searched.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def check(self, likelihood: Literal["gaussian", "bernoulli"]) -> None:
        """Check the parameters, and that they suit the likelihood.

        Parameters
        ----------
        likelihood : {"gaussian", "bernoulli"}
            Likelihood p(x|z) of the decoder.

        Raises
        ------
        ValueError
            If a parameter is invalid, or cannot be used with this likelihood.
        """
        self._validate_params()

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return the term that replaces the KL term, before `kl_weight`.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far, with the fraction of the current epoch.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch in nats. The default is KL(q(z|x) || N(0, I)).
        """
        return gaussian_kl(result.mean, result.log_variance).mean()

    def reconstruction(self, losses: Tensor, result: Pass, x: Tensor) -> Tensor:
        """Return the term that replaces the reconstruction term.

        Parameters
        ----------
        losses : Tensor of shape (n_samples,)
            -log p(x|z) of each sample under the likelihood.
        result : Pass
            Result of the VAE for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch in nats. The default is the mean of `losses`.
        """
        return losses.mean()

    def posterior(self, latent_dim: int) -> nn.Module:
        """Return the module that maps the encoder's output to the parameters of q(z|x).

        Parameters
        ----------
        latent_dim : int
            Number of latent dimensions.

        Returns
        -------
        torch.nn.Module
            Maps (mean, raw) to (mean, log_variance), each (n, latent_dim).
        """
        return GaussianPosterior()

    def callbacks(self) -> list[tuple[str, Callback]]:
        """Return the skorch callbacks that this objective needs in training.

        Returns
        -------
        list of (str, skorch.callbacks.Callback)
            Names and callbacks, newly made in each call. The default is an empty list.
        """
        return []


class ReleasedCallback(Callback):
    """A callback that keeps data or a resource only while a net trains."""

    def release(self) -> None:
        """Drop them. skorch does not call `on_train_end` if an error ends training."""


class Terms(NamedTuple):
    """The parts of the loss, each averaged over the batch, in nats.

    Attributes
    ----------
    reconstruction : Tensor of shape ()
        -log p(x|z), for one drawn code per sample.
    penalty : Tensor of shape ()
        The term that the objective uses instead of the KL term.
    kl : Tensor of shape ()
        KL(q(z|x) || N(0, I)), for the history. It may have no gradient.
    alignment : Tensor of shape ()
        Alignment loss KL(T || witness). It is 0 and not computed if its weight is 0.
    """

    reconstruction: Tensor
    penalty: Tensor
    kl: Tensor
    alignment: Tensor


class LagrangeWeight(_InFullPrecision):
    """Guard: a weight w that adapts to keep the relative margin at a target.

    The target is a share m of the teacher information I_T. w is the Lagrange multiplier
    of the constraint A <= (1 - m) I_T on the alignment loss A. After each step

        log w += 0.05 clip(c, -1, 1),    c = e if e < 0 else 8 e,
        e = (A - (1 - m) I_T) / I_T

    where A is a running mean over batches. So the weight grows faster below the target
    margin than it shrinks above it.

    In your own training loop, use this object instead of a fixed weight: call it with
    the alignment loss of a batch. In training mode, each call updates w. If you
    accumulate gradients over several batches, update w only once per optimizer step:
    call ``guard.train(is_last_batch)`` before each batch. Otherwise w changes faster
    than the model and grows far above what it needs to be.

    Parameters
    ----------
    target_margin : float
        Target m of the relative margin, in (0, 1).
    information : float
        Teacher information I_T, in nats, above 0, of the samples whose margin the guard
        controls. :func:`skvaecert.metrics.teacher_information` computes it.

    Attributes
    ----------
    weight : Tensor of shape ()
        w, in [0.1, 1e6]; initially 1. Like `average`, it is a buffer and stays in
        float32 if the model is converted to 16 bits.
    average : Tensor of shape ()
        Running mean of A in nats; NaN before the first step.
    gap : float
        A of the samples whose margin the guard controls, minus A of the training
        samples, in nats; initially 0. To control the margin of samples other than the
        training samples, set it after each epoch.

    Notes
    -----
    In distributed training, each process updates its own weight, and the mean of these
    weights acts on the model. If this object is an attribute of the module that
    ``DistributedDataParallel`` wraps, all processes take the weight of the first
    process at the start of each forward pass.

    References
    ----------
    Theory section 10.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import LagrangeWeight
    >>> guard = LagrangeWeight(target_margin=0.9, information=1.5)
    >>> alignment_loss = torch.tensor(1.5, requires_grad=True)  # of a constant mean
    >>> guard(alignment_loss).backward()  # add the loss of your VAE
    >>> guard.weight > 1
    tensor(True)
    """

    weight: Tensor
    average: Tensor

    # The constants of the rule in theory section 10.
    _RATE, _FADING, _URGENCY = 0.05, 0.1, 8.0
    # A weight below this bound would take too long to grow again.
    _LEAST, _MOST = 0.1, 1e6

    def __init__(self, target_margin: float, information: float) -> None:
        super().__init__()
        self.target_margin = check_number(
            "target_margin", target_margin, above=0, below=1
        )
        self.information = check_number("information", information, above=0)
        self.register_buffer("weight", torch.ones(()))
        self.register_buffer("average", torch.full((), torch.nan))
        self.gap = 0.0

    def extra_repr(self) -> str:
        """Return the parameters, for `repr`.

        Returns
        -------
        str
            As in ``target_margin=0.8, information=2.07``.
        """
        target, information = self.target_margin, self.information
        return f"target_margin={target:g}, information={information:.3g}"

    def forward(self, alignment: Tensor) -> Tensor:
        """Return the weighted loss, and in training mode update the weight after it.

        Parameters
        ----------
        alignment : Tensor of shape ()
            Alignment loss A of a batch, in nats.

        Returns
        -------
        Tensor of shape ()
            w A.
        """
        # A copy, since `update` changes the weight before the backward pass reads it.
        weighted = self.weight.clone() * alignment
        if self.training:
            self.update(alignment)
        return weighted

    def resume_from(self, earlier: LagrangeWeight) -> None:
        """Continue from the state of another weight, for a new target or new samples.

        Parameters
        ----------
        earlier : LagrangeWeight
            The weight of the previous fit.
        """
        self.weight.copy_(earlier.weight)
        self.gap = earlier.gap

    @torch.no_grad()
    def update(self, alignment: Tensor) -> None:
        """Update the weight from the alignment loss of one batch.

        Parameters
        ----------
        alignment : Tensor of shape ()
            Alignment loss A in nats. The update does not synchronize with the device.
        """
        # Mixed precision skips a step with infinite gradients: ignore its loss as well.
        known = torch.where(alignment.isfinite(), alignment, self.average)
        # The running mean starts at the first loss.
        earlier = torch.where(self.average.isnan(), known, self.average)
        self.average.copy_(earlier.lerp(known.to(earlier), self._FADING))
        excess = (self.average + self.gap) / self.information - (1 - self.target_margin)
        urgent = torch.maximum(excess, self._URGENCY * excess)
        # NaN as long as no loss was finite: then the weight stays.
        self.weight *= torch.exp(self._RATE * urgent.clamp(-1, 1).nan_to_num(0))
        self.weight.clamp_(self._LEAST, self._MOST)


class AlignedELBO(nn.Module):
    """The training loss: reconstruction + kl_weight * penalty + alignment_weight * A.

    The penalty is the KL term unless the objective replaces it.

    Parameters
    ----------
    likelihood : {"gaussian", "bernoulli"}
        Likelihood p(x|z) of the decoder.
    vertices : Tensor of shape (n_components, latent_dim)
        Vertices S of the witness's simplex.
    scale : float
        Witness scale beta.
    kl_weight : float
        Weight of the penalty, at least 0.
    alignment_weight : float or LagrangeWeight
        Weight of the alignment loss: a number, at least 0, or a guard that adapts it.
    objective : Objective or None, default=None
        Mitigation that replaces parts of the ELBO. If None, the ELBO is used.

    References
    ----------
    Theory section 11 (RST); arXiv:2605.18224.
    """

    vertices: Tensor

    def __init__(
        self,
        likelihood: Literal["gaussian", "bernoulli"],
        vertices: Tensor,
        scale: float,
        kl_weight: float,
        alignment_weight: float | LagrangeWeight,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.register_buffer("vertices", vertices)
        self.scale = scale
        self.kl_weight = kl_weight
        self.set_alignment(alignment_weight)
        self.objective = Objective() if objective is None else objective
        # VAENet sets it before each batch, for objectives with a schedule.
        self.epoch = 0.0

    def set_alignment(self, alignment_weight: float | LagrangeWeight) -> None:
        """Change the weight of the alignment loss.

        Parameters
        ----------
        alignment_weight : float or LagrangeWeight
            A number, at least 0, or a guard that adapts the weight.
        """
        self.guard: LagrangeWeight | None = None
        self.alignment_weight: float | Tensor
        if isinstance(alignment_weight, LagrangeWeight):
            self.guard = alignment_weight
            # The guard updates this tensor in place, so the loss needs no copy.
            self.alignment_weight = alignment_weight.weight
        else:
            self.alignment_weight = alignment_weight

    def reconstruction(self, result: Pass, x: Tensor) -> Tensor:
        """Compute -log p(x|z) of each sample under the likelihood.

        Parameters
        ----------
        result : Pass
            Result of the VAE for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape (n_samples,)
            Negative log-likelihood of each sample in nats.
        """
        if self.likelihood == "bernoulli":
            return bernoulli_loss(x, result.output)
        return gaussian_loss(x, result.output, result.log_noise)

    def terms(self, result: Pass, x: Tensor, teacher_proba: Tensor) -> Terms:
        """Compute the parts of the loss, without their weights.

        Parameters
        ----------
        result : Pass
            Result of the VAE for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.
        teacher_proba : Tensor of shape (n_samples, n_components)
            Teacher's posteriors T of the same samples.

        Returns
        -------
        Terms
            Means over the batch in nats.
        """
        losses = self.reconstruction(result, x)
        penalty = self.objective.penalty(result, self.epoch)
        return Terms(
            self.objective.reconstruction(losses, result, x),
            penalty,
            self._kl(result, penalty),
            self._alignment(result, teacher_proba),
        )

    def total(self, terms: Terms) -> Tensor:
        """Compute the weighted sum of the parts.

        Parameters
        ----------
        terms : Terms
            Result of :meth:`terms`.

        Returns
        -------
        Tensor of shape ()
            The loss in nats.
        """
        loss = terms.reconstruction + self.kl_weight * terms.penalty
        return loss + self.alignment_weight * terms.alignment

    def _kl(self, result: Pass, penalty: Tensor) -> Tensor:
        # The penalty of the plain ELBO is this KL: do not compute it twice.
        if type(self.objective) is Objective:
            return penalty
        with torch.no_grad():
            return gaussian_kl(result.mean, result.log_variance).mean()

    def _alignment(self, result: Pass, teacher_proba: Tensor) -> Tensor:
        if self.guard is None and self.alignment_weight == 0:
            return result.mean.new_zeros(())
        loss = alignment(teacher_proba, result.mean, self.vertices, self.scale)
        return loss.mean()
