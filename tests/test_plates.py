"""AutoPlateFlow: what it draws for the members of plates, whole and subsampled."""

import copy
import pickle

import plates
import pyro
import pyro.distributions as dist
import pytest
import torch
from plates import (
    NUM,
    Encoder,
    crossed_model,
    every_support,
    features_model,
    funnel_model,
    nested_model,
    rows_data,
    rows_model,
    rows_posterior,
)
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

import pyro_flows as pf

Y = rows_data()


def ready(model, *args, **options):
    guide = pf.AutoPlateFlow(model, **options)
    guide.initialise(*args)
    return guide


def draws(guide, num, *args, nesting=1):
    """Return ``num`` draws of each site, of shape ``(num, -1)``."""
    with torch.no_grad(), pyro.plate("draws", num, dim=-1 - nesting):
        return {name: value.reshape(num, -1).double() for name, value in guide(*args).items()}


def assert_posterior(drawn, y, tolerance):
    means, sds, _ = rows_posterior(y)
    for name, values in drawn.items():
        assert ((values.mean(0) - means[name]) / sds[name]).abs().max() < tolerance
        assert (values.std(0) / sds[name]).log().abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_is_the_posterior_of_a_gaussian_model(dtype):
    """Slopes and scales of the members come from one Gaussian over all latents."""
    y = rows_data(dtype=dtype)
    guide = ready(rows_model, y)
    assert all(parameter.dtype == dtype for parameter in guide.parameters())
    report = pf.diagnose(rows_model, guide, y, num_draws=1000, seed=0)
    assert report.elbo == pytest.approx(rows_posterior(y)[2], abs=1e-3)
    assert report.log_weights.std() < 0.05
    assert_posterior(draws(guide, 20_000, y), y, 0.05)


def test_subsampled_fit_comes_to_the_evidence():
    """FAULTS 53: here each member has latents of its own, whichever are drawn."""
    guide = ready(rows_model, Y, 20)
    result = pf.fit(rows_model, guide, Y, 20, steps=1000, particles=32, seed=0, progress=False)
    assert result.subsampled
    assert result.vectorized
    report = pf.diagnose(rows_model, guide, Y, num_draws=4000, seed=0)
    assert report.elbo == pytest.approx(rows_posterior(Y)[2], abs=0.1)
    assert_posterior(draws(guide, 10_000, Y), Y, 0.15)


@pytest.mark.parametrize("how", ["subsample", "create_plates", "subsample_size", "encode"])
def test_each_way_of_subsampling_draws_the_latents_of_those_members(how):
    """FAULTS 53: the same rows in guide and model, and the posterior of those rows."""
    members = torch.tensor([41, 3, 17])
    options = {}
    if how == "create_plates":
        options["create_plates"] = lambda *args: pyro.plate("rows", NUM, subsample=members, dim=-1)
    if how == "encode":
        options["encode"] = lambda rows, y, *args: y[rows, None]
    if how == "encode":
        guide = ready(rows_model, Y, **options)
        pf.fit(rows_model, guide, Y, steps=300, particles=8, seed=0, progress=False)
    else:
        guide = ready(rows_model, Y)
        guide.create_plates = options.get("create_plates")
    args = (Y, 3, None) if how == "subsample_size" else (Y, None, members)
    if how == "create_plates":
        args = (Y, None, None)
    means, sds, _ = rows_posterior(Y)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        guide_trace = poutine.trace(guide).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(rows_model, trace=guide_trace)).get_trace(*args)
        rows = model_trace.nodes["rows"]["value"]
        if how != "subsample_size":
            assert torch.equal(rows, members)
        assert torch.equal(model_trace.nodes["y"]["value"], Y[rows])
        assert guide_trace.nodes["rows"]["value"] is rows
        theta = guide_trace.nodes["theta"]
        assert ((theta["value"] - means["theta"][rows]) / sds["theta"][rows]).abs().max() < 5
        for name in ("theta", "_AutoPlateFlow_rows"):
            assert guide_trace.nodes[name]["scale"] == NUM / 3
        assert guide_trace.nodes["mu"]["scale"] == 1.0


