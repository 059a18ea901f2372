"""What the adapters share: where a layer's arrays are in the trace, and which attributes follow from their shapes."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from jaxprune import trees
from jaxprune.shrinking import Plan
from jaxprune.tracing import Model

Fixer: TypeAlias = Callable[[Any, "Layer"], Mapping[str, Any]]
"""From a layer whose arrays are smaller, and what is known of them, to its attributes by name."""


class Cut:
    """A model and a plan, asked by the paths that a framework gives to its arrays.

    Args:
      model: the traced model.
      plan: which indices stay.
    """

    def __init__(self, model: Model, plan: Plan):
        plan.check(model)
        self.model = model
        self._sizes = model.sizes(plan.keep)
        self._positions = {path: k for k, path in enumerate(model.paths)}

    def position(self, path: str, collection: str = "params") -> int | None:
        """Which traced parameter an array of the module is; None if it was not traced.

        The trace may hold the module's tree itself or have it inside another one.
        """
        for known in (path, f"{collection}/{path}"):
            if known in self._positions:
                return self._positions[known]
        found = [k for known, k in self._positions.items() if known.endswith(f"/{path}")]
        if len(found) > 1:
            raise ValueError(
                f"{path!r} of the module may be any of {trees.list_paths([self.model.paths[k] for k in found])} of the "
                "traced parameters. Trace the module's own parameters."
            )
        return found[0] if found else None

    def parts(self, position: int, axis: int, count: int) -> tuple[int, int]:
        """How many of `count` equal parts of an axis are left, and the size of each."""
        mask = self._sizes.mask(self.model.dims_of(position)[axis])
        sizes = mask.reshape(count, -1).sum(1)
        left = np.unique(sizes[sizes > 0])
        if left.size > 1:
            raise ValueError(
                f"the plan leaves {left.tolist()} indices in the {count} parts of axis {axis} of "
                f"{self.model.paths[position]}; a layer needs as many in each."
            )
        return int((sizes > 0).sum()), int(left[0])

    def scale(self, position: int, axis: int, count: int | None = None) -> float:
        """sqrt(size left / full size) of an axis, or of each of `count` equal parts of it."""
        full = self.model.leaves[position].shape[axis] // (count or 1)
        return math.sqrt(self.parts(position, axis, count or 1)[1] / full)


class Layer:
    """The arrays of one layer, for a fixer to read.

    Args:
      path: the layer, in its module; `""` for the module itself.
      shapes: the shape of an array by its name in the layer, None if there is none.
      cut: the model and the plan, where they are known.
      argument: the first argument of the call that is about to happen, where there is one (Linen).
    """

    def __init__(
        self,
        path: str,
        shapes: Callable[[str], tuple[int, ...] | None],
        cut: Cut | None,
        argument: Any = None,
    ):
        self.path = path
        self.argument = argument
        self._shapes = shapes
        self._cut = cut

    def shape(self, *names: str) -> tuple[int, ...]:
        """The shape of the first of these arrays that the layer has; `()` if it has none of them."""
        return next((shape for name in names if (shape := self._shapes(name)) is not None), ())

    def parts(self, name: str, axis: int, count: int) -> tuple[int, int]:
        """How many of the `count` equal parts of an axis are left, and the size of each: heads, groups.

        Args:
          name: the array, in the layer.
          axis: its axis, best counted from the end.
          count: the number of parts before the cut.

        Raises:
          ValueError: they are not of equal size any more, or without a plan that cannot be known.
        """
        path = f"{self.path}/{name}" if self.path else name
        position = self._cut.position(path) if self._cut is not None else None
        if self._cut is not None and position is not None:
            return self._cut.parts(position, axis, count)
        size = self.shape(name)[axis]
        if size % count:
            raise ValueError(
                f"{path} has {size} indices on axis {axis}, which are no {count} equal parts, so parts have been "
                "removed, and how many is written in the plan alone: give follow_shapes the model and the plan."
            )
        return count, size // count

    def full_size(self, name: str, axis: int) -> int:
        """The size of an axis before the cut; the size it has now where there is no plan to tell."""
        path = f"{self.path}/{name}" if self.path else name
        position = self._cut.position(path) if self._cut is not None else None
        if self._cut is not None and position is not None:
            return self._cut.model.leaves[position].shape[axis]
        return self.shape(name)[axis]


class Fixers:
    """Fixers by class; a class without one has that of the nearest class it is derived from."""

    def __init__(self):
        self._fixers: dict[type, Fixer] = {}

    def register(self, cls: type, fixer: Fixer) -> None:
        """Gives a class its fixer, in place of an earlier one."""
        self._fixers[cls] = fixer

    def attributes(self, instance: Any, layer: Layer) -> dict[str, Any]:
        """The attributes of a layer that must change, with their new values."""
        fixer = next((self._fixers[cls] for cls in type(instance).__mro__ if cls in self._fixers), None)
        new = fixer(instance, layer) if fixer is not None else {}
        return {name: value for name, value in new.items() if not _same(getattr(instance, name, None), value)}


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and old == new
