"""The data, the VAE and the loss that all loops of this folder use.

The loss averages over pixels, as torch's losses do by default. This multiplies the KL
weight by 64. Every loop that uses this loss alone ends with a collapsed VAE.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import binary_cross_entropy

LATENT_DIM = 10

torch.set_num_threads(1)  # networks this small run no faster on several
torch.manual_seed(0)
X = load_digits().data.astype(np.float32) / 16
X_train, X_test = train_test_split(X, test_size=0.4, random_state=0)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.to_mean = nn.Linear(128, LATENT_DIM)
        self.to_log_variance = nn.Linear(128, LATENT_DIM)
        self.decode = nn.Sequential(
            nn.Linear(LATENT_DIM, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
        )

    def encode(self, x):
        hidden = self.trunk(x)
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def forward(self, x):
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decode(z), mean, log_variance


def negative_elbo(x, reconstruction, mean, log_variance):
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return binary_cross_entropy(reconstruction, x) + kl.mean()
