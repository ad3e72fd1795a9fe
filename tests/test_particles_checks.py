"""What vmap and a plate must not run is found out, and the reason told in one line."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import ready, regression_data

import pyro_flows as pf
from pyro_flows.infer import Particles

X, Y = regression_data()


@pytest.fixture(autouse=True)
def _own_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def latent():
    return pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def data(mean):
    with pyro.plate("rows", len(Y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)


def reads_a_value():
    z = latent()
    data(X @ z + z[0].item())


def branches():
    z = latent()
    data(X @ z if z[0] > 0 else -(X @ z))


def writes_in_place():
    z, shifts = latent(), torch.zeros(len(Y))
    for k in range(4):
        shifts[k] = z[k]
    data(X @ z + shifts)


def leaves_torch():
    z = latent()
    data(X @ z + torch.from_numpy(np.sin(z.detach().numpy())).sum())


def draws_outside_torch():
    data(X @ latent() + float(np.random.default_rng().normal()))


@pytest.mark.parametrize(
    "model",
    [reads_a_value, branches, writes_in_place, leaves_torch, draws_outside_torch],
    ids=lambda model: model.__name__,
)
def test_model_that_neither_way_runs_rightly_is_looped_and_says_why(model):
    particles = Particles(model, ready(model, start="prior"), (), {})
    assert particles.broadcast.how == "loop"
    assert not particles.vectorized
    plate, vmap = particles.broadcast.reason.split(", and the model ")
    assert plate.startswith("the model ")
    assert "under a particle plate" in plate
    assert "under torch.func.vmap" in vmap
    assert "\n" not in particles.broadcast.reason
    assert len(particles.broadcast.reason) < 500
    assert len(set(particles.score(4).log_p.tolist())) == 4


class Batched(torch.autograd.Function):
    """Twice the square; a rule that vmap calls, or a derivative, can be wrong."""

    wrong_rule, wrong_derivative = False, False

    @staticmethod
    def forward(z):
        return 2 * z.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        derivative = 4 * z
        if Batched.wrong_derivative and z.dim() > 1:
            derivative = torch.zeros_like(z)
        return grad * derivative

    @staticmethod
    def vmap(info, in_dims, z):
        mixed = z.mean(0, keepdim=True).expand_as(z) if Batched.wrong_rule else z
        return Batched.apply(mixed), 0


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        ("wrong_rule", "has other log-densities at the site 'y'"),
        ("wrong_derivative", "has another gradient"),
        (None, None),
    ],
)
def test_vmap_that_comes_out_otherwise_is_not_used(flaw, told, monkeypatch):
    if flaw is not None:
        monkeypatch.setattr(Batched, flaw, True)

    def model():
        data(X @ Batched.apply(latent()))

    particles = Particles(model, ready(model, start="prior"), (), {})
    if flaw is None:
        assert particles.broadcast.how == "vmap"
    else:
        assert particles.broadcast.how == "loop"
        assert f"the model {told} under torch.func.vmap" in particles.broadcast.reason


@pytest.mark.parametrize("for_one", [False, True])
def test_guide_that_draws_once_for_all_particles_is_looped(for_one):
    """The densities would agree, and the particles would be one."""
    generator = np.random.default_rng(0)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.5))
        z = pyro.sample("z", dist.Delta(loc + float(generator.normal())))
        assert not for_one or z.dim() == 0

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    particles = Particles(model, guide, (), {})
    assert particles.broadcast.how == "loop"
    assert "draws the site 'z' once for all particles" in particles.broadcast.reason
    assert len(set(particles.score(5).log_p.tolist())) == 5


def test_point_estimate_is_no_draw():
    def guide():
        pyro.sample("z", dist.Delta(pyro.param("loc", torch.tensor(0.5))))

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert Particles(model, guide, (), {}).broadcast.how == "plate"


def fails_far_out(mixes):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if bool((z.abs() > 4).any()):
            raise RuntimeError("linalg.cholesky: the input is not positive-definite")
        mean = z.sum() if mixes else z.sum(-1)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(0.0))

    return model


def infinite_far_out(mixes):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z.sum() if mixes else z.sum(-1)
        beyond = z.abs().amax(-1) > 4
        pyro.factor("f", torch.where(beyond, -torch.inf, -mean))

    return model


@pytest.mark.parametrize("far_out", [fails_far_out, infinite_far_out])
@pytest.mark.parametrize("mixes", [True, False])
def test_check_keeps_to_where_the_model_is_defined(far_out, mixes):
    model = far_out(mixes)

    def guide():
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    torch.manual_seed(0)
    assert Particles(model, guide, (), {}).broadcast.model != mixes


def test_model_that_fails_in_single_runs_raises_its_own_error():
    runs = []

    def model():
        runs.append(pyro.sample("z", dist.Normal(0.0, 1.0)))
        if len(runs) > 1:
            raise RuntimeError("no more")

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(RuntimeError, match="no more"):
        Particles(model, guide, (), {})


def test_a_models_own_warning_is_handed_on_and_its_filters_are_left_alone():
    def model():
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        data(X @ latent())

    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        particles = Particles(model, ready(model, start="prior"), (), {})
        heard.clear()
        particles.score(3)
    assert particles.broadcast.how == "vmap"
    assert [str(warning.message) for warning in heard] == ["mind the gap"]
    assert warnings.filters == before


@pytest.mark.parametrize("guide_of", [pf.AutoFlow, pf.AutoPlateFlow])
def test_rounding_of_a_simplex_is_no_difference(guide_of):
    """Batches of two shapes round it otherwise, and to a Delta the last bit is all."""

    def model(classes):
        weights = pyro.sample("weights", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))
        with pyro.plate("groups", 12):
            shares = pyro.sample("shares", dist.Dirichlet(weights))
            pyro.sample("classes", dist.Categorical(shares), obs=classes)

    classes = torch.arange(12) % 3
    pyro.set_rng_seed(0)
    guide = guide_of(model, start="prior")
    guide.initialise(classes)
    for _ in range(5):
        assert Particles(model, guide, (classes,), {}).broadcast.how == "plate"
