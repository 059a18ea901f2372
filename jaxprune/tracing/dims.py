"""Axes as type variables: which indices of which arrays can only go together.

Every axis of every array in a program carries a `Dim`. Its solution is one of three forms:

- an **atom** of n indices, each of which can go alone;
- a **product** of Dims, in row-major order: what a reshape makes of several axes;
- a **concatenation** of Dims, one after the other.

Each primitive of the program states equations between Dims (`unify`, `split`, `cut`), as in the inference of types. An
axis that cannot be understood is frozen, with a reason. The atoms that remain are the indices which can be removed
independently of each other; which of them are kept decides the kept positions of any axis (`keep_mask`). A part is
always smaller than its whole, so there are no cycles, and the order of the equations does not matter.

Pure Python and NumPy: nothing here knows of JAX.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

PRODUCT = "product"
CONCATENATION = "concatenation"


class Dim:
    """One axis: an atom until an equation gives it parts.

    Attributes:
      size: the number of indices.
      form: `None` (atom), `PRODUCT` or `CONCATENATION`.
      parts: the Dims that it consists of.
      frozen: whether its indices must all stay.
      reasons: why it is frozen (anything hashable, in the order in which they were given).
      number: distinguishes Dims in the order in which they were made.
    """

    __slots__ = ("form", "frozen", "number", "parent", "parts", "reasons", "size")
    _numbers = itertools.count()

    def __init__(self, size: int, form: str | None = None, parts: Sequence["Dim"] = ()):
        self.size = int(size)
        self.form = form
        self.parts = list(parts)
        self.parent: Dim | None = None
        self.frozen = False
        self.reasons: dict[Any, None] = {}
        self.number = next(Dim._numbers)

    def __repr__(self) -> str:
        dim = find(self)
        mark = "!" if dim.frozen else ""
        if dim.form is None:
            return f"{mark}{dim.size}"
        return mark + (" * " if dim.form == PRODUCT else " + ").join(f"({part!r})" for part in dim.parts)


def find(dim: Dim) -> Dim:
    """The representative of everything that `dim` was unified with."""
    while dim.parent is not None:
        if dim.parent.parent is not None:
            dim.parent = dim.parent.parent
        dim = dim.parent
    return dim


def atom(size: int, reason: Any = None) -> Dim:
    """A new axis; frozen when a reason is given, or when it has not two indices to choose from."""
    dim = Dim(size)
    if reason is not None or size <= 1:
        freeze(dim, "it has no more than one index" if reason is None else reason)
    return dim


def atoms(sizes: Sequence[int], reason: Any = None) -> list[Dim]:
    """One new axis for each size."""
    return [atom(size, reason) for size in sizes]


def freeze(dim: Dim, reason: Any) -> None:
    """Forbids the removal of any index of `dim`, and says why."""
    stack = [dim]
    while stack:
        top = find(stack.pop())
        top.reasons[reason] = None
        if not top.frozen:
            top.frozen = True
            stack.extend(top.parts)


def product(parts: Sequence[Dim]) -> Dim:
    """The row-major product of axes."""
    flat = [part for part in _flat(PRODUCT, parts) if part.size != 1]
    if not flat:
        return atom(1)
    return flat[0] if len(flat) == 1 else Dim(math.prod(part.size for part in flat), PRODUCT, flat)


def concatenation(parts: Sequence[Dim]) -> Dim:
    """Axes one after the other; empty ones are dropped."""
    flat = [part for part in _flat(CONCATENATION, parts) if part.size]
    if not flat:
        return atom(0)
    return flat[0] if len(flat) == 1 else Dim(sum(part.size for part in flat), CONCATENATION, flat)


def _flat(form: str, parts: Sequence[Dim]) -> list[Dim]:
    flat: list[Dim] = []
    for part in map(find, parts):
        flat.extend(_flat(form, part.parts) if part.form == form else [part])
    return flat


def unify(a: Dim, b: Dim, reason: Any) -> None:
    """States that two axes are the same.

    Args:
      a: an axis.
      b: another one, of the same size.
      reason: kept where the two cannot be reconciled and are frozen.

    Raises:
      ValueError: the sizes differ, which is a fault of the rule that calls.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of sizes {a.size} and {b.size} cannot be the same ({reason})")
    if a.size <= 1:
        return
    if a.form is None or b.form is None:
        _bind(*((a, b) if a.form is None else (b, a)))
        return
    if a.form == b.form == CONCATENATION:
        points = sorted(set(_cut_points(a)) | set(_cut_points(b)))
        pairs = zip(cut(a, points, reason), cut(b, points, reason), strict=True)
    else:
        if a.form == CONCATENATION:
            a, b = b, a
        sizes = [part.size for part in _flat(PRODUCT, a.parts)]
        if b.form == PRODUCT:
            common = _common_factors(sizes, [part.size for part in _flat(PRODUCT, b.parts)])
            if common is None:
                freeze(a, reason)
                freeze(b, reason)
                return
            sizes = common
        pairs = zip(split(a, sizes, reason), split(b, sizes, reason), strict=True)
    for left, right in pairs:
        unify(left, right, reason)
    a, b = find(a), find(b)
    if a is not b:
        _bind(a, b)


