"""The ladder by itself: what can be recorded, what falls back, and what is refused."""

import logging
import random

import numpy as np
import pytest
import torch
from steps import assert_same_numbers, plain_step
from torch import nn

from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import Engine, runner

X = torch.linspace(-1.0, 2.0, 12)


def batch_of(*args, **kwargs):
    return args, kwargs


def parameter():
    return nn.Parameter(torch.tensor([0.3, -0.2]))


def engine_of(function, *parameters, rung="auto", steps=1000, **options):
    return Engine("fit", plain_step(function, *parameters), rung, steps, **options)


def noisy(w, x):
    return ((w[0] * x + w[1] - torch.randn(x.shape)) ** 2).mean()


def take(engine, batch, seed):
    torch.manual_seed(seed)
    loss, norm = engine(batch)
    return [loss, norm, *(tensor.grad for tensor in engine._step.flat.tensors)]


def assert_agrees_with_eager_steps(make, batches, rung="auto", expected=None):
    """Compare engines on two rungs step by step, while the parameters move."""
    eager, other = make("eager"), make(rung)
    for seed, batch in enumerate(batches):
        theirs, ours = take(eager, batch, seed), take(other, batch, seed)
        assert_same_numbers(ours, theirs, 1e-5)
        with torch.no_grad():
            for engine in (eager, other):
                for tensor in engine._step.flat.tensors:
                    tensor.sub_(0.1 * tensor.grad)
    other.close()
    if expected is not None:
        assert other.rung == expected
    return other


def on_parameter(function):
    """Return what makes an engine on a rung, of a loss of one parameter."""

    def make(rung):
        w = parameter()
        return engine_of(lambda *args, **kwargs: function(w, *args, **kwargs), w, rung=rung)

    return make


def test_traced_steps_agree_while_the_parameters_move():
    batches = [batch_of(X)] * 5
    assert_agrees_with_eager_steps(on_parameter(noisy), batches, expected="traced")


def test_short_runs_are_not_recorded_unless_asked():
    w = parameter()
    for rung, steps, expected in [("auto", 20, "eager"), ("traced", 20, "traced")]:
        engine = engine_of(lambda x: noisy(w, x), w, rung=rung, steps=steps)
        engine(batch_of(X))
        assert engine.rung == expected


def reads_number(w, x):
    return noisy(w, x) * x.max().item()


def branches(w, x):
    return noisy(w, x) * (2.0 if x.sum() > 0 else 1.0)


def reads_list(w, x):
    return noisy(w, x) * sum((torch.randn(3) * w[0]).tolist())


def reads_array(w, x):
    return noisy(w, x) * float((torch.randn(3) + w[0].detach()).numpy().sum())


def draws_by_numpy(w, x):
    return noisy(w, x) + (w * float(np.random.normal())).sum()  # noqa: NPY002


def draws_by_own_numpy(w, x, source=np.random.default_rng(0)):  # noqa: B008
    return noisy(w, x) + (w * float(source.normal())).sum()


def draws_by_python(w, x):
    return noisy(w, x) + (w * random.random()).sum()


