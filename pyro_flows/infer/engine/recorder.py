"""Writes down the operators that a function calls, as a graph."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_flows.infer.engine.dispatch import DispatchMode


class RecordingError(Exception):
    """A step cannot be recorded; the message says why."""


class Recorder(DispatchMode):
    """Write each operator that is called into a graph, and run it as ever.

    ``make_fx`` does likewise, and spends two thirds of its time on descriptions of shapes, which
    a step does not need. Tensors that come from elsewhere become inputs of the graph.

    Args:
        inputs: The first inputs of the graph.

    Attributes:
        graph: The graph; the result of each node is in its ``meta["val"]``.
        bound: The tensors from elsewhere, which are the next inputs.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.bound: list[Tensor] = []
        # With the tensors themselves, so that no later one gets the identity of one that is gone.
        self._nodes: dict[int, tuple[fx.Node, Tensor]] = {}
        self._last_input: fx.Node | None = None
        self._varying: set[fx.Node] = set()
        for position, tensor in enumerate(inputs):
            self._varying.add(self._add_input(f"data_{position}", tensor))

    def finish(self, results: Sequence[Tensor]) -> fx.Graph:
        """Return the graph, with tensors that were computed for its results."""
        self.graph.output(tuple(self._node_of(tensor) for tensor in results))
        return self.graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        seen = args
        if func is torch.ops.aten.lift_fresh.default:
            # A constant of the code: what is written into it must not stay for the next call.
            seen = (args[0].clone(),)
        node_args, node_kwargs = tree_map_only(Tensor, self._node_of, (seen, kwargs))
        leaves = tree_leaves((node_args, node_kwargs))
        varies = torch.Tag.nondeterministic_seeded in func.tags or any(
            isinstance(leaf, fx.Node) and leaf in self._varying for leaf in leaves
        )
        if varies and (
            torch.Tag.data_dependent_output in func.tags or self._length_varies(func, args)
        ):
            raise RecordingError(f"the step depends on the value of a tensor ({func})")
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._note(node, result, varies)
        return result

    def _length_varies(self, func: Any, args: Any) -> bool:
        """Say whether the shape of an operator's result depends on values that vary."""
        if torch.Tag.dynamic_output_shape not in func.tags:
            return False
        if func is not torch.ops.aten.index.Tensor:
            return True
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        return any(self.varies(mask) for mask in masks)

    def varies(self, tensor: Tensor) -> bool:
        """Say whether a tensor may have other values in another call."""
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)][0] in self._varying
        return tensor.requires_grad

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            node = self._add_input(f"bound_{len(self.bound)}", tensor)
            self.bound.append(tensor)
            if tensor.requires_grad:
                self._varying.add(node)
        return self._nodes[id(tensor)][0]

    def _add_input(self, name: str, tensor: Tensor) -> fx.Node:
        if self._last_input is None:
            first: Any = next(iter(self.graph.nodes), None)
            where = self.graph.inserting_before(first)
        else:
            where = self.graph.inserting_after(self._last_input)
        with where:
            node = self._last_input = self.graph.placeholder(name)
        self._nodes[id(tensor)] = node, tensor
        node.meta["val"] = tensor
        return node

    def _note(self, node: fx.Node, result: Any, varies: bool) -> None:
        node.meta["val"] = result
        if varies:
            self._varying.add(node)
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node, result
        elif isinstance(result, (tuple, list)):
            for position, part in enumerate(result):
                if part is not None:
                    item = self.graph.call_function(operator.getitem, (node, position))
                    self._note(item, part, varies)


class ValueReads(TorchFunctionMode):
    """Refuses to read values out of tensors by ways that are no operators.

    Args:
        recorder: Knows which tensors vary.
    """

    _READS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._READS and self._recorder.varies(args[0]):
            raise RecordingError(f"the step depends on the value of a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))
