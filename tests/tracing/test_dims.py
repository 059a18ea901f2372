"""The solver alone, against brute force.

A system is a list of equations between named axes. Its meaning is elementary: a position of a product stays if all its
coordinates stay, a concatenation stays as its parts do, axes that are the same stay alike. What the solver offers (a
mask for each atom) must satisfy every equation, and where it froze nothing it must offer every solution.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.tracing import dims
from jaxprune.tracing.dims import Dim

QUICK = settings(derandomize=True, deadline=None, max_examples=250)
SOURCES = st.integers(0, 10**9).map(random.Random)
SIZES = (2, 3, 4, 6, 8, 12)
PRODUCT, CONCATENATION, SPLIT, CUT, REFINE, SAME, FREEZE = "product concatenation split cut refine same freeze".split()


@dataclasses.dataclass(frozen=True)
class Equation:
    """One statement: the axes on its left are the axes on its right, in the way that the kind says."""

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class System:
    """Axes by number, with their sizes, and equations between them."""

    sizes: tuple[int, ...]
    equations: tuple[Equation, ...]

    def solve(self, order: Sequence[int] | None = None) -> list[Dim]:
        """The Dims of the axes after all equations, in some order, have been stated."""
        axes = dims.atoms(self.sizes)
        for k in order if order is not None else range(len(self.equations)):
            self.state(self.equations[k], axes)
        return axes

    def state(self, equation: Equation, axes: Sequence[Dim]) -> None:
        """Tells the solver one equation, through the function that the rules would use."""
        left, right = ([axes[k] for k in numbers] for numbers in (equation.left, equation.right))
        sizes = [axis.size for axis in right]
        if equation.kind == FREEZE:
            dims.freeze(left[0], "frozen by hand")
        elif equation.kind == PRODUCT:
            dims.unify(left[0], dims.product(right), "clash")
        elif equation.kind == CONCATENATION:
            dims.unify(left[0], dims.concatenation(right), "clash")
        else:
            if equation.kind == SPLIT:
                new = dims.split(left[0], sizes, "clash")
            elif equation.kind == CUT:
                new = dims.cut(left[0], np.cumsum(sizes)[:-1].tolist(), "clash")
            else:
                new = dims.refine(left, sizes, "clash") if equation.kind == REFINE else left
            assert [axis.size for axis in new] == sizes
            for a, b in zip(new, right, strict=True):
                dims.unify(a, b, "clash")

    def holds(self, equation: Equation, masks: Sequence[np.ndarray]) -> bool:
        """Whether kept positions satisfy an equation, by its meaning."""
        left, right = ([masks[k] for k in numbers] for numbers in (equation.left, equation.right))
        if equation.kind == FREEZE:
            return bool(left[0].all())
        if equation.kind in (CONCATENATION, CUT):
            return np.array_equal(left[0], np.concatenate(right))
        return np.array_equal(outer(left), outer(right))


def outer(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The kept positions of a row-major product, one tuple of coordinates at a time."""
    return np.array([all(each) for each in itertools.product(*masks)])


def factors(size: int, source: random.Random) -> list[int]:
    """A random factorisation."""
    result = []
    while size > 1:
        factor = source.choice([n for n in range(2, size + 1) if size % n == 0])
        result.append(factor)
        size //= factor
    return result


def addends(size: int, source: random.Random) -> list[int]:
    """A random way to cut an axis, mostly into parts of two and more."""
    count = source.randint(2, min(3, size))
    return np.diff([0, *sorted(source.sample(range(1, size), count - 1)), size]).tolist()


def random_system(source: random.Random, sizes: Sequence[int], equations: int, freezing: bool = True) -> System:
    """A system in which every equation has fitting sizes; parts are axes that exist, or new ones."""
    known = [source.choice(sizes) for _ in range(source.randint(2, 3))]

    def named(size: int) -> int:
        found = [k for k, other in enumerate(known) if other == size]
        if found and source.random() < 0.6:
            return source.choice(found)
        known.append(size)
        return len(known) - 1

    stated = []
    for _ in range(equations):
        kind = source.choice([PRODUCT, SPLIT, CONCATENATION, CUT, REFINE, SAME] + [FREEZE] * freezing)
        whole = source.randrange(len(known))
        size = known[whole]
        if kind == FREEZE:
            stated.append(Equation(kind, (whole,)))
        elif kind == SAME:
            stated.append(Equation(kind, (whole,), (named(size),)))
        elif kind == REFINE and size > 1:
            rows = tuple(map(named, factors(size, source)))
            stated.append(Equation(kind, rows, tuple(map(named, factors(size, source)))))
        elif kind != REFINE and size > 1:
            parts = factors(size, source) if kind in (PRODUCT, SPLIT) else addends(size, source)
            if len(parts) > 1:
                stated.append(Equation(kind, (whole,), tuple(map(named, parts))))
    return System(tuple(known), tuple(stated))


