"""TrainedEncoder.diagnose: in one call, and between the epochs of any loop."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skvaecert import GMMTeacher, diagnose
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.objectives import AlignmentLoss
from skvaecert.simplex import simplex_vertices
from skvaecert.wrappers import TrainedEncoder

D = 4


class VAE(nn.Module):
    def __init__(self, strength=1.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1)
        )
        self.to_mean, self.to_log_variance = nn.Linear(16, D), nn.Linear(16, D)
        self.decode = nn.Linear(D, 6)
        self.strength = strength

    def encode(self, x):
        hidden = self.body(x)
        return self.strength * self.to_mean(hidden), self.to_log_variance(hidden) - 3

    def embed(self, x):
        mean, log_variance = self.encode(x)
        return mean + torch.randn_like(mean), log_variance

    def loss(self, x):
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return ((self.decode(z) - x).square().sum(1) + kl).mean()


@pytest.fixture
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE()


@pytest.fixture(scope="module")
def X(shared_blobs):
    return shared_blobs.astype(np.float32)


@pytest.fixture(scope="module")
def proba(X):
    return GMMTeacher(4, random_state=0).fit(X).transform(X)


@pytest.fixture
def alignment(proba):
    return AlignmentLoss(simplex_vertices(4, D), 1.0)


def test_it_is_the_diagnosis_of_the_arrays(vae, X, proba):
    model = TrainedEncoder(vae.encode, vae.decode)
    options = {"n_draws": 2000, "random_state": 0, "noise_variance": 0.5}
    found = model.diagnose(X, proba, **options)
    alone = diagnose(
        *model.encode(X),
        decode=model.inverse_transform,
        X=X,
        teacher_proba=proba,
        **options,
    )
    assert found.mean.margin == alone.mean.margin
    assert found.information.estimate == alone.information.estimate
    assert found.decoder.high == alone.decoder.high
    assert found.threshold == alone.threshold
    # The effect of another batch is known for a model, but not for arrays.
    assert found.mean.tolerance >= alone.mean.tolerance
    assert found.state == alone.state == "informative"


@pytest.mark.slow
def test_samples_come_in_any_form(vae, X, proba):
    model = TrainedEncoder(vae.encode, vae.decode)
    tensor = torch.from_numpy(X)
    dataset = TensorDataset(tensor, torch.ones(len(X)))
    forms = [tensor, dataset, DataLoader(dataset, batch_size=32)]
    expected = model.diagnose(X, proba, n_draws=2000, random_state=0).to_json()
    for form in forms:
        found = model.diagnose(form, proba, n_draws=2000, random_state=0)
        assert found.to_json() == expected


def test_shuffled_loaders_are_refused_where_values_belong_to_samples(vae, X, proba):
    model = TrainedEncoder(vae.encode)
    loader = DataLoader(X, batch_size=32, shuffle=True)
    for given in ({"teacher_proba": proba}, {"sample_weight": np.ones(len(X))}):
        with pytest.raises(ValueError, match="RandomSampler"):
            model.diagnose(loader, **given)
    for use in (model.transform, model.encode):
        with pytest.raises(ValueError, match="RandomSampler"):
            use(loader)
    # The twin: without them the order does not matter.
    assert model.diagnose(loader, n_draws=2000).state == "informative"
    assert model.fit(loader).latent_dim_ == D


def test_the_witness_is_the_loss_that_was_trained_with(vae, X, proba, alignment):
    model = TrainedEncoder(vae.encode)
    found = model.diagnose(X, proba, witness=alignment, n_draws=2000)
    mean, target = (torch.as_tensor(a, dtype=torch.float64) for a in
                    (model.transform(X), proba))  # fmt: skip
    information = (target * (target / target.mean(0)).log()).sum(1).mean()
    expected = float(information - alignment(mean, target))
    assert found.mean.margin == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="teacher_proba must be given with witness"):
        model.diagnose(X, witness=alignment)
    with pytest.raises(ValueError, match=r"witness must be an AlignmentLoss.*got 2.0"):
        model.diagnose(X, proba, witness=2.0)


def trained(vae, X, watch):
    """Two epochs of a loop, and what its generators and modes are afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
        vae.train()
        vae.body[3].eval()
        for _ in range(2):
            for (x,) in DataLoader(TensorDataset(X), batch_size=32, shuffle=True):
                optimizer.zero_grad()
                vae.loss(x).backward()
                optimizer.step()
            gradients = [p.grad.clone() for p in vae.parameters()]
            watch(vae)
            assert all(map(torch.equal, gradients, (p.grad for p in vae.parameters())))
        modes = [part.training for part in vae.modules()]
        return vae.state_dict(), modes, torch.random.get_rng_state()


