import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier
from skvaecert.plotting import ReconstructionDisplay
from skvaecert.wrappers import TrainedEncoder


def test_reconstructions_stand_below_their_originals():
    rng = np.random.default_rng(0)
    samples, decoded = rng.uniform(-3, 5, size=(2, 3, 12))
    display = ReconstructionDisplay(samples, decoded, image_shape=(1, 4, 3)).plot()
    canvas = display.image_.get_array()
    scaled = (samples - samples.min()) / np.ptp(samples)
    np.testing.assert_allclose(canvas[:4, :3], scaled[0].reshape(4, 3))
    np.testing.assert_allclose(canvas[:4, 4:7], scaled[1].reshape(4, 3))
    below = np.clip((decoded - samples.min()) / np.ptp(samples), 0, 1)
    np.testing.assert_allclose(canvas[5:, 8:11], below[2].reshape(4, 3))
    assert canvas.shape == (9, 11)
    expected = [
        np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(samples, decoded, strict=True)
    ]
    np.testing.assert_allclose(display.error, expected)


@pytest.mark.parametrize("image_shape", [(1, 4, 3), (3, 2, 2)])
def test_gaps_between_images_are_white_in_every_colormap(image_shape):
    samples = np.random.default_rng(0).uniform(size=(2, 12))
    display = ReconstructionDisplay(samples, samples, image_shape=image_shape)
    display.plot(cmap="gray_r", interpolation="nearest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display.figure_.canvas.draw()
    drawn = np.asarray(display.figure_.canvas.buffer_rgba())
    _, height, width = image_shape
    for place in ((0, width), (height, 0)):
        right, up = display.ax_.transData.transform(place[::-1])
        np.testing.assert_array_equal(drawn[-round(up), round(right)], 255)


def test_images_of_three_channels_are_in_color():
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 255
    samples = red.reshape(1, -1).astype(np.uint8)
    display = ReconstructionDisplay(samples, samples, image_shape=(3, 2, 2)).plot()
    canvas = display.image_.get_array()
    np.testing.assert_array_equal(canvas[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(canvas[2, 0], [1, 1, 1])


def test_tables_are_drawn_as_heat_of_each_feature(blobs):
    columns = ["weight ($)", "a name that does not end where one would like", *"cdef"]
    frame = pd.DataFrame(blobs, columns=columns)
    pca = PCA(2).fit(frame)
    display = ReconstructionDisplay.from_estimator(pca, frame, n_samples=7)
    heat = display.image_.get_array().filled(np.nan)
    assert heat.shape == (15, 6)
    original = blobs[:7]
    expected = (original - original.min(axis=0)) / np.ptp(original, axis=0)
    np.testing.assert_allclose(heat[:7], expected)
    assert np.isnan(heat[7]).all()
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names[:3] == [r"weight (\$)", "a name that d...", "c"]
    display.figure_.canvas.draw()
    decoded = pca.inverse_transform(pca.transform(frame[:7]))
    np.testing.assert_allclose(display.reconstruction, decoded)


def test_series_are_drawn_as_curves():
    samples = np.array([[0.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
    display = ReconstructionDisplay(samples, samples + 0.5).plot(
        kind="curves", linewidth=3
    )
    first, second, *decoded = display.lines_
    np.testing.assert_array_equal(first.get_ydata(), samples[0])
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
    with pytest.raises(ValueError, match="kind must be 'auto' or 'curves'"):
        ReconstructionDisplay([[1.0, 2.0]], [[1.0, 2.0]]).plot(kind="film")


def test_the_image_shape_is_that_of_the_encoder(blobs, small_vae, fitted):
    vae = small_vae.set_params(
        teacher=FrozenEstimator(fitted.teacher_), image_shape=(1, 2, 3), max_epochs=1
    ).fit(blobs)
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(blobs)
    wrapped = TrainedEncoder(
        lambda images: images[:, 0, 0],
        lambda Z: Z @ np.ones((3, 6)),
        input_shape=(1, 2, 3),
    )
    for estimator in (vae, certifier, wrapped):
        display = ReconstructionDisplay.from_estimator(estimator, blobs, n_samples=3)
        assert display.image_shape == (1, 2, 3)
        assert len(display.error) == 3
