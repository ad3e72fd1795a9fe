"""to_arviz: what ArviZ makes of the result, every kind of guide and dtype, and bad input."""

import math
import sys
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import draw_once, group_names
from models import (
    constrained_model,
    normal_data,
    normal_model,
    regression_data,
    regression_model,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
)

import pyro_flows as pf
from pyro_flows.diagnostics import to_arviz
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError

# ----------------------------------------------------------------------------- what ArviZ does


@pytest.fixture(scope="module")
def schools():
    x, y = regression_data()
    guide = pf.AutoFlow(regression_model)
    return to_arviz(regression_model, guide, x, y, num_draws=1000, seed=0)


def test_groups_and_attributes(schools):
    assert group_names(schools) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "log_prior",
        "posterior_predictive",
        "observed_data",
    }
    attrs = schools["posterior"].attrs
    assert attrs["inference_library"] == "pyro_flows"
    assert attrs["inference_library_version"]
    assert attrs["guide"] == "AutoFlow"


def test_arviz_summarises(schools):
    import arviz as az

    summary = az.summary(schools)
    assert len(summary) == 4
    assert np.allclose(summary["mean"], schools["posterior"]["beta"].values[0].mean(0), atol=0.01)
    loo = az.loo(schools)
    assert math.isfinite(getattr(loo, "elpd_loo", getattr(loo, "elpd", math.nan)))
    assert summary["ess_bulk"].min() > 500
    assert az.extract(schools, num_samples=10).sizes["sample"] == 10


def test_netcdf_round_trip(schools, tmp_path):
    """FAULTS 89: from the draws to a file and back."""
    import arviz as az

    path = str(tmp_path / "posterior.nc")
    schools.to_netcdf(path)
    again = az.from_netcdf(path)
    assert group_names(again) == group_names(schools)
    for group in group_names(schools):
        for name, values in schools[group].data_vars.items():
            assert np.array_equal(values, again[group][name])
            assert values.dims == again[group][name].dims
    assert again["posterior"].attrs["guide"] == "AutoFlow"
    getattr(again, "close", lambda: None)()


def test_groups_can_be_left_out():
    y = normal_data()
    idata = draw_once(normal_model, y, predictive=False, log_likelihood=False, log_prior=False)
    assert group_names(idata) == {"posterior", "sample_stats", "observed_data"}
    latents_alone = {"posterior", "sample_stats", "log_prior"}
    assert group_names(draw_once(constrained_model)) == latents_alone


# ArviZ of either generation sorts in a way that pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")
def test_arviz_compares_models(schools):
    """On a model and on one that lacks its weakest column, by leave-one-out densities."""
    import arviz as az

    x, y = regression_data()
    fewer = to_arviz(regression_model, pf.AutoFlow(regression_model), x[:, 1:], y, seed=0)
    table = az.compare({"all": schools, "fewer": fewer})
    assert set(table.index) == {"all", "fewer"}
    assert sorted(table["rank"]) == [0, 1]


def test_arviz_plots(schools):
    """Pairs of coordinates, and new data over the data; ArviZ 1 has the latter by another name."""
    import arviz as az

    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert az.plot_pair(schools, var_names=["beta"]) is not None
    plot_ppc = getattr(az, "plot_ppc", None) or az.plot_ppc_dist
    assert plot_ppc(schools) is not None
    matplotlib.pyplot.close("all")


def test_arviz_one_gets_a_tree(monkeypatch, tmp_path):
    """Of whichever ArviZ, the version alone decides; its parts work on the result."""
    monkeypatch.setitem(sys.modules, "arviz", types.SimpleNamespace(__version__="1.3.0"))
    # Without its statistics, which this stand-in does not have.
    monkeypatch.setattr("pyro_flows.diagnostics.arviz.psis", lambda row: (row * 0.0, 0.0))
    tree = draw_once(normal_model, normal_data(), prior=3)
    assert type(tree).__name__ == "DataTree"
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert tree["observed_data"]["y"].dims == ("data",)
    assert tree["posterior"].attrs["inference_library"] == "pyro_flows"
    assert tree["posterior"].attrs["created_at"]
    tree.to_netcdf(tmp_path / "tree.nc")


# ArviZ of either generation sorts in a way that pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")
def test_arviz_one_by_its_parts(monkeypatch):
    """Where arviz-base and arviz-stats are installed, they bring the 1.x tools to older Python."""
    reason = "arviz-stats, a part of ArviZ 1.x, is missing"
    parts = pytest.importorskip("arviz_stats", reason=reason)
    arviz = types.SimpleNamespace(__version__="1.0.0")
    monkeypatch.setitem(sys.modules, "arviz", arviz)
    guide = pf.AutoFlow(regression_model)
    tree = to_arviz(regression_model, guide, *regression_data(), seed=0)
    assert type(tree).__name__ == "DataTree"
    assert len(parts.summary(tree)) == 4
    loo = parts.loo(tree)
    assert math.isfinite(loo.elpd)
    assert np.all(np.isfinite(tree["sample_stats"]["weights"]))
    assert len(parts.compare({"one": loo, "again": loo})) == 2


