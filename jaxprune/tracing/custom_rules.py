"""`custom_jvp` and `custom_vjp` when the shapes inside them have changed.

The derivative that the user wrote was traced at the old shapes. It is traced once more as a program of its own, solved
apart from the model (what the derivative does must not freeze anything of the model), and evaluated at the new shapes.
Where that fails, the derivative of the body stands in for it, and a warning says so.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._versions import bind
from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Sizes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program, build
from jaxprune.tracing.means import find_means

if TYPE_CHECKING:
    from jaxprune.tracing.evaluate import Evaluator

Function = Callable[..., list[Any]]


def call(evaluator: "Evaluator", node: Node, body: Function, inputs: Sequence[Any]) -> list[Any]:
    """Calls a region with a custom derivative on operands of new shapes.

    Args:
      evaluator: what runs the model.
      node: the region.
      body: runs its body on the values of `node.body.inputs`.
      inputs: these values.
    """
    assert node.body is not None and evaluator.sizes is not None
    floating = [k for k, x in enumerate(inputs) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    outputs = [value for value in node.body.outputs]
    if not floating or any(isinstance(value, Literal) for value in outputs):
        return body(*inputs)
    forward = node.name == "custom_jvp_call"
    derivative = _Derivative(evaluator, node, floating, forward)
    custom: Any = jax.custom_jvp(body) if forward else jax.custom_vjp(body)

    def tangents(primals: Sequence[Any], given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        made = derivative(primals, [given[k] for k in floating])
        return made[: len(outputs)], _as_tangents(made[: len(outputs)], made[len(outputs) :])

    def keep(*primals: Any) -> tuple[list[Any], Sequence[Any]]:
        return custom(*primals), primals

    def cotangents(primals: Sequence[Any], given: Sequence[Any]) -> tuple[Any, ...]:
        made = iter(derivative(primals, _floating_only(given)))
        return tuple(next(made) if k in floating else _no_tangent(x) for k, x in enumerate(primals))

    if forward:
        custom.defjvp(tangents)
    else:
        custom.defvjp(keep, cotangents)
    if not derivative.solved:
        warnings.warn(
            f"the custom derivative of {node.place} could not be carried over to the smaller shapes; the derivative of "
            "its body is used in the shrunk function",
            stacklevel=2,
        )
        return body(*inputs)
    return custom(*inputs)


def _floating_only(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if jnp.issubdtype(value.dtype, jnp.inexact)]


def _no_tangent(value: Any) -> np.ndarray:
    return np.zeros(jnp.shape(value), jax.dtypes.float0)


def _as_tangents(outputs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    made = iter(given)
    return [next(made) if jnp.issubdtype(y.dtype, jnp.inexact) else _no_tangent(y) for y in outputs]


class _Derivative:
    """The user's derivative as a program, solved for the sizes that are left.

    Its inputs are those of the region, then the tangents of the floating ones (or the cotangents of the outputs).
    """

    def __init__(self, evaluator: "Evaluator", node: Node, floating: Sequence[int], forward: bool):
        self.evaluator = evaluator
        self.solved = False
        sizes = evaluator.sizes
        assert sizes is not None and node.body is not None
        # Axes are solved at the sizes of the trace; what runs may have another batch size.
        traced = node if sizes.program is sizes.axes.program else _same_region(sizes.axes.program.graph, node)
        if traced is None:
            return
        program = _derivative(sizes.axes.program, traced, floating, forward)
        running = program if traced is node else _derivative(sizes.program, node, floating, forward)
        outputs = [
            value
            for value in node.body.outputs
            if isinstance(value, int) and jnp.issubdtype(sizes.program.avals[value].dtype, jnp.inexact)
        ]
        moved = [node.body.inputs[k] for k in floating]
        sources = [*node.body.inputs, *(moved if forward else outputs)]
        self._solve(sizes, program, running, sources, [*node.body.outputs, *outputs] if forward else moved)

    def _solve(
        self,
        sizes: Sizes,
        program: Program,
        running: Program,
        sources: Sequence[Operand],
        wanted: Sequence[Operand],
    ) -> None:
        axes = sizes.axes
        copies: dict[Dim, Dim] = {}
        own = Axes(program, axes.rules)
        for value, source in zip(program.graph.inputs, sources, strict=True):
            own.set(value, [dims.copy(dim, copies) for dim in axes.of(source)])
        own.run(program.graph)
        # What was an atom with indices to remove must still be one, and whatever it met must agree on which.
        keep: dict[Dim, np.ndarray] = {}
        for source, target in copies.items():
            if source.form is not None or sizes.whole(source):
                continue
            target = dims.find(target)
            if target.frozen or target.form is not None:
                return
            if target in keep and not np.array_equal(keep[target], sizes.mask(source)):
                return
            keep[target] = sizes.mask(source)
        smaller = Sizes(own, keep, running)
        if [smaller.shape(value) for value in running.graph.outputs] != [sizes.shape(value) for value in wanted]:
            return
        # The derivative divides by the counts that its function divides by.
        means = None if self.evaluator.means is None else find_means(running)
        self.run = type(self.evaluator)(running, axes.rules, smaller, means=means)
        self.solved = True

    def __call__(self, values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        return self.run([*values, *given])


def _derivative(program: Program, node: Node, floating: Sequence[int], forward: bool) -> Program:
    """Traces the derivative of a region at the shapes that it has in a program."""
    body = node.body
    assert body is not None
    avals = [_abstract(program, value) for value in body.inputs]
    chosen = [avals[k] for k in floating]

    def at(values: Sequence[Any], moved: Sequence[Any]) -> list[Any]:
        own = dict(zip(body.inputs, values, strict=True))
        own.update(zip((body.inputs[k] for k in floating), moved, strict=True))
        operands = [own[x] if isinstance(x, int) else np.asarray(x.value, x.aval.dtype) for x in node.inputs]
        return bind(node.equation.primitive, operands, node.params)

    def pushed(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        primals = tuple(values[k] for k in floating)
        outputs, made = jax.jvp(lambda *moved: at(values, moved), primals, tuple(given))
        return [*outputs, *(t for y, t in zip(outputs, made, strict=True) if jnp.issubdtype(y.dtype, jnp.inexact))]

    def pulled(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        primals = (values[k] for k in floating)
        return list(jax.vjp(lambda *moved: _floating_only(at(values, moved)), *primals)[1](list(given)))

    if forward:
        return build(jax.make_jaxpr(pushed)(avals, chosen))
    makes = [_abstract(program, value) for value in body.outputs if isinstance(value, int)]
    return build(jax.make_jaxpr(pulled)(avals, [aval for aval in makes if jnp.issubdtype(aval.dtype, jnp.inexact)]))


def _same_region(graph: Graph, node: Node) -> Node | None:
    """The region of another trace of the same function that makes the values of the same numbers."""
    assert node.body is not None
    for other in graph.nodes:
        if other.name == node.name and other.body is not None and other.body.outputs == node.body.outputs:
            return other
        inner = [body for body in (other.body, *other.subgraphs) if body is not None]
        found = next((found for body in inner if (found := _same_region(body, node)) is not None), None)
        if found is not None:
            return found
    return None


def _abstract(program: Program, value: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(program.avals[value].shape, program.avals[value].dtype)
