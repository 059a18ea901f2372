"""Primitives that read or write at computed positions."""

from typing import Any

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Sizes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule

_INDEXED = "it is indexed by computed positions"
_WINDOW = "a window at a computed position is read or written along this axis"


def _gather(node: Node, axes: Axes) -> None:
    numbers, sizes, (output,) = node.params["dimension_numbers"], node.params["slice_sizes"], node.outputs
    operand, indices = map(axes.of, node.inputs)
    shape = axes.shape(output)
    result: list[Any] = [None] * len(shape)
    batching = tuple(numbers.operand_batching_dims)
    windowed = [k for k in range(len(operand)) if k not in (*numbers.collapsed_slice_dims, *batching)]
    for k, position in zip(windowed, numbers.offset_dims, strict=True):
        if sizes[k] == operand[k].size:
            result[position] = operand[k]
        else:
            axes.freeze(node, [operand[k]], _WINDOW)
            result[position] = axes.frozen(node, [sizes[k]], _WINDOW)[0]
    axes.freeze(node, [operand[k] for k in numbers.collapsed_slice_dims], _INDEXED)
    axes.freeze(node, indices[-1:], "it holds the coordinates of positions")
    for a, b in zip(batching, numbers.start_indices_batching_dims, strict=True):
        axes.unify(node, [operand[a]], [indices[b]])
    rest = iter(indices[:-1])
    axes.set(output, [next(rest) if axis is None else axis for axis in result])


def _resize_gather(node: Node, sizes: Sizes) -> dict[str, Any]:
    return {"slice_sizes": _window_sizes(node, sizes)}


def _window_sizes(node: Node, sizes: Sizes) -> tuple[Any, ...]:
    operand = node.inputs[0]
    triples = zip(node.params["slice_sizes"], sizes.program.shape(operand), sizes.shape(operand), strict=True)
    return tuple(new if asked == whole else asked for asked, whole, new in triples)


def _scatter(node: Node, axes: Axes) -> None:
    numbers = node.params["dimension_numbers"]
    operand, indices, updates = map(axes.of, node.inputs)
    batching = tuple(numbers.operand_batching_dims)
    windowed = [k for k in range(len(operand)) if k not in (*numbers.inserted_window_dims, *batching)]
    for k, position in zip(windowed, numbers.update_window_dims, strict=True):
        if operand[k].size == updates[position].size:
            axes.unify(node, [operand[k]], [updates[position]])
        else:
            axes.freeze(node, [operand[k], updates[position]], _WINDOW)
    axes.freeze(node, [operand[k] for k in numbers.inserted_window_dims], _INDEXED)
    axes.freeze(node, indices[-1:], "it holds the coordinates of positions")
    for a, b in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        axes.unify(node, [operand[a]], [indices[b]])
    rest = [axis for k, axis in enumerate(updates) if k not in numbers.update_window_dims]
    axes.unify(node, indices[:-1], rest)
    axes.set(node.outputs[0], operand)


def _dynamic_slice(node: Node, axes: Axes) -> None:
    result: list[dims.Dim] = []
    for axis, size in zip(axes.of(node.inputs[0]), node.params["slice_sizes"], strict=True):
        if size == axis.size:
            result.append(axis)
        else:
            axes.freeze(node, [axis], _WINDOW)
            result.extend(axes.frozen(node, [size], _WINDOW))
    axes.set(node.outputs[0], result)


def _dynamic_update_slice(node: Node, axes: Axes) -> None:
    operand, update = map(axes.of, node.inputs[:2])
    for a, b in zip(operand, update, strict=True):
        if a.size == b.size:
            axes.unify(node, [a], [b])
        else:
            axes.freeze(node, [a, b], _WINDOW)
    axes.set(node.outputs[0], operand)


RULES = {
    "gather": Rule(_gather, _resize_gather),
    "dynamic_slice": Rule(_dynamic_slice, _resize_gather),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
}
RULES |= {
    name: Rule(_scatter) for name in "scatter scatter-add scatter-mul scatter-min scatter-max scatter-sub".split()
}
