"""
What training and certificates cost on a GPU
============================================

Prints four tables.

- *training*: samples per second and peak memory of ``CertifiedVAE(device="cuda")``, of
  a loop by hand with the same net, loss and batches and torch's default Adam, and of
  that loop with the whole step captured in a CUDA graph. All keep the samples on the
  GPU, where they count as memory. Epochs of the package include its monitor and its
  records.
- *waiting*: how an epoch's time is spent. "batches" ends when the GPU has finished the
  last batch. Then follows the end of the epoch, where the package reads the losses,
  checks the weights, computes the margin and copies the weights, and so waits for the
  GPU. "kernels" is the sum of all kernels and copies on the GPU that torch's profiler
  records in a separate epoch. There is one stream, so they do not overlap. The GPU is
  idle for the rest of the time: it waits for Python, or Python waits for it.
- *certificates* of a million samples in main memory, with the encoder on the GPU:
  seconds, peak memory on the GPU, and results. ``certify`` computes the bracket from
  subsets of the samples, ``code_information`` from all samples at once, which is
  narrower and takes longer.
- *seeds*: whether equal seeds gave equal means, to the bit.

Times are wall times, medians over epochs without the first. Without CUDA there is no
graph, and memory and kernels are not measured.

    python examples/benchmarks/gpu.py [--device cuda] [--preset full]
"""

import argparse
import gc
import platform
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from skvaecert import CertifiedVAE, CollapseCertifier
from skvaecert.information import code_information
from skvaecert.networks import make_vae
from skvaecert.objectives import alignment, gaussian_kl, gaussian_loss
from skvaecert.simplex import simplex_vertices
from skvaecert.wrappers import TrainedEncoder

N_FITTED = 10_000
K, LATENT_DIM, SCALE, KL_WEIGHT, ALIGNMENT_WEIGHT = 10, 32, 2.0, 1.0, 10.0


class Net(NamedTuple):
    """A pair of networks, as CertifiedVAE makes them from these parameters."""

    n_features: int
    params: dict

    def fresh(self):
        codecs = [self.params.get(name) for name in ("encoder", "decoder")]
        shape = self.params.get("image_shape")
        sizes = self.n_features, LATENT_DIM, self.params["hidden_sizes"]
        return make_vae(*sizes, *codecs, image_shape=shape)


CONV = {"encoder": "conv", "decoder": "conv", "image_shape": (3, 32, 32)}
FLAT = Net(784, {"hidden_sizes": (512, 256)})
NETS = {
    "784-512-256-32": FLAT,
    "convolutions, 3 x 32 x 32": Net(3072, {"hidden_sizes": (128,)} | CONV),
}


class Preset(NamedTuple):
    """Numbers: samples per epoch by batch size, epochs, certified samples, draws."""

    n_samples: dict
    n_epochs: int
    n_certified: int
    n_draws: int


PRESETS = {
    "full": Preset({128: 32_768, 1024: 65_536, 8192: 65_536}, 6, 1_000_000, 2000),
    "smoke": Preset({128: 512, 512: 1024}, 3, 20_000, 1000),
}


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device, action):
    synchronize(device)
    start = time.perf_counter()
    result = action()
    synchronize(device)
    return time.perf_counter() - start, result


