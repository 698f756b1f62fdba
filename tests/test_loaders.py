"""Samples of torch, as arrays or lists: their form and their order."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from skvaecert._loaders import as_samples, flat_batches, flat_samples
from skvaecert.datasets import WithPosterior

X = torch.arange(48.0).reshape(8, 1, 2, 3)
LABELS = torch.arange(8)
PAIRS = TensorDataset(X, LABELS)


class Words(Dataset):
    """Strings, or sequences of different lengths, with a label each or without."""

    def __init__(self, samples, labeled=True):
        self.samples = samples
        self.labeled = labeled

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        return (sample, index) if self.labeled else sample


WORDS = ["a", "bb", "a", "ccc", "d"]
RAGGED = [torch.arange(n) for n in (3, 1, 4, 1, 5)]
TENSOR_FORMS = {
    "tensor": X,
    "needs gradients": X.clone().requires_grad_(),
    "dataset": PAIRS,
    "loader": DataLoader(PAIRS, batch_size=3),
    "dataset with posteriors": WithPosterior(PAIRS, np.full((8, 2), 0.5)),
    "loader of samples": DataLoader(X, batch_size=3),
    "one to a batch": DataLoader(TensorDataset(X), batch_size=1),
    "with posteriors": DataLoader(
        WithPosterior(PAIRS, np.full((8, 2), 0.5)), batch_size=5
    ),
    "two batch samplers": DataLoader(PAIRS, batch_sampler=[range(5), range(5, 8)]),
}


@pytest.mark.parametrize("form", TENSOR_FORMS)
def test_tensors_come_as_they_are(form):
    samples = as_samples(TENSOR_FORMS[form], in_order=False)
    assert type(samples) is np.ndarray
    np.testing.assert_array_equal(samples, X)
    flat = flat_samples(TENSOR_FORMS[form], in_order=False)
    np.testing.assert_array_equal(flat, X.flatten(1))


@pytest.mark.parametrize("labeled", [True, False])
def test_samples_that_are_no_tensors_come_in_a_list(labeled):
    words = Words(WORDS, labeled)
    for form in (words, DataLoader(words, batch_size=2)):
        assert flat_samples(form, in_order=True) == WORDS
    ragged = as_samples(Words(RAGGED, labeled), in_order=True)
    assert [sample.tolist() for sample in ragged] == [[*r] for r in map(list, RAGGED)]


def test_integers_stay_integers_and_small_floats_become_larger():
    assert as_samples(LABELS, in_order=True).dtype == np.int64
    halves = as_samples(X.to(torch.bfloat16), in_order=True)
    assert halves.dtype == np.float32


def test_what_is_not_of_torch_stays_as_it_is():
    array = np.eye(3)
    assert as_samples(array, in_order=True) is array
    assert flat_samples(array, in_order=True) is array
    assert as_samples(WORDS, in_order=True) is WORDS


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    ("loader", "kind"),
    [
        (DataLoader(PAIRS, shuffle=True), "RandomSampler"),
        (
            DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * 8, 8)),
            "WeightedRandomSampler",
        ),
        (DataLoader(PAIRS, batch_sampler=[[3, 1], [2]]), "list"),
        (DataLoader(PAIRS, sampler=[2, 1, 0]), "list"),
        (DataLoader(Stream(), batch_size=2), "_InfiniteConstantSampler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_loaders_of_unknown_order_are_refused_where_it_matters(loader, kind):
    with pytest.raises(ValueError, match=f"known order.*{kind}.*shuffle=False"):
        as_samples(loader, in_order=True)
    # The twin: the same samples, where nothing belongs to them.
    with torch.random.fork_rng():
        n_samples = len(as_samples(loader, in_order=False))
    assert n_samples in (3, 8)


def test_workers_that_may_overtake_each_other_are_refused():
    loader = DataLoader(PAIRS, num_workers=2, in_order=False)
    with pytest.raises(ValueError, match="in_order=False"):
        as_samples(loader, in_order=True)


def test_in_order_they_keep_their_order():
    samples = as_samples(DataLoader(PAIRS, batch_size=3, drop_last=True), in_order=True)
    np.testing.assert_array_equal(samples, X[:6])


@pytest.mark.parametrize("own", ["loader", "sampler", None])
def test_generators_stay_where_they_were(own):
    generator = torch.Generator().manual_seed(3) if own else None
    loader = DataLoader(PAIRS, shuffle=True, generator=generator)
    if own == "sampler":
        sampler = WeightedRandomSampler([1.0] * 8, 8, generator=generator)
        loader = DataLoader(PAIRS, sampler=sampler)

    def states():
        mine = generator.get_state().tolist() if own else None
        return torch.random.get_rng_state().tolist(), mine

    before = states()
    as_samples(loader, in_order=False)
    assert states() == before
    with torch.random.fork_rng():
        for _ in loader:
            pass
        assert states() != before


def padded(batch):
    sequences = [sample for sample, _ in batch]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(StackDataset(x=X, y=LABELS)), r"got dict.*batch\[\"x\"\]"),
        (
            DataLoader(Words(RAGGED, False), batch_size=2, collate_fn=list),
            "got a list of 2 Tensor.*padded to one length",
        ),
        (
            DataLoader(Words(RAGGED), batch_size=2, collate_fn=padded),
            r"samples of one shape.*\(3,\) and \(4,\) and \(5,\).*Pad all",
        ),
        (DataLoader(Words([]), batch_size=2), "without batches"),
        (StackDataset(x=X), "items of dict"),
        (Stream(), "must have a length, got Stream.*DataLoader"),
    ],
    ids=["dict", "ragged", "padded by batch", "empty", "dicts", "stream"],
)
def test_what_cannot_be_read_says_what_to_do(loader, message):
    with pytest.raises(ValueError, match=message):
        as_samples(loader, in_order=True)


class Sequences(IterableDataset):
    """Sequences of vectors, of 4 or other lengths."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __iter__(self):
        return (torch.zeros(n, 3) for n in self.lengths)


