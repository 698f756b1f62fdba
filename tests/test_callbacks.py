import functools
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn
from scipy.stats import binom
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    GradientNormClipping,
    LRScheduler,
)

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.bounds import betting_bound
from skvaecert.callbacks import HistoryMonitor, StopWhenCertified
from skvaecert.persistence import load, save

HAS_CALLBACKS = parse_version(sklearn.__version__) >= parse_version("1.9")
needs_callbacks = pytest.mark.skipif(
    not HAS_CALLBACKS, reason="scikit-learn before 1.9 has no callbacks"
)


def relative(vae, prefix=""):
    margin, information = (
        ("validation_margin", "validation_information")
        if prefix
        else ("margin", "teacher_information")
    )
    return np.array([row[margin] / row[information] for row in vae.history_])


def test_stops_once_the_margin_has_held(blobs, small_vae):
    vae = small_vae.set_params(callbacks=[StopWhenCertified(0.5, n_epochs=3)])
    reached = relative(vae.fit(blobs)) >= 0.5
    assert vae.n_iter_ < vae.max_epochs
    assert reached[-3:].all()
    # Not an epoch too late: no three in a row before.
    assert not any(reached[i : i + 3].all() for i in range(len(reached) - 3))


def test_does_not_stop_before_the_margin_is_there(blobs, small_vae):
    small_vae.set_params(alignment_weight=0.0, max_epochs=8)
    vae = small_vae.set_params(callbacks=[StopWhenCertified(0.5, n_epochs=1)])
    assert vae.fit(blobs).n_iter_ == 8
    assert (relative(vae) < 0.5).all()


def test_stops_by_held_out_samples(blobs, small_vae):
    stop = StopWhenCertified(0.4, n_epochs=2, monitor="validation_margin")
    vae = small_vae.set_params(validation_fraction=0.25, callbacks=[stop]).fit(blobs)
    reached = relative(vae, "validation") >= 0.4
    assert vae.n_iter_ < vae.max_epochs
    assert reached[-2:].all()
    assert not any(reached[i : i + 2].all() for i in range(len(reached) - 2))


@pytest.mark.slow
def test_stops_only_when_the_bound_has_stopped_rising_too(blobs, small_vae):
    small_vae.set_params(validation_fraction=0.25, max_epochs=300)
    only_margin = StopWhenCertified(0.3, n_epochs=1)
    both = StopWhenCertified(0.3, n_epochs=1, patience=6)
    first = clone(small_vae).set_params(callbacks=[only_margin]).fit(blobs)
    vae = small_vae.set_params(callbacks=[both]).fit(blobs)
    assert first.n_iter_ < vae.n_iter_ < 300
    losses = [row["validation_loss"] for row in vae.history_]
    assert np.argmin(losses) == len(losses) - 7


@pytest.mark.slow
def test_early_stopping_on_the_bound_returns_the_best_epoch(blobs, small_vae):
    stop = EarlyStopping(
        "validation_loss", patience=4, load_best=True, sink=lambda m: 0
    )
    small_vae.set_params(validation_fraction=0.25, max_epochs=300, callbacks=[stop])
    vae = small_vae.fit(blobs)
    losses = [row["validation_loss"] for row in vae.history_]
    assert vae.n_iter_ < 300
    best = int(np.argmin(losses))
    again = clone(small_vae).set_params(callbacks=None, max_epochs=best + 1).fit(blobs)
    np.testing.assert_allclose(vae.transform(blobs), again.transform(blobs), atol=1e-5)


@pytest.mark.slow
def test_clipping_and_schedules_reach_the_step(blobs, small_vae):
    plain = clone(small_vae).fit(blobs)
    clipped = clone(small_vae).set_params(callbacks=[GradientNormClipping(1e-9)])
    means = clipped.fit(blobs).transform(blobs)
    frozen = clone(small_vae).set_params(
        callbacks=[LRScheduler("LambdaLR", lr_lambda=lambda epoch: 1e-9)]
    )
    assert means.std() < plain.transform(blobs).std() / 2
    assert frozen.fit(blobs).transform(blobs).std() < plain.transform(blobs).std() / 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"relative_margin": 1.5}, "'relative_margin' parameter of Stop.* Got 1.5"),
        ({"n_epochs": 0}, "'n_epochs' parameter of StopWhenCertified .* Got 0"),
        ({"patience": 0}, "'patience' parameter of StopWhenCertified .* Got 0"),
        ({"confidence": 1.0}, "'confidence' parameter of StopWhen.* Got 1.0"),
        ({"monitor": "loss"}, "'monitor' parameter of StopWhen.* Got 'loss'"),
        ({"monitor": "validation_margin"}, "validation_fraction must be given"),
        ({"patience": 3}, "validation_fraction .* must be given .* patience=3, .* 0.1"),
        ({"confidence": 0.9}, r"validation_fraction .* confidence=0.9\), got None"),
    ],
)
def test_bad_parameters(blobs, small_vae, params, message):
    small_vae.set_params(callbacks=[StopWhenCertified(**params)], max_epochs=2)
    with pytest.raises(ValueError, match=message):
        small_vae.fit(blobs)


