"""Segments: stretches of a program that hold one block each, and which parameters belong to one alone."""

import collections
import dataclasses
import math
from collections.abc import Sequence

from jaxprune import trees
from jaxprune.posttraining.stages import Frame
from jaxprune.posttraining.units import Blocks, Loop, plan_units
from jaxprune.tracing.graph import Literal, Node
from jaxprune.tracing.matrices import Matrix
from jaxprune.tracing.views import Stacked, View, is_cast


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """The nodes of a block.

    Attributes:
      start: the position of the first one.
      stop: the position after the last one.
      own: the parameters that only these nodes read, by position.
    """

    start: int
    stop: int
    own: frozenset[int]


def plan_segments(frame: Frame, matrices: Sequence[Matrix], blocks: Blocks) -> list[Segment | Loop]:
    """The blocks of a frame in order, without overlap; scans over stacked layers are left to be run step by step.

    A block starts at the first product with one of its matrices, and ends after the last one where least data goes on:
    behind the sum with the residual stream, mostly, and behind the bias and the activation.
    """
    spans: list[tuple[int, int, Loop | None]] = []
    for unit in plan_units(frame, matrices, blocks):
        loop = unit if isinstance(unit, Loop) else None
        if spans and unit.start < spans[-1][1]:  # blocks that cross are one
            start, stop, _ = spans.pop()
            spans.append((start, max(stop, unit.stop), None))
        else:
            spans.append((unit.start, unit.stop, loop))
    reads = [_leaves_of(frame, node) for node in frame.nodes]
    total = collections.Counter(leaf for leaves in reads for leaf in leaves)
    found: list[Segment | Loop] = []
    for k, (start, stop, loop) in enumerate(spans):
        if loop is not None:
            found.append(loop)
            continue
        end = _end(frame, stop, spans[k + 1][0] if k + 1 < len(spans) else len(frame.nodes))
        inside = collections.Counter(leaf for leaves in reads[start:end] for leaf in leaves)
        own = (leaf for leaf, times in inside.items() if times == total[leaf] and _is_whole(frame, leaf))
        found.append(Segment(start, end, frozenset(own)))
    return found


def _end(frame: Frame, stop: int, limit: int) -> int:
    """Where, from `stop` to `limit`, least data goes on, but no less than the last product makes."""
    least = _size(frame, set(frame.nodes[stop - 1].outputs))
    end, positions = len(frame.nodes), range(stop, limit + 1)
    sizes = {position: _size(frame, frame.needed(position, end, True)) for position in positions}
    fitting = {position: size for position, size in sizes.items() if size >= least} or sizes
    smallest = min(fitting.values())
    return max(position for position, size in fitting.items() if size == smallest)


def _size(frame: Frame, values: set[int]) -> int:
    avals = frame.layers.program.avals
    return sum(math.prod(avals[value].shape) for value in values if trees.is_floating(avals[value]))


def _leaves_of(frame: Frame, node: Node) -> set[int]:
    """The parameters that a node reads, through whatever is made of them."""
    found: set[int] = set()
    waiting, seen = list(node.inputs), set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Literal) or value in seen or frame.is_data(value):
            continue
        seen.add(value)
        if value in frame.makers:
            waiting.extend(frame.makers[value].inputs)
            continue
        origin = frame.layers.origins.of(value)
        if origin is not None and origin.leaf is not None:
            found.add(origin.leaf)
        elif origin is not None:
            found.update(leaf for pairs in origin.axes for leaf, _ in pairs)
    return found


def _is_whole(frame: Frame, leaf: int) -> bool:
    """Whether a step of the loops around a frame reads one slice of a parameter, which nothing else reads."""
    if frame.outer is None or frame.loop is None:
        return True
    origins = [frame.layers.origins.of(value) for value in frame.graph.inputs]
    views = [origin.view for origin in origins if origin is not None and origin.leaf == leaf]
    if not views or not all(_is_slice(view, frame.depth) for view in views):
        return False
    readers = [node for node in frame.outer.nodes if leaf in _leaves_of(frame.outer, node)]
    return readers == [frame.loop] and (frame.outer.outer is None or _is_whole(frame.outer, leaf))


def _is_slice(view: View, depth: int) -> bool:
    """Whether a view takes one slice of the first `depth` axes, and moves nothing."""
    steps = [step for step in view if not is_cast(step)]
    return len(steps) == depth and all(isinstance(step, Stacked) for step in steps)
