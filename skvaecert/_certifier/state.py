"""Rules for the fitted state of a saved certifier, and for its certificate."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.calibration import Calibration, Tempering
from skvaecert._certifier.weights import digest_weights
from skvaecert._state import (
    ABSENT,
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    Array,
    Size,
    check_simplex,
    check_state,
)
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._teacher.state import check_teacher
from skvaecert._training.state import OwnModuleError
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.information import InformationBracket
from skvaecert.objectives import AlignmentLoss
from skvaecert.witnesses import LinearWitness, simplex_of

__all__ = ["FITTED", "AbsentEncoder", "check_certifier", "is_foreign"]

# Attributes that are saved, and private values that are saved with them.
FITTED = {
    "n_features_in_": (Size("p"), ABSENT),
    "feature_names_in_": (Array("p", object), ABSENT),
    "estimator_": HasMethods("transform"),
    "teacher_": (GMMTeacher, FrozenEstimator, None),
    "vertices_": (Array("K d"), ABSENT),
    "witness_scale_": (POSITIVE, ABSENT),
    "witness_": LinearWitness,
    "mean_proba_": Array("K", sums_to_1=True),
    "certificate_": Certificate,
}
_HIDDEN = {"calibration": Calibration, "certified_on": dict, "origin": str}
_CERTIFIED_ON = {
    "rows": (str, None),
    "teacher_proba": (str, None),
    "weights": str,
}
_WITNESS = {"weights": Array("K d"), "bias": Array("K"), "name": str}
_CALIBRATION = {
    "rows": Array("*", np.uint64),
    # A ValueError stands for a fit that failed.
    "witness": (LinearWitness, ValueError),
    "tempering": (Tempering, ValueError),
}
_TEMPERING = {
    "temperature": POSITIVE,
    "floor": Interval(Real, 0, 1, closed="neither"),
}
_CERTIFICATE = {
    "verdict": StrOptions({"certified", "varies", "constant", "inconclusive"}),
    "margin": NUMBER,
    "teacher_information": NOT_NEGATIVE,
    "alignment_loss": NOT_NEGATIVE,
    # May be NaN, and the tolerance infinite.
    "relative_margin": float,
    "tolerance": float,
    "safety_margin": NOT_NEGATIVE,
    "dispersion_bound": NOT_NEGATIVE,
    "dispersion": NOT_NEGATIVE,
    "witness": str,
    "n_samples": COUNT,
    "n_components": Size("K"),
    "latent_dim": Size("d"),
    "kind": StrOptions({"mean"}),
    # The mean is not drawn, so its certificate has no confidence level.
    "confidence": None,
    "margin_low": NUMBER,
    "margin_high": NUMBER,
    "mean_entropy": NOT_NEGATIVE,
    "latent_noise": NOT_NEGATIVE,
    "dispersion_in_noise": (NOT_NEGATIVE, None),
    "information": (InformationBracket, None),
    "reason": StrOptions(
        {"", "teacher", "noise", "safety margin", "draws", "shared draws", "witness"}
    ),
}
_INFORMATION = {
    "low": NOT_NEGATIVE,
    "high": NOT_NEGATIVE,
    "estimate": NOT_NEGATIVE,
    "confidence": Interval(Real, 0, 1, closed="neither"),
    "limit": NOT_NEGATIVE,
    "rounding": NOT_NEGATIVE,
    "n_samples": COUNT,
    "low_by": str,
    "high_by": str,
}


class AbsentEncoder(BaseEstimator):
    """Placeholder for an encoder that is not in the file."""

    def transform(self, X: Any) -> Any:
        """Raise an error that explains how to supply the encoder."""
        raise OwnModuleError(
            "estimator must be given to encode samples: the file contains the "
            "certificate of a model, but not the model. Get the model from the author, "
            "and pass estimator=... to load or verify."
        )


def is_foreign(encoder: Any) -> bool:
    """Return whether the fitted state of an encoder, frozen or not, is not saved."""
    inner = encoder.estimator if type(encoder) is FrozenEstimator else encoder
    return type(inner) not in (CertifiedVAE, GMMTeacher)


def check_certifier(state: Mapping[str, Any], witness: str | AlignmentLoss) -> None:
    """Check the fitted state of a certifier whose parameter is `witness`."""
    # The witness of an AlignmentLoss is a fixed simplex, too.
    name = witness if isinstance(witness, str) else "raw"
    # Shared by all checks, so that the sizes of all parts must agree.
    sizes: dict[str, int] = {}
    check_state("CollapseCertifier", state, FITTED | _HIDDEN, sizes)
    check_state("certified_on", state["certified_on"], _CERTIFIED_ON, {})
    _check_encoder(state, sizes)
    _check_witnesses(state, name, sizes)
    if isinstance(witness, AlignmentLoss):
        _check_loss(state, witness)
    check_state("Certificate", vars(state["certificate_"]), _CERTIFICATE, sizes)
    _check_certificate(state["certificate_"], name)


def _check_encoder(state: Mapping[str, Any], sizes: dict[str, int]) -> None:
    """Check that encoder and teacher are fitted, with the same number of features."""
    encoder = state["estimator_"]
    if is_foreign(encoder):
        _check_weights(encoder, state["certified_on"]["weights"])
        check_teacher(state["teacher_"], sizes.get("p", 0), sizes["K"])
        return
    check_is_fitted(encoder)
    # A GMMTeacher can be the encoder: its codes are posteriors of n_components values.
    is_teacher = hasattr(encoder, "predict_proba")
    found = {
        "p": encoder.n_features_in_,
        "d": encoder.n_components_ if is_teacher else encoder.latent_dim,
    }
    for name, size in found.items():
        if sizes.setdefault(name, size) != size:
            raise ValueError(f"estimator_ must have sizes {sizes}, got {found}.")
    check_teacher(state["teacher_"], found["p"], sizes["K"])


def _check_weights(encoder: Any, certified: str) -> None:
    """Check that an encoder from outside the file is the one that was certified."""
    if not isinstance(encoder, AbsentEncoder) and digest_weights(encoder) != certified:
        raise OwnModuleError(
            "estimator must have the weights that were certified, in the same wrapper, "
            "got other weights. If it was trained since, fit the certifier again."
        )


def _check_witnesses(
    state: Mapping[str, Any], name: str, sizes: dict[str, int]
) -> None:
    """Check the witnesses; above all, that "raw" is the fixed simplex, not a fit."""
    witness, calibration = state["witness_"], state["calibration"]
    check_state("Calibration", vars(calibration), _CALIBRATION, {})
    for read in (witness, calibration.witness):
        if isinstance(read, LinearWitness):
            fields = {k: getattr(read, k) for k in _WITNESS}
            check_state("LinearWitness", fields, _WITNESS, sizes)
            if read.name != name:
                raise ValueError(f"witness_ must be {name}, got {read.name}.")
    if isinstance(calibration.tempering, Tempering):
        check_state("Tempering", vars(calibration.tempering), _TEMPERING, {})
    # A fitted witness in the place of the fixed one would certify chance.
    if name == "raw":
        vertices, scale = state["vertices_"], state["witness_scale_"]
        check_simplex(vertices, scale)
        if witness.bias.any() or not np.array_equal(witness.weights, scale * vertices):
            raise ValueError("witness_ must match vertices_ and witness_scale_.")


def _check_loss(state: Mapping[str, Any], loss: AlignmentLoss) -> None:
    vertices, scale = simplex_of(loss)
    if state["witness_scale_"] != scale or not np.array_equal(
        state["vertices_"], vertices
    ):
        raise ValueError("witness must have the vertices_ and witness_scale_ of fit.")


def _check_certificate(c: Certificate, witness: str) -> None:
    """Check that the values of a certificate are consistent."""
    margin = c.teacher_information - c.alignment_loss
    # `margin` is computed in another way, which rounds differently.
    slack = 1e-9 * (1 + c.alignment_loss)
    # NaN if the teacher information is 0.
    share = c.relative_margin
    if c.information is not None:
        check_state("InformationBracket", vars(c.information), _INFORMATION, {})
    consistent = {
        "witness": c.witness == witness,
        "tolerance": c.tolerance >= 0,
        "margin": abs(c.margin - margin) <= slack,
        "margin_low": c.margin_low == c.margin == c.margin_high,
        "relative_margin": math.isnan(share)
        or abs(share * c.teacher_information - c.margin) <= slack,
        # A chain of comparisons: all three must be true, or none.
        "verdict": (c.verdict == "certified")
        == (c.margin > c.safety_margin + c.tolerance)
        == (not c.reason)
        and (c.verdict != "varies" or c.dispersion > c.latent_noise),
        "information": c.information is None
        or c.information.low
        <= c.information.estimate
        <= c.information.high
        <= c.information.limit,
    }
    if wrong := [name for name, holds in consistent.items() if not holds]:
        raise ValueError(f"{wrong[0]} of a Certificate contradicts its other values.")
