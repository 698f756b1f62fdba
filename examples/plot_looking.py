"""
Look at a model: four displays
==============================

This example trains a VAE on images of handwritten digits and draws it in four ways: how
much its drawn codes carry, how much each sample adds to the margin, where the latent
means lie, and what the decoder makes of them. It takes some seconds on one CPU core and
saves ``looking.png``.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.plotting import (
    ContributionDisplay,
    InformationBracketDisplay,
    LatentMapDisplay,
    ReconstructionDisplay,
)

torch.set_num_threads(1)  # networks this small run no faster on several
X = load_digits().data / 16
X_train, X_test = X[::2], X[1::4]
vae = CertifiedVAE(
    GMMTeacher(n_components=10),
    image_shape=(1, 8, 8),
    likelihood="bernoulli",
    max_epochs=60,
    random_state=0,
)
certifier = CollapseCertifier(vae).fit(X_train)
print(certifier.diagnose(X_test))
print(certifier.certify(X_test))

# %%
# The picture
# -----------
# Each display draws into the axes that it is given.
#
# - The bar is the information of a drawn code about its digit.
# - The histogram shows what each digit adds to the margin. Below 0, the witness
#   predicts the cluster of a digit worse than the mean teacher does.
# - The map shows the latent means in two directions, in which the witness sees most of
#   their variation. A numbered line shows where the witness expects the codes of that
#   cluster. With ten clusters, two directions hide a lot: clusters that overlap here
#   may be apart in the other seven directions.
# - The last display shows ten digits and their reconstructions.

figure = plt.figure(figsize=(9, 6.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
first, second = left.subfigures(2, 1, height_ratios=[1, 1.2])
third, fourth = right.subfigures(2, 1, height_ratios=[3.6, 1])

bracket = InformationBracketDisplay.from_estimator(
    certifier, X_test, ax=first.subplots(), name="code"
)
first.suptitle(f"Has it collapsed? The code is {bracket.state[0]}", fontsize=11)

contributions = ContributionDisplay.from_estimator(
    certifier, X_test, ax=second.subplots()
)
share = 1 - contributions.share_below
second.suptitle(f"{share:.1%} of the digits add to the margin", fontsize=11)

latent_map = LatentMapDisplay.from_estimator(
    certifier, X_test, ax=third.subplots(), s=20
)
latent_map.ax_.set_title("lines: where the witness reads each cluster", fontsize=9)
third.suptitle("Latent means, in two of nine directions", fontsize=11)

ReconstructionDisplay.from_estimator(certifier, X_test, ax=fourth.subplots())
fourth.suptitle("Ten held-out digits, and their reconstructions", fontsize=11)
figure.savefig("looking.png", dpi=110)
print("Saved looking.png")
