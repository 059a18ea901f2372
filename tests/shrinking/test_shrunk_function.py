"""The shrunk function: under every transformation of JAX, at other batch sizes, with either meaning of a mean."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.shrinking.small import KEPT, PLAN, assert_close, by_hand, cut, inputs, mlp, mlp_model, mlp_params
from tests.zoo.models._model import Draw

PARAMS, MODEL, X = mlp_params(), mlp_model(), inputs()
SMALL, FUNCTION = jp.shrink(MODEL, PLAN, PARAMS), jp.shrunk_function(MODEL, PLAN)
EXPECTED = np.asarray(mlp(by_hand(PARAMS), X))


def test_jit_and_vmap() -> None:
    assert_close(FUNCTION(SMALL, X), EXPECTED)
    assert_close(jax.jit(FUNCTION)(SMALL, X), EXPECTED)
    rows = jp.trace(mlp, PARAMS, X[0])
    assert_close(jax.vmap(jp.shrunk_function(rows, PLAN), (None, 0))(SMALL, X), EXPECTED)
    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), SMALL)
    assert_close(jax.vmap(FUNCTION, (0, None))(several, X)[0], EXPECTED)


def test_gradients() -> None:
    def loss(function, params):
        return jnp.sum(jnp.sin(function(params, X)))

    small_loss = jax.jit(functools.partial(loss, FUNCTION))
    found = jax.jit(jax.grad(small_loss))(SMALL)
    masked = jp.apply_masks(PARAMS, PLAN.masks(MODEL, consumers_only=True))
    expected = jp.shrink(MODEL, PLAN, jax.jit(jax.grad(functools.partial(loss, mlp)))(masked))
    jax.tree.map(assert_close, found, expected)
    # And against finite differences along a random direction.
    draw = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: draw.normal(size=p.shape).astype(np.float32), SMALL)
    ahead, behind = (small_loss(jax.tree.map(lambda p, d, s=s: p + s * d, SMALL, direction)) for s in (1e-3, -1e-3))
    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(found), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose((ahead - behind) / 2e-3, slope, rtol=2e-2)


@pytest.mark.parametrize("rows", [1, 5])
def test_other_batch_sizes(rows: int) -> None:
    x = inputs(rows)
    assert_close(FUNCTION(SMALL, x), mlp(by_hand(PARAMS), x))


def test_a_batch_axis_merged_with_a_pruned_one() -> None:
    def apply(params, x):  # the batch is part of the same axis as the channels
        x = jnp.tanh(jnp.einsum("bti,io->bto", x, params["a"]))
        x = (x.reshape(-1) * 2).reshape(x.shape[0], -1, params["b"].shape[0])
        return x @ params["b"]

    draw = Draw(2)
    params = {"a": draw.weight(3, 6), "b": draw.weight(6, 2)}
    _, plan, small, function = cut(apply, params, draw.normal(2, 4, 3))
    assert plan.keep["a:1"].sum() == 3
    x = draw.normal(5, 7, 3)
    assert_close(function(small, x), 2 * np.tanh(x @ params["a"][:, :3]) @ params["b"][:3])


def last_sample(h, x):
    return h[-4:]


def all_but_the_last(h, x):
    return h[: 4 * (x.shape[0] - 1)]


def padded(h, x):
    return jnp.pad(h, ((4, 8), (0, 0)))


def drawn(h, x):
    return h * jax.random.normal(jax.random.key(0), h.shape)


def transposed(h, x):
    """The batch is the inner factor, so the kept positions are no repetition of those of one sample."""
    h = h.reshape(-1, 8).T.reshape(-1, 1)[x.shape[0] * 2 :]
    return h.reshape(6, -1).T.reshape(-1, 2)[:, :2]


@pytest.mark.parametrize("middle", [last_sample, all_but_the_last, padded, drawn, transposed])
def test_positions_along_a_batch_axis_merged_with_a_pruned_one(middle) -> None:
    """They are counted along the axis as it is now, not as it was traced."""

    def apply(params, x):
        h = middle(jnp.tanh(x @ params["q"]).reshape(-1, 2), x)
        return h.sum(0) @ params["o"]

    draw = Draw(3)
    params = {"q": draw.weight(6, 8), "o": draw.weight(2, 6)}
    model, plan, small, function = cut(apply, params, draw.normal(3, 6))
    masked = jp.apply_masks(params, plan.masks(model))
    for rows in (3, 5, 2):
        x = draw.normal(rows, 6)
        assert_close(function(small, x), apply(masked, x), 1e-5)


def test_a_batch_axis_joined_with_a_pruned_one() -> None:
    def apply(params, x):  # the share of what is kept depends on the batch
        h = jnp.concatenate([x.sum(1), params["w"]])
        return jnp.where(h > 0, h, jnp.zeros(h.shape))[x.shape[0] :] @ params["o"]

    draw = Draw(3)
    params = {"w": draw.bias(8), "o": draw.weight(8, 3)}
    model, plan, small, function = cut(apply, params, draw.normal(3, 6))
    for rows in (3, 5):
        x = draw.normal(rows, 6)
        assert_close(function(small, x), apply(jp.apply_masks(params, plan.masks(model)), x))


def test_positions_that_the_trace_does_not_tell() -> None:
    """Traced at a batch of one, the merged axis does not show that it has a batch."""

    def apply(params, x):
        return jnp.tanh(x @ params["q"]).reshape(-1, 2)[:4].sum(0) @ params["o"] + x.mean()

    draw = Draw(3)
    params = {"q": draw.weight(6, 12), "o": draw.weight(2, 6)}
    _, _, small, function = cut(apply, params, draw.normal(1, 6))
    function(small, draw.normal(1, 6))
    with pytest.raises(ValueError, match=r"axis 0 of a value of shape \(18, 2\) .*Trace the model with arguments"):
        function(small, draw.normal(3, 6))


def test_positions_of_a_symbolic_batch() -> None:
    def apply(params, x):
        h = jnp.tanh(x @ params["q"]).reshape(-1, 2)
        return jnp.pad(h, ((4, 4), (0, 0))).sum(0) @ params["o"]

    draw = Draw(3)
    params = {"q": draw.weight(6, 8), "o": draw.weight(2, 6)}
    _, _, small, function = cut(apply, params, draw.normal(3, 6))
    with pytest.raises(ValueError, match=r"axis 0 of a value of shape \(4\*b \+ 8, 2\) .*Trace the model with"):
        exported(function, small, "b", 6)


def exported(function, small, *shape: int | str):
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(", ".join(map(str, shape))), jnp.float32)
    return jax.export.export(jax.jit(function))(small, x)


@pytest.mark.parametrize("batch", ["b", "2*b"])
def test_export_with_a_symbolic_batch(batch: str) -> None:
    program = exported(FUNCTION, SMALL, batch, 4)
    for rows in (2, 6):
        x = inputs(rows)
        assert_close(program.call(SMALL, x), mlp(by_hand(PARAMS), x))


def test_export_through_bytes() -> None:
    pytest.importorskip("flatbuffers", reason="JAX serialises with flatbuffers, which it does not depend on")
    loaded = jax.export.deserialize(exported(FUNCTION, SMALL, "b", 4).serialize())
    x = inputs(3)
    assert_close(loaded.call(SMALL, x), mlp(by_hand(PARAMS), x))


def test_export_of_convolutions_with_a_symbolic_batch() -> None:
    def apply(params, x):
        x = jax.nn.relu(lax.conv_general_dilated(x, params["a"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))
        return x.reshape(x.shape[0], -1) @ params["b"]

    draw = Draw(3)
    params = {"a": draw.weight(3, 2, 8), "b": draw.weight(5 * 8, 3)}
    x = draw.normal(3, 5, 2)
    _, _, small, function = cut(apply, params, x)
    assert_close(exported(function, small, "b", 5, 2).call(small, x), function(small, x))


def test_other_operations_at_another_shape() -> None:
    def apply(params, x):
        x = x @ params["a"]
        return (jnp.tanh(x) if x.shape[0] > 2 else jax.nn.relu(x)) @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    _, _, small, function = cut(apply, params, jnp.ones((2, 3)))
    function(small, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"other operations for arguments of these shapes and dtypes.*Trace it with"):
        function(small, jnp.ones((3, 3)))


def test_parameters_of_another_dtype() -> None:
    half, x = jax.tree.map(lambda p: p.astype(jnp.bfloat16), SMALL), X.astype(jnp.bfloat16)
    found = FUNCTION(half, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, mlp(jax.tree.map(jnp.asarray, half), x))
    message = r"parameters of these dtypes, or cast first/bias, which is bfloat16, to float32"
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        FUNCTION(half, X)


def test_errors_name_the_parameter_and_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"first/bias has shape \(8,\), but the plan leaves \(5,\).*jaxprune.shrink returns"
    ):
        FUNCTION(PARAMS, X)
    with pytest.raises(ValueError, match=r"another tree structure.*it lacks third/bias"):
        FUNCTION({**SMALL, "third": {"kernel": SMALL["third"]["kernel"]}}, X)
    with pytest.raises(ValueError, match="arguments have the structure"):
        FUNCTION(SMALL, X, X)
    with pytest.raises(ValueError, match="norm='renorm'; it may be 'exact' or 'resize'"):
        jp.shrunk_function(MODEL, PLAN, norm="renorm")
    with pytest.raises(ValueError, match="which this model has not"):
        jp.shrunk_function(MODEL, jp.Plan({"fourth/kernel:1": np.ones(4, bool)}))


class Normalised(nn.Module):
    norm: nn.Module
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(nn.Dense(self.width)(x))
        return nn.Dense(3)(jnp.tanh(x))


class Variance(nn.Module):
    """A hand-written norm with a two-pass or one-pass variance, as `ddof` says."""

    ddof: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True, ddof=self.ddof) + 1e-5)


NORMS = {
    "LayerNorm": nn.LayerNorm,
    "two-pass LayerNorm": lambda: nn.LayerNorm(use_fast_variance=False),
    "RMSNorm": nn.RMSNorm,
    "GroupNorm": lambda: nn.GroupNorm(4),
    "population variance": Variance,
    "sample variance": lambda: Variance(1),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_is_exact_or_resized(name: str) -> None:
    """`exact` is the masked model, `resize` the same module built smaller."""
    make = NORMS[name]
    module, x = Normalised(make(), 16), inputs()
    params = Draw(4).like(jax.eval_shape(module.init, jax.random.key(0), x))
    model = jp.trace(module.apply, params, x)
    keep = {n: np.arange(g.size) % 2 == 0 for n, g in model.groups.items()}
    if name == "GroupNorm":  # the channels of each group of channels are a group to cut
        assert sorted(mask.size for mask in keep.values()) == [4, 4]
        keep = {n: mask for n, mask in keep.items() if n.endswith(":1:1")}
    plan = jp.Plan(keep)
    small = jp.shrink(model, plan, params)
    assert small["params"]["Dense_0"]["kernel"].shape == (4, 8)
    resized = jp.shrunk_function(model, plan, norm="resize")(small, x)
    assert_close(resized, Normalised(make(), 8).apply(small, x), tolerance=1e-5)
    exact = jp.shrunk_function(model, plan)(small, x)
    assert np.abs(resized - exact).max() > 1e-3
    result = jp.verify(model, plan, params, x)
    assert result.exact
    if not result.approximate:
        assert_close(exact, module.apply(jp.apply_masks(params, plan.masks(model)), x), tolerance=1e-5)
    assert_close(jax.jit(jp.shrunk_function(model, plan, norm="resize"))(small, x), resized, tolerance=1e-5)


def test_means_are_resized_at_other_lengths() -> None:
    """A mean over positions and channels divides by another number when there are more positions."""

    def apply(params, x):
        x = jnp.tanh(x @ params["a"])
        x = x / jnp.sqrt(jnp.var(x, axis=(1, 2), keepdims=True, ddof=1))
        return (x - x.mean((1, 2), keepdims=True)) @ params["b"]

    draw = Draw(10)
    params = {"a": draw.weight(4, 8), "b": draw.weight(8, 3)}
    _, _, small, function = cut(apply, params, draw.normal(2, 5, 4), norm="resize")
    for rows, length in ((2, 5), (2, 7), (3, 1)):
        x = draw.normal(rows, length, 4)
        assert_close(function(small, x), apply(small, x), tolerance=1e-5)


def test_dropout_draws_the_bits_of_the_dense_model() -> None:
    def apply(params, x, key):
        x = x @ params["a"]
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        return x @ params["b"]

    draw = Draw(6)
    params = {"a": draw.normal(4, 16), "b": draw.normal(16, 3)}
    x, key = draw.normal(3, 4), jax.random.key(7)
    model, plan, small, function = cut(apply, params, x, key)
    masked = jp.apply_masks(params, plan.masks(model))
    assert_close(function(small, x, key), apply(masked, x, key), tolerance=1e-5)


def test_constants_and_positions_are_sliced() -> None:
    table = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)

    def apply(params, x):
        frequencies = 1.0 / 100 ** (jnp.arange(8, dtype=jnp.float32) / 8)
        x = jnp.sin(x @ params["a"] * frequencies[None]) + table
        return x @ params["b"]

    draw = Draw(7)
    params = {"a": draw.normal(4, 8), "b": draw.normal(8, 3)}
    x = draw.normal(3, 4)
    model = jp.trace(apply, params, x)
    kept = np.array([1, 2, 5, 7])
    plan = jp.Plan({"a:1": np.isin(np.arange(8), kept)})
    frequencies = 1.0 / 100 ** (np.arange(8, dtype=np.float32) / 8)
    expected = (np.sin(x @ params["a"][:, kept] * frequencies[None, kept]) + table[:, kept]) @ params["b"][kept]
    assert_close(jp.shrunk_function(model, plan)(jp.shrink(model, plan, params), x), expected, tolerance=1e-5)


def looped(kind, params, x):
    def layer(x):
        return x + jnp.tanh(x @ params["up"]) @ params["down"]

    if kind == "scan":
        return lax.scan(lambda x, shift: (layer(x) + shift, x.sum()), x, jnp.arange(3.0))[0]
    if kind == "while":
        return lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, layer(state[1])), (0, x))[1]
    if kind == "fori":
        return lax.fori_loop(0, 3, lambda _, x: layer(x), x)
    if kind == "cond":
        return lax.cond(x.sum() > 0, layer, lambda x: 2 * layer(-x), x)
    if kind == "remat":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)(x)
    return lax.map(lambda row: layer(row[None])[0], x)


@pytest.mark.parametrize("kind", ["scan", "while", "fori", "cond", "remat", "map"])
def test_loops_branches_and_checkpoints(kind: str) -> None:
    def apply(params, x):
        return looped(kind, params, x @ params["into"]) @ params["out"]

    draw = Draw(8)
    params = {"into": draw.weight(4, 6), "up": draw.weight(6, 8), "down": draw.weight(8, 6), "out": draw.weight(6, 3)}
    _, plan, small, function = cut(apply, params, draw.normal(2, 4))
    assert len(plan.keep) == 2
    smaller = {
        "into": params["into"][:, :3],
        "up": params["up"][:3, :4],
        "down": params["down"][:4, :3],
        "out": params["out"][:3],
    }
    for rows in (2, 3):
        x = draw.normal(rows, 4)
        assert_close(function(small, x), apply(smaller, x))


def test_bfloat16() -> None:
    params, x = mlp_params(jnp.bfloat16), inputs(dtype=jnp.bfloat16)
    model = mlp_model(jnp.bfloat16)
    found = jp.shrunk_function(model, PLAN)(jp.shrink(model, PLAN, params), x)
    assert found.dtype == jnp.bfloat16
    assert_close(found, mlp(jax.tree.map(jnp.asarray, by_hand(params)), x), tolerance=2e-2)


def test_kept_indices_are_those_of_the_plan() -> None:
    """The helpers above are only as good as this."""
    assert [kept.tolist() for kept in KEPT.values()] == [[1, 2, 4, 5, 7], [0, 1, 2, 3]]
