"""Group scores against NumPy: every reduction, every normaliser, and the scores that papers name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.shrinking.toy_models import (
    HEADS,
    HEADS_MODEL,
    JOINED,
    JOINED_MODEL,
    MLP,
    MLP_MODEL,
    X,
    arrays,
)

REDUCE = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "prod": np.prod,
    "first": lambda x, axis: x[0],
    "last": lambda x, axis: x[-1],
}
NORMALIZE = {
    "none": lambda x: x,
    "sum": lambda x: x / x.sum(),
    "mean": lambda x: x / x.mean(),
    "max": lambda x: x / x.max(),
    "standard": lambda x: (x - x.min()) / (x.max() - x.min()),
    "gaussian": lambda x: (x - x.mean()) / x.std(),
    "lamp": lambda x: np.array([each / x[x >= each].sum() for each in x]),
}
A, BIAS, B = (np.asarray(MLP[name], np.float64) for name in ("a", "a_bias", "b"))
MEMBERS = np.stack([np.abs(A).sum(0), np.abs(BIAS), np.abs(B).sum(1)])  # of the group a:1, in its order


def test_the_order_of_members_is_that_of_the_oracle() -> None:
    assert [(member.path, member.axis) for member in MLP_MODEL.groups["a:1"].members] == [
        ("a", 1),
        ("a_bias", 0),
        ("b", 0),
    ]


@pytest.mark.parametrize("reduction", REDUCE)
def test_reductions(reduction) -> None:
    scores = jp.group_scores(MLP_MODEL, MLP, reduction=reduction, normalize="none")
    assert list(scores) == ["a:1", "b:1"]
    np.testing.assert_allclose(scores["a:1"], REDUCE[reduction](MEMBERS, axis=0), rtol=1e-5)
    assert scores["b:1"].shape == (5,)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_normalizers(normalize) -> None:
    expected = NORMALIZE[normalize](MEMBERS.mean(0))
    found = jp.group_scores(MLP_MODEL, MLP, normalize=normalize)["a:1"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_normalizers_of_nothing_but_zeros_and_of_ties(normalize) -> None:
    zeros = jax.tree.map(jnp.zeros_like, MLP)
    assert not np.any(jp.group_scores(MLP_MODEL, zeros, normalize=normalize)["a:1"])
    ones = jax.tree.map(jnp.ones_like, MLP)
    assert len(set(jp.group_scores(MLP_MODEL, ones, normalize=normalize)["a:1"].tolist())) == 1


def test_power_2_is_the_group_norm() -> None:
    found = jp.group_scores(MLP_MODEL, MLP, power=2.0, reduction="sum", normalize="none")["a:1"]
    np.testing.assert_allclose(found, (A**2).sum(0) + BIAS**2 + (B**2).sum(1), rtol=1e-5)


def test_scores_from_gradients_and_statistics() -> None:
    grads = arrays({name: leaf.shape for name, leaf in MLP.items()}, seed=3)
    group = {name: np.asarray(grads[name], np.float64) for name in ("a", "a_bias", "b")}

    def reduced(a, bias, b):
        return a.sum(0) + bias + b.sum(1)

    taylor = jp.group_scores(MLP_MODEL, MLP, jp.scores.taylor, grads=grads, reduction="sum", normalize="none")
    expected = reduced((A * group["a"]) ** 2, (BIAS * group["a_bias"]) ** 2, (B * group["b"]) ** 2)
    np.testing.assert_allclose(taylor["a:1"], expected, rtol=1e-5)
    stats = jax.tree.map(jnp.square, grads)
    fisher = jp.group_scores(MLP_MODEL, MLP, jp.scores.fisher, stats=stats, reduction="sum", normalize="none")
    np.testing.assert_allclose(fisher["a:1"], 0.5 * expected, rtol=1e-5)
    # A signed score counts by its size.
    movement = jp.group_scores(MLP_MODEL, MLP, jp.scores.movement, grads=grads, reduction="sum", normalize="none")
    expected = reduced(np.abs(A * group["a"]), np.abs(BIAS * group["a_bias"]), np.abs(B * group["b"]))
    np.testing.assert_allclose(movement["a:1"], expected, rtol=1e-5)


PAIR = arrays({"a": (3, 6), "b": (6, 3)})
PAIR_MODEL = jp.trace(lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"], PAIR, X)


def test_random_scores_follow_the_key() -> None:
    one, same, other = (
        jp.group_scores(PAIR_MODEL, PAIR, jp.scores.random, key=jax.random.key(seed))["a:1"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert len(set(np.asarray(one).tolist())) == 6 and not np.allclose(one, other)


def test_some_members_only() -> None:
    def normalised(params, x):
        x = (x @ params["dense"]["kernel"]) * params["norm"]["scale"][None]
        return jax.nn.relu(jax.nn.relu(x) @ params["next"]["kernel"]) @ params["last"]["kernel"]

    names = {"dense/kernel": (3, 6), "norm/scale": 6, "next/kernel": (6, 5), "last/kernel": (5, 2)}
    drawn = arrays(names)
    params = {name.split("/")[0]: {name.split("/")[1]: leaf} for name, leaf in drawn.items()}
    model = jp.trace(normalised, params, X)
    scores = jp.group_scores(model, params, members=".*/scale", normalize="none")
    np.testing.assert_allclose(scores["dense/kernel:1"], np.abs(drawn["norm/scale"]), rtol=1e-6)
    # A group without a scale scores by all of its members.
    expected = np.abs(drawn["next/kernel"]).sum(0) + np.abs(drawn["last/kernel"]).sum(1)
    np.testing.assert_allclose(scores["next/kernel:1"], expected / 2, rtol=1e-5)
    by_call = jp.group_scores(model, params, members=lambda path, _: path.endswith("scale"), normalize="none")
    np.testing.assert_array_equal(by_call["dense/kernel:1"], scores["dense/kernel:1"])
    with pytest.raises(ValueError, match="matches no floating parameter"):
        jp.group_scores(model, params, members=".*/scales")


def test_two_groups_on_one_axis() -> None:
    scores = jp.group_scores(HEADS_MODEL, HEADS, reduction="sum", normalize="none")
    a, bias, merge = (np.abs(np.asarray(HEADS[name], np.float64)) for name in ("a", "bias", "merge"))
    a, bias = a.reshape(3, 4, 3), bias.reshape(4, 3)
    np.testing.assert_allclose(scores["a:1:0"], a.sum((0, 2)) + bias.sum(1) + merge.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(scores["a:1:1"], a.sum((0, 1)) + bias.sum(0) + merge.sum((0, 2)), rtol=1e-5)


def test_groups_that_follow_each_other_on_one_axis() -> None:
    scores = jp.group_scores(JOINED_MODEL, JOINED, reduction="sum", normalize="none")
    left, right, scale, merge = (np.abs(np.asarray(JOINED[n], np.float64)) for n in ("left", "right", "scale", "merge"))
    np.testing.assert_allclose(scores["left:1"], left.sum(0) + scale[:4] + merge[:4].sum(1), rtol=1e-5)
    np.testing.assert_allclose(scores["right:1"], right.sum(0) + scale[4:] + merge[4:].sum(1), rtol=1e-5)


def test_one_parameter_on_both_sides() -> None:
    def recurrent(params, x):
        state = jnp.tanh(x @ params["a"])
        return jnp.tanh(state @ params["h"]) @ params["out"] + (state @ params["out"])

    params = arrays({"a": (3, 4), "h": (4, 4), "out": (4, 2)})
    model = jp.trace(recurrent, params, X)
    a, h, out = (np.abs(np.asarray(params[name], np.float64)) for name in ("a", "h", "out"))
    scores = jp.group_scores(model, params, reduction="sum", normalize="none")
    np.testing.assert_allclose(scores["a:1"], a.sum(0) + h.sum(0) + h.sum(1) + out.sum(1), rtol=1e-5)


def test_jit() -> None:
    def rated(params, grads):
        taylor = jp.group_scores(PAIR_MODEL, params, jp.scores.taylor, grads=grads, normalize="lamp")
        return taylor["a:1"], jp.geometric_median_scores(PAIR_MODEL, params)["a:1"]

    expected = rated(PAIR, PAIR)
    # With the gradients alone traced, the parameters are constants.
    for found in (jax.jit(rated)(PAIR, PAIR), jax.jit(lambda grads: rated(PAIR, grads))(PAIR)):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_half_precision_is_summed_in_full() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MLP)
    model = jp.trace(lambda p, x: (x @ p["a"]) @ p["b"], params, X.astype(jnp.bfloat16))
    scores = jp.group_scores(model, params, reduction="sum", normalize="none")["a:1"]
    assert scores.dtype == jnp.float32
    a, b = (np.asarray(params[name].astype(jnp.float32)) for name in ("a", "b"))
    np.testing.assert_allclose(scores, np.abs(a).sum(0) + np.abs(b).sum(1), rtol=1e-5)


def test_geometric_median() -> None:
    rows = np.asarray(MLP["a"], np.float64).T
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1)
    found = jp.geometric_median_scores(MLP_MODEL, MLP, normalize="none")["a:1"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    normalised = jp.geometric_median_scores(MLP_MODEL, MLP, normalize="max")["a:1"]
    np.testing.assert_allclose(normalised, expected / expected.max(), rtol=1e-4)
    # Heads: the rows are what makes a head, in all features.
    rows = np.asarray(HEADS["a"], np.float64).reshape(3, 4, 3).transpose(1, 0, 2).reshape(4, 9)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1)
    found = jp.geometric_median_scores(HEADS_MODEL, HEADS, normalize="none")["a:1:0"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"reduction='median'; it may be one of \['sum'"):
        jp.group_scores(MLP_MODEL, MLP, reduction="median")  # pyright: ignore[reportArgumentType]
    for scored in (jp.group_scores, jp.geometric_median_scores):
        with pytest.raises(ValueError, match=r"normalize='l2'; it may be one of \['none'"):
            scored(MLP_MODEL, MLP, normalize="l2")
        with pytest.raises(ValueError, match=r"params has another tree structure.*it lacks a_bias"):
            scored(MLP_MODEL, {name: leaf for name, leaf in MLP.items() if name != "a_bias"})
        with pytest.raises(ValueError, match=r"b has shape \(5, 5\), but the model was traced with \(6, 5\)"):
            scored(MLP_MODEL, MLP | {"b": MLP["b"][:5]})
    with pytest.raises(ValueError, match="the score taylor needs grads="):
        jp.group_scores(MLP_MODEL, MLP, jp.scores.taylor)
    with pytest.raises(ValueError, match="the score random needs key="):
        jp.group_scores(MLP_MODEL, MLP, jp.scores.random)
