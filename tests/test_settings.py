"""No parameter is ignored silently."""

import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.callbacks import StopWhenCertified


class NotAsked(BaseEstimator):
    """A teacher that must not be fitted, since the fit has to fail before."""

    def fit(self, X, y=None):
        raise AssertionError("a teacher was fitted")

    def predict_proba(self, X):
        raise AssertionError("a teacher was asked")


MONITORS = [
    EarlyStopping("validation_loss"),
    Checkpoint("validation_loss_best"),
    LRScheduler("ReduceLROnPlateau", monitor="validation_margin"),
    StopWhenCertified(monitor="validation_margin"),
]


@pytest.mark.parametrize("callback", MONITORS)
def test_monitors_of_held_out_samples_need_some(
    blobs, vae, callback, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a checkpoint goes there
    vae.set_params(teacher=NotAsked(), callbacks=[("named", callback)])
    match = f"validation_fraction must be given for {type(callback).__name__}"
    with pytest.raises(ValueError, match=match + r"\(monitor='valid.*0\.1"):
        vae.fit(blobs)
    vae.set_params(teacher=GMMTeacher(4), validation_fraction=0.2, max_epochs=1)
    assert vae.fit(blobs).n_iter_ == 1


@pytest.mark.parametrize("callback", [EarlyStopping(), Checkpoint()])
def test_names_of_skorch_are_distinguished_from_ours(blobs, vae, callback):
    vae.set_params(teacher=NotAsked(), callbacks=[callback], validation_fraction=0.2)
    with pytest.raises(ValueError, match=r"'valid_loss.* Use 'validation_loss"):
        vae.fit(blobs)


@pytest.mark.parametrize("names", [("monitor",), ("validation",), (None,), "aa"])
def test_names_of_callbacks_are_checked_before_the_teacher_is_fitted(blobs, vae, names):
    stop = [(name, EarlyStopping("kl")) for name in names]
    vae.set_params(teacher=NotAsked(), callbacks=stop)
    with pytest.raises(ValueError, match=rf"^callbacks must have names.*{names[0]!r}"):
        vae.fit(blobs)
    # Callbacks without a name may be of the same class.
    stop = [("a", EarlyStopping("kl")), EarlyStopping("kl"), EarlyStopping("kl")]
    vae.set_params(teacher=GMMTeacher(4), max_epochs=1, callbacks=stop).fit(blobs)


class OnHeldOut(EarlyStopping):
    def __init__(self, monitor="validation_loss"):
        super().__init__(monitor)


@pytest.mark.parametrize("kind", [EarlyStopping, ("named", Checkpoint), OnHeldOut])
def test_classes_monitor_what_their_instances_do(blobs, vae, kind):
    vae.set_params(teacher=NotAsked(), callbacks=[kind])
    name = (kind[1] if isinstance(kind, tuple) else kind).__name__
    with pytest.raises(ValueError, match=rf"{name}\(monitor='valid"):
        vae.fit(blobs)


IN_VAIN = {
    "default": lambda vae, X: None,
    "vae": lambda vae, X: vae.set_params(teacher=NotAsked()),
    "search": lambda vae, X: GridSearchCV(vae, {"kl_weight": [1.0]}, cv=2),
    "frozen": lambda vae, X: FrozenEstimator(vae.fit(X)),
}


@pytest.mark.parametrize("kind", IN_VAIN)
def test_the_certifier_has_no_teacher_for_a_vae_with_its_own(blobs, vae, kind):
    estimator = IN_VAIN[kind](vae, blobs)
    certifier = CollapseCertifier(estimator, teacher=GMMTeacher(3))
    match = r"teacher of the Coll.* must be None .*got GMMTeacher\(n_components=3\)"
    with pytest.raises(ValueError, match=match):
        certifier.fit(blobs)
    certifier.set_params(teacher=None)
    if kind in ("search", "frozen"):
        certifier.fit(blobs)
        assert len(certifier.mean_proba_) == 4


class Study(BaseEstimator):
    """A search of another library."""

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y=None):
        self.best_estimator_ = clone(self.estimator).fit(X)
        return self

    def transform(self, X):
        return self.best_estimator_.transform(X)


@pytest.mark.parametrize("search", [Study, lambda vae: GridSearchCV(Study(vae), {})])
def test_posteriors_that_a_search_would_not_pass_on(blobs, vae, search):
    """Twin: where nothing inside takes them, they are for the certificate alone."""
    proba = GMMTeacher(4, random_state=0).fit(blobs).predict_proba(blobs)
    certifier = CollapseCertifier(search(vae.set_params(teacher=NotAsked())))
    with pytest.raises(ValueError, match="teacher_proba must be left out for a search"):
        certifier.fit(blobs, teacher_proba=proba)
    certifier.set_params(estimator=GridSearchCV(PCA(), {"n_components": [4]}, cv=2))
    certifier.fit(blobs, teacher_proba=proba)
    assert certifier.teacher_ is None
    assert certifier.certify(blobs, teacher_proba=proba) == certifier.certificate_


def test_the_certifier_has_a_teacher_for_those_without(blobs, vae):
    """The twins: another encoder, and a VAE that was fitted with posteriors."""
    proba = GMMTeacher(4, random_state=0).fit(blobs).predict_proba(blobs)
    vae.set_params(max_epochs=1).fit(blobs, teacher_proba=proba)
    for encoder in (PCA(4), FrozenEstimator(vae)):
        certifier = CollapseCertifier(encoder, teacher=GMMTeacher(4)).fit(blobs)
        assert len(certifier.mean_proba_) == 4


def test_a_warm_start_of_the_estimator_alone_is_none(blobs, vae):
    certifier = CollapseCertifier(vae).set_params(estimator__warm_start=True)
    with pytest.raises(ValueError, match=r"^warm_start of the Coll.* must be True"):
        certifier.fit(blobs)
    vae.set_params(max_epochs=2)
    certifier.set_params(warm_start=True).fit(blobs).fit(blobs)
    assert len(certifier.estimator_.history_) == 4
    frozen = FrozenEstimator(certifier.estimator_)
    assert CollapseCertifier(frozen).fit(blobs).estimator_ is frozen


def test_a_target_without_the_guard_is_warned_of(blobs, vae):
    vae.set_params(target_margin=0.8)
    with pytest.warns(
        UserWarning, match="target_margin is ignored, .*'auto'"
    ) as record:
        vae.fit(blobs)
    assert [warning.filename for warning in record] == [__file__]
    assert (
        vae.set_params(alignment_weight="auto", max_epochs=40).fit(blobs).n_iter_ == 40
    )
