"""Loss terms with gradients, one value a sample, in nats (theory sections 2 and 11).

Sums run over features and latent dimensions; means over samples are taken last.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from skvaecert.networks import GaussianPosterior, Pass

__all__ = [
    "AlignedELBO",
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
    """(mu_j^2 + s_j - log s_j - 1) / 2, the share of each dimension in the KL.

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
        Rows.
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
        Rows in [0, 1].
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
    teacher_proba: Tensor, latent_mean: Tensor, vertices: Tensor, scale: float
) -> Tensor:
    """KL(T_i || softmax(beta S mu_i)), with the escape force as minus its gradient.

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
    log_q = functional.log_softmax(scale * latent_mean @ vertices.T, dim=1)
    return functional.kl_div(log_q, teacher_proba, reduction="none").sum(dim=1)


class Objective(BaseEstimator):
    """The ELBO, in parts that a mitigation of collapse can replace one by one.

    A subclass overrides what its method changes; `skvaecert.baselines` has them. It
    is a scikit-learn estimator only so that its parameters nest in a grid.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    # Whether each step trains encoder and decoder together.
    trains_jointly: ClassVar[bool] = True

    def check(self, likelihood: str) -> None:
        """Fail if a parameter is not allowed, or not with this likelihood.

        Parameters
        ----------
        likelihood : {"gaussian", "bernoulli"}
            What the decoder's output means.

        Raises
        ------
        ValueError
            If so.
        """
        self._validate_params()

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return what stands in the place of the KL term, before `kl_weight`.

        Parameters
        ----------
        result : Pass
            What the VAE returned for a batch.
        epoch : float
            Epochs of training so far, with the fraction of the present one.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch, nats; KL(q(z|x) || N(0, I)) unless overridden.
        """
        return gaussian_kl(result.mean, result.log_variance).mean()

    def reconstruction(self, losses: Tensor, result: Pass, x: Tensor) -> Tensor:
        """Return what stands in the place of the reconstruction term.

        Parameters
        ----------
        losses : Tensor of shape (n_samples,)
            -log p(x|z) of every row, by the likelihood.
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch, nats; that of `losses` unless overridden.
        """
        return losses.mean()

    def posterior(self, latent_dim: int) -> nn.Module:
        """Return the module that turns the encoder's output into q(z|x).

        Parameters
        ----------
        latent_dim : int
            Width of a code.

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
            Names and callbacks, new ones at each call; none unless overridden.
        """
        return []


class ReleasedCallback(Callback):
    """A callback that holds data only while a net trains."""

    def release(self) -> None:
        """Drop the data, so that they are not pickled with the net."""


class Terms(NamedTuple):
    """The parts of the loss, each a mean over the batch, in nats.

    Attributes
    ----------
    reconstruction : Tensor of shape ()
        -log p(x|z), at one drawn code a row.
    penalty : Tensor of shape ()
        What the objective puts in the place of the KL term.
    kl : Tensor of shape ()
        KL(q(z|x) || N(0, I)), with a gradient or not.
    alignment : Tensor of shape ()
        KL(T || witness); 0 where its weight is 0, because it is not computed.
    """

    reconstruction: Tensor
    penalty: Tensor
    kl: Tensor
    alignment: Tensor


class LagrangeWeight:
    """Holds the margin at a share of the teacher information, by the weight w.

    Takes w for the multiplier of the constraint A <= (1 - m) I_T, and after each step

        log w += 0.05 clip(c, -1, 1),    c = e if e < 0 else 8 e,
        e = (A - (1 - m) I_T) / I_T

    with a running mean of A over batches. A margin that falls below its target is thus
    brought back faster than one above it is let go.

    Parameters
    ----------
    target_margin : float
        m, the relative margin to hold, in (0, 1).
    information : float
        I_T of the rows to hold it on, nats, above 0.
    device : torch.device
        Where losses are.

    Attributes
    ----------
    weight : Tensor of shape ()
        w, in [0.1, 1e6]; 1 at the beginning.
    gap : float
        How much greater A is on the rows to hold the margin on than on those trained
        on, nats; for whoever trains to set.

    References
    ----------
    Theory section 10.
    """

    _RATE, _FADING, _URGENCY = 0.05, 0.1, 8.0
    # A weight that has gone down further would take too long to come back.
    _LEAST, _MOST = 0.1, 1e6

    def __init__(
        self, target_margin: float, information: float, device: torch.device
    ) -> None:
        self.target_margin = target_margin
        self.information = information
        self.weight = torch.ones((), device=device)
        self.gap = 0.0
        self._mean: Tensor | None = None

    def resume_from(self, earlier: "LagrangeWeight") -> None:
        """Take over the state of a guard, for another target or other rows.

        Parameters
        ----------
        earlier : LagrangeWeight
            The guard of the fit before.
        """
        self.weight.copy_(earlier.weight)
        self.gap = earlier.gap

    def update(self, alignment: Tensor) -> None:
        """Move the weight by the alignment loss of one batch.

        Parameters
        ----------
        alignment : Tensor of shape ()
            A, nats; the device is not waited for.
        """
        if self._mean is None:
            self._mean = alignment.clone()
        self._mean.lerp_(alignment, self._FADING)
        excess = (self._mean + self.gap) / self.information - (1 - self.target_margin)
        urgent = torch.maximum(excess, self._URGENCY * excess)
        self.weight *= torch.exp(self._RATE * urgent.clamp(-1, 1))
        self.weight.clamp_(self._LEAST, self._MOST)


class AlignedELBO(nn.Module):
    """The training loss: reconstruction + kl_weight * penalty + alignment_weight * A.

    The penalty is the KL term unless the objective says otherwise.

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
        Weight of the alignment term, at least 0, or what finds it.
    objective : Objective or None, default=None
        What a mitigation changes; None for the ELBO.

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
        # Set by whoever trains, for schedules.
        self.epoch = 0.0

    def set_alignment(self, alignment_weight: float | LagrangeWeight) -> None:
        """Change the weight of the alignment term.

        Parameters
        ----------
        alignment_weight : float or LagrangeWeight
            As for the constructor.
        """
        self.guard = (
            alignment_weight if isinstance(alignment_weight, LagrangeWeight) else None
        )
        self.alignment_weight = (
            alignment_weight.weight
            if isinstance(alignment_weight, LagrangeWeight)
            else alignment_weight
        )

    def reconstruction(self, result: Pass, x: Tensor) -> Tensor:
        """Compute -log p(x|z) of every row, by the likelihood.

        Parameters
        ----------
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Tensor of shape (n_samples,)
            Nats.
        """
        if self.likelihood == "bernoulli":
            return bernoulli_loss(x, result.output)
        return gaussian_loss(x, result.output, result.log_noise)

    def terms(self, result: Pass, x: Tensor, teacher_proba: Tensor) -> Terms:
        """Compute the parts of the loss, not yet weighted.

        Parameters
        ----------
        result : Pass
            What the VAE returned for `x`.
        x : Tensor of shape (n_samples, n_features)
            Rows.
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
        """Weigh the parts and add them.

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
