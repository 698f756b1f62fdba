"""Why a collapsed encoder does not escape: force, gradient and dead units."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skvaecert._certificate.arrays import certify
from skvaecert._certificate.record import as_html
from skvaecert._precision import evaluating
from skvaecert.metrics import escape_force, escape_force_rms
from skvaecert.simplex import Floats

__all__ = ["EscapeReport"]

# Differences below this many machine epsilons count as 0. The certificate allows an
# encoder as many.
_NOISE_UNITS = 32

# Number of random pushes that compare Jacobians. A single one suffices, unless its
# effect happens to be small.
_N_PUSHES = 2

# Share of the teacher information by which the first-order step reduces the loss.
_FIRST_SHARE = 0.1

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)

# Modules without weights that are nevertheless not activations.
_LINEAR = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)

# The printed sentences, by verdict.
_SENTENCES = {
    "not collapsed": (
        "margin {0.margin:.3g} of at most {0.teacher_information:.3g} nats on these "
        "{0.n_samples} samples."
    ),
    "can escape": (
        "the margin is {0.margin:.3g} nats, but the alignment loss has a gradient that "
        "moves the means apart (norm {0.escape_gradient_norm:.3g}, force "
        "{0.latent_force:.3g} nats per latent unit). Train further with the alignment "
        "loss. A large KL weight may require a larger alignment weight."
    ),
    "flat": (
        "the force on the means differs between samples ({0.latent_force:.3g} nats per "
        "latent unit), and some steps of the encoder's parameters move the means "
        "apart. But in the gradient of the alignment loss these steps cancel. Perturb "
        "the parameters at random, or first train with a reconstruction loss or "
        "another teacher."
    ),
    "stuck": (
        "the force on the means differs between samples ({0.latent_force:.3g} nats per "
        "latent unit), but to first order no step of the encoder's parameters moves "
        "the means apart. {0._reason}"
    ),
    "uninformative": (
        "the teacher information on these {0.n_samples} samples is only "
        "{0.teacher_information:.3g} nats, so no force moves their means apart. Use "
        "another teacher, or more samples."
    ),
}


@dataclass(frozen=True)
class EscapeReport:
    """Whether the alignment loss can move an encoder's means apart, and if not, why.

    In latent space it always can: the escape force on a constant code is above 0 for
    every teacher that tells samples apart. But training follows the gradient with
    respect to the encoder's parameters, which may be 0. `str` returns a few sentences.

    Attributes
    ----------
    verdict : {"not collapsed", "can escape", "flat", "stuck", "uninformative"}
        "not collapsed": the margin is certified. "can escape": a gradient moves the
        means apart. "stuck": there is a force, but to first order no step of the
        parameters moves the means of any two of these samples apart, because all
        samples have the same Jacobian. "flat": there is a force, and some steps move
        the means apart, but the contributions of the samples to the gradient cancel to
        within rounding. "uninformative": there is no force, because the teacher does
        not tell these samples apart.
    margin : float
        G = I_T - A, nats.
    teacher_information : float
        I_T on these samples, nats.
    alignment_loss : float
        A on these samples, nats.
    latent_force : float
        sqrt(sum_i p_i ||f_i(mu_i)||^2) at the latent means, nats per latent unit.
    collapsed_force : float
        f_rms, the same at the best constant code, nats per latent unit.
    gradient_norm : float
        Norm of the gradient of A with respect to the trainable parameters of the
        encoder, nats per unit of the parameters.
    escape_gradient_norm : float
        Norm of the part of that gradient that is due to f_i minus its mean over the
        samples. The rest is due to the mean force, which is the same for all samples.
        If every parameter moves all means alike, this norm is 0, but `gradient_norm`
        may be above 0: a dead encoder can still move to a better constant.
    dead_units : mapping of str to float
        For each layer, the share of units whose output does not vary over the samples
        beyond rounding. The keys are the names in ``named_modules()`` of the model, in
        the order of the forward pass. Layers are the modules called in encoding that
        are not linear; functions are not included. Units are features, channels after
        convolutions, or features of the last states of recurrent layers. If a module is
        used several times, the largest share counts.
    first_order_step : float
        0.1 I_T / gradient_norm^2: the step size at which gradient descent would, to
        first order, lower A by a tenth of the teacher information. It is infinite if
        the gradient is 0. Use it to compare encoders, not as `learning_rate` for Adam.
    n_samples : int
        Number of samples.

    See Also
    --------
    CertifiedVAE.escape_report : Compute the report of a CertifiedVAE.
    skvaecert.wrappers.TrainedEncoder.escape_report : Compute it for other models.

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

    verdict: Literal["not collapsed", "can escape", "flat", "stuck", "uninformative"]
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
        """Names of the layers whose units are all dead, in the order of calls."""
        return [name for name, share in self.dead_units.items() if share == 1]

    def __str__(self) -> str:
        return f"{self.verdict.capitalize()}: {_SENTENCES[self.verdict].format(self)}"

    def _repr_html_(self) -> str:
        numbers = [
            (name.replace("_", " "), f"{value:.3g}")
            for name, value in vars(self).items()
            if isinstance(value, float)
        ]
        shares = [(f"dead in {n}", f"{s:.0%}") for n, s in self.dead_units.items()]
        color = "seagreen" if self.can_escape else "crimson"
        return as_html(str(self), numbers + shares, color)

    @property
    def _reason(self) -> str:
        if not self.dead_layers:
            return (
                "No layer that can be inspected is dead. Look for frozen parameters, "
                "saturated functions in a forward method, products of parameters that "
                "are all 0, or an output that ignores its input."
            )
        first, *later = self.dead_layers
        after = f" (and after it in {', '.join(later)})" if later else ""
        return (
            f"All hidden features are dead in {first}{after}. Reinitialize the weights "
            f"that lead into {first}, or use an activation without flat parts, such "
            "as SiLU."
        )


