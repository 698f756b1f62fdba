import threading
from itertools import count

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert._estimator import restored_on_error, seed_unset
from skvaecert._training.joint import shared_call, sharing_results

COUNTER = count()


def test_setting_a_nested_parameter_makes_a_default_of_its_own():
    first, second = CollapseCertifier(), CollapseCertifier()
    first.set_params(estimator__alignment_weight=3)
    assert first.estimator.alignment_weight == 3
    assert second.estimator is None


def test_two_levels_deep():
    certifier = CollapseCertifier().set_params(
        estimator__teacher__n_components=3, estimator__latent_dim=5
    )
    assert isinstance(certifier.estimator, CertifiedVAE)
    assert isinstance(certifier.estimator.teacher, GMMTeacher)
    assert certifier.estimator.teacher.n_components == 3
    assert certifier.estimator.latent_dim == 5


def test_in_a_pipeline():
    pipeline = make_pipeline(MinMaxScaler(), CollapseCertifier())
    pipeline.set_params(collapsecertifier__estimator__alignment_weight=7)
    assert pipeline[-1].estimator.alignment_weight == 7


def test_given_with_its_parameters():
    certifier = CollapseCertifier().set_params(
        estimator=CertifiedVAE(latent_dim=3), estimator__kl_weight=2
    )
    assert certifier.estimator.latent_dim == 3
    assert certifier.estimator.kl_weight == 2


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="Invalid parameter 'alignement_weight'"):
        CollapseCertifier().set_params(estimator__alignement_weight=3)


def fails(estimator, error, **kwargs):
    with restored_on_error(estimator, **kwargs):
        estimator.kept_, estimator.new_ = 2, 3
        raise error


def test_restored_on_error():
    estimator = BaseEstimator()
    estimator.kept_ = 1
    with pytest.raises(KeyboardInterrupt):
        fails(estimator, KeyboardInterrupt)
    assert vars(estimator) == {"kept_": 1}


def test_not_restored_where_told():
    estimator = BaseEstimator()
    with pytest.raises(ValueError, match="x"):
        fails(estimator, ValueError("x"), unless=lambda error: True)
    assert vars(estimator) == {"kept_": 2, "new_": 3}


def test_seed_unset():
    unset, chosen = GMMTeacher(), GMMTeacher(random_state=1)
    pipeline = make_pipeline(MinMaxScaler(), GMMTeacher(), GMMTeacher(random_state=1))
    for estimator in (unset, chosen, pipeline):
        seed_unset(estimator, 5)
    assert unset.random_state == 5
    assert chosen.random_state == 1
    assert [step.random_state for step in pipeline[1:]] == [5, 1]


def test_seed_unset_leaves_frozen_estimators_alone():
    teacher = GMMTeacher()
    seed_unset(FrozenEstimator(teacher), 5)
    assert teacher.random_state is None


def states():
    return np.random.get_state()  # noqa: NPY002


def test_calls_are_shared_inside_the_block_only():
    calls = []

    def listed(*args):
        calls.append(args)
        return list(args)

    assert shared_call(states, listed, 1) == shared_call(states, listed, 1) == [1]
    assert len(calls) == 2
    with sharing_results():
        first, again = shared_call(states, listed, 1), shared_call(states, listed, 1)
        assert shared_call(states, listed, 2) == [2]
        assert len(calls) == 4
        first.append(3)
        assert again == shared_call(states, listed, 1) == [1]
    shared_call(states, listed, 1)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda _: np.random.rand(), 1),  # noqa: NPY002
        (lambda _: next(COUNTER), threading.Lock()),
    ],
    ids=["draws from NumPy's generator", "cannot be compared"],
)
def test_other_calls_are_not_shared(function, argument):
    with sharing_results():
        assert shared_call(states, function, argument) != shared_call(
            states, function, argument
        )
