"""Products in full float32, whatever fewer bits torch has been allowed to take.

Certificates assume of an encoder that it computes in float32. On GPUs torch takes the
10 bits of TF32 for convolutions by default, and for all products after
``torch.set_float32_matmul_precision("high")``; on some CPUs it takes those of bfloat16
after "medium". The settings are of the whole process.
"""

import threading
from typing import Any

import torch

__all__ = ["full_float32"]


def _parts() -> list[Any]:
    """Return what torch has a precision of its own for, from torch 2.9 on."""
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
        # Without one of its own it follows those of all: so it was, if they agree.
        part.fp32_precision = "none"
        if part.fp32_precision != setting:
            part.fp32_precision = setting


def _exact() -> list[Any]:
    return ["ieee"] * len(_parts()) or ["highest", False]


class _FullFloat32:
    """A block of full precision; the last of those that overlap puts settings back."""

    def __init__(self) -> None:
        self._lock, self._n_inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._before = _settings()
                _set(_exact())
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                _set(self._before)


full_float32 = _FullFloat32()
