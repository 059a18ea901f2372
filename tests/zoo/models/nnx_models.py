"""Models of Flax NNX, whose parameters are the pure dictionary of their state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.zoo.models._model import Draw, ZooModel


def build(name: str, module: Callable[[nnx.Rngs], nnx.Module], draw: Draw, x: jax.Array) -> ZooModel:
    """The model with this one input, and random arrays for all of its state."""
    graph, state = nnx.split(nnx.eval_shape(lambda: module(nnx.Rngs(0))))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    return ZooModel(name, apply, draw.like(nnx.to_pure_dict(state)), (x,))


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(7, 12, rngs=rngs)
        self.second = nnx.Linear(12, 10, rngs=rngs)
        self.head = nnx.Linear(10, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


def nnx_mlp() -> ZooModel:
    draw = Draw(80)
    return build("nnx_mlp", MLP, draw, draw.normal(3, 7))


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([nnx.Conv(3, 10, (3, 3), rngs=rngs), nnx.Conv(10, 14, (3, 3), rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(width, use_running_average=True, rngs=rngs) for width in (10, 14)])
        self.hidden = nnx.Linear(14 * 2 * 2, 22, rngs=rngs)
        self.head = nnx.Linear(22, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


def nnx_cnn() -> ZooModel:
    draw = Draw(81)
    return build("nnx_cnn", CNN, draw, draw.normal(2, 8, 8, 3))


class Block(nnx.Module):
    def __init__(self, width: int, features: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, features, decode=False, rngs=rngs)
        self.norm_hidden = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = nnx.Linear(width, hidden, rngs=rngs)
        self.back = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm_attention(x))
        return x + self.back(nnx.gelu(self.hidden(self.norm_hidden(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(23, 14, rngs=rngs)
        self.positions = nnx.Embed(8, 14, rngs=rngs)
        self.blocks = nnx.List([Block(14, 12, 20, rngs), Block(14, 16, 22, rngs)])
        self.norm = nnx.LayerNorm(14, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


def nnx_transformer() -> ZooModel:
    draw = Draw(82)
    return build("nnx_transformer", Transformer, draw, draw.tokens(2, 5, vocabulary=23))


class Recurrent(nnx.Module):
    """One layer of each cell, and a head on the last step."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.RNN(nnx.GRUCell(7, 12, rngs=rngs), rngs=False)
        self.second = nnx.RNN(nnx.LSTMCell(12, 10, rngs=rngs), rngs=False)
        self.head = nnx.Linear(10, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        rngs = nnx.Rngs(0)  # asked for, though the first carries are zero
        return self.head(self.second(self.first(x, rngs=rngs), rngs=rngs)[:, -1])


def nnx_recurrent() -> ZooModel:
    draw = Draw(83)
    return build("nnx_recurrent", Recurrent, draw, draw.normal(2, 6, 7))


BUILDERS = (nnx_mlp, nnx_cnn, nnx_transformer, nnx_recurrent)
