import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from sklearn.base import clone
from sklearn.decomposition import PCA

from skvaecert import diagnose
from skvaecert.plotting import InformationBracketDisplay

MEAN = np.random.default_rng(0).normal(size=(60, 4))
NAMES = ["strong", "dead", "deaf", "no noise given"]


@pytest.fixture(scope="module")
def diagnoses():
    """One of each state."""
    strong = np.full(MEAN.shape, 0.05)
    deaf = {"decode": lambda z: np.zeros((len(z), 4)), "X": MEAN}
    found = [
        diagnose(MEAN, strong, random_state=0),
        diagnose(MEAN, np.full(MEAN.shape, 400.0), random_state=0),
        diagnose(MEAN, strong, random_state=0, **deaf),
        diagnose(MEAN, None, random_state=0),
    ]
    return dict(zip(NAMES, found, strict=True))


def ends(bar):
    return bar.get_x(), bar.get_x() + bar.get_width()


def test_bars_are_the_brackets_and_labels_say_the_states(diagnoses):
    states = [one.state for one in diagnoses.values()]
    # They differ, or the test would say little.
    assert states == ["informative", "collapsed", "ignored", "undecided"]
    display = InformationBracketDisplay.from_diagnoses(diagnoses)
    brackets = [one.information for one in diagnoses.values()]
    for i, found in enumerate(brackets[:3]):
        assert ends(display.bars_[i]) == pytest.approx((0, found.low))
        assert ends(display.open_bars_[i]) == pytest.approx((found.low, found.high))
        assert display.limits_.get_xdata()[i] == pytest.approx(np.log(60))
    assert np.isnan(display.open_bars_[3].get_width())
    labels = [label.get_text() for label in display.labels_]
    strong, dead, deaf, unknown = labels
    assert strong.startswith("informative: ")
    assert said(strong) == pytest.approx(brackets[0].high, abs=0.01)
    assert dead.startswith("collapsed: at most ")
    # Rounded up, since less was not shown.
    assert brackets[1].high <= said(dead) < 10 * brackets[1].high
    assert deaf.startswith("ignored by the decoder: ")
    assert unknown == "undecided: no standard deviations to draw codes with"


def said(label):
    return float(label.split()[-2])


def test_a_collapsed_code_is_a_stroke_before_the_line_of_the_negligible(diagnoses):
    one = {"dead": diagnoses["dead"]}
    display = InformationBracketDisplay.from_diagnoses(one)
    left, right = ends(display.open_bars_[0])
    line = display.negligible_.get_xdata()
    assert 0 <= left < right < line[0] == line[1] == 0.05
    # A pixel wide or more, in a color of its own.
    assert display.open_bars_[0].get_linewidth() >= 2
    assert display.ax_.get_xlim()[0] < 0
    assert display.ax_.get_xlim()[1] > np.log(60)


def test_colors_and_labels_differ_between_states(diagnoses):
    display = InformationBracketDisplay.from_diagnoses(diagnoses)
    assert len({to_hex(bar.get_edgecolor()) for bar in display.open_bars_}) == 4


def test_models_stand_in_their_order_from_the_top(diagnoses):
    display = InformationBracketDisplay.from_diagnoses(diagnoses)
    names = {t.get_text(): t.get_position()[1] for t in display.ax_.get_yticklabels()}
    assert list(names) == NAMES
    low, high = display.ax_.get_ylim()
    heights = list(names.values())
    assert high > heights[0] > heights[1] > heights[2] > heights[3] > low
    for label, height in zip(display.labels_, heights, strict=True):
        assert height < label.get_position()[1] < height + 0.5


def test_labels_stay_inside_the_axes_and_off_the_edge_for_any_number_of_samples():
    few = diagnose(MEAN[:2], np.full((2, 4), 400.0), random_state=0)
    display = InformationBracketDisplay.from_diagnoses({"two samples": few})
    display.figure_.canvas.draw()
    frame = display.ax_.get_window_extent()
    for label in display.labels_:
        box = label.get_window_extent()
        assert frame.x0 < box.x0 < box.x1 < frame.x1
        assert frame.y0 < box.y0 < box.y1 < frame.y1
        assert box.x0 - display.ax_.transData.transform((0, 0))[0] > 4


def test_the_bracket_of_an_estimator_is_that_of_its_diagnosis(fitted, shared_blobs):
    X = shared_blobs[1::2]
    found = fitted.diagnose(X).information
    display = InformationBracketDisplay.from_estimator(fitted, X, color="k")
    assert display.names == ["CertifiedVAE"]
    assert display.state == ["informative"]
    assert ends(display.open_bars_[0]) == pytest.approx(
        (found.low, found.high), abs=0.02
    )
    assert display.bars_[0].get_facecolor() == (0, 0, 0, 1)


@pytest.mark.slow
def test_a_dead_vae_is_drawn_as_collapsed(fitted, shared_blobs):
    dead = clone(fitted).set_params(
        estimator__alignment_weight=0, estimator__kl_weight=100, estimator__max_epochs=9
    )
    dead.fit(shared_blobs[::2])
    display = InformationBracketDisplay.from_estimator(dead, shared_blobs[1::2])
    assert display.state == ["collapsed"]
    assert display.high[0] < 0.05


def test_what_has_no_bracket_is_an_error(blobs):
    with pytest.raises(ValueError, match="at least one diagnosis"):
        InformationBracketDisplay.from_diagnoses({})
    nothing = {"low": [], "high": [], "limit": []}
    with pytest.raises(ValueError, match="at least one model"):
        InformationBracketDisplay(names=[], state=[], **nothing)
    wrong = {"names": ["a"], "low": [0], "high": [1], "limit": [1]}
    with pytest.raises(ValueError, match="only informative, collapsed, ignored, undec"):
        InformationBracketDisplay(state=["dead"], **wrong)
    with pytest.raises(ValueError, match=r"has diagnose, got PCA.*from_diagnoses"):
        InformationBracketDisplay.from_estimator(PCA(2).fit(blobs), blobs)


def test_a_name_is_no_formula(diagnoses):
    display = InformationBracketDisplay.from_diagnoses({"$x$": diagnoses["strong"]})
    display.figure_.canvas.draw()
    assert display.ax_.get_yticklabels()[0].get_text() == r"\$x\$"
    plt.close(display.figure_)
