"""Federated averaging as an Optax optimiser on the server, with sparse messages.

The mean change of the clients is minus a gradient (Reddi et al. 2021, arXiv 2003.00295): SGD with learning rate 1 on it
is federated averaging (McMahan et al. 2017, arXiv 1602.05629). So pruning on the server is `jp.sparsify(optax.sgd(1),
pruner)`, with any pruner and nothing else changed; the masks in its state are what is sent, and clients keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from examples.federation import messages
from examples.federation.clients import PRUNABLE, Clients, Network, make_gradients, make_training
from jaxprune import trees

PyTree = Any
DROP_FRACTION = 0.3


@dataclass(frozen=True)
class Settings:
    """What the runs of a comparison share.

    Attributes:
      rounds: how many times server and clients exchange.
      every: rounds between changes of masks, for methods that change them.
      epochs: passes of a client over its images in a round.
      batch_size: of a client's steps.
      learning_rate: of a client's SGD.
    """

    rounds: int
    every: int
    epochs: int
    batch_size: int
    learning_rate: float

    def at(self, fraction: float) -> int:
        """The round at a fraction of all, before the last one even in the shortest run."""
        return min(round(fraction * self.rounds), self.rounds - 1)


# (sparsity, settings, mean gradients at the start) -> pruner of the server.
METHODS: Mapping[str, Callable[[float, Settings, PyTree], jp.Pruner]] = {
    "random": lambda s, r, g: jp.pruners.static(s, score=jp.scores.random, where=PRUNABLE),
    "snip": lambda s, r, g: jp.pruners.static(s, score=jp.scores.saliency, grads=g, where=PRUNABLE),
    "gmp": lambda s, r, g: jp.pruners.gmp(s, begin=r.at(0.1), end=r.at(0.5), every=r.every, where=PRUNABLE),
    "rigl": lambda s, r, g: jp.pruners.rigl(
        s, every=r.every, end=r.at(0.75), drop_fraction=DROP_FRACTION, where=PRUNABLE
    ),
}
NAMES: tuple[str, ...] = ("dense", *METHODS)
NEEDS_GRADIENTS = frozenset({"snip", "rigl"})
"""SNIP asks for all gradients before the first round, RigL for the largest ones whenever masks change."""


@dataclass(frozen=True)
class Compiled:
    """The compiled functions that the runs of a comparison share.

    Attributes:
      network: the model.
      settings: see `Settings`.
      train: what clients do in a round, from `make_training`.
      gradients: of each client, from `make_gradients`.
      updates: what the server does with the mean change, by method and sparsity; filled as it is needed.
    """

    network: Network
    settings: Settings
    train: Callable[..., PyTree]
    gradients: Callable[..., PyTree]
    updates: dict[tuple[str, float], Callable[..., Any]]


def compiled(network: Network, settings: Settings) -> Compiled:
    """The functions of a comparison; nothing is compiled before it runs."""
    train = make_training(network, settings.learning_rate, settings.epochs, settings.batch_size)
    return Compiled(network, settings, train, make_gradients(network), {})


def run(
    functions: Compiled,
    clients: Clients,
    method: str,
    sparsity: float,
    seed: int,
    evaluate: Callable[[PyTree], float],
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Trains one model.

    Args:
      functions: from `compiled`.
      clients: their images.
      method: one of `NAMES`.
      sparsity: fraction of zeros of the hidden kernels; ignored for `dense`.
      seed: of the initial parameters, the masks and the order of the images.
      evaluate: parameters to accuracy.
      after_round: called after each round.

    Returns:
      By round: `accuracy`, and `up` and `down`, the bytes that all clients together have sent and got until then.
      `masks_up` and `masks_down` are the part of the totals that is not values of weights.
    """
    settings, train, gradients = functions.settings, functions.train, functions.gradients
    keys = [jax.random.fold_in(jax.random.key(seed), k) for k in range(3)]
    params: PyTree = jax.device_get(functions.network.init(keys[0], clients.x[0, :1]))
    count, up, down, masks_up, masks_down = len(clients), 0, 0, 0, 0
    grads = None
    if method == "snip":
        # To score a weight that is not there a client needs it: one dense exchange before the first round.
        dense = len(messages.encode_values(params, _all_kept(params)))
        up, down = count * dense, count * dense
        masks_up, masks_down = up, down
        grads = jax.tree.map(lambda g: g.mean(0), gradients(params, clients.x, clients.y))
    pruner = None if method == "dense" else METHODS[method](sparsity, settings, grads)
    tx = optax.sgd(1.0) if pruner is None else jp.sparsify(optax.sgd(1.0), pruner, key=keys[1])
    state = tx.init(params)
    # Seeds share the update: the key and the gradients of a pruner matter to `init` alone.
    update = functions.updates.setdefault((method, sparsity), jax.jit(tx.update))

    known: PyTree | None = None
    history: dict[str, list[float]] = {"accuracy": [], "up": [], "down": []}
    for number in range(settings.rounds):
        masks = _all_kept(params) if pruner is None else _sent_masks(state, params, known)
        head = messages.encode_masks(masks, known)
        message = head + messages.encode_values(params, masks)
        down, masks_down = down + count * len(message), masks_down + count * len(head)

        # All clients get the same message and read the same model from it.
        received_masks, rest = (masks, message) if masks is known else messages.decode_masks(message, known, masks)
        received, _ = messages.decode_values(rest, received_masks, params)
        known = received_masks = masks if masks is known else received_masks
        trained = jax.device_get(
            train(received, received_masks, clients.x, clients.y, jax.random.fold_in(keys[2], number))
        )

        exchange = method == "rigl" and pruner is not None and bool(pruner.is_update(jnp.asarray(number, jnp.int32)))
        counts = _exchanged(masks) if exchange else [0] * len(jax.tree.leaves(masks))
        dense_grads = jax.device_get(gradients(received, clients.x, clients.y)) if exchange else None
        change = jax.tree.map(np.zeros_like, params)
        for k in range(count):
            mine = jax.tree.map(lambda leaf, k=k: leaf[k], trained)
            answer = messages.encode_values(mine, received_masks)
            extra = b""
            if dense_grads is not None:
                wanted = jax.tree.map(lambda leaf, k=k: leaf[k], dense_grads)
                extra = messages.encode_extra(wanted, received_masks, counts)
            up, masks_up = up + len(answer) + len(extra), masks_up + len(extra)
            values, _ = messages.decode_values(answer, masks, params)
            growth = messages.decode_extra(extra, counts, params)
            change = jax.tree.map(
                lambda c, old, new, grow: c + (old - new + grow) / count, change, received, values, growth
            )
        updates, state = update(change, state, received)
        params = jax.device_get(optax.apply_updates(received, updates))
        for name, value in (("accuracy", evaluate(params)), ("up", up), ("down", down)):
            history[name].append(value)
        after_round()
    kept = sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(params))
    return history | {"masks_up": masks_up, "masks_down": masks_down, "nonzero": kept}


def _all_kept(params: PyTree) -> PyTree:
    return jax.tree.map(lambda _: np.ones((), bool), params)


def _sent_masks(state: Any, params: PyTree, known: PyTree | None) -> PyTree:
    """The masks in the server's state, scalar where nothing is ever pruned; `known` itself where none has changed."""
    flags = trees.resolve_where(PRUNABLE, params)
    masks = jax.device_get(jp.get_masks(state, params))
    masks = jax.tree.map(lambda flag, mask: np.asarray(mask, bool) if flag else np.ones((), bool), flags, masks)
    if known is not None and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(known), strict=True)
    ):
        return known
    return masks


def _exchanged(masks: PyTree) -> list[int]:
    """How many weights of each leaf an exchange can replace at the most."""
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    return [min(int(np.ceil(DROP_FRACTION * m.sum())), int(m.size - m.sum())) if m.shape else 0 for m in leaves]
