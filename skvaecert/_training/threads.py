"""As many threads as networks can feed: small ones run on one thread."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["n_threads_for", "threads_for"]

MULTIPLY_ADDS_PER_THREAD = 20_000_000


def n_threads_for(multiply_adds: int) -> int:
    """Return how many threads the multiply-adds of a batch can feed, at least 1.

    They are those of one batch through encoder and decoder, forward.

    Examples
    --------
    >>> from skvaecert._training.threads import n_threads_for
    >>> n_threads_for(55_296 * 84), n_threads_for(1_089_536 * 128)
    (1, 6)
    """
    return max(1, multiply_adds // MULTIPLY_ADDS_PER_THREAD)


@contextmanager
def threads_for(multiply_adds: int | None) -> Iterator[None]:
    """Let BLAS and torch use no more threads than :func:`n_threads_for` says.

    No number is raised, and all are put back at the end. BLAS may have one number for
    the process: while blocks overlap, the smallest limit holds. With None, nothing
    changes.
    """
    if multiply_adds is None:
        yield
        return
    block = _Block(n_threads_for(multiply_adds))
    try:
        block.enter()
        yield
    finally:
        try:
            block.leave()
        finally:
            # Ctrl-C may have stopped the first.
            block.leave()


class _Setting(NamedTuple):
    """A number of threads."""

    get: Callable[[], int]
    set: Callable[[int], None]

    def put(self, number: int) -> None:
        if self.get() != number:
            self.set(number)


_TORCH = _Setting(torch.get_num_threads, torch.set_num_threads)


@functools.cache
def _blas() -> tuple[list[_Setting], list[_Setting]]:
    """Return the numbers that each thread has, and those of the whole process.

    The search takes milliseconds. What a later import loads is not used here.
    """
    of_thread: list[_Setting] = []
    of_process: list[_Setting] = []
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        layer = getattr(library, "threading_layer", None)
        each_thread = library.internal_api == "mkl" or layer == "openmp"
        # From all threads but one, threadpoolctl's own `set_num_threads` may do
        # nothing; here a lock keeps them in order.
        set_ = getattr(library, "_real_set_num_threads", library.set_num_threads)
        setting = _Setting(library.get_num_threads, set_)
        (of_thread if each_thread else of_process).append(setting)
    return of_thread, of_process


class _Block:
    """A block in one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._thread = threading.get_ident()

    def enter(self) -> None:
        of_thread, of_process = _blas()
        with _lock:
            # A thread's first call of torch sets numbers: it comes before BLAS.
            self._own = [setting.get() for setting in (_TORCH, *of_thread)]
            self._shared = [setting.get() for setting in of_process]
            self._former = self._own[0]
            if _open:
                self._join(_open)
            _open.append(self)
            smallest = min(block._limit for block in _open)
            for setting in (_TORCH, *of_thread, *of_process):
                setting.put(min(setting.get(), smallest))

    def _join(self, others: list["_Block"]) -> None:
        """Take over what was before the first of all blocks."""
        self._shared, self._former = others[0]._shared, others[0]._former
        nested = any(block._thread == self._thread for block in others)
        # A thread that uses torch for the first time has the number that was set last,
        # in whatever thread: here the limit of another block.
        if not nested and any(block._limit == self._own[0] for block in others):
            self._own[0] = self._former

    def leave(self) -> None:
        """Put back what is not yet put back."""
        with _lock:
            if self in _open:
                own = zip((_TORCH, *_blas()[0]), self._own, strict=True)
                for setting, number in own:
                    setting.put(number)
                self.end()

    def end(self) -> None:
        """Let the process have what other blocks leave to it."""
        limits = [block._limit for block in _open if block is not self]
        for setting, number in zip(_blas()[1], self._shared, strict=True):
            setting.put(min([number, *limits]))
        _open.remove(self)

    @staticmethod
    def end_others() -> None:
        """In a forked process the blocks of other threads never end."""
        for block in list(_open):
            if block._thread != threading.get_ident():
                block.end()
        _lock.release()


_lock = threading.RLock()
_open: list[_Block] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_Block.end_others,
    )
