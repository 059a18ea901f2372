"""ResNet-50 v1 in Flax Linen, with group normalisation.

Group normalisation (32 groups, He et al.'s architecture otherwise; the stride sits in the 3 by 3
convolution, "v1.5") keeps the model a pure function of its parameters: there are no running
statistics beside them, so that the example's training loop is the same for all models.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

# Convolutions of the blocks and the classifier; the first convolution stays dense, as in RigL.
PRUNABLE = r"(stage_\d+_block_\d+/(conv_\d|projection)|head)/kernel"


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    Attributes:
      width: channels of the inner convolutions; the block gives four times as many.
      stride: of the 3 by 3 convolution and the shortcut.
      groups: of the group normalisation.
    """

    width: int
    stride: int = 1
    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, height, width, channels)` to four times `width` channels."""
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (1, 1), use_bias=False, name="conv_0")(x)
        y = nn.relu(nn.GroupNorm(self.groups, name="norm_0")(y))
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False, name="conv_1")(y)
        y = nn.relu(nn.GroupNorm(self.groups, name="norm_1")(y))
        y = nn.Conv(4 * self.width, (1, 1), use_bias=False, name="conv_2")(y)
        # A zero scale makes each block the identity at first, which trains better (Goyal et al.).
        zeros = nn.initializers.zeros_init()
        y = nn.GroupNorm(self.groups, scale_init=zeros, name="norm_2")(y)
        if x.shape != y.shape:
            x = nn.Conv(4 * self.width, (1, 1), strides, use_bias=False, name="projection")(x)
            x = nn.GroupNorm(self.groups, name="norm_projection")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of bottleneck blocks; the defaults are ResNet-50.

    Attributes:
      classes: outputs.
      stages: how many blocks each stage has.
      width: channels of the first stage; each further stage doubles them.
      groups: of the group normalisation; must divide `width`.
    """

    classes: int
    stages: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `(batch, height, width, 3)` to logits `(batch, classes)`."""
        x = nn.Conv(self.width, (7, 7), (2, 2), use_bias=False, name="conv_stem")(x)
        x = nn.relu(nn.GroupNorm(self.groups, name="norm_stem")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")  # overlapping: no reshape does this
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    groups=self.groups,
                    name=f"stage_{stage}_block_{block}",
                )(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))
