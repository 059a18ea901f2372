"""How an operand is made out of a parameter: a chain of steps, each of which moves elements or acts on each alone.

`matmul(x, reshape(kernel, ...).T.astype(bf16))` consumes a *view* of `kernel`. The chain is static and can be applied
to any array of the parameter's shape, such as its mask.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.tracing.graph import Node

CASTS = frozenset(
    "convert_element_type copy copy_p reduce_precision sharding_constraint reshard stop_gradient name pvary "
    "optimization_barrier device_put".split()
)
# Each element stays, or is repeated.
RESHAPES = frozenset("broadcast_in_dim convert_element_type expand_dims reshape squeeze".split())


@dataclasses.dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order."""

    shape: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return jnp.reshape(array, self.shape)


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Axes in another order."""

    permutation: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return jnp.transpose(array, self.permutation)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of the elements."""

    start: tuple[int, ...]
    limit: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return lax.slice(array, self.start, self.limit, self.strides)


@dataclasses.dataclass(frozen=True)
class Reverse:
    """Axes in reverse."""

    axes: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return lax.rev(array, self.axes)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """An operation on each element by itself (a cast, a mask, a scale): positions stay, values may change."""

    primitive: str

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return array


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One slice a step: a loop runs over the leading axis, and the steps that follow act on each slice."""

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        raise TypeError("a stacked view is applied by `apply_view`, which maps the rest of the chain over it")


Step: TypeAlias = Reshape | Transpose | Slice | Reverse | Pointwise | Stacked
View: TypeAlias = tuple[Step, ...]


def apply_view(view: View, array: Any) -> Any:
    """Makes of an array of the parameter's shape what the operation sees of it.

    Args:
      view: a chain of steps.
      array: the parameter, its mask, its scores.

    Returns:
      The operand; a stacked axis stays in front.

    Example:
      >>> apply_view((Transpose((1, 0)), Reshape((2, 3, 1))), jnp.ones((3, 2))).shape
      (2, 3, 1)
    """
    for k, step in enumerate(view):
        if isinstance(step, Stacked):
            return jax.vmap(lambda part, rest=view[k + 1 :]: apply_view(rest, part))(array)
        array = step(array)
    return array


def step_of(node: Node, shape: Sequence[int], output: int, after: Sequence[int]) -> Step | None:
    """The step by which an output of a node follows from its first operand; None where it is no view of it.

    Args:
      node: an operation on parameters and constants only.
      shape: the shape of its first operand.
      output: which of its outputs.
      after: the shape of that output.
    """
    name, params = node.name, node.params
    if name in CASTS:
        return Pointwise(name)
    if name == "transpose":
        return Transpose(tuple(params["permutation"]))
    if name == "rev":
        return Reverse(tuple(params["dimensions"]))
    if name == "slice":
        return Slice(tuple(params["start_indices"]), tuple(params["limit_indices"]), params["strides"])
    if name == "split":
        axis, sizes = params["axis"], params["sizes"]
        start = [0] * len(shape)
        start[axis] = sum(sizes[:output])
        return Slice(tuple(start), tuple(s + size for s, size in zip(start, after, strict=True)))
    ordered = name != "broadcast_in_dim" or list(params["broadcast_dimensions"]) == sorted(
        params["broadcast_dimensions"]
    )
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim") and ordered:
        same = [size for size in shape if size != 1] == [size for size in after if size != 1]
        if same or name == "reshape":
            return Reshape(tuple(after))
    return None
