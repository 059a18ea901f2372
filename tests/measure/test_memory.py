"""Memory: buffers that are alive, XLA's plan, XLA's counts."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune.measure import device_memory, live_bytes, memory, xla_cost

MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_live_bytes_counts_buffers_once_and_replicas_each() -> None:
    array = jnp.zeros((8, 4), jnp.float32)
    assert live_bytes([array, array]).value == array.nbytes
    replicated = jax.device_put(array, NamedSharding(MESH, PartitionSpec()))
    sharded = jax.device_put(array + 1, NamedSharding(MESH, PartitionSpec("data")))
    assert live_bytes([replicated]).value == 8 * array.nbytes
    assert live_bytes([sharded]).value == array.nbytes
    part = sharded.addressable_shards[3].data  # another array on a buffer that is there already
    assert live_bytes([sharded, part]).value == array.nbytes
    gone = array + 2
    gone.delete()
    assert live_bytes([gone]).value == 0


def test_live_bytes_sees_what_comes_and_goes() -> None:
    gc.collect()  # what other tests have left must not go in between
    before = live_bytes().value
    array = jax.block_until_ready(jnp.arange(100_000, dtype=jnp.float32) + 1)
    during = live_bytes().value
    assert before is not None
    assert during is not None
    assert during - before >= array.nbytes
    array.delete()
    after = live_bytes().value
    assert after is not None
    assert during - after >= 400_000


def test_memory_is_the_plan_of_xla() -> None:
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    found = memory(lambda x: jnp.concatenate([x, x]), x)
    assert found["arguments"].value == 16 * 8 * 4
    assert found["outputs"].value == 2 * 16 * 8 * 4
    assert {figure.kind for figure in found.values()} <= {"modelled", "measured"}
    assert found["arguments"].kind == "modelled"


def test_masked_work_is_dense_work_to_xla() -> None:
    params = {"w": jnp.ones((32, 16))}
    masks = {"w": jnp.arange(512).reshape(32, 16) < 51}
    x = jnp.ones((4, 32))
    dense = xla_cost(jax.jit(lambda params, x: x @ params["w"]), params, x)["flops"]
    pruned = xla_cost(jax.jit(lambda params, x: x @ params["w"]), jp.apply_masks(params, masks), x)["flops"]
    assert dense.value == pruned.value
    assert dense.value == pytest.approx(2 * 4 * 32 * 16, rel=0.05)
    assert dense.kind == "modelled"
    assert "zeros" in dense.note


def test_traffic_of_a_copy() -> None:
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert xla_cost(lambda x: -x, x)["traffic"].value == 2 * 4000


def test_device_memory_of_a_cpu_is_not_measured() -> None:
    found = device_memory(jax.devices("cpu")[0])
    assert str(found["peak"]) == "not measured (cpu devices report no memory statistics)"


def test_device_memory_of_an_accelerator() -> None:
    class Device:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_in_use": 10, "peak_bytes_in_use": 30}

    found = device_memory(Device())
    assert [found[name].value for name in ("in use", "peak")] == [10.0, 30.0]
    assert np.all([figure.kind == "measured" for figure in found.values()])
