"""What holds for every display."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.decomposition import PCA

from skvaecert import CertifiedVAE, CollapseCertifier
from skvaecert.forecast import ForecastCurve
from skvaecert.plotting import (
    ContributionDisplay,
    ForecastDisplay,
    InformationBracketDisplay,
    LatentMapDisplay,
    MarginEnergyDisplay,
    MarginHistoryDisplay,
    ParetoDisplay,
    ReconstructionDisplay,
    TeacherSearchDisplay,
)

HISTORY = [
    {"epoch": i, "margin": m, "teacher_information": 1, "kl_weight": 1}
    | {"alignment_weight": i}
    for i, m in enumerate([-0.1, 0.5, 0.9])
]
DISPLAYS = [
    ContributionDisplay([0.5, -0.1, 0.4]),
    ForecastDisplay(
        ForecastCurve(
            ratio=[0.1, 1, 10],
            margin=[0.1, 0.6, 0.9],
            energy=[0.1, 0.8, 2.0],
            teacher_information=1.0,
            operating_ratio=1,
            operating_margin=0.6,
            operating_energy=0.8,
            target_margin=0.6,
            kl_weight=4.0,
            collapse_threshold=9.5,
            linear_information=2.5,
        )
    ),
    InformationBracketDisplay(
        names=["a model with a name", "another", "a third"],
        state=["informative", "collapsed", "undecided"],
        low=[2.9, 0, np.nan],
        high=[3.1, 0.001, np.nan],
        limit=[4.1, 4.1, np.nan],
    ),
    LatentMapDisplay(np.eye(3, 2), [0, 1, 2], directions=[[1, 0], [0, 1], [-1, -1]]),
    MarginEnergyDisplay(
        path_energy=[0, 0.15, 0.6],
        path_margin=[0, 0.3, 0.37],
        energy=0.4,
        protected_energy=0.3,
        margin=0.3,
        teacher_information=0.37,
    ),
    MarginHistoryDisplay(HISTORY),
    ParetoDisplay(score=[-0.1, -0.2], margin=[-0.2, 0.7], certified=[0, 1], chosen=1),
    ReconstructionDisplay(np.eye(4), np.eye(4) / 2),
    ReconstructionDisplay(np.eye(4), np.eye(4) / 2, image_shape=(1, 2, 2)),
    TeacherSearchDisplay(
        energy=[10, 20],
        information=[1.2, 1.9],
        agreement=[0.9, 0.8],
        usable=[True, True],
        chosen=1,
    ),
]


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_given_axes_are_used_and_nothing_else_changes(display):
    before = dict(mpl.rcParams)
    figure = plt.figure()
    left, right = figure.subfigures(1, 2)
    ax, other = left.subplots(), right.subplots()
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is left
    assert len(plt.get_fignums()) == 1
    assert not other.has_data()
    assert not figure.get_suptitle()
    assert not left.get_suptitle()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_new_figures_have_a_title(display):
    assert display.plot().figure_.get_suptitle()


@pytest.mark.slow
@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_new_axes_cut_nothing_off_at_the_edge(display):
    figure = display.plot().figure_
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    inside = figure.bbox.padded(1)
    for artist in (display.ax_, display.ax_.get_legend()):
        if artist is not None:
            box = artist.get_tightbbox(renderer)
            assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
            assert inside.y0 <= box.y0 <= box.y1 <= inside.y1


OF_SAMPLES = [
    ContributionDisplay,
    InformationBracketDisplay,
    LatentMapDisplay,
    MarginEnergyDisplay,
    ReconstructionDisplay,
]


@pytest.mark.parametrize("kind", OF_SAMPLES)
def test_displays_of_samples(kind, fitted, blobs):
    _, ax = plt.subplots()
    display = kind.from_estimator(fitted, blobs[1::2], ax=ax)
    assert display.ax_ is ax
    with pytest.raises(ValueError, match="not fitted"):
        kind.from_estimator(CertifiedVAE(), blobs)


@pytest.mark.parametrize("kind", OF_SAMPLES[:-1])
def test_displays_of_certificates_need_a_witness(kind, blobs):
    with pytest.raises(ValueError, match=r"must be a C.*got PCA"):
        kind.from_estimator(PCA(2).fit(blobs), blobs)


@pytest.mark.parametrize("kind", OF_SAMPLES[:-1])
def test_displays_take_posteriors_in_place_of_a_teacher(kind, blobs, fitted):
    proba = fitted.teacher_.predict_proba(blobs)
    vae = CertifiedVAE(**fitted.estimator_.get_params(deep=False))
    certifier = CollapseCertifier(vae.set_params(max_epochs=1))
    certifier.fit(blobs[::2], teacher_proba=proba[::2])
    X, given = blobs[1::2], proba[1::2]
    kind.from_estimator(certifier, X, teacher_proba=given)
    with pytest.raises(ValueError, match="teacher_proba must be given"):
        kind.from_estimator(certifier, X)
    with pytest.raises(ValueError, match="teacher_proba must have one row"):
        kind.from_estimator(certifier, X, teacher_proba=given[1:])
