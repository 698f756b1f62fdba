"""Claims of the papers' experiments about records, and columns of their tables."""

import numpy as np
import pytest

SHARES = 0.02, 0.1, 0.3, 0.6, 0.9, 1.1, 1.5
COLLAPSE = "1.5 β*"


def prevention():
    verdicts = {
        "aligned": "certified",
        "alignment removed": "varies",
        "never aligned": "inconclusive",
        "rescued": "certified",
        "forced constant": "constant",
    }
    for kl_weight, alive in (("1", True), (COLLAPSE, False)):
        for phase, verdict in verdicts.items():
            informative = alive or verdict == "certified"
            state = "informative" if informative else "collapsed"
            given = {"phase": phase, "kl_weight": kl_weight}
            yield given | {"verdict": verdict, "state": state}


def longer():
    yield {"case": "alignment removed, 5 times the epochs", "verdict": "varies"}
    yield {"case": "rescued, 4 times the epochs", "verdict": "certified"}
    yield {"case": "rescued, 10 times the weight", "verdict": "certified"}


def variants():
    collapsed = {"kl_weight": "1", "verdict": "inconclusive", "state": "collapsed"}
    yield collapsed | {"variant": "vanilla"}
    for variant in ("RST", "RST-prefit", "RST-alpha-prefit"):
        yield {"variant": variant, "kl_weight": "1", "verdict": "certified"}


def escape():
    yield {"start": -0.01, "end": 0.8, "escape_gradient_least": 0.1}


def sweep():
    """At a KL of 10, an aligned model costs 2 nats."""
    for share in SHARES:
        for aligned in (False, True):
            kept, kl = max(1 - share, 0.0), 10.0 if aligned else 20 * (1.5 - share)
            yield {
                "kl_weight": f"{share} β*",
                "model": "aligned" if aligned else "plain",
                "share": share,
                "linear": kept,
                "estimate": kept,
                "state": "informative" if aligned or share <= 0.9 else "collapsed",
                "verdict": "certified" if aligned else "varies",
                "kl": kl,
                "reconstruction": 3 * kl - 2 * aligned,
            }


def mitigations():
    """All at the rate and equally good, but for one objective."""
    same = {"linear_verdict": "certified", "valid_kl": 4.0, "elbo": 1.0}
    same |= {"unexplained": 0.5, "probe": 0.9}
    alive = {"low": 2.0, "estimate": 2.0, "high": 2.1}
    dead = {"low": 0.1, "estimate": 0.1, "high": 0.2}
    for name in ("alignment", "ELBO and alignment", "ELBO", "DeltaVAE"):
        verdict = "certified" if "alignment" in name else "varies"
        for seed in (0, 1):
            given = {"objective": name, "seed": seed, "verdict": verdict}
            yield same | (dead if name == "DeltaVAE" else alive) | given


def probe():
    kinds = {("aligned", "1"): 0.9, ("plain", "1"): 0.8}
    kinds |= {("aligned", "0.3 β*"): 0.9, ("plain", "0.3 β*"): 0.8}
    kinds |= {("PCA", ""): 0.7, ("teacher posterior", ""): 0.6}
    for (codes, kl_weight), accuracy in kinds.items():
        for seed in (0, 1):
            # Of unpaired seeds, some would have it the other way.
            given = {"codes": codes, "kl_weight": kl_weight, "seed": seed}
            yield given | dict.fromkeys(("few", "all"), accuracy - 0.4 * seed)


def ablations():
    """Margins that rise a little with every factor."""
    base = {"n_components": 10, "witness_scale": 1, "alignment_weight": 10}
    base |= {"width": 64, "latent_dim": 16}
    cells = [("1", "none", "-")]
    cells += [("1", factor, 4 * value) for factor, value in base.items()]
    cells += [(COLLAPSE, "alignment_weight", weight) for weight in (1, 10)]
    for kl_weight, factor, value in cells:
        share = 1 if factor == "none" else value / base[factor]
        given = {"kl_weight": kl_weight, "factor": factor, "value": value, "seed": 0}
        forecast = {"forecast": 0.95, "train_relative": 0.95}
        yield base | given | forecast | {"relative": 0.8 + 0.01 * np.log(share)}


