"""Where values come from: the data, or which axes of which parameters.

One walk over the graph. A value that depends on the arguments is *data*. A value made of parameters (and constants)
only has an `Origin`: for each of its axes, the axes of parameters that run along it, and the view of the one parameter
that it is, where it is one, or of those that lie side by side in it. A value made of constants only has neither.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.rules.elementwise import ELEMENTWISE
from jaxprune.tracing.rules.reductions import REDUCTIONS, reduced_axes
from jaxprune.tracing.rules.shapes import reshape_blocks
from jaxprune.tracing.views import Pointwise, Reshape, Stacked, Step, Transpose, View, step_of

LeafAxes: TypeAlias = frozenset[tuple[int, int]]
NONE: LeafAxes = frozenset()


class Span(NamedTuple):
    """A stretch of one axis of a value.

    Attributes:
      axis: the axis.
      start: its first index.
      stop: the index after its last one.
    """

    axis: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A parameter that a value is a view of, or, in a concatenation, a stretch of the value.

    Attributes:
      leaf: the parameter.
      view: the steps from the parameter to the stretch.
      span: the stretch; None where it is all of the value.
    """

    leaf: int
    view: View = ()
    span: Span | None = None

    def after(self, step: Step) -> "Part | None":
        """The part after a step of the whole value; None where its stretch is lost."""
        view = (*self.view, step)
        if self.span is None:
            return Part(self.leaf, view)
        axis = self.span.axis
        if isinstance(step, Transpose):
            return Part(self.leaf, view, self.span._replace(axis=step.permutation.index(axis)))
        if isinstance(step, Stacked) and axis:
            return Part(self.leaf, view, self.span._replace(axis=axis - 1))
        return Part(self.leaf, view, self.span) if isinstance(step, Pointwise) else None


@dataclasses.dataclass(frozen=True)
class Origin:
    """A value made of parameters only.

    Attributes:
      axes: for each axis, the (parameter, axis) pairs that run along it.
      parts: the parameters that can be read off the value: the one that it is a view of, or those of a concatenation.
    """

    axes: tuple[LeafAxes, ...]
    parts: tuple[Part, ...] = ()

    @property
    def leaf(self) -> int | None:
        """The parameter that the value is a view of; None where it is none."""
        return self.parts[0].leaf if self.parts and self.parts[0].span is None else None

    @property
    def view(self) -> View:
        """The steps from that parameter to the value."""
        return self.parts[0].view if self.leaf is not None else ()

    def after(self, step: Step, axes: tuple[LeafAxes, ...]) -> "Origin":
        """The origin of what a step makes of the value."""
        return Origin(axes, tuple(part for each in self.parts if (part := each.after(step)) is not None))