@needs_callbacks
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_epochs_of_a_search_over_pipelines_are_logged(blobs, small_vae, n_jobs):
    monitor = HistoryMonitor()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), CollapseCertifier(small_vae)),
        {"collapsecertifier__estimator__alignment_weight": [0.0, 10.0]},
        cv=2,
        n_jobs=n_jobs,
    )
    search.estimator.set_params(collapsecertifier__estimator__max_epochs=3)
    search.set_callbacks(monitor).fit(blobs)
    log = monitor.get_logs().data
    # Two candidates, two folds and the last fit, three epochs each; without any y.
    assert len(log) == 5 * 3
    assert {row["alignment_weight"] for row in log} == {0.0, 10.0}
    assert all(np.isfinite(row["margin"]) for row in log)
    last = search.best_estimator_[-1].estimator_.history_
    logged = {row["margin"] for row in log}
    assert {row["margin"] for row in last} <= logged


@pytest.mark.slow
@needs_callbacks
def test_epochs_show_in_the_progress_bar(blobs, small_vae, capsys):
    from sklearn.callback import ProgressBar

    certifier = CollapseCertifier(small_vae.set_params(max_epochs=3))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), certifier), {"standardscaler": [None]}, cv=2
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(blobs)
    shown = capsys.readouterr().out
    assert "CollapseCertifier - fit-estimator | CertifiedVAE - fit" in shown
    assert re.search(r"CertifiedVAE - fit #0\s+\S*\s+100%", shown)
    pickle.loads(pickle.dumps(search)).score(blobs)


@needs_callbacks
def test_a_callback_sees_the_model_as_it_is_and_can_stop_it(blobs, small_vae):
    class Stop:
        seen = ()

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            self.torn_down = True

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
            if fitted_estimator is None:
                return False
            self.seen = (*self.seen, fitted_estimator.transform(X))
            return len(self.seen) == 2

    stop = Stop()
    vae = small_vae.set_callbacks(stop).fit(blobs)
    assert vae.n_iter_ == 2
    assert stop.torn_down
    np.testing.assert_array_equal(stop.seen[-1], vae.transform(blobs))
    assert not np.array_equal(*stop.seen)
    small_vae.set_callbacks()
    again = clone(small_vae).set_params(max_epochs=2).fit(blobs)
    np.testing.assert_array_equal(again.transform(blobs), vae.transform(blobs))


@needs_callbacks
def test_a_fit_that_fails_tears_callbacks_down(blobs, small_vae):
    monitor = HistoryMonitor()
    small_vae.set_callbacks(monitor)
    with pytest.raises(ValueError, match="NaN"):
        small_vae.fit(np.full_like(blobs, np.nan))
    assert not monitor._estimator_scorers
    assert not hasattr(small_vae, "_callback_fit_ctx")


@pytest.mark.slow
@needs_callbacks
def test_without_scikit_learns_callbacks_fits_are_the_same(
    blobs, small_vae, monkeypatch
):
    expected = clone(small_vae).fit(blobs).transform(blobs)
    monkeypatch.delattr(
        "sklearn.callback.CallbackSupportMixin._init_callback_context", raising=False
    )
    np.testing.assert_array_equal(small_vae.fit(blobs).transform(blobs), expected)


@needs_callbacks
def test_the_epoch_in_which_skorch_stops_is_reported_too(blobs, small_vae):
    monitor = HistoryMonitor()
    small_vae.set_params(callbacks=[StopWhenCertified(0.3, n_epochs=2)])
    vae = small_vae.set_callbacks(monitor).fit(blobs)
    assert vae.n_iter_ < vae.max_epochs
    assert len(monitor.get_logs().data) == vae.n_iter_


