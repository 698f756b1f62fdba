"""Adam on all parameters laid end to end."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FlatAdam"]


# Moments below these change a step by less than its rounding: next to eps = 1e-8, a
# root mean square of 1e-16 is nothing, and so is a step of 1e-20 / eps.
_TINY_MEAN, _TINY_SQUARE = 1e-20, 1e-32

# A mean decays from 1e-20 to the subnormal numbers in 400 steps.
_STEPS_BETWEEN_CLEANINGS = 256


class FlatAdam(torch.optim.Adam):
    """Adam that updates one long vector, of which all parameters are views.

    The steps are those of :class:`torch.optim.Adam`, as long as no parameter is frozen
    and thawed: there is one count of steps for all. On small networks they take a
    fraction of the time, most of which goes into one call a tensor. Moments too small
    to matter are set to 0 now and then: those of units without a gradient would decay
    to subnormal numbers, with which processors are slow.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        groups = [p["params"] if isinstance(p, dict) else [p] for p in params]
        parts = list(chain(*groups))
        flat = nn.Parameter(torch.cat([part.detach().flatten() for part in parts]))
        super().__init__([flat], **settings)
        self.bind(parts)

    def bind(self, parts: Sequence[nn.Parameter]) -> None:
        """Make parameters and their gradients views of the vector once more.

        A copy or a pickle of the network has lost this tie.
        """
        flat = self._flat
        with torch.no_grad():
            flat.copy_(torch.cat([part.flatten() for part in parts]))
        flat.grad = torch.zeros_like(flat)
        values, gradients = (
            self._pieces(flat.data, parts),
            self._pieces(flat.grad, parts),
        )
        for part, value, gradient in zip(parts, values, gradients, strict=True):
            part.data, part.grad = value.view(part.shape), gradient.view(part.shape)
        self._parts = list(parts)
        self._addresses = [part.data_ptr() for part in parts]
        self._gradients = [part.grad for part in parts]
        self._n_steps = getattr(self, "_n_steps", 0)

    def tie(self) -> None:
        """Take over values and gradients that were replaced, not written into."""
        gradients = [part.grad for part in self._parts]
        addresses = [part.data_ptr() for part in self._parts]
        known = zip(gradients, self._gradients, strict=True)
        if addresses == self._addresses and all(a is b for a, b in known):
            return
        self.bind(self._parts)
        for gradient, place in zip(gradients, self._gradients, strict=True):
            if gradient is not None and place is not None:
                place.copy_(gradient)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set the gradients to 0."""
        gradient = self._flat.grad
        assert gradient is not None
        gradient.zero_()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step; parameters without `requires_grad` stay as they are."""
        self.tie()
        if not all(part.requires_grad for part in self._parts):
            self._forget_frozen()
        super().step()
        self._n_steps += 1
        if self._n_steps % _STEPS_BETWEEN_CLEANINGS == 0:
            self._clean()

    def gradient(self) -> Tensor:
        """Return the gradients of all parameters, end to end."""
        self.tie()
        gradient = self._flat.grad
        assert gradient is not None
        return gradient

    @property
    def _flat(self) -> nn.Parameter:
        return self.param_groups[0]["params"][0]

    def _moments(self) -> list[tuple[Tensor, float]]:
        state = self.state[self._flat]
        limits = {"exp_avg": _TINY_MEAN, "exp_avg_sq": _TINY_SQUARE}
        return [(state[key], limits[key]) for key in limits if key in state]

    def _clean(self) -> None:
        for moment, limit in self._moments():
            moment.masked_fill_(moment.abs() < limit, 0)

    def _forget_frozen(self) -> None:
        """Set gradient and momentum of frozen parameters to 0."""
        gradient = self._flat.grad
        assert gradient is not None
        for vector in [gradient, *(moment for moment, _ in self._moments())]:
            pieces = self._pieces(vector, self._parts)
            for part, piece in zip(self._parts, pieces, strict=True):
                if not part.requires_grad:
                    piece.zero_()

    @staticmethod
    def _pieces(vector: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return vector.split([part.numel() for part in parts])
