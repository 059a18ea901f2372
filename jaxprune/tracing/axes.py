"""The axes of every value of a program, and their sizes once a plan has taken indices away.

`Axes` walks the graph once and lets the rule of each primitive state its equations between `Dim`s. `Sizes` reads the
solution for given kept indices: the mask of any axis, the new shape of any value.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.tracing import dims
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program

if TYPE_CHECKING:
    from jaxprune.tracing.rules import Rule


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis must stay as it is: words, and the operation if there is one."""

    text: str
    node: Node | None = None

    def __str__(self) -> str:
        return self.text if self.node is None else f"{self.text} ({self.node.place})"


class Axes:
    """The Dims of every value; what a rule reads and writes.

    Attributes:
      program: the graph and the shapes of its values.
      rules: the rule of each primitive, by name.
      dims: the Dims of each value's axes, by number, as far as the walk has come.
    """

    def __init__(self, program: Program, rules: Mapping[str, "Rule"]):
        self.program = program
        self.rules = rules
        self.dims: dict[int, list[Dim]] = {}

    def of(self, operand: Operand) -> list[Dim]:
        """The axes of a value; none of a literal."""
        if isinstance(operand, Literal):
            return []
        if operand not in self.dims:
            self.dims[operand] = dims.atoms(self.program.shape(operand))
        return self.dims[operand]

    def shape(self, operand: Operand) -> tuple[int, ...]:
        """The shape that the value has in the program."""
        return self.program.shape(operand)

    def set(self, value: int, axes: Sequence[Dim]) -> None:
        """Says what the axes of an output are.

        Raises:
          ValueError: they have not the shape of the value.
        """
        if tuple(axis.size for axis in axes) != self.shape(value):
            raise ValueError(f"axes {[axis.size for axis in axes]} given to a value of shape {self.shape(value)}")
        self.dims[value] = list(axes)

    def unify(self, node: Node, left: Sequence[Dim], right: Sequence[Dim]) -> None:
        """States that axes are pairwise the same."""
        for a, b in zip(left, right, strict=True):
            dims.unify(a, b, Reason("two layouts of one axis cannot be matched", node))

    def freeze(self, node: Node | None, axes: Sequence[Dim], text: str) -> None:
        """Forbids the removal of any index of these axes."""
        for axis in axes:
            dims.freeze(axis, Reason(text, node))

    def frozen(self, node: Node, sizes: Sequence[int], text: str) -> list[Dim]:
        """New axes that nothing may be removed from."""
        return dims.atoms(sizes, Reason(text, node))

    def freeze_all(self, node: Node, text: str) -> None:
        """Freezes every axis of every input and output of a node: what is not understood is left alone."""
        for operand in node.inputs:
            self.freeze(node, self.of(operand), text)
        for value in node.outputs:
            self.set(value, self.frozen(node, self.shape(value), text))

    def run(self, graph: Graph) -> None:
        """Applies the rule of every node in turn."""
        for node in graph.primitives():
            rule = self.rules.get(node.name)
            if rule is None:
                self.freeze_all(node, f"jaxprune has no rule for the primitive {node.name!r}")
            elif not rule.empty and any(0 in self.shape(x) for x in (*node.inputs, *node.outputs)):
                self.freeze_all(node, "an array without elements takes part")
            else:
                rule.axes(node, self)


class Sizes:
    """What is left of every axis under a choice of kept indices.

    Args:
      axes: the solved axes of a program.
      keep: the kept indices of some atoms.
      program: the program that is to run: the same one, or the same function traced at other batch sizes.
    """

    def __init__(self, axes: Axes, keep: Mapping[Dim, np.ndarray], program: Program | None = None):
        self.axes = axes
        self.program = axes.program if program is None else program
        self._keep = {dims.find(dim): mask for dim, mask in keep.items()}
        self._masks: dict[Dim, np.ndarray] = {}
        self._running: dict[Dim, np.ndarray] | None = None

    def mask(self, dim: Dim) -> np.ndarray:
        """bool[dim.size]: the kept positions."""
        dim = dims.find(dim)
        if dim not in self._masks:
            self._masks[dim] = dims.keep_mask(dim, self._keep)
        return self._masks[dim]

    def running_mask(self, operand: Operand, axis: int) -> np.ndarray:
        """The kept positions of one axis of a value, as many as it has in the running program.

        Raises:
          ValueError: the axis loses positions, has another size than in the trace, and nothing says how the two go
            together.
        """
        dim = self.axes.of(operand)[axis]
        mask = self._mask_of_size(dim, self.program.shape(operand)[axis])
        if mask is None:
            raise ValueError(
                f"axis {axis} of a value of shape {self.program.shape(operand)} was traced with {dim.size} indices, "
                "some of which the plan removes, and it is not known which those are for arguments of these shapes. "
                "Trace the model with arguments of these shapes, and make the plan for that trace."
            )
        return mask

    def _mask_of_size(self, dim: Dim, running: Any) -> np.ndarray | None:
        """The kept positions of an axis that may have another size now; None where its parts do not tell."""
        if not isinstance(running, int):
            return None
        mask = self.mask(dim) if running == dim.size else dims.keep_mask(dim, self._resized())
        return mask if mask.size == running else None

    def _resized(self) -> dict[Dim, np.ndarray]:
        """What is kept of the axes that are given, and all of those that keep all but have another size now."""
        if self._running is None:
            self._running = dict(self._keep)
            for value, own in self.axes.dims.items():
                for dim, running in zip(own, self.program.shape(value), strict=True):
                    if isinstance(running, int) and running != dim.size and self.whole(dim):
                        self._running[dims.find(dim)] = np.ones(running, bool)
        return self._running

    def whole(self, dim: Dim) -> bool:
        """Whether an axis keeps all its positions."""
        return bool(self.mask(dim).all())

    def unchanged(self, operand: Operand) -> bool:
        """Whether a value keeps its shape."""
        return all(map(self.whole, self.axes.of(operand)))

    def untouched(self, graph: Graph) -> bool:
        """Whether every value in a graph keeps its shape."""
        values: set[Operand] = {*graph.inputs, *graph.outputs}
        for node in graph.everything():
            values.update((*node.inputs, *node.outputs))
        return all(map(self.unchanged, values))

    def size(self, dim: Dim) -> int:
        """The number of kept positions."""
        return int(self.mask(dim).sum())

    def shape(self, operand: Operand) -> tuple[Any, ...]:
        """The shape of a value in the smaller program; sizes may be symbolic where the running program's are."""
        pairs = zip(self.axes.of(operand), self.program.shape(operand), strict=True)
        return tuple(running if self.whole(dim) else self._scaled(dim, running) for dim, running in pairs)

    def _scaled(self, dim: Dim, running: Any) -> Any:
        mask = self._mask_of_size(dim, running)
        if mask is not None:
            return int(mask.sum())
        # A batch axis merged with a pruned one has a size that depends on the batch: only its share that is kept is
        # known, as a fraction in lowest terms.
        kept = self.size(dim)
        common = math.gcd(kept, dim.size)
        return running // (dim.size // common) * (kept // common)
