"""The report of encoders trained elsewhere: any torch module, any of its methods."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn
from torch.distributions import Independent, Normal

from skvaecert.objectives import AlignmentLoss
from skvaecert.simplex import prior_matched_scale, simplex_vertices
from skvaecert.wrappers import TrainedEncoder

N, LENGTH, N_TOKENS, DIM = 60, 7, 11, 2


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(N_TOKENS, size=(N, LENGTH))


@pytest.fixture
def posteriors():
    return np.random.default_rng(1).dirichlet(np.ones(3), size=N)


class TextVAE(nn.Module):
    """An embedding and a recurrent layer; the decoder is not used."""

    def __init__(self, kind="GRU", **options):
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 4, sparse=True)
        self.layer = getattr(nn, kind)(4, 5, batch_first=True, **options)
        self.relu = nn.ReLU()
        width = 10 if options.get("bidirectional") else 5
        self.to_mean = nn.Linear(width, DIM)
        self.to_log_variance = nn.Linear(width, DIM)
        self.decoder = nn.Sequential(nn.Linear(DIM, 9, dtype=torch.float16), nn.ReLU())

    def encode(self, ids):
        outputs, _ = self.layer(self.embedding(ids))
        features = self.relu(outputs[:, -1])
        return self.to_mean(features), self.to_log_variance(features)

    def packed(self, ids):
        lengths = (ids > 2).sum(dim=1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(ids), lengths, batch_first=True, enforce_sorted=False
        )
        outputs, _ = nn.utils.rnn.pad_packed_sequence(
            self.layer(packed)[0], batch_first=True
        )
        return self.to_mean(self.relu(outputs.sum(dim=1)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.to_mean = nn.Linear(8, DIM)

    def forward(self, ids):
        x = self.embedding(ids)
        x, _ = self.attention(x, x, x)
        return {"mean": self.to_mean(self.layers(x).mean(dim=1))}


def collapsed(module, shrink=1e-3):
    """Make a module whose means are next to constant."""
    torch.manual_seed(0)
    module = module()
    with torch.no_grad():
        module.to_mean.weight.mul_(shrink)
    return module


def report(encode, X, proba, **options):
    return TrainedEncoder(encode).escape_report(X, proba, **options)


def witness_of(proba):
    return simplex_vertices(proba.shape[1], DIM), prior_matched_scale(proba)


def by_finite_differences(module, encode, X, proba, step=1e-6):
    """Gradient norms in float64, one parameter after the other."""
    module = copy.deepcopy(module).double()
    method = getattr(module, encode)
    vertices, scale = witness_of(proba)

    def means():
        with torch.no_grad():
            result = method(torch.as_tensor(X))
            mean = result["mean"] if isinstance(result, dict) else result
            return (mean[0] if isinstance(mean, tuple) else mean).numpy()

    q = softmax(scale * means() @ vertices.T, axis=1)
    force = scale * (proba - q) @ vertices
    own = force - force.mean(axis=0)

    def values():
        log_q = log_softmax(scale * means() @ vertices.T, axis=1)
        return np.array([-(proba * log_q).sum(), (own * means()).sum()]) / len(X)

    squares = np.zeros(2)
    for name, parameter in module.named_parameters():
        if name.startswith(("decoder", "to_log_variance")):
            continue
        flat = parameter.data.view(-1)
        for i in range(flat.numel()):
            flat[i] += step
            above = values()
            flat[i] -= 2 * step
            squares += ((above - values()) / (2 * step)) ** 2
            flat[i] += step
    return np.sqrt(squares)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "method"),
    [
        (TextVAE, "encode"),
        (TextVAE, "packed"),
        (partial(TextVAE, "LSTM", bidirectional=True), "encode"),
        (Attention, "forward"),
    ],
)
def test_any_torch_encoder_against_finite_differences(
    tokens, posteriors, module, method
):
    module = collapsed(module).eval()
    found = report(getattr(module, method), tokens, posteriors)
    expected = by_finite_differences(module, method, tokens, posteriors)
    assert [found.gradient_norm, found.escape_gradient_norm] == pytest.approx(
        expected, rel=1e-3
    )
    assert found.verdict == "can escape"
    # The decoder is in 16 bits, and it is not used.
    assert not any(name.startswith("decoder") for name in found.dead_units)


def first_step(module, encode, X):
    """Return how far a random step of all trained parameters moves means apart."""
    module, step = copy.deepcopy(module).double(), 1e-6
    x = torch.as_tensor(X)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = getattr(module, encode)(x)
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
                parameter += step * noise
        after = getattr(module, encode)(x)
    moved = (after[0] - before[0]) / step
    return float((moved - moved.mean(dim=0)).norm(dim=1).max())


def dead(vae):
    """Shut what passes from the recurrent layer to the means."""
    linear = nn.Linear(5, 5)
    nn.init.constant_(linear.bias, -1e6)
    vae.relu = nn.Sequential(linear, nn.ReLU())


def shut(vae):
    """Keep the gate of the GRU shut: its state stays at 0."""
    with torch.no_grad():
        vae.layer.bias_ih_l0[5:10] = 1e4


def frozen(vae):
    """Train the decoder alone."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)


