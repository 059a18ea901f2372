"""ADMM with a gradual mask."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.statistics import gram
from jaxprune.posttraining._choice import choose
from jaxprune.posttraining._method import Outcome, Share, check_damping, check_gram, check_positive, facts
from jaxprune.posttraining._refit import matmul, scaled_problem
from jaxprune.structures import Structure


@dataclasses.dataclass(frozen=True)
class admm:
    r"""Alternates between the least squares weights and the nearest sparse ones, whose mask grows on the way.

    With inputs scaled to norm 1, $H = G + \lambda I$, $\rho = 1$ and the dense weights $W$, every iteration is

    $$ Z = \mathrm{mask}(V + U), \quad U \mathrel{+}= V - Z, \quad V = (W H + \rho (Z - U)) (H + \rho I)^{-1} $$

    The mask keeps the largest $(V + U)^2$ (of blocks, the largest means), and prunes $1 - (1 - t/T)^3$ of its share
    after $t$ of the first $T$ iterations; it is fixed for the rest. One inverse, and one product an iteration: nearly
    as good as `alps`, and much cheaper.

    Attributes:
      damping: $\lambda$, relative to the squared norm of every input.
      pruning_iterations: T.
      iterations: all of them.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> admm()(jnp.array([[1.0, 1.0]]), gram, 0.5, jp.Unstructured())[1].tolist()
      [[False, True]]

    References:
      Boža 2024, Fast and Effective Weight Update for Pruned Large Language Models, arXiv 2401.02938.
    """

    damping: float = 0.1
    pruning_iterations: int = 15
    iterations: int = 20

    def __post_init__(self):
        check_damping(self.damping)
        check_positive(pruning_iterations=self.pruning_iterations)
        if self.iterations < self.pruning_iterations:
            raise ValueError(
                f"iterations={self.iterations} with pruning_iterations={self.pruning_iterations}: the mask must be "
                "complete at the end; give at least as many iterations."
            )

    stat = staticmethod(gram)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`."""
        check_gram(weights, stat)
        problem = scaled_problem(weights, stat, self.damping)
        identity = jnp.eye(stat.shape[0], dtype=stat.dtype)
        # Its condition number is at most K + 1, so that the inverse may be formed.
        factor = jax.scipy.linalg.cho_factor(problem.gram + identity, lower=True)
        inverse = jax.scipy.linalg.cho_solve(factor, identity)
        aim = matmul(problem.weights, problem.gram)

        def step(values: jax.Array, dual: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            sparse = jnp.where(mask, values + dual, 0)
            dual = dual + values - sparse
            return matmul(aim + sparse - dual, inverse), dual

        def prune(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            values, dual, _ = state
            left = 1 - (i + 1).astype(jnp.float32) / self.pruning_iterations
            mask = choose(jnp.square(values + dual), sparsity, structure, progress=1 - left**3)
            return *step(values, dual, mask), mask

        start = (problem.weights, jnp.zeros_like(problem.weights), jnp.ones_like(problem.weights, dtype=bool))
        values, dual, mask = lax.fori_loop(0, self.pruning_iterations, prune, start)
        remaining = self.iterations - self.pruning_iterations
        values, dual = lax.fori_loop(0, remaining, lambda _, state: step(state[0], state[1], mask), (values, dual))
        return problem.unscaled(values + dual, mask, weights), mask, facts(self.damping)
