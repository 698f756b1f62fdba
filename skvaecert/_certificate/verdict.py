"""The verdict: the margin against what rounding, chance and the user ask for.

A constant code has no margin above the tolerance and no luck above the doubt, so a
margin above both, and above the safety margin tau, is certified (theory section 2). It
does not spread by more than rounding either, so a mean that does varies (section 15).
"""

from __future__ import annotations

import math
from typing import Any

from skvaecert._certificate.certificate import Certificate
from skvaecert.metrics import MarginSums
from skvaecert.simplex import check_number

__all__ = ["checked_margin", "conclude"]

# Sums of smaller weights are rounded to few digits, powers of larger ones overflow.
_WEIGHTS = 1e-50, 1e50


def conclude(
    alignment: MarginSums,
    *,
    error: float,
    tolerance: float,
    safety_margin: float,
    are_constant: bool,
    varies: bool = False,
    doubt: float = 0.0,
    is_luck: bool = False,
    **fields: Any,
) -> Certificate:
    """Weigh the margin and fill in a certificate.

    `error` bounds that of the arithmetic, `tolerance` adds that of the encoder.
    `varies` says whether the means spread by more (theory section 15). `doubt` is what
    draws of codes may have added, `is_luck` whether they may have done it all.
    """
    safety_margin = check_number("safety_margin", safety_margin, least=0)
    margin, information = checked_margin(alignment), alignment.teacher_information
    tells_apart = information > error
    reason = _reason(
        margin, information, error, tolerance, safety_margin, doubt, is_luck
    )
    if not reason:
        verdict = "certified"
    elif varies:
        verdict = "varies"
    # Equal codes say nothing about samples that the teacher finds equal, too.
    elif are_constant and (tells_apart or _no_teacher_of_several(fields)):
        verdict = "constant"
    else:
        verdict = "inconclusive"
    defaults = {"dispersion_bound": 0.0, "margin_low": margin, "margin_high": margin}
    return Certificate(
        verdict=verdict,
        margin=margin,
        teacher_information=information,
        alignment_loss=alignment.alignment_loss,
        relative_margin=margin / information if tells_apart else math.nan,
        tolerance=tolerance,
        safety_margin=safety_margin,
        n_components=len(alignment.mean_proba),
        mean_entropy=alignment.mean_entropy,
        reason=reason,
        **defaults | fields,
    )


def _no_teacher_of_several(fields: dict[str, Any]) -> bool:
    return bool(fields["witness"] == "none" and fields["n_samples"] > 1)


def _reason(
    margin: float,
    information: float,
    error: float,
    tolerance: float,
    safety_margin: float,
    doubt: float,
    is_luck: bool,
) -> str:
    """Say why the margin is not enough; nothing if it is."""
    needed = safety_margin + tolerance
    if margin - doubt > needed:
        return "shared draws" if is_luck else ""
    if information <= safety_margin + error:
        return "teacher"
    if margin > needed:
        return "draws"
    if margin > tolerance:
        return "safety margin"
    if margin > safety_margin + error or information <= needed:
        return "noise"
    return "witness"


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
