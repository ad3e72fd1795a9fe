"""Checkpoint files: exact, readable by others, and of nothing but what they are asked for."""

import hashlib
import json
import os
import stat
from types import MappingProxyType

import faults
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from pyro_flows.checkpoint import Checkpoint, check_matches, layout, read_checkpoint
from pyro_flows.checkpoint import write_checkpoint as write
from pyro_flows.errors import CheckpointError, DomainError

NAN, INF = float("nan"), float("inf")
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")


def read(path, **options):
    return read_checkpoint(path, **{"kind": "test", **options})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


@pytest.fixture
def saved(path):
    """Return a file whose header ends in padding, and that holds something of every sort."""
    write(path, {"weight": torch.randn(31), "count": torch.arange(3)}, {"step": 7}, kind="test")
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    assert header.endswith(b" ")
    return path


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).tolist()


FLAT = torch.arange(12, dtype=torch.float32)
TENSORS = {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "a/b": torch.tensor([True, False, True]),
    "": torch.tensor([-0.0, 1e-45, 3.4e38]),
    "Größe ☃ \U0001f600": torch.tensor(2**62),
    'quote " and \\ and "sha256": "0': torch.tensor([255, 0], dtype=torch.uint8),
    "n" * 10_000: torch.tensor([-128], dtype=torch.int8),
    "line\nbreak\x00": torch.tensor([-(2**15)], dtype=torch.int16),
    "int32": torch.tensor([-(2**31)], dtype=torch.int32),
    "half": torch.tensor([1 / 3, 65504.0], dtype=torch.float16),
    "bfloat16": torch.tensor([1 / 3, 3e38], dtype=torch.bfloat16),
    "double": torch.tensor([1 / 3, 5e-324], dtype=torch.float64),
    "first view": FLAT[:6].view(2, 3),
    "second view": FLAT[3:],
    "transposed": FLAT.view(3, 4).T,
    "expanded": torch.ones(1).expand(4),
    "negated": torch.complex(FLAT, FLAT).conj().imag,
    "trained": nn.Parameter(torch.ones(2)),
    "__a": torch.ones(1),
}


