import matplotlib.colors
import numpy as np
import pytest
from sklearn.decomposition import PCA

from skvaecert import CollapseCertifier
from skvaecert.metrics import (
    collapse_margin,
    component_contributions,
    component_information,
    margin_contributions,
)
from skvaecert.plotting import ContributionDisplay
from skvaecert.simplex import witness_log_proba


@pytest.fixture
def read(fitted, blobs):
    """T and log q on the blobs."""
    vae = fitted.estimator_
    log_q = witness_log_proba(
        fitted.transform(blobs), vae.vertices_, vae.witness_scale_
    )
    return vae.teacher_.predict_proba(blobs), log_q


def test_contributions_are_the_metric_and_their_mean_is_the_margin(fitted, blobs, read):
    expected = margin_contributions(*read)
    for estimator in (fitted, fitted.estimator_):
        display = ContributionDisplay.from_estimator(estimator, blobs)
        np.testing.assert_allclose(display.contributions, expected)
        assert display.margin == pytest.approx(collapse_margin(*read))
        assert display.share_below == (expected < 0).mean()
        (line,) = [one for one in display.ax_.lines if one.get_linestyle() == "--"]
        assert line.get_xdata()[0] == display.margin


def luminance(color):
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_no_bin_has_samples_of_both_sides():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, size=500)
    weight = rng.uniform(size=500)
    display = ContributionDisplay(values, sample_weight=weight).plot()
    heights = np.array([bar.get_height() for bar in display.bars_])
    below = np.array([bar.get_x() + bar.get_width() < 1e-9 for bar in display.bars_])
    assert heights.sum() == pytest.approx(100)
    assert heights[below].sum() == pytest.approx(100 * display.share_below)
    assert display.share_below == pytest.approx(weight[values < 0].sum() / weight.sum())
    # Hatched, and of another luminance: they differ in gray, too, in two ways.
    assert {bar.get_hatch() for bar in display.bars_[: below.sum()]} == {"////"}
    assert not any(bar.get_hatch() for bar in display.bars_[below.sum() :])
    one, other = (luminance(display.bars_[i].get_facecolor()) for i in (0, -1))
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) > 2


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.4], [-0.4, -0.4], [-1e-9, 5.0]])
def test_contributions_that_hardly_make_a_histogram(values):
    display = ContributionDisplay(values).plot()
    display.figure_.canvas.draw()
    assert sum(bar.get_height() for bar in display.bars_) == pytest.approx(100)


def test_components_have_bars_that_add_up_to_the_margin(fitted, blobs, read):
    weight = np.linspace(0.1, 1, len(blobs))
    display = ContributionDisplay.from_estimator(
        fitted, blobs, sample_weight=weight, kind="components"
    )
    heights = [bar.get_height() for bar in display.bars_]
    np.testing.assert_allclose(heights, component_contributions(*read, weight))
    assert sum(heights) == pytest.approx(display.margin)
    hollow = [bar.get_height() for bar in display.ax_.patches[: len(heights)]]
    np.testing.assert_allclose(hollow, component_information(read[0], weight))


def test_contributions_of_an_encoder_without_a_teacher(blobs, read):
    proba, _ = read
    certifier = CollapseCertifier(PCA(4)).fit(blobs, teacher_proba=proba)
    display = ContributionDisplay.from_estimator(certifier, blobs, teacher_proba=proba)
    assert display.margin == pytest.approx(certifier.certificate_.margin)


def test_contributions_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"kind must be .* got 'pie'"):
        ContributionDisplay([0.1]).plot(kind="pie")
    with pytest.raises(ValueError, match="component_contributions must be given"):
        ContributionDisplay([0.1]).plot(kind="components")
