"""Statistics of the inputs of a layer: additive functions of the matrix that a weight is multiplied with.

A statistic takes `x`, (..., rows, features), and `weights`, (..., rows) or None, and gives a pytree of sums over the
rows in float32. Sums of batches are added, so a user's own statistic is any such function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import _sharding

__all__ = ["Mean", "Moments", "absolute_mean", "column_norms", "gram", "moments"]

Statistic: TypeAlias = Callable[[jax.Array, jax.Array | None], Any]


def gram(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""The Gram matrix $X^\top \mathrm{diag}(w) X$.

    Narrow inputs are multiplied as they are and summed in float32, at the highest precision of the device: the default
    of TPUs (bfloat16) and of newer GPUs (TF32) would not leave it positive semidefinite.

    Args:
      x: (..., rows, features).
      weights: (..., rows); None counts every row once.

    Returns:
      float32[..., features, features].

    Example:
      >>> gram(jnp.array([[1.0, 2.0], [3.0, 0.0]])).tolist()
      [[10.0, 2.0], [2.0, 4.0]]
    """
    left = x if weights is None else _weighted(x, weights)
    return cross_gram(left, x.astype(left.dtype))


def cross_gram(left: jax.Array, right: jax.Array) -> jax.Array:
    r"""The product $X^\top Y$ of two matrices with the same rows, as `gram` multiplies.

    Args:
      left: (..., rows, k).
      right: (..., rows, l), of the same type.

    Returns:
      float32[..., k, l], whole on each device whatever mesh the rows are split over.
    """
    return jnp.einsum(
        "...rk,...rl->...kl",
        left,
        right,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=_sharding.leading(left, left.ndim - 2, left.ndim),
    )


def column_norms(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""The squared norm of each feature, $\sum_r w_r x_{rj}^2$.

    Args:
      x: (..., rows, features).
      weights: (..., rows); None counts every row once.

    Returns:
      float32[..., features].

    Example:
      >>> column_norms(jnp.array([[1.0, 2.0], [3.0, 0.0]])).tolist()
      [10.0, 4.0]
    """
    return _total(jnp.square(x.astype(jnp.float32)), weights)


def absolute_mean(x: jax.Array, weights: jax.Array | None = None) -> "Mean":
    r"""The mean magnitude of each feature, $\mathbb{E}\,|x_j|$.

    Args:
      x: (..., rows, features).
      weights: (..., rows); None counts every row once.

    Returns:
      The sums, from which `value` is the mean, float32[..., features].

    Example:
      >>> absolute_mean(jnp.array([[1.0, 2.0], [-3.0, 0.0]])).value.tolist()
      [2.0, 1.0]
    """
    return Mean(_count(x, weights), _total(jnp.abs(x.astype(jnp.float32)), weights))


def moments(x: jax.Array, weights: jax.Array | None = None) -> "Moments":
    """The mean and the variance of each feature.

    Args:
      x: (..., rows, features).
      weights: (..., rows); None counts every row once.

    Returns:
      The sums, from which `mean` and `variance` are computed.

    Example:
      >>> found = moments(jnp.array([[1.0, 2.0], [3.0, 0.0]]))
      >>> found.mean.tolist(), found.variance.tolist()
      ([2.0, 1.0], [1.0, 1.0])
    """
    x = x.astype(jnp.float32)
    return Moments(_count(x, weights), _total(x, weights), _total(jnp.square(x), weights))


class Mean(NamedTuple):
    """A mean as its sums.

    Attributes:
      rows: float32[...], how many rows.
      total: float32[..., features].

    Example:
      >>> Mean(jnp.array(2.0), jnp.array([1.0, 4.0])).value.tolist()
      [0.5, 2.0]
    """

    rows: jax.Array
    total: jax.Array

    @property
    def value(self) -> jax.Array:
        """float32[..., features]; zero where there were no rows."""
        return self.total / jnp.maximum(self.rows, 1e-30)[..., None]


class Moments(NamedTuple):
    """Mean and variance as their sums.

    Attributes:
      rows: float32[...], how many rows.
      total: float32[..., features].
      squares: float32[..., features].

    Example:
      >>> Moments(jnp.array(2.0), jnp.array([1.0, 4.0]), jnp.array([1.0, 8.0])).variance.tolist()
      [0.25, 0.0]
    """

    rows: jax.Array
    total: jax.Array
    squares: jax.Array

    @property
    def mean(self) -> jax.Array:
        """float32[..., features]; zero where there were no rows."""
        return Mean(self.rows, self.total).value

    @property
    def variance(self) -> jax.Array:
        """float32[..., features], not negative."""
        return jnp.maximum(Mean(self.rows, self.squares).value - jnp.square(self.mean), 0.0)


def _weighted(x: jax.Array, weights: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) * weights.astype(jnp.float32)[..., None]


def _total(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    return jnp.sum(x if weights is None else _weighted(x, weights), -2)


def _count(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return jnp.full(x.shape[:-2], x.shape[-2], jnp.float32)
    return jnp.sum(weights.astype(jnp.float32), -1)
