"""Primitives that take axes away, or slide a window over them."""

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule

REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce".split()
)
WINDOWS = frozenset("reduce_window_sum reduce_window_max reduce_window_min reduce_window".split())


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction takes away."""
    return tuple(node.params["dimensions" if node.name == "reduce" else "axes"])


def _reduce(node: Node, axes: Axes) -> None:
    gone, count = reduced_axes(node), len(node.outputs)
    first = axes.of(node.inputs[0])
    for operand in node.inputs[1:count]:
        axes.unify(node, first, axes.of(operand))
    if node.name.startswith("arg"):
        axes.freeze(node, [first[k] for k in gone], "the result is an index into this axis")
    if node.name == "reduce":
        axes.freeze(node, [first[k] for k in gone], "it is reduced by a function of the user's")
    for output in node.outputs:
        axes.set(output, [axis for k, axis in enumerate(first) if k not in gone])


def _window(node: Node, axes: Axes) -> None:
    (output,), params, text = node.outputs, node.params, "a window slides over this axis"
    shape, result = axes.shape(output), []
    ones = (1,) * len(shape)
    dilations = [params.get(key) or ones for key in ("window_strides", "base_dilation", "window_dilation")]
    for k, axis in enumerate(axes.of(node.inputs[0])):
        still = params["window_dimensions"][k] == 1 and tuple(params["padding"][k]) == (0, 0)
        if still and all(each[k] == 1 for each in dilations):
            result.append(axis)
        else:
            axes.freeze(node, [axis], text)
            result.extend(axes.frozen(node, [shape[k]], text))
    axes.set(output, result)


def _window_generic(node: Node, axes: Axes) -> None:
    if len(node.outputs) == 1:
        _window(node, axes)
    else:
        axes.freeze_all(node, "several arrays are reduced together over windows")


def _scatter_windows(node: Node, axes: Axes) -> None:
    """select_and_scatter_add(source, operand): the gradient of max pooling."""
    source, operand = map(axes.of, node.inputs[:2])
    _gradient_of_window(node, axes, operand, source)


def _gather_windows(node: Node, axes: Axes) -> None:
    """select_and_gather_add(tangents, operand): the derivative of max pooling."""
    tangents, operand = map(axes.of, node.inputs[:2])
    axes.unify(node, tangents, operand)
    _gradient_of_window(node, axes, operand, None)


def _gradient_of_window(node: Node, axes: Axes, operand: list[dims.Dim], source: list[dims.Dim] | None) -> None:
    text, shape, result = "a window slides over this axis", axes.shape(node.outputs[0]), []
    for k, axis in enumerate(operand):
        pooled = source[k] if source is not None else None
        size = shape[k] if pooled is None else pooled.size
        if node.params["window_dimensions"][k] == 1 and size == axis.size:
            if pooled is not None:
                axes.unify(node, [axis], [pooled])
            result.append(axis)
            continue
        axes.freeze(node, [axis, *([pooled] if pooled else [])], text)
        result.extend(axes.frozen(node, [shape[k]], text))
    axes.set(node.outputs[0], result)


RULES = {name: Rule(_reduce, empty=True) for name in REDUCTIONS}
RULES |= {name: Rule(_window_generic) for name in WINDOWS}
RULES |= {"select_and_scatter_add": Rule(_scatter_windows), "select_and_gather_add": Rule(_gather_windows)}
