"""Models of Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.zoo.models._model import Draw, ZooModel


def build(name: str, module: nn.Module, seed: int, *shape: int) -> ZooModel:
    """The model with one float input of this shape, and random arrays for all of its variables."""
    draw = Draw(seed)
    args = (draw.normal(*shape),)
    variables = draw.like(jax.eval_shape(module.init, jax.random.key(0), *args))
    return ZooModel(name, module.apply, variables, args)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (12, 10):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(5)(x)


def linen_mlp() -> ZooModel:
    return build("linen_mlp", MLP(), 60, 3, 7)


def average_pool(x: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):  # Flax divides by a NumPy integer
        return nn.avg_pool(x, (2, 2), (2, 2))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(10, (3, 3))(x)), (2, 2), (2, 2))
        x = average_pool(nn.relu(nn.Conv(14, (3, 3))(x)))
        x = nn.relu(nn.Dense(22)(x.reshape(x.shape[0], -1)))
        return nn.Dense(5)(x)


def linen_cnn() -> ZooModel:
    return build("linen_cnn", CNN(), 61, 2, 8, 8, 3)


class ResidualBlock(nn.Module):
    hidden: int
    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Conv(self.hidden, (3, 3), self.stride, use_bias=False)(x)
        h = nn.relu(nn.BatchNorm(not self.train)(h))
        h = nn.BatchNorm(not self.train)(nn.Conv(self.width, (3, 3), use_bias=False)(h))
        if x.shape != h.shape:
            x = nn.BatchNorm(not self.train)(nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + h)


class ResNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(not self.train)(nn.Conv(12, (3, 3), use_bias=False)(x)))
        x = ResidualBlock(10, 12, 1, self.train)(x)
        x = ResidualBlock(14, 18, 2, self.train)(x)
        return nn.Dense(5)(x.mean((1, 2)))


def linen_resnet() -> ZooModel:
    return build("linen_resnet", ResNet(), 62, 2, 8, 8, 3)


def linen_resnet_training() -> ZooModel:
    """Normalises by the statistics of the batch, and returns the moving ones too."""
    model = build("linen_resnet_training", ResNet(train=True), 63, 3, 8, 8, 3)

    def apply(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        return model.apply_fn(variables, images, mutable=["batch_stats"])

    return ZooModel(model.name, apply, model.params, model.args)


class DenseNet(nn.Module):
    """Every layer sees what all before it made; a transition halves the image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(10, (3, 3))(x)
        for widths in ((6, 8), (7, 9)):
            for width in widths:
                h = nn.relu(nn.BatchNorm(True)(x))
                h = nn.relu(nn.BatchNorm(True)(nn.Conv(11, (1, 1))(h)))
                x = jnp.concatenate([x, nn.Conv(width, (3, 3))(h)], axis=-1)
            x = average_pool(nn.Conv(13, (1, 1))(nn.relu(nn.BatchNorm(True)(x))))
        return nn.Dense(5)(x.mean((1, 2)))


def linen_densenet() -> ZooModel:
    return build("linen_densenet", DenseNet(), 64, 2, 8, 8, 3)


