"""From scores of a weight matrix to a mask with an exact count."""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune import _sharding, selection
from jaxprune._counts import check_sparsity, kept, scaled
from jaxprune.structures import NM, Block, Structure, Unstructured

Group: TypeAlias = Literal["row", "layer"] | int


def choose(
    scores: jax.Array, sparsity: Any, structure: Structure, group: Group = "layer", progress: jax.Array | None = None
) -> jax.Array:
    """Marks the weights with the highest scores.

    Args:
      scores: float32[out, K].
      sparsity: fraction of zeros; may be traced; None with `NM`.
      structure: which weights go together.
      group: among which weights scores are compared: a row, so many rows, or the layer. N:M compares within its
        groups and blocks within the layer, whatever this says.
      progress: scalar in [0, 1], for a mask on the way: as much of the pruning as this; only with `group="layer"`.
        N:M then prunes those that will have to go first.

    Returns:
      bool[out, K]: `round((1 - sparsity) n)` weights of each group of n are True. Ties go to the lower index.

    Raises:
      ValueError: a structure that a matrix cannot have, or a sparsity out of range.
    """
    check_choice(sparsity, structure)
    if isinstance(structure, NM):
        pattern = dataclasses.replace(structure, axis=-1)
        mask = pattern.select(scores)
        if progress is None:
            return mask
        return selection.top_k_mask(scores, scaled(pattern.kept(scores.shape), scores.size, progress), first=mask)
    if isinstance(structure, Block):
        units = structure.pool(scores.T)
        count = scaled(kept(sparsity, units.size), units.size, progress)
        return structure.expand(selection.top_k_mask(units, count), scores.T.shape).T
    rows = scores.shape[0]
    if group == "layer" or (isinstance(group, int) and group >= rows):
        return selection.top_k_mask(scores, scaled(kept(sparsity, scores.size), scores.size, progress))
    size = 1 if group == "row" else int(group)
    whole = rows - rows % size
    masks = []
    if whole:
        grouped = _sharding.merge_axes(_sharding.split_axis(scores[:whole], 0, size), 1)
        mask = selection.row_top_k_mask(grouped, kept(sparsity, grouped.shape[1]))
        masks.append(_sharding.merge_axes(_sharding.split_axis(mask, 1, scores.shape[1]), 0))
    if whole < rows:
        rest = scores[whole:]
        masks.append(selection.top_k_mask(rest, kept(sparsity, rest.size)))
    return masks[0] if len(masks) == 1 else jnp.concatenate(masks)


def kept_count(sparsity: Any, structure: Structure, shape: tuple[int, ...]) -> Any:
    """About how many weights of a matrix (out, K) a mask keeps; exact but for blocks at an edge."""
    if isinstance(structure, NM):
        return dataclasses.replace(structure, axis=-1).kept(shape)
    return kept(sparsity, math.prod(shape))


def check_choice(sparsity: Any, structure: Structure) -> None:
    """Raises where the structure is none of a weight matrix, or the sparsity is out of range."""
    if isinstance(structure, NM):
        if structure.axis is not None:
            raise ValueError(
                f"{structure}: the groups of a matrix (out, K) run along K; give NM(n={structure.n}, m={structure.m}) "
                "without an axis."
            )
        if isinstance(sparsity, (int, float)) and abs(sparsity - structure.sparsity) > 1e-6:
            raise ValueError(
                f"sparsity={sparsity} with {structure}, whose sparsity is {structure.sparsity:g}; give that, or None."
            )
        return
    if isinstance(structure, Block):
        if structure.axes is not None or len(structure.shape) != 2:
            raise ValueError(
                f"{structure}: the tiles of a weight matrix have two sizes, inputs by outputs, and no axes, as in "
                "Block((16, 16))."
            )
    elif not isinstance(structure, Unstructured):
        raise ValueError(f"structure={structure}: allowed are Unstructured(), NM(n, m) and Block((a, b)).")
    if sparsity is None:
        raise ValueError(f"sparsity=None with {structure}: give the fraction of zeros, 0 <= sparsity < 1.")
    check_sparsity(sparsity)


def check_group(group: Group) -> None:
    """Raises where a group is neither a word that is known nor a number of rows."""
    if group not in ("row", "layer") and not (isinstance(group, int) and group >= 1):
        raise ValueError(f"group={group!r}: allowed are 'row', 'layer' or a number of rows, 1 or more.")
