"""Certificates by map and reduce on dask.distributed, also where workers die."""

import os
import signal

import dask
import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.wrappers import TrainedEncoder

# Torch and scikit-learn take about 400 MB of it.
MEMORY_LIMIT = 700_000_000
N_FEATURES, N_BLOCK, N_BLOCKS = 1000, 4000, 24


def mixture(block):
    """Rows of three groups, the same for the same block whoever asks."""
    generator = np.random.default_rng(block)
    groups = generator.integers(3, size=N_BLOCK)
    rows = generator.standard_normal((N_BLOCK, N_FEATURES))
    rows[np.arange(N_BLOCK), groups] += 20
    return rows


def first_columns(X):
    return 0.1 * np.asarray(X)[:, :3]


def nothing(X):
    return np.full((len(X), 3), 0.1)


@pytest.fixture(scope="module")
def teacher():
    return FrozenEstimator(GMMTeacher(n_components=3, random_state=0).fit(mixture(99)))


class Deadly:
    """An encoder that kills the process it runs in, the first times it is called."""

    def __init__(self, folder, n_deaths):
        self.folder, self.n_deaths, self.owner = folder, n_deaths, os.getpid()

    def transform(self, X):
        n_before = len(os.listdir(self.folder))
        if os.getpid() != self.owner and n_before < self.n_deaths:
            (self.folder / str(n_before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return first_columns(X)


def fitted(encode, teacher):
    encoder = FrozenEstimator(TrainedEncoder(encode))
    return CollapseCertifier(encoder, teacher=teacher, random_state=0).fit(mixture(99))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=MEMORY_LIMIT,
            dashboard_address="127.0.0.1:0",
            local_directory=str(folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def in_parts(certifier, n_blocks):
    """What is to be computed: a part for each block, and one of all."""
    sent = dask.delayed(certifier)
    parts = [
        sent.partial_certificate(dask.delayed(mixture)(block), block)
        for block in range(n_blocks)
    ]
    return parts[0].merge(*parts[1:])


@pytest.mark.parametrize(
    ("encode", "verdict"), [(first_columns, "certified"), (nothing, "constant")]
)
def test_more_rows_than_fit_into_a_worker(client, teacher, encode, verdict):
    certifier = fitted(encode, teacher)
    assert N_BLOCKS * mixture(0).nbytes > MEMORY_LIMIT
    merged = in_parts(certifier, N_BLOCKS).compute()
    certificate = merged.certificate()
    assert certificate.verdict == verdict
    assert certificate.n_samples == N_BLOCKS * N_BLOCK
    assert merged.parts == set(range(N_BLOCKS))
    here = certifier.certify_batches(map(mixture, range(N_BLOCKS)))
    assert certificate.margin == pytest.approx(here.margin, abs=here.tolerance)


def deadly(tmp_path, n_deaths, teacher):
    certifier = CollapseCertifier(Deadly(tmp_path, n_deaths), teacher=teacher)
    return certifier.fit(mixture(99))


def test_a_worker_that_is_killed_changes_no_number(client, teacher, tmp_path):
    """Its parts are computed again, and count once."""
    certifier = deadly(tmp_path, 1, teacher)
    merged = in_parts(certifier, 6).compute()
    assert len(os.listdir(tmp_path)) == 1
    assert merged.parts == set(range(6))
    alone = [certifier.partial_certificate(mixture(k), k) for k in range(6)]
    assert merged.certificate() == alone[0].merge(*alone[1:]).certificate()


def test_what_kills_every_worker_is_an_error_and_no_certificate(
    client, teacher, tmp_path
):
    certifier = deadly(tmp_path, 1000, teacher)
    with pytest.raises(KilledWorker, match="on 2 different workers"):
        in_parts(certifier, 1).compute()
