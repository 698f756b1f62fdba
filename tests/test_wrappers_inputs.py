"""What encoders are given: samples as they are, in batches of one size."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skvaecert import CollapseCertifier, GMMTeacher
from skvaecert.datasets import DatasetSamples
from skvaecert.exceptions import KnownSamplesWarning, UnstableEncoderWarning
from skvaecert.wrappers import TrainedEncoder

WORDS = ["a", "bb", "a", "ccc", "bb", "dddd", "a"]


def lengths(batch):
    """A function of a list of strings or sequences."""
    assert type(batch) is list
    return np.array([[len(sample), len(set(sample))] for sample in batch], float)


class TextEncoder(nn.Module):
    """Of token ids, with an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)

    def encode(self, tokens):
        assert tokens.dtype == torch.int64
        hidden = self.embedding(tokens).mean(1)
        return hidden[:, :4], hidden[:, 4:]

    def embed(self, sentences):
        """Take strings itself, as sentence transformers do."""
        assert type(sentences) is list
        tokens = [[ord(letter) % 20 for letter in s[:1]] for s in sentences]
        return self.encode(torch.tensor(tokens))[0]


@pytest.fixture(scope="module")
def text():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextEncoder()


SEQUENCES = {
    "list": WORDS,
    "tuple": tuple(WORDS),
    "array": np.array(WORDS),
    "objects": np.array(WORDS, dtype=object),
    "series": pd.Series(WORDS),
    "tokens": [list(map(ord, word)) for word in WORDS],
    "arrays": [np.array(list(map(ord, word))) for word in WORDS],
}


@pytest.mark.parametrize("form", SEQUENCES)
def test_lists_reach_a_function_as_lists(form):
    model = TrainedEncoder(lengths, batch_size=3)
    expected = [[len(word), len(set(word))] for word in WORDS]
    X = SEQUENCES[form]
    np.testing.assert_array_equal(model.transform(X), expected)
    # Parts are read as the whole is, those of one length too.
    np.testing.assert_array_equal(model.transform(X[2:3]), expected[2:3])
    assert model.fit(X).latent_dim_ == 2
    assert not hasattr(model, "n_features_in_")


def test_batches_of_lists_have_one_size():
    seen = []

    def encoder(batch):
        seen.append(batch)
        return lengths(batch)

    TrainedEncoder(encoder, batch_size=3).transform(WORDS)
    assert seen == [WORDS[:3], WORDS[3:6], WORDS[6:] * 3]


def test_nested_lists_of_floats_are_a_table():
    table = [[1.0, 2.0], [3.0, 4.0]]
    model = TrainedEncoder(lambda batch: batch[:, :1] * 2)
    np.testing.assert_array_equal(model.transform(table), [[2.0], [6.0]])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
def test_token_ids_reach_an_embedding(text, dtype):
    tokens = np.random.default_rng(0).integers(20, size=(30, 5))
    with torch.no_grad():
        expected = text.encode(torch.from_numpy(tokens))[0]
    for X in (
        tokens.astype(dtype),
        pd.DataFrame(tokens.astype(dtype)),
        DatasetSamples(tokens.astype(dtype)),
    ):
        means = TrainedEncoder(text.encode).transform(X)
        np.testing.assert_allclose(means, expected, rtol=1e-6)
    for X in (
        torch.from_numpy(tokens),
        TensorDataset(torch.from_numpy(tokens), torch.ones(30)),
        DataLoader(TensorDataset(torch.from_numpy(tokens)), batch_size=7),
    ):
        np.testing.assert_allclose(TrainedEncoder(text.encode).transform(X), expected)


def test_booleans_are_computed_with():
    module = nn.Linear(3, 2)
    mask = np.array([[True, False, True]])
    means = TrainedEncoder(module).transform(mask)
    np.testing.assert_allclose(means, TrainedEncoder(module).transform(mask * 1.0))


def test_integers_for_a_module_of_floats_say_what_to_do():
    with pytest.raises(RuntimeError, match="dtype") as caught:
        TrainedEncoder(nn.Linear(3, 2)).transform(np.ones((4, 3), dtype=np.uint8))
    assert "X.astype(numpy.float32)" in caught.value.__notes__[0]


NEEDS_SHAPE = "set input_shape in TrainedEncoder to the shape of one sample"