@pytest.mark.parametrize(
    ("dataset", "batches"),
    [
        ([torch.zeros(4, 3)] * 8, {"batch_size": 4}),
        (Sequences([4] * 8), {"batch_size": 4}),
        (Sequences([2] * 8), {"batch_size": 4}),
        (Sequences([1, 2] * 4), {"batch_size": 4}),
        ([[1], [2, 3]] * 4, {"batch_sampler": [[0, 1], [2, 3]]}),
    ],
)
@pytest.mark.parametrize("collate", [list, lambda items: (items, [0] * len(items))])
def test_one_sample_is_not_taken_for_a_batch(dataset, batches, collate):
    loader = DataLoader(dataset, collate_fn=collate, **batches)
    with pytest.raises(ValueError, match="must be padded to one length"):
        as_samples(loader, in_order=False)


@pytest.mark.parametrize("n_items", [6, 8])
def test_pairs_of_one_kind_are_samples_with_other_values(n_items):
    """Also where the last batch has as many samples as parts."""
    noisy = torch.arange(3.0 * n_items).reshape(n_items, 3)
    loader = DataLoader(
        noisy, 4, collate_fn=lambda items: [torch.stack(items), -torch.stack(items)]
    )
    np.testing.assert_array_equal(as_samples(loader, in_order=True), noisy)


def test_small_batches_of_a_loader_are_joined(monkeypatch):
    monkeypatch.setattr("skvaecert._loaders._TOGETHER", 5)
    found = list(flat_batches(DataLoader(PAIRS, batch_size=2)))
    assert [len(batch) for batch in found] == [6, 2]
    np.testing.assert_array_equal(np.concatenate(found), X.flatten(1))
    words = list(flat_batches(DataLoader(Words(WORDS), batch_size=2)))
    assert words == [WORDS]


def test_batches_are_flat():
    assert len(next(flat_batches(PAIRS))) == 8
    assert [len(sample) for sample in flat_batches(Sequences([5, 6]))] == [5, 6]
    for batches in (X.split(3), iter(X.split(3))):
        found = list(flat_batches(batches))
        assert [batch.shape for batch in found] == [(3, 6), (3, 6), (2, 6)]
        np.testing.assert_array_equal(np.concatenate(found), X.flatten(1))
