"""Torch modules: encoder, decoder, and the VAE made of both. They contain no loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from math import prod
from numbers import Integral
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

__all__ = [
    "VAE",
    "GaussianPosterior",
    "Pass",
    "bounded",
    "check_image_shape",
    "conv_decoder",
    "conv_encoder",
    "make_vae",
    "mlp",
    "unbounded",
]

# Variances stay between exp(-10) and exp(10): no overflow, no division by zero.
LOG_VARIANCE_BOUND = 10.0
# Convolutions halve an image until both sides are at most this.
_COARSEST_SIDE = 4
# Channels after the first convolution. Each next one doubles them, up to the maximum.
_FEWEST_CHANNELS, _MOST_CHANNELS = 16, 128

ModuleOrFactory = nn.Module | Callable[[int, int], nn.Module]
ImageShape = tuple[int, int, int]


def mlp(n_inputs: int, hidden_sizes: Sequence[int], n_outputs: int) -> nn.Sequential:
    """Make fully connected layers with SiLU between them.

    SiLU has a nonzero gradient almost everywhere. Units that die, as with ReLU, would
    block the escape force on a collapsed encoder.

    Parameters
    ----------
    n_inputs : int
        Width of the input.
    hidden_sizes : sequence of int
        Widths of the hidden layers. If empty, the network is a linear map.
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


def conv_encoder(
    image_shape: Sequence[int], hidden_sizes: Sequence[int], n_outputs: int
) -> nn.Sequential:
    """Make convolutions that halve an image to at most 4 x 4, then an :func:`mlp`.

    Kernels are 3 x 3 with stride 2, and SiLU follows each convolution. The first
    convolution has 16 output channels. Each next one has twice as many, up to 128. No
    layer mixes samples.

    Parameters
    ----------
    image_shape : sequence of int
        (channels, height, width), both sides above 4.
    hidden_sizes : sequence of int
        Widths of the fully connected layers between the last convolution and the
        output. If empty, there are none.
    n_outputs : int
        Width of the output.

    Returns
    -------
    torch.nn.Sequential
        Maps images, flattened in the order of `image_shape`, to (n, n_outputs).

    Raises
    ------
    ValueError
        If `image_shape` is not valid.

    See Also
    --------
    conv_decoder : Makes a decoder for such images.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import conv_encoder
    >>> conv_encoder((3, 32, 32), (128,), 8)(torch.zeros(2, 3 * 32 * 32)).shape
    torch.Size([2, 8])
    """
    first, *_, last = shapes = _halvings(_checked_image_shape(image_shape))
    layers = [
        (nn.Conv2d(fine[0], coarse[0], 3, stride=2, padding=1), nn.SiLU())
        for fine, coarse in pairwise(shapes)
    ]
    dense = mlp(prod(last), hidden_sizes, n_outputs)
    return nn.Sequential(nn.Unflatten(1, first), *chain(*layers), nn.Flatten(), *dense)


def conv_decoder(
    n_inputs: int, hidden_sizes: Sequence[int], image_shape: Sequence[int]
) -> nn.Sequential:
    """Make an :func:`mlp`, followed by transposed convolutions that double an image.

    The layers have the shapes of :func:`conv_encoder` in reverse order, also if a side
    of the image is odd.

    Parameters
    ----------
    n_inputs : int
        Width of the input.
    hidden_sizes : sequence of int
        Widths of the fully connected layers between the input and the first
        convolution. If empty, there are none.
    image_shape : sequence of int
        (channels, height, width), both sides above 4.

    Returns
    -------
    torch.nn.Sequential
        Maps (n, n_inputs) to images, flattened in the order of `image_shape`.

    Raises
    ------
    ValueError
        If `image_shape` is not valid.

    See Also
    --------
    conv_encoder : Makes an encoder for such images.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import conv_decoder
    >>> conv_decoder(4, (128,), (1, 28, 28))(torch.zeros(2, 4)).shape
    torch.Size([2, 784])
    """
    shapes = _halvings(_checked_image_shape(image_shape))[::-1]
    layers = [(nn.SiLU(), _doubling(*pair)) for pair in pairwise(shapes)]
    dense = mlp(n_inputs, hidden_sizes, prod(shapes[0]))
    unflatten = nn.Unflatten(1, shapes[0])
    return nn.Sequential(*dense, unflatten, *chain(*layers), nn.Flatten())


