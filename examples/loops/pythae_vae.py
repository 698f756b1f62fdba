"""A VAE of pythae with your own loss: it collapses, and six lines bring it back.

In pythae, a subclass changes the loss by its own `forward`. `AlignedVAE` is `OwnVAE`
with the numbered line added. The teacher's posteriors are the labels of the dataset,
because pythae keeps each label with its sample. The script takes a few seconds on one
CPU core::

    python examples/loops/pythae_vae.py
"""

import logging
from tempfile import TemporaryDirectory

import torch
from common import LATENT_DIM, X_test, X_train, negative_elbo
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.metrics import teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.wrappers import TrainedEncoder

logging.disable(logging.INFO)  # pythae logs every epoch
config = VAEConfig(input_dim=(64,), latent_dim=LATENT_DIM)
samples = torch.from_numpy(X_train)


def train(vae, dataset):
    with TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=20,
            learning_rate=2e-3,
            per_device_train_batch_size=64,
            no_cuda=True,
        )
        BaseTrainer(vae, dataset, training_config=settings).train()


class OwnVAE(VAE):
    def forward(self, inputs, **kwargs):
        x = inputs["data"]
        mean, log_variance = self.encoder(x).to_tuple()
        z, _ = self._sample_gauss(mean, (log_variance / 2).exp())
        reconstruction = self.decoder(z).reconstruction
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        return ModelOutput(loss=loss, recon_x=reconstruction, z=z)


collapsed = OwnVAE(config)
train(collapsed, BaseDataset(samples, torch.zeros(len(samples))))
print(TrainedEncoder(collapsed.encoder, collapsed.decoder).diagnose(X_test))


class AlignedVAE(VAE):
    def forward(self, inputs, **kwargs):
        x = inputs["data"]
        mean, log_variance = self.encoder(x).to_tuple()
        z, _ = self._sample_gauss(mean, (log_variance / 2).exp())
        reconstruction = self.decoder(z).reconstruction
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        loss = loss + self.guard(self.loss_fn(mean, inputs["labels"]))  # 1
        return ModelOutput(loss=loss, recon_x=reconstruction, z=z)


vae = AlignedVAE(config)
vae.load_state_dict(collapsed.state_dict())
teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)  # 2
proba = teacher.predict_proba(X_train)  # 3
vae.loss_fn = AlignmentLoss.from_teacher(teacher, X_train, LATENT_DIM)  # 4
vae.guard = LagrangeWeight(0.8, teacher_information(proba))  # 5
train(vae, BaseDataset(samples, torch.from_numpy(proba)))  # 6

teacher = FrozenEstimator(teacher)
encoder = TrainedEncoder(vae.encoder, vae.decoder)
certifier = CollapseCertifier(encoder, teacher=teacher, witness=vae.loss_fn)
print(certifier.fit(X_train).certify(X_test))
proba = teacher.predict_proba(X_test)
print(encoder.diagnose(X_test, teacher_proba=proba, witness=vae.loss_fn))