def test_tensors_come_back_bit_for_bit(path):
    """FAULTS 84."""
    write(path, TENSORS, {}, kind="test")
    found = read(path).tensors
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        ours = found[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
        assert bits(ours) == bits(tensor.detach().resolve_neg()), name
        assert not ours.requires_grad
        assert ours.is_contiguous()


RECORD = {
    "none": None,
    "flags": [True, False],
    "numbers": [1 / 3, -0.0, 5e-324, 1.7976931348623157e308, 10**40, -1],
    "skipped losses": [1.5, NAN, INF, -INF],
    "text": 'Größe ☃ \U0001f600 "quote" \\ \x00 \ud800',
    "": {"nested": [{"deep": []}]},
    "sha256": '"pyro_flows":"{\\"sha256\\": \\"' + "1" * 64,
    "NaN": "NaN",
}


def test_record_comes_back_with_every_bit(path):
    write(path, {}, RECORD, kind="test")
    found = read(path).record
    assert repr(found) == repr(RECORD)  # equal, with NaN equal to itself and -0.0 not to 0.0


def test_file_is_one_that_safetensors_reads(saved):
    found = read(saved)
    theirs = safetensors.torch.load_file(saved)
    assert {name: bits(t) for name, t in theirs.items()} == {
        name: bits(t) for name, t in found.tensors.items()
    }
    with safetensors.safe_open(saved, "pt") as file:
        document = json.loads(file.metadata()["pyro_flows"])
    assert document["record"] == {"step": 7}
    assert document["kind"] == "test"
    assert document["format"] == layout.FORMAT
    assert document["versions"] == found.versions
    assert found.versions["torch"] == torch.__version__


def test_hash_covers_all_bytes_but_its_own_digits(saved):
    data = saved.read_bytes()
    digits = json.loads(safetensors.safe_open(saved, "pt").metadata()["pyro_flows"])["sha256"]
    assert data.count(digits.encode()) == 1
    assert hashlib.sha256(data.replace(digits.encode(), b"0" * 64)).hexdigest() == digits


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write(tmp_path / name, TENSORS, RECORD, kind="test")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_record_may_be_any_mapping(path):
    write(path, {}, MappingProxyType({"step": 1}), kind="test")
    assert read(path).record == {"step": 1}


def test_part_takes_the_tensors_below_a_prefix():
    one, other = torch.ones(1), torch.zeros(1)
    found = Checkpoint({"guide/w": one, "guide/a/b": other, "guides/w": other}, {}, {}, "x")
    assert found.part("guide").tensors == {"w": one, "a/b": other}
    assert found.part("guid").tensors == {}


# What belongs to something else


def test_other_kind_is_refused(saved):
    """FAULTS 71."""
    with pytest.raises(CheckpointError, match=r"of kind 'density' .* got one of kind 'test'"):
        read(saved, kind="density")


def test_later_format_names_both_versions(path):
    """FAULTS 71."""
    faults.sealed(
        path, {"format": 2, "versions": {"pyro_flows": "9.9", "torch": "3.0"}, "new": []}
    )
    ours = layout.versions()["pyro_flows"]
    with pytest.raises(CheckpointError) as refused:
        read(path)
    for words in ("format 1", "got format 2", "pyro_flows 9.9, torch 3.0", f"pyro_flows {ours}"):
        assert words in str(refused.value)


def test_other_version_with_the_same_format_reads(path, monkeypatch):
    """FAULTS 71."""
    theirs = {"pyro_flows": "0.0.1", "torch": "2.6.0", "pyro": "1.9.1"}
    with monkeypatch.context() as patch:
        patch.setattr(layout, "versions", lambda: theirs)
        write(path, {"w": torch.ones(1)}, {}, kind="test")
    found = read(path)
    assert found.versions == theirs
    with pytest.raises(CheckpointError) as refused:
        check_matches("resume", found, {"v": torch.ones(1)})
    for words in ("by pyro_flows 0.0.1, torch 2.6.0, pyro 1.9.1", f"torch {torch.__version__}"):
        assert words in str(refused.value)


MISMATCHES = [
    ({"a": 1.0}, {}, ["unexpected: 'a'"]),
    ({}, {"a": 1.0, "b": 1.0}, ["missing: 'a', 'b'"]),
    ({"a": 1.0}, {"b": 1.0}, ["missing: 'b'", "unexpected: 'a'"]),
    ({"a": [1.0]}, {"a": 1.0}, ["'a' (a float32 tensor of shape (1,) for", "of shape ())"]),
    ({"a": 1.0}, {"a": True}, ["'a' (a float32 tensor", "a bool tensor"]),
    ({"a": 1.0, "b": [1.0]}, {"a": 1, "b": 1.0}, ["'a' (a float32", "int64", "'b' (a"]),
]


@pytest.mark.parametrize(("found", "expected", "words"), MISMATCHES)
def test_tensors_of_something_else_are_all_listed(found, expected, words, path):
    """FAULTS 71."""
    write(path, {name: torch.tensor(value) for name, value in found.items()}, {}, kind="test")
    wanted = {name: torch.tensor(value) for name, value in expected.items()}
    with pytest.raises(CheckpointError, match=r"^resume: expected .*run\.ckpt") as refused:
        check_matches("resume", read(path), wanted)
    for word in words:
        assert word in str(refused.value)


def test_same_tensors_match_wherever_they_lie(path):
    """FAULTS 71, 72."""
    write(path, {"w": torch.ones(2)}, {}, kind="test")
    check_matches("resume", read(path), {"w": torch.zeros(2, device="meta", requires_grad=True)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_non_finite_tensors_are_refused_unless_allowed(dtype, path):
    """FAULTS 73."""
    tensors = {"w": torch.tensor([1, NAN, INF], dtype=dtype), "v": torch.tensor(-INF, dtype=dtype)}
    write(path, {**tensors, "good": torch.ones(2)}, {"losses": [NAN]}, kind="test")
    with pytest.raises(CheckpointError) as refused:
        read(path)
    for words in ("2 of 3 in 'w'", "1 of 1 in 'v'", "allow_non_finite=True"):
        assert words in str(refused.value)
    assert "good" not in str(refused.value)
    with pytest.raises(CheckpointError, match="entries: 1 of 1 in 'v'"):
        read(path, allow_non_finite="w")
    for allowed in (True, {"v", "w"}):
        assert bits(read(path, allow_non_finite=allowed).tensors["w"]) == bits(tensors["w"])


# Writing


def circle():
    ring = []
    ring.append(ring)
    return ring


UNWRITABLE = [
    ({"w": [1.0]}, {}, r"'w' to be a dense"),
    ({"w": torch.ones(2).to_sparse()}, {}, r"'w' to be a dense"),
    ({"w": torch.ones(2, device="meta")}, {}, r"that holds values"),
    ({"w": torch.ones(2, dtype=torch.complex64)}, {}, r"real .* complex64 .*view_as_real"),
    ({3: torch.ones(2)}, {}, r"Unicode text .* got 3"),
    ({"\ud800": torch.ones(2)}, {}, r"Unicode text .* got '\\ud800'"),
    ({"__metadata__": torch.ones(2)}, {}, r"other than '__metadata__'"),
    ({}, {"a": [0, (1,)]}, r"record\['a'\]\[1\] to be JSON.* got \(1,\) \(tuple\)"),
    ({}, {"a": {1: 2}}, r"record\['a'\] to be JSON.* keys are texts"),
    ({}, {"a": MappingProxyType({})}, r"record\['a'\] to be JSON.* \(mappingproxy\)"),
    ({}, {"a": torch.ones(1)}, r"record\['a'\] .* float32 tensor .* store it as a tensor"),
    ({}, {"a": np.int64(1)}, r"record\['a'\] .*int64"),
    ({}, {"a": b"1"}, r"record\['a'\] .* \(bytes\)"),
    ({}, {"a": circle()}, r"at most 50 deep"),
]


@pytest.mark.parametrize(("tensors", "record", "words"), UNWRITABLE)
def test_content_that_a_file_cannot_hold_is_refused(tensors, record, words, saved):
    before = saved.read_bytes()
    with pytest.raises(DomainError, match=rf"^write_checkpoint: expected .*{words}"):
        write(saved, tensors, record, kind="test")
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_long_record_is_refused(path):
    with pytest.raises(CheckpointError, match=r"at most 100000000 bytes .* as a tensor"):
        write(path, {}, {"a": "b" * 100_000_001}, kind="test")
    assert not path.exists()


@pytest.mark.parametrize("bad", [None, 3, b"run.ckpt", ["run.ckpt"]])
def test_path_that_is_none_is_refused(bad):
    with pytest.raises(DomainError, match=r"^read_checkpoint: expected path to be the path of a"):
        read(bad)
    with pytest.raises(DomainError, match=r"^write_checkpoint: expected path to be the path of a"):
        write(bad, {}, {}, kind="test")


@pytest.mark.parametrize(
    "name", ["no/such/run.ckpt", "run.ckpt/x", "n" * 300, "\0", "", ".", ".."]
)
def test_place_that_cannot_be_written_to_is_refused(name, saved):
    """FAULTS 83."""
    before = saved.read_bytes()
    with pytest.raises(CheckpointError, match=r"^write_checkpoint: expected to write the file '"):
        write(os.path.join(saved.parent, name) if name else "", {}, {}, kind="test")
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@POSIX
def test_devices_and_targets_of_links_are_left_alone(tmp_path, saved):
    """FAULTS 83."""
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match="got a directory or a device"):
        write(tmp_path / "null", {}, {}, kind="test")
    before, link = saved.read_bytes(), tmp_path / "link.ckpt"
    link.symlink_to(saved)
    write(link, {}, {"step": 8}, kind="test")
    assert saved.read_bytes() == before
    assert read(link).record == {"step": 8}


@POSIX
def test_permissions_are_those_of_the_former_file_or_the_usual_ones(saved):
    usual = saved.with_name("usual")
    usual.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    saved.chmod(0o600)
    write(saved, {}, {}, kind="test")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
