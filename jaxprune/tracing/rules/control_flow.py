"""Loops and branches: their bodies share the axes of what comes in, and hand back those of what goes out."""

from jaxprune.tracing.axes import Axes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule

_STEPS = "the loop runs along this axis"


def _scan(node: Node, axes: Axes) -> None:
    (body,), params = node.subgraphs, node.params
    consts, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    for k, (operand, inner) in enumerate(zip(node.inputs, body.inputs, strict=True)):
        own = axes.of(operand)
        if k >= carried:
            axes.freeze(node, own[:1], _STEPS)
            own = own[1:]
        axes.set(inner, own)
    axes.run(body)
    for k, output in enumerate(node.outputs):
        own = _same_rank(axes, body.outputs[k], len(axes.shape(output)) - (k >= params["num_carry"]))
        if k < params["num_carry"]:
            start = axes.of(body.inputs[consts + k])
            axes.unify(node, start, own)
            axes.set(output, start)
        else:
            axes.set(output, [*axes.frozen(node, axes.shape(output)[:1], _STEPS), *own])


def _same_rank(axes: Axes, operand, rank: int) -> list[Dim]:
    own = axes.of(operand)
    if len(own) != rank:
        raise ValueError(f"a loop hands back a value of rank {len(own)} where one of rank {rank} is due")
    return own


def _while(node: Node, axes: Axes) -> None:
    test, body = node.subgraphs
    test_consts, body_consts = node.params["cond_nconsts"], node.params["body_nconsts"]
    carry = [axes.of(operand) for operand in node.inputs[test_consts + body_consts :]]
    for graph, first, count in ((test, 0, test_consts), (body, test_consts, body_consts)):
        consts = [axes.of(operand) for operand in node.inputs[first : first + count]]
        for inner, own in zip(graph.inputs, [*consts, *carry], strict=True):
            axes.set(inner, own)
        axes.run(graph)
    for output, own, inner in zip(node.outputs, carry, body.outputs, strict=True):
        axes.unify(node, own, axes.of(inner))
        axes.set(output, own)


def _cond(node: Node, axes: Axes) -> None:
    for branch in node.subgraphs:
        for inner, operand in zip(branch.inputs, node.inputs[1:], strict=True):
            axes.set(inner, axes.of(operand))
        axes.run(branch)
    first, *others = node.subgraphs
    for k, output in enumerate(node.outputs):
        axes.set(output, axes.of(first.outputs[k]))
        for branch in others:
            axes.unify(node, axes.of(output), axes.of(branch.outputs[k]))


RULES = {name: Rule(axes, empty=True) for name, axes in {"scan": _scan, "while": _while, "cond": _cond}.items()}
