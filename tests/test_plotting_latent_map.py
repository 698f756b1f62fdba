import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sklearn.decomposition import PCA

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.plotting import LatentMapDisplay

# Maps linear light to what is seen without one of the three kinds of cones
# (Machado, Oliveira and Fernandes 2009, severity 1).
WITHOUT_RED = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
WITHOUT_GREEN = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


def light(color):
    """Return linear light of red, green and blue."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lightness_and_hue(rgb):
    """CIE L*a*b* of linear light."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_map_shows_what_the_witness_sees(fitted, blobs):
    display = LatentMapDisplay.from_estimator(fitted, blobs)
    # Four components: the first three dimensions, and nothing of the free ones.
    seen = fitted.transform(blobs)[:, :3]
    expected = PCA(2).fit_transform(seen)
    shown = display.coordinates - display.coordinates.mean(axis=0)
    np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-5)
    proba = fitted.teacher_.predict_proba(blobs)
    np.testing.assert_array_equal(display.component, proba.argmax(axis=1))
    assert "what the witness reads" in display.ax_.get_xlabel()
    offsets = np.concatenate([points.get_offsets() for points in display.points_])
    assert len(offsets) == len(blobs)


def test_the_map_of_all_dimensions_is_pca(fitted, blobs):
    display = LatentMapDisplay.from_estimator(fitted, blobs, subspace="all")
    expected = PCA(2).fit_transform(fitted.transform(blobs))
    shown = display.coordinates - display.coordinates.mean(axis=0)
    np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-5)
    assert "of the latent means" in display.ax_.get_ylabel()
    with pytest.raises(ValueError, match="subspace must be 'witness' or 'all'"):
        LatentMapDisplay.from_estimator(fitted, blobs, subspace="free")


def test_arrows_point_to_where_codes_are_wanted(fitted, blobs):
    display = LatentMapDisplay.from_estimator(fitted, blobs)
    middle = display.coordinates.mean(axis=0)
    assert [arrow.get_text() for arrow in display.arrows_] == ["0", "1", "2", "3"]
    for k, arrow in enumerate(display.arrows_):
        # An aligned code: the samples of a component lie on the side of its arrow.
        ray = np.array(arrow.get_position()) - middle
        center = display.coordinates[display.component == k].mean(axis=0) - middle
        if np.linalg.norm(display.directions[k]) > 0.5 * np.max(display.directions):
            assert ray @ center > 0
        cosine = ray @ display.directions[k] / np.linalg.norm(ray)
        assert cosine == pytest.approx(np.linalg.norm(display.directions[k]))


def test_numbers_of_arrows_do_not_overlap():
    directions = [[1, 0], [1, 0.01], [0.99, 0], [0, 0.001], [0, 0]]
    display = LatentMapDisplay(
        np.random.default_rng(0).normal(size=(50, 2)),
        np.arange(50) % 5,
        directions=directions,
    ).plot()
    places = np.array([arrow.get_position() for arrow in display.arrows_])
    apart = np.linalg.norm(places[:, None] - places, axis=2)[np.triu_indices(5, 1)]
    reach = np.ptp(display.coordinates)
    assert apart.min() > 0.04 * reach


@pytest.mark.slow
def test_components_differ_in_gray_and_for_the_color_blind():
    display = LatentMapDisplay(np.eye(12, 2), np.arange(12)).plot()
    shapes = {points.get_paths()[0].vertices.tobytes() for points in display.points_}
    assert len(shapes) == 12
    colors = [tuple(points.get_facecolor()[0][:3]) for points in display.points_]
    distinct = list(dict.fromkeys(colors))
    assert len(distinct) == 7
    for change in (np.eye(3), WITHOUT_RED, WITHOUT_GREEN):
        seen = [lightness_and_hue(change @ light(color)) for color in distinct]
        apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 15
    # The measure works: a red and a green of the same lightness fail it.
    pair = (WITHOUT_GREEN @ light(color) for color in ("tab:red", "tab:green"))
    red, green = map(lightness_and_hue, pair)
    assert np.linalg.norm(red - green) < 10


def test_color_and_marker_together_distinguish_84_components():
    coordinates = np.random.default_rng(0).normal(size=(84, 2))
    display = LatentMapDisplay(coordinates, np.arange(84)).plot()
    looks = {
        (p.get_paths()[0].vertices.tobytes(), *p.get_facecolor()[0])
        for p in display.points_
    }
    assert len(looks) == 84


def test_a_map_without_samples_of_a_component_keeps_the_looks_of_the_others():
    coordinates = np.eye(3, 2)
    few = LatentMapDisplay(coordinates, [0, 2, 2]).plot()
    all_ = LatentMapDisplay(coordinates, [0, 1, 2]).plot()
    assert [points.get_label() for points in few.points_] == ["0", "2"]
    np.testing.assert_array_equal(
        few.points_[1].get_facecolor(), all_.points_[2].get_facecolor()
    )


def test_a_code_of_one_dimension_is_drawn_by_component(blobs):
    certifier = CollapseCertifier(
        PCA(1), teacher=GMMTeacher(2, covariance_type="full", random_state=0)
    ).fit(blobs)
    display = LatentMapDisplay.from_estimator(certifier, blobs, s=3)
    assert display.coordinates.shape == (120, 1)
    assert display.ax_.get_ylabel() == "teacher's cluster"
    heights = np.concatenate([p.get_offsets()[:, 1] for p in display.points_])
    np.testing.assert_array_equal(heights, np.sort(display.component))
    assert display.points_[0].get_sizes() == [3]


@pytest.mark.slow
def test_a_collapsed_code_has_a_map():
    display = LatentMapDisplay(
        np.ones((4, 2)), [0, 1, 0, 1], directions=[[1, 0], [-1, 0]]
    ).plot()
    display.figure_.canvas.draw()
    assert np.isfinite(display.ax_.get_xlim()).all()
