"""DSnoT: a mask is refined by swaps, and no weight is changed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.statistics import Moments, Statistic, column_norms, moments
from jaxprune.posttraining._method import Method, Outcome, Share, check_positive, facts, together
from jaxprune.posttraining._wanda import activation_scores, wanda
from jaxprune.structures import NM, Structure, Unstructured


@dataclasses.dataclass(frozen=True)
class dsnot:
    r"""Swaps pruned and kept weights of each row, so that its mean output comes closer to that of the dense row.

    The expected error of row i is $e_i = \sum_{j\ \mathrm{pruned}} W_{ij}\, \mathbb{E}[x_j]$. Every cycle revives the
    pruned weight with the largest $\mathrm{sign}(e_i) W_{ij} \mathbb{E}[x_j] / \mathrm{Var}[x_j]^p$, and prunes, among
    the kept weights that lower the error by going, the one with the smallest $|W_{ij}| \lVert X_j \rVert_2$; under
    N:M, both in the same group. A weight moves once. A row ends before a swap that would turn the sign of its error,
    or once $|e_i|$ is small. Counts stay what they are, in every row. Useful where inputs have a mean, as after a ReLU,
    and the layer has no bias: with one, `bias_compensation` takes the whole expected error away.

    Attributes:
      initial: the method whose mask is refined; new values that it gives to weights are not used.
      cycles: the most swaps of a row.
      tolerance: a row ends at $|e_i| \le$ this times $\sqrt{\sum_j W_{ij}^2 \mathbb{E}[x_j^2]}$, the size of its output
        for uncorrelated inputs. (The authors compare with 0.1 in the units of the output.)
      power: the exponent p.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.calibration.statistics import moments
      >>> stat = moments(jnp.array([6 * [0.9], 6 * [1.1]]))
      >>> weights = jnp.array([[3.0, 1.0, 1.0, -0.9, -0.9, -0.9]])
      >>> dsnot()(weights, stat, 0.5, jp.Unstructured())[1].tolist()  # the error was -2.7, and is -0.8
      [[True, False, True, True, False, False]]

    References:
      Zhang et al. 2023, Dynamic Sparse No Training, arXiv 2310.08915.
    """

    initial: Method = dataclasses.field(default_factory=wanda)
    cycles: int = 50
    tolerance: float = 0.01
    power: float = 1.0

    def __post_init__(self):
        check_positive(cycles=self.cycles)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance={self.tolerance}: a fraction of the size of the output, 0 or more (0.01).")

    @property
    def stat(self) -> Statistic:
        """The moments of the inputs; where the initial method needs more, `{"initial": ..., "moments": ...}`."""
        return moments if self._shares else together((("initial", self.initial.stat), ("moments", moments)))

    @property
    def _shares(self) -> bool:
        # The moments hold the squared norms.
        return self.initial.stat in (moments, column_norms)

    def __call__(self, weights: jax.Array, stat: Any, sparsity: Share, structure: Structure) -> Outcome:
        """Prunes one matrix: see `Method`.

        The facts are those of the initial method, and `cycles`, int32.

        Raises:
          ValueError: the structure is none of these two.
        """
        if not isinstance(structure, (Unstructured, NM)):
            raise ValueError(f"structure={structure}: dsnot swaps single weights, under Unstructured() or NM(n, m).")
        about: Moments = stat if self._shares else stat["moments"]
        first = stat if not self._shares else (about.squares if self.initial.stat is column_norms else about)
        _, mask, info = self.initial(weights, first if self._shares else stat["initial"], sparsity, structure)
        group = structure.m if isinstance(structure, NM) else weights.shape[1]
        mask, cycles = self._refine(weights, mask, about, group)
        return jnp.where(mask, weights, 0), mask, {**info, **facts(info["damping"], info["fallback"], cycles=cycles)}

    def _refine(self, weights: jax.Array, mask: jax.Array, about: Moments, group: int) -> tuple[jax.Array, jax.Array]:
        rows, columns = weights.shape
        whole = columns - columns % group
        if not whole:
            return mask, jnp.asarray(0, jnp.int32)
        # Columns after the last whole group are kept, and have no part in it.
        effect = (weights * about.mean[None, :])[:, :whole]
        spread = about.variance[None, :whole] ** self.power
        revival = effect / jnp.where(spread > 0, spread, jnp.finfo(spread.dtype).tiny)
        price = activation_scores(weights, about.squares)[:, :whole]
        power = about.squares / jnp.maximum(about.rows, 1e-30)
        enough = self.tolerance * jnp.sqrt(jnp.sum(jnp.square(weights) * power[None, :], 1, keepdims=True))
        position = jnp.arange(whole, dtype=jnp.int32)[None, :]
        initial = mask[:, :whole]
        error = jnp.sum(jnp.where(initial, 0, effect), 1, keepdims=True)

        def per_group(flags: jax.Array) -> jax.Array:
            return jnp.repeat(flags.reshape(rows, whole // group, group).any(2), group, 1, total_repeat_length=whole)

        def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
            return (state[0] < self.cycles) & jnp.any(state[3])

        def swap(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            count, mask, error, active = state
            sign = jnp.sign(error)
            untouched = mask == initial
            leaves = initial & untouched & (effect * sign < 0)
            returns = ~initial & untouched & (effect * sign > 0) & per_group(leaves)
            revived = jnp.argmax(jnp.where(returns, revival * sign, -jnp.inf), 1, keepdims=True).astype(jnp.int32)
            partners = leaves & (position // group == revived // group)
            pruned = jnp.argmin(jnp.where(partners, price, jnp.inf), 1, keepdims=True).astype(jnp.int32)
            change = jnp.take_along_axis(effect, pruned, 1) - jnp.take_along_axis(effect, revived, 1)
            possible = returns.any(1, keepdims=True)
            active = active & possible & (jnp.abs(error) > enough) & ((error + change) * sign > 0)
            flip = active & ((position == revived) | (position == pruned))
            return count + 1, mask ^ flip, jnp.where(active, error + change, error), active

        start = (jnp.asarray(0, jnp.int32), initial, error, jnp.ones_like(error, dtype=bool))
        count, refined, _, _ = lax.while_loop(unfinished, swap, start)
        return jnp.concatenate([refined, mask[:, whole:]], 1), count
