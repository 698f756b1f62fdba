"""
Prevent, detect and undo the collapse of a VAE
==============================================

A variational autoencoder (VAE) has *collapsed* when its codes no longer depend on the
input. This example trains three VAEs on images of handwritten digits, 8 x 8 pixels
each. The first is kept from collapsing, and certified. The second collapses. The third
is the second after its rescue. The example takes about half a minute on one CPU core,
prints a table and saves ``quickstart.png``.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.plotting import MarginHistoryDisplay

# Networks as small as these are faster on one thread than on several.
torch.set_num_threads(1)

# %%
# The data are 1,797 images with pixels in [0, 1]. No label is used anywhere.
X_train, X_test = train_test_split(load_digits().data / 16, random_state=0)

# %%
# The *teacher* finds ten soft clusters of digits, without labels. Its information about
# a digit is the most that a certificate can find in the code.
teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
print(
    f"Teacher: K = {teacher.n_components_}, temperature {teacher.temperature_:g}, "
    f"information {teacher.information_:.2f} nats, energy {teacher.energy_:.0f}"
)

# %%
# Prevention: the training loss aligns the code of this VAE with the teacher. The VAE is
# diagnosed, and its mean certified, on digits that were not used in ``fit``.
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
# Collapse: the same VAE is trained with eight times the KL weight, and without
# alignment.
print("\n2. The same with kl_weight=8 and no alignment")
certifier = CollapseCertifier(CertifiedVAE(**settings, kl_weight=8, alignment_weight=0))
certifier.fit(X_train)
collapsed = certifier.diagnose(X_test)
blank = certifier.inverse_transform(certifier.transform(X_test))
print(collapsed)

# %%
# Rescue: training continues from the collapsed weights, with the same teacher, the same
# KL weight, and alignment.
print("\n3. Rescue by warm_start: the same weights, alignment_weight=30")
certifier.set_params(warm_start=True, estimator__alignment_weight=30).fit(X_train)
rescued = certifier.diagnose(X_test)
print(rescued)

# %%
# The table compares the VAE before and after its rescue. The latent means of the
# collapsed VAE still vary a little, but far less than the noise of the posterior.
# Therefore drawn codes carry next to nothing.
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
# The picture
# -----------
# Above: the margin on a part of the training samples, after each epoch. Below: ten
# held-out digits, and what the decoder of each VAE makes of their latent means.
figure = plt.figure(figsize=(7.5, 7.5), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1, 0.95])

ax = above.subplots()
MarginHistoryDisplay.from_estimator(certifier, ax=ax, color="tab:red", lw=2)
MarginHistoryDisplay.from_estimator(aligned, ax=ax, color="tab:blue", lw=2)
n_epochs = len(certifier.estimator_.history_)
ax.axhspan(-0.45, 0, color="0.92", lw=0)
first, second = n_epochs / 4, n_epochs * 3 / 4
ax.text(first, 1.78, "1. aligned: certified", color="tab:blue", ha="center")
ax.text(first, 0.1, "2. not aligned: collapsed", color="tab:red", ha="center")
ax.text(second, 1.65, "3. alignment turned on: rescued", color="tab:red", ha="center")
right = {"x": n_epochs - 3, "ha": "right"}
ax.text(**right, y=2.27, s="teacher information: the most there is", color="0.3")
ax.text(**right, y=-0.28, s="a constant mean has a margin of at most 0")
ax.set(ylabel="margin (nats)", ylim=(-0.45, 2.5))
ax.set_title("Alignment keeps one VAE from collapsing, and rescues another")
ax.margins(x=0)

pictures = {
    "original": X_test,
    "1. aligned": aligned.inverse_transform(aligned.transform(X_test)),
    "2. collapsed": blank,
    "3. rescued": certifier.inverse_transform(certifier.transform(X_test)),
}
below.suptitle("Ten held-out digits, and what each decoder makes of their codes")
for axes, (name, images) in zip(below.subplots(4, 10), pictures.items(), strict=True):
    axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, image in zip(axes, images, strict=False):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])

figure.savefig("quickstart.png", dpi=110)
print("\nSaved quickstart.png")
