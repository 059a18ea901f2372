"""Folding constants: what a unit that always holds one value contributes, added to the bias after its readers."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.tracing import Model, Site, dims
from jaxprune.tracing.axes import Sizes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Literal, Node, Operand
from jaxprune.tracing.origins import Origins
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.rules.elementwise import ELEMENTWISE
from jaxprune.tracing.rules.reductions import REDUCTIONS
from jaxprune.tracing.sites import consumptions
from jaxprune.tracing.views import RESHAPES

# What is constant along an axis stays so: each element of the result comes from elements at the same index of it.
_PASSING = (
    ELEMENTWISE
    | REDUCTIONS
    | frozenset(
        """broadcast_in_dim concatenate expand_dims optimization_barrier pad reduce_window_max reduce_window_min
        reduce_window_sum reshape rev slice split squeeze transpose""".split()
    )
)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """What goes where: `sign * contribution` is added to the parameter `leaf` (None where there is nothing to add)."""

    leaf: int | None
    contribution: np.ndarray


def fold_constants(model: Model, leaves: list[Any], constant: Mapping[str, np.ndarray], args: tuple[Any, ...]) -> bool:
    """Moves the contribution of constant units into the biases of their readers, and cuts the readers off.

    A unit is left alone unless no argument can reach it; unless it holds one value at every position; and unless every
    one of its readers is a dot or a convolution outside of loops, and either reads zeros or (without padding) is
    followed at once by the addition of a bias that is used nowhere else, or by the subtraction of a moving average.

    Args:
      model: the traced model.
      leaves: its parameters, in NumPy; changed in place.
      constant: bool[size] by group: the units whose weights from data are zero.
      args: arguments to run the model on.

    Returns:
      Whether anything was folded.
    """
    folder = _Folder(model, leaves, args)
    done = False
    for name, units in constant.items():
        for unit in np.flatnonzero(units):
            done |= folder.fold(name, int(unit))
    return done


class _Folder:
    def __init__(self, model: Model, leaves: list[Any], args: tuple[Any, ...]):
        self.model = model
        self.leaves = leaves
        self.biases = Biases(model)
        self.origins = self.biases.origins
        self.keep: dict[str, np.ndarray] = {}  # without what has been folded
        self.makers: dict[int, Node] = {}
        self.computed: set[int] = set()  # parameters that an operation reads as a function of several
        for node in model.program.graph.everything():
            self.makers.update(dict.fromkeys(node.outputs, node))
            for each in consumptions(node, model.program):
                origin = self.origins.of(node.inputs[each.operand])
                if origin is not None and origin.leaf is None:
                    self.computed.update(leaf for pairs in origin.axes for leaf, _ in pairs)
        self.seen: dict[Node, list[np.ndarray]] = {}

        def look(node: Node, operands: list[Any]) -> list[Any]:
            weights = any(self.origins.of(node.inputs[each.operand]) for each in consumptions(node, model.program))
            # In loops and under jax.checkpoint there is nothing to see: JAX traces them.
            if weights and not any(isinstance(operand, Tracer) for operand in operands[:2]):
                self.seen[node] = [np.asarray(operand) for operand in operands[:2]]
            return operands

        Evaluator(model.program, operands=look)([*leaves, *jax.tree.leaves(args)])

    def fold(self, name: str, unit: int) -> bool:
        """Folds one unit of a group into all that read it, or into none."""
        group = self.model.groups[name]
        keep = {**self.keep, name: self.keep.get(name, np.ones(group.size, bool)) & (np.arange(group.size) != unit)}
        alone = self.model.sizes({name: np.arange(group.size) != unit})
        readers = [member for member in group.members if "in" in member.roles]
        folds: list[_Fold] = []
        for member in readers:
            sites = [site for site in self.model.sites if site.leaf == member.leaf]
            if not sites or member.leaf in self.computed:
                return False
            for site in sites:
                fold = self._at(site, self.model.atoms[name], alone, self.model.sizes(keep))
                if fold is None:
                    return False
                folds.append(fold)
        for each in folds:
            if each.leaf is not None:
                bias = self.leaves[each.leaf]
                self.leaves[each.leaf] = bias + each.contribution.reshape(bias.shape).astype(bias.dtype)
        for member in readers:
            weights = self.leaves[member.leaf].copy()
            weights[(slice(None),) * member.axis + (member.index[unit],)] = 0
            self.leaves[member.leaf] = weights
        self.keep = keep
        return bool(readers)

    def _at(self, site: Site, atom: Dim, alone: Sizes, sizes: Sizes) -> _Fold | None:
        """The contribution of the removed unit at one reader, and the bias for it; None where it cannot be folded."""
        if site.node not in self.seen or site.kind not in ("dot", "convolution"):
            return None
        data = site.node.inputs[1 - site.operand]
        if self._along(data, atom) and self._reached(data, atom, alone):
            return None
        contribution, out_axes = _contribution(
            self.model, site, self.seen[site.node], self.model.sizes(self.keep), sizes
        )
        if contribution is None:
            return None
        if not contribution.any():
            return _Fold(None, contribution)
        found = self.biases.after(site.node, out_axes)
        if found is None:
            return None
        leaf, sign = found
        return _Fold(leaf, sign * contribution) if contribution.size == self.leaves[leaf].size else None

    def _along(self, operand: Operand, atom: Dim) -> bool:
        return any(dims.find(atom) in dims.atoms_of(dim) for dim in self.model.axes.of(operand))

    def _reached(self, operand: Operand, atom: Dim, alone: Sizes) -> bool:
        """Whether an argument can change what a value holds at the removed unit."""
        waiting, visited = [operand], set()
        while waiting:
            value = waiting.pop()
            if value in visited or not self.origins.is_data(value):
                continue
            visited.add(value)
            node = self.makers.get(value) if isinstance(value, int) else None
            if node is None or not self._along(value, atom):
                return True
            if node.name in _PASSING:
                pieces = node.name in ("concatenate", "pad")  # an operand without the unit is another piece
                waiting.extend(x for x in node.inputs if not pieces or self._along(x, atom))
            elif not self._makes_zeros(node, atom, alone):
                return True
        return False

    def _makes_zeros(self, node: Node, atom: Dim, alone: Sizes) -> bool:
        """Whether the weights that make the removed unit at this node are zero."""
        for each in consumptions(node, self.model.program) if node in self.seen else ():
            operand = node.inputs[each.operand]
            if self.origins.is_data(operand):
                continue
            weights = self.seen[node][each.operand]
            for axis in each.output:
                dim = self.model.axes.of(operand)[axis]
                if dims.find(atom) in dims.atoms_of(dim):
                    return not weights.compress(~alone.mask(dim), axis).any()
        return False


class Biases:
    """Finds the bias that is added to the result of an operation.

    Args:
      model: the traced model.
    """

    def __init__(self, model: Model):
        self.graph = model.program.graph
        self.origins = Origins(model.program, len(model.paths))
        self.users: dict[int, list[Node]] = collections.defaultdict(list)
        self.outputs: set[Operand] = set(self.graph.outputs)
        for node in self.graph.everything():
            self.outputs.update(operand for subgraph in node.subgraphs for operand in subgraph.outputs)
            for operand in node.inputs:
                if not isinstance(operand, Literal):
                    self.users[operand].append(node)

    def after(self, node: Node, out_axes: Sequence[int]) -> tuple[int, int] | None:
        """The parameter that is added next along the output axes (or subtracted: -1), if nothing else reads it."""
        (value,) = node.outputs
        users = self.users[value]
        while len(users) == 1 and users[0].name == "convert_element_type":
            (value,) = users[0].outputs
            users = self.users[value]
        if len(users) != 1 or users[0].name not in ("add", "sub") or value in self.outputs:
            return None
        (user,) = users
        if user.name == "sub" and user.inputs[0] != value:
            return None
        other = user.inputs[0] if user.inputs[1] == value else user.inputs[1]
        origin = self.origins.of(other)
        if origin is None or origin.leaf is None:
            return None
        along = [axis for axis, pairs in enumerate(origin.axes) if pairs]
        if along != list(out_axes) or not self._read_only_by(origin.leaf, user):
            return None
        return origin.leaf, -1 if user.name == "sub" else 1

    def _read_only_by(self, leaf: int, last: Node) -> bool:
        value = self.graph.inputs[leaf]
        while True:
            users = self.users[value]
            if len(users) != 1 or value in self.outputs:
                return False
            (user,) = users
            if user is last:
                return True
            if user.name in RESHAPES:
                (value,) = user.outputs
                continue
            if user.name != "scan" or user.inputs.count(value) != 1:
                return False
            k, first = user.inputs.index(value), user.params["num_consts"]
            if first <= k < first + user.params["num_carry"]:
                return False
            value = user.subgraphs[0].inputs[k]


def _contribution(
    model: Model, site: Site, operands: Sequence[np.ndarray], before: Sizes, after: Sizes
) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """What the positions of the data that go contribute to each output, and the axes of these in the result.

    None where they do not hold one value everywhere, or where their contribution is not the same everywhere.
    """
    params = site.node.params
    weights, data = operands[site.operand], operands[1 - site.operand]
    value = site.node.inputs[1 - site.operand]
    if site.kind == "dot":
        sums, batches = params["dimension_numbers"]
        own, other = tuple(sums[site.operand]), tuple(sums[1 - site.operand])
        first = data.ndim - len(other) if site.operand else 0
        out_axes = tuple(range(first, first + len(free_axes(weights.ndim, own))))
        uneven = bool(batches[0])
    else:
        numbers = params["dimension_numbers"]
        other, out_axes = (numbers.lhs_spec[1],), (numbers.out_spec[1],)
        own, weights = (1,), weights.transpose(numbers.rhs_spec).sum(axis=tuple(range(2, weights.ndim)))
        uneven = any(low or high for low, high in params["padding"]) or any(d != 1 for d in params["lhs_dilation"])
        uneven = uneven or params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    gone = _gone(model, value, other, after) & ~_gone(model, value, other, before)
    rows = np.moveaxis(data, other, range(-len(other), 0))
    rows = rows.reshape(-1, *rows.shape[data.ndim - len(other) :])
    gone = np.broadcast_to(gone, rows.shape[1:])
    constant = np.where(gone, rows[0], 0)
    if np.any(rows[:, gone] != rows[:1, gone]) or not np.isfinite(constant).all():
        return None, ()
    if not constant.any():
        return np.zeros(1, weights.dtype), ()
    if uneven:
        return None, ()
    return np.tensordot(constant, weights, axes=(tuple(range(len(other))), own)), out_axes


def _gone(model: Model, value: Operand, axes: Sequence[int], sizes: Sizes) -> np.ndarray:
    """The positions along some axes of a value that are removed, together."""
    gone = np.zeros((1,) * len(axes), bool)
    for k, axis in enumerate(axes):
        removed = ~sizes.mask(model.axes.of(value)[axis])
        gone = gone | removed.reshape([-1 if j == k else 1 for j in range(len(axes))])
    return gone
