"""Masks of sharded parameters: the same as on one device, sharded alike, and made without gathering a parameter."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune import compute_masks, masks, pruners

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
ROWS, COLUMNS, BOTH = PartitionSpec("x", None), PartitionSpec(None, "y"), PartitionSpec("x", "y")
ALL_ROWS, ALL_COLUMNS = PartitionSpec(("x", "y"), None), PartitionSpec(None, ("x", "y"))
SHAPE, DEVICES = (64, 128), 8

STRUCTURES = {
    "unstructured": jp.Unstructured(),
    "nm": jp.NM(2, 4),
    "nm-last": jp.NM(2, 4, axis=-1),
    "nm-wide": jp.NM(8, 32),
    "block": jp.Block((8, 4)),
    "block-max": jp.Block((8, 8), reduce="max"),
    "channel": jp.Channel(),
    "channel-first": jp.Channel(0),
}
ALLOCATIONS = {"uniform": jp.allocation.uniform, "erk": jp.allocation.erk, "global": jp.allocation.global_}
# Pairs rather than the full product: a compilation takes about a second.
CASES = [
    *[("unstructured", "uniform", spec) for spec in (ROWS, COLUMNS, BOTH, ALL_ROWS, ALL_COLUMNS)],
    ("unstructured", "erk", BOTH),
    ("unstructured", "global", BOTH),
    ("unstructured", "global", ROWS),
    ("nm", "uniform", BOTH),
    ("nm", "uniform", ALL_ROWS),
    ("nm-last", "uniform", COLUMNS),
    ("nm-wide", "uniform", BOTH),
    ("block", "uniform", BOTH),
    ("block-max", "uniform", ROWS),
    ("block", "global", COLUMNS),
    ("channel", "uniform", COLUMNS),
    ("channel", "uniform", ROWS),
    ("channel-first", "global", BOTH),
]


def one_device_params(several: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # Sixteenths: sums over blocks are exact in any order, so that blocks tie as well, whatever the compiler does.
    tied = np.round(rng.normal(size=SHAPE) * 16).astype(np.float32) / 16
    params = {"tied": tied, "bias": np.zeros(64, np.float32)}
    # A second one where parameters compete; elsewhere it would only take time to compile.
    return {**params, "distinct": rng.normal(size=SHAPE).astype(np.float32)} if several else params


def make_mesh(kind: str) -> Mesh:
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(KINDS[kind],) * 2)


def shard(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    return jax.tree.map(
        lambda a: jax.device_put(a, NamedSharding(mesh, spec if a.shape == SHAPE else PartitionSpec())), tree
    )


COLLECTIVE = re.compile(r"= *(.*?) (all-gather|all-to-all|collective-permute|ragged-all-to-all)(?:-start)?\(")


def moved_arrays(hlo: str) -> list[tuple[str, str, int]]:
    """Collective, type and number of elements of all that a compiled program moves between devices unreduced."""
    return [
        (match[2], dtype, math.prod(int(size) for size in shape.split(",") if size))
        for match in COLLECTIVE.finditer(hlo)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1])
    ]


def assert_nothing_large_moves(compiled: Any) -> None:
    # A shard of a parameter is the smallest thing that would have to move.
    large = [moved for moved in moved_arrays(compiled.as_text()) if moved[2] >= math.prod(SHAPE) // DEVICES]
    assert not large, large


def assert_sharded_alike(tree: Any, params: Any) -> None:
    for name, array in tree.items():
        assert array.sharding.is_equivalent_to(params[name].sharding, params[name].ndim), (name, array.sharding)


def masks_of(params: Any, structure: str, allocation: str) -> Any:
    sparsity = None if structure.startswith("nm") else 0.7
    made = compute_masks(params, sparsity, structure=STRUCTURES[structure], allocation=ALLOCATIONS[allocation])
    return masks.full_masks(made, params)


@functools.cache
def expected_masks(structure: str, allocation: str) -> Any:
    params = jax.tree.map(jnp.asarray, one_device_params(several=allocation != "uniform"))
    return jax.device_get(jax.jit(masks_of, static_argnums=(1, 2))(params, structure, allocation))


def test_the_reading_of_hlo() -> None:
    """The scan finds what a program gathers, so that its silence means something."""
    mesh = make_mesh("auto")
    x = jax.device_put(np.ones(SHAPE, np.float32), NamedSharding(mesh, BOTH))
    gather = jax.jit(lambda x: x * 2, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(x).compile()
    assert ("all-gather", "f32", math.prod(SHAPE)) in moved_arrays(gather.as_text())
    swap = jax.jit(lambda x: x * 2, out_shardings=NamedSharding(mesh, PartitionSpec("y", "x"))).lower(x).compile()
    assert moved_arrays(swap.as_text())
    with pytest.raises(AssertionError):
        assert_nothing_large_moves(gather)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("structure", "allocation", "spec"), CASES)
def test_masks(kind: str, structure: str, allocation: str, spec: PartitionSpec) -> None:
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        params = shard(one_device_params(several=allocation != "uniform"), mesh, spec)
        compiled = jax.jit(masks_of, static_argnums=(1, 2)).lower(params, structure, allocation).compile()
        made = compiled(params)
    assert_nothing_large_moves(compiled)
    assert_sharded_alike(made, params)
    for name, mask in expected_masks(structure, allocation).items():
        np.testing.assert_array_equal(made[name], mask)


WITHOUT_JIT: dict[str, dict[str, Any]] = {
    "block": {"structure": STRUCTURES["block"]},
    "nm": {"sparsity": None, "structure": STRUCTURES["nm"]},
    "lamp": {"score": jp.scores.lamp},
    "random": {"score": jp.scores.random, "key": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", WITHOUT_JIT)
def test_masks_without_jit_and_without_a_mesh_in_context(kind: str, how: str) -> None:
    given = {"sparsity": 0.7} | WITHOUT_JIT[how]
    if "key" in given:
        given["key"] = jax.random.key(given["key"])
    params = shard(one_device_params(), make_mesh(kind), BOTH)
    made = masks.full_masks(compute_masks(params, **given), params)
    expected = compute_masks(one_device_params(), **given)
    for found in (made, masks.unpack(masks.pack(made), params)):
        assert_sharded_alike(found, params)
        for name, mask in expected.items():
            np.testing.assert_array_equal(found[name], np.broadcast_to(mask, found[name].shape))


SHARD_MAP: dict[str, dict[str, Any]] = {
    "uniform": {"sparsity": 0.7},
    "global": {"sparsity": 0.7, "allocation": jp.allocation.global_},
    "nm-wide": {"sparsity": None, "structure": jp.NM(8, 32, axis=-1)},
}


@pytest.mark.parametrize("how", SHARD_MAP)
def test_inside_shard_map_each_device_selects_within_its_shard(how: str) -> None:
    mesh, given = make_mesh("auto"), dict(SHARD_MAP[how])
    sparsity = given.pop("sparsity")
    # One parameter differs between devices, the other does not; ties take a second search.
    params = {k: v for k, v in one_device_params(several=True).items() if v.shape == SHAPE}
    specs = {"tied": ALL_ROWS, "distinct": PartitionSpec()}
    # Under a global threshold the masks of both differ between devices.
    out = {"tied": ALL_ROWS, "distinct": ALL_ROWS if how == "global" else PartitionSpec()}
    select = functools.partial(compute_masks, sparsity=sparsity, **given)
    made = jax.jit(jax.shard_map(select, mesh=mesh, in_specs=(specs,), out_specs=out))(params)
    rows = SHAPE[0] // DEVICES
    shards = [select({**params, "tied": params["tied"][i * rows : (i + 1) * rows]}) for i in range(DEVICES)]
    for name in params:
        apart = out[name] == ALL_ROWS
        expected = np.concatenate([s[name] for s in shards]) if apart else shards[0][name]
        np.testing.assert_array_equal(made[name], expected)


def test_training_inside_shard_map() -> None:
    params = {"w": jnp.asarray(one_device_params()["tied"])}
    tx = jp.sparsify(optax.sgd(0.1), pruners.rigl(0.7, begin=0, every=1, end=4), key=jax.random.key(0))

    def train_shard(params: Any) -> Any:
        updates, state = tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)
        return jp.get_masks(state), optax.apply_updates(params, updates)

    step = jax.shard_map(train_shard, mesh=make_mesh("auto"), in_specs=(ALL_ROWS,), out_specs=ALL_ROWS)
    made, after = jax.jit(step)(params)
    assert [int(m.sum()) for m in np.split(np.asarray(made["w"]), DEVICES)] == [round(0.3 * 8 * 128)] * DEVICES
    assert bool(((after["w"] == 0) | made["w"]).all())


LAMP: dict[str, dict[str, Any]] = {
    "score": {"score": jp.scores.lamp},
    "allocation": {"allocation": jp.allocation.lamp},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", LAMP)
def test_lamp(kind: str, how: str) -> None:
    """The one score that sorts: it gathers, and gives the masks of one device, sharded as the parameters are."""
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        params = shard(one_device_params(), mesh, BOTH)
        made = jax.jit(lambda p: masks.full_masks(compute_masks(p, 0.7, **LAMP[how]), p))(params)
    assert_sharded_alike(made, params)
    expected = compute_masks(jax.tree.map(jnp.asarray, one_device_params()), 0.7, **LAMP[how])
    np.testing.assert_array_equal(made["tied"], expected["tied"])


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_without_a_mesh_in_context(kind: str) -> None:
    params = shard(one_device_params(), make_mesh(kind), BOTH)
    given = jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape) % 2 == 0, one_device_params())
    for pruner in (pruners.rigl(0.7, every=1, end=4), pruners.static(masks=given)):
        state: Any = jp.sparsify(optax.sgd(0.1), pruner, key=jax.random.key(0)).init(params)
        assert_sharded_alike(state.masks, params)


PRUNERS = {
    "gmp": (pruners.gmp(0.7, begin=0, end=2), COLUMNS, False),
    "gmp-packed": (pruners.gmp(0.7, begin=0, end=2), BOTH, True),
    "rigl": (pruners.rigl(0.7, begin=0, every=1, end=4), BOTH, False),
    "set": (pruners.set_(0.7, begin=0, every=1, end=4), ROWS, False),
    "ste": (pruners.ste(0.7), BOTH, False),
    "sr_ste-nm-packed": (pruners.sr_ste(None, structure=jp.NM(2, 4)), ALL_ROWS, True),
}


def train(params: Any, name: str) -> tuple[list[Any], Any, Any]:
    pruner, _, packed = PRUNERS[name]
    tx = jp.sparsify(optax.sgd(0.1, momentum=0.9), pruner, key=jax.random.key(1), pack_masks=packed)

    def step(params: Any, state: Any) -> Any:
        grads = jax.tree.map(lambda p: jnp.cos(3 * p), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    # Under `jit`, XLA would replicate Optax's own moments on an Auto mesh: `zeros_like` is a constant there.
    state = tx.init(params)
    states = [state]
    compiled = jax.jit(step).lower(params, state).compile()
    for _ in range(3):
        # A compiled program rejects a state whose sharding has changed.
        params, state = compiled(params, state)
        states.append(state)
    return states, params, compiled


@functools.cache
def expected_training(name: str) -> Any:
    params = jax.tree.map(jnp.asarray, one_device_params())
    states, after, _ = train(params, name)
    return [jax.device_get(jp.get_masks(state, after)) for state in states]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRUNERS)
def test_training(kind: str, name: str) -> None:
    _, spec, packed = PRUNERS[name]
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        params = shard(one_device_params(), mesh, spec)
        states, after, compiled = train(params, name)
        found = [jp.get_masks(state, after) for state in states]
    assert_nothing_large_moves(compiled)
    assert_sharded_alike(after, params)
    for state in states:
        assert_sharded_alike(state.masks, params)
        assert_sharded_alike(state.inner_state[0].trace, params)
        if packed:
            assert all(leaf.dtype == jnp.uint8 for leaf in jax.tree.leaves(state.masks))
    for mine, theirs in zip(found, expected_training(name), strict=True):
        for path, mask in theirs.items():
            np.testing.assert_array_equal(mine[path], mask)
