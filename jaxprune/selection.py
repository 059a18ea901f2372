"""Exact selection of the k highest scores by counting, without a sort.

Scores become signed integers of the same order and the same width. The k-th highest is then the largest integer
`t` at which at least `k` keys are `>= t`; it is found by narrowing a bracket with exact counts. A count needs no
gather of a sharded array, no copy of a concatenation and takes a traced `k`, which a sort does not. Guesses by
interpolation on the counts make the search short, bisection in between makes it sure; neither can make it wrong.

Order: NaN ranks highest (a broken weight stays visible), then infinity and so on; `-0.0` equals `0.0`; ties go to
the lowest flat index, and between leaves to the earlier leaf.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _sharding
from jaxprune._counts import count_dtype
from jaxprune._dtypes import widest
from jaxprune._versions import vary_as

# Partial sums of at most this many booleans fit into an int8, which XLA:CPU vectorises (0.2 ns a weight against
# 1.7 for a plain int32 sum, measured on two cores).
_PARTIAL = 32
# Every third guess is a bisection, so that the search is short whatever the distribution of the scores.
_BISECT_EVERY = 3


def top_k_mask(
    scores: jax.Array, k: int | jax.Array, *, among: jax.Array | None = None, first: jax.Array | None = None
) -> jax.Array:
    r"""Marks the `k` highest of all scores of one array.

    Args:
      scores: floating array of any shape.
      k: how many to mark, between 0 and `scores.size`; may be traced.
      among: bool array; other entries rank below all of these.
      first: bool array; these entries rank above all others.

    Returns:
      A bool array of the shape and sharding of `scores` with exactly `k` entries True.

    Raises:
      ValueError: a static `k` lies outside 0 to `scores.size`.

    Example:
      >>> import jax.numpy as jnp
      >>> top_k_mask(jnp.array([0.1, 3.0, 2.0, 2.0]), 2).tolist()
      [False, True, True, False]
    """

    def alone(flags: jax.Array | None) -> list[jax.Array] | None:
        return None if flags is None else [flags]

    return top_k_masks([scores], k, among=alone(among), first=alone(first))[0]


def top_k_masks(
    scores: Sequence[jax.Array],
    k: int | jax.Array,
    *,
    among: Sequence[jax.Array] | None = None,
    first: Sequence[jax.Array] | None = None,
    weights: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Marks the `k` highest scores of many arrays at once, under one threshold, without concatenating them.

    Args:
      scores: floating arrays; they are compared in the widest of their dtypes.
      k: how many to mark in total; may be traced.
      among: as in `top_k_mask`, one array a leaf.
      first: as in `top_k_mask`, one array a leaf.
      weights: what one entry of each leaf counts for (a channel of 64 weights counts 64); 1 by default.

    Returns:
      Bool arrays shaped like `scores`; exactly `k` entries are True in total, or, under weights, as many as
      come within one entry of `k`.

    Raises:
      ValueError: a static `k` is out of range, or there are more scores than an int32 can count.

    Example:
      >>> import jax.numpy as jnp
      >>> [m.tolist() for m in top_k_masks([jnp.array([1.0, 4.0]), jnp.array([3.0])], 2)]
      [[False, True], [True]]
    """
    weights = [1] * len(scores) if weights is None else list(weights)
    total = sum(w * math.prod(s.shape) for w, s in zip(weights, scores, strict=True))
    dtype_of_counts = count_dtype(total, "scores")
    if isinstance(k, (int, np.integer)) and not 0 <= k <= total:
        raise ValueError(f"k={k} of {total} scores; k must lie between 0 and the number of scores.")
    dtype = widest(s.dtype for s in scores)
    empty = [None] * len(scores)
    return _select(
        [s.astype(dtype) for s in scores],
        jnp.asarray(k, dtype_of_counts),
        list(among) if among is not None else empty,
        list(first) if first is not None else empty,
        tuple(weights),
    )


@functools.partial(jax.jit, static_argnames="weights")
def _select(
    scores: list[jax.Array],
    k: jax.Array,
    among: list[jax.Array | None],
    first: list[jax.Array | None],
    weights: tuple[int, ...],
) -> list[jax.Array]:
    keys = [_rank(order_keys(s), a, f) for s, a, f in zip(scores, among, first, strict=True)]
    total = sum(weight * key.size for weight, key in zip(weights, keys, strict=True))

    def count(t: jax.Array) -> jax.Array:
        return _weighted_count([key >= t for key in keys], weights, k.dtype)

    threshold = _kth_highest(count, k, total, keys)
    at_least = count(threshold)

    def resolve_ties() -> list[jax.Array]:
        return _break_ties(keys, threshold, k, weights)

    # Distinct scores need no second search; the branch costs one pass where they do not.
    return lax.cond(at_least == k, lambda: [key >= threshold for key in keys], resolve_ties)


