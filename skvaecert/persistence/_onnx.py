"""Export for serving, as ONNX."""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

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


class _Served(nn.Module):
    """What is exported: from raw samples to latent means and log-probabilities."""

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
        """Compute both, the network in float32 and all around it in the dtype of X."""
        standard = ((X - self.location) * self.factor).float()
        mean = self.module.encode(standard)[0].to(self.location.dtype)
        return mean, torch.log_softmax(mean @ self.weights + self.bias, dim=1)


def export_onnx(
    estimator: CertifiedVAE | CollapseCertifier, path: Path, *, dtype: str = "float64"
) -> None:
    """Export latent means and the witness's log-probabilities for serving, as ONNX.

    Parameters
    ----------
    estimator : CertifiedVAE or CollapseCertifier
        Fitted; of a certifier the encoder must be a CertifiedVAE, and its own
        witness is taken.
    path : str or path
        Where; a file that is there is replaced.
    dtype : {"float64", "float32"}, default="float64"
        Of input and outputs. With "float32" nothing in the file is in float64, which
        many accelerators lack.

    Raises
    ------
    ValueError
        If the encoder is something else, or `dtype` is none of these.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ImportError
        If the packages onnx and onnxscript are not there.

    Notes
    -----
    The input "X", of shape (n, n_features), takes samples as they are: standardisation
    is part of the model. Outputs are "latent_mean" of shape (n, latent_dim), as
    `transform` returns it for samples of that dtype, and "witness_log_proba" of shape
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
            "export_onnx needs onnx and onnxscript: pip install 'skvaecert[onnx]'."
        ) from error
    served = _Served(vae, witness, _DTYPES[dtype]).eval()
    rows = torch.zeros(2, vae.n_features_in_, dtype=_DTYPES[dtype])
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
