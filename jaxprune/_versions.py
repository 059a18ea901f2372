"""The places where releases of JAX differ, and where the public API has a gap."""

import sysconfig
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def bind(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Applies a primitive with the parameters of one of its equations; always gives a list."""
    prepared = primitive.get_bind_params(params)
    if isinstance(prepared, tuple):  # until jax 0.9: functions apart from the parameters
        functions, rest = prepared
        outputs = primitive.bind(*functions, *operands, **rest)
    else:
        outputs = primitive.bind(*operands, **prepared)
    return list(outputs) if primitive.multiple_results else [outputs]


def closed_jaxpr(value: Any) -> core.ClosedJaxpr | None:
    """A closed jaxpr of a closed or open one (some primitives hold the latter), None of anything else."""
    if isinstance(value, core.ClosedJaxpr):
        return value
    return core.ClosedJaxpr(value, ()) if isinstance(value, core.Jaxpr) else None


def source_line(equation: Any) -> str:
    """`file:line (function)` of the user's code behind an equation, `""` where it is not known."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    libraries = ("/jax/", "/flax/", "/haiku/", "/equinox/", "/optax/", "/jaxprune/tracing/")
    own = [
        frame
        for frame in frames
        if not any(part in frame.file_name for part in libraries)
        and ("site-packages" in frame.file_name or not frame.file_name.startswith(_STANDARD_LIBRARY))
    ]
    for frame in own[:1]:
        return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return ""


def vary_as(tree: Any, *others: Any) -> Any:
    """Lets arrays differ between the devices of a `jax.shard_map` as others do, so that a loop can carry them."""
    axes = frozenset[Any]().union(*(_varying(other) for other in jax.tree.leaves(others)))

    def one(value: jax.Array) -> jax.Array:
        missing = tuple(axes - _varying(value))
        if not missing:
            return value
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(value, missing, to="varying")
        return jax.lax.pvary(value, missing)  # pyright: ignore  # until jax 0.8.1

    return jax.tree.map(one, tree)


def _varying(array: jax.Array) -> frozenset[Any]:
    """The axes of a `jax.shard_map` along which an array differs."""
    aval = jax.typeof(array)
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return getattr(aval, "vma", frozenset())  # in older releases
