"""Two processes that train one model; what each does is in processes_cases.py."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import processes_cases as cases
import pytest
import torch

import skvaecert
from skvaecert import CollapseCertifier
from skvaecert._training.processes import ALONE, _Ranks, join_processes

SCRIPT = Path(cases.__file__)
ROOT = Path(skvaecert.__file__).parents[1]
# Of the margin on the digits, nats: six times the most that was seen with ten seeds.
MARGIN_TOLERANCE = 0.02
# Of weights after 75 steps without noise, where only the order of sums differs.
ROUNDING = 1e-5
ON_ONE = {"drawn", "shown"}


def launch(folder, what, limit):
    """Run two processes, and see that neither is left behind."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [*launcher, "--nproc_per_node", "2", SCRIPT, folder, what],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends both
        output, _ = process.communicate(timeout=60)
        pytest.fail(f"no end within {limit} s:\n{output}")
    return process.returncode, output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes told."""
    folder = tmp_path_factory.mktemp("ranks")
    code, output = launch(folder, "all", 300)
    assert code == 0, output
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in (0, 1)]


def weights(result):
    return np.concatenate([v.ravel() for v in result["state"].values()])


@pytest.mark.parametrize("name", cases.CASES)
def test_all_numbers_are_the_same_on_both(results, name):
    ours, theirs = (
        {k: v for k, v in result[name].items() if k not in ON_ONE} for result in results
    )
    assert joblib.hash(ours) == joblib.hash(theirs)


@pytest.mark.parametrize("encoder", [None, cases.Own], ids=["by hand", "by autograd"])
def test_two_processes_make_the_steps_of_one(results, encoder):
    # Codes without noise: so much for gradient, loss, order of rows and optimizer.
    alone = cases.told(cases.deterministic(encoder=encoder, accelerate=False))
    together = results[0]["by autograd" if encoder else "deterministic"]
    assert set(together["sizes"]) == {4, 5}
    assert together["sizes"] == alone["sizes"]
    np.testing.assert_allclose(weights(together), weights(alone), atol=ROUNDING)
    np.testing.assert_allclose(together["losses"], alone["losses"], atol=1e-4)


def test_shares_without_their_weight_are_found_out(results):
    alone = weights(cases.told(cases.deterministic(accelerate=False)))
    assert abs(weights(results[0]["unweighted"]) - alone).max() > 10 * ROUNDING


def test_gradients_that_are_not_added_end_in_an_error(results):
    for result in results:
        assert (
            "RuntimeError: Weights differ between processes"
            in (result["not added"]["error"])
        )


def test_margin_is_that_of_one_process(results):
    alone = cases.digits(accelerate=False)["margin"]
    together = results[0]["digits"]["margin"]
    assert abs(together - alone) < MARGIN_TOLERANCE
    assert together != alone  # codes are drawn otherwise
    assert alone > 50 * MARGIN_TOLERANCE


def test_certifier_takes_the_parameter_and_keeps_no_processes(results):
    for result in results:
        assert result["certified"]["certificate"].verdict == "certified"
        assert not result["certified"]["left behind"]


def test_each_draws_codes_of_its_own(results):
    ours, theirs = (result["listened"]["drawn"] for result in results)
    together = [tuple(draw) for draws in (ours[0], theirs[1]) for draw in draws]
    assert len(set(together)) == len(together)
    assert all(result["listened"]["left"] for result in results)


def test_first_draws_what_it_draws_alone(results):
    cases.Listen.drawn.clear()
    cases.small(accelerate=False, callbacks=[cases.Listen()]).fit(cases.X)
    assert results[0]["listened"]["drawn"][0][0] == cases.Listen.drawn[0]


def test_batches_are_those_of_all_rows(results):
    assert set(results[0]["certified"]["sizes"]) == {30, 31}


def test_guard_moves_its_weight(results):
    assert results[0]["guarded"]["alignment_weight"] != 1.0
    assert "validation_margin" in results[0]["guarded"]["history"][-1]


def test_buffers_are_not_those_of_the_beginning(results):
    state = results[0]["normalised"]["state"]
    assert abs(state["encoder.normalise.running_mean"]).min() > 0
    np.testing.assert_array_equal(state["encoder.frozen"], 1)


def test_without_a_seed_models_differ_from_fit_to_fit(results):
    unseeded = weights(results[0]["unseeded"])
    again = weights(cases.told(cases.small(random_state=None).fit(cases.X)))
    assert abs(unseeded - again).max() > 1e-3


def test_early_stopping_stops_both(results):
    assert [result["stopped early"]["n_iter"] for result in results] == [2, 2]


def test_one_that_stops_stops_both(results):
    assert [result["stopped on one"]["n_iter"] for result in results] == [2, 2]


def test_ctrl_c_waits_for_the_end_of_the_epoch_and_stops_both(results):
    for result in results:
        assert result["interrupted on one"]["n_iter"] == 2
        assert result["interrupted on one"]["warned"]


def test_a_loss_that_is_not_finite_on_one_is_an_error_on_both(results):
    for result in results:
        assert "NonFiniteLossError" in result["spoilt on one"]["error"]
        assert result["spoilt on one"]["n_iter"] == 2
        assert np.isfinite(weights(result["spoilt on one"])).all()


def test_weights_changed_on_one_are_an_error_and_no_model(results):
    for result in results:
        assert "Weights differ" in result["changed on one"]["error"]
        assert not result["changed on one"]["fitted"]


def test_warm_starts_and_files_go_on(results):
    assert len(results[0]["gone on"]["history"]) == 4 + 4 + 1


def test_rows_on_the_disk_are_those_in_memory(results):
    np.testing.assert_array_equal(
        weights(results[0]["from disk"]), weights(results[0]["with a bar"])
    )


def test_only_the_first_shows_a_bar(results):
    shown = [result["with a bar"]["shown"] for result in results]
    assert shown == [{0: True}, {1: False}]


def test_nothing_trains_as_one_computation_with_others(results):
    np.testing.assert_array_equal(
        weights(results[0]["one by one"]), weights(results[0]["from disk"])
    )


def test_searches_choose_alike(results):
    assert results[0]["searched"]["estimator__alignment_weight"] == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("objective", "objective must train encoder and decoder together"),
        ("device", "device must be 'auto' or 'cpu' with accelerate=True"),
        ("batch_size", "batch_size must be such that every batch has at least 4 rows"),
        ("X", "X, teacher_proba and parameters must be the same on all 2 processes"),
        ("order", "X, teacher_proba and parameters must be the same"),
        ("max_epochs", "X, teacher_proba and parameters must be the same"),
        ("teacher_proba", "X, teacher_proba and parameters must be the same"),
        ("n_jobs", "n_jobs must be None or 1"),
    ],
)
def test_what_processes_cannot_do_together_is_refused_by_both(results, name, message):
    for result in results:
        assert result["refused"][name].startswith(f"ValueError: {message}")


def test_a_process_that_is_killed_ends_all_and_leaves_no_model(tmp_path):
    code, output = launch(tmp_path, "killed", 120)
    assert code != 0
    assert "SIGKILL" in output
    assert list(tmp_path.iterdir()) == []


def test_one_process_trains_the_same_bits_with_and_without():
    plain, accelerated = (
        cases.told(cases.small(accelerate=accelerate).fit(cases.X))
        for accelerate in (False, True)
    )
    np.testing.assert_array_equal(weights(plain), weights(accelerated))
    assert plain["losses"] == accelerated["losses"]


def test_parameter_is_kept_by_files_and_clones(tmp_path):
    certifier = CollapseCertifier(cases.small(max_epochs=1)).fit(cases.X)
    certifier.save(tmp_path / "certifier")
    loaded = CollapseCertifier.load(tmp_path / "certifier")
    assert loaded.estimator_.accelerate is True
    assert loaded.estimator_.fit(cases.X).n_iter_ == 1


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
    tensors = [torch.arange(3.0)]
    assert ALONE.sum(tensors, 0.5) is tensors
    ALONE.copy_first(tensors)
    assert tensors[0].tolist() == [0, 1, 2]
    assert ALONE.first(7) == 7
    assert ALONE.agree_on(7)
    assert ALONE.vote(True)
    assert not ALONE.vote(False)
