"""The training loop, by skorch: net, batches, callbacks, seed, device."""

import copy
import dis
import io
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback, ParamMapper
from torch import Tensor
from tqdm import tqdm

from skvaecert._batches import Batches, TrainingSet
from skvaecert._gradient import GradientByHand, Layers
from skvaecert._optimizer import FlatAdam
from skvaecert._processes import ALONE, Processes
from skvaecert.baselines import AggressiveEncoder, SigmaVAE, mutual_information
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.metrics import collapse_margin, teacher_information
from skvaecert.networks import VAE, Pass
from skvaecert.objectives import AlignedELBO, Guard, Objective, Terms, gaussian_kl
from skvaecert.simplex import witness_log_proba

__all__ = [
    "CHUNK",
    "Completion",
    "EncoderFirst",
    "MarginMonitor",
    "Observed",
    "Observer",
    "OptimalNoise",
    "Progress",
    "Snapshot",
    "Stop",
    "VAENet",
    "ValidationMonitor",
    "Watched",
    "check_backend",
    "check_callbacks",
    "decode",
    "encode",
    "evidence_bound",
    "make_net",
    "posterior",
    "prefit",
    "resolve_device",
    "resume_net",
    "seeded",
    "stand_in",
    "train",
]

# Rows evaluated together. The last chunk is filled up to it: matrix products of
# another shape round differently, and a row's mean must not depend on its company.
CHUNK = 256
# Small fully connected networks take more: they wait for torch more than they compute.
_SMALL_NET_CHUNK, _FEW_PARAMETERS = 1024, 2**16
# The encoder's forward pass is about a sixth of a training step, so a quarter of the
# rows keeps the monitor below 5 % of the epoch.
_MONITORED_SHARE = 4
_MOST_MONITORED = 8192
# What a net has only while epochs run.
_OF_EPOCHS = "_batch_records", "_batch_size", "_by_hand", "_forward", "_compiled"
# What is noted of every batch.
_PARTS = ("train_loss", *Terms._fields)


def resolve_device(name: str) -> torch.device:
    """Turn the parameter `device` into a torch device."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            "device must be 'auto' or a torch device that is there, such as 'cpu' or "
            f"'cuda:0', got {name!r}: {error}"
        ) from error
    return device


_one_thread = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and give the user's generators back after it.

    Threads wait for each other here: all of them draw from the same generators, and
    each would get numbers that depend on what the others do.
    """
    accelerator = device.type != "cpu"
    index = [device.index or 0] if accelerator else []
    kind = device.type if accelerator else "cuda"
    with _one_thread, torch.random.fork_rng(index, device_type=kind):
        torch.default_generator.manual_seed(seed)
        if accelerator:
            torch.get_device_module(device).manual_seed(seed)
        yield