@needs_callbacks
def test_every_task_that_begins_ends(blobs, small_vae):
    class Count:
        tasks = ()

        def setup(self, estimator, context):
            pass

        teardown = setup

        def on_fit_task_begin(self, estimator, context):
            self.tasks = (*self.tasks, ("begin", context.task_name))

        def on_fit_task_end(self, estimator, context):
            self.tasks = (*self.tasks, ("end", context.task_name))

    count = Count()
    small_vae.set_params(max_epochs=2).set_callbacks(count).fit(blobs)
    epoch = [("begin", "epoch"), ("end", "epoch")]
    assert list(count.tasks) == [("begin", "fit"), *epoch, *epoch, ("end", "fit")]


class Net:
    """With validation samples."""

    callbacks_ = (("validation", SimpleNamespace(watched_=())),)

    def __init__(self):
        self.history = []


def rows(margins, losses=None, name="margin"):
    information = {"margin": "teacher_information"}.get(name, "validation_information")
    losses = losses or [0.0] * len(margins)
    other = {"teacher_information": 100.0, "validation_information": 100.0}
    return [
        {
            **other,
            "margin": -1.0,
            name: margin,
            information: 2.0,
            "validation_loss": loss,
        }
        for margin, loss in zip(margins, losses, strict=True)
    ]


def epochs_until_stop(callback, history):
    net = Net()
    callback.on_train_begin(net)
    for row in history:
        net.history.append(row)
        try:
            callback.on_epoch_end(net)
        except KeyboardInterrupt:
            return len(net.history)
    return None


@pytest.mark.parametrize("monitor", ["margin", "validation_margin"])
def test_epochs_are_counted_in_a_row(monitor):
    stop = StopWhenCertified(0.5, n_epochs=2, monitor=monitor)
    assert epochs_until_stop(stop, rows([1.2, 0.9, 1.1, 1.0, 1.3], name=monitor)) == 4
    # The count starts again with every fit.
    assert epochs_until_stop(stop, rows([1.2, 0.9], name=monitor)) is None
    assert epochs_until_stop(stop, rows([1.2, 1.2], name=monitor)) == 2


def test_patience_is_counted_from_the_best_bound():
    stop = StopWhenCertified(0.5, n_epochs=1, patience=2)
    assert epochs_until_stop(stop, rows([1.2] * 6, [5, 4, 4.5, 3, 3, 3])) == 6
    assert epochs_until_stop(stop, rows([1.2] * 3, [9, 8, 7])) is None


def test_no_information_is_never_certified():
    history = [{"margin": 0.0, "teacher_information": 0.0}] * 3
    assert epochs_until_stop(StopWhenCertified(0.5, n_epochs=1), history) is None


# Samples of a population, as teacher and witness have them. The witness is right but
# for so many samples that the margin of the population is 0 (floored, as in bounds).
SURE, SAID, FLOOR = 0.999, np.array([0.9, 0.001]), 1e-3
TEACHER = np.array([[SURE, 1 - SURE]] * 2 + [[1 - SURE, SURE]] * 2)
WITNESS = np.log([[0.9, 0.1], [0.001, 0.999], [0.1, 0.9], [0.999, 0.001]])
FLOORED = (1 - FLOOR) * SAID + FLOOR / 2
GAINS = SURE * np.log(FLOORED) + (1 - SURE) * np.log(1 - FLOORED) + np.log(2)
SHARE_WRONG = GAINS[0] / (GAINS[0] - GAINS[1])
N_SAMPLES, N_LOOKS, N_RUNS, CONFIDENCE = 20, 12, 2000, 0.4


def drawn(rng):
    """Teacher and witness; ordered, since bounds do not depend on the order."""
    clusters, wrong = rng.random((2, N_SAMPLES)) < [[0.5], [SHARE_WRONG]]
    kinds = np.sort(2 * clusters + wrong)
    return TEACHER[kinds], WITNESS[kinds]


@functools.cache
def remembered(proba, log_q, confidence):
    arrays = (np.frombuffer(a).reshape(-1, 2) for a in (proba, log_q))
    return betting_bound(*arrays, confidence=confidence)


def quick_bound(proba, log_q, confidence):
    """The bound, computed once for all runs that happen to have the same samples."""
    return remembered(proba.tobytes(), log_q.tobytes(), confidence)


