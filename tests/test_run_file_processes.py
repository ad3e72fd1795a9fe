"""Fits in processes of their own: killed, interrupted, asked to end, repeated."""

import json
import math
import os
import signal

import faults
import pytest

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")

SETUP = """
import json, os, random, signal, sys, time
from pathlib import Path
import faults, torch
from fits import fit, guide_for, have_their_own_memory
from models import normal_data, normal_model
from pyro_flows.checkpoint import read_checkpoint
path, y = Path(sys.argv[1]), normal_data()
def run(**options):
    guide = guide_for(normal_model, y)
    return fit(normal_model, guide, y, engine="eager", stop_early=False, **options)
def losses_of(path):
    return [x.hex() for x in read_checkpoint(path, kind="run").tensors["losses"].tolist()]
def listed(result):
    return [x.hex() for x in result.losses.tolist()]
"""

KILLED = (
    SETUP
    + """
steps, draws = 400, random.Random(int(sys.argv[2]))
options = {"steps": steps, "checkpoint": path, "checkpoint_every": 1e-9, "resume": True}
whole = listed(run(steps=steps))
counts, deaths = [0], 0
while deaths < 20 and counts[-1] < steps:
    child = faults.forked(lambda: run(**options))
    before = path.stat().st_mtime_ns if path.exists() else 0
    while not path.exists() or path.stat().st_mtime_ns == before:
        # Not while it sets itself up, which takes longer than the steps.
        time.sleep(1e-3)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    time.sleep(draws.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    # Zero where it came to its end before.
    deaths += faults.death(child) == signal.SIGKILL
    found = losses_of(path)
    assert found == whole[: len(found)], deaths
    assert len(found) > counts[-1]
    counts.append(len(found))
assert deaths == 20 or counts[-1] == steps, counts
assert listed(run(**options)) == whole
assert losses_of(path) == whole
print(json.dumps([deaths, counts]))
"""
)


@POSIX
def test_killed_run_loses_no_more_than_what_came_after_its_last_save(tmp_path):
    """FAULTS 67, 69: SIGKILL at twenty moments; the file reads and goes on, at last to the end."""
    deaths, counts = json.loads(faults.run_script(KILLED, tmp_path / "run", 0))
    assert deaths >= 10, counts
    left = [p.name for p in tmp_path.iterdir()]
    assert "run" in left
    assert all(name == "run" or name.startswith(".run.") for name in left)


SIGNALLED = (
    SETUP
    + """
def at_ten(number, **options):
    callbacks = [faults.signal_at(10, number)]
    result = run(steps=10**6, callbacks=callbacks, **options)
    print(json.dumps([result.status, result.steps, result.state, result.elbo]))

def handled(number, **options):
    signal.signal(number, lambda *_: print(len(losses_of(options["checkpoint"]))))
    handler = signal.getsignal(number)
    run(steps=20, callbacks=[faults.signal_at(10, number)], **options)
    print(json.dumps(signal.getsignal(number) is handler))

def at_the_end(number, **options):
    run(steps=10, callbacks=[faults.signal_at(10, number)], **options)

def before_a_failure(number, **options):
    def fail(info):
        os.kill(os.getpid(), number)
        raise ZeroDivisionError
    run(steps=10, callbacks=[fail], **options)

def child(scenario, number, file, text):
    with open(text, "w", buffering=1) as sys.stdout, open(os.devnull, "w") as sys.stderr:
        scenario(number, **({} if file is None else {"checkpoint": file}))
    os._exit(0)

# What is loaded by now, no child has to load.
run(steps=1)
term = signal.SIGTERM
for k, (scenario, number, saves) in enumerate([
    (at_ten, signal.SIGINT, False),
    (at_ten, signal.SIGINT, True),
    (at_ten, term, False),
    (at_ten, term, True),
    (handled, term, True),
    (at_the_end, term, True),
    (before_a_failure, term, True),
]):
    file, text = (path / f"{k}.{end}" for end in ("run", "txt"))
    given = file if saves else None
    death = faults.death(faults.forked(lambda: child(scenario, number, given, text)))
    said = [json.loads(line) for line in text.read_text().splitlines()]
    steps = len(losses_of(file)) if file.exists() else None
    print(json.dumps([f"{scenario.__name__} {number.name} {saves}", [said, death, steps]]))
"""
)


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """Return what children said, the signal that ended each, and the steps in its file."""
    folder = tmp_path_factory.mktemp("signalled")
    lines = faults.run_script(SIGNALLED, folder).splitlines()
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]
    return dict(map(json.loads, lines))


@POSIX
@pytest.mark.parametrize("saves", [False, True])
def test_ctrl_c_returns_the_best_so_far(saves, signalled):
    """FAULTS 63: SIGINT, in a process of its own; a run with a file is saved as well."""
    (said,), death, steps = signalled[f"at_ten SIGINT {saves}"]
    assert said[:2] == ["interrupted", 10]
    assert said[2] in ("last", "best")
    assert math.isfinite(said[3])
    assert (death, steps) == (0, 10 if saves else None)


@POSIX
def test_request_to_end_saves_and_ends(signalled):
    """FAULTS 63: by the signal itself, so that who asked for it sees that."""
    assert signalled["at_ten SIGTERM True"] == [[], signal.SIGTERM, 10]


@POSIX
def test_request_to_end_without_a_file_ends_as_ever(signalled):
    """FAULTS 63."""
    assert signalled["at_ten SIGTERM False"] == [[], signal.SIGTERM, None]


@POSIX
@pytest.mark.parametrize(("scenario", "steps"), [("at_the_end", 10), ("before_a_failure", None)])
def test_request_to_end_is_never_lost(scenario, steps, signalled):
    """FAULTS 63: neither after the last step, nor where the run fails before it can obey."""
    assert signalled[f"{scenario} SIGTERM True"] == [[], signal.SIGTERM, steps]


@POSIX
def test_handler_of_the_program_is_called_after_the_save_and_put_back(signalled):
    """FAULTS 63: and may let the run go on."""
    assert signalled["handled SIGTERM True"] == [[10, True], 0, 20]


REPEATED = (
    SETUP
    + """
torch.set_num_threads(int(sys.argv[2]))
def same_seed(**options):
    result = run(seed=5, **options)
    return [*listed(result), result.elbo.hex(), result.k_hat.hex()]
part = {"checkpoint": path, "callbacks": [lambda info: info.step == 10]}
whole = same_seed()
assert same_seed() == whole
if path.exists():
    assert same_seed(checkpoint=path, resume=True) == whole
else:
    same_seed(**part)
print(json.dumps(whole))
"""
)


def test_same_seed_gives_the_same_run_in_new_processes_with_more_threads_and_in_two_parts(
    tmp_path,
):
    """FAULTS 69, 74: the second process goes on from the first one's file, on two threads."""
    one, two = (faults.run_script(REPEATED, tmp_path / "run", threads) for threads in (1, 2))
    assert (tmp_path / "run").exists()
    assert one == two
