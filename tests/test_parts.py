"""Certificates made in parts, of samples on several machines or on disk."""

import copy
import pickle
from dataclasses import replace
from functools import partial, reduce

import dask.array
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher, certify
from skvaecert._certificate.sums import MeanSums, RoundTripSums, SampledSums
from skvaecert._certifier.encoded import EncodedSamples
from skvaecert._certifier.kinds import MeanKind
from skvaecert._certifier.weights import digest_weights
from skvaecert.exceptions import KnownSamplesWarning, UnstableEncoderWarning
from skvaecert.metrics import MarginSums, SpreadSums
from skvaecert.persistence import load, save
from skvaecert.simplex import analytic_code, prior_matched_scale, simplex_vertices
from skvaecert.witnesses import simplex_witness
from skvaecert.wrappers import TrainedEncoder

KINDS = ["mean", "sampled", "round_trip"]


@pytest.fixture(scope="module")
def samples():
    """Training samples and others, from four clusters in order."""
    rng = np.random.default_rng(0)
    centers = 4 * rng.normal(size=(4, 6))
    fit = centers[rng.integers(4, size=300)] + rng.normal(size=(300, 6))
    return fit, np.repeat(centers, 80, axis=0) + rng.normal(size=(320, 6))


@pytest.fixture(scope="module")
def certifier(samples):
    vae = CertifiedVAE(
        GMMTeacher(n_components=4),
        latent_dim=4,
        hidden_sizes=(32,),
        max_epochs=40,
        learning_rate=1e-2,
        device="cpu",
        random_state=0,
    )
    return CollapseCertifier(vae, random_state=0).fit(samples[0])


