"""Several processes that train one model, each on its share of every batch.

Accelerate says which processes there are and which device is whose, and carries
numbers between them. skorch's own mixin for it leaves the gradient to
DistributedDataParallel, which hides the methods of the module, takes batches from a
DataLoader, and gives shares of unequal length equal weights. One sum of one vector a
step does without all that.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from joblib.parallel import get_active_backend
from torch import Tensor

__all__ = ["ALONE", "Processes", "join_processes"]


# With one row, batch normalisation fails.
_LEAST_SHARE = 2


class Processes:
    """One process that trains alone, and what several would have to do together.

    Every method that carries something must be called by all processes.
    """

    rank = 0
    n_processes = 1
    interrupted = False

    def device_name(self, device: str) -> str:
        """Return the device of this process."""
        return device

    def agree_on(self, value: Any) -> bool:
        """Tell whether a value is the same on all processes."""
        return True

    def first(self, value: Any) -> Any:
        """Return what the first process has."""
        return value

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Write what the first process has into tensors of the others."""

    def check_batches(self, n_samples: int, batch_size: int) -> None:
        """Fail if some process would have next to no rows of some batch."""

    def share(self, index: Tensor) -> Tensor:
        """Return which rows of a batch are those of this process."""
        return index

    def sum(self, tensors: Sequence[Tensor], weight: float) -> Sequence[Tensor]:
        """Add up tensors over processes, those of each times its weight."""
        return tensors

    def vote(self, stop: bool) -> bool:
        """Return whether any process wants to stop."""
        return stop

    @contextmanager
    def holding_back_interrupts(self) -> Iterator[None]:
        """Let Ctrl-C wait until all processes can stop together: at the next vote."""
        yield


ALONE = Processes()


def join_processes(accelerate: bool, device: str) -> Processes:
    """Return the processes that train together."""
    if not accelerate:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "accelerate=True needs the package accelerate: "
            "pip install 'skvaecert[accelerate]'."
        ) from error
    n_started = int(os.environ.get("WORLD_SIZE", "1"))
    if n_started > 1:
        _check_not_nested()
    # Without a GPU, processes find each other only if they are told that it is the CPU.
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
    if state.num_processes == n_started == 1:
        return ALONE
    if not state.distributed_type.value.startswith("MULTI_"):
        raise ValueError(
            f"accelerate=True cannot train {n_started} processes with "
            f"device={device!r}: Accelerate has them as "
            f"{state.distributed_type.value}. On Apple silicon set device='cpu'. "
            "Without CUDA leave PartialState and Accelerator until after the fit, or "
            "make them with cpu=True. Use torchrun, without DeepSpeed or FSDP."
        )
    return _Ranks(state)


def _check_not_nested() -> None:
    """Fail in a worker of joblib, which would take itself for the process it is of."""
    if get_active_backend()[0].nesting_level:
        raise ValueError(
            "n_jobs must be None or 1 around an estimator with accelerate=True on "
            "several processes: they can train one model at a time."
        )


class _Ranks(Processes):
    """One of several processes, joined by the launcher."""

    def __init__(self, state: Any) -> None:
        self.rank = state.process_index
        self.n_processes = state.num_processes
        self._device = torch.device(state.device)
        self._pending = False

    def device_name(self, device: str) -> str:
        kind = self._device.type
        if device not in ("auto", kind):
            raise ValueError(
                f"device must be 'auto' or {kind!r} with accelerate=True on several "
                f"processes, which get a device each, got {device!r}."
            )
        return "cpu" if kind == "cpu" else str(self._device)

    def agree_on(self, value: Any) -> bool:
        from accelerate.utils import gather_object

        return len(set(gather_object([joblib.hash(value)]))) == 1

    def first(self, value: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        (theirs,) = broadcast_object_list([value])
        return value if self.rank == 0 else theirs

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        from accelerate.utils import broadcast

        for tensor in tensors:
            # Where they are carried, which may be the tensor itself.
            tensor.copy_(broadcast(tensor.detach().to(self._device).contiguous()))

    def check_batches(self, n_samples: int, batch_size: int) -> None:
        n_batches = -(-n_samples // batch_size)
        least = _LEAST_SHARE * self.n_processes
        if n_samples // n_batches < least:
            raise ValueError(
                f"batch_size must be such that every batch has at least {least} rows, "
                f"{_LEAST_SHARE} for each of {self.n_processes} processes, got "
                f"{batch_size} for {n_samples} rows. Raise it or use fewer processes."
            )

    def share(self, index: Tensor) -> Tensor:
        return index.tensor_split(self.n_processes)[self.rank]

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor], weight: float) -> Sequence[Tensor]:
        from accelerate.utils import reduce

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        whole = reduce(flat * weight, "sum")
        pieces = whole.split([tensor.numel() for tensor in tensors])
        # Copies: who keeps a loss is not to keep the whole vector.
        return [p.view_as(t).clone() for p, t in zip(pieces, tensors, strict=True)]

    def vote(self, stop: bool) -> bool:
        wishes = torch.tensor([stop, self._pending], device=self._device).float()
        stops, interrupts = self.sum([wishes], 1.0)[0].tolist()
        self.interrupted = interrupts > 0
        return stops > 0 or self.interrupted

    @contextmanager
    def holding_back_interrupts(self) -> Iterator[None]:
        # Python hands signals to the main thread only.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._hold_back)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def _hold_back(self, *_: Any) -> None:
        self._pending = True
