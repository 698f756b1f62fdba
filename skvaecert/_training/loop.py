"""The training loop around the net, and the prefit before it."""

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
    """Regress the encoder mean on given codes: minimise the mean of |mu - z|^2 / 2.

    Theory section 11: RST-prefit, RST-alpha-prefit.
    """
    vae = net.module_.train()
    own = [*vae.encoder.parameters(), *vae.posterior.parameters()]
    encoder = [parameter for parameter in own if parameter.requires_grad]
    if not encoder:
        raise ValueError(
            "prefit must be None for an encoder without trainable parameters: there is "
            "nothing to fit."
        )
    optimizer = torch.optim.Adam(encoder, lr=net.lr)
    for _ in range(n_epochs):
        for x, codes in Batches(dataset, net.batch_size):
            optimizer.zero_grad()
            ((vae.encode(x)[0] - codes).square().sum(dim=1).mean() / 2).backward()
            optimizer.step()


def train(net: VAENet, dataset: TrainingSet, observer: Observer | None = None) -> None:
    """Train for `net.max_epochs` more epochs; Ctrl-C in the first is an error."""
    net.observer, net.ctrl_c = observer, False
    try:
        _train(net, dataset)
    finally:
        del net.observer, net.ctrl_c


def _train(net: VAENet, dataset: TrainingSet) -> None:
    n_epochs = len(net.history)
    try:
        with _noting_ctrl_c(net):
            net.partial_fit(dataset)
    finally:
        for _, callback in net.callbacks_:
            if isinstance(callback, ReleasedCallback):
                callback.release()
    if net.interrupted_ and len(net.history) == n_epochs:
        raise KeyboardInterrupt


@contextmanager
def _noting_ctrl_c(net: VAENet) -> Iterator[None]:
    """Set `net.ctrl_c` if Ctrl-C raises KeyboardInterrupt: it is no early stopping."""
    before = signal.getsignal(signal.SIGINT)
    # Python hands signals to the main thread only.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and callable(before)):
        yield
        return

    def note(*args: Any) -> None:
        try:
            before(*args)
        except KeyboardInterrupt:
            net.ctrl_c = True
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
