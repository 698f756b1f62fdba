"""The skorch net: steps, history, callbacks; the last complete epoch on errors."""

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.utils import TeeGenerator
from torch import Tensor

from skvaecert._training.batches import Batches, TrainingSet
from skvaecert._training.layers import multiply_adds
from skvaecert._training.monitors import (
    Completion,
    MarginMonitor,
    Observer,
    Progress,
    ValidationMonitor,
    record_with_best,
)
from skvaecert._training.optimizer import OneVector, can_step_as_one, drop_tiny_moments
from skvaecert._training.step import (
    AutogradStep,
    NumpyStep,
    has_known_gradient,
)
from skvaecert._training.threads import threads_for
from skvaecert.exceptions import NonFiniteLossError
from skvaecert.networks import VAE, Pass
from skvaecert.objectives import AlignedELBO, LagrangeWeight, Objective, Terms

__all__ = [
    "Snapshot",
    "VAENet",
    "check_callbacks",
    "make_net",
    "resume_net",
]


# What a net has only while epochs run.
_OF_EPOCHS = "_batch_losses", "_batch_sizes", "_began", "_completed", "_records"

# A mean of gradients decays from 1e-20 to the subnormal numbers in 400 steps.
_STEPS_BETWEEN_CLEANINGS = 256

# What a callback may hear of every batch.
_EVENTS = "on_batch_begin", "on_grad_computed", "on_batch_end"

# What our own callbacks are called.
_TAKEN = "monitor", "validation", "completion", "progress"

# What is noted of held-out samples, and skorch's own names for it.
_HELD_OUT = (
    "validation_loss",
    "validation_loss_best",
    "validation_margin",
    "validation_information",
)
_OF_SKORCH = "valid_loss", "valid_loss_best"

# What is noted of every batch.
_PARTS = ("train_loss", *Terms._fields)