def reseeds(w, x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fixed = torch.randn(3)
    return noisy(w, x) + (w[0] * fixed).square().sum()


def grows(w, x, calls=[]):  # noqa: B006
    calls.append(None)
    return noisy(w, x) * len(calls)


def changes_length(w, x):
    kept = x[torch.randn(x.shape) > 0.5]
    return noisy(w, x) + (w[0] * kept).sum()


def asks_for_derivatives(w, x):
    w = w.clone()
    w.register_hook(lambda grad: grad * float(grad.abs().max()))
    return noisy(w, x)


def hides_behind_a_large_loss(w, x):
    """As of many data, against which a difference in the gradient is small."""
    return draws_by_own_numpy(w, x) + 1e6


UNTRACEABLE = [
    hides_behind_a_large_loss,
    reads_number,
    branches,
    reads_list,
    reads_array,
    draws_by_numpy,
    draws_by_own_numpy,
    draws_by_python,
    reseeds,
    grows,
    changes_length,
    asks_for_derivatives,
]


@pytest.mark.parametrize("function", UNTRACEABLE, ids=lambda function: function.__name__)
def test_what_cannot_be_recorded_runs_eagerly_and_says_why_in_one_line(function, caplog):
    w = parameter()
    engine = engine_of(lambda x: function(w, x), w)
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        for _ in range(3):
            loss, norm = engine(batch_of(X))
    assert engine.rung == "eager"
    assert bool(loss.isfinite())
    assert bool(norm.isfinite())
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("fit: runs eager steps, not traced ones: ")
    assert "\n" not in message
    assert len(message) > 60


@pytest.mark.parametrize("rung", ["traced", "compiled"])
@pytest.mark.parametrize("function", [reads_number, reads_array, draws_by_python])
def test_what_cannot_be_recorded_is_refused_where_it_was_asked_for(function, rung):
    w = parameter()
    engine = engine_of(lambda x: function(w, x), w, rung=rung)
    with pytest.raises(DomainError, match=f"fit: expected a step that can .* engine='{rung}'"):
        engine(batch_of(X))
    with pytest.raises(DomainError, match="because"):
        engine_of(lambda x: noisy(w, x), w, rung=rung, untraceable="because")


def reads_parameter(w, x):
    return noisy(w, x) * (1.0 + w[0].item() ** 2)


def reads_leaf(w, x):
    return noisy(w, x) + (w.tolist()[0] * w).sum()


def reads_parameters_array(w, x):
    return noisy(w, x) + (float(w.detach().numpy()[0]) * w).sum()


@pytest.mark.parametrize("function", [reads_parameter, reads_leaf, reads_parameters_array])
def test_values_of_parameters_are_not_baked_in(function):
    assert_agrees_with_eager_steps(on_parameter(function), [batch_of(X)] * 5)


def reads_data(w, x):
    return noisy(w, x) * float(x.numpy().max())


def reads_list_of_data(w, x):
    return noisy(w, x) * x.tolist()[0]


@pytest.mark.parametrize("function", [reads_data, reads_list_of_data])
def test_values_of_data_are_not_baked_in(function):
    batches = [batch_of(X), batch_of(X + 1), batch_of(X), batch_of(X - 3)]
    assert_agrees_with_eager_steps(on_parameter(function), batches)


def masks(w, x):
    kept = x[x > 0]
    return noisy(w, x) + (w[0] * kept).mean()


def test_lengths_that_depend_on_the_data_are_not_baked_in():
    batches = [batch_of(X), batch_of(X + 0.5), batch_of(X - 0.5)]
    assert_agrees_with_eager_steps(on_parameter(masks), batches)


@pytest.mark.parametrize("order", [1, -1])
def test_same_tensor_given_twice_and_then_two(order):
    """FAULTS 54."""
    batches = [batch_of(X, X), batch_of(X, X + 1), batch_of(X, target=X), batch_of(X, target=-X)]

    def function(w, x, target):
        return ((w[0] * x + w[1] - target) ** 2).mean()

    assert_agrees_with_eager_steps(on_parameter(function), batches[::order])


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_data(layout):
    dense = (X.reshape(3, 4) > 0).float()

    def function(w, x):
        return ((x @ torch.ones(4, 1)).squeeze() * w[0] + w[1]).square().sum()

    batches = [batch_of(getattr(x, layout)()) for x in (dense, 2 * dense)]
    assert_agrees_with_eager_steps(on_parameter(function), batches)


class Box:
    """Data in an object of a class that the engine does not know."""

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("wrap", [Box, lambda x: x.numpy().copy()], ids=["object", "array"])
def test_data_in_objects_of_other_kinds_are_told_apart(wrap):
    """Each lives for one step, so the next may lie at the same address."""

    def batches():
        for k in range(30):
            yield batch_of(wrap(X + k % 7))

    def function(w, data):
        x = data.x if isinstance(data, Box) else torch.as_tensor(data)
        return noisy(w, x)

    eager, other = on_parameter(function)("eager"), on_parameter(function)("auto")
    for seed, batch in enumerate(batches()):
        theirs = take(eager, batch, seed)
        assert_same_numbers(take(other, batch, seed), theirs, 1e-5)
        # Otherwise it would live on here.
        del batch


def test_numbers_and_words_among_the_arguments_are_read_anew():
    def function(w, x, power, kind):
        return (noisy(w, x) ** power) * (2.0 if kind == "double" else 1.0)

    batches = [batch_of(X, power, kind) for power in (1, 2, 1.0) for kind in ("single", "double")]
    assert_agrees_with_eager_steps(on_parameter(function), 2 * batches, expected="traced")


def test_each_shape_stride_and_dtype_is_recorded_once():
    shapes = [X, X[:5], X.reshape(3, 4).t(), X.double(), X[:0:2], X[:1]]
    batches = [batch_of(x) for x in shapes] * 2
    made = []

    def function(w, x):
        made.append(x.shape)
        return ((w[0].to(x.dtype) * x + w[1] - torch.randn(x.shape)) ** 2).sum()

    engine = assert_agrees_with_eager_steps(on_parameter(function), batches, expected="traced")
    assert len(engine._runners) == len({(x.shape, x.stride(), x.dtype) for x in shapes})


def test_more_than_eight_shapes_run_eagerly(caplog):
    batches = [batch_of(X[:n]) for n in range(1, 11)] * 2
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        assert_agrees_with_eager_steps(on_parameter(noisy), batches, expected="eager")
    (record,) = caplog.records
    assert "more than 8 shapes" in record.getMessage()


def test_recording_leaves_the_random_state_and_the_parameters_alone():
    w = parameter()
    engine = engine_of(lambda x: noisy(w, x), w)
    before = w.detach().clone()
    torch.manual_seed(3)
    first, _ = engine(batch_of(X))
    torch.manual_seed(3)
    again, _ = engine(batch_of(X))
    assert float(first) == float(again)
    assert torch.equal(w.detach(), before)


def test_chunks_give_the_mean_of_their_steps_clipped_as_a_whole():
    w = parameter()
    eager = engine_of(lambda x: noisy(w, x), w, rung="eager")
    singles = []
    torch.manual_seed(0)
    for _ in range(3):
        loss, _ = eager(batch_of(X))
        singles.append((loss, eager._step.flat.tensors[0].grad.clone()))
    mean = torch.stack([grad for _, grad in singles]).mean(0)
    for rung in ("eager", "traced"):
        engine = engine_of(lambda x: noisy(w, x), w, rung=rung, chunks=3, clip_norm=0.1)
        loss, norm, grad = take(engine, batch_of(X), 0)
        torch.testing.assert_close(loss, torch.stack([loss for loss, _ in singles]).mean())
        torch.testing.assert_close(norm.to(mean), mean.norm())
        torch.testing.assert_close(grad, 0.1 * mean / mean.norm())


@pytest.mark.parametrize(("most_nodes", "compiles"), [(5, False), (5000, True)])
def test_graphs_that_are_too_large_are_not_compiled(most_nodes, compiles, monkeypatch):
    begun = []
    monkeypatch.setattr(runner, "_MOST_NODES", most_nodes)
    monkeypatch.setattr(runner, "_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_SECONDS_PER_NODE", 0.0)
    monkeypatch.setattr(runner.Runner, "_begin", lambda self: begun.append(1))
    monkeypatch.setattr(runner.Runner, "_finish", lambda self: None)
    engine = on_parameter(noisy)("auto")
    for seed in range(12):
        take(engine, batch_of(X), seed)
    assert engine.rung == "traced"
    assert bool(begun) == compiles
