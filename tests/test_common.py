"""scikit-learn's own checks, with no expected failures.

Networks are small and train for a few epochs: the checks ask how an estimator behaves,
not how well it fits. The certifier's checks run on a certifier of such a VAE.
"""

import pytest
from sklearn.utils import estimator_checks as checks
from sklearn.utils.estimator_checks import estimator_checks_generator

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

VAE = CertifiedVAE(hidden_sizes=(16,), max_epochs=5, device="cpu")
ESTIMATORS = [GMMTeacher(), VAE, CollapseCertifier(VAE)]

# Not part of check_estimator.
LEFT_OUT = [
    checks.check_dataframe_column_names_consistency,
    checks.check_estimators_partial_fit_n_features,
    checks.check_get_feature_names_out_error,
    checks.check_global_output_transform_pandas,
    checks.check_global_set_output_transform_polars,
    checks.check_inplace_ensure_writeable,
    checks.check_param_validation,
    checks.check_set_output_transform,
    checks.check_set_output_transform_pandas,
    checks.check_set_output_transform_polars,
    checks.check_transformer_get_feature_names_out,
    checks.check_transformer_get_feature_names_out_pandas,
]


def _check_id(value):
    return getattr(getattr(value, "func", value), "__name__", type(value).__name__)


def _all_checks():
    for estimator in ESTIMATORS:
        yield from estimator_checks_generator(estimator, legacy=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UninformativeTeacherWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
# Some of the checks' data are noise, on which restarts do not agree.
@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UnstableTeacherWarning")
@pytest.mark.parametrize(("estimator", "check"), list(_all_checks()), ids=_check_id)
def test_check_estimator(estimator, check):
    check(estimator)


# These fit on a frame and transform an array.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UnstableTeacherWarning")
@pytest.mark.parametrize("check", LEFT_OUT, ids=_check_id)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_check_id)
def test_check_left_out(estimator, check):
    check(type(estimator).__name__, estimator)