def parts_of(certifier, X, sizes, **options):
    cuts = np.split(X, np.cumsum(sizes)[:-1])
    return [
        certifier.partial_certificate(piece, part, **options)
        for part, piece in enumerate(cuts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_the_whole_in_any_order(certifier, samples, kind):
    whole = certifier.certify(samples[1], kind=kind)
    parts = parts_of(certifier, samples[1], [1, 99, 100, 120], kind=kind)
    orders = [parts, parts[::-1], [parts[2], parts[0].merge(parts[3]), parts[1]]]
    merged = [reduce(lambda a, b: a.merge(b), order) for order in orders]
    certificates = [part.certificate() for part in merged]
    for certificate in certificates:
        assert certificate.verdict == whole.verdict == "certified"
        assert certificate.n_samples == whole.n_samples == 320
        exact = pytest.approx(whole.teacher_information, abs=1e-12)
        assert certificate.teacher_information == exact
        assert certificate.dispersion == pytest.approx(whole.dispersion, rel=1e-6)
        assert certificate.margin == pytest.approx(certificates[0].margin, abs=1e-12)
    if kind != "mean":  # other draws
        assert certificates[0].margin != whole.margin
        assert whole.margin_low < certificates[0].margin < whole.margin_high
    else:
        far = whole.tolerance
        assert certificates[0].margin == pytest.approx(whole.margin, abs=far)
    if kind != "sampled":
        # That of round trips is four times the shift that rounding made when it was
        # tried, on other samples and with other signs in each part. Four times, so that
        # it covers any other trial: each tolerance is above the other's shift.
        ratio = certificates[0].tolerance / whole.tolerance
        low, high = (1 / 4, 4) if kind == "round_trip" else (0.999, 1.001)
        assert low < ratio < high


@pytest.mark.slow
def test_weights_count_across_parts(certifier, samples):
    weight = np.random.default_rng(0).uniform(size=320)
    whole = certifier.certify(samples[1], sample_weight=weight)
    first, second = (
        certifier.partial_certificate(samples[1][at], part, sample_weight=weight[at])
        for part, at in enumerate((slice(0, 90), slice(90, None)))
    )
    assert first.merge(second).certificate().margin == pytest.approx(whole.margin)
    assert whole.margin != pytest.approx(certifier.score(samples[1]), abs=1e-4)


def test_a_part_can_be_sent(certifier, samples):
    """It contains sums and codes, but no samples, no encoder and no teacher."""
    few, many = (
        certifier.partial_certificate(samples[1][:n], 0, kind="sampled")
        for n in (10, 320)
    )
    sent = pickle.dumps(many)
    codes = 310 * 4 * 2 * 8
    assert len(sent) - len(pickle.dumps(few)) < codes + 10_000
    assert len(sent) < 150_000
    assert pickle.loads(sent).certificate() == many.certificate()
    assert repr(many) == "<PartialCertificate of 320 samples in 1 part(s)>"


def test_copies_of_a_certifier_make_parts_of_one_certificate(
    certifier, samples, tmp_path
):
    copies = certifier, pickle.loads(pickle.dumps(certifier)), copy.deepcopy(certifier)
    parts = [
        one.partial_certificate(piece, part)
        for part, (one, piece) in enumerate(
            zip(copies, np.array_split(samples[1], 3), strict=True)
        )
    ]
    whole = certifier.certify(samples[1])
    merged = parts[0].merge(*parts[1:]).certificate()
    assert merged.margin == pytest.approx(whole.margin, abs=1e-12)
    # So do those that two machines load from one file.
    save(certifier, tmp_path / "c.skvaecert")
    here, there = (
        load(tmp_path / "c.skvaecert").partial_certificate(piece, part)
        for part, piece in enumerate(np.array_split(samples[1], 2))
    )
    assert here.merge(there).certificate().verdict == "certified"
    with pytest.raises(ValueError, match="one fitted certifier"):
        parts[0].merge(there)


def test_two_collapsed_encoders_do_not_make_one_that_is_not(samples):
    """Their codes differ, but each is the same for all samples."""
    teacher = FrozenEstimator(
        GMMTeacher(n_components=4, random_state=0).fit(samples[0])
    )

    def constant(code):
        encoder = FunctionTransformer(lambda X: np.tile(code, (len(X), 1)))
        return CollapseCertifier(encoder, teacher=teacher).fit(samples[0])

    codes = analytic_code(
        teacher.predict_proba(samples[1][[0, -1]]), simplex_vertices(4, 3), 2.0
    )
    certifiers = [constant(code) for code in codes]
    ends = samples[1][:80], samples[1][-80:]
    first, last = (
        one.partial_certificate(piece, part)
        for part, (one, piece) in enumerate(zip(certifiers, ends, strict=True))
    )
    assert first.certificate().verdict != "certified"
    with pytest.raises(ValueError, match="Do not fit it on each"):
        first.merge(last)
    # What the error prevents.
    forged = first.merge(replace(last, origin=first.origin))
    assert forged.certificate().verdict == "certified"


def test_samples_do_not_count_twice(certifier, samples):
    first, second = parts_of(certifier, samples[1], [100, 220])
    whole = first.merge(second)
    assert whole.parts == {0, 1}
    assert whole.n_samples == 320
    for again in (first, second, whole):
        with pytest.raises(ValueError, match="count twice"):
            whole.merge(again)
    # Nothing of this has changed those that were given.
    assert (first.parts, first.n_samples) == ({0}, 100)
    assert (
        first.certificate()
        == parts_of(certifier, samples[1], [100, 220])[0].certificate()
    )


def test_parts_of_different_questions_are_not_merged(certifier, samples):
    def part(number, **options):
        return certifier.partial_certificate(samples[1][:50], number, **options)

    with pytest.raises(ValueError, match="same kind"):
        part(0).merge(part(1, kind="round_trip"))
    with pytest.raises(ValueError, match="same confidence"):
        part(0, kind="sampled").merge(part(1, kind="sampled", confidence=0.9))
    with pytest.raises(ValueError, match="same n_draws"):
        part(0, kind="sampled").merge(part(1, kind="sampled", n_draws=4))
    careful = copy.deepcopy(certifier).set_params(safety_margin=0.5)
    with pytest.raises(ValueError, match="safety_margin"):
        part(0).merge(careful.partial_certificate(samples[1][:50], 1))
    # A generator gives another seed to each part: shared draws would not be shared.
    loose = copy.deepcopy(certifier).set_params(random_state=np.random.RandomState(0))
    one, other = parts_of(loose, samples[1], [100, 220], kind="sampled")
    with pytest.raises(ValueError, match="an int as random_state"):
        one.merge(other)


def test_the_shared_draws_are_the_same_in_all_parts_and_the_others_not(
    certifier, samples
):
    same = samples[1][:50]
    first, again, other = (
        certifier.partial_certificate(same, part, kind="sampled").certificate()
        for part in (0, 0, 1)
    )
    assert first == again
    assert first.margin != other.margin


@pytest.mark.parametrize("part", [-1, 0.5, "0", None])
def test_a_part_has_a_number(certifier, samples, part):
    with pytest.raises(ValueError, match="part must be an int of at least 0"):
        certifier.partial_certificate(samples[1], part)


def test_samples_of_the_fit_are_found_in_parts_too(certifier, samples):
    others, known = parts_of(
        certifier, np.r_[samples[1], samples[0][:40]], [320, 40], kind="sampled"
    )
    assert others.certificate().verdict == "certified"
    assert (known.n_samples, known.n_known) == (0, 40)
    with pytest.raises(ValueError, match="40 of 40 samples that equal samples of fit"):
        known.certificate()
    both = others.merge(known)
    with pytest.warns(KnownSamplesWarning, match="40 of 360 samples that equal"):
        assert both.certificate() == others.certificate()


class Weights(torch.nn.Module):
    """A constant for all samples, or their first features."""

    def __init__(self, value=None):
        super().__init__()
        self.constant = torch.nn.Parameter(torch.zeros(3))
        self.varies = value is None
        self.set(0.0 if value is None else value)

    def set(self, value):
        with torch.no_grad():
            self.constant[:] = torch.as_tensor(value)

    def forward(self, x):
        return x[:, :3] * self.varies + self.constant

    def named(self, x):
        return self(x)


class Holder:
    """Keeps its module in an attribute, as foreign classes do."""

    def __init__(self, module):
        self.module = module

    def transform(self, X):
        with torch.no_grad():
            return self.module(torch.as_tensor(X, dtype=torch.float32)).numpy()


# Estimators made from a module, and where a fitted estimator has it.
HOLDERS = {
    "attribute": (Holder, lambda fitted: fitted.module),
    "frozen": (
        lambda module: FrozenEstimator(TrainedEncoder(module)),
        lambda fitted: fitted.estimator.encoder,
    ),
    "method": (
        lambda module: TrainedEncoder(partial(module.named)),
        lambda fitted: fitted.encoder.func.__self__,
    ),
    "decorated": (
        lambda module: FrozenEstimator(TrainedEncoder(torch.no_grad()(module.named))),
        lambda fitted: fitted.estimator.encoder.__wrapped__.__self__,
    ),
    "pipeline": (
        lambda module: make_pipeline(StandardScaler(), TrainedEncoder(module)),
        lambda fitted: fitted[-1].encoder,
    ),
    "search": (
        lambda module: GridSearchCV(
            TrainedEncoder(module), {"batch_size": [64]}, scoring=lambda *_: 0.0
        ),
        lambda fitted: fitted.best_estimator_.encoder,
    ),
}


@pytest.fixture(scope="module")
def trained(samples):
    """Certifiers of constants that match the teacher, and how to set them."""
    teacher = GMMTeacher(n_components=4, random_state=0).fit(samples[0])
    ends = samples[1][:80], samples[1][-80:]
    scale = prior_matched_scale(teacher.predict_proba(samples[0]))
    proba = [teacher.predict_proba(end).mean(axis=0) for end in ends]
    codes = analytic_code(proba, simplex_vertices(4, 3), scale)
    return FrozenEstimator(teacher), codes, ends


@pytest.mark.parametrize("holder", HOLDERS)
def test_parts_of_an_encoder_that_was_trained_in_between_are_not_merged(
    trained, samples, holder
):
    """Two constants, each for a part of the samples, are not a code."""
    teacher, codes, ends = trained
    make, module_of = HOLDERS[holder]
    fitted = CollapseCertifier(make(Weights(codes[0])), teacher=teacher).fit(samples[0])
    module = module_of(fitted.estimator_)
    first = fitted.partial_certificate(ends[0], 0)
    for mode in (True, False):  # which is no training
        again = fitted.partial_certificate(ends[0], 1 + mode)
        module.train(mode)
        assert again.origin == first.origin
    module.set(codes[1])
    last = fitted.partial_certificate(ends[1], 1)
    with pytest.raises(ValueError, match="nor train its encoder in between"):
        first.merge(last)
    # What the error prevents.
    forged = first.merge(replace(last, origin=first.origin))
    assert forged.certificate().verdict == "certified"

    # So it does if it is trained while one certificate is made.
    def batches():
        module.set(codes[0])
        yield ends[0]
        module.set(codes[1])
        yield ends[1]

    with pytest.raises(ValueError, match="its weights changed while"):
        fitted.certify_batches(batches())


def test_an_encoder_that_is_left_alone_is_the_same_in_every_process(trained, samples):
    fitted = CollapseCertifier(TrainedEncoder(Weights()), teacher=trained[0])
    fitted.fit(samples[0])
    first = fitted.partial_certificate(samples[1][:160], 0)
    there = pickle.loads(pickle.dumps(fitted))
    assert first.origin == there.partial_certificate(samples[1][160:], 1).origin
    module = there.estimator_.encoder.to(torch.bfloat16)
    assert there.partial_certificate(samples[1], 1).origin != first.origin
    before = digest_weights(there.estimator_)
    module.set(1.0)
    assert digest_weights(there.estimator_) not in ("", before)
    assert digest_weights(Moody()) == ""
    # Weights without storage are no error.
    assert digest_weights(Holder(torch.nn.Linear(2, 3, device="meta")))


def test_training_a_vae_changes_the_origin_of_its_parts(certifier, samples):
    other = copy.deepcopy(certifier)
    first = other.partial_certificate(samples[1], 0)
    with torch.no_grad():
        next(other.estimator_.net_.module_.parameters()).add_(1e-5)
    assert other.partial_certificate(samples[1], 1).origin != first.origin


def test_nothing_at_all_makes_no_certificate(certifier):
    with pytest.raises(ValueError, match="0 sample"):
        certifier.partial_certificate(np.empty((0, 6)), 0)


# Sums of parts, merged in any order.


def sharp(n, seed):
    generator = np.random.default_rng(seed)
    logits = 3 * generator.normal(size=(n, 4))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.slow
@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 10),
)
def test_no_constant_code_in_parts_is_certified(sizes, dtype, seed):
    """Samples are in the teacher's order; rounding errors differ in every part."""
    n, generator = sum(sizes), np.random.default_rng(seed)
    proba = sharp(n, seed)
    proba = proba[proba[:, 0].argsort()]
    vertices, scale = simplex_vertices(4, 3), prior_matched_scale(proba)
    best = analytic_code([proba.mean(axis=0)], vertices, scale).astype(dtype)
    noise = np.finfo(dtype).eps * generator.choice([-1, 1], (len(sizes), 3))
    means = np.repeat((best * (1 + noise)).astype(dtype), sizes, axis=0)
    merged = merged_sums(proba, means, sizes, vertices, scale)
    assert merged.certificate().verdict != "certified"
    assert merged.certificate().margin <= merged.certificate().tolerance
    # The result is that of all samples in one pass.
    whole = certify(proba, means, vertices, scale)
    assert merged.certificate().verdict == whole.verdict
    assert merged.certificate().tolerance == pytest.approx(whole.tolerance, rel=1e-6)
    exactly = merged_sums(proba, np.repeat(best, n, axis=0), sizes, vertices, scale)
    assert exactly.certificate().dispersion == 0.0
    # The twin: the same code but for a little, which the teacher sees too.
    codes = best + 0.5 * (analytic_code(proba, vertices, scale) - best)
    if MarginSums().update(proba, np.log(proba)).teacher_information > 0.1:
        varied = merged_sums(proba, codes.astype(dtype), sizes, vertices, scale)
        assert varied.certificate().verdict == "certified"


