"""Searches and certificates on several processes, also where one of them dies."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback
from threadpoolctl import threadpool_limits

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.model_selection import BestCertified, certificate_scorers
from skvaecert.wrappers import TrainedEncoder

pytestmark = pytest.mark.slow

# Torch and scikit-learn take about 400 MB of it.
MEMORY_LIMIT = 900_000_000
N_FEATURES, N_BLOCK, N_BLOCKS = 1000, 4000, 30

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
N_FITS = 6
can_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


class Fatal(Callback):
    """Records in a folder that a fit begins; if it is armed, the fifth fit dies."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_begin(self, net, **kwargs):
        with open(Path(self.folder, "begun"), "a") as log:
            log.write(f"{os.getpid()}\n")
        self.is_late_ = len(begun(self.folder)) > 4

    def on_epoch_end(self, net, **kwargs):
        armed = Path(self.folder, "armed")
        if self.is_late_ and len(net.history) == 3 and armed.exists():
            assert os.getpid() != int(armed.read_text()), "the test itself would die"
            # Only one process can do this, and only once.
            armed.rename(Path(self.folder, "fired"))
            os.kill(os.getpid(), signal.SIGKILL)


def begun(folder):
    """Return which process began each fit."""
    return [int(line) for line in Path(folder, "begun").read_text().splitlines()]


def arm(folder):
    Path(folder, "begun").write_text("")
    Path(folder, "armed").write_text(str(os.getpid()))


@pytest.fixture(autouse=True)
def _no_waiting_forever():
    """Raise in a test that hangs: a good run takes seconds."""

    def give_up(number, frame):
        raise TimeoutError("the engine hangs")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def samples():
    """Enough that indices of a fold are large for dask, which then sends them once."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 6)) * 4
    return centers[rng.integers(4, size=400)] + rng.normal(size=(400, 6))


@pytest.fixture(scope="module")
def folds(samples):
    return list(KFold(2, shuffle=True, random_state=0).split(samples))


@pytest.fixture(scope="module")
def make_search(folds):
    """Return what makes a search, with parameters of the VAE."""

    def make(**params):
        vae = CertifiedVAE(
            GMMTeacher(n_components=4, random_state=0),
            latent_dim=4,
            hidden_sizes=(32,),
            batch_size=32,
            max_epochs=6,
            learning_rate=1e-2,
            device="cpu",
            random_state=0,
        )
        return GridSearchCV(
            CollapseCertifier(vae.set_params(**params)),
            {"estimator__alignment_weight": [0.0, 1.0, 10.0]},
            cv=folds,
            **BestCertified().search_params,
        )

    return make


@pytest.fixture(scope="module")
def alone(make_search, samples):
    """Return the search of one process and one thread."""
    with threadpool_limits(1):
        return make_search().fit(samples)


@pytest.fixture(scope="module")
def _no_processes_left():
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def loky():
    """The engine of joblib."""
    return joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1)


@contextmanager
def forking_server():
    """Fork workers from a process that has imported torch, once for all of them."""
    if sys.platform == "win32":
        yield
        return
    dask, utils = pytest.importorskip("dask"), pytest.importorskip("distributed.utils")
    method = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(method):
        utils.get_mp_context().set_forkserver_preload(["distributed", "skvaecert"])
        yield


@pytest.fixture(scope="module")
def dask_client(tmp_path_factory):
    """A client of two processes on this machine, which are gone after the tests."""
    yield from local_client(tmp_path_factory.mktemp("dask"))


def local_client(folder, n_workers=2, threads_per_worker=1):
    psutil, dask = pytest.importorskip("psutil"), pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    settings = {
        "temporary-directory": str(folder),
        "distributed.scheduler.allowed-failures": 1,
    }
    options = {
        "n_workers": n_workers,
        "threads_per_worker": threads_per_worker,
        "memory_limit": MEMORY_LIMIT,
        "dashboard_address": "127.0.0.1:0",
        "local_directory": folder,
    }
    with (
        dask.config.set(settings),
        forking_server(),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
        pids = client.run(os.getpid).values()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def scores(search):
    columns = search.cv_results_.items()
    return {name: values for name, values in columns if "_test_" in name}


def assert_same(search, alone, samples):
    assert scores(search).keys() == scores(alone).keys()
    for name, values in scores(alone).items():
        np.testing.assert_array_equal(scores(search)[name], values, err_msg=name)
    assert search.best_params_ == alone.best_params_
    best, expected = search.best_estimator_, alone.best_estimator_
    assert best.score(samples) == expected.score(samples)


def assert_fitted_elsewhere(folder):
    *searched, refitted = begun(folder)
    assert refitted == os.getpid() not in searched
    assert len(searched) >= N_FITS


def assert_not_fitted(search):
    assert not hasattr(search, "best_estimator_")
    assert not hasattr(search, "cv_results_")


def test_scores_are_of_use(alone, samples):
    assert alone.best_params_["estimator__alignment_weight"] > 0
    assert alone.best_estimator_.certify(samples).verdict == "certified"
    margins = alone.cv_results_["mean_test_margin"]
    assert len(set(margins)) == 3
    assert margins.min() < 0 < margins.max()


def test_another_seed_would_be_noticed(alone, make_search, samples):
    other = make_search(random_state=1).fit(samples)
    differ = [
        name
        for name, values in scores(alone).items()
        if name.startswith("mean") and (values != scores(other)[name]).any()
    ]
    assert {"mean_test_margin", "mean_test_elbo"} <= set(differ)


@pytest.mark.usefixtures("_no_processes_left")
def test_loky_has_the_scores_of_one_process(alone, make_search, samples, tmp_path):
    search = make_search(callbacks=[Fatal(str(tmp_path))])
    with loky():
        search.fit(samples)
    assert_same(search, alone, samples)
    assert_fitted_elsewhere(tmp_path)


def test_threads_have_the_scores_of_one_process(alone, make_search, samples):
    """They share torch's generators, so one has to wait for the other."""
    before = torch.get_rng_state()
    with joblib.parallel_config("threading", n_jobs=2), threadpool_limits(1):
        assert_same(make_search().fit(samples), alone, samples)
    assert (torch.get_rng_state() == before).all()


