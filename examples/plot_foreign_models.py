"""
Has my VAE, trained elsewhere, collapsed?
=========================================

VAEs that know nothing of teachers or witnesses, each asked the same question: how much
does a code, drawn as the decoder gets it, tell about its sample? One is healthy. Three
were broken on purpose, in the three ways that are most common: a KL weight that is too
large, a reconstruction loss that is averaged over features, and a decoder that does not
use its code. One of pythae follows if that is installed. It takes about half a minute
on one CPU core and saves ``foreign_models.png``.
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
torch.set_num_threads(1)  # nets this small run no faster on several
torch.manual_seed(0)
X = load_digits().data.astype(np.float32) / 16
X_train, X_rest = train_test_split(X, test_size=0.6, random_state=0)
X_calibration, X_test = train_test_split(X_rest, test_size=450, random_state=0)

# %%
# Any model will do
# -----------------
# A VAE as one writes it, and a loop that trains it. Nothing here is made for skvaecert,
# and your own takes its place.


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
# Asked in one call
# -----------------
# ``TrainedEncoder`` takes the method that returns means and log variances, and the
# decoder. Its ``diagnose`` also tells whether the decoder uses the code, and what is
# known of the loss makes the advice better.

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

deaf = deepcopy(models["healthy"])
nn.init.zeros_(deaf.decoder[0].weight)
models["deaf decoder"] = deaf


def look(name):
    """Diagnose a model, and decode a code of each of the first eight digits."""
    model, loss = models[name], LOSSES.get(name, LOSSES["healthy"])
    found = model.diagnose(X_test, likelihood="bernoulli", random_state=0, **loss)
    mean, std = model.encode(X_test[:8])
    z = mean + std * torch.randn(8, LATENT_DIM).numpy()
    results[name] = found, model.inverse_transform(z)


for name in models:
    look(name)

if importlib.util.find_spec("pythae") is None:
    print("pythae is not installed: left out.\n")
else:
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig

    config = VAEConfig((1, 8, 8), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    other = PythaeVAE(config)
    train(other, lambda x: other({"data": x.reshape(-1, 1, 8, 8)}).loss)
    models["of pythae"] = TrainedEncoder(
        other.encoder, other.decoder, input_shape=(1, 8, 8)
    )
    look("of pythae")

for name, (found, _) in results.items():
    print(f"{name.replace(chr(10), ' ')}\n    {found}\n")

# %%
# The picture
# -----------
# Left, what drawn codes carry; right, what becomes of eight digits that no model has
# seen. A code that has collapsed, or that is not used, gives the same blur for all.


def strip(images):
    return np.hstack(images.reshape(-1, 8, 8))


figure = plt.figure(figsize=(9, 4.8), layout="constrained")
grid = figure.add_gridspec(
    2, 2, width_ratios=[1.5, 1], height_ratios=[1, 1.2 * len(results)]
)
display = InformationBracketDisplay.from_diagnoses(
    {name: found for name, (found, _) in results.items()},
    ax=figure.add_subplot(grid[1, 0]),
)
display.ax_.get_legend().set_in_layout(False)
above = figure.add_subplot(grid[0, 1])
above.imshow(strip(X_test[:8]), cmap="gray_r", aspect="auto")
above.set_title("digits, and what becomes of them", fontsize=10)
beside = figure.add_subplot(grid[1, 1], sharey=display.ax_)
for place, (_, decoded) in enumerate(results.values()):
    rows = (0, 8, -place - 0.4, 0.4 - place)
    beside.imshow(strip(decoded), cmap="gray_r", aspect="auto", extent=rows)
beside.set_ylim(display.ax_.get_ylim())
for ax in (above, beside):
    ax.set_axis_off()
figure.suptitle(
    "Two of these VAEs have collapsed; the decoder of a third ignores its code"
)
figure.savefig("foreign_models.png", dpi=110)
print("Saved foreign_models.png\n")

# %%
# What a witness sees, and why that is another question
# -----------------------------------------------------
# A certificate is about the means, without the noise. A linear witness, fitted on other
# digits, reads the teacher's groups off the means of the dead VAE, however little they
# differ. So its mean is certified not to be constant. That is true, and no use: the
# noise hides all of it, as the last sentence says.

teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)
for name in ("healthy", "KL weight 8"):
    certifier = CollapseCertifier(
        FrozenEstimator(models[name]),
        teacher=FrozenEstimator(teacher),
        witness="linear",
    ).fit(X_calibration)
    print(f"{name}\n    {certifier.certify(X_test)}\n")
