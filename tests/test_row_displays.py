import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.metrics import (
    collapse_margin,
    component_contributions,
    component_information,
    margin_contributions,
)
from skvaecert.plotting import (
    ContributionDisplay,
    LatentMapDisplay,
    ReconstructionDisplay,
)
from skvaecert.simplex import witness_log_proba

mpl.use("Agg")
import matplotlib.pyplot as plt

# How light of each kind is turned into that which is seen without one kind of cones
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


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted():
    """Rows, a certifier of a VAE that was fitted on them, and T and log q."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 4
    rows = centres[rng.integers(4, size=120)] + rng.normal(size=(120, 6))
    vae = CertifiedVAE(
        GMMTeacher(4, covariance_type="full"),
        latent_dim=5,
        hidden_sizes=(32,),
        max_epochs=30,
        learning_rate=1e-2,
        batch_size=32,
        device="cpu",
        random_state=0,
    )
    certifier = CollapseCertifier(vae).fit(rows)
    mean, vae = certifier.transform(rows), certifier.estimator_
    log_q = witness_log_proba(mean, vae.vertices_, vae.witness_scale_)
    return rows, certifier, vae.teacher_.predict_proba(rows), log_q


def light(colour):
    """Return linear light of red, green and blue."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(light(colour) @ [0.2126, 0.7152, 0.0722])