def free_atoms(axes: Sequence[Dim]) -> list[Dim]:
    return [atom for atom in dict.fromkeys(a for axis in axes for a in dims.atoms_of(axis)) if not atom.frozen]


def canonical(axes: Sequence[Dim]) -> set[tuple[tuple[int, ...], ...]]:
    """The groups as sets of (axis, position) rows, whatever the atoms are called."""
    result = set()
    for atom in free_atoms(axes):
        maps = [dims.index_map(axis, atom) for axis in axes]
        rows = [tuple((k, int(p)) for k, each in enumerate(maps) for p in sorted(each[i])) for i in range(atom.size)]
        result.add(tuple(rows))
    return result


@QUICK
@given(SOURCES)
def test_every_choice_satisfies_every_equation(source: random.Random) -> None:
    system = random_system(source, SIZES, source.randint(1, 6))
    axes = system.solve()
    for _ in range(4):
        keep = {atom: np.array([source.random() < 0.6 for _ in range(atom.size)]) for atom in free_atoms(axes)}
        masks = [dims.keep_mask(axis, keep) for axis in axes]
        assert [mask.size for mask in masks] == list(system.sizes)
        for equation in system.equations:
            assert system.holds(equation, masks), (system, equation)


@QUICK
@given(SOURCES)
def test_index_map_names_the_positions_that_go_with_one_index(source: random.Random) -> None:
    axes = random_system(source, SIZES, source.randint(1, 6)).solve()
    for atom in free_atoms(axes):
        i = source.randrange(atom.size)
        keep = {atom: np.arange(atom.size) != i}
        for axis in axes:
            gone = np.flatnonzero(~dims.keep_mask(axis, keep))
            assert set(dims.index_map(axis, atom)[i].tolist()) == set(gone.tolist())


@QUICK
@given(SOURCES)
def test_the_order_of_the_equations_does_not_matter(source: random.Random) -> None:
    system = random_system(source, SIZES, source.randint(2, 6))
    order = list(range(len(system.equations)))
    source.shuffle(order)
    assert canonical(system.solve()) == canonical(system.solve(order)), (system, order)


def solutions(system: System) -> set[tuple[bool, ...]]:
    """All ways to keep positions of the axes that satisfy the equations and leave no axis empty, by trying them all."""
    per_axis = [[mask for mask in itertools.product([False, True], repeat=size) if any(mask)] for size in system.sizes]
    found = set()

    def extend(chosen: list[np.ndarray]) -> None:
        for equation in system.equations:
            numbers = (*equation.left, *equation.right)
            if max(numbers) == len(chosen) - 1 and not system.holds(equation, chosen):
                return
        if len(chosen) == len(system.sizes):
            found.add(tuple(itertools.chain.from_iterable(mask.tolist() for mask in chosen)))
            return
        for mask in per_axis[len(chosen)]:
            extend([*chosen, np.array(mask)])

    extend([])
    return found


def offered(axes: Sequence[Dim]) -> set[tuple[bool, ...]]:
    """All that the solver offers."""
    atoms, found = free_atoms(axes), set()
    choices = [[np.array(m) for m in itertools.product([False, True], repeat=a.size) if any(m)] for a in atoms]
    for masks in itertools.product(*choices):
        keep = dict(zip(atoms, masks, strict=True))
        found.add(tuple(itertools.chain.from_iterable(dims.keep_mask(axis, keep).tolist() for axis in axes)))
    return found


@settings(QUICK, max_examples=150)
@given(SOURCES)
def test_nothing_removable_is_missed_where_nothing_was_frozen(source: random.Random) -> None:
    system = random_system(source, (2, 3, 4), source.randint(1, 3), freezing=False)
    if sum(system.sizes) > 16:
        return
    axes = system.solve()
    everything = [atom for axis in axes for atom in dims.atoms_of(axis)]
    told, possible = offered(axes), solutions(system)
    assert told <= possible | {t for t in told if not _none_empty(t, system.sizes)}, system
    if not any(atom.frozen for atom in everything):
        assert told >= possible, (system, axes)


def _none_empty(flat: tuple[bool, ...], sizes: Sequence[int]) -> bool:
    bounds = np.cumsum([0, *sizes])
    return all(any(flat[a:b]) for a, b in itertools.pairwise(bounds.tolist()))


def sizes_of(axis: Dim) -> list[int]:
    return [atom.size for atom in dims.atoms_of(axis)]


def test_a_merged_axis_goes_by_its_factors() -> None:
    whole = dims.atom(24)
    heads, each = dims.split(whole, [4, 6], "")
    keep = {dims.find(heads): np.array([1, 0, 1, 1], bool), dims.find(each): np.array([1, 1, 0, 1, 1, 1], bool)}
    expected = [h * 6 + d for h in (0, 2, 3) for d in (0, 1, 3, 4, 5)]
    assert np.flatnonzero(dims.keep_mask(whole, keep)).tolist() == expected


