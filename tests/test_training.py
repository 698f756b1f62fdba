import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping, Freezer, Unfreezer
from skorch.callbacks import Checkpoint as SkorchCheckpoint
from skorch.exceptions import DeviceWarning

from skvaecert import baselines
from skvaecert._training import net as net_module
from skvaecert._training.batches import Resident, TrainingSet
from skvaecert._training.device import resolve_device, seeded
from skvaecert._training.inference import encode, evidence_bound
from skvaecert._training.loop import train
from skvaecert._training.monitors import MarginMonitor
from skvaecert._training.net import Snapshot, make_net, resume_net
from skvaecert.baselines import AggressiveEncoder, SigmaVAE
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.metrics import collapse_margin
from skvaecert.networks import make_vae
from skvaecert.objectives import LagrangeWeight, Objective
from skvaecert.simplex import simplex_vertices, witness_log_proba

CPU = torch.device("cpu")
N, D, LATENT, K = 300, 6, 3, 4


@pytest.fixture
def samples():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def proba(samples):
    return torch.softmax(2 * samples[:, :K], dim=1)


def training_set(samples, proba, held_out=None):
    return TrainingSet(Resident(samples), proba, held_out)


def net_for(callbacks=None, max_epochs=3, verbose=0, **settings):
    with seeded(0, CPU):
        return make_net(
            make_vae(D, LATENT, (16,)),
            device=CPU,
            callbacks=callbacks,
            verbose=verbose,
            vertices=simplex_vertices(K, LATENT),
            criterion__likelihood="gaussian",
            criterion__scale=1.5,
            criterion__kl_weight=1.0,
            lr=1e-2,
            batch_size=64,
            max_epochs=max_epochs,
            **{"criterion__alignment_weight": 5.0} | settings,
        )


def trained(samples, proba, **kwargs):
    net = net_for(**kwargs)
    with seeded(0, CPU):
        train(net, training_set(samples, proba))
    return net


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


