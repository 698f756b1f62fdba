"""Files of image data sets as rows of bytes; what is damaged is refused by name.

IDX, the two forms of CIFAR and JPEG are read; what has to be decoded is kept in a cache
on the disk and mapped from there.
"""

import gzip
import hashlib
import io
import math
import os
import pickletools
import re
import struct
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CifarFormat",
    "cached_rows",
    "cifar_records",
    "class_of_images",
    "first_complete",
    "idx_images",
    "idx_labels",
    "jpeg_rows",
    "load_pickle",
    "read_lines",
]

_MAGIC = {"images": 0x803, "labels": 0x801}
# Deflate packs no tighter; a header that asks for more is wrong.
_MOST_PACKED = 1032
# Seven times the largest file in the archives of CIFAR.
_LARGEST_MEMBER = 2**30
_PIXELS = 3 * 32 * 32

Bytes = NDArray[np.uint8]
# Rows of an array that is to be cached: how many, and what gives blocks of them.
Blocks = tuple[int, Callable[[], Iterable[Bytes]]]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in whatever is raised because of its contents."""
    damages = (ValueError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
    try:
        yield
    except damages as error:
        why = str(error).rstrip(".")
        raise ValueError(
            f"{path} is damaged or not what its name says: {why}. Get a new copy."
        ) from error


# Finding


def first_complete(
    candidates: Sequence[Sequence[Path]], advice: str
) -> tuple[Path, ...]:
    """Choose the first group of files that are all there."""
    lacking = [[path for path in paths if not path.is_file()] for paths in candidates]
    for paths, missing in zip(candidates, lacking, strict=True):
        if not missing:
            return tuple(paths)
    shares = [len(no) / len(all_) for no, all_ in zip(lacking, candidates, strict=True)]
    missing = lacking[int(np.argmin(shares))]
    folders = dict.fromkeys(str(path.parent) for paths in candidates for path in paths)
    names = [path.name for path in missing]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise FileNotFoundError(
        f"Found no {', '.join(names[:5])}{more}. Looked in: {', '.join(folders)}. "
        f"{advice}"
    )


def read_lines(path: Path) -> list[str]:
    """Read a text file."""
    with _reading(path):
        text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


# IDX, of MNIST


def idx_images(path: Path, side: int, cache: Path) -> Bytes:
    """Map the images of an IDX file; those of a `.gz` by way of the cache."""
    offset, n = _idx_header(path, "images", (side, side))
    shape = n, side * side
    if path.suffix != ".gz":
        return np.memmap(path, np.uint8, "r", offset, shape)

    def blocks() -> Blocks:
        images = _idx_body(path, offset, n * side * side).reshape(shape)
        return n, lambda: [images]

    return cached_rows(cache, [path], blocks, lambda rows: rows.shape == shape)


def idx_labels(path: Path, n_classes: int) -> NDArray[np.int64]:
    """Read the labels of an IDX file."""
    offset, n = _idx_header(path, "labels", ())
    labels = _idx_body(path, offset, n)
    with _reading(path):
        _check_labels(labels[:, None], (n_classes,))
    return labels.astype(np.int64)


def _idx_header(path: Path, kind: str, item: tuple[int, ...]) -> tuple[int, int]:
    """Where the items begin, and how many there are."""
    size = 8 + 4 * len(item)
    with _reading(path), _opened(path) as file:
        header = file.read(size)
        if len(header) < size:
            raise ValueError(f"it ends within its first {size} bytes.")
        magic, n, *shape = struct.unpack(f">{size // 4}I", header)
        if magic != _MAGIC[kind]:
            raise ValueError(f"{kind} begin with {_MAGIC[kind]}, not with {magic}.")
        if not n or tuple(shape) != item:
            raise ValueError(f"it has {n} items of shape {tuple(shape)}, not {item}.")
        _check_room(path, size, n * math.prod(item))
    return size, n


def _check_room(path: Path, offset: int, told: int) -> None:
    """Compare what a header tells with the size of the file, before memory is taken."""
    size = path.stat().st_size
    packed = path.suffix == ".gz"
    if told > _MOST_PACKED * size if packed else told != size - offset:
        raise ValueError(f"its header tells of {told} bytes, its size is {size}.")


def _idx_body(path: Path, offset: int, size: int) -> Bytes:
    with _reading(path), _opened(path) as file:
        file.read(offset)
        # One byte more than there is: only at the end is the checksum compared.
        body = file.read(size + 1)
        if len(body) != size:
            short = "less" if len(body) < size else "more"
            raise ValueError(f"it holds {short} than the {size} bytes of its header.")
    return np.frombuffer(body, np.uint8)


def _opened(path: Path) -> BinaryIO:
    opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    return cast(BinaryIO, opened)


def _check_labels(labels: Bytes, n_classes: tuple[int, ...]) -> None:
    for column, n in zip(labels.T, n_classes, strict=True):
        if column.max() >= n:
            raise ValueError(f"labels are below {n}, got {column.max()}.")


# CIFAR


class CifarFormat(NamedTuple):
    """How one of the CIFAR data sets is stored."""

    keys: tuple[str, ...]
    n_classes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of a record: its labels, then its pixels."""
        return len(self.keys) + _PIXELS

    def fits(self, records: Bytes) -> bool:
        """Tell whether these can be records, labels in range."""
        if records.ndim != 2 or not len(records) or records.shape[1] != self.width:
            return False
        most = records[:, : len(self.keys)].max(axis=0)
        return bool((most < self.n_classes).all())


