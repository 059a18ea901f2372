"""Depth: blocks in every layout that occurs, their scores against NumPy, pruning to a budget."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxprune.shrinking import depth
from tests.shrinking.small import assert_equal
from tests.zoo.models._model import Draw

WIDTH, BLOCKS = 4, 5
draw = Draw(0)
PARTS = [{"w": draw.weight(WIDTH, WIDTH), "b": draw.bias(WIDTH)} for _ in range(BLOCKS)]
HEAD, X = draw.weight(WIDTH, 3), draw.normal(2, 3, WIDTH)


class Pair(NamedTuple):
    first: Any
    second: Any
    third: Any


def stacked(parts):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


# Each layout: the parameters of some blocks, the path, whether they are stacked.
LAYOUTS = {
    "list": (lambda parts: {"layers": list(parts), "head": HEAD}, "layers", False),
    "tuple": (lambda parts: {"layers": tuple(parts), "head": HEAD}, "layers", False),
    "dict": (lambda parts: {"layers": {f"{k}": p for k, p in enumerate(parts)}, "head": HEAD}, "layers", False),
    "nested": (lambda parts: {"net": {"encoder": {"layers": list(parts)}}, "head": HEAD}, "net/encoder/layers", False),
    "numbered among others": (
        lambda parts: {"params": {**{f"Block_{k}": p for k, p in enumerate(parts)}, "Dense_0": {"kernel": HEAD}}},
        "params/Block_{}",
        False,
    ),
    "numbered at the top": (
        lambda parts: {**{f"Block_{k}": p for k, p in enumerate(parts)}, "head": HEAD},
        "Block_{}",
        False,
    ),
    "stacked": (lambda parts: {"layers": stacked(parts), "head": HEAD}, "layers", True),
}


def block(params, x):
    return x + jnp.tanh(x @ params["w"] + params["b"][None, None])


@pytest.mark.parametrize("name", LAYOUTS)
def test_remove(name: str) -> None:
    build, path, is_stacked = LAYOUTS[name]
    params = build(PARTS)
    assert depth.count(params, path, stacked=is_stacked) == BLOCKS
    small = depth.remove(params, path, [3, 1], stacked=is_stacked)
    assert_equal(small, build([PARTS[k] for k in (0, 2, 4)]))
    assert depth.count(small, path, stacked=is_stacked) == 3
    assert_equal(depth.remove(params, path, [], stacked=is_stacked), params)


@pytest.mark.parametrize("name", LAYOUTS)
def test_remove_from_an_optimiser_state(name: str) -> None:
    build, path, is_stacked = LAYOUTS[name]
    params = build(PARTS)
    tx = optax.chain(optax.clip(1.0), optax.adam(0.1))
    state = jax.tree.map(lambda s: np.arange(s.size, dtype=s.dtype).reshape(s.shape), jax.eval_shape(tx.init, params))
    small = depth.remove(state, path, [0, 2], stacked=is_stacked)
    assert_equal(small[1][0].mu, depth.remove(state[1][0].mu, path, [0, 2], stacked=is_stacked))
    expected = jax.eval_shape(tx.init, build([PARTS[k] for k in (1, 3, 4)]))
    assert jax.tree.structure(small) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, expected)


def test_more_than_ten_numbered_blocks_keep_their_order() -> None:
    params = {f"layer_{k}": float(k) for k in range(12)}
    small = depth.remove(params, "layer_{}", [2])
    assert [small[f"layer_{k}"] for k in range(11)] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert depth.remove({"layers": params}, "layers", range(10))["layers"] == {"layer_0": 10.0, "layer_1": 11.0}


def test_only_a_running_number_is_counted_anew() -> None:
    """Names are sorted, as JAX sorts the keys of a dict."""
    named = {"layers": {"top": 1.0, "body": 2.0, "stem": 3.0}}
    assert depth.remove(named, "layers", [0]) == {"layers": {"stem": 3.0, "top": 1.0}}
    sizes = {"layers": {"conv_1x1": 1.0, "conv_3x3": 2.0}}
    assert depth.remove(sizes, "layers", [0]) == {"layers": {"conv_3x3": 2.0}}
    different = {"layers": {"conv_0": 1.0, "norm_0": 2.0}}
    assert depth.remove(different, "layers", [0]) == {"layers": {"norm_0": 2.0}}
    version = {"v2_layer_0": 1.0, "v2_layer_1": 2.0}
    assert depth.remove(version, "v2_layer_{}", [0]) == {"v2_layer_0": 2.0}


def collections(blocks, at=lambda blocks: blocks):
    """Variables of Linen: the blocks of each number, with statistics beside the parameters, not in every block."""
    stats = {f"Block_{k}": {"Norm_0": {"mean": -number}} for k, number in enumerate(blocks) if number != 30.0}
    params = {f"Block_{k}": {"Norm_0": {"scale": number}} for k, number in enumerate(blocks)}
    return {"params": {"Dense_0": 0.5, **at(params)}, "batch_stats": at(stats)}


@pytest.mark.parametrize(
    ("path", "at"), [("Block_{}", lambda b: b), ("net/Block_{}", lambda b: {"net": b})], ids=["top", "nested"]
)
@pytest.mark.parametrize("numbers", [[10.0, 20.0, 40.0], [10.0, 20.0, 30.0]], ids=["all", "some without statistics"])
def test_parameters_and_statistics_go_together(path, at, numbers) -> None:
    variables = collections(numbers, at)
    assert depth.count(variables, path) == 3
    for gone in range(3):
        expected = collections([number for k, number in enumerate(numbers) if k != gone], at)
        assert depth.remove(variables, path, [gone]) == expected
    small, removed = depth.prune(lambda p: np.arange(depth.count(p, path)), variables, path, keep=1)
    assert (small, removed) == (collections(numbers[2:], at), [0, 1])
    with pytest.raises(ValueError, match=r"leaves out 'batch_stats.*under their old numbers. Give '(net/)?Block_{}'"):
        depth.remove(variables, f"params/{path}", [0])
    assert depth.count(variables, f"params/{path}") == 3
    # The parameters alone, and their optimiser, know of no statistics.
    alone = {"params": variables["params"], "state": (variables["params"], variables["params"])}
    assert depth.remove({"params": variables["params"]}, f"params/{path}", [0])["params"] == expected_params(
        numbers, at
    )
    assert depth.remove(alone, path, [0])["state"] == (expected_params(numbers, at),) * 2


def expected_params(numbers, at):
    return collections(numbers[1:], at)["params"]


def test_blocks_of_the_same_names_that_are_not_the_same() -> None:
    both = {
        "encoder": {f"layer_{k}": {"w": k} for k in range(3)},
        "decoder": {f"layer_{k}": {"w": k} for k in range(2)},
    }
    with pytest.raises(ValueError, match=r"different blocks: .*'layer_2'\] in 'encoder' and .* in 'decoder'.*longer"):
        depth.remove(both, "layer_{}", [0])
    assert list(depth.remove(both, "encoder/layer_{}", [0])["encoder"]) == ["layer_0", "layer_1"]
    variables = {"params": both, "batch_stats": {"head": {"mean": 0.0}}}
    assert list(depth.remove(variables, "params/encoder/layer_{}", [0])["params"]["decoder"]) == ["layer_0", "layer_1"]


def test_a_named_tuple_of_blocks_is_too_rigid() -> None:
    with pytest.raises(ValueError, match="Pair, which cannot have fewer blocks"):
        depth.remove({"layers": Pair(1.0, 2.0, 3.0)}, "layers", [0])


def test_masks_and_abstract_trees() -> None:
    masks = {"layers": [{"w": np.ones((2, 2), bool)}, {"w": True}]}
    assert depth.remove(masks, "layers", [0]) == {"layers": [{"w": True}]}
    shapes = jax.eval_shape(lambda: {"layers": PARTS})
    assert len(depth.remove(shapes, "layers", [0])["layers"]) == BLOCKS - 1
    shapes = jax.eval_shape(lambda: {"layers": stacked(PARTS)})
    assert depth.remove(shapes, "layers", [0], stacked=True)["layers"]["w"].shape == (BLOCKS - 1, WIDTH, WIDTH)


def test_remove_under_jit() -> None:
    params = {"layers": stacked(PARTS)}
    small = jax.jit(lambda p: depth.remove(p, "layers", [0, 4], stacked=True))(params)
    assert_equal(small, {"layers": stacked(PARTS[1:4])})


def numpy_influence(parts, x):
    x, scores = np.asarray(x), []
    for p in parts:
        y = x + np.tanh(x @ np.asarray(p["w"]) + np.asarray(p["b"]))
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        scores.append(1 - cosine.mean())
        x = y
    return np.array(scores)


@pytest.mark.parametrize("name", ["list", "numbered among others", "stacked"])
def test_influence(name: str) -> None:
    build, path, is_stacked = LAYOUTS[name]
    found = depth.influence(block, build(PARTS), path, X, stacked=is_stacked)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, numpy_influence(PARTS, X), atol=1e-6)


def test_influence_of_bfloat16_and_of_nothing() -> None:
    parts = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARTS)
    found = depth.influence(block, {"layers": parts}, "layers", X.astype(jnp.bfloat16))
    np.testing.assert_allclose(found, numpy_influence(PARTS, X), atol=2e-2)
    idle = jax.tree.map(jnp.zeros_like, PARTS)
    np.testing.assert_allclose(depth.influence(block, {"layers": idle}, "layers", X), 0, atol=1e-6)
    assert jnp.isfinite(depth.influence(block, {"layers": idle}, "layers", jnp.zeros_like(X))).all()


def test_influence_under_jit() -> None:
    score = jax.jit(lambda p, x: depth.influence(block, p, "layers", x))
    np.testing.assert_allclose(score({"layers": PARTS}, X), numpy_influence(PARTS, X), atol=1e-6)


def scan_loss(params):
    x = lax.scan(lambda x, p: (block(p, x), None), X, params["layers"])[0]
    return jnp.mean((x @ params["head"]) ** 2)


def list_loss(params):
    x = X
    for p in params["layers"]:
        x = block(p, x)
    return jnp.mean((x @ params["head"]) ** 2)


def test_loss_changes() -> None:
    params = LAYOUTS["list"][0](PARTS)
    found = depth.loss_changes(list_loss, params, "layers")
    expected = [
        float(list_loss({**params, "layers": PARTS[:k] + PARTS[k + 1 :]})) - float(list_loss(params))
        for k in range(BLOCKS)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = depth.loss_changes(scan_loss, LAYOUTS["stacked"][0](PARTS), "layers", stacked=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_prune_scores_anew_after_each_block() -> None:
    params = LAYOUTS["list"][0](PARTS)
    small, removed = depth.prune(lambda p: depth.loss_changes(list_loss, p, "layers"), params, "layers", keep=2)
    left, expected = list(range(BLOCKS)), []
    while len(left) > 2:
        losses = [float(list_loss({**params, "layers": [PARTS[b] for b in left if b != gone]})) for gone in left]
        expected.append(left.pop(int(np.argmin(losses))))
    assert removed == expected
    assert_equal(small["layers"], [PARTS[k] for k in left])


def test_prune_to_a_share_of_parameters() -> None:
    params = LAYOUTS["stacked"][0](PARTS)  # 5 blocks of 20, and a head of 12
    small, removed = depth.prune(
        lambda p: p["layers"]["b"].sum(-1), params, "layers", params_share=52 / 112, stacked=True
    )
    assert small["layers"]["b"].shape == (2, WIDTH)
    assert removed == np.argsort([float(p["b"].sum()) for p in PARTS])[:3].tolist()
    assert depth.prune(lambda p: p["layers"]["b"].sum(-1), params, "layers", params_share=1.0, stacked=True)[1] == []
    assert depth.prune(lambda p: p["layers"]["b"].sum(-1), params, "layers", keep=BLOCKS, stacked=True)[1] == []


def test_errors() -> None:
    params = {"layers": PARTS, "head": HEAD}

    def same(p):
        return np.zeros(len(p["layers"]))

    with pytest.raises(ValueError, match=r"no blocks at 'blocks'.*paths are head, layers/0/b"):
        depth.remove(params, "blocks", [0])
    with pytest.raises(ValueError, match="no blocks at 'head'"):
        depth.count(params, "head")
    with pytest.raises(ValueError, match=r"blocks=\[5\]\) at 'layers': there are 5 blocks, and one must stay"):
        depth.remove(params, "layers", [5])
    with pytest.raises(ValueError, match="one must stay"):
        depth.remove(params, "layers", range(5))
    with pytest.raises(ValueError, match="they are not stacked"):
        depth.count({"layers": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}, "layers", stacked=True)
    with pytest.raises(ValueError, match=r"occurs 2 times; give a longer path"):
        depth.count({"one": params, "two": params}, "layers")
    with pytest.raises(ValueError, match="give one of keep="):
        depth.prune(same, params, "layers")
    with pytest.raises(ValueError, match="give one of keep="):
        depth.prune(same, params, "layers", keep=1, params_share=0.5)
    with pytest.raises(ValueError, match="of which 1 to 5 can stay"):
        depth.prune(same, params, "layers", keep=0)
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        depth.prune(same, params, "layers", params_share=0.0)
    with pytest.raises(ValueError, match=r"params_share=0.1 cannot be met: with one block left 0\.2857 stays"):
        depth.prune(same, params, "layers", params_share=0.1)
