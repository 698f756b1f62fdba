import numpy as np
import pytest
from sklearn.base import clone

from skvaecert.plotting import InformationBracketDisplay


@pytest.fixture(scope="module")
def held_out(fitted, shared_blobs):
    """Samples, and certificates of an aligned and of a collapsed VAE on them."""
    X = shared_blobs[1::2]
    collapsed = clone(fitted).set_params(
        estimator__alignment_weight=0, estimator__kl_weight=100, estimator__max_epochs=2
    )
    both = {"aligned": fitted, "collapsed": collapsed.fit(shared_blobs[::2])}
    sampled = {name: one.certify(X, kind="sampled") for name, one in both.items()}
    means = {name: one.certify(X) for name, one in both.items()}
    return X, sampled, means


def ends(bar):
    return bar.get_x(), bar.get_x() + bar.get_width()


def test_the_bracket_is_that_of_the_certificates(held_out):
    _, sampled, means = held_out
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


def test_models_stand_in_their_order_from_the_top(held_out):
    display = InformationBracketDisplay.from_certificates(held_out[1])
    names = {t.get_text(): t.get_position()[1] for t in display.ax_.get_yticklabels()}
    low, high = display.ax_.get_ylim()
    assert low < names["collapsed"] < names["aligned"] < high
    assert np.isnan(display.margins_.get_xdata()).all()


def test_the_bracket_of_an_estimator_is_that_of_its_certificate(held_out, fitted):
    X, sampled, means = held_out
    display = InformationBracketDisplay.from_estimator(fitted, X, color="k")
    assert display.names == ["CertifiedVAE"]
    wanted = sampled["aligned"].margin, sampled["aligned"].information_bound
    assert ends(display.bars_[0]) == pytest.approx(wanted)
    assert display.margin == [means["aligned"].margin]
    assert display.bars_[0].get_facecolor() == (0, 0, 0, 1)


def test_certificates_of_other_kinds_have_no_bracket(held_out):
    _, sampled, means = held_out
    with pytest.raises(ValueError, match=r'kind="sampled", got kind="mean"'):
        InformationBracketDisplay.from_certificates(means)
    with pytest.raises(ValueError, match=r'kind="mean", got kind="sampled"'):
        InformationBracketDisplay.from_certificates(sampled, sampled)
    with pytest.raises(ValueError, match="at least one certificate"):
        InformationBracketDisplay.from_certificates({})


def test_a_name_is_no_formula(held_out):
    certificate = held_out[1]["aligned"]
    display = InformationBracketDisplay.from_certificates({"$x$": certificate})
    display.figure_.canvas.draw()
    assert display.ax_.get_yticklabels()[0].get_text() == r"\$x\$"
