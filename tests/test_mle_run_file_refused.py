"""Files of maximum-likelihood runs that are refused, and leave the flow as it was."""

import json
import math
import os

import faults
import pytest
import torch
from fits import guide_for, have_their_own_memory, same
from models import normal_data, normal_model

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.density import fit_mle
from pyro_flows.density.objectives import Likelihood
from pyro_flows.errors import CheckpointError
from pyro_flows.transforms import ActNorm, AffineCoupling, ElementwiseAffine

OPTIONS = {"epochs": 4, "batch_size": 25, "engine": "eager", "progress": False, "seed": 0}


def rows(seed=0, num=100, columns=2):
    return torch.randn(num, columns, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def flow_of(seed=0, columns=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pf.Flow([AffineCoupling(columns), ActNorm(columns)])


@pytest.fixture
def saved(tmp_path):
    """Return the file of a run of 5 of 12 steps."""
    stop = [lambda info: info.step == 5]
    fit_mle(flow_of(), rows(), checkpoint=tmp_path / "run", callbacks=stop, **OPTIONS)
    return tmp_path / "run"


def assert_refused(path, words, flow=None, data=None, **options):
    """Resume; nothing of the flow must have changed after the refusal."""
    flow = flow_of(seed=1) if flow is None else flow
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    options = {**OPTIONS, "checkpoint": path, "resume": True, "seed": None, **options}
    with pytest.raises(CheckpointError, match=words) as caught:
        fit_mle(flow, rows() if data is None else data, **options)
    assert str(path) in str(caught.value)
    assert same(list(before.values()), list(flow.state_dict().values()))
    assert have_their_own_memory(flow)


@pytest.mark.parametrize("part", range(8))
def test_damaged_file_is_refused(part, saved):
    """FAULTS 68."""
    faults.flip_bit(saved, part * saved.stat().st_size // 8 + 3, part)
    assert_refused(saved, "^read_checkpoint: expected .*; got")


def test_foreign_files_are_refused(saved):
    """FAULTS 71, 79: that of a fit of a guide among them, which refuses that of a density."""
    y = normal_data()
    guide = guide_for(normal_model, y)
    with pytest.raises(
        CheckpointError, match=r"of kind 'run' in .*; got one of kind 'maximum-lik"
    ):
        pf.fit(normal_model, guide, y, steps=2, checkpoint=saved, resume=True, progress=False)
    pf.fit(normal_model, guide, y, steps=2, checkpoint=saved, progress=False)
    assert_refused(saved, "of kind 'maximum-likelihood run' in .*; got one of kind 'run'")
    torch.save({}, saved)
    assert_refused(saved, "never loaded, since it can run code")


OTHER_OPTIONS = {
    "epochs": (5, "epochs=4 for 5"),
    "batch_size": (20, "batch_size=25 for 20"),
    "lr": (0.5, r"lr=0\.002 for 0\.5"),
    "weight_decay": (0.5, r"weight_decay=0\.0 for 0\.5"),
    "patience": (None, "patience=30 for None"),
    "clip_norm": (1.0, r"clip_norm=10\.0 for 1\.0"),
    "validation": (0.2, r"validation=0\.1 for 0\.2"),
    "optimizer": (lambda t: torch.optim.SGD(t, lr=0.1), r"optimizer='FlatAdam\(\)' for 'SGD\("),
}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_run_with_other_options_is_refused(name, saved):
    """FAULTS 71: with both values."""
    value, words = OTHER_OPTIONS[name]
    assert_refused(saved, rf"with the same options in .*; got .*{words}", **{name: value})


def test_run_of_other_data_is_refused(saved):
    """FAULTS 71: of other sizes, or of the same."""
    sizes = r"data='100 x 2 float32 numbers, SHA-256 \w{16}\.\.\.' for "
    assert_refused(saved, sizes + "'99 x 2 float32", data=rows()[:99])
    assert_refused(saved, sizes + "'100 x 2 float32", data=rows(seed=1))
    assert_refused(saved, r"validation=0\.1 for \['9 x 2 float32", validation=rows()[:9])


def test_run_of_another_flow_is_refused(saved):
    """FAULTS 71: both are named."""
    other = pf.Flow([ElementwiseAffine(2), ActNorm(2)])
    assert_refused(saved, r"flow='Flow\(.*AffineCoupling.*' for 'Flow\(.*Elementwise", flow=other)
    frozen = flow_of()
    frozen.transform.parts[0].requires_grad_(False)
    assert_refused(saved, r"missing: 'frozen/flow\.transform.*unexpected: 'param", flow=frozen)
    wider = flow_of().double()
    assert_refused(saved, "data=.* float32 .* for .* float64", wider, rows().double())


def test_weights_that_are_not_finite_are_refused(saved):
    """FAULTS 73."""
    found = read_checkpoint(saved, kind=Likelihood.kind)
    found.tensors["parameters/transform.parts.1.transform.loc"][0] = math.nan
    write_checkpoint(saved, found.tensors, found.record, kind=Likelihood.kind)
    assert_refused(saved, r"NaN or infinite entries: 1 of 2 in 'parameters/transform\.parts\.1")


UNFIT = {
    "no random state to split in": lambda t, r: t.pop("beginning"),
    "another random state to split in": lambda t, r: t.update(beginning=torch.zeros(3)),
    "no scores": lambda t, r: r["watched"].clear(),
    "scores that are none": lambda t, r: r["watched"]["held_out"].update(scores="none"),
    "a best state too small": lambda t, r: t.update({"watched/held_out/0": torch.zeros(2)}),
    "no losses": lambda t, r: t.pop("losses"),
    "another schedule": lambda t, r: r["loop"]["schedule"].update(steps=-1),
    "a torch state of zeros": lambda t, r: t.update({"random/cpu": t["random/cpu"] * 0}),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_run_of_another_making_is_refused_and_nothing_is_taken_over(change, saved):
    """FAULTS 71: whatever a later release may write, or leave out."""
    found = read_checkpoint(saved, kind=Likelihood.kind)
    change(found.tensors, found.record)
    write_checkpoint(saved, found.tensors, found.record, kind=Likelihood.kind)
    assert_refused(saved, "^(fit_mle|beginning_of): expected a (run|random state)")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resume": True}, pf.DomainError, "a path as checkpoint, to resume from"),
        ({"checkpoint": 3}, pf.DomainError, "checkpoint to be a path"),
        ({"checkpoint": "run", "checkpoint_every": 0}, pf.DomainError, "checkpoint_every"),
        ({"checkpoint": "nowhere/run"}, CheckpointError, "fit_mle: .*no directory 'nowhere'"),
        ({"callbacks": print}, pf.DomainError, "callbacks to be a list of functions"),
        ({"optimizer": 3}, pf.DomainError, "optimizer to be a function"),
    ],
)
def test_what_cannot_be_saved_in_is_refused_at_once(options, error, words):
    flow = flow_of()
    with pytest.raises(error, match=words):
        fit_mle(flow, rows(), **OPTIONS, **options)
    assert have_their_own_memory(flow)


PROCESS = """
import json, os, signal, sys
import faults, torch
import pyro_flows as pf
from pyro_flows.density import fit_mle
torch.set_num_threads(int(sys.argv[2]))
rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
def run(**options):
    torch.manual_seed(0)
    flow = pf.flows.realnvp(2, num_transforms=2)
    options = {"epochs": 3, "batch_size": 50, "engine": "eager", "progress": False, **options}
    result = fit_mle(flow, rows, seed=5, **options)
    return [x.hex() for x in [*result.losses.tolist(), *result.validation.tolist(), result.nll]]
whole = run()
assert run() == whole
if not os.path.exists(sys.argv[1]):
    ended = lambda: run(checkpoint=sys.argv[1], callbacks=[faults.signal_at(10, signal.SIGTERM)])
    assert faults.death(faults.forked(ended)) == signal.SIGTERM
else:
    assert run(checkpoint=sys.argv[1], resume=True) == whole
print(json.dumps(whole))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_process_that_is_asked_to_end_saves_first_and_another_goes_on(tmp_path):
    """FAULTS 63, 69, 74: a new process, on two threads, ends like one that never stopped."""
    one = faults.run_script(PROCESS, tmp_path / "run", 1)
    assert len(read_checkpoint(tmp_path / "run", kind=Likelihood.kind).tensors["losses"]) == 10
    assert faults.run_script(PROCESS, tmp_path / "run", 2) == one
    assert len(json.loads(one)) == 7 * 3 + 3 + 1
