"""Selection and repair, each by a method of its own."""

import dataclasses
from typing import Any

import jax

from jaxprune.calibration.statistics import Statistic, column_norms, gram
from jaxprune.posttraining._method import Method, Outcome, Repair, Share, together
from jaxprune.posttraining._refit import refit
from jaxprune.posttraining._wanda import wanda
from jaxprune.structures import Structure


@dataclasses.dataclass(frozen=True)
class repaired:
    """The mask of one method, and values for the weights that it keeps from a repair.

    The repair starts at the weights before pruning, whatever the selection has made of them. Wanda's mask with `refit`
    costs no factorisation and has a lower error than SparseGPT.

    Attributes:
      select: the method that chooses the mask.
      repair: `refit()` or `sweep()`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> repaired()(jnp.array([[1.0, 1.0]]), gram, 0.5, jp.Unstructured())[1].tolist()
      [[False, True]]
    """

    select: Method = dataclasses.field(default_factory=wanda)
    repair: Repair = dataclasses.field(default_factory=refit)

    @property
    def stat(self) -> Statistic:
        """The Gram matrix where that is all the selection needs, else `{"select": ..., "repair": gram}`."""
        return gram if self._shares else together((("select", self.select.stat), ("repair", gram)))

    @property
    def _shares(self) -> bool:
        # Who needs norms takes the diagonal of a Gram matrix (`squared_norms`).
        return self.select.stat in (gram, column_norms)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`.

        The facts are those of both, `damping` being that of the repair.
        """
        for_select, for_repair = (stat, stat) if self._shares else (stat["select"], stat["repair"])
        _, mask, chosen = self.select(weights, for_select, sparsity, structure)
        values, made = self.repair(weights, for_repair, mask)
        return values, mask, {**chosen, **made, "fallback": chosen["fallback"] | made["fallback"]}
