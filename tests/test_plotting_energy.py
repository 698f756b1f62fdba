import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier
from skvaecert.metrics import margin_energy_path
from skvaecert.plotting import MarginEnergyDisplay


def test_energy_shows_the_path_the_information_and_the_model(blobs, fitted):
    vae, certificate = fitted.estimator_, fitted.certify(blobs)
    mean = vae.transform(blobs)
    path = margin_energy_path(vae.teacher_.transform(blobs), vae.witness_scale_)
    for estimator in (vae, fitted):
        display = MarginEnergyDisplay.from_estimator(estimator, blobs, color="red")
        np.testing.assert_array_equal(display.line_.get_xdata(), path.energy)
        np.testing.assert_array_equal(display.line_.get_ydata(), path.margin)
        assert display.line_.get_color() == "red"
        (energy,), (margin,) = display.point_.get_data()
        assert energy == pytest.approx((mean**2).sum() / len(mean) / 2)
        assert margin == pytest.approx(certificate.margin)
        levels = [np.unique(line.get_ydata()) for line in display.ax_.lines]
        assert any(np.array_equal(level, [0]) for level in levels)
        information = certificate.teacher_information
        assert any(level == pytest.approx([information]) for level in levels)
        assert (
            display.ax_.get_xlabel() == "energy of the latent means (nats per sample)"
        )
        assert len(display.ax_.get_legend().get_texts()) == 5


def test_the_ring_counts_the_dimensions_of_the_witness(blobs, fitted):
    display = MarginEnergyDisplay.from_estimator(fitted, blobs)
    (ring,), (margin,) = display.ring_.get_data()
    # Four components: the first three dimensions.
    seen = (fitted.transform(blobs)[:, :3] ** 2).sum() / len(blobs) / 2
    assert ring == pytest.approx(seen)
    assert 0 < ring < display.energy
    assert margin == display.margin


class Constant:
    def transform(self, X):
        return np.full((len(X), 4), 0.01)


def test_a_collapsed_model_is_at_the_beginning(blobs, fitted):
    teacher = FrozenEstimator(fitted.teacher_)
    collapsed = CollapseCertifier(Constant(), teacher=teacher).fit(blobs)
    display = MarginEnergyDisplay.from_estimator(collapsed, blobs)
    assert display.energy < 0.05 * display.path_energy[-1]
    assert display.margin <= 0


@pytest.mark.slow
def test_the_witness_must_be_the_fixed_simplex(blobs, fitted):
    encoder = FrozenEstimator(fitted.estimator_)
    other = CollapseCertifier(encoder, witness="linear").fit(blobs)
    with pytest.raises(ValueError, match=r"fixed simplex, got CollapseCertifier"):
        MarginEnergyDisplay.from_estimator(other, blobs)
