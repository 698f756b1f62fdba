"""How the gallery of failures is shown: what each says, and what it means."""

import re

from cells import Experiment
from claims import certified, tally
from experiments.gallery import cells, compute
from figures import LEAST, lines, mark, rows, share
from records import each, has, records_of
from tables import bracket, counts, if_known, margin

CHANCE = ("not aligned, best of 1,000 rotations", "best of 1,000 linear maps")
CONSTANT = (
    "constant mean, varying deviations",
    "the best constant",
    "the best constant, rounded",
)
DEAF = "a deaf decoder"
REFUSED = "a constant teacher"
UNSEEN = ("permuted, on test samples", "permuted, against the true ones")
BY = "data", "case"
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
    "a teacher of noise": "A teacher need not be meaningful: a fixed function of the "
    "images that varies may be learned, and certified. The low information is the "
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

    def of(*cases):
        return [record for record in records if record["case"] in cases]

    most = max(r["margin"] / r["information"] for r in of(*CHANCE))
    by_chance = f"chance certifies no code (its largest relative margin: {most:.2f})"
    unseen = "trained for permuted posteriors, no code is certified on test samples"
    brackets = [record for record in records if "low" in record]
    ignored, refused = has(state="ignored"), lambda record: "refusal" in record
    return [
        tally(
            of(*CONSTANT), BY, "no constant mean is certified", certified, False, True
        ),
        tally(brackets, BY, "no bracket is inverted", is_inverted, False, True),
        tally(of(DEAF), BY, "all deaf decoders are detected", ignored, must=True),
        tally(of(REFUSED), BY, "all constant teachers are refused", refused, must=True),
        tally(of(*UNSEEN), BY, unseen, certified, False),
        tally(of(*CHANCE), BY, by_chance, certified, False),
    ]


def is_inverted(record):
    """Tell whether the lower end of a bracket is above the upper one."""
    return record["low"] > record["high"]


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
    labels = "margin / information", "drawn codes carry (nats)"
    for some, (left, right) in rows(figure, results, labels, height=4.4):
        by_case = each(records_of(some), "case")
        lines(left, [*by_case])
        lines(right, [*by_case])
        for y, records in enumerate(by_case.values()):
            draw_case(left, right, y, records)
        left.axvline(0, color="0.3", lw=0.8, zorder=0)
        left.set(xlim=(LEAST - 0.08, 1.08), xticks=[-1, -0.5, 0, 0.5, 1])
        # Room for the states.
        most = right.dataLim.xmax
        right.set_xlim(-0.02 * most, 1.4 * most)


def draw_case(left, right, y, records):
    """Draw a mark a seed, filled if it is certified; brackets, and the first state."""
    for record in records:
        if "margin" in record:
            mark(left, share(record), y, "C0o", certified(record))
        if "low" in record:
            right.plot([record["low"], record["high"]], [y, y], "C0|-", lw=2)
    if "state" in records[0]:
        end = max(record["high"] for record in records)
        right.text(end, y, f"  {records[0]['state']}", va="center", fontsize=8)


GALLERY = Experiment(
    name="gallery",
    title="A gallery of failures",
    cells=cells,
    compute=compute,
    by=BY,
    columns={
        "state": if_known("state", counts("state")),
        "mean": if_known("verdict", counts("verdict")),
        "margin (nats), of at most": if_known("margin", margin(short)),
        "drawn codes carry (nats)": if_known("low", bracket),
        "it says": says,
        "it means": lambda records: MEANING[records[0]["case"]],
    },
    claims=claims,
    draw=draw,
    caption=(
        "A line a case. Left: the margin as a share of the teacher information, a mark "
        "a seed, filled if it is certified; those below -1 are drawn there. Right: the "
        "brackets of all seeds, and the state of the first. *To see*: which codes are "
        "certified, and whether bracket and state tell what is wrong."
    ),
    data=("mnist",),
)