def frozen_whole(vae):
    vae.requires_grad_(False)


def free(vae):
    """A twin that is not changed."""


@pytest.mark.parametrize(
    ("change", "verdict", "layers"),
    [
        (dead, "stuck", ["relu.1"]),
        (shut, "stuck", ["layer", "relu"]),
        (frozen, "stuck", []),
        (frozen_whole, "stuck", []),
        (free, "can escape", []),
    ],
)
def test_encoders_that_are_stuck_and_their_twin(
    tokens, posteriors, change, verdict, layers
):
    vae = collapsed(TextVAE)
    change(vae)
    found = report(vae.encode, tokens, posteriors)
    assert found.verdict == verdict
    assert found.dead_layers == layers
    assert found.latent_force > 0.4
    assert (first_step(vae, "encode", tokens) < 1e-8) == (verdict == "stuck")


class Gain(nn.Module):
    """Means are a parameter, at 0, times what is given."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(DIM))

    def encode(self, x):
        return (self.gain * x,)


def test_pushes_that_cancel_are_flat_and_a_twin_is_not(posteriors):
    proba = np.concatenate([posteriors, posteriors])
    other = np.repeat([[-1.0], [1.0]], N, axis=0)
    vae = Gain()
    found = report(vae.encode, other, proba)
    assert found.verdict == "flat"
    assert first_step(vae, "encode", other) > 0.1
    of_teacher = proba[:, :1] - proba[:, :1].mean()
    assert report(vae.encode, of_teacher, proba).verdict == "can escape"


@pytest.mark.parametrize(("spread", "verdict"), [(1e-4, "flat"), (0, "stuck")])
def test_jacobians_that_differ_by_little_are_distinguished_in_many_samples(
    spread, verdict
):
    proba = np.tile(np.repeat([[0.9, 0.1], [0.1, 0.9]], 2, axis=0), (2000, 1))
    x = 1 + spread * np.tile([[-1.0], [1.0]], (4000, 1))
    assert report(Gain().encode, x, proba).verdict == verdict


def test_a_witness_is_that_of_the_loss_or_the_fixed_simplex(tokens, posteriors):
    vae = collapsed(TextVAE)
    vertices, scale = witness_of(posteriors)
    same, wider = (AlignmentLoss(vertices, beta) for beta in (scale, 2 * scale))
    expected = report(vae.encode, tokens, posteriors)
    found = report(vae.encode, tokens, posteriors, witness=same)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    found = report(vae.encode, tokens, posteriors, witness=wider)
    assert found.collapsed_force == pytest.approx(2 * expected.collapsed_force)


def as_tuple(mean):
    return mean, torch.zeros_like(mean)


def as_object(mean):
    return type("Output", (), {"embedding": mean, "log_covariance": mean})()


def as_normal(mean):
    return Independent(Normal(mean, torch.ones_like(mean)), 1)


class Linear(nn.Module):
    def __init__(self, pick=None):
        super().__init__()
        torch.manual_seed(0)
        self.to_mean = nn.Linear(LENGTH, DIM)
        self.pick = pick

    def forward(self, x):
        mean = self.to_mean(x)
        return mean if self.pick is None else self.pick(mean)


@pytest.mark.parametrize("pick", [as_tuple, as_object, as_normal])
def test_means_are_found_in_all_outputs_that_the_wrapper_reads(
    tokens, posteriors, pick
):
    X = tokens.astype(float)
    expected = report(collapsed(Linear), X, posteriors)
    assert report(collapsed(partial(Linear, pick)), X, posteriors) == expected


def test_precision(tokens, posteriors):
    X, module = tokens.astype(float), collapsed(Linear)
    expected = report(module, X, posteriors)
    found = report(copy.deepcopy(module).double(), X, posteriors)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    for half in (torch.float16, torch.bfloat16):
        coarse = copy.deepcopy(module).to(half)
        with pytest.raises(ValueError, match=f"got {half}. Use copy.deepcopy"):
            report(coarse, X, posteriors)

    class Autocast(Linear):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    with pytest.raises(ValueError, match="without autocast"):
        report(Autocast(), X, posteriors)


class Shared(nn.Module):
    """The same parameter under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(LENGTH, LENGTH)
        self.second = nn.Linear(LENGTH, LENGTH)
        self.second.weight = self.first.weight
        self.to_mean = nn.Linear(LENGTH, DIM)

    def forward(self, x):
        return self.to_mean(self.second(torch.tanh(self.first(x))))


