"""Whether a fit calls callbacks or clones of them, and what they keep."""

import copy
import pickle
import threading

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    GradientNormClipping,
    LRScheduler,
)

from skvaecert import CollapseCertifier
from skvaecert.callbacks import StopWhenCertified


class Log(Callback):
    """Keeps the margins it sees, in a list of the user's."""

    def __init__(self, margins):
        self.margins = margins

    def on_epoch_end(self, net, **kwargs):
        self.margins.append(net.history[-1]["margin"])


class Live(Log):
    """Holds what cannot be copied, and stays itself in clones."""

    def __init__(self, margins):
        super().__init__(margins)
        self.lock = threading.Lock()

    def __sklearn_clone__(self):
        return self


@pytest.fixture(params=[Log, Live])
def log(request):
    return request.param([])


def test_a_fit_calls_the_callback_given(blobs, vae, log):
    vae.set_params(callbacks=[log]).fit(blobs)
    assert log.margins == [row["margin"] for row in vae.history_]
    vae.partial_fit(blobs).set_params(warm_start=True, callbacks=[("log", log)])
    vae.fit(blobs)
    assert log.margins == [row["margin"] for row in vae.history_]
    assert len(log.margins) == 11


CLONING = {
    "certifier": lambda vae: CollapseCertifier(vae),
    "pipeline": lambda vae: make_pipeline(StandardScaler(), CollapseCertifier(vae)),
    "search": lambda vae: GridSearchCV(
        CollapseCertifier(vae), {"estimator__max_epochs": [2]}, cv=2
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLONING)
def test_clones_call_clones_of_callbacks_or_what_these_say(blobs, vae, kind):
    """The callback that is not live is not called itself."""
    live, other = Live([]), Log([])
    fitted = CLONING[kind](vae.set_params(callbacks=[live, other])).fit(blobs)
    assert len(live.margins) == {"search": 3 * 2}.get(kind, 5)
    assert not other.margins
    fitted.fit(blobs)
    assert len(live.margins) == 2 * {"search": 3 * 2}.get(kind, 5)


def test_a_live_callback_goes_through_warm_fits_of_a_certifier(blobs, vae):
    live = Live([])
    vae.set_params(callbacks=[live], max_epochs=2)
    certifier = CollapseCertifier(vae, warm_start=True).fit(blobs)
    first = certifier.estimator_
    before = first.transform(blobs)
    certifier.fit(blobs)
    assert live.margins == [row["margin"] for row in certifier.estimator_.history_]
    assert len(live.margins) == 4
    np.testing.assert_array_equal(first.transform(blobs), before)


class Counting(Callback):
    """Stops after three epochs of all fits together: it keeps counting."""

    def __init__(self):
        self.n_seen_ = 0

    def on_epoch_end(self, net, **kwargs):
        self.n_seen_ += 1
        if self.n_seen_ == 3:
            raise KeyboardInterrupt


OF_LIBRARIES = {
    "EarlyStopping": lambda folder: EarlyStopping(
        "kl", patience=2, threshold=0.2, load_best=True, sink=len
    ),
    "LRScheduler": lambda folder: LRScheduler("StepLR", step_size=2, gamma=0.1),
    "plateau": lambda folder: LRScheduler(
        "ReduceLROnPlateau", monitor="kl", patience=0
    ),
    "Checkpoint": lambda folder: Checkpoint(
        "train_loss_best", dirname=folder, load_best=True, sink=len
    ),
    "clipping": lambda folder: GradientNormClipping(0.1),
    "StopWhenCertified": lambda folder: StopWhenCertified(0.3, n_epochs=2),
    "counting": lambda folder: Counting(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_LIBRARIES)
def test_callbacks_start_afresh_in_each_fit(blobs, vae, kind, tmp_path):
    make, folder = OF_LIBRARIES[kind], str(tmp_path)
    used = make(folder)
    vae.set_params(callbacks=[used], max_epochs=12, random_state=1)
    first = vae.fit(blobs[::-1] * 3).n_iter_
    vae.set_params(random_state=0)
    again = clone(vae).set_params(callbacks=[used]).fit(blobs)
    new = vae.set_params(callbacks=[make(folder)]).fit(blobs)
    if kind == "counting":  # the twin
        assert (first, again.n_iter_, new.n_iter_) == (3, 12, 3)
    else:
        assert again.n_iter_ == new.n_iter_
        np.testing.assert_array_equal(again.transform(blobs), new.transform(blobs))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_fitted_estimator_holds_callbacks_as_a_parameter_only(blobs, vae, copied):
    vae.set_params(callbacks=[Live([])]).fit(blobs)
    with pytest.raises(TypeError, match="lock"):
        copied(vae)
    again = copied(vae.set_params(callbacks=None))
    np.testing.assert_array_equal(again.transform(blobs), vae.transform(blobs))
    # What can be pickled stays, and is not called twice in an epoch.
    again.set_params(callbacks=[Log([])], warm_start=True, max_epochs=2).fit(blobs)
    log = copied(again).fit(blobs).callbacks[0]
    assert (
        log.margins == [row["margin"] for row in again.history_[5:]] + log.margins[2:]
    )
    assert len(log.margins) == 4
