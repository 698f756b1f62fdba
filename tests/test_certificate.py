"""Attempts to break the certificate, and twins that are certified rightly."""

import dataclasses
import json
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from skvaecert import Certificate, certify, certify_batches
from skvaecert._certificate.rounding import noise_margin
from skvaecert._certificate.sums import MeanSums
from skvaecert.metrics import (
    SpreadSums,
    collapse_margin,
    escape_force,
    escape_force_rms,
)
from skvaecert.simplex import (
    analytic_code,
    prior_matched_scale,
    simplex_vertices,
    witness_log_proba,
)
from skvaecert.witnesses import LinearWitness, simplex_witness

# What no constant encoder may get.
SHOWN = "certified", "varies"


def teacher(n_samples, n_components, sharpness, seed, *, ordered=False):
    """Posteriors from near uniform to near one-hot; `ordered` sorts the samples."""
    logits = np.random.default_rng(seed).normal(size=(n_samples, n_components))
    proba = 0.999 * softmax(sharpness * logits, axis=1) + 0.001 / n_components
    return proba[np.lexsort(proba.T)] if ordered else proba


def exact_margin(proba, mean, vertices, scale, weight):
    """The margin in 60 digits, from the same float64 values."""
    with mpmath.workdps(60):
        T = [[mpmath.mpf(float(t)) for t in row] for row in proba]
        T = [[t / mpmath.fsum(row) for t in row] for row in T]
        p = [mpmath.mpf(float(w)) for w in weight]
        p = [w / mpmath.fsum(p) for w in p]
        average = [mpmath.fdot(p, column) for column in zip(*T, strict=True)]
        total = mpmath.mpf(0)
        for row, code, share in zip(T, mean, p, strict=True):
            logits = [
                mpmath.mpf(scale) * mpmath.fdot(map(float, code), map(float, vertex))
                for vertex in vertices
            ]
            normalizer = mpmath.log(mpmath.fsum(map(mpmath.exp, logits)))
            for t, logit, a in zip(row, logits, average, strict=True):
                total += share * t * (logit - normalizer - mpmath.log(a))
        return total


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize(("n", "K"), [(1, 2), (50, 3), (30, 40)])
def test_summation_error_covers_the_true_error(n, K, size, sharpness):
    rng = np.random.default_rng(n + K)
    proba, scale = teacher(n, K, sharpness, seed=n), 2.3
    vertices = simplex_vertices(K, K + 1)
    mean = size * rng.normal(size=(n, K + 1))
    weight = rng.uniform(size=n)
    log_q = witness_log_proba(mean, vertices, scale)
    exact = exact_margin(proba, mean, vertices, scale, weight)
    error = abs(float(exact - collapse_margin(proba, log_q, weight)))
    witness = simplex_witness(vertices, scale)
    sums = MeanSums(witness).update(proba, mean, weight)
    bound = sums.summation_error
    assert error <= bound
    # The twin: the bound is of the order of rounding, not a blanket refusal.
    assert bound < 1e-10 * (1 + scale * np.abs(mean).max())


sharpnesses = st.sampled_from([1e-6, 1e-2, 1.0, 10.0, 1e3])


