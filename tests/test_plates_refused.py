"""AutoPlateFlow: what it refuses, in words that name what to do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from plates import Encoder, crossed_model, rows_data, rows_model

import pyro_flows as pf

Y = rows_data(8)


def discrete(y):
    with pyro.plate("rows", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)


def sequential(y):
    for k in pyro.plate("rows", len(y)):
        pyro.sample(f"z_{k}", dist.Normal(0.0, 1.0))


def without_plates(y):
    pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))


def without_latents(y):
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def subsampled_features(y):
    with pyro.plate("features", 9, subsample_size=3):
        pyro.sample("slope", dist.Normal(0.0, 1.0))
    rows_model(y)


def nan_data(y):
    rows_model(y * torch.nan)


HIDDEN = Encoder()


def encode_by_another(rows, y):
    return HIDDEN(rows, y)


def without_context(input_dim, *, context_dim):
    return pf.flows.maf(input_dim)


SETTINGS = [
    (discrete, {}, ["'k'", "Bernoulli", "AutoPlateFlow(poutine.block", "hide=['k']"]),
    (sequential, {}, ["'rows'", "'z_0'", "loop", "with pyro.plate"]),
    (without_plates, {}, ["plates that hold latents", "Take AutoFlow"]),
    (without_latents, {}, ["at least one latent"]),
    (rows_model, {"plates": ["lines"]}, ["['rows']", "['lines']"]),
    (subsampled_features, {"plates": ["rows"]}, ["'features'", "'slope'", "3 of 9"]),
    (rows_model, {"encode": {"mu": Encoder()}}, ["'rows'", "('mu',)", "hold latents"]),
    (rows_model, {"encode": {"rows": 3}}, ["module or a function", "3"]),
    (crossed_model, {"encode": Encoder()}, ["'users'", "('users', 'items')", "single encoder"]),
    (rows_model, {"encode": lambda rows, y: y[:3]}, ["'rows'", "(8, C)", "(3,)"]),
    (rows_model, {"encode": lambda rows, y: y[rows]}, ["(8, C)", "shape (8,)"]),
    (rows_model, {"encode": lambda rows, y: rows[:, None]}, ["floating", "int64"]),
    (rows_model, {"encode": encode_by_another}, ["parameters", "torch.nn.Module"]),
    (rows_model, {"flow": lambda d: pf.flows.maf(d + 1)}, ["1 coordinates"]),
    (rows_model, {"member_flow": without_context}, ["context_dim=3"]),
    (nan_data, {}, ["'y'", "NaN"]),
]


@pytest.mark.parametrize(
    ("model", "options", "words"), SETTINGS, ids=lambda case: getattr(case, "__name__", None)
)
def test_impossible_settings_are_refused(model, options, words):
    """FAULTS 52, 53, 56."""
    y = torch.zeros(3, 2) if model is crossed_model else Y
    guide = pf.AutoPlateFlow(model, **options)
    for _ in range(2):  # a refused guide stays refused
        with pytest.raises(pf.FlowError) as caught:
            guide.initialise(y)
        for word in ["AutoPlateFlow", "expected", "got", *words]:
            assert word in str(caught.value)


ARGUMENTS = [
    ({"model": 3}, ["a model to call"]),
    ({"flow": "realnpv"}, ["'realnvp'"]),
    ({"member_flow": "realnpv"}, ["'realnvp'"]),
    ({"start": "somewhere"}, ["AutoPlateFlow", "'auto'"]),
    ({"gradient": "none"}, ["AutoPlateFlow", "'path'"]),
]


@pytest.mark.parametrize(("options", "words"), ARGUMENTS, ids=str)
def test_impossible_arguments_are_refused(options, words):
    with pytest.raises(pf.DomainError) as caught:
        pf.AutoPlateFlow(**{"model": rows_model, **options})
    for word in words:
        assert word in str(caught.value)


def test_another_number_of_members_needs_an_encoder():
    """FAULTS 54."""
    guide = pf.AutoPlateFlow(rows_model)
    guide.initialise(Y)
    with pytest.raises(pf.DomainError, match=r"8 members of the plate 'rows'.*got 6.*encode="):
        guide(Y[:6])
    with pytest.raises(pf.DomainError, match=r"8 members of the plate 'rows'"):
        pf.fit(rows_model, guide, Y[:6], steps=1, progress=False)
    served = pf.AutoPlateFlow(rows_model, encode=lambda rows, y: y[rows, None])
    served.initialise(Y)
    assert served(Y[:6])["theta"].shape == (6,)


def test_another_model_needs_another_guide():
    """FAULTS 54: a plate that is not there, and one that comes later."""

    def model(y, named):
        with pyro.plate("rows" if named else "lines", len(y)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = pf.AutoPlateFlow(model)
    guide.initialise(Y, True)
    with pytest.raises(pf.DomainError, match=r"\['rows'\].*without them"):
        guide(Y, False)


def test_encoder_that_changes_its_output_is_refused():
    guide = pf.AutoPlateFlow(rows_model, encode=lambda rows, y: y.new_zeros(len(rows), len(y)))
    guide.initialise(Y)
    with pytest.raises(pf.ShapeError, match="context"):
        guide(Y[:6])


def test_members_in_memory_are_named_by_numbers():
    def model(y):
        with pyro.plate("rows", 100, subsample=y):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(pf.DomainError, match=r"numbers.*int64"):
        pf.AutoPlateFlow(model).initialise(Y)
    served = pf.AutoPlateFlow(model, encode=lambda rows, y: y[:, None])
    served.initialise(Y)
    assert served(Y)["z"].shape == (8,)


def test_guide_that_was_not_set_up_says_so():
    with pytest.raises(pf.DomainError, match="initialise"):
        pf.diagnose(rows_model, pf.AutoPlateFlow(rows_model), Y)


def test_members_with_tables_are_tied_to_their_number():
    guide = pf.AutoPlateFlow(rows_model, encode=Encoder(), embed=True, start="prior")
    guide(rows_data(12))
    with pytest.raises(pf.DomainError, match="12 members of the plate 'rows'"):
        guide(rows_data(10))
