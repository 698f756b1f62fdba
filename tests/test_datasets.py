import pickle

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Subset, TensorDataset

from skvaecert.datasets import (
    WithPosterior,
    load_digits,
    load_patches,
    toy_encoders,
)


def test_digits_are_cut_once_and_evenly():
    train, test = (load_digits(subset=subset) for subset in ("train", "test"))
    whole = sklearn_datasets.load_digits()
    assert (len(train.data), len(test.data)) == (1347, 450)
    assert (train.data.dtype, train.target.dtype) == (np.float32, np.int64)
    assert train.image_shape == (1, 8, 8)
    both = np.column_stack(
        [
            np.vstack([train.data, test.data]) * 16,
            np.concatenate([train.target, test.target]),
        ]
    )
    np.testing.assert_array_equal(
        np.unique(both, axis=0),
        np.unique(np.column_stack([whole.data, whole.target]), axis=0),
    )
    shares = np.bincount(test.target) / np.bincount(whole.target)
    np.testing.assert_allclose(shares, 0.25, atol=0.005)


def test_a_seed_cuts_the_digits_the_same_way():
    first, second, other = (load_digits(random_state=s).data for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_digits_need_a_seed():
    with pytest.raises(ValueError, match="random_state must be an int of at least 0"):
        load_digits(random_state=None)


def test_digits_have_two_subsets():
    with pytest.raises(ValueError, match="subset must be 'train' or 'test', got 'val'"):
        load_digits(subset="val")


@pytest.mark.slow
def test_patches_are_cut_from_the_images():
    patches = load_patches(20, size=5, random_state=0)
    images = [image / np.float32(255) for image in load_sample_images().images]
    assert patches.image_shape == (3, 5, 5)
    assert patches.data.dtype == np.float32
    for row in patches.data:
        patch = row.reshape(patches.image_shape).transpose(1, 2, 0)
        assert any(holds(image, patch) for image in images)


def holds(image, patch):
    corners = np.argwhere((image[:-4, :-4] == patch[0, 0]).all(axis=2))
    return any((image[i : i + 5, j : j + 5] == patch).all() for i, j in corners)


@pytest.mark.slow
def test_train_and_test_share_no_pixel(monkeypatch):
    """Number the pixels, and see which ones are cut out."""
    numbers = np.arange(427 * 640 * 3, dtype=float).reshape(427, 640, 3)
    images = type("Images", (), {"images": [255 * numbers, -255 * numbers]})
    monkeypatch.setattr("skvaecert.datasets.load_sample_images", images)
    train, test = (
        np.unique(load_patches(20_000, subset=subset, random_state=0).data)
        for subset in ("train", "test")
    )
    assert not np.intersect1d(train, test).size
    assert len(train) + len(test) > 0.8 * 2 * numbers.size


def test_gray_is_the_mean_of_the_channels():
    color = load_patches(10, random_state=0)
    gray = load_patches(10, color=False, random_state=0)
    assert gray.image_shape == (1, 8, 8)
    means = color.data.reshape(10, 3, 8, 8).mean(axis=1)
    np.testing.assert_allclose(gray.data, means.reshape(10, -1), rtol=1e-5)


def test_a_seed_draws_the_same_patches():
    first, second, other = (load_patches(10, random_state=s).data for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "n_samples must be an int of at least 1, got 0"),
        ({"size": 81}, "size must be an int from 1 to 80, got 81"),
        ({"size": 2.5}, "size must be an int from 1 to 80, got 2.5"),
        ({"subset": "all"}, "subset must be 'train' or 'test', got 'all'"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        load_patches(**params)


@pytest.mark.parametrize(("n_samples", "latent_dim"), [(1000, 4), (2, 1), (7, 3)])
def test_toy_encoders_are_what_they_say(n_samples, latent_dim):
    encoders = toy_encoders(n_samples, latent_dim)
    assert len({encoder.name for encoder in encoders}) == 6
    for encoder in encoders:
        factors, mean, std = encoder.factors, encoder.latent_mean, encoder.latent_std
        assert factors.shape == mean.shape == std.shape == (n_samples, latent_dim)
        assert np.ptp(mean, axis=0).any() == encoder.mean_varies
        varies = encoder.mean_varies or np.ptp(std, axis=0).any()
        assert varies == encoder.informative
        np.testing.assert_allclose(factors.var(axis=0), 1)


def test_toy_encoders_have_the_variances_of_the_panel():
    variances = {e.name: e.latent_mean.var(axis=0) for e in toy_encoders()}
    np.testing.assert_allclose(variances["small but precise"], 0.005)
    np.testing.assert_allclose(variances["healthy"], 0.9)


def test_a_seed_makes_the_same_toy_encoders():
    first, second, other = (toy_encoders(5, 2, s)[0].factors for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 1}, "n_samples must be an int of at least 2, got 1"),
        ({"latent_dim": 0}, "latent_dim must be an int of at least 1, got 0"),
    ],
)
def test_toy_encoders_refuse(params, message):
    with pytest.raises(ValueError, match=message):
        toy_encoders(**params)


class Numbers:
    """Items that show their index, without `__getitems__`."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.tensor([float(index)]), f"label {index}"


class ManyNumbers(Numbers):
    def __getitems__(self, index):
        return [self[i] for i in index]


def places(n_items=50):
    """Posteriors that show the index of their item."""
    share = (np.arange(n_items) + 1) / (n_items + 1)
    return np.column_stack([share, 1 - share])


@pytest.mark.parametrize("kind", [Numbers, ManyNumbers])
@pytest.mark.parametrize("on_disk", [False, True])
def test_posteriors_stay_with_their_samples(tmp_path, kind, on_disk):
    proba = places()
    if on_disk:
        np.save(tmp_path / "posteriors.npy", proba)
    dataset = WithPosterior(kind(), tmp_path / "posteriors.npy" if on_disk else proba)
    part = Subset(dataset, range(10, 45))
    seen = []
    for (number, label), posterior in DataLoader(part, batch_size=8, shuffle=True):
        expected = proba[number[:, 0].int()]
        np.testing.assert_allclose(posterior, expected, rtol=1e-6)
        assert [f"label {int(i)}" for i in number] == list(label)
        seen += number[:, 0].int().tolist()
    assert seen != sorted(seen)
    assert sorted(seen) == list(range(10, 45))


@pytest.mark.slow
def test_workers_open_the_posteriors_themselves(tmp_path):
    np.save(tmp_path / "posteriors.npy", np.tile(places(), (2000, 1)))
    whole = TensorDataset(torch.arange(100_000))
    dataset = WithPosterior(whole, tmp_path / "posteriors.npy")
    without = len(pickle.dumps(whole)) + 1000
    assert len(pickle.dumps(dataset)) < without  # 1.6 MB of posteriors are not in it
    loader = DataLoader(Subset(dataset, [7, 49]), num_workers=1)
    posteriors = [posterior for _, posterior in loader]
    np.testing.assert_allclose(torch.cat(posteriors), places()[[7, 49]], rtol=1e-6)


def test_posteriors_must_be_those_of_the_items(tmp_path):
    with pytest.raises(ValueError, match=r"one posterior per item .* 50, got 49"):
        WithPosterior(Numbers(), places(49))
    wrong = places()
    wrong[-1] = 2.0
    np.save(tmp_path / "wrong.npy", wrong)
    for given in (wrong, tmp_path / "wrong.npy"):
        with pytest.raises(ValueError, match="teacher_proba must"):
            WithPosterior(Numbers(), given)
    with pytest.raises(ValueError, match=r"dataset must have a length.*got generator"):
        WithPosterior((number for number in range(50)), places())