class VAENet(NeuralNet):
    """Skorch net with the aligned ELBO as its loss, on rows and posteriors in memory.

    Beyond skorch's own, every epoch in `history` has the batch means of
    "reconstruction" and "kl" and what :class:`MarginMonitor` records. Ctrl-C and
    losses that are not finite leave the weights of the last completed epoch.
    """

    # Others only while it trains, so that they are never pickled.
    processes: Processes = ALONE

    def __init__(
        self,
        *args: Any,
        forward_backend: str | None = None,
        autocast: bool = False,
        **kwargs: Any,
    ) -> None:
        self.forward_backend = forward_backend
        self.observer: Observer | None = None
        self.stop_wanted = False
        self.autocast = autocast
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled, with tensors on the CPU wherever they are trained."""
        net = object.__new__(type(self))
        net.__dict__.update(self.__dict__)
        if torch.device(self.device).type != "cpu":
            net.__dict__.update(_on_cpu(self._trained))
        state = super(VAENet, net).__getstate__()
        if self.initialized_:
            # The same as `module_`, which skorch sees to.
            del state["module"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, onto the CPU where the device is not there."""
        super().__setstate__(state)
        if self.initialized_:
            self.__dict__.setdefault("module", self.module_)

    @property
    def _trained(self) -> dict[str, Any]:
        parts = ("module_", "criterion_", "optimizer_")
        return {k: v for k, v in vars(self).items() if k.startswith(parts)}

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("monitor", MarginMonitor()),
            # criterion__... are attributes of a skorch net.
            *_helpers(getattr(self, "criterion__objective", None)),
            ("validation", ValidationMonitor()),
            ("completion", Completion()),
            ("observed", Observed()),
        ]

    def get_iterator(self, dataset: TrainingSet, training: bool = False) -> Batches:
        """Return the batches of an epoch, or the share of this process in them."""
        return Batches(dataset, self.batch_size, self.processes)

    def run_single_epoch(self, iterator: Any, *args: Any, **kwargs: Any) -> None:
        """Train on every batch once, without waiting for the device.

        Until the epoch ends, losses in the records of its batches are tensors.
        """
        if iterator is None:
            return
        self.module_.train()
        n_batches, n_epochs = len(iterator), len(self.history) - 1
        for number, batch in enumerate(iterator):
            self.criterion_.epoch = n_epochs + number / n_batches
            self._batch_size = iterator.sizes[number]
            self.notify("on_batch_begin", batch=batch, training=True)
            step = self.train_step(batch)
            record = {
                "train_loss": step["loss"],
                "train_batch_size": self._batch_size,
            }
            self._batch_records[-1].update(record)
            self.notify("on_batch_end", batch=batch, training=True, **step)
        self.history.record("train_batch_count", n_batches)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Make one step of the optimizer."""
        if not self.module_.training:
            self.module_.train()
        if isinstance(self.optimizer_, FlatAdam):
            self.optimizer_.tie()
        result = self._gradient(*batch)
        if self.processes.n_processes > 1:
            self._put_together(len(batch[0]))
        self.notify(
            "on_grad_computed",
            named_parameters=self.get_all_learnable_params(),
            batch=batch,
            training=True,
        )
        self.optimizer_.step()
        if self.criterion_.guard is not None:
            self.criterion_.guard.update(self._noted[-1][-1])
        return {"loss": self._noted[-1][1], "y_pred": result}

    def _gradient(self, x: Tensor, teacher_proba: Tensor) -> Pass:
        """Fill `grad` of the parameters, by hand or by autograd."""
        if self._by_hand is not None:
            result, terms = self._by_hand(x, teacher_proba, self.criterion_)
            self._note(terms)
            return result
        self.optimizer_.zero_grad()
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.autocast):
            result, terms = self._forward(x, teacher_proba)
        self._note(terms).backward()
        return result

    def _put_together(self, n_share: int) -> None:
        """Make gradient and losses of a share those of the batch."""
        gradients = self._gradients()
        n_rows, *noted = self._noted.pop()
        # Means over shares of unequal length do not weigh the same.
        whole = self.processes.sum([*gradients, *noted], n_share / n_rows)
        for own, gradient in zip(gradients, whole, strict=False):
            own.copy_(gradient)
        self._noted.append((n_rows, *whole[len(gradients) :]))

    def _gradients(self) -> list[Tensor]:
        if isinstance(self.optimizer_, FlatAdam):
            return [self.optimizer_.gradient()]
        parameters = [p for _, p in self.get_all_learnable_params() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # processes must have the same tensors
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in parameters if p.grad is not None]

    def _forward_pass(self, x: Tensor, teacher_proba: Tensor) -> tuple[Pass, Terms]:
        result = self.module_(x)
        return result, self.criterion_.terms(result, x, teacher_proba)

    def _choose_step(self) -> None:
        """Decide by whom gradients are computed, as things are in this epoch."""
        self._forward = self._compiled or self._forward_pass
        plain = self._forward == self._forward_pass and not self.autocast
        plain &= isinstance(self.optimizer_, FlatAdam)
        self._by_hand = (
            GradientByHand.of(self.module_, self.criterion_) if plain else None
        )

    def get_loss(
        self, y_pred: Pass, y_true: Tensor, X: Tensor, training: bool = False
    ) -> Tensor:
        """Return the aligned ELBO of one batch, for callbacks that ask for it."""
        return self.criterion_.total(self.criterion_.terms(y_pred, X, y_true))

    def _note(self, terms: Terms) -> Tensor:
        loss = self.criterion_.total(terms)
        noted = loss.detach(), *(t.detach() for t in terms)
        self._noted.append((self._batch_size, *noted))
        return loss

    def fit_loop(self, *args: Any, **kwargs: Any) -> "VAENet":
        """Run the epochs; on Ctrl-C or an error, return to the last full one."""
        # Until the end shows otherwise: skorch swallows Ctrl-C also before the loop.
        self.interrupted_ = True
        self._noted: list[tuple[Any, ...]] = []
        self._completed = Snapshot(self)
        self._n_voted = len(self.history)
        self._compiled = self._compile()
        if isinstance(self.optimizer_, FlatAdam):
            self.optimizer_.bind([p for _, p in self.get_all_learnable_params()])
        try:
            super().fit_loop(*args, **kwargs)
            self.interrupted_ = False
        except KeyboardInterrupt as stop:
            if self._n_voted < len(self.history):
                self.agree_to_stop(True)
            unfinished = len(self.history) > self._completed.n_epochs
            # skorch's early stopping raises this too, at the end of an epoch.
            ctrl_c = not _raised_in_code(stop) or self.processes.interrupted
            self.interrupted_ = unfinished or ctrl_c
            if unfinished:
                self._completed.restore(self)
        except BaseException:
            self._completed.restore(self)
            # Moments made from infinite gradients would break the next fit too.
            self.optimizer_.state.clear()
            raise
        finally:
            del self._completed, self._noted, self._n_voted
            for name in _OF_EPOCHS:
                self.__dict__.pop(name, None)
        return self

    def agree_to_stop(self, wish: bool) -> bool:
        """Return whether training ends with this epoch, as any process may wish.

        Each has one vote an epoch, also if a callback of its own ends it before others.
        """
        self._n_voted = len(self.history)
        return self.processes.vote(wish)

    def _compile(self) -> Callable[..., Any] | None:
        if self.forward_backend is None:
            return None
        return torch.compile(self._forward_pass, backend=self.forward_backend)

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Start the epoch's record."""
        super().on_epoch_begin(net, **kwargs)
        self._noted = []
        self._batch_records = self.history[-1]["batches"]
        self._choose_step()
        self._began = time.perf_counter()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the parts of the loss and look at the weights."""
        super().on_epoch_end(net, **kwargs)
        sizes, *columns = zip(*self._noted, strict=True)
        # The one time in an epoch that waits for the device.
        values = torch.stack([torch.stack(column) for column in columns]).tolist()
        self.record_losses(sizes, values)
        self.check_weights(all(p.isfinite().all() for p in self.module_.parameters()))
        # Means of batch normalisation are those of shares until here.
        self.processes.copy_first(list(self.module_.buffers()))

    def record_losses(
        self, sizes: Sequence[int], values: Sequence[Sequence[float]]
    ) -> None:
        """Record the parts of the loss of an epoch."""
        records = self.history[-1]["batches"]
        for record, loss in zip(records, values[0], strict=True):
            record["train_loss"] = loss
        means = dict(
            zip(_PARTS, np.average(values, axis=1, weights=sizes), strict=True)
        )
        if not np.isfinite(means["train_loss"]):
            raise _not_finite("loss", len(self.history), _first_not_finite(values))
        for name in ("train_loss", "reconstruction", "kl"):
            self.history.record(name, float(means[name]))
        best = min((row["train_loss"] for row in self.history[:-1]), default=math.inf)
        # What skorch's Checkpoint asks for.
        self.history.record("train_loss_best", bool(means["train_loss"] < best))
        self.history.record("kl_weight", self.criterion_.kl_weight)
        self.history.record("alignment_weight", float(self.criterion_.alignment_weight))

    def check_weights(self, finite: bool) -> None:
        """Raise an error if the weights are not finite."""
        if not finite:
            raise _not_finite("weights", len(self.history))

    def complete_epoch(self) -> None:
        """Remember the weights, once everything of the epoch is recorded."""
        seconds = time.perf_counter() - self._began
        self.history.record("seconds", self.processes.first(seconds))
        self._completed = Snapshot(self, with_optimizer=False)


def _on_cpu(parts: dict[str, Any]) -> dict[str, Any]:
    """Copy all of them at once: they share tensors."""
    memory = io.BytesIO()
    torch.save(parts, memory)
    memory.seek(0)
    return torch.load(memory, map_location="cpu", weights_only=False)


class Snapshot:
    """A copy of a net's weights, and of the weight of the alignment, to return to."""

    def __init__(self, net: VAENet, *, with_optimizer: bool = True) -> None:
        self.module = copy.deepcopy(net.module_.state_dict())
        state = net.optimizer_.state_dict() if with_optimizer else None
        self.optimizer = copy.deepcopy(state)
        criterion = net.criterion_
        self.alignment = copy.deepcopy(criterion.guard or criterion.alignment_weight)
        self.n_epochs = len(net.history)

    def restore(self, net: VAENet) -> None:
        """Give the net the weights and the history that it had."""
        net.module_.load_state_dict(self.module)
        if self.optimizer is not None:
            net.optimizer_.load_state_dict(self.optimizer)
        net.criterion_.set_alignment(copy.deepcopy(self.alignment))
        del net.history[self.n_epochs :]


