"""Models that fail in known ways, and their diagnoses."""

import warnings

import numpy as np
import torch
from lab import certified, constant_copy
from scipy.linalg import orthogonal_procrustes
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from skvaecert import certify, diagnose
from skvaecert.metrics import collapse_margin
from skvaecert.objectives import AlignmentLoss
from skvaecert.simplex import analytic_code, witness_log_proba

KL_WEIGHT = "1"
MOST_SEEDS = 3
# At this temperature the teacher's posteriors are almost uniform.
HOT = 10_000.0
# With so many epochs, 100 samples get about as many steps as others get.
N_FEW, FEW = 100, {"batch_size": "auto", "max_epochs": 100}
N_TRIES = 1000
# At this posterior standard deviation, a rounding error of the mean is large.
NARROW = 1e-8


def cells(setting):
    """Return a cell for each seed and model; a model may be part of several cases."""
    return [
        {"model": model, "seed": seed}
        for seed in range(min(MOST_SEEDS, setting.n_seeds))
        for model in MODELS
    ]


def compute(lab, model, seed):
    """Train a model and return a record of each of its cases."""
    options = {"data": lab.setting.data, "model": model, "seed": seed}
    records = MODELS[model](lab, lab.samples(seed), seed)
    return {"records": [options | record for record in records]}


def sound(lab, samples, seed):
    """Yield an aligned model, on turned images and with constant means, too."""
    certifier = certified(lab.vae(samples, KL_WEIGHT, seed), samples)
    yield outcome("nothing wrong", certifier.diagnose, samples.test)
    yield outcome(
        "turned test images", certifier.diagnose, turned(samples.test, samples)
    )
    constant = constant_copy(certifier, mean_only=True)
    yield outcome("constant mean, varying deviations", constant.diagnose, samples.test)
    yield from constants(certifier, samples.test)


def constants(certifier, test):
    """Yield the constant mean of largest margin, exact and with rounding errors."""
    proba = certifier.teacher_.predict_proba(test)
    witness = certifier.vertices_, certifier.witness_scale_
    best = analytic_code(proba.mean(axis=0, keepdims=True), *witness)
    codes = analytic_code(proba, *witness)
    mean = np.repeat(best, len(test), axis=0).astype(np.float32)
    # The last bit of each value moves it towards the teacher's code.
    jitter = np.nextafter(mean, codes.astype(np.float32))
    options = {"teacher_proba": proba, "witness": AlignmentLoss(*witness)}
    options |= {"random_state": 0}
    yield outcome("the best constant", diagnose, mean, np.ones_like(mean), **options)
    narrow = np.full_like(mean, NARROW)
    yield outcome("the best constant, rounded", diagnose, jitter, narrow, **options)


def permuted(lab, samples, seed):
    """Yield a model that was trained on permuted posteriors of the teacher."""
    generator = check_random_state(seed)
    teacher = lab.teacher(seed).fit(samples.train)
    train, test = (teacher.predict_proba(x) for x in (samples.train, samples.test))
    shuffled = generator.permutation(train), generator.permutation(test)
    vae = lab.vae(samples, KL_WEIGHT, seed)
    certifier = certified(vae, samples, teacher_proba=shuffled[0])
    for case, x, proba in (
        ("permuted, on training samples", samples.train, shuffled[0]),
        ("permuted, on test samples", samples.test, shuffled[1]),
        ("permuted, against the true ones", samples.test, test),
    ):
        yield outcome(case, certifier.diagnose, x, teacher_proba=proba)


def uninformative(lab, samples, seed):
    """Yield models with a teacher that is nearly constant, or constant."""
    for case, options in (
        ("a nearly constant teacher", {"temperature": HOT}),
        ("a constant teacher", {"n_components": 1}),
    ):
        vae = lab.vae(samples, KL_WEIGHT, seed)
        # A teacher from the cache does not warn again.
        vae.set_params(memory=None).teacher.set_params(**options)
        yield outcome(case, diagnosed, vae, samples)


def few(lab, samples, seed):
    """Yield a model of few training samples, on them and on test samples."""
    fewer = samples._replace(train=samples.train[:N_FEW])
    certifier = certified(lab.vae(fewer, KL_WEIGHT, seed, **FEW), fewer)
    yield outcome("100 samples, on themselves", certifier.diagnose, fewer.train)
    yield outcome("100 samples, on test samples", certifier.diagnose, samples.test)


