"""
A table: scaling, held-out samples, and a code that the witness does not read
=============================================================================

The table has 30 measurements of each of 569 tumors. Each column has its own unit: areas
are in thousands, fractal dimensions in hundredths. A VAE is trained on three quarters
of the samples and certified on the rest. A second VAE is trained without alignment. Its
mean *varies*, but the witness does not read the clusters off it. No label is used. The
example takes about half a minute on one CPU core and saves ``tabular.png``.
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

# Networks as small as these are faster on one thread than on several.
torch.set_num_threads(1)

table = load_breast_cancer()
X_train, X_test = train_test_split(table.data, random_state=0)

# %%
# Scaling
# -------
# The Gaussian likelihood estimates one variance for all columns, so the columns with
# the largest values decide what the code is about. The certificate does not show this.
# On raw columns, too, the mean is not constant, but it may depend on the areas alone.
# Compare the share of each column's variance that is reconstructed on held-out samples.


def recovered(certifier, X):
    """Return the share of each column's variance that is reconstructed."""
    again = certifier.inverse_transform(certifier.transform(X))
    return r2_score(X, again, multioutput="raw_values")


vae = CertifiedVAE(latent_dim=10, max_epochs=120, device="cpu", random_state=0)
raw = CollapseCertifier(vae).fit(X_train)
print("Raw:", raw.certify(X_test))

scaler = StandardScaler().fit(X_train)
S_train, S_test = scaler.transform(X_train), scaler.transform(X_test)
certifier = CollapseCertifier(vae).fit(S_train)
print("Standardized:", certifier.certify(S_test))

columns = {
    "raw columns": recovered(raw, X_test),
    "standardized": recovered(certifier, S_test),
}
for name, shares in columns.items():
    n_recovered = np.sum(shares > 0.5)
    print(f"{name}: {n_recovered} of {len(shares)} columns have a share above one half")

# %%
# Sample by sample
# ----------------
# ``score_samples`` returns what each sample adds to the margin. The samples with the
# smallest values deserve a look. Below 0, the witness predicts the cluster of a sample
# worse than the mean teacher does.

contributions = certifier.score_samples(S_test)
worst = np.argsort(contributions)[:5]
print("\nsample   nats  most unusual column")
for sample in worst:
    column = np.abs(S_test[sample]).argmax()
    name, deviations = table.feature_names[column], S_test[sample, column]
    added = contributions[sample]
    print(f"{sample:6d} {added:6.2f}  {name}, {deviations:+.1f} standard deviations")

# %%
# The mean varies: what next?
# ---------------------------
# The mean of a VAE that was trained without alignment usually *varies*, whether the VAE
# is healthy or not, and the witness does not read the teacher's clusters off it.
# ``diagnose`` needs no witness to bound what drawn codes carry. Whether they carry
# information about *the teacher's clusters* can be certified in three other ways,
# without further training: with a witness that is fitted to the code, on codes drawn
# from the posterior, and on reconstructions. The witness is fitted on the training
# samples, and the certificates are about the held-out samples.

vae.set_params(alignment_weight=0)
plain = CollapseCertifier(vae).fit(S_train)
print("\nTrained without alignment:", plain.diagnose(S_test))

fitted = CollapseCertifier(
    FrozenEstimator(plain.estimator_), witness="linear", random_state=0
).fit(S_train)
answers = {
    "fixed witness": plain.certify(S_test),
    "linear witness": fitted.certify(S_test),
    "linear witness, drawn codes": fitted.certify(S_test, kind="sampled"),
    "reconstructions": plain.certify(S_test, kind="round_trip"),
}
print(f"\n{'certificate by':<29}{'verdict':>14}  margin (nats)")
for name, answer in answers.items():
    information = answer.teacher_information
    print(f"{name:<29}{answer.verdict:>14}  {answer.margin:5.2f} of {information:.2f}")

# %%
# The picture
# -----------
# Left: how much of each column is reconstructed, with and without scaling. Right: the
# latent means of the held-out samples in two principal components. Circles mark the
# five samples that add the least to the margin.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
looks = {"raw columns": "s--", "standardized": "o-"}
for name, shares in columns.items():
    rank = np.arange(1, len(shares) + 1)
    left.plot(rank, np.clip(np.sort(shares)[::-1], 0, 1), looks[name], label=name, ms=4)
left.set(title="Without scaling, most columns are lost", ylim=(-0.03, 1.03))
left.set(
    xlabel="columns, in descending order", ylabel="share of the variance reconstructed"
)
left.legend()

plane = PCA(2).fit_transform(certifier.transform(S_test))
points = right.scatter(*plane.T, c=contributions, s=18, cmap="cividis")
right.scatter(*plane[worst].T, s=90, facecolors="none", edgecolors="tab:red")
for sample in worst:
    right.annotate(
        str(sample), plane[sample], xytext=(6, 4), textcoords="offset points"
    )
figure.colorbar(points, ax=right, label="what the sample adds to the margin (nats)")
right.set(title="Circles: the samples that add the least")
right.set(
    xlabel="latent means, first principal component",
    ylabel="second principal component",
)
figure.savefig("tabular.png", dpi=110)
print("\nSaved tabular.png")