def test_halves_that_are_exchanged_become_one() -> None:
    """Rotary embeddings: cat(a, b) = cat(b, a)."""
    whole = dims.atom(8)
    a, b = dims.cut(whole, [4], "")
    dims.unify(whole, dims.concatenation([b, a]), "")
    assert dims.find(a) is dims.find(b) and sizes_of(whole) == [4, 4]
    assert dims.index_map(whole, a).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_factors_that_are_exchanged_are_refined() -> None:
    four, two = dims.atoms([4, 2])
    dims.unify(dims.product([four, two]), dims.product([two, four]), "")
    assert sizes_of(four) == [2, 2] and len(set(dims.atoms_of(four) + dims.atoms_of(two))) == 1


def test_an_axis_that_is_shifted_by_one_part_has_one_part() -> None:
    a, b, c = dims.atoms([3, 3, 3])
    dims.unify(dims.concatenation([a, b, c]), dims.concatenation([c, a, b]), "")
    assert dims.find(a) is dims.find(b) is dims.find(c)


def test_two_factorisations_without_a_common_one_are_frozen() -> None:
    a, b, c, d = dims.atoms([2, 3, 3, 2])
    dims.unify(dims.product([a, b]), dims.product([c, d]), "2 x 3 is not 3 x 2")
    for axis in (a, b, c, d):
        assert dims.find(axis).frozen and "2 x 3 is not 3 x 2" in dims.find(axis).reasons


def test_a_cut_across_a_factor_is_frozen() -> None:
    a, b = dims.atoms([2, 6])
    pieces = dims.cut(dims.product([a, b]), [4], "cut at 4")
    assert [piece.size for piece in pieces] == [4, 8]
    assert all(dims.find(axis).frozen for axis in (a, b, *pieces))


def test_axes_of_other_sizes_are_a_fault() -> None:
    with pytest.raises(ValueError, match="sizes 2 and 3"):
        dims.unify(dims.atom(2), dims.atom(3), "where")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("link", ["same", "split", "cut", "product", "concatenation"])
def test_frozen_goes_from_a_whole_to_its_parts(link: str, first: bool) -> None:
    whole, parts = dims.atom(6), dims.atoms([6]) if link == "same" else dims.atoms([2, 3])
    if link in ("cut", "concatenation"):
        parts = dims.atoms([2, 4])
    if first:
        dims.freeze(whole, "why")
    if link == "same":
        dims.unify(parts[0], whole, "")
    elif link in ("product", "concatenation"):
        dims.unify(whole, getattr(dims, link)(parts), "")
    else:
        new = dims.split(whole, [2, 3], "") if link == "split" else dims.cut(whole, [2], "")
        for a, b in zip(new, parts, strict=True):
            dims.unify(a, b, "")
    if not first:
        dims.freeze(whole, "why")
    assert all(dims.find(part).frozen and "why" in dims.find(part).reasons for part in parts)
    assert not free_atoms([whole, *parts])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("form", ["product", "concatenation"])
def test_frozen_goes_from_a_part_to_that_share_of_the_whole(form: str, first: bool) -> None:
    a, b, whole = dims.atom(2), dims.atom(4), dims.atom(8 if form == "product" else 6)
    if first:
        dims.freeze(a, "why")
    dims.unify(whole, getattr(dims, form)([a, b]), "")
    if not first:
        dims.freeze(a, "why")
    assert free_atoms([whole]) == [dims.find(b)]
    mask = dims.keep_mask(whole, {dims.find(b): np.array([True, False, True, True])})
    assert mask.tolist() == ([True, False, True, True] * 2 if form == "product" else [True] * 3 + [False, True, True])


def test_an_axis_of_one_index_is_frozen_and_vanishes_from_products() -> None:
    one, many = dims.atoms([1, 5])
    assert one.frozen and dims.product([one, many]) is many
    assert dims.concatenation([dims.atom(0), many]) is many
    assert dims.product([]).size == math.prod([]) and dims.concatenation([]).size == 0


@QUICK
@given(SOURCES)
def test_a_frozen_axis_offers_nothing_on_what_it_was_unified_with(source: random.Random) -> None:
    system = random_system(source, SIZES, source.randint(1, 5), freezing=False)
    chosen = source.randrange(len(system.sizes))
    before, after = system.solve(), system.solve()
    dims.freeze(after[chosen], "late")
    early = System(system.sizes, (Equation(FREEZE, (chosen,)), *system.equations)).solve()
    assert canonical(early) == canonical(after)
    assert canonical(after) <= canonical(before)
    assert not free_atoms([after[chosen]])