def row_top_k_mask(scores: jax.Array, k: int | jax.Array) -> jax.Array:
    """Marks the `k` highest scores of each row along the last axis.

    Args:
      scores: floating array `(..., n)`.
      k: how many to mark in each row, `0 <= k <= n`; may be traced.

    Returns:
      A bool array of the shape of `scores`, `k` entries True in each row.

    Raises:
      ValueError: a static `k` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> row_top_k_mask(jnp.array([[1.0, 2.0, 2.0], [9.0, 8.0, 7.0]]), 1).tolist()
      [[False, True, False], [True, False, False]]
    """
    n = scores.shape[-1]
    if isinstance(k, (int, np.integer)) and not 0 <= k <= n:
        raise ValueError(f"k={k} of rows of {n} scores; k must lie between 0 and {n}.")
    return row_top_k_of_keys(order_keys(scores), k)


@jax.jit
def row_top_k_of_keys(keys: jax.Array, k: int | jax.Array) -> jax.Array:
    """Like `row_top_k_mask`, of integer keys."""
    n = keys.shape[-1]
    wanted = jnp.asarray(k, jnp.int32)

    def count(t: jax.Array) -> jax.Array:
        return jnp.sum(keys >= t, axis=-1, keepdims=True, dtype=jnp.int32)

    threshold = _kth_highest(count, wanted, n, [keys], like=jnp.max(keys, axis=-1, keepdims=True))
    above, equal = keys > threshold, keys == threshold
    room = wanted - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
    return above | (equal & (jnp.cumsum(equal, axis=-1, dtype=jnp.int32) <= room))


def order_keys(scores: jax.Array) -> jax.Array:
    """Maps floats to signed integers of the same order; NaN becomes the second highest integer.

    The highest and the lowest integer stay free for entries that are to rank before or after all scores.

    Args:
      scores: float array; 8-bit floats are widened.

    Returns:
      An integer array of the same shape, 16, 32 or 64 bits wide.

    Raises:
      TypeError: the scores are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> keys = order_keys(jnp.array([-1.0, -0.0, 0.0, jnp.inf, jnp.nan]))
      >>> bool((jnp.diff(keys) >= 0).all()), int(keys[1]) == int(keys[2])
      (True, True)
    """
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores of dtype {scores.dtype} cannot be ranked; give a floating dtype.")
    if scores.dtype.itemsize == 1:
        scores = scores.astype(jnp.float32)
    integer = jnp.dtype(f"int{8 * scores.dtype.itemsize}")
    bits = lax.bitcast_convert_type(scores, integer)
    highest = np.array(jnp.iinfo(integer).max, integer)
    infinity = np.array(np.inf, scores.dtype).view(integer)
    magnitude = bits & highest
    # Integer tests only: the float unit may flush subnormal numbers to zero.
    keys = jnp.where(bits < 0, ~magnitude, magnitude)
    keys = jnp.where(magnitude == 0, jnp.zeros_like(keys), keys)
    return jnp.where(magnitude > infinity, highest - np.array(1, integer), keys)


def _rank(keys: jax.Array, among: jax.Array | None, first: jax.Array | None) -> jax.Array:
    limits = jnp.iinfo(keys.dtype)
    if among is not None:
        keys = jnp.where(among, keys, jnp.asarray(limits.min, keys.dtype))
    if first is not None:
        keys = jnp.where(first, jnp.asarray(limits.max, keys.dtype), keys)
    return keys


