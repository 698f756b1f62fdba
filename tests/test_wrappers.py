import copy
import pickle
import types
from functools import partial

import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.distributions import Independent, Normal

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.simplex import analytic_code, simplex_vertices
from skvaecert.wrappers import TrainedEncoder

LATENT_DIM = 10


class PlainVAE(nn.Module):
    """A VAE as people write it, with layers that behave differently in training."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.2)
        )
        self.to_mean = nn.Linear(48, LATENT_DIM)
        self.to_log_variance = nn.Linear(48, LATENT_DIM)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 48), nn.ReLU(), nn.Linear(48, 64)
        )

    def encode(self, x):
        hidden = self.body(x)
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def decode(self, z):
        return torch.sigmoid(self.decoder(z))

    def forward(self, x):
        mean, log_variance = self.encode(x)
        noise = torch.randn_like(mean)
        return self.decode(mean + noise * (log_variance / 2).exp()), mean, log_variance


class NegativeELBO(nn.Module):
    def forward(self, output, x):
        x_hat, mean, log_variance = output
        loss = nn.functional.binary_cross_entropy(x_hat, x, reduction="sum")
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (loss + kl) / len(x)


def train(model, loss, X, n_epochs=15):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(n_epochs):
        for x in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            loss(model, X[x]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def samples(digits):
    return digits[0].astype(np.float32)


@pytest.fixture(scope="module")
def _trained(samples):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        criterion = NegativeELBO()
        X = torch.from_numpy(samples)
        return train(PlainVAE(), lambda model, x: criterion(model(x), x), X)


@pytest.fixture
def vae(_trained):
    return copy.deepcopy(_trained)  # in training mode, as training has left it


@pytest.fixture
def model(vae):
    return TrainedEncoder(vae.encode, vae.decode)


def flat(samples):
    """Pickles, as a function in a module does; sums of a few features."""
    return np.stack([samples[:, 0], samples.sum(axis=1)], axis=1)


@pytest.mark.slow
def test_a_plain_vae_gives_the_parameters_of_its_posterior(model, vae, samples):
    mean, std = model.encode(samples)
    vae.eval()
    with torch.no_grad():
        true_mean, true_log_variance = vae.encode(torch.from_numpy(samples))
        x_hat = vae.decode(true_mean)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, true_mean, atol=1e-5)
    np.testing.assert_allclose(std**2, true_log_variance.exp(), rtol=1e-4)
    np.testing.assert_array_equal(model.transform(samples), mean)
    np.testing.assert_allclose(model.inverse_transform(mean), x_hat, atol=1e-5)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_the_others_in_its_batch(model, vae, samples):
    mean, std = model.encode(samples)
    x_hat = model.inverse_transform(mean)
    order = np.random.default_rng(0).permutation(len(samples))[:601]
    for index in (order, order[:1], order[:257]):
        again, spread = model.encode(samples[index])
        np.testing.assert_array_equal(again, mean[index])
        np.testing.assert_array_equal(spread, std[index])
        np.testing.assert_array_equal(
            model.inverse_transform(mean[index]), x_hat[index]
        )
    # One sample at a time, the module itself rounds differently.
    with torch.no_grad():
        alone = [
            vae.eval().encode(x)[0] for x in torch.from_numpy(samples[:9]).split(1)
        ]
    assert not np.array_equal(torch.cat(alone), mean[:9])


@pytest.mark.parametrize("n_samples", [1, 4, 5, 6, 11])
def test_every_batch_has_the_same_shape(n_samples):
    seen = []

    def encoder(batch):
        seen.append(batch.shape)
        return batch[:, :2]

    X = np.random.default_rng(0).normal(size=(n_samples, 3))
    means = TrainedEncoder(encoder, batch_size=5).transform(X)
    np.testing.assert_array_equal(means, X[:, :2])
    assert set(seen) == {(5, 3)}
    assert len(seen) == -(-n_samples // 5)


def test_modules_are_evaluated_in_evaluation_mode_and_put_back(model, vae, samples):
    vae.body[3].eval()  # a user keeps dropout off in training
    modes = [part.training for part in vae.modules()]
    assert len(set(modes)) == 2
    state = copy.deepcopy(vae.state_dict())
    first = model.transform(samples)
    np.testing.assert_array_equal(model.transform(samples), first)
    assert [part.training for part in vae.modules()] == modes
    for name, values in vae.state_dict().items():
        assert torch.equal(values, state[name]), name
    # In training mode, batch normalization would use the other samples.
    in_training = vae.encode(torch.from_numpy(samples))[0].detach().numpy()
    assert np.abs(in_training - first).max() > 0.01


def test_modes_come_back_after_an_error(vae, samples):
    vae.encode = types.MethodType(lambda self, x: self.body(x)[:3], vae)
    with pytest.raises(ValueError, match=r"of its batch, shape \(256, "):
        TrainedEncoder(vae.encode).transform(samples)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        TrainedEncoder(vae.encode).transform(samples[:, :5])
    assert all(part.training for part in vae.modules())
    assert torch.is_grad_enabled()


def test_nothing_global_is_touched(model, samples):
    def settings():
        return (
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    before = settings()
    model.fit(samples).inverse_transform(model.transform(samples))
    assert settings() == before


def test_a_module_can_be_trained_on_afterwards():
    class WithTable(nn.Module):
        """Makes a table when first called, as position encodings are made."""

        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(2)
            self.table = None

        def forward(self, x):
            if self.table is None:
                self.table = x.new_ones(3) * 2
            return self.layer(x * self.table)

    module = WithTable()
    with torch.random.fork_rng():
        TrainedEncoder(module).transform(np.ones((4, 3)))
        module(torch.ones(4, 3, requires_grad=True)).sum().backward()
    assert module.layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["method", "module", "partial", "sequence"])
def test_what_belongs_to_a_module_gets_tensors(vae, samples, kind):
    callables = {
        "method": vae.encode,
        "module": nn.Sequential(vae.body, vae.to_mean),
        "partial": partial(vae.encode),
        "sequence": nn.Sequential(nn.Flatten(), vae.body, vae.to_mean),
    }
    shape = (1, 8, 8) if kind == "sequence" else None
    means = TrainedEncoder(callables[kind], input_shape=shape).transform(samples)
    with torch.no_grad():
        true = vae.eval().encode(torch.from_numpy(samples))[0]
    np.testing.assert_allclose(means, true, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
    ],
)
def test_modules_get_tensors_in_their_own_precision(dtype, returned):
    module = nn.Linear(3, 2).to(dtype)
    X = np.arange(12.0).reshape(4, 3)
    means = TrainedEncoder(module).transform(X)
    assert means.dtype == returned
    with torch.no_grad():
        true = module(torch.from_numpy(X).to(dtype)).double().numpy()
    np.testing.assert_allclose(means, true, rtol=0.05, atol=0.05)


def test_an_empty_module_is_one():
    X = np.eye(3)
    assert TrainedEncoder(nn.Sequential()).transform(X).dtype == np.float32


def test_modules_without_parameters_get_float32():
    def forward(x):
        assert x.dtype == torch.float32
        assert not torch.is_grad_enabled()
        return x[:, :2] * 1

    module = nn.Identity()
    module.forward = forward
    means = TrainedEncoder(module).transform(np.eye(3))
    np.testing.assert_array_equal(means, np.eye(3)[:, :2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_other_callables_get_samples_as_they_are(dtype):
    def encoder(batch):
        assert type(batch) is np.ndarray
        assert (batch.dtype, batch.shape[1:]) == (dtype, (2, 3))
        return batch[:, 0]

    X = np.arange(24).reshape(4, 6).astype(dtype)
    model = TrainedEncoder(encoder, input_shape=(2, 3))
    means = model.transform(X)
    assert means.dtype == (np.float32 if dtype == np.float32 else np.float64)
    np.testing.assert_array_equal(means, X[:, :3])


def test_callables_may_reuse_their_memory_and_overwrite_their_batch():
    memory = np.empty((5, 2))

    def encoder(batch):
        memory[:] = batch[:, :2]
        batch[:] = np.nan
        return memory

    X = np.random.default_rng(0).normal(size=(13, 3))
    before = X.copy()
    means = TrainedEncoder(encoder, batch_size=5).transform(X)
    np.testing.assert_array_equal(means, before[:, :2])
    np.testing.assert_array_equal(X, before)


def test_methods_of_estimators_are_callables(samples):
    pca = PCA(5).fit(samples)
    model = TrainedEncoder(pca.transform, pca.inverse_transform)
    np.testing.assert_allclose(
        model.transform(samples), pca.transform(samples), rtol=1e-4, atol=1e-5
    )
    frames = PCA(5).set_output(transform="pandas").fit(samples)
    np.testing.assert_array_equal(
        TrainedEncoder(frames.transform).transform(samples), model.transform(samples)
    )


MEANS = torch.arange(8.0).reshape(4, 2)
LOG_VARIANCES = -MEANS
STD = (LOG_VARIANCES / 2).exp()


class Output(types.SimpleNamespace):
    pass


@pytest.mark.parametrize(
    "result",
    [
        (MEANS, LOG_VARIANCES),
        [MEANS.numpy(), LOG_VARIANCES],
        {"embedding": MEANS, "log_covariance": LOG_VARIANCES, "other": None},
        Output(embedding=MEANS, log_covariance=LOG_VARIANCES),
        Normal(MEANS, STD),
        Independent(Normal(MEANS, STD), 1),
    ],
    ids=["tuple", "list", "mapping", "object", "Normal", "Independent"],
)
def test_ways_to_return_a_posterior(result):
    model = TrainedEncoder(lambda batch: result, batch_size=4)
    mean, std = model.encode(np.ones((4, 3)))
    np.testing.assert_array_equal(mean, MEANS.numpy())
    np.testing.assert_allclose(std, STD, rtol=1e-6)


@pytest.mark.parametrize(
    "result", [MEANS, MEANS.numpy(), (MEANS,), {"embedding": MEANS}], ids=type
)
def test_encode_needs_log_variances(result):
    model = TrainedEncoder(lambda batch: result, batch_size=4)
    np.testing.assert_array_equal(model.transform(np.ones((4, 3))), MEANS.numpy())
    with pytest.raises(ValueError, match=r"encoder must return \(mean, log_variance\)"):
        model.encode(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((), "got tuple of 0"),
        (None, "got NoneType"),
        ({"z": MEANS}, "got dict with z"),
        (MEANS[:3], r"shape \(4, ...\), got Tensor of torch.float32, shape \(3, 2\)"),
        (torch.tensor(1.0), "one entry for each sample"),
        (MEANS[:, 0], r"shape \(4,\). If there is one value for each .* a column"),
        ((MEANS, MEANS[:, :1]), "log_variance of the shape of the mean"),
        (MEANS.numpy().astype(str), "real values, got ndarray of <U"),
        (MEANS + 1j, "real values, got Tensor of torch.complex64"),
        (MEANS.log(), "finite values, got NaN or infinity for 1 of 4"),
        ((MEANS, MEANS.log()), "finite values as log_variance"),
    ],
)
def test_errors_say_what_came_back(result, message):
    model = TrainedEncoder(lambda batch: result, batch_size=4)
    with pytest.raises(ValueError, match=f"encoder must return.*{message}"):
        model.transform(np.ones((4, 3)))


def test_errors_of_the_decoder_name_it():
    model = TrainedEncoder(flat, lambda codes: {"rows": codes})
    with pytest.raises(
        ValueError, match=r"decoder must return samples.*dict with rows"
    ):
        model.inverse_transform(np.ones((4, 2)))
    with pytest.raises(ValueError, match="Input Z contains NaN"):
        model.inverse_transform(np.full((4, 2), np.nan))


def test_an_error_in_the_callable_notes_what_it_was_given(vae):
    with pytest.raises(TypeError, match="must be Tensor") as caught:
        TrainedEncoder(lambda x: vae.encode(x)).transform(np.ones((4, 64)))
    (note,) = caught.value.__notes__
    assert "encoder was called with an array of float64 of shape (256, 64)" in note
    assert "Torch modules and their methods get tensors" in note


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"encoder": PCA()},
            "encoder must be callable: a torch module",
        ),
        ({"decoder": "conv"}, "'decoder' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"input_shape": 3}, "'input_shape' parameter"),
        ({"input_shape": (1, 2)}, r"\(1, 2\), 2 values, and 3 features"),
    ],
)
def test_bad_parameters(parameters, message):
    model = TrainedEncoder(**{"encoder": flat} | parameters)
    for use in (model.fit, model.transform):
        with pytest.raises(ValueError, match=message):
            use(np.ones((4, 3)))


def test_bad_samples():
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TrainedEncoder(flat).transform(np.array([[np.nan, 1]]))
    with pytest.raises(ValueError, match="expecting 3 features"):
        TrainedEncoder(flat).fit(np.ones((4, 3))).transform(np.ones((4, 2)))


def test_decoders_flatten_samples_and_are_optional(samples):
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)))
    model = TrainedEncoder(flat, decoder)
    assert model.inverse_transform(np.ones((3, 2))).shape == (3, 64)
    assert not hasattr(TrainedEncoder(flat), "inverse_transform")
    assert not hasattr(FrozenEstimator(TrainedEncoder(flat)), "inverse_transform")
    named = TrainedEncoder(flat, lambda codes: {"reconstruction": codes[:, None] * 2})
    np.testing.assert_array_equal(named.inverse_transform([[1, 2]]), [[2, 4]])


def test_clones_and_copies_give_the_same(model, vae, samples):
    means = model.transform(samples)
    copies = [clone(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    with torch.no_grad():
        vae.to_mean.weight.zero_()
    for other in copies:
        np.testing.assert_array_equal(other.transform(samples), means)
    assert np.ptp(model.transform(samples), axis=0).max() == 0


def test_it_is_fitted_from_the_beginning(model, samples):
    frame = pd.DataFrame(samples, columns=[f"pixel{i}" for i in range(64)])
    check_is_fitted(model)
    assert get_tags(model).transformer_tags.preserves_dtype == []
    frozen = FrozenEstimator(model).fit(samples, None)
    np.testing.assert_array_equal(frozen.transform(frame), model.transform(samples))
    np.testing.assert_array_equal(frozen.encode(samples)[1], model.encode(samples)[1])
    assert not hasattr(model, "n_features_in_")
    model.fit(frame).set_output(transform="pandas")
    assert (model.n_features_in_, model.latent_dim_) == (64, LATENT_DIM)
    assert model.transform(frame).columns[-1] == "trainedencoder9"


def test_it_stands_in_pipelines(vae, samples):
    pipeline = make_pipeline(StandardScaler(), TrainedEncoder(vae.encode))
    assert pipeline.fit_transform(samples).shape == (len(samples), LATENT_DIM)


def _checks():
    yield from estimator_checks_generator(TrainedEncoder(flat), legacy=True)


@pytest.mark.parametrize(
    ("estimator", "check"),
    list(_checks()),
    ids=lambda value: getattr(getattr(value, "func", None), "__name__", "model"),
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def teacher(digits):
    return GMMTeacher(n_components=10, random_state=0).fit(digits[0])


def certified(model, teacher, digits):
    certifier = CollapseCertifier(
        FrozenEstimator(model), teacher=FrozenEstimator(teacher)
    )
    return certifier.fit(digits[0]).certify(digits[1])


def test_a_code_that_faces_the_witness_is_certified(teacher, digits):
    vertices = simplex_vertices(10, 9)

    def encoder(batch):
        return analytic_code(teacher.predict_proba(batch), vertices, 1.0)

    certificate = certified(TrainedEncoder(encoder), teacher, digits)
    assert certificate.verdict == "certified"


@pytest.mark.parametrize("constant", [0.0, 1.0, 1e6])
def test_a_constant_is_never_certified(teacher, digits, constant):
    module = nn.Linear(64, LATENT_DIM)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(constant)
    for encoder in (module, lambda batch: np.full((len(batch), 9), constant)):
        certificate = certified(TrainedEncoder(encoder), teacher, digits)
        assert certificate.verdict == "constant"
        assert certificate.margin <= certificate.tolerance


def test_a_net_of_skorch(samples):
    with torch.random.fork_rng():
        net = skorch.NeuralNet(
            PlainVAE,
            criterion=NegativeELBO,
            optimizer=torch.optim.Adam,
            max_epochs=2,
            train_split=None,
            verbose=0,
        ).fit(samples, samples)
    model = TrainedEncoder(net.module_.encode, net.module_.decode)
    mean, std = model.encode(samples)
    in_evaluation = net.forward(samples)[1].numpy()
    np.testing.assert_allclose(mean, in_evaluation, atol=1e-5)
    assert (std > 0).all()
    assert model.inverse_transform(mean).shape == samples.shape


@pytest.mark.slow
def test_a_vae_of_pythae(samples):
    models = pytest.importorskip("pythae.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = models.VAEConfig(input_dim=(1, 8, 8), latent_dim=LATENT_DIM)
        images = torch.from_numpy(samples).reshape(-1, 1, 8, 8)
        vae = models.VAE(config)
        train(vae, lambda model, x: model({"data": x}).loss, images, n_epochs=3)
    model = TrainedEncoder(vae.encoder, vae.decoder, input_shape=(1, 8, 8))
    mean, std = model.encode(samples)
    with torch.no_grad():
        output = vae.encoder(images)
        x_hat = vae.decoder(output.embedding).reconstruction
    np.testing.assert_allclose(mean, output.embedding, atol=1e-5)
    np.testing.assert_allclose(2 * np.log(std), output.log_covariance, atol=1e-4)
    assert np.abs(model.inverse_transform(mean) - x_hat.flatten(1).numpy()).max() < 1e-5
    # `embed` draws codes: not for certificates.
    drawn = TrainedEncoder(vae.embed, input_shape=(1, 8, 8))
    with torch.random.fork_rng():
        assert np.abs(drawn.transform(samples) - drawn.transform(samples)).max() > 0.1


@pytest.mark.parametrize("given", ["float8", "masked"])
def test_means_of_8_bits_or_masked_are_refused(samples, given):
    def encoder(X):
        if given == "masked":
            return np.ma.masked_less(X[:, :2], 0.5)
        return torch.from_numpy(X[:, :2]).to(torch.float8_e4m3fn)

    with pytest.raises(ValueError, match="encoder must return real values of 16 bits"):
        TrainedEncoder(encoder).transform(samples)
