"""Torch modules: encoder, decoder, and the VAE that joins them. No loss inside."""

import copy
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "VAE",
    "GaussianPosterior",
    "Pass",
    "bounded",
    "bounded_slope",
    "make_vae",
    "mlp",
    "unbounded",
]

# Variances stay within exp(-10) and exp(10): no overflow, no division by zero.
_LOG_VARIANCE_BOUND = 10.0

ModuleOrFactory = nn.Module | Callable[[int, int], nn.Module]


def mlp(n_inputs: int, hidden_sizes: Sequence[int], n_outputs: int) -> nn.Sequential:
    """Fully connected layers with SiLU between them.

    SiLU has a gradient everywhere: units that die, as with ReLU, would leave a
    collapsed encoder deaf to the escape force.

    Parameters
    ----------
    n_inputs : int
        Width of the input.
    hidden_sizes : sequence of int
        Widths of the hidden layers; a linear map when empty.
    n_outputs : int
        Width of the output.

    Returns
    -------
    torch.nn.Sequential
        The layers.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import mlp
    >>> mlp(64, (32,), 4)(torch.zeros(2, 64)).shape
    torch.Size([2, 4])
    """
    widths = [n_inputs, *hidden_sizes]
    hidden = [(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*chain(*hidden), nn.Linear(widths[-1], n_outputs))


def bounded(raw: Tensor) -> Tensor:
    """Squash a raw log-variance smoothly into (-10, 10); the identity near 0.

    Parameters
    ----------
    raw : Tensor
        Any shape.

    Returns
    -------
    Tensor
        10 tanh(raw / 10).

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import bounded
    >>> bounded(torch.tensor([0.0, 0.5, 1e6]))
    tensor([ 0.0000,  0.4996, 10.0000])
    """
    return _LOG_VARIANCE_BOUND * torch.tanh(raw / _LOG_VARIANCE_BOUND)


def bounded_slope(value: Tensor) -> Tensor:
    """Return the derivative of :func:`bounded` where it has a given value.

    Parameters
    ----------
    value : Tensor
        What :func:`bounded` returned.

    Returns
    -------
    Tensor
        1 - (value / 10)^2.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import bounded_slope
    >>> bounded_slope(torch.tensor([0.0, 5.0]))
    tensor([1.0000, 0.7500])
    """
    return 1 - (value / _LOG_VARIANCE_BOUND).square()


def unbounded(log_variance: Tensor) -> Tensor:
    """Return the raw value that :func:`bounded` turns into a log-variance.

    Parameters
    ----------
    log_variance : Tensor
        Any shape; clipped to [-9.99, 9.99].

    Returns
    -------
    Tensor
        10 artanh(log_variance / 10), finite.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import bounded, unbounded
    >>> bounded(unbounded(torch.tensor([0.5, -torch.inf])))
    tensor([ 0.5000, -9.9900])
    """
    ratio = log_variance / _LOG_VARIANCE_BOUND
    return _LOG_VARIANCE_BOUND * torch.atanh(ratio.clamp(-0.999, 0.999))


class Pass(NamedTuple):
    """What one forward pass of a :class:`VAE` returns.

    Attributes
    ----------
    mean : Tensor of shape (n_samples, latent_dim)
        Latent means mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        log sigma^2 of the codes, in (-10, 10).
    code : Tensor of shape (n_samples, latent_dim)
        One code a row, drawn from N(mu, sigma^2).
    output : Tensor of shape (n_samples, n_features)
        What the decoder made of the codes.
    log_noise : Tensor of shape ()
        Log-variance of the Gaussian likelihood, shared by all features.
    """

    mean: Tensor
    log_variance: Tensor
    code: Tensor
    output: Tensor
    log_noise: Tensor


class GaussianPosterior(nn.Module):
    """What the encoder's output means: means, and log-variances within (-10, 10)."""

    def forward(self, mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters of q(z|x).

        Parameters
        ----------
        mean, raw : Tensor of shape (n_samples, latent_dim)
            The two halves of the encoder's output.

        Returns
        -------
        mean, log_variance : Tensor of shape (n_samples, latent_dim)
            mu as it came and log sigma^2, :func:`bounded`.
        """
        return mean, bounded(raw)


class VAE(nn.Module):
    """Variational autoencoder: q(z|x) = N(mu(x), diag sigma(x)^2), prior N(0, I).

    Parameters
    ----------
    encoder : torch.nn.Module
        Maps (n, n_features) to (n, 2 * latent_dim): means, then raw log-variances.
    decoder : torch.nn.Module
        Maps (n, latent_dim) to (n, n_features).
    posterior : torch.nn.Module or None, default=None
        Turns the two halves of the encoder's output into means and log-variances;
        None for :class:`GaussianPosterior`.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import VAE, mlp
    >>> vae = VAE(mlp(64, (32,), 2 * 4), mlp(4, (32,), 64))
    >>> vae(torch.zeros(5, 64)).mean.shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        posterior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = GaussianPosterior() if posterior is None else posterior
        self.raw_log_noise = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and the log-variances of the codes.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        mean, log_variance : Tensor of shape (n_samples, latent_dim)
            Parameters of q(z|x).
        """
        return self.posterior(*self.encoder(x).chunk(2, dim=1))

    def forward(self, x: Tensor) -> Pass:
        """Encode, draw one code a row by the reparametrisation trick, decode.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Pass
            Parameters of q(z|x) and of p(x|z).
        """
        mean, log_variance = self.encode(x)
        code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        log_noise = bounded(self.raw_log_noise)
        return Pass(mean, log_variance, code, self.decoder(code), log_noise)


def make_vae(
    n_features: int,
    latent_dim: int,
    hidden_sizes: Sequence[int],
    encoder: ModuleOrFactory | None = None,
    decoder: ModuleOrFactory | None = None,
    posterior: nn.Module | None = None,
) -> VAE:
    """Make a VAE from layer widths or from the user's own modules.

    Parameters
    ----------
    n_features : int
        Width of a row.
    latent_dim : int
        Width of a code.
    hidden_sizes : sequence of int
        Hidden widths of the encoder; the decoder has them in reverse.
    encoder, decoder : torch.nn.Module, callable or None
        A module, which is copied with its weights; a class or factory called with
        (n_features, latent_dim); or None for an :func:`mlp`.
    posterior : torch.nn.Module or None, default=None
        As in :class:`VAE`.

    Returns
    -------
    VAE
        Freshly initialised where no module was given.

    Raises
    ------
    TypeError
        If a factory returns something else than a module.
    ValueError
        If a module fails on its input or its output has another shape than asked.

    Examples
    --------
    >>> from torch import nn
    >>> from skvaecert.networks import make_vae
    >>> def linear_encoder(n_features, latent_dim):
    ...     return nn.Linear(n_features, 2 * latent_dim)
    >>> make_vae(64, 4, (32,), encoder=linear_encoder).encoder
    Linear(in_features=64, out_features=8, bias=True)
    """
    wide = 2 * latent_dim
    return VAE(
        mlp(n_features, hidden_sizes, wide)
        if encoder is None
        else _own("encoder", encoder, (n_features, latent_dim), (n_features, wide)),
        mlp(latent_dim, hidden_sizes[::-1], n_features)
        if decoder is None
        else _own(
            "decoder", decoder, (n_features, latent_dim), (latent_dim, n_features)
        ),
        posterior,
    )


def _own(
    name: str, given: ModuleOrFactory, sizes: tuple[int, int], widths: tuple[int, int]
) -> nn.Module:
    is_module = isinstance(given, nn.Module)
    module = copy.deepcopy(given) if is_module else given(*sizes)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module or a callable (n_features, latent_dim) "
            f"that returns one, got a callable that returns {type(module).__name__}."
        )
    _check_output(name, module, *widths)
    return module


def _check_output(name: str, module: nn.Module, n_inputs: int, n_outputs: int) -> None:
    """Run two rows through, in evaluation mode, before the first epoch does."""
    was_training = module.training
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, n_inputs))
    except Exception as error:  # whatever the user's own code may raise
        raise ValueError(
            f"{name} must take an input of shape (n, {n_inputs}), got the error: "
            f"{error}"
        ) from error
    finally:
        module.train(was_training)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, n_outputs):
        raise ValueError(
            f"{name} must return a tensor of shape (n, {n_outputs}) for n rows, got "
            f"{shape} for 2 rows."
        )
