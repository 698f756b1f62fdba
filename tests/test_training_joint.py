import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import EpochTimer
from torch import nn

from skvaecert._training import joint as together
from skvaecert._training.batches import Resident, Standardisation, TrainingSet
from skvaecert._training.device import seeded
from skvaecert._training.joint import (
    Fit,
    JointTraining,
    can_join,
    group_size,
    train_together,
)
from skvaecert._training.loop import train
from skvaecert._training.net import VAENet, make_net
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.networks import make_vae
from skvaecert.objectives import LagrangeWeight, Objective
from skvaecert.simplex import simplex_vertices

CPU = torch.device("cpu")
N, D, LATENT, K = 333, 12, 4, 5
# Seeds x alignment weights x KL weights.
WEIGHTS = [(s, a, k) for s in range(2) for a in (0.0, 5.0) for k in (0.0, 4.0)]


class Other(Objective):
    pass


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng():
        yield


def data(likelihood="gaussian", seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, D, generator=generator)
    proba = torch.softmax(2 * rows[:, :K], dim=1)
    return (torch.sigmoid(rows) if likelihood == "bernoulli" else rows), proba


def training_set(rows, proba, held_out=None):
    return TrainingSet(Resident(rows), proba, held_out)


DATA = training_set(*data())


def net_for(seed=0, alignment_weight=5.0, kl_weight=1.0, likelihood="gaussian", **kw):
    settings = {
        "criterion__likelihood": likelihood,
        "criterion__scale": 1.5 + seed,
        "lr": 1e-2,
        "batch_size": 32,
        "max_epochs": 4,
    }
    vae = make_vae(D, LATENT, kw.pop("hidden_sizes", (16,)), kw.pop("encoder", None))
    return make_net(
        vae,
        device=CPU,
        vertices=simplex_vertices(K, LATENT),
        criterion__kl_weight=kl_weight,
        criterion__alignment_weight=alignment_weight,
        **settings | kw,
    )


def ready(seed=0, *args, rows=None, **kwargs):
    """Return a fit as it stands where its training begins."""
    likelihood = kwargs.get("likelihood", "gaussian")
    with seeded(seed, CPU):
        net = net_for(seed, *args, **kwargs)
        given = data(likelihood) if rows is None else rows
        return Fit(net, *given, torch.get_rng_state())


def train_alone(fit):
    torch.set_rng_state(fit.state)
    train(fit.net, training_set(fit.rows, fit.teacher_proba))
    return fit.net


# A thousandth of what Adam moves a weight by in one step at the rate used here. Joint
# and separate products are rounded differently, on some processors more than others.
ROUNDING = 1e-5


def assert_same(a, b, atol=ROUNDING):
    for x, y in zip(a.module_.parameters(), b.module_.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=atol)
    assert len(a.history) == len(b.history)
    for old, new in zip(a.history, b.history, strict=True):
        assert old.keys() == new.keys()
        for key in old.keys() - {"seconds", "dur", "batches"}:
            assert new[key] == pytest.approx(old[key], rel=1e-5, abs=1e-6), key
        for x, y in zip(old["batches"], new["batches"], strict=True):
            assert x.keys() == y.keys()
            assert x["train_loss"] == pytest.approx(y["train_loss"], rel=1e-5)
            assert x["train_batch_size"] == y["train_batch_size"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "hidden_sizes"),
    [("gaussian", ()), ("gaussian", (9, 8)), ("bernoulli", (16,))],
)
def test_nets_are_those_of_separate_fits(likelihood, hidden_sizes):
    kwargs = {"likelihood": likelihood, "hidden_sizes": hidden_sizes}
    fits = [ready(*weights, **kwargs) for weights in WEIGHTS]
    assert train_together(fits) == [None] * len(fits)
    nets = [train_alone(ready(*weights, **kwargs)) for weights in WEIGHTS]
    for fit, net in zip(fits, nets, strict=True):
        assert_same(fit.net, net)
    # The weights make a difference, so that it means something to keep them apart.
    margins = {net.history[-1]["margin"] for net in nets}
    assert min(np.diff(sorted(margins))) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 31, 33, 64, 65, 97, 2100])
def test_batches_of_unequal_size_and_many_monitored_rows(n):
    def fits():
        return [ready(s, rows=data(n=n), max_epochs=2) for s in range(3)]

    joined = fits()
    train_together(joined)
    for fit, other in zip(joined, fits(), strict=True):
        assert_same(fit.net, train_alone(other))


