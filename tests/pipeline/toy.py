"""A task small enough for every test: a two-layer network that learns a sparse one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def init(key):
    first, second = jax.random.split(key)
    return {
        "up": {"kernel": jax.random.normal(first, (8, 16)) / 3, "bias": jnp.zeros(16)},
        "down": {"kernel": jax.random.normal(second, (16, 2)) / 4, "bias": jnp.zeros(2)},
    }


def apply_fn(params, inputs):
    hidden = jax.nn.relu(inputs @ params["up"]["kernel"] + params["up"]["bias"][None])
    return hidden @ params["down"]["kernel"] + params["down"]["bias"][None]


def loss_fn(outputs, targets):
    return jnp.mean(jnp.square(outputs - targets))


def batches(count=6, size=32, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = rng.normal(size=(size, 8)).astype(np.float32)
        made.append((x, np.stack([np.maximum(x[:, 0] - x[:, 1], 0), x[:, 2]], 1).astype(np.float32)))
    return made


TEST = batches(2, 64, seed=1)


def evaluate(apply_fn, params):
    return -float(np.mean([loss_fn(apply_fn(params, x), y) for x, y in TEST]))


TX = optax.adam(1e-2)
