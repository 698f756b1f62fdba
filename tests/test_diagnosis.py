"""Known answers: no constant posterior is informative, no useful code collapsed."""

import html
import json
import pickle
import warnings
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvaecert import CertifiedVAE, CollapseCertifier, Diagnosis, GMMTeacher, diagnose
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.forecast import collapse_threshold
from skvaecert.information import InformationSums
from skvaecert.simplex import analytic_code, prior_matched_scale, simplex_vertices
from skvaecert.wrappers import TrainedEncoder

N, D = 200, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def codes(kind, seed=0):
    """Means and standard deviations with a known answer."""
    rng = np.random.default_rng(seed)
    mean, noise = rng.normal(size=(N, D)), np.full((N, D), 0.1)
    rounding = 1 + rng.integers(-4, 5, size=(N, D)) * np.float32(2.0**-23)
    half = np.arange(N)[:, np.newaxis] < N // 2
    return {
        "healthy": (mean, noise),
        "tiny spread": (mean / 100, np.ones((N, D))),
        "the prior": (np.zeros((N, D)), np.ones((N, D))),
        "constant, wide": (np.full((N, D), 3.0), np.full((N, D), 7.0)),
        "constant, varying noise": (np.zeros((N, D)), np.exp(2 * mean)),
        "rounding": (rounding.astype(np.float32), np.full((N, D), 1e-7)),
        "one active": (mean * [1, 0, 0, 0], noise ** [1, 0, 0, 0]),
        "half dead": (mean * half, np.where(half, noise, 1.0)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "state", "verdict"),
    [
        ("healthy", "informative", "varies"),
        ("one active", "informative", "varies"),
        ("half dead", "informative", "varies"),
        ("constant, varying noise", "informative", "constant"),
        ("tiny spread", "collapsed", "varies"),
        ("the prior", "collapsed", "constant"),
        ("constant, wide", "collapsed", "constant"),
        ("rounding", "undecided", "constant"),
    ],
)
def test_known_answers(kind, state, verdict):
    diagnosis = diagnose(*codes(kind), random_state=0)
    assert (diagnosis.state, diagnosis.mean.verdict) == (state, verdict)
    assert str(diagnosis).startswith(state.capitalize())
    assert (diagnosis.n_samples, diagnosis.latent_dim) == (N, D)
    if kind == "rounding":
        assert diagnosis.information.low == 0 < 3 < diagnosis.information.high
        assert "rounding alone may account for" in diagnosis.advice


def test_without_standard_deviations_only_the_mean_is_judged():
    varying, constant = diagnose(codes("healthy")[0]), diagnose(np.ones((9, 2)))
    for diagnosis, verdict in [(varying, "varies"), (constant, "constant")]:
        assert (diagnosis.state, diagnosis.mean.verdict) == ("undecided", verdict)
        assert diagnosis.information is None is diagnosis.kl_per_dimension
        assert "Pass the standard deviations" in str(diagnosis)
    assert (varying.active_units, constant.active_units) == (4, 0)