@pytest.mark.slow
def test_fits_may_have_rows_of_their_own():
    def fits():
        shared = data(seed=1)
        targets = data(seed=2)[1]
        rows = [data(seed=0), shared, shared, (shared[0], targets)]
        return [ready(s, rows=own) for s, own in enumerate(rows)]

    joined = fits()
    train_together(joined)
    for fit, other in zip(joined, fits(), strict=True):
        assert_same(fit.net, train_alone(other))


def test_users_generator_and_rows_stay():
    fits = [ready(s) for s in range(2)]
    before = torch.get_rng_state(), fits[0].rows.clone()
    train_together(fits)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(fits[0].rows, before[1])


def test_nets_are_independent_afterwards():
    fits = [ready(s) for s in range(3)]
    train_together(fits)
    first, second, _ = (fit.net for fit in fits)
    weights = [p.clone() for p in second.module_.parameters()]
    with torch.no_grad():
        for parameter in first.module_.parameters():
            parameter.fill_(7.0)
    for before, now in zip(weights, second.module_.parameters(), strict=True):
        assert torch.equal(before, now)
    # No net is pickled with the weights or the rows of all.
    alone = train_alone(ready(1))
    assert len(pickle.dumps(second)) < 1.05 * len(pickle.dumps(alone))


@pytest.mark.slow
def test_training_can_go_on():
    joined = [ready(s) for s in range(2)]
    alone = [ready(s) for s in range(2)]
    train_together(joined)
    for fit in alone:
        train_alone(fit)
    for fit in (*joined, *alone):
        torch.manual_seed(5)
        train(fit.net, training_set(fit.rows, fit.teacher_proba))
    for fit, other in zip(joined, alone, strict=True):
        assert_same(fit.net, other.net)
        assert len(fit.net.history) == 8


def test_nets_that_differ_in_the_witness_only_are_not_mixed_up(monkeypatch):
    scales = 1.0, 2.0
    fits = [lambda s=s: ready(0, criterion__scale=s) for s in scales]
    nets, sizes, _ = run(JointTraining(), fits, monkeypatch)
    assert sizes == [2]
    for net, scale in zip(nets, scales, strict=True):
        assert_same(net, train_alone(ready(0, criterion__scale=scale)))


def overflowing(s):
    rows, proba = data()
    return ready(s, rows=(rows * 1e20 if s == 1 else rows, proba))


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_net_that_breaks_down_does_not_spoil_the_others(epoch, monkeypatch):
    record_losses = VAENet.record_losses

    def broken(net, sizes, values):
        if net.criterion_.scale == 2.5 and len(net.history) == epoch:
            raise NonFiniteLossError("broken")
        record_losses(net, sizes, values)

    if epoch > 1:
        monkeypatch.setattr(VAENet, "record_losses", broken)
    make = ready if epoch > 1 else overflowing
    joined, alone = ([make(s) for s in range(3)] for _ in range(2))
    good, error, good_too = train_together(joined)
    assert good is None
    assert good_too is None
    with pytest.raises(NonFiniteLossError) as raised:
        train_alone(alone[1])
    assert str(error) == str(raised.value)
    assert len(joined[1].net.history) == epoch - 1
    assert all(p.isfinite().all() for p in joined[1].net.module_.parameters())
    train_alone(alone[0])
    train_alone(alone[2])
    for a, b in zip(joined, alone, strict=True):
        assert_same(a.net, b.net)
        assert a.net.interrupted_ == b.net.interrupted_


def test_a_net_that_breaks_down_is_handed_out_with_its_error():
    joint = JointTraining()
    for s in (0, 1, 2, 1):
        joint.prepare(lambda s=s: train_alone(overflowing(s)))
    joint.train()
    with joint.handing_out():
        for s in (1, 1):
            with pytest.raises(NonFiniteLossError, match="in epoch 1"):
                train_alone(overflowing(s))
        assert_same(train_alone(overflowing(2)), train_alone(overflowing(2)))


def test_only_plain_nets_can_join():
    assert can_join(net_for(), DATA)
    assert not can_join(net_for(callbacks=[EpochTimer()]), DATA)
    assert not can_join(net_for(verbose=1), DATA)
    assert not can_join(net_for(criterion__objective=Other()), DATA)
    relu = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 2 * LATENT))
    assert not can_join(net_for(encoder=relu), DATA)
    frozen = net_for()
    frozen.module_.raw_log_noise.requires_grad_(False)
    assert not can_join(frozen, DATA)
    tied = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, D), nn.SiLU())
    tied[2].weight = tied[0].weight
    tied.append(nn.Linear(D, 2 * LATENT))
    assert not can_join(net_for(encoder=tied), DATA)
    assert not can_join(train_alone(ready()), DATA)
    guard = LagrangeWeight(0.5, 1.0, CPU)
    assert not can_join(net_for(alignment_weight=guard), DATA)
    assert not can_join(net_for(autocast=True), DATA)
    assert not can_join(net_for(forward_backend="eager"), DATA)


