"""REAP: scores against NumPy, and experts that go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining.experts import expert_scores, reap_scores
from tests.draws import normal
from tests.zoo.models import ZOO


def test_zoo_mixture_equals_the_definition_and_shrinks() -> None:
    zoo = ZOO["moe_dense"]()
    params = zoo.params | {"down": zoo.params["down"].at[4].set(0)}  # an expert that gives nothing
    model = jp.trace(zoo.apply_fn, params, *zoo.args)
    (x,) = zoo.args
    batches = [x, normal(1, 21, 7)]  # of another size than the trace
    found = expert_scores(model, params, batches)
    host = jax.tree.map(np.asarray, params)
    gates, norms = [], []
    for batch in map(np.asarray, batches):
        tokens = batch @ host["embed"]["kernel"] + host["embed"]["bias"]
        router = np.exp(tokens @ host["router"])
        router /= router.sum(-1, keepdims=True)
        gates.append(np.where(np.argsort(np.argsort(-router, -1), -1) < 2, router, 0))
        hidden = np.maximum(np.einsum("td,edh->teh", tokens, host["up"]) + host["up_bias"], 0)
        norms.append(np.linalg.norm(np.einsum("teh,ehd->ted", hidden, host["down"]), axis=-1))
    expected = reap_scores(jnp.concatenate(gates), jnp.concatenate(norms))
    np.testing.assert_allclose(found["down:0"], expected, rtol=1e-4)
    assert found["down:0"][4] == 0 and all(np.isinf(found[name]).all() for name in model.groups if name != "down:0")

    plan = jp.select(model, found, 0.0, ratios={"down:0": 1 / 6})
    assert plan.keep["down:0"].tolist() == [True, True, True, True, False, True]
    small, args = jp.shrink(model, plan, params), (x,)
    assert small["up"].shape == (5, 14, 10)
    # The dead expert gave nothing, so nothing changes.
    np.testing.assert_allclose(
        jax.jit(jp.shrunk_function(model, plan))(small, *args),
        jax.jit(zoo.apply_fn)(params, *args),
        rtol=1e-4,
        atol=1e-5,
    )


def stacked(params, x):
    """Two mixtures in a scan, weighted and summed without a dot."""

    def layer(x, p):
        gates = jax.nn.softmax(x @ p["router"])
        gates = jnp.where(gates > 0.3, gates, 0)
        outputs = jnp.tanh(jnp.einsum("td,edf->tef", x, p["experts"]))
        return x + (gates[:, :, None] * outputs).sum(1), None

    return jax.lax.scan(layer, x, params)[0]


def test_a_sum_in_a_scan() -> None:
    params, x = {"router": normal(0, 2, 5, 3), "experts": normal(1, 2, 3, 5, 5)}, normal(2, 16, 5)
    model = jp.trace(stacked, params, x)
    (name,) = [name for name, group in model.groups.items() if group.size == 3]
    gates, norms, tokens = [], [], x
    for router, experts in zip(params["router"], params["experts"], strict=True):
        gate = jax.nn.softmax(tokens @ router)
        gates.append(jnp.where(gate > 0.3, gate, 0))
        outputs = jnp.tanh(jnp.einsum("td,edf->tef", tokens, experts))
        norms.append(jnp.linalg.norm(outputs, axis=-1))
        tokens = tokens + (gates[-1][:, :, None] * outputs).sum(1)
    found = expert_scores(model, params, [x], [name])[name]
    np.testing.assert_allclose(found, reap_scores(jnp.stack(gates), jnp.stack(norms)), rtol=1e-4)


def test_errors() -> None:
    ragged = ZOO["moe_ragged"]()
    model = jp.trace(ragged.apply_fn, ragged.params, *ragged.args)
    with pytest.raises(ValueError, match=r"ragged_dot, or gathers and scatters, they are not supported"):
        expert_scores(model, ragged.params, [ragged.args])
    with pytest.raises(ValueError, match=r"no groups up:0"):
        expert_scores(model, ragged.params, [ragged.args], ["up:0"])
    dense = ZOO["moe_dense"]()
    with pytest.raises(ValueError, match="there are no batches"):
        expert_scores(jp.trace(dense.apply_fn, dense.params, *dense.args), dense.params, [])
    with pytest.raises(ValueError, match="gates have shape"):
        reap_scores(jnp.ones((3, 2)), jnp.ones((3, 1)))
