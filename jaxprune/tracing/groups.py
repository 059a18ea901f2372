"""Groups: the indices of parameters that can only be removed together."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Reason
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.exactness import APPROXIMATE, CONSUMERS, MASKED, RemovedSlices
from jaxprune.tracing.graph import Operand
from jaxprune.tracing.sites import Roles


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One axis of one parameter that a group runs along.

    Attributes:
      path: the parameter.
      leaf: its position among the parameters.
      axis: the axis.
      roles: what the program does with the axis: `"in"` (summed over), `"out"`, `"batch"`, `"index"`, `"window"`; empty
        where each element is used by itself (a bias, a scale).
      index: int[size, k]: row i holds the positions of the axis that go with index i of the group.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> [(member.path, member.axis, *member.roles) for member in model.groups["a:1"].members]
      [('a', 1, 'out'), ('b', 0, 'in')]
    """

    path: str
    leaf: int
    axis: int
    roles: frozenset[str]
    index: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A set of indices, each of which can be removed from all members at once.

    Attributes:
      id: stable over traces: the path and axis of the first member that makes the indices (role `out`; or of the first
        member), and which part of the axis where it has several.
      size: the number of indices.
      members: the axes of parameters that it runs along.
      exactness: `"consumers"`: to zero the weights that read it is the same as to remove it. `"masked"`: to zero all
        members is. `"approximate"`: neither is; `reason` says why.
      reason: where a sum or the like makes the removal approximate.
      consumers_suffice: whether zeroing the weights that read the group is the same as to remove it. It can hold of an
        approximate group, whose other members must then not be zeroed (a weight norm would divide zero by zero).
      operations: the kinds of operation its members serve, the same for groups that play the same part in the model.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> model.groups["a:1"].size, model.groups["a:1"].exactness
      (3, 'consumers')
    """

    id: str
    size: int
    members: tuple[Member, ...]
    exactness: str
    reason: Reason | None
    consumers_suffice: bool
    operations: str

    def zeroed(self, *, consumers_only: bool = False) -> tuple[Member, ...]:
        """The members whose weights are zero where an index is masked.

        Args:
          consumers_only: leave out those that do not read the index, where the others suffice. They are always left
            out of an approximate group, which must not divide by their zeros.
        """
        readers = self.consumers_suffice and (consumers_only or self.exactness == APPROXIMATE)
        return tuple(member for member in self.members if not readers or "in" in member.roles)

    def __str__(self) -> str:
        lines = [f"{self.id}: {self.size} indices, {self.exactness}" + (f" ({self.reason})" if self.reason else "")]
        for member in self.members:
            roles = ", ".join(sorted(member.roles)) or "elementwise"
            each = member.index.shape[1]
            lines.append(
                f"  {member.path} axis {member.axis} ({roles})" + (f", {each} positions each" if each > 1 else "")
            )
        return "\n".join(lines)


def find_groups(
    axes: Axes,
    paths: Sequence[str],
    leaves: Sequence[Any],
    free: Iterable[int],
    roles: Roles,
    open_outputs: Iterable[Operand],
) -> tuple[dict[str, Group], dict[str, Dim]]:
    """The groups of a solved program.

    Args:
      axes: the solved axes.
      paths: the path of each parameter.
      leaves: the parameters, abstract or concrete; named in the operations.
      free: the parameters that may be cut (floating, and read by an operation).
      roles: what the program does with each axis.
      open_outputs: the outputs that may lose indices.

    Returns:
      The groups by id, in the order of the parameters, and the atom behind each.
    """
    places: dict[Dim, list[tuple[int, int]]] = {}
    names: dict[Dim, str] = {}
    for leaf in free:
        for axis, dim in enumerate(axes.of(axes.program.graph.inputs[leaf])):
            parts = list(dict.fromkeys(dims.atoms_of(dim)))
            for factor, atom in enumerate(parts):
                if atom.frozen:
                    continue
                name = f"{paths[leaf]}:{axis}" + (f":{factor}" if len(parts) > 1 else "")
                found = places.setdefault(atom, [])
                # The weights that make an index name it, rather than a bias that comes first by the alphabet.
                if not found or ("out" in roles[leaf, axis] and not any("out" in roles[place] for place in found)):
                    names[atom] = name
                found.append((leaf, axis))
    every = {
        (leaf, k): True for leaf, value in enumerate(axes.program.graph.inputs) for k in range(len(axes.of(value)))
    }
    masked = RemovedSlices(axes, every) if places else None
    consumers = RemovedSlices(axes, {pair: "in" in roles[pair] for pair in every}) if places else None
    reaching = {atom for value in open_outputs for dim in axes.of(value) for atom in dims.atoms_of(dim)}
    groups: dict[str, Group] = {}
    for atom, found in places.items():
        assert masked is not None and consumers is not None
        if atom not in masked.summed | reaching:  # a part of a parameter that nothing reads
            continue
        reason = masked.faults.get(atom)
        members = tuple(
            Member(
                paths[leaf],
                leaf,
                axis,
                frozenset(roles[leaf, axis]),
                dims.index_map(axes.of(axes.program.graph.inputs[leaf])[axis], atom),
            )
            for leaf, axis in found
        )
        kinds = sorted(f"{np.ndim(leaves[m.leaf])}d{m.axis}:{'+'.join(sorted(m.roles))}" for m in members)
        suffice = atom not in consumers.faults
        exactness = APPROXIMATE if reason else CONSUMERS if suffice else MASKED
        groups[names[atom]] = Group(names[atom], atom.size, members, exactness, reason, suffice, " ".join(kinds))
    return groups, {names[atom]: atom for atom in places if names[atom] in groups}
