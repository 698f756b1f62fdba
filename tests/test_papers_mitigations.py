"""Mitigations: tuned to one rate whatever the KL does, and judged only there."""

import importlib
import math
import sys
from pathlib import Path

import pytest

PAPERS = Path(__file__).parents[1] / "examples" / "papers"


@pytest.fixture(scope="module")
def computed():
    """The modules that compute and that show."""
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PAPERS)
        yield importlib.import_module("experiments.mitigations")
    for name in {*sys.modules} - before:
        if str(PAPERS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def shown(computed):
    return importlib.import_module("shown.mitigations")


def search(computed, kl_of, value, slope):
    """Return the knobs and KLs of a search in which the KL is this function."""
    tried = []
    for _ in range(computed.MAX_FITS):
        tried.append((value, kl_of(value), None))
        if abs(tried[-1][1] / computed.RATE - 1) <= computed.NEAR:
            break
        value = computed.better(tried, slope)
    return tried


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
def test_the_search_finds_the_rate(computed, kl_of, start, slope):
    tried = search(computed, kl_of, start, slope)
    assert abs(tried[-1][1] / computed.RATE - 1) <= computed.NEAR
    assert computed.nearest(tried)[0] == tried[-1]


def test_a_rate_out_of_reach_ends_the_search(computed):
    tried = search(computed, lambda value: 3 - 1 / (1 + value), 1.0, 1.0)
    assert len(tried) == computed.MAX_FITS
    assert all(0 < value < math.inf for value, _, _ in tried)
    # The same KL whatever the knob.
    tried = search(computed, lambda value: 2.0, 1.0, 1.0)
    assert len({value for value, _, _ in tried}) > 1


def record(objective, seed=0, **values):
    """A record at the rate, of a code that does not face the simplex."""
    aligned = "alignment" in objective
    base = {"data": "digits", "objective": objective, "seed": seed, "valid_kl": 4.0}
    base |= {"verdict": "certified" if aligned else "varies"}
    base |= {"linear_verdict": "certified", "low": 2.0, "estimate": 2.0, "high": 2.1}
    return base | {"elbo": 1.0, "unexplained": 0.5, "probe": 0.9} | values


def judged(shown, records):
    """Return whether each claim holds."""
    return [claim.holds for claim in shown.claims(records)]


def test_each_claim_is_broken_by_what_denies_it(shown):
    names = "alignment", "ELBO and alignment", "ELBO", "DeltaVAE"
    records = [record(name, seed) for name in names for seed in (0, 1)]
    for found in records[-2:]:
        found |= {"low": 0.1, "estimate": 0.1, "high": 0.2}
    assert judged(shown, records) == [True] * 6

    def broken(place, **values):
        other = [*records[:place], records[place] | values, *records[place + 1 :]]
        return [i for i, holds in enumerate(judged(shown, other)) if not holds]

    assert broken(0, verdict="varies") == [0]
    assert broken(4, verdict="certified") == [2]
    assert broken(6, valid_kl=4.5) == [1]
    assert broken(6, high=2.2) == [3]
    for worse in ({"estimate": 1.9}, {"elbo": 0.0}, {"unexplained": 0.6}, {"probe": 0}):
        assert broken(1, **worse) == [4]
        assert broken(2, **worse) == [5]


def test_what_misses_the_rate_is_not_compared(shown):
    worse = {"estimate": 1.0, "elbo": -9.0}
    records = [record("alignment"), record("alignment", 1, valid_kl=3.0, **worse)]
    records += [record("ELBO"), record("ELBO", 1)]
    assert judged(shown, records)[1] is False
    assert judged(shown, records)[4] is True
    at_rate = [r | {"valid_kl": 4.0} for r in records]
    assert judged(shown, at_rate)[4] is False
    # Without a seed in common there is nothing to say.
    (*_, last, none) = shown.claims([r | {"valid_kl": 9.0} for r in records])
    assert not last.holds
    assert "no seed has both" in last.sentence
    assert not none.holds
