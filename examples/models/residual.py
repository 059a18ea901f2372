"""A small residual network with batch normalisation, for 28 by 28 images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class ResidualCNN(nn.Module):
    """A stem, then stages of two-convolution blocks; every stage halves the image and doubles the width.

    Attributes:
      classes: outputs.
      width: channels of the first stage.
      stages: how many blocks each stage has.
      train: whether batch statistics are those of the batch.
    """

    classes: int = 10
    width: int = 48
    stages: Sequence[int] = (2, 2, 2)
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `(batch, height, width, channels)` to logits `(batch, classes)`."""
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not self.train, momentum=0.9)
        x = nn.relu(norm(name="norm_stem")(conv(self.width, strides=(2, 2), name="conv_stem")(x)))
        for stage, blocks in enumerate(self.stages):
            width = self.width * 2**stage
            for block in range(blocks):
                strides, name = ((2, 2) if stage and not block else (1, 1)), f"stage_{stage}_block_{block}"
                y = nn.relu(norm(name=f"{name}_norm_0")(conv(width, strides=strides, name=f"{name}_conv_0")(x)))
                y = norm(name=f"{name}_norm_1")(conv(width, name=f"{name}_conv_1")(y))
                if x.shape != y.shape:
                    x = nn.Conv(width, (1, 1), strides, use_bias=False, name=f"{name}_skip")(x)
                x = nn.relu(x + y)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))
