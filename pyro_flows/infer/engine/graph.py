"""Record a step as a flat graph of operators, whose every tensor is an input."""

import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_flows.infer.engine.recorder import Recorder, RecordingError, ValueReads
from pyro_flows.infer.engine.simplify import simplify
from pyro_flows.infer.engine.step import Batch, StepFunction

aten = torch.ops.aten

# Factories of random numbers that depend on nothing else.
_RANDOM = {
    aten.randn.default,
    aten.rand.default,
    aten.randint.default,
    aten.randint.low,
    aten.randperm.default,
    aten.normal_.default,
    aten.uniform_.default,
    aten.exponential_.default,
}


class Graph:
    """A recorded step: a function of tensors alone, whose random numbers come first.

    Parameters and data are bound by identity, so that the graph sees what an optimiser writes
    into them. The random numbers that depend on nothing are drawn apart, by the operators and in
    the order of the step itself: so the same random state gives the same numbers, however the
    rest is run.

    Args:
        step: The step.
        batch: What it is called with.

    Attributes:
        main: The graph; its inputs are :meth:`inputs` and then :meth:`noise`.
        names: For each input after those of the data and before the noise, the parameter's name
            that it is; none if it is no parameter.

    Raises:
        RecordingError: The step depends on values of tensors in ways that a graph cannot, or
            draws random numbers outside torch.
    """

    def __init__(self, step: StepFunction, batch: Batch) -> None:
        tensors = tensors_of(batch)
        recorder = _record(step, batch, tensors)
        graph = recorder.graph
        simplify(graph)
        self._factories = _take_noise(graph)
        graph.eliminate_dead_code()
        bound = _used(graph, recorder.bound, len(tensors))
        names = {id(parameter): name for name, parameter in step.flat.parameters.items()}
        self.names = [names.get(id(tensor)) for tensor in bound]
        self._bound = [tensor.detach() for tensor in bound]
        for node in graph.nodes:
            # The recorded tensors.
            node.meta.clear()
        self.main = fx.GraphModule(torch.nn.Module(), graph)

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the graph's inputs for a batch, without the random numbers."""
        return tensors_of(batch) + self._bound

    def noise(self) -> list[Tensor]:
        """Draw the random numbers, which are the last of the inputs."""
        return [factory() for factory in self._factories]


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch, each once."""
    leaves = pytree.tree_leaves(batch)
    unique = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
    return list(unique.values())


def signature(batch: Batch) -> tuple[Any, ...]:
    """Return what a graph of a batch depends on: all but the values of its tensors.

    Raises:
        RecordingError: A tensor is sparse.
    """
    leaves, spec = pytree.tree_flatten(batch)
    # A tensor that is given twice is one input.
    first: dict[int, int] = {}
    order = [first.setdefault(id(leaf), k) for k, leaf in enumerate(leaves)]
    return spec, *zip(order, (_leaf_signature(leaf) for leaf in leaves), strict=True)


def _leaf_signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided:
            raise RecordingError(f"the data are sparse ({leaf.layout})")
        return tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype, leaf.device
    if isinstance(leaf, (bool, int, float, complex, str, bytes, type(None))):
        return type(leaf), leaf
    return id(leaf)


def _record(step: StepFunction, batch: Batch, tensors: Sequence[Tensor]) -> Recorder:
    before = _outside_states()
    # Models may do anything, so recording may fail with anything.
    try:
        with Recorder(tensors) as recorder, ValueReads(recorder):
            results = step(batch)
        recorder.finish(results)
    except RecordingError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise RecordingError(f"{type(error).__name__}: {first_line}") from error
    if _outside_states() != before:
        raise RecordingError("the model draws random numbers from Python or numpy, not torch")
    return recorder


def _outside_states() -> tuple[Any, ...]:
    """Return the states of the random numbers that a graph does not see."""
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


def _used(graph: fx.Graph, bound: list[Tensor], num_data: int) -> list[Tensor]:
    """Drop the inputs that nothing uses, after those of the data; return the tensors that stay."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    nodes = nodes[num_data : num_data + len(bound)]
    used = [tensor for tensor, node in zip(bound, nodes, strict=True) if node.users]
    for node in nodes:
        if not node.users:
            graph.erase_node(node)
    return used


def _take_noise(graph: fx.Graph) -> list[Callable[[], Tensor]]:
    """Turn a graph's first random numbers, as far as they depend on nothing, into its last inputs.

    Only the first, up to one that depends on the rest, so that their order stays as it was.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    last = placeholders[-1] if placeholders else None
    factories = []
    for node in [node for node in graph.nodes if _is_random(node)]:
        factory = _factory(node)
        if factory is None:
            break
        factories.append(factory)
        where = graph.inserting_after(last) if last else graph.inserting_before(None)
        with where:
            last = graph.placeholder(f"noise_{len(factories)}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    return factories


def _is_random(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded in node.target.tags


def _factory(node: fx.Node) -> Callable[[], Tensor] | None:
    """Return a function that draws what a node does; none if that depends on other nodes.

    Some numbers are drawn into a tensor that a node before has made, for them alone.
    """
    target, args, kwargs = node.target, node.args, node.kwargs
    if target not in _RANDOM:
        return None
    if not node.all_input_nodes:
        return lambda: target(*args, **kwargs)
    (empty,) = node.all_input_nodes
    if (
        empty is not args[0]
        or empty.target is not aten.empty.memory_format
        or len(empty.users) > 1
    ):
        return None
    make: Any = empty.target
    rest = args[1:]
    return lambda: target(make(*empty.args, **empty.kwargs), *rest, **kwargs)
