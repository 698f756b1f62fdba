"""Prevention, collapse, rescue (arXiv:2605.05813), with a teacher of one's own."""

import copy

import torch
from cells import Experiment
from lab import FORETOLD, SCALES, certified, margin_curve, measure
from tables import CODE, MARGIN, expect, median, where

# What each should show: whether all are certified or none, and whether anything else
# is a failure, or only not as the paper has it.
PATTERN = {
    "aligned": ("trained with alignment, all are certified", True, True),
    "alignment removed": (
        f"trained on without it, none is certified, {FORETOLD}",
        False,
        False,
    ),
    "never aligned": (
        f"trained without alignment, none is certified, {FORETOLD}",
        False,
        False,
    ),
    "rescued": ("rescued by alignment, all are certified", True, True),
    "forced constant": ("with a constant mean, none is certified", False, True),
}
PHASES = list(PATTERN)


def cells(setting):
    """One cell a seed and scale."""
    return [{"scale": s, "seed": i} for i in range(setting.n_seeds) for s in SCALES]


def compute(lab, scale, seed):
    """Search a teacher on the samples of this seed, and go through the phases."""
    samples = lab.samples(seed)
    vaes = [lab.vae(samples, scale, seed, aligned=on) for on in (True, False)]
    return phases(lab, samples, vaes, {"scale": scale, "seed": seed})


def phases(lab, samples, vaes, told, targets=(None, None)):
    """Train with and without alignment, swap that in warm fits, and measure each."""
    first, second = ({"teacher_proba": some} for some in targets)
    aligned, never = (certified(vae, samples, **first) for vae in vaes)
    records = [measured("aligned", aligned, samples, second)]
    records.append(measured("never aligned", never, samples, second))
    records.append(measured("forced constant", forced_constant(never), samples, second))
    n_epochs, weight = vaes[0].max_epochs, vaes[0].alignment_weight
    # A code that nothing holds any more takes its time to go.
    removal = aligned, "alignment removed", 0.0, 2 * n_epochs
    rescue = never, "rescued", weight, n_epochs
    for certifier, phase, alignment_weight, max_epochs in (removal, rescue):
        certifier.set_params(
            warm_start=True,
            estimator__alignment_weight=alignment_weight,
            estimator__max_epochs=max_epochs,
        )
        certifier.fit(samples.train, **first)
        records.append(measured(phase, certifier, samples, second))
    records.sort(key=lambda record: PHASES.index(record["phase"]))
    told = {"data": lab.setting.data} | told
    curves = [margin_curve(certifier) for certifier in (aligned, never)]
    return {"records": [told | record for record in records], "curves": curves}


def measured(phase, certifier, samples, options):
    """Return the record of a phase."""
    epochs = {"epochs": certifier.estimator_.n_iter_}
    return {"phase": phase} | measure(certifier, samples.test, **options) | epochs


def forced_constant(certifier):
    """Return a copy whose encoder has no weights left in its last layer."""
    certifier = copy.deepcopy(certifier)
    encoder = certifier.estimator_.net_.module_.encoder
    last = [part for part in encoder.modules() if isinstance(part, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
    return certifier


def claims(records):
    """Certified, not certified, certified; a constant never."""
    by = "data", "scale"
    return [
        expect(where(records, phase=phase), by, sentence, certified, must)
        for phase, (sentence, certified, must) in PATTERN.items()
    ]


def draw(results, figure):
    """Draw the margins while two models are trained, and go on the other way."""
    panels = {scale: {} for scale in SCALES}
    for result in results:
        record = result["records"][0]
        panels[record["scale"]].setdefault(record["data"], []).append(result)
    figure.set_size_inches(9, 6)
    axes = figure.subplots(2, len(panels["sum"]), sharey=True, squeeze=False)
    some = [(s, data, panels[s][data]) for s in SCALES for data in panels[s]]
    for ax, (scale, data, found) in zip(axes.flat, some, strict=True):
        draw_curves(ax, found)
        ax.set_title(f"{data}, {scale}", fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("margin / teacher information")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[0, 0].legend(frameon=False, fontsize="small", loc="lower right")


def draw_curves(ax, results):
    """Draw the curves of all seeds; at the dotted line the alignment is swapped."""
    looks = [
        ("aligned, then not", "C0", "-"),
        ("not aligned, then rescued", "C1", "--"),
    ]
    for i, result in enumerate(results):
        for curve, (label, color, line) in zip(result["curves"], looks, strict=True):
            ax.plot(curve, line, color=color, lw=1, label=None if i else label)
    ax.axvline(len(results[0]["curves"][1]) / 2, color="0.5", linestyle=":")
    ax.axhline(0, color="0.2", lw=1)
    ax.set_ylim(bottom=-1, top=1)


PREVENTION = Experiment(
    name="prevention",
    title="Prevention, collapse, rescue",
    cells=cells,
    compute=compute,
    by=("data", "scale", "phase"),
    columns={"epochs": median("epochs", 0)} | MARGIN | CODE,
    claims=claims,
    draw=draw,
)