def cifar_records(
    paths: Sequence[Path], members: Sequence[str], form: CifarFormat, cache: Path
) -> Bytes:
    """Map labels and pixels of CIFAR, as the records of its binary version."""
    if len(paths) == 1 and paths[0].suffix == ".bin":
        return _mapped_records(paths[0], form)

    def blocks() -> Blocks:
        records = [_records(*named, form) for named in _contents(paths, members)]
        return sum(map(len, records)), lambda: records

    return cached_rows(cache, paths, blocks, form.fits)


def _mapped_records(path: Path, form: CifarFormat) -> Bytes:
    with _reading(path):
        n = _count_records(path.stat().st_size, form)
        records = np.memmap(path, np.uint8, "r", shape=(n, form.width))
        _check_labels(records[:, : len(form.keys)], form.n_classes)
    return records


def _count_records(size: int, form: CifarFormat) -> int:
    n, rest = divmod(size, form.width)
    if not n or rest:
        raise ValueError(f"{size} bytes are no records of {form.width} bytes.")
    return n


def _contents(
    paths: Sequence[Path], members: Sequence[str]
) -> Iterator[tuple[Path, str, bytes]]:
    if paths[0].suffix != ".gz":
        for path in paths:
            yield path, path.name, path.read_bytes()
        return
    held = _members(paths[0], members)
    for member in members:
        yield paths[0], member, held.pop(member)


