import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import Bunch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, datasets
from skvaecert._readers import load_pickle
from skvaecert.datasets import (
    load_cifar10,
    load_cifar100,
    load_digits,
    load_mnist,
    load_tiny_imagenet,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(3, 784), dtype=np.uint8)
LABELS = np.array([7, 0, 9])
PIXELS = RNG.integers(256, size=(10, 3072), dtype=np.uint8)
CLASSES = np.arange(10)


# The formats, written by hand


def idx(values, magic=None, shape=None):
    shape = values.shape if shape is None else shape
    magic = 0x800 + len(shape) if magic is None else magic
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder, images=IMAGES, labels=LABELS, part="train", sep="-", end=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if end else bytes
    paths = (
        folder / f"{part}-images{sep}idx3-ubyte{end}",
        folder / f"{part}-labels{sep}idx1-ubyte{end}",
    )
    paths[0].write_bytes(pack(idx(images.reshape(-1, 28, 28))))
    paths[1].write_bytes(pack(idx(labels)))
    return paths


def text(value):
    return b"U" + bytes([len(value)]) + value


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def python2_array(values, dtype=b"u1", shape=None):
    """As cPickle of Python 2 wrote an array, protocol 2."""
    shape = values.shape if shape is None else shape
    raw = values.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        b"K\x00\x85q\x09U\x01bq\x0a\x87Rq\x0b(K\x01"
        + b"".join(map(number, shape))
        + b"\x86"
        + b"cnumpy\ndtype\nq\x0c"
        + text(dtype)
        + b"K\x00K\x01\x87Rq\x0d(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )


def python2_batch(pixels, labels, array=None):
    """As Python 2 wrote a batch of CIFAR; labels by name."""
    array = python2_array(pixels) if array is None else array
    lists = b"".join(
        text(name.encode()) + b"]q\x05(" + b"".join(map(number, values)) + b"e"
        for name, values in labels.items()
    )
    title = text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5")
    return b"\x80\x02}q\x01(" + title + lists + text(b"data") + array + b"u."


