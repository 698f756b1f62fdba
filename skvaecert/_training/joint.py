"""Many fits as one: nets of one architecture train as one batched computation.

On a small net most of a step goes into dispatching its few dozen operations. The
tensors of several nets, stacked along a first axis, share that cost.
"""

import copy
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from skvaecert._samples import CHUNK
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.loop import stand_in
from skvaecert._training.monitors import (
    Completion,
    MarginMonitor,
    ValidationMonitor,
)
from skvaecert._training.net import VAENet
from skvaecert._training.optimizer import FlatAdam
from skvaecert._training.step import GradientByHand, Layers
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.objectives import AlignedELBO, Terms

__all__ = [
    "Fit",
    "JointTraining",
    "can_join",
    "group_size",
    "shared_call",
    "sharing_results",
    "train_together",
]


_results: ContextVar[dict[str, Any] | None] = ContextVar("results", default=None)


@contextmanager
def sharing_results() -> Iterator[None]:
    """Let :func:`shared_call` remember results, inside the block."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def shared_call(
    generators: Callable[[], Any], function: Callable[..., Any], *args: Any
) -> Any:
    """Call a function or, inside :func:`sharing_results`, copy what it returned."""
    results = _results.get()
    key = _content(args) if results is not None else None
    if results is None or key is None:
        return function(*args)
    if key in results:
        return copy.deepcopy(results[key])
    before = joblib.hash(generators())
    result = function(*args)
    if joblib.hash(generators()) == before:
        results[key] = copy.deepcopy(result)
    return result


def _content(args: Any) -> str | None:
    try:
        return joblib.hash(args)
    except Exception:  # locks, files, local classes: whatever cannot be pickled
        return None


# Work is counted in weights x rows of a batch. A stack of 16 million gains no more by
# another net, but 64 are enough of any; nets of more than 32 million gain less than a
# tenth, and soon lose (examples/benchmarks/together.py).
_STACK_WORK, _LARGEST_STACK = 16_000_000, 64

_NET_WORK, _SMALLEST_STACK = 32_000_000, 4

_PLAIN = [MarginMonitor, ValidationMonitor, Completion]


class _Prepared(BaseException):
    """Ends a fit where its training would begin; no error that one may catch."""


class Fit(NamedTuple):
    """A fit that is ready to train."""

    net: VAENet
    rows: Tensor
    teacher_proba: Tensor
    state: Tensor


def can_join(net: VAENet, dataset: TrainingSet) -> bool:
    """Tell whether a net can train with others: a plain one, at its beginning."""
    callbacks = [type(callback) for _, callback in net.callbacks_]
    rows = dataset.rows
    return (
        type(net) is VAENet
        and callbacks == _PLAIN
        and net.device == "cpu"
        and net.processes.n_processes == 1
        and not net.autocast
        and net.forward_backend is None
        and net.criterion_.guard is None
        and isinstance(rows, Resident)
        and rows.location is None
        and dataset.held_out is None
        and isinstance(net.optimizer_, FlatAdam)
        and not net.history
        and not net.optimizer_.state
        and GradientByHand.of(net.module_, net.criterion_) is not None
        and all(parameter.requires_grad for parameter in net.module_.parameters())
    )


def group_size(net: VAENet) -> int:
    """Return how many nets like this one are best trained as one."""
    n_weights = sum(p.numel() for p in net.module_.parameters())
    work = n_weights * net.batch_size
    if work > _NET_WORK:
        return 1
    return max(_SMALLEST_STACK, min(_LARGEST_STACK, _STACK_WORK // work))


def train_together(fits: Sequence[Fit]) -> list[NonFiniteLossError | None]:
    """Train nets, each as :func:`skvaecert._training.train` would, to rounding.

    Every net draws its batches and codes from a generator of its own, so that it sees
    what it would see alone.
    """
    run = _Run(fits)
    for _ in range(fits[0].net.max_epochs):
        run.epoch()
    run.finish()
    return run.errors


class JointTraining:
    """Fits that are prepared one by one, trained as one, and then done one by one.

    Every fit is run twice: the first time, it is stopped where its training would
    begin. The second time, it is given the trained net there, if all that has to do
    with its training is the same. So whatever surrounds the training in a fit stays
    as it is; fits that cannot be joined train on their own then.
    """

    def __init__(self) -> None:
        self._prepared: dict[_Key, Fit] = {}
        self._trained: dict[_Key, tuple[VAENet, NonFiniteLossError | None]] = {}
        self._n_fits: Counter[_Key] = Counter()
        self._seconds: dict[_Key, float] = {}
        self._tensors: dict[bytes, Tensor] = {}

    def prepare(self, fit: Callable[[], Any]) -> Callable[[], float]:
        """Run a fit up to its training."""
        keys: list[_Key] = []

        def collect(net: VAENet, dataset: TrainingSet, watched: bool) -> bool:
            if not watched and can_join(net, dataset) and group_size(net) > 1:
                keys.append(self._take(net, *_tensors(dataset)))
            raise _Prepared

        with suppress(Exception, _Prepared), stand_in(collect):
            fit()
        self._n_fits.update(keys)
        return lambda: sum(self._seconds.get(key, 0.0) for key in keys)

    def _take(self, net: VAENet, rows: Tensor, teacher_proba: Tensor) -> "_Key":
        key = _Key.of(net, rows, teacher_proba)
        # One copy of what several fits share.
        rows = self._tensors.setdefault(key.rows, rows)
        teacher_proba = self._tensors.setdefault(key.teacher_proba, teacher_proba)
        fit = Fit(net, rows, teacher_proba, torch.get_rng_state())
        self._prepared.setdefault(key, fit)
        return key

    def train(self) -> None:
        """Train what has been prepared, as far as it pays."""
        alike = defaultdict(list)
        for key, fit in self._prepared.items():
            alike[key.settings].append((key, fit))
        self._prepared.clear()
        self._tensors.clear()
        for group in alike.values():
            for part in _parts(group, group_size(group[0][1].net)):
                self._train_part(part)

    def _train_part(self, part: Sequence[tuple["_Key", Fit]]) -> None:
        if len(part) == 1:
            return
        errors = train_together([fit for _, fit in part])
        for (key, fit), error in zip(part, errors, strict=True):
            self._trained[key] = fit.net, error
            seconds = sum(row["seconds"] for row in fit.net.history)
            self._seconds[key] = seconds / self._n_fits[key]

    def handing_out(self) -> AbstractContextManager[None]:
        """Give fits their trained nets, inside the block."""
        return stand_in(self._hand_out)

    def _hand_out(self, net: VAENet, dataset: TrainingSet, watched: bool) -> bool:
        if watched or not (self._trained and can_join(net, dataset)):
            return False
        key = _Key.of(net, *_tensors(dataset))
        if key not in self._trained:
            return False
        trained, error = self._trained[key]
        self._n_fits[key] -= 1
        if self._n_fits[key]:
            trained = copy.deepcopy(trained)
        else:
            del self._trained[key]
        net.__dict__.update(vars(trained))
        if error is not None:
            raise type(error)(*error.args)
        return True


class _Key(NamedTuple):
    """All that the outcome of a training depends on."""

    settings: tuple[Any, ...]
    weights: tuple[float, float]
    start: bytes
    rows: bytes
    teacher_proba: bytes

    @classmethod
    def of(cls, net: VAENet, rows: Tensor, teacher_proba: Tensor) -> "_Key":
        criterion = net.criterion_
        start = nn.utils.parameters_to_vector(net.module_.parameters()).detach()
        scale = torch.tensor(criterion.scale, dtype=torch.float64)
        return cls(
            _settings(net, rows, teacher_proba),
            (float(criterion.kl_weight), float(criterion.alignment_weight)),
            _digest(torch.get_rng_state(), start, criterion.vertices, scale),
            _digest(rows),
            _digest(teacher_proba),
        )


def _tensors(dataset: TrainingSet) -> tuple[Tensor, Tensor]:
    assert isinstance(dataset.rows, Resident)
    return dataset.rows.values, dataset.targets


def _settings(net: VAENet, rows: Tensor, teacher_proba: Tensor) -> tuple[Any, ...]:
    """Return what nets must have in common to be stacked."""
    shapes = tuple((n, p.shape, p.dtype) for n, p in net.module_.named_parameters())
    training = net.criterion_.likelihood, net.lr, net.batch_size, net.max_epochs
    return shapes, training, rows.shape, teacher_proba.shape


def _digest(*tensors: Tensor) -> bytes:
    sha = hashlib.sha1(usedforsecurity=False)
    for tensor in tensors:
        sha.update(tensor.contiguous().numpy().data)
    return sha.digest()


def _parts(group: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Split into as few parts as a size allows, all alike but for one."""
    index = np.array_split(np.arange(len(group)), -(-len(group) // size))
    return ([group[i] for i in part] for part in index)


class _Run:
    """One joint training."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        self._nets = [fit.net for fit in fits]
        self._data = _Data(fits)
        self._monitors = _Monitors(fits)
        self._stack = _Stack(self._nets)
        self.errors: list[NonFiniteLossError | None] = [None] * len(fits)

    def epoch(self) -> None:
        """Train one epoch and record it."""
        began = time.perf_counter()
        before = self._stack.weights.detach().clone()
        terms = torch.stack([self._stack.step(*batch) for batch in self._data])
        losses = self._stack.with_totals(terms).permute(2, 1, 0).tolist()
        margins = self._monitors.margins(self._stack.encode(self._monitors.rows))
        finite = self._stack.weights.isfinite().all(dim=1).tolist()
        # A share, so that the sum over nets is what it took.
        seconds = (time.perf_counter() - began) / len(self._nets)
        for i, net in enumerate(self._nets):
            if self.errors[i] is not None:
                continue
            try:
                self._record_losses(net, losses[i], finite[i])
            except NonFiniteLossError as error:
                self._give_up(i, error, before)
                continue
            self._monitors.record(i, margins[i])
            net.history.record("seconds", seconds)

    def _record_losses(
        self, net: VAENet, losses: Sequence[Sequence[float]], finite: bool
    ) -> None:
        net.history.new_epoch()
        net.history.record("epoch", len(net.history))
        batches = [{"train_batch_size": size} for size in self._data.sizes]
        net.history[-1]["batches"].extend(batches)
        net.history.record("train_batch_count", len(batches))
        net.record_losses(self._data.sizes, losses)
        net.check_weights(finite)

    def _give_up(self, i: int, error: NonFiniteLossError, before: Tensor) -> None:
        """Return to the last full epoch. What stays in the stack is not looked at."""
        self.errors[i] = error
        del self._nets[i].history[-1:]
        self._stack.part_with(i, before)

    def finish(self) -> None:
        """Make the nets independent of each other again."""
        self._monitors.release()
        for i, error in enumerate(self.errors):
            self._nets[i].interrupted_ = error is not None
            if error is None:
                self._stack.part_with(i, self._stack.weights.detach())
                self._stack.hand_over_moments(i)


class _Stack:
    """Nets whose weights are the rows of one matrix."""

    def __init__(self, nets: Sequence[VAENet]) -> None:
        self._nets = nets
        self._shapes = {k: p.shape for k, p in nets[0].module_.named_parameters()}
        vectors = [nn.utils.parameters_to_vector(n.module_.parameters()) for n in nets]
        self.weights = nn.Parameter(torch.stack(vectors).detach())
        self._optimizer = FlatAdam([self.weights], lr=nets[0].lr, fused=True)
        parts, gradients = self._parts(self.weights.data), self._parts(self._gradient)
        for name, part in parts.items():
            part.grad = gradients[name]
        self._encoder = _layers(parts, "encoder.")
        decoder, raw_log_noise = _layers(parts, "decoder."), parts["raw_log_noise"]
        self._by_hand = GradientByHand(self._encoder, decoder, raw_log_noise)
        self._criterion = _stacked_criterion([net.criterion_ for net in nets])

    @property
    def _gradient(self) -> Tensor:
        assert self.weights.grad is not None
        return self.weights.grad

    def _parts(self, matrix: Tensor) -> dict[str, Tensor]:
        pieces = matrix.split([s.numel() for s in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), pieces, strict=True)
        return {name: piece.view(-1, *shape) for (name, shape), piece in named}

    def step(self, rows: Tensor, teacher_proba: Tensor, noise: Tensor) -> Tensor:
        # Terms of the loss, for every net in a column.
        _, terms = self._by_hand(rows, teacher_proba, self._criterion, noise)
        self._optimizer.step()
        return torch.stack(terms)

    def with_totals(self, terms: Tensor) -> Tensor:
        # Of shape (n_batches, 1 + n_terms, n_nets), the total first.
        named = Terms(*terms.unbind(dim=1))
        total = (
            named.reconstruction
            + self._criterion.kl_weight.view(-1) * named.penalty
            + self._criterion.alignment_weight.view(-1) * named.alignment
        )
        return torch.cat([total[:, None], terms], dim=1)

    @torch.no_grad()
    def encode(self, rows: Tensor) -> Tensor:
        chunks = rows.split(CHUNK, dim=1)
        means = [self._encoder.forward(x).chunk(2, dim=-1)[0] for x in chunks]
        return torch.cat(means, dim=1)

    def part_with(self, i: int, weights: Tensor) -> None:
        # In memory of its own, so that it is not pickled with the others.
        module = self._nets[i].module_
        nn.utils.vector_to_parameters(weights[i].clone(), module.parameters())
        self._nets[i].optimizer_.bind(list(module.parameters()))

    def hand_over_moments(self, i: int) -> None:
        # So that a warm start can go on.
        (state,) = self._optimizer.state.values()
        own = self._nets[i].optimizer_
        (flat,) = own.param_groups[0]["params"]
        own.state[flat] = {
            key: (v if v.ndim == 0 else v.view_as(self.weights)[i]).clone()
            for key, v in state.items()
        }


def _layers(parts: dict[str, Tensor], prefix: str) -> Layers:
    own = [part for name, part in parts.items() if name.startswith(prefix)]
    return Layers(own[::2], own[1::2])


def _stacked_criterion(criteria: Sequence[AlignedELBO]) -> Any:
    """Return a loss whose weights and scale are tensors of shape (n_nets, 1, 1)."""
    names = "scale", "kl_weight", "alignment_weight"
    columns: list[Any] = [
        torch.tensor([float(getattr(c, name)) for c in criteria])[:, None, None]
        for name in names
    ]
    vertices = torch.stack([criterion.vertices for criterion in criteria])
    return AlignedELBO(criteria[0].likelihood, vertices, *columns)


class _Data:
    """The batches of several fits, side by side."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        net = fits[0].net
        self._generators = [torch.Generator().set_state(fit.state) for fit in fits]
        self._rows, self._row_offsets = _end_to_end([fit.rows for fit in fits])
        self._targets, self._target_offsets = _end_to_end(
            [fit.teacher_proba for fit in fits]
        )
        self._n = len(fits[0].rows)
        self._latent_dim = net.criterion_.vertices.shape[1]
        self._n_batches = -(-self._n // net.batch_size)
        index = torch.arange(self._n)
        self.sizes = [len(part) for part in index.tensor_split(self._n_batches)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        orders = [torch.randperm(self._n, generator=g) for g in self._generators]
        shape = len(orders), self.sizes[0], self._latent_dim
        noise = torch.empty(shape)
        for index in torch.stack(orders).tensor_split(self._n_batches, dim=1):
            part = noise[:, : index.shape[1]]
            if part.shape != noise.shape:
                part = noise = torch.empty(part.shape)
            for own, generator in zip(part, self._generators, strict=True):
                own.normal_(generator=generator)
            yield (
                _taken(self._rows, index + self._row_offsets),
                _taken(self._targets, index + self._target_offsets),
                part,
            )


def _taken(table: Tensor, index: Tensor) -> Tensor:
    # Several times as fast as table[index].
    return table.index_select(0, index.flatten()).view(*index.shape, -1)


def _end_to_end(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join the distinct ones, and tell for each of all where it begins."""
    distinct = {id(tensor): tensor for tensor in tensors}
    starts = np.cumsum([0, *(len(tensor) for tensor in distinct.values())])
    start = dict(zip(distinct, starts.tolist(), strict=False))
    offsets = torch.tensor([start[id(tensor)] for tensor in tensors])
    return torch.cat(list(distinct.values())), offsets[:, None]


class _Monitors:
    """The margin monitors of several nets."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        self._nets = [fit.net for fit in fits]
        self._monitors = [dict(net.callbacks_)["monitor"] for net in self._nets]
        for fit, monitor in zip(fits, self._monitors, strict=True):
            dataset = TrainingSet(Resident(fit.rows), fit.teacher_proba)
            monitor.on_train_begin(fit.net, X=dataset)
        watched = [monitor.watched_ for monitor in self._monitors]
        self.rows = torch.stack([own.rows for own in watched])
        proba = np.stack([own.teacher_proba for own in watched])
        self._proba = torch.from_numpy(proba).double().mT.contiguous()
        criteria = [net.criterion_ for net in self._nets]
        directions = [c.scale * c.vertices.double() for c in criteria]
        self._directions = torch.stack(directions)

    def margins(self, latent_mean: Tensor) -> list[float]:
        # G = sum_i p_i sum_k T_ik log(q_ik / mean T_k) of every net (theory section 2).
        logits = self._directions @ latent_mean.double().mT
        log_q = torch.log_softmax(logits, dim=1)
        log_ratio = log_q - self._proba.mean(dim=2, keepdim=True).log()
        sums = (self._proba * log_ratio).sum(dim=(1, 2))
        return (sums / latent_mean.shape[1]).tolist()

    def record(self, i: int, margin: float) -> None:
        self._monitors[i].record(self._nets[i], margin)

    def release(self) -> None:
        """Forget the rows."""
        for monitor in self._monitors:
            monitor.release()
