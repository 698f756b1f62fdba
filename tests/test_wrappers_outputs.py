"""What encoders and decoders return: read rightly, or refused."""

import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from torch.distributions import (
    Bernoulli,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
)

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.wrappers import TrainedEncoder

N, D = 6, 2
X = np.ones((N, 3))
MEAN = torch.arange(12.0).reshape(N, D)
LOG_VARIANCE = -MEAN / 10
STD = (LOG_VARIANCE / 2).exp()
SAMPLES = torch.zeros(N, 3)


def foreign(values, how):
    """Stand for an array of another library, which NumPy can read in one way only."""
    kind = type("Array", (), {"shape": values.shape, "dtype": values.dtype})
    if how == "__array__":
        kind.__array__ = lambda self, dtype=None, copy=None: values.numpy()
    else:
        kind.__dlpack__ = lambda self, **kwargs: values.__dlpack__(**kwargs)
        kind.__dlpack_device__ = lambda self: values.__dlpack_device__()
    return kind()


def jax_normal(mean, std, kind="Normal"):
    """A distribution of another library: with a loc, a scale and a log_prob."""
    fields = {"loc": mean, "scale": std, "mean": mean, "log_prob": lambda self, x: x}
    return type(kind, (), fields)()


class OfAUser(Normal):
    pass


class Clipped(Normal):
    """A subclass of Normal, as for truncated policies, that is not normal."""

    def rsample(self, *args, **kwargs):
        return super().rsample(*args, **kwargs).clamp(-1, 1)


def jax_independent(inner):
    fields = {"distribution": inner, "mean": inner.mean, "log_prob": inner.log_prob}
    return type("Independent", (), fields)()


class Output(types.SimpleNamespace):
    pass


class DiagonalGaussian:
    """As of diffusers: attributes of several kinds, and methods of the same names."""

    def __init__(self):
        self.mean, self.logvar = MEAN, LOG_VARIANCE
        self.std, self.var = STD, STD**2

    def sample(self):
        raise AssertionError("drawn")


Named = namedtuple("Named", "log_variance, mean")
FORMS = {
    "tuple": (MEAN, LOG_VARIANCE),
    "list": [MEAN.numpy(), LOG_VARIANCE],
    "mapping": {"mean": MEAN, "std": STD},
    "pythae": Output(embedding=MEAN, log_covariance=LOG_VARIANCE),
    "mu": {"recon": SAMPLES, "mu": MEAN, "logvar": LOG_VARIANCE},
    "loc": Output(loc=MEAN, scale=STD),
    "named tuple": Named(LOG_VARIANCE, MEAN),
    "diffusers": Output(latent_dist=DiagonalGaussian()),
    "images": Output(mean=MEAN[:, :, None, None], variance=STD[:, :, None, None] ** 2),
    "Normal": Normal(MEAN, STD),
    "Independent": Independent(Independent(Normal(MEAN[:, None], STD[:, None]), 1), 1),
    "subclass": OfAUser(MEAN, STD),
    "another Normal": jax_normal(MEAN, STD),
    "another Independent": jax_independent(jax_normal(MEAN, STD)),
    "arrays": (foreign(MEAN, "__array__"), foreign(LOG_VARIANCE, "__array__")),
    "dlpack": (foreign(MEAN, "__dlpack__"), foreign(LOG_VARIANCE, "__dlpack__")),
}  # fmt: skip
NAMED = {
    "forward": ((SAMPLES, MEAN, LOG_VARIANCE), {"mean": 1, "log_variance": 2}),
    "keras": ([MEAN, LOG_VARIANCE, STD], {"mean": 0, "log_variance": 1}),
    "std": ((MEAN, STD), {"mean": 0, "std": 1}),
    "variance": ((STD**2, MEAN), {"mean": -1, "variance": 0}),
    "names": ({"z_mean": MEAN, "sigma": STD}, {"mean": "z_mean", "std": "sigma"}),
    "attributes": (Output(a=MEAN, b=LOG_VARIANCE), {"mean": "a", "log_variance": "b"}),
    "nested": ((SAMPLES, (MEAN, LOG_VARIANCE)), {"posterior": 1}),
    "distribution": ({"x": SAMPLES, "q": Normal(MEAN, STD)}, {"posterior": "q"}),
}


def encoder(result, outputs=None):
    return TrainedEncoder(lambda batch: result, batch_size=N, outputs=outputs)


