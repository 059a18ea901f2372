"""Parameters as matrices: how what an operation multiplies with becomes `W`, (out, in), and what it is applied to.

Every method that works on layers sees one shape only, `W[*stack, *batch, out, in]` with inputs `x[*batch, rows, in]`,
whatever the layer is: dense, a convolution, an einsum over heads, the experts of a mixture, a scanned stack.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.tracing.graph import Program
from jaxprune.tracing.origins import Span
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.sites import CONVOLUTION, DOT, GATHER, RAGGED_DOT, Site
from jaxprune.tracing.views import Pointwise, Stacked, View, apply_view, is_cast, place


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a parameter becomes a matrix and back; hashable, and equal for layers that are alike.

    Attributes:
      view: the steps from the parameter to the operand; no casts, so that uses in several types are uses of one matrix.
      permutation: the axes of the operand in the order batch, output, contracted.
      batch: how many of them are batch axes.
      output: how many are output axes.
      groups: the feature groups of a convolution, which make a batch axis.
    """

    view: View
    permutation: tuple[int, ...]
    batch: int
    output: int
    groups: int = 1

    @property
    def stacked(self) -> int:
        """How many leading axes loops run over."""
        return sum(isinstance(step, Stacked) for step in self.view)

    @property
    def exact(self) -> bool:
        """Whether the operand holds the values of the parameter; not so where a mask or a scale is multiplied in."""
        return not any(isinstance(step, Pointwise) for step in self.view)

    def to_matrix(self, array: Any, index: Sequence[Any] = ()) -> jax.Array:
        """The matrix of an array of the parameter's shape.

        Args:
          array: the parameter, a mask of it, scores.
          index: which slice of each stacked axis; all of them where it is left out.

        Returns:
          (*stack, *batch, out, in).
        """
        operand = apply_view(self.view, array, index)
        return self.from_operand(operand, self.stacked - len(index))

    def from_matrix(self, matrix: Any, array: Any, index: Sequence[Any] = ()) -> jax.Array:
        """Puts a matrix back: the inverse of `to_matrix`.

        Args:
          matrix: what `to_matrix` gave, or something of that shape.
          array: the parameter (or mask) to put it in; what the matrix does not cover stays.
          index: as for `to_matrix`.

        Returns:
          An array of the shape and dtype of `array`.
        """
        array, rest = jnp.asarray(array), self.stacked - len(index)
        shape = jax.eval_shape(lambda array: apply_view(self.view, array, index), array).shape
        ordered = (*shape[:rest], *(shape[rest + k] for k in self.permutation))
        back = (*range(rest), *(rest + int(k) for k in np.argsort(self.permutation)))
        operand = jnp.transpose(jnp.reshape(matrix, ordered), back)
        return place(self.view, array, operand.astype(array.dtype), index)

    def from_operand(self, operand: Any, stacked: int = 0) -> jax.Array:
        """The matrix of the operand itself, with `stacked` axes in front."""
        ordered = (*range(stacked), *(stacked + k for k in self.permutation))
        operand = jnp.transpose(operand, ordered)
        shape, front = operand.shape, stacked + self.batch
        batch, outputs = shape[:front], shape[front : front + self.output]
        if self.groups > 1:
            batch, outputs = (*batch, self.groups), (math.prod(outputs) // self.groups,)
        return jnp.reshape(operand, (*batch, math.prod(outputs), math.prod(shape[front + self.output :])))


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """A parameter, or the part of one, that operations multiply with as a matrix.

    Attributes:
      name: the path of the parameter; further parts of it are `path#1`, `path#2`, ...
      path: the parameter.
      leaf: its position among the parameters.
      arrangement: how it becomes a matrix.
      sites: the operations, in the order of the program.
      other_uses: further operations that read elements of it, but see them in another way (transposed, masked): their
        inputs are not in its statistics.
    """

    name: str
    path: str
    leaf: int
    arrangement: Arrangement
    sites: tuple[Site, ...]
    other_uses: tuple[Site, ...] = ()


def arrangement_of(site: Site, program: Program) -> Arrangement | None:
    """How the parameter of a site becomes a matrix; None where the operation is no product with a matrix."""
    node, shape = site.node, program.shape(site.node.inputs[site.operand])
    view = tuple(step for step in site.view if not is_cast(step))
    if site.span is not None and not _is_separable(site, site.span):
        return None
    if site.kind == DOT:
        (sums, batches) = node.params["dimension_numbers"]
        contract, batch = sorted(sums[site.operand]), tuple(batches[site.operand])
        output = free_axes(len(shape), tuple(contract), batch)
        return Arrangement(view, (*batch, *output, *contract), len(batch), len(output))
    if site.kind == CONVOLUTION and node.params["batch_group_count"] == 1:
        output, inputs, *window = node.params["dimension_numbers"].rhs_spec
        groups = node.params["feature_group_count"]
        return Arrangement(view, (output, *window, inputs), 0, 1, groups)
    if site.kind == RAGGED_DOT and _is_grouped(site):
        numbers = node.params["ragged_dot_dimension_numbers"]
        ((_, contract), _), groups = numbers.dot_dimension_numbers, numbers.rhs_group_dimensions
        output = free_axes(len(shape), contract, groups)
        return Arrangement(view, (*groups, *output, *sorted(contract)), 1, len(output))
    return None


def _is_separable(site: Site, span: Span) -> bool:
    """Whether an operation on a concatenation is one product with each part, or the sum of these."""
    if site.kind == CONVOLUTION:
        output, inputs, *_ = site.node.params["dimension_numbers"].rhs_spec
        return site.node.params["feature_group_count"] == 1 and span.axis in (output, inputs)
    return site.kind == DOT


def _is_grouped(site: Site) -> bool:
    """Whether the rows of the data are split between the groups: what a mixture of experts does."""
    numbers = site.node.params["ragged_dot_dimension_numbers"]
    (lhs_sum, _), (lhs_batch, _) = numbers.dot_dimension_numbers
    ragged = tuple(numbers.lhs_ragged_dimensions)
    return site.operand == 1 and len(numbers.rhs_group_dimensions) == 1 and not {*lhs_batch, *lhs_sum} & set(ragged)


def find_matrices(sites: Iterable[Site], program: Program) -> tuple[Matrix, ...]:
    """The matrices of a program, in the order in which they are first used.

    Operations that see the same elements in the same way share one. An operation that sees elements of an earlier
    matrix in another way (a transposed second use) makes none of its own: it is one of `other_uses` of that matrix.
    """
    found: dict[tuple[int, Arrangement], list[Site]] = {}
    for site in sites:
        if site.kind != GATHER and (arrangement := arrangement_of(site, program)) is not None:
            found.setdefault((site.leaf, arrangement), []).append(site)
    parts = collections.Counter(leaf for leaf, _ in found)
    numbers: collections.Counter[int] = collections.Counter()
    covered: dict[int, list[tuple[str, np.ndarray]]] = collections.defaultdict(list)
    matrices: dict[str, Matrix] = {}
    for (leaf, arrangement), users in found.items():
        path, number = users[0].path, numbers[leaf]
        matrix = Matrix(f"{path}#{number}" if number else path, path, leaf, arrangement, tuple(users))
        if parts[leaf] > 1:
            own = _elements(arrangement, program.shape(program.graph.inputs[leaf]))
            earlier = [name for name, theirs in covered[leaf] if bool((theirs & own).any())]
            for name in earlier:
                seen = matrices[name]
                matrices[name] = dataclasses.replace(seen, other_uses=(*seen.other_uses, *users))
            if earlier:
                continue
            covered[leaf].append((matrix.name, own))
        numbers[leaf] += 1
        matrices[matrix.name] = matrix
    return tuple(matrices.values())


def _elements(arrangement: Arrangement, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements of the parameter a matrix covers."""
    with jax.ensure_compile_time_eval():
        empty = jnp.zeros(shape, bool)
        return np.asarray(arrangement.from_matrix(~arrangement.to_matrix(empty), empty))
