"""Allocations that follow from the shapes: uniform and Erdos-Renyi-Kernel."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import selection
from jaxprune._counts import is_traced, kept, scaled
from jaxprune.allocation._units import Units


@dataclasses.dataclass(frozen=True)
class Layerwise:
    r"""Each parameter gets the density `clip(eps * raw_i, minimum, maximum)`, `eps` such that the budget is met.

    The counts are rounded by largest remainders, so that the weights they keep are the budget to one unit and each
    count is within one of its exact share.

    Attributes:
      raw: relative density of a parameter as a function of its shape.
      minimum_density: lower bound of every density.
      maximum_density: upper bound of every density.
    """

    raw: Callable[[tuple[int, ...]], float]
    minimum_density: float = 0.0
    maximum_density: float = 1.0

    def __post_init__(self):
        check_bounds(self.minimum_density, self.maximum_density)

    def __call__(
        self, scores: Sequence[jax.Array], units: Sequence[Units], sparsity: Any, progress: jax.Array | None
    ) -> list[jax.Array]:
        """Selects within each parameter."""
        counts = self.counts(units, sparsity)
        counts = [scaled(c, u.count, progress) for c, u in zip(counts, units, strict=True)]
        return [selection.top_k_mask(s, c) for s, c in zip(scores, counts, strict=True)]

    def counts(self, units: Sequence[Units], sparsity: Any) -> list[Any]:
        """How many units each parameter keeps.

        Args:
          units: the parameters.
          sparsity: over all of them together; may be traced.

        Returns:
          One count a parameter: host integers for a static sparsity.

        Raises:
          ValueError: the budget cannot be met within the bounds and the fixed sparsities.

        Example:
          >>> uniform.counts([Units("a", (4, 5), 20, 1), Units("b", (2, 5), 10, 1)], 0.5)
          [10, 5]
        """
        free = [u for u in units if u.sparsity is None]
        fixed = {i: kept(u.sparsity, u.count) for i, u in enumerate(units) if u.sparsity is not None}
        if not free:
            return [fixed[i] for i in range(len(units))]
        total = sum(u.count * u.weight for u in units)
        spent = sum(fixed[i] * units[i].weight for i in fixed)
        budget = kept(sparsity, total) - spent
        shares = self._shares(free, budget)
        rest = iter(_round_shares(shares, free))
        return [fixed[i] if i in fixed else next(rest) for i in range(len(units))]

    def _shares(self, free: Sequence[Units], budget: Any) -> Any:
        """Fractional unit counts that spend the budget: a piecewise linear equation, solved at its breakpoints."""
        static = not is_traced(budget)
        xp: Any = np if static else jnp
        sizes = np.array([u.count * u.weight for u in free], np.float64)
        raw = np.array([self.raw(u.shape) for u in free], np.float64)
        low, high = self.minimum_density, self.maximum_density
        if static and not low * sizes.sum() - 1 <= budget <= high * sizes.sum() + 1:
            raise ValueError(
                f"a budget of {budget} kept weights cannot be met by {len(free)} parameters of {int(sizes.sum())} "
                f"weights with densities between {low} and {high}. Change the sparsity, the bounds, or the sparsities "
                "that rules fix."
            )
        breaks = np.sort(np.concatenate([low / raw, high / raw]))
        spent_at = (np.clip(breaks[:, None] * raw[None], low, high) * sizes[None]).sum(1)
        if not static:
            breaks, spent_at = breaks.astype(np.float32), spent_at.astype(np.float32)
            raw, sizes, budget = raw.astype(np.float32), sizes.astype(np.float32), budget.astype(jnp.float32)
        scale = xp.interp(budget, spent_at, breaks)
        weights = np.array([u.weight for u in free], raw.dtype)
        return xp.clip(scale * raw, low, high) * sizes / weights


def _round_shares(shares: Any, units: Sequence[Units]) -> list[Any]:
    """Rounds by largest remainders to what the shares spend, in weights; every count is at least 1."""
    static = not isinstance(shares, jax.Array)
    xp: Any = np if static else jnp
    sizes = xp.array([u.count for u in units], np.int64 if static else np.int32)
    weights = xp.array([u.weight for u in units], shares.dtype)
    # Shares a rounding error below an integer are that integer.
    slack = 1e-9 * np.maximum(1, sizes) if static else 0.0
    counts = xp.clip(xp.floor(shares + slack).astype(sizes.dtype), xp.minimum(sizes, 1), sizes)
    remainders = shares - counts.astype(shares.dtype)

    def one_more(spare: Any, i: Any) -> tuple[Any, Any]:
        # Units differ in weight: one is added where that brings the sum nearer to the budget.
        more = (remainders[i] > 0) & (counts[i] < sizes[i]) & (weights[i] <= 2 * spare)
        return xp.where(more, spare - weights[i], spare), more

    spare, order = xp.round((remainders * weights).sum()), xp.argsort(-remainders)
    if not static:
        return list(counts.at[order].add(jax.lax.scan(one_more, spare, order)[1].astype(counts.dtype)))
    for i in order:
        spare, more = one_more(spare, i)
        counts[i] += more
    return [int(c) for c in counts]


def check_bounds(minimum: float, maximum: float) -> None:
    """Raises where density bounds are not 0 <= minimum <= maximum <= 1."""
    if not 0 <= minimum <= maximum <= 1:
        raise ValueError(
            f"minimum_density={minimum}, maximum_density={maximum}: they must satisfy 0 <= minimum <= maximum <= 1."
        )


uniform = Layerwise(raw=lambda shape: 1.0)
"""The same density for every parameter."""

# Scalars have no dimensions and empty arrays no weights: any density is right for them.
erk = Layerwise(raw=lambda shape: sum(shape) / math.prod(shape) if shape and math.prod(shape) else 1.0)
"""Erdos-Renyi-Kernel: density in proportion to the sum of the dimensions over their product.

References:
  Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv 1911.11134.
"""
