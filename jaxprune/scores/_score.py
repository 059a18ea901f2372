"""What all scores share."""

from collections.abc import Callable
from typing import Protocol

import jax

from jaxprune import trees
from jaxprune._dtypes import at_least_float32
from jaxprune.trees import PyTree


class Score(Protocol):
    """A function from parameters, and what else it needs, to a tree of scores."""

    def __call__(
        self,
        params: PyTree,
        *,
        grads: PyTree | None = None,
        key: jax.Array | None = None,
        stats: PyTree | None = None,
    ) -> PyTree:
        """Scores every weight; higher is kept."""
        ...


def map_floating(function: Callable[..., jax.Array], params: PyTree, *rest: PyTree) -> PyTree:
    """Maps over the floating leaves; other leaves are never pruned and pass as they are."""
    return jax.tree.map(lambda p, *r: function(p, *r) if trees.is_floating(p) else p, params, *rest)


def widen(array: jax.Array) -> jax.Array:
    """At least float32: squares of 16-bit gradients underflow."""
    return array.astype(at_least_float32(array.dtype))


def require(value: PyTree | None, name: str, score: str) -> PyTree:
    """Returns a value that a score cannot do without, or raises a ValueError that says how to give it."""
    if value is None:
        raise ValueError(
            f"the score {score} needs {name}=. Pass it to compute_masks, or to jp.pruners.static, which chooses before "
            "there are gradients; other pruners have them in each update. A key goes to jp.sparsify."
        )
    return value
