"""The evaluator at full size: as traced, and with a hand on the operands of a node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.tracing.evaluate import Evaluator
from tests.zoo.models import ZOO

CONTROL = ["control_flow", "llama_remat", "custom_gradients", "linen_gru", "kv_cache", "moe_ragged"]


@pytest.mark.parametrize("name", CONTROL)
def test_runs_as_traced(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    outputs = Evaluator(model.program)(jax.tree.leaves((zoo.params, zoo.args)))
    for found, expected in zip(outputs, jax.tree.leaves(zoo.apply_fn(zoo.params, *zoo.args)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONTROL)
def test_a_hook_that_changes_nothing_changes_nothing(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    seen: list[str] = []

    def look(node, operands):
        seen.append(node.name)
        return operands

    outputs = jax.jit(Evaluator(model.program, operands=look))(jax.tree.leaves((zoo.params, zoo.args)))
    for found, expected in zip(outputs, jax.tree.leaves(jax.jit(zoo.apply_fn)(zoo.params, *zoo.args)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Bodies are walked through as well: every site is seen.
    assert {site.node.name for site in model.sites} <= set(seen)


def test_hook_replaces_a_parameter_as_it_is_reached() -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.full((3, 2), 2.0)}
    x = jnp.array([[1.0, 3.0]])
    model = jp.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
    (site,) = [site for site in model.sites if site.path == "b"]
    inputs = []

    def replace(node, operands):
        if node is not site.node:
            return operands
        inputs.append(operands[1 - site.operand])
        return [operands[0], jnp.zeros_like(operands[1])]

    (output,) = Evaluator(model.program, operands=replace)([*jax.tree.leaves(params), x])
    assert not output.any()
    np.testing.assert_array_equal(inputs[0], [[4.0, 4.0, 4.0]])


def test_is_jittable_and_differentiable() -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.full((3, 2), 2.0)}
    x = jnp.array([[1.0, 3.0]])
    model = jp.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)

    def loss(params):
        return Evaluator(model.program)([*jax.tree.leaves(params), x])[0].sum()

    gradient = jax.jit(jax.grad(loss))(params)
    np.testing.assert_allclose(gradient["b"], jnp.full((3, 2), 4.0))
