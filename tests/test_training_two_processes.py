"""Two processes that train one model; what each does is in two_processes_cases.py."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import two_processes_cases as cases
from two_processes_cases import weights

import skvaecert

pytestmark = pytest.mark.slow

SCRIPT = Path(cases.__file__)
ROOT = Path(skvaecert.__file__).parents[1]
# Of the margin after two epochs, nats: four times the most seen with ten seeds.
MARGIN_TOLERANCE = 0.03
# Of weights after 75 steps without noise, where only the order of sums differs.
ROUNDING = 1e-5
ON_ONE = {"drawn", "shown"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Both processes, until one of them kills itself in its last fit."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [*launcher, "--nproc_per_node", "2", SCRIPT, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends both
        output, _ = process.communicate(timeout=60)
        pytest.fail(f"no end within 300 s:\n{output}")
    return folder, process.returncode, output


@pytest.fixture(scope="module")
def results(ended):
    """What each of two processes told."""
    folder, _, output = ended
    files = [folder / f"{rank}.pkl" for rank in (0, 1)]
    assert all(file.exists() for file in files), output
    return [pickle.loads(file.read_bytes()) for file in files]


def both(results, name, key):
    return [result[name][key] for result in results]


def test_a_process_that_is_killed_ends_all_and_leaves_no_model(ended, results):
    folder, code, output = ended
    assert code != 0
    assert "SIGKILL" in output
    assert not list(folder.glob("killed*"))


@pytest.mark.parametrize("name", cases.CASES)
def test_all_numbers_are_the_same_on_both(results, name):
    ours, theirs = (
        {k: v for k, v in result[name].items() if k not in ON_ONE} for result in results
    )
    assert joblib.hash(ours) == joblib.hash(theirs)


@pytest.mark.parametrize("encoder", [None, cases.Own], ids=["numpy", "autograd"])
def test_two_processes_make_the_steps_of_one(results, encoder):
    # Codes without noise: so much for gradient, loss, order of samples and optimizer.
    # One process alone may compute steps by NumPy, two do it by autograd.
    alone = cases.told(cases.deterministic(encoder=encoder, accelerate=False))
    together = results[0]["own module" if encoder else "deterministic"]
    assert set(together["sizes"]) == {4, 5}
    assert together["sizes"] == alone["sizes"]
    np.testing.assert_allclose(weights(together), weights(alone), atol=ROUNDING)
    np.testing.assert_allclose(together["losses"], alone["losses"], atol=1e-4)


def test_shares_without_their_weight_are_found_out(results):
    right, wrong = results[0]["deterministic"], results[0]["unweighted"]
    assert abs(weights(wrong) - weights(right)).max() > 10 * ROUNDING


def test_gradients_that_are_not_added_end_in_an_error(results):
    for error in both(results, "not added", "error"):
        assert "RuntimeError: Weights differ between processes" in error


def test_certified_margin_is_that_of_one_process(results):
    alone = cases.certified(accelerate=False)["certificate"].margin
    for certificate in both(results, "certified", "certificate"):
        assert certificate.verdict == "certified"
        assert abs(certificate.margin - alone) < MARGIN_TOLERANCE
        assert certificate.margin != alone  # codes are drawn otherwise
    assert alone > 30 * MARGIN_TOLERANCE
    assert both(results, "certified", "left behind") == [False, False]


def test_each_draws_codes_of_its_own_the_first_what_it_draws_alone(results):
    ours, theirs = both(results, "listened", "drawn")
    together = [tuple(draw) for draws in (ours[0], theirs[1]) for draw in draws]
    assert len(set(together)) == len(together)
    assert both(results, "listened", "left") == [True, True]
    cases.Listen.drawn.clear()
    cases.small(accelerate=False, callbacks=[cases.Listen()]).fit(cases.X)
    assert ours[0][0] == cases.Listen.drawn[0]


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


@pytest.mark.parametrize("name", ["stopped early", "stopped on one"])
def test_one_that_stops_stops_both(results, name):
    assert both(results, name, "n_iter") == [2, 2]


def test_ctrl_c_waits_for_the_end_of_the_epoch_and_stops_both(results):
    assert both(results, "interrupted on one", "n_iter") == [2, 2]
    assert both(results, "interrupted on one", "warned") == [True, True]


def test_a_loss_that_is_not_finite_on_one_is_an_error_on_both(results):
    assert both(results, "spoilt on one", "n_iter") == [2, 2]
    for result in results:
        assert "NonFiniteLossError" in result["spoilt on one"]["error"]
        assert np.isfinite(weights(result["spoilt on one"])).all()


def test_weights_changed_on_one_are_an_error_and_no_model(results):
    assert both(results, "changed on one", "fitted") == [False, False]
    for error in both(results, "changed on one", "error"):
        assert "Weights differ" in error


def test_warm_starts_and_files_go_on(results):
    assert len(results[0]["gone on"]["history"]) == 4 + 4 + 1


def test_neither_disk_nor_bar_changes_the_model(results):
    expected = weights(results[0]["from disk"])
    np.testing.assert_array_equal(expected, weights(results[0]["with a bar"]))


def test_only_the_first_shows_a_bar(results):
    assert both(results, "with a bar", "shown") == [{0: True}, {1: False}]


def test_searches_choose_alike(results):
    assert results[0]["searched"]["estimator__alignment_weight"] == 10


REFUSED = {
    "objective": "objective must train encoder and decoder together",
    "device": "device must be 'auto' or 'cpu' with accelerate=True",
    "batch_size": "batch_size must be such that every batch has at least 4 rows",
    "X": "X, teacher_proba and parameters must be the same on all 2 processes",
    "order": "X, teacher_proba and parameters must be the same",
    "max_epochs": "X, teacher_proba and parameters must be the same",
    "teacher_proba": "X, teacher_proba and parameters must be the same",
    "n_jobs": "n_jobs must be None or 1",
}


def test_what_processes_cannot_do_together_is_refused_by_both(results):
    for result in results:
        assert result["refused"].keys() == REFUSED.keys()
        for name, message in REFUSED.items():
            assert result["refused"][name].startswith(f"ValueError: {message}"), name
