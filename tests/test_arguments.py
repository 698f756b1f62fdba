"""What functions on arrays refuse, by the name of the parameter that is wrong."""

import inspect

import numpy as np
import pytest
import torch

from skvaecert import certify, datasets, diagnostics, metrics, simplex, witnesses

PROBA = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
VERTICES = simplex.simplex_vertices(2, 1)
WITNESS = witnesses.simplex_witness(VERTICES, 1.0)

# Valid values, by name: the same in all functions.
TABLES = {
    **dict.fromkeys(("teacher_proba", "own_view_proba", "target_view_proba"), PROBA),
    **dict.fromkeys(("log_proba", "witness_log_proba", "logits"), np.log(PROBA)),
    **dict.fromkeys(("latent_mean", "rows", "codes"), np.array([[0.5], [-0.5], [0.1]])),
    "witness_logits": np.log(PROBA),
    "latent_std": np.full((3, 1), 0.5),
    "vertices": VERTICES,
    "weights": VERTICES,
}
LISTS = {
    "sample_weight": np.ones(3),
    "mean_proba": np.array([0.3, 0.7]),
    "index": np.array([0, 1]),
    "bias": np.zeros(2),
}
NUMBERS = {
    **dict.fromkeys(("scale", "temperature", "witness_scale"), 1.0),
    **dict.fromkeys(("energy_budget", "force_rms", "margin", "strength"), 0.3),
    **dict.fromkeys(("safety_margin", "latent_noise"), 0.0),
    **dict.fromkeys(("floor", "threshold", "tolerance"), 0.1),
}
COUNTS = {
    **dict.fromkeys(("n_components", "n_points", "n_draws"), 2),
    **dict.fromkeys(("n_samples", "size"), 3),
    "batch_size": 2,
    "latent_dim": 4,
}
OTHERS = {
    "random_state": 0,
    "subset": "train",
    "color": True,
    "anchored": True,
    "proba": PROBA,
    "name": "raw",
    "dataset": PROBA,
}
VALID = TABLES | LISTS | NUMBERS | COUNTS | OTHERS

NO_ARRAYS = ["abc", 10**400, object(), {"a": 1}, np.array(["a"]), 1j, [[1, 2], [3]]]
NO_NUMBERS = ["abc", None, np.nan, np.inf, -np.inf, 1j, True, [1.0, 2.0], 10**400]
NO_TABLES = [
    *NO_ARRAYS,
    *(None, 1.0, [0.5, 0.5], [], np.ones((2, 2, 2)), np.ones((2, 2)) * 1j),
    *(torch.ones(3, 1, requires_grad=True), np.ma.masked_array(PROBA, PROBA)),
]
NO_LISTS = [*NO_ARRAYS, 1.0, np.ones(7) / 7, np.ones((3, 3)), [0.5j]]
NO_COUNTS = [*NO_NUMBERS, -1, 0, 1.5, np.array([2, 2])]
BAD = {
    **{name: NO_TABLES for name in TABLES},
    **{name: NO_LISTS for name in LISTS},
    **{name: NO_NUMBERS for name in NUMBERS},
    **{name: NO_COUNTS for name in COUNTS},
    "dataset": [None, "abc", 1.0, 1j, np.ones(3), np.ones((2, 2, 2)), 1j * PROBA],
    "random_state": ["abc", -1, 0.5, 2**40, [0.5], True, np.random.default_rng(0)],
    "subset": [None, "all", 1, np.ones(2)],
    "color": [None, "no", 1, np.ones(2)],
    "anchored": [None, "no", 1, np.ones(2)],
}
# None stands for a default.
MAY_BE_NONE = "sample_weight", "index", "batch_size", "random_state"
# With these values a certificate would be infinite or NaN.
NONSENSE = [
    (simplex.temper, "temperature", -1.0),
    (simplex.temper, "temperature", 5e-324),
    (simplex.temper, "floor", 2.0),
    (simplex.budget_temperature, "energy_budget", -1.0),
    (simplex.budget_temperature, "floor", 0.0),
    (simplex.analytic_energy, "scale", 5e-324),
    (simplex.analytic_code, "scale", 1e308),
    (simplex.resolve_witness_scale, "witness_scale", "posterior"),
    (simplex.resolve_witness_scale, "witness_scale", 0.0),
    (metrics.margin_energy_path, "scale", 1e308),
    (metrics.dispersion_bound, "force_rms", -1.0),
    (metrics.SpreadSums.update, "rows", [[np.nan]]),
    (diagnostics.active_units, "threshold", 0.0),
    (diagnostics.polarized_regime, "tolerance", 0.5),
    (witnesses.LinearWitness.tempered, "strength", -1.0),
    (witnesses.LinearWitness.tempered, "mean_proba", [1.0, 0.0]),
    (witnesses.LinearWitness, "weights", [[np.nan], [0.0]]),
    (witnesses.LinearWitness.logits, "codes", [[np.inf]]),
    (datasets.DatasetSamples, "index", [3]),
    (datasets.DatasetSamples, "index", [0.5]),
    (certify, "safety_margin", -1.0),
]


# Takes an AlignmentLoss, which has checked itself.
OF_LOSS = witnesses.simplex_of


def public_functions():
    for module in (simplex, metrics, witnesses, diagnostics, datasets):
        functions = (getattr(module, name) for name in module.__all__)
        yield from (f for f in functions if inspect.isfunction(f) and f is not OF_LOSS)
    yield from (metrics.MarginSums.update, metrics.MarginSums.update_logits)
    yield from (metrics.SpreadSums.update, certify, datasets.DatasetSamples)
    yield from (witnesses.LinearWitness, witnesses.LinearWitness.logits)
    yield from (witnesses.LinearWitness.log_proba, witnesses.LinearWitness.tempered)


# Their `name` is what errors call the first argument.
NAMED_BY_DEFAULT = (
    simplex.check_sample_weight,
    simplex.check_teacher_proba,
    simplex.resolve_witness_scale,
)
OWNERS = {"MarginSums": metrics.MarginSums, "SpreadSums": metrics.SpreadSums}


def call(function, **wrong):
    names = inspect.signature(function).parameters
    arguments = {name: VALID[name] for name in names if name in VALID} | wrong
    if function in NAMED_BY_DEFAULT:
        arguments.pop("name", None)
    if "self" in names:
        owner = function.__qualname__.partition(".")[0]
        arguments["self"] = OWNERS[owner]() if owner in OWNERS else WITNESS
    return function(**arguments)


@pytest.mark.parametrize(
    "function", list(public_functions()), ids=lambda f: f.__qualname__
)
def test_errors_name_the_parameter(function):
    call(function)
    checked = [name for name in inspect.signature(function).parameters if name in BAD]
    if function in (simplex.check_sample_weight, simplex.check_teacher_proba):
        checked.remove("n_samples")  # the caller's own
    for name in checked:
        for value in BAD[name]:
            if value is None and name in MAY_BE_NONE:
                continue
            with pytest.raises(ValueError, match=rf"^{name} must"):
                call(function, **{name: value})
    assert checked


@pytest.mark.parametrize(("function", "name", "value"), NONSENSE)
def test_nonsense_is_refused(function, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got "):
        call(function, **{name: value})