def write_cifar10(folder, python, pixels=PIXELS, classes=CLASSES):
    """Rows by twos into the five batches, and the first row into that for tests."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"data_batch_{i + 1}": slice(2 * i, 2 * i + 2) for i in range(5)}
    for name, part in (parts | {"test_batch": slice(1)}).items():
        x, y = pixels[part], classes[part]
        if python:
            (folder / name).write_bytes(python2_batch(x, {"labels": y.tolist()}))
        else:
            records = np.column_stack([y, x]).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def write_cifar100(folder, python, pixels=PIXELS):
    folder.mkdir(parents=True, exist_ok=True)
    fine, coarse = 99 - CLASSES[: len(pixels)], 19 - CLASSES[: len(pixels)]
    for name in ("train", "test"):
        if python:
            labels = {"fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            (folder / name).write_bytes(python2_batch(pixels, labels))
        else:
            records = np.column_stack([coarse, fine, pixels]).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def archive(folder, path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def jpeg(path, mode="RGB", side=64, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((side, side, 3), value, np.uint8)
    pixels[:, side // 2 :] = [200, 100, 30]
    Image.fromarray(pixels).convert(mode).save(path, "JPEG", quality=95)
    return pixels


def write_tiny_imagenet(folder):
    wnids = ["n00000002", "n00000001"]
    for i, wnid in enumerate(wnids):
        for j, mode in enumerate(["RGB", "L"]):
            jpeg(folder / f"train/{wnid}/images/{wnid}_{j}.JPEG", mode, value=40 * i)
    for j in range(3):
        jpeg(folder / f"val/images/val_{j}.JPEG", value=80 * j)
    lines = [f"val_{j}.JPEG\t{wnids[j % 2]}\t0\t0\t62\t62\n" for j in (2, 0, 1)]
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n00000001\tcat, feline\nn9\tother\n")
    return folder


def files_in(folder):
    return sorted(path.name for path in (folder / ".skvaecert").glob("*"))


# MNIST


@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("sep", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_is_read_in_all_spellings(tmp_path, place, sep, end):
    write_mnist(tmp_path / place, sep=sep, end=end)
    write_mnist(tmp_path / place, IMAGES[:1], LABELS[:1], "t10k", sep, end)
    train, test = (load_mnist(tmp_path, subset=part) for part in ("train", "test"))
    for mnist, n in ((train, 3), (test, 1)):
        np.testing.assert_array_equal(mnist.data, IMAGES[:n])
        np.testing.assert_array_equal(mnist.target, LABELS[:n])
        assert isinstance(mnist.data, np.memmap)
        assert not mnist.data.flags.writeable
        assert (mnist.data.dtype, mnist.target.dtype) == (np.uint8, np.int64)
        assert mnist.image_shape == (1, 28, 28)
        assert mnist.target_names[mnist.target].tolist() == [str(y) for y in LABELS[:n]]
    assert len(files_in(tmp_path)) == (2 if end else 0)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.testing.assert_array_equal(load_mnist("~/data").data, IMAGES)


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("SKVAECERT_DATA", str(tmp_path))
    np.testing.assert_array_equal(load_mnist().data, IMAGES)
    monkeypatch.delenv("SKVAECERT_DATA")
    for load in (load_mnist, load_cifar10, load_cifar100, load_tiny_imagenet):
        with pytest.raises(ValueError, match=r"data_dir .* SKVAECERT_DATA .* neither"):
            load()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_cut_mnist_is_never_read(tmp_path, end):
    for path in write_mnist(tmp_path, IMAGES[:1], LABELS[:1], end=end):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"ubyte.* is damaged"):
                load_mnist(tmp_path)
        path.write_bytes(whole)
    np.testing.assert_array_equal(load_mnist(tmp_path).data, IMAGES[:1])


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES.reshape(3, 28, 28)) + b"x", None, "images.* is damaged"),
        (
            idx(IMAGES.reshape(3, 28, 28), magic=0x804),
            None,
            "begin with 2051, not with",
        ),
        (idx(np.arange(10)), None, "images.* begin with 2051, not with 2049"),
        (idx(IMAGES.reshape(3, 14, 56)), None, r"shape \(14, 56\), not \(28, 28\)"),
        (idx(IMAGES[:0].reshape(0, 28, 28)), None, "it has 0 items"),
        (idx(IMAGES, shape=(2**32 - 1, 28, 28)), None, "header tells of 3367254359280"),
        (None, idx(np.array([1, 10, 3])), "labels.* labels are below 10, got 10"),
        (None, idx(np.array([1, 2])), "has 3 images and .* 2 labels"),
        (None, idx(LABELS, shape=(2**32 - 1,)), "header tells of 4294967295 bytes"),
    ],
)
def test_a_wrong_mnist_is_refused(tmp_path, images, labels, message, end):
    paths = write_mnist(tmp_path, end=end)
    for path, contents in zip(paths, (images, labels), strict=True):
        if contents is not None:
            path.write_bytes(gzip.compress(contents) if end else contents)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_any_wrong_byte_of_a_gzip_is_found_or_harmless(tmp_path):
    path, _ = write_mnist(tmp_path, np.zeros_like(IMAGES), end=".gz")
    whole = path.read_bytes()
    refused = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            data = load_mnist(tmp_path).data
        except ValueError:
            refused += 1
        else:
            assert not data.any()
    assert refused > len(whole) - 10  # the others are in gzip's time and flags


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
    _, labels = write_mnist(tmp_path / "mnist")
    labels.unlink()
    message = (
        rf"Found no train-labels-idx1-ubyte. Looked in: {tmp_path}, {tmp_path}/mnist, "
        rf"{tmp_path}/MNIST/raw. Get the files of MNIST from http://yann.lecun.com\S+ "
        rf"and put them into {tmp_path}, or give download=True."
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte, t10k-labels"):
        load_mnist(tmp_path, subset="test")


# CIFAR


@pytest.fixture(params=["unpacked", "itself", "archive"])
def placed(request, tmp_path):
    """Puts the folder of a data set where it can be found; returns the data_dir."""

    def place(folder, packed):
        if request.param == "itself":
            return folder
        if request.param == "archive":
            archive(folder, tmp_path / packed)
            for path in folder.iterdir():
                path.unlink()
        return tmp_path

    return place


@pytest.mark.parametrize("python", [True, False])
def test_cifar10(tmp_path, placed, python):
    name = "cifar-10-batches-py" if python else "cifar-10-batches-bin"
    packed = "cifar-10-python.tar.gz" if python else "cifar-10-binary.tar.gz"
    data_dir = placed(write_cifar10(tmp_path / name, python), packed)
    for _ in range(2):  # from the files, from the cache
        train = load_cifar10(data_dir)
        np.testing.assert_array_equal(train.data, PIXELS)
        np.testing.assert_array_equal(train.target, CLASSES)
        assert isinstance(train.data, np.memmap)
        assert train.image_shape == (3, 32, 32)
        assert train.target_names[[0, 9]].tolist() == ["airplane", "truck"]
    test = load_cifar10(data_dir, subset="test")
    np.testing.assert_array_equal(test.data, PIXELS[:1])
    assert (test.data.dtype, test.target.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("python", [True, False])
def test_cifar100(tmp_path, placed, python):
    name = "cifar-100-python" if python else "cifar-100-binary"
    data_dir = placed(write_cifar100(tmp_path / name, python), f"{name}.tar.gz")
    fine, coarse = (load_cifar100(data_dir, labels=kind) for kind in ("fine", "coarse"))
    np.testing.assert_array_equal(fine.data, PIXELS)
    np.testing.assert_array_equal(coarse.data, PIXELS)
    np.testing.assert_array_equal(fine.target, 99 - CLASSES)
    np.testing.assert_array_equal(coarse.target, 19 - CLASSES)
    assert (len(fine.target_names), len(coarse.target_names)) == (100, 20)
    assert fine.target_names[fine.target[0]] == "worm"
    assert coarse.target_names[coarse.target[0]] == "vehicles_2"
    np.testing.assert_array_equal(
        load_cifar100(data_dir, subset="test").target, fine.target
    )


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3_are_read_too(tmp_path, protocol):
    folder = write_cifar100(tmp_path / "cifar-100-python", True)
    fine, coarse = (99 - CLASSES).tolist(), (19 - CLASSES).tolist()
    for order in "CF":
        batch = {b"fine_labels": fine, b"coarse_labels": coarse}
        batch[b"data"] = np.array(PIXELS, order=order)
        (folder / "train").write_bytes(pickle.dumps(batch, protocol))
        cifar = load_cifar100(tmp_path)
        np.testing.assert_array_equal(cifar.data, PIXELS)
        np.testing.assert_array_equal(cifar.target, fine)


def test_python_2_is_written_as_numpy_reads_it():
    batch = python2_batch(PIXELS, {"labels": CLASSES.tolist()})
    read = pickle.loads(batch, encoding="bytes")
    np.testing.assert_array_equal(read[b"data"], PIXELS)
    assert read[b"labels"] == CLASSES.tolist()


def test_cifar10_names_what_is_missing(tmp_path):
    folder = write_cifar10(tmp_path / "cifar-10-batches-py", True)
    (folder / "data_batch_3").unlink()
    message = r"Found no data_batch_3\. .* from https://www.cs.toronto.edu/~kriz/.* or"
    with pytest.raises(FileNotFoundError, match=message):
        load_cifar10(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"Found no train\. Looked in"
    ) as caught:
        load_cifar100(tmp_path)
    assert "download" not in str(caught.value)


# Where the pixels' own bytes are cut off every 37th place will do.
def places(size):
    return sorted(
        {*range(min(size, 300)), *range(0, size, 37), *range(size - 90, size)}
    )


@pytest.mark.parametrize("python", [True, False])
def test_a_cut_cifar_is_never_read_wrongly(tmp_path, python):
    folder = write_cifar100(tmp_path, python, PIXELS[:3])
    path = folder / ("train" if python else "train.bin")
    whole = path.read_bytes()
    for size in places(len(whole)):
        path.write_bytes(whole[:size])
        if size and not python and size % 3074 == 0:
            n = size // 3074  # whole records are a subset, which is allowed
            np.testing.assert_array_equal(load_cifar100(folder).data, PIXELS[:n])
        else:
            with pytest.raises(ValueError, match=f"{path} is damaged"):
                load_cifar100(folder)


def test_a_cut_archive_is_never_read(tmp_path):
    folder = write_cifar100(tmp_path / "cifar-100-python", True, PIXELS[:2] * 0)
    path = archive(folder, tmp_path / "other.tar.gz")
    whole, path = path.read_bytes(), tmp_path / "x" / "cifar-100-python.tar.gz"
    path.parent.mkdir()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path}.* is damaged"):
            load_cifar100(path.parent)
    path.write_bytes(whole)
    assert not load_cifar100(path.parent).data.any()


def test_archives_are_read_in_memory_and_within_limits(tmp_path):
    path = tmp_path / "cifar-100-python.tar.gz"
    member = tarfile.TarInfo("cifar-100-python/train")
    member.size = 2**40
    path.write_bytes(gzip.compress(member.tobuf()))
    with pytest.raises(ValueError, match="would have 1099511627776 bytes"):
        load_cifar100(tmp_path)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(gzip.compress(member.tobuf() + bytes(1024)))
    with pytest.raises(ValueError, match="it lacks cifar-100-python/train"):
        load_cifar100(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


NO_DTYPE = python2_array(PIXELS).replace(b"cnumpy\ndtype", b"cnumpy\nndarray")
LISTS = {"fine_labels": [1] * 10, "coarse_labels": [1] * 10}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            python2_batch(PIXELS, LISTS | {"fine_labels": [100] * 10}),
            "below 100, got 10",
        ),
        (
            python2_batch(PIXELS, LISTS | {"coarse_labels": [20] * 10}),
            "below 20, got 20",
        ),
        (python2_batch(PIXELS, LISTS | {"fine_labels": [1] * 9}), "no list of 10 numb"),
        (
            python2_batch(PIXELS, LISTS | {"fine_labels": [300] * 10}),
            "that is no label",
        ),
        (python2_batch(PIXELS, {"labels": [1] * 10}), "coarse_labels is no list"),
        (python2_batch(PIXELS[:, :-1], LISTS), "no array of images of 3072"),
        (python2_batch(PIXELS[:0], LISTS), "no array of images of 3072"),
        (python2_batch(PIXELS, LISTS, python2_array(PIXELS, b"i1")), "array of uint8"),
        (python2_batch(PIXELS, LISTS, python2_array(PIXELS, b"O8")), "array of uint8"),
        (
            python2_batch(PIXELS, LISTS, python2_array(PIXELS, shape=(20, 1536))),
            "no array of images",
        ),
        (python2_batch(PIXELS, LISTS, NO_DTYPE), "data is no array of uint8"),
        (python2_batch(PIXELS, LISTS, b"K\x01"), "data is no array"),
        (python2_batch(PIXELS, LISTS)[:-1] + b"K\x01.", "does not end where it should"),
        (python2_batch(PIXELS, LISTS) + b"x", "does not end where it should"),
        (pickle.dumps([1, 2], 2), "it holds no dict"),
        (pickle.dumps({b"data": 1.5}, 2), "holds BINFLOAT, not plain data"),
        (b"nothing", "is damaged"),
    ],
)
def test_a_wrong_batch_is_refused(tmp_path, batch, message):
    folder = write_cifar100(tmp_path / "cifar-100-python", True)
    (folder / "train").write_bytes(batch)
    with pytest.raises(ValueError, match=message) as caught:
        load_cifar100(tmp_path)
    assert str(folder / "train") in str(caught.value)


class Runs:
    """Pickled so that loading it would call something."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch ran"), r"(posix|nt)\.system"),
        ((eval, "open('ran', 'w')"), r"(builtins|__builtin__)\.eval"),
        ((np.load, "ran"), r"numpy\.load"),
        ((os.mkdir, "ran"), r"(posix|nt)\.mkdir"),
        ((getattr, np, "load"), r"(builtins|__builtin__)\.getattr"),
    ],
)
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(
    tmp_path, monkeypatch, call, name, protocol
):
    if call[0] is getattr:
        call = (getattr, "text", "upper")
    monkeypatch.chdir(tmp_path)
    folder = write_cifar100(tmp_path / "cifar-100-python", True)
    hostile = pickle.dumps({b"data": Runs(*call)}, protocol)
    (folder / "train").write_bytes(hostile)
    with pytest.raises(ValueError, match=rf"asks for {name}, .* nothing was run"):
        load_cifar100(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_hostile_pickle_would_have_run(tmp_path):
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(tmp_path / "ran"))))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        # Sizes that are not there, a memo of 2**31 places, persistent ids.
        b"\x80\x02T\xff\xff\xff\x7f.",
        b"\x80\x02}r\xff\xff\xff\x7f0.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02Pid\n.",
        b"S'\\z'\n.",
        # Objects made and set by other ways than REDUCE.
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02(cnumpy\nndarray\no.",
        b"\x80\x02(inumpy\nndarray\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"\x80\x02cnumpy\ndtype\n(K\x01K\x02tb.",
        # Taking what was never put.
        b"\x80\x02h\x05.",
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02e.",
        b"\x80\x02(.",
        b"\x80\x02.",
        # Wrong kinds.
        b"\x80\x02}]K\x01s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02cnumpy\nndarray\nK\x01R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
        b"\x80\x02c_codecs\nencode\n)R.",
        b"L" + b"9" * 10_000 + b"L\n.",
        b"cnumpy\n_codecs encode\n.",
    ],
)
def test_pickles_of_anything_else_are_refused(hostile):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"."):
        load_pickle(hostile)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "value",
    [
        b"]q\x00" + b"\x85" * 200_000,  # a list in a tuple in a tuple ...
        b"]q\x00h\x00a",  # a list that holds itself
        b"cnumpy\ndtype\n" * 50_000 + b")R" + b"\x85R" * 49_999,
    ],
    ids=["deep", "endless", "calls of calls"],
)
def test_deep_and_endless_nesting_is_harmless(tmp_path, value):
    folder = write_cifar100(tmp_path / "cifar-100-python", True)
    (folder / "train").write_bytes(b"\x80\x02}" + text(b"data") + value + b"s.")
    with pytest.raises(ValueError, match="data is no array"):
        load_cifar100(tmp_path)
    labels = text(b"coarse_labels") + value + b"s"
    data = text(b"data") + python2_array(PIXELS) + b"s"
    (folder / "train").write_bytes(b"\x80\x02}" + labels + data + b".")
    with pytest.raises(ValueError, match="coarse_labels is no list of 10 numbers"):
        load_cifar100(tmp_path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(min_size=1),
    lambda some: (
        st.lists(some)
        | st.lists(some).map(tuple)
        | st.dictionaries(st.text(max_size=3), some)
    ),
)


