"""Layers to prune: heavy tailed weights, correlated inputs of very different strengths, two of them outliers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.statistics import gram
from jaxprune.posttraining import Method, wanda
from jaxprune.structures import Structure, Unstructured


def make_layer(out: int, features: int, rows: int, seed: int = 0, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32[out, features] and inputs float32[rows, features].

    Of the legacy generator, whose numbers NumPy has promised never to change: recorded results depend on them.
    """
    draw = np.random.RandomState(seed)
    half = features // 2
    mix = draw.normal(size=(half, features)) / np.sqrt(half)
    strengths = np.exp(0.7 * draw.normal(size=features))
    strengths[:2] *= 20
    inputs = (draw.normal(size=(rows, half)) @ mix + 0.3 * draw.normal(size=(rows, features)) + mean) * strengths
    weights = 0.02 * draw.standard_t(5, size=(out, features))
    return weights.astype(np.float32), inputs.astype(np.float32)


def layer_error(weights: np.ndarray, pruned: np.ndarray, gram: np.ndarray) -> float:
    """The relative error of the output, from the Gram matrix."""
    weights, pruned, gram = (np.asarray(a, np.float64) for a in (weights, pruned, gram))
    change = pruned - weights
    return float(np.sqrt(np.sum((change @ gram) * change) / np.sum((weights @ gram) * weights)))


# The layer of most tests, so that they share compilations; 46 features are no whole number of groups or blocks.
OUT, K = 24, 46
WEIGHTS, INPUTS = make_layer(OUT, K, 200, seed=2, mean=0.3)
GRAM = INPUTS.T @ INPUTS


@functools.partial(jax.jit, static_argnums=(0, 4))
def _prune(method: Method, weights: jax.Array, stat: Any, sparsity: jax.Array, structure: Structure) -> Any:
    return method(weights, stat, sparsity, structure)


def prune(method: Method, weights: Any, stat: Any, sparsity: float, structure: Structure = Unstructured()) -> Any:
    """Weights, mask and facts in NumPy; compiled once for all sparsities, which are traced."""
    weights, stat = jax.tree.map(jnp.asarray, (weights, stat))
    return jax.device_get(_prune(method, weights, stat, jnp.float32(sparsity), structure))


@dataclasses.dataclass(frozen=True)
class Grown:
    """Changes what it keeps, in float32 whatever the parameters are, and compiles quickly."""

    stat = staticmethod(gram)

    def __call__(self, weights, stat, sparsity, structure):
        assert weights.dtype == stat.dtype == jnp.float32
        new, mask, facts = wanda()(weights, stat, sparsity, structure)
        return 1.1 * new, mask, facts
