"""
Aligned with another view: the gap
==================================

The encoder sees a digit, its target is what the teacher says of another view of it:
shifted, blurred, or noisy. The certificate holds as ever, for targets of any kind. What
changes is how much margin can be had. The code that is perfect for the encoder's own
view has the information of the targets less the *view gap*, and where the gap is the
larger of the two it has no margin at all. An encoder that is trained on the targets can
do better: it may learn what the other view makes of a digit, unless that is chance.
This example measures all three on held-out digits. It takes about half a minute on one
CPU core and saves ``view_gap.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.metrics import teacher_information, view_gap

VIEWS = {
    "shifted by this many pixels": [0, 1, 2, 3],
    "blurred over this many pixels": [0, 0.5, 1, 2],
    "with noise of this size": [0, 0.2, 0.4, 0.8],
}


def other_view(X, kind, strength, rng):
    images = X.reshape(-1, 8, 8)
    if kind.startswith("shifted"):
        padded = np.pad(images, ((0, 0), (0, 0), (strength, 0)))
        images = padded[:, :, :8]
    elif kind.startswith("blurred"):
        images = gaussian_filter(images, (0, strength, strength))
    else:
        images = images + strength * rng.normal(size=images.shape)
    return images.reshape(X.shape)


def measure(teacher, X_train, X_test, kind, strength):
    rng = np.random.default_rng(0)
    targets, test_targets = (
        teacher.predict_proba(other_view(X, kind, strength, rng))
        for X in (X_train, X_test)
    )
    gap = view_gap(
        own_view_proba=teacher.predict_proba(X_test), target_view_proba=test_targets
    )
    vae = CertifiedVAE(max_epochs=60, device="cpu", random_state=0)
    certifier = CollapseCertifier(vae).fit(X_train, teacher_proba=targets)
    trained = certifier.score(X_test, teacher_proba=test_targets)
    return teacher_information(test_targets), gap, trained


def main(path="view_gap.png"):
    torch.set_num_threads(1)  # nets this small run no faster on several
    X_train, X_test = train_test_split(load_digits().data / 16, random_state=0)
    # The teacher learnt from digits as they are, and is shown both views.
    teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    print(f"{'view':<32}{'I_T':>7}{'gap':>7}{'I_T - gap':>11}{'trained':>9}")
    for ax, (kind, strengths) in zip(axes, VIEWS.items(), strict=True):
        rows = np.array([measure(teacher, X_train, X_test, kind, s) for s in strengths])
        for strength, (information, gap, trained) in zip(strengths, rows, strict=True):
            reachable = information - gap
            name = kind.replace("this many", str(strength))
            name = name.replace("this size", str(strength))
            print(
                f"{name:<32}{information:7.2f}{gap:7.2f}{reachable:11.2f}{trained:9.2f}"
            )
        information, gap, trained = rows.T
        ax.plot(strengths, information, color="0.3", label="$I_T$: the most there is")
        ax.plot(strengths, trained, "o-", color="tab:blue", label="trained VAE")
        reached = "code of the own view: $I_T$ - gap"
        ax.plot(strengths, information - gap, "s--", color="tab:orange", label=reached)
        ax.axhline(0, color="tab:red", lw=0.8)
        ax.set(xlabel=kind, xticks=strengths)
    axes[0].set(ylabel="margin (nats)")
    axes[2].legend(fontsize=8, loc="lower left")
    figure.suptitle("Digits whose targets come from another view", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
