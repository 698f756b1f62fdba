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

# Time of a step on two threads, by that on one (two cores of an AMD EPYC):
#
#     million multiply-adds          5    26   140   560  1,100
#     NumPy, idle cores           0.88  0.75  0.63  0.58  0.58
#     autograd, idle cores        1.02  0.79  0.62  0.56  0.58
#     NumPy, one core busy         107    51    23     5     4
#     autograd, one core busy        7     7     3     4     2
#
# A busy core costs that much since each product waits for all threads: a second thread
# has to be worth it.
MULTIPLY_ADDS_PER_THREAD = 50_000_000


def n_threads_for(multiply_adds: int) -> int:
    """Return how many threads the multiply-adds of a batch can feed, at least 1.

    They are those of one batch through encoder and decoder, forward.

    Examples
    --------
    >>> from skvaecert._training.threads import n_threads_for
    >>> n_threads_for(55_296 * 84), n_threads_for(1_089_536 * 128)
    (1, 2)
    """
    return max(1, multiply_adds // MULTIPLY_ADDS_PER_THREAD)


@contextmanager
def threads_for(multiply_adds: int | None, *, step: str = "numpy") -> Iterator[None]:
    """Let BLAS and torch use no more threads than :func:`n_threads_for` says.

    No number is raised, and all are put back at the end. BLAS has one number for the
    process, mostly: while blocks overlap, the smallest limit holds. With None, nothing
    changes.

    Beside a step by NumPy, torch has one thread: threads of both wait for work on the
    same cores, and steps took up to twelve times as long, even on idle ones.
    """
    if multiply_adds is None:
        yield
        return
    n_threads = n_threads_for(multiply_adds)
    block = _Block(n_threads, n_threads if step == "autograd" else 1)
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
    """A number of threads, of this thread or of the process."""

    get: Callable[[], int]
    set: Callable[[int], None]
    is_shared: bool

    def put(self, number: int) -> None:
        if self.get() != number:
            self.set(number)


_TORCH = _Setting(torch.get_num_threads, torch.set_num_threads, is_shared=False)


@functools.cache
def _blas() -> list[_Setting]:
    """Return the settings of NumPy's and SciPy's BLAS.

    The search takes milliseconds. What a later import loads is not used here.
    """
    settings = []
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        layer = getattr(library, "threading_layer", None)
        is_shared = library.internal_api != "mkl" and layer != "openmp"
        # While one thread has a limit, threadpoolctl's `set_num_threads` may do nothing
        # in others; here a lock keeps them in order.
        set_ = getattr(library, "_real_set_num_threads", library.set_num_threads)
        settings.append(_Setting(library.get_num_threads, set_, is_shared))
    return settings


class _Block:
    """A block in one thread."""

    def __init__(self, blas_limit: int, torch_limit: int) -> None:
        self._blas_limit = blas_limit
        self._torch_limit = torch_limit
        self._thread = threading.get_ident()

    def enter(self) -> None:
        with _lock:
            # BLAS comes after torch, whose first call in a thread may set its number.
            self._torch = self._first_torch = _TORCH.get()
            self._blas = now = [setting.get() for setting in _blas()]
            if _open:
                self._join(_open)
            _open.append(self)
            _TORCH.put(min(_TORCH.get(), *(block._torch_limit for block in _open)))
            for setting, number in zip(_blas(), now, strict=True):
                setting.put(min(number, self._blas_limit))

    def _join(self, others: list["_Block"]) -> None:
        """Take over what was before the first of all blocks."""
        first = others[0]
        self._first_torch = first._first_torch
        self._blas = [
            before if setting.is_shared else now
            for setting, now, before in zip(
                _blas(), self._blas, first._blas, strict=True
            )
        ]
        nested = any(block._thread == self._thread for block in others)
        # A thread that uses torch for the first time has the number that was set last,
        # in whatever thread: here the limit of another block.
        if not nested and self._torch in {block._torch_limit for block in others}:
            self._torch = self._first_torch

    def leave(self) -> None:
        """Put back what is not yet put back."""
        with _lock:
            if self in _open:
                _TORCH.put(self._torch)
                self._put_back(shared=False)
                self.end()

    def end(self) -> None:
        """Let the process have what other blocks leave to it."""
        self._put_back(shared=True)
        _open.remove(self)

    def _put_back(self, *, shared: bool) -> None:
        limits = [block._blas_limit for block in _open if shared and block is not self]
        for setting, number in zip(_blas(), self._blas, strict=True):
            if setting.is_shared is shared:
                setting.put(min([number, *limits]))

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