@given(PLAIN, st.integers(2, 4))
def test_plain_data_are_what_pickle_makes_of_them(plain, protocol):
    assert load_pickle(pickle.dumps(plain, protocol)) == plain


@settings(max_examples=300)
@given(st.data())
def test_no_broken_pickle_raises_anything_else(data):
    """Bytes changed at random places of the head, and opcodes in any order."""
    whole = bytearray(python2_batch(PIXELS[:1], {"labels": [3]}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 240) | st.integers(-4, -1))
        whole[place] = data.draw(st.integers(0, 255))
    for pickled in (bytes(whole), data.draw(st.binary(max_size=60)) + b"."):
        try:
            load_pickle(pickled)
        except ValueError:
            continue


# Tiny-ImageNet


@pytest.mark.parametrize("itself", [True, False])
def test_tiny_imagenet(tmp_path, itself):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    data_dir = folder if itself else tmp_path
    for _ in range(2):
        train = load_tiny_imagenet(data_dir)
        assert isinstance(train.data, np.memmap)
        assert train.image_shape == (3, 64, 64)
        assert train.data.shape == (4, 3 * 64 * 64)
        assert train.target.tolist() == [0, 0, 1, 1]
        assert train.target_names.tolist() == ["n00000002", "cat, feline"]
    color, grey = train.data[:2].reshape(2, 3, 64, 64).astype(int)
    # The right half has another colour in each channel; JPEG is off by a little.
    np.testing.assert_allclose(color[:, 10, 50], [200, 100, 30], atol=4)
    np.testing.assert_allclose(color[:, 10, 10], 0, atol=4)
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()
    test = load_tiny_imagenet(data_dir, subset="test")
    assert test.target.tolist() == [0, 0, 1]
    np.testing.assert_allclose(test.data[:, 0], [160, 0, 80], atol=4)