@pytest.mark.usefixtures("dask_client")
def test_dask_has_the_scores_of_one_process(alone, make_search, samples, tmp_path):
    search = make_search(callbacks=[Fatal(str(tmp_path))])
    with joblib.parallel_config("dask"):
        assert_same(search.fit(samples), alone, samples)
    assert_fitted_elsewhere(tmp_path)


@pytest.mark.usefixtures("dask_client")
def test_searched_teachers_do_not_depend_on_the_engine(samples):
    teacher = GMMTeacher(n_components=[3, 4], random_state=0)
    expected = teacher.fit(samples).predict_proba(samples)
    with joblib.parallel_config("dask"):
        found = joblib.Parallel()([joblib.delayed(clone(teacher).fit)(samples)])[0]
    np.testing.assert_array_equal(found.predict_proba(samples), expected)


def test_nothing_listens_to_other_machines(dask_client):
    def listeners():
        import psutil

        connections = psutil.Process().net_connections()
        return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}

    everywhere = [listeners(), *dask_client.run(listeners).values()]
    assert set().union(*everywhere) == {"127.0.0.1"}


@can_kill
@pytest.mark.usefixtures("dask_client")
def test_dask_goes_on_when_a_worker_dies(alone, make_search, samples, folds, tmp_path):
    """Or an error is raised: rarely, dask forgets a fit that was lost."""
    distributed = pytest.importorskip("distributed")
    for _ in range(3):
        search = make_search(callbacks=[Fatal(str(tmp_path))])
        arm(tmp_path)
        with joblib.parallel_config("dask", scatter=[samples, *chain(*folds)]):
            try:
                search.fit(samples)
                break
            except distributed.client.FutureCancelledError:
                assert_not_fitted(search)
    assert (tmp_path / "fired").exists()
    assert_same(search, alone, samples)
    assert_fitted_elsewhere(tmp_path)
    # One more fit is for all samples. Some of the others were started again, not all.
    assert N_FITS < len(begun(tmp_path)) - 1 < 2 * N_FITS


@can_kill
def test_dask_says_so_when_data_died_with_a_worker(make_search, samples, tmp_path):
    distributed = pytest.importorskip("distributed")
    lost = distributed.client.FutureCancelledError, distributed.KilledWorker
    search = make_search(callbacks=[Fatal(str(tmp_path))])
    arm(tmp_path)
    # All data are on one worker; joblib sends a worker at least two fits at a time.
    for _ in local_client(tmp_path, n_workers=1, threads_per_worker=2):
        with joblib.parallel_config("dask"), pytest.raises(lost):
            search.fit(samples)
    assert (tmp_path / "fired").exists()
    assert_not_fitted(search)


