"""Patterns: what structure the zeros of an array have, and whether chance explains it.

The inverse of `jaxprune.structures`: from zeros to the structure that made them. A pattern is claimed only when zeros
placed at random would hardly ever show it: 90 % random zeros fit 2:4 in nearly every group, and say nothing.

The null hypothesis is that all placements of the same number of zeros are equally likely. Each pattern has an upper
bound of its probability under it, and is claimed below `CHANCE`. Slices that are zero throughout are found first and
left out of what follows, so that dead channels are not taken for blocks.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

CHANCE = 1e-6
"""A pattern is claimed where random zeros would show it with at most this probability."""

COVERAGE = 0.99
"""Blocks are claimed where zero tiles hold at least this fraction of the zeros outside dead slices."""

COMMON = 0.01
"""N:M is claimed where at least this fraction of the groups has exactly N."""

_GROUPS = (2, 4, 8, 16, 32)
_LARGEST_TILE = 128


@dataclasses.dataclass(frozen=True)
class DeadSlices:
    """Slices along one axis that are zero throughout: dead channels, rows or columns.

    Attributes:
      axis: the axis that they are indices of.
      count: how many are zero throughout.
      size: how many there are.
      log10_chance: bound of the probability of as many under random zeros, as a decimal logarithm.
    """

    axis: int
    count: int
    size: int
    log10_chance: float

    @property
    def beyond_chance(self) -> bool:
        """Whether random zeros of this density would hardly ever leave so many slices empty."""
        return self.log10_chance < math.log10(CHANCE)

    def __str__(self) -> str:
        return f"axis {self.axis}: {self.count} of {self.size} dead" + ("" if self.beyond_chance else " (chance)")


@dataclasses.dataclass(frozen=True)
class Groups:
    """An N:M pattern: at most `n` of every `m` consecutive entries along an axis are not zero.

    Attributes:
      n: the most nonzero entries in any group.
      m: the group size.
      axis: the axis along which groups run; entries after the last whole group do not count.
      exact: whether every group has exactly `n` (outside dead slices).
      log10_chance: bound of its probability under random zeros, as a decimal logarithm.
    """

    n: int
    m: int
    axis: int
    exact: bool
    log10_chance: float

    def __str__(self) -> str:
        return f"{self.n}:{self.m} along axis {self.axis}" + ("" if self.exact else " (at most)")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Zeros that come in whole rectangular tiles of the last two axes.

    Attributes:
      shape: the tile.
      zero: how many tiles are zero, dead slices aside.
      count: how many there are, dead slices aside.
      coverage: the fraction of the zeros outside dead slices that zero tiles hold.
      log10_chance: bound of its probability under random zeros, as a decimal logarithm.
    """

    shape: tuple[int, int]
    zero: int
    count: int
    coverage: float
    log10_chance: float

    def __str__(self) -> str:
        return f"blocks {self.shape[0]}x{self.shape[1]}: {self.zero} of {self.count} zero"


@dataclasses.dataclass(frozen=True)
class Found:
    """The zeros of one array, and the structure that they have.

    Attributes:
      shape: the array's shape.
      zeros: how many entries are zero.
      dead: for each axis that has some, its dead slices. That they are zero is a fact; `beyond_chance` says whether
        they are a structure.
      groups: for each axis that has one, its N:M pattern with the strongest evidence.
      tiles: the block pattern with the strongest evidence, or None.

    Example:
      >>> weights = np.ones((32, 32))
      >>> weights[:, ::2] = 0
      >>> print(find_structure(weights))
      axis 1: 16 of 32 dead
    """

    shape: tuple[int, ...]
    zeros: int
    dead: tuple[DeadSlices, ...] = ()
    groups: tuple[Groups, ...] = ()
    tiles: Tiles | None = None

    @property
    def size(self) -> int:
        """How many entries the array has."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return self.zeros / self.size if self.size else 0.0

    def __str__(self) -> str:
        if not self.zeros:
            return "dense"
        if self.zeros == self.size:
            return "all zero"
        claims = [*self.groups, *([self.tiles] if self.tiles else []), *(d for d in self.dead if d.beyond_chance)]
        by_chance = [str(d) for d in self.dead if not d.beyond_chance]
        return "; ".join([*(map(str, claims) if claims else ["unstructured"]), *by_chance])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary.

        Example:
          >>> find_structure(np.zeros((2, 2))).to_dict()["text"]
          'all zero'
        """
        dead = [dataclasses.asdict(d) | {"beyond_chance": d.beyond_chance} for d in self.dead]
        return dataclasses.asdict(self) | {"sparsity": self.sparsity, "dead": dead, "text": str(self)}


