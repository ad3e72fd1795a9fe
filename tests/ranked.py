"""What the processes of one run do; started by torchrun, and imported for a single one.

python -m torch.distributed.run --standalone --nproc-per-node 2 ranked.py CASE ... FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta

import pyro_flows as pf

ROWS = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64)
QUICK = {"engine": "eager", "progress": False, "stop_early": False, "refine": False}
RANK = int(os.environ.get("RANK", "0"))


def model(rows):
    """A mean and a scale, of some rows of all."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=ROWS.dtype), 3.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=ROWS.dtype), 1.0))
    with pyro.plate("rows", len(ROWS), subsample=rows):
        pyro.sample("y", dist.Normal(mean, scale), obs=ROWS[rows])


def subsampled(seen=None):
    """The same, of rows that the plate draws; one row less, which two do not divide."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=ROWS.dtype), 3.0))
    with pyro.plate("rows", len(ROWS) - 1, subsample_size=5) as rows:
        if seen is not None:
            seen += rows.tolist()
        pyro.sample("y", dist.Normal(mean, 1.0), obs=ROWS[rows])


def trajectory(batches, steps=40, **options):
    """Fit a guide that draws nothing, so that only the batches matter."""
    pyro.clear_param_store()
    pyro.set_rng_seed(RANK)
    guide = AutoDelta(model)
    options = {"steps": steps, "particles": 1, "lr": 0.05, **QUICK, **options}
    result = pf.fit(model, guide, batches=batches, **options)
    state = [p.detach().flatten().tolist() for p in guide.parameters()]
    return {"losses": result.losses.tolist(), "state": state, "elbo": result.elbo}


def of_batches():
    """Take every other batch of eight, in groups that a single process has in one batch."""
    return trajectory([rows for eight in torch.arange(24).split(8) for rows in eight.split(4)])


def of_noise():
    """Fit a flow: each process has noise of its own, and all have the same parameters."""
    pyro.clear_param_store()
    torch.manual_seed(RANK)
    guide, seen, taken = pf.AutoFlow(subsampled, "planar", start="prior"), [], []

    def note(info):
        taken.append(len(seen))

    result = pf.fit(subsampled, guide, seen, steps=30, particles=4, callbacks=[note], **QUICK)
    state = [p.detach().flatten().tolist() for p in guide.parameters()]
    rows = sorted(set(seen[taken[0] : taken[-1]]))
    return {"losses": result.losses.tolist(), "state": state, "rows": rows, "k_hat": result.k_hat}


def of_nan():
    """One process meets a NaN in its seventh step."""
    calls = []

    def broken(rows):
        calls.append(1)
        model(rows)
        pyro.factor("fault", torch.tensor(float("nan") if RANK == 1 and len(calls) == 12 else 0.0))

    pyro.clear_param_store()
    guide = AutoDelta(broken)
    batches = [torch.arange(4), torch.arange(4, 8)]
    result = pf.fit(broken, guide, batches=batches, steps=20, particles=1, **QUICK)
    return {"losses": [str(x) for x in result.losses], "skipped": result.skipped_steps}


def of_apart():
    """A callback of one process changes a parameter."""
    pyro.clear_param_store()
    guide = AutoDelta(model)

    def meddle(info):
        if RANK == 1 and info.step == 50:
            with torch.no_grad():
                next(guide.parameters()).add_(1e-6)

    batches = [torch.arange(4), torch.arange(4, 8)]
    try:
        pf.fit(model, guide, batches=batches, steps=150, particles=1, callbacks=[meddle], **QUICK)
    except pf.FlowError as error:
        return {"error": str(error)}
    return {"error": ""}


def of_kill(folder):
    """One process is killed within its 25th step, and all begin again from the last save."""
    taken = []
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def note(info):
        taken.append(info.step)
        if first and RANK == 1 and info.step == 25:
            os.kill(os.getpid(), signal.SIGKILL)

    batches = list(torch.arange(24).split(4))
    saving = {"checkpoint": folder / "run", "checkpoint_every": 1e-9, "resume": True}
    found = trajectory(batches, callbacks=[note], **saving)
    return {**found, "first": taken[0], "files": os.listdir(folder)}


def main():
    """Run the cases in turn, and write what each process found."""
    *cases, folder = sys.argv[1:]
    folder = Path(folder)
    for case in cases:
        found = of_kill(folder) if case == "kill" else globals()[f"of_{case}"]()
        (folder / f"{case}_{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
