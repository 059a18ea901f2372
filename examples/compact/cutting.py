"""From zeros to a smaller model: dead hidden units by a plan, unused pixels by an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from examples.models import lenet

PyTree = Any


@dataclass(frozen=True)
class Compact:
    """A network without its dead units.

    Attributes:
      params: its parameters; dense arrays, in which zeros remain.
      pixels: bool `(pixels of an image,)`, which of them it reads.
      removed: hidden units that were removed, by the id of their group.
      verification: the hidden units' removal, against the model before it.
    """

    params: PyTree
    pixels: np.ndarray
    removed: dict[str, int]
    verification: jp.Verification

    def apply(self, params: PyTree, x: jax.Array) -> jax.Array:
        """Logits of whole images `(n, ...)`."""
        return lenet.apply(params, gather(x, self.pixels))


def gather(x: jax.Array, pixels: np.ndarray) -> jax.Array:
    """The pixels that are used, `(n, used)`, of whole images `(n, ...)`."""
    return x.reshape(len(x), -1)[:, np.flatnonzero(pixels)]


def compact(params: PyTree, x: jax.Array) -> Compact:
    """Removes the hidden units and the pixels that cannot influence the logits.

    A hidden unit without outgoing weights goes. So does one without incoming weights: it is a constant, which is added
    to the biases of the next layer. Afterwards a pixel is unused when its row of the first kernel is zero; images are
    arguments of the traced function, whose axes a plan leaves alone, so these rows are cut here, and the index of the
    used pixels belongs to the model.

    Args:
      params: trained parameters with zeros.
      x: a batch of images, to verify on.

    Raises:
      AssertionError: the smaller function computes something else.
    """
    model = jp.trace(lenet.apply, params, x)
    plan, folded = jp.dead_units(model, params, x)
    verification = jp.verify(model, plan, folded, x, strict=True)
    small = jp.shrink(model, plan, folded)
    first = small["layer1"]
    pixels = np.asarray(np.any(np.asarray(first["kernel"]), axis=1))
    if not pixels.any():
        raise ValueError(
            "no pixel has a weight left: nothing was learnt, or the sparsity of the first layer is too high."
        )
    small = {**small, "layer1": {**first, "kernel": first["kernel"][np.flatnonzero(pixels)]}}
    removed = {name: int((~mask).sum()) for name, mask in plan.keep.items()}
    return Compact(small, pixels, removed, verification)


def largest_difference(
    one: Callable[[jax.Array], jax.Array], other: Callable[[jax.Array], jax.Array], x: jax.Array
) -> float:
    """The largest difference between two functions' outputs, as a fraction of the largest output of the first."""
    a, b = jax.jit(one)(x), jax.jit(other)(x)
    return float(jnp.abs(a - b).max() / jnp.abs(a).max())
