"""
Is my model, trained elsewhere, collapsed?
==========================================

VAEs that know nothing of teachers or witnesses, certified after the fact: one written
by hand in PyTorch, one of pythae if that is installed, as they should be and with KL
weights that are too large. PCA is the control that must be certified, a constant the
one that never may be. It takes about half a minute on one CPU core and saves
``foreign_models.png``.
"""

import importlib.util

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from torch import nn

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.wrappers import TrainedEncoder

LATENT_DIM = 10
torch.set_num_threads(1)  # nets this small run no faster on several
torch.manual_seed(0)

# %%
# Any module will do
# ------------------
# A VAE as one writes it, and a loop that trains it. Nothing here is made for
# certificates, and your own takes its place.


class HandWrittenVAE(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.to_mean = nn.Linear(128, LATENT_DIM)
        self.to_log_variance = nn.Linear(128, LATENT_DIM)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
        )

    def encode(self, x):
        hidden = self.encoder(x)
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def loss(self, x):
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        cross_entropy = nn.functional.binary_cross_entropy(
            self.decoder(z), x, reduction="sum"
        )
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (cross_entropy + self.beta * kl) / len(x)


def train(module, loss, X, n_epochs=60):
    X = torch.from_numpy(X.astype(np.float32))
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(n_epochs):
        for index in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            loss(X[index]).backward()
            optimizer.step()
    return module


# %%
# Wrapped in one line
# -------------------
# ``TrainedEncoder`` takes modules, their methods, or functions of arrays, and says what
# a certifier needs: means, and log variances if there are any.


def by_hand(X, beta):
    vae = HandWrittenVAE(beta)
    train(vae, vae.loss, X)
    return TrainedEncoder(vae.encode, vae.decoder)


def of_pythae(X, beta):
    from pythae.models import BetaVAE, BetaVAEConfig

    config = BetaVAEConfig(
        input_dim=(1, 8, 8), latent_dim=LATENT_DIM, beta=beta, reconstruction_loss="bce"
    )
    vae = BetaVAE(config)
    train(vae, lambda x: vae({"data": x.reshape(-1, 1, 8, 8)}).loss, X)
    return TrainedEncoder(vae.encoder, vae.decoder, input_shape=(1, 8, 8))


def constant(X):
    return np.ones((len(X), LATENT_DIM))


def models(X):
    """Yield names, encoders, and whether they have a posterior to draw from."""
    yield "PCA", PCA(LATENT_DIM, random_state=0).fit(X), False
    yield "constant", TrainedEncoder(constant), False
    for beta in (1, 8, 1000):
        yield f"by hand, beta = {beta}", by_hand(X, beta), True
    if importlib.util.find_spec("pythae") is None:
        print("pythae is not installed: left out.")
        return
    for beta in (1, 1000):
        yield f"pythae, beta = {beta}", of_pythae(X, beta), True


# %%
# Certified on digits that neither model nor witness has seen
# -----------------------------------------------------------
# These codes were not trained to face the certificate's witness, so a linear one is
# fitted, on some digits; the certificate is about others.
#
# Read both columns. With a large beta the means still differ, by hundredths, so they
# are not constant, and the certificate of the means says so. Beside the noise of the
# posterior that is nothing: codes that are drawn, as the decoder gets them, carry no
# margin.

X = load_digits().data / 16
X_train, X_rest = train_test_split(X, test_size=0.6, random_state=0)
X_calibration, X_other = train_test_split(X_rest, random_state=0)
teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
panels = []
information = teacher.score(X_other)
print(f"Margins in nats, at most {information:.2f}; spread: of the means.\n")
print(f"{'model':<22}{'spread':>8}   {'means':<23}drawn codes")
for name, model, has_posterior in models(X_train):
    certifier = CollapseCertifier(
        FrozenEstimator(model), teacher=FrozenEstimator(teacher), witness="linear"
    ).fit(X_calibration)
    certificate = certifier.certify(X_other)
    results = f"{certificate.verdict:<14}{certificate.margin:6.3f}"
    if has_posterior:
        drawn = certifier.certify(X_other, kind="sampled")
        results += f"   {drawn.verdict:<14}{drawn.margin:6.3f}"
    means = certifier.transform(X_other)
    spread = np.sqrt(means.var(axis=0).sum())
    print(f"{name:<22}{spread:8.4f}   {results}")
    panels.append((name, means, certificate))

# %%
# The picture
# -----------
# All in the units of the latent space, so that a collapsed code is a point.

figure, axes = plt.subplots(2, 4, figsize=(9, 5.4), layout="constrained")
for ax in axes.flat[len(panels) :]:
    ax.remove()
for ax, (name, means, certificate) in zip(axes.flat, panels, strict=False):
    plane = PCA(2).fit_transform(means) if np.ptp(means) > 0 else means[:, :2]
    ax.scatter(*plane.T, c=teacher.predict(X_other), cmap="tab10", s=6)
    width = max(3.0, 1.1 * np.abs(plane).max())
    ax.set(xlim=(-width, width), ylim=(-width, width), xticks=[], yticks=[])
    ax.set_title(f"{name}:\n{certificate.verdict}", fontsize=9)
figure.suptitle("Latent means of held-out digits, coloured by the teacher")
figure.savefig("foreign_models.png", dpi=110)
print("\nSaved foreign_models.png")
