"""
A text VAE that collapses by itself, and how to bring it back
=============================================================

Codes of text are where collapse was first seen, by `Bowman et al. (2016)
<https://arxiv.org/abs/1511.06349>`_: a decoder that reads the words so far predicts the
next one well enough without a code, and the KL term then takes the code away. Here it
happens on 1,300 sentences that ship with Python, at KL weight 1, without any trick. The
loss does not show it. ``diagnose`` does, and six lines more in the same loop bring the
code back. It takes about a minute on one CPU core and saves ``text_vae.png``.
"""

import re
import sys
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

from skvaecert import GMMTeacher, diagnose
from skvaecert.metrics import collapse_margin
from skvaecert.objectives import AlignmentLoss
from skvaecert.plotting import InformationBracketDisplay
from skvaecert.witnesses import fit_linear

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
LATENT_DIM, LONGEST = 16, 20
torch.set_num_threads(1)  # nets this small run hardly faster on several

# %%
# Sentences
# ---------
# The help texts of the language reference, cut into sentences of 5 to 20 words, each
# kept once. Every fifth is held out: all figures below are about those. Words that
# occur once in the training sentences are one and the same unknown word.

texts = re.split(r"(?<=[.!?])\s+", " ".join(topics.values()).lower())
words = [re.findall(r"\w+|[.,;:()=\[\]]", text) for text in texts]
sentences = dict.fromkeys(" ".join(s) for s in words if 5 <= len(s) <= LONGEST)
train_sentences, valid_sentences = train_test_split(
    list(sentences), test_size=0.2, random_state=SEED
)
counts = Counter(" ".join(train_sentences).split())
known = [word for word, count in counts.items() if count > 1]
tokens = {
    word: i for i, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *known])
}


def to_ids(sentences):
    ids = torch.zeros((len(sentences), LONGEST + 2), dtype=torch.long)
    for row, sentence in zip(ids, sentences):
        words = ["<start>", *sentence.split(), "<end>"]
        row[: len(words)] = torch.tensor(
            [tokens.get(w, tokens["<unk>"]) for w in words]
        )
    return ids


X_train, X_valid = to_ids(train_sentences), to_ids(valid_sentences)
print(
    f"{len(X_train)} sentences to train on, {len(X_valid)} held out, {len(tokens)} words"
)
print(f"For example: {train_sentences[0]}")

# %%
# A text VAE, and a loop that trains it
# -------------------------------------
# One GRU reads the sentence. Another writes it, and sees the words so far and the code
# at every step. Nothing here is made for skvaecert, and your own takes its place.


class TextVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(tokens), 64, padding_idx=0)
        self.encoder = nn.GRU(64, 128, batch_first=True)
        self.to_posterior = nn.Linear(128, 2 * LATENT_DIM)
        self.decoder = nn.GRU(64 + LATENT_DIM, 128, batch_first=True)
        self.to_logits = nn.Linear(128, len(tokens))

    def encode(self, x):
        hidden, _ = self.encoder(self.embedding(x))
        end = (x > 0).sum(dim=1) - 1
        return self.to_posterior(hidden[range(len(x)), end]).chunk(2, dim=1)

    def reconstruction(self, x, z):
        """-log p(x|z) of each sentence, in nats."""
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
        return self.reconstruction(x, z), kl, mean


