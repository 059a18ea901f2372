"""Primitives that depend on the order of the indices of an axis, or mix all of them: that axis stays as it is."""

from collections.abc import Callable, Sequence

from jaxprune.tracing.axes import Axes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule, opaque


def _keeps_shape(frozen: Callable[[Node], Sequence[int]], text: str) -> Rule:
    """All operands and outputs have the same axes, of which some are frozen."""

    def axes_of_node(node: Node, axes: Axes) -> None:
        first = axes.of(node.inputs[0])
        for operand in node.inputs[1:]:
            axes.unify(node, first, axes.of(operand))
        axes.freeze(node, [first[k] for k in frozen(node)], text)
        for output in node.outputs:
            axes.set(output, first)

    return Rule(axes_of_node)


def _resized(kept: Callable[[Node, int], Sequence[int]], text: str) -> Rule:
    """Some leading axes pass through; the others are frozen and may change their size."""

    def axes_of_node(node: Node, axes: Axes) -> None:
        for operand in node.inputs[:1]:
            own = axes.of(operand)
            through = kept(node, len(own))
            axes.freeze(node, [axis for k, axis in enumerate(own) if k not in through], text)
            for output in node.outputs:
                new = axes.frozen(node, axes.shape(output), text)
                axes.set(output, [own[k] if k in through else axis for k, axis in enumerate(new)])

    return Rule(axes_of_node)


def _top_k_axis(node: Node) -> int:
    return node.params.get("axis", -1)


_CUMULATIVE = _keeps_shape(lambda node: [node.params["axis"]], "values are accumulated along this axis")

RULES = {name: _CUMULATIVE for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")}
RULES |= {
    "rev": _keeps_shape(lambda node: node.params["dimensions"], "this axis is reversed"),
    "sort": _keeps_shape(lambda node: [node.params["dimension"]], "this axis is sorted"),
    "top_k": _resized(
        lambda node, rank: [k for k in range(rank) if k != _top_k_axis(node) % rank],
        "the largest are picked along this axis",
    ),
    "approx_top_k": _resized(
        lambda node, rank: [k for k in range(rank) if k != node.params["reduction_dimension"] % rank],
        "the largest are picked along this axis",
    ),
    "fft": _resized(
        lambda node, rank: range(rank - len(node.params["fft_lengths"])), "a Fourier transform runs along this axis"
    ),
    "custom_linear_solve": opaque("a linear system is solved"),
}
