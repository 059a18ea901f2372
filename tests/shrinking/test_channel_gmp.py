"""`channel_gmp` in training: what it zeroes, when, and that it can be cut away afterwards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import schedules
from tests.shrinking.small import inputs, mlp, mlp_model, mlp_params
from tests.shrinking.toy_models import HEADS, X, arrays, heads
from tests.zoo.models._model import Draw

MODEL = mlp_model()
SIZES = {"first/kernel:1": 8, "second/kernel:1": 6}


def removed_of(model, masks):
    """bool[size] by group: the indices that are masked; the masks must be those of the plan without them."""
    leaves, removed = jax.tree.leaves(masks), {}
    for name, group in model.groups.items():
        member = group.zeroed()[0]
        along = np.moveaxis(np.asarray(leaves[member.leaf]), member.axis, 0)[member.index]
        removed[name] = ~along.reshape(group.size, -1).any(1)
    expected = jp.Plan({name: ~mask for name, mask in removed.items()}).masks(model)
    for found, mask in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(mask, found.shape))
    return removed


def train(params, apply_fn, pruner, steps, x, optimiser=None):
    """Masks and parameters after each step, and how often the step was traced."""
    tx = jp.sparsify(optimiser if optimiser is not None else optax.sgd(0.05, momentum=0.9), pruner)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        grads = jax.grad(lambda p: jnp.mean((apply_fn(p, x) - 1) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        history.append((jax.device_get(jp.get_masks(state, params)), params))
    assert len(traces) == 1
    return history


def count(size, share):
    return size - max(round((1 - np.float32(share)) * size), 1)


def test_local_scope_follows_the_schedule() -> None:
    begin, end, every, steps = 2, 8, 2, 10
    pruner = jp.channel_gmp(MODEL, 0.6, begin=begin, end=end, every=every)
    history = train(mlp_params(), mlp, pruner, steps, inputs(8))
    schedule = schedules.cubic(begin, end, every)
    share = 0.0
    for step, (masks, params) in enumerate(history):
        if schedule.is_update(step):
            share = 0.6 * float(schedule(step))
        removed = removed_of(MODEL, masks)
        assert {name: int(r.sum()) for name, r in removed.items()} == {n: count(s, share) for n, s in SIZES.items()}
        # Zero, not small: every weight of every member.
        for mask, leaf in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True):
            assert not np.asarray(leaf)[~mask].any()
    assert {name: int(r.sum()) for name, r in removed.items()} == {"first/kernel:1": 5, "second/kernel:1": 4}


def test_masks_become_a_plan_that_computes_the_same() -> None:
    x = inputs(8)
    masks, params = train(mlp_params(), mlp, jp.channel_gmp(MODEL, 0.5, begin=0, end=3), 5, x)[-1]
    plan = jp.plan_from_masks(MODEL, masks)
    assert {name: int(mask.sum()) for name, mask in plan.keep.items()} == {"first/kernel:1": 4, "second/kernel:1": 3}
    small = jp.shrink(MODEL, plan, params)
    np.testing.assert_allclose(jp.shrunk_function(MODEL, plan)(small, x), mlp(params, x), rtol=1e-5, atol=1e-6)
    assert jp.verify(MODEL, plan, params, x, strict=True).exact


def norms(params):
    p = jax.tree.map(np.asarray, params)

    def of(one, two):
        return ((one["kernel"] ** 2).sum(0) + one["bias"] ** 2 + (two["kernel"] ** 2).sum(1)) / 3

    scores = [of(p["first"], p["second"]), of(p["second"], p["third"])]
    return dict(zip(SIZES, [s / s.mean() for s in scores], strict=True))


def test_first_masks_are_those_of_the_lowest_scores() -> None:
    params = mlp_params()
    removed = removed_of(MODEL, train(params, mlp, jp.channel_gmp(MODEL, 0.5, begin=0, end=0), 1, inputs())[0][0])
    for name, score in norms(params).items():
        expected = np.argsort(score)[: SIZES[name] // 2]
        assert sorted(np.flatnonzero(removed[name])) == sorted(expected)


def test_global_scope() -> None:
    params = mlp_params()
    pruner = jp.channel_gmp(MODEL, 0.5, begin=0, end=0, scope="global")
    removed = removed_of(MODEL, train(params, mlp, pruner, 1, inputs())[0][0])
    scores = norms(params)
    ranked = sorted((s, name, k) for name, values in scores.items() for k, s in enumerate(values))
    assert {(name, k) for _, name, k in ranked[:7]} == {
        (n, int(k)) for n, r in removed.items() for k in np.flatnonzero(r)
    }
    assert sum(r.sum() for r in removed.values()) == 7


@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_group_keeps_one(scope: str) -> None:
    """At 0.95 of 14 indices one would stay in all; the group of small weights would lose all of its own."""
    params = mlp_params()
    params["second"] = jax.tree.map(lambda p: 1e-3 * p, params["second"])
    pruner = jp.channel_gmp(MODEL, 0.95, begin=0, end=0, scope=scope, normalize="none")
    masks = train(params, mlp, pruner, 1, inputs())[0][0]
    assert [int((~r).sum()) for r in removed_of(MODEL, masks).values()] == [1, 1]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_equal_scores_are_resolved_by_index(scope: str) -> None:
    params = jax.tree.map(jnp.ones_like, mlp_params())
    pruner = jp.channel_gmp(MODEL, 0.5, begin=0, end=0, scope=scope)
    removed = removed_of(MODEL, train(params, mlp, pruner, 1, inputs())[0][0])
    assert sum(int(r.sum()) for r in removed.values()) == 7
    assert not any(r[0] for r in removed.values())


def test_ignored_groups_stay_whole() -> None:
    pruner = jp.channel_gmp(MODEL, 0.5, begin=0, end=0, ignore="third/.*")
    removed = removed_of(MODEL, train(mlp_params(), mlp, pruner, 1, inputs())[0][0])
    assert [int(r.sum()) for r in removed.values()] == [4, 0]


def test_scores_of_gradients() -> None:
    pruner = jp.channel_gmp(MODEL, 0.5, begin=1, end=2, score=jp.scores.taylor, power=1.0)
    removed = removed_of(MODEL, train(mlp_params(), mlp, pruner, 3, inputs())[-1][0])
    assert [int(r.sum()) for r in removed.values()] == [4, 3]


def test_bfloat16() -> None:
    params, x = mlp_params(jnp.bfloat16), inputs(dtype=jnp.bfloat16)
    pruner = jp.channel_gmp(mlp_model(jnp.bfloat16), 0.5, begin=0, end=1)
    masks, params = train(params, mlp, pruner, 2, x, optimiser=optax.sgd(0.1))[-1]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    assert [int(r.sum()) for r in removed_of(MODEL, masks).values()] == [4, 3]
    for mask, leaf in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True):
        assert not np.asarray(leaf, np.float32)[~mask].any()


def outer(params, x):
    """Every unit is in the row and in the column of an outer product."""
    x = jnp.tanh(x @ params["a"])
    return (x[:, :, None] * x[:, None, :]).reshape(x.shape[0], -1) @ params["b"]


OUTER = arrays({"a": (3, 6), "b": (36, 2)})


@pytest.mark.parametrize(
    ("apply_fn", "params"), [(outer, OUTER), (heads, HEADS)], ids=["outer product", "heads and features"]
)
def test_an_index_of_several_positions(apply_fn, params) -> None:
    x = X
    model = jp.trace(apply_fn, params, x)
    masks, params = train(params, apply_fn, jp.channel_gmp(model, 0.5, begin=0, end=1), 3, x)[-1]
    removed = removed_of(model, masks)
    assert {name: int(r.sum()) for name, r in removed.items()} == {
        name: count(group.size, 0.5) for name, group in model.groups.items()
    }
    plan = jp.plan_from_masks(model, masks)
    assert {name: mask.tolist() for name, mask in plan.keep.items()} == {n: (~r).tolist() for n, r in removed.items()}


def weight_norm(params, x):
    lengths = jnp.linalg.norm(params["v"], axis=0, keepdims=True)
    return jnp.tanh(x @ (params["v"] * params["g"][None] / lengths)) @ params["w"]


def test_weight_norm_is_not_divided_by_zero() -> None:
    x, start = X, arrays({"v": (3, 8), "g": 8, "w": (8, 2)})
    model = jp.trace(weight_norm, start, x)
    masks, params = train(start, weight_norm, jp.channel_gmp(model, 0.5, begin=0, end=1), 5, x)[-1]
    assert masks["v"].all() and masks["g"].all()
    assert (~masks["w"]).sum() == 8 and not np.asarray(params["w"])[~masks["w"]].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.asarray(params["v"] != start["v"]).any()
    plan = jp.plan_from_masks(model, masks)
    assert removed_of(model, masks) and [int(mask.sum()) for mask in plan.keep.values()] == [4]
    small = jp.shrink(model, plan, params)
    np.testing.assert_allclose(jp.shrunk_function(model, plan)(small, x), weight_norm(params, x), rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(x))
        return nn.Dense(2)(nn.relu(x))


def test_the_optimiser_sees_one_entry_of_the_traced_parameters() -> None:
    module, x = Normed(), inputs(8)
    variables = Draw(0).like(jax.eval_shape(module.init, jax.random.key(0), x))
    model = jp.trace(module.apply, variables, x)

    def apply_fn(params, x):
        return module.apply({**variables, "params": params}, x)

    masks, params = train(variables["params"], apply_fn, jp.channel_gmp(model, 0.5, begin=0, end=1), 3, x)[-1]
    assert masks["BatchNorm_0"]["scale"].sum() == masks["Dense_0"]["bias"].sum() == 3
    full = {"params": masks, "batch_stats": jax.tree.map(lambda _: True, variables["batch_stats"])}
    plan = jp.plan_from_masks(model, full)
    trained = {**variables, "params": params}
    small = jp.shrink(model, plan, trained)
    assert small["batch_stats"]["BatchNorm_0"]["mean"].shape == (3,)
    np.testing.assert_allclose(
        jp.shrunk_function(model, plan)(small, x), module.apply(trained, x), rtol=1e-5, atol=1e-6
    )


def test_inside_masked() -> None:
    """Parameters that the optimiser does not see are not masked; the others of an index are."""
    params = mlp_params()
    matrices = jax.tree.map(lambda p: p.ndim > 1, params)
    tx = optax.masked(jp.sparsify(optax.sgd(0.1), jp.channel_gmp(MODEL, 0.5, begin=0, end=0)), matrices)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    pruned = optax.apply_updates(params, updates)
    assert (np.abs(pruned["first"]["kernel"]).sum(0) == 0).sum() == 4
    assert np.abs(pruned["first"]["bias"]).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"sparsity=1\.0; it is the share of indices"):
        jp.channel_gmp(MODEL, 1.0, begin=0, end=1)
    with pytest.raises(ValueError, match="scope='isomorphic'; it may be 'local' or 'global'"):
        jp.channel_gmp(MODEL, 0.5, begin=0, end=1, scope="isomorphic")
    with pytest.raises(ValueError, match="reduction='median'"):
        jp.channel_gmp(MODEL, 0.5, begin=0, end=1, reduction="median")
    with pytest.raises(ValueError, match="normalize='l2'"):
        jp.channel_gmp(MODEL, 0.5, begin=0, end=1, normalize="l2")
    with pytest.raises(ValueError, match="no group is left to prune"):
        jp.channel_gmp(MODEL, 0.5, begin=0, end=1, ignore=".*")
    two = {name: {"net": mlp_params()} for name in ("one", "two")}
    model = jp.trace(lambda p, x: mlp(p["one"]["net"], x) + mlp(p["two"]["net"], x), two, inputs())
    with pytest.raises(ValueError, match=r"several parts .* such as one/net/first/bias, two/net/first/bias"):
        jp.sparsify(optax.sgd(0.1), jp.channel_gmp(model, 0.5, begin=0, end=1)).init(mlp_params())
    with pytest.raises(ValueError, match="neither those that the model was traced with"):
        jp.sparsify(optax.sgd(0.1), jp.channel_gmp(MODEL, 0.5, begin=0, end=1)).init({"other": jnp.ones((2, 2))})
