"""What test_training_two_processes.py has both processes do that torchrun started."""

import contextlib
import copy
import io
import os
import pickle
import signal
import sys
import warnings
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import torch
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert._training.processes import _Ranks
from skvaecert.baselines import AggressiveEncoder, SigmaVAE
from skvaecert.persistence import load, save

RANK = int(os.environ.get("RANK", "0"))


def make_rows():
    """An odd number of them, so that shares differ."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 4
    return centres[rng.integers(4, size=121)] + rng.normal(size=(121, 6))


X = make_rows()


def small(**params):
    settings = {
        "latent_dim": 4,
        "hidden_sizes": (32,),
        "batch_size": 32,
        "max_epochs": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
        "accelerate": True,
        "random_state": 0,
    }
    return CertifiedVAE(GMMTeacher(n_components=4), **(settings | params))


def told(vae):
    """Everything that must be the same on all processes."""
    state = {k: v.clone().numpy() for k, v in vae.net_.module_.state_dict().items()}
    history = [{**row, "batches": None} for row in vae.net_.history]
    losses = [b["train_loss"] for row in vae.net_.history for b in row["batches"]]
    sizes = [b["train_batch_size"] for row in vae.net_.history for b in row["batches"]]
    return {
        "state": state,
        "history": history,
        "losses": losses,
        "sizes": sizes,
        "means": vae.transform(X),
        "alignment_weight": float(vae.net_.criterion_.alignment_weight),
        "n_iter": vae.n_iter_,
    }


def weights(told):
    return np.concatenate([v.ravel() for v in told["state"].values()])


def error_of(function):
    try:
        function()
    except (ArithmeticError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@contextlib.contextmanager
def without_noise():
    """Codes are means, so that who draws does not matter."""
    # By autograd and by NumPy.
    with (
        mock.patch.object(torch, "randn_like", torch.zeros_like),
        mock.patch.object(torch.Tensor, "normal_", torch.Tensor.zero_),
    ):
        yield


@contextlib.contextmanager
def adding_up(otherwise):
    """With another sum over processes in the place of the right one."""
    right = _Ranks.sum
    _Ranks.sum = lambda self, tensors, weight: otherwise(right, self, tensors, weight)
    try:
        yield
    finally:
        _Ranks.sum = right


def deterministic(**params):
    # Batches of five and of four rows: shares of three and two.
    with without_noise():
        return small(batch_size=5, max_epochs=3, **params).fit(X)


class Own(nn.Module):
    """An encoder with weights that are frozen, or not used."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.first = nn.Linear(n_features, 16)
        self.normalise = nn.Identity()
        self.last = nn.Linear(16, 2 * latent_dim)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(16), requires_grad=False)

    def forward(self, x):
        hidden = self.frozen * nn.functional.silu(self.normalise(self.first(x)))
        return self.last(hidden)


class Normalised(Own):
    """The same with buffers, and with other weights on each process."""

    def __init__(self, n_features, latent_dim):
        super().__init__(n_features, latent_dim)
        self.normalise = nn.BatchNorm1d(16)
        nn.init.constant_(self.first.bias, RANK)


class Listen(Callback):
    """Notes what a process would draw for its first codes."""

    drawn: ClassVar = []

    def on_batch_begin(self, net, **kwargs):
        with torch.random.fork_rng():
            self.drawn.append(torch.randn(3).tolist())


class OnOneRank(Callback):
    """Does something on the second process only, in an epoch."""

    def __init__(self, epoch, action, *, amid=False):
        self.epoch = epoch
        self.action = action
        self.amid = amid

    def on_batch_end(self, net, **kwargs):
        if self.amid and len(net.history[-1]["batches"]) == 2:
            self._act(net)

    def on_epoch_end(self, net, **kwargs):
        if not self.amid:
            self._act(net)

    def _act(self, net):
        if RANK == 1 and len(net.history) == self.epoch:
            self.action(net)


def stop(net):
    raise KeyboardInterrupt


def press_ctrl_c(net):
    os.kill(os.getpid(), signal.SIGINT)


def spoil(net):
    with torch.no_grad():
        next(net.module_.parameters()).view(-1)[0] = torch.nan


def nudge(net):
    with torch.no_grad():
        next(net.module_.parameters()).view(-1)[0] += 1e-6


def die(net):
    os.kill(os.getpid(), signal.SIGKILL)


def certified(**params):
    # So few epochs that the margin still rises steeply.
    certifier = CollapseCertifier(small(max_epochs=2, **params)).fit(X)
    return told(certifier.estimator_) | {
        "certificate": certifier.certificate_,
        "left behind": b"_training.processes" in pickle.dumps(certifier),
    }


def listened():
    before = torch.get_rng_state()
    vae = small(callbacks=[Listen()]).fit(X)
    left = bool(torch.equal(before, torch.get_rng_state()))
    return told(vae) | {"left": left, "drawn": {RANK: Listen.drawn}}