def test_a_cut_jpeg_is_never_read_wrongly(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    right = load_tiny_imagenet(tmp_path).data.copy()
    path = folder / "train/n00000002/images/n00000002_0.JPEG"
    whole = path.read_bytes()
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            data = load_tiny_imagenet(tmp_path).data
        except ValueError as error:
            refused += f"{path} is damaged" in str(error)
        else:
            np.testing.assert_array_equal(data, right)
    assert refused > 0.9 * len(whole)  # Pillow needs no end-of-image marker


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt"])
def test_a_cut_list_is_never_read_wrongly(tmp_path, name):
    path = write_tiny_imagenet(tmp_path) / name
    subset = "train" if name == "wnids.txt" else "test"
    right = load_tiny_imagenet(tmp_path, subset=subset).target
    whole = path.read_bytes()
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            target = load_tiny_imagenet(tmp_path, subset=subset).target
        except ValueError as error:
            refused += f"{path} is damaged" in str(error)
        else:
            np.testing.assert_array_equal(target, right)
    assert refused > 0.8 * len(whole)


@pytest.mark.parametrize(
    ("name", "contents", "subset", "message"),
    [
        ("wnids.txt", b"n00000002\nn00000002\n", "train", "different WordNet numbers"),
        ("wnids.txt", b"../../etc\n", "train", "got '../../etc'"),
        ("wnids.txt", b"n00000002\n", "train", "it lacks the class n00000001"),
        ("wnids.txt", b"\xff\xff", "train", "wnids.txt is damaged"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn9\n", "test", "unknown class 'n9'"),
        (
            "val/val_annotations.txt",
            b"../val_0.JPEG\tn00000001\n",
            "test",
            "'../val_0.JPEG' is no name",
        ),
        (
            "val/val_annotations.txt",
            b"val_0.JPEG\tn00000001\n" * 2,
            "test",
            "comes twice",
        ),
        ("val/val_annotations.txt", b"", "test", "leaves out .*val_0.JPEG"),
        ("val/images/val_9.JPEG", b"", "test", "leaves out .*val_9.JPEG"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, name, contents, subset, message):
    (write_tiny_imagenet(tmp_path) / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        load_tiny_imagenet(tmp_path, subset=subset)


def test_images_of_another_size_or_format_are_refused(tmp_path):
    path = write_tiny_imagenet(tmp_path) / "val/images/val_0.JPEG"
    jpeg(path, side=32)
    with pytest.raises(
        ValueError, match=r"val_0.JPEG .* it has \(32, 32\) pixels, not"
    ):
        load_tiny_imagenet(tmp_path, subset="test")
    Image.new("RGB", (64, 64)).save(path, "PNG")
    with pytest.raises(ValueError, match=r"val_0.JPEG .* cannot be decoded"):
        load_tiny_imagenet(tmp_path, subset="test")
    # A header of 65,500 by 65,500 pixels: no memory is taken for them.
    jpeg(path)
    whole = path.read_bytes()
    place = whole.index(b"\xff\xc0") + 5
    path.write_bytes(whole[:place] + b"\xff\xdc\xff\xdc" + whole[place + 4 :])
    with pytest.raises(ValueError, match=r"val_0.JPEG .* cannot be decoded"):
        load_tiny_imagenet(tmp_path, subset="test")


@pytest.mark.parametrize(
    ("lost", "subset"),
    [
        ("wnids.txt", "train"),
        ("val/val_annotations.txt", "test"),
        ("val/images/val_1.JPEG", "test"),
    ],
)
def test_missing_files_of_tiny_imagenet_are_named(tmp_path, lost, subset):
    (write_tiny_imagenet(tmp_path) / lost).unlink()
    name = lost.rpartition("/")[2]
    with pytest.raises(FileNotFoundError, match=rf"no {name}. .* http://cs231n.stanf"):
        load_tiny_imagenet(tmp_path, subset=subset)


def test_a_class_without_images_is_named(tmp_path):
    for path in (write_tiny_imagenet(tmp_path) / "train/n00000001/images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Looked in: .*n00000001/images"):
        load_tiny_imagenet(tmp_path)


def test_without_words_the_numbers_are_the_names(tmp_path):
    (write_tiny_imagenet(tmp_path) / "words.txt").unlink()
    names = load_tiny_imagenet(tmp_path).target_names
    assert names.tolist() == ["n00000002", "n00000001"]


def test_without_pillow_it_is_named(tmp_path, monkeypatch):
    write_tiny_imagenet(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="needs Pillow: pip install pillow"):
        load_tiny_imagenet(tmp_path)


# The cache


def test_the_cache_is_used_and_follows_its_sources(tmp_path):
    path, _ = write_mnist(tmp_path, end=".gz")
    load_mnist(tmp_path)
    (kept,) = files_in(tmp_path)
    kept_path = tmp_path / ".skvaecert" / kept
    time = kept_path.stat().st_mtime_ns
    load_mnist(tmp_path)
    assert kept_path.stat().st_mtime_ns == time
    # Other bytes, even of the same size, give another key; the old file goes.
    path.write_bytes(gzip.compress(idx(255 - IMAGES.reshape(-1, 28, 28))))
    os.utime(path, ns=(time, time + 10**9))
    np.testing.assert_array_equal(load_mnist(tmp_path).data, 255 - IMAGES)
    (other,) = files_in(tmp_path)
    assert other != kept


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:50],
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: b"x" + whole[1:],
        lambda whole: npy(IMAGES[:2]),
        lambda whole: npy(IMAGES[:, :-1]),
        lambda whole: npy(IMAGES.astype(float)),
        lambda whole: npy(np.asfortranarray(IMAGES)),
        lambda whole: npy(np.array([Runs(os.mkdir, "ran")])),
        lambda whole: whole.replace(b"(3, 784)", b"(3, 7**9"),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path, end=".gz")
    load_mnist(tmp_path)
    (kept,) = (tmp_path / ".skvaecert").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    np.testing.assert_array_equal(load_mnist(tmp_path).data, IMAGES)
    assert kept.read_bytes() == whole
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        np.full((10, 3073), 10, np.uint8),  # labels out of range
        np.zeros((10, 3072), np.uint8),
        np.zeros((0, 3073), np.uint8),
        np.zeros(3073, np.uint8),
    ],
)
def test_a_wrong_cache_of_cifar_is_made_anew(tmp_path, wrong):
    write_cifar10(tmp_path, True)
    load_cifar10(tmp_path)
    (kept,) = (tmp_path / ".skvaecert").iterdir()
    kept.write_bytes(npy(wrong))
    np.testing.assert_array_equal(load_cifar10(tmp_path).target, CLASSES)


@pytest.mark.parametrize("call", ["mkdir", "replace", "write"])
def test_where_nothing_can_be_written_rows_are_in_memory(tmp_path, monkeypatch, call):
    def refuse(*_, **__):
        raise OSError("No space left on device")

    write_mnist(tmp_path, end=".gz")
    write_tiny_imagenet(tmp_path)
    target = {"mkdir": Path, "replace": os, "write": np.lib.format}[call]
    name = "write_array_header_1_0" if call == "write" else call
    monkeypatch.setattr(target, name, refuse)
    data = load_mnist(tmp_path).data
    assert type(data) is np.ndarray
    np.testing.assert_array_equal(data, IMAGES)
    assert load_tiny_imagenet(tmp_path).data.shape == (4, 12288)
    assert not files_in(tmp_path)


def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    write_tiny_imagenet(tmp_path)
    monkeypatch.setattr("skvaecert._readers._jpeg", stop)
    with pytest.raises(KeyboardInterrupt):
        load_tiny_imagenet(tmp_path)
    assert not files_in(tmp_path)
    # Nor does one that could not even clean up: its file has another name.
    monkeypatch.undo()
    (tmp_path / ".skvaecert/tiny-imagenet-train-0.npy.0.tmp").write_bytes(b"half")
    assert load_tiny_imagenet(tmp_path).data.any()


# Downloads


@pytest.fixture
def openml(monkeypatch):
    """Six rows on OpenML, four of them to train on; collects what was asked for."""
    calls = []

    def fetch(name, **options):
        calls.append((name, options))
        n_features = datasets._OPENML[name].n_features
        data = (np.arange(6 * n_features) % 256).reshape(6, n_features).astype(float)
        return Bunch(data=data, target=np.array(list("503194"), dtype=object))

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    small = {
        name: about._replace(n_samples=6, n_train=4)
        for name, about in datasets._OPENML.items()
    }
    monkeypatch.setattr(datasets, "_OPENML", small)
    return calls


def test_the_originals_are_cut_where_they_were():
    assert datasets._OPENML["mnist_784"] == (70_000, 784, 60_000)
    assert datasets._OPENML["CIFAR_10"] == (60_000, 3072, 50_000)


@pytest.mark.parametrize(
    ("load", "name", "n_features"),
    [(load_mnist, "mnist_784", 784), (load_cifar10, "CIFAR_10", 3072)],
)
def test_downloads_are_cut_converted_and_kept(tmp_path, openml, load, name, n_features):
    train = load(tmp_path, download=True)
    test = load(tmp_path, subset="test", download=True)
    rows = (np.arange(6 * n_features) % 256).reshape(6, n_features)
    np.testing.assert_array_equal(np.vstack([train.data, test.data]), rows)
    assert train.target.tolist() == [5, 0, 3, 1]
    assert test.target.tolist() == [9, 4]
    assert train.data.dtype == np.uint8
    assert isinstance(test.data, np.memmap)
    options = {"version": 1, "data_home": tmp_path, "as_frame": False, "parser": "auto"}
    assert openml == [(name, options)]


def test_files_are_taken_before_a_download(tmp_path, openml):
    write_mnist(tmp_path)
    write_cifar10(tmp_path, False)
    np.testing.assert_array_equal(load_mnist(tmp_path, download=True).data, IMAGES)
    np.testing.assert_array_equal(load_cifar10(tmp_path, download=True).data, PIXELS)
    assert not openml


@pytest.mark.parametrize(
    ("load", "page"), [(load_mnist, "yann.lecun.com"), (load_cifar10, "cs.toronto.edu")]
)
def test_a_failed_download_passes_with_a_note(tmp_path, monkeypatch, load, page):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise OSError("no network")

    monkeypatch.setattr(datasets, "fetch_openml", fail)
    with pytest.raises(OSError, match="no network") as caught:
        load(tmp_path, download=True)
    (note,) = caught.value.__notes__
    assert page in note
    assert str(tmp_path) in note
    assert calls == [1]


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (np.zeros((5, 784)), list("50319"), "must have shape .* got .5, 784"),
        (np.full((6, 784), 0.5), list("503194"), "integers from 0 to 255"),
        (np.full((6, 784), 256), list("503194"), "integers from 0 to 255"),
        (np.full((6, 784), np.nan), list("503194"), "integers from 0 to 255"),
        (np.zeros((6, 784)), ["10"] * 6, "integers from 0 to 9"),
    ],
)
def test_other_data_from_openml_are_refused(
    tmp_path, monkeypatch, openml, data, target, message
):
    bunch = Bunch(data=data, target=np.array(target, dtype=object))
    monkeypatch.setattr(datasets, "fetch_openml", lambda *_, **__: bunch)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path, download=True)
    assert not files_in(tmp_path)


