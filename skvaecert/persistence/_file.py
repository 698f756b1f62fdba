"""The bytes of a file: arrays in safetensors format, and JSON in its metadata.

Files may be hostile: sizes are checked before memory is allocated for them.
"""

from __future__ import annotations

import json
import math
import os
import stat
import uuid
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arrays",
    "Budget",
    "from_bytes",
    "read_bytes",
    "safetensors",
    "to_bytes",
    "write_bytes",
]

Arrays = dict[str, NDArray[Any]]

# Estimated bytes per byte of JSON: nested lists take 48.
_JSON_COST = 64
# Estimated bytes per array: a parameter, its gradient and a part of a layer.
_ARRAY_COST = 2**12


class Budget:
    """Memory budget in bytes for everything but the values of arrays."""

    def __init__(self) -> None:
        # Less than the 64 MiB that `load` promises, because the costs are estimates.
        self.left = 40 * 2**20

    def spend(self, n_bytes: int, what: str) -> None:
        """Reserve a part of the budget, before the memory is allocated."""
        if not 0 <= n_bytes <= self.left:
            raise ValueError(f"its {what} would take too much memory.")
        self.left -= n_bytes


def safetensors() -> Any:
    """Import the package, or raise an error that names the extra to install."""
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ImportError(
            "save and load require safetensors: pip install 'skvaecert[save]'."
        ) from error
    return numpy


def to_bytes(content: Any, arrays: Arrays) -> bytes:
    """Return the bytes of JSON values and arrays, with a checksum of both."""
    text = json.dumps(content, allow_nan=False)
    plain = {
        # safetensors writes buffers as they are: make them contiguous, little-endian.
        name: np.array(array, dtype=array.dtype.newbyteorder("<"), order="C")
        for name, array in arrays.items()
    }
    metadata = {"skvaecert": text, "sha256": _checksum(text, plain)}
    return bytes(safetensors().save(plain, metadata))


def from_bytes(data: bytes, budget: Budget) -> tuple[Any, Arrays, str]:
    """Return the JSON values, arrays and checksum of a file, which may be hostile."""
    n_header = int.from_bytes(data[:8], "little")
    if n_header > len(data):
        raise ValueError("it is not a safetensors file.")
    budget.spend(_JSON_COST * n_header, "JSON")
    header = _parse(data[8 : 8 + n_header].decode())
    budget.spend(_ARRAY_COST * len(header), "arrays")
    # safetensors rejects headers that do not describe the bytes that follow.
    loaded = safetensors().load(data)
    # Arrays from safetensors may be read-only views at any address.
    arrays = {
        k: np.require(array, requirements=["A", "W"]) for k, array in loaded.items()
    }
    metadata = header.get("__metadata__", {})
    if metadata.keys() != {"skvaecert", "sha256"}:
        raise ValueError("its metadata are not those of skvaecert.")
    text, checksum = metadata["skvaecert"], metadata["sha256"]
    if checksum != _checksum(text, arrays):
        raise ValueError("its checksum does not match: it was damaged or edited.")
    for name, array in arrays.items():
        # Other bytes would be truth values that compare unequal to True and False.
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"array {name!r} contains bytes other than 0 and 1.")
    return _parse(text), arrays, checksum


def _checksum(text: str, arrays: Arrays) -> str:
    digest = sha256(text.encode())
    # The order of arrays in a file has no meaning.
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _parse(text: str) -> Any:
    """Parse strict JSON: no repeated keys, no NaN or infinity."""
    return json.loads(
        text,
        object_pairs_hook=_without_repeats,
        parse_constant=_finite,
        parse_float=_finite,
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON has an object that repeats a key.")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its JSON has the value {text[:20]}, which is not finite.")
    return value


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file: devices and pipes may have no end."""
    _regular_file_mode(path)
    with open(path, "rb") as file:
        return file.read()


def _regular_file_mode(path: str | os.PathLike[str]) -> int:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"path must be a regular file, got {os.fspath(path)!r}, which is a "
            "directory, a device or a pipe."
        )
    return stat.S_IMODE(mode)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file completely or not at all; keep the mode and links of an old one."""
    # Replace the target of a symbolic link, and keep the link.
    target = Path(os.path.realpath(path))
    mode = _regular_file_mode(target) if target.exists() else None
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            if mode is not None:
                os.chmod(partial, mode)
            file.write(data)
            file.flush()
            # The data must be on disk before the file gets its name.
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
