"""What is certified beyond the mean, on cases whose truth is known."""

import copy
import re
from dataclasses import replace

import dask.array
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array, issparse
from scipy.special import entr, softmax
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import SampledSums
from skvaecert._certifier.calibration import split_for_witness
from skvaecert.exceptions import KnownSamplesWarning
from skvaecert.information import code_information
from skvaecert.witnesses import LinearWitness, fit_linear, fit_strength
from skvaecert.wrappers import TrainedEncoder

FITTED = ["procrustes", "linear"]


class Gaussian:
    """q(z|x) = N(gain x, noise^2), which decodes itself."""

    def __init__(self, gain=1.0, noise=1.0):
        self.gain = gain
        self.noise = noise

    def transform(self, X):
        return self.gain * np.asarray(X)

    def encode(self, X):
        mean = self.transform(X)
        return mean, np.full_like(mean, self.noise)

    def inverse_transform(self, Z):
        return Z / self.gain if self.gain else np.zeros_like(Z)


class Dense(BaseEstimator):
    """Another encoder, which also takes sparse matrices; the first features if none."""

    def __init__(self, encoder=None):
        self.encoder = encoder

    def fit(self, X, y=None):
        self.encoder_ = self.encoder.fit(X) if self.encoder is not None else None
        return self

    def transform(self, X):
        code = X if self.encoder_ is None else self.encoder_.transform(X)
        return code.toarray() if issparse(code) else np.asarray(code)


@pytest.fixture(scope="module")
def clusters():
    """Training samples and others, from five clusters in four dimensions."""
    rng = np.random.default_rng(0)
    centers = 3 * rng.normal(size=(5, 4))
    X = centers[rng.integers(5, size=1200)] + rng.normal(size=(1200, 4))
    return X[:700], X[700:]


@pytest.fixture(scope="module")
def teacher(clusters):
    return FrozenEstimator(GMMTeacher(n_components=5, random_state=0).fit(clusters[0]))


@pytest.fixture(scope="module")
def vae(digits):
    vae = CertifiedVAE(latent_dim=10, max_epochs=15, device="cpu", random_state=0)
    return CollapseCertifier(vae).fit(digits[0])


def certifier(estimator, teacher, samples, witness="linear", **params):
    made = CollapseCertifier(estimator, teacher=teacher, witness=witness, **params)
    return made.fit(samples)


def tempered(codes, proba):
    half = len(codes) // 2
    witness = fit_linear(codes[:half], proba[:half])
    strength = fit_strength(witness.logits(codes[half:]), proba[half:])
    return witness.tempered(proba[half:].mean(axis=0), strength)


@pytest.mark.slow
def test_drawn_codes_show_no_more_than_a_linear_gaussian_model_carries():
    """Its information is log det(I + W W^T / sigma^2) / 2."""
    gain, noise, dim = 1.5, 0.5, 2
    information = dim * np.log1p((gain / noise) ** 2) / 2
    inside, low = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(1200, dim))
        proba = softmax(4 * X @ rng.normal(size=(dim, 6)), axis=1) * 0.99 + 0.01 / 6
        mean, deviation = gain * X, np.full((1200, dim), noise)
        codes = mean + deviation * rng.normal(size=mean.shape)
        sums = SampledSums(tempered(codes[:600], proba[:600]), 16, rng)
        sums.update(proba[600:], mean[600:], deviation[600:])
        certificate = sums.certificate()
        low.append(certificate.margin_low)
        inside += low[-1] <= information
        assert certificate.verdict == "certified"
    assert inside >= 95
    # The twin: the lower end is a large part of the information.
    assert np.mean(low) > 0.25 * information


@pytest.mark.slow
def test_few_draws_cannot_say_how_sure_they_are():
    """Two draws of two samples may all be lucky."""
    # Values of more than 16 bits: others would count as computed in 16 bits.
    mean, deviation = np.array([[-1.0137], [1.0071]]), np.full((2, 1), 0.05)
    proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    witness = LinearWitness(np.array([[-1.0], [1.0]]), np.zeros(2), "linear")

    def certificate(n_draws):
        sums = SampledSums(witness, n_draws, np.random.default_rng(0))
        return sums.update(proba, mean, deviation).certificate()

    few, many = certificate(2), certificate(1000)
    assert few.margin == pytest.approx(many.margin, rel=0.1)
    assert few.margin_low < 0 < many.margin_low < few.margin
    assert (few.verdict, many.verdict) == ("inconclusive", "certified")
    assert few.reason == "draws"
    assert "Increase n_draws" in str(few)


