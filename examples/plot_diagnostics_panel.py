"""
What diagnostics of collapse show, and what they miss
=====================================================

This example applies the usual diagnostics to seven encoders whose truth is known. Three
of them have collapsed to a constant. Two carry information about the sample in the
mean, one in the noise alone. The seventh is the healthy encoder with the sign of its
means changed, so that they face away from the witness. The example prints what each
diagnostic, the certificate and ``diagnose`` say, and draws it. It takes some seconds
and saves ``diagnostics_panel.png``.
"""

import matplotlib.pyplot as plt
import numpy as np

from skvaecert import certify, diagnose
from skvaecert.datasets import toy_encoders
from skvaecert.diagnostics import (
    active_units,
    kl_per_dimension,
    mutual_information,
    polarized_regime,
)
from skvaecert.simplex import (
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)

COLUMNS = [
    "KL",
    "active",
    "regime",
    "MI, 100",
    "MI, 1000",
    "margin",
    "verdict",
    "bracket",
    "state",
]


def panel():
    encoders = toy_encoders()
    healthy = encoders[4]
    turned = healthy._replace(name="turned round", latent_mean=-healthy.latent_mean)
    return [*encoders, turned]


def judge(encoder, teacher, vertices, scale):
    mean, std = encoder.latent_mean, encoder.latent_std
    certificate = certify(teacher, mean, vertices, scale)
    diagnosis = diagnose(mean, std, random_state=0)
    return [
        kl_per_dimension(mean, std).sum(),
        active_units(mean),
        "/".join(sorted(set(polarized_regime(mean, std)))),
        mutual_information(mean, std, batch_size=100, random_state=0),
        mutual_information(mean, std, random_state=0),
        certificate.margin,
        certificate.verdict,
        diagnosis.information,
        diagnosis.state,
    ]


def written(value):
    if isinstance(value, str | int):
        return str(value)
    if hasattr(value, "low"):
        return f"{value.low:.2f} to {value.high:.2f}"
    # Adding 0.0 removes the sign of a value that rounds to -0.
    return str(round(value, 2) + 0.0)


encoders = panel()
vertices = simplex_vertices(5, 4)
# The teacher has five soft clusters of the true factors, one for each vertex.
teacher = np.exp(witness_log_proba(encoders[0].factors, vertices, 2.0))
scale = prior_matched_scale(teacher)
rows = [judge(encoder, teacher, vertices, scale) for encoder in encoders]

print("|", " | ".join(["encoder", "code knows its sample", *COLUMNS]), "|")
print("|" + "---|" * (len(COLUMNS) + 2))
for encoder, row in zip(encoders, rows, strict=True):
    informative = "yes" if encoder.informative else "no"
    cells = [encoder.name, informative, *map(written, row)]
    print("|", " | ".join(cells), "|")

# %%
# The picture
# -----------
# Each panel is a diagnostic, each line an encoder. The first three encoders have
# collapsed to a constant. A diagnostic misleads if it is about 0 for an encoder whose
# code depends on the sample, or far from 0 for one that has collapsed.

kl, active, _, _, information, margins, verdicts, brackets, states = zip(
    *rows, strict=True
)


def remarks(values):
    return [
        "" if (value > 0.05) == encoder.informative else "misleads"
        for value, encoder in zip(values, encoders, strict=True)
    ]


# Values, what is written beside each bar, and limits of the axis.
panels = {
    "KL (nats)": (kl, remarks(kl), (0, 28)),
    "active units (of 4)": (active, remarks(active), (0, 4.4)),
    "mutual information (nats)": (information, remarks(information), (0, 7.5)),
    "margin (nats), and verdict": (margins, verdicts, (-6.2, 4.5)),
    "diagnose: lower bound (nats)": ([b.low for b in brackets], states, (0, 11)),
}
figure, axes = plt.subplots(2, 3, figsize=(8.6, 5.4), sharey=True, layout="constrained")
for ax, (title, drawn) in zip(axes.flat, panels.items(), strict=False):
    values, notes, limits = drawn
    # The first three encoders have collapsed.
    band = ax.axhspan(-0.5, 2.5, color="0.9")
    ax.barh([encoder.name for encoder in encoders], values, 0.6)
    for place, (value, note) in enumerate(zip(values, notes, strict=True)):
        ax.text(max(value, 0), place, f" {note}", va="center", fontsize=9)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.set(xlim=limits, ylim=(6.5, -0.5))
    ax.set_title(title, fontsize=10)
axes[1, 2].legend([band], ["collapsed to\na constant"], loc="center", frameon=False)
axes[1, 2].set_axis_off()
figure.suptitle("KL and active units mislead. diagnose is right about all seven.")
figure.savefig("diagnostics_panel.png", dpi=110)
print("\nSaved diagnostics_panel.png")