# --------------------------------------------------------------------------- guides and dtypes


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_guide_that_never_ran_is_set_up_and_can_be_trained(kind):
    """FAULTS 89: parameters that require a gradient."""
    y = normal_data()
    guide = kind(normal_model)
    idata = to_arviz(normal_model, guide, y, num_draws=5, seed=0)
    assert idata["posterior"]["mu"].shape == (1, 5)
    svi = SVI(normal_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(y) for _ in range(50)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_auto_flow_keeps_the_param_store_clean():
    y = normal_data()
    to_arviz(normal_model, pf.AutoFlow(normal_model), y, num_draws=5)
    assert not list(pyro.get_param_store())


def test_guide_list_and_guide_by_hand():
    y = normal_data()

    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    guides = AutoGuideList(model)
    guides.append(AutoNormal(poutine.block(model, hide=["mu"])))
    guides.append(AutoNormal(poutine.block(model, expose=["mu"])))

    def by_hand(y):
        pyro.sample("mu", dist.Normal(torch.tensor(2.0, requires_grad=True), 0.1))
        pyro.sample("scale", dist.Delta(torch.tensor(1.0)))

    for guide in (guides, by_hand):
        posterior = to_arviz(model, guide, y, num_draws=5, seed=0)["posterior"]
        assert set(posterior.data_vars) == {"mu", "scale"}
        assert posterior["mu"].dims == posterior["scale"].dims == ("chain", "draw")
    assert posterior.attrs["guide"] == "by_hand"
    assert np.all(posterior["scale"] == 1.0)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
    ],
)
def test_dtypes(dtype, stored):
    """FAULTS 89: from float16 to float64; files hold no narrower numbers than of 32 bits."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))
        pyro.deterministic("positive", x > 0)
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(1.0, dtype=dtype))

    def guide():
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))

    idata = to_arviz(model, guide, num_draws=4)
    assert idata["posterior"]["x"].dtype == idata["observed_data"]["y"].dtype == stored
    assert idata["posterior"]["positive"].dtype == bool


def test_one_draw():
    assert draw_once(constrained_model, num_draws=1)["posterior"]["real"].shape == (1, 1, 2, 3)


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_draws": 0}, "num_draws"),
        ({"num_draws": 2.5}, "num_draws"),
        ({"num_draws": True}, "num_draws"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"seed": -1}, "seed"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(DomainError, match=f"to_arviz: expected {says} to be an integer"):
        draw_once(normal_model, normal_data(), **options)


def test_not_a_model_and_not_a_guide():
    with pytest.raises(DomainError, match="to_arviz: expected a model to call; got None"):
        to_arviz(None, normal_model)
    with pytest.raises(DomainError, match="to_arviz: expected a guide to call; got 3"):
        to_arviz(normal_model, 3)


def test_latent_that_the_guide_lacks():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("mu", dist.Normal(z, 1.0))

    guide = AutoNormal(poutine.block(model, hide=["z"]))
    with pytest.raises(DomainError, match="every latent of the model; got none at 'z'"):
        to_arviz(model, guide)


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "log-likelihoods of the site 'y'"),
        ({"log_likelihood": False}, "predictive draws of the site 'y'"),
    ],
)
def test_model_that_draws_nan_is_reported(options, says, looped):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        scale = torch.where(mu > 0, 1.0, math.nan)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, scale.reshape(()) if looped else scale), obs=y)

    with pytest.raises(NonFiniteError, match=f"to_arviz: expected {says} without NaN"):
        draw_once(model, normal_data(), num_draws=100, **options)


def test_densities_and_deterministic_sites_may_be_nan_but_not_unsaid(caplog):
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        pyro.deterministic("root", mu.sqrt())
        pyro.factor("penalty", mu.log())

    idata = draw_once(model, num_draws=100)
    assert np.isnan(idata["posterior"]["root"]).any()
    assert "NaN in posterior['root']" in caplog.text
    assert "NaN in sample_stats['log_p']" in caplog.text


def test_guide_that_draws_nan_is_reported():
    def guide(y):
        pyro.sample("mu", dist.Normal(torch.tensor(math.nan), 1.0))

    with pytest.raises(NonFiniteError, match="draws of the site 'mu' without NaN"):
        to_arviz(normal_model, guide, normal_data())


def test_sites_and_shapes_that_change_from_draw_to_draw():
    def sites():
        if pyro.sample("mu", dist.Normal(0.0, 1.0)) > 0:
            pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def shapes():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("path", torch.zeros(2 if mu > 0 else 3))

    def guide():
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(
        DomainError, match="the same sites of the model in every draw; got 'extra'"
    ):
        to_arviz(sites, guide)
    with pytest.raises(ShapeError, match="at the site 'path'"):
        to_arviz(shapes, guide)