class Interrupt(Callback):
    """Sends Ctrl-C in a given epoch, in the middle of its batches."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 2:
            signal.raise_signal(signal.SIGINT)


class AtEnd(Callback):
    """Does something at the end of an epoch, as callbacks of users do."""

    def __init__(self, epoch, action):
        self.epoch = epoch
        self.action = action

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.action()


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def stop():
    raise KeyboardInterrupt


class Raising:
    """Stands for the first snapshot of a training, which Ctrl-C interrupts."""

    def __init__(self, net, with_optimizer=True):
        if with_optimizer:
            raise KeyboardInterrupt


class Spoil(Callback):
    """Puts a NaN into the weights, in a given epoch."""

    def __init__(self, epoch, batch):
        self.epoch = epoch
        self.batch = batch

    def on_batch_end(self, net, **kwargs):
        done = len(net.history), len(net.history[-1]["batches"])
        if done == (self.epoch, self.batch):
            with torch.no_grad():
                next(net.module_.parameters()).view(-1)[0] = torch.nan


def test_best_weights_by_skorch_checkpoint(samples, proba, tmp_path):
    best = SkorchCheckpoint(
        monitor="margin_best", dirname=tmp_path, f_history=None, load_best=True
    )
    net = trained(samples, proba, callbacks=[best], max_epochs=5)
    margins = [row["margin"] for row in net.history]
    flags = [row["margin_best"] for row in net.history]
    assert flags == [m > max([-np.inf, *margins[:i]]) for i, m in enumerate(margins)]
    assert (tmp_path / "params.pt").exists()


def test_training_lowers_the_loss_and_raises_the_margin(samples, proba):
    history = trained(samples, proba, max_epochs=20).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["margin"] > max(0.1, history[0]["margin"])


def test_parts_add_up_to_the_loss(samples, proba):
    # Without alignment, whose batch mean is not recorded.
    net = net_for()
    net.criterion_.alignment_weight, net.criterion_.kl_weight = 0.0, 3.0
    train(net, training_set(samples, proba))
    for row in net.history:
        parts = row["reconstruction"] + 3 * row["kl"]
        assert row["train_loss"] == pytest.approx(parts, rel=1e-5)


def test_monitored_margin_is_the_margin(samples, proba):
    """Up to 256 samples are all monitored: the exact margin of the last epoch."""
    samples, proba = samples[:200], proba[:200]
    net = trained(samples, proba)
    log_q = witness_log_proba(encode(net, samples), simplex_vertices(K, LATENT), 1.5)
    margin = collapse_margin(proba.numpy(), log_q)
    assert net.history[-1]["margin"] == pytest.approx(margin, abs=1e-6)


def test_monitor_watches_the_same_samples_in_every_fit():
    monitored = []
    for _ in range(2):
        monitor, samples = MarginMonitor(), torch.arange(2000.0)[:, None]
        dataset = training_set(samples, torch.full((2000, 2), 0.5))
        monitor.on_train_begin(None, X=dataset)
        monitored.append(monitor.watched_.samples)
    assert len(monitored[0]) == 256
    assert torch.equal(*monitored)


def test_same_seed_same_weights(samples, proba):
    first, second = (weights(trained(samples, proba)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_users_generators_are_left_alone(samples, proba):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    trained(samples, proba)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_interrupt_returns_to_the_last_full_epoch(samples, proba):
    net = trained(samples, proba, callbacks=[Interrupt(epoch=3)], max_epochs=10)
    assert net.interrupted_
    assert [row["epoch"] for row in net.history] == [1, 2]
    assert torch.equal(weights(net), weights(trained(samples, proba, max_epochs=2)))


def test_interrupt_in_the_first_epoch_leaves_nothing(samples, proba):
    with pytest.raises(KeyboardInterrupt):
        trained(samples, proba, callbacks=[Interrupt(epoch=1)])


def test_interrupt_before_the_loop_is_not_lost(samples, proba, monkeypatch):
    """skorch swallows the interrupt there, too, and the net would look trained."""
    net = trained(samples, proba)
    before = weights(net).clone()
    monkeypatch.setattr(net_module, "Snapshot", Raising)
    with pytest.raises(KeyboardInterrupt):
        train(net, training_set(samples, proba))
    assert torch.equal(weights(net), before)


def test_interrupt_while_callbacks_run_keeps_the_epoch(samples, proba):
    """The epoch is complete by then, but no callback has requested a stop."""
    net = trained(samples, proba, callbacks=[AtEnd(2, press_ctrl_c)], max_epochs=10)
    assert net.interrupted_
    assert [row["epoch"] for row in net.history] == [1, 2]
    assert torch.equal(weights(net), weights(trained(samples, proba, max_epochs=2)))


def test_a_signal_that_raises_nothing_is_no_interrupt(samples, proba):
    """The user's own handler is called, stays, and a stop after it is a stop."""
    pressed = []
    handler = lambda *args: pressed.append(args)  # noqa: E731
    signal.signal(signal.SIGINT, handler)  # the fixture of all tests gives it back
    callbacks = [Interrupt(epoch=1), ("stop", AtEnd(3, stop))]
    net = trained(samples, proba, callbacks=callbacks, max_epochs=10)
    assert len(pressed) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert not net.interrupted_
    assert len(net.history) == 3


def test_fits_in_other_threads_stop_early(samples, proba):
    nets = []

    def fit():
        nets.append(trained(samples, proba, callbacks=[AtEnd(2, stop)]))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert not nets[0].interrupted_
    assert len(nets[0].history) == 2


def test_early_stopping_is_no_interrupt(samples, proba):
    stop = EarlyStopping("train_loss", patience=2, lower_is_better=False, sink=len)
    net = trained(samples, proba, callbacks=[stop], max_epochs=50)
    assert not net.interrupted_
    assert 2 <= len(net.history) < 50


@pytest.mark.parametrize("batch", [2, 5])
def test_broken_weights_return_to_the_last_full_epoch(samples, proba, batch):
    """Found by the next loss, or, after the last batch, by a look at the weights."""
    net = net_for(callbacks=[Spoil(epoch=3, batch=batch)], max_epochs=10)
    with (
        seeded(0, CPU),
        pytest.raises(NonFiniteLossError, match=r"in epoch 3.*scale X"),
    ):
        train(net, training_set(samples, proba))
    assert len(net.history) == 2
    assert torch.equal(weights(net), weights(trained(samples, proba, max_epochs=2)))
    assert not net.optimizer_.state


def test_training_samples_are_forgotten(samples, proba):
    net = trained(samples, proba)
    for _, callback in net.callbacks_:
        held = [v for v in vars(callback).values() if isinstance(v, torch.Tensor)]
        assert not held