def foreign(lab, samples, seed):
    """Yield models with teachers that were fitted to other data."""
    for case, teacher_samples in (
        ("a teacher of turned images", turned(samples.train, samples)),
        ("a teacher of noise", noise(samples, seed)),
    ):
        vae = lab.vae(samples, KL_WEIGHT, seed)
        yield outcome(case, diagnosed, vae, samples, teacher_samples)


def deaf(lab, samples, seed):
    """Yield a model whose decoder ignores the code."""
    vae = lab.vae(samples, KL_WEIGHT, seed, decoder=Deaf)
    yield outcome("a deaf decoder", diagnosed, vae, samples)


def chance(lab, samples, seed):
    """Yield a model without alignment, and the largest margins of many codes."""
    vae = lab.vae(samples, KL_WEIGHT, seed, aligned=False)
    certifier = certified(vae, samples)
    yield outcome("not aligned", certifier.diagnose, samples.test)
    generator = check_random_state(seed)
    mean = certifier.transform(samples.test).astype(np.float64)
    pixels, dim = samples.test - samples.train.mean(axis=0), mean.shape[1]
    proba = certifier.teacher_.predict_proba(samples.test)
    code = analytic_code(proba, certifier.vertices_, certifier.witness_scale_)
    tries = range(N_TRIES)
    for case, codes in (
        (
            "not aligned, best of 1,000 rotations",
            (mean @ rotation(generator, dim) for _ in tries),
        ),
        (
            "not aligned, rotated onto the teacher's code",
            [mean @ orthogonal_procrustes(mean, code)[0]],
        ),
        (
            "best of 1,000 linear maps",
            (pixels @ linear(generator, pixels.shape[1], dim) for _ in tries),
        ),
    ):
        witness = certifier.vertices_, certifier.witness_scale_
        yield {"case": case} | certificate_record(best_of(codes, proba, *witness))


MODELS = {
    "aligned": sound,
    "permuted posteriors": permuted,
    "uninformative teachers": uninformative,
    "100 samples": few,
    "foreign teachers": foreign,
    "deaf decoder": deaf,
    "chance": chance,
}


def diagnosed(vae, samples, teacher_samples=None):
    """Train and diagnose, with a teacher that was fitted to other samples if given."""
    if teacher_samples is not None:
        teacher = FrozenEstimator(clone(vae.teacher).fit(teacher_samples))
        vae.set_params(teacher=teacher)
    return certified(vae, samples).diagnose(samples.test)


def outcome(case, diagnose, *args, **options):
    """Return a record of a diagnosis, or of the error that is raised instead."""
    record = {"case": case}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record |= diagnosis_record(diagnose(*args, **options))
        except ValueError as error:
            record |= {"refusal": type(error).__name__, "says": str(error)}
    return record | {"warned": ", ".join(sorted({w.category.__name__ for w in caught}))}


def diagnosis_record(diagnosis):
    """Return values and text of a diagnosis."""
    bracket, decoder = diagnosis.information, diagnosis.decoder
    return certificate_record(diagnosis.mean) | {
        "state": diagnosis.state,
        "low": bracket.low,
        "high": bracket.high,
        "decoder": None if decoder is None else decoder.high,
        "says": str(diagnosis),
    }


def certificate_record(certificate):
    """Return values and text of a certificate."""
    return {
        "verdict": certificate.verdict,
        "reason": certificate.reason,
        "margin": certificate.margin,
        "information": certificate.teacher_information,
        "says": str(certificate),
    }


def best_of(codes, proba, vertices, scale):
    """Return the certificate of the code of largest margin."""
    best = max(
        codes,
        key=lambda c: collapse_margin(proba, witness_log_proba(c, vertices, scale)),
    )
    return certify(proba, best, vertices, scale)


def rotation(generator, dim):
    """Draw an orthogonal matrix."""
    return np.linalg.qr(generator.standard_normal((dim, dim)))[0]


def linear(generator, n_features, latent_dim):
    """Draw a linear map and its size."""
    size = 10 ** generator.uniform(-3, 1)
    return size * generator.standard_normal((n_features, latent_dim)) / n_features**0.5


def turned(images, samples):
    """Return images turned by 90 degrees."""
    shaped = images.reshape(-1, *samples.image_shape)
    return np.rot90(shaped, axes=(2, 3)).reshape(len(images), -1)


def noise(samples, seed):
    """Return images of independent pixels, as many as test samples."""
    shape = samples.test.shape
    return check_random_state(seed).random_sample(shape).astype(np.float32)


class Deaf(torch.nn.Module):
    """A decoder that returns the same image for all codes."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.image = torch.nn.Parameter(torch.zeros(n_features))

    def forward(self, codes):
        """Return the image for each code."""
        return self.image.expand(len(codes), -1)
