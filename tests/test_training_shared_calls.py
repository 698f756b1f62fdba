import threading
from itertools import count

import numpy as np
import pytest

from skvaecert._training.joint import shared_call, sharing_results

COUNTER = count()


def states():
    return np.random.get_state()  # noqa: NPY002


def test_calls_are_shared_inside_the_block_only():
    calls = []

    def listed(*args):
        calls.append(args)
        return list(args)

    assert shared_call(states, listed, 1) == shared_call(states, listed, 1) == [1]
    assert len(calls) == 2
    with sharing_results():
        first, again = shared_call(states, listed, 1), shared_call(states, listed, 1)
        assert shared_call(states, listed, 2) == [2]
        assert len(calls) == 4
        first.append(3)
        assert again == shared_call(states, listed, 1) == [1]
    shared_call(states, listed, 1)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda _: np.random.rand(), 1),  # noqa: NPY002
        (lambda _: next(COUNTER), threading.Lock()),
    ],
    ids=["draws from NumPy's generator", "cannot be compared"],
)
def test_other_calls_are_not_shared(function, argument):
    with sharing_results():
        assert shared_call(states, function, argument) != shared_call(
            states, function, argument
        )
