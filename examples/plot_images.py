"""
Images: is the code used, and how much does it carry?
=====================================================

The data are patches of 8 x 8 pixels in color, cut from two photographs. The VAE has a
convolutional encoder. How many nats do drawn codes carry, at least and at most, about
patches from other parts of the photographs? And how much of the teacher's information
do latent means, drawn codes and reconstructions carry? The example takes about half a
minute on one CPU core and saves ``images.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.plotting import InformationBracketDisplay

# Networks as small as these are faster on one thread than on several.
torch.set_num_threads(1)

# %%
# Data
# ----
# A sample is an image, flattened to a vector. Only the VAE needs the shape of the
# images. Training and test patches come from different strips of the photographs and
# share no pixel.

train = load_patches(4000, size=8, subset="train", random_state=0)
test = load_patches(2000, size=8, subset="test", random_state=0)
print(train.data.shape, train.image_shape)

# %%
# Train, diagnose, certify
# ------------------------

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
# The same model with a decoder that ignores its code
# ---------------------------------------------------
# Here all weights of the decoder's first layer are set to 0. The code stays as it is,
# but the decoder ignores it. The diagnosis finds this, and so does the round trip.

drawn = certifier.inverse_transform(certifier.transform(test.data))
first_layer = next(certifier.estimator_.net_.module_.decoder.parameters())
weights = first_layer.detach().clone()
with torch.no_grad():
    first_layer.zero_()
diagnoses["decoder weights\nset to 0"] = found = certifier.diagnose(test.data)
print(found)
for kind in ("mean", "round_trip"):
    answer = certifier.certify(test.data, kind=kind)
    print(f"Weights set to 0, {kind}: {answer.verdict}, {answer.margin:.2f} nats")
with torch.no_grad():
    first_layer.copy_(weights)

# %%
# The picture
# -----------
# Above: two patches of each of the teacher's clusters with their reconstructions. The
# first is the patch that the teacher is surest of, the second has the most contrast.
# Below: what drawn codes carry about the patches, and how much of the teacher's
# information remains at each step from the encoder to the reconstruction.

proba = certifier.teacher_.predict_proba(test.data)
cluster, contrast = proba.argmax(axis=1), test.data.std(axis=1)
shown = []
for k in np.unique(cluster):
    surest = proba[:, k].argmax()
    liveliest = np.where(cluster == k, contrast, -1).argmax()
    shown += [surest, liveliest]

figure = plt.figure(figsize=(9, 5.4), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1, 1.7])
axes = above.subplots(2, len(shown))
for line, images in zip(axes, (test.data, drawn), strict=True):
    for ax, image in zip(line, images[shown], strict=True):
        ax.imshow(image.reshape(train.image_shape).transpose(1, 2, 0).clip(0, 1))
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[:, 0], ("patch", "reconstruction"), strict=True):
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
above.suptitle("Two held-out patches of each cluster, and their reconstructions")

left, right = below.subplots(1, 2)
InformationBracketDisplay.from_diagnoses(diagnoses, ax=left)
left.legend(loc="upper left", frameon=False, markerscale=0.6)
left.set(ylim=(-1.5, 1.6))
left.set_title("The code is informative, but one decoder ignores it", fontsize=10)
names = ["latent means", "drawn codes", "reconstructions"]
values = [answer.margin_low - answer.tolerance for answer in answers.values()]
# A lower bound may be rounded down only.
bars = right.barh(names, np.floor(100 * np.array(values)) / 100, 0.6)
right.bar_label(bars, fmt="%.2f", label_type="center", color="white")
most = answers["mean"].teacher_information
right.axvline(most, color="0.3", ls=":")
right.text(most, -0.65, "teacher information ", color="0.3", ha="right", va="center")
right.set(xlabel="information about the clusters, at least (nats)", ylim=(2.5, -1))
right.set_title("The clusters survive noise and decoder", fontsize=10)
figure.savefig("images.png", dpi=110)
print("Saved images.png")