def unweighted():
    half = lambda right, self, tensors, _: right(self, tensors, 1 / 2)  # noqa: E731
    with adding_up(half):
        return told(deterministic())


def not_added():
    own = lambda right, self, tensors, weight: (  # noqa: E731
        tensors if len(tensors) > 1 else right(self, tensors, weight)
    )
    with adding_up(own):
        return {"error": error_of(lambda: small().fit(X))}


def guarded():
    vae = small(alignment_weight="auto", validation_fraction=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return told(vae.fit(X))


def unseeded():
    # Which rows are held out is drawn, too.
    return told(small(random_state=None, validation_fraction=0.3).fit(X))


def stopped_early():
    stopping = EarlyStopping("margin", patience=1, threshold=10, load_best=True)
    stopping.set_params(lower_is_better=False)
    return told(small(max_epochs=9, callbacks=[stopping]).fit(X))


def stopped_on_one():
    return told(small(callbacks=[OnOneRank(2, stop)]).fit(X))


def interrupted_on_one():
    vae = small(callbacks=[OnOneRank(2, press_ctrl_c, amid=True)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae.fit(X)
    kinds = [warning.category.__name__ for warning in caught]
    return told(vae) | {"warned": "InterruptedFitWarning" in kinds}


def spoilt_on_one():
    vae = small(callbacks=[OnOneRank(3, spoil, amid=True)])
    error = error_of(lambda: vae.fit(X))
    return told(vae) | {"error": error}


def changed_on_one():
    vae = small(callbacks=[OnOneRank(4, nudge)])
    return {"error": error_of(lambda: vae.fit(X)), "fitted": hasattr(vae, "net_")}


def gone_on():
    """Warm starts, another epoch, and files in between."""
    vae = small(prefit={"alpha": 1.0, "epochs": 2}, warm_start=True).fit(X)
    vae = pickle.loads(pickle.dumps(vae)).fit(X)
    path = Path(sys.argv[1]) / f"{RANK}.safetensors"
    save(vae, path)
    return told(load(path).partial_fit(X))


def from_disk():
    path = Path(sys.argv[1]) / f"rows{RANK}.npy"
    np.save(path, X)
    return told(small().fit(np.load(path, mmap_mode="r")))


def with_bar():
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        vae = small(verbose=1).fit(X)
    return told(vae) | {"shown": {RANK: bool(shown.getvalue())}}


def searched():
    """Searches take one model after the other, and so does every process."""
    search = GridSearchCV(
        CollapseCertifier(small()), {"estimator__alignment_weight": [0.0, 10.0]}, cv=2
    )
    search.fit(X)
    return told(search.best_estimator_.estimator_) | search.best_params_


def side_by_side():
    search = GridSearchCV(
        small(), {"max_epochs": [1, 2]}, cv=2, error_score="raise", refit=False
    )
    with parallel_config("threading", n_jobs=2):
        search.fit(X)


def refused():
    """Each error is that of this process, before anything is trained."""
    posteriors = np.full((121, 4), 0.25)
    posteriors[RANK] = 0.7, 0.1, 0.1, 0.1
    attempts = {
        "objective": lambda: small(objective=AggressiveEncoder()).fit(X),
        "device": lambda: small(device="cuda:0").fit(X),
        "batch_size": lambda: small(batch_size=3).fit(X),
        "X": lambda: small().fit(X[RANK::2][:60]),
        "order": lambda: small().fit(X if RANK else X[::-1]),
        "max_epochs": lambda: small(max_epochs=1 + RANK).fit(X),
        "teacher_proba": lambda: small().fit(X, teacher_proba=posteriors),
        "n_jobs": side_by_side,
    }
    return {name: error_of(attempt) for name, attempt in attempts.items()}


CASES = {
    "certified": certified,
    "deterministic": lambda: told(deterministic()),
    "own module": lambda: told(deterministic(encoder=Own)),
    "unweighted": unweighted,
    "not added": not_added,
    "listened": listened,
    "guarded": guarded,
    "normalised": lambda: told(small(encoder=Normalised).fit(X)),
    "unseeded": unseeded,
    "sigma": lambda: told(small(objective=SigmaVAE()).fit(X)),
    "stopped early": stopped_early,
    "stopped on one": stopped_on_one,
    "interrupted on one": interrupted_on_one,
    "spoilt on one": spoilt_on_one,
    "changed on one": changed_on_one,
    "gone on": gone_on,
    "from disk": from_disk,
    "with a bar": with_bar,
    "searched": searched,
    "refused": refused,
}


def killed():
    """The second process dies amid its fit; is there a model after it?"""
    vae = small(callbacks=[OnOneRank(2, die, amid=True)]).fit(X)
    save(vae, Path(sys.argv[1]) / "killed.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {name: copy.deepcopy(case()) for name, case in CASES.items()}
    with open(Path(sys.argv[1]) / f"{RANK}.pkl", "wb") as file:
        pickle.dump(results, file)
    torch.distributed.barrier()  # what one has told would end with the other
    killed()
