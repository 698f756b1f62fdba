"""
What diagnostics of collapse see, and what they miss
====================================================

Six encoders whose truth is known, in four dimensions: three have collapsed to a
constant, two tell their rows apart by the mean, one by its noise alone. Beside them a
seventh, the healthy one with its code turned round. Prints what the usual diagnostics
and the certificate say of each, and draws it. It takes some seconds and saves
``diagnostics_panel.png``.
"""

import matplotlib.pyplot as plt
import numpy as np

from skvaecert import certify
from skvaecert.datasets import toy_encoders
from skvaecert.diagnostics import (
    active_units,
    kl_per_dimension,
    mutual_information,
    polarised_regime,
)
from skvaecert.simplex import (
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)

COLUMNS = ["KL", "active", "regime", "MI, 100", "MI, 1000", "margin", "verdict"]


def panel():
    encoders = toy_encoders()
    healthy = encoders[4]
    turned = healthy._replace(name="turned round", latent_mean=-healthy.latent_mean)
    return [*encoders, turned]


def judge(encoder, teacher, vertices, scale):
    mean, std = encoder.latent_mean, encoder.latent_std
    certificate = certify(teacher, mean, vertices, scale)
    return [
        kl_per_dimension(mean, std).sum(),
        active_units(mean),
        "/".join(sorted(set(polarised_regime(mean, std)))),
        mutual_information(mean, std, batch_size=100, random_state=0),
        mutual_information(mean, std, random_state=0),
        certificate.margin,
        certificate.verdict,
    ]


def main(path="diagnostics_panel.png"):
    encoders = panel()
    vertices = simplex_vertices(5, 4)
    # Five soft groups of the true factors, one for each direction of the simplex.
    teacher = np.exp(witness_log_proba(encoders[0].factors, vertices, 2.0))
    scale = prior_matched_scale(teacher)
    rows = [judge(encoder, teacher, vertices, scale) for encoder in encoders]

    print("|", " | ".join(["encoder", "code knows its row", *COLUMNS]), "|")
    print("|" + "---|" * (len(COLUMNS) + 2))
    for encoder, row in zip(encoders, rows, strict=True):
        # Adding 0.0 takes the sign off what rounds to -0.
        cells = [str(v if isinstance(v, str | int) else round(v, 2) + 0.0) for v in row]
        informative = "yes" if encoder.informative else "no"
        print("|", " | ".join([encoder.name, informative, *cells]), "|")

    draw(encoders, rows, path)


def draw(encoders, rows, path):
    colours = ["tab:blue" if e.informative else "tab:red" for e in encoders]
    titles = ["KL (nats)", "active units", "MI, all rows (nats)", "margin (nats)"]
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained")
    for ax, title, column in zip(axes, titles, (0, 1, 4, 5), strict=True):
        values = [row[column] for row in rows]
        ax.barh(range(len(rows)), values, color=colours)
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set(title=title, yticks=[])
        ax.invert_yaxis()
    names = [encoder.name for encoder in encoders]
    axes[0].set_yticks(range(len(rows)), names)
    for label, colour in zip(axes[0].get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    axes[2].axvline(np.log(1000), color="0.5", ls=":")
    axes[2].text(np.log(1000) - 0.15, 0, "cap: ln 1000", ha="right", color="0.4")
    # A bar would hide what matters: on which side of 0 a margin is.
    axes[3].set_xlim(-1.5, 1.7)
    for i, row in enumerate(rows):
        place = min(max(row[5], -1.5), 1.7)
        text = f"{row[5]:.2f}, {row[6]}" if row[5] < -1.5 else row[6]
        ax.text(max(place, 0) + 0.05, i, text, va="center", fontsize=8)
    figure.suptitle(
        "Red: collapsed to a constant. Blue: the code depends on the row.", fontsize=10
    )
    figure.savefig(path, dpi=110)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
