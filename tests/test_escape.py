import copy
import dataclasses
import html
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.base import clone
from torch import nn
from torch.nn import functional

from skvaecert import CollapseCertifier, GMMTeacher, escape
from skvaecert.baselines import BatchNormVAE
from skvaecert.datasets import DatasetSamples

WIDTH = 24


@pytest.fixture(scope="module")
def shared_collapsed(shared_blobs, shared_vae):
    vae = clone(shared_vae).set_params(alignment_weight=0, kl_weight=1e4)
    return vae.fit(shared_blobs)


@pytest.fixture
def collapsed(shared_collapsed):
    return copy.deepcopy(shared_collapsed)


def relu_encoder(n_features, latent_dim):
    return nn.Sequential(
        nn.Linear(n_features, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 2 * latent_dim),
    )


def dead_encoder(n_features, latent_dim, n_dead=WIDTH):
    encoder = relu_encoder(n_features, latent_dim)
    with torch.no_grad():
        encoder[0].bias[:n_dead] = -1e6
    return encoder


def partly_dead_encoder(n_features, latent_dim):
    return dead_encoder(n_features, latent_dim, WIDTH - 6)


class Functional(nn.Module):
    """The same without modules for its activations."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.first = nn.Linear(n_features, WIDTH)
        self.last = nn.Linear(WIDTH, 2 * latent_dim)
        nn.init.constant_(self.first.bias, -1e6)

    def forward(self, x):
        return self.last(functional.relu(self.first(x)))


def rescued(vae, X, epochs=25):
    vae.set_params(warm_start=True, alignment_weight=30, kl_weight=1, max_epochs=epochs)
    return vae.fit(X)


def margin(vae, X):
    return vae.escape_report(X).margin


def fitted(vae, encoder, X, **params):
    return vae.set_params(
        encoder=encoder, alignment_weight=0, kl_weight=1e4, max_epochs=5, **params
    ).fit(X)


@pytest.mark.slow
def test_a_collapsed_encoder_can_escape_as_predicted(collapsed, blobs):
    before = collapsed.escape_report(blobs)
    assert before.verdict == "can escape"
    assert before.can_escape
    assert before.margin <= 0
    assert before.gradient_norm >= before.escape_gradient_norm > 0.01
    assert before.latent_force == pytest.approx(before.collapsed_force, rel=0.05)
    assert before.collapsed_force > 0.5
    assert before.dead_units == {"encoder.1": 0.0}
    assert str(before).startswith(f"Can escape: the margin is {before.margin:.3g} nats")
    after = rescued(collapsed, blobs).escape_report(blobs)
    assert after.verdict == "not collapsed"
    assert after.margin > 0.5 * after.teacher_information
    assert after.latent_force < before.latent_force


@pytest.mark.slow
def test_dead_features_are_named_and_keep_the_encoder_where_it_is(blobs, vae):
    vae = fitted(vae, dead_encoder, blobs)
    report = vae.escape_report(blobs)
    assert report.verdict == "stuck"
    assert not report.can_escape
    assert report.dead_units == {"encoder.1": 1.0, "encoder.3": 1.0}
    assert report.dead_layers == ["encoder.1", "encoder.3"]
    assert "dead in encoder.1 (and after it in encoder.3). Reinitialize" in str(report)
    assert set(report.dead_units) < {
        name for name, _ in vae.net_.module_.named_modules()
    }
    # The force is there, and the gradient that moves all means alike.
    assert report.latent_force > 0.5
    assert report.escape_gradient_norm < 1e-6 * report.latent_force

    assert margin(rescued(vae, blobs), blobs) <= 0
    torch.manual_seed(0)
    vae.net_.module_.encoder[0].reset_parameters()
    alive = vae.escape_report(blobs)
    assert alive.can_escape
    assert alive.dead_units["encoder.1"] < 1
    assert margin(rescued(vae, blobs), blobs) > 0.5


@pytest.mark.parametrize(
    ("encoder", "dead"), [(dead_encoder, True), (partly_dead_encoder, False)]
)
def test_no_gradient_reaches_weights_before_dead_units(blobs, vae, encoder, dead):
    vae = fitted(vae, encoder, blobs)
    layers = vae.net_.module_.encoder
    # Constants that come after the dead units: they move all means alike.
    for behind in (layers[2].bias, *layers[4].parameters()):
        behind.requires_grad_(False)
    report = vae.escape_report(blobs)
    assert (report.gradient_norm == 0) is dead
    assert (report.first_order_step == np.inf) is dead
    assert report.verdict == ("stuck" if dead else "can escape")


def test_a_bad_constant_has_a_gradient_and_still_cannot_escape(blobs, vae):
    vae = fitted(vae, dead_encoder, blobs)
    with torch.no_grad():
        vae.net_.module_.encoder[4].bias += 0.5
    report = vae.escape_report(blobs)
    assert report.margin < -0.01
    assert report.gradient_norm > 0.01
    assert report.escape_gradient_norm < 1e-6
    assert report.verdict == "stuck"


@pytest.mark.slow
def test_layers_that_are_dead_in_part_are_not_called_dead(blobs, vae):
    vae = fitted(vae, partly_dead_encoder, blobs)
    report = vae.escape_report(blobs)
    assert 1 > report.dead_units["encoder.1"] >= 1 - 6 / WIDTH
    assert report.dead_layers == []
    assert report.verdict == "can escape"
    assert "dead" not in str(report)
    assert margin(rescued(vae, blobs), blobs) > 0.5


def test_the_share_of_dead_units_is_counted(blobs, vae):
    vae = fitted(vae, relu_encoder, blobs)
    layer = vae.net_.module_.encoder[0]
    with torch.no_grad():
        layer.bias.fill_(10.0)
        layer.bias[:9] = -1e6
        layer.weight[9:12] = 0  # constant, though not at 0
    assert vae.escape_report(blobs).dead_units["encoder.1"] == 12 / WIDTH


def test_dead_functions_cannot_be_seen_but_their_gradient_can(blobs, vae):
    report = fitted(vae, Functional, blobs).escape_report(blobs)
    assert report.verdict == "stuck"
    assert report.dead_units == {}
    assert "No layer that can be inspected is dead" in str(report)


def test_a_frozen_encoder_is_stuck(collapsed, blobs):
    collapsed.net_.module_.encoder.requires_grad_(False)
    report = collapsed.escape_report(blobs)
    assert (report.verdict, report.gradient_norm) == ("stuck", 0)
    assert "frozen parameters" in str(report)


# Features: one that separates the clusters; one independent of them; one of only two
# samples, one from each cluster.
CLUSTER, OTHER = np.repeat([[-1.0], [1.0]], 2000, axis=0), np.tile([-1.0, 1.0], 2000)
RARE = np.zeros(4000)
RARE[[0, -1]] = 1
SIGNS = np.column_stack([CLUSTER, OTHER, RARE])
OF_CLUSTER = np.where(CLUSTER > 0, [0.9, 0.1], [0.1, 0.9])


def gain_on(column, n_factors=1):
    """Make an encoder whose means are a feature times the product of its parameters."""

    class Gain(nn.Module):
        def __init__(self, n_features, latent_dim):
            super().__init__()
            self.factors = nn.Parameter(torch.ones(n_factors, latent_dim))

        def forward(self, x):
            mean = self.factors.prod(dim=0) * x[:, [column]]
            return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    return Gain


@pytest.mark.parametrize(
    ("encoder", "verdict"),
    [
        (gain_on(0), "can escape"),
        (gain_on(1), "flat"),
        (gain_on(2), "flat"),
        # To first order nothing moves; to second order the clusters separate.
        (gain_on(0, n_factors=2), "stuck"),
    ],
)
def test_encoders_that_multiply_by_0(vae, encoder, verdict):
    vae.set_params(encoder=encoder, max_epochs=1, batch_size=1000)
    vae.fit(SIGNS, teacher_proba=OF_CLUSTER)
    factors = vae.net_.module_.encoder.factors
    with torch.no_grad():
        factors.zero_()
    report = vae.escape_report(SIGNS, teacher_proba=OF_CLUSTER)
    assert report.verdict == verdict
    assert report.can_escape is (verdict == "can escape")
    assert report.latent_force > 0.5
    assert str(report).startswith(f"{verdict.capitalize()}: ")
    # A small step shows whether the first order was right.
    with torch.no_grad():
        factors.fill_(1e-4)
    spread = np.ptp(vae.transform(SIGNS), axis=0).max()
    assert (spread > 5e-5) == (verdict != "stuck")


def test_what_cancels_between_chunks_is_flat_too(vae, monkeypatch):
    monkeypatch.setattr("skvaecert._vae.vae.CHUNK", 1)
    some = np.arange(4000) % 100 < 2
    X, proba = SIGNS[some], OF_CLUSTER[some]
    vae.set_params(encoder=gain_on(1), max_epochs=1).fit(X, teacher_proba=proba)
    with torch.no_grad():
        vae.net_.module_.encoder.factors.zero_()
    assert vae.escape_report(X, teacher_proba=proba).verdict == "flat"


def test_a_zeroed_last_layer_on_live_features_can_escape(blobs, vae):
    vae = fitted(vae, relu_encoder, blobs)
    with torch.no_grad():
        vae.net_.module_.encoder[4].weight.zero_()
    report = vae.escape_report(blobs)
    assert np.ptp(vae.transform(blobs), axis=0).max() == 0
    assert report.verdict == "can escape"


def test_saturated_units_are_stuck(blobs, vae):
    def saturated(n_features, latent_dim):
        encoder = relu_encoder(n_features, latent_dim)
        encoder[1] = nn.Tanh()
        nn.init.constant_(encoder[0].bias, 100.0)
        return encoder

    report = fitted(vae, saturated, blobs).escape_report(blobs)
    assert report.verdict == "stuck"
    assert report.dead_layers == ["encoder.1", "encoder.3"]


def test_a_healthy_encoder_is_not_collapsed(blobs, vae):
    certifier = CollapseCertifier(vae).fit(blobs)
    report = certifier.estimator_.escape_report(blobs)
    assert report.verdict == "not collapsed"
    assert report.can_escape
    assert report.margin == pytest.approx(certifier.score(blobs), rel=1e-9)
    assert f"margin {report.margin:.3g} of at most" in str(report)


def test_a_teacher_without_information_does_not_push(blobs, vae):
    proba = np.full((len(blobs), 3), [0.5, 0.3, 0.2])
    report = vae.fit(blobs, teacher_proba=proba).escape_report(
        blobs, teacher_proba=proba
    )
    assert report.verdict == "uninformative"
    assert report.collapsed_force < 1e-12
    assert not report.can_escape
    assert "Use another teacher" in str(report)


def test_forces_and_losses_by_hand(collapsed, blobs):
    report = collapsed.escape_report(blobs)
    T = collapsed.teacher_.predict_proba(blobs)
    S, beta = collapsed.vertices_, collapsed.witness_scale_
    q = softmax(beta * collapsed.transform(blobs) @ S.T, axis=1)
    squares = [np.sum((beta * S.T @ (t - w)) ** 2) for t, w in zip(T, q, strict=True)]
    assert report.latent_force == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-10)
    squares = [np.sum((beta * S.T @ (t - T.mean(axis=0))) ** 2) for t in T]
    assert report.collapsed_force == pytest.approx(np.sqrt(np.mean(squares)))
    assert report.alignment_loss == pytest.approx(rel_entr(T, q).sum(axis=1).mean())
    information = rel_entr(T, T.mean(axis=0)).sum(axis=1).mean()
    assert report.teacher_information == pytest.approx(information)
    assert report.margin == pytest.approx(information - report.alignment_loss)
    assert report.n_samples == len(blobs)
    step = 0.1 * information / report.gradient_norm**2
    assert report.first_order_step == pytest.approx(step)


@pytest.fixture(scope="module")
def tiny(shared_blobs, shared_vae):
    vae = clone(shared_vae).set_params(hidden_sizes=(3,), max_epochs=2)
    return vae.set_params(alignment_weight=0).fit(shared_blobs)


def weights_of(vae):
    encoder = vae.net_.module_.encoder
    return np.concatenate([p.detach().numpy().ravel() for p in encoder.parameters()])


def means_at(weights, vae, X):
    """Means of an MLP with one hidden layer of SiLU, in float64."""
    encoder = vae.net_.module_.encoder
    sizes = [p.numel() for p in encoder.parameters()]
    parts = np.split(weights, np.cumsum(sizes)[:-1])
    shapes = [tuple(p.shape) for p in encoder.parameters()]
    w1, b1, w2, b2 = (p.reshape(s) for p, s in zip(parts, shapes, strict=True))
    standard = (X - X.mean(axis=0)) / np.sqrt(X.var(axis=0).mean())
    pre = standard @ w1.T + b1
    return (pre / (1 + np.exp(-pre)) @ w2.T + b2)[:, : len(w2) // 2]


def loss_at(weights, vae, X, T):
    logits = vae.witness_scale_ * means_at(weights, vae, X) @ vae.vertices_.T
    return (T * (np.log(T) - log_softmax(logits, axis=1))).sum(axis=1).mean()


def differences(function, at, step=1e-5):
    steps = step * np.eye(len(at))
    return np.array([function(at + s) - function(at - s) for s in steps]) / (2 * step)


def test_gradient_norm_against_finite_differences(tiny, blobs):
    T = tiny.teacher_.predict_proba(blobs)
    weights = weights_of(tiny).astype(np.float64)
    report = tiny.escape_report(blobs)
    gradient = differences(lambda w: loss_at(w, tiny, blobs, T), weights)
    assert report.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    means = means_at(weights, tiny, blobs)
    S, beta = tiny.vertices_, tiny.witness_scale_
    force = beta * (T - softmax(beta * means @ S.T, axis=1)) @ S
    own = force - force.mean(axis=0)
    pulled = differences(
        lambda w: (own * means_at(w, tiny, blobs)).sum(axis=1).mean(), weights
    )
    assert report.escape_gradient_norm == pytest.approx(
        np.linalg.norm(pulled), rel=1e-4
    )
    assert report.escape_gradient_norm < 0.999 * report.gradient_norm


def test_the_first_order_step_lowers_the_loss_as_predicted(tiny, blobs):
    T = tiny.teacher_.predict_proba(blobs)
    weights = weights_of(tiny).astype(np.float64)
    report = tiny.escape_report(blobs)
    gradient = differences(lambda w: loss_at(w, tiny, blobs, T), weights)
    step = 1e-3 * report.first_order_step
    fallen = report.alignment_loss - loss_at(weights - step * gradient, tiny, blobs, T)
    assert fallen == pytest.approx(1e-4 * report.teacher_information, rel=0.02)


def test_chunks_make_no_difference(collapsed, blobs, monkeypatch):
    whole = dataclasses.asdict(collapsed.escape_report(blobs))
    monkeypatch.setattr("skvaecert._vae.vae.CHUNK", 7)
    pieces = dataclasses.asdict(collapsed.escape_report(blobs))
    names = [name for name, value in whole.items() if isinstance(value, float)]
    assert len(names) == 8
    for name in names:
        assert pieces[name] == pytest.approx(whole[name], rel=1e-4), name
    assert pieces["dead_units"] == whole["dead_units"]


def test_units_that_vary_between_chunks_only_are_alive():
    units = escape._Units()
    for value in (0.0, 1.0):
        units.begin(2)
        units.see("layer", nn.ReLU(), None, torch.tensor([[value, 3.0]] * 2))
    assert units.shares() == {"layer": 0.5}


def seen(*outputs):
    units = escape._Units()
    units.begin(2)
    for output in outputs:
        units.see("layer", nn.ReLU(), None, torch.tensor(output))
    return units.shares()


def test_a_channel_with_a_pixel_that_varies_is_alive():
    dead, alive = [1.0, 1.0], [1.0, 1.0]
    assert seen([[dead, alive], [dead, [1.0, 2.0]]]) == {"layer": 0.5}


def test_of_several_uses_the_worst_counts_whichever_comes_last():
    dead, alive = [[1.0], [1.0]], [[1.0], [2.0]]
    assert seen(dead, alive) == seen(alive, dead) == {"layer": 1.0}
    assert seen(alive, alive) == {"layer": 0.0}


def test_units_that_vary_by_next_to_nothing_are_dead(blobs, vae):
    vae = fitted(vae, None, blobs)
    with torch.no_grad():
        vae.net_.module_.encoder[0].bias.fill_(-60.0)  # SiLU gives about -1e-25
    report = vae.escape_report(blobs)
    assert report.dead_layers == ["encoder.1"]
    assert report.verdict == "stuck"


def test_a_module_that_is_used_twice_counts_where_it_is_worst(blobs, vae):
    class Twice(nn.Module):
        def __init__(self, n_features, latent_dim):
            super().__init__()
            self.first = nn.Linear(n_features, WIDTH)
            self.second = nn.Linear(WIDTH, WIDTH)
            self.last = nn.Linear(WIDTH, 2 * latent_dim)
            self.relu = nn.ReLU()
            nn.init.constant_(self.second.bias, -1e6)

        def forward(self, x):
            return self.last(self.relu(self.second(self.relu(self.first(x)))))

    report = fitted(vae, Twice, blobs).escape_report(blobs)
    assert report.dead_units == {"encoder.relu": 1.0}
    assert report.verdict == "stuck"


@pytest.mark.slow
def test_a_way_around_dead_units_is_found(blobs, vae):
    class Skip(nn.Module):
        def __init__(self, n_features, latent_dim):
            super().__init__()
            self.around = nn.Linear(n_features, 2 * latent_dim)
            self.through = dead_encoder(n_features, latent_dim)

        def forward(self, x):
            return self.around(x) + self.through(x)

    vae = fitted(vae, Skip, blobs)
    report = vae.escape_report(blobs)
    assert report.dead_layers == ["encoder.through.1", "encoder.through.3"]
    assert report.verdict == "can escape"
    assert margin(rescued(vae, blobs, epochs=60), blobs) > 0.5


def test_channels_are_the_units_of_convolutions(vae):
    rng = np.random.default_rng(0)
    X, proba = rng.random((60, 64)), rng.dirichlet(np.ones(3), size=60)
    vae.set_params(encoder="conv", image_shape=(1, 8, 8), hidden_sizes=())
    vae.set_params(max_epochs=1).fit(X, teacher_proba=proba)
    report = vae.escape_report(X, teacher_proba=proba)
    assert report.dead_units == {"encoder.2": 0.0}
    with torch.no_grad():
        vae.net_.module_.encoder[1].bias[:4] = -1e6
    report = vae.escape_report(X, teacher_proba=proba)
    assert report.dead_units == {"encoder.2": 4 / 16}


def test_the_posterior_of_an_objective_counts(blobs, vae):
    vae.set_params(objective=BatchNormVAE(), max_epochs=2).fit(blobs)
    module = vae.net_.module_
    both = vae.escape_report(blobs).gradient_norm
    module.encoder.requires_grad_(False)
    own = vae.escape_report(blobs).gradient_norm
    module.encoder.requires_grad_(True)
    module.posterior.requires_grad_(False)
    encoder = vae.escape_report(blobs).gradient_norm
    assert min(own, encoder) > 0
    assert both**2 == pytest.approx(own**2 + encoder**2, rel=1e-4)


class Noted(nn.Module):
    """An encoder that can be made to fail, and that records its mode."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.layers = relu_encoder(n_features, latent_dim)
        self.fails_after = 10**9

    def forward(self, x):
        if self.fails_after < 0:
            raise RuntimeError("made to fail")
        self.fails_after -= not self.training
        torch.rand(1)
        return self.layers(x)


