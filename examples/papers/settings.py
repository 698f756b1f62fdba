"""What is trained, on how many samples: presets, and the data sets by name."""

from pathlib import Path
from typing import Any, NamedTuple

from readers import read_cifar10, read_cifar100, read_mnist, read_tiny_imagenet
from sklearn.utils import check_random_state

from skvaecert import datasets

SHIPPED = ("digits", "patches16", "patches32")
# What reads a data set, and the folder of its files.
READERS = {
    "mnist": (read_mnist, "mnist"),
    "cifar10": (read_cifar10, "cifar-10-batches-bin"),
    "cifar100": (read_cifar100, "cifar-100-binary"),
    "tiny-imagenet": (read_tiny_imagenet, "tiny-imagenet-200"),
}
# Of the ELBO summed over features, nats a sample.
ALIGNMENT_WEIGHT = 10.0


class Setting(NamedTuple):
    """One preset on one data set; a cell is named by it, so that none is mixed up."""

    data: str
    n_train: int
    n_test: int
    n_seeds: int
    few_seeds: int
    n_steps: int
    teacher: dict[str, Any]
    network: dict[str, Any]


def make_setting(preset, data):
    """Return the setting of a preset for a data set."""
    common, special = PRESETS[preset]
    return Setting(data=data, **common | special.get(data, {}))


def load_samples(data, subset, n_samples, seed, data_dir=None):
    """Return samples, at most so many, and (channels, height, width)."""
    if data.startswith("patches"):
        # Samples of training and test come from other places: other draws will do.
        bunch = datasets.load_patches(
            n_samples, size=int(data[7:]), subset=subset, random_state=seed
        )
        return bunch.data, bunch.image_shape
    if data == "digits":
        bunch = datasets.load_digits(subset=subset, random_state=seed)
    else:
        read, folder = READERS[data]
        bunch = read(Path(data_dir) / folder, subset)
    chosen = check_random_state(seed).permutation(len(bunch.data))[:n_samples]
    return bunch.data[chosen], bunch.image_shape


# Each: what holds for all data sets, and what differs for some.
PRESETS = {
    # To see that all runs; far too short to show anything.
    "seconds": (
        {
            "n_train": 100,
            "n_test": 60,
            "n_seeds": 1,
            "few_seeds": 1,
            "n_steps": 3,
            "teacher": {"n_components": 3},
            "network": {"latent_dim": 4, "hidden_sizes": (8,), "max_epochs": 2},
        },
        {},
    ),
    "five-minutes": (
        {
            "n_train": 640,
            "n_test": 400,
            "n_seeds": 2,
            "few_seeds": 1,
            "n_steps": 40,
            "teacher": {"n_components": [5, 10]},
            "network": {"latent_dim": 16, "hidden_sizes": (64,), "max_epochs": 15},
        },
        {},
    ),
    "half-hour": (
        {
            "n_train": 1000,
            "n_test": 400,
            "n_seeds": 5,
            "few_seeds": 3,
            "n_steps": 100,
            "teacher": {"n_components": [5, 10, 20]},
            "network": {"latent_dim": 32, "hidden_sizes": (128, 128), "max_epochs": 20},
        },
        {
            "digits": {
                "network": {
                    "latent_dim": 32,
                    "hidden_sizes": (128, 128),
                    "max_epochs": 40,
                }
            },
        },
    ),
    "large": (
        {
            "n_train": 50_000,
            "n_test": 10_000,
            "n_seeds": 5,
            "few_seeds": 3,
            "n_steps": 1000,
            "teacher": {
                "n_components": [10, 20, 50, 100],
                "pca_components": [16, 32, 64],
                "covariance_type": ["full", "diag"],
            },
            "network": {
                "latent_dim": 128,
                "hidden_sizes": (512,),
                "encoder": "conv",
                "decoder": "conv",
                "max_epochs": 100,
            },
        },
        {},
    ),
}