class TransformerBlock(nn.Module):
    hidden: int
    features: int = 16  # of all heads together

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=self.features, out_features=width)
        x = x + attention(nn.LayerNorm()(x))
        return x + nn.Dense(width)(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(23, 12)(tokens) + nn.Embed(8, 12)(jnp.arange(tokens.shape[1]))[None]
        x = TransformerBlock(20, features=18)(TransformerBlock(22)(x))
        return nn.Dense(23)(nn.LayerNorm()(x))


def linen_transformer() -> ZooModel:
    draw = Draw(65)
    args = (draw.tokens(2, 5, vocabulary=23),)
    variables = draw.like(jax.eval_shape(Transformer().init, jax.random.key(0), *args))
    return ZooModel("linen_transformer", Transformer().apply, variables, args)


class VisionTransformer(nn.Module):
    """Patches, a class token and an embedding of positions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(14, (4, 4), strides=4, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("class_token", nn.initializers.zeros, (1, 1, 14))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 14)), x], axis=1)
        x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], 14))
        x = TransformerBlock(24, features=18)(TransformerBlock(20)(x))
        return nn.Dense(5)(nn.LayerNorm()(x)[:, 0])


def linen_vit() -> ZooModel:
    return build("linen_vit", VisionTransformer(), 66, 2, 8, 8, 3)


class Recurrent(nn.Module):
    """Two recurrent layers, and a head on the last step."""

    cell: type[nn.RNNCellBase]
    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.RNN(self.cell(width))(x)
        return nn.Dense(5)(x[:, -1])


def linen_lstm() -> ZooModel:
    return build("linen_lstm", Recurrent(nn.LSTMCell, (12, 10)), 67, 2, 6, 7)


def linen_optimized_lstm() -> ZooModel:
    return build("linen_optimized_lstm", Recurrent(nn.OptimizedLSTMCell, (10, 14)), 68, 2, 6, 7)


def linen_gru() -> ZooModel:
    return build("linen_gru", Recurrent(nn.GRUCell, (14, 9)), 69, 2, 6, 7)


class Bidirectional(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Bidirectional(nn.RNN(nn.GRUCell(10)), nn.RNN(nn.OptimizedLSTMCell(12)))(x)
        return nn.Dense(5)(nn.relu(nn.Dense(14)(x)))


def linen_bidirectional() -> ZooModel:
    return build("linen_bidirectional", Bidirectional(), 70, 2, 6, 7)


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.remat(TransformerBlock)(20)(x), None


class ScanTransformer(nn.Module):
    """Three rematerialised blocks whose parameters are stacked."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(12)(x)
        blocks = nn.scan(ScanBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks()(x, None)
        return nn.Dense(6)(nn.LayerNorm()(x))


def linen_scan_transformer() -> ZooModel:
    return build("linen_scan_transformer", ScanTransformer(), 71, 2, 5, 7)


class UNet(nn.Module):
    """Down twice, up once by a transposed convolution and once by resizing, with skips."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        full = self.stage(x, 12)
        half = self.stage(nn.max_pool(full, (2, 2), (2, 2)), 16)
        x = self.stage(nn.Conv(20, (3, 3), strides=2)(half), 24)
        x = nn.ConvTranspose(18, (2, 2), strides=(2, 2))(x)
        x = self.stage(jnp.concatenate([x, half], axis=-1), 14)
        x = jax.image.resize(x, (*full.shape[:3], x.shape[-1]), "bilinear")
        x = self.stage(jnp.concatenate([full, x], axis=-1), 10)
        return nn.Conv(3, (1, 1))(x)

    def stage(self, x: jax.Array, width: int) -> jax.Array:
        return nn.silu(nn.GroupNorm(num_groups=2)(nn.Conv(width, (3, 3))(x)))


def linen_unet() -> ZooModel:
    return build("linen_unet", UNet(), 72, 2, 8, 8, 3)


class WeightNormalised(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.WeightNorm(nn.Conv(10, (3, 3)))(x))
        x = nn.relu(nn.WeightNorm(nn.Conv(14, (3, 3), strides=2))(x))
        x = nn.relu(nn.WeightNorm(nn.Dense(12))(x.mean((1, 2))))
        return nn.Dense(5)(x)


def linen_weight_norm() -> ZooModel:
    return build("linen_weight_norm", WeightNormalised(), 73, 2, 8, 8, 3)


class MixerBlock(nn.Module):
    between_patches: int
    within_patches: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm()(x).swapaxes(1, 2)
        h = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(self.between_patches)(h)))
        x = x + h.swapaxes(1, 2)
        h = nn.gelu(nn.Dense(self.within_patches)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[2])(h)


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(12, (2, 2), strides=2, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = MixerBlock(14, 22)(MixerBlock(10, 20)(x))
        return nn.Dense(5)(nn.LayerNorm()(x).mean(1))


def linen_mixer() -> ZooModel:
    return build("linen_mixer", Mixer(), 74, 2, 6, 6, 3)


BUILDERS = (
    linen_mlp,
    linen_cnn,
    linen_resnet,
    linen_resnet_training,
    linen_densenet,
    linen_transformer,
    linen_vit,
    linen_lstm,
    linen_optimized_lstm,
    linen_gru,
    linen_bidirectional,
    linen_scan_transformer,
    linen_unet,
    linen_weight_norm,
    linen_mixer,
)
