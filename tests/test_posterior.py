import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from skvaecert import GMMTeacher
from skvaecert._posterior import posterior_of, teacher_posterior


def test_a_teacher_without_full_support_is_named(blobs):
    sharp = GaussianMixture(4, random_state=0).fit(blobs)
    with pytest.raises(
        ValueError, match=r"teacher must .* GaussianMixture: .*full supp"
    ):
        teacher_posterior(sharp, 100 * blobs)


@pytest.mark.slow
def test_posterior_of_any_teacher(blobs):
    labels = np.arange(len(blobs)) % 3
    classifier = LogisticRegression().fit(blobs, labels)
    proba = teacher_posterior(FrozenEstimator(classifier), blobs)
    np.testing.assert_allclose(proba, classifier.predict_proba(blobs))
    teacher = GMMTeacher(n_components=4).set_output(transform="pandas").fit(blobs)
    assert isinstance(teacher_posterior(teacher, blobs), np.ndarray)


def test_posteriors_that_are_given_are_used_instead_of_the_teacher(blobs):
    given = np.tile([0.25, 0.75], (len(blobs), 1))
    teacher = GMMTeacher(n_components=4, random_state=0).fit(blobs)
    for any_teacher in (teacher, None):
        np.testing.assert_array_equal(posterior_of(any_teacher, blobs, given), given)
    np.testing.assert_array_equal(
        posterior_of(teacher, blobs), teacher_posterior(teacher, blobs)
    )
    with pytest.raises(ValueError, match=r"teacher_proba must .*Pass their posteriors"):
        posterior_of(None, blobs)
    with pytest.raises(ValueError, match="each of the 7 samples, got 120"):
        posterior_of(teacher, blobs, given, n_samples=7)
    for proba in (given, None):
        with pytest.raises(ValueError, match="must have the 3 components of the fit"):
            posterior_of(teacher, blobs, proba, n_components=3)
