"""The skorch net: steps, history, callbacks, and the last complete epoch on errors."""

from __future__ import annotations

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


# Attributes that a net has only while epochs run.
_EPOCH_ATTRIBUTES = (
    "_batch_losses",
    "_batch_sizes",
    "_epoch_start",
    "_completed",
    "_records",
)

# A running mean of gradients decays from 1e-20 to subnormal numbers in 400 steps.
_STEPS_BETWEEN_CLEANINGS = 256

# Methods of callbacks that skorch calls for every batch.
_BATCH_EVENTS = "on_batch_begin", "on_grad_computed", "on_batch_end"

# Names that the user's callbacks must not have.
_OWN_NAMES = "monitor", "validation", "completion", "progress"

# Values recorded for held-out samples, and skorch's names for them.
_VALIDATION_NAMES = (
    "validation_loss",
    "validation_loss_best",
    "validation_margin",
    "validation_information",
)
_SKORCH_NAMES = "valid_loss", "valid_loss_best"

# Values recorded for every batch.
_LOSS_PARTS = ("train_loss", *Terms._fields)


class VAENet(NeuralNet):
    """Skorch net with the aligned ELBO as its loss, on samples and their posteriors.

    In addition to skorch's values, `history` has for each epoch the means over batches
    of "reconstruction" and "kl", and the values that :class:`MarginMonitor` records.
    Ctrl-C and losses that are not finite restore the weights of the last complete
    epoch.
    """

    # Set on the instance only during training, so that they are never pickled.
    observer: Observer | None = None
    ctrl_c = False
    _step: NumpyStep | AutogradStep | None = None
    _has_batch_callbacks = True

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
        state = super(VAENet, self._plain_copy()).__getstate__()
        if self.initialized_:
            # Drop the user's callbacks: every fit gets them from its estimator.
            state |= {"callbacks": None, "callbacks_": self._own_callbacks}
            # skorch pickles `module_`, the same module, for any device.
            del state["module"]
        return state

    def _plain_copy(self) -> VAENet:
        """Return a copy to be pickled: another thread may still train this net."""
        # Not copy.copy, which would call `__getstate__` again.
        net, step = object.__new__(type(self)), self._step
        net.__dict__.update({k: v for k, v in vars(self).items() if k != "_step"})
        if isinstance(step, NumpyStep):
            # The parameters are views of one vector, which the copy must not share.
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
        # skorch puts the default callbacks first.
        return self.callbacks_[: len(self._default_callbacks)]

    @property
    def monitored(self) -> Tensor:
        """The samples whose margin is recorded during training."""
        return dict(self.callbacks_)["monitor"].watched_.samples

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a method of all callbacks, and stop early if one of them requests it."""
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
            # skorch's callbacks stop training by this error, and Ctrl-C raises it too.
            # Ctrl-C while they run keeps the epoch, but the user must be warned.
            if self.ctrl_c or self._epoch_is_incomplete:
                raise
            stop = True
        if self.observer is not None:
            stop |= self.observer.end()
        if stop:
            raise _StopEarly

    def _end_training(self, **kwargs: Any) -> None:
        """Notify callbacks of the end of training. Ctrl-C keeps the complete epochs."""
        trained = Snapshot(self, with_optimizer=False)
        try:
            super().notify("on_train_end", **kwargs)
        except KeyboardInterrupt:
            # A callback may have been interrupted while it loads other weights.
            trained.restore(self)
            self.interrupted_ = True

    @property
    def _epoch_is_incomplete(self) -> bool:
        return len(self.history) > self._completed.n_epochs

    def get_iterator(self, dataset: TrainingSet, training: bool = False) -> Batches:
        """Return the batches of an epoch."""
        return Batches(dataset, self.batch_size)

    def run_single_epoch(self, iterator: Any, *args: Any, **kwargs: Any) -> None:
        """Train on every batch once, without waiting for the device.

        Until the epoch ends, the losses in the records of its batches are tensors.
        """
        # skorch also calls this method for validation batches, of which there are none.
        if iterator is None:
            return
        self.module_.train()
        callbacks = (callback for _, callback in self.callbacks_)
        self._has_batch_callbacks = any(map(_uses_batches, callbacks))
        self._batch_sizes = iterator.sizes
        self._follow_callbacks()
        for number, batch in enumerate(iterator):
            # The history already has a row for the current epoch.
            self.criterion_.epoch = len(self.history) - 1 + number / len(iterator)
            # The same as skorch's record_batch, without its search in the history.
            record = {"train_batch_size": iterator.sizes[number]}
            self._records.append(record)
            self._notify_batch("on_batch_begin", batch=batch)
            if self._has_batch_callbacks:
                self._follow_callbacks()
            step = self.train_step(batch)
            record["train_loss"] = step["loss"]
            self._notify_batch("on_batch_end", batch=batch, **step)
        self.history.record("train_batch_count", len(iterator))

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the gradient of a batch, and take one step of the optimizer."""
        # A callback may have evaluated the module, which leaves it in evaluation mode.
        if not self.module_.training:
            self.module_.train()
        step = self._step or self._choose_step()
        losses = step(*batch)
        self._batch_losses.append(losses)
        named = TeeGenerator(self.get_all_learnable_params())
        self._notify_batch("on_grad_computed", named_parameters=named, batch=batch)
        if self._has_batch_callbacks:
            self._follow_callbacks(has_gradient=True)
        self._stepper.step()
        if len(self._batch_losses) % _STEPS_BETWEEN_CLEANINGS == 0:
            drop_tiny_moments(self._stepper.state.values())
        if self.criterion_.guard is not None:
            # Theory section 10. The alignment loss is the last of the terms.
            self.criterion_.guard.update(torch.as_tensor(losses[-1]))
        result = step.result() if self._has_batch_callbacks else None
        return {"loss": losses[0], "y_pred": result}

    def _notify_batch(self, event: str, **kwargs: Any) -> None:
        """Notify callbacks of a batch event, if any callback uses such events."""
        if self._has_batch_callbacks:
            self.notify(event, training=True, **kwargs)

    def _batch_work(self) -> int | None:
        """Return the multiply-adds of a forward pass of a batch; None if unknown."""
        of_sample = multiply_adds(self.module_.encoder, self.module_.decoder)
        return of_sample and of_sample * self.batch_size

    def _can_step_by_numpy(self) -> bool:
        """Return whether :class:`NumpyStep` supports all settings of this net."""
        return (
            torch.device(self.device).type == "cpu"
            and self.forward_backend is None
            and not self.autocast
            and can_step_as_one(self.optimizer_, self.module_)
            and has_known_gradient(self.module_, self.criterion_)
        )

    def _choose_step(self) -> NumpyStep | AutogradStep:
        """Choose how loss and gradient are computed, and name the choice in `step_`."""
        parts = self.module_, self.criterion_
        if self._can_step_by_numpy():
            self._step = step = NumpyStep(*parts, self.optimizer_)
            # Only now: after Ctrl-C the net must know the vector to release it.
            step.vector.tie()
        else:
            self._step = AutogradStep(*parts, self.forward_backend, self.autocast)
        self.step_ = self._step.name
        return self._step

    @property
    def _stepper(self) -> OneVector | torch.optim.Optimizer:
        """The object that steps: the optimizer, or the vector that stands in for it."""
        if isinstance(self._step, NumpyStep):
            return self._step.vector
        return self.optimizer_

    def _follow_callbacks(self, *, has_gradient: bool = False) -> None:
        """Adopt tensors that callbacks replaced; use autograd where formulas are wrong.

        Once the gradient is computed, a change of the step affects the next batch only.
        """
        if not isinstance(self._step, NumpyStep):
            return
        vector = self._step.vector
        is_supported = has_gradient or self._can_step_by_numpy()
        if vector.is_all_of(self.optimizer_) and is_supported:
            vector.tie()
        else:
            self._release()

    def _release(self) -> None:
        """Give module and optimizer back their own memory."""
        if isinstance(self._step, NumpyStep):
            self._step.vector.release()
        self._step = None

    def get_loss(
        self, y_pred: Pass, y_true: Tensor, X: Tensor, training: bool = False
    ) -> Tensor:
        """Return the aligned ELBO of one batch, for callbacks that call this method."""
        return self.criterion_.total(self.criterion_.terms(y_pred, X, y_true))

    def fit_loop(self, *args: Any, **kwargs: Any) -> VAENet:
        """Run the epochs. After Ctrl-C or an error, restore the last complete epoch."""
        self._completed = Snapshot(self)
        try:
            with (
                suppress(_StopEarly),
                threads_for(self._batch_work(), self._choose_step().name),
            ):
                super().fit_loop(*args, **kwargs)
            self.interrupted_ = False
        except KeyboardInterrupt:
            if self._epoch_is_incomplete:
                self._completed.restore(self)
        except BaseException:
            self._completed.restore(self)
            # Moments computed from infinite gradients would spoil the next fit too.
            self.optimizer_.state.clear()
            raise
        finally:
            try:
                self._end_epochs()
            finally:
                # Ctrl-C may have interrupted the first call.
                self._end_epochs()
        return self

    def _end_epochs(self) -> None:
        self._release()
        for name in ("_step", "_has_batch_callbacks", *_EPOCH_ATTRIBUTES):
            self.__dict__.pop(name, None)

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Assume an interruption until the epochs end without one.

        skorch swallows Ctrl-C from here on, so that only success can be detected.
        """
        super().on_train_begin(net, **kwargs)
        self.interrupted_ = True

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Prepare the records of an epoch."""
        super().on_epoch_begin(net, **kwargs)
        if self.observer is not None:
            self.observer.begin()
        self._batch_losses: list[tuple[Any, ...]] = []
        self._records = self.history[-1]["batches"]
        self._epoch_start = time.perf_counter()

    def on_batch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Do nothing: :meth:`run_single_epoch` makes the record of a batch."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the parts of the loss, and check that loss and weights are finite."""
        super().on_epoch_end(net, **kwargs)
        drop_tiny_moments(self._stepper.state.values())
        columns = zip(*self._batch_losses, strict=True)
        # The only synchronization with the device in an epoch.
        self._record_losses([_floats(column) for column in columns])
        if not all(p.isfinite().all() for p in self.module_.parameters()):
            raise _non_finite_error("weights", len(self.history))

    def _record_losses(self, values: Sequence[Sequence[float]]) -> None:
        """Record the parts of the loss, averaged over the samples of an epoch."""
        for record, loss in zip(self._records, values[0], strict=True):
            record["train_loss"] = loss
        averages = np.average(values, axis=1, weights=self._batch_sizes)
        means = dict(zip(_LOSS_PARTS, map(float, averages), strict=True))
        if not np.isfinite(means["train_loss"]):
            raise _non_finite_error(
                "loss", len(self.history), _first_non_finite_batch(values)
            )
        record_with_best(self, "train_loss", means["train_loss"])
        for name in ("reconstruction", "kl"):
            self.history.record(name, means[name])
        self.history.record("kl_weight", self.criterion_.kl_weight)
        self.history.record("alignment_weight", float(self.criterion_.alignment_weight))

    def complete_epoch(self) -> None:
        """Store the weights, once all values of the epoch are recorded."""
        self.history.record("seconds", time.perf_counter() - self._epoch_start)
        self._completed = Snapshot(self, with_optimizer=False)


