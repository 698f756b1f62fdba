import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from skvaecert._training.batches import (
    Batches,
    Resident,
    Standardization,
    Streamed,
    TrainingSet,
)
from skvaecert.datasets import DatasetSamples

CPU = torch.device("cpu")
N, D, K = 300, 6, 4


@pytest.fixture
def samples():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def proba(samples):
    return torch.softmax(2 * samples[:, :K], dim=1)


@pytest.fixture
def bytes_(samples):
    return (40 * samples + 128).clamp(0, 255).to(torch.uint8).numpy()


@pytest.fixture
def standardization(bytes_):
    return Standardization.to_unit_variance([bytes_.astype(float)])


def test_batches_cover_all_samples_once(samples, proba):
    batches = Batches(TrainingSet(Resident(samples), proba), batch_size=64)
    pairs = list(batches)
    assert len(pairs) == len(batches) == 5
    assert [len(x) for x, _ in pairs] == [60] * 5
    seen = torch.cat([x for x, _ in pairs])
    assert not torch.equal(seen, samples)
    assert torch.equal(seen.sort(dim=0).values, samples.sort(dim=0).values)
    for x, t in pairs:
        torch.testing.assert_close(t, torch.softmax(2 * x[:, :K], dim=1))


@pytest.mark.parametrize("n", [65, 129, 130, 1])
def test_no_batch_of_one_is_left_over(n):
    dataset = TrainingSet(Resident(torch.zeros(n, 1)), torch.zeros(n, 1))
    sizes = [len(x) for x, _ in Batches(dataset, batch_size=64)]
    assert sum(sizes) == n
    assert max(sizes) <= 64
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("sizes", [[300], [1, 299], [100, 7, 193]])
def test_statistics_do_not_depend_on_the_chunks(samples, sizes):
    X = 3 * samples.double().numpy() + 1e6
    location, scale = Standardization.to_unit_variance(
        np.split(X, np.cumsum(sizes[:-1]))
    )
    np.testing.assert_allclose(location, X.mean(axis=0), rtol=1e-15)
    assert scale == pytest.approx(np.sqrt(X.var(axis=0).mean()), rel=1e-9)


def test_standard_samples_have_mean_zero_and_mean_variance_one(samples):
    X = samples.double().numpy() * np.arange(1, D + 1) + 5
    standardization = Standardization.to_unit_variance([X])
    standard = standardization.apply(X)
    assert standard.dtype == torch.float32
    np.testing.assert_allclose(standard.mean(dim=0), 0, atol=1e-6)
    assert standard.numpy().var(axis=0).mean() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(standardization.undo(standard.numpy()), X, rtol=1e-5)


def test_equal_samples_are_not_divided_by_zero():
    assert Standardization.to_unit_variance([np.full((5, 2), 3.0)]).scale == 1


def test_samples_far_out_are_refused(standardization):
    with pytest.raises(ValueError, match=r"within 1e15 standard deviations .* got"):
        standardization.apply(np.full((2, D), 1e20))


def test_bytes_stay_bytes_and_give_the_same_samples(bytes_, standardization):
    resident = Resident(torch.from_numpy(bytes_), standardization)
    assert resident.values.dtype == torch.uint8
    index = torch.tensor([5, 2, 2, 299])
    expected = standardization.apply(bytes_[index.numpy()])
    assert resident.take(index).dtype == torch.float32
    torch.testing.assert_close(resident.take(index), expected, rtol=1e-6, atol=1e-6)


def test_samples_are_standardized_chunk_by_chunk(bytes_, standardization):
    chunks = np.split(bytes_, [100, 101])
    resident = Resident.filled(bytes_.shape, chunks, standardization, CPU)
    assert torch.equal(resident.values, standardization.apply(bytes_))


class Recorder:
    """An array that records which parts are read."""

    def __init__(self, values):
        self.values = values
        self.read = []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        self.read.append(index)
        return self.values[index]


def test_streams_read_in_order_and_return_in_the_requested_order(
    bytes_, standardization
):
    source = Recorder(bytes_)
    index = torch.tensor([5, 2, 2, 299])
    samples = Streamed(source, standardization, CPU).take(index)
    assert torch.equal(samples, standardization.apply(bytes_[index.numpy()]))
    np.testing.assert_array_equal(source.read, [[2, 2, 5, 299]])


def test_a_stream_trains_like_samples_in_memory(bytes_, proba, standardization):
    dataset = DatasetSamples(TensorDataset(torch.from_numpy(bytes_), proba))
    batches = []
    for samples in (
        Streamed(dataset, standardization, CPU),
        Resident(standardization.apply(bytes_)),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            batches.append(list(Batches(TrainingSet(samples, proba), batch_size=64)))
    for (x, t), (y, u) in zip(*batches, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(t, u)
