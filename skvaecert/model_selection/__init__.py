"""Model selection: scores without labels, rules that choose, certificates of both."""

from skvaecert.model_selection._refit import BestCertified, SmallestCertifyingWeight
from skvaecert.model_selection._scored import LOWEST_SCORE, certificate_of
from skvaecert.model_selection._scorers import (
    CertificateScorer,
    certificate_scorers,
    certified_scorer,
    elbo_scorer,
    lower_bound_scorer,
    margin_scorer,
    reconstruction_scorer,
    relative_margin_scorer,
    sampled_information_scorer,
)

__all__ = [
    "LOWEST_SCORE",
    "BestCertified",
    "CertificateScorer",
    "SmallestCertifyingWeight",
    "certificate_of",
    "certificate_scorers",
    "certified_scorer",
    "elbo_scorer",
    "lower_bound_scorer",
    "margin_scorer",
    "reconstruction_scorer",
    "relative_margin_scorer",
    "sampled_information_scorer",
]
