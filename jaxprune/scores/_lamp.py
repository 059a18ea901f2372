"""LAMP: layer-adaptive magnitude."""

import jax
import jax.numpy as jnp

from jaxprune import _sharding
from jaxprune.scores._score import map_floating, widen
from jaxprune.trees import PyTree


def lamp(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    r"""The layer-adaptive magnitude `w_u^2 / sum_{v: |w_v| >= |w_u|} w_v^2` within each leaf.

    Within a leaf it orders weights as magnitude does; between leaves it is comparable, so that one global
    threshold (`allocation=jp.allocation.global_`) gives each layer its sparsity. This is the one score that sorts.

    Args:
      params: parameters.
      grads: unused.
      key: unused.
      stats: unused.

    Returns:
      A tree of scores in [0, 1], float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> lamp({"w": jnp.array([2.0, 1.0])})["w"].tolist()
      [1.0, 0.20000000298023224]

    References:
      Lee et al. 2021, arXiv 2010.07611.
    """
    del grads, key, stats
    return map_floating(lambda w: layer_adaptive(abs(w)), params)


@jax.jit
def layer_adaptive(scores: jax.Array) -> jax.Array:
    """Divides squared scores by the sum of all squares in the array that are at least as large.

    NaN and infinities, which say "rank first" or "rank last", stay as they are and count in no sum.
    """
    wide = widen(scores)
    finite = jnp.isfinite(wide)
    squares = jnp.where(finite, wide, jnp.zeros((), wide.dtype)) ** 2
    # A sort needs the whole array on every device.
    flat = _sharding.gathered(squares).reshape(-1)
    ascending = jnp.sort(flat)
    at_least = jnp.cumsum(ascending[::-1])[::-1]
    position = jnp.searchsorted(ascending, flat, side="left")
    total = _sharding.like(at_least[position].reshape(squares.shape), scores)
    adapted = jnp.where(squares > 0, squares / jnp.where(total > 0, total, 1), 0)
    return jnp.where(finite, adapted, wide)
