"""Plans from zeros: what masks empty, what has died, and that the constants of the dead are not lost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.shrinking.toy_models import (
    HEADS,
    HEADS_MODEL,
    JOINED_MODEL,
    MLP,
    MLP_MODEL,
    X,
    arrays,
    assert_shrunk_equals,
    convolve,
    heads,
)
from tests.zoo.models import ZOO

FULL = jax.tree.map(lambda _: True, MLP)


def others(*arguments: jax.Array) -> tuple[jax.Array, ...]:
    """Arguments of the same shapes, with other and larger numbers."""
    draw = np.random.default_rng(99)
    return tuple(jnp.asarray(3 * draw.normal(size=x.shape) + 1, x.dtype) for x in arguments)


def without(array: Any, axis: int, *indices: int) -> jax.Array:
    """The array with zeros at some indices of an axis."""
    array = np.array(array)
    np.moveaxis(array, axis, 0)[list(indices)] = 0
    return jnp.asarray(array)


def compact(apply: Any, params: Any, *args: Any, masks: Any = None) -> tuple[jp.Plan, Any]:
    """`dead_units`, after checking that what is left computes the same, for other arguments too."""
    model = jp.trace(apply, params, *args)
    plan, folded = jp.dead_units(model, params, *args, masks=masks)
    masked = params if masks is None else jp.apply_masks(params, masks)
    assert_shrunk_equals(model, plan, folded, masked, args, others(*args))
    return plan, folded


def gone(plan: jp.Plan) -> dict[str, list[int]]:
    return {name: np.flatnonzero(~mask).tolist() for name, mask in plan.keep.items()}


# Plans from masks.


def test_channel_masks() -> None:
    masks = FULL | {"b": np.array([True, False, True, True, False, True])[:, None]}
    plan = jp.plan_from_masks(MLP_MODEL, masks)
    assert gone(plan) == {"a:1": [1, 4]} and plan.fingerprint == MLP_MODEL.fingerprint
    masked = jp.apply_masks(MLP, masks)
    assert_shrunk_equals(MLP_MODEL, plan, masked, masked, (X,))
    # What makes an index may be masked: it is a constant then, not nothing.
    with pytest.raises(ValueError, match=r"empty no index of any group.*dead_units"):
        jp.plan_from_masks(MLP_MODEL, FULL | {"a": np.array([[True, False, True, True, True, True]])})


def test_the_masks_of_a_plan_give_it_back() -> None:
    for model, keep in (
        (MLP_MODEL, {"a:1": np.arange(6) % 2 == 0, "b:1": np.arange(5) != 3}),
        (HEADS_MODEL, {"a:1:0": np.arange(4) != 2, "a:1:1": np.arange(3) > 0}),
        (JOINED_MODEL, {"left:1": np.arange(4) != 1, "right:1": np.arange(2) == 0}),
    ):
        for consumers_only in (False, True):
            masks = jp.Plan(keep).masks(model, consumers_only=consumers_only)
            found = jp.plan_from_masks(model, masks)
            assert gone(found) == gone(jp.Plan(keep))


@pytest.mark.parametrize("name", ["llama_scan", "mobilenet", "linen_gru"])
def test_the_masks_of_a_plan_give_it_back_in_the_zoo(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    plan = jp.Plan({key: np.arange(group.size) % 3 != 1 for key, group in model.groups.items()})
    assert gone(jp.plan_from_masks(model, plan.masks(model))) == gone(plan)


def test_weight_and_scalar_masks() -> None:
    mask = np.random.default_rng(0).random((6, 5)) < 0.8
    mask[2] = False
    masks = FULL | {"b": jnp.asarray(mask)}
    assert gone(jp.plan_from_masks(MLP_MODEL, masks)) == {"a:1": [2]}
    # A dropped layer is a scalar False: all that it reads can go, but for one index.
    plan = jp.plan_from_masks(MLP_MODEL, FULL | {"c": False})
    assert gone(plan) == {"b:1": [1, 2, 3, 4]}
    assert_shrunk_equals(MLP_MODEL, plan, MLP | {"c": 0 * MLP["c"]}, MLP | {"c": 0 * MLP["c"]}, (X,))


def test_where_the_consumers_do_not_suffice_all_members_must_be_masked() -> None:
    def apply(params, x):
        return jnp.tanh(x @ params["a"] + params["bias"][None]).sum(-1)

    params = arrays({"a": (3, 4), "bias": 4})
    model = jp.trace(apply, params, X)
    a = np.array([[True, False, True, False]])
    assert gone(jp.plan_from_masks(model, {"a": a, "bias": np.array([True, False, True, True])})) == {"a:1": [1]}
    with pytest.raises(ValueError, match="empty no index"):
        jp.plan_from_masks(model, {"a": a, "bias": True})
    zeros = params | {"a": without(params["a"], 1, 1, 3), "bias": without(params["bias"], 0, 1)}
    assert gone(compact(apply, zeros, X)[0]) == {"a:1": [1]}


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="empty no index of any group"):
        jp.plan_from_masks(MLP_MODEL, FULL)
    with pytest.raises(ValueError, match=r"masks has another tree structure.*it lacks c_bias"):
        jp.plan_from_masks(MLP_MODEL, {name: True for name in MLP if name != "c_bias"})
    with pytest.raises(ValueError, match=r"the mask of b has shape \(5, 6\), which does not broadcast to \(6, 5\)"):
        jp.plan_from_masks(MLP_MODEL, FULL | {"b": np.ones((5, 6), bool)})


# Dead units.


def test_units_that_feed_nothing_take_along_what_fed_only_them() -> None:
    # Unit 1 of b is read by zeros; unit 4 of a feeds only it.
    b = np.array(MLP["b"])
    b[4, [0, 2, 3, 4]] = 0
    params = MLP | {"b": jnp.asarray(b), "c": without(MLP["c"], 0, 1)}
    plan, folded = jp.dead_units(MLP_MODEL, params)
    assert gone(plan) == {"a:1": [4], "b:1": [1]}
    assert_shrunk_equals(MLP_MODEL, plan, folded, params, others(X))
    assert plan.fingerprint == MLP_MODEL.fingerprint


def test_nothing_dead_is_an_empty_plan() -> None:
    plan, folded = compact(MLP_MODEL.apply_fn, MLP, X)
    assert not plan.keep
    for name, leaf in folded.items():
        np.testing.assert_array_equal(leaf, MLP[name])


def test_constants_are_folded_into_the_next_bias() -> None:
    params = MLP | {
        "a": without(MLP["a"], 1, 0, 3),
        "a_bias": MLP["a_bias"].at[jnp.array([0, 3])].set(jnp.array([2.0, -1.0])),
    }
    plan, folded = compact(MLP_MODEL.apply_fn, params, X)
    assert gone(plan) == {"a:1": [0, 3]}  # relu(2) is folded, relu(-1) is nothing
    np.testing.assert_allclose(folded["b_bias"], MLP["b_bias"] + 2 * MLP["b"][0], rtol=1e-6)
    # Without arguments nothing is folded.
    assert not jp.dead_units(MLP_MODEL, params)[0].keep


def test_constants_make_constants() -> None:
    # All that feeds unit 2 of b is a constant itself.
    b = np.array(MLP["b"])
    b[[1, 2, 3, 4, 5], 2] = 0
    params = MLP | {"a": without(MLP["a"], 1, 0), "a_bias": MLP["a_bias"].at[0].set(1.5), "b": jnp.asarray(b)}
    assert gone(compact(MLP_MODEL.apply_fn, params, X)[0]) == {"a:1": [0], "b:1": [2]}


def test_a_group_that_is_dead_keeps_one_index() -> None:
    params = MLP | {"a": 0 * MLP["a"]}  # the whole network is a constant
    plan, folded = compact(MLP_MODEL.apply_fn, params, X)
    assert gone(plan) == {"a:1": [1, 2, 3, 4, 5], "b:1": [1, 2, 3, 4]}
    np.testing.assert_allclose(folded["c_bias"][None], MLP_MODEL.apply_fn(params, X[:1]), rtol=1e-5)


def test_masks_are_applied_first() -> None:
    masks = FULL | {"a": np.array([[True, True, False, True, True, True]]), "c": np.arange(5)[:, None] != 4}
    assert gone(compact(MLP_MODEL.apply_fn, MLP, X, masks=masks)[0]) == {"a:1": [2], "b:1": [4]}


def test_overlapping_constants_are_folded_once() -> None:
    a = np.array(HEADS["a"]).reshape(3, 4, 3)
    a[:, 0] = a[:, :, 1] = 0
    params = HEADS | {"a": jnp.asarray(a.reshape(3, 12)), "bias": jnp.abs(HEADS["bias"])}
    assert gone(compact(heads, params, X)[0]) == {"a:1:0": [0], "a:1:1": [1]}


def test_tied_weights() -> None:
    zoo = ZOO["tied_autoencoder"]()
    kernels = [without(without(zoo.params["kernels"][0], 1, 3), 1, 5), zoo.params["kernels"][1]]
    # Unit 3 is read by zeros (the decoder's kernel is the encoder's), unit 5 is as well.
    kernels[1] = without(kernels[1], 0, 3)
    params = {**zoo.params, "kernels": kernels}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return zoo.apply_fn(params, x)["reconstruction"]

    model = jp.trace(apply, params, *zoo.args)
    plan, folded = jp.dead_units(model, params, *zoo.args)
    hidden = next(mask for mask in plan.keep.values() if mask.size == 14)
    assert not hidden[3]
    assert_shrunk_equals(model, plan, folded, params, zoo.args, others(*zoo.args))


def test_a_weight_that_is_used_twice_is_folded_twice() -> None:
    def apply(params, x):
        first = jax.nn.relu(x @ params["a"] + params["a_bias"][None])
        other = first @ params["shared"] + params["one"][None]
        return other * (jnp.square(first) @ params["shared"] + params["two"][None])

    params = arrays({"a": (3, 6), "a_bias": 6, "shared": (6, 2), "one": 2, "two": 2})
    params |= {"a": without(params["a"], 1, 2), "a_bias": params["a_bias"].at[2].set(3.0)}
    plan, folded = compact(apply, params, X)
    assert gone(plan) == {"a:1": [2]}
    np.testing.assert_allclose(folded["two"], params["two"] + 9 * params["shared"][2], rtol=1e-5)


CONSTANT = {"bias": jnp.array([2.0, 0.3, -0.5, 1.0]), "scale": jnp.array([0.5, 1.0, 2.0, -1.0])}


def images(shape: tuple[int, ...] = (2, 6, 6, 3)) -> jax.Array:
    return arrays({"x": shape}, seed=5)["x"]


@pytest.mark.parametrize(("size", "padding"), [(1, "SAME"), (1, "VALID"), (3, "VALID")])
def test_convolutions_without_padding_are_folded(size: int, padding: str) -> None:
    def apply(params, x):
        x = jax.nn.relu(convolve(x, params["first"], "SAME") + params["bias"][None, None, None])
        x = jax.nn.relu(convolve(x, params["second"], padding) + params["next"][None, None, None])
        return x.mean((1, 2)) @ params["head"] + params["last"][None]

    params = arrays({"first": (3, 3, 3, 4), "second": (size, size, 4, 5), "next": 5, "head": (5, 2), "last": 2})
    params |= {"first": without(params["first"], 3, 0, 2), "bias": CONSTANT["bias"]}
    plan, folded = compact(apply, params, images())
    assert gone(plan) == {"first:3": [0, 2]}
    np.testing.assert_allclose(folded["next"], params["next"] + 2 * params["second"][:, :, 0].sum((0, 1)), rtol=1e-5)


def test_padded_convolutions_read_zeros_at_the_border() -> None:
    def apply(params, x):
        x = jax.nn.relu(convolve(x, params["first"], "SAME") + params["bias"][None, None, None])
        x = jax.nn.relu(convolve(x, params["second"], "SAME") + params["next"][None, None, None])
        return x.mean((1, 2)) @ params["head"] + params["last"][None]

    params = arrays({"first": (3, 3, 3, 4), "second": (3, 3, 4, 5), "next": 5, "head": (5, 2), "last": 2})
    params |= {"first": without(params["first"], 3, 0, 2), "bias": CONSTANT["bias"]}
    # relu(2) is not the same everywhere after the padding; relu(-0.5) is nothing.
    assert gone(compact(apply, params, images())[0]) == {"first:3": [2]}


def test_a_constant_that_differs_from_place_to_place_is_left_alone() -> None:
    def apply(params, x):
        x = jnp.tanh(convolve(x, params["first"], "SAME") + params["bias"])
        return convolve(x, params["second"], "VALID") + params["next"][None, None, None]

    params = arrays({"first": (3, 3, 3, 4), "bias": (1, 6, 6, 4), "second": (1, 1, 4, 5), "next": 5})
    params |= {"first": without(params["first"], 3, 0)}
    assert not compact(apply, params, images())[0].keep


def test_moving_averages_take_constants_up() -> None:
    def norm(params, x):
        return (x - params["mean"][None, None, None]) * params["scale"][None, None, None]

    def apply(params, x):
        x = jax.nn.relu(
            norm(params["norm"], convolve(x, params["first"], "VALID")) + CONSTANT["bias"][None, None, None]
        )
        x = jax.nn.relu(norm(params["next"], convolve(x, params["second"], "VALID")))
        return x.mean((1, 2)) @ params["head"]

    params: dict[str, Any] = dict(arrays({"first": (3, 3, 3, 4), "second": (2, 2, 4, 5), "head": (5, 2)}))
    params["norm"] = {"mean": jnp.array([0.1, -0.2, 0.3, 0.4]), "scale": CONSTANT["scale"]}
    params["next"] = arrays({"mean": 5, "scale": 5})
    params["first"] = without(params["first"], 3, 0)
    plan, folded = compact(apply, params, images())
    assert gone(plan) == {"first:3": [0]}
    value = (0 - 0.1) * 0.5 + 2.0
    expected = params["next"]["mean"] - value * params["second"][:, :, 0].sum((0, 1))
    np.testing.assert_allclose(folded["next"]["mean"], expected, rtol=1e-4, atol=1e-5)


def relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


UNFOLDABLE = {
    # No bias behind the reader.
    "no bias": lambda p, x: jnp.tanh(relu(x @ p["a"] + p["bias"][None]) @ p["b"]) @ p["square"],
    # The bias is used elsewhere too.
    "shared bias": lambda p, x: relu(x @ p["a"] + p["bias"][None]) @ p["b"] + p["c"][None] + jnp.square(p["c"])[None],
    # What is added is a function of the bias.
    "doubled bias": lambda p, x: relu(x @ p["a"] + p["bias"][None]) @ p["b"] + 2 * p["c"][None],
    # Zero weights are no zeros where they are read.
    "shifted weights": lambda p, x: relu(x @ (p["a"] + 1) + p["bias"][None]) @ p["b"] + p["c"][None],
    # Data reaches the unit by another way.
    "outer product": lambda p, x: relu(x @ p["a"] + x[:, :1] * p["bias"][None]) @ p["b"] + p["c"][None],
    "shifted by data": lambda p, x: relu(x @ p["a"] + p["bias"][None] - x.mean()) @ p["b"] + p["c"][None],
    # The output before the bias is an output of the model.
    "read twice": lambda p, x: (lambda h: (h + p["c"][None]) * h)(relu(x @ p["a"] + p["bias"][None]) @ p["b"]),
    # Subtracted the other way round.
    "negated": lambda p, x: p["c"][None] - relu(x @ p["a"] + p["bias"][None]) @ p["b"],
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_constants_that_cannot_be_folded(name: str) -> None:
    params = arrays({"a": (3, 4), "bias": 4, "b": (4, 2), "c": 2, "square": (2, 2)}, seed=2)
    params |= {"a": without(params["a"], 1, 0), "bias": params["bias"].at[0].set(1.5)}
    x = jnp.abs(X[:1])  # in one row, everything is the same in every row
    plan, left = jp.dead_units(jp.trace(UNFOLDABLE[name], params, x), params, x)
    assert not plan.keep and all(np.array_equal(left[name], leaf) for name, leaf in params.items())


def test_what_loops_read_is_left_alone() -> None:
    def apply(params, x):
        def step(state, row):
            return jnp.tanh(row @ params["a"] + state @ params["h"] + params["bias"]), None

        state, _ = jax.lax.scan(step, jnp.zeros(4), x)
        return state @ params["out"] + params["c"]

    params = arrays({"a": (3, 4), "h": (4, 4), "bias": 4, "out": (4, 2), "c": 2})
    params |= {"a": without(params["a"], 1, 1), "h": without(without(params["h"], 1, 1, 2), 0, 2)}
    params["out"] = without(params["out"], 0, 2)
    # Unit 1 is a constant from the second step on; unit 2 is read by zeros.
    assert gone(compact(apply, params, X)[0]) == {"a:1": [2]}


@pytest.mark.parametrize("name", ["llama_remat", "linen_weight_norm"])
def test_dead_units_of_the_zoo(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    plan = jp.Plan({key: np.arange(group.size) % 3 != 1 for key, group in model.groups.items()})
    masked = jp.apply_masks(zoo.params, plan.masks(model, consumers_only=True))
    found, folded = jp.dead_units(model, masked, *zoo.args)
    assert {key: mask.tolist() for key, mask in found.keep.items()} == {k: m.tolist() for k, m in plan.keep.items()}
    assert_shrunk_equals(model, found, folded, masked, zoo.args)


def unstructured(params: Any, sparsity: float) -> Any:
    """Random masks of kernels, with whole rows and columns falling to chance."""
    draw = np.random.default_rng(4)
    return jax.tree.map(lambda leaf: draw.random(leaf.shape) >= sparsity if leaf.ndim > 1 else np.True_, params)


def test_unstructured_masks_of_an_mlp() -> None:
    shapes = {"a": (12, 40), "a_bias": 40, "b": (40, 30), "b_bias": 30, "c": (30, 5), "c_bias": 5}
    params = arrays(shapes)
    plan, _ = compact(MLP_MODEL.apply_fn, params, arrays({"x": (8, 12)})["x"], masks=unstructured(params, 0.95))
    assert all(8 < (~mask).sum() < mask.size for mask in plan.keep.values()) and len(plan.keep) == 2


def test_unstructured_masks_of_a_cnn() -> None:
    def apply(params, x):
        x = jax.nn.relu(convolve(x, params["first"], "SAME") + params["one"][None, None, None])
        x = jax.nn.relu(convolve(x, params["second"], "VALID") + params["two"][None, None, None])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ params["dense"] + params["three"][None])
        return x @ params["head"] + params["last"][None]

    shapes = {"first": (3, 3, 1, 16), "one": 16, "second": (3, 3, 16, 12), "two": 12, "dense": (48, 20), "three": 20}
    params = arrays(shapes | {"head": (20, 4), "last": 4})
    plan, _ = compact(apply, params, images((3, 6, 6, 1)), masks=unstructured(params, 0.95))
    assert set(plan.keep) == {"first:3", "second:3", "dense:1"}


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="params has another tree structure"):
        jp.dead_units(MLP_MODEL, {"a": MLP["a"]})
    with pytest.raises(ValueError, match=r"b has shape \(5, 5\), but the model was traced with \(6, 5\)"):
        jp.dead_units(MLP_MODEL, MLP | {"b": MLP["b"][1:]})
    with pytest.raises(ValueError, match="masks has another tree structure"):
        jp.dead_units(MLP_MODEL, MLP, masks={"a": True})
    with pytest.raises(ValueError, match=r"the arguments have the shapes \[\(2, 3\)\].*traced with \[\(4, 3\)\]"):
        jp.dead_units(MLP_MODEL, MLP, X[:2])