@pytest.mark.slow
@settings(max_examples=200)
@given(
    K=st.integers(2, 200),
    n=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    sharpness=sharpnesses,
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_no_constant_code_is_certified(K, n, seed, sharpness, size, dtype):
    proba = teacher(n, K, sharpness, seed)
    vertices, scale = simplex_vertices(K, K), prior_matched_scale(proba)
    code = (size * np.random.default_rng(seed).normal(size=K)).astype(dtype)
    certificate = certify(proba, np.tile(code, (n, 1)), vertices, scale)
    assert certificate.verdict not in SHOWN
    if certificate.teacher_information > 1e-10:
        assert certificate.verdict == "constant"
    assert certificate.margin <= certificate.tolerance
    assert certificate.dispersion_bound == 0


@pytest.mark.slow
@settings(max_examples=200)
@given(
    K=st.integers(2, 200),
    n=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    sharpness=sharpnesses,
    dtype=st.sampled_from([np.float32, np.float64]),
    units=st.floats(0, 4),
)
def test_rounding_around_the_best_constant_code_is_not_certified(
    K, n, seed, sharpness, dtype, units
):
    """The hardest case: margin exactly 0, and noise that points where it helps most."""
    proba = teacher(n, K, sharpness, seed)
    vertices, scale = simplex_vertices(K, K), prior_matched_scale(proba)
    code = analytic_code([proba.mean(axis=0)], vertices, scale).repeat(n, axis=0)
    direction = np.sign(escape_force(proba, code, vertices, scale))
    noise = units * np.finfo(dtype).eps * np.maximum(1, np.abs(code)) * direction
    certificate = certify(proba, (code + noise).astype(dtype), vertices, scale)
    assert certificate.verdict not in SHOWN


@pytest.mark.slow
def test_the_naive_margin_certifies_constant_encoders():
    """The twin: without a tolerance, float32 rounding wins."""

    def is_faked(seed):
        proba = teacher(20_000, 100, 1.0, seed).astype(np.float32)
        log_q = np.log(proba.mean(axis=0))
        loss = (proba * (np.log(proba) - log_q)).sum(axis=1).mean()
        information = (proba * (np.log(proba) - np.log(proba.mean(axis=0)))).sum()
        return information / len(proba) - loss > 0

    assert any(is_faked(seed) for seed in range(20))


@pytest.mark.slow
@settings(max_examples=100)
@given(
    K=st.integers(2, 30),
    seed=st.integers(0, 2**32 - 1),
    sharpness=st.sampled_from([0.1, 1.0, 10.0]),
    noise=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0]),
)
def test_noise_margin_bounds_what_noise_can_fake(K, seed, sharpness, noise):
    proba = teacher(60, K, sharpness, seed)
    vertices, scale = simplex_vertices(K, K), prior_matched_scale(proba)
    rng = np.random.default_rng(seed)
    best = analytic_code([proba.mean(axis=0)], vertices, scale)
    for code in (best, best + rng.normal(size=(1, K))):
        constant = code.repeat(60, axis=0)
        delta = escape_force(proba, constant, vertices, scale)
        delta *= noise / np.sqrt((delta**2).sum(axis=1).mean())
        log_q = witness_log_proba(constant + delta, vertices, scale)
        force = escape_force_rms(proba, scale)
        bound = noise_margin(noise, force, simplex_witness(vertices, scale))
        assert collapse_margin(proba, log_q) <= bound + 1e-13


def test_noise_margin_is_nearly_reached():
    proba = teacher(60, 5, 1.0, seed=0)
    vertices, scale = simplex_vertices(5, 4), prior_matched_scale(proba)
    constant = analytic_code([proba.mean(axis=0)], vertices, scale).repeat(60, axis=0)
    delta = escape_force(proba, constant, vertices, scale)
    force = escape_force_rms(proba, scale)
    log_q = witness_log_proba(constant + 1e-3 / force * delta, vertices, scale)
    bound = noise_margin(1e-3, force, simplex_witness(vertices, scale))
    assert collapse_margin(proba, log_q) > 0.99 * bound


@pytest.mark.slow
@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    sharpness=st.sampled_from([0.1, 1.0, 10.0]),
    noise=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
)
def test_noise_margin_of_a_witness_of_too_few_dimensions(seed, sharpness, noise):
    """No code reads the mean teacher: noise can do more than the force says."""
    proba, rng = teacher(60, 6, sharpness, seed), np.random.default_rng(seed)
    witness = LinearWitness(rng.normal(size=(6, 2)), rng.normal(size=6), "linear")
    assert not witness.reads_all
    force = SpreadSums().update(proba @ witness.weights).dispersion
    bound = noise_margin(noise, force, witness)
    for _ in range(5):
        code = rng.normal(size=2)
        delta = (proba - softmax(witness.logits([code]))) @ witness.weights
        delta *= noise / np.sqrt((delta**2).sum(axis=1).mean())
        margin = collapse_margin(proba, witness.log_proba(code + delta))
        assert margin <= bound + 1e-13


