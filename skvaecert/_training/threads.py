"""Thread limits that suit the size of a network: small ones run on one thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import joblib
import torch
from threadpoolctl import ThreadpoolController

__all__ = ["n_threads_for", "threads_for"]


# Time of a step on two threads, divided by the time on one thread (two cores of an AMD
# EPYC):
#
#     million multiply-adds          5    26   140   560  1,100
#     NumPy, idle cores           0.88  0.75  0.63  0.58  0.58
#     autograd, idle cores        1.02  0.79  0.62  0.56  0.58
#     NumPy, one core busy         107    51    23     5     4
#     autograd, one core busy        7     7     3     4     2
#
# A busy core costs that much because each product waits for all threads. So a second
# thread must be worth it, and one core is left to other processes.
MULTIPLY_ADDS_PER_THREAD = 50_000_000


def n_threads_for(multiply_adds: int) -> int:
    """Return how many threads suit the multiply-adds of a batch, at least 1.

    These are the multiply-adds of one forward pass through encoder and decoder.
    """
    return max(1, min(multiply_adds // MULTIPLY_ADDS_PER_THREAD, _n_cores() - 1))


_n_cores = functools.cache(joblib.cpu_count)


@contextmanager
def threads_for(multiply_adds: int | None, step: str = "numpy") -> Iterator[None]:
    """Limit BLAS and torch to the number of threads of :func:`n_threads_for`.

    No number is raised, and all numbers are restored at the end. With None, as for the
    user's own networks, nothing changes. BLAS has one number per process: while blocks
    overlap, the smallest limit applies.

    During a step by NumPy, torch is limited to one thread. Otherwise threads of both
    would wait for work on the same cores, and steps took up to twelve times as long,
    even on idle cores.
    """
    if multiply_adds is None:
        yield
        return
    block = _ThreadLimit(n_threads_for(multiply_adds), step)
    try:
        block.enter()
        yield
    finally:
        try:
            block.leave()
        finally:
            # Ctrl-C may have interrupted the first call.
            block.leave()


class _ThreadLimit:
    """A block in one thread, and the numbers before the first of overlapping blocks."""

    _lock = threading.RLock()
    _open: ClassVar[list[_ThreadLimit]] = []

    _torch_before: int
    _blas_before: Sequence[int]

    def __init__(self, limit: int, step: str) -> None:
        self._limit = limit
        self._torch_limit = limit if step == "autograd" else 1
        self._thread = threading.get_ident()

    def enter(self) -> None:
        with self._lock:
            own = torch.get_num_threads()
            first = self._open[0] if self._open else self
            nested = any(block._thread == self._thread for block in self._open)
            if first is self:
                self._blas_before = [library.get_num_threads() for library in _blas()]
            self._blas_before = first._blas_before
            # torch reports to a new thread the number that any thread set last, here
            # possibly the limit of another block.
            self._torch_before = own if nested or first is self else first._torch_before
            self._open.append(self)
            _set_torch_threads(min(self._torch_before, self._torch_limit))
            self._limit_blas()

    def leave(self) -> None:
        """Restore the numbers, unless a previous call has done so."""
        with self._lock:
            if self not in self._open:
                return
            _set_torch_threads(self._torch_before)
            self._limit_blas(without=self)
            self._open.remove(self)

    def _limit_blas(self, without: _ThreadLimit | None = None) -> None:
        limits = [block._limit for block in self._open if block is not without]
        for library, before in zip(_blas(), self._blas_before, strict=True):
            number = min([before, *limits])
            if library.get_num_threads() != number:
                # While one thread has a limit, `set_num_threads` may do nothing in
                # other threads. Here a lock keeps them in order.
                set_ = getattr(library, "_real_set_num_threads", None)
                (set_ or library.set_num_threads)(number)


def _set_torch_threads(number: int) -> None:
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


@functools.cache
def _blas() -> list[Any]:
    """Return the BLAS libraries of NumPy and SciPy. The search takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers
