"""What is made of records: columns of a table, and claims."""

from collections import Counter
from typing import NamedTuple

import numpy as np


class Claim(NamedTuple):
    """What should show, whether it does, and whether anything less is a failure."""

    sentence: str
    holds: bool
    must: bool


def records_of(results):
    """Return the records of all results."""
    return [record for result in results for record in result["records"]]


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


def at_most(key):
    """Make a column: an upper bound for all records, rounded up."""

    def column(records):
        bound = max(record[key] for record in records)
        digits = 1 if bound < 10 else 0
        return number(np.ceil(bound * 10**digits) / 10**digits, digits)

    return column


def median(key, digits=2):
    """Make a column: the median over the records."""
    return lambda records: number(np.median([r[key] for r in records]), digits)


def spread(key, digits=2):
    """Make a column: the median, and the least and the greatest unless all agree."""

    def column(records):
        values = [r[key] for r in records]
        middle, least, greatest = (
            number(f(values), digits) for f in (np.median, min, max)
        )
        return middle if least == greatest else f"{middle} ({least} to {greatest})"

    return column


def of(value, limit):
    """Make a column of two: a value, and the most that it could be."""
    return lambda records: f"{value(records)} of {limit(records)}"


def number(value, digits=2):
    """Return a number as a table has it, without a minus before zero."""
    return f"{round(float(value), digits) + 0.0:,.{digits}f}"


def kl_weight(records):
    """Make the column of the KL weight; of a multiple of β*, its median, too."""
    told = records[0]["kl_weight"]
    return f"{told} = {median('beta', 0)(records)}" if "β*" in told else told


MARGIN = {
    "verdicts": counts("verdict"),
    "margin (nats), of at most": of(spread("margin"), median("information")),
}
CODE = {
    "state": counts("state"),
    "drawn codes carry (nats)": bracket,
    "decoder use": at_most("decoder"),
    "KL": spread("kl", 1),
    "active": spread("active", 0),
    "ELBO": spread("elbo", 0),
    "unexplained variance": spread("unexplained", 3),
}


def expect(records, by, sentence, certified, must=False):
    """Claim that all are certified, or none; count, and name the groups where not."""
    return tally(records, by, sentence, is_certified, certified, must)


def is_certified(record):
    """Tell whether the mean is certified."""
    return record["verdict"] == "certified"


def has_state(state):
    """Return what tells whether drawn codes are so."""
    return lambda record: record["state"] == state


def tally(records, by, sentence, true_of, everywhere=True, must=False):
    """Claim that something is true of all records, or of none, as `expect` does."""
    found = {key: [*map(true_of, some)] for key, some in groups(records, by).items()}
    every = [one for some in found.values() for one in some]
    exceptions = [
        f"{place(by, key)}: {sum(some)} of {len(some)}"
        for key, some in found.items()
        if any(one != everywhere for one in some)
    ]
    where_not = f" ({'; '.join(exceptions)})" if exceptions else ""
    told = f"{sentence}: {sum(every)} of {len(every)}{where_not}"
    return Claim(told, not exceptions, must)


def place(by, key):
    """Return the values of a group as text; a number alone would say nothing."""
    return ", ".join(
        f"{name} {value}" if name == "kl_weight" else str(value)
        for name, value in zip(by, key, strict=True)
    )


def summary(experiment, records):
    """Return the lines of the table."""
    return [
        dict(zip(experiment.by, key, strict=True))
        | {name: column(some) for name, column in experiment.columns.items()}
        for key, some in groups(records, experiment.by).items()
    ]