def test_one_sample_is_not_called_constant():
    assert diagnose(np.ones((1, 2))).mean.verdict == "inconclusive"
    with pytest.raises(ValueError, match=r"negligible must be below 0 nats"):
        diagnose(np.ones((1, 2)), np.ones((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.1, 1.0, 1e4])
def test_no_constant_posterior_is_informative(sigma):
    """Constants in float32 and float16, rounded, and next to the teacher's own."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, d = rng.integers(2, 60), rng.integers(1, 20)
        constant = rng.normal(size=d) * 10.0 ** rng.uniform(-6, 4)
        for dtype in (np.float16, np.float32):
            unit = np.finfo(dtype).eps * np.maximum(abs(constant), 1)
            jitter = unit * rng.integers(-4, 5, size=(n, d))
            mean = (constant + jitter).astype(dtype)
            std = np.full((n, d), sigma) * (1 + 1e-7 * rng.integers(-4, 5, size=(n, d)))
            teacher_proba = softmax(5 * rng.normal(size=(n, 2)), axis=1)
            found = diagnose(
                mean, std, teacher_proba=teacher_proba, n_draws=500, random_state=seed
            )
            assert found.state != "informative", (seed, dtype)
            assert not found.mean.certified


@pytest.mark.slow
def test_what_is_called_collapsed_carries_little():
    """Two distant clusters, one with share p: the information is the entropy of p."""
    n_collapsed = 0
    for n_far in range(6):
        mean = np.zeros((300, 3))
        mean[:n_far] = 50
        p = n_far / 300
        truth = -p * np.log(p or 1) - (1 - p) * np.log(1 - p)
        for seed in range(3):
            diagnosis = diagnose(
                mean, np.ones((300, 3)), n_draws=30_000, random_state=seed
            )
            found = diagnosis.information
            assert found.low <= truth <= found.high
            if diagnosis.state == "collapsed":
                n_collapsed += 1
                assert truth <= 0.05
            if diagnosis.state == "informative":
                assert truth > 0.05
    assert n_collapsed >= 6


# The decoder.


def linear(weights):
    return lambda code: code @ weights


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_a_decoder_that_ignores_the_code_is_found(rng, likelihood):
    mean, std = codes("healthy")
    weights, bias = rng.normal(size=(2, D, 6))
    inverse = expit if likelihood == "bernoulli" else np.asarray
    X = inverse(mean @ weights)
    if likelihood == "bernoulli":
        X = np.round(X)

    def found(strength):
        decode = lambda code: inverse(strength * code @ weights + bias[0, 0])  # noqa: E731
        settings = {"decode": decode, "X": X, "likelihood": likelihood}
        return diagnose(mean, std, **settings, random_state=0)

    deaf, nearly, listening = found(0), found(0.01), found(1)
    assert (deaf.state, nearly.state) == ("ignored", "ignored")
    assert deaf.decoder.high == 0 < nearly.decoder.bound < 0.05
    assert "output carries at most 0.000 nats about the code" in str(deaf)
    assert (listening.state, listening.decoder.likelihood) == (
        "informative",
        likelihood,
    )
    assert listening.decoder.bound > 0.5


@pytest.mark.slow
def test_outputs_that_react_to_one_sample_in_105_are_not_ignored():
    """They carry 0.054 nats; few decoded codes often have none of this sample."""
    mean, std = np.zeros((105, 1)), np.ones((105, 1))
    mean[0] = 100

    def states(height):
        settings = {"noise_variance": 1, "n_draws": 1, "negligible": 0.05}
        for seed in range(40):
            decode = lambda code: height * (code > 50)  # noqa: E731
            yield diagnose(mean, std, decode=decode, random_state=seed, **settings)

    assert "ignored" not in {diagnosis.state for diagnosis in states(30)}
    # The twin: outputs that react to it by less than their noise.
    assert {diagnosis.state for diagnosis in states(0.1)} == {"ignored"}


def test_the_noise_of_the_outputs_is_the_error_on_drawn_codes(rng):
    mean, std = codes("healthy")
    weights = rng.normal(size=(D, 6))
    X = mean @ weights + rng.normal(size=(N, 6))
    diagnosis = diagnose(mean, std, decode=linear(weights), X=X, random_state=0)
    expected = 1 + 0.01 * (weights**2).sum(axis=0).mean()
    assert diagnosis.decoder.noise_variance == pytest.approx(expected, rel=0.1)
    given = diagnose(
        mean, std, decode=linear(weights), noise_variance=expected, random_state=0
    )
    assert given.decoder.bound == pytest.approx(diagnosis.decoder.bound, rel=0.05)
    assert given.threshold is None
    assert diagnosis.threshold == collapse_threshold(X)


def test_outputs_in_other_units_are_not_measured(rng):
    """The decoder would count as ignoring the code: outputs hardly vary next to X."""
    mean, std = codes("healthy")
    weights = rng.normal(size=(D, 6))
    bytes_like = 128 + 60 * mean @ weights
    with pytest.warns(UserWarning, match="was not measured"):
        diagnosis = diagnose(mean, std, decode=linear(weights / 255), X=bytes_like)
    assert (diagnosis.state, diagnosis.decoder) == ("informative", None)


def test_what_a_decoder_measurement_needs():
    mean, std = codes("healthy")
    with pytest.raises(ValueError, match="noise_variance or X must be given"):
        diagnose(mean, std, decode=lambda code: code)
    with pytest.raises(ValueError, match="decode must return outputs of the shape"):
        diagnose(mean, std, decode=lambda code: code[:, :2], X=mean)
    for wrong in (lambda code: code[:-1], lambda code: (code, code)):
        with pytest.raises(ValueError, match="decode must return one output for each"):
            diagnose(mean, std, decode=wrong, noise_variance=1)
    with pytest.raises(ValueError, match="Apply the sigmoid to logits"):
        diagnose(mean, std, decode=lambda code: code, likelihood="bernoulli")


def test_decoders_get_codes_in_the_precision_of_the_means(rng):
    mean, std = (part.astype(np.float32) for part in codes("healthy"))
    images = rng.normal(size=(N, 1, 2, 2)).astype(np.float32)
    module = torch.nn.Sequential(
        torch.nn.Linear(D, 4), torch.nn.Unflatten(1, (1, 2, 2))
    )
    with torch.no_grad():
        diagnosis = diagnose(
            mean,
            std,
            decode=lambda code: module(torch.from_numpy(code)) / 10,
            X=images,
            random_state=0,
        )
    assert diagnosis.decoder.n_draws == 4000


# Teachers.


def test_a_teacher_is_read_by_the_fixed_simplex(rng):
    mean, std = codes("healthy")
    teacher_proba = softmax(2 * mean[:, :3], axis=1)
    found = diagnose(-mean, std, teacher_proba=teacher_proba, random_state=0)
    assert (found.mean.witness, found.mean.verdict) == ("raw", "varies")
    assert "The witness does not read the teacher's clusters" in found.advice
    scale = prior_matched_scale(teacher_proba)
    code = analytic_code(teacher_proba, simplex_vertices(3, D), scale)
    aligned = diagnose(code, std, teacher_proba=teacher_proba, random_state=0)
    assert aligned.mean.certified
    assert aligned.advice == "The VAE has not collapsed on these samples."


def test_a_teacher_of_many_components_is_left_aside():
    mean, std = codes("healthy")
    teacher_proba = softmax(np.random.default_rng(1).normal(size=(N, D + 2)), axis=1)
    diagnosis = diagnose(mean, std, teacher_proba=teacher_proba)
    assert (diagnosis.state, diagnosis.mean.witness) == ("informative", "none")


@pytest.mark.parametrize("row", [[0.5, 0.5], [0.9, 0.1]])
def test_a_teacher_without_information_is_no_fault_of_the_code(row):
    diagnosis = diagnose(*codes("healthy"), teacher_proba=np.tile(row, (N, 1)))
    assert (diagnosis.state, diagnosis.mean.verdict) == ("informative", "varies")
    dead = diagnose(*codes("the prior"), teacher_proba=np.tile(row, (N, 1)))
    assert dead.state == "collapsed"
    assert not dead.mean.certified


# Advice.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_weight": 50.0}, "Lower kl_weight from 50 to well below 1.1"),
        ({"kl_weight": 0.1}, "Lower kl_weight, or train further with the"),
        ({}, "Lower kl_weight, or train further with the"),
        ({"kl_weight": 50.0, "reduction": "mean"}, "Sum the reconstruction"),
    ],
)
def test_advice_on_collapse(settings, said):
    X = codes("healthy")[0]
    diagnosis = diagnose(*codes("tiny spread"), X=X, **settings)
    assert said in diagnosis.advice
    assert str(diagnosis).endswith(diagnosis.advice)
    assert not {"certain", "inevitable"} & set(diagnosis.advice.split())


@pytest.mark.slow
def test_advice_on_means_that_are_too_inexact_for_the_witness(rng):
    mean, std = (part.copy() for part in codes("healthy"))
    mean[:, 0] += 1e7
    std[:, 0] = 100
    proba = rng.dirichlet(np.ones(3), size=len(mean))
    diagnosis = diagnose(mean, std, teacher_proba=proba, random_state=0)
    assert (diagnosis.state, diagnosis.mean.reason) == ("informative", "noise")
    assert "may move the means too far" in diagnosis.advice


def test_advice_on_a_constant_mean_and_on_few_draws():
    constant = diagnose(*codes("constant, varying noise"))
    assert "the mean alone carries nothing" in constant.advice
    few = diagnose(*codes("healthy"), n_draws=3, random_state=0)
    assert few.state == "undecided"
    assert "n_draws" in few.advice


# The result.


def test_the_result_is_frozen_plain_and_neither_true_nor_false():
    mean, std = codes("healthy")
    diagnosis = diagnose(mean, std, decode=lambda z: z, X=mean, random_state=0)
    with pytest.raises(FrozenInstanceError):
        diagnosis.state = "collapsed"
    with pytest.raises(TypeError, match=r"Compare diagnosis\.state"):
        bool(diagnosis)
    assert pickle.loads(pickle.dumps(diagnosis)).to_json() == diagnosis.to_json()
    record = json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    assert list(record) == list(Diagnosis.__annotations__)
    assert record["kl_per_dimension"] == diagnosis.kl_per_dimension.tolist()
    assert record["information"]["low"] == record["mean"]["information"]["low"]
    assert html.escape(str(diagnosis)) in diagnosis._repr_html_()


def test_sentences_round_outwards():
    """For 0.0002 the sentence says at most 0.001 nats, not 0.000."""
    diagnosis = diagnose(*codes("tiny spread"), random_state=0)
    assert 1e-4 < diagnosis.information.high < 5e-4
    assert "at most 0.001 nats about these 200 samples" in str(diagnosis)


def test_a_sample_of_weight_0_counts_for_nothing(rng):
    mean, std = codes("healthy")
    X = mean @ rng.normal(size=(D, 6))
    weight = np.ones(N)
    mean[0], std[0], X[0], weight[0] = 1e9, 1e-9, 1e9, 0
    settings = {"decode": linear(np.ones((D, 6))), "noise_variance": 1.0}
    with_it = diagnose(
        mean, std, X=X, sample_weight=weight, **settings, random_state=0
    ).to_dict()
    without = diagnose(mean[1:], std[1:], X=X[1:], **settings, random_state=0)
    assert with_it["n_samples"] == N - 1
    for name in ("state", "threshold", "active_units", "advice", "n_samples"):
        assert with_it[name] == getattr(without, name)
    for name in ("low", "high"):
        expected = getattr(without.information, name)
        assert with_it["information"][name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"std": np.full((N, D), -1.5)}, r"std must be above 0.*exp\(std / 2\)"),
        ({"std": np.zeros((N, D))}, r"std must be above 0.*exp\(std / 2\)"),
        ({"std": np.ones((N, 1))}, "std must have the shape"),
        ({"mean": np.zeros(N)}, "mean must have shape"),
        ({"mean": np.full((N, D), np.nan)}, "mean must be finite"),
        ({"X": np.ones((3, 2))}, "X must have the 200 samples of mean, got shape"),
        ({"negligible": 0}, "negligible must be a finite number above 0"),
        ({"negligible": 6}, "negligible must be below 5.3"),
        ({"kl_weight": -1}, "kl_weight must be a finite number at least 0"),
        ({"confidence": 1}, "confidence must be"),
        ({"n_draws": 0}, "n_draws must be"),
        ({"teacher_proba": np.ones((3, 2)) / 2}, "teacher_proba must have"),
        ({"likelihood": "poisson"}, "likelihood must be"),
        ({"reduction": "max"}, "reduction must be"),
        ({"noise_variance": -100, "decode": np.exp}, "noise_variance must be"),
        ({"noise_variance": 0, "decode": np.exp}, "noise_variance must be"),
        ({"noise_variance": np.nan}, "noise_variance must be"),
        ({"X": 3.0}, "X must have the 200 samples of mean, got shape"),
    ],
)
def test_errors_name_what_is_wrong(changed, message):
    mean, std = codes("healthy")
    arguments = {"mean": mean, "std": std} | changed
    with pytest.raises(ValueError, match=message):
        diagnose(**arguments)


def test_log_variances_are_distinguished_from_standard_deviations():
    """If one of them is at most 0: a standard deviation of 1, the prior's, or less."""
    mean, std = codes("healthy")
    with pytest.raises(ValueError, match="log-variances"):
        diagnose(mean, 2 * np.log(std))


# Fitted estimators.


def trained(X, kl_weight, alignment_weight=0.0, **settings):
    vae = CertifiedVAE(
        GMMTeacher(10, covariance_type="diag", pca_components=8, random_state=0),
        hidden_sizes=(64,),
        kl_weight=kl_weight,
        alignment_weight=alignment_weight,
        learning_rate=3e-3,
        max_epochs=15,
        device="cpu",
        random_state=0,
        **settings,
    )
    return CollapseCertifier(vae).fit(X)


@pytest.fixture(scope="module")
def healthy(digits):
    return trained(digits[0], 1.0, 10.0, likelihood="bernoulli")


@pytest.mark.slow
def test_a_healthy_vae(healthy, digits):
    diagnosis = healthy.diagnose(digits[1])
    assert diagnosis.state == "informative"
    assert diagnosis.mean.certified
    assert diagnosis.mean.margin == healthy.certify(digits[1]).margin
    assert diagnosis.threshold == collapse_threshold(digits[1], likelihood="bernoulli")
    assert diagnosis.decoder.bound > diagnosis.information.low
    assert diagnosis.advice == "The VAE has not collapsed on these samples."
    again = healthy.diagnose(digits[1])
    assert again.to_json() == diagnosis.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [8.0, 64.0])
