"""Least squares under a mask, by conjugate gradients; and the scaled problem that it shares with ADMM."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.posttraining._factorization import filled_diagonal
from jaxprune.posttraining._method import check_damping, check_gram, check_positive, facts

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class refit:
    r"""A repair: the least squares solution on the support of the mask, for every row at once.

    It minimises $\lVert X (W - V)^\top \rVert^2 + \lambda \sum_{ij} G_{jj} (W_{ij} - V_{ij})^2$ over all $V$ that are
    zero where the mask prunes, by conjugate gradients, preconditioned with the diagonal, from $V = W$ on the mask. Each
    step is one product with the Gram matrix, which may stay sharded, and lowers that error; thirty beat the sweep
    of SparseGPT with any mask.

    Attributes:
      iterations: how many steps.
      damping: $\lambda$; keeps weights of inputs that are nearly combinations of others close to what they were.

    Example:
      >>> import jax.numpy as jnp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> weights, _ = refit(iterations=2, damping=0.0)(jnp.array([[1.0, 1.0]]), gram, jnp.array([[False, True]]))
      >>> weights.tolist()  # half of the first input is in the second
      [[0.0, 1.5]]

    References:
      Meng et al. 2024, ALPS, arXiv 2406.07831, section 3.2.
    """

    iterations: int = 30
    damping: float = 0.01

    def __post_init__(self):
        check_positive(iterations=self.iterations)
        check_damping(self.damping)

    def __call__(self, weights: jax.Array, gram: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Repairs one weight matrix: see `Repair`."""
        check_gram(weights, gram)
        problem = scaled_problem(weights, gram, self.damping)
        start = jnp.where(mask, problem.weights, 0)
        solved = conjugate_gradients(problem.gram, problem.weights, start, mask, self.iterations)
        return problem.unscaled(solved, mask, weights), facts(self.damping)


class Scaled(NamedTuple):
    r"""The layer in units in which every input has norm 1: $W_{ij} \sqrt{G_{jj}}$ and $G_{jk} / \sqrt{G_{jj} G_{kk}}$.

    Attributes:
      weights: float32[out, K]; zero in columns without input.
      gram: float32[K, K], damped.
      scale: float32[K], the norms, positive.
      alive: bool[K], which columns have input.
    """

    weights: jax.Array
    gram: jax.Array
    scale: jax.Array
    alive: jax.Array

    def unscaled(self, scaled: jax.Array, mask: jax.Array, weights: jax.Array) -> jax.Array:
        """The solution in the units of `weights`; those in columns without input stay as they were where kept."""
        solved = jnp.where(self.alive[None, :], scaled / self.scale[None, :], weights)
        return jnp.where(mask, solved, 0)


def scaled_problem(weights: jax.Array, gram: jax.Array, damping: float) -> Scaled:
    """Scales a layer, and adds a fraction of the (then unit) diagonal to it."""
    diagonal, _ = filled_diagonal(gram)
    alive = jnp.diagonal(gram) > 0
    scale = jnp.sqrt(diagonal)
    index = jnp.arange(gram.shape[0])
    # Columns without input have an empty row: 1 on the diagonal leaves them alone.
    unit = (gram / scale[:, None] / scale[None, :]).at[index, index].set(1 + jnp.float32(damping))
    return Scaled(jnp.where(alive[None, :], weights * scale[None, :], 0), unit, scale, alive)


def conjugate_gradients(
    gram: jax.Array, target: jax.Array, start: jax.Array, mask: jax.Array, iterations: int
) -> jax.Array:
    r"""Minimises $\mathrm{tr}\,(V - T)\, G\, (V - T)^\top$ over $V$ on the mask, for all rows in parallel.

    Args:
      gram: float32[K, K], positive definite, with a constant diagonal (else precondition first).
      target: float32[out, K], T.
      start: float32[out, K], zero outside the mask.
      mask: bool[out, K].
      iterations: how many steps.

    Returns:
      float32[out, K], zero outside the mask.
    """

    def product(direction: jax.Array) -> jax.Array:
        return jnp.where(mask, matmul(direction, gram), 0)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=1, keepdims=True)

    def step(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        solution, residual, direction, squared = state
        image = product(direction)
        curvature = dot(direction, image)
        # A row that has converged, or has nothing kept, stays where it is.
        length = jnp.where(curvature > 0, squared / jnp.where(curvature > 0, curvature, 1), 0)
        solution, residual = solution + length * direction, residual - length * image
        smaller = dot(residual, residual)
        turn = jnp.where(squared > 0, smaller / jnp.where(squared > 0, squared, 1), 0)
        return solution, residual, residual + turn * direction, smaller

    residual = product(target - start)
    state = (start, residual, residual, dot(residual, residual))
    return lax.fori_loop(0, iterations, step, state)[0]
