"""Why a collapsed encoder does not escape: force, gradient and dead units."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from skvaecert._certificate.arrays import certify
from skvaecert._samples import CHUNK
from skvaecert.metrics import escape_force, escape_force_rms
from skvaecert.networks import VAE
from skvaecert.simplex import Floats

__all__ = ["EscapeReport", "as_it_was", "report_escape"]


# Units of machine epsilon below which what should cancel, or stay as it is, is taken
# to do so. As many as the certificate allows an encoder.
_NOISE_UNITS = 32

# Random pushes by which Jacobians are compared. One would do but for bad luck.
_N_PUSHES = 2

# Of the teacher information: what the first-order step is to take off the loss.
_FIRST_SHARE = 0.1

# Leaf modules without weights that bend nothing.
_LINEAR = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.AlphaDropout,
)


@dataclass(frozen=True)
class EscapeReport:
    """Whether the alignment loss can move an encoder's means apart, and if not, why.

    In latent space it always can: the escape force on a constant code is above 0 for
    every teacher that tells samples apart. Training follows the gradient with respect
    to the encoder's parameters, which may be 0. `str` gives a sentence or two.

    Attributes
    ----------
    verdict : {"not collapsed", "can escape", "flat", "stuck", "uninformative"}
        "not collapsed": the margin is certified. Else "can escape": there is a
        gradient that moves the means apart. If there is none beyond rounding, though
        there is a force, "stuck": to first order no step of the parameters moves the
        means of any two of these samples apart, because all samples have the same
        Jacobian; or "flat": some steps do, but what the samples ask of them cancels.
        "uninformative": there is no force, because the teacher does not tell these
        samples apart.
    margin : float
        G = I_T - A, nats.
    teacher_information : float
        I_T on these samples, nats.
    alignment_loss : float
        A on these samples, nats.
    latent_force : float
        sqrt(sum_i p_i ||f_i(mu_i)||^2) at the codes as they are, nats per latent unit.
    collapsed_force : float
        f_rms: the same at the best constant code.
    gradient_norm : float
        Norm of the gradient of A with respect to the trained parameters of the
        encoder, nats per unit.
    escape_gradient_norm : float
        Norm of the part of that gradient that is due to f_i less its mean over the
        samples. The rest is due to the mean force, which is the same for all samples.
        If all means move alike whatever parameter changes, this norm is 0, but
        `gradient_norm` is not: a dead encoder can still move to a better constant.
    dead_units : mapping of str to float
        By name of the layer, as in ``net_.module_.named_modules()`` and in the order
        of the forward pass: the share of units whose output does not vary over the
        samples beyond rounding. Layers are the modules of the encoder that are not
        linear; functions called in a `forward` are not seen. Units are features, or
        channels of images. Of a module that is used several times the largest share
        counts.
    first_order_step : float
        0.1 I_T / gradient_norm^2: the step size at which gradient descent would, to
        first order, lower A by a tenth of the teacher information; infinite without a
        gradient. It compares encoders and is no `learning_rate` for Adam.
    n_samples : int
        Number of samples.

    See Also
    --------
    CertifiedVAE.escape_report : Makes it.

    References
    ----------
    Theory section 4; arXiv:2605.18224.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, alignment_weight=0,
    ...     kl_weight=1000, device="cpu", random_state=0).fit(X)
    >>> vae.escape_report(X).verdict
    'can escape'
    """

    verdict: str
    margin: float
    teacher_information: float
    alignment_loss: float
    latent_force: float
    collapsed_force: float
    gradient_norm: float
    escape_gradient_norm: float
    dead_units: Mapping[str, float]
    first_order_step: float
    n_samples: int

    @property
    def can_escape(self) -> bool:  # numpydoc ignore=RT01
        """Whether the means are certified to differ, or a gradient moves them apart."""
        return self.verdict in ("not collapsed", "can escape")

    @property
    def dead_layers(self) -> list[str]:  # numpydoc ignore=RT01
        """Names of the layers whose units are all dead, in the order of the pass."""
        return [name for name, share in self.dead_units.items() if share == 1]

    def __str__(self) -> str:
        sentence = {
            "not collapsed": self._certified_sentence,
            "can escape": self._escape_sentence,
            "flat": self._flat_sentence,
            "stuck": self._stuck_sentence,
            "uninformative": self._uninformative_sentence,
        }[self.verdict]()
        return f"{self.verdict.capitalize()}: {sentence}"

    def _repr_html_(self) -> str:
        numbers = {
            name.replace("_", " "): f"{value:.3g}"
            for name, value in vars(self).items()
            if isinstance(value, float)
        }
        shares = {f"dead in {n}": f"{s:.0%}" for n, s in self.dead_units.items()}
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td>{html.escape(value)}</td></tr>"
            for name, value in (numbers | shares).items()
        )
        return f"<div><p>{html.escape(str(self))}</p><table>{rows}</table></div>"

    def _certified_sentence(self) -> str:
        return (
            f"margin {self.margin:.3g} of at most {self.teacher_information:.3g} nats "
            f"on these {self.n_samples} samples."
        )

    def _escape_sentence(self) -> str:
        return (
            f"the margin is {self.margin:.3g} nats, but the alignment loss has a "
            f"gradient that moves the means apart (norm {self.escape_gradient_norm:.3g}"
            f", force {self.latent_force:.3g} nats per latent unit). Train on with "
            "warm_start=True and alignment_weight above 0; a large kl_weight may need "
            "a larger one."
        )

    def _flat_sentence(self) -> str:
        return (
            f"the samples are pushed apart (force {self.latent_force:.3g} nats per "
            "latent unit) and some steps of the encoder's parameters move their means "
            "apart, but the pushes cancel, so that the gradient of the alignment loss "
            "does not. Move the parameters a little at random, or train with a "
            "reconstruction loss or another teacher first."
        )

    def _stuck_sentence(self) -> str:
        return (
            f"the samples are pushed apart (force {self.latent_force:.3g} nats per "
            "latent unit), but to first order no step of the encoder's parameters "
            f"moves their means apart. {self._reason()}"
        )

    def _reason(self) -> str:
        if not self.dead_layers:
            return (
                "No layer that could be looked at is dead: look for frozen parameters, "
                "saturated functions in a forward, products of parameters that are all "
                "0, or an output that ignores its input."
            )
        first, *later = self.dead_layers
        after = f" ({', '.join(later)} after it too)" if later else ""
        return (
            f"Hidden features are dead in {first}{after}: reinitialise the weights "
            f"that lead into {first}, or use an activation with a gradient everywhere, "
            "such as SiLU."
        )

    def _uninformative_sentence(self) -> str:
        return (
            f"the teacher tells these {self.n_samples} samples apart by only "
            f"{self.teacher_information:.3g} nats, so nothing pushes their means "
            "apart. Use another teacher, or more samples."
        )


def report_escape(
    vae: VAE,
    chunks: Iterable[Tensor],
    latent_mean: Floats,
    teacher_proba: Floats,
    vertices: Floats,
    scale: float,
    device: torch.device,
) -> EscapeReport:
    """Measure force, gradient and dead units of an encoder on standardised chunks."""
    certificate = certify(teacher_proba, latent_mean, vertices, scale)
    force = escape_force(teacher_proba, latent_mean, vertices, scale)
    with _watched(vae) as units:
        inputs = (x.to(device) for chunk in chunks for x in chunk.split(CHUNK))
        gradient = _Gradient.of(vae, inputs, force)
    information = certificate.teacher_information
    if certificate.verdict == "certified":
        verdict = "not collapsed"
    elif information <= certificate.tolerance:
        verdict = "uninformative"
    else:
        verdict = gradient.verdict
    return EscapeReport(
        verdict,
        certificate.margin,
        information,
        certificate.alignment_loss,
        float(np.sqrt((force**2).sum(axis=1).mean())),
        escape_force_rms(teacher_proba, scale),
        gradient.norm,
        gradient.escape_norm,
        units.shares(),
        _first_order_step(information, gradient.norm),
        len(force),
    )


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Allow gradients in evaluation mode, and give every module its mode back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        # Also where the caller has switched gradients off.
        with torch.inference_mode(False), torch.enable_grad():
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _first_order_step(information: float, norm: float) -> float:
    return _FIRST_SHARE * information / norm**2 if norm > 0 else np.inf


class _Gradient(NamedTuple):
    """Norms of the gradient of A, of its part that moves means apart, and a limit.

    `spread` is the norm for random pushes that sum to 0 over the samples: it is 0 iff
    all samples have the same Jacobian, but for a chance of 0 (theory section 4).
    """

    norm: float
    escape_norm: float
    spread: float
    rounding: float

    @classmethod
    def of(cls, vae: VAE, inputs: Iterable[Tensor], force: Floats) -> Self:
        # An objective may put a posterior of its own between encoder and means. Frozen
        # parameters cannot follow the force.
        parts = [*vae.encoder.parameters(), *vae.posterior.parameters()]
        parameters = [part for part in parts if part.requires_grad]
        kinds = _pushes(force)
        total = np.zeros((len(kinds), sum(part.numel() for part in parameters)))
        start = 0
        for x in inputs:
            share = kinds[:, start : start + len(x)] / len(force)
            total += _pulled_back(vae, x, share, parameters)
            start += len(x)
        norm, escape_norm, size, *spreads = map(float, np.linalg.norm(total, axis=1))
        # Terms may cancel in any of the sums, but hardly in all of them.
        rounding = _NOISE_UNITS * _epsilon(parameters) * max(size, *spreads)
        return cls(norm, escape_norm, max(spreads), rounding)

    @property
    def verdict(self) -> str:
        if self.escape_norm > self.rounding:
            return "can escape"
        return "flat" if self.spread > self.rounding else "stuck"


def _pushes(force: Floats) -> Floats:
    """Return what pushes the means, shape (n_pushes, n_samples, latent_dim).

    The force, whose pull is the gradient of A but for its sign; the part of it that
    pushes samples apart; its absolute values, for the size of the terms where nothing
    cancels; and random pushes of the same size that sum to 0.
    """
    generator = np.random.default_rng(0)
    random = generator.standard_normal((_N_PUSHES, *force.shape))
    random *= np.sqrt((force**2).mean())
    random -= random.mean(axis=1, keepdims=True)
    return np.stack([force, force - force.mean(axis=0), np.abs(force), *random])


def _epsilon(parameters: list[nn.Parameter]) -> float:
    return max((torch.finfo(part.dtype).eps for part in parameters), default=0.0)


def _pulled_back(
    vae: VAE, x: Tensor, force: Floats, parameters: list[nn.Parameter]
) -> Floats:
    """Return what forces on the means are as forces on the parameters."""
    mean = vae.encode(x)[0]
    if not (parameters and mean.requires_grad):
        return np.zeros((len(force), 1))
    # Not backward(): that would write into `grad`, which belongs to the optimizer.
    pulled = [
        torch.autograd.grad(
            mean,
            parameters,
            torch.as_tensor(one, dtype=mean.dtype, device=mean.device),
            retain_graph=True,
            allow_unused=True,
        )
        for one in force
    ]
    return np.stack([_flat(gradients, parameters) for gradients in pulled])


def _flat(
    gradients: tuple[Tensor | None, ...], parameters: list[nn.Parameter]
) -> Floats:
    pairs = zip(gradients, parameters, strict=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in pairs]
    flat = torch.cat([gradient.detach().flatten() for gradient in filled])
    return flat.cpu().numpy().astype(np.float64)


class _Units:
    """Range of every unit's output over the samples, by layer."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, int] = {}
        self._n_samples = 0

    def begin(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._calls, self._n_samples = {}, len(inputs[0])

    def see(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        # What has no entry for each sample cannot be compared over the samples.
        if not _is_per_sample(output, self._n_samples):
            return
        seen = output.detach()
        low, high = seen.amin(dim=0), seen.amax(dim=0)
        if (name, call) in self._ranges:
            lowest, highest = self._ranges[name, call]
            low, high = torch.minimum(low, lowest), torch.maximum(high, highest)
        self._ranges[name, call] = low, high

    def shares(self) -> dict[str, float]:
        shares: dict[str, float] = {}
        for (name, _), (low, high) in self._ranges.items():
            shares[name] = max(_dead_share(low, high), shares.get(name, 0.0))
        return shares


def _is_per_sample(output: Any, n_samples: int) -> bool:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return False
    return output.ndim > 1 and len(output) == n_samples


def _dead_share(low: Tensor, high: Tensor) -> float:
    # At magnitude 1 at least, as the certificate has it: next to inputs and weights of
    # that size, what varies by less is lost.
    largest = max(1.0, float(torch.maximum(high.abs(), low.abs()).max()))
    varies = high - low > _NOISE_UNITS * torch.finfo(low.dtype).eps * largest
    # A channel is alive if any of its pixels is.
    alive = varies.flatten(1).any(dim=1) if varies.ndim > 1 else varies
    return 1 - float(alive.double().mean())


@contextmanager
def _watched(vae: VAE) -> Iterator[_Units]:
    """Look at what the encoder's layers return; no hook is left behind."""
    units = _Units()
    with ExitStack() as hooks:
        hooks.callback(vae.encoder.register_forward_pre_hook(units.begin).remove)
        for name, layer in vae.named_modules():
            if name.startswith("encoder.") and _bends(layer):
                see: Callable[..., None] = partial(units.see, name)
                hooks.callback(layer.register_forward_hook(see).remove)
        yield units


def _bends(layer: nn.Module) -> bool:
    """Tell activations from containers, from linear maps and from norms."""
    if next(layer.children(), None) is not None or isinstance(layer, _LINEAR):
        return False
    has_weights = any(True for _ in layer.parameters())
    return isinstance(layer, nn.PReLU) or not has_weights
