"""AutoPlateFlow in files: what is loaded is what was saved, or it is refused."""

import pyro
import pytest
import torch
from plates import Encoder, crossed_model, every_support, features_model, rows_data, rows_model

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.infer.saving.write import GUIDE

Y = rows_data(8)
CASES = {
    "rows": (rows_model, (Y,), {}),
    "float64": (rows_model, (Y.double(),), {}),
    "supports": (every_support, (), {"flow": "iaf"}),
    "crossed": (crossed_model, (torch.zeros(3, 2),), {"member_flow": "maf"}),
    "other plates": (features_model, (torch.zeros(4),), {"plates": ["rows"]}),
    "encoder": (rows_model, (Y,), {"encode": Encoder}),
}


def bent(model, *args, **options):
    guide = pf.AutoPlateFlow(model, **options)
    guide.initialise(*args)
    generator = torch.Generator().manual_seed(3)
    for parameter in guide.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.1 * noise.to(parameter))
    return guide


def drawn(guide, *args):
    pyro.set_rng_seed(5)
    return guide(*args)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guide.flow"


@pytest.mark.parametrize("case", CASES)
def test_loaded_guide_draws_the_same_and_trains_on(case, path):
    model, args, options = CASES[case]
    encode = {"encode": options["encode"]()} if "encode" in options else {}
    guide = bent(model, *args, **{**options, **encode})
    pf.save(guide, path)
    encode = {"encode": options["encode"]()} if "encode" in options else {}
    loaded = pf.load(path, model=model, args=args, **encode)
    expected = drawn(guide, *args)
    assert all(torch.equal(value, expected[name]) for name, value in drawn(loaded, *args).items())
    assert loaded.origin == guide.origin
    later = pf.load(path, model=model, **encode)
    later.initialise(*args)
    assert torch.equal(drawn(later, *args)[next(iter(expected))], expected[next(iter(expected))])
    pf.fit(model, loaded, *args, steps=2, particles=4, progress=False)


def test_encoded_guide_is_loaded_for_other_data(path):
    guide = bent(rows_model, Y, encode=Encoder())
    pf.save(guide, path)
    loaded = pf.load(path, model=rows_model, args=(Y[:3],), encode=Encoder())
    assert torch.equal(drawn(loaded, Y)["theta"], drawn(guide, Y)["theta"])


def test_a_function_is_asked_for_again(path):
    def make(input_dim, *, context_dim):
        return pf.flows.maf(input_dim, context_dim=context_dim, hidden_dims=(8,))

    guide = bent(every_support, member_flow=make)
    pf.save(guide, path)
    with pytest.raises(pf.CheckpointError, match=r"member_flow=\.\.\..*make"):
        pf.load(path, model=every_support, args=())
    loaded = pf.load(path, model=every_support, args=(), member_flow=make)
    assert torch.equal(drawn(loaded)["level"], drawn(guide)["level"])

    def other(input_dim, *, context_dim):
        options = {"context_dim": context_dim, "hidden_dims": (8,), "activation": "tanh"}
        return pf.flows.maf(input_dim, **options)

    with pytest.raises(pf.CheckpointError, match="same sizes with draws that differ"):
        pf.load(path, model=every_support, args=(), member_flow=other)


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        ((rows_data(9),), {}, ["'rows' of 8", "'rows' of 9"]),
        ((Y.double(),), {}, ["float32", "float64"]),
        ((Y,), {"encode": Encoder()}, ["encoded by 4 numbers"]),
        ((Y,), {"flow": "planar"}, ["missing"]),
    ],
    ids=["size", "dtype", "encoder", "recipe"],
)
def test_other_models_are_refused(args, options, words, path):
    """FAULTS 71."""
    pf.save(bent(rows_model, Y), path)
    with pytest.raises(pf.CheckpointError) as caught:
        pf.load(path, model=rows_model, args=args, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"latents": 3},
        {"plates": 7},
        {"parents": [1]},
        {"member_recipe": {"name": "no such", "options": {}}},
        {"member_recipe": {"name": "maf", "options": {"hidden_dims": [10_000_000]}}},
        {"recipe": None},
        {"gradient": "sideways"},
    ],
    ids=str,
)
def test_made_up_records_are_refused(change, path):
    """FAULTS 71, 79: a record builds nothing out of proportion, and runs nothing."""
    pf.save(bent(rows_model, Y), path)
    found = read_checkpoint(path, kind=GUIDE)
    write_checkpoint(path, found.tensors, {**found.record, **change}, kind=GUIDE)
    with pytest.raises(pf.CheckpointError):
        pf.load(path, model=rows_model, args=(Y,))


def test_what_is_of_another_guide_is_refused(path):
    guide = pf.AutoFlow(rows_model)
    guide.initialise(Y)
    pf.save(guide, path)
    with pytest.raises(pf.DomainError, match="neither member_flow nor encode"):
        pf.load(path, model=rows_model, encode=Encoder())
    with pytest.raises(pf.DomainError, match="initialise"):
        pf.save(pf.AutoPlateFlow(rows_model), path)


def test_guide_with_encoders_and_tables_is_loaded(path):
    y = rows_data(12)
    guide = pf.AutoPlateFlow(rows_model, encode=Encoder(), embed=True, start="prior")
    guide.initialise(y)
    pf.save(guide, path)
    loaded = pf.load(path, model=rows_model, encode=Encoder(), args=(y,))
    assert loaded.embed
    assert torch.equal(loaded.median(y)["theta"], guide.median(y)["theta"])
    with pytest.raises(pf.CheckpointError, match="'rows' of 12"):
        pf.load(path, model=rows_model, encode=Encoder(), args=(y[:5],))
