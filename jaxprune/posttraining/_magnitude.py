"""Magnitude: the baseline that sees no data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import column_norms
from jaxprune.posttraining._choice import Group, check_group, choose
from jaxprune.posttraining._method import Outcome, Share, facts
from jaxprune.structures import Structure


@dataclasses.dataclass(frozen=True)
class magnitude:
    r"""Prunes the weights of the smallest magnitude $|W_{ij}|$.

    Attributes:
      group: among which weights magnitudes are compared: "layer", "row", or a number of rows.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> weights, mask, _ = magnitude()(jnp.array([[3.0, -1.0], [0.5, -2.0]]), None, 0.5, jp.Unstructured())
      >>> weights.tolist()
      [[3.0, 0.0], [0.0, -2.0]]
    """

    group: Group = "layer"

    def __post_init__(self):
        check_group(self.group)

    stat = staticmethod(column_norms)  # the cheapest: one is always collected

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`. `stat` is unused."""
        del stat
        mask = choose(jnp.abs(weights), sparsity, structure, self.group)
        return jnp.where(mask, weights, 0), mask, facts()
