"""The sweep of SparseGPT: columns are pruned one by one, and those to the right make up for each."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import selection
from jaxprune._counts import kept
from jaxprune.posttraining._factorization import inverse_factor
from jaxprune.posttraining._method import check_damping, check_gram, check_positive, facts
from jaxprune.structures import NM

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
# Columns that one fused piece of elementwise code takes; fewer make more steps, more make code that runs slower.
_STRAIGHT = 8
# Up to this size the members of an N:M group are ranked inside that piece of code.
_INLINE_GROUP = 16


@dataclasses.dataclass(frozen=True)
class sweep:
    r"""A repair: SparseGPT's update of the weights for a mask that is given.

    From left to right, each column $j$ is set to zero where the mask prunes it, and all columns right of it move by
    $-\frac{W_{ij}}{U_{jj}} U_{j,:}$, with $U$ the upper triangular factor of the inverse of $G + \lambda I$: the least
    squares answer to that one change. `refit` is better, and slower on a CPU.

    Attributes:
      damping: $\lambda$ as a fraction of the mean of the diagonal of $G$; raised as `inverse_factor` says.
      block_size: how many columns are swept before the rest of the matrix follows.

    Example:
      >>> import jax.numpy as jnp
      >>> gram = jnp.array([[1.0, 1.0], [1.0, 2.0]])
      >>> weights, _ = sweep(damping=0.0)(jnp.array([[1.0, 1.0]]), gram, jnp.array([[False, True]]))
      >>> weights.tolist()  # half of the first input is in the second
      [[0.0, 1.5]]

    References:
      Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774.
    """

    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self):
        check_damping(self.damping)
        check_positive(block_size=self.block_size)

    def __call__(self, weights: jax.Array, gram: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Repairs one weight matrix: see `Repair`."""
        check_gram(weights, gram)
        found = inverse_factor(gram, self.damping)
        alive = jnp.diagonal(gram) > 0
        swept, _ = sweep_columns(weights, found.upper, alive, self.block_size, mask=mask)
        return swept, facts(found.damping, found.fallback)


