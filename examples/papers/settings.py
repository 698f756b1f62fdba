"""Presets: how large the samples and networks are, and how long they train."""

from typing import Any, NamedTuple

SHIPPED = ("digits", "patches16")
FULLY_CONNECTED = ("mnist", "cifar10", "cifar100", "tiny-imagenet")
OFFICIAL = ("mnist", "cifar10", "cifar10-conv", "cifar100", "tiny-imagenet")


class Setting(NamedTuple):
    """One preset on one data set; it is part of the name of each cell.

    If `fixed`, a seed changes only the teacher. Samples, initial weights and batches
    are those of seed 0.
    """

    data: str
    n_train: int
    n_test: int
    n_seeds: int
    n_steps: int
    fixed: bool
    teacher: dict[str, Any]
    network: dict[str, Any]


def make_setting(preset, data):
    """Return the setting of a preset for a data set."""
    common, special = PRESETS[preset]
    values = common | special.get(data, {})
    network = common["network"] | values["network"]
    return Setting(data=data, **values | {"network": network})


# Each preset has values for all data sets, and other values for some of them.
PRESETS = {
    # To test that everything runs. It is far too short to show anything.
    "seconds": (
        {
            "n_train": 100,
            "n_test": 60,
            "n_seeds": 1,
            "n_steps": 3,
            "fixed": False,
            "teacher": {"n_components": 3},
            "network": {"latent_dim": 4, "hidden_sizes": (8,), "max_epochs": 2},
        },
        {},
    ),
    # On data that need no download.
    "five-minutes": (
        {
            "n_train": 640,
            "n_test": 400,
            "n_seeds": 2,
            "n_steps": 40,
            "fixed": False,
            "teacher": {"n_components": [5, 10]},
            "network": {"latent_dim": 16, "hidden_sizes": (64,), "max_epochs": 15},
        },
        {},
    ),
    # On the papers' data, in hours.
    "papers": (
        {
            "n_train": 10_000,
            "n_test": 2000,
            "n_seeds": 5,
            "n_steps": 200,
            "fixed": False,
            "teacher": {"n_components": [10, 20, 50]},
            "network": {
                "latent_dim": 64,
                "hidden_sizes": (256, 256),
                "batch_size": 128,
                "max_epochs": 12,
            },
        },
        {
            "mnist": {"network": {"max_epochs": 20}},
            "cifar10-conv": {
                "n_train": 5000,
                "network": {
                    "encoder": "conv",
                    "decoder": "conv",
                    "hidden_sizes": (256,),
                    "max_epochs": 8,
                },
            },
            "tiny-imagenet": {
                "n_seeds": 3,
                "fixed": True,
                "network": {
                    "hidden_sizes": (128, 128),
                    "batch_size": 256,
                    "max_epochs": 8,
                },
            },
        },
    ),
}
