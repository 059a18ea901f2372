"""The triangular factor of an inverse Gram matrix, which always comes back finite."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# More damping than the mean squared norm itself leaves little but the diagonal.
_LIMIT = 1.0
_STEP = 10.0
# What follows a damping of zero.
_SMALLEST = 1e-3


class InverseFactor(NamedTuple):
    r"""$U$ with $(G + \lambda I)^{-1} = U^\top U$.

    Attributes:
      upper: float32[K, K], upper triangular with a positive diagonal.
      damping: float32, $\lambda$ as a fraction of the mean of the diagonal of $G$.
      fallback: bool, whether more damping than asked for was needed.
    """

    upper: jax.Array
    damping: jax.Array
    fallback: jax.Array


def inverse_factor(gram: jax.Array, damping: float) -> InverseFactor:
    r"""Factorises the inverse of a damped Gram matrix by one Cholesky decomposition and one triangular inverse.

    With the reversal $P$ and $P (G + \lambda I) P = L L^\top$, $U = P L^{-1} P$; the inverse itself is never formed.
    A column without input gets the mean of the others on the diagonal. Where the decomposition fails, which JAX shows
    by NaN, it is tried with ten times the damping, up to 1; then $U$ is that of the diagonal alone.

    Args:
      gram: float32[K, K], positive semidefinite up to rounding.
      damping: $\lambda$ as a fraction of the mean of the diagonal over columns with input.

    Returns:
      The factor, finite where the diagonal of the Gram matrix is, and how it was found.

    Example:
      >>> import jax.numpy as jnp
      >>> upper, used, fallback = inverse_factor(jnp.array([[4.0, 2.0], [2.0, 2.0]]), 0.0)
      >>> bool(jnp.allclose(upper.T @ upper, jnp.array([[0.5, -0.5], [-0.5, 1.0]]), atol=1e-6)), bool(fallback)
      (True, False)
      >>> indefinite = jnp.array([[1.0, 1.05], [1.05, 1.0]])
      >>> _, used, fallback = inverse_factor(indefinite, 0.01)
      >>> round(float(used), 3), bool(fallback)
      (0.1, True)
    """
    diagonal, mean = filled_diagonal(gram)
    extra = diagonal - jnp.diagonal(gram)
    size = gram.shape[0]
    index = jnp.arange(size)

    def factor(fraction: jax.Array) -> jax.Array:
        damped = gram.at[index, index].add(extra + fraction * mean)
        lower = lax.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)
        inverse = lax.linalg.triangular_solve(lower, jnp.eye(size, dtype=gram.dtype), left_side=True, lower=True)
        return inverse[::-1, ::-1]

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        following, _, _, done, tries = state
        # The first is tried whatever it is; the tolerance is for 0.01 * 10 * 10.
        return ~done & ((tries == 0) | (following <= 1.01 * _LIMIT))

    def attempt(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        fraction, _, _, _, tries = state
        upper = factor(fraction)
        done = jnp.all(jnp.isfinite(upper))
        return jnp.maximum(fraction * _STEP, _SMALLEST), fraction, upper, done, tries + 1

    first = jnp.asarray(damping, jnp.float32)
    start = (first, first, jnp.zeros_like(gram), jnp.asarray(False), jnp.asarray(0, jnp.int32))
    _, used, upper, done, tries = lax.while_loop(unfinished, attempt, start)
    alone = jnp.diag(lax.rsqrt(diagonal + used * mean))
    return InverseFactor(jnp.where(done, upper, alone), used, ~done | (tries > 1))


def filled_diagonal(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The diagonal with the mean of the other columns in those without input, and that mean; 1 where all are empty."""
    diagonal = jnp.diagonal(gram)
    dead = diagonal <= 0
    alive = jnp.sum(~dead, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(dead, 0, diagonal)) / jnp.maximum(alive, 1).astype(gram.dtype)
    mean = jnp.where(alive > 0, mean, 1)
    return jnp.where(dead, mean, diagonal), mean
