"""The verdict: the margin against what rounding, chance and the user ask for.

A constant code has no margin above the tolerance and no luck above the doubt, so a
margin above both, and above the safety margin tau, is certified (theory section 2).
"""

import math
from numbers import Real
from typing import Any

from skvaecert._certificate.certificate import Certificate
from skvaecert.metrics import MarginSums

__all__ = ["check_not_negative", "checked_margin", "conclude"]

# Sums of smaller weights are rounded to few digits, powers of larger ones overflow.
_WEIGHTS = 1e-50, 1e50


def conclude(
    alignment: MarginSums,
    *,
    error: float,
    tolerance: float,
    safety_margin: float,
    are_constant: bool,
    doubt: float = 0.0,
    is_luck: bool = False,
    **fields: Any,
) -> Certificate:
    """Weigh the margin and fill in a certificate.

    `error` bounds that of the arithmetic, `tolerance` adds that of the encoder. `doubt`
    is what draws of codes may have added, `is_luck` whether they may have done it all.
    """
    check_not_negative("safety_margin", safety_margin)
    margin, information = checked_margin(alignment), alignment.teacher_information
    tells_apart = information > error
    defaults = {"dispersion_bound": 0.0, "margin_low": margin, "margin_high": margin}
    if margin - doubt > safety_margin + tolerance and not is_luck:
        verdict = "certified"
    # Equal codes say nothing about samples that the teacher finds equal, too.
    elif are_constant and tells_apart:
        verdict = "constant"
    else:
        verdict = "inconclusive"
    return Certificate(
        verdict=verdict,
        margin=margin,
        teacher_information=information,
        alignment_loss=alignment.alignment_loss,
        relative_margin=margin / information if tells_apart else math.nan,
        tolerance=tolerance,
        safety_margin=float(safety_margin),
        n_components=len(alignment.mean_proba),
        **defaults | fields,
    )


def checked_margin(alignment: MarginSums) -> float:
    """Return G, nats; an error if there are no samples or their weights are extreme."""
    if not 0 < alignment.total_weight < math.inf:
        raise ValueError(
            "sample_weight must have a finite sum above 0, got "
            f"{alignment.total_weight}."
        )
    if not _WEIGHTS[0] <= alignment.total_weight <= _WEIGHTS[1]:
        raise ValueError(
            "sample_weight must have a sum from 1e-50 to 1e50, got "
            f"{alignment.total_weight}. Divide the weights by their mean."
        )
    return alignment.margin


def check_not_negative(name: str, value: float) -> None:
    if not (isinstance(value, Real) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number, at least 0, got {value}.")
