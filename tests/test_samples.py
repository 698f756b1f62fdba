"""The user's X in any form: opened, cut, indexed and hashed."""

from hashlib import sha256

import dask.array
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import zarr
from scipy import sparse
from torch.utils.data import TensorDataset

from skvaecert import GMMTeacher
from skvaecert._samples import (
    CHUNK,
    DatasetSamples,
    cut_pieces,
    digest_samples,
    digests,
    fingerprint_samples,
    lazy_part,
    open_samples,
    raw_chunks,
    read_samples,
    take_samples,
)

X = np.random.default_rng(0).normal(size=(320, 6))
FORMS = {
    "array": np.asarray,
    "list": np.ndarray.tolist,
    "pandas": pd.DataFrame,
    "polars": lambda X: pl.DataFrame(X, schema=[*"abcdef"]),
    "sparse": sparse.csr_array,
    "dataset": lambda X: DatasetSamples(TensorDataset(torch.from_numpy(X))),
    "zarr": lambda X: zarr.array(X, chunks=(50, 6)),
    "dask": lambda X: dask.array.from_array(X, chunks=(50, 6)),
    "uneven dask": lambda X: dask.array.from_array(X, chunks=((7, 200, 113), 3)),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param](X)


def dense(samples):
    return samples.toarray() if sparse.issparse(samples) else np.asarray(samples)


# Take.


@pytest.mark.parametrize("index", [np.array([7, 3, 250, 4]), slice(100, 103)])
def test_some_samples_of_any_form(form, index):
    np.testing.assert_array_equal(dense(take_samples(form, index)), X[index])


def test_files_are_read_in_their_order():
    class Ascending:
        """Takes indices as h5py does."""

        chunks, shape = (50, 6), X.shape

        def __getitem__(self, index):
            assert (np.diff(index) > 0).all()
            return X[index]

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read as a whole")

    index = np.array([7, 3, 250, 4])
    np.testing.assert_array_equal(take_samples(Ascending(), index), X[index])


def test_parts_on_disk_are_read_on_demand(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped, index = np.load(tmp_path / "X.npy", mmap_mode="r"), np.array([5, 1])
    part = lazy_part(mapped, index)
    assert isinstance(part, DatasetSamples)
    again = lazy_part(part, np.array([1]))
    np.testing.assert_array_equal(np.asarray(part), X[[5, 1]])
    np.testing.assert_array_equal(np.asarray(again), X[[1]])
    np.testing.assert_array_equal(lazy_part(X, index), X[index])
    assert lazy_part(mapped, None) is mapped


# Cut.


@pytest.mark.parametrize("size", [10, 100, 1000])
def test_pieces_make_the_whole(form, size, monkeypatch):
    monkeypatch.setattr("skvaecert._samples._MOST_SAMPLES", size)
    weight, proba = np.arange(320.0), np.arange(640.0).reshape(320, 2)
    parts = zip(*cut_pieces(form, proba, weight), strict=True)
    for whole, cut in zip((X, proba, weight), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([*map(dense, cut)]), whole)


def test_few_samples_in_memory_are_handed_on_as_they_are():
    ((samples, proba, weight),) = cut_pieces(X, None, None)
    assert samples is X
    assert (proba, weight) == (None, None)
    # The estimator refuses objects without a length.
    ((samples, *_),) = cut_pieces(3, None, None)
    assert samples == 3


class Watched:
    """An array on disk that records which parts are read."""

    def __init__(self, chunks):
        self.chunks, self.shape, self.read = chunks, X.shape, []

    def __getitem__(self, index):
        self.read.append(len(X[index]))
        return X[index]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("read as a whole")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (None, [80] * 4),
        ((30, 6), [60] * 5 + [20]),
        ((200, 6), [200, 120]),
        (((200, 120), 6), [200, 120]),
    ],
)
def test_whole_chunks_are_read_once(monkeypatch, chunks, expected):
    monkeypatch.setattr("skvaecert._samples._MOST_VALUES", 80 * 6)
    watched = Watched(chunks)
    assert [len(samples) for samples, *_ in cut_pieces(watched, None, None)] == expected
    assert watched.read == expected


@pytest.mark.parametrize(
    ("proba", "weight", "message"),
    [
        (None, np.ones(60), "each of the 320 samples, got 60"),
        (np.ones((60, 2)), None, "inconsistent numbers of samples"),
    ],
)
def test_pieces_need_as_many_posteriors_and_weights(proba, weight, message):
    with pytest.raises(ValueError, match=message):
        list(cut_pieces(FORMS["zarr"](X), proba, weight))


