"""Means: sums over an axis that are divided by the number of its indices, written into the trace as a number.

After an axis has been cut, that number is either left alone (what the masked model computes) or scaled by the share
that is left (what the same layer built smaller would compute). This module finds the places.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from jaxprune.tracing.axes import Axes, Sizes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Literal, Node, Program

Mean: TypeAlias = tuple[int, float, list[Dim]]
"""Which operand is the count, the power of it (1, or -1 for a factor), and the summed axes."""

_PASS = frozenset("convert_element_type broadcast_in_dim reshape squeeze expand_dims".split())


def find_means(axes: Axes, program: Program) -> dict[Node, Mean]:
    """The nodes that divide a sum by its count, or multiply it with the inverse.

    Args:
      axes: the solved axes.
      program: the program that is to run.
    """
    sums: dict[int, list[Dim]] = {}
    means: dict[Node, Mean] = {}
    for node in program.graph.everything():
        first = node.inputs[0] if node.inputs else None
        if node.name == "reduce_sum":
            own = axes.of(node.inputs[0])
            sums[node.outputs[0]] = [own[k] for k in node.params["axes"]]
        elif node.name in _PASS and isinstance(first, int) and first in sums:
            sums[node.outputs[0]] = sums[first]
        elif node.name in ("div", "mul"):
            means.update((node, found) for found in _mean(node, sums))
    return means


def _mean(node: Node, sums: dict[int, list[Dim]]) -> Iterator[Mean]:
    for summed, number in ((0, 1), (1, 0)) if node.name == "mul" else ((0, 1),):
        operand, literal = node.inputs[summed], node.inputs[number]
        if isinstance(operand, Literal) or operand not in sums or not isinstance(literal, Literal):
            continue
        count = math.prod(dim.size for dim in sums[operand])
        power = 1.0 if node.name == "div" else -1.0
        if np.isclose(float(literal.value), float(count) ** power, rtol=1e-5):
            yield number, power, sums[operand]


def rescale(operands: Sequence[object], mean: Mean, sizes: Sizes) -> list[object]:
    """The operands of a mean, with the count of what is left."""
    number, power, dims = mean
    share = math.prod(sizes.size(dim) for dim in dims) / math.prod(dim.size for dim in dims)
    value = np.asarray(operands[number])
    changed = list(operands)
    changed[number] = (value * share**power).astype(value.dtype)
    return changed
