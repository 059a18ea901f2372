"""SynFlow: synaptic flow, a score that needs no data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.scores._score import Score, map_floating, widen
from jaxprune.trees import PyTree


def synflow(apply_fn: Callable[..., Any], *inputs: jax.Array) -> Score:
    r"""Makes the SynFlow score `|w| dR/d|w|`, with `R` the sum of outputs of the network of absolute weights.

    Use it iteratively, as the paper does: `jp.pruners.static(s, score=synflow(...), rounds=100)`. Parameters and
    inputs of narrower dtypes are given to the model in float32: the flow is a product over layers. A model that
    casts to 16 bits by itself computes its layers in 16 bits all the same, and may overflow: pass one that does not.

    Args:
      apply_fn: the model, `apply_fn(params, *inputs)`; linear in each layer up to its activations.
      *inputs: arrays of the model's input shapes; replaced by ones.

    Returns:
      A score.

    Example:
      >>> import jax.numpy as jnp
      >>> score = synflow(lambda p, x: x @ p["w"], jnp.zeros((1, 2)))
      >>> score({"w": jnp.array([[1.0], [-3.0]])})["w"].tolist()
      [[1.0], [3.0]]

    References:
      Tanaka et al. 2020, arXiv 2006.05467.
    """

    def score(
        params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
    ) -> PyTree:
        del grads, key, stats
        positive = map_floating(lambda w: jnp.abs(widen(w)), params)
        ones = map_floating(widen, [jnp.ones_like(x) for x in inputs])

        def flow(weights: PyTree) -> jax.Array:
            outputs = jax.tree.leaves(apply_fn(weights, *ones))
            return sum((jnp.sum(y.astype(jnp.float32)) for y in outputs), jnp.zeros((), jnp.float32))

        return map_floating(lambda w, g: w * g, positive, jax.grad(flow, allow_int=True)(positive))

    return score
