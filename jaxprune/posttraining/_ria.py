"""RIA: relative importance and activations, and the channel permutation that goes with it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import column_norms
from jaxprune.posttraining._choice import Group, check_group, choose
from jaxprune.posttraining._method import Outcome, Share, facts, squared_norms
from jaxprune.structures import Structure


@dataclasses.dataclass(frozen=True)
class ria:
    r"""Prunes by the weight relative to its row and its column, times a power of the norm of its input.

    $$ \Big(\frac{|W_{ij}|}{\sum_i |W_{ij}|} + \frac{|W_{ij}|}{\sum_j |W_{ij}|}\Big) \lVert X_j \rVert_2^{a} $$

    so that no input and no output loses all of its weights.

    Attributes:
      power: the exponent a of the norm.
      group: among which weights scores are compared: "layer", "row", or a number of rows.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> weights = jnp.array([[4.0, 2.0], [4.0, 0.1], [4.0, 0.1]])  # 2.0 is nearly all of the second input
      >>> ria()(weights, jnp.ones(2), 0.5, jp.Unstructured())[1].tolist()
      [[False, True], [True, False], [True, False]]

    References:
      Zhang et al. 2024, Plug-and-Play: An Efficient Post-Training Pruning Method for Large Language Models, ICLR.
    """

    power: float = 0.5
    group: Group = "layer"

    def __post_init__(self):
        check_group(self.group)
        if not self.power >= 0:
            raise ValueError(f"power={self.power}: the exponent of the norm of an input, 0 or more (0.5).")

    stat = staticmethod(column_norms)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`. The statistic may also be a Gram matrix."""
        mask = choose(relative_scores(weights, stat, self.power), sparsity, structure, self.group)
        return jnp.where(mask, weights, 0), mask, facts()


def relative_scores(weights: jax.Array, stat: jax.Array, power: float) -> jax.Array:
    """The score of `ria`, float32[out, K]; zero in columns and rows that are all zero."""
    size = jnp.abs(weights)
    columns, rows = size.sum(0, keepdims=True), size.sum(1, keepdims=True)
    relative = size / jnp.where(columns > 0, columns, 1) + size / jnp.where(rows > 0, rows, 1)
    norms = jnp.sqrt(squared_norms(stat))
    # A column without input ranks last at any power, also at 0.
    return relative * jnp.where(norms > 0, norms**power, 0)[None, :]


def channel_permutation(scores: jax.Array, m: int) -> jax.Array:
    """An order of the inputs that spreads those of high scores over the groups of N:M.

    Columns are sorted by their sum and cut to `m` strips; every group gets one column of each strip, and every other
    strip is dealt backwards. `W[:, permutation]` has the better groups. Its inputs must come in the same order, so
    whatever produces them is permuted as well: the output channels of the layers before, and every other layer that
    reads them. A mask chosen in the new order does not have the N:M pattern in the old one.

    Args:
      scores: float32[out, K], as of `ria` or `wanda`.
      m: the group size.

    Returns:
      int32[K], the old column at each new place. Columns that fill no group, which N:M leaves dense, come last; they
      are those of the highest scores.

    Raises:
      ValueError: `m` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> channel_permutation(jnp.array([[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]), 4).tolist()
      [7, 4, 3, 0, 6, 5, 2, 1]

    References:
      Zhang et al. 2024, Plug-and-Play: An Efficient Post-Training Pruning Method for Large Language Models, ICLR.
    """
    if m < 1:
        raise ValueError(f"m={m}: the group size of N:M, 1 or more.")
    order = jnp.argsort(scores.sum(0)).astype(jnp.int32)
    groups = order.shape[0] // m
    strips = order[: groups * m].reshape(m, groups)
    backwards = (jnp.arange(m) % 2 == 1)[:, None]
    return jnp.concatenate([jnp.where(backwards, strips[:, ::-1], strips).T.reshape(-1), order[groups * m :]])
