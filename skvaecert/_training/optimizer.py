"""Adam on all parameters as one vector, without moments that are too small."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["OneVector", "can_step_as_one", "drop_tiny_moments"]


# Smaller moments change a step by less than its rounding: a root mean square of 1e-16
# is negligible compared with eps = 1e-8, and so is a step of 1e-20 / eps.
_NEGLIGIBLE = {"exp_avg": 1e-20, "exp_avg_sq": 1e-32}

_ZERO = torch.zeros(())


def drop_tiny_moments(states: Iterable[dict[str, Tensor]]) -> None:
    """Set negligible moments to 0.

    The moments of units without a gradient would decay to subnormal numbers, on which
    processors are slow.
    """
    for state in states:
        for name in state.keys() & _NEGLIGIBLE.keys():
            state[name].masked_fill_(state[name].abs() < _NEGLIGIBLE[name], 0)


def can_step_as_one(optimizer: torch.optim.Adam, module: nn.Module) -> bool:
    """Return whether one vector can replace all parameters that an optimizer steps."""
    if len(optimizer.param_groups) != 1:
        return False
    parts: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    # Parameters that were frozen for a time have made fewer steps.
    n_steps = {float(optimizer.state.get(part, {}).get("step", 0)) for part in parts}
    return (
        len(n_steps) == 1
        and list(map(id, parts)) == list(map(id, module.parameters()))
        and all(part.dtype == torch.float32 for part in parts)
    )


class OneVector:
    """One vector whose views are the parameters of an Adam, their grads and moments.

    On small networks, most of a step of Adam is overhead per parameter. Between steps,
    module and optimizer look as usual. :meth:`release` gives them their own memory.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        self.optimizer = optimizer
        self._parts: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        sizes = [part.numel() for part in self._parts]
        value, grad, mean, square = (torch.zeros(sum(sizes)) for _ in range(4))
        # One count for all, and a copy for each: loaded states must not share a tensor.
        self._step, self._steps = torch.zeros(()), torch.zeros(len(sizes))
        self._flat = nn.Parameter(value)
        self._flat.grad = grad
        moments = {"step": self._step, "exp_avg": mean, "exp_avg_sq": square}
        self.state = {self._flat: moments}
        self._lock = threading.RLock()
        self._values, self._grads, *both = map(self._views, (value, grad, mean, square))
        self._moments = [
            dict(zip(moments, own, strict=True))
            for own in zip(self._steps, *both, strict=True)
        ]

    def _views(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split([part.numel() for part in self._parts])
        return [piece.view_as(p) for piece, p in zip(pieces, self._parts, strict=True)]

    def is_all_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether an optimizer steps all of this. Adam skips a missing grad."""
        has_grad = (part.grad is not None for part in self._parts)
        return optimizer is self.optimizer and all(has_grad)

    def tie(self) -> None:
        """Make all parameters views of the vector, also those replaced meanwhile."""
        pieces = zip(self._parts, self._values, self._grads, self._moments, strict=True)
        for part, value, grad, moments in pieces:
            if part.data_ptr() != value.data_ptr():
                value.copy_(part.detach())
                part.data = value
            if part.grad is not grad:
                grad.copy_(_ZERO if part.grad is None else part.grad)
                part.grad = grad
            if self.optimizer.state[part].get("exp_avg") is not moments["exp_avg"]:
                self._take(self.optimizer.state[part], moments)

    def _take(self, state: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        for name, own in moments.items():
            own.copy_(state.get(name, _ZERO))
        state.update(moments)
        self._step.copy_(moments["step"])

    def addresses(self) -> tuple[int, int]:
        """Return the addresses of values and gradients: `share_memory` changes them."""
        assert self._flat.grad is not None
        return self._flat.data_ptr(), self._flat.grad.data_ptr()

    def step(self) -> None:
        """Step the vector instead of the parameters."""
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
        """Return copies whose parameters and moments have their own memory."""
        # During a step, the optimizer's only parameter is the vector: wait for its end.
        with self._lock:
            module, optimizer = copy.deepcopy((module, optimizer))
        for state in optimizer.state.values():
            _unshare(state)
        return module, optimizer

    def release(self) -> None:
        """Give every parameter, its gradient and its moments their own memory."""
        for part in self._parts:
            part.data = part.data.clone()
            part.grad = None if part.grad is None else part.grad.clone()
            _unshare(self.optimizer.state.get(part, {}))


def _unshare(state: dict[str, Tensor]) -> None:
    """Give every tensor its own memory."""
    state.update({name: value.clone() for name, value in state.items()})