def _kth_highest(
    count: Callable[[jax.Array], jax.Array],
    k: jax.Array,
    total: int,
    keys: Sequence[jax.Array],
    like: jax.Array | None = None,
) -> jax.Array:
    """The largest key with `count(key) >= k`, or an earlier one with `count(key) == k`.

    `keys` are what is counted; `like` gives the shape and the sharding of many searches at once. Values are not read.
    """
    dtype = keys[0].dtype
    like = jnp.zeros((), dtype) if like is None else like
    limits = jnp.iinfo(dtype)
    # Invariant: count(low) >= k, and count(high + 1) < k with `above` its value.
    low = jnp.full_like(like, limits.min, dtype)
    high = jnp.full_like(like, limits.max, dtype)
    at_low = jnp.full_like(like, total, k.dtype)
    above = jnp.zeros_like(like, k.dtype)

    def unfinished(low: jax.Array, high: jax.Array, at_low: jax.Array) -> jax.Array:
        return (low < high) & (at_low != k)

    def narrow(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, low, high, at_low, above = state
        # Midpoint rounded up, without overflow: low < middle <= high.
        middle = (low | high) - ((low ^ high) >> 1)
        bracket = (at_low - above).astype(jnp.float32)
        # Aim a little to either side of k in turn, so that both ends of the bracket close in.
        margin = jnp.where(step % 2 == 0, 0.5, -0.5) * jnp.sqrt(bracket)
        fraction = ((at_low - k).astype(jnp.float32) + margin) / jnp.maximum(bracket, 1.0)
        width = high.astype(jnp.float32) - low.astype(jnp.float32)
        offset = jnp.clip(fraction, 0.0, 1.0) * width
        guess = low + jnp.clip(offset, 1.0, float(limits.max // 2)).astype(dtype)
        guess = jnp.where((guess > low) & (guess <= high), guess, middle)
        bisect = (step % _BISECT_EVERY == 0) | (width > float(limits.max // 2))
        guess = jnp.where(bisect, middle, guess)
        counted = count(guess)
        enough, active = counted >= k, unfinished(low, high, at_low)
        return (
            step + 1,
            jnp.where(active & enough, guess, low),
            jnp.where(active & ~enough, guess - jnp.ones((), dtype), high),
            jnp.where(active & enough, counted, at_low),
            jnp.where(active & ~enough, counted, above),
        )

    state = (jnp.zeros((), jnp.int32), *vary_as((low, high, at_low, above), keys, k))
    return lax.while_loop(lambda s: jnp.any(unfinished(s[1], s[2], s[3])), narrow, state)[1]


def _break_ties(keys: list[jax.Array], threshold: jax.Array, k: jax.Array, weights: tuple[int, ...]) -> list[jax.Array]:
    """Keeps all keys above the threshold and, of those equal to it, the first by leaf and flat index."""
    above = [key > threshold for key in keys]
    room = k - _weighted_count(above, weights, k.dtype)
    masks = []
    for mine, key, weight in zip(above, keys, weights, strict=True):
        tied = key == threshold
        here = _count_true(tied, k.dtype)
        # Under weights the room may be no whole number of entries: the nearest is taken.
        take = jnp.clip((room + weight // 2) // weight, 0, here)
        masks.append(mine | (tied & _first_true(tied, take)))
        room = room - take * weight
    return masks


def _weighted_count(flags: Sequence[jax.Array], weights: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    counts = [_count_true(flag, dtype) * weight for flag, weight in zip(flags, weights, strict=True)]
    return sum(counts, jnp.zeros((), dtype))


def _first_true(flags: jax.Array, take: jax.Array) -> jax.Array:
    """Marks a prefix (by flat index) that holds exactly `take` of the flags, found by bisection on the index."""
    dtype = take.dtype
    index = jnp.zeros(flags.shape, dtype)
    stride = 1
    for axis in reversed(range(flags.ndim)):
        index = index + lax.broadcasted_iota(dtype, flags.shape, axis) * jnp.asarray(stride, dtype)
        stride *= flags.shape[axis]

    def narrow(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = low + (high - low) // 2
        enough = _count_true(flags & (index < middle), dtype) >= take
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    start = vary_as((jnp.zeros((), dtype), jnp.asarray(flags.size, dtype)), flags, take)
    end, _ = lax.while_loop(lambda s: s[0] < s[1], narrow, start)
    return index < end


def _count_true(flags: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Counts in partial sums of small integers over one axis; other axes may be sharded."""
    axis = max(flags.ndim - 2, 0)
    part = _partial_size(flags.shape[axis], _sharding.axis_shards(flags, axis)) if flags.ndim else 1
    if part > 1:
        small = jnp.sum(_sharding.split_axis(flags, axis, part).astype(jnp.int8), axis=axis + 1, dtype=jnp.int8)
        # XLA would fold both sums into one slow int32 sum.
        return jnp.sum(lax.optimization_barrier(small), dtype=dtype)
    return jnp.sum(flags, dtype=dtype)


def _partial_size(size: int, shards: int) -> int:
    """The largest divisor up to `_PARTIAL` that leaves at least as many groups as common meshes have shards."""
    candidates = [d for d in range(2, _PARTIAL + 1) if size % (d * shards) == 0]
    even = [d for d in candidates if (size // d) % 64 == 0 or (size // d) % math.gcd(size, 64) == 0]
    return max(even or ([] if size % 8 == 0 else candidates), default=1)