def test_a_net_pickled_on_a_gpu_loads_without_one(samples, proba, monkeypatch):
    """skorch maps the module's tensors; the guard's tensors are not among them."""
    guard = LagrangeWeight(0.5, 1.0)
    net = trained(samples, proba, criterion__alignment_weight=guard)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        on_gpu.setattr(net, "device", "cuda")
        pickled = pickle.dumps(net)
    assert b"cuda:0" in pickled
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(DeviceWarning):
        loaded = pickle.loads(pickled)
    assert torch.equal(weights(loaded), weights(net))
    assert loaded.criterion_.guard.weight == net.criterion_.guard.weight
    train(loaded, training_set(samples, proba))
    assert len(loaded.history) == 6


def test_snapshot_restores_weights_moments_and_history(samples, proba):
    net = trained(samples, proba)
    before, snapshot = weights(net).clone(), Snapshot(net)
    moments = [s["exp_avg"].clone() for s in net.optimizer_.state.values()]
    train(net, training_set(samples, proba))
    assert not torch.equal(weights(net), before)
    snapshot.restore(net)
    assert torch.equal(weights(net), before)
    now = [s["exp_avg"] for s in net.optimizer_.state.values()]
    assert all(map(torch.equal, moments, now))
    assert len(net.history) == 3


def test_resumed_training_keeps_weights_and_optimizer(samples, proba):
    net = trained(samples, proba)
    before, optimizer = weights(net), net.optimizer_
    resume_net(
        net,
        callbacks=[Interrupt(epoch=99)],
        verbose=0,
        kl_weight=7.0,
        alignment_weight=0.0,
        lr=0.5,
        batch_size=32,
        max_epochs=1,
    )
    assert torch.equal(weights(net), before)
    assert net.optimizer_ is optimizer
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert net.callbacks_[-1][0] == "Interrupt"
    train(net, training_set(samples, proba))
    assert net.history[-1]["kl_weight"] == 7.0
    assert len(net.history[-1]["batches"]) == 10


def test_progress_shows_the_margin(samples, proba, capsys):
    net = trained(samples, proba, verbose=1)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert f"margin {net.history[-1]['margin']:.2f} of" in shown


def test_progress_is_closed_when_training_fails(samples, proba):
    net = net_for(callbacks=[Spoil(epoch=1, batch=1)], verbose=1)
    with pytest.raises(NonFiniteLossError):
        train(net, training_set(samples, proba))
    assert not hasattr(dict(net.callbacks_)["progress"], "bar_")


def test_quiet_by_default(samples, proba, capsys):
    trained(samples, proba)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_device_auto_finds_one():
    assert resolve_device("auto").type in {"cuda", "mps", "cpu"}


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"device must be 'auto' .* got '{name}'"):
        resolve_device(name)


class Spy(Callback):
    """Records the weights of encoder and decoder around every step."""

    def __init__(self):
        self.seen = []

    def on_batch_begin(self, net, **kwargs):
        self.note(net)

    def on_batch_end(self, net, **kwargs):
        self.note(net)

    def note(self, net):
        parts = net.module_.encoder, net.module_.decoder
        self.seen.append([p[0].weight.detach().clone() for p in parts])


def moved(before, after):
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_encoder_and_decoder_take_turns(samples, proba, monkeypatch):
    information = map(torch.tensor, [1.0, 2.0, 1.9, 3.0])
    monkeypatch.setattr(baselines, "mutual_information", lambda *_: next(information))
    net = trained(
        samples,
        proba,
        callbacks=[("spy", Spy())],
        max_epochs=4,
        criterion__objective=AggressiveEncoder(2, 6),
    )
    assert [row["aggressive"] for row in net.history] == [True, True, False, False]
    seen = dict(net.callbacks_)["spy"].seen
    steps = [moved(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True)]
    between = [moved(a, b) for a, b in zip(seen[1:-1:2], seen[2::2], strict=True)]
    turns = 3 * len(steps) // 4
    assert steps == [[False, True]] * turns + [[True, True]] * (len(steps) - turns)
    assert between[: turns - 1] == [[True, False]] * (turns - 1)
    assert between[turns - 1 :] == [[False, False]] * (len(steps) - turns)


@pytest.mark.parametrize(
    ("losses", "n_steps"),
    [
        ([9, 7, 6, 6, 5, 5, 4, 4, 3, 3], 10),  # never rises
        ([9, 7, 6, 6, 7, 6, 0, 0, 0, 0], 6),  # the third window does
        ([9, 7, 9, 8, 0, 0, 0, 0, 0, 0], 4),
    ],
)
def test_encoder_stops_when_a_window_rises(losses, n_steps, monkeypatch):
    taken = iter(losses)
    ((_, callback),) = AggressiveEncoder(window=2, max_inner_steps=10).callbacks()
    monkeypatch.setattr(callback, "_step", lambda net: next(taken))
    callback.aggressive_, callback.parameters_ = True, []
    callback.on_batch_begin(net_for())
    assert len(losses) - len(list(taken)) == n_steps


