import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.plotting import TeacherSearchDisplay


@pytest.fixture
def searched(blobs):
    return GMMTeacher(
        [2, 3, 4],
        covariance_type="full",
        temperature=1.0,
        energy_budget=8.5,
        random_state=0,
    ).fit(blobs)


def test_a_search_has_a_dot_for_each_candidate(searched):
    results = searched.search_results_
    display = TeacherSearchDisplay.from_estimator(searched, cmap="magma")
    left_out, usable, ring = display.ax_.collections
    shown = np.column_stack([results["energy"], results["information"]])
    np.testing.assert_array_equal(usable.get_offsets(), shown[results["usable"]])
    np.testing.assert_array_equal(left_out.get_offsets(), shown[~results["usable"]])
    assert 0 < len(left_out.get_offsets()) < 3
    np.testing.assert_array_equal(ring.get_offsets(), shown[results["rank"] == 1])
    np.testing.assert_array_equal(
        usable.get_array(), results["agreement"][results["usable"]]
    )
    _, label = display.ax_.get_legend().get_texts()
    chosen = results["n_components"][results["rank"].argmin()]
    assert (
        label.get_text()
        == f"chosen: {chosen} components,\n6 principal components, full"
    )
    assert display.points_.get_cmap().name == "magma"


@pytest.mark.parametrize(
    ("agreement", "lowest"),
    [
        ([0.87, 0.93, 0.1], 0.8),
        ([1, 1, 1], 0.9),
        ([0.3, 1, 1], 0.3),
        ([-0.05] * 3, -0.1),
    ],
)
def test_the_colors_of_a_search_show_differences(agreement, lowest):
    display = TeacherSearchDisplay(
        energy=[1, 2, 3],
        information=[1, 2, 3],
        agreement=agreement,
        usable=[True, True, False],
        chosen=1,
    ).plot()
    assert display.points_.get_clim() == (pytest.approx(lowest), 1)
    # On white, and in gray: from darker than most colors to no brighter than silver.
    colors = display.points_.get_cmap()(np.linspace(0, 1, 9))[:, :3]
    gray = colors @ [0.299, 0.587, 0.114]
    assert 0.7 > gray[0] > gray[-1]
    assert (np.diff(gray) < 0).all()


def test_a_search_of_a_fitted_vae(searched, blobs, small_vae):
    teacher = FrozenEstimator(searched)
    vae = small_vae.set_params(max_epochs=1, teacher=teacher).fit(blobs)
    certifier = CollapseCertifier(FrozenEstimator(vae)).fit(blobs)
    for estimator in (vae, certifier):
        display = TeacherSearchDisplay.from_estimator(estimator)
        assert len(display.information) == 3


def test_no_search_to_draw(fitted):
    with pytest.raises(ValueError, match="teacher must have search_results_"):
        TeacherSearchDisplay.from_estimator(fitted.teacher_)
    with pytest.raises(ValueError, match="not fitted"):
        TeacherSearchDisplay.from_estimator(GMMTeacher([3, 4]))
