"""
A search for a teacher
======================

How many components, on how many principal components, with which covariances? Searches
natural-image patches for the teacher with the most information on rows held out, draws
information against energy, and trains a VAE with the teacher that was found. Saves
``teacher_search.png``.
"""

import torch

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.datasets import load_patches
from skvaecert.plotting import TeacherSearchDisplay


def main(path="teacher_search.png"):
    torch.set_num_threads(1)  # nets this small run no faster on several
    train, test = (
        load_patches(n, size=8, subset=subset, random_state=0).data
        for n, subset in ((6000, "train"), (2000, "test"))
    )
    # No more components than the 16 latent dimensions have room for, which is 17.
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
    display = TeacherSearchDisplay.from_estimator(found)
    display.figure_.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
