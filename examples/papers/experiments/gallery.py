"""A gallery of failures: what each says."""

import copy
import warnings

import numpy as np
import torch
from lab import certified
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
# A temperature at which posteriors are all but uniform.
HOT = 10_000.0
# About as many steps as elsewhere, on a hundred samples.
N_FEW, FEW = 100, {"batch_size": "auto", "max_epochs": 100}
N_TRIES = 1000
# Of a code of which one rounding of the mean is a large part.
NARROW = 1e-8


def cells(setting):
    """One cell a seed and model; a model may fail in several ways."""
    return [
        {"model": model, "seed": seed}
        for seed in range(min(MOST_SEEDS, setting.n_seeds))
        for model in MODELS
    ]


def compute(lab, model, seed):
    """Train a model, or fail to, and write down what is said of it."""
    told = {"data": lab.setting.data, "model": model, "seed": seed}
    records = MODELS[model](lab, lab.samples(seed), seed)
    return {"records": [told | record for record in records]}


def sound(lab, samples, seed):
    """Yield what an aligned model says, and copies of it that are broken."""
    certifier = certified(lab.vae(samples, KL_WEIGHT, seed), samples)
    yield told("nothing wrong", certifier.diagnose, samples.test)
    yield told("turned test images", certifier.diagnose, turned(samples.test, samples))
    silenced = without_mean(certifier)
    yield told("constant mean, varying deviations", silenced.diagnose, samples.test)
    yield from constants(certifier, samples.test)


def constants(certifier, test):
    """Yield what the constant of largest margin says, and its roundings."""
    proba = certifier.teacher_.predict_proba(test)
    witness = certifier.vertices_, certifier.witness_scale_
    best = analytic_code(proba.mean(axis=0, keepdims=True), *witness)
    codes = analytic_code(proba, *witness)
    mean = np.repeat(best, len(test), axis=0).astype(np.float32)
    # The last bit of each value, set as the teacher would have it.
    jitter = np.nextafter(mean, codes.astype(np.float32))
    options = {"teacher_proba": proba, "witness": AlignmentLoss(*witness)}
    options |= {"random_state": 0}
    yield told("the best constant", diagnose, mean, np.ones_like(mean), **options)
    narrow = np.full_like(mean, NARROW)
    yield told("the best constant, rounded", diagnose, jitter, narrow, **options)


def permuted(lab, samples, seed):
    """Yield what is said of a model that was trained on others' posteriors."""
    generator = check_random_state(seed)
    teacher = lab.teacher(seed).fit(samples.train)
    train, test = (teacher.predict_proba(x) for x in (samples.train, samples.test))
    wrong = generator.permutation(train), generator.permutation(test)
    vae = lab.vae(samples, KL_WEIGHT, seed)
    certifier = certified(vae, samples, teacher_proba=wrong[0])
    for case, x, proba in (
        ("permuted, on training samples", samples.train, wrong[0]),
        ("permuted, on test samples", samples.test, wrong[1]),
        ("permuted, against the true ones", samples.test, test),
    ):
        yield told(case, certifier.diagnose, x, teacher_proba=proba)


def uninformative(lab, samples, seed):
    """Yield what is said with a teacher that hardly tells samples apart, or not."""
    for case, options in (
        ("a nearly constant teacher", {"temperature": HOT}),
        ("a constant teacher", {"n_components": 1}),
    ):
        vae = lab.vae(samples, KL_WEIGHT, seed)
        # A teacher that is remembered warns no more.
        vae.set_params(memory=None).teacher.set_params(**options)
        yield told(case, diagnosed, vae, samples)


def few(lab, samples, seed):
    """Yield what is said of training samples and of others."""
    some = samples._replace(train=samples.train[:N_FEW])
    certifier = certified(lab.vae(some, KL_WEIGHT, seed, **FEW), some)
    yield told("100 samples, on themselves", certifier.diagnose, some.train)
    yield told("100 samples, on test samples", certifier.diagnose, samples.test)


def foreign(lab, samples, seed):
    """Yield what is said with teachers that were fitted on other data."""
    for case, others in (
        ("a teacher of turned images", turned(samples.train, samples)),
        ("a teacher of noise", noise(samples, seed)),
    ):
        vae = lab.vae(samples, KL_WEIGHT, seed)
        yield told(case, diagnosed, vae, samples, others)


def deaf(lab, samples, seed):
    """Yield what is said of a decoder that was trained without the code."""
    vae = lab.vae(samples, KL_WEIGHT, seed, decoder=Deaf)
    yield told("a deaf decoder", diagnosed, vae, samples)


def chance(lab, samples, seed):
    """Yield the largest margins of codes that nothing has aligned."""
    vae = lab.vae(samples, KL_WEIGHT, seed, aligned=False)
    certifier = certified(vae, samples)
    yield told("not aligned", certifier.diagnose, samples.test)
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
        yield {"case": case} | told_of_mean(best_of(codes, proba, *witness))


MODELS = {
    "aligned": sound,
    "permuted posteriors": permuted,
    "uninformative teachers": uninformative,
    "100 samples": few,
    "foreign teachers": foreign,
    "deaf decoder": deaf,
    "chance": chance,
}


def diagnosed(vae, samples, others=None):
    """Train on samples, with a teacher of other ones if there are some."""
    if others is not None:
        teacher = FrozenEstimator(clone(vae.teacher).fit(others))
        vae.set_params(teacher=teacher)
    return certified(vae, samples).diagnose(samples.test)


def told(case, work, *args, **options):
    """Return what is said when something is diagnosed, or refused."""
    record = {"case": case}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record |= told_of(work(*args, **options))
        except ValueError as error:
            record |= {"refusal": type(error).__name__, "says": str(error)}
    return record | {"warned": ", ".join(sorted({w.category.__name__ for w in caught}))}


def told_of(diagnosis):
    """Return what a diagnosis says."""
    bracket, decoder = diagnosis.information, diagnosis.decoder
    return told_of_mean(diagnosis.mean) | {
        "state": diagnosis.state,
        "low": bracket.low,
        "high": bracket.high,
        "decoder": None if decoder is None else decoder.high,
        "says": str(diagnosis),
    }


def told_of_mean(certificate):
    """Return what a certificate says."""
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
    """Draw a linear map, of a size that is drawn, too."""
    size = 10 ** generator.uniform(-3, 1)
    return size * generator.standard_normal((n_features, latent_dim)) / n_features**0.5


def turned(images, samples):
    """Return images turned by a quarter."""
    shaped = images.reshape(-1, *samples.image_shape)
    return np.rot90(shaped, axes=(2, 3)).reshape(len(images), -1)


def noise(samples, seed):
    """Return images of independent pixels, as many as there are for tests."""
    shape = samples.test.shape
    return check_random_state(seed).random_sample(shape).astype(np.float32)


def without_mean(certifier):
    """Return a copy whose mean is constant; the deviations stay."""
    certifier = copy.deepcopy(certifier)
    encoder = certifier.estimator_.net_.module_.encoder
    last = [part for part in encoder.modules() if isinstance(part, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight[: len(last.weight) // 2] = 0
    return certifier


class Deaf(torch.nn.Module):
    """A decoder of the same image for all codes."""

    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.image = torch.nn.Parameter(torch.zeros(n_features))

    def forward(self, codes):
        """Return that image."""
        return self.image.expand(len(codes), -1)
