"""
Class labels as teacher
=======================

A teacher is any posterior over components that is never 0. Class labels become one by
smoothing: (1 - e) on the label and e spread over all. What the certificate then says is
about the classes: the encoder mean tells rows of different classes apart by so many
nats, of at most the entropy of the labels, less what smoothing took.

It needs labels of the rows it is asked about. Where there are none, a classifier that
was fitted before takes their place: it is a function of the row, as the mixture is. The
two answers differ, since one teacher knows the truth and the other an opinion. Saves
``label_teacher.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier

FLOOR = 0.05


def smoothed(labels, n_classes):
    return (1 - FLOOR) * np.eye(n_classes)[labels] + FLOOR / n_classes


def main(path="label_teacher.png"):
    torch.set_num_threads(1)  # nets this small run no faster on several
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)

    by_labels = CollapseCertifier(CertifiedVAE(random_state=0))
    by_labels.fit(X_train, teacher_proba=smoothed(y_train, 10))
    print("Labels:", by_labels.certify(X_test, teacher_proba=smoothed(y_test, 10)))

    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(X_train, y_train)
    teacher = FrozenEstimator(classifier)
    by_classifier = CollapseCertifier(CertifiedVAE(teacher, random_state=0))
    by_classifier.fit(X_train)
    print("Classifier:", by_classifier.certify(X_test))

    figure, axes = plt.subplots(1, 2, figsize=(8, 4), constrained_layout=True)
    named = zip(axes, ("labels", "classifier"), (by_labels, by_classifier), strict=True)
    for ax, name, certifier in named:
        log_proba = certifier.estimator_.witness_log_proba(X_test)
        read = [np.exp(log_proba[y_test == digit]).mean(axis=0) for digit in range(10)]
        image = ax.imshow(read, vmin=0, vmax=1)
        ax.set(title=f"taught by the {name}", xlabel="read off the latent mean")
        ax.set(ylabel="digit", xticks=range(10), yticks=range(10))
    figure.colorbar(image, ax=axes, label="average probability")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