# What the estimators make of them


@pytest.fixture(params=["mnist", "mnist.gz", "cifar"])
def rows(request, tmp_path):
    """Forty rows of uint8 mapped from the disk: as they are, unpacked, with a gap."""
    images = RNG.integers(256, size=(40, 784), dtype=np.uint8)
    if request.param == "cifar":
        write_cifar100(tmp_path, False, PIXELS)
        mapped = load_cifar100(tmp_path).data
    else:
        end = request.param.removeprefix("mnist")
        write_mnist(tmp_path, images, np.arange(40) % 10, end=end)
        mapped = load_mnist(tmp_path).data
    assert isinstance(mapped, np.memmap)
    return mapped


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_estimators_fit_on_mapped_rows_as_on_arrays(rows, likelihood):
    def latent_means(X):
        teacher = GMMTeacher(n_components=2, covariance_type="spherical")
        vae = CertifiedVAE(
            teacher,
            latent_dim=2,
            hidden_sizes=(8,),
            likelihood=likelihood,
            max_epochs=1,
            random_state=0,
        )
        return vae.fit(X).transform(X)

    np.testing.assert_allclose(
        latent_means(rows), latent_means(np.array(rows)), atol=1e-6
    )


def test_teachers_fit_on_mapped_rows_as_on_arrays(rows):
    teacher = GMMTeacher(n_components=2, covariance_type="spherical", random_state=0)
    mapped, held = (teacher.fit(X).transform(X) for X in (rows, np.array(rows)))
    np.testing.assert_allclose(mapped, held, atol=1e-6)


def test_rows_go_through_pipelines(tmp_path):
    write_mnist(tmp_path, RNG.integers(256, size=(40, 784)), np.arange(40) % 10)
    vae = CertifiedVAE(
        GMMTeacher(n_components=2, covariance_type="spherical"),
        latent_dim=2,
        hidden_sizes=(8,),
        likelihood="bernoulli",
        max_epochs=1,
        random_state=0,
    )
    for bunch in (load_mnist(tmp_path), load_digits()):
        pipeline = make_pipeline(MinMaxScaler(clip=True), CollapseCertifier(vae))
        pipeline.fit(bunch.data, bunch.target)
        assert pipeline.transform(bunch.data).shape == (len(bunch.data), 2)
