"""Tall matrices, of particles by coordinates, stored column by column in a graph to be compiled.

Inductor keeps the layout of what an operator reads. Row by row, its loops would run along a few
coordinates, ten say, where vector units want multiples of eight; and BLAS multiplies particles by
small weights two to six times as fast if the particles lie side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

aten = torch.ops.aten

_PRODUCTS = {aten.mm.default, aten.addmm.default}
_VIEWS = {aten.view.default, aten._unsafe_view.default}


def store_by_columns(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Let the tall factors of a graph's matrix products be stored column by column.

    Args:
        module: The graph, which is changed: its numbers stay, up to the order of summation. One
            that addresses memory by strides stays as it is.
        inputs: Tensors of the shapes that it is called with.
    """
    if any(node.target is aten.as_strided.default for node in module.graph.nodes):
        return
    # Constants are no fakes, but stand in the graph.
    FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    products = [(node, _sizes(node)) for node in module.graph.nodes if _is_product(node)]
    for node, sizes in products:
        _transpose(module.graph, node, *sizes)
    for node in module.graph.nodes:
        # The tensors that stood for shapes.
        node.meta.clear()
        if node.target in _VIEWS:
            # What was a view of rows need not be one of columns.
            node.target = aten.reshape.default
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_product(node: fx.Node) -> bool:
    return node.target in _PRODUCTS and not node.kwargs


def _sizes(product: Any) -> tuple[int, int, int]:
    left, right = product.args[-2:]
    return *left.meta["val"].shape, right.meta["val"].shape[1]


def _transpose(graph: fx.Graph, node: Any, rows: int, inner: int, columns: int) -> None:
    *bias, left, right = node.args
    with graph.inserting_before(node):
        if rows > max(inner, columns):
            tall = _by_columns(graph, left, rows)
            product = _t(graph, _mm(graph, _t(graph, right), _t(graph, tall)))
        elif inner > max(rows, columns):
            turned = _t(graph, _by_columns(graph, _t(graph, left), inner))
            product = _mm(graph, turned, _by_columns(graph, right, inner))
        else:
            return
        if bias:
            product = graph.call_function(aten.add.Tensor, (product, *bias))
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _by_columns(graph: fx.Graph, matrix: fx.Node, rows: int) -> fx.Node:
    # Imported late, as it takes a second.
    from torch._inductor.inductor_prims import force_stride_order  # noqa: PLC0415

    return graph.call_function(force_stride_order, (matrix, [1, rows]))


def _mm(graph: fx.Graph, left: fx.Node, right: fx.Node) -> fx.Node:
    return graph.call_function(aten.mm.default, (left, right))


def _t(graph: fx.Graph, matrix: fx.Node) -> fx.Node:
    return graph.call_function(aten.t.default, (matrix,))