class LookedAt(Net):
    """The part of a net that the callback reads."""

    def __init__(self):
        self.history = History()
        self.criterion_ = SimpleNamespace(guard=None)
        watched = SimpleNamespace(checksum=lambda: 1)
        self.monitor = SimpleNamespace(watched_=watched)
        self.callbacks_ = [("validation", self.monitor)]

    def show(self, proba, log_q):
        self.monitor.watched_.teacher_proba, self.monitor.log_q_ = proba, log_q
        self.history.append({"margin": 0.0, "validation_information": 0.7})


class History(list):
    def record(self, name, value):
        self[-1][name] = value


def stops(rng):
    """Whether a training without a margin is stopped, at one of some looks."""
    stop, net = StopWhenCertified(1e-9, n_epochs=1, confidence=CONFIDENCE), LookedAt()
    stop.on_train_begin(net)
    try:
        for _ in range(N_LOOKS):
            net.show(*drawn(rng))
            stop.on_epoch_end(net)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.slow
def test_stops_without_a_margin_at_most_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("skvaecert.callbacks.betting_bound", quick_bound)
    rng = np.random.default_rng(0)
    n_stopped = sum(stops(rng) for _ in range(N_RUNS))
    assert 0.05 * N_RUNS < n_stopped <= binom.ppf(0.999, N_RUNS, 1 - CONFIDENCE)


@pytest.mark.slow
def test_bounds_that_spend_no_confidence_would_stop_too_often():
    """The twin: the same runs, with the bound that holds for one look."""
    rng = np.random.default_rng(0)
    n_stopped = sum(
        any(quick_bound(*drawn(rng), CONFIDENCE) > 0 for _ in range(N_LOOKS))
        for _ in range(N_RUNS)
    )
    assert n_stopped > 1.2 * binom.ppf(0.999, N_RUNS, 1 - CONFIDENCE)


def test_a_constant_encoder_has_no_bound_above_0():
    """Not at any look: the bound is never above the margin of the samples."""
    rng = np.random.default_rng(0)
    stop, net = StopWhenCertified(1e-9, n_epochs=1, confidence=0.1), LookedAt()
    stop.on_train_begin(net)
    for _ in range(50):
        proba, _ = drawn(rng)
        net.show(proba, np.tile(np.log(proba.mean(axis=0)), (len(proba), 1)))
        stop.on_epoch_end(net)
    assert max(row["validation_margin_low"] for row in net.history) <= 0


def looking(vae, confidence=0.95, share=0.1, n_epochs=1, **params):
    stop = StopWhenCertified(share, n_epochs=n_epochs, confidence=confidence)
    return vae.set_params(validation_fraction=0.4, callbacks=[stop], **params)


@pytest.mark.slow
def test_a_healthy_vae_is_stopped_and_one_without_alignment_is_not(digits):
    X, unseen = digits
    vae = CertifiedVAE(GMMTeacher(10), device="cpu", max_epochs=20, random_state=0)
    healthy = clone(looking(vae, share=0.3, n_epochs=3)).fit(X)
    assert healthy.n_iter_ < 20
    last = healthy.history_[-1]
    assert last["validation_margin"] > last["validation_margin_low"]
    asked = 0.3 * last["validation_information"]
    assert last["validation_margin_low"] >= asked
    # It is also not above 0 on new samples.
    proba = healthy.teacher_.predict_proba(unseen)
    low = betting_bound(proba, healthy.witness_log_proba(unseen))
    assert low >= asked
    plain = vae.set_params(alignment_weight=0.0).fit(X)
    assert plain.n_iter_ == 20


def held_out(vae, X):
    """Posteriors and witness of the validation samples, taken from the split."""
    n_held = round(vae.validation_fraction * len(X))
    order = np.random.default_rng(vae._split_seed).permutation(len(X))
    held = X[np.sort(order[:n_held])]
    return vae.teacher_.predict_proba(held), vae.witness_log_proba(held)


def spent(confidence, look):
    return 1 - (1 - confidence) / (look * (look + 1))


