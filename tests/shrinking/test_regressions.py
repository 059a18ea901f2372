"""What Torch-Pruning could not prune, or broke: each issue as a small model, cut for real and compared.

The numbers are those of github.com/VainF/Torch-Pruning. Nothing below gives a hint: no number of heads, no list of
layers, no rewritten forward.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune as jp
from tests.zoo.models._model import Draw, dense, layer_norm


def half(model: jp.Model, seed: int = 0) -> jp.Plan:
    """Removes about half of every group, at random."""
    random = np.random.default_rng(seed)
    return jp.Plan(
        {
            name: np.isin(np.arange(group.size), random.permutation(group.size)[: max(group.size // 2, 1)])
            for name, group in model.groups.items()
        },
        model.fingerprint,
    )


def parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check(apply_fn, params, *args, groups: int) -> tuple[jp.Model, jp.Plan]:
    """Half of every group goes, and what is left computes what the masked model does."""
    model = jp.trace(apply_fn, params, *args)
    assert len(model.groups) == groups, list(model.groups)
    plan = half(model)
    result = jp.verify(model, plan, params, *args, strict=True)
    assert result.exact and result.exact_error < 1e-5
    small = jp.shrink(model, plan, params)
    # Never a silent no-op (#136, #356, #211).
    assert parameters(small) < 0.8 * parameters(params)
    assert model.cost(plan=plan).macs < model.cost().macs
    return model, plan


def test_raw_parameter_matmul_issues_167_298_317_364() -> None:
    """Parameters without a layer around them: multiplied, added, scaled."""
    draw = Draw(0)
    params = {"w": draw.weight(4, 8), "shift": draw.bias(8), "gate": draw.positive(1, 8), "v": draw.weight(3, 8)}

    def apply(params, x):
        return jnp.tanh((x @ params["w"] + params["shift"][None]) * params["gate"]) @ params["v"].T

    model, _ = check(apply, params, draw.normal(2, 4), groups=1)
    assert {member.path for member in model.groups["w:1"].members} == set(params)


def test_position_embedding_added_directly_issues_317_356() -> None:
    draw = Draw(1)
    params = {
        "embed": draw.weight(5, 8),
        "positions": draw.normal(1, 6, 8, scale=0.1),
        "class_token": draw.normal(1, 1, 8),
        "norm": draw.norm(8),
        "head": draw.dense(8, 3),
    }

    def apply(params, x):
        token = jnp.broadcast_to(params["class_token"], (x.shape[0], 1, 8))
        x = jnp.concatenate([token, x @ params["embed"]], 1) + params["positions"]
        x = x * params["norm"]["scale"][None, None] + params["norm"]["bias"][None, None]
        return dense(params["head"], x[:, 0])

    model, plan = check(apply, params, draw.normal(2, 5, 5), groups=1)
    small = jp.shrink(model, plan, params)
    assert small["positions"].shape == (1, 6, 4) and small["class_token"].shape == (1, 1, 4)


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.GRUCell], ids=["lstm_issues_44_404", "gru_issues_276_515"])
def test_recurrent(cell) -> None:
    """Torch-Pruning: IndexError for an LSTM, a silent no-op for a GRU."""

    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(cell(8))(x)[:, -1])

    module, x = Recurrent(), Draw(2).normal(2, 4, 3)
    params = Draw(2).like(jax.eval_shape(module.init, jax.random.key(0), x))
    model, plan = check(module.apply, params, x, groups=1)
    shapes = {leaf.shape for leaf in jax.tree.leaves(jp.shrink(model, plan, params))}
    assert shapes == {(3, 4), (4, 4), (4,), (4, 3), (3,)}


def test_fused_lstm_weights_issue_44() -> None:
    """The layout of torch.nn.LSTM: four gates in one matrix."""
    draw = Draw(3)
    params = {
        "input": draw.weight(3, 32),
        "hidden": draw.weight(8, 32),
        "bias": draw.bias(32),
        "head": draw.dense(8, 2),
    }

    def apply(params, x):
        def step(state, x):
            h, c = state
            gates = x @ params["input"] + h @ params["hidden"] + params["bias"][None]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros((x.shape[1], 8))
        return dense(params["head"], lax.scan(step, (zero, zero), x)[0][0])

    model, plan = check(apply, params, draw.normal(5, 2, 3), groups=1)
    assert jp.shrink(model, plan, params)["hidden"].shape == (4, 16)


def test_channel_shuffle_shufflenet() -> None:
    """Torch-Pruning: ZeroDivisionError for the model, a shape error for the operation alone."""
    draw = Draw(4)
    params = {"a": draw.weight(4, 12), "b": draw.weight(12, 12), "c": draw.dense(12, 3)}

    def apply(params, x):
        x = jnp.tanh(x @ params["a"])
        x = x.reshape(x.shape[0], 2, 6).swapaxes(1, 2).reshape(x.shape[0], 12)
        return dense(params["c"], jnp.tanh(x @ params["b"]))

    model, _ = check(apply, params, draw.normal(2, 4), groups=3)
    assert {group.size for group in model.groups.values()} == {2, 6, 12}


def test_window_attention_swin() -> None:
    """Torch-Pruning: no result. A shifted window, with a bias by head."""
    draw = Draw(5)
    heads, size, window = 2, 4, 3
    params = {
        "norm": draw.norm(6),
        "qkv": draw.dense(6, 3 * heads * size),
        "table": draw.normal(heads, window, window),
        "out": draw.dense(heads * size, 6),
    }

    def apply(params, x):
        batch, length, width = x.shape
        shifted = jnp.roll(layer_norm(params["norm"], x), -1, 1).reshape(-1, window, width)
        qkv = dense(params["qkv"], shifted).reshape(-1, window, 3, heads, size)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / size**0.5 + params["table"][None]
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).reshape(-1, window, heads * size)
        return x + jnp.roll(dense(params["out"], mixed).reshape(batch, length, width), 1, 1)

    model, plan = check(apply, params, draw.normal(2, 6, 6), groups=2)
    assert jp.shrink(model, plan, params)["table"].shape == (1, window, window)


def test_static_sizes_in_reshapes_issues_101_125_340_450() -> None:
    """Sizes that the forward pass has fixed as numbers follow the cut."""
    draw = Draw(6)
    batch, length, heads, size = 2, 5, 3, 4
    params = {name: draw.weight(6, heads * size) for name in ("q", "k", "v")} | {"out": draw.weight(heads * size, 6)}

    def apply(params, x):
        q, k, v = (
            (x @ params[name]).reshape(batch, length, heads, size).transpose(0, 2, 1, 3) for name in ("q", "k", "v")
        )
        scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(size)))
        mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
        return lax.reshape(mixed, (batch * length, heads * size)) @ params["out"]

    check(apply, params, draw.normal(batch, length, 6), groups=3)


def test_grouped_queries_without_a_hint() -> None:
    """Heads of keys, queries of a head, and the sizes of keys and values are groups of their own."""
    draw = Draw(7)
    kv_heads, queries, size = 2, 4, 6
    params = {
        "q": draw.weight(8, kv_heads * queries * size),
        "k": draw.weight(8, kv_heads * size),
        "v": draw.weight(8, kv_heads * size),
        "out": draw.weight(kv_heads * queries * size, 8),
    }

    def apply(params, x):
        batch, length, _ = x.shape
        q = (x @ params["q"]).reshape(batch, length, kv_heads * queries, size)
        k, v = (jnp.repeat((x @ params[n]).reshape(batch, length, kv_heads, size), queries, 2) for n in ("k", "v"))
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(batch, length, -1) @ params["out"]

    model, plan = check(apply, params, draw.normal(2, 5, 8), groups=4)
    small = jp.shrink(model, plan, params)
    assert jax.tree.map(jnp.shape, small) == {"q": (8, 6), "k": (8, 3), "v": (8, 3), "out": (6, 8)}


def test_tied_parameters_are_cut_alike() -> None:
    draw = Draw(8)
    params = {"embed": draw.normal(11, 8), "inner": draw.dense(8, 6), "back": draw.dense(6, 8)}

    def apply(params, tokens):
        x = params["embed"][tokens]
        x = x + dense(params["back"], jax.nn.relu(dense(params["inner"], x)))
        return x @ params["embed"].T

    model, plan = check(apply, params, draw.tokens(2, 5, vocabulary=11), groups=2)
    assert jp.shrink(model, plan, params)["embed"].shape == (11, 4)


def test_concatenation_then_split_issues_168_188_277_397_415_481() -> None:
    """The parts of a concatenation keep their own indices through a split at other places."""
    draw = Draw(9)
    params = {"a": draw.weight(4, 6), "b": draw.weight(4, 10), "c": draw.weight(8, 5), "d": draw.weight(8, 5)}

    def apply(params, x):
        x = jnp.concatenate([jnp.tanh(x @ params["a"]), jax.nn.relu(x @ params["b"])], -1)
        left, right = jnp.split(x, 2, -1)
        return left @ params["c"] + right @ params["d"]

    model, plan = check(apply, params, draw.normal(2, 4), groups=3)
    assert [group.size for group in model.groups.values()] == [6, 2, 8]
    small = jp.shrink(model, plan, params)
    assert small["c"].shape == (4, 5) and small["d"].shape == (4, 5)


def test_flatten_behind_a_convolution_nni_issue_4620() -> None:
    draw = Draw(10)
    params = {"conv": draw.weight(3, 3, 2, 6), "head": draw.dense(2 * 2 * 6, 3)}

    def apply(params, x):
        x = lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return dense(params["head"], jax.nn.relu(x).reshape(x.shape[0], -1))

    model, plan = check(apply, params, draw.normal(2, 4, 4, 2), groups=1)
    assert jp.shrink(model, plan, params)["head"]["kernel"].shape == (12, 3)


def test_unused_parameters_issue_211() -> None:
    """What the function never reads is no obstacle, and stays as it is."""
    draw = Draw(11)
    params = {"a": draw.weight(4, 8), "b": draw.weight(8, 3), "spare": draw.weight(2, 2)}
    model, plan = check(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, draw.normal(2, 4), groups=1)
    assert jp.shrink(model, plan, params)["spare"] is params["spare"]
    assert "spare" in model.explain("spare")


def test_nothing_to_prune_is_said_issues_136_356() -> None:
    draw = Draw(12)
    params = {"a": draw.weight(4, 3)}
    model = jp.trace(lambda p, x: x @ p["a"], params, draw.normal(2, 4))
    assert not model.groups
    with pytest.raises(ValueError, match=r"no group from which anything could be removed; Model\.explain says why"):
        jp.select(model, {}, 0.5)
    assert "output" in model.explain("a", 1) and "argument" in model.explain("a", 0)


def test_a_frozen_network_is_prunable_issue_211() -> None:
    """Torch-Pruning needs gradients to see a layer."""
    draw = Draw(13)
    params = {"a": draw.weight(4, 8), "b": draw.weight(8, 3)}
    check(lambda p, x: jnp.tanh(x @ lax.stop_gradient(p["a"])) @ p["b"], params, draw.normal(2, 4), groups=1)


def test_a_plan_is_saved_and_loaded_issues_29_428(tmp_path) -> None:
    draw = Draw(14)
    params = {"a": draw.weight(4, 8), "b": draw.weight(8, 6), "c": draw.weight(6, 3)}

    def apply(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]

    x = draw.normal(2, 4)
    model, plan = check(apply, params, x, groups=2)
    plan.save(tmp_path / "plan.json")
    # Another process traces shapes alone, and reads the plan; the weights come from a checkpoint of small arrays.
    again = jp.trace(apply, jax.eval_shape(lambda: params), jax.ShapeDtypeStruct((2, 4), jnp.float32))
    loaded = jp.Plan.load(tmp_path / "plan.json")
    small = jp.shrink(model, plan, params)
    np.testing.assert_array_equal(
        jp.shrunk_function(again, loaded)(small, x), jp.shrunk_function(model, plan)(small, x)
    )
    other = jp.trace(apply, {**params, "c": draw.weight(6, 2)}, x)
    with pytest.raises(ValueError, match="made for another model"):
        jp.shrink(other, loaded, params)


def test_counts_are_multiples_of_the_lanes_issue_38() -> None:
    draw = Draw(15)
    params = {"a": draw.weight(4, 32), "b": draw.weight(32, 3)}
    model = jp.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, draw.normal(2, 4))
    plan = jp.select(model, jp.group_scores(model, params), 0.6, round_to=8)
    assert plan.keep["a:1"].sum() == 16


def test_training_goes_on_with_the_same_optimiser() -> None:
    """Torch-Pruning replaces the parameters behind the optimiser's back."""
    draw = Draw(16)
    params, x = {"a": draw.weight(4, 8), "b": draw.weight(8, 3)}, draw.normal(5, 4)
    tx = optax.sgd(0.1, momentum=0.9)

    def apply(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    def step(function, params, state):
        updates, state = tx.update(jax.grad(lambda p: jnp.mean(function(p, x) ** 2))(params), state)
        return optax.apply_updates(params, updates), state

    params, state = step(apply, params, tx.init(params))
    model = jp.trace(apply, params, x)
    plan = half(model)
    small, small_state = jp.shrink(model, plan, params), jp.shrink(model, plan, state)
    found = step(jp.shrunk_function(model, plan), small, small_state)
    kept = plan.keep["a:1"]
    by_hand = jax.tree.map(lambda p: p[:, kept] if p.shape[1] == 8 else p[kept], (params, state))
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(step(apply, *by_hand)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