class VAENet(NeuralNet):
    """Skorch net with the aligned ELBO as its loss, on samples and their posteriors.

    Beyond skorch's own, every epoch in `history` has the batch means of
    "reconstruction" and "kl" and what :class:`MarginMonitor` records. Ctrl-C and
    losses that are not finite leave the weights of the last completed epoch.
    """

    # Set on the instance only while it trains, so that they are never pickled.
    observer: Observer | None = None
    ctrl_c = False
    _step: NumpyStep | AutogradStep | None = None
    _heard = True

    def __init__(
        self,
        *args: Any,
        forward_backend: str | None = None,
        autocast: bool = False,
        **kwargs: Any,
    ) -> None:
        self.forward_backend = forward_backend
        self.autocast = autocast
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = super(VAENet, self._ordinary()).__getstate__()
        if self.initialized_:
            # The others are the user's own, and every fit is given them anew.
            state |= {"callbacks": None, "callbacks_": self._own_callbacks}
            # The same as `module_`, which skorch pickles for any device.
            del state["module"]
        return state

    def _ordinary(self) -> "VAENet":
        """Return a net to be pickled; this one may train on in another thread."""
        net, step = object.__new__(type(self)), self._step
        net.__dict__.update({k: v for k, v in vars(self).items() if k != "_step"})
        if isinstance(step, NumpyStep):
            parts = step.vector.copies(self.module_, self.optimizer_)
            net.__dict__.update(zip(("module_", "optimizer_"), parts, strict=True))
        return net

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.initialized_:
            self.__dict__["module"] = self.module_

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("monitor", MarginMonitor()),
            *self.criterion__objective.callbacks(),
            ("validation", ValidationMonitor()),
            ("completion", Completion()),
        ]

    @property
    def _own_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch puts them first.
        return self.callbacks_[: len(self._default_callbacks)]

    @property
    def monitored(self) -> Tensor:
        """The samples whose margin is recorded, while the net trains."""
        return dict(self.callbacks_)["monitor"].watched_.rows

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a method of all callbacks; stop early if one of them asks for it."""
        if method_name == "on_train_end":
            self._end_training(**kwargs)
            return
        if method_name != "on_epoch_end":
            super().notify(method_name, **kwargs)
            return
        stop = False
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt:
            # By this error skorch's callbacks stop a training. Ctrl-C raises it too. If
            # it arrives while they run, the epoch is kept, but the user must be warned.
            if self.ctrl_c or self._amid_an_epoch:
                raise
            stop = True
        if self.observer is not None:
            stop |= self.observer.end()
        if stop:
            raise _StopEarly

    def _end_training(self, **kwargs: Any) -> None:
        """Tell callbacks that the epochs are over; on Ctrl-C the epochs are kept."""
        trained = Snapshot(self, with_optimizer=False)
        try:
            super().notify("on_train_end", **kwargs)
        except KeyboardInterrupt:
            # One may be half way through loading other weights.
            trained.restore(self)
            self.interrupted_ = True

    @property
    def _amid_an_epoch(self) -> bool:
        return len(self.history) > self._completed.n_epochs

    def get_iterator(self, dataset: TrainingSet, training: bool = False) -> Batches:
        """Return the batches of an epoch."""
        return Batches(dataset, self.batch_size)

    def run_single_epoch(self, iterator: Any, *args: Any, **kwargs: Any) -> None:
        """Train on every batch once, without waiting for the device.

        Until the epoch ends, losses in the records of its batches are tensors.
        """
        if iterator is None:
            return
        self.module_.train()
        self._heard = any(_listens(callback) for _, callback in self.callbacks_)
        self._batch_sizes = iterator.sizes
        self._heed_callbacks()
        for number, batch in enumerate(iterator):
            self.criterion_.epoch = len(self.history) - 1 + number / len(iterator)
            # As skorch does, without a search in the history.
            record = {"train_batch_size": iterator.sizes[number]}
            self._records.append(record)
            self._notify_of("on_batch_begin", batch=batch)
            if self._heard:
                self._heed_callbacks()
            step = self.train_step(batch)
            record["train_loss"] = step["loss"]
            self._notify_of("on_batch_end", batch=batch, **step)
        self.history.record("train_batch_count", len(iterator))

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Make one step of the optimizer."""
        if not self.module_.training:
            self.module_.train()
        step = self._step or self._choose_step()
        losses = step(*batch)
        self._batch_losses.append(losses)
        named = TeeGenerator(self.get_all_learnable_params())
        self._notify_of("on_grad_computed", named_parameters=named, batch=batch)
        if self._heard:
            self._heed_callbacks(has_gradient=True)
        self._stepped.step()
        if len(self._batch_losses) % _STEPS_BETWEEN_CLEANINGS == 0:
            drop_tiny_moments(self._stepped.state.values())
        if self.criterion_.guard is not None:
            self.criterion_.guard.update(torch.as_tensor(losses[-1]))
        result = step.result() if self._heard else None
        return {"loss": losses[0], "y_pred": result}

    def _notify_of(self, event: str, **kwargs: Any) -> None:
        """Tell callbacks of an event of a batch, if there are any that listen."""
        if self._heard:
            self.notify(event, training=True, **kwargs)

    def _work(self) -> int | None:
        """Return the multiply-adds of a batch, forward, if they are known."""
        of_sample = multiply_adds(self.module_.encoder, self.module_.decoder)
        return of_sample and of_sample * self.batch_size

    def _can_step_by_numpy(self) -> bool:
        """Tell whether :class:`NumpyStep` can do all that this net is to do."""
        return (
            torch.device(self.device).type == "cpu"
            and self.forward_backend is None
            and not self.autocast
            and can_step_as_one(self.optimizer_, self.module_)
            and has_known_gradient(self.module_, self.criterion_)
        )

    def _choose_step(self) -> NumpyStep | AutogradStep:
        """Choose who computes loss and gradient, and say so in `step_`."""
        parts = self.module_, self.criterion_
        if self._can_step_by_numpy():
            self._step = step = NumpyStep(*parts, self.optimizer_)
            # Not before the net has it, to release it should Ctrl-C come now.
            step.vector.tie()
        else:
            self._step = AutogradStep(*parts, self.forward_backend, self.autocast)
        self.step_ = self._step.name
        return self._step

    @property
    def _stepped(self) -> OneVector | torch.optim.Optimizer:
        """What is to step: the optimizer, or the vector that it steps as one."""
        if isinstance(self._step, NumpyStep):
            return self._step.vector
        return self.optimizer_

    def _heed_callbacks(self, *, has_gradient: bool = False) -> None:
        """Take over what callbacks replaced; leave to autograd what they changed.

        Once there is a gradient, who computes it matters for the next batch only.
        """
        if not isinstance(self._step, NumpyStep):
            return
        vector, can_go_on = self._step.vector, has_gradient or self._can_step_by_numpy()
        if vector.is_all_of(self.optimizer_) and can_go_on:
            vector.tie()
        else:
            self._release()

    def _release(self) -> None:
        """Leave an ordinary module and optimizer."""
        if isinstance(self._step, NumpyStep):
            self._step.vector.release()
        self._step = None

    def get_loss(
        self, y_pred: Pass, y_true: Tensor, X: Tensor, training: bool = False
    ) -> Tensor:
        """Return the aligned ELBO of one batch, for callbacks that ask for it."""
        return self.criterion_.total(self.criterion_.terms(y_pred, X, y_true))

    def fit_loop(self, *args: Any, **kwargs: Any) -> "VAENet":
        """Run the epochs; on Ctrl-C or an error, return to the last complete one."""
        self._completed = Snapshot(self)
        try:
            with (
                suppress(_StopEarly),
                threads_for(self._work(), self._choose_step().name),
            ):
                super().fit_loop(*args, **kwargs)
            self.interrupted_ = False
        except KeyboardInterrupt:
            if self._amid_an_epoch:
                self._completed.restore(self)
        except BaseException:
            self._completed.restore(self)
            # Moments made from infinite gradients would break the next fit too.
            self.optimizer_.state.clear()
            raise
        finally:
            try:
                self._end_epochs()
            finally:
                # Ctrl-C may have stopped the first.
                self._end_epochs()
        return self

    def _end_epochs(self) -> None:
        self._release()
        for name in ("_step", "_heard", *_OF_EPOCHS):
            self.__dict__.pop(name, None)

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Take it that Ctrl-C will come, until the end of the epochs shows otherwise.

        From here on skorch swallows it.
        """
        super().on_train_begin(net, **kwargs)
        self.interrupted_ = True

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Start the epoch's record."""
        super().on_epoch_begin(net, **kwargs)
        if self.observer is not None:
            self.observer.begin()
        self._batch_losses: list[tuple[Any, ...]] = []
        self._records = self.history[-1]["batches"]
        self._began = time.perf_counter()

    def on_batch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Leave the record of the batch to :meth:`run_single_epoch`."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the parts of the loss and look at the weights."""
        super().on_epoch_end(net, **kwargs)
        drop_tiny_moments(self._stepped.state.values())
        columns = zip(*self._batch_losses, strict=True)
        # The one time in an epoch that waits for the device.
        self._record_losses([_numbers(column) for column in columns])
        if not all(p.isfinite().all() for p in self.module_.parameters()):
            raise _not_finite("weights", len(self.history))

    def _record_losses(self, values: Sequence[Sequence[float]]) -> None:
        """Record the parts of the loss of an epoch."""
        for record, loss in zip(self._records, values[0], strict=True):
            record["train_loss"] = loss
        averages = np.average(values, axis=1, weights=self._batch_sizes)
        means = dict(zip(_PARTS, map(float, averages), strict=True))
        if not np.isfinite(means["train_loss"]):
            raise _not_finite("loss", len(self.history), _first_not_finite(values))
        record_with_best(self, "train_loss", means["train_loss"])
        for name in ("reconstruction", "kl"):
            self.history.record(name, means[name])
        self.history.record("kl_weight", self.criterion_.kl_weight)
        self.history.record("alignment_weight", float(self.criterion_.alignment_weight))

    def complete_epoch(self) -> None:
        """Remember the weights, once everything of the epoch is recorded."""
        self.history.record("seconds", time.perf_counter() - self._began)
        self._completed = Snapshot(self, with_optimizer=False)


