"""Random arrays for the tests. NumPy draws them: `jax.random` compiles a program for every shape."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
