"""Models of Haiku. It is no dependency of the tests: without it, the zoo has none of these."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from tests.zoo.models._model import Draw, ZooModel


def build(name: str, function: Callable[[jax.Array], jax.Array], seed: int, *shape: int) -> ZooModel:
    """The model with one float input of this shape, and random arrays for all of its parameters."""
    draw = Draw(seed)
    args = (draw.normal(*shape),)
    model = hk.without_apply_rng(hk.transform(function))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Haiku needs
            return model.apply(params, x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), *args)
    return ZooModel(name, apply, draw.like(shapes), args)


def haiku_cnn() -> ZooModel:
    def cnn(x: jax.Array) -> jax.Array:
        x = hk.max_pool(jax.nn.relu(hk.Conv2D(10, 3)(x)), (2, 2, 1), (2, 2, 1), "VALID")
        x = hk.avg_pool(jax.nn.relu(hk.Conv2D(14, 3)(x)), (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(5)(jax.nn.relu(hk.Linear(22)(hk.Flatten()(x))))

    return build("haiku_cnn", cnn, 100, 2, 8, 8, 3)


def haiku_transformer() -> ZooModel:
    def block(x: jax.Array, hidden: int) -> jax.Array:
        width, start = x.shape[-1], hk.initializers.VarianceScaling()
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = x + hk.MultiHeadAttention(2, key_size=8, w_init=start, value_size=6, model_size=width)(h, h, h)
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        return x + hk.Linear(width)(jax.nn.gelu(hk.Linear(hidden)(h)))

    def transformer(x: jax.Array) -> jax.Array:
        x = block(block(hk.Linear(14)(x), 20), 22)
        return hk.Linear(5)(x)

    return build("haiku_transformer", transformer, 101, 2, 5, 7)


def haiku_lstm() -> ZooModel:
    def lstm(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x, 0, 1)
        for width in (12, 10):
            core = hk.LSTM(width)
            x, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return hk.Linear(5)(x[-1])

    return build("haiku_lstm", lstm, 102, 2, 6, 7)


BUILDERS = (haiku_cnn, haiku_transformer, haiku_lstm)
