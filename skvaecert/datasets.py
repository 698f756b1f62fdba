"""Data of the papers and data that need no download; encoders of known truth."""

import os
import re
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn import datasets as sklearn_datasets
from sklearn.datasets import fetch_openml, load_sample_images
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch, check_random_state

from skvaecert._readers import (
    Blocks,
    CifarFormat,
    cached_rows,
    cifar_records,
    class_of_images,
    first_complete,
    idx_images,
    idx_labels,
    jpeg_rows,
    read_lines,
)
from skvaecert._samples import DatasetSamples

__all__ = [
    "DatasetSamples",
    "ToyEncoder",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_mnist",
    "load_patches",
    "load_tiny_imagenet",
    "toy_encoders",
]

# Images are cut into strips; of every four neighbours the last is for testing.
_N_STRIPS = 8
_TEST_STRIPS = (3, 7)

_CACHE = ".skvaecert"
# Both spellings are in use, and browsers unpack some of them.
_SPELLINGS = ("{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte")

_DIGITS = [str(digit) for digit in range(10)]

_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
_COARSE_NAMES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people
    reptiles small_mammals trees vehicles_1 vehicles_2
""".split()
_FINE_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
    cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
    girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()


def load_patches(
    n_samples: int = 10_000,
    *,
    size: int = 8,
    color: bool = True,
    subset: str = "train",
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Cut square patches from the two photographs that come with scikit-learn.

    Places are drawn at random, with replacement. "train" and "test" come from
    different vertical strips of the images and share no pixel.

    Parameters
    ----------
    n_samples : int, default=10_000
        Number of patches, at least 1.
    size : int, default=8
        Height and width in pixels, from 1 to 80.
    color : bool, default=True
        Whether to keep three channels; else their mean.
    subset : {"train", "test"}, default="train"
        Which strips to cut from.
    random_state : int, RandomState instance or None, default=None
        Seeds the draw.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, n_features)
            One patch a row, float32 in [0, 1].
        image_shape : tuple of int
            (channels, height, width): (3, size, size) or (1, size, size). Rows are in
            this order, which ``CertifiedVAE(image_shape=...)`` takes; to look at one,
            ``row.reshape(image_shape).transpose(1, 2, 0)``.

    Raises
    ------
    ValueError
        If a parameter is not as told.
    ImportError
        If Pillow, which reads the photographs, is not installed.

    Examples
    --------
    >>> from skvaecert.datasets import load_patches
    >>> patches = load_patches(100, size=8, random_state=0)
    >>> patches.data.shape, patches.image_shape
    ((100, 192), (3, 8, 8))
    """
    strips = _strips(subset, color)
    _check_counts(n_samples, size, strips[0].shape[1])
    generator = check_random_state(random_state)
    strip = generator.randint(len(strips), size=n_samples)
    top, left = (
        generator.randint(side - size + 1, size=n_samples)
        for side in strips[0].shape[:2]
    )
    # A view: strips stay as they are in memory, the patches alone are copied.
    windows = sliding_window_view(np.stack(strips), (size, size), axis=(1, 2))
    patches = windows[strip, top, left]
    image_shape = patches.shape[1:]
    return Bunch(data=patches.reshape(n_samples, -1), image_shape=image_shape)


def _strips(subset: str, color: bool) -> list[NDArray[np.float32]]:
    _check_subset(subset)
    images = [image / np.float32(255) for image in load_sample_images().images]
    if not color:
        images = [image.mean(axis=2, keepdims=True) for image in images]
    wanted = [i for i in range(_N_STRIPS) if (i in _TEST_STRIPS) == (subset == "test")]
    return [np.array_split(im, _N_STRIPS, axis=1)[i] for im in images for i in wanted]


def _check_counts(n_samples: int, size: int, most: int) -> None:
    _check_at_least("n_samples", n_samples, 1)
    if not isinstance(size, Integral) or not 1 <= size <= most:
        raise ValueError(f"size must be an int from 1 to {most}, got {size!r}.")


