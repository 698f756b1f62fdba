import copy

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from skvaecert._vae.prefit import Prefit
from skvaecert.simplex import analytic_code, analytic_energy

PROBA = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
# The energy of the analytic code for these posteriors, at scale 1.
ENERGY = analytic_energy(PROBA, 1.0)


@pytest.mark.parametrize(
    ("prefit", "alpha", "epochs"),
    [
        ("analytic", 1.0, 10),
        ({"alpha": 0.3}, 0.3, 10),
        ({"alpha": 2, "epochs": 3}, 2.0, 3),
        ({"energy": ENERGY / 4}, 0.5, 10),
        ({"energy": 100 * ENERGY, "epochs": np.int64(4)}, 1.0, 4),
    ],
)
def test_alpha_is_given_or_the_greatest_that_an_energy_allows(prefit, alpha, epochs):
    wanted = Prefit.of(prefit)
    assert wanted.resolve_alpha(PROBA, 1.0) == pytest.approx(alpha, rel=1e-6)
    assert wanted.epochs == epochs


def test_codes_of_a_teacher_without_information_cost_nothing():
    assert Prefit(energy=1.0).resolve_alpha(np.full((5, 2), 0.5), 1.0) == 1.0


@pytest.mark.parametrize(
    "prefit",
    [
        {},
        {"epochs": 5},
        {"alpha": 0.5, "energy": 1.0},
        {"alpha": 0.0},
        {"alpha": "auto"},
        {"energy": -1.0},
        {"energy": np.inf},
        {"alpha": 0.5, "epochs": 0},
        {"alpha": 0.5, "epochs": 2.5},
        {"alpha": 0.5, "n_epochs": 3},
    ],
    ids=str,
)
def test_bad_prefits(blobs, vae, prefit):
    with pytest.raises(ValueError, match=r"^prefit must be None, .* such as .* got \{"):
        vae.set_params(prefit=prefit).fit(blobs)


def test_other_kinds_of_prefit_are_refused(blobs, vae):
    for prefit in ("code", 0.5, True):
        with pytest.raises(ValueError, match=f"'prefit' parameter.*Got {prefit!r}"):
            vae.set_params(prefit=prefit).fit(blobs)


class Codes(Callback):
    """Compares the latent means with the analytic code where training begins."""

    def on_train_begin(self, net, X=None, **kwargs):
        samples, proba = X.take(torch.arange(len(X)))
        self.means = net.module_.encode(samples)[0].detach().numpy()
        vertices = net.criterion_.vertices.numpy().astype(float)
        self.codes = analytic_code(proba, vertices, net.criterion_.scale)

    def __deepcopy__(self, memo):
        return self


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefit", "alpha"),
    # With the prior-matched scale the analytic code costs (K - 1) / 2 nats.
    [({"alpha": 1.0}, 1.0), ({"energy": 1.5 / 4}, 0.5)],
)
def test_prefit_begins_at_the_scaled_analytic_code(blobs, vae, prefit, alpha):
    codes = Codes()
    vae.set_params(prefit=prefit | {"epochs": 100}, max_epochs=1, callbacks=[codes])
    assert vae.fit(blobs).prefit_alpha_ == pytest.approx(alpha, rel=1e-6)
    error = np.square(codes.means - alpha * codes.codes).sum(axis=1).mean()
    assert error < 0.05 * np.square(alpha * codes.codes).sum(axis=1).mean()


def test_prefit_is_for_first_fits(blobs, trained):
    assert not hasattr(trained, "prefit_alpha_")
    twin = copy.deepcopy(trained).set_params(prefit="analytic")
    means = [
        vae.set_params(max_epochs=2, warm_start=True).fit(blobs).transform(blobs)
        for vae in (trained, twin)
    ]
    np.testing.assert_array_equal(*means)


def test_a_later_fit_without_prefit_has_no_alpha(blobs, vae):
    vae.set_params(prefit={"alpha": 0.5, "epochs": 1}, max_epochs=1).fit(blobs)
    assert vae.prefit_alpha_ == 0.5
    assert not hasattr(vae.set_params(prefit=None).fit(blobs), "prefit_alpha_")


def test_prefits_can_be_searched(blobs, vae):
    grid = {"prefit": [None, "analytic", {"energy": 0.5, "epochs": 2}]}
    search = GridSearchCV(vae.set_params(max_epochs=1), grid, cv=2).fit(blobs)
    assert list(search.cv_results_["param_prefit"]) == grid["prefit"]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_an_encoder_without_weights_cannot_be_prefitted(blobs, vae):
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.cat([x, x[:, :2]], dim=1)

    with pytest.raises(ValueError, match="prefit must be None for an encoder without"):
        vae.set_params(encoder=Fixed(), prefit="analytic").fit(blobs)