def merged_sums(proba, means, sizes, vertices, scale):
    witness, cuts = simplex_witness(vertices, scale), np.cumsum(sizes)[:-1]
    pieces = zip(np.split(proba, cuts), np.split(means, cuts), strict=True)
    parts = [MeanSums(witness).update(*piece) for piece in pieces]
    return reduce(lambda a, b: a.merge(b), parts)


def test_sums_of_parts_are_those_of_all_samples():
    proba, generator = sharp(300, 0), np.random.default_rng(1)
    weight, values = generator.uniform(size=300), 1e8 + generator.normal(size=(300, 3))
    whole, spread = MarginSums().update(proba, np.log(proba), weight), SpreadSums()
    merged = MarginSums()
    for samples in (slice(0, 1), slice(1, 1), slice(1, 120), slice(120, 300)):
        part, of_part = MarginSums(), SpreadSums()
        if samples.start < samples.stop:
            part.update(proba[samples], np.log(proba[samples]), weight[samples])
            of_part.update(values[samples], weight[samples])
        merged.merge(part)
        spread.merge(of_part)
    for name in ("n_samples", "total_weight", "margin", "alignment_loss"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name))
    centered = values - np.average(values, axis=0, weights=weight)
    expected = np.average(centered**2, axis=0, weights=weight)
    np.testing.assert_allclose(spread.variance, expected, rtol=1e-7)
    with pytest.raises(ValueError, match="4 columns, as in the batches before, got 2"):
        merged.merge(MarginSums().update([[0.5, 0.5]], np.log([[0.5, 0.5]])))


