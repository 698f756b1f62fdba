"""What should show, and whether it does."""

from typing import NamedTuple

from records import groups, has

certified = has(verdict="certified")


class Claim(NamedTuple):
    """What should show, whether it does, and whether anything less is a failure."""

    sentence: str
    holds: bool
    must: bool = False


def tally(records, by, sentence, true_of, expected=True, must=False):
    """Claim that something is true of all records, or of none.

    The sentence goes on with how many it is true of, and in which groups it is not as
    expected. Of no records nothing is claimed.
    """
    found = {key: [*map(true_of, some)] for key, some in groups(records, by).items()}
    every = [one for some in found.values() for one in some]
    exceptions = [
        f"{place(by, key)}: {sum(some)} of {len(some)}"
        for key, some in found.items()
        if any(one != expected for one in some)
    ]
    where_not = f" ({'; '.join(exceptions)})" if exceptions else ""
    told = f"{sentence}: {sum(every)} of {len(every)}{where_not}"
    return Claim(told, bool(every) and not exceptions, must)


def place(by, key):
    """Return the values of a group as text; a number alone would say nothing."""
    return ", ".join(
        f"{name} {value}"
        if name == "kl_weight" or not isinstance(value, str)
        else value
        for name, value in zip(by, key, strict=True)
    )
