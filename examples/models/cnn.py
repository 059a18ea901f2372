"""A small convolutional network, once in Flax Linen and once in Flax NNX.

Pooling is a reshape and a maximum: the gradient of `nn.max_pool` (a `reduce_window`) is three times
slower on XLA:CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

# The first convolution and the output layer stay dense, a usual choice: together they hold 0.7 % of the weights, every
# feature depends on the one, and at 98 % sparsity the other would keep 13 weights for ten classes. Measured with twice
# the hidden width and so 26 of them: the accuracy of random and of RigL then varies by 6 to 9 points between seeds.
PRUNABLE = r"(conv_[1-9]|dense)/kernel"


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Halves height and width by the maximum over 2 by 2 cells; odd borders are cut off.

    Args:
      x: `(batch, height, width, channels)`.
    """
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    cells = even.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return cells.max(axis=(2, 4))


class LinenCNN(nn.Module):
    """Two convolutions with pooling, one hidden layer, one output layer.

    Attributes:
      classes: outputs.
      features: channels of the two convolutions.
      hidden: width of the hidden layer.
    """

    classes: int
    features: Sequence[int] = (16, 32)
    hidden: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `(batch, height, width, channels)` to logits `(batch, classes)`."""
        for i, features in enumerate(self.features):
            x = max_pool_2x2(nn.relu(nn.Conv(features, (3, 3), name=f"conv_{i}")(x)))
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes, name="head")(x)


class NNXCNN(nnx.Module):
    """The same network as `LinenCNN` with parameters as attributes."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        rngs: nnx.Rngs,
        features: tuple[int, int] = (16, 32),
        hidden: int = 64,
    ) -> None:
        """Initialises the parameters.

        Args:
          shape: height, width and channels of an image.
          classes: outputs.
          rngs: the random streams of NNX.
          features: channels of the two convolutions.
          hidden: width of the hidden layer.
        """
        height, width, channels = shape
        flat = (height // 4) * (width // 4) * features[1]
        self.conv_0 = nnx.Conv(channels, features[0], (3, 3), rngs=rngs)
        self.conv_1 = nnx.Conv(features[0], features[1], (3, 3), rngs=rngs)
        self.dense = nnx.Linear(flat, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images `(batch, height, width, channels)` to logits `(batch, classes)`."""
        x = max_pool_2x2(jax.nn.relu(self.conv_0(x)))
        x = max_pool_2x2(jax.nn.relu(self.conv_1(x)))
        x = jax.nn.relu(self.dense(jnp.reshape(x, (x.shape[0], -1))))
        return self.head(x)
