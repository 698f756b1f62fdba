"""Vanilla, RST, RST-prefit and RST-alpha-prefit (arXiv:2605.18224)."""

from lab import COLLAPSE, certified, measure, round_trip

# The energy of the prefit's target code is at most this, in nats per sample (theory
# section 11).
PREFIT_ENERGY = 2.0
VARIANTS_OF = {
    "vanilla": {"aligned": False},
    "RST": {},
    "RST-prefit": {"prefit": "analytic"},
    "RST-alpha-prefit": {"prefit": {"energy": PREFIT_ENERGY}},
}
# These variants are also trained at the KL weights STRESS, the others only at 1.
STRESSED = ("vanilla", "RST-alpha-prefit")
STRESS = ("2", "4", "8", COLLAPSE)


def cells(setting):
    """Return a cell for each seed, KL weight and variant."""
    pairs = [("1", variant) for variant in VARIANTS_OF]
    pairs += [(kl, variant) for kl in STRESS for variant in STRESSED]
    return [
        {"kl_weight": kl, "variant": variant, "seed": seed}
        for seed in range(setting.n_seeds)
        for kl, variant in pairs
    ]


def compute(lab, kl_weight, variant, seed):
    """Train one variant, and certify its mean and its round trip."""
    samples = lab.samples(seed)
    certifier = certified(
        lab.vae(samples, kl_weight, seed, **VARIANTS_OF[variant]), samples
    )
    record = measure(certifier, samples.test) | round_trip(certifier, samples.test)
    options = {
        "data": lab.setting.data,
        "kl_weight": kl_weight,
        "variant": variant,
        "seed": seed,
    }
    return {"records": [options | {"threshold": lab.threshold(samples)} | record]}
