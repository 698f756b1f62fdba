"""
Images: is the code used, and how much is in it?
================================================

Patches of 8 x 8 pixels in colour, cut from two photographs; a VAE with a convolutional
encoder. Has it collapsed: how many nats do drawn codes carry, at least and at most,
about patches from other parts of the photographs? And how much of what the teacher
knows of them do the latent means, drawn codes and reconstructions still show? It takes
about half a minute on one CPU core and saves ``images.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.plotting import InformationBracketDisplay

# Nets as small as these are faster on one thread than on several.
torch.set_num_threads(1)

# %%
# Data
# ----
# Images are flat rows everywhere; only the VAE is told their shape. Train and test come
# from different strips of the photographs and share no pixel.

train = load_patches(4000, size=8, subset="train", random_state=0)
test = load_patches(2000, size=8, subset="test", random_state=0)
print(train.data.shape, train.image_shape)

# %%
# Train, and ask
# --------------

vae = CertifiedVAE(
    GMMTeacher(n_components=10),
    image_shape=train.image_shape,
    encoder="conv",
    max_epochs=50,
    device="cpu",
    random_state=0,
)
certifier = CollapseCertifier(vae).fit(train.data)
diagnoses = {"as trained": certifier.diagnose(test.data)}
print(diagnoses["as trained"])
answers = {
    kind: certifier.certify(test.data, kind=kind)
    for kind in ("mean", "sampled", "round_trip")
}
for answer in answers.values():
    print(answer)

# %%
# The same model with a deaf decoder
# ----------------------------------
# A decoder that ignores its code leaves the code as it is. The diagnosis finds it, and
# so does the round trip. Here all weights of the decoder's first layer are set to 0.

drawn = certifier.inverse_transform(certifier.transform(test.data))
first_layer = next(certifier.estimator_.net_.module_.decoder.parameters())
weights = first_layer.detach().clone()
with torch.no_grad():
    first_layer.zero_()
diagnoses["deaf decoder"] = certifier.diagnose(test.data)
print(diagnoses["deaf decoder"])
for kind in ("mean", "round_trip"):
    answer = certifier.certify(test.data, kind=kind)
    print(f"deaf decoder, {kind}: {answer.verdict}, {answer.margin:.2f} nats")
with torch.no_grad():
    first_layer.copy_(weights)

# %%
# The picture
# -----------
# Above, two patches of each of the teacher's groups with their reconstructions: the one
# that the teacher is surest of, and the one with most contrast. Below, what drawn codes
# tell about the patches themselves, and what is left of the teacher's knowledge.

proba = certifier.teacher_.predict_proba(test.data)
group, contrast = proba.argmax(axis=1), test.data.std(axis=1)
rows = []
for k in np.unique(group):
    surest = proba[:, k].argmax()
    liveliest = np.where(group == k, contrast, -1).argmax()
    rows += [surest, liveliest]

figure = plt.figure(figsize=(9, 5), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1, 1.5])
axes = above.subplots(2, len(rows))
for line, images in zip(axes, (test.data, drawn), strict=True):
    for ax, image in zip(line, images[rows], strict=True):
        ax.imshow(image.reshape(train.image_shape).transpose(1, 2, 0).clip(0, 1))
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[:, 0], ("patch", "decoded"), strict=True):
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
above.suptitle("Two patches of each group, and what the decoder makes of their codes")

left, right = below.subplots(1, 2)
InformationBracketDisplay.from_diagnoses(diagnoses, ax=left)
names = ["latent means", "drawn codes", "reconstructions"]
bars = right.barh(names, [one.margin_low - one.tolerance for one in answers.values()])
right.bar_label(bars, fmt="%.2f", label_type="center", color="white")
most = answers["mean"].teacher_information
right.axvline(most, color="0.3", ls=":")
right.text(most, -0.6, "all that the teacher knows ", color="0.3", ha="right")
right.set(xlabel="about the teacher's groups, at least (nats)", ylim=(2.6, -1.1))
figure.savefig("images.png", dpi=110)