def _bind(a: Dim, b: Dim) -> None:
    if a.frozen or b.frozen:
        for reason in [*a.reasons, *b.reasons]:
            freeze(a, reason)
            freeze(b, reason)
    a.parent = b


def _common_factors(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """The coarsest factors that refine two factorisations of one number; None where there are none."""
    lefts, rights, common = list(left), list(right), []
    while lefts and rights:
        x, y = lefts[0], rights[0]
        if x % y and y % x:
            return None
        common.append(min(x, y))
        for remaining, mine, other in ((lefts, x, y), (rights, y, x)):
            if mine <= other:
                remaining.pop(0)
            else:
                remaining[0] = mine // other
    return common


def _cut_points(dim: Dim) -> list[int]:
    return list(itertools.accumulate(part.size for part in _flat(CONCATENATION, dim.parts)))[:-1]


def split(dim: Dim, sizes: Sequence[int], reason: Any) -> list[Dim]:
    """Sees an axis as the row-major product of axes of `sizes`, each of two indices or more."""
    dim, sizes = find(dim), list(sizes)
    if len(sizes) == 1:
        return [dim]
    if dim.form is None:
        dim.form, dim.parts = PRODUCT, _inherit(dim, sizes)
        return dim.parts
    if dim.form == PRODUCT:
        return refine(dim.parts, sizes, reason)
    segments, rest = _flat(CONCATENATION, dim.parts), math.prod(sizes[1:])
    if any(segment.size % rest for segment in segments):
        freeze(dim, reason)
        return atoms(sizes, reason)
    heads, tails = [], []
    for segment in segments:
        head = segment.size // rest
        parts = split(segment, [head, *sizes[1:]] if head > 1 else sizes[1:], reason)
        heads.append(parts[0] if head > 1 else atom(1))
        tails.append(parts[1:] if head > 1 else parts)
    for tail in tails[1:]:
        for first, other in zip(tails[0], tail, strict=True):
            unify(first, other, reason)
    return [concatenation(heads), *map(find, tails[0])]


def _inherit(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """New atoms that are frozen for the reasons for which `dim` is."""
    parts = atoms(sizes)
    for part, reason in itertools.product(parts, dim.reasons if dim.frozen else ()):
        freeze(part, reason)
    return parts


def refine(parts: Sequence[Dim], sizes: Sequence[int], reason: Any) -> list[Dim]:
    """Regroups row-major axes into axes of `sizes`; freezes all of them where they do not factorise.

    Args:
      parts: axes whose sizes have the product of `sizes`.
      sizes: each of two indices or more.
      reason: why, where something has to be frozen.
    """
    waiting = [part for part in _flat(PRODUCT, parts) if part.size > 1][::-1]
    everything, refined = list(waiting), []
    for size in sizes:
        taken: list[Dim] = []
        while size > 1:
            part = waiting.pop()
            if size % part.size == 0:
                taken.append(part)
                size //= part.size
            elif part.size % size == 0:
                first, *rest = split(part, [size, part.size // size], reason)
                taken.append(first)
                waiting.extend(rest)
                size = 1
            else:
                for each in everything:
                    freeze(each, reason)
                return atoms(sizes, reason)
        refined.append(product(taken))
    return refined


def cut(dim: Dim, points: Sequence[int], reason: Any) -> list[Dim]:
    """The segments of an axis between increasing cut points, each strictly inside it."""
    dim = find(dim)
    if not points:
        return [dim]
    sizes = np.diff([0, *points, dim.size]).tolist()
    if dim.form is None:
        dim.form, dim.parts = CONCATENATION, _inherit(dim, sizes)
        return dim.parts
    if dim.form == CONCATENATION:
        offset, pieces = 0, []
        for segment in _flat(CONCATENATION, dim.parts):
            inside = [point - offset for point in points if offset < point < offset + segment.size]
            pieces.extend(cut(segment, inside, reason))
            offset += segment.size
        dim.parts = _flat(CONCATENATION, pieces)
        remaining = iter(dim.parts)
        return [_take(remaining, size) for size in sizes]
    first, *rest = _flat(PRODUCT, dim.parts)
    inner = math.prod(part.size for part in rest)
    if any(point % inner for point in points):
        freeze(dim, reason)
        return atoms(sizes, reason)
    return [product([piece, *rest]) for piece in cut(first, [point // inner for point in points], reason)]


def _take(pieces: Iterator[Dim], size: int) -> Dim:
    taken: list[Dim] = []
    while size:
        taken.append(next(pieces))
        size -= taken[-1].size
    return concatenation(taken)


def copy(dim: Dim, copies: dict[Dim, Dim]) -> Dim:
    """An axis of the same structure in a system of its own, where equations do not touch this one.

    Args:
      dim: any axis.
      copies: the copies made so far; axes that share parts get copies that do.
    """
    dim = find(dim)
    if dim not in copies:
        copies[dim] = Dim(dim.size, dim.form, [copy(part, copies) for part in dim.parts])
        for reason in dim.reasons if dim.frozen else ():
            freeze(copies[dim], reason)
    return copies[dim]


def atoms_of(dim: Dim) -> list[Dim]:
    """The atoms of an axis in order; one that occurs twice is listed twice."""
    dim = find(dim)
    return [dim] if dim.form is None else [leaf for part in dim.parts for leaf in atoms_of(part)]


def keep_mask(dim: Dim, keep: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """The kept positions of an axis.

    Args:
      dim: any axis.
      keep: for some axes, which of their indices are kept, as many as they have where the mask is for; other atoms
        keep all.

    Returns:
      bool[dim.size].
    """
    dim = find(dim)
    chosen = keep.get(dim)
    if chosen is not None:
        return np.asarray(chosen, bool)
    if dim.form is None:
        return np.ones(dim.size, bool)
    masks = [keep_mask(part, keep) for part in dim.parts]
    if dim.form == CONCATENATION:
        return np.concatenate(masks)
    kept = masks[0]
    for mask in masks[1:]:
        kept = np.logical_and.outer(kept, mask).reshape(-1)
    return kept


def index_map(dim: Dim, part: Dim) -> np.ndarray:
    """The positions of an axis that go when an index of one of its atoms goes.

    Args:
      dim: any axis.
      part: an atom.

    Returns:
      int[part.size, k]: row i holds the positions of `dim` that belong to index i of `part`.
    """
    dim, part = find(dim), find(part)
    if dim is part:
        return np.arange(part.size)[:, None]
    columns, offset, outer = [np.zeros((part.size, 0), int)], 0, 1
    for each in map(find, dim.parts):
        inner = index_map(each, part)
        if dim.form == CONCATENATION:
            columns.append(inner + offset)
            offset += each.size
            continue
        rest = dim.size // (outer * each.size)
        positions = (np.arange(outer)[:, None, None] * each.size + inner[:, None, :, None]) * rest + np.arange(rest)
        columns.append(positions.reshape(part.size, -1))
        outer *= each.size
    return np.concatenate(columns, axis=1)