def test_only_floats_in_memory_without_rows_held_out_can_join():
    net, (rows, proba) = net_for(), data()
    assert not can_join(net, training_set(rows, proba, held_out=DATA))
    standardisation = Standardisation(np.zeros(D), 1.0)
    kept = Resident(rows.to(torch.uint8), standardisation)
    assert not can_join(net, TrainingSet(kept, proba))


def test_large_nets_do_not_join():
    assert group_size(net_for()) > 1
    assert group_size(net_for(hidden_sizes=(2048, 2048))) == 1


def run(joint, makers, monkeypatch):
    """Prepare, train and hand out; return the nets and the sizes of the stacks."""
    sizes = []

    def counted(fits):
        sizes.append(len(fits))
        return train_together(fits)

    monkeypatch.setattr(together, "train_together", counted)
    shares = [joint.prepare(lambda make=make: train_alone(make())) for make in makers]
    joint.train()
    with joint.handing_out():
        nets = [train_alone(make()) for make in makers]
    return nets, sizes, [share() for share in shares]


@pytest.mark.slow
def test_joint_training_gives_every_fit_its_net(monkeypatch):
    makers = [lambda w=w: ready(*w) for w in WEIGHTS]
    nets, sizes, seconds = run(JointTraining(), makers, monkeypatch)
    assert sizes == [len(WEIGHTS)]
    for net, make, share in zip(nets, makers, seconds, strict=True):
        assert_same(net, train_alone(make()))
        assert share == pytest.approx(sum(row["seconds"] for row in net.history))


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"lr": 1e-3},
        {"batch_size": 64},
        {"max_epochs": 3},
        {"hidden_sizes": (8,)},
        {"likelihood": "bernoulli"},
        {"rows": data(n=100)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_only_like_fits_are_joined(other, monkeypatch):
    makers = [
        lambda s=s, kwargs=kwargs: ready(s, **kwargs)
        for s in range(2)
        for kwargs in ({}, other)
    ]
    nets, sizes, _ = run(JointTraining(), makers, monkeypatch)
    assert sizes == [2, 2]
    for net, make in zip(nets, makers, strict=True):
        assert_same(net, train_alone(make()))


@pytest.mark.slow
def test_groups_are_no_larger_than_pays(monkeypatch):
    monkeypatch.setattr(together, "group_size", lambda net: 4)
    makers = [lambda s=s: ready(s, max_epochs=2) for s in range(9)]
    nets, sizes, _ = run(JointTraining(), makers, monkeypatch)
    assert sizes == [3, 3, 3]
    for net, make in zip(nets, makers, strict=True):
        assert_same(net, train_alone(make()))


def test_equal_fits_are_trained_once_and_do_not_share_weights(monkeypatch):
    makers = [lambda s=s: ready(s, max_epochs=2) for s in (0, 1, 0)]
    nets, sizes, seconds = run(JointTraining(), makers, monkeypatch)
    assert sizes == [2]
    assert seconds[0] == seconds[2] < seconds[1]
    assert_same(nets[0], nets[2], atol=0)
    with torch.no_grad():
        nets[0].module_.raw_log_noise.fill_(7.0)
    assert nets[2].module_.raw_log_noise != 7


@pytest.mark.slow
def test_what_was_not_prepared_trains_alone(monkeypatch):
    joint = JointTraining()
    run(joint, [lambda s=s: ready(s, max_epochs=2) for s in range(2)], monkeypatch)
    with joint.handing_out():
        for fit in (ready(5), ready(0, 1.0), ready(callbacks=[EpochTimer()])):
            assert_same(train_alone(copy.deepcopy(fit)), train_alone(fit), atol=0)


def test_a_fit_on_its_own_is_not_stacked(monkeypatch):
    nets, sizes, seconds = run(JointTraining(), [lambda: ready(0)], monkeypatch)
    assert sizes == []
    assert seconds == [0]
    assert_same(nets[0], train_alone(ready(0)), atol=0)


def test_errors_are_left_for_the_second_time():
    joint = JointTraining()
    joint.prepare(lambda: 1 / 0)
    joint.train()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        joint.prepare(interrupted)


def test_ctrl_c_ends_a_joint_training(monkeypatch):
    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(together._Stack, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_together([ready(s) for s in range(2)])
