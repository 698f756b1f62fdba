"""How escape trajectories are shown."""

import numpy as np
from cells import Experiment
from experiments.escape import cells, compute
from tables import Claim, groups, median, number, spread


def claims(records):
    """The margin rises from at most 0, and the gradient is never 0 on the way."""
    found = []
    for (data,), some in groups(records, ("data",)).items():
        starts, ends = ([r[key] for r in some] for key in ("start", "end"))
        least = min(record["escape_gradient_least"] for record in some)
        told = ", ".join(
            f"{number(a)} to {number(b)}" for a, b in zip(starts, ends, strict=True)
        )
        rises = max(starts) <= 0.05 and min(ends) > 0.2
        found.append(
            Claim(f"{data}: shares of the information rise: {told}", rises, True)
        )
        sentence = f"{data}: least norm of the escape gradient on the way: {least:.2g}"
        found.append(Claim(sentence, least > 0, True))
    return found


def draw(results, figure):
    """Draw margin and gradient by step, and margin by energy."""
    by_data = groups(
        [result | {"data": result["records"][0]["data"]} for result in results],
        ["data"],
    )
    figure.set_size_inches(9, 7)
    axes = figure.subplots(3, len(by_data), squeeze=False, sharey="row")
    for column, ((data,), some) in zip(axes.T, by_data.items(), strict=True):
        column[0].set_title(data)
        for result in some:
            draw_path(column, result["curves"])
    labels = "margin / information", "escape gradient (nats)", "margin / information"
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)


def draw_path(axes, curves):
    """Draw one seed's path."""
    share = np.array(curves["margin"]) / curves["information"][0]
    axes[0].plot(share, "C0", lw=1)
    axes[0].axhline(0, color="0.2", lw=1)
    axes[0].set_xlabel("step")
    axes[1].semilogy(curves["escape_gradient"], "C0", lw=1)
    axes[1].set_xlabel("step")
    analytic = np.array(curves["path_margin"]) / curves["information"][0]
    axes[2].plot(curves["path_energy"], analytic, color="0.5", lw=1, linestyle="--")
    axes[2].plot(curves["energy"], share, "C0", lw=1)
    axes[2].set_xlabel("energy (nats a sample)")


ESCAPE = Experiment(
    name="escape",
    title="Escape trajectories",
    cells=cells,
    compute=compute,
    by=("data",),
    columns={
        "relative margin at the start": spread("start"),
        "at the end": spread("end"),
        "steps until it stays above 0": median("steps_to_positive", 0),
        "escape gradient at the start (nats)": median("escape_gradient_start", 4),
        "least on the way": median("escape_gradient_least", 4),
        "energy at the end (nats)": median("energy"),
        "of the analytic path there": median("path_energy"),
        "ELBO at the end": median("elbo", 1),
    },
    claims=claims,
    draw=draw,
)
