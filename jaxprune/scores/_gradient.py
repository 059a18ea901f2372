"""Scores from weights and gradients: first order, and the diagonal of the second."""

import jax
import jax.numpy as jnp

from jaxprune.scores._score import map_floating, require, widen
from jaxprune.trees import PyTree


def saliency(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """The connection sensitivity `|g w|` (SNIP when taken at initialisation).

    Args:
      params: parameters `w`.
      grads: gradients `g` of the loss, of one batch or averaged over several.
      key: unused.
      stats: unused.

    Returns:
      A tree of scores, float32 or wider.

    Raises:
      ValueError: no gradients are given.

    Example:
      >>> import jax.numpy as jnp
      >>> saliency({"w": jnp.array([2.0])}, grads={"w": jnp.array([-3.0])})["w"].tolist()
      [6.0]

    References:
      Lee et al. 2019, SNIP, arXiv 1810.02340.
    """
    del key, stats
    grads = require(grads, "grads", "saliency")
    return map_floating(lambda w, g: abs(widen(g) * widen(w)), params, grads)


def taylor(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """The squared first-order change of the loss, `(g w)^2`.

    Args:
      params: parameters `w`.
      grads: gradients `g`.
      key: unused.
      stats: unused.

    Returns:
      A tree of scores, float32 or wider.

    Raises:
      ValueError: no gradients are given.

    Example:
      >>> import jax.numpy as jnp
      >>> taylor({"w": jnp.array([2.0])}, grads={"w": jnp.array([-3.0])})["w"].tolist()
      [36.0]

    References:
      Molchanov et al. 2019, arXiv 1906.10771.
    """
    del key, stats
    grads = require(grads, "grads", "taylor")
    return map_floating(lambda w, g: (widen(g) * widen(w)) ** 2, params, grads)


def fisher(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """The expected increase of the loss under a diagonal Fisher matrix, `w^2 E[g^2] / 2`.

    Args:
      params: parameters `w`.
      grads: gradients of a batch; `g^2` stands for `E[g^2]` when `stats` is not given, and for each parameter whose
        statistic is zero everywhere, as Adam's is before its first step.
      key: unused.
      stats: a tree of `E[g^2]`, such as Adam's second moment (`jp.second_moment(opt_state)`) or a mean of squared
        per-example gradients.

    Returns:
      A tree of scores, float32 or wider.

    Raises:
      ValueError: neither gradients nor statistics are given.

    Example:
      >>> import jax.numpy as jnp
      >>> fisher({"w": jnp.array([2.0])}, stats={"w": jnp.array([9.0])})["w"].tolist()
      [18.0]

    References:
      Theis et al. 2018, arXiv 1801.05787.
    """
    del key
    if stats is None:
        grads = require(grads, "grads (or stats)", "fisher")
        return map_floating(lambda w, g: 0.5 * (widen(w) * widen(g)) ** 2, params, grads)
    if grads is not None:
        # Zeros would make all weights equal, and the masks a matter of their order. One test a parameter, not one for
        # all: masks are made leaf by leaf, and must not wait for each other.
        stats = map_floating(lambda w, s, g: jnp.where(jnp.any(s != 0), widen(s), widen(g) ** 2), params, stats, grads)
    return map_floating(lambda w, s: 0.5 * widen(w) ** 2 * widen(s), params, stats)


def movement(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """How fast a weight moves away from zero, `-w g`; `jp.pruners.movement` accumulates it over steps.

    Args:
      params: parameters `w`.
      grads: gradients `g`.
      key: unused.
      stats: unused.

    Returns:
      A tree of signed scores, float32 or wider.

    Raises:
      ValueError: no gradients are given.

    Example:
      >>> import jax.numpy as jnp
      >>> movement({"w": jnp.array([2.0])}, grads={"w": jnp.array([-3.0])})["w"].tolist()
      [6.0]

    References:
      Sanh et al. 2020, arXiv 2005.07683.
    """
    del key, stats
    grads = require(grads, "grads", "movement")
    return map_floating(lambda w, g: -widen(w) * widen(g), params, grads)
