"""A skorch net: the VAE collapses, and six lines bring it back.

`AlignedNet` is `VAENet` with the numbered line added. The teacher's posteriors are
passed as `y`, because skorch keeps each `y` with its sample. The script takes a few
seconds on one CPU core::

    python examples/loops/skorch_net.py
"""

import torch
from common import LATENT_DIM, VAE, X_test, X_train, negative_elbo
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from torch import nn

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.metrics import teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.wrappers import TrainedEncoder

SETTINGS = {
    "criterion": nn.Identity,  # the loss is in get_loss
    "optimizer": torch.optim.Adam,
    "lr": 2e-3,
    "batch_size": 64,
    "max_epochs": 20,
    "iterator_train__shuffle": True,
    "train_split": None,
    "verbose": 0,
}


class VAENet(NeuralNet):
    def get_loss(self, y_pred, y_true, X, training=False):
        reconstruction, mean, log_variance = y_pred
        loss = negative_elbo(X, reconstruction, mean, log_variance)
        return loss


net = VAENet(VAE, **SETTINGS)
net.fit(X_train, X_train)

vae = net.module_
encoder = TrainedEncoder(vae.encode, vae.decode)
print(encoder.diagnose(X_test))


class AlignedNet(NeuralNet):
    def get_loss(self, y_pred, y_true, X, training=False):
        reconstruction, mean, log_variance = y_pred
        loss = negative_elbo(X, reconstruction, mean, log_variance)
        loss = loss + self.module_.guard(self.module_.loss_fn(mean, y_true))  # 1
        return loss


teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)  # 2
proba = teacher.predict_proba(X_train)  # 3
vae.loss_fn = AlignmentLoss.from_teacher(teacher, X_train, LATENT_DIM)  # 4
vae.guard = LagrangeWeight(0.8, teacher_information(proba))  # 5
net = AlignedNet(vae, **SETTINGS)
net.fit(X_train, proba)  # 6

teacher = FrozenEstimator(teacher)
certifier = CollapseCertifier(encoder, teacher=teacher, witness=vae.loss_fn)
print(certifier.fit(X_train).certify(X_test))
proba = teacher.predict_proba(X_test)
print(encoder.diagnose(X_test, teacher_proba=proba, witness=vae.loss_fn))
