import numpy as np
import pytest
from sklearn.utils._param_validation import StrOptions

from skvaecert._state import (
    ABSENT,
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    Array,
    Size,
    check_simplex,
    check_state,
    held,
    put,
)
from skvaecert.simplex import simplex_vertices


def admitted(rule, value, **sizes):
    try:
        check_state("thing", {"it": value}, {"it": rule}, sizes)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (COUNT, [0, 3, 10**30], [-1, 1.0, True, "1", None]),
        (NUMBER, [0, -1.5], [np.nan, np.inf, -np.inf, True, "1", None, [1]]),
        (POSITIVE, [1, 1e-300], [0, -1, np.inf]),
        (NOT_NEGATIVE, [0, 1.5], [-1e-300, np.nan]),
        (Size("n"), [1, 5], [0, -1, 2.0, True, None]),
        (StrOptions({"a"}), ["a"], ["b", ["a"], None]),
        (dict, [{}], [[], None]),
        (None, [None], [0, False]),
        ((dict, None), [{}, None], [0]),
        (
            Array("n"),
            [np.zeros(3)],
            [np.zeros(0), np.zeros((3, 1)), [0.0], np.float64(1)],
        ),
        (Array("n"), [np.ones(2)], [np.array([np.nan]), np.array([np.inf])]),
        (Array("n"), [np.ones(2)], [np.ones(2, np.float32), np.ones(2, int)]),
        (Array("*", np.uint64), [np.zeros(0, np.uint64)], [np.zeros(1)]),
        (Array("n", low=0), [np.zeros(2)], [np.array([-1e-9])]),
        (
            Array("n", sums_to_1=True),
            [np.full(2, 0.5)],
            [np.ones(2), np.array([1.0, 0])],
        ),
    ],
)
def test_rules(rule, right, wrong):
    assert all(admitted(rule, value) for value in right)
    assert not any(admitted(rule, value) for value in wrong)


def test_equal_names_are_equal_sizes():
    table = {"n": Size("n"), "a": Array("n m"), "b": Array("m")}
    sizes = {}
    state = {"n": 2, "a": np.zeros((2, 3)), "b": np.zeros(3)}
    check_state("thing", state, table, sizes)
    assert sizes == {"n": 2, "m": 3}
    for other in ({"n": 3}, {"a": np.zeros((2, 4))}, {"b": np.zeros(2)}):
        with pytest.raises(ValueError, match="of a thing must be"):
            check_state("thing", state | other, table, {})
    with pytest.raises(ValueError, match="m of a thing must be"):
        check_state("thing", {"m": np.zeros(3)}, {"m": Array("m")}, {"m": 2})


def test_states_have_the_names_of_the_table_and_no_others():
    table = {"a": dict, "b": (dict, ABSENT)}
    check_state("thing", {"a": {}}, table, {})
    with pytest.raises(ValueError, match="a of a thing must be dict, got absent"):
        check_state("thing", {"b": {}}, table, {})
    with pytest.raises(ValueError, match="a thing has no evil"):
        check_state("thing", {"a": {}, "evil": 1}, table, {})


def test_what_is_held_can_be_put_back():
    class Thing:
        pass

    thing, other = Thing(), Thing()
    thing.a, thing.c = 1, 2
    table = {"a": COUNT, "b": COUNT}
    assert held(thing, table) == {"a": 1}
    put(other, {"a": 1, "c": 3}, table)
    assert vars(other) == {"a": 1}


def test_only_the_fixed_simplex_is_one():
    vertices = simplex_vertices(3, 4)
    check_simplex(vertices, 2.0)
    for wrong in (vertices[::-1], 2 * vertices, vertices[:, ::-1], np.zeros((3, 1))):
        with pytest.raises(ValueError, match=r"vertices_ must (be|have at most)"):
            check_simplex(wrong, 2.0)
    with pytest.raises(ValueError, match="at most 1024"):
        check_simplex(np.zeros((1025, 2000)), 2.0)
    with pytest.raises(ValueError, match="witness_scale_ must be below"):
        check_simplex(vertices, 1e200)
