"""Displays: each draws a picture of given values, or of an estimator and samples.

matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from skvaecert.plotting._contributions import ContributionDisplay
from skvaecert.plotting._energy import MarginEnergyDisplay
from skvaecert.plotting._forecast import ForecastDisplay
from skvaecert.plotting._history import MarginHistoryDisplay
from skvaecert.plotting._information import InformationBracketDisplay
from skvaecert.plotting._latent_map import LatentMapDisplay
from skvaecert.plotting._pareto import ParetoDisplay
from skvaecert.plotting._reconstruction import ReconstructionDisplay
from skvaecert.plotting._teacher_search import TeacherSearchDisplay

__all__ = [
    "ContributionDisplay",
    "ForecastDisplay",
    "InformationBracketDisplay",
    "LatentMapDisplay",
    "MarginEnergyDisplay",
    "MarginHistoryDisplay",
    "ParetoDisplay",
    "ReconstructionDisplay",
    "TeacherSearchDisplay",
]
