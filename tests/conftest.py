import copy
import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import skvaecert
from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

# No window opens.
os.environ.setdefault("MPLBACKEND", "Agg")

# A machine that is used for its GPU may not have hypothesis.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # No deadline, since the speed of an example depends on the machine.
    settings.register_profile("skvaecert", deadline=None)
    settings.load_profile("skvaecert")


PACKAGE = Path(skvaecert.__file__).parent
PAPERS = Path(__file__).parents[1] / "examples" / "papers"


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cuda",
        choices=["cuda", "cpu"],
        help="where to run the tests marked gpu; they are skipped without CUDA",
    )


def pytest_collection_modifyitems(items):
    """Leave the examples in docstrings out of the quick set: many train a network."""
    for item in items:
        if item.path.is_relative_to(PACKAGE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # Nets this small run slower on several threads, and sums in another order.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _ctrl_c():
    # Shells start background jobs with Ctrl-C ignored; tests that send it need it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def digits():
    """Training and test samples of the digits, in [0, 1]."""
    return train_test_split(load_digits().data / 16, random_state=0)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shared_blobs():
    """The blobs, for fixtures that live longer than a test."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 6)) * 4
    return centers[rng.integers(4, size=120)] + rng.normal(size=(120, 6))


@pytest.fixture
def blobs(shared_blobs):
    """Four clusters in six dimensions: small, and well separated."""
    return shared_blobs.copy()


def quick_vae(teacher):
    return CertifiedVAE(
        teacher,
        latent_dim=4,
        hidden_sizes=(32,),
        batch_size=32,
        max_epochs=30,
        learning_rate=1e-2,
        device="cpu",
        random_state=0,
    )


@pytest.fixture
def small_vae():
    """An unfitted VAE that fits the blobs in a fraction of a second."""
    return quick_vae(GMMTeacher(n_components=4))


@pytest.fixture(scope="session")
def fitted(shared_blobs):
    """A certifier fitted on ``blobs[::2]``. It is shared: do not fit or change it."""
    teacher = GMMTeacher(4, covariance_type="spherical", random_state=0)
    return CollapseCertifier(quick_vae(teacher)).fit(shared_blobs[::2])


@pytest.fixture
def vae():
    """An unfitted VAE that fits the blobs in 30 ms."""
    teacher = GMMTeacher(4, covariance_type="spherical")
    return quick_vae(teacher).set_params(max_epochs=5)


@pytest.fixture(scope="session")
def shared_vae(shared_blobs):
    """A VAE fitted on the blobs. It is shared: do not fit or change it."""
    teacher = GMMTeacher(4, covariance_type="spherical")
    return quick_vae(teacher).fit(shared_blobs)


@pytest.fixture
def trained(shared_vae):
    """A VAE fitted on the blobs, to fit again or change."""
    return copy.deepcopy(shared_vae)


@pytest.fixture(
    params=[
        (np.full((20, 2), np.nan), "NaN"),
        (np.full((20, 2), np.inf), "infinity"),
        (np.zeros(20), "Expected 2D array, got 1D"),
        ([["a", "b"]] * 20, "could not convert string to float"),
        (sparse.eye(20, format="csr"), "Sparse data was passed"),
        (np.empty((0, 3)), "0 sample"),
        (np.zeros((1, 3)), r"1 sample\(s\)"),
    ],
    ids=["nan", "inf", "1-d", "strings", "sparse", "empty", "one sample"],
)
def bad_data(request):
    """Data that every fit refuses, and a part of the error message."""
    return request.param


@pytest.fixture(scope="module")
def papers():
    """Import a module of examples/papers by its name; all are forgotten afterwards."""
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PAPERS)
        yield importlib.import_module
    for name in {*sys.modules} - before:
        if str(PAPERS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def entry(papers):
    """The command of examples/papers, as a module."""
    spec = importlib.util.spec_from_file_location("entry", PAPERS / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def seconds(papers):
    """The shortest setting of the papers' experiments."""
    return papers("settings").make_setting("seconds", "digits")