@pytest.mark.parametrize("witness", ["raw", *FITTED])
def test_a_collapsed_posterior_is_seen_to_be(clusters, teacher, witness):
    collapsed = certifier(Gaussian(0.0), teacher, clusters[0], witness)
    certificate = collapsed.certify(clusters[1], kind="sampled")
    assert certificate.verdict == "constant"
    assert certificate.dispersion_in_noise == 0
    assert "posterior q(z|x) is the same" in str(certificate)
    assert collapsed.certify(clusters[1]).verdict == "constant"


@pytest.mark.parametrize("noise", [1e-6, 1.0])
def test_rounding_of_a_collapsed_posterior_is_no_information(clusters, teacher, noise):
    """A jitter that is seen next to tiny noise, and comes from rounding alone."""

    class Rounded(Gaussian):
        def encode(self, X):
            mean = np.float32(1.0) + np.float32(1e-7) * np.sign(X[:, :1])
            return np.tile(mean, 4), np.full((len(X), 4), np.float32(noise))

    rounded = certifier(Rounded(0.0), teacher, clusters[0])
    assert rounded.certify(clusters[1], kind="sampled").verdict != "certified"


def test_a_little_variation_of_the_mean_drowns_in_the_noise(clusters, teacher):
    drowned = certifier(Gaussian(0.002 / 3), teacher, clusters[0])
    assert drowned.certify(clusters[1]).verdict == "certified"
    sampled = drowned.certify(clusters[1], kind="sampled")
    assert sampled.verdict == "inconclusive"
    assert sampled.margin == pytest.approx(0, abs=0.05)
    assert "it was not shown that drawn codes tell" in str(sampled)
    # The twin: the same spread, under less noise.
    clear = certifier(Gaussian(0.002 / 3, 0.0005), teacher, clusters[0])
    certificate = clear.certify(clusters[1], kind="sampled")
    assert certificate.verdict == "certified"
    assert 0.5 < certificate.margin_low < certificate.teacher_information
    assert certificate.kind == "sampled"
    said = float(re.search(r"at least (\S+) of at most", str(certificate))[1])
    assert said <= certificate.margin_low < said + 0.02


def test_information_in_the_deviation_alone_counts(clusters, teacher):
    class Wide(Gaussian):
        def encode(self, X):
            return np.zeros_like(X), np.exp(np.clip(X, -2, 2))

    wide = certifier(Wide(0.0), teacher, clusters[0])
    assert wide.certify(clusters[1]).verdict == "constant"
    certificate = wide.certify(clusters[1], kind="sampled")
    # A linear witness cannot read it, and says so.
    assert certificate.verdict == "inconclusive"
    mean, deviation = wide.estimator_.encode(clusters[1])
    assert code_information(mean, deviation, random_state=0).low > 0.5


@pytest.mark.slow
def test_kinds_of_a_vae(vae, digits):
    for kind in ("mean", "sampled", "round_trip"):
        certificate = vae.certify(digits[1], kind=kind)
        assert certificate.kind == kind
        assert certificate.verdict == "certified"
        assert certificate.n_samples == len(digits[1])
        again = vae.certify(digits[1], kind=kind)
        assert again == certificate
    assert "still show the teacher's clusters" in str(certificate)
    mean, deviation = vae.estimator_.encode(digits[1])
    np.testing.assert_array_equal(mean, vae.transform(digits[1]))
    assert (deviation > 0).all()


@pytest.mark.slow
def test_few_samples_are_certified_by_their_drawn_codes(vae, digits):
    certificate = vae.certify(digits[1][:50], kind="sampled")
    assert certificate.verdict == "certified"
    assert certificate.margin_low > 0.5 * certificate.teacher_information