@pytest.mark.parametrize("form", FORMS)
def test_posteriors_are_read_without_any_setting(form):
    mean, std = encoder(FORMS[form]).encode(X)
    np.testing.assert_array_equal(mean, MEAN)
    np.testing.assert_allclose(std, STD, rtol=1e-6)


@pytest.mark.parametrize("case", NAMED)
def test_outputs_are_picked_by_position_or_name(case):
    result, outputs = NAMED[case]
    mean, std = encoder(result, outputs).encode(X)
    np.testing.assert_array_equal(mean, MEAN)
    np.testing.assert_allclose(std, STD, rtol=1e-6)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            (SAMPLES, MEAN, LOG_VARIANCE),
            r"tuple of 3 \(0: Tensor of torch.float32, shape \(6, 3\);.*"
            r'outputs=\{"mean": 1, "log_variance": 2\}',
        ),
        ([MEAN, LOG_VARIANCE, STD], r'outputs=\{"mean": 0, "log_variance": 1\}'),
        ((MEAN, None), r"tuple of 2 .*1: NoneType"),
        ((SAMPLES, (MEAN, STD)), '1: tuple of 2.*contains both, name it "posterior"'),
        ((MEAN, SAMPLES), r"log_variance of the shape of the mean, \(6, 2\)"),
        ({"z": MEAN, "s": STD}, r"dict with z, s\..*outputs="),
        (Output(z=MEAN), "Output with z"),
        (namedtuple("Pair", "z, s")(MEAN, STD), "Pair with z, s"),
        ({"mean": MEAN, "loc": MEAN}, "mean and loc could both be meant"),
        (None, "got NoneType"),
    ],
    ids=str,
)
def test_what_is_ambiguous_is_shown_with_what_to_write(result, message):
    with pytest.raises(ValueError, match=f"encoder must return.*{message}"):
        encoder(result).transform(X)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"mean": 2, "log_variance": 1}, "got 2, but it returns tuple of 2"),
        ({"mean": "mu"}, "got 'mu'"),
        ({"log_variance": 1}, "a dict with positions or names"),
        ({"mean": 0, "std": 1, "variance": 1}, "a dict with positions or names"),
        ({"mean": 0, "sigma": 1}, "a dict with positions or names"),
        ({"mean": 0.0}, "a dict with positions or names"),
        ({"mean": True}, "a dict with positions or names"),
        ({}, "a dict with positions or names"),
        (("mean", "std"), "'outputs' parameter of TrainedEncoder"),
    ],
)
def test_names_that_name_nothing(outputs, message):
    with pytest.raises(ValueError, match=message):
        encoder((MEAN, STD), outputs).transform(X)


def test_an_array_has_no_outputs_to_name():
    for outputs in ({"mean": 0}, {"mean": "T"}):
        with pytest.raises(ValueError, match="outputs must name what encoder returns"):
            encoder(MEAN, outputs).transform(X)
    with pytest.raises(ValueError, match=r"Name a distribution.*posterior"):
        encoder((MEAN, Normal(MEAN, STD)), {"mean": 1}).transform(X)