def saved(folder):
    """When each result of the cache was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("output.pkl")}


@can_kill
@pytest.mark.usefixtures("_no_processes_left")
def test_loky_says_so_when_a_worker_dies(alone, make_search, samples, tmp_path):
    folder = tmp_path / "teachers"
    search = make_search(callbacks=[Fatal(str(tmp_path))], memory=str(folder))
    arm(tmp_path)
    with loky(), pytest.raises(TerminatedWorkerError, match=r"SIGKILL\(-9\)"):
        search.fit(samples)
    assert_not_fitted(search)
    teachers = saved(folder)
    assert len(teachers) == 2

    # Here, because processes take seconds to be there again.
    with threadpool_limits(1):
        assert_same(search.fit(samples), alone, samples)
    # The third fit is that of all samples; the others were read from the cache.
    assert len(saved(folder)) == 3
    assert teachers.items() <= saved(folder).items()


def blocks_of_page():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@can_kill
@pytest.mark.usefixtures("_no_processes_left")
def test_finished_candidates_survive_a_kill(
    alone, make_search, samples, folds, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (recipe,) = (code for code in blocks_of_page() if "ParameterGrid" in code)
    recipe = recipe.replace("[1, 10]", "[0.0, 1.0, 10.0]")
    scope = {
        "Path": Path,
        "joblib": joblib,
        "X": samples,
        "folds": folds,
        "search": make_search(callbacks=[Fatal(str(tmp_path))]),
        "BestCertified": BestCertified,
        "certificate_scorers": certificate_scorers,
    }
    arm(tmp_path)
    with pytest.raises(TerminatedWorkerError):
        exec(recipe, scope)
    finished = saved(tmp_path / "finished")
    assert 1 <= len(finished) < 3

    (tmp_path / "begun").write_text("")
    engine = '"loky", n_jobs=2, inner_max_num_threads=1'
    assert engine in recipe
    with threadpool_limits(1):
        exec(recipe.replace(engine, '"sequential"'), scope)
    assert finished.items() <= saved(tmp_path / "finished").items()
    assert len(begun(tmp_path)) == 2 * (3 - len(finished)) + 1
    for name, values in scores(alone).items():
        if not name.startswith(("std", "rank")):
            np.testing.assert_array_equal(scope["table"][name], values, err_msg=name)
    assert scope["best"].score(samples) == alone.best_estimator_.score(samples)


def test_script_of_the_page_runs_and_leaves_nothing_behind(tmp_path):
    pytest.importorskip("distributed")
    (code,) = (code for code in blocks_of_page() if "LocalCluster" in code)
    short = code.replace("max_epochs=30", "max_epochs=3")
    short = short.replace("n_workers=2", "n_workers=1")
    (tmp_path / "search.py").write_text(short)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = subprocess.run(
        [sys.executable, "search.py"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"{'estimator__alignment_weight': \d+}\n", run.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["search.py", "temporary"]


# Certificates by map and reduce.


def mixture(block):
    """Samples of three clusters; a block is the same in every process."""
    generator = np.random.default_rng(block)
    samples = generator.random((N_BLOCK, N_FEATURES))
    samples[np.arange(N_BLOCK), generator.integers(3, size=N_BLOCK)] += 6
    return samples


def first_columns(X):
    return 0.3 * np.asarray(X)[:, :3]


def nothing(X):
    return np.full((len(X), 3), 0.1)


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


@pytest.fixture(scope="module")
def fitted():
    """Return what fits a certifier of an encoder to a block."""
    block = mixture(99)
    teacher = FrozenEstimator(GMMTeacher(n_components=3, random_state=0).fit(block))

    def fit(encoder):
        certifier = CollapseCertifier(encoder, teacher=teacher, random_state=0)
        return certifier.fit(block)

    return fit


def in_parts(certifier, n_blocks):
    """What to compute: a part for each block, and one for all blocks."""
    dask = pytest.importorskip("dask")
    sent = dask.delayed(certifier)
    parts = [
        sent.partial_certificate(dask.delayed(mixture)(block), block)
        for block in range(n_blocks)
    ]
    return parts[0].merge(*parts[1:])


@pytest.mark.usefixtures("dask_client")
@pytest.mark.parametrize(
    ("encode", "n_blocks", "verdict"),
    [(first_columns, N_BLOCKS, "certified"), (nothing, 4, "constant")],
)
def test_more_samples_than_fit_into_a_worker(fitted, encode, n_blocks, verdict):
    assert N_BLOCKS * mixture(0).nbytes > MEMORY_LIMIT
    certifier = fitted(TrainedEncoder(encode))
    merged = in_parts(certifier, n_blocks).compute()
    certificate = merged.certificate()
    assert certificate.verdict == verdict
    assert certificate.n_samples == n_blocks * N_BLOCK
    assert merged.parts == set(range(n_blocks))
    here = certifier.certify_batches(map(mixture, range(n_blocks)))
    assert certificate.margin == pytest.approx(here.margin, abs=here.tolerance)


@can_kill
@pytest.mark.usefixtures("dask_client")
def test_a_worker_that_is_killed_changes_no_value(fitted, tmp_path):
    """Its parts are computed again, and count once."""
    certifier = fitted(Deadly(tmp_path, 1))
    merged = in_parts(certifier, 4).compute()
    assert len(os.listdir(tmp_path)) == 1
    assert merged.parts == set(range(4))
    alone = [certifier.partial_certificate(mixture(k), k) for k in range(4)]
    assert merged.certificate() == alone[0].merge(*alone[1:]).certificate()


@can_kill
@pytest.mark.usefixtures("dask_client")
def test_what_kills_every_worker_is_an_error_and_no_certificate(fitted, tmp_path):
    distributed = pytest.importorskip("distributed")
    with pytest.raises(distributed.KilledWorker, match="on 2 different workers"):
        in_parts(fitted(Deadly(tmp_path, 1000)), 1).compute()
