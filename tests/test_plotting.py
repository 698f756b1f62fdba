import matplotlib as mpl
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.forecast import ForecastCurve
from skvaecert.metrics import margin_energy_path
from skvaecert.model_selection import LOWEST_SCORE
from skvaecert.plotting import (
    ForecastDisplay,
    InformationBracketDisplay,
    MarginEnergyDisplay,
    MarginHistoryDisplay,
    ParetoDisplay,
    TeacherSearchDisplay,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

HISTORY = [
    {"epoch": 1, "margin": -0.1, "kl_weight": 8.0, "alignment_weight": 0.0},
    {"epoch": 2, "margin": -0.2, "kl_weight": 8.0, "alignment_weight": 0.0},
    {"epoch": 3, "margin": 0.7, "kl_weight": 8.0, "alignment_weight": 10.0},
]
HISTORY = [row | {"teacher_information": 1.5} for row in HISTORY]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_draws_margin_zero_and_information():
    display = MarginHistoryDisplay.from_history(HISTORY)
    np.testing.assert_array_equal(display.line_.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(display.line_.get_ydata(), [-0.1, -0.2, 0.7])
    levels = [np.unique(line.get_ydata()) for line in display.ax_.lines]
    assert any(np.array_equal(level, [0]) for level in levels)
    assert any(np.array_equal(level, [1.5]) for level in levels)
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_xlabel() == "epoch"


def test_marks_where_weights_changed():
    display = MarginHistoryDisplay.from_history(HISTORY)
    np.testing.assert_array_equal(display.changes, [2])
    assert any(line.get_xdata()[0] == 2.5 for line in display.ax_.lines)


def test_draws_into_given_axes():
    _, ax = plt.subplots()
    display = MarginHistoryDisplay.from_history(HISTORY, ax=ax, color="red", label="x")
    assert display.ax_ is ax
    assert display.line_.get_color() == "red"
    assert display.line_.get_label() == "x"


def test_from_estimators(blobs, small_vae):
    vae = small_vae.set_params(max_epochs=3).fit(blobs)
    certifier = CollapseCertifier(small_vae).fit(blobs)
    margins = [row["margin"] for row in vae.history_]
    for estimator in (vae, certifier):
        display = MarginHistoryDisplay.from_estimator(estimator)
        np.testing.assert_array_equal(display.line_.get_ydata(), margins)


def test_unfitted_and_without_history(blobs):
    with pytest.raises(ValueError, match="not fitted"):
        MarginHistoryDisplay.from_estimator(CertifiedVAE())

    certifier = CollapseCertifier(PCA(3), teacher=GMMTeacher(n_components=4)).fit(blobs)
    with pytest.raises(ValueError, match=r"estimator must have a history_.*got PCA"):
        MarginHistoryDisplay.from_estimator(certifier)


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
    display = TeacherSearchDisplay.from_estimator(searched)
    left_out, usable, ring = display.ax_.collections
    shown = np.column_stack([results["energy"], results["information"]])
    np.testing.assert_array_equal(usable.get_offsets(), shown[results["usable"]])
    np.testing.assert_array_equal(left_out.get_offsets(), shown[~results["usable"]])
    assert 0 < len(left_out.get_offsets()) < 3
    np.testing.assert_array_equal(ring.get_offsets(), shown[results["rank"] == 1])
    np.testing.assert_array_equal(
        usable.get_array(), results["agreement"][results["usable"]]
    )
    (label,) = display.ax_.get_legend().get_texts()
    chosen = results["n_components"][results["rank"].argmin()]
    assert label.get_text() == f"chosen: K = {chosen}, 6 principal components, full"


def test_a_search_is_drawn_into_given_axes(searched):
    _, ax = plt.subplots()
    display = TeacherSearchDisplay.from_estimator(searched, ax=ax, cmap="magma")
    assert display.ax_ is ax
    assert display.points_.get_cmap().name == "magma"


def test_a_search_of_a_fitted_vae(blobs, small_vae):
    small_vae.set_params(
        max_epochs=1,
        teacher__n_components=[2, 4],
        teacher__covariance_type="full",
    ).fit(blobs)
    certifier = CollapseCertifier(small_vae).fit(blobs)
    for estimator in (small_vae, certifier):
        display = TeacherSearchDisplay.from_estimator(estimator)
        assert len(display.information) == 2


def test_no_search_to_draw(blobs):
    teacher = GMMTeacher(4, covariance_type="full").fit(blobs)
    with pytest.raises(ValueError, match="teacher must have searched"):
        TeacherSearchDisplay.from_estimator(teacher)
    with pytest.raises(ValueError, match="not fitted"):
        TeacherSearchDisplay.from_estimator(GMMTeacher([3, 4]))


def test_a_forecast_has_two_curves_and_the_weights(blobs, small_vae):
    forecast = small_vae.set_params(kl_weight=4).forecast(blobs, ratio=[0.1, 1, 10])
    display = ForecastDisplay.from_forecast(forecast)
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


def labels(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_a_forecast_for_a_target(blobs, small_vae):
    _, ax = plt.subplots()
    small_vae.set_params(alignment_weight="auto", target_margin=0.75)
    display = ForecastDisplay.from_estimator(small_vae, blobs, ax=ax, color="red")
    assert display.ax_ is ax
    assert display.margin_line_.get_color() == "red"
    assert any(label.startswith("for a margin of 75%") for label in labels(display))
    assert not hasattr(small_vae, "net_")


@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (0, 0)])
def test_a_forecast_without_a_place_for_the_weights(blobs, small_vae, weights):
    alignment_weight, kl_weight = weights
    small_vae.set_params(alignment_weight=alignment_weight, kl_weight=kl_weight)
    proba = GMMTeacher(4, random_state=1).fit(blobs).predict_proba(blobs)
    display = ForecastDisplay.from_estimator(
        small_vae, blobs, ratio=[0, 0.1, 10, np.inf], teacher_proba=proba
    )
    assert display.point_ is None
    np.testing.assert_array_equal(display.margin_line_.get_xdata(), [0.1, 10])
    assert isinstance(display.forecast, ForecastCurve)
    assert len(display.forecast.ratio) == 4


def test_energy_shows_the_path_the_information_and_the_model(blobs, small_vae):
    vae = small_vae.fit(blobs)
    certifier = CollapseCertifier(vae).fit(blobs)
    certificate = certifier.certify(blobs)
    mean = vae.transform(blobs)
    path = margin_energy_path(vae.teacher_.transform(blobs), vae.witness_scale_)
    for estimator in (vae, certifier):
        display = MarginEnergyDisplay.from_estimator(estimator, blobs)
        np.testing.assert_array_equal(display.line_.get_xdata(), path.energy)
        np.testing.assert_array_equal(display.line_.get_ydata(), path.margin)
        (energy,), (margin,) = display.point_.get_data()
        assert energy == pytest.approx((mean**2).sum() / len(mean) / 2)
        assert margin == pytest.approx(certificate.margin)
        levels = [np.unique(line.get_ydata()) for line in display.ax_.lines]
        assert any(np.array_equal(level, [0]) for level in levels)
        information = certificate.teacher_information
        assert any(level == pytest.approx([information]) for level in levels)
        assert display.figure_ is display.ax_.figure
        assert display.ax_.get_xlabel() == "energy (nats a sample)"
        assert len(display.ax_.get_legend().get_texts()) == 5


def test_the_ring_counts_the_dimensions_of_the_witness(blobs, small_vae):
    vae = small_vae.set_params(latent_dim=9).fit(blobs)
    display = MarginEnergyDisplay.from_estimator(vae, blobs)
    (ring,), (margin,) = display.ring_.get_data()
    # Four components: the first three dimensions.
    seen = (vae.transform(blobs)[:, :3] ** 2).sum() / len(blobs) / 2
    assert ring == pytest.approx(seen)
    assert 0 < ring < display.energy
    assert margin == display.margin


def test_energy_of_a_collapsed_model_is_at_the_beginning(blobs, small_vae):
    vae = small_vae.set_params(alignment_weight=0, kl_weight=1e4).fit(blobs)
    display = MarginEnergyDisplay.from_estimator(vae, blobs)
    assert display.energy < 0.05 * display.path_energy[-1]
    assert display.margin <= 0


def test_energy_is_drawn_into_given_axes(blobs, small_vae):
    _, ax = plt.subplots()
    vae = small_vae.set_params(max_epochs=1).fit(blobs)
    display = MarginEnergyDisplay.from_estimator(vae, blobs, ax=ax, color="red")
    assert display.ax_ is ax
    assert display.line_.get_color() == "red"


def test_energy_with_posteriors_that_are_given(blobs, small_vae):
    proba = GMMTeacher(4, random_state=0).fit(blobs).transform(blobs)
    vae = small_vae.set_params(max_epochs=1).fit(blobs, teacher_proba=proba)
    display = MarginEnergyDisplay.from_estimator(vae, blobs, teacher_proba=proba)
    expected = margin_energy_path(proba, vae.witness_scale_).margin
    np.testing.assert_array_equal(display.path_margin, expected)
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        MarginEnergyDisplay.from_estimator(vae, blobs)
    with pytest.raises(ValueError, match="teacher_proba must have one row"):
        MarginEnergyDisplay.from_estimator(vae, blobs, teacher_proba=proba[1:])


def test_no_energy_to_draw(blobs):
    with pytest.raises(ValueError, match="not fitted"):
        MarginEnergyDisplay.from_estimator(CertifiedVAE(), blobs)
    with pytest.raises(ValueError, match=r"must be a CertifiedVAE.*got PCA"):
        MarginEnergyDisplay.from_estimator(PCA(2).fit(blobs), blobs)


@pytest.fixture
def bracketed(blobs, small_vae):
    """Certificates of an aligned and of a collapsed VAE, and a certifier with rows."""
    certifier = CollapseCertifier(small_vae).fit(blobs[::2])
    collapsed = CollapseCertifier(
        CertifiedVAE(**small_vae.get_params(deep=False)).set_params(
            alignment_weight=0, kl_weight=100, max_epochs=2
        )
    ).fit(blobs[::2])
    both = {"aligned": certifier, "collapsed": collapsed}
    rows = blobs[1::2]
    sampled = {name: one.certify(rows, kind="sampled") for name, one in both.items()}
    means = {name: one.certify(rows) for name, one in both.items()}
    return sampled, means, certifier, rows


def ends(bar):
    return bar.get_x(), bar.get_x() + bar.get_width()


def test_the_bracket_is_that_of_the_certificates(bracketed):
    sampled, means, _, _ = bracketed
    display = InformationBracketDisplay.from_certificates(sampled, means)
    whiskers = display.whiskers_.lines[2][0].get_segments()
    assert len(display.bars_) == len(whiskers) == 2
    for i, (name, one) in enumerate(sampled.items()):
        bound = one.information_bound
        assert ends(display.bars_[i]) == pytest.approx((one.margin, bound))
        left, right = whiskers[i][:, 0]
        assert (left, right) == pytest.approx((one.margin_low, one.margin_high))
        assert display.margins_.get_xdata()[i] == means[name].margin
        assert display.information_.get_xdata()[i] == one.teacher_information
        height = display.margins_.get_ydata()[i]
        assert display.bars_[i].get_y() < height < display.bars_[i].get_y() + 0.5
    # They differ, or the test would say little.
    assert sampled["aligned"].margin > sampled["collapsed"].information_bound


def test_models_stand_in_their_order_from_the_top(bracketed):
    sampled, _, _, _ = bracketed
    display = InformationBracketDisplay.from_certificates(sampled)
    names = {t.get_text(): t.get_position()[1] for t in display.ax_.get_yticklabels()}
    low, high = display.ax_.get_ylim()
    assert low < names["collapsed"] < names["aligned"] < high
    assert np.isnan(display.margins_.get_xdata()).all()


def test_the_bracket_of_an_estimator_is_that_of_its_certificate(bracketed):
    sampled, means, certifier, rows = bracketed
    _, ax = plt.subplots()
    display = InformationBracketDisplay.from_estimator(
        certifier, rows, ax=ax, color="k"
    )
    assert display.ax_ is ax
    assert display.names == ["CertifiedVAE"]
    wanted = sampled["aligned"].margin, sampled["aligned"].information_bound
    assert ends(display.bars_[0]) == pytest.approx(wanted)
    assert display.margin == [means["aligned"].margin]
    assert display.bars_[0].get_facecolor() == (0, 0, 0, 1)


def test_certificates_of_other_kinds_have_no_bracket(bracketed):
    sampled, means, _, _ = bracketed
    with pytest.raises(ValueError, match=r'kind="sampled", got kind="mean"'):
        InformationBracketDisplay.from_certificates(means)
    with pytest.raises(ValueError, match=r'kind="mean", got kind="sampled"'):
        InformationBracketDisplay.from_certificates(sampled, sampled)
    with pytest.raises(ValueError, match="at least one certificate"):
        InformationBracketDisplay.from_certificates({})
    with pytest.raises(ValueError, match="must be a CollapseCertifier"):
        InformationBracketDisplay.from_estimator(PCA(2).fit(np.eye(3)), np.eye(3))


def test_a_name_is_no_formula(bracketed):
    sampled, _, _, _ = bracketed
    display = InformationBracketDisplay.from_certificates({"$x$": sampled["aligned"]})
    display.figure_.canvas.draw()
    assert display.ax_.get_yticklabels()[0].get_text() == r"\$x\$"


class Searched(BaseEstimator):
    """What a display looks at in a search."""

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
    assert len(labels(display)) == 5


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
    _, ax = plt.subplots()
    display = ParetoDisplay.from_search(
        Searched().fit(**columns), against="elbo", ax=ax, color="red"
    )
    assert display.ax_ is ax
    assert display.line_.get_color() == "red"
    np.testing.assert_array_equal(display.front, [3, 2])
    assert display.ax_.get_xlim()[0] > 0
    assert display.ax_.get_xlabel() == "ELBO (nats a sample)"


def test_no_candidates_to_draw():
    with pytest.raises(ValueError, match=r"score 'elbo'.*certificate_scorers"):
        ParetoDisplay.from_search(Searched().fit(**COLUMNS), against="elbo")
    ring = ParetoDisplay(score=[1], margin=[1], certified=[True]).plot().ring_
    assert ring is None
