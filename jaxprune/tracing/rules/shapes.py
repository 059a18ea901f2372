"""Primitives that move, merge, split, join and cut axes."""

from typing import Any

import numpy as np

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Reason, Sizes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule


def _transpose(node: Node, axes: Axes) -> None:
    own = axes.of(node.inputs[0])
    axes.set(node.outputs[0], [own[k] for k in node.params["permutation"]])


def _squeeze(node: Node, axes: Axes) -> None:
    gone, own = node.params["dimensions"], axes.of(node.inputs[0])
    axes.set(node.outputs[0], [axis for k, axis in enumerate(own) if k not in gone])


def _expand_dims(node: Node, axes: Axes) -> None:
    own = iter(axes.of(node.inputs[0]))
    rank = len(axes.shape(node.outputs[0]))
    new = [k % rank for k in node.params["dimensions"]]
    axes.set(node.outputs[0], [dims.atom(1) if k in new else next(own) for k in range(rank)])


def _broadcast_in_dim(node: Node, axes: Axes) -> None:
    (output,), own = node.outputs, axes.of(node.inputs[0])
    result: list[dims.Dim] = dims.atoms(axes.shape(output))
    for axis, k in zip(own, node.params["broadcast_dimensions"], strict=True):
        if axis.size == result[k].size:
            result[k] = axis
    axes.set(output, result)


def _broadcast_to(node: Node, axes: Axes) -> None:
    """Aligned at the last axis, as in NumPy."""
    (output,), own = node.outputs, axes.of(node.inputs[0])
    result = dims.atoms(axes.shape(output))
    for k, axis in enumerate(own, start=len(result) - len(own)):
        if axis.size == result[k].size:
            result[k] = axis
    axes.set(output, result)