@pytest.mark.slow
def test_a_parameter_that_is_shared_counts_once(tokens, posteriors):
    module, X = collapsed(Shared), tokens / N_TOKENS
    found = report(module, X, posteriors)
    expected = by_finite_differences(module, "forward", X, posteriors)
    assert found.gradient_norm == pytest.approx(expected[0], rel=1e-3)


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_mean = nn.Linear(LENGTH, DIM)

    @torch.no_grad()
    def no_grad(self, x):
        return self.to_mean(x)

    @torch.inference_mode()
    def inference_mode(self, x):
        return self.to_mean(x)

    def detached(self, x):
        return self.to_mean(x).detach()

    def constant(self, x):
        return torch.zeros(len(x), DIM)

    def root(self, x):
        return torch.sqrt(0 * self.to_mean(x))


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "detached", "constant"])
def test_encoders_that_switch_gradients_off_are_refused(tokens, posteriors, name):
    with pytest.raises(ValueError, match=r"Remove torch\.no_grad, torch\.inference"):
        report(getattr(Silent(), name), tokens.astype(float), posteriors)


def test_a_gradient_that_is_not_finite_gives_no_verdict(tokens, posteriors):
    with pytest.raises(ValueError, match="must have finite derivatives"):
        report(Silent().root, tokens.astype(float), posteriors)


@pytest.mark.parametrize("wrap", [lambda f: lambda x: f(x), np.vectorize])
def test_encoders_that_are_no_torch_modules_are_refused(tokens, posteriors, wrap):
    with pytest.raises(ValueError, match="pass the torch module or its method"):
        report(wrap(Silent().detached), tokens.astype(float), posteriors)


