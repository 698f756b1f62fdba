"""
A text VAE that collapses by itself, and its rescue
===================================================

`Bowman et al. (2016) <https://arxiv.org/abs/1511.06349>`_ observed collapse in text. A
decoder that sees the words so far predicts the next word almost as well without a code,
and the KL term then removes the code. Here this happens on 1,000 sentences that come
with Python, at KL weight 1, without any trick. The loss does not show it. ``diagnose``
does, and six more lines around the same loop rescue the VAE. The example takes a minute
on one CPU core and saves ``text_vae.png``. Other seeds: ``SEED=1 python ...``.
"""

import os
import re
from collections import Counter
from copy import deepcopy
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.nn.functional import cross_entropy

from skvaecert import GMMTeacher
from skvaecert.metrics import collapse_margin
from skvaecert.objectives import AlignmentLoss
from skvaecert.plotting import InformationBracketDisplay
from skvaecert.witnesses import fit_linear
from skvaecert.wrappers import TrainedEncoder

SEED = int(os.environ.get("SEED", 0))
LATENT_DIM, LONGEST = 16, 20
torch.set_num_threads(1)  # networks this small gain little from several

# %%
# Sentences
# ---------
# The sentences of 5 to 20 words in Python's help texts are the samples, without
# duplicates. One in five is held out, and everything below is measured on the held-out
# sentences. A word that occurs only once in the training sentences is replaced by
# ``<unk>``.

texts = re.split(r"(?<=[.!?])\s+", " ".join(topics.values()).lower())
words = [re.findall(r"\w+|[.,;:()=\[\]]", text) for text in texts]
sentences = dict.fromkeys(" ".join(w) for w in words if 5 <= len(w) <= LONGEST)
train_sentences, valid_sentences = train_test_split(
    list(sentences), test_size=0.2, random_state=SEED
)
counts = Counter(" ".join(train_sentences).split())
known = [word for word, count in counts.items() if count > 1]
number = {w: i for i, w in enumerate(["<pad>", "<start>", "<end>", "<unk>", *known])}


def encode_words(sentences):
    tokens = torch.zeros((len(sentences), LONGEST + 2), dtype=torch.long)
    for row, sentence in zip(tokens, sentences, strict=True):
        words = ["<start>", *sentence.split(), "<end>"]
        row[: len(words)] = torch.tensor([number.get(w, 3) for w in words])
    return tokens


X_train, X_valid = map(encode_words, (train_sentences, valid_sentences))
print(f"{len(X_train)} sentences, {len(X_valid)} held out, {len(number)} words.")
print(f"For example: {train_sentences[0]}")

# %%
# A text VAE, and a loop that trains it
# -------------------------------------
# One GRU reads the sentence. A second GRU predicts it word by word, from the words so
# far and the code. Nothing here is made for skvaecert. Put your own model in its place.


class TextVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(number), 64, padding_idx=0)
        self.encoder = nn.GRU(64, 128, batch_first=True)
        self.to_posterior = nn.Linear(128, 2 * LATENT_DIM)
        self.decoder = nn.GRU(64 + LATENT_DIM, 128, batch_first=True)
        self.to_logits = nn.Linear(128, len(number))

    def encode(self, x):
        hidden, _ = self.encoder(self.embedding(x))
        end = (x > 0).sum(dim=1) - 1
        return self.to_posterior(hidden[range(len(x)), end]).chunk(2, dim=1)

    def reconstruct(self, x, z):
        words = self.embedding(x[:, :-1])
        codes = z[:, None].expand(-1, words.shape[1], -1)
        hidden, _ = self.decoder(torch.cat([words, codes], dim=2))
        logits, targets = self.to_logits(hidden).flatten(0, 1), x[:, 1:].flatten()
        nats = cross_entropy(logits, targets, ignore_index=0, reduction="none")
        return nats.view(len(x), -1).sum(dim=1)

    def forward(self, x):
        mean, log_variance = self.encode(x)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        return self.reconstruct(x, z), kl, mean


