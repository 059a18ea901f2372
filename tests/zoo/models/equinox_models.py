"""Models of Equinox, whose parameters are the module with everything but its arrays left out."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.models._model import Draw, ZooModel


def build(name: str, module: Callable[[jax.Array], eqx.Module], seed: int, *shape: int) -> ZooModel:
    """The model with a batch of float inputs of this shape, and random arrays for all of its parameters."""
    draw = Draw(seed)
    shapes = eqx.filter_eval_shape(module, jax.random.key(0))
    shapes, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(x)

    return ZooModel(name, apply, draw.like(shapes), (draw.normal(*shape),))


def equinox_mlp() -> ZooModel:
    def mlp(key: jax.Array) -> eqx.Module:
        keys, activation = jax.random.split(key, 3), eqx.nn.Lambda(jax.nn.relu)
        first, second, head = (
            eqx.nn.Linear(inputs, outputs, key=key)
            for inputs, outputs, key in zip((7, 12, 10), (12, 10, 5), keys, strict=True)
        )
        return eqx.nn.Sequential([first, activation, second, activation, head])

    return build("equinox_mlp", mlp, 90, 3, 7)


class Block(eqx.Module):
    norm_attention: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm_hidden: eqx.nn.LayerNorm
    hidden: eqx.nn.Linear
    back: eqx.nn.Linear

    def __init__(self, width: int, hidden: int, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.norm_attention = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(2, width, qk_size=8, vo_size=9, use_output_bias=True, key=keys[0])
        self.norm_hidden = eqx.nn.LayerNorm(width)
        self.hidden = eqx.nn.Linear(width, hidden, key=keys[1])
        self.back = eqx.nn.Linear(hidden, width, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.vmap(self.norm_attention)(x)
        x = x + self.attention(h, h, h)
        h = jax.nn.gelu(jax.vmap(self.hidden)(jax.vmap(self.norm_hidden)(x)))
        return x + jax.vmap(self.back)(h)


class Transformer(eqx.Module):
    embed: eqx.nn.Linear
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Linear(7, 14, key=keys[0])
        self.blocks = [Block(14, 20, keys[1]), Block(14, 22, keys[2])]
        self.norm = eqx.nn.LayerNorm(14)
        self.head = eqx.nn.Linear(14, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(x)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def equinox_transformer() -> ZooModel:
    return build("equinox_transformer", Transformer, 91, 2, 5, 7)


class Recurrent(eqx.Module):
    """Two cells in one loop over time, and a head on the last step."""

    first: eqx.nn.GRUCell
    second: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.GRUCell(7, 12, key=keys[0])
        self.second = eqx.nn.GRUCell(12, 10, key=keys[1])
        self.head = eqx.nn.Linear(10, 5, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> tuple[Any, None]:
            first = self.first(x, state[0])
            return (first, self.second(first, state[1])), None

        start = jnp.zeros(self.first.hidden_size), jnp.zeros(self.second.hidden_size)
        return self.head(lax.scan(step, start, x)[0][1])


def equinox_gru() -> ZooModel:
    return build("equinox_gru", Recurrent, 92, 2, 6, 7)


class CNN(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(3, 12, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.GroupNorm(2, 12)
        self.second = eqx.nn.Conv2d(12, 14, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.hidden = eqx.nn.Linear(14 * 2 * 2, 22, key=keys[2])
        self.head = eqx.nn.Linear(22, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.pool(jax.nn.relu(self.norm(self.first(x))))
        x = self.pool(jax.nn.relu(self.second(x)))
        return self.head(jax.nn.relu(self.hidden(x.reshape(-1))))


def equinox_cnn() -> ZooModel:
    return build("equinox_cnn", CNN, 93, 2, 3, 8, 8)


BUILDERS = (equinox_mlp, equinox_transformer, equinox_gru, equinox_cnn)
