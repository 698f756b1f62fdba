"""The regression with which a first fit may begin (theory section 11)."""

from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np

from skvaecert.simplex import Floats, analytic_energy

__all__ = ["Prefit"]


class Prefit(NamedTuple):
    """Settings of the regression of the latent mean on alpha z*, the analytic code."""

    alpha: float | None = None
    energy: float | None = None
    epochs: int = 10

    @classmethod
    def of(cls, prefit: str | dict[str, Any] | None) -> Self | None:
        """Check the parameter `prefit`, and convert it."""
        if prefit is None:
            return None
        given = {"alpha": 1.0} if prefit == "analytic" else prefit
        if not isinstance(given, dict) or not _is_valid(given):
            raise ValueError(
                "prefit must be None, 'analytic', or a dict such as {'alpha': 0.5} or "
                f"{{'energy': 4.0, 'epochs': 20}}, got {prefit!r}. A dict has either "
                "'alpha' or 'energy', a number above 0, and optionally 'epochs', an "
                "integer above 0."
            )
        return cls(**given)

    def resolve_alpha(self, proba: Floats, scale: float) -> float:
        """Return alpha; with `energy`, the largest alpha up to 1 that it allows."""
        if self.energy is None:
            # Without `energy` there is an alpha: `or` is for the type checker only.
            return float(self.alpha or 0.0)
        energy = analytic_energy(proba, scale)
        # The energy is quadratic in alpha, and 0 if the teacher is constant.
        return min(1.0, float(np.sqrt(self.energy / max(energy, 1e-300))))


def _is_valid(given: dict[str, Any]) -> bool:
    strengths = [given[name] for name in ("alpha", "energy") if name in given]
    epochs = given.get("epochs", 1)
    return (
        given.keys() <= set(Prefit._fields)
        and len(strengths) == 1
        and all(isinstance(s, Real) and 0 < float(s) < np.inf for s in strengths)
        and isinstance(epochs, Integral)
        and int(epochs) > 0
    )