def test_constants_that_differ_between_parts_are_no_constant():
    """Each part shows no error, or fits in 16 bits; all together do not."""
    proba = sharp(80, 0)
    means = np.repeat([[0.5], [0.25], [np.pi], [0.5]], 20, axis=0)
    vertices = simplex_vertices(4, 3)
    means = means * np.ones(3)
    merged = merged_sums(proba, means, [20] * 4, vertices, 1.0).certificate()
    whole = certify(proba, means, vertices, 1.0)
    assert merged.verdict == whole.verdict == "varies"
    assert merged.tolerance == pytest.approx(whole.tolerance)
    alike = merged_sums(proba[:40], means[:40], [20] * 2, vertices, 1.0).certificate()
    coarse = certify(proba[:40], means[:40], vertices, 1.0)
    assert alike.tolerance == pytest.approx(coarse.tolerance)
    assert coarse.tolerance > 10 * whole.tolerance


def test_rounding_in_many_small_parts_is_still_called_constant():
    """What is rounding depends on how large all means are, not those of one part."""
    proba, generator = sharp(200, 0), np.random.default_rng(0)
    noise = np.finfo(np.float32).eps * generator.choice([-1, 1], (200, 3))
    means = (np.array([1.5, -0.7, 1.1]) * (1 + noise)).astype(np.float32)
    merged = merged_sums(proba, means, [1] * 200, simplex_vertices(4, 3), 1.0)
    assert merged.certificate().verdict == "constant"
    assert merged.certificate().dispersion > 0