@pytest.mark.parametrize("first", [nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)])
def test_an_encoder_of_images_needs_the_shape_of_flat_samples(first, shared_blobs):
    model = TrainedEncoder(nn.Sequential(first, nn.Flatten()))
    teacher = GMMTeacher(n_components=3, random_state=0)
    certifier = CollapseCertifier(FrozenEstimator(model), teacher=teacher)
    for call in (model.transform, model.diagnose, certifier.fit):
        with pytest.raises((RuntimeError, ValueError), match="xpected") as caught:
            call(shared_blobs)
        assert NEEDS_SHAPE in caught.value.__notes__[0]
    model.set_params(input_shape=(1, 3, 2))
    assert model.transform(shared_blobs).shape == (len(shared_blobs), 6)


def test_only_an_encoder_of_flat_samples_is_told_to_set_a_shape():
    images = TrainedEncoder(nn.Linear(3, 2), input_shape=(2, 2))
    decoder = TrainedEncoder(nn.Flatten(), nn.Linear(3, 2))
    for call in (images.transform, decoder.inverse_transform):
        with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
            call(np.ones((4, 4)))
        assert NEEDS_SHAPE not in caught.value.__notes__[0]


def test_strings_reach_a_module_that_takes_them(text):
    means = TrainedEncoder(text.embed).transform(WORDS)
    assert means.shape == (7, 4)
    np.testing.assert_array_equal(means[0], means[2])
    with pytest.raises(TypeError, match=r"list") as caught:
        TrainedEncoder(nn.Linear(3, 2)).transform([[1, 2, 3]])
    assert "called with a list of list" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("words", "got str"),
        ({"ids": [1, 2]}, "got dict"),
        ([], r"0 sample\(s\)"),
        (np.ones(3), "Expected 2D array, got 1D"),
        ([[1.0], [1.0, 2.0]], "inhomogeneous"),
        (np.array([["a", "b"]]), "could not convert|numeric"),
    ],
)
def test_what_holds_no_samples(X, message):
    with pytest.raises(ValueError, match=message):
        TrainedEncoder(lengths).transform(X)


def test_a_shape_of_samples(digits):
    images = digits[0].reshape(-1, 1, 8, 8)
    module = nn.Flatten()
    for X, shape in ((images, None), (digits[0], (1, 8, 8)), (images, (8, 8))):
        means = TrainedEncoder(module, input_shape=shape).transform(X)
        np.testing.assert_allclose(means, digits[0].astype(np.float32))
    with pytest.raises(ValueError, match=r"\(1, 8\), 8 values, and 64 features"):
        TrainedEncoder(module, input_shape=(1, 8)).transform(images)
    with pytest.raises(ValueError, match="input_shape must be None if X is a list"):
        TrainedEncoder(lengths, input_shape=(1,)).transform(WORDS)


def test_values_of_a_dataset_are_checked_where_they_are_read():
    X = np.ones((600, 3))
    X[-1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        TrainedEncoder(lambda batch: batch).transform(DatasetSamples(X))


def test_neither_autocast_nor_a_decorator_is_in_the_way(digits):
    module = nn.Linear(64, 4)
    X = digits[0].astype(np.float32)
    means = TrainedEncoder(module).transform(X)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(TrainedEncoder(module).transform(X), means)
        assert torch.is_autocast_enabled("cpu")
    wrapped = torch.no_grad()(module.forward)  # as torch.compile wraps, too
    np.testing.assert_array_equal(TrainedEncoder(wrapped).transform(X), means)


# Certificates of what is no table.


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(9))

    def forward(self, x):
        assert x.shape[1:] == (1, 8, 8)
        return self.layers(x), torch.zeros(len(x), 9)


@pytest.mark.slow
def test_images_of_loaders_and_datasets_are_certified(digits):
    with torch.random.fork_rng():
        model = TrainedEncoder(Conv(), input_shape=(1, 8, 8))
        model.transform(digits[0][:2])
    train, test = (torch.from_numpy(X.astype(np.float32)) for X in digits)
    certifier = CollapseCertifier(
        FrozenEstimator(model), teacher=GMMTeacher(9, random_state=0), witness="linear"
    )
    expected = certifier.fit(train.numpy()).certify(test.numpy())
    images = train.reshape(-1, 1, 8, 8), test.reshape(-1, 1, 8, 8)
    dataset = TensorDataset(images[1], torch.zeros(len(test)))
    certifier.fit(DataLoader(images[0], batch_size=50))
    for form in (images[1], images[1].numpy(), dataset, DataLoader(dataset)):
        assert certifier.certify(form).to_json() == expected.to_json()
    batches = certifier.certify_batches(DataLoader(dataset, batch_size=64))
    assert batches.margin == pytest.approx(expected.margin, abs=1e-9)
    with pytest.raises(ValueError, match="RandomSampler"):
        certifier.transform(DataLoader(dataset, shuffle=True))
    with pytest.raises(ValueError, match="RandomSampler"):
        certifier.certify(
            DataLoader(dataset, shuffle=True),
            teacher_proba=certifier.teacher_.transform(test.numpy()),
        )