def gallery():
    constant = {"verdict": "varies", "margin": -0.1, "information": 1.0}
    yield {"case": "the best constant"} | constant
    yield {"case": "a deaf decoder", "state": "ignored", "low": 1.0, "high": 2.0}
    yield {"case": "a constant teacher", "refusal": "ValueError"}
    yield {"case": "permuted, on test samples"} | constant
    yield {"case": "best of 1,000 linear maps"} | constant


ALL = [prevention, longer, variants, escape, sweep, mitigations, probe, ablations]
ALL.append(gallery)
MUST = {"prevention": [0, 3, 4], "variants": [1, 2, 3], "escape": [0, 1]}
MUST |= {"sweep": [3], "mitigations": [0], "gallery": [0, 1, 2, 3]}


@pytest.fixture
def claims(papers):
    """Return the claims of an experiment on its records, one of them changed."""

    def of(records, place=0, **values):
        changed = [{"data": "digits", "seed": 0} | record for record in records()]
        changed[place] |= values
        return papers(f"shown.{records.__name__}").claims(changed)

    return of


@pytest.mark.parametrize("records", ALL)
def test_claims_hold_of_records_that_are_as_they_should_be(claims, records):
    found = claims(records)
    assert all(claim.holds for claim in found)
    must = [i for i, claim in enumerate(found) if claim.must]
    assert must == MUST.get(records.__name__, [])


@pytest.mark.parametrize(
    ("records", "place", "values", "broken"),
    [
        (prevention, 0, {"verdict": "inconclusive"}, [0]),
        (prevention, 1, {"verdict": "certified"}, [1]),
        (prevention, 2, {"verdict": "certified"}, [2]),
        (prevention, 3, {"verdict": "varies"}, [3]),
        (prevention, 4, {"verdict": "certified"}, [4]),
        (prevention, 3, {"state": "ignored"}, [5]),
        (prevention, 2, {"state": "collapsed"}, []),
        (prevention, 6, {"state": "informative"}, [6]),
        (longer, 0, {"verdict": "certified"}, [0]),
        (longer, 2, {"verdict": "varies"}, [1]),
        (variants, 0, {"verdict": "certified"}, [0]),
        (variants, 2, {"verdict": "inconclusive"}, [2]),
        (variants, 0, {"state": "informative"}, [4]),
        (escape, 0, {"start": 0.1}, [0]),
        (escape, 0, {"end": 0.1}, [0]),
        (escape, 0, {"escape_gradient_least": 0.0}, [1]),
        (sweep, 10, {"state": "informative"}, [0]),
        (sweep, 6, {"state": "undecided"}, [1]),
        (sweep, 8, {"estimate": 0.049}, [2]),
        # Of every KL weight, too.
        (sweep, 13, {"verdict": "inconclusive"}, [3, 4]),
        (sweep, 5, {"state": "ignored"}, [4]),
        (sweep, 5, {"reconstruction": 30.1}, [5]),
        (mitigations, 0, {"verdict": "varies"}, [0]),
        (mitigations, 6, {"valid_kl": 4.5}, [1]),
        (mitigations, 4, {"verdict": "certified"}, [2]),
        (mitigations, 6, {"high": 2.2}, [3]),
        (mitigations, 1, {"estimate": 1.9}, [4]),
        (mitigations, 1, {"elbo": 0.0}, [4]),
        (mitigations, 2, {"unexplained": 0.6}, [5]),
        (mitigations, 2, {"probe": 0.0}, [5]),
        # Records that miss the rate are not compared.
        (mitigations, 1, {"valid_kl": 3.0, "estimate": 1.9, "elbo": 0.0}, [1]),
        # As good is not better.
        (probe, 0, {"few": 0.8}, [0]),
        (probe, 9, {"all": 0.6}, [3, 9]),
        (ablations, 1, {"relative": 0.6}, [0]),
        (ablations, 3, {"relative": 0.79}, [6]),
        (ablations, 7, {"train_relative": 0.8}, [4]),
        (gallery, 0, {"verdict": "certified"}, [0]),
        (gallery, 1, {"low": 3.0}, [1]),
        (gallery, 1, {"state": "informative"}, [2]),
        (gallery, 2, {"case": "a nearly constant teacher"}, [3]),
        (gallery, 3, {"verdict": "certified"}, [4]),
        (gallery, 4, {"verdict": "certified"}, [5]),
    ],
)
def test_a_claim_is_broken_by_a_record_that_denies_it(
    claims, records, place, values, broken
):
    found = claims(records, place, **values)
    assert [i for i, claim in enumerate(found) if not claim.holds] == broken