def test_looks_are_counted_over_warm_fits_pickles_and_partial_fits(blobs, vae):
    looking(vae, share=0.9, max_epochs=2).fit(blobs)
    vae = pickle.loads(pickle.dumps(vae))
    vae.set_params(warm_start=True).fit(blobs).partial_fit(blobs)
    lows = [row["validation_margin_low"] for row in vae.history_]
    assert len(lows) == 5
    proba, log_q = held_out(vae, blobs)
    expected = betting_bound(proba, log_q, confidence=spent(0.95, 5))
    assert lows[-1] == pytest.approx(expected, abs=1e-5)
    assert lows[-1] < betting_bound(proba, log_q, confidence=spent(0.95, 4)) - 1e-3
    # A fit from scratch starts again.
    again = vae.set_params(warm_start=False).fit(blobs).history_
    assert [row["validation_margin_low"] for row in again] == lows[:2]


def test_looks_of_a_warm_fit_that_failed_are_counted(blobs, vae):
    class Fail(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 4:
                raise RuntimeError("made to fail")

    looking(vae, share=0.9, max_epochs=2, warm_start=True).fit(blobs)
    stop = vae.callbacks[0]
    with pytest.raises(RuntimeError, match="made to fail"):
        vae.set_params(callbacks=[stop, Fail()]).fit(blobs)
    assert len(vae.history_) == 2
    vae.set_params(callbacks=[stop], max_epochs=1).fit(blobs)
    proba, log_q = held_out(vae, blobs)
    expected = betting_bound(proba, log_q, confidence=spent(0.95, 5))
    low = vae.history_[-1]["validation_margin_low"]
    assert low == pytest.approx(expected, abs=1e-5)


def test_a_saved_model_goes_on_counting(blobs, vae, tmp_path):
    pytest.importorskip("safetensors")
    looking(vae, share=0.9, max_epochs=2).fit(blobs)
    with pytest.warns(UserWarning, match="callbacks"):
        save(vae, tmp_path / "vae.safetensors")
    loaded = load(tmp_path / "vae.safetensors")
    loaded.set_params(callbacks=vae.callbacks)
    np.testing.assert_array_equal(
        [row["validation_margin_low"] for row in loaded.partial_fit(blobs).history_],
        [row["validation_margin_low"] for row in vae.partial_fit(blobs).history_],
    )


STEERED = [
    ({"alignment_weight": "auto"}, [], "alignment_weight must be a number .* 'auto'"),
    *(
        ({}, [other], f"callbacks must not have {type(other).__name__} on validation")
        for other in (
            EarlyStopping("validation_loss", load_best=True),
            Checkpoint("validation_loss_best", load_best=True),
            Checkpoint(lambda net: net.history[-1]["validation_margin"] > 1),
            LRScheduler("ReduceLROnPlateau", monitor="validation_margin"),
            StopWhenCertified(monitor="validation_margin"),
            StopWhenCertified(patience=3),
            StopWhenCertified(confidence=0.5),
        )
    ),
]


@pytest.mark.parametrize(("params", "others", "message"), STEERED)
def test_validation_samples_that_steer_more_are_refused(
    blobs, vae, params, others, message
):
    vae = looking(vae, **params)
    vae.callbacks += others
    with pytest.raises(ValueError, match=message + ".*leave out confidence"):
        vae.fit(blobs)


def test_patience_steers_by_validation_samples(blobs, vae):
    stop = StopWhenCertified(confidence=0.95, patience=3)
    vae.set_params(validation_fraction=0.4, callbacks=[stop])
    with pytest.raises(ValueError, match=r"patience must be None for .*0.95\), got 3"):
        vae.fit(blobs)


def test_callbacks_that_read_no_validation_value_are_welcome(blobs, vae):
    looking(vae, share=0.9, max_epochs=2)
    vae.callbacks += [
        EarlyStopping("train_loss"),
        LRScheduler("StepLR", step_size=1),
        StopWhenCertified(0.99),
    ]
    assert vae.fit(blobs).n_iter_ == 2


def test_epochs_that_were_not_looked_at_are_refused(blobs, vae):
    vae.set_params(validation_fraction=0.4, max_epochs=2, warm_start=True).fit(blobs)
    with pytest.raises(ValueError, match=r"callbacks must contain .* first epoch"):
        looking(vae).fit(blobs)


def test_other_validation_samples_are_refused(blobs, vae):
    """The present validation samples may have been training samples before."""
    looking(vae, share=0.9, max_epochs=2, warm_start=True).fit(blobs)
    with pytest.raises(ValueError, match="with the same validation samples"):
        vae.fit(blobs[::-1].copy())
    assert vae.fit(blobs).n_iter_ == 2
