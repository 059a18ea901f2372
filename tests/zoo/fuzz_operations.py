"""The operations that random programs are made of: layers, and what moves channels about."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.fuzz_programs import Builder, Params, Value, along, letters, project


def dense(b: Builder, v: Value) -> Value:
    return project(b, v, b.choose(4, 6, 8))


def convolution(b: Builder, v: Value) -> Value | None:
    """1 or 3 wide, in one group, several, or one for each channel; the kernel in either layout."""
    if not v.space:
        return None
    rank, count = len(v.shape), len(v.space)
    groups = b.choose(1, 1, 2, 4, v.channels)
    if v.channels % groups:
        return None
    width = b.choose(1, 2) * v.channels if groups == v.channels else b.choose(4, 8)
    window, inner = (b.choose(1, 3),) * count, v.channels // groups
    first = b.chance()
    kernel = b.param(
        *((width, inner, *window) if first else (*window, inner, width)), scale=1.2 / np.sqrt(inner * np.prod(window))
    )
    numbers = lax.ConvDimensionNumbers(
        (0, v.axis, *v.space),
        tuple(range(rank)) if first else (rank - 1, rank - 2, *range(count)),
        (0, v.axis, *v.space),
    )

    def step(params: Params, args: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x, params[kernel], (1,) * count, "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    return b.emit(step, v, axis=v.axis)


def pointwise(b: Builder, v: Value) -> Value:
    function = b.choose(jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.silu, jax.nn.sigmoid, jnp.abs, jnp.square, jnp.cos)
    return b.emit(lambda params, args, x: function(x), v, axis=v.axis)


def residual(b: Builder, v: Value) -> Value | None:
    other = b.partner(v)
    if other is None:
        return None
    return b.emit(lambda params, args, x, y: x + 0.5 * y, v, other, axis=v.axis)


def gate(b: Builder, v: Value) -> Value:
    other = project(b, v, v.channels)
    return b.emit(lambda params, args, x, y: x * jax.nn.sigmoid(y), v, other, axis=v.axis)


def glu(b: Builder, v: Value) -> Value:
    wide = project(b, v, b.choose(8, 12))

    def step(params: Params, args: Any, x: Any) -> Any:
        a, c = jnp.split(x, 2, axis=v.axis)
        return jax.nn.silu(a) * c

    return b.emit(step, wide, axis=v.axis)


def concatenate(b: Builder, v: Value) -> Value | None:
    other = b.partner(v, same_channels=False) or project(b, v, b.choose(2, 4))
    return b.emit(lambda params, args, x, y: jnp.concatenate([x, y], v.axis), v, other, axis=v.axis)


def take(b: Builder, v: Value) -> Value:
    """A run of channels, or one of every two."""
    if v.channels % 2 == 0 and b.chance(0.4):
        begin = b.choose(0, 1)
        return b.emit(lambda params, args, x: lax.slice_in_dim(x, begin, v.channels, 2, v.axis), v, axis=v.axis)
    first = int(b.random.integers(0, v.channels // 2))
    last = int(b.random.integers(first + 2, v.channels + 1)) if first + 2 < v.channels else v.channels
    return b.emit(lambda params, args, x: lax.slice_in_dim(x, first, last, 1, v.axis), v, axis=v.axis)


def parts(b: Builder, v: Value) -> Value | None:
    """Cut at two points, each part treated in its own way, and joined in another order."""
    if v.channels < 3:
        return None
    points = sorted(b.random.choice(np.arange(1, v.channels), 2, replace=False).tolist())
    order = b.random.permutation(3).tolist()

    def step(params: Params, args: Any, x: Any) -> Any:
        pieces = jnp.split(x, points, axis=v.axis)
        pieces[0] = jnp.tanh(pieces[0])
        pieces[2] = 0.5 * pieces[2]
        return jnp.concatenate([pieces[k] for k in order], v.axis)

    return b.emit(step, v, axis=v.axis)


def stack(b: Builder, v: Value) -> Value:
    other = b.partner(v) or project(b, v, v.channels)
    weights = b.param(2, scale=1.0) if b.chance() else None

    def step(params: Params, args: Any, x: Any, y: Any) -> Any:
        both = jnp.stack([x, y], axis=v.axis)
        return both.sum(v.axis) if weights is None else jnp.tensordot(params[weights], both, axes=[[0], [v.axis]])

    return b.emit(step, v, other, axis=v.axis)


def tile(b: Builder, v: Value) -> Value:
    reps = [2 if k == v.axis else 1 for k in range(len(v.shape))]
    return b.emit(lambda params, args, x: jnp.tile(x, reps), v, axis=v.axis)


def repeat(b: Builder, v: Value) -> Value:
    """Each channel twice in a row."""

    def step(params: Params, args: Any, x: Any) -> Any:
        shape = (*x.shape[: v.axis + 1], 2, *x.shape[v.axis + 1 :])
        whole = jnp.broadcast_to(jnp.expand_dims(x, v.axis + 1), shape)
        return whole.reshape(*x.shape[: v.axis], -1, *x.shape[v.axis + 1 :])

    return b.emit(step, v, axis=v.axis)


def pad(b: Builder, v: Value) -> Value:
    low, high, value = b.choose(0, 1, 2), b.choose(1, 2), b.choose(0.0, 0.0, 0.7)
    widths = [(low, high) if k == v.axis else (0, 0) for k in range(len(v.shape))]
    return b.emit(lambda params, args, x: jnp.pad(x, widths, constant_values=value), v, axis=v.axis)


def roll(b: Builder, v: Value) -> Value:
    shift = b.choose(1, 2, v.channels // 2)
    return b.emit(lambda params, args, x: jnp.roll(x, shift, v.axis), v, axis=v.axis)


def reverse(b: Builder, v: Value) -> Value:
    return b.emit(lambda params, args, x: jnp.flip(x, v.axis), v, axis=v.axis)


def rotate(b: Builder, v: Value) -> Value | None:
    """As rotary embeddings do: halves or pairs of channels turn by an angle of their own."""
    if v.channels % 2:
        return None
    half, pairs = v.channels // 2, b.chance()
    angles = np.linspace(0.1, 1.0, half, dtype=np.float32)

    def step(params: Params, args: Any, x: Any) -> Any:
        cos, sin = (along(f(angles), x.ndim, v.axis) for f in (np.cos, np.sin))
        if pairs:
            one, two = (lax.slice_in_dim(x, k, None, 2, v.axis) for k in (0, 1))
        else:
            one, two = jnp.split(x, 2, axis=v.axis)
        turned = [one * cos - two * sin, two * cos + one * sin]
        if pairs:
            return jnp.stack(turned, v.axis + 1).reshape(x.shape)
        return jnp.concatenate(turned, v.axis)

    return b.emit(step, v, axis=v.axis)


def shuffle(b: Builder, v: Value) -> Value | None:
    groups = b.choose(2, 3)
    if v.channels % groups:
        return None

    def step(params: Params, args: Any, x: Any) -> Any:
        split = x.reshape(*x.shape[: v.axis], groups, -1, *x.shape[v.axis + 1 :])
        return jnp.swapaxes(split, v.axis, v.axis + 1).reshape(x.shape)

    return b.emit(step, v, axis=v.axis)


def transpose(b: Builder, v: Value) -> Value:
    order = [0, *(1 + b.random.permutation(len(v.shape) - 1)).tolist()]
    return b.emit(lambda params, args, x: jnp.transpose(x, order), v, axis=order.index(v.axis))


def merge(b: Builder, v: Value) -> Value | None:
    """Two axes of space become one, or one of them goes into the channels."""
    k = v.axis
    if len(v.shape) < 3:
        return None
    if b.chance(0.4) and len(v.space) >= 2 and v.space[1] == v.space[0] + 1:
        first = v.space[0]
        shape = (*v.shape[:first], -1, *v.shape[first + 2 :])
        return b.emit(lambda params, args, x: x.reshape(shape), v, axis=k - 1 if k > first else k)
    before = k - 1 if k > 1 else k
    shape = (*v.shape[:before], -1, *v.shape[before + 2 :])
    return b.emit(lambda params, args, x: x.reshape(shape), v, axis=before)


def divide(b: Builder, v: Value) -> Value | None:
    """The channels become two axes; either of them goes on as the channels."""
    factor = b.choose(2, 3, 4)
    if v.channels % factor or v.channels == factor or len(v.shape) > 4:
        return None
    shape = (*v.shape[: v.axis], factor, v.channels // factor, *v.shape[v.axis + 1 :])
    return b.emit(lambda params, args, x: x.reshape(shape), v, axis=v.axis + b.choose(0, 1))


def pool(b: Builder, v: Value) -> Value | None:
    """A mean or a maximum over space, or over windows of it."""
    if not v.space:
        return None
    kind = b.choose("mean", "max", "window")
    if kind == "window":
        window = [2 if k in v.space else 1 for k in range(len(v.shape))]
        return b.emit(
            lambda params, args, x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "SAME"), v, axis=v.axis
        )
    gone = b.choose(*v.space)
    function = jnp.mean if kind == "mean" else jnp.max
    return b.emit(lambda params, args, x: function(x, gone), v, axis=v.axis - (gone < v.axis))


def softmax(b: Builder, v: Value) -> Value:
    axis = b.choose(*v.space) if v.space else 0
    return b.emit(lambda params, args, x: jax.nn.softmax(x, axis), v, axis=v.axis)


def squeeze_excite(b: Builder, v: Value) -> Value:
    names = letters(len(v.shape))
    c = names[v.axis]
    down, up = b.param(v.channels, 4), b.param(4, v.channels)

    def step(params: Params, args: Any, x: Any) -> Any:
        pooled = x.mean(v.space, keepdims=True)
        hidden = jax.nn.relu(jnp.einsum(f"{names},{c}z->{names.replace(c, 'z')}", pooled, params[down]))
        return x * jax.nn.sigmoid(jnp.einsum(f"{names},{c}z->{names.replace(c, 'z')}", hidden, params[up]))

    return b.emit(step, v, axis=v.axis)


def add_position(b: Builder, v: Value) -> Value:
    """Something that runs along the channels and is no parameter."""
    kind = b.choose("iota", "captured", "argument")
    constant = np.asarray(b.random.normal(size=v.channels), np.float32)
    number = b.arg(constant) if kind == "argument" and b.chance(0.3) else None

    def step(params: Params, args: Any, x: Any) -> Any:
        if number is not None:
            vector = args[number]
        elif kind == "iota":
            vector = 0.1 * jnp.arange(v.channels, dtype=jnp.float32)
        else:
            vector = jnp.asarray(constant)
        return x + along(vector, x.ndim, v.axis)

    return b.emit(step, v, axis=v.axis)


def dropout(b: Builder, v: Value) -> Value:
    key = b.arg(jax.random.key(int(b.random.integers(1000))))

    def step(params: Params, args: Any, x: Any) -> Any:
        return jnp.where(jax.random.bernoulli(args[key], 0.7, x.shape), x / 0.7, 0.0)

    return b.emit(step, v, axis=v.axis)


def accumulate(b: Builder, v: Value) -> Value:
    axis = b.choose(*v.space) if v.space and b.chance(0.8) else v.axis
    return b.emit(lambda params, args, x: jnp.cumsum(x, axis), v, axis=v.axis)


_ALL = [dense, convolution, pointwise, residual, gate, glu, concatenate, take, parts, stack, tile, repeat, pad, roll]
_ALL += [reverse, rotate, shuffle, transpose, merge, divide, pool, softmax, squeeze_excite, add_position, dropout]
_ALL += [accumulate]
OPERATIONS = {function.__name__: function for function in _ALL}
