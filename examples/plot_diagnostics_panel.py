"""
What diagnostics of collapse see, and what they miss
====================================================

Six encoders whose truth is known, in four dimensions: three have collapsed to a
constant, two tell their samples apart by the mean, one by its noise alone. Beside them
a seventh, the healthy one with its code turned round. Prints what the usual
diagnostics, the certificate and ``diagnose`` say of each, and draws it. It takes some
seconds and saves ``diagnostics_panel.png``.
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
    # Adding 0.0 takes the sign off what rounds to -0.
    return str(round(value, 2) + 0.0)


def main(path="diagnostics_panel.png"):
    encoders = panel()
    vertices = simplex_vertices(5, 4)
    # Five soft groups of the true factors, one for each direction of the simplex.
    teacher = np.exp(witness_log_proba(encoders[0].factors, vertices, 2.0))
    scale = prior_matched_scale(teacher)
    rows = [judge(encoder, teacher, vertices, scale) for encoder in encoders]

    print("|", " | ".join(["encoder", "code knows its sample", *COLUMNS]), "|")
    print("|" + "---|" * (len(COLUMNS) + 2))
    for encoder, row in zip(encoders, rows, strict=True):
        informative = "yes" if encoder.informative else "no"
        cells = [encoder.name, informative, *map(written, row)]
        print("|", " | ".join(cells), "|")

    draw(encoders, rows, path)


def draw(encoders, rows, path):
    colours = ["tab:blue" if e.informative else "tab:red" for e in encoders]
    bars = {
        "KL (nats)": [row[0] for row in rows],
        "active units": [row[1] for row in rows],
        "MI, all samples (nats)": [row[4] for row in rows],
        "margin (nats), verdict": [row[5] for row in rows],
        "drawn codes (nats), diagnose": [row[7].low for row in rows],
    }
    figure, axes = plt.subplots(1, len(bars), figsize=(13, 3.4), layout="constrained")
    for ax, (title, values) in zip(axes, bars.items(), strict=True):
        ax.barh(range(len(rows)), values, color=colours)
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set(title=title, yticks=[])
        ax.title.set_fontsize(10)
        ax.invert_yaxis()
    names = [encoder.name for encoder in encoders]
    axes[0].set_yticks(range(len(rows)), names)
    for label, colour in zip(axes[0].get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    axes[2].axvline(np.log(1000), color="0.5", ls=":")
    axes[2].text(np.log(1000) - 0.15, 0, "cap: ln 1000", ha="right", color="0.4")
    # A bar would hide what matters: on which side of 0 a margin is.
    axes[3].set_xlim(-1.5, 2.2)
    axes[4].set_xlim(0, 12)
    for i, row in enumerate(rows):
        text = f"{row[5]:.2f}, {row[6]}" if row[5] < -1.5 else row[6]
        axes[3].text(max(row[5], 0) + 0.05, i, text, va="center", fontsize=8)
        axes[4].text(row[7].low + 0.2, i, row[8], va="center", fontsize=8)
    figure.suptitle(
        "Red: collapsed to a constant. Blue: the code depends on the sample.",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
