"""State of a net from which training can resume as if it had never been saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skvaecert._state import NOT_NEGATIVE, NUMBER, POSITIVE, Array, check_state
from skvaecert._training.device import resolve_device, seeded
from skvaecert._training.net import VAENet
from skvaecert.networks import VAE
from skvaecert.objectives import LagrangeWeight

__all__ = [
    "OwnModuleError",
    "device_for",
    "fill_net",
    "filled_module",
    "net_state",
    "saved_alignment",
]

_NET = {
    "weights": dict,
    "frozen": list,
    "exp_avg": Array("n_weights", np.float32),
    "exp_avg_sq": Array("n_weights", np.float32, low=0),
    "steps": Array("n_parameters", np.float32, low=0),
    "kl_weight": NOT_NEGATIVE,
    "alignment_weight": NOT_NEGATIVE,
    "guard": (dict, None),
    "history": list,
    "interrupted": bool,
}
_GUARD = {"target_margin": POSITIVE, "information": POSITIVE, "gap": NUMBER}
# For other devices, torch may import a module of that name; "meta" holds no values.
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


class OwnModuleError(ValueError):
    """The user's own encoder or decoder does not match what was saved."""


def net_state(net: VAENet) -> dict[str, Any]:
    """Return the state of a net, with moments that do not depend on Adam's layout."""
    module, criterion = net.module_, net.criterion_
    guard = criterion.guard
    return {
        "weights": {k: v.cpu().numpy() for k, v in module.state_dict().items()},
        "frozen": [k for k, p in module.named_parameters() if not p.requires_grad],
        **_moments(net),
        "kl_weight": float(criterion.kl_weight),
        "alignment_weight": float(criterion.alignment_weight),
        "guard": guard and {name: float(getattr(guard, name)) for name in _GUARD},
        "history": [_numbers_of(row) for row in net.history],
        "interrupted": bool(net.interrupted_),
    }


def _numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the numbers of a row: drop losses of batches and texts of callbacks."""
    values = {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
    return {k: v for k, v in values.items() if isinstance(v, bool | int | float)}


def _moments(net: VAENet) -> dict[str, NDArray[np.float32]]:
    """Concatenate the moments of all parameters; 0 where no step was made."""
    given = net.optimizer_.state_dict()["state"]
    parameters = list(net.module_.parameters())
    states = [given.get(i, {}) for i in range(len(parameters))]
    joined = {
        name: torch.cat(
            [
                state.get(name, torch.zeros_like(parameter)).flatten()
                for parameter, state in zip(parameters, states, strict=True)
            ]
        )
        for name in ("exp_avg", "exp_avg_sq")
    }
    # Adam counts its steps in float32.
    steps = np.array([float(state.get("step", 0)) for state in states], np.float32)
    return {k: v.cpu().numpy() for k, v in joined.items()} | {"steps": steps}


def filled_module(
    make: Callable[[Sequence[str]], VAE],
    state: Mapping[str, Any],
    own: Sequence[str],
    n_features: int,
) -> VAE:
    """Make a module, after a check that it has the sizes of the saved weights.

    `make` takes the names of the networks, encoder or decoder, to replace by fully
    connected layers. `own` names the networks that the user provides.
    """
    check_state("net", state, _NET, {})
    weights = state["weights"]
    # New modules draw initial weights: keep the user's generators as they are.
    with seeded(0, torch.device("cpu")):
        _check_weights(weights, make, own)
        try:
            module = make(())
            module.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()})
        except Exception as error:
            # Without networks of the user, the file itself is at fault.
            if not own:
                raise
            # The weights of all other networks were checked above.
            raise OwnModuleError(
                f"modules must be those that were saved as {own}, got others: {error}"
            ) from error
    if not own:
        _check_finite(module, n_features)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])
    return module


def _check_finite(module: VAE, n_features: int) -> None:
    """Check the output of a VAE on one drawn sample, which takes little memory."""
    with torch.no_grad(), seeded(0, torch.device("cpu")):
        result = module.eval()(torch.randn(1, n_features))
    if not all(part.isfinite().all() for part in result):
        raise ValueError("a net must compute finite values from its weights.")


def _check_weights(
    weights: Mapping[str, Any], make: Callable[[Sequence[str]], VAE], own: Sequence[str]
) -> None:
    with torch.device("meta"):  # shapes without memory for values
        tensors = make(own).state_dict()
    wanted = {
        k: (tuple(v.shape), np.dtype(str(v.dtype).removeprefix("torch.")))
        for k, v in tensors.items()
    }
    given = {k: (v.shape, v.dtype) for k, v in weights.items()}
    ours = [k for k in given | wanted if k.partition(".")[0] not in own]
    if any(given.get(name) != wanted.get(name) for name in ours):
        raise ValueError("weights of a net must be those that its parameters require.")
    if not all(np.isfinite(weight).all() for weight in weights.values()):
        raise ValueError("weights of a net must be finite.")


def device_for(name: str) -> torch.device:
    """Return the device of this name, or the CPU if it is not available."""
    try:
        return resolve_device(name if name.partition(":")[0] in _DEVICES else "cpu")
    except ValueError:
        return torch.device("cpu")


def saved_alignment(
    state: Mapping[str, Any], device: torch.device
) -> float | LagrangeWeight:
    """Return the weight of the alignment loss, or the guard that adapts it."""
    if state["guard"] is None:
        return float(state["alignment_weight"])
    saved = state["guard"]
    check_state("guard", saved, _GUARD, {})
    guard = LagrangeWeight(saved["target_margin"], saved["information"]).to(device)
    guard.weight.fill_(state["alignment_weight"])
    guard.gap = saved["gap"]
    return guard


def fill_net(net: VAENet, state: Mapping[str, Any]) -> None:
    """Set the moments and the history of a new net."""
    optimizer = net.optimizer_
    parameters = optimizer.param_groups[0]["params"]
    sizes = [parameter.numel() for parameter in parameters]
    means, squares = (
        torch.from_numpy(state[name]).split(sizes) for name in ("exp_avg", "exp_avg_sq")
    )
    every = enumerate(
        zip(parameters, state["steps"].tolist(), means, squares, strict=True)
    )
    moments = {
        i: {
            "step": torch.tensor(n),
            "exp_avg": m.view_as(p),
            "exp_avg_sq": q.view_as(p),
        }
        for i, (p, n, m, q) in every
        # Adam has no state for a parameter before its first step.
        if n > 0
    }
    # This moves the moments to the device of the parameters.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    net.interrupted_ = state["interrupted"]
    # skorch expects this key in each row. The losses of batches are not saved.
    net.history.extend({**row, "batches": []} for row in state["history"])
