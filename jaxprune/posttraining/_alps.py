"""ALPS: ADMM for the mask, conjugate gradients for the weights."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.statistics import gram
from jaxprune.posttraining._choice import check_choice, choose, kept_count
from jaxprune.posttraining._factorization import filled_diagonal
from jaxprune.posttraining._method import Outcome, Share, check_damping, check_gram, check_positive, facts
from jaxprune.posttraining._refit import conjugate_gradients, matmul, scaled_problem
from jaxprune.structures import Structure

# The authors' schedule of the penalty, which looks at the mask after every few iterations.
_EVERY = 3
_SETTLED_AFTER, _SETTLED = 30, 3e-4
_MANY, _SOME = 0.1, 0.005
_SMALLEST, _LARGEST = 1e-5, 1e6


@dataclasses.dataclass(frozen=True)
class alps:
    r"""Finds the mask by ADMM with a growing penalty, and the weights on it by conjugate gradients.

    With inputs scaled to norm 1, $H = G + \lambda I$ and the dense weights $W$, every iteration is

    $$ B = (W H - V + \rho D) (H + \rho I)^{-1}, \quad D = \mathrm{top}_k (B + V/\rho), \quad
       V \mathrel{+}= \rho (B - D) $$

    One eigendecomposition of $H$ serves every $\rho$. The penalty grows faster the more the mask still changes, until
    it does not. The lowest error of all methods here, for the most work.

    Attributes:
      damping: $\lambda$ as a fraction of the mean of the diagonal of $G$.
      penalty: $\rho$ at the start.
      iterations: the most iterations of ADMM; it mostly ends after thirty to sixty.
      refit_iterations: steps of conjugate gradients at the end.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> weights, mask, info = alps()(jnp.array([[1.0, 1.0]]), gram, 0.5, jp.Unstructured())
      >>> mask.tolist(), sorted(info)
      ([[False, True]], ['damping', 'fallback', 'iterations'])

    References:
      Meng et al. 2024, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models,
      arXiv 2406.07831.
    """

    damping: float = 0.01
    penalty: float = 0.1
    iterations: int = 300
    refit_iterations: int = 10

    def __post_init__(self):
        check_damping(self.damping)
        check_positive(penalty=self.penalty, iterations=self.iterations, refit_iterations=self.refit_iterations)

    stat = staticmethod(gram)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`.

        Among the facts are the `iterations` of ADMM, int32.
        """
        check_gram(weights, stat)
        check_choice(sparsity, structure)
        alive = jnp.diagonal(stat) > 0
        index = jnp.arange(stat.shape[0])
        # Damped in the units of the inputs, then scaled: a strong input is damped less than a weak one.
        diagonal, mean = filled_diagonal(stat)
        damped = stat.at[index, index].set(diagonal + self.damping * mean)
        problem = scaled_problem(jnp.where(alive[None, :], weights, 0), damped, 0.0)._replace(alive=alive)
        values, basis = jnp.linalg.eigh(problem.gram, symmetrize_input=False)
        values = jnp.maximum(values, 0)  # by rounding, in float32, they may be below
        aim = matmul(problem.weights, problem.gram)
        kept = jnp.asarray(kept_count(sparsity, structure, weights.shape), jnp.float32)

        def project(dense: jax.Array) -> jax.Array:
            return choose(jnp.square(dense), sparsity, structure)

        def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            sparse, dual, penalty, _ = state
            rotated = matmul(aim - dual + penalty * sparse, basis) / (values + penalty)[None, :]
            dense = matmul(rotated, basis.T)
            target = dense + dual / penalty
            mask = project(target)
            sparse = jnp.where(mask, target, 0)
            return sparse, dual + penalty * (dense - sparse), penalty, mask

        first_mask = project(problem.weights)
        first = jnp.where(first_mask, problem.weights, 0)

        def unfinished(state: "_State") -> jax.Array:
            return ~state.done & (state.steps < self.iterations)

        def advance(state: "_State") -> "_State":
            start = (state.sparse, state.dual, state.penalty, state.mask)
            sparse, dual, penalty, mask = lax.fori_loop(0, _EVERY, iterate, start)
            changed = jnp.sum(mask != state.mask, dtype=jnp.int32).astype(jnp.float32) / kept
            raised = state.raised | (changed > _SOME)
            growing = jnp.where(changed > _MANY, 1.3, jnp.where(changed > _SOME, 1.2, 1.1))
            # Where even the first mask hardly changes, the penalty was too high: again, with a lower one.
            again = ~raised & (changed > 0)
            following = jnp.where(raised, penalty * growing, penalty / 5)
            steps = state.steps + _EVERY
            settled = (steps > _SETTLED_AFTER) & (changed < _SETTLED)
            done = (raised & (changed == 0)) | settled | (following < _SMALLEST)
            return _State(
                steps,
                jnp.where(again, first, sparse),
                jnp.where(again, 0, dual),
                jnp.minimum(following, _LARGEST),
                mask,
                raised,
                done,
            )

        zero, no = jnp.asarray(0, jnp.int32), jnp.asarray(False)
        start = _State(zero, first, jnp.zeros_like(first), jnp.asarray(self.penalty, jnp.float32), first_mask, no, no)
        found = lax.while_loop(unfinished, advance, start)
        begin = jnp.where(found.mask, found.sparse, 0)
        solved = conjugate_gradients(problem.gram, problem.weights, begin, found.mask, self.refit_iterations)
        info = facts(self.damping, ~jnp.all(jnp.isfinite(values)), iterations=found.steps)
        return problem.unscaled(solved, found.mask, weights), found.mask, info


class _State(NamedTuple):
    steps: jax.Array
    sparse: jax.Array
    dual: jax.Array
    penalty: jax.Array
    mask: jax.Array
    raised: jax.Array
    done: jax.Array
