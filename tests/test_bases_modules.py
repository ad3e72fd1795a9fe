"""The bases of flows as modules and as distributions: dtypes, shapes, copies and engines."""

import copy
import pickle

import bases
import contracts
import pytest
import torch
import zoo
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows.distributions import BaseDistribution, Box
from pyro_flows.errors import DomainError, ShapeError

DTYPES = [torch.float32, torch.float64]
EVERY = pytest.mark.parametrize("name", bases.BASES)
EVERY_TRAINED = pytest.mark.parametrize("name", bases.TRAINED)


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY
def test_dtype_follows_the_module(name, dtype, default):
    """FAULTS 8."""
    torch.set_default_dtype(default)
    base = bases.BASES[name](2).to(dtype)
    x = base.rsample((4,))
    assert (x.dtype, base.log_prob(x).dtype) == (dtype, dtype)
    half = bases.BASES[name](2).to(torch.bfloat16)
    y = half.rsample((4,))
    assert (y.dtype, half.log_prob(y).dtype) == (torch.bfloat16, torch.float32)


@EVERY
def test_shapes(name):
    """FAULTS 3."""
    base = bases.build(name, 3)
    assert (base.batch_shape, base.event_shape, base.support.event_dim) == ((), (3,), 1)
    wide = base.expand((2, 1)).expand((2, 5))
    x = wide.rsample((4,))
    assert (x.shape, wide.log_prob(x).shape) == ((4, 2, 5, 3), (4, 2, 5))
    assert base.log_prob(x[0, 0, 0]).shape == ()
    assert wide.log_prob(x[0, 0, 0]).shape == (2, 5)
    assert base.log_prob(x[:0]).shape == (0, 2, 5)
    assert len({tuple(row) for row in x.flatten(0, -2).tolist()}) == 40
    assert all(a is b for a, b in zip(base.parameters(), wide.parameters(), strict=True))
    contracts.close(wide.log_prob(x)[1, 1, 3], base.log_prob(x[1, 1, 3]), "log-density")


@EVERY
def test_bad_values(name):
    """FAULTS 1, 7, 8."""
    base = bases.BASES[name](3)
    who = type(base).__name__
    with pytest.raises(ShapeError, match=rf"^{who}: expected value of shape \(\*, 3\)"):
        base.log_prob(torch.zeros(2))
    with pytest.raises(DomainError, match=rf"^{who}: expected value to be a real floating-point"):
        base.log_prob(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"\(4,\) of value and \(5,\) of distribution"):
        base.expand((5,)).log_prob(torch.zeros(4, 3))
    if name in bases.TRAINED:
        with pytest.raises(DomainError, match="got float64 value and float32 parameters"):
            base.log_prob(torch.zeros(3).double())


@EVERY
def test_copies_after_use_are_equal_and_hold_no_data(name):
    """FAULTS 37, 39: a state_dict carries the density, that of a box as well."""
    base = bases.build(name)
    x = contracts.leaf(bases.points(base, 5))
    (base.log_prob(x).sum() + base.rsample((3,)).sum() + 0 * x.sum()).backward()
    base.log_prob(torch.full((2,), contracts.SENTINEL).double())
    contracts.holds_no_data(base)
    loaded = bases.BASES[name](2).double()
    if name == "box":
        loaded = Box(2).double()
    loaded.load_state_dict(base.state_dict())
    for clone in (copy.deepcopy(base), copy.copy(base), pickle.loads(pickle.dumps(base)), loaded):
        assert torch.equal(clone.log_prob(x), base.log_prob(x))
    contracts.tensors_are_state(base)


def test_base_of_ones_own_says_what_is_missing():
    base = BaseDistribution(2)
    for use, missing in ((base.rsample, "_draw"), (lambda: base.log_prob(torch.zeros(2)), "_log")):
        with pytest.raises(
            NotImplementedError, match=f"BaseDistribution does not define {missing}"
        ):
            use()


# Engines.


# torch vmaps the gradient of gamma draws row by row, and says that this is slow.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@EVERY
def test_vmap_is_batch(name):
    """FAULTS 35: over points, over draws, and over stacked parameters with their gradients."""
    base = bases.build(name)
    x, members = bases.points(base, 6), [bases.build(name, scale=scale) for scale in (0.1, 0.5)]
    mapped = torch.func.vmap(base.log_prob)(x)
    contracts.close(mapped, base.log_prob(x), "log-density under vmap", inputs=x)
    draws = torch.func.vmap(lambda _: base.rsample((3,)), randomness="different")(torch.zeros(4))
    assert draws.shape == (4, 3, 2)
    assert len(draws.unique()) == 24
    stacked, buffers = torch.func.stack_module_state([bases.Scorer(member) for member in members])

    def score(parameters, buffers):
        return torch.func.functional_call(bases.Scorer(base), (parameters, buffers), (x,))

    want = torch.stack([member.log_prob(x) for member in members])
    contracts.close(torch.func.vmap(score)(stacked, buffers), want, "members under vmap")

    def draw_gradients(parameters, buffers):
        def total(given):
            call = torch.func.functional_call(bases.Scorer(base), (given, buffers), ((5,),))
            return call.sum()

        return torch.func.grad(total)(parameters)

    gradients = torch.func.vmap(draw_gradients, randomness="different")(stacked, buffers)
    for key, gradient in gradients.items():
        assert gradient.shape == stacked[key].shape
        contracts.finite(gradient, f"gradient of {key}")


@EVERY_TRAINED
def test_trace_is_eager(name):
    """A step traced by ``make_fx``, draws and gradients and all, gives the eager numbers."""
    base = bases.build(name)
    scorer = bases.Scorer(base)

    def step(parameters, x):
        draws = torch.func.functional_call(scorer, parameters, ((7,),))
        score = torch.func.functional_call(scorer, parameters, (x,))
        leaves = list(parameters.values())
        gradients = torch.autograd.grad(draws.sin().sum() + score.sum(), leaves)
        return [draws, score, *gradients]

    parameters = {key: contracts.leaf(value) for key, value in scorer.named_parameters()}
    traced = make_fx(step)(parameters, bases.points(base, 4))
    other = zoo.points(4, 2, seed=9)
    results = []
    for run in (traced, step):
        torch.manual_seed(3)
        results.append(run(parameters, other))
    for got, want in zip(*results, strict=True):
        contracts.close(got.detach(), want.detach(), "traced step")