def lightness_and_hue(rgb):
    """CIE L*a*b* of linear light."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_contributions_are_the_metric_and_their_mean_is_the_margin(fitted):
    blobs, certifier, proba, log_q = fitted
    for estimator in (certifier, certifier.estimator_):
        display = ContributionDisplay.from_estimator(estimator, blobs)
        expected = margin_contributions(proba, log_q)
        np.testing.assert_allclose(display.contributions, expected)
        assert display.margin == pytest.approx(collapse_margin(proba, log_q))
        assert display.share_below == (expected < 0).mean()
        (line,) = [one for one in display.ax_.lines if one.get_linestyle() == "--"]
        assert line.get_xdata()[0] == display.margin


def test_no_bin_has_rows_of_both_sides():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, size=500)
    weight = rng.uniform(size=500)
    display = ContributionDisplay(values, sample_weight=weight).plot()
    heights = np.array([bar.get_height() for bar in display.bars_])
    below = np.array([bar.get_x() + bar.get_width() < 1e-9 for bar in display.bars_])
    assert heights.sum() == pytest.approx(100)
    assert heights[below].sum() == pytest.approx(100 * display.share_below)
    assert display.share_below == pytest.approx(weight[values < 0].sum() / weight.sum())
    # Hatched, and of another luminance: grey tells them apart, twice.
    assert {bar.get_hatch() for bar in display.bars_[: below.sum()]} == {"////"}
    assert not any(bar.get_hatch() for bar in display.bars_[below.sum() :])
    one, other = (luminance(display.bars_[i].get_facecolor()) for i in (0, -1))
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) > 2


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.4], [-0.4, -0.4], [-1e-9, 5.0]])
def test_contributions_that_hardly_make_a_histogram(values):
    display = ContributionDisplay(values).plot()
    display.figure_.canvas.draw()
    assert sum(bar.get_height() for bar in display.bars_) == pytest.approx(100)


def test_sorted_contributions_cross_zero_where_rows_begin_to_count(fitted):
    blobs, certifier, _, _ = fitted
    display = ContributionDisplay.from_estimator(
        certifier, blobs, kind="sorted", color="k"
    )
    rank, values = display.line_.get_data()
    np.testing.assert_array_equal(values, np.sort(display.contributions))
    assert rank[-1] == pytest.approx(100)
    assert (rank[values < 0].max(initial=0)) == pytest.approx(100 * display.share_below)
    assert display.line_.get_color() == "k"


def test_components_have_bars_that_add_up_to_the_margin(fitted):
    blobs, certifier, proba, log_q = fitted
    weight = np.linspace(0.1, 1, len(blobs))
    display = ContributionDisplay.from_estimator(
        certifier, blobs, sample_weight=weight, kind="components"
    )
    heights = [bar.get_height() for bar in display.bars_]
    np.testing.assert_allclose(heights, component_contributions(proba, log_q, weight))
    assert sum(heights) == pytest.approx(display.margin)
    hollow = [bar.get_height() for bar in display.ax_.patches[: len(heights)]]
    np.testing.assert_allclose(hollow, component_information(proba, weight))


def test_contributions_that_cannot_be_drawn(fitted):
    blobs, certifier, _, _ = fitted
    with pytest.raises(ValueError, match=r"kind must be .* got 'pie'"):
        ContributionDisplay([0.1]).plot(kind="pie")
    with pytest.raises(ValueError, match="component_contributions must be given"):
        ContributionDisplay([0.1]).plot(kind="components")
    with pytest.raises(ValueError, match="not fitted"):
        ContributionDisplay.from_estimator(CertifiedVAE(), blobs)
    with pytest.raises(ValueError, match=r"must be a CollapseCertifier.*got PCA"):
        ContributionDisplay.from_estimator(PCA(2).fit(blobs), blobs)
    given = certifier.teacher_.predict_proba(blobs)
    certifier = CollapseCertifier(PCA(4)).fit(blobs, teacher_proba=given)
    display = ContributionDisplay.from_estimator(certifier, blobs, teacher_proba=given)
    assert display.margin == pytest.approx(certifier.certificate_.margin)
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        ContributionDisplay.from_estimator(certifier, blobs)


def test_the_map_shows_what_the_witness_sees(fitted):
    blobs, certifier, proba, _ = fitted
    display = LatentMapDisplay.from_estimator(certifier, blobs)
    # Four components: the first three dimensions, and nothing of the free ones.
    seen = certifier.transform(blobs)[:, :3]
    expected = PCA(2).fit_transform(seen)
    shown = display.coordinates - display.coordinates.mean(axis=0)
    np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-5)
    np.testing.assert_array_equal(display.component, proba.argmax(axis=1))
    assert "what the witness sees" in display.ax_.get_xlabel()
    offsets = np.concatenate([points.get_offsets() for points in display.points_])
    assert len(offsets) == len(blobs)


def test_the_map_of_all_dimensions_is_pca(fitted):
    blobs, certifier, _, _ = fitted
    display = LatentMapDisplay.from_estimator(certifier, blobs, subspace="all")
    expected = PCA(2).fit_transform(certifier.transform(blobs))
    shown = display.coordinates - display.coordinates.mean(axis=0)
    np.testing.assert_allclose(np.abs(shown), np.abs(expected), atol=1e-5)
    assert "of the latent means" in display.ax_.get_ylabel()
    with pytest.raises(ValueError, match="subspace must be 'witness' or 'all'"):
        LatentMapDisplay.from_estimator(certifier, blobs, subspace="free")


def test_arrows_point_to_where_codes_are_wanted(fitted):
    blobs, certifier, _, _ = fitted
    display = LatentMapDisplay.from_estimator(certifier, blobs)
    middle = display.coordinates.mean(axis=0)
    assert [arrow.get_text() for arrow in display.arrows_] == ["0", "1", "2", "3"]
    for k, arrow in enumerate(display.arrows_):
        # An aligned code: the rows of a component lie on the side of its arrow.
        ray = np.array(arrow.get_position()) - middle
        rows = display.coordinates[display.component == k].mean(axis=0) - middle
        if np.linalg.norm(display.directions[k]) > 0.5 * np.max(display.directions):
            assert ray @ rows > 0
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


def test_components_differ_in_grey_and_for_the_colour_blind():
    display = LatentMapDisplay(np.eye(12, 2), np.arange(12)).plot()
    shapes = {points.get_paths()[0].vertices.tobytes() for points in display.points_}
    assert len(shapes) == 12
    colours = [tuple(points.get_facecolor()[0][:3]) for points in display.points_]
    distinct = list(dict.fromkeys(colours))
    assert len(distinct) == 7
    for change in (np.eye(3), WITHOUT_RED, WITHOUT_GREEN):
        seen = [lightness_and_hue(change @ light(colour)) for colour in distinct]
        apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 15
    # The measure is one: a red and a green of the same lightness fail it.
    pair = (WITHOUT_GREEN @ light(colour) for colour in ("tab:red", "tab:green"))
    red, green = map(lightness_and_hue, pair)
    assert np.linalg.norm(red - green) < 10


def test_colour_and_marker_together_tell_84_components():
    rows = np.random.default_rng(0).normal(size=(84, 2))
    display = LatentMapDisplay(rows, np.arange(84)).plot()
    looks = {
        (p.get_paths()[0].vertices.tobytes(), *p.get_facecolor()[0])
        for p in display.points_
    }
    assert len(looks) == 84


def test_a_map_without_rows_of_a_component_keeps_the_looks_of_the_others():
    rows = np.eye(3, 2)
    few = LatentMapDisplay(rows, [0, 2, 2]).plot()
    all_ = LatentMapDisplay(rows, [0, 1, 2]).plot()
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
    assert display.ax_.get_ylabel() == "teacher component"
    heights = np.concatenate([p.get_offsets()[:, 1] for p in display.points_])
    np.testing.assert_array_equal(heights, np.sort(display.component))
    assert display.points_[0].get_sizes() == [3]


def test_a_collapsed_code_has_a_map():
    display = LatentMapDisplay(
        np.ones((4, 2)), [0, 1, 0, 1], directions=[[1, 0], [-1, 0]]
    ).plot()
    display.figure_.canvas.draw()
    assert np.isfinite(display.ax_.get_xlim()).all()


def test_reconstructions_stand_below_their_originals():
    rng = np.random.default_rng(0)
    rows, decoded = rng.uniform(-3, 5, size=(2, 3, 12))
    display = ReconstructionDisplay(rows, decoded, image_shape=(1, 4, 3)).plot()
    canvas = display.image_.get_array()
    scaled = (rows - rows.min()) / np.ptp(rows)
    np.testing.assert_allclose(canvas[:4, :3], scaled[0].reshape(4, 3))
    np.testing.assert_allclose(canvas[:4, 4:7], scaled[1].reshape(4, 3))
    below = np.clip((decoded - rows.min()) / np.ptp(rows), 0, 1)
    np.testing.assert_allclose(canvas[5:, 8:11], below[2].reshape(4, 3))
    assert canvas.shape == (9, 11)
    expected = [
        np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(rows, decoded, strict=True)
    ]
    np.testing.assert_allclose(display.error, expected)


def test_images_of_three_channels_are_in_colour():
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 255
    rows = red.reshape(1, -1).astype(np.uint8)
    display = ReconstructionDisplay(rows, rows, image_shape=(3, 2, 2)).plot()
    canvas = display.image_.get_array()
    np.testing.assert_array_equal(canvas[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(canvas[2, 0], [1, 1, 1])


def test_tables_are_drawn_as_heat_of_each_feature(blobs, small_vae):
    columns = ["weight ($)", "a name that does not end where one would like", *"cdef"]
    frame = pd.DataFrame(blobs, columns=columns)
    vae = small_vae.set_params(max_epochs=2).fit(frame)
    display = ReconstructionDisplay.from_estimator(vae, frame, n_rows=7)
    heat = display.image_.get_array().filled(np.nan)
    assert heat.shape == (15, 6)
    original = blobs[:7]
    expected = (original - original.min(axis=0)) / np.ptp(original, axis=0)
    np.testing.assert_allclose(heat[:7], expected)
    assert np.isnan(heat[7]).all()
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names[:3] == [r"weight (\$)", "a name that d...", "c"]
    display.figure_.canvas.draw()
    decoded = vae.inverse_transform(vae.transform(frame[:7]))
    np.testing.assert_allclose(display.reconstruction, decoded)


def test_series_are_drawn_as_curves():
    rows = np.array([[0.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
    display = ReconstructionDisplay(rows, rows + 0.5).plot(kind="curves", linewidth=3)
    first, second, *decoded = display.lines_
    np.testing.assert_array_equal(first.get_ydata(), rows[0])
    assert second.get_ydata().max() < first.get_ydata().min()
    for line, below in zip((first, second), decoded, strict=True):
        np.testing.assert_allclose(below.get_ydata() - line.get_ydata(), 0.5)
        assert line.get_linestyle() != below.get_linestyle()
        assert line.get_linewidth() == 3


def test_reconstructions_that_cannot_be_drawn(blobs):
    with pytest.raises(ValueError, match="must have an inverse_transform"):
        ReconstructionDisplay.from_estimator(KMeans(2).fit(blobs), blobs)
    with pytest.raises(ValueError, match="reconstruction must have the shape"):
        ReconstructionDisplay([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="original must be an array of shape"):
        ReconstructionDisplay([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"image_shape must be .* 2 values"):
        ReconstructionDisplay([[1.0, 2.0]], [[1.0, 2.0]], image_shape=(1, 2, 2))
    display = ReconstructionDisplay([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="image_shape must be given"):
        display.plot(kind="images")
    with pytest.raises(ValueError, match="kind must be 'auto'"):
        display.plot(kind="film")


def test_the_image_shape_is_the_estimator_s(digits):
    rows = digits[0][:60]
    vae = CertifiedVAE(
        GMMTeacher(2, covariance_type="spherical"),
        latent_dim=2,
        image_shape=(1, 8, 8),
        max_epochs=1,
        device="cpu",
        random_state=0,
    ).fit(rows)
    certifier = CollapseCertifier(vae).fit(rows)
    for estimator in (vae, certifier):
        display = ReconstructionDisplay.from_estimator(estimator, rows, n_rows=3)
        assert display.image_shape == (1, 8, 8)
        assert len(display.error) == 3


DISPLAYS = [
    ContributionDisplay([0.5, -0.1, 0.4]),
    LatentMapDisplay(np.eye(3, 2), [0, 1, 2], directions=[[1, 0], [0, 1], [-1, -1]]),
    ReconstructionDisplay(np.eye(4), np.eye(4) / 2),
    ReconstructionDisplay(np.eye(4), np.eye(4) / 2, image_shape=(1, 2, 2)),
]


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_axes_that_are_given_are_used_and_no_setting_changes(display):
    before = dict(mpl.rcParams)
    figure = plt.figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    ax, other = left.subplots(), right.subplots()
    n_figures = len(plt.get_fignums())
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is left
    assert len(plt.get_fignums()) == n_figures
    assert not other.has_data()
    figure.canvas.draw()
    display.plot()
    assert len(plt.get_fignums()) == n_figures + 1
    assert dict(mpl.rcParams) == before
    plt.close(figure)


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_nothing_is_cut_off_at_the_edge(display):
    figure = display.plot().figure_
    renderer = figure.canvas.get_renderer()
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for artist in (display.ax_, display.ax_.get_legend()):
        if artist is not None:
            box = artist.get_tightbbox(renderer)
            assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
            assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
