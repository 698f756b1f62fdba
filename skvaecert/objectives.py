"""Loss terms with gradients, one value a sample, in nats (theory sections 2 and 11).

Sums run over features and latent dimensions; means over samples are taken last.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from skvaecert.networks import Pass

__all__ = [
    "AlignedELBO",
    "Terms",
    "alignment",
    "bernoulli_loss",
    "gaussian_kl",
    "gaussian_loss",
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
    terms = mean.square() + log_variance.exp() - log_variance - 1
    return terms.sum(dim=1) / 2


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


class Terms(NamedTuple):
    """The parts of the loss, each a mean over the batch, in nats.

    Attributes
    ----------
    reconstruction : Tensor of shape ()
        -log p(x|z), at one drawn code a row.
    kl : Tensor of shape ()
        KL(q(z|x) || N(0, I)).
    alignment : Tensor of shape ()
        KL(T || witness); 0 where its weight is 0, because it is not computed.
    """

    reconstruction: Tensor
    kl: Tensor
    alignment: Tensor


class AlignedELBO(nn.Module):
    """The training loss: reconstruction + kl_weight * KL + alignment_weight * A.

    Parameters
    ----------
    likelihood : {"gaussian", "bernoulli"}
        What the decoder's output means.
    vertices : Tensor of shape (n_components, latent_dim)
        S.
    scale : float
        beta.
    kl_weight : float
        Weight of the KL term, at least 0.
    alignment_weight : float
        Weight of the alignment term, at least 0.

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
        alignment_weight: float,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.register_buffer("vertices", vertices)
        self.scale = scale
        self.kl_weight = kl_weight
        self.alignment_weight = alignment_weight

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
        return Terms(
            self.reconstruction(result, x).mean(),
            gaussian_kl(result.mean, result.log_variance).mean(),
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
        loss = terms.reconstruction + self.kl_weight * terms.kl
        return loss + self.alignment_weight * terms.alignment

    def _alignment(self, result: Pass, teacher_proba: Tensor) -> Tensor:
        if self.alignment_weight == 0:
            return result.mean.new_zeros(())
        loss = alignment(teacher_proba, result.mean, self.vertices, self.scale)
        return loss.mean()
