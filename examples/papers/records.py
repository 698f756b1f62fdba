"""Select, group and pair records, the flat dicts that a cell has measured."""

import numpy as np


def records_of(results):
    """Return the records of all results."""
    return [record for result in results for record in result["records"]]


def has(**values):
    """Return a function that tells whether a record has these values."""
    return lambda record: all(record.get(key) == v for key, v in values.items())


def where(records, **values):
    """Return the records that have these values."""
    return [*filter(has(**values), records)]


def groups(records, keys):
    """Return lists of records by their values of the keys, in order of appearance."""
    found = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return found


def each(records, key):
    """Return lists of records by their value of one key, in order of appearance."""
    return {value: members for (value,), members in groups(records, (key,)).items()}


def medians(grouped, key):
    """Return the median of each group."""
    return {
        name: np.median([record[key] for record in members])
        for name, members in grouped.items()
    }


def gains(records, others, key):
    """Return records of value minus other value, for each seed that has both."""
    values, other_values = (
        {(r["data"], r["seed"]): r[key] for r in group if key in r}
        for group in (records, others)
    )
    return [
        {"data": pair[0], "gain": value - other_values[pair]}
        for pair, value in values.items()
        if pair in other_values
    ]