def load_digits(*, subset: str = "train", random_state: int = 0) -> Bunch:
    """Load the digits that come with scikit-learn, three quarters of them to train on.

    Parameters
    ----------
    subset : {"train", "test"}, default="train"
        Which part. Each has the same share of every digit, up to rounding.
    random_state : int, default=0
        Seeds the cut; the same for both parts, or they share rows.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, 64)
            One image a row, float32 in [0, 1]: the counts of scikit-learn by 16.
        target : ndarray of shape (n_samples,)
            The digits, int64.
        target_names : ndarray of str
            Their names.
        image_shape : tuple of int
            (1, 8, 8).

    Raises
    ------
    ValueError
        If a parameter is not as told.

    Examples
    --------
    >>> from skvaecert.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.data.shape, digits.image_shape
    ((1347, 64), (1, 8, 8))
    """
    _check_subset(subset)
    _check_at_least("random_state", random_state, 0)
    X, y = sklearn_datasets.load_digits(return_X_y=True)
    parts = train_test_split(
        (X / 16).astype(np.float32),
        y,
        test_size=0.25,
        stratify=y,
        random_state=random_state,
    )
    data, target = parts[subset == "test" :: 2]
    return _bunch(data, target, _DIGITS, (1, 8, 8))


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    download: bool = False,
) -> Bunch:
    """Load MNIST from its four files, packed (`.gz`) or not.

    They are looked for in `data_dir`, in its folder `mnist`, and in `MNIST/raw`, where
    torchvision puts them. Files that are not packed are mapped from the disk as they
    are; of packed ones a copy is kept in `data_dir/.skvaecert`.

    Parameters
    ----------
    data_dir : path-like or None, default=None
        Where the files are; None for the environment variable SKVAECERT_DATA.
    subset : {"train", "test"}, default="train"
        Which part.
    download : bool, default=False
        Whether to download by :func:`sklearn.datasets.fetch_openml`, into `data_dir`,
        what is not there. Needs pandas, and once some minutes and GiB of memory.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, 784)
            One image a row, uint8, read-only where it is mapped.
        target : ndarray of shape (n_samples,)
            The digits, int64.
        target_names : ndarray of str
            Their names.
        image_shape : tuple of int
            (1, 28, 28).

    Raises
    ------
    FileNotFoundError
        If files are missing. Says which, and where to get them.
    ValueError
        If a parameter is not as told, or a file is damaged.

    References
    ----------
    http://yann.lecun.com/exdb/mnist/
    """
    _check_subset(subset)
    folder, shape = _folder(data_dir), (1, 28, 28)
    advice = _advice("MNIST", "http://yann.lecun.com/exdb/mnist/", folder, True)
    try:
        images, labels = first_complete(_mnist_files(folder, subset), advice)
    except FileNotFoundError:
        if not download:
            raise
        return _bunch(*_fetch("mnist_784", folder, subset, advice), _DIGITS, shape)
    data = idx_images(images, 28, folder / _CACHE / f"mnist-{subset}")
    target = idx_labels(labels, 10)
    if len(data) != len(target):
        raise ValueError(
            f"{images} has {len(data)} images and {labels} {len(target)} labels: they "
            "do not belong together, or one is damaged. Get new copies."
        )
    return _bunch(data, target, _DIGITS, shape)


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    download: bool = False,
) -> Bunch:
    """Load CIFAR-10 from its Python or its binary version.

    `data_dir` holds `cifar-10-batches-py` or `cifar-10-batches-bin`, or is one of
    them, or holds an archive, `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz`. A
    copy of the images as one file is kept in `data_dir/.skvaecert`, and mapped from
    there. The pickles of the Python version are read without being run.

    Parameters
    ----------
    data_dir : path-like or None, default=None
        Where the files are; None for the environment variable SKVAECERT_DATA.
    subset : {"train", "test"}, default="train"
        Which part.
    download : bool, default=False
        Whether to download by :func:`sklearn.datasets.fetch_openml`, into `data_dir`,
        what is not there. Needs pandas, and once some minutes and GiB of memory.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, 3072)
            One image a row, uint8, red, green, blue; read-only where it is mapped.
        target : ndarray of shape (n_samples,)
            Classes from 0 to 9, int64.
        target_names : ndarray of str
            Their names.
        image_shape : tuple of int
            (3, 32, 32).

    Raises
    ------
    FileNotFoundError
        If files are missing. Says which, and where to get them.
    ValueError
        If a parameter is not as told, or a file is damaged.

    References
    ----------
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    _check_subset(subset)
    folder = _folder(data_dir)
    advice = _advice("CIFAR-10, packed or not,", _CIFAR_PAGE, folder, True)
    try:
        data, labels = _cifar(_CIFAR10, folder, subset, advice)
        target = labels[:, 0]
    except FileNotFoundError:
        if not download:
            raise
        data, target = _fetch("CIFAR_10", folder, subset, advice)
    return _bunch(data, target, _CIFAR10_NAMES, (3, 32, 32))


def load_cifar100(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    labels: str = "fine",
) -> Bunch:
    """Load CIFAR-100 from its Python or its binary version.

    `data_dir` holds `cifar-100-python` or `cifar-100-binary`, or is one of them, or
    holds an archive, `cifar-100-python.tar.gz` or `cifar-100-binary.tar.gz`. Unpacked
    binary files are mapped from the disk as they are; of others a copy is kept in
    `data_dir/.skvaecert`. The pickles of the Python version are read without being run.

    Parameters
    ----------
    data_dir : path-like or None, default=None
        Where the files are; None for the environment variable SKVAECERT_DATA.
    subset : {"train", "test"}, default="train"
        Which part.
    labels : {"fine", "coarse"}, default="fine"
        The 100 classes, or the 20 groups of them.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, 3072)
            One image a row, uint8, red, green, blue; read-only where it is mapped.
        target : ndarray of shape (n_samples,)
            Classes from 0, int64.
        target_names : ndarray of str
            Their names.
        image_shape : tuple of int
            (3, 32, 32).

    Raises
    ------
    FileNotFoundError
        If files are missing. Says which, and where to get them.
    ValueError
        If a parameter is not as told, or a file is damaged.

    References
    ----------
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    _check_subset(subset)
    if labels not in ("fine", "coarse"):
        raise ValueError(f"labels must be 'fine' or 'coarse', got {labels!r}.")
    folder = _folder(data_dir)
    advice = _advice("CIFAR-100, packed or not,", _CIFAR_PAGE, folder, False)
    data, both = _cifar(_CIFAR100, folder, subset, advice)
    target = both[:, 1 if labels == "fine" else 0]
    names = _FINE_NAMES if labels == "fine" else _COARSE_NAMES
    return _bunch(data, target, names, (3, 32, 32))


