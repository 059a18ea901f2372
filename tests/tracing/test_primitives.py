"""Primitives one by one: which axes stay free, and that what is left computes the same.

Each program makes a hidden axis of 12 (`w`), does something to it, and sums over it (`u`). The count says how many
groups must be found; a program with none says why.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxprune as jp

W = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
U = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)

Program = Callable[[Any, Any], Any]


def hidden(act: Callable[[Any], Any], rows: int = 12) -> Program:
    """x @ w, then something, then @ u."""
    return lambda p, x: act(x @ p["w"]) @ jnp.resize(p["u"], (rows, 4)) if rows != 12 else act(x @ p["w"]) @ p["u"]


def stack(p: Any, x: Any) -> Any:
    h = x @ p["w"]
    return (jnp.stack([h, jnp.tanh(h)], 1) @ p["u"]).sum(1)


def unstack(p: Any, x: Any) -> Any:
    a, b = jnp.unstack((x @ p["w"]).reshape(3, 2, 6), axis=1)
    return (a * b) @ p["u"][:6]


def tile(p: Any, x: Any) -> Any:
    return jnp.tile(x @ p["w"], (2, 2)) @ jnp.concatenate([p["u"], p["u"]])


def split_with_an_empty_piece(p: Any, x: Any) -> Any:
    a, empty, b = jnp.split(x @ p["w"], [5, 5], -1)
    return jnp.concatenate([b, a], -1) @ p["u"] + empty.sum()


def scatter(method: str) -> Program:
    def program(p: Any, x: Any) -> Any:
        h = x @ p["w"]
        rows = jnp.array([0, 2])
        return getattr(h.at[rows], method)(h[:2] * 0.5) @ p["u"]

    return program


def linear_solve(p: Any, x: Any) -> Any:
    h = x @ p["w"]
    return lax.custom_linear_solve(lambda v: 2.0 * v, h, lambda _, b: b / 2.0, symmetric=True) @ p["u"]


def ragged(p: Any, x: Any) -> Any:
    h = lax.ragged_dot(x, p["w"][None] * jnp.ones((2, 1, 1)), jnp.array([1, 2]))
    return h @ p["u"]


def reduce(p: Any, x: Any) -> Any:
    h = (x @ p["w"])[None] * jnp.arange(1.0, 3.0)[:, None, None]
    return lax.reduce(h, np.float32(0), lambda a, b: a + b * 1.0, (0,)) @ p["u"]


def looped(h: Any) -> Any:
    return lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, jnp.sin(state[1])), (0, h))[1]


def complex_numbers(p: Any, x: Any) -> Any:
    h = x @ p["w"]
    return (lax.complex(h, 2.0 * h) * 1j).real @ p["u"]


PROGRAMS: dict[str, tuple[Program, int]] = {
    "stack": (stack, 1),
    "unstack": (unstack, 1),
    "tile": (tile, 1),
    "split_with_an_empty_piece": (split_with_an_empty_piece, 2),
    "optimization_barrier": (hidden(lambda h: lax.optimization_barrier(h)), 1),
    "fft_along_another_axis": (hidden(lambda h: jnp.fft.fft(h, axis=0).real), 1),
    "fft_along_the_axis": (hidden(lambda h: jnp.fft.fft(h, axis=1).real), 0),
    "complex": (complex_numbers, 1),
    "scatter": (scatter("set"), 1),
    "scatter-add": (scatter("add"), 1),
    "scatter-sub": (scatter("subtract"), 1),
    "scatter-mul": (scatter("multiply"), 1),
    "scatter-min": (scatter("min"), 1),
    "scatter-max": (scatter("max"), 1),
    "reduce_by_a_function": (reduce, 1),
    "custom_linear_solve": (linear_solve, 0),
    "ragged_dot_general": (ragged, 1),
    "broadcast_to": (hidden(lambda h: jnp.broadcast_to(h[None], (2, *h.shape))), 1),
    "empty_slice": (hidden(lambda h: h + h[:0].sum()), 1),
    "empty_concatenation": (hidden(lambda h: jnp.concatenate([h, h[:, :0]], 1)), 1),
    "associative_scan": (hidden(lambda h: lax.associative_scan(jnp.add, h, axis=0)), 1),
    "cumsum_along_the_axis": (hidden(lambda h: jnp.cumsum(h, 1)), 0),
    "sort_along_the_axis": (hidden(lambda h: jnp.sort(h, 1)), 0),
    "sort_along_another_axis": (hidden(lambda h: jnp.sort(h, 0)), 1),
    "top_k_along_the_axis": (hidden(lambda h: jnp.pad(lax.top_k(h, 3)[0], ((0, 0), (0, 9)))), 1),  # the padding
    "reverse": (hidden(lambda h: h[:, ::-1]), 0),
    "gather_along_the_axis": (hidden(lambda h: h[:, jnp.arange(12)]), 1),  # what is gathered, not what from
    "strided_slice": (hidden(lambda h: jnp.repeat(h[:, ::2], 2, 1)), 2),  # the repetitions, too
    "dynamic_slice": (hidden(lambda h: lax.dynamic_slice(h, (0, 0), (2, 12))), 1),
    "dynamic_update_slice": (hidden(lambda h: lax.dynamic_update_slice(h, h[:1], (1, 0))), 1),
    "select": (hidden(lambda h: jnp.where(h > 0, h, 0.1 * h)), 1),
    "argmax_elsewhere": (hidden(lambda h: h * (h.argmax(0) > 0)[None].astype(h.dtype)), 1),
    "while_loop": (hidden(looped), 1),
    "power": (hidden(lambda h: jnp.power(jax.nn.relu(h), 1.5)), 1),
    "random_gamma": (hidden(lambda h: jax.random.gamma(jax.random.key(0), jax.nn.softplus(h))), 0),
    "clamp": (hidden(lambda h: jnp.clip(h, -1.0, 1.0)), 1),
    "pad": (hidden(lambda h: jnp.pad(h, ((1, 1), (0, 0)))), 1),
    "expand_and_squeeze": (hidden(lambda h: jnp.squeeze(jnp.expand_dims(h, (0, 2)), (0, 2))), 1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_primitive(name: str) -> None:
    program, count = PROGRAMS[name]
    params = {"w": W, "u": U}
    model = jp.trace(program, params, X)
    assert len(model.groups) == count
    if not count:
        assert "stays as it is" in model.explain("w", 1)
        return
    keep = {name: np.arange(group.size) % 3 != 1 for name, group in model.groups.items()}
    result = jp.verify(model, jp.Plan(keep), params, X, strict=True)
    assert not result.approximate and result.error < 1e-5


def test_a_power_that_is_not_finite_at_zero() -> None:
    def negative(p: Any, x: Any) -> Any:
        return lax.pow(x @ p["w"], np.float32(-0.5)) @ p["u"]

    assert jp.trace(negative, {"w": W, "u": U}, X).groups["w:1"].exactness == "approximate"


def test_reshard() -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))

    def program(p: Any, x: Any) -> Any:
        return jax.sharding.reshard(x @ p["w"], PartitionSpec("x", None)) @ p["u"]

    params, x = {"w": W, "u": U}, np.ones((4, 5), np.float32)
    with jax.set_mesh(mesh):
        model = jp.trace(program, params, x)
        assert "reshard" in {node.name for node in model.program.graph.everything()}
        assert list(model.groups) == ["w:1"]
        result = jp.verify(model, jp.Plan({"w:1": np.arange(12) % 3 != 1}), params, x, strict=True)
    assert result.exact and result.error < 1e-5


def test_a_zero_size_argument_freezes_nothing_else() -> None:
    def program(p: Any, x: Any, empty: Any) -> Any:
        return jnp.concatenate([x, empty]) @ p["w"] @ p["u"]

    model = jp.trace(program, {"w": W, "u": U}, X, np.zeros((0, 5), np.float32))
    assert list(model.groups) == ["w:1"]
    assert jp.verify(
        model, jp.Plan({"w:1": np.arange(12) > 3}), {"w": W, "u": U}, X, np.zeros((0, 5), np.float32)
    ).exact


def test_integer_leaves_and_keys_are_never_cut() -> None:
    def program(p: Any, x: Any) -> Any:
        noise = jax.random.normal(p["key"], (12,))
        return (x @ p["w"] * p["counts"].astype(jnp.float32)[None] + 0.0 * noise[None]) @ p["u"]

    params = {"w": W, "u": U, "counts": np.arange(12), "key": jax.random.key(0)}
    model = jp.trace(program, params, X)
    assert not model.groups
    assert "it is no floating array" in model.explain("w", 1)