class _StopEarly(Exception):
    """Ends the epochs because a callback asks for it."""


class Snapshot:
    """A copy of a net's weights, and of the weight of the alignment, to return to."""

    def __init__(self, net: VAENet, *, with_optimizer: bool = True) -> None:
        state = net.module_.state_dict()
        self.module = {name: value.clone() for name, value in state.items()}
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
    settings.setdefault("criterion__objective", Objective())
    net = VAENet(
        vae,
        criterion=AlignedELBO,
        criterion__vertices=torch.as_tensor(vertices, dtype=torch.float32),
        optimizer=torch.optim.Adam,
        optimizer__fused=device.type in ("cpu", "cuda"),
        train_split=None,
        callbacks=_all_callbacks(callbacks, verbose),
        device=str(device),
        verbose=0,
        **settings,
    )
    return net.initialize()


def resume_net(
    net: VAENet,
    *,
    callbacks: Sequence[Any] | None,
    verbose: int,
    kl_weight: float,
    alignment_weight: float | LagrangeWeight,
    **settings: Any,
) -> None:
    """Give an initialised net new settings; it keeps its weights and moments."""
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
    return [*own, *(callbacks or [])]


def check_callbacks(
    callbacks: Sequence[Any] | None, validation_fraction: float | None
) -> None:
    """Check that callbacks are of skorch, and that there is what they monitor."""
    for given in callbacks or []:
        callback = _unnamed(given)
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if is_class:
            callback = callback()  # as skorch will
        if not isinstance(callback, Callback):
            raise ValueError(
                "callbacks must be callbacks of skorch, or pairs (name, callback), "
                f"got {given!r}."
            )
        _check_monitor(callback, validation_fraction)
    _check_names([given[0] for given in callbacks or [] if isinstance(given, tuple)])


