"""Wanda: weights and activations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import column_norms
from jaxprune.posttraining._choice import Group, check_group, choose
from jaxprune.posttraining._method import Outcome, Share, facts, squared_norms
from jaxprune.structures import Structure


@dataclasses.dataclass(frozen=True)
class wanda:
    r"""Prunes the smallest $|W_{ij}| \, \lVert X_j \rVert_2$: weight times the norm of its input. No weight is changed.

    That is the exact error of pruning one weight alone. Weights of a column without any input come first.

    Attributes:
      group: among which weights scores are compared. The authors compare within a row of a language model, and within
        a layer of an image classifier.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> weights, norms = jnp.array([[3.0, -1.0], [0.5, -2.0]]), jnp.array([1.0, 16.0])
      >>> wanda()(weights, norms, 0.5, jp.Unstructured())[0].tolist()
      [[0.0, -1.0], [0.0, -2.0]]

    References:
      Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695.
    """

    group: Group = "row"

    def __post_init__(self):
        check_group(self.group)

    stat = staticmethod(column_norms)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`. The statistic may also be a Gram matrix."""
        mask = choose(activation_scores(weights, stat), sparsity, structure, self.group)
        return jnp.where(mask, weights, 0), mask, facts()


def activation_scores(weights: jax.Array, stat: jax.Array) -> jax.Array:
    r"""$|W_{ij}| \, \lVert X_j \rVert_2$, float32[out, K]."""
    return jnp.abs(weights) * jnp.sqrt(squared_norms(stat))[None, :]