def find_structure(array: np.ndarray) -> Found:
    r"""Finds dead slices, N:M patterns and zero blocks, and claims only what random zeros would not show.

    With density $d$ of the $N$ entries, the probability of an event given the number of zeros is at most
    $P_d(\text{event}) \sqrt{8 N d (1 - d)}$, where $P_d$ draws entries independently. $P_d$ is a product of binomial
    sums for N:M, and a Chernoff bound on the number of zero slices or tiles else. Of several patterns that pass, as 2:4
    implies 4:8, the one of the least probability is reported, which is the one that explains most. A pattern with one
    group that breaks it is not claimed.

    N:M is tried for m of 2, 4, 8, 16 and 32 along each axis; tiles of powers of two and whole axes, up to 128, on the
    last two axes, aligned to the first index. Few weights prove little: 2:4 needs 72 of them.

    Args:
      array: numbers of any shape and dtype; -0.0 is zero, NaN is not. Takes two to four bytes an entry.

    Returns:
      What was found.

    Raises:
      TypeError: the array does not hold numbers.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> weights = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
      >>> masks = jp.compute_masks({"w": weights}, None, structure=jp.NM(2, 4))
      >>> print(find_structure(np.where(masks["w"], weights, 0)))
      2:4 along axis 0
      >>> print(find_structure(np.where(np.random.default_rng(1).random((64, 64)) < 0.1, 1.0, 0.0)))
      unstructured
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biufcV" or array.dtype.type is np.void:
        raise TypeError(f"an array of dtype {array.dtype} has no zeros to look at; give numbers.")
    nonzero = np.asarray(array != 0)
    zeros = nonzero.size - int(np.count_nonzero(nonzero))
    if not 0 < zeros < nonzero.size:
        return Found(nonzero.shape, zeros)
    alive = [_any(nonzero, tuple(k for k in range(nonzero.ndim) if k != axis)) for axis in range(nonzero.ndim)]
    dead = tuple(_dead_slices(nonzero, zeros, alive))
    explained = {slices.axis for slices in dead if slices.beyond_chance}
    live = [flags if k in explained else np.ones_like(flags) for k, flags in enumerate(alive)]
    found = [_groups(nonzero, axis, live) for axis in range(nonzero.ndim)]
    groups = tuple(pattern for pattern in found if pattern is not None)
    return Found(nonzero.shape, zeros, dead, groups, _tiles(nonzero, live) if nonzero.ndim > 1 else None)


def _dead_slices(nonzero: np.ndarray, zeros: int, alive: Sequence[np.ndarray]) -> Iterator[DeadSlices]:
    if nonzero.ndim < 2:
        return
    for axis, flags in enumerate(alive):
        count = flags.size - int(np.count_nonzero(flags))
        if count:
            one = nonzero.size // flags.size * math.log(zeros / nonzero.size)
            bound = _log_at_least(count, flags.size, one) + _log_given_total(zeros, nonzero.size)
            yield DeadSlices(axis, count, flags.size, _log10(bound))


def _groups(nonzero: np.ndarray, axis: int, live: Sequence[np.ndarray]) -> Groups | None:
    lines = math.prod(int(flags.sum()) for k, flags in enumerate(live) if k != axis)
    counts = nonzero.view(np.uint8)
    best = None
    for m in _GROUPS:
        if nonzero.shape[axis] < m:
            break
        counts = _pairs(counts, axis, np.add)
        n, total = int(counts.max()), int(counts.sum(dtype=np.int64))
        places = live[axis][: counts.shape[axis] * m].reshape(-1, m).sum(axis=1)
        covered = lines * int(places.sum())
        if n == m or not 0 < total < covered:
            continue
        density = total / covered
        exact = total == lines * int(np.minimum(places, n).sum())
        log = 0.0
        for width, times in zip(*np.unique(places, return_counts=True), strict=True):
            ways = [_log_binomial(k, int(width), density) for k in range(min(n, int(width)) + 1)]
            log += lines * int(times) * (ways[-1] if exact else min(0.0, float(np.logaddexp.reduce(ways))))
        # Two hypotheses, exact and at most, so twice the probability.
        log += math.log(2) + _log_given_total(total, covered)
        found = Groups(n, m, axis, exact, _log10(log))
        # A bound that a few groups alone reach is no pattern: one broken group of 2:4 makes "at most 10 of 16".
        common = exact or np.count_nonzero(counts == n) >= COMMON * lines * np.count_nonzero(places)
        if common and found.log10_chance < min(math.log10(CHANCE), best.log10_chance if best else 0.0):
            best = found
    return best


def _tiles(nonzero: np.ndarray, live: Sequence[np.ndarray]) -> Tiles | None:
    lead = math.prod(int(flags.sum()) for flags in live[:-2])
    places = lead * int(live[-2].sum()) * int(live[-1].sum())
    zeros = places - int(np.count_nonzero(nonzero))
    if not 0 < zeros < places:
        return None
    if lead < math.prod(nonzero.shape[:-2]):
        nonzero = nonzero[np.ix_(*live[:-2])]
    best = None
    for rows, by_rows in _tilings(nonzero, -2):
        heights = _widths(live[-2], rows)
        for columns, used in _tilings(by_rows, -1):
            widths = _widths(live[-1], columns)
            zero, held = (1, zeros) if rows * columns == 1 else _held(used, heights, widths)
            # A larger tile is zero only where all smaller ones within it are.
            if held / zeros < COVERAGE:
                break
            if rows * columns > 1:
                log = _log_held(held, zeros / places, lead, heights, widths) + _log_given_total(zeros, places)
                count = lead * int(np.count_nonzero(heights)) * int(np.count_nonzero(widths))
                found = Tiles((rows, columns), zero, count, held / zeros, _log10(log))
                if found.log10_chance < min(math.log10(CHANCE), best.log10_chance if best else 0.0):
                    best = found
        else:
            continue
        if columns == 1:
            break
    return best


def _held(used: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> tuple[int, int]:
    """How many tiles are zero, and how many entries they hold; what lies in dead slices counts for neither."""
    if np.ptp(heights) == 0 and np.ptp(widths) == 0:
        zero = used.size - int(np.count_nonzero(used))
        return zero, zero * int(heights[0]) * int(widths[0])
    empty = (~used).astype(np.float32)  # exact: no sum reaches 2**24, and products are float64
    zero = float((empty @ (widths > 0).astype(np.float32)).astype(np.float64).sum(axis=None, where=heights > 0))
    held = float(((empty @ widths.astype(np.float32)).astype(np.float64) * heights).sum())
    return int(zero), int(held)


def _log_held(held: int, sparsity: float, lead: int, heights: np.ndarray, widths: np.ndarray) -> float:
    r"""Chernoff's bound of the probability that zero tiles hold so many entries.

    A tile of $L$ entries is zero with probability $s^L$, so for every $x > s$ the bound is
    $\sum_L \log(1 + x^L - s^L) - h \log(x/s)$; the least of several is taken.
    """
    sizes: dict[int, int] = {}
    for height, rows in zip(*np.unique(heights, return_counts=True), strict=True):
        for width, columns in zip(*np.unique(widths, return_counts=True), strict=True):
            size = int(height) * int(width)
            sizes[size] = sizes.get(size, 0) + lead * int(rows) * int(columns)
    sizes.pop(0, None)
    lengths, times = (np.array(list(part), np.float64) for part in (sizes.keys(), sizes.values()))
    log_s = math.log(sparsity)
    log_x = np.linspace(-16, 16, 257)[:, None] / lengths.max()
    log_x = log_x[log_x[:, 0] > log_s]
    terms = np.exp(lengths * log_x) - np.exp(lengths * log_s)
    bounds = (times * np.log1p(terms)).sum(axis=1) - held * (log_x[:, 0] - log_s)
    return float(bounds.min(initial=0.0))


def _tilings(used: np.ndarray, axis: int) -> Iterator[tuple[int, np.ndarray]]:
    """Tile sizes along an axis, ascending, and whether each tile has a nonzero entry."""
    length, size, whole = used.shape[axis], 1, used
    while size < min(length, _LARGEST_TILE + 1):
        yield size, used
        if used.shape[axis] % 2:
            used = np.concatenate([used, np.zeros_like(used[_at(axis, slice(0, 1), used.ndim)])], axis=axis)
        used, size = _pairs(used, axis, np.logical_or), 2 * size
    if length <= _LARGEST_TILE:
        yield length, _any(whole, (axis,), keepdims=True)


def _widths(live: np.ndarray, size: int) -> np.ndarray:
    """How many indices outside dead slices each tile has along one axis."""
    return np.add.reduceat(live.astype(np.int64), np.arange(0, live.size, size))


def _pairs(array: np.ndarray, axis: int, operation: np.ufunc) -> np.ndarray:
    """Joins neighbours along an axis; a last one without a neighbour is dropped."""
    even = array.shape[axis] // 2 * 2
    first, second = (array[_at(axis, slice(start, even, 2), array.ndim)] for start in (0, 1))
    return operation(first, second)


def _any(array: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    return np.asarray(np.logical_or.reduce(array, axis=axes, keepdims=keepdims))


def _at(axis: int, part: slice, ndim: int) -> tuple[slice, ...]:
    return tuple(part if k == axis % ndim else slice(None) for k in range(ndim))


def _log_binomial(k: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(p) + (n - k) * math.log1p(-p)


def _log_at_least(count: int, trials: int, log_p: float) -> float:
    """Chernoff's bound of the probability of `count` successes or more."""
    share = count / trials
    if log_p >= 0 or math.log(share or 1e-300) <= log_p:
        return 0.0
    others = (1 - share) * (math.log1p(-share) - math.log1p(-math.exp(log_p))) if share < 1 else 0.0
    return -trials * (share * (math.log(share) - log_p) + others)


def _log_given_total(zeros: int, size: int) -> float:
    """The bound of `1 / P(this number of zeros)` that turns independent draws into a given number."""
    return 0.5 * math.log(max(8 * zeros * (1 - zeros / size), 1.0))


def _log10(log: float) -> float:
    return min(log, 0.0) / math.log(10)
