"""
Images: is the code used, and how much is in it?
================================================

Patches of 8 x 8 pixels in colour, cut from two photographs; a VAE with a convolutional
encoder. That its latent mean is not constant is the least that one can ask. Two more
questions are answered on patches from other parts of the photographs: do
reconstructions still show what the teacher saw, so that the decoder uses the code? And
how many nats do drawn codes carry, at least and at most? It takes about half a minute
on one CPU core and saves ``images.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches

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
# Train, and ask three questions
# ------------------------------

vae = CertifiedVAE(
    GMMTeacher(n_components=10),
    image_shape=train.image_shape,
    encoder="conv",
    max_epochs=50,
    device="cpu",
    random_state=0,
)
certifier = CollapseCertifier(vae).fit(train.data)
answers = {
    kind: certifier.certify(test.data, kind=kind)
    for kind in ("mean", "round_trip", "sampled")
}
for answer in answers.values():
    print(answer)
print(
    f"Of {len(test.data)} rows nobody can tell more than {np.log(len(test.data)):.2f}."
)

# %%
# The same model with a deaf decoder
# ----------------------------------
# The first answer is about the encoder alone. A decoder that ignores its code leaves it
# as it is, and is found by the round trip. Here all weights of the decoder's first
# layer are set to 0.

drawn = certifier.inverse_transform(certifier.transform(test.data))
first_layer = next(certifier.estimator_.net_.module_.decoder.parameters())
weights = first_layer.detach().clone()
with torch.no_grad():
    first_layer.zero_()
for kind in ("mean", "round_trip"):
    answer = certifier.certify(test.data, kind=kind)
    print(f"deaf decoder, {kind}: {answer.verdict}, {answer.margin:.2f} nats")
with torch.no_grad():
    first_layer.copy_(weights)

# %%
# The picture
# -----------
# Above, two patches of each of the teacher's groups with their reconstructions: the one
# that the teacher is surest of, and the one with most contrast. Below, what was
# certified, in nats.

proba = certifier.teacher_.predict_proba(test.data)
group, contrast = proba.argmax(axis=1), test.data.std(axis=1)
rows = []
for k in np.unique(group):
    surest = proba[:, k].argmax()
    liveliest = np.where(group == k, contrast, -1).argmax()
    rows += [surest, liveliest]

figure = plt.figure(figsize=(9, 4.4), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
axes = above.subplots(2, len(rows))
for line, images in zip(axes, (test.data, drawn), strict=True):
    for ax, image in zip(line, images[rows], strict=True):
        ax.imshow(image.reshape(train.image_shape).transpose(1, 2, 0).clip(0, 1))
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[:, 0], ("patch", "decoded"), strict=True):
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
above.suptitle("Two patches of each group, and what the decoder makes of their codes")

sampled = answers["sampled"]
ax = below.subplots()
names = [
    "latent means",
    "reconstructions",
    "drawn codes: at least",
    "drawn codes: at most",
]
values = [
    answers["mean"].margin,
    answers["round_trip"].margin,
    sampled.margin,
    sampled.information_bound,
]
bars = ax.barh(names, values, color=["tab:blue", "tab:blue", "tab:blue", "0.5"])
ax.bar_label(bars, fmt="%.2f", label_type="center", color="white")
ax.axvline(sampled.teacher_information, color="0.3", ls=":")
ax.text(sampled.teacher_information, -0.7, " all that the teacher knows", color="0.3")
ax.set(xlabel="nats, on held-out patches", ylim=(3.6, -1.1))
figure.savefig("images.png", dpi=110)