def constant_network(code, dtype):
    """A deep network whose first layer is dead and whose output is `code`."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 300), torch.nn.SiLU(), torch.nn.Linear(300, 300)]
    net = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(300, len(code)))
    net = net.to(dtype)
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.normal_(std=3)
        net[4].bias += (
            torch.as_tensor(code, dtype=dtype) - net(torch.zeros(1, 64, dtype=dtype))[0]
        )
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("best", [True, False])
def test_no_constant_network_is_certified(dtype, batch_size, best):
    n, K = 1003, 10
    proba = teacher(n, K, 5.0, seed=1, ordered=True)
    vertices, scale = simplex_vertices(K, 16), prior_matched_scale(proba)
    code = np.zeros(16)
    if best:
        code = analytic_code([proba.mean(axis=0)], vertices, scale)[0]
    net = constant_network(code, dtype)
    samples = torch.randn(n, 64, dtype=dtype)
    with torch.inference_mode():
        mean = torch.cat([net(batch) for batch in samples.split(batch_size)]).numpy()
    for means in (mean, mean.astype(np.float64)):
        certificate = certify(proba, means, vertices, scale)
        assert certificate.verdict not in SHOWN
        assert certificate.margin <= certificate.tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_little_variation_is_certified(dtype):
    """The twin: codes that leave the constant one by a thousandth are certified."""
    proba = teacher(200, 5, 2.0, seed=0)
    vertices, scale = simplex_vertices(5, 4), prior_matched_scale(proba)
    best = analytic_code([proba.mean(axis=0)], vertices, scale)
    mean = best + 1e-3 * (analytic_code(proba, vertices, scale) - best)
    certificate = certify(proba, mean.astype(dtype), vertices, scale)
    assert certificate.verdict == "certified"
    assert 0 < certificate.dispersion_bound <= certificate.dispersion


@pytest.mark.parametrize("digits", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_of_16_bits_is_not_certified_in_another_dtype(digits, dtype):
    """Means of mixed precision are converted to float32 with their errors."""
    for seed in range(20):
        proba = teacher(100, 10, 3.0, seed)
        vertices, scale = simplex_vertices(10, 12), prior_matched_scale(proba)
        code = analytic_code([proba.mean(axis=0)], vertices, scale).repeat(100, axis=0)
        direction = np.sign(escape_force(proba, code, vertices, scale))
        noise = 2.0 ** (-10 if digits == "float16" else -7) * direction
        mean = torch.as_tensor(code + noise).to(getattr(torch, digits))
        certificate = certify(
            proba, mean.double().numpy().astype(dtype), vertices, scale
        )
        assert certificate.verdict not in SHOWN
        assert certificate.margin > 0


def test_a_float32_network_behind_float64_arithmetic_is_not_certified():
    """Nothing in the values shows that they came from float32."""
    proba = teacher(1003, 10, 5.0, seed=1, ordered=True)
    vertices, scale = simplex_vertices(10, 16), prior_matched_scale(proba)
    best = analytic_code([proba.mean(axis=0)], vertices, scale)[0]
    net = constant_network(7 * best + 3, torch.float32)
    with torch.inference_mode():
        samples = torch.randn(1003, 64).split(100)
        mean = torch.cat([net(batch) for batch in samples]).double().numpy()
    certificate = certify(proba, (mean - 3) / 7, vertices, scale)
    assert certificate.verdict not in SHOWN


def test_codes_of_few_digits_can_still_be_certified():
    proba = teacher(200, 5, 10.0, seed=0)
    vertices, scale = simplex_vertices(5, 4), prior_matched_scale(proba)
    code = analytic_code(proba, vertices, scale).round(1).astype(np.float16)
    assert certify(proba, code, vertices, scale).verdict == "certified"
    one_hot = np.eye(5)[proba.argmax(axis=1)]
    vertices = simplex_vertices(5, 5)
    rotation = np.linalg.lstsq(np.eye(5) - 0.2, vertices, rcond=None)[0]
    assert certify(proba, one_hot @ rotation, vertices, scale).verdict == "certified"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_small_codes_are_not_called_constant(dtype):
    """Small codes may vary or not: rounding is relative."""
    proba = teacher(50, 3, 2.0, seed=0)
    code = analytic_code(proba, simplex_vertices(3, 2), 1.0)
    tiny = (1e-3 if dtype == np.float16 else 1e-20) * code
    certificate = certify(proba, tiny.astype(dtype), simplex_vertices(3, 2), 1.0)
    assert certificate.verdict == "inconclusive"


def test_16_bits_are_seen_in_each_coordinate():
    """One free coordinate in float32 does not hide the others' rounding."""
    proba = teacher(100, 5, 3.0, seed=0)
    vertices, scale = simplex_vertices(5, 5), prior_matched_scale(proba)
    code = analytic_code([proba.mean(axis=0)], vertices, scale).repeat(100, axis=0)
    noise = 2.0**-7 * np.sign(escape_force(proba, code, vertices, scale))
    mean = torch.as_tensor(code + noise).bfloat16().double().numpy()
    assert certify(proba, mean, vertices, scale).verdict not in SHOWN
    mean[:, 4] = np.linspace(0, 0.1, 100)
    assert certify(proba, mean, vertices, scale).verdict != "certified"