def plain(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + kl.sum(dim=1).mean()


def train(vae, loss, n_epochs):
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    curves = []
    for epoch in range(n_epochs):
        losses = []
        for index in torch.randperm(len(X_train)).split(64):
            value = loss(vae, index, progress=epoch / n_epochs)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        curves.append((np.mean(losses), negative_elbo(vae, X_valid)))
    return curves


@torch.no_grad()
def negative_elbo(vae, x):
    reconstruction, kl, _ = vae(x)
    return (reconstruction + kl.sum(dim=1)).mean().item()


torch.manual_seed(SEED)
untrained = TextVAE()
vae = deepcopy(untrained)
curves = train(vae, plain, n_epochs=10)
for epoch in (1, 4, 7, 10):
    print("epoch {}: loss {:.1f}, held out {:.1f}".format(epoch, *curves[epoch - 1]))

# %%
# Has it collapsed?
# -----------------
# Both curves fall, as those of a healthy VAE do, and nothing in them tells that the
# decoder has become a language model without a code. The posteriors tell it.


def diagnose_vae(vae, **teacher):
    with torch.no_grad():
        mean, log_variance = vae.encode(X_valid)
    std = (log_variance / 2).exp()
    return diagnose(mean.numpy(), std.numpy(), random_state=0, **teacher)


print(diagnose_vae(vae))

# %%
# Six lines more
# --------------
# The teacher is a pipeline on strings: it finds ten topics, without labels. The
# alignment loss keeps the means of two sentences apart if their topics differ. Train on,
# from where it collapsed, with that term in the loss.

teacher = make_pipeline(
    TfidfVectorizer(min_df=2, sublinear_tf=True),
    TruncatedSVD(20, random_state=SEED),
    GMMTeacher(n_components=10, random_state=SEED),
).fit(train_sentences)
T_train, T_valid = map(teacher.predict_proba, (train_sentences, valid_sentences))
loss_fn = AlignmentLoss.from_teacher(teacher, train_sentences, LATENT_DIM)


def aligned(vae, index, progress, weight=10):
    reconstruction, kl, mean = vae(X_train[index])
    loss = reconstruction.mean() + kl.sum(dim=1).mean()
    return loss + weight * loss_fn(mean, T_train[index])


rescued = deepcopy(vae)
train(rescued, aligned, n_epochs=5)
print(diagnose_vae(rescued, teacher_proba=T_valid, witness=loss_fn))

# %%
# Beside what others do
# ---------------------
# Bowman et al. raised the weight of the KL term from 0 to 1 during the first half of
# training; free bits (`Kingma et al. 2016 <https://arxiv.org/abs/1606.04934>`_) leave the
# first quarter of a nat in every dimension without a price. All train as long as the
# rescued VAE did in all.


def annealed(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + min(1, 2 * progress) * kl.sum(dim=1).mean()


def free_bits(vae, index, progress):
    reconstruction, kl, _ = vae(X_train[index])
    return reconstruction.mean() + kl.mean(dim=0).clamp(min=0.25).sum()


vaes = {"plain, trained on": deepcopy(vae), "rescued": rescued}
train(vaes["plain, trained on"], plain, n_epochs=5)
for name, loss in {
    "aligned from the start": aligned,
    "KL annealing": annealed,
    "free bits": free_bits,
}.items():
    vaes[name] = deepcopy(untrained)
    train(vaes[name], loss, n_epochs=15)

# %%
# What it buys, and what it costs
# -------------------------------
# On the held-out sentences, in nats per sentence: what drawn codes carry (at least); the
# margin, what the fixed witness reads of the topics off the means; what a linear probe,
# fitted on codes of the training sentences, reads of the topics off drawn codes; and how
# much worse the decoder predicts a sentence if it is given the code of another one.
#
# The perplexity of a VAE is not known exactly: exp(-ELBO / number of words) is an upper
# bound, and ten draws in the place of one give a tighter one (`Burda et al. 2015
# <https://arxiv.org/abs/1509.00519>`_). The end of a sentence counts as a word, and so
# does the unknown word.


@torch.no_grad()
def draw(vae, x):
    """Draw a code z of each sentence, and log p(z) - log q(z|x)."""
    mean, log_variance = vae.encode(x)
    noise = torch.randn_like(mean)
    z = mean + (log_variance / 2).exp() * noise
    return z, (log_variance + noise.square() - z.square()).sum(dim=1) / 2


@torch.no_grad()
def figures(vae, n_draws=10):
    codes, log_ratios = zip(*[draw(vae, X_valid) for _ in range(n_draws)], strict=True)
    own = torch.stack([vae.reconstruction(X_valid, z) for z in codes])
    other = torch.stack([vae.reconstruction(X_valid, z.roll(1, 0)) for z in codes])
    log_weights = torch.stack(log_ratios) - own
    tighter = log_weights.logsumexp(dim=0) - np.log(n_draws)
    n_words = (X_valid[:, 1:] > 0).sum() / len(X_valid)
    probe = fit_linear(draw(vae, X_train)[0], T_train)
    return {
        "topic": collapse_margin(T_valid, probe.log_proba(codes[0])),
        "other code": (other - own).mean().item(),
        "ELBO": (-log_weights.mean() / n_words).exp().item(),
        "ten draws": (-tighter.mean() / n_words).exp().item(),
    }


results = {}
for name, one in vaes.items():
    found = diagnose_vae(one, teacher_proba=T_valid, witness=loss_fn)
    values = {"codes": found.information.low, "margin": found.mean.margin}
    results[name] = found, values | figures(one)

print(" " * 51 + "perplexity at most, by")
print(f"{'':34}", *(f"{name:>10}" for name in results["rescued"][1]), sep="")
for name, (found, values) in results.items():
    row = "".join(f"{value:10.2f}" for value in values.values())
    print(f"{name:23}{found.state:11}{row}")

# %%
# The picture
# -----------

figure = plt.figure(figsize=(11, 4.4), layout="constrained")
left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.5, 0.8])
for curve, label in zip(
    zip(*curves, strict=True), ("training", "held out"), strict=True
):
    left.plot(range(1, len(curves) + 1), curve, label=label)
left.set(xlabel="epoch", ylabel="-ELBO (nats per sentence)", title="It learns ...")
left.legend()
display = InformationBracketDisplay.from_diagnoses(
    {name: found for name, (found, _) in results.items()}, ax=middle
)
display.ax_.set_title("... and codes tell nothing, or they do")
for place, (_, values) in enumerate(results.values()):
    right.plot([values["ten draws"], values["ELBO"]], [-place] * 2, "o-", color="0.3")
right.set(ylim=middle.get_ylim(), yticks=[], xlabel="perplexity, at most")
right.set_title("by ten draws, and by the ELBO")
figure.savefig("text_vae.png", dpi=110)
print("Saved text_vae.png")
