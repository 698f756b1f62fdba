"""The guard of a fit: how it is created and continued, and when it falls short."""

import torch

from skvaecert._estimator import warn_user
from skvaecert.exceptions import UnreachedMarginWarning
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.objectives import LagrangeWeight
from skvaecert.simplex import Floats

__all__ = ["make_guard", "warn_if_unreached"]


# Teacher information of samples that differ by rounding only, in nats.
_NO_INFORMATION = 1e-9

# A margin that ends less than this below its target gives no warning.
_SLACK = 0.05


def make_guard(
    target_margin: float,
    proba: Floats,
    device: torch.device,
    earlier: LagrangeWeight | None,
) -> LagrangeWeight:
    """Return a guard for these posteriors, which continues from an earlier guard."""
    information = teacher_information(proba)
    if information >= _NO_INFORMATION:
        guard = LagrangeWeight(target_margin, information).to(device)
        if earlier is not None:
            guard.resume_from(earlier)
        return guard
    if earlier is not None:
        # All samples in a chunk of a stream may be alike: keep the weight.
        return earlier
    raise ValueError(
        "alignment_weight must be a number for this teacher, got 'auto': the teacher's "
        "posterior is the same for all samples, so there is no margin to hold."
    )


def warn_if_unreached(
    proba: Floats, log_q: Floats, target_margin: float, weight: float, n_epochs: int
) -> None:
    """Warn if the relative margin ended below its target."""
    information = teacher_information(proba)
    # Without teacher information there is no margin to reach.
    if information < _NO_INFORMATION:
        return
    reached = collapse_margin(proba, log_q) / information
    if reached >= target_margin - _SLACK:
        return
    warn_user(
        UnreachedMarginWarning(
            f"The guard reached a relative margin of {reached:.3f} in {n_epochs} "
            f"epochs, not target_margin={target_margin}. The alignment weight is now "
            f"{weight:.3g}. Fit again with warm_start=True or use more max_epochs. If "
            "the margin has stopped rising, use a lower target_margin or kl_weight."
        )
    )