def everything(module):
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        [(id(p), p.data_ptr(), id(p.grad)) for p in module.parameters()],
        [p.grad.clone() for p in module.parameters()],
        [part.training for part in module.modules()],
        [len(p._forward_hooks) + len(p._forward_pre_hooks) for p in module.modules()],
        torch.get_rng_state(),
    )


def assert_same(now, before):
    for key in before[0]:
        assert torch.equal(now[0][key], before[0][key])
    assert now[1] == before[1]
    assert all(map(torch.equal, now[2], before[2]))
    assert now[3:5] == before[3:5]
    assert torch.equal(now[5], before[5])


@pytest.mark.parametrize("fails_after", [10**9, -1, 0])
def test_the_net_is_left_as_it_was(blobs, vae, fails_after):
    vae.set_params(encoder=Noted, max_epochs=2).fit(blobs)
    module = vae.net_.module_
    module.train()
    module.decoder.eval()
    for parameter in module.parameters():
        parameter.grad.fill_(3.0)
    module.encoder.fails_after = fails_after
    before = everything(module)
    if fails_after < 100:
        with pytest.raises(RuntimeError, match="made to fail"):
            vae.escape_report(blobs)
    else:
        vae.escape_report(blobs)
    assert_same(everything(module), before)


def test_training_goes_on_as_if_nothing_had_been_looked_at(collapsed, blobs):
    other = pickle.loads(pickle.dumps(collapsed))
    collapsed.escape_report(blobs)
    codes = [
        rescued(vae, blobs, epochs=3).transform(blobs) for vae in (collapsed, other)
    ]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_it_works_where_others_have_changed_the_mode(collapsed, blobs, mode):
    expected = collapsed.escape_report(blobs)
    with mode():
        assert collapsed.escape_report(blobs) == expected


