import copy
import linecache
import pickle
import threading
import warnings
from functools import partial

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert._estimator import (
    check_unchanged,
    remember_params,
    restored_on_error,
    seed_unset,
)
from skvaecert.baselines import FreeBits
from skvaecert.exceptions import InconsistentVersionWarning, UnreachedMarginWarning
from skvaecert.networks import mlp
from skvaecert.wrappers import TrainedEncoder


def test_setting_a_nested_parameter_makes_a_separate_default():
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


def test_not_restored_if_unless_is_true():
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


class Factory:
    def __init__(self, width):
        self.width = width

    def build(self, n_features, latent_dim):
        return mlp(n_features, (self.width,), 2 * latent_dim)


def encoder(n_features, latent_dim):
    return nn.Linear(n_features, 2 * latent_dim)


def closure(width):
    return lambda n_features, latent_dim: mlp(n_features, (width,), 2 * latent_dim)


def with_weights(scale):
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, scale)
    nn.init.zeros_(module.bias)
    return module


def frozen(seed, **params):
    X = np.random.default_rng(0).normal(size=(40, 3))
    teacher = GMMTeacher(2, covariance_type="full", random_state=seed, **params)
    return FrozenEstimator(teacher.fit(X))


def pipeline(n_components, means=None, **params):
    means = np.zeros((2, 3)) if means is None else means
    return make_pipeline(PCA(n_components), GMMTeacher(means, **params))


SAME, OTHER = closure(8), closure(8)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("latent_dim", 4, 5),
        ("hidden_sizes", (32,), (32, 32)),
        ("image_shape", (1, 2, 3), (1, 3, 2)),
        ("image_shape", None, (1, 2, 3)),
        ("likelihood", "gaussian", "bernoulli"),
        ("witness_scale", "prior", 2.0),
        ("validation_fraction", None, 0.1),
        ("device", "cpu", "auto"),
        ("objective", None, FreeBits()),
        ("objective__nats", FreeBits(0.5), FreeBits(0.6)),
        ("encoder", None, encoder),
        ("encoder", SAME, OTHER),
        ("encoder", partial(SAME), partial(OTHER)),
        ("encoder", partial(encoder, 1), partial(encoder, 2)),
        ("encoder", Factory(8).build, Factory(9).build),
        ("encoder", with_weights(1.0), with_weights(2.0)),
        ("decoder", nn.Linear, nn.Identity),
        ("teacher", None, frozen(0)),
        ("teacher", frozen(0), frozen(0, pca_components=1)),
        ("teacher__n_components", GMMTeacher(3), GMMTeacher(4)),
        ("teacher__n_components", None, GMMTeacher(4)),
        ("teacher", GMMTeacher(3), PCA(3)),
        ("teacher__pca", pipeline(1), pipeline(2)),
        ("teacher__steps", pipeline(1), pipeline(1, np.ones((2, 3)))),
    ],
)
def test_a_parameter_that_changed_is_named(name, first, second):
    owner = name.partition("__")[0]
    vae = CertifiedVAE(**{owner: first})
    remember_params(vae)
    check_unchanged(vae)
    vae.set_params(**{owner: second})
    message = f"(?s)^{name} must stay as it was .* Set it back"
    with pytest.raises(ValueError, match=message):
        check_unchanged(vae)
    vae.set_params(**{owner: first})
    check_unchanged(vae)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("latent_dim", 4, np.int64(4)),
        ("hidden_sizes", (32, 16), [32, 16]),
        ("hidden_sizes", (32, 16), np.array([32, 16])),
        ("witness_scale", 2, 2.0),
        ("objective", FreeBits(1), FreeBits(1.0)),
        ("encoder", SAME, SAME),
        ("encoder", partial(encoder, 1), partial(encoder, 1)),
        ("encoder", Factory(8).build, Factory(8).build),
        ("encoder", with_weights(1.0), with_weights(1.0)),
        ("teacher", None, GMMTeacher()),
        ("teacher", GMMTeacher(3), GMMTeacher(3, random_state=7, n_jobs=2, verbose=1)),
        ("teacher", GMMTeacher([2, 3]), GMMTeacher((2, 3))),
        ("teacher", pipeline(1), pipeline(1, random_state=7)),
        ("teacher", pipeline(1), pipeline(1, np.asfortranarray(np.zeros((2, 3))))),
        ("teacher", frozen(0), frozen(0)),
    ],
)
def test_equal_parameters_pass_after_pickling_too(name, first, second):
    vae = CertifiedVAE(**{name: first})
    remember_params(vae)
    vae.set_params(**{name: second})
    check_unchanged(vae)
    check_unchanged(copy.deepcopy(vae))
    if first is not SAME:
        check_unchanged(pickle.loads(pickle.dumps(vae)))


