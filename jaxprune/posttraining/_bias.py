"""What the mean output of a layer loses by pruning."""

import jax
import jax.numpy as jnp
from jax import lax


def bias_compensation(weights: jax.Array, mask: jax.Array, mean: jax.Array) -> jax.Array:
    r"""The mean output of the weights that a mask prunes, $\sum_{j\ \mathrm{pruned}} W_{ij}\, \mathbb{E}[x_j]$.

    Added to the bias of the layer, it makes the mean of the output over the calibration data that of the dense layer.

    Args:
      weights: float32[out, K], before pruning.
      mask: bool[out, K], True where kept.
      mean: float32[K], the mean of each input, as `moments(...).mean`.

    Returns:
      float32[out].

    Example:
      >>> import jax.numpy as jnp
      >>> weights, mask = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[True, False], [True, True]])
      >>> bias_compensation(weights, mask, jnp.array([5.0, 0.5])).tolist()
      [1.0, 0.0]

    References:
      An et al. 2023, Fluctuation-based Adaptive Structured Pruning (FLAP), arXiv 2312.11983.
    """
    return jnp.matmul(jnp.where(mask, 0, weights), mean, precision=lax.Precision.HIGHEST)
