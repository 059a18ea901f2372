"""How an operand is made out of a parameter: a chain of steps, each of which moves elements or acts on each alone.

`matmul(x, reshape(kernel, ...).T.astype(bf16))` consumes a *view* of `kernel`. The chain is static, can be applied to
any array of the parameter's shape, such as its mask, and can be undone: `place` puts an operand back.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
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

    def place(self, array: Any, part: Any) -> Any:
        """Undoes the step."""
        return jnp.reshape(part, array.shape)


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Axes in another order."""

    permutation: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return jnp.transpose(array, self.permutation)

    def place(self, array: Any, part: Any) -> Any:
        """Undoes the step."""
        del array
        return jnp.transpose(part, [int(k) for k in np.argsort(self.permutation)])


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of the elements."""

    start: tuple[int, ...]
    limit: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return lax.slice(array, self.start, self.limit, self.strides)

    def place(self, array: Any, part: Any) -> Any:
        """Writes the part where it came from."""
        strides = self.strides or (1,) * len(self.start)
        where = tuple(slice(*bounds) for bounds in zip(self.start, self.limit, strides, strict=True))
        return array.at[where].set(part)


@dataclasses.dataclass(frozen=True)
class Reverse:
    """Axes in reverse."""

    axes: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return lax.rev(array, self.axes)

    def place(self, array: Any, part: Any) -> Any:
        """Undoes the step."""
        del array
        return lax.rev(part, self.axes)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """An operation on each element by itself (a cast, a mask, a scale): positions stay, values may change."""

    primitive: str

    def __call__(self, array: Any) -> Any:
        """Applies the step."""
        return array

    def place(self, array: Any, part: Any) -> Any:
        """Undoes the step."""
        del array
        return part


def is_cast(step: "Step") -> bool:
    """Whether a step leaves the values as they are, but for their type."""
    return isinstance(step, Pointwise) and step.primitive in CASTS


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One slice a step: a loop runs over the leading axis, and the steps that follow act on each slice.

    Attributes:
      loop: the node of the loop; two views that differ in it only are the same view.
    """

    loop: Node | None = dataclasses.field(default=None, compare=False, repr=False)


Step: TypeAlias = Reshape | Transpose | Slice | Reverse | Pointwise | Stacked
View: TypeAlias = tuple[Step, ...]


def apply_view(view: View, array: Any, index: Sequence[Any] = ()) -> Any:
    """Makes of an array of the parameter's shape what the operation sees of it.

    Args:
      view: a chain of steps.
      array: the parameter, its mask, its scores.
      index: which slice of each stacked axis, from the first; may be traced.

    Returns:
      The operand; a stacked axis that `index` does not choose from stays in front.

    Example:
      >>> apply_view((Transpose((1, 0)), Reshape((2, 3, 1))), jnp.ones((3, 2))).shape
      (2, 3, 1)
    """
    for k, step in enumerate(view):
        if isinstance(step, Stacked):
            rest = view[k + 1 :]
            if index:
                return apply_view(rest, _at(array, index[0]), index[1:])
            return jax.vmap(functools.partial(apply_view, rest))(array)
        array = step(array)
    return array


def place(view: View, array: Any, operand: Any, index: Sequence[Any] = ()) -> Any:
    """Puts an operand back to where it came from: the inverse of `apply_view`.

    Args:
      view: a chain of steps.
      array: what `apply_view` was given; elements that the view does not cover stay.
      operand: what it gave, or something of that shape.
      index: as for `apply_view`; other slices stay.

    Returns:
      An array of the shape of `array`, of the dtype of `operand` where nothing of `array` is left in it.

    Example:
      >>> place((Slice((1,), (3,)),), jnp.zeros(4), jnp.ones(2)).tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    if not view:
        return operand
    step, rest = view[0], view[1:]
    if not isinstance(step, Stacked):
        return step.place(array, place(rest, step(array), operand, index))
    if not index:
        return jax.vmap(lambda whole, part: place(rest, whole, part))(array, operand)
    return array.at[index[0]].set(place(rest, _at(array, index[0]), operand, index[1:]))


def _at(array: Any, index: Any) -> Any:
    return lax.dynamic_index_in_dim(array, index, 0, keepdims=False)


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
