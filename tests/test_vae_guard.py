import re
import warnings

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from skorch.callbacks import Callback

from skvaecert import GMMTeacher
from skvaecert._vae.guard import make_guard, warn_if_unreached
from skvaecert.exceptions import UnreachedMarginWarning
from skvaecert.metrics import collapse_margin, teacher_information


def relative_margin(vae, X):
    """Margin over information, computed separately from the guard."""
    proba = vae.teacher_.predict_proba(X)
    margin = collapse_margin(proba, vae.witness_log_proba(X))
    return margin / teacher_information(proba)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "kl_weight"), [(0.3, 16.0), (0.6, 16.0), (0.6, 2.0)]
)
def test_guard_holds_the_margin(blobs, vae, target, kl_weight):
    vae.set_params(
        alignment_weight="auto",
        target_margin=target,
        kl_weight=kl_weight,
        max_epochs=100,
        learning_rate=3e-3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreachedMarginWarning)
        vae.fit(blobs)
    assert relative_margin(vae, blobs) >= target - 0.05
    weights = [row["alignment_weight"] for row in vae.history_]
    assert len(set(weights)) > 20


@pytest.mark.slow
def test_without_the_guard_there_is_no_margin_to_hold(blobs, vae):
    """The twin of the test above."""
    vae.set_params(alignment_weight=0.0, kl_weight=16.0, max_epochs=50).fit(blobs)
    assert relative_margin(vae, blobs) < 0.25


@pytest.mark.slow
def test_guard_lets_go_of_a_margin_that_costs_nothing(blobs, vae):
    vae.set_params(alignment_weight="auto", target_margin=0.1, max_epochs=60)
    weights = [row["alignment_weight"] for row in vae.fit(blobs).history_]
    assert weights[0] > 0.9
    assert weights[-1] == pytest.approx(0.1)  # the least that a guard takes


def test_guard_says_what_it_did_not_reach(blobs, vae):
    vae.set_params(
        alignment_weight="auto", target_margin=0.95, kl_weight=50.0, max_epochs=2
    )
    with pytest.warns(UnreachedMarginWarning, match="in 2 epochs, not target") as w:
        vae.fit(blobs)
    assert w[0].filename == __file__
    reached = float(re.search(r"margin of (-?[\d.]+) in", str(w[0].message))[1])
    assert reached == pytest.approx(relative_margin(vae, blobs), abs=1e-3)


@pytest.mark.parametrize(("missed", "warns"), [(0.04, False), (0.06, True)])
def test_a_margin_just_below_its_target_is_well(missed, warns):
    proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    log_q = log_softmax(np.log(proba) * 0.5, axis=1)
    reached = collapse_margin(proba, log_q) / teacher_information(proba)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_unreached(proba, log_q, reached + missed, weight=1.0, n_epochs=3)
    assert [w.category for w in caught] == [UnreachedMarginWarning] * warns


def test_guard_goes_on_from_its_weight(blobs, vae):
    vae.set_params(alignment_weight="auto", kl_weight=16.0, max_epochs=30)
    first = vae.set_params(warm_start=True).fit(blobs).history_[-1]["alignment_weight"]
    table = vae.set_params(max_epochs=1).fit(blobs).history_
    assert 0.8 < table[-1]["alignment_weight"] / first < 1.25
    assert table[0]["alignment_weight"] == pytest.approx(1, rel=0.3)


def test_guard_needs_a_teacher_that_distinguishes_samples(blobs, vae):
    vae.set_params(alignment_weight="auto", witness_scale=1.0)
    with pytest.raises(ValueError, match="alignment_weight must be a number"):
        vae.fit(blobs, teacher_proba=np.full((len(blobs), 3), 1 / 3))


def test_an_earlier_guard_stays_where_a_chunk_is_all_alike():
    device, alike = torch.device("cpu"), np.full((5, 2), 0.5)
    earlier = make_guard(0.6, np.array([[0.9, 0.1], [0.1, 0.9]]), device, None)
    assert make_guard(0.6, alike, device, earlier) is earlier


def test_a_stream_may_have_chunks_that_are_all_alike(blobs, vae):
    vae.set_params(alignment_weight="auto").partial_fit(blobs)
    assert vae.partial_fit(np.tile(blobs[:1], (20, 1))).n_iter_ == 1


def test_a_warm_fit_on_samples_all_alike_says_nothing_of_the_margin(blobs, vae):
    vae.set_params(alignment_weight="auto", warm_start=True, witness_scale=1.0)
    first = np.where(blobs[:, :1] > blobs[:, 0].mean(), 0.9, 0.1)
    vae.set_params(max_epochs=20).fit(
        blobs, teacher_proba=np.hstack([first, 1 - first])
    )
    alike = np.full((len(blobs), 2), [0.25, 0.75])
    assert vae.set_params(max_epochs=1).fit(blobs, teacher_proba=alike).n_iter_ == 1


def test_one_epoch_of_a_stream_need_not_reach_the_target(blobs, vae):
    vae.set_params(alignment_weight="auto", target_margin=0.95, kl_weight=50.0)
    vae.partial_fit(blobs)
    assert relative_margin(vae, blobs) < 0.9


@pytest.mark.slow
def test_guard_holds_the_margin_of_held_out_samples(blobs, vae):
    vae.set_params(
        alignment_weight="auto",
        validation_fraction=0.25,
        kl_weight=16.0,
        max_epochs=100,
        learning_rate=3e-3,
    )
    last = vae.fit(blobs).history_[-1]
    assert last["validation_margin"] >= 0.55 * last["validation_information"]


@pytest.fixture
def noise():
    """Samples without clusters, on which a network overfits at once."""
    return np.random.default_rng(0).normal(size=(120, 6))


@pytest.fixture
def guarded(vae):
    return vae.set_params(
        teacher=GMMTeacher(4, covariance_type="full"),
        alignment_weight="auto",
        validation_fraction=0.3,
        kl_weight=4.0,
    )


@pytest.mark.filterwarnings("ignore::skvaecert.exceptions.UnreachedMarginWarning")
def test_guard_knows_the_gap_to_held_out_samples(noise, guarded):
    guarded.set_params(max_epochs=20).fit(noise)
    last, guard = guarded.history_[-1], guarded.net_.criterion_.guard
    excess = last["validation_information"] - last["validation_margin"]
    assert guard.gap == pytest.approx(excess - last["alignment_loss"])
    assert guard.information == pytest.approx(last["validation_information"])
    assert guard.gap > 0.05


@pytest.mark.slow
def test_guard_knows_the_gap_in_streams_too(noise, guarded):
    for _ in range(10):
        guarded.partial_fit(noise)
    gaps = []

    class Gap(Callback):
        def on_train_begin(self, net, **kwargs):
            gaps.append(net.criterion_.guard.gap)

    last = guarded.history_[-1]
    guarded.set_params(callbacks=[Gap()]).partial_fit(noise)
    excess = last["validation_information"] - last["validation_margin"]
    assert gaps == [pytest.approx(excess - last["alignment_loss"])]
    assert gaps[0] > 0.05


@pytest.mark.slow
def test_the_reported_margin_is_that_of_held_out_samples(noise, guarded):
    guarded.set_params(max_epochs=4, kl_weight=20.0)
    with pytest.warns(UnreachedMarginWarning) as warned:
        last = guarded.fit(noise).history_[-1]
    reached = float(re.search(r"margin of (-?[\d.]+) in", str(warned[0].message))[1])
    held_out = last["validation_margin"] / last["validation_information"]
    assert reached == pytest.approx(held_out, abs=1e-3)
