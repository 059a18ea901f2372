"""The words for what an axis is, and why it must stay as it is."""

from typing import TYPE_CHECKING

from jaxprune import trees
from jaxprune.tracing import dims
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.exactness import CONSUMERS, MASKED

if TYPE_CHECKING:
    from jaxprune.tracing.groups import Group, Member
    from jaxprune.tracing.model import Model

_EXACTNESS = {
    CONSUMERS: "To zero the weights that read an index is the same as to remove it.",
    MASKED: "To zero all weights of an index is the same as to remove it.",
}


def explain(model: "Model", path: str, axis: int | None = None) -> str:
    """What `Model.explain` returns."""
    if path not in model.paths:
        raise ValueError(f"there is no parameter {path!r}; the parameters are {trees.list_paths(model.paths)}.")
    leaf = model.paths.index(path)
    aval = model.leaves[leaf]
    rank = len(aval.shape)
    if axis is not None:
        if not -rank <= axis < rank:
            given = f"give one from 0 to {rank - 1}" if rank else "it has none"
            raise ValueError(f"{path} has shape {aval.shape}, so no axis {axis}; {given}.")
        return _axis(model, leaf, axis % rank)
    lines = [f"{path}: {aval.dtype}{list(aval.shape)}"]
    if leaf not in model.used:
        lines.append("It is unused: no operation reads it, so it forms no group.")
    sites = [site for site in model.sites if site.leaf == leaf]
    lines += [f"It is read by a {site.kind} at {site.source or 'an unknown line'}." for site in sites]
    lines += [_axis(model, leaf, k) for k in range(rank)]
    return "\n".join(lines)


def _axis(model: "Model", leaf: int, axis: int) -> str:
    path, dim = model.paths[leaf], model.dims_of(leaf)[axis]
    roles = sorted(model.roles[leaf, axis]) if (leaf, axis) in model.roles else []
    head = f"{path} axis {axis} ({', '.join([f'{dim.size} indices', *roles])})"
    if leaf not in model.used:
        return f"{head} is unused: no operation reads the parameter."
    names = {atom: name for name, atom in model.atoms.items()}
    parts = list(dict.fromkeys(dims.atoms_of(dim)))
    if len(parts) == 1:
        return f"{head} {_part(model, leaf, axis, parts[0], names)}"
    lines = [f"{head} has {len(parts)} parts, {dim!r} ('*' merges axes, '+' joins them, '!' must stay):"]
    lines += [f"  {part.size} indices: the part {_part(model, leaf, axis, part, names)}" for part in parts]
    return "\n".join(lines)


def _part(model: "Model", leaf: int, axis: int, atom: Dim, names: dict[Dim, str]) -> str:
    if atom in names:
        return _tied(model.groups[names[atom]], leaf, axis)
    if not atom.frozen:
        return "has no part in the result: nothing that an output depends on reads it."
    reasons = list(dict.fromkeys(str(reason) for reason in atom.reasons))
    return f"stays as it is: {'; '.join(reasons)}."


def _tied(group: "Group", leaf: int, axis: int) -> str:
    others = [member for member in group.members if (member.leaf, member.axis) != (leaf, axis)]
    tied = f"tied to {', '.join(map(_member, others))}" if others else "tied to nothing else"
    words = _EXACTNESS.get(group.exactness) or f"Its removal is approximate: {group.reason}."
    return f"is the group {group.id!r}: {tied}. {words}"


def _member(member: "Member") -> str:
    roles = f" ({', '.join(sorted(member.roles))})" if member.roles else ""
    return f"{member.path} axis {member.axis}{roles}"