def _halvings(image_shape: ImageShape) -> list[ImageShape]:
    """Return the shapes after each convolution, from the image to the coarsest."""
    shapes, channels = [image_shape], _FEWEST_CHANNELS
    while max(shapes[-1][1:]) > _COARSEST_SIDE:
        _, height, width = shapes[-1]
        # Rounded up, as by a convolution with stride 2 and padding 1.
        shapes.append((channels, -(-height // 2), -(-width // 2)))
        channels = min(2 * channels, _MOST_CHANNELS)
    return shapes


def _doubling(coarse: ImageShape, fine: ImageShape) -> nn.ConvTranspose2d:
    # 7 and 8 pixels both halve to 4: this padding selects the size to double to.
    even = 1 - fine[1] % 2, 1 - fine[2] % 2
    return nn.ConvTranspose2d(
        coarse[0], fine[0], 3, stride=2, padding=1, output_padding=even
    )


def _checked_image_shape(image_shape: Sequence[int] | None) -> ImageShape:
    if (
        image_shape is None
        or len(image_shape) != 3
        or not all(isinstance(size, Integral) and size > 0 for size in image_shape)
    ):
        raise ValueError(
            "image_shape must be (channels, height, width), three integers above 0, "
            f"for convolutions, got {image_shape!r}. Set image_shape, for example to "
            "(3, 32, 32)."
        )
    channels, height, width = map(int, image_shape)
    if min(height, width) <= _COARSEST_SIDE:
        raise ValueError(
            f"image_shape must have height and width above {_COARSEST_SIDE} for "
            f"convolutions, got {(channels, height, width)}. The order is (channels, "
            "height, width). For smaller images, use fully connected layers: "
            "encoder=None and decoder=None."
        )
    return channels, height, width


def bounded(raw: Tensor) -> Tensor:
    """Bound a raw log-variance smoothly to (-10, 10), close to the identity near 0.

    Parameters
    ----------
    raw : Tensor
        Raw log-variances, of any shape.

    Returns
    -------
    Tensor
        10 tanh(raw / 10), of the same shape.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import bounded
    >>> bounded(torch.tensor([0.0, 0.5, 1e6]))
    tensor([ 0.0000,  0.4996, 10.0000])
    """
    return LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND)


def unbounded(log_variance: Tensor) -> Tensor:
    """Return the raw value that :func:`bounded` maps to a log-variance.

    Parameters
    ----------
    log_variance : Tensor
        Log-variances, of any shape. They are clipped to [-9.99, 9.99].

    Returns
    -------
    Tensor
        10 artanh(log_variance / 10), finite, of the same shape.

    Examples
    --------
    >>> import torch
    >>> from skvaecert.networks import bounded, unbounded
    >>> bounded(unbounded(torch.tensor([0.5, -torch.inf])))
    tensor([ 0.5000, -9.9900])
    """
    ratio = log_variance / LOG_VARIANCE_BOUND
    # atanh is infinite at -1 and 1.
    return LOG_VARIANCE_BOUND * torch.atanh(ratio.clamp(-0.999, 0.999))


class Pass(NamedTuple):
    """Result of one forward pass of a :class:`VAE`.

    Attributes
    ----------
    mean : Tensor of shape (n_samples, latent_dim)
        Latent means mu.
    log_variance : Tensor of shape (n_samples, latent_dim)
        Log-variances log sigma^2 of the encoder's posterior, in (-10, 10).
    code : Tensor of shape (n_samples, latent_dim)
        One drawn code per sample, from N(mu, sigma^2).
    output : Tensor of shape (n_samples, n_features)
        Output of the decoder for these codes.
    log_noise : Tensor of shape ()
        Log-variance of the Gaussian likelihood, shared by all features.
    """

    mean: Tensor
    log_variance: Tensor
    code: Tensor
    output: Tensor
    log_noise: Tensor


class GaussianPosterior(nn.Module):
    """Maps the encoder's output to means and log-variances in (-10, 10)."""

    def forward(self, mean: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters of q(z|x).

        Parameters
        ----------
        mean, raw : Tensor of shape (n_samples, latent_dim)
            The two halves of the encoder's output.

        Returns
        -------
        mean, log_variance : Tensor of shape (n_samples, latent_dim)
            mu, unchanged, and log sigma^2 after :func:`bounded`.
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
        Maps the two halves of the encoder's output to means and log-variances. If
        None, :class:`GaussianPosterior` is used.

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
        # Bernoulli likelihoods do not use it: one module serves both.
        self.raw_log_noise = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters of q(z|x).

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        mean, log_variance : Tensor of shape (n_samples, latent_dim)
            mu and log sigma^2.
        """
        return self.posterior(*self.encoder(x).chunk(2, dim=1))

    def forward(self, x: Tensor) -> Pass:
        """Encode, draw one code per sample by the reparametrization trick, and decode.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Pass
            Parameters of q(z|x) and p(x|z), and the drawn codes.
        """
        mean, log_variance = self.encode(x)
        code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        log_noise = bounded(self.raw_log_noise)
        return Pass(mean, log_variance, code, self.decoder(code), log_noise)


def make_vae(
    n_features: int,
    latent_dim: int,
    hidden_sizes: Sequence[int],
    encoder: ModuleOrFactory | str | None = None,
    decoder: ModuleOrFactory | str | None = None,
    posterior: nn.Module | None = None,
    image_shape: Sequence[int] | None = None,
) -> VAE:
    """Make a VAE from layer widths or from your own modules.

    Parameters
    ----------
    n_features : int
        Number of features.
    latent_dim : int
        Number of latent dimensions.
    hidden_sizes : sequence of int
        Widths of the encoder's hidden layers. The decoder has them in reverse order.
        With "conv", these are the fully connected layers between the convolutions and
        the code.
    encoder, decoder : torch.nn.Module, callable, "conv" or None
        A module, which is copied with its weights; a class or function, which is called
        with (n_features, latent_dim); "conv" for :func:`conv_encoder` or
        :func:`conv_decoder`; or None for an :func:`mlp`.
    posterior : torch.nn.Module or None, default=None
        As in :class:`VAE`.
    image_shape : sequence of int or None, default=None
        (channels, height, width), the order in which images are flattened. Only for
        "conv".

    Returns
    -------
    VAE
        The VAE. Modules that you do not pass are newly initialized.

    Raises
    ------
    TypeError
        If a class or function does not return a module.
    ValueError
        If a module fails on its input, or if its output does not have the required
        shape and dtype; the message names the layer. Also if `image_shape` is missing
        for "conv" or does not match the number of features.

    Examples
    --------
    >>> from torch import nn
    >>> from skvaecert.networks import make_vae
    >>> def linear_encoder(n_features, latent_dim):
    ...     return nn.Linear(n_features, 2 * latent_dim)
    >>> make_vae(64, 4, (32,), encoder=linear_encoder).encoder
    Linear(in_features=64, out_features=8, bias=True)
    >>> type(make_vae(64, 4, (), "conv", image_shape=(1, 8, 8)).encoder[1])
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    sizes, hidden = (n_features, latent_dim), tuple(hidden_sizes)
    inwards, outwards = (n_features, 2 * latent_dim), (latent_dim, n_features)
    return VAE(
        _network("encoder", encoder, sizes, inwards, hidden, image_shape),
        _network("decoder", decoder, sizes, outwards, hidden[::-1], image_shape),
        posterior,
    )


def _network(
    name: str,
    given: ModuleOrFactory | str | None,
    sizes: tuple[int, int],
    widths: tuple[int, int],
    hidden_sizes: Sequence[int],
    image_shape: Sequence[int] | None,
) -> nn.Module:
    n_inputs, n_outputs = widths
    if given is None:
        return mlp(n_inputs, hidden_sizes, n_outputs)
    if not isinstance(given, str):
        return _user_module(name, given, sizes, widths)
    shape = check_image_shape(name, given, image_shape, sizes[0])
    if name == "encoder":
        return conv_encoder(shape, hidden_sizes, n_outputs)
    return conv_decoder(n_inputs, hidden_sizes, shape)


def check_image_shape(
    name: str, given: str, image_shape: Sequence[int] | None, n_features: int
) -> ImageShape:
    """Check that convolutions can read samples as images.

    Parameters
    ----------
    name : {"encoder", "decoder"}
        Name of the network.
    given : str
        Value of the parameter, which must be "conv".
    image_shape : sequence of int or None
        (channels, height, width).
    n_features : int
        Number of features.

    Returns
    -------
    tuple of int
        `image_shape` as a tuple.

    Raises
    ------
    ValueError
        If `image_shape` does not match the number of features, or `given` is not
        "conv".

    Examples
    --------
    >>> from skvaecert.networks import check_image_shape
    >>> check_image_shape("encoder", "conv", [3, 8, 8], 192)
    (3, 8, 8)
    """
    if given != "conv":
        raise ValueError(
            f"{name} must be 'conv', a torch.nn.Module, a callable or None, got "
            f"{given!r}."
        )
    shape = _checked_image_shape(image_shape)
    if prod(shape) != n_features:
        raise ValueError(
            "image_shape must have as many values as a sample has features, "
            f"{n_features}, for {name}='conv', got {shape}, which has {prod(shape)} "
            "values. Samples must be images, flattened in the order (channels, height, "
            "width)."
        )
    return shape


def _user_module(
    name: str, given: ModuleOrFactory, sizes: tuple[int, int], widths: tuple[int, int]
) -> nn.Module:
    is_module = isinstance(given, nn.Module)
    # A copy, since a fit must not train a parameter of the estimator.
    module = copy.deepcopy(given) if is_module else given(*sizes)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module or a callable (n_features, latent_dim) "
            f"that returns one, got a callable that returns {type(module).__name__}."
        )
    _check_output(name, module, *widths)
    return module


def _check_output(name: str, module: nn.Module, n_inputs: int, n_outputs: int) -> None:
    """Run a module on two samples, in evaluation mode, before the first epoch."""
    tensors = [*module.parameters(), *module.buffers()]
    samples = torch.zeros(2, n_inputs, device=tensors[0].device if tensors else None)
    try:
        output = _evaluated(module, samples)
    except Exception as error:  # the user's code can raise any error
        raise ValueError(
            f"{name} must accept an input of shape (n, {n_inputs}), float32, got the "
            f"error: {error}.{_responsible_layer(module, samples)}"
            f"{_advice(name, tensors)}"
        ) from error
    if _shape(output) != str((2, n_outputs)):
        raise ValueError(
            f"{name} must return a tensor of shape (n, {n_outputs}), float32, for n "
            f"samples, got {_shape(output)} for 2 samples."
            f"{_responsible_layer(module, samples)}{_advice(name, tensors)}"
        )


def _evaluated(module: nn.Module, samples: Tensor) -> Any:
    was_training = module.training
    try:
        with torch.no_grad():
            # In training mode, batch normalization would update its averages.
            return module.eval()(samples)
    finally:
        module.train(was_training)


def _responsible_layer(module: nn.Module, samples: Tensor) -> str:
    """Run the samples again with hooks, to find the layer that fails."""
    trace = _LayerTrace(module)
    try:
        with trace:
            output = _evaluated(module, samples)
    except Exception:
        return trace.failing_layer()
    return trace.returning_layer(output)


class _LayerTrace:
    """Records which layers of a module run inside the block, and what they return."""

    def __init__(self, module: nn.Module) -> None:
        self.names = {
            layer: name
            for name, layer in module.named_modules()
            if not isinstance(layer, torch.jit.ScriptModule)  # do not support hooks
        }
        self.running: list[nn.Module] = []
        self.outputs: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> Self:
        # Register before other hooks: hooks of lazy modules may fail.
        before = [
            layer.register_forward_pre_hook(self._enter, prepend=True)
            for layer in self.names
        ]
        after = [layer.register_forward_hook(self._leave) for layer in self.names]
        self.handles = before + after
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append(layer)

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.running.pop()
        self.outputs.append((layer, output))

    def failing_layer(self) -> str:
        """Describe the innermost layer that was entered but not left."""
        if not self.running:
            return ""
        return self._sentence(self.running[-1], self.outputs)

    def returning_layer(self, output: Any) -> str:
        """Describe the innermost layer that returned this object."""
        # Inner layers return before the layers that contain them.
        for i, (layer, returned) in enumerate(self.outputs):
            if returned is output:
                return self._sentence(layer, self.outputs[:i])
        return ""

    def _sentence(self, layer: nn.Module, earlier: list[tuple[nn.Module, Any]]) -> str:
        after = "".join(
            f", after {self._name(last)} had returned {_shape(output)}"
            for last, output in earlier[-1:]
        )
        return f" It comes from {self._name(layer)}{after}."

    def _name(self, layer: nn.Module) -> str:
        is_leaf = next(layer.children(), None) is None
        what = type(layer).__name__ + (f"({layer.extra_repr()})" if is_leaf else "")
        name = self.names[layer]
        return f"its layer {name!r}, {what}" if name else what


def _shape(output: Any) -> str:
    """Describe what a layer returned: shapes, and dtypes other than float32."""
    if isinstance(output, Tensor):
        is_usual = output.dtype == torch.float32
        return f"{tuple(output.shape)}" + ("" if is_usual else f" of {output.dtype}")
    if isinstance(output, tuple | list):
        return f"{type(output).__name__}({', '.join(map(_shape, output))})"
    return type(output).__name__


def _advice(name: str, tensors: list[Tensor]) -> str:
    kinds = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    if not kinds:
        return ""
    return f" Its weights are {kinds.pop()}. Call .float() on the {name}."
