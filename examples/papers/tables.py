"""Columns of the tables: functions that return the text for a group of records."""

from collections import Counter

import numpy as np
from records import groups


def counts(key):
    """Make a column of how many records have each value, the most frequent first."""

    def column(records):
        common = Counter(record[key] for record in records).most_common()
        return ", ".join(f"{n} {value}" for value, n in common)

    return column


def bracket(records):
    """Return the least lower and the greatest upper bound, rounded outwards."""
    low, high = min(r["low"] for r in records), max(r["high"] for r in records)
    low, high = np.floor(100 * low) / 100, np.ceil(100 * high) / 100
    return f"{number(low)} to {number(high)}"


def decoder_use(records):
    """Return the greatest upper bound of the decoder use, rounded up."""
    bound = max(record["decoder"] for record in records)
    digits = 1 if bound < 10 else 0
    return number(np.ceil(bound * 10**digits) / 10**digits, digits)


def median(key, digits=2):
    """Make a column of the median over the records."""
    return lambda records: number(np.median([r[key] for r in records]), digits)


def spread(key, digits=2):
    """Make a column of the interval over the records."""
    return lambda records: interval([r[key] for r in records], digits)


def margin(text):
    """Make a column of the margin and its maximum, the teacher information."""

    def column(records):
        most = np.median([record["information"] for record in records])
        return f"{interval([r['margin'] for r in records], text)} of {text(most)}"

    return column


def if_known(key, column):
    """Make a column with a dash for records that do not have the key."""
    return lambda records: column(records) if key in records[0] else "-"


def interval(values, text=2):
    """Return the median and, if they differ, minimum and maximum.

    `text` is a function that formats a value, or the number of decimals.
    """
    write = text if callable(text) else lambda value: number(value, text)
    middle, least, greatest = (write(f(values)) for f in (np.median, min, max))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def number(value, digits=2):
    """Return a number with thousands separators, and zero without a minus sign."""
    return f"{round(float(value), digits) + 0.0:,.{digits}f}"


def kl_weight(records):
    """Return the KL weight; a multiple of β* also as a number, its median."""
    text = records[0]["kl_weight"]
    return f"{text} = {median('beta', 0)(records)}" if "β*" in text else text


MARGIN = {
    "verdicts": counts("verdict"),
    "margin (nats), of at most": margin(number),
}
CODE = {
    "state": counts("state"),
    "drawn codes carry (nats)": bracket,
    "decoder use": decoder_use,
    "KL": spread("kl", 1),
    "active": spread("active", 0),
    "ELBO": spread("elbo", 0),
    "unexplained variance": spread("unexplained", 3),
}


def summary(experiment, records):
    """Return the rows of the table, each a dict of texts by column."""
    return [
        dict(zip(experiment.by, key, strict=True))
        | {name: column(members) for name, column in experiment.columns.items()}
        for key, members in groups(records, experiment.by).items()
    ]
