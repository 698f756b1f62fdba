"""Candidates of a search, and the criterion that ranks them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skvaecert._teacher.em import Mixture
from skvaecert.simplex import budget_temperature

__all__ = ["Candidate", "Configuration", "Criterion", "default_budget"]


# Prior-matched scale of a teacher whose energy equals the default budget. With larger
# scales, margins on test samples gain little with few components, and fall with many
# (docs/benchmarks.md).
_LARGEST_SCALE = 4.0


class Configuration(NamedTuple):
    """Values of the parameters that a search varies."""

    n_components: int
    pca_components: int
    covariance_type: str

    def __str__(self) -> str:
        """Return the parameters as keyword arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())


@dataclass(frozen=True)
class Candidate:
    """A configuration with its fitted mixture and values on held-out samples."""

    configuration: Configuration
    information: float = np.nan
    energy: float = np.nan
    temperature: float = np.nan
    log_likelihood: float = np.nan
    agreement: float = np.nan
    n_samples: int = 0
    seconds: float = np.nan
    error: str = ""
    mixture: Mixture | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Criterion:
    """Rules for usable candidates, from the parameters of :class:`GMMTeacher`."""

    temperature: float | str
    floor: float
    energy_budget: float | None
    min_agreement: float

    def budget(self, n_components: int) -> float:
        """Return the largest energy that a teacher may have."""
        if self.energy_budget is None:
            return default_budget(n_components)
        return float(self.energy_budget)

    def choose_temperature(self, log_proba: NDArray[np.floating]) -> float:
        """Return `temperature`; if it is "auto", the smallest that fits the budget."""
        if self.temperature != "auto":
            return float(self.temperature)
        budget = self.budget(log_proba.shape[1])
        return budget_temperature(log_proba, self.floor, budget)

    def fits_budget(self, candidate: Candidate) -> bool:
        """Whether the energy is within the budget; False for a failed candidate."""
        return candidate.energy <= self.budget(candidate.configuration.n_components)

    def is_stable(self, candidate: Candidate) -> bool:
        """Whether the agreement of restarts reaches the minimum."""
        # The adjusted mutual information of clusters in noise may be slightly negative.
        return max(candidate.agreement, 0.0) >= self.min_agreement

    def is_usable(self, candidate: Candidate) -> bool:
        """Whether the candidate fits the budget and is stable."""
        return self.fits_budget(candidate) and self.is_stable(candidate)

    def rank(self, candidates: list[Candidate]) -> list[int]:
        """Return the indices of the candidates from best to worst.

        Usable candidates come first, and among them those measured on more samples.
        """
        return sorted(range(len(candidates)), key=lambda i: self._key(candidates[i]))

    def _key(self, candidate: Candidate) -> tuple[float, ...]:
        # Smaller is better. The order is usable, unstable, above the budget, failed. If
        # candidates are not usable, the nearest to usable comes first.
        if candidate.mixture is None:
            return 3, 0
        if not self.fits_budget(candidate):
            budget = self.budget(candidate.configuration.n_components)
            return 2, candidate.energy / budget
        if not self.is_stable(candidate):
            return 1, -candidate.agreement
        return 0, -candidate.n_samples, -candidate.information

    def check_budget(self, candidate: Candidate) -> None:
        """Raise an error if the best candidate does not fit the budget."""
        if self.fits_budget(candidate):
            return
        raise ValueError(
            "energy_budget must be at least the energy of one candidate, got "
            f"{self.budget(candidate.configuration.n_components):.4g} nats. The "
            f"nearest candidate is {candidate.configuration} with "
            f"{candidate.energy:.4g} nats at temperature {candidate.temperature:g}. "
            f"Raise energy_budget or floor ({self.floor:g}), or set "
            "temperature='auto'."
        )


def default_budget(n_components: int) -> float:
    """Return the energy at which the prior-matched scale is 4: 16 (K - 1) / 2."""
    return _LARGEST_SCALE**2 * (n_components - 1) / 2
