"""to_arviz: the arguments dims and coords."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import dims_of, draw_once
from pyro.contrib.autoname import scope

from pyro_flows.errors import DomainError


def model(y):
    pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("school", len(y)):
        weight = pyro.sample(
            "weight", dist.Dirichlet(torch.ones(2)), infer={"event_dims": ["part"]}
        )
        pyro.sample("y", dist.Normal(weight[..., 0], 1.0), obs=y)
    pyro.deterministic("first", weight[..., 0] * 2)


def convert(**options):
    return draw_once(model, torch.arange(4.0), **options)


def test_names_override_those_of_plates_and_sites():
    idata = convert(
        dims={"beta": ["column"], "weight": ["row", "share"], "y": ["row"]}, log_prior=True
    )
    dims = dims_of(idata)
    assert dims == {"beta": ("column",), "weight": ("row", "share"), "first": ("first_dim_0",)}
    assert dims_of(idata, "log_prior") == {"beta": (), "weight": ("row",)}
    assert dims_of(idata, "log_likelihood") == {"y": ("row",)}
    assert idata["observed_data"]["y"].dims == ("row",)


def test_members_get_names_wherever_their_dim_is():
    coords = {
        "school": ["A", "B", "C", "D"],
        "part": torch.tensor([10, 20]),
        "column": np.array(["x", "y", "z"]),
    }
    idata = convert(dims={"beta": ["column"], "first": ["school"]}, coords=coords, prior=3)
    for group in ("posterior", "prior", "log_likelihood", "observed_data"):
        assert idata[group]["school"].values.tolist() == ["A", "B", "C", "D"]
    assert idata["posterior"]["part"].values.tolist() == [10, 20]
    posterior = idata["posterior"]
    assert np.allclose(
        posterior["first"].sel(school="C"),
        2 * posterior["weight"].sel(school="C", part=10),
        atol=1e-5,
    )
    assert posterior["beta"].sel(column="y").shape == (1, 4)


def test_names_of_a_subsampled_plate_are_those_of_all_members():
    def subsampled():
        with pyro.plate("rows", 6, subsample_size=2):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0))

    posterior = draw_once(subsampled, coords={"rows": list("abcdef")})["posterior"]
    plain = draw_once(subsampled)["posterior"]
    assert [ord(name) - ord("a") for name in posterior["rows"].values] == plain[
        "rows"
    ].values.tolist()
    with pytest.raises(
        DomainError, match="coords of the dim 'rows' to be 6 names or numbers; got 2"
    ):
        draw_once(subsampled, coords={"rows": ["a", "b"]})


def test_name_of_a_plate_that_is_also_a_sites_goes_by_the_models_name():
    """FAULTS 84, 89: names of plates and sites that clash, and slashes."""

    def clashing():
        pyro.sample("school", dist.Normal(0.0, 1.0))
        with pyro.plate("school_plate", 2), scope(prefix="größe"):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0))
        vector = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("a/b", vector, infer={"event_dims": ["school"]})

    posterior = draw_once(
        clashing, coords={"school": ["l", "r"], "c/d": [5, 6]}, dims={"größe/x": ["c/d"]}
    )["posterior"]
    assert posterior["a.b"].dims[2:] == ("school_dim",)
    assert posterior["school_dim"].values.tolist() == ["l", "r"]
    assert posterior["größe.x"].dims[2:] == ("c.d",)
    assert posterior["c.d"].values.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dims": ["beta"]}, "dims to be a mapping from names"),
        ({"dims": {"gamma": ["a"]}}, "dims for any of 'beta', .*got 'gamma'"),
        ({"dims": {"beta": []}}, r"dims\['beta'\] to be 1 names; got \[\]"),
        ({"dims": {"beta": ["a", "b"]}}, r"dims\['beta'\] to be 1 names"),
        ({"dims": {"beta": "a"}}, "got 'a'"),
        ({"dims": {"beta": [1]}}, r"got \[1\]"),
        ({"dims": {"weight": ["a", "a"]}}, r"different names; got \['a', 'a'\]"),
        ({"dims": {"beta": ["school"]}}, "one size of the dim 'school'; got 3 .* 4"),
        (
            {"dims": {"x": ["school"]}, "constant_data": {"x": torch.ones(5)}},
            "one size of the dim",
        ),
        ({"dims": {"x": ["i"]}, "constant_data": {"x": torch.ones(5, 2)}}, "to be 2 names"),
        ({"coords": 3}, "coords to be a mapping from names"),
        ({"coords": {"region": ["a"]}}, "coords for any of .*got 'region'"),
        ({"coords": {"school": ["a"]}}, "'school' to be 4 names or numbers; got 1"),
        ({"coords": {"school": "abcd"}}, "'school' to be 4 names or numbers"),
        ({"coords": {"school": 4}}, "'school' to be 4 names or numbers; got 4"),
        ({"coords": {"school": [[1], [2], [3], [4]]}}, "'school' to be 4 names or numbers"),
    ],
)
def test_dims_and_coords_that_cannot_be(options, says):
    with pytest.raises(DomainError, match=f"(?s)to_arviz: expected .*{says}"):
        convert(**options)
