"""
Prevent, detect and undo the collapse of a VAE
==============================================

A variational autoencoder has *collapsed* when its codes no longer depend on the input.
This example trains three of them on 8 x 8 images of handwritten digits: one that is
kept from collapsing and certified, one that collapses, and the same one after its
rescue. It takes about half a minute on one CPU core, prints a table and saves one
picture, ``quickstart.png``.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.plotting import MarginHistoryDisplay

# Nets as small as these are faster on one thread than on several.
torch.set_num_threads(1)

# %%
# Data: 1,797 images, pixels in [0, 1]. No label is used anywhere.
X_train, X_test = train_test_split(load_digits().data / 16, random_state=0)

# %%
# The teacher sorts digits softly into ten groups, without labels. What it knows about a
# digit is the most that a certificate can find in the code.
teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
print(
    f"Teacher: K = {teacher.n_components_}, temperature {teacher.temperature_:g}, "
    f"information {teacher.information_:.2f} nats, energy {teacher.energy_:.0f}"
)

# %%
# Prevention: a VAE whose code is aligned with the teacher, certified on digits that it
# has not seen.
settings = {
    "teacher": GMMTeacher(n_components=10),
    "likelihood": "bernoulli",
    "device": "cpu",
    "verbose": 1,
    "random_state": 0,
}
print("\n1. Aligned VAE")
aligned = CollapseCertifier(CertifiedVAE(**settings)).fit(X_train)
print(aligned.diagnose(X_test))

# %%
# Collapse: the same VAE under eight times the KL pressure, and no alignment.
print("\n2. The same with kl_weight=8 and no alignment")
certifier = CollapseCertifier(CertifiedVAE(**settings, kl_weight=8, alignment_weight=0))
certifier.fit(X_train)
collapsed = certifier.diagnose(X_test)
blank = certifier.inverse_transform(certifier.transform(X_test))
print(collapsed)

# %%
# Rescue: the collapsed weights, the same teacher, the same KL pressure, alignment on.
print("\n3. Rescue by warm_start: the same weights, alignment_weight=30")
certifier.set_params(warm_start=True, estimator__alignment_weight=30).fit(X_train)
rescued = certifier.diagnose(X_test)
print(rescued)

# %%
# Side by side. The means of the collapsed VAE still vary a little, far below the noise
# of the posterior: drawn codes carry next to nothing.
print(f"\n{'on held-out digits':<32}{'collapsed':>14}{'rescued':>14}")
for label, value in {
    "state": lambda d: d.state,
    "drawn codes carry at least": lambda d: f"{d.information.low:.3g}",
    "and at most (nats)": lambda d: f"{d.information.high:.3g}",
    "verdict on the mean": lambda d: d.mean.verdict,
    "spread of the means, in noise": lambda d: f"{d.mean.dispersion_in_noise:.3f}",
    "margin (nats)": lambda d: f"{d.mean.margin:.3f}",
    "of at most": lambda d: f"{d.mean.teacher_information:.3f}",
}.items():
    print(f"{label:<32}{value(collapsed):>14}{value(rescued):>14}")

# %%
# The picture: the margin while the VAE collapses and is rescued, and what the decoder
# makes of the codes of the first test images.
figure = plt.figure(figsize=(7.5, 7.5), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1, 0.95])

ax = above.subplots()
MarginHistoryDisplay.from_estimator(certifier, ax=ax, color="tab:red")
MarginHistoryDisplay.from_estimator(aligned, ax=ax, color="tab:blue")
n_epochs = len(certifier.estimator_.history_)
ax.axhspan(-0.45, 0, color="tab:red", alpha=0.08, lw=0)
ax.text(n_epochs / 4, 1.78, "1. aligned: certified", color="tab:blue", ha="center")
ax.text(n_epochs / 4, 0.1, "2. not aligned: collapsed", color="tab:red", ha="center")
ax.text(n_epochs * 0.75, 1.5, "3. alignment on: rescued", color="tab:red", ha="center")
right = {"x": n_epochs - 3, "ha": "right"}
ax.text(**right, y=2.23, s="teacher information: the most there is", color="0.3")
ax.text(**right, y=-0.26, s="a constant code can only be here, at or below 0")
ax.set(title="Does the code depend on the image?", ylim=(-0.45, 2.5))
ax.margins(x=0)

pictures = {
    "original": X_test,
    "1. aligned": aligned.inverse_transform(aligned.transform(X_test)),
    "2. collapsed": blank,
    "3. rescued": certifier.inverse_transform(certifier.transform(X_test)),
}
below.suptitle("What the decoder makes of the code")
for axes, (name, images) in zip(below.subplots(4, 10), pictures.items(), strict=True):
    axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, image in zip(axes, images, strict=False):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])

figure.savefig("quickstart.png", dpi=110)
print("\nSaved quickstart.png")
