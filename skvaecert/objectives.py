"""Loss terms with gradients, one value a sample, in nats (theory sections 2 and 11).

Sums run over features and latent dimensions; means over samples are taken last.
:class:`AlignmentLoss` and :class:`LagrangeWeight` are for any training loop.
"""

import math
from typing import Any, ClassVar, NamedTuple, Self

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
        mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        log s, with s = sigma^2.

    Returns
    -------
    Tensor of shape (n_samples,)
        Nats, at least 0.

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
        mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        log s, with s = sigma^2.

    Returns
    -------
    Tensor of shape (n_samples, latent_dim)
        Nats, at least 0.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import kl_per_dimension
    >>> kl_per_dimension(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
    tensor([[2., 0.]])
    """
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


def gaussian_loss(x: Tensor, output: Tensor, log_noise: Tensor) -> Tensor:
    """-log N(x; output, v I), with one log-variance log v for all features.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Samples.
    output : Tensor of shape (n_samples, n_features)
        Decoder means.
    log_noise : Tensor of shape ()
        log v.

    Returns
    -------
    Tensor of shape (n_samples,)
        Nats of density; can be negative.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import gaussian_loss
    >>> x = torch.tensor([[1.0, 0.0]])
    >>> gaussian_loss(x, torch.zeros(1, 2), torch.tensor(0.0))
    tensor([2.3379])
    """
    error = (x - output).square().sum(dim=1)
    normaliser = x.shape[1] * (log_noise + math.log(2 * math.pi))
    return (error * torch.exp(-log_noise) + normaliser) / 2


def bernoulli_loss(x: Tensor, output: Tensor) -> Tensor:
    """-sum_j x_j log p_j + (1 - x_j) log(1 - p_j), p = sigmoid(output).

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Samples in [0, 1].
    output : Tensor of shape (n_samples, n_features)
        Decoder logits.

    Returns
    -------
    Tensor of shape (n_samples,)
        Nats, at least 0.

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
        T, every entry above 0.
    latent_mean : Tensor of shape (n_samples, latent_dim)
        mu.
    vertices : Tensor of shape (n_components, latent_dim)
        S.
    scale : float
        beta.

    Returns
    -------
    Tensor of shape (n_samples,)
        Nats, at least 0.

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
    return functional.kl_div(log_q, teacher_proba, reduction="none").sum(dim=1)


def _witness_log_proba(
    latent_mean: Tensor, vertices: Tensor, scale: float | Tensor
) -> Tensor:
    return functional.log_softmax(scale * latent_mean @ vertices.T, dim=1)


_REDUCTIONS = ("mean", "sum", "none")


class _InFullPrecision(nn.Module):
    """A module whose buffers move with a model but keep their dtype.

    In 16 bits vertices are no simplex, and a weight cannot rise in small steps.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            before = kept[name]
            assert before is not None
            assert moved is not None
            # What is on no device yet has no values to keep.
            self._buffers[name] = (
                moved.to(before.dtype) if before.is_meta else before.to(moved.device)
            )
        return self


class AlignmentLoss(_InFullPrecision):
    """A = mean_i KL(T_i || softmax(beta S mu_i)), a term for any training loop.

    Add it, times a weight, to the loss of a VAE: it pushes latent means apart as far as
    the teacher tells the samples apart. :class:`skvaecert.CollapseCertifier` and
    :func:`skvaecert.diagnose` take it as `witness`, and so certify with the very
    witness that was trained against.

    There are no parameters, only buffers: `to` moves them, `state_dict` saves them.
    They stay in float32, also where a model is turned to 16 bits, and the loss is
    computed in float32, or in float64 for codes of that type, also under autocast.

    Parameters
    ----------
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.

    Attributes
    ----------
    vertices : Tensor of shape (n_components, latent_dim)
        S.
    scale : Tensor of shape ()
        beta.

    Raises
    ------
    ValueError
        If the vertices are no regular simplex or the scale is not valid.

    See Also
    --------
    LagrangeWeight : A weight for this term that finds itself.
    skvaecert.datasets.WithPosterior : Keeps samples and posteriors together.

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

    In the loop, with the means of a batch and the posteriors of the same samples:

    >>> mean = torch.zeros(150, 2, requires_grad=True)
    >>> loss = 30 * loss_fn(mean, teacher_proba)  # + the loss that you have
    >>> loss.backward()
    """

    vertices: Tensor
    scale: Tensor

    def __init__(self, vertices: ArrayLike, scale: float) -> None:
        super().__init__()
        self.register_buffer("vertices", torch.as_tensor(vertices).float().clone())
        self.register_buffer("scale", torch.as_tensor(scale).float().clone())
        # Checks them, as they are in float32.
        simplex_witness(*simplex_of(self))

    @classmethod
    def from_teacher(
        cls,
        teacher: Any,
        X: Any,
        latent_dim: int,
        scale: str | float = "prior",
    ) -> Self:
        """Make the loss for a fitted teacher.

        Parameters
        ----------
        teacher : estimator
            Fitted, with `predict_proba`, or `transform`, that returns posteriors:
            :class:`skvaecert.GMMTeacher`, or a pipeline that ends in one.
        X : array-like of shape (n_samples, n_features)
            Training samples, or whatever the teacher takes.
        latent_dim : int
            Number of latent dimensions, at least n_components - 1.
        scale : "prior" or float, default="prior"
            beta, above 0; "prior" is the scale at which the analytic code of these
            samples is as wide as the prior.

        Returns
        -------
        AlignmentLoss
            On the CPU; ``.to(device)`` moves it.

        Raises
        ------
        ValueError
            If the teacher returns no posteriors, if they are the same for all samples,
            or if `latent_dim` is too small for its components.
        """
        proba = teacher_posterior(teacher, X)
        vertices = simplex_vertices(proba.shape[1], latent_dim)
        return cls(vertices, resolve_witness_scale(scale, proba, name="scale"))

    def forward(
        self, mean: Tensor, teacher_proba: Tensor, reduction: str = "mean"
    ) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        mean : Tensor of shape (n_samples, latent_dim)
            The encoder's means, not drawn codes.
        teacher_proba : Tensor of shape (n_samples, n_components)
            Posteriors of the same samples, in any precision, on any device.
        reduction : {"mean", "sum", "none"}, default="mean"
            Over the samples.

        Returns
        -------
        Tensor of shape () or (n_samples,)
            Nats, at least 0.

        Raises
        ------
        ValueError
            If shapes do not fit, or `reduction` is none of these.
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
                "the posteriors of the samples of this batch."
            )
        with torch.autocast(mean.device.type, enabled=False):
            losses = alignment(proba, mean, self.vertices.to(mean), self.scale)
        if reduction == "none":
            return losses
        return losses.mean() if reduction == "mean" else losses.sum()

    def witness_log_proba(self, mean: Tensor) -> Tensor:
        """Compute log softmax(beta S mu), what the witness reads off the means.

        Parameters
        ----------
        mean : Tensor of shape (n_samples, latent_dim)
            The encoder's means.

        Returns
        -------
        Tensor of shape (n_samples, n_components)
            Natural logarithms of probabilities.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        mean = self._checked(mean)
        with torch.autocast(mean.device.type, enabled=False):
            return _witness_log_proba(mean, self.vertices.to(mean), self.scale)

    def _checked(self, mean: Tensor) -> Tensor:
        """Return means of the right shape, in float32 or better."""
        latent_dim = self.vertices.shape[1]
        if mean.ndim != 2 or mean.shape[1] != latent_dim:
            raise ValueError(
                f"mean must have shape (n_samples, latent_dim) = (n_samples, "
                f"{latent_dim}), got {tuple(mean.shape)}. Flatten it, or make the loss "
                "for its latent_dim."
            )
        return mean.to(torch.promote_types(mean.dtype, torch.float32))


class Objective(BaseEstimator):
    """The ELBO, in parts that a mitigation of collapse can replace one by one.

    A subclass overrides the methods of the parts that it changes. The mitigations in
    :mod:`skvaecert.baselines` are such subclasses. This is a scikit-learn estimator
    only so that its parameters can be searched.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def check(self, likelihood: str) -> None:
        """Check the parameters, also against the likelihood.

        Parameters
        ----------
        likelihood : {"gaussian", "bernoulli"}
            What the decoder's output means.

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
            What the VAE returned for a batch.
        epoch : float
            Epochs trained so far, including the fraction of the current one.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch, nats. The default is KL(q(z|x) || N(0, I)).
        """
        return gaussian_kl(result.mean, result.log_variance).mean()

    def reconstruction(self, losses: Tensor, result: Pass, x: Tensor) -> Tensor:
        """Return the term that replaces the reconstruction term.

        Parameters
        ----------
        losses : Tensor of shape (n_samples,)
            -log p(x|z) of each sample under the likelihood.
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch, nats. The default is the mean of `losses`.
        """
        return losses.mean()

    def posterior(self, latent_dim: int) -> nn.Module:
        """Return the module that turns the encoder's output into q(z|x).

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
        """Return the skorch callbacks that training with this objective needs.

        Returns
        -------
        list of (str, skorch.callbacks.Callback)
            Names and callbacks, new ones at each call. The default is none.
        """
        return []


class ReleasedCallback(Callback):
    """A callback that holds data, or a resource, only while a net trains."""

    def release(self) -> None:
        """Drop them. skorch calls `on_train_end` only if no error ends the training."""


class Terms(NamedTuple):
    """The parts of the loss, each a mean over the batch, in nats.

    Attributes
    ----------
    reconstruction : Tensor of shape ()
        -log p(x|z), for one drawn code per sample.
    penalty : Tensor of shape ()
        The term by which the objective replaces the KL term.
    kl : Tensor of shape ()
        KL(q(z|x) || N(0, I)), for the history; it may have no gradient.
    alignment : Tensor of shape ()
        KL(T || witness). If its weight is 0, it is not computed and is 0.
    """

    reconstruction: Tensor
    penalty: Tensor
    kl: Tensor
    alignment: Tensor


class LagrangeWeight(_InFullPrecision):
    """Weight w that holds the margin at a share of the teacher information.

    w is the multiplier of the constraint A <= (1 - m) I_T. After each step

        log w += 0.05 clip(c, -1, 1),    c = e if e < 0 else 8 e,
        e = (A - (1 - m) I_T) / I_T

    with a running mean of A over batches. So the weight rises faster when the margin
    is below its target than it falls when the margin is above.

    In a loop of your own it takes the place of a number: call it with the alignment
    loss of a batch. In training mode each call changes w. Where gradients of several
    batches make one step, let one call in each step do so: ``guard.train(last)``.
    Otherwise w runs ahead of the model and far above what it needs.

    Parameters
    ----------
    target_margin : float
        m, the relative margin to hold, in (0, 1).
    information : float
        I_T of the samples whose margin is held, nats, above 0:
        :func:`skvaecert.metrics.teacher_information`.

    Attributes
    ----------
    weight : Tensor of shape ()
        w, in [0.1, 1e6]. It starts at 1. Like `average` it is a buffer.
    average : Tensor of shape ()
        The running mean of A, nats; NaN before the first step.
    gap : float
        A of the samples whose margin is held minus A of the training samples, nats.
        Set it after an epoch to hold the margin of other samples than those trained on.

    Notes
    -----
    In distributed training each process has a weight of its own, and what counts is
    their mean. As an attribute of the module that ``DistributedDataParallel`` wraps,
    it is the first process's at the start of each forward pass.

    References
    ----------
    Theory section 10.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.objectives import LagrangeWeight
    >>> guard = LagrangeWeight(target_margin=0.9, information=1.5)
    >>> alignment_loss = torch.tensor(1.5, requires_grad=True)  # of a constant code
    >>> guard(alignment_loss).backward()  # + the loss that you have
    >>> guard.weight > 1
    tensor(True)
    """

    weight: Tensor
    average: Tensor

    _RATE, _FADING, _URGENCY = 0.05, 0.1, 8.0
    # A weight that has gone down further would take too long to come back.
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

    def forward(self, alignment: Tensor) -> Tensor:
        """Return the weighted loss; in training mode, update the weight for the next.

        Parameters
        ----------
        alignment : Tensor of shape ()
            A of a batch, nats.

        Returns
        -------
        Tensor of shape ()
            w A.
        """
        weighted = self.weight.clone() * alignment
        if self.training:
            self.update(alignment)
        return weighted

    def resume_from(self, earlier: "LagrangeWeight") -> None:
        """Take over the state of another weight, for a new target or new samples.

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
            A, nats. This does not synchronise with the device.
        """
        # A batch that broke down, as mixed precision skips it, tells nothing.
        known = torch.where(alignment.isfinite(), alignment, self.average)
        earlier = torch.where(self.average.isnan(), known, self.average)
        self.average.copy_(earlier.lerp(known.to(earlier), self._FADING))
        excess = (self.average + self.gap) / self.information - (1 - self.target_margin)
        urgent = torch.maximum(excess, self._URGENCY * excess)
        self.weight *= torch.exp(self._RATE * urgent.clamp(-1, 1).nan_to_num(0))
        self.weight.clamp_(self._LEAST, self._MOST)


class AlignedELBO(nn.Module):
    """The training loss: reconstruction + kl_weight * penalty + alignment_weight * A.

    The penalty is the KL term unless the objective replaces it.

    Parameters
    ----------
    likelihood : {"gaussian", "bernoulli"}
        What the decoder's output means.
    vertices : Tensor of shape (n_components, latent_dim)
        S.
    scale : float
        beta.
    kl_weight : float
        Weight of the penalty, at least 0.
    alignment_weight : float or LagrangeWeight
        Weight of the alignment term, at least 0; or a weight that adapts.
    objective : Objective or None, default=None
        Replaces parts of the ELBO; None for the ELBO itself.

    References
    ----------
    Theory section 11 (RST); arXiv:2605.18224.
    """

    vertices: Tensor

    def __init__(
        self,
        likelihood: str,
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
        # The training sets it, for objectives with a schedule.
        self.epoch = 0.0

    def set_alignment(self, alignment_weight: float | LagrangeWeight) -> None:
        """Change the weight of the alignment term.

        Parameters
        ----------
        alignment_weight : float or LagrangeWeight
            As for the constructor.
        """
        self.guard: LagrangeWeight | None = None
        self.alignment_weight: float | Tensor
        if isinstance(alignment_weight, LagrangeWeight):
            self.guard = alignment_weight
            self.alignment_weight = alignment_weight.weight
        else:
            self.alignment_weight = alignment_weight

    def reconstruction(self, result: Pass, x: Tensor) -> Tensor:
        """Compute -log p(x|z) of each sample under the likelihood.

        Parameters
        ----------
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape (n_samples,)
            Nats.
        """
        if self.likelihood == "bernoulli":
            return bernoulli_loss(x, result.output)
        return gaussian_loss(x, result.output, result.log_noise)

    def terms(self, result: Pass, x: Tensor, teacher_proba: Tensor) -> Terms:
        """Compute the parts of the loss, without their weights.

        Parameters
        ----------
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.
        teacher_proba : Tensor of shape (n_samples, n_components)
            T.

        Returns
        -------
        Terms
            Means over the batch, nats.
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
            From :meth:`terms`.

        Returns
        -------
        Tensor of shape ()
            The loss, nats.
        """
        loss = terms.reconstruction + self.kl_weight * terms.penalty
        return loss + self.alignment_weight * terms.alignment

    def _kl(self, result: Pass, penalty: Tensor) -> Tensor:
        if type(self.objective) is Objective:
            return penalty
        with torch.no_grad():
            return gaussian_kl(result.mean, result.log_variance).mean()

    def _alignment(self, result: Pass, teacher_proba: Tensor) -> Tensor:
        if self.guard is None and self.alignment_weight == 0:
            return result.mean.new_zeros(())
        loss = alignment(teacher_proba, result.mean, self.vertices, self.scale)
        return loss.mean()
