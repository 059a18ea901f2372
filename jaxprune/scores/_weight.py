"""Scores from the weights alone."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _sharding, trees
from jaxprune.scores._score import map_floating, require
from jaxprune.trees import PyTree


def magnitude(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """The absolute value `|w|`.

    Args:
      params: parameters.
      grads: unused.
      key: unused.
      stats: unused.

    Returns:
      A tree of scores in the parameters' dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude({"w": jnp.array([-2.0, 1.0])})["w"].tolist()
      [2.0, 1.0]

    References:
      Han et al. 2015, arXiv 1506.02626.
    """
    del grads, key, stats
    return map_floating(jnp.abs, params)


def random(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """Independent uniform scores, the control that every other score must beat.

    Args:
      params: parameters, for their shapes.
      grads: unused.
      key: a typed PRNG key; each leaf folds in its position.
      stats: unused.

    Returns:
      A tree of float32 scores in [0, 1).

    Raises:
      ValueError: no key is given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> random({"w": jnp.ones((2, 3))}, key=jax.random.key(0))["w"].shape
      (2, 3)
    """
    del grads, stats
    root: Any = require(key, "key", "random")
    leaves, treedef = jax.tree.flatten(params)
    drawn = []
    for index, leaf in enumerate(leaves):
        if not trees.is_floating(leaf):
            drawn.append(leaf)
            continue
        values = jax.random.uniform(jax.random.fold_in(root, index), leaf.shape, jnp.float32)
        # `zeros_like` carries the sharding of the parameter over to the scores.
        drawn.append(jnp.zeros_like(leaf, dtype=jnp.float32) + _sharding.like(values, leaf))
    return jax.tree.unflatten(treedef, drawn)