OTHERS = {
    "Laplace": Laplace(MEAN, STD),
    "Independent": Independent(Laplace(MEAN, STD), 1),
    "LogNormal": LogNormal(MEAN / 10, STD),
    "StudentT": StudentT(3.0, MEAN, STD),
    "MultivariateNormal": MultivariateNormal(MEAN, torch.eye(D) + 0.5),
    "of another library": jax_normal(MEAN, STD, "Laplace"),
    "Independent of another": jax_independent(jax_normal(MEAN, STD, "Laplace")),
    "clipped": Clipped(MEAN, STD),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("outputs", [None, {"posterior": 0}])
def test_other_distributions_give_their_mean_and_nothing_else(kind, outputs):
    result = OTHERS[kind] if outputs is None else (OTHERS[kind],)
    model = encoder(result, outputs)
    np.testing.assert_array_equal(model.transform(X), OTHERS[kind].mean)
    for use in (model.encode, model.diagnose):
        with pytest.raises(ValueError, match="not read as a Gaussian"):
            use(X)


def test_a_distribution_without_a_mean_is_refused():
    squashed = torch.distributions.TransformedDistribution(
        Normal(MEAN, STD), torch.distributions.TanhTransform()
    )
    with pytest.raises(ValueError, match="has a mean, got TransformedDistribution"):
        encoder(squashed).transform(X)


def test_the_kind_of_outputs_must_not_change_on_the_way():
    def wavering(batch):
        return batch[:, :2] if batch[0, 0] else (batch[:, :2], batch[:, :2])

    samples = np.repeat([[0.0], [1.0]], 4, axis=0) * np.ones(3)
    with pytest.raises(ValueError, match="spreads as log_variance and none"):
        TrainedEncoder(wavering, batch_size=4).transform(samples)


@pytest.mark.parametrize("value", [-1000.0, 1000.0])
def test_log_variances_must_have_a_standard_deviation(value):
    model = encoder((MEAN, torch.full_like(MEAN, value)))
    for use in (model.encode, model.diagnose):
        with pytest.raises(ValueError, match="neither vanish nor overflow in float32"):
            use(X)


@pytest.mark.parametrize(
    "result",
    [STD, [STD], {"sample": STD}, Output(reconstruction=STD), Output(loc=STD),
     Normal(STD, 1.0), Bernoulli(STD), Independent(Bernoulli(STD), 1)],
    ids=str,
)  # fmt: skip
def test_decoders(result):
    model = TrainedEncoder(lambda x: x, lambda z: result, batch_size=N)
    np.testing.assert_array_equal(model.inverse_transform(MEAN), STD)


@pytest.mark.parametrize("result", [(STD, STD, STD), None, {"x": STD}, {}], ids=str)
def test_outputs_of_decoders_that_are_refused(result):
    model = TrainedEncoder(lambda x: x, lambda z: result, batch_size=N)
    with pytest.raises(ValueError, match="decoder must return samples"):
        model.inverse_transform(MEAN)


# Wrong values.


@pytest.mark.parametrize("form", ["tuple", "names"])
@pytest.mark.parametrize("measure", ["std", "variance"])
def test_standard_deviations_passed_as_logarithms_are_warned_of(form, measure):
    width = STD if measure == "std" else STD**2
    result = (MEAN, width) if form == "tuple" else {"mu": MEAN, "logvar": width}
    keys = (0, 1) if form == "tuple" else ("'mu'", "'logvar'")
    message = f'outputs={{"mean": {keys[0]}, "std": {keys[1]}}}.*"variance"'
    with pytest.warns(UserWarning, match=message):
        encoder(result).encode(X)


@pytest.mark.parametrize("measure", ["std", "variance"])
def test_logarithms_passed_as_standard_deviations_are_refused(measure):
    message = r'above 0 as .*outputs=\{"mean": 0, "log_variance": 1\}'
    with pytest.raises(ValueError, match=message):
        encoder((MEAN, LOG_VARIANCE), {"mean": 0, measure: 1}).encode(X)


def constant_forms(batch):
    """Constant means, with standard deviations that vary, in all forms."""
    x = torch.as_tensor(np.asarray(batch), dtype=torch.float32)
    mean, width = torch.full((len(x), 4), 0.3), 0.1 + x[:, :4].abs()
    log_variance = 2 * width.log() - 20
    return {
        "tuple": ((mean, log_variance), None),
        "named": ({"std": width, "mean": mean}, None),
        "swapped": ((log_variance, mean), {"mean": 1, "log_variance": 0}),
        "forward": ((x, mean, width), {"mean": 1, "std": 2}),
        "Normal": (Normal(mean, width), None),
        "nested": ((x, Normal(mean, width)), {"posterior": 1}),
        "Laplace": (Laplace(mean, width), None),
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", constant_forms(np.ones((1, 6))))
def test_a_constant_mean_is_constant_in_each_form(shared_blobs, form):
    model = TrainedEncoder(
        lambda batch: constant_forms(batch)[form][0],
        outputs=constant_forms(np.ones((1, 6)))[form][1],
    )
    teacher = GMMTeacher(4, random_state=0)
    certifier = CollapseCertifier(FrozenEstimator(model), teacher=teacher)
    certificate = certifier.fit(shared_blobs).certify(shared_blobs)
    assert certificate.verdict == "constant"
    assert certificate.margin <= 0
    if form != "Laplace":
        proba = certifier.teacher_.transform(shared_blobs)
        found = model.diagnose(shared_blobs, proba, random_state=0)
        assert found.mean.verdict == "constant"