def test_a_collapsed_vae(digits, kl_weight):
    """Its mean varies, and a fitted witness certifies it: the noise hides all of it."""
    certifier = trained(digits[0], kl_weight, likelihood="bernoulli")
    diagnosis = certifier.diagnose(digits[1])
    assert diagnosis.state == "collapsed"
    assert diagnosis.information.high < 0.01
    assert diagnosis.mean.verdict == "varies"
    assert f"Lower kl_weight from {kl_weight:g} to well below 3.3" in diagnosis.advice


@pytest.mark.slow
def test_the_decoder_is_measured_in_the_units_of_its_noise(digits):
    """By 100 larger samples make another VAE, but not another measurement."""
    found = [trained(scale * digits[0], 1.0) for scale in (1, 100)]
    small, large = (
        c.diagnose(s * digits[1]) for c, s in zip(found, (1, 100), strict=True)
    )
    assert small.decoder.bound == pytest.approx(large.decoder.bound, rel=0.01)
    assert small.threshold == pytest.approx(large.threshold)
    vae = found[1].estimator_
    assert large.decoder.noise_variance == vae.noise_variance_
    variances = [c.estimator_.noise_variance_ for c in found]
    assert variances[1] == pytest.approx(1e4 * variances[0], rel=0.01)
    assert 0.2 < variances[0] / digits[0].var(axis=0).mean() < 0.9


