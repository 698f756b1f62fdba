"""
Convolutions for images: which ones, and what they cost
=======================================================

Measures four things on color patches of 16 x 16 and 32 x 32, in CPU time on one thread:

- quality: fully connected nets, and convolutions: the package's, wider, deeper and
  residual ones. Each trains for the same time. Prints ELBO and margin on patches from
  other strips of the photographs, and seconds per epoch;
- epoch: the package's training, compared with a loop by hand with the same
  convolutions, batches and loss, and with that loop in the memory format channels_last;
- transform: the package, compared with a bare forward pass in chunks of 256 samples;
- picture: ``--picture FILE`` draws held-out patches above their reconstructions.

    python examples/benchmarks/conv.py [quality] [epoch] [transform] [--seconds 30]
"""

import argparse
import statistics
import time
from itertools import pairwise

import torch
from epoch import by_hand, by_package, cpu_seconds
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import nn

from skvaecert import CertifiedVAE, GMMTeacher
from skvaecert._training.inference import encode
from skvaecert._training.monitors import MarginMonitor
from skvaecert._training.net import make_net
from skvaecert.datasets import load_patches
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.networks import make_vae, mlp
from skvaecert.simplex import simplex_vertices

N_TRAIN, N_TEST, HIDDEN, LATENT_DIM, BATCH_SIZE = 5000, 2000, (128,), 16, 128


class Residual(nn.Module):
    """x + conv(SiLU(conv(SiLU(x)))), the identity at first."""

    def __init__(self, channels):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.SiLU(), first, nn.SiLU(), last)

    def forward(self, x):
        return x + self.layers(x)


def none(channels):
    return []


def another(channels):
    return [nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]


def residual(channels):
    return [Residual(channels)]


