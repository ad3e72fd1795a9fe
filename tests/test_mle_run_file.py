"""Maximum-likelihood runs in a file, continued bit for bit."""

import logging

import numpy as np
import pytest
import torch
from fits import same

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.density import fit_mle
from pyro_flows.density.objectives import Likelihood
from pyro_flows.transforms import ActNorm, ElementwiseAffine

# Of 100 rows, 90 are trained on: five steps an epoch, with ten rows left over by each.
STEPS_PER_EPOCH, EPOCHS = 5, 4
STEPS = STEPS_PER_EPOCH * EPOCHS


def rows(dtype=torch.float32, num=100, columns=2):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(num, columns, generator=generator) * 2 + 1).to(dtype)


def stop_at(step):
    return lambda info: info.step == step


class Noisy(pf.Flow):
    """A flow that draws at each scoring, as one that dequantises would."""

    def log_prob(self, value):
        return super().log_prob(value + 0.01 * torch.rand_like(value))


def made(kind, dtype):
    """Return a flow from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "context":
            return pf.flows.realnvp(2, num_transforms=2, context_dim=1).to(dtype)
        parts = [pf.transforms.AffineCoupling(2), pf.transforms.Permute.reversal(2)]
        if kind == "actnorm":
            parts.append(ActNorm(2))
        if kind == "frozen":
            loc = torch.randn(2)
            parts.append(ElementwiseAffine(2, loc=loc).requires_grad_(False))
        return (Noisy if kind == "noise" else pf.Flow)(parts).to(dtype)


# What differs from a plain fit.
CASES = {
    "plain": {},
    "context": {"context": rows()[:, :1]},
    "actnorm": {},
    "frozen": {},
    "noise": {},
    "no rows held out": {"validation": None},
    "rows held out that are given": {"validation": rows(num=30)},
    "momentum": {"optimizer": lambda t: torch.optim.SGD(t, lr=1e-3, momentum=0.9)},
    "decay": {"weight_decay": 0.1},
}


def run(case="plain", dtype=torch.float32, stop=None, **options):
    """Fit from the global random state; return all that a fit leaves behind."""
    flow = made(case, dtype)
    options = {"epochs": EPOCHS, "batch_size": 16, "engine": "eager", **CASES[case], **options}
    options = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    infos = []
    options["callbacks"] = [infos.append, *([] if stop is None else [stop_at(stop)])]
    result = fit_mle(flow, rows(dtype), lr=0.01, progress=False, **options)
    return {
        "losses": result.losses.tolist(),
        "validation": result.validation.tolist(),
        "chosen": (result.state, result.nll, result.status, result.epochs, result.steps),
        "steps": [(info.step, info.lr, info.loss, info.norm) for info in infos],
        "flow": [tensor.clone() for tensor in flow.state_dict().values()],
        "draws": torch.rand(3).tolist(),
    }


def assert_equal_runs(whole, resumed, stop=0):
    for key in ("losses", "validation", "chosen", "draws"):
        assert whole[key] == resumed[key], key
    assert whole["steps"][stop:] == resumed["steps"]
    assert same(whole["flow"], resumed["flow"])


def in_two_parts(case, path, stop, **options):
    torch.manual_seed(5)
    run(case, stop=stop, checkpoint=path, **options)
    torch.manual_seed(99)
    return run(case, checkpoint=path, resume=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_run_in_two_parts_is_the_run_in_one(case, tmp_path):
    """FAULTS 69, 70: broken within an epoch; split, order of the rows and noise are the same."""
    torch.manual_seed(5)
    whole = run(case)
    if case != "no rows held out":
        assert len(whole["losses"]) == {"rows held out that are given": 24}.get(case, STEPS)
    assert_equal_runs(whole, in_two_parts(case, tmp_path / "run", 8), 8)


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["plain", "context"])
def test_run_in_two_parts_on_other_rungs_and_in_other_precision(case, engine, dtype, tmp_path):
    """FAULTS 69: broken when the average has begun."""
    options = {"engine": engine, "dtype": dtype}
    torch.manual_seed(5)
    whole = run(case, **options)
    assert_equal_runs(whole, in_two_parts(case, tmp_path / "run", 17, **options), 17)


@pytest.mark.parametrize("stops", [(1, 2, 3), (5, 10, 20), (4, 6, 19)])
def test_run_in_many_parts(stops, tmp_path):
    """FAULTS 69: also where a part ends with an epoch, or with the run."""
    path = tmp_path / "run"
    torch.manual_seed(5)
    whole = run()
    torch.manual_seed(5)
    for stop in stops:
        run(stop=stop, checkpoint=path, resume=True)
        torch.manual_seed(stop)
    assert_equal_runs(whole, run(checkpoint=path, resume=True), max(stops))


def test_every_row_of_an_epoch_is_met_once_across_a_break(tmp_path):
    """FAULTS 69: a resumed epoch neither repeats rows nor takes another order."""
    seen = []

    class Recording(pf.Flow):
        def log_prob(self, value):
            if self.training:
                seen.append(value.detach().clone())
            return super().log_prob(value)

    def epochs(**options):
        flow = Recording(ElementwiseAffine(2))
        fit_mle(flow, rows(), validation=None, epochs=2, batch_size=20, engine="eager", **options)

    options = {"progress": False, "checkpoint": tmp_path / "run"}
    torch.manual_seed(5)
    epochs(**options, callbacks=[stop_at(3)])
    torch.manual_seed(6)
    epochs(**options, resume=True)
    met = torch.cat(seen)
    assert len(met) == 200
    for epoch in met.split(100):
        assert len(epoch.unique(dim=0)) == 100
    assert not torch.equal(met[:100], met[100:])


@pytest.mark.parametrize("seed", [None, 7])
def test_run_whose_patience_ran_out_takes_no_further_step(seed, tmp_path):
    """FAULTS 69."""
    options = {"epochs": 400, "patience": 3, "seed": seed, "checkpoint": tmp_path / "run"}
    torch.manual_seed(5)
    whole = run(**options)
    assert whole["chosen"][2] == "converged"
    torch.manual_seed(99)
    again = run(**options, resume=True)
    if seed is not None:
        # A seeded run leaves the global random state alone.
        torch.manual_seed(5)
        again["draws"] = whole["draws"]
    assert again["steps"] == []
    assert_equal_runs({**whole, "steps": []}, again)


def test_steps_that_were_skipped_are_remembered(tmp_path):
    """FAULTS 48, 69."""

    class Bad(pf.Flow):
        def log_prob(self, value):
            self.calls = getattr(self, "calls", 0) + self.training
            return super().log_prob(value) * (np.nan if self.calls == 3 else 1.0)

    options = {"epochs": 4, "validation": None, "engine": "eager", "progress": False, "seed": 0}
    options |= {"checkpoint": tmp_path / "run", "batch_size": 25}
    data = rows()
    fit_mle(Bad(ElementwiseAffine(2)), data, callbacks=[stop_at(6)], **options)
    flow = Bad(ElementwiseAffine(2))
    flow.calls = 6
    result = fit_mle(flow, data, resume=True, **options)
    assert (result.steps, result.skipped_steps) == (16, 1)
    assert np.isnan(result.losses).tolist() == [k == 2 for k in range(16)]


def test_run_of_a_machine_with_a_gpu_goes_on_without_one(tmp_path, caplog):
    """FAULTS 70, 72: its tensors lie on the CPU, and its GPU's random state is told of."""
    path = tmp_path / "run"
    torch.manual_seed(5)
    whole = run()
    torch.manual_seed(5)
    run(stop=8, checkpoint=path)
    found = read_checkpoint(path, kind=Likelihood.kind)
    found.tensors["random/cuda/0"] = torch.zeros(16, dtype=torch.uint8)
    write_checkpoint(path, found.tensors, found.record, kind=Likelihood.kind)
    if not torch.cuda.is_available():
        assert_equal_runs(whole, run(checkpoint=path, resume=True), 8)
        assert "found 0 CUDA devices where the state is of 1" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_run_goes_on_on_another_device(devices, tmp_path):
    """FAULTS 72: within the average, whose states move as well."""
    steps = []
    for device, stop in zip(devices, (17, None), strict=True):
        flow = made("actnorm", torch.float32).to(device)
        options = {"checkpoint": tmp_path / "run", "resume": True, "epochs": EPOCHS, "seed": 0}
        options |= {"callbacks": [] if stop is None else [stop_at(stop)], "progress": False}
        result = fit_mle(flow, rows().to(device), batch_size=16, **options)
        assert {p.device.type for p in flow.parameters()} == {device}
        steps.append(result.steps)
    assert steps == [17, STEPS]


def test_without_a_file_a_run_begins_anew(tmp_path, caplog):
    """FAULTS 69."""
    caplog.set_level(logging.INFO, logger="pyro_flows")
    torch.manual_seed(5)
    whole = run()
    torch.manual_seed(5)
    assert_equal_runs(whole, run(checkpoint=tmp_path / "run", resume=True))
    assert "fit_mle: there is no" in caplog.text
    assert (tmp_path / "run").is_file()


@pytest.mark.parametrize(("every", "saves"), [(1e-9, [0, 1, 2, 3]), (1e9, [0, 0, 0, 0])])
def test_run_is_saved_every_so_many_seconds(every, saves, tmp_path):
    path, seen = tmp_path / "run", []

    def look(info):
        found = path.exists() and read_checkpoint(path, kind=Likelihood.kind).tensors["losses"]
        seen.append(0 if found is False else len(found))

    options = {"checkpoint": path, "checkpoint_every": every, "callbacks": [look], "epochs": 2}
    fit_mle(pf.Flow(ElementwiseAffine(2)), rows(), batch_size=45, progress=False, **options)
    assert seen == saves
    assert len(read_checkpoint(path, kind=Likelihood.kind).tensors["losses"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
