"""Readers of the official files of MNIST, CIFAR-10, CIFAR-100 and Tiny-ImageNet.

Each reader takes the folder of the files and returns a Bunch. `data` has uint8 samples
of shape (n_samples, channels * height * width), `target` the labels, counted from 0,
and `image_shape` is (channels, height, width).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skvaecert.datasets import DatasetSamples

N_CLASSES = 200  # of Tiny-ImageNet


def read_mnist(folder, subset="train"):
    """Read MNIST from its IDX files, compressed (.gz) or not."""
    stem = {"train": "train", "test": "t10k"}[subset]
    images = read_idx(Path(folder) / f"{stem}-images-idx3-ubyte", 28, 28)
    labels = read_idx(Path(folder) / f"{stem}-labels-idx1-ubyte")
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} must have as many images as labels in its {stem} files, got "
            f"{len(images)} images and {len(labels)} labels."
        )
    return bunch(images.reshape(len(images), -1), labels, (1, 28, 28))


def read_cifar10(folder, subset="train"):
    """Read CIFAR-10 from its binary version, `cifar-10-batches-bin`."""
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names = {"train": train, "test": ["test_batch.bin"]}[subset]
    records = [read_cifar(Path(folder) / name, [10]) for name in names]
    return cifar_bunch(np.concatenate(records))


def read_cifar100(folder, subset="train"):
    """Read CIFAR-100, with fine labels, from its binary version, `cifar-100-binary`."""
    name = {"train": "train.bin", "test": "test.bin"}[subset]
    return cifar_bunch(read_cifar(Path(folder) / name, [20, 100]))


def read_tiny_imagenet(folder, subset="train"):
    """Read Tiny-ImageNet, `tiny-imagenet-200`; the test set is its validation images.

    `data` is a DatasetSamples, which decodes an image when it is indexed.
    """
    listed = Path(folder) / "wnids.txt"
    classes = {wnid: i for i, wnid in enumerate(listed.read_text().split())}
    if len(classes) != N_CLASSES:
        raise ValueError(
            f"{listed} must list {N_CLASSES} different WordNet ids, got {len(classes)}."
        )
    find = {"train": tiny_imagenet_train, "test": tiny_imagenet_val}[subset]
    found = find(Path(folder) / {"train": "train", "test": "val"}[subset], classes)
    return bunch(DatasetSamples(Jpegs(found)), [*found.values()], (3, 64, 64))


def bunch(data, target, image_shape):
    """Return samples, labels and image shape as a Bunch, as scikit-learn does."""
    return Bunch(
        data=data, target=np.asarray(target, np.int64), image_shape=image_shape
    )


def read_bytes(path):
    """Return the bytes of a file, memory-mapped, or decompressed from a .gz file."""
    try:
        if path.suffix == ".gz":
            return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        return np.memmap(path, np.uint8, "r")
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is empty or damaged: {error}.") from error


def read_idx(path, *shape):
    """Return the items of this shape in an IDX file of bytes."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    contents = read_bytes(path)
    n_head, size = 8 + 4 * len(shape), math.prod(shape)
    n = max(len(contents) - n_head, 0) // size
    # Type (8 for bytes) and number of dimensions, then the dimensions, big-endian.
    head = struct.pack(f">{2 + len(shape)}I", 0x801 + len(shape), n, *shape)
    if len(contents) != n_head + n * size or contents[:n_head].tobytes() != head:
        raise ValueError(
            f"{path} must be an IDX file of bytes, of shape {('n', *shape)}: with "
            f"{len(contents)} bytes it must begin with {head.hex(' ', 4)}, got "
            f"{contents[:n_head].tobytes().hex(' ', 4)}."
        )
    return contents[n_head:].reshape(n, *shape)


def read_cifar(path, n_classes):
    """Return the records of a CIFAR file, each with one or two labels and an image."""
    size = len(n_classes) + 3 * 32 * 32
    contents = read_bytes(path)
    if len(contents) % size:
        raise ValueError(
            f"{path} must have a multiple of {size} bytes, got {len(contents)}."
        )
    records = contents.reshape(-1, size)
    if (records[:, : len(n_classes)] >= n_classes).any():
        raise ValueError(
            f"{path} must begin each {size} bytes with labels below {n_classes}, got "
            f"labels up to {records[:, : len(n_classes)].max(axis=0).tolist()}."
        )
    return records


def cifar_bunch(records):
    """Return images with their labels, or with the fine labels if there are two."""
    return bunch(records[:, -3 * 32 * 32 :], records[:, -3 * 32 * 32 - 1], (3, 32, 32))


def tiny_imagenet_train(folder, classes):
    """Return the class of each training image, by its path."""
    found = {wnid: sorted((folder / wnid).glob("images/*.JPEG")) for wnid in classes}
    missing = [wnid for wnid, paths in found.items() if not paths]
    if missing:
        raise ValueError(
            f"{folder} must have images of all {N_CLASSES} classes, got none in "
            f"{missing[0]}/images."
        )
    return {path: classes[wnid] for wnid, paths in found.items() for path in paths}


def tiny_imagenet_val(folder, classes):
    """Return the class of each validation image, by its path."""
    listed = folder / "val_annotations.txt"
    # Each line has a name, a WordNet id and a bounding box, separated by tabs.
    lines = [line.split("\t")[:2] for line in listed.read_text().splitlines()]
    found = {
        folder / "images" / name: classes.get(wnid)
        for name, wnid in (line for line in lines if len(line) == 2)
    }
    if None in found.values() or {*found} != {*folder.glob("images/*.JPEG")}:
        raise ValueError(
            f"{listed} must list the images in {folder / 'images'}, each with a "
            "WordNet id of wnids.txt."
        )
    return found


class Jpegs:
    """A torch Dataset of color images from JPEG files, 64 pixels high and wide."""

    def __init__(self, paths):
        self.paths = list(paths)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        from PIL import Image

        path = self.paths[i]
        try:
            with Image.open(path, formats=["JPEG"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path} must be a whole JPEG file: {error}.") from error
        if pixels.shape != (64, 64, 3):
            raise ValueError(
                f"{path} must have (64, 64) pixels, got {pixels.shape[:2]}."
            )
        return pixels.transpose(2, 0, 1)
