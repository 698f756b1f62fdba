"""Device, compiler and seed of a fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["resolve_backend", "resolve_device", "seeded"]


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        # Allocate a value: torch.device accepts names of devices that are missing.
        torch.zeros(1, device=device)
    # torch raises AssertionError for a device that it was built without.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            "device must be 'auto' or an available torch device, such as 'cpu' or "
            f"'cuda:0', got {name!r}: {error}"
        ) from error
    return device


def resolve_backend(torch_compile: bool | str) -> str | None:
    """Turn the parameter `torch_compile` into a backend, or None for no compilation."""
    if not isinstance(torch_compile, str):
        return "inductor" if torch_compile else None
    known = torch.compiler.list_backends(())
    if torch_compile not in known:
        raise ValueError(
            f"torch_compile must be True, False or one of {sorted(known)}, got "
            f"{torch_compile!r}."
        )
    return torch_compile


# Reentrant: during a fit, the monitor of held-out samples opens a second block.
_one_thread = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block, and restore the user's generators afterwards.

    Only one thread runs such a block at a time: all threads draw from the same
    generators, so that the draws of one thread would depend on the others.
    """
    accelerator = device.type != "cpu"
    index = [device.index or 0] if accelerator else []
    # fork_rng requires a device type, even if it forks the CPU's generator only.
    kind = device.type if accelerator else "cuda"
    with _one_thread, torch.random.fork_rng(index, device_type=kind):
        # Unlike torch.manual_seed, this leaves the devices alone that fork_rng does not
        # restore.
        torch.default_generator.manual_seed(seed)
        if accelerator:
            torch.get_device_module(device).manual_seed(seed)
        yield
