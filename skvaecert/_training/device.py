"""Device and seed of a fit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["resolve_device", "seeded"]


def resolve_device(name: str) -> torch.device:
    """Turn the parameter `device` into a torch device."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            "device must be 'auto' or a torch device that is there, such as 'cpu' or "
            f"'cuda:0', got {name!r}: {error}"
        ) from error
    return device


_one_thread = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and give the user's generators back after it.

    Threads wait for each other here: all of them draw from the same generators, and
    each would get numbers that depend on what the others do.
    """
    accelerator = device.type != "cpu"
    index = [device.index or 0] if accelerator else []
    kind = device.type if accelerator else "cuda"
    with _one_thread, torch.random.fork_rng(index, device_type=kind):
        torch.default_generator.manual_seed(seed)
        if accelerator:
            torch.get_device_module(device).manual_seed(seed)
        yield
