import pytest
import torch
from torch import nn

from skvaecert.networks import VAE, bounded, make_vae, mlp


class Tupled(nn.Module):
    """Returns means and log-variances apart."""

    def forward(self, x):
        return x[:, :2], x[:, 2:4]


def test_mlp_layers():
    net = mlp(8, (5, 4), 3)
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes == [(5, 8), (5,), (4, 5), (4,), (3, 4), (3,)]


def test_mlp_without_hidden_layers_is_linear():
    assert [type(layer) for layer in mlp(8, (), 3)] == [nn.Linear]


def test_decoder_mirrors_the_encoder():
    vae = make_vae(8, 2, (6, 5))
    widths = [
        layer.out_features for layer in vae.decoder if isinstance(layer, nn.Linear)
    ]
    assert widths == [5, 6, 8]


def test_bounded_is_smooth_and_monotone():
    raw = torch.linspace(-100, 100, 1001, dtype=torch.float64, requires_grad=True)
    value = bounded(raw)
    value.sum().backward()
    assert value.abs().max() <= 10
    assert (raw.grad >= 0).all()
    assert raw.grad[500] == 1


def test_variances_stay_finite_for_wild_input():
    vae = make_vae(3, 2, (4,))
    result = vae(torch.full((2, 3), 1e30))
    assert result.log_variance.exp().isfinite().all()


def test_codes_are_drawn_around_the_mean():
    torch.manual_seed(0)
    encoder = nn.Linear(1, 2)
    nn.init.zeros_(encoder.weight)
    encoder.bias.data = torch.tensor([3.0, -2.0])
    vae = VAE(encoder, nn.Identity())
    with torch.no_grad():
        result = vae(torch.zeros(100_000, 1))
    sigma = (bounded(torch.tensor(-2.0)) / 2).exp()
    torch.testing.assert_close(
        result.output.mean(), torch.tensor(3.0), atol=0.01, rtol=0
    )
    torch.testing.assert_close(result.output.std(), sigma, atol=0.01, rtol=0)


def test_a_module_is_copied_with_its_weights():
    own = nn.Linear(8, 4)
    vae = make_vae(8, 2, (), encoder=own)
    assert vae.encoder is not own
    torch.testing.assert_close(vae.encoder.weight, own.weight)


def test_a_factory_is_called_with_the_sizes():
    calls = []

    def factory(n_features, latent_dim):
        calls.append((n_features, latent_dim))
        return nn.Linear(latent_dim, n_features)

    make_vae(8, 2, (), decoder=factory)
    assert calls == [(8, 2)]


def test_lazy_modules_learn_their_width():
    vae = make_vae(8, 2, (), encoder=nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 4)))
    vae(torch.zeros(3, 8)).mean.sum().backward()
    assert vae.encoder[0].in_features == 8


def test_a_module_keeps_its_mode():
    own = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)).train()
    assert make_vae(8, 2, (), encoder=own).encoder.training


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "encoder",
            nn.Linear(8, 3),
            r"encoder must return a tensor of shape \(n, 4\).*got \(2, 3\)",
        ),
        (
            "decoder",
            nn.Linear(2, 3),
            r"decoder must return a tensor of shape \(n, 8\).*got \(2, 3\)",
        ),
        ("encoder", Tupled(), r"must return a tensor of shape \(n, 4\).*got tuple"),
        ("encoder", nn.BatchNorm2d(8), r"encoder must take .*expected 4D input"),
        ("encoder", nn.Linear(7, 4), r"encoder must take an input of shape \(n, 8\)"),
    ],
)
def test_wrong_shapes_are_refused(name, module, message):
    with pytest.raises(ValueError, match=message):
        make_vae(8, 2, (), **{name: module})


def test_a_factory_must_return_a_module():
    with pytest.raises(TypeError, match=r"encoder must be .* returns int"):
        make_vae(8, 2, (), encoder=lambda n_features, latent_dim: 3)
