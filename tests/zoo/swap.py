"""The symmetry behind a group: its indices may be exchanged everywhere without a change of the outputs.

It holds of every group, exact or approximate, and needs no removal, so that it tests the solver alone. What runs along
an axis without being a parameter (a captured array, a counter, random bits) breaks the symmetry, unless it is
exchanged as well: `Exchanged` runs the traced program and does that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.tracing import dims
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Node, Program

# The programs of these tests are tiny, so compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Order = Mapping[Dim, np.ndarray]


def positions(dim: Dim, order: Order) -> np.ndarray:
    """The order of the positions of an axis when its atoms are put in the given orders."""
    dim = dims.find(dim)
    if dim.form is None:
        return np.asarray(order.get(dim, np.arange(dim.size)))
    parts = [(positions(part, order), dims.find(part).size) for part in dim.parts]
    whole, size = parts[0]
    for own, count in parts[1:]:
        if dim.form == dims.CONCATENATION:
            whole = np.concatenate([whole, own + size])
            size += count
        else:
            whole = (whole[:, None] * count + own).reshape(-1)
    return whole


def exchange(group: jp.Group, atom: Dim, i: int, j: int) -> Order:
    """The order of a group's indices with two of them exchanged."""
    order = np.arange(group.size)
    order[[i, j]] = order[[j, i]]
    return {dims.find(atom): order}


def swap_indices(model: jp.Model, params: Any, group: jp.Group, i: int, j: int) -> Any:
    """The parameters with indices i and j of a group exchanged wherever the group runs.

    Args:
      model: the traced model.
      params: its parameters.
      group: one of its groups.
      i: an index of it.
      j: another one.
    """
    order, leaves = exchange(group, model.atoms[group.id], i, j), list(map(np.asarray, jax.tree.leaves(params)))
    for member in group.members:
        own = positions(model.dims_of(member.leaf)[member.axis], order)
        taken = np.unique(member.index)
        if taken.size == member.index.size:  # the group occurs once along this axis: its index says the same
            told = np.arange(own.size)
            told[member.index[i]], told[member.index[j]] = member.index[j], member.index[i]
            np.testing.assert_array_equal(own, told, f"{group.id}: the index of {member.path} axis {member.axis}")
        leaves[member.leaf] = np.take(leaves[member.leaf], own, member.axis)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


Place = tuple[int, int]


def fixed_values(model: jp.Model) -> dict[Place, Dim]:
    """The axes of values that come from nowhere: constants, counters, random bits."""
    program = model.program
    values = [number for number in program.constants if program.shape(number)]
    for node in program.graph.everything():
        rule = model.axes.rules.get(node.name)
        values += node.outputs if rule is not None and rule.generates else ()
    return {(value, k): dim for value in values for k, dim in enumerate(model.axes.of(value)) if not dim.frozen}


class Exchanged(Evaluator):
    """Runs a program with reordered constants, counters and random bits.

    Args:
      program: the program.
      orders: for each value and axis, the order of its positions.
    """

    def __init__(self, program: Program, orders: Mapping[Place, Any]):
        super().__init__(program, operands=lambda node, operands: operands)
        self.orders = orders

    def read(self, operand: Any, values: dict[int, Any]) -> Any:
        value = super().read(operand, values)
        return self._reorder(operand, value) if operand in self.program.constants else value

    def step(self, node: Node, operands: list[Any], values: dict[int, Any]) -> list[Any]:
        outputs = super().step(node, operands, values)
        if node.body is not None:
            return outputs
        return [self._reorder(number, value) for number, value in zip(node.outputs, outputs, strict=True)]

    def _reorder(self, number: int, value: Any) -> Any:
        for axis in range(np.ndim(value)):
            if (number, axis) in self.orders:
                value = jnp.take(value, self.orders[number, axis], axis)
        return value


class SwapCheck:
    """Evaluates a model under exchanges of indices, compiling it once.

    Args:
      model: the traced model.
      args: the arguments to run on.
    """

    def __init__(self, model: jp.Model, args: Sequence[Any]):
        self.model = model
        self.args = jax.tree.leaves(tuple(args))
        self.fixed = fixed_values(model)
        self._run = jax.jit(
            lambda leaves, rest, orders: Exchanged(model.program, orders)([*leaves, *rest]), compiler_options=QUICK
        )

    def breaks_symmetry(self, group: jp.Group) -> bool:
        """Whether something that is no parameter runs along a group."""
        atom = dims.find(self.model.atoms[group.id])
        return any(atom in dims.atoms_of(dim) for dim in self.fixed.values())

    def outputs(self, params: Any, order: Order | None = None) -> list[Any]:
        """The outputs, with the fixed values in an order."""
        orders = {place: positions(dim, order or {}) for place, dim in self.fixed.items()}
        return self._run(jax.tree.leaves(params), self.args, orders)

    def error(self, params: Any, group: jp.Group, i: int, j: int) -> float:
        """How far the outputs are apart when two indices of a group are exchanged, relative to the largest one."""
        atom = self.model.atoms[group.id]
        order = exchange(group, atom, i, j)
        return distance(
            self.outputs(params),
            self.outputs(swap_indices(self.model, params, group, i, j), order),
            order,
            [self.model.axes.of(value) for value in self.model.program.graph.outputs],
        )


def distance(
    expected: Sequence[Any], found: Sequence[Any], order: Order | None = None, axes: Sequence[Sequence[Dim]] = ()
) -> float:
    """The largest difference between two lists of outputs, as a fraction of the largest element of each output.

    Args:
      expected: the outputs to compare with; reordered first where an order is given.
      found: the others.
      order: the order of some atoms in `found`.
      axes: the axes of each output; needed with `order`.
    """
    worst = 0.0
    for k, (x, y) in enumerate(zip(expected, found, strict=True)):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, f"output {k} has shape {y.shape} where {x.shape} is expected"
        for axis, dim in enumerate(axes[k] if order else ()):
            x = np.take(x, positions(dim, order or {}), axis)
        if not x.size or not jnp.issubdtype(x.dtype, jnp.inexact):
            assert x.tolist() == y.tolist(), f"output {k} of dtype {x.dtype} differs"
            continue
        same = np.isfinite(x) == np.isfinite(y)
        scale = np.max(np.abs(x), where=np.isfinite(x), initial=0.0) or 1.0
        gap = np.max(np.abs(x - y), where=np.isfinite(x) & np.isfinite(y), initial=0.0)
        worst = max(worst, float(gap / scale) if same.all() else np.inf)
    return worst
