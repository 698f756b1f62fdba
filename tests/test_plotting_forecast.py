import dataclasses
import re

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from skvaecert.plotting import ForecastDisplay


@pytest.fixture
def vae(small_vae, fitted):
    """Unfitted, with a fitted teacher."""
    return small_vae.set_params(teacher=FrozenEstimator(fitted.teacher_))


def labels(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_a_forecast_has_two_curves_and_the_weights(blobs, vae):
    forecast = vae.set_params(kl_weight=4).forecast(blobs, ratio=[0.1, 1, 10])
    display = ForecastDisplay(forecast).plot()
    margin, energy = display.margin_line_, display.energy_line_
    np.testing.assert_array_equal(margin.get_xdata(), [0.1, 1, 10])
    np.testing.assert_array_equal(margin.get_ydata(), forecast.margin)
    np.testing.assert_array_equal(energy.get_ydata(), forecast.energy)
    assert margin.axes is display.ax_
    assert energy.axes is display.energy_ax_
    assert display.ax_.get_xscale() == "log"
    levels = [np.unique(line.get_ydata()) for line in display.ax_.lines]
    assert any(np.array_equal(level, [0]) for level in levels)
    assert any(np.array_equal(lv, [forecast.teacher_information]) for lv in levels)
    dots = display.point_, display.energy_ax_.lines[-1]
    heights = forecast.operating_margin, forecast.operating_energy
    for dot, height in zip(dots, heights, strict=True):
        np.testing.assert_array_equal(dot.get_xydata(), [[2.5, height]])
    assert "these weights: ratio 2.5" in labels(display)
    # Zero is at the same height on both sides.
    low, high = display.ax_.get_ylim()
    energy_low, energy_high = display.energy_ax_.get_ylim()
    assert energy_low / energy_high == pytest.approx(low / high)


@pytest.mark.parametrize(
    ("threshold", "kept", "outcome"),
    [
        (9.53, 2.484, "a linear VAE keeps 2.48 nats:.* is below the threshold 9.53"),
        (4.0, 0.0, "a linear VAE collapses:.* is not below the threshold 4"),
        (9.53, None, "collapse is no optimum:.* is below the threshold 9.53"),
        (3.35, None, "collapse is a local optimum:.* is not below the threshold 3.35"),
    ],
)
def test_a_forecast_shows_collapse(blobs, vae, threshold, kept, outcome):
    values = {"collapse_threshold": threshold, "linear_information": kept}
    forecast = vae.set_params(kl_weight=4).forecast(blobs)
    display = ForecastDisplay(dataclasses.replace(forecast, **values)).plot()
    title = display.ax_.get_legend().get_title().get_text()
    assert re.fullmatch(f"Without alignment, {outcome}", title.replace("\n", " "))
    assert "kl_weight 4 is" in title


def test_a_forecast_for_a_target(blobs, vae):
    vae.set_params(alignment_weight="auto", target_margin=0.75)
    display = ForecastDisplay.from_estimator(vae, blobs, color="red")
    assert display.margin_line_.get_color() == "red"
    assert any(label.startswith("for a margin of 75%") for label in labels(display))
    assert not hasattr(vae, "net_")


@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (0, 0)])
def test_a_forecast_that_cannot_show_the_weights(blobs, vae, fitted, weights):
    alignment_weight, kl_weight = weights
    vae.set_params(alignment_weight=alignment_weight, kl_weight=kl_weight)
    proba = fitted.teacher_.predict_proba(blobs)
    display = ForecastDisplay.from_estimator(
        vae.set_params(teacher=None),
        blobs,
        ratio=[0, 0.1, 10, np.inf],
        teacher_proba=proba,
    )
    assert display.point_ is None
    np.testing.assert_array_equal(display.margin_line_.get_xdata(), [0.1, 10])
    assert len(display.forecast.ratio) == 4