@pytest.mark.parametrize("method", ["encode", "embed"])
def test_a_loop_goes_on_as_if_nobody_had_watched(X, proba, method):
    def watch(vae):
        model = TrainedEncoder(getattr(vae, method), vae.decode)
        loader = DataLoader(TensorDataset(tensor), batch_size=50)
        if method == "embed":
            with pytest.warns(UnstableEncoderWarning):
                found.append(model.diagnose(loader, proba, n_draws=2000))
        else:
            found.append(model.diagnose(loader, proba, n_draws=2000))

    tensor, found, results = torch.from_numpy(X), [], []
    for action in (watch, lambda vae: None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            results.append(trained(VAE(), tensor, action))
    (state, modes, generator), (state_0, modes_0, generator_0) = results
    assert all(map(torch.equal, state.values(), state_0.values()))
    assert modes == modes_0
    assert torch.equal(generator, generator_0)
    assert len(found) == 2
    # Drawn codes are not taken for means.
    lows = [diagnosis.information.low for diagnosis in found]
    assert lows == [0.0, 0.0] if method == "embed" else min(lows) > 0.05


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_constant_mean_is_constant(X, proba, strength, alignment):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TrainedEncoder(VAE(strength).encode)
    for witness in (None, alignment):
        found = model.diagnose(X, proba, witness=witness, n_draws=2000)
        assert (found.mean.verdict == "constant") == (strength == 0)


def test_a_mean_that_depends_on_its_batch_does_not_vary(X, proba):
    def centered(batch):
        """Constant for a sample alone, and for a batch of equal ones."""
        return 3 * (batch - batch.mean(0))[:, :D], np.zeros((len(batch), D)) - 5

    with pytest.warns(UnstableEncoderWarning, match="in another batch"):
        found = TrainedEncoder(centered).diagnose(X, proba, n_draws=2000)
    assert found.mean.verdict == "inconclusive"
    assert (found.state, found.information.low) == ("undecided", 0.0)
    # The twin: centered by a fixed value.
    center = X.mean(0)
    found = TrainedEncoder(
        lambda batch: (3 * (batch - center)[:, :D], np.zeros((len(batch), D)) - 5)
    ).diagnose(X, proba, n_draws=2000)
    assert found.mean.verdict in ("varies", "certified")
    assert found.state == "informative"


def test_an_encoder_of_means_is_undecided(X):
    found = TrainedEncoder(lambda batch: batch[:, :D]).diagnose(X)
    assert (found.state, found.information) == ("undecided", None)
    assert found.mean.verdict == "varies"


def test_integers_are_no_values_that_outputs_are_compared_with(X):
    tokens = np.abs(X * 10).astype(int)

    def encoder(batch):
        return batch[:, :D] / 10, np.zeros((len(batch), D))

    assert TrainedEncoder(encoder).diagnose(tokens, n_draws=2000).threshold is None
    model = TrainedEncoder(encoder, lambda z: np.tile(z, 3))
    with pytest.raises(ValueError, match="noise_variance or X must be given"):
        model.diagnose(tokens, n_draws=2000)
    found = model.diagnose(tokens, noise_variance=1.0, n_draws=2000)
    assert found.decoder is not None


def test_options_are_those_of_diagnose(vae, X):
    model = TrainedEncoder(vae.encode)
    assert model.diagnose(X, negligible=4.0, n_draws=2000).state == "collapsed"
    with pytest.raises(TypeError, match="n_codes"):
        model.diagnose(X, n_codes=3)
    with pytest.raises(ValueError, match="likelihood must be one of"):
        model.diagnose(X, likelihood="poisson")
    weight = np.r_[np.ones(60), np.zeros(len(X) - 60)]
    half = model.diagnose(X[:60], n_draws=2000, random_state=0)
    found = model.diagnose(X, sample_weight=weight, n_draws=2000, random_state=0)
    assert found.n_samples == half.n_samples == 60
    np.testing.assert_allclose(found.kl_per_dimension, half.kl_per_dimension)
