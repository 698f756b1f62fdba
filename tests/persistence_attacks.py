"""What a stranger can do to a file, and a process that takes thousands of such files.

`python tests/persistence_attacks.py FILE` loads mutations of a file under a limit on
memory and an audit hook, and prints how many were refused and how many were loaded.
"""

import hashlib
import json
import os
import random
import resource
import struct
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

MIB = 2**20


def parts_of(path):
    """Content and arrays, read as anybody reads a safetensors file."""
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["skvaecert"]), load_file(path)


def signed(content, arrays):
    """A file with the right checksum, as docs/security.md has it."""
    text = content if isinstance(content, str) else json.dumps(content)
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name] = np.array(arrays[name], order="C")
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return save(arrays, {"skvaecert": text, "sha256": digest.hexdigest()})


def forge(path, change):
    """Let `change` edit content and arrays in place, and sign what comes of it."""
    content, arrays = parts_of(path)
    change(content, arrays)
    path.write_bytes(signed(content, arrays))


def fitted(content, kind):
    """The fitted object of a type."""
    (node,) = [n for n in content["objects"] if n["type"] == kind and n["fitted"]]
    return node


JUNK = [
    *(None, True, -1, 0, 1, 10**9, 10**30, 0.5, -1e300, 1e300, "", "x", "auto", "conv"),
    *([], {}, [1] * 50, {"float": "nan"}, {"float": "-inf"}, {"object": 0}),
    *({"object": -1}, {"object": 10**6}, {"array": "x"}, {"tuple": [1, 1]}),
    *({"module": "encoder"}, {"evil": 1}, {"rows": [10**9, {"dict": {}}]}),
    *({"error": "x"}, {"dict": {"a": 1}}, {"random_state": [1, 2, 3, 4]}),
]


def places_in(node, found):
    """Every (container, key) of JSON."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        found.append((node, key))
        if isinstance(value, dict | list):
            places_in(value, found)
    return found


def edited_content(content, arrays, rng):
    """Change, move, drop or double one or two entries, and sign."""
    content, arrays = json.loads(json.dumps(content)), dict(arrays)
    for _ in range(rng.choice([1, 1, 2])):
        places = places_in(content, [])
        node, key = rng.choice(places)
        how = rng.randrange(5)
        if how <= 1:
            node[key] = rng.choice(JUNK)
        elif how == 2:
            other, its = rng.choice(places)
            node[key] = json.loads(json.dumps(other[its]))
        elif how == 3:
            del node[key]
        elif isinstance(node, dict):
            node[f"{key}2"] = node[key]
        else:
            node.append(node[key])
    return signed(content, arrays)


def edited_array(content, arrays, rng):
    """Change dtype, shape, values or name of one array, and sign."""
    arrays = dict(arrays)
    name = rng.choice(sorted(arrays))
    array = arrays.pop(name)
    how = rng.randrange(6)
    flat = array.copy().reshape(-1)
    if how == 0:
        array = array.astype(rng.choice([np.float32, np.float64, np.int64, np.uint8]))
    elif how == 1:
        array = array.reshape(-1) if array.ndim > 1 else array.reshape(1, -1)
    elif how == 2:
        array = flat[:-1]
    elif how == 3 and array.dtype.kind == "f" and array.size:
        flat[rng.randrange(flat.size)] = rng.choice([np.nan, np.inf, -1e30, 1e30, 0])
        array = flat.reshape(array.shape)
    elif how == 4:
        name = rng.choice([name + "2", *arrays])
    else:
        array = np.zeros((0, 10**9), array.dtype)
    return signed(content, arrays | {name: array})


def edited_header(data, rng):
    """Change the header as text and leave the rest as it is."""
    (size,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + size].decode()
    words = ["F64", "F32", "I64", "BOOL", "BF16", "[", "]", "{", ":", ",", "0", "9", '"']
    place = rng.randrange(len(header))
    made = rng.choice(words)
    header = header[:place] + made + header[place + rng.randrange(len(made) + 1) :]
    length = rng.choice([len(header), len(header), size, rng.randrange(2**32), 2**62])
    return struct.pack("<Q", length) + header.encode() + data[8 + size :]


def flipped(data, rng):
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def mutations(path, seed=0):
    """Yield at least 5,000 files: flips, truncations, edits with and without a sign."""
    data, rng = path.read_bytes(), random.Random(seed)
    content, arrays = parts_of(path)
    for _ in range(1500):
        yield flipped(data, rng)
    for length in range(0, len(data), max(1, len(data) // 300)):
        yield data[:length]
    for _ in range(900):
        yield edited_header(data, rng)
    for _ in range(1800):
        yield edited_content(content, arrays, rng)
    for _ in range(700):
        yield edited_array(content, arrays, rng)


FORBIDDEN = (
    *("exec", "compile", "import", "marshal", "pickle", "subprocess", "socket"),
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.remove"),
    *("os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"),
    *("shutil", "ctypes", "urllib", "webbrowser", "code.__new__"),
)


def forbid(event, args):
    """Audit hook: nothing but reading a file."""
    writes = event == "open" and (args[1] or "r") != "r" and args[1] != "rb"
    if writes or event.startswith(FORBIDDEN):
        import traceback
        traceback.print_stack()
        print("FORBIDDEN", event, args[:2], flush=True)
        os._exit(1)


def limit_memory(n_bytes):
    """Let this process have so many bytes more than it has now."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = n_pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, resource.RLIM_INFINITY))


def outcome(path, X):
    """Load a file and use it: how it was refused, or "finite"."""
    from skvaecert.exceptions import InvalidFileError
    from skvaecert.persistence import load

    try:
        loaded = load(path)
    except InvalidFileError as error:
        assert not isinstance(error.__cause__, MemoryError), error
        return "refused"
    except ValueError as error:  # modules that nobody brings
        assert str(error).startswith("modules must have the"), error
        return "refused"
    try:
        predicted = loaded.transform(X)
    except ValueError as error:  # the model says that X is not for it
        assert str(error).startswith(("X ", "estimator must", "teacher")), error
        return "declined"
    assert np.isfinite(predicted).all()
    return "finite"


def main(path):
    """Take all mutations."""
    from skvaecert.persistence import load

    X = np.load(path.with_suffix(".npy"))
    warnings.simplefilter("ignore")
    assert outcome(path, X) == "finite"
    assert repr(parts_of(path)) and repr(load(path))
    # What errors and their text need is imported before nothing may be any more.
    mutated = path.with_name("mutated")
    for made in list(mutations(path, seed=1))[::20]:
        mutated.write_bytes(made)
        outcome(mutated, X)
    files = list(mutations(path))
    descriptor = os.open(mutated, os.O_RDWR)
    limit_memory(64 * MIB + 4 * path.stat().st_size)
    sys.addaudithook(forbid)
    counts = Counter()
    for made in files:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, made, 0)
        counts[outcome(mutated, X)] += 1
    print(json.dumps({"files": len(files), **counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