def _check_names(names: Sequence[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or name in _TAKEN or names.count(name) > 1:
            raise ValueError(
                "callbacks must have names that are str, all different and none of "
                f"{_TAKEN}, got {name!r}. Rename it, or give the callback alone."
            )


def _check_monitor(callback: Any, validation_fraction: float | None) -> None:
    monitor = str(getattr(callback, "monitor", None))
    asked = f"{type(callback).__name__}(monitor={monitor!r})"
    if monitor in _HELD_OUT and validation_fraction is None:
        raise ValueError(
            f"validation_fraction must be given for {asked}, got None. Set it, for "
            "example to 0.1, or monitor 'train_loss' or 'margin'."
        )
    if monitor in _OF_SKORCH:
        raise ValueError(
            f"callbacks must monitor what is recorded, got {asked}, a name of skorch. "
            f"Here it is {monitor.replace('valid', 'validation')!r}, and needs a "
            "validation_fraction."
        )


def _listens(callback: Callback) -> bool:
    """Tell whether a callback does something when it hears of a batch."""
    # Also by a function that was put on the callback itself, or a mock of one.
    own = (getattr(getattr(callback, event), "__func__", None) for event in _EVENTS)
    return list(own) != [getattr(Callback, event) for event in _EVENTS]


def _unnamed(given: Any) -> Any:
    return given[1] if isinstance(given, tuple) and len(given) == 2 else given


def _numbers(values: Sequence[Any]) -> list[float]:
    """Return tensors, or numbers, as numbers."""
    tensors = isinstance(values[0], Tensor)
    return torch.stack(list(values)).tolist() if tensors else list(values)


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