def accuracy_of(joint):
    """Bound the chance of guessing k from z, given their exact information."""
    joint = np.asarray(joint) / np.sum(joint)
    entropies = [entr(p).sum() for p in (joint.sum(axis=1), joint.sum(axis=0), joint)]
    information = entropies[0] + entropies[1] - entropies[2]
    values = dict.fromkeys(("alignment_loss", "tolerance", "safety_margin"), 0.0)
    certificate = Certificate(
        verdict="certified",
        margin=information,
        teacher_information=information,
        relative_margin=1.0,
        dispersion_bound=0.0,
        dispersion=1.0,
        witness="linear",
        n_samples=2,
        n_components=len(joint),
        latent_dim=1,
        kind="sampled",
        margin_low=information,
        mean_entropy=entropies[0],
        **values,
    )
    return certificate.accuracy


@pytest.mark.slow
def test_accuracy_is_never_above_that_of_the_best_guess():
    rng = np.random.default_rng(0)
    tight = 0
    for _ in range(2000):
        size = rng.integers(2, 6, size=2)
        joint = rng.dirichlet(np.full(size.prod(), 10 ** rng.uniform(-2, 1)))
        joint = joint.reshape(size)
        bayes = joint.max(axis=0).sum()
        accuracy = accuracy_of(joint)
        assert 1 / size[0] - 1e-9 <= accuracy <= bayes + 1e-9
        tight += accuracy > bayes - 0.02
    assert tight > 100
    # Reached if a code excludes some clusters, or shows all of them, or none of two.
    assert accuracy_of(np.kron(np.eye(2), np.ones((3, 1)))) == pytest.approx(1 / 3)
    assert accuracy_of([[1, 0, 2], [0, 1, 2]]) == pytest.approx(2 / 3)


def test_no_lower_end_is_stated_above_the_upper(clusters, teacher):
    """Both hold with their probabilities, and may contradict each other."""
    certificate = certifier(Gaussian(), teacher, clusters[0]).certify(
        clusters[1], kind="sampled"
    )
    bracket = replace(certificate.information, low=0.1, high=0.25)
    capped = replace(certificate, information=bracket)
    assert certificate.margin_low - certificate.tolerance > 0.3
    assert "carries at least 0.25 of at most" in str(capped)
    assert capped.accuracy < certificate.accuracy
    # The tolerance is not what was read.
    doubtful = replace(certificate, tolerance=certificate.margin_low - 0.125)
    assert "carries at least 0.12 of at most" in str(doubtful)


@pytest.mark.parametrize("low", [0.546, 0.00876, 0.6899])
def test_sentences_of_drawn_codes_round_outwards(clusters, teacher, low):
    certificate = certifier(Gaussian(), teacher, clusters[0]).certify(
        clusters[1], kind="sampled"
    )
    shown = {"margin_low": low, "margin_high": low + 1e-6, "mean_entropy": 0.693}
    values = {"confidence": 1 - 1e-7, "information": None, "tolerance": 0.0}
    sentence = str(replace(certificate, teacher_information=0.693, **shown, **values))
    number = r"(\d\S*)"
    least = float(re.search(f"at least {number} of at most 0.69 nats", sentence)[1])
    assert low - 0.01 < least <= low
    share, *ends = re.search(
        f"{number} % interval over draws: {number} to {number}\\)", sentence
    ).groups()
    assert 99.9 < float(share) < 100
    assert float(ends[0]) <= low < low + 1e-6 <= float(ends[1])
    accuracy = replace(certificate, **shown, **values).accuracy
    percent = int(re.search(r"right in at least (\d+) %", sentence)[1])
    assert accuracy - 0.01 < percent / 100 <= accuracy


@pytest.mark.slow
def test_accuracy_of_drawn_codes_against_exact_integration():
    """Gaussian codes in one dimension, and the best rule on a fine grid of codes."""
    grid = np.linspace(-12, 12, 4001)
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        proba = 0.96 * rng.dirichlet(np.full(3, 0.2), size=6) + 0.04 / 3
        mean, deviation = 3 * rng.normal(size=6), rng.uniform(0.1, 2, size=6)
        witness = fit_linear(mean[:, None], proba)
        sums = SampledSums(witness, 40, rng)
        sums.update(proba, mean[:, None], deviation[:, None])
        density = np.exp(-(((grid - mean[:, None]) / deviation[:, None]) ** 2) / 2)
        density /= density.sum(axis=1, keepdims=True)
        bayes = (proba.T @ density / 6).max(axis=0).sum()
        assert sums.certificate().accuracy <= bayes
        found.append(sums.certificate().accuracy / bayes)
    assert max(found) > 0.6


