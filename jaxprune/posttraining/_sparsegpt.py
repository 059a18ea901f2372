"""SparseGPT: second order selection and repair in one sweep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import gram
from jaxprune.posttraining._choice import Group, check_choice, check_group, choose
from jaxprune.posttraining._factorization import inverse_factor
from jaxprune.posttraining._method import Outcome, Share, check_damping, check_gram, check_positive, facts
from jaxprune.posttraining._sweep import sweep_columns
from jaxprune.structures import NM, Block, Structure


@dataclasses.dataclass(frozen=True)
class sparsegpt:
    r"""Prunes column by column by $W_{ij}^2 / U_{jj}^2$, and lets the columns to the right make up for each.

    $U$ is the upper triangular factor of $(G + \lambda I)^{-1}$, so the score is the error that is left after the
    best update of the columns not yet swept. Unstructured weights compete over all rows within a block of columns,
    when the sweep reaches it; N:M within its group, when the sweep reaches that; blocks all at once at the start.

    Differs from the authors' code where that is inexact: counts are exact (theirs prunes one weight more a block), and
    a column without input does not shift the damping. Its weights are pruned first, and stay as they are where the
    count keeps them.

    Attributes:
      damping: $\lambda$ as a fraction of the mean of the diagonal of $G$. Where the factorisation fails it is raised
        tenfold, up to 1, then only the diagonal is used; `damping` and `fallback` of the facts tell.
      block_size: columns that compete and are swept before the rest of the matrix follows.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> weights, mask, info = sparsegpt(damping=0.0)(jnp.array([[1.0, 1.0]]), gram, 0.5, jp.Unstructured())
      >>> weights.tolist(), bool(info["fallback"])
      ([[0.0, 1.5]], False)

    References:
      Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774.
    """

    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self):
        check_damping(self.damping)
        check_positive(block_size=self.block_size)

    stat = staticmethod(gram)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`."""
        check_gram(weights, stat)
        check_choice(sparsity, structure)
        if isinstance(structure, NM) and structure.strict:
            choose(weights, sparsity, structure)  # raises where K is not divisible
        found = inverse_factor(stat, self.damping)
        alive = jnp.diagonal(stat) > 0
        mask = None
        if isinstance(structure, Block):
            mask = choose(_scores(weights, found.upper, alive), sparsity, structure)
        pattern = structure if isinstance(structure, NM) else None
        swept, mask = sweep_columns(
            weights, found.upper, alive, self.block_size, mask=mask, pattern=pattern, sparsity=sparsity
        )
        return swept, mask, facts(found.damping, found.fallback)


@dataclasses.dataclass(frozen=True)
class sparsegpt_score:
    r"""Prunes by SparseGPT's score $W_{ij}^2 / U_{jj}^2$ of the dense weights, all at once, and changes none.

    A selection for `repaired`.

    Attributes:
      damping: as that of `sparsegpt`.
      group: among which weights scores are compared: "layer", "row", or a number of rows.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> sparsegpt_score(damping=0.0)(jnp.array([[1.0, 1.0]]), gram, 0.5, jp.Unstructured())[0].tolist()
      [[0.0, 1.0]]

    References:
      Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774.
    """

    damping: float = 0.01
    group: Group = "layer"

    def __post_init__(self):
        check_damping(self.damping)
        check_group(self.group)

    stat = staticmethod(gram)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`, and `sparsegpt` for the arguments."""
        check_gram(weights, stat)
        found = inverse_factor(stat, self.damping)
        scores = _scores(weights, found.upper, jnp.diagonal(stat) > 0)
        mask = choose(scores, sparsity, structure, self.group)
        return jnp.where(mask, weights, 0), mask, facts(found.damping, found.fallback)


def _scores(weights: jax.Array, upper: jax.Array, alive: jax.Array) -> jax.Array:
    return jnp.where(alive[None, :], jnp.square(weights / jnp.diagonal(upper)[None, :]), 0)