def _members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read these members into memory; nothing is written to the disk."""
    held = {}
    with _reading(archive), gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.name in names and member.isreg():
                    held[member.name] = _member(tar, member)
        # To the end, where the checksum is compared.
        while stream.read(2**20):
            pass
        missing = [name for name in names if name not in held]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}.")
    return held


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _LARGEST_MEMBER:
        raise ValueError(f"{member.name} would have {member.size} bytes.")
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _records(path: Path, name: str, data: bytes, form: CifarFormat) -> Bytes:
    with _reading(path if path.suffix != ".gz" else path / name):
        if name.endswith(".bin"):
            n = _count_records(len(data), form)
            records = np.frombuffer(data, np.uint8).reshape(n, form.width)
        else:
            records = _pickled_records(load_pickle(data), form)
        _check_labels(records[:, : len(form.keys)], form.n_classes)
    return records


def _pickled_records(batch: Any, form: CifarFormat) -> Bytes:
    if not isinstance(batch, dict):
        raise ValueError("it holds no dict.")
    images = _pickled_images(batch.get("data"))
    labels = [_pickled_labels(batch.get(key), key, len(images)) for key in form.keys]
    return np.column_stack([*labels, images])


def _pickled_labels(labels: Any, key: str, n: int) -> Bytes:
    # Of ints alone: bool is one, and an int of many digits would fit no array.
    if not isinstance(labels, list) or len(labels) != n:
        raise ValueError(f"{key} is no list of {n} numbers, one an image.")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise ValueError(f"{key} holds something that is no label.")
    return np.array(labels, np.uint8)


# Pickles, for the Python version of CIFAR. A pickle is a program, and loading it runs
# it. Here it is only read: pickletools takes it apart into opcodes, and the steps below
# follow those that make plain data. No name is ever looked up and nothing is called,
# set or imported: a GLOBAL is kept as its name, a REDUCE as a record of what it would
# have called. Names other than those an array needs are refused, so that the error
# tells what the file was up to. Nothing is taken apart recursively either, so that deep
# nesting costs memory in proportion to the file and no stack.

_ENCODE = "_codecs encode"
_DTYPE = "numpy dtype"
_RECONSTRUCT = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
}
_NAMES = {_ENCODE, _DTYPE, "numpy ndarray", *_RECONSTRUCT}


class _Call:
    """What a pickle would have called, and the state it would have set."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments, self.state = name, arguments, None