@pytest.mark.slow
def test_a_decoder_that_ignores_the_code(vae, digits):
    deaf = copy.deepcopy(vae)
    deaf.estimator_.net_.module_.decoder[0].weight.data.zero_()
    assert deaf.certify(digits[1]).verdict == "certified"
    certificate = deaf.certify(digits[1], kind="round_trip")
    assert certificate.verdict == "constant"
    assert "reconstructions do not depend on the sample" in str(certificate)


@pytest.mark.slow
def test_a_collapsed_vae_fails_the_round_trip(digits):
    collapsed = CertifiedVAE(
        alignment_weight=0, kl_weight=50, max_epochs=5, device="cpu", random_state=0
    )
    fitted = CollapseCertifier(collapsed).fit(digits[0])
    assert fitted.certify(digits[1], kind="round_trip").verdict != "certified"
    assert fitted.certify(digits[1], kind="sampled").verdict != "certified"


def test_round_trip_of_a_pair_of_callables(clusters, teacher):
    pair = TrainedEncoder(lambda X: X * 0.1, lambda Z: Z * 10)
    certificate = certifier(pair, teacher, clusters[0]).certify(
        clusters[1], kind="round_trip"
    )
    assert certificate.verdict == "certified"
    assert certificate.relative_margin > 0.9
    deaf = TrainedEncoder(lambda X: X * 0.1, lambda Z: np.zeros_like(Z))
    deaf = certifier(deaf, teacher, clusters[0])
    assert deaf.certify(clusters[1]).verdict == "certified"
    assert deaf.certify(clusters[1], kind="round_trip").verdict == "constant"


@pytest.mark.slow
def test_codes_are_drawn_before_they_are_decoded(clusters, teacher):
    """Means that spread by little under much noise reach no decoder."""
    noisy = certifier(Gaussian(0.01, 1.0), teacher, clusters[0])
    drowned = noisy.certify(clusters[1], kind="round_trip")
    assert drowned.verdict == "inconclusive"
    # The twin: the decoder of the means alone, and the same spread under less noise.
    means = TrainedEncoder(lambda X: 0.01 * X, lambda Z: Z / 0.01)
    fitted = certifier(means, teacher, clusters[0])
    alone = fitted.certify(clusters[1], kind="round_trip")
    assert (alone.verdict, alone.confidence) == ("certified", None)
    assert "of the means" in str(alone)
    clear = certifier(Gaussian(0.01, 0.005), teacher, clusters[0])
    certificate = clear.certify(clusters[1], kind="round_trip", confidence=0.9)
    assert (certificate.verdict, certificate.confidence) == ("certified", 0.9)
    assert 0.5 < certificate.margin_low < certificate.margin < certificate.margin_high
    information = certificate.teacher_information
    assert certificate.margin < information
    assert f"of at most {information:.2f} nats off the" in str(certificate)
    assert "of drawn codes" in str(certificate)


def test_a_collapsed_posterior_makes_a_constant_round_trip(clusters, teacher):
    """Its reconstructions vary, with the draws and not with the samples."""

    class Dead(Gaussian):
        def inverse_transform(self, Z):
            return 3 * Z

    dead = certifier(Dead(0.0), teacher, clusters[0])
    assert dead.certify(clusters[1], kind="round_trip").verdict == "constant"


def test_reconstructions_that_are_not_finite_are_refused(clusters, teacher):
    class Diverged(Gaussian):
        def inverse_transform(self, Z):
            return np.full_like(super().inverse_transform(Z), np.nan)

    diverged = certifier(Diverged(1.0), teacher, clusters[0])
    with pytest.raises(ValueError, match="inverse_transform that returns finite"):
        diverged.certify(clusters[1], kind="round_trip")


