"""Loops of other libraries: six lines rescue a collapsed VAE."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import skvaecert

ROOT = Path(skvaecert.__file__).parents[1]
LOOPS = ROOT / "examples" / "loops"
SCRIPTS = [
    "distributed.py",
    "lightning_module.py",
    "plain.py",
    "pythae_vae.py",
    "skorch_net.py",
]
NUMBER = re.compile(r"  # (\d)$")
BROUGHT_BACK = ["Collapsed", "Certified", "Informative"]


def run(*arguments):
    """Run a command of Python; return what it printed."""
    paths = [str(ROOT), str(LOOPS), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(output):
    """Return the first word of each answer, all of them on held-out samples."""
    answers = output.splitlines()
    assert all(" these 719 samples" in answer for answer in answers), output
    return [re.match(r"[\w ]+", answer)[0] for answer in answers]


@pytest.mark.parametrize("name", SCRIPTS)
def test_six_lines_are_all_that_the_second_training_has_more(name):
    lines = [line.strip() for line in (LOOPS / name).read_text().splitlines()]
    asked = [i for i, line in enumerate(lines) if "print(" in line]
    first, second = lines[: asked[0]], lines[asked[0] :]
    second = second[1 : second.index("teacher = FrozenEstimator(teacher)", 1)]
    numbered = [NUMBER.search(line)[1] for line in second if NUMBER.search(line)]
    assert numbered == list("123456")
    others = [line for line in second if not NUMBER.search(line)]
    # Except for the name of a class, and weights that are passed between classes.
    new = [line for line in others if line not in first and "Aligned" not in line]
    assert new in ([], ["vae.load_state_dict(collapsed.state_dict())"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.py", "pythae_vae.py", "skorch_net.py"])
def test_a_collapsed_vae_is_brought_back(name):
    if name == "pythae_vae.py":
        pytest.importorskip("pythae")
    assert said(run(LOOPS / name)) == BROUGHT_BACK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("loss = loss + guard(loss_fn(mean, posterior))", "pass"),
        ("guard(loss_fn(mean, posterior))", "guard(loss_fn(mean, posterior.flip(0)))"),
    ],
    ids=["without the loss", "with the posteriors of other samples"],
)
def test_it_stays_collapsed(line, instead):
    source = (LOOPS / "plain.py").read_text()
    assert source.count(line) == 1
    answers = said(run("-c", source.replace(line, instead)))
    assert answers == ["Collapsed", "Varies", "Collapsed"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The output of two processes, and the results that each of them writes."""
    path = tmp_path_factory.mktemp("ranks") / "results.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run(*launcher, Path(__file__).with_name("two_ranks.py"), path)
    return output, *json.loads(path.read_text())


@pytest.mark.slow
def test_two_processes_bring_it_back(results):
    output, *both = results
    assert said(output) == BROUGHT_BACK
    for rank in both:
        assert rank["same weights"]
        # Each has updated it by a batch of its own; the next step begins with one.
        assert not rank["same guard after a step"]
        assert rank["same guard in the next"]


@pytest.mark.slow
def test_posteriors_stay_with_their_samples_on_two_processes(results):
    _, *both = results
    assert all(rank["posteriors belong"] for rank in both)
    ours, theirs = (set(map(tuple, rank["seen"])) for rank in both)
    assert len(ours | theirs) == 1078
    assert len(ours & theirs) < 3


@pytest.mark.slow
def test_two_shares_have_the_gradient_of_the_batch(results):
    _, *both = results
    for gradients in (rank["gradients"] for rank in both):
        batch = np.array(gradients["batch"])
        size = np.abs(batch).max()
        for where in ("outside", "inside"):
            assert np.abs(gradients[where] - batch).max() < 1e-5 * size
        assert np.abs(gradients["share"] - batch).max() > 0.01 * size
