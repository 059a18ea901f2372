"""A `cond` in independent parts: the same results as one `cond`, with no more waiting than there must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._conditional import cond_by_part

SIZE = 2048


def conds(function, *operands):
    """The `cond` equations of a function, at the top level."""
    return [eqn for eqn in jax.make_jaxpr(function)(*operands).jaxpr.eqns if eqn.primitive.name == "cond"]


def tree():
    return {"a": jnp.arange(SIZE) % 3 == 0, "b": jnp.arange(SIZE) % 2 == 0, "same": jnp.ones(SIZE, bool)}


def weights():
    return {name: jax.random.normal(jax.random.key(i), (SIZE,)) for i, name in enumerate(tree())}


def leafwise(masks, params, fraction):
    # A scalar that all share is no reason to wait.
    level = 1 - fraction * fraction
    return {name: jnp.abs(params[name]) > level if name != "same" else mask for name, mask in masks.items()}


def together(masks, params, fraction):
    level = sum(jnp.sum(jnp.abs(p)) for p in params.values()) / SIZE * fraction
    return {name: jnp.abs(params[name]) > level if name != "same" else mask for name, mask in masks.items()}


@pytest.mark.parametrize("update", [leafwise, together])
@pytest.mark.parametrize("pred", [True, False])
def test_as_one_cond(update, pred):
    operands = (tree(), weights(), jnp.float32(0.3))
    expected = update(*operands) if pred else operands[0]
    for run in (cond_by_part, jax.jit(cond_by_part, static_argnums=1)):
        got = run(jnp.array(pred), update, *operands)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_each_part_needs_only_its_own_leaves():
    found = conds(lambda *operands: cond_by_part(jnp.array(True), leafwise, *operands), tree(), weights(), 0.3)
    wide = [[v for v in eqn.invars if getattr(v.aval, "dtype", None) == jnp.float32 and v.aval.shape] for eqn in found]
    assert [len(w) for w in wide] == [1, 1] and wide[0][0] is not wide[1][0]


def test_what_shares_a_computation_stays_together():
    found = conds(lambda *operands: cond_by_part(jnp.array(True), together, *operands), tree(), weights(), 0.3)
    assert [len(eqn.outvars) for eqn in found] == [2]


def test_the_update_is_traced_once():
    calls = []

    def update(masks, params):
        calls.append(1)
        return jax.tree.map(lambda m, p: p > 0, masks, params)

    cond_by_part(jnp.array(True), update, tree(), weights())
    assert len(calls) == 1


def test_values_from_outside_and_constants():
    level = jnp.linspace(-1, 1, SIZE)

    @jax.jit
    def run(masks, params, outer):
        def update(masks, params):
            return {"a": params["a"] > outer * level, "b": jnp.zeros(SIZE, bool), "same": ~masks["a"]}

        return cond_by_part(jnp.array(True), update, masks, params)

    got = run(tree(), weights(), jnp.float32(0.5))
    np.testing.assert_array_equal(got["a"], weights()["a"] > 0.5 * level)
    np.testing.assert_array_equal(got["same"], ~tree()["a"])
    assert not got["b"].any()


def test_side_effects_happen_once_and_only_when_due():
    seen = []

    def update(masks, params):
        jax.debug.callback(lambda: seen.append(1))
        return jax.tree.map(lambda m, p: p > 0, masks, params)

    for pred in (False, True):
        jax.block_until_ready(jax.jit(lambda p: cond_by_part(p, update, tree(), weights()))(jnp.array(pred)))
        jax.effects_barrier()
    assert len(seen) == 1


def test_another_structure_is_refused():
    with pytest.raises(ValueError, match="must keep the structure"):
        cond_by_part(jnp.array(True), lambda masks: [masks["a"]], tree())
