"""`partial_fit`: chunks of a stream."""

import copy

import numpy as np
import pytest
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.exceptions import KnownSamplesWarning


@pytest.fixture
def chunks(blobs):
    return blobs[:60], blobs[60:]


@pytest.mark.slow
def test_chunks_train_the_encoder_as_they_do_alone(vae, chunks):
    certifier, alone = CollapseCertifier(vae), copy.deepcopy(vae)
    for X in (*chunks, *chunks):
        certifier.partial_fit(X)
        alone.partial_fit(X)
        np.testing.assert_array_equal(certifier.transform(X), alone.transform(X))
        assert certifier.certificate_ == certifier.certify(X)
        assert certifier.mean_proba_ == pytest.approx(
            certifier.teacher_.predict_proba(X).mean(axis=0)
        )
    assert len(certifier.estimator_.history_) == 4
    assert not hasattr(vae, "net_")


def test_parameters_set_between_chunks_count(vae, chunks):
    certifier = CollapseCertifier(vae).partial_fit(chunks[0])
    certifier.set_params(estimator__alignment_weight=0.0).partial_fit(chunks[1])
    assert certifier.estimator_.alignment_weight == 0


@pytest.mark.parametrize("witness", ["raw", "procrustes", "linear"])
def test_teacher_and_simplex_stay_and_the_probe_is_fitted_again(chunks, witness):
    certifier = CollapseCertifier(
        IncrementalPCA(3), teacher=GMMTeacher(4, random_state=0), witness=witness
    )
    first = copy.deepcopy(certifier.partial_fit(chunks[0]))
    certifier.partial_fit(chunks[1])
    assert certifier.estimator_.n_samples_seen_ == 120
    np.testing.assert_array_equal(
        certifier.teacher_.predict_proba(chunks[0]),
        first.teacher_.predict_proba(chunks[0]),
    )
    same = np.array_equal(certifier.witness_.weights, first.witness_.weights)
    assert same == (witness == "raw")
    if witness != "raw":
        assert certifier.certificate_.n_samples == 30
        assert certifier.certificate_.certified
        # The witness in use was fitted on half of the last chunk, and on no other.
        assert certifier.certify(chunks[0]).n_samples == 60
        with pytest.warns(KnownSamplesWarning, match="30 of 60"):
            certifier.certify(chunks[1])


class Constant(IncrementalPCA):
    def transform(self, X):
        return np.full((len(X), self.n_components), 0.1)


@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.KnownSamplesWarning")
@pytest.mark.parametrize("witness", ["raw", "procrustes", "linear"])
def test_no_chunk_certifies_a_constant(chunks, witness):
    teacher = GMMTeacher(4, random_state=0)
    certifier = CollapseCertifier(Constant(3), teacher=teacher, witness=witness)
    for X in (*chunks, *chunks):
        assert not certifier.partial_fit(X).certificate_.certified
        assert not certifier.certify(chunks[0][::2]).certified
    assert not certifier.certify_batches(chunks).certified


def test_posteriors_in_all_chunks_or_in_none(vae, chunks):
    proba = GMMTeacher(4, random_state=0).fit_transform(np.concatenate(chunks))
    certifier = CollapseCertifier(vae).partial_fit(chunks[0], teacher_proba=proba[:60])
    before = certifier.certificate_
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        certifier.partial_fit(chunks[1])
    # The failed call has changed nothing.
    assert certifier.certificate_ == before
    assert len(certifier.estimator_.history_) == 1
    certifier.partial_fit(chunks[1], teacher_proba=proba[60:])
    again = certifier.certify(chunks[1], teacher_proba=proba[60:])
    assert certifier.certificate_ == again


@pytest.mark.parametrize("encoder", [PCA(3), FrozenEstimator(IncrementalPCA(3))])
def test_encoders_without_chunks_have_no_such_method(encoder):
    assert not hasattr(CollapseCertifier(encoder), "partial_fit")
    assert hasattr(CollapseCertifier(), "partial_fit")
