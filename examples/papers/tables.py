"""Tables of records: what their columns say."""

from collections import Counter

import numpy as np
from records import groups


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


def decoder_use(records):
    """Make the column of an upper bound for all records, rounded up."""
    bound = max(record["decoder"] for record in records)
    digits = 1 if bound < 10 else 0
    return number(np.ceil(bound * 10**digits) / 10**digits, digits)


def median(key, digits=2):
    """Make a column: the median over the records."""
    return lambda records: number(np.median([r[key] for r in records]), digits)


def spread(key, digits=2):
    """Make a column: the interval over the records."""
    return lambda records: interval([r[key] for r in records], digits)


def margin(text):
    """Make the column of the margin, and of the information that it can reach."""

    def column(records):
        most = np.median([record["information"] for record in records])
        return f"{interval([r['margin'] for r in records], text)} of {text(most)}"

    return column


def if_known(key, column):
    """Make a column of what some groups of records have, and a dash for the others."""
    return lambda records: column(records) if key in records[0] else "-"


def interval(values, text=2):
    """Return the median, and least and greatest if they differ, as text or digits."""
    write = text if callable(text) else lambda value: number(value, text)
    middle, least, greatest = (write(f(values)) for f in (np.median, min, max))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def number(value, digits=2):
    """Return a number as a table has it, without a minus before zero."""
    return f"{round(float(value), digits) + 0.0:,.{digits}f}"


def kl_weight(records):
    """Make the column of the KL weight; of a multiple of β*, its median, too."""
    told = records[0]["kl_weight"]
    return f"{told} = {median('beta', 0)(records)}" if "β*" in told else told


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
    """Return the lines of the table."""
    return [
        dict(zip(experiment.by, key, strict=True))
        | {name: column(some) for name, column in experiment.columns.items()}
        for key, some in groups(records, experiment.by).items()
    ]
