"""Units: which matrices are pruned at once, and over which stretch of the program their inputs are looked at."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from jaxprune import trees
from jaxprune.posttraining.stages import Frame
from jaxprune.tracing.graph import Node
from jaxprune.tracing.inputs import Input, find_inputs
from jaxprune.tracing.matrices import Matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Matrices that are pruned together, before the node at `start` runs.

    Attributes:
      matrices: the matrices.
      sources: their inputs.
      inputs_of: the names of the inputs of each matrix.
      start: the position of the first node that uses one of them.
      stop: the position after the last node that uses one of them.
    """

    matrices: tuple[Matrix, ...]
    sources: tuple[Input, ...]
    inputs_of: dict[str, tuple[str, ...]]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A loop over stacked layers, which is run step by step.

    Attributes:
      node: the scan.
      start: its position.
      matrices: the matrices whose slices the steps use.
    """

    node: Node
    start: int
    matrices: tuple[Matrix, ...]

    @property
    def stop(self) -> int:
        """The position after it."""
        return self.start + 1


def plan_units(frame: Frame, matrices: Sequence[Matrix], blocks: "Blocks | None") -> list[Unit | Loop]:
    """What to do in a frame, in order.

    Inputs that are the same are looked at once, so q, k and v are one unit. A matrix that is used several times, or by
    a loop that carries it unchanged, is pruned before its first use, from the inputs of all uses. With `blocks` all
    matrices of a block are one unit.
    """
    inside = [{node, *(n for graph in node.subgraphs for n in graph.everything())} for node in frame.nodes]
    sources, inputs_of = find_inputs(matrices, frame.layers.program)
    by_name = {source.name: source for source in sources}
    loops: dict[int, list[Matrix]] = {}
    shared: dict[object, list[Matrix]] = {}
    spans: dict[str, tuple[int, int]] = {}
    for matrix in matrices:
        at = [k for k, nodes in enumerate(inside) if any(site.node in nodes for site in matrix.sites)]
        if not at:
            continue
        spans[matrix.name] = min(at), max(at) + 1
        node = frame.nodes[at[0]]
        if len(at) == 1 and node.name == "scan" and _is_stacked(node, [by_name[n] for n in inputs_of[matrix.name]]):
            loops.setdefault(at[0], []).append(matrix)
        else:
            key = inputs_of[matrix.name] if blocks is None else blocks.key(matrix, frame)
            shared.setdefault(key, []).append(matrix)
    units: list[Unit | Loop] = [Loop(frame.nodes[k], k, tuple(own)) for k, own in loops.items()]
    for own in shared.values():
        names = dict.fromkeys(name for matrix in own for name in inputs_of[matrix.name])
        units.append(
            Unit(
                tuple(own),
                tuple(by_name[name] for name in names),
                {matrix.name: inputs_of[matrix.name] for matrix in own},
                min(spans[matrix.name][0] for matrix in own),
                max(spans[matrix.name][1] for matrix in own),
            )
        )
    # What a loop carries unchanged is pruned before the loop is run step by step.
    return sorted(units, key=lambda unit: (unit.start, isinstance(unit, Loop)))


def _is_stacked(node: Node, sources: Iterable[Input]) -> bool:
    return all((node, True) in source.loops for source in sources)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Which matrices make a block.

    Attributes:
      patterns: regular expressions over paths; a match of the same text is the same block. None takes the first
        numbered part of a path that has another number elsewhere, `encoder_0/layer_3/...` beside `layer_4`, and each
        step of a loop over stacked layers.
    """

    patterns: tuple[str, ...] | None = None

    def key(self, matrix: Matrix, frame: Frame) -> object:
        """What matrices of one block have in common."""
        if self.patterns is not None:
            found = [re.match(trees.compile_pattern(pattern), matrix.path) for pattern in self.patterns]
            return next((match.group() for match in found if match is not None), matrix.name)
        if frame.outer is not None:
            return ""
        repeated = _repeated(frame.layers.paths)
        return next((prefix for prefix in _numbered(matrix.path) if prefix in repeated), matrix.name)


def _numbered(path: str) -> list[str]:
    """The beginnings of a path that end in a number, from the shortest."""
    return [match.string[: match.end()] for match in re.finditer(r"\d+(?=/)", path)]


@functools.lru_cache(maxsize=8)
def _repeated(paths: tuple[str, ...]) -> frozenset[str]:
    """The numbered beginnings of paths of which there is another number: one of a kind is no layer among others."""
    kinds: dict[str, set[str]] = {}
    for prefix in (prefix for path in paths for prefix in _numbered(path)):
        kinds.setdefault(prefix.rstrip("0123456789"), set()).add(prefix)
    return frozenset(prefix for kind in kinds.values() if len(kind) > 1 for prefix in kind)
