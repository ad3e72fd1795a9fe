"""Eight schools, both forms, against posteriordb's reference draws; and the scripts."""

import subprocess
import sys
from pathlib import Path

import pytest
from _eight_schools import REFERENCE, SIGMA, Y, centered, noncentered, posterior_draws
from _posteriordb import default_root, discrepancies, reference_draws

import pyro_flows as pf

ROOT = Path(__file__).resolve().parents[1]
needs_reference = pytest.mark.skipif(
    not default_root().exists(),
    reason="no posteriordb: set POSTERIORDB to the folder of a clone",
)


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", [noncentered, centered])
def test_defaults_meet_the_reference_draws(model, seed):
    guide = pf.AutoFlow(model)
    pf.fit(model, guide, Y, SIGMA, seed=seed, progress=False)
    draws = posterior_draws(model, guide, 20_000)
    mean_error, log_sd_ratio = discrepancies(draws, reference_draws(default_root(), REFERENCE))
    assert mean_error <= 0.1
    assert log_sd_ratio <= 0.15


@needs_reference
def test_short_fit_is_close_to_the_reference_draws():
    guide = pf.AutoFlow(noncentered, lambda d: pf.flows.realnvp(d, num_transforms=4))
    pf.fit(noncentered, guide, Y, SIGMA, steps=200, particles=128, seed=0, progress=False)
    draws = posterior_draws(noncentered, guide, 20_000)
    mean_error, log_sd_ratio = discrepancies(draws, reference_draws(default_root(), REFERENCE))
    assert mean_error <= 0.15
    assert log_sd_ratio <= 0.2


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