def load_tiny_imagenet(
    data_dir: str | os.PathLike[str] | None = None, *, subset: str = "train"
) -> Bunch:
    """Load Tiny-ImageNet from its JPEG files.

    `data_dir` holds the folder `tiny-imagenet-200`, or is it. Decoded images are kept
    in `data_dir/.skvaecert`, 1.2 GB to train on and 0.1 GB to test, and mapped from
    there.

    Parameters
    ----------
    data_dir : path-like or None, default=None
        Where the files are; None for the environment variable SKVAECERT_DATA.
    subset : {"train", "test"}, default="train"
        Which part. "test" is what the authors call validation: their test images have
        no labels, and are not read.

    Returns
    -------
    Bunch
        With attributes

        data : ndarray of shape (n_samples, 12288)
            One image a row, uint8, red, green, blue, equal for grey images; read-only
            where it is mapped.
        target : ndarray of shape (n_samples,)
            Classes in the order of `wnids.txt`, from 0, int64.
        target_names : ndarray of str
            Their words in `words.txt`; where it has none, their WordNet numbers.
        image_shape : tuple of int
            (3, 64, 64).

    Raises
    ------
    FileNotFoundError
        If files are missing. Says which, and where to get them.
    ValueError
        If a parameter is not as told, or a file is damaged.
    ImportError
        If Pillow, which decodes the images, is not installed.

    References
    ----------
    http://cs231n.stanford.edu/tiny-imagenet-200.zip
    """
    _check_subset(subset)
    folder = _folder(data_dir)
    page = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    advice = _advice("Tiny-ImageNet", page, folder, False)
    places = [[place / "wnids.txt"] for place in (folder / "tiny-imagenet-200", folder)]
    (listed,) = first_complete(places, advice)
    wnids = _wnids(listed)
    classes = (_tiny_train if subset == "train" else _tiny_val)(listed, wnids, advice)
    cache = folder / _CACHE / f"tiny-imagenet-{subset}"
    data = jpeg_rows(list(classes), 64, cache)
    target = np.fromiter(classes.values(), np.int64, len(classes))
    return _bunch(data, target, _words(listed, wnids), (3, 64, 64))


class _Cifar(NamedTuple):
    """Where one of the two is found, and how it is written."""

    form: CifarFormat
    prefix: str
    folders: tuple[str, str]
    files: dict[str, tuple[str, ...]]


_CIFAR10 = _Cifar(
    CifarFormat(("labels",), (10,)),
    "cifar-10",
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    },
)
_CIFAR100 = _Cifar(
    CifarFormat(("coarse_labels", "fine_labels"), (20, 100)),
    "cifar-100",
    ("cifar-100-python", "cifar-100-binary"),
    {"train": ("train",), "test": ("test",)},
)


def _check_subset(subset: str) -> None:
    if subset not in ("train", "test"):
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}.")


