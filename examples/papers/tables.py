"""What is made of records: columns of a table, claims, and files."""

import csv
import json
from collections import Counter
from typing import NamedTuple

import numpy as np


class Claim(NamedTuple):
    """What should show, whether it does, and whether anything less is a failure."""

    sentence: str
    holds: bool
    must: bool


def count(records, verdict="certified", key="verdict"):
    """Return how many records have a verdict."""
    return sum(record[key] == verdict for record in records)


def where(records, **values):
    """Return the records that have these values."""
    return [r for r in records if all(r[key] == v for key, v in values.items())]


def groups(records, keys):
    """Return records by what they have under the keys, in the order they come."""
    found = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return found


def n_certified(key="verdict"):
    """Make a column: how many of the records are certified."""
    return lambda records: f"{count(records, key=key)}/{len(records)}"


def counts(key):
    """Make a column: how many records have each value, the most frequent first."""

    def column(records):
        found = Counter(record[key] for record in records).most_common()
        return ", ".join(f"{n} {value}" for value, n in found)

    return column


def bracket(records):
    """Make the column from the least lower to the greatest upper bound, outwards."""
    low, high = min(r["low"] for r in records), max(r["high"] for r in records)
    low, high = np.floor(100 * low) / 100, np.ceil(100 * high) / 100
    return f"{number(low)} to {number(high)}"


def median(key, digits=2):
    """Make a column: the median over the records."""
    return lambda records: number(np.median([r[key] for r in records]), digits)


def spread(key, digits=2):
    """Make a column: the median, and the least and the greatest."""

    def column(records):
        values = [r[key] for r in records]
        three = (f(values) for f in (np.median, min, max))
        return "{} ({} to {})".format(*(number(value, digits) for value in three))

    return column


def number(value, digits=2):
    """Return a number as a table has it, without a minus before zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def each(key, digits=2):
    """Make a column: the value of every record, in order of the seeds."""
    return lambda records: " ".join(number(record[key], digits) for record in records)


MARGIN = {
    "verdicts": counts("verdict"),
    "margin (nats)": spread("margin"),
    "of at most": median("information"),
}
CODE = {
    "state": counts("state"),
    "drawn codes carry (nats)": bracket,
    "decoder use": spread("decoder", 1),
    "KL": spread("kl", 1),
    "active": spread("active", 0),
    "ELBO": spread("elbo", 1),
    "unexplained variance": spread("unexplained", 3),
}
ROUND_TRIP = {
    "round trip: certified": n_certified("round_trip_verdict"),
    "its margin, of at most": lambda records: " of ".join(
        median(f"round_trip_{key}")(records) for key in ("margin", "information")
    ),
}


def expect(records, by, sentence, certified, must=False):
    """Claim that in every group all are certified, or none; name those where not."""
    found = {key: (count(some), len(some)) for key, some in groups(records, by).items()}
    exceptions = [
        f"{', '.join(map(str, key))}: {n} of {of}"
        for key, (n, of) in found.items()
        if n != (of if certified else 0)
    ]
    but = f"; certified are, though, {'; '.join(exceptions)}" if exceptions else ""
    return Claim(sentence + but, not exceptions, must)


def summary(experiment, records):
    """Return the lines of the table."""
    return [
        dict(zip(experiment.by, key, strict=True))
        | {name: column(some) for name, column in experiment.columns.items()}
        for key, some in groups(records, experiment.by).items()
    ]


def markdown(experiment, lines, claims, told):
    """Return table and claims as a section."""
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([*line.values()] for line in lines)]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    judged = "\n".join(
        f"- {'Shows' if claim.holds else '**Does not show**'}: {claim.sentence}."
        for claim in claims
    )
    warned = f"\n\nWarnings: {told}." if told else ""
    return f"## {experiment.title}\n\n{table}\n\n{judged}{warned}\n"


def write(folder, experiment, results):
    """Write JSON, CSV, Markdown and a picture; return the claims and the Markdown."""
    records = [record for result in results for record in result["records"]]
    claims, lines = experiment.claims(records), summary(experiment, records)
    text = markdown(experiment, lines, claims, warnings_of(results))
    stem = folder / experiment.name
    stem.with_suffix(".md").write_text(text)
    everything = {"table": lines, "claims": [c._asdict() for c in claims]}
    stem.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        fields = dict.fromkeys(key for record in records for key in record)
        writer = csv.DictWriter(file, list(fields))
        writer.writeheader()
        writer.writerows(records)
    picture(stem.with_suffix(".png"), experiment, results)
    return claims, text


def warnings_of(results):
    """Return each warning and the number of cells that gave it."""
    told = [name for result in results for name in result["warnings"]]
    return ", ".join(
        f"{name} in {told.count(name)} of {len(results)} cells"
        for name in sorted(set(told))
    )


def picture(path, experiment, results):
    """Draw into a file, without a display."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", figsize=(9, 3.4))
    experiment.draw(results, figure)
    # No date and no version in the file: the same numbers give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
