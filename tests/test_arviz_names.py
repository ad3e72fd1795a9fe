"""to_arviz: names of sites and dims."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import draw_once, named_model

from pyro_flows.errors import DomainError


@pytest.mark.parametrize("name", ["a/b", "scope/a/b", "größe σ", "with space", "x" * 200])
def test_odd_names_survive_a_file(name, tmp_path):
    """FAULTS 84: a slash becomes a dot, which is noted; all else stays."""
    import arviz as az

    idata = draw_once(named_model(name))
    label = name.replace("/", ".")
    path = str(tmp_path / "odd.nc")
    idata.to_netcdf(path)
    again = az.from_netcdf(path)
    assert list(again["posterior"].data_vars) == [label]
    renamed = json.loads(again["posterior"].attrs.get("renamed_sites", "{}"))
    assert renamed == ({label: name} if name != label else {})
    getattr(again, "close", lambda: None)()


def test_name_too_long_for_a_file_survives_in_memory():
    """FAULTS 84: of 10 kB; NetCDF holds 256 bytes."""
    name = "x" * 10_000
    assert list(draw_once(named_model(name))["posterior"].data_vars) == [name]


def test_dims_make_way_for_sites():
    """FAULTS 89: a dim that has the name of a site, or of ArviZ's own."""

    def model():
        pyro.sample("k", dist.Normal(0.0, 1.0))
        vector = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        pyro.sample("b", vector, infer={"event_dims": ["k"]})
        with pyro.plate("draw", 4), pyro.plate("a/b", 2):
            pyro.sample("c", dist.Normal(0.0, 1.0))

    posterior = draw_once(model)["posterior"]
    assert posterior["b"].dims == ("chain", "draw", "k_dim")
    assert posterior["c"].dims == ("chain", "draw", "a.b", "draw_dim")
    assert posterior["draw_dim"].values.tolist() == [0, 1, 2, 3]


def two_sites(first, second):
    def model():
        pyro.sample(first, dist.Normal(0.0, 1.0))
        pyro.sample(second, dist.Normal(0.0, 1.0))

    return model


def sized(*event_dims, plate="n"):
    def model():
        with pyro.plate(plate, 2):
            for i, names in enumerate(event_dims):
                normal = dist.Normal(torch.zeros(3 + i), 1.0).to_event(1)
                pyro.sample(f"x{i}", normal, infer={"event_dims": names})

    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (two_sites("a", "chain"), "told apart, .*got 'chain'"),
        (two_sites("draw", "a"), "got 'draw'"),
        (two_sites("a", ""), "got ''"),
        (two_sites("a/b", "a.b"), "got 'a/b', which becomes 'a.b'"),
        (sized(["k"], ["k"]), "one size of the dim 'k'; got 3 at the site 'x0', 4 at 'x1'"),
        (sized(["n"]), "a name each; got n, n"),
        (sized(["i", "j"]), r"up to 1 names; got \['i', 'j'\]"),
        (sized("k"), "got 'k'"),
        (sized(3), "got 3"),
        (sized([1]), r"got \[1\]"),
    ],
)
def test_names_that_cannot_be(model, says):
    """FAULTS 84, 89: refused, with the site."""
    with pytest.raises(DomainError, match=f"(?s)to_arviz: expected .*{says}"):
        draw_once(model)
