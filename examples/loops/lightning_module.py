"""A LightningModule: the VAE collapses, and six lines bring it back.

`Aligned` is `Plain` with the numbered lines added or changed. The script takes a few
seconds on one CPU core::

    pip install lightning
    python examples/loops/lightning_module.py
"""

import lightning
import torch
from common import LATENT_DIM, VAE, X_test, X_train, negative_elbo
from sklearn.frozen import FrozenEstimator
from torch.utils.data import DataLoader, TensorDataset

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.datasets import WithPosterior
from skvaecert.metrics import teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.wrappers import TrainedEncoder


class Plain(lightning.LightningModule):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        reconstruction, mean, log_variance = self.vae(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        return loss


def train(model, dataset):
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, DataLoader(dataset, batch_size=64, shuffle=True))


vae = VAE()
dataset = TensorDataset(torch.from_numpy(X_train))
train(Plain(vae), dataset)

encoder = TrainedEncoder(vae.encode, vae.decode)
print(encoder.diagnose(X_test))


class Aligned(lightning.LightningModule):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)

    def training_step(self, batch, batch_idx):
        (x,), posterior = batch  # 1
        reconstruction, mean, log_variance = self.vae(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        loss = loss + self.vae.guard(self.vae.loss_fn(mean, posterior))  # 2
        return loss


teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)  # 3
dataset = WithPosterior(dataset, teacher.predict_proba(X_train))  # 4
vae.loss_fn = AlignmentLoss.from_teacher(teacher, X_train, LATENT_DIM)  # 5
vae.guard = LagrangeWeight(0.8, teacher_information(dataset.teacher_proba))  # 6
train(Aligned(vae), dataset)

teacher = FrozenEstimator(teacher)
certifier = CollapseCertifier(encoder, teacher=teacher, witness=vae.loss_fn)
print(certifier.fit(X_train).certify(X_test))
proba = teacher.predict_proba(X_test)
print(encoder.diagnose(X_test, teacher_proba=proba, witness=vae.loss_fn))