def shapes_of(image_shape, width):
    shapes = [image_shape]
    while max(shapes[-1][1:]) > 4:
        channels = min(width * 2 ** (len(shapes) - 1), 8 * width)
        shapes.append((channels, *(-(-side // 2) for side in shapes[-1][1:])))
    return shapes


def encoder(image_shape, width, extra):
    """Return a factory for an encoder with `extra` layers after each convolution."""
    shapes = shapes_of(image_shape, width)

    def make(n_features, latent_dim):
        layers = [nn.Unflatten(1, image_shape)]
        for (fine, *_), (coarse, *_) in pairwise(shapes):
            layers += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), *extra(coarse)]
            layers += [nn.SiLU()]
        n_inputs = torch.Size(shapes[-1]).numel()
        return nn.Sequential(
            *layers, nn.Flatten(), *mlp(n_inputs, HIDDEN, 2 * latent_dim)
        )

    return make


def decoder(image_shape, width, extra):
    """Return a factory for a decoder with `extra` layers before each convolution."""
    shapes = shapes_of(image_shape, width)[::-1]

    def make(n_features, latent_dim):
        layers = [*mlp(latent_dim, HIDDEN, torch.Size(shapes[0]).numel())]
        layers += [nn.Unflatten(1, shapes[0])]
        for (coarse, *_), (fine, *_) in pairwise(shapes):
            up = nn.ConvTranspose2d(coarse, fine, 3, 2, padding=1, output_padding=1)
            layers += [*extra(coarse), nn.SiLU(), up]
        return nn.Sequential(*layers, nn.Flatten())

    return make


def variants(image_shape):
    """Return encoder and decoder by name."""

    def both(width, extra):
        sizes = image_shape, width, extra
        return {"encoder": encoder(*sizes), "decoder": decoder(*sizes)}

    return {
        "fully connected, 128-128": {"hidden_sizes": (128, 128)},
        "fully connected, 512-256": {"hidden_sizes": (512, 256)},
        "package: 16, 32, 64 channels": {"encoder": "conv", "decoder": "conv"},
        "8, 16, 32 channels": both(8, none),
        "32, 64, 128 channels": both(32, none),
        "16, 32, 64, and one more convolution each": both(16, another),
        "16, 32, 64, and a residual block each": both(16, residual),
        "32, 64, 128, and a residual block each": both(32, residual),
    }


class Budget(Callback):
    """Stops training after the epoch in which the CPU time is used up."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_begin(self, net, **kwargs):
        self.began_ = time.process_time()

    def on_epoch_end(self, net, **kwargs):
        if time.process_time() - self.began_ > self.seconds:
            raise KeyboardInterrupt


def quality(seconds):
    for size in (16, 32):
        train = load_patches(N_TRAIN, size=size, random_state=0)
        test = load_patches(N_TEST, size=size, subset="test", random_state=1).data
        teacher = GMMTeacher(n_components=10, random_state=0).fit(train.data)
        proba = teacher.predict_proba(test)
        most = teacher_information(proba)
        print(f"\n{size} x {size}, {seconds:.0f} s each, margin at most {most:.2f}\n")
        print("| net | epochs | s per epoch | ELBO, test | ELBO, training | margin |")
        print("|---|---|---|---|---|---|")
        for name, params in variants(train.image_shape).items():
            vae = CertifiedVAE(
                FrozenEstimator(teacher),
                latent_dim=LATENT_DIM,
                image_shape=train.image_shape,
                batch_size=BATCH_SIZE,
                max_epochs=10**6,
                callbacks=[Budget(seconds)],
                random_state=0,
            )
            vae.set_params(**{"hidden_sizes": HIDDEN} | params).fit(train.data)
            margin = collapse_margin(proba, vae.witness_log_proba(test))
            cells = f"{vae.n_iter_} | {seconds / vae.n_iter_:.2f}"
            cells += f" | {vae.score(test):.0f} | {vae.score(train.data):.0f}"
            print(f"| {name} | {cells} | {margin:.2f} |", flush=True)


def fresh(image_shape):
    n_features = torch.Size(image_shape).numel()
    sizes = n_features, LATENT_DIM, HIDDEN
    return make_vae(*sizes, "conv", "conv", image_shape=image_shape)


def epoch(repeats):
    print(
        "\n| samples | by hand | by hand, channels_last | without monitor "
        "| with monitor |"
    )
    print("|---|---|---|---|---|")
    for shape in ((3, 16, 16), (3, 32, 32)):
        torch.manual_seed(0)
        samples = torch.randn(N_TRAIN, torch.Size(shape).numel())
        proba = torch.softmax(2 * torch.randn(N_TRAIN, 10), dim=1)
        data = samples, proba, simplex_vertices(10, LATENT_DIM)
        last = fresh(shape).to(memory_format=torch.channels_last)
        without = by_package(data, fresh(shape), BATCH_SIZE, None)
        epochs = {
            "by hand": by_hand(data, fresh(shape), BATCH_SIZE),
            "channels_last": by_hand(data, last, BATCH_SIZE),
            "without monitor": without,
            "with monitor": by_package(data, fresh(shape), BATCH_SIZE, MarginMonitor()),
        }
        print_ratios(f"{N_TRAIN:,} of {shape}", in_turn(epochs, repeats))


def transform(repeats):
    print("\n| samples | bare, 256 | 128 | 1024 | 256, channels_last | package |")
    print("|---|---|---|---|---|---|")
    for shape in ((3, 16, 16), (3, 32, 32)):
        samples = torch.randn(10_000, torch.Size(shape).numel())
        vae, last = fresh(shape), fresh(shape).to(memory_format=torch.channels_last)
        net = make_net(
            vae,
            device=torch.device("cpu"),
            vertices=simplex_vertices(10, LATENT_DIM),
            criterion__likelihood="gaussian",
            criterion__scale=1.0,
            criterion__kl_weight=1.0,
            criterion__alignment_weight=1.0,
        )
        passes = {n: bare(vae, samples, n) for n in (256, 128, 1024)}
        passes["channels_last"] = bare(last, samples, 256)
        passes["package"] = lambda net=net, samples=samples: encode(net, samples)
        print_ratios(f"10,000 of {shape}", in_turn(passes, repeats))


def bare(vae, samples, n):
    """Return a function that encodes all samples, and no more."""

    @torch.inference_mode()
    def forward():
        return torch.cat(
            [vae.encoder(chunk)[:, :LATENT_DIM] for chunk in samples.split(n)]
        )

    return forward


def in_turn(functions, repeats):
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(cpu_seconds(function))
    return list(times.values())


def print_ratios(name, times):
    base, *others = times
    ratios = (
        statistics.median(a / b for a, b in zip(other, base, strict=True))
        for other in others
    )
    cells = [f"{statistics.median(base) * 1e3:.0f} ms", *(f"{r:.2f}" for r in ratios)]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def picture(path):
    import matplotlib.pyplot as plt

    train, test = (
        load_patches(N_TRAIN, size=32, subset=subset, random_state=0)
        for subset in ("train", "test")
    )
    samples = test.data[test.data.var(axis=1).argsort()[:-2000:-200]]
    vae = CertifiedVAE(
        GMMTeacher(n_components=10),
        latent_dim=64,
        encoder="conv",
        decoder="conv",
        image_shape=train.image_shape,
        kl_weight=0.3,
        max_epochs=20,
        random_state=0,
    ).fit(train.data)
    decoded = vae.inverse_transform(vae.transform(samples))
    _, axes = plt.subplots(2, 10, figsize=(10, 2.2))
    for line, images in zip(axes, (samples, decoded), strict=True):
        for axis, image in zip(line, images, strict=True):
            image = image.reshape(test.image_shape).transpose(1, 2, 0)
            axis.imshow(image.clip(0, 1))
            axis.axis("off")
    plt.savefig(path, dpi=100, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parts = ["quality", "epoch", "transform"]
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.parts or ([] if options.picture else parts)
    if "quality" in chosen:
        quality(options.seconds)
    if "epoch" in chosen:
        epoch(options.repeats)
    if "transform" in chosen:
        transform(options.repeats)
    if options.picture:
        picture(options.picture)


if __name__ == "__main__":
    main()
