"""A small language model in Flax Linen: a decoder of the Llama kind.

Pre-norm blocks of causal self-attention (rotary positions; separate kernels for queries, keys, values and output) and
a gated MLP, RMS norms, no biases, an output layer of its own. Every kernel is `(in, out)`, so that all pruning
structures mean what they say. Blocks are unrolled as `block_0`, `block_1`, ...; `scan=True` stacks them instead, which
compiles faster and computes the same (`stack_blocks` converts the parameters).
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

PyTree = Any
# The linear layers of the blocks: what papers on pruning language models prune. The embedding and the output layer
# stay dense there. It matches unrolled and stacked blocks.
PRUNABLE = r"(block_\d+|blocks)/(attention/(query|key|value|output)|mlp/(gate|up|down))/kernel"


def rotary(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotates pairs of features by angles that grow with the position, so that products see distances.

    Args:
      x: queries or keys `(batch, length, heads, features)`; feature `i` pairs with `i + features / 2`.
      base: the slowest pair turns by one radian in about `base` positions.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None, None] * frequencies[None, None, None, :]
    first, second = x[..., :half], x[..., half:]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class Attention(nn.Module):
    """Causal self-attention.

    Attributes:
      heads: how many; they share the width among themselves.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)` to the same shape; position `i` sees none after `i`."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query = nn.Dense(width, use_bias=False, name="query")(x).reshape(split)
        key = nn.Dense(width, use_bias=False, name="key")(x).reshape(split)
        value = nn.Dense(width, use_bias=False, name="value")(x).reshape(split)
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotary(query), rotary(key)) / split[-1] ** 0.5
        visible = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return nn.Dense(width, use_bias=False, name="output")(mixed)


class GatedMLP(nn.Module):
    """A gated linear unit with SiLU (SwiGLU).

    Attributes:
      hidden: features between the two layers.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., width)` to the same shape."""
        gate = nn.silu(nn.Dense(self.hidden, use_bias=False, name="gate")(x))
        up = nn.Dense(self.hidden, use_bias=False, name="up")(x)
        return nn.Dense(x.shape[-1], use_bias=False, name="down")(gate * up)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut.

    Attributes:
      heads: of the attention.
      hidden: features of the MLP.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)` to the same shape."""
        x = x + Attention(self.heads, name="attention")(nn.RMSNorm(name="norm_attention")(x))
        return x + GatedMLP(self.hidden, name="mlp")(nn.RMSNorm(name="norm_mlp")(x))


class Decoder(nn.Module):
    """A decoder-only language model.

    Attributes:
      vocabulary: number of tokens.
      width: features of the residual stream; divisible by twice `heads`.
      depth: number of blocks.
      heads: of each attention.
      hidden: features of each MLP.
      scan: stack the blocks and loop over them with `nn.scan`.
    """

    vocabulary: int
    width: int = 256
    depth: int = 4
    heads: int = 4
    hidden: int = 672
    scan: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps token ids `(batch, length)` to the logits of each next token `(batch, length, vocabulary)`."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}; a multiple of twice the {self.heads} heads is needed")
        x = nn.Embed(self.vocabulary, self.width, name="embedding")(tokens)
        if self.scan:
            loop = nn.scan(
                lambda block, carry, _: (block(carry), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = loop(Block(self.heads, self.hidden, name="blocks"), x, None)
        else:
            for i in range(self.depth):
                x = Block(self.heads, self.hidden, name=f"block_{i}")(x)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.RMSNorm(name="norm_final")(x))


def stack_blocks(params: PyTree) -> PyTree:
    """Converts parameters (or masks) of an unrolled `Decoder` for one with `scan=True`."""
    blocks = sorted((name for name in params if re.fullmatch(r"block_\d+", name)), key=lambda name: int(name[6:]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in blocks))
    return {name: leaf for name, leaf in params.items() if name not in blocks} | {"blocks": stacked}


def unstack_blocks(params: PyTree) -> PyTree:
    """The inverse of `stack_blocks`."""
    depth = len(jax.tree.leaves(params["blocks"])[0])
    blocks = {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}
    return {name: leaf for name, leaf in params.items() if name != "blocks"} | blocks