def report_escape(
    module: nn.Module,
    encode: Callable[[Any], Tensor],
    batches: Iterable[Any],
    latent_mean: Floats,
    teacher_proba: Floats,
    vertices: Floats,
    scale: float,
) -> EscapeReport:
    """Measure force, gradient and dead units of an encoder.

    The gradient is with respect to the parameters of `module`. `encode` maps a batch to
    its latent means, and `batches` contain the samples in order. Call this function in
    a block of :func:`differentiating`.
    """
    certificate = certify(teacher_proba, latent_mean, vertices, scale)
    force = escape_force(teacher_proba, latent_mean, vertices, scale)
    gradient = _Gradient(module, encode, force)
    with _recorded_units(module) as units:
        for batch in batches:
            units.begin(len(batch))
            gradient.add(batch)
    norms = gradient.norms(units.dtypes)
    information = certificate.teacher_information
    verdict: Literal["not collapsed", "can escape", "flat", "stuck", "uninformative"]
    if certificate.verdict == "certified":
        verdict = "not collapsed"
    # The margin is at most the information, so it could never be certified.
    elif information <= certificate.tolerance:
        verdict = "uninformative"
    else:
        verdict = norms.verdict
    return EscapeReport(
        verdict,
        certificate.margin,
        information,
        certificate.alignment_loss,
        float(np.sqrt((force**2).sum(axis=1).mean())),
        escape_force_rms(teacher_proba, scale),
        norms.whole,
        norms.apart,
        units.shares(),
        _FIRST_SHARE * information / norms.whole**2 if norms.whole > 0 else np.inf,
        len(force),
    )


@contextmanager
def differentiating(module: nn.Module) -> Iterator[None]:
    """Evaluate a module with gradients and without torch.compile.

    Compiled code ignores new hooks, or still calls them after they are removed.
    """
    with ExitStack() as stack:
        # The caller may have switched gradients off.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Loading the compiler takes a second. If it is not loaded, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_without_cudnn())
        stack.enter_context(evaluating(module))
        yield


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # Recurrent layers of cuDNN have a gradient in training mode only.
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


class _Norms(NamedTuple):
    """Norms of the gradient of A, of its part that moves means apart, and their error.

    `spread` is sqrt(n_samples) times the norm for random pushes that sum to 0 over the
    samples. It is 0 if all samples have the same Jacobian, and otherwise above 0 with
    probability 1. Its size is that of the difference between the Jacobians, for any
    number of samples (theory section 4).
    """

    whole: float
    apart: float
    spread: float
    rounding: float

    @property
    def verdict(self) -> Literal["can escape", "flat", "stuck"]:
        if self.apart > self.rounding:
            return "can escape"
        return "flat" if self.spread > self.rounding else "stuck"