def test_mini_batches_add_up_to_the_whole():
    """The ELBO's terms of all mini-batches, for one draw, are those of the whole data."""
    guide = ready(rows_model, Y)
    whole = poutine.trace(guide).get_trace(Y)
    terms = []
    for members in torch.arange(NUM).split(20):
        given = whole.copy()
        del given.nodes["rows"]
        for name in ("theta", "_AutoPlateFlow_rows"):
            given.nodes[name] = {**given.nodes[name], "value": whole.nodes[name]["value"][members]}
        args = Y, None, members
        part = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args)
        model = poutine.trace(poutine.replay(rows_model, trace=part)).get_trace(*args)
        terms.append(model.log_prob_sum() - part.log_prob_sum())
    model = poutine.trace(poutine.replay(rows_model, trace=whole)).get_trace(Y)
    expected = model.log_prob_sum() - whole.log_prob_sum()
    assert torch.stack(terms).mean().item() == pytest.approx(expected.item(), abs=1e-3)


MODELS = {
    "supports": (every_support, (), {}, 1),
    "nested": (nested_model, (torch.randn(4, 3),), {}, 2),
    "crossed": (crossed_model, (torch.randn(4, 3),), {}, 2),
    "other plates": (features_model, (torch.randn(5),), {"plates": ["rows"]}, 3),
    "funnel": (funnel_model, (Y[:7],), {}, 1),
}


@pytest.mark.parametrize("case", MODELS)
def test_draws_are_scored_as_the_changes_of_variables_say(case):
    """The kept log-density of a draw is the one that the inverse finds, site by site."""
    model, args, options, nesting = MODELS[case]
    guide = ready(model, *args, **options)
    noise = torch.Generator().manual_seed(0)
    for parameter in guide.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    with torch.no_grad(), pyro.plate("draws", 5, dim=-1 - nesting):
        drawn = poutine.trace(guide).get_trace(*args)
        again = drawn.copy()
        for name in [name for name in drawn.nodes if name.startswith("_Auto")]:
            again.nodes[name] = {**drawn.nodes[name], "value": drawn.nodes[name]["value"].clone()}
        scored = poutine.trace(poutine.replay(guide, trace=again)).get_trace(*args)
    drawn.compute_log_prob()
    scored.compute_log_prob()
    for name, site in drawn.nodes.items():
        if site["type"] == "sample":
            ours, honest = site["log_prob"], scored.nodes[name]["log_prob"]
            assert torch.allclose(ours, honest, atol=2e-3, rtol=1e-3), name


@pytest.mark.parametrize("case", MODELS)
def test_structures_run_under_elbos_and_fit(case):
    model, args, options, nesting = MODELS[case]
    guide = ready(model, *args, **options)
    sites = guide(*args)
    expected = poutine.trace(model).get_trace(*args)
    for name, value in sites.items():
        assert value.shape == expected.nodes[name]["value"].shape
        assert expected.nodes[name]["fn"].support.check(value).all()
    assert {name: v.shape for name, v in guide.median(*args).items()} == {
        name: v.shape for name, v in sites.items()
    }
    before = pf.diagnose(model, guide, *args, num_draws=500, seed=0).elbo
    result = pf.fit(model, guide, *args, steps=40, particles=16, seed=0, progress=False)
    assert result.vectorized
    assert result.elbo > before - 0.5
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        many = elbo(300, vectorize_particles=True, max_plate_nesting=nesting)
        assert many.loss(model, guide, *args) == pytest.approx(-result.elbo, abs=1.0)
    bound = RenyiELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=nesting)
    assert -bound.loss(model, guide, *args) > result.elbo - 0.5


def test_members_of_a_nested_plate_follow_those_of_the_outer_one():
    """In a Gaussian model the start is exact, all correlations among them."""
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    report = pf.diagnose(nested_model, ready(nested_model, y), y, num_draws=1000, seed=0)
    assert report.log_weights.std() < 0.05


