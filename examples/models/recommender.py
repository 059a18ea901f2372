"""Collaborative filtering as plain functions of a dictionary: matrix factorisation, and neural collaborative filtering.

Both look up a row of a table for the user and one for the item. The tables are nearly all of the weights, and what the
pruners of `examples/recommendation.py` work on. A row of zeros is a user or an item that is left with its bias alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Pairs = Mapping[str, Any]

TABLES = r"(user|item)/factors"
"""The embedding tables of both models, as a regular expression on paths."""

HIDDEN = (32, 16)
"""Units of the hidden layers of neural collaborative filtering."""


def init_factorisation(key: jax.Array, users: int, items: int, width: int, mean: float) -> PyTree:
    """Fresh parameters: factors of a normal distribution with deviation 0.1, zero biases, the mean of the ratings.

    Args:
      key: a typed PRNG key.
      users: how many users there are.
      items: how many items there are.
      width: numbers in a row of a table.
      mean: of the training ratings.
    """
    return {
        "mean": jnp.asarray(mean, jnp.float32),
        "user": {"factors": _table(key, 0, users, width), "bias": jnp.zeros(users)},
        "item": {"factors": _table(key, 1, items, width), "bias": jnp.zeros(items)},
    }


def factorisation(params: PyTree, pairs: Pairs) -> dict[str, jax.Array]:
    r"""Matrix factorisation with biases (Koren et al. 2009): $\mu + b_u + b_i + p_u^T q_i$.

    Args:
      params: from `init_factorisation`, of any width.
      pairs: `user` and `item`, int32[n].

    Returns:
      float32[n] each: `rating`; and `energy`, $|p_u|^2 + |q_i|^2$, and `bias_energy`, $b_u^2 + b_i^2$, for the
      regularisation of what a rating touches.
    """
    user, item = (_rows(params[side], pairs[side]) for side in ("user", "item"))
    dot = jnp.sum(user["factors"] * item["factors"], axis=-1)
    return {
        "rating": params["mean"] + user["bias"] + item["bias"] + dot,
        "energy": jnp.sum(user["factors"] ** 2, axis=-1) + jnp.sum(item["factors"] ** 2, axis=-1),
        "bias_energy": user["bias"] ** 2 + item["bias"] ** 2,
    }


def init_neural(key: jax.Array, users: int, items: int, width: int) -> PyTree:
    """Fresh parameters: a table a side, Glorot uniform kernels, zero biases.

    Args:
      key: a typed PRNG key.
      users: how many users there are.
      items: how many items there are.
      width: numbers in a row of a table.
    """
    glorot = jax.nn.initializers.glorot_uniform()
    params: PyTree = {
        "user": {"factors": _table(key, 0, users, width)},
        "item": {"factors": _table(key, 1, items, width), "bias": jnp.zeros(items)},
        "out": {"product": jnp.ones(width), "hidden": jnp.full(HIDDEN[-1], HIDDEN[-1] ** -0.5)},
    }
    for number, sizes in enumerate(pairwise((2 * width, *HIDDEN)), start=1):
        kernel = glorot(jax.random.fold_in(key, 1 + number), sizes, jnp.float32)
        params[f"layer{number}"] = {"kernel": kernel, "bias": jnp.zeros(sizes[1])}
    return params


def neural(params: PyTree, pairs: Pairs) -> dict[str, jax.Array]:
    """Neural collaborative filtering: a weighted product of both rows beside a perceptron of them.

    NeuMF of He et al. 2017 (arXiv 1708.05031), with one table a side for both branches and a bias an item.

    Args:
      params: from `init_neural`, of any width.
      pairs: `user` and `item`, int32[n].

    Returns:
      float32[n] each: `logit` of an interaction, and `energy`, the squares of the rows that were looked up.
    """
    user, item = (_rows(params[side], pairs[side]) for side in ("user", "item"))
    product = jnp.sum(user["factors"] * item["factors"] * params["out"]["product"][None], axis=-1)
    hidden = jnp.concatenate([user["factors"], item["factors"]], axis=-1)
    for number in range(1, len(HIDDEN) + 1):
        layer = params[f"layer{number}"]
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"][None])
    return {
        "logit": item["bias"] + product + hidden @ params["out"]["hidden"],
        "energy": jnp.sum(user["factors"] ** 2, axis=-1) + jnp.sum(item["factors"] ** 2, axis=-1),
    }


def _table(key: jax.Array, number: int, rows: int, width: int) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.fold_in(key, number), (rows, width))


def _rows(tables: PyTree, index: jax.Array) -> PyTree:
    """The row of each index. Where the tables leave out rows of zeros, `present` says which position a row has."""
    position = tables.get("position")
    looked_up = {}
    for name, table in tables.items():
        if name == "position":
            continue
        if position is None or name == "bias":
            looked_up[name] = table[index]
        else:
            looked_up[name] = table.at[position[index]].get(mode="fill", fill_value=0.0)
    return looked_up