def sweep_columns(
    weights: jax.Array,
    upper: jax.Array,
    alive: jax.Array,
    block_size: int,
    *,
    mask: jax.Array | None = None,
    pattern: NM | None = None,
    sparsity: Any = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Sweeps over the columns, under a mask that is given or one that is chosen on the way.

    The matrix is held transposed, so that a column is contiguous, and shapes are the same at each step: as $U$ is
    upper triangular, an update over the full width leaves finished columns alone. Inside a block, some columns at a
    time are swept by elementwise code alone, and one product passes their effect on; so does one for each block.

    Args:
      weights: float32[out, K].
      upper: float32[K, K], of `inverse_factor`.
      alive: bool[K]; the weights of other columns are zero for the sweep, and as they were where they are kept.
      block_size: columns of a block; rounded up to whole groups of the pattern.
      mask: bool[out, K]; None chooses by the highest $(W_{ij} / U_{jj})^2$ of the weights updated so far.
      pattern: N:M, chosen when the first column of a group is reached.
      sparsity: without mask and pattern: the weights of a block of columns compete when it is reached. Counts are
        rounded from the left edge, so that the total is that of the layer.

    Returns:
      The new weights and the mask.
    """
    rows, columns = weights.shape
    n, group = (pattern.n, pattern.m) if pattern is not None and mask is None else (1, 1)
    straight = group * max(_STRAIGHT // group, 1)
    if group > _INLINE_GROUP:
        # A group is a block of its own: its columns are up to date when the block is reached.
        straight, block = math.gcd(group, _STRAIGHT), group
    else:
        block = math.ceil(min(block_size, columns) / straight) * straight
    padding = -columns % block
    width = columns + padding
    blocks = width // block

    diagonal = jnp.pad(jnp.diagonal(upper), (0, padding), constant_values=1)
    # Rows scaled to a unit diagonal: the error of a pruned weight is then its value.
    unit = jnp.pad(upper / jnp.diagonal(upper)[:, None], ((0, padding), (0, padding)))
    dense = jnp.pad(jnp.where(alive[None, :], weights, 0).T, ((0, padding), (0, 0)))
    fixed = None if mask is None else jnp.pad(mask.T, ((0, padding), (0, 0)), constant_values=True)
    whole = columns - columns % group
    ends = [min((i + 1) * block, columns) for i in range(blocks)]
    counts = None if mask is not None or pattern is not None else _block_counts(sparsity, ends, rows)

    def sweep_block(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        matrix, keep = state
        first = i * block
        part = lax.dynamic_slice_in_dim(matrix, first, block)
        scales = lax.dynamic_slice_in_dim(diagonal, first, block)
        couplings = lax.dynamic_slice_in_dim(unit, first, block)
        inner = lax.dynamic_slice_in_dim(couplings, first, block, axis=1)
        if fixed is not None:
            chosen = lax.dynamic_slice_in_dim(fixed, first, block)
        elif counts is not None:
            scores = jnp.square(part / scales[:, None])
            among = jnp.broadcast_to((first + jnp.arange(block) < columns)[:, None], scores.shape)
            chosen = selection.top_k_mask(scores, counts[i], among=among)
        elif group > _INLINE_GROUP:
            chosen = NM(n, group, axis=0).select(jnp.square(part / scales[:, None]))
            chosen = chosen | (first + block > whole)
        else:
            chosen = None

        # Read in each step as floats: XLA's code for a CPU is slow where bools and floats meet.
        drops = None if chosen is None else (~chosen).astype(part.dtype)

        def sweep_some(part: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
            columns_of = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=straight)
            coupling = columns_of(inner)
            among_them = columns_of(coupling, axis=1)
            values, scale = list(columns_of(part)), columns_of(scales)
            dropped = [] if drops is None else [drop > 0 for drop in columns_of(drops)]
            errors: list[jax.Array] = []
            for j in range(straight):
                if drops is None and j % group == 0:
                    scores = [jnp.square(values[j + t] / scale[j + t]) for t in range(group)]
                    dropped += _lower(scores, n)
                    if whole < columns:  # costs as much as the choice itself
                        inside = first + start + j + group <= whole
                        dropped[j:] = [drop & inside for drop in dropped[j:]]
                errors.append(jnp.where(dropped[j], values[j], 0))
                for t in range(j + 1, straight):
                    values[t] = values[t] - among_them[j, t] * errors[j]
            error = jnp.stack(errors)
            kept = None if drops is not None else ~jnp.stack(dropped)
            return part - _matmul(coupling.T, error), (error, kept)

        part, (error, made) = lax.scan(sweep_some, part, jnp.arange(0, block, straight))
        error = error.reshape(block, rows)
        chosen = made.reshape(block, rows) if chosen is None else chosen
        matrix = matrix - _matmul(couplings.T, error)
        matrix = lax.dynamic_update_slice_in_dim(matrix, jnp.where(chosen, part, 0), first, 0)
        return matrix, lax.dynamic_update_slice_in_dim(keep, chosen, first, 0)

    start = (dense, jnp.ones_like(dense, dtype=bool))
    swept, keep = lax.fori_loop(0, blocks, sweep_block, start)
    keep = keep[:columns].T
    swept = jnp.where(alive[None, :], swept[:columns].T, weights)
    return jnp.where(keep, swept, 0), keep


def _block_counts(sparsity: Any, ends: Sequence[int], rows: int) -> jax.Array:
    """int32[blocks]: kept weights of each block of columns, which sum to the kept count of the layer."""
    through = [kept(sparsity, end * rows) for end in ends]
    counts = [after - before for before, after in itertools.pairwise([0, *through])]
    return jnp.stack([jnp.asarray(count, jnp.int32) for count in counts])


def _lower(scores: Sequence[jax.Array], n: int) -> list[jax.Array]:
    """Marks all but the `n` highest of some arrays at every place, by elementwise code; ties go to the earlier."""
    lower = []
    for i, mine in enumerate(scores):
        above = [(other >= mine) if j < i else (other > mine) for j, other in enumerate(scores) if j != i]
        rank = sum((flag.astype(jnp.int32) for flag in above), jnp.zeros(mine.shape, jnp.int32))
        lower.append(rank >= n)
    return lower
