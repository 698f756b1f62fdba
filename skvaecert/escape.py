"""Why a collapsed encoder does not escape: force, gradient and dead units."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skvaecert._certificate.arrays import certify
from skvaecert._certificate.record import as_html
from skvaecert._precision import evaluating
from skvaecert.metrics import escape_force, escape_force_rms
from skvaecert.simplex import Floats

__all__ = ["EscapeReport"]

# Units of machine epsilon below which what should cancel, or stay as it is, is taken
# to do so. As many as the certificate allows an encoder.
_NOISE_UNITS = 32

# Random pushes by which Jacobians are compared. One would do but for bad luck.
_N_PUSHES = 2

# Of the teacher information: what the first-order step is to take off the loss.
_FIRST_SHARE = 0.1

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)

# Leaf modules that bend nothing, though they have no weights.
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

# What each verdict says of a report.
_SENTENCES = {
    "not collapsed": (
        "margin {0.margin:.3g} of at most {0.teacher_information:.3g} nats on these "
        "{0.n_samples} samples."
    ),
    "can escape": (
        "the margin is {0.margin:.3g} nats, but the alignment loss has a gradient that "
        "moves the means apart (norm {0.escape_gradient_norm:.3g}, force "
        "{0.latent_force:.3g} nats per latent unit). Train on with the alignment loss; "
        "a large weight of the KL term may need a larger one of the alignment."
    ),
    "flat": (
        "the samples are pushed apart (force {0.latent_force:.3g} nats per latent unit)"
        " and some steps of the encoder's parameters move their means apart, but the "
        "pushes cancel, so that the gradient of the alignment loss does not. Move the "
        "parameters a little at random, or train with a reconstruction loss or another "
        "teacher first."
    ),
    "stuck": (
        "the samples are pushed apart (force {0.latent_force:.3g} nats per latent "
        "unit), but to first order no step of the encoder's parameters moves their "
        "means apart. {0._reason}"
    ),
    "uninformative": (
        "the teacher tells these {0.n_samples} samples apart by only "
        "{0.teacher_information:.3g} nats, so nothing pushes their means apart. Use "
        "another teacher, or more samples."
    ),
}


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
        By name of the layer, as in ``named_modules()`` of the model and in the order of
        the forward pass: the share of units whose output does not vary over the samples
        beyond rounding. Layers are the modules called in encoding that are not linear;
        functions are not seen. Units are features, or channels after convolutions; of
        recurrent layers, features of the last states. Of a module that is used several
        times the largest share counts.
    first_order_step : float
        0.1 I_T / gradient_norm^2: the step size at which gradient descent would, to
        first order, lower A by a tenth of the teacher information; infinite without a
        gradient. It compares encoders and is no `learning_rate` for Adam.
    n_samples : int
        Number of samples.

    See Also
    --------
    CertifiedVAE.escape_report : Makes it.
    skvaecert.wrappers.TrainedEncoder.escape_report : Makes it of other models.

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
                "No layer that could be looked at is dead: look for frozen parameters, "
                "saturated functions in a forward, products of parameters that are all "
                "0, or an output that ignores its input."
            )
        first, *later = self.dead_layers
        after = f" ({', '.join(later)} after it too)" if later else ""
        return (
            f"Hidden features are dead in {first}{after}: reinitialize the weights "
            f"that lead into {first}, or use an activation with a gradient everywhere, "
            "such as SiLU."
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
    its latent means, and `batches` hold the samples in their order. It is called in a
    block of :func:`differentiating`.
    """
    certificate = certify(teacher_proba, latent_mean, vertices, scale)
    force = escape_force(teacher_proba, latent_mean, vertices, scale)
    gradient = _Gradient(module, encode, force)
    with _watched(module) as units:
        for batch in batches:
            units.begin(len(batch))
            gradient.add(batch)
    norms = gradient.norms(units.dtypes)
    information = certificate.teacher_information
    if certificate.verdict == "certified":
        verdict = "not collapsed"
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
        norms.own,
        units.shares(),
        _FIRST_SHARE * information / norms.whole**2 if norms.whole > 0 else np.inf,
        len(force),
    )


@contextmanager
def differentiating(module: nn.Module) -> Iterator[None]:
    """Evaluate a module with gradients, and without torch.compile.

    What is compiled does not call new hooks, or keeps calling them when they are gone.
    """
    with ExitStack() as stack:
        # Also where the caller has switched gradients off.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # As long as the compiler is not loaded, which takes a second, nothing uses it.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_without_cudnn())
        stack.enter_context(evaluating(module))
        yield


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # Its recurrent layers have a gradient in training mode only.
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


class _Norms(NamedTuple):
    """Norms of the gradient of A, of its part that moves means apart, and a limit.

    `spread` is sqrt(n_samples) times the norm for random pushes that sum to 0 over the
    samples: it is 0 iff all samples have the same Jacobian, but for a chance of 0, and
    as large as Jacobians differ, however many there are (theory section 4).
    """

    whole: float
    own: float
    spread: float
    rounding: float

    @property
    def verdict(self) -> str:
        if self.own > self.rounding:
            return "can escape"
        return "flat" if self.spread > self.rounding else "stuck"


