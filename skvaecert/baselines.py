"""Mitigations of collapse from the literature, for `CertifiedVAE(objective=...)`.

Each class replaces a part of the ELBO. None of them rules out a constant mean:
docs/baselines.md shows this for each class (theory section 11). `kl_weight` multiplies
the whole term that replaces the KL term. The defaults suit 100 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.special import lambertw
from sklearn.utils._param_validation import Interval, StrOptions
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from skvaecert._samples import CHUNK
from skvaecert.networks import Pass, bounded, unbounded
from skvaecert.objectives import (
    Objective,
    ReleasedCallback,
    gaussian_loss,
    kl_per_dimension,
)

__all__ = [
    "AggressiveEncoder",
    "BatchNormVAE",
    "BetaVAE",
    "Capacity",
    "CyclicalAnnealing",
    "DeltaVAE",
    "FreeBits",
    "InfoVAE",
    "LinearAnnealing",
    "MuForcing",
    "SigmaVAE",
    "maximum_mean_discrepancy",
    "mutual_information",
]

_AT_LEAST_0 = Interval(Real, 0, None, closed="left")
_ABOVE_0 = Interval(Real, 0, None, closed="neither")
# Those in the code of Tolstikhin et al., arXiv:1711.01558, which has this kernel.
_KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class BetaVAE(Objective):
    """Penalty beta * KL: a stronger pull to the prior.

    Parameters
    ----------
    beta : float, default=4.0
        Weight of the KL term, at least 0. The parameter `kl_weight` of
        :class:`skvaecert.CertifiedVAE` has the same effect.

    References
    ----------
    Higgins et al., ICLR 2017, who use values from 1 to 16 and above.

    Examples
    --------
    >>> from skvaecert import CertifiedVAE
    >>> from skvaecert.baselines import BetaVAE
    >>> CertifiedVAE(objective=BetaVAE()).set_params(objective__beta=8.0).objective
    BetaVAE(beta=8.0)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"beta": [_AT_LEAST_0]}

    def __init__(self, beta: float = 4.0) -> None:
        self.beta = beta

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return beta * KL.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch in nats.
        """
        return self.beta * super().penalty(result, epoch)


class _Annealing(Objective):
    """KL term with a weight that depends on the epoch."""

    def weight(self, epoch: float) -> float:
        raise NotImplementedError

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return weight(epoch) * KL.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch in nats.
        """
        return self.weight(epoch) * super().penalty(result, epoch)


