"""The clients: who has which images, and what each does with the model it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import linen as nn

import jaxprune as jp

PyTree = Any
Partition = Literal["iid", "shards"]
PRUNABLE = r"params/Dense_[01]/kernel"
"""The kernels of the hidden layers; the output layer and the biases are always sent whole."""


class Network(nn.Module):
    """A perceptron with two hidden layers of ReLU units.

    Attributes:
      widths: units of the hidden layers.
      classes: how many labels there are.
    """

    widths: tuple[int, int] = (300, 100)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `(n, classes)` of images `(n, ...)`."""
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


@dataclass(frozen=True)
class Clients:
    """The images of all clients, each with as many.

    Attributes:
      x: float32[clients, n, pixels], from 0 to 1.
      y: int32[clients, n].
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def partition(x: np.ndarray, y: np.ndarray, clients: int, kind: Partition, seed: int) -> Clients:
    """Shares images between clients.

    Args:
      x: bytes (n, height, width, channels).
      y: int (n,).
      clients: how many there are.
      kind: `iid` deals the images at random; `shards` sorts them by label, cuts them into two parts a client, and deals
        two to each, so that most clients see two labels only (McMahan et al. 2017).
      seed: of the shuffling.

    Returns:
      Clients with equally many images; what does not divide is left out.

    Raises:
      ValueError: there are not two images a client, or `kind` is unknown.
    """
    if kind not in ("iid", "shards"):
        raise ValueError(f"kind={kind!r}; allowed are iid and shards.")
    shard = len(x) // (2 * clients) if clients > 0 else 0
    if not shard:
        raise ValueError(f"clients={clients}: {len(x)} images are there, and each client needs two.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    if kind == "shards":
        order = order[np.argsort(y[order], kind="stable")]
    dealt = rng.permutation(2 * clients).reshape(clients, 2)
    index = order[: 2 * clients * shard].reshape(2 * clients, shard)[dealt].reshape(clients, 2 * shard)
    return Clients(x[index].reshape(clients, 2 * shard, -1).astype(np.float32) / 255, y[index].astype(np.int32))


def loss_of(network: Network, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross entropy."""
    logits: Any = network.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def make_training(
    network: Network, learning_rate: float, epochs: int, batch_size: int
) -> Callable[[PyTree, PyTree, jax.Array, jax.Array, jax.Array], PyTree]:
    """Compiles what all clients do in a round: SGD over their own images, zeros kept.

    Args:
      network: the model.
      learning_rate: of plain SGD.
      epochs: passes over the images of a client.
      batch_size: of each step.

    Returns:
      `(params, masks, x, y, key) -> parameters of every client`, with a leading axis for clients.
    """

    def one(params: PyTree, masks: PyTree, x: jax.Array, y: jax.Array, key: jax.Array) -> PyTree:
        size = min(batch_size, len(x))
        tx = optax.chain(optax.sgd(learning_rate), jp.keep_masks(masks))
        orders = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(jax.random.split(key, epochs))
        batches = orders[:, : len(x) // size * size].reshape(-1, size)

        def step(carry: tuple[PyTree, Any], index: jax.Array) -> tuple[tuple[PyTree, Any], None]:
            params, state = carry
            grads = jax.grad(lambda p: loss_of(network, p, x[index], y[index]))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return params

    @jax.jit
    def every(params: PyTree, masks: PyTree, x: jax.Array, y: jax.Array, key: jax.Array) -> PyTree:
        return jax.vmap(one, in_axes=(None, None, 0, 0, 0))(params, masks, x, y, jax.random.split(key, len(x)))

    return every


def make_gradients(network: Network) -> Callable[[PyTree, jax.Array, jax.Array], PyTree]:
    """Compiles the gradient of every client over all its images, with a leading axis for clients."""
    grads = jax.grad(lambda params, x, y: loss_of(network, params, x, y))
    return jax.jit(jax.vmap(grads, in_axes=(None, 0, 0)))
