"""Show `gallery`: each failure with its diagnosis and its meaning."""

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
    "nothing wrong": "For comparison: the mean varies and is aligned with the teacher, "
    "drawn codes are informative, and the decoder uses them.",
    "turned test images": "A certificate is about the samples that it was computed on. "
    "The code does not sort turned images as the teacher does.",
    "constant mean, varying deviations": "The mean is constant but the code has not "
    "collapsed: samples differ in their standard deviations, which no certificate of "
    "the mean sees.",
    "the best constant": "No constant mean has a margin above 0, not even the one that "
    "predicts the mean of the teacher's posteriors.",
    "the best constant, rounded": "If the last bit of a constant follows the teacher, "
    "the margin can be above 0. It stays below the tolerance for rounding.",
    "permuted, on training samples": "The net has memorized some wrong targets. The "
    "certificate is true of these samples and says nothing about others.",
    "permuted, on test samples": "What was memorized does not hold on other samples: "
    "the wrong teacher is not certified.",
    "permuted, against the true ones": "A code that was trained for wrong targets is "
    "not aligned with the right ones. It is as informative as others.",
    "a nearly constant teacher": "A teacher that hardly distinguishes samples leaves "
    "no margin. The bracket needs no teacher and shows that the code is intact.",
    REFUSED: "There is nothing to align with, so nothing is trained.",
    "100 samples, on themselves": "The margin is that of training samples. It is true "
    "of them and too high for others.",
    "100 samples, on test samples": "The margin is smaller on held-out samples. Report "
    "this one.",
    "a teacher of turned images": "This teacher has less information about these "
    "images than one fitted on them. The code learns what information there is.",
    "a teacher of noise": "A teacher need not be meaningful. Any fixed function of the "
    "images that varies may be learned, and certified. Its low information is the "
    "warning.",
    DEAF: "The mean is certified and codes are informative, but all reconstructions "
    "are the same. The certificate is about the encoder alone.",
    "not aligned": "The code is informative but not oriented towards the witness. The "
    "raw certificate needs both.",
    "not aligned, best of 1,000 rotations": "The largest margin by chance, with a code "
    "that varies. A certificate obtained so would be true, and would say no more.",
    "not aligned, rotated onto the teacher's code": "A rotation is all that the plain "
    "code lacks: the raw certificate is about orientation.",
    "best of 1,000 linear maps": "The largest margin by chance, without any training.",
}


def claims(records):
    """Claim what must never happen, and what should not."""

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
    """Return a value with two decimals, or a small one with two digits."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def says(records):
    """Return the text of the diagnosis in the first seed, without the bracket."""
    record = records[0]
    sentences = re.split(r"(?<=[.]) (?=[A-Z])", record["says"])
    if "refusal" in record:
        text = f"{record['refusal']}: {record['says']}"
    else:
        # The first sentence of a diagnosis gives the bracket.
        text = " ".join(sentences[1:]) if "state" in record else sentences[0]
    warned = record.get("warned")
    return f"{warned}. {text}" if warned else text


def draw(results, figure):
    """Draw margin and bracket, a row for each case."""
    labels = "margin / information", "drawn codes carry (nats)"
    for members, (left, right) in rows(figure, results, labels, height=4.4):
        by_case = each(records_of(members), "case")
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
    """Draw the margin of each seed, filled if certified, the brackets and a state."""
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
        "A row for each case. Left: the margin as a share of the teacher information, "
        "a mark for each seed, filled if it is certified. Values below -1 are drawn at "
        "-1. Right: the brackets of all seeds, and the state of the first seed. *To "
        "see*: which codes are certified, and whether the bracket and the state show "
        "what is wrong."
    ),
    data=("mnist",),
)
