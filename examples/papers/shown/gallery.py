"""How the gallery of failures is shown: what each says, and what it means."""

import re

import numpy as np
from cells import Experiment
from experiments.gallery import cells, compute
from tables import Claim, bracket, counts, groups

CHANCE = ("not aligned, best of 1,000 rotations", "best of 1,000 linear maps")
CONSTANT = (
    "constant mean, varying deviations",
    "the best constant",
    "the best constant, rounded",
)
DEAF = "a deaf decoder"
REFUSED = "a constant teacher"
UNSEEN = ("permuted, on test samples", "permuted, against the true ones")
MEANING = {
    "nothing wrong": "For comparison: the mean varies, faces the teacher, and drawn "
    "codes and the decoder pass it on.",
    "turned test images": "The margin is about the images at hand: a model is not "
    "certified on images that its code does not sort as the teacher does.",
    "constant mean, varying deviations": "The mean has collapsed and the code has not: "
    "samples differ in their standard deviations, which no certificate of the mean "
    "sees.",
    "the best constant": "No constant has a margin above 0, not even the one that "
    "predicts the mean teacher.",
    "the best constant, rounded": "Where the last bit of a constant follows the "
    "teacher, the margin can be above 0; the tolerance for rounding is larger.",
    "permuted, on training samples": "The net has learned some wrong targets by heart: "
    "the certificate is true of these samples, since a constant could not do it, and "
    "says nothing about others.",
    "permuted, on test samples": "What was learned by heart does not hold for other "
    "samples: the wrong teacher is not certified.",
    "permuted, against the true ones": "A code that was trained for wrong targets does "
    "not face the right ones, either; it is as informative as others.",
    "a nearly constant teacher": "A teacher that hardly tells samples apart leaves no "
    "margin to reach; the bracket, which needs no teacher, shows the code intact.",
    REFUSED: "There is nothing to align with, and nothing is trained.",
    "100 samples, on themselves": "The margin is that of samples seen in training: it "
    "is true of them and too high for others.",
    "100 samples, on test samples": "On samples that were not seen the margin is "
    "smaller; quote this one.",
    "a teacher of turned images": "It tells these images apart by less than a teacher "
    "of their own; what it tells apart, the code learns.",
    "a teacher of noise": "A teacher need not be meaningful: any fixed function of the "
    "images that varies can be learned, and certified. The low information is the "
    "warning.",
    DEAF: "A certified mean and informative codes, and reconstructions that are the "
    "same for all samples: the certificate is about the encoder alone.",
    "not aligned": "The code is informative and does not face the simplex: the raw "
    "certificate asks for both.",
    "not aligned, best of 1,000 rotations": "How far chance gets with a code that "
    "varies: a certificate obtained so is true, and says no more than that.",
    "not aligned, rotated onto the teacher's code": "A rotation is all that the plain "
    "code lacks: the raw certificate is about orientation.",
    "best of 1,000 linear maps": "How far chance gets without any training.",
}


def claims(records):
    """What must never happen, and what should not."""
    constant = [r for r in records if r["case"] in CONSTANT]
    unseen = [r for r in records if r["case"] in UNSEEN]
    brackets = [r for r in records if "low" in r]
    deaf = [r for r in records if r["case"] == DEAF]
    refused = [r for r in records if r["case"] == REFUSED]
    chance = [r for r in records if r["case"] in CHANCE]
    most = max(r["margin"] / r["information"] for r in chance)
    by_chance = f"chance certifies no code (its largest relative margin: {most:.2f})"
    return [
        all_of(constant, "no constant mean is certified", is_not_certified, must=True),
        all_of(brackets, "no bracket is inverted", is_ordered, must=True),
        all_of(deaf, "a deaf decoder is told", is_ignored, must=True),
        all_of(refused, "a constant teacher is refused", is_refused, must=True),
        all_of(
            unseen,
            "trained for permuted posteriors, no code is certified on test samples",
            is_not_certified,
        ),
        all_of(chance, by_chance, is_not_certified),
    ]


