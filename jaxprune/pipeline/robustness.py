"""Robustness: how much quality a model keeps when its inputs are noisy or partly missing."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.pipeline.batches import Apply, Evaluate
from jaxprune.trees import PyTree

Corruption = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, floating input) -> input` of the same shape and dtype."""


def noise(scale: float) -> Corruption:
    """Gaussian noise, with a standard deviation of `scale` times that of the input.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1000,))
      >>> round(float(jnp.std(noise(0.5)(jax.random.key(1), x) - x)), 1)
      0.5
    """

    def corrupt(key: jax.Array, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        drawn = jax.random.normal(key, x.shape, jnp.float32)
        return (wide + scale * jnp.std(wide) * drawn).astype(x.dtype)

    return corrupt


def missing(share: float) -> Corruption:
    """A share of the elements, chosen at random, replaced by the mean of the input.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1000,))
      >>> round(float(jnp.mean(missing(0.3)(jax.random.key(1), x) != x)), 1)
      0.3
    """

    def corrupt(key: jax.Array, x: jax.Array) -> jax.Array:
        gone = jax.random.bernoulli(key, share, x.shape)
        return jnp.where(gone, jnp.mean(x.astype(jnp.float32)).astype(x.dtype), x)

    return corrupt


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise 0.2": noise(0.2),
    "noise 0.5": noise(0.5),
    "10 % missing": missing(0.1),
    "30 % missing": missing(0.3),
}


def corrupted(apply_fn: Apply, corruption: Corruption, key: jax.Array) -> Apply:
    """The function on corrupted inputs: every floating array of them; integers, such as token ids, stay.

    The random numbers are a function of the key and of the input's values, so that batches get noise of their own, and
    two models get the same.

    Example:
      >>> noisy = corrupted(lambda p, x: x, noise(0.5), jax.random.key(0))
      >>> bool(jnp.all(noisy(None, jnp.arange(4.0)) != jnp.arange(4.0))), noisy(None, jnp.arange(4)).tolist()
      (True, [0, 1, 2, 3])
    """

    def function(params: PyTree, inputs: Any) -> Any:
        leaves, structure = jax.tree.flatten(inputs)
        changed = []
        for number, leaf in enumerate(map(jnp.asarray, leaves)):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                content = jax.lax.bitcast_convert_type(jnp.sum(leaf.astype(jnp.float32)), jnp.uint32)
                own = jax.random.fold_in(jax.random.fold_in(key, number), content)
                leaf = corruption(own, leaf)
            changed.append(leaf)
        return apply_fn(params, jax.tree.unflatten(structure, changed))

    return function


def robustness(
    models: Mapping[str, tuple[Apply, PyTree]],
    eval_fn: Evaluate,
    inputs: Any,
    *,
    key: jax.Array,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
) -> dict[str, dict[str, float]]:
    """The quality of each model under each corruption of its inputs.

    Args:
      models: `(apply_fn, params)` by name.
      eval_fn: `(apply_fn, params) -> quality`; it must call the function it is given.
      inputs: one batch, to see whether there is a floating array in it.
      key: a typed PRNG key.
      corruptions: by name.

    Returns:
      By corruption, the quality by model; empty where the inputs hold no floating array.

    Example:
      >>> x = jnp.arange(6.0)
      >>> evaluate = lambda apply_fn, params: -float(jnp.abs(apply_fn(params, x) - x).mean())
      >>> found = robustness({"dense": (lambda p, x: x, None)}, evaluate, x, key=jax.random.key(0))
      >>> found["noise 0.5"]["dense"] < found["noise 0.2"]["dense"] < 0
      True

    References:
      Hooker et al., What Do Compressed Deep Neural Networks Forget? (arXiv:1911.05248): pruned models under corruption.
    """
    if not any(jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) for leaf in jax.tree.leaves(inputs)):
        return {}
    return {
        name: {
            model: float(eval_fn(jax.jit(corrupted(apply_fn, corruption, key)), params))
            for model, (apply_fn, params) in models.items()
        }
        for name, corruption in corruptions.items()
    }
