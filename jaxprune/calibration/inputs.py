"""Statistics of what a matrix is multiplied with: the data operand of a dot or a convolution as rows of features."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import _sharding
from jaxprune.calibration.statistics import Statistic
from jaxprune.tracing.inputs import Input, data_axes, data_span, ragged_axes, row_shape, site_shape
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.sites import CONVOLUTION, RAGGED_DOT, Site

# Patches of a convolution repeat each element once a tap: above this many of them they are made in parts.
_MAX_PATCHES = 2**25


def _met(x: Any, site: Site) -> jax.Array:
    """What a parameter is multiplied with, out of the data operand."""
    x, span = jnp.asarray(x), data_span(site)
    return x if span is None else lax.slice_in_dim(x, span.start, span.stop, axis=span.axis)


def measure(
    source: Input, operands: Sequence[Any], stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    """The statistic of an input, and how many rows it had.

    Args:
      source: the input.
      operands: those of its node.
      stat: the statistic.
      row_weights: what each row counts for, over the leading axes of the data; None for 1.

    Returns:
      float32[*batch], and the value of the statistic.

    Raises:
      ValueError: the weights do not fit the rows.
    """
    site = source.site
    if site.kind == CONVOLUTION:
        return _measure_convolution(source, operands[0], stat, row_weights)
    if site.kind == RAGGED_DOT:
        return _measure_groups(source, operands, stat, row_weights)
    x = _met(operands[1 - site.operand], site)
    contract, batch = data_axes(site)
    x = jnp.transpose(x, (*batch, *free_axes(x.ndim, contract, batch), *contract))
    rows = math.prod(row_shape(site))
    x = x.reshape(*x.shape[: len(batch)], rows, math.prod(x.shape[x.ndim - len(contract) :]))
    return _apply(stat, x, _row_weights(row_weights, source))


def rows_of(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The rows themselves, each times the root of its weight: no sum, so that convolutions give them whole."""
    x = x.astype(jnp.float32)
    return x if weights is None else x * jnp.sqrt(weights)[..., None]


def _apply(stat: Statistic, x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, Any]:
    if weights is None:
        return jnp.full(x.shape[:-2], x.shape[-2], jnp.float32), stat(x, None)
    weights = jnp.broadcast_to(weights, x.shape[:-1])
    return jnp.sum(weights, -1), stat(x, weights)


def _measure_convolution(
    source: Input, x: jax.Array, stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    params = source.node.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = site_shape(source.node, 1)
    window = [kernel[k] for k in numbers.rhs_spec[2:]]
    spatial = "DHWXYZ"[: len(window)]
    x = jnp.transpose(_met(x, source.site), numbers.lhs_spec)
    features = x.shape[1] // groups

    def rows(part: jax.Array) -> jax.Array:
        patches = lax.conv_general_dilated_patches(
            part,
            window,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=("NC" + spatial, "OI" + spatial, "NC" + spatial),
            precision=lax.Precision.HIGHEST,
        )
        # Patches come as (features, *window); matrices have them as (*window, features), as kernels do.
        batch, taps, positions = part.shape[0], math.prod(window), math.prod(patches.shape[2:])
        split = (batch, groups, features, taps, positions)
        patches = lax.reshape(patches, split, out_sharding=_sharding.leading(patches, 1, 5))
        patches = patches.transpose(1, 0, 4, 3, 2)
        merged = (groups, batch * positions, taps * features)
        return lax.reshape(patches, merged, out_sharding=_sharding.leading(patches, 2, 3))

    parts = -(-math.prod(row_shape(source.site)) * math.prod(window) * features * groups // _MAX_PATCHES)
    parts = next(n for n in range(min(max(parts, 1), x.shape[0]), x.shape[0] + 1) if x.shape[0] % n == 0)
    weights = _row_weights(row_weights, source)

    def one(part: jax.Array, weights: jax.Array | None) -> Any:
        found = _apply(stat, rows(part), weights)
        return found if groups > 1 else jax.tree.map(lambda value: value[0], found)

    if parts == 1 or stat is rows_of:
        return one(x, weights)

    def split(array: jax.Array) -> jax.Array:
        # Every part takes examples of each shard, so that none moves.
        return jnp.moveaxis(_sharding.split_axis(array, 0, parts), 1, 0)

    def add_part(total: Any, part: Any) -> tuple[Any, None]:
        part, weights = part
        return jax.tree.map(jnp.add, total, one(part, None if weights is None else weights.reshape(-1))), None

    each = split(x), None if weights is None else split(weights.reshape(x.shape[0], -1))
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, x, weights))
    return lax.scan(add_part, start, each)[0]


def _measure_groups(
    source: Input, operands: Sequence[Any], stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    free, contract = ragged_axes(source.node)
    x, sizes, shape = jnp.asarray(operands[0]), operands[2], row_shape(source.site)
    x = jnp.transpose(x, (*free, *contract)).reshape(math.prod(shape), -1)
    weights = _row_weights(row_weights, source)
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(shape[0], dtype=sizes.dtype), side="right")

    def of_group(k: jax.Array) -> Any:
        member = jnp.broadcast_to((group == k).astype(jnp.float32).reshape(-1, *[1] * (len(shape) - 1)), shape)
        mine = member.reshape(-1)
        return _apply(stat, x, mine if weights is None else mine * weights)

    return lax.map(of_group, jnp.arange(sizes.shape[0], dtype=group.dtype))


def covered_axes(weights: tuple[int, ...], rows: tuple[int, ...]) -> int | None:
    """How many leading axes of the rows weights of a shape run along, some of them merged; None where they do not."""
    left = list(weights)
    used = 0
    for size in rows:
        merged = 1
        while left and merged < size:
            merged *= left.pop(0)
        while left and left[0] == 1:
            left.pop(0)
        if merged != size:
            break
        used += 1
        if not left:
            break
    return None if left or math.prod(rows[:used]) != math.prod(weights) else used


def _row_weights(weights: jax.Array | None, source: Input) -> jax.Array | None:
    """Weights over leading axes, spread over all rows: float32[rows]."""
    if weights is None:
        return None
    shape = row_shape(source.site)
    used = covered_axes(weights.shape, shape)
    if used is None:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit the rows of {source.site.path!r} ({source.site.source}), "
            f"whose axes are {shape}: they must be its leading axes. Leave the parameter out with `where`, or "
            "calibrate without weights."
        )
    flat = weights.astype(jnp.float32).reshape(-1, 1)
    return jnp.broadcast_to(flat, (flat.shape[0], math.prod(shape[used:]))).reshape(-1)
