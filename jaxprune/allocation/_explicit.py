"""An explicit sparsity for every parameter."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune import trees
from jaxprune._counts import check_sparsity
from jaxprune.allocation._layerwise import uniform
from jaxprune.allocation._units import Units


@dataclasses.dataclass(frozen=True)
class explicit:
    """Sparsities by hand: a tree (or prefix) with the structure of the parameters.

    Attributes:
      sparsities: a pytree of numbers in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> explicit({"a": 0.5, "b": 0.0}).by_path({"a": [jnp.ones(2), jnp.ones(3)], "b": jnp.ones(4)})
      {'a/0': 0.5, 'a/1': 0.5, 'b': 0.0}
    """

    sparsities: Any

    def by_path(self, params: trees.PyTree) -> dict[str, float]:
        """The sparsity of each parameter by its path.

        Raises:
          ValueError: the tree does not fit, or a sparsity is out of range.
        """
        values = jax.tree.leaves(trees.broadcast_prefix(self.sparsities, params, "the tree of sparsities"))
        named = dict(zip(trees.paths(params), values, strict=True))
        for path, value in named.items():
            check_sparsity(value, f"sparsity of {path}")
        return named

    def __call__(
        self, scores: Sequence[jax.Array], units: Sequence[Units], sparsity: Any, progress: jax.Array | None
    ) -> list[jax.Array]:
        """Selects within each parameter; `compute_masks` has put the sparsities into `units`."""
        return uniform(scores, units, sparsity, progress)
