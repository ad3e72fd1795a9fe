"""Checkpoint files that are damaged, hostile, or were being written when the process died."""

import os
import random
import re
from pathlib import Path

import faults
import pytest
import safetensors.torch
import torch

from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.errors import CheckpointError

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")


def write(path, tensors, record):
    write_checkpoint(path, tensors, record, kind="test")


def read(path):
    return read_checkpoint(path, kind="test")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


@pytest.fixture
def saved(path):
    """Return a file whose header ends in padding, and that holds something of every sort."""
    write(path, {"weight": torch.randn(31), "count": torch.arange(3)}, {"step": 7})
    data = path.read_bytes()
    assert data[: 8 + int.from_bytes(data[:8], "little")].endswith(b" ")
    return path


def test_every_flipped_bit_is_noticed(saved):
    """FAULTS 68."""
    draws, data = random.Random(0), saved.read_bytes()
    assert len(data) > 200
    for position in range(len(data)):
        faults.flip_bit(saved, position, draws.randrange(8))
        with pytest.raises(CheckpointError, match=r"run\.ckpt'; got .* earlier|safetensors"):
            read(saved)
        saved.write_bytes(data)
    read(saved)


def test_every_truncation_and_any_addition_is_noticed(saved):
    """FAULTS 68."""
    data = saved.read_bytes()
    for size in range(len(data)):
        saved.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"run\.ckpt"):
            read(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(
        CheckpointError, match=rf"got {len(data) + 1} bytes where .* {len(data)}\."
    ):
        read(saved)


def test_swapped_tensors_are_noticed(path):
    """FAULTS 68: what the structure of the file allows, the hash does not."""
    write(path, {"a": torch.zeros(2), "b": torch.ones(2)}, {})
    data = path.read_bytes()
    path.write_bytes(data[:-16] + data[-8:] + data[-16:-8])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read(path)


def good_document(**changes):
    return {"format": 1, "kind": "test", "versions": {}, "record": {}, **changes}


def test_sealed_file_is_read(path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    faults.sealed(path, good_document(), {"w": entry}, b"\0\0\x80?")
    assert read(path).tensors == {"w": torch.ones(1)}


SPEC = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
HOSTILE = {
    "a huge header": lambda p: p.write_bytes((10**12).to_bytes(8, "little") + b"{}"),
    "a huge tensor": lambda p: faults.safetensors_file(p, {"w": SPEC}),
    "a sealed huge tensor": lambda p: faults.sealed(p, good_document(), {"w": SPEC}),
    "more numbers than bytes": lambda p: faults.sealed(
        p, good_document(), {"w": {**SPEC, "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a huge empty shape": lambda p: faults.sealed(
        p, good_document(), {"w": {**SPEC, "shape": [0, 2**64 - 1], "data_offsets": [0, 0]}}
    ),
    "a negative offset": lambda p: faults.sealed(
        p, good_document(), {"w": {**SPEC, "data_offsets": [-4, 0]}}
    ),
    "an infinite offset": lambda p: faults.safetensors_file(
        p, '{"w": {"data_offsets": [0, 1e999]}}'
    ),
    "an unknown dtype": lambda p: faults.sealed(
        p, good_document(), {"w": {"dtype": "X", "shape": [1], "data_offsets": [0, 1]}}, b"\0"
    ),
    **{
        f"a {dtype} tensor": lambda p, dtype=dtype, size=size: faults.sealed(
            p,
            good_document(),
            {"w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}},
            b"\xff" * size,
        )
        for dtype, size in (("F8_E4M3", 1), ("F8_E5M2", 1), ("U16", 2), ("C64", 8))
    },
    "deep JSON": lambda p: faults.safetensors_file(p, "[" * 10**6),
    "a deep record": lambda p: faults.safetensors_file(
        p, {"__metadata__": {"pyro_flows": '{"sha256": "' + "0" * 64 + '", "a": ' + "[" * 10**6}}
    ),
    "a long number": lambda p: faults.safetensors_file(p, "1" * 10**5),
    "a list for a header": lambda p: faults.safetensors_file(p, []),
    "a null for a header": lambda p: faults.safetensors_file(p, None),
    "a tensor that is none": lambda p: faults.safetensors_file(p, {"w": None}),
    "text that is none": lambda p: p.write_bytes((2).to_bytes(8, "little") + b"\xff\xfe"),
    "metadata that is a list": lambda p: faults.safetensors_file(p, {"__metadata__": [1]}),
    "no record": lambda p: faults.sealed(p, {"format": 1, "kind": "test"}),
    "a record that is a number": lambda p: faults.sealed(p, good_document(record=3)),
    "versions that are a number": lambda p: faults.sealed(p, good_document(versions=3)),
    "no format": lambda p: faults.sealed(p, {}),
    "an array": lambda p: p.write_bytes(b"\x93NUMPY" + bytes(200)),
    "a text": lambda p: p.write_text("no checkpoint"),
    "nothing": Path.touch,
    "tensors of others": lambda p: safetensors.torch.save_file({"w": torch.ones(1)}, p),
    "metadata of others": lambda p: safetensors.torch.save_file({}, p, {"format": "pt"}),
    "a directory": Path.mkdir,
    "no file": lambda p: None,
    "a broken link": lambda p: p.symlink_to("nowhere"),
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_foreign_and_hostile_files_are_refused(make, path):
    """FAULTS 68, 82, 83."""
    make(path)
    with pytest.raises(CheckpointError, match=r"^read_checkpoint: expected .*run\.ckpt'; got"):
        read(path)


def test_gap_of_a_sparse_file_is_not_read(saved):
    """FAULTS 82: a terabyte that is not there."""
    os.truncate(saved, 10**12)
    with pytest.raises(CheckpointError, match="got 1000000000000 bytes where its header tells"):
        read(saved)


def test_pickles_are_not_loaded(path, tmp_path):
    """FAULTS 79."""
    faults.pickle_bomb(path, tmp_path / "marker")
    with pytest.raises(CheckpointError, match=r"never loaded.*weights_only=True"):
        read(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"never loaded.*weights_only=True"):
        read(path)
    assert not (tmp_path / "marker").exists()


def test_missing_file_and_directory_are_named(path, tmp_path):
    with pytest.raises(CheckpointError, match=r"got no file of this name\. Check the path; the w"):
        read(path)
    with pytest.raises(CheckpointError, match="got a directory or a device"):
        read(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_former_file_and_nothing_else(call, error, saved, monkeypatch):
    """FAULTS 67."""

    def failing(*args):
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(os, call, failing)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write(saved, {"w": torch.ones(9)}, {})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


# Writes files of several sizes where no file can grow beyond 100,000 bytes.
FULL = """
import os, pathlib, sys
import torch
import faults
from pyro_flows.checkpoint import write_checkpoint
from pyro_flows.errors import CheckpointError

path = pathlib.Path(sys.argv[1])
before = path.read_bytes()
faults.full_disk(100_000)
for size in (24_990, 30_000, 10**6, 20_000):
    try:
        write_checkpoint(path, {"w": torch.ones(size)}, {"size": size}, kind="test")
        print("written", size)
    except CheckpointError as error:
        intact = path.read_bytes() == before and os.listdir(path.parent) == [path.name]
        print("intact" if intact else "harmed", error)
"""


@POSIX
def test_full_disk_leaves_the_former_file_and_nothing_else(saved):
    """FAULTS 67."""
    *refused, written = faults.run_script(FULL, saved).splitlines()
    assert len(refused) == 3
    for said in refused:
        assert re.match(r"intact write_checkpoint: expected to write.*run.*OSError.*room", said)
    assert written == "written 20000"
    assert read(saved).record == {"size": 20_000}


# Kills children that write checkpoint after checkpoint, each numbered in its record and tensor;
# a child reports each that is complete. How long a kill waits is drawn from a seeded generator.
KILLED = """
import os, random, signal, sys, time
import torch
import faults
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint

torch.set_num_threads(1)
path, delays = sys.argv[1], random.Random(0)

def save(number):
    tensors = {"w": torch.full((300_000,), float(number))}
    write_checkpoint(path, tensors, {"number": number}, kind="test")

def save_on(number, pipe):
    while True:
        number += 1
        save(number)
        os.write(pipe, b".")

number = 0
save(number)
for kill in range(20):
    reader, writer = os.pipe()
    child = faults.forked(lambda: save_on(number, writer))
    os.close(writer)
    time.sleep(delays.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    if faults.death(child) != signal.SIGKILL:
        sys.exit("the child ended before it was killed")
    completed = len(os.read(reader, 10**6))
    os.close(reader)
    found = read_checkpoint(path, kind="test")
    advance = found.record["number"] - number
    if advance not in (completed, completed + 1):
        sys.exit(f"found {advance} further files, {completed} of them reported")
    number += advance
    if not bool((found.tensors["w"] == number).all()):
        sys.exit("found numbers of two files in one")
print(number)
"""


@POSIX
def test_kills_at_random_moments_leave_a_complete_file(path):
    """FAULTS 67: nothing that was reported as saved is lost, and nothing half saved is read."""
    assert int(faults.run_script(KILLED, path)) > 0
    assert all(name == path.name or name.endswith(".tmp") for name in os.listdir(path.parent))


# Kills the writer at one of the moments that matter; prints which file is there then.
KILLED_AT = """
import os, signal, sys
import torch
import faults
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint

torch.set_num_threads(1)
path = sys.argv[1]

def save(step):
    write_checkpoint(path, {"w": torch.full((10_000,), step)}, {"step": step}, kind="test")

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def die_in(call, count):
    original, calls = getattr(os, call), []
    def counted(*args):
        calls.append(args)
        return die() if len(calls) == count else original(*args)
    setattr(os, call, counted)
    save(2.0)

def die_at_byte(count):
    faults.full_disk(count, kill=True)
    save(2.0)

for work, signum in (
    (lambda: die_at_byte(0), signal.SIGXFSZ),
    (lambda: die_at_byte(100), signal.SIGXFSZ),
    (lambda: die_at_byte(20_000), signal.SIGXFSZ),
    (lambda: die_in("fsync", 1), signal.SIGKILL),
    (lambda: die_in("replace", 1), signal.SIGKILL),
    (lambda: die_in("fsync", 2), signal.SIGKILL),
):
    save(1.0)
    if faults.death(faults.forked(work)) != signum:
        sys.exit("the child was not killed where it should be")
    found = read_checkpoint(path, kind="test")
    if not bool((found.tensors["w"] == found.record["step"]).all()):
        sys.exit("found numbers of two files in one")
    print(found.record["step"])
"""


@POSIX
def test_kill_while_saving_leaves_the_former_file_until_the_new_one_is_complete(path):
    """FAULTS 67."""
    steps = faults.run_script(KILLED_AT, path).split()
    assert steps == ["1.0", "1.0", "1.0", "1.0", "1.0", "2.0"]
    left_over = [name for name in os.listdir(path.parent) if name != path.name]
    assert len(left_over) == 5
    assert all(name.startswith(".run.ckpt.") and name.endswith(".tmp") for name in left_over)