def test_density_of_members_integrates_to_one():
    guide = ready(funnel_model, Y[:3])
    noise = torch.Generator().manual_seed(0)
    for parameter in guide.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)
    part, (block,) = guide.parts.blocks[0], guide.layout.blocks
    follows = torch.randn(2, generator=noise)
    fn = part.distribution(block, [None], follows, None, path_gradient=False)
    grid = torch.linspace(-40, 40, 40_001)
    with torch.no_grad():
        densities = fn.log_prob(grid[:, None, None].expand(-1, 3, 1)).exp()
    assert torch.allclose(torch.trapezoid(densities, grid, dim=0), torch.ones(3), atol=1e-3)


def test_path_gradient_vanishes_at_the_posterior():
    """Also what reaches the global latents through the members that follow them."""
    y, norms = rows_data(8, torch.float64), {}
    for gradient in ("path", "total"):
        pyro.clear_param_store()
        guide = ready(rows_model, y, gradient=gradient)
        Trace_ELBO(8, vectorize_particles=True)(rows_model, guide)(y).backward()
        norms[gradient] = max(p.grad.abs().max() for p in guide.parameters() if p.grad is not None)
    assert norms["path"] < 1e-3 * norms["total"]


def test_both_gradients_have_one_mean():
    """The path gradient is unbiased away from the posterior, over many draws."""
    means = {}
    for gradient in ("path", "total"):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = ready(funnel_model, Y[:3], gradient=gradient)
        part = guide.parts.blocks[0]
        # Of the members alone: far draws of the global latents would rule both means.
        for parameter in part.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        Trace_ELBO(40_000, vectorize_particles=True)(funnel_model, guide)(Y[:3]).backward()
        moved = part.members.shift, part.members.slope, part.members.embedding
        means[gradient] = torch.cat([parameter.grad.flatten() for parameter in moved])
    assert (means["path"] - means["total"]).abs().max() < 0.05 * means["total"].abs().max()


