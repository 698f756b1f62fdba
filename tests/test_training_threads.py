import gc
import itertools
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from joblib import Parallel, delayed
from threadpoolctl import ThreadpoolController

from skvaecert._training import threads
from skvaecert._training.threads import (
    MULTIPLY_ADDS_PER_THREAD,
    n_threads_for,
    threads_for,
)

BLAS = ThreadpoolController().select(user_api="blas")
SMALL, LARGE = 1, 2 * MULTIPLY_ADDS_PER_THREAD


def limited(work):
    """A block in which the limits of BLAS and torch are equal."""
    return threads_for(work, step="autograd")


def numbers():
    """How many threads torch, NumPy's and SciPy's BLAS may use from here."""
    return torch.get_num_threads(), *(k["num_threads"] for k in BLAS.info())


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def all_are(number):
    return numbers() == (number,) * len(numbers())


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Start from three threads on any machine."""
    monkeypatch.setattr(threads, "_n_cores", lambda: 8)
    before = torch.get_num_threads()
    with BLAS.limit(limits=3):
        torch.set_num_threads(3)
        yield
        assert all_are(3)
        assert in_new_thread(lambda: all_are(3))
    torch.set_num_threads(before)


def test_numpy_and_scipy_are_found():
    found = [k["filepath"] for k in BLAS.info()]
    assert len(found) >= 2
    assert all_are(3)


def multiply_adds(*sizes, batch_size):
    n_features, *hidden, latent_dim = sizes
    encoder = [n_features, *hidden, 2 * latent_dim]
    decoder = [latent_dim, *reversed(hidden), n_features]
    products = sum(
        a * b for widths in (encoder, decoder) for a, b in itertools.pairwise(widths)
    )
    return products * batch_size


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [((64, 128, 128, 16), 84), ((64, 64, 64, 16), 64)]
)
def test_networks_of_default_size_run_on_one_thread(sizes, batch_size):
    assert n_threads_for(multiply_adds(*sizes, batch_size=batch_size)) == 1


def test_large_networks_run_on_several_threads():
    assert n_threads_for(multiply_adds(784, 512, 256, 32, batch_size=128)) >= 2
    assert n_threads_for(LARGE) == 2
    assert n_threads_for(LARGE - 1) == n_threads_for(0) == 1


def test_one_core_is_left_to_others(monkeypatch):
    for n_cores, expected in [(1, 1), (2, 1), (4, 3)]:
        monkeypatch.setattr(threads, "_n_cores", lambda n=n_cores: n)
        assert n_threads_for(100 * LARGE) == expected


@pytest.mark.parametrize(
    ("work", "expected"), [(SMALL, 1), (LARGE, 2), (100 * LARGE, 3)]
)
def test_numbers_inside_are_at_most_those_that_work_can_feed(work, expected):
    with limited(work):
        assert all_are(expected)
    assert all_are(3)


def test_with_a_step_by_numpy_torch_has_one_thread():
    with threads_for(LARGE):
        assert numbers() == (1, *(2 for _ in BLAS.lib_controllers))


def test_without_a_number_nothing_changes():
    with threads_for(None):
        assert all_are(3)
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(3)


def test_numbers_are_never_raised():
    torch.set_num_threads(1)
    with limited(LARGE):
        assert numbers() == (1, *(2 for _ in BLAS.lib_controllers))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_numbers_are_put_back_after_errors(error):
    def fails():
        with limited(SMALL):
            assert all_are(1)
            raise error

    with pytest.raises(error):
        fails()
    assert all_are(3)


def test_blocks_in_blocks():
    with limited(LARGE):
        with limited(SMALL):
            with limited(100 * LARGE):
                assert all_are(1)
            assert all_are(1)
        assert all_are(2)


class Block:
    """A block in a separate thread, which enters and leaves on demand."""

    def __init__(self, work, ask_first):
        self._pool = ThreadPoolExecutor(1)
        if ask_first:
            self.do(numbers)
        self._manager = limited(work)

    def do(self, function):
        return self._pool.submit(function).result()

    def enter(self):
        self.do(self._manager.__enter__)

    def leave(self):
        self.do(lambda: self._manager.__exit__(None, None, None))
        return self

    def close(self):
        assert self.do(lambda: all_are(3))
        self._pool.shutdown()


# A thread that has used torch before keeps its number; others get the latest.
@pytest.mark.parametrize("ask_first", [True, False])
@pytest.mark.parametrize("first_leaves_first", [True, False])
@pytest.mark.parametrize("works", [(SMALL, LARGE), (LARGE, SMALL), (SMALL, SMALL)])
def test_overlapping_blocks(works, first_leaves_first, ask_first):
    a, b = (Block(work, ask_first) for work in works)
    a.enter()
    b.enter()
    # Each thread has its own number for torch.
    assert [block.do(torch.get_num_threads) for block in (a, b)] == [
        n_threads_for(work) for work in works
    ]
    assert numbers()[1:] == (1,) * len(BLAS.lib_controllers)
    leaving, staying = (a, b) if first_leaves_first else (b, a)
    leaving.leave()
    assert leaving.do(torch.get_num_threads) == 3
    left = n_threads_for(works[1 if first_leaves_first else 0])
    assert numbers() == (3, *(left for _ in BLAS.lib_controllers))
    staying.leave()
    a.close()
    b.close()


@pytest.mark.slow
def test_many_threads_at_once():
    barrier = threading.Barrier(6)
    seen = []

    def work(i):
        barrier.wait()
        for k in range(50):
            with limited((SMALL, LARGE)[(i + k) % 2]):
                seen.append(max(numbers()))
        barrier.wait()
        return all_are(3)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert max(seen) == 2


def test_limits_of_others_do_not_stop_us():
    """threadpoolctl ignores calls from a second thread while one has a limit."""
    with BLAS.limit(limits=3):
        block = Block(SMALL, ask_first=True)
        block.enter()
        assert numbers() == (3, *(1 for _ in BLAS.lib_controllers))
        block.leave().close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_ctrl_c_at_any_moment():
    def interrupt(*_):
        raise KeyboardInterrupt

    def fits(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            with limited(SMALL):
                seen.append(all_are(1))

    with limited(SMALL):
        seen = []
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(200):
            with pytest.raises(KeyboardInterrupt):
                fits(0.001 + i * 1e-6)
            gc.collect(0)
            assert all_are(3)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert len(seen) > 200
    assert all(seen)


@pytest.mark.slow
def test_loky_workers_keep_their_own_numbers_of_threads():
    with limited(SMALL):
        results = Parallel(n_jobs=2)(delayed(numbers_in_worker)() for _ in range(2))
    assert results == [True, True]


def numbers_in_worker():
    before = torch.get_num_threads()
    with BLAS.limit(limits=2):
        torch.set_num_threads(2)
        with limited(SMALL):
            inside = all_are(1)
        outside = all_are(2)
    torch.set_num_threads(before)
    return inside and outside
