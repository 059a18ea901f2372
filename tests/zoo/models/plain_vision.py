"""Image models written with jax.numpy and jax.lax only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.models._model import Draw, ZooModel, dense, layer_norm, over_last


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    return convolve(x, kernel, stride, groups=x.shape[-1])


def draw_conv(draw: Draw, size: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A convolution and the batch normalisation behind it; inputs are those of one group."""
    return {
        "kernel": draw.weight(size, size, inputs, outputs),
        "mean": draw.bias(outputs),
        "variance": draw.positive(outputs),
        **draw.norm(outputs),
    }


def conv_norm(params: dict[str, Any], x: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    x = convolve(x, params["kernel"], stride, groups)
    factor = params["scale"] * lax.rsqrt(params["variance"] + 1e-5)
    return (x - over_last(params["mean"], x)) * over_last(factor, x) + over_last(params["bias"], x)


def mobilenet() -> ZooModel:
    """Inverted bottlenecks with depthwise convolutions and squeeze-and-excitation."""
    draw = Draw(0)

    def draw_block(inputs: int, width: int, squeezed: int, outputs: int) -> dict[str, Any]:
        return {
            "expand": draw_conv(draw, 1, inputs, width),
            "depthwise": draw_conv(draw, 3, 1, width),
            "squeeze": draw.dense(width, squeezed),
            "excite": draw.dense(squeezed, width),
            "project": draw_conv(draw, 1, width, outputs),
        }

    params = {
        "stem": draw_conv(draw, 3, 3, 10),
        "first": draw_block(10, 24, 7, 10),
        "second": draw_block(10, 18, 9, 14),
        "last": draw_conv(draw, 1, 14, 22),
        "head": draw.dense(22, 5),
    }

    def block(params: Any, x: jax.Array, stride: int) -> jax.Array:
        h = jax.nn.silu(conv_norm(params["expand"], x))
        h = jax.nn.silu(conv_norm(params["depthwise"], h, stride, groups=h.shape[-1]))
        squeezed = jax.nn.relu(dense(params["squeeze"], h.mean((1, 2))))
        h = h * jax.nn.sigmoid(dense(params["excite"], squeezed))[:, None, None, :]
        h = conv_norm(params["project"], h)
        return x + h if h.shape == x.shape else h

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = jax.nn.silu(conv_norm(params["stem"], images, stride=2))
        x = block(params["second"], block(params["first"], x, 1), 2)
        x = jax.nn.relu6(conv_norm(params["last"], x))
        return dense(params["head"], x.mean((1, 2)))

    return ZooModel("mobilenet", apply, params, (draw.normal(2, 8, 8, 3),))


def resnext() -> ZooModel:
    """Residual blocks around grouped convolutions, the second with a projected shortcut."""
    draw = Draw(1)
    params = {
        "stem": draw_conv(draw, 3, 3, 12),
        "first": [draw_conv(draw, 1, 12, 16), draw_conv(draw, 3, 4, 16), draw_conv(draw, 1, 16, 12)],
        "second": [draw_conv(draw, 1, 12, 24), draw_conv(draw, 3, 8, 24), draw_conv(draw, 1, 24, 18)],
        "shortcut": draw_conv(draw, 1, 12, 18),
        "head": draw.dense(18, 5),
    }

    def branch(params: Any, x: jax.Array, stride: int, groups: int) -> jax.Array:
        x = jax.nn.relu(conv_norm(params[0], x))
        x = jax.nn.relu(conv_norm(params[1], x, stride, groups))
        return conv_norm(params[2], x)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv_norm(params["stem"], images))
        x = jax.nn.relu(x + branch(params["first"], x, 1, groups=4))
        x = jax.nn.relu(conv_norm(params["shortcut"], x, 2) + branch(params["second"], x, 2, groups=3))
        return dense(params["head"], x.mean((1, 2)))

    return ZooModel("resnext", apply, params, (draw.normal(2, 8, 8, 3),))