def test_a_teacher_that_is_changed_in_place_has_changed():
    vae = CertifiedVAE(frozen(0))
    remember_params(vae)
    vae.teacher.estimator.fit(np.random.default_rng(1).normal(size=(40, 3)))
    with pytest.raises(ValueError, match=r"^teacher must stay"):
        check_unchanged(vae)


def test_fitting_a_teacher_that_is_to_be_cloned_does_not_change_it():
    vae = CertifiedVAE(make_pipeline(PCA(1), GMMTeacher(2, covariance_type="full")))
    remember_params(vae)
    vae.teacher.fit(np.random.default_rng(1).normal(size=(40, 3)))
    check_unchanged(vae)
    check_unchanged(vae.set_params(teacher=clone(vae.teacher)))


def test_what_cannot_be_pickled_stands_for_itself():
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

    vae = CertifiedVAE(encoder=Locked())
    remember_params(vae)
    check_unchanged(vae)
    with pytest.raises(ValueError, match=r"^encoder must stay"):
        check_unchanged(vae.set_params(encoder=Locked()))


@pytest.mark.parametrize(
    "around",
    [
        lambda vae: vae,
        lambda vae: CollapseCertifier(vae),
        lambda vae: make_pipeline(MinMaxScaler(), vae),
        lambda vae: GridSearchCV(vae, {"latent_dim": [3, 4]}, cv=2),
    ],
    ids=["alone", "certifier", "pipeline", "search"],
)
def test_warnings_point_at_the_line_of_the_user(blobs, vae, around):
    vae.set_params(alignment_weight="auto", target_margin=0.99, kl_weight=20)
    model = around(vae.set_params(max_epochs=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(blobs)  # here
    assert {w.category for w in caught} == {UnreachedMarginWarning}
    lines = {(w.filename, linecache.getline(w.filename, w.lineno)) for w in caught}
    assert lines == {(__file__, "        model.fit(blobs)  # here\n")}


ESTIMATORS = [
    GMMTeacher,
    CertifiedVAE,
    CollapseCertifier,
    lambda: TrainedEncoder(np.tanh),
]


@pytest.mark.parametrize("make", ESTIMATORS)
def test_pickles_of_another_version_are_read_with_a_warning(
    make, tmp_path, monkeypatch
):
    estimator = make()
    name = type(estimator).__name__
    with monkeypatch.context() as earlier:
        earlier.setattr("skvaecert._estimator.VERSION", "0.0.9")
        joblib.dump(estimator, tmp_path / "file")
    said = f"This {name} was pickled with skvaecert 0.0.9 and is unpickled with"
    with pytest.warns(InconsistentVersionWarning, match=said) as caught:
        loaded = joblib.load(tmp_path / "file")
    assert caught[0].filename == __file__
    assert repr(loaded) == repr(estimator)
    assert vars(loaded).keys() == vars(estimator).keys()


@pytest.mark.parametrize("make", ESTIMATORS)
def test_copies_and_pickles_of_the_same_version_are_silent(make):
    estimator = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [
            copy.deepcopy(estimator),
            pickle.loads(pickle.dumps(estimator)),
            clone(estimator),
        ]
    assert all(vars(copied).keys() == vars(estimator).keys() for copied in copies)
    assert len({joblib.hash(e) for e in [estimator, *copies]}) == 1
