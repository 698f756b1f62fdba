"""
Has a VAE that was trained elsewhere collapsed?
===============================================

The VAEs of this example were written and trained without skvaecert. Each is asked the
same question: how much does a drawn code, as the decoder receives it, carry about its
sample? One VAE is healthy. Three were broken on purpose, in the three most common
ways: the KL weight is too large, the reconstruction loss is averaged over features, or
the decoder does not use its code. A VAE of pythae follows if pythae is installed. The
example takes about half a minute on one CPU core and saves ``foreign_models.png``.
"""

import importlib.util
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import binary_cross_entropy

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.plotting import InformationBracketDisplay
from skvaecert.wrappers import TrainedEncoder

LATENT_DIM = 10
torch.set_num_threads(1)  # networks this small run no faster on several
torch.manual_seed(0)
X = load_digits().data.astype(np.float32) / 16
X_train, X_rest = train_test_split(X, test_size=0.6, random_state=0)
X_calibration, X_test = train_test_split(X_rest, test_size=450, random_state=0)

# %%
# Any model will do
# -----------------
# Here is a usual VAE, and a loop that trains it. Nothing in them is made for skvaecert.
# Put your own model in their place.


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.to_mean = nn.Linear(128, LATENT_DIM)
        self.to_log_variance = nn.Linear(128, LATENT_DIM)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
        )

    def encode(self, x):
        hidden = self.encoder(x)
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def loss(self, x, kl_weight, reduction):
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        pixels = binary_cross_entropy(self.decoder(z), x, reduction="none")
        reconstruction = pixels.sum(1) if reduction == "sum" else pixels.mean(1)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return (reconstruction + kl_weight * kl).mean()


def train(module, loss, n_epochs=60):
    samples = torch.from_numpy(X_train)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(n_epochs):
        for index in torch.randperm(len(samples)).split(64):
            optimizer.zero_grad()
            loss(samples[index]).backward()
            optimizer.step()


# %%
# One call for the answer
# -----------------------
# ``TrainedEncoder`` takes two things: the method that returns means and log variances,
# and the decoder. Its method ``diagnose`` also checks whether the decoder uses the
# code. The advice is more precise if ``diagnose`` knows the loss.

LOSSES = {
    "healthy": {"kl_weight": 1, "reduction": "sum"},
    "KL weight 8": {"kl_weight": 8, "reduction": "sum"},
    "loss averaged\nover pixels": {"kl_weight": 1, "reduction": "mean"},
}
models, results = {}, {}
for name, loss in LOSSES.items():
    vae = VAE()
    train(vae, partial(vae.loss, **loss))
    models[name] = TrainedEncoder(vae.encode, vae.decoder)

# Without these weights the decoder gives the same output for every code.
unused = deepcopy(models["healthy"])
nn.init.zeros_(unused.decoder[0].weight)
models["decoder weights\nset to 0"] = unused


def look(name):
    """Diagnose a model, and decode a drawn code of each of the first eight digits."""
    model, loss = models[name], LOSSES.get(name, LOSSES["healthy"])
    found = model.diagnose(X_test, likelihood="bernoulli", random_state=0, **loss)
    mean, std = model.encode(X_test[:8])
    z = mean + std * torch.randn(8, LATENT_DIM).numpy()
    results[name] = found, model.inverse_transform(z)


for name in models:
    look(name)

if importlib.util.find_spec("pythae") is None:
    print("pythae is not installed, so its VAE is left out.\n")
else:
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig

    config = VAEConfig((1, 8, 8), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    other = PythaeVAE(config)
    train(other, lambda x: other({"data": x.reshape(-1, 1, 8, 8)}).loss)
    models["VAE of pythae"] = TrainedEncoder(
        other.encoder, other.decoder, input_shape=(1, 8, 8)
    )
    look("VAE of pythae")

for name, (found, _) in results.items():
    print(f"{name.replace(chr(10), ' ')}\n    {found}\n")

# %%
# The picture
# -----------
# The bars show how much a drawn code carries about its digit. Beside each bar stand
# the images that the VAE decodes from drawn codes of eight held-out digits. Where the
# code has collapsed, or the decoder ignores it, all eight are the same blur.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.8, 4.8), width_ratios=[1.25, 1], layout="constrained"
)
InformationBracketDisplay.from_diagnoses(
    {name: found for name, (found, _) in results.items()}, ax=left
)
left.legend(loc="upper left", frameon=False, markerscale=0.6)
left.set(ylim=(0.4 - len(results), 1.5))
left.set_title("How much does a code carry about its digit?", fontsize=10)

rows = [X_test[:8], *(decoded for _, decoded in results.values())]
for place, images in enumerate(rows):
    # A white column stands between two digits.
    line = np.hstack(np.pad(images.reshape(-1, 8, 8), ((0, 0), (0, 0), (0, 1))))
    extent = (0, 8, 0.6 - place, 1.4 - place)
    right.imshow(line, cmap="gray_r", vmin=0, vmax=1, aspect="auto", extent=extent)
right.axhline(0.5, color="0.6", lw=0.8)
right.set(ylim=left.get_ylim(), xlim=(0, 8))
right.set_title("Held-out digits, and what each VAE decodes", fontsize=10)
right.set_axis_off()
figure.suptitle(
    "Two of these VAEs have collapsed. The decoder of a third ignores its code."
)
figure.savefig("foreign_models.png", dpi=110)
print("Saved foreign_models.png\n")

# %%
# What a witness reads, and why that is another question
# ------------------------------------------------------
# A certificate of the mean is about the latent means without the noise. A linear
# witness, fitted on other digits, reads the teacher's clusters off the means of the
# collapsed VAE, although they hardly differ. The certificate says that these means are
# not constant. This is true, but it does not help: the noise hides the differences, as
# the diagnosis above shows.

teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
for name in ("healthy", "KL weight 8"):
    certifier = CollapseCertifier(
        FrozenEstimator(models[name]),
        teacher=FrozenEstimator(teacher),
        witness="linear",
    ).fit(X_calibration)
    print(f"{name}\n    {certifier.certify(X_test)}\n")
