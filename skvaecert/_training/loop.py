"""The training loop around the net, and the prefit before it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from skvaecert._training.batches import Batches, TrainingSet
from skvaecert._training.monitors import Observer
from skvaecert._training.net import VAENet
from skvaecert.objectives import ReleasedCallback

__all__ = ["prefit", "train"]


def prefit(net: VAENet, dataset: TrainingSet, n_epochs: int) -> None:
    """Regress the latent mean on given codes: minimize the mean of |mu - z|^2 / 2.

    Theory section 11: RST-prefit, RST-alpha-prefit.
    """
    vae = net.module_.train()
    parts = [*vae.encoder.parameters(), *vae.posterior.parameters()]
    encoder = [parameter for parameter in parts if parameter.requires_grad]
    if not encoder:
        raise ValueError(
            "prefit must be None for an encoder without trainable parameters, because "
            "there is nothing to fit."
        )
    # A separate optimizer: moments of the prefit must not continue in the training.
    optimizer = torch.optim.Adam(encoder, lr=net.lr)
    for _ in range(n_epochs):
        for x, codes in Batches(dataset, net.batch_size):
            optimizer.zero_grad()
            ((vae.encode(x)[0] - codes).square().sum(dim=1).mean() / 2).backward()
            optimizer.step()


def train(net: VAENet, dataset: TrainingSet, observer: Observer | None = None) -> None:
    """Train for `net.max_epochs` more epochs. Ctrl-C in the first one is an error."""
    net.observer, net.ctrl_c = observer, False
    try:
        _train(net, dataset)
    finally:
        del net.observer, net.ctrl_c


def _train(net: VAENet, dataset: TrainingSet) -> None:
    n_epochs = len(net.history)
    try:
        with _recording_ctrl_c(net):
            net.partial_fit(dataset)
    finally:
        # skorch notifies no callback if an error ends the training.
        for _, callback in net.callbacks_:
            if isinstance(callback, ReleasedCallback):
                callback.release()
    # Without a complete epoch there is nothing to keep.
    if net.interrupted_ and len(net.history) == n_epochs:
        raise KeyboardInterrupt


@contextmanager
def _recording_ctrl_c(net: VAENet) -> Iterator[None]:
    """Set `net.ctrl_c` on Ctrl-C: a callback that stops early raises the same error."""
    before = signal.getsignal(signal.SIGINT)
    # Python delivers signals to the main thread only.
    in_main_thread = threading.current_thread() is threading.main_thread()
    # The handler is no function if Ctrl-C is ignored or not handled by Python.
    if not (in_main_thread and callable(before)):
        yield
        return

    def record(*args: Any) -> None:
        try:
            before(*args)
        except KeyboardInterrupt:
            net.ctrl_c = True
            raise

    signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
