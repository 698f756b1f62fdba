"""What the papers' experiments compute: models, forecasts, probes and searches."""

import math

import numpy as np
import pytest
from torch.nn.utils import parameters_to_vector

from skvaecert.forecast import linear_information

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(papers, tmp_path_factory):
    setting = papers("settings").make_setting("seconds", "digits")
    return papers("lab").Lab(setting, memory=str(tmp_path_factory.mktemp("memory")))


def test_a_kl_weight_is_a_number_or_a_multiple_of_the_threshold(lab):
    samples = lab.samples(0)
    eigenvalues = np.linalg.eigvalsh(np.cov(samples.train, rowvar=False))
    threshold = 64 * eigenvalues[-1] / eigenvalues.sum()
    assert lab.threshold(samples) == pytest.approx(threshold, rel=1e-4)
    for written, weight in (("2", 2), ("0.3 β*", 0.3 * threshold)):
        vae = lab.vae(samples, written, 0)
        assert vae.kl_weight == pytest.approx(weight, rel=1e-4)
        assert vae.alignment_weight == 10 * vae.kl_weight
        assert lab.vae(samples, written, 0, aligned=False).alignment_weight == 0


def weights(vae):
    return parameters_to_vector(vae.net_.module_.parameters()).detach().numpy()


def test_fixed_settings_vary_the_teacher_alone(papers, seconds):
    # With so few samples no teacher is stable.
    teacher = {"n_components": 3, "min_agreement": 0.0}

    def fits(fixed, aligned):
        lab = papers("lab").Lab(seconds._replace(fixed=fixed, teacher=teacher))
        samples = [lab.samples(seed) for seed in (0, 1)]
        vaes = [
            lab.vae(some, "1", seed, aligned=aligned).fit(some.train)
            for seed, some in enumerate(samples)
        ]
        proba = [vae.teacher_.predict_proba(samples[0].test) for vae in vaes]
        found = [some.train for some in samples], proba, map(weights, vaes)
        return [bool(np.array_equal(*pair)) for pair in found]

    # Samples, teachers and trained weights: without alignment the teacher is not used.
    assert fits(fixed=True, aligned=False) == [True, False, True]
    assert fits(fixed=True, aligned=True) == [True, False, False]
    assert fits(fixed=False, aligned=False) == [False, False, False]


def test_removal_and_rescue_go_on_from_the_fits_before_them(papers, lab):
    samples = lab.samples(0)
    found = papers("experiments.prevention").compute(lab, "1", 0)
    records = {record["phase"]: record for record in found["records"]}
    assert [*records] == [*papers("experiments.prevention").PHASES]
    assert [record["epochs"] for record in records.values()] == [2, 4, 2, 2, 2]
    phases = ("aligned", "alignment removed"), ("never aligned", "rescued")
    for (before, after), curve in zip(phases, found["curves"], strict=True):
        vae = lab.vae(samples, "1", 0, aligned=before == "aligned").fit(samples.train)
        assert vae.score(samples.test) == records[before]["elbo"]
        n_epochs, weight = (4, 0.0) if before == "aligned" else (2, 10.0)
        vae.set_params(
            warm_start=True, alignment_weight=weight, max_epochs=n_epochs
        ).fit(samples.train)
        assert vae.score(samples.test) == records[after]["elbo"]
        assert len(curve) == 2 + n_epochs
    assert len({record["elbo"] for record in records.values()}) == 5


