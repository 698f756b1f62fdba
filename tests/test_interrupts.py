"""Ctrl-C stops a fit or a search, and keeps what is complete."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from skvaecert import CollapseCertifier


class CtrlC(Callback):
    """Presses Ctrl-C amid an epoch of a fit; never for epoch None. Counts epochs."""

    def __init__(self, epoch):
        self.epoch, self.n_epochs_ = epoch, 0

    def __sklearn_clone__(self):
        return self

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            signal.raise_signal(signal.SIGINT)

    def on_epoch_end(self, net, **kwargs):
        self.n_epochs_ += 1


def searched(search, X):
    return search.fit(X).best_score_


SEARCHES = {
    "grid": lambda vae, X: searched(
        GridSearchCV(vae, {"alignment_weight": [1.0, 10.0]}, cv=2), X
    ),
    "grid of certifiers": lambda vae, X: searched(
        GridSearchCV(CollapseCertifier(vae), {"safety_margin": [0.0, 0.1]}, cv=2), X
    ),
    "halving": lambda vae, X: searched(
        HalvingGridSearchCV(vae, {"alignment_weight": [1.0, 10.0]}, cv=2), X
    ),
    "cross_val_score": lambda vae, X: cross_val_score(
        make_pipeline(StandardScaler(), CollapseCertifier(vae)), X, cv=2
    ).mean(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEARCHES)
def test_ctrl_c_ends_a_search(blobs, vae, kind):
    press = CtrlC(3)
    with pytest.raises(KeyboardInterrupt, match="2 completed epochs out of 5"):
        SEARCHES[kind](vae.set_params(callbacks=[press]), blobs)
    # The count of epochs shows that no second fit began.
    assert press.n_epochs_ == 2
    press.epoch = None
    assert np.isfinite(SEARCHES[kind](vae, blobs))


SCRIPT = """
    import os, pathlib, signal, sys, uuid, numpy as np
    from skorch.callbacks import Callback
    from sklearn.model_selection import GridSearchCV
    from skvaecert import CertifiedVAE, GMMTeacher

    class Tell(Callback):
        def on_train_begin(self, net, **kwargs):
            pathlib.Path(f"fit {uuid.uuid4()}").touch()

        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                pathlib.Path(f"two epochs {os.getpid()}").touch()

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        X = np.random.default_rng(0).normal(size=(200, 4))
        vae = CertifiedVAE(
            GMMTeacher(2, covariance_type="diag"), hidden_sizes=(8,), latent_dim=2,
            max_epochs=1_000_000, device="cpu", callbacks=[Tell()], random_state=0)
        n_jobs = int(sys.argv[1])
        search = GridSearchCV(vae, {"kl_weight": [0.1, 1, 10]}, cv=2, n_jobs=n_jobs)
        search.fit(X)
        print("scored", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_ctrl_c_in_a_terminal_ends_a_script(tmp_path, n_jobs):
    """Ctrl-C reaches all processes. The shell sees the exit status of Ctrl-C."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, "script.py", str(n_jobs)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(1200):
            if len(list(tmp_path.glob("two epochs*"))) == n_jobs:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    assert "scored" not in out
    assert len(list(tmp_path.glob("fit *"))) == n_jobs


class AtTheEnd(Callback):
    """Presses Ctrl-C during the end of a fit, in the middle of loading weights."""

    def on_train_end(self, net, **kwargs):
        next(net.module_.parameters()).data.zero_()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("n_before", [0, 2])
def test_ctrl_c_when_the_epochs_are_over_keeps_them(blobs, vae, n_before):
    vae.set_params(warm_start=True, max_epochs=2)
    twin = clone(vae)
    if n_before:
        vae.fit(blobs)
        twin.fit(blobs)
    with pytest.raises(KeyboardInterrupt, match="2 completed epochs out of 2") as error:
        vae.set_params(callbacks=[AtTheEnd()]).fit(blobs)
    assert error.value.estimator is vae
    assert len(vae.history_) == n_before + 2
    np.testing.assert_array_equal(
        vae.transform(blobs), twin.fit(blobs).transform(blobs)
    )


def test_a_certifier_certifies_the_epochs_done(blobs, vae):
    certifier = CollapseCertifier(vae.set_params(callbacks=[CtrlC(4)]), warm_start=True)
    with pytest.raises(KeyboardInterrupt, match="3 completed epochs") as error:
        certifier.fit(blobs)
    assert error.type is KeyboardInterrupt
    assert error.value.estimator is certifier
    assert certifier.estimator_.n_iter_ == 3
    first = certifier.score(blobs)
    assert certifier.certificate_.margin == first
    # A warm fit keeps its epochs too.
    vae.set_params(callbacks=[CtrlC(6)])
    with pytest.raises(KeyboardInterrupt, match="2 completed epochs"):
        certifier.fit(blobs)
    assert len(certifier.estimator_.history_) == 5
    assert certifier.certificate_.margin == certifier.score(blobs) != first


def test_ctrl_c_before_an_epoch_leaves_a_certifier_as_it_was(blobs, vae):
    certifier = CollapseCertifier(vae.set_params(callbacks=[CtrlC(1)]), warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        certifier.fit(blobs)
    assert not hasattr(certifier, "estimator_")
    vae.set_params(callbacks=[CtrlC(6)])
    certifier.fit(blobs)
    before = vars(certifier).copy()
    with pytest.raises(KeyboardInterrupt) as error:
        certifier.fit(blobs)
    assert not hasattr(error.value, "estimator")
    assert vars(certifier) == before