class _Gradient:
    """What forces on the means are as forces on the parameters, summed over batches."""

    def __init__(
        self, module: nn.Module, encode: Callable[[Any], Tensor], force: Floats
    ) -> None:
        self._module, self._encode = module, encode
        # Frozen parameters cannot follow the force.
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._pushes = _pushes(force)
        self._n_seen = 0
        # By push and parameter; without those that the means do not depend on.
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
            # Not backward(): that would write into `grad`, which is the optimizer's.
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
                    total = gradient.detach().to_dense().cpu().double()
                    key = place, index
                    self._totals[key] = total + self._totals.get(key, 0.0)

    def _check_frozen(self, batch: Any) -> None:
        """Check that means lack a gradient only because parameters are frozen."""
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
                "encoder must return means with a gradient with respect to its "
                "parameters, got means without one. Remove torch.no_grad, "
                "torch.inference_mode and detach from it, or pass the method that "
                "training calls."
            )

    def norms(self, dtypes: set[torch.dtype]) -> _Norms:
        """Return the norms, of an encoder that computes in such dtypes."""
        squares = np.zeros(len(self._pushes))
        for (place, _), total in self._totals.items():
            squares[place] += float(total.square().sum())
        if not np.isfinite(squares).all():
            raise ValueError(
                "encoder must have finite derivatives, got NaN or infinity. Look for "
                "square roots, norms and logarithms of 0."
            )
        whole, own, size, *spreads = map(float, np.sqrt(squares) / self._n_seen)
        spread = max(spreads) * np.sqrt(self._n_seen)
        # Terms may cancel in either of the sums, but hardly in both of them.
        epsilon = _epsilon(self._dtypes | dtypes)
        return _Norms(whole, own, spread, _NOISE_UNITS * epsilon * max(size, spread))


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


def _epsilon(dtypes: set[torch.dtype]) -> float:
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    epsilon = torch.finfo(coarsest).eps
    if epsilon > torch.finfo(torch.float32).eps:
        raise ValueError(
            "encoder must compute in float32 or float64, so that rounding does not "
            f"hide what moves means apart, got {coarsest}. Pass that of a copy, "
            "copy.deepcopy(model).float(), without autocast."
        )
    return epsilon


class _Units:
    """Range of every unit's output over the samples, by layer."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        # By layer and call: lowest and highest values, axis of the units, samples.
        self._ranges: dict[tuple[str, int], tuple[Tensor, Tensor, int, int]] = {}
        self._calls: dict[str, int] = {}
        self._axis = 0
        self._n_samples = self._n_seen = 0

    def begin(self, n_samples: int) -> None:
        self._calls, self._axis, self._n_samples = {}, 0, n_samples
        self._n_seen += n_samples

    def see(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        # Weights tell where units are: kernels of convolutions make channels.
        n_axes = max((p.ndim for p in layer.parameters()), default=0)
        if n_axes > 1:
            self._axis = 0 if n_axes > 2 else -1
        values = _last_states(output) if type(layer) in _RECURRENT else output
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return
        self.dtypes.add(values.dtype)
        if _bends(layer):
            call = self._calls[name] = self._calls.get(name, -1) + 1
            # What has no entry for each sample cannot be compared over the samples.
            if _is_per_sample(values, self._n_samples):
                self._widen((name, call), values.detach())

    def _widen(self, key: tuple[str, int], values: Tensor) -> None:
        low, high, n_seen = values.amin(dim=0), values.amax(dim=0), len(values)
        if key in self._ranges:
            lowest, highest, _, n_before = self._ranges[key]
            if lowest.ndim != low.ndim:
                return
            low = torch.minimum(*_of_one_shape(low, lowest, torch.inf))
            high = torch.maximum(*_of_one_shape(high, highest, -torch.inf))
            n_seen += n_before
        self._ranges[key] = low, high, self._axis, n_seen

    def shares(self) -> dict[str, float]:
        shares: dict[str, float] = {}
        for (name, _), (low, high, axis, n_seen) in self._ranges.items():
            # Loops may go on longer for some samples than for others.
            if n_seen == self._n_seen:
                share = _dead_share(low, high, axis)
                shares[name] = max(share, shares.get(name, 0.0))
        return shares


def _last_states(output: Any) -> Tensor:
    """Return what a recurrent layer has kept of each sample in the end."""
    _, states = output
    hidden = states[0] if isinstance(states, tuple) else states
    return hidden.transpose(0, -2).flatten(1)


def _is_per_sample(values: Tensor, n_samples: int) -> bool:
    if values.layout != torch.strided or values.is_nested:
        return False
    return values.ndim > 1 and len(values) == n_samples


def _of_one_shape(a: Tensor, b: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Fill up two tensors: sequences of one batch may be longer than of another."""
    shape = tuple(map(max, a.shape, b.shape))
    filled = a.new_full(shape, fill), b.new_full(shape, fill)
    for whole, part in zip(filled, (a, b), strict=True):
        whole[tuple(map(slice, part.shape))] = part
    return filled


def _dead_share(low: Tensor, high: Tensor, axis: int) -> float:
    # At magnitude 1 at least, as the certificate has it: next to inputs and weights of
    # that size, what varies by less is lost.
    largest = max(1.0, float(torch.maximum(high.abs(), low.abs()).max()))
    varies = high - low > _NOISE_UNITS * torch.finfo(low.dtype).eps * largest
    # A channel is alive if any of its pixels is.
    alive = varies.movedim(axis, 0).flatten(1).any(dim=1) if varies.ndim > 1 else varies
    return 1 - float(alive.double().mean())


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Units]:
    """Look at what layers return; no hook is left behind."""
    units = _Units()
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            is_leaf = next(layer.children(), None) is None
            if name and is_leaf and not isinstance(layer, torch.jit.ScriptModule):
                # Of a compiled module: as it was called before.
                see: Callable[..., None] = partial(
                    units.see, name.replace("_orig_mod.", "")
                )
                hooks.callback(layer.register_forward_hook(see).remove)
        yield units


def _bends(layer: nn.Module) -> bool:
    """Tell activations and recurrent layers from linear maps and from norms."""
    if isinstance(layer, (nn.PReLU, *_RECURRENT)):
        return True
    return not isinstance(layer, _LINEAR) and not any(True for _ in layer.parameters())
