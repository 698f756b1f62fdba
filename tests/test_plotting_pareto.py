import numpy as np
import pytest
from sklearn.base import BaseEstimator

from skvaecert.model_selection import LOWEST_SCORE
from skvaecert.plotting import ParetoDisplay


class Searched(BaseEstimator):
    """The attributes of a search that a display reads."""

    best_index_ = 2

    def fit(self, **columns):
        self.cv_results_ = {f"mean_test_{k}": np.array(v) for k, v in columns.items()}
        return self


COLUMNS = {
    "margin": [-0.5, 0.4, 0.8, 0.9, 0.7, np.nan],
    "reconstruction": [-0.1, -0.2, -0.3, -0.5, -0.4, np.nan],
    "certified": [0, 1, 1, 1, 0.5, np.nan],
}


def test_the_front_joins_what_no_other_beats():
    display = ParetoDisplay.from_search(Searched().fit(**COLUMNS))
    np.testing.assert_array_equal(display.front, [3, 2, 1, 0])
    np.testing.assert_array_equal(display.line_.get_xdata(), [-0.5, -0.3, -0.2, -0.1])
    # Dominated, and not certified in each fold.
    assert [-0.4, 0.7] in display.other_points_.get_xydata().tolist()
    assert display.certified_points_.get_xydata().tolist() == [
        [-0.2, 0.4],
        [-0.3, 0.8],
        [-0.5, 0.9],
    ]
    assert display.certified_points_.get_fillstyle() == "full"
    assert display.other_points_.get_fillstyle() == "none"
    np.testing.assert_array_equal(display.ring_.get_xydata(), [[-0.3, 0.8]])
    assert display.ax_.get_xlabel().startswith("reconstruction")
    assert len(display.ax_.get_legend().get_texts()) == 5


def test_the_front_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(6, size=(2, 12)).astype(float)
        display = ParetoDisplay(score=x, margin=y, certified=y > 0)
        beaten = [
            any((x >= a) & (y >= b) & ((x > a) | (y > b)))
            for a, b in zip(x, y, strict=True)
        ]
        expected = set(zip(x[~np.array(beaten)], y[~np.array(beaten)], strict=True))
        front = display.front
        assert set(zip(x[front], y[front], strict=True)) == expected
        assert (np.diff(x[front]) > 0).all()


def test_candidates_without_a_value_are_left_out():
    columns = COLUMNS | {"elbo": [1, LOWEST_SCORE / 5, 3, 2, 1, np.nan]}
    display = ParetoDisplay.from_search(
        Searched().fit(**columns), against="elbo", color="red"
    )
    assert display.line_.get_color() == "red"
    np.testing.assert_array_equal(display.front, [3, 2])
    assert display.ax_.get_xlim()[0] > 0
    assert display.ax_.get_xlabel() == "ELBO (nats per sample)"


def test_no_candidates_to_draw():
    with pytest.raises(ValueError, match=r"score 'elbo'.*certificate_scorers"):
        ParetoDisplay.from_search(Searched().fit(**COLUMNS), against="elbo")
    ring = ParetoDisplay(score=[1], margin=[1], certified=[True]).plot().ring_
    assert ring is None
