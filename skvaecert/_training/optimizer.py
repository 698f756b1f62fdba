"""Adam on all parameters laid end to end, and on numbers that are not too small."""

import copy
import threading
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["OneVector", "can_step_as_one", "drop_tiny_moments"]


# Moments below these change a step by less than its rounding: next to eps = 1e-8, a
# root mean square of 1e-16 is nothing, and so is a step of 1e-20 / eps.
_TINY = {"exp_avg": 1e-20, "exp_avg_sq": 1e-32}


def drop_tiny_moments(states: Iterable[dict[str, Tensor]]) -> None:
    """Set moments to 0 that are too small to matter.

    Those of units without a gradient would decay to subnormal numbers, with which
    processors are slow.
    """
    for state in states:
        for name in state.keys() & _TINY.keys():
            state[name].masked_fill_(state[name].abs() < _TINY[name], 0)


def can_step_as_one(optimizer: torch.optim.Adam, module: nn.Module) -> bool:
    """Tell whether one vector can stand for all that an optimizer steps."""
    if len(optimizer.param_groups) != 1:
        return False
    parts: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    # Those that were frozen for a time have made fewer steps.
    n_steps = {float(optimizer.state.get(part, {}).get("step", 0)) for part in parts}
    return (
        len(n_steps) == 1
        and list(map(id, parts)) == list(map(id, module.parameters()))
        and all(part.dtype == torch.float32 for part in parts)
    )


class _Piece(NamedTuple):
    """Views of one vector each, in the shape of a parameter."""

    value: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class OneVector:
    """One vector, of which the parameters of an Adam, and all it knows, are views.

    On small networks most of a step of Adam is one call a parameter. Between steps
    module and optimizer look as ever; :meth:`release` gives them memory of their own.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        self.optimizer = optimizer
        self._parts: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        sizes = [part.numel() for part in self._parts]
        vectors = [
            torch.zeros(sum(sizes), dtype=self._parts[0].dtype) for _ in _Piece._fields
        ]
        self._pieces = [
            _Piece(*(piece.view(part.shape) for piece in pieces))
            for part, *pieces in zip(
                self._parts, *(vector.split(sizes) for vector in vectors), strict=True
            )
        ]
        self._flat = nn.Parameter(vectors[0])
        self._flat.grad = vectors[1]
        # One count for all, and a copy for each: loaded states must not share theirs.
        self._step, self._steps = torch.zeros(()), torch.zeros(len(sizes))
        moments = {"step": self._step, "exp_avg": vectors[2], "exp_avg_sq": vectors[3]}
        self.state = {self._flat: moments}
        self._lock = threading.RLock()

    def tie(self) -> None:
        """Take over all parameters, later what was replaced, not written into."""
        pieces = zip(self._parts, self._pieces, self._steps, strict=True)
        for part, piece, step in pieces:
            if part.data_ptr() != piece.value.data_ptr():
                piece.value.copy_(part.detach())
                part.data = piece.value
            if part.grad is not None and part.grad is not piece.grad:
                piece.grad.copy_(part.grad)
                part.grad = piece.grad
            if self.optimizer.state[part].get("exp_avg") is not piece.exp_avg:
                self._take_moments(part, piece, step)

    def _take_moments(self, part: nn.Parameter, piece: _Piece, step: Tensor) -> None:
        state = self.optimizer.state[part]
        _take(piece.exp_avg, state.get("exp_avg"))
        _take(piece.exp_avg_sq, state.get("exp_avg_sq"))
        _take(self._step, state.get("step"))
        step.copy_(self._step)
        state.update(step=step, exp_avg=piece.exp_avg, exp_avg_sq=piece.exp_avg_sq)

    def addresses(self) -> tuple[int, int]:
        """Return where values and gradients lie: `share_memory` moves them."""
        assert self._flat.grad is not None
        return self._flat.data_ptr(), self._flat.grad.data_ptr()

    def give_gradients(self) -> None:
        """Let `grad` of every parameter be where its gradient will be."""
        for part, piece in zip(self._parts, self._pieces, strict=True):
            if part.grad is not piece.grad:
                part.grad = piece.grad

    def step(self) -> None:
        """Let the optimizer step the vector in place of its parameters."""
        optimizer, group = self.optimizer, self.optimizer.param_groups[0]
        state = optimizer.state
        with self._lock:
            try:
                optimizer.state = self.state  # type: ignore[assignment]
                group["params"] = [self._flat]
                optimizer.step()
            finally:
                optimizer.state, group["params"] = state, self._parts
        self._steps.fill_(self._step)

    def copies(
        self, module: nn.Module, optimizer: torch.optim.Adam
    ) -> tuple[nn.Module, torch.optim.Adam]:
        """Return copies whose parameters and moments have memory of their own."""
        # Amid a step of another thread the optimizer has no parameters but the vector.
        with self._lock:
            module, optimizer = copy.deepcopy((module, optimizer))
        for state in optimizer.state.values():
            state.update({name: value.clone() for name, value in state.items()})
        return module, optimizer

    def release(self) -> None:
        """Give every parameter, and what the optimizer knows of it, its own memory."""
        for part in self._parts:
            part.data = part.data.clone()
            part.grad = None if part.grad is None else part.grad.clone()
            state = self.optimizer.state.get(part, {})
            state.update({name: value.clone() for name, value in state.items()})


def _take(place: Tensor, value: Tensor | None) -> None:
    place.zero_() if value is None else place.copy_(value)
