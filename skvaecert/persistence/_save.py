"""Save fitted estimators to files, and load them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from skvaecert._certifier.refusals import check_encoder
from skvaecert._estimator import warn_user
from skvaecert._training.state import OwnModuleError
from skvaecert.exceptions import InvalidFileError, NotSavedWarning
from skvaecert.persistence._file import (
    Arrays,
    Budget,
    from_bytes,
    read_bytes,
    safetensors,
    to_bytes,
    write_bytes,
)
from skvaecert.persistence._objects import Brought, Modules, Packer, Unpacker
from skvaecert.persistence._registry import ADVICE

__all__ = ["Path", "load", "naming", "save"]

Path = str | os.PathLike[str]

# Raise it with every change of the content: `load` reads no other schema.
SCHEMA = 4
_PACKAGES = ("skvaecert", "numpy", "scikit-learn", "torch", "skorch")

# torch imports hundreds of modules with its first optimizer. Do this now, so that load
# imports nothing.
torch.optim.Adam([nn.Parameter(torch.zeros(1))])


def save(estimator: BaseEstimator, path: Path) -> None:
    """Save a fitted estimator to a file that is safe to load.

    The file has the safetensors format. It contains arrays, and in its metadata the
    parameters, names and values as JSON. It contains no code.

    Parameters
    ----------
    estimator : GMMTeacher, CertifiedVAE or CollapseCertifier
        Fitted. The encoder of a certifier may be any model.
    path : str or path
        File to write. An existing regular file is replaced once the new one is
        complete. Its mode and symbolic links to it are kept.

    Raises
    ------
    ValueError
        If :func:`load` could not read the file, or if parameters that a warm start
        cannot change were changed since the fit. Then nothing is written.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ImportError
        If the package safetensors is not installed.

    Warns
    -----
    NotSavedWarning
        If there are `callbacks` or a `memory`, which are not saved.

    See Also
    --------
    load : Loads the file.
    export_onnx : Exports a model for serving without this package.

    Notes
    -----
    The weights of your own modules are saved, and :func:`load` needs the modules. The
    optimizer's moments are in the file, so that a warm start continues where the fit
    ended. The losses of single batches in the history of `net_` are not saved.

    For a certifier of another model, for example a
    :class:`skvaecert.wrappers.TrainedEncoder`, everything is saved except the model:
    the certificate, witness, teacher and calibration, and hashes of the samples and of
    the weights of torch modules. If you pass the model, :func:`load` returns the
    certifier, and :func:`verify` recomputes the certificate.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import GMMTeacher
    >>> from skvaecert.persistence import load, save
    >>> X = load_iris().data
    >>> teacher = GMMTeacher(n_components=3, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(teacher, f"{folder}/teacher.safetensors")
    ...     loaded = load(f"{folder}/teacher.safetensors")
    >>> bool((loaded.transform(X) == teacher.transform(X)).all())
    True
    """
    packer = Packer(estimator)
    content = {
        "format": "skvaecert",
        "schema": SCHEMA,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "written_with": {name: version(name) for name in _PACKAGES},
        "objects": packer.objects,
    }
    data = to_bytes(content, packer.arrays)
    _check_loads(data, packer.modules)
    write_bytes(path, data)
    if packer.left_out:
        names = " and ".join(sorted(packer.left_out))
        warn_user(
            NotSavedWarning(
                f"{names} cannot be saved and will be None after load: set them again."
            )
        )


def _check_loads(data: bytes, brought: Brought) -> None:
    """Load the bytes before they are written: every saved file can be loaded."""
    budget = Budget()
    try:
        content, arrays, checksum = from_bytes(data, budget)
        for node in content["objects"]:
            if "device" in node["params"]:
                node["params"]["device"] = "cpu"  # an accelerator may be full
        _restore(content, arrays, checksum, brought, budget)
    except Exception as error:
        raise ValueError(
            "estimator must be one that load can read again, got one that it cannot: "
            f"{error} {ADVICE}"
        ) from error


def load(path: Path, *, estimator: Any = None, modules: Modules | None = None) -> Any:
    """Load an estimator from a file of :func:`save`, which may come from a stranger.

    Nothing in the file is imported or run. Memory use is at most 64 MiB plus four times
    the size of the file. The values may still be wrong: :func:`verify` checks those of
    the certificate.

    Parameters
    ----------
    path : str or path
        File to load.
    estimator : estimator or None, default=None
        The certified model, if it is not a `CertifiedVAE` or `GMMTeacher`, because then
        it is not in the file. Pass it fitted, in the wrapper in which it was certified.
        Its torch modules must have the weights that were certified. If None, you can
        use the certificate, the witness and the teacher, but not encode samples.
    modules : dict or None, default=None
        The classes, functions or modules of the VAE that are your own, under the keys
        "encoder" and "decoder". They get the weights in the file.

    Returns
    -------
    GMMTeacher, CertifiedVAE or CollapseCertifier
        The fitted estimator, on the device of its parameter `device`, or on the CPU if
        that device is not available. `callbacks` and `memory` are None.

    Raises
    ------
    InvalidFileError
        If the file was not written by :func:`save`.
    ValueError
        If `estimator` or `modules` are not those that the file needs.
    OSError
        If the file cannot be opened.
    ImportError
        If the package safetensors is not installed.

    See Also
    --------
    save : Saves the file; has an example.
    """
    modules = modules or {}
    if unknown := modules.keys() - {"encoder", "decoder"}:
        raise ValueError(
            "modules must only have the keys 'encoder' and 'decoder', got "
            f"{sorted(unknown)}."
        )
    check_encoder(estimator)
    brought = {**modules, **({} if estimator is None else {"estimator": estimator})}
    safetensors()
    budget = Budget()
    with naming(path):
        return _restore(*from_bytes(read_bytes(path), budget), brought, budget)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors about a file inside the block into an error that names the file."""
    try:
        yield
    except (InvalidFileError, OwnModuleError, OSError):
        raise
    except Exception as error:  # invalid data can raise any error
        reason = f"{type(error).__name__}: {error}"[:500]
        raise InvalidFileError(
            f"{os.fspath(path)} must be a file that skvaecert saved, got one that "
            f"cannot be read: {reason} Nothing in it was run."
        ) from error


def _restore(
    content: Any, arrays: Arrays, checksum: str, brought: Brought, budget: Budget
) -> Any:
    if content["format"] != "skvaecert" or content["schema"] != SCHEMA:
        raise ValueError(
            f"its schema is {content['schema']!r}, and this version of skvaecert reads "
            f"{SCHEMA}. If the file is newer, update skvaecert."
        )
    objects = content["objects"]
    if "origin" in (objects[-1]["fitted"] or {}):
        # The same wherever the file is loaded, so that parts of a certificate merge.
        objects[-1]["fitted"]["origin"] = checksum
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Unpacker(arrays, brought, budget).unpack(objects)
