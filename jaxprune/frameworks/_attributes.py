"""What NNX and Equinox share: modules that hold their sizes as attributes, beside arrays that hold them as shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import shrinking, trees
from jaxprune.frameworks._layers import Cut
from jaxprune.shrinking import Plan
from jaxprune.tracing import Model
from jaxprune.trees import PyTree


class CutArrays:
    """The arrays of a module, cut.

    Attributes:
      cut: the model and the plan.
      small: the smaller arrays by their path in the module; those that were not traced are left out.
      reference: the traced parameters, cut: what the replay takes. What the module has not is abstract.
    """

    def __init__(self, model: Model, plan: Plan, arrays: Mapping[str, Any], remedy: str):
        self.cut = Cut(model, plan)
        self._positions = {path: k for path in arrays if (k := self.cut.position(path)) is not None}
        if not self._positions:
            raise ValueError(
                f"none of the module's arrays was traced. They are {trees.list_paths(list(arrays))}; the traced "
                f"parameters are {trees.list_paths(model.paths)}. {remedy}"
            )
        leaves = list(model.leaves)
        for path, k in self._positions.items():
            if tuple(arrays[path].shape) != model.leaves[k].shape:
                raise ValueError(
                    f"{path} has shape {tuple(arrays[path].shape)}, but was traced with {model.leaves[k].shape}. Give "
                    "the module that was traced."
                )
            leaves[k] = arrays[path]
        full = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
        self.reference: PyTree = shrinking.shrink(model, plan, full)
        smaller = jax.tree.leaves(self.reference)
        self.small = {path: smaller[k] for path, k in self._positions.items()}

    def fold_scale(self, kernel: str, axis: int, names: tuple[str, ...], parts: int | None = None) -> None:
        """Multiplies arrays by sqrt(size left / full size) of an axis, or of each of its parts."""
        position = self._positions.get(kernel)
        if position is None:
            return
        factor = self.cut.scale(position, axis, parts)
        for name in names:
            leaf = self.small.get(name)
            if factor != 1.0 and leaf is not None and not isinstance(leaf, jax.ShapeDtypeStruct):
                self.small[name] = leaf * jnp.asarray(factor, leaf.dtype)


def default_call(module: Callable[..., Any], *args: Any) -> Any:
    """`module(*args)`."""
    return module(*args)
