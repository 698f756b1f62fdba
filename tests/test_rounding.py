"""The assumed precision of values is estimated from all batches."""

import numpy as np
import pytest

from skvaecert._rounding import RoundingSums


def test_values_beyond_float32():
    sums = RoundingSums()
    sums.add(np.array([[1e100], [1.0000001e100]]), np.full(2, 0.5))
    assert sums.rounding_noise == pytest.approx(32 * 2.0**-23 * 1e100, rel=1e-6)


def test_precision_is_seen_over_all_batches():
    """A batch that fits in 16 bits, or is constant, does not determine the others."""
    values = np.r_[np.zeros(100), np.full(100, 0.5), np.pi * np.ones(100)][:, None]
    sums, whole = RoundingSums(), RoundingSums()
    for part in np.split(values, 3):
        sums.add(part, np.ones(100))
    whole.add(values, np.ones(300))
    assert sums.rounding_noise == pytest.approx(whole.rounding_noise)
    assert not sums.are_constant
