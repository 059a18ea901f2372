"""Random arrays for the tests. NumPy draws them: `jax.random` compiles a program for every shape."""

import jax

from tests.zoo.models._model import Draw


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal float32."""
    return Draw(seed).normal(*shape)
