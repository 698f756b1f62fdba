"""The growing KL weight and the linear probe: what is computed, and what is claimed."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from skvaecert.forecast import linear_information

pytestmark = pytest.mark.slow

PAPERS = Path(__file__).parents[1] / "examples" / "papers"


@pytest.fixture(scope="module")
def load():
    """Import a module of the experiments; they are forgotten afterwards."""
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PAPERS)
        yield importlib.import_module
    for name in {*sys.modules} - before:
        if str(PAPERS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def lab(load, tmp_path_factory):
    setting = load("settings").make_setting("seconds", "digits")
    return load("lab").Lab(setting, memory=str(tmp_path_factory.mktemp("memory")))


def test_a_cell_knows_the_forecast_at_its_own_kl_weight(load, lab):
    (record,) = load("experiments.sweep").compute(lab, 0.3, "plain", 0)["records"]
    train = lab.samples(0).train
    assert record["beta"] == pytest.approx(0.3 * record["threshold"])
    forecast = linear_information(train, record["beta"], latent_dim=4)
    assert record["linear"] == pytest.approx(forecast.information)
    # At another KL weight it is something else.
    other = linear_information(train, 0.6 * record["threshold"], latent_dim=4)
    assert record["linear"] != pytest.approx(other.information, rel=0.1)


def test_reconstruction_is_that_of_drawn_codes(load, lab):
    (record,) = load("experiments.sweep").compute(lab, 0.02, "aligned", 0)["records"]
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


SHARES = 0.02, 0.1, 0.3, 0.6, 0.9, 1.1, 1.5


def model(name, share, **values):
    """A record that agrees with every claim; KL 10 costs an aligned model 2 nats."""
    alive = name == "aligned" or share <= 0.9
    kl = 10.0 if name == "aligned" else 20 * (1.5 - share)
    return {
        "data": "digits",
        "kl_weight": f"{share} β*",
        "model": name,
        "seed": 0,
        "share": share,
        "linear": max(1 - share, 0.0),
        "estimate": max(1 - share, 0.0),
        "state": "informative" if alive else "collapsed",
        "verdict": "certified" if name == "aligned" else "varies",
        "kl": kl,
        "reconstruction": 3 * kl - (2 if name == "aligned" else 0),
    } | values


def judged(load, name, share, **values):
    """Return the claims with one record changed."""
    return load("shown.sweep").claims(
        [
            model(n, s, **(values if (n, s) == (name, share) else {}))
            for s in SHARES
            for n in ("plain", "aligned")
        ]
    )


def test_each_claim_on_the_sweep_is_broken_by_one_record(load):
    assert all(claim.holds for claim in judged(load, "none", 0))
    for i, (must, share, values) in enumerate(
        [
            (False, ("plain", 1.1), {"state": "informative"}),
            (False, ("plain", 0.6), {"state": "undecided"}),
            (False, ("plain", 0.9), {"estimate": 0.049}),
            (True, ("aligned", 1.5), {"verdict": "inconclusive"}),
            (False, ("aligned", 0.3), {"state": "ignored"}),
            (False, ("aligned", 0.3), {"reconstruction": 30.1}),
        ]
    ):
        claims = judged(load, *share, **values)
        assert not claims[i].holds
        assert claims[i].must is must
        # What is not certified at 1.5 β* breaks that of every KL weight, too.
        assert [claim.holds for claim in claims].count(False) == 1 + must


def test_the_price_is_the_height_above_an_aligned_model(load):
    claim = judged(load, "none", 0)[-1]
    # Of a span of 20 (1.5 - 0.02) 3 nats.
    assert "0.3 β*: 2.0, 2.3 %" in claim.sentence
    assert "without 0 of 7" in claim.sentence


@pytest.mark.parametrize("kl", [-1, 29.7])
def test_no_price_where_no_plain_model_has_such_a_kl(load, kl):
    claim = judged(load, "aligned", 0.3, kl=kl, reconstruction=99.0)[-1]
    assert claim.holds
    assert "0.3 β*" not in claim.sentence
    assert "without 1 of 7" in claim.sentence


def test_a_probe_of_nothing_predicts_the_majority(load, lab):
    compute, samples = load("experiments.probe").compute, lab.samples(0)
    (record,) = compute(lab, "majority class", "", 0)["records"]
    majority = np.bincount(samples.labels).argmax()
    assert record["all"] == np.mean(samples.test_labels == majority)
    (record,) = compute(lab, "PCA", "", 0)["records"]
    assert record["dimension"] == lab.setting.network["latent_dim"]
    assert record["all"] > 2 * np.mean(samples.test_labels == majority)


def test_without_labels_there_is_no_probe(load):
    cells, make = load("experiments.probe").cells, load("settings").make_setting
    assert cells(make("seconds", "patches16")) == []
    assert len(cells(make("seconds", "digits"))) == 7


def test_seeds_are_compared_in_pairs(load):
    def record(codes, kl_weight, seed, accuracy):
        told = {"data": "digits", "codes": codes, "kl_weight": kl_weight, "seed": seed}
        return told | {"few": accuracy, "all": accuracy}

    records = [
        record(*kind, seed, accuracies[seed])
        for seed in range(2)
        for kind, accuracies in {
            ("aligned", "1"): (0.5, 0.9),
            ("plain", "1"): (0.4, 0.8),
            ("PCA", ""): (0.3, 0.9),
        }.items()
    ]
    above = load("shown.probe").above
    # Of unpaired seeds, half of the pairs would have it the other way.
    assert above(records, "1", "plain", "all").holds
    # As good is not better.
    claim = above(records, "1", "PCA", "few")
    assert not claim.holds
    assert "digits 1 of 2 (+0.100)" in claim.sentence
