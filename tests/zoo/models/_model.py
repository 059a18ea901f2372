"""What a model of the zoo is, and how its random numbers are drawn."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """A model to trace as `jax.make_jaxpr(apply_fn)(params, *args)`."""

    name: str
    apply_fn: Callable[..., Any]  # pure: apply_fn(params, *args) -> an array or a pytree of arrays
    params: Any  # float32 arrays, random everywhere: no bias is zero, no scale is one, variances are positive
    args: tuple[Any, ...]


class Draw:
    """Draws arrays from a seed. Only NumPy draws, so that nothing is compiled to build a model."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(self._generator.normal(0.0, scale, shape).astype(np.float32))

    def weight(self, *shape: int, fan_in: int | None = None) -> jax.Array:
        """A kernel whose outputs are on its last axis, or whose number of inputs is given."""
        return self.normal(*shape, scale=1 / math.sqrt(fan_in or math.prod(shape[:-1])))

    def bias(self, *shape: int) -> jax.Array:
        return self.normal(*shape, scale=0.3)

    def positive(self, *shape: int) -> jax.Array:
        """Something around one: the scale of a normalisation or a variance."""
        return jnp.asarray(self._generator.uniform(0.5, 1.5, shape).astype(np.float32))

    def tokens(self, *shape: int, vocabulary: int) -> jax.Array:
        return jnp.asarray(self._generator.integers(0, vocabulary, shape).astype(np.int32))

    def dense(self, inputs: int, outputs: int) -> dict[str, jax.Array]:
        return {"kernel": self.weight(inputs, outputs), "bias": self.bias(outputs)}

    def norm(self, width: int) -> dict[str, jax.Array]:
        return {"scale": self.positive(width), "bias": self.bias(width)}

    def like(self, shapes: Any) -> Any:
        """Arrays for a tree of shapes; which kind each is, is told from its name and its rank."""
        return jax.tree_util.tree_map_with_path(self._leaf, shapes)

    def _leaf(self, path: tuple[Any, ...], leaf: Any) -> jax.Array:
        assert leaf.dtype == jnp.float32, f"{jax.tree_util.keystr(path)} is {leaf.dtype}"
        if any(word in jax.tree_util.keystr(path) for word in ("scale", "var")):
            return self.positive(*leaf.shape)
        return self.weight(*leaf.shape) if len(leaf.shape) > 1 else self.bias(*leaf.shape)


def dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Applies what `Draw.dense` drew to the last axis."""
    return x @ params["kernel"] + over_last(params["bias"], x)


def layer_norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Applies what `Draw.norm` drew to the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return normal * over_last(params["scale"], x) + over_last(params["bias"], x)


def over_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector with the rank of x, to be broadcast over all but its last axis."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))
