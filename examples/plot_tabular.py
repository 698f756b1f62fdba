"""
A table: scaling, held-out samples, and a code that the witness does not read
=============================================================================

569 tumours, 30 measurements each, in units of their own: areas are in thousands,
fractal dimensions in hundredths. A VAE is trained on three quarters of them and
certified on the rest. Then a second one, trained without alignment, whose mean *varies*
without telling the witness of it. No label is used. It takes about half a minute on one
CPU core and saves ``tabular.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvaecert import CertifiedVAE, CollapseCertifier

# Nets as small as these are faster on one thread than on several.
torch.set_num_threads(1)

table = load_breast_cancer()
X_train, X_test = train_test_split(table.data, random_state=0)

# %%
# Scaling
# -------
# The Gaussian likelihood learns one variance for all columns, so the largest column
# decides what the code is for. The certificate does not complain: the code of a VAE of
# raw columns is not constant. It may tell of areas only. How much of each column comes
# back, on held-out samples, shows it.


def recovered(certifier, X):
    """Share of each column's variance that is reconstructed."""
    again = certifier.inverse_transform(certifier.transform(X))
    return r2_score(X, again, multioutput="raw_values")


vae = CertifiedVAE(latent_dim=10, max_epochs=120, device="cpu", random_state=0)
raw = CollapseCertifier(vae).fit(X_train)
print("Raw:", raw.certify(X_test))

scaler = StandardScaler().fit(X_train)
S_train, S_test = scaler.transform(X_train), scaler.transform(X_test)
certifier = CollapseCertifier(vae).fit(S_train)
print("Scaled:", certifier.certify(S_test))

columns = {
    "raw columns": recovered(raw, X_test),
    "standardised": recovered(certifier, S_test),
}
for name, shares in columns.items():
    print(f"{name}: {np.sum(shares > 0.5)} of {len(shares)} columns recovered by half")

# %%
# Sample by sample
# ----------------
# ``score_samples`` says what each sample adds to the margin. Look at the least first:
# below 0, the code would place a sample with another group than its own.

contributions = certifier.score_samples(S_test)
worst = np.argsort(contributions)[:5]
print("\nsample   nats  most unusual column")
for row in worst:
    column = np.abs(S_test[row]).argmax()
    name, deviations = table.feature_names[column], S_test[row, column]
    print(f"{row:6d} {contributions[row]:6.2f}  {name}, {deviations:+.1f} deviations")

# %%
# It varies: what next?
# ---------------------
# The mean of a VAE that was not trained to face the witness usually *varies*, healthy
# or not, and the witness does not read the teacher's groups off it. How much drawn
# codes carry, ``diagnose`` says without any witness. Whether they tell *the teacher's
# groups* can be asked in other ways, of the same trained model: with a witness that is
# fitted to its code, of codes drawn from the posterior, and of reconstructions. The
# witness is fitted on the training samples, the answers are about the others.

vae.set_params(alignment_weight=0)
plain = CollapseCertifier(vae).fit(S_train)
print("\nTrained without alignment:", plain.diagnose(S_test))

fitted = CollapseCertifier(
    FrozenEstimator(plain.estimator_), witness="linear", random_state=0
).fit(S_train)
answers = {
    "as it stands": plain.certify(S_test),
    "linear witness": fitted.certify(S_test),
    "linear witness, drawn codes": fitted.certify(S_test, kind="sampled"),
    "reconstructions": plain.certify(S_test, kind="round_trip"),
}
print(f"\n{'Asked of it':<29}{'verdict':>14}  margin (nats)")
for name, answer in answers.items():
    information = answer.teacher_information
    print(f"{name:<29}{answer.verdict:>14}  {answer.margin:5.2f} of {information:.2f}")

# %%
# The picture
# -----------

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
for name, shares in columns.items():
    left.plot(np.clip(np.sort(shares)[::-1], 0, 1), "o-", label=name, ms=4)
left.axhline(0, color="0.5", lw=0.8)
left.set(title="What the decoder gives back", xlabel="columns, the best first")
left.set(ylabel="share of the variance, held-out samples")
left.legend()

plane = PCA(2).fit_transform(certifier.transform(S_test))
points = right.scatter(*plane.T, c=contributions, s=18)
right.scatter(*plane[worst].T, s=90, facecolors="none", edgecolors="tab:red")
for row in worst:
    right.annotate(str(row), plane[row], xytext=(6, 4), textcoords="offset points")
figure.colorbar(points, ax=right, label="what the sample adds to the margin (nats)")
right.set(title="Latent means of held-out samples; ringed: the five least")
right.set(xlabel="first principal component", ylabel="second")
figure.savefig("tabular.png", dpi=110)