class Remembering(Gaussian):
    """A decoder that sees a share of the last encoded samples, past the code."""

    def __init__(self, share, gain=0.0, noise=1.0):
        super().__init__(gain, noise)
        self.share = share

    def transform(self, X):
        self.last = np.array(X)
        return super().transform(X)

    def inverse_transform(self, Z):
        decoded = super().inverse_transform(Z)
        if len(self.last) != len(Z):
            return decoded
        return self.share * self.last + (1 - self.share) * decoded


@pytest.mark.slow
@pytest.mark.parametrize("n_batches", [1, 7, 50])
@pytest.mark.parametrize("share", [1.0, 0.1, 0.01])
def test_a_decoder_that_remembers_samples_is_refused(
    clusters, teacher, share, n_batches
):
    """Also if samples come in the order of their clusters, or one by one."""
    X = clusters[1][np.argsort(teacher.predict(clusters[1]), kind="stable")]
    X = X[::10] if n_batches == 50 else X
    remembering = certifier(Remembering(share), teacher, clusters[0])
    batches = np.array_split(X, n_batches)
    message = "inverse_transform that depends on the codes alone, got outputs of Rem"
    with pytest.raises(ValueError, match=message):
        remembering.certify_batches(batches, kind="round_trip")
    # The twin: a decoder that could remember samples, but does not.
    honest = certifier(Remembering(0.0, 1.0, 0.1), teacher, clusters[0])
    certificate = honest.certify_batches(batches, kind="round_trip")
    assert certificate.verdict == "certified"


def test_encoders_that_give_deviations_now_and_then_are_refused(clusters, teacher):
    class Fickle(Gaussian):
        def encode(self, X):
            mean, deviation = super().encode(X)
            return mean, deviation if len(X) != 100 else -deviation

    fickle = certifier(Fickle(), teacher, clusters[0])
    with pytest.raises(ValueError, match="deviations for all batches or for none"):
        fickle.certify_batches(
            [clusters[1][:200], clusters[1][200:300]], kind="round_trip"
        )


def test_a_soft_teacher_reads_blurred_reconstructions(clusters):
    """Untempered, its posteriors are too confident (theory section 7)."""
    settings = {"temperature": 1.0, "floor": 1e-6, "covariance_type": "full"}
    sure = GMMTeacher(5, random_state=0, **settings)
    teacher = FrozenEstimator(sure.fit(clusters[0]))
    blurred = TrainedEncoder(lambda X: X, lambda Z: Z * 0.4)
    fitted = certifier(blurred, teacher, clusters[0])
    assert fitted._calibration.tempering.temperature > 1
    certificate = fitted.certify(clusters[1], kind="round_trip")
    assert certificate.verdict == "certified"
    proba = teacher.predict_proba(clusters[1])
    read = teacher.predict_proba(0.4 * clusters[1])
    plain = (proba * np.log(read / proba.mean(axis=0))).sum(axis=1).mean()
    assert certificate.margin > 0.1
    assert plain < 0


@pytest.mark.slow
def test_controls_of_fitted_witnesses(digits):
    teacher = GMMTeacher(n_components=8, random_state=0)
    for witness in FITTED:
        pca = certifier(PCA(8), teacher, digits[0], witness)
        certificate = pca.certify(digits[1])
        assert certificate.verdict == "certified"
        assert certificate.witness == witness
        assert f"by a {witness} witness fitted on others" in str(certificate)
        assert certificate.dispersion_bound <= certificate.dispersion
        assert certificate.dispersion_bound > 0.05 * certificate.dispersion
    pipeline = make_pipeline(StandardScaler(), PCA(4))
    assert certifier(pipeline, teacher, digits[0]).certify(digits[1]).margin > 0.5
    few = certifier(PCA(2), teacher, digits[0])
    assert few.certify(digits[1]).verdict == "certified"


