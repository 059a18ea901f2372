"""Products that sum over an axis: dots, convolutions, ragged dots."""

from typing import Any

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Reason, Sizes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule


def free_axes(rank: int, *used: tuple[int, ...]) -> list[int]:
    """The axes of an operand that no part of the dimension numbers names."""
    return [k for k in range(rank) if not any(k in each for each in used)]


def _dot_general(node: Node, axes: Axes) -> None:
    _contract(node, axes, node.params["dimension_numbers"])


def _ragged_dot(node: Node, axes: Axes) -> None:
    numbers = node.params["ragged_dot_dimension_numbers"]
    (left_sum, _), (left_batch, _) = numbers.dot_dimension_numbers
    groups, ragged = tuple(numbers.rhs_group_dimensions), tuple(numbers.lhs_ragged_dimensions)
    if any(k in (*left_sum, *left_batch) for k in ragged):
        axes.freeze_all(node, "a ragged dot whose ragged axis is not a free one")
        return
    left, right = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    text = "rows are assigned to groups along this axis"
    axes.freeze(node, [*(left[k] for k in ragged), *(right[k] for k in groups)], text)
    for operand in node.inputs[2:]:
        axes.freeze(node, axes.of(operand), text)
    _contract(node, axes, numbers.dot_dimension_numbers, groups)


def _contract(node: Node, axes: Axes, numbers: Any, groups: tuple[int, ...] = ()) -> None:
    """Ties what is summed over and what runs along; `groups` are axes of the right operand that leave no trace."""
    (left_sum, right_sum), (left_batch, right_batch) = numbers
    left, right = axes.of(node.inputs[0]), axes.of(node.inputs[1])
    for a, b in [*zip(left_sum, right_sum, strict=True), *zip(left_batch, right_batch, strict=True)]:
        axes.unify(node, [left[a]], [right[b]])
    axes.set(
        node.outputs[0],
        [left[k] for k in left_batch]
        + [left[k] for k in free_axes(len(left), left_sum, left_batch)]
        + [right[k] for k in free_axes(len(right), right_sum, right_batch, groups)],
    )


def _convolution(node: Node, axes: Axes) -> None:
    params, (output,) = node.params, node.outputs
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if params["batch_group_count"] != 1:
        axes.freeze_all(node, "a convolution with groups of batches")
        return
    left, right = map(axes.of, node.inputs)
    channels, inputs, outputs = left[numbers.lhs_spec[1]], right[numbers.rhs_spec[1]], right[numbers.rhs_spec[0]]
    if groups == 1:
        axes.unify(node, [channels], [inputs])
    else:
        reason = Reason("the groups of a convolution cut across this axis", node)
        group = _by_group(channels, groups, reason)
        out_group = _by_group(outputs, groups, reason)
        axes.unify(node, group[1:], [inputs] if len(group) > 1 else [])
        axes.unify(node, group[:1], out_group[:1])
    result: list[Any] = [None] * len(axes.shape(output))
    result[numbers.out_spec[0]] = left[numbers.lhs_spec[0]]
    result[numbers.out_spec[1]] = outputs
    text = "the kernel slides over this axis"
    for a, b, k in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True):
        axes.freeze(node, [left[a], right[b]], text)
        result[k] = axes.frozen(node, [axes.shape(output)[k]], text)[0]
    axes.set(output, result)


def _by_group(axis: dims.Dim, groups: int, reason: Reason) -> list[dims.Dim]:
    """An axis seen as (group, index within the group); the latter is left out where it has one index."""
    inner = axis.size // groups
    return dims.split(axis, [groups, inner], reason) if inner > 1 else [axis]


def _resize_convolution(node: Node, sizes: Sizes) -> dict[str, Any]:
    if node.params["feature_group_count"] == 1:
        return {}
    numbers = node.params["dimension_numbers"]
    channels = sizes.shape(node.inputs[0])[numbers.lhs_spec[1]]
    return {"feature_group_count": channels // sizes.shape(node.inputs[1])[numbers.rhs_spec[1]]}


RULES = {
    "dot_general": Rule(_dot_general),
    "ragged_dot_general": Rule(_ragged_dot),
    "ragged_dot": Rule(_ragged_dot),
    "conv_general_dilated": Rule(_convolution, _resize_convolution),
}
