"""The file format: a zip of two JSON documents and a safetensors table of arrays.

Everything is looked at before memory is taken for it, and nothing in a file is ever
imported or run.
"""

import errno
import json
import math
import os
import re
import stat
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skvaecert.exceptions import InvalidFileError

__all__ = [
    "MEMBERS",
    "Archive",
    "can_hold",
    "naming",
    "parse_json",
    "read_archive",
    "write_archive",
]

MEMBERS = ("config.json", "certificate.json", "arrays.safetensors")
# A thousand times what a model needs; ten or twenty times as much becomes memory.
_MOST_JSON = 2**24
_MOST_DEPTH = 40
_MOST_LIST = 4096
_MOST_DIMENSIONS = 8
_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
_KNOWN = {np.dtype(dtype) for dtype in _DTYPES.values()}
# What taking wrong data for right ones can end in.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)

Arrays = dict[str, NDArray[Any]]


class Archive(NamedTuple):
    """What is in a file."""

    config: Any
    certificate: Any
    arrays: Arrays


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong inside the block into an error that names the file."""
    try:
        yield
    except InvalidFileError:
        raise
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InvalidFileError(
            f"{os.fspath(path)} must be a file as skvaecert saves it, got one that "
            f"cannot be taken: {reason} Nothing in it was run."
        ) from error


def write_archive(path: str | os.PathLike[str], archive: Archive) -> None:
    """Write a file, or leave what is there as it is."""
    from safetensors.numpy import save

    documents = [_to_json(archive.config), _to_json(archive.certificate)]
    # A layout and byte order of its own, for safetensors takes buffers as they are.
    arrays = {k: np.array(v, order="C") for k, v in archive.arrays.items()}
    members = [*documents, save(arrays)]
    target = Path(path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            _write(file, members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _to_json(value: Any) -> bytes:
    text = json.dumps(value, allow_nan=False).encode()
    if len(text) > _MOST_JSON:
        raise ValueError(
            f"estimator must need at most {_MOST_JSON} bytes of JSON, got {len(text)}: "
            "shorten what is long in its parameters, or names of features."
        )
    return text


def _write(file: BinaryIO, members: list[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in zip(MEMBERS, members, strict=True):
            # Stored, at a fixed date: what is in the file is what is on the disk.
            archive.writestr(zipfile.ZipInfo(name), data)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a file, without trust in it."""
    with open(path, "rb") as file, naming(path):
        try:
            config, certificate, table = _read_members(file)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ValueError("it points to before its beginning.") from error
        arrays = _read_arrays(memoryview(table))
        return Archive(parse_json(config), parse_json(certificate), arrays)


def _read_members(file: BinaryIO) -> list[bytes]:
    if file.read(4) != b"PK\x03\x04":
        raise ValueError("it does not begin as a zip archive does.")
    _check_end(file)
    n_bytes = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, n_bytes)
        return [archive.read(member) for member in members]


def _check_end(file: BinaryIO) -> None:
    """Check that the list of members is short before Python makes objects of it."""
    file.seek(-98, os.SEEK_END)
    tail = file.read()
    if tail[76:80] != b"PK\x05\x06":
        raise ValueError("it does not end as a zip archive does.")
    # Archives above 4 GiB have the size in a record of their own.
    is_large = tail[56:60] == b"PK\x06\x07"
    size = int.from_bytes(tail[40:48] if is_large else tail[88:92], "little")
    if size > _MOST_LIST:
        raise ValueError("its list of members is too long.")


def _check_members(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    names = tuple(member.orig_filename for member in members)
    if names != MEMBERS:
        raise ValueError(f"its members must be {MEMBERS}, got {names[:4]}.")
    if members[0].header_offset != 0:
        raise ValueError("something stands before its first member.")
    for member in members:
        _check_member(member)
    if sum(member.file_size for member in members) > n_bytes:
        raise ValueError("its members are larger than the file.")


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted.")
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored or member.compress_size != member.file_size:
        raise ValueError(f"{name} is compressed.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{name} is a link.")
    if name.endswith(".json") and member.file_size > _MOST_JSON:
        raise ValueError(f"{name} has more than {_MOST_JSON} bytes.")


def parse_json(data: bytes) -> Any:
    """Parse standard JSON: no keys twice, no NaN, no deep nesting."""
    text = data.decode("utf-8")
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > _MOST_DEPTH:
            raise ValueError(f"its JSON is nested deeper than {_MOST_DEPTH}.")
    return json.loads(
        text,
        object_pairs_hook=_without_repeats,
        parse_constant=_finite,
        parse_float=_finite,
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON has an object with the same key twice.")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its JSON has the number {text[:20]}, which is not finite.")
    return value


def _read_arrays(table: memoryview) -> Arrays:
    length = int.from_bytes(table[:8], "little")
    if len(table) < 8 or length > min(_MOST_JSON, len(table) - 8):
        raise ValueError("the header of its arrays is longer than what there is.")
    header = parse_json(bytes(table[8 : 8 + length]))
    body = table[8 + length :]
    if not isinstance(header, dict):
        raise ValueError("the header of its arrays is not a JSON object.")
    end, arrays = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: _start(item[1])):
        dtype, shape, start, stop = _entry(name, entry)
        if start != end:
            raise ValueError(f"array {name!r} does not begin where the last one ends.")
        end = stop
        if end > len(body):
            raise ValueError(f"array {name!r} is larger than what there is.")
        # Any byte but 0 and 1 would be a truth value that is neither.
        if dtype.kind == "b" and max(body[start:end], default=0) > 1:
            raise ValueError(f"array {name!r} holds other bytes than 0 and 1.")
        arrays[name] = np.frombuffer(body[start:end], dtype).reshape(shape).copy()
    if end != len(body):
        raise ValueError("something stands behind its last array.")
    return arrays


def _start(entry: Any) -> int:
    if not isinstance(entry, dict) or entry.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        raise ValueError("an array has other entries than dtype, shape, data_offsets.")
    start = _whole(entry["data_offsets"])[0]
    # Empty arrays come before those that begin in the same place.
    return 2 * start + (_whole(entry["data_offsets"])[-1] > start)


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], list[int], int, int]:
    """Check one line of the header: the bytes must be those that the shape asks for."""
    shape, (start, stop) = _whole(entry["shape"]), _whole(entry["data_offsets"])
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(shape) > _MOST_DIMENSIONS or n_bytes != stop - start:
        raise ValueError(
            f"array {name!r} has shape {str(shape)[:60]} but {stop - start} bytes."
        )
    return dtype, shape, start, stop


def _whole(values: Any) -> list[int]:
    right = isinstance(values, list) and len(values) <= _MOST_DIMENSIONS
    if not right or not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise ValueError(f"{str(values)[:60]} must be a list of a few counts.")
    return values


def can_hold(array: NDArray[Any]) -> bool:
    """Tell whether an array is of a dtype that files can hold."""
    return array.dtype.newbyteorder("<") in _KNOWN
