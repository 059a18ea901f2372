"""Gradients summed over devices at the size of what masks keep, and the proof from the compiled program.

Where every device holds the same masks, the kept entries of a gradient are gathered into dense vectors of static
length, these are summed, and the result is scattered back. The bytes on the wire fall by the sparsity, exactly.
Nothing is said about time: the gather costs some, and on one machine the wire is memory.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import trees
from jaxprune.masks import check_masks_fit
from jaxprune.measure.figure import Figure
from jaxprune.measure.memory import compiled
from jaxprune.trees import PyTree

# A result such as `f32[4]{0}` or `(f32[4]{0}, bf16[2,3]{1,0})`, then the operation; `-done` has no operand of its own.
_OPERATION = re.compile(r"= (?P<result>\(.*?\)|\S+) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_MOST_ENTRIES = 2**31 - 1
_BITS = re.compile(r"[a-z]+([0-9]+)")


def kept_counts(masks: PyTree, like: PyTree) -> tuple[int, ...]:
    """How many entries each mask keeps, as host integers: the static lengths for `gather_kept` under traced masks.

    Args:
      masks: a concrete mask tree.
      like: its parameters, concrete or abstract.

    Returns:
      One integer a leaf, in flattening order; hashable, so it can be a static argument.

    Raises:
      ValueError: the masks do not fit.

    Example:
      >>> kept_counts({"w": jnp.array([True, False])}, {"w": jnp.ones(2)})
      (1,)
    """
    check_masks_fit(masks, like)
    pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(like), strict=True)
    return tuple(_count(np.asarray(mask), math.prod(np.shape(leaf))) for mask, leaf in pairs)


def gather_kept(tree: PyTree, masks: PyTree, counts: Sequence[int] | None = None) -> PyTree:
    """The kept entries of each leaf, as a dense vector of static length.

    Sum these over devices inside `jax.shard_map`, then `scatter_kept`. Differentiate with respect to parameters that
    *vary* over the axis (`jax.lax.pcast(params, "data", to="varying")`, or `check_vma=False`): otherwise JAX has
    already summed the dense gradient before you see it.

    Args:
      tree: gradients, or any tree of arrays.
      masks: a mask tree for it, the same on every device. Concrete masks become constants of the program. Masks that
        are traced, such as those of an optimiser state, move without a retrace while their counts stay.
      counts: the result of `kept_counts`; needed for traced masks. Where a mask keeps another number than it says, the
        vector of a floating leaf is all NaN, so that no gradient is lost unseen.

    Returns:
      A tree of the same structure: of each leaf a vector of its kept entries in flat order, or the leaf itself where
      all of it is kept.

    Raises:
      ValueError: the masks do not fit, or are traced without `counts`.

    Example:
      >>> gather_kept({"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([True, False, True])})["w"].tolist()
      [1.0, 3.0]
    """
    kept = _kept(tree, masks, counts)
    leaves = [_gather(leaf, mask, count) for leaf, mask, count in kept]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def scatter_kept(kept: PyTree, masks: PyTree, like: PyTree, counts: Sequence[int] | None = None) -> PyTree:
    """The inverse of `gather_kept`: what was not kept is zero.

    Args:
      kept: its result, summed or not.
      masks: the same masks.
      like: a tree of the shapes and dtypes that come back, such as the gradients.
      counts: the same counts.

    Returns:
      A tree like `like`.

    Raises:
      ValueError: the masks do not fit, are traced without `counts`, or a vector has another length than the mask keeps.

    Example:
      >>> masks = {"w": jnp.array([True, False, True])}
      >>> scatter_kept({"w": jnp.array([1.0, 3.0])}, masks, {"w": jnp.zeros(3)})["w"].tolist()
      [1.0, 0.0, 3.0]
    """
    trees.check_same_structure(kept, like, "kept")
    triples = _kept(like, masks, counts)
    leaves = []
    for (path, vector), (leaf, mask, count) in zip(trees.leaves_with_paths(kept), triples, strict=True):
        whole = count == leaf.size
        if np.shape(vector) != (np.shape(leaf) if whole else (count,)):
            raise ValueError(
                f"kept: {path} has shape {np.shape(vector)}, but the mask keeps {count} of {np.shape(leaf)}. Give the "
                "masks and counts that gather_kept had."
            )
        leaves.append(vector if whole else _scatter(vector, mask, leaf, count))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def all_reduce_bytes(fn: Any, *args: Any) -> Figure:
    """The operand bytes of all all-reduce operations of a compiled program, read from its text.

    Args:
      fn: a compiled function (`jitted.lower(...).compile()`), or a function that is compiled here.
      args: its arguments, where it is not compiled yet.

    Returns:
      Bytes that each device gives into the operations; measured in the program that runs, after all of XLA's passes
      (which may combine operations, or on a CPU widen bfloat16 to float32). An operation in a loop counts once.

    Example:
      >>> print(all_reduce_bytes(lambda x: x + 1, jnp.ones(2)))
      0 bytes (measured)
    """
    if not hasattr(fn, "as_text"):
        fn = compiled(fn, args)
    results = [match["result"] for match in _OPERATION.finditer(fn.as_text())]
    shapes = [array.groups() for result in results for array in _ARRAY.finditer(result)]
    size = sum(_bytes(dtype, [int(n) for n in shape.split(",") if n]) for dtype, shape in shapes)
    listed = ", ".join(f"{dtype}[{shape}]" for dtype, shape in shapes[:8]) + (", ..." if len(shapes) > 8 else "")
    note = f"{len(results)} operations" + (f": {listed}" if shapes else "")
    return Figure(float(size), "bytes", "measured", "all-reduce operands in the compiled program", note=note)


def _kept(tree: PyTree, masks: PyTree, counts: Sequence[int] | None) -> list[tuple[Any, Any, int]]:
    check_masks_fit(masks, tree)
    if counts is None:
        traced = [path for path, mask in trees.leaves_with_paths(masks) if isinstance(mask, Tracer)]
        if traced:
            raise ValueError(
                f"the masks of {trees.list_paths(traced)} are traced, so how much they keep is not known here; give "
                "counts=kept_counts(masks, params), taken outside of jit."
            )
        counts = kept_counts(masks, tree)
    leaves = jax.tree.leaves(tree)
    if len(counts) != len(leaves):
        raise ValueError(f"counts has {len(counts)} entries for {len(leaves)} leaves; take them from kept_counts.")
    return list(zip(leaves, jax.tree.leaves(masks), counts, strict=True))


def _count(mask: np.ndarray, size: int) -> int:
    # On the host: inside of jit even the sum of a concrete mask would be traced.
    return int(np.count_nonzero(mask)) * (size // mask.size) if mask.size else 0


def _indices(mask: Any, shape: tuple[int, ...], count: int) -> Any:
    """Flat positions that are kept, ascending; past the end where there are fewer than `count`."""
    if math.prod(shape) > _MOST_ENTRIES:
        raise ValueError(f"a leaf of shape {shape} has more entries than int32 can number; split or shard it.")
    if not isinstance(mask, Tracer):
        return np.flatnonzero(np.broadcast_to(np.asarray(mask), shape)).astype(np.int32)
    flat = jnp.broadcast_to(mask, shape).reshape(-1)
    return jnp.nonzero(flat, size=count, fill_value=flat.size)[0]


def _gather(leaf: Any, mask: Any, count: int) -> Any:
    if count == leaf.size:
        return leaf
    indices = _indices(mask, leaf.shape, count)
    if indices.shape != (count,):
        raise ValueError(f"counts gives {count} for a mask that keeps {indices.size}; take them from kept_counts.")
    traced = isinstance(mask, Tracer)
    reader = leaf.reshape(-1).at[indices]
    vector = reader.get(mode="fill", fill_value=0, unique_indices=not traced, indices_are_sorted=True)
    if traced and jnp.issubdtype(leaf.dtype, jnp.inexact):
        fits = jnp.sum(jnp.broadcast_to(mask, leaf.shape), dtype=jnp.int32) == count
        vector = jnp.where(fits, vector, jnp.asarray(jnp.nan, leaf.dtype))
    return vector


def _scatter(vector: Any, mask: Any, leaf: Any, count: int) -> Any:
    distinct = not isinstance(mask, Tracer)
    writer = jnp.zeros(leaf.size, vector.dtype).at[_indices(mask, leaf.shape, count)]
    return writer.set(vector, mode="drop", unique_indices=distinct, indices_are_sorted=True).reshape(leaf.shape)


def _bytes(dtype: str, shape: list[int]) -> int:
    bits = 8 if dtype == "pred" else int(_BITS.findall(dtype)[0])
    return -(-bits * int(np.prod(shape, dtype=np.int64)) // 8)
