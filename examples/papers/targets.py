"""Fixed targets from three teachers (arXiv:2605.05813, Tiny-ImageNet protocol)."""

from lab import SCALES
from prevention import PREVENTION, phases

N_TEACHERS = 3


def cells(setting):
    """One cell a teacher and scale; samples and networks have seed 0."""
    return [{"scale": s, "teacher": i} for i in range(N_TEACHERS) for s in SCALES]


def compute(lab, scale, teacher):
    """Search a teacher, keep its posteriors, and train on those."""
    samples = lab.samples(0)
    found = lab.teacher(teacher).fit(samples.train)
    targets = found.predict_proba(samples.train), found.predict_proba(samples.test)
    vaes = [lab.vae(samples, scale, 0, aligned=on) for on in (True, False)]
    return phases(lab, samples, vaes, {"scale": scale, "teacher": teacher}, targets)


TARGETS = PREVENTION._replace(
    name="targets",
    title="Fixed targets from three teachers that were searched one by one",
    cells=cells,
    compute=compute,
)