def test_an_estimator_must_be_fitted(small_vae, blobs):
    with pytest.raises(NotFittedError):
        CollapseCertifier(small_vae).diagnose(blobs)


def test_the_bracket_is_computed_once(fitted, blobs, monkeypatch):
    computed, bracket = [], InformationSums.bracket

    def counted(sums):
        computed.append(bracket(sums))
        return computed[-1]

    monkeypatch.setattr(InformationSums, "bracket", counted)
    found = fitted.diagnose(blobs, n_draws=2000)
    assert len(computed) == 1
    assert found.mean.information is found.information
    # The twin: a certificate alone computes its own.
    assert fitted.certify(blobs).information is computed[1]


@pytest.mark.slow
def test_estimators_in_pipelines_and_without_noise(fitted, blobs):
    scaled = CollapseCertifier(
        make_pipeline(StandardScaler(), PCA(3)),
        teacher=GMMTeacher(4, random_state=0),
    ).fit(blobs)
    diagnosis = scaled.diagnose(blobs)
    assert (diagnosis.state, diagnosis.information) == ("undecided", None)
    assert diagnosis.threshold is None
    known = scaled.diagnose(blobs, likelihood="gaussian")
    assert known.threshold == collapse_threshold(StandardScaler().fit_transform(blobs))
    assert fitted.diagnose(blobs, sample_weight=np.arange(120) < 60).n_samples == 60