def test_aggressive_training_remembers_that_it_ended(samples, proba, monkeypatch):
    information = map(torch.tensor, [-1.0, -2.0, -3.0, -4.0])
    monkeypatch.setattr(baselines, "mutual_information", lambda *_: next(information))
    net = trained(
        samples, proba, max_epochs=2, criterion__objective=AggressiveEncoder(2, 6)
    )
    with seeded(0, CPU):
        train(net, training_set(samples, proba))
    assert [row["aggressive"] for row in net.history] == [True, False, False, False]


def test_encoder_first_keeps_no_samples(samples, proba):
    net = trained(samples, proba, criterion__objective=AggressiveEncoder(2, 6))
    kept = vars(dict(net.callbacks_)["encoder_first"])
    assert set(kept) == {"window", "max_inner_steps", "aggressive_"}


class InterruptStep(Callback):
    """Sends Ctrl-C before a step of the second epoch."""

    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            self.frozen = not any(
                p.requires_grad for p in net.module_.encoder.parameters()
            )
            signal.raise_signal(signal.SIGINT)


def test_interrupted_encoder_is_not_left_frozen(samples, proba):
    net = trained(
        samples,
        proba,
        callbacks=[("interrupt", InterruptStep())],
        criterion__objective=AggressiveEncoder(2, 6),
    )
    assert net.interrupted_
    assert dict(net.callbacks_)["interrupt"].frozen
    assert all(p.requires_grad for p in net.module_.parameters())


@pytest.mark.slow
def test_aggressive_training_knows_more_early(samples, proba):
    """The path differs, with the loss the same."""
    plain = trained(samples, proba, max_epochs=2)
    first = trained(
        samples, proba, max_epochs=2, criterion__objective=AggressiveEncoder(5, 40)
    )
    assert first.history[-1]["train_loss"] < plain.history[-1]["train_loss"]


def test_optimal_noise_is_that_of_the_monitored_samples(samples, proba):
    net = trained(samples, proba, criterion__objective=SigmaVAE())
    bound = evidence_bound
    losses = {}
    for change in (-0.3, 0.0, 0.3):
        with torch.no_grad(), seeded(1, CPU):
            net.module_.raw_log_noise += change
            losses[change] = -bound(net, samples[:256]).mean()
            net.module_.raw_log_noise -= change
    assert losses[0.0] == min(losses.values())


class Recorder(Objective):
    """The ELBO, and a note of what a schedule would see."""

    seen = ()

    def penalty(self, result, epoch):
        Recorder.seen = (*Recorder.seen, epoch)
        return super().penalty(result, epoch)


def test_schedules_see_epochs_and_their_fractions(samples, proba):
    Recorder.seen = ()
    net = net_for(max_epochs=2, criterion__objective=Recorder())
    net.set_params(batch_size=100)
    train(net, training_set(samples, proba))
    train(net, training_set(samples, proba))
    expected = np.arange(12) / 3
    np.testing.assert_allclose(Recorder.seen, expected)


@pytest.mark.parametrize("name", ["train_loss_best", "margin_best"])
def test_checkpoints_with_their_defaults(samples, proba, tmp_path, name):
    best = SkorchCheckpoint(monitor=name, dirname=tmp_path, load_best=True)
    net = trained(samples, proba, callbacks=[best])
    assert len(net.history) == 3
    assert (tmp_path / "history.json").exists()


def test_parts_that_thaw_are_trained_by_autograd(samples, proba):
    freezes = [Freezer("encoder*"), ("later", Unfreezer("encoder*", at=2))]
    net = trained(samples, proba, callbacks=freezes)
    assert net.step_ == "autograd"
    assert trained(samples, proba).step_ == "numpy"
    # Frozen for the first of three epochs.
    other = net_for()
    assert not torch.equal(
        net.module_.encoder[0].weight, other.module_.encoder[0].weight
    )


def test_optimal_noise_of_samples_that_hardly_vary(samples, proba):
    net = trained(0.1 * samples, proba, criterion__objective=SigmaVAE())
    assert net.module_.raw_log_noise.item() < -2
