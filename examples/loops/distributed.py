"""DistributedDataParallel on two processes: a VAE collapses, six lines bring it back.

The alignment loss and the guard are attributes of the VAE. DistributedDataParallel then
copies the guard's weight from the first process to all others before each step. The
script takes some seconds on two CPU cores::

    torchrun --standalone --nproc-per-node 2 examples/loops/distributed.py
"""

import torch
import torch.distributed as dist
from common import LATENT_DIM, VAE, X_test, X_train, negative_elbo
from sklearn.frozen import FrozenEstimator
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.datasets import WithPosterior
from skvaecert.metrics import teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.wrappers import TrainedEncoder

dist.init_process_group("gloo")
rank = dist.get_rank()

vae = VAE()
dataset = TensorDataset(torch.from_numpy(X_train))
optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
parallel = DistributedDataParallel(vae)
sampler = DistributedSampler(dataset)
torch.manual_seed(rank)  # so that each process draws different codes
for epoch in range(20):
    sampler.set_epoch(epoch)
    for (x,) in DataLoader(dataset, batch_size=32, sampler=sampler):
        reconstruction, mean, log_variance = parallel(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

encoder = TrainedEncoder(vae.encode, vae.decode)
if rank == 0:
    print(encoder.diagnose(X_test))

teacher = GMMTeacher(n_components=10, random_state=0).fit(X_train)  # 1
dataset = WithPosterior(dataset, teacher.predict_proba(X_train))  # 2
vae.loss_fn = AlignmentLoss.from_teacher(teacher, X_train, LATENT_DIM)  # 3
vae.guard = LagrangeWeight(0.8, teacher_information(dataset.teacher_proba))  # 4
parallel = DistributedDataParallel(vae)
sampler = DistributedSampler(dataset)
for epoch in range(20):
    sampler.set_epoch(epoch)
    for (x,), posterior in DataLoader(dataset, batch_size=32, sampler=sampler):  # 5
        reconstruction, mean, log_variance = parallel(x)
        loss = negative_elbo(x, reconstruction, mean, log_variance)
        loss = loss + vae.guard(vae.loss_fn(mean, posterior))  # 6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

if rank == 0:
    teacher = FrozenEstimator(teacher)
    certifier = CollapseCertifier(encoder, teacher=teacher, witness=vae.loss_fn)
    print(certifier.fit(X_train).certify(X_test))
    proba = teacher.predict_proba(X_test)
    print(encoder.diagnose(X_test, teacher_proba=proba, witness=vae.loss_fn))
dist.destroy_process_group()
