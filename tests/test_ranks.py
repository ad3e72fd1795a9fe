"""Several processes that fit one guide: two of them, by torchrun and gloo."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import ranked
import torch
from pyro import poutine

from pyro_flows.infer.training.ranks import Ranks
from pyro_flows.infer.training.shards import Shard

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo"
)
SCRIPT = Path(ranked.__file__)
CASES = ("batches", "noise", "nan", "apart")


def started(folder, *arguments, restarts=0):
    """Run cases in two processes, and return what each of them found."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts), str(SCRIPT)]
    run = subprocess.run(
        [*command, *arguments, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [
        {case: json.loads((folder / f"{case}_{rank}.json").read_text()) for case in arguments}
        for rank in (0, 1)
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return started(tmp_path_factory.mktemp("ranks"), *CASES)


def test_two_processes_take_the_steps_of_one(found):
    """The same global batches: eight rows in one process, or four in each of two."""
    alone = ranked.trajectory(list(torch.arange(24).split(8)))
    for rank in found:
        assert rank["batches"]["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        for theirs, ours in zip(rank["batches"]["state"], alone["state"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-9)


def test_noise_and_rows_are_of_each_process_and_parameters_of_all(found):
    """FAULTS 78: flows that began apart are one; each process sees every other row."""
    first, second = (rank["noise"] for rank in found)
    for same in ("losses", "state", "k_hat"):
        assert first[same] == second[same] or math.isnan(first[same])
    assert set(first["rows"]) <= set(range(0, 23, 2))
    assert set(second["rows"]) <= set(range(1, 23, 2))
    assert len(first["rows"]) > 8
    assert len(second["rows"]) > 8


def test_step_that_is_not_finite_in_one_process_is_skipped_by_all(found):
    """FAULTS 77."""
    first, second = (rank["nan"] for rank in found)
    assert first == second
    assert (first["skipped"], first["losses"].count("nan")) == (1, 1)


def test_processes_that_come_apart_are_refused(found):
    for rank in found:
        assert "expected the same parameters in all 2 processes" in rank["apart"]["error"]


def test_run_goes_on_from_the_last_save_when_a_process_is_killed(tmp_path):
    """FAULTS 76: torchrun begins both again; they take the steps of a single one; one writes."""
    alone = ranked.trajectory(list(torch.arange(24).split(8)))
    for rank in started(tmp_path, "kill", restarts=1):
        assert rank["kill"]["first"] == 25
        assert rank["kill"]["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        assert [name for name in rank["kill"]["files"] if name.startswith("run")] == ["run"]


def subsampled(rows, num):
    with pyro.plate("rows", len(rows), subsample_size=num) as chosen:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=rows[chosen])


@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_a_plate_have_no_bias(size):
    """Where all members of each share are drawn, the mean is that of all, of 7 by 2 and by 3."""
    rows = torch.arange(7.0)
    wanted = dist.Normal(0.0, 1.0).log_prob(rows).sum()
    draws = []
    for rank in range(size):
        torch.manual_seed(rank)
        with Shard(rank, size):
            for _ in range(4000):
                trace = poutine.trace(subsampled).get_trace(rows, 2)
                draws.append(trace.log_prob_sum())
    draws = torch.stack(draws)
    error = draws.std() / math.sqrt(len(draws))
    assert abs(float(draws.mean() - wanted)) < 4 * float(error)


def test_plate_that_cannot_be_shared_out_and_second_plates_are_left():
    with Shard(0, 2):
        assert len(pyro.plate("few", 5, subsample_size=4)._indices) == 4
        assert set(pyro.plate("first", 6, subsample_size=3)._indices.tolist()) == {0, 2, 4}
        rows = {row for _ in range(50) for row in pyro.plate("b", 6, subsample_size=3)._indices}
        assert {int(row) for row in rows} == set(range(6))
        given = torch.tensor([1, 3])
        assert torch.equal(pyro.plate("own", 6, subsample=given)._indices, given)


def test_single_process_agrees_with_itself():
    ranks = Ranks("fit")
    loss, grads = torch.tensor(1.0), [torch.ones(3)]
    assert ranks.mean(loss, grads) == (loss, grads)
    assert ranks.from_first(lambda: 3) == 3
    assert ranks.any(True)
    assert not ranks.any(False)
