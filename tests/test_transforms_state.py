"""What a transform keeps: parameters and buffers, and nothing else."""

import copy

import contracts
import pyro.optim
import pytest
import torch
import zoo

from pyro_flows.distributions import Flow
from pyro_flows.transforms import AffineCoupling, Sylvester

CASES = zoo.rows(zoo.KINDS)
LEARNABLE = [(name, c) for name, c in CASES if name in zoo.learnable()]
D = 3


def _case(name, c):
    transform = zoo.build(name, D, c)
    return transform, zoo.points(5, D), zoo.context_for(transform, 5)


def _density(transform, x, context):
    flow = Flow(transform)
    return (flow if context is None else flow.condition(context)).log_prob(x)


@pytest.mark.parametrize(("name", "c"), CASES)
def test_copies_are_equal(name, c):
    """FAULTS 37: deepcopy, copy, pickle and torch.save, after use with gradients."""
    contracts.copies_are_equal(*_case(name, c))


@pytest.mark.parametrize(("name", "c"), CASES)
def test_saved_file_holds_no_data(name, c):
    """FAULTS 38."""
    transform, x, context = _case(name, c)
    x[2, 1] = contracts.SENTINEL
    contracts.use(transform, x, context)
    y = transform(x) if context is None else transform.condition(context)(x)
    contracts.use(transform, torch.full_like(y, contracts.SENTINEL), context)
    contracts.holds_no_data(transform)


def test_sentinel_would_be_found():
    """The search above can fail."""
    module = torch.nn.Module()
    module.memo = torch.full((3,), contracts.SENTINEL)
    with pytest.raises(AssertionError, match="holds its data"):
        contracts.holds_no_data(module)


@pytest.mark.parametrize(("name", "c"), CASES)
def test_state_dict_carries_the_density(name, c):
    """FAULTS 39: loaded into a module that was built under another seed."""
    transform, x, context = _case(name, c)
    torch.manual_seed(99)
    other = zoo.build(name, D, c, seed=7)
    contracts.use(transform, x, context)
    if name in zoo.learnable():
        assert not torch.equal(_density(other, x, context), _density(transform, x, context))
    other.load_state_dict(transform.state_dict())
    assert torch.equal(_density(other, x, context), _density(transform, x, context))


def test_state_dict_carries_permutations_and_masks():
    """FAULTS 39, 75: permutations and masks are buffers, drawn from their own seed alone."""
    x = zoo.points(5, 4)
    one, other = zoo.Permute.random(4, seed=0), zoo.Permute.random(4, seed=1)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    contracts.same_map(other, one, x, None)
    masks = [True, False, True, False], [False, True, False, True]
    couplings = [zoo.randomise(zoo.AffineCoupling(4, mask=mask).double()) for mask in masks]
    assert not torch.equal(couplings[0](x), couplings[1](x))
    couplings[1].load_state_dict(couplings[0].state_dict())
    contracts.same_map(couplings[1], couplings[0], x, None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "c"), CASES)
def test_use_changes_no_state(name, c, training):
    transform, x, context = _case(name, c)
    transform.train(training)
    before = copy.deepcopy(transform.state_dict())
    attributes = {key: dict(vars(owner)) for key, owner in transform.named_modules()}
    frozen = {key: p.requires_grad for key, p in transform.named_parameters()}
    contracts.use(transform, x, context)
    after = transform.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert frozen == {key: p.requires_grad for key, p in transform.named_parameters()}
    for key, owner in transform.named_modules():
        # The inverse, a view that torch keeps, is the one attribute that may come up.
        assert set(vars(owner)) - {"_inv"} == set(attributes[key]) - {"_inv"}, key


@pytest.mark.parametrize(("name", "c"), CASES)
def test_frozen_parameters_stay_frozen(name, c):
    """FAULTS 43."""
    transform, x, context = _case(name, c)
    transform.requires_grad_(False)
    for _, direction in contracts.directions(transform):
        assert not any(out.requires_grad for out in direction(x, context))
    assert not any(p.requires_grad for p in transform.parameters())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_tensor_is_a_parameter_or_a_buffer(name):
    """FAULTS 9: so that ``.to()`` moves all of them."""
    c = 2 if name in zoo.names(2) else 0
    transform, x, context = _case(name, c)
    contracts.use(transform, x, context)
    contracts.tensors_are_state(transform)


def _in_place(parameters):
    for parameter in parameters:
        parameter.add_(0.1)


def _by_data(parameters):
    for parameter in parameters:
        parameter.data.add_(0.1)


def _by_clipped_adam(parameters):
    optimiser = pyro.optim.ClippedAdam({"lr": 0.1})
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser(parameters)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("change", [_in_place, _by_data, _by_clipped_adam])
@pytest.mark.parametrize(("name", "c"), LEARNABLE)
def test_values_are_fresh_after_parameters_move(name, c, change, grad):
    """FAULTS 36: the same tensor object, scored before and after a step of an optimiser."""
    transform, x, context = _case(name, c)
    with torch.set_grad_enabled(grad):
        before = _density(transform, x, context), transform.forward_and_ladj(x, context)[0]
    with torch.no_grad():
        change(transform.parameters())
    twin = copy.deepcopy(transform)
    with torch.set_grad_enabled(grad):
        after = _density(transform, x, context), transform.forward_and_ladj(x, context)[0]
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert torch.equal(after[0], _density(twin, x.clone(), context))


@pytest.mark.parametrize(("name", "c"), LEARNABLE)
def test_one_data_tensor_trains_for_many_steps(name, c):
    """FAULTS 36: a cache keyed on the data would keep a freed graph."""
    transform, x, context = _case(name, c)
    optimiser = torch.optim.Adam(transform.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = -_density(transform, x, context).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_functional_state_with_another_mask_is_used():
    """FAULTS 39: as an ensemble by ``torch.func`` has it; slices must not outlive their mask."""
    masks = [None, [False, False, True, True], [True, False, True, False]]
    members = [
        zoo.randomise(contracts.Caller(AffineCoupling(4, mask=mask), "forward"), seed=seed)
        for seed, mask in enumerate(masks)
    ]
    x = zoo.points(5, 4, dtype=torch.float32)
    parameters, buffers = torch.func.stack_module_state(members)
    for base in members:

        def run(parameters, buffers, base=base):
            return torch.func.functional_call(base, (parameters, buffers), (x,))[0]

        got = torch.func.vmap(run)(parameters, buffers)
        contracts.close(got, torch.stack([member(x)[0] for member in members]), "ensemble")


@pytest.mark.parametrize("mask", [None, [False, True, False, True], [False, False, True, True]])
def test_loaded_mask_is_used(mask):
    """FAULTS 39."""
    saved = zoo.randomise(AffineCoupling(4, mask=mask))
    for other in (None, [False, False, True, True], [True, False, False, True]):
        fresh = AffineCoupling(4, mask=other)
        fresh.load_state_dict(saved.state_dict())
        contracts.same_map(fresh, saved, zoo.points(5, 4, dtype=torch.float32), None)


def test_loaded_direction_of_a_sylvester_transform_is_used():
    """FAULTS 39."""
    saved = zoo.randomise(Sylvester(4, num_hidden=2, num_reflections=0, reverse=True))
    fresh = Sylvester(4, num_hidden=2, num_reflections=0)
    fresh.load_state_dict(saved.state_dict())
    contracts.same_map(fresh, saved, zoo.points(5, 4, dtype=torch.float32), None)
