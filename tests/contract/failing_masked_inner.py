"""Not collected: run as `python tests/contract/failing_masked_inner.py`. A moving pruner around hidden leaves fails."""

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

params = {"w": jnp.arange(8.0).reshape(2, 4), "b": jnp.ones(4)}
kernels = {"w": True, "b": False}
for inner in (
    optax.contrib.muon(0.1),
    optax.masked(optax.adam(0.1), kernels),
    optax.partition({True: optax.adam(0.1), False: optax.sgd(0.1)}, kernels),
):
    tx = jp.sparsify(inner, jp.pruners.gmp(0.5, begin=0, end=0, where="w"))
    tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
