"""`Plan`: what it holds, the masks it means, one after another, through JSON, and every way it can be wrong."""

import json
from pathlib import Path

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
    assert_shrunk_equals,
    heads,
    mlp,
)
from tests.zoo.models import ZOO

KEEP = {"a:1": [True, False, True, True, False, True], "b:1": [False, True, True, False, True]}


def test_by_hand() -> None:
    plan = jp.Plan(KEEP)
    assert repr(plan) == "Plan(a:1: 4 of 6, b:1: 3 of 5)"
    assert {name: mask.tolist() for name, mask in plan.keep.items()} == KEEP
    plan.check(MLP_MODEL)
    small = jp.shrink(MLP_MODEL, plan, MLP)
    np.testing.assert_array_equal(small["b"], np.asarray(MLP["b"])[np.ix_(KEEP["a:1"], KEEP["b:1"])])
    masked = jp.apply_masks(MLP, plan.masks(MLP_MODEL))
    assert_shrunk_equals(MLP_MODEL, plan, masked, masked, (X,))


def test_json_and_files(tmp_path: Path) -> None:
    for plan in (jp.Plan(KEEP), jp.Plan(KEEP, MLP_MODEL.fingerprint), jp.Plan({})):
        plan.save(tmp_path / "plan.json")
        for again in (jp.Plan.from_json(plan.to_json()), jp.Plan.load(str(tmp_path / "plan.json"))):
            assert again.fingerprint == plan.fingerprint
            assert list(again.keep) == list(plan.keep)
            for name, mask in plan.keep.items():
                np.testing.assert_array_equal(again.keep[name], mask, strict=True)
            again.check(MLP_MODEL)
    assert json.loads(jp.Plan(KEEP).to_json())["keep"]["a:1"] == {"size": 6, "kept": [0, 2, 3, 5]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"keep": {}}',
        '{"fingerprint": null}',
        '{"fingerprint": null, "keep": [1]}',
        '{"fingerprint": null, "keep": {"a:1": [true]}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": 3}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": "3", "kept": [0]}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": 3, "kept": 0}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": 3, "kept": [3]}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": 3, "kept": [-1]}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": 3, "kept": [0.5]}}}',
        '{"fingerprint": null, "keep": {"a:1": {"size": -3, "kept": []}}}',
    ],
)
def test_corrupt_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"this is no plan as Plan\.to_json writes it"):
        jp.Plan.from_json(text)


def test_one_plan_after_another() -> None:
    first = jp.Plan(KEEP, MLP_MODEL.fingerprint)
    shrunk = jp.shrunk_function(MLP_MODEL, first)
    small = jp.shrink(MLP_MODEL, first, MLP)
    again = jp.trace(shrunk, small, X)
    assert {name: group.size for name, group in again.groups.items()} == {"a:1": 4, "b:1": 3}
    second = jp.Plan({"a:1": [False, True, True, False]}, again.fingerprint)
    both = first.then(second)
    assert both.keep["a:1"].tolist() == [False, False, True, True, False, False]
    np.testing.assert_array_equal(both.keep["b:1"], KEEP["b:1"])
    smallest = jp.shrink(again, second, small)
    for name, leaf in jp.shrink(MLP_MODEL, both, MLP).items():
        np.testing.assert_array_equal(leaf, smallest[name], strict=True)
    np.testing.assert_allclose(
        jp.shrunk_function(MLP_MODEL, both)(smallest, X), jp.shrunk_function(again, second)(smallest, X), rtol=1e-6
    )
    # A group that the first plan leaves whole is taken over from the later one.
    assert list(jp.Plan({"a:1": KEEP["a:1"]}).then(jp.Plan({"b:1": KEEP["b:1"]})).keep) == ["a:1", "b:1"]


def test_one_plan_after_another_with_two_groups_on_one_axis() -> None:
    first = jp.Plan({"a:1:0": [True, False, True, True], "a:1:1": [False, True, True]})
    small = jp.shrink(HEADS_MODEL, first, HEADS)
    again = jp.trace(jp.shrunk_function(HEADS_MODEL, first), small, X)
    assert {name: group.size for name, group in again.groups.items()} == {"a:1:0": 3, "a:1:1": 2}
    both = first.then(jp.Plan({"a:1:0": [False, True, True]}))
    masked = jp.apply_masks(HEADS, both.masks(HEADS_MODEL))
    assert_shrunk_equals(HEADS_MODEL, both, masked, masked, (X,))


@pytest.mark.parametrize(("kept", "name"), [([1, 3], "a:1"), ([4, 1], "a:1")])
def test_a_group_that_falls_to_one_index_moves_those_beside_it(kept: list[int], name: str) -> None:
    first = jp.Plan({f"a:1:{k}": np.arange(size) < n for k, (size, n) in enumerate(zip((4, 3), kept, strict=True))})
    small = jp.shrink(HEADS_MODEL, first, HEADS)
    again = jp.trace(jp.shrunk_function(HEADS_MODEL, first), small, X)
    assert list(again.groups) == [name]
    later = jp.Plan({name: np.arange(again.groups[name].size) < 2})
    with pytest.raises(
        ValueError, match=r"names the group 'a:1', and the first one cuts \['a:1:0', 'a:1:1'\].*one plan"
    ):
        first.then(later)


def test_a_group_of_the_same_size_is_not_taken_for_another() -> None:
    first = jp.Plan({"q:1:0": np.arange(2) < 1, "q:1:1": np.arange(4) < 3, "q:1:2": np.arange(5) < 3})
    with pytest.raises(ValueError, match=r"names the group 'q:1:1', and the first one cuts \['q:1:0'\]"):
        first.then(jp.Plan({"q:1:1": [True, True, False]}))