@pytest.mark.slow
@pytest.mark.parametrize("witness", FITTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_constant_encoder_is_certified_by_a_fitted_witness(
    clusters, teacher, witness, dtype
):
    rng = np.random.default_rng(0)

    def nearly(X):
        value = dtype(0.7)
        return value + np.finfo(dtype).eps * rng.choice([-1, 0, 1], size=(len(X), 4))

    for encode in (nearly, lambda X: np.full((len(X), 4), 0.7, dtype=dtype)):
        encoder = TrainedEncoder(lambda X, e=encode: e(X).astype(dtype))
        fitted = certifier(encoder, teacher, clusters[0], witness)
        assert fitted.certificate_.verdict != "certified"
        assert fitted.certify(clusters[1]).verdict != "certified"


@pytest.mark.slow
def test_samples_of_the_fit_are_left_out(clusters, teacher, vae, digits):
    fitted = certifier(Gaussian(), teacher, clusters[0])
    calibrated, _ = split_for_witness("linear", 700)
    weight, mixed = np.ones(1200), np.r_[clusters[0], clusters[1]]
    weight[calibrated] = 0.0
    for kind in ("mean", "sampled", "round_trip"):
        expected = fitted.certify(mixed, kind=kind, sample_weight=weight)
        with pytest.warns(KnownSamplesWarning, match="350 of 1200 samples"):
            certificate = fitted.certify(mixed, kind=kind)
        assert repr(certificate) == repr(expected)
        assert certificate.n_samples == 850
        known = clusters[0][calibrated]
        with pytest.raises(ValueError, match="not fitted on, got 350 of 350 samples"):
            fitted.certify_batches(np.array_split(known, 3), kind=kind)
        # One alone is left out too.
        one = np.r_[known[:1], clusters[1]]
        with pytest.warns(KnownSamplesWarning, match="1 of 501 samples"):
            assert fitted.certify(one, kind=kind).n_samples == 500
    with pytest.raises(ValueError, match="not fitted on"):
        vae.certify(digits[0], kind="sampled")
    # The fixed witness was fitted on nothing.
    assert vae.certify(digits[0]).verdict == "certified"
    # The certificate of the fit leaves out the samples that the witness was fitted on.
    assert fitted.certificate_.n_samples == 350


@pytest.mark.slow
@pytest.mark.parametrize("form", [csr_array, pd.DataFrame, dask.array.from_array])
def test_samples_of_the_fit_are_found_in_any_container(clusters, teacher, form):
    """Weights and posteriors are those of the samples that are left."""
    fitted = certifier(Dense(), teacher, clusters[0])
    mixed = np.r_[clusters[0][:100], clusters[1]]
    proba = teacher.predict_proba(mixed)
    weight = np.random.default_rng(0).uniform(size=len(mixed))
    options = {"teacher_proba": proba, "sample_weight": weight}
    kept = ~np.isin(np.arange(600), split_for_witness("linear", 700)[0])
    kept[100:] = True
    with pytest.warns(KnownSamplesWarning, match=f"{600 - kept.sum()} of 600 samples"):
        certificate = fitted.certify(form(mixed), **options)
    assert certificate.n_samples == kept.sum() < 580
    options = {name: values[kept] for name, values in options.items()}
    assert certificate.margin == fitted.certify(mixed[kept], **options).margin


def test_samples_of_text_are_found_too():
    words = pd.DataFrame({"word": np.repeat(["a", "b", "c"], 100)})
    words["number"] = np.arange(300.0)
    encoder = make_pipeline(make_column_transformer((OneHotEncoder(), ["word"])))
    proba = np.repeat(0.85 * np.eye(3) + 0.05, 100, axis=0)
    fitted = CollapseCertifier(Dense(encoder), witness="linear")
    fitted.fit(words, teacher_proba=proba)
    with pytest.warns(KnownSamplesWarning, match="150 of 300"):
        certificate = fitted.certify(words, teacher_proba=proba)
    assert certificate.verdict == "certified"


@pytest.mark.slow
def test_batches_and_kinds(clusters, teacher):
    fitted = certifier(Gaussian(), teacher, clusters[0], random_state=0)
    for kind in ("mean", "sampled", "round_trip"):
        whole = fitted.certify(clusters[1], kind=kind)
        parts = fitted.certify_batches(np.array_split(clusters[1], 7), kind=kind)
        assert parts.verdict == whole.verdict == "certified"
        assert parts.margin == pytest.approx(whole.margin, abs=whole.tolerance)
        assert parts.margin_low == pytest.approx(whole.margin_low, abs=whole.tolerance)
        assert parts.n_samples == whole.n_samples


@pytest.mark.slow
def test_tables_with_names(digits):
    """Reconstructions have no names, and this raises no warning."""
    train, test = (pd.DataFrame(X).add_prefix("pixel") for X in digits)
    vae = CertifiedVAE(max_epochs=2, device="cpu", random_state=0)
    fitted = CollapseCertifier(vae.set_output(transform="pandas")).fit(train)
    arrays = CollapseCertifier(vae).fit(digits[0])
    for kind in ("mean", "sampled", "round_trip"):
        certificate = fitted.certify(test, kind=kind)
        assert certificate.margin == arrays.certify(digits[1], kind=kind).margin
    with pytest.raises(ValueError, match="not fitted on"):
        fitted.certify(train, kind="sampled")


def test_weights_count_as_repetitions_for_round_trips(clusters, teacher):
    weight = np.random.default_rng(0).integers(0, 3, size=len(clusters[1]))
    samples = clusters[1].repeat(weight, axis=0)
    for encoder in (PCA(3), Gaussian()):
        fitted = certifier(encoder, teacher, clusters[0])
        a = fitted.certify(clusters[1], kind="round_trip", sample_weight=weight)
        b = fitted.certify(samples, kind="round_trip")
        if a.confidence is None:
            assert a.margin == pytest.approx(b.margin, rel=1e-10)
            assert a.margin_low == a.margin == a.margin_high
        else:  # other draws
            assert a.margin_low < b.margin < a.margin_high


def test_scores_of_samples(vae, digits):
    for samples in digits:
        assert vae.score_samples(samples).shape == (len(samples),)
    scores = vae.score_samples(digits[0])
    assert scores.mean() == pytest.approx(vae.score(digits[0]), rel=1e-9)
    alone = vae.score_samples(digits[1][:3])
    np.testing.assert_allclose(alone, vae.score_samples(digits[1])[:3])
    # A sample that the code places wrongly is found.
    proba = vae.teacher_.transform(digits[0]).copy()
    proba[7] = np.roll(proba[7], 1)
    assert vae.score_samples(digits[0], teacher_proba=proba).argmin() == 7


def test_what_is_missing_is_reported_when_it_is_needed(clusters, teacher):
    fitted = certifier(PCA(3), teacher, clusters[0])
    with pytest.raises(ValueError, match=r"estimator must have a method encode.*PCA"):
        fitted.certify(clusters[1], kind="sampled")
    model = GaussianMixture(5, random_state=0).fit(clusters[0])
    proba = 0.99 * model.predict_proba(clusters[0]) + 0.002
    given = CollapseCertifier(PCA(4), witness="linear")
    given.fit(clusters[0], teacher_proba=proba)
    with pytest.raises(ValueError, match="fitted with teacher_proba"):
        given.certify(clusters[1], kind="round_trip")
    no_decoder = certifier(TrainedEncoder(lambda X: X), teacher, clusters[0])
    with pytest.raises(ValueError, match="inverse_transform, its decoder"):
        no_decoder.certify(clusters[1], kind="round_trip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "means"}, "kind must be 'mean', 'sampled' or 'round_trip'"),
        ({"kind": "sampled", "n_draws": 1}, "n_draws must be an int of at least 2"),
        ({"kind": "sampled", "confidence": 95}, "confidence must be a finite number"),
        ({"kind": "round_trip", "teacher_proba": 1}, "teacher_proba must be left out"),
    ],
)
def test_bad_arguments(clusters, teacher, arguments, message):
    fitted = certifier(Gaussian(), teacher, clusters[0])
    with pytest.raises(ValueError, match=message):
        fitted.certify(clusters[1], **arguments)


@pytest.mark.slow
def test_fitted_witnesses_in_a_search(digits):
    pipeline = make_pipeline(
        MinMaxScaler(),
        CollapseCertifier(PCA(), teacher=GMMTeacher(4, random_state=0)),
    )
    grid = {
        "collapsecertifier__witness": FITTED,
        "collapsecertifier__estimator__n_components": [1, 6],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(digits[0])
    assert search.best_params_["collapsecertifier__estimator__n_components"] == 6
