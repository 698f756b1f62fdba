"""AlignmentLoss and the guard in a user's own loop."""

import io

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, certify, diagnose
from skvaecert.metrics import alignment_loss, escape_force, teacher_information
from skvaecert.objectives import AlignmentLoss, LagrangeWeight
from skvaecert.simplex import (
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)
from skvaecert.wrappers import TrainedEncoder

N, K, D, SCALE = 30, 4, 5, 1.7
VERTICES = simplex_vertices(K, D)


@pytest.fixture
def loss_fn():
    return AlignmentLoss(VERTICES, SCALE)


@pytest.fixture
def proba():
    return softmax(3 * np.random.default_rng(0).normal(size=(N, K)), axis=1)


@pytest.fixture
def mean():
    return np.random.default_rng(1).normal(size=(N, D))


def test_it_is_the_alignment_loss(loss_fn, proba, mean):
    log_q = witness_log_proba(mean, VERTICES, SCALE)
    expected = alignment_loss(proba, log_q)
    for dtype, close in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        given = torch.tensor(mean, dtype=dtype)
        loss = loss_fn(given, torch.tensor(proba))
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected, rel=close)
        read = loss_fn.witness_log_proba(given)
        np.testing.assert_allclose(read, log_q, atol=10 * close)
    # Posteriors as NumPy arrays, as a batch of them is mostly at hand.
    assert loss_fn(torch.tensor(mean), proba) == loss_fn(
        torch.tensor(mean), torch.tensor(proba)
    )


def test_reductions(loss_fn, proba, mean):
    given = torch.tensor(mean), torch.tensor(proba)
    each = loss_fn(*given, reduction="none")
    assert each.shape == (N,)
    torch.testing.assert_close(each.mean(), loss_fn(*given))
    torch.testing.assert_close(each.sum(), loss_fn(*given, reduction="sum"))
    with pytest.raises(ValueError, match=r"reduction must be one of .* got 'all'"):
        loss_fn(*given, reduction="all")


def test_minus_its_gradient_is_the_escape_force(loss_fn, proba, mean):
    given = torch.tensor(mean, requires_grad=True)
    loss_fn(given, torch.tensor(proba), reduction="sum").backward()
    force = escape_force(proba, mean, VERTICES, SCALE)
    np.testing.assert_allclose(-given.grad, force, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_32(loss_fn, proba, mean, dtype):
    """Of the codes, only what they lost themselves is lost."""
    given = torch.tensor(mean, dtype=dtype)
    expected = loss_fn(given.float(), torch.tensor(proba))
    half = nn.ModuleDict({"loss": loss_fn}).to(dtype)
    assert loss_fn.vertices.dtype == loss_fn.scale.dtype == torch.float32
    assert half["loss"](given, torch.tensor(proba)) == expected


def test_autocast_does_not_reach_it(loss_fn, proba, mean):
    mean, proba = torch.tensor(mean).float(), torch.tensor(proba)
    expected = loss_fn(mean, proba), loss_fn.witness_log_proba(mean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lost = torch.equal(mean @ mean.T, (mean.double() @ mean.T.double()).float())
        found = loss_fn(mean, proba), loss_fn.witness_log_proba(mean)
    assert not lost  # autocast was on
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, wanted)


def test_state_dict_restores_it(loss_fn):
    other = AlignmentLoss(VERTICES[:, ::-1].copy(), 0.3)
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.vertices, loss_fn.vertices)
    assert other.scale == loss_fn.scale
    assert not list(other.parameters())


def test_it_keeps_nothing_of_the_callers_memory():
    vertices = VERTICES.astype(np.float32)
    loss_fn = AlignmentLoss(vertices, SCALE)
    vertices[:] = 0
    assert loss_fn.vertices.any()


@pytest.mark.slow
def test_it_compiles_in_one_graph(loss_fn, proba, mean):
    compiled = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)
    given = torch.tensor(mean, dtype=torch.float32, requires_grad=True)
    loss = compiled(given, torch.tensor(proba))
    torch.testing.assert_close(loss, loss_fn(given, torch.tensor(proba)))
    loss.backward()
    assert given.grad.any()