class Model(torch.nn.Module):
    """A linear VAE that was written elsewhere."""

    def __init__(self, strength, noise=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.decoder = torch.nn.Linear(6, 2), torch.nn.Linear(2, 6)
        self.strength, self.noise = strength, noise

    def encode(self, x):
        mean = self.strength * self.mean(x)
        return mean + self.noise * torch.randn_like(mean), torch.full_like(mean, -2)


def certifier_of(encoder, X, decoder=None):
    model = FrozenEstimator(TrainedEncoder(encoder, decoder))
    return CollapseCertifier(model, teacher=GMMTeacher(3, random_state=0)).fit(X)


@pytest.mark.slow
def test_the_last_step_of_a_pipeline_is_diagnosed_wherever_it_is_frozen(blobs):
    with torch.random.fork_rng():
        module = Model(1.0)
    model, teacher = TrainedEncoder(module.encode, module.decoder), GMMTeacher(3)
    last, same = FrozenEstimator(model), FunctionTransformer()
    fitted = make_pipeline(same, model).fit(blobs)
    forms = [
        last,
        make_pipeline(last),
        make_pipeline(same, last),
        FrozenEstimator(fitted),
        FrozenEstimator(make_pipeline(same, last).fit(blobs)),
    ]
    results = []
    for form in forms:
        certifier = CollapseCertifier(form, teacher=teacher, random_state=0).fit(blobs)
        found = certifier.diagnose(blobs, likelihood="gaussian", n_draws=2000)
        results.append(found.to_json())
    assert found.information is not None
    assert found.decoder is not None
    assert set(results) == {results[0]}


@pytest.mark.slow
def test_models_of_others(blobs):
    with torch.random.fork_rng():
        alive, dead = Model(1.0), Model(0.0)
    assert certifier_of(alive.encode, blobs).diagnose(blobs).state == "informative"
    diagnosis = certifier_of(dead.encode, blobs).diagnose(blobs)
    assert (diagnosis.state, diagnosis.mean.verdict) == ("collapsed", "constant")
    deaf = certifier_of(
        alive.encode, blobs, lambda z: np.tile(blobs.mean(0), (len(z), 1))
    )
    assert deaf.diagnose(blobs).state == "ignored"
    averaged = certifier_of(dead.encode, blobs).diagnose(blobs, reduction="mean")
    assert "Sum the reconstruction" in averaged.advice


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [3, 10, 120])
def test_a_random_encoder_is_not_informative(blobs, n_samples):
    """The model itself shows its random noise; arrays cannot."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableEncoderWarning)
        model = Model(0.0, noise=3.0)
        certifier = certifier_of(model.encode, blobs)
        found = certifier.diagnose(blobs[:n_samples])
        assert (found.state, found.information.low) == ("undecided", 0.0)
        with torch.no_grad():
            arrays = model.encode(torch.ones(n_samples, 6))
    mean, log_variance = (part.numpy() for part in arrays)
    assert diagnose(mean, np.exp(log_variance / 2)).state == "informative"


@pytest.mark.slow
def test_a_vae_of_pythae(blobs):
    models = pytest.importorskip("pythae.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = models.VAE(models.VAEConfig(input_dim=(1, 2, 3), latent_dim=2))
    encoder = TrainedEncoder(vae.encoder, input_shape=(1, 2, 3))
    certifier = CollapseCertifier(
        FrozenEstimator(encoder), teacher=GMMTeacher(3, random_state=0)
    ).fit(blobs)
    found = certifier.diagnose(blobs).information
    alone = diagnose(*encoder.encode(blobs), random_state=1).information
    assert found.low == pytest.approx(alone.low, abs=0.02)
    assert 0 < found.low < found.high < 4.7
