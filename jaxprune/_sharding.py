"""Shapes and shardings together: on an Explicit mesh a reshape must say how its result is sharded.

Elsewhere (no mesh, Auto axes) these are the plain operations, and XLA propagates shardings by itself.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.shard_alike import shard_alike
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def split_axis(array: jax.Array, axis: int, part: int) -> jax.Array:
    """Reshapes one axis to two, `(size // part, part)`; the first of them stays sharded."""
    shape = array.shape
    new = (*shape[:axis], shape[axis] // part, part, *shape[axis + 1 :])
    array = whole_groups(array, axis, part)
    sharding = _explicit(array)
    if sharding is None:
        return array.reshape(new)
    spec = _spec(sharding, len(shape))
    return jax.lax.reshape(array, new, out_sharding=_with(sharding, [*spec[: axis + 1], None, *spec[axis + 1 :]]))


def merge_axes(array: jax.Array, axis: int) -> jax.Array:
    """The inverse of `split_axis`: reshapes `axis` and the next one to one; the second is not sharded."""
    shape = array.shape
    new = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    sharding = _explicit(array)
    if sharding is None:
        return array.reshape(new)
    spec = _spec(sharding, len(shape))
    return jax.lax.reshape(array, new, out_sharding=_with(sharding, [*spec[: axis + 1], *spec[axis + 2 :]]))


def whole_groups(array: jax.Array, axis: int, part: int) -> jax.Array:
    """Gathers an explicitly sharded axis whose shards do not hold whole groups of `part` entries."""
    sharding = _explicit(array)
    if sharding is None or array.shape[axis] % (part * axis_shards(array, axis)) == 0:
        return array
    spec = _spec(sharding, array.ndim)
    return jax.sharding.reshard(array, _with(sharding, [*spec[:axis], None, *spec[axis + 1 :]]))


def gathered(array: jax.Array) -> jax.Array:
    """Gathers an explicitly sharded array whole on every device."""
    sharding = _explicit(array)
    return array if sharding is None else jax.sharding.reshard(array, _with(sharding, []))


def axis_shards(array: jax.Array, axis: int) -> int:
    """Over how many shards an axis is explicitly split; 1 where that is not known."""
    sharding = _explicit(array)
    if sharding is None:
        return 1
    names = _spec(sharding, array.ndim)[axis] or ()
    return math.prod(sharding.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Gives an array the sharding of another of the same shape, or leaves XLA to do so."""
    sharding = _explicit(other)
    if sharding is not None:
        if isinstance(array, Tracer) or isinstance(other, Tracer):
            return jax.sharding.reshard(array, sharding)
        # `reshard` cannot bring an array of one device to a mesh that is not in context.
        return jax.device_put(array, other.sharding)
    if isinstance(other, Tracer):
        return shard_alike(array, other)[0]
    return array


def leading(array: jax.Array, count: int, ndim: int) -> NamedSharding | None:
    """The sharding of a result whose first `count` axes are those of `array`, and whose others are whole.

    On an Explicit mesh JAX asks for it where a product sums over a sharded axis, and where a reshape both splits and
    merges; elsewhere this is None.

    Args:
      array: an operand.
      count: how many of its axes lead.
      ndim: how many axes the result has.
    """
    sharding = _explicit(array)
    if sharding is None:
        return None
    return _with(sharding, [*_spec(sharding, array.ndim)[:count], *[None] * (ndim - count)])


def on_host(array: Any) -> bool:
    """Whether NumPy can read an array without a transfer: it lies on one CPU device, or is none of JAX's."""
    if not isinstance(array, jax.Array):
        return isinstance(array, (np.ndarray, np.generic))
    if isinstance(array, Tracer) or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return False
    return len(array.devices()) == 1 and all(device.platform == "cpu" for device in array.devices())


def take(array: Any, indices: np.ndarray, axis: int) -> Any:
    """Some indices of an axis; of an abstract array, too.

    The result is sharded as the array was, but whole along the axis where its new size does not divide.
    """
    if isinstance(array, np.ndarray):
        return np.take(array, indices, axis)
    if on_host(array):  # JAX would compile the cut of every other shape
        cut = np.take(np.asarray(array), indices, axis)
        return jax.device_put(cut, array.sharding if array.committed else None)
    concrete = not isinstance(array, Tracer) and isinstance(array.sharding, NamedSharding)
    placed = _cut(array.sharding, array.ndim, axis, indices.size) if concrete else None
    if isinstance(array, jax.ShapeDtypeStruct):
        shape = (*array.shape[:axis], indices.size, *array.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=placed)
    explicit = _explicit(array)
    if explicit is None:
        taken = jnp.take(array, indices, axis)
    else:
        whole = _cut(explicit, array.ndim, axis, indices.size)
        taken = array.at[(slice(None),) * axis + (indices,)].get(out_sharding=whole)
    return taken if placed is None or isinstance(taken, Tracer) else jax.device_put(taken, placed)


def _cut(sharding: NamedSharding, ndim: int, axis: int, size: int) -> NamedSharding:
    """The sharding of an array one of whose axes has changed its size."""
    spec = _spec(sharding, ndim)
    names = (spec[axis],) if isinstance(spec[axis], str) else spec[axis] or ()
    if size % math.prod(sharding.mesh.shape[name] for name in names):
        spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)


def _explicit(array: Any) -> Any:
    """The sharding of an array on a mesh with Explicit axes, or None."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def _spec(sharding: Any, ndim: int) -> list[Any]:
    return [*sharding.spec, *[None] * (ndim - len(sharding.spec))]


def _with(sharding: Any, spec: list[Any]) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
