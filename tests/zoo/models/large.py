"""Models at their published sizes, for tracing on abstract shapes: no weight is ever allocated."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Bottleneck(nn.Module):
    """The block of ResNet-50: 1x1, 3x3, 1x1, and the skip."""

    width: int
    stride: int
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(self.norm()(nn.Conv(self.width, (3, 3), (self.stride, self.stride), use_bias=False)(y)))
        y = self.norm()(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = self.norm()(nn.Conv(4 * self.width, (1, 1), (self.stride, self.stride), use_bias=False)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """He et al. 2015, 1512.03385."""

    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1, norm)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class DenseNet121(nn.Module):
    """Huang et al. 2016, 1608.06993."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, layers in enumerate((6, 12, 24, 16)):
            for _ in range(layers):
                y = nn.Conv(128, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                y = nn.Conv(32, (3, 3), use_bias=False)(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], -1)
            if stage < 3:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(1000)(nn.relu(norm()(x)).mean((1, 2)))


def gpt(layers: int, width: int, heads: int, vocabulary: int = 50257) -> tuple[Callable[..., Any], Any]:
    """GPT-2 (pre-norm, learned positions, tied head), unrolled: the function and its abstract parameters."""

    def norm(p: Any, x: jax.Array) -> jax.Array:
        mean = x.mean(-1, keepdims=True)
        variance = (x * x).mean(-1, keepdims=True) - mean * mean
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"][None, None] + p["bias"][None, None]

    def block(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(norm(p["norm1"], x) @ p["qkv"], 3, -1)
        q, k, v = (y.reshape(*y.shape[:2], heads, width // heads) for y in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jax.nn.softmax(jnp.where(causal[None, None], scores, -1e9), -1)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape) @ p["out"]
        return x + jax.nn.gelu(norm(p["norm2"], x) @ p["up"]) @ p["down"]

    def apply_fn(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embedding"][tokens] + p["position"][None, : tokens.shape[1]]
        for layer in p["layers"]:
            x = block(layer, x)
        return norm(p["norm"], x) @ p["embedding"].T

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    norms = {"scale": array(width), "bias": array(width)}
    layer = {
        "norm1": norms,
        "norm2": norms,
        "qkv": array(width, 3 * width),
        "out": array(width, width),
        "up": array(width, 4 * width),
        "down": array(4 * width, width),
    }
    params = {
        "embedding": array(vocabulary, width),
        "position": array(1024, width),
        "norm": norms,
        "layers": [layer] * layers,
    }
    return apply_fn, params


def abstract(module: nn.Module, *args: Any) -> Any:
    """The abstract variables of a Linen module."""
    return jax.eval_shape(module.init, jax.random.key(0), *args)