class LinearAnnealing(_Annealing):
    """Penalty w KL, w = min(1, start + (1 - start) * epoch / n_epochs).

    Parameters
    ----------
    n_epochs : float, default=10
        Number of epochs after which the weight is 1, above 0.
    start : float, default=0.1
        Initial weight, in [0, 1].

    References
    ----------
    Bowman et al., arXiv:1511.06349; Sonderby et al., arXiv:1602.02282. The defaults are
    those of the experiments in He et al., arXiv:1901.05534.

    Examples
    --------
    >>> from skvaecert.baselines import LinearAnnealing
    >>> [LinearAnnealing(10, 0.1).weight(epoch) for epoch in (0, 5, 10, 90)]
    [0.1, 0.55, 1.0, 1.0]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_epochs": [_ABOVE_0],
        "start": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(self, n_epochs: float = 10, start: float = 0.1) -> None:
        self.n_epochs = n_epochs
        self.start = start

    def weight(self, epoch: float) -> float:
        """Return the weight of the KL term.

        Parameters
        ----------
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        float
            In [start, 1].
        """
        return min(1.0, self.start + (1 - self.start) * epoch / self.n_epochs)


class CyclicalAnnealing(_Annealing):
    """Penalty w KL, w = min(1, t / ratio), t = (epoch mod period) / period.

    Parameters
    ----------
    period : float, default=25
        Number of epochs per cycle, above 0. The default gives four cycles in 100
        epochs.
    ratio : float, default=0.5
        Fraction of a cycle in which the weight rises, in (0, 1].

    References
    ----------
    Fu et al., arXiv:1903.10145, who use four cycles and a ratio of 0.5.

    Examples
    --------
    >>> from skvaecert.baselines import CyclicalAnnealing
    >>> [CyclicalAnnealing(20, 0.5).weight(epoch) for epoch in (0, 5, 10, 19, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.0]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "period": [_ABOVE_0],
        "ratio": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(self, period: float = 25, ratio: float = 0.5) -> None:
        self.period = period
        self.ratio = ratio

    def weight(self, epoch: float) -> float:
        """Return the weight of the KL term.

        Parameters
        ----------
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        float
            In [0, 1].
        """
        return min(1.0, epoch % self.period / self.period / self.ratio)


class Capacity(Objective):
    """Penalty gamma * abs(KL - C), C = capacity * min(1, epoch / n_epochs).

    Parameters
    ----------
    capacity : float, default=25.0
        Final value of C in nats, at least 0.
    n_epochs : float, default=25
        Number of epochs in which C rises from 0 to its final value, above 0.
    gamma : float, default=1000.0
        Weight of the deviation from C, at least 0.

    References
    ----------
    Burgess et al., arXiv:1804.03599, who use 25 nats, gamma 1000 and 100,000 steps. The
    library pythae lets C rise for a quarter of 100 epochs.

    Examples
    --------
    >>> from skvaecert.baselines import Capacity
    >>> [Capacity(20.0, 10).target(epoch) for epoch in (0, 5, 10, 90)]
    [0.0, 10.0, 20.0, 20.0]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "capacity": [_AT_LEAST_0],
        "n_epochs": [_ABOVE_0],
        "gamma": [_AT_LEAST_0],
    }

    def __init__(
        self, capacity: float = 25.0, n_epochs: float = 25, gamma: float = 1000.0
    ) -> None:
        self.capacity = capacity
        self.n_epochs = n_epochs
        self.gamma = gamma

    def target(self, epoch: float) -> float:
        """Return C.

        Parameters
        ----------
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        float
            C in nats, in [0, capacity].
        """
        return self.capacity * min(1.0, epoch / self.n_epochs)

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return gamma * abs(KL - C) for the mean KL of the batch.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Penalty in nats.
        """
        excess = super().penalty(result, epoch) - self.target(epoch)
        return self.gamma * excess.abs()


class FreeBits(Objective):
    """Penalty sum_j max(nats, KL_j), where KL_j is the batch mean of dimension j.

    With ``per="batch"`` it is max(nats, KL), for the sum KL over dimensions.

    Parameters
    ----------
    nats : float, default=0.25
        Free nats, at least 0. Below this value, the penalty is constant.
    per : {"dimension", "batch"}, default="dimension"
        Whether `nats` applies to each dimension or to their sum.

    References
    ----------
    Kingma et al., arXiv:1606.04934, whose code uses 0.25 per dimension.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import FreeBits
    >>> from skvaecert.networks import Pass
    >>> mean = torch.tensor([[0.0, 2.0]])
    >>> result = Pass(mean, torch.zeros(1, 2), mean, mean, torch.tensor(0.0))
    >>> FreeBits(0.5).penalty(result, 0)  # KL is 0 and 2
    tensor(2.5000)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "nats": [_AT_LEAST_0],
        "per": [StrOptions({"dimension", "batch"})],
    }

    def __init__(
        self, nats: float = 0.25, per: Literal["dimension", "batch"] = "dimension"
    ) -> None:
        self.nats = nats
        self.per = per

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return the KL term, raised to `nats` where it is below `nats`.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch in nats.
        """
        kl = kl_per_dimension(result.mean, result.log_variance).mean(dim=0)
        if self.per == "batch":
            return kl.sum().clamp(min=self.nats)
        # Below `nats` the clamp has no gradient: these dimensions are free.
        return kl.clamp(min=self.nats).sum()


class _DeltaPosterior(nn.Module):
    """Posterior of :class:`DeltaVAE`: its KL is at least delta in every dimension."""

    def __init__(self, delta: float) -> None:
        super().__init__()
        level = 2 * delta + 1
        # The roots of ln v - v + level = 0 are v = -W(-exp(-level)), with Lambert's W.
        argument = -math.exp(-level)
        self.smallest = float(-lambertw(argument, 0).real)
        self.largest = float(-lambertw(argument, -1).real)
        # The excess covers the rounding of float32: the bound on the KL holds, and the
        # square root below has a finite gradient.
        self.level = level * (1 + 4e-6)

    def forward(self, mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        width = self.largest - self.smallest
        log_variance = torch.log(self.smallest + width * torch.sigmoid(raw))
        least = torch.sqrt(self.level + log_variance - log_variance.exp())
        # The KL is delta at `least`, and relu can only increase it.
        return least + torch.relu(mean), log_variance


class DeltaVAE(Objective):
    """ELBO with a posterior whose KL is at least delta in every dimension.

    The variance is v_l + (v_u - v_l) * sigmoid(raw), between the two roots v_l and v_u
    of ln v - v + 2 delta + 1 = 0. The mean is sqrt(2 delta + 1 + ln v - v) + max(0, m).
    This mean is often printed without the square root. Then KL >= delta does not hold.

    Parameters
    ----------
    delta : float, default=0.1
        Lower bound on the KL of each dimension in nats, in (0, 4]. Above 4, variances
        would leave the bounds exp(-10) and exp(10) of :mod:`skvaecert.networks`.

    References
    ----------
    Razavi et al., arXiv:1901.03416. The default is ours. Published models of text use
    similarly small values.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import DeltaVAE
    >>> from skvaecert.objectives import gaussian_kl
    >>> posterior = DeltaVAE(0.1).posterior(1)
    >>> gaussian_kl(*posterior(torch.zeros(1, 1), torch.zeros(1, 1)))
    tensor([0.1000])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "delta": [Interval(Real, 0, 4, closed="right")]
    }

    def __init__(self, delta: float = 0.1) -> None:
        self.delta = delta

    def posterior(self, latent_dim: int) -> nn.Module:
        """Return the module that keeps the KL at delta or above.

        Parameters
        ----------
        latent_dim : int
            Number of latent dimensions.

        Returns
        -------
        torch.nn.Module
            Maps (mean, raw) to (mean, log_variance), each (n, latent_dim).
        """
        return _DeltaPosterior(self.delta)


class AggressiveEncoder(Objective):
    """ELBO, where the encoder is trained alone before each step of the decoder.

    The encoder's steps use random batches. They stop when the mean loss of a window of
    steps is above the mean loss of the previous window. After each epoch, the mutual
    information of x and z is estimated on the monitored samples. Once this estimate
    falls, training continues in the usual way.

    Parameters
    ----------
    window : int, default=10
        Number of steps per window, at least 1.
    max_inner_steps : int, default=100
        Maximum number of encoder steps before each decoder step, at least 1.

    See Also
    --------
    mutual_information : Computes the estimate.

    References
    ----------
    He et al., arXiv:1901.05534, without their annealing of the KL weight. The defaults
    are the authors' values for images.

    Examples
    --------
    >>> from skvaecert import CertifiedVAE
    >>> from skvaecert.baselines import AggressiveEncoder
    >>> vae = CertifiedVAE(objective=AggressiveEncoder(max_inner_steps=20))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "window": [Interval(Integral, 1, None, closed="left")],
        "max_inner_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, window: int = 10, max_inner_steps: int = 100) -> None:
        self.window = window
        self.max_inner_steps = max_inner_steps

    def callbacks(self) -> list[tuple[str, Callback]]:
        """Return the callback that trains the encoder before the decoder.

        Returns
        -------
        list of (str, skorch.callbacks.Callback)
            The name of the callback, and the callback.
        """
        first = _EncoderFirst(self.window, self.max_inner_steps)
        return [("encoder_first", first)]


def mutual_information(mean: Tensor, log_variance: Tensor, code: Tensor) -> Tensor:
    """Estimate E[ln q(z|x) - ln q(z)], where q(z) averages q(z|x) over the samples.

    Parameters
    ----------
    mean, log_variance : Tensor of shape (n_samples, latent_dim)
        Parameters of the encoder's posterior q(z|x).
    code : Tensor of shape (n_samples, latent_dim)
        One drawn code per sample, from q(z|x).

    Returns
    -------
    Tensor of shape ()
        Estimate in nats, at most about ln n_samples. The expectation of ln q(z|x) is
        exact. That of ln q(z) is estimated by a mean over the codes, so the estimate
        can be negative.

    References
    ----------
    He et al., arXiv:1901.05534, appendix; Hoffman & Johnson 2016.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import mutual_information
    >>> mean = torch.tensor([[-9.0], [9.0]])  # two codes far apart: ln 2
    >>> mutual_information(mean, torch.zeros(2, 1), mean + 1)
    tensor(0.6931)
    """
    # Both parts contain the constant d ln(2 pi) / 2: it cancels.
    inside = -(1 + log_variance).sum(dim=1).mean() / 2
    square = (code[:, None] - mean).square() * torch.exp(-log_variance)
    log_densities = -(square + log_variance).sum(dim=2) / 2
    return (
        inside - (log_densities.logsumexp(dim=1) - torch.tensor(len(code)).log()).mean()
    )


def maximum_mean_discrepancy(
    code: Tensor, prior: Tensor, scales: Sequence[float] = _KERNEL_SCALES
) -> Tensor:
    """Estimate E k(z, z') + E k(w, w') - 2 E k(z, w); z from q(z), w from the prior.

    The kernel is k(a, b) = sum_s C_s / (C_s + ||a - b||^2), C_s = 2 * latent_dim * s.

    Parameters
    ----------
    code : Tensor of shape (n_samples, latent_dim)
        Drawn codes z.
    prior : Tensor of shape (n_samples, latent_dim)
        Draws w from the prior.
    scales : sequence of float
        Kernel scales s, above 0.

    Returns
    -------
    Tensor of shape ()
        The squared discrepancy as a U-statistic, which leaves out pairs of a draw with
        itself. It is unbiased: its mean is 0 if q(z) is the prior, and it can be
        negative.

    References
    ----------
    Gretton et al., JMLR 13, 2012, lemma 6.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import maximum_mean_discrepancy
    >>> code, prior = torch.zeros(2, 1), torch.full((2, 1), 2.0)
    >>> maximum_mean_discrepancy(code, prior, scales=[2.0])  # 1 + 1 - 2 * 4 / 8
    tensor(1.)
    """
    within = _mean_kernel(code, code, scales) + _mean_kernel(prior, prior, scales)
    return within - 2 * _mean_kernel(code, prior, scales)


def _mean_kernel(a: Tensor, b: Tensor, scales: Sequence[float]) -> Tensor:
    # Squared distances by |a - b|^2 = |a|^2 + |b|^2 - 2 ab, without an (n, n, d) array.
    square = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    widths = [2 * a.shape[1] * scale for scale in scales]
    # Rounding can make the squares slightly negative.
    kernel = torch.stack([c / (c + square.clamp(min=0)) for c in widths]).sum(dim=0)
    if a is not b:
        return kernel.mean()
    # A batch of one sample has no pairs: its mean is 0, not 0 / 0.
    n_pairs = max(len(a) * (len(a) - 1), 1)
    return (kernel - torch.diag(kernel.diagonal())).sum() / n_pairs


class InfoVAE(Objective):
    """Penalty (1 - alpha) * KL + (alpha + strength - 1) * MMD(q(z), N(0, I)).

    Parameters
    ----------
    alpha : float, default=1.0
        Weight that is taken from the KL term, at most 1. With 1, there is no KL term,
        and only the discrepancy pulls the codes to the prior.
    strength : float, default=100.0
        Weight lambda of Zhao et al.; ``alpha + strength - 1`` must be at least 0.
    scales : sequence of float, default=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
        Scales of the kernel, above 0.

    See Also
    --------
    maximum_mean_discrepancy : Computes the discrepancy; documents its kernel.

    References
    ----------
    Zhao et al., arXiv:1706.02262. They tune lambda until the term is as large as the
    reconstruction loss. The default is ours, for losses of tens of nats.

    Examples
    --------
    >>> from skvaecert import CertifiedVAE
    >>> from skvaecert.baselines import InfoVAE
    >>> vae = CertifiedVAE(objective=InfoVAE(alpha=0.5, strength=50.0))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, None, 1, closed="right")],
        "strength": [Interval(Real, None, None, closed="neither")],
        "scales": [list, tuple],
    }

    def __init__(
        self,
        alpha: float = 1.0,
        strength: float = 100.0,
        scales: Sequence[float] = _KERNEL_SCALES,
    ) -> None:
        self.alpha = alpha
        self.strength = strength
        self.scales = scales

    def check(self, likelihood: Literal["gaussian", "bernoulli"]) -> None:
        """Check the parameters and the weight of the discrepancy.

        Parameters
        ----------
        likelihood : {"gaussian", "bernoulli"}
            Likelihood p(x|z) of the decoder.

        Raises
        ------
        ValueError
            If a parameter or the weight is invalid.
        """
        super().check(likelihood)
        if self.alpha + self.strength < 1:
            raise ValueError(
                "alpha + strength - 1 of InfoVAE must be at least 0, so that codes are "
                "not pushed away from the prior; got "
                f"alpha={self.alpha!r} and "
                f"strength={self.strength!r}. Increase strength."
            )
        if not (self.scales and all(s in _ABOVE_0 for s in self.scales)):
            raise ValueError(
                "scales of InfoVAE must contain one or more values above 0, got "
                f"{self.scales!r}."
            )

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return (1 - alpha) * KL + (alpha + strength - 1) * MMD of the batch.

        The discrepancy compares the drawn codes with equally many draws from the prior.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Penalty in nats. It can be negative.
        """
        prior = torch.randn_like(result.code)
        discrepancy = maximum_mean_discrepancy(result.code, prior, self.scales)
        weight = self.alpha + self.strength - 1
        return (1 - self.alpha) * super().penalty(result, epoch) + weight * discrepancy


class _BatchNormPosterior(nn.Module):
    """Posterior of :class:`BatchNormVAE`: means with a fixed spread in each batch."""

    def __init__(self, latent_dim: int, gamma: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(latent_dim)
        # The scale stays at gamma, and only the shift is learned.
        self.norm.weight.requires_grad_(False).fill_(gamma)

    def forward(self, mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and len(mean) < 2:
            raise ValueError(
                "batch_size must be at least 2 for BatchNormVAE, got a batch of one "
                "sample. Increase batch_size."
            )
        return self.norm(mean), bounded(raw)


class BatchNormVAE(Objective):
    """ELBO with the latent mean gamma * (m - mean m) / sqrt(var m + 1e-5) + shift.

    In training, the mean and variance of m are computed on the batch. Afterwards,
    running averages replace them. If var m is well above 1e-5, the mean KL of a batch
    is at least latent_dim * gamma^2 / 2, whether or not m depends on x.

    Parameters
    ----------
    gamma : float, default=0.5
        Standard deviation of the latent mean in a batch, above 0. It is fixed, and the
        shift is learned.

    References
    ----------
    Zhu et al., arXiv:2004.12585. The default is the value in their code.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import BatchNormVAE
    >>> posterior = BatchNormVAE(gamma=0.5).posterior(1)
    >>> mean, _ = posterior(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> mean.detach().round(decimals=3)
    tensor([[-0.5000],
            [ 0.5000]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"gamma": [_ABOVE_0]}

    def __init__(self, gamma: float = 0.5) -> None:
        self.gamma = gamma

    def posterior(self, latent_dim: int) -> nn.Module:
        """Return the module that normalizes the latent means.

        Parameters
        ----------
        latent_dim : int
            Number of latent dimensions.

        Returns
        -------
        torch.nn.Module
            Maps (mean, raw) to (mean, log_variance), each (n, latent_dim).
        """
        return _BatchNormPosterior(latent_dim, self.gamma)


class MuForcing(Objective):
    """Penalty KL + strength * max(0, threshold - V), V = mean_i ||mu_i - mean mu||^2.

    Parameters
    ----------
    threshold : float, default=1.5
        Value of V below which the hinge acts, summed over dimensions, above 0.
    strength : float, default=1.0
        Weight of the hinge, at least 0. Above 1/2, the hinge is stronger than the pull
        of the KL term on the means.

    References
    ----------
    Liu et al., arXiv:1905.10072. The threshold is the value in their code, where V is a
    mean squared error. If that is a mean over dimensions too, multiply `threshold` and
    divide `strength` by `latent_dim` to get the same objective.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.baselines import MuForcing
    >>> from skvaecert.networks import Pass
    >>> mean = torch.tensor([[-1.0], [1.0]])  # KL is 1/2, V is 1
    >>> result = Pass(mean, torch.zeros(2, 1), mean, mean, torch.tensor(0.0))
    >>> MuForcing(threshold=1.5).penalty(result, 0)
    tensor(1.)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "threshold": [_ABOVE_0],
        "strength": [_AT_LEAST_0],
    }

    def __init__(self, threshold: float = 1.5, strength: float = 1.0) -> None:
        self.threshold = threshold
        self.strength = strength

    def penalty(self, result: Pass, epoch: float) -> Tensor:
        """Return KL + strength * max(0, threshold - V) of the batch.

        Parameters
        ----------
        result : Pass
            Result of the VAE for a batch.
        epoch : float
            Number of epochs trained so far.

        Returns
        -------
        Tensor of shape ()
            Penalty in nats.
        """
        spread = result.mean.var(dim=0, correction=0).sum()
        hinge = torch.relu(self.threshold - spread)
        return super().penalty(result, epoch) + self.strength * hinge


class SigmaVAE(Objective):
    """ELBO with the optimal noise variance for each batch, v = MSE.

    The reconstruction term becomes n_features / 2 * (ln(2 pi MSE) + 1). MSE is the mean
    squared error of the batch over samples and features, clipped to the bounds of
    variances. After each epoch, the noise variance of the VAE is set to the MSE of the
    monitored samples, so that `score` uses such a variance too. The objective requires
    ``likelihood="gaussian"``.

    References
    ----------
    Rybkin et al., arXiv:2006.13202.

    Examples
    --------
    >>> from skvaecert import CertifiedVAE
    >>> from skvaecert.baselines import SigmaVAE
    >>> vae = CertifiedVAE(objective=SigmaVAE())
    """

    def check(self, likelihood: Literal["gaussian", "bernoulli"]) -> None:
        """Check that the likelihood has a noise variance.

        Parameters
        ----------
        likelihood : {"gaussian", "bernoulli"}
            Likelihood p(x|z) of the decoder.

        Raises
        ------
        ValueError
            If the likelihood is not "gaussian".
        """
        super().check(likelihood)
        if likelihood != "gaussian":
            raise ValueError(
                "likelihood must be 'gaussian' for SigmaVAE, because it sets the noise "
                f"variance, got {likelihood!r}. Use another objective."
            )

    def raw_log_noise(self, result: Pass, x: Tensor) -> Tensor:
        """Return the optimal `raw_log_noise` of :class:`skvaecert.networks.VAE`.

        Parameters
        ----------
        result : Pass
            Result of the VAE for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape ()
            Raw log-variance at which the noise variance is MSE, without a gradient.
        """
        return unbounded((x - result.output).detach().square().mean().log())

    def reconstruction(self, losses: Tensor, result: Pass, x: Tensor) -> Tensor:
        """Return -log p(x|z) at the optimal noise variance.

        Parameters
        ----------
        losses : Tensor of shape (n_samples,)
            -log p(x|z) at the noise variance of the VAE.
        result : Pass
            Result of the VAE for `x`.
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape ()
            Mean over the batch, a negative log-density in nats.
        """
        # At the optimum, the gradient with respect to the noise is 0: no need to
        # differentiate through it.
        log_noise = bounded(self.raw_log_noise(result, x))
        return gaussian_loss(x, result.output, log_noise).mean()

    def callbacks(self) -> list[tuple[str, Callback]]:
        """Return the callback that sets the noise variance after each epoch.

        Returns
        -------
        list of (str, skorch.callbacks.Callback)
            The name of the callback, and the callback.
        """
        return [("optimal_noise", _OptimalNoise())]


class _EncoderFirst(ReleasedCallback):
    """Trains the encoder alone before each step, and freezes it during the step.

    Records "mutual_information", the mean over chunks of 256 monitored samples, and
    "aggressive", whether the next epoch also trains the encoder alone. It becomes False
    once the mutual information falls.

    He et al., arXiv:1901.05534, algorithm 1.
    """

    def __init__(self, window: int, max_inner_steps: int) -> None:
        self.window = window
        self.max_inner_steps = max_inner_steps

    def on_train_begin(self, net: NeuralNet, X: Any, **kwargs: Any) -> None:
        self.dataset_ = X
        # A warm start continues in the way in which the earlier epochs ended.
        self.aggressive_ = net.history[-1]["aggressive"] if net.history else True
        encoder = net.module_.encoder.parameters()
        self.parameters_ = [p for p in encoder if p.requires_grad]
        if not self.parameters_:
            raise ValueError(
                "objective must not be AggressiveEncoder for an encoder without "
                "trainable parameters, got such an encoder. Use another objective."
            )
        self.optimizer_ = torch.optim.Adam(self.parameters_, lr=net.lr)

    def on_batch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Train the encoder until the mean loss of a window rises, then freeze it."""
        if not self.aggressive_:
            return
        net.module_.train()
        before, losses = math.inf, []
        for _ in range(self.max_inner_steps):
            losses.append(self._step(net))
            if len(losses) == self.window:
                if (now := float(np.mean(losses))) > before:
                    break
                before, losses = now, []
        self._freeze(True)

    def on_batch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._freeze(False)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        history = net.history
        # The last row is that of the current epoch.
        before = history[-2]["mutual_information"] if len(history) > 1 else -math.inf
        now = _monitored_information(net)
        self.aggressive_ = self.aggressive_ and now >= before
        history.record("mutual_information", now)
        history.record("aggressive", self.aggressive_)

    def release(self) -> None:
        if hasattr(self, "parameters_"):  # Ctrl-C within a step leaves them frozen
            self._freeze(False)
        for name in ("dataset_", "optimizer_", "parameters_"):
            self.__dict__.pop(name, None)

    def _step(self, net: NeuralNet) -> float:
        n_samples = len(self.dataset_)
        index = torch.randint(n_samples, (min(net.batch_size, n_samples),))
        x, targets = self.dataset_.take(index)
        criterion = net.criterion_
        loss = criterion.total(criterion.terms(net.module_(x), x, targets))
        self.optimizer_.zero_grad()
        loss.backward(inputs=self.parameters_)
        self.optimizer_.step()
        return loss.item()

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.parameters_:
            parameter.requires_grad_(not frozen)


def _monitored_information(net: NeuralNet) -> float:
    net.module_.eval()
    with torch.inference_mode():
        # In chunks, since the estimate needs all pairs of samples and codes.
        passes = [net.module_(chunk) for chunk in net.monitored.split(CHUNK)]
        values = [mutual_information(p.mean, p.log_variance, p.code) for p in passes]
    return float(np.mean([value.item() for value in values]))


class _OptimalNoise(Callback):
    """Sets the noise variance of the VAE to the MSE of the monitored samples."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        net.module_.eval()
        with torch.no_grad():
            samples = net.monitored
            result = net.module_(samples)
            best = net.criterion_.objective.raw_log_noise(result, samples)
            net.module_.raw_log_noise.copy_(best)