def all_of(records, sentence, true_of, must=False):
    """Claim that something is true of all records, and count."""
    n = sum(map(true_of, records))
    told = f"{sentence}: true of {n} of {len(records)}"
    return Claim(told, bool(records) and n == len(records), must)


def is_not_certified(record):
    """Tell whether a certificate was not given."""
    return record["verdict"] != "certified"


def is_ordered(record):
    """Tell whether the lower end of a bracket is not above the upper one."""
    return record["low"] <= record["high"]


def is_ignored(record):
    """Tell whether the diagnosis says that the decoder ignores the code."""
    return record.get("state") == "ignored"


def is_refused(record):
    """Tell whether there was an error instead of an answer."""
    return "refusal" in record


def where_told(key, column):
    """Make a column of what some cases have; a dash for the others."""
    return lambda records: column(records) if key in records[0] else "-"


def margin(records):
    """Make the column of margin and teacher information."""
    values = [r["margin"] for r in records]
    middle, low, high = (short(f(values)) for f in (np.median, min, max))
    most = short(np.median([r["information"] for r in records]))
    range_ = f" ({low} to {high})" if low != high else ""
    return f"{middle}{range_} of {most}"


def short(value):
    """Return two decimals, or two digits of what is small."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def says(records):
    """Make the column of what is printed in the first seed, less the bracket."""
    record = records[0]
    sentences = re.split(r"(?<=[.]) (?=[A-Z])", record["says"])
    if "refusal" in record:
        text = f"{record['refusal']}: {record['says']}"
    else:
        # The first sentence of a diagnosis is that on the bracket.
        text = " ".join(sentences[1:]) if "state" in record else sentences[0]
    warned = record.get("warned")
    return f"{warned}. {text}" if warned else text


def draw(results, figure):
    """Draw margin and bracket, a row a case."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    figure.set_size_inches(8.8, 4.6 * len(by_data))
    axes = figure.subplots(len(by_data), 2, sharey="row", squeeze=False)
    for (left, right), ((data,), some) in zip(axes, by_data.items(), strict=True):
        by_case = groups(some, ("case",))
        for y, few in enumerate(by_case.values()):
            draw_case(left, right, y, few)
        left.set_yticks(range(len(by_case)), [case for (case,) in by_case])
        left.invert_yaxis()
        left.axvline(0, color="0.3", lw=0.8, zorder=0)
        left.set(title=data, xlabel="margin / information", xlim=(-1.08, 1.08))
        # Room for the states.
        most = max(record["high"] for record in some if "high" in record)
        right.set(xlabel="drawn codes carry (nats)", xlim=(-0.02 * most, 1.4 * most))


def draw_case(left, right, y, records):
    """Draw a mark a seed, filled if it is certified; brackets, and the first state."""
    for record in records:
        if "margin" in record:
            share = max(record["margin"] / record["information"], -1)
            fill = "none" if is_not_certified(record) else "full"
            left.plot(share, y, "C0o", fillstyle=fill)
        if "low" in record:
            right.plot([record["low"], record["high"]], [y, y], "C0|-", lw=2)
    if "state" in records[0]:
        end = max(record["high"] for record in records)
        right.text(end, y, f"  {records[0]['state']}", va="center", fontsize=8)
    for ax in (left, right):
        ax.axhline(y, color="0.9", lw=0.6, zorder=0)


GALLERY = Experiment(
    name="gallery",
    title="A gallery of failures",
    cells=cells,
    compute=compute,
    by=("data", "case"),
    columns={
        "state": where_told("state", counts("state")),
        "mean": where_told("verdict", counts("verdict")),
        "margin (nats), of at most": where_told("margin", margin),
        "drawn codes carry (nats)": where_told("low", bracket),
        "it says": says,
        "it means": lambda records: MEANING[records[0]["case"]],
    },
    claims=claims,
    draw=draw,
    data=("mnist",),
)