def plain(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + kl.sum(dim=1).mean()


@torch.no_grad()
def negative_elbo(vae, x):
    reconstruction, kl, _ = vae(x)
    return (reconstruction + kl.sum(dim=1)).mean().item()


def train(vae, loss, n_epochs):
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    curves = []
    for epoch in range(n_epochs):
        for index in torch.randperm(len(X_train)).split(64):
            optimizer.zero_grad()
            loss(vae, index, epoch / n_epochs).backward()
            optimizer.step()
        curves.append([negative_elbo(vae, x) for x in (X_train[:256], X_valid)])
    return curves


torch.manual_seed(SEED)
untrained = TextVAE()
vae = deepcopy(untrained)
curves = train(vae, plain, n_epochs=8)
for epoch in (1, 4, 8):
    print("Epoch {}: loss {:.1f}, held out {:.1f}".format(epoch, *curves[epoch - 1]))

# %%
# Has it collapsed?
# -----------------
# Both curves fall, as they do for a healthy VAE, because the decoder becomes a better
# language model. The posteriors show whether there is a code that it could use.

print(TrainedEncoder(vae.encode).diagnose(X_valid, random_state=0))

# %%
# Six lines more
# --------------
# The teacher is a pipeline on strings. It finds ten clusters, the topics, without
# labels. The alignment loss keeps the means of sentences apart as far as their topics
# differ. Training continues from the collapsed VAE, with one more term in the loss.

text = make_pipeline(TfidfVectorizer(min_df=2), TruncatedSVD(20, random_state=SEED))
teacher = make_pipeline(text, GMMTeacher(n_components=10, random_state=SEED))
teacher.fit(train_sentences)
T_train, T_valid = map(teacher.predict_proba, (train_sentences, valid_sentences))
loss_fn = AlignmentLoss.from_teacher(teacher, train_sentences, LATENT_DIM)


def aligned(vae, index, progress, weight=10):
    reconstruction, kl, mean = vae(X_train[index])
    alignment = loss_fn(mean, T_train[index])
    return reconstruction.mean() + kl.sum(dim=1).mean() + weight * alignment


def diagnose(vae):
    encoder = TrainedEncoder(vae.encode)
    return encoder.diagnose(X_valid, T_valid, witness=loss_fn, random_state=0)


rescued = deepcopy(vae)
train(rescued, aligned, n_epochs=4)
print(diagnose(rescued))

# %%
# Comparison with mitigations from the literature
# -----------------------------------------------
# *KL annealing*, by Bowman et al., raises the KL weight from 0 to 1, here over half of
# the epochs. *Free bits* (`Kingma et al. 2016 <https://arxiv.org/abs/1606.04934>`_)
# charge nothing for the first quarter of a nat in each dimension. Every VAE trains for
# 12 epochs in total.


def annealed(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + min(1, 2 * progress) * kl.sum(dim=1).mean()


def free_bits(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + kl.mean(dim=0).clamp(min=0.25).sum()


vaes = {"left alone": deepcopy(vae), "rescued": rescued}
train(vaes["left alone"], plain, n_epochs=4)
from_start = {
    "aligned from the start": aligned,
    "KL annealing": annealed,
    "free bits": free_bits,
}
for name, loss in from_start.items():
    vaes[name] = deepcopy(untrained)
    train(vaes[name], loss, n_epochs=12)

# %%
# What the code carries, and what it costs
# ----------------------------------------
# All values but the perplexity are in nats per held-out sentence:
#
# - codes: the lower bound on what drawn codes carry;
# - margin: how much better the witness of the alignment loss predicts the topics from
#   the means than any constant mean could;
# - topics: the same for drawn codes, with a linear probe that is fitted on codes of
#   training sentences;
# - other code: how much worse the decoder predicts a sentence from the code of another
#   sentence;
# - perplexity: it can only be bounded from above, by exp(-ELBO per word), and more
#   closely from ten draws for each sentence (`Burda et al. 2016
#   <https://arxiv.org/abs/1509.00519>`_). ``<end>`` and ``<unk>`` count as words.


@torch.no_grad()
def draw(vae, x):
    mean, log_variance = vae.encode(x)
    noise = torch.randn_like(mean)
    z = mean + (log_variance / 2).exp() * noise
    # log p(z) - log q(z|x)
    return z, (log_variance + noise.square() - z.square()).sum(dim=1) / 2


@torch.no_grad()
def measure(vae, n_draws=10):
    codes, log_ratios = zip(*[draw(vae, X_valid) for _ in range(n_draws)], strict=True)
    own = torch.stack([vae.reconstruct(X_valid, z) for z in codes])
    other = torch.stack([vae.reconstruct(X_valid, z.roll(1, dims=0)) for z in codes])
    log_weights = torch.stack(log_ratios) - own
    log_mean_weights = log_weights.logsumexp(dim=0) - np.log(n_draws)
    n_words = (X_valid[:, 1:] > 0).sum() / len(X_valid)
    probe = fit_linear(draw(vae, X_train)[0], T_train)
    found = diagnose(vae)
    return found, {
        "codes": found.information.low,
        "margin": found.mean.margin,
        "topics": collapse_margin(T_valid, probe.log_proba(codes[0])),
        "other code": (other - own).mean().item(),
        "ELBO": (-log_weights.mean() / n_words).exp().item(),
        "10 draws": (-log_mean_weights.mean() / n_words).exp().item(),
    }


results = {name: measure(vae) for name, vae in vaes.items()}
columns = results["rescued"][1]
print(f"{'perplexity at most, by':>96}")
print(" " * 36 + "".join(f"{column:>12}" for column in columns))
for name, (found, values) in results.items():
    row = "".join(f"{value:12.2f}" for value in values.values())
    print(f"{name:24}{found.state:12}{row}")

# %%
# KL annealing ends in collapse, too. Free bits keep the most nats, and their decoder
# uses them, but the probe finds hardly any topics in the code. The alignment loss puts
# the topics into the code, also after collapse. The decoder that has learned to do
# without a code uses little of it after four epochs. By the ELBO, the collapsed VAEs
# are the best: with so few sentences, a code costs more than it helps to predict.

# %%
# The picture
# -----------
# Above: the loss of the VAE that collapses. Below left: what the codes of all VAEs
# carry. Below right: the two upper bounds on the perplexity, joined by a line.

figure = plt.figure(figsize=(8.8, 7), layout="constrained")
axes = figure.subplot_mosaic(
    [["loss", "loss"], ["codes", "perplexity"]],
    height_ratios=[1, 2],
    width_ratios=[1.8, 1],
)
top, left, right = axes.values()
epochs = range(1, len(curves) + 1)
for losses, look, name in zip(
    np.transpose(curves), ("o--", "s-"), ("training", "held-out"), strict=True
):
    top.plot(epochs, losses, look, label=f"{name} sentences")
top.set(xlabel="epoch", ylabel="negative ELBO\n(nats per sentence)")
top.set_title("The loss falls while the VAE collapses ...", fontsize=11)
top.legend()

InformationBracketDisplay.from_diagnoses(
    {name: found for name, (found, _) in results.items()}, ax=left
)
left.legend(loc="upper right", frameon=False, markerscale=0.6)
left.set(ylim=(-4.5, 1.5))
left.set_title("... alignment rescues it ...", fontsize=11)

for place, (_, values) in enumerate(results.values()):
    ends = values["10 draws"], values["ELBO"]
    right.plot(ends, [-place, -place], "|-", color="0.3", markersize=14, linewidth=3)
right.set(
    ylim=left.get_ylim(), yticks=[], xlabel="perplexity per word\n(two upper bounds)"
)
right.set_title("... and a code has its price", fontsize=11)
figure.savefig("text_vae.png", dpi=110)
print("Saved text_vae.png")
