"""Recommenders, sequence models and unusual programs written with jax.numpy and jax.lax only."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.models._model import Draw, ZooModel, dense, over_last


def matrix_factorization() -> ZooModel:
    """The rating is the product of a row of users and a row of items, and both their biases."""
    draw = Draw(40)
    params = {
        "users": draw.normal(11, 9),
        "items": draw.normal(13, 9),
        "user_biases": draw.bias(11),
        "item_biases": draw.bias(13),
    }

    def apply(params: Any, users: jax.Array, items: jax.Array) -> jax.Array:
        product = (params["users"][users] * params["items"][items]).sum(-1)
        return product + params["user_biases"][users] + params["item_biases"][items]

    pairs = draw.tokens(5, vocabulary=11), draw.tokens(5, vocabulary=13)
    return ZooModel("matrix_factorization", apply, params, pairs)


def neural_factorization() -> ZooModel:
    """A product of embeddings beside a network on other embeddings, concatenated."""
    draw = Draw(41)
    params = {
        "product_users": draw.normal(11, 8),
        "product_items": draw.normal(13, 8),
        "network_users": draw.normal(11, 10),
        "network_items": draw.normal(13, 7),
        "network": [draw.dense(17, 14), draw.dense(14, 6)],
        "head": draw.dense(14, 1),
    }

    def apply(params: Any, users: jax.Array, items: jax.Array) -> jax.Array:
        product = jnp.take(params["product_users"], users, axis=0) * params["product_items"][items]
        x = jnp.concatenate([params["network_users"][users], params["network_items"][items]], axis=-1)
        for layer in params["network"]:
            x = jax.nn.relu(dense(layer, x))
        return jax.nn.sigmoid(dense(params["head"], jnp.concatenate([product, x], axis=-1)))[:, 0]

    pairs = draw.tokens(5, vocabulary=11), draw.tokens(5, vocabulary=13)
    return ZooModel("neural_factorization", apply, params, pairs)


def wavenet() -> ZooModel:
    """Gated causal convolutions, ever more dilated, with residuals and a sum of skips."""
    draw = Draw(42)
    layers = [
        {
            "filter": draw.weight(2, 10, width),
            "gate": draw.weight(2, 10, width),
            "gate_bias": draw.bias(width),
            "skip": draw.weight(width, 18),
            "residual": draw.weight(width, 10),
        }
        for width in (14, 12, 16)
    ]
    del layers[-1]["residual"]  # only its skip is used
    params = {"embed": draw.dense(3, 10), "layers": layers, "hidden": draw.dense(18, 13), "head": draw.dense(13, 5)}

    def causal(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (1,), [(dilation, 0)], rhs_dilation=(dilation,), dimension_numbers=layout
        )

    def apply(params: Any, signal: jax.Array) -> jax.Array:
        x, skips = dense(params["embed"], signal), []
        for index, layer in enumerate(params["layers"]):
            gate = causal(x, layer["gate"], 2**index) + layer["gate_bias"][None, None]
            h = jnp.tanh(causal(x, layer["filter"], 2**index)) * jax.nn.sigmoid(gate)
            skips.append(h @ layer["skip"])
            x = x + h @ layer["residual"] if "residual" in layer else x
        return dense(params["head"], jax.nn.relu(dense(params["hidden"], jax.nn.relu(sum(skips[1:], skips[0])))))

    return ZooModel("wavenet", apply, params, (draw.normal(2, 12, 3),))


def control_flow() -> ZooModel:
    """A branch, a loop with a counter and a loop until it is done, each around weights of its own."""
    draw = Draw(43)
    params = {
        "embed": draw.dense(7, 12),
        "positive": draw.dense(12, 10),
        "negative": {"hidden": draw.dense(12, 8), "out": draw.dense(8, 10)},
        "refine": {"hidden": draw.dense(10, 16), "out": draw.dense(16, 10)},
        "until": draw.weight(10, 10),
        "head": draw.dense(10, 5),
    }

    def positive(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(dense(params["positive"], x))

    def negative(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["negative"]["out"], jax.nn.relu(dense(params["negative"]["hidden"], x)))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(params["embed"], x))
        h = lax.cond(x.sum() > 0, positive, negative, params, h)

        def refine(_: Any, h: jax.Array) -> jax.Array:
            return h + dense(params["refine"]["out"], jnp.tanh(dense(params["refine"]["hidden"], h)))

        h = lax.fori_loop(0, 3, refine, h)

        def unfinished(state: Any) -> jax.Array:
            return state[0] < 4

        def body(state: Any) -> Any:
            return state[0] + 1, jnp.tanh(state[1] @ params["until"])

        h = lax.while_loop(unfinished, body, (jnp.int32(0), h))[1]
        return dense(params["head"], h)

    return ZooModel("control_flow", apply, params, (draw.normal(3, 7),))


def time_operations() -> ZooModel:
    """Rearranges, pads, sorts and sums over time, which leaves the features alone."""
    draw = Draw(44)
    params = {
        "first": draw.dense(5, 12),
        "second": draw.dense(5, 12),
        "third": draw.dense(12, 14),
        "fourth": draw.dense(14, 10),
        "head": draw.dense(10, 6),
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        pair = jnp.stack([jax.nn.relu(dense(params["first"], x)), jnp.tanh(dense(params["second"], x))], axis=1)
        first, second = jnp.unstack(pair, axis=1)
        x = jnp.cumsum(first, axis=1) / 8 + jnp.flip(second, axis=1)
        x = jax.nn.relu(dense(params["third"], jnp.tile(x, (1, 2, 1))[:, 1::3]))
        x = jnp.sort(jnp.pad(x, ((0, 0), (2, 1), (0, 0))), axis=1)
        x = lax.slice_in_dim(dense(params["fourth"], x), 1, 8, 2, axis=1)
        return dense(params["head"], jnp.concatenate([x, lax.rev(x, (1,))], axis=1).max(1))

    return ZooModel("time_operations", apply, params, (draw.normal(2, 8, 5),))


def feature_operations() -> ZooModel:
    """Rearranges the features themselves: pads, tiles, repeats, interleaves, drops and reverses them."""
    draw = Draw(45)
    params = {
        "first": draw.dense(5, 10),
        "padded": draw.dense(10, 14),
        "gated": draw.dense(14, 16),
        "tiled": draw.dense(16, 9),
        "scale": draw.positive(9),
        "repeated": draw.dense(18, 12),
        "head": draw.dense(12, 3),
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(dense(params["first"], x))
        x = jax.nn.relu(jnp.pad(x, ((0, 0), (0, 4))) + dense(params["padded"], x))
        x = dense(params["gated"], x)
        x = x[:, ::2] * jax.nn.sigmoid(x[:, 1::2])
        x = jnp.tanh(dense(params["tiled"], jnp.tile(x, (1, 2))))
        x = jnp.repeat(x * params["scale"][None], 2, axis=1)
        x = dense(params["repeated"], jnp.flip(x, axis=1))
        return dense(params["head"], jnp.maximum(x, over_last(jnp.linspace(-1, 0, 12), x)))

    return ZooModel("feature_operations", apply, params, (draw.normal(3, 5),))


def ensemble() -> ZooModel:
    """Three networks at once, mapped over a leading axis of every parameter."""
    draw = Draw(46)
    params = {
        "first": {"kernel": draw.weight(3, 7, 12, fan_in=7), "bias": draw.bias(3, 12)},
        "second": {"kernel": draw.weight(3, 12, 10, fan_in=12), "bias": draw.bias(3, 10)},
        "head": {"kernel": draw.weight(3, 10, 5, fan_in=10), "bias": draw.bias(3, 5)},
    }

    def member(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(dense(params["first"], x))
        return dense(params["head"], jnp.tanh(dense(params["second"], x)))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(member, in_axes=(0, None))(params, x).mean(0)

    return ZooModel("ensemble", apply, params, (draw.normal(4, 7),))


@jax.custom_jvp
def leaky(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)


@leaky.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    return leaky(x), jnp.where(x > 0, tangent, 0.1 * tangent)


@jax.custom_vjp
def round_through(x: jax.Array) -> jax.Array:
    return jnp.round(4 * x) / 4


round_through.defvjp(lambda x: (round_through(x), None), lambda _, gradient: (gradient,))


def custom_gradients() -> ZooModel:
    """Activations with derivatives of their own, and weights rounded straight-through."""
    draw = Draw(47)
    params = {"layers": [draw.dense(7, 12), draw.dense(12, 10), draw.dense(10, 14)], "head": draw.dense(14, 5)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        first, second, third = params["layers"]
        x = leaky(dense(first, x))
        x = round_through(jax.nn.relu(dense({**second, "kernel": round_through(second["kernel"])}, x)))
        return dense(params["head"], jax.nn.silu(dense(third, x)))

    return ZooModel("custom_gradients", apply, params, (draw.normal(3, 7),))


def deep_sets() -> ZooModel:
    """A network on every element, the sum and the maximum over the set, and a network on both."""
    draw = Draw(48)
    params = {
        "each": [draw.dense(5, 12), draw.dense(12, 16)],
        "pooled": draw.dense(32, 10),
        "head": draw.dense(10, 3),
    }

    def apply(params: Any, elements: jax.Array, present: jax.Array) -> jax.Array:
        h = dense(params["each"][1], jax.nn.relu(dense(params["each"][0], elements)))
        present = present[..., None]
        total = jnp.where(present, h, 0.0).sum(1)
        largest = jnp.where(present, h, -jnp.inf).max(1)
        pooled = jnp.concatenate([total, largest], axis=-1)
        return dense(params["head"], jax.nn.relu(dense(params["pooled"], pooled)))

    present = jnp.asarray([[True, True, False, True], [True, False, False, True]])
    return ZooModel("deep_sets", apply, params, (draw.normal(2, 4, 5), present))


BUILDERS = (
    matrix_factorization,
    neural_factorization,
    wavenet,
    control_flow,
    time_operations,
    feature_operations,
    ensemble,
    custom_gradients,
    deep_sets,
)
