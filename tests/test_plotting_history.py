import numpy as np
import pytest

from skvaecert import CertifiedVAE, CollapseCertifier
from skvaecert.plotting import MarginHistoryDisplay

HISTORY = [
    {"epoch": 1, "margin": -0.1, "kl_weight": 8.0, "alignment_weight": 0.0},
    {"epoch": 2, "margin": -0.2, "kl_weight": 8.0, "alignment_weight": 0.0},
    {"epoch": 3, "margin": 0.7, "kl_weight": 8.0, "alignment_weight": 10.0},
]
HISTORY = [record | {"teacher_information": 1.5} for record in HISTORY]


def test_draws_margin_zero_and_information():
    display = MarginHistoryDisplay(HISTORY).plot(color="red", label="x")
    np.testing.assert_array_equal(display.line_.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(display.line_.get_ydata(), [-0.1, -0.2, 0.7])
    assert display.line_.get_color() == "red"
    assert display.line_.get_label() == "x"
    levels = [np.unique(line.get_ydata()) for line in display.ax_.lines]
    assert any(np.array_equal(level, [0]) for level in levels)
    assert any(np.array_equal(level, [1.5]) for level in levels)
    assert display.ax_.get_xlabel() == "epoch"


def test_marks_where_weights_changed():
    display = MarginHistoryDisplay(HISTORY).plot()
    np.testing.assert_array_equal(display.changes, [2])
    assert any(line.get_xdata()[0] == 2.5 for line in display.ax_.lines)
    assert len(MarginHistoryDisplay(HISTORY[:1]).changes) == 0


def test_from_estimators(fitted):
    margins = [record["margin"] for record in fitted.estimator_.history_]
    for estimator in (fitted, fitted.estimator_):
        display = MarginHistoryDisplay.from_estimator(estimator)
        np.testing.assert_array_equal(display.line_.get_ydata(), margins)
        assert len(display.changes) == 0


class Projection:
    def transform(self, X):
        return X[:, :4]


def test_unfitted_and_without_history(fitted, blobs):
    with pytest.raises(ValueError, match="not fitted"):
        MarginHistoryDisplay.from_estimator(CertifiedVAE())
    proba = fitted.teacher_.predict_proba(blobs)
    other = CollapseCertifier(Projection()).fit(blobs, teacher_proba=proba)
    with pytest.raises(ValueError, match=r"estimator must have a history_.*got Proj"):
        MarginHistoryDisplay.from_estimator(other)
