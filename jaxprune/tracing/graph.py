"""A program as a graph: one flat list of nodes that every analysis and the evaluator read.

`build` turns a jaxpr into a `Program`. Calls (`jit` and the like) are inlined. Loops and branches keep their bodies as
`subgraphs`, whose values are their own. Calls with a meaning beyond their body (`custom_jvp`, `custom_vjp`,
`checkpoint`) become regions: nodes with a `body` that shares the values of the graph around it, so that an analysis can
read straight through (`Graph.primitives`), and the evaluator can keep their meaning.

Values are numbered in the order of the trace. Two traces of one function at other batch sizes therefore give the same
numbers to the same values.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax.extend import core

from jaxprune._versions import closed_jaxpr, source_line

_INLINED = {"jit", "pjit", "closed_call", "core_call", "core_closed_call", "custom_lin"}
_REGIONS = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "checkpoint", "remat", "remat2"}
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_SUBGRAPHS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A scalar written into the program."""

    value: Any
    aval: Any


Operand: TypeAlias = int | Literal


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
      equation: the equation of the jaxpr that it came from.
      name: the name of its primitive.
      inputs: the numbers of the values it reads, or literals.
      outputs: the numbers of the values it makes.
      subgraphs: the bodies of a loop or a branch, with values of their own.
      body: what a region calls, in the values of the graph around it; None for other nodes.
      callers: the equations of the calls that it was inlined from, the innermost first.
    """

    equation: Any
    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[int, ...]
    subgraphs: tuple["Graph", ...] = ()
    body: "Graph | None" = None
    callers: tuple[Any, ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """The static parameters of the primitive."""
        return self.equation.params

    @property
    def source(self) -> str:
        """The user's line behind it."""
        lines = map(source_line, (self.equation, *self.callers))  # inside of a library, the line that called it
        return next((line for line in lines if line), "")

    @property
    def place(self) -> str:
        """The primitive and the user's line, for a message."""
        source = self.source
        return f"{self.name} at {source}" if source else self.name


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order, with the values that come in and go out."""

    inputs: tuple[int, ...]
    outputs: tuple[Operand, ...]
    nodes: tuple[Node, ...]

    def primitives(self) -> Iterator[Node]:
        """The nodes in order, reading straight through regions."""
        for node in self.nodes:
            if node.body is None:
                yield node
            else:
                yield from node.body.primitives()

    def everything(self) -> Iterator[Node]:
        """The primitives of the graph and of the bodies of its loops and branches."""
        for node in self.primitives():
            yield node
            for subgraph in node.subgraphs:
                yield from subgraph.everything()


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A graph with what is known of its values.

    Attributes:
      graph: the whole function.
      avals: the abstract value (shape, dtype) of each number.
      constants: the values that were written into the trace, by number.
    """

    graph: Graph
    avals: list[Any]
    constants: dict[int, Any]

    def shape(self, operand: Operand) -> tuple[int, ...]:
        """The shape of a value; `()` of a literal."""
        return () if isinstance(operand, Literal) else tuple(self.avals[operand].shape)


def build(jaxpr: core.ClosedJaxpr) -> Program:
    """The program of a closed jaxpr.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> program = build(jax.make_jaxpr(lambda x: jax.nn.relu(x) + 1)(jnp.ones(3)))
      >>> [node.name for node in program.graph.primitives()]
      ['max', 'add']
    """
    builder = _Builder()
    return Program(builder.subgraph(jaxpr), builder.avals, builder.constants)


class _Builder:
    def __init__(self):
        self.avals: list[Any] = []
        self.constants: dict[int, Any] = {}

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        number = self.new(aval)
        self.constants[number] = value
        return number

    def subgraph(self, closed: core.ClosedJaxpr, callers: tuple[Any, ...] = ()) -> Graph:
        inputs = tuple(self.new(variable.aval) for variable in closed.jaxpr.invars)
        nodes, outputs = self.inline(closed, inputs, callers)
        return Graph(inputs, outputs, nodes)

    def inline(
        self, closed: core.ClosedJaxpr, inputs: Sequence[Operand], callers: tuple[Any, ...] = ()
    ) -> tuple[tuple[Node, ...], tuple[Operand, ...]]:
        jaxpr = closed.jaxpr
        values: dict[Any, Operand] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
            values[variable] = self.constant(value, variable.aval)

        def read(variable: Any) -> Operand:
            if not isinstance(variable, core.Literal):
                return values[variable]
            if np.ndim(variable.val):
                return self.constant(variable.val, variable.aval)
            return Literal(variable.val, variable.aval)

        nodes: list[Node] = []
        for equation in jaxpr.eqns:
            name, operands = equation.primitive.name, tuple(map(read, equation.invars))
            called = next((c for key in _CALLED if (c := closed_jaxpr(equation.params.get(key))) is not None), None)
            if called is not None and name in _INLINED | _REGIONS:
                body, outputs = self.inline(called, operands, (equation, *callers))
                if name in _INLINED:
                    nodes.extend(body)
                else:
                    graph = Graph(tuple(o for o in operands if isinstance(o, int)), outputs, body)
                    nodes.append(Node(equation, name, operands, (), body=graph, callers=callers))
            else:
                outputs = tuple(self.new(variable.aval) for variable in equation.outvars)
                subgraphs = tuple(self.subgraph(inner, (equation, *callers)) for inner in self.inner(equation))
                nodes.append(Node(equation, name, operands, outputs, subgraphs, callers=callers))
            values.update(zip(equation.outvars, outputs, strict=True))
        return tuple(nodes), tuple(map(read, jaxpr.outvars))

    @staticmethod
    def inner(equation: Any) -> list[core.ClosedJaxpr]:
        inner: list[core.ClosedJaxpr] = []
        for key in _SUBGRAPHS.get(equation.primitive.name, ()):
            value = equation.params[key]
            inner.extend(value if key == "branches" else [value])
        return inner
