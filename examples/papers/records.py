"""Records, the flat dicts that a cell has measured: chosen, grouped and paired."""

import numpy as np


def records_of(results):
    """Return the records of all results."""
    return [record for result in results for record in result["records"]]


def has(**values):
    """Return what tells whether a record has these values."""
    return lambda record: all(record.get(key) == v for key, v in values.items())


def where(records, **values):
    """Return the records that have these values."""
    return [*filter(has(**values), records)]


def groups(records, keys):
    """Return records by their values of the keys, in the order they come."""
    found = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return found


def each(records, key):
    """Return records by their value of one key, in the order they come."""
    return {value: some for (value,), some in groups(records, (key,)).items()}


def medians(groups, key):
    """Return the median of each group."""
    return {name: np.median([r[key] for r in some]) for name, some in groups.items()}


def gains(records, others, key):
    """Return how much more records have than others, in each seed with both."""
    beside = {(r["data"], r["seed"]): r[key] for r in others if key in r}
    pairs = [(r, beside.get((r["data"], r["seed"]))) for r in records if key in r]
    return [
        {"data": record["data"], "gain": record[key] - other}
        for record, other in pairs
        if other is not None
    ]
