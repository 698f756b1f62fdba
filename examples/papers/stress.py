"""Collapse stress: a growing KL weight (arXiv:2605.18224)."""

from lab import SCALES
from variants import VARIANTS, compute

KL_WEIGHTS = (2.0, 4.0, 8.0)


def cells(setting):
    """One cell a seed, scale, KL weight and variant."""
    return [
        {"scale": scale, "variant": variant, "seed": seed, "kl_weight": kl_weight}
        for seed in range(setting.n_seeds)
        for scale in SCALES
        for kl_weight in KL_WEIGHTS
        for variant in ("vanilla", "RST-alpha-prefit")
    ]


STRESS = VARIANTS._replace(
    name="stress",
    title="Collapse stress",
    cells=cells,
    compute=compute,
    by=("data", "scale", "kl_weight", "variant"),
)