def _folder(data_dir: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get("SKVAECERT_DATA") if data_dir is None else data_dir
    if not given:
        raise ValueError(
            "data_dir must be the folder of the data, or the environment variable "
            "SKVAECERT_DATA must name it; neither is given."
        )
    return Path(given).expanduser()


def _advice(title: str, page: str, folder: Path, can_download: bool) -> str:
    other = ", or give download=True" if can_download else ""
    return f"Get the files of {title} from {page} and put them into {folder}{other}."


def _bunch(
    data: NDArray[Any],
    target: NDArray[np.integer],
    names: list[str],
    image_shape: tuple[int, int, int],
) -> Bunch:
    return Bunch(
        data=data,
        # In memory: labels of CIFAR lie between the images.
        target=np.array(target, np.int64),
        target_names=np.array(names),
        image_shape=image_shape,
    )


def _mnist_files(folder: Path, subset: str) -> list[list[Path]]:
    part = "train" if subset == "train" else "t10k"
    return [
        [_spelled(place, part, "images", 3), _spelled(place, part, "labels", 1)]
        for place in (folder, folder / "mnist", folder / "MNIST" / "raw")
    ]


def _spelled(place: Path, part: str, kind: str, n_dimensions: int) -> Path:
    """Choose the spelling that is there, or else the usual one."""
    names = [spelling.format(part, kind, n_dimensions) for spelling in _SPELLINGS]
    paths = [place / f"{name}{end}" for end in ("", ".gz") for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _cifar(
    cifar: _Cifar, folder: Path, subset: str, advice: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images, and their labels by column."""
    files, (python, binary) = cifar.files[subset], cifar.folders
    names = {python: files, binary: tuple(f"{file}.bin" for file in files)}
    candidates = [
        [place / name for name in names[inner]]
        for inner in cifar.folders
        for place in (folder / inner, folder)
    ]
    archives = {
        folder / f"{cifar.prefix}-{version}.tar.gz": inner
        for version, inner in zip(("python", "binary"), cifar.folders, strict=True)
    }
    found = first_complete([*candidates, *([path] for path in archives)], advice)
    inner = archives.get(found[0], "")
    members = [f"{inner}/{name}" for name in names.get(inner, ())]
    cache = folder / _CACHE / f"{cifar.prefix}-{subset}"
    records = cifar_records(found, members, cifar.form, cache)
    n_labels = len(cifar.form.keys)
    return records[:, n_labels:], records[:, :n_labels]


class _OnOpenML(NamedTuple):
    """How many rows and columns there are, and how many rows are to train on."""

    n_samples: int
    n_features: int
    n_train: int


_OPENML = {
    "mnist_784": _OnOpenML(70_000, 784, 60_000),
    "CIFAR_10": _OnOpenML(60_000, 3072, 50_000),
}


def _fetch(
    name: str, folder: Path, subset: str, advice: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Download and convert once; then map labels and images as those of CIFAR."""
    about = _OPENML[name]
    shape = about.n_samples, 1 + about.n_features

    def blocks() -> Blocks:
        records = _fetched(name, folder, advice)
        return len(records), lambda: [records]

    cache = folder / _CACHE / f"openml-{name}"
    records = cached_rows(cache, [], blocks, lambda rows: rows.shape == shape)
    n = about.n_train
    part = records[:n] if subset == "train" else records[n:]
    return part[:, 1:], part[:, 0]


def _fetched(name: str, folder: Path, advice: str) -> NDArray[np.uint8]:
    about = _OPENML[name]
    try:
        table = fetch_openml(
            name, version=1, data_home=folder, as_frame=False, parser="auto"
        )
    except Exception as error:
        error.add_note(f"{name} could not be had from OpenML. {advice}")
        raise
    if table.data.shape != (about.n_samples, about.n_features):
        raise ValueError(
            f"{name} from OpenML must have shape {about[:2]}, got {table.data.shape}."
        )
    labels = np.asarray(table.target, dtype=float)[:, None]
    return np.hstack([_as_bytes(labels, 9), _as_bytes(table.data, 255)])


def _as_bytes(values: NDArray[Any], most: int) -> NDArray[np.uint8]:
    if values.min() >= 0 and values.max() <= most:
        as_bytes = values.astype(np.uint8)
        if (as_bytes == values).all():
            return as_bytes
    raise ValueError(f"Values from OpenML must be integers from 0 to {most}.")


def _wnids(listed: Path) -> list[str]:
    wnids = [line.strip() for line in read_lines(listed)]
    wrong = [wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)]
    if wrong or not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(
            f"{listed} is damaged: it must have different WordNet numbers such as "
            f"n01443537, got {wrong[0] if wrong else wnids[:2]!r}. Get a new copy."
        )
    return wnids


def _words(listed: Path, wnids: list[str]) -> list[str]:
    path = listed.with_name("words.txt")
    if not path.is_file():
        return wnids
    words = dict(line.split("\t", 1) for line in read_lines(path) if "\t" in line)
    return [words.get(wnid, wnid) for wnid in wnids]


def _tiny_train(listed: Path, wnids: list[str], advice: str) -> dict[Path, int]:
    train, classes = listed.with_name("train"), dict[Path, int]()
    for i, wnid in enumerate(wnids):
        images = sorted((train / wnid / "images").glob("*.JPEG"))
        if not images:
            first_complete([[train / wnid / "images" / "*.JPEG"]], advice)
        classes |= dict.fromkeys(images, i)
    unknown = {path.name for path in train.glob("n*")} - set(wnids)
    if unknown:
        raise ValueError(f"{listed} is damaged: it lacks the class {min(unknown)}.")
    return classes


def _tiny_val(listed: Path, wnids: list[str], advice: str) -> dict[Path, int]:
    val = listed.with_name("val")
    (annotations,) = first_complete([[val / "val_annotations.txt"]], advice)
    classes = class_of_images(val / "images", annotations, wnids)
    first_complete([list(classes)], advice)
    return classes


class ToyEncoder(NamedTuple):
    """Posteriors q(z|x_i) = N(mu_i, diag s_i^2) of which the truth is known.

    Attributes
    ----------
    name : str
        What it does.
    factors : ndarray of shape (n_samples, latent_dim)
        The rows x that it encodes, which are also what there is to know.
    latent_mean : ndarray of shape (n_samples, latent_dim)
        mu.
    latent_std : ndarray of shape (n_samples, latent_dim)
        s.
    mean_varies : bool
        Whether mu depends on x: what a certificate of the mean is about.
    informative : bool
        Whether q(z|x) depends on x, through its mean or otherwise.
    truth : str
        The same as a sentence.
    """

    name: str
    factors: NDArray[np.float64]
    latent_mean: NDArray[np.float64]
    latent_std: NDArray[np.float64]
    mean_varies: bool
    informative: bool
    truth: str


def toy_encoders(
    n_samples: int = 1000,
    latent_dim: int = 4,
    random_state: int | np.random.RandomState | None = 0,
) -> list[ToyEncoder]:
    """Make six encoders of known truth, for diagnostics of collapse to tell apart.

    Three have collapsed, to the prior, to a shifted prior and to a narrow constant;
    two tell their rows apart by the mean, one with small means and smaller noise; the
    last has a constant mean and tells rows apart by the size of its noise alone. All
    see the same rows: factors with mean 0 and variance 1 in each dimension.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows, at least 2.
    latent_dim : int, default=4
        Number of factors and of latent dimensions, at least 1.
    random_state : int, RandomState instance or None, default=0
        Seeds the factors.

    Returns
    -------
    list of ToyEncoder
        In the order above.

    Raises
    ------
    ValueError
        If a number is not as told.

    Examples
    --------
    The KL of the second is 2 nats a dimension, and it knows nothing:

    >>> from skvaecert.datasets import toy_encoders
    >>> from skvaecert.diagnostics import kl_per_dimension
    >>> encoder = toy_encoders()[1]
    >>> encoder.name, encoder.informative
    ('shifted prior', False)
    >>> kl_per_dimension(encoder.latent_mean, encoder.latent_std)
    array([2., 2., 2., 2.])
    """
    _check_at_least("n_samples", n_samples, 2)
    _check_at_least("latent_dim", latent_dim, 1)
    x = check_random_state(random_state).standard_normal((n_samples, latent_dim))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    zero, one, narrow = np.zeros_like(x), np.ones_like(x), np.exp(-2.0)
    small, wide = np.sqrt(0.005) * x, np.sqrt(0.9) * x
    by_sign = np.where(x < 0, narrow, 1.0)
    no, yes = "The same for all rows: collapsed.", "The mean depends on the row."
    odd = "Only the noise depends on the row: the mean is constant, the code is not."
    return [
        ToyEncoder("prior", x, zero, one, False, False, no),
        ToyEncoder("shifted prior", x, zero + 2, one, False, False, no),
        ToyEncoder("narrow constant", x, zero, narrow * one, False, False, no),
        ToyEncoder("small but precise", x, small, 0.001 * one, True, True, yes),
        ToyEncoder("healthy", x, wide, np.sqrt(0.1) * one, True, True, yes),
        ToyEncoder("noise only", x, zero, by_sign, False, True, odd),
    ]


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}.")