def test_masks_of_one_axis() -> None:
    a, b = np.asarray(KEEP["a:1"]), np.asarray(KEEP["b:1"])
    masks = jp.Plan(KEEP).masks(MLP_MODEL)
    expected = {"a": a[None], "a_bias": a, "b": np.outer(a, b), "b_bias": b, "c": b[:, None], "c_bias": np.True_}
    assert jax.tree.structure(masks) == jax.tree.structure(MLP)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name])
        assert mask.dtype == bool and mask.ndim == (MLP[name].ndim if name != "c_bias" else 0)
    only = jp.Plan(KEEP).masks(MLP_MODEL, consumers_only=True)
    for name, mask in only.items():
        np.testing.assert_array_equal(mask, {"b": a[:, None], "c": b[:, None]}.get(name, np.True_))


def test_masks_of_products_and_pieces() -> None:
    head, feature = np.array([True, False, True, True]), np.array([False, True, True])
    masks = jp.Plan({"a:1:0": head, "a:1:1": feature}).masks(HEADS_MODEL)
    merged = np.logical_and.outer(head, feature)
    np.testing.assert_array_equal(masks["a"], merged.reshape(1, 12))
    np.testing.assert_array_equal(masks["bias"], merged.reshape(12))
    np.testing.assert_array_equal(masks["merge"], merged[..., None])

    left, right = np.array([True, False, True, False]), np.array([False, True])
    masks = jp.Plan({"left:1": left, "right:1": right}).masks(JOINED_MODEL)
    np.testing.assert_array_equal(masks["left"], left[None])
    np.testing.assert_array_equal(masks["scale"], np.concatenate([left, right]))
    np.testing.assert_array_equal(masks["merge"], np.concatenate([left, right])[:, None])
    assert jp.Plan({"left:1": left}).masks(JOINED_MODEL, consumers_only=True)["scale"].all()
    masked = JOINED | {"merge": jnp.where(np.append(left, [True, True])[:, None], JOINED["merge"], 0)}
    assert_shrunk_equals(JOINED_MODEL, jp.Plan({"left:1": left}), masked, masked, (X,))


def test_masks_zero_all_members_where_the_consumers_do_not_suffice() -> None:
    def apply(params, x):
        return jnp.tanh(x @ params["a"]).sum(-1)

    params = {"a": jnp.ones((3, 4))}
    model = jp.trace(apply, params, X)
    assert model.groups["a:1"].exactness == "masked"
    mask = [True, False, True, True]
    np.testing.assert_array_equal(jp.Plan({"a:1": mask}).masks(model, consumers_only=True)["a"], [mask])


@pytest.mark.parametrize("name", ["llama_scan", "resnext", "fused_qkv_split", "linen_gru"])
def test_masks_are_the_positions_of_the_members(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    for group in model.groups.values():
        keep = np.arange(group.size) != 1
        masks = jax.tree.leaves(jp.Plan({group.id: keep}).masks(model))
        expected = [np.ones(leaf.shape, bool) for leaf in model.leaves]
        for member in group.members:
            np.moveaxis(expected[member.leaf], member.axis, 0)[member.index[1]] = False
        for mask, full in zip(masks, expected, strict=True):
            np.testing.assert_array_equal(np.broadcast_to(mask, full.shape), full)


def test_a_plan_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"names the group 'z:1', which this model has not.* a:1, b:1"):
        jp.Plan({"z:1": [True]}).check(MLP_MODEL)
    with pytest.raises(ValueError, match=r"has 2 indices for group 'a:1', which has 6 here"):
        jp.Plan({"a:1": [True, False]}).check(MLP_MODEL)
    with pytest.raises(ValueError, match=r"keeps no index of group 'a:1'.*jaxprune\.depth"):
        jp.Plan({"a:1": [False] * 6}).check(MLP_MODEL)
    with pytest.raises(ValueError, match=r"has dtype int64 and shape \(2,\)"):
        jp.Plan({"a:1": [1, 0]})
    with pytest.raises(ValueError, match=r"has dtype bool and shape \(1, 2\)"):
        jp.Plan({"a:1": [[True, False]]})
    with pytest.raises(ValueError, match=r"keeps 4 indices of group 'a:1', the later one chooses from 6"):
        jp.Plan(KEEP).then(jp.Plan(KEEP))
    for use in (
        lambda plan: plan.masks(MLP_MODEL),
        lambda plan: jp.shrink(MLP_MODEL, plan, MLP),
        lambda plan: jp.shrunk_function(MLP_MODEL, plan),
        lambda plan: MLP_MODEL.cost(plan=plan),
        lambda plan: jp.verify(MLP_MODEL, plan, MLP, X),
    ):
        with pytest.raises(ValueError, match="z:1"):
            use(jp.Plan({"z:1": [True]}))


def test_a_plan_of_another_model() -> None:
    plan = jp.Plan(KEEP, MLP_MODEL.fingerprint)
    plan.check(jp.trace(mlp, MLP, X[:2]))  # another batch size is no other model
    wider = MLP | {"c": jnp.ones((5, 3)), "c_bias": jnp.ones(3)}
    deeper = MLP | {"d": jnp.ones((2, 2))}
    for params in (wider, deeper, MLP | {"c": MLP["c"].astype(jnp.bfloat16)}):
        other = jp.trace(lambda p, x: mlp(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p), x), params, X)
        assert other.fingerprint != MLP_MODEL.fingerprint
        with pytest.raises(ValueError, match="made for another model"):
            plan.check(other)
        jp.Plan(KEEP).check(other)  # by hand: any model with these groups
    assert jp.trace(heads, HEADS, X).fingerprint == HEADS_MODEL.fingerprint