class _Pickle:
    """A stack, a memo, and the steps that opcodes take on them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def from_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def take(self, n: int) -> tuple[Any, ...]:
        return tuple(reversed([self.stack.pop() for _ in range(n)]))

    def extend(self, values: Sequence[Any]) -> None:
        _expect(self.stack[-1], list).extend(values)

    def update(self, values: Sequence[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            _expect(self.stack[-1], dict)[_expect(key, str)] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def named(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(
                f"it asks for {name.replace(' ', '.')}, which no array needs. Loaded "
                "as a pickle it could run any program; nothing was run."
            )
        self.push(name)

    def named_on_stack(self, _: Any) -> None:
        module, name = self.take(2)
        self.named(f"{_expect(module, str)} {_expect(name, str)}")

    def reduce(self, _: Any) -> None:
        name, arguments = self.take(2)
        call = _Call(_expect(name, str), _expect(arguments, tuple))
        self.push(_encoded(call) if call.name == _ENCODE else call)

    def build(self, _: Any) -> None:
        (state,) = self.take(1)
        _expect(self.stack[-1], _Call).state = state


_STEPS: dict[str, Callable[[_Pickle, Any], None]] = {
    **dict.fromkeys(
        ["BININT", "BININT1", "BININT2", "LONG1", "BINBYTES", "SHORT_BINBYTES"],
        _Pickle.push,
    ),
    # Strings of Python 2 come from pickletools as text, a byte a letter, as needed.
    **dict.fromkeys(["BINSTRING", "SHORT_BINSTRING"], _Pickle.push),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE"], _Pickle.push),
    **dict.fromkeys(["PROTO", "FRAME", "STOP"], lambda pickle, _: None),
    "NONE": lambda pickle, _: pickle.push(None),
    "NEWTRUE": lambda pickle, _: pickle.push(True),
    "NEWFALSE": lambda pickle, _: pickle.push(False),
    "EMPTY_LIST": lambda pickle, _: pickle.push([]),
    "EMPTY_DICT": lambda pickle, _: pickle.push({}),
    "EMPTY_TUPLE": lambda pickle, _: pickle.push(()),
    "MARK": _Pickle.mark,
    "TUPLE": lambda pickle, _: pickle.push(tuple(pickle.from_mark())),
    "TUPLE1": lambda pickle, _: pickle.push(pickle.take(1)),
    "TUPLE2": lambda pickle, _: pickle.push(pickle.take(2)),
    "TUPLE3": lambda pickle, _: pickle.push(pickle.take(3)),
    "APPEND": lambda pickle, _: pickle.extend(pickle.take(1)),
    "APPENDS": lambda pickle, _: pickle.extend(pickle.from_mark()),
    "SETITEM": lambda pickle, _: pickle.update(pickle.take(2)),
    "SETITEMS": lambda pickle, _: pickle.update(pickle.from_mark()),
    "BINPUT": _Pickle.put,
    "LONG_BINPUT": _Pickle.put,
    "MEMOIZE": lambda pickle, _: pickle.put(len(pickle.memo)),
    "BINGET": lambda pickle, index: pickle.push(pickle.memo[index]),
    "LONG_BINGET": lambda pickle, index: pickle.push(pickle.memo[index]),
    "GLOBAL": _Pickle.named,
    "STACK_GLOBAL": _Pickle.named_on_stack,
    "REDUCE": _Pickle.reduce,
    "BUILD": _Pickle.build,
}


def load_pickle(data: bytes) -> Any:
    """Read plain data from a pickle, without running it."""
    pickle, stream = _Pickle(), io.BytesIO(data)
    try:
        # A stream in memory gives what there is, however much a pickle asks for.
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _STEPS:
                raise ValueError(f"the pickle holds {opcode.name}, not plain data.")
            _STEPS[opcode.name](pickle, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("the pickle takes what it never put.") from error
    # Of strings that are not plain data, where warnings are errors.
    except Warning as error:
        raise ValueError(f"the pickle is broken ({error}).") from error
    if stream.read(1) or pickle.below or len(pickle.stack) != 1:
        raise ValueError("the pickle does not end where it should.")
    return pickle.stack[0]


def _expect(value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    # Python 3 writes the keys of CIFAR, which Python 2 had as strings, as bytes.
    if kind is str and type(value) is bytes:
        return value.decode("latin-1")
    raise ValueError(f"the pickle has a {type(value).__name__} for a {kind.__name__}.")


def _encoded(call: _Call) -> bytes:
    """Do what protocol 2 of Python 3 asks for where bytes are meant."""
    text, codec = (_expect(value, str) for value in (*call.arguments, "", "")[:2])
    if codec not in ("latin1", "latin-1"):
        raise ValueError(f"the pickle has bytes in {codec!r}.")
    return cast(str, text).encode("latin-1")


def _pickled_images(call: Any) -> Bytes:
    state = call.state if isinstance(call, _Call) else None
    if not isinstance(state, tuple) or len(state) != 5 or call.name not in _RECONSTRUCT:
        raise ValueError("data is no array.")
    _, shape, dtype, columns_first, raw = state
    if not _is_uint8(dtype):
        raise ValueError("data is no array of uint8.")
    raw = raw.encode("latin-1") if isinstance(raw, str) else _expect(raw, bytes)
    n = len(raw) // _PIXELS
    if not n or len(raw) % _PIXELS or not _is_shape(shape, (n, _PIXELS)):
        raise ValueError(f"data is no array of images of {_PIXELS} bytes.")
    order = "F" if _expect(columns_first, bool) else "C"
    return np.frombuffer(raw, np.uint8).reshape(shape, order=cast(Any, order))


def _is_uint8(dtype: Any) -> bool:
    if not isinstance(dtype, _Call) or dtype.name != _DTYPE or not dtype.arguments:
        return False
    return _expect(dtype.arguments[0], str) == "u1"


def _is_shape(value: Any, shape: tuple[int, ...]) -> bool:
    ints = isinstance(value, tuple) and all(type(side) is int for side in value)
    return ints and value == shape


# JPEG, of Tiny-ImageNet


def class_of_images(
    folder: Path, annotations: Path, classes: Sequence[str]
) -> dict[Path, int]:
    """Look up the classes of images in a list of them."""
    number = {name: i for i, name in enumerate(classes)}
    lines, found = read_lines(annotations), dict[Path, int]()
    with _reading(annotations):
        for line in lines:
            name, wnid = (*line.split("\t"), "")[:2]
            if wnid not in number:
                raise ValueError(f"{name!r} is of the unknown class {wnid!r}.")
            # Nothing that leads out of the folder.
            if not re.fullmatch(r"\w+\.JPEG", name) or folder / name in found:
                raise ValueError(f"{name!r} is no name of a file, or comes twice.")
            found[folder / name] = number[wnid]
        left_out = set(folder.glob("*.JPEG")) - set(found)
        if left_out or not found:
            raise ValueError(f"it leaves out {min(left_out, default='every image')}.")
    return found


def jpeg_rows(paths: Sequence[Path], side: int, cache: Path) -> Bytes:
    """Map the pixels of JPEG files, red, green, blue; grey ones have all three."""
    shape = len(paths), 3 * side * side

    def blocks() -> Blocks:
        return len(paths), lambda: (_jpeg(path, side) for path in paths)

    return cached_rows(cache, paths, blocks, lambda rows: rows.shape == shape)


def _jpeg(path: Path, side: int) -> Bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading JPEG files needs Pillow: pip install pillow."
        ) from error
    data = path.read_bytes()
    with _reading(path):
        try:
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            if image.size == (side, side):
                pixels = np.asarray(image.convert("RGB"))
                return pixels.transpose(2, 0, 1).reshape(1, -1)
        # Pillow says with errors of many kinds, warnings too, that it cannot decode.
        except Exception as error:
            raise ValueError(f"it cannot be decoded ({error}).") from error
        raise ValueError(f"it has {image.size} pixels, not {(side, side)}.")


# The cache


def cached_rows(
    path: Path,
    sources: Sequence[Path],
    blocks: Callable[[], Blocks],
    fits: Callable[[Bytes], bool],
) -> Bytes:
    """Map rows from the disk, written there first if they are not, or have changed."""
    kept = path.with_name(f"{path.name}-{_key(sources)}.npy")
    rows = _mapped(kept, fits)
    if rows is not None:
        return rows
    made = blocks()
    if _save(kept, made):
        _remove_older(kept, path.name)
        rows = _mapped(kept, fits)
    return _in_memory(*made) if rows is None else rows


def _key(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        stat = source.stat()
        digest.update(f"{source.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _mapped(path: Path, fits: Callable[[Bytes], bool]) -> Bytes | None:
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
        # Bytes may be missing, which is refused there, or be too many.
        whole = path.stat().st_size == rows.offset + rows.nbytes
        right = rows.dtype == np.uint8 and rows.flags.c_contiguous and fits(rows)
    # Whatever is wrong with it, it is made anew.
    except Exception:
        return None
    return rows if whole and right else None


def _save(path: Path, blocks: Blocks) -> bool:
    """Write to a file of another name first: one that has this name is whole."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with unfinished.open("xb") as file:
            _write(file, *blocks)
        os.replace(unfinished, path)
    # A full disk or a folder of others. Sources that fail will do so again, in memory.
    except OSError:
        return False
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return True


def _write(file: BinaryIO, n: int, blocks: Callable[[], Iterable[Bytes]]) -> None:
    # Not through a map, where a full disk would end the program.
    for i, block in enumerate(blocks()):
        if i == 0:
            shape = n, block.shape[1]
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(block).data)


def _remove_older(path: Path, name: str) -> None:
    for other in path.parent.glob(f"{name}-*.npy"):
        if other != path:
            with suppress(OSError):
                other.unlink()


def _in_memory(n: int, blocks: Callable[[], Iterable[Bytes]]) -> Bytes:
    rows, begin = np.empty((n, 0), np.uint8), 0
    for block in blocks():
        if not begin:
            rows = np.empty((n, block.shape[1]), np.uint8)
        rows[begin : begin + len(block)] = block
        begin += len(block)
    return rows
