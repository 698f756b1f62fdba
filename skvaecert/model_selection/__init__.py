"""Choosing a model: scores without labels, refit rules for searches."""

from skvaecert.model_selection._refit import best_certified, smallest_certifying_weight
from skvaecert.model_selection._scorers import (
    LOWEST_SCORE,
    certificate_scorers,
    certified_scorer,
    elbo_scorer,
    lower_bound_scorer,
    margin_scorer,
    reconstruction_scorer,
    relative_margin_scorer,
    require_certified,
    sampled_information_scorer,
)

__all__ = [
    "LOWEST_SCORE",
    "best_certified",
    "certificate_scorers",
    "certified_scorer",
    "elbo_scorer",
    "lower_bound_scorer",
    "margin_scorer",
    "reconstruction_scorer",
    "relative_margin_scorer",
    "require_certified",
    "sampled_information_scorer",
    "smallest_certifying_weight",
]
