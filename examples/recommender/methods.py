"""What is pruned together, and by which methods: the names that `jp.compare` gets.

- *element*: single weights of the tables, by random masks, gradual magnitude pruning and RigL;
- *row*: whole users and items, which are then left with their biases: at random, or by gradual pruning of the rows that
  matter least to the training part, $|p_u|^2$ times how often the row is looked up;
- *dimension*: whole columns of both tables together, as the trace ties them. They can be cut out. Of a half trained
  model they go at random or by their norm; a narrow model trained from the start is the control for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from examples.recommender.tasks import Task

PyTree = Any

STRUCTURES: Mapping[str, jp.Structure] = {
    "element": jp.Unstructured(),
    "row": jp.Channel(axis=0),
    "dimension": jp.Channel(axis=-1),
}
SPARSITIES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "factorisation": {"element": (0.8, 0.95), "row": (0.5, 0.8), "dimension": (0.8, 0.95)},
    "neural": {"element": (0.5, 0.8), "row": (0.5, 0.8), "dimension": (0.5, 0.8)},
}
"""What is compared by default: of each model and structure, where random pruning hurts and how far one can go."""


NOTES: Mapping[str, str] = {
    "element": "Single weights of the tables. Random masks leave a user and an item few dimensions in common.",
    "row": "Whole users and items, left with their biases. Usage: |w|^2 of a row times its training ratings.",
    "dimension": "Columns of both tables together, cut out halfway at random or by norm. Narrow: a model of that width "
    "from the start; there is nothing to gain from training a wide one first where it is as good.",
}
"""What the report says on the methods of each structure."""


def methods_of(structure: str, task: Task, params: PyTree) -> dict[str, Any]:
    """The methods of a structure by name.

    Args:
      structure: one of `STRUCTURES`.
      task: the task.
      params: parameters of the full model, concrete or abstract.

    Returns:
      What `jp.compare(methods=)` takes.

    Raises:
      ValueError: an unknown structure.
    """
    if structure == "element":
        return {"random": "random", "gmp": "gmp", "rigl": "rigl"}
    if structure == "row":
        score = usage_score(task)
        return {
            "random": "random",
            "usage": lambda s: jp.pruners.gmp(s.sparsity, score=score, **s.window(), **s.shared()),
        }
    if structure == "dimension":
        model = jp.trace(task.apply, params, task.example)
        hidden = r"layer\d/bias" if "layer1" in params else None  # their units stay

        def halfway(score: Any) -> Any:
            return lambda s: jp.channel_gmp(
                model, s.sparsity, begin=s.at(0.5), end=s.at(0.5), score=score, ignore=hidden
            )

        return {
            "random": halfway(jp.scores.random),
            "norm": halfway(jp.scores.magnitude),
            "narrow": lambda s: jp.pruners.static(s.sparsity, score=first_dimensions, **s.shared()),
        }
    raise ValueError(f"structure={structure!r}; allowed are {', '.join(STRUCTURES)}.")


def usage_score(task: Task) -> Any:
    r"""A score of weights that knows how often each row is used: $|w| \sqrt{n}$.

    Its square, summed over a row, is how much of the training part's energy the row accounts for. Only training
    ratings are counted.

    Args:
      task: its training part is counted.

    Returns:
      A score as `jp.scores` has them.
    """

    def score(params: PyTree, **_: Any) -> PyTree:
        scores = jax.tree.map(jnp.abs, params)
        for side, index in (("user", task.train.user), ("item", task.train.item)):
            table = scores[side]["factors"]
            counts = np.bincount(index, minlength=len(table)).astype(np.float32)
            scores[side] = scores[side] | {"factors": table * jnp.sqrt(counts)[:, None]}
        return scores

    return score


def first_dimensions(params: PyTree, **_: Any) -> PyTree:
    """A score that keeps the first columns of every table: of a fresh model all columns are alike."""

    def one(leaf: jax.Array) -> jax.Array:
        if not leaf.ndim:
            return jnp.zeros_like(leaf)
        return jnp.broadcast_to(-jnp.arange(leaf.shape[-1], dtype=leaf.dtype), leaf.shape)

    return jax.tree.map(one, params)
