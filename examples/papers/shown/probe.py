"""Show `probe`: the accuracy of linear classifiers of the labels."""

from cells import Experiment
from claims import tally
from experiments.probe import KL_WEIGHTS, N_PER_CLASS, cells, compute
from figures import by_data, lines, panels
from records import each, gains, groups, records_of, where
from settings import FULLY_CONNECTED
from tables import MARGIN, if_known, median, spread

LABELS = {"few": f"{N_PER_CLASS} labels a class", "all": "all labels"}
MARKS = {"few": "C1o", "all": "C0s"}
OTHERS = {
    "plain": "plain codes",
    "PCA": "PCA",
    "teacher posterior": "the teacher posterior",
}


def claims(records):
    """Claim that aligned codes are more accurate than each other kind of code."""
    return [
        above(records, kl_weight, other, amount)
        for kl_weight in KL_WEIGHTS
        for other in OTHERS
        for amount in LABELS
    ]


def above(records, kl_weight, other, amount):
    """Claim that aligned codes are more accurate in all seeds, and by how much."""
    aligned = where(records, codes="aligned", kl_weight=kl_weight)
    compared = where(
        records, codes=other, kl_weight=kl_weight if other == "plain" else ""
    )
    differences = gains(aligned, compared, amount)
    medians = ", ".join(
        f"{data} {median('gain', 3)(members)}"
        for data, members in each(differences, "data").items()
    )
    sentence = (
        f"with kl_weight {kl_weight} and {LABELS[amount]}, aligned codes are more "
        f"accurate than {OTHERS[other]} in every seed (median difference: {medians})"
    )
    return tally(differences, ("data",), sentence, lambda record: record["gain"] > 0)


def draw(results, figure):
    """Draw accuracies, a line for each kind of code and a mark for each seed."""
    grouped = by_data(results)
    for data, ax in panels(figure, grouped, n_columns=2).items():
        records = records_of(grouped[data])
        draw_marks(ax, [r for r in records if r["codes"] != "majority class"])
        ax.set_xlabel("accuracy")


def draw_marks(ax, records):
    """Draw a line of marks for each kind of code."""
    kinds = groups(records, ("codes", "kl_weight"))
    lines(ax, [", ".join(filter(None, kind)) for kind in kinds])
    for y, members in enumerate(kinds.values()):
        for amount, look in MARKS.items():
            accuracies = [record[amount] for record in members]
            label = LABELS[amount]
            ax.plot(accuracies, [y] * len(members), look, mfc="none", label=label)


PROBE = Experiment(
    name="probe",
    title="A linear probe of the labels",
    cells=cells,
    compute=compute,
    by=("data", "codes", "kl_weight"),
    columns={
        "dimension": spread("dimension", 0),
        LABELS["few"]: spread("few", 3),
        LABELS["all"]: spread("all", 3),
    }
    | {name: if_known("verdict", column) for name, column in MARGIN.items()},
    claims=claims,
    draw=draw,
    caption=(
        "The share of test labels that a linear classifier of the codes predicts "
        "correctly, a mark for each seed. *To see*: whether alignment moves the marks "
        "to the right of those of the plain model at the same kl_weight, and how far "
        "both are from PCA."
    ),
    data=FULLY_CONNECTED,
)
