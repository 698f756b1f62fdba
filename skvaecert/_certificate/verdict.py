"""The verdict: compare the margin with tolerance, safety margin and chance.

The margin of a constant code is at most the tolerance. For drawn codes chance adds at
most `doubt`, except with probability 3e-7. So a margin above both, and above the safety
margin tau, is certified (theory section 2). A constant mean does not spread by more
than rounding either, so a mean that does varies (section 15).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from skvaecert._certificate.certificate import Certificate
from skvaecert.metrics import MarginSums
from skvaecert.simplex import check_number

__all__ = ["checked_margin", "conclude"]

# Smaller sums of weights lose digits near the smallest floats, and powers of larger
# ones overflow.
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
    """Decide the verdict and build the certificate.

    `error` bounds the error of the arithmetic, and `tolerance` also that of the
    encoder. `varies` is true if the means spread by more than their noise (theory
    section 15). `doubt` bounds what the draws of codes may have added to the margin,
    and `is_luck` is true if the margin does not persist when samples share their draws.
    """
    safety_margin = check_number("safety_margin", safety_margin, least=0)
    margin, information = checked_margin(alignment), alignment.teacher_information
    tells_apart = information > error
    reason = _reason(
        margin, information, error, tolerance, safety_margin, doubt, is_luck
    )
    verdict: Literal["certified", "varies", "constant", "inconclusive"]
    if not reason:
        verdict = "certified"
    elif varies:
        verdict = "varies"
    # If the teacher does not tell the samples apart, equal codes are no evidence.
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
    """Return why the margin is not enough, or an empty string if it is."""
    needed = safety_margin + tolerance
    # The order matters: each reason assumes that those above it do not apply.
    if margin - doubt > needed:
        return "shared draws" if is_luck else ""
    # G is at most I_T, so no code can be certified by this teacher.
    if information <= safety_margin + error:
        return "teacher"
    if margin > needed:
        return "draws"
    if margin > tolerance:
        return "safety margin"
    # G would be enough without the encoder's rounding, or this hides even I_T.
    if margin > safety_margin + error or information <= needed:
        return "noise"
    return "witness"


def checked_margin(alignment: MarginSums) -> float:
    """Return G, nats; raise if there are no samples or their weights are extreme."""
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