def test_an_unknown_number_of_samples_is_an_error():
    unknown = FORMS["dask"](X)
    unknown = unknown[unknown[:, 0] > 0]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        list(cut_pieces(unknown, None, None))


# Open.


def test_arrays_are_opened_without_a_copy():
    for samples in (X, X.astype(np.uint8), FORMS["dataset"](X)):
        assert open_samples(GMMTeacher(), samples) is samples
    for samples in (X.tolist(), X.astype(object), FORMS["pandas"](X)):
        opened = open_samples(GMMTeacher(), samples)
        assert opened.dtype == np.float64
        np.testing.assert_array_equal(opened, X)


def test_values_are_read_and_checked_in_chunks(monkeypatch):
    monkeypatch.setattr("skvaecert._samples._CHUNK_VALUES", 1)
    chunks = list(raw_chunks(X))
    assert [len(chunk) for chunk in chunks] == [CHUNK, 320 - CHUNK]
    bad, integers = X.copy(), np.arange(1920).reshape(320, 6)
    bad[-1, 0] = np.nan
    read = read_samples(GMMTeacher(), bad)
    np.testing.assert_array_equal(next(read), X[:CHUNK])
    with pytest.raises(ValueError, match="X contains NaN"):
        next(read)
    assert next(read_samples(GMMTeacher(), integers)).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_whose_squares_overflow_are_refused(dtype):
    large = np.array([[1.0], [0.9 * np.sqrt(np.finfo(dtype).max)]], dtype=dtype)
    with pytest.raises(ValueError, match=r"X must have magnitudes below .* Rescale X"):
        open_samples(GMMTeacher(), large)


# Hash.


def test_fingerprints_tell_samples_apart(digits):
    samples = np.r_[digits[0], digits[1]]
    prints = fingerprint_samples(samples)
    assert len(np.unique(prints)) == len(np.unique(samples, axis=0))
    np.testing.assert_array_equal(prints, fingerprint_samples(samples.astype(object)))
    assert fingerprint_samples([[0.0]]) == fingerprint_samples([[-0.0]])
    np.testing.assert_array_equal(
        prints, fingerprint_samples(sparse.csr_array(samples))
    )
    assert len({*fingerprint_samples([["a"], ["b"], ["a"]])}) == 2
    assert len(fingerprint_samples(1)) == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_digest_is_that_of_its_description(dtype):
    head = f"skvaecert rows 1 {np.dtype(dtype).name} 320 6\n".encode()
    values = X.astype(dtype)
    expected = sha256(head + values.astype(values.dtype.newbyteorder("<")).tobytes())
    for samples in (values, np.asfortranarray(values), pd.DataFrame(values)):
        assert digest_samples(samples) == expected.hexdigest()


def test_the_digest_does_not_depend_on_the_form(form, monkeypatch):
    whole = digest_samples(X)
    monkeypatch.setattr("skvaecert._samples._HASHED_TOGETHER", 7)
    assert digest_samples(form) == whole
    assert digests(form, X[:, :2]) == {
        "rows": whole,
        "teacher_proba": digest_samples(X[:, :2]),
    }
    assert digest_samples(X[::-1]) != whole


TEXTS = ["a", 'b"\n', "\u00e9"]


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, pd.Series, lambda t: np.array(t, object)]
)
def test_texts_have_the_digest_of_the_description(form, monkeypatch):
    lines = "skvaecert rows 1 json 3\n" + '"a"\n"b\\"\\n"\n"\\u00e9"\n'
    monkeypatch.setattr("skvaecert._samples._HASHED_TOGETHER", 2)
    assert digest_samples(form(TEXTS)) == sha256(lines.encode()).hexdigest()


def test_other_samples_have_other_digests():
    others = [
        *(TEXTS, TEXTS[::-1], TEXTS[:2], [["a"], ["b"]], [["a", "b"]], ["ab"]),
        *([[1, 2], [3]], [[1], [2, 3]], [[1.0, 2], [3]], np.zeros(3), np.zeros(4)),
        pd.DataFrame({"x": ["a", "b"], "y": [1, 2]}),
        pd.DataFrame({"x": ["a", "b"], "y": [1, 3]}),
        [np.arange(2000), np.arange(3)],
        [np.arange(2000)[::-1], np.arange(3)],
    ]
    found = [digest_samples(samples) for samples in others]
    assert None not in found
    assert len(set(found)) == len(found)


def test_what_json_cannot_say_has_no_digest():
    for samples in ([object()], [{1, 2}], 3, None):
        assert digest_samples(samples) is None
