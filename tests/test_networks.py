import pytest
import torch
from torch import nn

from skvaecert.networks import (
    VAE,
    bounded,
    conv_decoder,
    conv_encoder,
    make_vae,
    mlp,
)

IMAGE_SHAPES = [
    (1, 8, 8),
    (3, 8, 8),
    (1, 28, 28),
    (2, 9, 13),
    (3, 33, 8),
    (4, 5, 64),
    (3, 32, 32),
    (3, 64, 64),
]


class Tupled(nn.Module):
    """Returns means and log-variances separately."""

    def forward(self, x):
        return x[:, :2], x[:, 2:4]


class Flattened(nn.Module):
    """Flattens samples together in its own forward pass, not in a layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 4), nn.Tanh())

    def forward(self, x):
        return self.body(x).flatten()


class Doubled(nn.Module):
    """Computes in float64 inside, and forgets to come back."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4).double()

    def forward(self, x):
        return self.linear(x.double())


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


def test_lazy_modules_infer_their_input_size():
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
        ("encoder", nn.BatchNorm2d(8), r"encoder must accept .*expected 4D input"),
        ("encoder", nn.Linear(7, 4), r"encoder must accept an input of shape \(n, 8\)"),
    ],
)
def test_wrong_shapes_are_refused(name, module, message):
    with pytest.raises(ValueError, match=message):
        make_vae(8, 2, (), **{name: module})


def test_a_factory_must_return_a_module():
    with pytest.raises(TypeError, match=r"encoder must be .* returns int"):
        make_vae(8, 2, (), encoder=lambda n_features, latent_dim: 3)


@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
def test_conv_nets_take_images_of_many_shapes(image_shape):
    n_features = torch.Size(image_shape).numel()
    vae = make_vae(n_features, 3, (20,), "conv", "conv", image_shape=image_shape)
    result = vae(torch.randn(2, n_features))
    result.output.square().mean().backward()
    assert result.mean.shape == (2, 3)
    assert result.output.shape == (2, n_features)
    assert all(p.grad.abs().max() > 0 for p in vae.parameters() if p.ndim)


@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
def test_conv_nets_are_shallow_and_small(image_shape):
    encoder = conv_encoder(image_shape, (), 3)
    layers = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    assert 2 ** (len(layers) + 1) < max(image_shape[1:]) <= 2 ** (len(layers) + 2)
    widths = [layer.out_channels for layer in layers]
    assert widths == [16, 32, 64, 128][: len(layers)]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_conv_for_one_part_only(part):
    vae = make_vae(64, 2, (5,), image_shape=(1, 8, 8), **{part: "conv"})
    types = {name: type(getattr(vae, name)[0]) for name in ("encoder", "decoder")}
    assert (types["encoder"] is nn.Unflatten) == (part == "encoder")
    kinds = {type(layer) for layer in vae.decoder}
    assert (nn.ConvTranspose2d in kinds) == (part == "decoder")


def test_hidden_sizes_stand_between_convolutions_and_code():
    vae = make_vae(192, 2, (7, 5), "conv", "conv", image_shape=(3, 8, 8))
    widths = [
        [layer.out_features for layer in part if isinstance(layer, nn.Linear)]
        for part in (vae.encoder, vae.decoder)
    ]
    assert widths == [[7, 5, 4], [5, 7, 16 * 4 * 4]]


def receptive_field(image_shape, pixel):
    """Return which outputs of the first convolution depend on a pixel."""
    convolution = conv_encoder(image_shape, (), 1)[:2]
    row = torch.zeros(1, torch.Size(image_shape).numel())
    before = convolution(row)
    row.view(1, *image_shape)[0][pixel] = 1.0
    return (convolution(row) != before)[0].any(dim=0).nonzero().tolist()


@pytest.mark.parametrize("channel", [0, 1])
def test_samples_are_in_the_order_of_channels_rows_and_columns(channel):
    """A pixel of any channel affects its neighbors only."""
    assert receptive_field((2, 8, 10), (channel, 0, 0)) == [[0, 0]]
    assert receptive_field((2, 8, 10), (channel, 7, 9)) == [[3, 4]]
    assert receptive_field((2, 8, 10), (channel, 3, 4)) == [[1, 2], [2, 2]]


def test_decoded_images_are_in_the_same_order():
    """The last weight of one channel moves that channel's third of the values."""
    decoder = conv_decoder(2, (), (3, 8, 8))
    before = decoder(torch.zeros(1, 2))
    with torch.no_grad():
        decoder[-2].bias[1] += 1
    moved = (decoder(torch.zeros(1, 2)) != before)[0].nonzero().ravel().tolist()
    assert moved == list(range(64, 128))