class Stateful(TextVAE):
    """Draws, can be made to fail, and has parts in evaluation mode."""

    fails = False

    def encode(self, ids):
        torch.rand(1)
        if self.fails and torch.is_grad_enabled():
            raise RuntimeError("made to fail")
        return super().encode(ids)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_foreign_module_is_changed(tokens, posteriors, fails):
    vae = collapsed(Stateful).train()
    vae.fails = fails
    vae.embedding.eval()
    vae.layer.requires_grad_(False)
    vae.to_mean.weight.grad = torch.ones_like(vae.to_mean.weight)

    def state():
        return (
            [value.tolist() for value in vae.state_dict().values()],
            [(p.data_ptr(), p.requires_grad, id(p.grad)) for p in vae.parameters()],
            vae.to_mean.weight.grad.tolist(),
            [(part.training, len(part._forward_hooks)) for part in vae.modules()],
            torch.get_rng_state().tolist(),
            torch.backends.cudnn.enabled,
        )

    before = state()
    if fails:
        with pytest.raises(RuntimeError, match="made to fail"):
            report(vae.encode, tokens, posteriors)
    else:
        report(vae.encode, tokens, posteriors)
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_modules_and_gradients_switched_off(tokens, posteriors, mode):
    class Encoder(TextVAE):
        def forward(self, ids):
            return self.encode(ids)

    vae = collapsed(Encoder)
    expected = report(vae, tokens, posteriors)
    assert list(expected.dead_units) == ["layer", "relu"]
    compiled = torch.compile(vae, backend="eager")
    compiled(torch.as_tensor(tokens))
    with mode():
        assert report(compiled, tokens, posteriors) == expected


class Sequences(nn.Module):
    """Positions are next to features; some sequences of a batch are longer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Linear(1, 8), nn.ReLU()
        self.to_mean = nn.Linear(8, DIM)
        nn.init.ones_(self.first.weight)
        with torch.no_grad():
            self.first.bias[:2] = -1e6

    def forward(self, x):
        used = x[:, : 1 + int(x[:, 0].max())]
        return self.to_mean(self.relu(self.first(used[..., None])).mean(dim=1))


def test_units_of_sequences_are_features_at_any_length(posteriors):
    X = np.random.default_rng(0).uniform(0.1, 1, size=(N, LENGTH))
    X[:, 0] = np.arange(N) // 10
    found = TrainedEncoder(Sequences(), batch_size=10).escape_report(X, posteriors)
    assert found.dead_units == {"relu": 2 / 8}


def test_features_are_distinguished_from_channels(posteriors):
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.relu = nn.Conv1d(1, 4, 3), nn.ReLU()
            self.norm = nn.BatchNorm1d(4)
            self.to_mean = nn.Linear(4 * 5, DIM)
            with torch.no_grad():
                self.conv.bias[:1] = -1e6

        def forward(self, x):
            images = self.relu(self.norm(self.conv(x[:, None])))
            return self.to_mean(images.flatten(1))

    X = np.random.default_rng(0).normal(size=(N, LENGTH))
    assert report(Images(), X, posteriors).dead_units == {"relu": 1 / 4}


def test_loops_may_go_on_longer_for_some_samples(posteriors):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.tanh = nn.LSTMCell(1, 4), nn.Tanh()
            self.to_mean = nn.Linear(4, DIM)

        def forward(self, x):
            state = None
            for column in range(1 + int(x[:, 0].max())):
                state = self.cell(self.tanh(x[:, column : column + 1]), state)
            return self.to_mean(state[0])

    X = np.random.default_rng(0).normal(size=(N, LENGTH))
    X[:, 0] = np.arange(N) / N
    X[-1, 0] = LENGTH - 1
    # The last sample is a separate batch, with a loop of another length.
    model = TrainedEncoder(Loop(), batch_size=N - 1)
    assert model.escape_report(X, posteriors).dead_units == {"tanh": 0.0}


def test_posteriors_are_checked_and_may_say_nothing(tokens, posteriors):
    vae = collapsed(TextVAE)
    found = report(vae.encode, tokens, np.full((N, 3), 1 / 3))
    assert found.verdict == "uninformative"
    with pytest.raises(ValueError, match="latent_dim"):
        report(vae.encode, tokens, np.full((N, 4), 1 / 4))
    with pytest.raises(ValueError, match="teacher_proba"):
        report(vae.encode, tokens, posteriors[1:])


def test_lists_reach_a_module_as_lists(tokens, posteriors):
    class OfText(TextVAE):
        def encode(self, texts):
            return super().encode(
                torch.tensor([list(map(int, t.split())) for t in texts])
            )

    texts = [" ".join(map(str, sample)) for sample in tokens]
    expected = report(collapsed(TextVAE).encode, tokens, posteriors)
    assert report(collapsed(OfText).encode, texts, posteriors) == expected
