"""The larger operations of random programs: norms, attention, loops, branches, kernels made of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.fuzz_programs import Builder, Params, Value, along, letters, project


def _affine(b: Builder, v: Value) -> tuple[str, str]:
    return b.param(v.channels, scale=0.3, around=1.0), b.param(v.channels, scale=0.3)


def layer_norm(b: Builder, v: Value) -> Value:
    """Over the channels: two-pass, fast, or without the mean."""
    scale, bias = _affine(b, v)
    kind = b.choose("two-pass", "fast", "rms")

    def step(params: Params, args: Any, x: Any) -> Any:
        mean = x.mean(v.axis, keepdims=True)
        if kind == "two-pass":
            variance = jnp.square(x - mean).mean(v.axis, keepdims=True)
        else:
            variance = jnp.square(x).mean(v.axis, keepdims=True) - (jnp.square(mean) if kind == "fast" else 0.0)
        y = (x if kind == "rms" else x - mean) * lax.rsqrt(jnp.maximum(variance, 0.0) + 0.1)
        return y * along(params[scale], x.ndim, v.axis) + along(params[bias], x.ndim, v.axis)

    return b.emit(step, v, axis=v.axis)


def group_norm(b: Builder, v: Value) -> Value | None:
    groups = b.choose(2, 3)
    if v.channels % groups:
        return None
    scale, bias = _affine(b, v)
    space = tuple(k + (k > v.axis) for k in v.space)

    def step(params: Params, args: Any, x: Any) -> Any:
        y = x.reshape(*x.shape[: v.axis], groups, -1, *x.shape[v.axis + 1 :])
        gone = (v.axis + 1, *space)
        mean = y.mean(gone, keepdims=True)
        variance = jnp.square(y).mean(gone, keepdims=True) - jnp.square(mean)
        y = ((y - mean) / jnp.sqrt(jnp.maximum(variance, 0.0) + 0.1)).reshape(x.shape)
        return y * along(params[scale], x.ndim, v.axis) + along(params[bias], x.ndim, v.axis)

    return b.emit(step, v, axis=v.axis)


def batch_norm(b: Builder, v: Value) -> Value:
    """With stored statistics, or with those of the batch."""
    scale, bias = _affine(b, v)
    stored = (b.param(v.channels, scale=0.2), b.param(v.channels, scale=0.1, around=1.0)) if b.chance() else None
    others = tuple(k for k in range(len(v.shape)) if k != v.axis)

    def step(params: Params, args: Any, x: Any) -> Any:
        def lay(name: str) -> Any:
            return along(params[name], x.ndim, v.axis)

        if stored is None:
            mean = x.mean(others, keepdims=True)
            variance = jnp.square(x - mean).mean(others, keepdims=True)
        else:
            mean, variance = lay(stored[0]), jnp.square(lay(stored[1]))
        return (x - mean) * lax.rsqrt(variance + 0.1) * lay(scale) + lay(bias)

    return b.emit(step, v, axis=v.axis)


def attention(b: Builder, v: Value) -> Value | None:
    """Over one axis of space: fused or separate projections, heads before or after their channels, fewer key heads."""
    if len(v.shape) != 3:
        return None
    heads, size, width = b.choose(2, 4), b.choose(2, 4), v.channels
    kind = b.choose("separate", "fused", "grouped")
    shared = 2 if kind == "grouped" and heads == 4 else heads
    sizes = [heads * size, shared * size, shared * size]
    kernels = [b.param(width, sum(sizes))] if kind == "fused" else [b.param(width, n) for n in sizes]
    output, layout = b.param(heads * size, width), b.chance(0.7)
    first = b.chance(0.7)

    def step(params: Params, args: Any, x: Any) -> Any:
        x = jnp.moveaxis(x, v.axis, 2)
        if kind == "fused" and first:
            q, k, w = jnp.split(x @ params[kernels[0]], 3, axis=2)
        elif kind == "fused":
            y = (x @ params[kernels[0]]).reshape(*x.shape[:2], 3, heads * size)
            q, k, w = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        else:
            q, k, w = (x @ params[name] for name in kernels)

        def split(y: Any, count: int) -> Any:
            if layout:
                return y.reshape(*y.shape[:2], count, size)
            return jnp.swapaxes(y.reshape(*y.shape[:2], size, count), 2, 3)

        q, k, w = split(q, heads), split(k, shared), split(w, shared)
        if shared != heads:
            q = q.reshape(*q.shape[:2], shared, heads // shared, size)
            weights = jax.nn.softmax(jnp.einsum("bqgnd,bkgd->bgnqk", q, k) * size**-0.5, axis=-1)
            y = jnp.einsum("bgnqk,bkgd->bqgnd", weights, w)
        else:
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * size**-0.5, axis=-1)
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, w)
        return jnp.moveaxis(y.reshape(*x.shape[:2], heads * size) @ params[output], 2, v.axis)

    return b.emit(step, v, axis=v.axis)


def _mixed(names: str, axis: int) -> str:
    c = names[axis]
    return f"{names},{c}z->{names.replace(c, 'z')}"


def scan(b: Builder, v: Value) -> Value:
    """Two layers with stacked weights, of one product or of two."""
    equation = _mixed(letters(len(v.shape)), v.axis)
    hidden = b.choose(0, 4, 6)
    first = b.param(2, v.channels, hidden or v.channels, scale=0.5)
    second = b.param(2, hidden, v.channels, scale=0.5) if hidden else None
    bias = b.param(2, hidden or v.channels, scale=0.3)
    rematerialised, emits = b.chance(0.3), b.chance(0.3)

    def step(params: Params, args: Any, x: Any) -> Any:
        def body(state: Any, weights: Any) -> Any:
            y = jnp.tanh(jnp.einsum(equation, state, weights[0]) + along(weights[1], state.ndim, v.axis))
            if second is not None:
                y = state + jnp.einsum(equation, y, weights[2])
            return y, y if emits else None

        weights = [params[first], params[bias], *([params[second]] if second is not None else [])]
        last, every = lax.scan(jax.checkpoint(body) if rematerialised else body, x, weights)
        return last + every.sum(0) if emits else last

    return b.emit(step, v, axis=v.axis)


def loop(b: Builder, v: Value) -> Value:
    equation = _mixed(letters(len(v.shape)), v.axis)
    kernel = b.param(v.channels, v.channels, scale=0.4)

    def step(params: Params, args: Any, x: Any) -> Any:
        def body(state: Any) -> Any:
            return state[0] + 1, jnp.tanh(jnp.einsum(equation, state[1], params[kernel]))

        return lax.while_loop(lambda state: state[0] < 2, body, (0, x))[1]

    return b.emit(step, v, axis=v.axis)


def branch(b: Builder, v: Value) -> Value:
    equation = _mixed(letters(len(v.shape)), v.axis)
    width = b.choose(v.channels, v.channels, 4)
    one, two = b.param(v.channels, width), b.param(v.channels, width)
    flag = b.arg(np.bool_(b.chance()))
    same = width == v.channels and b.chance()

    def step(params: Params, args: Any, x: Any) -> Any:
        return lax.cond(
            args[flag],
            lambda x: jnp.einsum(equation, x, params[one]),
            lambda x: (
                x
                if same
                else jnp.zeros_like(x) + 1.0
                if width == x.shape[v.axis]
                else x.sum() * jnp.ones([width if k == v.axis else n for k, n in enumerate(x.shape)], x.dtype)
                + jnp.einsum(equation, x, params[two])
            ),
            x,
        )

    return b.emit(step, v, axis=v.axis)


def tied(b: Builder, v: Value) -> Value:
    """One kernel there and back, with a shared or an own bias."""
    names = letters(len(v.shape))
    c = names[v.axis]
    there, back = f"{names},{c}z->{names.replace(c, 'z')}", f"{names.replace(c, 'z')},{c}z->{names}"
    kernel = b.param(v.channels, b.choose(4, 6))
    return b.emit(
        lambda params, args, x: jnp.einsum(back, jnp.tanh(jnp.einsum(there, x, params[kernel])), params[kernel]),
        v,
        axis=v.axis,
    )


def made_kernel(b: Builder, v: Value) -> Value:
    """A kernel that is a low-rank sum, normalised, an exponential, or a softmax of parameters."""
    equation = _mixed(letters(len(v.shape)), v.axis)
    width, kind = b.choose(v.channels, 6), b.choose("low rank", "normalised", "exponential", "softmax", "signs")
    kernel = b.param(v.channels, width)
    left, right = (b.param(v.channels, 4), b.param(4, width)) if kind == "low rank" else ("", "")
    axis = b.choose(0, 1)

    def step(params: Params, args: Any, x: Any) -> Any:
        w = params[kernel]
        if kind == "low rank":
            w = w + params[left] @ params[right]
        elif kind == "normalised":
            w = w / jnp.sqrt(jnp.square(w).sum(axis, keepdims=True))
        elif kind == "exponential":
            w = jnp.exp(w) - 0.5
        elif kind == "softmax":
            w = jax.nn.softmax(w, axis)
        else:
            w = jnp.where(w > 0, w, 0.1 * w)
        return jnp.einsum(equation, x, w)

    return b.emit(step, v, axis=v.axis)


def outer(b: Builder, v: Value) -> Value | None:
    """Products of pairs of channels (the value with itself), merged into one axis."""
    if len(v.shape) > 3 or v.channels > 6:
        return None
    names = letters(len(v.shape))
    c = names[v.axis]
    w = project(b, v, b.choose(3, 4, v.channels)) if b.chance() else v

    def step(params: Params, args: Any, x: Any, y: Any) -> Any:
        pairs = jnp.einsum(f"{names},{names.replace(c, 'z')}->{names.replace(c, c + 'z')}", x, y)
        return pairs.reshape(*x.shape[: v.axis], -1, *x.shape[v.axis + 1 :])

    return b.emit(step, v, w, axis=v.axis)


def gram(b: Builder, v: Value) -> Value:
    """Each channel weighted by its agreement with every other: attention over channels, without the softmax."""
    names = letters(len(v.shape))
    c = names[v.axis]
    kernel = b.param(v.channels, v.channels, scale=0.5) if b.chance() else None

    def step(params: Params, args: Any, x: Any) -> Any:
        agreement = jnp.einsum(f"{names},{names.replace(c, 'z')}->a{c}z", x, x) / x.size
        if kernel is not None:
            agreement = agreement + params[kernel][None]
        return jnp.einsum(f"{names},a{c}z->{names.replace(c, 'z')}", x, agreement)

    return b.emit(step, v, axis=v.axis)


def total(b: Builder, v: Value) -> Value:
    """Scaled by a sum, a maximum or a length over the channels."""
    kind = b.choose("sum", "max", "length")

    def step(params: Params, args: Any, x: Any) -> Any:
        if kind == "sum":
            return x * jnp.tanh(x.sum(v.axis, keepdims=True))
        if kind == "max":
            return x / (1.0 + jnp.abs(x).max(v.axis, keepdims=True))
        return x / jnp.sqrt(jnp.square(x).sum(v.axis, keepdims=True) + 0.1)

    return b.emit(step, v, axis=v.axis)


def update(b: Builder, v: Value) -> Value | None:
    """A row of space is overwritten at a computed position, by a slice update or a scatter."""
    if not v.space:
        return None
    along_axis, scatters = v.space[0], b.chance()
    where = b.arg(np.int32(1))
    row = b.param(v.channels, scale=1.0)

    def step(params: Params, args: Any, x: Any) -> Any:
        shape = [1 if k == along_axis else n for k, n in enumerate(x.shape)]
        new = jnp.broadcast_to(along(params[row], x.ndim, v.axis), shape)
        if not scatters:
            return lax.dynamic_update_slice_in_dim(x, new, args[where], along_axis)
        index = (slice(None),) * along_axis + (args[where],)
        return x.at[index].add(new.squeeze(along_axis))

    return b.emit(step, v, axis=v.axis)


_ALL = [
    layer_norm,
    group_norm,
    batch_norm,
    attention,
    scan,
    loop,
    branch,
    tied,
    made_kernel,
    outer,
    gram,
    total,
    update,
]
LAYERS = {function.__name__: function for function in _ALL}
