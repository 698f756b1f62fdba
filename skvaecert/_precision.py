"""Run torch in full float32, even if faster products of fewer bits are allowed.

Certificates assume that an encoder computes in float32. On GPUs, torch uses the 10 bits
of TF32 for convolutions by default, and for all products after
``torch.set_float32_matmul_precision("high")``. On some CPUs it uses bfloat16 after
"medium". These settings belong to the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

__all__ = ["device_of", "evaluating", "full_float32"]


def _parts() -> list[Any]:
    """Return the parts of torch, 2.9 or newer, that have a precision setting each."""
    cuda, cudnn, mkldnn = (
        getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn")
    )
    if not hasattr(cudnn, "conv"):
        return []
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _settings() -> list[Any]:
    if parts := _parts():
        return [part.fp32_precision for part in parts]
    return [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]


def _set(settings: list[Any]) -> None:
    parts = _parts()
    if not parts:
        torch.set_float32_matmul_precision(settings[0])
        torch.backends.cudnn.allow_tf32 = settings[1]
        return
    for part, setting in zip(parts, settings, strict=True):
        # "none" makes a part follow the setting above it. A part that then reads as
        # before is left like that, because it may have followed that setting before.
        part.fp32_precision = "none"
        if part.fp32_precision != setting:
            part.fp32_precision = setting


def _exact() -> list[Any]:
    return ["ieee"] * len(_parts()) or ["highest", False]


# The settings belong to the process, so blocks in several threads share one state: the
# first that enters sets full precision, and the last that leaves restores the settings.
_lock = threading.RLock()
_open: list[object] = []
_before: list[Any] = []


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full precision, and restore the settings after the last open block."""
    block = object()
    try:
        _enter(block)
        yield
    finally:
        try:
            _leave(block)
        finally:
            # Again, because Ctrl-C may have interrupted the first call. It does nothing
            # if the block has been left.
            _leave(block)


def device_of(module: nn.Module | None) -> torch.device:
    """Return the device of a module, or the CPU if there is no module."""
    state = () if module is None else chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in state), torch.device("cpu"))


@contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Evaluate a module in full precision, without autocast, and restore its modes.

    Without a module, only the precision is set.
    """
    # The mode of each part is stored, because some may be frozen in evaluation mode.
    parts = [] if module is None else list(module.modules())
    modes = [part.training for part in parts]
    try:
        with full_float32(), torch.autocast(device_of(module).type, enabled=False):
            if module is not None:
                module.eval()
            yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def _enter(block: object) -> None:
    with _lock:
        first = not _open
        if first:
            _before[:] = _settings()
        _open.append(block)
        if first:
            _set(_exact())


def _leave(block: object) -> None:
    with _lock:
        if block not in _open:
            return
        if len(_open) == 1:
            _set(_before)
        # Last: if Ctrl-C interrupts `_set`, the second `_leave` repeats it.
        _open.remove(block)
