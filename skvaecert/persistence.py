"""Save fitted estimators and load them again, without running what a file says.

A file holds numbers, and names that are looked up in closed lists. Modules of one's own
are never made from names: whoever loads brings them along.
"""

import contextlib
import copy
import dataclasses
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import singledispatchmethod
from importlib.metadata import version
from numbers import Integral, Real
from types import NoneType
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skvaecert._archive import Archive, can_hold, naming, read_archive, write_archive
from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.calibration import Calibration, Tempering
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._estimator import check_unchanged, remember_params, warn_user
from skvaecert._samples import digest_samples
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._training.batches import Standardisation
from skvaecert._training.device import resolve_device, seeded
from skvaecert._training.net import VAENet
from skvaecert._training.optimizer import FlatAdam
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.baselines import (
    AggressiveEncoder,
    BatchNormVAE,
    BetaVAE,
    Capacity,
    CyclicalAnnealing,
    DeltaVAE,
    FreeBits,
    InfoVAE,
    LinearAnnealing,
    MuForcing,
    SigmaVAE,
)
from skvaecert.exceptions import InvalidFileError, NotSavedWarning
from skvaecert.networks import VAE, make_vae
from skvaecert.objectives import LagrangeWeight, Objective
from skvaecert.simplex import simplex_vertices
from skvaecert.witnesses import LinearWitness, simplex_witness

__all__ = ["Verification", "export_onnx", "load", "save", "verify"]

SCHEMA = 1
Path = str | os.PathLike[str]
Modules = Mapping[str, nn.Module | Callable[[int, int], nn.Module]]
Node = Any

_ESTIMATORS: dict[str, type[BaseEstimator]] = {
    kind.__name__: kind
    for kind in (
        CertifiedVAE,
        CollapseCertifier,
        FrozenEstimator,
        GMMTeacher,
        GaussianMixture,
        PCA,
    )
}
_OBJECTIVES: dict[str, type[Objective]] = {
    kind.__name__: kind
    for kind in (
        AggressiveEncoder,
        BatchNormVAE,
        BetaVAE,
        Capacity,
        CyclicalAnnealing,
        DeltaVAE,
        FreeBits,
        InfoVAE,
        LinearAnnealing,
        MuForcing,
        Objective,
        SigmaVAE,
    )
}
_RECORDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (Calibration, LinearWitness, Tempering, Standardisation)
}
# What GMMTeacher sets; the rest of their parameters is as scikit-learn has it.
_SOME_PARAMS = {
    PCA: ("n_components",),
    GaussianMixture: (
        "n_components",
        "covariance_type",
        "reg_covar",
        "n_init",
        "max_iter",
    ),
}
_NAMES = ("n_features_in_", "feature_names_in_")
_STATES: dict[type, tuple[str, ...]] = {
    PCA: (
        "n_features_in_",
        "_fit_svd_solver",
        "mean_",
        "noise_variance_",
        "n_samples_",
        "n_components_",
        "components_",
        "explained_variance_",
        "explained_variance_ratio_",
        "singular_values_",
    ),
    GaussianMixture: (
        "n_features_in_",
        "weights_",
        "means_",
        "covariances_",
        "precisions_cholesky_",
        "precisions_",
        "lower_bound_",
        "lower_bounds_",
        "n_iter_",
        "converged_",
    ),
    GMMTeacher: (
        *_NAMES,
        "pca_",
        "mixture_",
        "search_results_",
        "n_components_",
        "n_iter_",
        "temperature_",
        "information_",
        "energy_",
        "mean_proba_",
    ),
    CertifiedVAE: (
        *_NAMES,
        "_split_seed",
        "_standardisation",
        "teacher_",
        "vertices_",
        "witness_scale_",
        "prefit_alpha_",
        "n_iter_",
    ),
    CollapseCertifier: (
        *_NAMES,
        "estimator_",
        "teacher_",
        "vertices_",
        "witness_scale_",
        "witness_",
        "mean_proba_",
        "_calibration",
    ),
    FrozenEstimator: (),
}
_FITTED = ("estimator_", "mixture_", "pca_", "teacher_")
_OWN_MODULES = ("encoder", "decoder")
_UNSAVED = ("callbacks", "memory")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SETTINGS = ("lr", "initial_lr", "betas", "eps", "weight_decay")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# Strings of an array take as much memory as the longest one.
_MOST_TEXT = 2**24
# An epoch of one byte in a file becomes some thousand bytes.
_MOST_EPOCHS = 10**5
_PACKAGES = ("skvaecert", "numpy", "scikit-learn", "torch", "skorch")
_WHAT_CAN_BE_SAVED = (
    "What can be saved is GMMTeacher, CertifiedVAE and CollapseCertifier, with the "
    "objectives of skvaecert.baselines, FrozenEstimator around them, and modules of "
    "your own as encoder and decoder of a CertifiedVAE. For anything else use pickle, "
    "for yourself only, or ONNX."
)
# Of the numbers in a certificate other than margins, as a share.
_CLOSE = 1e-4


