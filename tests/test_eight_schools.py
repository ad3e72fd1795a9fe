"""Eight schools, both forms, against posteriordb's reference draws; and the scripts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_flows as pf
from benchmarks.posteriors.measures import errors
from benchmarks.posteriors.models import eight_schools_centered, eight_schools_noncentered
from benchmarks.posteriors.posterior import load, spread
from benchmarks.posteriors.posteriordb import default_root

NONCENTERED, CENTERED = eight_schools_noncentered.POSTERIOR, eight_schools_centered.POSTERIOR
ROOT = Path(__file__).resolve().parents[1]
needs_reference = pytest.mark.skipif(
    not default_root().exists(),
    reason="no posteriordb: set POSTERIORDB to the folder of a clone",
)


def errors_of(guide, posterior, args, reference):
    """Compare 20,000 draws, by way of ArviZ, with the reference draws."""
    idata = pf.to_arviz(
        posterior.model,
        guide,
        *args,
        num_draws=20_000,
        predictive=False,
        log_likelihood=False,
        seed=1,
    )
    draws = {
        name: torch.as_tensor(idata["posterior"][name].values[0])
        for name in ("mu", "tau", "theta")
    }
    return errors({name: x.numpy() for name, x in spread(draws).items()}, reference)


def loaded(posterior):
    raw, reference = load(posterior, default_root())
    return tuple(values.float() for values in posterior.data(raw)), reference


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("posterior", [NONCENTERED, CENTERED], ids=["noncentered", "centered"])
def test_defaults_meet_the_reference_draws(posterior, seed):
    args, reference = loaded(posterior)
    guide = pf.AutoFlow(posterior.model)
    pf.fit(posterior.model, guide, *args, seed=seed, progress=False)
    found = errors_of(guide, posterior, args, reference)
    assert found.worst_mean <= 0.1
    assert found.worst_sd <= 0.15


@needs_reference
def test_short_fit_is_close_to_the_reference_draws():
    args, reference = loaded(NONCENTERED)
    model = NONCENTERED.model
    guide = pf.AutoFlow(model, lambda d: pf.flows.realnvp(d, num_transforms=4))
    pf.fit(model, guide, *args, steps=200, particles=128, seed=0, progress=False)
    found = errors_of(guide, NONCENTERED, args, reference)
    assert found.worst_mean <= 0.15
    assert found.worst_sd <= 0.2


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_demo_ends_well_and_writes_its_files(tmp_path):
    code, said = run(ROOT / "tutorials" / "eight_schools.py", "--out", tmp_path)
    assert code == 0, said
    names = {"eight_schools.nc", "loss.png", "pair.png", "forest.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for word in ("theta[7]", "reference mean", "k-hat", "the posterior is right"):
        assert word in said


def test_inverse_benchmark_runs():
    script = ROOT / "benchmarks" / "maf_inverse.py"
    _, said = run(script, "--dim", 4, "--points", 50, "--repeats", 1)
    assert "sampling / scoring" in said
