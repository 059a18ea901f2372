"""Gradients at the size of what is kept: the same numbers, and fewer bytes in the compiled program, on 8 devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxprune as jp
from jaxprune.measure import all_reduce_bytes, gather_kept, gradient_bytes, kept_counts, scatter_kept

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def model(dtype=jnp.float32) -> tuple[Any, Any, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "a": jax.random.normal(keys[0], (24, 40), dtype),
        "b": jax.random.normal(keys[1], (40, 10), dtype),
        "bias": jnp.zeros((1, 10), dtype),
    }
    masks = {
        "a": jp.compute_masks(params, 0.9, where="a")["a"],
        "b": jp.compute_masks(params, 0.75, where="b")["b"],
        "bias": True,
    }
    return params, masks, jax.random.normal(keys[2], (16, 24), dtype)


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum((jnp.tanh(x @ params["a"]) @ params["b"] + params["bias"]) ** 2) / 64


def summed(exchange: Callable[..., Any], extra: int = 0, vary: bool = False) -> Callable[..., Any]:
    """A data-parallel gradient: of each device's part of the batch, then `exchange(grads, *extra)`."""

    def local(params: Any, x: jax.Array, *rest: Any) -> Any:
        if vary:
            params = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params)
        return exchange(jax.grad(loss_fn)(params, x), *rest)

    specs = (PartitionSpec(), PartitionSpec("data"), *[PartitionSpec()] * extra)
    return jax.jit(jax.shard_map(local, mesh=MESH, in_specs=specs, out_specs=PartitionSpec(), check_vma=vary))


@pytest.mark.parametrize("vary", [False, True])
def test_masked_all_reduce_moves_what_is_kept_and_no_more(vary: bool) -> None:
    params, masks, x = model()

    def dense(grads: Any) -> Any:
        return jp.apply_masks(jax.lax.psum(grads, "data"), masks)

    def kept(grads: Any) -> Any:
        return scatter_kept(jax.lax.psum(gather_kept(grads, masks), "data"), masks, grads)

    before, after = summed(dense, vary=vary), summed(kept, vary=vary)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), after(params, x), before(params, x)
    )
    bytes_before, bytes_after = all_reduce_bytes(before, params, x), all_reduce_bytes(after, params, x)
    assert bytes_before.value == (24 * 40 + 40 * 10 + 10) * 4
    assert bytes_after.value == (96 + 100 + 10) * 4
    assert bytes_after.kind == "measured"
    # The formula says the same as the program.
    formula = gradient_bytes(params, masks, devices=8)
    assert formula["operand dense"].value == bytes_before.value
    assert formula["operand kept"].value == bytes_after.value


def test_masks_move_without_a_retrace() -> None:
    params, masks, x = model()
    counts = kept_counts(masks, params)
    assert counts == (96, 100, 10)
    traces = []

    def kept(grads: Any, masks: Any) -> Any:
        traces.append(1)
        vectors = jax.lax.psum(gather_kept(grads, masks, counts), "data")
        return scatter_kept(vectors, masks, grads, counts)

    step = summed(kept, extra=1)
    full = jp.masks.full_masks(masks, params)
    moved = {**full, "a": jnp.roll(full["a"], 7, 1), "b": full["b"][::-1]}
    reference = summed(lambda grads: jax.lax.psum(grads, "data"))(params, x)
    for chosen in (full, moved):
        expected = jp.apply_masks(reference, chosen)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), step(params, x, chosen), expected
        )
    assert len(traces) == 1
    assert all_reduce_bytes(step, params, x, full).value == sum(counts) * 4


def test_a_wrong_count_is_loud() -> None:
    tree = {"w": jnp.arange(1.0, 7.0)}
    mask = {"w": jnp.array([True, False, True, True, False, False])}
    gather = jax.jit(gather_kept, static_argnums=2)
    np.testing.assert_array_equal(gather(tree, mask, (3,))["w"], [1, 3, 4])
    integers = {"w": jnp.arange(1, 7)}  # which have no NaN: what is missing is zero
    np.testing.assert_array_equal(gather(integers, mask, (4,))["w"], [1, 3, 4, 0])
    for wrong in (2, 4):
        assert np.isnan(gather(tree, mask, (wrong,))["w"]).all()
        with pytest.raises(ValueError, match="keeps 3"):
            gather_kept(tree, mask, (wrong,))


def test_round_trip_of_every_kind_of_mask() -> None:
    params = {
        "channels": jnp.arange(1.0, 13.0).reshape(3, 4),
        "whole": jnp.arange(5),
        "gone": jnp.ones((2, 2)),
        "nan": jnp.array([jnp.nan, jnp.inf, 1.0]),
    }
    masks = {
        "channels": jnp.array([[True, False, True, False]]),
        "whole": True,
        "gone": jnp.asarray(False),
        "nan": jnp.array([False, True, True]),
    }
    kept = gather_kept(params, masks)
    np.testing.assert_array_equal(kept["channels"], [1, 3, 5, 7, 9, 11])
    assert kept["whole"] is params["whole"]
    assert kept["gone"].shape == (0,)
    np.testing.assert_array_equal(kept["nan"], [np.inf, 1])
    back = scatter_kept(kept, masks, params)
    jax.tree.map(np.testing.assert_array_equal, back, jp.apply_masks(params, masks))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%r = f32[3,4]{1,0} all-reduce(%x), channel_id=1", 48),
        ("%r = f32[] all-reduce(f32[] %x), channel_id=1", 4),
        ("%r = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y)", 28),
        ("ROOT %r = (f32[4]{0:T(128)}, s8[5]{0:T(256)(4,1)}) all-reduce-start(%x, %y)", 21),
        ("%r = f32[4]{0} all-reduce-done(%s)", 0),
        ("%g = f32[4]{0} get-tuple-element(%all-reduce), index=0", 0),
        ("%r = (pred[9]{0}, f8e4m3fn[7]{0}, c64[2]{0}) all-reduce(%x)", 9 + 7 + 16),
    ],
)
def test_reads_the_text_of_every_backend(line: str, expected: int) -> None:
    class Compiled:
        def as_text(self) -> str:
            return f"ENTRY %main {{\n  {line}\n}}"

    assert all_reduce_bytes(Compiled()).value == expected


def test_says_what_is_wrong() -> None:
    params, masks, _ = model()
    with pytest.raises(ValueError, match=r"masks of a, b are traced"):
        jax.jit(lambda masks: gather_kept(params, {**masks, "bias": True}))({"a": masks["a"], "b": masks["b"]})
    with pytest.raises(ValueError, match="1 entries for 3 leaves"):
        gather_kept(params, masks, (1,))
    with pytest.raises(ValueError, match="kept: a has shape"):
        scatter_kept({**gather_kept(params, masks), "a": jnp.zeros(3)}, masks, params)
