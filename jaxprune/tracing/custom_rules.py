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
from jaxprune.tracing.graph import Literal, Node, Operand, Program, build

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
        body, sizes = node.body, evaluator.sizes
        assert body is not None and sizes is not None
        program, axes = sizes.program, sizes.axes
        avals = [_abstract(program, value) for value in body.inputs]
        makes = [_abstract(program, value) for value in body.outputs if not isinstance(value, Literal)]
        chosen = [avals[k] for k in floating]
        wanted: list[Operand] = [*body.outputs, *(v for v, a in zip(body.outputs, makes, strict=True) if _floats(a))]

        def original(*values: Any) -> list[Any]:
            own = dict(zip(body.inputs, values, strict=True))
            operands = [own[x] if isinstance(x, int) else np.asarray(x.value, x.aval.dtype) for x in node.inputs]
            return bind(node.equation.primitive, operands, node.params)

        def at(values: Sequence[Any], moved: Sequence[Any]) -> list[Any]:
            own = list(values)
            for k, x in zip(floating, moved, strict=True):
                own[k] = x
            return original(*own)

        def pushed(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
            primals = [values[k] for k in floating]
            outputs, made = jax.jvp(lambda *moved: at(values, moved), tuple(primals), tuple(given))
            return [*outputs, *(t for y, t in zip(outputs, made, strict=True) if _floats(y))]

        def pulled(values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
            def floats(*moved: Any) -> list[Any]:
                return _floating_only(at(values, moved))

            return list(jax.vjp(floats, *(values[k] for k in floating))[1](list(given)))

        if forward:
            jaxpr = jax.make_jaxpr(pushed)(avals, chosen)
            given = [body.inputs[k] for k in floating]
        else:
            jaxpr = jax.make_jaxpr(pulled)(avals, [aval for aval in makes if _floats(aval)])
            given = [value for value, aval in zip(body.outputs, makes, strict=True) if _floats(aval)]
            wanted = [body.inputs[k] for k in floating]
        self._solve(build(jaxpr), axes, sizes, [*body.inputs, *given], wanted)

    def _solve(
        self, program: Program, axes: Axes, sizes: Sizes, sources: Sequence[Operand], wanted: Sequence[Operand]
    ) -> None:
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
        smaller = Sizes(own, keep)
        if [smaller.shape(value) for value in program.graph.outputs] != [sizes.shape(value) for value in wanted]:
            return
        self.run = type(self.evaluator)(program, axes.rules, smaller)
        self.solved = True

    def __call__(self, values: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        return self.run([*values, *given])


def _abstract(program: Program, value: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(program.avals[value].shape, program.avals[value].dtype)


def _floats(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)