class Peak:
    """Measures the peak memory on the GPU that is allocated inside the block."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *error):
        self.memory = "-"
        if self.device == "cuda":
            peak = torch.cuda.max_memory_allocated() - self.before
            self.memory = f"{peak / 2**20:,.0f} MB"


def profiled(device):
    kinds = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    return profile(activities=kinds)


def kernel_seconds(profiler):
    """Return the time of kernels and copies on the GPU."""
    return sum(
        event.self_device_time_total / 1e6
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )


# Training


def print_table(*header):
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)


def print_row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


class Loss(torch.nn.Module):
    """The loss of the package, in one function."""

    def __init__(self):
        super().__init__()
        vertices = torch.as_tensor(simplex_vertices(K, LATENT_DIM)).float()
        self.register_buffer("vertices", vertices)

    def forward(self, result, x, proba):
        loss = gaussian_loss(x, result.output, result.log_noise)
        loss = loss + KL_WEIGHT * gaussian_kl(result.mean, result.log_variance)
        pull = alignment(proba, result.mean, self.vertices, SCALE)
        return (loss + ALIGNMENT_WEIGHT * pull).mean()


def by_hand(net, samples, proba, batch_size):
    """Return a function that trains one epoch."""
    vae, criterion = net.fresh().to(samples.device), Loss().to(samples.device)
    optimizer = torch.optim.Adam(vae.parameters())

    def epoch():
        for index in torch.randperm(len(samples), device=samples.device).split(
            batch_size
        ):
            x = samples[index]
            loss = criterion(vae(x), x, proba[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def by_graph(net, samples, proba, batch_size):
    """Return the same, with the step and its choice of samples captured as a graph."""
    vae, criterion = net.fresh().to(samples.device), Loss().to(samples.device)
    optimizer = torch.optim.Adam(vae.parameters(), capturable=True)
    index = torch.arange(batch_size, device=samples.device)

    def step():
        x = samples[index]
        criterion(vae(x), x, proba[index]).backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        step()

    # The graph uses the memory of the step's tensors, so keep the step alive.
    def epoch(kept=step):
        for part in torch.randperm(len(samples), device=samples.device).split(
            batch_size
        ):
            index.copy_(part)
            graph.replay()

    return epoch


class Phases(Callback):
    """Records when the GPU finishes the batches of each epoch; profiles the last."""

    def __init__(self, device, n_batches, n_epochs):
        self.device, self.n_batches, self.n_epochs = device, n_batches, n_epochs
        self.batches, self.kernels = [], None

    def __deepcopy__(self, memo):
        return self

    def on_epoch_begin(self, net, **kwargs):
        synchronize(self.device)
        if len(net.history) == self.n_epochs:
            self.profiler = profiled(self.device).__enter__()
        self.began = time.perf_counter()

    def on_batch_end(self, net, **kwargs):
        if len(net.history[-1]["batches"]) == self.n_batches:
            synchronize(self.device)
            self.batches.append(time.perf_counter() - self.began)

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.n_epochs:
            self.profiler.__exit__(None, None, None)
            self.kernels = kernel_seconds(self.profiler)


class Epoch(NamedTuple):
    """Wall time of an epoch, of its batches alone and of its kernels; peak memory."""

    whole: float
    batches: float
    kernels: float
    memory: str


def of_package(net, device, X, proba, batch_size, n_epochs):
    # The first epoch warms up, and the last is profiled.
    phases = Phases(device, len(X) // batch_size, n_epochs + 2)
    vae = CertifiedVAE(
        latent_dim=LATENT_DIM,
        batch_size=batch_size,
        alignment_weight=ALIGNMENT_WEIGHT,
        kl_weight=KL_WEIGHT,
        witness_scale=SCALE,
        max_epochs=n_epochs + 2,
        callbacks=[phases],
        device=device,
        random_state=0,
        **net.params,
    )
    with Peak(device) as peak:
        vae.fit(X, teacher_proba=proba)
    whole = statistics.median(row["seconds"] for row in vae.history_[1:-1])
    batches = statistics.median(phases.batches[1:-1])
    return Epoch(whole, batches, phases.kernels, peak.memory)


def of_loop(make, net, device, X, proba, batch_size, n_epochs):
    with Peak(device) as peak:
        data = (torch.as_tensor(part).float().to(device) for part in (X, proba))
        epoch = make(net, *data, batch_size)
        epoch()
        times = [seconds(device, epoch)[0] for _ in range(n_epochs)]
        with profiled(device) as profiler:
            epoch()
            synchronize(device)
    whole = statistics.median(times)
    return Epoch(whole, whole, kernel_seconds(profiler), peak.memory)


def drawn_samples(n, n_features, device):
    """Return samples in ten clusters, and a teacher's posteriors for them."""
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device}
    centers = torch.randn(K, n_features, **options)
    X, cluster = np.empty((n, n_features), np.float32), np.empty(n, int)
    for start in range(0, n, 2**16):
        part = slice(start, min(n, start + 2**16))
        chosen = torch.randint(K, (part.stop - start,), **options)
        noise = torch.randn(len(chosen), n_features, **options)
        X[part], cluster[part] = (centers[chosen] + noise).cpu(), chosen.cpu()
    return X, 0.9 * np.eye(K)[cluster] + 0.1 / K


def training(device, preset):
    makes = {"by hand": by_hand}
    if device == "cuda":
        makes["by hand, CUDA graph"] = by_graph
    found = []
    print("\nTraining")
    header = (
        "samples per second",
        "time per step",
        "speed relative to by hand",
        "peak memory",
    )
    print_table("net", "batch", "loop", *header)
    for name, net in NETS.items():
        for batch_size, n in preset.n_samples.items():
            X, proba = drawn_samples(n, net.n_features, device)
            given = net, device, X, proba, batch_size, preset.n_epochs
            epochs = {"package": of_package(*given)}
            epochs |= {loop: of_loop(make, *given) for loop, make in makes.items()}
            base = epochs["by hand"].whole
            for loop, epoch in epochs.items():
                rate, step = n / epoch.whole, epoch.whole / n * batch_size * 1e3
                cells = f"{rate:,.0f}", f"{step:.2f} ms", f"{base / epoch.whole:.2f}"
                print_row(name, batch_size, loop, *cells, epoch.memory)
                found.append((name, batch_size, loop, epoch))
    return found


