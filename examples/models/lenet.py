"""LeNet-300-100 (LeCun et al. 1998), two hidden layers of ReLU units, as a plain function of a dictionary."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
HIDDEN = (300, 100)
KERNELS = r"layer\d/kernel"


def to_unit_interval(images: jax.Array) -> jax.Array:
    """Bytes to floats from 0 to 1: a pixel that is always black is zero, so that no gradient asks to connect it."""
    return images.astype(jnp.float32) / 255.0


def init(key: jax.Array, pixels: int, classes: int) -> PyTree:
    """Fresh parameters: Glorot uniform kernels `(in, out)` and zero biases, named `layer1`, `layer2`, `layer3`."""
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        f"layer{number}": {
            "kernel": glorot(jax.random.fold_in(key, number), sizes, jnp.float32),
            "bias": jnp.zeros(sizes[1]),
        }
        for number, sizes in enumerate(pairwise((pixels, *HIDDEN, classes)), start=1)
    }


def apply(params: PyTree, x: jax.Array) -> jax.Array:
    """Logits `(n, classes)` of images `(n, ...)`, at whatever size the parameters have."""
    x = x.reshape(len(x), -1)
    *hidden, last = (params[name] for name in sorted(params))
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def architecture(params: PyTree) -> tuple[int, ...]:
    """The units of each layer from the input to the last hidden layer, as the literature writes `784-300-100`."""
    return tuple(params[name]["kernel"].shape[0] for name in sorted(params))
