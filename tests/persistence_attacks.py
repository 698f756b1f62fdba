"""What a stranger can do to a file, and a process that takes thousands of such files.

`python tests/persistence_attacks.py FILE` measures the memory that attacks on it get,
then loads mutations of the file under a limit on memory and an audit hook, and prints
what came of them.
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
    """Let `change` edit content and arrays, or return other text, and sign it."""
    content, arrays = parts_of(path)
    text = change(content, arrays)
    path.write_bytes(signed(content if text is None else text, arrays))


def fitted(content, kind):
    """The fitted object of a type."""
    (node,) = [n for n in content["objects"] if n["type"] == kind and n["fitted"]]
    return node


JUNK = [
    *(None, True, -1, 0, 1, 10**9, 10**30, 0.5, -1e300, 1e300, "", "x", "auto", "conv"),
    *([], {}, [1] * 50, {"float": "nan"}, {"float": "-inf"}, {"object": 0}),
    *({"object": -1}, {"object": 10**6}, {"array": "x"}, {"tuple": [1, 1]}),
    *({"module": "encoder"}, {"evil": 1}, {"rows": [10**9, {"dict": {}}]}),
    *({"error": "x"}, {"dict": {"a": 1}}, {"generator": [1, 2, 3, 4]}),
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
            node[key] = json.loads(json.dumps(rng.choice(JUNK)))
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
    words = [
        "F64",
        "F32",
        "I64",
        "BOOL",
        "BF16",
        "[",
        "]",
        "{",
        ":",
        ",",
        "0",
        "9",
        '"',
    ]
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
        print("FORBIDDEN", event, args[:2], flush=True)
        os._exit(1)


def limit_memory(n_bytes):
    """Limit this process to so many bytes more than it has now."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = n_pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, resource.RLIM_INFINITY))


def outcome(path, X):
    """Load a file and use it; anything but these outcomes is an error."""
    from skvaecert.exceptions import InvalidFileError
    from skvaecert.persistence import load

    try:
        loaded = load(path)
    except InvalidFileError as error:
        return "no memory" if isinstance(error.__cause__, MemoryError) else "refused"
    except ValueError as error:
        if str(error).startswith(
            "modules must contain the"
        ):  # the module is not passed
            return "refused"
        raise
    try:
        means = loaded.transform(X)
    except ValueError as error:
        if str(error).startswith("X must be within"):  # samples for this model
            return "declined"
        raise
    return "finite" if np.isfinite(means).all() else "not finite"


def peak(function):
    """Peak memory of a child process that calls a function, in bytes."""
    child = os.fork()
    if child == 0:
        function()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    return 1024 * usage.ru_maxrss


def large(path, change):
    """Forge and load in a separate process: memory used, allowed, and the outcome."""
    from skvaecert.exceptions import InvalidFileError
    from skvaecert.persistence import load

    def attempt():
        try:
            load(forged)
            forged.with_suffix(".said").write_text("loaded")
        except InvalidFileError as error:
            forged.with_suffix(".said").write_text(str(error))

    forged = path.with_name("forged")
    forged.write_bytes(path.read_bytes())
    forge(forged, change)
    used = peak(attempt) - peak(lambda: None)
    allowed = 64 * MIB + 4 * forged.stat().st_size
    return used, allowed, forged.with_suffix(".said").read_text()


def with_json(kind, name, text):
    """Give a parameter of the fitted VAE, or of its unfitted teacher, any JSON."""

    def change(content, arrays):
        node = fitted(content, "CertifiedVAE")
        if kind == "GMMTeacher":
            node = content["objects"][node["params"]["teacher"]["object"]]
        node["params"][name] = "MARK"
        return json.dumps(content).replace('"MARK"', text)

    return change


def with_state(lists):
    def change(content, arrays):
        state = fitted(content, "GMMTeacher")["fitted"]
        state["search_results_"] = {"dict": {"x": "MARK"}}
        return json.dumps(content).replace('"MARK"', f"[{lists}1]")

    return change


def with_history(n_rows, columns, dtype):
    def change(content, arrays):
        net = fitted(content, "CertifiedVAE")["fitted"]["net"]["dict"]
        table = net["history"]["rows"][1]["dict"]
        places = np.arange(n_rows, dtype=np.uint16)
        for place, values in table.values():
            arrays[place["array"]], arrays[values["array"]] = (
                places,
                np.ones(n_rows, dtype),
            )
        for i in range(columns):
            arrays[f"{i}"], arrays[f"{i} at"] = np.ones(n_rows, dtype), places
            table[f"{i}"] = [{"array": f"{i} at"}, {"array": f"{i}"}]
        net["history"]["rows"][0] = n_rows

    return change