class Origins:
    """The walk; after it, `data` and `origins` hold what is known of each value.

    Args:
      program: the program.
      count: how many of its inputs, from the first, are parameters; the others are data.
    """

    def __init__(self, program: Program, count: int):
        self.program = program
        self.data: set[int] = set()
        self.origins: dict[int, Origin] = {}
        for leaf, value in enumerate(program.graph.inputs):
            if leaf < count:
                axes = tuple(frozenset([(leaf, axis)]) for axis in range(len(program.shape(value))))
                self.origins[value] = Origin(axes, (Part(leaf),))
            else:
                self.data.add(value)
        self.walk(program.graph)

    def is_data(self, operand: Operand) -> bool:
        """Whether a value depends on the arguments."""
        return operand in self.data

    def of(self, operand: Operand) -> Origin | None:
        """The origin of a value made of parameters only."""
        return None if isinstance(operand, Literal) else self.origins.get(operand)

    def walk(self, graph: Graph) -> None:
        """Follows every node of a graph whose inputs are known."""
        for node in graph.primitives():
            if node.subgraphs:
                _BODIES[node.name](self, node)
            elif any(map(self.is_data, node.inputs)):
                self.data.update(node.outputs)
            elif any(self.of(operand) for operand in node.inputs):
                for k, output in enumerate(node.outputs):
                    self.origins[output] = self._follow(node, k, output)

    def _hand(self, source: Operand, target: int) -> None:
        if self.is_data(source):
            self.data.add(target)
        elif (origin := self.of(source)) is not None:
            self.origins[target] = origin

    def _scan(self, node: Node) -> None:
        (body,), params = node.subgraphs, node.params
        consts, carry = params["num_consts"], params["num_carry"]
        for k, (operand, inner) in enumerate(zip(node.inputs, body.inputs, strict=True)):
            origin = self.of(operand)
            if k < consts or self.is_data(operand):
                self._hand(operand, inner)
            elif k < consts + carry:
                if body.outputs[k - consts] == inner:
                    self._hand(operand, inner)
                else:  # it changes from step to step
                    self.data.add(inner)
            elif origin is not None:
                self.origins[inner] = origin.after(Stacked(node), origin.axes[1:])
        self.walk(body)
        for k, output in enumerate(node.outputs):
            if k < carry:
                self._hand(body.inputs[consts + k], output)
            elif self.is_data(body.outputs[k]):
                self.data.add(output)
            elif (origin := self.of(body.outputs[k])) is not None:
                self.origins[output] = Origin((NONE, *origin.axes))

    def _while(self, node: Node) -> None:
        test, body = node.subgraphs
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        for graph, start, count in ((test, 0, first), (body, first, second)):
            for operand, inner in zip(node.inputs[start : start + count], graph.inputs, strict=False):
                self._hand(operand, inner)
            for operand, inner, after in zip(
                node.inputs[first + second :], graph.inputs[count:], body.outputs, strict=True
            ):
                if graph is body and after == inner:
                    self._hand(operand, inner)
                else:
                    self.data.add(inner)
            self.walk(graph)
        for output, inner in zip(node.outputs, body.inputs[second:], strict=True):
            self._hand(inner, output)

    def _cond(self, node: Node) -> None:
        for branch in node.subgraphs:
            for operand, inner in zip(node.inputs[1:], branch.inputs, strict=True):
                self._hand(operand, inner)
            self.walk(branch)
        chosen_by_data = self.is_data(node.inputs[0])
        for k, output in enumerate(node.outputs):
            made = [branch.outputs[k] for branch in node.subgraphs]
            if chosen_by_data or any(map(self.is_data, made)):
                self.data.add(output)
            elif any(self.of(value) for value in made):
                self.origins[output] = Origin(tuple(NONE for _ in self.program.shape(output)))

    def _follow(self, node: Node, k: int, output: int) -> Origin:
        shape = self.program.shape(output)
        axes = self._axes(node, shape)
        axes = axes if axes is not None else tuple(NONE for _ in shape)
        if node.name in ("concatenate", "stack"):
            return Origin(axes, tuple(self._side_by_side(node)))
        first = self.of(node.inputs[0])
        if first is not None and first.parts:
            step = step_of(node, self.program.shape(node.inputs[0]), k, shape)
            if step is not None:
                return first.after(step, axes)
        if node.name in ELEMENTWISE:
            for operand in node.inputs:
                origin = self.of(operand)
                if origin is not None and origin.parts and self.program.shape(operand) == shape:
                    return origin.after(Pointwise(node.name), axes)
        return Origin(axes)

    def _side_by_side(self, node: Node) -> Iterator[Part]:
        """The parameters of a concatenation; to stack is to concatenate along an axis of size 1."""
        axis, start = node.params["axis" if node.name == "stack" else "dimension"], 0
        for operand in node.inputs:
            origin, shape = self.of(operand), tuple(self.program.shape(operand))
            if node.name == "stack":
                shape = (*shape[:axis], 1, *shape[axis:])
                origin = origin.after(Reshape(shape), origin.axes) if origin is not None else None
            size = shape[axis]
            for part in origin.parts if origin is not None else ():
                inner = part.span or Span(axis, 0, size)
                if inner.axis == axis:
                    yield Part(part.leaf, part.view, Span(axis, start + inner.start, start + inner.stop))
            start += size

    def _axes(self, node: Node, shape: Sequence[int]) -> tuple[LeafAxes, ...] | None:
        """The axes of parameters along each axis of an output; None where they are lost."""
        params, name = node.params, node.name
        known = [(self.program.shape(operand), self.of(operand)) for operand in node.inputs]
        own = [NONE] * len(known[0][0]) if known[0][1] is None else list(known[0][1].axes)
        if name in ELEMENTWISE or name in ("concatenate", "optimization_barrier", "device_put", "rev"):
            same = [origin.axes for size, origin in known if origin is not None and len(size) == len(shape)]
            return tuple(frozenset().union(*(axes[k] for axes in same)) for k in range(len(shape)))
        if name == "stack":
            along, same = params["axis"], [origin.axes for _, origin in known if origin is not None]
            union = [frozenset().union(*axis) for axis in zip(*same, strict=True)]
            return (*union[:along], NONE, *union[along:])
        if name in ("slice", "split", "pad", "cumsum"):
            return tuple(own)
        if name == "transpose":
            return tuple(own[k] for k in params["permutation"])
        if name == "squeeze":
            return tuple(axis for k, axis in enumerate(own) if k not in params["dimensions"])
        if name in REDUCTIONS:
            return tuple(axis for k, axis in enumerate(own) if k not in reduced_axes(node))
        if name == "broadcast_in_dim":
            result = [NONE] * len(shape)
            for axis, k in zip(own, params["broadcast_dimensions"], strict=True):
                result[k] = axis
            return tuple(result)
        if name in ("reshape", "expand_dims") and 0 not in shape:
            result = [NONE] * len(shape)
            for rows, columns in reshape_blocks(tuple(known[0][0]), tuple(shape)):
                for k in columns:
                    result[k] = frozenset().union(*(own[row] for row in rows))
            return tuple(result)
        if name == "dot_general":
            (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
            right = [NONE] * len(known[1][0]) if known[1][1] is None else list(known[1][1].axes)
            return tuple(
                [own[a] | right[b] for a, b in zip(left_batch, right_batch, strict=True)]
                + [own[k] for k in free_axes(len(own), left_sum, left_batch)]
                + [right[k] for k in free_axes(len(right), right_sum, right_batch)]
            )
        return None


_BODIES = {"scan": Origins._scan, "while": Origins._while, "cond": Origins._cond}
