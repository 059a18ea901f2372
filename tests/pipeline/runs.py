"""Runs of the whole pipeline on the toy task, with arguments that make them short."""

import jax
import jax.numpy as jnp

import jaxprune as jp
from tests.pipeline import toy

BATCHES = toy.batches()
TRAINED = jp.pipeline.optimise(
    toy.apply_fn, toy.init(jax.random.key(0)), toy.loss_fn, BATCHES, tx=toy.TX, steps=300
).params
DENSE = toy.evaluate(toy.apply_fn, TRAINED)


def run(target, *, params=TRAINED, batches=BATCHES, evaluate=toy.evaluate, **options):
    arguments = {"tx": toy.TX, "steps": 100, "progress": False, "methods": ("random", "magnitude")}
    arguments |= {"corruptions": {}} | options
    return jp.pipeline.run(toy.apply_fn, params, toy.loss_fn, batches, evaluate, target=target, **arguments)


def no_zeros(apply_fn, params):
    """A quality that any pruning is too much for."""
    return -float(jnp.any(params["up"]["kernel"] == 0))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def kernels(params):
    return {name: params[name]["kernel"] for name in ("up", "down")}
