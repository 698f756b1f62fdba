"""Adam on all parameters laid end to end, and on numbers that are not too small."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OneVector", "drop_tiny_moments"]


# Moments below these change a step by less than its rounding: next to eps = 1e-8, a
# root mean square of 1e-16 is nothing, and so is a step of 1e-20 / eps.
_TINY = {"exp_avg": 1e-20, "exp_avg_sq": 1e-32}


def drop_tiny_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set moments to 0 that are too small to matter.

    Those of units without a gradient would decay to subnormal numbers, with which
    processors are slow. A mean decays from 1e-20 to them in 400 steps.
    """
    for state in optimizer.state.values():
        for name, limit in _TINY.items():
            if name in state:
                state[name].masked_fill_(state[name].abs() < limit, 0)


class OneVector:
    """One vector, of which the parameters of an optimizer and their `grad` are views.

    The optimizer steps the vector, until :meth:`release`: on small networks most of a
    step of Adam is one call a parameter. Whoever asks the optimizer for its state, or
    gives it another, finds one entry a parameter, as ever.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parts: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        state = optimizer.state_dict()
        flat = nn.Parameter(torch.cat([p.detach().flatten() for p in self._parts]))
        flat.grad = torch.zeros_like(flat)
        self._values = self._pieces(flat.detach())
        self._gradients = self._pieces(flat.grad)
        self.tie()
        self._steps([flat], state)
        self._hooks = [
            optimizer.register_state_dict_post_hook(self._split),
            optimizer.register_load_state_dict_pre_hook(self._join),
        ]

    def tie(self) -> None:
        """Take over values and gradients that were replaced, not written into."""
        pieces = zip(self._parts, self._values, self._gradients, strict=True)
        for part, value, gradient in pieces:
            if part.data_ptr() != value.data_ptr():
                value.copy_(part.detach())
                part.data = value
            if part.grad is not gradient:
                if part.grad is None:
                    gradient.zero_()
                else:
                    gradient.copy_(part.grad)
                part.grad = gradient

    def release(self) -> None:
        """Give every parameter memory of its own, and the optimizer the parameters."""
        state = self._optimizer.state_dict()
        for hook in self._hooks:
            hook.remove()
        for part in self._parts:
            part.data, part.grad = part.data.clone(), None
        self._steps(self._parts, state)

    def _steps(self, parameters: list[nn.Parameter], state: dict[str, Any]) -> None:
        """Let the optimizer step other parameters from a state of the usual form."""
        self._optimizer.state.clear()
        self._optimizer.param_groups[0]["params"] = parameters
        flat = parameters is not self._parts
        self._optimizer.load_state_dict(self._join(None, state) if flat else state)

    def _split(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Turn the state of the vector into states of the parameters."""
        moments = state["state"].get(0)
        states = (
            {} if moments is None else dict(enumerate(self._split_moments(moments)))
        )
        return self._with(states, state, len(self._parts))

    def _split_moments(self, moments: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        pieces = {
            name: self._pieces(moment)
            for name, moment in moments.items()
            if name != "step"
        }
        return [
            {"step": moments["step"].clone()}
            | {name: piece[i].clone() for name, piece in pieces.items()}
            for i in range(len(self._parts))
        ]

    def _join(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Turn states of the parameters into one of the vector."""
        states = state["state"]
        if not states:
            return self._with({}, state, 1)
        every = [states.get(i, {}) for i in range(len(self._parts))]
        names = next(iter(states.values())).keys() - {"step"}
        joined = {name: self._flat(name, every) for name in names}
        # There is one count of steps for all.
        joined["step"] = max(own["step"] for own in states.values())
        return self._with({0: joined}, state, 1)

    def _flat(self, name: str, states: list[dict[str, Tensor]]) -> Tensor:
        # A parameter that was frozen has no state.
        pairs = zip(self._parts, states, strict=True)
        return torch.cat(
            [own.get(name, torch.zeros_like(p)).flatten() for p, own in pairs]
        ).detach()

    @staticmethod
    def _with(states: dict[int, Any], state: dict[str, Any], n: int) -> dict[str, Any]:
        (group,) = state["param_groups"]
        return {"state": states, "param_groups": [group | {"params": list(range(n))}]}

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split([part.numel() for part in self._parts])
        return [
            piece.view(part.shape)
            for piece, part in zip(pieces, self._parts, strict=True)
        ]