@pytest.fixture(scope="module")
def sentences():
    generator = np.random.default_rng(0)
    alphabets = ["abcd", "efgh", "ijkl"]
    drawn = (
        "".join(generator.choice([*alphabets[kind]], size=generator.integers(5, 12)))
        for kind in generator.integers(3, size=400)
    )
    return [*dict.fromkeys(drawn)][:300]


def shares(batch):
    """Shares of letters: three kinds of sentences, well apart."""
    return np.array([[s.count(c) / len(s) for c in "abcdefghijkl"] for s in batch])


@pytest.fixture(scope="module")
def teacher(sentences):
    return make_pipeline(
        FunctionTransformer(shares), GMMTeacher(3, random_state=0)
    ).fit(sentences)


def certifier_of(encoder, teacher, sentences, **params):
    return CollapseCertifier(
        FrozenEstimator(TrainedEncoder(encoder)),
        teacher=FrozenEstimator(teacher),
        **params,
    ).fit(sentences)


@pytest.mark.slow
def test_an_encoder_of_strings_is_certified(teacher, sentences):
    certifier = certifier_of(shares, teacher, sentences[:200], witness="linear")
    certificate = certifier.certify(sentences[200:])
    assert certificate.verdict == "certified"
    batches = DataLoader(sentences[200:], batch_size=30)
    assert certifier.certify_batches(batches).margin == pytest.approx(
        certificate.margin, abs=1e-9
    )
    assert certifier.diagnose(sentences[200:]).mean.verdict == "certified"
    assert certifier.diagnose(sentences[200:]).threshold is None


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_constant_encoder_of_strings_is_not(teacher, sentences, constant):
    def encoder(batch):
        return np.full((len(batch), 12), constant)

    for witness in ("raw", "linear"):
        certifier = certifier_of(encoder, teacher, sentences[:200], witness=witness)
        assert certifier.certify(sentences[200:]).verdict == "constant"
        loader = DataLoader(sentences[200:], batch_size=30, shuffle=True)
        with torch.random.fork_rng():
            assert certifier.certify_batches(loader).verdict == "constant"


def padded(batch):
    """Constant but for the padding, which is as long as the batch's longest."""
    longest = max(map(len, batch))
    return np.array([[0.1 * (longest - len(s)), *[0.0] * 11] for s in batch])


def test_padding_that_depends_on_the_batch_is_noticed(teacher, sentences):
    proba = teacher.predict_proba(sentences)
    with pytest.warns(UnstableEncoderWarning):
        certificate = certifier_of(padded, teacher, sentences).certify(sentences)
    assert certificate.verdict == "inconclusive"
    with pytest.warns(UnstableEncoderWarning):
        found = TrainedEncoder(padded).diagnose(sentences, proba)
    assert found.mean.verdict == "inconclusive"


@pytest.mark.parametrize("form", ["strings", "tokens"])
def test_samples_of_the_fit_are_known_in_other_company(teacher, sentences, form):
    """A fitted witness certifies others only, also where some have one length."""

    def as_strings(batch):
        return ["".join(map(chr, s)) for s in batch] if form == "tokens" else batch

    X = [[*map(ord, s)] for s in sentences] if form == "tokens" else sentences
    pipeline = make_pipeline(FunctionTransformer(as_strings), teacher)
    certifier = certifier_of(
        lambda batch: shares(as_strings(batch)), pipeline, X, witness="linear"
    )
    five = [sample for sample in X if len(sample) == 5]
    with pytest.warns(KnownSamplesWarning) as caught:
        certificate = certifier.certify(five)
    left_out = len(five) - certificate.n_samples
    assert left_out > 0
    assert str(left_out) in str(caught[0].message)


def test_text_by_a_module_survives_a_pickle(text):
    model = pickle.loads(pickle.dumps(TrainedEncoder(text.embed)))
    np.testing.assert_array_equal(
        model.transform(WORDS), TrainedEncoder(text.embed).transform(WORDS)
    )