def test_sums_of_two_witnesses_are_not_merged():
    vertices = simplex_vertices(4, 3)
    one, other = (MeanSums(simplex_witness(vertices, b)) for b in (1.0, 2.0))
    with pytest.raises(ValueError, match="same witness"):
        one.merge(other)


# Samples that are stored in chunks.


@pytest.fixture
def stored(samples, tmp_path):
    """Samples in zarr, dask and NumPy storage."""
    X = samples[1]
    array = zarr.create_array(
        tmp_path / "samples.zarr", shape=X.shape, chunks=(50, 6), dtype=X.dtype
    )
    array[:] = X
    mapped = np.lib.format.open_memmap(tmp_path / "samples.npy", "w+", X.dtype, X.shape)
    mapped[:] = X
    return {
        "zarr": array,
        "dask": dask.array.from_zarr(array),
        "uneven": dask.array.from_array(X, chunks=((7, 200, 113), 3)),
        "memmap": mapped,
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zarr", "dask", "uneven", "memmap"])
def test_stored_samples_are_certified(certifier, samples, stored, form, monkeypatch):
    monkeypatch.setattr("skvaecert._samples._MOST_SAMPLES", 100)
    for kind in KINDS:
        whole = certifier.certify(samples[1], kind=kind)
        certificate = certifier.certify(stored[form], kind=kind)
        assert certificate.verdict == whole.verdict == "certified"
        assert certificate.margin == pytest.approx(whole.margin, abs=whole.tolerance)
    assert certifier.score(stored[form]) == pytest.approx(certifier.score(samples[1]))
    weight = np.random.default_rng(0).uniform(size=320)
    weighted = certifier.score(stored[form], sample_weight=weight)
    assert weighted == pytest.approx(certifier.score(samples[1], sample_weight=weight))


class Watched:
    """An array on disk that records which parts are read."""

    def __init__(self, samples, chunks):
        self.samples, self.chunks = samples, chunks
        self.shape, self.dtype = samples.shape, samples.dtype
        self.read = []

    def __getitem__(self, index):
        taken = self.samples[index]
        self.read.append(len(taken))
        return taken

    def __array__(self, dtype=None, copy=None):
        self.read.append(len(self.samples))
        return self.samples


def test_stored_samples_are_read_once(certifier, samples):
    """Samples that are encoded again are still in memory."""
    watched = Watched(samples[1], (200, 6))
    assert certifier.certify(watched).verdict == "certified"
    assert watched.read == [320]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zarr", "dask", "memmap"])
def test_a_fit_on_stored_samples_is_that_on_arrays(samples, stored, form):
    teacher = GMMTeacher(n_components=4, random_state=0)
    encoder = FunctionTransformer(lambda X: np.asarray(X)[:, :3])
    fitted = CollapseCertifier(encoder, teacher=teacher, witness="linear")
    certificate = fitted.fit(stored[form]).certificate_
    assert certificate == fitted.fit(samples[1]).certificate_


def test_teacher_proba_may_be_stored_too(certifier, samples, stored, tmp_path):
    proba = certifier.teacher_.predict_proba(samples[1])
    array = zarr.create_array(
        tmp_path / "proba.zarr", shape=proba.shape, chunks=(40, 4), dtype=proba.dtype
    )
    array[:] = proba
    expected = certifier.score(samples[1])
    assert certifier.score(stored["zarr"], teacher_proba=array) == expected


# What is summed, beyond the margin.


def test_sums_of_drawn_codes_are_those_of_all_samples():
    """All but the draws: these differ, with the same number and variance."""
    proba, generator = sharp(600, 0), np.random.default_rng(1)
    witness = simplex_witness(simplex_vertices(4, 3), 1.0)
    means = generator.normal(size=(600, 3))
    deviations = generator.uniform(0.5, 1.5, size=(600, 3)) * [1.0, 1.0, 0.01]

    def sums_of(samples, part):
        sums = SampledSums(witness, 8, np.random.default_rng(5), part)
        return sums.update(proba[samples], means[samples], deviations[samples])

    whole = sums_of(slice(None), None)
    cuts = slice(0, 1), slice(1, 250), slice(250, 600)
    parts = [sums_of(samples, part) for part, samples in enumerate(cuts)]
    merged = reduce(lambda a, b: a.merge(b), parts)
    for name in ("_shared_loss", "_narrowest"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    np.testing.assert_allclose(merged._errors, whole._errors, rtol=1e-12)
    for name in ("_means", "_deviations"):
        a, b = (getattr(sums, name) for sums in (merged, whole))
        assert a.spread.dispersion == pytest.approx(b.spread.dispersion, rel=1e-12)
        assert a.mean_norm == pytest.approx(b.mean_norm, rel=1e-12)
    certificate, expected = merged.certificate(), whole.certificate()
    width = expected.margin_high - expected.margin_low
    found = certificate.margin_high - certificate.margin_low
    assert found == pytest.approx(width, rel=0.1)
    noise = certificate.dispersion_in_noise
    assert noise == pytest.approx(expected.dispersion_in_noise, rel=1e-12)
    assert certificate.n_samples == 600


def test_outputs_that_differ_between_parts_are_not_constant():
    proba = sharp(40, 0)

    def sums_of(samples, output):
        def read(codes):
            return np.full((20, 4), 0.25), np.full((20, 2), output)

        sums = RoundTripSums(4, 3, 0.1, 2, np.random.default_rng(0))
        return sums.update(proba[samples], read, np.eye(20, 3))

    first = sums_of(slice(0, 20), 1.0)
    assert first.certificate().verdict == "constant"
    same, other = (sums_of(slice(20, 40), output) for output in (1.0, 2.0))
    assert copy.deepcopy(first).merge(same).certificate().verdict == "constant"
    assert copy.deepcopy(first).merge(other).certificate().verdict == "inconclusive"


class Moody(BaseEstimator):
    """An encoder whose means depend on the batch, if it is switched on."""

    def __init__(self, moody=False):
        self.moody = moody

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:, :3] + (100 * X.mean() if self.moody else 0.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_means_moved_by_rounding_are_not_unstable(order, recwarn):
    """Rounding moves large means more; they may all be in one part."""
    seen = []
    for magnitude, moved in ((1.0, 0.0), (1e6, 1.0)):
        encoder = FunctionTransformer(
            lambda X, moved=moved: X + np.array([moved * (len(X) < 4), 0.0])
        )
        kind = MeanKind(None)
        kind.encode_again(EncodedSamples(encoder, None, np.full((4, 2), magnitude)))
        seen.append(kind.stability)
    first, second = (seen[place] for place in order)
    first.merge(second)
    assert first.moved == 1.0
    first.warn_if_unstable()
    assert not recwarn.list


def test_the_decoder_is_as_unsteady_as_in_its_worst_part(certifier, samples):
    parts = parts_of(certifier, samples[1], [160, 160], kind="round_trip")
    own = [part.certificate().tolerance for part in parts]
    parts[1].collected.stability.record(1.0)
    for first, second in (parts, parts[::-1]):
        tolerance = first.merge(second).certificate().tolerance
        assert tolerance > 1.0 > max(own)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_part_of_an_unstable_encoder_is_enough(samples, order):
    teacher = GMMTeacher(n_components=4, random_state=0)
    fitted = CollapseCertifier(Moody(), teacher=teacher).fit(samples[0])
    parts = []
    for part, moody in enumerate((False, True)):
        fitted.estimator_.moody = moody
        parts.append(fitted.partial_certificate(samples[1][:200], part))
    assert parts[0].certificate().verdict == "certified"
    first, second = (parts[place] for place in order)
    with pytest.warns(UnstableEncoderWarning, match="in another batch"):
        certificate = first.merge(second).certificate()
    assert certificate.verdict == "inconclusive"
