"""Mask trees: apply, count, combine, pack.

A mask tree has the tree structure of its parameters. Each leaf is a bool array, True = keep, that broadcasts
against its parameter; the scalar `True` stands for a leaf that is not pruned.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _sharding, trees
from jaxprune.trees import PyTree


def check_masks_fit(masks: PyTree, params: PyTree, name: str = "masks") -> None:
    """Raises a ValueError that names the path where a mask tree does not fit its parameters.

    Args:
      masks: a mask tree.
      params: the parameters, concrete or abstract.
      name: what the tree is called in the error.
    """
    trees.check_same_structure(masks, params, name)
    pairs = zip(trees.leaves_with_paths(params), jax.tree.leaves(masks), strict=True)
    for (path, param), mask in pairs:
        if jnp.result_type(mask) != bool:
            raise ValueError(
                f"{name}: the mask of {path} has dtype {jnp.result_type(mask)}; masks are bool, True = keep. "
                "Convert it with `mask != 0`."
            )
        shape = np.shape(param)
        try:
            fits = np.broadcast_shapes(np.shape(mask), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: the mask of {path} has shape {np.shape(mask)}, which does not broadcast to {shape}. "
                "Make masks of the same parameters; inside jax.shard_map pass them as an argument, with the in_specs "
                "of the parameters."
            )


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    r"""Sets pruned weights to zero: `where(mask, p, 0)`.

    A product would keep NaN and infinity; this does not. Dtypes and shardings stay. Inside `jax.shard_map` pass the
    masks as an argument, with the `in_specs` of the parameters: masks that the function closes over are not sharded.

    Args:
      params: parameters.
      masks: a mask tree for them.

    Returns:
      The masked parameters.

    Raises:
      ValueError: the masks do not fit the parameters.
      TypeError: a leaf of the parameters is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_masks({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([True, False])})["w"].tolist()
      [1.0, 0.0]
    """
    trees.check_arrays(params)
    check_masks_fit(masks, params)
    return jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros((), p.dtype)), params, masks)


def sparsity(masks: PyTree, params: PyTree, *, per_leaf: bool = False) -> Any:
    """The exact fraction of zeros that masks make, over the whole tree that is given.

    Args:
      masks: a mask tree, concrete.
      params: its parameters, concrete or abstract.
      per_leaf: return a tree of fractions instead.

    Returns:
      A float, or a tree of floats.

    Raises:
      ValueError: the masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> sparsity({"w": jnp.array([True, False]), "b": True}, {"w": jnp.ones(2), "b": jnp.ones(2)})
      0.25
    """
    check_masks_fit(masks, params)
    sizes = [math.prod(np.shape(p)) for p in jax.tree.leaves(params)]
    kept = [kept_count(m, np.shape(p)) for m, p in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True)]
    if per_leaf:
        fractions = [1 - k / n if n else 0.0 for k, n in zip(kept, sizes, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(params), fractions)
    return 1 - sum(kept) / sum(sizes) if sum(sizes) else 0.0


def kept_count(mask: Any, shape: tuple[int, ...]) -> int:
    """How many weights of a parameter of `shape` a concrete mask keeps, as an exact host integer."""
    array = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    size = math.prod(array.shape)
    if not array.ndim or _sharding.on_host(array):  # JAX would compile the sum of every other shape
        kept = int(np.count_nonzero(array))
    else:  # rows are summed on the device and added up on the host, so that no count overflows
        kept = int(np.asarray(jnp.sum(array, axis=-1, dtype=jnp.int32), dtype=np.int64).sum())
    return kept * (math.prod(shape) // size) if size else 0


def combine(*masks: PyTree) -> PyTree:
    """Keeps what every one of the mask trees keeps (logical and).

    Args:
      *masks: mask trees of one structure.

    Returns:
      A mask tree.

    Raises:
      ValueError: no tree is given, or their structures differ.

    Example:
      >>> import jax.numpy as jnp
      >>> combine({"w": jnp.array([True, False])}, {"w": jnp.array(True)})["w"].tolist()
      [True, False]
    """
    if not masks:
        raise ValueError("combine() was given no mask tree; give at least one.")
    for other in masks[1:]:
        trees.check_same_structure(other, masks[0], "a mask tree to combine")

    def both(*leaves: Any) -> jax.Array:
        shape = np.broadcast_shapes(*(np.shape(leaf) for leaf in leaves))
        result = jnp.broadcast_to(jnp.asarray(leaves[0]), shape)
        for leaf in leaves[1:]:
            result = result & jnp.broadcast_to(jnp.asarray(leaf), shape)
        return result

    return jax.tree.map(both, *masks)


def from_zeros(params: PyTree, where: trees.Where = None) -> PyTree:
    """Masks that keep what is not exactly zero, for a model that was pruned elsewhere.

    Args:
      params: parameters with zeros.
      where: which parameters may be pruned; the others get the scalar mask True.

    Returns:
      A mask tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from_zeros({"w": jnp.array([[0.0, 2.0]]), "b": jnp.zeros(2)})["w"].tolist()
      [[False, True]]
    """
    chosen = trees.resolve_where(where, params)
    return jax.tree.map(lambda p, c: (p != 0) if c else jnp.asarray(True), params, chosen)


def full_masks(masks: PyTree, params: PyTree) -> PyTree:
    """Gives every mask its parameter's shape and sharding, as the optimiser state keeps them.

    Always a copy, so that a donated state never deletes the caller's masks.

    Args:
      masks: a mask tree.
      params: its parameters.

    Returns:
      A tree of bool arrays of the parameters' shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> full_masks({"w": True}, {"w": jnp.ones(2)})["w"].tolist()
      [True, True]
    """

    def one(mask: Any, param: jax.Array) -> jax.Array:
        if np.shape(mask) == np.shape(param):
            mask = _sharding.like(jnp.asarray(mask), param)
        return _sharding.like(jnp.logical_and(jnp.ones_like(param, dtype=bool), mask), param)

    return jax.tree.map(one, masks, params)


def pack(masks: PyTree) -> PyTree:
    """Packs masks to one bit a weight, eight along the axis of each leaf that takes the fewest bytes.

    The rank of a leaf stays, so that its sharding specification does too.

    Args:
      masks: a tree of bool arrays.

    Returns:
      A tree of uint8 arrays; the packed axis has `ceil(size / 8)` entries.

    Example:
      >>> import jax.numpy as jnp
      >>> pack({"w": jnp.array([True] + [False] * 8)})["w"].tolist()
      [1, 0]
    """
    return jax.tree.map(_pack_leaf, masks)


def unpack(packed: PyTree, params: PyTree) -> PyTree:
    """The inverse of `pack`.

    Args:
      packed: a tree from `pack`.
      params: the parameters, for their shapes.

    Returns:
      A tree of bool arrays of the parameters' shapes.

    Raises:
      ValueError: a packed leaf does not belong to its parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = {"w": jnp.array([True, False, True])}
      >>> unpack(pack(mask), {"w": jnp.zeros(3)})["w"].tolist()
      [True, False, True]
    """
    trees.check_same_structure(packed, params, "the packed mask tree")
    named = trees.leaves_with_paths(params)
    leaves = [_unpack_leaf(b, np.shape(p), path) for b, (path, p) in zip(jax.tree.leaves(packed), named, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _packed_axis(shape: tuple[int, ...]) -> int:
    def cost(axis: int) -> tuple[float, bool, int]:
        # Fewest bytes first. The bits of a last axis would not vectorise.
        size = shape[axis]
        return -(-size // 8) / max(size, 1), axis == len(shape) - 1, -size

    return min(range(len(shape)), key=cost)


@jax.jit
def _pack_leaf(mask: Any) -> jax.Array:
    mask = jnp.asarray(mask)
    if not mask.ndim:
        return mask.astype(jnp.uint8)
    axis = _packed_axis(mask.shape)
    mask = _sharding.whole_groups(mask, axis, 8)
    rest = -mask.shape[axis] % 8
    if rest:
        mask = jnp.pad(mask, [(0, rest if i == axis else 0) for i in range(mask.ndim)])
    grouped = _sharding.split_axis(mask, axis, 8).astype(jnp.uint8)
    bits = [jax.lax.index_in_dim(grouped, i, axis + 1, keepdims=False) << np.uint8(i) for i in range(8)]
    result = bits[0]
    for bit in bits[1:]:
        result = result | bit
    return result


def _unpack_leaf(packed: jax.Array, shape: tuple[int, ...], path: str) -> jax.Array:
    if not shape:
        return packed.astype(bool)
    axis = _packed_axis(shape)
    expected = (*shape[:axis], -(-shape[axis] // 8), *shape[axis + 1 :])
    if packed.shape != expected or packed.dtype != jnp.uint8:
        raise ValueError(
            f"the packed mask of {path} is {packed.dtype}{list(packed.shape)}, but a parameter of shape {shape} packs "
            f"to uint8{list(expected)}."
        )
    return _unpack_axis(packed, axis, shape[axis])


@functools.partial(jax.jit, static_argnames=("axis", "size"))
def _unpack_axis(packed: jax.Array, axis: int, size: int) -> jax.Array:
    grouped = jnp.expand_dims(packed, axis + 1)
    bit = jax.lax.broadcasted_iota(jnp.uint8, (1,) * (axis + 1) + (8,) + (1,) * (packed.ndim - axis - 1), axis + 1)
    bits = (grouped >> bit) & np.uint8(1) != 0
    return jax.lax.slice_in_dim(_sharding.merge_axes(bits, axis), 0, size, axis=axis)
