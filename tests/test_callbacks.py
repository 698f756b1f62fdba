import pickle
import re

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler

from skvaecert import CollapseCertifier
from skvaecert.callbacks import HistoryMonitor, StopWhenCertified

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


def test_stops_by_rows_held_out(blobs, small_vae):
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
        ({"monitor": "loss"}, "'monitor' parameter of StopWhen.* Got 'loss'"),
        ({"monitor": "validation_margin"}, "validation_fraction .* must be given"),
        ({"patience": 3}, "validation_fraction .* must be given"),
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
def test_the_epoch_in_which_skorch_stops_is_told_too(blobs, small_vae):
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
    # Begins anew with every fit.
    assert epochs_until_stop(stop, rows([1.2, 0.9], name=monitor)) is None
    assert epochs_until_stop(stop, rows([1.2, 1.2], name=monitor)) == 2


def test_patience_is_counted_from_the_best_bound():
    stop = StopWhenCertified(0.5, n_epochs=1, patience=2)
    assert epochs_until_stop(stop, rows([1.2] * 6, [5, 4, 4.5, 3, 3, 3])) == 6
    assert epochs_until_stop(stop, rows([1.2] * 3, [9, 8, 7])) is None


def test_no_information_is_never_certified():
    history = [{"margin": 0.0, "teacher_information": 0.0}] * 3
    assert epochs_until_stop(StopWhenCertified(0.5, n_epochs=1), history) is None
