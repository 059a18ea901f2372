"""Means: sums over an axis that are divided by the number of its indices, written into the trace as a number.

After an axis has been cut, that number is either left alone (what the masked model computes) or replaced by the number
of what is left (what the same layer built smaller would compute). This module finds the places.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import jax
import numpy as np

from jaxprune._versions import bind
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.graph import Literal, Node, Operand, Program
from jaxprune.tracing.views import RESHAPES

Sum: TypeAlias = tuple[Operand, tuple[int, ...]]

_ARITHMETIC = frozenset("add sub mul div max min neg convert_element_type integer_pow".split())


@dataclasses.dataclass(frozen=True)
class Mean:
    """The count in a mean.

    Attributes:
      operand: which operand of the division (or multiplication) it is.
      summed: the value that is summed, and over which axes.
      less: what is taken off the count: 1 in an unbiased variance.
      power: 1 where the sum is divided by the count, -1 where it is multiplied with its inverse.
    """

    operand: int
    summed: Sum
    less: int
    power: int

    def scale(self, sizes: Sizes) -> float:
        """What the number is to be multiplied with."""
        value, axes = self.summed
        full, left = sizes.program.shape(value), sizes.shape(value)
        before = math.prod(full[axis] for axis in axes) - self.less
        after = math.prod(left[axis] for axis in axes) - self.less
        return (max(after, 1) / before) ** self.power


def find_means(program: Program) -> dict[Node, Mean]:
    """The nodes that divide a sum by its count, or multiply it with the inverse.

    Args:
      program: the program that is to run, at the sizes that it has before a cut.
    """
    sums: dict[int, Sum] = {}
    numbers: dict[int, float] = {}
    means: dict[Node, Mean] = {}
    for node in program.graph.everything():
        first = node.inputs[0] if node.inputs else None
        if node.name == "reduce_sum":
            sums[node.outputs[0]] = node.inputs[0], tuple(node.params["axes"])
        elif node.name in RESHAPES and isinstance(first, int) and first in sums:
            sums[node.outputs[0]] = sums[first]
        elif node.name in _ARITHMETIC and (values := _known(node, numbers, program)) is not None:
            with jax.ensure_compile_time_eval():  # the shrunk function may be under jit
                (result,) = bind(node.equation.primitive, values, node.params)
            numbers[node.outputs[0]] = float(result)
        elif node.name in ("div", "mul"):
            means.update((node, mean) for mean in _means_at(node, program, sums, numbers))
    return means


def _known(node: Node, numbers: Mapping[int, float], program: Program) -> list[np.ndarray] | None:
    """The operands of a node that computes with numbers of the trace only, such as n - 1."""
    if any(program.shape(operand) for operand in (*node.inputs, *node.outputs)):
        return None
    values = []
    for operand in node.inputs:
        number = _number(operand, numbers)
        if number is None:
            return None
        aval = operand.aval if isinstance(operand, Literal) else program.avals[operand]
        values.append(np.asarray(number, aval.dtype))
    return values


def _number(operand: Operand, numbers: Mapping[int, float]) -> float | None:
    if not isinstance(operand, Literal):
        return numbers.get(operand)
    try:
        return float(operand.value)
    except (TypeError, ValueError):
        return None


def _means_at(node: Node, program: Program, sums: Mapping[int, Sum], numbers: Mapping[int, float]) -> Iterator[Mean]:
    for summed, number in ((0, 1), (1, 0)) if node.name == "mul" else ((0, 1),):
        operand, value = node.inputs[summed], _number(node.inputs[number], numbers)
        if isinstance(operand, Literal) or operand not in sums or value is None:
            continue
        source, axes = sums[operand]
        count = math.prod(program.shape(source)[axis] for axis in axes)
        if not isinstance(count, int):  # of a symbolic size there is no number in the trace
            continue
        power = 1 if node.name == "div" else -1
        for less in (0, 1):
            if count > less and np.isclose(value, float(count - less) ** power, rtol=1e-5, atol=0):
                yield Mean(number, sums[operand], less, power)
                break
