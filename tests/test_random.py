"""The random state of a run: nothing is forgotten, and it passes through a checkpoint file."""

import logging
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.errors import CheckpointError
from pyro_flows.infer.random import RandomState, random_state, restore_random_state


def draw():
    """Draw from every global source, also what it keeps back for the next call."""
    return [
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        F.dropout(torch.ones(64)).tolist(),
        torch.randperm(20).tolist(),
        np.random.rand(3).tolist(),  # noqa: NPY002
        np.random.standard_normal(),  # noqa: NPY002
        random.random(),
        random.gauss(0.0, 1.0),
        random.sample(range(100), 5),
    ]


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def through_a_file(state, path):
    write_checkpoint(path, state.tensors, state.record, kind="random")
    found = read_checkpoint(path, kind="random")
    return RandomState(found.tensors, found.record)


@pytest.mark.parametrize("draws_before", range(4))
def test_draws_go_on_from_a_restored_state(draws_before, tmp_path):
    """FAULTS 70: numpy and Python keep every second normal draw for the next call."""
    for _ in range(draws_before):
        draw()
    state = random_state()
    expected = [draw() for _ in range(3)]
    seed_all(99)
    assert draw() != expected[0]
    restore_random_state(through_a_file(state, tmp_path / "state"))
    assert [draw() for _ in range(3)] == expected


def test_capturing_a_state_draws_nothing():
    """FAULTS 70."""
    state = random_state()
    again = random_state()
    assert repr(again.record) == repr(state.record)
    assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)


def test_generators_go_on_too(tmp_path):
    """FAULTS 70."""
    generators = {"order": torch.Generator().manual_seed(1), "a/b": torch.Generator()}
    state = random_state(generators)
    expected = [torch.rand(3, generator=each).tolist() for each in generators.values()]
    others = {name: torch.Generator().manual_seed(5) for name in generators}
    restore_random_state(through_a_file(state, tmp_path / "state"), others)
    assert [torch.rand(3, generator=each).tolist() for each in others.values()] == expected


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.SFC64])
def test_other_generators_of_numpy_go_on_too(kind, tmp_path):
    """FAULTS 70: the one behind numpy's global functions can be exchanged."""
    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(3))
    try:
        draw()
        state = random_state()
        expected = draw()
        restore_random_state(through_a_file(state, tmp_path / "state"))
        assert draw() == expected
    finally:
        np.random.set_bit_generator(usual)


def changed(state, **entries):
    return RandomState({**state.tensors, **entries}, state.record)


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


BROKEN = {
    "no torch": lambda s: RandomState({}, s.record),
    "no numpy": lambda s: RandomState(s.tensors, without(s.record, "numpy")),
    "no python": lambda s: RandomState(s.tensors, without(s.record, "python")),
    "a short torch": lambda s: changed(s, cpu=s.tensors["cpu"][:100]),
    "a torch of floats": lambda s: changed(s, cpu=s.tensors["cpu"].float()),
    "a torch of zeros": lambda s: changed(s, cpu=torch.zeros_like(s.tensors["cpu"])),
    "a wrong numpy": lambda s: RandomState(s.tensors, {**s.record, "numpy": {"a": 1}}),
    "a wrong python": lambda s: RandomState(
        s.tensors, {**s.record, "python": {"version": 3, "words": ["a"], "gauss": None}}
    ),
    "a list": lambda s: RandomState(s.tensors, {**s.record, "python": [1]}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_state_that_is_none_changes_nothing(broken):
    before = random_state()
    expected = draw()
    state = broken(random_state())
    restore_random_state(before)
    with pytest.raises(CheckpointError, match=r"^restore_random_state: expected states of .* got"):
        restore_random_state(state)
    assert draw() == expected


def test_missing_generator_is_refused():
    with pytest.raises(CheckpointError, match="generators of the same names"):
        restore_random_state(random_state(), {"order": torch.Generator()})


def pretend(patch, count):
    """Let there be CUDA devices, and return the list of states that they are given."""
    given = []
    patch.setattr(torch.cuda, "is_initialized", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    states = [torch.full((16,), index, dtype=torch.uint8) for index in range(count)]
    patch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    patch.setattr(
        torch.cuda, "set_rng_state", lambda state, index: given.append((int(state[0]), index))
    )
    return given


def test_every_cuda_device_gets_its_own_state_back(tmp_path, monkeypatch):
    """FAULTS 70: twelve devices, so that their order is not that of their names."""
    given = pretend(monkeypatch, 12)
    restore_random_state(through_a_file(random_state(), tmp_path / "state"))
    assert given == [(index, index) for index in range(12)]


@pytest.mark.parametrize("count", [0, 1])
def test_state_of_more_cuda_devices_is_restored_with_a_warning(count, monkeypatch, caplog):
    """FAULTS 72."""
    with monkeypatch.context() as patch:
        pretend(patch, 2)
        state = random_state()
    expected = draw()
    given = pretend(monkeypatch, count)
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        restore_random_state(state)
    assert draw() == expected
    assert len(given) == count
    assert [record.getMessage()[:56] for record in caplog.records] == [
        f"restore_random_state: found {count} CUDA devices where the sta"
    ]


def test_state_without_cuda_is_restored_silently(caplog):
    restore_random_state(random_state())
    assert not caplog.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_cuda_go_on(tmp_path):
    """FAULTS 70, 72."""
    torch.rand(1, device="cuda")
    generators = {"noise": torch.Generator("cuda")}
    state = random_state(generators)

    def draw_there():
        own = torch.rand(5, device="cuda", generator=generators["noise"])
        return torch.randn(5, device="cuda").tolist(), own.tolist()

    expected = draw_there()
    assert draw_there() != expected
    restore_random_state(through_a_file(state, tmp_path / "state"), generators)
    assert draw_there() == expected
    with pytest.raises(CheckpointError):
        restore_random_state(changed(state, **{"cuda/0": torch.zeros(3)}), generators)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_cuda_are_written_to_be_read_on_the_cpu(tmp_path):
    """FAULTS 72."""
    weight = torch.randn(7, 3, device="cuda")
    write_checkpoint(tmp_path / "x", {"w": weight.T}, {}, kind="test")
    assert torch.equal(read_checkpoint(tmp_path / "x", kind="test").tensors["w"], weight.T.cpu())