def waiting(device, found):
    print("\nWaiting, ms per epoch")
    header = "whole", "batches", "end of the epoch", "kernels", "GPU idle"
    print_table("net", "batch", "loop", *header)
    for *names, epoch in found:
        parts = epoch.whole, epoch.batches, epoch.whole - epoch.batches
        idle = kernels = "-"
        if device == "cuda":
            kernels = f"{epoch.kernels * 1e3:.1f}"
            idle = f"{1 - epoch.kernels / epoch.whole:.0%}"
        print_row(*names, *(f"{part * 1e3:.1f}" for part in parts), kernels, idle)


# Certificates


def bare_pass(module, X, device, size):
    """Encode, and no more."""
    with torch.inference_mode():
        parts = torch.from_numpy(X).split(size)
        return np.concatenate(
            [module.encode(x.to(device))[0].cpu().numpy() for x in parts]
        )


def means(mean, std=None):
    return f"{len(mean):,} means" + ("" if std is None else " and deviations")


def written(certificate):
    found = certificate.information
    return (
        f"{certificate.verdict}: margin {certificate.margin:.4f} of "
        f"{certificate.teacher_information:.4f}, tolerance {certificate.tolerance:.1e}"
        f"; drawn codes carry {found.low:.2f} to {found.high:.2f} nats"
    )


def fitted_certifiers(device, X, proba):
    """Return a certifier of a VAE, and one of its encoder as a foreign model."""
    settings = {"latent_dim": LATENT_DIM, "max_epochs": 5, "random_state": 0}
    vae = CertifiedVAE(device=device, **settings, **FLAT.params)
    own = CollapseCertifier(vae).fit(X, teacher_proba=proba)
    # The foreign model gets the samples as they are, not standardized.
    module = own.estimator_.net_.module_.eval()
    model = TrainedEncoder(module.encode, batch_size=4096)
    foreign = CollapseCertifier(FrozenEstimator(model), witness="linear")
    return own, foreign.fit(X, teacher_proba=proba)


def certificates(device, preset):
    X, proba = drawn_samples(preset.n_certified + N_FITTED, FLAT.n_features, device)
    own, foreign = fitted_certifiers(device, X[:N_FITTED], proba[:N_FITTED])
    X, proba = X[N_FITTED:], proba[N_FITTED:]
    vae = own.estimator_
    module = vae.net_.module_
    mean, std = vae.encode(X)

    def certified(certifier):
        return lambda: written(certifier.certify(X, teacher_proba=proba))

    actions = {
        "bare pass, chunks of 256": lambda: means(bare_pass(module, X, device, 256)),
        "bare pass, chunks of 4096": lambda: means(bare_pass(module, X, device, 4096)),
        "`transform`": lambda: means(vae.transform(X)),
        "`certify`": certified(own),
        "`certify`, `TrainedEncoder` in batches of 4096": certified(foreign),
        "`encode`": lambda: means(*vae.encode(X)),
        f"`code_information`, {preset.n_draws:,} draws": lambda: code_information(
            mean, std, n_draws=preset.n_draws, random_state=0
        ),
    }
    print(f"\nCertificates of {len(X):,} samples of 784 features")
    print_table("what", "seconds", "peak memory", "result")
    for name, action in actions.items():
        with Peak(device) as peak:
            took, result = seconds(device, action)
        print_row(name, f"{took:.2f}", peak.memory, result)


def seeds(device, preset):
    print("\nEqual seeds")
    print_table("net", "means equal to the bit", "largest difference")
    for name, net in NETS.items():
        X, proba = drawn_samples(2048, net.n_features, device)
        settings = {"latent_dim": LATENT_DIM, "max_epochs": 3, "random_state": 0}
        first, second = (
            CertifiedVAE(device=device, **settings, **net.params)
            .fit(X, teacher_proba=proba)
            .transform(X)
            for _ in range(2)
        )
        print_row(
            name, np.array_equal(first, second), f"{abs(first - second).max():.1e}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    options = parser.parse_args()
    device, preset = options.device, PRESETS[options.preset]
    chip = platform.machine()
    if device == "cuda":
        chip = torch.cuda.get_device_name()
    else:
        torch.set_num_threads(1)
    print(f"{chip}; torch {torch.__version__}, NumPy {np.__version__}")
    waiting(device, training(device, preset))
    certificates(device, preset)
    seeds(device, preset)


if __name__ == "__main__":
    main()
