"""Structures: which weights are kept or pruned together.

A structure pools the scores of one parameter to *units* (a weight, a block, a channel), and expands a choice of
units to a mask of the parameter's shape. How many units are kept is the allocation's concern. `NM` is the
exception: its pattern fixes the count, so it chooses by itself.
"""

import dataclasses
import functools
import math
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxprune import _sharding, selection, trees
from jaxprune._dtypes import at_least_float32

# Up to this group size ranks by pairwise comparison beat a search by counting.
_PAIRWISE = 16


@runtime_checkable
class Structure(Protocol):
    """How the weights of one parameter are tied together.

    Example:
      >>> isinstance(Unstructured(), Structure)
      True
    """

    def pool(self, scores: jax.Array) -> jax.Array:
        """Scores of a parameter to scores of its units."""
        ...

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A bool array over units to a mask of the parameter's shape."""
        ...


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> Unstructured().pool(jnp.ones((2, 3))).shape
      (2, 3)
    """

    def pool(self, scores: jax.Array) -> jax.Array:
        """Returns the scores as they are."""
        return scores

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the units as they are."""
        del shape
        return units


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps `n` of every `m` consecutive weights along one axis (N:M sparsity).

    Ties go to the lower index. Weights after the last whole group stay dense, unless `strict`.

    Attributes:
      n: kept weights of each group.
      m: group size.
      axis: the contraction axis; None takes the one that a traced model given as `where` says, and without a trace -2,
        that of Flax kernels, `(in, out)` and `(..., in, out)`.
      strict: raise where the axis is not divisible by `m`.

    Example:
      >>> import jax.numpy as jnp
      >>> NM(2, 4).select(jnp.array([[1.0], [4.0], [3.0], [2.0]]))[:, 0].tolist()
      [False, True, True, False]

    References:
      Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, arXiv 2104.08378.
    """

    n: int
    m: int
    axis: int | None = None
    strict: bool = False

    def __post_init__(self):
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 1 <= self.n <= self.m):
            raise ValueError(
                f"NM(n={self.n}, m={self.m}): n weights are kept of every m, so 1 <= n <= m; 2:4 is NM(2, 4)."
            )

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in each group, `1 - n/m`."""
        return 1 - self.n / self.m

    def pool(self, scores: jax.Array) -> jax.Array:
        """Returns the scores as they are."""
        return scores

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the units as they are."""
        del shape
        return units

    def kept(self, shape: tuple[int, ...]) -> int:
        """How many weights of a parameter of this shape are kept."""
        axis = self._axis(shape)
        groups, rest = divmod(shape[axis], self.m)
        return math.prod(shape) // max(shape[axis], 1) * (groups * self.n + rest)

    def select(self, scores: jax.Array, first: jax.Array | None = None) -> jax.Array:
        """Marks the `n` highest of every group.

        Args:
          scores: floating array.
          first: bool array; entries that rank above all others of their group.

        Returns:
          A bool array of the shape of `scores`.

        Raises:
          ValueError: the axis does not exist, or is not divisible by `m` under `strict`.
        """
        shape = scores.shape
        axis = self._axis(shape)
        groups, rest = divmod(shape[axis], self.m)
        if rest and self.strict:
            raise ValueError(
                f"{self}: axis {axis} of shape {shape} has {shape[axis]} entries, not divisible by {self.m}. "
                "Use strict=False to leave the remainder dense, or leave the parameter out with `where`."
            )
        if not groups:
            return jnp.ones_like(scores, dtype=bool)
        return _select_groups(scores, first, axis, self.n, self.m)

    def _axis(self, shape: tuple[int, ...]) -> int:
        given = -2 if self.axis is None else self.axis
        axis = given + len(shape) if given < 0 else given
        if not 0 <= axis < len(shape):
            raise ValueError(f"{self}: a parameter of shape {shape} has no axis {given}. Leave it out with `where`.")
        return axis


def oriented(structure: Structure, axes: trees.MatrixAxes | None) -> Structure:
    """The structure with what a trace says: N:M runs along the last axis that is summed over."""
    if isinstance(structure, NM) and structure.axis is None and axes is not None and axes.contract:
        return dataclasses.replace(structure, axis=max(axes.contract))
    return structure


@functools.partial(jax.jit, static_argnames=("axis", "n", "m"))
def _select_groups(scores: jax.Array, first: jax.Array | None, axis: int, n: int, m: int) -> jax.Array:
    """The `n` highest of every `m` along an axis, and all that is left after the last whole group."""
    end = scores.shape[axis] // m * m
    keys = selection.order_keys(scores)
    if first is not None:
        keys = jnp.where(first, jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype), keys)
    keys = _sharding.whole_groups(keys, axis, m)
    whole, tail = jnp.split(keys, [end], axis=axis) if end < keys.shape[axis] else (keys, None)
    mask = _sharding.merge_axes(_rank_within(_sharding.split_axis(whole, axis, m), axis + 1, n), axis)
    return mask if tail is None else jnp.concatenate([mask, jnp.ones_like(tail, dtype=bool)], axis=axis)


def _rank_within(keys: jax.Array, axis: int, n: int) -> jax.Array:
    m = keys.shape[axis]
    if m > _PAIRWISE:
        return jnp.moveaxis(selection.row_top_k_of_keys(jnp.moveaxis(keys, axis, -1), n), -1, axis)
    members = [jax.lax.index_in_dim(keys, i, axis) for i in range(m)]
    kept = []
    for i, mine in enumerate(members):
        rank = jnp.zeros(mine.shape, jnp.int8)
        for j, other in enumerate(members):
            if j != i:
                # At equal scores the lower index ranks first.
                rank = rank + ((other >= mine) if j < i else (other > mine)).astype(jnp.int8)
        kept.append(rank < n)
    return jnp.concatenate(kept, axis=axis)


@dataclasses.dataclass(frozen=True)
class Block:
    """Keeps or prunes rectangular tiles.

    The tiles cover the chosen axes; every index of the other axes has tiles of its own, so that a 3x3 convolution
    kernel prunes `(in, out)` blocks per tap. Tiles at an edge are smaller and are pooled over their real weights.

    Attributes:
      shape: tile size along each of `axes`.
      axes: the tiled axes; the last ones by default.
      reduce: how scores of a tile become one: their mean, sum or maximum.

    Example:
      >>> import jax.numpy as jnp
      >>> Block((2, 2)).pool(jnp.ones((3, 3, 64, 65))).shape
      (3, 3, 32, 33)
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    reduce: Literal["mean", "sum", "max"] = "mean"

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(not isinstance(s, int) or s < 1 for s in self.shape):
            raise ValueError(f"Block(shape={self.shape}): every size is a positive integer, as in Block((32, 32)).")
        if self.axes is not None and len(self.axes) != len(self.shape):
            raise ValueError(f"Block(shape={self.shape}, axes={self.axes}): give one size for each axis.")
        if self.reduce not in ("mean", "sum", "max"):
            raise ValueError(f"Block(reduce={self.reduce!r}): allowed are 'mean', 'sum' and 'max'.")

    def pool(self, scores: jax.Array) -> jax.Array:
        """Reduces each tile to one score, in float32 for narrower dtypes."""
        return _pool_tiles(scores, self._tile(scores.shape), self.reduce)

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Repeats the choice of each tile over its weights."""
        return _expand_tiles(units, self._tile(shape), shape)

    def _tile(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = self.axes if self.axes is not None else tuple(range(-len(self.shape), 0))
        tile = [1] * len(shape)
        for axis, size in zip(axes, self.shape, strict=True):
            if not -len(shape) <= axis < len(shape):
                raise ValueError(f"{self}: a parameter of shape {shape} has no axis {axis}. Leave it out with `where`.")
            tile[axis] = size
        return tuple(tile)


@functools.partial(jax.jit, static_argnames=("tile", "reduce"))
def _pool_tiles(scores: jax.Array, tile: tuple[int, ...], reduce: str) -> jax.Array:
    scores = scores.astype(at_least_float32(scores.dtype))
    if reduce == "max":
        return _tiled(scores, tile, -jnp.inf).max(axis=_inner(tile))
    total = _tiled(scores, tile, 0.0).sum(axis=_inner(tile))
    if reduce == "sum":
        return total
    return total / _tiled(jnp.ones_like(scores), tile, 0.0).sum(axis=_inner(tile))


@functools.partial(jax.jit, static_argnames=("tile", "shape"))
def _expand_tiles(units: jax.Array, tile: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    for axis, size in enumerate(tile):
        if size > 1:
            wide = jnp.expand_dims(units, axis + 1)
            wide = jnp.broadcast_to(wide, (*wide.shape[: axis + 1], size, *wide.shape[axis + 2 :]))
            units = jax.lax.slice_in_dim(_sharding.merge_axes(wide, axis), 0, shape[axis], axis=axis)
    return units


def _tiled(array: jax.Array, tile: tuple[int, ...], fill: float) -> jax.Array:
    for axis, part in enumerate(tile):
        array = _sharding.whole_groups(array, axis, part)
    padding = [(0, -size % part) for size, part in zip(array.shape, tile, strict=True)]
    if any(after for _, after in padding):
        array = jnp.pad(array, padding, constant_values=fill)
    for axis, part in enumerate(tile):
        array = _sharding.split_axis(array, 2 * axis, part)
    return array


def _inner(tile: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(2 * i + 1 for i in range(len(tile)))


@dataclasses.dataclass(frozen=True)
class Channel:
    """Keeps or prunes whole slices along one axis, scored by their mean.

    Attributes:
      axis: the channel axis; -1 is the output axis of Flax kernels.

    Example:
      >>> import jax.numpy as jnp
      >>> Channel().pool(jnp.ones((3, 3, 8, 16))).shape
      (1, 1, 1, 16)
    """

    axis: int = -1

    def pool(self, scores: jax.Array) -> jax.Array:
        """Means over all other axes, which stay as axes of size one."""
        axis = self._axis(scores.shape)
        scores = scores.astype(at_least_float32(scores.dtype))
        return scores.mean(axis=tuple(i for i in range(scores.ndim) if i != axis), keepdims=True)

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Broadcasts the choice of each channel."""
        return jnp.broadcast_to(units, shape)

    def _axis(self, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f"{self}: a parameter of shape {shape} has no axis {self.axis}. Leave it out with `where`."
            )
        return self.axis % len(shape)