def test_samples_of_all_kinds(collapsed, blobs):
    expected = collapsed.escape_report(blobs)
    samples = DatasetSamples(torch.utils.data.TensorDataset(torch.from_numpy(blobs)))
    proba = collapsed.teacher_.predict_proba(blobs)
    for X in (blobs.tolist(), samples):
        assert collapsed.escape_report(X, teacher_proba=proba).margin == pytest.approx(
            expected.margin, abs=1e-6
        )


def test_posteriors_are_required_and_checked(blobs, vae):
    proba = GMMTeacher(4, random_state=0).fit(blobs).transform(blobs)
    with pytest.raises(ValueError, match="not fitted"):
        vae.escape_report(blobs)
    vae.fit(blobs, teacher_proba=proba)
    assert vae.escape_report(blobs, teacher_proba=proba).verdict == "not collapsed"
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        vae.escape_report(blobs)
    with pytest.raises(ValueError, match="teacher_proba must have one row"):
        vae.escape_report(blobs, teacher_proba=proba[1:])
    with pytest.raises(ValueError, match="the 4 components of the fit, got 2"):
        vae.escape_report(blobs, teacher_proba=np.full((len(blobs), 2), 0.5))
    with pytest.raises(ValueError, match="NaN"):
        vae.escape_report(np.where(blobs > 5, np.nan, blobs), teacher_proba=proba)


def test_reports_are_records(collapsed, blobs):
    report = collapsed.escape_report(blobs)
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.margin = 1.0


def test_a_report_in_a_notebook_is_text(collapsed, blobs):
    report = collapsed.escape_report(blobs)
    shown = dataclasses.replace(report, dead_units={"<script>": 0.5})._repr_html_()
    assert "<script>" not in shown
    assert "dead in &lt;script&gt;</th><td>50%" in shown
    assert f"<td>{report.gradient_norm:.3g}</td>" in shown
    assert html.escape(str(report)) in shown
