"""Several processes that train one model, as far as one process shows it."""

import pickle
import signal
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import two_processes_cases as cases

from skvaecert._training.processes import ALONE, _Ranks, join_processes


def test_one_process_trains_the_same_bits_with_and_without():
    plain, accelerated = (
        cases.told(cases.small(accelerate=accelerate).fit(cases.X))
        for accelerate in (False, True)
    )
    np.testing.assert_array_equal(cases.weights(plain), cases.weights(accelerated))
    assert plain["losses"] == accelerated["losses"]


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    assert join_processes(False, "cpu") is ALONE
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert join_processes(False, "cpu") is ALONE
    with pytest.raises(ImportError, match=r"skvaecert\[accelerate\]"):
        join_processes(True, "cpu")


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch):
    # Otherwise each would train by itself, and nobody would notice.
    assert join_processes(True, "cpu") is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cannot train 2 processes with device='cpu'"):
        join_processes(True, "cpu")


def rank(number, n_processes, device="cpu:0"):
    state = SimpleNamespace(
        process_index=number, num_processes=n_processes, device=torch.device(device)
    )
    return _Ranks(state)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 7])
@pytest.mark.parametrize("n_rows", [14, 15, 31])
def test_shares_are_all_rows_once_and_alike_in_number(n_rows, n_processes):
    order = torch.randperm(n_rows)
    shares = [rank(i, n_processes).share(order) for i in range(n_processes)]
    assert torch.equal(torch.cat(shares), order)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(ALONE.share(order), order)


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "fits"),
    [
        (121, 5, True),
        (121, 4, False),
        (9, 8, True),
        (7, 8, True),
        (5, 4, False),
        (3, 8, False),
    ],
)
def test_every_process_has_two_rows_of_every_batch(n_samples, batch_size, fits):
    ranks = rank(0, 2)
    ALONE.check_batches(n_samples, batch_size)
    if fits:
        ranks.check_batches(n_samples, batch_size)
        return
    with pytest.raises(ValueError, match="Raise it or use fewer processes"):
        ranks.check_batches(n_samples, batch_size)


def test_each_process_has_the_device_that_it_was_given():
    assert rank(0, 2).device_name("auto") == rank(0, 2).device_name("cpu") == "cpu"
    ours = rank(3, 8, "cuda:3")
    assert ours.device_name("auto") == ours.device_name("cuda") == "cuda:3"
    for device in ("cuda:0", "cpu", "mps"):
        with pytest.raises(ValueError, match="device must be 'auto' or 'cuda'"):
            ours.device_name(device)
    assert ALONE.device_name("mps") == "mps"


def test_ctrl_c_is_held_back_and_the_handler_given_back():
    before = signal.getsignal(signal.SIGINT)
    ranks = rank(0, 2)
    with ranks.holding_back_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert ranks._pending
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), ALONE.holding_back_interrupts():
        signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone():
    handlers = []

    def look():
        with rank(0, 2).holding_back_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_one_process_has_nothing_to_carry():
    # What test_training_two_processes.py looks for in pickles.
    assert b"_training.processes" in pickle.dumps(ALONE)
    tensors = [torch.arange(3.0)]
    assert ALONE.sum(tensors, 0.5) is tensors
    ALONE.copy_first(tensors)
    assert tensors[0].tolist() == [0, 1, 2]
    assert ALONE.first(7) == 7
    assert ALONE.agree_on(7)
    assert ALONE.vote(True)
    assert not ALONE.vote(False)
