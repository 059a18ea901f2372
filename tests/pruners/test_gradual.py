"""Pruning in several steps: what is pruned stays pruned, whatever the score says of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

RNG = np.random.default_rng(0)
PARAMS = {name: jnp.asarray(RNG.standard_normal((20, 20)), jnp.float32) for name in "ab"}
GRADS = {name: jnp.asarray(RNG.standard_normal((20, 20)), jnp.float32) for name in "ab"}


def signed(params, **inputs):
    del inputs
    return params


def masks_of_training(pruner, steps):
    tx = jp.sparsify(optax.sgd(0.0), pruner, key=jax.random.key(0))
    update, params, state = jax.jit(tx.update), PARAMS, tx.init(PARAMS)
    masks = []
    for _ in range(steps):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(jp.get_masks(state))
    return masks, params


# Pairs rather than the full product: a compilation takes seconds.
@pytest.mark.parametrize(
    ("score", "allocation"),
    [
        (jp.scores.random, "uniform"),
        (jp.scores.movement, "global_"),
        (signed, "global_normalized"),
        (signed, "lamp"),
    ],
)
def test_gmp_keeps_pruned_weights_out(score, allocation):
    pruner = jp.pruners.gmp(0.5, begin=0, end=6, score=score, allocation=getattr(jp.allocation, allocation))
    masks, params = masks_of_training(pruner, 8)
    for before, after in itertools.pairwise(masks):
        assert not any(bool((after[name] & ~before[name]).any()) for name in PARAMS)
    # None of the weights that are paid for is dead.
    assert sum(int(jnp.sum(p != 0)) for p in params.values()) == 400


@pytest.mark.parametrize("structure", [jp.Channel(), jp.Block((4, 4))])
def test_gmp_keeps_pruned_units_out(structure):
    pruner = jp.pruners.gmp(0.5, begin=0, end=6, score=jp.scores.random, structure=structure)
    _, params = masks_of_training(pruner, 8)
    # Half of the 20 channels; 12 or 13 of the 25 blocks.
    for leaf in params.values():
        assert 190 <= int(jnp.sum(leaf != 0)) <= 208


def test_a_rule_with_its_own_score_keeps_pruned_weights_out():
    rules = [jp.Rule(pattern="a", score=jp.scores.random)]
    _, params = masks_of_training(jp.pruners.gmp(0.5, begin=0, end=6, rules=rules), 8)
    assert int(jnp.sum(params["a"] != 0)) == 200


def test_a_cyclic_schedule_still_lets_weights_grow_back():
    pruner = jp.pruners.gmp(0.5, begin=0, end=6, schedule=jp.schedules.cyclic)
    counts = [int(masks["a"].sum()) for masks in masks_of_training(pruner, 8)[0]]
    assert any(after > before for before, after in itertools.pairwise(counts))
    assert counts[-1] == 200


def test_rounds_of_a_signed_score_are_one_round():
    masks = {
        rounds: jp.get_masks(
            jp.sparsify(optax.sgd(0.0), jp.pruners.static(0.4, score=signed, rounds=rounds)).init(PARAMS)
        )
        for rounds in (1, 10)
    }
    for name in PARAMS:
        np.testing.assert_array_equal(masks[1][name], masks[10][name])