class MarginMonitor(Callback):
    """Records "margin", "alignment_loss" and "teacher_information" after each epoch.

    They are those of at most a quarter of the training rows and at most 8,192, in lots
    of 256 (at least 256, or all of them), in evaluation mode, with the mean teacher of
    these rows: a margin in the sense of theory section 2. "margin_best" tells whether
    it is the greatest so far.
    """

    def on_train_begin(
        self, net: VAENet, X: TrainingSet | None = None, **kwargs: Any
    ) -> None:
        """Choose the rows."""
        if X is None:
            raise ValueError("MarginMonitor needs the training rows, got None.")
        most = min(len(X) // _MONITORED_SHARE, _MOST_MONITORED)
        self.watched_ = Watched.of(X, CHUNK * max(1, most // CHUNK))
        margins = [row["margin"] for row in net.history] if net else []
        self.best_ = max(margins, default=-math.inf)

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Record the margin."""
        self.record(net, net.processes.first(self.watched_.margin(net)))

    def record(self, net: VAENet, margin: float) -> None:
        """Record the margin at the end of an epoch."""
        information = self.watched_.information
        net.history.record("margin", margin)
        # What skorch's Checkpoint asks for.
        net.history.record("margin_best", bool(margin > self.best_))
        self.best_ = max(margin, self.best_)
        net.history.record("alignment_loss", information - margin)
        net.history.record("teacher_information", information)

    def release(self) -> None:
        """Forget the rows, so that they are not pickled with the net."""
        self.__dict__.pop("watched_", None)


class ValidationMonitor(Callback):
    """Records what rows held out say: "validation_loss" (-ELBO) and their margin.

    At most 8,192 of them are looked at. Steers the guard, if there is one, by them.
    """

    def on_train_begin(
        self, net: VAENet, X: TrainingSet | None = None, **kwargs: Any
    ) -> None:
        """Read the rows, if there are any."""
        held_out = getattr(X, "held_out", None)
        self.watched_ = held_out and Watched.of(held_out, _MOST_MONITORED)
        losses = [row.get("validation_loss", math.inf) for row in net.history or []]
        self.best_ = min(losses, default=math.inf)

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Record ELBO and margin, and tell the guard."""
        if self.watched_ is None:
            return
        loss = -float(self.watched_.evidence_bound(net).mean(dtype=np.float64))
        margin, information = self.watched_.margin(net), self.watched_.information
        loss, margin = net.processes.first((loss, margin))
        net.history.record("validation_loss", loss)
        net.history.record("validation_loss_best", bool(loss < self.best_))
        net.history.record("validation_margin", margin)
        net.history.record("validation_information", information)
        self.best_ = min(loss, self.best_)
        if net.criterion_.guard is not None:
            alignment_loss = net.history[-1]["alignment_loss"]
            net.criterion_.guard.gap = information - margin - alignment_loss

    def release(self) -> None:
        """Forget the rows, so that they are not pickled with the net."""
        self.__dict__.pop("watched_", None)


class Watched(NamedTuple):
    """Rows to look at after every epoch."""

    rows: Tensor
    teacher_proba: NDArray[np.floating]
    information: float

    @classmethod
    def of(cls, dataset: TrainingSet, most: int) -> Self:
        """Choose rows, the same ones of the same dataset every time."""
        # A generator of its own: warm fits on the same data watch the same rows.
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        rows, targets = dataset.take(order[:most])
        proba = targets.cpu().numpy()
        return cls(rows, proba, teacher_information(proba))

    def margin(self, net: VAENet) -> float:
        """Compute the margin of a net as it is."""
        objective = net.criterion_
        vertices = objective.vertices.cpu().numpy()
        log_q = witness_log_proba(encode(net, self.rows), vertices, objective.scale)
        return collapse_margin(self.teacher_proba, log_q)

    def evidence_bound(self, net: VAENet) -> NDArray[np.float32]:
        """Compute the ELBO of every row, with codes that are the same every time."""
        with seeded(0, torch.device(net.device)):
            return evidence_bound(net, self.rows)


class EncoderFirst(Callback):
    """Trains the encoder alone before each step, which is then the decoder's alone.

    Records "mutual_information", on the monitored rows in lots of 256, and
    "aggressive": whether the next epoch goes on so, which ends when the former falls.

    He et al., arXiv:1901.05534, algorithm 1.
    """

    def __init__(self, window: int, max_inner_steps: int) -> None:
        self.window = window
        self.max_inner_steps = max_inner_steps

    def on_train_begin(
        self, net: VAENet, X: TrainingSet | None = None, **kwargs: Any
    ) -> None:
        """Take the rows; go on as the fit before ended."""
        if X is None:
            raise ValueError("EncoderFirst needs the training rows, got None.")
        self.dataset_ = X
        self.aggressive_ = net.history[-1]["aggressive"] if net.history else True
        encoder = net.module_.encoder.parameters()
        self.parameters_ = [p for p in encoder if p.requires_grad]
        if not self.parameters_:
            raise ValueError(
                "objective must not be an AggressiveEncoder for an encoder without "
                "trainable parameters, got one that has none."
            )
        self.optimizer_ = torch.optim.Adam(self.parameters_, lr=net.lr)

    def on_batch_begin(self, net: VAENet, **kwargs: Any) -> None:
        """Train the encoder until the mean loss of a window rises, then freeze it."""
        if not self.aggressive_:
            return
        net.module_.train()
        before, losses = math.inf, []
        for _ in range(self.max_inner_steps):
            losses.append(self._step(net))
            if len(losses) == self.window:
                if (now := float(np.mean(losses))) > before:
                    break
                before, losses = now, []
        self._freeze(True)

    def on_batch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Let the encoder take part again."""
        self._freeze(False)

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Record the mutual information and whether to go on."""
        history = net.history
        before = history[-2]["mutual_information"] if len(history) > 1 else -math.inf
        now = _monitored_information(net)
        self.aggressive_ = self.aggressive_ and now >= before
        history.record("mutual_information", now)
        history.record("aggressive", self.aggressive_)

    def release(self) -> None:
        """Forget rows and optimizer, so that they are not pickled with the net."""
        if hasattr(self, "parameters_"):  # Ctrl-C in a step finds them frozen
            self._freeze(False)
        for name in ("dataset_", "optimizer_", "parameters_"):
            self.__dict__.pop(name, None)

    def _step(self, net: VAENet) -> float:
        n_rows = len(self.dataset_)
        index = torch.randint(n_rows, (min(net.batch_size, n_rows),))
        x, targets = self.dataset_.take(index)
        criterion = net.criterion_
        loss = criterion.total(criterion.terms(net.module_(x), x, targets))
        gradients = torch.autograd.grad(loss, self.parameters_, allow_unused=True)
        # The net's own optimizer may need the tensors that it has there.
        kept = [parameter.grad for parameter in self.parameters_]
        self._put(gradients)
        self.optimizer_.step()
        self._put(kept)
        return loss.item()

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters_, gradients, strict=True):
            parameter.grad = gradient

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.parameters_:
            parameter.requires_grad_(not frozen)


def _monitored_information(net: VAENet) -> float:
    net.module_.eval()
    with torch.inference_mode():
        passes = [net.module_(chunk) for chunk in _monitored(net).split(CHUNK)]
        values = [mutual_information(p.mean, p.log_variance, p.code) for p in passes]
    return float(np.mean([value.item() for value in values]))


def _monitored(net: VAENet) -> Tensor:
    return dict(net.callbacks_)["monitor"].watched_.rows


class OptimalNoise(Callback):
    """Sets the VAE's noise to the best one for the monitored rows, after each epoch."""

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Set the noise."""
        net.module_.eval()
        with torch.no_grad():
            rows = _monitored(net)
            best = net.criterion_.objective.raw_log_noise(net.module_(rows), rows)
            net.processes.copy_first([best])
            net.module_.raw_log_noise.copy_(best)


def _helpers(objective: Objective | None) -> list[tuple[str, Callback]]:
    if isinstance(objective, AggressiveEncoder):
        window, most = objective.window, objective.max_inner_steps
        return [("encoder_first", EncoderFirst(window, most))]
    if isinstance(objective, SigmaVAE):
        return [("optimal_noise", OptimalNoise())]
    return []


class Completion(Callback):
    """Marks an epoch as complete: after the monitor, before the user's callbacks."""

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Complete the epoch."""
        net.complete_epoch()


class Progress(Callback):
    """A progress bar over epochs that shows loss and margin."""

    def on_train_begin(self, net: VAENet, **kwargs: Any) -> None:
        """Open the bar."""
        shown = net.processes.rank == 0
        self.bar_ = tqdm(total=net.max_epochs, unit="epoch", disable=not shown)

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Move the bar."""
        row = net.history[-1]
        most = row["teacher_information"]
        self.bar_.set_postfix_str(
            f"loss {row['train_loss']:.4g}, margin {row['margin']:.2f} of {most:.2f}",
            refresh=False,
        )
        self.bar_.update()

    def release(self) -> None:
        """Close the bar."""
        if hasattr(self, "bar_"):
            self.bar_.close()
            del self.bar_


class Observed(Callback):
    """Tells whom :func:`train` was given of every epoch, once it is complete."""

    def on_epoch_begin(self, net: VAENet, **kwargs: Any) -> None:
        """Tell of the beginning."""
        if net.observer is not None:
            net.observer.begin()

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Tell of the end."""
        net.stop_wanted = net.observer is not None and net.observer.end()


class Stop(Callback):
    """Stops if that is wanted, after the user's callbacks have had the epoch too."""

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        """Stop, or not."""
        if net.agree_to_stop(net.stop_wanted):
            raise KeyboardInterrupt  # how skorch stops early


class Observer(Protocol):
    """Who wants to know of epochs."""

    watched: bool

    def begin(self) -> None:
        """Note that an epoch begins."""

    def end(self) -> bool:
        """Note that one ended."""


# They hold rows, or a bar, as long as a net trains.
_OWN = EncoderFirst | MarginMonitor | Progress | ValidationMonitor


def make_net(
    vae: VAE,
    *,
    device: torch.device,
    callbacks: Sequence[Any] | None = None,
    verbose: int = 0,
    vertices: NDArray[np.float64],
    **settings: Any,
) -> VAENet:
    """Put a VAE and its loss into an initialised skorch net."""
    net = VAENet(
        vae,
        criterion=AlignedELBO,
        criterion__vertices=torch.as_tensor(vertices, dtype=torch.float32),
        optimizer=_optimizer_for(vae, settings.get("criterion__objective"), callbacks),
        optimizer__fused=device.type in ("cpu", "cuda"),
        train_split=None,
        callbacks=_all_callbacks(callbacks, verbose),
        device=str(device),
        verbose=0,
        **settings,
    )
    return net.initialize()


def _optimizer_for(
    vae: VAE, objective: Objective | None, callbacks: Sequence[Any] | None
) -> type[torch.optim.Adam]:
    """Take the flat Adam unless parameters differ in kind, or may come to be frozen."""
    parameters = list(vae.parameters())
    own = map(_unnamed, callbacks or [])
    kinds = [given if isinstance(given, type) else type(given) for given in own]
    mapped = any(issubclass(kind, ParamMapper) for kind in kinds)
    freezes = mapped or isinstance(objective, AggressiveEncoder)
    alike = len({parameter.dtype for parameter in parameters}) == 1
    free = all(parameter.requires_grad for parameter in parameters)
    return FlatAdam if alike and free and not freezes else torch.optim.Adam


def resume_net(
    net: VAENet,
    *,
    callbacks: Sequence[Any] | None,
    verbose: int,
    kl_weight: float,
    alignment_weight: float | Guard,
    **settings: Any,
) -> None:
    """Give an initialised net new settings and keep its weights and moments."""
    net.set_params(**settings)
    for group in net.optimizer_.param_groups:
        # A learning rate schedule that joins late starts from here.
        group["initial_lr"] = net.lr
    # set_params would initialise the old callbacks before it takes the new ones.
    net.callbacks = _all_callbacks(callbacks, verbose)
    net.initialize_callbacks()
    net.criterion_.kl_weight = kl_weight
    net.criterion_.set_alignment(alignment_weight)


def _all_callbacks(callbacks: Sequence[Any] | None, verbose: int) -> list[Any]:
    own = [("progress", Progress())] if verbose else []
    check_callbacks(callbacks)
    theirs = [_copied(given) for given in callbacks or []]
    return [*own, *theirs, ("stop_where_wanted", Stop())]


def check_callbacks(callbacks: Sequence[Any] | None) -> None:
    """Check that callbacks are of skorch."""
    for given in callbacks or []:
        callback = _unnamed(given)
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if not (is_class or isinstance(callback, Callback)):
            raise ValueError(
                "callbacks must be callbacks of skorch, or pairs (name, callback), "
                f"got {given!r}."
            )


def _unnamed(given: Any) -> Any:
    return given[1] if isinstance(given, tuple) and len(given) == 2 else given


def check_backend(name: str | None) -> None:
    """Check that :func:`torch.compile` knows a backend."""
    if name is None:
        return
    known = torch.compiler.list_backends(())
    if name not in known:
        raise ValueError(
            "torch_compile must be True, False or one of "
            f"{sorted(known)}, got {name!r}."
        )


def _copied(given: Any) -> Any:
    """Copy a callback, or a pair of name and callback, if it can be copied."""
    try:
        return copy.deepcopy(given)
    except TypeError:  # it holds a lock or a file
        return given


def prefit(net: VAENet, dataset: TrainingSet, n_epochs: int) -> None:
    """Regress the encoder mean on given codes: minimise the mean of |mu - z|^2 / 2.

    Theory section 11: RST-prefit, RST-alpha-prefit.
    """
    vae = net.module_.train()
    own = [*vae.encoder.parameters(), *vae.posterior.parameters()]
    encoder = [parameter for parameter in own if parameter.requires_grad]
    if not encoder:
        raise ValueError(
            "prefit_alpha and prefit_energy must be None for an encoder without "
            "trainable parameters: there is nothing to fit."
        )
    optimizer = torch.optim.Adam(encoder, lr=net.lr)
    for _ in range(n_epochs):
        for x, codes in Batches(dataset, net.batch_size):
            optimizer.zero_grad()
            ((vae.encode(x)[0] - codes).square().sum(dim=1).mean() / 2).backward()
            optimizer.step()


# What trains in place of `train`, if it returns True.
Trainer = Callable[[VAENet, TrainingSet, bool], bool]
_stand_in: ContextVar[Trainer | None] = ContextVar("stand_in", default=None)


@contextmanager
def stand_in(trainer: Trainer) -> Iterator[None]:
    """Let :func:`train` ask another trainer first, inside the block."""
    token = _stand_in.set(trainer)
    try:
        yield
    finally:
        _stand_in.reset(token)


def train(
    net: VAENet,
    dataset: TrainingSet,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train for `net.max_epochs` more epochs, or have it done by `stand_in`."""
    other = _stand_in.get()
    watched = observer is not None and observer.watched
    net.processes = processes
    try:
        if other is None or not other(net, dataset, watched):
            _train(net, dataset, observer)
    finally:
        del net.processes


def _train(net: VAENet, dataset: TrainingSet, observer: Observer | None) -> None:
    processes, n_epochs = net.processes, len(net.history)
    processes.check_batches(len(dataset), net.batch_size)
    processes.copy_first(_tensors(net))
    net.observer = observer
    try:
        with processes.holding_back_interrupts(), _own_codes(net):
            net.partial_fit(dataset)
    finally:
        net.observer = None
        for _, callback in net.callbacks_:
            if isinstance(callback, _OWN):
                callback.release()
    if net.interrupted_ and len(net.history) == n_epochs:
        raise KeyboardInterrupt
    _check_weights_agree(net)


def _check_weights_agree(net: VAENet) -> None:
    if net.processes.n_processes == 1:
        return
    if not net.processes.agree_on([_bits(tensor) for tensor in _tensors(net)]):
        raise RuntimeError(
            "Weights differ between processes at the end of the training, so they are "
            "no good. Most likely a callback changed them on some processes only."
        )


def _tensors(net: VAENet) -> list[Tensor]:
    """Return weights, buffers and moments."""
    moments = [state.values() for state in net.optimizer_.state.values()]
    tensors = [*net.module_.state_dict().values(), *chain(*moments)]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


def _own_codes(net: VAENet) -> AbstractContextManager[None]:
    """Let every process draw noise of its own, the first what it would draw alone."""
    rank = net.processes.rank
    if rank == 0:
        return nullcontext()
    seeds = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1)
    return seeded(int(seeds[0]), torch.device(net.device))


def encode(net: VAENet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return the latent means, in evaluation mode and in batches of one shape."""
    return _in_chunks(net, lambda x: net.module_.encode(x)[0], rows)


def posterior(net: VAENet, rows: Tensor | Iterable[Tensor]) -> NDArray[np.float32]:
    """Return means and standard deviations of q(z|x) side by side."""

    def both(x: Tensor) -> Tensor:
        mean, log_variance = net.module_.encode(x)
        return torch.cat([mean, torch.exp(log_variance / 2)], dim=1)

    return _in_chunks(net, both, rows)


def decode(net: VAENet, codes: Tensor) -> NDArray[np.float32]:
    """Return what the decoder makes of codes: means, or logits for "bernoulli"."""
    return _in_chunks(net, net.module_.decoder, codes)


def evidence_bound(net: VAENet, rows: Tensor) -> NDArray[np.float32]:
    """Return the ELBO of every row, log p(x|z) - KL, with one code drawn a row."""

    def bound(x: Tensor) -> Tensor:
        result = net.module_(x)
        kl = gaussian_kl(result.mean, result.log_variance)
        return -net.criterion_.reconstruction(result, x) - kl

    return _in_chunks(net, bound, rows)


def _in_chunks(
    net: VAENet, function: Callable[[Tensor], Tensor], rows: Tensor | Iterable[Tensor]
) -> NDArray[np.float32]:
    net.module_.eval()
    size = _chunk_size(net)
    with torch.inference_mode():
        results = [
            function(_filled(chunk, size).to(net.device))[: len(chunk)].cpu()
            for part in ([rows] if isinstance(rows, Tensor) else rows)
            for chunk in part.split(size)
        ]
    # Detached: a view of a parameter keeps its gradient even so.
    return torch.cat(results).detach().numpy()


def _chunk_size(net: VAENet) -> int:
    """Return how many rows go through a network at once, always the same number."""
    plain = all(map(Layers.of, (net.module_.encoder, net.module_.decoder)))
    n_parameters = sum(p.numel() for p in net.module_.parameters())
    return _SMALL_NET_CHUNK if plain and n_parameters <= _FEW_PARAMETERS else CHUNK


def _filled(chunk: Tensor, size: int) -> Tensor:
    missing = size - len(chunk)
    return torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk


def _raised_in_code(stop: KeyboardInterrupt) -> bool:
    """Tell early stopping, where skorch raises this error itself, from Ctrl-C.

    Ctrl-C arrives between two instructions, not at a raise statement.
    """
    *_, traceback = _tracebacks(stop)
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def _tracebacks(error: BaseException) -> Iterator[TracebackType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _first_not_finite(values: Sequence[Sequence[float]]) -> dict[str, float]:
    first = next(
        batch for batch in zip(*values, strict=True) if not np.isfinite(batch[0])
    )
    return dict(zip(_PARTS, first, strict=True))


def _not_finite(
    what: str, epoch: int, parts: dict[str, float] | None = None
) -> NonFiniteLossError:
    listed = ", ".join(f"{name} {value:.4g}" for name, value in (parts or {}).items())
    return NonFiniteLossError(
        f"The {what} became infinite or not a number in epoch {epoch}"
        f"{f' ({listed})' if listed else ''}. Likely "
        "causes: features of very different size (scale X, for example with "
        "StandardScaler), a learning_rate that is too high, or an encoder or decoder "
        "of your own that overflows."
    )