def with_layers(n_layers):
    """Many layers of one unit each, with the weights for them."""
    from skvaecert.networks import make_vae

    def change(content, arrays):
        node = fitted(content, "CertifiedVAE")
        node["params"]["hidden_sizes"] = [1] * n_layers
        net = node["fitted"]["net"]["dict"]
        for weight in net["weights"]["dict"].values():
            del arrays[weight["array"]]
        module = make_vae(5, 2, [1] * n_layers)
        weights = {k: v.numpy() for k, v in module.state_dict().items()}
        arrays.update(weights)
        net["weights"]["dict"] = {name: {"array": name} for name in weights}
        n_weights = sum(weight.size for weight in weights.values())
        for name in ("exp_avg", "exp_avg_sq"):
            arrays[net[name]["array"]] = np.zeros(n_weights, np.float32)

    return change


def with_vertices(*shape):
    def change(content, arrays):
        node = fitted(content, "CertifiedVAE")
        node["params"]["latent_dim"] = shape[1]
        node["fitted"]["teacher_"] = None
        arrays[node["fitted"]["vertices_"]["array"]] = np.zeros(shape)

    return change


def with_loss(*shape):
    """A loss as witness; its vertices take memory by the square of their number."""

    def change(content, arrays):
        arrays["loss"] = np.zeros(shape)
        params = {"vertices": {"array": "loss"}, "scale": 1.0}
        root = content["objects"].pop()
        root["params"]["witness"] = {"object": len(content["objects"])}
        loss = {"type": "AlignmentLoss", "params": params, "fitted": None}
        content["objects"] += [loss, root]

    return change


def with_texts(n_texts):
    def change(content, arrays):
        arrays["texts"] = np.full((n_texts, 1), 0x4E00, np.uint32)
        results = {"dict": {"x": {"texts": "texts"}}}
        fitted(content, "GMMTeacher")["fitted"]["search_results_"] = results

    return change


def memory(path):
    """Attacks on memory: as much as is allowed, and more; by name."""
    lists, deep = "[[[]]]," * 80_000, "[" * 10**5 + "]" * 10**5
    attacks = {
        "JSON": with_json("GMMTeacher", "verbose", f"[{lists}1]"),
        "JSON of a state": with_state("[[[]]]," * 80_000),
        "more JSON": with_json("GMMTeacher", "verbose", f"[{lists * 2}1]"),
        "wide JSON": with_json("GMMTeacher", "verbose", '"' + "😀" * 150_000 + '"'),
        "deep JSON": with_json("GMMTeacher", "verbose", deep),
        "long list": with_json("GMMTeacher", "n_components", f"[{'1,' * 250_000}1]"),
        "long number": with_json("GMMTeacher", "max_iter", "9" * 4000),
        "epochs": with_history(22_000, 0, np.uint8),
        "more epochs": with_history(60_000, 0, np.uint8),
        "columns": with_history(1000, 300, np.uint8),
        "layers": with_layers(400),
        "more layers": with_layers(2000),
        "huge layer": with_json("CertifiedVAE", "hidden_sizes", "[1000000000]"),
        "many layers": with_json("CertifiedVAE", "hidden_sizes", f"[{'1,' * 900}1]"),
        "many vertices": with_vertices(50_000, 1),
        "no vertices": with_vertices(0, 10**9),
        "many vertices of a loss": with_loss(50_000, 1),
        "texts": with_texts(380_000),
        "more texts": with_texts(10**6),
    }
    return {name: large(path, change) for name, change in attacks.items()}


def mutated(path):
    """Take all mutations: how many there were of each outcome."""
    from skvaecert.persistence import load

    X = np.load(path.with_suffix(".npy"))
    assert outcome(path, X) == "finite"
    assert repr(load(path))
    # Import what error messages need before the audit hook forbids all imports.
    place = path.with_name("mutated")
    for made in list(mutations(path, seed=1))[::50]:
        place.write_bytes(made)
        outcome(place, X)
    files = list(mutations(path))
    descriptor = os.open(place, os.O_RDWR)
    limit_memory(64 * MIB + 4 * path.stat().st_size)
    sys.addaudithook(forbid)
    counts = Counter()
    for made in files:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, made, 0)
        counts[outcome(place, X)] += 1
    return counts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    file = Path(sys.argv[1])
    print(json.dumps({"memory": memory(file), "mutated": mutated(file)}))