@pytest.mark.parametrize("network", [{}, {"encoder": "conv", "decoder": "conv"}])
def test_a_forced_constant_is_constant_and_its_model_is_not(papers, network):
    setting = papers("settings").make_setting("five-minutes", "digits")
    lab = papers("lab").Lab(setting._replace(network=setting.network | network))
    samples = lab.samples(0)
    certifier = papers("lab").certified(lab.vae(samples, "1", 0), samples)
    forced = papers("lab").constant_copy(certifier)
    for values in forced.estimator_.encode(samples.test):
        assert np.ptp(values, axis=0).max() == 0
    measure = papers("lab").measure
    aligned, constant = (measure(some, samples.test) for some in (certifier, forced))
    assert (constant["verdict"], constant["state"]) == ("constant", "collapsed")
    assert 0 <= constant["low"] <= constant["high"] < 0.01
    assert (aligned["verdict"], aligned["state"]) == ("certified", "informative")
    assert 1 < aligned["low"] <= aligned["estimate"] <= aligned["high"] < np.log(400)
    assert aligned == measure(certifier, samples.test)
    mean, std = map(np.float64, certifier.estimator_.encode(samples.test))
    kl = (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(axis=1).mean() / 2
    assert aligned["kl"] == pytest.approx(kl, rel=1e-4)


def test_the_unexplained_share_is_one_for_the_mean_and_zero_for_the_samples(papers):
    samples = np.random.default_rng(0).uniform(size=(50, 3))
    unexplained = papers("lab").unexplained
    assert unexplained(samples, samples) == 0
    assert unexplained(samples, samples.mean(axis=0)) == pytest.approx(1)


def test_a_probe_learns_from_the_first_of_each_class_alone(papers, lab):
    samples, probe = lab.samples(0), papers("lab").probe
    one_hot, tested = np.eye(10)[samples.labels], np.eye(10)[samples.test_labels]
    assert probe(one_hot, samples, tested, 2) == probe(one_hot, samples, tested) == 1
    later = np.ones(len(one_hot), bool)
    for digit in range(10):
        later[np.flatnonzero(samples.labels == digit)[:2]] = False
    wrong = np.where(later[:, None], np.roll(one_hot, 1, axis=1), one_hot)
    assert probe(wrong, samples, tested, 2) == 1
    assert probe(wrong, samples, tested) < 0.1
    constant = np.zeros((100, 1)), samples, np.zeros((60, 1))
    assert probe(*constant) <= np.bincount(samples.test_labels).max() / 60


def test_an_escape_that_stays_above_zero_is_distinguished_from_one_that_falls_back(
    papers,
):
    def steps(*margin):
        flat = [1.0] * len(margin)
        curves = dict.fromkeys(("information", "energy", "escape_gradient"), flat)
        curves |= {"margin": margin, "path_energy": [0, 1], "path_margin": [0, 1]}
        return papers("experiments.escape").record_of(curves)["steps_to_positive"]

    assert steps(-1, 0.1, 0.2, 0.3) == 1
    assert steps(-1, 0.1, -0.2, 0.3) == 3
    assert steps(0.1, 0.1, 0.2, 0.3) == 0
    assert steps(-1, 0.1, 0.2, -0.3) == 4


def test_a_cell_knows_the_forecast_at_its_own_kl_weight(papers, lab):
    (record,) = papers("experiments.sweep").compute(lab, 0.3, "plain", 0)["records"]
    train = lab.samples(0).train
    assert record["beta"] == pytest.approx(0.3 * record["threshold"])
    forecast = linear_information(train, record["beta"], latent_dim=4)
    assert record["linear"] == pytest.approx(forecast.information)
    # At another KL weight it is something else.
    other = linear_information(train, 0.6 * record["threshold"], latent_dim=4)
    assert record["linear"] != pytest.approx(other.information, rel=0.1)


def test_reconstruction_is_that_of_drawn_codes(papers, lab):
    (record,) = papers("experiments.sweep").compute(lab, 0.02, "aligned", 0)["records"]
    samples = lab.samples(0)
    vae = lab.vae(samples, "0.02 β*", 0).fit(samples.train)
    mean, std = vae.encode(samples.test)

    def log_likelihood(codes):
        errors = (samples.test - vae.inverse_transform(codes)) ** 2
        log_scale = samples.test.shape[1] * np.log(2 * np.pi * vae.noise_variance_)
        return -0.5 * (errors.sum(axis=1).mean() / vae.noise_variance_ + log_scale)

    noise = np.random.default_rng(0).standard_normal((50, *mean.shape), np.float32)
    drawn = np.mean([log_likelihood(mean + std * some) for some in noise])
    assert record["reconstruction"] == pytest.approx(drawn, abs=0.1)
    assert record["reconstruction"] != pytest.approx(log_likelihood(mean), abs=0.5)


def test_a_probe_of_nothing_predicts_the_majority(papers, lab):
    compute, samples = papers("experiments.probe").compute, lab.samples(0)
    (record,) = compute(lab, "majority class", "", 0)["records"]
    majority = np.bincount(samples.labels).argmax()
    assert record["all"] == np.mean(samples.test_labels == majority)
    (record,) = compute(lab, "PCA", "", 0)["records"]
    assert record["dimension"] == lab.setting.network["latent_dim"]
    assert record["all"] > 2 * np.mean(samples.test_labels == majority)


def test_without_labels_there_is_no_probe(papers):
    cells, make = papers("experiments.probe").cells, papers("settings").make_setting
    assert cells(make("seconds", "patches16")) == []
    assert len(cells(make("seconds", "digits"))) == 7


@pytest.fixture
def search(papers):
    """Return the knobs and KLs of a search in which the KL is this function."""
    tuned = papers("experiments.mitigations")

    def of(kl_of, value, slope):
        tried = []
        for _ in range(tuned.MAX_FITS):
            tried.append((value, kl_of(value), None))
            if abs(tried[-1][1] / tuned.RATE - 1) <= tuned.NEAR:
                break
            value = tuned.better(tried, slope)
        return tried

    return of


@pytest.mark.parametrize(
    ("kl_of", "start", "slope"),
    [
        # It dies at large weights, and is flat above a floor.
        (lambda weight: 27 * math.exp(-weight / 12), 22.0, -1.5),
        (lambda weight: 27 * math.exp(-weight / 12), 100.0, -1.5),
        (lambda weight: 2 + (10 / weight) ** 2, 27.0, -1.5),
        # A weight with little effect; one with much, from far away.
        (lambda weight: 2 * weight**0.5, 34.0, 0.5),
        (lambda floor: 0.007 + floor**3 / 80, 0.3, 2.0),
    ],
)
def test_the_search_finds_the_rate(papers, search, kl_of, start, slope):
    tried = search(kl_of, start, slope)
    assert tried[-1][1] == pytest.approx(4, rel=0.05)
    assert papers("experiments.mitigations").nearest(tried)[0] == tried[-1]


def test_a_rate_out_of_reach_ends_the_search(search):
    tried = search(lambda value: 3 - 1 / (1 + value), 1.0, 1.0)
    assert len(tried) == 5
    assert all(0 < value < math.inf for value, _, _ in tried)
    # The same KL at every value.
    tried = search(lambda value: 2.0, 1.0, 1.0)
    assert len({value for value, _, _ in tried}) > 1
