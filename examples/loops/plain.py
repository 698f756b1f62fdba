"""A loop of your own in torch: the VAE collapses, and six lines bring it back.

The second loop is the first one with the numbered lines added or changed. The script
takes a few seconds on one CPU core::

    python examples/loops/plain.py
"""

import torch
from common import LATENT_DIM, VAE, X_test, X_train, negative_elbo
from sklearn.frozen import FrozenEstimator
from torch.utils.data import DataLoader, TensorDataset

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.datasets import WithPosterior
from skvaecert.metrics import teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.wrappers import TrainedEncoder

vae = VAE()
optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
dataset = TensorDataset(torch.from_numpy(X_train))
for _ in range(20):
    for (x,) in DataLoader(dataset, batch_size=64, shuffle=True):
        reconstruction, mean, log_variance = vae(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

encoder = TrainedEncoder(vae.encode, vae.decode)
print(encoder.diagnose(X_test))

teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)  # 1
dataset = WithPosterior(dataset, teacher.predict_proba(X_train))  # 2
loss_fn = AlignmentLoss.from_teacher(teacher, X_train, LATENT_DIM)  # 3
guard = LagrangeWeight(0.8, teacher_information(dataset.teacher_proba))  # 4
for _ in range(20):
    for (x,), posterior in DataLoader(dataset, batch_size=64, shuffle=True):  # 5
        reconstruction, mean, log_variance = vae(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        loss = loss + guard(loss_fn(mean, posterior))  # 6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

teacher = FrozenEstimator(teacher)
certifier = CollapseCertifier(encoder, teacher=teacher, witness=loss_fn).fit(X_train)
print(certifier.certify(X_test))
proba = teacher.predict_proba(X_test)
print(encoder.diagnose(X_test, teacher_proba=proba, witness=loss_fn))