@pytest.mark.parametrize(
    ("vertices", "scale", "message"),
    [
        (np.ones((3, 2)), 1.0, "vertices must form a regular simplex"),
        (VERTICES, 0.0, "scale"),
        (VERTICES, -1.0, "scale"),
        (VERTICES, 1e-60, "scale"),  # 0 in float32
        (VERTICES, 1e60, "scale"),
    ],
)
def test_what_is_no_witness_is_refused(vertices, scale, message):
    with pytest.raises(ValueError, match=message):
        AlignmentLoss(vertices, scale)


def test_shapes_that_do_not_fit_are_named(loss_fn, proba, mean):
    with pytest.raises(ValueError, match=r"mean must .* \(n_samples, 5\), got"):
        loss_fn(torch.zeros(N, D + 1), torch.tensor(proba))
    with pytest.raises(ValueError, match=r"teacher_proba must .* \(30, 4\), got \(29"):
        loss_fn(torch.tensor(mean), torch.tensor(proba[1:]))


def test_from_any_teacher(blobs):
    teacher = make_pipeline(StandardScaler(), GMMTeacher(4, random_state=0)).fit(blobs)
    proba = teacher.predict_proba(blobs)
    loss_fn = AlignmentLoss.from_teacher(teacher, blobs, latent_dim=3)
    assert loss_fn.vertices.shape == (4, 3)
    assert loss_fn.scale == pytest.approx(prior_matched_scale(proba), rel=1e-6)
    by_transform = FunctionTransformer(lambda X: proba)
    scaled = AlignmentLoss.from_teacher(by_transform, blobs, 5, scale=2.0)
    assert (scaled.scale, scaled.vertices.shape) == (2.0, (4, 5))
    with pytest.raises(ValueError, match="latent_dim must be at least"):
        AlignmentLoss.from_teacher(teacher, blobs, latent_dim=2)
    with pytest.raises(ValueError, match=r"^scale must be 'prior' or a number"):
        AlignmentLoss.from_teacher(teacher, blobs, latent_dim=3, scale="posterior")


def test_the_certificate_is_that_of_the_very_witness(blobs):
    teacher = GMMTeacher(4, random_state=0).fit(blobs)
    loss_fn = AlignmentLoss.from_teacher(teacher, blobs, latent_dim=4, scale=0.7)
    proba = teacher.predict_proba(blobs)
    model = nn.Linear(6, 4)
    certifier = CollapseCertifier(
        FrozenEstimator(TrainedEncoder(model)),
        teacher=FrozenEstimator(teacher),
        witness=loss_fn,
    )
    found = clone(certifier).fit(blobs).certify(blobs)
    mean = TrainedEncoder(model).transform(blobs)
    expected = certify(proba, mean, loss_fn.vertices, loss_fn.scale)
    assert found.margin == pytest.approx(expected.margin, abs=1e-12)
    assert found.margin == pytest.approx(
        teacher_information(proba) - float(loss_fn(torch.tensor(mean), proba)), abs=1e-5
    )
    diagnosis = diagnose(
        mean, np.ones_like(mean), teacher_proba=proba, witness=loss_fn, random_state=0
    )
    assert diagnosis.mean.margin == pytest.approx(found.margin, abs=1e-12)
    with pytest.raises(ValueError, match="teacher_proba must be given with witness"):
        diagnose(mean, witness=loss_fn)
    wrong = AlignmentLoss(simplex_vertices(3, 4), 1.0)
    for use in (
        lambda: certifier.set_params(witness=wrong).fit(blobs),
        lambda: diagnose(mean, teacher_proba=proba, witness=wrong),
    ):
        with pytest.raises(ValueError, match=r"vertices must have shape .* \(4, 4\)"):
            use()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_constant_mean_is_certified(blobs, scale):
    teacher = GMMTeacher(4, random_state=0).fit(blobs)
    loss_fn = AlignmentLoss.from_teacher(teacher, blobs, latent_dim=3, scale=scale)
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight)
    certifier = CollapseCertifier(
        FrozenEstimator(TrainedEncoder(constant)),
        teacher=FrozenEstimator(teacher),
        witness=loss_fn,
    ).fit(blobs)
    assert certifier.certify(blobs).verdict == "constant"