class _StopEarly(Exception):
    """Ends the epochs because a callback requested it."""


class Snapshot:
    """A copy of a net's weights and its alignment weight, to be restored."""

    def __init__(self, net: VAENet, *, with_optimizer: bool = True) -> None:
        state = net.module_.state_dict()
        self.module = {name: value.clone() for name, value in state.items()}
        state = net.optimizer_.state_dict() if with_optimizer else None
        self.optimizer = copy.deepcopy(state)
        criterion = net.criterion_
        self.alignment = copy.deepcopy(criterion.guard or criterion.alignment_weight)
        self.n_epochs = len(net.history)

    def restore(self, net: VAENet) -> None:
        """Restore the weights and shorten the history to that epoch."""
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
    """Return an initialized skorch net with a VAE and its loss."""
    settings.setdefault("criterion__objective", Objective())
    net = VAENet(
        vae,
        criterion=AlignedELBO,
        criterion__vertices=torch.as_tensor(vertices, dtype=torch.float32),
        optimizer=torch.optim.Adam,
        optimizer__fused=device.type in ("cpu", "cuda"),
        # The estimator holds out samples itself.
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
    """Give an initialized net new settings. It keeps its weights and moments."""
    net.set_params(**settings)
    for group in net.optimizer_.param_groups:
        # A learning rate schedule that is added now starts from this rate.
        group["initial_lr"] = net.lr
    # set_params would initialize the old callbacks before it sets the new ones.
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
    """Check that all are skorch callbacks, and that their monitored values exist."""
    for given in callbacks or []:
        callback = _without_name(given)
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if is_class:
            callback = callback()  # skorch instantiates classes, too
        if not isinstance(callback, Callback):
            raise ValueError(
                "callbacks must be skorch callbacks, or pairs (name, callback), "
                f"got {given!r}."
            )
        _check_monitor(callback, validation_fraction)
    _check_names([given[0] for given in callbacks or [] if isinstance(given, tuple)])


def _check_names(names: Sequence[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or name in _OWN_NAMES or names.count(name) > 1:
            raise ValueError(
                "callbacks must have names that are str, all different, and none of "
                f"{_OWN_NAMES}, got {name!r}. Rename it, or pass the callback alone."
            )


def _check_monitor(callback: Any, validation_fraction: float | None) -> None:
    monitor = str(getattr(callback, "monitor", None))
    described = f"{type(callback).__name__}(monitor={monitor!r})"
    if monitor in _VALIDATION_NAMES and validation_fraction is None:
        raise ValueError(
            f"validation_fraction must be given for {described}, got None. Set "
            "validation_fraction, for example to 0.1, or monitor 'train_loss' or "
            "'margin'."
        )
    if monitor in _SKORCH_NAMES:
        raise ValueError(
            f"callbacks must monitor a recorded value, got {described}, a name of "
            f"skorch. Use {monitor.replace('valid', 'validation')!r}, and set "
            "validation_fraction."
        )


def _uses_batches(callback: Callback) -> bool:
    """Return whether a callback overrides a method for batches."""
    # An instance may have its own function, or a mock of one.
    own = (getattr(getattr(callback, name), "__func__", None) for name in _BATCH_EVENTS)
    return list(own) != [getattr(Callback, name) for name in _BATCH_EVENTS]


def _without_name(given: Any) -> Any:
    return given[1] if isinstance(given, tuple) and len(given) == 2 else given


def _floats(values: Sequence[Any]) -> list[float]:
    """Return tensors or numbers as floats."""
    tensors = isinstance(values[0], Tensor)
    return torch.stack(list(values)).tolist() if tensors else list(values)


def _first_non_finite_batch(values: Sequence[Sequence[float]]) -> dict[str, float]:
    # The batches after it are not finite because of it.
    first = next(
        batch for batch in zip(*values, strict=True) if not np.isfinite(batch[0])
    )
    return dict(zip(_LOSS_PARTS, first, strict=True))


def _non_finite_error(
    what: str, epoch: int, parts: dict[str, float] | None = None
) -> NonFiniteLossError:
    listed = ", ".join(f"{name} {value:.4g}" for name, value in (parts or {}).items())
    return NonFiniteLossError(
        f"The {what} became infinite or not a number in epoch {epoch}"
        f"{f' ({listed})' if listed else ''}. Likely causes: features on very "
        "different scales (scale X, for example with StandardScaler), a learning_rate "
        "that is too high, or an overflow in your own encoder or decoder."
    )
