"""Memory: what lives on the devices now, and what XLA says a compiled function takes."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxprune.measure.figure import Figure

_COUNTS_ZEROS = "XLA counts zeros as work, so a masked model costs what the dense one does; bodies of loops count once"


def live_bytes(arrays: Iterable[jax.Array] | None = None) -> Figure:
    """The bytes of all JAX arrays that are alive in this process, every shard and replica included.

    Args:
      arrays: count these instead of `jax.live_arrays()`.

    Returns:
      Measured bytes. Temporary buffers of running computations are not among them.

    Example:
      >>> import jax.numpy as jnp
      >>> live_bytes([jnp.zeros(8, jnp.float32)]).value
      32.0
    """
    chosen = jax.live_arrays() if arrays is None else arrays
    # Each buffer counts once, also where several arrays share it.
    buffers = {}
    for array in chosen:
        if not array.is_deleted():
            buffers |= {_buffer(shard.data): shard.data.nbytes for shard in array.addressable_shards}
    note = "shards and replicas counted; temporary buffers are not"
    return Figure(float(sum(buffers.values())), "bytes", "measured", "jax.live_arrays", note=note)


def device_memory(device: Any = None) -> dict[str, Figure]:
    """What the allocator of a device has in use, now and at its peak, as the device reports it.

    Args:
      device: one of `jax.devices()`; the first unless given.

    Returns:
      "in use" and "peak" in bytes; not measured on a CPU, which reports nothing.

    Example:
      >>> sorted(device_memory())
      ['in use', 'peak']
    """
    device = jax.devices()[0] if device is None else device
    statistics = device.memory_stats() or {}
    names = {"in use": "bytes_in_use", "peak": "peak_bytes_in_use"}
    absent = Figure.absent("bytes", f"{device.platform} devices report no memory statistics")
    source = f"memory_stats of {device}"
    return {
        name: Figure(float(statistics[key]), "bytes", "measured", source) if key in statistics else absent
        for name, key in names.items()
    }


def memory(fn: Callable[..., Any], *args: Any) -> dict[str, Figure]:
    """The buffers that XLA plans for a function, without running it.

    Args:
      fn: a function of arrays, jitted or not.
      args: its arguments; `jax.ShapeDtypeStruct` will do.

    Returns:
      Bytes of one device: "arguments", "outputs", "temporaries", "code" and "peak". Modelled: it is the plan of the
      compiler, not what a counter saw.

    Example:
      >>> import jax.numpy as jnp
      >>> memory(lambda x: x + 1, jnp.zeros(8, jnp.float32))["arguments"].value
      32.0
    """
    statistics = compiled(fn, args).memory_analysis()
    names = {
        "arguments": "argument_size_in_bytes",
        "outputs": "output_size_in_bytes",
        "temporaries": "temp_size_in_bytes",
        "code": "generated_code_size_in_bytes",
        "peak": "peak_memory_in_bytes",
    }

    def one(attribute: str) -> Figure:
        size = getattr(statistics, attribute, None)
        if size is None:
            return Figure.absent("bytes", f"this backend's memory_analysis gives no {attribute}")
        return Figure(float(size), "bytes", "modelled", "xla memory_analysis", note="of one device")

    return {name: one(attribute) for name, attribute in names.items()}


def xla_cost(fn: Callable[..., Any], *args: Any) -> dict[str, Figure]:
    """The work that XLA counts in a compiled function, without running it.

    Args:
      fn: a function of arrays, jitted or not.
      args: its arguments; `jax.ShapeDtypeStruct` will do.

    Returns:
      "flops" in FLOPs and "traffic" in bytes read and written, both modelled. Zeros count as work.

    Example:
      >>> x = jax.ShapeDtypeStruct((8, 8), "float32")
      >>> xla_cost(lambda x: x @ x, x)["flops"].value >= 2 * 8**3
      True
    """
    counts = compiled(fn, args).cost_analysis()
    counts = counts[0] if isinstance(counts, list) else counts or {}

    def one(key: str, unit: str) -> Figure:
        if key not in counts:
            return Figure.absent(unit, f"this backend's cost_analysis gives no {key}")
        return Figure(float(counts[key]), unit, "modelled", "xla cost_analysis", note=_COUNTS_ZEROS)

    return {"flops": one("flops", "FLOPs"), "traffic": one("bytes accessed", "bytes")}


def compiled(fn: Any, args: tuple[Any, ...]) -> Any:
    """XLA's program of a function, jitted or not."""
    return (fn if hasattr(fn, "lower") else jax.jit(fn)).lower(*args).compile()


def _buffer(data: jax.Array) -> Any:
    try:
        return (data.devices().pop().id, data.unsafe_buffer_pointer())
    except Exception:  # not every backend gives the address of a buffer
        return id(data)
