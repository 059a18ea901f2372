"""Stages: stretches of a program as compiled functions, so that a model can be run up to where a weight is pruned.

A `Frame` is a graph together with where the parameters come from that it sees: the whole program, or the body of a
loop at one of its steps. A stage runs the nodes from one position of a frame to another. Values of the data cross from
stage to stage; what is made of parameters alone (casts, reshapes) is made anew in each, so that it is never older than
the parameters. Stages that are alike, as those of repeated layers are, compile once.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from jaxprune.calibration.capture import Tap
from jaxprune.calibration.statistics import Statistic
from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program
from jaxprune.tracing.inputs import Input, data_span
from jaxprune.tracing.layers import Layers

Data = dict[int, Any]
Leaf = tuple[str, int]  # "leaf" and the position of a parameter, or "constant" and the number of a value


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A graph, and where the parameters come from that it sees.

    Attributes:
      layers: the program that it belongs to.
      graph: the graph.
      outer: the frame of the loop whose body it is; None for the whole program.
      loop: the node of that loop.
    """

    layers: Layers
    graph: Graph
    outer: "Frame | None" = None
    loop: Node | None = None

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that work on data, in order; calls with a meaning of their own are read straight through."""
        data = self.layers.origins.data
        return tuple(node for node in self.graph.primitives() if any(value in data for value in node.outputs))

    @functools.cached_property
    def makers(self) -> dict[int, Node]:
        """The node that makes each value."""
        return {value: node for node in self.graph.primitives() for value in node.outputs}

    @property
    def depth(self) -> int:
        """How many loops are around it."""
        return 0 if self.outer is None else self.outer.depth + 1

    def is_data(self, operand: Operand) -> bool:
        """Whether a value depends on the arguments."""
        return self.layers.origins.is_data(operand)

    def needed(self, stop: int, end: int, outputs: bool) -> set[int]:
        """What nodes from `stop` to `end` read of the data that is made before, and the outputs of the graph do."""
        read = {operand for node in self.nodes[stop:end] for operand in node.inputs}
        read |= set(self.graph.outputs) if outputs else set()
        read -= {value for node in self.nodes[stop:end] for value in node.outputs}
        return {operand for operand in read if not isinstance(operand, Literal) and self.is_data(operand)}


class Code:
    """The instructions of a stage, in a form in which stages that are alike are equal.

    Attributes:
      key: equal for stages that compute the same.
      leaves: the parameters and constants that it reads, in the order of its arguments.
      data: the values of the data that it reads, likewise.
    """

    def __init__(self, frame: Frame):
        self.frame = frame
        self.program: Program = frame.layers.program
        self.leaves: list[Leaf] = []
        self.data: list[int] = []
        self.slots: dict[tuple[int, int] | Leaf, int] = {}  # (depth of the frame, value) or a leaf, to its number
        self.instructions: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = []
        self.parts: list[Hashable] = []
        self.count = 0

    def new(self) -> int:
        """A number that is not taken."""
        self.count += 1
        return self.count - 1

    def leaf(self, leaf: Leaf) -> int:
        """The number of a parameter or a constant."""
        if leaf not in self.slots:
            self.slots[leaf] = self.new()
            self.leaves.append(leaf)
            number = self.program.graph.inputs[leaf[1]] if leaf[0] == "leaf" else leaf[1]
            self.parts.append(("leaf", self.slots[leaf], str(self.program.avals[number])))
        return self.slots[leaf]

    def value(self, frame: Frame, operand: Operand) -> Any:
        """The number of a value, after the instructions that make it where it is made of parameters; or a literal."""
        if isinstance(operand, Literal):
            return operand
        slot = (frame.depth, operand)
        if slot in self.slots:
            return self.slots[slot]
        if frame.is_data(operand):
            self.slots[slot] = self.new()
            self.data.append(operand)
            self.parts.append(("data", self.slots[slot], str(self.program.avals[operand])))
        elif operand in frame.graph.inputs:
            self.slots[slot] = self.parameter(frame, frame.graph.inputs.index(operand))
        elif operand in self.program.constants:
            self.slots[slot] = self.leaf(("constant", operand))
        else:
            self.emit(frame, frame.makers[operand])
        return self.slots[slot]

    def parameter(self, frame: Frame, k: int) -> int:
        """The number of an input of a graph that is no data."""
        if frame.outer is None or frame.loop is None:
            return self.leaf(("leaf", k))
        whole = self.value(frame.outer, frame.loop.inputs[k])
        params = frame.loop.params
        if k < params["num_consts"] + params["num_carry"]:
            return whole
        number = self.new()
        self.instructions.append((frame.depth - 1, (whole,), (number,)))
        self.parts.append(("slice", frame.depth - 1, _literal(whole), number))
        return number

    def emit(self, frame: Frame, node: Node) -> None:
        """Adds a node."""
        operands = tuple(self.value(frame, operand) for operand in node.inputs)
        numbers = tuple(self.new() for _ in node.outputs)
        self.slots.update({(frame.depth, value): n for value, n in zip(node.outputs, numbers, strict=True)})
        self.instructions.append((node, operands, numbers))
        self.parts.append((node.name, signature(node), tuple(map(_literal, operands)), numbers))

    @property
    def key(self) -> Hashable:
        """Equal for stages that compute the same of their arguments."""
        return tuple(self.parts)


def _literal(operand: Any) -> Hashable:
    return ("literal", str(operand.value), str(operand.aval)) if isinstance(operand, Literal) else operand


def signature(node: Node) -> Hashable:
    """Equal for nodes that compute the same; nodes with constants in their bodies are equal to themselves only."""
    for value in node.params.values():
        bodies = value if isinstance(value, (tuple, list)) else [value]
        if any(isinstance(body, core.ClosedJaxpr) and len(body.consts) for body in bodies):
            return id(node.equation)
    return str(sorted(node.params.items(), key=lambda item: item[0]))


class Stages:
    """Runs stages of a model on values of the data, and keeps what it compiled.

    Args:
      layers: the model.
      stat: the statistic that is taken at inputs.
    """

    def __init__(self, layers: Layers, stat: Statistic):
        self.layers = layers
        self.stat = stat
        self.compiled: dict[Hashable, Callable[..., Any]] = {}
        self.codes: dict[Hashable, tuple[Code, list[Any], Hashable]] = {}

    def arguments(self, code: Code, leaves: Sequence[Any], values: Data) -> tuple[list[Any], list[Any]]:
        """What a stage reads: parameters and constants, and values of the data."""
        constants = self.layers.program.constants
        fixed = [leaves[k] if kind == "leaf" else constants[k] for kind, k in code.leaves]
        return fixed, [values[number] for number in code.data]

    def run(
        self,
        frame: Frame,
        start: int,
        stop: int,
        keep: set[int],
        leaves: Sequence[Any],
        index: Sequence[int],
        values: Data,
    ) -> Data:
        """Runs the nodes from `start` to `stop`.

        Args:
          frame: the graph.
          start: the position among its nodes of the first one.
          stop: the position after the last one.
          keep: the values that are needed afterwards.
          leaves: the parameters.
          index: the step of each loop around the graph.
          values: the values of the data that are there.

        Returns:
          The values of `keep`.
        """
        made = {value for node in frame.nodes[start:stop] for value in node.outputs}
        wanted = sorted(keep & made)
        kept = {number: values[number] for number in keep - made}
        if not wanted:
            return kept
        memo = (frame.graph, start, stop, tuple(wanted))
        if memo not in self.codes:
            code = Code(frame)
            for node in frame.nodes[start:stop]:
                code.emit(frame, node)
            outputs = [code.slots[frame.depth, value] for value in wanted]
            self.codes[memo] = code, outputs, (code.key, tuple(outputs))
        code, outputs, key = self.codes[memo]
        if key not in self.compiled:
            self.compiled[key] = jax.jit(functools.partial(_execute, code, outputs))
        results = self.compiled[key](*self.arguments(code, leaves, values), _steps(index))
        return {**kept, **dict(zip(wanted, results, strict=True))}

    def fixed(self, frame: Frame, operand: Operand, leaves: Sequence[Any], index: Sequence[int]) -> Any:
        """A value that does not depend on the data."""
        code = Code(frame)
        number = code.value(frame, operand)
        if isinstance(number, Literal):
            return np.asarray(number.value, number.aval.dtype)
        return _execute(code, [number], self.arguments(code, leaves, {})[0], [], _steps(index))[0]

    def measure(
        self,
        frame: Frame,
        start: int,
        stop: int,
        sources: Sequence[Input],
        leaves: Sequence[Any],
        index: Sequence[int],
        values: Data,
        weights: Any = None,
        stat: Statistic | None = None,
    ) -> list[Any]:
        """The count of rows and the statistic of some inputs, which nodes from `start` to `stop` read; as for `run`."""
        stat = self.stat if stat is None else stat
        memo = (frame.graph, start, stop, tuple(source.name for source in sources), stat)
        if memo not in self.codes:
            code = Code(frame)
            for node in frame.nodes[start:stop]:
                code.emit(frame, node)
            self.codes[memo] = code, [], (code.key, stat, tuple(_position(code, source) for source in sources))
        code, _, key = self.codes[memo]
        if key not in self.compiled:
            self.compiled[key] = jax.jit(functools.partial(_measure, code, tuple(sources), stat))
        return self.compiled[key](*self.arguments(code, leaves, values), _steps(index), weights)


def _steps(index: Sequence[int]) -> list[np.int32]:
    return [np.int32(k) for k in index]


def _position(code: Code, source: Input) -> Hashable:
    """Where an input is read, equal for stages that are alike."""
    for k, (node, _, _) in enumerate(code.instructions):
        if isinstance(node, Node):
            inside = [node, *(inner for graph in node.subgraphs for inner in graph.everything())]
            if source.node in inside:
                site, stacked = source.site, [own for _, own in source.loops].count(True)
                return k, inside.index(source.node), site.operand, data_span(site), stacked
    raise AssertionError(f"{source.name} is not read in the stage")


def _execute(code: Code, outputs: list[int], leaves: list[Any], data: list[Any], index: list[Any]) -> list[Any]:
    values = _evaluate(code, Tap(code.program, [], lambda x, w: None), leaves, data, index)
    return [values[number] for number in outputs]


def _measure(
    code: Code,
    sources: tuple[Input, ...],
    stat: Statistic,
    leaves: list[Any],
    data: list[Any],
    index: list[Any],
    weights: Any,
) -> list[Any]:
    tap = Tap(code.program, sources, stat, weights)
    _evaluate(code, tap, leaves, data, index)
    return [tap.found[source.name] for source in sources]


def _evaluate(code: Code, tap: Tap, leaves: list[Any], data: list[Any], index: list[Any]) -> Mapping[int, Any]:
    values: dict[int, Any] = {code.slots[leaf]: x for leaf, x in zip(code.leaves, leaves, strict=True)}
    depth = code.frame.depth
    values.update({code.slots[depth, number]: x for number, x in zip(code.data, data, strict=True)})

    def read(operand: Any) -> Any:
        return np.asarray(operand.value, operand.aval.dtype) if isinstance(operand, Literal) else values[operand]

    for node, operands, numbers in code.instructions:
        if isinstance(node, Node):
            outputs = tap.step(node, [read(operand) for operand in operands], {})
        else:
            outputs = [lax.dynamic_index_in_dim(read(operands[0]), index[node], 0, keepdims=False)]
        values.update(zip(numbers, outputs, strict=True))
    return values
