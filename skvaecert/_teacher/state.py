"""Rules for the fitted state of a saved teacher."""

from collections.abc import Mapping
from typing import Any

from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted

from skvaecert._state import ABSENT, COUNT, NUMBER, POSITIVE, Array, Size, check_state

__all__ = ["FITTED", "check_gmm", "check_teacher"]

# Attributes that are saved.
FITTED = {
    "n_features_in_": Size("p"),
    "feature_names_in_": (Array("p", object), ABSENT),
    "pca_": PCA,
    "mixture_": GaussianMixture,
    "search_results_": (dict, None),
    "n_components_": Size("K"),
    "n_iter_": COUNT,
    "temperature_": POSITIVE,
    "information_": NUMBER,
    "energy_": NUMBER,
    "mean_proba_": Array("K", sums_to_1=True),
}


def check_gmm(state: Mapping[str, Any]) -> None:
    """Check the fitted state of a GMMTeacher."""
    sizes: dict[str, int] = {}
    check_state("GMMTeacher", state, FITTED, sizes)
    pca, mixture = state["pca_"], state["mixture_"]
    known = pca.n_features_in_, mixture.n_components, mixture.n_features_in_
    if known != (sizes["p"], sizes["K"], pca.n_components_):
        raise ValueError(f"pca_ and mixture_ must have sizes {sizes}, got {known}.")


def check_teacher(teacher: Any, n_features: int, n_components: int) -> None:
    """Check that the teacher of an encoder, unless None, is fitted and fits in size."""
    if teacher is None:
        return
    check_is_fitted(teacher)
    sizes = teacher.n_features_in_, teacher.n_components_
    if sizes != (n_features, n_components):
        raise ValueError(
            f"teacher_ must have {n_features} features and {n_components} components, "
            f"got {sizes[0]} and {sizes[1]}."
        )
