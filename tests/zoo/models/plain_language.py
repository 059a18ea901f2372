"""Transformers and other sequence models written with jax.numpy and jax.lax only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.models._model import Draw, ZooModel, dense, layer_norm, over_last

HEAD_SIZE = 8


def attend(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
    """Attention of [batch, length, heads, size] each; allowed is [queries, keys]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = jnp.where(allowed[None, None], scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * over_last(scale, x)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding of [batch, length, heads, size], by halves."""
    half = x.shape[-1] // 2
    frequencies = 10.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * frequencies[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def bert() -> ZooModel:
    """Token and position embeddings, normalisation after the sum, and a head tied to the embedding."""
    draw = Draw(20)
    width, heads, head_size = 14, 3, 6

    def draw_layer(hidden: int) -> dict[str, Any]:
        layer = {name: draw.dense(width, heads * head_size) for name in ("query", "key", "value")}
        return {
            **layer,
            "out": draw.dense(heads * head_size, width),
            "norm_attention": draw.norm(width),
            "hidden": draw.dense(width, hidden),
            "back": draw.dense(hidden, width),
            "norm_hidden": draw.norm(width),
        }

    params = {
        "tokens": draw.normal(23, width),
        "positions": draw.normal(8, width),
        "norm": draw.norm(width),
        "layers": [draw_layer(20), draw_layer(26)],
        "transform": draw.dense(width, width),
        "norm_transform": draw.norm(width),
        "head_bias": draw.bias(23),
    }

    def layer(params: Any, x: jax.Array) -> jax.Array:
        batch, length, _ = x.shape
        q, k, v = (dense(params[name], x).reshape(batch, length, -1, head_size) for name in ("query", "key", "value"))
        mixed = dense(params["out"], attend(q, k, v).reshape(batch, length, -1))
        x = layer_norm(params["norm_attention"], x + mixed)
        hidden = jax.nn.gelu(dense(params["hidden"], x))
        return layer_norm(params["norm_hidden"], x + dense(params["back"], hidden))

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["tokens"][tokens] + params["positions"][: tokens.shape[1]][None]
        x = layer_norm(params["norm"], x)
        for layer_params in params["layers"]:
            x = layer(layer_params, x)
        x = layer_norm(params["norm_transform"], jax.nn.gelu(dense(params["transform"], x)))
        return x @ params["tokens"].T + over_last(params["head_bias"], x)

    return ZooModel("bert", apply, params, (draw.tokens(2, 6, vocabulary=23),))


def draw_llama_layer(draw: Draw, hidden: int = 18) -> dict[str, jax.Array]:
    """Four heads on two of keys and values, of `HEAD_SIZE` each."""
    return {
        "norm_attention": draw.positive(12),
        "query": draw.weight(12, 4 * HEAD_SIZE),
        "key": draw.weight(12, 2 * HEAD_SIZE),
        "value": draw.weight(12, 2 * HEAD_SIZE),
        "out": draw.weight(4 * HEAD_SIZE, 12),
        "norm_hidden": draw.positive(12),
        "gate": draw.weight(12, hidden),
        "up": draw.weight(12, hidden),
        "down": draw.weight(hidden, 12),
    }


def llama_hidden(params: Any, x: jax.Array) -> jax.Array:
    h = rms_norm(params["norm_hidden"], x)
    return x + (jax.nn.silu(h @ params["gate"]) * (h @ params["up"])) @ params["down"]


def llama_layer(params: Any, x: jax.Array) -> jax.Array:
    batch, length, _ = x.shape
    h = rms_norm(params["norm_attention"], x)
    q, k, v = ((h @ params[name]).reshape(batch, length, -1, HEAD_SIZE) for name in ("query", "key", "value"))
    positions = jnp.arange(length)
    q, k = rotate(q, positions), rotate(k, positions)
    k, v = (jnp.repeat(part, q.shape[2] // k.shape[2], axis=2) for part in (k, v))
    mixed = attend(q, k, v, allowed=jnp.tril(jnp.ones((length, length), bool)))
    return llama_hidden(params, x + mixed.reshape(batch, length, -1) @ params["out"])


def llama(name: str, layers: Any, run: Callable[[Any, jax.Array], jax.Array], draw: Draw) -> ZooModel:
    params = {"tokens": draw.normal(29, 12), "layers": layers, "norm": draw.positive(12)}

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = run(params["layers"], params["tokens"][tokens])
        return rms_norm(params["norm"], x) @ params["tokens"].T

    return ZooModel(name, apply, params, (draw.tokens(2, 5, vocabulary=29),))


def llama_unrolled() -> ZooModel:
    draw = Draw(21)

    def run(layers: Any, x: jax.Array) -> jax.Array:
        for params in layers:
            x = llama_layer(params, x)
        return x

    return llama("llama_unrolled", [draw_llama_layer(draw, hidden) for hidden in (18, 22)], run, draw)


def stacked_layers(draw: Draw) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(draw_llama_layer(draw) for _ in range(3)))


def llama_scan() -> ZooModel:
    draw = Draw(22)

    def run(layers: Any, x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, params: (llama_layer(params, carry), None), x, layers)[0]

    return llama("llama_scan", stacked_layers(draw), run, draw)


def llama_remat() -> ZooModel:
    draw = Draw(23)

    def run(layers: Any, x: jax.Array) -> jax.Array:
        remat_layer = jax.checkpoint(llama_layer)
        return lax.scan(lambda carry, params: (remat_layer(params, carry), None), x, layers)[0]

    return llama("llama_remat", stacked_layers(draw), run, draw)


def kv_cache() -> ZooModel:
    """One decoding step, which writes its keys and values into the caches it was given."""
    draw = Draw(24)
    params = {"tokens": draw.normal(29, 12), "layer": draw_llama_layer(draw), "head": draw.dense(12, 29)}
    caches = {"key": draw.normal(2, 9, 2, HEAD_SIZE), "value": draw.normal(2, 9, 2, HEAD_SIZE)}

    def apply(params: Any, tokens: jax.Array, caches: Any, position: jax.Array) -> tuple[jax.Array, Any]:
        layer = params["layer"]
        x = params["tokens"][tokens][:, None]
        h = rms_norm(layer["norm_attention"], x)
        q, k, v = ((h @ layer[name]).reshape(len(x), 1, -1, HEAD_SIZE) for name in ("query", "key", "value"))
        q, k = rotate(q, position[None]), rotate(k, position[None])
        k = lax.dynamic_update_slice(caches["key"], k, (0, position, 0, 0))
        v = lax.dynamic_update_slice(caches["value"], v, (0, position, 0, 0))
        grouped = q.reshape(len(x), k.shape[2], -1, HEAD_SIZE)
        scores = jnp.einsum("bgrd,btgd->bgrt", grouped, k) / HEAD_SIZE**0.5
        seen = (jnp.arange(k.shape[1]) <= position)[None, None, None]
        mixed = jnp.einsum("bgrt,btgd->bgrd", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v)
        x = llama_hidden(layer, x + mixed.reshape(len(x), 1, -1) @ layer["out"])
        return dense(params["head"], x[:, 0]), {"key": k, "value": v}

    return ZooModel("kv_cache", apply, params, (draw.tokens(2, vocabulary=29), caches, jnp.int32(4)))


def fused_qkv(name: str, split: Callable[[jax.Array], Any], seed: int) -> ZooModel:
    draw = Draw(seed)
    params = {
        "embed": draw.dense(7, 10),
        "qkv": draw.dense(10, 3 * 2 * HEAD_SIZE),
        "out": draw.dense(2 * HEAD_SIZE, 10),
        "hidden": draw.dense(10, 18),
        "head": draw.dense(18, 5),
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = dense(params["embed"], x)
        mixed = attend(*split(dense(params["qkv"], x)))
        x = x + dense(params["out"], mixed.reshape(*x.shape[:2], -1))
        return dense(params["head"], jax.nn.relu(dense(params["hidden"], x)))

    return ZooModel(name, apply, params, (draw.normal(2, 5, 7),))


def fused_qkv_split() -> ZooModel:
    def split(qkv: jax.Array) -> Any:
        return [part.reshape(2, 5, 2, HEAD_SIZE) for part in jnp.split(qkv, 3, axis=-1)]

    return fused_qkv("fused_qkv_split", split, 25)


def fused_qkv_reshape() -> ZooModel:
    def split(qkv: jax.Array) -> Any:
        qkv = qkv.reshape(*qkv.shape[:2], 3, -1, HEAD_SIZE)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    return fused_qkv("fused_qkv_reshape", split, 26)


def draw_experts(draw: Draw, width: int, hidden: int) -> dict[str, Any]:
    experts = 6
    return {
        "embed": draw.dense(7, width),
        "router": draw.weight(width, experts),
        "up": draw.weight(experts, width, hidden, fan_in=width),
        "up_bias": draw.bias(experts, hidden),
        "down": draw.weight(experts, hidden, width, fan_in=hidden),
        "head": draw.dense(width, 5),
    }


def moe_dense() -> ZooModel:
    """The two best of six experts for each token, dispatched and combined by one-hot products."""
    draw = Draw(27)
    params = draw_experts(draw, 14, 10)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = dense(params["embed"], x)
        experts = params["router"].shape[1]
        gates, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        chosen = jax.nn.one_hot(chosen, experts, dtype=x.dtype)
        given = jnp.einsum("tke,td->etd", chosen, x)
        hidden = jax.nn.relu(jnp.einsum("etd,edh->eth", given, params["up"]) + params["up_bias"][:, None])
        combine = jnp.einsum("tke,tk->te", chosen, gates)
        x = x + jnp.einsum("te,eth,ehd->td", combine, hidden, params["down"])
        return dense(params["head"], x)

    return ZooModel("moe_dense", apply, params, (draw.normal(9, 7),))


def moe_ragged() -> ZooModel:
    """One expert for each token, by sorting the tokens and `lax.ragged_dot`."""
    draw = Draw(28)
    params = draw_experts(draw, 12, 16)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = dense(params["embed"], x)
        probabilities = jax.nn.softmax(x @ params["router"])
        chosen = jnp.argmax(probabilities, axis=-1)
        order = jnp.argsort(chosen)
        sizes = jax.nn.one_hot(chosen, params["router"].shape[1], dtype=jnp.int32).sum(0)
        hidden = lax.ragged_dot(x[order], params["up"], sizes) + params["up_bias"][chosen[order]]
        out = lax.ragged_dot(jax.nn.silu(hidden), params["down"], sizes)
        out = jnp.zeros_like(out).at[order].set(out)
        return dense(params["head"], x + out * probabilities.max(-1, keepdims=True))

    return ZooModel("moe_ragged", apply, params, (draw.normal(9, 7),))


def lora() -> ZooModel:
    """Dense layers with a low-rank update added to the kernel, or applied beside it."""
    draw = Draw(29)

    def draw_layer(inputs: int, rank: int, outputs: int) -> dict[str, jax.Array]:
        adapter = {"down": draw.weight(inputs, rank), "up": draw.weight(rank, outputs)}
        return {**draw.dense(inputs, outputs), **adapter}

    params = {"first": draw_layer(7, 6, 12), "second": draw_layer(12, 8, 14), "head": draw.dense(14, 5)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        first, second = params["first"], params["second"]
        x = jax.nn.relu(x @ (first["kernel"] + first["down"] @ first["up"]) + first["bias"][None])
        x = jax.nn.relu(dense(second, x) + 0.5 * (x @ second["down"] @ second["up"]))
        return dense(params["head"], x)

    return ZooModel("lora", apply, params, (draw.normal(3, 7),))


def fourier_mixer() -> ZooModel:
    """Mixes along the sequence by a Fourier transform, which leaves the features alone."""
    draw = Draw(30)
    params = {
        "tokens": draw.normal(23, 14),
        "norms": [draw.norm(14), draw.norm(14)],
        "hidden": draw.dense(14, 20),
        "back": draw.dense(20, 14),
        "head": draw.dense(14, 5),
    }

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["tokens"][tokens]
        x = layer_norm(params["norms"][0], x + jnp.fft.fft(x, axis=1).real)
        hidden = jax.nn.gelu(dense(params["hidden"], x))
        x = layer_norm(params["norms"][1], x + dense(params["back"], hidden))
        return dense(params["head"], x.mean(1))

    return ZooModel("fourier_mixer", apply, params, (draw.tokens(2, 6, vocabulary=23),))


BUILDERS = (
    bert,
    llama_unrolled,
    llama_scan,
    llama_remat,
    kv_cache,
    fused_qkv_split,
    fused_qkv_reshape,
    moe_dense,
    moe_ragged,
    lora,
    fourier_mixer,
)
