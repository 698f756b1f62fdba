"""What several processes must have in common to train one model."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skvaecert._training.net import VAENet
from skvaecert._training.processes import Processes

__all__ = ["check_shareable"]


# Simple parameters that may differ between processes.
_OWN_TO_PROCESSES = "device", "memory", "random_state", "verbose"

# Samples that are compared.
_COMPARED = 64


def check_shareable(
    processes: Processes,
    params: Mapping[str, Any],
    net: VAENet | None,
    samples: Any,
    teacher_proba: ArrayLike | None,
) -> None:
    """Check that several processes can train, and that all were given the same."""
    if processes.n_processes == 1:
        return
    objective = params["objective"]
    if objective is not None and not objective.trains_jointly:
        raise ValueError(
            "objective must train encoder and decoder together where "
            f"accelerate=True shares the batches, got {objective!r}, which trains the "
            "encoder alone in between. Use another objective."
        )
    device = processes.device_name(params["device"])
    if net is not None and device != net.device:
        raise ValueError(
            "accelerate must stay as it was in the fit that warm_start continues: "
            f"its net is on {net.device}, that of this process would be on {device}."
        )
    if not processes.agree_on(_given(params, net, samples, teacher_proba)):
        raise ValueError(
            "X, teacher_proba and parameters must be the same on all "
            f"{processes.n_processes} processes, and so must be what warm_start "
            "continues; got others. Give every process all samples, in the same "
            "order: accelerate=True shares them out."
        )


def _given(
    params: Mapping[str, Any],
    net: VAENet | None,
    samples: Any,
    teacher_proba: ArrayLike | None,
) -> tuple[Any, ...]:
    simple = {
        name: value
        for name, value in params.items()
        if isinstance(value, bool | Real | str) and name not in _OWN_TO_PROCESSES
    }
    n_epochs = None if net is None else len(net.history)
    some = np.linspace(0, len(samples) - 1, _COMPARED).astype(np.intp)
    proba = None if teacher_proba is None else np.asarray(teacher_proba)
    return simple, n_epochs, samples.shape, np.asarray(samples[some]), proba
