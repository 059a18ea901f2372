"""Runs a program: as it was traced, with smaller axes, or with a caller's hand on the operands of a node.

Everything that executes a traced model goes through `Evaluator`, so that loops, branches, `custom_jvp`, `custom_vjp`
and `checkpoint` are dealt with in one place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _sharding
from jaxprune._versions import bind
from jaxprune.tracing import custom_rules
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program
from jaxprune.tracing.means import Mean

Operands = Callable[[Node, list[Any]], Sequence[Any]]


def take(array: Any, value: Operand, sizes: Sizes) -> Any:
    """Cuts an array, which is a value of the program at full size, down to the kept positions of its axes."""
    for k, dim in enumerate(sizes.axes.of(value)):
        if not sizes.whole(dim):
            array = _sharding.take(array, np.flatnonzero(sizes.running_mask(value, k)), k)
    return array


class Evaluator:
    """Evaluates the graph of a program under JAX.

    Args:
      program: what to run.
      rules: the rules that know how to resize a node; needed with `sizes`.
      sizes: what is left of every axis; None runs at full size.
      operands: called with each node and the operands it is about to read, and gives those it shall read instead:
        the place to look at the inputs of a node, or to replace a parameter. Inside of loops and branches the operands
        belong to JAX's trace of the body, and must not be kept.
      means: the nodes that divide a sum by a count (`find_means`), which is then scaled to what is left; None leaves
        all counts alone.
    """

    def __init__(
        self,
        program: Program,
        rules: Any = None,
        sizes: Sizes | None = None,
        operands: Operands | None = None,
        means: Mapping[Node, Mean] | None = None,
    ):
        self.program = program
        self.rules = rules
        self.sizes = sizes
        self.operands = operands
        self.means = means

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of the program for arrays in the order of its inputs."""
        return self.run(self.program.graph, inputs)

    def run(self, graph: Graph, inputs: Sequence[Any], values: dict[int, Any] | None = None) -> list[Any]:
        """Evaluates one graph; a region sees the `values` of the graph around it."""
        values = {} if values is None else dict(values)
        values.update(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            operands = [self.read(operand, values) for operand in node.inputs]
            outputs = self.step(node, operands, values)
            names = node.outputs if node.body is None else node.body.outputs
            values.update((n, v) for n, v in zip(names, outputs, strict=True) if not isinstance(n, Literal))
        return [self.read(operand, values) for operand in graph.outputs]

    def read(self, operand: Operand, values: dict[int, Any]) -> Any:
        """The value of an operand; constants are cut to the sizes that are left."""
        if isinstance(operand, Literal):
            return np.asarray(operand.value, operand.aval.dtype)
        if operand in values:
            return values[operand]
        constant = self.program.constants[operand]
        return constant if self.sizes is None else take(constant, operand, self.sizes)

    def step(self, node: Node, operands: list[Any], values: dict[int, Any]) -> list[Any]:
        """The outputs of one node."""
        if node.body is not None or node.subgraphs:
            inner = [graph for graph in (node.body, *node.subgraphs) if graph is not None]
            as_traced = self.sizes is None or all(map(self.sizes.untouched, inner))
            if self.operands is None and as_traced:
                return bind(node.equation.primitive, operands, node.params)
            return (
                self.region(node, values) if node.body is not None else _CONTROL_FLOW[node.name](self, node, operands)
            )
        if self.operands is not None:
            operands = list(self.operands(node, operands))
        if self.sizes is None:
            return bind(node.equation.primitive, operands, node.params)
        if self.means is not None and node in self.means:
            mean, operands = self.means[node], list(operands)
            count = jnp.asarray(operands[mean.operand])
            operands[mean.operand] = count * jnp.asarray(mean.scale(self.sizes), count.dtype)
        rule, params = self.rules.get(node.name), node.params
        if rule is None or rule.generates or rule.resize is None:
            outputs = bind(node.equation.primitive, operands, params)
        else:
            outputs = bind(node.equation.primitive, operands, {**params, **rule.resize(node, self.sizes)})
        if rule is not None and rule.generates:
            pairs = zip(outputs, node.outputs, strict=True)
            outputs = [take(output, value, self.sizes) for output, value in pairs]
        return outputs

    def region(self, node: Node, values: dict[int, Any]) -> list[Any]:
        """A call whose meaning goes beyond its body, on operands of other shapes."""
        body = node.body
        assert body is not None
        inputs = [values[value] if value in values else self.read(value, values) for value in body.inputs]

        def call(*arrays: Any) -> list[Any]:
            return self.run(body, arrays, values)

        if "remat" in node.name or node.name == "checkpoint":
            keywords = {key: node.params[key] for key in ("prevent_cse", "policy")}
            return jax.checkpoint(call, **keywords)(*inputs)
        return call(*inputs) if self.sizes is None else custom_rules.call(self, node, call, inputs)

    def scan(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.scan` over the body."""
        (body,), params = node.subgraphs, node.params
        consts, carry = params["num_consts"], params["num_carry"]
        fixed, start, each = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]

        def step(state: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            outputs = self.run(body, [*fixed, *state, *slices])
            return outputs[:carry], outputs[carry:]

        keywords = {key: params[key] for key in ("length", "reverse", "unroll")}
        state, stacked = lax.scan(step, [jnp.asarray(value) for value in start], each, **keywords)
        return [*state, *stacked]

    def while_loop(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.while_loop` over the body."""
        test, body = node.subgraphs
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        fixed_test, fixed_body = operands[:first], operands[first : first + second]
        return lax.while_loop(
            lambda state: self.run(test, [*fixed_test, *state])[0],
            lambda state: self.run(body, [*fixed_body, *state]),
            [jnp.asarray(value) for value in operands[first + second :]],
        )

    def cond(self, node: Node, operands: list[Any]) -> list[Any]:
        """`lax.switch` between the branches."""
        branches = [lambda *arrays, branch=branch: self.run(branch, arrays) for branch in node.subgraphs]
        return lax.switch(operands[0], branches, *operands[1:])


_CONTROL_FLOW = {"scan": Evaluator.scan, "while": Evaluator.while_loop, "cond": Evaluator.cond}
