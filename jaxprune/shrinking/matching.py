"""Which parts of a tree are like a model's parameters: the parameters, their masks, moments, moving averages.

They are found by their paths, so that the containers may differ (an optimiser's state of NNX has other variables than
its model), and parameters may be missing where something else leaves them out (`optax.masked`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.tracing import Model
from jaxprune.trees import PyTree


def parts_of(model: Model) -> list[Mapping[str, int]]:
    """The positions of the parameters by path: of all of them, and of each part of the tree with paths of its own."""
    whole = jax.tree.unflatten(jax.tree.structure(model.params), range(len(model.paths)))
    return [dict(trees.leaves_with_paths(part)) for part in _nodes(whole)]


def _nodes(tree: PyTree) -> Iterator[PyTree]:
    """A tree and all trees inside it, from the outside to the inside; no leaves."""
    level = jax.tree_util.default_registry.flatten_one_level(tree)
    if level is not None:
        yield tree
        for child in level[0]:
            yield from _nodes(child)


def like(parts: Sequence[Mapping[str, int]], node: PyTree) -> list[list[int]]:
    """The positions of the parameters that the leaves of a node stand for, for each part that has all their paths."""
    paths = trees.paths(node)
    return [[part[path] for path in paths] for part in parts if all(path in part for path in paths)] if paths else []


def fits(model: Model, number: int, leaf: Any) -> bool:
    """Whether a leaf has the shape of a parameter, or is a mask for it."""
    shape, own = getattr(leaf, "shape", None), model.leaves[number].shape
    if shape is None:
        return isinstance(leaf, bool)
    return tuple(shape) == own or (getattr(leaf, "dtype", None) == bool and _broadcasts(shape, own))


def _broadcasts(shape: Sequence[int], own: Sequence[int]) -> bool:
    return len(shape) in (0, len(own)) and all(a in (1, b) for a, b in zip(shape, own, strict=len(shape) > 0))


def derived(model: Model, number: int, leaf: Any) -> bool:
    """Whether a leaf comes from a parameter in a way that a cut cannot follow: a factored moment, a packed mask."""
    shape, own = tuple(np.shape(leaf)), model.leaves[number].shape
    if getattr(leaf, "dtype", None) == np.uint8:
        return any(shape == (*own[:k], -(-size // 8), *own[k + 1 :]) for k, size in enumerate(own))
    return len(shape) > 0 and any(shape == own[:k] + own[k + 1 :] for k in range(len(own)))


def positions_in(model: Model, params: PyTree) -> list[int]:
    """The positions, among a model's parameters, of the leaves of a tree that is all of them or a part of them.

    Leaves may be missing, where the optimiser does not see them.

    Raises:
      ValueError: the tree is neither, or it may be any of several parts.
    """
    leaves = jax.tree.leaves(params)
    found = [
        numbers
        for numbers in like(parts_of(model), params)
        if all(fits(model, number, leaf) for number, leaf in zip(numbers, leaves, strict=True))
    ]
    if len(found) == 1:
        return found[0]
    words = "are neither those that the model was traced with nor a part of them"
    if found:
        places = trees.list_paths([model.paths[numbers[0]] for numbers in found])
        words = f"have the paths and shapes of several parts of those that the model was traced with, such as {places}"
    raise ValueError(
        f"these parameters {words}; trace the model with the parameters that are optimised. Traced: "
        f"{trees.list_paths(model.paths)}."
    )
