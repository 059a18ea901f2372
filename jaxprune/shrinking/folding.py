"""Folding constants: what a unit that always holds one value contributes, added to the bias after its readers."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.tracing import Model, Site
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Literal, Node
from jaxprune.tracing.origins import Origins
from jaxprune.tracing.rules.contractions import free_axes

_VIEWS = frozenset("reshape broadcast_in_dim squeeze expand_dims convert_element_type".split())


@dataclasses.dataclass(frozen=True)
class _Fold:
    """What goes where: `sign * contribution` is added to the parameter `leaf` (None where there is nothing to add)."""

    leaf: int | None
    contribution: np.ndarray


def fold_constants(model: Model, leaves: list[Any], constant: Mapping[str, np.ndarray], args: tuple[Any, ...]) -> bool:
    """Moves the contribution of constant units into the biases of their readers, and cuts the readers off.

    A unit is left alone unless every one of its readers is a dot, or a convolution without padding, outside of loops,
    and either reads zeros or is followed at once by the addition of a bias that is used nowhere else (or by the
    subtraction of a moving average); and unless its value is the same everywhere for the arguments given.

    Args:
      model: the traced model.
      leaves: its parameters, in NumPy; changed in place.
      constant: bool[size] by group: the units that no weight feeds from data.
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
        self.origins = Origins(model.program, len(model.paths))
        self.users: dict[int, list[Node]] = collections.defaultdict(list)
        for node in model.program.graph.everything():
            for operand in node.inputs:
                if not isinstance(operand, Literal):
                    self.users[operand].append(node)
        top = set(model.program.graph.primitives())
        wanted = {site.node for site in model.sites if site.node in top}
        self.seen: dict[Node, list[np.ndarray]] = {}

        def look(node: Node, operands: list[Any]) -> list[Any]:
            if node in wanted:
                self.seen[node] = [np.asarray(operand) for operand in operands[:2]]
            return operands

        Evaluator(model.program, operands=look)([*leaves, *jax.tree.leaves(args)])

    def fold(self, name: str, unit: int) -> bool:
        """Folds one unit of a group into all that read it, or into none."""
        group = self.model.groups[name]
        mask = np.arange(group.size) != unit
        readers = [member for member in group.members if "in" in member.roles]
        folds: list[_Fold] = []
        for member in readers:
            sites = [site for site in self.model.sites if site.leaf == member.leaf]
            for site in sites:
                fold = self._at(site, {name: mask})
                if fold is None:
                    return False
                folds.append(fold)
            if not sites:
                return False
        for each in folds:
            if each.leaf is not None:
                bias = self.leaves[each.leaf]
                self.leaves[each.leaf] = bias + each.contribution.reshape(bias.shape).astype(bias.dtype)
        for member in readers:
            weights = self.leaves[member.leaf].copy()
            weights[(slice(None),) * member.axis + (member.index[unit],)] = 0
            self.leaves[member.leaf] = weights
        return True

    def _at(self, site: Site, keep: Mapping[str, np.ndarray]) -> _Fold | None:
        """The contribution of the removed unit at one reader, and the bias for it; None where it cannot be folded."""
        if site.node not in self.seen:
            return None
        contribution, out_axes = _contribution(self.model, site, self.seen[site.node], self.model.sizes(keep))
        if contribution is None:
            return None
        if not contribution.any():
            return _Fold(None, contribution)
        found = self._bias_after(site.node, out_axes)
        if found is None:
            return None
        leaf, sign = found
        return _Fold(leaf, sign * contribution) if contribution.size == self.leaves[leaf].size else None

    def _bias_after(self, node: Node, out_axes: Sequence[int]) -> tuple[int, int] | None:
        """The parameter that is added next along the output axes (or subtracted: -1), if nothing else reads it."""
        (value,) = node.outputs
        users = self.users[value]
        while len(users) == 1 and users[0].name == "convert_element_type":
            (value,) = users[0].outputs
            users = self.users[value]
        if len(users) != 1 or users[0].name not in ("add", "sub") or value in self.model.program.graph.outputs:
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
        value = self.model.program.graph.inputs[leaf]
        while True:
            users = self.users[value]
            if len(users) != 1 or value in self.model.program.graph.outputs:
                return False
            if users[0] is last:
                return True
            if users[0].name not in _VIEWS:
                return False
            (value,) = users[0].outputs


def _contribution(
    model: Model, site: Site, operands: Sequence[np.ndarray], sizes: Any
) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """What the removed positions of the data contribute to each output, and the axes of these in the result."""
    params = site.node.params
    if site.kind == "dot":
        sums, batches = params["dimension_numbers"]
        if batches[0]:
            return None, ()
        weights, data = operands[site.operand], operands[1 - site.operand]
        own, other = tuple(sums[site.operand]), tuple(sums[1 - site.operand])
        value = site.node.inputs[1 - site.operand]
        free = free_axes(weights.ndim, own)
        first = data.ndim - len(other) if site.operand else 0
        out_axes = tuple(range(first, first + len(free)))
    elif site.kind == "convolution":
        numbers = params["dimension_numbers"]
        padded = any(low or high for low, high in params["padding"]) or any(d != 1 for d in params["lhs_dilation"])
        if padded or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return None, ()
        data, weights = operands
        weights = weights.transpose(numbers.rhs_spec).sum(axis=tuple(range(2, weights.ndim)))
        own, other, value, out_axes = (1,), (numbers.lhs_spec[1],), site.node.inputs[0], (numbers.out_spec[1],)
    else:
        return None, ()
    gone = np.zeros((1,) * len(other), bool)
    for k, axis in enumerate(other):
        removed = ~sizes.mask(model.axes.of(value)[axis])
        gone = gone | removed.reshape([-1 if j == k else 1 for j in range(len(other))])
    rows = np.moveaxis(data, other, range(-len(other), 0))
    rows = rows.reshape(-1, *rows.shape[data.ndim - len(other) :])
    gone = np.broadcast_to(gone, rows.shape[1:])
    if np.any(rows[:, gone] != rows[:1, gone]):
        return None, ()
    constant = np.where(gone, rows[0], 0)
    return np.tensordot(constant, weights, axes=(tuple(range(len(other))), own)), out_axes