class _Gradient:
    """Pulls forces on the means back to the parameters, and sums them over batches."""

    def __init__(
        self, module: nn.Module, encode: Callable[[Any], Tensor], force: Floats
    ) -> None:
        self._module, self._encode = module, encode
        # Training does not move frozen parameters.
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._pushes = _pushes(force)
        self._n_seen = 0
        # Keys are push and parameter. Parameters that the means do not depend on have
        # no entry.
        self._totals: dict[tuple[int, int], Tensor] = {}
        self._dtypes: set[torch.dtype] = set()

    def add(self, batch: Any) -> None:
        mean = self._encode(batch)
        samples = slice(self._n_seen, self._n_seen + len(mean))
        self._n_seen = samples.stop
        self._dtypes.add(mean.dtype)
        if not mean.requires_grad:
            self._check_frozen(batch)
        elif self._parameters:
            self._pull_back(mean, self._pushes[:, samples])

    def _pull_back(self, mean: Tensor, pushes: Floats) -> None:
        for place, push in enumerate(pushes):
            # backward() would write to `grad`, which belongs to the optimizer.
            gradients = torch.autograd.grad(
                mean,
                self._parameters,
                torch.as_tensor(push, dtype=mean.dtype, device=mean.device),
                retain_graph=True,
                allow_unused=True,
            )
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    self._dtypes.add(gradient.dtype)
                    # Embeddings may have sparse gradients. In float32 sums over many
                    # batches would lose digits.
                    total = gradient.detach().to_dense().cpu().double()
                    key = place, index
                    self._totals[key] = total + self._totals.get(key, 0.0)

    def _check_frozen(self, batch: Any) -> None:
        """Raise unless the means lack a gradient only because parameters are frozen."""
        if not self._parameters:
            return
        frozen = [p for p in self._module.parameters() if not p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(parameter.is_floating_point())
            depends = self._encode(batch).requires_grad
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if not depends:
            raise ValueError(
                "encoder must return latent means that have a gradient with respect to "
                "its parameters, got means without a gradient. Remove torch.no_grad, "
                "torch.inference_mode and detach from it, or pass the method that "
                "training calls."
            )

    def norms(self, dtypes: set[torch.dtype]) -> _Norms:
        """Return the norms; `dtypes` are those that the layers compute in."""
        squares = np.zeros(len(self._pushes))
        for (place, _), total in self._totals.items():
            squares[place] += float(total.square().sum())
        if not np.isfinite(squares).all():
            raise ValueError(
                "encoder must have finite derivatives, got NaN or infinity. Look for "
                "square roots, norms and logarithms of 0."
            )
        whole, apart, size, *spreads = map(float, np.sqrt(squares) / self._n_seen)
        spread = max(spreads) * np.sqrt(self._n_seen)
        # Rounding is relative to the size of the terms. The terms may cancel in either
        # of the two sums, but hardly in both.
        epsilon = _epsilon(self._dtypes | dtypes)
        return _Norms(whole, apart, spread, _NOISE_UNITS * epsilon * max(size, spread))


def _pushes(force: Floats) -> Floats:
    """Return pushes on the means, shape (n_pushes, n_samples, latent_dim).

    They are, in this order: the force, which gives minus the gradient of A; the force
    minus its mean, which moves samples apart; its absolute values, which give the size
    of the terms without cancellation; and random pushes of the same size that sum to 0.
    """
    generator = np.random.default_rng(0)
    random = generator.standard_normal((_N_PUSHES, *force.shape))
    random *= np.sqrt((force**2).mean())
    random -= random.mean(axis=1, keepdims=True)
    return np.stack([force, force - force.mean(axis=0), np.abs(force), *random])


def _epsilon(dtypes: set[torch.dtype]) -> float:
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    epsilon = torch.finfo(coarsest).eps
    if epsilon > torch.finfo(torch.float32).eps:
        raise ValueError(
            "encoder must compute in float32 or float64, because rounding would hide "
            f"small gradients, got {coarsest}. Use copy.deepcopy(model).float(), "
            "without autocast."
        )
    return epsilon


class _Units:
    """Range of the output of each unit over the samples, by layer."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        # Keys are layer and call within a forward pass. Values are lowest and highest
        # output, axis of the units, and number of samples.
        self._ranges: dict[tuple[str, int], tuple[Tensor, Tensor, int, int]] = {}
        self._calls: dict[str, int] = {}
        self._axis = 0
        self._n_samples = self._n_seen = 0

    def begin(self, n_samples: int) -> None:
        self._calls, self._axis, self._n_samples = {}, 0, n_samples
        self._n_seen += n_samples

    def see(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        # The last layer with weights determines the axis of the units: channels after
        # a convolution, whose kernels have more than two axes, otherwise features.
        n_axes = max((p.ndim for p in layer.parameters()), default=0)
        if n_axes > 1:
            self._axis = 0 if n_axes > 2 else -1
        values = _last_states(output) if type(layer) in _RECURRENT else output
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return
        self.dtypes.add(values.dtype)
        if _is_nonlinear(layer):
            call = self._calls[name] = self._calls.get(name, -1) + 1
            # An output without an entry per sample cannot be compared over samples.
            if _is_per_sample(values, self._n_samples):
                self._widen((name, call), values.detach())

    def _widen(self, key: tuple[str, int], values: Tensor) -> None:
        low, high, n_seen = values.amin(dim=0), values.amax(dim=0), len(values)
        if key in self._ranges:
            lowest, highest, _, n_before = self._ranges[key]
            if lowest.ndim != low.ndim:
                return
            low = torch.minimum(*_padded_to_one_shape(low, lowest, torch.inf))
            high = torch.maximum(*_padded_to_one_shape(high, highest, -torch.inf))
            n_seen += n_before
        self._ranges[key] = low, high, self._axis, n_seen

    def shares(self) -> dict[str, float]:
        shares: dict[str, float] = {}
        for (name, _), (low, high, axis, n_seen) in self._ranges.items():
            # In a loop of varying length, later calls have not seen all samples.
            if n_seen == self._n_seen:
                share = _dead_share(low, high, axis)
                shares[name] = max(share, shares.get(name, 0.0))
        return shares


def _last_states(output: Any) -> Tensor:
    """Return the last state of a recurrent layer, shape (n_samples, n_features)."""
    _, states = output
    hidden = states[0] if isinstance(states, tuple) else states
    return hidden.transpose(0, -2).flatten(1)


def _is_per_sample(values: Tensor, n_samples: int) -> bool:
    if values.layout != torch.strided or values.is_nested:
        return False
    return values.ndim > 1 and len(values) == n_samples


def _padded_to_one_shape(a: Tensor, b: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Pad two tensors to one shape, because batches may differ in sequence length."""
    shape = tuple(map(max, a.shape, b.shape))
    filled = a.new_full(shape, fill), b.new_full(shape, fill)
    for whole, part in zip(filled, (a, b), strict=True):
        whole[tuple(map(slice, part.shape))] = part
    return filled


def _dead_share(low: Tensor, high: Tensor, axis: int) -> float:
    # As in the certificate, the magnitude is at least 1: smaller differences are lost
    # next to inputs and weights of that size.
    largest = max(1.0, float(torch.maximum(high.abs(), low.abs()).max()))
    varies = high - low > _NOISE_UNITS * torch.finfo(low.dtype).eps * largest
    # A channel is alive if any of its pixels is.
    alive = varies.movedim(axis, 0).flatten(1).any(dim=1) if varies.ndim > 1 else varies
    return 1 - float(alive.double().mean())


@contextmanager
def _recorded_units(module: nn.Module) -> Iterator[_Units]:
    """Record the outputs of layers with hooks, which are removed at the end."""
    units = _Units()
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            is_leaf = next(layer.children(), None) is None
            if name and is_leaf and not isinstance(layer, torch.jit.ScriptModule):
                # torch.compile adds this prefix to the names.
                see: Callable[..., None] = partial(
                    units.see, name.replace("_orig_mod.", "")
                )
                hooks.callback(layer.register_forward_hook(see).remove)
        yield units


def _is_nonlinear(layer: nn.Module) -> bool:
    """Return whether a layer is an activation or recurrent, not linear or a norm."""
    if isinstance(layer, (nn.PReLU, *_RECURRENT)):
        return True
    return not isinstance(layer, _LINEAR) and not any(True for _ in layer.parameters())
