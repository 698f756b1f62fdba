"""
A search for a teacher
======================

How many components should the teacher's mixture have, on how many principal components
of the data, and with which type of covariance? This example tries 64 combinations on
patches of photographs. The search takes the teacher that has the most information about
held-out patches. A VAE is then trained with this teacher. The example saves
``teacher_search.png``.
"""

import torch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.plotting import TeacherSearchDisplay

torch.set_num_threads(1)  # networks this small run no faster on several
train = load_patches(6000, size=8, subset="train", random_state=0).data
test = load_patches(2000, size=8, subset="test", random_state=0).data

# %%
# Search and train
# ----------------
# Lists of parameters make a grid. The witness needs K - 1 latent dimensions for K
# components, so the 16 dimensions of this VAE allow at most 17 components.

teacher = GMMTeacher(
    n_components=[3, 5, 10, 17],
    pca_components=[4, 8, 16, 32],
    covariance_type=["full", "tied", "diag", "spherical"],
    n_init=3,
    verbose=1,
)
vae = CertifiedVAE(teacher, max_epochs=60, random_state=0)
certifier = CollapseCertifier(vae).fit(train)

found = certifier.teacher_
results = found.search_results_
names = ("n_components", "pca_components", "covariance_type", "information")
for index in results["rank"].argsort()[:5]:
    print(*(f"{name} {results[name][index]!s:<9.9}" for name in names))
print(certifier.certify(test))

# %%
# The picture
# -----------
# Each dot is a teacher. Here, more components have more information. The energy is what
# it costs the code to reproduce the teacher. Restarts agree if they find the same
# clusters. All 64 teachers are admissible: their energy fits the budget, and their
# restarts agree well enough.

display = TeacherSearchDisplay.from_estimator(found)
ax = display.ax_
for n_components in (3, 5, 10, 17):
    its = results["n_components"] == n_components
    place = results["energy"][its].max() + 0.7, results["information"][its].mean()
    ax.annotate(f"{n_components} components", place, va="center")
ax.set(
    xlim=(0, 44),
    xlabel="energy: the cost of reproducing the teacher (nats, witness scale 1)",
)
display.figure_.suptitle(
    "Of 64 teachers, the search takes the one with the most information"
)
display.figure_.savefig("teacher_search.png", dpi=110)
print("Saved teacher_search.png")