def test_samples_of_no_weight_do_not_make_the_others_constant():
    mean = np.array([[0.25], [-0.25], [1e9]], dtype=np.float32)
    proba, weight = [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]], [1, 1, 0]
    certificate = certify(proba, mean, simplex_vertices(2, 1), 1, sample_weight=weight)
    assert certificate.verdict == "varies"


def test_one_component_is_refused_by_name():
    with pytest.raises(ValueError, match="teacher_proba must have at least 2 columns"):
        certify(np.ones((3, 1)), np.ones((3, 1)), [[1.0]], 1.0)


def test_a_large_constant_coordinate_hides_no_variation():
    proba = teacher(50, 3, 2.0, seed=0)
    code = np.c_[np.full(50, 1e6), np.linspace(0, 0.1, 50)]
    certificate = certify(proba, code, simplex_vertices(3, 2), 1.0)
    assert certificate.verdict == "varies"


def test_safety_margin_is_respected():
    proba = teacher(50, 3, 2.0, seed=0)
    vertices, scale = simplex_vertices(3, 2), prior_matched_scale(proba)
    mean = analytic_code(proba, vertices, scale)
    certificate = certify(proba, mean, vertices, scale)
    most = certificate.margin - certificate.tolerance
    asked = {"safety_margin": most * (1 - 1e-9)}
    assert certify(proba, mean, vertices, scale, **asked).verdict == "certified"
    asked = {"safety_margin": most * (1 + 1e-9)}
    certificate = certify(proba, mean, vertices, scale, **asked)
    assert (certificate.verdict, certificate.reason) == ("varies", "safety margin")


def test_known_noise_is_compared_with_the_margin():
    proba = teacher(50, 3, 2.0, seed=0)
    vertices, scale = simplex_vertices(3, 2), prior_matched_scale(proba)
    mean = analytic_code(proba, vertices, scale)
    noisy = certify(proba, mean, vertices, scale, latent_noise=10.0)
    assert (noisy.verdict, noisy.reason) == ("inconclusive", "noise")
    assert "The encoder is not exact enough" in str(noisy)
    decoded = dataclasses.replace(noisy, kind="round_trip", tolerance=0.3)
    assert "may change what the teacher reads by 0.3 nats" in str(decoded)
    assert "no code can have a greater margin" not in str(noisy)


def test_one_sample_is_never_certified():
    proba = teacher(1, 3, 2.0, seed=0)
    vertices, scale = simplex_vertices(3, 2), prior_matched_scale(proba)
    certificate = certify(proba, analytic_code(proba, vertices, scale), vertices, scale)
    assert certificate.teacher_information == 0
    assert certificate.verdict == "inconclusive"
    assert "single sample" in str(certificate)
    assert math.isnan(certificate.relative_margin)


