"""Datasets with posteriors, small bundled data sets, and encoders of known truth."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn import datasets as sklearn_datasets
from sklearn.datasets import load_sample_images
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch, check_random_state, gen_batches

from skvaecert._samples import DatasetSamples
from skvaecert.simplex import check_count, check_flag, check_seed, check_teacher_proba

__all__ = [
    "DatasetSamples",
    "ToyEncoder",
    "WithPosterior",
    "load_digits",
    "load_patches",
    "toy_encoders",
]

# Number of posteriors that are checked at a time.
_CHECKED_TOGETHER = 2**16

# Images are cut into strips. The last of every four adjacent strips is for testing.
_N_STRIPS = 8
_TEST_STRIPS = (3, 7)
# In pixels: the images are 640 pixels wide.
_STRIP_WIDTH = 80


class WithPosterior:
    """A map-style dataset that pairs each item with its teacher's posterior.

    Item i is ``(dataset[i], teacher_proba[i])``. So a posterior stays with its sample
    in any order of sampling, and a :class:`torch.utils.data.DataLoader` collates both.

    Parameters
    ----------
    dataset : object with `__len__` and `__getitem__`
        The samples, for example a :class:`torch.utils.data.Dataset`. Items stay as
        they are.
    teacher_proba : array-like of shape (n_items, n_components), or path
        Teacher's posteriors T of the items, in the same order. A ``.npy`` file, given
        by its path, is mapped into memory and not read as a whole, also by the workers
        of a data loader.

    Raises
    ------
    ValueError
        If the numbers of posteriors and items differ, or posteriors are not valid.

    See Also
    --------
    skvaecert.objectives.AlignmentLoss : Takes these posteriors in a training loop.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from skvaecert.datasets import WithPosterior
    >>> labeled = TensorDataset(torch.rand(6, 4), torch.arange(6))
    >>> teacher_proba = [[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 3
    >>> loader = DataLoader(WithPosterior(labeled, teacher_proba), batch_size=3)
    >>> (x, y), posterior = next(iter(loader))
    >>> posterior.dtype, posterior.shape
    (torch.float32, torch.Size([3, 2]))
    """

    def __init__(
        self, dataset: Any, teacher_proba: ArrayLike | str | PathLike[str]
    ) -> None:
        self.dataset = dataset
        self.teacher_proba = teacher_proba
        self._posteriors = _opened(teacher_proba)
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                "dataset must have a length and items by index, got "
                f"{type(dataset).__name__}. An IterableDataset must itself yield "
                "posteriors along with its samples."
            )
        if len(self._posteriors) != len(dataset):
            raise ValueError(
                "teacher_proba must have one posterior per item of dataset, "
                f"{len(dataset)}, got {len(self._posteriors)}."
            )
        for piece in gen_batches(len(dataset), _CHECKED_TOGETHER):
            check_teacher_proba(self._posteriors[piece])

    def __len__(self) -> int:
        return len(self._posteriors)

    def __getitem__(self, index: int) -> tuple[Any, NDArray[np.float32]]:
        # A copy, since torch warns of read-only arrays, such as memory maps.
        return self.dataset[index], np.array(self._posteriors[index], np.float32)

    def __getitems__(self, index: list[int]) -> list[tuple[Any, NDArray[np.float32]]]:
        """Return several items, read together if the dataset supports it."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[i] for i in index]
        items = self.dataset.__getitems__(index)
        # No copy is needed: indexing with a list makes one.
        posteriors = np.asarray(self._posteriors[index], np.float32)
        return list(zip(items, posteriors, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the array: a file would be copied into the pickle."""
        return {"dataset": self.dataset, "teacher_proba": self.teacher_proba}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the posteriors again. They have been checked."""
        self.__dict__.update(state, _posteriors=_opened(state["teacher_proba"]))


def _opened(teacher_proba: Any) -> NDArray[Any]:
    """Return posteriors as an array, mapped into memory if they are in a file."""
    if isinstance(teacher_proba, str | PathLike):
        return np.load(teacher_proba, mmap_mode="r", allow_pickle=False)
    return np.asarray(teacher_proba)


def load_patches(
    n_samples: int = 10_000,
    *,
    size: int = 8,
    color: bool = True,
    subset: Literal["train", "test"] = "train",
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Cut square patches from the two photographs that come with scikit-learn.

    Positions are drawn at random, with replacement. "train" and "test" come from
    different vertical strips of the images and share no pixel.

    Parameters
    ----------
    n_samples : int, default=10_000
        Number of patches, at least 1.
    size : int, default=8
        Height and width in pixels, from 1 to 80.
    color : bool, default=True
        Whether to keep three channels. If False, their mean is returned.
    subset : {"train", "test"}, default="train"
        Strips to cut from.
    random_state : int, RandomState instance or None, default=None
        Determines random number generation for drawing positions. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    Bunch
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, n_features)
            Patches, one per row, float32 in [0, 1].
        image_shape : tuple of int
            (channels, height, width): (3, size, size) or (1, size, size). Patches are
            flattened in this order, which ``CertifiedVAE(image_shape=...)`` takes. To
            plot a patch, use ``data[i].reshape(image_shape).transpose(1, 2, 0)``.

    Raises
    ------
    ValueError
        If a parameter is not valid.
    ImportError
        If Pillow, which reads the photographs, is not installed.

    Examples
    --------
    >>> from skvaecert.datasets import load_patches
    >>> patches = load_patches(100, size=8, random_state=0)
    >>> patches.data.shape, patches.image_shape
    ((100, 192), (3, 8, 8))
    """
    check_count("n_samples", n_samples)
    _check_size(size)
    check_seed(random_state)
    generator = check_random_state(random_state)
    strips = _strips(subset, color)
    strip = generator.randint(len(strips), size=n_samples)
    top, left = (
        generator.randint(side - size + 1, size=n_samples)
        for side in strips[0].shape[:2]
    )
    # A view: the strips stay as they are in memory, and only the patches are copied.
    windows = sliding_window_view(np.stack(strips), (size, size), axis=(1, 2))
    patches = windows[strip, top, left]
    image_shape = patches.shape[1:]
    return Bunch(data=patches.reshape(n_samples, -1), image_shape=image_shape)


def _strips(subset: str, color: bool) -> list[NDArray[np.float32]]:
    _check_subset(subset)
    check_flag("color", color)
    # Divided by a Python float, bytes would become float64.
    images = [image / np.float32(255) for image in load_sample_images().images]
    if not color:
        images = [image.mean(axis=2, keepdims=True) for image in images]
    wanted = [i for i in range(_N_STRIPS) if (i in _TEST_STRIPS) == (subset == "test")]
    return [np.array_split(im, _N_STRIPS, axis=1)[i] for im in images for i in wanted]


def _check_size(size: int) -> None:
    is_int = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not (is_int and 1 <= size <= _STRIP_WIDTH):
        raise ValueError(f"size must be an int from 1 to {_STRIP_WIDTH}, got {size!r}.")


def load_digits(
    *, subset: Literal["train", "test"] = "train", random_state: int = 0
) -> Bunch:
    """Load the digits that come with scikit-learn, as training or test samples.

    Three quarters of the samples are training samples.

    Parameters
    ----------
    subset : {"train", "test"}, default="train"
        Part to load. Both have the same share of every digit, up to rounding.
    random_state : int, default=0
        Determines the split. Pass the same int for both parts, otherwise they share
        samples.

    Returns
    -------
    Bunch
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, 64)
            Images, one per row, float32 in [0, 1]: scikit-learn's values divided by 16.
        target : ndarray of shape (n_samples,)
            The digits, int64.
        target_names : ndarray of str
            Names of the digits.
        image_shape : tuple of int
            (1, 8, 8).

    Raises
    ------
    ValueError
        If a parameter is not valid.

    Examples
    --------
    >>> from skvaecert.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.data.shape, digits.image_shape
    ((1347, 64), (1, 8, 8))
    """
    _check_subset(subset)
    check_count("random_state", random_state, least=0)
    X, y = sklearn_datasets.load_digits(return_X_y=True)
    parts = train_test_split(
        # The largest intensity is 16.
        (X / 16).astype(np.float32),
        y,
        test_size=0.25,
        stratify=y,
        random_state=random_state,
    )
    # The parts are X_train, X_test, y_train, y_test.
    data, target = parts[subset == "test" :: 2]
    return Bunch(
        data=data,
        target=target,
        target_names=np.arange(10).astype(str),
        image_shape=(1, 8, 8),
    )


def _check_subset(subset: str) -> None:
    if not (isinstance(subset, str) and subset in ("train", "test")):
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}.")


class ToyEncoder(NamedTuple):
    """Posteriors q(z|x_i) = N(mu_i, diag s_i^2) whose truth is known.

    Attributes
    ----------
    name : str
        Short name of the encoder's behavior.
    factors : ndarray of shape (n_samples, latent_dim)
        The samples x, which are also the factors that codes can carry.
    latent_mean : ndarray of shape (n_samples, latent_dim)
        Latent means mu.
    latent_std : ndarray of shape (n_samples, latent_dim)
        Posterior standard deviations s.
    mean_varies : bool
        Whether mu depends on x, which a certificate of the mean is about.
    informative : bool
        Whether q(z|x) depends on x, through its mean or its standard deviation.
    truth : str
        Both in one sentence.
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
    """Make six encoders of known truth, to test diagnostics of collapse.

    Three have collapsed: to the prior, to a shifted prior and to a narrow constant. Two
    distinguish samples by the mean, one of them with small means and smaller noise. The
    last has a constant mean, and distinguishes samples only by the size of its noise.
    All encode the same samples: factors with mean 0 and variance 1 in each dimension.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples, at least 2.
    latent_dim : int, default=4
        Number of factors and of latent dimensions, at least 1.
    random_state : int, RandomState instance or None, default=0
        Determines random number generation for the factors. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    list of ToyEncoder
        The encoders, in the order above.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    Examples
    --------
    The KL of the second encoder is 2 nats per dimension, yet its codes carry nothing:

    >>> from skvaecert.datasets import toy_encoders
    >>> from skvaecert.diagnostics import kl_per_dimension
    >>> encoder = toy_encoders()[1]
    >>> encoder.name, encoder.informative
    ('shifted prior', False)
    >>> kl_per_dimension(encoder.latent_mean, encoder.latent_std)
    array([2., 2., 2., 2.])
    """
    check_count("n_samples", n_samples, least=2)
    check_count("latent_dim", latent_dim)
    check_seed(random_state)
    x = check_random_state(random_state).standard_normal((n_samples, latent_dim))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    zero, one, narrow = np.zeros_like(x), np.ones_like(x), np.exp(-2.0)
    # The healthy code has variance 0.9 + 0.1 = 1, as the prior.
    small, wide = np.sqrt(0.005) * x, np.sqrt(0.9) * x
    by_sign = np.where(x < 0, narrow, 1.0)
    no = "The posterior is the same for all samples: collapsed."
    yes = "The mean depends on the sample."
    odd = "Only the noise depends on the sample: the mean is constant, the code is not."
    return [
        ToyEncoder("prior", x, zero, one, False, False, no),
        ToyEncoder("shifted prior", x, zero + 2, one, False, False, no),
        ToyEncoder("narrow constant", x, zero, narrow * one, False, False, no),
        ToyEncoder("small but precise", x, small, 0.001 * one, True, True, yes),
        ToyEncoder("healthy", x, wide, np.sqrt(0.1) * one, True, True, yes),
        ToyEncoder("noise only", x, zero, by_sign, False, True, odd),
    ]
