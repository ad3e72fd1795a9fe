"""Fewer operators in a recorded graph, with the same numbers bit for bit."""

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# Operators that return their argument; the last one a constant, which some may write into.
_ALIASES = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
# Those that do so if the shape and strides stay as they are.
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.expand.default}
# Other looks at a memory: two of the same are one. So are two numbers as tensors.
_LOOKS = {
    *_RESHAPES,
    aten.t.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.permute.default,
    aten.transpose.int,
    aten.scalar_tensor.default,
} - {aten._unsafe_view.default}


def simplify(graph: fx.Graph) -> None:
    """Drop the operators of a graph that change nothing, and those that repeat a look.

    Args:
        graph: A recorded graph; its nodes still tell their shapes.
    """
    seen: dict[Any, fx.Node] = {}
    writes = any(_writes(node) for node in graph.nodes)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if writes and node.target is aten.lift_fresh.default:
            node.target = aten.clone.default
        if writes and node.target is aten.scalar_tensor.default:
            continue
        same = _argument_it_returns(node) or _seen_before(node, seen)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        else:
            _look_at_the_source(node)


def _writes(node: fx.Node) -> bool:
    """Say whether an operator writes into a tensor that is not new memory of its own."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    into = node.args[0]
    return not (isinstance(into, fx.Node) and into.target is aten.empty.memory_format)


def _argument_it_returns(node: fx.Node) -> fx.Node | None:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target in _ALIASES:
        return source
    if node.target is aten.t.default and source.target is aten.t.default:
        return source.all_input_nodes[0]
    before, after = source.meta.get("val"), node.meta.get("val")
    if node.target not in _RESHAPES or not (
        isinstance(before, Tensor) and isinstance(after, Tensor)
    ):
        return None
    alike = before.shape == after.shape and before.stride() == after.stride()
    return source if alike else None


def _seen_before(node: fx.Node, seen: dict[Any, fx.Node]) -> fx.Node | None:
    if node.target not in _LOOKS:
        return None
    key = node.target, repr(node.args), repr(node.kwargs)
    before = seen.setdefault(key, node)
    return None if before is node else before


def _look_at_the_source(node: fx.Node) -> None:
    """Let a view of a view be one of what that views."""
    source = node.args[0] if node.args else None
    if (
        node.target is aten.view.default
        and isinstance(source, fx.Node)
        and source.target is aten.view.default
    ):
        node.args = (source.args[0], *node.args[1:])
