"""Allocations by one threshold over the scores of all parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import selection
from jaxprune._counts import kept, scaled
from jaxprune._dtypes import at_least_float32
from jaxprune.allocation._layerwise import check_bounds
from jaxprune.allocation._units import Units
from jaxprune.scores._lamp import layer_adaptive


@dataclasses.dataclass(frozen=True)
class Global:
    """One threshold for all parameters.

    Attributes:
      transform: makes the scores of one parameter comparable with those of others; NaN and infinities stay.
      minimum_density: no parameter keeps less than this fraction of its units.
      maximum_density: no parameter keeps more than this fraction of its units.
    """

    transform: Callable[[jax.Array], jax.Array]
    minimum_density: float = 0.0
    maximum_density: float = 1.0

    def __post_init__(self):
        check_bounds(self.minimum_density, self.maximum_density)

    def __call__(
        self, scores: Sequence[jax.Array], units: Sequence[Units], sparsity: Any, progress: jax.Array | None
    ) -> list[jax.Array]:
        """Selects over all parameters that no rule fixes.

        Raises:
          ValueError: the budget cannot be met within the bounds and the fixed sparsities.
        """
        masks: dict[int, jax.Array] = {}
        free: list[int] = []
        spent, total = 0, sum(u.count * u.weight for u in units)
        for i, u in enumerate(units):
            if u.sparsity is None:
                free.append(i)
            else:
                count = scaled(kept(u.sparsity, u.count), u.count, progress)
                masks[i] = selection.top_k_mask(scores[i], count)
                spent = spent + count * u.weight
        if free:
            budget = scaled(kept(sparsity, total), total, progress) - spent
            chosen = self._select([scores[i] for i in free], [units[i] for i in free], budget, progress)
            masks.update(zip(free, chosen, strict=True))
        return [masks[i] for i in range(len(units))]

    def _select(
        self, scores: list[jax.Array], units: list[Units], budget: Any, progress: jax.Array | None
    ) -> list[jax.Array]:
        size = sum(u.count * u.weight for u in units)
        floor = [-(-int(self.minimum_density * u.count * 10**6) // 10**6) for u in units]
        ceiling = [max(int(self.maximum_density * u.count + 1e-6), f) for u, f in zip(units, floor, strict=True)]
        if isinstance(budget, int):
            least = sum(f * u.weight for f, u in zip(floor, units, strict=True))
            most = sum(c * u.weight for c, u in zip(ceiling, units, strict=True))
            if not least <= budget <= most:
                raise ValueError(
                    f"a budget of {budget} kept weights cannot be met by {len(units)} parameters of {size} "
                    f"weights with densities between {self.minimum_density} and {self.maximum_density}. Change the "
                    "sparsity, the bounds, or the sparsities that rules fix."
                )
        comparable = [self.transform(s) for s in scores]
        first = among = None
        if self.minimum_density > 0:
            first = [selection.top_k_mask(s, f) for s, f in zip(comparable, floor, strict=True)]
        if self.maximum_density < 1:
            # On the way to the target the ceiling comes down with the budget, which would not fit under it before.
            ceiling = [scaled(c, u.count, progress) for c, u in zip(ceiling, units, strict=True)]
            among = [selection.top_k_mask(s, c) for s, c in zip(comparable, ceiling, strict=True)]
        weights = [u.weight for u in units]
        return selection.top_k_masks(comparable, budget, among=among, first=first, weights=weights)


def _normalized(scores: jax.Array) -> jax.Array:
    wide = scores.astype(at_least_float32(scores.dtype))
    # NaN and infinities say "rank first" or "rank last"; they would make the others alike.
    norm = jnp.sqrt(jnp.sum(jnp.where(jnp.isfinite(wide), wide, jnp.zeros((), wide.dtype)) ** 2))
    return wide / jnp.where(norm > 0, norm, 1)


global_ = Global(transform=lambda scores: scores)
"""One threshold over the raw scores."""

global_normalized = Global(transform=_normalized)
"""One threshold over the scores, each parameter's divided by their L2 norm."""

lamp = Global(transform=layer_adaptive)
"""One threshold over layer-adaptive scores, `s_u^2 / sum_{v: s_v >= s_u} s_v^2`.

References:
  Lee et al. 2021, arXiv 2010.07611.
"""