def test_a_tally_counts_and_names_where_it_is_not_so(papers):
    tally, certified = papers("claims").tally, papers("claims").certified
    records = [
        {"kl_weight": "1", "value": 2, "verdict": verdict}
        for verdict in ("certified", "varies", "varies")
    ]
    by = "kl_weight", "value"
    text = "all are: 1 of 3 (kl_weight 1, value 2: 1 of 3)"
    assert tally(records, by, "all are", certified) == (text, False, False)
    assert tally(records[:1], by, "all are", certified).holds
    assert tally(records[1:], by, "none is", certified, False).holds
    # Without records there is no claim.
    assert not tally([], by, "all are", certified).holds


def test_the_price_is_the_height_above_an_aligned_model(claims):
    sentence = claims(sweep)[-1].sentence
    # Of a span of 20 (1.5 - 0.02) 3 nats.
    assert "2.0, 2.3 % at 0.3 β*" in sentence
    assert "the KL of 0 of 7 " in sentence


@pytest.mark.parametrize("kl", [-1, 29.7])
def test_no_price_where_no_plain_model_has_such_a_kl(claims, kl):
    claim = claims(sweep, 5, kl=kl, reconstruction=99.0)[-1]
    assert claim.holds
    assert "0.3 β*" not in claim.sentence
    assert "the KL of 1 of 7 " in claim.sentence


def test_without_a_common_seed_nothing_is_compared(papers):
    given = [{"data": "digits"} | record for record in mitigations()]
    *_, claim = papers("shown.mitigations").claims([given[0], given[3], given[4]])
    assert not claim.holds
    assert claim.sentence.endswith("no seed has both")


def test_seeds_are_compared_in_pairs(papers):
    records = [
        {"data": "digits", "seed": seed, "all": 0.1 * seed} for seed in (2, 1, 0)
    ]
    others = [{"data": "digits", "seed": seed, "all": 0.0} for seed in (1, 2)]
    gains = papers("records").gains
    assert [pair["gain"] for pair in gains(records, others, "all")] == [0.2, 0.1]
    assert gains(records[-1:], others, "all") == gains(records, others, "few") == []


def test_columns_count_verdicts_and_hold_the_bracket_of_every_seed(papers):
    tables = papers("tables")
    records = [{"verdict": verdict} for verdict in ("constant", "varies", "varies")]
    assert tables.counts("verdict")(records) == "2 varies, 1 constant"
    # Rounded outwards.
    records = [{"low": 1.1, "high": 1.2001}, {"low": 0.9999, "high": 1.05}]
    assert tables.bracket(records) == "0.99 to 1.21"
    assert tables.bracket([{"low": 0.0, "high": 0.0}]) == "0.00 to 0.00"
    assert tables.interval([1, 2, 4]) == "2.00 (1.00 to 4.00)"
    assert (
        tables.interval([-0.001, 0.001], "{:.0e}".format) == "0e+00 (-1e-03 to 1e-03)"
    )
    assert tables.interval([-0.001, 0.001]) == "0.00"