def test_a_vae_may_be_read_by_another_witness(blobs, fitted):
    """The witness has another scale: the parameter of the method counts."""
    vae = fitted.estimator_
    loss_fn = AlignmentLoss(vae.vertices_, 0.5 * vae.witness_scale_)
    certifier = CollapseCertifier(FrozenEstimator(vae), witness=loss_fn).fit(blobs)
    assert certifier.witness_scale_ == pytest.approx(0.5 * vae.witness_scale_)
    assert isinstance(vae, CertifiedVAE)


def test_the_guard_weighs_and_learns():
    guard = LagrangeWeight(0.5, information=1.0)
    assert repr(guard) == "LagrangeWeight(target_margin=0.5, information=1)"
    loss = torch.tensor(1.0, requires_grad=True)
    weights = []
    for _ in range(3):
        loss.grad = None
        weighted = guard(loss)
        weights.append(weighted.item())
        weighted.backward()
        assert loss.grad == weights[-1]  # the weight before the step, not after it
    assert weights[0] == 1
    assert weights[0] < weights[1] < weights[2]
    before = guard.eval().weight.clone()
    assert guard(loss) == before
    assert guard.weight == before


def test_the_guard_is_saved_with_a_model():
    guard, other = LagrangeWeight(0.5, 1.0), LagrangeWeight(0.5, 1.0)
    for loss in (2.0, 0.1):
        guard(torch.tensor(loss))
    other.load_state_dict(guard.state_dict())
    for each in (guard, other):
        each(torch.tensor(0.3))
    assert guard.weight == other.weight
    assert guard.average == other.average


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_guard_forgets_a_batch_that_broke_down(broken):
    """Mixed precision skips such steps and continues."""
    guard, twin = LagrangeWeight(0.5, 1.0), LagrangeWeight(0.5, 1.0)
    guard(torch.tensor(broken))
    assert guard.weight == 1
    for loss in (2.0, 0.1):
        guard(torch.tensor(loss))
        twin(torch.tensor(loss))
    before = guard.average.clone()
    guard(torch.tensor(broken))
    assert guard.average == before == twin.average
    assert guard.weight != 1
    assert guard.weight.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_guard_of_a_model_in_16_bits_rises_in_small_steps(dtype):
    model = nn.ModuleList([LagrangeWeight(0.5, 1.0), nn.Linear(1, 1)]).to(dtype)
    guard, twin = model[0], LagrangeWeight(0.5, 1.0)
    loss = torch.tensor(0.505, dtype=dtype)
    for _ in range(20):
        guard(loss)
        twin(loss.float())
    assert guard.weight == twin.weight > 1


def test_what_is_on_no_device_is_loaded_later(loss_fn, proba, mean):
    state = {name: value.clone() for name, value in loss_fn.state_dict().items()}
    before = loss_fn(torch.tensor(mean), proba)
    loss_fn.to("meta").half().to_empty(device="cpu").load_state_dict(state)
    assert loss_fn(torch.tensor(mean), proba) == before


@pytest.mark.parametrize(
    ("target", "information", "name"),
    [(0.0, 1.0, "target_margin"), (1.0, 1.0, "target_margin"), (0.5, 0.0, "inform")],
)
def test_the_guard_says_what_it_needs(target, information, name):
    with pytest.raises(ValueError, match=f"{name}.* must be a finite number"):
        LagrangeWeight(target, information)


@pytest.mark.slow
def test_a_collapsed_model_is_rescued_in_a_plain_loop(blobs):
    """The guard holds the margin near its target, where nothing else would."""
    torch.manual_seed(0)
    teacher = GMMTeacher(4, random_state=0).fit(blobs)
    proba = torch.tensor(teacher.predict_proba(blobs))
    loss_fn = AlignmentLoss.from_teacher(teacher, blobs, latent_dim=3)
    guard = LagrangeWeight(0.8, teacher_information(proba))
    x = torch.tensor(blobs, dtype=torch.float32)
    encoder = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)

    def margin():
        with torch.no_grad():
            return guard.information - loss_fn(encoder(x), proba).item()

    def train(loss):
        for _ in range(300):
            optimizer.zero_grad()
            loss(encoder(x)).backward()
            optimizer.step()

    train(lambda mean: 5 * mean.square().sum(1).mean())  # a KL term alone
    assert margin() < 0.01
    train(lambda mean: 5 * mean.square().sum(1).mean() + guard(loss_fn(mean, proba)))
    assert margin() == pytest.approx(0.8 * guard.information, rel=0.1)
