"""Export for serving, as ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.witnesses import LinearWitness, simplex_witness

__all__ = ["export_onnx"]

Path = str | os.PathLike[str]

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class _ServedModel(nn.Module):
    """The exported module: raw samples to latent means and log-probabilities."""

    location: Tensor
    factor: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(
        self, vae: CertifiedVAE, witness: LinearWitness, dtype: torch.dtype
    ) -> None:
        super().__init__()
        state = vae.__get_fitted__()
        buffers = {
            "location": state["location"],
            "factor": 1 / state["scale"],
            "weights": witness.weights.T,
            "bias": witness.bias,
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value, dtype=dtype))
        self.module = copy.deepcopy(vae.net_.module_).cpu().eval()

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both outputs: the network in float32, the rest in the dtype of X."""
        # The same operations as `Standardization.apply`, so that rounding agrees.
        standard = ((X - self.location) * self.factor).float()
        mean = self.module.encode(standard)[0].to(self.location.dtype)
        return mean, torch.log_softmax(mean @ self.weights + self.bias, dim=1)


def export_onnx(
    estimator: CertifiedVAE | CollapseCertifier,
    path: Path,
    *,
    dtype: Literal["float64", "float32"] = "float64",
) -> None:
    """Export latent means and the witness's log-probabilities for serving, as ONNX.

    Parameters
    ----------
    estimator : CertifiedVAE or CollapseCertifier
        Fitted. The encoder of a certifier must be a CertifiedVAE, and its own witness
        is exported.
    path : str or path
        File to write. An existing file is replaced.
    dtype : {"float64", "float32"}, default="float64"
        dtype of the input and the outputs. With "float32", the file contains no
        float64, which many accelerators do not support.

    Raises
    ------
    ValueError
        If the encoder is not a CertifiedVAE, or `dtype` is not one of these options.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ImportError
        If the packages onnx and onnxscript are not installed.

    Notes
    -----
    The input "X", of shape (n, n_features), takes raw samples: the model standardizes
    them. The output "latent_mean", of shape (n, latent_dim), is the result of
    `transform` for samples of this dtype. The output "witness_log_proba" has shape
    (n, n_components).

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
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {[*_DTYPES]}, got {dtype!r}.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "export_onnx requires onnx and onnxscript: pip install 'skvaecert[onnx]'."
        ) from error
    served = _ServedModel(vae, witness, _DTYPES[dtype]).eval()
    # Two samples, since torch.export treats a batch of one sample as fixed.
    samples = torch.zeros(2, vae.n_features_in_, dtype=_DTYPES[dtype])
    with _quiet():
        program = torch.onnx.export(
            served,
            (samples,),
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
            f"exported, got a {type(vae).__name__}. Export other encoders with their "
            "own tools."
        )
    return vae, witness


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress output and its warnings."""
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
