"""Rules for the fitted state of a saved VAE, except for its net."""

from collections.abc import Mapping
from typing import Any

from sklearn.frozen import FrozenEstimator

from skvaecert._state import (
    ABSENT,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Array,
    Size,
    check_simplex,
    check_state,
)
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._teacher.state import check_teacher

__all__ = ["FITTED", "check_vae"]

# Attributes that are saved, and private values that are saved with them.
FITTED = {
    "n_features_in_": Size("p"),
    "feature_names_in_": (Array("p", object), ABSENT),
    "teacher_": (GMMTeacher, FrozenEstimator, None),
    "vertices_": Array("K d"),
    "witness_scale_": POSITIVE,
    "prefit_alpha_": (NOT_NEGATIVE, ABSENT),
    "n_iter_": COUNT,
}
_HIDDEN = {
    "location": Array("p"),
    "scale": POSITIVE,
    "split_seed": COUNT,
    "net": dict,
}


def check_vae(state: Mapping[str, Any], latent_dim: int, n_hidden: int) -> None:
    """Check the fitted state of a CertifiedVAE with `n_hidden` hidden layers."""
    sizes = {"d": latent_dim}
    check_state("CertifiedVAE", state, FITTED | _HIDDEN, sizes)
    check_simplex(state["vertices_"], state["witness_scale_"])
    check_teacher(state["teacher_"], sizes["p"], sizes["K"])
    # A file may name millions of layers; each takes memory even without weights.
    if n_hidden > len(state["net"]["weights"]):
        raise ValueError("hidden_sizes must have weights in the net.")