def test_a_constant_teacher_never_certifies():
    proba = np.tile([[0.7, 0.2, 0.1]], (20, 1))
    mean = np.random.default_rng(0).normal(size=(20, 2))
    certificate = certify(proba, mean, simplex_vertices(3, 2), 1.0)
    assert (certificate.verdict, certificate.reason) == ("varies", "teacher")
    assert "no code can have a greater margin" in str(certificate)


def test_free_dimensions_alone_vary():
    """A code that varies where the witness does not look."""
    proba = teacher(50, 3, 2.0, seed=0)
    mean = np.zeros((50, 4))
    mean[:, 3] = np.random.default_rng(0).normal(size=50)
    certificate = certify(proba, mean, simplex_vertices(3, 4), 1.0)
    assert (certificate.verdict, certificate.reason) == ("varies", "witness")
    assert "does not prove collapse" in str(certificate)
    assert certificate.dispersion > certificate.latent_noise


def test_weights_count_as_repetitions():
    proba = teacher(30, 3, 2.0, seed=0)
    vertices, scale = simplex_vertices(3, 2), prior_matched_scale(proba)
    mean = 0.5 * analytic_code(proba, vertices, scale)
    times = np.random.default_rng(0).integers(1, 4, size=30)
    weighted = certify(proba, mean, vertices, scale, sample_weight=times)
    repeated = certify(proba.repeat(times, 0), mean.repeat(times, 0), vertices, scale)
    for field in ("margin", "teacher_information", "alignment_loss", "dispersion"):
        assert getattr(weighted, field) == pytest.approx(getattr(repeated, field))


@pytest.fixture
def certificates():
    proba = teacher(60, 4, 3.0, seed=0)
    vertices, scale = simplex_vertices(4, 3), prior_matched_scale(proba)
    code = analytic_code(proba, vertices, scale)
    means = {
        "certified": code,
        "varies": 1e-3 * -code,
        "inconclusive": 1e-7 * code,
        "constant": 0 * code,
    }
    return {name: certify(proba, m, vertices, scale) for name, m in means.items()}


def test_sentences(certificates):
    assert {name: c.verdict for name, c in certificates.items()} == {
        name: name for name in certificates
    }
    sentences = {name: str(certificate) for name, certificate in certificates.items()}
    assert sentences["certified"].startswith(
        "Certified: on these 60 samples the encoder mean is not constant, and the "
        "witness reads the teacher's clusters off it: margin "
    )
    assert "(100 %)" in sentences["certified"]
    assert (
        "is not constant. The means' distance from their average" in sentences["varies"]
    )
    assert (
        "The witness does not read the teacher's clusters off it" in sentences["varies"]
    )
    assert "not shown that the means vary, nor" in sentences["inconclusive"]
    assert "equal to within rounding" in sentences["constant"]


def test_a_certificate_is_neither_true_nor_false(certificates):
    for name, certificate in certificates.items():
        assert certificate.certified == (name == "certified")
        with pytest.raises(TypeError, match=r"certificate\.certified"):
            bool(certificate)


def test_html_shows_sentence_and_numbers(certificates):
    html = certificates["certified"]._repr_html_()
    assert "not constant" in html
    assert "teacher information" in html
    assert "&#x27;" in html  # escaped


def test_json_is_standard(certificates):
    read = json.loads(certificates["certified"].to_json())
    assert read == certificates["certified"].to_dict()
    single = certify([[0.5, 0.5]], [[1.0]], simplex_vertices(2, 1), 1.0)
    assert json.loads(single.to_json())["relative_margin"] is None