def shufflenet() -> ZooModel:
    """Units of ShuffleNet v2: channel split, concatenation and channel shuffle."""
    draw = Draw(2)

    def draw_branch(inputs: int, width: int, outputs: int) -> list[Any]:
        return [draw_conv(draw, 1, inputs, width), draw_conv(draw, 3, 1, width), draw_conv(draw, 1, width, outputs)]

    params = {
        "stem": draw_conv(draw, 3, 3, 16),
        "basic": draw_branch(8, 9, 8),
        "down_left": [draw_conv(draw, 3, 1, 16), draw_conv(draw, 1, 16, 10)],
        "down_right": draw_branch(16, 14, 10),
        "last": draw_branch(10, 11, 10),
        "head": draw.dense(20, 5),
    }

    def branch(params: Any, x: jax.Array, stride: int = 1) -> jax.Array:
        x = jax.nn.relu(conv_norm(params[0], x))
        x = conv_norm(params[1], x, stride, groups=x.shape[-1])
        return jax.nn.relu(conv_norm(params[2], x))

    def shuffle(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height, width, 2, channels // 2).swapaxes(3, 4).reshape(x.shape)

    def unit(params: Any, x: jax.Array) -> jax.Array:
        kept, changed = jnp.split(x, 2, axis=-1)
        return shuffle(jnp.concatenate([kept, branch(params, changed)], axis=-1))

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = unit(params["basic"], jax.nn.relu(conv_norm(params["stem"], images)))
        left = conv_norm(params["down_left"][0], x, 2, groups=16)
        left = jax.nn.relu(conv_norm(params["down_left"][1], left))
        x = shuffle(jnp.concatenate([left, branch(params["down_right"], x, 2)], axis=-1))
        return dense(params["head"], unit(params["last"], x).mean((1, 2)))

    return ZooModel("shufflenet", apply, params, (draw.normal(2, 8, 8, 3),))


def swin() -> ZooModel:
    """Shifted windows of attention with a table of relative positions, and patch merging."""
    draw = Draw(3)
    window, head_size = 4, 6

    def draw_block(width: int, heads: int, hidden: int) -> dict[str, Any]:
        return {
            "norm_attention": draw.norm(width),
            "qkv": draw.dense(width, 3 * heads * head_size),
            "positions": draw.normal((2 * window - 1) ** 2, heads),
            "out": draw.dense(heads * head_size, width),
            "norm_hidden": draw.norm(width),
            "hidden": draw.dense(width, hidden),
            "back": draw.dense(hidden, width),
        }

    params = {
        "embed": {"kernel": draw.weight(2, 2, 3, 10), "bias": draw.bias(10)},
        "blocks": [draw_block(10, 2, 20), draw_block(10, 2, 22)],
        "merge_norm": draw.norm(40),
        "merge": draw.weight(40, 14),
        "last": draw_block(14, 3, 26),
        "head": draw.dense(14, 5),
    }
    corners = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    offsets = corners[:, None] - corners[None] + window - 1
    relative = offsets[..., 0] * (2 * window - 1) + offsets[..., 1]

    def partition(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // window, window, width // window, window, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)

    def mask(height: int, shift: int) -> np.ndarray:
        """Where two places of one window come from the same side of the image's seam."""
        part = np.digitize(np.arange(height), [height - window, height - shift])
        parts = (3 * part[:, None] + part[None]).reshape(height // window, window, height // window, window)
        parts = parts.transpose(0, 2, 1, 3).reshape(-1, window * window)
        return parts[:, :, None] == parts[:, None, :]

    def attention(params: Any, x: jax.Array, shift: int) -> jax.Array:
        batch, height, width, _ = x.shape
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        windows = partition(x)
        qkv = dense(params["qkv"], windows)
        heads = qkv.shape[-1] // (3 * head_size)
        q, k, v = jnp.unstack(qkv.reshape(-1, window * window, 3, heads, head_size), axis=2)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / head_size**0.5
        scores = scores + params["positions"][relative].transpose(2, 0, 1)[None]
        if shift:
            allowed = jnp.tile(jnp.asarray(mask(height, shift)), (batch, 1, 1))
            scores = jnp.where(allowed[:, None], scores, -1e9)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
        mixed = dense(params["out"], mixed.reshape(-1, window * window, heads * head_size))
        mixed = mixed.reshape(batch, height // window, width // window, window, window, mixed.shape[-1])
        mixed = mixed.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, mixed.shape[-1])
        return jnp.roll(mixed, (shift, shift), (1, 2)) if shift else mixed

    def block(params: Any, x: jax.Array, shift: int) -> jax.Array:
        x = x + attention(params, layer_norm(params["norm_attention"], x), shift)
        hidden = jax.nn.gelu(dense(params["hidden"], layer_norm(params["norm_hidden"], x)))
        return x + dense(params["back"], hidden)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(images, params["embed"]["kernel"], (2, 2), "VALID", dimension_numbers=layout)
        x = x + over_last(params["embed"]["bias"], x)
        x = block(params["blocks"][1], block(params["blocks"][0], x, 0), window // 2)
        corners = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        x = layer_norm(params["merge_norm"], jnp.concatenate(corners, axis=-1)) @ params["merge"]
        return dense(params["head"], block(params["last"], x, 0).mean((1, 2)))

    return ZooModel("swin", apply, params, (draw.normal(2, 16, 16, 3),))


def channels_first_cnn() -> ZooModel:
    """Channels on axis 1, kernels of outputs by inputs, a window maximum and a flattening."""
    draw = Draw(4)
    params = {
        "first": {"kernel": draw.weight(10, 3, 3, 3, fan_in=27), "bias": draw.bias(10)},
        "second": {"kernel": draw.weight(14, 10, 3, 3, fan_in=90), "bias": draw.bias(14)},
        "hidden": draw.dense(14 * 2 * 2, 22),
        "head": draw.dense(22, 5),
    }

    def stage(params: Any, x: jax.Array) -> jax.Array:
        x = lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = jax.nn.relu(x + params["bias"][None, :, None, None])
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = stage(params["second"], stage(params["first"], images))
        x = jax.nn.relu(dense(params["hidden"], x.reshape(x.shape[0], -1)))
        return dense(params["head"], x)

    return ZooModel("channels_first_cnn", apply, params, (draw.normal(2, 3, 8, 8),))


def pixel_shuffle() -> ZooModel:
    """An upsampler: four channels become the four pixels of one."""
    draw = Draw(5)
    params = {
        "stem": draw_conv(draw, 3, 3, 12),
        "body": [draw_conv(draw, 3, 12, 10), draw_conv(draw, 3, 10, 12)],
        "expand": {"kernel": draw.weight(3, 3, 12, 28), "bias": draw.bias(28)},
        "out": draw.weight(3, 3, 7, 3),
    }

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = conv_norm(params["stem"], images)
        x = x + conv_norm(params["body"][1], jax.nn.relu(conv_norm(params["body"][0], x)))
        x = convolve(x, params["expand"]["kernel"])
        x = x + over_last(params["expand"]["bias"], x)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, 2 * height, 2 * width, channels // 4)
        return convolve(jax.nn.relu(x), params["out"])

    return ZooModel("pixel_shuffle", apply, params, (draw.normal(2, 4, 4, 3),))


def transposed_attention() -> ZooModel:
    """The block of Restormer: softmax over channels, and a gated depthwise feed-forward."""
    draw = Draw(6)
    params = {
        "embed": draw.weight(3, 3, 3, 12),
        "norm_attention": draw.norm(12),
        "qkv": draw.weight(1, 1, 12, 48),
        "qkv_depthwise": draw.weight(3, 3, 1, 48),
        "temperature": draw.positive(2),
        "out": draw.weight(1, 1, 16, 12),
        "norm_hidden": draw.norm(12),
        "hidden": draw.weight(1, 1, 12, 28),
        "hidden_depthwise": draw.weight(3, 3, 1, 28),
        "back": draw.weight(1, 1, 14, 12),
        "last": draw.weight(3, 3, 12, 3),
    }

    def normalise(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)

    def attention(params: Any, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        qkv = depthwise(convolve(x, params["qkv"]), params["qkv_depthwise"])
        channels = qkv.shape[-1] // 3

        def split_heads(part: jax.Array) -> jax.Array:
            return part.reshape(batch, height * width, 2, channels // 2).transpose(0, 2, 3, 1)

        q, k, v = (split_heads(part) for part in jnp.split(qkv, 3, axis=-1))
        scores = normalise(q) @ normalise(k).swapaxes(2, 3) * params["temperature"][None, :, None, None]
        mixed = (jax.nn.softmax(scores) @ v).transpose(0, 3, 1, 2).reshape(batch, height, width, channels)
        return convolve(mixed, params["out"])

    def apply(params: Any, images: jax.Array) -> jax.Array:
        x = convolve(images, params["embed"])
        x = x + attention(params, layer_norm(params["norm_attention"], x))
        hidden = convolve(layer_norm(params["norm_hidden"], x), params["hidden"])
        gate, value = jnp.split(depthwise(hidden, params["hidden_depthwise"]), 2, axis=-1)
        x = x + convolve(jax.nn.gelu(gate) * value, params["back"])
        return images + convolve(x, params["last"])

    return ZooModel("transposed_attention", apply, params, (draw.normal(2, 4, 4, 3),))


def tied_autoencoder() -> ZooModel:
    """A decoder whose weights are the encoder's, transposed."""
    draw = Draw(7)
    params = {
        "kernels": [draw.weight(20, 14), draw.weight(14, 9)],
        "encoder_biases": [draw.bias(14), draw.bias(9)],
        "decoder_biases": [draw.bias(20), draw.bias(14)],
    }

    def apply(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        for kernel, bias in zip(params["kernels"], params["encoder_biases"], strict=True):
            x = jnp.tanh(x @ kernel + bias[None])
        code = x
        x = jnp.tanh(x @ params["kernels"][1].T + params["decoder_biases"][1][None])
        return {"code": code, "reconstruction": x @ params["kernels"][0].T + params["decoder_biases"][0][None]}

    return ZooModel("tied_autoencoder", apply, params, (draw.normal(3, 20),))


BUILDERS = (
    mobilenet,
    resnext,
    shufflenet,
    swin,
    channels_first_cnn,
    pixel_shuffle,
    transposed_attention,
    tied_autoencoder,
)
