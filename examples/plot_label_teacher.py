"""
Class labels as teacher
=======================

A teacher gives each sample a probability for each component, and none of them is 0.
Smoothing makes class labels a teacher: the label gets the probability 1 - e, and e is
spread over all classes. The certificate is then about the classes. The margin says by
how many nats the witness predicts the labels better than any constant mean could. At
most it is the entropy of the labels, less what smoothing takes.

Such a certificate needs the labels of the samples that it is about. Where there are no
labels, a fitted classifier can be the teacher, as its probabilities are a function of
the sample. The two certificates differ: the labels are true, and the classifier may be
wrong. The example saves ``label_teacher.png``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skvaecert import CertifiedVAE, CollapseCertifier

torch.set_num_threads(1)  # networks this small run no faster on several
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)

# %%
# Labels
# ------
# The smoothed labels are passed as ``teacher_proba``, to ``fit`` and to ``certify``.

FLOOR = 0.05


def smoothed(labels, n_classes=10):
    return (1 - FLOOR) * np.eye(n_classes)[labels] + FLOOR / n_classes


by_labels = CollapseCertifier(CertifiedVAE(random_state=0))
by_labels.fit(X_train, teacher_proba=smoothed(y_train))
print("Labels:", by_labels.certify(X_test, teacher_proba=smoothed(y_test)))

# %%
# A classifier
# ------------
# ``FrozenEstimator`` keeps the classifier as it was fitted.

classifier = LogisticRegression(C=0.1, max_iter=1000).fit(X_train, y_train)
teacher = FrozenEstimator(classifier)
by_classifier = CollapseCertifier(CertifiedVAE(teacher, random_state=0)).fit(X_train)
print("Classifier:", by_classifier.certify(X_test))

# %%
# The picture
# -----------
# A line is about the held-out digits of a class. It shows the probabilities that the
# witness reads off their latent means, averaged over these digits.

figure, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
certifiers = {"labels": by_labels, "classifier": by_classifier}
for ax, (name, certifier) in zip(axes, certifiers.items(), strict=True):
    log_proba = certifier.estimator_.witness_log_proba(X_test)
    read = [np.exp(log_proba[y_test == digit]).mean(axis=0) for digit in range(10)]
    image = ax.imshow(read, vmin=0, vmax=1, cmap="Blues")
    ax.set(title=f"teacher: {name}", xlabel="class that the witness reads")
    ax.set(ylabel="class of the digit", xticks=range(10), yticks=range(10))
figure.colorbar(image, ax=axes, label="average probability")
figure.suptitle("The witness reads the class off the latent mean, with either teacher")
figure.savefig("label_teacher.png", dpi=110)
print("Saved label_teacher.png")