@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
def test_convolutions_do_not_mix_samples(image_shape):
    n_features = torch.Size(image_shape).numel()
    vae = make_vae(n_features, 3, (20,), "conv", "conv", image_shape=image_shape)
    samples = torch.randn(4, n_features, requires_grad=True)
    mean, _ = vae.encode(samples)
    vae.decoder(mean)[1].sum().backward()
    assert samples.grad[1].abs().max() > 0
    assert samples.grad[[0, 2, 3]].abs().max() == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"encoder": "conv"},
            r"image_shape must be \(channels, .* got None\. Set image_shape",
        ),
        (
            {"decoder": "conv"},
            r"image_shape must be \(channels, .* got None\. Set image_shape",
        ),
        (
            {"encoder": "conv", "image_shape": (8, 8)},
            r"image_shape must be .* three integers above 0.*got \(8, 8\)",
        ),
        (
            {"encoder": "conv", "image_shape": (1, 8, 8.0)},
            r"three integers above 0.*got \(1, 8, 8\.0\)",
        ),
        (
            {"encoder": "conv", "image_shape": (0, 8, 8)},
            r"three integers above 0.*got \(0, 8, 8\)",
        ),
        (
            {"decoder": "conv", "image_shape": (3, 8, 8)},
            r"as many values as a sample has features, 64, for decoder='conv', got "
            r"\(3, 8, 8\), which has 192",
        ),
        (
            {"encoder": "conv", "image_shape": (16, 2, 2)},
            r"height and width above 4 .* got \(16, 2, 2\).*encoder=None",
        ),
        (
            {"encoder": "conv", "image_shape": (8, 8, 1)},
            r"height and width above 4 .* order is \(channels, height, width\)",
        ),
        (
            {"encoder": "cnn", "image_shape": (1, 8, 8)},
            r"encoder must be 'conv', a torch.nn.Module, a callable or None, got 'cnn'",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        make_vae(64, 2, (), **params)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Linear(8, 3),
            r"got \(2, 3\) for 2 samples\. It comes from Linear\(in_feat",
        ),
        (
            nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3), nn.Dropout()),
            r"got \(2, 3\).*from its layer '2', Linear\(.*'1', Tanh\(\) had returned "
            r"\(2, 6\)",
        ),
        (
            nn.Sequential(nn.Linear(8, 5), nn.Sequential(nn.ReLU(), nn.Linear(6, 4))),
            r"cannot be multiplied.*its layer '1\.1', Linear\(in_features=6.*'1\.0', "
            r"ReLU\(\) had returned \(2, 5\)",
        ),
        (
            Flattened(),
            r"got \(8,\) .*comes from Flattened, after its layer 'body', Sequential "
            r"had returned \(2, 4\)",
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(5)),
            r"error.*its layer '1', BatchNorm1d\(5.*Linear.* had returned \(2, 4\)",
        ),
        (
            nn.Sequential(nn.LazyLinear(5), nn.LazyConv2d(4, 3)),
            r"error.*its layer '1', LazyConv2d\(.* had returned \(2, 5\)",
        ),
        (
            nn.LSTM(8, 4),
            r"got tuple\(\(2, 4\), tuple\(\(1, 4\), \(1, 4\)\)\) for 2 samples",
        ),
        (
            nn.Linear(8, 4).double(),
            r"error.*float64\. Call \.float\(\) on the encoder",
        ),
        (
            Doubled(),
            r"got \(2, 4\) of torch.float64.*its layer 'linear'.*\. Call \.float",
        ),
        (nn.Linear(8, 4).bfloat16(), r"Its weights are torch.bfloat16\. Call \.float"),
    ],
)
def test_errors_name_the_layer(module, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        make_vae(8, 2, (), encoder=module)


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
def test_scripted_modules_have_no_layers_to_name():
    assert make_vae(8, 2, (), torch.jit.script(nn.Linear(8, 4))).encode
    with pytest.raises(ValueError, match=r"got \(2, 3\) for 2 samples\.$"):
        make_vae(8, 2, (), torch.jit.script(nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"shape \(n, 8\), float32, got the error"):
        make_vae(8, 2, (), torch.jit.script(nn.Linear(7, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda n, d: nn.Sequential(nn.Linear(n, 2 * d), nn.BatchNorm1d(2 * d)),
        lambda n, d: nn.Sequential(nn.Dropout(0.5), nn.Linear(n, 2 * d)),
        lambda n, d: nn.Sequential(
            nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Linear(5, 4)
        ),
        lambda n, d: nn.Linear(n, 2 * d, device="meta"),
        lambda n, d: torch.compile(nn.Linear(n, 2 * d), backend="eager"),
    ],
    ids=["batch norm", "dropout", "lazy", "another device", "compiled"],
)
def test_the_check_leaves_no_trace(make):
    encoder = make_vae(8, 2, (), encoder=make).encoder
    for layer in encoder.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
        assert layer.training
        if isinstance(layer, nn.BatchNorm1d):
            assert layer.num_batches_tracked == 0
    assert all(p.grad is None for p in encoder.parameters())


def test_a_refused_module_is_left_without_hooks():
    own = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(ValueError, match="layer '0'"):
        make_vae(8, 2, (), encoder=lambda n_features, latent_dim: own)
    assert not own._forward_hooks
    assert not own[0]._forward_pre_hooks