def test_certificates_are_frozen_and_pickle(certificates):
    certificate = certificates["certified"]
    assert pickle.loads(pickle.dumps(certificate)) == certificate
    with pytest.raises(AttributeError):
        certificate.verdict = "constant"
    assert isinstance(certificate, Certificate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_mean": [[np.nan]] * 2}, "latent_mean must be finite"),
        ({"latent_mean": [[np.inf]] * 2}, "largest magnitude of inf"),
        ({"latent_mean": [[1e200]] * 2}, "below 1e150"),
        ({"latent_mean": [0.0, 1.0]}, r"latent_mean must .* got shape \(2,\)"),
        ({"latent_mean": [[0.0]] * 3}, "each of the 3 samples, got 2"),
        ({"safety_margin": -1}, "safety_margin must .* at least 0, got -1"),
        ({"latent_noise": np.nan}, "latent_noise must .* got nan"),
        ({"sample_weight": [1, -1]}, "sample_weight must be"),
        (
            {"scale": -1.0},
            "scale must be a finite number above 1e-150 and below 1e.150, got -1.0",
        ),
        (
            {"scale": np.nan},
            "scale must be a finite number above 1e-150 and below 1e.150, got nan",
        ),
        ({"vertices": [[1.0], [1.0], [0.0]]}, r"vertices must have shape .* \(2, 1\)"),
        ({"vertices": [[1000.0], [-1000.0]]}, "regular simplex of radius 1"),
    ],
)
def test_bad_input(changes, message):
    arguments = {
        "teacher_proba": [[0.9, 0.1], [0.1, 0.9]],
        "latent_mean": [[0.0], [1.0]],
        "vertices": simplex_vertices(2, 1),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        certify(**arguments | changes)


def test_integer_means_are_taken_as_floats():
    certificate = certify([[0.9, 0.1], [0.1, 0.9]], [[1], [-1]], [[1.0], [-1.0]], 1.0)
    assert certificate.verdict == "certified"


def test_rotated_vertices_serve_as_well():
    proba = teacher(50, 4, 2.0, seed=0)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    vertices = simplex_vertices(4, 5) @ rotation
    certificate = certify(proba, analytic_code(proba, vertices, 2.0), vertices, 2.0)
    assert certificate.relative_margin == pytest.approx(1)


def test_margin_of_a_witness_in_log_space_stays_finite():
    log_q = log_softmax(np.array([[800.0, 0.0]]), axis=1)
    assert np.isfinite(collapse_margin([[0.5, 0.5]], log_q))


@pytest.mark.slow
def test_batches_are_certified_as_one():
    proba = teacher(1000, 5, 3.0, seed=0)
    vertices, scale = simplex_vertices(5, 6), prior_matched_scale(proba)
    mean = analytic_code(proba, vertices, scale).astype(np.float32)
    weight = np.random.default_rng(0).uniform(size=1000)
    whole = certify(proba, mean, vertices, scale, sample_weight=weight)
    for size in (1, 7, 300):
        cuts = range(size, 1000, size)
        pieces = (np.split(array, cuts) for array in (proba, mean, weight))
        parts = certify_batches(zip(*pieces, strict=True), vertices, scale)
        assert parts.verdict == whole.verdict == "certified"
        assert parts.n_samples == whole.n_samples
        assert parts.margin == pytest.approx(whole.margin, abs=whole.tolerance)
        assert parts.tolerance == pytest.approx(whole.tolerance, rel=1e-6)
        assert parts.dispersion == pytest.approx(whole.dispersion, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 64, 65, 1000])
def test_no_constant_code_in_batches_is_certified(size, dtype):
    proba = teacher(1000, 4, 3.0, seed=0, ordered=True)
    vertices, scale = simplex_vertices(4, 4), prior_matched_scale(proba)
    best = analytic_code([proba.mean(axis=0)], vertices, scale).astype(dtype)
    noise = np.finfo(dtype).eps * np.random.default_rng(0).choice([-1, 1], (1000, 4))
    mean = (best * (1 + noise)).astype(dtype)
    batches = ((proba[i : i + size], mean[i : i + size]) for i in range(0, 1000, size))
    certificate = certify_batches(batches, vertices, scale)
    # Rounding to 16 bits looks like variation, but too little to prove anything.
    expected = "inconclusive" if dtype == np.float16 else "constant"
    assert certificate.verdict == expected


def test_no_batches_at_all():
    with pytest.raises(ValueError, match="sum above 0, got 0"):
        certify_batches([], simplex_vertices(2, 1), 1.0)
