"""How many bytes a recommender takes: as it is, packed under its zeros, and cut down to what is left."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from examples.recommender.tasks import Apply
from jaxprune import measure

PyTree = Any
_TOLERANCE = 1e-4


def table_masks(params: PyTree) -> PyTree:
    """Masks of the zeros in the tables; all else, and a table without zeros, is kept whole."""
    masks: PyTree = jax.tree.map(lambda _: np.ones((), bool), params)
    for side in ("user", "item"):
        kept = np.asarray(params[side]["factors"]) != 0
        masks[side]["factors"] = np.ones((), bool) if kept.all() else kept
    return masks


def shrink_dimensions(apply: Apply, params: PyTree, pairs: dict[str, np.ndarray]) -> PyTree:
    """Cuts out the dimensions that are zero in a table, and with them those of the other.

    Args:
      apply: `(params, pairs) -> outputs`.
      params: with their zeros.
      pairs: to trace with.

    Returns:
      Smaller parameters for the same function.
    """
    model = jp.trace(lambda p, x: scores_of(apply(p, x)), params, pairs)
    plan, folded = jp.dead_units(model, params)
    return jp.shrink(model, plan, folded)


def drop_rows(params: PyTree) -> PyTree:
    """Leaves out the rows of zeros; `position` of a side says where the rest is, and is past the end for the others.

    Args:
      params: with their zeros.

    Returns:
      Smaller parameters for the same function.
    """
    smaller = dict(params)
    for side in ("user", "item"):
        table = np.asarray(params[side]["factors"])
        present = table.any(axis=1)
        if not present.all() and present.any():
            position = np.where(present, np.cumsum(present) - 1, present.sum()).astype(np.int32)
            kept = {"factors": jnp.asarray(table[present]), "position": jnp.asarray(position)}
            smaller[side] = params[side] | kept
    return smaller


def sizes(
    apply: Apply, params: PyTree, trace_with: dict[str, np.ndarray], pairs: dict[str, np.ndarray]
) -> dict[str, float]:
    """Bytes of the arrays of a model; what is smaller is checked against what it came from.

    Args:
      apply: `(params, pairs) -> outputs`.
      params: with their zeros.
      trace_with: a few pairs.
      pairs: those on which the smaller model must give the same scores.

    Returns:
      `bytes_dense`, of the arrays as they are; `bytes_packed`, with a bit for each weight of a table and the values
      that are not zero; `bytes_shrunk`, of smaller dense arrays without the dimensions and rows that are zero (of each
      row one bit says whether it is there); and `shrunk_difference`, the largest difference of a score.

    Raises:
      RuntimeError: if the smaller model computes something else.
    """
    forms = measure.checkpoint_bytes(params, table_masks(params))
    small = drop_rows(shrink_dimensions(apply, params, trace_with))
    difference = float(jnp.max(jnp.abs(scores_of(apply(small, pairs)) - scores_of(apply(params, pairs)))))
    if not difference < _TOLERANCE:
        raise RuntimeError(f"the shrunk model differs from the masked one by {difference} in a score.")
    shrunk = 0
    for side, tables in small.items():
        position = tables.pop("position", None) if side in ("user", "item") else None
        shrunk += sum(leaf.nbytes for leaf in jax.tree.leaves(tables))
        shrunk += 0 if position is None else -(-len(position) // 8)
    values = {"bytes_dense": forms["dense"].value, "bytes_packed": forms["bitmask"].value, "bytes_shrunk": shrunk}
    return {name: float(value or 0) for name, value in values.items()} | {"shrunk_difference": difference}


def scores_of(outputs: dict[str, jax.Array]) -> jax.Array:
    """The output that ranks: the rating, or the logit."""
    return outputs["rating"] if "rating" in outputs else outputs["logit"]