def reshape_blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes between which a reshape moves elements; axes of size 1 belong to no run.

    Example:
      >>> reshape_blocks((6, 1, 4), (2, 3, 4))
      [([0], [0, 1]), ([2], [2])]
    """
    sources, targets = ([k for k, size in enumerate(shape) if size != 1] for shape in (before, after))
    blocks, i, j = [], 0, 0
    while i < len(sources):
        rows, columns = [sources[i]], [targets[j]]
        i, j = i + 1, j + 1
        left, right = before[rows[0]], after[columns[0]]
        while left != right:
            if left < right:
                rows.append(sources[i])
                left, i = left * before[sources[i]], i + 1
            else:
                columns.append(targets[j])
                right, j = right * after[targets[j]], j + 1
        blocks.append((rows, columns))
    return blocks


def _reshape(node: Node, axes: Axes) -> None:
    operand, output = node.inputs[0], node.outputs[0]
    shape, own, reason = axes.shape(output), axes.of(operand), Reason("a reshape cuts across this axis", node)
    result: list[dims.Dim] = [dims.atom(1) for _ in shape]
    for rows, columns in reshape_blocks(axes.shape(operand), shape):
        new = dims.refine([own[k] for k in rows], [shape[k] for k in columns], reason)
        for k, axis in zip(columns, new, strict=True):
            result[k] = axis
    axes.set(output, result)


def _concatenate(node: Node, axes: Axes) -> None:
    along = node.params["dimension"]
    every = [axes.of(operand) for operand in node.inputs]
    for other in every[1:]:
        for k, (a, b) in enumerate(zip(every[0], other, strict=True)):
            if k != along:
                axes.unify(node, [a], [b])
    result = list(every[0])
    result[along] = dims.concatenation([own[along] for own in every])
    axes.set(node.outputs[0], result)


def _split(node: Node, axes: Axes) -> None:
    along, own = node.params["axis"], axes.of(node.inputs[0])
    points = sorted({int(point) for point in np.cumsum(node.params["sizes"])} - {0, own[along].size})
    segments = iter(dims.cut(own[along], points, Reason("a split cuts across this axis", node)))
    for output, size in zip(node.outputs, node.params["sizes"], strict=True):
        result = list(own)
        result[along] = next(segments) if size else dims.atom(0)
        axes.set(output, result)


def _slice(node: Node, axes: Axes) -> None:
    params, (output,) = node.params, node.outputs
    own, result = axes.of(node.inputs[0]), []
    strides = params["strides"] or (1,) * len(own)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for k, (axis, (start, limit, stride)) in enumerate(zip(own, bounds, strict=True)):
        count = axes.shape(output)[k]
        if count == axis.size:
            result.append(axis)
        elif not count:
            result.append(dims.atom(0))
        elif stride == 1:
            points = sorted({start, limit} - {0, axis.size})
            segments = dims.cut(axis, points, Reason("a slice cuts across this axis", node))
            result.append(segments[1 if start else 0])
        elif axis.size == count * stride and count > 1:  # then start < stride: one of every `stride` indices
            first, every = dims.split(axis, [count, stride], Reason("a strided slice cuts across this axis", node))
            axes.freeze(node, [every], "one of every few indices is taken")
            result.append(first)
        else:
            axes.freeze(node, [axis], "a slice with a stride that does not divide the axis")
            result.extend(axes.frozen(node, [count], "a slice with a stride that does not divide the axis"))
    axes.set(output, result)


def _pad(node: Node, axes: Axes) -> None:
    (output,), result = node.outputs, []
    for k, (axis, (low, high, inner)) in enumerate(
        zip(axes.of(node.inputs[0]), node.params["padding_config"], strict=True)
    ):
        if low >= 0 and high >= 0 and inner == 0:
            result.append(dims.concatenation([*_edge(low), axis, *_edge(high)]))
        else:
            text = "padding between the elements, or less than none"
            axes.freeze(node, [axis], text)
            result.extend(axes.frozen(node, [axes.shape(output)[k]], text))
    axes.set(output, result)


def _edge(size: int) -> list[dims.Dim]:
    return [dims.atom(size)] if size else []


def _tile(node: Node, axes: Axes) -> None:
    own, reps = axes.of(node.inputs[0]), list(node.params["reps"])
    axes.set(
        node.outputs[0],
        [dims.product([dims.atom(count), axis]) if axis.size else axis for count, axis in zip(reps, own, strict=True)],
    )


def _stack(node: Node, axes: Axes) -> None:
    every, along = [axes.of(operand) for operand in node.inputs], node.params["axis"]
    for other in every[1:]:
        axes.unify(node, every[0], other)
    result = list(every[0])
    result[along:along] = axes.frozen(node, [len(every)], "arrays are stacked along this axis")
    axes.set(node.outputs[0], result)


def _unstack(node: Node, axes: Axes) -> None:
    own, along = axes.of(node.inputs[0]), node.params["axis"]
    axes.freeze(node, [own[along]], "this axis is taken apart")
    for output in node.outputs:
        axes.set(output, [axis for k, axis in enumerate(own) if k != along])


def _shape_of_output(key: str) -> Any:
    def resize(node: Node, sizes: Sizes) -> dict[str, Any]:
        return {key: sizes.shape(node.outputs[0])}

    return resize


def _resize_split(node: Node, sizes: Sizes) -> dict[str, Any]:
    return {"sizes": tuple(sizes.shape(output)[node.params["axis"]] for output in node.outputs)}


def _resize_slice(node: Node, sizes: Sizes) -> dict[str, Any]:
    params = node.params
    starts, limits = list(params["start_indices"]), list(params["limit_indices"])
    strides = params["strides"] or (1,) * len(starts)
    for k, dim in enumerate(sizes.axes.of(node.inputs[0])):
        if sizes.whole(dim):
            continue
        mask, stride = sizes.running_mask(node.inputs[0], k), strides[k]
        if stride == 1 or starts[k] == limits[k]:
            starts[k], limits[k] = int(mask[: starts[k]].sum()), int(mask[: limits[k]].sum())
        else:  # whole periods of `stride` indices went
            limits[k] = int(mask.sum()) - (stride - 1 - starts[k])
    return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _resize_pad(node: Node, sizes: Sizes) -> dict[str, Any]:
    padding = list(node.params["padding_config"])
    for k, dim in enumerate(sizes.axes.of(node.outputs[0])):
        if not sizes.whole(dim):
            mask, (low, high, inner) = sizes.running_mask(node.outputs[0], k), padding[k]
            padding[k] = (int(mask[:low].sum()), int(mask[mask.size - high :].sum()), inner)
    return {"padding_config": tuple(padding)}


def _resize_tile(node: Node, sizes: Sizes) -> dict[str, Any]:
    pairs = zip(sizes.shape(node.outputs[0]), sizes.shape(node.inputs[0]), strict=True)
    return {"reps": tuple(new // old if old else 1 for new, old in pairs)}


RULES = {
    "transpose": Rule(_transpose, empty=True),
    "squeeze": Rule(_squeeze),
    "expand_dims": Rule(_expand_dims),
    "broadcast_in_dim": Rule(_broadcast_in_dim, _shape_of_output("shape"), empty=True),
    "broadcast_to": Rule(_broadcast_to, _shape_of_output("shape")),
    "reshape": Rule(_reshape, _shape_of_output("new_sizes")),
    "concatenate": Rule(_concatenate, empty=True),
    "split": Rule(_split, _resize_split, empty=True),
    "slice": Rule(_slice, _resize_slice, empty=True),
    "pad": Rule(_pad, _resize_pad, empty=True),
    "tile": Rule(_tile, _resize_tile),
    "stack": Rule(_stack),
    "unstack": Rule(_unstack),
}
