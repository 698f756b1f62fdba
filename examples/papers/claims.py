"""Claims about records, and whether they hold."""

from typing import NamedTuple

from records import groups, has

certified = has(verdict="certified")


class Claim(NamedTuple):
    """A claim, whether it holds, and whether it is a failure if it does not."""

    sentence: str
    holds: bool
    must: bool = False


def tally(records, by, sentence, true_of, expected=True, must=False):
    """Claim that `true_of` is true of all records or, unless expected, of none.

    The sentence is completed with the number of records for which it is true, in all
    and in each group with exceptions. Without records the claim does not hold.
    """
    answers = {
        key: [*map(true_of, members)] for key, members in groups(records, by).items()
    }
    n_true, n = sum(map(sum, answers.values())), sum(map(len, answers.values()))
    exceptions = [
        f"{place(by, key)}: {sum(group)} of {len(group)}"
        for key, group in answers.items()
        if any(answer != expected for answer in group)
    ]
    where_not = f" ({'; '.join(exceptions)})" if exceptions else ""
    counted = f"{sentence}: {n_true} of {n}{where_not}"
    return Claim(counted, n > 0 and not exceptions, must)


def place(by, key):
    """Return the values of a group as text; a number is preceded by its name."""
    return ", ".join(
        f"{name} {value}"
        if name == "kl_weight" or not isinstance(value, str)
        else value
        for name, value in zip(by, key, strict=True)
    )