class _ModulesError(ValueError):
    """What is wrong with the modules that a user gave, not with the file."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """Whether a saved certificate is what the saved model gives on rows at hand.

    Attributes
    ----------
    same_rows : bool
        Whether the rows, and posteriors if there are any, have the hash in the file.
    agrees : bool
        Whether the certificate made again is the stored one: same verdict, counts and
        witness; margins within its tolerance, other numbers to 1e-4 of their size.
    verdict, recomputed_verdict : str
        Stored, and of the certificate made again.
    margin, recomputed_margin : float
        The same for the margin, nats.
    tolerance : float
        What rounding could have added to the margin made again, nats.
    """

    same_rows: bool
    agrees: bool
    verdict: str
    recomputed_verdict: str
    margin: float
    recomputed_margin: float
    tolerance: float

    @property
    def confirmed(self) -> bool:
        """Whether rows and numbers are both those of the certificate.

        Returns
        -------
        bool
            True only if both are.
        """
        return self.same_rows and self.agrees

    def __str__(self) -> str:
        rows = "the rows of the certificate" if self.same_rows else "OTHER rows"
        numbers = "as it says" if self.agrees else "NOT as it says"
        return (
            f"{'Confirmed' if self.confirmed else 'Not confirmed'}: these are {rows}, "
            f"and the model is {numbers}: stored {self.verdict!r} with margin "
            f"{self.margin:.6g} nats, recomputed {self.recomputed_verdict!r} with "
            f"{self.recomputed_margin:.6g} (tolerance {self.tolerance:.1g})."
        )


def save(estimator: BaseEstimator, path: Path) -> None:
    """Save a fitted estimator to a file that is safe to load.

    The file is a zip, not compressed, of ``config.json``, ``certificate.json`` and
    ``arrays.safetensors``: parameters, names and numbers, and no code.

    Parameters
    ----------
    estimator : GMMTeacher, CertifiedVAE or CollapseCertifier
        Fitted.
    path : str or path
        Where; a file that is there is replaced once the new one is complete.

    Raises
    ------
    ValueError
        If something in the estimator cannot be saved, or parameters that a warm start
        cannot change were changed since the fit.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ImportError
        If the package safetensors is not there.

    Warns
    -----
    NotSavedWarning
        If there are `callbacks`, or a `memory`: they are left out.

    See Also
    --------
    load : The way back.
    export_onnx : For serving without this package.

    Notes
    -----
    Of one's own modules the weights are saved; :func:`load` needs the modules. The
    optimizer's moments are in the file, so that a warm start goes on where it
    was. The losses of single batches in the history of `net_` are not.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import GMMTeacher
    >>> from skvaecert.persistence import load, save
    >>> X = load_iris().data
    >>> teacher = GMMTeacher(n_components=3, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(teacher, f"{folder}/teacher.skvaecert")
    ...     loaded = load(f"{folder}/teacher.skvaecert")
    >>> bool((loaded.transform(X) == teacher.transform(X)).all())
    True
    """
    if type(estimator) not in (CertifiedVAE, CollapseCertifier, GMMTeacher):
        raise _refusal("estimator", estimator)
    check_is_fitted(estimator)
    packer = _Packer()
    node = packer.estimator(estimator, type(estimator).__name__, fitted=True)
    written_with = {name: version(name) for name in _PACKAGES}
    config = {
        "format": "skvaecert",
        "schema": SCHEMA,
        "written_with": written_with,
        "estimator": node,
    }
    certificate = None
    if isinstance(estimator, CollapseCertifier):
        certificate = {
            "certificate": {
                name: packer.pack(value, f"certificate.{name}")
                for name, value in estimator.certificate_.to_dict().items()
            },
            "certified_on": dict(estimator._certified_on),
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "written_with": written_with,
        }
    write_archive(path, Archive(config, certificate, packer.arrays))
    if packer.left_out:
        names = " and ".join(sorted(packer.left_out))
        warn_user(
            NotSavedWarning(
                f"{names} cannot be saved and will be None after load: set them again."
            )
        )


def load(path: Path, *, modules: Modules | None = None) -> Any:
    """Load an estimator from a file of :func:`save`, which may be a stranger's.

    Nothing in the file is imported or run, and sizes are checked before memory is
    taken. That the numbers are what they claim to be is another question:
    :func:`verify` answers it for the certificate.

    Parameters
    ----------
    path : str or path
        The file.
    modules : dict or None, default=None
        Under "encoder" and "decoder" the classes, functions or modules that the VAE
        was made of, if they were one's own; they get the weights in the file.

    Returns
    -------
    GMMTeacher, CertifiedVAE or CollapseCertifier
        Fitted, on the device that its parameter `device` asks for, or on the CPU where
        that is not there. `callbacks` and `memory` are None.

    Raises
    ------
    InvalidFileError
        If the file is not one that :func:`save` wrote.
    ValueError
        If `modules` are not those that the file needs.
    OSError
        If the file cannot be opened.

    See Also
    --------
    save : The way there, with an example.
    """
    return _load(path, modules or {})[0]


def verify(
    path: Path,
    X: ArrayLike,
    *,
    teacher_proba: ArrayLike | None = None,
    modules: Modules | None = None,
) -> Verification:
    """Load a certifier and make its training certificate again.

    Parameters
    ----------
    path : str or path
        A file with a :class:`CollapseCertifier`.
    X : array-like of shape (n_samples, n_features)
        The rows of its `fit`, all of them and in their order. For a fitted witness the
        certificate is on half of them.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        The posteriors of its `fit`, if there were any.
    modules : dict or None, default=None
        As in :func:`load`.

    Returns
    -------
    Verification
        Prints as a sentence.

    Raises
    ------
    InvalidFileError
        If the file is not valid or holds no certifier.
    ValueError
        If rows or posteriors are not valid.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.persistence import save, verify
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(certifier, f"{folder}/iris.skvaecert")
    ...     verification = verify(f"{folder}/iris.skvaecert", X)
    >>> verification.confirmed
    True
    """
    certifier, certified_on = _load(path, modules or {})
    if certified_on is None:
        raise InvalidFileError(
            f"{os.fspath(path)} must hold a CollapseCertifier to be verified, got a "
            f"{type(certifier).__name__}, which has no certificate."
        )
    given = None if teacher_proba is None else digest_samples(teacher_proba)
    digests = {"rows": digest_samples(X), "teacher_proba": given}
    same_rows = digests == certified_on and digests["rows"] is not None
    stored = certifier.certificate_
    certifier.safety_margin = stored.safety_margin
    # Rows that were certified once are not to blame if they cannot be any more.
    with naming(path) if same_rows and not modules else contextlib.nullcontext():
        again = certifier._certify_again(X, teacher_proba)
    return Verification(
        same_rows=same_rows,
        agrees=_agree(stored, again),
        verdict=stored.verdict,
        recomputed_verdict=again.verdict,
        margin=stored.margin,
        recomputed_margin=again.margin,
        tolerance=again.tolerance,
    )


def _agree(stored: Certificate, again: Certificate) -> bool:
    pairs = zip(stored.to_dict().items(), again.to_dict().values(), strict=True)
    return all(
        bool(np.isclose(a, b, rtol=_CLOSE, atol=again.tolerance, equal_nan=True))
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for (_, a), b in pairs
    )


def _refusal(where: str, value: Any) -> ValueError:
    return ValueError(
        f"{where} must be something that can be saved, got a {type(value).__name__}. "
        f"{_WHAT_CAN_BE_SAVED}"
    )


class _Packer:
    """Turns an estimator into JSON values and arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.left_out: set[str] = set()
        self._numbers: dict[tuple[int, bool], int] = {}

    @singledispatchmethod
    def pack(self, value: Any, where: str) -> Node:
        raise _refusal(where, value)

    @pack.register(NoneType)
    @pack.register(bool)
    @pack.register(str)
    def _same(self, value: Any, where: str) -> Node:
        return value

    @pack.register
    def _int(self, value: Integral, where: str) -> Node:
        return int(value)

    @pack.register
    def _float(self, value: Real, where: str) -> Node:
        number = float(value)
        if math.isfinite(number):
            return number
        return {"kind": "not_finite", "value": str(number)}

    @pack.register
    def _scalar(self, value: np.generic, where: str) -> Node:
        return self.pack(value.item(), where)

    @pack.register
    def _list(self, value: list, where: str) -> Node:
        return [self.pack(item, f"{where}.{i}") for i, item in enumerate(value)]

    @pack.register
    def _tuple(self, value: tuple, where: str) -> Node:
        items = [self.pack(item, f"{where}.{i}") for i, item in enumerate(value)]
        return {"kind": "tuple", "items": items}

    @pack.register
    def _dict(self, value: dict, where: str) -> Node:
        items = {key: self.pack(item, f"{where}.{key}") for key, item in value.items()}
        return {"kind": "dict", "items": items}

    @pack.register
    def _array(self, value: np.ndarray, where: str) -> Node:
        if value.dtype.kind in "UO":
            return self._strings(value, where)
        if not can_hold(value):
            raise _refusal(f"{where}, of dtype {value.dtype},", value)
        # Matrix products of transposed arrays round differently.
        across = value.ndim > 1 and value.flags.f_contiguous
        across &= not value.flags.c_contiguous
        self.arrays[where] = value.T if across else value
        return {"kind": "array", "name": where, "transposed": bool(across)}

    def _strings(self, value: NDArray[Any], where: str) -> Node:
        texts = value.tolist()
        if value.ndim != 1 or not all(isinstance(text, str) for text in texts):
            raise _refusal(where, value)
        objects = value.dtype == object
        return {"kind": "strings", "values": texts, "objects": bool(objects)}

    @pack.register
    def _tensor(self, value: Tensor, where: str) -> Node:
        return self.pack(value.detach().cpu().numpy(), where)

    @pack.register
    def _random_state(self, value: np.random.RandomState, where: str) -> Node:
        _, key, position, has_gauss, gauss = value.get_state(legacy=True)
        rest = [int(position), int(has_gauss), float(gauss)]
        return {"kind": "random_state", "key": self.pack(key, where), "rest": rest}

    @pack.register
    def _objective(self, value: Objective, where: str) -> Node:
        if _OBJECTIVES.get(type(value).__name__) is not type(value):
            raise _refusal(where, value)
        params = self._params(value, list(value.get_params(deep=False)), where)
        return {"kind": "objective", "type": type(value).__name__, "params": params}

    @pack.register(Calibration)
    @pack.register(LinearWitness)
    @pack.register(Tempering)
    def _record(self, value: Any, where: str) -> Node:
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return self._named(type(value), fields, where)

    @pack.register
    def _standardisation(self, value: Standardisation, where: str) -> Node:
        return self._named(type(value), value._asdict(), where)

    def _named(self, kind: type, fields: dict[str, Any], where: str) -> Node:
        items = {key: self.pack(item, f"{where}.{key}") for key, item in fields.items()}
        return {"kind": "record", "type": kind.__name__, "fields": items}

    @pack.register
    def _error(self, value: Exception, where: str) -> Node:
        return {"kind": "error", "text": str(value)}

    @pack.register
    def _unfitted(self, value: BaseEstimator, where: str) -> Node:
        return self.estimator(value, where, fitted=False)

    def estimator(self, value: Any, where: str, *, fitted: bool) -> Node:
        """Pack an estimator, or a reference to one that was packed before."""
        # A frozen one is the same as a parameter and as what was fitted.
        fitted |= isinstance(value, FrozenEstimator)
        key = id(value), fitted
        if key in self._numbers:
            return {"kind": "same", "number": self._numbers[key]}
        kind, nested = type(value), "." in where
        is_certifier = kind is CollapseCertifier and nested
        if _ESTIMATORS.get(kind.__name__) is not kind or is_certifier:
            raise _refusal(where, value)
        names = _SOME_PARAMS.get(kind) or tuple(value.get_params(deep=False))
        node = {
            "kind": "estimator",
            "type": kind.__name__,
            "params": self._params(value, names, where),
            "state": self._state(value, where) if fitted else None,
        }
        self._numbers[key] = len(self._numbers)
        return node

    def _params(self, value: Any, names: Any, where: str) -> dict[str, Node]:
        return {
            name: self._param(value, name, getattr(value, name), f"{where}.{name}")
            for name in names
        }

    def _param(self, owner: Any, name: str, value: Any, where: str) -> Node:
        if isinstance(owner, CertifiedVAE) and name in _UNSAVED:
            self.left_out |= {name} if value is not None else set()
            return None
        if isinstance(owner, CertifiedVAE) and name in _OWN_MODULES and callable(value):
            return {"kind": "module", "name": name}
        if isinstance(owner, FrozenEstimator):
            check_is_fitted(value)
            return self.estimator(value, where, fitted=True)
        return self.pack(value, where)

    def _state(self, value: Any, where: str) -> dict[str, Node]:
        held = {name: getattr(value, name, None) for name in _STATES[type(value)]}
        state = {
            name: self.estimator(item, f"{where}.{name}", fitted=True)
            if name in _FITTED and item is not None
            else self.pack(item, f"{where}.{name}")
            for name, item in held.items()
            if hasattr(value, name)
        }
        if isinstance(value, CertifiedVAE):
            check_unchanged(value)
            state["net_"] = self._net(value.net_, f"{where}.net_")
        elif isinstance(value, CollapseCertifier) and hasattr(value, "_remembered"):
            value._check_same_teacher(None)
        return state

    def _net(self, net: VAENet, where: str) -> Node:
        weights = net.module_.state_dict().items()
        parameters = net.module_.named_parameters()
        criterion = net.criterion_
        return {
            "kind": "net",
            "weights": {
                name: self.pack(tensor, f"{where}.{name}") for name, tensor in weights
            },
            "frozen": [name for name, p in parameters if not p.requires_grad],
            "optimizer": self._optimizer(net.optimizer_, f"{where}.optimizer"),
            "kl_weight": float(criterion.kl_weight),
            "alignment_weight": self._alignment(criterion),
            "settings": {
                name: getattr(net, name) for name in ("lr", "batch_size", "max_epochs")
            },
            "history": self._history(list(net.history), f"{where}.history"),
            "interrupted": bool(net.interrupted_),
        }

    def _optimizer(self, optimizer: torch.optim.Optimizer, where: str) -> Node:
        state = optimizer.state_dict()
        return {
            "flat": isinstance(optimizer, FlatAdam),
            "n_steps": getattr(optimizer, "_n_steps", 0),
            "group": {
                name: self.pack(value, where)
                for name, value in state["param_groups"][0].items()
                if name in _SETTINGS
            },
            "moments": {
                str(index): {
                    name: self.pack(moments[name], f"{where}.{index}.{name}")
                    for name in _MOMENTS
                }
                for index, moments in state["state"].items()
            },
        }

    def _alignment(self, criterion: Any) -> Node:
        guard = criterion.guard
        if guard is None:
            return float(criterion.alignment_weight)
        return {
            "kind": "guard",
            "target_margin": float(guard.target_margin),
            "information": float(guard.information),
            "weight": float(guard.weight),
            "gap": float(guard.gap),
            "mean": None if guard._mean is None else float(guard._mean),
        }

    def _history(self, rows: list[dict[str, Any]], where: str) -> Node:
        """Pack numbers column by column, each with the rows that have it."""
        names = dict.fromkeys(
            name
            for row in rows
            for name, value in row.items()
            if isinstance(name, str) and isinstance(value, bool | Integral | Real)
        )
        columns = {}
        for name in names:
            has = [i for i, row in enumerate(rows) if isinstance(row.get(name), Real)]
            values = np.array([rows[i][name] for i in has])
            columns[name] = {
                "values": self.pack(values, f"{where}.{name}"),
                "rows": None
                if len(has) == len(rows)
                else self.pack(np.array(has), f"{where}.{name}.rows"),
            }
        return {"n_rows": len(rows), "columns": columns}


def _load(path: Path, modules: Modules) -> tuple[Any, dict[str, Any] | None]:
    archive = read_archive(path)
    unknown = set(modules) - set(_OWN_MODULES)
    if unknown:
        raise ValueError(
            f"modules must have keys among {_OWN_MODULES}, got {sorted(unknown)}."
        )
    try:
        with naming(path):
            return _restore(archive, modules)
    except InvalidFileError as error:
        # The user's own modules are at fault, not the file.
        if isinstance(error.__cause__, _ModulesError):
            raise ValueError(str(error.__cause__)) from error.__cause__.__cause__
        raise


def _restore(archive: Archive, modules: Modules) -> tuple[Any, dict[str, Any] | None]:
    config = _entries(
        archive.config, "config", "format", "schema", "written_with", "estimator"
    )
    _require(config["format"] == "skvaecert", "it is not of skvaecert.")
    _require(
        type(config["schema"]) is int and config["schema"] == SCHEMA,
        f"its schema is {config['schema']!r}, and this version of skvaecert reads "
        f"{SCHEMA}. If the file is newer, update skvaecert.",
    )
    _check_versions(config["written_with"])
    # The same wherever it is loaded, so that parts of a certificate can be merged.
    origin = joblib.hash((archive.config, archive.certificate, archive.arrays))
    unpacker = _Unpacker(archive.arrays, modules)
    estimator = unpacker.unpack(config["estimator"])
    kinds = CertifiedVAE, CollapseCertifier, GMMTeacher
    _require(type(estimator) in kinds, "it holds no estimator of skvaecert.")
    check_is_fitted(estimator)
    _require(not unpacker.arrays, f"nothing refers to {sorted(unpacker.arrays)[:3]}.")
    if not isinstance(estimator, CollapseCertifier):
        _require(archive.certificate is None, "it has a certificate of nothing.")
        return estimator, None
    names = "certificate", "certified_on", "saved", "written_with"
    record = _entries(archive.certificate, "certificate", *names)
    _check_versions(record["written_with"])
    _require(isinstance(record["saved"], str), "its date is no text.")
    estimator.certificate_ = _certificate(unpacker._items(record["certificate"]))
    _check_certified(estimator)
    digests = _entries(record["certified_on"], "hashes", "rows", "teacher_proba")
    _require(all(map(_is_digest, digests.values())), "its hashes are no SHA-256.")
    estimator._certified_on = digests
    estimator._origin = origin
    return estimator, digests


def _require(condition: Any, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _entries(node: Any, what: str, *names: str) -> dict[str, Any]:
    _require(
        isinstance(node, dict) and node.keys() == set(names),
        f"its {what} must have the entries {names}.",
    )
    return dict(node)


def _check_versions(node: Any) -> None:
    right = isinstance(node, dict) and len(node) <= 20
    _require(
        right and all(isinstance(v, str) for v in node.values()),
        "its versions are no texts.",
    )


def _is_digest(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, str)
        and len(value) == 64
        and set(value) <= {*"0123456789abcdef"}
    )


def _certificate(fields: Any) -> Certificate:
    names = [field.name for field in dataclasses.fields(Certificate)]
    c = Certificate(**_entries(fields, "certificate", *names))
    _require(c.verdict in ("certified", "constant", "inconclusive"), "its verdict.")
    _require(c.witness in ("raw", "procrustes", "linear"), "its certificate's witness.")
    _require(c.kind == "mean", "its certificate must be one of the mean.")
    for name in ("n_samples", "n_components", "latent_dim"):
        _require(_is_count(getattr(c, name)), f"{name} of its certificate.")
    amounts = (
        c.teacher_information,
        c.alignment_loss,
        c.tolerance,
        c.safety_margin,
        c.dispersion,
        c.dispersion_bound,
    )
    _require(all(_is_number(a) and a >= 0 for a in amounts), "numbers are not finite.")
    margins = c.margin, c.margin_low, c.margin_high
    _require(
        all(map(_is_number, margins)), "margins of its certificate are not finite."
    )
    none = c.confidence is None and c.information_bound is None
    _require(none, "its certificate has what only sampled ones have.")
    difference = c.teacher_information - c.alignment_loss
    _require(
        math.isclose(c.margin, difference, rel_tol=1e-9, abs_tol=1e-9 + c.tolerance),
        "the margin of its certificate is not the difference of its parts.",
    )
    above = c.margin > c.safety_margin + c.tolerance
    _require(
        above or c.verdict != "certified",
        "its certificate is called certified, but its margin is not above what is "
        "needed.",
    )
    return c


def _check_certified(certifier: CollapseCertifier) -> None:
    c, shape = certifier.certificate_, certifier.witness_.weights.shape
    _require(
        (c.n_components, c.latent_dim) == shape
        and c.witness == certifier.witness_.name,
        "its certificate is that of another model.",
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class _Unpacker:
    """Makes estimators of JSON values and arrays, all of which may be wrong."""

    def __init__(self, arrays: dict[str, NDArray[Any]], modules: Modules) -> None:
        self.arrays = dict(arrays)
        self._modules = modules
        self._made: list[Any] = []
        self._kinds: dict[str, Callable[..., Any]] = {
            "array": self._array,
            "dict": self._dict,
            "error": lambda *, text: ValueError(text),
            "estimator": self._estimator,
            "guard": self._guard,
            "module": self._module,
            "not_finite": lambda *, value: _NOT_FINITE[value],
            "objective": self._objective,
            "random_state": self._random_state,
            "record": self._record,
            "same": self._same,
            "strings": self._strings,
            "tuple": lambda *, items: tuple(self.unpack(items)),
        }

    def unpack(self, node: Node) -> Any:
        if isinstance(node, list):
            return [self.unpack(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = str(node.get("kind"))
        _require(kind in self._kinds, f"it has an entry of kind {kind[:40]!r}.")
        # Entries that the kind does not have are a TypeError, as of any function.
        return self._kinds[kind](**{k: v for k, v in node.items() if k != "kind"})

    def _items(self, items: Any) -> dict[str, Any]:
        _require(isinstance(items, dict), "an entry of it is no object.")
        return {name: self.unpack(item) for name, item in items.items()}

    def _array(self, *, name: str, transposed: bool) -> NDArray[Any]:
        _require(name in self.arrays, f"there is no array {str(name)[:80]!r}.")
        array = self.arrays.pop(name)
        return array.T if transposed else array

    def _dict(self, *, items: Any) -> dict[str, Any]:
        return self._items(items)

    def _strings(self, *, values: list[str], objects: bool) -> NDArray[Any]:
        right = isinstance(values, list) and all(isinstance(v, str) for v in values)
        _require(right, "its texts are no texts.")
        longest = max(map(len, values), default=0)
        _require(longest * len(values) <= _MOST_TEXT, "its texts are too long.")
        return np.array(values, dtype=object if objects else str)

    def _random_state(self, *, key: Node, rest: list[Any]) -> np.random.RandomState:
        state = np.random.RandomState()
        position, has_gauss, gauss = rest
        key = self.unpack(key)
        _require(key.shape == (624,) and key.dtype == np.uint32, "a generator's state.")
        _require(_is_count(position) and position <= 624, "a generator's position.")
        state.set_state(("MT19937", key, position, int(has_gauss), float(gauss)))
        return state

    def _objective(self, *, type: str, params: Any) -> Objective:
        _require(type in _OBJECTIVES, f"it has an objective {str(type)[:40]!r}.")
        objective = _OBJECTIVES[type](**self._params(_OBJECTIVES[type], params))
        objective._validate_params()
        return objective

    def _record(self, *, type: str, fields: Any) -> Any:
        _require(type in _RECORDS, f"it has a record {str(type)[:40]!r}.")
        record = _RECORDS[type](**self._items(fields))
        _RECORD_CHECKS[_RECORDS[type]](record)
        return record

    def _same(self, *, number: int) -> Any:
        _require(_is_count(number), "a reference in it is no count.")
        return self._made[number]

    def _module(self, *, name: str) -> Any:
        _require(name in _OWN_MODULES, f"it has a module {str(name)[:40]!r}.")
        if name not in self._modules:
            raise _ModulesError(
                f"modules must have the {name}, a class, function or module of its "
                "author's own, whose code is not in the file. Get it from the author "
                f'and load with modules={{"{name}": ...}}.'
            )
        return self._modules[name]

    def _guard(self, **numbers: Any) -> LagrangeWeight:
        mean = numbers.pop("mean")
        _require(all(map(_is_number, numbers.values())), "its guard is not finite.")
        _require(mean is None or _is_number(mean), "its guard's mean is not finite.")
        weight, gap = numbers.pop("weight"), numbers.pop("gap")
        guard = LagrangeWeight(**numbers, device=torch.device("cpu"))
        _require(guard.information > 0 and weight > 0, "its guard has no weight.")
        guard.weight.fill_(weight)
        guard.gap = gap
        guard._mean = None if mean is None else torch.tensor(mean)
        return guard

    def _params(self, kind: type, params: Any) -> dict[str, Any]:
        known = _SOME_PARAMS.get(kind) or kind._get_param_names()  # type: ignore[attr-defined]
        right = isinstance(params, dict) and params.keys() <= set(known)
        _require(right, f"a {kind.__name__} in it has unknown parameters.")
        return self._items(params)

    def _estimator(self, *, type: str, params: Any, state: Any) -> Any:
        _require(type in _ESTIMATORS, f"it has an estimator {str(type)[:40]!r}.")
        kind = _ESTIMATORS[type]
        estimator = kind(**self._params(kind, params))
        estimator._validate_params()
        if isinstance(estimator, CertifiedVAE):
            unsaved = [
                name for name in _UNSAVED if getattr(estimator, name) is not None
            ]
            _require(not unsaved, f"it has {unsaved}, which are never saved.")
        if isinstance(estimator, FrozenEstimator):
            check_is_fitted(estimator)
        if state is not None:
            self._fill(estimator, state)
        self._made.append(estimator)
        return estimator

    def _fill(self, estimator: Any, state: Any) -> None:
        kind = type(estimator)
        _require(isinstance(state, dict), "a state in it is no object.")
        net = state.get("net_") if kind is CertifiedVAE else None
        held = {k: v for k, v in state.items() if not (net is not None and k == "net_")}
        unknown = held.keys() - set(_STATES[kind])
        _require(not unknown, f"a {kind.__name__} in it has unknown attributes.")
        for name, value in self._items(held).items():
            setattr(estimator, name, value)
        _require(_has_names(estimator), "its names of features are not as many.")
        _STATE_CHECKS[kind](estimator)
        if net is not None:
            self._fill_net(estimator, net)
        elif kind is CollapseCertifier and not _from_owner(estimator):
            remember_params(estimator)

    def _fill_net(self, vae: CertifiedVAE, node: Any) -> None:
        names = (
            *("kind", "weights", "frozen", "optimizer", "kl_weight"),
            *("alignment_weight", "settings", "history", "interrupted"),
        )
        node = _entries(node, "net", *names)
        _require(node["kind"] == "net", "its net is none.")
        numbers = self._items(node["settings"])
        _require(numbers.keys() == {"lr", "batch_size", "max_epochs"}, "its settings.")
        _require(
            all(_is_number(n) and n > 0 for n in numbers.values())
            and all(_is_count(numbers[name]) for name in ("batch_size", "max_epochs")),
            "its settings.",
        )
        alignment = self.unpack(node["alignment_weight"])
        is_weight = _is_number(alignment) and alignment >= 0
        _require(
            is_weight or isinstance(alignment, LagrangeWeight), "its alignment weight."
        )
        _require(_is_number(node["kl_weight"]) and node["kl_weight"] >= 0, "kl_weight.")
        module = self._module_of(vae, self._items(node["weights"]), node["frozen"])
        device = _device_of(vae)
        if isinstance(alignment, LagrangeWeight):
            alignment = _moved(alignment, device)
        vae.net_ = vae._make_net(
            module,
            device,
            kl_weight=node["kl_weight"],
            alignment_weight=alignment,
            callbacks=None,
            **numbers,
        )
        self._fill_optimizer(vae.net_, node["optimizer"])
        vae.net_.interrupted_ = bool(node["interrupted"])
        self._fill_history(vae.net_, node["history"])
        vae.history_ = vae._history()
        remember_params(vae)

    def _module_of(self, vae: CertifiedVAE, weights: Any, frozen: Any) -> VAE:
        """Make the module, once it is known to be as large as its weights are."""
        given = {k: (v.shape, v.dtype) for k, v in weights.items()}
        own = [name for name in _OWN_MODULES if callable(getattr(vae, name))]
        # Even without memory for weights, a layer takes some thousand bytes.
        right = len(own) == 2 or len(vae.hidden_sizes) <= len(weights)
        _require(right, "its network has more layers than weights.")
        expected = _expected(vae, own)
        ours = {k: v for k, v in given.items() if k.partition(".")[0] not in own}
        _require(ours == expected, "its weights are not those of its network.")
        _require(
            all(np.isfinite(w).all() for w in weights.values()),
            "its weights are not finite.",
        )
        with seeded(0, torch.device("cpu")):
            try:
                module = vae._make_module()
                state = {k: torch.from_numpy(w) for k, w in weights.items()}
                module.load_state_dict(state)
            except Exception as error:
                if not own:
                    raise
                raise _ModulesError(
                    f"modules must be those of the file for {own}, got others: {error}"
                ) from error
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return module

    def _fill_optimizer(self, net: VAENet, node: Any) -> None:
        names = "flat", "n_steps", "group", "moments"
        node = _entries(node, "optimizer", *names)
        if not node["flat"] and isinstance(net.optimizer_, FlatAdam):
            # Callbacks that are not saved had asked for it.
            net.set_params(optimizer=torch.optim.Adam)
        _require(node["flat"] == isinstance(net.optimizer_, FlatAdam), "its optimizer.")
        optimizer = net.optimizer_
        group = self._items(node["group"])
        _require(group.keys() <= set(_SETTINGS), "its optimizer's settings.")
        _require(all(_are_numbers(v) for v in group.values()), "optimizer's settings.")
        state = optimizer.state_dict()
        state["param_groups"][0].update(group)
        parameters = optimizer.param_groups[0]["params"]
        state["state"] = {
            int(index): self._moments(parameters[int(index)], moments)
            for index, moments in node["moments"].items()
        }
        optimizer.load_state_dict(state)
        if isinstance(optimizer, FlatAdam):
            _require(_is_count(node["n_steps"]), "its count of steps.")
            optimizer._n_steps = node["n_steps"]

    def _moments(self, parameter: Tensor, node: Any) -> dict[str, Tensor]:
        moments = self._items(_entries(node, "moments", *_MOMENTS))
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        for name, value in moments.items():
            right = value.shape == shapes[name] and value.dtype == np.float32
            _require(right and np.isfinite(value).all(), "its optimizer's moments.")
        _require((moments["exp_avg_sq"] >= 0).all(), "a mean of squares is below 0.")
        return {name: torch.from_numpy(value) for name, value in moments.items()}

    def _fill_history(self, net: VAENet, node: Any) -> None:
        node = _entries(node, "history", "n_rows", "columns")
        columns = {
            name: self._items(_entries(column, "history", "values", "rows"))
            for name, column in node["columns"].items()
        }
        for column in columns.values():
            if column["rows"] is None:
                column["rows"] = np.arange(len(column["values"]))
        sizes = [len(column["rows"]) for column in columns.values()]
        _require(max(sizes, default=0) <= _MOST_EPOCHS, "its history is too long.")
        # Every epoch has a number.
        _require(node["n_rows"] == max(sizes, default=0), "its history is too long.")
        rows: list[dict[str, Any]] = [{"batches": []} for _ in range(node["n_rows"])]
        for name, column in columns.items():
            pairs = zip(column["rows"].tolist(), column["values"].tolist(), strict=True)
            for i, value in pairs:
                rows[i][name] = value
        # One by one takes a time that grows with the square of their number.
        net.history.extend(rows)


def _expected(
    vae: CertifiedVAE, own: list[str]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shapes and dtypes of our own weights; without memory for them."""
    with torch.device("meta"), seeded(0, torch.device("cpu")):
        module = make_vae(
            vae.n_features_in_,
            vae.latent_dim,
            tuple(vae.hidden_sizes),
            None if "encoder" in own else vae.encoder,
            None if "decoder" in own else vae.decoder,
            (vae.objective or Objective()).posterior(vae.latent_dim),
            vae.image_shape,
        )
    return {
        name: (tuple(t.shape), np.dtype(str(t.dtype).removeprefix("torch.")))
        for name, t in module.state_dict().items()
        if name.partition(".")[0] not in own
    }


def _device_of(vae: CertifiedVAE) -> torch.device:
    # For some others torch imports a module of that name; "meta" holds no numbers.
    if vae.device.partition(":")[0] not in _DEVICES:
        return torch.device("cpu")
    try:
        return resolve_device(vae.device)
    except ValueError:
        return torch.device("cpu")


def _moved(guard: LagrangeWeight, device: torch.device) -> LagrangeWeight:
    guard.weight = guard.weight.to(device)
    guard._mean = None if guard._mean is None else guard._mean.to(device)
    return guard


def _are_numbers(value: Any) -> bool:
    return all(map(_is_number, value if isinstance(value, tuple) else [value]))


def _from_owner(certifier: CollapseCertifier) -> bool:
    """Tell whether the teacher is the encoder's, or none."""
    theirs = getattr(certifier._owner, "teacher_", None)
    return theirs is not None or certifier.teacher_ is None


def _has_names(estimator: Any) -> bool:
    names: Any = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return True
    return isinstance(names, np.ndarray) and len(names) == estimator.n_features_in_


def _check_shapes(
    what: str, arrays: Mapping[str, Any], **shapes: tuple[int, ...]
) -> None:
    for name, shape in shapes.items():
        array = arrays[name]
        right = isinstance(array, np.ndarray) and array.shape == shape
        right = right and array.dtype == np.float64 and bool(np.isfinite(array).all())
        _require(right, f"{name} of a {what} must be finite numbers of shape {shape}.")


def _check_proba(what: str, proba: NDArray[np.float64]) -> None:
    right = (proba > 0).all() and math.isclose(proba.sum(), 1, abs_tol=1e-6)
    _require(right, f"{what} must be above 0 and sum to 1.")


def _check_counts(estimator: Any, *names: str) -> None:
    for name in names:
        right = _is_count(getattr(estimator, name)) and getattr(estimator, name) > 0
        _require(right, f"{name} must be a count above 0.")


def _check_pca(pca: PCA) -> None:
    _check_counts(pca, "n_components_", "n_features_in_")
    n_kept, n_features = pca.n_components_, pca.n_features_in_
    _check_shapes(
        "PCA",
        vars(pca),
        components_=(n_kept, n_features),
        mean_=(n_features,),
        explained_variance_=(n_kept,),
        explained_variance_ratio_=(n_kept,),
        singular_values_=(n_kept,),
    )


def _check_mixture(mixture: GaussianMixture) -> None:
    _check_counts(mixture, "n_components", "n_features_in_")
    k, p = mixture.n_components, mixture.n_features_in_
    shapes = {"full": (k, p, p), "tied": (p, p), "diag": (k, p), "spherical": (k,)}
    shape = shapes[mixture.covariance_type]
    _check_shapes(
        "GaussianMixture",
        vars(mixture),
        weights_=(k,),
        means_=(k, p),
        covariances_=shape,
        precisions_=shape,
        precisions_cholesky_=shape,
    )
    _check_proba("weights of a mixture", mixture.weights_)


def _check_teacher(teacher: GMMTeacher) -> None:
    _check_counts(teacher, "n_components_", "n_features_in_")
    pca, mixture = teacher.pca_, teacher.mixture_
    _require(
        type(pca) is PCA and pca.n_features_in_ == teacher.n_features_in_, "its PCA."
    )
    sizes = teacher.n_components_, pca.n_components_
    _require(
        type(mixture) is GaussianMixture
        and (mixture.n_components, mixture.n_features_in_) == sizes,
        "the mixture of a teacher does not go with its PCA.",
    )
    numbers = teacher.temperature_, teacher.information_, teacher.energy_
    _require(all(map(_is_number, numbers)), "numbers of a teacher are not finite.")
    _require(teacher.temperature_ > 0, "the temperature of a teacher is not above 0.")
    _check_shapes("GMMTeacher", vars(teacher), mean_proba_=(teacher.n_components_,))
    _check_proba("mean posterior of a teacher", teacher.mean_proba_)
    results: Any = teacher.search_results_
    _require(results is None or _is_table(results), "the search of a teacher.")


def _is_table(results: Any) -> bool:
    columns: list[Any] = [None]
    if isinstance(results, dict):
        columns = list(results.values())
    return all(
        isinstance(column, np.ndarray) and column.shape == (len(columns[0]),)
        for column in columns
    )


def _check_vae(vae: CertifiedVAE) -> None:
    _check_counts(vae, "n_features_in_")
    _require(_is_count(vae.n_iter_) and _is_count(vae._split_seed), "counts of a VAE.")
    _require(type(vae._standardisation) is Standardisation, "its standardisation.")
    _require(len(vae._standardisation.location) == vae.n_features_in_, "its location.")
    _check_simplex(vae)
    _require(vae.vertices_.shape[1] == vae.latent_dim, "latent_dim is not that of S.")
    _check_used_teacher(vae.teacher_, vae)
    alpha = getattr(vae, "prefit_alpha_", 0.0)
    _require(_is_number(alpha) and alpha >= 0, "prefit_alpha_ is not finite.")


def _check_simplex(estimator: Any) -> None:
    shape = np.shape(estimator.vertices_)
    _check_shapes("simplex", vars(estimator), vertices_=shape)
    _require(_is_number(estimator.witness_scale_), "its witness scale is not finite.")
    # So few dimensions would make a small file ask for a large K x K matrix.
    _require(len(shape) == 2 and shape[0] <= shape[1] + 1, "its vertices are too many.")
    # Any other simplex could have been turned towards the rows.
    right = np.allclose(estimator.vertices_, simplex_vertices(*shape), 0, 1e-9)
    _require(right, "its vertices are not those of simplex_vertices.")
    simplex_witness(estimator.vertices_, estimator.witness_scale_)


def _check_used_teacher(teacher: Any, owner: Any) -> None:
    inner = teacher.estimator if type(teacher) is FrozenEstimator else teacher
    _require(inner is None or type(inner) is GMMTeacher, "its teacher is none.")
    if inner is not None:
        check_is_fitted(inner)
        right = inner.n_features_in_ == getattr(
            owner, "n_features_in_", inner.n_features_in_
        )
        _require(right, "its teacher is of other rows.")


def _check_certifier(certifier: CollapseCertifier) -> None:
    inner = certifier.estimator_
    encoder = inner.estimator if type(inner) is FrozenEstimator else inner
    _require(type(encoder) in (CertifiedVAE, GMMTeacher), "its encoder is none.")
    check_is_fitted(encoder)
    right = getattr(certifier, "n_features_in_", encoder.n_features_in_)
    _require(right == encoder.n_features_in_, "its encoder is of other rows.")
    _check_used_teacher(certifier.teacher_, encoder)
    witness = certifier.witness_
    _require(type(witness) is LinearWitness, "its witness is none.")
    _require(witness.weights.shape[1] == encoder._n_features_out, "its witness.")
    _require(witness.name == certifier.witness, "its witness is another one.")
    n_components = len(witness.bias)
    _check_shapes("certifier", vars(certifier), mean_proba_=(n_components,))
    _check_proba("mean posterior of a certifier", certifier.mean_proba_)
    _require(type(certifier._calibration) is Calibration, "its calibration is none.")
    tempered = certifier._calibration.witness
    if isinstance(tempered, LinearWitness):
        right = tempered.weights.shape == witness.weights.shape
        _require(right and tempered.name == witness.name, "its calibration's witness.")
    if hasattr(certifier, "vertices_"):
        _check_simplex(certifier)
    if witness.name == "raw":
        _check_raw(witness, certifier)


def _check_raw(witness: LinearWitness, certifier: CollapseCertifier) -> None:
    """Check that a witness called fixed was not fitted to the rows it is to read."""
    fixed = simplex_witness(certifier.vertices_, certifier.witness_scale_)
    right = np.array_equal(witness.weights, fixed.weights) and not witness.bias.any()
    _require(right, "its raw witness is not that of its vertices and its scale.")


def _check_witness(witness: LinearWitness) -> None:
    _require(witness.name in ("raw", "procrustes", "linear"), "a witness has no name.")
    shape = np.shape(witness.weights)
    _require(len(shape) == 2, "weights of a witness are no matrix.")
    _check_shapes("witness", vars(witness), weights=shape, bias=shape[:1])


def _check_softness(tempering: Tempering) -> None:
    numbers = tempering.temperature, tempering.floor
    right = all(map(_is_number, numbers)) and numbers[0] > 0 and 0 <= numbers[1] < 1
    _require(right, "a tempering is not finite.")


def _check_calibration(calibration: Calibration) -> None:
    rows = calibration.rows
    right = isinstance(rows, np.ndarray) and rows.dtype == np.uint64 and rows.ndim == 1
    _require(right, "fingerprints of rows.")
    _require(isinstance(calibration.witness, LinearWitness | Exception), "calibration.")
    _require(isinstance(calibration.tempering, Tempering | Exception), "calibration.")


def _check_standardisation(standardisation: Standardisation) -> None:
    shape = np.shape(standardisation.location)
    _check_shapes("standardisation", standardisation._asdict(), location=shape)
    _require(len(shape) == 1, "a location is no vector.")
    _require(
        _is_number(standardisation.scale) and standardisation.scale > 0,
        "a scale is not above 0.",
    )


_STATE_CHECKS: dict[type, Callable[[Any], None]] = {
    CertifiedVAE: _check_vae,
    CollapseCertifier: _check_certifier,
    FrozenEstimator: lambda frozen: None,
    GMMTeacher: _check_teacher,
    GaussianMixture: _check_mixture,
    PCA: _check_pca,
}
_RECORD_CHECKS: dict[type, Callable[[Any], None]] = {
    Calibration: _check_calibration,
    LinearWitness: _check_witness,
    Tempering: _check_softness,
    Standardisation: _check_standardisation,
}


class _Served(nn.Module):
    """What is exported: from raw rows to latent means and log-probabilities."""

    location: Tensor
    factor: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, vae: CertifiedVAE, witness: LinearWitness) -> None:
        super().__init__()
        location, scale = vae._standardisation
        self.module = copy.deepcopy(vae.net_.module_).cpu().eval()
        self.register_buffer("location", torch.from_numpy(location))
        self.register_buffer("factor", torch.tensor(1 / scale, dtype=torch.float64))
        self.register_buffer("weights", torch.from_numpy(witness.weights.T.copy()))
        self.register_buffer("bias", torch.from_numpy(witness.bias))

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both, the network in float32 and all around it in float64."""
        standard = ((X - self.location) * self.factor).float()
        mean = self.module.encode(standard)[0].double()
        return mean, torch.log_softmax(mean @ self.weights + self.bias, dim=1)


def export_onnx(estimator: CertifiedVAE | CollapseCertifier, path: Path) -> None:
    """Export latent means and the witness's log-probabilities for serving, as ONNX.

    Parameters
    ----------
    estimator : CertifiedVAE or CollapseCertifier
        Fitted; of a certifier the encoder must be a CertifiedVAE, and its own
        witness is taken.
    path : str or path
        Where; a file that is there is replaced.

    Raises
    ------
    ValueError
        If the encoder is something else.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ImportError
        If the packages onnx and onnxscript are not there.

    Notes
    -----
    The input "X", of shape (n, n_features) in float64, takes rows as they are:
    standardisation is part of the model. Outputs, both float64, are "latent_mean" of
    shape (n, latent_dim) and "witness_log_proba" of shape (n, n_components).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, GMMTeacher
    >>> from skvaecert.persistence import export_onnx
    >>> vae = CertifiedVAE(GMMTeacher(n_components=3), latent_dim=2, random_state=0)
    >>> export_onnx(vae.fit(load_iris().data), "iris.onnx")  # doctest: +SKIP
    """
    check_is_fitted(estimator)
    vae, witness = _encoder_and_witness(estimator)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "export_onnx needs onnx and onnxscript: pip install 'skvaecert[onnx]'."
        ) from error
    served = _Served(vae, witness).eval()
    rows = torch.zeros(2, vae.n_features_in_, dtype=torch.float64)
    with _quiet():
        program = torch.onnx.export(
            served,
            (rows,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            input_names=["X"],
            output_names=["latent_mean", "witness_log_proba"],
        )
        assert program is not None
        program.save(os.fspath(path))


def _encoder_and_witness(estimator: Any) -> tuple[CertifiedVAE, LinearWitness]:
    if isinstance(estimator, CollapseCertifier):
        inner = estimator.estimator_
        vae = inner.estimator if isinstance(inner, FrozenEstimator) else inner
        witness = estimator.witness_
    elif isinstance(estimator, CertifiedVAE):
        vae = estimator
        witness = simplex_witness(vae.vertices_, vae.witness_scale_)
    else:
        vae = estimator
    if not isinstance(vae, CertifiedVAE):
        raise ValueError(
            "estimator must be a CertifiedVAE, or a CollapseCertifier of one, to be "
            f"exported, got a {type(vae).__name__}. Export that with its own tools."
        )
    return vae, witness


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about itself to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    silence = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