@pytest.mark.parametrize(
    "elbo",
    [Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO(8, vectorize_particles=True)],
    ids=lambda elbo: type(elbo).__name__,
)
def test_svi_trains_it_on_subsamples(elbo):
    y = rows_data(12)
    guide = pf.AutoPlateFlow(rows_model, start="prior")
    svi = SVI(rows_model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    losses = [svi.step(y, 6) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_predictive_and_arviz_and_diagnose():
    guide = ready(rows_model, Y)
    for parallel in (False, True):
        drawn = Predictive(rows_model, guide=guide, num_samples=5, parallel=parallel)(Y)
        assert drawn["y"].shape == (5, NUM)
        assert drawn["theta"].shape == (5, NUM)
    data = pf.to_arviz(rows_model, guide, Y, num_draws=50)
    assert data["posterior"]["theta"].shape == (1, 50, NUM)
    assert data["posterior"]["theta"].dims[2:] == ("rows",)
    part = pf.to_arviz(rows_model, guide, Y, None, torch.tensor([4, 2]), num_draws=50)
    assert part["posterior"]["theta"].shape == (1, 50, 2)


def test_median_is_of_all_members_though_some_are_drawn():
    guide = ready(rows_model, Y)
    means, sds, _ = rows_posterior(Y)
    for size in (None, 20):
        median = guide.median(Y, size)["theta"]
        assert ((median - means["theta"]) / sds["theta"]).abs().max() < 0.1
    assert guide.median(Y, None, torch.tensor([4, 2]))["theta"].shape == (2,)


def test_engines_agree():
    losses = {}
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(0)
        guide = ready(rows_model, Y, 20)
        result = pf.fit(
            rows_model, guide, Y, 20, steps=8, particles=4, seed=0, engine=engine, progress=False
        )
        losses[engine] = torch.as_tensor(result.losses)
    assert torch.allclose(losses["eager"], losses["traced"], rtol=1e-4)


def test_copies_and_pickles_are_of_the_same_guide():
    """FAULTS 37, 38."""
    guide = ready(rows_model, Y, encode=Encoder())
    twin = copy.deepcopy(guide)
    pyro.set_rng_seed(0)
    expected = guide(Y)["theta"]
    pyro.set_rng_seed(0)
    assert torch.equal(twin(Y)["theta"], expected)
    plain = pickle.loads(pickle.dumps(ready(rows_model, Y)))
    assert plain(Y)["theta"].shape == (NUM,)
    with pytest.raises(pf.DomainError, match=r"pickled.*pyro_flows.save"):
        pickle.loads(pickle.dumps(guide))(Y)


def test_two_guides_train_in_one_store():
    """FAULTS 41."""
    for model, args in ((rows_model, (Y,)), (funnel_model, (Y[:5],))):
        guide = pf.AutoPlateFlow(model, start="prior")
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        svi.step(*args)
        before = [parameter.clone() for parameter in guide.parameters()]
        svi.step(*args)
        moved = [(a != b).any() for a, b in zip(before, guide.parameters(), strict=True)]
        assert sum(map(bool, moved)) > len(moved) / 3
    assert plates.NUM == NUM


def test_encoder_serves_members_that_are_new():
    guide = ready(rows_model, Y, encode=Encoder())
    pf.fit(rows_model, guide, Y, steps=400, particles=16, lr=0.01, seed=0, progress=False)
    y = torch.linspace(-1.0, 4.0, 100)
    theta = draws(guide, 2000, y)["theta"]
    own = plates.SPREAD**2 / (plates.SPREAD**2 + plates.NOISE**2)
    mean = own * y.double() + (1 - own) * rows_posterior(Y)[0]["mu"]
    assert ((theta.mean(0) - mean) / (own**0.5 * plates.NOISE)).abs().max() < 0.25


def test_members_have_tables_beside_an_encoder():
    """Of a plate that is subsampled: what an encoder does not see, a member's own map adds."""
    guide = ready(rows_model, Y, 20, encode=lambda rows, y, *_: y[rows, None] * 0, embed=True)
    pf.fit(rows_model, guide, Y, 20, steps=600, particles=16, lr=0.02, seed=0, progress=False)
    means, *_ = rows_posterior(Y)
    theta = guide.median(Y, 20)["theta"].double()
    own = plates.SPREAD**2 / (plates.SPREAD**2 + plates.NOISE**2)
    assert ((theta - means["theta"]) / (own**0.5 * plates.NOISE)).abs().mean() < 0.3


def test_outer_plate_is_encoded_where_the_inner_has_tables():
    """The outer one is subsampled, and so has no table that the inner one's would fit."""

    def model(y, size=None):
        with pyro.plate("outer", y.shape[0], dim=-2, subsample_size=size) as rows:
            outer = pyro.sample("outer_z", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", y.shape[1], dim=-1):
                inner = pyro.sample("inner_z", dist.Normal(outer, 1.0))
                pyro.sample("y", dist.Normal(inner, 1.0), obs=y[rows])

    y = torch.randn(6, 3)
    encode = {"outer": lambda rows, y, *_: y[rows].mean(-1, keepdim=True)}
    guide = pf.AutoPlateFlow(model, encode=encode, start="prior")
    assert guide(y, 4)["outer_z"].shape == (4, 1)
    assert guide(y, 4)["inner_z"].shape == (4, 3)
    assert guide.median(y)["inner_z"].shape == (6, 3)


def test_ragged_groups_are_padded_and_masked():
    """Against the evidence of the entries that are there; what pads them counts for nothing."""
    counts = torch.tensor([5, 2, 4, 1])
    there = torch.arange(5) < counts[:, None]

    def model(y, mask):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("groups", len(y), dim=-2):
            group = pyro.sample("group", dist.Normal(mean, 1.0))
            with pyro.plate("rows", y.shape[1], dim=-1), poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(group, 1.0), obs=y)

    y = torch.randn(4, 5).masked_fill(~there, 1e6)
    of_group = torch.arange(4)[:, None].expand(4, 5)[there]
    covariance = 4.0 + (of_group[:, None] == of_group).double() + torch.eye(len(of_group))
    marginal = dist.MultivariateNormal(torch.zeros(len(of_group)).double(), covariance)
    result = pf.fit(model, pf.AutoPlateFlow(model), y, there, steps=300, seed=0, progress=False)
    assert result.elbo == pytest.approx(float(marginal.log_prob(y[there].double())), abs=0.02)


def test_model_without_global_latents():
    def model(y):
        with pyro.plate("rows", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    report = pf.diagnose(model, ready(model, Y), Y, num_draws=500, seed=0)
    assert report.log_weights.std() < 0.01
