"""Official files are read as they are, and samples drawn from them stay apart."""

import gzip
import io
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def write_mnist(folder, end=""):
    """Write files of MNIST's format, of noise; return images and labels for tests."""
    rng, opened = np.random.default_rng(0), gzip.open if end else open
    for name, n in (("train", 90), ("t10k", 60)):
        images = rng.integers(256, size=(n, 784), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        head = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        with opened(folder / f"{name}-images-idx3-ubyte{end}", "wb") as file:
            file.write(head + images.tobytes())
        head = struct.pack(">4BI", 0, 0, 8, 1, n)
        with opened(folder / f"{name}-labels-idx1-ubyte{end}", "wb") as file:
            file.write(head + labels.tobytes())
    return images, labels


def write_cifar(folder, names, *n_classes):
    """Write files of CIFAR's binary version; return those of the last one."""
    rng = np.random.default_rng(0)
    for name in names:
        images = rng.integers(256, size=(7, 3072), dtype=np.uint8)
        labels = [rng.integers(n, size=(7, 1), dtype=np.uint8) for n in n_classes]
        (folder / name).write_bytes(np.hstack([*labels, images]).tobytes())
    return images, labels[-1].ravel()


def write_cifar10(folder):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return write_cifar(folder, [*names, "test_batch.bin"], 10)


def write_cifar100(folder):
    return write_cifar(folder, ["train.bin", "test.bin"], 20, 100)


def jpeg(mode, color, side=64, form="JPEG"):
    file = io.BytesIO()
    Image.new(mode, (side, side), color).save(file, form)
    return file.getvalue()


def write_tiny_imagenet(folder):
    """Write one red or gray image for each of 200 classes, and three to test on."""
    wnids = [f"n{i:08d}" for i in range(200, 0, -1)]
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    both = jpeg("RGB", (200, 10, 20)), jpeg("L", 90)
    for i, wnid in enumerate(wnids):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        path = folder / "train" / wnid / "images" / f"{wnid}_0.JPEG"
        path.write_bytes(both[i % 2])
    (folder / "val" / "images").mkdir(parents=True)
    labels, lines = [150, 3, 150], []
    for i, label in enumerate(labels):
        (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(both[i % 2])
        lines.append(f"val_{i}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    pixels = np.repeat([[200, 10, 20], [90, 90, 90]], 64 * 64, axis=1)
    return pixels[[0, 1, 0]], labels


FORMATS = {
    "mnist": (write_mnist, (1, 28, 28), 90),
    "mnist.gz": (partial(write_mnist, end=".gz"), (1, 28, 28), 90),
    "cifar10": (write_cifar10, (3, 32, 32), 35),
    "cifar100": (write_cifar100, (3, 32, 32), 7),
    "tiny-imagenet": (write_tiny_imagenet, (3, 64, 64), 200),
}


@pytest.fixture
def read(papers):
    """Read files by the name of their format."""
    readers = papers("lab").READERS
    return lambda name, *args: readers[name.removesuffix(".gz")][0](*args)


@pytest.mark.parametrize("name", FORMATS)
def test_official_files_are_read(read, tmp_path, name):
    write, image_shape, n_train = FORMATS[name]
    images, labels = write(tmp_path)
    train, test = (read(name, tmp_path, subset) for subset in ("train", "test"))
    assert train.image_shape == test.image_shape == image_shape
    assert len(train.data) == len(train.target) == n_train
    assert train.data.shape == (n_train, np.prod(image_shape))
    assert test.data[:].dtype == np.uint8
    assert test.target.dtype == np.int64
    np.testing.assert_array_equal(test.target, labels)
    # JPEG may lose two of 255.
    lost = 2 if name == "tiny-imagenet" else 0
    np.testing.assert_allclose(test.data[:].astype(int), images, rtol=0, atol=lost)


def test_files_of_cifar10_are_joined_in_order(read, tmp_path):
    write_cifar10(tmp_path)
    train = read("cifar10", tmp_path)
    third = np.fromfile(tmp_path / "data_batch_3.bin", np.uint8).reshape(7, 3073)
    np.testing.assert_array_equal(train.target[14:21], third[:, 0])
    np.testing.assert_array_equal(train.data[14:21], third[:, 1:])


def test_classes_of_tiny_imagenet_are_in_the_order_of_the_list(read, tmp_path):
    write_tiny_imagenet(tmp_path)
    train = read("tiny-imagenet", tmp_path)
    np.testing.assert_array_equal(train.target, np.arange(200))
    np.testing.assert_allclose(train.data[1], 90, atol=2)


def cut(n):
    return lambda contents: contents[:-n]


def at(place, byte):
    return lambda contents: contents[:place] + bytes([byte]) + contents[place + 1 :]


def flip(place):
    return lambda contents: at(place, contents[place] ^ 255)(contents)


def instead(*args):
    return lambda contents: jpeg(*args)


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("mnist", "train-images-idx3-ubyte", cut(1), "must be an IDX file"),
        ("mnist", "train-images-idx3-ubyte", cut(784), "00000059 .*0000005a"),
        ("mnist", "train-images-idx3-ubyte", cut(90 * 784 + 3), "must be an IDX file"),
        ("mnist", "train-images-idx3-ubyte", at(2, 9), "must be .*, got 00000903"),
        ("mnist", "train-images-idx3-ubyte", at(11, 27), "shape .'n', 28, 28"),
        ("mnist", "train-labels-idx1-ubyte", at(3, 3), "must be an IDX file"),
        ("mnist", "train-labels-idx1-ubyte", lambda contents: b"", "is empty"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", cut(9), "damaged"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", at(0, 0), "damaged"),
        ("mnist.gz", "train-images-idx3-ubyte.gz", flip(500), "damaged"),
        ("cifar10", "data_batch_3.bin", cut(1), "a multiple of 3073 bytes, got 21510"),
        ("cifar10", "data_batch_3.bin", at(3073, 10), r"below \[10\], got .* \[10\]"),
        ("cifar100", "train.bin", cut(3073), "a multiple of 3074 bytes"),
        ("cifar100", "train.bin", at(0, 20), r"labels below \[20, 100\], got"),
        ("cifar100", "train.bin", lambda contents: b"", "is empty"),
        ("tiny-imagenet", "wnids.txt", cut(10), "200 different WordNet ids, got 199"),
        ("tiny-imagenet", "wnids.txt", cut(3), "none in n000000/images"),
        ("tiny-imagenet", "val/val_annotations.txt", cut(30), "must list the images"),
        ("tiny-imagenet", "val/val_annotations.txt", cut(50), "must list the images"),
        ("tiny-imagenet", "val/images/val_1.JPEG", cut(99), "must be a whole JPEG"),
        ("tiny-imagenet", "val/images/val_1.JPEG", instead("L", 9, 32), r"\(32, 32\)"),
        ("tiny-imagenet", "val/images/val_1.JPEG", instead("L", 9, 64, "PNG"), "JPEG"),
    ],
)
def test_damaged_files_are_refused(read, tmp_path, name, file, damage, message):
    FORMATS[name][0](tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    subset = "test" if file.startswith("val") else "train"
    with pytest.raises(ValueError, match=message) as caught:
        read(name, tmp_path, subset).data[:]
    # Where the list of classes is cut, images of one are missing.
    named = tmp_path / "train" if "none in" in message else path
    assert str(named) in str(caught.value)


def test_images_and_labels_of_mnist_belong_together(read, tmp_path):
    write_mnist(tmp_path)
    name = "{}-labels-idx1-ubyte".format
    (tmp_path / name("t10k")).rename(tmp_path / name("train"))
    with pytest.raises(ValueError, match="got 90 images and 60 labels"):
        read("mnist", tmp_path)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar10-conv"])
def test_samples_to_train_on_to_tune_on_and_to_test_on_are_others(
    papers, tmp_path, name
):
    folder = papers("lab").READERS.get(name.removesuffix("-conv"), ("", ""))[1]
    if folder:
        (tmp_path / folder).mkdir()
        FORMATS[name.removesuffix("-conv")][0](tmp_path / folder)
    load = papers("lab").load_samples
    samples = load(name, 20, 7, 0, str(tmp_path))
    parts = [samples.train, samples.valid, samples.test]
    assert [*map(len, parts)] == [20, 7, 7]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 34
    assert samples.train.dtype == np.float32
    assert 0 <= samples.train.min() < samples.train.max() <= 1
    # The same again; fewer are the first of more; another seed has others.
    load.cache_clear()
    for again in (load(name, 20, 7, 0, str(tmp_path)), samples):
        np.testing.assert_array_equal(again.train, samples.train)
    fewer = load(name, 9, 7, 0, str(tmp_path))
    np.testing.assert_array_equal(fewer.train, samples.train[:9])
    np.testing.assert_array_equal(fewer.labels, samples.labels[:9])
    np.testing.assert_array_equal(fewer.test, samples.test)
    other = load(name, 20, 7, 1, str(tmp_path))
    assert not np.array_equal(other.train, samples.train)


def test_drawn_samples_keep_their_labels(papers, tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    samples = papers("lab").load_samples("mnist", 50, 30, 0, str(tmp_path))
    for subset, drawn, labels in (
        ("train", samples.train, samples.labels),
        ("test", samples.test, samples.test_labels),
    ):
        images = papers("lab").READERS["mnist"][0](tmp_path / "mnist", subset)
        place = {image.tobytes(): i for i, image in enumerate(images.data)}
        pixels = np.rint(255 * drawn).astype(np.uint8)
        places = [place[image.tobytes()] for image in pixels]
        np.testing.assert_array_equal(labels, images.target[places])


def test_the_largest_preset_takes_images_from_files(papers, tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    setting = papers("settings").make_setting("papers", "mnist")
    network = setting.network | {"max_epochs": 1, "hidden_sizes": (8,), "latent_dim": 4}
    # Of noise there are no clusters to agree on.
    teacher = {"n_components": 3, "min_agreement": 0.0}
    setting = setting._replace(teacher=teacher, network=network)
    lab = papers("lab").Lab(setting, data_dir=str(tmp_path))
    samples = lab.samples(0)
    assert samples.image_shape == (1, 28, 28)
    certifier = papers("lab").certified(lab.vae(samples, "1", 0), samples)
    assert papers("lab").measure(certifier, samples.test)["n_components"] == 3
