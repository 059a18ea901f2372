"""`Plan`: which indices of which groups stay. Booleans and nothing else, so it can be saved, compared and edited."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.tracing import Model
from jaxprune.trees import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The kept indices of some groups of a model; groups that are not named keep all.

    Attributes:
      keep: bool[size] by the id of the group.
      fingerprint: the model that the plan was made for; None (a plan made by hand) fits any model whose groups it
      names.

    Example:
      >>> plan = Plan({"first:1": [True, False, True]})
      >>> plan
      Plan(first:1: 2 of 3)
      >>> Plan.from_json(plan.to_json()).keep["first:1"].tolist()
      [True, False, True]
    """

    keep: Mapping[str, Any]
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        keep = {name: np.asarray(mask) for name, mask in self.keep.items()}
        for name, mask in keep.items():
            if mask.dtype != bool or mask.ndim != 1:
                raise ValueError(
                    f"the plan for group {name!r} has dtype {mask.dtype} and shape {mask.shape}; give one bool for "
                    "each index, True where it is kept."
                )
        object.__setattr__(self, "keep", keep)

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{name}: {mask.sum()} of {mask.size}' for name, mask in self.keep.items())})"

    def check(self, model: Model) -> None:
        """Raises a ValueError that says why the plan does not fit a model, if it does not."""
        for name, mask in self.keep.items():
            if name not in model.groups:
                raise ValueError(
                    f"the plan names the group {name!r}, which this model has not: it is a plan of another model, or "
                    f"the group has been frozen. The groups are {trees.list_paths(list(model.groups))}."
                )
            size = model.groups[name].size
            if mask.size != size:
                raise ValueError(
                    f"the plan has {mask.size} indices for group {name!r}, which has {size} here: it is a plan of "
                    "another model, or of this one at another size."
                )
            if not mask.any():
                raise ValueError(
                    f"the plan keeps no index of group {name!r}, which would leave arrays without elements; keep one, "
                    "or remove the whole layer (jaxprune.depth)."
                )
        if self.fingerprint is not None and self.fingerprint != model.fingerprint:
            raise ValueError(
                "the plan was made for another model: its parameters have other paths, shapes or groups than this "
                "one's. Make a plan from this model's groups."
            )

    def masks(self, model: Model, *, consumers_only: bool = False) -> PyTree:
        """The masks that the plan means for the parameters.

        Args:
          model: the model.
          consumers_only: zero the weights that read an index only, in the groups where that is the same as to remove
            it. Otherwise all weights of an index are zeroed, which is what training under masks wants; except where
            the model would divide by them (a weight norm), and only those that read the index are.

        Returns:
          A tree of NumPy bools like the parameters, each of its parameter's rank, broadcastable against it; True for a
          parameter that no group of the plan touches.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
          >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
          >>> masks = Plan({"a:1": [True, False, True]}).masks(model)
          >>> masks["a"].tolist(), masks["b"].tolist()
          ([[True, False, True]], [[True], [False], [True]])
        """
        self.check(model)
        masks = [np.ones((), bool) for _ in model.paths]
        for name, mask in self.keep.items():
            group, sizes = model.groups[name], model.sizes({name: mask})
            for member in group.zeroed(consumers_only=consumers_only):
                rank = len(model.leaves[member.leaf].shape)
                own = sizes.mask(model.dims_of(member.leaf)[member.axis])
                if not own.all():
                    shape = [-1 if axis == member.axis else 1 for axis in range(rank)]
                    masks[member.leaf] = masks[member.leaf] & own.reshape(shape)
        return jax.tree.unflatten(jax.tree.structure(model.params), masks)

    def then(self, later: "Plan") -> "Plan":
        """This plan, and after it another that was made for the model it leaves.

        Args:
          later: a plan for the smaller model, whose groups have the ids of this model's.

        Returns:
          One plan for the original model.

        Raises:
          ValueError: a group has not as many indices in `later` as this plan keeps, or may have another id there: where
            an axis has several groups, the others are counted anew when one of them falls to a single index.

        Example:
          >>> first = Plan({"g": [True, False, True, True]})
          >>> first.then(Plan({"g": [False, True, True]})).keep["g"].tolist()
          [False, False, True, True]
        """
        keep = dict(self.keep)
        for name, mask in later.keep.items():
            if moved := _moved(self.keep, name):
                raise ValueError(
                    f"the later plan names the group {name!r}, and the first one cuts {moved} on the same axis: a "
                    "group that falls to one index is none any more, and those beside it get other ids. Make both "
                    "choices in one plan of the first model."
                )
            if name not in keep:
                keep[name] = mask
                continue
            kept = np.flatnonzero(keep[name])
            if kept.size != mask.size:
                raise ValueError(
                    f"the first plan keeps {kept.size} indices of group {name!r}, the later one chooses from "
                    f"{mask.size}; trace the shrunk model and make the later plan from that."
                )
            keep[name] = np.isin(np.arange(keep[name].size), kept[mask])
        return Plan(keep, self.fingerprint)

    def to_json(self) -> str:
        """The plan as JSON: for each group its size and the indices that are kept."""
        keep = {name: {"size": mask.size, "kept": np.flatnonzero(mask).tolist()} for name, mask in self.keep.items()}
        return json.dumps({"fingerprint": self.fingerprint, "keep": keep})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: it is no plan.
        """
        try:
            stored = json.loads(text)
            keep = {name: _dense(entry) for name, entry in stored["keep"].items()}
            return cls(keep, stored["fingerprint"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"this is no plan as Plan.to_json writes it: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Writes the plan to a JSON file."""
        Path(path).write_text(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a plan that `save` wrote."""
        return cls.from_json(Path(path).read_text())


def _moved(keep: Mapping[str, np.ndarray], name: str) -> list[str]:
    """The groups of a plan because of which an id of the model that it leaves may stand for another group."""
    axis, own = _axis_and_part(name)
    beside = [(other, part) for other in keep for place, part in [_axis_and_part(other)] if place == axis]
    if name in keep:
        return [other for other, part in beside if part < own and keep[other].sum() == 1]
    return [other for other, part in beside if part < 0 or own < 0 or keep[other].sum() == 1]


def _axis_and_part(name: str) -> tuple[str, int]:
    """`("q:1", 0)` of the id `"q:1:0"`; the part is -1 where the axis has one group only."""
    found = re.fullmatch(r"(.+?:\d+)(?::(\d+))?", name)
    return (found[1], int(found[2] or -1)) if found else (name, -1)


def _dense(entry: Mapping[str, Any]) -> np.ndarray:
    size, kept = entry["size"], entry["kept"]
    if not isinstance(size, int) or size < 0 or not all(isinstance(index, int) and 0 <= index < size for index in kept):
        raise IndexError(f"indices {kept} of {size}")
    return np.isin(np.arange(size), kept)
